//! Self-attention: projections, norms of queries and keys, rotation, cache, scores.

use super::latent::Latent;
use super::linear::Linear;
use super::norm::Norm;
use super::shared::Shared;
use super::sinks;
use crate::graph::{AttentionAttrs, Float, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::spec::BinaryOp;
use frit_plan::{KvPart, sizes};

/// Self-attention.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub name: &'static str,
    pub heads: u64,
    pub kv_heads: u64,
    /// Elements of a query or key head.
    pub head_dim: u64,
    /// Elements of a value head.
    pub value_dim: u64,
    /// Factor on the scores.
    pub scale: f32,
    pub window: Option<u64>,
    /// Scores become `c·tanh(score/c)`.
    pub softcap: Option<f32>,
    pub qkv: Qkv,
    /// Queries, keys and values are clamped to `[−c, c]`.
    pub clip: Option<f32>,
    pub qk_norm: Option<QkNorm>,
    /// The number of the rotary tables in use; `None`: positions do not enter here.
    pub rope: Option<usize>,
    /// `[H]`: a score for each head that takes part in the softmax and adds no value.
    pub sinks: Option<WeightId>,
    pub output: Linear,
}

/// The projections that make queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Qkv {
    Separate([Linear; 3]),
    /// One projection whose result is cut in three.
    Fused(Linear, Packing),
    /// Low-rank projections.
    Latent(Box<Latent>),
}

/// How the result of a fused projection is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// All queries, all keys, all values.
    Parts,
    /// For each key head: its query heads, the key, the value.
    Groups,
    /// [`Packing::SHARDS`] times: a share of the queries, of the values, of the keys.
    Shards,
}

impl Packing {
    /// The parts of [`Packing::Shards`].
    pub const SHARDS: u64 = 4;
}

/// Norms of queries and keys.
#[derive(Clone, Debug)]
pub(crate) enum QkNorm {
    /// Of each head.
    Heads([Norm; 2]),
    /// Of each head, after the rotation.
    RotatedHeads([Norm; 2]),
    /// Of all heads together.
    Whole([Norm; 2]),
}

