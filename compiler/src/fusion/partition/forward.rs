//! Statistics of rows that the kernel which makes them writes beside them: who can, and where they are written.

use super::Partitioner;
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::fusion::row_stats::{RowStats, kind_of};
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::PARTIAL_COLUMNS;
use frit_kernels::templates::writes_partials;

impl Partitioner<'_> {
    /// The statistics that the kernel which makes the rows of norm `v` can write; why there are none otherwise.
    pub(super) fn forwardable(&self, v: ValueId) -> Result<RowStats, String> {
        let Op::Norm { kind, .. } = self.graph.op(v) else { return Err("no norm".into()) };
        if let Some((stats, _)) = self.given(v) {
            return Ok(stats);
        }
        let Some(x) = self.graph.operands(v).first().copied() else { return Err("a norm of nothing".into()) };
        let (op, ty) = (self.graph.op(x), self.graph.ty(x));
        let Some(width) = ty.last().as_const().and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) else {
            return Err("rows of a width that is not known".into());
        };
        let stats = |tile: u64| RowStats { of: x, kind: kind_of(*kind), tile };
        let Some(id) = self.owner.get(&x).copied() else {
            let made = self.is_map(x) && !op.is_view() && !self.is_cheap(x) && !self.guarded.contains(&x);
            let alone = self.maps_that_forward.get(&x).is_none_or(|s| *s == stats(width));
            return match made && ty.scalar == Scalar::F32 && alone {
                true => Ok(stats(width)),
                false => Err(format!("no kernel of its own makes the {} that it reads", op.name())),
            };
        };
        let region = &self.regions[id];
        let found = match &region.anchor {
            RegionAnchor::MatMul(g) => match g.members.as_slice() {
                [m] if g.form == MatMulForm::Concat && self.in_place_of(id, *m, x) => {
                    self.of_product(*m).map(|()| stats(u64::from(PARTIAL_COLUMNS)))
                }
                _ => Err("its rows are several products, or another view of one".into()),
            },
            RegionAnchor::Row(a) if matches!(self.graph.op(*a), Op::Norm { .. } | Op::Softmax) => {
                match self.in_place_of(id, *a, x) {
                    true => Ok(stats(width)),
                    false => Err("its rows are another view of those of a row kernel".into()),
                }
            }
            _ => Err(format!("a {} kernel makes its rows, not by rows", region.kind())),
        }?;
        match region.forwards {
            Some(other) if other != found => Err("their kernel writes statistics of other rows".into()),
            _ => Ok(found),
        }
    }
    /// The statistics that a kernel outside of what is looked at writes for norm `v`, and whether they are for commuting it.
    pub(super) fn given(&self, v: ValueId) -> Option<(RowStats, bool)> {
        self.scope.as_ref().and_then(|s| s.given.get(&v)).copied()
    }
    /// Whether `x` is the result of anchor `a` of region `id`, element for element.
    pub(super) fn in_place_of(&self, id: usize, a: ValueId, x: ValueId) -> bool {
        let region = &self.regions[id];
        let inside = region.epilogue.iter().copied().chain([a]).collect();
        let own = x == a || region.epilogue.contains(&x);
        own && self.graph.ty(x) == self.graph.ty(a) && self.frame(id, &inside, x).1.is_empty()
    }
    /// The steps along k and the storage of product `m`, whose weight is one binding.
    pub(super) fn binds_whole(&self, m: ValueId) -> Result<(Option<u64>, Storage), String> {
        let weight =
            self.rhs_weight(m).and_then(|w| self.tables.weight_info(w)).ok_or("a product of two activations")?;
        let number = |i: usize| weight.shape.get(i).and_then(|d| d.as_const()).and_then(|n| u64::try_from(n).ok());
        let (n, k) = (number(0), number(1));
        let bytes = n.zip(k).and_then(|(n, k)| weight.storage.size_bytes(n.saturating_mul(k)));
        match bytes {
            Some(b) if b <= self.options.limit_binding_bytes => Ok((k, weight.storage)),
            _ => Err("its product is split by the size of a binding".into()),
        }
    }
    /// Whether the kernel of product `m` writes statistics of its result on every kind of device.
    fn of_product(&self, m: ValueId) -> Result<(), String> {
        let (k, storage) = self.binds_whole(m)?;
        let rows = self.rows(m);
        match writes_partials(self.few(&rows), k, storage) {
            true => Ok(()),
            false => Err(format!("products of {rows} rows and {} steps have no tiles to write", k.unwrap_or(0))),
        }
    }
    /// Has the kernel that makes the rows write these statistics.
    pub(super) fn forward(&mut self, stats: RowStats) {
        match self.owner.get(&stats.of) {
            Some(id) => self.regions[*id].forwards = Some(stats),
            None => {
                self.maps_that_forward.insert(stats.of, stats);
            }
        }
    }
}
