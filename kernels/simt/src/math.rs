//! Arithmetic on rows.

use crate::approx::{self, Approximate};
use crate::halves::{bfloats, half_toward_zero, halves, on_bfloats, on_halves, pack_bfloat, pack_half};
use crate::op::{Bin, LANES, Num, Rel, Row, Tri, Un, Wide};
use half::{bf16, f16};

/// How floats are computed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arith {
    /// Denormals count as zero.
    pub(crate) ftz: bool,
    /// Seed of the perturbation of approximate functions.
    pub(crate) perturb: Option<u64>,
    /// Bounds of WGSL rather than PTX.
    pub(crate) wgsl: bool,
}

#[inline(always)]
fn map(a: &Row, f: impl Fn(u32) -> u32) -> Row {
    let mut d = [0; LANES];
    for i in 0..LANES {
        d[i] = f(a[i]);
    }
    d
}

#[inline(always)]
fn zip(a: &Row, b: &Row, f: impl Fn(u32, u32) -> u32) -> Row {
    let mut d = [0; LANES];
    for i in 0..LANES {
        d[i] = f(a[i], b[i]);
    }
    d
}

#[inline(always)]
fn zip3(a: &Row, b: &Row, c: &Row, f: impl Fn(u32, u32, u32) -> u32) -> Row {
    let mut d = [0; LANES];
    for i in 0..LANES {
        d[i] = f(a[i], b[i], c[i]);
    }
    d
}

#[inline(always)]
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[inline(always)]
fn map_f(a: &Row, g: impl Fn(f32) -> f32) -> Row {
    map(a, |x| g(f(x)).to_bits())
}

#[inline(always)]
fn zip_f(a: &Row, b: &Row, g: impl Fn(f32, f32) -> f32) -> Row {
    zip(a, b, |x, y| g(f(x), f(y)).to_bits())
}

