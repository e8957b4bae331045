//! Expressions: values without side effects.
//!
//! An expression is evaluated where the statement that uses it stands, each time that statement runs. A load therefore
//! sees the memory of that moment; to keep a value across a store, a statement `let` binds it. The builder inserts such
//! bindings by itself.

use super::arena::Handle;
use super::module::{Array, Buffer, Local, UniformBlock};
use super::types::{Scalar, Width};

/// A constant. Floats are kept as bits, so that expressions can be compared and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Literal {
    /// `f32` by its bits.
    F32(u32),
    /// `u32`
    U32(u32),
    /// `i32`
    I32(i32),
    /// `bool`
    Bool(bool),
}

impl Literal {
    /// A float constant.
    pub fn f32(value: f32) -> Literal {
        Literal::F32(value.to_bits())
    }

    /// Its scalar type.
    pub fn scalar(self) -> Scalar {
        match self {
            Literal::F32(_) => Scalar::F32,
            Literal::U32(_) => Scalar::U32,
            Literal::I32(_) => Scalar::I32,
            Literal::Bool(_) => Scalar::Bool,
        }
    }

    /// Whether it is anything but an infinite or NaN float.
    pub fn is_finite(self) -> bool {
        match self {
            Literal::F32(bits) => f32::from_bits(bits).is_finite(),
            _ => true,
        }
    }
}

/// One of the three dimensions of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// First.
    X,
    /// Second.
    Y,
    /// Third.
    Z,
}

impl Axis {
    /// `x`, `y` or `z`.
    pub fn name(self) -> &'static str {
        match self {
            Axis::X => "x",
            Axis::Y => "y",
            Axis::Z => "z",
        }
    }

    /// All three, in order.
    pub const ALL: [Axis; 3] = [Axis::X, Axis::Y, Axis::Z];
}

/// Values the machine supplies; each is a `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// Which workgroup of the grid.
    WorkgroupId(Axis),
    /// Which invocation of the workgroup, per axis.
    LocalId(Axis),
    /// `WorkgroupId * workgroup_size + LocalId`.
    GlobalId(Axis),
    /// Which invocation of the workgroup, flattened.
    LocalIndex,
    /// Size of the grid in workgroups.
    NumWorkgroups(Axis),
    /// Which invocation of the subgroup.
    SubgroupLane,
    /// Invocations in a subgroup.
    SubgroupSize,
}

/// A declared array in one of the three memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArrayRef {
    /// A bound storage buffer.
    Buffer(Handle<Buffer>),
    /// Memory shared by one workgroup.
    Workgroup(Handle<Array>),
    /// Memory (registers) of one invocation, zero at the start.
    Private(Handle<Array>),
}

