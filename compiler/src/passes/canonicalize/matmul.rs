//! Matmuls.

use crate::graph::{Op, ValueId};
use crate::passes::pattern::first;
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dim::Dim;
use frit_kernels::spec::BinaryOp;

/// ```text
/// matmul-of-transpose   a · transpose(b, p) == matmul.bt(a, transpose(b, q)),  q = p with its last two swapped
/// outer-product         a · b == a ∗ b                  a [..., M, 1], b [..., 1, N]
/// flattened-rows        reshape(x) · w == reshape(x · w)          x [..., K] to [M, K], w a matrix
/// bias-of-flattened     reshape(x · w) + c == reshape(x · w + c)  [..., N] to [M, N], c [N] or one element
/// ```
/// where q, other than p, keeps the innermost axis innermost; an identity q vanishes by `no-op-view`. Both directions
/// (`matmul` to `matmul.bt` and back) are the same rule. Exact.
pub(super) const RULES: &[Rule] = &[
    Rule::exact("matmul-of-transpose", of_transpose),
    Rule::exact("outer-product", outer_product),
    Rule::exact("flattened-rows", flattened_rows),
    Rule::exact("bias-of-flattened", bias_of_flattened),
];

fn of_transpose(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::MatMul { b_transposed } = s.g.op(v) else { return None };
    let [a, b] = s.g.operands(v)[..] else { return None };
    let Op::Transpose(p) = s.g.op(b) else { return None };
    let mut q = p.clone();
    let n = q.len();
    if n < 2 || p.last() == Some(&(n - 1)) {
        return None;
    }
    q.swap(n - 2, n - 1);
    if q.last() != Some(&(n - 1)) {
        return None;
    }
    let inner = New::make(Op::Transpose(q), &[first(s.g, b)?]);
    Some(New::Make(Op::MatMul { b_transposed: !b_transposed }, vec![New::Use(a), inner]))
}

/// A product over an inner extent of 1 is elementwise.
fn outer_product(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::MatMul { b_transposed } = s.g.op(v) else { return None };
    let [a, b] = s.g.operands(v)[..] else { return None };
    if !s.g.ty(a).last().is(1) {
        return None;
    }
    let mut row = s.g.ty(b).shape.clone();
    if *b_transposed {
        let n = row.len();
        row.swap(n.checked_sub(2)?, n - 1);
    }
    let lead = row.len().checked_sub(2)?;
    (row.get(lead) == Some(&Dim::one())).then(|| {
        let b = New::make(Op::Reshape(row), &[b]);
        New::binary(BinaryOp::Mul, New::Use(a), b)
    })
}

/// What `v` flattens: it makes one row axis of several and keeps the last axis.
fn flattened(s: &Site<'_>, v: ValueId) -> Option<ValueId> {
    let x = first(s.g, v).filter(|_| matches!(s.g.op(v), Op::Reshape(_)))?;
    let (from, to) = (s.g.ty(x), s.g.ty(v));
    (from.shape.len() > 2 && to.shape.len() == 2 && from.last() == to.last()).then_some(x)
}

/// The rows of a product are what they were before they were made one axis: exporters flatten them around a product with a
/// bias.
fn flattened_rows(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::MatMul { b_transposed } = s.g.op(v) else { return None };
    let [a, b] = s.g.operands(v)[..] else { return None };
    let x = flattened(s, a).filter(|_| s.g.ty(b).shape.len() == 2)?;
    let product = New::make(Op::MatMul { b_transposed: *b_transposed }, &[x, b]);
    Some(New::Make(Op::Reshape(s.g.ty(v).shape.clone()), vec![product]))
}

fn bias_of_flattened(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Binary(BinaryOp::Add) = s.g.op(v) else { return None };
    let [a, b] = s.g.operands(v)[..] else { return None };
    let shape = &s.g.ty(v).shape;
    let (x, c) = [(a, b), (b, a)].into_iter().find_map(|(r, c)| {
        let x = flattened(s, r).filter(|x| matches!(s.g.op(*x), Op::MatMul { .. }))?;
        (s.g.ty(c).shape.len() <= 1 && s.g.ty(r).shape == *shape).then_some((x, c))
    })?;
    let sum = New::binary(BinaryOp::Add, New::Use(x), New::Use(c));
    Some(New::Make(Op::Reshape(shape.clone()), vec![sum]))
}
