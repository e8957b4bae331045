//! Runs compiled transformers: load a plan, bind it to a backend, feed tensors or text.
//!
//! The one seam is [`backend::Backend`]: it takes a plan and a source of weights and gives an executor that runs the
//! plan's programs. Sessions, generation and the command line are written against it.

pub mod backend;
pub mod error;
pub mod tensor;

pub use error::{Error, Result};
pub use tensor::Tensor;
