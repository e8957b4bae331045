//! Constants, machine values and the primitive operations.
//!
//! Where one operand of an arithmetic operation is a vector and another a scalar of the same kind, the scalar is spread.

use super::{Builder, IntoVal, Val};
use crate::ir::expr::{Axis, BinaryOp, Builtin, Expr, Literal, TernaryOp, UnaryOp};
use crate::ir::types::{Scalar, Type, Width};

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $name:ident => $op:ident,)*) => {
        impl Builder {
            $($(#[$doc])* #[track_caller] pub fn $name(&self, x: impl IntoVal) -> Val { self.unary(UnaryOp::$op, x) })*
        }
    };
}

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $name:ident => $op:ident,)*) => {
        impl Builder {
            $($(#[$doc])* #[track_caller] pub fn $name(&self, x: impl IntoVal, y: impl IntoVal) -> Val {
                self.binary(BinaryOp::$op, x, y)
            })*
        }
    };
}

unary_methods! {
    /// `-x`
    neg => Neg,
    /// `|x|`
    abs => Abs,
    /// `e^x` without a bound; for arguments known to be at most 88.
    exp_unchecked => Exp,
    /// `2^x` without a bound; for arguments known to be at most 127.
    exp2_unchecked => Exp2,
    /// Natural logarithm of a positive value.
    log => Log,
    /// Binary logarithm of a positive value.
    log2 => Log2,
    /// Square root.
    sqrt => Sqrt,
    /// `1 / sqrt(x)`
    rsqrt => Rsqrt,
    /// Sine.
    sin => Sin,
    /// Cosine.
    cos => Cos,
    /// Round down.
    floor => Floor,
    /// Round up.
    ceil => Ceil,
    /// Round to nearest, ties to even.
    round => Round,
    /// Round towards zero.
    trunc => Trunc,
    /// Gauss error function, absolute error at most 2e-7, finite everywhere.
    erf => Erf,
    /// -1, 0 or 1.
    sign => Sign,
    /// `1 / x`
    rcp => Rcp,
    /// Hyperbolic tangent, finite everywhere.
    tanh => Tanh,
    /// Logical not.
    not => Not,
    /// Bitwise not.
    bit_not => BitNot,
    /// `u32` holding two f16 to `vec2<f32>`, low half first.
    unpack_2x16_float => Unpack2x16Float,
    /// `vec2<f32>` to `u32` holding two f16.
    pack_2x16_float => Pack2x16Float,
    /// `vec2<f32>` to `u32` holding two bf16.
    pack_2x_bf16 => Pack2xBf16,
    /// Four unsigned bytes to `vec4<u32>`, lowest first.
    unpack_u8 => UnpackU8,
    /// Four signed bytes to `vec4<i32>`, lowest first.
    unpack_i8 => UnpackI8,
}

binary_methods! {
    /// `x + y`
    add => Add,
    /// `x - y`
    sub => Sub,
    /// `x * y`
    mul => Mul,
    /// `x / y`
    div => Div,
    /// Remainder.
    rem => Rem,
    /// Smaller.
    min => Min,
    /// Larger.
    max => Max,
    /// `x^y` for `x >= 0`.
    pow => Pow,
    /// `x < y`
    lt => Lt,
    /// `x <= y`
    le => Le,
    /// `x > y`
    gt => Gt,
    /// `x >= y`
    ge => Ge,
    /// `x == y`
    eq => Eq,
    /// `x != y`
    ne => Ne,
    /// Logical and.
    and => And,
    /// Logical or.
    or => Or,
    /// Bitwise and.
    bit_and => BitAnd,
    /// Bitwise or.
    bit_or => BitOr,
    /// Bitwise exclusive or.
    bit_xor => BitXor,
    /// `x << y`
    shl => Shl,
    /// `x >> y`
    shr => Shr,
    /// Sum of lane products.
    dot => Dot,
    /// Dot product of four signed bytes in each `u32`, as `i32`.
    dot_i8 => DotI8,
    /// Dot product of four unsigned bytes in each `u32`, as `u32`.
    dot_u8 => DotU8,
}

