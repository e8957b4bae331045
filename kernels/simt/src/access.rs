//! Loads, stores and atomic operations of a warp, with their checks and costs.

use crate::launch::Options;
use crate::machine::{Machine, Warp};
use crate::memory::{Kind, OFFSET_BITS, Segment};
use crate::op::{Access, Addr, Atomic, Elem, LANES, Reg, Rmw, Space};
use crate::report::ViolationKind;

/// Where the lanes of a warp access memory: all in one segment, or none.
pub(crate) struct Places {
    pub(crate) segment: usize,
    pub(crate) offsets: [u64; LANES],
    pub(crate) mask: u32,
}

impl Machine<'_> {
    /// Byte offsets of an address, one list for each segment that lanes name.
    pub(crate) fn places(&mut self, w: &Warp, addr: &Addr, mask: u32) -> Vec<Places> {
        let mut offsets = [0; LANES];
        match *addr {
            Addr::In { segment, index, scale, imm } => {
                match index.map(|r| w.row(r)) {
                    Some(row) => {
                        for i in 0..LANES {
                            offsets[i] = u64::from(row[i]) * u64::from(scale) + u64::from(imm);
                        }
                    }
                    None => offsets = [u64::from(imm); LANES],
                }
                vec![Places { segment: segment as usize, offsets, mask }]
            }
            Addr::Short { base, imm, space } => {
                let Some(segment) = self.short_segment(space) else {
                    self.violate(w, mask, ViolationKind::WildAddress, None);
                    return Vec::new();
                };
                let row = w.row(base);
                for i in 0..LANES {
                    offsets[i] = u64::from(row[i]).wrapping_add_signed(imm);
                }
                vec![Places { segment: segment as usize, offsets, mask }]
            }
            Addr::Long { base, imm, space } => {
                let (lo, hi) = (w.row(base), w.row(base + 1));
                let mut address = [0; LANES];
                for i in 0..LANES {
                    address[i] = (u64::from(hi[i]) << 32 | u64::from(lo[i])).wrapping_add_signed(imm);
                }
                self.long_places(w, &address, space, mask)
            }
        }
    }

    fn long_places(&mut self, w: &Warp, address: &[u64; LANES], space: Space, mask: u32) -> Vec<Places> {
        let mut found: Vec<Places> = Vec::new();
        let (mut wild, mut left) = (0, mask);
        while left != 0 {
            let lead = address[left.trailing_zeros() as usize];
            let mut here = 0;
            for (i, a) in address.iter().enumerate() {
                here |= u32::from(a >> OFFSET_BITS == lead >> OFFSET_BITS) << i;
            }
            let here = here & left;
            left &= !here;
            // A window address below 2^40 in a named space is an offset.
            let segment = match (lead >> OFFSET_BITS, space) {
                (0, Space::Shared | Space::Local) => self.short_segment(space).map(|s| s as usize),
                _ => self.memory.find(lead),
            };
            let suits = |s: &usize| {
                let kind = self.memory.segments.get(*s).map(|s| s.kind);
                match space {
                    Space::Global => kind == Some(Kind::Global),
                    Space::Shared => kind == Some(Kind::Shared),
                    Space::Local => kind == Some(Kind::Local),
                    Space::Generic => true,
                }
            };
            match segment.filter(suits) {
                Some(segment) => {
                    let offsets = address.map(|a| a & ((1 << OFFSET_BITS) - 1));
                    found.push(Places { segment, offsets, mask: here });
                }
                None => wild |= here,
            }
        }
        if wild != 0 {
            self.violate(w, wild, ViolationKind::WildAddress, None);
        }
        found
    }

    /// Lanes of `mask` that may not access a segment yet: the launch in front may still write it, or read what they write.
    pub(crate) fn too_early(&self, w: &Warp, segment: usize, mask: u32, write: bool) -> u32 {
        let shared = |s: &Segment| s.kind == Kind::Global && (write || s.writable);
        if w.waited == u32::MAX || !self.memory.segments.get(segment).is_some_and(shared) {
            0
        } else {
            mask & !w.waited
        }
    }

    /// Lanes whose access passes alignment, bounds, initialisation and race checks; the others are reported. A lane whose
    /// access is in bounds still takes place, so that one fault does not cause a trail of others.
    pub(crate) fn permitted(&mut self, w: &Warp, p: &Places, size: u32, align: u32, write: bool, atomic: bool) -> u32 {
        let early = self.too_early(w, p.segment, p.mask, write);
        if early != 0 {
            let lane = early.trailing_zeros() as usize;
            self.violate(w, early, ViolationKind::EarlyAccess, Some((p.segment, p.offsets[lane])));
        }
        let Some(s) = self.memory.segments.get_mut(p.segment) else { return 0 };
        let mut faults: Vec<(u32, ViolationKind)> = Vec::new();
        let mut good = p.mask;
        let mut lanes = p.mask;
        let first = w.index * LANES as u32;
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            let offset = p.offsets[lane as usize];
            let fault = if offset % u64::from(align) != 0 {
                Some(ViolationKind::Misaligned { align })
            } else if write {
                s.check_write(offset, size, &self.clock, first + lane, atomic)
            } else {
                s.check_read(offset, size, &self.clock, first + lane, atomic)
            };
            if let Some(kind) = fault {
                use ViolationKind::{Misaligned, ReadOutOfBounds, WriteOutOfBounds};
                if matches!(kind, Misaligned { .. } | ReadOutOfBounds | WriteOutOfBounds) {
                    good &= !(1 << lane);
                }
                faults.push((lane, kind));
            }
        }
        for (lane, kind) in faults {
            self.violate(w, 1 << lane, kind, Some((p.segment, p.offsets[lane as usize])));
        }
        good
    }

    /// Adds the cost of an access to the counters.
    pub(crate) fn count_access(&mut self, p: &Places, size: u32, write: bool) {
        let Some(kind) = self.memory.segments.get(p.segment).map(|s| s.kind) else { return };
        let c = &mut self.counters;
        match kind {
            Kind::Global => {
                let bytes = u64::from(p.mask.count_ones()) * u64::from(size);
                let sectors = sectors(p, size);
                if write {
                    c.global_write_bytes += bytes;
                    c.global_write_sectors += sectors;
                } else {
                    c.global_read_bytes += bytes;
                    c.global_read_sectors += sectors;
                }
            }
            Kind::Shared => {
                c.shared_accesses += 1;
                c.bank_conflicts += conflicts(p, size);
            }
            Kind::Local => {}
        }
    }

    /// Reports lanes that read as constant what this launch wrote; what it writes later is reported there.
    fn read_as_constant(&mut self, w: &Warp, p: &Places, size: u32, good: u32) {
        let first = w.index * LANES as u32;
        for lane in (0..LANES).filter(|i| good >> i & 1 == 1) {
            let Some(s) = self.memory.segments.get_mut(p.segment) else { return };
            if let Some(kind) = s.read_as_constant(p.offsets[lane], size, first + lane as u32) {
                self.violate(w, 1 << lane, kind, Some((p.segment, p.offsets[lane])));
            }
        }
    }

    pub(crate) fn load(&mut self, w: &mut Warp, x: &Access, mask: u32) {
        let size = x.elem.bytes() * u32::from(x.count);
        for p in self.places(w, &x.addr, mask) {
            let good = self.permitted(w, &p, size, u32::from(x.align), false, x.atomic);
            if x.constant {
                self.read_as_constant(w, &p, size, good);
            }
            self.count_access(&p, size, false);
            let Some(s) = self.memory.segments.get(p.segment) else { continue };
            let first = w.index * LANES as u32;
            for e in 0..u32::from(x.count) {
                let (mut low, mut high) = ([0; LANES], [0; LANES]);
                let mut lanes = good;
                while lanes != 0 {
                    let i = lanes.trailing_zeros();
                    lanes &= lanes - 1;
                    let at = p.offsets[i as usize] + u64::from(e * x.elem.bytes());
                    (low[i as usize], high[i as usize]) = s.get(at, x.elem, first + i);
                }
                let reg = x.reg + e * x.elem.rows();
                w.set(reg, &low, p.mask);
                if x.elem == Elem::B64 {
                    w.set(reg + 1, &high, p.mask);
                }
            }
        }
    }

    pub(crate) fn store(&mut self, w: &mut Warp, x: &Access, mask: u32) {
        let size = x.elem.bytes() * u32::from(x.count);
        for p in self.places(w, &x.addr, mask) {
            let good = self.permitted(w, &p, size, u32::from(x.align), true, x.atomic);
            self.count_access(&p, size, true);
            let Some(s) = self.memory.segments.get_mut(p.segment) else { continue };
            let first = w.index * LANES as u32;
            if self.clock.has_phases && s.kind == Kind::Shared {
                for i in (0..LANES).filter(|i| good >> i & 1 == 1) {
                    let words = p.offsets[i] / 4..(p.offsets[i] + u64::from(size)).div_ceil(4);
                    words.for_each(|word| s.watch.stored(word as usize, first + i as u32));
                }
            }
            for e in 0..u32::from(x.count) {
                let reg = x.reg + e * x.elem.rows();
                let (low, high) = (w.row(reg), if x.elem == Elem::B64 { w.row(reg + 1) } else { w.row(reg) });
                let mut lanes = good;
                while lanes != 0 {
                    let i = lanes.trailing_zeros();
                    lanes &= lanes - 1;
                    let at = p.offsets[i as usize] + u64::from(e * x.elem.bytes());
                    s.set(at, x.elem, first + i, low[i as usize], high[i as usize]);
                }
            }
        }
    }

    /// Lanes take their turn in ascending order, or in an order drawn from the seed.
    pub(crate) fn atomic(&mut self, w: &mut Warp, x: &Atomic, mask: u32) {
        let size = x.elem.bytes();
        for p in self.places(w, &x.addr, mask) {
            let readable = self.permitted(w, &p, size, size, false, true);
            let good = Places { mask: readable, ..p };
            let good = Places { mask: self.permitted(w, &good, size, size, true, true), ..good };
            self.count_access(&good, size, true);
            let row = |r: Option<Reg>| r.map_or([0; LANES], |r| *w.row(r));
            let wide = x.elem == Elem::B64;
            let high = |r: Option<Reg>| if wide { row(r.map(|r| r + 1)) } else { [0; LANES] };
            let (value, value_high) = (row(Some(x.value)), high(Some(x.value)));
            let (compare, compare_high) = (row(x.compare), high(x.compare));
            let (mut old, mut old_high) = ([0; LANES], [0; LANES]);
            let Some(s) = self.memory.segments.get_mut(good.segment) else { continue };
            for i in lane_order(&self.options, self.clock.now, good.mask) {
                let (at, thread) = (good.offsets[i], w.index * LANES as u32 + i as u32);
                let (low, top) = s.get(at, x.elem, thread);
                (old[i], old_high[i]) = (low, top);
                if wide {
                    let join = |l: u32, h: u32| u64::from(h) << 32 | u64::from(l);
                    let (was, v) = (join(low, top), join(value[i], value_high[i]));
                    let new = rmw_wide(x.op, was, v, join(compare[i], compare_high[i]));
                    s.set(at, x.elem, thread, new as u32, (new >> 32) as u32);
                } else {
                    s.set(at, x.elem, thread, rmw(x.op, low, value[i], compare[i]), 0);
                }
            }
            if let Some(d) = x.old {
                w.set(d, &old, p.mask);
                if wide {
                    w.set(d + 1, &old_high, p.mask);
                }
            }
        }
    }
}

