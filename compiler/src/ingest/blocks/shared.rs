//! What the layers of one graph have in common.

use super::anchors::Anchors;
use super::rotary::Rotation;
use super::sharing::{Made, Slots};
use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::GraphBuilder;
use crate::ingest::policy::KvMerge;
use frit_kernels::dim::Dim;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// What the layers of one graph share.
pub(crate) struct Shared {
    pub(super) batch: Dim,
    pub(super) tokens: Dim,
    /// Bool, broadcastable to `[B, H, S, T]`.
    pub(super) mask: Option<ValueId>,
    /// F32, broadcastable to `[B, H, S, T]`: added to the scaled scores of every layer.
    pub(super) bias: Option<ValueId>,
    /// I32 `[B, S]`.
    pub(super) positions: Option<ValueId>,
    /// By the number that an attention chooses.
    pub(super) rotations: Vec<Rotation>,
    /// The cache slots of each layer of a decoder.
    pub(super) slots: Vec<Slots>,
    /// Tokens before the first query, those of this run included.
    pub(super) first_query: Dim,
    /// Layers whose probabilities are kept for others.
    pub(super) kept: BTreeSet<usize>,
    /// Who sees what, where caches keep anchors and near tokens only.
    pub(super) anchors: Option<Anchors>,
    /// How slots are merged, where they are.
    pub(super) merge: Option<KvMerge>,
    /// Whether what is read from layers above was made by a pass before this one.
    pub(super) in_passes: bool,
    /// Whether tokens tell what became of them: those of a whole run, or new ones.
    pub(super) tells: bool,
    /// The slots of layers that keep which tokens ran them.
    pub(super) ran: Vec<Option<KvSlotId>>,
    /// Bool `[B, 1, 1, T]`: keys that are visible in the layer under construction, where some are not.
    pub(super) visible: Cell<Option<ValueId>>,
    /// What the layers so far computed.
    pub(super) made: RefCell<BTreeMap<usize, Made>>,
}

impl Shared {
    /// What a layer computed.
    pub(super) fn made(&self, layer: usize) -> Option<Made> {
        self.made.borrow().get(&layer).copied()
    }
    /// Notes what a layer computed, for those behind it.
    pub(super) fn keep(&self, layer: usize, made: Made) {
        self.made.borrow_mut().insert(layer, made);
    }
    /// Whether a layer's probabilities are kept in memory for others.
    pub(super) fn keeps(&self, layer: usize) -> bool {
        self.kept.contains(&layer)
    }
    /// The same for the last token of each sequence alone: queries and outputs so far are cut to it.
    pub(super) fn last_token(self, b: &mut GraphBuilder<'_>) -> Shared {
        let from = self.tokens.clone() - Dim::one();
        let last =
            |b: &mut GraphBuilder<'_>, x: Option<ValueId>, axis| x.map(|x| b.slice(x, axis, from.clone(), Dim::one()));
        let positions = last(b, self.positions, 1);
        for made in self.made.borrow_mut().values_mut() {
            made.q = last(b, made.q, 2);
            made.y = last(b, made.y, 1);
            made.probs = last(b, made.probs, 2);
        }
        let anchors = self.anchors.map(|a| {
            let [own, other] = [a.own, a.other].map(|seen| b.slice(seen, 2, from.clone(), Dim::one()));
            Anchors { own, other, ..a }
        });
        Shared { positions, anchors, first_query: self.first_query + from, tokens: Dim::one(), ..self }
    }

    /// Rotates the heads of `x` `[B, h, S, D]` by the tables of that number; without tables `x` stays.
    pub(super) fn rotate(&self, b: &mut GraphBuilder<'_>, x: ValueId, tables: Option<usize>) -> ValueId {
        let rotation = tables.and_then(|i| self.rotations.get(i));
        match (rotation, self.positions) {
            (Some(rotation), Some(positions)) => rotation.apply(b, x, positions),
            _ => x,
        }
    }
}
