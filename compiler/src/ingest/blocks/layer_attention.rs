//! Attention of a token to what the layers before gave for the same token: along layers, not along tokens, so that
//! nothing of it enters a cache.

use super::linear::Linear;
use super::shared::Shared;
use crate::graph::{AttentionAttrs, Float, ValueId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

/// The module behind a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerAttention {
    pub heads: u64,
    pub head_dim: u64,
    /// Of queries, keys, values, and of the result.
    pub maps: [Linear; 4],
}

impl LayerAttention {
    /// `y + O softmax(q K / √d) V` with q of `y` and K, V of `states`; all are `[B, S, H]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, shared: &Shared, states: &[ValueId], y: ValueId) -> ValueId {
        b.scope("layer_attention", |b| {
            let [to_q, to_k, to_v, output] = &self.maps;
            let (batch, tokens) = (shared.batch.clone(), shared.tokens.clone());
            let (rows, layers) = (batch.clone() * tokens.clone(), Dim::from(states.len()));
            let width = Dim::from(self.heads * self.head_dim);
            let apart = [batch.clone(), tokens.clone(), Dim::one(), width.clone()];
            let all: Vec<ValueId> = states.iter().map(|x| b.reshape(*x, &apart)).collect();
            let all = match all.as_slice() {
                [one] => *one,
                _ => b.concat(&all, 2),
            };
            // Each token is a row of a batch, whose sequence are the layers.
            let split = |b: &mut GraphBuilder<'_>, x: ValueId, len: Dim| {
                let shape = [rows.clone(), len, Dim::from(self.heads), Dim::from(self.head_dim)];
                let x = b.reshape(x, &shape);
                b.transpose(x, &[0, 2, 1, 3])
            };
            let q = to_q.apply(b, y);
            let q = split(b, q, Dim::one());
            let [k, v] = [to_k, to_v].map(|linear| {
                let x = linear.apply(b, all);
                split(b, x, layers.clone())
            });
            let attrs = AttentionAttrs {
                scale: Float((self.head_dim as f32).powf(-0.5)),
                causal: None,
                window: None,
                softcap: None,
                has_mask: false,
                has_bias: false,
            };
            let seen = b.attention(q, k, v, None, None, attrs);
            let seen = b.transpose(seen, &[0, 2, 1, 3]);
            let seen = b.reshape(seen, &[batch, tokens, width]);
            let seen = output.apply(b, seen);
            b.add(y, seen)
        })
    }
}
