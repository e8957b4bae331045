//! Tokens of merged cache slots whose two directions are too far apart to share one: their keys or values stay as they are,
//! in rows that are taken in the order in which they are needed, so many a sequence and head.

use crate::graph::{KvSlotId, ValueId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::policy::KvMerge;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp};
use frit_plan::{KvPart, sizes};

/// The rows of a pair of layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retained {
    /// Which row a token has, counted from 1; 0: none. `[B, G, C, 1]` of keys and of values.
    index: KvSlotId,
    /// Keys and values of the first layer, of the second: `[B, G, R, D]`.
    rows: [KvSlotId; 2],
    /// R.
    room: u64,
}

impl Retained {
    /// Declares the slots of layers `first` and `first + 1`, heads of `dims` elements; nothing where none is retained.
    pub fn declare(
        m: &mut ModelBuilder,
        first: usize,
        merge: &KvMerge,
        heads: u64,
        dims: [u64; 2],
    ) -> Option<Retained> {
        let room = u64::from(merge.retain);
        if merge.gamma <= 0.0 || room == 0 {
            return None;
        }
        let index = m.kv_slot(&format!("layers{first}+{}.retained", first + 1), heads, 1, 1);
        let rows = [first, first + 1].map(|layer| {
            let name = format!("layer{layer}.retained");
            m.kv_slot_of(&name, heads, dims[0], dims[1], Dim::from(room))
        });
        Some(Retained { index, rows, room })
    }

    /// The past `merged` `[B, G, P, D]` of the first layer, or of the second one, with its retained tokens as they were.
    pub fn restore(&self, b: &mut GraphBuilder<'_>, part: KvPart, is_second: bool, merged: ValueId) -> ValueId {
        let [batch, heads, past, width] = &b.ty(merged).shape.clone()[..] else { return merged };
        let groups = batch.clone() * heads.clone();
        let count = heads.as_const().and_then(|h| u64::try_from(h).ok()).unwrap_or(1);
        // Numbers of rows are those of the whole slot so far, so that there is one even where the past is empty.
        let whole = past.clone() + Dim::size(sizes::TOKENS);
        let numbers = b.kv_rows(self.index, part, count, 1, whole.clone());
        let [first, second] = self.rows;
        let rows = b.kv_load(if is_second { second } else { first }, part);
        let rows = b.reshape(rows, &[groups.clone() * Dim::from(self.room), width.clone()]);
        let first = b.iota(std::slice::from_ref(&groups), 0, Dim::zero());
        let room = b.i32(i32::try_from(self.room).unwrap_or(i32::MAX));
        let first = b.mul(first, room);
        let first = b.reshape(first, &[batch.clone(), heads.clone(), Dim::one()]);
        let [one, zero] = [1, 0].map(|v| b.i32(v));
        let at = b.cast(numbers, Scalar::I32);
        let at = b.sub(at, one);
        let at = b.binary(BinaryOp::Max, at, zero);
        let at = b.reshape(at, &[batch.clone(), heads.clone(), whole]);
        let at = b.add(at, first);
        let own = b.gather(rows, at);
        let own = b.slice(own, 2, Dim::zero(), past.clone());
        let is_kept = exists(b, numbers);
        let is_kept = b.slice(is_kept, 2, Dim::zero(), past.clone());
        b.select(is_kept, own, merged)
    }

    /// Keeps those of this run's tokens that lie too far apart, by `angle` `[B, G, S, 1]` between their directions, as
    /// long as there is room. `both` are the keys or values of either layer, `[B, G, S, D]`; `present` Bool `[B, 1, S, 1]`
    /// tells tokens from padding. Gives which are retained, F32 `[B, G, S, 1]`.
    pub fn keep(
        &self,
        b: &mut GraphBuilder<'_>,
        part: KvPart,
        gamma: f32,
        [angle, present]: [ValueId; 2],
        both: [ValueId; 2],
    ) -> ValueId {
        let [batch, heads, tokens, _] = &b.ty(angle).shape.clone()[..] else { return angle };
        let count = heads.as_const().and_then(|h| u64::try_from(h).ok()).unwrap_or(1);
        let bound = b.f32((1.0 - gamma.min(2.0)) * std::f32::consts::PI);
        let far = b.binary(BinaryOp::Lt, bound, angle);
        let far = b.binary(BinaryOp::And, far, present);
        let far = b.cast(far, Scalar::F32);
        // The row of a token: rows taken by the past, and by the tokens of this run up to it.
        let earlier = b.kv_past(self.index, part, count, 1);
        let earlier = exists(b, earlier);
        let earlier = b.cast(earlier, Scalar::F32);
        let taken = b.reduce(ReduceOp::Sum, earlier, &[2], true);
        let square = [Dim::one(), Dim::one(), tokens.clone(), tokens.clone()];
        let [later, sooner] = [2, 3].map(|axis| b.iota(&square, axis, Dim::zero()));
        let upto = b.binary(BinaryOp::Le, sooner, later);
        let upto = b.cast(upto, Scalar::F32);
        let line = [batch.clone(), heads.clone(), Dim::one(), tokens.clone()];
        let along = b.reshape(far, &line);
        let upto = b.mul(upto, along);
        let upto = b.reduce(ReduceOp::Sum, upto, &[3], true);
        let row = b.add(taken, upto);
        let room = b.f32(self.room as f32);
        let fits = b.binary(BinaryOp::Le, row, room);
        let fits = b.cast(fits, Scalar::F32);
        let kept = b.mul(far, fits);
        let index = b.mul(row, kept);
        b.kv_append(self.index, part, index);

        let index = b.reshape(index, &line);
        let number = b.iota(&[Dim::one(), Dim::one(), Dim::from(self.room), Dim::one()], 2, Dim::one());
        let number = b.cast(number, Scalar::F32);
        let goes = b.binary(BinaryOp::Eq, number, index);
        let goes = b.cast(goes, Scalar::F32);
        let is_new = b.reduce(ReduceOp::Sum, goes, &[3], true);
        let is_new = exists(b, is_new);
        for (slot, new) in self.rows.into_iter().zip(both) {
            let new = b.matmul(goes, new);
            let old = b.kv_load(slot, part);
            let rows = b.select(is_new, new, old);
            b.kv_fill(slot, part, rows);
        }
        kept
    }
}

/// Where a number that is 0 or at least 1 is not 0.
fn exists(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    let half = b.f32(0.5);
    b.binary(BinaryOp::Lt, half, x)
}

/// Which of this run's tokens are no padding, Bool `[B, 1, S, 1]`, by `mask` `[B, 1, 1, P + S]`.
pub(super) fn present(b: &mut GraphBuilder<'_>, mask: ValueId) -> ValueId {
    let [batch, tokens] = [sizes::BATCH, sizes::TOKENS].map(Dim::size);
    let now = match b.ty(mask).shape.last() {
        Some(keys) => keys.clone() - Dim::size(sizes::PAST),
        None => tokens,
    };
    let own = b.slice(mask, 3, Dim::size(sizes::PAST), now.clone());
    b.reshape(own, &[batch, Dim::one(), now, Dim::one()])
}
