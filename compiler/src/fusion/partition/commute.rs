//! RMS norms commuted through the product behind them: `(x·r·γ) W = ((x·γ) W)·r`, with one r a row.
//!
//! The kernel that makes the rows writes `x·γ` beside them, and their statistics; the product reads these rows as they are
//! and scales its sums. No column tile normalises anything, whatever their number.

use super::Partitioner;
use crate::fusion::region::RegionAnchor;
use crate::fusion::row_stats::RowStats;
use crate::graph::{NormKind, Op, ValueId};
use frit_kernels::dtype::Storage;

impl Partitioner<'_> {
    /// The gain of norm `v`.
    pub(super) fn gain_of(&self, v: ValueId) -> Option<ValueId> {
        match self.graph.op(v) {
            Op::Norm { has_gain: true, .. } => self.graph.operands(v).get(1).copied(),
            _ => None,
        }
    }
    /// Whether norm `v`, whose statistics can be forwarded, may be commuted through the product of region `target`; why not
    /// otherwise. `kept`: something else reads the normalised rows.
    ///
    /// A layer norm subtracts a mean: commuted, it cancels digits in proportion to the mean over the deviation, of which no
    /// bound is known.
    pub(super) fn commutable(&self, v: ValueId, target: usize, kept: bool) -> Result<(), String> {
        let refuse = |why: &str| Err(why.to_owned());
        self.allowed("commute", "commuting is switched off", v, v).map_err(Self::told_off)?;
        match self.graph.op(v) {
            Op::Norm { kind: NormKind::Rms, has_bias: false, .. } => {}
            Op::Norm { kind: NormKind::Rms, .. } => return refuse("it has a bias"),
            _ => return refuse("no bound of the mean over the deviation is known"),
        }
        if kept {
            return refuse("the normalised rows are read elsewhere as well");
        }
        if self.few(&self.rows(v)) {
            return refuse("there are few rows");
        }
        let RegionAnchor::MatMul(g) = &self.regions[target].anchor else { return refuse("no product reads it") };
        match self.weight_storage(g) {
            Some(Storage::F16) => {
                return refuse(
                    "matrix units round rows to f16, whose range need not hold them before they are normalised",
                );
            }
            Some(_) => {}
            None => return refuse("its weight is not known"),
        }
        if let Some((_, commuted)) = self.given(v) {
            return if commuted { Ok(()) } else { refuse("the kernel in front does not write its rows for that") };
        }
        let maker = self.graph.operands(v).first().and_then(|x| self.owner.get(x)).copied();
        let Some(maker) = maker.filter(|m| matches!(self.regions[*m].anchor, RegionAnchor::MatMul(_))) else {
            return refuse("no product makes its rows");
        };
        if self.gain_of(v).is_some_and(|gain| !matches!(self.graph.op(gain), Op::Weight(_))) {
            return refuse("its gain is computed");
        }
        self.binds(maker, v).map_err(|(_, detail)| detail)
    }
    /// Has the kernel that makes the rows of norm `v` write them times its gain, beside these statistics.
    pub(super) fn forward_gained(&mut self, stats: RowStats, v: ValueId) {
        if let Some(id) = self.owner.get(&stats.of) {
            self.regions[*id].gained.push(v);
        }
    }
}
