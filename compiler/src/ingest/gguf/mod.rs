//! GGUF files: our own reader, the tensor types, the embedded tokenizer, the architectures.

mod families;
mod keys;
pub mod metadata;
mod model;
mod pretokenizer;
pub mod quant;
pub mod reader;
pub mod repack;
mod super_blocks;
pub mod tensors;
pub mod tokenizer;

pub use model::load;
