//! Limits checked before anything is allocated.

/// What a reader of artifacts accepts at most. The defaults fit every published transformer; a caller may change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file's header, which holds the plan and the tokenizer.
    pub header_bytes: u64,
    /// Tensors of a file, aliases included.
    pub tensors: usize,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Extents of a tensor.
    pub rank: usize,
    /// One extent of a tensor.
    pub dim: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { header_bytes: 100_000_000, tensors: 100_000, name_bytes: 4096, rank: 8, dim: (1 << 31) - 1 }
    }
}

/// Dynamic sizes of a plan: the table that kernels read has this many places.
pub const SIZES: usize = 16;
/// Kernels of a plan.
pub const KERNELS: usize = 10_000;
/// Programs of a plan.
pub const PROGRAMS: usize = 64;
/// Values or steps of a program.
pub const STEPS: usize = 1_000_000;
/// Expressions of a kernel.
pub const EXPRESSIONS: usize = 100_000;
/// Arguments of a kernel.
pub const ARGUMENTS: usize = 256;
/// Bytes of one kernel's text for one target.
pub const TEXT_BYTES: usize = 4 << 20;
/// Workgroup memory that a launch asks for, in bytes: the largest that an NVIDIA GPU has.
pub const SHARED_BYTES: u64 = 227 << 10;
/// Invocations of a workgroup.
pub const INVOCATIONS: u64 = 1024;
