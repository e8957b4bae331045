//! The rules every module keeps; run after construction and after each optimisation.
//!
//! All violations are collected. Types, scopes, access, uniform barriers, loop steps, constants and the limits of a
//! target are checked; of indices only the constant ones into arrays of constant length.

use std::collections::{BTreeMap, BTreeSet};

use super::arena::Handle;
use super::error::{Error, Rule, Violation};
use super::expr::{ArrayRef, BinaryOp, Builtin, Expr, Literal, TernaryOp};
use super::module::{Access, Local, LocalKind, Module};
use super::names;
use super::stmt::{Barrier, Block, Stmt, TileOp};
use super::types::{Scalar, Type};
use super::typing;
use super::uniformity::Uniformity;
use super::warpgroup::{WARPGROUP, WarpgroupOp};
use crate::target::Capabilities;

/// Checks every rule of the kernel IR against what `target` can do.
pub fn verify(module: &Module, target: &Capabilities) -> Result<(), Error> {
    let mut verifier = Verifier {
        module,
        violations: Vec::new(),
        types: Vec::new(),
        scope: BTreeSet::new(),
        declared: BTreeSet::new(),
        uniformity: None,
        warpgroups: None,
        joint: true,
    };
    verifier.handles();
    if verifier.violations.is_empty() {
        verifier.declarations();
        verifier.limits(target);
        verifier.expressions();
        verifier.uniformity = Some(Uniformity::of(module));
        if uses_warpgroups(&module.body) {
            verifier.warpgroups = Some(Uniformity::of_warpgroups(module));
        }
        verifier.launch_barrier();
        verifier.block(&module.body, true);
    }
    if verifier.violations.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid { kernel: module.name.clone(), violations: verifier.violations })
    }
}

/// The type of every expression, in arena order; `None` where it has none.
pub fn expr_types(module: &Module) -> Vec<Option<Type>> {
    let mut types: Vec<Option<Type>> = Vec::with_capacity(module.exprs.len());
    for (_, expr) in module.exprs.iter() {
        let known = |h: Handle<Expr>| types.get(h.index()).copied().flatten();
        let ty = if expr.operands().iter().all(|h| known(*h).is_some()) {
            typing::infer(module, expr, |h| known(h).unwrap_or(Type::U32)).ok()
        } else {
            None
        };
        types.push(ty);
    }
    types
}

pub(super) struct Verifier<'m> {
    pub(super) module: &'m Module,
    violations: Vec<Violation>,
    types: Vec<Option<Type>>,
    scope: BTreeSet<Handle<Local>>,
    declared: BTreeSet<Handle<Local>>,
    uniformity: Option<Uniformity>,
    /// The same among the invocations of each warpgroup.
    warpgroups: Option<Uniformity>,
    /// Whether all invocations of a warpgroup arrive together.
    joint: bool,
}

impl<'m> Verifier<'m> {
    pub(super) fn fault(&mut self, rule: Rule, message: impl Into<String>) {
        self.violations.push(Violation { rule, message: message.into() });
    }

