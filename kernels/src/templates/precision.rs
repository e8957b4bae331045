//! Products of a kernel's precision: both sides as sums of bf16 parts, and the terms of the product, smallest first.

use super::KernelCtx;
use crate::ir::{Scalar, Val, Var};
use crate::spec::MatmulPrecision;

impl KernelCtx<'_> {
    /// How exactly the kernel multiplies.
    pub(super) fn precision(&self) -> MatmulPrecision {
        self.spec.precision
    }
    /// Whether both sides are taken apart.
    pub(super) fn is_split(&self) -> bool {
        self.precision().parts() > 0
    }
    /// The parts of a float or of each lane, largest first; the value itself where sides stay whole.
    pub(super) fn parts(&self, x: Val) -> Vec<Val> {
        let b = &self.b;
        let count = self.precision().parts();
        if count == 0 {
            return vec![x];
        }
        let mut rest = b.let_("whole", x);
        let mut parts = Vec::with_capacity(count);
        for i in 0..count {
            let part = b.let_("part", self.nearest_bf16(rest));
            parts.push(part);
            if i + 1 < count {
                let exponent = b.bit_and(b.bitcast(Scalar::U32, part), b.splat(b.lanes_of(part), 0x7f80_0000u32));
                let finite = b.ne(exponent, b.splat(b.lanes_of(part), 0x7f80_0000u32));
                let zero = b.splat(b.lanes_of(part), 0.0);
                rest = b.let_("rest", b.select(finite, b.sub(rest, part), zero));
            }
        }
        parts
    }
    /// As [`to_bf16`](crate::spec::to_bf16), for each lane.
    fn nearest_bf16(&self, x: Val) -> Val {
        let b = &self.b;
        let all = |v: u32| b.splat(b.lanes_of(x), v);
        let bits = b.let_("bits", b.bitcast(Scalar::U32, x));
        let odd = b.bit_and(b.shr(bits, all(16)), all(1));
        let rounded = b.add(bits, b.add(odd, all(0x7fff)));
        let is_nan = b.gt(b.bit_and(bits, all(0x7fff_ffff)), all(0x7f80_0000));
        let kept = b.select(is_nan, b.bit_or(bits, all(0x0040_0000)), rounded);
        b.bitcast(Scalar::F32, b.bit_and(kept, all(0xffff_0000)))
    }
    /// The pairs of parts whose products are summed, smallest first; the last is that of the leading parts.
    pub(super) fn terms(&self, x: &[Val], y: &[Val]) -> Vec<(Val, Val)> {
        let pairs = self.precision().terms().iter();
        pairs.filter_map(|(i, j)| Some((*x.get(*i)?, *y.get(*j)?))).collect()
    }
    /// `sum += x·y`, x and y by their parts. The terms of a product are added to each other before they meet the sum, which
    /// is so rounded once.
    pub(super) fn multiply_parts(&self, sum: Var, x: &[Val], y: &[Val]) {
        let b = &self.b;
        match self.terms(x, y).as_slice() {
            [] => {}
            [(x, y)] => b.fma_to(sum, *x, *y),
            [(x, y), rest @ ..] => {
                let product = rest.iter().fold(b.mul(*x, *y), |so_far, (x, y)| b.fma(*x, *y, so_far));
                b.add_to(sum, product);
            }
        }
    }
    /// `sum += Σ x·y` over the lanes, x and y by their parts.
    pub(super) fn dot_parts(&self, sum: Var, x: &[Val], y: &[Val]) {
        let b = &self.b;
        let dots = self.terms(x, y).into_iter().map(|(x, y)| b.dot(x, y));
        if let Some(all) = dots.reduce(|p, q| b.add(p, q)) {
            b.add_to(sum, all);
        }
    }
}
