//! LayerNorm and RMSNorm from their parts.

use super::terms::{Factor, Term, terms};
use super::{Found, Miss};
use crate::graph::{Float, NormKind, Op, ValueId};
use crate::passes::pattern::{
    as_vector, below, binary, close, constant, either, first, is_private, is_row_stat, is_single_use, row_mean, square,
    unary, unshaped,
};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// ```text
/// rms-norm    x / √(mean(x²) + ε) · γ == rms_norm(x, γ)
/// layer-norm  (x − μ) / √(mean((x − μ)²) + ε) · γ + β == layer_norm(x, γ, β),   μ = mean(x)
/// norm-gain   norm(x) · γ == norm(x, γ)
/// norm-bias   norm(x) + β == norm(x, β),  norm(x, γ) + β == norm(x, γ, β)
/// ```
/// with means over the last axis, ε a number, γ and β vectors of its extent, and any order of sums and products; the
/// variance may also be spelled `mean(x²) − μ²`. Reassociates.
pub(super) const RULES: &[Rule] = &[
    Rule::reassoc("layer-norm", |s, v| norm(s, v, NormKind::Layer).ok()),
    Rule::reassoc("rms-norm", |s, v| norm(s, v, NormKind::Rms).ok()),
    Rule::round("norm-gain", gain),
    Rule::round("norm-bias", bias),
];

/// What stands below the root.
struct Moment {
    kind: NormKind,
    x: ValueId,
    /// The mean that is subtracted, of a LayerNorm.
    mean: Option<ValueId>,
    eps: f64,
}

/// All readings of `w` as a variance or mean square plus ε.
fn moments(s: &Site<'_>, w: ValueId) -> Vec<Moment> {
    let g = s.g;
    let (m, eps) = match binary(g, w, BinaryOp::Add).map(|(a, b)| (a, constant(g, b))) {
        Some((m, Some(eps))) => (m, eps),
        _ => (w, 0.0),
    };
    let mut out = Vec::new();
    if let Some(z) = row_mean(g, m).and_then(|sq| square(g, sq)) {
        if let Some((x, mean)) = binary(g, z, BinaryOp::Sub)
            && row_mean(g, mean) == Some(x)
            && is_row_stat(g, mean, x)
        {
            out.push(Moment { kind: NormKind::Layer, x, mean: Some(mean), eps });
        }
        out.push(Moment { kind: NormKind::Rms, x: z, mean: None, eps });
    }
    if let Some((second, mean2)) = binary(g, m, BinaryOp::Sub)
        && let (Some(x), Some(mean)) = (row_mean(g, second).and_then(|sq| square(g, sq)), square(g, mean2))
        && row_mean(g, mean) == Some(x)
        && is_row_stat(g, mean, x)
    {
        out.push(Moment { kind: NormKind::Layer, x, mean: Some(mean), eps });
    }
    out
}

/// Values `w` of which `1/√w` occurs closely below `v`.
fn roots(s: &Site<'_>, v: ValueId) -> Vec<ValueId> {
    let mut out = Vec::new();
    for n in below(s.g, v, 4) {
        let w = match s.g.op(n) {
            Op::Unary(UnaryOp::Rsqrt) => first(s.g, n),
            Op::Binary(BinaryOp::Div) => s.g.operands(n).get(1).and_then(|d| unary(s.g, *d, UnaryOp::Sqrt)),
            _ => None,
        };
        if let Some(w) = w.filter(|w| !out.contains(w)) {
            out.push(w);
        }
    }
    out
}

fn is_root(s: &Site<'_>, v: ValueId) -> bool {
    use BinaryOp::{Add, Div, Mul, Sub};
    s.g.ty(v).scalar == Scalar::F32
        && s.g.ty(v).rank() > 0
        && matches!(s.g.op(v), Op::Binary(Add | Sub | Mul | Div))
        && !s.g.ty(v).last().is(1)
}

fn norm(s: &Site<'_>, v: ValueId, kind: NormKind) -> Found {
    if !is_root(s, v) {
        return Err(Miss::Other);
    }
    let mut miss = Miss::Other;
    for w in roots(s, v) {
        for m in moments(s, w).into_iter().filter(|m| m.kind == kind) {
            match complete(s, v, w, &m) {
                Ok(new) => return Ok(new),
                Err(e) => miss = e,
            }
        }
    }
    Err(miss)
}

/// The factors beside `required` in the one term that has them.
fn term_with<'t>(t: &'t [Term], required: &[Factor]) -> Option<(&'t Term, Vec<Factor>)> {
    t.iter().find_map(|t| Some((t, t.without(required)?)))
}

