//! Activations: those of the graph by name, others composed.

use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Res, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// Gelu, BiasGelu and FastGelu: of x, or of x + bias.
pub fn gelu(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let mut id = cx.node(x)?;
    if let Some(bias) = n.optional(1) {
        let bias = cx.node(bias)?;
        id = cx.bin(BinaryOp::Add, id, bias)?;
    }
    let tanh = match n.text("approximate", "none")?.as_str() {
        "none" => n.op == "FastGelu",
        "tanh" => true,
        other => return unsupported(format!("approximates by `{other}`")),
    };
    let out = cx.un(if tanh { UnaryOp::GeluTanh } else { UnaryOp::GeluErf }, id)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// a·gelu(b) of the halves a, b of x + bias along the last axis.
pub fn bias_split_gelu(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let (id, bias) = (cx.node(x)?, cx.node(n.input(1)?)?);
    let sum = cx.bin(BinaryOp::Add, id, bias)?;
    let axis = x.rank().saturating_sub(1);
    let half = x.shape.last().cloned().unwrap_or_default().div(&Dim::constant(2));
    let (a, b) = (cx.slice(sum, axis, &Dim::zero(), &half)?, cx.slice(sum, axis, &half, &half)?);
    let b = cx.un(UnaryOp::GeluErf, b)?;
    let out = cx.bin(BinaryOp::Mul, a, b)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// An activation by the name that operators and fused operators use.
pub fn named(cx: &mut Cx<'_, '_, '_>, name: &str, x: ValueId) -> Res<ValueId> {
    match name {
        "Relu" => cx.un(UnaryOp::Relu, x),
        "Sigmoid" => cx.un(UnaryOp::Sigmoid, x),
        "Tanh" => cx.un(UnaryOp::Tanh, x),
        "Gelu" => cx.un(UnaryOp::GeluErf, x),
        other => unsupported(format!("applies the activation {other}")),
    }
}

/// Activations written out.
pub fn composed(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    use BinaryOp::{Add, Div, Lt, Max, Min, Mul, Sub};
    use UnaryOp::{Abs, Exp, Log, Sigmoid, Sqrt, Tanh};
    let input = n.input(0)?;
    let x = cx.node(input)?;
    let out = match n.op {
        "Swish" | "QuickGelu" => {
            let alpha = n.float("alpha", if n.op == "Swish" { 1.0 } else { 1.702 })?;
            if alpha == 1.0 {
                cx.un(UnaryOp::Silu, x)?
            } else {
                let scaled = cx.bin_c(Mul, x, f64::from(alpha))?;
                let gate = cx.un(Sigmoid, scaled)?;
                cx.bin(Mul, x, gate)?
            }
        }
        "LeakyRelu" => {
            let scaled = cx.bin_c(Mul, x, f64::from(n.float("alpha", 0.01)?))?;
            below_zero(cx, x, scaled, x)?
        }
        "PRelu" => {
            let slope = cx.node(n.input(1)?)?;
            let scaled = cx.bin(Mul, x, slope)?;
            below_zero(cx, x, scaled, x)?
        }
        "ThresholdedRelu" => {
            let alpha = cx.f32(n.float("alpha", 1.0)?)?;
            let above = cx.bin(Lt, alpha, x)?;
            let zero = cx.f32(0.0)?;
            cx.select(above, x, zero)?
        }
        "HardSigmoid" | "HardSwish" => {
            let (a, b) = match n.op {
                "HardSigmoid" => (n.float("alpha", 0.2)?, n.float("beta", 0.5)?),
                _ => (1.0 / 6.0, 0.5),
            };
            let line = cx.bin_c(Mul, x, f64::from(a))?;
            let line = cx.bin_c(Add, line, f64::from(b))?;
            let low = cx.bin_c(Max, line, 0.0)?;
            let gate = cx.bin_c(Min, low, 1.0)?;
            if n.op == "HardSwish" { cx.bin(Mul, x, gate)? } else { gate }
        }
        "Elu" | "Selu" | "Celu" => {
            let (alpha, gamma) = match n.op {
                "Selu" => (n.float("alpha", 1.673_263_2)?, n.float("gamma", 1.050_701)?),
                _ => (n.float("alpha", 1.0)?, 1.0),
            };
            let low = cx.bin_c(Min, x, 0.0)?;
            let low = if n.op == "Celu" { cx.bin_c(Div, low, f64::from(alpha))? } else { low };
            let power = cx.un(Exp, low)?;
            let power = cx.bin_c(Sub, power, 1.0)?;
            let power = cx.bin_c(Mul, power, f64::from(alpha))?;
            let y = below_zero(cx, x, power, x)?;
            if gamma == 1.0 { y } else { cx.bin_c(Mul, y, f64::from(gamma))? }
        }
        "Softplus" | "Mish" => {
            // log(1 + eˣ) == max(x, 0) + log(1 + e^−|x|), which does not overflow.
            let size = cx.un(Abs, x)?;
            let minus = cx.un(UnaryOp::Neg, size)?;
            let power = cx.un(Exp, minus)?;
            let one = cx.bin_c(Add, power, 1.0)?;
            let log = cx.un(Log, one)?;
            let high = cx.bin_c(Max, x, 0.0)?;
            let soft = cx.bin(Add, high, log)?;
            if n.op == "Mish" {
                let t = cx.un(Tanh, soft)?;
                cx.bin(Mul, x, t)?
            } else {
                soft
            }
        }
        "Softsign" => {
            let size = cx.un(Abs, x)?;
            let one = cx.bin_c(Add, size, 1.0)?;
            cx.bin(Div, x, one)?
        }
        "Shrink" => {
            let (bias, lambda) = (n.float("bias", 0.0)?, n.float("lambd", 0.5)?);
            let (up, down) = (cx.bin_c(Add, x, f64::from(bias))?, cx.bin_c(Sub, x, f64::from(bias))?);
            let (low, high) = (cx.f32(-lambda)?, cx.f32(lambda)?);
            let (below, above) = (cx.bin(Lt, x, low)?, cx.bin(Lt, high, x)?);
            let zero = cx.f32(0.0)?;
            let rest = cx.select(above, down, zero)?;
            cx.select(below, up, rest)?
        }
        "Tan" => {
            let (s, c) = (cx.un(UnaryOp::Sin, x)?, cx.un(UnaryOp::Cos, x)?);
            cx.bin(Div, s, c)?
        }
        "Sinh" | "Cosh" => {
            let minus = cx.un(UnaryOp::Neg, x)?;
            let (up, down) = (cx.un(Exp, x)?, cx.un(Exp, minus)?);
            let both = cx.bin(if n.op == "Sinh" { Sub } else { Add }, up, down)?;
            cx.bin_c(Mul, both, 0.5)?
        }
        "Asinh" | "Acosh" => {
            let square = cx.bin(Mul, x, x)?;
            let inside = cx.bin_c(Add, square, if n.op == "Asinh" { 1.0 } else { -1.0 })?;
            let root = cx.un(Sqrt, inside)?;
            let size = cx.un(Abs, x)?;
            let sum = cx.bin(Add, size, root)?;
            let log = cx.un(Log, sum)?;
            let sign = cx.un(UnaryOp::Sign, x)?;
            if n.op == "Asinh" { cx.bin(Mul, sign, log)? } else { log }
        }
        "Atanh" => {
            let (up, minus) = (cx.bin_c(Add, x, 1.0)?, cx.un(UnaryOp::Neg, x)?);
            let down = cx.bin_c(Add, minus, 1.0)?;
            let ratio = cx.bin(Div, up, down)?;
            let log = cx.un(Log, ratio)?;
            cx.bin_c(Mul, log, 0.5)?
        }
        other => return unsupported(format!("{other} is no activation")),
    };
    Ok(vec![cx.val(out, input.elem)])
}

/// `a` where x < 0, else `b`.
fn below_zero(cx: &mut Cx<'_, '_, '_>, x: ValueId, a: ValueId, b: ValueId) -> Res<ValueId> {
    let negative = cx.bin_c(BinaryOp::Lt, x, 0.0)?;
    cx.select(negative, a, b)
}
