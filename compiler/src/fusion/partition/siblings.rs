//! Anchors first: every matmul, reduction and attention starts a region; matmuls with the same left side share one.

use super::{Partitioner, is_anchor};
use crate::fusion::legality::Refusal;
use crate::fusion::region::{MatMulForm, MatMulGroup, Region, RegionAnchor};
use crate::graph::{Op, RopeStyle, ValueId};
use frit_kernels::dim::{Dim, product};
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl Partitioner<'_> {
    /// One region an anchor; matmuls with the same left side and compatible weights share one (fusion of siblings).
    pub(super) fn place_anchors(&mut self) {
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
                    RegionAnchor::MatMul(MatMulGroup::new(group, form))
                }
                Op::Attention(_) | Op::AttentionParts { .. } => RegionAnchor::Attention(v),
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
    pub(super) fn merge(&mut self, first: ValueId, all: &[ValueId], taken: &HashSet<ValueId>) -> Vec<ValueId> {
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
            let on = self.allowed("siblings", "merging of sibling matmuls is switched off", first, *v);
            if let Err((code, detail)) = on {
                self.refuse(first, *v, code, detail);
            } else if let Err((code, detail)) = self.permitted(first, *v) {
                self.refuse(first, *v, code, detail);
            } else if !same {
                let detail = format!("stored as {} and {}", base.storage, w.storage);
                self.refuse(first, *v, Refusal::Dtype, detail);
            } else if !apart || !distinct {
                self.refuse(first, *v, Refusal::Cycle, "one feeds the other, or both use one weight".into());
            } else {
                self.spend();
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
    pub(super) fn partner(&self, v: ValueId, all: &[ValueId]) -> Option<ValueId> {
        let meets = |o: &ValueId| *o != v && self.graph.ty(*o) == self.graph.ty(v) && self.meet(v, *o);
        all.iter().copied().find(meets).filter(|_| self.options.fuse_epilogues)
    }
    /// How the group's columns map to accumulators: rotary pairs if a rotary embedding follows any member, gate and up
    /// if two members meet in one product, else one accumulator.
    pub(super) fn form(&self, group: &[ValueId]) -> MatMulForm {
        let ropes: Vec<(RopeStyle, u64, Dim)> = group.iter().filter_map(|m| self.rope_behind(*m, group)).collect();
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
    pub(super) fn reads_weight_rows(&self, m: ValueId) -> bool {
        let right = self.graph.operands(m).get(1).map(|w| self.graph.op(*w));
        let rows = matches!(self.graph.op(m), Op::MatMul { b_transposed: true });
        rows && matches!(right, Some(Op::Weight(_)))
    }
    pub(super) fn only_user(&self, v: ValueId) -> Option<ValueId> {
        match (self.users(v), self.graph.is_output(v)) {
            ([u], false) => Some(*u),
            _ => None,
        }
    }
    /// The rotary embedding behind member `m` of a group of products.
    pub(super) fn rope_behind(&self, m: ValueId, group: &[ValueId]) -> Option<(RopeStyle, u64, Dim)> {
        let mut v = m;
        for _ in 0..6 {
            v = self.only_user(v)?;
            match self.graph.op(v) {
                Op::Rope { style, rotary_dim } => return Some((*style, *rotary_dim, self.graph.ty(v).last())),
                Op::Binary(_) | Op::Unary(_) | Op::Reshape(_) | Op::Transpose(_) => {}
                Op::Norm { .. } => {
                    let x = *self.graph.operands(v).first()?;
                    self.head_columns(group, x, v).ok()?;
                }
                _ => return None,
            }
        }
        None
    }
    pub(super) fn meet(&self, a: ValueId, b: ValueId) -> bool {
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
    pub(super) fn is_map(&self, v: ValueId) -> bool {
        let op = self.graph.op(v);
        !is_anchor(op) && !op.is_source() && !matches!(op, Op::KvAppend { .. } | Op::KvRead { .. } | Op::Control(_))
    }
}
