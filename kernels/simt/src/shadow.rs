//! What is known about every word of memory: whether it was written, and who touched it last and when.
//!
//! Time is counted in segments of a launch: each workgroup starts a new one, and so does each barrier. Since workgroups
//! run one after the other, one number tells both whether an earlier access belongs to another workgroup, and whether a
//! barrier lies between.

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
}

impl Clock {
    /// Enters the next workgroup.
    pub(crate) fn enter_group(&mut self, warps: usize) {
        self.now += 1;
        (self.group, self.shared, self.global) = (self.now, self.now, self.now);
        self.warps.clear();
        self.warps.resize(warps, self.now);
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
    /// A barrier of one warp.
    pub(crate) fn warp_barrier(&mut self, warp: usize) {
        self.now += 1;
        if let Some(w) = self.warps.get_mut(warp) {
            *w = self.now;
        }
    }
    /// What orders an access of `thread`.
    #[inline]
    pub(crate) fn order(&self, thread: u32, shared: bool) -> Order {
        let warp = thread / 32;
        let own = self.warps.get(warp as usize).copied().unwrap_or(0);
        let start = if shared { self.shared } else { self.global };
        Order { now: self.now, group: self.group, start, warp, warp_start: own, thread, shared }
    }
}

/// One thread's view of time, for one kind of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    now: u32,
    group: u32,
    start: u32,
    warp: u32,
    warp_start: u32,
    pub(crate) thread: u32,
    shared: bool,
}

impl Order {
    /// Whether an access in segment `at` by `thread` of the same workgroup comes before this one for certain.
    #[inline]
    fn behind(&self, at: u32, thread: u32) -> bool {
        at < self.start || thread == self.thread || (thread / 32 == self.warp && at < self.warp_start)
    }
}

const THREAD: u32 = 32;
const ATOMIC: u64 = 1 << 44;
const INIT: u64 = 1 << 45;
const SPLIT: u64 = 1 << 46;
const NO_READ: u64 = 1 << 47;
const NO_WRITE: u64 = 1 << 48;
const MANY: u64 = 1 << 45;
const FOREIGN: u64 = 1 << 46;
const WARPS: u64 = 1 << 47;
const STATIC: u64 = SPLIT | NO_READ | NO_WRITE;

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
    pub(crate) fn read(&mut self, o: &Order, atomic: bool) -> Option<ViolationKind> {
        let mut fault = None;
        let w = self.write;
        if w & NO_READ != 0 {
            return Some(ViolationKind::ReadOutOfBounds);
        }
        let at = segment(w);
        let stale = o.shared && at < o.group;
        if w & INIT == 0 || (stale && at != 0) {
            fault = Some(ViolationKind::UninitialisedMemory);
        } else if at != 0 && !(atomic && w & ATOMIC != 0) {
            if at < o.group {
                fault = Some(ViolationKind::Race { other: None, write_write: false });
            } else if !o.behind(at, thread(w)) {
                fault = Some(ViolationKind::Race { other: Some(thread(w)), write_write: false });
            }
        }
        let r = self.read;
        let before = segment(r);
        let mut next = u64::from(o.now) | u64::from(o.thread) << THREAD | (r & FOREIGN);
        if atomic {
            next |= ATOMIC;
        }
        if before >= o.start {
            if thread(r) != o.thread {
                next |= MANY;
            }
            if thread(r) / 32 != o.warp {
                next |= WARPS;
            }
            next |= r & (MANY | WARPS);
            if r & ATOMIC == 0 {
                next &= !ATOMIC;
            }
        } else if before != 0 && before < o.group {
            next |= FOREIGN;
        }
        self.read = next;
        fault
    }
    /// A write by the thread of `o`.
    #[inline]
    pub(crate) fn write(&mut self, o: &Order, atomic: bool) -> Option<ViolationKind> {
        let (w, r) = (self.write, self.read);
        if w & NO_WRITE != 0 {
            return Some(ViolationKind::WriteOutOfBounds);
        }
        let mut fault = None;
        let at = segment(w);
        if at != 0 && !(atomic && w & ATOMIC != 0) {
            if at < o.group {
                if !o.shared {
                    fault = Some(ViolationKind::Race { other: None, write_write: true });
                }
            } else if !o.behind(at, thread(w)) {
                fault = Some(ViolationKind::Race { other: Some(thread(w)), write_write: true });
            }
        }
        let before = segment(r);
        if fault.is_none() && before != 0 && !(atomic && r & ATOMIC != 0) {
            if !o.shared && (before < o.group || r & FOREIGN != 0) {
                fault = Some(ViolationKind::Race { other: None, write_write: false });
            } else if before >= o.start {
                let by_warp = r & WARPS == 0 && thread(r) / 32 == o.warp && before < o.warp_start;
                if !by_warp && (r & MANY != 0 || thread(r) != o.thread) {
                    fault = Some(ViolationKind::Race { other: Some(thread(r)), write_write: false });
                }
            }
        }
        self.write =
            u64::from(o.now) | u64::from(o.thread) << THREAD | INIT | (w & STATIC) | if atomic { ATOMIC } else { 0 };
        fault
    }
}
