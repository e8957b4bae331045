//! Programs for few rows. What pays depends on the number of rows, so a program that takes any number of them is divided
//! again for at most 64, 8 and 1. Where that changes nothing, the program for more rows serves; so it does where only the
//! schedule of products changes, unless one size alone counts rows, as of a batch: a text or an image of one row is rare, and
//! a token by itself is what decoding is for.

use super::region::Region;
use super::{FusionOptions, Partition, Within, partition};
use crate::graph::{Graph, Op, Tables};
use frit_kernels::dim::{Dim, product};
use frit_kernels::spec::FEW_ROWS;
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

/// A number of rows for which the graph is divided otherwise than for more.
#[derive(Debug)]
pub struct Bucket {
    /// The most rows.
    pub most: u64,
    /// What that says of its runs.
    pub within: Within,
    /// How the graph is divided.
    pub partition: Partition,
}

/// How a graph is divided for the numbers of rows that runs have.
#[derive(Debug)]
pub struct Buckets {
    /// For any number.
    pub whole: Partition,
    /// For few, where that differs, the largest first.
    pub few: Vec<Bucket>,
    /// Operations that were decided on in vain.
    pub work: u64,
}

/// Divides a graph for any number of rows and for few. `graph` may be the short graph that stands for a deep one.
pub fn divide(graph: &Graph, tables: &Tables, within: &Within, options: &FusionOptions) -> Buckets {
    let divide = |w: &Within| -> Partition { partition(graph, tables, w, options, &HashSet::new()) };
    let whole = divide(within);
    let Some(rows) = rows(graph) else { return Buckets { whole, few: Vec::new(), work: 0 } };
    let (mut few, mut work): (Vec<Bucket>, u64) = (Vec::new(), 0);
    let attends = graph.values().any(|v| graph.op(v).attention().is_some());
    let counts_rows = rows.as_size().is_some() && !attends;
    // Few sequences have a program of their own.
    for most in AT_MOST.into_iter().filter(|most| !within.many_sequences || *most > FEW_ROWS) {
        let narrow = Within {
            at_most: within.at_most.clone(),
            limits: within.limits.iter().cloned().chain([(rows.clone(), most)]).collect(),
            many_sequences: within.many_sequences,
        };
        let partition = divide(&narrow);
        let more = few.last().map_or(&whole.regions, |b| &b.partition.regions);
        let same = |a: &Region, b: &Region| match counts_rows {
            true => a == b,
            false => Region { few_rows: b.few_rows, ..a.clone() } == *b,
        };
        let is_new =
            more.len() != partition.regions.len() || more.iter().zip(&partition.regions).any(|(a, b)| !same(a, b));
        if !is_new {
            work += partition.work;
        } else {
            few.push(Bucket { most, within: narrow, partition });
        }
    }
    Buckets { whole, few, work }
}
