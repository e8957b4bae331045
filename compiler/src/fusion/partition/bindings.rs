//! Storage bindings as a resource: what a region would bind if it took one more operation.

use super::Partitioner;
use crate::fusion::legality::Refusal;
use crate::fusion::region::RegionAnchor;
use crate::fusion::spec_builder::is_side;
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::Scalar;
use std::collections::BTreeSet;

impl Partitioner<'_> {
    /// Whether region `id` with `v` in it keeps to the target's bindings: the arenas, the side buffer and each cache slot
    /// count once, every matrix of weights once, and the packed right side of a matmul once.
    pub(super) fn binds(&self, id: usize, v: ValueId) -> Result<(), (Refusal, String)> {
        let region = &self.regions[id];
        let packed: Vec<ValueId> = match &region.anchor {
            RegionAnchor::MatMul(g) => g.members.clone(),
            RegionAnchor::Chain(c) => c.up.members.clone(),
            RegionAnchor::ConvChain(c) => vec![c.up],
            _ => Vec::new(),
        };
        self.bound(&packed, region.members().into_iter().chain([v]))
    }
    /// The same for regions `first` and `second` as one.
    pub(super) fn binds_both(&self, first: usize, second: usize) -> Result<(), (Refusal, String)> {
        let [a, b] = [first, second].map(|id| &self.regions[id]);
        let packed = match &a.anchor {
            RegionAnchor::MatMul(g) => g.members.clone(),
            _ => Vec::new(),
        };
        self.bound(&packed, a.members().into_iter().chain(b.members()))
    }
    /// Storage buffers of a region, and how many of them are matrices of weights.
    pub(super) fn buffers(&self, packed: &[ValueId], members: impl Iterator<Item = ValueId>) -> (u32, usize) {
        let mut spaces: BTreeSet<(u8, u32)> = BTreeSet::from([(0, 0)]);
        if !packed.is_empty() {
            spaces.insert((1, 0));
        }
        for m in members {
            if let Op::KvAppend { slot, .. } | Op::KvRead { slot, .. } | Op::KvLoad { slot, .. } = self.graph.op(m) {
                spaces.insert((2, slot.0));
            }
            for (port, o) in self.graph.operands(m).into_iter().enumerate() {
                match self.graph.op(o) {
                    Op::Weight(_) if port == 1 && packed.contains(&m) => {}
                    Op::Weight(w) => {
                        let info = self.tables.weight_info(*w);
                        let side = info.is_some_and(|i| is_side(&i.shape, i.storage));
                        spaces.insert(if side { (3, 0) } else { (4, w.0) });
                    }
                    Op::KvAppend { slot, .. } => {
                        spaces.insert((2, slot.0));
                    }
                    Op::Const(_) => {}
                    _ if self.graph.ty(o).scalar != Scalar::F32 => {
                        spaces.insert((5, 0));
                    }
                    _ => {}
                }
            }
        }
        (spaces.len() as u32, spaces.iter().filter(|s| matches!(s.0, 1 | 4)).count())
    }
    fn bound(&self, packed: &[ValueId], members: impl Iterator<Item = ValueId>) -> Result<(), (Refusal, String)> {
        let ((n, matrices), limit) = (self.buffers(packed, members), self.options.limit_bindings);
        if n <= limit {
            return Ok(());
        }
        Err((Refusal::Bind, format!("{n} > {limit} storage buffers, {matrices} of them matrices of weights")))
    }
}
