//! Barriers, exchanges between lanes, and matrix instructions.

use super::ast::{Operand, Ty};
use super::{Lower, Lowered};
use crate::collective::Members;
use crate::op::{Mma, MmaElem, Op, Reduce, Reg, Scan, Shuffle, Space};

impl<'t> Lower<'t> {
    pub(super) fn warp(&mut self, name: &str, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        match name {
            "bar" | "barrier" => self.barrier(mods, o),
            "shfl" => self.shuffle(mods, o),
            "vote" | "redux" => self.reduce(name, mods, o),
            "activemask" => {
                let [d] = self.operands(o)?;
                let (d, a) = (self.dest(&d, false)?, self.constant(1));
                self.push(Op::Reduce {
                    op: Reduce::Ballot,
                    scan: Scan::Whole,
                    d,
                    a,
                    width: 32,
                    members: Members::Present,
                });
                Ok(())
            }
            "ldmatrix" => self.load_matrix(mods, o),
            _ => self.matrix_product(mods, o),
        }
    }

    fn barrier(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        match mods {
            ["warp", "sync"] => {
                let [m] = self.operands(o)?;
                let members = Some(self.source(&m, Ty::B32)?);
                self.push(Op::WarpBarrier { members });
                Ok(())
            }
            ["sync"] | ["sync", "aligned"] | ["cta", "sync"] => {
                let id = match o.first() {
                    Some(Operand::Int(id)) if *id < 16 => *id as u8,
                    _ => return Err(self.unsupported()),
                };
                // A count is accepted where it means the whole workgroup.
                let all: u32 = self.program.workgroup.iter().product();
                match o.get(1) {
                    None => {}
                    Some(Operand::Int(n)) if *n == u64::from(all) => {}
                    Some(_) => return Err(self.unsupported()),
                }
                self.push(Op::Barrier { id, shared: true, global: true });
                Ok(())
            }
            _ => Err(self.unsupported()),
        }
    }

    fn shuffle(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let mode = match mods {
            ["sync", "up", "b32"] => Shuffle::Up,
            ["sync", "down", "b32"] => Shuffle::Down,
            ["sync", "bfly", "b32"] => Shuffle::Xor,
            ["sync", "idx", "b32"] => Shuffle::Index,
            _ => return Err(self.unsupported()),
        };
        let [d, a, b, c, m] = self.operands(o)?;
        let (a, b) = (self.source(&a, Ty::B32)?, self.source(&b, Ty::B32)?);
        let (clamp, members) = (Some(self.source(&c, Ty::B32)?), Members::Named(self.source(&m, Ty::B32)?));
        let (d, valid) = match &d {
            Operand::Pair(d, p) => (self.dest(d, false)?, Some(self.dest(p, false)?)),
            one => (self.dest(one, false)?, None),
        };
        self.push(Op::Shuffle { mode, d, a, b, width: 32, clamp, valid, members });
        Ok(())
    }

    fn reduce(&mut self, name: &str, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let op = match (name, mods) {
            ("vote", ["sync", "all", "pred"]) => Reduce::All,
            ("vote", ["sync", "any", "pred"]) => Reduce::Any,
            ("vote", ["sync", "uni", "pred"]) => Reduce::Uniform,
            ("vote", ["sync", "ballot", "b32"]) => Reduce::Ballot,
            ("redux", ["sync", "add", "u32" | "s32"]) => Reduce::AddI,
            ("redux", ["sync", "min", "u32"]) => Reduce::MinU,
            ("redux", ["sync", "min", "s32"]) => Reduce::MinS,
            ("redux", ["sync", "max", "u32"]) => Reduce::MaxU,
            ("redux", ["sync", "max", "s32"]) => Reduce::MaxS,
            ("redux", ["sync", "and", "b32"]) => Reduce::And,
            ("redux", ["sync", "or", "b32"]) => Reduce::Or,
            ("redux", ["sync", "xor", "b32"]) => Reduce::Xor,
            _ => return Err(self.unsupported()),
        };
        let [d, a, m] = self.operands(o)?;
        let a = self.source(&a, if name == "vote" { Ty::Pred } else { Ty::B32 })?;
        let members = Members::Named(self.source(&m, Ty::B32)?);
        let d = self.dest(&d, false)?;
        self.push(Op::Reduce { op, scan: Scan::Whole, d, a, width: 32, members });
        Ok(())
    }

