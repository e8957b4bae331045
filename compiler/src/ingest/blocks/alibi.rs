//! A bias on the scores that falls with the distance of query and key, by a slope for each head (ALiBi).

use crate::graph::{ValueId, WeightId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use half::bf16;

/// How the bias is computed from the slopes, one a head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Alibi {
    /// `slope · distance`.
    Exact(Vec<f32>),
    /// `scale · bf16(bf16(slope) · bf16(position of the key))`.
    Rounded { slopes: Vec<f32>, scale: f32 },
}

impl Alibi {
    /// Slopes `[H, 1, 1]`, or the rounded bias of every position and head, `[context, H]`.
    pub(super) fn constant(&self, m: &mut ModelBuilder, context: u64) -> WeightId {
        match self {
            Alibi::Exact(slopes) => m.constant("alibi.slopes", &[slopes.len() as u64, 1, 1], slopes),
            Alibi::Rounded { slopes, scale } => {
                let table = rounded(slopes, *scale, context);
                m.constant("alibi.table", &[context, slopes.len() as u64], &table)
            }
        }
    }
    /// Whether the bias is found by [`Alibi::at`].
    pub(super) fn is_by_position(&self) -> bool {
        matches!(self, Alibi::Rounded { .. })
    }
    /// The bias of keys at `positions` I32 `[B, T]`: `[B, H, 1, T]`.
    pub(super) fn at(b: &mut GraphBuilder<'_>, table: WeightId, positions: ValueId) -> ValueId {
        b.scope("alibi", |b| {
            let table = b.weight(table);
            let bias = b.gather(table, positions);
            let bias = b.transpose(bias, &[0, 2, 1]);
            let mut shape = b.ty(bias).shape.to_vec();
            shape.insert(2, Dim::one());
            b.reshape(bias, &shape)
        })
    }
    /// `slope · (t − last key)` for head and key, `[1, H, 1, T]`. Against a bias by the distance of query and key this is
    /// off by the same for all keys of a query, which a softmax does not see.
    pub(super) fn distances(b: &mut GraphBuilder<'_>, slopes: WeightId, keys: &Dim) -> ValueId {
        b.scope("alibi", |b| {
            let back = b.iota(&[Dim::one(), Dim::one(), keys.clone()], 2, Dim::one() - keys.clone());
            let back = b.cast(back, Scalar::F32);
            let slopes = b.weight(slopes);
            let bias = b.mul(back, slopes);
            let mut shape = b.ty(bias).shape.to_vec();
            shape.insert(0, Dim::one());
            b.reshape(bias, &shape)
        })
    }
}

/// By position and head.
fn rounded(slopes: &[f32], scale: f32, context: u64) -> Vec<f32> {
    let round = |x: f32| bf16::from_f32(x).to_f32();
    let row = |at: u64| slopes.iter().map(move |slope| scale * round(round(*slope) * round(at as f32)));
    (0..context).flat_map(row).collect()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn slopes_positions_and_products_are_rounded_to_eight_bits() {
        let table = rounded(&[0.0625, std::f32::consts::FRAC_1_SQRT_2], 1.0, 1024);
        let at = |position: usize| [table[2 * position], table[2 * position + 1]];
        assert_eq!(at(3), [0.1875, 2.125]);
        assert_eq!(at(257), [16.0, 181.0]);
        assert_eq!(at(1001), [62.5, 708.0]);
    }
}
