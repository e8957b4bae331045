//! The parts that transformers are made of, as graph fragments. Architectures fill in weights, sizes and switches; the
//! order of operations is decided here, once.
//!
//! One file is one part: `linear` and `norm` (the leaves), `attention`, `ffn`, `rotary` (position tables), `shared`
//! (what the layers of one graph have in common), `decoder` (layers, and the ways to run a decoder).

mod attention;
mod decoder;
mod ffn;
mod linear;
mod norm;
mod rotary;
mod shared;

pub(crate) use attention::{Attention, Packing, QkNorm, Qkv};
pub(crate) use decoder::{Decoder, Embedding, Head, Layer, Positions, Residual};
pub(crate) use ffn::{Ffn, Up};
pub(crate) use linear::Linear;
pub(crate) use norm::Norm;
pub(crate) use rotary::Rope;
pub(crate) use shared::Shared;
