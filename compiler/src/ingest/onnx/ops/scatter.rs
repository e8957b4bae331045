//! Writing at positions. Positions that are counted become a selection. No kernel writes where data say: there each
//! element of the result looks for what is written to it.

use super::index::{columns, counted};
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::coordinate::{self, Coordinate};
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};

const DATA: &str = "writes at many positions that depend on data or follow no rule";
/// Pairs of a place and an update that are looked at.
const MOST_PAIRS: i64 = 1 << 22;

/// `x` with the box that begins at `start` replaced by `update`, an array of as many axes.
fn replaced(cx: &mut Cx<'_, '_, '_>, x: ValueId, update: ValueId, start: &[Dim]) -> Res<ValueId> {
    let (own, new) = (cx.shape(x), cx.shape(update));
    let mut inside: Option<ValueId> = None;
    let mut spread = update;
    for (axis, (extent, len)) in own.iter().zip(&new).enumerate() {
        let first = start.get(axis).cloned().unwrap_or_default();
        if first.is(0) && extent == len {
            continue;
        }
        // Bring element i of the update to place first + i by gathering at clamped positions.
        let at = cx.iota(std::slice::from_ref(extent), 0, Dim::zero() - first.clone());
        let front = cx.move_axis(spread, axis, 0)?;
        let taken = cx.gather(front, at)?;
        spread = cx.move_axis(taken, 0, axis)?;
        let place = cx.iota(&own, axis, Dim::zero());
        let (low, high) = (cx.size_value(&first)?, cx.size_value(&(first + len.clone()))?);
        let (after, before) = (cx.bin(BinaryOp::Le, low, place)?, cx.bin(BinaryOp::Lt, place, high)?);
        let here = cx.bin(BinaryOp::And, after, before)?;
        inside = Some(match inside {
            Some(i) => cx.bin(BinaryOp::And, i, here)?,
            None => here,
        });
    }
    match inside {
        Some(i) => cx.select(i, spread, x),
        None => Ok(update),
    }
}

/// ScatterND at the positions of a box.
pub fn scatter_nd(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, ids, update) = (n.input(0)?.clone(), n.input(1)?.clone(), n.input(2)?.clone());
    let how = n.text("reduction", "none")?;
    let parts = columns(cx, &ids)?;
    if parts.len() > x.rank() {
        return malformed(format!("has {} coordinates for {} axes", parts.len(), x.rank()));
    }
    let lead: Vec<Dim> = ids.shape[..ids.rank() - 1].to_vec();
    if let (Some(places), true) = (in_box(cx, &x, &parts, &lead)?, how == "none") {
        return boxed(cx, &x, &update, &lead, parts.len(), places);
    }
    let own = x.shape[..parts.len()].to_vec();
    let mut at = Vec::with_capacity(parts.len());
    for (part, extent) in parts.iter().zip(&own) {
        at.push(counted(cx, part, extent)?);
    }
    let at = super::index::linear(cx, &at, &own)?;
    let out = searched(cx, (&x, &own), at, (&update, product(&lead)), &how)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// Where the updates of a box lie: its first place, and the axis of the indices that each axis of the box follows.
struct Places {
    start: Vec<Dim>,
    order: Vec<Option<usize>>,
}

/// The box that the positions fill; `None` where they fill none.
fn in_box(cx: &mut Cx<'_, '_, '_>, x: &Val, parts: &[Val], lead: &[Dim]) -> Res<Option<Places>> {
    let mut start = vec![Dim::zero(); x.rank()];
    let mut order = Vec::new();
    for (k, p) in parts.iter().enumerate() {
        let at = counted(cx, p, &x.shape[k].clone())?;
        match coordinate::of(cx.b.built(), at) {
            Some(Coordinate { axis: Some(a), offset }) if !order.contains(&Some(a)) => {
                start[k] = offset;
                order.push(Some(a));
            }
            Some(Coordinate { axis: None, offset }) => {
                start[k] = offset;
                order.push(None);
            }
            _ => return Ok(None),
        }
    }
    // Axes of the indices that no coordinate counts along would write one place several times.
    for (a, d) in lead.iter().enumerate() {
        if !order.contains(&Some(a)) && !d.is(1) {
            return Ok(None);
        }
    }
    Ok(Some(Places { start, order }))
}

