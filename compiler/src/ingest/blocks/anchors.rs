//! Attention to anchors and near tokens: which tokens are anchors is kept beside the cache, and deeper layers may attend
//! to the anchors of one layer besides their own.

use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::GraphBuilder;
use crate::ingest::policy::KvKeep;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::BinaryOp;
use frit_plan::{KvPart, sizes};

/// What each query of a run sees, Bool `[B, 1, S, T]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchors {
    /// Of a layer's own keys: anchors and near tokens.
    pub own: ValueId,
    /// Of another layer's keys: anchors.
    pub other: ValueId,
    /// Whose.
    pub layer: Option<usize>,
}

impl Anchors {
    /// Notes the anchors among `ids` `[B, S]` in `slot` (one head of one element), and says who sees what; `mask` is Bool,
    /// broadcastable to `[B, 1, S, T]`.
    pub fn new(
        b: &mut GraphBuilder<'_>,
        keep: &KvKeep,
        slot: KvSlotId,
        ids: ValueId,
        mask: ValueId,
        shape: &[Dim; 4],
    ) -> Anchors {
        b.scope("anchors", |b| {
            let mut is_anchor: Option<ValueId> = None;
            for id in &keep.anchors {
                let id = b.i32(i32::try_from(*id).unwrap_or(i32::MAX));
                let same = b.binary(BinaryOp::Eq, ids, id);
                is_anchor = Some(is_anchor.map_or(same, |all| b.binary(BinaryOp::Or, all, same)));
            }
            let is_anchor = is_anchor.unwrap_or_else(|| b.binary(BinaryOp::Lt, ids, ids));
            let [batch, _, tokens, keys] = shape;
            let flags = b.cast(is_anchor, Scalar::F32);
            let flags = b.reshape(flags, &[batch.clone(), Dim::one(), tokens.clone(), Dim::one()]);
            let flags = b.kv_append(slot, KvPart::K, flags);
            let half = b.f32(0.5);
            let flags = b.binary(BinaryOp::Lt, half, flags);
            let flags = b.reshape(flags, &[batch.clone(), Dim::one(), Dim::one(), keys.clone()]);

            let square = [Dim::one(), Dim::one(), tokens.clone(), keys.clone()];
            let query = b.iota(&square, 2, Dim::size(sizes::PAST));
            let key = b.iota(&square, 3, Dim::zero());
            let past = b.binary(BinaryOp::Le, key, query);
            let distance = b.sub(query, key);
            let window = b.i32(i32::try_from(keep.window).unwrap_or(i32::MAX));
            let near = b.binary(BinaryOp::Lt, distance, window);
            let visible = b.binary(BinaryOp::And, past, mask);
            let own = b.binary(BinaryOp::Or, near, flags);
            let [own, other] = [own, flags].map(|seen| {
                let seen = b.binary(BinaryOp::And, visible, seen);
                b.broadcast(seen, shape)
            });
            Anchors { own, other, layer: keep.layer.map(|l| l as usize) }
        })
    }
}
