//! Windows of images and signals as rows of a product: what a convolution with a weight `[N, C·taps]` reads.

use super::linear::Linear;
use crate::graph::ValueId;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::{Dim, product};
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// Cuts an image `[B, C, h, w]` into patches of `size` × `size` without overlap and projects each: `[B, n, N]`, row by
/// row. What is left over at the right and below is not read.
pub(crate) fn embed_patches(
    b: &mut GraphBuilder<'_>,
    pixels: ValueId,
    size: u64,
    [channels, height, width]: [u64; 3],
    projection: &Linear,
) -> ValueId {
    let (down, across) = (height / size, width / size);
    let batch = b.ty(pixels).shape.first().cloned().unwrap_or_else(Dim::one);
    let [down, across, size, channels] = [down, across, size, channels].map(Dim::from);
    let mut x = pixels;
    for (axis, count, extent) in [(2, &down, height), (3, &across, width)] {
        let used = count.clone() * size.clone();
        if !used.is(extent as i64) {
            x = b.slice(x, axis, Dim::zero(), used);
        }
    }
    let shape = [batch.clone(), channels.clone(), down.clone(), size.clone(), across.clone(), size.clone()];
    let x = b.reshape(x, &shape);
    let x = b.transpose(x, &[0, 2, 4, 1, 3, 5]);
    let x = b.reshape(x, &[batch, down * across, channels * size.clone() * size]);
    projection.apply(b, x)
}

/// Windows of a signal `x`, `[len, B, C]`, as rows of a product with a weight `[N, C·taps]`: `[B, places, C·taps]`. `at`,
/// `[places, taps]`, says what each tap reads; zeros in front of 0 and from `end` on.
pub(super) fn windows(b: &mut GraphBuilder<'_>, x: ValueId, at: ValueId, end: ValueId) -> ValueId {
    let taken = b.gather(x, at);
    let zero = b.i32(0);
    let before = b.binary(BinaryOp::Lt, at, zero);
    let inside = b.binary(BinaryOp::Lt, at, end);
    let outside = b.unary(UnaryOp::Not, inside);
    let outside = b.binary(BinaryOp::Or, before, outside);
    let mut wide = b.ty(at).shape.clone();
    wide.extend([Dim::one(), Dim::one()]);
    let outside = b.reshape(outside, &wide);
    let nothing = b.f32(0.0);
    let taken = b.select(outside, nothing, taken);
    // [places, taps, B, C] to [B, places, C, taps].
    let rows = b.transpose(taken, &[2, 0, 3, 1]);
    let shape = b.ty(rows).shape.clone();
    let (outer, inner) = shape.split_at(2.min(shape.len()));
    let mut flat = outer.to_vec();
    flat.push(product(inner));
    b.reshape(rows, &flat)
}

/// A convolution along one axis.
#[derive(Clone, Debug)]
pub(crate) struct Conv1d {
    /// Its weight is `[N, C·taps]`.
    pub linear: Linear,
    pub taps: u64,
    pub stride: u64,
    /// Zeros in front of and behind the signal.
    pub padding: u64,
}

impl Conv1d {
    /// Places along an axis of `len`.
    pub fn places(&self, len: u64) -> u64 {
        (len + 2 * self.padding).saturating_sub(self.taps) / self.stride + 1
    }
    /// `x` is `[len, B, C]`, the result `[B, places, N]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, len: u64) -> ValueId {
        b.scope(self.linear.name, |b| {
            let grid = [Dim::from(self.places(len)), Dim::from(self.taps)];
            let place = b.iota(&grid, 0, Dim::zero());
            let [stride, padding, end] =
                [self.stride, self.padding, len].map(|v| b.i32(i32::try_from(v).unwrap_or(i32::MAX)));
            let start = b.mul(place, stride);
            let tap = b.iota(&grid, 1, Dim::zero());
            let at = b.add(start, tap);
            let at = b.sub(at, padding);
            let rows = windows(b, x, at, end);
            b.linear(rows, self.linear.weight, self.linear.bias)
        })
    }
}
