//! The module as text: header, parameters, memory, and the body with its control flow as labels and branches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::access::{BlockLoads, Known, definitions};
use super::asm::{Asm, Kind};
use super::multiples::Multiples;
use super::names::Names;
use super::{ENTRY_POINT, Error, Options, Parameter, dynamic_shared_bytes, parameters};
use crate::ir::uniformity::Uniformity;
use crate::ir::verify::{expr_types, uses_subgroups};
use crate::ir::{
    Access, Array, ArrayRef, Axis, Barrier, Block, Builtin, Collective, Expr, Handle, Literal, Local, LocalKind,
    Module, Scalar, Stmt, Type,
};

/// Lowest version of the language that has all that is used, and its target; then those of kernels that overlap.
const PLAIN: [&str; 2] = ["7.0", "sm_80"];
const OVERLAPPING: [&str; 2] = ["7.8", "sm_90"];
/// Threads that must fit on a multiprocessor: 128 registers each. Left alone, the assembler spills to fit more.
const RESIDENT: u64 = 512;

pub(super) type Written<T> = Result<T, Error>;
/// Registers or constants, one a lane.
pub(super) type Value = Vec<String>;

pub(super) fn write(module: &Module, options: &Options) -> Result<String, Error> {
    let invocations = module.invocations();
    if uses_subgroups(module) && !invocations.is_multiple_of(32) {
        return Err(Error::PartialWarp { kernel: module.name.clone(), invocations });
    }
    let mut writer = Writer {
        module,
        options,
        names: Names::of(module),
        types: expr_types(module),
        uniformity: Uniformity::of(module),
        multiples: Multiples::of(module, options),
        pure: purity(module),
        lets: definitions(module),
        asm: Asm::default(),
        known: Known::new(),
        locals: vec![None; module.locals.len()],
        changing: BTreeSet::new(),
        loads: Vec::new(),
        at: 0,
        overlap: if waits(module) { Overlap::Early } else { Overlap::None },
    };
    writer.entry()?;
    writer.block(&module.body, true)?;
    writer.asm.op("ret");
    let mut out = header(module, options);
    out.push_str(&signature(module, options, &writer.names));
    out.push_str("{\n");
    out.push_str(&memory(module, &writer.names));
    out.push_str(&writer.asm.finish());
    out.push_str("}\n");
    Ok(out)
}

/// Which expressions have the same value wherever their names are in scope: those that read no variable and no memory
/// that the kernel writes.
fn purity(module: &Module) -> Vec<bool> {
    let mut pure: Vec<bool> = Vec::with_capacity(module.exprs.len());
    for expr in module.exprs.values() {
        let own = match expr {
            Expr::Local(local) => module.locals[*local].kind != LocalKind::Var,
            Expr::Load { array: ArrayRef::Buffer(h), .. } => module.buffers[*h].access != Access::ReadWrite,
            Expr::Load { .. } => false,
            _ => true,
        };
        pure.push(own && expr.operands().iter().all(|o| pure.get(o.index()) == Some(&true)));
    }
    pure
}

/// Whether a kernel may start while the launch before it runs.
fn waits(module: &Module) -> bool {
    module.body.iter().any(|s| matches!(s, Stmt::Barrier(Barrier::Launch)))
}

fn header(module: &Module, options: &Options) -> String {
    let mut out = String::new();
    for line in [&module.name].into_iter().chain(&options.header).chain(&module.doc) {
        let _ = writeln!(out, "{}", format!("// {line}").trim_end());
    }
    let [version, target] = if waits(module) { OVERLAPPING } else { PLAIN };
    let _ = writeln!(out, "\n.version {version}\n.target {target}\n.address_size 64\n");
    if dynamic_shared_bytes(module) > 0 {
        out.push_str(".extern .shared .align 128 .b8 workgroup_memory[];\n\n");
    }
    out
}

