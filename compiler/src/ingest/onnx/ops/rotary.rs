//! Rotary embeddings.

use super::attention::{heads, merged};
use crate::graph::{Op, RopeStyle, ValueId};
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::BinaryOp;

/// x `[B, H, S, D]` rotated by rows of the tables `[T, R/2]` at `positions` `[B, S]`.
pub fn by_table(
    cx: &mut Cx<'_, '_, '_>,
    x: ValueId,
    tables: [ValueId; 2],
    positions: ValueId,
    interleaved: bool,
) -> Res<ValueId> {
    let (shape, table) = (cx.shape(x), cx.shape(tables[0]));
    let (Some(half), [batch, _, tokens, _]) = (table.get(1).and_then(Dim::as_const), shape.as_slice()) else {
        return unsupported("has tables of an extent that is not fixed");
    };
    let positions = cx.cast(positions, Scalar::I32)?;
    let positions = cx.broadcast(positions, &[batch.clone(), tokens.clone()])?;
    let style = if interleaved { RopeStyle::Interleaved } else { RopeStyle::Half };
    let op = Op::Rope { style, rotary_dim: 2 * u64::try_from(half).unwrap_or(0) };
    cx.op(op, &[x, tables[0], tables[1], positions])
}

/// x `[B, H, S, D]` rotated by angles of its own: cosines and sines `[B, S, R/2]`.
fn by_angle(cx: &mut Cx<'_, '_, '_>, x: ValueId, angles: [ValueId; 2], interleaved: bool) -> Res<ValueId> {
    let shape = cx.shape(x);
    let table = cx.shape(angles[0]);
    let [b, s, half] = table.as_slice() else { return malformed("has tables of three axes without positions") };
    let wide = [b.clone(), Dim::one(), s.clone(), half.clone()];
    let (cos, sin) = (cx.reshape(angles[0], &wide)?, cx.reshape(angles[1], &wide)?);
    let Some(width) = shape.get(3).cloned() else { return malformed("takes four axes") };
    let rotary = half * &Dim::constant(2);
    let turned = cx.slice(x, 3, &Dim::zero(), &rotary)?;
    let part = |cx: &mut Cx<'_, '_, '_>, k: i64| -> Res<ValueId> {
        if !interleaved {
            return cx.slice(turned, 3, &(half * &Dim::constant(k)), half);
        }
        let mut pairs = shape[..3].to_vec();
        pairs.extend([half.clone(), Dim::constant(2)]);
        let split = cx.reshape(turned, &pairs)?;
        let one = cx.slice(split, 4, &Dim::constant(k), &Dim::one())?;
        let mut flat = shape[..3].to_vec();
        flat.push(half.clone());
        cx.reshape(one, &flat)
    };
    let (a, c) = (part(cx, 0)?, part(cx, 1)?);
    let (ac, cs) = (cx.bin(BinaryOp::Mul, a, cos)?, cx.bin(BinaryOp::Mul, c, sin)?);
    let (as_, cc) = (cx.bin(BinaryOp::Mul, a, sin)?, cx.bin(BinaryOp::Mul, c, cos)?);
    let (first, second) = (cx.bin(BinaryOp::Sub, ac, cs)?, cx.bin(BinaryOp::Add, as_, cc)?);
    let mut y = if interleaved {
        let mut pairs = shape[..3].to_vec();
        pairs.extend([half.clone(), Dim::one()]);
        let (first, second) = (cx.reshape(first, &pairs)?, cx.reshape(second, &pairs)?);
        let both = cx.concat(&[first, second], 4)?;
        let mut flat = shape[..3].to_vec();
        flat.push(rotary.clone());
        cx.reshape(both, &flat)?
    } else {
        cx.concat(&[first, second], 3)?
    };
    if rotary != width {
        let rest = cx.slice(x, 3, &rotary, &(width - rotary.clone()))?;
        y = cx.concat(&[y, rest], 3)?;
    }
    Ok(y)
}

/// RotaryEmbedding of the standard domain: x, cosines, sines, positions.
pub fn standard(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    rotate(cx, n, [1, 2, 3])
}

/// RotaryEmbedding of com.microsoft: x, positions, cosines, sines.
pub fn contrib(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    if n.flag("is_packed_batching", false)? || n.float("scale", 1.0)? != 1.0 {
        return unsupported("has packed batches or a scale");
    }
    rotate(cx, n, [2, 3, 1])
}

fn rotate(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>, [cos, sin, at]: [usize; 3]) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let id = cx.node(&x)?;
    let count = match n.int("num_heads", 0)? {
        0 if x.rank() == 3 => {
            let table = n.input(cos)?.shape.last().and_then(Dim::as_const);
            let width = x.shape[2].as_const();
            match (table, width, n.int("rotary_embedding_dim", 0)?) {
                (Some(half), Some(w), 0) if half > 0 => w / (2 * half),
                _ => return malformed("has no number of heads"),
            }
        }
        h => h,
    };
    let flat = x.rank() == 3;
    let four = if flat { heads(cx, id, count)? } else { id };
    if cx.shape(four).len() != 4 {
        return malformed(format!("takes three or four axes, not {}", x.rank()));
    }
    let tables = [cx.node(&n.input(cos)?.clone())?, cx.node(&n.input(sin)?.clone())?];
    let rotary = n.int("rotary_embedding_dim", 0)?;
    let mut cut = tables;
    if rotary > 0 {
        let half = Dim::constant(rotary / 2);
        for t in &mut cut {
            let axis = cx.shape(*t).len().saturating_sub(1);
            *t = cx.slice(*t, axis, &Dim::zero(), &half)?;
        }
    }
    let interleaved = n.flag("interleaved", false)?;
    let y = match n.optional(at).cloned() {
        None => by_angle(cx, four, cut, interleaved)?,
        Some(p) => {
            let mut positions = cx.node(&p)?;
            if p.rank() == 1 && p.shape[0].is(1) {
                let shape = cx.shape(four);
                let tokens = [shape[0].clone(), shape[2].clone()];
                let own = cx.iota(&tokens, 1, Dim::zero());
                positions = cx.cast(positions, Scalar::I32)?;
                positions = cx.bin(BinaryOp::Add, own, positions)?;
            }
            by_table(cx, four, cut, positions, interleaved)?
        }
    };
    let y = if flat { merged(cx, y)? } else { y };
    Ok(vec![cx.val(y, x.elem)])
}
