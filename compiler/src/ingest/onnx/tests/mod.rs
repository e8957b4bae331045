//! Models built in memory, imported, and evaluated by the reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod kit;
mod operators;
mod quantised;
mod refusals;
mod shapes;
mod versions;
