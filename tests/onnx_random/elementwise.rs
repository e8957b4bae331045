//! Operators whose elements depend on the operands' elements at the same place.

use crate::array::{Answer, Nd, broadcast};
use crate::attributes::Attributes;
use crate::onnx_file::Element::{self, Bool, Float, Int64};

/// Whether a value is so far from a place where a result jumps that rounding cannot carry it across.
pub fn is_clear(x: f64, jump: f64) -> bool {
    (x - jump).abs() > 1e-3
}

/// The error function: its series near 0, its continued fraction elsewhere.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        for n in 1..80 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut tail = 0.0;
        for k in (1..60).rev() {
            tail = k as f64 / 2.0 / (a + tail);
        }
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + tail)
    };
    value.copysign(x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Of floats.
fn unary_float(op: &str, a: &Attributes, x: f64) -> Option<f64> {
    let at_step = |r: f64| is_clear(x, x.round()).then_some(r);
    Some(match op {
        "Exp" if x <= 3.0 => x.exp(),
        "Log" if x > 0.2 => x.ln(),
        "Sqrt" if x > 0.05 => x.sqrt(),
        "Reciprocal" if x.abs() > 0.3 => 1.0 / x,
        "Sin" => x.sin(),
        "Cos" => x.cos(),
        "Sinh" if x.abs() < 3.0 => x.sinh(),
        "Cosh" if x.abs() < 3.0 => x.cosh(),
        "Tanh" => x.tanh(),
        "Sigmoid" => sigmoid(x),
        "Erf" => erf(x),
        "LeakyRelu" => {
            if x < 0.0 {
                f64::from(a.float("alpha", 0.01)) * x
            } else {
                x
            }
        }
        "Elu" => {
            if x < 0.0 {
                f64::from(a.float("alpha", 1.0)) * x.exp_m1()
            } else {
                x
            }
        }
        "Celu" => {
            let alpha = f64::from(a.float("alpha", 1.0));
            x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0)
        }
        "Selu" => {
            let alpha = f64::from(a.float("alpha", 1.673_263_2));
            f64::from(a.float("gamma", 1.050_701)) * if x > 0.0 { x } else { alpha * x.exp_m1() }
        }
        "ThresholdedRelu" => {
            let alpha = f64::from(a.float("alpha", 1.0));
            if !is_clear(x, alpha) {
                return None;
            }
            if x > alpha { x } else { 0.0 }
        }
        "Softplus" => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        "Softsign" => x / (1.0 + x.abs()),
        "Mish" => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
        "HardSigmoid" => (f64::from(a.float("alpha", 0.2)) * x + f64::from(a.float("beta", 0.5))).clamp(0.0, 1.0),
        "HardSwish" => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        "Gelu" if a.text("approximate", "none") == "tanh" => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        "Gelu" => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        "Floor" => return at_step(x.floor()),
        "Ceil" => return at_step(x.ceil()),
        "Round" => return is_clear(x, x.floor() + 0.5).then(|| x.round_ties_even()),
        _ => return None,
    })
}

/// Of floats and integers.
fn unary(op: &str, a: &Attributes, kind: Element, x: f64) -> Option<f64> {
    Some(match op {
        "Identity" => x,
        "Abs" => x.abs(),
        "Neg" => 0.0 - x,
        "Relu" => x.max(0.0),
        "Sign" if kind == Float && !is_clear(x, 0.0) => return None,
        "Sign" => {
            if x == 0.0 {
                0.0
            } else {
                x.signum()
            }
        }
        _ if kind == Float => return unary_float(op, a, x),
        _ => return None,
    })
}

fn binary(op: &str, kind: Element, a: &Attributes, x: f64, y: f64) -> Option<f64> {
    let is_far = kind != Float || is_clear(x, y);
    let truth = |t: bool| is_far.then(|| f64::from(u8::from(t)));
    Some(match op {
        "Add" | "Sum" | "Mean" => x + y,
        "Sub" => x - y,
        "Mul" => x * y,
        "Div" if kind == Int64 && y != 0.0 => (x / y).trunc(),
        "Div" if kind == Float && y.abs() > 0.3 => x / y,
        "Mod" if kind == Int64 && y != 0.0 && a.int("fmod", 0) == 1 => x % y,
        "Mod" if kind == Int64 && y != 0.0 => x - y * (x / y).floor(),
        "Mod" if kind == Float && y.abs() > 0.3 && a.int("fmod", 0) == 1 => {
            if !is_clear(x / y, (x / y).round()) {
                return None;
            }
            x % y
        }
        "Pow" if kind == Float && x > 0.2 && y.abs() < 3.0 => x.powf(y),
        "Min" => x.min(y),
        "Max" => x.max(y),
        "PRelu" => {
            if x < 0.0 {
                x * y
            } else {
                x
            }
        }
        "Equal" => return truth(x == y),
        "Less" => return truth(x < y),
        "LessOrEqual" => return truth(x <= y),
        "Greater" => return truth(x > y),
        "GreaterOrEqual" => return truth(x >= y),
        "And" => x * y,
        "Or" => x.max(y),
        "Xor" => (x - y).abs(),
        _ => return None,
    })
}

/// The answer of an elementwise operator, of operands that stretch to one shape.
pub fn apply(op: &str, a: &Attributes, x: &[Option<&Nd>]) -> Answer {
    let first = x[0]?;
    match op {
        "Not" => Some(Nd::build(Bool, &first.shape, |i| 1.0 - first.at(i))),
        "Cast" => cast(first, a.element("to")?),
        "Clip" => {
            let bound = |n: usize, d: f64| x.get(n).copied().flatten().map_or(d, |v| v.data[0]);
            let (low, high) = (bound(1, f64::NEG_INFINITY), bound(2, f64::INFINITY));
            Some(Nd::build(first.kind, &first.shape, |i| first.at(i).max(low).min(high)))
        }
        "Where" => {
            let (yes, no) = (x[1]?, x[2]?);
            let shape = broadcast(&[&first.shape, &yes.shape, &no.shape])?;
            let pick = |i: &[usize]| if first.stretched(i) != 0.0 { yes.stretched(i) } else { no.stretched(i) };
            Some(Nd::build(yes.kind, &shape, pick))
        }
        _ if x.len() == 1 && !matches!(op, "Sum" | "Mean" | "Min" | "Max") => {
            Nd::try_build(first.kind, &first.shape, |i| unary(op, a, first.kind, first.at(i)))
        }
        _ => {
            let all: Vec<&Nd> = x.iter().copied().collect::<Option<_>>()?;
            let shapes: Vec<&[usize]> = all.iter().map(|v| v.shape.as_slice()).collect();
            let shape = broadcast(&shapes)?;
            let result = match op {
                "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => Bool,
                _ => first.kind,
            };
            let share = if op == "Mean" { all.len() as f64 } else { 1.0 };
            Nd::try_build(result, &shape, |i| {
                let mut terms = all.iter().map(|v| v.stretched(i));
                let start = terms.next()?;
                Some(terms.try_fold(start, |s, t| binary(op, first.kind, a, s, t))? / share)
            })
        }
    }
}

fn cast(x: &Nd, to: Element) -> Answer {
    Nd::try_build(to, &x.shape, |i| {
        let v = x.at(i);
        match (x.kind, to) {
            (Float, Int64) => is_clear(v, v.round()).then(|| v.trunc()),
            (Float, Bool) => is_clear(v, 0.0).then_some(1.0),
            (_, Bool) => Some(f64::from(u8::from(v != 0.0))),
            _ => Some(v),
        }
    })
}
