//! Local equations on expressions. Integer rules are exact modulo 2^32; float rules apply to constants only, or leave
//! every bit as it was.

use super::arena::{Arena, Handle};
use super::expr::{BinaryOp as B, Expr, Literal as L, TernaryOp, UnaryOp as U};
use super::types::{Scalar, Width};

/// What an expression turns into.
pub(crate) enum Folded {
    /// An expression that exists already.
    Same(Handle<Expr>),
    /// A new one, to be folded again.
    New(Expr),
    /// `op(a, literal)` with two rewritten sides: `(x op c1) op c2`.
    Chain(B, Handle<Expr>, L),
}

/// One rewriting step of `expr`, or `None` where no equation applies.
pub(crate) fn step(exprs: &Arena<Expr>, expr: &Expr) -> Option<Folded> {
    let lit = |h: Handle<Expr>| match exprs.get(h) {
        Some(Expr::Literal(l)) => Some(*l),
        _ => None,
    };
    match expr {
        Expr::Unary(op, a) => unary(*op, lit(*a)?).map(literal),
        Expr::Binary(op, a, b) => match (lit(*a), lit(*b)) {
            (Some(x), Some(y)) => binary(*op, x, y).map(literal),
            (x, y) => identity(*op, *a, *b, x, y).or_else(|| chain(exprs, *op, *a, y)),
        },
        Expr::Ternary(TernaryOp::Select, cond, a, b) => match lit(*cond)? {
            L::Bool(true) => Some(Folded::Same(*a)),
            L::Bool(false) => Some(Folded::Same(*b)),
            _ => None,
        },
        Expr::Cast { to, value } => cast(*to, lit(*value)?).map(literal),
        Expr::Bitcast { to, value } => {
            let bits = match lit(*value)? {
                L::F32(bits) | L::U32(bits) => bits,
                L::I32(v) => v as u32,
                L::Bool(_) => return None,
            };
            let new = match to {
                Scalar::F32 => L::F32(bits),
                Scalar::U32 => L::U32(bits),
                Scalar::I32 => L::I32(bits as i32),
                _ => return None,
            };
            finite(new).map(literal)
        }
        Expr::Extract { value, lane } => match exprs.get(*value)? {
            // extract<i>(vec(a0, .., an)) == ai
            Expr::Compose(parts) => parts.get(usize::from(*lane)).map(|p| Folded::Same(*p)),
            // extract<i>(splat(x)) == x
            Expr::Splat { value, .. } => Some(Folded::Same(*value)),
            _ => None,
        },
        // splat1(x) == x
        Expr::Splat { width: Width::One, value } => Some(Folded::Same(*value)),
        _ => None,
    }
}

fn literal(l: L) -> Folded {
    Folded::New(Expr::Literal(l))
}

fn finite(l: L) -> Option<L> {
    l.is_finite().then_some(l)
}

fn unary(op: U, x: L) -> Option<L> {
    match (op, x) {
        (U::Not, L::Bool(v)) => Some(L::Bool(!v)),
        (U::BitNot, L::U32(v)) => Some(L::U32(!v)),
        (U::BitNot, L::I32(v)) => Some(L::I32(!v)),
        (U::Neg, L::I32(v)) => v.checked_neg().map(L::I32),
        (U::Abs, L::I32(v)) => v.checked_abs().map(L::I32),
        (U::Abs, L::U32(_)) => Some(x),
        (U::Neg, L::F32(bits)) => finite(L::f32(-f32::from_bits(bits))),
        (U::Abs, L::F32(bits)) => finite(L::f32(f32::from_bits(bits).abs())),
        (U::Floor, L::F32(bits)) => finite(L::f32(f32::from_bits(bits).floor())),
        (U::Ceil, L::F32(bits)) => finite(L::f32(f32::from_bits(bits).ceil())),
        (U::Sqrt, L::F32(bits)) => finite(L::f32(f32::from_bits(bits).sqrt())),
        (U::Rcp, L::F32(bits)) => finite(L::f32(1.0 / f32::from_bits(bits))),
        _ => None,
    }
}

fn cast(to: Scalar, x: L) -> Option<L> {
    let new = match (to, x) {
        (Scalar::F32, L::U32(v)) => L::f32(v as f32),
        (Scalar::F32, L::I32(v)) => L::f32(v as f32),
        (Scalar::U32, L::I32(v)) => L::U32(v as u32),
        (Scalar::I32, L::U32(v)) => L::I32(v as i32),
        (Scalar::F32, L::F32(_)) | (Scalar::U32, L::U32(_)) | (Scalar::I32, L::I32(_)) | (Scalar::Bool, L::Bool(_)) => {
            x
        }
        (Scalar::F32, L::Bool(v)) => L::f32(f32::from(u8::from(v))),
        (Scalar::U32, L::Bool(v)) => L::U32(u32::from(v)),
        (Scalar::I32, L::Bool(v)) => L::I32(i32::from(v)),
        (Scalar::U32, L::F32(bits)) => {
            let v = f32::from_bits(bits);
            (0.0..4_294_967_000.0).contains(&v).then_some(L::U32(v as u32))?
        }
        _ => return None,
    };
    finite(new)
}

fn binary(op: B, x: L, y: L) -> Option<L> {
    match (x, y) {
        (L::U32(a), L::U32(b)) => unsigned(op, a, b),
        (L::I32(a), L::I32(b)) => signed(op, a, b),
        (L::I32(a), L::U32(b)) => match op {
            B::Shr => a.checked_shr(b).map(L::I32),
            B::Shl => a.checked_shl(b).filter(|v| v.checked_shr(b) == Some(a)).map(L::I32),
            _ => None,
        },
        (L::F32(a), L::F32(b)) => float(op, f32::from_bits(a), f32::from_bits(b)),
        (L::Bool(a), L::Bool(b)) => match op {
            B::And => Some(L::Bool(a && b)),
            B::Or => Some(L::Bool(a || b)),
            B::Eq => Some(L::Bool(a == b)),
            B::Ne => Some(L::Bool(a != b)),
            _ => None,
        },
        _ => None,
    }
}