impl Builder {
    /// A float constant; infinities and NaN are refused.
    #[track_caller]
    pub fn f32(&self, value: f32) -> Val {
        if !value.is_finite() {
            self.error(format!("constant {value} is not finite"));
            return self.poison();
        }
        self.push(Expr::Literal(Literal::f32(value)))
    }

    /// An unsigned constant.
    pub fn u32(&self, value: u32) -> Val {
        self.push(Expr::Literal(Literal::U32(value)))
    }

    /// A signed constant.
    pub fn i32(&self, value: i32) -> Val {
        self.push(Expr::Literal(Literal::I32(value)))
    }

    /// A truth constant.
    pub fn bool(&self, value: bool) -> Val {
        self.push(Expr::Literal(Literal::Bool(value)))
    }

    /// Zero of any numeric type.
    pub fn zero(&self, ty: Type) -> Val {
        let scalar = match ty.scalar {
            Scalar::U32 => self.u32(0),
            Scalar::I32 => self.i32(0),
            Scalar::Bool => self.bool(false),
            Scalar::F32 => self.f32(0.0),
            half @ (Scalar::F16 | Scalar::Bf16) => self.cast(half, self.f32(0.0)),
        };
        self.splat(ty.lanes(), scalar)
    }

    /// A machine-supplied value.
    pub fn builtin(&self, builtin: Builtin) -> Val {
        self.push(Expr::Builtin(builtin))
    }

    /// Workgroup number along x.
    pub fn group_x(&self) -> Val {
        self.builtin(Builtin::WorkgroupId(Axis::X))
    }

    /// Workgroup number along y.
    pub fn group_y(&self) -> Val {
        self.builtin(Builtin::WorkgroupId(Axis::Y))
    }

    /// Workgroup number along z.
    pub fn group_z(&self) -> Val {
        self.builtin(Builtin::WorkgroupId(Axis::Z))
    }

    /// Invocation number in the workgroup along x.
    pub fn local_x(&self) -> Val {
        self.builtin(Builtin::LocalId(Axis::X))
    }

    /// Invocation number in the workgroup along y.
    pub fn local_y(&self) -> Val {
        self.builtin(Builtin::LocalId(Axis::Y))
    }

    /// Flattened invocation number in the workgroup.
    pub fn local_index(&self) -> Val {
        self.builtin(Builtin::LocalIndex)
    }

    /// Invocation number in the grid along x.
    pub fn global_x(&self) -> Val {
        self.builtin(Builtin::GlobalId(Axis::X))
    }

    /// Invocation number in the grid along y.
    pub fn global_y(&self) -> Val {
        self.builtin(Builtin::GlobalId(Axis::Y))
    }

    /// Size of the grid in workgroups along an axis.
    pub fn num_groups(&self, axis: Axis) -> Val {
        self.builtin(Builtin::NumWorkgroups(axis))
    }

    /// Any one-operand operation.
    #[track_caller]
    pub fn unary(&self, op: UnaryOp, x: impl IntoVal) -> Val {
        let Val(x) = x.into_val(self);
        self.push(Expr::Unary(op, x))
    }

