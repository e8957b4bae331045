//! Splits a graph into regions: anchors first, then horizontal merges, then what each anchor absorbs behind and in
//! front of itself, and pointwise regions for what is left.

use super::legality::Refusal;
use super::region::{MatMulForm, MatMulGroup, Region, RegionAnchor};
use super::spec_builder::size_bounds;
use super::{FusionOptions, Refused};
use crate::graph::{Graph, Op, RopeStyle, Tables, ValueId, WeightId};
use frit_kernels::dim::{Bounds, Dim, Sym, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::templates::has_few_rows;
use frit_plan::sizes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Regions in launch order, and every edge that was considered and refused.
#[derive(Debug)]
pub struct Partition {
    /// Regions in launch order.
    pub regions: Vec<Region>,
    /// Values that lie in memory.
    pub stored: HashSet<ValueId>,
    /// Edges not fused.
    pub refused: Vec<Refused>,
}

/// Largest number of rows for which a norm is computed inside the matmul that reads it.
const NORM_PROLOGUE_ROWS: i64 = 4;

pub(super) struct Partitioner<'a> {
    graph: &'a Graph,
    tables: &'a Tables,
    options: &'a FusionOptions,
    bounds: Bounds,
    order: Vec<ValueId>,
    position: HashMap<ValueId, usize>,
    users: HashMap<ValueId, Vec<ValueId>>,
    ancestors: Vec<Vec<u64>>,
    owner: HashMap<ValueId, usize>,
    regions: Vec<Region>,
    stored: HashSet<ValueId>,
    refused: Vec<Refused>,
}

/// Whether the operation is computed by reductions and so starts a region.
pub fn is_anchor(op: &Op) -> bool {
    matches!(op, Op::MatMul { .. } | Op::Reduce { .. } | Op::Softmax | Op::Norm { .. } | Op::Attention(_))
}

