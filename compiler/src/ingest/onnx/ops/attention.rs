//! Scaled dot-product attention, standard and as the base of its relatives.

use super::shape::join;
use crate::graph::{AttentionAttrs, Float, Op, ValueId};
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// What an attention does beside its products.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Factor on the scores; `None`: 1/√D.
    pub scale: Option<f32>,
    /// Soft cap of the scores.
    pub softcap: Option<f32>,
    /// Causal: key t is seen by query s iff t ≤ s + this.
    pub causal: Option<Dim>,
    /// Keys behind t > s + offset − w only; goes with `causal`.
    pub window: Option<u64>,
    /// Truth values that broadcast to the scores: seen where true.
    pub mask: Option<ValueId>,
    /// Added to the scaled scores.
    pub bias: Option<ValueId>,
}

impl Rules {
    /// Adds a mask to those there are.
    pub fn and_mask(&mut self, cx: &mut Cx<'_, '_, '_>, mask: ValueId) -> Res<()> {
        self.mask = Some(match self.mask {
            Some(m) => cx.bin(BinaryOp::And, m, mask)?,
            None => mask,
        });
        Ok(())
    }
}

/// q `[B, H, S, D]`, k `[B, G, T, D]`, v `[B, G, T, E]` to `[B, H, S, E]`.
pub fn attend(cx: &mut Cx<'_, '_, '_>, q: ValueId, k: ValueId, v: ValueId, rules: &Rules) -> Res<ValueId> {
    let (sq, sk, sv) = (cx.shape(q), cx.shape(k), cx.shape(v));
    if [&sq, &sk, &sv].iter().any(|s| s.len() != 4) {
        return malformed("takes queries, keys and values of four axes");
    }
    for (a, b) in [(&sq[0], &sk[0]), (&sq[0], &sv[0]), (&sk[1], &sv[1]), (&sk[2], &sv[2]), (&sq[3], &sk[3])] {
        cx.equate(a, b)?;
    }
    let scores = [sq[0].clone(), sq[1].clone(), sq[2].clone(), sk[2].clone()];
    for m in [rules.mask, rules.bias].into_iter().flatten() {
        let wanted = cx.broadcast_shape(&[&cx.shape(m), &scores])?;
        if wanted != scores {
            return malformed("has a mask that does not broadcast to its scores");
        }
    }
    let Some(width) = sq[3].as_const().filter(|d| *d > 0) else {
        return unsupported("has heads of a width that is not fixed");
    };
    let attrs = AttentionAttrs {
        scale: Float(rules.scale.unwrap_or_else(|| (1.0 / (width as f64).sqrt()) as f32)),
        causal: rules.causal.clone(),
        window: rules.window,
        softcap: rules.softcap.filter(|c| *c > 0.0).map(Float),
        has_mask: rules.mask.is_some(),
        has_bias: rules.bias.is_some(),
    };
    let inputs: Vec<ValueId> = [Some(q), Some(k), Some(v), rules.mask, rules.bias].into_iter().flatten().collect();
    cx.op(Op::Attention(attrs), &inputs)
}

/// `[B, S, H·D]` as `[B, H, S, D]`.
pub fn heads(cx: &mut Cx<'_, '_, '_>, x: ValueId, count: i64) -> Res<ValueId> {
    let shape = cx.shape(x);
    let [batch, tokens, width] = shape.as_slice() else {
        return malformed(format!("takes three axes, not {}", shape.len()));
    };
    if count < 1 || width.as_const().is_some_and(|w| w % count != 0) {
        return malformed(format!("splits {width} into {count} heads"));
    }
    let h = Dim::constant(count);
    let each = width.div(&h);
    let split = cx.reshape(x, &[batch.clone(), tokens.clone(), h, each])?;
    cx.transpose(split, &[0, 2, 1, 3])
}

/// `[B, H, S, D]` as `[B, S, H·D]`.
pub fn merged(cx: &mut Cx<'_, '_, '_>, x: ValueId) -> Res<ValueId> {
    let shape = cx.shape(x);
    let [batch, h, tokens, d] = shape.as_slice() else { return malformed("has no four axes") };
    let moved = cx.transpose(x, &[0, 2, 1, 3])?;
    cx.reshape(moved, &[batch.clone(), tokens.clone(), h * d])
}

