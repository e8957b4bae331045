//! The silent-zero alarm: recognisers that found what looks like their operation and raised none.

use super::RECOGNIZERS;
use crate::graph::{Graph, Tables, verify};
use crate::passes::rewrite::Site;

/// A recogniser that left something of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintFinding {
    /// The recogniser's pass name.
    pub recognizer: &'static str,
    /// Operations of its kind in the graph; 0 is the silent zero.
    pub raised: usize,
    /// Places that look like one and are none.
    pub missed: usize,
    /// Origin of the first such place.
    pub origin: String,
    /// The first condition that does not hold there.
    pub condition: String,
}

/// What recognition left behind in a graph after the passes, one finding for each recogniser that left anything, in
/// the order in which they run.
pub fn lint(graph: &Graph, tables: &Tables) -> Vec<LintFinding> {
    let bounds = verify::size_bounds(tables);
    let site = Site { g: graph, tables, bounds: &bounds };
    let order = graph.order();
    let findings = RECOGNIZERS.iter().filter_map(|r| {
        let doubts = order.iter().filter_map(|v| Some((*v, (r.doubt)(&site, *v)?)));
        let doubts: Vec<_> = doubts.collect();
        let (first, condition) = doubts.first()?.clone();
        Some(LintFinding {
            recognizer: r.name,
            raised: order.iter().filter(|v| (r.is_raised)(graph.op(**v))).count(),
            missed: doubts.len(),
            origin: graph.node(first).origin.clone(),
            condition,
        })
    });
    findings.collect()
}