fn lane_order(options: &Options, now: u32, mask: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..LANES).filter(|i| mask >> i & 1 == 1).collect();
    if let Some(seed) = options.shuffle {
        order.sort_by_key(|i| crate::approx::mix(seed ^ u64::from(now), *i as u64));
    }
    order
}

fn rmw(op: Rmw, old: u32, v: u32, compare: u32) -> u32 {
    let s = |x: u32| x as i32;
    match op {
        Rmw::AddI => old.wrapping_add(v),
        Rmw::SubI => old.wrapping_sub(v),
        Rmw::AddF => (f32::from_bits(old) + f32::from_bits(v)).to_bits(),
        Rmw::MinS => s(old).min(s(v)) as u32,
        Rmw::MinU => old.min(v),
        Rmw::MaxS => s(old).max(s(v)) as u32,
        Rmw::MaxU => old.max(v),
        Rmw::And => old & v,
        Rmw::Or => old | v,
        Rmw::Xor => old ^ v,
        Rmw::Exchange => v,
        Rmw::CompareExchange => {
            if old == compare {
                v
            } else {
                old
            }
        }
        Rmw::IncU => {
            if old >= v {
                0
            } else {
                old + 1
            }
        }
        Rmw::DecU => {
            if old == 0 || old > v {
                v
            } else {
                old - 1
            }
        }
    }
}

