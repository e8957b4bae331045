//! GGUF files: our own reader, the tensor types, the embedded tokenizer, the architectures.

mod codebooks;
mod config;
mod families;
mod keys;
pub mod metadata;
mod mixtures;
mod model;
mod pretokenizer;
pub mod quant;
pub mod reader;
pub mod repack;
mod super_blocks;
pub mod tensors;
pub mod tokenizer;
pub mod writer;

pub(crate) use config::config;
pub use model::load;
