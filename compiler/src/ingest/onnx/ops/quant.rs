//! Quantised tensors. Constants stay as they are quantised where kernels can decode them, see [`super::super::blocks`];
//! values that depend on inputs are computed as the operators say, integers held as 32-bit ones.

use super::elementwise;
use super::linear::{product, with_bias};
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, Stop, malformed, unsupported};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::stock::{Dequantize, Layout, TensorId};
use crate::ingest::onnx::value::{Data, Val};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

fn stored(v: Option<&Val>) -> Option<TensorId> {
    match v?.data {
        Data::Stored(id) => Some(id),
        _ => None,
    }
}

/// How scales of the shape of `scale` belong to `x`: layout and elements that share one along `axis`.
fn layout(x: &Val, scale: &Val, axis: usize, block: i64) -> Res<(Layout, u64)> {
    let one = scale.shape.iter().all(|d| d.is(1));
    let number = |d: Option<&Dim>| d.and_then(Dim::as_const).and_then(|v| u64::try_from(v).ok());
    match (scale.rank(), block) {
        (1, 0) if !one && scale.shape.first() == x.shape.get(axis) => Ok((Layout::Axis, 1)),
        (r, b) if b > 0 && r == x.rank() => Ok((Layout::Blocks, b as u64)),
        (_, 0) if one && (scale.rank() == 0 || x.shape.get(axis).is_none_or(|d| !d.is(1)) || scale.rank() == 1) => {
            Ok((Layout::Single, u64::MAX))
        }
        (r, 0) if r == x.rank() && r > 1 => match (number(x.shape.get(axis)), number(scale.shape.get(axis))) {
            (Some(e), Some(s)) if s > 0 && e % s == 0 => Ok((Layout::Blocks, e / s)),
            _ => malformed("has scales that do not divide its extent"),
        },
        (r, b) => malformed(format!("has scales of {r} axes in blocks of {b}")),
    }
}

/// A scale or zero point as a float that broadcasts against `x`.
fn spread(cx: &mut Cx<'_, '_, '_>, v: &Val, x: &Val, axis: usize, how: (Layout, u64)) -> Res<ValueId> {
    let id = cx.node(v)?;
    let id = cx.cast(id, Scalar::F32)?;
    match how.0 {
        Layout::Single => cx.reshape(id, &[]),
        Layout::Axis => {
            let mut shape = vec![Dim::one(); x.rank()];
            shape[axis] = x.shape[axis].clone();
            cx.reshape(id, &shape)
        }
        Layout::Blocks => {
            // Each entry repeats `block` times along the axis; what exceeds the extent is cut.
            let mut wide = v.shape.clone();
            wide.insert(axis + 1, Dim::one());
            let raised = cx.reshape(id, &wide)?;
            wide[axis + 1] = Dim::from(how.1);
            let repeated = cx.broadcast(raised, &wide)?;
            let mut flat = v.shape.clone();
            flat[axis] = &flat[axis] * &Dim::from(how.1);
            let flat = cx.reshape(repeated, &flat)?;
            cx.slice(flat, axis, &Dim::zero(), &x.shape[axis])
        }
    }
}

fn fixed_u64(shape: &[Dim]) -> Option<Vec<u64>> {
    shape.iter().map(|d| d.as_const().and_then(|v| u64::try_from(v).ok())).collect()
}

