//! Normalisations.

use super::reduce::mean;
use crate::graph::{Float, NormKind, Op, ValueId};
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::{Dim, product};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

/// Norm over the last axis, with gain and bias where they have its extent.
pub fn last_axis(
    cx: &mut Cx<'_, '_, '_>,
    kind: NormKind,
    x: ValueId,
    eps: f32,
    gain: Option<ValueId>,
    bias: Option<ValueId>,
) -> Res<ValueId> {
    let op = Op::Norm { kind, eps: Float(eps), has_gain: gain.is_some(), has_bias: bias.is_some() };
    let inputs: Vec<ValueId> = [Some(x), gain, bias].into_iter().flatten().collect();
    cx.op(op, &inputs)
}

/// Norm over the axes from `axis` on. Gain and bias that have not the extents of these axes are applied behind it.
fn from_axis(
    cx: &mut Cx<'_, '_, '_>,
    kind: NormKind,
    x: &Val,
    axis: usize,
    eps: f32,
    gain: Option<&Val>,
    bias: Option<&Val>,
) -> Res<ValueId> {
    let (lead, inner) = x.shape.split_at(axis);
    let width = cx.simplify(&product(inner));
    let rows: Vec<Dim> = lead.iter().cloned().chain([width.clone()]).collect();
    let id = cx.node(x)?;
    let flat = cx.reshape(id, &rows)?;
    let fits = |v: Option<&Val>| v.is_none_or(|v| v.shape == inner);
    if fits(gain) && fits(bias) {
        let mut vector = |v: Option<&Val>| -> Res<Option<ValueId>> {
            match v {
                Some(v) => {
                    let id = cx.node(v)?;
                    cx.reshape(id, std::slice::from_ref(&width)).map(Some)
                }
                None => Ok(None),
            }
        };
        let (gain, bias) = (vector(gain)?, vector(bias)?);
        let y = last_axis(cx, kind, flat, eps, gain, bias)?;
        return cx.reshape(y, &x.shape);
    }
    let y = last_axis(cx, kind, flat, eps, None, None)?;
    let mut y = cx.reshape(y, &x.shape)?;
    for (f, v) in [(BinaryOp::Mul, gain), (BinaryOp::Add, bias)] {
        if let Some(v) = v {
            let v = cx.node(v)?;
            y = cx.bin(f, y, v)?;
        }
    }
    Ok(y)
}

/// 1/√(mean(x²) + ε) over axes, kept with extent 1.
fn inverse_root(cx: &mut Cx<'_, '_, '_>, x: ValueId, axes: &[usize], eps: f32) -> Res<ValueId> {
    let square = cx.bin(BinaryOp::Mul, x, x)?;
    let square = mean(cx, square, axes, true)?;
    let shifted = cx.bin_c(BinaryOp::Add, square, f64::from(eps))?;
    cx.un(UnaryOp::Rsqrt, shifted)
}

/// LayerNormalization; mean and inverse deviation are computed apart where they are results.
pub fn layer(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let axis = n.axis("axis", -1, x.rank())?;
    let eps = n.float("epsilon", 1e-5)?;
    let y = from_axis(cx, NormKind::Layer, &x, axis, eps, n.optional(1), n.optional(2))?;
    let mut out = vec![cx.val(y, x.elem)];
    if n.wants(1) || n.wants(2) {
        let id = cx.node(&x)?;
        let axes: Vec<usize> = (axis..x.rank()).collect();
        let m = mean(cx, id, &axes, true)?;
        let centred = cx.bin(BinaryOp::Sub, id, m)?;
        let inverse = inverse_root(cx, centred, &axes, eps)?;
        out.extend([cx.val(m, x.elem), cx.val(inverse, x.elem)]);
    }
    Ok(out)
}

/// RMSNormalization.
pub fn rms(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let axis = n.axis("axis", -1, x.rank())?;
    let eps = n.float("epsilon", 1e-5)?;
    let y = from_axis(cx, NormKind::Rms, &x, axis, eps, n.optional(1), n.optional(2))?;
    let mut out = vec![cx.val(y, x.elem)];
    if n.wants(1) {
        let id = cx.node(&x)?;
        let axes: Vec<usize> = (axis..x.rank()).collect();
        let inverse = inverse_root(cx, id, &axes, eps)?;
        out.push(cx.val(inverse, x.elem));
    }
    Ok(out)
}

/// Norm of x + skip (+ bias); the sum is the fourth result.
pub fn skip(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let simple = n.op == "SkipSimplifiedLayerNormalization";
    let (a, b) = (cx.node(&x)?, cx.node(&n.input(1)?.clone())?);
    let mut sum = cx.bin(BinaryOp::Add, a, b)?;
    let (beta, bias) = if simple { (None, n.optional(3)) } else { (n.optional(3), n.optional(4)) };
    if let Some(bias) = bias {
        let bias = cx.node(&bias.clone())?;
        sum = cx.bin(BinaryOp::Add, sum, bias)?;
    }
    let total = cx.val(sum, x.elem);
    let kind = if simple { NormKind::Rms } else { NormKind::Layer };
    let axis = x.rank().saturating_sub(1);
    let eps = n.float("epsilon", 1e-12)?;
    let y = from_axis(cx, kind, &total, axis, eps, Some(&n.input(2)?.clone()), beta)?;
    if n.wants(1) || n.wants(2) {
        return unsupported("gives the mean or the deviation as a result");
    }
    let y = cx.val(y, x.elem);
    Ok(vec![y.clone(), y.clone(), y, total])
}

