//! Reductions along axes.

use super::shape::{numbers, view};
use crate::graph::{Op, ValueId};
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::fold::{self, Fold};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::value::{Known, Val};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

/// Σ / number of elements.
pub fn mean(cx: &mut Cx<'_, '_, '_>, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
    let shape = cx.shape(x);
    let count = cx.simplify(&product(axes.iter().filter_map(|a| shape.get(*a))));
    let sum = cx.reduce(ReduceOp::Sum, x, axes, keep)?;
    let count = match count.as_const() {
        Some(c) => cx.f32(c as f32)?,
        None => {
            let c = cx.size_value(&count)?;
            cx.cast(c, Scalar::F32)?
        }
    };
    cx.bin(BinaryOp::Div, sum, count)
}

/// ReduceSum and its relatives. Integers are reduced as floats, exact below 2²⁴.
pub fn reduce(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let keep = n.flag("keepdims", true)?;
    let axes = match numbers(n, "axes", 1)? {
        Some(a) if !a.is_empty() => node::axes(&a, x.rank())?,
        _ if n.flag("noop_with_empty_axes", false)? => Vec::new(),
        _ => (0..x.rank()).collect(),
    };
    if let Some(v) = known(cx, n.op, &x, &axes, keep) {
        return Ok(vec![v]);
    }
    let id = cx.node(&x)?;
    let id = cx.cast(id, Scalar::F32)?;
    let over = |cx: &mut Cx<'_, '_, '_>, op: ReduceOp, v: ValueId| -> Res<ValueId> {
        if axes.is_empty() { Ok(v) } else { cx.reduce(op, v, &axes, keep) }
    };
    let out = match n.op {
        "ReduceSum" => over(cx, ReduceOp::Sum, id)?,
        "ReduceMax" => over(cx, ReduceOp::Max, id)?,
        "ReduceMin" => over(cx, ReduceOp::Min, id)?,
        "ReduceProd" => over(cx, ReduceOp::Prod, id)?,
        "ReduceMean" if axes.is_empty() => id,
        "ReduceMean" => mean(cx, id, &axes, keep)?,
        "ReduceL1" => {
            let a = cx.un(UnaryOp::Abs, id)?;
            over(cx, ReduceOp::Sum, a)?
        }
        "ReduceSumSquare" | "ReduceL2" => {
            let square = cx.bin(BinaryOp::Mul, id, id)?;
            let sum = over(cx, ReduceOp::Sum, square)?;
            if n.op == "ReduceL2" { cx.un(UnaryOp::Sqrt, sum)? } else { sum }
        }
        "ReduceLogSum" => {
            let sum = over(cx, ReduceOp::Sum, id)?;
            cx.un(UnaryOp::Log, sum)?
        }
        "ReduceLogSumExp" if axes.is_empty() => id,
        "ReduceLogSumExp" => log_sum_exp(cx, id, &axes, keep)?,
        other => return unsupported(format!("{other} is no reduction")),
    };
    let out = if x.elem.is_int() && n.op == "ReduceMean" { super::elementwise::truncated(cx, out)? } else { out };
    let out = match (x.elem, n.op) {
        // Of no truth values the largest is false and the least true.
        (Elem::Bool, "ReduceMax") => cx.bin_c(BinaryOp::Max, out, 0.0)?,
        (Elem::Bool, "ReduceMin") => cx.bin_c(BinaryOp::Min, out, 1.0)?,
        _ => out,
    };
    let out = cx.cast(out, x.elem.scalar())?;
    Ok(vec![cx.val(out, x.elem)])
}

fn known(cx: &Cx<'_, '_, '_>, op: &str, x: &Val, axes: &[usize], keep: bool) -> Option<Val> {
    let f = match op {
        "ReduceSum" => Fold::Add,
        "ReduceProd" => Fold::Mul,
        "ReduceMax" => Fold::Max,
        "ReduceMin" => Fold::Min,
        _ => return None,
    };
    let all = x.known_ints().filter(|_| axes.len() == x.rank())?;
    let (first, rest) = all.split_first()?;
    let out = rest.iter().try_fold(first.clone(), |a, b| fold::ints(f, &a, b, &cx.bounds))?;
    let shape = if keep { vec![Dim::one(); x.rank()] } else { Vec::new() };
    Some(Val::of(x.elem, shape, Known::Ints(vec![out])))
}

