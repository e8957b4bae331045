//! Built-in functions to micro-operations.

use super::place::Value;
use super::{Frame, Lower, Lowered};
use crate::op::{Bin, Op, Reg, Tri, Un};
use naga::{Expression, Handle, MathFunction as F, ScalarKind};

impl<'m> Lower<'m> {
    pub(super) fn math(
        &mut self,
        f: &mut Frame<'m>,
        fun: F,
        arg: Handle<Expression>,
        more: [Option<Handle<Expression>>; 3],
    ) -> Lowered<Value> {
        let kind = self.scalar_kind(f, arg)?;
        let a = self.rows(f, arg)?;
        let mut rest = Vec::new();
        for h in more.into_iter().flatten() {
            rest.push(self.rows(f, h)?);
        }
        let (float, signed) = (kind == ScalarKind::Float, kind == ScalarKind::Sint);
        if let Some(op) = unary(fun, kind) {
            return Ok(self.each(a.len(), |d, i| Op::Un { op, d, a: a[i] }));
        }
        let choose = |f: Bin, s: Bin, u: Bin| {
            if float {
                f
            } else if signed {
                s
            } else {
                u
            }
        };
        let (min, max) = (choose(Bin::Min, Bin::MinS, Bin::MinU), choose(Bin::Max, Bin::MaxS, Bin::MaxU));
        let simple = match fun {
            F::Min => Some(min),
            F::Max => Some(max),
            F::Pow => Some(Bin::Pow),
            F::Atan2 => Some(Bin::Atan2),
            F::Ldexp => Some(Bin::Ldexp),
            _ => None,
        };
        let b = rest.first().cloned().unwrap_or_default();
        let c = rest.get(1).cloned().unwrap_or_default();
        if let Some(op) = simple {
            return Ok(self.each(a.len(), |d, i| Op::Bin { op, d, a: a[i], b: b[i] }));
        }
        Ok(match fun {
            F::Abs => Value::Rows(a),
            F::Clamp => {
                let low = self.pairs(max, &a, &b);
                Value::Rows(self.pairs(min, &low, &c))
            }
            F::Fma => self.each(a.len(), |d, i| Op::Tri { op: Tri::Fma, d, a: a[i], b: b[i], c: c[i] }),
            F::Mix => {
                let one = self.constant(1f32.to_bits());
                let left = self.pairs(Bin::Sub, &vec![one; c.len()], &c);
                let left: Vec<Reg> = (0..a.len()).map(|i| left[i.min(left.len() - 1)]).collect();
                let right: Vec<Reg> = (0..a.len()).map(|i| c[i.min(c.len() - 1)]).collect();
                let (x, y) = (self.pairs(Bin::Mul, &a, &left), self.pairs(Bin::Mul, &b, &right));
                Value::Rows(self.pairs(Bin::Add, &x, &y))
            }
            F::Dot => Value::Rows(vec![self.dot(float, &a, &b)]),
            F::Length if a.len() > 1 => {
                let square = self.dot(true, &a, &a);
                self.each(1, |d, _| Op::Un { op: Un::Sqrt, d, a: square })
            }
            F::Dot4I8Packed | F::Dot4U8Packed => {
                let op = if fun == F::Dot4I8Packed { Tri::DotS } else { Tri::DotU };
                let zero = self.constant(0);
                self.each(1, |d, _| Op::Tri { op, d, a: a[0], b: b[0], c: zero })
            }
            F::Unpack2x16float => {
                let sixteen = self.constant(16);
                let high = self.pairs(Bin::ShrU, &a, &[sixteen])[0];
                let halves = [a[0], high];
                self.each(2, |d, i| Op::Un { op: Un::HalfToF, d, a: halves[i] })
            }
            F::Pack2x16float => self.each(1, |d, _| Op::Bin { op: Bin::PackHalf, d, a: a[0], b: a[1] }),
            F::QuantizeToF16 => {
                let Value::Rows(h) = self.each(a.len(), |d, i| Op::Un { op: Un::FToHalf, d, a: a[i] }) else {
                    return Err(self.unsupported("quantizeToF16"));
                };
                self.each(h.len(), |d, i| Op::Un { op: Un::HalfToF, d, a: h[i] })
            }
            F::ExtractBits => {
                let op = if signed { Tri::BfeS } else { Tri::BfeU };
                self.each(a.len(), |d, i| Op::Tri { op, d, a: a[i], b: b[0], c: c[0] })
            }
            F::Step => {
                let (one, zero) = (self.constant(1f32.to_bits()), self.constant(0));
                let Value::Rows(past) = self.each(a.len(), |d, i| Op::Cmp {
                    rel: crate::op::Rel::Le,
                    num: crate::op::Num::F,
                    d,
                    a: a[i],
                    b: b[i],
                }) else {
                    return Err(self.unsupported("step"));
                };
                self.each(a.len(), |d, i| Op::Sel { d, c: past[i], a: one, b: zero })
            }
            other => match self.packing(other, &a, &b, [&c, &rest.get(2).cloned().unwrap_or_default()]) {
                Some(v) => v,
                None => return Err(self.unsupported(format!("the function {other:?}"))),
            },
        })
    }

