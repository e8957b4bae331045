//! Documented error bounds of approximate functions, and results that use them up.
//!
//! WGSL: "Accuracy of concrete floating point expressions" of the specification; functions that it bounds by an expression
//! are in `inherited`. PTX: the instruction set's text for each `.approx` form, version 9.1.

use crate::halves::{to_bfloat, to_half};

/// A function with a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Approximate {
    Sqrt,
    Rsqrt,
    Rcp,
    Div,
    Exp,
    Exp2,
    Log,
    Log2,
    Sin,
    Cos,
    Tanh,
    Asin,
    Acos,
    Atan,
    Exp2Half,
    Exp2Bfloat,
    TanhHalf,
    TanhBfloat,
}

/// Largest difference from the exact value.
enum Bound {
    /// Units in the last place.
    Ulp(f64),
    Relative(f64),
    Absolute(f64),
}

impl Bound {
    /// The difference at a value.
    fn at(self, exact: f64) -> f64 {
        match self {
            Bound::Absolute(e) => e,
            Bound::Relative(e) => e * exact.abs(),
            Bound::Ulp(n) => {
                let exponent = i32::from(((exact as f32).to_bits() >> 23) as u8) - 127;
                n * f64::from(exponent.max(-126) - 23).exp2()
            }
        }
    }
}

/// Where a bound is given for some arguments alone, that of the last range holds beyond.
fn bound(op: Approximate, wgsl: bool, x: f32) -> Bound {
    use Approximate as A;
    let power = |e: f64| e.exp2();
    let size = f64::from(x.abs());
    match op {
        A::Exp | A::Exp2 if wgsl => Bound::Ulp(3.0 + 2.0 * size),
        A::Log | A::Log2 if wgsl && (0.5..=2.0).contains(&x) => Bound::Absolute(power(-21.0)),
        A::Log | A::Log2 if wgsl => Bound::Ulp(3.0),
        A::Rsqrt if wgsl => Bound::Ulp(2.0),
        A::Rcp | A::Div if wgsl => Bound::Ulp(2.5),
        A::Sin | A::Cos if wgsl => Bound::Absolute(power(-11.0)),
        // The worse of this and of `sinh(x) / cosh(x)`, whose exponentials are as far off as their argument is large.
        A::Tanh if wgsl => Bound::Absolute(f64::max(1.0e-5, (2.0 * (3.0 + 2.0 * size) + 2.5) * power(-24.0))),
        A::Asin => Bound::Absolute(6.81e-5),
        A::Acos => Bound::Absolute(6.77e-5),
        A::Atan => Bound::Ulp(4096.0),
        A::Exp | A::Exp2 => Bound::Ulp(2.0),
        A::Log | A::Log2 if x > 0.5 && x < 2.0 => Bound::Absolute(power(-22.0)),
        A::Log | A::Log2 => Bound::Relative(power(-22.0)),
        A::Rsqrt => Bound::Relative(power(-22.9)),
        A::Rcp => Bound::Ulp(1.0),
        A::Div => Bound::Ulp(2.0),
        A::Sqrt => Bound::Relative(power(-23.0)),
        A::Sin | A::Cos if size <= std::f64::consts::TAU => Bound::Absolute(power(-20.5)),
        A::Sin | A::Cos => Bound::Absolute(power(-14.7)),
        A::Tanh => Bound::Relative(power(-11.0)),
        A::Exp2Half => Bound::Relative(power(-9.9)),
        A::Exp2Bfloat => Bound::Relative(power(-7.0)),
        A::TanhHalf => Bound::Absolute(power(-10.987)),
        A::TanhBfloat => Bound::Absolute(power(-8.0)),
    }
}

/// A well-mixed number of the inputs.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// A value within the bound around `exact`; a function of seed and argument alone.
pub(crate) fn perturb(op: Approximate, wgsl: bool, seed: u64, exact: f64, x: f32) -> f64 {
    let round = |v: f64| match op {
        Approximate::Exp2Half | Approximate::TanhHalf => to_half(v).to_f64(),
        Approximate::Exp2Bfloat | Approximate::TanhBfloat => to_bfloat(v).to_f64(),
        _ => f64::from(v as f32),
    };
    let plain = round(exact);
    let bound = bound(op, wgsl, x);
    // PTX says what these functions are of zero. What underflows is as exact as it can be.
    let pinned = !wgsl && x == 0.0 || plain == 0.0 && !matches!(bound, Bound::Absolute(_));
    if !plain.is_finite() || pinned {
        return plain;
    }
    let noise = mix(seed.wrapping_add(op as u64), u64::from(x.to_bits()) ^ u64::from((exact as f32).to_bits()) << 32);
    let part = (noise >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    let most = bound.at(exact);
    // Rounding may lead out of the bound.
    let near = [part * most, part * most / 2.0].map(|off| round(exact + off));
    near.into_iter().find(|v| v.is_finite() && (v - exact).abs() <= most).unwrap_or(plain)
}
