//! Weights that several layers share: which layers, which of their tensors, and what the shared tensor is.

mod ends;
pub mod pattern;
mod private;
mod share;

pub use ends::{DedupeWeights, TieEmbeddings, TieEncoderDecoder, Untie, WidenFfn};
pub use private::Private;
pub use share::{Init, ShareAttn, ShareFfn, ShareLayers};
