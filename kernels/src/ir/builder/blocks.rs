//! Names, variables, control flow and barriers.

use super::{Builder, IntoVal, Val, Var};
use crate::dtype::HalfFormat;
use crate::ir::arena::Handle;
use crate::ir::expr::{ArrayRef, Expr, Literal};
use crate::ir::module::{Local, LocalKind};
use crate::ir::stmt::{Barrier, Block, Collective, Stmt, TileOp};
use crate::ir::types::{Scalar, Type};

impl Builder {
    /// Names a value here. A constant, a parameter or a `let` keeps its own name.
    pub fn let_(&self, name: &str, value: impl IntoVal) -> Val {
        let value = value.into_val(self);
        let plain = match self.inner.borrow().module.exprs.get(value.0) {
            Some(Expr::Literal(_)) => true,
            Some(Expr::Local(local)) => self.inner.borrow().module.locals[*local].kind != LocalKind::Var,
            _ => false,
        };
        match self.type_of(value) {
            Some(ty) if !plain => {
                let local = self.new_local(name, ty, LocalKind::Let);
                self.push_stmt(Stmt::Let { local, value: value.0 });
                self.local(local)
            }
            _ => value,
        }
    }

    /// Declares a variable with its first value.
    #[track_caller]
    pub fn var(&self, name: &str, ty: Type, init: impl IntoVal) -> Var {
        let init = self.fit(init.into_val(self), ty);
        if !self.expect_type("first value", init, ty) {
            return Var(None);
        }
        let local = self.new_local(name, ty, LocalKind::Var);
        self.push_stmt(Stmt::Var { local, init: init.0 });
        Var(Some(local))
    }

    /// The content of a variable at this point.
    #[track_caller]
    pub fn get(&self, var: Var) -> Val {
        match var.0 {
            Some(local) => self.local(local),
            None => self.poison(),
        }
    }

    /// Assigns a variable.
    #[track_caller]
    pub fn set(&self, var: Var, value: impl IntoVal) {
        let Some(local) = var.0 else { return };
        let ty = self.inner.borrow().module.locals[local].ty;
        let value = self.fit(value.into_val(self), ty);
        if self.expect_type("assigned value", value, ty) {
            self.push_stmt(Stmt::Assign { local, value: value.0 });
        }
    }

    /// `var += value`
    #[track_caller]
    pub fn add_to(&self, var: Var, value: impl IntoVal) {
        let sum = self.add(var, value);
        self.set(var, sum);
    }

    /// `var = a * b + var`
    #[track_caller]
    pub fn fma_to(&self, var: Var, a: impl IntoVal, b: impl IntoVal) {
        let sum = self.fma(a, b, var);
        self.set(var, sum);
    }

    /// Runs the body where `cond` holds. A constant condition leaves no branch.
    #[track_caller]
    pub fn if_(&self, cond: impl IntoVal, then: impl FnOnce(&Builder)) {
        self.if_else(cond, then, |_| {});
    }

    /// Runs one of two bodies. A constant condition leaves no branch.
    #[track_caller]
    pub fn if_else(&self, cond: impl IntoVal, then: impl FnOnce(&Builder), otherwise: impl FnOnce(&Builder)) {
        let cond = cond.into_val(self);
        match self.literal_of(cond) {
            Some(Literal::Bool(true)) if self.type_of(cond).is_some() => return then(self),
            Some(Literal::Bool(false)) if self.type_of(cond).is_some() => return otherwise(self),
            _ => {}
        }
        let valid = self.expect_type("condition", cond, Type::BOOL);
        let then = self.block(then);
        let otherwise = self.block(otherwise);
        if valid {
            self.push_stmt(Stmt::If { cond: cond.0, then, otherwise });
        }
    }

    /// `for (name = start; name < end; name += step)`. Bounds are `u32`; constant bounds with no trip leave nothing, with
    /// one trip they leave the body alone.
    #[track_caller]
    pub fn for_(
        &self,
        name: &str,
        start: impl IntoVal,
        end: impl IntoVal,
        step: impl IntoVal,
        body: impl FnOnce(&Builder, Val),
    ) {
        let bounds = [start.into_val(self), end.into_val(self), step.into_val(self)];
        self.loop_(name, bounds, false, body);
    }

    /// As [`for_`](Builder::for_), and the emitter repeats the body in the text where the bounds are constants with few
    /// trips.
    #[track_caller]
    pub fn for_unrolled(
        &self,
        name: &str,
        start: impl IntoVal,
        end: impl IntoVal,
        step: impl IntoVal,
        body: impl FnOnce(&Builder, Val),
    ) {
        let bounds = [start.into_val(self), end.into_val(self), step.into_val(self)];
        self.loop_(name, bounds, true, body);
    }

    #[track_caller]
    fn loop_(&self, name: &str, bounds: [Val; 3], unroll: bool, body: impl FnOnce(&Builder, Val)) {
        let [start, end, step] = bounds;
        if let (Some(lo), Some(hi), Some(by)) = (self.const_u32(start), self.const_u32(end), self.const_u32(step)) {
            if by == 0 {
                return self.error(format!("loop `{name}` has step 0"));
            }
            if lo >= hi {
                return;
            }
            if u64::from(lo) + u64::from(by) >= u64::from(hi) {
                return body(self, start);
            }
        }
        let ty = match self.type_of(start) {
            Some(ty) if ty == Type::U32 || ty == Type::I32 => ty,
            Some(ty) => return self.error(format!("loop `{name}` starts at {ty}")),
            None => return,
        };
        if !self.expect_type("loop bound", end, ty) || !self.expect_type("loop step", step, ty) {
            return;
        }
        let local = self.new_local(name, ty, LocalKind::Loop);
        let index = self.local(local);
        let body = self.block(|b| body(b, index));
        self.push_stmt(Stmt::For { local, start: start.0, end: end.0, step: step.0, unroll, body });
    }

