//! Splits a graph into regions: anchors first, then horizontal merges, then what each anchor absorbs behind and in
//! front of itself, and pointwise regions for what is left.

mod bindings;
mod chain;
mod commute;
mod conditions;
mod conv_chain;
mod epilogue;
mod exact;
mod forward;
mod head_norms;
mod largest;
mod maps;
mod movement;
mod norm_pairs;
mod norms;
mod order;
mod registers;
mod search;
mod sibling_maps;
mod siblings;
mod windows;

use super::cost::MANY_ROWS;
use super::guards::guarded_selects;
use super::legality::Refusal;
use super::region::{Region, RegionAnchor};
use super::report::is_launch;
use super::spec_builder::size_bounds;
use super::{FusionOptions, Refused, RowStats, Within, buckets, is_named};
use crate::graph::{Graph, Op, Tables, ValueId, WeightId};
use frit_kernels::dim::{Bounds, Dim, Sym, product};
use frit_kernels::spec::FEW_ROWS;
use frit_plan::{ExactSearch, sizes};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Regions in launch order, and every edge that was considered and refused.
#[derive(Debug)]
pub struct Partition {
    /// Regions in launch order.
    pub regions: Vec<Region>,
    /// Values that lie in memory.
    pub stored: HashSet<ValueId>,
    /// Edges not fused.
    pub refused: Vec<Refused>,
    /// Decisions taken: a measure of work that no clock disturbs.
    pub work: u64,
    /// What an exhaustive search found beside it.
    pub exact: ExactSearch,
}

/// The windows of operations, and within each the regions that a search found.
type Groups = HashMap<ValueId, (usize, usize)>;

/// Statistics of rows that kernels write for norms, and whether these are commuted.
type Given = Rc<HashMap<ValueId, (RowStats, bool)>>;

/// What is looked at of a graph.
#[derive(Clone)]
struct Scope {
    launches: HashSet<ValueId>,
    given: Given,
}

#[derive(Clone)]
pub(super) struct Partitioner<'a> {
    graph: &'a Graph,
    tables: &'a Tables,
    options: &'a FusionOptions,
    bounds: Bounds,
    /// Expressions of sizes that are bounded from above.
    limits: &'a [(Dim, u64)],
    many_sequences: bool,
    order: Vec<ValueId>,
    position: Rc<HashMap<ValueId, usize>>,
    users: Rc<HashMap<ValueId, Vec<ValueId>>>,
    ancestors: Rc<Vec<Vec<u64>>>,
    /// Which places of the order hold anchors, as bits.
    anchor_bits: Rc<Vec<u64>>,
    /// The launches that may be fused, if not all, with the statistics of rows that other kernels write for their norms.
    scope: Option<Scope>,
    /// Operations that may share a region have one number here.
    groups: Option<Groups>,
    owner: HashMap<ValueId, usize>,
    regions: Vec<Region>,
    stored: HashSet<ValueId>,
    /// Pointwise values whose kernels write statistics of their rows.
    maps_that_forward: HashMap<ValueId, RowStats>,
    refused: Vec<Refused>,
    apart: HashSet<ValueId>,
    off: HashSet<ValueId>,
    /// For each edge that is switched off, the operations that its ends name.
    off_edges: Rc<Vec<[HashSet<ValueId>; 2]>>,
    fuel: Option<u64>,
    work: Cell<u64>,
    /// Selects that decide whether the launches in front of them are needed.
    guarded: HashSet<ValueId>,
}

/// Whether the operation is computed by reductions and so starts a region.
pub fn is_anchor(op: &Op) -> bool {
    matches!(op, Op::MatMul { .. } | Op::Reduce { .. } | Op::Softmax | Op::Norm { .. }) || op.attention().is_some()
}