impl Attention {
    /// `x` is `[B, S, H]`; `layer` chooses the cache slot of a decoder. Without slots every query sees every key that
    /// the mask leaves.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            let [q, k, v] = self.project(b, shared, x);
            let [q, k] = self.rotated(b, shared, [q, k]);
            let v = b.transpose(v, &[0, 2, 1, 3]);
            let slot = shared.slots.get(layer).copied();
            let (k, v) = match slot {
                Some(slot) => (b.kv_append(slot, KvPart::K, k), b.kv_append(slot, KvPart::V, v)),
                None => (k, v),
            };
            let attrs = AttentionAttrs {
                scale: Float(self.scale),
                causal: slot.map(|_| Dim::size(sizes::PAST)),
                window: self.window,
                softcap: self.softcap.map(Float),
                has_mask: false,
                has_bias: false,
            };
            let y = match self.sinks {
                Some(sinks) => sinks::attend(b, self, shared, sinks, [q, k, v]),
                None => b.attention(q, k, v, shared.mask, shared.bias, attrs),
            };
            let y = b.transpose(y, &[0, 2, 1, 3]);
            let width = Dim::from(self.heads * self.value_dim);
            let y = b.reshape(y, &[shared.batch.clone(), shared.tokens.clone(), width]);
            self.output.apply(b, y)
        })
    }

    /// Queries, keys and values, `[B, S, h, D]`.
    fn project(&self, b: &mut GraphBuilder<'_>, shared: &Shared, x: ValueId) -> [ValueId; 3] {
        let widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim];
        let parts = match &self.qkv {
            Qkv::Separate(linears) => linears.each_ref().map(|linear| {
                let part = linear.apply(b, x);
                self.clipped(b, part)
            }),
            Qkv::Latent(latent) => return latent.apply(b, x, self.heads, self.value_dim),
            Qkv::Fused(all, Packing::Parts) => {
                let all = all.apply(b, x);
                let all = self.clipped(b, all);
                let [q, k, v] = widths;
                [(0, q), (q, k), (q + k, v)].map(|(from, len)| b.slice(all, 2, Dim::from(from), Dim::from(len)))
            }
            Qkv::Fused(all, Packing::Groups) => {
                let all = all.apply(b, x);
                let all = self.clipped(b, all);
                return self.groups(b, shared, all);
            }
            Qkv::Fused(all, Packing::Shards) => {
                let all = all.apply(b, x);
                let all = self.clipped(b, all);
                return self.shards(b, shared, all);
            }
        };
        let [q, k, v] = match &self.qk_norm {
            Some(QkNorm::Whole([q_norm, k_norm])) => {
                let [q, k, v] = parts;
                [q_norm.apply(b, q), k_norm.apply(b, k), v]
            }
            _ => parts,
        };
        [
            self.heads(b, shared, q, self.heads, self.head_dim),
            self.heads(b, shared, k, self.kv_heads, self.head_dim),
            self.heads(b, shared, v, self.kv_heads, self.value_dim),
        ]
    }

    fn clipped(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let Some(most) = self.clip else { return x };
        let [low, high] = [-most, most].map(|bound| b.f32(bound));
        let x = b.binary(BinaryOp::Max, x, low);
        b.binary(BinaryOp::Min, x, high)
    }

    /// `[B, S, h·D]` to `[B, S, h, D]`, in which heads are rows.
    fn heads(&self, b: &mut GraphBuilder<'_>, shared: &Shared, x: ValueId, heads: u64, dim: u64) -> ValueId {
        b.reshape(x, &[shared.batch.clone(), shared.tokens.clone(), Dim::from(heads), Dim::from(dim)])
    }

    /// Heads out of a projection in [`Packing::Groups`].
    fn groups(&self, b: &mut GraphBuilder<'_>, shared: &Shared, all: ValueId) -> [ValueId; 3] {
        let group = self.heads / self.kv_heads.max(1);
        let (batch, tokens) = (shared.batch.clone(), shared.tokens.clone());
        let [kv_heads, dim] = [self.kv_heads, self.head_dim].map(Dim::from);
        let all = b.reshape(all, &[batch.clone(), tokens.clone(), kv_heads, Dim::from(group + 2), dim]);
        [(0, group, self.heads), (group, 1, self.kv_heads), (group + 1, 1, self.kv_heads)].map(|(from, len, heads)| {
            let part = b.slice(all, 3, Dim::from(from), Dim::from(len));
            self.heads(b, shared, part, heads, self.head_dim)
        })
    }

    /// Heads out of a projection in [`Packing::Shards`].
    fn shards(&self, b: &mut GraphBuilder<'_>, shared: &Shared, all: ValueId) -> [ValueId; 3] {
        let share = Dim::from(self.heads * self.head_dim / Packing::SHARDS);
        let (batch, tokens) = (shared.batch.clone(), shared.tokens.clone());
        let all = b.reshape(all, &[batch, tokens, Dim::from(Packing::SHARDS), Dim::from(3u64), share]);
        [0u64, 2, 1].map(|at| {
            let part = b.slice(all, 3, Dim::from(at), Dim::one());
            self.heads(b, shared, part, self.heads, self.head_dim)
        })
    }

    /// Queries and keys `[B, S, h, D]`, normalised and rotated: `[B, h, S, D]`.
    fn rotated(&self, b: &mut GraphBuilder<'_>, shared: &Shared, qk: [ValueId; 2]) -> [ValueId; 2] {
        let normed = |b: &mut GraphBuilder<'_>, norms: &[Norm; 2], [q, k]: [ValueId; 2]| {
            let [q_norm, k_norm] = norms;
            [q_norm.apply(b, q), k_norm.apply(b, k)]
        };
        let qk = match &self.qk_norm {
            Some(QkNorm::Heads(norms)) => normed(b, norms, qk),
            _ => qk,
        };
        let qk = qk.map(|x| {
            let x = b.transpose(x, &[0, 2, 1, 3]);
            shared.rotate(b, x, self.rope)
        });
        match &self.qk_norm {
            Some(QkNorm::RotatedHeads(norms)) => normed(b, norms, qk),
            _ => qk,
        }
    }
}
