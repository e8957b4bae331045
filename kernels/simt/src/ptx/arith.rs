//! Integer, bit, float and predicate instructions.

use super::ast::{Operand, Ty};
use super::{Lower, Lowered};
use crate::op::{Bin, Num, Op, Reg, Rel, Tri, Un, Wide};

/// How a type's values are computed with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    F32,
    Half,
    Bfloat,
    Int,
    Wide,
    Pred,
}

fn class(ty: Ty) -> Class {
    match ty {
        Ty::F32 => Class::F32,
        Ty::F16 | Ty::F16x2 => Class::Half,
        Ty::Bf16 | Ty::Bf16x2 => Class::Bfloat,
        Ty::Pred => Class::Pred,
        t if t.wide() => Class::Wide,
        _ => Class::Int,
    }
}

impl<'t> Lower<'t> {
    pub(super) fn arithmetic(&mut self, name: &str, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        match name {
            "setp" => return self.setp(mods, o),
            "selp" => return self.selp(mods, o),
            "fma" | "mad" | "mul" => return self.products(name, mods, o),
            "dp4a" => return self.dp4a(mods, o),
            "lop3" => return self.lop3(o),
            "bfi" => return self.bfi(mods, o),
            _ => {}
        }
        let ty = self.type_of(mods)?;
        if mods.iter().any(|m| matches!(*m, "rz" | "rm" | "rp" | "cc" | "relu" | "NaN" | "xorsign")) {
            return Err(self.unsupported());
        }
        if matches!(ty, Ty::F64 | Ty::Tf32) {
            return Err(self.unsupported());
        }
        if let Some(op) = three(name, mods, ty) {
            let [d, a, b, c] = self.operands(o)?;
            let (a, b, c) = (self.source(&a, ty)?, self.source(&b, Ty::U32)?, self.source(&c, Ty::U32)?);
            let c = if name == "shf" && mods.contains(&"wrap") { self.masked(c, 31) } else { c };
            let d = self.dest(&d, false)?;
            self.push(Op::Tri { op, d, a, b, c });
            return Ok(());
        }
        if let Some(op) = unary(name, mods, class(ty), ty) {
            let [d, a] = self.operands(o)?;
            let a = self.source(&a, ty)?;
            let a = self.narrow(a, ty);
            let d = self.dest(&d, false)?;
            self.push(Op::Un { op, d, a });
            if ty.bytes() == 2 && class(ty) == Class::Int {
                self.trim(d);
            }
            return self.saturated(mods, d);
        }
        if class(ty) == Class::Wide {
            return self.wide(name, mods, ty, o);
        }
        let Some(op) = binary(name, mods, ty) else { return Err(self.unsupported()) };
        let [d, a, b] = self.operands(o)?;
        let shift = matches!(name, "shl" | "shr");
        let (a, b) = (self.source(&a, ty)?, self.source(&b, if shift { Ty::U32 } else { ty })?);
        let (a, b) = (self.narrow(a, ty), if shift { b } else { self.narrow(b, ty) });
        let d = self.dest(&d, false)?;
        let (a, b) = if name == "copysign" { (b, a) } else { (a, b) };
        self.push(Op::Bin { op, d, a, b });
        if ty.bytes() == 2 && class(ty) == Class::Int {
            self.trim(d);
        }
        self.saturated(mods, d)
    }

    fn saturated(&mut self, mods: &[&str], d: Reg) -> Lowered<()> {
        if mods.contains(&"sat") {
            if !mods.contains(&"f32") {
                return Err(self.unsupported());
            }
            self.push(Op::Un { op: Un::Saturate, d, a: d });
        }
        Ok(())
    }
    fn masked(&mut self, a: Reg, mask: u32) -> Reg {
        let (d, b) = (self.temp(1), self.constant(mask));
        self.push(Op::Bin { op: Bin::And, d, a, b });
        d
    }
    /// A signed 16-bit value widened; registers hold it with zeros above.
    fn narrow(&mut self, a: Reg, ty: Ty) -> Reg {
        if ty != Ty::S16 {
            return a;
        }
        let d = self.temp(1);
        self.push(Op::Un { op: Un::SignHalf, d, a });
        d
    }
    /// Cuts a result to 16 bits.
    pub(super) fn trim(&mut self, d: Reg) {
        let b = self.constant(0xffff);
        self.push(Op::Bin { op: Bin::And, d, a: d, b });
    }

