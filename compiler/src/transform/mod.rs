//! Edits of checkpoints: weights tied, layers removed, merged and reordered, before anything is compiled.

pub mod extension;

pub use extension::Extension;
