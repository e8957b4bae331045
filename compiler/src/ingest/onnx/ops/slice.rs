//! Parts of a tensor: slices and splits.

use super::shape::{ints, picked};
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Assumption, Res, Stop, malformed, unsupported};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::value::{Val, strides, walk};
use frit_kernels::dim::Dim;
use frit_kernels::spec::BinaryOp;

/// The cut along one axis: first element, number of elements, step.
#[derive(Clone, Debug)]
struct Cut {
    axis: usize,
    start: Dim,
    len: Dim,
    step: i64,
}

/// A bound of a slice brought into `[0, extent]`.
///
/// An upper bound that is a size of the model, against an axis whose extent is a number, is taken to lie within: the
/// model cannot mean a table to be shorter than what it cuts out of it, and the size gets that number as its limit.
fn clamped(cx: &Cx<'_, '_, '_>, at: &Dim, extent: &Dim) -> Res<Dim> {
    let b = &cx.bounds;
    let far = i64::from(i32::MAX);
    match at.as_const() {
        Some(v) if v >= far => return Ok(extent.clone()),
        Some(v) if v <= -far => return Ok(Dim::zero()),
        _ => {}
    }
    let negative = !b.nonneg(at) && (at.as_const().is_some() || b.nonneg(&(Dim::zero() - at.clone())));
    let at = if negative { at.clone() + extent.clone() } else { at.clone() };
    let at = cx.simplify(&at);
    if b.nonneg(&at) && b.le(&at, extent) {
        return Ok(at);
    }
    if let (Some(name), Some(max)) = (at.as_size(), extent.as_const()) {
        let max = u64::try_from(max).unwrap_or(0);
        return Err(Stop::Assume(Assumption::AtMost(name.to_owned(), at.clone(), max)));
    }
    Ok(cx.simplify(&at.larger(&Dim::zero()).smaller(extent)))
}

fn cut(cx: &Cx<'_, '_, '_>, x: &Val, axis: usize, start: &Dim, end: &Dim, step: i64) -> Res<Cut> {
    let extent = x.shape.get(axis).cloned().unwrap_or_else(Dim::one);
    if step == 0 {
        return malformed("has a step of 0");
    }
    if step > 0 {
        let (start, end) = (clamped(cx, start, &extent)?, clamped(cx, end, &extent)?);
        let span = cx.simplify(&(end - start.clone()));
        let span = if cx.bounds.nonneg(&span) { span } else { span.larger(&Dim::zero()) };
        let len = cx.simplify(&span.ceil_div(&Dim::constant(step)));
        return Ok(Cut { axis, start, len, step });
    }
    // Counting down: from at most the last element to above `end`, which may be "before the first".
    let (far, last) = (i64::from(i32::MAX), extent.clone() - Dim::one());
    let position = |d: &Dim, low: i64| -> Res<Dim> {
        let low = Dim::constant(low);
        let from_end = |v: &Dim| cx.simplify(&(v.clone() + extent.clone()).larger(&low));
        match d.as_const() {
            Some(v) if v >= far || v == -1 => Ok(last.clone()),
            Some(v) if v <= -far => Ok(low),
            Some(v) if v < 0 => Ok(from_end(d)),
            None if cx.bounds.nonneg(&(Dim::zero() - d.clone() - Dim::one())) => Ok(from_end(d)),
            _ if cx.bounds.nonneg(d) => Ok(cx.simplify(&d.smaller(&last))),
            _ => unsupported(format!("counts down to or from {d}, which may lie on either side of 0")),
        }
    };
    let (start, end) = (position(start, 0)?, position(end, -1)?);
    let span = cx.simplify(&(start.clone() - end));
    let span = if cx.bounds.nonneg(&span) { span } else { span.larger(&Dim::zero()) };
    let len = cx.simplify(&span.ceil_div(&Dim::constant(-step)));
    Ok(Cut { axis, start, len, step })
}

