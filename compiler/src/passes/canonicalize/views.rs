//! Views: reshape, transpose, broadcast, slice, concat.

use crate::graph::{Op, ValueId, broadcast_shapes};
use crate::passes::pattern::first;
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dim::Dim;

/// ```text
/// no-op-view              view(x) == x                              where the type and the order of elements stay
/// reshape-of-reshape      reshape(reshape(x)) == reshape(x)
/// transpose-of-transpose  transpose(transpose(x, p), q) == transpose(x, q∘p)
/// broadcast-of-broadcast  broadcast(broadcast(x)) == broadcast(x)
/// slice-of-slice          slice(slice(x, a, n), b, m) == slice(x, a + b, m)   along one axis
/// implicit-broadcast      f(broadcast(x), y) == f(x, y)             where the result keeps its shape
/// unit-reshape            f(reshape(c), y) == f(c, y)               c one element, the result keeps its shape
/// sink-broadcast          f(broadcast(x), broadcast(y)) == broadcast(f(x, y))  to one shape
/// unary-of-broadcast      f(broadcast(x)) == broadcast(f(x))
/// concat-of-one           concat(x) == x
/// concat-of-slices        concat(slice(x, a, n), slice(x, a + n, m)) == slice(x, a, n + m)
/// keep-reduced            reshape(reduce(x)) == reduce{keep}(x)     where the reshape puts the reduced axes back
/// ```
/// All are exact.
pub(super) const RULES: &[Rule] = &[
    Rule::exact("no-op-view", no_op),
    Rule::exact("reshape-of-reshape", reshape_of_reshape),
    Rule::exact("transpose-of-transpose", transpose_of_transpose),
    Rule::exact("broadcast-of-broadcast", broadcast_of_broadcast),
    Rule::exact("slice-of-slice", slice_of_slice),
    Rule::exact("implicit-broadcast", implicit_broadcast),
    Rule::exact("unit-reshape", unit_reshape),
    Rule::exact("sink-broadcast", sink_broadcast),
    Rule::exact("unary-of-broadcast", unary_of_broadcast),
    Rule::exact("concat-of-one", concat_of_one),
    Rule::exact("concat-of-slices", concat_of_slices),
    Rule::exact("keep-reduced", keep_reduced),
];

fn no_op(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    let idle = match s.g.op(v) {
        Op::Reshape(_) | Op::Broadcast(_) => true,
        Op::Slice { start, .. } => start.is(0),
        Op::Transpose(p) => p.iter().enumerate().all(|(i, p)| i == *p),
        _ => false,
    };
    (idle && s.same_shape(&s.g.ty(v).shape, &s.g.ty(x).shape)).then_some(New::Use(x))
}

fn reshape_of_reshape(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    match (s.g.op(v), s.g.op(x)) {
        (Op::Reshape(shape), Op::Reshape(_)) => Some(New::make(Op::Reshape(shape.clone()), &[first(s.g, x)?])),
        _ => None,
    }
}

fn transpose_of_transpose(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    let (Op::Transpose(q), Op::Transpose(p)) = (s.g.op(v), s.g.op(x)) else { return None };
    let both = q.iter().map(|i| p.get(*i).copied()).collect::<Option<Vec<_>>>()?;
    Some(New::make(Op::Transpose(both), &[first(s.g, x)?]))
}

fn broadcast_of_broadcast(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    match (s.g.op(v), s.g.op(x)) {
        (Op::Broadcast(shape), Op::Broadcast(_)) => Some(New::make(Op::Broadcast(shape.clone()), &[first(s.g, x)?])),
        _ => None,
    }
}

fn slice_of_slice(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    match (s.g.op(v), s.g.op(x)) {
        (Op::Slice { axis, start, len }, Op::Slice { axis: a, start: inner, .. }) if axis == a => {
            let start = start.clone() + inner.clone();
            Some(New::make(Op::Slice { axis: *axis, start, len: len.clone() }, &[first(s.g, x)?]))
        }
        _ => None,
    }
}

fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Binary(_) | Op::Select)
}