fn unsigned(op: B, a: u32, b: u32) -> Option<L> {
    let value = match op {
        B::Add => a.wrapping_add(b),
        B::Sub => a.wrapping_sub(b),
        B::Mul => a.wrapping_mul(b),
        B::Div => a.checked_div(b)?,
        B::Rem => a.checked_rem(b)?,
        B::Min => a.min(b),
        B::Max => a.max(b),
        B::BitAnd => a & b,
        B::BitOr => a | b,
        B::BitXor => a ^ b,
        B::Shl => a.checked_shl(b)?,
        B::Shr => a.checked_shr(b)?,
        _ => return compare(op, a.cmp(&b)),
    };
    Some(L::U32(value))
}

fn signed(op: B, a: i32, b: i32) -> Option<L> {
    let value = match op {
        B::Add => a.checked_add(b)?,
        B::Sub => a.checked_sub(b)?,
        B::Mul => a.checked_mul(b)?,
        B::Div => a.checked_div(b)?,
        B::Rem => a.checked_rem(b)?,
        B::Min => a.min(b),
        B::Max => a.max(b),
        B::BitAnd => a & b,
        B::BitOr => a | b,
        B::BitXor => a ^ b,
        _ => return compare(op, a.cmp(&b)),
    };
    Some(L::I32(value))
}

fn float(op: B, a: f32, b: f32) -> Option<L> {
    let value = match op {
        B::Add => a + b,
        B::Sub => a - b,
        B::Mul => a * b,
        B::Div => a / b,
        B::Rem => a % b,
        B::Min => a.min(b),
        B::Max => a.max(b),
        _ => return compare(op, a.partial_cmp(&b)?),
    };
    finite(L::f32(value))
}

fn compare(op: B, order: std::cmp::Ordering) -> Option<L> {
    let holds = match op {
        B::Lt => order.is_lt(),
        B::Le => order.is_le(),
        B::Gt => order.is_gt(),
        B::Ge => order.is_ge(),
        B::Eq => order.is_eq(),
        B::Ne => order.is_ne(),
        _ => return None,
    };
    Some(L::Bool(holds))
}

fn is_int(l: Option<L>, value: u32) -> bool {
    match l {
        Some(L::U32(v)) => v == value,
        Some(L::I32(v)) => v as u32 == value,
        _ => false,
    }
}

fn is_one(l: Option<L>) -> bool {
    is_int(l, 1) || l == Some(L::f32(1.0))
}

fn identity(op: B, a: Handle<Expr>, b: Handle<Expr>, x: Option<L>, y: Option<L>) -> Option<Folded> {
    let same = |h| Some(Folded::Same(h));
    match op {
        // x + 0 == x, x | 0 == x, x ^ 0 == x
        B::Add | B::BitOr | B::BitXor if is_int(y, 0) => same(a),
        // 0 + x == x, 0 | x == x, 0 ^ x == x
        B::Add | B::BitOr | B::BitXor if is_int(x, 0) => same(b),
        // x - 0 == x, x << 0 == x, x >> 0 == x
        B::Sub | B::Shl | B::Shr if is_int(y, 0) => same(a),
        // x * 1 == x, x / 1 == x
        B::Mul | B::Div if is_one(y) => same(a),
        // 1 * x == x
        B::Mul if is_one(x) => same(b),
        // x * 0 == 0, x & 0 == 0
        B::Mul | B::BitAnd if is_int(y, 0) => same(b),
        // 0 * x == 0, 0 & x == 0
        B::Mul | B::BitAnd if is_int(x, 0) => same(a),
        // x % 1 == 0
        B::Rem if y == Some(L::U32(1)) => Some(literal(L::U32(0))),
        B::Rem if y == Some(L::I32(1)) => Some(literal(L::I32(0))),
        // x >= 0 holds and x < 0 does not, for unsigned x
        B::Ge if y == Some(L::U32(0)) => Some(literal(L::Bool(true))),
        B::Lt if y == Some(L::U32(0)) => Some(literal(L::Bool(false))),
        // x && true == x, x || false == x
        B::And if y == Some(L::Bool(true)) => same(a),
        B::And if x == Some(L::Bool(true)) => same(b),
        B::Or if y == Some(L::Bool(false)) => same(a),
        B::Or if x == Some(L::Bool(false)) => same(b),
        // x && false == false, x || true == true
        B::And if y == Some(L::Bool(false)) => same(b),
        B::And if x == Some(L::Bool(false)) => same(a),
        B::Or if y == Some(L::Bool(true)) => same(b),
        B::Or if x == Some(L::Bool(true)) => same(a),
        _ => None,
    }
}

/// `(x + c1) + c2 == x + (c1 + c2)` and `(x * c1) * c2 == x * (c1 * c2)`, for `u32`, where wrapping makes it exact.
fn chain(exprs: &Arena<Expr>, op: B, a: Handle<Expr>, y: Option<L>) -> Option<Folded> {
    let Some(L::U32(outer)) = y else { return None };
    let Expr::Binary(inner_op, x, c) = exprs.get(a)? else { return None };
    let Expr::Literal(L::U32(inner)) = exprs.get(*c)? else { return None };
    if *inner_op != op {
        return None;
    }
    let merged = match op {
        B::Add => outer.wrapping_add(*inner),
        B::Mul => outer.wrapping_mul(*inner),
        _ => return None,
    };
    Some(Folded::Chain(op, *x, L::U32(merged)))
}
