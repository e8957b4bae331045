//! A PTX kernel as parsed.

/// Types of registers, memory and instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub(super) enum Ty {
    Pred, B8, U8, S8, B16, U16, S16, B32, U32, S32, B64, U64, S64, F16, F16x2, Bf16, Bf16x2, Tf32, F32, F64,
}

impl Ty {
    /// The type of a suffix.
    pub(super) fn named(s: &str) -> Option<Ty> {
        Some(match s {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "u8" => Ty::U8,
            "s8" => Ty::S8,
            "b16" => Ty::B16,
            "u16" => Ty::U16,
            "s16" => Ty::S16,
            "b32" => Ty::B32,
            "u32" => Ty::U32,
            "s32" => Ty::S32,
            "b64" => Ty::B64,
            "u64" => Ty::U64,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }
    /// Size in bytes.
    pub(super) fn bytes(self) -> u32 {
        match self {
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            _ => 4,
        }
    }
    pub(super) fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }
    pub(super) fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 | Ty::F64)
    }
    /// Whether a value takes two rows.
    pub(super) fn wide(self) -> bool {
        self.bytes() == 8
    }
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand<'t> {
    /// A register, special register, label or variable.
    Name(&'t str),
    Int(u64),
    /// A float by its bits.
    Float(u32),
    /// `[base + offset]`
    Address(Box<Operand<'t>>, i64),
    /// `[map, {a, b}]`
    Tile(Box<Operand<'t>>, Vec<Operand<'t>>),
    /// `{a, b}`
    Vector(Vec<Operand<'t>>),
    /// `a|b`
    Pair(Box<Operand<'t>>, Box<Operand<'t>>),
    /// `!p`
    Not(&'t str),
    /// `_`
    Sink,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Instruction<'t> {
    pub line: u32,
    /// `@p` or `@!p`
    pub guard: Option<(&'t str, bool)>,
    /// Name with suffixes as written.
    pub text: &'t str,
    pub operands: Vec<Operand<'t>>,
}

impl<'t> Instruction<'t> {
    /// The name and its suffixes.
    pub(super) fn parts(&self) -> Vec<&'t str> {
        self.text.split('.').collect()
    }
}

/// A declaration of memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Variable<'t> {
    pub line: u32,
    pub space: &'t str,
    pub name: &'t str,
    pub ty: Ty,
    pub align: u32,
    /// Elements; 0 where the launch says how many.
    pub len: u32,
}

impl Variable<'_> {
    /// Size in bytes.
    pub(super) fn bytes(&self) -> u32 {
        self.len.saturating_mul(self.ty.bytes())
    }
}

/// A piece of a kernel's body.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item<'t> {
    /// Registers: type, name, and how many where numbered.
    Registers(Ty, &'t str, Option<u32>),
    Variable(Variable<'t>),
    Label(&'t str),
    Instruction(Instruction<'t>),
}

/// An entry point with what the module declares around it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kernel<'t> {
    pub name: &'t str,
    pub parameters: Vec<Variable<'t>>,
    /// `.reqntid`
    pub threads: Option<[u32; 3]>,
    pub body: Vec<Item<'t>>,
}
