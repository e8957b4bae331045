//! What is run, and what comes back.

use crate::counters::Counters;
use crate::report::Violation;

/// Language of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// WebGPU shading language.
    Wgsl,
    /// NVIDIA's parallel thread execution.
    Ptx,
}

/// A part of a buffer that a kernel may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte; rounded down to a word.
    pub start: u64,
    /// Byte behind the last; rounded up to a word.
    pub end: u64,
    /// Whether it may be read before it is written.
    pub initialised: bool,
    /// Whether it may be written.
    pub writable: bool,
}

/// A buffer in global (storage) memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name in reports.
    pub name: String,
    /// Content; its length is the size of the buffer.
    pub bytes: Vec<u8>,
    /// Whether all of it may be read before it is written. Regions decide for themselves.
    pub initialised: bool,
    /// Whether it may be written. Read-only buffers are not watched for races, which saves time.
    pub writable: bool,
    /// Parts that may be touched, each for itself; none means all of it. Several tensors may share one buffer.
    pub regions: Vec<Region>,
}

impl Buffer {
    /// A buffer that is only read.
    pub fn input(name: &str, bytes: Vec<u8>) -> Buffer {
        Buffer { name: name.to_owned(), bytes, initialised: true, writable: false, regions: Vec::new() }
    }
    /// A buffer that is written, and read only behind a write.
    pub fn output(name: &str, bytes: usize) -> Buffer {
        let bytes = vec![0; bytes];
        Buffer { name: name.to_owned(), bytes, initialised: false, writable: true, regions: Vec::new() }
    }
    /// A buffer that is read and written.
    pub fn inout(name: &str, bytes: Vec<u8>) -> Buffer {
        Buffer { name: name.to_owned(), bytes, initialised: true, writable: true, regions: Vec::new() }
    }
}

/// A two-dimensional texture of 16-byte texels (`vec4<u32>`), only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texture {
    /// Name in reports.
    pub name: String,
    /// Texels of a row.
    pub width: u32,
    /// Texels row by row; what is missing of the last row may not be read.
    pub bytes: Vec<u8>,
}

/// How a tile's 16-byte pieces are spread over the banks of shared memory, by the width of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As they come.
    None,
    /// Rows of 32 bytes.
    Bytes32,
    /// Rows of 64 bytes.
    Bytes64,
    /// Rows of 128 bytes.
    Bytes128,
}

/// A matrix in a buffer, of which tensor copies bring tiles (PTX); what lies outside is read as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The buffer's position among the launch's arguments; those behind the kernel's parameters serve maps alone.
    pub argument: usize,
    /// First byte of the matrix.
    pub start: u64,
    /// Size of an element: 2 or 4 bytes.
    pub element_bytes: u32,
    /// Elements of a row, and rows.
    pub extents: [u64; 2],
    /// Bytes from one row to the next.
    pub row_bytes: u64,
    /// Elements of a tile along a row, and its rows.
    pub tile: [u32; 2],
    /// Order in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// A matrix of 16-bit elements, row behind row without gaps, whose tiles lie in shared memory in rows of 128 bytes.
    pub fn of_halves(argument: usize, [columns, rows]: [u64; 2], tile: [u32; 2]) -> TensorMap {
        let (start, element_bytes, swizzle) = (0, 2, Swizzle::Bytes128);
        TensorMap { argument, start, element_bytes, extents: [columns, rows], row_bytes: 2 * columns, tile, swizzle }
    }
}

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A storage buffer in WGSL; a pointer in PTX.
    Buffer(Buffer),
    /// A uniform buffer in WGSL; a parameter by value in PTX.
    Bytes(Vec<u8>),
    /// A texture in WGSL.
    Texture(Texture),
    /// A tensor map of 128 bytes by value in PTX.
    TensorMap(TensorMap),
}

/// One launch of one kernel.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Name in reports.
    pub kernel: &'a str,
    /// The text as emitted.
    pub text: &'a str,
    /// Its language.
    pub language: Language,
    /// Entry point; `None` takes the only one.
    pub entry: Option<&'a str>,
    /// Threads per workgroup dimension. WGSL states its own, which must agree.
    pub workgroup: [u32; 3],
    /// Workgroups per dimension.
    pub grid: [u32; 3],
    /// Arguments: by binding number in WGSL (group 0), by position in PTX.
    pub arguments: Vec<Argument>,
    /// Bytes of dynamic shared memory (PTX).
    pub dynamic_shared_bytes: u32,
}

/// How a launch is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most warp instructions of a launch.
    pub budget: u64,
    /// Runs workgroups, and warps between barriers, in an order drawn from this seed.
    pub shuffle: Option<u64>,
    /// Perturbs approximate functions within their documented bounds, by a seed.
    pub perturb: Option<u64>,
    /// Flushes denormal operands and results of all f32 arithmetic.
    pub flush_denormals: bool,
    /// Fuses products and sums (WGSL permits it).
    pub contract: bool,
    /// Adds the products of a matrix instruction in an order drawn from this seed.
    pub permute_mma: Option<u64>,
    /// Lanes of a subgroup (WGSL): 4, 8, 16 or 32.
    pub subgroup_size: u32,
    /// Whether an infinity or NaN from finite operands is a violation.
    pub finite: bool,
    /// Whether workgroup memory counts as written with zeros at the start, as WGSL has it unless a host turns it off.
    pub zeroed_workgroup_memory: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            budget: 1 << 28,
            shuffle: None,
            perturb: None,
            flush_denormals: false,
            contract: false,
            permute_mma: None,
            subgroup_size: 32,
            finite: true,
            zeroed_workgroup_memory: false,
        }
    }
}

/// What a launch left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Content of each argument afterwards; empty for bytes passed by value.
    pub buffers: Vec<Vec<u8>>,
    /// What it cost.
    pub counters: Counters,
    /// What it broke, by first occurrence.
    pub violations: Vec<Violation>,
    /// Whether every thread ran to its end; not so after a divergent barrier or when the budget was spent.
    pub completed: bool,
}