    /// Every handle is in range and every operand precedes its user, so that the rest may index freely.
    fn handles(&mut self) {
        let module = self.module;
        let array_ok = |array: ArrayRef| match array {
            ArrayRef::Buffer(h) => module.buffers.get(h).is_some(),
            ArrayRef::Workgroup(h) => module.workgroup.get(h).is_some(),
            ArrayRef::Private(h) => module.private.get(h).is_some(),
        };
        for (h, expr) in module.exprs.iter() {
            let own = match expr {
                Expr::Local(local) => module.locals.get(*local).is_some(),
                Expr::Load { array, .. } => array_ok(*array),
                _ => true,
            };
            if !own || expr.operands().iter().any(|o| *o >= h) {
                self.fault(Rule::Scope, format!("expression {h:?} refers to nothing"));
            }
        }
        let mut blocks: Vec<&Block> = vec![&module.body];
        while let Some(block) = blocks.pop() {
            for stmt in block {
                let array = match stmt {
                    Stmt::Store { array, .. } | Stmt::UniformLoad { array, .. } => Some(*array),
                    Stmt::Tile(TileOp::Copy { from, .. }) => Some(ArrayRef::Buffer(*from)),
                    Stmt::Tile(TileOp::Load { array, .. }) => Some(ArrayRef::Workgroup(*array)),
                    _ => None,
                };
                let second = match stmt {
                    Stmt::Tile(TileOp::Copy { to, .. }) => Some(ArrayRef::Workgroup(*to)),
                    _ => None,
                };
                let (places, sums, matrix) = match stmt {
                    Stmt::Warpgroup(op) => {
                        let matrix = if let WarpgroupOp::Bring { from, .. } = op { Some(*from) } else { None };
                        (op.places(), op.sums(), matrix)
                    }
                    _ => (Vec::new(), [].as_slice(), None),
                };
                let target = match stmt {
                    Stmt::Assign { local, .. } | Stmt::Tile(TileOp::Multiply { sum: local, .. }) => Some(*local),
                    _ => stmt.declares(),
                };
                let ok = stmt.exprs().iter().all(|e| module.exprs.get(*e).is_some())
                    && array.is_none_or(array_ok)
                    && second.is_none_or(array_ok)
                    && target.is_none_or(|l| module.locals.get(l).is_some())
                    && places.iter().all(|p| module.workgroup.get(p.array).is_some())
                    && sums.iter().all(|l| module.locals.get(*l).is_some())
                    && matrix.is_none_or(|b| module.buffers.get(b).is_some());
                if !ok {
                    self.fault(Rule::Scope, "statement refers to nothing");
                }
                blocks.extend(stmt.blocks());
            }
        }
    }

    fn declarations(&mut self) {
        let module = self.module;
        let mut seen = BTreeSet::new();
        let arrays = module.workgroup.values().chain(module.private.values());
        let names = module
            .buffers
            .values()
            .map(|b| &b.name)
            .chain(module.uniforms.values().map(|u| &u.name))
            .chain(arrays.clone().map(|a| &a.name))
            .chain(module.locals.values().map(|l| &l.name));
        for name in names {
            if !names::is_identifier(name) {
                self.fault(Rule::Name, format!("`{name}` is no identifier"));
            }
            if !seen.insert(name) {
                self.fault(Rule::Name, format!("`{name}` is declared twice"));
            }
        }
        if !names::is_identifier(&module.name) {
            self.fault(Rule::Name, format!("kernel name `{}` is no identifier", module.name));
        }
        let mut bindings: BTreeMap<u32, &str> = BTreeMap::new();
        let bound = module
            .buffers
            .values()
            .map(|b| (b.binding, &b.name))
            .chain(module.uniforms.values().map(|u| (u.binding, &u.name)));
        for (binding, name) in bound {
            if let Some(other) = bindings.insert(binding, name) {
                self.fault(Rule::Name, format!("`{other}` and `{name}` share binding {binding}"));
            }
        }
        for buffer in module.buffers.values().filter(|b| !b.elem.is_storable()) {
            self.fault(Rule::Type, format!("buffer `{}` of {}", buffer.name, buffer.elem));
        }
        for buffer in
            module.buffers.values().filter(|b| matches!(b.access, Access::Texels(_)) && b.elem != Type::VEC4_U32)
        {
            self.fault(Rule::Type, format!("texture `{}` of {}", buffer.name, buffer.elem));
        }
        self.tile_maps();
        for array in arrays {
            if !array.elem.is_storable() || array.len == 0 {
                self.fault(Rule::Type, format!("array `{}` of {} {}", array.name, array.len, array.elem));
            }
        }
        for block in module.uniforms.values() {
            let mut members = BTreeSet::new();
            if block.fields.is_empty() {
                self.fault(Rule::Type, format!("uniform block `{}` is empty", block.name));
            }
            for field in &block.fields {
                if !names::is_identifier(&field.name) || !members.insert(&field.name) {
                    self.fault(Rule::Name, format!("member `{}` of `{}`", field.name, block.name));
                }
                if !matches!(field.scalar, Scalar::U32 | Scalar::I32 | Scalar::F32) {
                    self.fault(Rule::Type, format!("member `{}` is {}", field.name, field.scalar.name()));
                }
            }
        }
    }

