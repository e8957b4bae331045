//! `cvt`.

use super::ast::{Operand, Ty};
use super::{Lower, Lowered};
use crate::op::{Bin, Op, Reg, Un, Wide};

impl<'t> Lower<'t> {
    pub(super) fn convert(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let types: Vec<Ty> = mods.iter().filter_map(|m| Ty::named(m)).collect();
        let [to, from] = types[..] else { return Err(self.unsupported()) };
        let rounding = mods
            .iter()
            .copied()
            .find(|m| matches!(*m, "rn" | "rz" | "rm" | "rp" | "rna" | "rni" | "rzi" | "rmi" | "rpi"));
        if mods.contains(&"relu") || matches!(to, Ty::F64) || matches!(from, Ty::F64) {
            return Err(self.unsupported());
        }
        if let (Ty::F16x2 | Ty::Bf16x2, Ty::F32, Some("rn")) = (to, from, rounding) {
            let [d, high, low] = self.operands(o)?;
            let (a, b) = (self.source(&low, from)?, self.source(&high, from)?);
            let op = if to == Ty::F16x2 { Bin::PackHalf } else { Bin::PackBfloat };
            let d = self.dest(&d, false)?;
            self.push(Op::Bin { op, d, a, b });
            return Ok(());
        }
        let [d, a] = self.operands(o)?;
        let a = self.source(&a, if from.bytes() < 4 { Ty::B16 } else { from })?;
        let short = matches!(&d, Operand::Name(n) if self.register(n)?.1.bytes() == 2);
        let d = self.dest(&d, to.wide())?;
        if from.is_float() && to.is_float() {
            let op = match (to, from, rounding) {
                (Ty::F32, Ty::F16, None) => Un::HalfToF,
                (Ty::F32, Ty::Bf16, None) => Un::BfloatToF,
                (Ty::F16, Ty::F32, Some("rn")) => Un::FToHalf,
                (Ty::F16, Ty::F32, Some("rz")) => Un::FToHalfZero,
                (Ty::Bf16, Ty::F32, Some("rn")) => Un::FToBfloat,
                (Ty::Bf16, Ty::F32, Some("rz")) => Un::FToBfloatZero,
                (Ty::Tf32, Ty::F32, Some("rna")) => Un::FToTf32,
                (Ty::F32, Ty::F32, Some("rni")) => Un::RoundEven,
                (Ty::F32, Ty::F32, Some("rzi")) => Un::Trunc,
                (Ty::F32, Ty::F32, Some("rmi")) => Un::Floor,
                (Ty::F32, Ty::F32, Some("rpi")) => Un::Ceil,
                (Ty::F32, Ty::F32, None) if mods.contains(&"sat") => Un::Saturate,
                _ => return Err(self.unsupported()),
            };
            self.push(Op::Un { op, d, a });
            if mods.contains(&"sat") && op != Un::Saturate {
                if to != Ty::F32 {
                    return Err(self.unsupported());
                }
                self.push(Op::Un { op: Un::Saturate, d, a: d });
            }
            return Ok(());
        }
        if from.is_float() {
            return self.float_to_int(rounding, to, from, d, a);
        }
        let saturate = mods.contains(&"sat");
        let value = self.normal(a, from);
        if to.is_float() {
            if rounding != Some("rn") || from.wide() || saturate {
                return Err(self.unsupported());
            }
            let t = self.temp(1);
            let op = if from.signed() { Un::SignedToF } else { Un::UnsignedToF };
            self.push(Op::Un { op, d: t, a: value });
            match to {
                Ty::F32 => self.push(Op::Mov { d, a: t }),
                // Exact in f32, so that it is rounded once.
                Ty::F16 if from.bytes() <= 2 => self.push(Op::Un { op: Un::FToHalf, d, a: t }),
                Ty::Bf16 if from.bytes() <= 2 => self.push(Op::Un { op: Un::FToBfloat, d, a: t }),
                _ => return Err(self.unsupported()),
            }
            return Ok(());
        }
        if to.wide() {
            if from.wide() {
                self.deliver(d, value, true);
            } else {
                let op = if from.signed() { Wide::FromS } else { Wide::FromU };
                self.push(Op::Wide { op, d, a: value, b: value, c: value });
            }
            return Ok(());
        }
        if saturate {
            let (low, high) = match to {
                Ty::S8 => (-128i32, 127i32),
                Ty::U8 => (0, 255),
                Ty::S16 => (-32768, 32767),
                Ty::U16 => (0, 65535),
                _ => return Err(self.unsupported()),
            };
            if from != Ty::S32 {
                return Err(self.unsupported());
            }
            let (low, high, t) = (self.constant(low as u32), self.constant(high as u32), self.temp(2));
            self.push(Op::Bin { op: Bin::MaxS, d: t, a: value, b: low });
            self.push(Op::Bin { op: Bin::MinS, d: t + 1, a: t, b: high });
            self.push(Op::Mov { d, a: t + 1 });
        } else {
            let cut = self.normal(value, to);
            self.deliver(d, cut, false);
        }
        if short {
            self.trim(d);
        }
        Ok(())
    }

    fn float_to_int(&mut self, rounding: Option<&str>, to: Ty, from: Ty, d: Reg, a: Reg) -> Lowered<()> {
        let a = match from {
            Ty::F32 => a,
            Ty::F16 | Ty::Bf16 => {
                let t = self.temp(1);
                let op = if from == Ty::F16 { Un::HalfToF } else { Un::BfloatToF };
                self.push(Op::Un { op, d: t, a });
                t
            }
            _ => return Err(self.unsupported()),
        };
        let op = match (rounding, to) {
            (Some("rzi"), Ty::S32) => Un::TruncS,
            (Some("rzi"), Ty::U32) => Un::TruncU,
            (Some("rni"), Ty::S32) => Un::NearS,
            (Some("rni"), Ty::U32) => Un::NearU,
            (Some("rmi"), Ty::S32) => Un::FloorS,
            (Some("rmi"), Ty::U32) => Un::FloorU,
            (Some("rpi"), Ty::S32) => Un::CeilS,
            (Some("rpi"), Ty::U32) => Un::CeilU,
            _ => return Err(self.unsupported()),
        };
        self.push(Op::Un { op, d, a });
        Ok(())
    }

    /// An integer cut or widened to what its type says.
    fn normal(&mut self, a: Reg, ty: Ty) -> Reg {
        let (op, mask) = match ty {
            Ty::S8 => (Some(Un::SignByte), 0),
            Ty::S16 => (Some(Un::SignHalf), 0),
            Ty::U8 | Ty::B8 => (None, 0xff),
            Ty::U16 | Ty::B16 => (None, 0xffff),
            _ => return a,
        };
        let d = self.temp(1);
        match op {
            Some(op) => self.push(Op::Un { op, d, a }),
            None => {
                let b = self.constant(mask);
                self.push(Op::Bin { op: Bin::And, d, a, b });
            }
        }
        d
    }
}
