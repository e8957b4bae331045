//! Queries, keys and values out of low-rank projections (multi-head latent attention).

use super::linear::Linear;
use super::norm::Norm;
use crate::graph::ValueId;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

/// The projections. In each head the elements that are rotated come first, so that rotation sees them as the first of
/// the head; scores do not depend on the order of a head's elements.
#[derive(Clone, Debug)]
pub(crate) struct Latent {
    pub query: LatentQuery,
    /// To the rank of keys and values, and the rotated part of the one key that all heads share.
    pub kv_down: Linear,
    pub kv_norm: Norm,
    /// For each head the part of its key that is not rotated, and its value.
    pub kv_up: Linear,
    pub kv_rank: u64,
    /// Elements of a head that are not rotated.
    pub plain: u64,
    /// Elements of a head that are rotated.
    pub rotated: u64,
}

/// How queries are made: for each head the part that is not rotated, and the part that is.
#[derive(Clone, Debug)]
pub(crate) enum LatentQuery {
    Direct(Linear),
    Low { down: Linear, norm: Norm, up: Linear },
}

impl Latent {
    /// Queries, keys and values of `x` `[B, S, H]`: `[B, S, h, D]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, heads: u64, value_dim: u64) -> [ValueId; 3] {
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
        let q_rotated = b.slice(q, 3, plain.clone(), rotated.clone());
        let q = b.concat(&[q_rotated, q_plain], 3);

        let low = self.kv_down.apply(b, x);
        let shared = b.slice(low, 2, Dim::from(self.kv_rank), rotated.clone());
        let low = b.slice(low, 2, Dim::zero(), Dim::from(self.kv_rank));
        let low = self.kv_norm.apply(b, low);
        let kv = self.kv_up.apply(b, low);
        let kv = split(b, kv, heads, self.plain + value_dim);
        let k_plain = b.slice(kv, 3, Dim::zero(), plain.clone());
        let v = b.slice(kv, 3, plain, Dim::from(value_dim));
        let shared = split(b, shared, 1, self.rotated);
        let every: Vec<Dim> = lead.iter().cloned().chain([Dim::from(heads), rotated]).collect();
        let shared = b.broadcast(shared, &every);
        let k = b.concat(&[shared, k_plain], 3);
        [q, k, v]
    }
}
