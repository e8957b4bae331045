//! Convolution and pooling. The window of every place is taken by gathering at computed positions, or as a view where
//! windows neither overlap nor leave the tensor; a convolution is then a product with the weight, which fusion lets read
//! the windows where they lie. Where every channel has one filter of its own, it is a sum over the taps instead.

use super::pad::within;
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::{Data, Val};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};

/// A window along one axis.
#[derive(Clone, Debug)]
struct Window {
    size: i64,
    stride: i64,
    dilation: i64,
    /// Padding in front of the tensor and behind it.
    before: Dim,
    after: Dim,
    /// Places.
    places: Dim,
    /// No place reaches beyond the tensor.
    inside: bool,
}

fn list(n: &Node<'_>, name: &str, len: usize, default: i64) -> Res<Vec<i64>> {
    match n.ints(name)? {
        Some(v) if v.len() == len && v.iter().all(|x| (0..=1 << 20).contains(x)) => Ok(v.to_vec()),
        Some(v) => malformed(format!("has the {name} {v:?} for {len} numbers")),
        None => Ok(vec![default; len]),
    }
}

fn windows(cx: &Cx<'_, '_, '_>, n: &Node<'_>, spatial: &[Dim], sizes: &[i64]) -> Res<Vec<Window>> {
    let k = spatial.len();
    if sizes.len() != k || sizes.iter().any(|s| *s < 1) {
        return malformed(format!("has windows of {sizes:?} for {k} axes"));
    }
    let (strides, dilations) = (list(n, "strides", k, 1)?, list(n, "dilations", k, 1)?);
    let pads = list(n, "pads", 2 * k, 0)?;
    let auto = n.text("auto_pad", "NOTSET")?;
    let ceil = n.flag("ceil_mode", false)?;
    let mut out = Vec::with_capacity(k);
    for i in 0..k {
        let (stride, dilation) = (strides[i].max(1), dilations[i].max(1));
        let reach = dilation * (sizes[i] - 1) + 1;
        let extent = &spatial[i];
        let (before, after) = match auto.as_str() {
            "NOTSET" | "" => (Dim::constant(pads[i]), Dim::constant(pads[i + k])),
            "VALID" => (Dim::zero(), Dim::zero()),
            "SAME_UPPER" | "SAME_LOWER" => {
                let total = same_padding(extent, stride, reach);
                let small = total.div(&Dim::from(2u64));
                let large = total - small.clone();
                if auto == "SAME_UPPER" { (small, large) } else { (large, small) }
            }
            other => return unsupported(format!("pads by the rule `{other}`")),
        };
        let (before, after) = (cx.simplify(&before), cx.simplify(&after));
        let room = extent.clone() + before.clone() + after.clone() - Dim::constant(reach);
        let step = Dim::constant(stride);
        let mut places = if ceil { room.ceil_div(&step) } else { room.div(&step) } + Dim::one();
        if ceil && let (Some(p), Some(d), Some(b)) = (places.as_const(), extent.as_const(), before.as_const()) {
            // A place that begins in the padding behind the tensor does not count.
            places = Dim::constant(if (p - 1) * stride >= d + b { p - 1 } else { p });
        }
        let same = auto.starts_with("SAME") && !ceil;
        let places = cx.simplify(&if same { extent.ceil_div(&step) } else { places });
        if places.as_const().is_some_and(|p| p < 1) {
            return malformed(format!("has windows of {reach} on an extent of {}", spatial[i]));
        }
        let inside = before.is(0) && after.is(0) && !ceil;
        out.push(Window { size: sizes[i], stride, dilation, before, after, places, inside });
    }
    Ok(out)
}

/// Padding for `⌈extent / stride⌉` places: `max((places − 1)·stride + reach − extent, 0)`.
fn same_padding(extent: &Dim, stride: i64, reach: i64) -> Dim {
    if stride == 1 {
        return Dim::constant(reach - 1);
    }
    let step = Dim::constant(stride);
    let span = &extent.ceil_div(&step) * &step;
    (span - extent.clone() + Dim::constant(reach - stride)).larger(&Dim::zero())
}

