//! GGUF files: our own reader, the tensor types, the embedded tokenizer.

pub mod metadata;
mod pretokenizer;
pub mod quant;
pub mod reader;
pub mod tensors;
pub mod tokenizer;