    fn limits(&mut self, target: &Capabilities) {
        let module = self.module;
        let checks = [
            ("storage buffers", module.buffers.len() as u64, u64::from(target.limit_storage_buffers)),
            ("uniform buffers", module.uniforms.len() as u64, u64::from(target.limit_uniform_buffers)),
            ("bytes of workgroup memory", module.workgroup_bytes(), u64::from(target.limit_workgroup_bytes)),
            ("invocations", module.invocations(), u64::from(target.limit_invocations)),
            ("invocations along z", u64::from(module.workgroup_size[2]), 64),
        ];
        for (what, used, limit) in checks {
            if used > limit {
                self.fault(Rule::Limit, format!("{used} {what}, {limit} allowed"));
            }
        }
        if module.workgroup_size.contains(&0) {
            self.fault(Rule::Limit, "workgroup size 0");
        }
        if !target.has_f16 && uses(module, Scalar::F16) {
            self.fault(Rule::Limit, "f16 on a target without it");
        }
        if !target.has_matrix && uses(module, Scalar::Bf16) {
            self.fault(Rule::Limit, "bf16 on a target without it");
        }
        if !target.has_matrix && uses_tiles(&module.body) {
            self.fault(Rule::Limit, "tiles of matrices on a target without matrix units");
        }
        let tiled = module.buffers.values().any(|b| matches!(b.access, Access::Tiles(_)));
        if !target.has_warpgroups() && (tiled || uses_warpgroups(&module.body)) {
            self.fault(Rule::Limit, "work of warpgroups on a target without it");
        }
        if uses_warpgroups(&module.body) && !module.invocations().is_multiple_of(u64::from(WARPGROUP)) {
            self.fault(Rule::Limit, format!("{} invocations are no whole warpgroups", module.invocations()));
        }
        if target.subgroup_size.is_none() && uses_subgroups(module) {
            self.fault(Rule::Limit, "subgroup operation on a target without a fixed subgroup size");
        }
    }

    fn expressions(&mut self) {
        let module = self.module;
        self.types = expr_types(module);
        for (h, expr) in module.exprs.iter() {
            let typed = |o: &Handle<Expr>| self.types[o.index()].is_some();
            if self.types[h.index()].is_none() && expr.operands().iter().all(typed) {
                let of = |o: Handle<Expr>| self.types[o.index()].unwrap_or(Type::U32);
                let message = typing::infer(module, expr, of).err().unwrap_or_default();
                self.fault(Rule::Type, message);
            }
            match expr {
                Expr::Load { array, index } => {
                    self.in_bounds(*array, *index);
                    if let ArrayRef::Buffer(h) = array
                        && matches!(module.buffers[*h].access, Access::Tiles(_))
                    {
                        self.fault(
                            Rule::Access,
                            format!("load from `{}`, of which only tiles are brought", module.buffers[*h].name),
                        );
                    }
                }
                Expr::Literal(l) if !l.is_finite() => self.fault(Rule::Constant, "constant is not finite"),
                Expr::Binary(BinaryOp::Div | BinaryOp::Rem, _, b) if is_integer_zero(module, *b) => {
                    self.fault(Rule::Constant, "integer division by zero");
                }
                Expr::Binary(BinaryOp::Shl | BinaryOp::Shr, _, b) => {
                    if let Expr::Literal(Literal::U32(32..)) = module.exprs[*b] {
                        self.fault(Rule::Constant, "shift by 32 or more");
                    }
                }
                Expr::Ternary(TernaryOp::Clamp, _, low, high) if is_reversed(module, *low, *high) => {
                    self.fault(Rule::Constant, "clamp bounds are reversed");
                }
                _ => {}
            }
        }
    }

