//! Model in, plan out. The pipeline is one page: ingest, passes, fusion, schedule, lower.
#![forbid(unsafe_code)]

pub mod error;
pub mod graph;
pub mod ingest;
pub mod model;

pub use error::{Error, Result};
pub use model::Model;
