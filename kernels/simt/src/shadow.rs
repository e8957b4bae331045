//! What is known about every word of memory: whether it was written, and who touched it last and when.
//!
//! Time is counted in segments of a launch: each workgroup starts a new one, and so does each barrier. Since workgroups
//! run one after the other, one number tells both whether an earlier access belongs to another workgroup, and whether a
//! barrier lies between.
//!
//! A word has room for its last write and its last reads, which is exact where barriers order whole warps and workgroups.
//! Where threads are ordered one by one, a [`Watch`](crate::watch::Watch) knows them all.

use crate::report::ViolationKind;

/// Where the launch is in time.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Present segment; 0 is before the launch.
    pub(crate) now: u32,
    /// First segment of the present workgroup.
    pub(crate) group: u32,
    /// First segment since the last barrier that ordered workgroup memory.
    pub(crate) shared: u32,
    /// First segment since the last barrier that ordered global memory.
    pub(crate) global: u32,
    /// The same for the last barrier of each warp.
    pub(crate) warps: Vec<u32>,
    /// Lanes of a warp, as a power of two; in WGSL those of a subgroup, which stands for a warp here.
    width: u32,
    /// Whether the program has barriers with phases, which order shared memory thread by thread.
    pub(crate) has_phases: bool,
    /// Whether it has barriers of some lanes of a warp, which order all memory so.
    pub(crate) has_parts: bool,
    /// For threads that saw a phase of an `mbarrier` end, or met a part of their warp: what others did before that
    /// segment lies behind them.
    views: Vec<Vec<u32>>,
}

/// The number under which asynchronous copies write.
pub(crate) const ASYNC: u32 = 1024;

/// Takes what others have seen.
pub(crate) fn join(into: &mut Vec<u32>, other: &[u32]) {
    if into.len() < other.len() {
        into.resize(other.len(), 0);
    }
    into.iter_mut().zip(other).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}

impl Clock {
    /// A clock for warps of `lanes`, a power of two.
    pub(crate) fn new(lanes: u32) -> Clock {
        Clock { width: lanes.trailing_zeros(), ..Clock::default() }
    }
    /// Enters the next workgroup.
    pub(crate) fn enter_group(&mut self, threads: u32) {
        self.now += 1;
        (self.group, self.shared, self.global) = (self.now, self.now, self.now);
        self.warps.clear();
        self.warps.resize(threads.div_ceil(1 << self.width) as usize, self.now);
        self.views.clear();
    }
    /// What a thread has seen by `mbarrier`s.
    pub(crate) fn view(&self, thread: u32) -> &[u32] {
        self.views.get(thread as usize).map_or(&[], Vec::as_slice)
    }
    /// A thread sees what others did.
    pub(crate) fn see(&mut self, thread: u32, seen: &[u32]) {
        let at = thread as usize;
        if self.views.len() <= at {
            self.views.resize(at + 1, Vec::new());
        }
        if let Some(view) = self.views.get_mut(at) {
            join(view, seen);
        }
    }
    /// A barrier of the workgroup.
    pub(crate) fn barrier(&mut self, shared: bool, global: bool) {
        self.now += 1;
        if shared {
            self.shared = self.now;
        }
        if global {
            self.global = self.now;
        }
    }
    /// Threads meet: all of one warp, or some of them.
    pub(crate) fn meet(&mut self, threads: &[u32], whole: bool) {
        self.now += 1;
        if !whole || threads.iter().any(|t| !self.view(*t).is_empty()) {
            let mut all = Vec::new();
            for t in threads {
                join(&mut all, self.view(*t));
                all.resize(all.len().max(*t as usize + 1), 0);
                all[*t as usize] = self.now;
            }
            threads.iter().for_each(|t| self.see(*t, &all));
        }
        if let Some(w) = threads.first().and_then(|t| self.warps.get_mut((t >> self.width) as usize))
            && whole
        {
            *w = self.now;
        }
    }
    /// What orders an access of `thread`.
    #[inline]
    pub(crate) fn order(&self, thread: u32, shared: bool) -> Order<'_> {
        let width = self.width;
        let own = self.warps.get((thread >> width) as usize).copied().unwrap_or(0);
        let start = if shared { self.shared } else { self.global };
        let view = self.view(thread);
        Order { now: self.now, group: self.group, start, width, warp_start: own, thread, shared, view }
    }
}