macro_rules! ops {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every operation of this arity.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// Name in the text form.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

ops! {
    /// Operations on one value. Float operations work per lane.
    UnaryOp {
        /// `-x`
        Neg = "neg",
        /// `|x|`
        Abs = "abs",
        /// `e^x`; overflows above 88.7, see `Builder::exp`.
        Exp = "exp",
        /// `2^x`
        Exp2 = "exp2",
        /// Natural logarithm.
        Log = "log",
        /// Binary logarithm.
        Log2 = "log2",
        /// Square root.
        Sqrt = "sqrt",
        /// `1 / sqrt(x)`
        Rsqrt = "rsqrt",
        /// Hyperbolic tangent; emitters bound the argument.
        Tanh = "tanh",
        /// Sine.
        Sin = "sin",
        /// Cosine.
        Cos = "cos",
        /// Round down.
        Floor = "floor",
        /// Round up.
        Ceil = "ceil",
        /// Round to nearest, ties to even.
        Round = "round",
        /// Round towards zero.
        Trunc = "trunc",
        /// Gauss error function, absolute error at most 2e-7.
        Erf = "erf",
        /// -1, 0 or 1.
        Sign = "sign",
        /// `1 / x`
        Rcp = "rcp",
        /// Logical not.
        Not = "not",
        /// Bitwise not.
        BitNot = "bit_not",
        /// `u32` holding two f16 to `vec2<f32>`, low half first.
        Unpack2x16Float = "unpack_2x16_float",
        /// `vec2<f32>` to `u32` holding two f16.
        Pack2x16Float = "pack_2x16_float",
        /// `vec2<f32>` to `u32` holding two bf16, rounded to nearest; only for targets with matrix units.
        Pack2xBf16 = "pack_2x_bf16",
        /// Four unsigned bytes of a `u32` to `vec4<u32>`, lowest byte first.
        UnpackU8 = "unpack_u8",
        /// Four signed bytes of a `u32` to `vec4<i32>`, lowest byte first.
        UnpackI8 = "unpack_i8",
    }
}

ops! {
    /// Operations on two values of one type, unless said otherwise.
    BinaryOp {
        /// `a + b`
        Add = "add",
        /// `a - b`
        Sub = "sub",
        /// `a * b`
        Mul = "mul",
        /// `a / b`
        Div = "div",
        /// Remainder with the sign of `a`.
        Rem = "rem",
        /// Smaller.
        Min = "min",
        /// Larger.
        Max = "max",
        /// `a^b` for `a >= 0`.
        Pow = "pow",
        /// `a < b`
        Lt = "lt",
        /// `a <= b`
        Le = "le",
        /// `a > b`
        Gt = "gt",
        /// `a >= b`
        Ge = "ge",
        /// `a == b`
        Eq = "eq",
        /// `a != b`
        Ne = "ne",
        /// Logical and of two scalar truth values.
        And = "and",
        /// Logical or of two scalar truth values.
        Or = "or",
        /// Bitwise and.
        BitAnd = "bit_and",
        /// Bitwise or.
        BitOr = "bit_or",
        /// Bitwise exclusive or.
        BitXor = "bit_xor",
        /// `a << b`, `b` unsigned and below 32.
        Shl = "shl",
        /// `a >> b`, arithmetic for signed `a`.
        Shr = "shr",
        /// Sum of lane products of two vectors.
        Dot = "dot",
        /// Dot product of four signed bytes in each `u32`, as `i32`.
        DotI8 = "dot_i8",
        /// Dot product of four unsigned bytes in each `u32`, as `u32`.
        DotU8 = "dot_u8",
    }
}

ops! {
    /// Operations on three values.
    TernaryOp {
        /// `a * b + c`
        Fma = "fma",
        /// `a` bounded to `b ..= c`.
        Clamp = "clamp",
        /// `b` where `a` holds, else `c`.
        Select = "select",
    }
}

/// A value without side effects; see the module documentation for when it is evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A constant.
    Literal(Literal),
    /// A machine-supplied `u32`.
    Builtin(Builtin),
    /// A member of a uniform block.
    Uniform {
        /// The block.
        block: Handle<UniformBlock>,
        /// Position of the member.
        field: u32,
    },
    /// A `let`, a loop variable, or the present value of a `var`.
    Local(Handle<Local>),
    /// An element of an array.
    Load {
        /// The memory.
        array: ArrayRef,
        /// `u32` index in elements.
        index: Handle<Expr>,
    },
    /// A vector from two or four scalars.
    Compose(Vec<Handle<Expr>>),
    /// A vector of equal lanes.
    Splat {
        /// Two or four.
        width: Width,
        /// The lane value.
        value: Handle<Expr>,
    },
    /// One lane of a vector.
    Extract {
        /// The vector.
        value: Handle<Expr>,
        /// Lane number.
        lane: u8,
    },
    /// One-operand operation.
    Unary(UnaryOp, Handle<Expr>),
    /// Two-operand operation.
    Binary(BinaryOp, Handle<Expr>, Handle<Expr>),
    /// Three-operand operation.
    Ternary(TernaryOp, Handle<Expr>, Handle<Expr>, Handle<Expr>),
    /// Conversion by value, per lane.
    Cast {
        /// Target scalar.
        to: Scalar,
        /// Source.
        value: Handle<Expr>,
    },
    /// Reinterpretation of the bits, per lane.
    Bitcast {
        /// Target scalar.
        to: Scalar,
        /// Source.
        value: Handle<Expr>,
    },
}

impl Expr {
    /// Operand handles, left to right.
    pub fn operands(&self) -> Vec<Handle<Expr>> {
        match self {
            Expr::Literal(_) | Expr::Builtin(_) | Expr::Uniform { .. } | Expr::Local(_) => Vec::new(),
            Expr::Load { index: value, .. }
            | Expr::Splat { value, .. }
            | Expr::Extract { value, .. }
            | Expr::Unary(_, value)
            | Expr::Cast { value, .. }
            | Expr::Bitcast { value, .. } => vec![*value],
            Expr::Binary(_, a, b) => vec![*a, *b],
            Expr::Ternary(_, a, b, c) => vec![*a, *b, *c],
            Expr::Compose(parts) => parts.clone(),
        }
    }

    /// The same operation on other operands, visited left to right.
    pub fn map_operands(&self, mut f: impl FnMut(Handle<Expr>) -> Handle<Expr>) -> Expr {
        match self {
            Expr::Literal(_) | Expr::Builtin(_) | Expr::Uniform { .. } | Expr::Local(_) => self.clone(),
            Expr::Load { array, index } => Expr::Load { array: *array, index: f(*index) },
            Expr::Splat { width, value } => Expr::Splat { width: *width, value: f(*value) },
            Expr::Extract { value, lane } => Expr::Extract { value: f(*value), lane: *lane },
            Expr::Unary(op, value) => Expr::Unary(*op, f(*value)),
            Expr::Cast { to, value } => Expr::Cast { to: *to, value: f(*value) },
            Expr::Bitcast { to, value } => Expr::Bitcast { to: *to, value: f(*value) },
            Expr::Binary(op, a, b) => {
                let a = f(*a);
                Expr::Binary(*op, a, f(*b))
            }
            Expr::Ternary(op, a, b, c) => {
                let a = f(*a);
                let b = f(*b);
                Expr::Ternary(*op, a, b, f(*c))
            }
            Expr::Compose(parts) => Expr::Compose(parts.iter().map(|p| f(*p)).collect()),
        }
    }
}
