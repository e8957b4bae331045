//! Type and shape inference: the type of a node from its operation and the types of its operands.

use super::control::Control;
use super::{Op, TensorType};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

/// The shape that both broadcast to, aligned from the right; `None` when they do not agree.
pub fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at =
        |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).and_then(|k| s.get(k).cloned()).unwrap_or_else(Dim::one);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (x, y) if x.is(1) => Some(y),
            (x, y) if y.is(1) => Some(x),
            _ => None,
        })
        .collect()
}

fn arity(op: &Op) -> (usize, usize) {
    match op {
        Op::Input(_) | Op::State(_) | Op::Weight(_) | Op::Const(_) | Op::Iota { .. } | Op::KvLoad { .. } => (0, 0),
        Op::Unary(_) | Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. } => (1, 1),
        Op::MergeParts { .. } => (1, 1),
        Op::Reduce { .. } | Op::Softmax | Op::KvAppend { .. } | Op::KvRead { .. } => (1, 1),
        Op::Binary(_) | Op::Gather | Op::MatMul { .. } => (2, 2),
        Op::Select => (3, 3),
        Op::Concat { .. } => (1, 255),
        Op::Norm { has_gain, has_bias, .. } => {
            let n = 1 + usize::from(*has_gain) + usize::from(*has_bias);
            (n, n)
        }
        Op::Rope { .. } => (4, 4),
        Op::Attention(a) | Op::AttentionParts { attrs: a, .. } => {
            let n = 3 + usize::from(a.has_mask) + usize::from(a.has_bias);
            (n, n)
        }
        Op::Control(c) => (c.body().inputs.len(), c.body().inputs.len()),
    }
}