    /// Waits for the workgroup and orders its shared memory.
    pub fn barrier(&self) {
        self.push_stmt(Stmt::Barrier(Barrier::Workgroup));
    }

    /// Waits for the workgroup and orders its storage accesses.
    pub fn storage_barrier(&self) {
        self.push_stmt(Stmt::Barrier(Barrier::Storage));
    }

    /// Waits for the launch before this one; see [`Barrier::Launch`].
    pub fn launch_barrier(&self) {
        self.push_stmt(Stmt::Barrier(Barrier::Launch));
    }

    /// Reads workgroup memory at an index all invocations share, between two barriers. The result is uniform, so it may
    /// bound loops with barriers.
    #[track_caller]
    pub fn uniform_load(&self, name: &str, array: ArrayRef, index: impl IntoVal) -> Val {
        let index = index.into_val(self);
        if !self.expect_type("index", index, Type::U32) {
            return self.poison();
        }
        let local = self.new_local(name, self.array_elem(array), LocalKind::Let);
        self.push_stmt(Stmt::UniformLoad { local, array, index: index.0 });
        self.local(local)
    }

    /// An operation across the subgroup; must be reached by whole workgroups.
    #[track_caller]
    pub fn collective(&self, name: &str, op: Collective, value: impl IntoVal) -> Val {
        let value = value.into_val(self);
        let Some(ty) = self.type_of(value) else { return self.poison() };
        if ty.scalar == Scalar::Bool {
            self.error(format!("{} of {ty}", op.name()));
            return self.poison();
        }
        let local = self.new_local(name, ty, LocalKind::Let);
        self.push_stmt(Stmt::Collective { local, op, value: value.0 });
        self.local(local)
    }

    /// Starts copying an element of a read-only buffer to workgroup memory, or zeros; see [`TileOp::Copy`].
    #[track_caller]
    pub fn copy_async(
        &self,
        to: ArrayRef,
        to_index: impl IntoVal,
        from: ArrayRef,
        from_index: impl IntoVal,
        active: impl IntoVal,
    ) {
        let (to_index, from_index) = (to_index.into_val(self), from_index.into_val(self));
        let active = active.into_val(self);
        let (ArrayRef::Workgroup(to), ArrayRef::Buffer(from)) = (to, from) else {
            return self.error("copies go from a buffer to workgroup memory");
        };
        let typed = self.expect_type("index", to_index, Type::U32) && self.expect_type("index", from_index, Type::U32);
        if typed && self.expect_type("condition", active, Type::BOOL) {
            let (to_index, from_index, active) = (to_index.0, from_index.0, active.0);
            self.push_stmt(Stmt::Tile(TileOp::Copy { to, to_index, from, from_index, active }));
        }
    }

    /// Makes a group of the copies started since the last one.
    pub fn commit_copies(&self) {
        self.push_stmt(Stmt::Tile(TileOp::Commit));
    }

    /// Waits until no more than `pending` groups of copies are under way.
    pub fn wait_copies(&self, pending: u32) {
        self.push_stmt(Stmt::Tile(TileOp::Wait(pending)));
    }

    /// A matrix of 16 × 16 from workgroup memory, spread over a subgroup; see [`TileOp::Load`].
    #[track_caller]
    pub fn load_matrix(&self, name: &str, array: ArrayRef, index: impl IntoVal) -> Val {
        let index = index.into_val(self);
        let ArrayRef::Workgroup(array) = array else {
            self.error("matrices are loaded from workgroup memory");
            return self.poison();
        };
        if !self.expect_type("index", index, Type::U32) {
            return self.poison();
        }
        let local = self.new_local(name, Type::VEC4_U32, LocalKind::Let);
        self.push_stmt(Stmt::Tile(TileOp::Load { local, array, index: index.0 }));
        self.local(local)
    }

    /// `sum += a bᵀ` of spread matrices; see [`TileOp::Multiply`].
    #[track_caller]
    pub fn multiply_to(&self, sum: Var, format: HalfFormat, a: impl IntoVal, b: impl IntoVal) {
        let (a, b) = (a.into_val(self), b.into_val(self));
        let Some(sum) = sum.0 else { return };
        if self.expect_type("matrix", a, Type::VEC4_U32) && self.expect_type("matrix", b, Type::VEC2_U32) {
            self.push_stmt(Stmt::Tile(TileOp::Multiply { sum, a: a.0, b: b.0, format }));
        }
    }

    fn block(&self, body: impl FnOnce(&Builder)) -> Block {
        self.inner.borrow_mut().blocks.push(Block::new());
        body(self);
        self.inner.borrow_mut().blocks.pop().unwrap_or_default()
    }

    fn local(&self, local: Handle<Local>) -> Val {
        let ty = self.inner.borrow().module.locals[local].ty;
        self.append(Expr::Local(local), Some(ty))
    }

    /// A scalar where a vector is wanted is spread over the lanes.
    #[track_caller]
    fn fit(&self, value: Val, ty: Type) -> Val {
        match self.type_of(value) {
            Some(t) if t.is_scalar() && !ty.is_scalar() && t.scalar == ty.scalar => self.splat(ty.lanes(), value),
            _ => value,
        }
    }
}