fn signature(module: &Module, options: &Options, names: &Names) -> String {
    let symbol = |binding: u32| {
        let buffer = module.buffers.iter().find(|(_, b)| b.binding == binding);
        let block = module.uniforms.iter().find(|(_, u)| u.binding == binding);
        match (buffer, block) {
            (Some((h, _)), _) => names.array(ArrayRef::Buffer(h)).to_owned(),
            (_, Some((h, _))) => names.uniform(h).to_owned(),
            _ => String::new(),
        }
    };
    let all: Vec<String> = parameters(module, options)
        .iter()
        .map(|p| match p {
            Parameter::Address { binding, .. } => format!("    .param .u64 {}", symbol(*binding)),
            Parameter::Block { binding, size_bytes, .. } => {
                format!("    .param .align 16 .b8 {}[{size_bytes}]", symbol(*binding))
            }
        })
        .collect();
    let [x, y, z] = module.workgroup_size;
    let groups = (RESIDENT / module.invocations().max(1)).max(1);
    let all = all.join(",\n");
    format!(".visible .entry {ENTRY_POINT}(\n{all}\n)\n.reqntid {x}, {y}, {z}\n.minnctapersm {groups}\n")
}

/// Declarations of workgroup memory and of private arrays that have no registers.
fn memory(module: &Module, names: &Names) -> String {
    let mut out = String::new();
    let bytes = |a: &Array| u64::from(a.len) * u64::from(a.elem.size_bytes());
    if dynamic_shared_bytes(module) == 0 {
        for (h, array) in module.workgroup.iter() {
            let name = names.array(ArrayRef::Workgroup(h));
            let _ =
                writeln!(out, "    .shared .align 16 .b8 {name}[{}]; // {} of {}", bytes(array), array.len, array.elem);
        }
    }
    for (h, array) in module.private.iter().filter(|(h, _)| !in_registers(module, *h)) {
        let name = names.array(ArrayRef::Private(h));
        let _ = writeln!(out, "    .local .align 16 .b8 {name}[{}]; // {} of {}", bytes(array), array.len, array.elem);
    }
    out
}

/// Whether every access to a private array is at a constant index.
pub(super) fn in_registers(module: &Module, array: Handle<Array>) -> bool {
    let constant = |h: &Handle<Expr>| matches!(module.exprs[*h], Expr::Literal(_));
    let loads = module.exprs.values().all(|e| match e {
        Expr::Load { array: ArrayRef::Private(a), index } if *a == array => constant(index),
        _ => true,
    });
    let mut blocks = vec![&module.body];
    let mut stores = true;
    while let Some(block) = blocks.pop() {
        for stmt in block {
            if let Stmt::Store { array: ArrayRef::Private(a), index, .. } = stmt {
                stores &= *a != array || constant(index);
            }
            blocks.extend(stmt.blocks());
        }
    }
    loads && stores
}

/// Where the text stands with regard to the launch before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    /// It has ended before this one begins.
    None,
    /// It may still run.
    Early,
    /// It was waited for.
    Late,
}

/// Writes the body of one module.
pub(super) struct Writer<'m> {
    pub(super) module: &'m Module,
    pub(super) options: &'m Options,
    pub(super) names: Names,
    pub(super) types: Vec<Option<Type>>,
    uniformity: Uniformity,
    pub(super) multiples: Multiples,
    pub(super) pure: Vec<bool>,
    pub(super) lets: Vec<Option<Handle<Expr>>>,
    pub(super) asm: Asm,
    pub(super) known: Known,
    pub(super) locals: Vec<Option<Value>>,
    /// Registers that are assigned more than once.
    pub(super) changing: BTreeSet<String>,
    /// Loads of the open blocks, innermost last.
    pub(super) loads: Vec<BlockLoads>,
    /// Position in the innermost block.
    pub(super) at: usize,
    pub(super) overlap: Overlap,
}

