//! Attention probabilities as a value of their own, where several layers use the same: scores, softmax, weighted sum.

use crate::graph::{AttentionAttrs, Op, ValueId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// What scores are made of.
pub(super) struct Scores<'a> {
    /// `[B, H, S, D]`.
    pub q: ValueId,
    /// `[B, G, T, D]`.
    pub k: ValueId,
    /// Bool, broadcastable to `[B, H, S, T]`.
    pub mask: Option<ValueId>,
    /// F32, broadcastable to `[B, H, S, T]`.
    pub bias: Option<ValueId>,
    pub attrs: &'a AttentionAttrs,
}

/// The score of keys that are not visible: far below every other, and finite times log₂ e.
const HIDDEN: f32 = -1.0e30;

/// `softmax(scale · q kᵀ)` over the visible keys, `[B, H, S, T]`; a row that sees no key is 0.
pub(super) fn probabilities(b: &mut GraphBuilder<'_>, s: &Scores<'_>) -> ValueId {
    let q_shape = b.ty(s.q).shape.clone();
    let keys = axis(b, s.k, 2);
    let q = grouped(b, s.q, s.k);
    let scores = b.op(Op::MatMul { b_transposed: true }, &[q, s.k]);
    let shape: Vec<Dim> = q_shape.iter().take(3).cloned().chain([keys]).collect();
    let scores = b.reshape(scores, &shape);
    let scale = b.f32(s.attrs.scale.0);
    let mut scores = b.mul(scores, scale);
    if let Some(cap) = s.attrs.softcap {
        let [shrink, cap] = [1.0 / cap.0, cap.0].map(|factor| b.f32(factor));
        let small = b.mul(scores, shrink);
        let small = b.unary(UnaryOp::Tanh, small);
        scores = b.mul(small, cap);
    }
    if let Some(bias) = s.bias {
        scores = b.add(scores, bias);
    }
    let Some(visible) = visible(b, s, &shape) else { return b.softmax(scores) };
    let hidden = b.f32(HIDDEN);
    let scores = b.select(visible, scores, hidden);
    let probs = b.softmax(scores);
    let zero = b.f32(0.0);
    b.select(visible, probs, zero)
}

/// `probs · v`, `[B, H, S, E]`.
pub(super) fn weighted(b: &mut GraphBuilder<'_>, probs: ValueId, v: ValueId) -> ValueId {
    let shape = b.ty(probs).shape.clone();
    let width = axis(b, v, 3);
    let probs = grouped(b, probs, v);
    let y = b.matmul(probs, v);
    let shape: Vec<Dim> = shape.into_iter().take(3).chain([width]).collect();
    b.reshape(y, &shape)
}

fn axis(b: &GraphBuilder<'_>, x: ValueId, k: usize) -> Dim {
    b.ty(x).shape.get(k).cloned().unwrap_or_else(Dim::one)
}

/// `[B, H, S, D]` as `[B, G, H/G · S, D]`, with G heads of `like`: query heads of one group follow each other.
fn grouped(b: &mut GraphBuilder<'_>, x: ValueId, like: ValueId) -> ValueId {
    let size = |d: Dim| d.as_const().and_then(|d| u64::try_from(d).ok()).unwrap_or(1);
    let (heads, groups) = (size(axis(b, x, 1)), size(axis(b, like, 1)));
    let rows = Dim::from(heads / groups.max(1)) * axis(b, x, 2);
    let shape = [axis(b, x, 0), Dim::from(groups), rows, axis(b, x, 3)];
    b.reshape(x, &shape)
}

/// The keys that each query sees; `None` for all.
fn visible(b: &mut GraphBuilder<'_>, s: &Scores<'_>, shape: &[Dim]) -> Option<ValueId> {
    let and = |b: &mut GraphBuilder<'_>, all: Option<ValueId>, more: ValueId| match all {
        Some(all) => Some(b.binary(BinaryOp::And, all, more)),
        None => Some(more),
    };
    let mut all = s.mask;
    let square = [Dim::one(), Dim::one(), shape.get(2)?.clone(), shape.get(3)?.clone()];
    if let Some(offset) = &s.attrs.causal {
        let query = b.iota(&square, 2, offset.clone());
        let key = b.iota(&square, 3, Dim::zero());
        let past = b.binary(BinaryOp::Le, key, query);
        all = and(b, all, past);
        if let Some(window) = s.attrs.window {
            let oldest = b.iota(&square, 2, offset.clone() - Dim::from(window));
            let near = b.binary(BinaryOp::Lt, oldest, key);
            all = and(b, all, near);
        }
    }
    all
}
