//! Element types of ONNX tensors, and their values brought to the types that kernels know.

use frit_kernels::dtype::{Scalar, Storage};
use half::{bf16, f16};
use std::fmt;

/// An element type, by the numbers of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    Float,
    Double,
    Float16,
    Bfloat16,
    Float8E4M3Fn,
    Float8E5M2,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int4,
    Uint4,
    Bool,
}

const CODES: [(i32, Elem, &str); 17] = [
    (1, Elem::Float, "float"),
    (2, Elem::Uint8, "uint8"),
    (3, Elem::Int8, "int8"),
    (4, Elem::Uint16, "uint16"),
    (5, Elem::Int16, "int16"),
    (6, Elem::Int32, "int32"),
    (7, Elem::Int64, "int64"),
    (9, Elem::Bool, "bool"),
    (10, Elem::Float16, "float16"),
    (11, Elem::Double, "double"),
    (12, Elem::Uint32, "uint32"),
    (13, Elem::Uint64, "uint64"),
    (16, Elem::Bfloat16, "bfloat16"),
    (17, Elem::Float8E4M3Fn, "float8e4m3fn"),
    (19, Elem::Float8E5M2, "float8e5m2"),
    (21, Elem::Uint4, "uint4"),
    (22, Elem::Int4, "int4"),
];

/// The name of a type number, also of those that are not read.
pub fn code_name(code: i32) -> String {
    let other = match code {
        0 => "no element type",
        8 => "string",
        14 => "complex64",
        15 => "complex128",
        18 => "float8e4m3fnuz",
        20 => "float8e5m2fnuz",
        23 => "float4e2m1",
        24 => "float8e8m0",
        25 => "uint2",
        26 => "int2",
        _ => "",
    };
    match (Elem::from_code(code), other) {
        (Some(e), _) => e.to_string(),
        (None, "") => format!("element type {code}"),
        (None, name) => name.to_owned(),
    }
}

impl Elem {
    /// The type of that number, if its values are read.
    pub fn from_code(code: i32) -> Option<Elem> {
        CODES.iter().find(|c| c.0 == code).map(|c| c.1)
    }
    /// The type that its values are computed in: 64-bit types are narrowed, with a check where values are known.
    pub fn scalar(self) -> Scalar {
        match self {
            Elem::Bool => Scalar::Bool,
            e if e.is_float() => Scalar::F32,
            _ => Scalar::I32,
        }
    }
    /// Whether its values are floats.
    pub fn is_float(self) -> bool {
        use Elem::{Bfloat16, Double, Float, Float8E4M3Fn, Float8E5M2, Float16};
        matches!(self, Float | Double | Float16 | Bfloat16 | Float8E4M3Fn | Float8E5M2)
    }
    /// Whether its values are integers.
    pub fn is_int(self) -> bool {
        self.scalar() == Scalar::I32
    }
    /// Bits of an element in a file.
    pub fn bits(self) -> u64 {
        match self {
            Elem::Double | Elem::Int64 | Elem::Uint64 => 64,
            Elem::Float | Elem::Int32 | Elem::Uint32 => 32,
            Elem::Float16 | Elem::Bfloat16 | Elem::Int16 | Elem::Uint16 => 16,
            Elem::Int4 | Elem::Uint4 => 4,
            _ => 8,
        }
    }
    /// Bytes of `elems` elements in a file; `None` on overflow.
    pub fn size_bytes(self, elems: u64) -> Option<u64> {
        elems.checked_mul(self.bits()).map(|b| b.div_ceil(8))
    }
    /// How a weight of this type is kept: as it is where kernels read it, else widened to 32 bits.
    pub fn storage(self) -> Storage {
        match self {
            Elem::Float16 => Storage::F16,
            Elem::Bfloat16 => Storage::Bf16,
            Elem::Bool => Storage::Bool,
            e if e.is_float() => Storage::F32,
            _ => Storage::I32,
        }
    }
    /// The smallest and largest value of an integer type, as far as 64-bit signed integers hold them.
    pub fn range(self) -> (i64, i64) {
        match self {
            Elem::Int4 => (-8, 7),
            Elem::Uint4 => (0, 15),
            Elem::Int8 => (-128, 127),
            Elem::Uint8 => (0, 255),
            Elem::Int16 => (-32768, 32767),
            Elem::Uint16 => (0, 65535),
            Elem::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
            Elem::Uint32 => (0, i64::from(u32::MAX)),
            _ => (i64::MIN, i64::MAX),
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CODES.iter().find(|c| c.1 == *self).map_or("", |c| c.2))
    }
}

/// Elements of a constant, in the widest type of their kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floats, rounded to 32 bits.
    Floats(Vec<f32>),
    /// Integers and truth values.
    Ints(Vec<i64>),
}

