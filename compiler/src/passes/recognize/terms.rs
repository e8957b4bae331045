//! Values as sums of products of other values.

use crate::graph::{Graph, Op, ValueId};
use crate::passes::pattern::{constant, unary};
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// A factor of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Factor {
    /// x.
    Value(ValueId),
    /// 1/x.
    Recip(ValueId),
    /// 1/√x.
    Rsqrt(ValueId),
}

/// A product with a known number; factors in ascending order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Term {
    pub number: f64,
    pub factors: Vec<Factor>,
}

impl Term {
    /// The factors that are left when each of `taken` is removed once; `None` where one is missing.
    pub fn without(&self, taken: &[Factor]) -> Option<Vec<Factor>> {
        let mut rest = self.factors.clone();
        for t in taken {
            let i = rest.iter().position(|f| f == t)?;
            rest.remove(i);
        }
        Some(rest)
    }
}

const MOST_TERMS: usize = 6;
const MOST_STEPS: usize = 12;

/// `v` as a sum of products. Values that `leaf` holds for are not taken apart; `None` when there are too many terms.
pub(super) fn terms(g: &Graph, v: ValueId, leaf: &dyn Fn(ValueId) -> bool) -> Option<Vec<Term>> {
    at_depth(g, v, leaf, 0).filter(|t| t.len() <= MOST_TERMS)
}

fn at_depth(g: &Graph, v: ValueId, leaf: &dyn Fn(ValueId) -> bool, depth: usize) -> Option<Vec<Term>> {
    let of = |v: ValueId| at_depth(g, v, leaf, depth + 1);
    let single = |f: Factor| Some(vec![Term { number: 1.0, factors: vec![f] }]);
    if let Some(c) = constant(g, v) {
        return Some(vec![Term { number: c, factors: Vec::new() }]);
    }
    if leaf(v) || depth > MOST_STEPS {
        return single(Factor::Value(v));
    }
    match (g.op(v), g.operands(v).as_slice()) {
        (Op::Unary(UnaryOp::Neg), [a]) => Some(scaled(of(*a)?, -1.0)),
        (Op::Unary(UnaryOp::Rsqrt), [a]) => single(Factor::Rsqrt(*a)),
        (Op::Unary(UnaryOp::Recip), [a]) => single(inverse(g, *a)),
        (Op::Binary(BinaryOp::Add), [a, b]) => sum(of(*a)?, of(*b)?),
        (Op::Binary(BinaryOp::Sub), [a, b]) => sum(of(*a)?, scaled(of(*b)?, -1.0)),
        (Op::Binary(BinaryOp::Mul), [a, b]) => product(&of(*a)?, &of(*b)?),
        (Op::Binary(BinaryOp::Div), [a, b]) => match constant(g, *b) {
            Some(c) if c != 0.0 => Some(scaled(of(*a)?, 1.0 / c)),
            _ => product(&of(*a)?, &single(inverse(g, *b))?),
        },
        _ => single(Factor::Value(v)),
    }
}

fn inverse(g: &Graph, v: ValueId) -> Factor {
    unary(g, v, UnaryOp::Sqrt).map_or(Factor::Recip(v), Factor::Rsqrt)
}

fn scaled(mut t: Vec<Term>, c: f64) -> Vec<Term> {
    t.iter_mut().for_each(|t| t.number *= c);
    t
}

fn sum(mut a: Vec<Term>, b: Vec<Term>) -> Option<Vec<Term>> {
    for t in b {
        match a.iter_mut().find(|x| x.factors == t.factors) {
            Some(x) => x.number += t.number,
            None => a.push(t),
        }
    }
    (a.len() <= MOST_TERMS).then_some(a)
}

fn product(a: &[Term], b: &[Term]) -> Option<Vec<Term>> {
    let mut out = Vec::new();
    for (x, y) in a.iter().flat_map(|x| b.iter().map(move |y| (x, y))) {
        let mut factors = [x.factors.as_slice(), &y.factors].concat();
        factors.sort_unstable();
        out = sum(out, vec![Term { number: x.number * y.number, factors }])?;
    }
    Some(out)
}
