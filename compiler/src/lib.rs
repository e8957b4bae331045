//! Model in, plan out. The pipeline is one page: ingest, passes, fusion, schedule, lower.
#![forbid(unsafe_code)]

pub mod chain;
pub mod error;
pub mod fusion;
pub mod graph;
pub mod ingest;
pub mod lower;
pub mod memory;
pub mod model;
pub mod numeric;
pub mod options;
pub mod passes;
#[allow(dead_code)]
pub mod reference;
pub mod shard;
pub mod transform;

pub use error::{Error, Result};
pub use lower::Compiler;
pub use model::Model;
pub use numeric::{NumericMode, ProofClass};
pub use options::{CompileOptions, PeakBudget, SwitchError};
