//! Emitters: a kernel in a language that a driver or browser reads. Each is a pure function of module and options.

pub mod wgsl;
