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
    /// A kernel has more invocations in a workgroup than a target allows.
    #[error("{code}: {region}: {used} invocations of a workgroup, {limit} allowed\nhint: a target that allows {used}")]
    Invocations {
        /// The code of the condition that does not hold.
        code: crate::fusion::Refusal,
        /// The kernel.
        region: String,
        /// What it has.
        used: u64,
        /// What the target allows.
        limit: u64,
    },
    /// The memory of a run is more than was allowed, whatever is left out.
    #[error(
        "{model}: the values of a run take {least} bytes at {at}, the budget is {budget}\nhint: a larger budget, or smaller sizes"
    )]
    PeakBudget {
        /// The model's name.
        model: String,
        /// The least that was reached.
        least: u64,
        /// What was allowed.
        budget: u64,
        /// The sizes at which both hold.
        at: String,
    },
    /// A size that a budget is counted at and the model does not have.
    #[error("{model}: there is no size {}\nhint: the sizes are {}", .unknown.join(", "), .known.join(", "))]
    UnknownSizes {
        /// The model's name.
        model: String,
        /// Names that no size has.
        unknown: Vec<String>,
        /// Names that sizes have.
        known: Vec<String>,
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
