//! Pairs of 16-bit floats in a word, and rounding to them: once, to nearest, ties to even.

use half::{bf16, f16};

/// A float that rounds to 16 bits as `v` itself does: the one toward zero, with its last bit set where anything is lost.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    if f64::from(near) == v || !near.is_finite() {
        return near;
    }
    let below = near.to_bits() - u32::from(f64::from(near).abs() > v.abs());
    f32::from_bits(below | 1)
}

/// The nearest `f16`.
pub(crate) fn to_half(v: f64) -> f16 {
    f16::from_f32(to_odd(v))
}

/// The nearest `bf16`.
pub(crate) fn to_bfloat(v: f64) -> bf16 {
    bf16::from_f32(to_odd(v))
}

pub(crate) fn halves(x: u32) -> (f32, f32) {
    (f16::from_bits(x as u16).to_f32(), f16::from_bits((x >> 16) as u16).to_f32())
}

pub(crate) fn bfloats(x: u32) -> (f32, f32) {
    (f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000))
}

pub(crate) fn pack_half(lo: f64, hi: f64) -> u32 {
    u32::from(to_half(lo).to_bits()) | u32::from(to_half(hi).to_bits()) << 16
}

pub(crate) fn pack_bfloat(lo: f64, hi: f64) -> u32 {
    u32::from(to_bfloat(lo).to_bits()) | u32::from(to_bfloat(hi).to_bits()) << 16
}

pub(crate) fn on_halves(a: u32, b: u32, g: impl Fn(f64, f64) -> f64) -> u32 {
    let ((a0, a1), (b0, b1)) = (halves(a), halves(b));
    pack_half(g(a0.into(), b0.into()), g(a1.into(), b1.into()))
}

pub(crate) fn on_bfloats(a: u32, b: u32, g: impl Fn(f64, f64) -> f64) -> u32 {
    let ((a0, a1), (b0, b1)) = (bfloats(a), bfloats(b));
    pack_bfloat(g(a0.into(), b0.into()), g(a1.into(), b1.into()))
}

pub(crate) fn half_toward_zero(x: f32) -> u16 {
    let h = f16::from_f32(x);
    if x.is_finite() && h.to_f32().abs() > x.abs() { h.to_bits() - 1 } else { h.to_bits() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values a little off the middle between two neighbours, and the middle itself.
    #[test]
    fn what_is_lost_still_decides_a_tie() {
        for scale in [1.0, -1.0, 2.0f64.powi(-20)] {
            let (even, odd) = (scale, scale * (1.0 + 2.0f64.powi(-7)));
            let middle = (even + odd) / 2.0;
            for (off, bfloat) in [(0.0, even), (1e-9, odd), (-1e-9, even)] {
                assert_eq!(to_bfloat(middle * (1.0 + off)).to_f64(), bfloat, "{scale} {off}");
            }
        }
        let middle = 1.0 + 2.0f64.powi(-11);
        assert_eq!(to_half(middle).to_f64(), 1.0);
        assert_eq!(to_half(middle + 2.0f64.powi(-40)).to_f64(), 1.0 + 2.0f64.powi(-10));
        let tiny = 2.0f64.powi(-25);
        assert_eq!(to_half(tiny).to_f64(), 0.0);
        assert_eq!(to_half(tiny * (1.0 + 2.0f64.powi(-45))).to_f64(), 2.0f64.powi(-24));
        assert_eq!(to_half(65_520.0).to_bits(), 0x7c00);
        assert_eq!(to_half(65_519.999_999).to_f64(), 65504.0);
    }
}
