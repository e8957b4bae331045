//! What a layer takes from other layers instead of computing it: keys and values, attention probabilities, attention
//! outputs. Cache slots belong to the layers that append to them.

use super::attention::Attention;
use super::decoder::Layer;
use super::merged::Merged;
use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::policy::KvMerge;
use frit_kernels::dim::Dim;
use frit_plan::sizes;

/// Where the parts of a layer's attention come from. `None`: from the layer itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sources {
    /// The layer whose keys are read.
    pub keys: Option<usize>,
    /// The layer whose values are read.
    pub values: Option<usize>,
    /// The layer whose probabilities are used: its queries and keys.
    pub probs: Option<usize>,
    /// The layer whose attention output, before the projection, is used.
    pub output: Option<usize>,
    /// Whether the layer has no projection of keys, of values: nobody reads them.
    pub lacks: [bool; 2],
    /// `λ₁ V + λ₂ V₀`: own values are blended with those of layer 0 when they are appended.
    pub blend: Option<[f32; 2]>,
}

impl Sources {
    /// Whether the layer computes keys and values of its own.
    pub fn own(&self) -> [bool; 2] {
        self.lacks.map(|lacks| !lacks)
    }
    /// Whether the layer computes queries of its own.
    pub fn own_queries(&self) -> bool {
        self.output.is_none() && self.probs.is_none()
    }
}

/// How query heads find their key and value heads, where it is not the order of grouped queries.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HeadMaps {
    /// Value heads, where there are not as many as key heads.
    pub value_heads: Option<u64>,
    /// Key head of each query head; empty: `h · keys / queries`.
    pub k_of: Vec<u64>,
    /// Value head of each query head.
    pub v_of: Vec<u64>,
}

/// The cache slots of a layer that appends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slots {
    pub k: Option<KvSlotId>,
    pub v: Option<KvSlotId>,
    /// In place of both: those that it shares with a neighbour.
    pub merged: Option<Merged>,
}

/// What a layer has computed in one graph and others may read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// Rotated queries `[B, H, S, D]`.
    pub q: Option<ValueId>,
    /// Keys `[B, G, P + S, D]`.
    pub k: Option<ValueId>,
    /// Values `[B, G, P + S, D]`.
    pub v: Option<ValueId>,
    /// Rotated keys of the current tokens `[B, G, S, D]`.
    pub new_k: Option<ValueId>,
    /// Values of the current tokens `[B, G, S, D]`.
    pub new_v: Option<ValueId>,
    /// Probabilities `[B, H, S, P + S]`, where they are kept.
    pub probs: Option<ValueId>,
    /// The attention's output before its projection, `[B, S, H·D]`.
    pub y: Option<ValueId>,
}

/// Declares the slots of each layer: none where both parts come from elsewhere, one for what it appends, two where keys
/// and values differ in heads. Pairs of layers from the first of `merge` on share theirs.
pub(super) fn declare(
    m: &mut ModelBuilder,
    layers: &[Layer],
    runs: impl Fn(usize) -> bool,
    merge: Option<(usize, KvMerge)>,
) -> Vec<Slots> {
    let one = |m: &mut ModelBuilder, i: usize, a: &Attention| {
        let [k, v] = a.sources.own();
        let (heads, value_heads) = (a.kv_heads, a.value_heads());
        let (k_dim, v_dim) = (a.head_dim, a.value_dim);
        match (k, v) {
            (false, false) => Slots::default(),
            (true, true) if heads == value_heads => {
                let slot = m.kv_slot(&format!("layer{i}"), heads, k_dim, v_dim);
                Slots { k: Some(slot), v: Some(slot), merged: None }
            }
            (true, true) => Slots {
                k: Some(m.kv_slot(&format!("layer{i}.k"), heads, k_dim, 0)),
                v: Some(m.kv_slot(&format!("layer{i}.v"), value_heads, 0, v_dim)),
                merged: None,
            },
            (true, false) => Slots { k: Some(m.kv_slot(&format!("layer{i}"), heads, k_dim, 0)), ..Slots::default() },
            (false, true) => {
                Slots { v: Some(m.kv_slot(&format!("layer{i}"), value_heads, 0, v_dim)), ..Slots::default() }
            }
        }
    };
    let pairs = pairs(layers.len(), merge.map(|m| m.0));
    let mut out: Vec<Slots> = Vec::with_capacity(layers.len());
    for (i, layer) in layers.iter().enumerate() {
        let merged = match (&layer.attention, &merge) {
            (Some(a), Some((_, merge))) if pairs.contains(&i) => Some(Merged::declare(m, i, a, merge)),
            _ if i > 0 && pairs.contains(&(i - 1)) => out.last().and_then(|s| s.merged).map(Merged::second),
            _ => None,
        };
        out.push(match &layer.attention {
            Some(_) if merged.is_some() => Slots { merged, ..Slots::default() },
            Some(a) if runs(i) => one(m, i, a),
            _ => Slots::default(),
        });
    }
    out
}

/// The first layers of the pairs that share slots: every second one from `from` on that has a neighbour.
pub(super) fn pairs(layers: usize, from: Option<usize>) -> Vec<usize> {
    from.map_or_else(Vec::new, |from| (from..layers.saturating_sub(1)).step_by(2).collect())
}

/// Whether some layer reads what a layer above it appends. Such a decoder takes one token at a time: the keys of the
/// token before must be there.
pub(super) fn reads_above(layers: &[Layer]) -> bool {
    layers.iter().enumerate().any(|(i, l)| l.attention.as_ref().is_some_and(|a| above(&a.sources, i)))
}

/// Whether the attention of layer `i` reads what a layer above it appends.
pub(super) fn above(s: &Sources, i: usize) -> bool {
    [s.keys, s.values].into_iter().flatten().any(|source| source > i)
}

/// The first layer behind the last one that appends to a cache: from there on a prompt needs its last token alone.
/// `None` when that is the end.
pub(super) fn after_producers(layers: &[Layer], runs: impl Fn(usize) -> bool) -> Option<usize> {
    let appends = |i: &usize| {
        let attention = layers.get(*i).and_then(|l| l.attention.as_ref());
        runs(*i) && attention.is_some_and(|a| a.sources.own() != [false, false])
    };
    let next = (0..layers.len()).rev().find(appends)? + 1;
    (next < layers.len()).then_some(next)
}

/// The first P positions of keys or values, those before this run.
pub(super) fn before(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    b.slice(x, 2, Dim::zero(), Dim::size(sizes::PAST))
}
