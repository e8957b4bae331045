//! Two products in a row as one kernel, where that pays.
//!
//! A workgroup owns BM rows and goes through the inner width I slice by slice, so that the weights of both products are read
//! again for every BM rows, and the rows make as many workgroups as there are tiles. With inputs of width H, s right sides in
//! front and N columns behind, in bytes that pays iff `2·M·I·4 > (⌈M/BM⌉ − 1)·I·(s·H + N)·w·(1 − ρ)`, for w bytes a weight
//! and a share ρ of the weights that the caches hold; in time a launch is saved as well, and few workgroups are slow. The rows,
//! their sums and a slice of the inner values have to fit a workgroup.

use super::Partitioner;
use crate::fusion::cost::{CACHE_MISSES, MANY_ROWS, pays};
use crate::fusion::legality::Refusal;
use crate::fusion::region::{ChainGroup, MatMulForm, MatMulGroup, Region, RegionAnchor};
use crate::graph::{Op, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::spec::MatmulPrecision;
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::chain;
use frit_plan::Rates;

/// A chain in numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    /// Rows of the run that is priced.
    pub rows: u64,
    /// Columns of the input, H.
    pub input: u64,
    /// Right sides in front, s.
    pub sides: u64,
    /// Inner columns, I.
    pub inner: u64,
    /// Columns behind, N.
    pub output: u64,
    /// Bytes of a weight, w.
    pub weight_bytes: f64,
}

impl Widths {
    /// Tiles of rows: workgroups of the chain.
    fn tiles(&self) -> u64 {
        self.rows.div_ceil(u64::from(chain::ROWS)).max(1)
    }
    /// Bytes of inner values that two kernels move, and of weights that the chain reads again.
    fn bytes(&self) -> (f64, f64) {
        let weights = (self.inner * (self.sides * self.input + self.output)) as f64 * self.weight_bytes;
        let moved = 8.0 * (self.rows * self.inner) as f64;
        (moved, (self.tiles() - 1) as f64 * weights * CACHE_MISSES)
    }
    /// Times on a tier in µs: of two kernels, and of one.
    pub(super) fn times_us(&self, tier: Tier) -> (f64, f64) {
        self.times_on(tier, self.share(tier))
    }
    /// Workgroups that fill a device of a tier.
    fn full(tier: Tier) -> u64 {
        if tier == Tier::Cpu { 2 } else { WORKGROUPS }
    }
    /// The share of a device that as many workgroups as there are tiles occupy.
    fn share(&self, tier: Tier) -> f64 {
        (self.tiles() as f64 / Self::full(tier) as f64).min(1.0)
    }
    /// The same where the chain occupies `share` of the device.
    fn times_on(&self, tier: Tier, share: f64) -> (f64, f64) {
        let rates = Rates::of(tier);
        let weights = self.inner * (self.sides * self.input + self.output);
        let flops = 2.0 * (self.rows * weights) as f64;
        let once = weights as f64 * self.weight_bytes + 4.0 * (self.rows * (self.input + self.output)) as f64;
        let (moved, again) = self.bytes();
        let two = 2.0 * rates.launch_us + ((once + moved) / rates.bytes_per_us).max(flops / rates.flops_per_us);
        // On cores the slices go through memory element by element.
        let slower = if tier == Tier::Cpu { CORES_SLOWER } else { 1.0 };
        let busy = ((once + again) / rates.bytes_per_us).max(slower * flops / rates.flops_per_us) / share;
        (two, rates.launch_us + busy)
    }
}

/// Workgroups that fill a graphics card.
pub(super) const WORKGROUPS: u64 = 128;
/// How much longer a product takes on a software driver through workgroup memory than in subgroups: the factor between the
/// two schedules of a matmul that the bench `kernels` measured.
pub(super) const CORES_SLOWER: f64 = 7.9;

impl Widths {
    /// Which of the widths does not fit a workgroup with `memory` bytes.
    fn too_wide(&self, memory: u64) -> String {
        let most = |fits: &dyn Fn(u64) -> bool| {
            (0..16u32).rev().fold(0, |n, bit| if fits(n | 1 << bit) { n | 1 << bit } else { n })
        };
        let (input, output) = (most(&|k| chain::fits(k, 0, memory)), most(&|n| chain::fits(0, n, memory)));
        let each = [("rows", self.input, input), ("sums", self.output, output)];
        let over = each.into_iter().filter(|(_, have, most)| have > most);
        let over: Vec<String> = over.map(|(what, have, most)| format!("{what} of {have} > {most}")).collect();
        format!("{} rows do not fit a workgroup of {memory} B: {}", chain::ROWS, over.join(" and "))
    }
}

