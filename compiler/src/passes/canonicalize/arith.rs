//! Arithmetic with constants, and functions spelled by others.

use crate::graph::{Op, ValueId};
use crate::passes::cse::is_commutative;
use crate::passes::pattern::{binary, constant, first, literal, unary};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};

/// ```text
/// constant-right     f(c, x) == f(x, c)                 f commutative
/// neutral            x + 0 == x · 1 == x / 1 == x^1 == x    (the sign of zero apart)
/// sub-constant       x − c == x + (−c)
/// div-power-of-two   x / c == x · (1/c)                 c a power of two, 1/c normal
/// square             x^2 == x · x
/// power-as-root      x^½ == √x,  x^−½ == 1/√x,  x^−1 == 1/x      (x ≥ 0 for roots)
/// reciprocal         1 / x == recip(x)
/// recip-of-sqrt      recip(√x) == rsqrt(x)              class: drops a rounding
/// recip-of-recip     recip(recip(x)) == x               class: drops a rounding
/// double-negation    −(−x) == x,  ¬¬x == x
/// add-of-negation    a + (−b) == a − b,  a − (−b) == a + b
/// cast-of-cast       cast<t>(cast<u>(x)) == cast<t>(x)  u holds every value of the type of x
/// idle-cast          cast<t>(x) == x                    x is of type t
/// constant-select    select(true, a, b) == a,  select(c, a, a) == a
/// not-of-select      select(¬c, a, b) == select(c, b, a)
/// neutral-logic      x ∧ true == x ∨ false == x
/// idempotent         max(x, x) == min(x, x) == x ∧ x == x ∨ x == x
/// ```
/// Exact but where a class is given. Rules for floats keep NaN.
pub(super) const RULES: &[Rule] = &[
    Rule::exact("constant-right", constant_right),
    Rule::exact("neutral", neutral),
    Rule::exact("sub-constant", sub_constant),
    Rule::exact("div-power-of-two", div_power_of_two),
    Rule::round("square", square),
    Rule::round("power-as-root", power_as_root),
    Rule::round("reciprocal", reciprocal),
    Rule::round("recip-of-sqrt", recip_of_sqrt),
    Rule::round("recip-of-recip", recip_of_recip),
    Rule::exact("double-negation", double_negation),
    Rule::exact("add-of-negation", add_of_negation),
    Rule::exact("cast-of-cast", cast_of_cast),
    Rule::exact("idle-cast", idle_cast),
    Rule::exact("constant-select", constant_select),
    Rule::exact("not-of-select", not_of_select),
    Rule::exact("neutral-logic", neutral_logic),
    Rule::exact("idempotent", idempotent),
];

fn constant_right(s: &Site<'_>, v: ValueId) -> Option<New> {
    let op = s.g.op(v);
    let [a, b] = s.g.operands(v)[..] else { return None };
    let swap = is_commutative(op) && literal(s.g, a).is_some() && literal(s.g, b).is_none();
    swap.then(|| New::make(op.clone(), &[b, a]))
}

fn neutral(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Binary(op) = s.g.op(v) else { return None };
    let [x, c] = s.g.operands(v)[..] else { return None };
    let unit = match op {
        BinaryOp::Add | BinaryOp::Sub => 0.0,
        BinaryOp::Mul | BinaryOp::Div | BinaryOp::Pow => 1.0,
        _ => return None,
    };
    let value = match literal(s.g, c)? {
        Literal::F32(b) => f64::from(f32::from_bits(b)),
        Literal::I32(i) => f64::from(i),
        Literal::Bool(_) => return None,
    };
    (value == unit && s.g.ty(x) == s.g.ty(v)).then_some(New::Use(x))
}

fn sub_constant(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (x, c) = binary(s.g, v, BinaryOp::Sub)?;
    let c = constant(s.g, c)?;
    (s.g.ty(x) == s.g.ty(v)).then(|| New::binary(BinaryOp::Add, New::Use(x), New::f32(-c as f32)))
}

fn div_power_of_two(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (x, c) = binary(s.g, v, BinaryOp::Div)?;
    let c = constant(s.g, c)? as f32;
    let inverse = 1.0 / c;
    let exact = c.is_normal() && inverse.is_normal() && c.to_bits() & 0x007f_ffff == 0;
    (exact && s.g.ty(x) == s.g.ty(v)).then(|| New::binary(BinaryOp::Mul, New::Use(x), New::f32(inverse)))
}

fn square(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (x, c) = binary(s.g, v, BinaryOp::Pow)?;
    (constant(s.g, c)? == 2.0 && s.g.ty(x) == s.g.ty(v)).then(|| New::make(Op::Binary(BinaryOp::Mul), &[x, x]))
}

