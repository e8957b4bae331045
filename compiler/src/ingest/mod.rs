//! Model files in, graph and weights out.
//!
//! What enters: a Hugging Face directory or a GGUF file. What leaves: a verified graph, its weights (read lazily), the
//! tokenizer's text and the settings of generation. Nothing after this module knows which format it was.
#![deny(clippy::indexing_slicing)]

pub mod error;
pub mod file;
pub mod gguf;
pub mod hf;
pub mod limits;
pub mod rope;

pub use error::{Error, Gap, Place, Result};
pub use limits::Limits;
