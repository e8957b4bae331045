//! Reading and writing `.frit` files.
//!
//! A `.frit` file is a safetensors container, so that every tool for those opens it: eight bytes of length, a JSON
//! header, the tensors without gaps. Weights lie there under their stored names, plain types with their shape and block
//! formats as U8 of `[bytes]`; identical tensors lie there once. The rest is text under `__metadata__`:
//!
//! | key | what it holds |
//! |---|---|
//! | `frit.version` | [`VERSION`] of this layout |
//! | `frit.plan` | the [`Plan`](crate::Plan) as JSON, without its tokenizer |
//! | `frit.tokenizer` | `tokenizer.json`, where the model has one |
//! | `frit.tensors` | of each tensor in the container: storage type, true shape, BLAKE3 of its bytes |
//! | `frit.aliases` | names of tensors with equal content: which tensor of the container, and the shape |
//! | `frit.hash.PART` | BLAKE3 of `plan`, `tokenizer`, `tensors`, `aliases` |
//!
//! The hashes tell an altered file from a whole one. They are no signature: what a file says is checked all the same.

mod header;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{FritFile, StoredTensor};
pub use write::{Written, replace_file, write};

use crate::PlanError;
use std::path::{Path, PathBuf};

/// Version of the container's layout; another number is refused on load.
pub const VERSION: u32 = 2;

const KEY_VERSION: &str = "frit.version";
const KEY_PLAN: &str = "frit.plan";
const KEY_TOKENIZER: &str = "frit.tokenizer";
const KEY_TENSORS: &str = "frit.tensors";
const KEY_ALIASES: &str = "frit.aliases";
const KEY_HASH: &str = "frit.hash.";

/// Why an artifact cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no artifact.
    #[error("{path}: not a .frit file: {reason}", path = path.display())]
    NotArtifact {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file was written by a newer or much older Frit.
    #[error("{path}: {part} has version {found}; this build reads version {supported}: compile the model again", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The container or the plan.
        part: &'static str,
        /// What the file says.
        found: String,
        /// What can be read.
        supported: u32,
    },
    /// The file has another length than its header says.
    #[error("{path}: the file is {found} bytes long, its header describes {expected}: truncated or altered", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header describes.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A part differs from its hash.
    #[error("{path}: {part} does not match its hash: the file was altered or damaged", path = path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// The part.
        part: String,
    },
    /// A part says something impossible.
    #[error("{path}: {part}: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The part.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit of [`Limits`](crate::limits::Limits) is exceeded.
    #[error("{path}: {what} is {value}, above the limit of {limit}", path = path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The quantity.
        what: String,
        /// Its value.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// The plan breaks its own rules.
    #[error("{path}: {source}", path = path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// The broken rules.
        source: PlanError,
    },
    /// A tensor to be written cannot be read.
    #[error("tensor `{tensor}`: {cause}")]
    Source {
        /// The tensor.
        tensor: String,
        /// The cause.
        cause: String,
    },
}

impl FormatError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FormatError {
        let path = path.to_owned();
        move |source| FormatError::Io { path, source }
    }
    fn malformed(path: &Path, part: impl Into<String>, reason: impl Into<String>) -> FormatError {
        FormatError::Malformed { path: path.to_owned(), part: part.into(), reason: reason.into() }
    }
}
