//! Reading and writing `.frit` files.

/// Why an artifact cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file is no artifact.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}
