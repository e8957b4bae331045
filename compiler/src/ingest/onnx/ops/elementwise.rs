//! Functions of each element, with broadcasting.

use super::quant;
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::fold::{self, Fold};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::{Data, Known, Val};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};
use std::rc::Rc;

/// The value itself; a second result is a mask of which nothing is left out.
pub fn identity(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    if n.op == "Dropout" {
        if n.optional(2).is_some_and(|mode| mode.known_ints().is_none_or(|t| t.iter().any(|v| !v.is(0)))) {
            return unsupported("is or may be in training mode");
        }
        if n.wants(1) {
            let t = cx.truth(true)?;
            let mask = cx.broadcast(t, &x.shape)?;
            return Ok(vec![x, cx.val(mask, Elem::Bool)]);
        }
    }
    Ok(vec![x])
}

/// Functions of one operand that the graph has under another name or by itself.
pub fn unary(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let f = match n.op {
        "Abs" => UnaryOp::Abs,
        "Ceil" => UnaryOp::Ceil,
        "Cos" => UnaryOp::Cos,
        "Erf" => UnaryOp::Erf,
        "Exp" => UnaryOp::Exp,
        "Floor" => UnaryOp::Floor,
        "Log" => UnaryOp::Log,
        "Neg" => UnaryOp::Neg,
        "Not" => UnaryOp::Not,
        "Reciprocal" => UnaryOp::Recip,
        "Relu" => UnaryOp::Relu,
        "Round" => UnaryOp::Round,
        "Sigmoid" => UnaryOp::Sigmoid,
        "Sign" => UnaryOp::Sign,
        "Sin" => UnaryOp::Sin,
        "Sqrt" => UnaryOp::Sqrt,
        "Tanh" => UnaryOp::Tanh,
        other => return unsupported(format!("{other} is no function of one operand")),
    };
    let zero = Dim::zero();
    let known = match f {
        UnaryOp::Neg => fold::map_floats(x, |v| -v).or_else(|| fold::map_ints(x, |d| Some(zero.clone() - d.clone()))),
        UnaryOp::Abs => fold::map_floats(x, f32::abs)
            .or_else(|| fold::map_ints(x, |d| if cx.bounds.nonneg(d) { Some(d.clone()) } else { None })),
        UnaryOp::Not => fold::map_ints(x, |d| d.as_const().map(|v| Dim::constant(i64::from(v == 0)))),
        UnaryOp::Floor => fold::map_floats(x, f32::floor),
        UnaryOp::Ceil => fold::map_floats(x, f32::ceil),
        UnaryOp::Round => fold::map_floats(x, f32::round_ties_even),
        UnaryOp::Sqrt => fold::map_floats(x, f32::sqrt),
        _ => None,
    };
    if let Some(known) = known {
        return Ok(vec![Val::of(x.elem, x.shape.clone(), known)]);
    }
    let id = cx.node(x)?;
    let out = match (f, cx.scalar(id)) {
        (UnaryOp::Relu, Scalar::I32) => cx.bin_c(BinaryOp::Max, id, 0.0)?,
        (UnaryOp::Sign, Scalar::I32) => {
            let low = cx.bin_c(BinaryOp::Max, id, -1.0)?;
            cx.bin_c(BinaryOp::Min, low, 1.0)?
        }
        (UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round, Scalar::I32) => id,
        _ => cx.un(f, id)?,
    };
    Ok(vec![cx.val(out, x.elem)])
}

fn fold_of(op: &str) -> Option<Fold> {
    Some(match op {
        "Add" | "Sum" => Fold::Add,
        "Sub" => Fold::Sub,
        "Mul" => Fold::Mul,
        "Div" => Fold::Div,
        "Max" => Fold::Max,
        "Min" => Fold::Min,
        "Equal" => Fold::Equal,
        "Less" => Fold::Less,
        "LessOrEqual" => Fold::LessOrEqual,
        "And" => Fold::And,
        "Or" => Fold::Or,
        "Xor" => Fold::Xor,
        _ => return None,
    })
}

