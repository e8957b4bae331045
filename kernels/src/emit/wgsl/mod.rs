//! WGSL.
//!
//! Enters: a verified [`Module`]. Leaves: text with one compute entry point, [`ENTRY_POINT`], all bindings in group 0.
//! The text has no early return, no infinite constant and no pointer parameter; naga and Tint both accept it, which
//! [`Consumer`] decides in the one place where they differ.

mod expr;
mod names;
#[cfg(test)]
mod tests;
mod writer;

use crate::ir::Module;

/// Name of the compute entry point.
pub const ENTRY_POINT: &str = "main";

/// Who compiles the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consumer {
    /// naga, inside wgpu: it rejects `enable subgroups;` and needs none.
    #[default]
    Native,
    /// A browser: it requires the line.
    Browser,
}

/// Choices that change the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Who compiles the text.
    pub consumer: Consumer,
    /// Whether `packed_4x8_integer_dot_product` may be used; plain shifts and masks otherwise.
    pub packed_4x8: bool,
}

/// Why a module has no WGSL form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A constant expression is infinite, NaN, or overflows.
    #[error("kernel `{kernel}`: constant `{text}` has no finite value")]
    Constant {
        /// Kernel name.
        kernel: String,
        /// The expression.
        text: String,
    },
    /// An operation that WGSL lacks.
    #[error("kernel `{kernel}`: WGSL has no {what}")]
    Unsupported {
        /// Kernel name.
        kernel: String,
        /// The operation.
        what: &'static str,
    },
    /// An expression has no type; the module was not verified.
    #[error("kernel `{kernel}` is not well typed")]
    Untyped {
        /// Kernel name.
        kernel: String,
    },
}

/// The WGSL text of a verified module.
pub fn emit(module: &Module, options: &Options) -> Result<String, Error> {
    let module = crate::opt::unroll(module);
    writer::write(&module, options)
}