impl<'a> Partitioner<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        tables: &'a Tables,
        within: &'a Within,
        options: &'a FusionOptions,
        apart: &HashSet<ValueId>,
    ) -> Self {
        let order = graph.order();
        let position: HashMap<_, _> = order.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let mut users: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
        let words = order.len().div_ceil(64);
        let mut ancestors = vec![vec![0u64; words]; order.len()];
        for (i, v) in order.iter().enumerate() {
            let mut own = vec![0u64; words];
            for o in graph.operands(*v) {
                let list = users.entry(o).or_default();
                if !list.contains(v) {
                    list.push(*v);
                }
                if let Some(p) = position.get(&o) {
                    own.iter_mut().zip(&ancestors[*p]).for_each(|(a, b)| *a |= b);
                    own[p / 64] |= 1 << (p % 64);
                }
            }
            ancestors[i] = own;
        }
        let mut anchor_bits = vec![0u64; words];
        for (i, _) in order.iter().enumerate().filter(|(_, v)| is_anchor(graph.op(**v))) {
            anchor_bits[i / 64] |= 1 << (i % 64);
        }
        let mut bounds = size_bounds(tables);
        for (name, max) in &within.at_most {
            bounds.set(Sym::Size(name.as_str().into()), 1, Some(Dim::from(*max)));
        }
        let named = |v: &ValueId| {
            let origin = &graph.node(*v).origin;
            options.no_fuse.iter().any(|part| origin.contains(part.as_str()))
        };
        let off = order.iter().copied().filter(named).collect();
        let all = |part: &String| order.iter().copied().filter(|v| is_named(graph, *v, part)).collect();
        let off_edges = options.off_edges.iter().map(|(from, to)| [all(from), all(to)]).collect();
        Partitioner {
            graph,
            tables,
            options,
            bounds,
            limits: &within.limits,
            many_sequences: within.many_sequences,
            order,
            position: Rc::new(position),
            users: Rc::new(users),
            ancestors: Rc::new(ancestors),
            anchor_bits: Rc::new(anchor_bits),
            scope: None,
            groups: None,
            owner: HashMap::new(),
            regions: Vec::new(),
            stored: HashSet::new(),
            maps_that_forward: HashMap::new(),
            refused: Vec::new(),
            apart: apart.clone(),
            off,
            off_edges: Rc::new(off_edges),
            fuel: options.fuel,
            work: Cell::new(0),
            guarded: guarded_selects(graph),
        }
    }

    /// The greedy partition, or one that an exhaustive search of the graph's windows finds cheaper.
    pub(super) fn run(self) -> Partition {
        let mut greedy = self.clone().divide();
        let fuses = self.options.fuse_epilogues || self.options.fuse_norms || self.options.merge_siblings;
        if !self.options.exact || !fuses || self.fuel.is_some() {
            return greedy;
        }
        let (exact, groups) = self.exact(&greedy);
        let mut found = match groups {
            Some(_) => Partitioner { groups, ..self }.divide(),
            None => {
                greedy.exact = exact;
                return greedy;
            }
        };
        found.work += greedy.work;
        found.exact = ExactSearch { taken: true, ..exact };
        found
    }
    /// One that fuses nothing but `launches` and what lies between them.
    fn alone(&self, launches: HashSet<ValueId>, given: Given) -> Self {
        let mut one = self.clone();
        one.order.retain(|v| launches.contains(v) || !is_launch(self.graph, *v));
        one.scope = Some(Scope { launches, given });
        one
    }
    fn divide(mut self) -> Partition {
        self.place_anchors();
        self.absorb_epilogues();
        self.absorb_norms();
        self.absorb_norm_pairs();
        self.absorb_chains();
        self.absorb_conv_chains();
        self.forward_largest();
        self.assign_maps();
        self.collect_outputs();
        self.mark_few_rows();
        self.launch_order();
        self.split_large_weights();
        let together: Vec<HashSet<ValueId>> = self.regions.iter().map(|r| r.members().into_iter().collect()).collect();
        self.refused.retain(|r| !together.iter().any(|m| m.contains(&r.from) && m.contains(&r.to)));
        self.refused.sort_by_key(|a| (a.from, a.to, a.code));
        self.refused.dedup_by(|a, b| (a.from, a.to) == (b.from, b.to));
        Partition {
            regions: self.regions,
            stored: self.stored,
            refused: self.refused,
            work: self.work.get(),
            exact: ExactSearch::default(),
        }
    }

    /// Notes which kernels have few rows. Attention has one by its shape.
    fn mark_few_rows(&mut self) {
        let tokens = buckets::rows(self.graph).is_some_and(|rows| self.few(&rows));
        for id in 0..self.regions.len() {
            self.regions[id].few_rows = match &self.regions[id].anchor {
                RegionAnchor::MatMul(g) => g.members.iter().all(|m| self.few(&self.rows(*m))),
                RegionAnchor::Attention(_) => false,
                _ => tokens,
            };
        }
    }

    fn users(&self, v: ValueId) -> &[ValueId] {
        self.users.get(&v).map_or(&[], Vec::as_slice)
    }
    fn depends(&self, v: ValueId, on: ValueId) -> bool {
        match (self.position.get(&v), self.position.get(&on)) {
            (Some(a), Some(b)) => self.ancestors[*a][b / 64] & (1 << (b % 64)) != 0,
            _ => false,
        }
    }
    /// Whether two operations may share a kernel as far as no property of theirs is concerned: neither is switched off,
    /// there is fuel, and no kernel with them was found wrong.
    fn permitted(&self, a: ValueId, b: ValueId) -> Result<(), (Refusal, String)> {
        self.work.set(self.work.get() + 1);
        if self.apart.contains(&a) || self.apart.contains(&b) {
            return Err((Refusal::Mismatch, "a kernel with both differed from its operations".into()));
        }
        if self.off.contains(&a) || self.off.contains(&b) {
            return Err((Refusal::User, "the operation is switched off by its origin".into()));
        }
        self.edge_allowed(a, b)?;
        let through = self.options.exact_through_views;
        let outside = |v: ValueId, s: &Scope| !s.launches.contains(&v) && (!through || is_launch(self.graph, v));
        if self.scope.as_ref().is_some_and(|s| outside(a, s) || outside(b, s)) {
            return Err((Refusal::User, "outside of what is looked at".into()));
        }
        if let Some(groups) = &self.groups
            && groups.get(&a).is_some_and(|g| groups.get(&b).is_some_and(|h| g.0 == h.0 && g.1 != h.1))
        {
            return Err((Refusal::Profit, "the cheapest regions of their window hold them apart".into()));
        }
        if self.fuel == Some(0) {
            return Err((Refusal::User, "the fusion fuel is spent".into()));
        }
        Ok(())
    }
    /// Whether no switch keeps two operations apart.
    fn edge_allowed(&self, a: ValueId, b: ValueId) -> Result<(), (Refusal, String)> {
        let off = |[from, to]: &&[HashSet<ValueId>; 2]| {
            let ends =
                |x: ValueId, y: ValueId| (from.contains(&x) || from.contains(&self.behind_views(x))) && to.contains(&y);
            ends(a, b) || ends(b, a)
        };
        match self.off_edges.iter().find(off) {
            Some(_) => Err((Refusal::User, "the edge is switched off".into())),
            None => Ok(()),
        }
    }
    /// Whether fusion `id` is on, at operations `a` and `b` too; `said`: that it is not.
    fn allowed(&self, id: &str, said: &str, a: ValueId, b: ValueId) -> Result<(), (Refusal, String)> {
        if !self.options.is_on(id) {
            return Err(self.options.refused_by_switch(id, said));
        }
        match [a, b].iter().find_map(|v| self.options.place_off(id, &self.graph.node(*v).origin)) {
            Some(part) => Err((Refusal::User, format!("{said} at {part}"))),
            None => Ok(()),
        }
    }
    /// Why fusion `id` is off, inside another refusal; the code in front where no user switched it off.
    fn told_off((code, said): (Refusal, String)) -> String {
        match code {
            Refusal::User => said,
            code => format!("{code}, {said}"),
        }
    }
    /// Takes note of an absorption.
    fn spend(&mut self) {
        self.fuel = self.fuel.map(|f| f.saturating_sub(1));
    }
    fn refuse(&mut self, from: ValueId, to: ValueId, code: Refusal, detail: String) {
        self.refused.push(Refused { from, to, code, detail });
    }
    fn rhs_weight(&self, m: ValueId) -> Option<WeightId> {
        let ops = self.graph.operands(m);
        match (self.graph.op(m), ops.get(1).map(|w| (self.graph.op(*w), self.graph.ty(*w).shape.len()))) {
            (Op::MatMul { b_transposed: true }, Some((Op::Weight(w), 2))) => Some(*w),
            _ => None,
        }
    }
    /// The largest number of rows that `rows` may be, where something bounds it.
    fn most(&self, rows: &Dim) -> Option<u64> {
        if let Some(n) = rows.as_const() {
            return u64::try_from(n).ok();
        }
        let limit = self.limits.iter().filter(|(sum, _)| self.bounds.le(rows, sum)).map(|(_, most)| *most).min();
        let proved = [1, 2, 4, 8, 16, 32, 64, 128, 256, MANY_ROWS];
        let bound = proved.into_iter().find(|n| self.bounds.le(rows, &Dim::from(*n)));
        limit.into_iter().chain(bound).min()
    }
    /// Whether no run of the program has more than few of them.
    fn at_most_few(&self, rows: &Dim) -> bool {
        self.most(rows).is_some_and(|m| m <= FEW_ROWS)
    }
    /// Whether products are scheduled for few of them: for sure, or because each sequence has a number of them that is
    /// fixed, and no other program is for few sequences.
    fn few(&self, rows: &Dim) -> bool {
        let of_sequences = || rows.symbols().iter().all(|s| matches!(s, Sym::Size(n) if **n == *sizes::BATCH));
        self.at_most_few(rows) || !self.many_sequences && rows.as_const().is_none() && of_sequences()
    }
    fn rows(&self, m: ValueId) -> Dim {
        let s = &self.graph.ty(m).shape;
        product(s.iter().take(s.len().saturating_sub(1)))
    }
}

/// The sizes that say how many tokens a run has; a matmul whose rows do not depend on them has few rows.
pub fn depends_on_tokens(d: &Dim) -> bool {
    d.mentions(&Sym::Size(sizes::TOKENS.into()))
}
