//! Two convolutions in a row as one kernel, where that pays.
//!
//! A workgroup owns a tile of places of the second convolution and keeps what its windows reach of the first one's result, the
//! border included, in its memory (Alwani et al., "Fused-layer CNN accelerators", 2016). What lies between, written and read
//! by two kernels, is not moved; neighbouring tiles compute borders twice, and each reads what its border is made of. With
//! P places between, P' of them computed by all tiles, inputs of C channels, k products a value between and M channels there,
//! that saves `8·P·M` bytes and costs `4·C·(P' − P)·(1 − ρ)` bytes and `2·(P' − P)·M·k` operations.

use super::Partitioner;
use super::chain::{CORES_SLOWER, WORKGROUPS};
use super::windows::Taken;
use crate::fusion::cost::{CACHE_MISSES, pays};
use crate::fusion::legality::Refusal;
use crate::fusion::region::{ConvGroup, MatMulForm, RegionAnchor};
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::Window;
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::conv_chain::Tiles;
use frit_plan::Rates;
use std::collections::HashSet;

/// Two convolutions in numbers, of one image.
#[derive(Clone, Copy, Debug)]
struct Price {
    tiles: Tiles,
    /// Values between of one channel, their channels, and products that each sums.
    between: [u64; 3],
    /// Places of the result, its channels, and products that each sums.
    result: [u64; 3],
    /// Elements of what the first one reads.
    input: u64,
    weight_bytes: f64,
}

impl Price {
    /// Elements of both weights.
    fn weights(&self) -> f64 {
        let of = |[_, channels, depth]: [u64; 3]| channels as f64 * depth as f64;
        of(self.between) + of(self.result)
    }
    /// Bytes between the convolutions that two kernels move, and bytes that tiles read again.
    fn bytes(&self) -> (f64, f64) {
        let again = self.tiles.computed().saturating_sub(self.between[0]) as f64 / self.between[0] as f64;
        let weights = (self.tiles.groups() - 1) as f64 * self.weights() * self.weight_bytes;
        let moved = 8.0 * self.between[0] as f64 * self.between[1] as f64;
        (moved, (4.0 * self.input as f64 * again + weights) * CACHE_MISSES)
    }
    /// Times on a tier in µs: of two kernels, and of one.
    fn times_us(&self, tier: Tier) -> (f64, f64) {
        let rates = Rates::of(tier);
        let work = |of: [u64; 3]| of.iter().fold(2.0, |w, n| w * *n as f64);
        let once = 4.0 * (self.input as f64 + self.result[0] as f64 * self.result[1] as f64)
            + self.weights() * self.weight_bytes;
        let (moved, again) = self.bytes();
        let two = work(self.between) + work(self.result);
        let two = 2.0 * rates.launch_us + ((once + moved) / rates.bytes_per_us).max(two / rates.flops_per_us);
        let [_, channels, depth] = self.between;
        let one = work([self.tiles.computed(), channels, depth]) + work(self.result);
        let (full, slower) = if tier == Tier::Cpu { (2, CORES_SLOWER) } else { (WORKGROUPS, 1.0) };
        let share = (self.tiles.groups() as f64 / full as f64).min(1.0);
        let busy = ((once + again) / rates.bytes_per_us).max(slower * one / rates.flops_per_us) / share;
        (two, rates.launch_us + busy)
    }
}

