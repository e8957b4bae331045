//! Relative positions as a bias on the scores: a learned number for each head and each class of distances.

use crate::graph::{ValueId, WeightId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::spec::BinaryOp;

/// The bias of T5: near distances have a class of their own, far ones share classes that widen logarithmically.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    /// Classes.
    pub count: u64,
    /// The distance from which on all share the last class.
    pub max_distance: u64,
    /// Whether keys behind the query have classes of their own; otherwise they share the class of distance 0.
    pub both_sides: bool,
}

/// A learned bias for each head and class of distances.
#[derive(Clone, Debug)]
pub(crate) struct RelativeBias {
    /// `[classes, heads]`; `None` where each layer has its own.
    pub table: Option<WeightId>,
    pub buckets: Buckets,
}

impl Buckets {
    /// The class of `distance`, the key's position less the query's.
    pub fn class(&self, distance: i64) -> i64 {
        let (count, base, distance) = match self.both_sides {
            true => {
                let half = (self.count / 2) as i64;
                (half, if distance > 0 { half } else { 0 }, distance.abs())
            }
            false => (self.count as i64, 0, (-distance).max(0)),
        };
        let exact = count / 2;
        if distance < exact {
            return base + distance;
        }
        let span = (self.max_distance as f32 / exact as f32).ln();
        let far = (distance as f32 / exact as f32).ln() / span * (count - exact) as f32;
        base + (exact + far as i64).min(count - 1)
    }
    /// Whether the formula has a value for every distance.
    pub fn is_sound(&self) -> bool {
        let side = if self.both_sides { self.count / 2 } else { self.count };
        side >= 2 && self.max_distance > side / 2
    }
    /// The classes of the distances −m..=m, where m is `max_distance`.
    pub fn table(&self) -> Vec<i32> {
        let m = self.max_distance as i64;
        (-m..=m).map(|d| self.class(d) as i32).collect()
    }
}

impl RelativeBias {
    /// The classes as a constant of the model.
    pub fn constant(&self, m: &mut ModelBuilder, name: &str) -> WeightId {
        m.constant_ints(name, &[2 * self.buckets.max_distance + 1], &self.buckets.table())
    }
    /// The classes I32 `[S, T]` of queries that begin at position `first`; `table` is [`RelativeBias::constant`].
    pub fn classes(&self, b: &mut GraphBuilder<'_>, table: WeightId, first: Dim, queries: Dim, keys: Dim) -> ValueId {
        let m = i32::try_from(self.buckets.max_distance).unwrap_or(i32::MAX / 2);
        let q = b.iota(&[queries, Dim::one()], 0, first);
        let k = b.iota(&[Dim::one(), keys], 1, Dim::zero());
        let distance = b.sub(k, q);
        let [low, high] = [-m, m].map(|bound| b.i32(bound));
        let distance = b.binary(BinaryOp::Max, distance, low);
        let distance = b.binary(BinaryOp::Min, distance, high);
        let place = b.sub(distance, low);
        let table = b.weight(table);
        b.gather(table, place)
    }
    /// The bias `[1, h, S, T]` that all layers share, by [`RelativeBias::classes`].
    pub fn shared(&self, b: &mut GraphBuilder<'_>, classes: ValueId) -> Option<ValueId> {
        self.table.map(|table| {
            b.scope("relative_attention_bias", |b| {
                let table = b.weight(table);
                per_head(b, table, classes)
            })
        })
    }
}

/// `[1, h, S, T]` from a table `[classes, h]` and classes `[S, T]`.
pub(crate) fn per_head(b: &mut GraphBuilder<'_>, table: ValueId, classes: ValueId) -> ValueId {
    let bias = b.gather(table, classes);
    let bias = b.transpose(bias, &[2, 0, 1]);
    let mut shape = vec![Dim::one()];
    shape.extend(b.ty(bias).shape.iter().cloned());
    b.reshape(bias, &shape)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_t5_are_those_of_its_paper() {
        let both = Buckets { count: 32, max_distance: 128, both_sides: true };
        assert_eq!([0, 1, 7, 8, 127, 128, 5000].map(|d| both.class(-d)), [0, 1, 7, 8, 15, 15, 15]);
        assert_eq!([1, 7, 8, 16, 128].map(|d| both.class(d)), [17, 23, 24, 26, 31]);
        let past = Buckets { both_sides: false, ..both };
        assert_eq!([5, 1, 0].map(|d| past.class(d)), [0, 0, 0]);
        assert_eq!([15, 16, 32, 127, 128].map(|d| past.class(-d)), [15, 16, 21, 31, 31]);
    }
    #[test]
    fn the_table_holds_every_class_once_and_saturates() {
        let b = Buckets { count: 16, max_distance: 20, both_sides: true };
        let t = b.table();
        assert_eq!(t.len(), 41);
        assert_eq!((t[20], t[0], t[40]), (0, 7, 15));
        assert!(!Buckets { max_distance: 3, ..b }.is_sound() && b.is_sound());
    }
}
