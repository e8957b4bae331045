//! Element types: what kernels compute in ([`Scalar`]) and how values are stored ([`Storage`]).

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type an expression computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer; 64-bit integers of model files are narrowed with a range check.
    I32,
    /// Truth value, stored as an `I32` of 0 or 1.
    Bool,
}

/// How elements lie in memory. Quantised formats store blocks of elements along the innermost dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 4-byte float.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a 4-byte float.
    Bf16,
    /// 4-byte signed integer.
    I32,
    /// Truth values as `I32` 0 or 1.
    Bool,
    /// 32 4-bit values and an f16 scale: `(q − 8)·d`.
    Q4_0,
    /// 32 4-bit values, f16 scale and minimum: `q·d + m`.
    Q4_1,
    /// 32 5-bit values and an f16 scale: `(q − 16)·d`.
    Q5_0,
    /// 32 5-bit values, f16 scale and minimum: `q·d + m`.
    Q5_1,
    /// 32 signed bytes and an f16 scale: `q·d`.
    Q8_0,
    /// 256 2-bit values in 16 groups with 4-bit scales and minima: `q·d·sc − dmin·mn`.
    Q2K,
    /// 256 3-bit values in 16 groups with 6-bit scales: `(q − 4)·d·(sc − 32)`.
    Q3K,
    /// 256 4-bit values in 8 groups with 6-bit scales and minima: `q·d·sc − dmin·mn`.
    Q4K,
    /// 256 5-bit values in 8 groups with 6-bit scales and minima: `q·d·sc − dmin·mn`.
    Q5K,
    /// 256 6-bit values in 16 groups with 8-bit scales: `(q − 32)·d·sc`.
    Q6K,
    /// 32 4-bit codes of [`IQ4_CODES`] and an f16 scale: `code(q)·d`.
    Iq4Nl,
    /// 256 4-bit codes of [`IQ4_CODES`] in 8 groups with 6-bit scales: `code(q)·d·(sc − 32)`.
    Iq4Xs,
    /// 32 4-bit floats, codes of [`FP4_CODES`], and a bf16 scale, which holds every power of two of MXFP4: `code(q)·d`.
    Fp4,
    /// 32 4-bit values, f32 scale and minimum: `q·d + m`.
    Q4F,
    /// 32 signed bytes, f32 scale and minimum: `q·d + m`.
    Q8F,
}

/// A 16-bit float format that matrix units multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HalfFormat {
    /// IEEE half.
    F16,
    /// The upper half of a 4-byte float.
    Bf16,
}

impl HalfFormat {
    /// The largest `f16`.
    pub const F16_MAX: f32 = 65504.0;

    /// How elements of it lie in memory.
    pub const fn storage(self) -> Storage {
        match self {
            HalfFormat::F16 => Storage::F16,
            HalfFormat::Bf16 => Storage::Bf16,
        }
    }
    /// The name used in text forms.
    pub const fn name(self) -> &'static str {
        self.storage().name()
    }
}

