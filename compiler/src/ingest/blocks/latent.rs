//! Queries, keys and values out of low-rank projections (multi-head latent attention).
//!
//! A head's key is `[r, K c]` and its value `V c`, with `c` the normalised latent row of a token and `r` a rotated part,
//! both the same for all heads. Its score is `q_r·r + q·(K c) = q_r·r + (Kᵀ q)·c`, and its output `Σ p V c = V Σ p c`. So
//! all heads attend to the rows `[r, c]` as one key head, whose last elements are the values, and only these are cached.

use super::linear::Linear;
use super::norm::Norm;
use crate::graph::{Op, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

/// The projections. The elements that are rotated come first, so that rotation sees them as the first of the head;
/// scores do not depend on the order of a head's elements.
#[derive(Clone, Debug)]
pub(crate) struct Latent {
    pub query: LatentQuery,
    /// To the rank of keys and values, and the rotated part of the one key that all heads share.
    pub kv_down: Linear,
    pub kv_norm: Norm,
    pub kv_up: LatentUp,
    pub kv_rank: u64,
    /// Elements of a head that are not rotated.
    pub plain: u64,
    /// Elements of a head that are rotated.
    pub rotated: u64,
    /// Elements of a value head.
    pub value: u64,
}

/// How queries are made: for each head the part that is not rotated, and the part that is.
#[derive(Clone, Debug)]
pub(crate) enum LatentQuery {
    Direct(Linear),
    Low { down: Linear, norm: Norm, up: Linear },
}

/// For each head the maps from a latent row to the part of its key that is not rotated, and to its value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LatentUp {
    /// `[h·(plain + value), rank]`: both maps of a head after each other.
    Joint(WeightId),
    /// `[h, rank, plain]` and `[h, value, rank]`.
    Apart { keys: WeightId, values: WeightId },
}

impl Latent {
    /// Elements of a row that is cached for each token.
    pub fn row(kv_rank: u64, rotated: u64) -> u64 {
        rotated + kv_rank
    }

    /// Queries `[B, S, h, row]` and keys `[B, S, 1, row]` of `x` `[B, S, H]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, heads: u64) -> [ValueId; 2] {
        let (plain, rotated) = (Dim::from(self.plain), Dim::from(self.rotated));
        let lead: Vec<Dim> = b.ty(x).shape.iter().take(2).cloned().collect();
        let split = |b: &mut GraphBuilder<'_>, x: ValueId, heads: u64, dim: u64| {
            let shape: Vec<Dim> = lead.iter().cloned().chain([Dim::from(heads), Dim::from(dim)]).collect();
            b.reshape(x, &shape)
        };
        let q = match &self.query {
            LatentQuery::Direct(linear) => linear.apply(b, x),
            LatentQuery::Low { down, norm, up } => {
                let low = down.apply(b, x);
                let low = norm.apply(b, low);
                up.apply(b, low)
            }
        };
        let q = split(b, q, heads, self.plain + self.rotated);
        let q_plain = b.slice(q, 3, Dim::zero(), plain.clone());
        let q_rotated = b.slice(q, 3, plain, rotated.clone());
        let q_plain = b.transpose(q_plain, &[0, 2, 1, 3]);
        let (keys, b_transposed) = self.keys(b, heads);
        let q_latent = b.op(Op::MatMul { b_transposed }, &[q_plain, keys]);
        let q_latent = b.transpose(q_latent, &[0, 2, 1, 3]);
        let q = b.concat(&[q_rotated, q_latent], 3);

        let low = self.kv_down.apply(b, x);
        let shared = b.slice(low, 2, Dim::from(self.kv_rank), rotated);
        let low = b.slice(low, 2, Dim::zero(), Dim::from(self.kv_rank));
        let low = self.kv_norm.apply(b, low);
        let k = b.concat(&[shared, low], 2);
        [q, split(b, k, 1, Latent::row(self.kv_rank, self.rotated))]
    }

    /// The values among the rows `[B, 1, T, row]`: their latent part.
    pub fn values(&self, b: &mut GraphBuilder<'_>, rows: ValueId) -> ValueId {
        b.slice(rows, 3, Dim::from(self.rotated), Dim::from(self.kv_rank))
    }

    /// From sums of latent rows `[B, h, S, rank]` to values `[B, h, S, value]`.
    pub fn raise(&self, b: &mut GraphBuilder<'_>, y: ValueId, heads: u64) -> ValueId {
        let values = match self.kv_up {
            LatentUp::Apart { values, .. } => b.weight(values),
            LatentUp::Joint(both) => self.part(b, both, heads, self.plain, self.value),
        };
        b.op(Op::MatMul { b_transposed: true }, &[y, values])
    }

    /// The right side of the product that takes queries to the rank, and whether it is stored with the rank first.
    fn keys(&self, b: &mut GraphBuilder<'_>, heads: u64) -> (ValueId, bool) {
        match self.kv_up {
            LatentUp::Apart { keys, .. } => (b.weight(keys), true),
            LatentUp::Joint(both) => (self.part(b, both, heads, 0, self.plain), false),
        }
    }

    /// Rows `[from, from + len)` of each head's maps, `[h, len, rank]`.
    fn part(&self, b: &mut GraphBuilder<'_>, both: WeightId, heads: u64, from: u64, len: u64) -> ValueId {
        let both = b.weight(both);
        let shape = [heads, self.plain + self.value, self.kv_rank].map(Dim::from);
        let both = b.reshape(both, &shape);
        b.slice(both, 1, Dim::from(from), Dim::from(len))
    }
}
