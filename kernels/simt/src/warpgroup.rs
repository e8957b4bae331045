//! Matrix products of a warpgroup (`wgmma`): four warps multiply tiles that lie in shared memory, and go on meanwhile.
//!
//! Each warp has 16 of the 64 rows. Until a group of products is waited for, its accumulators must not be touched and its
//! tiles not written; both are checked, the latter by reading the tiles again when the wait ends.

use crate::access::Places;
use crate::launch::Swizzle;
use crate::machine::{Machine, Warp};
use crate::op::{Elem, LANES, MmaElem, Reg, Row};
use crate::report::ViolationKind;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::ops::Range;

/// Rows of a product, and of each warp; depth.
const M: usize = 64;
const ROWS: usize = 16;
const K: usize = 16;
/// Words of a row of 16 halves.
const WORDS: usize = K / 2;

/// One `wgmma.mma_async` of 64 × n × 16 on 16-bit elements, with sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wgmma {
    pub elem: MmaElem,
    pub n: u16,
    /// Descriptors, pairs of rows.
    pub a: Reg,
    pub b: Reg,
    /// Whether the sums so far are added.
    pub add: Reg,
    /// The list of accumulators.
    pub regs: u32,
}

/// Where a matrix lies in shared memory, rows along k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    start: u64,
    /// Bytes between neighbours along k without swizzle, and between eights of rows.
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
}

impl Descriptor {
    fn decode(bits: u64) -> Result<Descriptor, &'static str> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        if bits >> 49 & 7 != 0 {
            return Err("has a base offset");
        }
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::Bytes128,
            2 => Swizzle::Bytes64,
            _ => Swizzle::Bytes32,
        };
        let d = Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle };
        let pattern = 8 * u64::from(swizzle.span().unwrap_or(16));
        let (within, step) = (d.start % pattern, u64::from(swizzle.span().unwrap_or(16)));
        if within >= step {
            return Err("does not start where its pattern does");
        }
        Ok(d)
    }
    /// The byte where element `2 word` of a row lies.
    fn place(&self, row: usize, word: usize) -> u64 {
        let (eights, row, byte) = (row as u64 / 8, row as u64 % 8, 4 * word as u64);
        match self.swizzle.span() {
            None => self.start + eights * self.stride + byte / 16 * self.leading + row * 16 + byte % 16,
            Some(span) => self.swizzle.place(self.start + eights * self.stride + row * u64::from(span) + byte),
        }
    }
}

/// A tile that a product reads.
type Tile = (Descriptor, Range<usize>);

#[derive(Debug, Default)]
struct Group {
    accumulators: Vec<u32>,
    tiles: Vec<Tile>,
}

/// The products of one warp that are under way.
#[derive(Debug, Default)]
pub(crate) struct Products {
    open: Group,
    groups: VecDeque<Group>,
    /// Accumulators that products under way write.
    pub(crate) busy: FxHashSet<Reg>,
    /// What products left in accumulators, and whether a fence came since the last one.
    left: FxHashMap<Reg, Row>,
    fenced: bool,
    /// Products so far.
    count: u64,
}