/// `[N, C, D…]` to `[N, C, places₁, size₁, places₂, size₂, …]`; `outside` stands where a window leaves the tensor.
fn patches(cx: &mut Cx<'_, '_, '_>, x: ValueId, windows: &[Window], outside: f32) -> Res<ValueId> {
    let mut out = x;
    for (i, w) in windows.iter().enumerate().rev() {
        let axis = i + 2;
        let shape = cx.shape(out);
        let extent = shape.get(axis).cloned().unwrap_or_else(Dim::one);
        let size = Dim::constant(w.size);
        let used = &w.places * &Dim::constant(w.stride);
        let tiled = w.inside && w.stride == w.size && (w.dilation == 1 || w.size == 1);
        if tiled && cx.bounds.le(&used, &extent) {
            let cut = cx.slice(out, axis, &Dim::zero(), &cx.simplify(&used))?;
            let mut split = shape.clone();
            split.splice(axis..=axis, [w.places.clone(), size]);
            out = cx.reshape(cut, &split)?;
            continue;
        }
        let grid = [w.places.clone(), size];
        let place = cx.iota(&grid, 0, Dim::zero());
        let start = cx.bin_c(BinaryOp::Mul, place, w.stride as f64)?;
        let tap = cx.iota(&grid, 1, Dim::zero());
        let offset = cx.bin_c(BinaryOp::Mul, tap, w.dilation as f64)?;
        let at = cx.bin(BinaryOp::Add, start, offset)?;
        let at = match w.before.as_const() {
            Some(0) => at,
            _ => {
                let before = cx.size_value(&w.before)?;
                cx.bin(BinaryOp::Sub, at, before)?
            }
        };
        let front = cx.move_axis(out, axis, 0)?;
        let mut taken = cx.gather(front, at)?;
        if !w.inside {
            let size = cx.size_value(&extent)?;
            let inside = within(cx, at, size)?;
            let mut wide = grid.to_vec();
            wide.resize(cx.shape(taken).len(), Dim::one());
            let inside = cx.reshape(inside, &wide)?;
            let fill = cx.f32(outside)?;
            taken = cx.select(inside, taken, fill)?;
        }
        // [places, size, axes before…, axes after…] to the place of the axis.
        let rank = cx.shape(taken).len();
        let perm: Vec<usize> = (2..2 + axis).chain([0, 1]).chain(2 + axis..rank).collect();
        out = cx.transpose(taken, &perm)?;
    }
    Ok(out)
}

/// Conv.
pub fn conv(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, w) = (n.input(0)?.clone(), n.input(1)?.clone());
    let ([batch, channels, spatial @ ..], [maps, each, kernel @ ..]) = (x.shape.as_slice(), w.shape.as_slice()) else {
        return malformed("takes at least two axes");
    };
    if spatial.len() != kernel.len() {
        return malformed(format!("has {} axes and a weight of {}", x.rank(), w.rank()));
    }
    let sizes: Option<Vec<i64>> = kernel.iter().map(Dim::as_const).collect();
    let Some(sizes) = sizes else { return unsupported("has windows whose extents are not fixed") };
    let groups = Dim::constant(n.int("group", 1)?.max(1));
    cx.equate(channels, &(each * &groups))?;
    let windows = windows(cx, n, spatial, &sizes)?;
    let id = cx.node(&x)?;
    let taps = windows.iter().map(|w| w.size).product::<i64>();
    if each.is(1) && !groups.is(1) && *maps == groups && taps <= TAPS {
        let weight = flat_weight(cx, &w, &[maps.clone(), Dim::constant(taps)])?;
        let mut y = depthwise(cx, id, weight, &windows)?;
        if let Some(bias) = n.optional(2) {
            let bias = cx.node(&bias.clone())?;
            let bias = channels_of(cx, bias, windows.len())?;
            y = cx.bin(BinaryOp::Add, y, bias)?;
        }
        return Ok(vec![cx.val(y, x.elem)]);
    }
    let taken = patches(cx, id, &windows, 0.0)?;
    // [N, C, P₁, K₁, …] to [N, P…, C, K…].
    let k = spatial.len();
    let perm: Vec<usize> =
        [0].into_iter().chain((0..k).map(|i| 2 + 2 * i)).chain([1]).chain((0..k).map(|i| 3 + 2 * i)).collect();
    let rows = cx.transpose(taken, &perm)?;
    let places: Vec<Dim> = windows.iter().map(|w| w.places.clone()).collect();
    let (area, taps) = (product(&places), product(kernel));
    let mut shape: Vec<Dim> = vec![batch.clone(), maps.clone()];
    shape.extend(places);
    let y = if groups.is(1) {
        let depth = cx.simplify(&(each * &taps));
        let rows = cx.reshape(rows, &[batch.clone(), area.clone(), depth.clone()])?;
        let weight = flat_weight(cx, &w, &[maps.clone(), depth])?;
        let mut y = cx.matmul(rows, weight, true)?;
        if let Some(bias) = n.optional(2) {
            let bias = cx.node(&bias.clone())?;
            y = cx.bin(BinaryOp::Add, y, bias)?;
        }
        let y = cx.transpose(y, &[0, 2, 1])?;
        cx.reshape(y, &shape)?
    } else {
        let (depth, own) = (cx.simplify(&(each * &taps)), maps.div(&groups));
        let rows = cx.reshape(rows, &[batch.clone(), area.clone(), groups.clone(), depth.clone()])?;
        let rows = cx.transpose(rows, &[0, 2, 1, 3])?;
        let weight = flat_weight(cx, &w, &[groups, own, depth])?;
        let y = cx.matmul(rows, weight, true)?;
        let y = cx.transpose(y, &[0, 1, 3, 2])?;
        let mut y = cx.reshape(y, &shape)?;
        if let Some(bias) = n.optional(2) {
            let bias = cx.node(&bias.clone())?;
            let mut column = vec![Dim::one(); shape.len() - 1];
            column[0] = maps.clone();
            let bias = cx.reshape(bias, &column)?;
            y = cx.bin(BinaryOp::Add, y, bias)?;
        }
        y
    };
    Ok(vec![cx.val(y, x.elem)])
}

