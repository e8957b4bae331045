//! The runtime's errors.

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a host program and a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor of the wrong shape or type.
    #[error("{what}: {expected} expected, {found} found")]
    Shape {
        /// The tensor.
        what: String,
        /// What the plan says.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An input that the plan requires is missing, or one that it does not know was given.
    #[error("inputs do not match the model:\n{}", .0.join("\n"))]
    Inputs(Vec<String>),
    /// A request larger than a limit.
    #[error("{what}: {wanted} exceeds the limit of {limit}")]
    Limit {
        /// What was asked for.
        what: String,
        /// How much.
        wanted: u64,
        /// The limit.
        limit: u64,
    },
    /// The artifact cannot be used.
    #[error(transparent)]
    Artifact(#[from] frit_plan::format::FormatError),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A stored tensor could not be read.
    #[error("weight `{weight}`: {cause}")]
    Weight {
        /// The weight.
        weight: String,
        /// The cause.
        cause: String,
    },
    /// A chat template that cannot be used.
    #[error("the model's chat template: {0}")]
    Chat(String),
    /// Arrays that cannot be read.
    #[error("{path}: {reason}", path = path.display())]
    Npz {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An option out of its range.
    #[error("{option}: {reason}")]
    Option {
        /// The option.
        option: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The model does not do what was asked for.
    #[error("model {model} {reason}")]
    Task {
        /// The model's name.
        model: String,
        /// What it lacks.
        reason: String,
    },
    /// A model directory or model file where only artifacts can be loaded.
    #[error("{path}: this build has no compiler and reads .frit files only; make one with `frit compile`", path = path.display())]
    NeedsCompiler {
        /// The model.
        path: std::path::PathBuf,
    },
    /// There is no such backend on this machine.
    #[error("backend {backend}: {reason}")]
    NoBackend {
        /// What was asked for.
        backend: String,
        /// Why it cannot serve.
        reason: String,
    },
    /// A backend cannot run a kernel.
    #[error("backend {backend} cannot run kernel `{kernel}`: {reason}")]
    Kernel {
        /// The backend.
        backend: &'static str,
        /// The kernel.
        kernel: String,
        /// Why.
        reason: String,
    },
    /// The device failed; the session is of no further use.
    #[error("device: {0}")]
    Device(String),
    /// The device's context failed for good: every later call of this process fails as well.
    #[error("device: {cause}; the session is of no further use, nor is the GPU to this process")]
    Poisoned {
        /// The call that failed first.
        cause: String,
    },
    /// A size expression of the plan has no value.
    #[error("plan: {0}")]
    Size(#[from] frit_kernels::dim::DimError),
    /// A plan that contradicts itself.
    #[error("plan: {0}")]
    Plan(String),
    /// Text could not be encoded or decoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The compiler refused the model.
    #[cfg(feature = "compiler")]
    #[error(transparent)]
    Compile(#[from] frit_compiler::Error),
}