    /// One operation on each pair of rows; a single right row serves all.
    pub(super) fn pairs(&mut self, op: Bin, a: &[Reg], b: &[Reg]) -> Vec<Reg> {
        let d = self.registers(a.len() as u32);
        for (i, x) in a.iter().enumerate() {
            let y = b.get(i).or(b.first()).copied().unwrap_or(*x);
            self.push(Op::Bin { op, d: d + i as u32, a: *x, b: y });
        }
        (d..d + a.len() as u32).collect()
    }

    fn dot(&mut self, float: bool, a: &[Reg], b: &[Reg]) -> Reg {
        let products = self.pairs(if float { Bin::Mul } else { Bin::MulI }, a, b);
        self.fold(if float { Bin::Add } else { Bin::AddI }, &products)
    }
}

fn unary(fun: F, kind: ScalarKind) -> Option<Un> {
    let float = kind == ScalarKind::Float;
    Some(match fun {
        F::Abs if float => Un::Abs,
        F::Abs if kind == ScalarKind::Sint => Un::AbsI,
        F::Sign if float => Un::Sign,
        F::Sign => Un::SignI,
        F::Saturate => Un::Saturate,
        F::Cos => Un::Cos,
        F::Cosh => Un::Cosh,
        F::Sin => Un::Sin,
        F::Sinh => Un::Sinh,
        F::Tan => Un::Tan,
        F::Tanh => Un::Tanh,
        F::Acos => Un::Acos,
        F::Asin => Un::Asin,
        F::Atan => Un::Atan,
        F::Asinh => Un::Asinh,
        F::Acosh => Un::Acosh,
        F::Atanh => Un::Atanh,
        F::Ceil => Un::Ceil,
        F::Floor => Un::Floor,
        F::Round => Un::RoundEven,
        F::Fract => Un::Fract,
        F::Trunc => Un::Trunc,
        F::Exp => Un::Exp,
        F::Exp2 => Un::Exp2,
        F::Log => Un::Log,
        F::Log2 => Un::Log2,
        F::Sqrt => Un::Sqrt,
        F::InverseSqrt => Un::Rsqrt,
        F::CountLeadingZeros => Un::Clz,
        F::CountTrailingZeros => Un::Ctz,
        F::CountOneBits => Un::Popc,
        F::ReverseBits => Un::Brev,
        F::FirstTrailingBit => Un::FirstLow,
        F::FirstLeadingBit if kind == ScalarKind::Sint => Un::FirstHighS,
        F::FirstLeadingBit => Un::FirstHighU,
        _ => return None,
    })
}
