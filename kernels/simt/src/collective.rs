//! Exchanges and reductions between the lanes of a warp or of a subgroup in it.

use crate::machine::{Machine, Warp};
use crate::op::{LANES, Reduce, Reg, Row, Scan, Shuffle};
use crate::report::ViolationKind;

fn float(x: u32) -> f32 {
    f32::from_bits(x)
}

fn combine(op: Reduce, x: u32, y: u32) -> u32 {
    let s = |x: u32| x as i32;
    match op {
        Reduce::AddI => x.wrapping_add(y),
        Reduce::MulI => x.wrapping_mul(y),
        Reduce::MinS => s(x).min(s(y)) as u32,
        Reduce::MinU => x.min(y),
        Reduce::MaxS => s(x).max(s(y)) as u32,
        Reduce::MaxU => x.max(y),
        Reduce::And => x & y,
        Reduce::Or => x | y,
        Reduce::Xor => x ^ y,
        Reduce::AddF => (float(x) + float(y)).to_bits(),
        Reduce::MulF => (float(x) * float(y)).to_bits(),
        Reduce::MinF => float(x).min(float(y)).to_bits(),
        Reduce::MaxF => float(x).max(float(y)).to_bits(),
        Reduce::All => u32::from(x != 0 && y != 0),
        Reduce::Any => u32::from(x != 0 || y != 0),
        Reduce::Ballot | Reduce::Uniform => x,
    }
}

fn identity(op: Reduce) -> u32 {
    match op {
        Reduce::MulI => 1,
        Reduce::MulF => 1f32.to_bits(),
        _ => 0,
    }
}

/// The lanes that must take part in a collective operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    /// Those that each lane names in a register.
    Named(Reg),
    /// All of each group.
    All,
    /// Those that happen to be there.
    Present,
}

impl Members {
    /// The register that names them.
    pub(crate) fn named(self) -> Option<Reg> {
        match self {
            Members::Named(r) => Some(r),
            Members::All | Members::Present => None,
        }
    }
}

/// The lanes of the group of `width` that a lane belongs to.
fn group_of(lane: usize, width: u32) -> u32 {
    let first = lane as u32 / width * width;
    (u32::MAX >> (LANES as u32 - width)) << first
}