    /// Any two-operand operation.
    #[track_caller]
    pub fn binary(&self, op: BinaryOp, x: impl IntoVal, y: impl IntoVal) -> Val {
        let (mut x, mut y) = (x.into_val(self), y.into_val(self));
        if !matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Dot | BinaryOp::DotI8 | BinaryOp::DotU8) {
            let lanes = self.lanes_of(x).max(self.lanes_of(y));
            x = self.widen(x, lanes);
            y = self.widen(y, lanes);
        }
        self.push(Expr::Binary(op, x.0, y.0))
    }

    /// `a * b + c`
    #[track_caller]
    pub fn fma(&self, a: impl IntoVal, b: impl IntoVal, c: impl IntoVal) -> Val {
        self.ternary(TernaryOp::Fma, a, b, c)
    }

    /// `x` bounded to `low ..= high`.
    #[track_caller]
    pub fn clamp(&self, x: impl IntoVal, low: impl IntoVal, high: impl IntoVal) -> Val {
        self.ternary(TernaryOp::Clamp, x, low, high)
    }

    /// `accept` where `cond` holds, else `reject`.
    #[track_caller]
    pub fn select(&self, cond: impl IntoVal, accept: impl IntoVal, reject: impl IntoVal) -> Val {
        let Val(cond) = cond.into_val(self);
        let (a, b) = (accept.into_val(self), reject.into_val(self));
        let lanes = self.lanes_of(a).max(self.lanes_of(b));
        let (a, b) = (self.widen(a, lanes), self.widen(b, lanes));
        self.push(Expr::Ternary(TernaryOp::Select, cond, a.0, b.0))
    }

    #[track_caller]
    fn ternary(&self, op: TernaryOp, a: impl IntoVal, b: impl IntoVal, c: impl IntoVal) -> Val {
        let vals = [a.into_val(self), b.into_val(self), c.into_val(self)];
        let lanes = vals.iter().map(|v| self.lanes_of(*v)).max().unwrap_or(1);
        let [a, b, c] = vals.map(|v| self.widen(v, lanes));
        self.push(Expr::Ternary(op, a.0, b.0, c.0))
    }

    /// Conversion by value, per lane.
    #[track_caller]
    pub fn cast(&self, to: Scalar, x: impl IntoVal) -> Val {
        let x = x.into_val(self);
        if self.type_of(x).is_some_and(|t| t.scalar == to) {
            return x;
        }
        self.push(Expr::Cast { to, value: x.0 })
    }

    /// Reinterpretation of the bits, per lane.
    #[track_caller]
    pub fn bitcast(&self, to: Scalar, x: impl IntoVal) -> Val {
        let x = x.into_val(self);
        if self.type_of(x).is_some_and(|t| t.scalar == to) {
            return x;
        }
        self.push(Expr::Bitcast { to, value: x.0 })
    }

    /// A vector of two.
    #[track_caller]
    pub fn vec2(&self, x: impl IntoVal, y: impl IntoVal) -> Val {
        let parts = vec![x.into_val(self).0, y.into_val(self).0];
        self.push(Expr::Compose(parts))
    }

    /// A vector of four.
    #[track_caller]
    pub fn vec4(&self, x: impl IntoVal, y: impl IntoVal, z: impl IntoVal, w: impl IntoVal) -> Val {
        let parts = [x.into_val(self), y.into_val(self), z.into_val(self), w.into_val(self)];
        self.push(Expr::Compose(parts.iter().map(|v| v.0).collect()))
    }

    /// A vector of `lanes` equal lanes; the value itself for one lane.
    #[track_caller]
    pub fn splat(&self, lanes: u32, x: impl IntoVal) -> Val {
        let Val(value) = x.into_val(self);
        match Width::from_lanes(lanes as usize) {
            Some(Width::One) => Val(value),
            Some(width) => self.push(Expr::Splat { width, value }),
            None => {
                self.error(format!("splat to {lanes} lanes"));
                self.poison()
            }
        }
    }

    /// One lane of a vector; lane 0 of a scalar is the scalar.
    #[track_caller]
    pub fn lane(&self, x: impl IntoVal, lane: u32) -> Val {
        let x = x.into_val(self);
        if lane == 0 && self.lanes_of(x) == 1 {
            return x;
        }
        self.push(Expr::Extract { value: x.0, lane: lane.min(255) as u8 })
    }

    /// Number of lanes of a value; 1 after a mistake.
    pub fn lanes_of(&self, x: impl IntoVal) -> u32 {
        self.type_of(x).map_or(1, Type::lanes)
    }

    #[track_caller]
    fn widen(&self, x: Val, lanes: u32) -> Val {
        if lanes > 1 && self.lanes_of(x) == 1 { self.splat(lanes, x) } else { x }
    }
}