impl Partitioner<'_> {
    /// Joins products whose only reader is another product, where that pays on every kind of device.
    pub(super) fn absorb_chains(&mut self) {
        for target in 0..self.regions.len() {
            let Some((id, v, group)) = self.link(target) else { continue };
            let down = group.down;
            self.refused.retain(|r| (r.from, r.to) != (v, down));
            match self.may_chain(id, v, target, &group) {
                Ok(()) => {
                    self.spend();
                    for m in self.regions[id].members() {
                        self.owner.insert(m, target);
                    }
                    self.regions[target].anchor = RegionAnchor::Chain(Box::new(group));
                    self.regions[id].anchor = RegionAnchor::Map;
                    self.regions[id].epilogue.clear();
                }
                Err((code, detail)) => self.refuse(v, down, code, detail),
            }
        }
        self.drop_empty();
    }
    /// Removes regions that others have taken in.
    pub(super) fn drop_empty(&mut self) {
        let is_left = |r: &Region| r.anchor != RegionAnchor::Map || !r.epilogue.is_empty();
        let mut new_id = Vec::with_capacity(self.regions.len());
        let mut n = 0;
        for r in &self.regions {
            new_id.push(n);
            n += usize::from(is_left(r));
        }
        self.regions.retain(is_left);
        self.owner.values_mut().for_each(|o| *o = new_id.get(*o).copied().unwrap_or(*o));
    }
    /// The product in front of the single product of region `target`: its region, the value that the latter alone reads, and
    /// the chain of both.
    fn link(&self, target: usize) -> Option<(usize, ValueId, ChainGroup)> {
        let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { return None };
        let plain = |m: ValueId| self.rhs_weight(m).is_some();
        let [down] = g.members.as_slice() else { return None };
        let v = *self.graph.operands(*down).first()?;
        let id = *self.owner.get(&v)?;
        let RegionAnchor::MatMul(up) = &self.regions[id].anchor else { return None };
        let single = g.form == MatMulForm::Concat && g.norm.is_none() && plain(*down) && self.users(v) == [*down];
        let normed = |r: usize| self.regions[r].epilogue.iter().any(|v| matches!(self.graph.op(*v), Op::Norm { .. }));
        let form = matches!((&up.form, up.members.len()), (MatMulForm::Concat, 1) | (MatMulForm::Paired, 2));
        if !single
            || !form
            || !up.before.is_empty()
            || [id, target].into_iter().any(normed)
            || target == id
            || !up.members.iter().all(|m| plain(*m))
        {
            return None;
        }
        let mut middle = self.regions[id].epilogue.clone();
        middle.sort_by_key(|m| self.position.get(m).copied().unwrap_or(0));
        Some((id, v, ChainGroup { up: up.clone(), middle, down: *down }))
    }
    fn widths(&self, up: &MatMulGroup, down: ValueId) -> Option<Widths> {
        let number = |v: ValueId| self.graph.ty(v).last().as_const().and_then(|n| u64::try_from(n).ok());
        let first = *up.members.first()?;
        let bytes = |m: ValueId| {
            let s = self.tables.weight_info(self.rhs_weight(m)?)?.storage;
            Some(s.block_bytes() as f64 / s.block_elems() as f64)
        };
        Some(Widths {
            rows: self.most(&self.rows(first)).unwrap_or(MANY_ROWS).min(MANY_ROWS),
            input: number(*self.graph.operands(first).first()?)?,
            sides: up.members.len() as u64,
            inner: number(first)?,
            output: number(down)?,
            weight_bytes: bytes(first)?.max(bytes(down)?),
        })
    }
    /// Whether the numeric mode and the precision of products leave room for a chain; `code` refuses the precision.
    pub(super) fn adds_in_its_own_order(&self, code: Refusal) -> Result<(), (Refusal, String)> {
        if !self.options.numeric.allows(ProofClass::Reassoc) {
            let mode = self.options.numeric.name();
            let detail = format!("REASSOC: a chain adds up its products in its own order; the mode is {mode}");
            return Err((Refusal::Mode, detail));
        }
        if self.options.matmul_precision != MatmulPrecision::Auto {
            return Err((code, "a chain multiplies in f32 alone".into()));
        }
        Ok(())
    }
    fn may_chain(&self, id: usize, v: ValueId, target: usize, g: &ChainGroup) -> Result<(), (Refusal, String)> {
        let refused = |detail: String| Err((Refusal::Chain, detail));
        self.allowed("chain", "chains are switched off", v, g.down)?;
        self.permitted(v, g.down)?;
        self.adds_in_its_own_order(Refusal::Chain)?;
        let Some(w) = self.widths(&g.up, g.down) else { return refused("rows of a width that is not known".into()) };
        let memory = u64::from(Capabilities::webgpu(Tier::Gpu).limit_workgroup_bytes);
        if !chain::fits(w.input, w.output, memory) {
            return Err((Refusal::Smem, w.too_wide(memory)));
        }
        self.has_invocations(chain::SLICE)?;
        self.kept_inside(id, g)?;
        let largest = w.weight_bytes * (w.inner * (w.sides * w.input).max(w.output)) as f64;
        if largest > self.options.limit_binding_bytes as f64 {
            return Err((Refusal::Dispatch, format!("weights of {largest:.0} B exceed one binding")));
        }
        if g.up.stats.is_some() || [id, target].iter().any(|r| self.regions[*r].forwards.is_some()) {
            return refused("statistics of rows go through the launches".into());
        }
        self.binds_both(id, target)?;
        if self.options.force_chains {
            return Ok(());
        }
        let times = self.options.tiers.iter().map(|t| (w.times_us(*t), *t));
        let least = times.min_by(|a, b| (a.0.0 - a.0.1).total_cmp(&(b.0.0 - b.0.1)));
        match least {
            Some(((two, one), tier)) if !pays(two, one) && pays(two, w.times_on(tier, 1.0).1) => {
                let (tiles, full) = (w.tiles(), Widths::full(tier));
                let detail = format!(
                    "{tiles} workgroups of {} rows < {full} that fill the {} tier: {one:.0} us as a chain; two kernels take {two:.0} us",
                    chain::ROWS,
                    tier.name()
                );
                Err((Refusal::Workgroups, detail))
            }
            Some(((two, one), tier)) if !pays(two, one) => {
                let (moved, again) = w.bytes();
                refused(format!(
                    "{} rows, {} tiles of {}: as a chain {moved:.0} B are not moved and {again:.0} B of weights are read again, \
                     {one:.0} us on the {} tier; two kernels take {two:.0} us",
                    w.rows,
                    w.tiles(),
                    chain::ROWS,
                    tier.name()
                ))
            }
            _ => Ok(()),
        }
    }
    /// Whether a workgroup may have so many invocations.
    pub(super) fn has_invocations(&self, used: u32) -> Result<(), (Refusal, String)> {
        let limit = self.options.limit_invocations;
        match used <= limit {
            true => Ok(()),
            false => Err((Refusal::Threads, format!("{used} > {limit} invocations of a workgroup"))),
        }
    }
    /// Whether nothing but the second product reads what is made in front of it, element by element.
    fn kept_inside(&self, id: usize, g: &ChainGroup) -> Result<(), (Refusal, String)> {
        let refused = |detail: String| Err((Refusal::Chain, detail));
        let name = |m: &ValueId| self.graph.op(*m).name();
        let pointwise =
            |m: &&ValueId| matches!(self.graph.op(**m), Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_));
        if let Some(m) = g.middle.iter().find(|m| !pointwise(m)) {
            return refused(format!("{} between the products is not computed element by element", name(m)));
        }
        let inside = self.regions[id].members();
        let reader = |m: &ValueId| self.users(*m).iter().find(|u| !inside.contains(u) && **u != g.down);
        for m in g.up.members.iter().chain(&g.middle).chain(&g.up.norm) {
            if self.graph.is_output(*m) {
                return refused(format!("the result of {} leaves the graph", name(m)));
            }
            if let Some(u) = reader(m) {
                return refused(format!("{} reads what {} in front makes as well", name(u), name(m)));
            }
        }
        Ok(())
    }
    /// Why region `id`, which makes `v`, does not compute the product `u` of it too; the decision proper comes later.
    pub(super) fn chain(&self, id: usize, v: ValueId, u: ValueId) -> (Refusal, String) {
        let RegionAnchor::MatMul(g) = &self.regions[id].anchor else {
            let rows = self.graph.ty(v).last();
            let columns = self.graph.ty(u).last();
            let detail = format!(
                "as one kernel each workgroup would own rows of {rows} and read weights of {columns} columns again"
            );
            return (Refusal::Profit, detail);
        };
        let first = g.members.first().copied().unwrap_or(v);
        match self.widths(g, u) {
            Some(w) => {
                let memory = u64::from(Capabilities::webgpu(Tier::Gpu).limit_workgroup_bytes);
                let fit = if chain::fits(w.input, w.output, memory) { "fit" } else { "do not fit" };
                let (moved, again) = w.bytes();
                let name = self.graph.op(first).name();
                (
                    Refusal::Chain,
                    format!(
                        "{} rows of {} {fit} a workgroup with the sums of {} columns; behind this {name} {moved:.0} B would not be moved \
                     and {again:.0} B of weights be read again",
                        chain::ROWS,
                        w.input,
                        w.output
                    ),
                )
            }
            None => (Refusal::Chain, "a chain would read its right sides again for every tile of rows".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTER: Widths = Widths { rows: 8, input: 64, sides: 1, inner: 16, output: 64, weight_bytes: 2.0 };

    #[test]
    fn small_chains_pay_and_those_of_large_models_do_not() {
        let pays_on = |w: Widths, tier| {
            let (two, one) = w.times_us(tier);
            pays(two, one)
        };
        for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
            assert!(pays_on(Widths { rows: 1, ..ADAPTER }, tier), "{tier:?}");
            assert!(!pays_on(Widths { rows: 1, input: 4096, sides: 2, inner: 11008, output: 4096, ..ADAPTER }, tier));
        }
        assert!(pays_on(Widths { rows: 512, ..ADAPTER }, Tier::Gpu));
        assert!(!pays_on(Widths { rows: 512, ..ADAPTER }, Tier::Cpu), "cores multiply slowly through workgroup memory");
    }
    #[test]
    fn more_rows_save_more_bytes_and_read_more_weights_again() {
        let (few, many) = (ADAPTER.bytes(), Widths { rows: 512, ..ADAPTER }.bytes());
        assert_eq!(few, (8.0 * 8.0 * 16.0, 0.0));
        assert!(many.0 == 64.0 * few.0 && many.1 > 0.0);
    }
}
