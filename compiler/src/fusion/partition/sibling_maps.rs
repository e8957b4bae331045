//! Pointwise values beside each other: several of them, none of which is made of another, as the results of one kernel.
//!
//! They have equally many rows; of rows of several widths a kernel walks the widest. What two of them read is read once,
//! and whatever they read, a launch is saved.

use super::{Partitioner, is_anchor};
use crate::fusion::cost::MANY_ROWS;
use crate::fusion::legality::Refusal;
use crate::fusion::region::RegionAnchor;
use crate::fusion::report::is_launch;
use crate::graph::{Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_plan::Rates;
use std::collections::{BTreeSet, HashSet};

impl Partitioner<'_> {
    /// The region of pointwise values that may make `v` as well: values with a reader in common, or with an input in common
    /// that some anchor makes. Where such stay apart, it is noted why.
    pub(super) fn beside(&mut self, v: ValueId) -> Option<usize> {
        if !self.has_siblings(v) {
            return None;
        }
        let related: Vec<(usize, bool)> =
            (0..self.regions.len()).filter_map(|id| Some((id, self.reads_alike(v, id)?))).collect();
        for (id, common) in related {
            let Some(first) = self.regions[id].epilogue.first().copied() else { continue };
            match self.joins(v, id, common) {
                Ok(()) => {
                    self.spend();
                    return Some(id);
                }
                Err((code, detail)) => self.refuse(v, first, code, detail),
            }
        }
        None
    }
    /// Whether `v` is a value of the kind that shares its kernel with others.
    fn has_siblings(&self, v: ValueId) -> bool {
        let op = self.graph.op(v);
        let float = self.graph.ty(v).scalar == Scalar::F32;
        let guarded = self.guarded.contains(&v) || self.users(v).iter().any(|u| self.guarded.contains(u));
        float && is_launch(self.graph, v) && !matches!(op, Op::KvAppend { .. }) && !guarded
    }
    /// Whether the values of region `id` have an input in common with `v`; `None` where they have nothing to do with it, or
    /// other rows.
    fn reads_alike(&self, v: ValueId, id: usize) -> Option<bool> {
        let region = &self.regions[id];
        let plain = region.anchor == RegionAnchor::Map && region.forwards.is_none();
        let first = region.epilogue.first().copied().filter(|_| plain)?;
        let all = &region.epilogue;
        let alike = |m: &ValueId| self.has_siblings(*m) && self.rows(*m) == self.rows(v) && self.widths_meet(*m, v);
        if !all.iter().all(alike) || all.iter().any(|m| self.depends(*m, v) || self.depends(v, *m)) {
            return None;
        }
        let in_front = self.anchors_in_front(v);
        if in_front != self.anchors_in_front(first) {
            return None;
        }
        let inputs = self.inputs_of(&[v]);
        let common = self.inputs_of(&region.members()).intersection(&inputs).next().is_some();
        let (own, others) = (self.readers(v), all.iter().flat_map(|m| self.readers(*m)).collect::<BTreeSet<_>>());
        let owners = |readers: &BTreeSet<ValueId>| -> BTreeSet<usize> {
            readers.iter().filter_map(|r| self.owner.get(r).copied()).collect()
        };
        let leave = self.graph.is_output(v) && all.iter().any(|m| self.graph.is_output(*m));
        let together = leave || !own.is_disjoint(&others) || !owners(&own).is_disjoint(&owners(&others));
        // What is made of inputs alone could be made anywhere; apart from its reader it would only live longer.
        let near = together || common && in_front.iter().any(|word| *word != 0);
        near.then_some(common)
    }
    /// Whether rows of both can be walked together: they are equally wide, or it is known which are wider.
    fn widths_meet(&self, a: ValueId, b: ValueId) -> bool {
        let [a, b] = [a, b].map(|v| self.graph.ty(v).shape.last().cloned().unwrap_or_else(Dim::one));
        a == b || a.as_const().is_some() && b.as_const().is_some()
    }
    fn joins(&self, v: ValueId, id: usize, common: bool) -> Result<(), (Refusal, String)> {
        let all = &self.regions[id].epilogue;
        let said = "merging of pointwise values beside each other is switched off";
        all.iter().try_for_each(|m| self.allowed("sibling-maps", said, v, *m).and_then(|()| self.permitted(v, *m)))?;
        self.binds(id, v)?;
        self.holds(id, v)?;
        let waits = self.graph.operands(v).into_iter().any(|o| self.reaches(o, id));
        if waits || self.region_waits(id, v) {
            return Err((Refusal::Cycle, "one waits for what is made of the other".into()));
        }
        let equal = all.iter().all(|m| self.graph.ty(*m).last() == self.graph.ty(v).last());
        if common && equal { Ok(()) } else { self.is_launch_bound(v, id) }
    }
    /// Whether making the fewer of the elements takes less time than starting a kernel does, on each kind of device:
    /// `elements < bandwidth · launch / size`.
    fn is_launch_bound(&self, v: ValueId, id: usize) -> Result<(), (Refusal, String)> {
        let elements = |v: ValueId| {
            let rows = self.most(&self.rows(v)).unwrap_or(MANY_ROWS);
            let width = self.graph.ty(v).shape.last().map_or(Some(1), Dim::as_const);
            width.and_then(|w| u64::try_from(w).ok()).map(|w| rows.saturating_mul(w))
        };
        let others = self.regions[id].epilogue.iter().map(|m| elements(*m)).collect::<Option<Vec<_>>>();
        let fewer = others.zip(elements(v)).map(|(o, own)| own.min(o.into_iter().sum()));
        let per_launch = |t: &frit_kernels::target::Tier| Rates::of(*t).launch_us * Rates::of(*t).bytes_per_us / 4.0;
        let limit = self.options.tiers.iter().map(per_launch).fold(f64::MAX, f64::min);
        match fewer {
            Some(n) if (n as f64) < limit => Ok(()),
            Some(n) => {
                Err((Refusal::Profit, format!("{n} elements take longer than a launch, in which {limit:.0} are made")))
            }
            None => Err((Refusal::Profit, "how many elements they have is not known".into())),
        }
    }
    /// The anchors that `v` is made of, as bits of their places in the graph's order.
    fn anchors_in_front(&self, v: ValueId) -> Vec<u64> {
        let own = self.position.get(&v).map(|p| self.ancestors[*p].clone()).unwrap_or_default();
        own.iter().zip(self.anchor_bits.iter()).map(|(a, b)| a & b).collect()
    }
    /// What operations read, through views; constants left out.
    fn inputs_of(&self, members: &[ValueId]) -> BTreeSet<ValueId> {
        let mut out = BTreeSet::new();
        let mut stack: Vec<ValueId> = members.iter().flat_map(|m| self.graph.operands(*m)).collect();
        while let Some(o) = stack.pop() {
            match self.graph.op(o) {
                Op::Const(_) => {}
                op if op.is_view() => stack.extend(self.graph.operands(o)),
                _ => _ = out.insert(o),
            }
        }
        out
    }
    /// The launches that read `v`, through views and what is as cheap.
    fn readers(&self, v: ValueId) -> BTreeSet<ValueId> {
        let (mut out, mut seen) = (BTreeSet::new(), HashSet::new());
        let mut stack = self.users(v).to_vec();
        while let Some(u) = stack.pop() {
            if is_launch(self.graph, u) || is_anchor(self.graph.op(u)) {
                out.insert(u);
            } else if seen.insert(u) {
                stack.extend(self.users(u));
            }
        }
        out
    }
    /// Whether region `id` waits, through whole regions, for `v`.
    fn region_waits(&self, id: usize, v: ValueId) -> bool {
        let (mut seen, mut passed) = (HashSet::new(), HashSet::from([id]));
        let mut stack: Vec<ValueId> = self.regions[id].members().iter().flat_map(|m| self.graph.operands(*m)).collect();
        while let Some(o) = stack.pop() {
            if o == v {
                return true;
            }
            if !seen.insert(o) {
                continue;
            }
            match self.owner.get(&o) {
                Some(r) if passed.insert(*r) => {
                    stack.extend(self.regions[*r].members().iter().flat_map(|m| self.graph.operands(*m)));
                }
                Some(_) => {}
                None => stack.extend(self.graph.operands(o)),
            }
        }
        false
    }
}