/// (x − zero)·scale.
pub fn dequantize(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, scale) = (n.input(0)?.clone(), n.input(1)?.clone());
    let zero = n.optional(2).cloned();
    let elem = n.elem("output_dtype", scale.elem)?;
    let axis = if x.rank() == 0 { 0 } else { node::axis(n.int("axis", 1)?, x.rank()).or(node::axis(0, x.rank()))? };
    let how = layout(&x, &scale, axis, n.int("block_size", 0)?)?;
    let (q, s) = (stored(Some(&x)), stored(Some(&scale)));
    if let (Some(q), Some(s), Some(dims), false) = (q, s, fixed_u64(&x.shape), x.elem.is_float())
        && (zero.is_none() || stored(zero.as_ref()).is_some())
    {
        let around = |r: &[u64]| r.iter().product::<u64>();
        let (outer, inner) = (dims.get(..axis).unwrap_or_default(), dims.get(axis + 1..).unwrap_or_default());
        let view = [around(outer), dims.get(axis).copied().unwrap_or(1), around(inner)];
        let d = Dequantize {
            q,
            scale: Some(s),
            zero: stored(zero.as_ref()),
            default_zero: 0.0,
            view,
            block: how.1,
            layout: how.0,
            packed_bits: None,
        };
        return derived(cx, n, &dims, d, elem);
    }
    let id = cx.node(&x)?;
    let mut y = cx.cast(id, Scalar::F32)?;
    if let Some(zero) = zero {
        let z = spread(cx, &zero, &x, axis, how)?;
        y = cx.bin(BinaryOp::Sub, y, z)?;
    }
    let s = spread(cx, &scale, &x, axis, how)?;
    y = cx.bin(BinaryOp::Mul, y, s)?;
    Ok(vec![cx.val(y, elem)])
}

fn derived(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>, dims: &[u64], d: Dequantize, elem: Elem) -> Res<Vec<Val>> {
    let name = cx.constants.stock.get(d.q).map(|t| t.name.clone()).unwrap_or_default();
    let name = if name.is_empty() { n.outputs.first().copied().unwrap_or("weight").to_owned() } else { name };
    let id = cx.constants.stock.quantised(&name, dims, d);
    let v = cx.constants.val(id).or_else(malformed)?;
    Ok(vec![Val { elem: if elem.is_float() { Elem::Float } else { v.elem }, ..v }])
}

/// A constant of 8 or 4 bits as floats, still kept as it is: what exporters write as a cast, a difference and a product
/// is read as a dequantisation.
pub fn cast_weight(cx: &mut Cx<'_, '_, '_>, x: &Val, to: Elem) -> Option<Val> {
    let (q, dims) = (stored(Some(x))?, fixed_u64(&x.shape)?);
    let narrow = matches!(x.elem, Elem::Int8 | Elem::Uint8 | Elem::Int4 | Elem::Uint4);
    if !narrow || !to.is_float() || x.rank() < 2 {
        return None;
    }
    let view = [1, dims.iter().product(), 1];
    let (block, layout) = (u64::MAX, Layout::Single);
    let d = Dequantize { q, scale: None, zero: None, default_zero: 0.0, view, block, layout, packed_bits: None };
    kept(cx, q, &dims, d, to)
}

/// `w·s` or `w − z` of such a constant and one with an element for all of it or for each place along an axis.
pub fn shifted_or_scaled(cx: &mut Cx<'_, '_, '_>, op: &str, w: &Val, v: &Val) -> Option<Val> {
    let (id, by, dims) = (stored(Some(w))?, stored(Some(v))?, fixed_u64(&w.shape)?);
    let mut d = cx.constants.stock.dequantize(id)?.clone();
    let place = match op {
        "Mul" if d.scale.is_none() => &mut d.scale,
        "Sub" if d.scale.is_none() && d.zero.is_none() && d.default_zero == 0.0 => &mut d.zero,
        _ => return None,
    };
    *place = Some(by);
    let alone = op == "Sub" || d.zero.is_none();
    if v.shape.iter().all(|e| e.is(1)) && v.rank() <= w.rank() {
        if !alone && d.layout != Layout::Single {
            return None;
        }
    } else {
        let lead = w.rank().checked_sub(v.rank())?;
        let wide: Vec<usize> = (0..v.rank()).filter(|k| !v.shape[*k].is(1)).collect();
        let [k] = wide[..] else { return None };
        let axis = lead + k;
        if v.shape[k] != w.shape[axis] {
            return None;
        }
        let view = [dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product()];
        if !alone && (d.layout, d.view) != (Layout::Axis, view) {
            return None;
        }
        (d.layout, d.view, d.block) = (Layout::Axis, view, 1);
    }
    kept(cx, id, &dims, d, w.elem)
}

