//! Products of matrices.

use super::activation;
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Res, malformed};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::{Data, Val};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// x · w, where a stored w `[K, N]` is kept as `[N, K]`, the layout that kernels read. Vectors are matrices of one row
/// or column. Integers are multiplied as floats, exact below 2²⁴.
pub fn product(cx: &mut Cx<'_, '_, '_>, x: &Val, w: &Val) -> Res<ValueId> {
    let (Some(rx), Some(rw)) = (x.rank().checked_sub(1), w.rank().checked_sub(1)) else {
        return malformed("multiplies a scalar");
    };
    let mut a = cx.node(x)?;
    a = cx.cast(a, Scalar::F32)?;
    if rx == 0 {
        a = cx.reshape(a, &[Dim::one(), x.shape[0].clone()])?;
    }
    let (mut b, transposed) = right(cx, w)?;
    if rw == 0 {
        b = cx.reshape(b, &[w.shape[0].clone(), Dim::one()])?;
    }
    let y = cx.matmul(a, b, transposed)?;
    let mut shape = cx.shape(y);
    if rw == 0 {
        shape.pop();
    }
    if rx == 0 {
        let row = shape.len() - if rw == 0 { 1 } else { 2 };
        shape.remove(row);
    }
    let y = cx.reshape(y, &shape)?;
    if x.elem.is_int() {
        let rounded = cx.un(UnaryOp::Round, y)?;
        return cx.cast(rounded, Scalar::I32);
    }
    Ok(y)
}

/// The right side of a product, and whether its last two axes are swapped.
fn right(cx: &mut Cx<'_, '_, '_>, w: &Val) -> Res<(ValueId, bool)> {
    if let (Data::Stored(id), 2, true) = (&w.data, w.rank(), w.elem.is_float()) {
        return Ok((cx.weight_of(*id, w.elem.storage(), &w.shape, true)?, true));
    }
    let b = cx.node(w)?;
    Ok((cx.cast(b, Scalar::F32)?, false))
}

/// MatMul.
pub fn matmul(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, w) = (n.input(0)?.clone(), n.input(1)?.clone());
    let y = product(cx, &x, &w)?;
    Ok(vec![cx.val(y, x.elem)])
}

/// `factor·y`, nothing when it is 1.
pub fn scaled(cx: &mut Cx<'_, '_, '_>, y: ValueId, factor: f32) -> Res<ValueId> {
    if factor == 1.0 { Ok(y) } else { cx.bin_c(BinaryOp::Mul, y, f64::from(factor)) }
}

/// α·A·B + β·C, each of A and B possibly transposed; the fused form applies an activation.
pub fn gemm(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, w) = (n.input(0)?.clone(), n.input(1)?.clone());
    if x.rank() != 2 || w.rank() != 2 {
        return malformed(format!("multiplies tensors of {} and {} axes", x.rank(), w.rank()));
    }
    let mut a = cx.node(&x)?;
    a = cx.cast(a, Scalar::F32)?;
    if n.flag("transA", false)? {
        a = cx.swap_last(a)?;
    }
    let (b, transposed) = if n.flag("transB", false)? {
        let b = cx.node(&w)?;
        (cx.cast(b, Scalar::F32)?, true)
    } else {
        right(cx, &w)?
    };
    let mut y = cx.matmul(a, b, transposed)?;
    y = scaled(cx, y, n.float("alpha", 1.0)?)?;
    if let Some(c) = n.optional(2) {
        let mut c = cx.node(&c.clone())?;
        c = cx.cast(c, Scalar::F32)?;
        c = scaled(cx, c, n.float("beta", 1.0)?)?;
        y = cx.bin(BinaryOp::Add, y, c)?;
    }
    if n.op == "FusedGemm" {
        y = activation::named(cx, &n.text("activation", "")?, y)?;
    }
    if x.elem.is_int() {
        y = cx.un(UnaryOp::Round, y)?;
    }
    y = cx.cast(y, x.elem.scalar())?;
    Ok(vec![cx.val(y, x.elem)])
}

/// α·A·B with the last two axes of A and B possibly swapped. With `transBatchA` the batch axes of A stand before its
/// last axis: `[M, batch…, K]`.
pub fn fused_matmul(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, w) = (n.input(0)?.clone(), n.input(1)?.clone());
    let (ta, tb) = (n.flag("transA", false)?, n.flag("transB", false)?);
    let (ba, bb) = (n.flag("transBatchA", false)?, n.flag("transBatchB", false)?);
    let prepared = |cx: &mut Cx<'_, '_, '_>, v: &Val, batch: bool| -> Res<ValueId> {
        let id = cx.node(v)?;
        if batch && v.rank() > 2 { cx.move_axis(id, 0, v.rank() - 2) } else { Ok(id) }
    };
    let y = if !ta && !tb && !ba && !bb {
        product(cx, &x, &w)?
    } else {
        let mut a = prepared(cx, &x, ba)?;
        if ta && x.rank() > 1 {
            a = cx.swap_last(a)?;
        }
        let b = prepared(cx, &w, bb)?;
        if x.rank() < 2 || w.rank() < 2 {
            return malformed("transposes a vector");
        }
        cx.matmul(a, b, tb)?
    };
    let y = scaled(cx, y, n.float("alpha", 1.0)?)?;
    Ok(vec![cx.val(y, x.elem)])
}

/// x·w + bias for a weight `[N, K]` that a front end made.
pub fn with_bias(cx: &mut Cx<'_, '_, '_>, y: ValueId, bias: Option<&Val>) -> Res<ValueId> {
    match bias {
        Some(b) => {
            let b = cx.node(b)?;
            cx.bin(BinaryOp::Add, y, b)
        }
        None => Ok(y),
    }
}
