//! Value types: scalars and vectors of two or four. Arrays exist only as declared memory, never as values.

use std::fmt;

/// A scalar type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scalar {
    /// 32-bit float.
    F32,
    /// 32-bit unsigned integer, wrapping.
    U32,
    /// 32-bit signed integer.
    I32,
    /// Truth value; never in memory.
    Bool,
    /// 16-bit float; needs the capability.
    F16,
    /// The upper half of a 32-bit float: memory holds it, arithmetic knows it as `F32` alone.
    Bf16,
}

impl Scalar {
    /// Name in the text forms.
    pub fn name(self) -> &'static str {
        match self {
            Scalar::F32 => "f32",
            Scalar::U32 => "u32",
            Scalar::I32 => "i32",
            Scalar::Bool => "bool",
            Scalar::F16 => "f16",
            Scalar::Bf16 => "bf16",
        }
    }

    /// Whether it is a float type.
    pub fn is_float(self) -> bool {
        matches!(self, Scalar::F32 | Scalar::F16)
    }

    /// Whether it is an integer type.
    pub fn is_int(self) -> bool {
        matches!(self, Scalar::U32 | Scalar::I32)
    }

    /// Whether arithmetic is defined on it.
    pub fn is_numeric(self) -> bool {
        !matches!(self, Scalar::Bool | Scalar::Bf16)
    }

    /// Bytes of one scalar in memory; 4 for `Bool`, which is never stored.
    pub fn size_bytes(self) -> u32 {
        if matches!(self, Scalar::F16 | Scalar::Bf16) { 2 } else { 4 }
    }
}

/// Number of lanes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Width {
    /// A scalar.
    One,
    /// A vector of two.
    Two,
    /// A vector of four.
    Four,
}

impl Width {
    /// The lane count as a number.
    pub fn lanes(self) -> u32 {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
        }
    }

    /// The width with that many lanes.
    pub fn from_lanes(lanes: usize) -> Option<Width> {
        match lanes {
            1 => Some(Width::One),
            2 => Some(Width::Two),
            4 => Some(Width::Four),
            _ => None,
        }
    }
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Type {
    /// Type of each lane.
    pub scalar: Scalar,
    /// Number of lanes.
    pub width: Width,
}

impl Type {
    /// `f32`
    pub const F32: Type = Type::new(Scalar::F32, Width::One);
    /// `u32`
    pub const U32: Type = Type::new(Scalar::U32, Width::One);
    /// `i32`
    pub const I32: Type = Type::new(Scalar::I32, Width::One);
    /// `bool`
    pub const BOOL: Type = Type::new(Scalar::Bool, Width::One);
    /// `f16`
    pub const F16: Type = Type::new(Scalar::F16, Width::One);
    /// `bf16`
    pub const BF16: Type = Type::new(Scalar::Bf16, Width::One);
    /// `vec2<f32>`
    pub const VEC2_F32: Type = Type::new(Scalar::F32, Width::Two);
    /// `vec4<f32>`
    pub const VEC4_F32: Type = Type::new(Scalar::F32, Width::Four);
    /// `vec2<u32>`
    pub const VEC2_U32: Type = Type::new(Scalar::U32, Width::Two);
    /// `vec4<u32>`
    pub const VEC4_U32: Type = Type::new(Scalar::U32, Width::Four);
    /// `vec4<i32>`
    pub const VEC4_I32: Type = Type::new(Scalar::I32, Width::Four);

    /// A type from its parts.
    pub const fn new(scalar: Scalar, width: Width) -> Type {
        Type { scalar, width }
    }

    /// Number of lanes.
    pub fn lanes(self) -> u32 {
        self.width.lanes()
    }

    /// Whether it has one lane.
    pub fn is_scalar(self) -> bool {
        self.width == Width::One
    }

    /// The same width with another scalar.
    pub fn with_scalar(self, scalar: Scalar) -> Type {
        Type { scalar, ..self }
    }

    /// The same scalar with another width.
    pub fn with_width(self, width: Width) -> Type {
        Type { width, ..self }
    }

    /// Bytes of one value in memory.
    pub fn size_bytes(self) -> u32 {
        self.scalar.size_bytes() * self.lanes()
    }

    /// Whether arrays of this type may be declared: every type but the truth values.
    pub fn is_storable(self) -> bool {
        self.scalar != Scalar::Bool
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.width {
            Width::One => f.write_str(self.scalar.name()),
            width => write!(f, "vec{}<{}>", width.lanes(), self.scalar.name()),
        }
    }
}