fn rmw_wide(op: Rmw, old: u64, v: u64, compare: u64) -> u64 {
    match op {
        Rmw::AddI => old.wrapping_add(v),
        Rmw::SubI => old.wrapping_sub(v),
        Rmw::MinS => (old as i64).min(v as i64) as u64,
        Rmw::MinU => old.min(v),
        Rmw::MaxS => (old as i64).max(v as i64) as u64,
        Rmw::MaxU => old.max(v),
        Rmw::And => old & v,
        Rmw::Or => old | v,
        Rmw::Xor => old ^ v,
        Rmw::CompareExchange if old != compare => old,
        _ => v,
    }
}

/// Different 32-byte sectors of a warp access.
fn sectors(p: &Places, size: u32) -> u64 {
    // An aligned access of 16 bytes at most lies in one; others in two.
    let mut seen = [0; 2 * LANES];
    let (mut count, mut highest) = (0, 0);
    let mut lanes = p.mask;
    while lanes != 0 {
        let i = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        for sector in p.offsets[i] / 32..=(p.offsets[i] + u64::from(size) - 1) / 32 {
            let is_new = count == 0 || sector > highest || !seen[..count].contains(&sector);
            if is_new && count < seen.len() {
                seen[count] = sector;
                count += 1;
                highest = highest.max(sector);
            }
        }
    }
    count as u64
}

