//! What `sm_90` adds: barriers with phases, tensor copies, and products of a warpgroup.

use super::ast::{Operand, Ty, Variable};
use super::{Lower, Lowered};
use crate::launch::{Argument, TensorMap};
use crate::mbarrier::BarrierOp;
use crate::op::{MmaElem, Op, Origin, Reg, Segment, Space};
use crate::tensor::TensorCopy;
use crate::warpgroup::Wgmma;

impl<'t> Lower<'t> {
    /// Declares the parameter of a tensor map.
    pub(super) fn tensor_map(&mut self, argument: usize, map: &TensorMap, p: &Variable<'t>) -> Lowered<()> {
        if let Some(why) = map.fault() {
            return Err(self.launch_error(format!("tensor map `{}` has {why}", p.name)));
        }
        if p.align < 64 {
            return Err(self.launch_error(format!("tensor map `{}` is not aligned to 64 bytes", p.name)));
        }
        if !matches!(self.launch.arguments.get(map.argument), Some(Argument::Buffer(_))) {
            return Err(self.launch_error(format!("tensor map `{}` is of no buffer", p.name)));
        }
        self.argument_segment(argument, p.name);
        Ok(())
    }

    fn argument_segment(&mut self, argument: usize, name: &str) {
        let (name, origin) = (name.to_owned(), Origin::Argument(argument));
        self.program.segments.push(Segment { name, origin, bytes: 0, writable: true, holes: Vec::new() });
    }

    /// Segments of matrices that are reached through maps alone.
    pub(super) fn matrices_of_maps(&mut self) {
        for a in &self.launch.arguments {
            let Argument::TensorMap(t) = a else { continue };
            let origin = Origin::Argument(t.argument);
            if !self.program.segments.iter().any(|s| s.origin == origin) {
                self.argument_segment(t.argument, "matrix");
            }
        }
    }

    /// Whether a name is that of a tensor map.
    pub(super) fn is_map(&self, name: &str) -> bool {
        let argument = self.parameters.get(name).and_then(|(i, _)| self.launch.arguments.get(*i));
        matches!(argument, Some(Argument::TensorMap(_)))
    }

    /// The address of a tensor map.
    pub(super) fn map_address(&mut self, name: &str) -> Lowered<Reg> {
        let argument = self.parameters.get(name).map(|(i, _)| *i);
        let here = |s: &Segment| argument.is_some_and(|a| s.origin == Origin::Argument(a));
        match self.program.segments.iter().position(here) {
            Some(segment) => Ok(self.segment_address(segment)),
            None => Err(self.text_error(format!("no tensor map `{name}`"))),
        }
    }

    /// `mbarrier` in all its parts.
    pub(super) fn mbarrier(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let known = |m: &&str| {
            matches!(*m, "init" | "inval" | "arrive" | "expect_tx" | "test_wait" | "try_wait" | "parity")
                || matches!(*m, "shared" | "shared::cta" | "b64" | "release" | "acquire" | "relaxed" | "cta")
        };
        if !mods.iter().all(known) {
            return Err(self.unsupported());
        }
        let has = |m: &str| mods.contains(&m);
        let missing = |l: &Self| l.text_error(format!("`{}` lacks an operand", l.text));
        let at = usize::from(mods.first().is_some_and(|m| matches!(*m, "arrive" | "test_wait" | "try_wait")));
        let place = o.get(at).ok_or_else(|| missing(self))?;
        let addr = self.address(place, Space::Shared)?;
        let next = match o.get(at + 1) {
            Some(v) if !has("arrive") && !has("parity") && (has("test_wait") || has("try_wait")) => {
                Some(self.source(v, Ty::B64)?)
            }
            Some(v) => Some(self.source(v, Ty::U32)?),
            None => None,
        };
        let op = match mods.first().copied().unwrap_or_default() {
            "init" => BarrierOp::Init { count: next.ok_or_else(|| missing(self))? },
            "inval" => BarrierOp::Invalidate,
            "expect_tx" => BarrierOp::Expect { bytes: next.ok_or_else(|| missing(self))? },
            "arrive" => {
                let state = match o.first() {
                    Some(Operand::Sink) | None => None,
                    Some(d) => Some(self.dest(d, true)?),
                };
                if has("expect_tx") {
                    BarrierOp::Arrive { count: None, bytes: Some(next.ok_or_else(|| missing(self))?), state }
                } else {
                    BarrierOp::Arrive { count: next, bytes: None, state }
                }
            }
            _ => {
                let d = self.dest(o.first().ok_or_else(|| missing(self))?, false)?;
                let next = next.ok_or_else(|| missing(self))?;
                let (parity, state) = if has("parity") { (Some(next), None) } else { (None, Some(next)) };
                BarrierOp::Test { d, parity, state }
            }
        };
        self.push(Op::Mbarrier { addr, op });
        Ok(())
    }

