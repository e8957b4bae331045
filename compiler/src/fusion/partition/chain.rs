//! Two products in a row: why they stay two kernels.
//!
//! As one kernel, a workgroup would own BM rows and loop over the inner width I, so that the weights of both products are
//! read again for every BM rows. With inputs of width H, s right sides in front and N columns behind, that pays iff
//! `2·M·I·4 > M/BM·I·(s·H + N)·w·(1 − ρ)`: iff `BM > (s·H + N)·w·(1 − ρ)/8`, for w bytes a weight and a share ρ of the
//! weights that the caches hold. The rows, their sums and a slice of the inner values have to fit workgroup memory.

use super::Partitioner;
use crate::fusion::cost::{CACHE_MISSES, MANY_ROWS};
use crate::fusion::legality::Refusal;
use crate::fusion::region::RegionAnchor;
use crate::graph::ValueId;

/// Workgroup memory of the base profile, in bytes.
const WORKGROUP_BYTES: u64 = 16384;
/// Inner values of a row that a workgroup would hold at once.
const SLICE: u64 = 16;

impl Partitioner<'_> {
    /// Why region `id`, which makes `v`, does not compute the product `u` of it too.
    pub(super) fn chain(&self, id: usize, v: ValueId, u: ValueId) -> (Refusal, String) {
        let number = |v: ValueId| self.graph.ty(v).last().as_const().and_then(|n| u64::try_from(n).ok());
        let RegionAnchor::MatMul(g) = &self.regions[id].anchor else {
            let detail = "as one kernel each workgroup would own whole rows and read the weights again for them";
            return (Refusal::Profit, detail.into());
        };
        let first = g.members.first().copied().unwrap_or(v);
        let left = self.graph.operands(first).first().copied().unwrap_or(v);
        let weight = self.rhs_weight(first).and_then(|w| self.tables.weight_info(w));
        let (Some(h), Some(n), Some(weight)) = (number(left), number(u), weight) else {
            return (Refusal::Profit, "a chain would read its right sides again for every tile of rows".into());
        };
        let bytes = weight.storage.block_bytes() as f64 / weight.storage.block_elems() as f64;
        let need = (g.members.len() as u64 * h + n) as f64 * bytes * CACHE_MISSES / 8.0;
        let fit = WORKGROUP_BYTES / (4 * (h + n + SLICE));
        if (fit as f64) > need {
            let groups = MANY_ROWS.div_ceil(fit);
            let detail = format!(
                "tiles of {need:.0} to {fit} rows would save bytes as a chain, but make {groups} workgroups of {MANY_ROWS} rows"
            );
            return (Refusal::Profit, detail);
        }
        (Refusal::Profit, format!("a chain needs tiles of more than {need:.0} rows; {fit} fit workgroup memory"))
    }
}
