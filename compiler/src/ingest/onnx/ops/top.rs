//! The largest elements of an axis.

use super::shape::ints;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

/// Extent of an axis that is ranked, at most: the work is its square.
const RANKED: i64 = 4096;

/// TopK, sorted: the rank of an element is the number of elements before it, larger ones and equal ones of lower index;
/// result r is the element of rank r. Integers are compared as floats, exact below 2²⁴.
pub fn top_k(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let k = match n.int_if("k")? {
        Some(k) => Some(Dim::constant(k)),
        None => ints(n, 1, "its number of elements")?.first().cloned(),
    };
    let Some(k) = k.filter(|k| cx.bounds.nonneg(k)) else { return malformed("takes no number of elements") };
    let axis = n.axis("axis", -1, x.rank())?;
    let last = x.rank() - 1;
    let Some(extent) = x.shape.get(axis).and_then(Dim::as_const).filter(|e| *e <= RANKED) else {
        return unsupported(format!("ranks an axis of more than {RANKED} elements or of an extent that is not fixed"));
    };
    if !cx.bounds.le(&k, &Dim::constant(extent)) {
        return malformed(format!("takes {k} of {extent} elements"));
    }
    let id = cx.node(&x)?;
    let id = cx.cast(id, Scalar::F32)?;
    let row = cx.move_axis(id, axis, last)?;
    let key = if n.flag("largest", true)? { row } else { cx.un(UnaryOp::Neg, row)? };
    let shape = cx.shape(row);
    let with = |tail: [Dim; 2]| -> Vec<Dim> { shape.iter().take(last).cloned().chain(tail).collect() };
    let count = Dim::constant(extent);
    let own = cx.reshape(key, &with([count.clone(), Dim::one()]))?;
    let other = cx.reshape(key, &with([Dim::one(), count.clone()]))?;
    let square = [count.clone(), count.clone()];
    let (i, j) = (cx.iota(&square, 0, Dim::zero()), cx.iota(&square, 1, Dim::zero()));
    let lower = cx.bin(BinaryOp::Lt, j, i)?;
    let (larger, equal) = (cx.bin(BinaryOp::Lt, own, other)?, cx.bin(BinaryOp::Eq, own, other)?);
    let tied = cx.bin(BinaryOp::And, equal, lower)?;
    let before = cx.bin(BinaryOp::Or, larger, tied)?;
    let before = cx.cast(before, Scalar::F32)?;
    let rank = cx.reduce(ReduceOp::Sum, before, &[last + 1], false)?;
    let rank = cx.reshape(rank, &with([Dim::one(), count.clone()]))?;
    let places = cx.iota(&[k.clone(), count.clone()], 0, Dim::zero());
    let places = cx.cast(places, Scalar::F32)?;
    let taken = cx.bin(BinaryOp::Eq, rank, places)?;
    let zero = cx.f32(0.0)?;
    let value = cx.reshape(row, &with([Dim::one(), count.clone()]))?;
    let value = cx.select(taken, value, zero)?;
    let value = cx.reduce(ReduceOp::Sum, value, &[last + 1], false)?;
    let index = cx.iota(&[k, count], 1, Dim::zero());
    let index = cx.cast(index, Scalar::F32)?;
    let index = cx.select(taken, index, zero)?;
    let index = cx.reduce(ReduceOp::Sum, index, &[last + 1], false)?;
    let (value, index) = (cx.move_axis(value, last, axis)?, cx.move_axis(index, last, axis)?);
    let (value, index) = (cx.cast(value, x.elem.scalar())?, cx.cast(index, Scalar::I32)?);
    Ok(vec![cx.val(value, x.elem), cx.val(index, Elem::Int64)])
}