/// f(a, b), computed now where both are known.
pub fn apply(cx: &mut Cx<'_, '_, '_>, op: &str, a: &Val, b: &Val) -> Res<Val> {
    let (op, a, b) = match op {
        "Greater" => ("Less", b, a),
        "GreaterOrEqual" => ("LessOrEqual", b, a),
        op => (op, a, b),
    };
    let compares = matches!(op, "Equal" | "Less" | "LessOrEqual");
    let elem = if compares { Elem::Bool } else { a.elem };
    if a.elem.scalar() != b.elem.scalar() {
        return malformed(format!("has operands of {} and {}", a.elem, b.elem));
    }
    if let Some((shape, known)) = fold_of(op).and_then(|f| fold::zip(cx, a, b, f)) {
        return Ok(Val::of(elem, shape, known));
    }
    let weight = quant::shifted_or_scaled(cx, op, a, b);
    let weight = weight.or_else(|| if op == "Mul" { quant::shifted_or_scaled(cx, op, b, a) } else { None });
    if let Some(w) = weight {
        return Ok(w);
    }
    let (x, y) = (cx.node(a)?, cx.node(b)?);
    let f = match op {
        "Add" | "Sum" => BinaryOp::Add,
        "Sub" => BinaryOp::Sub,
        "Mul" => BinaryOp::Mul,
        "Div" => BinaryOp::Div,
        "Max" => BinaryOp::Max,
        "Min" => BinaryOp::Min,
        "Equal" => BinaryOp::Eq,
        "Less" => BinaryOp::Lt,
        "LessOrEqual" => BinaryOp::Le,
        "And" => BinaryOp::And,
        "Or" => BinaryOp::Or,
        "Xor" => {
            let same = cx.bin(BinaryOp::Eq, x, y)?;
            let out = cx.not(same)?;
            return Ok(cx.val(out, Elem::Bool));
        }
        other => return unsupported(format!("{other} is no function of two operands")),
    };
    let out = cx.bin(f, x, y)?;
    Ok(cx.val(out, elem))
}

/// Functions of two operands.
pub fn binary(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    Ok(vec![apply(cx, n.op, n.input(0)?, n.input(1)?)?])
}

/// Functions of any number of operands, from the left.
pub fn variadic(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let mut out = n.input(0)?.clone();
    let op = if n.op == "Mean" { "Sum" } else { n.op };
    for i in 1..n.inputs.len() {
        out = apply(cx, op, &out, n.input(i)?)?;
    }
    if n.op == "Mean" {
        let sum = cx.node(&out)?;
        let mean = cx.bin_c(BinaryOp::Div, sum, n.inputs.len() as f64)?;
        out = cx.val(mean, out.elem);
    }
    Ok(vec![out])
}

/// aᵇ; the exponent may be of another type.
pub fn power(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (a, b) = (n.input(0)?, n.input(1)?);
    if a.elem.scalar() == b.elem.scalar()
        && let Some((shape, known)) = fold::zip(cx, a, b, Fold::Pow)
    {
        return Ok(vec![Val::of(a.elem, shape, known)]);
    }
    let (x, y) = (cx.node(a)?, cx.node(b)?);
    let (x, y) = (cx.cast(x, Scalar::F32)?, cx.cast(y, Scalar::F32)?);
    let p = cx.bin(BinaryOp::Pow, x, y)?;
    let p = if a.elem.is_int() { cx.un(UnaryOp::Round, p)? } else { p };
    let out = cx.cast(p, a.elem.scalar())?;
    Ok(vec![cx.val(out, a.elem)])
}

/// Remainders: with the sign of the divisor, or with `fmod` that of the dividend.
pub fn modulo(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (a, b) = (n.input(0)?, n.input(1)?);
    let c_like = n.flag("fmod", false)?;
    if let Some((shape, known)) = fold::zip(cx, a, b, if c_like { Fold::Fmod } else { Fold::Mod }) {
        return Ok(vec![Val::of(a.elem, shape, known)]);
    }
    let (x, y) = (cx.node(a)?, cx.node(b)?);
    let quotient = cx.bin(BinaryOp::Div, x, y)?;
    let whole = match (cx.scalar(quotient), c_like) {
        (Scalar::F32, true) => truncated(cx, quotient)?,
        (Scalar::F32, false) => cx.un(UnaryOp::Floor, quotient)?,
        _ => quotient,
    };
    let product = cx.bin(BinaryOp::Mul, whole, y)?;
    let mut r = cx.bin(BinaryOp::Sub, x, product)?;
    if cx.scalar(r) == Scalar::I32 && !c_like {
        let signed = cx.bin(BinaryOp::Mul, r, y)?;
        let opposite = cx.bin_c(BinaryOp::Lt, signed, 0.0)?;
        let shifted = cx.bin(BinaryOp::Add, r, y)?;
        r = cx.select(opposite, shifted, r)?;
    }
    Ok(vec![cx.val(r, a.elem)])
}

