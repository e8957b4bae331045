//! PTX to micro-operations, through a parser of its own.
//!
//! The subset is that of generated kernels: one entry point, no calls, no textures, no f64. What is not known is refused
//! with its line. Variables in shared memory lie apart, with forbidden gaps between them, so that an overrun of one is
//! not taken for an access to the next.

mod arith;
mod ast;
mod convert;
mod hopper;
mod lex;
mod memory;
mod parse;
mod warp;

use crate::error::Error;
use crate::launch::{Argument, Launch};
use crate::op::{Inst, Op, Origin, Program, Reg, Segment, Special, Wide};
use ast::{Instruction, Item, Kernel, Operand, Ty};
use rustc_hash::FxHashMap;

type Lowered<T> = Result<T, Error>;

/// Bytes between two variables of shared memory: keeps every bank where it is.
const GAP: u32 = 1024;

struct Lower<'t> {
    launch: &'t Launch<'t>,
    program: Program,
    registers: FxHashMap<String, (Reg, Ty)>,
    /// Offsets of shared and local variables.
    variables: FxHashMap<&'t str, u32>,
    parameters: FxHashMap<&'t str, (usize, u32)>,
    labels: FxHashMap<&'t str, u32>,
    branches: Vec<(usize, &'t str, u32)>,
    constants: FxHashMap<u64, Reg>,
    addresses: FxHashMap<usize, Reg>,
    values: FxHashMap<(usize, u32), Reg>,
    line: u32,
    guard: Option<(Reg, bool)>,
    ftz: bool,
    text: &'t str,
}

/// Lowers the entry point of a launch.
pub(crate) fn lower(launch: &Launch<'_>) -> Lowered<Program> {
    let fail = |(line, reason): (u32, String)| Error::Text { kernel: launch.kernel.to_owned(), line, reason };
    let kernels = parse::parse(launch.text).map_err(fail)?;
    let kernel = match launch.entry {
        Some(name) => kernels.iter().find(|k| k.name == name),
        None => kernels.first().filter(|_| kernels.len() == 1),
    };
    let Some(kernel) = kernel else {
        let what = launch.entry.map_or_else(|| "not exactly one entry point".into(), |n| format!("no entry `{n}`"));
        return Err(fail((0, what)));
    };
    let mut lower = Lower {
        launch,
        program: Program {
            workgroup: kernel.threads.unwrap_or(launch.workgroup),
            track_registers: true,
            ..Program::default()
        },
        registers: FxHashMap::default(),
        variables: FxHashMap::default(),
        parameters: FxHashMap::default(),
        labels: FxHashMap::default(),
        branches: Vec::new(),
        constants: FxHashMap::default(),
        addresses: FxHashMap::default(),
        values: FxHashMap::default(),
        line: 1,
        guard: None,
        ftz: false,
        text: "",
    };
    lower.declare(kernel)?;
    for item in &kernel.body {
        match item {
            Item::Label(l) => {
                let here = lower.program.code.len() as u32;
                if lower.labels.insert(l, here).is_some() {
                    return Err(lower.text_error(format!("label `{l}` stands twice")));
                }
            }
            Item::Instruction(i) => lower.instruction(i)?,
            _ => {}
        }
    }
    lower.guard = None;
    lower.push(Op::Exit);
    for (at, label, line) in std::mem::take(&mut lower.branches) {
        let Some(to) = lower.labels.get(label).copied() else {
            return Err(fail((line, format!("no label `{label}`"))));
        };
        if let Some(Inst { op: Op::Bra { target, .. }, .. }) = lower.program.code.get_mut(at) {
            *target = to;
        }
    }
    Ok(lower.program)
}

impl<'t> Lower<'t> {
    fn unsupported(&self) -> Error {
        let what = format!("`{}`", self.text);
        Error::Unsupported { kernel: self.launch.kernel.to_owned(), line: self.line, what }
    }
    fn text_error(&self, reason: impl Into<String>) -> Error {
        Error::Text { kernel: self.launch.kernel.to_owned(), line: self.line, reason: reason.into() }
    }
    fn push(&mut self, op: Op) {
        let inst = Inst { op, line: self.line, guard: self.guard, ftz: self.ftz };
        self.program.code.push(inst);
    }
    fn temp(&mut self, rows: u32) -> Reg {
        let first = self.program.registers;
        self.program.registers += rows;
        first
    }
    fn constant(&mut self, value: u32) -> Reg {
        self.constant_pair(u64::from(value))
    }
    /// A constant in two rows; the first alone is its low word.
    fn constant_pair(&mut self, value: u64) -> Reg {
        if let Some(r) = self.constants.get(&value) {
            return *r;
        }
        let r = self.temp(2);
        self.constants.insert(value, r);
        self.program.constants.extend([(r, value as u32), (r + 1, (value >> 32) as u32)]);
        r
    }

