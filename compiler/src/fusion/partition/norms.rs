//! Norms computed inside the matmul that reads them.

use super::{NORM_PROLOGUE_ROWS, Partitioner};
use crate::fusion::cost::{self, MANY_ROWS, NormChoice};
use crate::fusion::legality::Refusal;
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::graph::{Op, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::dim::Dim;
use frit_kernels::templates::{column_tile, has_few_rows};
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
    /// Whether computing norm `v` in every column tile of region `target` is worth it on every kind of device; the numbers
    /// of the one where it is least so if not. At most [`NORM_PROLOGUE_ROWS`] rows are a matter of launches alone.
    pub(super) fn recompute(&self, v: ValueId, target: usize, kept: bool) -> Result<(), String> {
        let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { return Err("no matmul".into()) };
        let rows = self.rows(v);
        let most = self.most(&rows);
        if most.is_some_and(|m| m <= NORM_PROLOGUE_ROWS) {
            return Ok(());
        }
        let widths = g.members.iter().map(|m| self.graph.ty(*m).last());
        let (sides, columns) = match g.form {
            MatMulForm::Concat => (1, widths.fold(Dim::zero(), |s, w| s + w)),
            MatMulForm::Paired => (g.members.len(), widths.fold(Dim::zero(), |s, w| s.larger(&w))),
            MatMulForm::RotaryPairs { .. } => (2, widths.fold(Dim::zero(), |s, w| s + w).div(&Dim::constant(2))),
        };
        let number = |d: &Dim| d.as_const().and_then(|n| u64::try_from(n).ok());
        let (Some(columns), Some(width)) = (number(&columns), number(&self.graph.ty(v).last())) else {
            return Err(format!("{rows} rows of a width that is not known"));
        };
        let weight = g.members.first().and_then(|m| self.rhs_weight(*m)).and_then(|w| self.tables.weight_info(w));
        let is_quantised = weight.is_some_and(|w| w.storage.is_quantised());
        let choice = NormChoice { rows: most.unwrap_or(MANY_ROWS).min(MANY_ROWS), width, kept };
        let least = self.options.tiers.iter().map(|tier| {
            let tile = column_tile(*tier, has_few_rows(&rows), sides, is_quantised, columns);
            let tiles = columns.div_ceil(tile);
            let (own, inside) = choice.times_us(*tier, tiles);
            (own, inside, tiles, *tier)
        });
        let Some((own, inside, tiles, tier)) = least.min_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1))) else {
            return Ok(());
        };
        if cost::pays(own, inside) {
            return Ok(());
        }
        Err(format!(
            "{rows} rows, priced at {} of {width} on the {} tier: {tiles} column tiles would compute the norm again, {inside:.0} us; a \
             kernel of its own takes {own:.0} us",
            choice.rows,
            tier.name()
        ))
    }
}
