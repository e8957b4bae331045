//! Operators on quantised values that have a form on floats: operands are dequantised, the float form is computed, the
//! result is quantised. Results that lie between two integers may be off by one from those of integer arithmetic.

use super::{conv, elementwise, index, quant, reduce, shape};
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::proto::{AttributeProto, attribute_type};
use crate::ingest::onnx::value::Val;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// The standard operator `op` on these operands, with the attributes of `n` that it shares.
fn standard<'b>(n: &Node<'b>, op: &'b str, inputs: Vec<Option<Val>>) -> Node<'b> {
    Node { op, domain: "", opset: 21, inputs, attributes: n.attributes.clone(), outputs: vec!["y"] }
}

fn integer(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: attribute_type::INT, i, ..Default::default() }
}

fn only(values: Vec<Val>) -> Res<Val> {
    match values.into_iter().next() {
        Some(v) => Ok(v),
        None => malformed("has no result"),
    }
}

/// Operand `at` with the scale and the zero point behind it, as floats; scales of an axis belong to `axis`.
fn floats(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>, at: usize, axis: i64) -> Res<Val> {
    let inputs = vec![Some(n.input(at)?.clone()), Some(n.input(at + 1)?.clone()), n.optional(at + 2).cloned()];
    let axis = integer("axis", axis);
    let attributes = vec![("axis", &axis)];
    only(quant::dequantize(cx, &Node { attributes, ..standard(n, "DequantizeLinear", inputs) })?)
}

/// `y` quantised by the scale and the zero point at these operands; without one to the type of `like`.
fn quantized(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>, y: Val, at: usize, like: Elem) -> Res<Vec<Val>> {
    let zero = n.optional(at + 1).cloned();
    if zero.is_none() && like != Elem::Uint8 {
        return unsupported(format!("gives {like} without a zero point"));
    }
    let inputs = vec![Some(y), Some(n.input(at)?.clone()), zero];
    quant::quantize(cx, &Node { attributes: Vec::new(), ..standard(n, "QuantizeLinear", inputs) })
}

fn channels_first(n: &Node<'_>) -> Res<()> {
    match n.flag("channels_last", false)? {
        true => unsupported("has its channels last"),
        false => Ok(()),
    }
}

/// QLinearAdd and QLinearMul: a, scale, zero, b, scale, zero, scale and zero of the result.
pub fn binary(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (a, b) = (floats(cx, n, 0, 0)?, floats(cx, n, 3, 0)?);
    let y = elementwise::apply(cx, if n.op == "QLinearAdd" { "Add" } else { "Mul" }, &a, &b)?;
    quantized(cx, n, y, 6, n.input(0)?.elem)
}

/// Operators of one operand: x, scale, zero, scale and zero of the result.
pub fn unary(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    channels_first(n)?;
    let x = floats(cx, n, 0, 0)?;
    let name = n.op.strip_prefix("QLinear").unwrap_or(n.op);
    let call = standard(n, name, vec![Some(x)]);
    let y = match name {
        "Sigmoid" => elementwise::unary(cx, &call)?,
        "LeakyRelu" => super::activation::composed(cx, &call)?,
        "Softmax" => reduce::softmax(cx, &Node { opset: n.int("opset", 13)?, ..call })?,
        "AveragePool" => conv::pool(cx, &call)?,
        _ => conv::global_pool(cx, &call)?,
    };
    quantized(cx, n, only(y)?, 3, n.input(0)?.elem)
}

/// QLinearConcat: scale and zero of the result, then each part with its scale and zero.
pub fn concat(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let starts: Vec<usize> = (2..n.inputs.len()).step_by(3).collect();
    let parts = starts.iter().map(|at| floats(cx, n, *at, 0)).collect::<Res<Vec<Val>>>()?;
    let Some(rank) = parts.first().map(Val::rank) else { return malformed("joins nothing") };
    let axis = n.axis("axis", 0, rank)?;
    let y = shape::join(cx, &parts, axis)?;
    quantized(cx, n, y, 0, n.input(2)?.elem)
}

/// QLinearConv: x, scale, zero, w, scale, zero, scale and zero of the result, and a bias in units of both scales.
pub fn convolution(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    channels_first(n)?;
    let (x, w) = (floats(cx, n, 0, 1)?, floats(cx, n, 3, 0)?);
    let bias = match n.optional(8).cloned() {
        Some(bias) => {
            let id = cx.node(&bias)?;
            let mut y = cx.cast(id, Scalar::F32)?;
            for at in [1, 4] {
                let v = n.input(at)?.clone();
                let s = cx.node(&v)?;
                let s = if v.shape.iter().all(|d| d.is(1)) { cx.reshape(s, &[])? } else { s };
                y = cx.bin(BinaryOp::Mul, y, s)?;
            }
            Some(cx.val(y, Elem::Float))
        }
        None => None,
    };
    let y = only(conv::conv(cx, &standard(n, "Conv", vec![Some(x), Some(w), bias]))?)?;
    quantized(cx, n, y, 6, n.input(0)?.elem)
}

/// ConvInteger: integers less their zero points; exact while the sums stay below 2²⁴.
pub fn convolution_of_integers(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let mut centred = Vec::new();
    for (at, zero) in [(0, 2), (1, 3)] {
        let v = elementwise::cast_to(cx, &n.input(at)?.clone(), Elem::Float)?;
        let v = match n.optional(zero).cloned() {
            Some(z) if z.shape.iter().all(|d| d.is(1)) => {
                let z = elementwise::cast_to(cx, &z, Elem::Float)?;
                let (id, z) = (cx.node(&v)?, cx.node(&z)?);
                let z = cx.reshape(z, &[])?;
                let y = cx.bin(BinaryOp::Sub, id, z)?;
                cx.val(y, Elem::Float)
            }
            Some(_) => return unsupported("has a zero point for each channel"),
            None => v,
        };
        centred.push(Some(v));
    }
    let y = only(conv::conv(cx, &standard(n, "Conv", centred))?)?;
    let id = cx.node(&y)?;
    let y = cx.un(UnaryOp::Round, id)?;
    let y = cx.cast(y, Scalar::I32)?;
    Ok(vec![cx.val(y, Elem::Int32)])
}

/// GatherBlockQuantized: rows of a table of 4- or 8-bit integers in blocks, dequantised.
pub fn gather_blocks(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (data, scale, zero) = (n.input(0)?.clone(), n.input(2)?.clone(), n.optional(3).cloned());
    if !matches!(data.elem, Elem::Int4 | Elem::Uint4) {
        return unsupported(format!("has a table of {}, not of 4-bit integers", data.elem));
    }
    let rank = data.rank();
    let axis = integer("axis", n.axis("quantize_axis", 1, rank)? as i64);
    let block = integer("block_size", n.int("block_size", 128)?);
    let call = standard(n, "DequantizeLinear", vec![Some(data), Some(scale), zero]);
    let attributes = vec![("axis", &axis), ("block_size", &block)];
    let table = only(quant::dequantize(cx, &Node { attributes, ..call })?)?;
    let axis = integer("axis", n.axis("gather_axis", 0, rank)? as i64);
    let call = standard(n, "Gather", vec![Some(table), Some(n.input(1)?.clone())]);
    index::gather(cx, &Node { attributes: vec![("axis", &axis)], ..call })
}