/// Rounds toward zero.
pub fn truncated(cx: &mut Cx<'_, '_, '_>, x: ValueId) -> Res<ValueId> {
    let negative = cx.bin_c(BinaryOp::Lt, x, 0.0)?;
    let (up, down) = (cx.un(UnaryOp::Ceil, x)?, cx.un(UnaryOp::Floor, x)?);
    cx.select(negative, up, down)
}

/// Value conversion. Halves and doubles are computed in 32 bits, so that casts between floats change nothing.
pub fn cast(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let to = if n.op == "CastLike" { n.input(1)?.elem } else { n.elem("to", Elem::Float)? };
    Ok(vec![cast_to(cx, x, to)?])
}

/// `x` in another type.
pub fn cast_to(cx: &mut Cx<'_, '_, '_>, x: &Val, to: Elem) -> Res<Val> {
    let known = match (x.known.as_deref(), to.scalar()) {
        (Some(Known::Ints(v)), Scalar::I32) => Some(Known::Ints(v.clone())),
        (Some(Known::Ints(_)), Scalar::Bool) => fold::map_ints(x, |d| {
            let positive = cx.bounds.le(&Dim::one(), d).then_some(1);
            d.as_const().map(|v| i64::from(v != 0)).or(positive).map(Dim::constant)
        }),
        (Some(Known::Ints(v)), Scalar::F32) => {
            v.iter().map(|d| d.as_const().map(|v| v as f32)).collect::<Option<_>>().map(Known::Floats)
        }
        (Some(Known::Floats(v)), Scalar::F32) => Some(Known::Floats(v.clone())),
        (Some(Known::Floats(v)), Scalar::I32) => {
            Some(Known::Ints(v.iter().map(|x| Dim::constant(x.trunc() as i64)).collect()))
        }
        (Some(Known::Floats(v)), Scalar::Bool) => {
            Some(Known::Ints(v.iter().map(|x| Dim::constant(i64::from(*x != 0.0))).collect()))
        }
        (None, _) => None,
    };
    if let Some(known) = known {
        // A stored constant keeps its place, so that it is not copied.
        let keeps = x.elem.scalar() == to.scalar() && x.elem.storage() == to.storage();
        let data = if keeps { x.data.clone() } else { Data::Known };
        return Ok(Val { elem: to, shape: x.shape.clone(), data, known: Some(Rc::new(known)) });
    }
    if x.elem.scalar() == to.scalar() && !narrows(x.elem, to) {
        return Ok(Val { elem: to, ..x.clone() });
    }
    if let Some(w) = quant::cast_weight(cx, x, to) {
        return Ok(w);
    }
    let id = cx.node(x)?;
    let mut out = cx.cast(id, to.scalar())?;
    if x.elem.is_int() && narrows(x.elem, to) {
        out = wrapped(cx, out, to)?;
    }
    Ok(cx.val(out, to))
}

fn narrows(from: Elem, to: Elem) -> bool {
    let ((a, b), (c, d)) = (from.range(), to.range());
    from.is_int() && to.is_int() && to.bits() < 32 && (c > a || d < b)
}

/// An integer brought into the range of a narrower type, as its lowest bits.
fn wrapped(cx: &mut Cx<'_, '_, '_>, x: ValueId, to: Elem) -> Res<ValueId> {
    let ((low, high), one) = (to.range(), 1i64);
    let span = (high - low + one) as f64;
    let shifted = cx.bin_c(BinaryOp::Sub, x, low as f64)?;
    let quotient = cx.bin_c(BinaryOp::Div, shifted, span)?;
    let whole = cx.bin_c(BinaryOp::Mul, quotient, span)?;
    let rest = cx.bin(BinaryOp::Sub, shifted, whole)?;
    let negative = cx.bin_c(BinaryOp::Lt, rest, 0.0)?;
    let up = cx.bin_c(BinaryOp::Add, rest, span)?;
    let rest = cx.select(negative, up, rest)?;
    cx.bin_c(BinaryOp::Add, rest, low as f64)
}

