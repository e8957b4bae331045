//! Attention and embedding operators of com.microsoft.

use super::attention::{Rules, attend, heads, merged, present};
use super::linear::with_bias;
use super::{norm, rotary};
use crate::graph::{NormKind, ValueId};
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};

/// x + bias + skip.
pub fn bias_add(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let mut y = cx.node(&x)?;
    for i in [1, 2] {
        let v = cx.node(&n.input(i)?.clone())?;
        y = cx.bin(BinaryOp::Add, y, v)?;
    }
    Ok(vec![cx.val(y, x.elem)])
}

fn scale(n: &Node<'_>) -> Res<Option<f32>> {
    Ok(n.float_if("scale")?.filter(|s| *s != 0.0))
}

/// A mask of padding as a rule: `[B, T]` truth values, `[B, S, T]`, or the number of keys of each row `[B]`.
fn padding(cx: &mut Cx<'_, '_, '_>, rules: &mut Rules, m: &Val, keys: &Dim) -> Res<()> {
    let id = cx.node(m)?;
    let shape = cx.shape(id);
    let seen = match shape.as_slice() {
        [batch] => {
            let used = cx.reshape(id, &[batch.clone(), Dim::one(), Dim::one(), Dim::one()])?;
            let column = cx.iota(&[Dim::one(), Dim::one(), Dim::one(), keys.clone()], 3, Dim::zero());
            cx.bin(BinaryOp::Lt, column, used)?
        }
        [batch, t] => {
            let truth = cx.cast(id, Scalar::Bool)?;
            cx.reshape(truth, &[batch.clone(), Dim::one(), Dim::one(), t.clone()])?
        }
        [batch, s, t] => {
            let truth = cx.cast(id, Scalar::Bool)?;
            cx.reshape(truth, &[batch.clone(), Dim::one(), s.clone(), t.clone()])?
        }
        other => return unsupported(format!("has a mask of {} axes", other.len())),
    };
    rules.and_mask(cx, seen)
}

fn added_bias(cx: &mut Cx<'_, '_, '_>, rules: &mut Rules, b: Option<&Val>) -> Res<()> {
    if let Some(b) = b {
        rules.bias = Some(cx.node(b)?);
    }
    Ok(())
}

/// Parts of a bias `[H·D + H·D + H·E]`, by the widths of queries, keys and values.
fn bias_parts(cx: &mut Cx<'_, '_, '_>, bias: Option<&Val>, widths: [&Dim; 3]) -> Res<[Option<ValueId>; 3]> {
    let Some(bias) = bias else { return Ok([None; 3]) };
    let id = cx.node(bias)?;
    let mut start = Dim::zero();
    let mut out = [None; 3];
    for (o, w) in out.iter_mut().zip(widths) {
        *o = Some(cx.slice(id, 0, &start, w)?);
        start = start + w.clone();
    }
    Ok(out)
}

fn plus(cx: &mut Cx<'_, '_, '_>, x: ValueId, bias: Option<ValueId>) -> Res<ValueId> {
    match bias {
        Some(b) => cx.bin(BinaryOp::Add, x, b),
        None => Ok(x),
    }
}

/// Attention: projection of the input to queries, keys and values, then attention.
pub fn attention(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, w) = (n.input(0)?.clone(), n.input(1)?.clone());
    let count = n.int("num_heads", 0)?;
    if n.flag("do_rotary", false)? {
        return unsupported("rotates without tables");
    }
    let Some(total) = w.shape.last().cloned() else { return malformed("has a scalar for a weight") };
    let widths: [Dim; 3] = match n.ints("qkv_hidden_sizes")? {
        Some([q, k, v]) => [*q, *k, *v].map(Dim::constant),
        Some(other) => return malformed(format!("has the widths {other:?}")),
        None => std::array::from_fn(|_| total.div(&Dim::constant(3))),
    };
    let y = super::linear::product(cx, &x, &w)?;
    let y = with_bias(cx, y, n.optional(2).cloned().as_ref())?;
    let mut start = Dim::zero();
    let mut parts = Vec::new();
    for width in &widths {
        let part = cx.slice(y, 2, &start, width)?;
        parts.push(heads(cx, part, count)?);
        start = start + width.clone();
    }
    let (mut key, mut value) = (parts[1], parts[2]);
    let past = n.optional(4).cloned();
    let mut past_len = Dim::zero();
    if let Some(p) = &past {
        past_len = p.shape.get(3).cloned().unwrap_or_default();
        let id = cx.node(p)?;
        let mut both = [key, value];
        for (k, new) in both.iter_mut().enumerate() {
            let one = cx.slice(id, 0, &Dim::from(k), &Dim::one())?;
            let one = cx.reshape(one, p.shape.get(1..).unwrap_or_default())?;
            let one = cx.val(one, p.elem);
            *new = present(cx, Some(&one), *new, x.elem)?;
        }
        [key, value] = both;
    }
    let keys = cx.shape(key)[2].clone();
    let mut rules = Rules { scale: scale(n)?, ..Rules::default() };
    if let Some(m) = n.optional(3).cloned() {
        padding(cx, &mut rules, &m, &keys)?;
    }
    if n.flag("unidirectional", false)? {
        rules.causal = Some(past_len);
    }
    added_bias(cx, &mut rules, n.optional(5).cloned().as_ref())?;
    let y = attend(cx, parts[0], key, value, &rules)?;
    let y = merged(cx, y)?;
    let mut out = vec![cx.val(y, x.elem)];
    if n.wants(1) {
        let mut stacked = Vec::new();
        for part in [key, value] {
            let mut shape = vec![Dim::one()];
            shape.extend(cx.shape(part));
            stacked.push(cx.reshape(part, &shape)?);
        }
        let both = cx.concat(&stacked, 0)?;
        out.push(cx.val(both, x.elem));
    }
    Ok(out)
}