    /// Checks statements; `flow` says whether all invocations of the workgroup arrive together.
    fn block(&mut self, block: &Block, flow: bool) {
        let outer = self.scope.clone();
        for stmt in block {
            self.stmt(stmt, flow);
        }
        self.scope = outer;
    }

    fn stmt(&mut self, stmt: &Stmt, flow: bool) {
        let module = self.module;
        for expr in stmt.exprs() {
            self.in_scope(expr);
        }
        match stmt {
            Stmt::Comment(text) => {
                if text.contains(|c: char| c.is_control()) {
                    self.fault(Rule::Name, "comment of more than one line");
                }
            }
            Stmt::Let { local, value } => self.declare(*local, LocalKind::Let, Some(*value)),
            Stmt::Var { local, init } => self.declare(*local, LocalKind::Var, Some(*init)),
            Stmt::Assign { local, value } => {
                let name = &module.locals[*local].name;
                if module.locals[*local].kind != LocalKind::Var {
                    self.fault(Rule::Access, format!("`{name}` is assigned but is no variable"));
                }
                if !self.scope.contains(local) {
                    self.fault(Rule::Scope, format!("`{name}` is assigned outside its scope"));
                }
                self.expect(*value, module.locals[*local].ty, name);
            }
            Stmt::Store { array, index, value } => {
                let name = module.array_name(*array);
                if let ArrayRef::Buffer(h) = array
                    && module.buffers[*h].access != Access::ReadWrite
                {
                    self.fault(Rule::Access, format!("store to read-only buffer `{name}`"));
                }
                self.expect(*index, Type::U32, name);
                self.expect(*value, module.elem(*array), name);
                self.in_bounds(*array, *index);
            }
            Stmt::For { local, start, end, step, body, .. } => self.loop_(*local, [*start, *end, *step], body, flow),
            Stmt::If { cond, then, otherwise } => {
                self.expect(*cond, Type::BOOL, "condition");
                let uniform = flow && self.is_uniform(*cond);
                let outer = self.joint;
                self.joint = outer && self.warpgroups.as_ref().is_none_or(|u| u.is_uniform(module, *cond));
                self.block(then, uniform);
                self.block(otherwise, uniform);
                self.joint = outer;
            }
            Stmt::Barrier(Barrier::Subgroup) => self.in_subgroups("barrier of a subgroup", flow),
            Stmt::Barrier(_) => self.together("barrier", flow),
            Stmt::Collective { local, op, value } => {
                self.in_subgroups(op.name(), flow);
                if self.types[value.index()].is_some_and(|t| t.scalar == Scalar::Bool) {
                    self.fault(Rule::Type, format!("{} of bool", op.name()));
                }
                self.declare(*local, LocalKind::Let, Some(*value));
            }
            Stmt::Tile(op) => self.tile(op, flow),
            Stmt::Warpgroup(op) => self.warpgroup(op),
            Stmt::UniformLoad { local, array, index } => {
                let name = module.array_name(*array);
                self.together("uniform load", flow);
                self.in_bounds(*array, *index);
                self.expect(*index, Type::U32, name);
                if !matches!(array, ArrayRef::Workgroup(_)) {
                    self.fault(Rule::Access, format!("uniform load from `{name}`, which is not workgroup memory"));
                }
                if !self.is_uniform(*index) {
                    self.fault(Rule::Uniformity, format!("uniform load from `{name}` at a divergent index"));
                }
                if module.locals[*local].ty != module.elem(*array) {
                    self.fault(Rule::Type, format!("`{}` is not of the element type", module.locals[*local].name));
                }
                self.declare(*local, LocalKind::Let, None);
            }
        }
    }