/// What the 4-bit codes of [`Storage::Iq4Nl`] and [`Storage::Iq4Xs`] stand for.
pub const IQ4_CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice what the 4-bit floats of MXFP4 stand for: a sign, two bits of exponent, one of mantissa.
pub const FP4_CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Storage {
    /// All storage types.
    pub const ALL: [Storage; 20] = [
        Storage::F32,
        Storage::F16,
        Storage::Bf16,
        Storage::I32,
        Storage::Bool,
        Storage::Q4_0,
        Storage::Q4_1,
        Storage::Q5_0,
        Storage::Q5_1,
        Storage::Q8_0,
        Storage::Q2K,
        Storage::Q3K,
        Storage::Q4K,
        Storage::Q5K,
        Storage::Q6K,
        Storage::Iq4Nl,
        Storage::Iq4Xs,
        Storage::Fp4,
        Storage::Q4F,
        Storage::Q8F,
    ];
    /// Elements of a block; 1 for plain types.
    pub const fn block_elems(self) -> u64 {
        match self {
            Storage::F32 | Storage::F16 | Storage::Bf16 | Storage::I32 | Storage::Bool => 1,
            Storage::Q4_0 | Storage::Q4_1 | Storage::Q5_0 | Storage::Q5_1 | Storage::Q8_0 => 32,
            Storage::Iq4Nl | Storage::Fp4 | Storage::Q4F | Storage::Q8F => 32,
            Storage::Q2K | Storage::Q3K | Storage::Q4K | Storage::Q5K | Storage::Q6K | Storage::Iq4Xs => 256,
        }
    }
    /// Bytes of a block as model files store it.
    pub const fn block_bytes(self) -> u64 {
        match self {
            Storage::F32 | Storage::I32 | Storage::Bool => 4,
            Storage::F16 | Storage::Bf16 => 2,
            Storage::Q4_0 | Storage::Iq4Nl | Storage::Fp4 => 18,
            Storage::Q4_1 => 20,
            Storage::Q5_0 => 22,
            Storage::Q5_1 | Storage::Q4F => 24,
            Storage::Q8_0 => 34,
            Storage::Q8F => 40,
            Storage::Q2K => 84,
            Storage::Q3K => 110,
            Storage::Iq4Xs => 136,
            Storage::Q4K => 144,
            Storage::Q5K => 176,
            Storage::Q6K => 210,
        }
    }
    /// Whether elements come in blocks.
    pub const fn is_quantised(self) -> bool {
        self.block_elems() > 1
    }
    /// The format that matrix units multiply weights of this storage in, and round the other side to; `None` for what they
    /// do not multiply.
    pub const fn matrix_format(self) -> Option<HalfFormat> {
        match self {
            Storage::F16 => Some(HalfFormat::F16),
            Storage::Bf16 => Some(HalfFormat::Bf16),
            s if s.is_quantised() => Some(HalfFormat::Bf16),
            _ => None,
        }
    }
    /// The type a load of this storage yields.
    pub const fn scalar(self) -> Scalar {
        match self {
            Storage::I32 => Scalar::I32,
            Storage::Bool => Scalar::Bool,
            _ => Scalar::F32,
        }
    }
    /// Bytes of `elems` elements as model files store them; `None` when they do not fill whole blocks or overflow.
    pub fn size_bytes(self, elems: u64) -> Option<u64> {
        elems.is_multiple_of(self.block_elems()).then(|| elems / self.block_elems())?.checked_mul(self.block_bytes())
    }
    /// The name used in text forms.
    pub const fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
            Storage::Bf16 => "bf16",
            Storage::I32 => "i32",
            Storage::Bool => "bool",
            Storage::Q4_0 => "q4_0",
            Storage::Q4_1 => "q4_1",
            Storage::Q5_0 => "q5_0",
            Storage::Q5_1 => "q5_1",
            Storage::Q8_0 => "q8_0",
            Storage::Q2K => "q2_k",
            Storage::Q3K => "q3_k",
            Storage::Q4K => "q4_k",
            Storage::Q5K => "q5_k",
            Storage::Q6K => "q6_k",
            Storage::Iq4Nl => "iq4_nl",
            Storage::Iq4Xs => "iq4_xs",
            Storage::Fp4 => "fp4",
            Storage::Q4F => "q4_f",
            Storage::Q8F => "q8_f",
        }
    }
    /// The storage type of that name.
    pub fn from_name(name: &str) -> Option<Storage> {
        Storage::ALL.into_iter().find(|s| s.name() == name)
    }

    /// The word layout that GPU kernels read: planes of 32-bit words, one after the other, each with this many words a
    /// block (see [`crate::dtype::Plane`]).
    pub const fn planes(self) -> &'static [Plane] {
        const fn p(name: &'static str, halfwords_per_block: u64) -> Plane {
            Plane { name, halfwords_per_block }
        }
        match self {
            Storage::F32 | Storage::I32 | Storage::Bool => const { &[p("values", 2)] },
            Storage::F16 | Storage::Bf16 => const { &[p("values", 1)] },
            Storage::Q4_0 | Storage::Iq4Nl | Storage::Fp4 => const { &[p("quants", 8), p("scales", 1)] },
            Storage::Q4_1 => const { &[p("quants", 8), p("scale_min", 2)] },
            Storage::Q5_0 => const { &[p("quants", 8), p("high_bits", 2), p("scales", 1)] },
            Storage::Q5_1 => const { &[p("quants", 8), p("high_bits", 2), p("scale_min", 2)] },
            Storage::Q8_0 => const { &[p("quants", 16), p("scales", 1)] },
            Storage::Q4F => const { &[p("quants", 8), p("scale_min", 4)] },
            Storage::Q8F => const { &[p("quants", 16), p("scale_min", 4)] },
            Storage::Q2K => const { &[p("quants", 32), p("scale_min", 2), p("groups", 8)] },
            Storage::Q3K => const { &[p("low_bits", 32), p("high_bits", 16), p("groups", 6), p("scales", 1)] },
            Storage::Q4K => const { &[p("quants", 64), p("scale_min", 2), p("groups", 6)] },
            Storage::Q5K => const { &[p("quants", 64), p("high_bits", 16), p("scale_min", 2), p("groups", 6)] },
            Storage::Iq4Xs => const { &[p("quants", 64), p("scale_high", 2), p("groups", 2)] },
            Storage::Q6K => const { &[p("low_bits", 64), p("high_bits", 32), p("groups", 8), p("scales", 1)] },
        }
    }
    /// The first word of plane `i` in a tensor of `blocks` blocks; every plane starts on a 16-byte boundary.
    pub fn plane_word(self, i: usize, blocks: u64) -> u64 {
        self.planes().iter().take(i).map(|p| p.words(blocks)).sum()
    }
    /// Words of the whole device layout of `blocks` blocks.
    pub fn device_words(self, blocks: u64) -> u64 {
        self.plane_word(self.planes().len(), blocks)
    }
}

