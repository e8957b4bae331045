//! Softmax from its parts.

use super::{Found, Miss};
use crate::graph::{Op, ValueId};
use crate::passes::pattern::{binary, either, first, is_private, is_row_stat, row_reduce, unary};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

/// ```text
/// softmax   exp(x − c) / Σ exp(x − c) == softmax(x)     c one value a row, or absent; over the last axis
/// ```
/// Reassociates: the raised operation subtracts the largest element of the row.
pub(super) const RULES: &[Rule] = &[Rule::round("softmax", |s, v| softmax(s, v).ok())];

pub(super) fn softmax(s: &Site<'_>, v: ValueId) -> Found {
    let (e, sum) = quotient(s, v).ok_or(Miss::Other)?;
    let exponent = unary(s.g, e, UnaryOp::Exp).ok_or(Miss::Other)?;
    if row_reduce(s.g, sum, ReduceOp::Sum) != Some(e) {
        return Miss::because("the divisor is not the sum of the exponentials over the last axis");
    }
    if !is_row_stat(s.g, sum, e) {
        return Miss::because("the sum does not keep the reduced axis with extent 1");
    }
    let x = match binary(s.g, exponent, BinaryOp::Sub) {
        Some((x, c)) if is_row_stat(s.g, c, x) => x,
        _ => exponent,
    };
    if s.g.ty(x).shape != s.g.ty(v).shape {
        return Miss::because("the quotient has another shape than the exponent");
    }
    if !is_private(s.g, v, &[x], &[]) {
        return Miss::because("an intermediate is used elsewhere");
    }
    Ok(New::make(Op::Softmax, &[x]))
}

/// Numerator and divisor of `a / b` or `a · recip(b)`.
fn quotient(s: &Site<'_>, v: ValueId) -> Option<(ValueId, ValueId)> {
    let pair = binary(s.g, v, BinaryOp::Div).or_else(|| {
        let mul = either(binary(s.g, v, BinaryOp::Mul)?);
        mul.into_iter().find_map(|(a, b)| Some((a, unary(s.g, b, UnaryOp::Recip)?)))
    })?;
    let reduced = |v: ValueId| {
        let r = crate::passes::pattern::unshaped(s.g, v);
        matches!(s.g.op(r), Op::Reduce { op: ReduceOp::Sum, .. }) && first(s.g, r).is_some()
    };
    reduced(pair.1).then_some(pair)
}

/// Why a quotient of exponentials is no softmax.
pub(super) fn doubt(s: &Site<'_>, v: ValueId) -> Option<String> {
    Miss::reason(softmax(s, v))
}
