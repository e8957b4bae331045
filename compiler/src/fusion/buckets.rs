//! Programs for few rows. What pays depends on the number of rows, so a program that takes any number of them is divided
//! again for at most 64, 8 and 1. Where that changes nothing, the program for more rows serves.

use super::{FusionOptions, Partition, Within, partition};
use crate::graph::{Graph, Op, Tables, ValueId};
use frit_kernels::dim::{Dim, product};
use std::collections::{BTreeMap, HashSet};

/// Largest numbers of rows of the buckets, the last one being what is left: {1, 2–8, 9–64, >64}.
pub const AT_MOST: [u64; 3] = [64, 8, 1];

/// The rows that most products of the graph with a weight have; `None` where none has a dynamic number of rows.
pub fn rows(graph: &Graph) -> Option<Dim> {
    let mut count: BTreeMap<String, (usize, Dim)> = BTreeMap::new();
    for v in graph.values() {
        let right = graph.operands(v).get(1).map(|w| graph.op(*w));
        if let (Op::MatMul { .. }, Some(Op::Weight(_))) = (graph.op(v), right) {
            let shape = &graph.ty(v).shape;
            let rows = product(shape.iter().take(shape.len().saturating_sub(1)));
            if rows.as_const().is_none() {
                count.entry(rows.to_string()).or_insert((0, rows)).0 += 1;
            }
        }
    }
    count.into_values().max_by_key(|(n, _)| *n).map(|(_, rows)| rows)
}

/// The buckets in which the graph is divided otherwise than for more rows, the largest first: the most rows of each, and
/// what that says of its runs; and how many operations were decided on to find out. `graph` may be the short graph that
/// stands for a deep one.
pub fn differing(
    graph: &Graph,
    tables: &Tables,
    within: &Within,
    options: &FusionOptions,
    apart: &HashSet<ValueId>,
) -> (Vec<(u64, Within)>, u64) {
    let Some(rows) = rows(graph) else { return (Vec::new(), 0) };
    let divide = |w: &Within| -> Partition { partition(graph, tables, w, options, apart) };
    let whole = divide(within);
    let (mut work, mut more) = (whole.work, whole.regions);
    let mut out = Vec::new();
    for most in AT_MOST {
        let narrow = Within {
            at_most: within.at_most.clone(),
            limits: within.limits.iter().cloned().chain([(rows.clone(), most)]).collect(),
        };
        let part = divide(&narrow);
        work += part.work;
        if part.regions != more {
            out.push((most, narrow));
        }
        more = part.regions;
    }
    (out, work)
}
