//! Registers as a resource: what an invocation holds at once of a region's values.
//!
//! The sums of a tile stay until everything behind the product is computed; of the rest, a value stays until its last reader
//! is computed, and what is stored until all of it is.

use super::Partitioner;
use crate::fusion::legality::Refusal;
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::fusion::report::is_launch;
use crate::graph::ValueId;
use frit_kernels::target::Tier;
use std::collections::{HashMap, HashSet};

/// Registers of an invocation that a region may take, of 255 in PTX and of an assumed 128 elsewhere: four in five.
const fn most(tier: Tier) -> usize {
    match tier {
        Tier::Cuda => 204,
        Tier::Cpu | Tier::Gpu => 102,
    }
}

/// Results of one right side that an invocation adds up in a tile, and elements of both sides that it multiplies at once.
const SUMS: usize = 16;
const FRAGMENTS: usize = 8;

impl Partitioner<'_> {
    /// Whether region `id` with `v` in it keeps to the registers of an invocation:
    /// `sums + live values ≤ 0.8 · registers`.
    pub(super) fn holds(&self, id: usize, v: ValueId) -> Result<(), (Refusal, String)> {
        let region = &self.regions[id];
        let (sums, lanes) = match &region.anchor {
            RegionAnchor::MatMul(g) => match g.form {
                MatMulForm::Concat => (SUMS + FRAGMENTS, 1),
                MatMulForm::Paired => (2 * SUMS + FRAGMENTS, 1),
                MatMulForm::RotaryPairs { .. } => (2 * SUMS + FRAGMENTS, 2),
            },
            _ => (0, 1),
        };
        let limit = self.options.tiers.iter().map(|t| most(*t)).min().unwrap_or(most(Tier::Gpu));
        let count = region.prologue.len() + region.epilogue.len() + 1;
        if sums + lanes * count <= limit {
            return Ok(());
        }
        let anchors = region.anchors();
        let computed = region.prologue.iter().chain(&region.epilogue).chain([&v]).copied();
        let inside: HashSet<ValueId> = computed.filter(|m| is_launch(self.graph, *m) && !anchors.contains(m)).collect();
        let live = self.live_at_once(&inside);
        let taken = sums + lanes * live;
        match taken <= limit {
            true => Ok(()),
            false => Err((
                Refusal::Registers,
                format!("{taken} > {limit} registers: {live} values are held at once beside the sums of a tile"),
            )),
        }
    }
    /// The most values of `inside` that are held at once, computed operands first for one result after the other.
    fn live_at_once(&self, inside: &HashSet<ValueId>) -> usize {
        let position = |v: &ValueId| self.position.get(v).copied().unwrap_or(0);
        let is_result =
            |v: &ValueId| self.graph.is_output(*v) || !self.users(*v).iter().all(|u| self.leads(*u, inside));
        let mut results: Vec<ValueId> = inside.iter().copied().filter(is_result).collect();
        results.sort_by_key(position);
        let mut order: Vec<ValueId> = Vec::with_capacity(inside.len());
        let mut done: HashSet<ValueId> = HashSet::new();
        let mut stack: Vec<(ValueId, bool)> = results.iter().rev().map(|v| (*v, false)).collect();
        while let Some((v, computed)) = stack.pop() {
            if computed {
                order.extend(inside.contains(&v).then_some(v));
            } else if done.insert(v) && self.leads(v, inside) {
                stack.push((v, true));
                stack.extend(self.graph.operands(v).into_iter().rev().map(|o| (o, false)));
            }
        }
        let at: HashMap<ValueId, usize> = order.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let mut ends = vec![0usize; order.len() + 1];
        for v in &order {
            let last = self.users(*v).iter().filter_map(|u| at.get(u)).max();
            let end = if results.contains(v) { order.len() } else { last.copied().unwrap_or(order.len()) };
            ends[end] += 1;
        }
        let (mut live, mut most) = (0usize, 0);
        for gone in ends.iter().take(order.len()) {
            live = (live + 1).saturating_sub(*gone);
            most = most.max(live + *gone);
        }
        most
    }
    /// Whether `v` is inside, or a view or integer arithmetic on the way.
    fn leads(&self, v: ValueId, inside: &HashSet<ValueId>) -> bool {
        inside.contains(&v) || !is_launch(self.graph, v) && !self.graph.op(v).is_source()
    }
}