/// Reads little-endian bytes of `elem`; 4-bit types hold two elements a byte, low half first, `elems` in all.
pub fn decode(elem: Elem, bytes: &[u8], elems: usize) -> Values {
    fn words<const N: usize>(b: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        b.chunks_exact(N).filter_map(|c| c.try_into().ok())
    }
    let mut out = match elem {
        Elem::Float => Values::Floats(words(bytes).map(f32::from_le_bytes).collect()),
        Elem::Double => Values::Floats(words(bytes).map(|w| f64::from_le_bytes(w) as f32).collect()),
        Elem::Float16 => Values::Floats(words(bytes).map(|w| f16::from_le_bytes(w).to_f32()).collect()),
        Elem::Bfloat16 => Values::Floats(words(bytes).map(|w| bf16::from_le_bytes(w).to_f32()).collect()),
        Elem::Float8E4M3Fn => Values::Floats(bytes.iter().map(|b| small_float(*b, 4, 3)).collect()),
        Elem::Float8E5M2 => Values::Floats(bytes.iter().map(|b| small_float(*b, 5, 2)).collect()),
        Elem::Int8 => Values::Ints(bytes.iter().map(|b| i64::from(b.cast_signed())).collect()),
        Elem::Uint8 => Values::Ints(bytes.iter().map(|b| i64::from(*b)).collect()),
        Elem::Bool => Values::Ints(bytes.iter().map(|b| i64::from(*b != 0)).collect()),
        Elem::Int16 => Values::Ints(words(bytes).map(|w| i64::from(i16::from_le_bytes(w))).collect()),
        Elem::Uint16 => Values::Ints(words(bytes).map(|w| i64::from(u16::from_le_bytes(w))).collect()),
        Elem::Int32 => Values::Ints(words(bytes).map(|w| i64::from(i32::from_le_bytes(w))).collect()),
        Elem::Uint32 => Values::Ints(words(bytes).map(|w| i64::from(u32::from_le_bytes(w))).collect()),
        Elem::Int64 => Values::Ints(words(bytes).map(i64::from_le_bytes).collect()),
        Elem::Uint64 => {
            Values::Ints(words(bytes).map(|w| i64::try_from(u64::from_le_bytes(w)).unwrap_or(i64::MAX)).collect())
        }
        Elem::Uint4 => Values::Ints(bytes.iter().flat_map(|b| [i64::from(b & 15), i64::from(b >> 4)]).collect()),
        Elem::Int4 => {
            let signed = |n: u8| i64::from(n) - if n > 7 { 16 } else { 0 };
            Values::Ints(bytes.iter().flat_map(|b| [signed(b & 15), signed(b >> 4)]).collect())
        }
    };
    match &mut out {
        Values::Floats(v) => v.truncate(elems),
        Values::Ints(v) => v.truncate(elems),
    }
    out
}

/// An 8-bit float with the given widths of exponent and mantissa. The largest exponent is NaN or infinity in E5M2; in
/// E4M3 only the largest mantissa with it is NaN.
fn small_float(b: u8, exponent: u32, mantissa: u32) -> f32 {
    let sign = if b & 0x80 != 0 { -1.0 } else { 1.0 };
    let e = i32::from((b & 0x7f) >> mantissa);
    let m = f32::from(b & ((1 << mantissa) - 1)) / (1 << mantissa) as f32;
    let bias = (1 << (exponent - 1)) - 1;
    let top = (1 << exponent) - 1;
    match (e, exponent) {
        (0, _) => sign * m * 2f32.powi(1 - bias),
        (e, 5) if e == top && m == 0.0 => sign * f32::INFINITY,
        (e, 5) if e == top => f32::NAN,
        (e, _) if e == top && m == 0.875 => f32::NAN,
        (e, _) => sign * (1.0 + m) * 2f32.powi(e - bias),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_types_decode_by_their_definition() {
        assert_eq!(decode(Elem::Int4, &[0x8f, 0x07], 3), Values::Ints(vec![-1, -8, 7]));
        assert_eq!(decode(Elem::Uint4, &[0x8f], 2), Values::Ints(vec![15, 8]));
        let e4 = decode(Elem::Float8E4M3Fn, &[0x38, 0x7e, 0x01, 0xb8], 4);
        assert_eq!(e4, Values::Floats(vec![1.0, 448.0, 2f32.powi(-9), -1.0]));
        assert_eq!(decode(Elem::Float8E5M2, &[0x3c, 0x7b], 2), Values::Floats(vec![1.0, 57344.0]));
        assert_eq!(decode(Elem::Uint64, &u64::MAX.to_le_bytes(), 1), Values::Ints(vec![i64::MAX]));
    }
    #[test]
    fn every_code_has_one_name() {
        for (code, e, name) in CODES {
            assert_eq!((Elem::from_code(code), e.to_string().as_str()), (Some(e), name));
        }
        assert_eq!(code_name(8), "string");
    }
}
