//! Why a text cannot be run at all.

/// A text or a launch that cannot be executed; what happens *during* execution is a [`Violation`](crate::Violation).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text does not parse or does not validate.
    #[error("kernel `{kernel}`, line {line}: {reason}")]
    Text {
        /// The kernel.
        kernel: String,
        /// Line of the text, from 1; 0 where the parser names none.
        line: u32,
        /// What is wrong.
        reason: String,
    },
    /// The text is valid but uses what is not executed here.
    #[error("kernel `{kernel}`, line {line}: {what} is not supported")]
    Unsupported {
        /// The kernel.
        kernel: String,
        /// Line of the text, from 1.
        line: u32,
        /// The instruction, type or function.
        what: String,
    },
    /// The launch does not fit the text.
    #[error("kernel `{kernel}`: {reason}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        reason: String,
    },
}
