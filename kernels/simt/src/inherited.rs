//! WGSL's operations whose accuracy is that of an expression: perturbed, they are evaluated so, each part within its bound.

use crate::approx::{Approximate as A, mix};
use crate::math::Arith;
use crate::op::Un;

/// What a function is to the last digit.
fn exactly(op: Un, x: f64) -> f64 {
    match op {
        Un::Sqrt => x.sqrt(),
        Un::Tan => x.tan(),
        Un::Asin => x.asin(),
        Un::Acos => x.acos(),
        Un::Atan => x.atan(),
        Un::Sinh => x.sinh(),
        Un::Cosh => x.cosh(),
        Un::Asinh => x.asinh(),
        Un::Acosh => x.acosh(),
        Un::Atanh => x.atanh(),
        _ => x,
    }
}

impl Arith {
    /// The seed, if operations are as inaccurate as WGSL lets them be.
    fn loose(&self) -> Option<u64> {
        self.perturb.filter(|_| self.wgsl)
    }

    /// A function of one number. Where its expression overflows and it does not, it is exact.
    pub(crate) fn inherited(&self, op: Un, x: f32) -> f32 {
        let exact = exactly(op, x.into());
        let plain = exact as f32;
        match self.loose() {
            Some(seed) if plain.is_finite() => {
                let near = self.expression(op, x, exact, seed);
                if near.is_finite() { near } else { plain }
            }
            _ => plain,
        }
    }

    fn expression(&self, op: Un, x: f32, exact: f64, seed: u64) -> f32 {
        let exp = |x: f32| self.near(A::Exp, f64::from(x).exp(), x);
        let log = |x: f32| self.near(A::Log, f64::from(x).ln(), x);
        let first = mix(seed, u64::from(x.to_bits())) & 1 == 0;
        match op {
            Un::Sqrt => self.root(x),
            Un::Tan => {
                let (sine, cosine) = (f64::from(x).sin(), f64::from(x).cos());
                self.over(self.near(A::Sin, sine, x), self.near(A::Cos, cosine, x))
            }
            Un::Sinh => (exp(x) - exp(-x)) * 0.5,
            Un::Cosh => (exp(x) + exp(-x)) * 0.5,
            Un::Asinh => log(x + self.root(x * x + 1.0)),
            Un::Acosh => log(x + self.root(x * x - 1.0)),
            Un::Atanh => log(self.over(1.0 + x, 1.0 - x)) * 0.5,
            // The worse of the two bounds.
            Un::Asin if first => self.near(A::Asin, exact, x),
            Un::Asin => self.angle(x, self.root(1.0 - x * x)),
            Un::Acos if first => self.near(A::Acos, exact, x),
            Un::Acos => self.angle(self.root(1.0 - x * x), x),
            Un::Atan => self.near(A::Atan, exact, x),
            _ => x,
        }
    }

    fn root(&self, x: f32) -> f32 {
        self.over(1.0, self.near(A::Rsqrt, 1.0 / f64::from(x).sqrt(), x))
    }
    fn over(&self, x: f32, y: f32) -> f32 {
        self.near(A::Div, f64::from(x) / f64::from(y), y)
    }
    /// `atan2(y, x)`.
    pub(crate) fn angle(&self, y: f32, x: f32) -> f32 {
        let exact = f64::from(y).atan2(f64::from(x));
        if self.loose().is_some() { self.near(A::Atan, exact, y) } else { exact as f32 }
    }

    /// `x % y`, which is `x - y * trunc(x / y)`.
    pub(crate) fn rest(&self, x: f32, y: f32) -> f32 {
        let near = x - y * self.over(x, y).trunc();
        if self.loose().is_some() && near.is_finite() { near } else { x % y }
    }

    /// `x * y + z`, rounded once or twice.
    pub(crate) fn sum(&self, x: f32, y: f32, z: f32) -> f32 {
        let bits = |v: f32| u64::from(v.to_bits());
        match self.loose() {
            Some(seed) if mix(seed ^ bits(x) << 32, bits(y) << 32 | bits(z)) & 1 == 0 => x * y + z,
            _ => x.mul_add(y, z),
        }
    }
}
