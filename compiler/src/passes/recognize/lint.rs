//! The silent-zero alarm: recognisers that found what looks like their operation and raised none.

use super::{RECOGNIZERS, attention};
use crate::graph::{Graph, Tables, ValueId, verify};
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

/// Where operations look like one that is recognised, and the first condition that does not hold; probabilities of
/// attention that have another reader are left out, since [`left_attention`] tells them.
pub fn missed(graph: &Graph, tables: &Tables) -> Vec<(ValueId, String)> {
    let bounds = verify::size_bounds(tables);
    let site = Site { g: graph, tables, bounds: &bounds };
    let doubt = |v: ValueId| {
        let why = RECOGNIZERS.iter().find_map(|r| Some((r.name, (r.doubt)(&site, v)?)))?;
        (why.1 != attention::USED_ELSEWHERE).then(|| (v, format!("{}: {}", why.0, why.1)))
    };
    graph.order().into_iter().filter_map(doubt).collect()
}

/// A product of probabilities and values that is no attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftAttention {
    /// The probabilities.
    pub probabilities: ValueId,
    /// Their product with the values.
    pub product: ValueId,
    /// Whether it is one but that the probabilities have another reader.
    pub probabilities_used: bool,
}

/// What looks like attention in a graph after the passes, or is one and was not raised.
pub fn left_attention(graph: &Graph, tables: &Tables) -> Vec<LeftAttention> {
    let bounds = verify::size_bounds(tables);
    let site = Site { g: graph, tables, bounds: &bounds };
    let left = graph.order().into_iter().filter_map(|v| {
        let why = attention::left(&site, v)?;
        let probabilities = *graph.operands(v).first()?;
        let probabilities_used = why.as_deref() == Some(attention::USED_ELSEWHERE);
        Some(LeftAttention { probabilities, product: v, probabilities_used })
    });
    left.collect()
}