fn complete(s: &Site<'_>, v: ValueId, w: ValueId, m: &Moment) -> Found {
    let (g, x) = (s.g, m.x);
    if g.ty(x) != g.ty(v) {
        return Err(Miss::Other);
    }
    let n = g.ty(x).last();
    let is_vector = |o: ValueId| o != x && g.ty(o).rank() <= g.ty(x).rank() && as_vector(g, o, &n).is_some();
    let leaf = |o: ValueId| o == x || Some(o) == m.mean || is_vector(o);
    let t = terms(g, v, &leaf).ok_or(Miss::Other)?;
    let rstd = Factor::Rsqrt(w);
    let Some((scaled, gains)) = term_with(&t, &[Factor::Value(x), rstd]) else { return Err(Miss::Other) };
    if !is_row_stat(g, w, x) {
        return Miss::because("the mean square does not keep the reduced axis with extent 1");
    }
    if !(0.0..1.0).contains(&m.eps) {
        return Miss::because(format!("ε is {}", m.eps));
    }
    if scaled.number != 1.0 {
        return Miss::because(format!("the result is scaled by {}", scaled.number));
    }
    let mut expected = 1;
    if let Some(mean) = m.mean {
        let centre = [&[Factor::Value(mean), rstd], gains.as_slice()].concat();
        let fits = term_with(&t, &centre).is_some_and(|(t, rest)| rest.is_empty() && close(t.number, -1.0));
        if !fits {
            return Miss::because("the mean is not subtracted with the same factors");
        }
        expected += 1;
    }
    let gain = match gains.as_slice() {
        [] => None,
        [Factor::Value(o)] if is_vector(*o) => Some(*o),
        _ => return Miss::because("a factor is no vector of the last extent"),
    };
    let rest: Vec<&Term> = t.iter().filter(|t| !t.factors.contains(&rstd)).collect();
    let bias = match rest.as_slice() {
        [] => None,
        [Term { number, factors }] if *number == 1.0 => match factors.as_slice() {
            [Factor::Value(o)] if is_vector(*o) => Some(*o),
            _ => return Miss::because("what is added is no vector of the last extent"),
        },
        _ => return Miss::because("more than one term is added"),
    };
    if t.len() != expected + usize::from(bias.is_some()) {
        return Miss::because("there are other terms");
    }
    let vectors: Vec<ValueId> = gain.into_iter().chain(bias).collect();
    if !is_private(g, v, &[x], &vectors) {
        return Miss::because("an intermediate is used elsewhere");
    }
    let op = Op::Norm { kind: m.kind, eps: Float(m.eps as f32), has_gain: gain.is_some(), has_bias: bias.is_some() };
    let mut inputs = vec![New::Use(x)];
    inputs.extend(vectors.iter().filter_map(|o| as_vector(g, *o, &n)));
    Ok(New::Make(op, inputs))
}

/// A norm beside a vector of its last extent.
fn beside(s: &Site<'_>, v: ValueId, op: BinaryOp) -> Option<(ValueId, New)> {
    for (n, o) in either(binary(s.g, v, op)?) {
        if matches!(s.g.op(n), Op::Norm { .. })
            && is_single_use(s.g, n)
            && s.g.ty(n) == s.g.ty(v)
            && s.g.ty(o).scalar == Scalar::F32
        {
            return Some((n, as_vector(s.g, o, &s.g.ty(n).last())?));
        }
    }
    None
}

fn extended(s: &Site<'_>, n: ValueId, op: Op, o: New) -> New {
    let inputs = s.g.operands(n).into_iter().map(New::Use).chain([o]).collect();
    New::Make(op, inputs)
}

fn gain(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (n, o) = beside(s, v, BinaryOp::Mul)?;
    match s.g.op(n) {
        Op::Norm { kind, eps, has_gain: false, has_bias: false } => {
            Some(extended(s, n, Op::Norm { kind: *kind, eps: *eps, has_gain: true, has_bias: false }, o))
        }
        _ => None,
    }
}

fn bias(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (n, o) = beside(s, v, BinaryOp::Add)?;
    match s.g.op(n) {
        Op::Norm { kind, eps, has_gain, has_bias: false } => {
            Some(extended(s, n, Op::Norm { kind: *kind, eps: *eps, has_gain: *has_gain, has_bias: true }, o))
        }
        _ => None,
    }
}

/// Why a product with `1/√(…)` of a mean of squares is no norm.
pub(super) fn doubt(s: &Site<'_>, v: ValueId) -> Option<String> {
    let failed = [NormKind::Layer, NormKind::Rms].into_iter().find_map(|k| Miss::reason(norm(s, v, k)));
    failed.or_else(|| outside(s, v))
}

/// `x / (√mean(x²) + ε)` and means of squares over another axis.
fn outside(s: &Site<'_>, v: ValueId) -> Option<String> {
    let (_, d) = binary(s.g, v, BinaryOp::Div)?;
    let has_root = |d: ValueId| unary(s.g, d, UnaryOp::Sqrt).filter(|w| reduces_squares(s, *w));
    if let Some((root, eps)) = binary(s.g, d, BinaryOp::Add)
        && has_root(root).is_some()
        && constant(s.g, eps).is_some()
    {
        return Some("ε is added outside of the root".into());
    }
    let w = has_root(d)?;
    moments(s, w).is_empty().then(|| "the squares are not averaged over the last axis".into())
}

fn reduces_squares(s: &Site<'_>, w: ValueId) -> bool {
    below(s.g, w, 3).into_iter().any(|n| {
        let r = unshaped(s.g, n);
        matches!(s.g.op(r), Op::Reduce { .. }) && first(s.g, r).is_some_and(|x| square(s.g, x).is_some())
    })
}