/// `t` where the condition holds, else `f`.
pub fn select(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (c, t, f) = (n.input(0)?, n.input(1)?, n.input(2)?);
    if c.elem != Elem::Bool || t.elem.scalar() != f.elem.scalar() {
        return malformed(format!("has operands of {}, {} and {}", c.elem, t.elem, f.elem));
    }
    if let Some(out) = known_select(cx, c, t, f) {
        return Ok(vec![out]);
    }
    if let Some(all) = c.known_ints().and_then(|c| c.iter().map(Dim::as_const).collect::<Option<Vec<_>>>())
        && let Some(first) = all.first()
        && all.iter().all(|v| v == first)
    {
        let taken = if *first != 0 { t } else { f };
        let shape = cx.broadcast_shape(&[&c.shape, &t.shape, &f.shape])?;
        if shape == taken.shape {
            return Ok(vec![taken.clone()]);
        }
        let id = cx.node(taken)?;
        let out = cx.broadcast(id, &shape)?;
        return Ok(vec![cx.val(out, taken.elem)]);
    }
    let (ci, ti, fi) = (cx.node(c)?, cx.node(t)?, cx.node(f)?);
    let out = cx.select(ci, ti, fi)?;
    Ok(vec![cx.val(out, t.elem)])
}

fn known_select(cx: &Cx<'_, '_, '_>, c: &Val, t: &Val, f: &Val) -> Option<Val> {
    use crate::ingest::onnx::value::{broadcast_walk, fixed};
    let (kc, kt, kf) = (c.known_ints()?, t.known.as_deref()?, f.known.as_deref()?);
    let shape = cx.broadcast_shape(&[&c.shape, &t.shape, &f.shape]).ok()?;
    let to = fixed(&shape)?;
    let walk = |v: &Val| broadcast_walk(&v.fixed_shape()?, &to);
    let (wc, wt, wf) = (walk(c)?, walk(t)?, walk(f)?);
    let taken: Vec<bool> = wc.iter().map(|i| kc.get(*i)?.as_const().map(|v| v != 0)).collect::<Option<_>>()?;
    let known = match (kt, kf) {
        (Known::Ints(x), Known::Ints(y)) => {
            let at = taken.iter().zip(wt.iter().zip(&wf));
            let at = at.map(|(c, (i, j))| if *c { x.get(*i).cloned() } else { y.get(*j).cloned() });
            Known::Ints(at.collect::<Option<_>>()?)
        }
        (Known::Floats(x), Known::Floats(y)) => {
            let at = taken.iter().zip(wt.iter().zip(&wf));
            let at = at.map(|(c, (i, j))| if *c { x.get(*i).copied() } else { y.get(*j).copied() });
            Known::Floats(at.collect::<Option<_>>()?)
        }
        _ => return None,
    };
    Some(Val::of(t.elem, shape, known))
}

/// min(max(x, low), high).
pub fn clip(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let mut x = n.input(0)?.clone();
    let bound = |name: &str, i: usize| -> Res<Option<Val>> {
        match n.optional(i) {
            Some(v) => Ok(Some(v.clone())),
            None => Ok(n.float_if(name)?.map(|v| Val::float(Elem::Float, v))),
        }
    };
    for (op, bound) in [("Max", bound("min", 1)?), ("Min", bound("max", 2)?)] {
        let Some(b) = bound else { continue };
        x = apply(cx, op, &x, &b)?;
    }
    Ok(vec![x])
}

/// x ≠ x. Kernels give no NaN for finite operands, so this is of use for inputs alone.
pub fn is_nan(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = cx.node(n.input(0)?)?;
    let same = cx.bin(BinaryOp::Eq, x, x)?;
    let out = cx.not(same)?;
    Ok(vec![cx.val(out, Elem::Bool)])
}