/// Zero of the same sign for a denormal.
#[inline(always)]
fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// Smaller of two; of a number and NaN the number, and -0 below +0.
fn min_f(a: f32, b: f32) -> f32 {
    if a == b { f(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

fn max_f(a: f32, b: f32) -> f32 {
    if a == b { f(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

/// `a * b + c`, rounded once.
///
/// The product of two f32 is exact in f64. Rounding the f64 sum again to f32 differs from one rounding only where the
/// f64 sum lies half way between two f32, or where the result is denormal; such rows take the slow way.
fn fused(a: &Row, b: &Row, c: &Row) -> Row {
    let (mut d, mut odd) = ([0; LANES], 0);
    for i in 0..LANES {
        let sum = f64::from(f(a[i])) * f64::from(f(b[i])) + f64::from(f(c[i]));
        d[i] = (sum as f32).to_bits();
        let bits = sum.to_bits();
        odd |= u32::from(bits & 0x1fff_ffff == 0x1000_0000)
            | u32::from(bits << 1 < 0x381 << 53) & u32::from(bits << 1 != 0);
    }
    if odd != 0 {
        return zip3(a, b, c, |x, y, z| f(x).mul_add(f(y), f(z)).to_bits());
    }
    d
}

/// Which results can be infinite or NaN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Result {
    Other,
    F,
    Half,
    Half2,
    Bfloat2,
}

impl Result {
    /// Whether a value of this form is finite.
    pub(crate) fn finite(self, x: u32) -> bool {
        match self {
            Result::Other => true,
            Result::F => x & 0x7f80_0000 != 0x7f80_0000,
            Result::Half => x & 0x7c00 != 0x7c00,
            Result::Half2 => x & 0x7c00 != 0x7c00 && x & 0x7c00_0000 != 0x7c00_0000,
            Result::Bfloat2 => x & 0x7f80 != 0x7f80 && x & 0x7f80_0000 != 0x7f80_0000,
        }
    }
}

/// The forms of the result and of the operands.
pub(crate) fn un_form(op: Un) -> (Result, Result) {
    use Un::*;
    match op {
        Neg | Abs | Floor | Ceil | RoundEven | Trunc | Fract | Sign | Saturate | SqrtExact | RcpExact | Sqrt
        | Rsqrt | Rcp | Exp | Exp2 | Log | Log2 | Sin | Cos | Tanh | Tan | Asin | Acos | Atan | Sinh | Cosh | Asinh
        | Acosh | Atanh | FToTf32 => (Result::F, Result::F),
        HalfToF => (Result::F, Result::Half),
        FToHalf | FToHalfZero => (Result::Half, Result::F),
        NegH2 | AbsH2 | Exp2H2 | TanhH2 => (Result::Half2, Result::Half2),
        NegB2 | AbsB2 | Exp2B2 | TanhB2 => (Result::Bfloat2, Result::Bfloat2),
        FToBfloat | FToBfloatZero => (Result::Bfloat2, Result::F),
        _ => (Result::Other, Result::Other),
    }
}

/// The forms of the result and of the operands.
pub(crate) fn bin_form(op: Bin) -> (Result, Result) {
    use Bin::*;
    match op {
        Add | Sub | Mul | Rem | Min | Max | Pow | Atan2 | DivExact | Div => (Result::F, Result::F),
        Ldexp => (Result::F, Result::F),
        PackHalf => (Result::Half2, Result::F),
        PackBfloat => (Result::Bfloat2, Result::F),
        AddH2 | SubH2 | MulH2 | MinH2 | MaxH2 => (Result::Half2, Result::Half2),
        AddB2 | SubB2 | MulB2 | MinB2 | MaxB2 => (Result::Bfloat2, Result::Bfloat2),
        _ => (Result::Other, Result::Other),
    }
}

/// The form of result and operands.
pub(crate) fn tri_form(op: Tri) -> Result {
    match op {
        Tri::Fma => Result::F,
        Tri::FmaH2 => Result::Half2,
        Tri::FmaB2 => Result::Bfloat2,
        _ => Result::Other,
    }
}

impl Arith {
    /// The value of a function, off by as much as it may be.
    pub(crate) fn near(&self, op: Approximate, exact: f64, argument: f32) -> f32 {
        self.near_wide(op, exact, argument) as f32
    }
    fn near_wide(&self, op: Approximate, exact: f64, argument: f32) -> f64 {
        match self.perturb {
            None => exact,
            Some(seed) => approx::perturb(op, self.wgsl, seed, exact, argument),
        }
    }
    fn near_halves(&self, a: &Row, op: Approximate, g: impl Fn(f64) -> f64) -> Row {
        map(a, |x| on_halves(x, x, |v, _| self.near_wide(op, g(v), v as f32)))
    }
    fn near_bfloats(&self, a: &Row, op: Approximate, g: impl Fn(f64) -> f64) -> Row {
        map(a, |x| on_bfloats(x, x, |v, _| self.near_wide(op, g(v), v as f32)))
    }
    fn approximate(&self, a: &Row, op: Approximate, g: impl Fn(f64) -> f64) -> Row {
        map_f(a, |x| self.near(op, g(f64::from(x)), x))
    }
    fn flushed(&self, form: Result, a: &Row) -> Row {
        if self.ftz && form == Result::F { map(a, flush) } else { *a }
    }

    /// An operation on one row.
    pub(crate) fn un(&self, op: Un, a: &Row) -> Row {
        let (out, inp) = un_form(op);
        if self.ftz && (out == Result::F || inp == Result::F) {
            let d = self.un_raw(op, &self.flushed(inp, a));
            return self.flushed(out, &d);
        }
        self.un_raw(op, a)
    }

    fn un_raw(&self, op: Un, a: &Row) -> Row {
        use Un::*;
        let saturate_s = |x: f32| x as i32 as u32;
        match op {
            NegI => map(a, u32::wrapping_neg),
            AbsI => map(a, |x| (x as i32).wrapping_abs() as u32),
            SignI => map(a, |x| (x as i32).signum() as u32),
            BitNot => map(a, |x| !x),
            LogicNot => map(a, |x| u32::from(x == 0)),
            NotZero => map(a, |x| u32::from(x != 0)),
            Clz => map(a, u32::leading_zeros),
            Ctz => map(a, u32::trailing_zeros),
            Popc => map(a, u32::count_ones),
            Brev => map(a, u32::reverse_bits),
            FirstLow => map(a, |x| if x == 0 { u32::MAX } else { x.trailing_zeros() }),
            FirstHighU => map(a, |x| 31u32.wrapping_sub(x.leading_zeros())),
            FirstHighS => map(a, |x| 31u32.wrapping_sub((x ^ ((x as i32 >> 31) as u32)).leading_zeros())),
            Neg => map(a, |x| x ^ 0x8000_0000),
            Abs => map(a, |x| x & 0x7fff_ffff),
            Floor => map_f(a, f32::floor),
            Ceil => map_f(a, f32::ceil),
            RoundEven => map_f(a, f32::round_ties_even),
            Trunc => map_f(a, f32::trunc),
            Fract => map_f(a, |x| x - x.floor()),
            Sign => map_f(a, |x| if x == 0.0 { 0.0 } else { x.signum() }),
            Saturate => map_f(a, |x| if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) }),
            SqrtExact => map_f(a, f32::sqrt),
            RcpExact => map_f(a, |x| 1.0 / x),
            Sqrt if !self.wgsl => self.approximate(a, Approximate::Sqrt, f64::sqrt),
            Rsqrt => self.approximate(a, Approximate::Rsqrt, |x| 1.0 / x.sqrt()),
            Rcp => self.approximate(a, Approximate::Rcp, |x| 1.0 / x),
            Exp => self.approximate(a, Approximate::Exp, f64::exp),
            Exp2 => self.approximate(a, Approximate::Exp2, f64::exp2),
            Log => self.approximate(a, Approximate::Log, f64::ln),
            Log2 => self.approximate(a, Approximate::Log2, f64::log2),
            Sin => self.approximate(a, Approximate::Sin, f64::sin),
            Cos => self.approximate(a, Approximate::Cos, f64::cos),
            Tanh => self.approximate(a, Approximate::Tanh, f64::tanh),
            Sqrt | Tan | Asin | Acos | Atan | Sinh | Cosh | Asinh | Acosh | Atanh => {
                map_f(a, |x| self.inherited(op, x))
            }
            TruncS => map(a, |x| saturate_s(f(x))),
            TruncU => map(a, |x| f(x) as u32),
            NearS => map(a, |x| saturate_s(f(x).round_ties_even())),
            NearU => map(a, |x| f(x).round_ties_even() as u32),
            FloorS => map(a, |x| saturate_s(f(x).floor())),
            FloorU => map(a, |x| f(x).floor() as u32),
            CeilS => map(a, |x| saturate_s(f(x).ceil())),
            CeilU => map(a, |x| f(x).ceil() as u32),
            SignedToF => map(a, |x| (x as i32 as f32).to_bits()),
            UnsignedToF => map(a, |x| (x as f32).to_bits()),
            IsNan => map(a, |x| u32::from(f(x).is_nan())),
            IsInf => map(a, |x| u32::from(f(x).is_infinite())),
            HalfToF => map(a, |x| halves(x).0.to_bits()),
            BfloatToF => map(a, |x| x << 16),
            FToHalf => map(a, |x| u32::from(f16::from_f32(f(x)).to_bits())),
            FToHalfZero => map(a, |x| u32::from(half_toward_zero(f(x)))),
            FToBfloat => map(a, |x| u32::from(bf16::from_f32(f(x)).to_bits())),
            FToBfloatZero => map(a, |x| x >> 16),
            FToTf32 => map(a, |x| if x & 0x7f80_0000 == 0x7f80_0000 { x } else { x.wrapping_add(0x1000) & !0x1fff }),
            SignByte => map(a, |x| x as u8 as i8 as i32 as u32),
            SignHalf => map(a, |x| x as u16 as i16 as i32 as u32),
            NegH2 | NegB2 => map(a, |x| x ^ 0x8000_8000),
            AbsH2 | AbsB2 => map(a, |x| x & 0x7fff_7fff),
            Exp2H2 => self.near_halves(a, Approximate::Exp2Half, f64::exp2),
            TanhH2 => self.near_halves(a, Approximate::TanhHalf, f64::tanh),
            Exp2B2 => self.near_bfloats(a, Approximate::Exp2Bfloat, f64::exp2),
            TanhB2 => self.near_bfloats(a, Approximate::TanhBfloat, f64::tanh),
        }
    }

    /// An operation on two rows.
    pub(crate) fn bin(&self, op: Bin, a: &Row, b: &Row) -> Row {
        let (out, inp) = bin_form(op);
        if self.ftz && (out == Result::F || inp == Result::F) {
            let b = if op == Bin::Ldexp { *b } else { self.flushed(inp, b) };
            let d = self.bin_raw(op, &self.flushed(inp, a), &b);
            return self.flushed(out, &d);
        }
        self.bin_raw(op, a, b)
    }

    fn bin_raw(&self, op: Bin, a: &Row, b: &Row) -> Row {
        use Bin::*;
        let s = |x: u32| x as i32;
        match op {
            AddI => zip(a, b, u32::wrapping_add),
            SubI => zip(a, b, u32::wrapping_sub),
            MulI => zip(a, b, u32::wrapping_mul),
            MulHiS => zip(a, b, |x, y| ((i64::from(s(x)) * i64::from(s(y))) >> 32) as u32),
            MulHiU => zip(a, b, |x, y| ((u64::from(x) * u64::from(y)) >> 32) as u32),
            Mul24S => zip(a, b, |x, y| ((s(x) << 8 >> 8).wrapping_mul(s(y) << 8 >> 8)) as u32),
            Mul24U => zip(a, b, |x, y| (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff)),
            DivS => zip(a, b, |x, y| if y == 0 { x } else { s(x).wrapping_div(s(y)) as u32 }),
            DivU => zip(a, b, |x, y| x.checked_div(y).unwrap_or(x)),
            RemS => zip(a, b, |x, y| if y == 0 { 0 } else { s(x).wrapping_rem(s(y)) as u32 }),
            RemU => zip(a, b, |x, y| x.checked_rem(y).unwrap_or(0)),
            MinS => zip(a, b, |x, y| s(x).min(s(y)) as u32),
            MinU => zip(a, b, u32::min),
            MaxS => zip(a, b, |x, y| s(x).max(s(y)) as u32),
            MaxU => zip(a, b, u32::max),
            And => zip(a, b, |x, y| x & y),
            Or => zip(a, b, |x, y| x | y),
            Xor => zip(a, b, |x, y| x ^ y),
            Shl => zip(a, b, |x, y| if y > 31 { 0 } else { x << y }),
            ShrU => zip(a, b, |x, y| if y > 31 { 0 } else { x >> y }),
            ShrS => zip(a, b, |x, y| (s(x) >> y.min(31)) as u32),
            Add => zip_f(a, b, |x, y| x + y),
            Sub => zip_f(a, b, |x, y| x - y),
            Mul => zip_f(a, b, |x, y| x * y),
            Rem => zip_f(a, b, |x, y| self.rest(x, y)),
            Min => zip_f(a, b, min_f),
            Max => zip_f(a, b, max_f),
            DivExact => zip_f(a, b, |x, y| x / y),
            Div => match self.perturb {
                None => zip_f(a, b, |x, y| x / y),
                Some(_) => zip_f(a, b, |x, y| self.near(Approximate::Div, f64::from(x) / f64::from(y), y)),
            },
            Pow => zip_f(a, b, |x, y| match self.perturb {
                None => f64::from(x).powf(f64::from(y)) as f32,
                Some(_) => {
                    let log = self.near(Approximate::Log2, f64::from(x).log2(), x);
                    let scaled = y * log;
                    self.near(Approximate::Exp2, f64::from(scaled).exp2(), scaled)
                }
            }),
            Atan2 => zip_f(a, b, |y, x| self.angle(y, x)),
            CopySign => zip(a, b, |x, y| x & 0x7fff_ffff | y & 0x8000_0000),
            Ldexp => zip(a, b, |x, y| ((f64::from(f(x)) * f64::from(s(y)).exp2()) as f32).to_bits()),
            PackHalf => zip(a, b, |x, y| pack_half(f(x).into(), f(y).into())),
            PackBfloat => zip(a, b, |x, y| pack_bfloat(f(x).into(), f(y).into())),
            AddH2 => zip(a, b, |x, y| on_halves(x, y, |x, y| x + y)),
            SubH2 => zip(a, b, |x, y| on_halves(x, y, |x, y| x - y)),
            MulH2 => zip(a, b, |x, y| on_halves(x, y, |x, y| x * y)),
            MinH2 => zip(a, b, |x, y| on_halves(x, y, f64::min)),
            MaxH2 => zip(a, b, |x, y| on_halves(x, y, f64::max)),
            AddB2 => zip(a, b, |x, y| on_bfloats(x, y, |x, y| x + y)),
            SubB2 => zip(a, b, |x, y| on_bfloats(x, y, |x, y| x - y)),
            MulB2 => zip(a, b, |x, y| on_bfloats(x, y, |x, y| x * y)),
            MinB2 => zip(a, b, |x, y| on_bfloats(x, y, f64::min)),
            MaxB2 => zip(a, b, |x, y| on_bfloats(x, y, f64::max)),
        }
    }

    /// An operation on three rows.
    pub(crate) fn tri(&self, op: Tri, a: &Row, b: &Row, c: &Row) -> Row {
        if self.ftz && op == Tri::Fma {
            let d = self.tri_raw(op, &map(a, flush), &map(b, flush), &map(c, flush));
            return map(&d, flush);
        }
        self.tri_raw(op, a, b, c)
    }

    fn tri_raw(&self, op: Tri, a: &Row, b: &Row, c: &Row) -> Row {
        use Tri::*;
        let s = |x: u32| i64::from(x as i32);
        let dot = |x: u32, y: u32, c: u32, x_signed: bool, y_signed: bool| {
            let byte = |w: u8, signed: bool| if signed { i32::from(w as i8) } else { i32::from(w) };
            let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
            let sum: i32 = x.iter().zip(y).map(|(x, y)| byte(*x, x_signed) * byte(y, y_signed)).sum();
            c.wrapping_add(sum as u32)
        };
        match op {
            Fma if self.wgsl && self.perturb.is_some() => zip3(a, b, c, |x, y, z| self.sum(f(x), f(y), f(z)).to_bits()),
            Fma => fused(a, b, c),
            FmaH2 => zip3(a, b, c, |x, y, z| {
                let ((a0, a1), (b0, b1), (c0, c1)) = (halves(x), halves(y), halves(z));
                let one = |a: f32, b: f32, c: f32| f64::from(a) * f64::from(b) + f64::from(c);
                pack_half(one(a0, b0, c0), one(a1, b1, c1))
            }),
            FmaB2 => zip3(a, b, c, |x, y, z| {
                let ((a0, a1), (b0, b1), (c0, c1)) = (bfloats(x), bfloats(y), bfloats(z));
                let one = |a: f32, b: f32, c: f32| f64::from(a) * f64::from(b) + f64::from(c);
                pack_bfloat(one(a0, b0, c0), one(a1, b1, c1))
            }),
            MadI => zip3(a, b, c, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
            MadHiS => zip3(a, b, c, |x, y, z| (((s(x) * s(y)) >> 32) as u32).wrapping_add(z)),
            MadHiU => zip3(a, b, c, |x, y, z| (((u64::from(x) * u64::from(y)) >> 32) as u32).wrapping_add(z)),
            DotS => zip3(a, b, c, |x, y, z| dot(x, y, z, true, true)),
            DotU => zip3(a, b, c, |x, y, z| dot(x, y, z, false, false)),
            DotSU => zip3(a, b, c, |x, y, z| dot(x, y, z, true, false)),
            DotUS => zip3(a, b, c, |x, y, z| dot(x, y, z, false, true)),
            Prmt => zip3(a, b, c, permute),
            BfeU => zip3(a, b, c, |x, p, n| field(x, p, n, false)),
            BfeS => zip3(a, b, c, |x, p, n| field(x, p, n, true)),
            FunnelLeft => zip3(a, b, c, |lo, hi, n| ((u64::from(hi) << 32 | u64::from(lo)) << n.min(32) >> 32) as u32),
            FunnelRight => zip3(a, b, c, |lo, hi, n| ((u64::from(hi) << 32 | u64::from(lo)) >> n.min(32)) as u32),
            SadU => zip3(a, b, c, |x, y, z| x.abs_diff(y).wrapping_add(z)),
        }
    }
}

fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |d, i| {
        let pick = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (pick & 7))) as u8;
        let byte = if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        d | u32::from(byte) << (8 * i)
    })
}