    fn tile(&mut self, op: &TileOp, flow: bool) {
        let module = self.module;
        let eight = |elem: Type| elem == Type::VEC4_U32;
        match op {
            TileOp::Copy { to, to_index, from, from_index, active } => {
                self.expect(*to_index, Type::U32, "copy");
                self.expect(*from_index, Type::U32, "copy");
                self.expect(*active, Type::BOOL, "copy");
                self.in_bounds(ArrayRef::Workgroup(*to), *to_index);
                if !eight(module.workgroup[*to].elem) || !eight(module.buffers[*from].elem) {
                    self.fault(Rule::Type, "copy of anything but vec4<u32>");
                }
                if !matches!(module.buffers[*from].access, Access::ReadOnly | Access::Constant) {
                    self.fault(Rule::Access, format!("copy from `{}`, which is written", module.buffers[*from].name));
                }
            }
            TileOp::Commit | TileOp::Wait(_) => {}
            TileOp::Load { local, array, index } => {
                self.together("matrix load", flow);
                self.expect(*index, Type::U32, "matrix load");
                self.in_bounds(ArrayRef::Workgroup(*array), *index);
                if !eight(module.workgroup[*array].elem) || module.locals[*local].ty != Type::VEC4_U32 {
                    self.fault(Rule::Type, "matrix load of anything but vec4<u32>");
                }
                self.declare(*local, LocalKind::Let, None);
            }
            TileOp::Multiply { sum, a, b, .. } => {
                self.together("matrix product", flow);
                self.expect(*a, Type::VEC4_U32, "matrix product");
                self.expect(*b, Type::VEC2_U32, "matrix product");
                let Local { name, ty, kind } = &module.locals[*sum];
                if *kind != LocalKind::Var || !self.scope.contains(sum) {
                    self.fault(Rule::Access, format!("matrix product into `{name}`, which is no variable here"));
                }
                if *ty != Type::VEC4_F32 {
                    self.fault(Rule::Type, format!("matrix product into `{name}`, which is {ty}"));
                }
            }
        }
    }

    fn loop_(&mut self, local: Handle<Local>, bounds: [Handle<Expr>; 3], body: &Block, flow: bool) {
        let module = self.module;
        let Local { name, ty, .. } = &module.locals[local];
        if *ty != Type::U32 && *ty != Type::I32 {
            self.fault(Rule::Type, format!("loop variable `{name}` is {ty}"));
        }
        for bound in bounds {
            self.expect(bound, *ty, name);
        }
        if !is_positive(module, bounds[2]) {
            self.fault(Rule::LoopStep, format!("step of loop `{name}` is not known to be positive"));
        }
        let uniform = self.uniformity.as_ref().is_some_and(|u| u.loop_flow(module, flow, bounds));
        let (outer, joint) = (self.scope.clone(), self.joint);
        self.joint = self.warpgroups.as_ref().is_none_or(|u| u.loop_flow(module, joint, bounds));
        self.declare(local, LocalKind::Loop, None);
        self.block(body, uniform);
        (self.scope, self.joint) = (outer, joint);
    }

    fn declare(&mut self, local: Handle<Local>, kind: LocalKind, value: Option<Handle<Expr>>) {
        let module = self.module;
        let Local { name, ty, kind: declared } = &module.locals[local];
        if *declared != kind {
            self.fault(Rule::Access, format!("`{name}` is declared as {kind:?} but is {declared:?}"));
        }
        if let Some(value) = value {
            self.expect(value, *ty, name);
        }
        if !self.declared.insert(local) {
            self.fault(Rule::Scope, format!("`{name}` is defined twice"));
        }
        self.scope.insert(local);
    }

