//! Expressions as instructions: operands first, one instruction a lane.

use super::asm::Kind;
use super::writer::{Value, Writer, Written, add_name, arithmetic};
use super::{Error, math};
use crate::ir::{ArrayRef, BinaryOp as B, Expr, Handle, Literal, Scalar, TernaryOp, Type, UnaryOp as U};

impl Writer<'_> {
    /// The registers or constants that hold a value.
    pub(super) fn value(&mut self, h: Handle<Expr>) -> Written<Value> {
        if let Some(value) = self.ready(h)? {
            return Ok(value);
        }
        let value = self.compute(h, None)?;
        self.known.remember(h, &value, self.pure[h.index()]);
        Ok(value)
    }

    /// The value of a scalar.
    pub(super) fn scalar(&mut self, h: Handle<Expr>) -> Written<String> {
        let value = self.value(h)?;
        value.into_iter().next().ok_or_else(|| Error::Untyped { kernel: self.module.name.clone() })
    }

    /// The value, in the wanted registers if it must be computed by an instruction of its own.
    pub(super) fn value_in(&mut self, h: Handle<Expr>, wanted: &[String]) -> Written<Value> {
        if let Some(value) = self.ready(h)? {
            return Ok(value);
        }
        let value = self.compute(h, Some(wanted))?;
        if value != wanted {
            self.known.remember(h, &value, self.pure[h.index()]);
        }
        Ok(value)
    }

    /// A value that takes no instruction.
    fn ready(&self, h: Handle<Expr>) -> Written<Option<Value>> {
        match &self.module.exprs[h] {
            Expr::Literal(l) if l.scalar() != Scalar::Bool => self.literal(*l).map(|text| Some(vec![text])),
            Expr::Local(local) => Ok(self.locals[local.index()].clone()),
            _ => Ok(self.known.get(h).cloned()),
        }
    }

    fn literal(&self, l: Literal) -> Written<String> {
        match l {
            Literal::F32(bits) if !f32::from_bits(bits).is_finite() => {
                Err(Error::Constant { kernel: self.module.name.clone(), text: f32::from_bits(bits).to_string() })
            }
            Literal::F32(bits) => Ok(format!("0f{bits:08X}")),
            Literal::U32(v) => Ok(v.to_string()),
            Literal::I32(v) => Ok(v.to_string()),
            Literal::Bool(v) => Ok(u32::from(v).to_string()),
        }
    }

    /// Whether this expression would take instructions of its own if it were used now.
    fn is_open(&self, h: Handle<Expr>) -> bool {
        self.known.get(h).is_none()
    }

    fn compute(&mut self, h: Handle<Expr>, wanted: Option<&[String]>) -> Written<Value> {
        let module = self.module;
        let ty = self.ty(h)?;
        let value = match &module.exprs[h] {
            Expr::Load { array, index } => return self.load_wanted(h, *array, *index, wanted),
            Expr::Compose(parts) => {
                return parts.iter().map(|p| self.scalar(*p)).collect();
            }
            Expr::Splat { width, value } => return Ok(vec![self.scalar(*value)?; width.lanes() as usize]),
            Expr::Extract { value, lane } => {
                let value = self.value(*value)?;
                let lane = value.get(usize::from(*lane)).cloned();
                return lane.map(|l| vec![l]).ok_or_else(|| Error::Untyped { kernel: module.name.clone() });
            }
            Expr::Literal(Literal::Bool(v)) => {
                let out = self.out(ty, wanted);
                self.op(format!("setp.ne.u32 {}, {}, 0", out.join(", "), u32::from(*v)));
                out
            }
            Expr::Cast { to, value } => self.cast(*to, *value, ty, wanted)?,
            Expr::Bitcast { to, value } => {
                let from = self.value(*value)?;
                if Kind::of(self.ty(*value)?.scalar) == Kind::of(*to) {
                    return Ok(from);
                }
                let out = self.out(ty, wanted);
                for (d, x) in out.iter().zip(&from) {
                    self.op(format!("mov.b32 {d}, {x}"));
                }
                out
            }
            Expr::Unary(op, value) => self.unary(*op, *value, ty, wanted)?,
            Expr::Binary(op, a, b) => self.binary(*op, *a, *b, ty, wanted)?,
            Expr::Ternary(op, a, b, c) => self.ternary(*op, [*a, *b, *c], ty, wanted)?,
            Expr::Literal(_) | Expr::Builtin(_) | Expr::Uniform { .. } | Expr::Local(_) => {
                return Err(Error::Untyped { kernel: module.name.clone() });
            }
        };
        Ok(value)
    }

    fn load_wanted(
        &mut self,
        h: Handle<Expr>,
        array: ArrayRef,
        index: Handle<Expr>,
        wanted: Option<&[String]>,
    ) -> Written<Value> {
        match wanted {
            Some(regs) if self.loads_alone(h, array, index) => {
                self.load_into(array, index, regs)?;
                Ok(regs.to_vec())
            }
            _ => self.load(h, array, index),
        }
    }

    /// Registers for a result.
    fn out(&mut self, ty: Type, wanted: Option<&[String]>) -> Value {
        match wanted {
            Some(regs) => regs.to_vec(),
            None => self.fresh(ty),
        }
    }

    fn unary(&mut self, op: U, operand: Handle<Expr>, ty: Type, wanted: Option<&[String]>) -> Written<Value> {
        let x = self.value(operand)?;
        let scalar = self.ty(operand)?.scalar;
        let out = self.out(ty, wanted);
        let first = x.first().cloned().unwrap_or_default();
        match op {
            U::UnpackU8 | U::UnpackI8 => {
                let ty = if op == U::UnpackI8 { "s32" } else { "u32" };
                for (i, d) in out.iter().enumerate() {
                    self.op(format!("bfe.{ty} {d}, {first}, {}, 8", 8 * i));
                }
            }
            U::Unpack2x16Float => {
                let halves: Value = (0..2).map(|_| self.asm.reg(Kind::Half)).collect();
                self.op(format!("mov.b32 {{{}}}, {first}", halves.join(", ")));
                for (d, h) in out.iter().zip(&halves) {
                    self.op(format!("cvt.f32.f16 {d}, {h}"));
                }
            }
            U::Pack2x16Float | U::Pack2xBf16 => {
                let (low, high) = (first, x.get(1).cloned().unwrap_or_default());
                let ty = if op == U::Pack2xBf16 { "bf16x2" } else { "f16x2" };
                self.op(format!("cvt.rn.{ty}.f32 {}, {high}, {low}", out.join(", ")));
            }
            _ => {
                for (d, x) in out.iter().zip(&x) {
                    self.unary_lane(op, scalar, x, d);
                }
            }
        }
        Ok(out)
    }

    fn unary_lane(&mut self, op: U, scalar: Scalar, x: &str, d: &str) {
        let ty = arithmetic(scalar);
        match op {
            U::Neg if scalar != Scalar::F16 => self.op(format!("neg.{ty} {d}, {x}")),
            U::Abs if scalar == Scalar::U32 => self.op(format!("mov.b32 {d}, {x}")),
            U::Abs if scalar != Scalar::F16 => self.op(format!("abs.{ty} {d}, {x}")),
            U::Not => self.op(format!("not.pred {d}, {x}")),
            U::BitNot => self.op(format!("not.b32 {d}, {x}")),
            _ if scalar == Scalar::F16 => {
                let (wide, result) = (self.asm.reg(Kind::Float), self.asm.reg(Kind::Float));
                self.op(format!("cvt.f32.f16 {wide}, {x}"));
                self.function(op, &wide, &result);
                self.op(format!("cvt.rn.f16.f32 {d}, {result}"));
            }
            _ => self.function(op, x, d),
        }
    }

    /// A chain that starts at `start` and takes in the products of the lanes.
    fn dot(&mut self, start: Option<String>, a: Handle<Expr>, b: Handle<Expr>, out: &str) -> Written<()> {
        let scalar = self.ty(a)?.scalar;
        let (x, y) = (self.value(a)?, self.value(b)?);
        let (ty, lanes) = (arithmetic(scalar), x.len());
        let mut sum = start;
        for (i, (x, y)) in x.iter().zip(&y).enumerate() {
            let d = if i + 1 == lanes { out.to_owned() } else { self.asm.reg(Kind::of(scalar)) };
            match (&sum, scalar.is_float()) {
                (None, true) => self.op(format!("mul.rn.{ty} {d}, {x}, {y}")),
                (None, false) => self.op(format!("mul.lo.{ty} {d}, {x}, {y}")),
                (Some(s), true) => self.op(format!("fma.rn.{ty} {d}, {x}, {y}, {s}")),
                (Some(s), false) => self.op(format!("mad.lo.{ty} {d}, {x}, {y}, {s}")),
            }
            sum = Some(d);
        }
        Ok(())
    }

    fn binary(
        &mut self,
        op: B,
        a: Handle<Expr>,
        b: Handle<Expr>,
        ty: Type,
        wanted: Option<&[String]>,
    ) -> Written<Value> {
        let module = self.module;
        let scalar = self.ty(a)?.scalar;
        match op {
            B::Dot => {
                let out = self.out(ty, wanted);
                let last = out.first().cloned().unwrap_or_default();
                self.dot(None, a, b, &last)?;
                return Ok(out);
            }
            // x + dot(p, q): the products join the sum one by one.
            B::Add if ty.is_scalar() => {
                for (sum, product) in [(a, b), (b, a)] {
                    if let Expr::Binary(B::Dot, p, q) = module.exprs[product]
                        && self.is_open(product)
                    {
                        let start = self.scalar(sum)?;
                        let out = self.out(ty, wanted);
                        let last = out.first().cloned().unwrap_or_default();
                        self.dot(Some(start), p, q, &last)?;
                        return Ok(out);
                    }
                    if let Expr::Binary(B::Mul, p, q) = module.exprs[product]
                        && scalar.is_int()
                        && self.is_open(product)
                    {
                        let (p, q, c) = (self.scalar(p)?, self.scalar(q)?, self.scalar(sum)?);
                        let out = self.out(ty, wanted);
                        self.op(format!("mad.lo.{} {}, {p}, {q}, {c}", arithmetic(scalar), out.join(", ")));
                        return Ok(out);
                    }
                }
            }
            _ => {}
        }
        let (x, y) = (self.value(a)?, self.value(b)?);
        let out = self.out(ty, wanted);
        for (d, (x, y)) in out.iter().zip(x.iter().zip(&y)) {
            self.binary_lane(op, scalar, x, y, d);
        }
        Ok(out)
    }

    fn binary_lane(&mut self, op: B, scalar: Scalar, x: &str, y: &str, d: &str) {
        let ty = arithmetic(scalar);
        let float = scalar.is_float();
        let rounded = |name: &str| if float { format!("{name}.rn.{ty}") } else { format!("{name}.{ty}") };
        let name = match op {
            B::Add => add_name(scalar),
            B::Sub => rounded("sub"),
            B::Mul if float => rounded("mul"),
            B::Mul => format!("mul.lo.{ty}"),
            B::Div | B::Rem | B::Pow if float => return self.float_quotient(op, scalar, x, y, d),
            B::Div => format!("div.{ty}"),
            B::Rem => format!("rem.{ty}"),
            B::Min => format!("min.{ty}"),
            B::Max => format!("max.{ty}"),
            B::Eq | B::Ne if scalar == Scalar::Bool => {
                self.op(format!("xor.pred {d}, {x}, {y}"));
                if op == B::Eq {
                    self.op(format!("not.pred {d}, {d}"));
                }
                return;
            }
            B::Lt => format!("setp.lt.{ty}"),
            B::Le => format!("setp.le.{ty}"),
            B::Gt => format!("setp.gt.{ty}"),
            B::Ge => format!("setp.ge.{ty}"),
            B::Eq => format!("setp.eq.{ty}"),
            B::Ne if float => format!("setp.neu.{ty}"),
            B::Ne => format!("setp.ne.{ty}"),
            B::And => "and.pred".to_owned(),
            B::Or => "or.pred".to_owned(),
            B::BitAnd => "and.b32".to_owned(),
            B::BitOr => "or.b32".to_owned(),
            B::BitXor => "xor.b32".to_owned(),
            B::Shl => "shl.b32".to_owned(),
            B::Shr => format!("shr.{ty}"),
            B::DotI8 => return self.op(format!("dp4a.s32.s32 {d}, {x}, {y}, 0")),
            B::DotU8 => return self.op(format!("dp4a.u32.u32 {d}, {x}, {y}, 0")),
            B::Pow | B::Dot => return,
        };
        self.op(format!("{name} {d}, {x}, {y}"));
    }

    /// Quotient, remainder and power of floats.
    fn float_quotient(&mut self, op: B, scalar: Scalar, x: &str, y: &str, d: &str) {
        if scalar == Scalar::F32 {
            return self.quotient(op, x, y, d);
        }
        let wide: Value = (0..3).map(|_| self.asm.reg(Kind::Float)).collect();
        if let [p, q, result] = wide.as_slice() {
            self.op(format!("cvt.f32.f16 {p}, {x}"));
            self.op(format!("cvt.f32.f16 {q}, {y}"));
            self.quotient(op, p, q, result);
            self.op(format!("cvt.rn.f16.f32 {d}, {result}"));
        }
    }

    fn ternary(&mut self, op: TernaryOp, of: [Handle<Expr>; 3], ty: Type, wanted: Option<&[String]>) -> Written<Value> {
        let [a, b, c] = of;
        let (x, y, z) = (self.value(a)?, self.value(b)?, self.value(c)?);
        let out = self.out(ty, wanted);
        let kind = arithmetic(ty.scalar);
        for (i, d) in out.iter().enumerate() {
            // A scalar condition chooses between whole vectors.
            let lane = |v: &Value| v.get(i).or(v.first()).cloned().unwrap_or_default();
            let (x, y, z) = (lane(&x), lane(&y), lane(&z));
            match op {
                TernaryOp::Fma => self.op(format!("fma.rn.{kind} {d}, {x}, {y}, {z}")),
                TernaryOp::Clamp => {
                    let low = self.asm.reg(Kind::of(ty.scalar));
                    self.op(format!("max.{kind} {low}, {x}, {y}"));
                    self.op(format!("min.{kind} {d}, {low}, {z}"));
                }
                TernaryOp::Select if ty.scalar == Scalar::Bool => {
                    let (accepted, rejected) = (self.asm.reg(Kind::Predicate), self.asm.reg(Kind::Predicate));
                    let unless = self.asm.reg(Kind::Predicate);
                    self.op(format!("and.pred {accepted}, {x}, {y}"));
                    self.op(format!("not.pred {unless}, {x}"));
                    self.op(format!("and.pred {rejected}, {unless}, {z}"));
                    self.op(format!("or.pred {d}, {accepted}, {rejected}"));
                }
                TernaryOp::Select => {
                    self.op(format!("selp.{} {d}, {y}, {z}, {x}", Kind::of(ty.scalar).ty()));
                }
            }
        }
        Ok(out)
    }

    fn cast(&mut self, to: Scalar, operand: Handle<Expr>, ty: Type, wanted: Option<&[String]>) -> Written<Value> {
        let from = self.ty(operand)?.scalar;
        if let Expr::Unary(op @ (U::UnpackU8 | U::UnpackI8), word) = self.module.exprs[operand]
            && to == Scalar::F32
            && self.is_open(operand)
        {
            let word = self.scalar(word)?;
            let out = self.out(ty, wanted);
            math::bytes_to_floats(self, op == U::UnpackI8, &word, &out);
            return Ok(out);
        }
        let x = self.value(operand)?;
        if from == to || (from.is_int() && to.is_int()) {
            return Ok(x);
        }
        let out = self.out(ty, wanted);
        let (source, target) = (arithmetic(from), arithmetic(to));
        for (d, x) in out.iter().zip(&x) {
            match (from, to) {
                (Scalar::Bool, Scalar::F32) => self.op(format!("selp.f32 {d}, 0f3F800000, 0f00000000, {x}")),
                (Scalar::Bool, Scalar::F16) => self.op(format!("selp.b16 {d}, 0x3C00, 0x0000, {x}")),
                (Scalar::Bool, _) => self.op(format!("selp.b32 {d}, 1, 0, {x}")),
                (Scalar::F32, Scalar::Bool) => self.op(format!("setp.neu.f32 {d}, {x}, 0f00000000")),
                (Scalar::F16, Scalar::Bool) => {
                    let wide = self.asm.reg(Kind::Float);
                    self.op(format!("cvt.f32.f16 {wide}, {x}"));
                    self.op(format!("setp.neu.f32 {d}, {wide}, 0f00000000"));
                }
                (_, Scalar::Bool) => self.op(format!("setp.ne.{source} {d}, {x}, 0")),
                (Scalar::F16, Scalar::F32) => self.op(format!("cvt.f32.f16 {d}, {x}")),
                // A conversion needs sm_90; the bits are the upper half.
                (Scalar::Bf16, Scalar::F32) => {
                    let (low, wide) = (self.asm.reg(Kind::Word), self.asm.reg(Kind::Word));
                    self.op(format!("cvt.u32.u16 {low}, {x}"));
                    self.op(format!("shl.b32 {wide}, {low}, 16"));
                    self.op(format!("mov.b32 {d}, {wide}"));
                }
                (Scalar::F32 | Scalar::F16, Scalar::U32 | Scalar::I32) => {
                    self.op(format!("cvt.rzi.{target}.{source} {d}, {x}"));
                }
                _ => self.op(format!("cvt.rn.{target}.{source} {d}, {x}")),
            }
        }
        Ok(out)
    }

    /// Whether a load has no neighbours to be joined with.
    fn loads_alone(&self, h: Handle<Expr>, array: ArrayRef, index: Handle<Expr>) -> bool {
        self.neighbours(h, array, index).is_none() && self.private_element(array, index).is_none()
    }
}
