//! Launches that may be left out. A value that is read through the true side of selects of one condition alone is not
//! needed where that condition holds nowhere; conditions that a run can ask about are the outputs named
//! [`frit_plan::RAN`].

use super::outline::Built;
use crate::graph::{Graph, Op, ValueId};
use frit_kernels::spec::{BinaryOp, UnaryOp};
use frit_plan::RAN;
use std::collections::{HashMap, HashSet};

/// A truth value: what it is made of, and whether that is negated.
type Truth = (ValueId, bool);

/// The conditions of a graph, and the output that tells each.
fn conditions(graph: &Graph) -> Vec<(Truth, ValueId)> {
    let outputs = graph.outputs.iter().filter(|o| o.name.starts_with(RAN));
    outputs.map(|o| (root(graph, o.value), o.value)).collect()
}

/// The value behind negations, conversions, and views that keep every element.
fn root(graph: &Graph, mut v: ValueId) -> Truth {
    let mut negated = false;
    loop {
        match graph.op(v) {
            Op::Unary(UnaryOp::Not) => negated = !negated,
            Op::Cast(_) | Op::Reshape(_) | Op::Broadcast(_) | Op::Transpose(_) => {}
            _ => return (v, negated),
        }
        match graph.operands(v).first() {
            Some(o) => v = *o,
            None => return (v, negated),
        }
    }
}

/// The selects whose condition a run can ask about. They stay out of the kernels that make their operands, so that
/// these can be left out.
pub fn guarded_selects(graph: &Graph) -> HashSet<ValueId> {
    let roots: HashSet<ValueId> = conditions(graph).into_iter().map(|(c, _)| c.0).collect();
    if roots.is_empty() {
        return HashSet::new();
    }
    let guarded = |v: &ValueId| {
        let condition = graph.operands(*v).first().copied();
        matches!(graph.op(*v), Op::Select) && condition.is_some_and(|c| roots.contains(&root(graph, c).0))
    };
    graph.values().filter(guarded).collect()
}

/// For each launch the value that is 0 everywhere when it may be left out. `order` is the graph's own order.
///
/// `select(c, t, f) == f` and `c ∧ t == c` where c is false: what only `t` needs is not needed.
pub fn guards(graph: &Graph, built: &[Built]) -> Vec<Option<ValueId>> {
    let mut out = vec![None; built.len()];
    let conditions = conditions(graph);
    if conditions.is_empty() {
        return out;
    }
    let made: HashMap<ValueId, usize> =
        built.iter().enumerate().flat_map(|(i, b)| b.region.outputs.iter().map(move |v| (*v, i))).collect();
    let order = graph.order();
    for (condition, told) in conditions {
        let Some(known) = made.get(&told) else { continue };
        let unneeded = only_where(graph, &order, condition);
        for (at, b) in built.iter().enumerate().skip(known + 1) {
            let outputs = &b.region.outputs;
            if !outputs.is_empty() && outputs.iter().all(|v| unneeded.contains(v)) {
                // The last condition is the narrowest: a part of a layer inside the layer.
                if let Some(slot) = out.get_mut(at) {
                    *slot = Some(told);
                }
            }
        }
    }
    out
}

/// The values that nothing needs where `condition` is false.
fn only_where(graph: &Graph, order: &[ValueId], condition: Truth) -> HashSet<ValueId> {
    let mut out: HashSet<ValueId> = HashSet::new();
    for v in order.iter().rev() {
        let op = graph.op(*v);
        if op.is_source() || op.has_effect() || graph.is_output(*v) {
            continue;
        }
        let users = graph.users(*v);
        let spared = |u: &ValueId| {
            if out.contains(u) {
                return true;
            }
            let opposite = (condition.0, !condition.1);
            let is = |o: &ValueId, truth: Truth| o != v && root(graph, *o) == truth;
            match (graph.op(*u), graph.operands(*u).as_slice()) {
                (Op::Select, [c, t, f]) if is(c, condition) => t == v && f != v,
                (Op::Select, [c, t, f]) if is(c, opposite) => f == v && t != v,
                (Op::Binary(BinaryOp::And), [a, b]) => is(a, condition) || is(b, condition),
                _ => false,
            }
        };
        if !users.is_empty() && users.iter().all(spared) {
            out.insert(*v);
        }
    }
    out
}
