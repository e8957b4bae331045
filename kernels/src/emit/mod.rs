//! Emitters: a kernel in a language that a driver or browser reads. Each is a pure function of module and options.

mod polynomials;
pub mod ptx;
pub mod wgsl;

/// The languages kernels are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// [`wgsl`]
    Wgsl,
    /// [`ptx`]
    Ptx,
}
