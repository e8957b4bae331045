//! The type rule of each expression, used by the builder and the verifier alike.

use super::arena::Handle;
use super::expr::{BinaryOp, Expr, TernaryOp, UnaryOp};
use super::module::Module;
use super::types::{Scalar, Type, Width};

/// The type of `expr`, whose operands have the types that `of` gives; or why it has none.
pub(crate) fn infer(module: &Module, expr: &Expr, of: impl Fn(Handle<Expr>) -> Type) -> Result<Type, String> {
    match expr {
        Expr::Literal(literal) => Ok(Type::new(literal.scalar(), Width::One)),
        Expr::Builtin(_) => Ok(Type::U32),
        Expr::Uniform { block, field } => module
            .uniforms
            .get(*block)
            .and_then(|b| b.fields.get(*field as usize))
            .map(|f| Type::new(f.scalar, Width::One))
            .ok_or_else(|| "uniform member does not exist".to_owned()),
        Expr::Local(local) => Ok(module.locals[*local].ty),
        Expr::Load { array, index } => match of(*index) {
            Type::U32 => Ok(module.elem(*array)),
            other => Err(format!("index into `{}` is {other}, not u32", module.array_name(*array))),
        },
        Expr::Compose(parts) => compose(parts.iter().map(|p| of(*p)).collect()),
        Expr::Splat { width, value } => match of(*value) {
            t if t.is_scalar() && *width != Width::One => Ok(t.with_width(*width)),
            t => Err(format!("splat of {t} to {} lanes", width.lanes())),
        },
        Expr::Extract { value, lane } => match of(*value) {
            t if u32::from(*lane) < t.lanes() && !t.is_scalar() => Ok(t.with_width(Width::One)),
            t => Err(format!("lane {lane} of {t}")),
        },
        Expr::Unary(op, value) => unary(*op, of(*value)),
        Expr::Binary(op, a, b) => binary(*op, of(*a), of(*b)),
        Expr::Ternary(op, a, b, c) => ternary(*op, of(*a), of(*b), of(*c)),
        Expr::Cast { to, value } => {
            let from = of(*value);
            let stored = from.scalar == Scalar::Bf16 || *to == Scalar::Bf16;
            if stored && *to != from.scalar && ![from.scalar, *to].contains(&Scalar::F32) {
                return Err(format!("cast of {from} to {}", to.name()));
            }
            Ok(from.with_scalar(*to))
        }
        Expr::Bitcast { to, value } => {
            let from = of(*value);
            let fits = |s: Scalar| matches!(s, Scalar::F32 | Scalar::U32 | Scalar::I32);
            if fits(from.scalar) && fits(*to) {
                Ok(from.with_scalar(*to))
            } else {
                Err(format!("bitcast of {from} to {}", to.name()))
            }
        }
    }
}

fn compose(parts: Vec<Type>) -> Result<Type, String> {
    let (Some(first), Some(width)) = (parts.first(), Width::from_lanes(parts.len())) else {
        return Err(format!("vector of {} parts", parts.len()));
    };
    if width == Width::One || !first.is_scalar() || parts.iter().any(|p| p != first) {
        return Err("vector parts must be scalars of one type".to_owned());
    }
    Ok(first.with_width(width))
}

fn unary(op: UnaryOp, t: Type) -> Result<Type, String> {
    use UnaryOp as U;
    let result = match op {
        U::Neg if t.scalar.is_numeric() && t.scalar != Scalar::U32 => Some(t),
        U::Abs if t.scalar.is_numeric() => Some(t),
        U::Not if t.scalar == Scalar::Bool => Some(t),
        U::BitNot if t.scalar.is_int() => Some(t),
        U::Unpack2x16Float if t == Type::U32 => Some(Type::VEC2_F32),
        U::Pack2x16Float | U::Pack2xBf16 if t == Type::VEC2_F32 => Some(Type::U32),
        U::UnpackU8 if t == Type::U32 => Some(Type::VEC4_U32),
        U::UnpackI8 if t == Type::U32 => Some(Type::VEC4_I32),
        U::Exp
        | U::Exp2
        | U::Log
        | U::Log2
        | U::Sqrt
        | U::Rsqrt
        | U::Tanh
        | U::Sin
        | U::Cos
        | U::Floor
        | U::Ceil
        | U::Round
        | U::Trunc
        | U::Erf
        | U::Sign
        | U::Rcp
            if t.scalar.is_float() =>
        {
            Some(t)
        }
        _ => None,
    };
    result.ok_or_else(|| format!("{} of {t}", op.name()))
}

fn binary(op: BinaryOp, a: Type, b: Type) -> Result<Type, String> {
    use BinaryOp as B;
    let same = a == b;
    let result = match op {
        B::Add | B::Sub | B::Mul | B::Div | B::Rem | B::Min | B::Max if same && a.scalar.is_numeric() => Some(a),
        B::Pow if same && a.scalar.is_float() => Some(a),
        B::Lt | B::Le | B::Gt | B::Ge if same && a.scalar.is_numeric() => Some(a.with_scalar(Scalar::Bool)),
        B::Eq | B::Ne if same && a.scalar != Scalar::Bf16 => Some(a.with_scalar(Scalar::Bool)),
        B::And | B::Or if same && a == Type::BOOL => Some(a),
        B::BitAnd | B::BitOr | B::BitXor if same && a.scalar.is_int() => Some(a),
        B::Shl | B::Shr if a.scalar.is_int() && b == a.with_scalar(Scalar::U32) => Some(a),
        B::Dot if same && !a.is_scalar() && a.scalar.is_numeric() => Some(a.with_width(Width::One)),
        B::DotI8 if same && a == Type::U32 => Some(Type::I32),
        B::DotU8 if same && a == Type::U32 => Some(Type::U32),
        _ => None,
    };
    result.ok_or_else(|| format!("{} of {a} and {b}", op.name()))
}

fn ternary(op: TernaryOp, a: Type, b: Type, c: Type) -> Result<Type, String> {
    let result = match op {
        TernaryOp::Fma if a == b && b == c && a.scalar.is_float() => Some(a),
        TernaryOp::Clamp if a == b && b == c && a.scalar.is_numeric() => Some(a),
        TernaryOp::Select if b == c && (a == Type::BOOL || a == b.with_scalar(Scalar::Bool)) => Some(b),
        _ => None,
    };
    result.ok_or_else(|| format!("{} of {a}, {b} and {c}", op.name()))
}