/// `past` and `new` one behind the other along axis 2; `new` alone without a past.
pub fn present(cx: &mut Cx<'_, '_, '_>, past: Option<&Val>, new: ValueId, elem: Elem) -> Res<ValueId> {
    match past {
        None => Ok(new),
        Some(p) => {
            let new = cx.val(new, elem);
            let all = join(cx, &[p.clone(), new], 2)?;
            cx.node(&all)
        }
    }
}

/// The causal rule as truth values `[S, T]`, offset by a number or by `[B, 1, 1, 1]` integers.
pub fn causal_mask(cx: &mut Cx<'_, '_, '_>, s: &Dim, t: &Dim, offset: &Dim) -> Res<ValueId> {
    let plane = [s.clone(), t.clone()];
    let (row, column) = (cx.iota(&plane, 0, offset.clone()), cx.iota(&plane, 1, Dim::zero()));
    cx.bin(BinaryOp::Le, column, row)
}

/// A mask whose last axis is shorter than the keys is taken to hide the rest.
fn padded_mask(cx: &mut Cx<'_, '_, '_>, m: &Val, keys: &Dim) -> Res<ValueId> {
    let id = cx.node(m)?;
    let (Some(have), Some(want)) = (m.shape.last().and_then(Dim::as_const), keys.as_const()) else { return Ok(id) };
    if have >= want || have == 1 {
        return Ok(id);
    }
    let mut rest = m.shape.clone();
    if let Some(d) = rest.last_mut() {
        *d = Dim::constant(want - have);
    }
    let hidden = if m.elem == Elem::Bool { cx.truth(false)? } else { cx.f32(f32::MIN)? };
    let hidden = cx.broadcast(hidden, &rest)?;
    cx.concat(&[id, hidden], m.rank() - 1)
}

/// Attention of the standard domain.
pub fn standard(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (q, k, v) = (n.input(0)?.clone(), n.input(1)?.clone(), n.input(2)?.clone());
    let flat = q.rank() == 3;
    let mut ids = Vec::new();
    for (x, count) in [(&q, "q_num_heads"), (&k, "kv_num_heads"), (&v, "kv_num_heads")] {
        let id = cx.node(x)?;
        ids.push(if x.rank() == 3 { heads(cx, id, n.int(count, 0)?)? } else { id });
    }
    if ids.iter().any(|x| cx.shape(*x).len() != 4) {
        return malformed("takes queries, keys and values of three or four axes");
    }
    let (past_k, past_v) = (n.optional(4).cloned(), n.optional(5).cloned());
    let past = past_k.as_ref().map_or_else(Dim::zero, |p| p.shape.get(2).cloned().unwrap_or_default());
    let key = present(cx, past_k.as_ref(), ids[1], k.elem)?;
    let value = present(cx, past_v.as_ref(), ids[2], v.elem)?;
    let (tokens, keys) = (cx.shape(ids[0])[2].clone(), cx.shape(key)[2].clone());
    let mut rules = Rules { scale: n.float_if("scale")?, softcap: n.float_if("softcap")?, ..Rules::default() };
    if let Some(m) = n.optional(3).cloned() {
        let id = padded_mask(cx, &m, &keys)?;
        if m.elem == Elem::Bool {
            rules.mask = Some(id);
        } else {
            rules.bias = Some(cx.cast(id, Scalar::F32)?);
        }
    }
    let causal = n.flag("is_causal", false)?;
    let (left, right) = (n.int("left_window_size", -1)?, n.int("right_window_size", -1)?);
    if let Some(used) = n.optional(6).cloned() {
        // Row b sees its first `used[b]` keys; causal rows end with the last of them.
        let used = cx.node(&used)?;
        let used = cx.cast(used, Scalar::I32)?;
        let batch = cx.shape(ids[0])[0].clone();
        let used = cx.reshape(used, &[batch, Dim::one(), Dim::one(), Dim::one()])?;
        let column = cx.iota(&[Dim::one(), Dim::one(), Dim::one(), keys.clone()], 3, Dim::zero());
        let seen = cx.bin(BinaryOp::Lt, column, used)?;
        rules.and_mask(cx, seen)?;
        if causal {
            let row = cx.iota(&[Dim::one(), Dim::one(), tokens.clone(), Dim::one()], 2, Dim::zero() - tokens.clone());
            let last = cx.bin(BinaryOp::Add, row, used)?;
            let seen = cx.bin(BinaryOp::Le, column, last)?;
            rules.and_mask(cx, seen)?;
        }
        if left >= 0 || right >= 0 {
            let row = cx.iota(&[Dim::one(), Dim::one(), tokens.clone(), Dim::one()], 2, Dim::zero() - tokens.clone());
            let row = cx.bin(BinaryOp::Add, row, used)?;
            window(cx, &mut rules, column, row, left, right)?;
        }
    } else {
        if causal {
            rules.causal = Some(past.clone());
        }
        if left >= 0 || right >= 0 {
            let plane = [tokens.clone(), keys.clone()];
            let (row, column) = (cx.iota(&plane, 0, past.clone()), cx.iota(&plane, 1, Dim::zero()));
            window(cx, &mut rules, column, row, left, right)?;
        }
    }
    let y = attend(cx, ids[0], key, value, &rules)?;
    let y = if flat { merged(cx, y)? } else { y };
    let mut out = vec![cx.val(y, q.elem), cx.val(key, k.elem), cx.val(value, v.elem)];
    if n.wants(3) {
        let s = scores(cx, ids[0], key, &rules, n.int("qk_matmul_output_mode", 0)?)?;
        out.push(cx.val(s, q.elem));
    }
    Ok(out)
}

