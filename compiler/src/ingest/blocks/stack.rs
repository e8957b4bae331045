//! Layers of encoders, and of decoders that attend to an encoder: attention, attention to the other sequence, the
//! feed-forward part, each with its norm and its residual.

use super::disentangled::{Disentangled, Distances};
use super::ffn::Ffn;
use super::multi_head::{Memory, MultiHead, Rotary, ScoreTerms};
use super::nearby::Nearby;
use super::norm::Norm;
use super::relative::per_head;
use crate::graph::{KvSlotId, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;

/// Where the norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `x + f(norm(x))`.
    Before,
    /// `norm(x + f(x))`.
    After,
}

/// A layer.
#[derive(Clone, Debug)]
pub(crate) struct StackLayer {
    pub attention: Part<MultiHead>,
    /// Attention to another sequence.
    pub cross: Option<Part<MultiHead>>,
    pub ffn: Option<Part<Ffn>>,
    /// Whether attention sees near keys only, [`Scene::near`].
    pub local: bool,
    /// A bias of the layer's own on the scores, `[classes, h]`, read at [`Scene::classes`].
    pub bias: Option<WeightId>,
    /// Relative positions that the content addresses.
    pub relative: Option<Disentangled>,
}

/// A part of a layer with its norm, and a gain on its result.
#[derive(Clone, Debug)]
pub(crate) struct Part<F> {
    pub run: F,
    pub norm: Option<Norm>,
    /// `[H]`: the residual gets the result times this.
    pub gain: Option<WeightId>,
}

/// Layers one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// What the list of layers is called.
    pub name: &'static str,
    pub place: Place,
    pub layers: Vec<StackLayer>,
    /// What joins the first layer.
    pub nearby: Option<Nearby>,
    /// The norm behind the last layer.
    pub norm: Option<Norm>,
}

/// What the layers of one graph share.
#[derive(Default)]
pub(crate) struct Scene<'a> {
    /// Of attention to the own sequence.
    pub scores: ScoreTerms,
    /// The mask of [`StackLayer::local`] layers.
    pub near: Option<ValueId>,
    pub rotary: Option<Rotary<'a>>,
    /// Cache slots of the own sequence, one a layer.
    pub slots: Option<&'a [KvSlotId]>,
    /// Of attention to another sequence.
    pub other: Option<Other<'a>>,
    /// I32 `[S, T]`: the class of each pair of positions.
    pub classes: Option<ValueId>,
    /// What [`StackLayer::relative`] reads.
    pub distances: Option<Distances>,
    /// What [`Stack::nearby`] reads: F32 `[B, S, 1]`, 0 at padding.
    pub seen: Option<ValueId>,
}

/// The other sequence.
pub(crate) struct Other<'a> {
    pub mask: Option<ValueId>,
    pub states: OtherStates<'a>,
}

/// Where the other sequence is.
pub(crate) enum OtherStates<'a> {
    /// `[B, T, H]`.
    Here(ValueId),
    /// Its keys and values are in these slots, one a layer.
    Filled(&'a [KvSlotId]),
}

impl<F> Part<F> {
    /// A part with a norm.
    pub fn new(run: F, norm: Norm) -> Part<F> {
        Part { run, norm: Some(norm), gain: None }
    }
    fn apply(
        &self,
        b: &mut GraphBuilder<'_>,
        place: Place,
        x: ValueId,
        run: impl FnOnce(&F, &mut GraphBuilder<'_>, ValueId) -> ValueId,
    ) -> ValueId {
        let norm = |b: &mut GraphBuilder<'_>, x| self.norm.as_ref().map_or(x, |norm| norm.apply(b, x));
        let input = if place == Place::Before { norm(b, x) } else { x };
        let y = run(&self.run, b, input);
        let y = match self.gain {
            Some(gain) => {
                let gain = b.weight(gain);
                b.mul(y, gain)
            }
            None => y,
        };
        let sum = b.add(y, x);
        if place == Place::After { norm(b, sum) } else { sum }
    }
}

impl Stack {
    /// `x` is `[B, S, H]`, and so is the result.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, scene: &Scene<'_>, mut x: ValueId) -> ValueId {
        for (i, layer) in self.layers.iter().enumerate() {
            let y = b.scope(&format!("{}.{i}", self.name), |b| layer.apply(b, scene, self.place, i, x));
            x = match (&self.nearby, scene.seen) {
                (Some(nearby), Some(seen)) if i == 0 => nearby.apply(b, x, y, seen),
                _ => y,
            };
        }
        match &self.norm {
            Some(norm) => norm.apply(b, x),
            None => x,
        }
    }
    /// For each layer the first one whose keys and values of another sequence are the same, since the same weights make
    /// them of the same states.
    pub fn memories(&self) -> Vec<usize> {
        let same = |a: &StackLayer, b: &StackLayer| match (&a.cross, &b.cross) {
            (Some(a), Some(b)) => a.run.reads_as(&b.run),
            _ => false,
        };
        let first = |(i, layer): (usize, &StackLayer)| self.layers.iter().position(|l| same(l, layer)).unwrap_or(i);
        self.layers.iter().enumerate().map(first).collect()
    }
    /// Writes the keys and values of another sequence `[B, T, H]` to their slots, one a layer; a slot that several layers
    /// have, see [`Stack::memories`], is written once.
    pub fn fill(&self, b: &mut GraphBuilder<'_>, slots: &[KvSlotId], states: ValueId) {
        for (i, (layer, slot)) in self.layers.iter().zip(slots).enumerate() {
            let is_written = slots.iter().take(i).any(|s| s == slot);
            if let Some(cross) = layer.cross.as_ref().filter(|_| !is_written) {
                b.scope(&format!("{}.{i}", self.name), |b| cross.run.fill(b, *slot, states));
            }
        }
    }
}

impl StackLayer {
    /// A layer of attention to its own sequence alone.
    pub fn plain(attention: Part<MultiHead>) -> StackLayer {
        StackLayer { attention, cross: None, ffn: None, local: false, bias: None, relative: None }
    }
    fn apply(&self, b: &mut GraphBuilder<'_>, scene: &Scene<'_>, place: Place, i: usize, x: ValueId) -> ValueId {
        let slot = scene.slots.and_then(|slots| slots.get(i).copied());
        let memory = slot.map_or(Memory::Own, Memory::Grown);
        let mut scores = scene.scores.clone();
        if self.local {
            scores.mask = scene.near.or(scores.mask);
        }
        if let (Some(table), Some(classes)) = (self.bias, scene.classes) {
            let table = b.weight(table);
            scores.bias = Some(per_head(b, table, classes));
        }
        let x = self.attention.apply(b, place, x, |attention, b, x| match (&self.relative, &scene.distances) {
            (Some(relative), Some(distances)) => relative.attend(b, attention, distances, &scores, x),
            _ => attention.apply(b, x, memory, &scores, scene.rotary),
        });
        let x = match (&self.cross, &scene.other) {
            (Some(cross), Some(other)) => {
                let memory = match other.states {
                    OtherStates::Here(states) => Some(Memory::Other(states)),
                    OtherStates::Filled(slots) => slots.get(i).copied().map(Memory::Filled),
                };
                let scores = ScoreTerms { mask: other.mask, ..ScoreTerms::default() };
                cross.apply(b, place, x, |cross, b, x| cross.apply(b, x, memory.unwrap_or(Memory::Own), &scores, None))
            }
            _ => x,
        };
        self.ffn.as_ref().map_or(x, |ffn| ffn.apply(b, place, x, |ffn, b, x| ffn.apply(b, x)))
    }
}
