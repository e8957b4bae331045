//! What stops the import of one node, and the report that is made of all such stops.

use super::external_data::short;
use crate::ingest::error::{Gap, Place};
use frit_kernels::dim::Dim;
use indexmap::IndexMap;

/// Something about sizes that has to hold for the model to make sense; the import starts again under it.
#[derive(Clone, Debug, PartialEq)]
pub enum Assumption {
    /// The size is this expression of other sizes.
    Equal(String, Dim),
    /// The sum, of which the size is a part, is at most this.
    AtMost(String, Dim, u64),
    /// The size is at least this.
    AtLeast(String, u64),
}

/// Why a node was not imported.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// It is not supported, or it contradicts itself.
    Gap {
        /// What is wrong, as a sentence about the node.
        problem: String,
        /// What to do.
        next: &'static str,
    },
    /// The import is to start again.
    Assume(Assumption),
    /// An operand was not imported; the reason is reported there.
    Poisoned,
}

/// The result of importing something.
pub type Res<T> = Result<T, Stop>;

/// A model that uses something unsupported should be exported otherwise.
pub const EXPORT: &str = "export the model without it";
/// A file that contradicts itself is to be made again.
pub const REPAIR: &str = "export the model again; the file contradicts itself";

/// A stop for something that is not supported.
pub fn unsupported<T>(problem: impl Into<String>) -> Res<T> {
    Err(Stop::Gap { problem: problem.into(), next: EXPORT })
}
/// A stop for something that no valid model has.
pub fn malformed<T>(problem: impl Into<String>) -> Res<T> {
    Err(Stop::Gap { problem: problem.into(), next: REPAIR })
}

/// Gaps of nodes, those of one kind together.
#[derive(Debug, Default)]
pub struct Report {
    nodes: IndexMap<(String, String, &'static str), Vec<String>>,
    others: Vec<Gap>,
}

impl Report {
    /// Adds a gap at a node: `op` with its domain, the node's name.
    pub fn node(&mut self, op: &str, node: &str, problem: &str, next: &'static str) {
        let key = (op.to_owned(), problem.to_owned(), next);
        self.nodes.entry(key).or_default().push(short(node));
    }
    /// Adds a gap elsewhere.
    pub fn other(&mut self, gap: Gap) {
        self.others.push(gap);
    }
    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.others.is_empty()
    }
    /// All gaps, those of nodes first.
    pub fn gaps(self) -> Vec<Gap> {
        const NAMED: usize = 3;
        let nodes = self.nodes.into_iter().map(|((op, problem, next), names)| {
            let shown: Vec<String> = names.iter().take(NAMED).map(|n| format!("`{n}`")).collect();
            let more = names.len().saturating_sub(NAMED);
            let times = match (names.len(), more) {
                (1, _) => format!("node {}", shown.join(", ")),
                (n, 0) => format!("{n} nodes, {}", shown.join(", ")),
                (n, more) => format!("{n} nodes, {} and {more} more", shown.join(", ")),
            };
            Gap { place: Place::File(format!("operator {op} ({times})")), problem, next_step: next.into() }
        });
        nodes.chain(self.others).collect()
    }
}