    fn in_scope(&mut self, expr: Handle<Expr>) {
        let module = self.module;
        if let Expr::Local(local) = &module.exprs[expr]
            && !self.scope.contains(local)
        {
            let name = &module.locals[*local].name;
            self.fault(Rule::Scope, format!("`{name}` is used outside its scope"));
        }
        for operand in module.exprs[expr].operands() {
            self.in_scope(operand);
        }
    }

    pub(super) fn expect(&mut self, expr: Handle<Expr>, wanted: Type, what: &str) {
        if let Some(ty) = self.types[expr.index()]
            && ty != wanted
        {
            self.fault(Rule::Type, format!("`{what}` gets {ty}, not {wanted}"));
        }
    }

    pub(super) fn in_bounds(&mut self, array: ArrayRef, index: Handle<Expr>) {
        let module = self.module;
        let len = match array {
            ArrayRef::Buffer(_) => return,
            ArrayRef::Workgroup(h) => module.workgroup[h].len,
            ArrayRef::Private(h) => module.private[h].len,
        };
        if let Expr::Literal(Literal::U32(at)) = module.exprs[index]
            && at >= len
        {
            let name = module.array_name(array);
            self.fault(Rule::Bounds, format!("index {at} into `{name}` of {len}"));
        }
    }

    /// What waits for the launch before does so once, and touches nothing that a kernel writes in front of it.
    fn launch_barrier(&mut self) {
        let module = self.module;
        let waits = |s: &Stmt| matches!(s, Stmt::Barrier(Barrier::Launch));
        let mut nested: Vec<&Block> = module.body.iter().flat_map(Stmt::blocks).collect();
        while let Some(block) = nested.pop() {
            if block.iter().any(waits) {
                self.fault(Rule::Uniformity, "wait for the launch before in a nested block");
            }
            nested.extend(block.iter().flat_map(Stmt::blocks));
        }
        let Some(at) = module.body.iter().position(waits) else { return };
        let (early, late) = module.body.split_at(at);
        if late.iter().filter(|s| waits(s)).count() > 1 {
            self.fault(Rule::Uniformity, "two waits for the launch before");
        }
        let mut open: Vec<Handle<Expr>> = Vec::new();
        for stmt in early {
            if !matches!(stmt, Stmt::Comment(_) | Stmt::Let { .. } | Stmt::Var { .. }) {
                self.fault(Rule::Uniformity, "more than values in front of the wait for the launch before");
            }
            open.extend(stmt.exprs());
        }
        while let Some(e) = open.pop() {
            let expr = &module.exprs[e];
            if let Expr::Load { array: ArrayRef::Buffer(h), .. } = expr
                && matches!(module.buffers[*h].access, Access::ReadOnly | Access::ReadWrite)
            {
                self.fault(Rule::Uniformity, format!("`{}` read in front of the wait", module.buffers[*h].name));
            }
            open.extend(expr.operands());
        }
    }

    fn together(&mut self, what: &str, flow: bool) {
        if !flow {
            self.fault(Rule::Uniformity, format!("{what} in divergent control flow"));
        }
    }

    /// What the invocations of a subgroup do together: in kernels of warpgroups, which may part, as those of a warpgroup.
    fn in_subgroups(&mut self, what: &str, flow: bool) {
        let joint = if self.warpgroups.is_some() { self.joint } else { flow };
        self.together(what, joint);
    }

    /// The same among the invocations of a warpgroup.
    pub(super) fn jointly(&mut self, what: &str) {
        self.together(what, self.joint);
    }

    pub(super) fn is_in_scope(&self, local: Handle<Local>) -> bool {
        self.scope.contains(&local)
    }

    fn is_uniform(&self, expr: Handle<Expr>) -> bool {
        self.uniformity.as_ref().is_some_and(|u| u.is_uniform(self.module, expr))
    }
}

