//! What an anchor's region absorbs behind it, and the conditions under which it may.

use super::Partitioner;
use crate::fusion::legality::{LEFT_OUT, Refusal};
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::graph::{Op, RopeStyle, ValueId};
use frit_kernels::dim::product;
use std::collections::{BTreeSet, HashSet};

impl Partitioner<'_> {
    /// Grows every anchor's consumer side in graph order.
    pub(super) fn absorb_epilogues(&mut self) {
        for id in 0..self.regions.len() {
            let starts = match &self.regions[id].anchor {
                RegionAnchor::MatMul(g) => g.members.clone(),
                RegionAnchor::Row(v) | RegionAnchor::Attention(v) => vec![*v],
                RegionAnchor::Map | RegionAnchor::Chain(_) | RegionAnchor::ConvChain(_) => continue,
            };
            if !self.options.fuse_epilogues {
                let (code, detail) = self.options.refused_by_switch("epilogue", "epilogues are switched off");
                for v in starts {
                    for u in self.users(v).to_vec() {
                        if !self.graph.op(u).is_view() {
                            self.refuse(v, u, code, detail.clone());
                        }
                    }
                }
                continue;
            }
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
                            if let Some(p) = self.position.get(&u).copied() {
                                self.take_norm(u);
                                inside.insert((p, u));
                                self.owner.insert(u, id);
                                self.regions[id].epilogue.push(u);
                                if !self.graph.op(u).is_view() {
                                    self.spend();
                                }
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
    pub(super) fn absorbs(
        &self,
        id: usize,
        members: &HashSet<ValueId>,
        v: ValueId,
        u: ValueId,
    ) -> Result<(), (Refusal, String)> {
        let g = self.graph;
        let op = g.op(u);
        if let Some(o) = self.owner.get(&u) {
            return match op {
                _ if *o == id => Ok(()),
                Op::Norm { .. } if matches!(self.regions[id].anchor, RegionAnchor::MatMul(_)) => {
                    self.owns_heads(id, v, u)
                }
                Op::Norm { .. } | Op::Softmax | Op::Reduce { .. } => Err((Refusal::RowTile, self.not_whole(id, u))),
                Op::MatMul { .. } => Err(self.chain(id, v, u)),
                Op::Attention(_) | Op::AttentionParts { .. } => Err((Refusal::Grid, self.read_by_attention(v, u))),
                _ => Err((Refusal::Dup, "computed in another region already".into())),
            };
        }
        if matches!(g.op(v), Op::KvAppend { .. }) {
            return Err((Refusal::Effect, "the slot holds positions of earlier runs as well".into()));
        }
        if !op.is_view() {
            self.permitted(v, u)?;
            self.allowed("epilogue", "epilogues are switched off", v, u)?;
            g.operands(u).into_iter().filter(|o| members.contains(o)).try_for_each(|o| self.edge_allowed(o, u))?;
            self.binds(id, u)?;
            self.holds(id, u)?;
        }
        let shape_in = &g.ty(v).shape;
        if self.guarded.contains(&u) {
            return Err((Refusal::Profit, LEFT_OUT.into()));
        }
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
                self.allowed("rope", "rotary embeddings behind projections are switched off", v, u)?;
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
            Op::MergeParts { .. } => {
                return Err((Refusal::Grid, "other workgroups take the other parts of the keys".into()));
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
    /// Why region `id` does not reduce the rows that `u` reduces.
    pub(super) fn not_whole(&self, id: usize, u: ValueId) -> String {
        let g = self.graph;
        let shape = g.operands(u).first().map(|x| g.ty(*x).shape.clone()).unwrap_or_default();
        let row = match g.op(u) {
            Op::Reduce { axes, .. } => product(axes.iter().filter_map(|a| shape.get(*a))),
            _ => shape.last().cloned().unwrap_or_default(),
        };
        match self.regions[id].anchor {
            RegionAnchor::Row(v) => format!("the kernel of {} does not reduce rows of {row} again", g.op(v).name()),
            RegionAnchor::Attention(_) => format!("a workgroup of attention does not own rows of {row}"),
            _ => format!("a tile of columns does not own rows of {row}"),
        }
    }
    /// Why attention `u` reads `v` from memory.
    pub(super) fn read_by_attention(&self, v: ValueId, u: ValueId) -> String {
        let g = self.graph;
        let operands = g.operands(u);
        let extent = |port: usize, axis: usize| {
            operands.get(port).and_then(|o| g.ty(*o).shape.get(axis)).cloned().unwrap_or_default()
        };
        match operands.iter().position(|o| *o == v) {
            Some(0) => {
                format!("a tile of queries meets keys of all {} positions, which other workgroups make", extent(1, 2))
            }
            Some(1) => format!("attention reads keys of all {} positions", extent(1, 2)),
            Some(2) => format!("attention reads values of all {} positions", extent(2, 2)),
            _ => format!("attention reads it for each of {} keys", extent(1, 2)),
        }
    }
    /// Which elements of region `id`'s tile a member holds: its anchor and the views on the way from there. Two members
    /// have the same element in one invocation iff these are equal.
    pub(super) fn frame(&self, id: usize, members: &HashSet<ValueId>, v: ValueId) -> (ValueId, Vec<&Op>) {
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
    pub(super) fn place(&self, id: usize, members: &HashSet<ValueId>, v: ValueId) -> (ValueId, Vec<&Op>) {
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
    pub(super) fn reaches(&self, o: ValueId, id: usize) -> bool {
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
}
