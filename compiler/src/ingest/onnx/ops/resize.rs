//! Resize and Upsample, one axis after the other. An element of the result is a weighted sum of elements of the
//! operand, so that an axis is a product with a matrix of weights; where one weight is 1 it is a gather.

#![allow(clippy::indexing_slicing, reason = "positions run over the extents they index")]

use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::stock::Recipe;
use crate::ingest::onnx::value::{Known, Val};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::BinaryOp;

/// How elements between positions come about.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    /// With the coefficient a.
    Cubic(f64),
}

/// The settings of a call.
struct Sampling {
    mode: Mode,
    nearest: String,
    coordinates: String,
    antialias: bool,
    exclude_outside: bool,
    extrapolation: f32,
}

/// An axis to be resized.
#[derive(Clone, Copy)]
struct Axis {
    axis: usize,
    from: usize,
    to: usize,
    /// How much longer the axis becomes; `to` is a rounding of `from · scale`.
    scale: f64,
    /// The part of the axis that is resized, as fractions.
    region: [f64; 2],
}

/// Known floats of operand `i`; `None` where it is absent or empty.
fn floats(n: &Node<'_>, i: usize, what: &str) -> Res<Option<Vec<f64>>> {
    let Some(v) = n.optional(i) else { return Ok(None) };
    match v.known.as_deref() {
        Some(Known::Floats(v)) if v.is_empty() => Ok(None),
        Some(Known::Floats(v)) => Ok(Some(v.iter().map(|x| f64::from(*x)).collect())),
        _ if v.shape.first().is_some_and(|d| d.is(0)) => Ok(None),
        _ => unsupported(format!("{what} depend on data")),
    }
}

/// Resize, and Upsample of older versions.
pub fn resize(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let old = n.op == "Upsample" || n.inputs.len() <= 2;
    let mode = match n.text("mode", "nearest")?.as_str() {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic(f64::from(n.float("cubic_coeff_a", -0.75)?)),
        other => return unsupported(format!("has the mode `{other}`")),
    };
    let sampling = Sampling {
        mode,
        nearest: n.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" })?,
        coordinates: n.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })?,
        antialias: n.flag("antialias", false)?,
        exclude_outside: n.flag("exclude_outside", false)?,
        extrapolation: n.float("extrapolation_value", 0.0)?,
    };
    let axes = axes(n, &x, old)?;
    if axes.iter().any(|a| sampling.is_product(a)) && !x.elem.is_float() {
        return unsupported(format!("interpolates {}", x.elem));
    }
    let mut out = cx.node(&x)?;
    for a in &axes {
        out = along(cx, out, a, &sampling)?;
    }
    Ok(vec![cx.val(out, x.elem)])
}

