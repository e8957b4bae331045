//! Norms of each head behind a projection, computed by the workgroup that makes the head.
//!
//! For few rows a workgroup of a matrix-vector product may take the columns of a whole head, and has then all that the norm
//! reads. Tiles of matrix products own no heads.

use super::Partitioner;
use crate::fusion::legality::Refusal;
use crate::fusion::region::{MatMulForm, RegionAnchor};
use crate::graph::{Op, ValueId};
use crate::numeric::ProofClass;
use frit_kernels::spec::{ColumnStats, MatmulPrecision};

/// Norms behind a projection at most, of queries and of keys: with a pair of norms in front, a kernel has eight statistics.
const MOST_NORMS: usize = 2;

impl Partitioner<'_> {
    /// Whether the matmul of region `id` may compute norm `u` of its member or epilogue value `v`.
    pub(super) fn owns_heads(&self, id: usize, v: ValueId, u: ValueId) -> Result<(), (Refusal, String)> {
        let RegionAnchor::MatMul(group) = &self.regions[id].anchor else {
            return Err(not_owned(self.graph.ty(u).last().to_string()));
        };
        let columns = self.head_columns(&group.members, v, u)?;
        let has = |m: &&ValueId| matches!(self.graph.op(**m), Op::Norm { .. });
        let others: Vec<ValueId> = self.regions[id].epilogue.iter().filter(has).copied().collect();
        let alike = others.iter().all(|o| self.graph.ty(*o).last() == self.graph.ty(u).last());
        let width = match &group.form {
            MatMulForm::Concat => columns,
            MatMulForm::RotaryPairs { head_dim, .. } if *head_dim == columns => columns / 2,
            _ => return Err((Refusal::Map, "the columns of two products meet in an invocation".into())),
        };
        if !alike || others.len() >= MOST_NORMS || width > ColumnStats::WIDEST {
            return Err((Refusal::RowTile, format!("a workgroup does not own heads of {columns} as well")));
        }
        let mut gains = self.graph.operands(u).into_iter().skip(1);
        if gains.any(|o| self.reaches(o, id)) {
            return Err((Refusal::Cycle, "its gain waits for this region".into()));
        }
        self.permitted(v, u)?;
        self.binds(id, u)
    }
    /// The columns of a head, if norm `u` of `v` is one over the heads that products `members` make.
    pub(super) fn head_columns(&self, members: &[ValueId], v: ValueId, u: ValueId) -> Result<u64, (Refusal, String)> {
        let g = self.graph;
        let last = g.ty(u).last();
        let Some(columns) = last.as_const().and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) else {
            return Err(not_owned(last.to_string()));
        };
        let width = |m: ValueId| g.ty(m).last().as_const().and_then(|n| u64::try_from(n).ok());
        let (mut at, mut cut) = (v, false);
        while g.op(at).is_view() {
            let Some(x) = g.operands(at).first().copied() else { break };
            cut |= match g.op(at) {
                Op::Reshape(_) => g.ty(at).last() != last,
                Op::Transpose(perm) => perm.last().is_some_and(|p| p + 1 != perm.len()),
                _ => true,
            };
            at = x;
        }
        let heads = |m: &ValueId| width(*m).filter(|w| w.is_multiple_of(columns)).map(|w| w / columns);
        let heads: Option<u64> = members.iter().map(heads).sum();
        let rows = members.first().map(|m| self.rows(*m)).unwrap_or_default();
        let few = self.at_most_few(&rows);
        // One head alone would be one workgroup.
        if cut || !members.contains(&at) || !few || heads.is_none_or(|n| n < 2) {
            return Err(not_owned(last.to_string()));
        }
        if !members.iter().all(|m| self.reads_weight_rows(*m)) {
            return Err((Refusal::RowTile, "the right side is no matrix of weights".into()));
        }
        self.allowed("head-norms", "norms of heads behind projections are switched off", v, u)?;
        if !self.options.numeric.allows(ProofClass::Reassoc) {
            let mode = self.options.numeric.name();
            return Err((
                Refusal::Mode,
                format!("REASSOC: a workgroup adds up a head in its own order; the mode is {mode}"),
            ));
        }
        if self.options.matmul_precision != MatmulPrecision::Auto {
            return Err((Refusal::Mode, format!("matmuls in {}", self.options.matmul_precision.name())));
        }
        Ok(columns)
    }
    /// Takes norm `u`, which region `id` computes from now on, out of the region that it began.
    pub(super) fn take_norm(&mut self, u: ValueId) {
        if let Some(own) = self.owner.get(&u).copied()
            && self.regions[own].anchor == RegionAnchor::Row(u)
        {
            self.regions[own].anchor = RegionAnchor::Map;
        }
    }
}

fn not_owned(columns: String) -> (Refusal, String) {
    (Refusal::RowTile, format!("a tile of columns does not own rows of {columns}"))
}