/// The result type of `op` on operands of the given types. Sources carry their type in the node and are refused here,
/// but for constants.
///
/// # Errors
/// What does not fit, as a sentence.
pub fn infer(op: &Op, inputs: &[&TensorType]) -> Result<TensorType, String> {
    let (lo, hi) = arity(op);
    if inputs.len() < lo || inputs.len() > hi {
        return Err(format!("{lo} operands expected, {} found", inputs.len()));
    }
    match (op, inputs) {
        (Op::Const(l), _) => Ok(TensorType::new(l.scalar(), [])),
        (Op::Input(_) | Op::State(_) | Op::Weight(_) | Op::Iota { .. } | Op::KvLoad { .. }, _) => {
            Err("its type is declared, not inferred".into())
        }
        (Op::Unary(u), [x]) => {
            let ok = match u {
                UnaryOp::Not => x.scalar == Scalar::Bool,
                UnaryOp::Neg | UnaryOp::Abs => x.scalar != Scalar::Bool,
                _ => x.scalar == Scalar::F32,
            };
            if ok { Ok((*x).clone()) } else { Err(format!("{} is not defined for {}", op.name(), x.scalar)) }
        }
        (Op::Cast(to), [x]) => Ok(TensorType::new(*to, x.shape.clone())),
        (Op::Binary(b), [x, y]) => {
            if x.scalar != y.scalar {
                return Err(format!("operands of {} and {}", x.scalar, y.scalar));
            }
            let logical = matches!(b, BinaryOp::And | BinaryOp::Or);
            if (logical != (x.scalar == Scalar::Bool) && *b != BinaryOp::Eq)
                || (*b == BinaryOp::Pow && x.scalar != Scalar::F32)
            {
                return Err(format!("{} is not defined for {}", op.name(), x.scalar));
            }
            let shape = join(x, y)?;
            Ok(TensorType::new(if b.is_comparison() { Scalar::Bool } else { x.scalar }, shape))
        }
        (Op::Select, [c, t, f]) => {
            if c.scalar != Scalar::Bool || t.scalar != f.scalar {
                return Err(format!("select of {} between {} and {}", c.scalar, t.scalar, f.scalar));
            }
            let shape = join(t, f)?;
            Ok(TensorType::new(t.scalar, join(c, &TensorType::new(t.scalar, shape))?))
        }
        (Op::Reshape(shape), [x]) => {
            if x.elems() == product(shape) {
                Ok(TensorType::new(x.scalar, shape.clone()))
            } else {
                Err(format!("{x} has not as many elements as {}", TensorType::new(x.scalar, shape.clone())))
            }
        }
        (Op::Transpose(perm), [x]) => {
            let mut seen = perm.clone();
            seen.sort_unstable();
            if seen != (0..x.rank()).collect::<Vec<_>>() {
                return Err(format!("{perm:?} is no permutation of {} axes", x.rank()));
            }
            Ok(TensorType::new(x.scalar, perm.iter().filter_map(|p| x.shape.get(*p).cloned()).collect::<Vec<_>>()))
        }
        (Op::Broadcast(shape), [x]) => match broadcast_shapes(&x.shape, shape) {
            Some(s) if s == *shape => Ok(TensorType::new(x.scalar, s)),
            _ => Err(format!("{x} does not broadcast to {}", TensorType::new(x.scalar, shape.clone()))),
        },
        (Op::Slice { axis, len, .. }, [x]) => {
            let mut shape = x.shape.clone();
            *shape.get_mut(*axis).ok_or_else(|| format!("{x} has no axis {axis}"))? = len.clone();
            Ok(TensorType::new(x.scalar, shape))
        }
        (Op::Concat { axis }, [first, ..]) => {
            let mut shape = first.shape.clone();
            let mut sum = Dim::zero();
            for x in inputs {
                let mut same = x.shape.clone();
                let own = same.get(*axis).cloned().ok_or_else(|| format!("{x} has no axis {axis}"))?;
                sum = sum + own;
                if let (Some(a), Some(b)) = (same.get_mut(*axis), first.shape.get(*axis)) {
                    *a = b.clone();
                }
                if same != first.shape || x.scalar != first.scalar {
                    return Err(format!("{x} and {first} do not join along axis {axis}"));
                }
            }
            if let Some(d) = shape.get_mut(*axis) {
                *d = sum;
            }
            Ok(TensorType::new(first.scalar, shape))
        }
        (Op::Gather, [table, ids]) => {
            if ids.scalar != Scalar::I32 || table.rank() == 0 {
                return Err(format!("gather of {table} by {ids}"));
            }
            let rest = table.shape.iter().skip(1);
            Ok(TensorType::new(table.scalar, ids.shape.iter().chain(rest).cloned().collect::<Vec<_>>()))
        }
        (Op::Reduce { op: r, axes, keep }, [x]) => {
            let ascending = axes.windows(2).all(|w| w[0] < w[1]);
            if axes.is_empty() || !ascending || axes.iter().any(|a| *a >= x.rank()) || x.scalar != Scalar::F32 {
                return Err(format!("reduction of {x} over axes {axes:?}"));
            }
            if *r == ReduceOp::ArgMax && axes.len() != 1 {
                return Err("argmax over more than one axis".into());
            }
            let shape = x.shape.iter().enumerate().filter_map(|(i, d)| match axes.contains(&i) {
                true => keep.then(Dim::one),
                false => Some(d.clone()),
            });
            let scalar = if *r == ReduceOp::ArgMax { Scalar::I32 } else { Scalar::F32 };
            Ok(TensorType::new(scalar, shape.collect::<Vec<_>>()))
        }
        (Op::MatMul { b_transposed }, [a, b]) => {
            let fail = || format!("{a} · {b}{}", if *b_transposed { "ᵀ" } else { "" });
            let ([ab @ .., m, ka], [bb @ .., p, q]) = (a.shape.as_slice(), b.shape.as_slice()) else {
                return Err(fail());
            };
            let (kb, n) = if *b_transposed { (q, p) } else { (p, q) };
            if ka != kb || a.scalar != Scalar::F32 || b.scalar != Scalar::F32 {
                return Err(fail());
            }
            let mut shape = broadcast_shapes(ab, bb).ok_or_else(fail)?;
            shape.extend([m.clone(), n.clone()]);
            Ok(TensorType::new(Scalar::F32, shape))
        }
        (Op::Softmax, [x]) if x.rank() > 0 && x.scalar == Scalar::F32 => Ok((*x).clone()),
        (Op::Norm { .. }, [x, rest @ ..]) if x.rank() > 0 && x.scalar == Scalar::F32 => {
            match rest.iter().find(|r| r.shape != [x.last()] || r.scalar != Scalar::F32) {
                Some(r) => Err(format!("a gain or bias of type {r} for rows of {}", x.last())),
                None => Ok((*x).clone()),
            }
        }
        (Op::Rope { rotary_dim, .. }, [x, cos, sin, pos]) => {
            let half = Dim::from(rotary_dim / 2);
            let fits = x.rank() == 4
                && cos.rank() == 2
                && cos == sin
                && cos.shape.get(1) == Some(&half)
                && pos.scalar == Scalar::I32
                && pos.shape.as_slice() == [x.shape[0].clone(), x.shape[2].clone()]
                && rotary_dim % 2 == 0
                && x.shape[3].as_const().is_some_and(|d| *rotary_dim as i64 <= d);
            if fits { Ok((*x).clone()) } else { Err(format!("rope of {x} with tables {cos}, {sin}, positions {pos}")) }
        }
        (Op::KvAppend { past, .. }, [x]) if x.rank() == 4 && x.scalar == Scalar::F32 => {
            let mut shape = x.shape.clone();
            shape[2] = past.clone() + shape[2].clone();
            Ok(TensorType::new(Scalar::F32, shape))
        }
        (Op::KvRead { .. }, [x]) if x.rank() == 4 => Ok((*x).clone()),
        (Op::Attention(at) | Op::AttentionParts { attrs: at, .. }, [q, k, v, rest @ ..]) => {
            let fail = || format!("attention of q {q}, k {k}, v {v}");
            if q.rank() != 4 || k.rank() != 4 || v.rank() != 4 {
                return Err(fail());
            }
            let groups = q.shape[1].as_const().zip(k.shape[1].as_const());
            let fits = q.shape[0] == k.shape[0]
                && k.shape[..3] == v.shape[..3]
                && q.shape[3] == k.shape[3]
                && groups.is_some_and(|(h, g)| g > 0 && h % g == 0);
            if !fits {
                return Err(fail());
            }
            let scores = vec![q.shape[0].clone(), q.shape[1].clone(), q.shape[2].clone(), k.shape[2].clone()];
            let wanted = at.has_mask.then_some(Scalar::Bool).into_iter().chain(at.has_bias.then_some(Scalar::F32));
            for (r, scalar) in rest.iter().zip(wanted) {
                if r.scalar != scalar || broadcast_shapes(&r.shape, &scores).as_ref() != Some(&scores) {
                    return Err(format!("{r} does not broadcast to the scores of {}", fail()));
                }
            }
            let mut shape = q.shape.clone();
            shape[3] = v.shape[3].clone();
            if let Op::AttentionParts { parts, .. } = op {
                shape[0] = Dim::from(*parts) * shape[0].clone();
                shape[3] = shape[3].clone() + Dim::constant(2);
            }
            Ok(TensorType::new(Scalar::F32, shape))
        }
        (Op::MergeParts { parts }, [x]) if x.rank() == 4 && x.scalar == Scalar::F32 => {
            let (batch, rest) = x.shape[0].split(&Dim::from(*parts));
            if !rest.is(0) {
                return Err(format!("{parts} parts of {x}"));
            }
            let mut shape = x.shape.clone();
            (shape[0], shape[3]) = (batch, shape[3].clone() - Dim::constant(2));
            Ok(TensorType::new(Scalar::F32, shape))
        }
        (Op::Control(c), xs) => infer_control(c, xs),
        (_, xs) => Err(format!("{} of {}", op.name(), xs.iter().map(|x| x.to_string()).collect::<Vec<_>>().join(", "))),
    }
}

fn infer_control(c: &Control, xs: &[&TensorType]) -> Result<TensorType, String> {
    let body = c.body();
    let out = body.outputs.first().ok_or("a nested graph without output")?;
    for (i, (x, input)) in xs.iter().zip(&body.inputs).enumerate() {
        let mut have = (*x).clone();
        if let Control::Loop { per_trip, trips, .. } = c
            && per_trip.contains(&i)
        {
            if have.shape.first() != Some(trips) {
                return Err(format!("operand {i}, {x}, is no stack of {trips} entries"));
            }
            have.shape.remove(0);
        }
        let want = body.ty(input.value);
        if have != *want {
            return Err(format!("operand {i} is {have}, the nested graph takes {want}"));
        }
    }
    let ty = body.ty(out.value).clone();
    match xs.first() {
        Some(x) if **x != ty => Err(format!("the nested graph gives {ty} for {x}")),
        _ => Ok(ty),
    }
}

fn join(a: &TensorType, b: &TensorType) -> Result<Vec<Dim>, String> {
    broadcast_shapes(&a.shape, &b.shape).ok_or_else(|| format!("{a} and {b} do not broadcast"))
}