fn field(x: u32, position: u32, count: u32, signed: bool) -> u32 {
    let (position, count) = (position & 0xff, count & 0xff);
    if count == 0 {
        return 0;
    }
    let value = if position > 31 { 0 } else { x >> position };
    let kept = if count >= 32 { value } else { value & ((1 << count) - 1) };
    let top = (position + count - 1).min(31);
    if signed && x >> top & 1 == 1 && count < 32 { kept | u32::MAX << count.min(32 - position.min(31)) } else { kept }
}

/// Pairs of rows as 64-bit values.
pub(crate) fn wide_op(op: Wide, a: (&Row, &Row), b: (&Row, &Row), c: (&Row, &Row)) -> (Row, Row) {
    use Wide::*;
    let (mut lo, mut hi) = ([0; LANES], [0; LANES]);
    let value = |p: (&Row, &Row), i: usize| u64::from(p.1[i]) << 32 | u64::from(p.0[i]);
    let s = |x: u32| i64::from(x as i32);
    for i in 0..LANES {
        let (x, y, z) = (value(a, i), value(b, i), value(c, i));
        let (a, b) = (a.0[i], b.0[i]);
        let d = match op {
            Add => x.wrapping_add(y),
            Sub => x.wrapping_sub(y),
            Mul => x.wrapping_mul(y),
            DivU => x.checked_div(y).unwrap_or(u64::MAX),
            RemU => x.checked_rem(y).unwrap_or(x),
            DivS => (x as i64).checked_div(y as i64).unwrap_or(-1) as u64,
            RemS => (x as i64).checked_rem(y as i64).unwrap_or(0) as u64,
            And => x & y,
            Or => x | y,
            Xor => x ^ y,
            MinS => (x as i64).min(y as i64) as u64,
            MinU => x.min(y),
            MaxS => (x as i64).max(y as i64) as u64,
            MaxU => x.max(y),
            Not => !x,
            Neg => x.wrapping_neg(),
            Shl => x.checked_shl(b).unwrap_or(0),
            ShrU => x.checked_shr(b).unwrap_or(0),
            ShrS => ((x as i64) >> b.min(63)) as u64,
            MulS => s(a).wrapping_mul(s(b)) as u64,
            MulU => u64::from(a) * u64::from(b),
            FromS => s(a) as u64,
            FromU => u64::from(a),
            Pack => u64::from(b) << 32 | u64::from(a),
            MadS => (s(a).wrapping_mul(s(b)) as u64).wrapping_add(z),
            MadU => (u64::from(a) * u64::from(b)).wrapping_add(z),
            Mad => x.wrapping_mul(y).wrapping_add(z),
        };
        lo[i] = d as u32;
        hi[i] = (d >> 32) as u32;
    }
    (lo, hi)
}

