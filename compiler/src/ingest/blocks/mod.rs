//! The parts that transformers are made of, as graph fragments. Architectures fill in weights, sizes and switches; the
//! order of operations is decided here, once.
//!
//! One file is one part: `linear` and `norm` (the leaves), `attention` (with `latent` projections and
//! `sinks`), `ffn` and `moe`, `rotary` (position tables) and `alibi`, `shared` (what the layers of one graph have in common),
//! `sharing` and `probs` (what layers take from each other), `merged` and `anchors` (what caches keep), `decoder` (layers,
//! and the ways to run a decoder), `depth` and `halting` (which layers run for whom), `layer_attention` (reads along
//! layers). Encoders are made of `multi_head`, `relative` and `disentangled` (positions in scores), `nearby` (a convolution beside a layer),
//! `stack` (layers), `patches` (windows of pictures and signals) and `encoder_decoder` (the ways to run a pair of both) and
//! `reading` (a pair that writes nothing).

mod alibi;
mod anchors;
mod attention;
mod decoder;
mod depth;
mod disentangled;
mod encoder_decoder;
mod ffn;
mod halting;
mod latent;
mod layer_attention;
mod linear;
mod merged;
mod moe;
mod multi_head;
mod nearby;
mod norm;
mod patches;
mod probs;
mod reading;
mod relative;
mod retained;
mod rotary;
mod shared;
mod sharing;
mod sinks;
mod stack;

pub(crate) use alibi::Alibi;
pub(crate) use attention::{Attention, Packing, QkNorm, Qkv};
pub(crate) use decoder::{Decoder, Embedding, Feed, Head, Layer, Positions, Residual};
pub(crate) use depth::{Gate, GateKind};
pub(crate) use disentangled::{Disentangled, Distances, distance_row};
pub(crate) use encoder_decoder::{
    Counting, EncoderDecoder, PositionTable, SignalStem, Source, TokenEmbedding, TokenEncoder, counted_positions,
    key_mask,
};
pub(crate) use ffn::{Ffn, Up};
pub(crate) use latent::{Latent, LatentQuery, LatentUp};
pub(crate) use layer_attention::LayerAttention;
pub(crate) use linear::{Factor, Linear};
pub(crate) use moe::{ExpertAct, ExpertLinear, ExpertUp, Experts, Groups, Mixture, Router, Scores};
pub(crate) use multi_head::{Memory, MultiHead, Projections, Rotary, ScoreTerms};
pub(crate) use nearby::Nearby;
pub(crate) use norm::Norm;
pub(crate) use patches::{Conv1d, embed_patches};
pub(crate) use reading::{First, Reading, Top};
pub(crate) use relative::{Buckets, RelativeBias, per_head};
pub(crate) use rotary::{Rope, Rotation};
pub(crate) use sharing::{HeadMaps, Sources};
pub(crate) use stack::{Part, Place, Scene, Stack, StackLayer};
