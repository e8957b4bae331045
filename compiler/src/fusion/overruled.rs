//! Kinds of fusion that a measurement or a budget decided against.

use super::Refusal;
use std::fmt;

/// Why a kind of fusion is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overruled {
    /// The plan was measured with and without.
    Measured {
        /// How much longer a run takes with it, in thousandths.
        slower_permille: u32,
        /// Where it ran.
        device: String,
    },
    /// Memory would exceed a budget.
    Peak {
        /// Bytes of the largest program's memory with it.
        with: u64,
        /// Without.
        without: u64,
        /// What was allowed.
        budget: u64,
    },
}

impl Overruled {
    /// The code of edges that are not fused for this reason.
    pub const fn code(&self) -> Refusal {
        match self {
            Overruled::Measured { .. } => Refusal::Measured,
            Overruled::Peak { .. } => Refusal::Peak,
        }
    }
}

impl fmt::Display for Overruled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Overruled::Measured { slower_permille, device } => {
                write!(
                    f,
                    "measured on {device}: with it a run takes {:.1} % longer",
                    f64::from(*slower_permille) / 10.0
                )
            }
            Overruled::Peak { with, without, budget } => {
                write!(f, "with it the memory is {with} bytes, without {without}; the budget is {budget}")
            }
        }
    }
}