fn holds<T: PartialOrd>(rel: Rel, x: T, y: T) -> bool {
    let unordered = x.partial_cmp(&y).is_none();
    match rel {
        Rel::Eq => x == y,
        Rel::Ne => !unordered && x != y,
        Rel::Lt => x < y,
        Rel::Le => x <= y,
        Rel::Gt => x > y,
        Rel::Ge => x >= y,
        Rel::Equ => unordered || x == y,
        Rel::Neu => unordered || x != y,
        Rel::Ltu => unordered || x < y,
        Rel::Leu => unordered || x <= y,
        Rel::Gtu => unordered || x > y,
        Rel::Geu => unordered || x >= y,
        Rel::Num => !unordered,
        Rel::Nan => unordered,
    }
}

/// A comparison as zeros and ones.
pub(crate) fn compare(rel: Rel, num: Num, ftz: bool, a: (&Row, &Row), b: (&Row, &Row)) -> Row {
    let wide = |p: (&Row, &Row), i: usize| u64::from(p.1[i]) << 32 | u64::from(p.0[i]);
    let lanes = |g: &dyn Fn(usize) -> bool| {
        let mut d = [0; LANES];
        for (i, d) in d.iter_mut().enumerate() {
            *d = u32::from(g(i));
        }
        d
    };
    match (num, rel) {
        (Num::U, Rel::Lt) => zip(a.0, b.0, |x, y| u32::from(x < y)),
        (Num::U, Rel::Ge) => zip(a.0, b.0, |x, y| u32::from(x >= y)),
        (Num::U | Num::S, Rel::Eq) => zip(a.0, b.0, |x, y| u32::from(x == y)),
        (Num::U | Num::S, Rel::Ne) => zip(a.0, b.0, |x, y| u32::from(x != y)),
        (Num::U, _) => zip(a.0, b.0, |x, y| u32::from(holds(rel, x, y))),
        (Num::S, _) => zip(a.0, b.0, |x, y| u32::from(holds(rel, x as i32, y as i32))),
        (Num::F, _) if ftz => zip(a.0, b.0, |x, y| u32::from(holds(rel, f(flush(x)), f(flush(y))))),
        (Num::F, _) => zip(a.0, b.0, |x, y| u32::from(holds(rel, f(x), f(y)))),
        (Num::Half, _) => zip(a.0, b.0, |x, y| u32::from(holds(rel, halves(x).0, halves(y).0))),
        (Num::Bfloat, _) => zip(a.0, b.0, |x, y| u32::from(holds(rel, bfloats(x).0, bfloats(y).0))),
        (Num::U64, _) => lanes(&|i| holds(rel, wide(a, i), wide(b, i))),
        (Num::S64, _) => lanes(&|i| holds(rel, wide(a, i) as i64, wide(b, i) as i64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approx::mix;

    /// Floats of every size, many of them near powers of two and denormal.
    fn odd_float(seed: u64) -> u32 {
        let bits = mix(seed, 77);
        let mantissa = match bits % 4 {
            0 => 0,
            1 => 1,
            2 => 0x7f_ffff,
            _ => bits >> 8 & 0x7f_ffff,
        };
        let exponent = match bits >> 40 & 3 {
            0 => bits >> 44 & 255,
            1 => 127,
            2 => 127 + (bits >> 44 & 31) - 16,
            _ => bits >> 44 & 3,
        };
        ((bits >> 63) << 31 | exponent << 23 | mantissa) as u32
    }

    #[test]
    fn fused_products_round_once() {
        for n in 0..200_000u64 {
            let row = |k: u64| std::array::from_fn(|i| odd_float(96 * n + 3 * i as u64 + k));
            let (a, b, c): (Row, Row, Row) = (row(0), row(1), row(2));
            let d = fused(&a, &b, &c);
            for i in 0..LANES {
                let want = f(a[i]).mul_add(f(b[i]), f(c[i]));
                assert!(
                    f(d[i]).to_bits() == want.to_bits() || want.is_nan() && f(d[i]).is_nan(),
                    "{:x?}",
                    (a[i], b[i], c[i])
                );
            }
        }
    }

    #[test]
    fn single_rows_near_ties_round_once() {
        for n in 0..2_000_000u64 {
            let (a, b, c) = (odd_float(3 * n + 5), odd_float(3 * n + 6), odd_float(3 * n + 7));
            let (d, want) = (fused(&[a; LANES], &[b; LANES], &[c; LANES])[0], f(a).mul_add(f(b), f(c)));
            assert!(d == want.to_bits() || want.is_nan() && f(d).is_nan(), "{:x?}", (a, b, c));
        }
    }

    #[test]
    fn bits_and_bytes() {
        assert_eq!(permute(0x0403_0201, 0x0807_0605, 0x7531), 0x0806_0402);
        assert_eq!(permute(0x8000_0001, 0, 0x000b), 0x0101_01ff);
        assert_eq!(field(0x0000_ff00, 8, 8, false), 0xff);
        assert_eq!(field(0x0000_ff00, 8, 8, true), u32::MAX);
        assert_eq!(field(0x0000_7f00, 8, 8, true), 0x7f);
        assert_eq!(field(0xf000_0000, 28, 8, true), u32::MAX);
        assert_eq!(field(0x7000_0000, 28, 8, true), 7);
        assert_eq!(field(0xffff_ffff, 40, 4, false), 0);
        assert_eq!(field(5, 0, 0, true), 0);
    }

    #[test]
    fn smaller_and_larger_with_zeros_and_nan() {
        assert_eq!(min_f(0.0, -0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(max_f(-0.0, 0.0).to_bits(), 0);
        assert_eq!((min_f(f32::NAN, 2.0), max_f(3.0, f32::NAN)), (2.0, 3.0));
    }
}
