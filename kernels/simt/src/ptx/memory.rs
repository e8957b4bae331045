//! Moves, loads, stores, address conversion, atomics and asynchronous copies.

use super::ast::{Operand, Ty};
use super::{Lower, Lowered};
use crate::launch::Argument;
use crate::op::{Access, Addr, Atomic, Bin, Elem, Op, Origin, Reg, Rmw, Space, Wide};

fn elem(ty: Ty, register: Ty) -> Option<Elem> {
    Some(match (ty, register.bytes()) {
        (Ty::B8 | Ty::U8, _) => Elem::U8,
        // A register of 16 bits keeps zeros above.
        (Ty::S8, 4) => Elem::S8,
        (Ty::S16, 4) => Elem::S16,
        (Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16, _) => Elem::U16,
        (Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2, _) => Elem::B32,
        (Ty::B64 | Ty::U64 | Ty::S64, _) => Elem::B64,
        _ => return None,
    })
}

fn list<'t>(o: &Operand<'t>) -> Vec<Operand<'t>> {
    match o {
        Operand::Vector(v) => v.clone(),
        one => vec![one.clone()],
    }
}

impl<'t> Lower<'t> {
    pub(super) fn memory(&mut self, name: &str, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        match name {
            "mov" => self.mov(mods, o),
            "cvta" => self.cvta(mods, o),
            "ld" if mods.contains(&"param") => self.load_parameter(mods, o),
            "ld" | "st" => self.move_memory(name == "ld", mods, o),
            "atom" | "red" => self.read_modify_write(name == "atom", mods, o),
            _ => self.copy(mods, o),
        }
    }

    fn mov(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        match o {
            [Operand::Vector(parts), from] => self.unpack(ty, parts, from),
            [to, Operand::Vector(parts)] => self.pack(ty, to, parts),
            [to, Operand::Name(n)] if ty.wide() && self.is_map(n) => {
                let a = self.map_address(n)?;
                let d = self.dest(to, true)?;
                self.deliver(d, a, true);
                Ok(())
            }
            [to, from] => {
                let a = self.source(from, ty)?;
                let d = self.dest(to, ty.wide())?;
                if d == a {
                    self.push(Op::Mov { d, a });
                }
                self.deliver(d, a, ty.wide());
                Ok(())
            }
            _ => Err(self.unsupported()),
        }
    }

    fn unpack(&mut self, ty: Ty, parts: &[Operand<'t>], from: &Operand<'t>) -> Lowered<()> {
        let a = self.source(from, ty)?;
        match (ty.bytes(), parts) {
            (4, [low, high]) => {
                let t = self.temp(1);
                self.push(Op::Mov { d: t, a });
                let (low, high) = (self.dest(low, false)?, self.dest(high, false)?);
                let (mask, sixteen) = (self.constant(0xffff), self.constant(16));
                self.push(Op::Bin { op: Bin::And, d: low, a: t, b: mask });
                self.push(Op::Bin { op: Bin::ShrU, d: high, a: t, b: sixteen });
                Ok(())
            }
            (8, [low, high]) => {
                let (low, high) = (self.dest(low, false)?, self.dest(high, false)?);
                self.push(Op::Mov { d: low, a });
                self.push(Op::Mov { d: high, a: a + 1 });
                Ok(())
            }
            _ => Err(self.unsupported()),
        }
    }

    fn pack(&mut self, ty: Ty, to: &Operand<'t>, parts: &[Operand<'t>]) -> Lowered<()> {
        let [low, high] = parts else { return Err(self.unsupported()) };
        let half = if ty.wide() { Ty::B32 } else { Ty::B16 };
        let (low, high) = (self.source(low, half)?, self.source(high, half)?);
        let d = self.dest(to, ty.wide())?;
        match ty.bytes() {
            4 => {
                let (t, sixteen) = (self.temp(1), self.constant(16));
                self.push(Op::Bin { op: Bin::Shl, d: t, a: high, b: sixteen });
                self.push(Op::Bin { op: Bin::Or, d, a: t, b: low });
            }
            8 => self.push(Op::Wide { op: Wide::Pack, d, a: low, b: high, c: low }),
            _ => return Err(self.unsupported()),
        }
        Ok(())
    }

    /// Generic addresses of global memory are its addresses; those of shared memory carry the segment's number above
    /// the offset.
    fn cvta(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let [d, a] = self.operands(o)?;
        let a = self.source(&a, Ty::U64)?;
        let d = self.dest(&d, true)?;
        match mods {
            ["to", "global", "u64"] | ["global", "u64"] | ["param", "u64"] => self.deliver(d, a, true),
            ["to", "shared" | "local", "u64"] => {
                let mask = self.constant_pair((1 << crate::memory::OFFSET_BITS) - 1);
                self.push(Op::Wide { op: Wide::And, d, a, b: mask, c: a });
            }
            ["shared", "u64"] => {
                let segment = self.program.segments.iter().position(|s| s.origin == Origin::Workgroup);
                let Some(segment) = segment else { return Err(self.unsupported()) };
                let base = self.segment_address(segment);
                self.push(Op::Wide { op: Wide::Add, d, a, b: base, c: a });
            }
            _ => return Err(self.unsupported()),
        }
        Ok(())
    }

