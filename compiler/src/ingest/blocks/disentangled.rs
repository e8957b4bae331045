//! Attention whose scores add to content·content what content says of relative positions (DeBERTa).
//!
//! `score(i, j) = (q_i·k_j + q_i·K_r(i,j) + k_j·Q_r(i,j)) / √(d·n)`, where `r(i, j)` is the class of the distance i − j,
//! `K` and `Q` are projections of a table of distances, and n counts the terms.

use super::linear::Linear;
use super::multi_head::{MultiHead, ScoreTerms};
use crate::graph::ValueId;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::{Dim, product};

/// The projections of the table of distances.
#[derive(Clone, Debug)]
pub(crate) struct Disentangled {
    /// Content to position: keys of the distances.
    pub keys: Option<Linear>,
    /// Position to content: queries of the distances.
    pub queries: Option<Linear>,
}

/// What the layers of one graph share.
#[derive(Clone, Copy)]
pub(crate) struct Distances {
    /// I32 `[S, S]`: the row of the table for each query and key.
    pub rows: ValueId,
    /// `[R, H]`.
    pub table: ValueId,
    /// F32 `[B, 1, S, 1]`: 0 for queries that are padding. They see all keys alike.
    pub seen: ValueId,
}

/// The row for a distance (query less key) in a table for `span` classes on each side. With `buckets`, distances from
/// `span / 2` on share classes that widen logarithmically up to `longest`.
pub(crate) fn distance_row(distance: i64, span: i64, buckets: bool, longest: u64) -> i64 {
    let class = if buckets {
        let mid = span / 2;
        if distance.abs() <= mid {
            distance
        } else {
            let far = (distance.unsigned_abs() as f32 / mid as f32).ln();
            let scale = ((longest as f32 - 1.0) / mid as f32).ln();
            ((far / scale * (mid - 1) as f32).ceil() as i64 + mid) * distance.signum()
        }
    } else {
        distance
    };
    (class + span).clamp(0, 2 * span - 1)
}

impl Disentangled {
    /// `x` is `[B, S, H]`.
    pub fn attend(
        &self,
        b: &mut GraphBuilder<'_>,
        attention: &MultiHead,
        distances: &Distances,
        scores: &ScoreTerms,
        x: ValueId,
    ) -> ValueId {
        b.scope(attention.name, |b| {
            let [q, k, v] = attention.project(b, x);
            let q = b.mul(q, distances.seen);
            let terms = [(&self.keys, q, 2), (&self.queries, k, 3)];
            let mut bias = None;
            for (linear, content, axis) in terms {
                let Some(linear) = linear else { continue };
                let term = b.scope("relative", |b| self.term(b, attention, linear, distances, content, axis));
                bias = Some(bias.map_or(term, |sum| b.add(sum, term)));
            }
            let bias = bias.map(|bias| {
                let scale = b.f32(attention.scale);
                let bias = b.mul(bias, scale);
                b.mul(bias, distances.seen)
            });
            attention.attend(b, [q, k, v], &ScoreTerms { bias, ..scores.clone() })
        })
    }

    /// `[B, h, S, S]`: the product of `content` `[B, h, S, D]` at the coordinate of `axis` with the row of the pair.
    fn term(
        &self,
        b: &mut GraphBuilder<'_>,
        attention: &MultiHead,
        linear: &Linear,
        distances: &Distances,
        content: ValueId,
        axis: usize,
    ) -> ValueId {
        let (heads, dim) = (Dim::from(attention.heads), Dim::from(attention.head_dim));
        let shape = b.ty(content).shape.clone();
        let rows = linear.apply(b, distances.table);
        let count = b.ty(rows).shape.first().cloned().unwrap_or_else(Dim::one);
        let rows = b.reshape(rows, &[count.clone(), heads.clone(), dim]);
        let rows = b.transpose(rows, &[1, 2, 0]);
        let products = b.matmul(content, rows);
        let (batch, tokens) = match shape.as_slice() {
            [batch, _, tokens, _] => (batch.clone(), tokens.clone()),
            _ => (Dim::one(), Dim::one()),
        };
        let all = [batch, heads, tokens.clone(), tokens.clone()];
        let flat = b.reshape(products, &[product(&[all[0].clone(), all[1].clone(), tokens.clone(), count.clone()])]);
        let mut place = b.iota(&all, 0, Dim::zero());
        for (axis, extent) in [(1, all[1].clone()), (axis, tokens)] {
            let extent = length(b, &extent);
            place = b.mul(place, extent);
            let next = b.iota(&all, axis, Dim::zero());
            place = b.add(place, next);
        }
        let extent = length(b, &count);
        let place = b.mul(place, extent);
        let place = b.add(place, distances.rows);
        b.gather(flat, place)
    }
}

/// An extent as an I32 scalar.
fn length(b: &mut GraphBuilder<'_>, extent: &Dim) -> ValueId {
    let value = b.iota(&[Dim::one()], 0, extent.clone());
    b.reshape(value, &[])
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_rows_of_their_own_and_far_ones_share() {
        let row = |d| distance_row(d, 256, true, 512);
        assert_eq!([0, 1, -1, 128, -128].map(row), [256, 257, 255, 384, 128]);
        assert_eq!([511, 5000, -511].map(row), [511, 511, 1]);
        assert_eq!([129, 130, 400, 401].map(row), [385, 386, 489, 489]);
        assert_eq!([0, 7, 8, -8, -9].map(|d| distance_row(d, 8, false, 8)), [8, 15, 15, 0, 0]);
    }
}
