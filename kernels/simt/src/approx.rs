//! Documented error bounds of approximate functions, and results that use them up.
//!
//! WGSL: "Accuracy of expressions" of the specification. PTX: the instruction set's text for each `.approx` form.

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
}

/// Largest difference from the exact value.
enum Bound {
    /// Units in the last place.
    Ulp(f64),
    Relative(f64),
    Absolute(f64),
}

fn bound(op: Approximate, wgsl: bool, x: f32) -> Bound {
    use Approximate as A;
    let power = |e: f64| e.exp2();
    if wgsl {
        return match op {
            A::Exp | A::Exp2 => Bound::Ulp(3.0 + 2.0 * f64::from(x.abs())),
            A::Log | A::Log2 if (0.5..=2.0).contains(&x) => Bound::Absolute(power(-21.0)),
            A::Log | A::Log2 => Bound::Ulp(3.0),
            A::Rsqrt => Bound::Ulp(2.0),
            A::Rcp | A::Div => Bound::Ulp(2.5),
            A::Sqrt => Bound::Ulp(4.5),
            A::Sin | A::Cos => Bound::Absolute(power(-11.0)),
            A::Tanh => Bound::Absolute(1.0e-5),
        };
    }
    match op {
        A::Exp | A::Exp2 => Bound::Relative(power(-22.0)),
        A::Log | A::Log2 => Bound::Absolute(power(-22.0)),
        A::Rsqrt => Bound::Relative(power(-22.9)),
        A::Rcp => Bound::Ulp(1.0),
        A::Div => Bound::Ulp(2.0),
        A::Sqrt => Bound::Relative(power(-23.0)),
        A::Sin | A::Cos => Bound::Absolute(power(-20.9)),
        A::Tanh => Bound::Relative(power(-11.0)),
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
pub(crate) fn perturb(op: Approximate, wgsl: bool, seed: u64, exact: f64, x: f32) -> f32 {
    let plain = exact as f32;
    if !plain.is_finite() || plain == 0.0 {
        return plain;
    }
    let noise = mix(seed.wrapping_add(op as u64), u64::from(x.to_bits()) ^ u64::from(plain.to_bits()) << 32);
    let part = (noise >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    let most = match bound(op, wgsl, x) {
        Bound::Absolute(e) => e,
        Bound::Relative(e) => e * exact.abs(),
        Bound::Ulp(n) => {
            let exponent = i32::from((plain.to_bits() >> 23) as u8) - 127;
            n * f64::from(exponent.max(-126) - 23).exp2()
        }
    };
    let near = (exact + part * most) as f32;
    if near.is_finite() { near } else { plain }
}