/// `[C]` as `[1, C, 1, …]` for a tensor of `rank` axes.
fn by_channel(cx: &mut Cx<'_, '_, '_>, v: &Val, rank: usize) -> Res<ValueId> {
    let id = cx.node(v)?;
    let mut shape = vec![Dim::one(); rank];
    if let (Some(d), Some(c)) = (shape.get_mut(1), v.shape.first()) {
        *d = c.clone();
    }
    cx.reshape(id, &shape)
}

/// Norm of `groups` groups of channels with all their places; gain and bias by channel, or by group before version 21.
fn grouped(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>, groups: &Dim, eps: f32) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let [batch, channels, places @ ..] = x.shape.as_slice() else {
        return malformed("takes at least two axes");
    };
    let each = channels.div(groups);
    let width = &each * &product(places);
    let id = cx.node(&x)?;
    let rows = cx.reshape(id, &[batch.clone(), groups.clone(), width])?;
    let y = last_axis(cx, NormKind::Layer, rows, eps, None, None)?;
    let mut y = cx.reshape(y, &x.shape)?;
    for (f, i) in [(BinaryOp::Mul, 1), (BinaryOp::Add, 2)] {
        let v = n.input(i)?.clone();
        let v = if v.shape.first() == Some(channels) {
            v
        } else {
            let id = cx.node(&v)?;
            let column = cx.reshape(id, &[groups.clone(), Dim::one()])?;
            let wide = cx.broadcast(column, &[groups.clone(), each.clone()])?;
            let flat = cx.reshape(wide, std::slice::from_ref(channels))?;
            cx.val(flat, v.elem)
        };
        let v = by_channel(cx, &v, x.rank())?;
        y = cx.bin(f, y, v)?;
    }
    Ok(vec![cx.val(y, x.elem)])
}

/// GroupNormalization.
pub fn group(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    match n.int("num_groups", 0)? {
        g if g > 0 => grouped(cx, n, &Dim::constant(g), n.float("epsilon", 1e-5)?),
        g => malformed(format!("has {g} groups")),
    }
}

/// InstanceNormalization: every channel is a group.
pub fn instance(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let channels = n.input(0)?.shape.get(1).cloned().unwrap_or_else(Dim::one);
    grouped(cx, n, &channels, n.float("epsilon", 1e-5)?)
}

/// BatchNormalization with the statistics given.
pub fn batch(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    if n.flag("training_mode", false)? || n.wants(1) {
        return unsupported("is in training mode");
    }
    let x = n.input(0)?.clone();
    let id = cx.node(&x)?;
    let mut part = |i: usize| -> Res<ValueId> {
        let v = n.input(i)?.clone();
        by_channel(cx, &v, x.rank())
    };
    let (gain, bias, m, variance) = (part(1)?, part(2)?, part(3)?, part(4)?);
    let shifted = cx.bin_c(BinaryOp::Add, variance, f64::from(n.float("epsilon", 1e-5)?))?;
    let inverse = cx.un(UnaryOp::Rsqrt, shifted)?;
    let factor = cx.bin(BinaryOp::Mul, gain, inverse)?;
    let centred = cx.bin(BinaryOp::Sub, id, m)?;
    let y = cx.bin(BinaryOp::Mul, centred, factor)?;
    let y = cx.bin(BinaryOp::Add, y, bias)?;
    Ok(vec![cx.val(y, x.elem)])
}

/// x / ‖x‖ along an axis; 0 where the norm is 0.
pub fn lp(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let axis = n.axis("axis", -1, x.rank())?;
    let id = cx.node(&x)?;
    let size = match n.int("p", 2)? {
        1 => {
            let a = cx.un(UnaryOp::Abs, id)?;
            cx.reduce(ReduceOp::Sum, a, &[axis], true)?
        }
        2 => {
            let square = cx.bin(BinaryOp::Mul, id, id)?;
            let sum = cx.reduce(ReduceOp::Sum, square, &[axis], true)?;
            cx.un(UnaryOp::Sqrt, sum)?
        }
        p => return unsupported(format!("has the order {p}")),
    };
    let none = cx.bin_c(BinaryOp::Eq, size, 0.0)?;
    let one = cx.f32(1.0)?;
    let divisor = cx.select(none, one, size)?;
    let y = cx.bin(BinaryOp::Div, id, divisor)?;
    Ok(vec![cx.val(y, x.elem)])
}