    /// `cp.async.bulk.tensor.2d` from global to shared memory.
    pub(super) fn tensor_copy(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let plain: Vec<&str> = mods.iter().copied().filter(|m| *m != "tile").collect();
        let ["async", "bulk", "tensor", "2d", to, "global", "mbarrier::complete_tx::bytes"] = plain[..] else {
            return Err(self.unsupported());
        };
        if !matches!(to, "shared::cluster" | "shared::cta") {
            return Err(self.unsupported());
        }
        let [to, tile, barrier] = self.operands(o)?;
        let Operand::Tile(map, from) = &tile else { return Err(self.text_error("a tensor map expected")) };
        let [column, row] = from.as_slice() else { return Err(self.text_error("two coordinates expected")) };
        let map = match map.as_ref() {
            Operand::Name(n) if self.is_map(n) => self.map_address(n)?,
            other => self.source(other, Ty::U64)?,
        };
        let from = [self.source(column, Ty::S32)?, self.source(row, Ty::S32)?];
        let (to, barrier) = (self.address(&to, Space::Shared)?, self.address(&barrier, Space::Shared)?);
        self.push(Op::TensorCopy(TensorCopy { to, map, from, barrier }));
        Ok(())
    }

    /// `wgmma` in all its parts; both matrices lie in shared memory, rows along k.
    pub(super) fn wgmma(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let [what, "sync", "aligned", rest @ ..] = mods else { return Err(self.unsupported()) };
        match (*what, rest) {
            ("fence", []) => self.push(Op::WgmmaFence),
            ("commit_group", []) => self.push(Op::WgmmaCommit),
            ("wait_group", []) => {
                let [Operand::Int(pending)] = o else { return Err(self.unsupported()) };
                self.push(Op::WgmmaWait { pending: *pending as u32 });
            }
            ("mma_async", [shape, "f32", a, b]) if a == b => {
                let n = shape.strip_prefix("m64n").and_then(|s| s.strip_suffix("k16")).and_then(|n| n.parse().ok());
                let n: u16 = n.filter(|n| n % 8 == 0 && (8..=256).contains(n)).ok_or_else(|| self.unsupported())?;
                let elem = match *a {
                    "f16" => MmaElem::F16,
                    "bf16" => MmaElem::Bf16,
                    _ => return Err(self.unsupported()),
                };
                let [d, a, b, add, signs @ ..] = o else { return Err(self.unsupported()) };
                if signs != [Operand::Int(1), Operand::Int(1), Operand::Int(0), Operand::Int(0)] {
                    return Err(self.unsupported());
                }
                let rows = self.fragment(d, usize::from(n) / 2, true)?;
                let (a, b) = (self.source(a, Ty::B64)?, self.source(b, Ty::B64)?);
                let add = self.source(add, Ty::Pred)?;
                let regs = self.program.lists.len() as u32;
                self.program.lists.push(rows);
                self.push(Op::Wgmma(Wgmma { elem, n, a, b, add, regs }));
            }
            _ => return Err(self.unsupported()),
        }
        Ok(())
    }
}
