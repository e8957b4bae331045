//! Pointwise operations that no epilogue took: expanded where they are read, or values with a region of their own.

use super::movement::Reach;
use super::{Partitioner, is_anchor};
use crate::fusion::dequant::is_decoded;
use crate::fusion::legality::Refusal;
use crate::fusion::region::{Region, RegionAnchor};
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::Scalar;
use std::collections::{BTreeMap, HashMap, HashSet};

impl Partitioner<'_> {
    /// Decides for every pointwise operation outside the epilogues whether it is computed where it is read, or becomes a
    /// value in memory with a region of its own. `homes` of a value are the regions that expand it, and how far they may
    /// go beyond views.
    pub(super) fn assign_maps(&mut self) {
        let mut homes: HashMap<ValueId, BTreeMap<usize, Reach>> = HashMap::new();
        let absorbed: HashSet<ValueId> = self.owner.keys().copied().collect();
        for v in self.order.clone().into_iter().rev() {
            let op = self.graph.op(v);
            if op.is_source() || absorbed.contains(&v) {
                continue;
            }
            let mut here: BTreeMap<usize, Reach> = BTreeMap::new();
            for u in self.users(v) {
                let from: Vec<(usize, Reach)> = match (absorbed.contains(u), self.owner.get(u)) {
                    (true, Some(r)) => vec![(*r, self.reads_inline(v, *u))],
                    _ => homes.get(u).into_iter().flatten().map(|(r, reach)| (*r, self.beyond(*reach, *u))).collect(),
                };
                for (r, reach) in from {
                    let known = here.entry(r).or_insert(reach);
                    *known = (*known).min(reach);
                }
            }
            let forwards = self.maps_that_forward.get(&v).copied();
            let pinned = matches!(op, Op::KvAppend { .. }) || self.graph.is_output(v) || forwards.is_some();
            let free = op.is_view() || self.is_cheap(v);
            let single = here.len() == 1
                && self.options.fuse_prologues
                && here.iter().all(|(r, reach)| self.takes(*r, *reach, v));
            let barred = match (here.keys().next(), self.users(v).first()) {
                (Some(r), Some(u)) if single && !free => {
                    let each = |u: &ValueId| {
                        self.edge_allowed(v, *u)?;
                        self.allowed("prologue", "prologues are switched off", v, *u)
                    };
                    let permitted = self.permitted(v, *u).and_then(|()| self.users(v).iter().try_for_each(each));
                    permitted.and_then(|()| self.binds(*r, v)).and_then(|()| self.holds(*r, v)).err()
                }
                _ => None,
            };
            if !pinned && (free || (single && barred.is_none())) {
                if !free {
                    self.spend();
                }
                for r in here.keys() {
                    self.regions[*r].prologue.push(v);
                }
                homes.insert(v, here);
                continue;
            }
            if !pinned {
                let (code, detail) = if let Some(barred) = barred {
                    barred
                } else if here.len() > 1 {
                    (Refusal::Dup, format!("{} regions read it; kept as a value", here.len()))
                } else if let Some(off) = self.decoded_apart(v) {
                    off
                } else if !self.options.fuse_windows && self.is_window_sum(v) {
                    self.options.refused_by_switch("windows", "sums over windows are switched off")
                } else if self.options.fuse_prologues {
                    (Refusal::Dup, "every column tile of the consumer would compute it again".into())
                } else {
                    self.options.refused_by_switch("prologue", "prologues are switched off")
                };
                for u in self.users(v).to_vec() {
                    self.refuse(v, u, code, detail.clone());
                }
            }
            let beside = if forwards.is_none() { self.beside(v) } else { None };
            let id = match beside {
                Some(id) => {
                    self.regions[id].epilogue.push(v);
                    self.owner.insert(v, id);
                    id
                }
                None => self.map_region(v),
            };
            self.regions[id].forwards = forwards;
            homes.insert(v, BTreeMap::from([(id, Reach::Anything)]));
        }
        for r in &mut self.regions {
            let position = &self.position;
            r.prologue.sort_by_key(|v| position.get(v).copied().unwrap_or(0));
            r.prologue.dedup();
        }
    }
    /// Why a weight is decoded by a kernel of its own.
    fn decoded_apart(&self, v: ValueId) -> Option<(Refusal, String)> {
        let off = || self.allowed("dequant", "decoding in products is switched off", v, v).err();
        is_decoded(self.graph, v).then(off).flatten()
    }
    pub(super) fn map_region(&mut self, v: ValueId) -> usize {
        let mut r = Region::new(RegionAnchor::Map);
        r.epilogue.push(v);
        self.owner.insert(v, self.regions.len());
        self.regions.push(r);
        self.regions.len() - 1
    }
    /// Integer and truth values, and functions of constants: cheaper to compute again than to store.
    pub(super) fn is_cheap(&self, v: ValueId) -> bool {
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
    /// How far user `u`, an anchor or a member of a region, computes `v` where it reads it.
    pub(super) fn reads_inline(&self, v: ValueId, u: ValueId) -> Reach {
        let port = self.graph.operands(u).iter().position(|o| *o == v).unwrap_or(0);
        let in_matmul = self
            .owner
            .get(&u)
            .is_some_and(|r| matches!(self.regions[*r].anchor, RegionAnchor::MatMul(_) | RegionAnchor::Chain(_)));
        let once = |is: bool| if is { Reach::Anything } else { Reach::Never };
        match self.graph.op(u) {
            Op::MatMul { .. } if port != 0 => Reach::Never,
            Op::MatMul { .. } if self.at_most_few(&self.rows(u)) => Reach::Anything,
            Op::MatMul { .. } => Reach::Movement,
            Op::Attention(_) | Op::AttentionParts { .. } => once(port == 0),
            Op::Norm { .. } => once(!in_matmul || port != 0),
            _ => Reach::Anything,
        }
    }
}