/// MultiHeadAttention: queries, keys and values apart, or packed.
pub fn multi_head_attention(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let q = n.input(0)?.clone();
    let count = n.int("num_heads", 0)?;
    let id = cx.node(&q)?;
    let (mut query, mut key, mut value);
    let packed = |cx: &mut Cx<'_, '_, '_>, x: ValueId, k: usize| -> Res<ValueId> {
        // [B, S, H, parts, D] to [B, S, H·D] of one part.
        let s = cx.shape(x);
        let one = cx.slice(x, 3, &Dim::from(k), &Dim::one())?;
        cx.reshape(one, &[s[0].clone(), s[1].clone(), &s[2] * &s[4]])
    };
    match (q.rank(), n.optional(1).cloned(), n.optional(2).cloned()) {
        (5, _, _) => {
            query = packed(cx, id, 0)?;
            key = packed(cx, id, 1)?;
            value = packed(cx, id, 2)?;
        }
        (3, Some(k), None) if k.rank() == 5 => {
            let kv = cx.node(&k)?;
            query = id;
            key = packed(cx, kv, 0)?;
            value = packed(cx, kv, 1)?;
        }
        (3, Some(k), Some(v)) => {
            query = id;
            key = cx.node(&k)?;
            value = cx.node(&v)?;
        }
        (r, ..) => return unsupported(format!("has queries of {r} axes and no keys or values")),
    }
    let width = |cx: &Cx<'_, '_, '_>, v: ValueId| -> Dim {
        let s = cx.shape(v);
        match s.as_slice() {
            [_, h, _, d] => h * d,
            _ => s.last().cloned().unwrap_or_else(Dim::one),
        }
    };
    let widths = [width(cx, query), width(cx, key), width(cx, value)];
    let bias = bias_parts(cx, n.optional(3).cloned().as_ref(), [&widths[0], &widths[1], &widths[2]])?;
    query = plus(cx, query, bias[0])?;
    if cx.shape(key).len() == 3 {
        key = plus(cx, key, bias[1])?;
        value = plus(cx, value, bias[2])?;
    }
    let mut four = Vec::new();
    for x in [query, key, value] {
        four.push(if cx.shape(x).len() == 3 { heads(cx, x, count)? } else { x });
    }
    if four.iter().any(|x| cx.shape(*x).len() != 4) {
        return malformed("takes queries, keys and values of three or four axes");
    }
    let (past_k, past_v) = (n.optional(6).cloned(), n.optional(7).cloned());
    let past = past_k.as_ref().map_or_else(Dim::zero, |p| p.shape.get(2).cloned().unwrap_or_default());
    let key = present(cx, past_k.as_ref(), four[1], q.elem)?;
    let value = present(cx, past_v.as_ref(), four[2], q.elem)?;
    let keys = cx.shape(key)[2].clone();
    let mut rules = Rules { scale: scale(n)?, ..Rules::default() };
    if let Some(m) = n.optional(4).cloned() {
        padding(cx, &mut rules, &m, &keys)?;
    }
    if n.flag("unidirectional", false)? {
        rules.causal = Some(past);
    }
    added_bias(cx, &mut rules, n.optional(5).cloned().as_ref())?;
    let y = attend(cx, four[0], key, value, &rules)?;
    let y = merged(cx, y)?;
    Ok(vec![cx.val(y, q.elem), cx.val(key, q.elem), cx.val(value, q.elem)])
}

