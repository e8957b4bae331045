//! Deterministic costs of a launch.

use std::fmt;

/// Kinds of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Moves, selections, machine-supplied values.
    Move,
    /// Integer and bit arithmetic, comparisons.
    Integer,
    /// Float arithmetic.
    Float,
    /// Approximate functions: exponentials, roots, reciprocals.
    Function,
    /// Conversions between types.
    Convert,
    /// Loads.
    Load,
    /// Stores.
    Store,
    /// Read-modify-write.
    Atomic,
    /// Branches and exits.
    Branch,
    /// Barriers and fences.
    Barrier,
    /// Exchanges and reductions between lanes.
    Collective,
    /// Matrix instructions and the loads that feed them.
    Matrix,
    /// Asynchronous copies.
    Async,
}

/// Names of the classes, in order.
pub(crate) const CLASSES: [&str; 13] = [
    "move",
    "integer",
    "float",
    "function",
    "convert",
    "load",
    "store",
    "atomic",
    "branch",
    "barrier",
    "collective",
    "matrix",
    "async",
];

/// What a launch cost. All figures are exact and the same in every run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions by class.
    pub warp: [u64; 13],
    /// Thread instructions by class: each active lane counts.
    pub thread: [u64; 13],
    /// Bytes read from global memory by threads.
    pub global_read_bytes: u64,
    /// Bytes written to global memory by threads.
    pub global_write_bytes: u64,
    /// 32-byte sectors touched by warp reads of global memory, each once an access.
    pub global_read_sectors: u64,
    /// 32-byte sectors touched by warp writes of global memory.
    pub global_write_sectors: u64,
    /// Warp accesses to workgroup memory.
    pub shared_accesses: u64,
    /// Additional passes over workgroup memory because lanes meet in one of its 32 banks.
    pub bank_conflicts: u64,
    /// Barriers passed, summed over workgroups.
    pub barriers: u64,
    /// Warp branches at which lanes parted.
    pub divergences: u64,
    /// Most registers alive at one point of the program, in 32-bit words a thread.
    pub live_registers: u32,
}

impl Counters {
    /// Warp instructions of one class.
    pub fn warp_of(&self, class: Class) -> u64 {
        self.warp.get(class as usize).copied().unwrap_or(0)
    }
    /// Warp instructions of all classes.
    pub fn warp_total(&self) -> u64 {
        self.warp.iter().sum()
    }
    /// Thread instructions of all classes.
    pub fn thread_total(&self) -> u64 {
        self.thread.iter().sum()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, (warp, thread)) in CLASSES.iter().zip(self.warp.iter().zip(&self.thread)) {
            if *warp > 0 {
                writeln!(f, "{name:<12} {warp:>10} warp {thread:>12} thread")?;
            }
        }
        let pairs = [
            ("global read", self.global_read_bytes, self.global_read_sectors),
            ("global write", self.global_write_bytes, self.global_write_sectors),
        ];
        for (name, bytes, sectors) in pairs {
            writeln!(f, "{name:<12} {bytes:>10} bytes {sectors:>11} sectors")?;
        }
        writeln!(f, "shared       {:>10} accesses {:>8} conflicts", self.shared_accesses, self.bank_conflicts)?;
        writeln!(f, "barriers     {:>10}", self.barriers)?;
        writeln!(f, "divergences  {:>10}", self.divergences)?;
        write!(f, "registers    {:>10}", self.live_registers)
    }
}