/// Every `step`-th element of an axis, or the elements backwards: by gathering at computed positions.
fn strided(cx: &mut Cx<'_, '_, '_>, x: ValueId, c: &Cut) -> Res<ValueId> {
    let count = cx.iota(std::slice::from_ref(&c.len), 0, Dim::zero());
    let scaled = cx.bin_c(BinaryOp::Mul, count, c.step as f64)?;
    let first = cx.size_value(&c.start)?;
    let at = cx.bin(BinaryOp::Add, scaled, first)?;
    let front = cx.move_axis(x, c.axis, 0)?;
    let taken = cx.gather(front, at)?;
    cx.move_axis(taken, 0, c.axis)
}

fn apply(cx: &mut Cx<'_, '_, '_>, x: &Val, c: &Cut) -> Res<Val> {
    if let (Some(own), Some(start), Some(len)) = (x.fixed_shape(), c.start.as_const(), c.len.as_const())
        && x.known.is_some()
    {
        let mut to = own.clone();
        to[c.axis] = usize::try_from(len).unwrap_or(0);
        let mut steps: Vec<isize> = strides(&own).into_iter().map(|s| s as isize).collect();
        let first = start as isize * steps[c.axis];
        steps[c.axis] *= c.step as isize;
        if let Some(v) = picked(x, &to, &walk(&to, first, &steps)) {
            return Ok(v);
        }
    }
    let whole = c.start.is(0) && c.step == 1 && x.shape.get(c.axis) == Some(&c.len);
    if whole {
        return Ok(x.clone());
    }
    let id = cx.node(x)?;
    let out = if c.step == 1 { cx.slice(id, c.axis, &c.start, &c.len)? } else { strided(cx, id, c)? };
    Ok(cx.val(out, x.elem))
}

/// Slice.
pub fn slice(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let mut x = n.input(0)?.clone();
    let list = |name: &str, i: usize| -> Res<Option<Vec<Dim>>> {
        match (n.ints(name)?, n.optional(i)) {
            (Some(v), _) => Ok(Some(v.iter().map(|v| Dim::constant(*v)).collect())),
            (None, Some(_)) => ints(n, i, name).map(Some),
            _ => Ok(None),
        }
    };
    let (Some(starts), Some(ends)) = (list("starts", 1)?, list("ends", 2)?) else {
        return malformed("has no starts or no ends");
    };
    let axes = match list("axes", 3)? {
        Some(a) => a,
        None => (0..starts.len()).map(Dim::from).collect(),
    };
    let steps = if n.opset >= 10 { list("steps", 4)? } else { None };
    let steps = steps.unwrap_or_else(|| vec![Dim::one(); starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return malformed("has starts, ends, axes and steps of unlike number");
    }
    for k in 0..starts.len() {
        let (Some(axis), Some(step)) = (axes[k].as_const(), steps[k].as_const()) else {
            return unsupported("has axes or steps that depend on sizes");
        };
        let c = cut(cx, &x, node::axis(axis, x.rank())?, &starts[k], &ends[k], step)?;
        x = apply(cx, &x, &c)?;
    }
    Ok(vec![x])
}

/// Split.
pub fn split(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let axis = n.axis("axis", 0, x.rank())?;
    let extent = x.shape[axis].clone();
    let parts: Vec<Dim> = match (n.ints("split")?, n.optional(1)) {
        (Some(s), _) => s.iter().map(|v| Dim::constant(*v)).collect(),
        (None, Some(_)) => ints(n, 1, "its parts")?,
        (None, None) => {
            let count = usize::try_from(n.int("num_outputs", n.outputs.len() as i64)?).unwrap_or(0).max(1);
            let each = cx.simplify(&extent.ceil_div(&Dim::from(count)));
            let mut left = extent.clone();
            (0..count)
                .map(|_| {
                    let own = cx.simplify(&each.smaller(&left));
                    left = left.clone() - own.clone();
                    own
                })
                .collect()
        }
    };
    if parts.len() < n.outputs.len() {
        return malformed(format!("makes {} parts for {} results", parts.len(), n.outputs.len()));
    }
    let sum = parts.iter().fold(Dim::zero(), |s, p| s + p.clone());
    cx.equate(&extent, &sum)?;
    let mut out = Vec::with_capacity(parts.len());
    let mut start = Dim::zero();
    for len in parts {
        let c = Cut { axis, start: start.clone(), len: len.clone(), step: 1 };
        out.push(apply(cx, &x, &c)?);
        start = cx.simplify(&(start + len));
    }
    Ok(out)
}