fn boxed(
    cx: &mut Cx<'_, '_, '_>,
    x: &Val,
    update: &Val,
    lead: &[Dim],
    coordinates: usize,
    Places { start, order }: Places,
) -> Res<Vec<Val>> {
    let id = cx.node(update)?;
    let named: Vec<usize> = order.iter().flatten().copied().collect();
    let rest: Vec<usize> = (lead.len()..update.rank()).collect();
    let single: Vec<usize> = (0..lead.len()).filter(|a| !named.contains(a)).collect();
    let perm: Vec<usize> = named.iter().chain(&rest).chain(&single).copied().collect();
    let moved = cx.transpose(id, &perm)?;
    let shape: Vec<Dim> = order
        .iter()
        .map(|a| a.and_then(|a| lead.get(a).cloned()).unwrap_or_else(Dim::one))
        .chain(x.shape[coordinates..].iter().cloned())
        .collect();
    let moved = cx.reshape(moved, &shape)?;
    let whole = cx.node(x)?;
    let out = replaced(cx, whole, moved, &start)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// `x`, whose first axes are `own`, after `count` updates are written to its places `at`, which number these axes. Of
/// several updates of a place the last one counts, or `how` combines all with what is there.
fn searched(
    cx: &mut Cx<'_, '_, '_>,
    (x, own): (&Val, &[Dim]),
    at: ValueId,
    (update, count): (&Val, Dim),
    how: &str,
) -> Res<ValueId> {
    let places = product(own);
    let rest = product(&x.shape[own.len()..]);
    match (places.as_const(), count.as_const()) {
        (Some(p), Some(u)) if p.saturating_mul(u) <= MOST_PAIRS => {}
        _ => return unsupported(DATA),
    }
    if how != "none" && !x.elem.is_float() {
        return unsupported(format!("combines {} by `{how}`", x.elem));
    }
    let whole = cx.node(x)?;
    let whole = cx.reshape(whole, &[places.clone(), rest.clone()])?;
    let new = cx.node(update)?;
    let new = cx.reshape(new, &[count.clone(), rest.clone()])?;
    let at = cx.reshape(at, &[Dim::one(), count.clone()])?;
    let place = cx.iota(&[places.clone(), count.clone()], 0, Dim::zero());
    let here = cx.bin(BinaryOp::Eq, place, at)?;
    let combined = |cx: &mut Cx<'_, '_, '_>, op: ReduceOp, nothing: f32| -> Res<ValueId> {
        let here = cx.reshape(here, &[places.clone(), count.clone(), Dim::one()])?;
        let new = cx.reshape(new, &[Dim::one(), count.clone(), rest.clone()])?;
        let nothing = cx.f32(nothing)?;
        let mine = cx.select(here, new, nothing)?;
        cx.reduce(op, mine, &[1], false)
    };
    let out = match how {
        "none" => {
            let number = cx.iota(&[places.clone(), count.clone()], 1, Dim::one());
            let zero = cx.i32(0)?;
            let number = cx.select(here, number, zero)?;
            let number = cx.cast(number, Scalar::F32)?;
            let last = cx.reduce(ReduceOp::ArgMax, number, &[1], false)?;
            let any = cx.reduce(ReduceOp::Max, number, &[1], true)?;
            let nothing = cx.f32(0.0)?;
            let any = cx.bin(BinaryOp::Lt, nothing, any)?;
            let taken = cx.gather(new, last)?;
            cx.select(any, taken, whole)?
        }
        "add" => {
            let sum = combined(cx, ReduceOp::Sum, 0.0)?;
            cx.bin(BinaryOp::Add, whole, sum)?
        }
        "mul" => {
            let all = combined(cx, ReduceOp::Prod, 1.0)?;
            cx.bin(BinaryOp::Mul, whole, all)?
        }
        "max" => {
            let most = combined(cx, ReduceOp::Max, -3.0e38)?;
            cx.bin(BinaryOp::Max, whole, most)?
        }
        "min" => {
            let least = combined(cx, ReduceOp::Min, 3.0e38)?;
            cx.bin(BinaryOp::Min, whole, least)?
        }
        other => return unsupported(format!("combines by `{other}`")),
    };
    cx.reshape(out, &x.shape)
}

