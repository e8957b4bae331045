//! Norms computed inside the matmul that reads them.

use super::{NORM_PROLOGUE_ROWS, Partitioner};
use crate::fusion::legality::Refusal;
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::graph::{Op, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::dim::Dim;
use frit_kernels::templates::has_few_rows;
use std::collections::BTreeSet;

impl Partitioner<'_> {
    /// Computes a norm inside the matmul that reads it, where the repeated statistics cost less than a kernel of its own.
    /// Other readers get the normalised rows from that matmul, if they come after it.
    pub(super) fn absorb_norms(&mut self) {
        for id in 0..self.regions.len() {
            let RegionAnchor::Row(v) = self.regions[id].anchor.clone() else { continue };
            if !matches!(self.graph.op(v), Op::Norm { .. }) || !self.regions[id].epilogue.is_empty() {
                continue;
            }
            let users = self.users(v).to_vec();
            let (matmuls, others): (Vec<ValueId>, Vec<ValueId>) = users.iter().copied().partition(|u| {
                matches!(self.graph.op(*u), Op::MatMul { .. })
                    && self.graph.operands(*u).first() == Some(&v)
                    && self.rhs_weight(*u).is_some()
            });
            let owners: BTreeSet<usize> = matmuls.iter().filter_map(|u| self.owner.get(u).copied()).collect();
            let (Some(target), Some(first)) = (owners.first().copied(), matmuls.first().copied()) else { continue };
            if owners.len() > 1 {
                for u in matmuls {
                    self.refuse(v, u, Refusal::Dup, format!("{} regions read the normalised rows", owners.len()));
                }
                continue;
            }
            if !self.options.fuse_norms {
                self.refuse(v, first, Refusal::User, "norm prologues are switched off".into());
                continue;
            }
            if let Err((code, detail)) = self.permitted(v, first) {
                self.refuse(v, first, code, detail);
                continue;
            }
            if !self.options.numeric.allows(ProofClass::Reassoc) {
                let mode = self.options.numeric.name();
                let detail =
                    format!("REASSOC: column tiles add up the statistics in their own order; the mode is {mode}");
                self.refuse(v, first, Refusal::Mode, detail);
                continue;
            }
            let kept = !others.is_empty() || self.graph.is_output(v);
            if let Some(early) = others.iter().find(|u| self.before(target, **u)) {
                let detail =
                    format!("{} reads the normalised rows before the matmul is done", self.graph.op(*early).name());
                self.refuse(v, first, Refusal::Cycle, detail);
                continue;
            }
            if let Err((code, detail)) = self.binds(target, v) {
                self.refuse(v, first, code, detail);
                continue;
            }
            match self.recompute(v, target, kept) {
                Ok(()) => {
                    self.spend();
                    if let RegionAnchor::MatMul(g) = &mut self.regions[target].anchor {
                        g.norm = Some(v);
                        self.owner.insert(v, target);
                        self.regions[id].anchor = RegionAnchor::Map;
                    }
                }
                Err(detail) => self.refuse(v, first, Refusal::Recompute, detail),
            }
        }
        let dead: Vec<bool> = self.regions.iter().map(|r| r.anchor == RegionAnchor::Map).collect();
        let mut new_id = vec![0; dead.len()];
        let mut n = 0;
        for (i, d) in dead.iter().enumerate() {
            new_id[i] = n;
            n += usize::from(!d);
        }
        let mut keep = dead.iter().map(|d| !d);
        self.regions.retain(|_| keep.next().unwrap_or(true));
        self.owner.values_mut().for_each(|o| *o = new_id[*o]);
    }
    /// Whether region `target` needs what `u` computes, or computes it itself.
    pub(super) fn before(&self, target: usize, u: ValueId) -> bool {
        if self.owner.get(&u) == Some(&target) {
            return true;
        }
        let inputs: Vec<ValueId> =
            self.regions[target].members().iter().flat_map(|m| self.graph.operands(*m)).collect();
        match self.owner.get(&u) {
            Some(r) => inputs.iter().any(|i| self.reaches(*i, *r)),
            None => inputs.iter().any(|i| *i == u || self.depends(*i, u)),
        }
    }
    /// Whether computing norm `v` in every column tile of region `target` costs less than it saves; the numbers if not.
    ///
    /// Each tile reads its rows once more, out of the cache that its own product fills with them next:
    /// `(tiles − 1)·(1 − ρ)` of the rows' bytes, against the write and the read of a kernel of its own (the read alone if
    /// the normalised rows are wanted elsewhere).
    pub(super) fn recompute(&self, v: ValueId, target: usize, kept: bool) -> Result<(), String> {
        const CACHE_MISSES: f64 = 0.02;
        let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { return Err("no matmul".into()) };
        let rows = self.rows(v);
        if self.bounds.le(&rows, &Dim::constant(NORM_PROLOGUE_ROWS)) {
            return Ok(());
        }
        let tile = match (has_few_rows(&rows), &g.form) {
            (true, _) => 8,
            (false, MatMulForm::RotaryPairs { .. }) => 128,
            (false, _) => 64,
        };
        let widths = g.members.iter().map(|m| self.graph.ty(*m).last());
        let n = match g.form {
            MatMulForm::Paired => widths.fold(Dim::zero(), |s, w| s.larger(&w)),
            _ => widths.fold(Dim::zero(), |s, w| s + w),
        };
        let tiles = n.as_const().map_or(f64::INFINITY, |n| (n as f64 / f64::from(tile)).ceil());
        let (cost, saved) = ((tiles - 1.0) * CACHE_MISSES, if kept { 1.0 } else { 2.0 });
        if cost <= saved {
            return Ok(());
        }
        Err(format!(
            "{rows} rows > {NORM_PROLOGUE_ROWS}: {tiles} column tiles would read them again, {cost:.2} times their bytes from \
             memory; a kernel of its own costs {saved:.0}"
        ))
    }
}