fn kept(cx: &mut Cx<'_, '_, '_>, of: TensorId, dims: &[u64], d: Dequantize, elem: Elem) -> Option<Val> {
    let name = cx.constants.stock.get(of)?.name.clone();
    let id = cx.constants.stock.quantised(&name, dims, d);
    let v = cx.constants.val(id).ok()?;
    Some(Val { elem: if elem.is_float() { Elem::Float } else { elem }, ..v })
}

/// round(x / scale) + zero, held to the range of the type.
pub fn quantize(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, scale) = (n.input(0)?.clone(), n.input(1)?.clone());
    let zero = n.optional(2).cloned();
    let elem = n.elem("output_dtype", zero.as_ref().map_or(Elem::Uint8, |z| z.elem))?;
    if !elem.is_int() {
        return unsupported(format!("quantises to {elem}"));
    }
    let axis = if x.rank() == 0 { 0 } else { node::axis(n.int("axis", 1)?, x.rank()).or(node::axis(0, x.rank()))? };
    let how = layout(&x, &scale, axis, n.int("block_size", 0)?)?;
    let id = cx.node(&x)?;
    let id = cx.cast(id, Scalar::F32)?;
    let s = spread(cx, &scale, &x, axis, how)?;
    let ratio = cx.bin(BinaryOp::Div, id, s)?;
    let mut y = cx.un(UnaryOp::Round, ratio)?;
    if let Some(zero) = zero {
        let z = spread(cx, &zero, &x, axis, how)?;
        y = cx.bin(BinaryOp::Add, y, z)?;
    }
    let y = held(cx, y, elem)?;
    Ok(vec![cx.val(y, elem)])
}

/// A float held to the range of an integer type, as an integer.
fn held(cx: &mut Cx<'_, '_, '_>, y: ValueId, elem: Elem) -> Res<ValueId> {
    let (low, high) = elem.range();
    let y = cx.bin_c(BinaryOp::Max, y, low.max(i64::from(i32::MIN)) as f64)?;
    // The largest float that is no larger than the largest 32-bit integer.
    let y = cx.bin_c(BinaryOp::Min, y, high.min(2_147_483_520) as f64)?;
    cx.cast(y, Scalar::I32)
}

/// x quantised to 8 bits without sign by its own range: the values as floats, scale and zero point as floats.
fn dynamic(cx: &mut Cx<'_, '_, '_>, x: &Val) -> Res<[ValueId; 3]> {
    let id = cx.node(x)?;
    let axes: Vec<usize> = (0..x.rank()).collect();
    let (low, high) = if axes.is_empty() {
        (id, id)
    } else {
        (cx.reduce(ReduceOp::Min, id, &axes, false)?, cx.reduce(ReduceOp::Max, id, &axes, false)?)
    };
    let (low, high) = (cx.bin_c(BinaryOp::Min, low, 0.0)?, cx.bin_c(BinaryOp::Max, high, 0.0)?);
    let span = cx.bin(BinaryOp::Sub, high, low)?;
    let scale = cx.bin_c(BinaryOp::Div, span, 255.0)?;
    let none = cx.bin_c(BinaryOp::Eq, scale, 0.0)?;
    let one = cx.f32(1.0)?;
    let divisor = cx.select(none, one, scale)?;
    let minus = cx.un(UnaryOp::Neg, low)?;
    let at = cx.bin(BinaryOp::Div, minus, divisor)?;
    let at = cx.un(UnaryOp::Round, at)?;
    let at = cx.bin_c(BinaryOp::Max, at, 0.0)?;
    let zero = cx.bin_c(BinaryOp::Min, at, 255.0)?;
    let ratio = cx.bin(BinaryOp::Div, id, divisor)?;
    let rounded = cx.un(UnaryOp::Round, ratio)?;
    let shifted = cx.bin(BinaryOp::Add, rounded, zero)?;
    let shifted = cx.bin_c(BinaryOp::Max, shifted, 0.0)?;
    let q = cx.bin_c(BinaryOp::Min, shifted, 255.0)?;
    Ok([q, scale, zero])
}

