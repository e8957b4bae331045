//! Calls of operators on elements.

use super::{any, beside, constant_beside, float, of_kind, value};
use crate::graph::Graph;
use crate::onnx_file::Attribute::{Float, Int, Text};
use crate::onnx_file::Element;

pub fn unary(g: &mut Graph) -> Option<()> {
    let op = g.one(&[
        "Abs",
        "Neg",
        "Relu",
        "Sign",
        "Identity",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Sin",
        "Cos",
        "Sinh",
        "Cosh",
        "Tanh",
        "Sigmoid",
        "Erf",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "ThresholdedRelu",
        "Softplus",
        "Softsign",
        "Mish",
        "HardSigmoid",
        "HardSwish",
        "Gelu",
        "Gelu",
        "Floor",
        "Ceil",
        "Round",
        "Clip",
        "Not",
        "Cast",
        "Cast",
    ]);
    let alpha = [("alpha", Float(0.25 + g.below(4) as f32 * 0.5))];
    match op {
        "Clip" => {
            let x = float(g, 0)?;
            let (low, high) = (g.number(-0.5), g.number(1.25));
            let all = [(Some(low), Some(high)), (None, Some(high)), (Some(low), None)];
            let (low, high) = g.one(&all);
            g.call("Clip", &[], &[Some(x), low, high]).map(drop)
        }
        "Not" => {
            let x = of_kind(g, Element::Bool, 0)?;
            g.one_of(op, &[], &[x]).map(drop)
        }
        "Cast" => {
            let x = any(g, 0)?;
            let to = g.one(&[Element::Float, Element::Float, Element::Int64, Element::Bool]);
            g.one_of(op, &[("to", Int(to as i64))], &[x]).map(drop)
        }
        _ => {
            let x = if matches!(op, "Abs" | "Neg" | "Sign" | "Identity") {
                value(g, |g, i| g.values[i].kind() != Element::Bool)?
            } else {
                float(g, 0)?
            };
            let is_parametric = matches!(op, "LeakyRelu" | "Elu" | "Celu" | "ThresholdedRelu") && g.coin();
            let approximate = [("approximate", Text("tanh"))];
            let attributes = match op {
                "Gelu" if g.coin() => &approximate[..],
                _ if is_parametric => &alpha[..],
                _ => &[],
            };
            g.one_of(op, attributes, &[x]).map(drop)
        }
    }
}

pub fn binary(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Add", "Add", "Sub", "Mul", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Mod"]);
    let x = float(g, 0)?;
    let y = match op {
        "PRelu" => constant_beside(g, x),
        "Div" | "Pow" | "Mod" if g.coin() => {
            let v = 0.5 + g.below(5) as f32 * 0.5;
            g.number(v)
        }
        _ => beside(g, x),
    };
    let fmod = [("fmod", Int(1))];
    let attributes = if op == "Mod" { &fmod[..] } else { &[] };
    match op {
        "Sum" | "Mean" | "Min" | "Max" if g.coin() => {
            let z = beside(g, x);
            g.one_of(op, attributes, &[x, y, z]).map(drop)
        }
        "Add" | "Mul" | "Sub" if g.coin() => g.one_of(op, attributes, &[y, x]).map(drop),
        _ => g.one_of(op, attributes, &[x, y]).map(drop),
    }
}

pub fn compare(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"]);
    if matches!(op, "And" | "Or" | "Xor") {
        let (x, y) = (of_kind(g, Element::Bool, 0)?, of_kind(g, Element::Bool, 0)?);
        return g.one_of(op, &[], &[x, y]).map(drop);
    }
    let x = value(g, |g, i| g.values[i].kind() != Element::Bool)?;
    let y = beside(g, x);
    g.one_of(op, &[], &[x, y]).map(drop)
}

pub fn choice(g: &mut Graph) -> Option<()> {
    let (condition, x) = (of_kind(g, Element::Bool, 0)?, float(g, 0)?);
    let y = beside(g, x);
    g.one_of("Where", &[], &[condition, x, y]).map(drop)
}

pub fn whole_numbers(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Cast"]);
    let x = of_kind(g, Element::Int64, 0)?;
    if op == "Cast" {
        return g.one_of("Cast", &[("to", Int(Element::Float as i64))], &[x]).map(drop);
    }
    let y = beside(g, x);
    g.one_of(op, &[], &[x, y]).map(drop)
}