/// The axes whose elements change.
fn axes(n: &Node<'_>, x: &Val, old: bool) -> Res<Vec<Axis>> {
    let named: Vec<usize> = match n.ints("axes")? {
        Some(list) => list.iter().map(|a| node::axis(*a, x.rank())).collect::<Res<_>>()?,
        None => (0..x.rank()).collect(),
    };
    let scales = if old { floats(n, 1, "scales")? } else { floats(n, 2, "scales")? };
    let attribute = n.floats_if("scales")?;
    let scales = scales.or(attribute);
    let sizes: Option<Vec<usize>> = match n.optional(3).filter(|v| !v.shape.first().is_some_and(|d| d.is(0))) {
        None => None,
        Some(_) => {
            let sizes = super::shape::ints(n, 3, "its size")?;
            let fixed: Option<Vec<usize>> =
                sizes.iter().map(|d| d.as_const().and_then(|v| usize::try_from(v).ok())).collect();
            match fixed {
                Some(sizes) => Some(sizes),
                None => return unsupported("has sizes that depend on other sizes"),
            }
        }
    };
    let region = if old { None } else { floats(n, 1, "roi")? };
    let given = scales.as_ref().map(Vec::len).or(sizes.as_ref().map(Vec::len));
    if given != Some(named.len()) {
        return malformed(format!("has {given:?} scales or sizes for {} axes", named.len()));
    }
    let mut extents = Vec::with_capacity(named.len());
    for axis in &named {
        match x.shape[*axis].as_const().and_then(|v| usize::try_from(v).ok()).filter(|v| *v > 0) {
            Some(extent) => extents.push(extent),
            // An axis whose extent is not fixed may stay as it is.
            None if scales.as_ref().is_some_and(|s| s[extents.len()] == 1.0) => extents.push(1),
            None => return unsupported("resizes an axis whose extent is not fixed"),
        }
    }
    let policy = n.text("keep_aspect_ratio_policy", "stretch")?;
    let mut out = Vec::new();
    let ratios: Option<Vec<f64>> =
        sizes.as_ref().map(|s| s.iter().zip(&extents).map(|(to, from)| *to as f64 / *from as f64).collect());
    let common = ratios.as_ref().and_then(|r| match policy.as_str() {
        "not_larger" => r.iter().copied().reduce(f64::min),
        "not_smaller" => r.iter().copied().reduce(f64::max),
        _ => None,
    });
    for (k, axis) in named.iter().enumerate() {
        let from = extents[k];
        let (to, scale) = match (&scales, &sizes, &ratios, common) {
            (Some(s), ..) => ((from as f64 * s[k]).floor() as usize, s[k]),
            (_, _, _, Some(scale)) => ((from as f64 * scale + 0.5).floor() as usize, scale),
            (_, Some(sizes), Some(ratios), _) => (sizes[k], ratios[k]),
            _ => return malformed("has neither scales nor sizes"),
        };
        if to == 0 || to > 1 << 20 {
            return unsupported(format!("makes {to} elements of {from}"));
        }
        let region = match &region {
            Some(r) if r.len() == 2 * named.len() => [r[k], r[k + named.len()]],
            _ => [0.0, 1.0],
        };
        let cropped = n.text("coordinate_transformation_mode", "")? == "tf_crop_and_resize";
        if to != from || scale != 1.0 || cropped {
            out.push(Axis { axis: *axis, from, to, scale, region });
        }
    }
    Ok(out)
}

