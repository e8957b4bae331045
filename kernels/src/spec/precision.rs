//! How exactly a matmul multiplies.
//!
//! An `f32` has 24 significant bits and a bf16 has 8, so that x = x₀ + x₁ + x₂ with each xᵢ the nearest bf16 of what the
//! ones before left. A product of two bf16 is exact in `f32`, and a·b is the sum of the aᵢ·bⱼ that are kept: the leading
//! 1, 3 or 6 of nine. The decomposition is that of Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial
//! intelligence datatype for higher-precision computations" (arXiv 1904.06376).
//!
//! Numbers of magnitude 2¹²⁸·(1 − 2⁻⁹) and more become infinite; parts below 2⁻¹³³ are lost.

use serde::{Deserialize, Serialize};

/// How exactly the products of a matmul are made. Sums are `f32` always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// `f32`, except that matrix units, which take 16-bit operands, serve weights that are stored in 16 bits or fewer.
    #[default]
    Auto,
    /// `f32` products everywhere; no matrix units.
    F32,
    /// Both sides rounded to bf16: one product.
    Bf16x1,
    /// Both sides as sums of two bf16: three products.
    Bf16x2,
    /// Both sides as sums of three bf16: six products.
    Bf16x3,
}

/// Half a unit in the last place of 1 in bf16.
const BF16: f64 = 1.0 / 512.0;
/// Half a unit in the last place of 1 in `f32`.
const F32: f64 = 1.0 / 16_777_216.0;

impl MatmulPrecision {
    /// All of them.
    pub const ALL: [MatmulPrecision; 5] = [
        MatmulPrecision::Auto,
        MatmulPrecision::F32,
        MatmulPrecision::Bf16x1,
        MatmulPrecision::Bf16x2,
        MatmulPrecision::Bf16x3,
    ];
    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            MatmulPrecision::Auto => "auto",
            MatmulPrecision::F32 => "f32",
            MatmulPrecision::Bf16x1 => "bf16x1",
            MatmulPrecision::Bf16x2 => "bf16x2",
            MatmulPrecision::Bf16x3 => "bf16x3",
        }
    }
    /// The precision of that name.
    pub fn of(name: &str) -> Option<MatmulPrecision> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
    /// Whether it is [`MatmulPrecision::Auto`].
    pub fn is_auto(&self) -> bool {
        *self == MatmulPrecision::Auto
    }
    /// How many bf16 each side is a sum of; 0 where sides stay as they are.
    pub const fn parts(self) -> usize {
        match self {
            MatmulPrecision::Auto | MatmulPrecision::F32 => 0,
            MatmulPrecision::Bf16x1 => 1,
            MatmulPrecision::Bf16x2 => 2,
            MatmulPrecision::Bf16x3 => 3,
        }
    }
    /// The products that are summed, by part of the left and of the right side, smallest first.
    pub const fn terms(self) -> &'static [(usize, usize)] {
        const ALL: [(usize, usize); 6] = [(2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)];
        let skipped = match self {
            MatmulPrecision::Auto | MatmulPrecision::F32 | MatmulPrecision::Bf16x1 => 5,
            MatmulPrecision::Bf16x2 => 3,
            MatmulPrecision::Bf16x3 => 0,
        };
        ALL.split_at(skipped).1
    }
    /// A bound on `|computed − Σ a·b| / Σ |a·b|` over a sum of `k` products, apart from overflow and underflow.
    ///
    /// With u = 2⁻⁹ a side is left with a remainder of at most uⁿ after n parts, and its parts are at most 1, u(1 + u) and
    /// u²(1 + u) of it; what the dropped products hold is at most 2u + u² (n = 1), 3u²(1 + 2u) (n = 2) and 2u³(1 + 2u) (n = 3,
    /// which leaves no remainder: 24 = 3 · 8 bits). A sum of m numbers in `f32` in any order adds m·2⁻²⁴ / (1 − m·2⁻²⁴) of what
    /// is summed (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, §3.1 and §4.2).
    pub fn error_bound(self, k: u64) -> f64 {
        let u = BF16;
        let dropped = match self.parts() {
            0 => 0.0,
            1 => 2.0 * u + u * u,
            2 => 3.0 * u * u * (1.0 + 2.0 * u),
            _ => 2.0 * u * u * u * (1.0 + 2.0 * u),
        };
        let m = (k as f64 * self.terms().len() as f64 + 1.0) * F32;
        // The kept products are at most (1 + u)⁵ of all, taken by magnitude.
        dropped + m / (1.0 - m) * (1.0 + u).powi(5)
    }
}

/// The nearest bf16, ties to even, as `f32`. NaN stays NaN; beyond the largest bf16 lies infinity.
#[inline]
pub fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    f32::from_bits(if x.is_nan() { quiet } else { rounded } & 0xffff_0000)
}

/// The next bf16 part of `x`, and what it leaves: 0 where the part is not finite.
#[inline]
pub fn split_bf16(x: f32) -> (f32, f32) {
    let part = to_bf16(x);
    (part, if part.is_finite() { x - part } else { 0.0 })
}
