//! Matmuls.

use crate::graph::{Op, ValueId};
use crate::passes::pattern::first;
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dim::Dim;
use frit_kernels::spec::BinaryOp;

/// ```text
/// matmul-of-transpose   a · transpose(b, p) == matmul.bt(a, transpose(b, q)),  q = p with its last two swapped
/// outer-product         a · b == a ∗ b                  a [..., M, 1], b [..., 1, N]
/// ```
/// where q, other than p, keeps the innermost axis innermost; an identity q vanishes by `no-op-view`. Both directions
/// (`matmul` to `matmul.bt` and back) are the same rule. Exact.
pub(super) const RULES: &[Rule] =
    &[Rule::exact("matmul-of-transpose", of_transpose), Rule::exact("outer-product", outer_product)];

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