/// One plane of a storage type's device layout.
///
/// Within a plane the blocks follow each other without gaps in units of 16 bits, little end first, each holding the
/// same bytes in the same order as the block of the model file:
///
/// | type | planes (bytes of the file's block) |
/// |---|---|
/// | q4_0 | quants 2..18 · scales 0..2 |
/// | q4_1 | quants 4..20 · scale_min 0..4 |
/// | q5_0 | quants 6..22 · high_bits 2..6 · scales 0..2 |
/// | q5_1 | quants 8..24 · high_bits 4..8 · scale_min 0..4 |
/// | q8_0 | quants 2..34 · scales 0..2 |
/// | iq4_nl, fp4 | quants 2..18 · scales 0..2 |
/// | q4_f | quants 8..24 · scale_min 0..8 |
/// | q8_f | quants 8..40 · scale_min 0..8 |
/// | q2_k | quants 16..80 · scale_min 80..84 · groups 0..16 |
/// | q3_k | low_bits 32..96 · high_bits 0..32 · groups 96..108 · scales 108..110 |
/// | q4_k | quants 16..144 · scale_min 0..4 · groups 4..16 |
/// | q5_k | quants 48..176 · high_bits 16..48 · scale_min 0..4 · groups 4..16 |
/// | iq4_xs | quants 8..136 · scale_high 0..4 · groups 4..8 |
/// | q6_k | low_bits 0..128 · high_bits 128..192 · groups 192..208 · scales 208..210 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// What it holds.
    pub name: &'static str,
    /// 16-bit units a block.
    pub halfwords_per_block: u64,
}

impl Plane {
    /// 32-bit words of this plane for `blocks` blocks, rounded up to a multiple of 4.
    pub const fn words(&self, blocks: u64) -> u64 {
        (self.halfwords_per_block * blocks).div_ceil(8) * 4
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scalar::F32 => "f32",
            Scalar::I32 => "i32",
            Scalar::Bool => "bool",
        })
    }
}

/// The byte range of each plane inside one block of a model file, in the order of [`Storage::planes`].
pub const fn plane_bytes(s: Storage) -> &'static [(usize, usize)] {
    match s {
        Storage::F32 | Storage::I32 | Storage::Bool => &[(0, 4)],
        Storage::F16 | Storage::Bf16 => &[(0, 2)],
        Storage::Q4_0 | Storage::Iq4Nl | Storage::Fp4 => &[(2, 18), (0, 2)],
        Storage::Q4_1 => &[(4, 20), (0, 4)],
        Storage::Q5_0 => &[(6, 22), (2, 6), (0, 2)],
        Storage::Q5_1 => &[(8, 24), (4, 8), (0, 4)],
        Storage::Q8_0 => &[(2, 34), (0, 2)],
        Storage::Q4F => &[(8, 24), (0, 8)],
        Storage::Q8F => &[(8, 40), (0, 8)],
        Storage::Q2K => &[(16, 80), (80, 84), (0, 16)],
        Storage::Q3K => &[(32, 96), (0, 32), (96, 108), (108, 110)],
        Storage::Q4K => &[(16, 144), (0, 4), (4, 16)],
        Storage::Q5K => &[(48, 176), (16, 48), (0, 4), (4, 16)],
        Storage::Iq4Xs => &[(8, 136), (0, 4), (4, 8)],
        Storage::Q6K => &[(0, 128), (128, 192), (192, 208), (208, 210)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_cover_the_block_once() {
        for s in Storage::ALL {
            let mut bytes: Vec<usize> = plane_bytes(s).iter().flat_map(|(a, b)| *a..*b).collect();
            bytes.sort_unstable();
            assert_eq!(bytes, (0..s.block_bytes() as usize).collect::<Vec<_>>(), "{s}");
            for (p, (a, b)) in s.planes().iter().zip(plane_bytes(s)) {
                assert_eq!(p.halfwords_per_block as usize * 2, b - a, "{s} {}", p.name);
            }
        }
    }
    #[test]
    fn names_round_trip() {
        for s in Storage::ALL {
            assert_eq!(Storage::from_name(s.name()), Some(s));
        }
    }
}