    fn load_matrix(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let transposed = mods.contains(&"trans");
        let plain: Vec<&str> = mods.iter().copied().filter(|m| *m != "trans").collect();
        let tiles = match plain[..] {
            ["sync", "aligned", "m8n8", "x1", "shared" | "shared::cta", "b16"] => 1,
            ["sync", "aligned", "m8n8", "x2", "shared" | "shared::cta", "b16"] => 2,
            ["sync", "aligned", "m8n8", "x4", "shared" | "shared::cta", "b16"] => 4,
            _ => return Err(self.unsupported()),
        };
        let [to, from] = self.operands(o)?;
        let rows = self.fragment(&to, tiles, true)?;
        let (addr, long, imm) = match self.address(&from, Space::Shared)? {
            crate::op::Addr::Short { base, imm, .. } => (base, false, imm),
            crate::op::Addr::Long { base, imm, .. } => (base, true, imm),
            crate::op::Addr::In { .. } => return Err(self.unsupported()),
        };
        let reg = self.temp(tiles as u32);
        self.push(Op::Ldmatrix { reg, addr, long, imm, tiles: tiles as u8, transposed });
        for (i, d) in rows.into_iter().enumerate() {
            self.push(Op::Mov { d, a: reg + i as u32 });
        }
        Ok(())
    }

    /// Registers of a fragment.
    pub(super) fn fragment(&mut self, o: &Operand<'t>, n: usize, written: bool) -> Lowered<Vec<Reg>> {
        let parts = match o {
            Operand::Vector(v) => v.clone(),
            one => vec![one.clone()],
        };
        if parts.len() != n {
            return Err(self.text_error(format!("{} registers where `{}` takes {n}", parts.len(), self.text)));
        }
        let mut rows = Vec::new();
        for p in &parts {
            rows.push(if written { self.dest(p, false)? } else { self.source(p, Ty::B32)? });
        }
        Ok(rows)
    }

    fn matrix_product(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ["sync", "aligned", shape, "row", "col", types @ ..] = mods else { return Err(self.unsupported()) };
        let types: Vec<&str> = types.iter().copied().filter(|m| *m != "satfinite").collect();
        if types.len() != 4 || mods.contains(&"satfinite") {
            return Err(self.unsupported());
        }
        let named = |s: &str| match s {
            "f16" => Some(MmaElem::F16),
            "bf16" => Some(MmaElem::Bf16),
            "tf32" => Some(MmaElem::Tf32),
            "s8" => Some(MmaElem::S8),
            "u8" => Some(MmaElem::U8),
            _ => None,
        };
        let (Some(a), Some(b)) = (named(types[1]), named(types[2])) else { return Err(self.unsupported()) };
        let half_out = match (types[0], types[3]) {
            ("f32", "f32") if !a.is_integer() => false,
            ("f16", "f16") if a == MmaElem::F16 => true,
            ("s32", "s32") if a.is_integer() => false,
            _ => return Err(self.unsupported()),
        };
        if a != b && !(a.is_integer() && b.is_integer()) {
            return Err(self.unsupported());
        }
        let k: u8 = match (*shape, a.per_word()) {
            ("m16n8k4", 1) => 4,
            ("m16n8k8", 1 | 2) => 8,
            ("m16n8k16", 2 | 4) => 16,
            ("m16n8k32", 4) => 32,
            _ => return Err(self.unsupported()),
        };
        let [d, fa, fb, c] = self.operands(o)?;
        let n = usize::from(k) / (4 * a.per_word());
        let nc = if half_out { 2 } else { 4 };
        let mut regs = self.fragment(&d, nc, true)?;
        regs.extend(self.fragment(&fa, 2 * n, false)?);
        regs.extend(self.fragment(&fb, n, false)?);
        let start = match &c {
            Operand::Vector(_) => self.fragment(&c, nc, false)?,
            _ => return Err(self.unsupported()),
        };
        regs.extend(start);
        let list = self.program.lists.len() as u32;
        self.program.lists.push(regs);
        self.push(Op::Mma(Mma { a, b, k, half_out, regs: list }));
        Ok(())
    }
}