impl Partitioner<'_> {
    /// Joins convolutions whose only reader is another convolution, where that pays on every kind of device.
    pub(super) fn absorb_conv_chains(&mut self) {
        for target in 0..self.regions.len() {
            let Some((id, group)) = self.conv_link(target) else { continue };
            match self.may_chain_convs(id, target, &group) {
                Ok(()) => {
                    self.spend();
                    for m in self.regions[id].members().into_iter().chain(group.taken.iter().copied()) {
                        self.owner.insert(m, target);
                    }
                    self.regions[target].anchor = RegionAnchor::ConvChain(Box::new(group));
                    self.regions[id].anchor = RegionAnchor::Map;
                    self.regions[id].epilogue.clear();
                }
                Err((code, detail)) => self.refuse(group.source, group.down, code, detail),
            }
        }
        self.drop_empty();
    }
    /// The convolution in front of the single matmul of region `target`: its region, and both as one.
    fn conv_link(&self, target: usize) -> Option<(usize, ConvGroup)> {
        let single = |r: usize| match &self.regions.get(r)?.anchor {
            RegionAnchor::MatMul(g) if g.form == MatMulForm::Concat && g.norm.is_none() && g.stats.is_none() => {
                let [m] = g.members.as_slice() else { return None };
                self.rhs_weight(*m).map(|_| *m)
            }
            _ => None,
        };
        let down = single(target)?;
        let lhs = *self.graph.operands(down).first()?;
        let (source, _) = self.path_of(lhs);
        let id = *self.owner.get(&source).filter(|id| **id != target)?;
        let up = single(id)?;
        let members: HashSet<ValueId> = self.regions[id].members().into_iter().collect();
        let Taken { source, path, windows, channels } = self.windows_over(lhs, up, &members)?;
        let inside = |v: &ValueId| path.contains(v) || *v == down;
        let alone =
            |v: &ValueId| !self.graph.is_output(*v) && self.users(*v).iter().all(|u| inside(u) || members.contains(u));
        let ours = path.iter().chain(&members).all(alone);
        let shape = &self.graph.ty(down).shape;
        let mut middle: Vec<ValueId> = self.regions[id].epilogue.clone();
        middle.retain(|m| !path.contains(m));
        middle.sort_by_key(|m| self.position.get(m).copied().unwrap_or(0));
        let walked = |m: &ValueId| {
            let op = self.graph.op(*m);
            op.is_view() || matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_))
        };
        // Extents whose products stay within 64 bits.
        let fits = |n: u64| n < 1 << 20;
        let numbers = |w: &Window| [w.extent, w.places, w.taps, w.stride, w.dilation, w.before];
        let small = windows.iter().flat_map(numbers).all(fits) && fits(channels);
        let columns = self.graph.ty(down).last().as_const().and_then(|n| u64::try_from(n).ok());
        let simple = small && columns.is_some_and(fits);
        let simple =
            simple && middle.iter().all(walked) && self.graph.ty(source).scalar == Scalar::F32 && shape.len() == 3;
        (ours && simple).then_some((id, ConvGroup { up, middle, source, taken: path, windows, channels, down }))
    }
    fn conv_price(&self, g: &ConvGroup, tiles: Tiles) -> Option<Price> {
        let number = |d: &frit_kernels::dim::Dim| d.as_const().and_then(|n| u64::try_from(n).ok());
        let last = |v: ValueId| number(&self.graph.ty(v).last());
        let bytes = |m: ValueId| {
            let s = self.tables.weight_info(self.rhs_weight(m)?)?.storage;
            Some(s.block_bytes() as f64 / s.block_elems() as f64)
        };
        let lhs = *self.graph.operands(g.up).first()?;
        let (input, _) = self.path_of(lhs);
        let image = self.graph.ty(input).shape.iter().skip(1).map(number).collect::<Option<Vec<u64>>>()?;
        let area = |f: fn(&frit_kernels::spec::Window) -> u64| g.windows.iter().map(f).product::<u64>();
        let depth = g.channels * area(|w| w.taps);
        Some(Price {
            tiles,
            between: [area(|w| w.extent), g.channels, last(lhs)?],
            result: [area(|w| w.places), last(g.down)?, depth],
            input: image.into_iter().try_fold(1u64, |n, d| n.checked_mul(d))?,
            weight_bytes: bytes(g.up)?.max(bytes(g.down)?),
        })
    }
    fn may_chain_convs(&self, id: usize, target: usize, g: &ConvGroup) -> Result<(), (Refusal, String)> {
        let refused = |detail: String| Err((Refusal::Halo, detail));
        self.allowed("conv-chain", "chains of convolutions are switched off", g.source, g.down)?;
        self.permitted(g.source, g.down)?;
        self.adds_in_its_own_order(Refusal::Halo)?;
        let plain = |m: ValueId| {
            let storage = self.rhs_weight(m).and_then(|w| self.tables.weight_info(w)).map(|i| i.storage);
            storage.is_some_and(|s| !s.is_quantised())
        };
        if !plain(g.up) || !plain(g.down) {
            return refused(
                "a chain of convolutions reads its weights element by element, and they are in blocks".into(),
            );
        }
        let columns = self.graph.ty(g.down).last().as_const().and_then(|n| u64::try_from(n).ok());
        let memory = u64::from(Capabilities::webgpu(Tier::Gpu).limit_workgroup_bytes);
        let tiles = columns.and_then(|n| Tiles::of(&g.windows, g.channels, n, memory));
        let Some(tiles) = tiles else {
            let [rows, columns] = g.windows;
            return refused(format!(
                "no tile with windows of {} by {} fits a workgroup",
                rows.halo(1),
                columns.halo(1)
            ));
        };
        self.has_invocations(tiles.invocations())?;
        if [id, target].iter().any(|r| self.regions[*r].forwards.is_some()) {
            return refused("statistics of rows go through the launches".into());
        }
        self.binds_both(id, target)?;
        if self.options.force_chains || self.options.force_conv_chains {
            return Ok(());
        }
        let Some(price) = self.conv_price(g, tiles) else { return refused("an image of unknown size".into()) };
        let times = self.options.tiers.iter().map(|t| (price.times_us(*t), *t));
        match times.min_by(|a, b| (a.0.0 - a.0.1).total_cmp(&(b.0.0 - b.0.1))) {
            Some(((two, one), tier)) if !pays(two, one) => {
                let (moved, again) = price.bytes();
                refused(format!(
                    "{} by {} tiles of {} by {} places compute {} of {} values between again; {moved:.0} B are not moved and \
                     {again:.0} B read again, {one:.0} us on the {} tier; two kernels take {two:.0} us",
                    tiles.count[0],
                    tiles.count[1],
                    tiles.places[0],
                    tiles.places[1],
                    tiles.computed().saturating_sub(price.between[0]),
                    price.between[0],
                    tier.name()
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Convolutions of 3 by 3 over an image of `extent` by `extent`, `channels` everywhere.
    fn price(extent: u64, channels: u64) -> Price {
        let w = Window { extent, places: extent, taps: 3, stride: 1, dilation: 1, before: 1 };
        let tiles = Tiles::of(&[w, w], channels, channels, 16 << 10).unwrap();
        let convolution = [extent * extent, channels, 9 * channels];
        let input = extent * extent * channels;
        Price { tiles, between: convolution, result: convolution, input, weight_bytes: 4.0 }
    }

    #[test]
    fn few_channels_pay_on_graphics_cards_and_many_do_not() {
        let pays_on = |p: &Price, tier| {
            let (two, one) = p.times_us(tier);
            pays(two, one)
        };
        for tier in [Tier::Gpu, Tier::Cuda] {
            assert!(pays_on(&price(224, 4), tier), "{tier:?}");
            assert!(!pays_on(&price(56, 256), tier), "{tier:?}");
        }
        assert!(pays_on(&price(8, 2), Tier::Cpu));
        assert!(!pays_on(&price(224, 16), Tier::Cpu), "cores multiply slowly through workgroup memory");
    }
    #[test]
    fn what_is_not_moved_is_written_and_read_by_two_kernels() {
        let (moved, again) = price(8, 4).bytes();
        assert_eq!((moved, again), (8.0 * 64.0 * 4.0, 4.0 * 256.0 * (36.0 / 64.0) * CACHE_MISSES));
    }
}
