//! What stands in front of a kernel's body: header, parameters, memory, and what is the same for the whole kernel.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::asm::Kind;
use super::names::Names;
use super::writer::{Overlap, Writer, Written, displaced, mem_type};
use super::{ENTRY_POINT, Options, Parameter, dynamic_shared_bytes, parameters};
use crate::ir::verify::uses_warpgroups;
use crate::ir::{Access, Array, ArrayRef, Axis, Barrier, Builtin, Expr, Handle, Module, Scalar, Stmt};

/// Lowest version of the language that has all that is used, and its target; then those of kernels that overlap, and of
/// those whose warpgroups work apart.
const PLAIN: [&str; 2] = ["7.0", "sm_80"];
const OVERLAPPING: [&str; 2] = ["7.8", "sm_90"];
const WARPGROUPS: [&str; 2] = ["8.0", "sm_90a"];
/// Threads that must fit on a multiprocessor: 128 registers each. Left alone, the assembler spills to fit more.
const RESIDENT: u64 = 512;

/// Whether a kernel may start while the launch before it runs.
pub(super) fn waits(module: &Module) -> bool {
    module.body.iter().any(|s| matches!(s, Stmt::Barrier(Barrier::Launch)))
}

pub(super) fn header(module: &Module, options: &Options) -> String {
    let mut out = String::new();
    for line in [&module.name].into_iter().chain(&options.header).chain(&module.doc) {
        let _ = writeln!(out, "{}", format!("// {line}").trim_end());
    }
    let [version, target] = match () {
        () if uses_warpgroups(&module.body) => WARPGROUPS,
        () if waits(module) => OVERLAPPING,
        () => PLAIN,
    };
    let _ = writeln!(out, "\n.version {version}\n.target {target}\n.address_size 64\n");
    if dynamic_shared_bytes(module) > 0 {
        let align = alignment(module).max(128);
        let _ = writeln!(out, ".extern .shared .align {align} .b8 workgroup_memory[];\n");
    }
    out
}

pub(super) fn signature(module: &Module, options: &Options, names: &Names) -> String {
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
            Parameter::Map { binding, .. } => {
                format!("    .param .align 64 .b8 {}[{}]", symbol(*binding), super::MAP_BYTES)
            }
        })
        .collect();
    let [x, y, z] = module.workgroup_size;
    let resident = module.resident.map_or(RESIDENT, u64::from);
    let groups = (resident / module.invocations().max(1)).max(1);
    let all = all.join(",\n");
    format!(".visible .entry {ENTRY_POINT}(\n{all}\n)\n.reqntid {x}, {y}, {z}\n.minnctapersm {groups}\n")
}

/// Declarations of workgroup memory and of private arrays that have no registers.
pub(super) fn memory(module: &Module, names: &Names) -> String {
    let mut out = String::new();
    let bytes = |a: &Array| u64::from(a.len) * u64::from(a.elem.size_bytes());
    let align = alignment(module);
    if dynamic_shared_bytes(module) == 0 {
        for (h, array) in module.workgroup.iter() {
            let name = names.array(ArrayRef::Workgroup(h));
            let _ = writeln!(
                out,
                "    .shared .align {align} .b8 {name}[{}]; // {} of {}",
                bytes(array),
                array.len,
                array.elem
            );
        }
    }
    for (h, array) in module.private.iter().filter(|(h, _)| !in_registers(module, *h)) {
        let name = names.array(ArrayRef::Private(h));
        let _ = writeln!(out, "    .local .align 16 .b8 {name}[{}]; // {} of {}", bytes(array), array.len, array.elem);
    }
    out
}

/// Where arrays of workgroup memory begin; tiles in the order of [`WarpgroupOp`](crate::ir::WarpgroupOp) repeat after
/// 1024 bytes.
fn alignment(module: &Module) -> u64 {
    if uses_warpgroups(&module.body) { 1024 } else { 16 }
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

impl Writer<'_> {
    /// Everything that is the same for the whole kernel: addresses, uniform members, machine values, zeroed arrays.
    pub(super) fn entry(&mut self) -> Written<()> {
        let module = self.module;
        if self.overlap == Overlap::Early {
            self.op("griddepcontrol.launch_dependents");
        }
        for (h, buffer) in module.buffers.iter() {
            let symbol = self.names.array(ArrayRef::Buffer(h)).to_owned();
            if matches!(buffer.access, Access::Tiles(_)) {
                self.map_address(&symbol);
                continue;
            }
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

    fn map_address(&mut self, symbol: &str) {
        let (address, parameter) = (format!("%{symbol}"), self.asm.reg(Kind::Address));
        self.asm.declare(Kind::Address, &address);
        self.op(format!("mov.b64 {parameter}, {symbol}"));
        self.op(format!("cvta.param.u64 {address}, {parameter}"));
    }

    fn global_address(&mut self, symbol: &str, address: &str) {
        self.asm.declare(Kind::Address, address);
        let generic = self.asm.reg(Kind::Address);
        self.op(format!("ld.param.u64 {generic}, [{symbol}]"));
        self.op(format!("cvta.to.global.u64 {address}, {generic}"));
    }

    pub(super) fn uniform_block(&mut self, h: Handle<crate::ir::UniformBlock>, by_address: bool) {
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
}

fn zero(scalar: Scalar) -> &'static str {
    if scalar == Scalar::F32 { "0f00000000" } else { "0" }
}