/// Taps up to which a filter of one channel is a sum of products.
const TAPS: i64 = 64;

/// `[C]`, or what reshapes to it, so that it broadcasts over `[N, C, …]` with `spatial` axes.
fn channels_of(cx: &mut Cx<'_, '_, '_>, v: ValueId, spatial: usize) -> Res<ValueId> {
    let mut column = vec![Dim::one(); spatial + 1];
    column[0] = product(&cx.shape(v));
    cx.reshape(v, &column)
}

/// Σ over the taps of `x [N, C, D…]` at each tap times `weight [C, taps]`: `[N, C, places…]`.
fn depthwise(cx: &mut Cx<'_, '_, '_>, x: ValueId, weight: ValueId, windows: &[Window]) -> Res<ValueId> {
    // The input at every tap, the last axis fastest.
    let mut taken = vec![x];
    for (i, w) in windows.iter().enumerate() {
        let mut next = Vec::with_capacity(taken.len() * w.size.unsigned_abs() as usize);
        for v in taken {
            for tap in 0..w.size {
                next.push(at_tap(cx, v, i + 2, w, tap)?);
            }
        }
        taken = next;
    }
    let mut sum = None;
    for (t, v) in taken.into_iter().enumerate() {
        let filter = cx.slice(weight, 1, &Dim::constant(t as i64), &Dim::one())?;
        let filter = channels_of(cx, filter, windows.len())?;
        let term = cx.bin(BinaryOp::Mul, v, filter)?;
        sum = Some(match sum {
            Some(sum) => cx.bin(BinaryOp::Add, sum, term)?,
            None => term,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => malformed("has a window without taps"),
    }
}

/// The elements along `axis` that tap `tap` of every place meets; 0 where that is outside.
fn at_tap(cx: &mut Cx<'_, '_, '_>, x: ValueId, axis: usize, w: &Window, tap: i64) -> Res<ValueId> {
    let first = Dim::constant(tap * w.dilation) - w.before.clone();
    let extent = cx.shape(x).get(axis).cloned().unwrap_or_else(Dim::one);
    if w.inside && w.stride == 1 {
        return cx.slice(x, axis, &first, &w.places);
    }
    let place = cx.iota(&[w.places.clone()], 0, Dim::zero());
    let at = if w.stride == 1 { place } else { cx.bin_c(BinaryOp::Mul, place, w.stride as f64)? };
    let at = if first.is(0) {
        at
    } else {
        let first = cx.size_value(&first)?;
        cx.bin(BinaryOp::Add, at, first)?
    };
    let front = cx.move_axis(x, axis, 0)?;
    let mut taken = cx.gather(front, at)?;
    if !w.inside {
        let size = cx.size_value(&extent)?;
        let inside = within(cx, at, size)?;
        let mut column = vec![Dim::one(); cx.shape(taken).len()];
        column[0] = w.places.clone();
        let inside = cx.reshape(inside, &column)?;
        let nothing = cx.f32(0.0)?;
        taken = cx.select(inside, taken, nothing)?;
    }
    cx.move_axis(taken, 0, axis)
}

fn flat_weight(cx: &mut Cx<'_, '_, '_>, w: &Val, shape: &[Dim]) -> Res<ValueId> {
    match &w.data {
        Data::Stored(id) if w.elem.is_float() => cx.weight_of(*id, w.elem.storage(), shape, false),
        _ => {
            let id = cx.node(w)?;
            cx.reshape(id, shape)
        }
    }
}

/// MaxPool and AveragePool.
pub fn pool(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    const LOWEST: f32 = -1e30;
    let x = n.input(0)?.clone();
    if n.wants(1) {
        return unsupported("gives positions as a result");
    }
    if x.elem != Elem::Float && !x.elem.is_float() {
        return unsupported(format!("pools {}", x.elem));
    }
    let Some(sizes) = n.ints("kernel_shape")? else { return malformed("has no kernel_shape") };
    let [_, _, spatial @ ..] = x.shape.as_slice() else { return malformed("takes at least two axes") };
    let windows = windows(cx, n, spatial, sizes)?;
    let axes: Vec<usize> = (0..spatial.len()).map(|i| 3 + 2 * i).collect();
    let id = cx.node(&x)?;
    if n.op == "MaxPool" {
        let taken = patches(cx, id, &windows, LOWEST)?;
        let y = cx.reduce(ReduceOp::Max, taken, &axes, false)?;
        return Ok(vec![cx.val(y, x.elem)]);
    }
    let taken = patches(cx, id, &windows, 0.0)?;
    let sum = cx.reduce(ReduceOp::Sum, taken, &axes, false)?;
    let whole = windows.iter().all(|w| w.inside);
    let padding_counts = n.flag("count_include_pad", false)?;
    let rounded = n.flag("ceil_mode", false)? && !whole;
    let y = if padding_counts && rounded {
        let count = counts(cx, &windows, spatial)?;
        cx.bin(BinaryOp::Div, sum, count)?
    } else if whole || padding_counts {
        cx.bin_c(BinaryOp::Div, sum, windows.iter().map(|w| w.size).product::<i64>() as f64)?
    } else {
        let one = cx.f32(1.0)?;
        let mut plane = vec![Dim::one(), Dim::one()];
        plane.extend(spatial.iter().cloned());
        let ones = cx.broadcast(one, &plane)?;
        let taken = patches(cx, ones, &windows, 0.0)?;
        let count = cx.reduce(ReduceOp::Sum, taken, &axes, false)?;
        cx.bin(BinaryOp::Div, sum, count)?
    };
    Ok(vec![cx.val(y, x.elem)])
}

/// Taps of each window that lie in the tensor or its padding, `[places…]`: a last window that was rounded up may leave
/// both.
fn counts(cx: &mut Cx<'_, '_, '_>, windows: &[Window], spatial: &[Dim]) -> Res<ValueId> {
    let mut all = cx.f32(1.0)?;
    for (i, (w, extent)) in windows.iter().zip(spatial).enumerate() {
        let padded = extent.clone() + w.before.clone() + w.after.clone();
        let grid = [w.places.clone(), Dim::constant(w.size)];
        let place = cx.iota(&grid, 0, Dim::zero());
        let start = cx.bin_c(BinaryOp::Mul, place, w.stride as f64)?;
        let tap = cx.iota(&grid, 1, Dim::zero());
        let offset = cx.bin_c(BinaryOp::Mul, tap, w.dilation as f64)?;
        let at = cx.bin(BinaryOp::Add, start, offset)?;
        let end = cx.size_value(&padded)?;
        let inside = cx.bin(BinaryOp::Lt, at, end)?;
        let inside = cx.cast(inside, Scalar::F32)?;
        let count = cx.reduce(ReduceOp::Sum, inside, &[1], false)?;
        let mut shape = vec![Dim::one(); windows.len()];
        shape[i] = w.places.clone();
        let count = cx.reshape(count, &shape)?;
        all = cx.bin(BinaryOp::Mul, all, count)?;
    }
    Ok(all)
}

/// GlobalAveragePool and GlobalMaxPool.
pub fn global_pool(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    if x.rank() < 3 {
        return Ok(vec![x]);
    }
    let axes: Vec<usize> = (2..x.rank()).collect();
    let id = cx.node(&x)?;
    let y = if n.op == "GlobalMaxPool" {
        cx.reduce(ReduceOp::Max, id, &axes, true)?
    } else {
        super::reduce::mean(cx, id, &axes, true)?
    };
    Ok(vec![cx.val(y, x.elem)])
}