    pub(super) fn segment_address(&mut self, segment: usize) -> Reg {
        if let Some(r) = self.addresses.get(&segment) {
            return *r;
        }
        let r = self.temp(2);
        self.program.addresses.push((r, segment as u32));
        self.addresses.insert(segment, r);
        r
    }

    /// A word of a parameter passed by value, as set before the first instruction.
    fn parameter_word(&mut self, argument: usize, offset: u32) -> Reg {
        if let Some(r) = self.values.get(&(argument, offset)) {
            return *r;
        }
        let r = self.temp(2);
        self.program.parameters.extend([(r, argument, offset), (r + 1, argument, offset + 4)]);
        self.values.insert((argument, offset), r);
        r
    }

    fn load_parameter(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        let [to, from] = self.operands(o)?;
        let Operand::Address(base, offset) = from else { return Err(self.unsupported()) };
        let Operand::Name(name) = *base else { return Err(self.unsupported()) };
        let Some((argument, size)) = self.parameters.get(name).copied() else {
            return Err(self.text_error(format!("no parameter `{name}`")));
        };
        let mut at = u32::try_from(offset).map_err(|_| self.unsupported())?;
        for d in list(&to) {
            let d = self.dest(&d, ty.wide())?;
            if at.saturating_add(ty.bytes()) > size || at % ty.bytes() != 0 {
                return Err(self.text_error(format!("byte {at} of parameter `{name}`, which has {size}")));
            }
            if matches!(self.launch.arguments.get(argument), Some(Argument::Buffer(_))) {
                let here = |s: &crate::op::Segment| s.origin == Origin::Argument(argument);
                let segment = self.program.segments.iter().position(here);
                let (Some(segment), true) = (segment, ty.wide()) else { return Err(self.unsupported()) };
                let a = self.segment_address(segment);
                self.deliver(d, a, true);
            } else if ty.bytes() >= 4 {
                let a = self.parameter_word(argument, at);
                self.deliver(d, a, ty.wide());
            } else {
                let a = self.parameter_word(argument, at & !3);
                let (shift, t) = (self.constant(8 * (at % 4)), self.temp(1));
                self.push(Op::Bin { op: Bin::ShrU, d: t, a, b: shift });
                let mask = self.constant(if ty.bytes() == 1 { 0xff } else { 0xffff });
                self.push(Op::Bin { op: Bin::And, d, a: t, b: mask });
            }
            at += ty.bytes();
        }
        Ok(())
    }

    /// The address of an operand in a space.
    pub(super) fn address(&mut self, o: &Operand<'t>, space: Space) -> Lowered<Addr> {
        let Operand::Address(base, imm) = o else { return Err(self.text_error("an address expected")) };
        let imm = *imm;
        match base.as_ref() {
            Operand::Name(n) => {
                if let Some((base, ty)) = self.registers.get(*n).copied() {
                    return match (ty.bytes(), space) {
                        (8, _) => Ok(Addr::Long { base, imm, space }),
                        (4, Space::Shared | Space::Local) => Ok(Addr::Short { base, imm, space }),
                        _ => Err(self.text_error(format!("`{n}` cannot hold this address"))),
                    };
                }
                let Some(offset) = self.variables.get(n).copied() else {
                    return Err(self.text_error(format!("`{n}` is not declared")));
                };
                let base = self.constant(offset);
                Ok(Addr::Short { base, imm, space })
            }
            Operand::Int(v) if matches!(space, Space::Shared | Space::Local) => {
                let base = self.constant(*v as u32);
                Ok(Addr::Short { base, imm, space })
            }
            _ => Err(self.unsupported()),
        }
    }

    pub(super) fn space(&self, mods: &[&str]) -> Space {
        let named = |n: &str| mods.iter().any(|m| *m == n || m.split("::").next() == Some(n));
        if named("global") {
            Space::Global
        } else if named("shared") {
            Space::Shared
        } else if named("local") {
            Space::Local
        } else {
            Space::Generic
        }
    }

