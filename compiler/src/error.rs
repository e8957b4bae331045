//! The compiler's errors.

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model could not be read.
    #[error(transparent)]
    Ingest(#[from] crate::ingest::Error),
    /// A graph that breaks a rule of the IR.
    #[error(transparent)]
    Graph(#[from] crate::graph::GraphError),
    /// The target cannot run a kernel that the model needs.
    #[error("{region}: {reason}")]
    Unsupported {
        /// Where.
        region: String,
        /// Why.
        reason: String,
    },
    /// The compiler broke one of its own rules.
    #[error("internal error in {pass}: {fault}")]
    Internal {
        /// The pass.
        pass: &'static str,
        /// The broken rule.
        fault: String,
    },
}