/// ScatterElements.
pub fn scatter_elements(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, ids, update) = (n.input(0)?.clone(), n.input(1)?.clone(), n.input(2)?.clone());
    let how = n.text("reduction", "none")?;
    let axis = n.axis("axis", 0, x.rank())?;
    if ids.rank() != x.rank() || update.rank() != x.rank() {
        return malformed("has operands of unlike numbers of axes");
    }
    let at = counted(cx, &ids, &x.shape[axis].clone())?;
    let mut start = vec![Dim::zero(); x.rank()];
    let mut follows = true;
    match coordinate::of(cx.b.built(), at) {
        Some(Coordinate { axis: Some(a), offset }) if a == axis => start[axis] = offset,
        Some(Coordinate { axis: None, offset }) if ids.shape[axis].is(1) => start[axis] = offset,
        _ => follows = false,
    }
    if !follows || how != "none" {
        let mut places = Vec::with_capacity(x.rank());
        for k in 0..x.rank() {
            places.push(if k == axis { at } else { cx.iota(&ids.shape, k, Dim::zero()) });
        }
        let places = super::index::linear(cx, &places, &x.shape)?;
        let out = searched(cx, (&x, &x.shape), places, (&update, product(&ids.shape)), &how)?;
        return Ok(vec![cx.val(out, x.elem)]);
    }
    let (whole, new) = (cx.node(&x)?, cx.node(&update)?);
    let out = replaced(cx, whole, new, &start)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// Writes an update into a cache along an axis, each row of the batch from its own position on; the position may depend
/// on data.
pub fn tensor_scatter(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, update) = (n.input(0)?.clone(), n.input(1)?.clone());
    let axis = n.axis("axis", -2, x.rank())?;
    if axis == 0 || update.rank() != x.rank() {
        return malformed("writes along the batch axis, or has operands of unlike numbers of axes");
    }
    let circular = match n.text("mode", "linear")?.as_str() {
        "linear" => false,
        "circular" => true,
        other => return unsupported(format!("has the mode `{other}`")),
    };
    let (extent, len) = (x.shape[axis].clone(), update.shape[axis].clone());
    let (whole, new) = (cx.node(&x)?, cx.node(&update)?);
    let batch = x.shape[0].clone();
    let first = match n.optional(2) {
        Some(v) => cx.node(v)?,
        None => {
            let zero = cx.i32(0)?;
            cx.broadcast(zero, std::slice::from_ref(&batch))?
        }
    };
    let first = cx.reshape(first, &[batch.clone(), Dim::one()])?;
    // Place t of row b takes element t − first(b) of the update, if that exists.
    let place = cx.iota(&[batch.clone(), extent.clone()], 1, Dim::zero());
    let mut at = cx.bin(BinaryOp::Sub, place, first)?;
    if circular {
        let negative = cx.bin_c(BinaryOp::Lt, at, 0.0)?;
        let size = cx.size_value(&extent)?;
        let up = cx.bin(BinaryOp::Add, at, size)?;
        at = cx.select(negative, up, at)?;
    }
    let end = cx.size_value(&len)?;
    let zero = cx.i32(0)?;
    let (after, before) = (cx.bin(BinaryOp::Le, zero, at)?, cx.bin(BinaryOp::Lt, at, end)?);
    let inside = cx.bin(BinaryOp::And, after, before)?;
    let low = cx.bin(BinaryOp::Max, at, zero)?;
    let last = cx.size_value(&(len.clone() - Dim::one()))?;
    let at = cx.bin(BinaryOp::Min, low, last)?;
    let row = cx.iota(&[batch.clone(), extent.clone()], 0, Dim::zero());
    let index = super::index::linear(cx, &[row, at], &[batch.clone(), len.clone()])?;
    // [B, L, …] as a table of B·L rows.
    let front = cx.move_axis(new, axis, 1)?;
    let mut table = cx.shape(front);
    table.splice(0..2, [&batch * &len]);
    let flat = cx.reshape(front, &table)?;
    let taken = cx.gather(flat, index)?;
    let spread = cx.move_axis(taken, 1, axis)?;
    let mut mask_shape = vec![Dim::one(); x.rank()];
    mask_shape[0] = batch;
    mask_shape[axis] = extent;
    let mask = cx.reshape(inside, &mask_shape)?;
    let out = cx.select(mask, spread, whole)?;
    Ok(vec![cx.val(out, x.elem)])
}
