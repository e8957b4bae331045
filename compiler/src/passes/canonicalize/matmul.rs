//! Matmuls.

use crate::graph::{Op, ValueId};
use crate::passes::pattern::first;
use crate::passes::rewrite::{New, Rule, Site};

/// ```text
/// matmul-of-transpose   a · transpose(b, p) == matmul.bt(a, transpose(b, q)),  q = p with its last two swapped
/// ```
/// where q, other than p, keeps the innermost axis innermost; an identity q vanishes by `no-op-view`. Both directions
/// (`matmul` to `matmul.bt` and back) are the same rule. Exact.
pub(super) const RULES: &[Rule] = &[Rule { name: "matmul-of-transpose", apply: of_transpose }];

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
