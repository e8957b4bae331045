//! The parts that transformers are made of, as graph fragments. Architectures fill in weights, sizes and switches; the
//! order of operations is decided here, once.
//!
//! One file is one part: `linear` and `norm` (the leaves), `attention` (with `latent` projections and
//! `sinks`), `ffn` and `moe`, `rotary` (position tables), `shared`
//! (what the layers of one graph have in common), `decoder` (layers, and the ways to run a decoder).

mod attention;
mod decoder;
mod ffn;
mod latent;
mod linear;
mod moe;
mod norm;
mod rotary;
mod shared;
mod sinks;

pub(crate) use attention::{Attention, Packing, QkNorm, Qkv};
pub(crate) use decoder::{Decoder, Embedding, Feed, Head, Layer, Positions, Residual};
pub(crate) use ffn::{Ffn, Up};
pub(crate) use latent::{Latent, LatentQuery};
pub(crate) use linear::Linear;
pub(crate) use moe::{ExpertAct, ExpertLinear, ExpertUp, Experts, Groups, Mixture, Router, Scores};
pub(crate) use norm::Norm;
pub(crate) use rotary::Rope;
pub(crate) use shared::Shared;
