//! One loop for each operation over slices. Everything is inlined into the dispatched interpreter, where the loops
//! become vector code.

use super::math;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// An operand: one value for each element, or one for all.
#[derive(Clone, Copy)]
pub enum Arg<'a, T> {
    /// One each.
    Each(&'a [T]),
    /// One for all.
    All(T),
}

#[inline(always)]
fn map1<T: Copy, U>(a: Arg<'_, T>, d: &mut [U], f: impl Fn(T) -> U) {
    match a {
        Arg::Each(a) => d.iter_mut().zip(a).for_each(|(d, a)| *d = f(*a)),
        Arg::All(a) => d.iter_mut().for_each(|d| *d = f(a)),
    }
}

#[inline(always)]
fn map2<T: Copy, U>(a: Arg<'_, T>, b: Arg<'_, T>, d: &mut [U], f: impl Fn(T, T) -> U) {
    match (a, b) {
        (Arg::Each(a), Arg::Each(b)) => d.iter_mut().zip(a).zip(b).for_each(|((d, a), b)| *d = f(*a, *b)),
        (Arg::Each(a), Arg::All(b)) => d.iter_mut().zip(a).for_each(|(d, a)| *d = f(*a, b)),
        (Arg::All(a), Arg::Each(b)) => d.iter_mut().zip(b).for_each(|(d, b)| *d = f(a, *b)),
        (Arg::All(a), Arg::All(b)) => d.iter_mut().for_each(|d| *d = f(a, b)),
    }
}

/// Float functions of one operand.
#[inline(always)]
pub fn unary_f(op: UnaryOp, a: Arg<'_, f32>, d: &mut [f32]) {
    match op {
        UnaryOp::Neg => map1(a, d, |x| -x),
        UnaryOp::Abs => map1(a, d, f32::abs),
        UnaryOp::Exp => map1(a, d, math::exp),
        UnaryOp::Log => map1(a, d, f32::ln),
        UnaryOp::Sqrt => map1(a, d, f32::sqrt),
        UnaryOp::Rsqrt => map1(a, d, |x| 1.0 / x.sqrt()),
        UnaryOp::Recip => map1(a, d, |x| 1.0 / x),
        UnaryOp::Tanh => map1(a, d, math::tanh),
        UnaryOp::Erf => map1(a, d, math::erf),
        UnaryOp::Sin => map1(a, d, f32::sin),
        UnaryOp::Cos => map1(a, d, f32::cos),
        UnaryOp::Sigmoid => map1(a, d, math::sigmoid),
        UnaryOp::Silu => map1(a, d, |x| x * math::sigmoid(x)),
        UnaryOp::GeluErf => map1(a, d, math::gelu_erf),
        UnaryOp::GeluTanh => map1(a, d, math::gelu_tanh),
        UnaryOp::Relu => map1(a, d, |x| if x < 0.0 { 0.0 } else { x }),
        UnaryOp::Floor => map1(a, d, f32::floor),
        UnaryOp::Ceil => map1(a, d, f32::ceil),
        UnaryOp::Round => map1(a, d, f32::round_ties_even),
        UnaryOp::Sign => map1(a, d, math::sign),
        UnaryOp::Not => map1(a, d, |x| if x == 0.0 { 1.0 } else { 0.0 }),
    }
}

/// Integer functions of one operand; truth values are 0 and 1.
#[inline(always)]
pub fn unary_i(op: UnaryOp, a: Arg<'_, i32>, d: &mut [i32]) {
    match op {
        UnaryOp::Neg => map1(a, d, i32::wrapping_neg),
        UnaryOp::Abs => map1(a, d, i32::wrapping_abs),
        UnaryOp::Sign => map1(a, d, i32::signum),
        UnaryOp::Not => map1(a, d, |x| i32::from(x == 0)),
        _ => map1(a, d, |x| x),
    }
}

