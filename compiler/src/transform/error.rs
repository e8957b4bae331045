//! What can be wrong with an edit of a checkpoint.

use std::path::PathBuf;

/// Why a checkpoint could not be read, edited or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Ingest(#[from] crate::ingest::Error),
    /// The step contradicts the checkpoint or itself; everything that is in its way is listed.
    #[error("{step}: {list}", list = problems.join("; "))]
    Refused {
        /// The transform, as it is called on the command line.
        step: String,
        /// What is in its way, one sentence each, with the layer, tensor or field.
        problems: Vec<String>,
    },
    /// A recipe is not well formed.
    #[error("recipe{at}: {problem}")]
    Recipe {
        /// ` step N (NAME)`, or empty for the whole.
        at: String,
        /// What is wrong.
        problem: String,
    },
    /// The activations that a step needs could not be had.
    #[error("calibration: {0}")]
    Calibration(String),
    /// The operating system refused to write.
    #[error("{path}: cannot be written: {source}", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The place to write to, or the form asked for, is of no use.
    #[error("{path}: {problem}", path = path.display())]
    Output {
        /// The path.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

impl Error {
    /// A refusal, ascribed to a tensor.
    pub(super) fn of_tensor(self, name: &str) -> Error {
        match self {
            Error::Refused { problems, .. } => Error::Refused { step: format!("tensor `{name}`"), problems },
            other => other,
        }
    }
}

/// The result of this module's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Refuses a step for one reason.
pub(crate) fn refuse<T>(step: &str, problem: impl Into<String>) -> Result<T> {
    Err(Error::Refused { step: step.into(), problems: vec![problem.into()] })
}

/// Refuses a step unless `problems` is empty.
pub(crate) fn refuse_all(step: &str, problems: Vec<String>) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { Err(Error::Refused { step: step.into(), problems }) }
}