/// One thread's view of time, for one kind of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'c> {
    pub(crate) now: u32,
    group: u32,
    start: u32,
    width: u32,
    warp_start: u32,
    pub(crate) thread: u32,
    shared: bool,
    view: &'c [u32],
}

impl Order<'_> {
    /// Whether a thread is of the same warp.
    #[inline]
    fn is_near(&self, thread: u32) -> bool {
        (thread ^ self.thread) >> self.width == 0
    }
    /// Whether an access in segment `at` by `thread` of the same workgroup comes before this one for certain.
    #[inline]
    pub(crate) fn behind(&self, at: u32, thread: u32) -> bool {
        at < self.start
            || thread == self.thread
            || (self.is_near(thread) && at < self.warp_start)
            || self.view.get(thread as usize).is_some_and(|seen| at < *seen)
    }
}

impl Order<'_> {
    /// Whether accesses up to segment `at`, the last by `thread`, come before this one by the warp's barrier; not so
    /// where they are `apart`, of several warps.
    #[inline]
    fn behind_warp(&self, at: u32, thread: u32, apart: bool) -> bool {
        !apart && self.is_near(thread) && at < self.warp_start
    }
}

const THREAD: u32 = 32;
const ATOMIC: u64 = 1 << 44;
const INIT: u64 = 1 << 45;
const SPLIT: u64 = 1 << 46;
const NO_READ: u64 = 1 << 47;
const NO_WRITE: u64 = 1 << 48;
/// Of writes: atomic ones of several threads in this interval, of another workgroup, of several warps.
const SEVERAL: u64 = 1 << 49;
const ABROAD: u64 = 1 << 50;
const APART: u64 = 1 << 51;
/// Of writes and of reads: of this workgroup, some before the last one were not atomic.
const PLAIN: u64 = 1 << 52;
const MANY: u64 = 1 << 45;
const FOREIGN: u64 = 1 << 46;
const WARPS: u64 = 1 << 47;
const FOREIGN_PLAIN: u64 = 1 << 48;
/// Of reads, kept among the writes: some took the word for constant.
const CONSTANT: u64 = 1 << 53;
const STATIC: u64 = SPLIT | NO_READ | NO_WRITE | CONSTANT;

/// The last write and the last reads of one word, or of one byte of a word that is accessed in parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    write: u64,
    read: u64,
}

fn segment(x: u64) -> u32 {
    x as u32
}

fn thread(x: u64) -> u32 {
    (x >> THREAD) as u32 & 0xfff
}

