//! Runs compiled transformers: load a plan, bind it to a backend, feed tensors or text.
//!
//! The one seam is [`backend::Backend`]: it takes a plan and a source of weights and gives an executor that runs the
//! plan's programs. Sessions, generation and the command line are written against it.

pub mod backend;
mod binding;
#[cfg(feature = "compiler")]
pub mod calibration;
#[cfg(feature = "chat")]
pub mod chat;
mod depth;
mod device;
#[cfg(feature = "tokenizer")]
pub mod embed;
pub mod error;
mod eviction;
mod generate;
mod generate_from;
mod kv_table;
pub mod model_source;
pub mod npz;
mod prefill_passes;
mod prompt;
mod recompute;
mod rows;
mod run_stats;
pub mod sampler;
mod session;
pub mod tensor;
#[cfg(test)]
mod test_model;
#[cfg(feature = "tokenizer")]
pub mod tokenizer;
#[cfg(feature = "verify")]
pub mod verify;

pub use depth::Depth;
pub use device::BackendChoice;
pub use error::{Error, Result};
pub use eviction::EvictionStats;
pub use generate::{Completion, Finish, GenerateOptions, GenerateStats, Generation, NewToken};
pub use kv_table::{KvEntry, kv_table};
pub use model_source::{LoadedModel, Stage};
pub use prompt::visible_tokens;
pub use recompute::check_generates;
pub use run_stats::RunStats;
pub use sampler::Sampling;
pub use session::{Session, SessionBuilder};
pub use tensor::Tensor;
