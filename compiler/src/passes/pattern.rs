//! What left sides of rules ask of a graph.

use super::rewrite::{New, Site};
use crate::graph::{Graph, Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, Literal, ReduceOp, UnaryOp};
use std::collections::{HashMap, HashSet};

/// The literal of a scalar constant, seen through views of it.
pub(super) fn literal(g: &Graph, v: ValueId) -> Option<Literal> {
    match g.op(v) {
        Op::Const(l) => Some(*l),
        Op::Reshape(_) | Op::Broadcast(_) => literal(g, first(g, v)?),
        _ => None,
    }
}

/// The float value of a scalar constant, seen through views of it.
pub(super) fn constant(g: &Graph, v: ValueId) -> Option<f64> {
    match literal(g, v)? {
        Literal::F32(bits) => Some(f64::from(f32::from_bits(bits))),
        _ => None,
    }
}

/// Operand 0.
pub(super) fn first(g: &Graph, v: ValueId) -> Option<ValueId> {
    g.operands(v).first().copied()
}

/// Both operands of `op`, if `v` is that.
pub(super) fn binary(g: &Graph, v: ValueId, op: BinaryOp) -> Option<(ValueId, ValueId)> {
    match (g.op(v), g.operands(v).as_slice()) {
        (Op::Binary(o), [a, b]) if *o == op => Some((*a, *b)),
        _ => None,
    }
}

/// The operand of `op`, if `v` is that.
pub(super) fn unary(g: &Graph, v: ValueId, op: UnaryOp) -> Option<ValueId> {
    match g.op(v) {
        Op::Unary(o) if *o == op => first(g, v),
        _ => None,
    }
}

/// Both orders of a commutative pair.
pub(super) fn either(p: (ValueId, ValueId)) -> [(ValueId, ValueId); 2] {
    [p, (p.1, p.0)]
}

/// `a ≈ b` up to the rounding of f32 constants.
pub(super) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-6 * b.abs().max(1e-30)
}

/// `v` without reshapes.
pub(super) fn unshaped(g: &Graph, mut v: ValueId) -> ValueId {
    while let (Op::Reshape(_), Some(o)) = (g.op(v), first(g, v)) {
        v = o;
    }
    v
}

/// Whether `v` has one value for each row of `x`: the shape of `x` with a last extent of 1.
pub(super) fn is_row_stat(g: &Graph, v: ValueId, x: ValueId) -> bool {
    let (a, b) = (&g.ty(v).shape, &g.ty(x).shape);
    a.len() == b.len() && a.last().is_some_and(|d| d.is(1)) && a.iter().zip(b).rev().skip(1).all(|(a, b)| a == b)
}

/// The operand of a reduction over the last axis.
pub(super) fn row_reduce(g: &Graph, v: ValueId, op: ReduceOp) -> Option<ValueId> {
    let v = unshaped(g, v);
    let Op::Reduce { op: o, axes, .. } = g.op(v) else { return None };
    let x = first(g, v)?;
    (*o == op && *axes == [g.ty(x).rank().checked_sub(1)?]).then_some(x)
}

/// The operand of a mean over the last axis: the sum times 1/n, or divided by n.
pub(super) fn row_mean(g: &Graph, v: ValueId) -> Option<ValueId> {
    let v = unshaped(g, v);
    let n = |x: ValueId| g.ty(x).last().as_const().map(|n| n as f64);
    if let Some((s, c)) = binary(g, v, BinaryOp::Div)
        && let (Some(x), Some(c)) = (row_reduce(g, s, ReduceOp::Sum), constant(g, c))
    {
        return n(x).is_some_and(|n| close(c, n)).then_some(x);
    }
    let (s, c) = either(binary(g, v, BinaryOp::Mul)?).into_iter().find(|(_, c)| constant(g, *c).is_some())?;
    let x = row_reduce(g, s, ReduceOp::Sum)?;
    n(x).is_some_and(|n| constant(g, c).is_some_and(|c| close(c * n, 1.0))).then_some(x)
}

/// `x` of `x·x`.
pub(super) fn square(g: &Graph, v: ValueId) -> Option<ValueId> {
    let (a, b) = binary(g, v, BinaryOp::Mul)?;
    (a == b).then_some(a)
}

/// A product taken apart: a factor known as a number, and the others.
#[derive(Debug)]
pub(super) struct Factors {
    pub number: f64,
    pub values: Vec<ValueId>,
}

/// The factors of `v`. Values that `leaf` holds for are not taken apart.
pub(super) fn factors(g: &Graph, v: ValueId, leaf: &dyn Fn(ValueId) -> bool) -> Factors {
    let mut out = Factors { number: 1.0, values: Vec::new() };
    let mut stack = vec![(v, 0)];
    while let Some((v, depth)) = stack.pop() {
        if let Some(c) = constant(g, v) {
            out.number *= c;
            continue;
        }
        let operands = g.operands(v);
        match (g.op(v), operands.as_slice()) {
            _ if leaf(v) || depth > 8 => out.values.push(v),
            (Op::Binary(BinaryOp::Mul), [a, b]) => stack.extend([(*a, depth + 1), (*b, depth + 1)]),
            (Op::Binary(BinaryOp::Div), [a, b]) if constant(g, *b).is_some_and(|c| c != 0.0) => {
                out.number /= constant(g, *b).unwrap_or(1.0);
                stack.push((*a, depth + 1));
            }
            (Op::Unary(UnaryOp::Neg), [a]) => {
                out.number = -out.number;
                stack.push((*a, depth + 1));
            }
            _ => out.values.push(v),
        }
    }
    out.values.sort_unstable();
    out
}

