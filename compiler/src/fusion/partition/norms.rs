//! Norms computed inside the matmul that reads them.

use super::Partitioner;
use crate::fusion::cost::{self, MANY_ROWS, NormChoice, NormForm};
use crate::fusion::legality::Refusal;
use crate::fusion::region::{MatMulForm, MatMulGroup, RegionAnchor};
use crate::fusion::row_stats::RowStats;
use crate::graph::{Op, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_kernels::target::Tier;
use frit_kernels::templates::column_tile;
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
            let on = self.allowed("norm", "norm prologues are switched off", v, first);
            let permitted = on.and_then(|()| self.permitted(v, first));
            let permitted = permitted.and_then(|()| matmuls.iter().try_for_each(|u| self.edge_allowed(v, *u)));
            if let Err((code, detail)) = permitted {
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
            match self.norm_form(v, target, kept) {
                Ok(Inside { stats, commuted }) => {
                    self.spend();
                    if let Some(stats) = stats {
                        self.forward(stats);
                        if commuted && self.gain_of(v).is_some() {
                            self.forward_gained(stats, v);
                        }
                    }
                    if let RegionAnchor::MatMul(g) = &mut self.regions[target].anchor {
                        (g.norm, g.stats, g.commuted) = (Some(v), stats, commuted);
                        self.owner.insert(v, target);
                        self.regions[id].anchor = RegionAnchor::Map;
                    }
                }
                Err((code, detail)) => self.refuse(v, first, code, detail),
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
    /// How norm `v` is computed in every column tile of region `target`, where that is worth it on every kind of device: with
    /// statistics of each tile's own, with those that the kernel writes which makes the rows, or commuted through the product.
    /// Of forms that pay, the first unless a later one is worth it. Few rows are a matter of launches alone.
    fn norm_form(&self, v: ValueId, target: usize, kept: bool) -> Result<Inside, (Refusal, String)> {
        let refuse = |detail: String| (Refusal::Recompute, detail);
        let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { return Err(refuse("no matmul".into())) };
        let rows = self.rows(v);
        let most = self.most(&rows);
        if self.at_most_few(&rows) {
            return Ok(Inside::default());
        }
        let Some(product) = self.tiled(g) else {
            return Err(refuse(format!("{rows} rows of a width that is not known")));
        };
        let number = |d: &Dim| d.as_const().and_then(|n| u64::try_from(n).ok());
        let Some(width) = number(&self.graph.ty(v).last()) else {
            return Err(refuse(format!("{rows} rows of a width that is not known")));
        };
        let copied = self.copies_rows(g, &rows);
        let choice = NormChoice { rows: most.unwrap_or(MANY_ROWS).min(MANY_ROWS), width, kept, copied };
        let each = |form: NormForm| {
            let on = |tier: &Tier| {
                let tiles = product.tiles(*tier, self.few(&rows));
                let (own, inside) = choice.times_us(*tier, tiles, form);
                Priced { own, inside, tiles, tier: *tier }
            };
            self.options.tiers.iter().map(on).collect::<Vec<Priced>>()
        };
        let worst = |form: NormForm| each(form).into_iter().min_by(|a, b| a.gain().total_cmp(&b.gain()));
        let Some(recomputed) = worst(NormForm::Recompute) else { return Ok(Inside::default()) };
        let on = self.allowed("stat-forward", "forwarding of statistics is switched off", v, v);
        let stats = on.map_err(Self::told_off).and_then(|()| self.forwardable(v));
        let pays = |p: &Priced| cost::pays(p.own, p.inside);
        let stats = match stats {
            Ok(stats) => stats,
            Err(_) if pays(&recomputed) => return Ok(Inside::default()),
            Err(why) => {
                let detail = recomputed.told(&rows, &choice, "compute the norm again");
                return Err(refuse(format!("{detail}; statistics are not forwarded: {why}")));
            }
        };
        let numbers = stats.tiles(self.graph) * stats.numbers();
        let forward = NormForm::Forward(numbers);
        let Some(forwarded) = worst(forward) else { return Ok(Inside::default()) };
        let inline = match (pays(&recomputed), pays(&forwarded)) {
            (true, true) if cost::pays(recomputed.inside, forwarded.inside) => Some((Some(stats), forward)),
            (true, _) => Some((None, NormForm::Recompute)),
            (false, true) => Some((Some(stats), forward)),
            (false, false) => None,
        };
        let commutes = self.commutable(v, target, kept);
        let commute = NormForm::Commute {
            numbers,
            gained: self.gain_of(v).is_some(),
            sums: product.columns.saturating_mul(product.sides as u64),
        };
        let commuted = worst(commute).filter(|_| commutes.is_ok());
        let wins = |other: NormForm| {
            let pairs: Vec<(f64, f64)> =
                each(other).iter().zip(each(commute)).map(|(o, c)| (o.inside, c.inside)).collect();
            pairs.iter().all(|(o, c)| c <= o) && pairs.iter().any(|(o, c)| cost::pays(*o, *c))
        };
        let with_stats = |p: &Priced| {
            let what = "normalise with statistics of the kernel that makes the rows";
            format!("{}; {:.0} us with statistics of its own", p.told(&rows, &choice, what), recomputed.inside)
        };
        match (inline, commuted) {
            (None, Some(c)) if pays(&c) => Ok(Inside { stats: Some(stats), commuted: true }),
            (Some((_, form)), Some(_)) if wins(form) => Ok(Inside { stats: Some(stats), commuted: true }),
            (Some((stats, _)), _) => Ok(Inside { stats, commuted: false }),
            (None, Some(c)) => {
                let what = "scale their sums by statistics of the kernel that makes the rows";
                let detail =
                    format!("{}; {:.0} us normalising by them", c.told(&rows, &choice, what), forwarded.inside);
                Err((Refusal::Commute, detail))
            }
            (None, None) => {
                let why = commutes.err().unwrap_or_default();
                Err((Refusal::Stat, format!("{}; not commuted: {why}", with_stats(&forwarded))))
            }
        }
    }
    /// What the norm in front of a product takes in its column tiles, in µs.
    pub(super) fn norm_time(&self, g: &MatMulGroup, tier: Tier) -> f64 {
        let Some((v, product)) = g.norm.zip(self.tiled(g)) else { return 0.0 };
        let rows = self.rows(v);
        let width = self.graph.ty(v).last().as_const().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let most = self.most(&rows).unwrap_or(MANY_ROWS).min(MANY_ROWS);
        let form = match g.stats.map(|s| s.tiles(self.graph) * s.numbers()) {
            None => NormForm::Recompute,
            Some(numbers) if !g.commuted => NormForm::Forward(numbers),
            Some(numbers) => NormForm::Commute {
                numbers,
                gained: self.gain_of(v).is_some(),
                sums: product.columns.saturating_mul(product.sides as u64),
            },
        };
        let tiles = product.tiles(tier, self.few(&rows));
        NormChoice { rows: most, width, kept: false, copied: self.copies_rows(g, &rows) }.times_us(tier, tiles, form).1
    }
    /// Whether the product of so many rows copies those that are kept in 16 bits, on every kind of device that the plan is
    /// for: those with matrix units. A plan for others as well keeps the form that suits them.
    fn copies_rows(&self, g: &MatMulGroup, rows: &Dim) -> bool {
        let matrix = self.options.tiers == [Tier::Cuda] && self.options.matmul_precision.is_auto() && !self.few(rows);
        matrix && self.options.half_rows && self.weight_storage(g).is_some_and(|s| s.matrix_format().is_some())
    }
    /// How the weight of a group's first product is stored.
    pub(super) fn weight_storage(&self, g: &MatMulGroup) -> Option<Storage> {
        let weight = g.members.first().and_then(|m| self.rhs_weight(*m));
        weight.and_then(|w| self.tables.weight_info(w)).map(|w| w.storage)
    }
    /// What a group's columns are to its column tiles.
    fn tiled(&self, g: &MatMulGroup) -> Option<Tiled> {
        let widths = g.members.iter().map(|m| self.graph.ty(*m).last());
        let (sides, columns) = match g.form {
            MatMulForm::Concat => (1, widths.fold(Dim::zero(), |s, w| s + w)),
            MatMulForm::Paired => (g.members.len(), widths.fold(Dim::zero(), |s, w| s.larger(&w))),
            MatMulForm::RotaryPairs { .. } => (2, widths.fold(Dim::zero(), |s, w| s + w).div(&Dim::constant(2))),
        };
        let columns = columns.as_const().and_then(|n| u64::try_from(n).ok())?;
        Some(Tiled { sides, columns, is_quantised: self.weight_storage(g).is_some_and(Storage::is_quantised) })
    }
}

/// How a product computes the norm in front of it.
#[derive(Clone, Copy, Debug, Default)]
struct Inside {
    /// Where the statistics come from; `None`: from the rows.
    stats: Option<RowStats>,
    /// They scale the sums.
    commuted: bool,
}

/// Columns of a product, and what decides how many a workgroup has.
struct Tiled {
    sides: usize,
    columns: u64,
    is_quantised: bool,
}

impl Tiled {
    fn tiles(&self, tier: Tier, few_rows: bool) -> u64 {
        self.columns.div_ceil(column_tile(tier, few_rows, self.sides, self.is_quantised, self.columns))
    }
}

/// A form of a norm on the kind of device where it gains least, in µs.
struct Priced {
    own: f64,
    inside: f64,
    tiles: u64,
    tier: Tier,
}

impl Priced {
    fn gain(&self) -> f64 {
        self.own - self.inside
    }
    fn told(&self, rows: &Dim, choice: &NormChoice, what: &str) -> String {
        format!(
            "{rows} rows, priced at {} of {} on the {} tier: {} column tiles would {what}, {:.0} us; a kernel of its own takes \
             {:.0} us",
            choice.rows,
            choice.width,
            self.tier.name(),
            self.tiles,
            self.inside,
            self.own
        )
    }
}