/// Passes beyond the first over the 32 banks of 4 bytes. Accesses of 8 bytes take the lanes in two halves, of 16 bytes
/// in four quarters; lanes that read the same word share a pass.
fn conflicts(p: &Places, size: u32) -> u64 {
    let phases = (size / 4).clamp(1, 4);
    let lanes = LANES as u32 / phases;
    let mut total = 0;
    for phase in 0..phases {
        let mut mask = if phases == 1 { p.mask } else { p.mask >> (phase * lanes) & ((1 << lanes) - 1) };
        let (mut count, mut first) = ([0u8; 32], [u64::MAX; 32]);
        let mut others: Vec<u64> = Vec::new();
        while mask != 0 {
            let i = (mask.trailing_zeros() + phase * lanes) as usize;
            mask &= mask - 1;
            for k in 0..u64::from(size.div_ceil(4)) {
                let word = p.offsets[i] / 4 + k;
                let bank = (word % 32) as usize;
                if first[bank] == u64::MAX {
                    (first[bank], count[bank]) = (word, 1);
                } else if first[bank] != word && !others.contains(&word) {
                    others.push(word);
                    count[bank] += 1;
                }
            }
        }
        total += u64::from(count.iter().copied().max().unwrap_or(0).saturating_sub(1));
    }
    total
}
