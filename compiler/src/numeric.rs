//! How far a rewrite may change the last bits of a result, and how much of that a compilation allows.

use serde::{Deserialize, Serialize};

/// What a rewrite does to numbers, from nothing to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProofClass {
    /// The same operations on the same numbers: every bit stays.
    Bit,
    /// The same function of real numbers, rounded at other places.
    Round,
    /// A sum in another order.
    Reassoc,
    /// Another function, close to the first.
    Approx,
}

impl ProofClass {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            ProofClass::Bit => "BIT",
            ProofClass::Round => "ROUND",
            ProofClass::Reassoc => "REASSOC",
            ProofClass::Approx => "APPROX",
        }
    }
}

/// Which classes of rewrites a compilation may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumericMode {
    /// [`ProofClass::Bit`] alone.
    Strict,
    /// [`ProofClass::Round`] and [`ProofClass::Reassoc`] as well.
    #[default]
    Default,
    /// All, [`ProofClass::Approx`] as well.
    Fast,
}

impl NumericMode {
    /// Whether a rewrite of that class may be applied.
    pub fn allows(self, class: ProofClass) -> bool {
        class
            <= match self {
                NumericMode::Strict => ProofClass::Bit,
                NumericMode::Default => ProofClass::Reassoc,
                NumericMode::Fast => ProofClass::Approx,
            }
    }
    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            NumericMode::Strict => "strict",
            NumericMode::Default => "default",
            NumericMode::Fast => "fast",
        }
    }
    /// The mode of that name.
    pub fn of(name: &str) -> Option<NumericMode> {
        [NumericMode::Strict, NumericMode::Default, NumericMode::Fast].into_iter().find(|m| m.name() == name)
    }
}
