//! Recognition: decomposed subgraphs become the operation they compute.
//!
//! A raise is a checked equality. Each rule states its equation; attributes, shapes and constants are compared by
//! value; what else uses an intermediate keeps the parts. Recognisers run on canonical graphs, operands first.

mod activation;
mod attention;
mod elem;
mod lint;
mod mask;
mod norm;
mod rope;
mod scores;
mod softmax;
mod terms;

pub use lint::{LeftAttention, LintFinding, left_attention, lint, missed};

use super::rewrite::{New, Rule, Site, sweep};
use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::{Graph, Op, ValueId};
use frit_kernels::spec::UnaryOp;

/// Why a rule does not apply.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Miss {
    /// The place does not look like it.
    Other,
    /// It looks like it, but this condition does not hold.
    Because(String),
}

impl Miss {
    fn because<T>(why: impl Into<String>) -> std::result::Result<T, Miss> {
        Err(Miss::Because(why.into()))
    }
    fn reason(found: Found) -> Option<String> {
        match found {
            Err(Miss::Because(why)) => Some(why),
            _ => None,
        }
    }
}

type Found = std::result::Result<New, Miss>;

/// Raises decomposed subgraphs to one kind of operation.
///
/// Pre: canonical, without duplicates. Post, unless the bound of the sweep was hit: none of the left sides is left.
///
/// ```text
/// %2 = sigmoid %1
/// %3 = mul %1, %2      ==>   %2 = silu %1
/// ```
#[derive(Clone, Copy)]
pub struct Recognize {
    name: &'static str,
    rules: &'static [Rule],
    doubt: fn(&Site<'_>, ValueId) -> Option<String>,
    is_raised: fn(&Op) -> bool,
}

impl Recognize {
    /// Names of its rules.
    pub(super) fn rule_names(&self) -> impl Iterator<Item = &'static str> {
        self.rules.iter().map(|r| r.name)
    }
}

/// The recognisers in the order in which they run: attention wants softmax, activations want sigmoids.
pub const RECOGNIZERS: [Recognize; 5] = [
    Recognize {
        name: "recognize-softmax",
        rules: softmax::RULES,
        doubt: softmax::doubt,
        is_raised: |op| matches!(op, Op::Softmax | Op::Attention(_)),
    },
    Recognize {
        name: "recognize-norm",
        rules: norm::RULES,
        doubt: norm::doubt,
        is_raised: |op| matches!(op, Op::Norm { .. }),
    },
    Recognize {
        name: "recognize-activation",
        rules: activation::RULES,
        doubt: activation::doubt,
        is_raised: |op| matches!(op, Op::Unary(UnaryOp::Silu | UnaryOp::GeluErf | UnaryOp::GeluTanh)),
    },
    Recognize {
        name: "recognize-rope",
        rules: rope::RULES,
        doubt: rope::doubt,
        is_raised: |op| matches!(op, Op::Rope { .. }),
    },
    Recognize {
        name: "recognize-attention",
        rules: attention::RULES,
        doubt: attention::doubt,
        is_raised: |op| matches!(op, Op::Attention(_)),
    },
];

impl Pass for Recognize {
    fn name(&self) -> &'static str {
        self.name
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        sweep(self.name, graph, ctx, self.rules)
    }
}

#[cfg(test)]
mod tests;
