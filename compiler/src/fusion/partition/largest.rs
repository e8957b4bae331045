//! The place of a row's largest element, found among those of tiles that the product in front writes beside its result: the row
//! is not read again.

use super::Partitioner;
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::fusion::row_stats::RowStats;
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{FEW_PARTIAL_COLUMNS, MOST_COUNTED, PartialKind, ReduceOp};

/// Elements of a row from which on it is worth it: shorter ones are a load or two of each invocation.
const LEAST: u64 = 1024;

impl Partitioner<'_> {
    /// Has products of few rows write the largest element of each tile of columns for the search for the place of the largest.
    pub(super) fn forward_largest(&mut self) {
        for id in 0..self.regions.len() {
            let RegionAnchor::Row(v) = self.regions[id].anchor else { continue };
            let Some((maker, stats)) = self.tiles_in_front(v) else { continue };
            let x = stats.of;
            let on = self.allowed("argmax-tiles", "the largest of tiles is switched off", x, v);
            if let Err((code, detail)) = on.and_then(|()| self.permitted(x, v)) {
                // That they are no single kernel stands there already, and says less.
                self.refused.retain(|r| (r.from, r.to) != (x, v));
                self.refuse(x, v, code, detail);
                continue;
            }
            self.spend();
            self.regions[maker].forwards = Some(stats);
            self.regions[id].tiles = Some(stats);
        }
    }
    /// The product in front of `v`, a search for the place of the largest of each row, and what it can write of its tiles.
    fn tiles_in_front(&self, v: ValueId) -> Option<(usize, RowStats)> {
        let Op::Reduce { op: ReduceOp::ArgMax, axes, .. } = self.graph.op(v) else { return None };
        let read = self.graph.operands(v).first().copied()?;
        let ty = self.graph.ty(read);
        let width = ty.last().as_const().and_then(|n| u64::try_from(n).ok())?;
        let by_rows = axes.as_slice() == [ty.shape.len().checked_sub(1)?] && ty.scalar == Scalar::F32;
        if !by_rows || !(LEAST..=MOST_COUNTED as u64).contains(&width) {
            return None;
        }
        // What is stored, and what it is a rearrangement of.
        let x = self.rows_of(read, |v| !self.owner.contains_key(&v));
        let maker = self.owner.get(&x).copied()?;
        let made = self.rows_of(x, |v| self.owner.get(&v) == Some(&maker));
        let region = &self.regions[maker];
        let RegionAnchor::MatMul(g) = &region.anchor else { return None };
        let [m] = g.members.as_slice() else { return None };
        let fits = g.form == MatMulForm::Concat && region.forwards.is_none() && self.in_place_of(maker, *m, made);
        let whole = self.binds_whole(*m).is_ok() && self.few(&self.rows(*m));
        let tile = u64::from(FEW_PARTIAL_COLUMNS);
        (fits && whole).then_some((maker, RowStats { of: x, kind: PartialKind::Largest, tile }))
    }
    /// The first value with the rows of `x`, in any arrangement of them, that is not `passed`; or the last one.
    fn rows_of(&self, mut x: ValueId, passed: impl Fn(ValueId) -> bool) -> ValueId {
        while let (true, Op::Reshape(_), Some(from)) =
            (passed(x), self.graph.op(x), self.graph.operands(x).first().copied())
        {
            if self.graph.ty(from).last() != self.graph.ty(x).last() {
                break;
            }
            x = from;
        }
        x
    }
}