/// m + log Σ e^(x − m) with m the largest, which does not overflow.
fn log_sum_exp(cx: &mut Cx<'_, '_, '_>, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
    let largest = cx.reduce(ReduceOp::Max, x, axes, true)?;
    let shifted = cx.bin(BinaryOp::Sub, x, largest)?;
    let power = cx.un(UnaryOp::Exp, shifted)?;
    let sum = cx.reduce(ReduceOp::Sum, power, axes, keep)?;
    let log = cx.un(UnaryOp::Log, sum)?;
    let largest = if keep { largest } else { cx.reduce(ReduceOp::Max, x, axes, false)? };
    cx.bin(BinaryOp::Add, log, largest)
}

/// ArgMax and ArgMin.
pub fn arg(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let axis = n.axis("axis", 0, x.rank())?;
    let mut id = cx.node(&x)?;
    id = cx.cast(id, Scalar::F32)?;
    if n.op == "ArgMin" {
        id = cx.un(UnaryOp::Neg, id)?;
    }
    let last = n.flag("select_last_index", false)?;
    let extent = x.shape[axis].clone();
    if last {
        id = reversed(cx, id, axis)?;
    }
    let mut out = cx.reduce(ReduceOp::ArgMax, id, &[axis], n.flag("keepdims", true)?)?;
    if last {
        let end = cx.size_value(&(extent - Dim::one()))?;
        out = cx.bin(BinaryOp::Sub, end, out)?;
    }
    Ok(vec![cx.val(out, Elem::Int64)])
}

/// An axis backwards.
fn reversed(cx: &mut Cx<'_, '_, '_>, x: ValueId, axis: usize) -> Res<ValueId> {
    let extent = cx.shape(x).get(axis).cloned().unwrap_or_else(Dim::one);
    let count = cx.iota(std::slice::from_ref(&extent), 0, Dim::zero());
    let end = cx.size_value(&(extent - Dim::one()))?;
    let at = cx.bin(BinaryOp::Sub, end, count)?;
    let front = cx.move_axis(x, axis, 0)?;
    let taken = cx.gather(front, at)?;
    cx.move_axis(taken, 0, axis)
}

/// Softmax and LogSoftmax. Before version 13 the axes from the given one on are one axis.
pub fn softmax(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let flat = n.opset < 13 && n.domain.is_empty();
    let axis = n.axis("axis", if flat { 1 } else { -1 }, x.rank())?;
    let last = x.rank().saturating_sub(1);
    let mut id = cx.node(&x)?;
    if flat && axis < last {
        let rows = vec![product(&x.shape[..axis]), product(&x.shape[axis..])];
        id = cx.reshape(id, &rows)?;
    } else if axis < last {
        id = cx.move_axis(id, axis, last)?;
    }
    let y = if n.op == "Softmax" {
        cx.op(Op::Softmax, &[id])?
    } else {
        let own = cx.shape(id).len() - 1;
        let sum = log_sum_exp(cx, id, &[own], true)?;
        cx.bin(BinaryOp::Sub, id, sum)?
    };
    let y = if flat && axis < last { cx.reshape(y, &x.shape)? } else { y };
    let y = if !flat && axis < last { cx.move_axis(y, last, axis)? } else { y };
    Ok(vec![cx.val(y, x.elem)])
}

/// Running sums along an axis, as a product with a triangle of ones. Integers are exact below 2²⁴.
pub fn cumulative_sum(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let Some(axis) = n.input(1)?.known_ints().and_then(|a| a.first()).and_then(Dim::as_const) else {
        return unsupported("its axis depends on data");
    };
    if x.rank() == 0 {
        return malformed("sums a scalar");
    }
    let (axis, last) = (node::axis(axis, x.rank())?, x.rank() - 1);
    let extent = x.shape[axis].clone();
    let square = [extent.clone(), extent];
    let (from, to) = (cx.iota(&square, 0, Dim::zero()), cx.iota(&square, 1, Dim::zero()));
    let (a, b) = if n.flag("reverse", false)? { (to, from) } else { (from, to) };
    let f = if n.flag("exclusive", false)? { BinaryOp::Lt } else { BinaryOp::Le };
    let counts = cx.bin(f, a, b)?;
    let ones = cx.cast(counts, Scalar::F32)?;
    let raised = if last == 0 { view(cx, &x, vec![Dim::one(), x.shape[0].clone()])? } else { x.clone() };
    let id = cx.node(&raised)?;
    let id = cx.cast(id, Scalar::F32)?;
    let id = if last == 0 { id } else { cx.move_axis(id, axis, last)? };
    let sum = cx.matmul(id, ones, false)?;
    let sum = if last == 0 { cx.reshape(sum, &x.shape)? } else { cx.move_axis(sum, last, axis)? };
    let sum = if x.elem.is_int() { cx.un(UnaryOp::Round, sum)? } else { sum };
    let out = cx.cast(sum, x.elem.scalar())?;
    Ok(vec![cx.val(out, x.elem)])
}