/// `v` with operands changed by `f`, if that changes one and keeps the shape of the result.
fn with_operands(s: &Site<'_>, v: ValueId, f: impl Fn(ValueId) -> Option<ValueId>) -> Option<New> {
    if !is_elementwise(s.g.op(v)) {
        return None;
    }
    let mut operands = s.g.operands(v);
    for port in 0..operands.len() {
        let Some(inner) = operands.get(port).and_then(|o| f(*o)) else { continue };
        let mut trial = operands.clone();
        trial[port] = inner;
        let joined =
            trial.iter().try_fold(Vec::new(), |shape: Vec<Dim>, o| broadcast_shapes(&shape, &s.g.ty(*o).shape));
        if joined.as_ref() == Some(&s.g.ty(v).shape) {
            operands = trial;
        }
    }
    (operands != s.g.operands(v)).then(|| New::make(s.g.op(v).clone(), &operands))
}

fn implicit_broadcast(s: &Site<'_>, v: ValueId) -> Option<New> {
    with_operands(s, v, |o| if let Op::Broadcast(_) = s.g.op(o) { first(s.g, o) } else { None })
}

fn unit_reshape(s: &Site<'_>, v: ValueId) -> Option<New> {
    with_operands(s, v, |o| {
        let inner = first(s.g, o)?;
        (matches!(s.g.op(o), Op::Reshape(_)) && s.g.ty(inner).rank() == 0).then_some(inner)
    })
}

fn sink_broadcast(s: &Site<'_>, v: ValueId) -> Option<New> {
    if !is_elementwise(s.g.op(v)) {
        return None;
    }
    let shape = &s.g.ty(v).shape;
    let inner = s.g.operands(v).into_iter().map(|o| match s.g.op(o) {
        Op::Broadcast(to) if to == shape => first(s.g, o),
        Op::Const(_) => Some(o),
        _ => None,
    });
    let inner = inner.collect::<Option<Vec<_>>>()?;
    let smaller = inner.iter().all(|o| s.g.ty(*o).shape != *shape);
    (smaller && !shape.is_empty())
        .then(|| New::Make(Op::Broadcast(shape.clone()), vec![New::make(s.g.op(v).clone(), &inner)]))
}

fn unary_of_broadcast(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    match (s.g.op(v), s.g.op(x)) {
        (op @ (Op::Unary(_) | Op::Cast(_)), Op::Broadcast(shape)) => {
            Some(New::Make(Op::Broadcast(shape.clone()), vec![New::make(op.clone(), &[first(s.g, x)?])]))
        }
        _ => None,
    }
}

fn concat_of_one(s: &Site<'_>, v: ValueId) -> Option<New> {
    match (s.g.op(v), s.g.operands(v).as_slice()) {
        (Op::Concat { .. }, [x]) => Some(New::Use(*x)),
        _ => None,
    }
}

fn concat_of_slices(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Concat { axis } = s.g.op(v) else { return None };
    let parts = s.g.operands(v);
    let cut = |p: &ValueId| match s.g.op(*p) {
        Op::Slice { axis: a, start, len } if a == axis => Some((first(s.g, *p)?, start.clone(), len.clone())),
        _ => None,
    };
    for (k, pair) in parts.windows(2).enumerate() {
        let (Some((x, a, n)), Some((y, b, m))) = (cut(&pair[0]), cut(&pair[1])) else { continue };
        if x == y && s.same(&(a.clone() + n.clone()), &b) {
            let joined = New::make(Op::Slice { axis: *axis, start: a, len: n + m }, &[x]);
            let mut new: Vec<New> = parts.iter().map(|p| New::Use(*p)).collect();
            new.splice(k..k + 2, [joined]);
            return Some(New::Make(Op::Concat { axis: *axis }, new));
        }
    }
    None
}

fn keep_reduced(s: &Site<'_>, v: ValueId) -> Option<New> {
    let r = first(s.g, v)?;
    let (Op::Reshape(shape), Op::Reduce { op, axes, keep: false }) = (s.g.op(v), s.g.op(r)) else { return None };
    let x = first(s.g, r)?;
    let kept = s.g.ty(x).shape.iter().enumerate();
    let kept: Vec<Dim> = kept.map(|(i, d)| if axes.contains(&i) { Dim::one() } else { d.clone() }).collect();
    (kept == *shape).then(|| New::make(Op::Reduce { op: *op, axes: axes.clone(), keep: true }, &[x]))
}
