//! What a fused kernel computes ([`spec::KernelSpec`]), how it is scheduled, and how it becomes text.
#![forbid(unsafe_code)]

pub mod dim;
pub mod dtype;
pub mod emit;
pub mod ir;
pub mod opt;
pub mod spec;
pub mod target;
pub mod templates;