impl Machine<'_> {
    /// Lanes that name one another meet, with memory order among them; where none are named, those of a subgroup.
    pub(crate) fn warp_barrier(&mut self, w: &Warp, members: Option<Reg>, mask: u32) {
        let width = self.options.subgroup_size;
        let named: Row = match members {
            Some(r) => w.row(r).map(|named| named & w.lanes),
            None => std::array::from_fn(|lane| group_of(lane, width) & w.lanes),
        };
        let (mut left, mut missing) = (mask, 0);
        while left != 0 {
            let wanted = named[left.trailing_zeros() as usize];
            let here = (0..LANES).filter(|i| left >> i & 1 == 1 && named[*i] == wanted).fold(0, |m, i| m | 1 << i);
            left &= !here;
            missing |= wanted ^ here;
            let whole = members.is_none() || wanted == w.lanes;
            let met = |i: &u32| (wanted & here) >> i & 1 == 1;
            let threads: Vec<u32> = (0..LANES as u32).filter(met).map(|i| w.index * LANES as u32 + i).collect();
            self.clock.meet(&threads, whole && wanted == here);
        }
        if missing != 0 {
            self.violate(w, missing, ViolationKind::BarrierDivergence, None);
        }
    }

    /// Checks that all lanes that must take part do so.
    fn check_members(&mut self, w: &Warp, members: Members, width: u8, mask: u32) {
        let wanted = |lane: usize| match members {
            Members::Named(r) => w.row(r)[lane],
            Members::All => group_of(lane, width.into()),
            Members::Present => 1 << lane,
        };
        let alone = |lane: usize| wanted(lane) & w.lanes & !mask != 0 || wanted(lane) >> lane & 1 == 0;
        if let Some(lane) = (0..LANES).find(|i| mask >> i & 1 == 1 && alone(*i)) {
            self.violate(w, 1 << lane, ViolationKind::CollectiveDivergence, None);
        }
    }

    /// Checks that the lanes of each group agree on a distance.
    fn check_distance(&mut self, w: &Warp, by: &Row, width: u8, mask: u32) {
        let first = |lane: usize| (group_of(lane, width.into()) & mask).trailing_zeros() as usize;
        let odd = |lane: &usize| mask >> lane & 1 == 1 && by[*lane] != by[first(*lane)];
        if let Some(lane) = (0..LANES).find(odd) {
            self.violate(w, 1 << lane, ViolationKind::CollectiveDivergence, None);
        }
    }

    /// `d = a` of another lane of the group of `width` lanes. `clamp` is PTX's bound operand: its low five bits are the
    /// last lane, the bits from the eighth on the segment mask. `valid` receives whether the other lane was in range; a
    /// lane out of range keeps its own value. Reading from a lane that does not take part is reported, and so are, in WGSL,
    /// distances that differ within a group.
    pub(crate) fn shuffle(
        &mut self,
        w: &mut Warp,
        mode: Shuffle,
        (d, a, b): (Reg, Reg, Reg),
        width: u8,
        (clamp, valid, members): (Option<Reg>, Option<Reg>, Members),
        mask: u32,
    ) {
        self.check_members(w, members, width, mask);
        let (value, by) = (*w.row(a), *w.row(b));
        let bounds = clamp.map(|r| *w.row(r));
        if bounds.is_none() && matches!(mode, Shuffle::Up | Shuffle::Down | Shuffle::Xor) {
            self.check_distance(w, &by, width, mask);
        }
        let (mut out, mut ok) = (value, [1; LANES]);
        let mut absent = 0;
        for i in (0..LANES).filter(|i| mask >> i & 1 == 1) {
            let lane = i as i64;
            let (low, high, segment) = match bounds {
                Some(c) => {
                    let (bound, segment) = (i64::from(c[i] & 31), i64::from(c[i] >> 8 & 31));
                    let low = lane & segment;
                    (low, low | bound & !segment & 31, segment)
                }
                None => {
                    let width = i64::from(width);
                    let low = lane / width * width;
                    (low, low + width - 1, 0)
                }
            };
            let n = if bounds.is_some() { i64::from(by[i] & 31) } else { i64::from(by[i]) };
            let (from, inside) = match mode {
                Shuffle::Index => {
                    let j = if bounds.is_some() { low | n & !segment & 31 } else { low + n };
                    (j, j <= high)
                }
                // In PTX the clamp bounds `up` from below.
                Shuffle::Up => (lane - n, lane - n >= if bounds.is_some() { high } else { low }),
                Shuffle::Down => (lane + n, lane + n <= high),
                Shuffle::Xor => (lane ^ n, lane ^ n <= high && (bounds.is_some() || lane ^ n >= low)),
                Shuffle::First => {
                    let group = (mask as i64) >> low << low & ((1i64 << (high + 1)) - 1);
                    (i64::from(group.trailing_zeros()), true)
                }
            };
            let from = usize::try_from(from).ok().filter(|f| *f < LANES && inside);
            ok[i] = u32::from(from.is_some());
            let named = members.named().map_or(u32::MAX, |r| w.row(r)[i]);
            match from {
                Some(f) if (mask & named) >> f & 1 == 1 => out[i] = value[f],
                Some(_) => absent |= 1 << i,
                None if bounds.is_none() => absent |= 1 << i,
                None => {}
            }
        }
        if absent != 0 {
            self.violate(w, absent, ViolationKind::CollectiveDivergence, None);
        }
        w.set(d, &out, mask);
        if let Some(v) = valid {
            w.set(v, &ok, mask);
        }
    }

    /// A reduction over the active lanes of each group of `width`, in ascending order of lanes.
    pub(crate) fn reduce(
        &mut self,
        w: &mut Warp,
        op: Reduce,
        scan: Scan,
        (d, a): (Reg, Reg),
        width: u8,
        members: Members,
        mask: u32,
    ) {
        self.check_members(w, members, width, mask);
        let value = *w.row(a);
        let named = members.named().map(|r| *w.row(r));
        let mut out: Row = [0; LANES];
        for i in (0..LANES).filter(|i| mask >> i & 1 == 1) {
            let width = usize::from(width.max(1));
            let low = i / width * width;
            let end = match scan {
                Scan::Whole => low + width,
                Scan::UpTo => i + 1,
                Scan::Below => i,
            };
            let lanes = (low..end.min(LANES)).filter(|j| mask >> j & 1 == 1);
            let mut lanes = lanes.filter(|j| named.is_none_or(|n| n[i] >> j & 1 == 1));
            out[i] = match op {
                Reduce::Ballot => lanes.fold(0, |m, j| m | u32::from(value[j] != 0) << (j - low)),
                Reduce::Uniform => u32::from(lanes.all(|j| (value[j] != 0) == (value[i] != 0))),
                Reduce::All => u32::from(lanes.all(|j| value[j] != 0)),
                Reduce::Any => u32::from(lanes.any(|j| value[j] != 0)),
                _ => lanes.map(|j| value[j]).reduce(|x, y| combine(op, x, y)).unwrap_or(identity(op)),
            };
        }
        if self.options.finite && matches!(op, Reduce::AddF | Reduce::MulF) {
            let bad = (0..LANES).filter(|i| mask >> i & 1 == 1 && !float(out[*i]).is_finite());
            let born = value.iter().enumerate().all(|(i, v)| mask >> i & 1 == 0 || float(*v).is_finite());
            let bad = bad.fold(0, |m, i| m | 1 << i);
            if bad != 0 && born {
                self.violate(w, bad, ViolationKind::NotFinite, None);
            }
        }
        w.set(d, &out, mask);
    }
}