/// DynamicQuantizeLinear.
pub fn dynamic_quantize(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let [q, scale, zero] = dynamic(cx, &x)?;
    let (q, zero) = (cx.cast(q, Scalar::I32)?, cx.cast(zero, Scalar::I32)?);
    Ok(vec![cx.val(q, Elem::Uint8), cx.val(scale, x.elem), cx.val(zero, Elem::Uint8)])
}

/// Integers less their zero point, as floats. A constant matrix is kept as integers.
fn centred(cx: &mut Cx<'_, '_, '_>, x: &Val, zero: Option<&Val>, by_row: bool) -> Res<Val> {
    if let (Some(q), Some(dims), true) =
        (stored(Some(x)), fixed_u64(&x.shape), zero.is_none_or(|z| stored(Some(z)).is_some()))
        && x.rank() == 2
    {
        let single = zero.is_none_or(|z| z.shape.iter().all(|d| d.is(1)));
        let (r, c) = (dims[0], dims[1]);
        let (view, layout) = match (single, by_row) {
            (true, _) => ([1, r * c, 1], Layout::Single),
            (_, true) => ([1, r, c], Layout::Axis),
            _ => ([r, c, 1], Layout::Axis),
        };
        let d = Dequantize {
            q,
            scale: None,
            zero: stored(zero),
            default_zero: 0.0,
            view,
            block: if single { u64::MAX } else { 1 },
            layout,
            packed_bits: None,
        };
        let name = cx.constants.stock.get(q).map(|t| t.name.clone()).unwrap_or_default();
        let id = cx.constants.stock.quantised(&name, &dims, d);
        return cx.constants.val(id).or_else(malformed);
    }
    let id = cx.node(x)?;
    let mut y = cx.cast(id, Scalar::F32)?;
    if let Some(z) = zero {
        let zid = cx.node(z)?;
        let mut zid = cx.cast(zid, Scalar::F32)?;
        if z.rank() == 1 && !z.shape[0].is(1) && by_row {
            zid = cx.reshape(zid, &[z.shape[0].clone(), Dim::one()])?;
        } else if z.shape.iter().all(|d| d.is(1)) {
            zid = cx.reshape(zid, &[])?;
        }
        y = cx.bin(BinaryOp::Sub, y, zid)?;
    }
    Ok(cx.val(y, Elem::Float))
}

/// MatMulInteger: exact while the sums stay below 2²⁴.
pub fn matmul_integer(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let a = centred(cx, &n.input(0)?.clone(), n.optional(2), true)?;
    let b = centred(cx, &n.input(1)?.clone(), n.optional(3), false)?;
    let y = product(cx, &a, &b)?;
    let y = cx.un(UnaryOp::Round, y)?;
    let y = cx.cast(y, Scalar::I32)?;
    Ok(vec![cx.val(y, Elem::Int32)])
}

/// (a − za)·(b − zb) times both scales, plus bias.
pub fn matmul_integer_to_float(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let a = centred(cx, &n.input(0)?.clone(), n.optional(4), true)?;
    let b = centred(cx, &n.input(1)?.clone(), n.optional(5), false)?;
    let mut y = product(cx, &a, &b)?;
    for i in [2, 3] {
        let s = cx.node(&n.input(i)?.clone())?;
        let s = if cx.shape(s).iter().all(|d| d.is(1)) { cx.reshape(s, &[])? } else { s };
        y = cx.bin(BinaryOp::Mul, y, s)?;
    }
    let y = with_bias(cx, y, n.optional(6).cloned().as_ref())?;
    Ok(vec![cx.val(y, n.input(2)?.elem)])
}

/// a quantised by its own range, times integers with a scale, plus bias.
pub fn dynamic_quantize_matmul(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let [q, scale, zero] = dynamic(cx, &x)?;
    let a = cx.bin(BinaryOp::Sub, q, zero)?;
    let a = cx.val(a, Elem::Float);
    let b = centred(cx, &n.input(1)?.clone(), n.optional(3), false)?;
    let y = product(cx, &a, &b)?;
    let y = cx.bin(BinaryOp::Mul, y, scale)?;
    let s = cx.node(&n.input(2)?.clone())?;
    let s = if cx.shape(s).iter().all(|d| d.is(1)) { cx.reshape(s, &[])? } else { s };
    let y = cx.bin(BinaryOp::Mul, y, s)?;
    let y = with_bias(cx, y, n.optional(4).cloned().as_ref())?;
    Ok(vec![cx.val(y, x.elem)])
}

