//! Reductions of one value over all invocations of a workgroup.

use super::KernelCtx;
use crate::ir::{self, ArrayRef, Type, Val};
use crate::spec::ReduceOp;

/// Workgroup memory for reductions over `width` invocations, a power of two.
pub(super) struct Reducer {
    width: u32,
    values: ArrayRef,
}

impl Reducer {
    /// Declares the memory.
    pub(super) fn new(ctx: &KernelCtx<'_>, width: u32) -> Self {
        Reducer { width, values: ctx.b.workgroup("partial", Type::F32, width) }
    }
    /// The reduction of `mine` over all invocations, the same value in each. The order of the sum is a fixed tree.
    pub(super) fn all(&self, ctx: &KernelCtx<'_>, op: ReduceOp, lane: Val, mine: Val) -> Val {
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
}

fn combine(b: &ir::Builder, op: ReduceOp, x: Val, y: Val) -> Val {
    match op {
        ReduceOp::Sum => b.add(x, y),
        ReduceOp::Prod => b.mul(x, y),
        ReduceOp::Max | ReduceOp::ArgMax => b.max(x, y),
        ReduceOp::Min => b.min(x, y),
    }
}
