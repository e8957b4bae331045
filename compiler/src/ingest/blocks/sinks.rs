//! Attention with sinks: a score for each head that takes part in the softmax and adds no value.

use super::attention::Attention;
use super::shared::Shared;
use crate::graph::{Op, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::sizes;

/// `p = exp(s − m) / (Σ exp(s − m) + exp(sink − m))` over the visible keys, with m the largest of scores and sink;
/// `p · v`. q is `[B, H, S, D]`, k and v are `[B, G, T, D]`, `sinks` is `[H]`; the result is `[B, H, S, E]`.
pub(super) fn attend(
    b: &mut GraphBuilder<'_>,
    attention: &Attention,
    shared: &Shared,
    sinks: WeightId,
    [q, k, v]: [ValueId; 3],
) -> ValueId {
    b.scope("sinks", |b| {
        let (batch, tokens) = (shared.batch.clone(), shared.tokens.clone());
        let keys = b.ty(k).shape.get(2).cloned().unwrap_or_else(Dim::one);
        let heads = Dim::from(attention.heads);
        let [k, v] = [(k, attention.head_dim), (v, attention.value_dim)].map(|(x, dim)| {
            let [groups, members] = [attention.kv_heads, attention.heads / attention.kv_heads.max(1)].map(Dim::from);
            let one = [batch.clone(), groups.clone(), Dim::one(), keys.clone(), Dim::from(dim)];
            let each = [batch.clone(), groups, members, keys.clone(), Dim::from(dim)];
            let x = b.reshape(x, &one);
            let x = b.broadcast(x, &each);
            b.reshape(x, &[batch.clone(), heads.clone(), keys.clone(), Dim::from(dim)])
        });
        let scores = b.op(Op::MatMul { b_transposed: true }, &[q, k]);
        let scale = b.f32(attention.scale);
        let scores = b.mul(scores, scale);

        let square = [tokens.clone(), keys.clone()];
        let query = b.iota(&square, 0, Dim::size(sizes::PAST));
        let key = b.iota(&square, 1, Dim::zero());
        let mut visible = b.binary(BinaryOp::Le, key, query);
        if let Some(window) = attention.window {
            let window = b.i32(i32::try_from(window).unwrap_or(i32::MAX));
            let oldest = b.sub(query, window);
            let recent = b.binary(BinaryOp::Lt, oldest, key);
            visible = b.binary(BinaryOp::And, visible, recent);
        }
        if let Some(mask) = shared.mask {
            visible = b.binary(BinaryOp::And, visible, mask);
        }
        let hidden = b.f32(-1e30);
        let scores = b.select(visible, scores, hidden);

        let sink = b.weight(sinks);
        let sink = b.reshape(sink, &[heads, Dim::one(), Dim::one()]);
        let most = b.reduce(ReduceOp::Max, scores, &[3], true);
        let most = b.binary(BinaryOp::Max, most, sink);
        let scores = b.sub(scores, most);
        let weights = b.unary(UnaryOp::Exp, scores);
        let sum = b.reduce(ReduceOp::Sum, weights, &[3], true);
        let sink = b.sub(sink, most);
        let sink = b.unary(UnaryOp::Exp, sink);
        let sum = b.add(sum, sink);
        let weights = b.binary(BinaryOp::Div, weights, sum);
        b.matmul(weights, v)
    })
}
