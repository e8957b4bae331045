//! A convolution along a sequence whose result joins that of a layer.

use super::linear::Linear;
use super::norm::Norm;
use super::patches::windows;
use crate::graph::ValueId;
use crate::ingest::activation::Activation;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

/// `norm(y + act(conv(x)))` for what a layer reads, x, and what it gives, y. Rows that are padding are 0.
#[derive(Clone, Debug)]
pub(crate) struct Nearby {
    /// Its weight is `[H, H·taps]`.
    pub linear: Linear,
    /// An odd number: as many rows before a row as behind it are read, zeros beyond the ends.
    pub taps: u64,
    pub act: Activation,
    pub norm: Norm,
}

impl Nearby {
    /// `x` and `y` are `[B, S, H]`, `seen` is F32 `[B, S, 1]`, 0 at padding.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, y: ValueId, seen: ValueId) -> ValueId {
        b.scope("conv", |b| {
            let tokens = b.ty(x).shape.get(1).cloned().unwrap_or_else(Dim::one);
            let grid = [tokens.clone(), Dim::from(self.taps)];
            let place = b.iota(&grid, 0, Dim::zero());
            let before = i64::try_from(self.taps / 2).unwrap_or(0);
            let tap = b.iota(&grid, 1, Dim::constant(-before));
            let at = b.add(place, tap);
            let rows = b.transpose(x, &[1, 0, 2]);
            let end = b.iota(&[Dim::one(), Dim::one()], 0, tokens);
            let rows = windows(b, rows, at, end);
            let near = self.linear.apply(b, rows);
            let near = b.mul(near, seen);
            let near = self.act.apply(b, near);
            let sum = b.add(y, near);
            let y = self.norm.apply(b, sum);
            b.mul(y, seen)
        })
    }
}
