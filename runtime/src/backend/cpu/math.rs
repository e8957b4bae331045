//! Elementary functions as branch-free arithmetic, so that loops over them become vector code. Every function here is
//! total: large arguments saturate, and a NaN stays one.

/// `eˣ` for x ≤ 88; the argument is bounded there, and results below the smallest normal number are 0.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x0 = x;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_145_75, x);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let y = p * f32::from_bits(bits);
    if x0 < -87.0 { 0.0 } else { y }
}

/// Hyperbolic tangent; ±1 from |x| = 9 on.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let c = if a > 10.0 { 10.0 } else { a };
    let far = 1.0 - 2.0 / (exp(2.0 * c) + 1.0);
    let s = x * x;
    let p = -5.704_988_7e-3f32;
    let p = p.mul_add(s, 2.063_908_9e-2);
    let p = p.mul_add(s, -5.373_971_5e-2);
    let p = p.mul_add(s, 1.333_144_2e-1);
    let p = p.mul_add(s, -3.333_328_2e-1);
    let near = (p * s).mul_add(x, x);
    if a < 0.625 { near } else { far.copysign(x) }
}

/// Error function; relative error about one unit in the last place.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = if a > 4.0 { 4.0 } else { a };
    let s = t * t;
    let u = t.mul_add(-1.728_534_7e-5, 3.831_971_3e-4);
    let v = t.mul_add(-3.883_964_4e-3, 2.425_462_2e-2);
    let r = u.mul_add(s, v);
    let r = r.mul_add(t, -1.067_778_8e-1);
    let r = r.mul_add(t, -6.348_467e-1);
    let r = r.mul_add(t, -1.287_175_1e-1);
    let r = r.mul_add(t, -t);
    let far = (1.0 - exp(r)).copysign(x);
    let p = -5.967_617e-4f32;
    let p = p.mul_add(s, 4.991_194e-3);
    let p = p.mul_add(s, -2.676_813_5e-2);
    let p = p.mul_add(s, 1.128_199_2e-1);
    let p = p.mul_add(s, -3.761_253_3e-1);
    let p = p.mul_add(s, 1.283_791_7e-1);
    let near = p.mul_add(x, x);
    if a > 0.927_734_4 { far } else { near }
}

/// `1/(1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x·(1 + erf(x/√2))/2`.
#[inline(always)]
pub fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2`, as `x·sigmoid(2u)`.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let u = 1.595_769_1 * x * (x * x).mul_add(0.044_715, 1.0);
    x * sigmoid(u)
}

/// `aᵇ`: for negative a only integral b.
#[inline(always)]
pub fn pow(a: f32, b: f32) -> f32 {
    if b == 2.0 {
        a * a
    } else if b == 3.0 {
        a * a * a
    } else if b == 0.5 {
        a.sqrt()
    } else {
        a.powf(b)
    }
}

/// −1, 0 or 1.
#[inline(always)]
pub fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

/// The value of an IEEE half, by its bits.
#[inline(always)]
pub fn half_to_f32(h: u16) -> f32 {
    let h = h as u32;
    let magnitude = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (h & 0x8000) << 16)
}

/// The value of a bfloat, by its bits.
#[inline(always)]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn erf64(x: f64) -> f64 {
        let a = x.abs();
        if a > 6.0 {
            return x.signum();
        }
        let n = 4000;
        let h = a / n as f64;
        let f = |t: f64| (-t * t).exp();
        let inner: f64 = (1..n).map(|i| f(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        (x.signum()) * (f(0.0) + inner + f(a)) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
    }
    fn grid(limit: f32) -> impl Iterator<Item = f32> {
        (-20_000..=20_000).map(move |i| limit * (i as f32 / 20_000.0).powi(3))
    }
    #[test]
    fn exp_is_within_two_tenths_of_a_millionth() {
        for x in grid(86.9) {
            let want = (x as f64).exp();
            assert!(((exp(x) as f64 - want) / want).abs() < 2e-7, "{x}: {} for {want}", exp(x));
        }
        assert!(exp(1e30).is_finite() && exp(f32::NEG_INFINITY) == 0.0 && exp(-1e4) == 0.0 && exp(f32::NAN).is_nan());
        assert!(exp(88.0) > 1.6e38);
    }
    #[test]
    fn tanh_and_erf_hold_their_bounds() {
        for x in grid(12.0) {
            let (t, e) = ((x as f64).tanh(), erf64(x as f64));
            assert!((tanh(x) as f64 - t).abs() <= 3e-7 * t.abs() + 1e-12, "tanh {x}: {} for {t}", tanh(x));
            assert!((erf(x) as f64 - e).abs() < 1.5e-7, "erf {x}: {} for {e}", erf(x));
        }
        for big in [1e4f32, 1e30, f32::INFINITY] {
            assert_eq!((tanh(big), tanh(-big), erf(big), erf(-big)), (1.0, -1.0, 1.0, -1.0));
        }
    }
    #[test]
    fn gated_units_are_finite_and_right() {
        for x in grid(30.0) {
            let xd = x as f64;
            let g = 0.5 * xd * (1.0 + erf64(xd / 2f64.sqrt()));
            let u = (2.0 / std::f64::consts::PI).sqrt() * (xd + 0.044715 * xd.powi(3));
            let t = 0.5 * xd * (1.0 + u.tanh());
            assert!((gelu_erf(x) as f64 - g).abs() < 4e-7 * xd.abs().max(1.0), "{x}");
            assert!((gelu_tanh(x) as f64 - t).abs() < 4e-7 * xd.abs().max(1.0), "{x}: {} for {t}", gelu_tanh(x));
            assert!((sigmoid(x) as f64 - 1.0 / (1.0 + (-xd).exp())).abs() < 2e-7);
        }
        for x in [-1e4f32, 1e4, -1e13, 1e13] {
            assert_eq!(gelu_erf(x).abs(), x.max(0.0), "{x}");
            assert!((gelu_tanh(x) - x.max(0.0)).abs() < 1e-20, "{x}");
        }
    }
    #[test]
    fn halves_convert_exactly() {
        for h in 0..=u16::MAX {
            let (got, want) = (half_to_f32(h), half::f16::from_bits(h).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{h:04x}");
        }
    }
}
