//! GGUF files: our own reader, the tensor types, the embedded tokenizer, the architectures.

pub mod expand;
mod families;
mod keys;
pub mod metadata;
mod model;
mod pretokenizer;
pub mod quant;
pub mod reader;
pub mod tensors;
pub mod tokenizer;

pub use model::load;
