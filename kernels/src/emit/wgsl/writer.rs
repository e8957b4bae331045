//! The module as text: header, declarations, helper functions, entry point.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::expr::{ExprWriter, float_type};
use super::names::{self, Names};
use super::{Consumer, ENTRY_POINT, Error, Options};
use crate::emit::polynomials::{ERF_FAR, ERF_NEAR, ERF_SPLIT};
use crate::ir::verify::{expr_types, uses, uses_subgroups};
use crate::ir::{
    Access, ArrayRef, Barrier, BinaryOp, Block, Builtin, Collective, Expr, Handle, Local, Module, Stmt, Texture,
    UnaryOp,
};

pub(super) fn write(module: &Module, options: &Options) -> Result<String, Error> {
    let names = Names::of(module);
    let types = expr_types(module);
    let exprs = ExprWriter { module, names: &names, options, types: &types };
    let mut writer = Writer { module, names: &names, exprs, out: String::new(), depth: 0 };
    writer.header(options);
    writer.declarations();
    writer.helpers()?;
    writer.entry_point()?;
    Ok(writer.out)
}

struct Writer<'m> {
    module: &'m Module,
    names: &'m Names,
    exprs: ExprWriter<'m>,
    out: String,
    depth: usize,
}

impl Writer<'_> {
    fn line(&mut self, text: &str) {
        let width = if text.is_empty() { 0 } else { self.depth * 4 };
        let _ = writeln!(self.out, "{:width$}{text}", "");
    }

    fn comment(&mut self, text: &str) {
        self.line(format!("// {text}").trim_end());
    }

    fn header(&mut self, options: &Options) {
        let module = self.module;
        self.comment(&module.name);
        for doc in &module.doc {
            self.comment(doc);
        }
        if uses(module, crate::ir::Scalar::F16) {
            self.line("enable f16;");
        }
        if options.consumer == Consumer::Browser && uses_subgroups(module) {
            self.line("enable subgroups;");
        }
        self.line("");
    }

    fn declarations(&mut self) {
        let (module, names) = (self.module, self.names);
        for (h, block) in module.uniforms.iter() {
            self.line(&format!("struct {} {{", names.struct_of(h)));
            for field in &block.fields {
                self.line(&format!("    {}: {},", names::member(&field.name), field.scalar.name()));
            }
            let slots = block.size_bytes() as usize / 4;
            for i in block.fields.len()..slots {
                self.line(&format!("    pad_{i}_: u32,"));
            }
            self.line("}");
            self.line("");
        }
        for (h, buffer) in module.buffers.iter() {
            let name = names.array(ArrayRef::Buffer(h));
            let declared = match buffer.access {
                Access::ReadOnly | Access::Constant => {
                    format!("var<storage, read> {name}: array<{}>", buffer.elem)
                }
                Access::ReadWrite => format!("var<storage, read_write> {name}: array<{}>", buffer.elem),
                Access::Texels(Texture::Storage) => format!("var {name}: texture_storage_2d<rgba32uint, read>"),
                Access::Texels(Texture::Sampled) => format!("var {name}: texture_2d<u32>"),
                Access::Tiles(_) => continue,
            };
            self.line(&format!("@group(0) @binding({}) {declared};", buffer.binding));
        }
        for (h, block) in module.uniforms.iter() {
            let (name, ty) = (names.uniform(h), names.struct_of(h));
            self.line(&format!("@group(0) @binding({}) var<uniform> {name}: {ty};", block.binding));
        }
        if !module.workgroup.is_empty() {
            self.line("");
        }
        for (h, array) in module.workgroup.iter() {
            let name = names.array(ArrayRef::Workgroup(h));
            self.line(&format!("var<workgroup> {name}: array<{}, {}>;", array.elem, array.len));
        }
        self.line("");
    }

    /// Functions that WGSL lacks, for the widths in use.
    fn helpers(&mut self) -> Result<(), Error> {
        let mut widths = BTreeSet::new();
        for expr in self.module.exprs.values() {
            if let Expr::Unary(UnaryOp::Erf, value) = expr {
                widths.insert(self.exprs.ty(*value)?.lanes());
            }
        }
        for lanes in widths {
            self.erf(lanes);
        }
        Ok(())
    }

    /// Two minimax polynomials, below and above 0.928; the second is in the exponent of `1 - e^p`.
    fn erf(&mut self, lanes: u32) {
        let ty = float_type(lanes);
        let c = |text: &str| if lanes == 1 { text.to_owned() } else { format!("{ty}({text})") };
        self.line(&format!("fn erf_{lanes}(x: {ty}) -> {ty} {{"));
        self.depth = 1;
        self.line(&format!("let t = min(abs(x), {});", c("4.0")));
        self.line("let s = t * t;");
        self.line(&format!("var p = {};", c(ERF_NEAR[0])));
        for k in &ERF_NEAR[1..] {
            self.line(&format!("p = fma(p, s, {});", c(k)));
        }
        self.line(&format!("var q = fma({}, t, {});", c(ERF_FAR[0]), c(ERF_FAR[1])));
        self.line(&format!("let r = fma({}, t, {});", c(ERF_FAR[2]), c(ERF_FAR[3])));
        self.line("q = fma(q, s, r);");
        for k in &ERF_FAR[4..] {
            self.line(&format!("q = fma(q, t, {});", c(k)));
        }
        self.line("q = fma(q, t, -t);");
        self.line(&format!("let far = select({0}, -{0}, x < {1}) * (1.0 - exp(q));", c("1.0"), c("0.0")));
        self.line(&format!("return select(fma(p, x, x), far, t > {});", c(ERF_SPLIT)));
        self.depth = 0;
        self.line("}");
        self.line("");
    }

    fn entry_point(&mut self) -> Result<(), Error> {
        let (module, names) = (self.module, self.names);
        let [x, y, z] = module.workgroup_size;
        self.line(&format!("@compute @workgroup_size({x}, {y}, {z})"));
        let params: Vec<&str> = PARAMS
            .iter()
            .filter(|(used, _)| module.exprs.values().any(|e| matches!(e, Expr::Builtin(b) if used(b))))
            .map(|(_, text)| *text)
            .collect();
        if params.is_empty() {
            self.line(&format!("fn {ENTRY_POINT}() {{"));
        } else {
            self.line(&format!("fn {ENTRY_POINT}("));
            for param in params {
                self.line(&format!("    {param},"));
            }
            self.line(") {");
        }
        self.depth = 1;
        for (h, array) in module.private.iter() {
            let name = names.array(ArrayRef::Private(h));
            self.line(&format!("var {name}: array<{}, {}>;", array.elem, array.len));
        }
        self.block(&module.body)?;
        self.depth = 0;
        self.line("}");
        Ok(())
    }

    fn block(&mut self, block: &Block) -> Result<(), Error> {
        for stmt in block {
            self.stmt(stmt)?;
        }
        Ok(())
    }

    fn nested(&mut self, block: &Block) -> Result<(), Error> {
        self.depth += 1;
        self.block(block)?;
        self.depth -= 1;
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), Error> {
        let (module, names) = (self.module, self.names);
        match stmt {
            Stmt::Comment(text) => self.comment(text),
            Stmt::Let { local, value } => {
                let value = self.exprs.write(*value)?;
                self.line(&format!("let {} = {value};", names.local(*local)));
            }
            Stmt::Var { local, init } => {
                let init = self.exprs.write(*init)?;
                self.line(&format!("var {}: {} = {init};", names.local(*local), module.locals[*local].ty));
            }
            Stmt::Assign { local, value } => self.assign(*local, *value)?,
            Stmt::Store { array, index, value } => {
                let (index, value) = (self.exprs.write(*index)?, self.exprs.write(*value)?);
                self.line(&format!("{}[{index}] = {value};", names.array(*array)));
            }
            Stmt::Barrier(Barrier::Workgroup) => self.line("workgroupBarrier();"),
            Stmt::Barrier(Barrier::Storage) => self.line("storageBarrier();"),
            // Launches follow each other.
            Stmt::Barrier(Barrier::Launch) => {}
            Stmt::Collective { local, op, value } => {
                let value = self.exprs.write(*value)?;
                let call = match op {
                    Collective::Add => format!("subgroupAdd({value})"),
                    Collective::Max => format!("subgroupMax({value})"),
                    Collective::Min => format!("subgroupMin({value})"),
                    Collective::BroadcastFirst => format!("subgroupBroadcastFirst({value})"),
                    Collective::Broadcast(lane) => format!("subgroupBroadcast({value}, {lane}u)"),
                    Collective::ShuffleXor(mask) => format!("subgroupShuffleXor({value}, {mask}u)"),
                };
                self.line(&format!("let {} = {call};", names.local(*local)));
            }
            Stmt::Tile(_) => {
                return Err(Error::Unsupported { kernel: module.name.clone(), what: "tiles of matrices" });
            }
            Stmt::Warpgroup(_) | Stmt::Barrier(Barrier::Subgroup) => {
                return Err(Error::Unsupported { kernel: module.name.clone(), what: "work of single warps" });
            }
            Stmt::UniformLoad { local, array, index } => {
                let index = self.exprs.write(*index)?;
                let (name, array) = (names.local(*local), names.array(*array));
                self.line(&format!("let {name} = workgroupUniformLoad(&{array}[{index}]);"));
            }
            Stmt::For { local, start, end, step, body, .. } => {
                let k = names.local(*local);
                let (start, step) = (self.exprs.write(*start)?, self.exprs.write(*step)?);
                let end = self.exprs.write_comparand(*end)?;
                self.line(&format!("for (var {k} = {start}; {k} < {end}; {k} += {step}) {{"));
                self.nested(body)?;
                self.line("}");
            }
            Stmt::If { cond, then, otherwise } => {
                let cond = self.exprs.write(*cond)?;
                self.line(&format!("if ({cond}) {{"));
                self.nested(then)?;
                if !otherwise.is_empty() {
                    self.line("} else {");
                    self.nested(otherwise)?;
                }
                self.line("}");
            }
        }
        Ok(())
    }

    /// `x = x + y` is written `x += y`.
    fn assign(&mut self, local: Handle<Local>, value: Handle<Expr>) -> Result<(), Error> {
        let (module, name) = (self.module, self.names.local(local));
        if let Expr::Binary(op, a, b) = &module.exprs[value] {
            let sign = match op {
                BinaryOp::Add => Some("+="),
                BinaryOp::Sub => Some("-="),
                BinaryOp::Mul => Some("*="),
                _ => None,
            };
            if let (Some(sign), Expr::Local(own)) = (sign, &module.exprs[*a])
                && *own == local
            {
                let b = self.exprs.write(*b)?;
                self.line(&format!("{name} {sign} {b};"));
                return Ok(());
            }
        }
        let value = self.exprs.write(value)?;
        self.line(&format!("{name} = {value};"));
        Ok(())
    }
}

/// Entry point parameters, each with the test that says whether it is needed.
const PARAMS: [(fn(&Builtin) -> bool, &str); 7] = [
    (|b| matches!(b, Builtin::WorkgroupId(_)), "@builtin(workgroup_id) group_id: vec3<u32>"),
    (|b| matches!(b, Builtin::LocalId(_)), "@builtin(local_invocation_id) local_id: vec3<u32>"),
    (|b| matches!(b, Builtin::GlobalId(_)), "@builtin(global_invocation_id) global_id: vec3<u32>"),
    (|b| matches!(b, Builtin::LocalIndex), "@builtin(local_invocation_index) local_index: u32"),
    (|b| matches!(b, Builtin::NumWorkgroups(_)), "@builtin(num_workgroups) num_groups: vec3<u32>"),
    (|b| matches!(b, Builtin::SubgroupLane), "@builtin(subgroup_invocation_id) subgroup_lane: u32"),
    (|b| matches!(b, Builtin::SubgroupSize), "@builtin(subgroup_size) subgroup_width: u32"),
];