/// Float functions of two operands; comparisons are [`compare_f`].
#[inline(always)]
pub fn binary_f(op: BinaryOp, a: Arg<'_, f32>, b: Arg<'_, f32>, d: &mut [f32]) {
    match op {
        BinaryOp::Add => map2(a, b, d, |x, y| x + y),
        BinaryOp::Sub => map2(a, b, d, |x, y| x - y),
        BinaryOp::Mul => map2(a, b, d, |x, y| x * y),
        BinaryOp::Div => map2(a, b, d, |x, y| x / y),
        BinaryOp::Max => map2(a, b, d, |x, y| if y > x { y } else { x }),
        BinaryOp::Min => map2(a, b, d, |x, y| if y < x { y } else { x }),
        BinaryOp::Pow => match b {
            Arg::All(2.0) => map1(a, d, |x| x * x),
            Arg::All(3.0) => map1(a, d, |x| x * x * x),
            Arg::All(0.5) => map1(a, d, f32::sqrt),
            _ => map2(a, b, d, math::pow),
        },
        BinaryOp::Eq | BinaryOp::Lt | BinaryOp::Le | BinaryOp::And | BinaryOp::Or => {}
    }
}

/// Comparisons of floats.
#[inline(always)]
pub fn compare_f(op: BinaryOp, a: Arg<'_, f32>, b: Arg<'_, f32>, d: &mut [i32]) {
    match op {
        BinaryOp::Eq => map2(a, b, d, |x, y| i32::from(x == y)),
        BinaryOp::Lt => map2(a, b, d, |x, y| i32::from(x < y)),
        _ => map2(a, b, d, |x, y| i32::from(x <= y)),
    }
}

/// Integer and logical functions of two operands. A division by zero gives 0.
#[inline(always)]
pub fn binary_i(op: BinaryOp, a: Arg<'_, i32>, b: Arg<'_, i32>, d: &mut [i32]) {
    match op {
        BinaryOp::Add => map2(a, b, d, i32::wrapping_add),
        BinaryOp::Sub => map2(a, b, d, i32::wrapping_sub),
        BinaryOp::Mul => map2(a, b, d, i32::wrapping_mul),
        BinaryOp::Div => map2(a, b, d, |x, y| if y == 0 { 0 } else { x.wrapping_div(y) }),
        BinaryOp::Max => map2(a, b, d, i32::max),
        BinaryOp::Min => map2(a, b, d, i32::min),
        BinaryOp::Pow => map2(a, b, d, |x, _| x),
        BinaryOp::Eq => map2(a, b, d, |x, y| i32::from(x == y)),
        BinaryOp::Lt => map2(a, b, d, |x, y| i32::from(x < y)),
        BinaryOp::Le => map2(a, b, d, |x, y| i32::from(x <= y)),
        BinaryOp::And => map2(a, b, d, |x, y| x & y),
        BinaryOp::Or => map2(a, b, d, |x, y| x | y),
    }
}

/// `floor(a / b)` or its remainder, as index maps mean them; 0 for a zero divisor.
#[inline(always)]
pub fn euclid(rem: bool, a: Arg<'_, i32>, b: Arg<'_, i32>, d: &mut [i32]) {
    if rem {
        map2(a, b, d, |x, y| if y == 0 { 0 } else { x.wrapping_rem_euclid(y) });
    } else {
        map2(a, b, d, |x, y| if y == 0 { 0 } else { x.wrapping_div_euclid(y) });
    }
}

/// [`euclid`] of the run `start, start + step, …` by one divisor, without a division for each element.
#[inline(always)]
pub fn euclid_run(rem: bool, start: i64, step: i64, by: i64, d: &mut [i32]) {
    if by <= 0 || step < 0 {
        for (j, d) in d.iter_mut().enumerate() {
            let x = start.wrapping_add(step.wrapping_mul(j as i64));
            *d = match (by, rem) {
                (0, _) => 0,
                (_, true) => x.wrapping_rem_euclid(by) as i32,
                (_, false) => x.wrapping_div_euclid(by) as i32,
            };
        }
        return;
    }
    let (mut q, mut r) = (start.div_euclid(by), start.rem_euclid(by));
    let (dq, dr) = (step / by, step % by);
    for d in d.iter_mut() {
        *d = if rem { r as i32 } else { q as i32 };
        q = q.wrapping_add(dq);
        r += dr;
        if r >= by {
            r -= by;
            q = q.wrapping_add(1);
        }
    }
}