impl Machine<'_> {
    pub(crate) fn wgmma_fence(&mut self, w: &mut Warp) {
        w.products.fenced = true;
    }
    pub(crate) fn wgmma_commit(&mut self, w: &mut Warp) {
        let group = std::mem::take(&mut w.products.open);
        w.products.groups.push_back(group);
    }
    /// Waits until at most `pending` groups are under way.
    pub(crate) fn wgmma_wait(&mut self, w: &mut Warp, pending: u32) {
        while w.products.groups.len() > pending as usize {
            let Some(group) = w.products.groups.pop_front() else { return };
            for tile in group.tiles {
                self.read_tile(w, &tile);
            }
            let rest: FxHashSet<Reg> =
                w.products.groups.iter().chain([&w.products.open]).flat_map(|g| g.accumulators.clone()).collect();
            for list in group.accumulators {
                for r in self.program.lists.get(list as usize).map_or(&[] as &[Reg], Vec::as_slice) {
                    if !rest.contains(&list) {
                        w.products.busy.remove(r);
                    }
                }
            }
        }
    }

    /// Warps of a warpgroup have issued the same products.
    pub(crate) fn check_warpgroups(&mut self, warps: &[Warp]) {
        for four in warps.chunks(4) {
            let Some(first) = four.first() else { continue };
            if let Some(other) = four.iter().find(|w| w.products.count != first.products.count) {
                self.violate(other, other.lanes, ViolationKind::CollectiveDivergence, None);
            }
        }
    }

    pub(crate) fn wgmma(&mut self, w: &mut Warp, x: &Wgmma, mask: u32) {
        if mask != u32::MAX || self.threads % 128 != 0 {
            self.violate(w, !mask, ViolationKind::CollectiveDivergence, None);
        }
        let Some(regs) = self.program.lists.get(x.regs as usize) else { return };
        w.products.count += 1;
        self.check_accumulators(w, x, regs, mask);
        let first = w.index as usize % 4 * ROWS;
        let (a, b) = (self.descriptor(w, x.a), self.descriptor(w, x.b));
        let (Some(a), Some(b)) = (a, b) else { return };
        let tiles: [Tile; 2] = [(a, first..first + ROWS), (b, 0..usize::from(x.n))];
        let [left, right] = tiles.clone().map(|t| self.read_tile(w, &t));
        w.products.open.tiles.extend(tiles);
        w.products.open.accumulators.push(x.regs);
        let elements = |words: &[[u32; WORDS]]| -> Vec<[f64; K]> {
            words.iter().map(|row| std::array::from_fn(|k| x.elem.get(row[k / 2], k % 2))).collect()
        };
        let (left, right) = (elements(&left), elements(&right));
        let finite = left.iter().chain(&right).all(|r| r.iter().all(|v| v.is_finite()));
        let order = self.mma_order(K);
        let add = w.row(x.add)[0] != 0;
        let mut born = 0;
        for (i, reg) in regs.iter().enumerate() {
            let before = *w.row(*reg);
            let mut out: Row = [0; LANES];
            for (lane, d) in out.iter_mut().enumerate() {
                let (g, t) = (lane / 4, lane % 4);
                let (row, column) = (g + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * t + i % 2);
                let start = if add { f64::from(f32::from_bits(before[lane])) } else { 0.0 };
                let (Some(l), Some(r)) = (left.get(row), right.get(column)) else { continue };
                let sum = crate::mma::sum_of(l, r, start, order.as_deref()) as f32;
                *d = sum.to_bits();
                born |= u32::from(!sum.is_finite() && finite && start.is_finite()) << lane;
            }
            w.set(*reg, &out, mask);
            w.products.left.insert(*reg, out);
            w.products.busy.insert(*reg);
        }
        if born != 0 && self.options.finite {
            self.violate(w, born, ViolationKind::NotFinite, None);
        }
    }

    /// Accumulators that other instructions changed need a fence; those that are read must have been written.
    fn check_accumulators(&mut self, w: &mut Warp, x: &Wgmma, regs: &[Reg], mask: u32) {
        let changed = regs.iter().any(|r| w.products.left.get(r) != Some(w.row(*r)));
        if changed && !w.products.fenced {
            self.violate(w, mask, ViolationKind::Wgmma("accumulators changed without a fence"), None);
        }
        w.products.fenced = false;
        let add = w.row(x.add)[0] != 0;
        let missing = regs.iter().filter_map(|r| w.defined.get(*r as usize)).fold(0, |m, d| m | !d & mask);
        if add && missing != 0 {
            self.violate(w, missing, ViolationKind::UninitialisedRegister, None);
        }
    }

    /// The descriptor in a pair of rows, the same in all lanes.
    fn descriptor(&mut self, w: &Warp, pair: Reg) -> Option<Descriptor> {
        let (low, high) = (w.row(pair), w.row(pair + 1));
        let bits = u64::from(high[0]) << 32 | u64::from(low[0]);
        let uniform = low.iter().all(|v| *v == low[0]) && high.iter().all(|v| *v == high[0]);
        let found = if uniform { Descriptor::decode(bits) } else { Err("differs between lanes") };
        match found {
            Ok(d) => Some(d),
            Err(what) => {
                self.violate(w, u32::MAX, ViolationKind::Wgmma(what), None);
                None
            }
        }
    }

    /// The rows of a tile. Which thread reads a word is not said, so none may count on its own writes.
    fn read_tile(&mut self, w: &Warp, (d, rows): &Tile) -> Vec<[u32; WORDS]> {
        let mut out = vec![[0; WORDS]; rows.len()];
        let Some(segment) = self.short_segment(crate::op::Space::Shared).map(|s| s as usize) else {
            self.violate(w, u32::MAX, ViolationKind::WildAddress, None);
            return out;
        };
        for four in (0..rows.len()).step_by(4) {
            let place = |i: usize| d.place(rows.start + four + i / WORDS, i % WORDS);
            let offsets: [u64; LANES] = std::array::from_fn(place);
            let turned = std::array::from_fn(|i| offsets[(i + LANES / 2) % LANES]);
            let good = self.permitted(w, &Places { segment, offsets, mask: u32::MAX }, 4, 4, false, false);
            let again = Places { segment, offsets: turned, mask: good.rotate_right(LANES as u32 / 2) };
            self.permitted(w, &again, 4, 4, false, false);
            let Some(s) = self.memory.segments.get(segment) else { continue };
            let order = self.clock.order(w.index * LANES as u32, true);
            if (0..LANES).any(|i| good >> i & 1 == 1 && s.watch.is_unseen((offsets[i] / 4) as usize, &order)) {
                let what = "reads what was stored without a proxy fence";
                self.violate(w, u32::MAX, ViolationKind::Wgmma(what), Some((segment, offsets[0])));
            }
            let Some(s) = self.memory.segments.get(segment) else { continue };
            for i in (0..LANES).filter(|i| good >> i & 1 == 1) {
                if let Some(row) = out.get_mut(four + i / WORDS) {
                    row[i % WORDS] = s.get(offsets[i], Elem::B32, 0).0;
                }
            }
        }
        out
    }

    /// Reports instructions that touch accumulators of products under way.
    pub(crate) fn check_busy(&mut self, w: &Warp, inst: &crate::op::Inst, mask: u32) {
        let mut touched = false;
        self.program.reads(inst, |r| touched |= w.products.busy.contains(&r));
        self.program.writes(inst, |r| touched |= w.products.busy.contains(&r));
        if touched {
            self.violate(w, mask, ViolationKind::Wgmma("accumulators touched before the product was waited for"), None);
        }
    }
}

const _: () = assert!(M == 4 * ROWS);