    fn declare(&mut self, kernel: &'t Kernel<'t>) -> Lowered<()> {
        for (i, p) in kernel.parameters.iter().enumerate() {
            self.line = p.line;
            self.parameters.insert(p.name, (i, p.bytes()));
            match self.launch.arguments.get(i) {
                Some(Argument::Buffer(_)) if p.bytes() == 8 => {
                    let (name, origin) = (p.name.to_owned(), Origin::Argument(i));
                    self.program.segments.push(Segment { name, origin, bytes: 0, writable: true, holes: Vec::new() });
                }
                Some(Argument::Bytes(b)) if b.len() as u32 == p.bytes() => {}
                Some(Argument::TensorMap(t)) if p.bytes() == 128 => self.tensor_map(i, t, p)?,
                Some(Argument::Bytes(b)) => {
                    let (want, got) = (p.bytes(), b.len());
                    return Err(self.launch_error(format!("parameter `{}` has {want} bytes, given {got}", p.name)));
                }
                Some(_) => return Err(self.launch_error(format!("parameter `{}` is no pointer", p.name))),
                None => return Err(self.launch_error(format!("no argument for parameter `{}`", p.name))),
            }
        }
        let (mut shared, mut used, mut local) = (0u32, 0u32, 0u32);
        let mut holes = Vec::new();
        for item in &kernel.body {
            match item {
                Item::Registers(ty, name, count) => {
                    let rows = if ty.wide() { 2 } else { 1 };
                    let many = u64::from(rows) * u64::from(count.unwrap_or(1)) + u64::from(self.program.registers);
                    if *ty == Ty::F64 || many > 1 << 16 {
                        return Err(self.text_error(format!("registers `{name}` are of f64, or beyond 65536 words")));
                    }
                    let first = self.temp(rows * count.unwrap_or(1));
                    match count {
                        None => {
                            self.registers.insert((*name).to_owned(), (first, *ty));
                        }
                        Some(n) => {
                            for i in 0..*n {
                                self.registers.insert(format!("{name}{i}"), (first + i * rows, *ty));
                            }
                        }
                    }
                }
                Item::Variable(v) => {
                    self.line = v.line;
                    let size = if v.len == 0 { self.launch.dynamic_shared_bytes } else { v.bytes() };
                    let align = v.align.clamp(16, 1 << 16).next_power_of_two();
                    match v.space {
                        ".shared" => {
                            let start = shared.next_multiple_of(align.max(128));
                            self.variables.insert(v.name, start);
                            holes.push((used, start));
                            used = start.saturating_add(size).min(1 << 21);
                            shared = (used + GAP).next_multiple_of(4);
                            if shared > 1 << 20 {
                                return Err(self.text_error("more than 1 MiB of shared memory"));
                            }
                        }
                        ".local" => {
                            let start = local.next_multiple_of(align);
                            self.variables.insert(v.name, start);
                            local = start.saturating_add(size).min(1 << 20).next_multiple_of(4);
                            if local > 1 << 16 {
                                return Err(self.text_error("more than 64 KiB of local memory"));
                            }
                        }
                        other => return Err(self.text_error(format!("variables in {other}"))),
                    }
                }
                _ => {}
            }
        }
        self.matrices_of_maps();
        let mut segment = |name: &str, origin, bytes, holes| {
            let name = name.to_owned();
            self.program.segments.push(Segment { name, origin, bytes, writable: true, holes });
        };
        if shared > 0 {
            holes.push((used, shared));
            segment("shared", Origin::Workgroup, shared, holes);
        }
        if local > 0 {
            segment("local", Origin::Local, local, Vec::new());
        }
        Ok(())
    }

    fn launch_error(&self, reason: String) -> Error {
        Error::Launch { kernel: self.launch.kernel.to_owned(), reason }
    }

    fn instruction(&mut self, i: &Instruction<'t>) -> Lowered<()> {
        (self.line, self.text, self.guard, self.ftz) = (i.line, i.text, None, false);
        if let Some((name, negated)) = i.guard {
            self.guard = Some((self.register(name)?.0, negated));
        }
        let parts = i.parts();
        let name = parts.first().copied().unwrap_or_default();
        let mods = parts.get(1..).unwrap_or_default();
        self.ftz = mods.contains(&"ftz");
        let o = i.operands.as_slice();
        match name {
            "bra" => {
                let [Operand::Name(label)] = o else { return Err(self.unsupported()) };
                let cond = self.guard.take();
                self.branches.push((self.program.code.len(), label, self.line));
                self.push(Op::Bra { target: 0, cond });
                Ok(())
            }
            "ret" | "exit" => {
                self.push(Op::Exit);
                Ok(())
            }
            "griddepcontrol" if mods == ["wait"] => {
                self.program.overlaps = true;
                self.push(Op::LaunchWait);
                Ok(())
            }
            // Dependents of a kernel that does not wait itself may meet what the launch in front of it does.
            "griddepcontrol" if mods == ["launch_dependents"] => {
                self.program.overlaps = true;
                self.push(Op::Fence);
                Ok(())
            }
            "fence" if mods.starts_with(&["proxy", "async"]) => {
                self.push(Op::ProxyFence);
                Ok(())
            }
            "fence" if mods.first() == Some(&"mbarrier_init") => {
                self.push(Op::BarrierFence);
                Ok(())
            }
            "membar" | "fence" | "griddepcontrol" | "prefetch" | "prefetchu" | "nanosleep" | "setmaxnreg" => {
                self.push(Op::Fence);
                Ok(())
            }
            "mov" | "ld" | "st" | "cvta" | "atom" | "red" | "cp" => self.memory(name, mods, o),
            "mbarrier" => self.mbarrier(mods, o),
            "wgmma" => self.wgmma(mods, o),
            "cvt" => self.convert(mods, o),
            "bar" | "barrier" | "shfl" | "vote" | "redux" | "activemask" | "ldmatrix" | "mma" => {
                self.warp(name, mods, o)
            }
            _ => self.arithmetic(name, mods, o),
        }
    }

