//! What the layers of one graph have in common.

use super::rotary::Rotation;
use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

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
    /// A cache slot for each layer of a decoder.
    pub(super) slots: Vec<KvSlotId>,
}

impl Shared {
    /// Rotates the heads of `x` `[B, h, S, D]` by the tables of that number; without tables `x` stays.
    pub(super) fn rotate(&self, b: &mut GraphBuilder<'_>, x: ValueId, tables: Option<usize>) -> ValueId {
        let rotation = tables.and_then(|i| self.rotations.get(i));
        match (rotation, self.positions) {
            (Some(rotation), Some(positions)) => rotation.apply(b, x, positions),
            _ => x,
        }
    }
}
