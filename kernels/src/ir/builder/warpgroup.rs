//! Work of warpgroups; see [`WarpgroupOp`].

use super::{Builder, IntoVal, Val, Var};
use crate::dtype::HalfFormat;
use crate::ir::expr::ArrayRef;
use crate::ir::stmt::{Barrier, Stmt};
use crate::ir::types::Type;
use crate::ir::warpgroup::{Place, WarpgroupOp};

impl Builder {
    /// The invocations of a subgroup wait for each other, and see what they have written.
    pub fn subgroup_barrier(&self) {
        self.push_stmt(Stmt::Barrier(Barrier::Subgroup));
    }

    /// Makes a barrier with phases of so many arrivals.
    #[track_caller]
    pub fn make_barrier(&self, array: ArrayRef, index: impl IntoVal, arrivals: u32) {
        if let Some(barrier) = self.place(array, index.into_val(self)) {
            self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Init { barrier, arrivals }));
        }
    }

    /// Arrives at a barrier.
    #[track_caller]
    pub fn arrive(&self, array: ArrayRef, index: impl IntoVal) {
        self.arrive_with(array, index, 0);
    }

    /// Arrives at a barrier, having announced bytes that copies bring.
    #[track_caller]
    pub fn arrive_with(&self, array: ArrayRef, index: impl IntoVal, bytes: u32) {
        if let Some(barrier) = self.place(array, index.into_val(self)) {
            self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Arrive { barrier, bytes }));
        }
    }

    /// Waits until the phase of that parity has ended.
    #[track_caller]
    pub fn await_phase(&self, array: ArrayRef, index: impl IntoVal, parity: impl IntoVal) {
        let parity = parity.into_val(self);
        if let Some(barrier) = self.place(array, index.into_val(self))
            && self.expect_type("parity", parity, Type::U32)
        {
            self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Await { barrier, parity: parity.0 }));
        }
    }

    /// Starts to bring the tile at a column and row of a matrix, counted by a barrier.
    #[track_caller]
    pub fn bring_tile(
        &self,
        (to, to_index): (ArrayRef, Val),
        from: ArrayRef,
        corner: [Val; 2],
        (barrier, index): (ArrayRef, Val),
    ) {
        let ArrayRef::Buffer(from) = from else { return self.error("tiles are brought from a buffer") };
        let typed = corner.iter().all(|c| self.expect_type("corner", *c, Type::U32));
        if let (Some(to), Some(barrier), true) = (self.place(to, to_index), self.place(barrier, index), typed) {
            let corner = corner.map(|c| c.0);
            self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Bring { to, from, corner, barrier }));
        }
    }

    /// Makes what this invocation has stored visible to products, for whom comes behind it.
    pub fn publish(&self) {
        self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Publish));
    }

    /// Starts `sums += a bᵀ` of tiles.
    #[track_caller]
    pub fn multiply_tiles(&self, sums: &[Var], a: (ArrayRef, Val), b: (ArrayRef, Val), format: HalfFormat) {
        let sums = sums.iter().filter_map(|s| s.0).collect();
        if let (Some(a), Some(b)) = (self.place(a.0, a.1), self.place(b.0, b.1)) {
            self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Multiply { sums, a, b, format }));
        }
    }

    /// Waits until no more than `pending` products are under way.
    pub fn settle(&self, pending: u32) {
        self.push_stmt(Stmt::Warpgroup(WarpgroupOp::Settle(pending)));
    }

    #[track_caller]
    fn place(&self, array: ArrayRef, index: Val) -> Option<Place> {
        let ArrayRef::Workgroup(array) = array else {
            self.error("an element of workgroup memory is wanted");
            return None;
        };
        self.expect_type("index", index, Type::U32).then_some(Place { array, index: index.0 })
    }
}
