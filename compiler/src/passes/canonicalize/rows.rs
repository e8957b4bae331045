//! Rows that nobody reads are not made: of the logits of a prompt only the last.

use crate::graph::{Op, ValueId};
use crate::passes::pattern::{first, is_single_use};
use crate::passes::rewrite::{New, Rule, Site};

/// ```text
/// rows-of-product    slice(matmul(x, w), rows) == matmul(slice(x, rows), w)        w one matrix for all rows
/// rows-of-norm       slice(norm(x, g, b), rows) == norm(slice(x, rows), g, b)
/// rows-of-function   slice(f(x, c), rows) == f(slice(x, rows), c)                  c the same for all rows, f behind either
/// ```
/// Where nothing else reads what is cut. All are exact.
pub(super) const RULES: &[Rule] = &[
    Rule::exact("rows-of-product", rows_of_product),
    Rule::exact("rows-of-norm", rows_of_norm),
    Rule::exact("rows-of-function", rows_of_function),
];

/// What a slice of rows cuts, where nothing else reads it: the slice moves in front of its first operand.
fn cut<'s>(s: &Site<'s>, v: ValueId) -> Option<(&'s Op, usize, ValueId)> {
    let (slice, x) = (s.g.op(v), first(s.g, v)?);
    let Op::Slice { axis, .. } = slice else { return None };
    (*axis + 1 < s.g.ty(x).rank() && is_single_use(s.g, x)).then_some((slice, *axis, x))
}

/// `x` with operand `port` cut.
fn moved(s: &Site<'_>, slice: &Op, x: ValueId, port: usize) -> New {
    let operand = |(i, o): (usize, ValueId)| match i == port {
        true => New::make(slice.clone(), &[o]),
        false => New::Use(o),
    };
    New::Make(s.g.op(x).clone(), s.g.operands(x).into_iter().enumerate().map(operand).collect())
}

/// Whether `x` is a product with one matrix, or a norm: rows of it are made each for itself.
fn makes_rows(s: &Site<'_>, x: ValueId) -> bool {
    match (s.g.op(x), s.g.operands(x).as_slice()) {
        (Op::MatMul { .. }, [left, right]) => s.g.ty(*right).rank() == 2 && s.g.ty(*left).rank() == s.g.ty(x).rank(),
        (Op::Norm { .. }, _) => true,
        _ => false,
    }
}

fn rows_of_product(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (slice, _, x) = cut(s, v)?;
    (matches!(s.g.op(x), Op::MatMul { .. }) && makes_rows(s, x)).then(|| moved(s, slice, x, 0))
}

fn rows_of_norm(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (slice, _, x) = cut(s, v)?;
    matches!(s.g.op(x), Op::Norm { .. }).then(|| moved(s, slice, x, 0))
}

/// The operand of a function of single elements that has its shape, where the others are the same for all places of `axis`.
fn varying(s: &Site<'_>, x: ValueId, axis: usize) -> Option<usize> {
    if !matches!(s.g.op(x), Op::Unary(_) | Op::Cast(_) | Op::Binary(_)) {
        return None;
    }
    let rank = s.g.ty(x).rank();
    let is_same = |o: &ValueId| {
        let shape = &s.g.ty(*o).shape;
        (axis + shape.len()).checked_sub(rank).is_none_or(|at| shape.get(at).is_some_and(|d| d.is(1)))
    };
    let operands = s.g.operands(x);
    let mut found = operands.iter().enumerate().filter(|(_, o)| !is_same(o));
    let (port, o) = found.next()?;
    (found.next().is_none() && s.same_shape(&s.g.ty(*o).shape, &s.g.ty(x).shape)).then_some(port)
}

fn rows_of_function(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (slice, axis, x) = cut(s, v)?;
    let port = varying(s, x, axis)?;
    let mut at = *s.g.operands(x).get(port)?;
    loop {
        if !is_single_use(s.g, at) {
            return None;
        }
        if makes_rows(s, at) {
            return Some(moved(s, slice, x, port));
        }
        let inner = varying(s, at, axis)?;
        at = *s.g.operands(at).get(inner)?;
    }
}
