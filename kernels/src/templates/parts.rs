//! What a run of a stored argument is made of: groups of elements under one scale, and when their floats are made of their
//! bits.

use super::common::KernelCtx;
use crate::dtype::Storage;
use crate::ir::{self, Val};
use crate::spec::ArgId;

/// Consecutive elements that share a scale: element i is `quant[i]·scale + min`, its quant being one of a quad.
#[derive(Clone, Debug)]
pub struct Part {
    /// Four quants each.
    pub quads: Vec<Quad>,
    /// `f32`; `None` is 1.
    pub scale: Option<Val>,
    /// `f32`; `None` is 0.
    pub min: Option<Val>,
}

impl Part {
    /// Whether the quants are the elements.
    pub fn is_plain(&self) -> bool {
        self.scale.is_none() && self.min.is_none()
    }
}

/// Four consecutive quants.
#[derive(Clone, Copy, Debug)]
pub enum Quad {
    /// `vec4<f32>`.
    Floats(Val),
    /// `u32`: quant j is byte j, less than 128.
    Bytes(Val),
}

impl KernelCtx<'_> {
    /// Whether runs of the argument have quads of bytes.
    pub fn has_bytes(&self, arg: ArgId) -> bool {
        use Storage::{Q2K, Q3K, Q4_0, Q4_1, Q4F, Q4K, Q5_0, Q5_1, Q5K, Q6K};
        let has = |s| matches!(s, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4F | Q2K | Q3K | Q4K | Q5K | Q6K);
        self.arg(arg).is_some_and(|a| has(a.storage))
    }
    /// The quants as `vec4<f32>`.
    pub fn floats(&self, quad: Quad) -> Val {
        match quad {
            Quad::Floats(v) => v,
            Quad::Bytes(w) => self.b.cast(ir::Scalar::F32, self.b.unpack_u8(w)),
        }
    }
    /// Quant j times 2^(8j) as `vec4<f32>`, exactly: bytes are not moved to where their numbers would begin. To be
    /// multiplied by what [`units_in_place`](Self::units_in_place) was multiplied with.
    pub fn bytes_in_place(&self, word: Val) -> Val {
        let b = &self.b;
        let masks = b.vec4(0xffu32, 0xff00u32, 0xff_0000u32, 0xff00_0000u32);
        b.cast(ir::Scalar::F32, b.bit_and(b.splat(4, word), masks))
    }
    /// 2^(−8·(i mod 4)): what undoes the factor of quant i in [`bytes_in_place`](Self::bytes_in_place).
    pub fn units_in_place(&self, i: Val) -> Val {
        let b = &self.b;
        let exponent = b.sub(127, b.shl(b.bit_and(i, 3), 3));
        b.bitcast(ir::Scalar::F32, b.shl(exponent, 23))
    }
    /// The elements of a run as plain values, `vec4<f32>` each.
    pub fn values(&self, parts: &[Part]) -> Vec<Val> {
        let b = &self.b;
        let value = |p: &Part, q: Quad| match (p.scale, p.min) {
            (Some(d), Some(m)) => b.fma(self.floats(q), d, m),
            (Some(d), None) => b.mul(self.floats(q), d),
            (None, Some(m)) => b.add(self.floats(q), m),
            (None, None) => self.floats(q),
        };
        parts.iter().flat_map(|p| p.quads.iter().map(move |q| value(p, *q))).collect()
    }
}
