//! What can be wrong with a kernel.

use std::fmt;

/// A mistake recorded during construction, with the place in the template that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// What is wrong.
    pub message: String,
    /// `file:line` of the call.
    pub place: String,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {})", self.message, self.place)
    }
}

/// Which rule of the kernel IR is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Names are identifiers and unique.
    Name,
    /// Types agree.
    Type,
    /// Names are defined before they are used, and used inside their block.
    Scope,
    /// Only variables are assigned; only writable memory is stored to.
    Access,
    /// Barriers and collectives are reached by all invocations of a workgroup or by none.
    Uniformity,
    /// Loop steps are positive.
    LoopStep,
    /// Constants are finite, integer divisors not zero.
    Constant,
    /// Constant indices lie inside arrays of constant length.
    Bounds,
    /// The kernel fits the target.
    Limit,
}

/// A broken rule and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What is wrong, with the names involved.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.message)
    }
}

/// Errors of the kernel IR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder was used wrongly; every mistake is listed.
    #[error("kernel `{kernel}` is built wrongly: {}", list(errors))]
    Build {
        /// Kernel name.
        kernel: String,
        /// All mistakes, in order.
        errors: Vec<BuildError>,
    },
    /// The verifier refused the module; every violation is listed.
    #[error("kernel `{kernel}` is invalid: {}", list(violations))]
    Invalid {
        /// Kernel name.
        kernel: String,
        /// All violations, in order.
        violations: Vec<Violation>,
    },
    /// A text form could not be read.
    #[error("line {line}: {message}")]
    Parse {
        /// Line number, from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
}

fn list(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