/// GroupQueryAttention. The past is taken to be as long as its tensor; `seqlens_k` hides what lies behind the last key
/// of a row.
pub fn group_query_attention(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let q = n.input(0)?.clone();
    let (count, groups) = (n.int("num_heads", 0)?, n.int("kv_num_heads", 0)?);
    if n.flag("smooth_softmax", false)? || n.optional(11).is_some() {
        return unsupported("has a smooth softmax or sinks");
    }
    if n.int("qk_output", 0)? != 0 || n.wants(3) {
        return unsupported("gives its scores as a result");
    }
    if n.text("k_quant_type", "NONE")? != "NONE" || n.text("v_quant_type", "NONE")? != "NONE" {
        return unsupported("has a quantised cache");
    }
    let id = cx.node(&q)?;
    let (query, key, value) = match (n.optional(1).cloned(), n.optional(2).cloned()) {
        (Some(k), Some(v)) => (id, cx.node(&k)?, cx.node(&v)?),
        _ => {
            let Some(width) = q.shape.last().and_then(Dim::as_const) else {
                return unsupported("is packed with a width that is not fixed");
            };
            let heads_in_all = count + 2 * groups;
            if count < 1 || groups < 1 || width % heads_in_all != 0 {
                return malformed(format!("packs {heads_in_all} heads into {width}"));
            }
            let each = width / heads_in_all;
            let (a, b) = (Dim::constant(count * each), Dim::constant(groups * each));
            let k = cx.slice(id, 2, &a, &b)?;
            let v = cx.slice(id, 2, &(a.clone() + b.clone()), &b)?;
            (cx.slice(id, 2, &Dim::zero(), &a)?, k, v)
        }
    };
    let (mut query, mut key, value) = (heads(cx, query, count)?, heads(cx, key, groups)?, heads(cx, value, groups)?);
    let (past_k, past_v) = (n.optional(3).cloned(), n.optional(4).cloned());
    let past = past_k.as_ref().map_or_else(Dim::zero, |p| p.shape.get(2).cloned().unwrap_or_default());
    let shape = cx.shape(query);
    let (batch, tokens) = (shape[0].clone(), shape[2].clone());
    if n.flag("do_rotary", false)? {
        let tables = [cx.node(&n.input(7)?.clone())?, cx.node(&n.input(8)?.clone())?];
        let positions = match n.optional(9).cloned() {
            Some(p) => cx.node(&p)?,
            None => cx.iota(&[batch.clone(), tokens.clone()], 1, past.clone()),
        };
        let interleaved = n.flag("rotary_interleaved", false)?;
        query = rotary::by_table(cx, query, tables, positions, interleaved)?;
        key = rotary::by_table(cx, key, tables, positions, interleaved)?;
    }
    let key = present(cx, past_k.as_ref(), key, q.elem)?;
    let value = present(cx, past_v.as_ref(), value, q.elem)?;
    let keys = cx.shape(key)[2].clone();
    if let Some(total) = n.optional(6).and_then(Val::known_ints).and_then(|t| t.first().cloned()) {
        cx.equate(&keys, &total)?;
    }
    let mut rules = Rules {
        scale: scale(n)?,
        softcap: n.float_if("softcap")?,
        causal: Some(past),
        window: u64::try_from(n.int("local_window_size", -1)?).ok(),
        ..Rules::default()
    };
    if let Some(last) = n.optional(5).cloned() {
        let last = cx.node(&last)?;
        let last = cx.reshape(last, &[batch, Dim::one(), Dim::one(), Dim::one()])?;
        let column = cx.iota(&[Dim::one(), Dim::one(), Dim::one(), keys], 3, Dim::zero());
        let seen = cx.bin(BinaryOp::Le, column, last)?;
        rules.and_mask(cx, seen)?;
    }
    added_bias(cx, &mut rules, n.optional(10).cloned().as_ref())?;
    let y = attend(cx, query, key, value, &rules)?;
    let y = merged(cx, y)?;
    Ok(vec![cx.val(y, q.elem), cx.val(key, q.elem), cx.val(value, q.elem)])
}

/// EmbedLayerNormalization: ids, segments, three tables, gain, bias, mask, positions.
pub fn embed_layer_norm(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let ids = n.input(0)?.clone();
    let words = n.input(2)?.clone();
    if ids.rank() != 2 {
        return malformed(format!("takes ids of two axes, not {}", ids.rank()));
    }
    let id = cx.node(&ids)?;
    let table = cx.node(&words)?;
    let mut sum = cx.gather(table, id)?;
    let table = cx.node(&n.input(3)?.clone())?;
    let positions = match n.optional(8).cloned() {
        Some(p) => cx.node(&p)?,
        None => cx.iota(&ids.shape, 1, Dim::zero()),
    };
    let learned = cx.gather(table, positions)?;
    sum = cx.bin(BinaryOp::Add, sum, learned)?;
    if let (Some(segments), Some(table)) = (n.optional(1).cloned(), n.optional(4).cloned()) {
        let (segments, table) = (cx.node(&segments)?, cx.node(&table)?);
        let kind = cx.gather(table, segments)?;
        sum = cx.bin(BinaryOp::Add, sum, kind)?;
    }
    let (gain, bias) = (cx.node(&n.input(5)?.clone())?, cx.node(&n.input(6)?.clone())?);
    let y = norm::last_axis(cx, NormKind::Layer, sum, n.float("epsilon", 1e-12)?, Some(gain), Some(bias))?;
    let mut out = vec![cx.val(y, words.elem)];
    if n.wants(1) {
        let used = match n.optional(7).cloned() {
            Some(m) => {
                let m = cx.node(&m)?;
                let m = cx.cast(m, Scalar::F32)?;
                let used = cx.reduce(ReduceOp::Sum, m, &[1], false)?;
                cx.cast(used, Scalar::I32)?
            }
            None => {
                let zero = cx.i32(0)?;
                cx.broadcast(zero, &ids.shape[..1])?
            }
        };
        out.push(cx.val(used, Elem::Int32));
    }
    if n.wants(2) {
        out.push(cx.val(sum, words.elem));
    }
    Ok(out)
}
