//! What regions write, in which order they run, and weights that exceed one binding.

use super::Partitioner;
use crate::fusion::region::{MatMulForm, Region, RegionAnchor};
use crate::graph::{Op, ValueId};
use frit_kernels::dim::Dim;
use std::collections::{BTreeSet, HashMap, HashSet};

impl Partitioner<'_> {
    /// A value is stored when it leaves the graph, is an effect, or something outside the region that makes it reads it.
    pub(super) fn collect_outputs(&mut self) {
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
    pub(super) fn launch_order(&mut self) {
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
    pub(super) fn split_large_weights(&mut self) {
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
