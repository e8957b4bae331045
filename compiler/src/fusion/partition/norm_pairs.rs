//! Norms in front of the norm that a matmul computes: `norm(x + norm(y))`, as between the parts of layers that are
//! normalised behind them as well.
//!
//! The kernel that would compute the inner norm goes into the matmul: each of its workgroups finds both statistics, and one
//! of them writes the sum, which the next residual reads.

use super::Partitioner;
use crate::fusion::legality::Refusal;
use crate::fusion::region::RegionAnchor;
use crate::graph::{Op, ValueId};
use std::collections::HashSet;

impl Partitioner<'_> {
    /// Takes the kernel of an inner norm into the matmul that computes the outer one, for few rows.
    pub(super) fn absorb_norm_pairs(&mut self) {
        for target in 0..self.regions.len() {
            let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { continue };
            let Some(outer) = g.norm.filter(|_| g.stats.is_none() && !g.commuted) else { continue };
            let Some((sum, views, id)) = self.sum_of_norm(outer) else { continue };
            match self.may_pair(outer, (sum, &views), id, target) {
                Ok(before) => {
                    self.spend();
                    for m in &before {
                        self.owner.insert(*m, target);
                    }
                    if let RegionAnchor::MatMul(g) = &mut self.regions[target].anchor {
                        g.before = before;
                    }
                    self.regions[id].anchor = RegionAnchor::Map;
                    self.regions[id].epilogue.clear();
                }
                Err((code, detail)) => self.refuse(sum, outer, code, detail),
            }
        }
        self.drop_empty();
    }
    /// What norm `outer` reads, if the kernel of another norm makes it; the views between, in graph order; that kernel's region.
    fn sum_of_norm(&self, outer: ValueId) -> Option<(ValueId, Vec<ValueId>, usize)> {
        let mut x = *self.graph.operands(outer).first()?;
        let mut views = Vec::new();
        while self.graph.op(x).is_view() {
            views.insert(0, x);
            x = *self.graph.operands(x).first()?;
        }
        let id = *self.owner.get(&x)?;
        let RegionAnchor::Row(inner) = self.regions[id].anchor else { return None };
        matches!(self.graph.op(inner), Op::Norm { .. }).then_some((x, views, id))
    }
    /// The operations of region `id`, whose last one is `sum`, and the views behind it, if the matmul of region `target` may
    /// compute them.
    fn may_pair(
        &self,
        outer: ValueId,
        (sum, views): (ValueId, &[ValueId]),
        id: usize,
        target: usize,
    ) -> Result<Vec<ValueId>, (Refusal, String)> {
        let g = self.graph;
        self.allowed("norm-pairs", "pairs of norms are switched off", sum, outer)?;
        self.permitted(sum, outer)?;
        let region = &self.regions[id];
        let mut before = region.members();
        before.sort_by_key(|m| self.position.get(m).copied().unwrap_or(0));
        let shape = &g.ty(sum).shape;
        if before.iter().any(|m| g.ty(*m).shape != *shape || g.op(*m).is_view()) {
            return Err((Refusal::Map, "views lie between the two norms".into()));
        }
        if region.forwards.is_some() || !region.gained.is_empty() {
            return Err((
                Refusal::Stat,
                "the inner norm's kernel writes statistics of its rows for another one".into(),
            ));
        }
        let rows = self.rows(outer);
        if !self.at_most_few(&rows) {
            let detail = format!("{rows} rows: every column tile would find the statistics of both norms");
            return Err((Refusal::Recompute, detail));
        }
        let inside: HashSet<ValueId> = before.iter().copied().collect();
        let outside = |m: &ValueId| self.users(*m).iter().any(|u| !inside.contains(u)) || g.is_output(*m);
        if let Some(m) = before.iter().find(|m| **m != sum && outside(m)) {
            return Err((Refusal::Dup, format!("something else reads the {}", g.op(*m).name())));
        }
        let on_the_way = |v: &ValueId| self.only_user(*v).is_some();
        if !views.is_empty() && !views.iter().chain([&sum]).all(on_the_way) {
            return Err((Refusal::Map, "the matmul sees some of the rows that others read".into()));
        }
        let mut others = self.users(sum).iter().filter(|u| **u != outer && !views.contains(u));
        if let Some(early) = others.find(|u| self.before(target, **u)) {
            let detail = format!("{} reads the sum before the matmul is done", g.op(*early).name());
            return Err((Refusal::Cycle, detail));
        }
        self.binds_both(target, id)?;
        before.extend(views);
        Ok(before)
    }
}