/// `v` as a polynomial in `x` of degree at most 3, coefficients ascending.
pub(super) fn polynomial(g: &Graph, v: ValueId, x: ValueId) -> Option<[f64; 4]> {
    poly_at(g, v, x, 0)
}

fn poly_at(g: &Graph, v: ValueId, x: ValueId, depth: usize) -> Option<[f64; 4]> {
    if v == x {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(c) = constant(g, v) {
        return Some([c, 0.0, 0.0, 0.0]);
    }
    if depth > 8 || g.ty(v) != g.ty(x) {
        return None;
    }
    let of = |v: ValueId| poly_at(g, v, x, depth + 1);
    match (g.op(v), g.operands(v).as_slice()) {
        (Op::Unary(UnaryOp::Neg), [a]) => of(*a).map(|p| p.map(|c| -c)),
        (Op::Binary(op), [a, b]) => {
            let (p, q) = (of(*a)?, of(*b)?);
            match op {
                BinaryOp::Add => Some(std::array::from_fn(|i| p[i] + q[i])),
                BinaryOp::Sub => Some(std::array::from_fn(|i| p[i] - q[i])),
                BinaryOp::Mul => poly_mul(&p, &q),
                BinaryOp::Div if q[1..] == [0.0; 3] && q[0] != 0.0 => Some(p.map(|c| c / q[0])),
                BinaryOp::Pow if q == [2.0, 0.0, 0.0, 0.0] => poly_mul(&p, &p),
                BinaryOp::Pow if q == [3.0, 0.0, 0.0, 0.0] => poly_mul(&poly_mul(&p, &p)?, &p),
                _ => None,
            }
        }
        _ => None,
    }
}

fn poly_mul(p: &[f64; 4], q: &[f64; 4]) -> Option<[f64; 4]> {
    let mut out = [0.0; 4];
    for (i, a) in p.iter().enumerate() {
        for (j, b) in q.iter().enumerate() {
            match out.get_mut(i + j) {
                Some(o) => *o += a * b,
                None if a * b == 0.0 => {}
                None => return None,
            }
        }
    }
    Some(out)
}

/// Whether two polynomials are equal up to the rounding of f32 constants.
pub(super) fn same_polynomial(p: &[f64; 4], q: &[f64; 4]) -> bool {
    p.iter().zip(q).all(|(a, b)| if *b == 0.0 { a.abs() < 1e-12 } else { close(*a, *b) })
}

/// Nodes below `v` within `depth` steps, `v` first, each once; at most 64.
pub(super) fn below(g: &Graph, v: ValueId, depth: usize) -> Vec<ValueId> {
    let mut out = vec![v];
    let mut level = vec![v];
    for _ in 0..depth {
        let mut next = Vec::new();
        for o in level.iter().flat_map(|v| g.operands(*v)) {
            if !out.contains(&o) && out.len() < 64 {
                out.push(o);
                next.push(o);
            }
        }
        level = next;
    }
    out
}

/// Whether everything between `root` and `leaves` serves `root` alone: no node on a path from `root` down to a leaf is
/// a graph output or has a user outside. Paths end at leaves and at `stops`.
pub(super) fn is_private(g: &Graph, root: ValueId, leaves: &[ValueId], stops: &[ValueId]) -> bool {
    let mut post: Vec<ValueId> = Vec::new();
    let mut seen: HashSet<ValueId> = HashSet::new();
    let mut stack = vec![(root, false)];
    while let Some((v, done)) = stack.pop() {
        if done {
            post.push(v);
            continue;
        }
        if leaves.contains(&v) || stops.contains(&v) || !seen.insert(v) {
            continue;
        }
        if seen.len() > 256 {
            return false;
        }
        stack.push((v, true));
        stack.extend(g.operands(v).into_iter().map(|o| (o, false)));
    }
    let mut inner: HashMap<ValueId, bool> = leaves.iter().map(|l| (*l, true)).collect();
    for v in post {
        let on_path = g.operands(v).iter().any(|o| inner.get(o) == Some(&true));
        inner.insert(v, on_path);
    }
    let between = |v: &ValueId| inner.get(v) == Some(&true) && !leaves.contains(v);
    inner.keys().filter(|v| between(v) && **v != root).all(|v| !g.is_output(*v) && g.users(*v).iter().all(between))
}

/// Whether `v` has one user and is no output.
pub(super) fn is_single_use(g: &Graph, v: ValueId) -> bool {
    !g.is_output(v) && g.users(v).len() == 1
}

/// `v` as a vector `[n]`: itself, or a reshape of `[1, …, 1, n]`.
pub(super) fn as_vector(g: &Graph, v: ValueId, n: &Dim) -> Option<New> {
    let (last, lead) = g.ty(v).shape.split_last()?;
    if last != n || !lead.iter().all(|d| d.is(1)) {
        return None;
    }
    let inner = unshaped(g, v);
    Some(match () {
        () if lead.is_empty() => New::Use(v),
        () if g.ty(inner).shape == [n.clone()] => New::Use(inner),
        () => New::make(Op::Reshape(vec![n.clone()]), &[v]),
    })
}

impl Site<'_> {
    /// Whether two extents are equal as far as is known.
    pub(super) fn same(&self, a: &Dim, b: &Dim) -> bool {
        crate::graph::verify::same_dim(a, b, self.bounds)
    }
    /// Whether two shapes are equal as far as is known.
    pub(super) fn same_shape(&self, a: &[Dim], b: &[Dim]) -> bool {
        crate::graph::verify::same_shape(a, b, self.bounds)
    }
}