impl Cell {
    /// A word as it stands before a launch.
    pub(crate) fn new(initialised: bool, readable: bool, writable: bool) -> Cell {
        let mut write = 0;
        if initialised {
            write |= INIT;
        }
        if !readable {
            write |= NO_READ;
        }
        if !writable {
            write |= NO_WRITE;
        }
        Cell { write, read: 0 }
    }
    /// Forgets everything but what never changes; the word counts as written before the launch.
    pub(crate) fn zero(&mut self) {
        *self = Cell { write: self.write & (NO_READ | NO_WRITE) | INIT, read: 0 };
    }
    pub(crate) fn is_split(self) -> bool {
        self.write & SPLIT != 0
    }
    pub(crate) fn split(&mut self) {
        self.write |= SPLIT;
    }
    /// A read by the thread of `o`.
    #[inline]
    pub(crate) fn read(&mut self, o: &Order<'_>, atomic: bool) -> Option<ViolationKind> {
        let w = self.write;
        if w & NO_READ != 0 {
            return Some(ViolationKind::ReadOutOfBounds);
        }
        let at = segment(w);
        let stale = o.shared && at < o.group;
        let fault = if w & INIT == 0 || (stale && at != 0) {
            Some(ViolationKind::UninitialisedMemory)
        } else {
            self.behind_writes(o, atomic, false)
        };
        let r = self.read;
        let before = segment(r);
        let mut next = u64::from(o.now) | u64::from(o.thread) << THREAD | (r & (FOREIGN | FOREIGN_PLAIN));
        if atomic {
            next |= ATOMIC;
        }
        if before >= o.group && before != 0 {
            next |= r & PLAIN;
            next |= if r & ATOMIC == 0 { PLAIN } else { 0 };
        }
        // Reads that this warp's last barrier put behind it are covered by this one.
        let covered = o.behind_warp(before, thread(r), r & WARPS != 0);
        if before >= o.start && !covered {
            if thread(r) != o.thread {
                next |= MANY;
            }
            if !o.is_near(thread(r)) {
                next |= WARPS;
            }
            next |= r & (MANY | WARPS);
            if r & ATOMIC == 0 {
                next &= !ATOMIC;
            }
        } else if before != 0 && before < o.group {
            next |= if r & ATOMIC == 0 || r & PLAIN != 0 { FOREIGN | FOREIGN_PLAIN } else { FOREIGN };
        }
        self.read = next;
        fault
    }
    /// A read that is not ordered with any write of the launch: there may be none.
    pub(crate) fn read_as_constant(&mut self) -> Option<ViolationKind> {
        self.write |= CONSTANT;
        (segment(self.write) != 0).then_some(ViolationKind::NotConstant)
    }
    /// The race of an access with earlier writes.
    #[inline]
    fn behind_writes(&self, o: &Order<'_>, atomic: bool, write_write: bool) -> Option<ViolationKind> {
        let w = self.write;
        let at = segment(w);
        let far = at < o.group;
        if at == 0 || far && o.shared || atomic && w & ATOMIC != 0 && !(far && w & PLAIN != 0) {
            return None;
        }
        if far || w & ABROAD != 0 && !o.shared {
            return Some(ViolationKind::Race { other: None, write_write });
        }
        let several = w & SEVERAL != 0 && !o.behind_warp(at, thread(w), w & APART != 0);
        let raced = at >= o.start && several || !o.behind(at, thread(w));
        raced.then(|| ViolationKind::Race { other: Some(thread(w)), write_write })
    }
    /// A write by the thread of `o`.
    #[inline]
    pub(crate) fn write(&mut self, o: &Order<'_>, atomic: bool) -> Option<ViolationKind> {
        let (w, r) = (self.write, self.read);
        if w & NO_WRITE != 0 {
            return Some(ViolationKind::WriteOutOfBounds);
        }
        let at = segment(w);
        let mut fault = self.behind_writes(o, atomic, true);
        if fault.is_none() && w & CONSTANT != 0 {
            fault = Some(ViolationKind::NotConstant);
        }
        let before = segment(r);
        if fault.is_none() && before != 0 {
            let (far, plain) = (before < o.group, r & ATOMIC == 0);
            let foreign_plain = r & FOREIGN_PLAIN != 0 || far && (plain || r & PLAIN != 0);
            if !o.shared && (foreign_plain || !atomic && (far || r & FOREIGN != 0)) {
                fault = Some(ViolationKind::Race { other: None, write_write: false });
            } else if before >= o.start && (plain || !atomic) {
                let alone = r & MANY == 0 && o.behind(before, thread(r));
                if !o.behind_warp(before, thread(r), r & WARPS != 0) && !alone {
                    fault = Some(ViolationKind::Race { other: Some(thread(r)), write_write: false });
                }
            }
        }
        // A write that is not atomic stays visible behind an atomic one of the same interval.
        let atomic = atomic && (at < o.start || w & ATOMIC != 0);
        let mut flags = if atomic { ATOMIC | INIT } else { INIT };
        if atomic && w & ATOMIC != 0 && at >= o.start && !o.behind_warp(at, thread(w), w & APART != 0) {
            flags |= w & (SEVERAL | APART);
            flags |= if thread(w) == o.thread { 0 } else { SEVERAL };
            flags |= if o.is_near(thread(w)) { 0 } else { APART };
        }
        if at != 0 && at < o.group {
            flags |= ABROAD;
        } else {
            flags |= w & (ABROAD | PLAIN);
            flags |= if at != 0 && w & ATOMIC == 0 { PLAIN } else { 0 };
        }
        self.write = u64::from(o.now) | u64::from(o.thread) << THREAD | flags | (w & STATIC);
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approx::mix;

    /// One access as a naive model keeps it.
    struct Access {
        group: u32,
        thread: u32,
        write: bool,
        atomic: bool,
        /// Barriers of the workgroup, and of the thread's warp, passed before.
        barriers: u32,
        warp_barriers: u32,
    }

    /// Whether an earlier access races with a later one.
    fn races(a: &Access, b: &Access, shared: bool) -> bool {
        if !(a.write || b.write) || a.atomic && b.atomic {
            return false;
        }
        if a.group != b.group {
            return !shared;
        }
        let same_warp = a.thread / 32 == b.thread / 32;
        let ordered = a.barriers < b.barriers || same_warp && a.warp_barriers < b.warp_barriers;
        a.thread != b.thread && !ordered
    }

    #[test]
    fn an_atomic_write_does_not_hide_a_plain_one() {
        let mut clock = Clock::new(32);
        clock.enter_group(32);
        let mut cell = Cell::new(true, true, true);
        assert_eq!(cell.write(&clock.order(3, true), false), None);
        assert_eq!(cell.write(&clock.order(3, true), true), None);
        let race = Some(ViolationKind::Race { other: Some(3), write_write: false });
        assert_eq!(cell.read(&clock.order(4, true), true), race);
    }

    /// Up to the first race on a word, the shadow finds exactly what all pairs of accesses tell.
    #[test]
    fn the_first_race_is_found_and_nothing_before_it() {
        let (mut racing, mut sound) = (0, 0);
        for seed in 0..60_000u64 {
            let shared = seed % 2 == 0;
            let mut clock = Clock::new(32);
            clock.enter_group(64);
            let mut cell = Cell::new(true, true, true);
            let (mut group, mut barriers, mut warp_barriers) = (0, 0, [0; 2]);
            let mut all: Vec<Access> = Vec::new();
            let mut raced = false;
            for step in 0..12 {
                let r = mix(seed, step);
                match r % 16 {
                    0 | 1 => {
                        clock.barrier(true, true);
                        barriers += 1;
                        continue;
                    }
                    2..=5 => {
                        let warp = (r >> 8) as usize % 2;
                        clock.meet(&Vec::from_iter(32 * warp as u32..32 * warp as u32 + 32), true);
                        warp_barriers[warp] += 1;
                        continue;
                    }
                    6 if r >> 16 & 3 == 0 => {
                        clock.enter_group(64);
                        (group, barriers, warp_barriers) = (group + 1, 0, [0; 2]);
                        continue;
                    }
                    _ => {}
                }
                let thread = [0, 1, 33][(r >> 8) as usize % 3];
                let write = r >> 16 & 3 == 0;
                let atomic = mix(seed, 1000 + u64::from(group * 100 + barriers)) % 4 == 0;
                let warp = thread as usize / 32;
                let new = Access { group, thread, write, atomic, barriers, warp_barriers: warp_barriers[warp] };
                let want = all.iter().any(|a| races(a, &new, shared));
                let order = clock.order(thread, shared);
                let got = if write { cell.write(&order, atomic) } else { cell.read(&order, atomic) };
                // Workgroup memory does not outlive its workgroup.
                let stale = got == Some(ViolationKind::UninitialisedMemory);
                let wrote = all.iter().any(|a| a.write && a.group == group);
                assert_eq!(stale, shared && !write && !wrote && all.iter().any(|a| a.write), "{seed} {step}");
                assert_eq!(got.is_some() && !stale, want, "{seed} {step} {got:?}");
                if want {
                    raced = true;
                    break;
                }
                all.push(new);
            }
            if raced { racing += 1 } else { sound += 1 }
        }
        assert!(racing > 5_000 && sound > 5_000, "{racing} {sound}");
    }
}