    fn move_memory(&mut self, load: bool, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        let known = |m: &&str| {
            Ty::named(m).is_some()
                || matches!(
                    *m,
                    "global"
                        | "shared"
                        | "local"
                        | "nc"
                        | "ca"
                        | "cg"
                        | "cs"
                        | "lu"
                        | "cv"
                        | "wb"
                        | "wt"
                        | "volatile"
                        | "relaxed"
                        | "acquire"
                        | "release"
                        | "weak"
                        | "gpu"
                        | "cta"
                        | "sys"
                        | "v2"
                        | "v4"
                )
                || m.contains("::")
        };
        if !mods.iter().all(known) {
            return Err(self.unsupported());
        }
        let [first, second] = self.operands(o)?;
        let (value, address) = if load { (first, second) } else { (second, first) };
        let addr = self.address(&address, self.space(mods))?;
        let parts = list(&value);
        let count = mods.iter().find_map(|m| m.strip_prefix('v').and_then(|n| n.parse().ok())).unwrap_or(1usize);
        if parts.len() != count {
            return Err(self.text_error(format!("`{}` takes {count} registers", self.text)));
        }
        let mut rows = Vec::new();
        let mut register = ty;
        for p in &parts {
            if load {
                rows.push(self.dest(p, ty.wide())?);
                if let Operand::Name(n) = p {
                    register = self.register(n)?.1;
                }
            } else {
                rows.push(self.source(p, ty)?);
            }
        }
        let Some(elem) = elem(ty, register) else { return Err(self.unsupported()) };
        let step = elem.rows();
        let start = rows.first().copied().unwrap_or(0);
        let side_by_side = rows.iter().enumerate().all(|(i, r)| *r == start + i as u32 * step);
        let reg = if side_by_side { start } else { self.temp(step * count as u32) };
        let atomic = mods.iter().any(|m| matches!(*m, "volatile" | "relaxed" | "acquire" | "release"));
        let align = (elem.bytes() * count as u32) as u8;
        let constant = mods.contains(&"nc");
        if constant && (!load || !mods.contains(&"global")) {
            return Err(self.unsupported());
        }
        let access = Access { addr, elem, count: count as u8, reg, align, atomic, constant };
        if load {
            self.push(Op::Load(access));
        }
        if !side_by_side {
            for (i, r) in rows.iter().enumerate() {
                let t = reg + i as u32 * step;
                if load { self.deliver(*r, t, step == 2) } else { self.deliver(t, *r, step == 2) }
            }
        }
        if !load {
            self.push(Op::Store(access));
        }
        Ok(())
    }

    fn read_modify_write(&mut self, returns: bool, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let ty = self.type_of(mods)?;
        let s = ty.signed();
        let has = |n: &str| mods.contains(&n);
        let op = match () {
            () if has("add") && ty == Ty::F32 => Rmw::AddF,
            () if has("add") => Rmw::AddI,
            () if has("min") && s => Rmw::MinS,
            () if has("min") => Rmw::MinU,
            () if has("max") && s => Rmw::MaxS,
            () if has("max") => Rmw::MaxU,
            () if has("and") => Rmw::And,
            () if has("or") => Rmw::Or,
            () if has("xor") => Rmw::Xor,
            () if has("exch") => Rmw::Exchange,
            () if has("cas") => Rmw::CompareExchange,
            () if has("inc") => Rmw::IncU,
            () if has("dec") => Rmw::DecU,
            () => return Err(self.unsupported()),
        };
        let elem = match (ty.bytes(), ty) {
            (4, Ty::F16x2 | Ty::Bf16x2) => return Err(self.unsupported()),
            (4, _) => Elem::B32,
            (8, t) if t != Ty::F64 && !matches!(op, Rmw::IncU | Rmw::DecU) => Elem::B64,
            _ => return Err(self.unsupported()),
        };
        let mut rest = o.iter();
        let mut next = || rest.next().ok_or_else(|| self.text_error("an operand is missing"));
        let old = if returns { Some(next()?.clone()) } else { None };
        let (address, first) = (next()?.clone(), next()?.clone());
        let second = rest.next().cloned();
        let addr = self.address(&address, self.space(mods))?;
        let first = self.source(&first, ty)?;
        let (value, compare) = match (op, second) {
            (Rmw::CompareExchange, Some(v)) => (self.source(&v, ty)?, Some(first)),
            (Rmw::CompareExchange, None) => return Err(self.unsupported()),
            _ => (first, None),
        };
        let old = match old {
            Some(d) => Some(self.dest(&d, ty.wide())?),
            None => None,
        };
        self.push(Op::Atomic(Atomic { op, addr, elem, old, value, compare }));
        Ok(())
    }

    /// `cp.async` in all its parts.
    fn copy(&mut self, mods: &[&str], o: &[Operand<'t>]) -> Lowered<()> {
        let number = |o: &Operand<'t>| if let Operand::Int(v) = o { Some(*v as u32) } else { None };
        match mods {
            ["async", "commit_group"] => self.push(Op::AsyncCommit),
            ["async", "wait_all"] => self.push(Op::AsyncWait { pending: u32::MAX }),
            ["async", "wait_group"] => {
                let Some(pending) = o.first().and_then(number) else { return Err(self.unsupported()) };
                self.push(Op::AsyncWait { pending });
            }
            ["async", "ca" | "cg", ..] if o.len() == 3 || o.len() == 4 => {
                let (to, source) = (self.address(&o[0], Space::Shared)?, self.address(&o[1], Space::Global)?);
                let bytes = number(&o[2]).filter(|n| matches!(n, 4 | 8 | 16)).ok_or_else(|| self.unsupported())?;
                let from = match o.get(3) {
                    Some(v) => Some(self.source(v, Ty::U32)?),
                    None => None,
                };
                self.push(Op::AsyncCopy { to, source, bytes: bytes as u8, from });
            }
            ["async", "bulk", "tensor", ..] => return self.tensor_copy(mods, o),
            _ => return Err(self.unsupported()),
        }
        Ok(())
    }
}
