//! WGSL, through naga's intermediate representation, to micro-operations.
//!
//! Vectors, structures and fixed arrays become one register a scalar. Function variables live in registers too; where
//! an index is not constant, lanes pick their register. Functions are expanded at each call. Naga lays structured control
//! flow out in the order in which lanes meet again.

mod expr;
mod math;
mod packing;
mod place;
mod stmt;
mod types;

use crate::error::Error;
use crate::launch::{Argument, Launch, Options};
use crate::op::{Inst, Op, Origin, Program, Reg, Segment, Special};
use naga::{AddressSpace, Binding, BuiltIn, Expression, Function, Handle, Module, StorageAccess};
use place::{Root, Value};
use rustc_hash::FxHashMap;

type Lowered<T> = Result<T, Error>;

/// A loop or a switch under translation: branches still to be directed at its parts.
#[derive(Default)]
struct Exits {
    breaks: Vec<usize>,
    continues: Vec<usize>,
    is_loop: bool,
}

/// A function under translation.
struct Frame<'m> {
    fun: &'m Function,
    info: &'m naga::valid::FunctionInfo,
    values: FxHashMap<Handle<Expression>, Value>,
    locals: FxHashMap<Handle<naga::LocalVariable>, Reg>,
    arguments: Vec<Value>,
    result: Vec<Reg>,
    returns: Vec<usize>,
    exits: Vec<Exits>,
}

struct Lower<'m> {
    module: &'m Module,
    info: &'m naga::valid::ModuleInfo,
    kernel: &'m str,
    lines: Vec<usize>,
    options: &'m Options,
    arguments: &'m [Argument],
    program: Program,
    constants: FxHashMap<u32, Reg>,
    globals: FxHashMap<Handle<naga::GlobalVariable>, Root>,
    line: u32,
}

/// Lowers the entry point of a launch.
pub(crate) fn lower(launch: &Launch<'_>, options: &Options) -> Lowered<Program> {
    let text = |line: u32, reason: String| Error::Text { kernel: launch.kernel.to_owned(), line, reason };
    let module = naga::front::wgsl::parse_str(launch.text).map_err(|e| {
        let line = e.location(launch.text).map_or(0, |l| l.line_number);
        text(line, e.to_string())
    })?;
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    validator.subgroup_stages(naga::valid::ShaderStages::all());
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    let info = validator.validate(&module).map_err(|e| {
        let line = e.location(launch.text).map_or(0, |l| l.line_number);
        text(line, e.emit_to_string(launch.text))
    })?;
    let compute = |e: &&naga::EntryPoint| e.stage == naga::ShaderStage::Compute;
    let mut entries = module.entry_points.iter().filter(compute);
    let entry = match launch.entry {
        Some(name) => entries.find(|e| e.name == name),
        None => entries.next().filter(|_| entries.next().is_none()),
    };
    let Some(entry) = entry else {
        let what = launch.entry.map_or_else(|| "not exactly one compute entry point".into(), |n| format!("no `{n}`"));
        return Err(text(0, what));
    };
    let index = module.entry_points.iter().position(|e| std::ptr::eq(e, entry)).unwrap_or(0);
    let starts = std::iter::once(0).chain(launch.text.match_indices('\n').map(|(i, _)| i + 1));
    let mut lower = Lower {
        module: &module,
        info: &info,
        kernel: launch.kernel,
        lines: starts.collect(),
        options,
        arguments: &launch.arguments,
        program: Program {
            workgroup: entry.workgroup_size,
            one_place_barriers: true,
            wgsl: true,
            ..Program::default()
        },
        constants: FxHashMap::default(),
        globals: FxHashMap::default(),
        line: 1,
    };
    if entry.workgroup_size_overrides.is_some() {
        return Err(lower.unsupported("a workgroup size by override"));
    }
    lower.declare_globals(info.get_entry_point(index))?;
    let arguments = lower.entry_arguments(&entry.function)?;
    lower.function(&entry.function, info.get_entry_point(index), arguments)?;
    lower.push(Op::Exit);
    Ok(lower.program)
}

