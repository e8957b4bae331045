//! Attention of one sequence to itself or to another one.

use super::linear::Linear;
use super::rotary::Rotation;
use crate::graph::{AttentionAttrs, Float, KvSlotId, ValueId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_plan::KvPart;

/// Attention with as many key heads as query heads.
#[derive(Clone, Debug)]
pub(crate) struct MultiHead {
    pub name: &'static str,
    pub heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Factor on the scores.
    pub scale: f32,
    pub qkv: Projections,
    /// The number of the rotary tables in use.
    pub rope: Option<usize>,
    pub output: Linear,
}

/// The projections that make queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Projections {
    Separate([Linear; 3]),
    /// One projection: all queries, all keys, all values.
    Fused(Linear),
}

/// Where keys and values come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory {
    /// The queries' own sequence.
    Own,
    /// The queries' own sequence behind the one in a cache slot.
    Grown(KvSlotId),
    /// Another sequence `[B, T, H]`.
    Other(ValueId),
    /// Another sequence, whose keys and values an earlier run left in a cache slot.
    Filled(KvSlotId),
}

/// Which keys a query sees, and how its scores are changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScoreTerms {
    /// Bool, broadcastable to `[B, h, S, T]`.
    pub mask: Option<ValueId>,
    /// F32, broadcastable to `[B, h, S, T]`.
    pub bias: Option<ValueId>,
    /// Query s sees key t iff `t ≤ s + offset`.
    pub causal: Option<Dim>,
}

/// Rotary tables and the positions `[B, S]` at which they are read.
#[derive(Clone, Copy)]
pub(crate) struct Rotary<'a> {
    pub tables: &'a [Rotation],
    pub positions: ValueId,
}

impl MultiHead {
    /// `x` is `[B, S, H]`.
    pub fn apply(
        &self,
        b: &mut GraphBuilder<'_>,
        x: ValueId,
        memory: Memory,
        scores: &ScoreTerms,
        rotary: Option<Rotary<'_>>,
    ) -> ValueId {
        b.scope(self.name, |b| {
            let (q, k, v) = match memory {
                Memory::Own | Memory::Grown(_) => {
                    let [q, k, v] = self.project(b, x);
                    let [q, k] = [q, k].map(|x| self.rotated(b, x, rotary));
                    match memory {
                        Memory::Grown(slot) => (q, b.kv_append(slot, KvPart::K, k), b.kv_append(slot, KvPart::V, v)),
                        _ => (q, k, v),
                    }
                }
                Memory::Other(states) => {
                    let [k, v] = self.keys_and_values(b, states);
                    (self.queries(b, x), k, v)
                }
                Memory::Filled(slot) => (self.queries(b, x), b.kv_load(slot, KvPart::K), b.kv_load(slot, KvPart::V)),
            };
            self.attend(b, [q, k, v], scores)
        })
    }

    /// Writes the keys and values of `states` `[B, T, H]` to a cache slot, for [`Memory::Filled`] in later runs.
    pub fn fill(&self, b: &mut GraphBuilder<'_>, slot: KvSlotId, states: ValueId) {
        b.scope(self.name, |b| {
            let [k, v] = self.keys_and_values(b, states);
            b.kv_fill(slot, KvPart::K, k);
            b.kv_fill(slot, KvPart::V, v);
        });
    }

    /// Whether another attention makes the same keys and values of the same states.
    pub fn reads_as(&self, other: &MultiHead) -> bool {
        let same = match (&self.qkv, &other.qkv) {
            (Projections::Separate([_, own @ ..]), Projections::Separate([_, other @ ..])) => own == other,
            (Projections::Fused(own), Projections::Fused(other)) => own == other,
            _ => false,
        };
        same && (self.heads, self.head_dim) == (other.heads, other.head_dim)
    }

    /// ScoreTerms, their softmax, the weighted values and the output projection; operands are `[B, h, S, D]`.
    pub fn attend(&self, b: &mut GraphBuilder<'_>, [q, k, v]: [ValueId; 3], scores: &ScoreTerms) -> ValueId {
        let attrs = AttentionAttrs {
            scale: Float(self.scale),
            causal: scores.causal.clone(),
            window: None,
            softcap: None,
            has_mask: false,
            has_bias: false,
        };
        let y = b.attention(q, k, v, scores.mask, scores.bias, attrs);
        let y = b.transpose(y, &[0, 2, 1, 3]);
        let mut shape = b.ty(y).shape.clone();
        shape.truncate(2);
        shape.push(Dim::from(self.heads * self.head_dim));
        let y = b.reshape(y, &shape);
        self.output.apply(b, y)
    }

    /// Queries, keys and values of one sequence, `[B, h, S, D]`.
    pub fn project(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> [ValueId; 3] {
        let parts = match &self.qkv {
            Projections::Separate(linears) => linears.each_ref().map(|linear| linear.apply(b, x)),
            Projections::Fused(all) => {
                let width = self.heads * self.head_dim;
                let all = all.apply(b, x);
                [0, 1, 2].map(|i| b.slice(all, 2, Dim::from(i * width), Dim::from(width)))
            }
        };
        parts.map(|x| self.split(b, x))
    }

    fn queries(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        match &self.qkv {
            Projections::Separate([q, ..]) => {
                let q = q.apply(b, x);
                self.split(b, q)
            }
            Projections::Fused(_) => {
                let [q, ..] = self.project(b, x);
                q
            }
        }
    }

    fn keys_and_values(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> [ValueId; 2] {
        match &self.qkv {
            Projections::Separate([_, k, v]) => [k, v].map(|linear| {
                let y = linear.apply(b, x);
                self.split(b, y)
            }),
            Projections::Fused(_) => {
                let [_, k, v] = self.project(b, x);
                [k, v]
            }
        }
    }

    /// `[B, S, h·D]` to `[B, h, S, D]`.
    pub fn split(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let mut shape = b.ty(x).shape.clone();
        shape.truncate(2);
        shape.extend([Dim::from(self.heads), Dim::from(self.head_dim)]);
        let x = b.reshape(x, &shape);
        b.transpose(x, &[0, 2, 1, 3])
    }

    fn rotated(&self, b: &mut GraphBuilder<'_>, x: ValueId, rotary: Option<Rotary<'_>>) -> ValueId {
        let Some(Rotary { tables, positions }) = rotary else { return x };
        match self.rope.and_then(|i| tables.get(i)) {
            Some(rotation) => rotation.apply(b, x, positions),
            None => x,
        }
    }
}
