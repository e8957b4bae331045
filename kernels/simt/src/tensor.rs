//! Copies of tiles of a tensor to shared memory (`cp.async.bulk.tensor`), as a tensor map describes them.

use crate::launch::{Swizzle, TensorMap};
use crate::machine::{Machine, Warp};
use crate::mbarrier::{Flight, one_lane};
use crate::memory::Kind;
use crate::op::{Addr, Elem, LANES, Reg};
use crate::report::ViolationKind;

/// One copy of a two-dimensional tile by each active lane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TensorCopy {
    pub to: Addr,
    /// A pair of rows with the address of the map.
    pub map: Reg,
    /// The tile's first element: along rows, then which row.
    pub from: [Reg; 2],
    pub barrier: Addr,
}

impl Swizzle {
    /// Where a byte lies that would lie at `address` without it.
    pub(crate) fn place(self, address: u64) -> u64 {
        let bits = match self {
            Swizzle::None => 0,
            Swizzle::Bytes32 => 1,
            Swizzle::Bytes64 => 3,
            Swizzle::Bytes128 => 7,
        };
        address ^ (address >> 7 & bits) << 4
    }
    /// Bytes of a row in shared memory at most.
    pub(crate) fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }
}

impl TensorMap {
    /// What the driver would refuse.
    pub(crate) fn fault(&self) -> Option<String> {
        let row = self.tile[0].checked_mul(self.element_bytes);
        let wrong = match () {
            () if !matches!(self.element_bytes, 2 | 4) => "elements of other than 2 or 4 bytes",
            () if self.extents.contains(&0) => "an extent of 0",
            () if self.tile.iter().any(|n| *n == 0 || *n > 256) => "a tile beyond 256 elements",
            () if self.row_bytes % 16 != 0 || self.row_bytes >= 1 << 40 => {
                "rows that are no multiple of 16 bytes apart"
            }
            () if self.start % 16 != 0 => "a start that is no multiple of 16 bytes",
            () if row.is_none_or(|r| r % 16 != 0) => "rows of a tile that are no multiple of 16 bytes",
            () if self.swizzle.span().is_some_and(|s| row.is_some_and(|r| r > s)) => "rows wider than the swizzle",
            () => return None,
        };
        Some(wrong.to_owned())
    }
}

impl Machine<'_> {
    pub(crate) fn tensor_copy(&mut self, w: &Warp, x: &TensorCopy, mask: u32) {
        for lane in (0..LANES).filter(|i| mask >> i & 1 == 1) {
            self.copy_tile(w, x, lane);
        }
    }

    fn copy_tile(&mut self, w: &Warp, x: &TensorCopy, lane: usize) {
        let (low, high) = (w.row(x.map)[lane], w.row(x.map + 1)[lane]);
        let address = u64::from(high) << 32 | u64::from(low);
        let found = self.memory.find(address).and_then(|s| self.tensors.get(&s).cloned());
        let Some((source, map)) = found else {
            self.violate(w, 1 << lane, ViolationKind::WildAddress, None);
            return;
        };
        let Some(barrier) = self.barrier_of_copy(w, &x.barrier, lane) else { return };
        let first = [w.row(x.from[0])[lane] as i32, w.row(x.from[1])[lane] as i32];
        let thread = w.index * LANES as u32 + lane as u32;
        let Some((segment, start)) = self.places(w, &x.to, 1 << lane).iter().find_map(|p| one_lane(p, lane)) else {
            return;
        };
        let fits = self.memory.segments.get(segment).map(|s| s.kind) == Some(Kind::Shared);
        if !fits || start % 128 != 0 {
            let kind = if fits { ViolationKind::Misaligned { align: 128 } } else { ViolationKind::WildAddress };
            self.violate(w, 1 << lane, kind, Some((segment, start)));
            return;
        }
        let row_bytes = map.tile[0] * map.element_bytes;
        let mut words = Vec::with_capacity((map.tile[1] * row_bytes / 4) as usize);
        let (mut faults, mut read) = (Vec::new(), None);
        for row in 0..map.tile[1] {
            let mut sectors = 0;
            for at in (0..row_bytes).step_by(4) {
                let word = self.tensor_word(&map, source, (first, row, at), thread, &mut faults);
                sectors += u64::from(word.is_some() && at % 32 == 0);
                let to = map.swizzle.place(start + u64::from(row * row_bytes + at));
                words.push((to, word.map_or(0, |(word, _)| word)));
                read = read.or(word.map(|(_, from)| from));
            }
            self.counters.global_read_sectors += sectors;
        }
        if let Some(from) = read.filter(|_| self.too_early(w, source, 1 << lane, false) != 0) {
            faults.push((ViolationKind::EarlyAccess, source, from));
        }
        for (to, _) in &words {
            let Some(s) = self.memory.segments.get_mut(segment) else { continue };
            match s.check_write(*to, 4, &self.clock, thread, false) {
                Some(kind @ ViolationKind::WriteOutOfBounds) => {
                    faults.push((kind, segment, *to));
                    break;
                }
                Some(kind) => faults.push((kind, segment, *to)),
                None => {}
            }
            s.await_copy(*to, thread);
        }
        for (kind, segment, at) in faults {
            self.violate(w, 1 << lane, kind, Some((segment, at)));
        }
        self.barriers.launch(Flight { segment, words, barrier, pc: w.pc, thread });
    }

    /// The word at byte `at` of a row of the tile, and where it was read; nothing beyond the tensor's edges.
    fn tensor_word(
        &mut self,
        map: &TensorMap,
        source: usize,
        (first, row, at): ([i32; 2], u32, u32),
        thread: u32,
        faults: &mut Vec<(ViolationKind, usize, u64)>,
    ) -> Option<(u32, u64)> {
        let row = u64::try_from(i64::from(first[1]) + i64::from(row)).ok().filter(|r| *r < map.extents[1])?;
        let (mut word, mut read) = (0, None);
        for part in (0..4).step_by(map.element_bytes as usize) {
            let column = i64::from(first[0]) + i64::from((at + part) / map.element_bytes);
            let Some(column) = u64::try_from(column).ok().filter(|c| *c < map.extents[0]) else { continue };
            let from = map.start + row * map.row_bytes + column * u64::from(map.element_bytes);
            let s = self.memory.segments.get_mut(source)?;
            if let Some(kind) = s.check_read(from, map.element_bytes, &self.clock, thread, false) {
                faults.push((kind.clone(), source, from));
                if kind == ViolationKind::ReadOutOfBounds {
                    continue;
                }
            }
            let elem = if map.element_bytes == 2 { Elem::U16 } else { Elem::B32 };
            word |= s.get(from, elem, 0).0 << (8 * part);
            read = read.or(Some(from));
            self.counters.global_read_bytes += u64::from(map.element_bytes);
        }
        read.map(|from| (word, from))
    }
}