impl Writer<'_> {
    pub(super) fn ty(&self, h: Handle<Expr>) -> Written<Type> {
        let ty = self.types.get(h.index()).copied().flatten();
        ty.ok_or_else(|| Error::Untyped { kernel: self.module.name.clone() })
    }

    /// One instruction.
    pub(super) fn op(&mut self, text: impl AsRef<str>) {
        self.asm.op(text.as_ref());
    }

    /// New registers for a value.
    pub(super) fn fresh(&mut self, ty: Type) -> Value {
        (0..ty.lanes()).map(|_| self.asm.reg(Kind::of(ty.scalar))).collect()
    }

    /// Everything that is the same for the whole kernel: addresses, uniform members, machine values, zeroed arrays.
    fn entry(&mut self) -> Written<()> {
        let module = self.module;
        if self.overlap == Overlap::Early {
            self.op("griddepcontrol.launch_dependents");
        }
        for (h, _) in module.buffers.iter() {
            let symbol = self.names.array(ArrayRef::Buffer(h)).to_owned();
            self.global_address(&symbol, &format!("%{symbol}"));
        }
        for (h, block) in module.uniforms.iter() {
            let by_address = self.options.by_address.contains(&block.name);
            if !by_address || self.overlap == Overlap::None {
                self.uniform_block(h, by_address);
            }
        }
        let mut offset = 0;
        for (h, array) in module.workgroup.iter() {
            let (name, address) =
                (self.names.array(ArrayRef::Workgroup(h)).to_owned(), self.names.address(ArrayRef::Workgroup(h)));
            self.asm.declare(Kind::Word, &address);
            if dynamic_shared_bytes(module) == 0 {
                self.op(format!("mov.u32 {address}, {name}"));
            } else {
                self.op(format!("mov.u32 {address}, workgroup_memory"));
                if offset > 0 {
                    self.op(format!("add.u32 {address}, {address}, {offset}"));
                }
            }
            offset += (u64::from(array.len) * u64::from(array.elem.size_bytes())).next_multiple_of(16);
        }
        self.builtins()?;
        for (h, array) in module.private.iter() {
            self.private(h, array);
        }
        Ok(())
    }

    fn global_address(&mut self, symbol: &str, address: &str) {
        self.asm.declare(Kind::Address, address);
        let generic = self.asm.reg(Kind::Address);
        self.op(format!("ld.param.u64 {generic}, [{symbol}]"));
        self.op(format!("cvta.to.global.u64 {address}, {generic}"));
    }

    fn uniform_block(&mut self, h: Handle<crate::ir::UniformBlock>, by_address: bool) {
        let module = self.module;
        let mut used: BTreeMap<u32, Handle<Expr>> = BTreeMap::new();
        for (e, expr) in module.exprs.iter() {
            if let Expr::Uniform { block, field } = expr
                && *block == h
            {
                used.insert(*field, e);
            }
        }
        let symbol = self.names.uniform(h).to_owned();
        let address = format!("%{symbol}");
        if by_address && !used.is_empty() {
            self.global_address(&symbol, &address);
        }
        for (field, e) in used {
            let Some(name) = self.names.field(h, field) else { continue };
            let scalar = module.uniforms[h].fields.get(field as usize).map_or(Scalar::U32, |f| f.scalar);
            self.asm.declare(Kind::of(scalar), &name);
            let ty = mem_type(scalar);
            let (memory, base) = match (by_address, self.overlap) {
                (false, _) => ("param", &symbol),
                (true, Overlap::None) => ("global.nc", &address),
                (true, _) => ("global", &address),
            };
            self.op(format!("ld.{memory}.{ty} {name}, {}", displaced(base, u64::from(field) * 4)));
            self.known.remember(e, &[name], true);
        }
    }

    fn builtins(&mut self) -> Written<()> {
        let module = self.module;
        for (h, expr) in module.exprs.iter() {
            let Expr::Builtin(builtin) = expr else { continue };
            let [x, y, _] = module.workgroup_size;
            let r = self.asm.reg(Kind::Word);
            match builtin {
                Builtin::WorkgroupId(axis) => self.op(format!("mov.u32 {r}, %ctaid.{}", axis.name())),
                Builtin::LocalId(axis) => self.op(format!("mov.u32 {r}, %tid.{}", axis.name())),
                Builtin::NumWorkgroups(axis) => self.op(format!("mov.u32 {r}, %nctaid.{}", axis.name())),
                Builtin::SubgroupLane => self.op(format!("mov.u32 {r}, %laneid")),
                Builtin::SubgroupSize => self.op(format!("mov.u32 {r}, 32")),
                Builtin::GlobalId(axis) => {
                    let n = module.workgroup_size[match axis {
                        Axis::X => 0,
                        Axis::Y => 1,
                        Axis::Z => 2,
                    }];
                    let (group, local) = (self.asm.reg(Kind::Word), self.asm.reg(Kind::Word));
                    self.op(format!("mov.u32 {group}, %ctaid.{}", axis.name()));
                    self.op(format!("mov.u32 {local}, %tid.{}", axis.name()));
                    self.op(format!("mad.lo.u32 {r}, {group}, {n}, {local}"));
                }
                Builtin::LocalIndex => {
                    self.op(format!("mov.u32 {r}, %tid.x"));
                    for (axis, stride) in [("y", x), ("z", x.saturating_mul(y))] {
                        if module.workgroup_size[if axis == "y" { 1 } else { 2 }] > 1 {
                            let id = self.asm.reg(Kind::Word);
                            self.op(format!("mov.u32 {id}, %tid.{axis}"));
                            self.op(format!("mad.lo.u32 {r}, {id}, {stride}, {r}"));
                        }
                    }
                }
            }
            self.known.remember(h, &[r], true);
        }
        Ok(())
    }

    fn private(&mut self, h: Handle<Array>, array: &Array) {
        let kind = Kind::of(array.elem.scalar);
        if in_registers(self.module, h) {
            for at in 0..array.len {
                for lane in self.names.element(h, array.elem, at) {
                    self.asm.declare(kind, &lane);
                    self.op(format!("mov.{} {lane}, {}", kind.ty(), zero(array.elem.scalar)));
                    self.changing.insert(lane);
                }
            }
            return;
        }
        let address = self.names.address(ArrayRef::Private(h));
        self.asm.declare(Kind::Word, &address);
        let name = self.names.array(ArrayRef::Private(h)).to_owned();
        self.op(format!("mov.u32 {address}, {name}"));
        let size = array.elem.scalar.size_bytes();
        for at in 0..array.len * array.elem.lanes() {
            let bits = if size == 2 { "b16" } else { "b32" };
            self.op(format!("st.local.{bits} [{address}+{}], 0", at * size));
        }
    }

    /// Statements; `flow` says whether all invocations of the workgroup arrive together.
    fn block(&mut self, block: &Block, flow: bool) -> Written<()> {
        self.loads.push(BlockLoads::of(self.module, &self.lets, block));
        let outer = self.at;
        for (at, stmt) in block.iter().enumerate() {
            self.at = at;
            self.known.next_statement();
            self.stmt(stmt, flow)?;
        }
        self.at = outer;
        self.loads.pop();
        Ok(())
    }

    fn nested(&mut self, block: &Block, flow: bool) -> Written<()> {
        self.known.open();
        self.asm.depth += 1;
        let done = self.block(block, flow);
        self.asm.depth -= 1;
        self.known.close();
        done
    }

    fn stmt(&mut self, stmt: &Stmt, flow: bool) -> Written<()> {
        match stmt {
            Stmt::Comment(text) => self.asm.line(format!("// {text}").trim_end()),
            Stmt::Let { local, value } => self.bind(*local, *value)?,
            Stmt::Var { local, init } => {
                let regs = self.declare(*local);
                self.changing.extend(regs.iter().cloned());
                self.assign(&regs, *init, false)?;
                self.locals[local.index()] = Some(regs);
            }
            Stmt::Assign { local, value } => {
                let regs = self.locals[local.index()].clone().unwrap_or_default();
                let mixes = self.mixes_lanes(*value, *local);
                self.assign(&regs, *value, mixes)?;
            }
            Stmt::Store { array, index, value } => self.store(*array, *index, *value)?,
            Stmt::Barrier(Barrier::Workgroup | Barrier::Storage) => {
                self.op("bar.sync 0");
                self.known.forget_all();
            }
            Stmt::Barrier(Barrier::Launch) => self.wait_for_launch(),
            Stmt::Collective { local, op, value } => self.collective(*local, *op, *value)?,
            Stmt::UniformLoad { local, array, index } => {
                self.op("bar.sync 0");
                self.known.forget_all();
                let regs = self.declare(*local);
                self.load_into(*array, *index, &regs)?;
                self.locals[local.index()] = Some(regs);
                self.op("bar.sync 0");
            }
            Stmt::Tile(op) => self.tile(op)?,
            Stmt::For { local, start, end, step, body, .. } => self.loop_(*local, [*start, *end, *step], body, flow)?,
            Stmt::If { cond, then, otherwise } => self.branch(*cond, then, otherwise, flow)?,
        }
        Ok(())
    }

    /// The launch before has ended: what it wrote may be read, the tables in device memory first.
    fn wait_for_launch(&mut self) {
        self.op("griddepcontrol.wait");
        self.overlap = Overlap::Late;
        self.known.forget_all();
        for (h, block) in self.module.uniforms.iter() {
            if self.options.by_address.contains(&block.name) {
                self.uniform_block(h, true);
            }
        }
    }

    /// Declares the registers of a local.
    pub(super) fn declare(&mut self, local: Handle<Local>) -> Value {
        let ty = self.module.locals[local].ty;
        let regs = self.names.local(local, ty);
        for reg in &regs {
            self.asm.declare(Kind::of(ty.scalar), reg);
        }
        regs
    }

    /// Gives a value a name: its own registers, unless it lies in registers that never change already.
    fn bind(&mut self, local: Handle<Local>, value: Handle<Expr>) -> Written<()> {
        let ty = self.module.locals[local].ty;
        let wanted = self.names.local(local, ty);
        let found = self.value_in(value, &wanted)?;
        if found == wanted {
            self.declare(local);
            self.known.remember(value, &found, self.pure[value.index()]);
            self.locals[local.index()] = Some(wanted);
        } else if found.iter().any(|r| self.changing.contains(r)) {
            let regs = self.declare(local);
            self.copy(&regs, &found, ty.scalar);
            self.locals[local.index()] = Some(regs);
        } else {
            self.locals[local.index()] = Some(found);
        }
        Ok(())
    }

    /// Evaluates into registers that may be read by the expression itself, other lanes first where it `mixes` them.
    pub(super) fn assign(&mut self, regs: &[String], value: Handle<Expr>, mixes: bool) -> Written<()> {
        let scalar = self.ty(value)?.scalar;
        let found = if mixes { self.value(value)? } else { self.value_in(value, regs)? };
        if found == regs {
            return Ok(());
        }
        let crossed = found.iter().enumerate().any(|(i, f)| regs.iter().position(|r| r == f).is_some_and(|j| j != i));
        if crossed {
            let apart = self.fresh(self.ty(value)?);
            self.copy(&apart, &found, scalar);
            self.copy(regs, &apart, scalar);
        } else {
            self.copy(regs, &found, scalar);
        }
        Ok(())
    }

    pub(super) fn copy(&mut self, to: &[String], from: &[String], scalar: Scalar) {
        for (to, from) in to.iter().zip(from).filter(|(t, f)| t != f) {
            self.op(format!("mov.{} {to}, {from}", Kind::of(scalar).ty()));
        }
    }

    /// Whether an expression takes single lanes of a variable.
    fn mixes_lanes(&self, h: Handle<Expr>, local: Handle<Local>) -> bool {
        let operands = self.module.exprs[h].operands();
        let takes = matches!(self.module.exprs[h], Expr::Extract { .. });
        operands.iter().any(|o| (takes && self.reads(*o, local)) || self.mixes_lanes(*o, local))
    }

    fn reads(&self, h: Handle<Expr>, local: Handle<Local>) -> bool {
        match &self.module.exprs[h] {
            Expr::Local(l) => *l == local,
            other => other.operands().iter().any(|o| self.reads(*o, local)),
        }
    }

    fn collective(&mut self, local: Handle<Local>, op: Collective, value: Handle<Expr>) -> Written<()> {
        let ty = self.module.locals[local].ty;
        let mine = self.value(value)?;
        let regs = self.declare(local);
        for (reg, mine) in regs.iter().zip(&mine) {
            match op {
                Collective::BroadcastFirst => self.shuffle("idx", 0, ty.scalar, mine, reg),
                Collective::Broadcast(lane) => self.shuffle("idx", lane, ty.scalar, mine, reg),
                Collective::ShuffleXor(mask) => self.shuffle("bfly", mask, ty.scalar, mine, reg),
                Collective::Add | Collective::Max | Collective::Min => {
                    self.op(format!("mov.{} {reg}, {mine}", Kind::of(ty.scalar).ty()));
                    for mask in [16, 8, 4, 2, 1] {
                        let other = self.asm.reg(Kind::of(ty.scalar));
                        self.shuffle("bfly", mask, ty.scalar, reg, &other);
                        let name = match op {
                            Collective::Add => add_name(ty.scalar),
                            Collective::Max => format!("max.{}", arithmetic(ty.scalar)),
                            _ => format!("min.{}", arithmetic(ty.scalar)),
                        };
                        self.op(format!("{name} {reg}, {reg}, {other}"));
                    }
                }
            }
        }
        self.locals[local.index()] = Some(regs);
        Ok(())
    }

    fn shuffle(&mut self, how: &str, by: u32, scalar: Scalar, from: &str, to: &str) {
        if scalar != Scalar::F16 {
            self.op(format!("shfl.sync.{how}.b32 {to}, {from}, {by}, 31, 0xffffffff"));
            return;
        }
        let (wide, moved) = (self.asm.reg(Kind::Word), self.asm.reg(Kind::Word));
        self.op(format!("cvt.u32.u16 {wide}, {from}"));
        self.op(format!("shfl.sync.{how}.b32 {moved}, {wide}, {by}, 31, 0xffffffff"));
        self.op(format!("cvt.u16.u32 {to}, {moved}"));
    }

    fn loop_(&mut self, local: Handle<Local>, bounds: [Handle<Expr>; 3], body: &Block, flow: bool) -> Written<()> {
        let [start, end, step] = bounds;
        let uniform = self.uniformity.loop_flow(self.module, flow, bounds);
        let jump = if uniform { "bra.uni" } else { "bra" };
        let regs = self.declare(local);
        self.changing.extend(regs.iter().cloned());
        self.assign(&regs, start, false)?;
        self.locals[local.index()] = Some(regs.clone());
        let signed = self.module.locals[local].ty.scalar == Scalar::I32;
        let ty = if signed { "s32" } else { "u32" };
        let k = regs.first().cloned().unwrap_or_default();
        let name = self.names.bare(local).to_owned();
        let runs = match (&self.module.exprs[start], &self.module.exprs[end]) {
            (Expr::Literal(Literal::U32(a)), Expr::Literal(Literal::U32(b))) => a < b,
            (Expr::Literal(Literal::I32(a)), Expr::Literal(Literal::I32(b))) => a < b,
            _ => false,
        };
        if !runs {
            let bound = self.scalar(end)?;
            let p = self.asm.reg(Kind::Predicate);
            self.op(format!("setp.ge.{ty} {p}, {k}, {bound}"));
            self.op(format!("@{p} {jump} $end_{name}"));
        }
        self.known.forget_written_in(body);
        self.asm.label(&format!("$loop_{name}"));
        self.nested(body, uniform)?;
        self.known.next_statement();
        self.known.forget_written_in(body);
        self.known.open();
        let by = self.scalar(step)?;
        self.op(format!("add.{ty} {k}, {k}, {by}"));
        let bound = self.scalar(end)?;
        self.known.close();
        let p = self.asm.reg(Kind::Predicate);
        self.op(format!("setp.lt.{ty} {p}, {k}, {bound}"));
        self.op(format!("@{p} {jump} $loop_{name}"));
        if !runs {
            self.asm.label(&format!("$end_{name}"));
        }
        Ok(())
    }

    fn branch(&mut self, cond: Handle<Expr>, then: &Block, otherwise: &Block, flow: bool) -> Written<()> {
        let uniform = flow && self.uniformity.is_uniform(self.module, cond);
        let jump = if uniform { "bra.uni" } else { "bra" };
        let p = self.scalar(cond)?;
        let n = self.asm.branch();
        let (join, other) = (format!("$join_{n}"), format!("$else_{n}"));
        self.op(format!("@!{p} {jump} {}", if otherwise.is_empty() { &join } else { &other }));
        self.nested(then, uniform)?;
        if !otherwise.is_empty() {
            self.op(format!("{jump} {join}"));
            self.asm.label(&other);
            self.nested(otherwise, uniform)?;
        }
        self.asm.label(&join);
        self.known.forget_written_in(then);
        self.known.forget_written_in(otherwise);
        Ok(())
    }
}

/// The operand that names memory that many bytes behind an address.
pub(super) fn displaced(base: &str, bytes: u64) -> String {
    if bytes == 0 { format!("[{base}]") } else { format!("[{base}+{bytes}]") }
}

/// The type of an access to memory.
pub(super) fn mem_type(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::F32 => "f32",
        Scalar::I32 => "s32",
        Scalar::F16 => "b16",
        Scalar::U32 | Scalar::Bool => "u32",
    }
}

/// The type of an arithmetic instruction.
pub(super) fn arithmetic(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::F32 => "f32",
        Scalar::I32 => "s32",
        Scalar::F16 => "f16",
        Scalar::U32 => "u32",
        Scalar::Bool => "pred",
    }
}

pub(super) fn add_name(scalar: Scalar) -> String {
    let rounding = if scalar.is_float() { "rn." } else { "" };
    format!("add.{rounding}{}", arithmetic(scalar))
}

fn zero(scalar: Scalar) -> &'static str {
    if scalar == Scalar::F32 { "0f00000000" } else { "0" }
}