fn is_integer_zero(module: &Module, expr: Handle<Expr>) -> bool {
    match &module.exprs[expr] {
        Expr::Literal(Literal::U32(0) | Literal::I32(0)) => true,
        Expr::Splat { value, .. } => is_integer_zero(module, *value),
        _ => false,
    }
}

fn is_reversed(module: &Module, low: Handle<Expr>, high: Handle<Expr>) -> bool {
    match (&module.exprs[low], &module.exprs[high]) {
        (Expr::Literal(Literal::F32(a)), Expr::Literal(Literal::F32(b))) => f32::from_bits(*a) > f32::from_bits(*b),
        (Expr::Literal(Literal::U32(a)), Expr::Literal(Literal::U32(b))) => a > b,
        (Expr::Literal(Literal::I32(a)), Expr::Literal(Literal::I32(b))) => a > b,
        _ => false,
    }
}

/// Positive by construction: a positive constant, the size of the grid or subgroup, a product or maximum of such.
fn is_positive(module: &Module, expr: Handle<Expr>) -> bool {
    match &module.exprs[expr] {
        Expr::Literal(Literal::U32(v)) => *v > 0,
        Expr::Literal(Literal::I32(v)) => *v > 0,
        Expr::Builtin(Builtin::NumWorkgroups(_) | Builtin::SubgroupSize) => true,
        Expr::Binary(BinaryOp::Mul, a, b) => is_positive(module, *a) && is_positive(module, *b),
        Expr::Binary(BinaryOp::Max, a, b) => is_positive(module, *a) || is_positive(module, *b),
        Expr::Local(local) => bound_to(&module.body, *local).is_some_and(|value| is_positive(module, value)),
        _ => false,
    }
}

/// The value of a `let`.
fn bound_to(block: &Block, local: Handle<Local>) -> Option<Handle<Expr>> {
    block.iter().find_map(|stmt| match stmt {
        Stmt::Let { local: l, value } if *l == local => Some(*value),
        _ => stmt.blocks().into_iter().find_map(|inner| bound_to(inner, local)),
    })
}

/// Whether any value or memory of the module is of that type.
pub(crate) fn uses(module: &Module, scalar: Scalar) -> bool {
    let is = |ty: Type| ty.scalar == scalar;
    module.buffers.values().any(|b| is(b.elem))
        || module.workgroup.values().chain(module.private.values()).any(|a| is(a.elem))
        || module.locals.values().any(|l| is(l.ty))
        || module.exprs.values().any(|e| matches!(e, Expr::Cast { to, .. } if *to == scalar))
}

/// Whether the module works across subgroups.
pub(crate) fn uses_subgroups(module: &Module) -> bool {
    fn block(stmts: &Block) -> bool {
        let warp = |s: &Stmt| match s {
            Stmt::Collective { .. } => true,
            Stmt::Tile(op) => matches!(op, TileOp::Load { .. } | TileOp::Multiply { .. }),
            Stmt::Warpgroup(_) | Stmt::Barrier(Barrier::Subgroup) => true,
            _ => false,
        };
        stmts.iter().any(|s| warp(s) || s.blocks().into_iter().any(block))
    }
    let builtin = |e: &Expr| matches!(e, Expr::Builtin(Builtin::SubgroupLane | Builtin::SubgroupSize));
    block(&module.body) || module.exprs.values().any(builtin)
}

/// Whether a block works on tiles of matrices.
pub(crate) fn uses_tiles(block: &Block) -> bool {
    let tiles = |s: &Stmt| matches!(s, Stmt::Tile(_) | Stmt::Barrier(Barrier::Subgroup));
    block.iter().any(|s| tiles(s) || s.blocks().into_iter().any(uses_tiles))
}

/// Whether warpgroups work apart from each other.
pub(crate) fn uses_warpgroups(block: &Block) -> bool {
    block.iter().any(|s| matches!(s, Stmt::Warpgroup(_)) || s.blocks().into_iter().any(uses_warpgroups))
}
