//! The calls of a CUDA driver that the backend makes, and no others.
//!
//! All work of a driver lies in one stream: writes, launches and graphs take effect in the order they were asked for.
//! [`Driver::read`] and [`Driver::wait`] come back when everything before them is done. What goes wrong in a kernel is
//! reported by a later call, and by every call after that ([`DriverError::is_sticky`]).

use frit_plan::Matrix;

/// An address in device memory.
pub(crate) type Address = u64;

/// A kernel that was loaded; the driver that gave it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Function(pub u64);

/// Launches that were recorded and are replayed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Graph(pub u64);

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// The driver's CUDA version as the driver numbers it: 1000 times major plus 10 times minor.
    pub driver: i32,
    /// The version of the driver in the kernel, which holds the assembler's; empty where it is not told.
    pub release: String,
    /// The most shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name} ({code}){}{text}", if text.is_empty() { "" } else { ": " })]
pub(crate) struct DriverError {
    /// The call.
    pub call: &'static str,
    /// `CUresult`.
    pub code: u32,
    /// The name of the code.
    pub name: String,
    /// What the driver says about it, the log of its assembler included.
    pub text: String,
}

impl DriverError {
    /// Out of device memory, which leaves everything as it was.
    pub const OUT_OF_MEMORY: u32 = 2;

    /// Whether the context is of no further use: every later call of the process fails as well.
    pub fn is_sticky(&self) -> bool {
        matches!(self.code, 4 | 201 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 999)
    }
}

/// Result of a driver's call.
pub(crate) type DriverResult<T> = std::result::Result<T, DriverError>;

/// A parameter of a launch as the kernel's text declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    /// `.param .u64`: the address of memory that kernels write.
    Address(Address),
    /// `.param .u64`: the address of memory that no kernel writes.
    Constant(Address),
    /// `.param .b8 NAME[n]`: n bytes by value.
    Block(Vec<u8>),
}

/// A launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// The kernel.
    pub function: Function,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory beyond what the text declares, in bytes.
    pub shared_bytes: u32,
    /// Whether it may start while the launch before it still runs (programmatic dependent launch). Its text waits by
    /// itself before it reads what others write.
    pub overlaps: bool,
    /// Parameters in order.
    pub parameters: Vec<Parameter>,
}

/// A driver with one device and one stream.
pub(crate) trait Driver: Send {
    /// The device.
    fn info(&self) -> &DeviceInfo;
    /// Bytes of device memory that are free.
    fn free_bytes(&mut self) -> DriverResult<u64>;
    /// Reserves device memory at a multiple of 256 bytes.
    fn alloc(&mut self, bytes: u64) -> DriverResult<Address>;
    /// Gives memory back. Nothing that was asked for before may still use it.
    fn free(&mut self, address: Address) -> DriverResult<()>;
    /// Fills a range with zeros.
    fn zero(&mut self, address: Address, bytes: u64) -> DriverResult<()>;
    /// Copies to the device; `bytes` may change as soon as it returns.
    fn write(&mut self, address: Address, bytes: &[u8]) -> DriverResult<()>;
    /// Copies from device to device; the ranges do not overlap.
    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> DriverResult<()>;
    /// Waits for everything and copies from the device.
    fn read(&mut self, address: Address, to: &mut [u8]) -> DriverResult<()>;
    /// Waits for everything.
    fn wait(&mut self) -> DriverResult<()>;
    /// Machine code for the device, from PTX, or the PTX itself, ended by a zero, where only the loader assembles it. An
    /// error carries the assembler's log.
    fn assemble(&mut self, ptx: &str) -> DriverResult<Vec<u8>>;
    /// Loads the kernel `entry` of some machine code, and lets it ask for so much shared memory.
    fn load(&mut self, code: &[u8], entry: &str, shared_bytes: u32) -> DriverResult<Function>;
    /// The tensor map of a matrix at an address, of [`MAP_BYTES`](frit_kernels::emit::ptx::MAP_BYTES), to be passed by value.
    fn tensor_map(&mut self, at: Address, matrix: &Matrix) -> DriverResult<Vec<u8>>;
    /// Launches a kernel, or records it between [`Driver::begin`] and [`Driver::end`].
    fn launch(&mut self, launch: &Launch) -> DriverResult<()>;
    /// Begins to record launches. Nothing but launches may be asked for until [`Driver::end`].
    fn begin(&mut self) -> DriverResult<()>;
    /// Ends recording.
    fn end(&mut self) -> DriverResult<Graph>;
    /// Runs what was recorded.
    fn replay(&mut self, graph: Graph) -> DriverResult<()>;
    /// Puts a mark behind everything asked for so far, whose time the device keeps: the first of a pair, or the second.
    fn mark(&mut self, is_second: bool) -> DriverResult<()>;
    /// Seconds from the first mark to the second by the device's clock, both of which have passed; none without a clock.
    fn between_marks(&mut self) -> DriverResult<Option<f64>>;
    /// Forgets a graph; it may still be running.
    fn forget(&mut self, graph: Graph) -> DriverResult<()>;
}