impl<'a> Partitioner<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        tables: &'a Tables,
        at_most: &[(String, u64)],
        options: &'a FusionOptions,
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
        let mut bounds = size_bounds(tables);
        for (name, max) in at_most {
            bounds.set(Sym::Size(name.as_str().into()), 1, Some(Dim::from(*max)));
        }
        Partitioner {
            graph,
            tables,
            options,
            bounds,
            order,
            position,
            users,
            ancestors,
            owner: HashMap::new(),
            regions: Vec::new(),
            stored: HashSet::new(),
            refused: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Partition {
        self.place_anchors();
        self.absorb_epilogues();
        self.absorb_norms();
        self.assign_maps();
        self.collect_outputs();
        self.launch_order();
        self.split_large_weights();
        let together: Vec<HashSet<ValueId>> = self.regions.iter().map(|r| r.members().into_iter().collect()).collect();
        self.refused.retain(|r| !together.iter().any(|m| m.contains(&r.from) && m.contains(&r.to)));
        self.refused.sort_by_key(|a| (a.from, a.to, a.code));
        self.refused.dedup_by(|a, b| (a.from, a.to) == (b.from, b.to));
        Partition { regions: self.regions, stored: self.stored, refused: self.refused }
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
    fn refuse(&mut self, from: ValueId, to: ValueId, code: Refusal, detail: String) {
        self.refused.push(Refused { from, to, code, detail });
    }
    fn rhs_weight(&self, m: ValueId) -> Option<WeightId> {
        let ops = self.graph.operands(m);
        match (self.graph.op(m), ops.get(1).map(|w| self.graph.op(*w))) {
            (Op::MatMul { b_transposed: true }, Some(Op::Weight(w))) => Some(*w),
            _ => None,
        }
    }
    fn rows(&self, m: ValueId) -> Dim {
        let s = &self.graph.ty(m).shape;
        product(s.iter().take(s.len().saturating_sub(1)))
    }

    /// One region an anchor; matmuls with the same left side and compatible weights share one (fusion of siblings).
    fn place_anchors(&mut self) {
        let mut siblings: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
        for v in self.order.clone() {
            if matches!(self.graph.op(v), Op::MatMul { .. }) && self.rhs_weight(v).is_some() {
                let lhs = self.graph.operands(v).first().copied().unwrap_or(v);
                siblings.entry(lhs).or_default().push(v);
            }
        }
        let mut grouped: HashSet<ValueId> = HashSet::new();
        for v in self.order.clone() {
            if !is_anchor(self.graph.op(v)) || grouped.contains(&v) {
                continue;
            }
            let anchor = match self.graph.op(v) {
                Op::MatMul { .. } => {
                    let lhs = self.graph.operands(v).first().copied().unwrap_or(v);
                    let all = siblings.get(&lhs).cloned().unwrap_or_default();
                    let group = if all.contains(&v) { self.merge(v, &all, &grouped) } else { vec![v] };
                    let form = self.form(&group);
                    grouped.extend(&group);
                    RegionAnchor::MatMul(MatMulGroup { members: group, form, norm: None })
                }
                Op::Attention(_) => RegionAnchor::Attention(v),
                _ => RegionAnchor::Row(v),
            };
            let id = self.regions.len();
            let region = Region::new(anchor);
            for a in region.anchors() {
                self.owner.insert(a, id);
            }
            self.regions.push(region);
        }
    }
    /// Members of `all` that run with `first` as one matmul.
    fn merge(&mut self, first: ValueId, all: &[ValueId], taken: &HashSet<ValueId>) -> Vec<ValueId> {
        let mut group = vec![first];
        let info = |p: &Self, v: ValueId| p.rhs_weight(v).and_then(|w| p.tables.weight_info(w).cloned());
        let Some(base) = info(self, first) else { return group };
        let partner = self.partner(first, all);
        for v in all {
            if *v == first || taken.contains(v) {
                continue;
            }
            if partner.map_or_else(|| self.partner(*v, all).is_some(), |p| p != *v) {
                self.refuse(first, *v, Refusal::Map, "one of them meets another in every column".into());
                continue;
            }
            let Some(w) = info(self, *v) else { continue };
            let same = w.storage == base.storage && w.shape.get(1) == base.shape.get(1);
            let apart = group.iter().all(|g| !self.depends(*v, *g) && !self.depends(*g, *v));
            let distinct = group.iter().all(|g| self.rhs_weight(*g) != self.rhs_weight(*v));
            if !self.options.merge_siblings {
                self.refuse(first, *v, Refusal::User, "merging of sibling matmuls is switched off".into());
            } else if !same {
                let detail = format!("stored as {} and {}", base.storage, w.storage);
                self.refuse(first, *v, Refusal::Dtype, detail);
            } else if !apart || !distinct {
                self.refuse(first, *v, Refusal::Cycle, "one feeds the other, or both use one weight".into());
            } else {
                group.push(*v);
            }
        }
        let bytes = |v: &ValueId| {
            let w = info(self, *v)?;
            let elems = product(&w.shape).as_const()?;
            w.storage.size_bytes(elems as u64)
        };
        let total: u64 = group.iter().filter_map(bytes).sum();
        if total > self.options.limit_binding_bytes {
            let rest: Vec<ValueId> = group.drain(1..).collect();
            for v in rest {
                let limit = self.options.limit_binding_bytes;
                self.refuse(first, v, Refusal::Dispatch, format!("{total} bytes packed, {limit} a binding"));
            }
        }
        group
    }
    /// The matmul of `all` whose columns meet those of `v` one by one, as those of gate and up do: such two share a
    /// region of their own.
    fn partner(&self, v: ValueId, all: &[ValueId]) -> Option<ValueId> {
        let meets = |o: &ValueId| *o != v && self.graph.ty(*o) == self.graph.ty(v) && self.meet(v, *o);
        all.iter().copied().find(meets).filter(|_| self.options.fuse_epilogues)
    }
    /// How the group's columns map to accumulators: rotary pairs if a rotary embedding follows any member, gate and up
    /// if two members meet in one product, else one accumulator.
    fn form(&self, group: &[ValueId]) -> MatMulForm {
        let ropes: Vec<(RopeStyle, u64, Dim)> = group.iter().filter_map(|m| self.rope_behind(*m)).collect();
        if let Some((style, rotary, head)) = ropes.first()
            && let Some(hd) = head.as_const().and_then(|h| u64::try_from(h).ok())
        {
            let whole = *rotary == hd || *style == RopeStyle::Interleaved;
            let heads = group
                .iter()
                .all(|m| self.graph.ty(*m).last().as_const().is_some_and(|n| (n as u64).is_multiple_of(hd)));
            let alike = ropes.iter().all(|r| r.0 == *style && r.2 == *head);
            let rows = group.iter().all(|m| self.reads_weight_rows(*m));
            let allowed = self.options.fuse_epilogues && self.options.fuse_rope;
            if whole && heads && alike && rows && hd % 2 == 0 && allowed {
                return MatMulForm::RotaryPairs { style: *style, head_dim: hd };
            }
        }
        if let [a, b] = group
            && self.graph.ty(*a) == self.graph.ty(*b)
            && self.meet(*a, *b)
            && self.options.fuse_epilogues
        {
            return MatMulForm::Paired;
        }
        MatMulForm::Concat
    }
    /// Whether the right side is a weight `[N, K]`, whose rows an invocation may pick freely.
    fn reads_weight_rows(&self, m: ValueId) -> bool {
        let right = self.graph.operands(m).get(1).map(|w| self.graph.op(*w));
        let rows = matches!(self.graph.op(m), Op::MatMul { b_transposed: true });
        rows && matches!(right, Some(Op::Weight(_)))
    }
    fn only_user(&self, v: ValueId) -> Option<ValueId> {
        match (self.users(v), self.graph.is_output(v)) {
            ([u], false) => Some(*u),
            _ => None,
        }
    }
    fn rope_behind(&self, m: ValueId) -> Option<(RopeStyle, u64, Dim)> {
        let mut v = m;
        for _ in 0..6 {
            v = self.only_user(v)?;
            match self.graph.op(v) {
                Op::Rope { style, rotary_dim } => return Some((*style, *rotary_dim, self.graph.ty(v).last())),
                Op::Binary(_) | Op::Unary(_) | Op::Reshape(_) | Op::Transpose(_) => {}
                _ => return None,
            }
        }
        None
    }
    fn meet(&self, a: ValueId, b: ValueId) -> bool {
        let chain = |m: ValueId| {
            let (mut v, mut seen) = (m, Vec::new());
            for _ in 0..8 {
                let users = self.users(v).to_vec();
                let next: BTreeSet<ValueId> = users.into_iter().collect();
                seen.extend(&next);
                match next.first() {
                    Some(u) if self.is_map(*u) => v = *u,
                    _ => break,
                }
            }
            seen
        };
        let (ca, cb) = (chain(a), chain(b));
        ca.iter().any(|x| cb.contains(x) && matches!(self.graph.op(*x), Op::Binary(_)))
    }
    fn is_map(&self, v: ValueId) -> bool {
        let op = self.graph.op(v);
        !is_anchor(op) && !op.is_source() && !matches!(op, Op::KvAppend { .. } | Op::KvRead { .. } | Op::Control(_))
    }

    /// Grows every anchor's consumer side in graph order.
    fn absorb_epilogues(&mut self) {
        for id in 0..self.regions.len() {
            if !self.options.fuse_epilogues {
                continue;
            }
            let starts = match &self.regions[id].anchor {
                RegionAnchor::MatMul(g) => g.members.clone(),
                RegionAnchor::Row(v) | RegionAnchor::Attention(v) => vec![*v],
                RegionAnchor::Map => continue,
            };
            let mut inside: BTreeSet<(usize, ValueId)> =
                starts.iter().filter_map(|v| self.position.get(v).map(|p| (*p, *v))).collect();
            let mut done: HashSet<ValueId> = HashSet::new();
            while let Some((_, v)) = inside.iter().find(|(_, v)| !done.contains(v)).copied() {
                done.insert(v);
                let members: HashSet<ValueId> = inside.iter().map(|(_, v)| *v).collect();
                let users: Vec<ValueId> = self.users(v).to_vec();
                let mut found: Vec<(ValueId, Result<(), (Refusal, String)>)> = Vec::new();
                for u in users {
                    if !members.contains(&u) {
                        found.push((u, self.absorbs(id, &members, v, u)));
                    }
                }
                let all = found.iter().all(|(_, r)| r.is_ok());
                for (u, r) in found {
                    match r {
                        Ok(()) if all || !self.graph.op(u).is_view() => {
                            if let Some(p) = self.position.get(&u) {
                                inside.insert((*p, u));
                                self.owner.insert(u, id);
                                self.regions[id].epilogue.push(u);
                            }
                        }
                        Ok(()) => {}
                        Err((code, detail)) if !self.graph.op(u).is_view() => self.refuse(v, u, code, detail),
                        Err(_) => {}
                    }
                }
            }
        }
    }
    /// Whether region `id` may compute `u`, a user of its member `v`, in the same invocation.
    fn absorbs(&self, id: usize, members: &HashSet<ValueId>, v: ValueId, u: ValueId) -> Result<(), (Refusal, String)> {
        let g = self.graph;
        let op = g.op(u);
        if let Some(o) = self.owner.get(&u) {
            return match op {
                _ if *o == id => Ok(()),
                Op::Norm { .. } | Op::Softmax | Op::Reduce { .. } => {
                    let n = g.ty(u).last();
                    Err((Refusal::RowTile, format!("a tile of columns does not own rows of {n}")))
                }
                Op::MatMul { .. } => {
                    Err((Refusal::Profit, "a chain of two matmuls re-reads its weights for every row tile".into()))
                }
                Op::Attention(_) => Err((Refusal::Grid, "attention reads keys of every position".into())),
                _ => Err((Refusal::Dup, "computed in another region already".into())),
            };
        }
        let shape_in = &g.ty(v).shape;
        match op {
            Op::Unary(_) | Op::Cast(_) => {}
            Op::Binary(_) | Op::Select => {
                if g.ty(u).shape != *shape_in {
                    return Err((Refusal::Map, format!("{} is read once for several results {}", g.ty(v), g.ty(u))));
                }
                let here = self.place(id, members, v);
                let inside = g.operands(u).into_iter().filter(|o| members.contains(o));
                if let Some(o) = inside.into_iter().find(|o| self.place(id, members, *o) != here) {
                    let detail = format!("{} holds other elements of the tile than {}", g.op(o).name(), g.op(v).name());
                    return Err((Refusal::Map, detail));
                }
            }
            Op::Reshape(_) | Op::Transpose(_) => {}
            Op::Slice { axis, start, .. } => {
                let last = *axis + 1 == shape_in.len();
                let region = &self.regions[id];
                let concat = matches!(&region.anchor, RegionAnchor::MatMul(m) if m.form == MatMulForm::Concat && m.members == [v])
                    || region.epilogue.contains(&v)
                        && matches!(&region.anchor, RegionAnchor::MatMul(m) if m.form == MatMulForm::Concat && m.members.len() == 1 && g.ty(v).shape == g.ty(m.members[0]).shape);
                if !last || !concat || start.as_const().is_none() {
                    return Err((Refusal::Map, "only a range of columns is used".into()));
                }
            }
            Op::Rope { style, rotary_dim } => {
                let region = &self.regions[id];
                let operand = g.operands(u).first() == Some(&v);
                let pairs = matches!(&region.anchor, RegionAnchor::MatMul(m)
                    if matches!(m.form, MatMulForm::RotaryPairs { style: s, head_dim } if s == *style && (*rotary_dim == head_dim || s == RopeStyle::Interleaved)));
                if !operand || !pairs {
                    return Err((Refusal::Map, format!("pairs of {rotary_dim} elements are not in one invocation")));
                }
            }
            Op::KvAppend { .. } => {
                if matches!(self.regions[id].anchor, RegionAnchor::Attention(_)) {
                    return Err((Refusal::Effect, "a cache write behind the attention that reads it".into()));
                }
            }
            _ => return Err((Refusal::Map, format!("{} does not walk the producer's tile", op.name()))),
        }
        let frame = self.frame(id, members, v);
        if g.operands(u).iter().any(|o| members.contains(o) && self.frame(id, members, *o) != frame) {
            return Err((Refusal::Map, "its operands are different elements of the producer's tile".into()));
        }
        let position = |x: &ValueId| self.position.get(x).copied().unwrap_or(0);
        for o in g.operands(u) {
            if o == v || members.contains(&o) {
                continue;
            }
            if let Some(m) = members.iter().filter(|m| self.depends(o, **m)).min_by_key(|m| position(m)) {
                let detail = format!("operand {} depends on {}", g.op(o).name(), g.op(*m).name());
                return Err((Refusal::Cycle, detail));
            }
            if self.reaches(o, id) {
                return Err((Refusal::Cycle, format!("operand {} waits for this region", g.op(o).name())));
            }
        }
        Ok(())
    }
    /// Whether region `target` needs what `u` computes, or computes it itself.
    fn before(&self, target: usize, u: ValueId) -> bool {
        if self.owner.get(&u) == Some(&target) {
            return true;
        }
        let inputs: Vec<ValueId> =
            self.regions[target].members().iter().flat_map(|m| self.graph.operands(*m)).collect();
        match self.owner.get(&u) {
            Some(r) => inputs.iter().any(|i| self.reaches(*i, *r)),
            None => inputs.iter().any(|i| *i == u || self.depends(*i, u)),
        }
    }
    /// Whether computing norm `v` in every column tile of region `target` costs less than it saves; the numbers if not.
    ///
    /// Each tile reads its rows once more, out of the cache that its own product fills with them next:
    /// `(tiles − 1)·(1 − ρ)` of the rows' bytes, against the write and the read of a kernel of its own (the read alone if
    /// the normalised rows are wanted elsewhere).
    fn recompute(&self, v: ValueId, target: usize, kept: bool) -> Result<(), String> {
        const CACHE_MISSES: f64 = 0.02;
        let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { return Err("no matmul".into()) };
        let rows = self.rows(v);
        if self.bounds.le(&rows, &Dim::constant(NORM_PROLOGUE_ROWS)) {
            return Ok(());
        }
        let tile = match (has_few_rows(&rows), &g.form) {
            (true, _) => 8,
            (false, MatMulForm::RotaryPairs { .. }) => 128,
            (false, _) => 64,
        };
        let widths = g.members.iter().map(|m| self.graph.ty(*m).last());
        let n = match g.form {
            MatMulForm::Paired => widths.fold(Dim::zero(), |s, w| s.larger(&w)),
            _ => widths.fold(Dim::zero(), |s, w| s + w),
        };
        let tiles = n.as_const().map_or(f64::INFINITY, |n| (n as f64 / f64::from(tile)).ceil());
        let (cost, saved) = ((tiles - 1.0) * CACHE_MISSES, if kept { 1.0 } else { 2.0 });
        if cost <= saved {
            return Ok(());
        }
        Err(format!(
            "{rows} rows > {NORM_PROLOGUE_ROWS}: {tiles} column tiles would read them again, {cost:.2} times their bytes from \
             memory; a kernel of its own costs {saved:.0}"
        ))
    }
    /// Which elements of region `id`'s tile a member holds: its anchor and the views on the way from there. Two members
    /// have the same element in one invocation iff these are equal.
    fn frame(&self, id: usize, members: &HashSet<ValueId>, v: ValueId) -> (ValueId, Vec<&Op>) {
        let (mut at, mut views) = (v, Vec::new());
        let anchors = self.regions[id].anchors();
        while !anchors.contains(&at) {
            let Some(o) = self.graph.operands(at).into_iter().find(|o| members.contains(o)) else { break };
            if self.graph.op(at).is_view() {
                views.push(self.graph.op(at));
            }
            at = o;
        }
        match &self.regions[id].anchor {
            RegionAnchor::MatMul(m) if m.form == MatMulForm::Paired && m.members.contains(&at) => {
                (m.members.first().copied().unwrap_or(at), views)
            }
            _ => (at, views),
        }
    }
    /// Which elements of region `id` an invocation holds of its member `v`: the anchor they come from, and the views on
    /// the way. The two sides of a paired matmul are held together.
    fn place(&self, id: usize, members: &HashSet<ValueId>, v: ValueId) -> (ValueId, Vec<&Op>) {
        let anchors = self.regions[id].anchors();
        let paired = matches!(&self.regions[id].anchor, RegionAnchor::MatMul(m) if m.form == MatMulForm::Paired);
        let (mut v, mut views) = (v, Vec::new());
        while !anchors.contains(&v) {
            let op = self.graph.op(v);
            if op.is_view() {
                views.push(op);
            }
            match self.graph.operands(v).into_iter().find(|o| members.contains(o)) {
                Some(o) => v = o,
                None => break,
            }
        }
        (if paired { anchors.first().copied().unwrap_or(v) } else { v }, views)
    }
    /// Whether `o` waits, through whole regions, for region `id`.
    fn reaches(&self, o: ValueId, id: usize) -> bool {
        let mut seen_values: HashSet<ValueId> = HashSet::new();
        let mut seen_regions: HashSet<usize> = HashSet::new();
        let mut stack = vec![o];
        while let Some(v) = stack.pop() {
            if !seen_values.insert(v) {
                continue;
            }
            match self.owner.get(&v) {
                Some(r) if *r == id => return true,
                Some(r) => {
                    if seen_regions.insert(*r) {
                        stack.extend(self.regions[*r].members().iter().flat_map(|m| self.graph.operands(*m)));
                    }
                }
                None => stack.extend(self.graph.operands(v)),
            }
        }
        false
    }

    /// Computes a norm inside the matmul that reads it, where the repeated statistics cost less than a kernel of its own.
    /// Other readers get the normalised rows from that matmul, if they come after it.
    fn absorb_norms(&mut self) {
        for id in 0..self.regions.len() {
            let RegionAnchor::Row(v) = self.regions[id].anchor.clone() else { continue };
            if !matches!(self.graph.op(v), Op::Norm { .. }) || !self.regions[id].epilogue.is_empty() {
                continue;
            }
            let users = self.users(v).to_vec();
            let (matmuls, others): (Vec<ValueId>, Vec<ValueId>) = users.iter().copied().partition(|u| {
                matches!(self.graph.op(*u), Op::MatMul { .. })
                    && self.graph.operands(*u).first() == Some(&v)
                    && self.rhs_weight(*u).is_some()
            });
            let owners: BTreeSet<usize> = matmuls.iter().filter_map(|u| self.owner.get(u).copied()).collect();
            let (Some(target), Some(first)) = (owners.first().copied(), matmuls.first().copied()) else { continue };
            if owners.len() > 1 {
                for u in matmuls {
                    self.refuse(v, u, Refusal::Dup, format!("{} regions read the normalised rows", owners.len()));
                }
                continue;
            }
            if !self.options.fuse_norms {
                self.refuse(v, first, Refusal::User, "norm prologues are switched off".into());
                continue;
            }
            let kept = !others.is_empty() || self.graph.is_output(v);
            if let Some(early) = others.iter().find(|u| self.before(target, **u)) {
                let detail =
                    format!("{} reads the normalised rows before the matmul is done", self.graph.op(*early).name());
                self.refuse(v, first, Refusal::Cycle, detail);
                continue;
            }
            match self.recompute(v, target, kept) {
                Ok(()) => {
                    if let RegionAnchor::MatMul(g) = &mut self.regions[target].anchor {
                        g.norm = Some(v);
                        self.owner.insert(v, target);
                        self.regions[id].anchor = RegionAnchor::Map;
                    }
                }
                Err(detail) => self.refuse(v, first, Refusal::Recompute, detail),
            }
        }
        let dead: Vec<bool> = self.regions.iter().map(|r| r.anchor == RegionAnchor::Map).collect();
        let mut new_id = vec![0; dead.len()];
        let mut n = 0;
        for (i, d) in dead.iter().enumerate() {
            new_id[i] = n;
            n += usize::from(!d);
        }
        let mut keep = dead.iter().map(|d| !d);
        self.regions.retain(|_| keep.next().unwrap_or(true));
        self.owner.values_mut().for_each(|o| *o = new_id[*o]);
    }

    /// Decides for every pointwise operation outside the epilogues whether it is computed where it is read, or becomes a
    /// value in memory with a region of its own. `homes` of a value are the regions that expand it; the flag says
    /// whether they may do so for more than a view.
    fn assign_maps(&mut self) {
        let mut homes: HashMap<ValueId, BTreeMap<usize, bool>> = HashMap::new();
        let absorbed: HashSet<ValueId> = self.owner.keys().copied().collect();
        for v in self.order.clone().into_iter().rev() {
            let op = self.graph.op(v);
            if op.is_source() || absorbed.contains(&v) {
                continue;
            }
            let mut here: BTreeMap<usize, bool> = BTreeMap::new();
            for u in self.users(v) {
                let from: Vec<(usize, bool)> = match (absorbed.contains(u), self.owner.get(u)) {
                    (true, Some(r)) => vec![(*r, self.reads_inline(v, *u))],
                    _ => homes.get(u).into_iter().flatten().map(|(r, ok)| (*r, *ok)).collect(),
                };
                for (r, ok) in from {
                    *here.entry(r).or_insert(true) &= ok;
                }
            }
            let pinned = matches!(op, Op::KvAppend { .. }) || self.graph.is_output(v);
            let free = op.is_view() || self.is_cheap(v);
            let single = here.len() == 1 && here.values().all(|ok| *ok) && self.options.fuse_prologues;
            if !pinned && (free || single) {
                for r in here.keys() {
                    self.regions[*r].prologue.push(v);
                }
                homes.insert(v, here);
                continue;
            }
            if !pinned {
                let (code, detail) = if here.len() > 1 {
                    (Refusal::Dup, format!("{} regions read it; kept as a value", here.len()))
                } else if self.options.fuse_prologues {
                    (Refusal::Dup, "every column tile of the consumer would compute it again".into())
                } else {
                    (Refusal::User, "prologues are switched off".into())
                };
                for u in self.users(v).to_vec() {
                    self.refuse(v, u, code, detail.clone());
                }
            }
            let id = self.map_region(v);
            homes.insert(v, BTreeMap::from([(id, true)]));
        }
        for r in &mut self.regions {
            let position = &self.position;
            r.prologue.sort_by_key(|v| position.get(v).copied().unwrap_or(0));
            r.prologue.dedup();
        }
    }
    fn map_region(&mut self, v: ValueId) -> usize {
        let mut r = Region::new(RegionAnchor::Map);
        r.epilogue.push(v);
        self.owner.insert(v, self.regions.len());
        self.regions.push(r);
        self.regions.len() - 1
    }
    /// Integer and truth values, and functions of constants: cheaper to compute again than to store.
    fn is_cheap(&self, v: ValueId) -> bool {
        let small =
            |v: ValueId| self.graph.ty(v).scalar != Scalar::F32 || self.graph.ty(v).elems().as_const() == Some(1);
        let mut stack = vec![(v, 0)];
        while let Some((v, depth)) = stack.pop() {
            let op = self.graph.op(v);
            if depth > 12 || is_anchor(op) || !small(v) || matches!(op, Op::KvAppend { .. } | Op::Control(_)) {
                return false;
            }
            if !op.is_source() {
                stack.extend(self.graph.operands(v).into_iter().map(|o| (o, depth + 1)));
            }
        }
        true
    }
    /// Whether user `u`, an anchor or a member of a region, can compute `v` where it reads it without doing so many
    /// times over.
    fn reads_inline(&self, v: ValueId, u: ValueId) -> bool {
        let port = self.graph.operands(u).iter().position(|o| *o == v).unwrap_or(0);
        let in_matmul = self.owner.get(&u).is_some_and(|r| matches!(self.regions[*r].anchor, RegionAnchor::MatMul(_)));
        match self.graph.op(u) {
            Op::MatMul { .. } => port == 0 && self.bounds.le(&self.rows(u), &Dim::constant(NORM_PROLOGUE_ROWS)),
            Op::Attention(_) => port == 0,
            Op::Norm { .. } => !in_matmul || port != 0,
            _ => true,
        }
    }

    /// A value is stored when it leaves the graph, is an effect, or something outside the region that makes it reads it.
    fn collect_outputs(&mut self) {
        for id in 0..self.regions.len() {
            let own: HashSet<ValueId> = {
                let r = &self.regions[id];
                r.anchors().into_iter().chain(r.epilogue.iter().copied()).collect()
            };
            let mut outs: Vec<ValueId> = own
                .iter()
                .copied()
                .filter(|v| {
                    matches!(self.graph.op(*v), Op::KvAppend { .. })
                        || self.graph.is_output(*v)
                        || self.users(*v).iter().any(|u| !own.contains(u))
                })
                .collect();
            outs.sort_by_key(|v| self.position.get(v).copied().unwrap_or(0));
            self.stored.extend(&outs);
            self.regions[id].outputs = outs;
            let position = &self.position;
            self.regions[id].epilogue.sort_by_key(|v| position.get(v).copied().unwrap_or(0));
        }
    }

    /// Regions ordered so that each comes after the regions whose values it reads; ties by graph order.
    fn launch_order(&mut self) {
        let key = |r: &Region| {
            let last = r
                .outputs
                .iter()
                .chain(&r.epilogue)
                .chain(&r.anchors())
                .filter_map(|v| self.position.get(v))
                .max()
                .copied();
            last.unwrap_or(0)
        };
        let mut producer: HashMap<ValueId, usize> = HashMap::new();
        for (i, r) in self.regions.iter().enumerate() {
            for o in &r.outputs {
                producer.insert(*o, i);
            }
        }
        let needs: Vec<BTreeSet<usize>> = self
            .regions
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let inside = r.members();
                let reads = inside.iter().flat_map(|m| self.graph.operands(*m));
                reads.filter_map(|o| producer.get(&o).copied()).filter(|p| *p != i).collect()
            })
            .collect();
        let keys: Vec<usize> = self.regions.iter().map(key).collect();
        let mut waiting: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
        let mut feeds: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
        for (i, n) in needs.iter().enumerate() {
            n.iter().for_each(|p| feeds[*p].push(i));
        }
        let mut ready: BTreeSet<(usize, usize)> =
            waiting.iter().enumerate().filter(|(_, w)| **w == 0).map(|(i, _)| (keys[i], i)).collect();
        let mut order = Vec::with_capacity(needs.len());
        while let Some((_, i)) = ready.pop_first() {
            order.push(i);
            for f in &feeds[i] {
                waiting[*f] -= 1;
                if waiting[*f] == 0 {
                    ready.insert((keys[*f], *f));
                }
            }
        }
        debug_assert_eq!(order.len(), needs.len(), "regions wait for each other");
        let mut old: Vec<Option<Region>> = std::mem::take(&mut self.regions).into_iter().map(Some).collect();
        self.regions = order.into_iter().filter_map(|i| old[i].take()).collect();
        self.owner.clear();
    }

    /// Splits matmuls whose weight exceeds one binding by rows.
    fn split_large_weights(&mut self) {
        let mut out = Vec::with_capacity(self.regions.len());
        for r in std::mem::take(&mut self.regions) {
            let single =
                matches!(&r.anchor, RegionAnchor::MatMul(g) if g.members.len() == 1 && g.form == MatMulForm::Concat);
            let weight = r.packed(self.graph).filter(|_| single);
            let info = weight.and_then(|w| self.tables.weight_info(*w.parts.first()?).cloned());
            let shape = info.as_ref().map(|i| i.shape.iter().filter_map(Dim::as_const).collect::<Vec<_>>());
            let (Some(info), Some([n, k])) = (info, shape.as_deref()) else {
                out.push(r);
                continue;
            };
            let row = info.storage.size_bytes(*k as u64).unwrap_or(0).max(1);
            let fit = self.options.limit_binding_bytes / row;
            if fit >= *n as u64 || fit == 0 {
                out.push(r);
                continue;
            }
            let chunk = (fit / 64 * 64).max(1);
            let mut lo = 0;
            while lo < *n as u64 {
                let hi = (lo + chunk).min(*n as u64);
                out.push(Region { rows: Some((lo, hi)), ..r.clone() });
                lo = hi;
            }
        }
        self.regions = out;
    }
}

/// The sizes that say how many tokens a run has; a matmul whose rows do not depend on them has few rows.
pub fn depends_on_tokens(d: &Dim) -> bool {
    d.mentions(&Sym::Size(sizes::TOKENS.into()))
}