/// Hides keys more than `left` before or `right` behind the query's own position; −1: no bound.
fn window(cx: &mut Cx<'_, '_, '_>, rules: &mut Rules, key: ValueId, query: ValueId, left: i64, right: i64) -> Res<()> {
    let ahead = cx.bin(BinaryOp::Sub, key, query)?;
    let number = |v: i64| i32::try_from(v).unwrap_or(i32::MAX);
    if left >= 0 {
        let bound = cx.i32(-number(left))?;
        let seen = cx.bin(BinaryOp::Le, bound, ahead)?;
        rules.and_mask(cx, seen)?;
    }
    if right >= 0 {
        let bound = cx.i32(number(right))?;
        let seen = cx.bin(BinaryOp::Le, ahead, bound)?;
        rules.and_mask(cx, seen)?;
    }
    Ok(())
}

/// The scores as a result: raw (0), with the soft cap (1), with masks as well (2), after the softmax (3).
fn scores(cx: &mut Cx<'_, '_, '_>, q: ValueId, k: ValueId, rules: &Rules, mode: i64) -> Res<ValueId> {
    let (sq, sk) = (cx.shape(q), cx.shape(k));
    let (h, g) = (sq[1].clone(), sk[1].clone());
    let k = if h == g {
        k
    } else {
        let each = h.div(&g);
        let raised = cx.reshape(k, &[sk[0].clone(), g.clone(), Dim::one(), sk[2].clone(), sk[3].clone()])?;
        let wide = cx.broadcast(raised, &[sk[0].clone(), g, each, sk[2].clone(), sk[3].clone()])?;
        cx.reshape(wide, &[sk[0].clone(), h, sk[2].clone(), sk[3].clone()])?
    };
    let raw = cx.matmul(q, k, true)?;
    let width = product(&sq[3..]).as_const().unwrap_or(1);
    let scale = rules.scale.unwrap_or_else(|| (1.0 / (width as f64).sqrt()) as f32);
    let mut s = cx.bin_c(BinaryOp::Mul, raw, f64::from(scale))?;
    if let (Some(c), true) = (rules.softcap.filter(|c| *c > 0.0), mode > 0) {
        let small = cx.bin_c(BinaryOp::Div, s, f64::from(c))?;
        let bent = cx.un(UnaryOp::Tanh, small)?;
        s = cx.bin_c(BinaryOp::Mul, bent, f64::from(c))?;
    }
    if mode < 2 {
        return Ok(s);
    }
    if let Some(b) = rules.bias {
        s = cx.bin(BinaryOp::Add, s, b)?;
    }
    let mut mask = rules.mask;
    if let Some(offset) = &rules.causal {
        let causal = causal_mask(cx, &sq[2], &sk[2], offset)?;
        mask = Some(match mask {
            Some(m) => cx.bin(BinaryOp::And, m, causal)?,
            None => causal,
        });
    }
    let low = cx.f32(f32::MIN)?;
    if let Some(m) = mask {
        s = cx.select(m, s, low)?;
    }
    if mode == 2 {
        return Ok(s);
    }
    let p = cx.op(Op::Softmax, &[s])?;
    match mask {
        Some(m) => {
            let zero = cx.f32(0.0)?;
            cx.select(m, p, zero)
        }
        None => Ok(p),
    }
}
