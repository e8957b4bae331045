//! Reductions of one value over the invocations of a workgroup.

use super::KernelCtx;
use crate::ir::{self, ArrayRef, Collective, Type, Val};
use crate::spec::ReduceOp;

/// The subgroup size that reductions may rely on, and that divides every workgroup.
pub(super) const WARP: u32 = 32;

impl KernelCtx<'_> {
    /// Whether invocations of a subgroup exchange values without workgroup memory.
    pub(super) fn shuffles(&self) -> bool {
        self.caps.subgroup_size == Some(WARP)
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

/// Workgroup memory for reductions over `width` invocations, a power of two.
pub(super) struct Reducer {
    width: u32,
    values: ArrayRef,
}

impl Reducer {
    /// Declares the memory.
    pub(super) fn new(ctx: &KernelCtx<'_>, width: u32) -> Self {
        let len = if ctx.shuffles() { width.div_ceil(WARP) } else { width };
        Reducer { width, values: ctx.b.workgroup("partial", Type::F32, len) }
    }
    /// The reduction of `mine` over all invocations, the same value in each. The order of the sum is a fixed tree.
    pub(super) fn all(&self, ctx: &KernelCtx<'_>, op: ReduceOp, lane: Val, mine: Val) -> Val {
        if ctx.shuffles() { self.by_shuffles(ctx, op, lane, mine) } else { self.in_memory(ctx, op, lane, mine) }
    }
    fn in_memory(&self, ctx: &KernelCtx<'_>, op: ReduceOp, lane: Val, mine: Val) -> Val {
        let b = &ctx.b;
        b.store(self.values, lane, mine);
        b.barrier();
        let mut half = self.width / 2;
        while half > 0 {
            b.if_(b.lt(lane, half), |b| {
                let (x, y) = (b.load(self.values, lane), b.load(self.values, b.add(lane, half)));
                b.store(self.values, lane, combine(b, op, x, y));
            });
            b.barrier();
            half /= 2;
        }
        let total = b.let_("total", b.load(self.values, 0));
        b.barrier();
        total
    }
    /// Each subgroup by itself, then their results in order.
    fn by_shuffles(&self, ctx: &KernelCtx<'_>, op: ReduceOp, lane: Val, mine: Val) -> Val {
        let b = &ctx.b;
        let part = ctx.across(self.width.min(WARP), mine, |b, x, y| combine(b, op, x, y));
        let warps = self.width.div_ceil(WARP);
        if warps == 1 {
            return part;
        }
        b.if_(b.eq(b.bit_and(lane, WARP - 1), 0), |b| b.store(self.values, b.shr(lane, 5), part));
        b.barrier();
        let first = b.load(self.values, 0);
        let total = (1..warps).fold(first, |sum, i| combine(b, op, sum, b.load(self.values, i)));
        let total = b.let_("total", total);
        b.barrier();
        total
    }
}

fn combine(b: &ir::Builder, op: ReduceOp, x: Val, y: Val) -> Val {
    match op {
        ReduceOp::Sum => b.add(x, y),
        ReduceOp::Prod => b.mul(x, y),
        ReduceOp::Max | ReduceOp::ArgMax => b.max(x, y),
        ReduceOp::Min => b.min(x, y),
    }
}
