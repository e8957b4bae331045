//! Subgroups, and values joined over them.

use super::KernelCtx;
use crate::ir::{self, Collective, Val};

/// The subgroup size that reductions may rely on, and that divides every workgroup.
pub(super) const WARP: u32 = 32;

impl KernelCtx<'_> {
    /// Invocations that exchange values without workgroup memory: subgroups of a fixed size, or a workgroup that is one.
    pub(super) fn subgroup(&self) -> Option<u32> {
        let size = self.caps.subgroup_size?;
        (size == WARP || self.workgroup.iter().product::<u32>() == size).then_some(size)
    }
    /// Whether invocations of a subgroup exchange values without workgroup memory.
    pub(super) fn shuffles(&self) -> bool {
        self.subgroup().is_some()
    }

    /// The value of `mine` joined over runs of `lanes` invocations of a subgroup, `lanes` a power of two up to the
    /// subgroup's size; the same bits in each. Must be reached by whole workgroups.
    pub(super) fn across(&self, lanes: u32, mine: Val, join: impl Fn(&ir::Builder, Val, Val) -> Val) -> Val {
        let b = &self.b;
        let mut total = mine;
        let mut mask = lanes / 2;
        while mask > 0 {
            let other = b.collective("other", Collective::ShuffleXor(mask), total);
            total = join(b, total, other);
            mask /= 2;
        }
        total
    }
}
