//! Padding.

use super::shape::ints;
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// Pad; negative amounts cut.
pub fn pad(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let amounts = match n.ints("pads")? {
        Some(p) => p.iter().map(|v| Dim::constant(*v)).collect(),
        None => ints(n, 1, "its amount")?,
    };
    let axes: Vec<usize> = match n.optional(3) {
        Some(_) => {
            let list: Option<Vec<i64>> = ints(n, 3, "its axes")?.iter().map(Dim::as_const).collect();
            let Some(list) = list else { return unsupported("has axes that depend on sizes") };
            list.iter().map(|a| node::axis(*a, x.rank())).collect::<Res<_>>()?
        }
        None => (0..x.rank()).collect(),
    };
    if amounts.len() != 2 * axes.len() {
        return malformed(format!("has {} amounts for {} axes", amounts.len(), axes.len()));
    }
    let mut id = cx.node(&x)?;
    let mode = n.text("mode", "constant")?;
    let fill = match n.optional(2) {
        Some(v) => {
            let v = cx.node(&v.clone())?;
            cx.reshape(v, &[])?
        }
        None if x.elem == Elem::Bool => cx.truth(false)?,
        None => cx.number(x.elem.scalar(), f64::from(n.float("value", 0.0)?))?,
    };
    for (k, axis) in axes.iter().enumerate() {
        id = along(cx, id, *axis, (&amounts[k], &amounts[k + axes.len()]), &mode, fill)?;
    }
    Ok(vec![cx.val(id, x.elem)])
}

/// An axis with `before` and `after` more elements.
fn along(
    cx: &mut Cx<'_, '_, '_>,
    x: ValueId,
    axis: usize,
    (before, after): (&Dim, &Dim),
    mode: &str,
    fill: ValueId,
) -> Res<ValueId> {
    if before.is(0) && after.is(0) {
        return Ok(x);
    }
    let extent = cx.shape(x).get(axis).cloned().unwrap_or_else(Dim::one);
    let len = cx.simplify(&(before.clone() + extent.clone() + after.clone()));
    let none_added = |d: &Dim| d.as_const().is_some_and(|c| c <= 0);
    if none_added(before) && none_added(after) {
        return cx.slice(x, axis, &(Dim::zero() - before.clone()), &len);
    }
    let mut at = cx.iota(std::slice::from_ref(&len), 0, Dim::zero() - before.clone());
    let size = cx.size_value(&extent)?;
    match mode {
        "constant" | "edge" => {}
        "reflect" => {
            // The distance from the first element, then from the last one, in a period of twice the extent less two.
            let last = cx.size_value(&(extent.clone() - Dim::one()))?;
            let distance = cx.un(UnaryOp::Abs, at)?;
            let beyond = cx.bin(BinaryOp::Sub, last, distance)?;
            let beyond = cx.un(UnaryOp::Abs, beyond)?;
            at = cx.bin(BinaryOp::Sub, last, beyond)?;
        }
        "wrap" => {
            let positive = cx.bin(BinaryOp::Add, at, size)?;
            let turns = cx.bin(BinaryOp::Div, positive, size)?;
            let whole = cx.bin(BinaryOp::Mul, turns, size)?;
            at = cx.bin(BinaryOp::Sub, positive, whole)?;
        }
        other => return unsupported(format!("has the mode `{other}`")),
    }
    let front = cx.move_axis(x, axis, 0)?;
    let taken = cx.gather(front, at)?;
    let mut out = cx.move_axis(taken, 0, axis)?;
    if mode == "constant" {
        let inside = within(cx, at, size)?;
        let mut shape = vec![Dim::one(); cx.shape(out).len()];
        shape[axis] = len;
        let inside = cx.reshape(inside, &shape)?;
        out = cx.select(inside, out, fill)?;
    }
    Ok(out)
}

/// 0 ≤ at < size.
pub fn within(cx: &mut Cx<'_, '_, '_>, at: ValueId, size: ValueId) -> Res<ValueId> {
    let zero = cx.i32(0)?;
    let (low, high) = (cx.bin(BinaryOp::Le, zero, at)?, cx.bin(BinaryOp::Lt, at, size)?);
    cx.bin(BinaryOp::And, low, high)
}