/// QLinearMatMul: operands a, scale, zero, b, scale, zero, scale and zero of the result.
pub fn qlinear_matmul(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let a = centred(cx, &n.input(0)?.clone(), n.optional(2), true)?;
    let b = centred(cx, &n.input(3)?.clone(), n.optional(5), false)?;
    let mut y = product(cx, &a, &b)?;
    for (i, f) in [(1, BinaryOp::Mul), (4, BinaryOp::Mul), (6, BinaryOp::Div)] {
        let v = n.input(i)?.clone();
        let s = cx.node(&v)?;
        let rows = i == 1 && v.rank() == 1 && !v.shape[0].is(1);
        let s = if rows {
            cx.reshape(s, &[v.shape[0].clone(), Dim::one()])?
        } else if v.shape.iter().all(|d| d.is(1)) {
            cx.reshape(s, &[])?
        } else {
            s
        };
        y = cx.bin(f, y, s)?;
    }
    let zero = n.input(7)?.clone();
    let z = elementwise::cast_to(cx, &zero, Elem::Float)?;
    let z = cx.node(&z)?;
    let z = if zero.shape.iter().all(|d| d.is(1)) { cx.reshape(z, &[])? } else { z };
    let y = cx.un(UnaryOp::Round, y)?;
    let y = cx.bin(BinaryOp::Add, y, z)?;
    let y = held(cx, y, zero.elem)?;
    Ok(vec![cx.val(y, zero.elem)])
}

/// A product with a weight `[N, K]` of few bits, a scale for each block of a row.
pub fn matmul_nbits(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let size = |name: &str| -> Res<u64> {
        match n.int(name, 0)? {
            v if (1..=i64::from(i32::MAX)).contains(&v) => Ok(v as u64),
            v => malformed(format!("has {name} = {v}")),
        }
    };
    let (k, rows, block) = (size("K")?, size("N")?, size("block_size")?);
    let bits = match n.int("bits", 4)? {
        b @ (2 | 4 | 8) => b as u32,
        b => return unsupported(format!("has weights of {b} bits")),
    };
    if n.optional(4).is_some() {
        return unsupported("has an order of its groups (g_idx)");
    }
    let constant = |i: usize, what: &str| -> Res<TensorId> {
        stored(n.optional(i)).ok_or_else(|| Stop::Gap {
            problem: format!("has {what} that are no constants"),
            next: crate::ingest::onnx::error::EXPORT,
        })
    };
    let (q, scale) = (constant(1, "weights")?, constant(2, "scales")?);
    let zero = n.optional(3).map(|_| constant(3, "zero points")).transpose()?;
    let blocks = k.div_ceil(block);
    let elems = |id: TensorId| cx.constants.stock.get(id).map_or(0, super::super::stock::Stored::elems);
    let row_bytes = (blocks * block * u64::from(bits)).div_ceil(8);
    if elems(q) != rows * row_bytes || elems(scale) != rows * blocks {
        return malformed(format!("has {} bytes and {} scales for [{rows}, {k}]", elems(q), elems(scale)));
    }
    let d = Dequantize {
        q,
        scale: Some(scale),
        zero,
        default_zero: (1u32 << (bits - 1)) as f32,
        view: [rows, k, 1],
        block,
        layout: Layout::Blocks,
        packed_bits: Some(bits),
    };
    let w = derived(cx, n, &[rows, k], d, Elem::Float)?;
    let a = cx.node(&x)?;
    let w = match w.first().map(|w| w.data.clone()) {
        Some(Data::Stored(id)) => {
            cx.weight_of(id, frit_kernels::dtype::Storage::F32, &[Dim::from(rows), Dim::from(k)], false)?
        }
        _ => return malformed("has no weight"),
    };
    let y = cx.matmul(a, w, true)?;
    let y = with_bias(cx, y, n.optional(5).cloned().as_ref())?;
    Ok(vec![cx.val(y, x.elem)])
}
