//! What the checks found.

use std::fmt;

/// A place in the grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Thread {
    /// Workgroup (CTA) in the grid.
    pub group: [u32; 3],
    /// Invocation (thread) in the workgroup.
    pub local: [u32; 3],
}

/// A place in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Name of the buffer, workgroup variable or memory.
    pub buffer: String,
    /// Bytes from its start; may lie outside.
    pub offset: u64,
}

/// What was broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ViolationKind {
    /// A read of bytes that do not belong to the buffer, or to none of its declared regions.
    ReadOutOfBounds,
    /// A write of bytes that do not belong to the buffer, to none of its writable regions, or to a read-only buffer.
    WriteOutOfBounds,
    /// An index beyond a fixed array or a vector.
    IndexOutOfBounds {
        /// The index.
        index: u32,
        /// Elements.
        len: u32,
    },
    /// A 64-bit address that belongs to no buffer.
    WildAddress,
    /// An address that is no multiple of the access's alignment in bytes.
    Misaligned {
        /// Required alignment.
        align: u32,
    },
    /// Memory read before anything wrote it.
    UninitialisedMemory,
    /// A register read before anything wrote it.
    UninitialisedRegister,
    /// Two accesses of different threads to one word, at least one a write, with no barrier between them.
    Race {
        /// The other thread, in the workgroup; the last reader where a write follows reads of several, which may be the
        /// writer itself. `None` where the other belongs to another workgroup.
        other: Option<u32>,
        /// Whether both accesses are writes.
        write_write: bool,
    },
    /// The destination of an asynchronous copy touched before the copy was waited for.
    PendingCopy,
    /// An `mbarrier` that is none, or is overrun.
    Mbarrier(
        /// What is wrong with it.
        &'static str,
    ),
    /// A product of a warpgroup whose tiles, accumulators or order are not as they must be.
    Wgmma(
        /// What is wrong.
        &'static str,
    ),
    /// Threads wait for the phase of an `mbarrier` that nothing will end.
    Deadlock,
    /// A write, or a read of what may be written, by a thread that has not waited for the launch in front.
    EarlyAccess,
    /// A word read through the non-coherent cache (`ld.global.nc`) and written by the same launch.
    NotConstant,
    /// A barrier that some threads of the workgroup reach and others do not.
    BarrierDivergence,
    /// A collective operation that names lanes which do not take part, or reads from such a lane. In WGSL also one that some
    /// invocations of a subgroup do not reach, or whose distance they do not agree on.
    CollectiveDivergence,
    /// An infinity or NaN computed from finite operands.
    NotFinite,
    /// Division by zero, or of the smallest integer by -1.
    IntegerDivision,
    /// The instruction budget is spent: an endless loop, or far too much work.
    Budget,
}

/// One broken rule. Repetitions at the same instruction are counted, not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was broken.
    pub kind: ViolationKind,
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the text, from 1.
    pub line: u32,
    /// The first thread that broke it.
    pub thread: Thread,
    /// The memory concerned, for the first occurrence.
    pub address: Option<Address>,
    /// Occurrences.
    pub count: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.kernel, self.line)?;
        match &self.kind {
            ViolationKind::ReadOutOfBounds => write!(f, "read out of bounds")?,
            ViolationKind::WriteOutOfBounds => write!(f, "write out of bounds")?,
            ViolationKind::IndexOutOfBounds { index, len } => write!(f, "index {index} of {len} elements")?,
            ViolationKind::WildAddress => write!(f, "address of no buffer")?,
            ViolationKind::Misaligned { align } => write!(f, "address not aligned to {align} bytes")?,
            ViolationKind::UninitialisedMemory => write!(f, "read of uninitialised memory")?,
            ViolationKind::UninitialisedRegister => write!(f, "read of an uninitialised register")?,
            ViolationKind::Race { other, write_write } => {
                let what = if *write_write { "two writes" } else { "a read and a write" };
                write!(f, "race of {what}, the other by ")?;
                match other {
                    Some(t) => write!(f, "thread {t} of the workgroup")?,
                    None => write!(f, "another workgroup")?,
                }
            }
            ViolationKind::PendingCopy => write!(f, "asynchronous copy not waited for")?,
            ViolationKind::Mbarrier(what) => write!(f, "mbarrier {what}")?,
            ViolationKind::Wgmma(what) => write!(f, "wgmma: {what}")?,
            ViolationKind::Deadlock => write!(f, "wait for a phase that nothing ends")?,
            ViolationKind::EarlyAccess => write!(f, "access before the launch in front was waited for")?,
            ViolationKind::NotConstant => write!(f, "read as constant and written by the same launch")?,
            ViolationKind::BarrierDivergence => write!(f, "barrier not reached by all threads")?,
            ViolationKind::CollectiveDivergence => write!(f, "collective operation with absent lanes")?,
            ViolationKind::NotFinite => write!(f, "infinity or NaN from finite operands")?,
            ViolationKind::IntegerDivision => write!(f, "integer division without a result")?,
            ViolationKind::Budget => write!(f, "instruction budget spent")?,
        }
        let (g, l) = (self.thread.group, self.thread.local);
        write!(f, "; workgroup {},{},{} thread {},{},{}", g[0], g[1], g[2], l[0], l[1], l[2])?;
        if let Some(a) = &self.address {
            write!(f, "; `{}` byte {}", a.buffer, a.offset)?;
        }
        if self.count > 1 { write!(f, "; {} times", self.count) } else { Ok(()) }
    }
}

/// Collects violations of one launch.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) violations: Vec<Violation>,
    seen: rustc_hash::FxHashMap<(std::mem::Discriminant<ViolationKind>, u32, u32), usize>,
    pub(crate) kernel: String,
}

impl Report {
    pub(crate) fn new(kernel: &str) -> Self {
        Report { kernel: kernel.to_owned(), ..Report::default() }
    }
    /// Records a violation; `segment` tells apart memories at one instruction.
    pub(crate) fn add(
        &mut self,
        kind: ViolationKind,
        pc: u32,
        line: u32,
        thread: Thread,
        address: Option<(u32, Address)>,
        times: u64,
    ) {
        let segment = address.as_ref().map_or(u32::MAX, |a| a.0);
        let key = (std::mem::discriminant(&kind), pc, segment);
        if let Some(v) = self.seen.get(&key).and_then(|i| self.violations.get_mut(*i)) {
            v.count += times;
            return;
        }
        self.seen.insert(key, self.violations.len());
        let address = address.map(|a| a.1);
        self.violations.push(Violation { kind, kernel: self.kernel.clone(), line, thread, address, count: times });
    }
}
