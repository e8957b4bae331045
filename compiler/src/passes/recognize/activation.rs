//! Activation functions from their parts.

use super::terms::{Factor, Term, terms};
use super::{Found, Miss};
use crate::graph::{Op, ValueId};
use crate::passes::pattern::{
    below, binary, close, constant, factors, first, is_private, polynomial, same_polynomial, unary,
};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// ```text
/// sigmoid    1/(1 + e⁻ˣ) == sigmoid(x),   a/(1 + e⁻ˣ) == a·sigmoid(x)
/// relu       max(x, 0) == relu(x)
/// silu       x·sigmoid(x) == silu(x)
/// gelu-erf   x·(1 + erf(x/√2))/2 == gelu_erf(x)
/// gelu-tanh  x·(1 + tanh p)/2 == x·sigmoid(2p) == gelu_tanh(x),   p = √(2/π)·(x + 0.044715·x³)
/// ```
/// The last three in any order of sums and products, and with further factors: `x·(sigmoid(x)·u) == silu(x)·u`, which
/// is how a gated feed-forward part may be spelled. Numbers are compared up to the rounding of f32. Reassociates.
pub(super) const RULES: &[Rule] = &[
    Rule::round("sigmoid", sigmoid),
    Rule::exact("relu", relu),
    Rule::round("silu", |s, v| activation(s, v, UnaryOp::Silu).ok()),
    Rule::round("gelu-erf", |s, v| activation(s, v, UnaryOp::GeluErf).ok()),
    Rule::round("gelu-tanh", |s, v| activation(s, v, UnaryOp::GeluTanh).ok()),
];

fn sigmoid(s: &Site<'_>, v: ValueId) -> Option<New> {
    let g = s.g;
    let (numerator, d) = match g.op(v) {
        Op::Unary(UnaryOp::Recip) => (None, first(g, v)?),
        _ => binary(g, v, BinaryOp::Div).map(|(a, b)| (Some(a), b))?,
    };
    let (e, one) = binary(g, d, BinaryOp::Add)?;
    let x = unary(g, unary(g, e, UnaryOp::Exp)?, UnaryOp::Neg)?;
    let fits = constant(g, one)? == 1.0 && numerator.is_none_or(|a| g.ty(a) == g.ty(v)) && g.ty(x) == g.ty(v);
    if !fits || !is_private(g, v, &[x], &numerator.into_iter().filter(|a| *a != x).collect::<Vec<_>>()) {
        return None;
    }
    let y = New::make(Op::Unary(UnaryOp::Sigmoid), &[x]);
    Some(match numerator {
        Some(a) => New::binary(BinaryOp::Mul, New::Use(a), y),
        None => y,
    })
}

fn relu(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (x, c) = binary(s.g, v, BinaryOp::Max)?;
    let zero = constant(s.g, c)? == 0.0 && s.g.ty(x) == s.g.ty(v);
    zero.then(|| New::make(Op::Unary(UnaryOp::Relu), &[x]))
}

const ROOT_HALF: f64 = std::f64::consts::FRAC_1_SQRT_2;
const ROOT_2_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044715;

/// The function inside, what it is a function of, and whether its argument is the one that the activation wants.
fn inner(s: &Site<'_>, n: ValueId, act: UnaryOp) -> Option<(ValueId, bool)> {
    let g = s.g;
    let a = first(g, n)?;
    match (act, g.op(n)) {
        (UnaryOp::Silu, Op::Unary(UnaryOp::Sigmoid)) => Some((a, true)),
        (UnaryOp::GeluErf, Op::Unary(UnaryOp::Erf)) => {
            let f = factors(g, a, &|v| g.ty(v) != g.ty(a));
            match f.values.as_slice() {
                [x] => Some((*x, close(f.number, ROOT_HALF))),
                _ => None,
            }
        }
        (UnaryOp::GeluTanh, Op::Unary(op @ (UnaryOp::Tanh | UnaryOp::Sigmoid))) => {
            let k = if *op == UnaryOp::Sigmoid { 2.0 } else { 1.0 } * ROOT_2_PI;
            let cubic = |x: &ValueId| polynomial(g, a, *x).filter(|p| p[3] != 0.0);
            let x = below(g, a, 8).into_iter().filter(|x| g.ty(*x) == g.ty(a)).find(|x| cubic(x).is_some())?;
            Some((x, same_polynomial(&cubic(&x)?, &[0.0, k, 0.0, k * CUBIC])))
        }
        _ => None,
    }
}

fn activation(s: &Site<'_>, v: ValueId, act: UnaryOp) -> Found {
    let g = s.g;
    let candidate = matches!(g.op(v), Op::Binary(BinaryOp::Mul | BinaryOp::Div | BinaryOp::Add));
    if !candidate || g.ty(v).scalar != Scalar::F32 {
        return Err(Miss::Other);
    }
    let mut miss = Miss::Other;
    for n in below(g, v, 5) {
        let Some((x, right)) = inner(s, n, act) else { continue };
        if g.ty(x) != g.ty(v) || x == v {
            continue;
        }
        let Some(t) = terms(g, v, &|o| o == x || o == n) else { continue };
        let Some((number, rest)) = split(&t, x, n, act, g.op(n)) else { continue };
        let leaves: Vec<ValueId> = rest
            .iter()
            .map(|f| match f {
                Factor::Value(v) | Factor::Recip(v) | Factor::Rsqrt(v) => *v,
            })
            .collect();
        if rest.iter().any(|f| !matches!(f, Factor::Value(_))) || leaves.contains(&x) {
            continue;
        }
        if !close(number, 1.0) {
            continue;
        }
        if !right {
            miss = Miss::Because("the constants inside are not those of the function".into());
            continue;
        }
        if !is_private(g, v, &[x], &leaves) {
            miss = Miss::Because("an intermediate is used elsewhere".into());
            continue;
        }
        let mut y = New::make(Op::Unary(act), &[x]);
        for l in leaves {
            y = New::binary(BinaryOp::Mul, y, New::Use(l));
        }
        return Ok(y);
    }
    Err(miss)
}

/// The number and the factors beside the activation of `x`, `n` being the function inside it.
fn split(t: &[Term], x: ValueId, n: ValueId, act: UnaryOp, inside: &Op) -> Option<(f64, Vec<Factor>)> {
    let whole = [Factor::Value(x), Factor::Value(n)];
    if act == UnaryOp::Silu || matches!(inside, Op::Unary(UnaryOp::Sigmoid)) {
        let [only] = t else { return None };
        return Some((only.number, only.without(&whole)?));
    }
    let [a, b] = t else { return None };
    let (plain, with) = if a.factors.contains(&Factor::Value(n)) { (b, a) } else { (a, b) };
    let (rest, same) = (with.without(&whole)?, plain.without(&[Factor::Value(x)])?);
    (rest == same && close(with.number, plain.number)).then_some((2.0 * with.number, rest))
}

/// Why a product with an error function, a hyperbolic tangent of a cubic or a sigmoid is no activation.
pub(super) fn doubt(s: &Site<'_>, v: ValueId) -> Option<String> {
    [UnaryOp::GeluErf, UnaryOp::GeluTanh, UnaryOp::Silu].into_iter().find_map(|a| Miss::reason(activation(s, v, a)))
}
