//! PTX.
//!
//! Enters: a verified [`Module`]. Leaves: text with one kernel, [`ENTRY_POINT`], that needs no library and assembles for
//! `sm_80` and every later GPU. The text states every rounding, so that a GPU and an interpreter of the text agree but
//! for `ex2`, `lg2`, `sin`, `cos`, `rcp`, `rsqrt`, `sqrt` and `div.full`.
//!
//! # Launch
//! - The grid is that of the rendered kernel. A block has exactly [`Module::workgroup_size`] threads (`.reqntid`).
//! - [`parameters`] lists the parameters, one for each binding in order of binding numbers: a storage buffer and a
//!   uniform block named in [`Options::by_address`] are 64-bit device addresses, any other uniform block is passed by
//!   value, member `i` at byte `4 i`.
//! - Addresses are multiples of 16 bytes. A buffer holds fewer than 2³¹ elements. Members of a block named in
//!   [`Options::multiples`] are multiples of that number.
//! - A matrix of which tiles are brought is a tensor map by value ([`Parameter::Map`]); such kernels are for `sm_90a` alone.
//! - Workgroup memory of up to 48 KiB is static. A kernel with more asks for [`dynamic_shared_bytes`] at its launch, for
//!   which the driver wants the function's limit raised first.
//!
//! Not its business: schedules, and which instructions a template asks for.

mod access;
mod asm;
mod declare;
mod expr;
mod math;
mod multiples;
mod names;
#[cfg(test)]
mod tests;
mod tile;
mod warpgroup;
mod writer;

use crate::ir::{Access, Module, TileMap};

/// Name of the kernel.
pub const ENTRY_POINT: &str = "main";
/// Bytes of a tensor map, which a launch passes by value.
pub const MAP_BYTES: u32 = 128;
/// Bytes of workgroup memory that a kernel may declare with a fixed size.
pub const STATIC_SHARED_BYTES: u64 = 48 << 10;

/// Choices that change the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Lines of the header comment, below the kernel's name.
    pub header: Vec<String>,
    /// Uniform blocks that lie in device memory, so that a captured launch sees what they hold when it runs.
    pub by_address: Vec<String>,
    /// Uniform blocks all of whose members are multiples of a number.
    pub multiples: Vec<(String, u32)>,
}

/// Why a module has no PTX form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A constant is infinite or NaN.
    #[error("kernel `{kernel}`: constant {text} is not finite")]
    Constant {
        /// Kernel name.
        kernel: String,
        /// The constant.
        text: String,
    },
    /// An expression has no type; the module was not verified.
    #[error("kernel `{kernel}` is not well typed")]
    Untyped {
        /// Kernel name.
        kernel: String,
    },
    /// Warps that are not full cannot work together.
    #[error("kernel `{kernel}`: subgroup operations in a workgroup of {invocations} invocations, no multiple of 32")]
    PartialWarp {
        /// Kernel name.
        kernel: String,
        /// Invocations of the workgroup.
        invocations: u64,
    },
}

/// A parameter of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The device address of a buffer or uniform block, 8 bytes.
    Address {
        /// Binding number.
        binding: u32,
        /// Name of the buffer or block in the module.
        name: String,
        /// Whether the kernel writes there.
        written: bool,
    },
    /// A uniform block by value.
    Block {
        /// Binding number.
        binding: u32,
        /// Name of the block in the module.
        name: String,
        /// Its size, a multiple of 16.
        size_bytes: u32,
    },
    /// A matrix of which tiles are brought: the tensor map of 16-bit elements that the driver encodes for
    /// [`TileMap`], with tiles of [`TILE_COLUMNS`](crate::ir::TILE_COLUMNS) columns in 128-byte swizzle, by value.
    Map {
        /// Binding number.
        binding: u32,
        /// Name of the buffer in the module.
        name: String,
        /// The matrix.
        map: TileMap,
    },
}

impl Parameter {
    /// Binding number.
    pub fn binding(&self) -> u32 {
        match self {
            Parameter::Address { binding, .. } | Parameter::Block { binding, .. } | Parameter::Map { binding, .. } => {
                *binding
            }
        }
    }
}

/// The parameters of the kernel in the order a launch passes them.
pub fn parameters(module: &Module, options: &Options) -> Vec<Parameter> {
    let buffers = module.buffers.values().map(|b| match b.access {
        Access::Tiles(map) => Parameter::Map { binding: b.binding, name: b.name.clone(), map },
        access => {
            let written = access == Access::ReadWrite;
            Parameter::Address { binding: b.binding, name: b.name.clone(), written }
        }
    });
    let blocks = module.uniforms.values().map(|u| match options.by_address.contains(&u.name) {
        true => Parameter::Address { binding: u.binding, name: u.name.clone(), written: false },
        false => Parameter::Block { binding: u.binding, name: u.name.clone(), size_bytes: u.size_bytes() },
    });
    let mut all: Vec<Parameter> = buffers.chain(blocks).collect();
    all.sort_by_key(Parameter::binding);
    all
}

/// Bytes of workgroup memory that a launch must ask for; 0 where the text declares it all.
pub fn dynamic_shared_bytes(module: &Module) -> u64 {
    let bytes = module.workgroup_bytes();
    if bytes > STATIC_SHARED_BYTES { bytes } else { 0 }
}

/// The PTX text of a verified module.
///
/// # Errors
/// [`Error`] for what has no PTX form.
pub fn emit(module: &Module, options: &Options) -> Result<String, Error> {
    let module = crate::opt::unroll(module);
    writer::write(&module, options)
}
