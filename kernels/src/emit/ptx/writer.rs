//! The body as text: statements, with control flow as labels and branches.

use std::collections::BTreeSet;

use super::access::{BlockLoads, Known, definitions};
use super::asm::{Asm, Kind};
use super::declare::{header, memory, signature, waits};
use super::multiples::Multiples;
use super::names::Names;
use super::{Error, Options};
use crate::ir::uniformity::Uniformity;
use crate::ir::verify::{expr_types, uses_subgroups};
use crate::ir::{
    Access, ArrayRef, Barrier, Block, Collective, Expr, Handle, Literal, Local, LocalKind, Module, Scalar, Stmt, Type,
};

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
            Stmt::Barrier(Barrier::Subgroup) => {
                self.op("bar.warp.sync 0xffffffff");
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
            Stmt::Warpgroup(op) => self.warpgroup(op)?,
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
        if !matches!(scalar, Scalar::F16 | Scalar::Bf16) {
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
        if self.module.rolled {
            self.op(".pragma \"nounroll\"");
        }
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
        Scalar::F16 | Scalar::Bf16 => "b16",
        Scalar::U32 | Scalar::Bool => "u32",
    }
}

/// The type of an arithmetic instruction.
pub(super) fn arithmetic(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::F32 => "f32",
        Scalar::I32 => "s32",
        Scalar::F16 => "f16",
        Scalar::Bf16 => "bf16",
        Scalar::U32 => "u32",
        Scalar::Bool => "pred",
    }
}

pub(super) fn add_name(scalar: Scalar) -> String {
    let rounding = if scalar.is_float() { "rn." } else { "" };
    format!("add.{rounding}{}", arithmetic(scalar))
}
