//! What can be wrong with a model: one error type, and the list of gaps for everything that is well formed but not
//! supported.

use std::fmt;
use std::path::PathBuf;

/// Why a model could not be loaded. Every variant names the file, and the field or tensor in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path, or a file that the model needs, does not exist.
    #[error("{path}: {problem}", path = path.display())]
    Missing {
        /// The path that was looked for.
        path: PathBuf,
        /// What was expected there and what to do.
        problem: String,
    },
    /// The operating system refused a read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The path holds no format that is read.
    #[error("{path}: {problem}", path = path.display())]
    Format {
        /// The path.
        path: PathBuf,
        /// What it holds instead, and what to do.
        problem: String,
    },
    /// The file contradicts its own format: truncated, overlapping, not JSON and so on.
    #[error("{path}: {place}: {problem}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The field, tensor or part of the file.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// A limit that the caller set would be exceeded.
    #[error("{path}: {what} is {value}, above the limit of {limit}; raise the limit if you trust the file", path = path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The quantity.
        what: String,
        /// Its value in the file.
        value: u64,
        /// The limit in force.
        limit: u64,
    },
    /// The model is well formed, but parts of it are not supported or do not fit together. All of them are listed.
    #[error("{path}: {list}", path = path.display(), list = GapList(gaps))]
    Unsupported {
        /// The model.
        path: PathBuf,
        /// Every gap that was found, in the order of the file.
        gaps: Vec<Gap>,
    },
    /// The graph could not be built from a model that passed every check: a fault of this program.
    #[error("{path}: the graph could not be built: {problem}", path = path.display())]
    Internal {
        /// The model.
        path: PathBuf,
        /// What the builder said.
        problem: String,
    },
}

/// The result of this module's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One thing about a model that stands in the way of running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where it is.
    pub place: Place,
    /// What is wrong, with the value found.
    pub problem: String,
    /// What the reader can do about it.
    pub next_step: String,
}

/// Where a [`Gap`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A field of a configuration file or of a file's metadata.
    Field {
        /// The file's name.
        file: String,
        /// The field, with dots for nesting.
        field: String,
    },
    /// A tensor, by its name in the file.
    Tensor(String),
    /// A file as a whole, by its name.
    File(String),
}

impl Gap {
    /// A gap at a configuration field.
    pub fn field(file: &str, field: &str, problem: impl Into<String>, next_step: impl Into<String>) -> Gap {
        let place = Place::Field { file: file.into(), field: field.into() };
        Gap { place, problem: problem.into(), next_step: next_step.into() }
    }
    /// A gap at a tensor.
    pub fn tensor(name: &str, problem: impl Into<String>, next_step: impl Into<String>) -> Gap {
        Gap { place: Place::Tensor(name.into()), problem: problem.into(), next_step: next_step.into() }
    }
    /// A gap of a whole file.
    pub fn file(name: &str, problem: impl Into<String>, next_step: impl Into<String>) -> Gap {
        Gap { place: Place::File(name.into()), problem: problem.into(), next_step: next_step.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Field { file, field } => write!(f, "{file}, field `{field}`"),
            Place::Tensor(name) => write!(f, "tensor `{name}`"),
            Place::File(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.problem, self.next_step)
    }
}

/// Prints a list of gaps, the first [`GapList::SHOWN`] of them in full.
struct GapList<'a>(&'a [Gap]);

impl GapList<'_> {
    const SHOWN: usize = 40;
}

impl fmt::Display for GapList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0 {
            return write!(f, "{one}");
        }
        write!(f, "{} things are missing or not supported:", self.0.len())?;
        for gap in self.0.iter().take(Self::SHOWN) {
            write!(f, "\n  - {gap}")?;
        }
        match self.0.len().saturating_sub(Self::SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  - and {more} more"),
        }
    }
}
