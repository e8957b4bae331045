//! Edges that programs for different numbers of rows decide differently.

use super::report::describe;
use super::{Refused, Region};
use crate::graph::{Graph, ValueId};
use frit_plan::{BucketDecision, Crossover};
use std::collections::{BTreeSet, HashMap, HashSet};

/// What was decided for a number of rows.
#[derive(Debug)]
pub struct Decided {
    /// The most rows; `None`: any number.
    most_rows: Option<u64>,
    regions: HashMap<ValueId, HashSet<usize>>,
    refused: HashMap<(ValueId, ValueId), (&'static str, String)>,
}

impl Decided {
    /// The decisions of a program.
    pub fn new<'r>(most_rows: Option<u64>, regions: impl Iterator<Item = &'r Region>, refused: &[Refused]) -> Self {
        let mut held: HashMap<ValueId, HashSet<usize>> = HashMap::new();
        for (i, r) in regions.enumerate() {
            r.members().into_iter().for_each(|v| _ = held.entry(v).or_default().insert(i));
        }
        let refused = refused.iter().map(|r| ((r.from, r.to), (r.code.code(), r.detail.clone()))).collect();
        Decided { most_rows, regions: held, refused }
    }
    fn fuses(&self, a: ValueId, b: ValueId) -> bool {
        match (self.regions.get(&a), self.regions.get(&b)) {
            (Some(a), Some(b)) => !a.is_disjoint(b),
            _ => false,
        }
    }
}

/// The edges that one of the programs fuses and another refuses, those between operations of the same kinds and with the
/// same decisions once. `programs` are of one graph.
pub fn crossovers(graph: &Graph, programs: &[Decided]) -> Vec<Crossover> {
    let edges: BTreeSet<(ValueId, ValueId)> = programs.iter().flat_map(|p| p.refused.keys().copied()).collect();
    let mut ordered: Vec<&Decided> = programs.iter().collect();
    ordered.sort_by_key(|p| p.most_rows.unwrap_or(u64::MAX));
    let mut out: Vec<Crossover> = Vec::new();
    let mut known: HashMap<(String, String, String), usize> = HashMap::new();
    for (from, to) in edges {
        let decision = |p: &&Decided| {
            let fused = p.fuses(from, to);
            let (code, detail) = p.refused.get(&(from, to)).filter(|_| !fused).cloned().unwrap_or_default();
            BucketDecision { most_rows: p.most_rows, fused, code: code.into(), detail }
        };
        let decisions: Vec<BucketDecision> = ordered.iter().map(decision).collect();
        let differs = decisions.iter().any(|d| d.fused) && decisions.iter().any(|d| !d.code.is_empty());
        if !differs {
            continue;
        }
        let kind = (graph.op(from).name(), graph.op(to).name(), format!("{decisions:?}"));
        let at = *known.entry(kind).or_insert(out.len());
        match out.get_mut(at) {
            Some(c) => c.times += 1,
            None => {
                out.push(Crossover { from: describe(graph, from), to: describe(graph, to), times: 1, decisions });
            }
        }
    }
    out
}
