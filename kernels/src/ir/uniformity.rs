//! Which values are the same for every invocation of a workgroup, and which statements all of them reach together.
//!
//! Uniform: constants, workgroup ids, the grid size, uniform members, loads from read-only buffers at uniform indices,
//! results of a uniform load, and what is computed from those. A variable or private array is uniform while everything
//! stored to it is, and is stored in uniform control flow. Control flow is uniform at the top, in branches on uniform
//! conditions, and in loops whose bounds are uniform; it is uniform again after every branch and loop, since no
//! statement leaves them early.

use super::arena::Handle;
use super::expr::{ArrayRef, Axis, BinaryOp, Builtin, Expr, Literal};
use super::module::{Access, Array, Local, Module};
use super::stmt::{Block, Stmt, TileOp};
use super::warpgroup::WARPGROUP;

/// The result of the analysis.
#[derive(Clone, Debug)]
pub struct Uniformity {
    /// Invocations that follow each other in the workgroup and count as together, if not all of it.
    team: Option<u32>,
    locals: Vec<bool>,
    private: Vec<bool>,
}

impl Uniformity {
    /// Analyses a module whose handles are all in range.
    pub fn of(module: &Module) -> Uniformity {
        Uniformity::among(module, None)
    }

    /// As [`of`](Uniformity::of), for each warpgroup by itself: what follows from `local_id.x` shifted by its size is
    /// uniform too.
    pub fn of_warpgroups(module: &Module) -> Uniformity {
        let [_, y, z] = module.workgroup_size;
        Uniformity::among(module, (y == 1 && z == 1).then_some(WARPGROUP))
    }

    fn among(module: &Module, team: Option<u32>) -> Uniformity {
        let (locals, private) = (vec![true; module.locals.len()], vec![true; module.private.len()]);
        let mut state = Uniformity { team, locals, private };
        while state.block(module, &module.body, true) {}
        state
    }

    /// Whether a local holds the same value in every invocation that reaches it.
    pub fn is_local_uniform(&self, local: Handle<Local>) -> bool {
        self.locals.get(local.index()).copied().unwrap_or(false)
    }

    /// Whether an expression has the same value in every invocation.
    pub fn is_uniform(&self, module: &Module, expr: Handle<Expr>) -> bool {
        match &module.exprs[expr] {
            Expr::Literal(_) | Expr::Uniform { .. } => true,
            Expr::Builtin(builtin) => matches!(builtin, Builtin::WorkgroupId(_) | Builtin::NumWorkgroups(_)),
            Expr::Local(local) => self.is_local_uniform(*local),
            Expr::Binary(BinaryOp::Shr, id, by) if self.is_team(module, *id, *by) => true,
            Expr::Load { array, index } => {
                let memory = match array {
                    ArrayRef::Buffer(h) => module.buffers[*h].access != Access::ReadWrite,
                    ArrayRef::Workgroup(_) => false,
                    ArrayRef::Private(h) => self.is_private_uniform(*h),
                };
                memory && self.is_uniform(module, *index)
            }
            other => other.operands().iter().all(|o| self.is_uniform(module, *o)),
        }
    }

    /// Whether `id >> by` counts teams or several at once.
    fn is_team(&self, module: &Module, id: Handle<Expr>, by: Handle<Expr>) -> bool {
        let counts = matches!(module.exprs[id], Expr::Builtin(Builtin::LocalId(Axis::X) | Builtin::LocalIndex));
        match (self.team, &module.exprs[by]) {
            (Some(team), Expr::Literal(Literal::U32(by))) => counts && *by >= team.trailing_zeros() && *by < 32,
            _ => false,
        }
    }

    fn is_private_uniform(&self, array: Handle<Array>) -> bool {
        self.private.get(array.index()).copied().unwrap_or(false)
    }

    /// One round over a block; whether anything lost its uniformity.
    fn block(&mut self, module: &Module, block: &Block, flow: bool) -> bool {
        let mut changed = false;
        for stmt in block {
            changed |= match stmt {
                Stmt::Comment(_) | Stmt::Barrier(_) | Stmt::UniformLoad { .. } => false,
                Stmt::Let { local, value } | Stmt::Var { local, init: value } | Stmt::Assign { local, value } => {
                    let uniform = flow && self.is_uniform(module, *value);
                    self.lower_local(*local, uniform)
                }
                Stmt::Collective { local, .. }
                | Stmt::Tile(TileOp::Load { local, .. } | TileOp::Multiply { sum: local, .. }) => {
                    self.lower_local(*local, false)
                }
                Stmt::Tile(_) => false,
                Stmt::Warpgroup(op) => op.sums().iter().fold(false, |c, sum| self.lower_local(*sum, false) | c),
                Stmt::Store { array: ArrayRef::Private(h), index, value } => {
                    let uniform = flow && self.is_uniform(module, *index) && self.is_uniform(module, *value);
                    lower(&mut self.private, h.index(), uniform)
                }
                Stmt::Store { .. } => false,
                Stmt::For { local, start, end, step, body, .. } => {
                    let uniform = self.loop_flow(module, flow, [*start, *end, *step]);
                    self.lower_local(*local, uniform) | self.block(module, body, uniform)
                }
                Stmt::If { cond, then, otherwise } => {
                    let uniform = flow && self.is_uniform(module, *cond);
                    self.block(module, then, uniform) | self.block(module, otherwise, uniform)
                }
            };
        }
        changed
    }

    /// Whether the body of a loop with these bounds is reached by all invocations together.
    pub(crate) fn loop_flow(&self, module: &Module, flow: bool, bounds: [Handle<Expr>; 3]) -> bool {
        flow && bounds.iter().all(|b| self.is_uniform(module, *b))
    }

    fn lower_local(&mut self, local: Handle<Local>, uniform: bool) -> bool {
        lower(&mut self.locals, local.index(), uniform)
    }
}

fn lower(flags: &mut [bool], index: usize, uniform: bool) -> bool {
    match flags.get_mut(index) {
        Some(flag) if *flag && !uniform => {
            *flag = false;
            true
        }
        _ => false,
    }
}