    fn wide(&mut self, name: &str, _mods: &[&str], ty: Ty, o: &[Operand<'t>]) -> Lowered<()> {
        let s = ty.signed();
        let op = match name {
            "add" => Wide::Add,
            "sub" => Wide::Sub,
            "div" => {
                if s {
                    Wide::DivS
                } else {
                    Wide::DivU
                }
            }
            "rem" => {
                if s {
                    Wide::RemS
                } else {
                    Wide::RemU
                }
            }
            "min" => {
                if s {
                    Wide::MinS
                } else {
                    Wide::MinU
                }
            }
            "max" => {
                if s {
                    Wide::MaxS
                } else {
                    Wide::MaxU
                }
            }
            "and" => Wide::And,
            "or" => Wide::Or,
            "xor" => Wide::Xor,
            "shl" => Wide::Shl,
            "shr" => {
                if s {
                    Wide::ShrS
                } else {
                    Wide::ShrU
                }
            }
            "not" => Wide::Not,
            "neg" => Wide::Neg,
            _ => return Err(self.unsupported()),
        };
        let (d, a, b) = if matches!(op, Wide::Not | Wide::Neg) {
            let [d, a] = self.operands(o)?;
            let a = self.source(&a, ty)?;
            (d, a, a)
        } else {
            let [d, a, b] = self.operands(o)?;
            let amount = matches!(op, Wide::Shl | Wide::ShrS | Wide::ShrU);
            (d, self.source(&a, ty)?, self.source(&b, if amount { Ty::U32 } else { ty })?)
        };
        let d = self.dest(&d, true)?;
        self.push(Op::Wide { op, d, a, b, c: a });
        Ok(())
    }

    /// `mul`, `mad` and `fma`.
    fn products(&mut self, name: &str, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        if mods.iter().any(|m| matches!(*m, "rz" | "rm" | "rp" | "cc" | "relu")) {
            return Err(self.unsupported());
        }
        let (wide, hi, s) = (mods.contains(&"wide"), mods.contains(&"hi"), ty.signed());
        let third = name != "mul";
        let sum = if wide && ty.bytes() == 4 { Ty::B64 } else { ty };
        if o.len() != if third { 4 } else { 3 } {
            return Err(self.text_error(format!("`{}` takes {} operands", self.text, if third { 4 } else { 3 })));
        }
        let (a, b) = (self.source(&o[1], ty)?, self.source(&o[2], ty)?);
        let (a, b) = (self.narrow(a, ty), self.narrow(b, ty));
        let c = if third { self.source(&o[3], sum)? } else { a };
        let d = self.dest(&o[0], sum.wide() || ty.wide())?;
        let op = match (class(ty), third) {
            (Class::F32, false) => Op::Bin { op: Bin::Mul, d, a, b },
            (Class::F32, true) => Op::Tri { op: Tri::Fma, d, a, b, c },
            (Class::Half, false) => Op::Bin { op: Bin::MulH2, d, a, b },
            (Class::Half, true) => Op::Tri { op: Tri::FmaH2, d, a, b, c },
            (Class::Bfloat, false) => Op::Bin { op: Bin::MulB2, d, a, b },
            (Class::Bfloat, true) => Op::Tri { op: Tri::FmaB2, d, a, b, c },
            (Class::Int, _) if wide && ty.bytes() == 4 => {
                let op = match (third, s) {
                    (false, true) => Wide::MulS,
                    (false, false) => Wide::MulU,
                    (true, true) => Wide::MadS,
                    (true, false) => Wide::MadU,
                };
                Op::Wide { op, d, a, b, c }
            }
            // The product of two 16-bit values.
            (Class::Int, false) if wide => Op::Bin { op: Bin::MulI, d, a, b },
            (Class::Int, true) if wide => return Err(self.unsupported()),
            (Class::Int, false) if hi && ty.bytes() == 4 => {
                Op::Bin { op: if s { Bin::MulHiS } else { Bin::MulHiU }, d, a, b }
            }
            (Class::Int, true) if hi && ty.bytes() == 4 => {
                Op::Tri { op: if s { Tri::MadHiS } else { Tri::MadHiU }, d, a, b, c }
            }
            (Class::Int, _) if hi => return Err(self.unsupported()),
            (Class::Int, false) => Op::Bin { op: Bin::MulI, d, a, b },
            (Class::Int, true) => Op::Tri { op: Tri::MadI, d, a, b, c },
            (Class::Wide, false) if !hi => Op::Wide { op: Wide::Mul, d, a, b, c },
            (Class::Wide, true) if !hi => Op::Wide { op: Wide::Mad, d, a, b, c },
            _ => return Err(self.unsupported()),
        };
        self.push(op);
        if ty.bytes() == 2 && class(ty) == Class::Int && !wide {
            self.trim(d);
        }
        self.saturated(mods, d)
    }

    fn setp(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        let rel = match mods.first().copied().unwrap_or_default() {
            "eq" => Rel::Eq,
            "ne" => Rel::Ne,
            "lt" | "lo" => Rel::Lt,
            "le" | "ls" => Rel::Le,
            "gt" | "hi" => Rel::Gt,
            "ge" | "hs" => Rel::Ge,
            "equ" => Rel::Equ,
            "neu" => Rel::Neu,
            "ltu" => Rel::Ltu,
            "leu" => Rel::Leu,
            "gtu" => Rel::Gtu,
            "geu" => Rel::Geu,
            "num" => Rel::Num,
            "nan" => Rel::Nan,
            _ => return Err(self.unsupported()),
        };
        let num = match ty {
            Ty::F32 => Num::F,
            Ty::F16 => Num::Half,
            Ty::Bf16 => Num::Bfloat,
            Ty::S64 => Num::S64,
            Ty::B64 | Ty::U64 => Num::U64,
            Ty::S16 | Ty::S32 => Num::S,
            Ty::B16 | Ty::U16 | Ty::B32 | Ty::U32 => Num::U,
            _ => return Err(self.unsupported()),
        };
        if o.len() < 3 {
            return Err(self.text_error("`setp` takes three operands"));
        }
        let (a, b) = (self.source(&o[1], ty)?, self.source(&o[2], ty)?);
        let (a, b) = (self.narrow(a, ty), self.narrow(b, ty));
        let (first, second) = match &o[0] {
            Operand::Pair(p, q) => (self.dest(p, false)?, Some(self.dest(q, false)?)),
            other => (self.dest(other, false)?, None),
        };
        let joined = mods.iter().any(|m| matches!(*m, "and" | "or" | "xor"));
        if second.is_none() && !joined {
            self.push(Op::Cmp { rel, num, d: first, a, b });
            return Ok(());
        }
        let t = self.temp(2);
        self.push(Op::Cmp { rel, num, d: t, a, b });
        self.push(Op::Un { op: Un::LogicNot, d: t + 1, a: t });
        let join = mods.iter().find_map(|m| match *m {
            "and" => Some(Bin::And),
            "or" => Some(Bin::Or),
            "xor" => Some(Bin::Xor),
            _ => None,
        });
        let other = match join {
            Some(op) => Some((op, self.source(o.get(3).unwrap_or(&Operand::Sink), Ty::Pred)?)),
            None => None,
        };
        for (d, a) in [(Some(first), t), (second, t + 1)] {
            let Some(d) = d else { continue };
            match other {
                Some((op, b)) => self.push(Op::Bin { op, d, a, b }),
                None => self.push(Op::Mov { d, a }),
            }
        }
        Ok(())
    }

    fn selp(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        let [d, a, b, c] = self.operands(o)?;
        let (a, b, c) = (self.source(&a, ty)?, self.source(&b, ty)?, self.source(&c, Ty::Pred)?);
        let d = self.dest(&d, ty.wide())?;
        if ty.wide() {
            let t = self.temp(1);
            self.push(Op::Mov { d: t, a: c });
            self.push(Op::Sel { d: d + 1, c: t, a: a + 1, b: b + 1 });
            self.push(Op::Sel { d, c: t, a, b });
        } else {
            self.push(Op::Sel { d, c, a, b });
        }
        Ok(())
    }

    fn dp4a(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let [d, a, b, c] = self.operands(o)?;
        let op = match mods {
            ["s32", "s32"] => Tri::DotS,
            ["u32", "u32"] => Tri::DotU,
            ["s32", "u32"] => Tri::DotSU,
            ["u32", "s32"] => Tri::DotUS,
            _ => return Err(self.unsupported()),
        };
        let (a, b, c) = (self.source(&a, Ty::B32)?, self.source(&b, Ty::B32)?, self.source(&c, Ty::B32)?);
        let d = self.dest(&d, false)?;
        self.push(Op::Tri { op, d, a, b, c });
        Ok(())
    }

    /// Any function of three bits: the union of those of eight cases that the table has.
    fn lop3(&mut self, o: &[Operand<'t>]) -> Lowered<()> {
        let [d, a, b, c, table] = self.operands(o)?;
        let Operand::Int(table) = table else { return Err(self.unsupported()) };
        let sources = [self.source(&a, Ty::B32)?, self.source(&b, Ty::B32)?, self.source(&c, Ty::B32)?];
        let mut sides = Vec::new();
        for a in sources {
            let d = self.temp(1);
            self.push(Op::Un { op: Un::BitNot, d, a });
            sides.push([d, a]);
        }
        let mut so_far = self.constant(0);
        for case in (0..8usize).filter(|i| table >> i & 1 == 1) {
            let t = self.temp(3);
            let (a, b, c) = (sides[0][case >> 2 & 1], sides[1][case >> 1 & 1], sides[2][case & 1]);
            self.push(Op::Bin { op: Bin::And, d: t, a, b });
            self.push(Op::Bin { op: Bin::And, d: t + 1, a: t, b: c });
            self.push(Op::Bin { op: Bin::Or, d: t + 2, a: so_far, b: t + 1 });
            so_far = t + 2;
        }
        let d = self.dest(&d, false)?;
        self.push(Op::Mov { d, a: so_far });
        Ok(())
    }

    fn bfi(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let [d, a, b, at, len] = self.operands(o)?;
        if mods != ["b32"] {
            return Err(self.unsupported());
        }
        let (a, b) = (self.source(&a, Ty::B32)?, self.source(&b, Ty::B32)?);
        let (at, len) = (self.source(&at, Ty::U32)?, self.source(&len, Ty::U32)?);
        let (one, t) = (self.constant(1), self.temp(7));
        self.push(Op::Bin { op: Bin::Shl, d: t, a: one, b: len });
        self.push(Op::Bin { op: Bin::SubI, d: t + 1, a: t, b: one });
        self.push(Op::Bin { op: Bin::Shl, d: t + 2, a: t + 1, b: at });
        self.push(Op::Bin { op: Bin::Shl, d: t + 3, a, b: at });
        self.push(Op::Bin { op: Bin::And, d: t + 4, a: t + 3, b: t + 2 });
        self.push(Op::Un { op: Un::BitNot, d: t + 5, a: t + 2 });
        self.push(Op::Bin { op: Bin::And, d: t + 6, a: b, b: t + 5 });
        let d = self.dest(&d, false)?;
        self.push(Op::Bin { op: Bin::Or, d, a: t + 6, b: t + 4 });
        Ok(())
    }
}

fn three(name: &str, mods: &[&str], ty: Ty) -> Option<Tri> {
    if ty.bytes() != 4 {
        return None;
    }
    Some(match name {
        "prmt" if mods == ["b32"] => Tri::Prmt,
        "bfe" if ty.signed() => Tri::BfeS,
        "bfe" => Tri::BfeU,
        "shf" if mods.contains(&"l") => Tri::FunnelLeft,
        "shf" => Tri::FunnelRight,
        "sad" if ty == Ty::U32 => Tri::SadU,
        _ => return None,
    })
}

fn unary(name: &str, mods: &[&str], class: Class, ty: Ty) -> Option<Un> {
    let approx = mods.contains(&"approx");
    Some(match (name, class) {
        ("not", Class::Pred) => Un::LogicNot,
        ("not" | "cnot", Class::Int) if name == "not" => Un::BitNot,
        ("neg", Class::Int) => Un::NegI,
        ("abs", Class::Int) if ty.signed() => Un::AbsI,
        ("popc", Class::Int) if ty.bytes() == 4 => Un::Popc,
        ("clz", Class::Int) if ty.bytes() == 4 => Un::Clz,
        ("brev", Class::Int) if ty.bytes() == 4 => Un::Brev,
        ("neg", Class::F32) => Un::Neg,
        ("abs", Class::F32) => Un::Abs,
        ("neg", Class::Half) => Un::NegH2,
        ("abs", Class::Half) => Un::AbsH2,
        ("neg", Class::Bfloat) => Un::NegB2,
        ("abs", Class::Bfloat) => Un::AbsB2,
        ("sqrt", Class::F32) if approx => Un::Sqrt,
        ("sqrt", Class::F32) => Un::SqrtExact,
        ("rcp", Class::F32) if approx => Un::Rcp,
        ("rcp", Class::F32) => Un::RcpExact,
        ("rsqrt", Class::F32) if approx => Un::Rsqrt,
        ("sin", Class::F32) if approx => Un::Sin,
        ("cos", Class::F32) if approx => Un::Cos,
        ("lg2", Class::F32) if approx => Un::Log2,
        ("ex2", Class::F32) if approx => Un::Exp2,
        ("tanh", Class::F32) if approx => Un::Tanh,
        ("ex2", Class::Half) if approx => Un::Exp2H2,
        ("tanh", Class::Half) if approx => Un::TanhH2,
        ("ex2", Class::Bfloat) if approx => Un::Exp2B2,
        ("tanh", Class::Bfloat) if approx => Un::TanhB2,
        _ => return None,
    })
}

fn binary(name: &str, mods: &[&str], ty: Ty) -> Option<Bin> {
    let s = ty.signed();
    let either = |signed: Bin, unsigned: Bin| if s { signed } else { unsigned };
    Some(match (name, class(ty)) {
        ("add", Class::Int) => Bin::AddI,
        ("sub", Class::Int) => Bin::SubI,
        ("div", Class::Int) => either(Bin::DivS, Bin::DivU),
        ("rem", Class::Int) => either(Bin::RemS, Bin::RemU),
        ("min", Class::Int) => either(Bin::MinS, Bin::MinU),
        ("max", Class::Int) => either(Bin::MaxS, Bin::MaxU),
        ("and", Class::Int | Class::Pred) => Bin::And,
        ("or", Class::Int | Class::Pred) => Bin::Or,
        ("xor", Class::Int | Class::Pred) => Bin::Xor,
        ("shl", Class::Int) => Bin::Shl,
        ("shr", Class::Int) => either(Bin::ShrS, Bin::ShrU),
        ("mul24", Class::Int) if mods.contains(&"lo") => either(Bin::Mul24S, Bin::Mul24U),
        ("add", Class::F32) => Bin::Add,
        ("sub", Class::F32) => Bin::Sub,
        ("min", Class::F32) => Bin::Min,
        ("max", Class::F32) => Bin::Max,
        ("div", Class::F32) if mods.contains(&"rn") => Bin::DivExact,
        ("div", Class::F32) => Bin::Div,
        ("copysign", Class::F32) => Bin::CopySign,
        ("add", Class::Half) => Bin::AddH2,
        ("sub", Class::Half) => Bin::SubH2,
        ("min", Class::Half) => Bin::MinH2,
        ("max", Class::Half) => Bin::MaxH2,
        ("add", Class::Bfloat) => Bin::AddB2,
        ("sub", Class::Bfloat) => Bin::SubB2,
        ("min", Class::Bfloat) => Bin::MinB2,
        ("max", Class::Bfloat) => Bin::MaxB2,
        _ => return None,
    })
}
