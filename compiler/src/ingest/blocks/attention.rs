//! Self-attention: projections, norms of queries and keys, rotation, cache, scores.

use super::anchors::Anchors;
use super::depth;
use super::latent::Latent;
use super::linear::Linear;
use super::norm::Norm;
use super::probs::{self, Scores};
use super::shared::Shared;
use super::sharing::{self, HeadMaps, Made, Slots, Sources};
use super::sinks;
use crate::graph::{AttentionAttrs, Float, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::spec::{BinaryOp, ReduceOp};
use frit_plan::{KvPart, sizes};

/// Self-attention.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub name: &'static str,
    pub heads: u64,
    pub kv_heads: u64,
    /// Elements of a query or key head; with latent rows, of a row.
    pub head_dim: u64,
    /// Elements of a value head; with latent rows, their rank.
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
    pub sources: Sources,
    pub maps: HeadMaps,
}

/// The projections that make queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Qkv {
    Separate([Linear; 3]),
    /// Of queries, keys and values those that the layer computes itself.
    Some([Option<Linear>; 3]),
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
    /// Value heads.
    pub fn value_heads(&self) -> u64 {
        self.maps.value_heads.unwrap_or(self.kv_heads)
    }

    /// `x` is `[B, S, H]`; `layer` chooses the cache slot of a decoder. Without slots every query sees every key that
    /// the mask leaves.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            if let Some(y) = self.sources.output.and_then(|s| shared.made(s)).and_then(|m| m.y) {
                return self.output.apply(b, y);
            }
            let made = self.attend(b, shared, layer, x);
            shared.keep(layer, made);
            self.output.apply(b, made.y.unwrap_or(x))
        })
    }

    /// The output before the projection `[B, S, H·D]`, and what it is made of.
    fn attend(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> Made {
        let [q, new_k, v] = self.project(b, shared, x);
        let [q, new_k] = self.rotated(b, shared, [q, new_k]);
        let new_v = v.map(|v| b.transpose(v, &[0, 2, 1, 3])).map(|v| self.blended(b, shared, v));
        let source = self.sources.probs.and_then(|s| shared.made(s));
        let q = q.or(source.and_then(|m| m.q)).unwrap_or(x);
        let slots = shared.slots.get(layer).copied();
        let append = |b: &mut GraphBuilder<'_>, slot: Option<_>, part, new: Option<ValueId>| match (slot, new) {
            (Some(slot), Some(new)) => Some(b.kv_append(slot, part, new)),
            (None, new) => new,
            (_, None) => None,
        };
        let merged = slots.and_then(|s| s.merged);
        let (own_k, own_v) = match merged {
            Some(m) => {
                let mut whole = |part, new: Option<ValueId>| new.map(|new| m.whole(b, part, new));
                (whole(KvPart::K, new_k), whole(KvPart::V, new_v))
            }
            None => (
                append(b, slots.and_then(|s| s.k), KvPart::K, new_k),
                append(b, slots.and_then(|s| s.v), KvPart::V, new_v),
            ),
        };
        if let (Some(m), Some(first)) = (merged.filter(|m| m.is_second), shared.made(layer.saturating_sub(1))) {
            let mut retained = Vec::new();
            for (part, both) in [(KvPart::K, (first.new_k, new_k)), (KvPart::V, (first.new_v, new_v))] {
                if let ((Some(first), Some(second)), Some(merge)) = (both, &shared.merge) {
                    retained.extend(m.append(b, part, merge, shared.mask, [first, second]));
                }
            }
            if let ([k, v], true) = (&retained[..], shared.tells) {
                let both = b.add(*k, *v);
                let count = b.reduce(ReduceOp::Sum, both, &[1], false);
                depth::tell(b, &format!("retained.{}+{}", layer - 1, 2 * self.kv_heads), count);
            }
        }
        let own_v = match &self.qkv {
            Qkv::Latent(latent) => own_k.map(|rows| latent.values(b, rows)),
            _ => own_v,
        };
        let mut made = Made { q: Some(q), k: own_k, v: own_v, new_k, new_v, probs: None, y: None };
        let is_above = sharing::above(&self.sources, layer);
        let k = source.and_then(|m| m.k).or_else(|| self.taken(b, shared, layer, KvPart::K)).or(own_k).unwrap_or(x);
        let v = self.taken(b, shared, layer, KvPart::V).or(own_v).unwrap_or(x);

        let cut = |b: &mut GraphBuilder<'_>, v: ValueId, there: Option<usize>| match there {
            Some(s) if s > layer => v,
            _ if is_above && !shared.in_passes => sharing::before(b, v),
            _ => v,
        };
        let (k, v) = (cut(b, k, self.sources.keys), cut(b, v, self.sources.values));
        let k = self.spread(b, k, self.kv_heads, &self.maps.k_of);
        let v = self.spread(b, v, self.value_heads(), &self.maps.v_of);
        let last = slots.map(|_: Slots| shared.first_query.clone());
        if let Some(anchors) = &shared.anchors {
            return self.anchored(b, shared, anchors, layer, [q, k, v], made);
        }
        let mask = match (shared.mask, shared.visible.get()) {
            (Some(mask), Some(visible)) => Some(b.binary(BinaryOp::And, mask, visible)),
            (one, other) => one.or(other),
        };
        let (mask, bias) = match (is_above, shared.in_passes) {
            (true, false) => (mask.map(|m| last_axis(b, m)), shared.bias.map(|m| last_axis(b, m))),
            (true, true) => (Some(self.before(b, shared, mask, k)), shared.bias),
            _ => (mask, shared.bias),
        };
        // A source above is read up to the token before: all of it, or the window without the token itself.
        let (causal, window) = match (is_above, self.window) {
            (false, window) => (last, window),
            (true, Some(w)) if !shared.in_passes => (last.map(|at| at - Dim::one()), Some(w.saturating_sub(1))),
            (true, _) => (None, None),
        };
        let attrs = AttentionAttrs {
            scale: Float(self.scale),
            causal,
            window,
            softcap: self.softcap.map(Float),
            has_mask: false,
            has_bias: false,
        };
        let y = if let Some(sinks) = self.sinks {
            sinks::attend(b, self, shared, sinks, [q, k, v])
        } else if shared.keeps(layer) {
            let scores = Scores { q, k, mask, bias, attrs: &attrs };
            let probs = probs::probabilities(b, &scores);
            made.probs = Some(probs);
            probs::weighted(b, probs, v)
        } else if let Some(probs) = source.and_then(|m| m.probs) {
            probs::weighted(b, probs, v)
        } else {
            b.attention(q, k, v, mask, bias, attrs)
        };
        made.y = Some(self.joined(b, shared, y));
        made
    }

    /// Heads `[B, h, S, D]` side by side, `[B, S, h·D]`; those of latent rows as the values that they stand for.
    fn joined(&self, b: &mut GraphBuilder<'_>, shared: &Shared, y: ValueId) -> ValueId {
        let (y, value_dim) = match &self.qkv {
            Qkv::Latent(latent) => (latent.raise(b, y, self.heads), latent.value),
            _ => (y, self.value_dim),
        };
        let y = b.transpose(y, &[0, 2, 1, 3]);
        let width = Dim::from(self.heads * value_dim);
        b.reshape(y, &[shared.batch.clone(), shared.tokens.clone(), width])
    }

    /// Attention to anchors and near tokens, and to the anchors of another layer where that is asked for.
    fn anchored(
        &self,
        b: &mut GraphBuilder<'_>,
        shared: &Shared,
        anchors: &Anchors,
        layer: usize,
        [q, k, v]: [ValueId; 3],
        made: Made,
    ) -> Made {
        let source = anchors.layer.filter(|l| *l < layer).and_then(|l| shared.made(l));
        let [k, v, mask] = match source.and_then(|s| Some((s.k?, s.v?))) {
            Some((other_k, other_v)) => {
                let other_k = self.spread(b, other_k, self.kv_heads, &self.maps.k_of);
                let other_v = self.spread(b, other_v, self.value_heads(), &self.maps.v_of);
                [b.concat(&[k, other_k], 2), b.concat(&[v, other_v], 2), b.concat(&[anchors.own, anchors.other], 3)]
            }
            None => [k, v, anchors.own],
        };
        let attrs = AttentionAttrs {
            scale: Float(self.scale),
            causal: None,
            window: None,
            softcap: self.softcap.map(Float),
            has_mask: false,
            has_bias: false,
        };
        let y = b.attention(q, k, v, Some(mask), None, attrs);
        Made { y: Some(self.joined(b, shared, y)), ..made }
    }

    /// Which keys lie before each query, and in its window if there is one: Bool `[B, 1, S, P + S]`.
    fn before(&self, b: &mut GraphBuilder<'_>, shared: &Shared, mask: Option<ValueId>, k: ValueId) -> ValueId {
        let keys = b.ty(k).shape.get(2).cloned().unwrap_or_else(Dim::one);
        let square = [Dim::one(), Dim::one(), shared.tokens.clone(), keys.clone()];
        let query = b.iota(&square, 2, shared.first_query.clone());
        let key = b.iota(&square, 3, Dim::zero());
        let mut seen = b.binary(BinaryOp::Lt, key, query);
        if let Some(window) = self.window {
            let distance = b.sub(query, key);
            let window = b.i32(i32::try_from(window).unwrap_or(i32::MAX));
            let near = b.binary(BinaryOp::Lt, distance, window);
            seen = b.binary(BinaryOp::And, seen, near);
        }
        if let Some(mask) = mask {
            seen = b.binary(BinaryOp::And, seen, mask);
        }
        b.broadcast(seen, &[shared.batch.clone(), Dim::one(), shared.tokens.clone(), keys])
    }

    /// Keys or values of another layer: `[B, G, P + S, D]` of one below, `[B, G, P, D]` of one above. In passes all of
    /// `[B, G, P + S, D]` is there, the last of it from the pass before.
    fn taken(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, part: KvPart) -> Option<ValueId> {
        let source = if part == KvPart::K { self.sources.keys } else { self.sources.values }?;
        if source > layer {
            let slots = shared.slots.get(source)?;
            let (slot, heads, dim) = match part {
                KvPart::K => (slots.k?, self.kv_heads, self.head_dim),
                KvPart::V => (slots.v?, self.value_heads(), self.value_dim),
            };
            let now = if shared.in_passes { Dim::size(sizes::TOKENS) } else { Dim::zero() };
            return Some(b.kv_rows(slot, part, heads, dim, Dim::size(sizes::PAST) + now));
        }
        let made = shared.made(source)?;
        if part == KvPart::K { made.k } else { made.v }
    }

    /// `λ₁ V + λ₂ V₀` for the tokens of this run.
    fn blended(&self, b: &mut GraphBuilder<'_>, shared: &Shared, v: ValueId) -> ValueId {
        let Some([own, first]) = self.sources.blend else { return v };
        let Some(source) = shared.made(0).and_then(|m| m.new_v) else { return v };
        if (own, first) == (1.0, 0.0) {
            return v;
        }
        let [own, first] = [own, first].map(|factor| b.f32(factor));
        let v = b.mul(v, own);
        let source = b.mul(source, first);
        b.add(v, source)
    }

    /// One head for each query head, by a map; as they are without one.
    fn spread(&self, b: &mut GraphBuilder<'_>, x: ValueId, heads: u64, of: &[u64]) -> ValueId {
        let grouped = self.maps.value_heads.is_none_or(|v| v == self.kv_heads);
        if of.is_empty() && grouped {
            return x;
        }
        let even: Vec<u64> = (0..self.heads).map(|h| h * heads / self.heads.max(1)).collect();
        let of = if of.is_empty() { &even } else { of };
        let one = |b: &mut GraphBuilder<'_>, head: &u64| b.slice(x, 1, Dim::from(*head), Dim::one());
        let parts: Vec<ValueId> = of.iter().map(|head| one(b, head)).collect();
        b.concat(&parts, 1)
    }

    /// Queries, keys and values, `[B, S, h, D]`, as far as the layer computes them.
    fn project(&self, b: &mut GraphBuilder<'_>, shared: &Shared, x: ValueId) -> [Option<ValueId>; 3] {
        let [heads, kv_heads, value_heads] = [self.heads, self.kv_heads, self.value_heads()];
        let widths = [heads * self.head_dim, kv_heads * self.head_dim, value_heads * self.value_dim];
        let [own_k, own_v] = self.sources.own();
        let parts = match &self.qkv {
            Qkv::Separate(linears) => linears.each_ref().map(|linear| {
                let part = linear.apply(b, x);
                Some(self.clipped(b, part))
            }),
            Qkv::Some(linears) => linears.each_ref().map(|linear| {
                let part = linear.as_ref()?.apply(b, x);
                Some(self.clipped(b, part))
            }),
            Qkv::Latent(latent) => {
                let [q, k] = latent.apply(b, x, self.heads);
                return [Some(q), Some(k), None];
            }
            Qkv::Fused(all, Packing::Parts) => {
                let all = all.apply(b, x);
                let all = self.clipped(b, all);
                let [q, k, v] = widths;
                [(0, q), (q, k), (q + k, v)].map(|(from, len)| Some(b.slice(all, 2, Dim::from(from), Dim::from(len))))
            }
            Qkv::Fused(all, Packing::Groups) => {
                let all = all.apply(b, x);
                let all = self.clipped(b, all);
                let [q, k, v] = self.groups(b, shared, all);
                return [self.sources.own_queries().then_some(q), own_k.then_some(k), own_v.then_some(v)];
            }
            Qkv::Fused(all, Packing::Shards) => {
                let all = all.apply(b, x);
                let all = self.clipped(b, all);
                return self.shards(b, shared, all).map(Some);
            }
        };
        let [q, k, v] = match &self.qk_norm {
            Some(QkNorm::Whole([q_norm, k_norm])) => {
                let [q, k, v] = parts;
                [q.map(|q| q_norm.apply(b, q)), k.map(|k| k_norm.apply(b, k)), v]
            }
            _ => parts,
        };
        [
            q.filter(|_| self.sources.own_queries()).map(|q| self.heads(b, shared, q, heads, self.head_dim)),
            k.filter(|_| own_k).map(|k| self.heads(b, shared, k, kv_heads, self.head_dim)),
            v.filter(|_| own_v).map(|v| self.heads(b, shared, v, value_heads, self.value_dim)),
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
    fn rotated(&self, b: &mut GraphBuilder<'_>, shared: &Shared, qk: [Option<ValueId>; 2]) -> [Option<ValueId>; 2] {
        type Both = [Option<ValueId>; 2];
        let normed = |b: &mut GraphBuilder<'_>, norms: &[Norm; 2], [q, k]: Both| {
            let [q_norm, k_norm] = norms;
            [q.map(|q| q_norm.apply(b, q)), k.map(|k| k_norm.apply(b, k))]
        };
        let qk = match &self.qk_norm {
            Some(QkNorm::Heads(norms)) => normed(b, norms, qk),
            _ => qk,
        };
        let qk = qk.map(|x| {
            let x = b.transpose(x?, &[0, 2, 1, 3]);
            Some(shared.rotate(b, x, self.rope))
        });
        match &self.qk_norm {
            Some(QkNorm::RotatedHeads(norms)) => normed(b, norms, qk),
            _ => qk,
        }
    }
}

/// The first P entries of the last axis, or the axis as it is where it has one entry.
fn last_axis(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    let axis = b.ty(x).rank().saturating_sub(1);
    match b.ty(x).shape.get(axis).and_then(Dim::as_const) {
        Some(1) => x,
        _ => b.slice(x, axis, Dim::zero(), Dim::size(sizes::PAST)),
    }
}