/// The run `start, start + step, …`.
#[inline(always)]
pub fn iota(start: i64, step: i64, d: &mut [i32]) {
    let (start, step) = (start as i32, step as i32);
    for (j, d) in d.iter_mut().enumerate() {
        *d = start.wrapping_add(step.wrapping_mul(j as i32));
    }
}

/// `a·b + c`.
#[inline(always)]
pub fn mul_add_i(a: &[i32], b: i32, c: Arg<'_, i32>, d: &mut [i32]) {
    match c {
        Arg::Each(c) => {
            d.iter_mut().zip(a).zip(c).for_each(|((d, a), c)| *d = a.wrapping_mul(b).wrapping_add(*c));
        }
        Arg::All(c) => d.iter_mut().zip(a).for_each(|(d, a)| *d = a.wrapping_mul(b).wrapping_add(c)),
    }
}

/// `t` where `c ≠ 0`, else `f`.
#[inline(always)]
pub fn select<T: Copy>(c: Arg<'_, i32>, t: Arg<'_, T>, f: Arg<'_, T>, d: &mut [T]) {
    let c = match c {
        Arg::All(c) => return if c != 0 { map1(t, d, |x| x) } else { map1(f, d, |x| x) },
        Arg::Each(c) => c,
    };
    let pick = |c: i32, t: T, f: T| if c != 0 { t } else { f };
    let each = d.iter_mut().zip(c);
    match (t, f) {
        (Arg::Each(t), Arg::Each(f)) => each.zip(t).zip(f).for_each(|(((d, c), t), f)| *d = pick(*c, *t, *f)),
        (Arg::Each(t), Arg::All(f)) => each.zip(t).for_each(|((d, c), t)| *d = pick(*c, *t, f)),
        (Arg::All(t), Arg::Each(f)) => each.zip(f).for_each(|((d, c), f)| *d = pick(*c, t, *f)),
        (Arg::All(t), Arg::All(f)) => each.for_each(|(d, c)| *d = pick(*c, t, f)),
    }
}

/// Integers as floats.
#[inline(always)]
pub fn to_f32(a: Arg<'_, i32>, d: &mut [f32]) {
    map1(a, d, |x| x as f32);
}

/// Floats as integers toward zero, or as truth values.
#[inline(always)]
pub fn to_i32(truth: bool, a: Arg<'_, f32>, d: &mut [i32]) {
    if truth {
        map1(a, d, |x| i32::from(x != 0.0));
    } else {
        map1(a, d, |x| x as i32);
    }
}

/// Integers as truth values.
#[inline(always)]
pub fn to_bool(a: Arg<'_, i32>, d: &mut [i32]) {
    map1(a, d, |x| i32::from(x != 0));
}

#[inline(always)]
fn reduce_lanes(a: &[f32], from: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [from; 32];
    let body = a.chunks_exact(32);
    let tail = body.remainder();
    for c in body.chain([tail]) {
        for (l, x) in lanes.iter_mut().zip(c) {
            *l = f(*l, *x);
        }
    }
    let mut width = 32;
    while width > 1 {
        width /= 2;
        let (lo, hi) = lanes.split_at_mut(width);
        for (l, h) in lo.iter_mut().zip(hi) {
            *l = f(*l, *h);
        }
    }
    lanes[0]
}

/// Σ over 32 lanes that are joined as a tree.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    reduce_lanes(a, 0.0, |x, y| x + y)
}
/// The largest, at least `from`.
#[inline(always)]
pub fn max(a: &[f32], from: f32) -> f32 {
    reduce_lanes(a, from, |x, y| if y > x { y } else { x })
}
/// The smallest, at most `from`.
#[inline(always)]
pub fn min(a: &[f32], from: f32) -> f32 {
    reduce_lanes(a, from, |x, y| if y < x { y } else { x })
}
/// Π.
#[inline(always)]
pub fn product(a: &[f32]) -> f32 {
    reduce_lanes(a, 1.0, |x, y| x * y)
}