impl Sampling {
    /// Whether elements are sums, and not elements of the operand.
    fn is_product(&self, a: &Axis) -> bool {
        let outside = self.coordinates == "tf_crop_and_resize"
            && (0..a.to).any(|i| self.place(a, i).is_ok_and(|p| self.is_outside(a, p)));
        self.mode != Mode::Nearest || outside
    }
    fn is_outside(&self, a: &Axis, place: f64) -> bool {
        self.coordinates == "tf_crop_and_resize" && (place < 0.0 || place > (a.from - 1) as f64)
    }
    /// Where element `i` of the result lies in the operand.
    fn place(&self, a: &Axis, i: usize) -> Res<f64> {
        let (i, from, to, scale) = (i as f64, a.from as f64, a.to as f64, a.scale);
        let half = (i + 0.5) / scale - 0.5;
        Ok(match self.coordinates.as_str() {
            "half_pixel" => half,
            "half_pixel_symmetric" => from / 2.0 * (1.0 - to / (scale * from)) + half,
            "pytorch_half_pixel" => {
                if a.to > 1 {
                    half
                } else {
                    0.0
                }
            }
            "align_corners" if scale * from > 1.0 => i * (from - 1.0) / (scale * from - 1.0),
            "align_corners" => 0.0,
            "asymmetric" => i / scale,
            "tf_half_pixel_for_nn" => (i + 0.5) / scale,
            "tf_crop_and_resize" => {
                let [start, end] = a.region;
                match a.to {
                    1 => 0.5 * (start + end) * (from - 1.0),
                    _ => start * (from - 1.0) + i * (end - start) * (from - 1.0) / (to - 1.0),
                }
            }
            other => return unsupported(format!("places elements by the rule `{other}`")),
        })
    }
    /// The element of the operand that is nearest.
    fn nearest(&self, a: &Axis, place: f64) -> Res<usize> {
        let at = match self.nearest.as_str() {
            "round_prefer_floor" => (place - 0.5).ceil(),
            "round_prefer_ceil" => (place + 0.5).floor(),
            "floor" => place.floor(),
            "ceil" => place.ceil(),
            other => return unsupported(format!("has the nearest_mode `{other}`")),
        };
        Ok((at.max(0.0) as usize).min(a.from - 1))
    }
    /// Weights of the neighbours of `place`, and the place of the first of them.
    fn weights(&self, a: &Axis, place: f64) -> (i64, Vec<f64>) {
        let stretch = if self.antialias { a.scale.min(1.0) } else { 1.0 };
        let reach = if self.mode == Mode::Linear { 1.0 } else { 2.0 };
        let base = place.ceil() - 1.0;
        let first = (-reach / stretch).floor() + 1.0;
        let count = (2.0 - 2.0 * first) as i64;
        let kernel = |d: f64| match self.mode {
            Mode::Cubic(a) if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            Mode::Cubic(a) if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            Mode::Cubic(_) => 0.0,
            _ => (1.0 - d).max(0.0),
        };
        let distance = |k: i64| ((first + k as f64) - (place - base)).abs() * stretch;
        let mut weights: Vec<f64> = (0..count).map(|k| kernel(distance(k))).collect();
        let start = (base + first) as i64;
        if self.exclude_outside {
            for (k, w) in weights.iter_mut().enumerate() {
                if !(0..a.from as i64).contains(&(start + k as i64)) {
                    *w = 0.0;
                }
            }
        }
        if self.exclude_outside || self.antialias {
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        (start, weights)
    }
}

fn along(cx: &mut Cx<'_, '_, '_>, x: ValueId, a: &Axis, s: &Sampling) -> Res<ValueId> {
    let places = (0..a.to).map(|i| s.place(a, i)).collect::<Res<Vec<f64>>>()?;
    let to = Dim::from(a.to);
    if !s.is_product(a) {
        let at = places.iter().map(|p| s.nearest(a, *p)).collect::<Res<Vec<usize>>>()?;
        let at = Val::ints(at.into_iter().map(Dim::from).collect());
        let at = cx.node(&at)?;
        let front = cx.move_axis(x, a.axis, 0)?;
        let taken = cx.gather(front, at)?;
        return cx.move_axis(taken, 0, a.axis);
    }
    let mut matrix = vec![0f32; a.to * a.from];
    let mut fill = vec![0f32; a.to];
    for (i, place) in places.iter().enumerate() {
        let row = &mut matrix[i * a.from..(i + 1) * a.from];
        if s.is_outside(a, *place) {
            fill[i] = s.extrapolation;
        } else if s.mode == Mode::Nearest {
            row[s.nearest(a, *place)?] = 1.0;
        } else {
            let (start, weights) = s.weights(a, *place);
            for (k, w) in weights.iter().enumerate() {
                row[(start + k as i64).clamp(0, a.from as i64 - 1) as usize] += *w as f32;
            }
        }
    }
    let last = cx.shape(x).len() - 1;
    let rows = cx.move_axis(x, a.axis, last)?;
    let weight = cx.inline("resize", Recipe::Floats(matrix), Storage::F32, &[to.clone(), Dim::from(a.from)])?;
    let rows = if last == 0 { cx.reshape(rows, &[Dim::one(), Dim::from(a.from)])? } else { rows };
    let mut y = cx.matmul(rows, weight, true)?;
    if fill.iter().any(|v| *v != 0.0) {
        let fill = cx.inline("resize_outside", Recipe::Floats(fill), Storage::F32, std::slice::from_ref(&to))?;
        y = cx.bin(BinaryOp::Add, y, fill)?;
    }
    if last == 0 {
        return cx.reshape(y, &[to]);
    }
    cx.move_axis(y, last, a.axis)
}