fn power_as_root(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (x, c) = binary(s.g, v, BinaryOp::Pow)?;
    let c = constant(s.g, c)?;
    let op = match () {
        () if c == 0.5 => UnaryOp::Sqrt,
        () if c == -0.5 => UnaryOp::Rsqrt,
        () if c == -1.0 => UnaryOp::Recip,
        () => return None,
    };
    (s.g.ty(x) == s.g.ty(v)).then(|| New::make(Op::Unary(op), &[x]))
}

fn reciprocal(s: &Site<'_>, v: ValueId) -> Option<New> {
    let (one, x) = binary(s.g, v, BinaryOp::Div)?;
    (constant(s.g, one)? == 1.0 && s.g.ty(x) == s.g.ty(v)).then(|| New::make(Op::Unary(UnaryOp::Recip), &[x]))
}

fn recip_of_sqrt(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = unary(s.g, unary(s.g, v, UnaryOp::Recip)?, UnaryOp::Sqrt)?;
    Some(New::make(Op::Unary(UnaryOp::Rsqrt), &[x]))
}

fn recip_of_recip(s: &Site<'_>, v: ValueId) -> Option<New> {
    unary(s.g, unary(s.g, v, UnaryOp::Recip)?, UnaryOp::Recip).map(New::Use)
}

fn double_negation(s: &Site<'_>, v: ValueId) -> Option<New> {
    let twice = |op| unary(s.g, unary(s.g, v, op)?, op);
    twice(UnaryOp::Neg).or_else(|| twice(UnaryOp::Not)).map(New::Use)
}

fn add_of_negation(s: &Site<'_>, v: ValueId) -> Option<New> {
    let make = |op, a, b| Some(New::make(Op::Binary(op), &[a, b]));
    if let Some((a, b)) = binary(s.g, v, BinaryOp::Sub) {
        return make(BinaryOp::Add, a, unary(s.g, b, UnaryOp::Neg)?);
    }
    let (a, b) = binary(s.g, v, BinaryOp::Add)?;
    make(BinaryOp::Sub, a, unary(s.g, b, UnaryOp::Neg)?)
}

fn cast_of_cast(s: &Site<'_>, v: ValueId) -> Option<New> {
    let inner = first(s.g, v)?;
    let (Op::Cast(to), Op::Cast(through)) = (s.g.op(v), s.g.op(inner)) else { return None };
    let x = first(s.g, inner)?;
    let holds = matches!((s.g.ty(x).scalar, through), (Scalar::Bool, _));
    holds.then(|| New::make(Op::Cast(*to), &[x]))
}

fn idle_cast(s: &Site<'_>, v: ValueId) -> Option<New> {
    let x = first(s.g, v)?;
    matches!(s.g.op(v), Op::Cast(to) if *to == s.g.ty(x).scalar).then_some(New::Use(x))
}

fn constant_select(s: &Site<'_>, v: ValueId) -> Option<New> {
    let [c, t, f] = s.g.operands(v)[..] else { return None };
    if !matches!(s.g.op(v), Op::Select) {
        return None;
    }
    let taken = match literal(s.g, c) {
        Some(Literal::Bool(b)) => Some(if b { t } else { f }),
        _ => (t == f).then_some(t),
    };
    taken.filter(|x| s.g.ty(*x) == s.g.ty(v)).map(New::Use)
}

fn not_of_select(s: &Site<'_>, v: ValueId) -> Option<New> {
    let [c, t, f] = s.g.operands(v)[..] else { return None };
    if !matches!(s.g.op(v), Op::Select) {
        return None;
    }
    unary(s.g, c, UnaryOp::Not).map(|c| New::make(Op::Select, &[c, f, t]))
}

fn neutral_logic(s: &Site<'_>, v: ValueId) -> Option<New> {
    let [x, c] = s.g.operands(v)[..] else { return None };
    let unit = match s.g.op(v) {
        Op::Binary(BinaryOp::And) => true,
        Op::Binary(BinaryOp::Or) => false,
        _ => return None,
    };
    (literal(s.g, c)? == Literal::Bool(unit) && s.g.ty(x) == s.g.ty(v)).then_some(New::Use(x))
}

fn idempotent(s: &Site<'_>, v: ValueId) -> Option<New> {
    let [a, b] = s.g.operands(v)[..] else { return None };
    let op = matches!(s.g.op(v), Op::Binary(BinaryOp::Max | BinaryOp::Min | BinaryOp::And | BinaryOp::Or));
    (op && a == b).then_some(New::Use(a))
}