impl<'m> Lower<'m> {
    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { kernel: self.kernel.to_owned(), line: self.line, what: what.into() }
    }
    fn at(&mut self, span: naga::Span) {
        if let Some(r) = span.to_range() {
            self.line = self.lines.partition_point(|s| *s <= r.start) as u32;
        }
    }
    fn push(&mut self, op: Op) -> usize {
        self.program.code.push(Inst { op, line: self.line, guard: None, ftz: false });
        self.program.code.len() - 1
    }
    fn here(&self) -> u32 {
        self.program.code.len() as u32
    }
    /// Directs a branch at the next instruction.
    fn land(&mut self, branch: usize) {
        let here = self.here();
        if let Some(Inst { op: Op::Bra { target, .. }, .. }) = self.program.code.get_mut(branch) {
            *target = here;
        }
    }
    fn registers(&mut self, n: u32) -> Reg {
        let first = self.program.registers;
        self.program.registers += n;
        first
    }
    fn constant(&mut self, value: u32) -> Reg {
        if let Some(r) = self.constants.get(&value) {
            return *r;
        }
        let r = self.registers(1);
        self.constants.insert(value, r);
        self.program.constants.push((r, value));
        r
    }

    fn declare_globals(&mut self, used: &naga::valid::FunctionInfo) -> Lowered<()> {
        for (handle, g) in self.module.global_variables.iter() {
            if used[handle].is_empty() {
                continue;
            }
            self.at(self.module.global_variables.get_span(handle));
            let name = g.name.clone().unwrap_or_default();
            let argument = |lower: &Self| match g.binding {
                Some(b) if b.group == 0 => Ok(Origin::Argument(b.binding as usize)),
                _ => Err(lower.unsupported("a binding outside group 0")),
            };
            let (origin, bytes, writable) = match g.space {
                AddressSpace::Storage { access } => (argument(self)?, 0, access.contains(StorageAccess::STORE)),
                AddressSpace::Uniform => (argument(self)?, 0, false),
                AddressSpace::Handle if self.is_texels(g.ty) => (argument(self)?, 0, false),
                AddressSpace::WorkGroup => match self.size_of(g.ty)? {
                    size if size <= 1 << 20 => (Origin::Workgroup, size, true),
                    _ => return Err(self.unsupported("a workgroup variable of more than 1 MiB")),
                },
                AddressSpace::Private => {
                    let count = self.flat_len(g.ty)?;
                    let base = self.registers(count);
                    self.globals.insert(handle, Root::Registers(base));
                    let init = match g.init {
                        Some(e) => self.constant_rows(e)?,
                        None => vec![self.constant(0); count as usize],
                    };
                    for (i, a) in init.into_iter().enumerate() {
                        self.push(Op::Mov { d: base + i as u32, a });
                    }
                    continue;
                }
                _ => return Err(self.unsupported(format!("the address space of `{name}`"))),
            };
            let segment = self.program.segments.len() as u32;
            self.program.segments.push(Segment { name, origin, bytes, writable, holes: Vec::new() });
            self.globals.insert(handle, Root::Segment(segment));
        }
        Ok(())
    }

    fn entry_arguments(&mut self, fun: &Function) -> Lowered<Vec<Value>> {
        let mut values = Vec::new();
        for a in &fun.arguments {
            let mut rows = Vec::new();
            match (&a.binding, &self.module.types[a.ty].inner) {
                (Some(b), _) => self.builtin(b, &mut rows)?,
                (None, naga::TypeInner::Struct { members, .. }) => {
                    for m in members {
                        let Some(b) = &m.binding else { return Err(self.unsupported("an argument without binding")) };
                        self.builtin(b, &mut rows)?;
                    }
                }
                _ => return Err(self.unsupported("an argument without binding")),
            }
            values.push(Value::Rows(rows));
        }
        Ok(values)
    }

    fn builtin(&mut self, b: &Binding, rows: &mut Vec<Reg>) -> Lowered<()> {
        let Binding::BuiltIn(b) = b else { return Err(self.unsupported("a user-defined input")) };
        let of = |f: fn(u8) -> Special| (0..3).map(f).collect::<Vec<_>>();
        let all = match b {
            BuiltIn::GlobalInvocationId => of(Special::Global),
            BuiltIn::LocalInvocationId => of(Special::Local),
            BuiltIn::WorkGroupId => of(Special::Group),
            BuiltIn::NumWorkGroups => of(Special::Groups),
            BuiltIn::WorkGroupSize => of(Special::GroupSize),
            BuiltIn::LocalInvocationIndex => vec![Special::LocalIndex],
            BuiltIn::SubgroupSize => vec![Special::SubgroupSize],
            BuiltIn::SubgroupInvocationId => vec![Special::SubgroupLane],
            BuiltIn::SubgroupId => vec![Special::Subgroup],
            BuiltIn::NumSubgroups => vec![Special::Subgroups],
            other => return Err(self.unsupported(format!("the input {other:?}"))),
        };
        for s in all {
            let d = self.registers(1);
            self.push(Op::Special { d, s });
            rows.push(d);
        }
        Ok(())
    }

    /// Expands a function; the registers of its result.
    fn function(
        &mut self,
        fun: &'m Function,
        info: &'m naga::valid::FunctionInfo,
        arguments: Vec<Value>,
    ) -> Lowered<Vec<Reg>> {
        let mut result = Vec::new();
        if let Some(r) = &fun.result {
            let n = self.flat_len(r.ty)?;
            let first = self.registers(n);
            result.extend(first..first + n);
        }
        let mut frame = Frame {
            fun,
            info,
            values: FxHashMap::default(),
            locals: FxHashMap::default(),
            arguments,
            result,
            returns: Vec::new(),
            exits: Vec::new(),
        };
        for (handle, local) in fun.local_variables.iter() {
            self.at(fun.local_variables.get_span(handle));
            let n = self.flat_len(local.ty)?;
            let base = self.registers(n);
            frame.locals.insert(handle, base);
            let init = match local.init {
                Some(e) => self.rows(&mut frame, e)?,
                None => vec![self.constant(0); n as usize],
            };
            for (i, a) in init.into_iter().enumerate() {
                self.push(Op::Mov { d: base + i as u32, a });
            }
        }
        self.block(&mut frame, &fun.body)?;
        for branch in std::mem::take(&mut frame.returns) {
            self.land(branch);
        }
        Ok(frame.result)
    }
}
