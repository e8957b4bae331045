//! Attention with sinks: a score for each head that takes part in the softmax and adds no value.

use super::attention::Attention;
use super::shared::Shared;
use crate::graph::{AttentionAttrs, Float, Op, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// `p = exp(s − m) / (Σ exp(s − m) + exp(sink − m))` over the visible keys, with m the largest of scores and sink;
/// `p · v`. q is `[B, H, S, D]`, k and v are `[B, G, T, D]`, `sinks` is `[H]`; the result is `[B, H, S, E]`.
///
/// The keys are one part of an attention in parts, which tells its largest score and its sum; the sink is another, of one
/// score and a value of zeros, and the two are merged.
pub(super) fn attend(
    b: &mut GraphBuilder<'_>,
    attention: &Attention,
    shared: &Shared,
    sinks: WeightId,
    [q, k, v]: [ValueId; 3],
) -> ValueId {
    b.scope("sinks", |b| {
        let attrs = AttentionAttrs {
            scale: Float(attention.scale),
            causal: Some(shared.first_query.clone()),
            window: attention.window,
            softcap: attention.softcap.map(Float),
            has_mask: shared.mask.is_some(),
            has_bias: false,
        };
        let operands: Vec<ValueId> = [q, k, v].into_iter().chain(shared.mask).collect();
        let keys = b.op(Op::AttentionParts { attrs, parts: 1 }, &operands);
        let width = Dim::from(attention.value_dim);
        let values = b.slice(keys, 3, Dim::zero(), width.clone());
        let largest = b.slice(keys, 3, width.clone(), Dim::one());
        let sum = b.slice(keys, 3, width + Dim::one(), Dim::one());

        let sink = b.weight(sinks);
        let sink = b.reshape(sink, &[Dim::from(attention.heads), Dim::one(), Dim::one()]);
        let most = b.binary(BinaryOp::Max, largest, sink);
        let [own, other] = [largest, sink].map(|score| {
            let score = b.sub(score, most);
            b.unary(UnaryOp::Exp, score)
        });
        let sum = b.mul(sum, own);
        let sum = b.add(sum, other);
        let share = b.binary(BinaryOp::Div, own, sum);
        b.mul(values, share)
    })
}