    /// A declared register.
    fn register(&self, name: &str) -> Lowered<(Reg, Ty)> {
        self.registers.get(name).copied().ok_or_else(|| self.text_error(format!("`{name}` is not declared")))
    }
    /// The register an operand names as destination, of two rows if `wide`.
    fn dest(&mut self, o: &Operand<'t>, wide: bool) -> Lowered<Reg> {
        match o {
            Operand::Name(n) => {
                let (r, have) = self.register(n)?;
                if have.wide() != wide {
                    return Err(self.text_error(format!("`{n}` has another size than `{}`", self.text)));
                }
                Ok(r)
            }
            Operand::Sink => Ok(self.temp(2)),
            _ => Err(self.text_error("a register expected")),
        }
    }
    /// The rows of a source operand of a type.
    fn source(&mut self, o: &Operand<'t>, ty: Ty) -> Lowered<Reg> {
        match o {
            Operand::Name(n) => {
                if let Some((r, have)) = self.registers.get(*n).copied() {
                    if have.wide() != ty.wide() {
                        return Err(self.text_error(format!("`{n}` has another size than `{}`", self.text)));
                    }
                    return Ok(r);
                }
                if let Some(s) = special(n) {
                    let d = self.temp(2);
                    self.push(Op::Special { d, s });
                    if ty.wide() {
                        self.push(Op::Wide { op: Wide::FromU, d, a: d, b: d, c: d });
                    }
                    return Ok(d);
                }
                match (self.variables.get(n).copied(), *n) {
                    (Some(offset), _) => Ok(self.constant_pair(u64::from(offset))),
                    (None, "WARP_SZ") => Ok(self.constant(32)),
                    _ => Err(self.text_error(format!("`{n}` is not declared"))),
                }
            }
            Operand::Int(v) if ty.wide() => Ok(self.constant_pair(*v)),
            Operand::Int(v) if ty == Ty::F32 => Ok(self.constant((*v as i64 as f32).to_bits())),
            Operand::Int(v) if ty.bytes() == 2 => Ok(self.constant(*v as u32 & 0xffff)),
            Operand::Int(v) => Ok(self.constant(*v as u32)),
            Operand::Float(v) => Ok(self.constant(*v)),
            Operand::Not(n) => {
                let (a, d) = (self.register(n)?.0, self.temp(1));
                self.push(Op::Un { op: crate::op::Un::LogicNot, d, a });
                Ok(d)
            }
            _ => Err(self.text_error("a value expected")),
        }
    }
    /// Moves a value to its register.
    fn deliver(&mut self, d: Reg, from: Reg, wide: bool) {
        if d == from {
        } else if wide {
            self.push(Op::Mov { d, a: from });
            self.push(Op::Mov { d: d + 1, a: from + 1 });
        } else {
            self.push(Op::Mov { d, a: from });
        }
    }
    /// The last type among suffixes.
    fn type_of(&self, mods: &[&str]) -> Lowered<Ty> {
        mods.iter().rev().find_map(|m| Ty::named(m)).ok_or_else(|| self.unsupported())
    }
    fn operands<const N: usize>(&self, o: &'_ [Operand<'t>]) -> Lowered<[Operand<'t>; N]> {
        o.to_vec().try_into().map_err(|_| self.text_error(format!("`{}` takes {N} operands", self.text)))
    }
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((b, "x")) => (b, 0),
        Some((b, "y")) => (b, 1),
        Some((b, "z")) => (b, 2),
        _ => (name, 0),
    };
    Some(match base {
        "%tid" => Special::Local(axis),
        "%ntid" => Special::GroupSize(axis),
        "%ctaid" => Special::Group(axis),
        "%nctaid" => Special::Groups(axis),
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_lt" => Special::LanesBelow,
        "%lanemask_le" => Special::LanesUpTo,
        "%lanemask_gt" => Special::LanesAbove,
        "%lanemask_ge" => Special::LanesFrom,
        "%lanemask_eq" => Special::LaneBit,
        _ => return None,
    })
}
