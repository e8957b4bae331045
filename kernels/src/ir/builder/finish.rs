//! Decides which values get a name, and writes the final module.
//!
//! During construction every bindable expression leaves a candidate `let` where it was made. A candidate is kept where
//! printing the expression at its use would repeat it, recompute it in a loop, read memory that has changed since, or
//! grow too long; the others vanish.

use std::collections::BTreeMap;

use crate::ir::arena::{Arena, Handle};
use crate::ir::expr::{ArrayRef, Expr};
use crate::ir::module::{Access, Local, LocalKind, Module};
use crate::ir::names::Names;
use crate::ir::stmt::{Block, Stmt, TileOp};

/// Operators in one printed expression before it is split.
const MAX_INLINE: u32 = 16;

/// Something a read can go stale on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Local(Handle<Local>),
    Array(ArrayRef),
}

/// Where in the walk an expression was made.
#[derive(Clone, Copy, Default)]
struct Moment {
    time: u32,
    loop_depth: u32,
}

struct Analysis<'m> {
    module: &'m Module,
    candidates: &'m [Option<Handle<Local>>],
    now: Moment,
    made: Vec<Option<Moment>>,
    uses: Vec<u32>,
    kept: Vec<bool>,
    /// Times at which a place changed, ascending.
    changes: BTreeMap<Place, Vec<u32>>,
}

pub(super) fn bind_shared(
    module: Module,
    candidates: &[Option<Handle<Local>>],
    names: &mut Names,
    bind_all: bool,
) -> Module {
    let count = module.exprs.len();
    let mut analysis = Analysis {
        module: &module,
        candidates,
        now: Moment::default(),
        made: vec![None; count],
        uses: vec![0; count],
        kept: vec![false; count],
        changes: BTreeMap::new(),
    };
    analysis.block(&module.body);
    analysis.split_long();
    let kept = if bind_all { vec![true; count] } else { analysis.kept };
    let mut lowering = Lowering {
        module: &module,
        candidates,
        kept: &kept,
        exprs: Arena::new(),
        done: vec![None; count],
        locals: module.locals.clone(),
        names,
    };
    let body = lowering.block(&module.body);
    let Lowering { exprs, locals, .. } = lowering;
    Module { exprs, locals, body, ..module }.compact()
}

impl Analysis<'_> {
    /// The candidate that this statement is, if it is one.
    fn candidate(&self, stmt: &Stmt) -> Option<Handle<Expr>> {
        match stmt {
            Stmt::Let { local, value } if self.candidates[value.index()] == Some(*local) => Some(*value),
            _ => None,
        }
    }

    fn block(&mut self, block: &Block) {
        for stmt in block {
            if let Some(value) = self.candidate(stmt) {
                self.made[value.index()] = Some(self.now);
                continue;
            }
            self.now.time += 1;
            match stmt {
                Stmt::For { start, end, step, body, .. } => {
                    self.visit(*start, self.now);
                    self.now.time += 1;
                    self.now.loop_depth += 1;
                    self.change_all(body);
                    let at = Moment { time: self.now.time, ..self.now };
                    self.visit(*end, at);
                    self.visit(*step, at);
                    self.block(body);
                    self.now.loop_depth -= 1;
                    self.now.time += 1;
                }
                _ => {
                    for expr in stmt.exprs() {
                        self.visit(expr, self.now);
                    }
                    for inner in stmt.blocks() {
                        self.block(inner);
                    }
                }
            }
            self.change(stmt);
        }
    }

    /// Records a use of `h` at a moment.
    fn visit(&mut self, h: Handle<Expr>, at: Moment) {
        let module = self.module;
        let expr = &module.exprs[h];
        let i = h.index();
        let mut at = at;
        if let (Some(_), Some(made)) = (self.candidates[i], self.made[i]) {
            let stale = self.stale(expr, made, at);
            let heavy = !is_free(expr);
            if self.kept[i] {
                return;
            }
            self.uses[i] += 1;
            if stale || (heavy && (self.uses[i] > 1 || at.loop_depth > made.loop_depth)) {
                self.kept[i] = true;
                if heavy && self.uses[i] > 1 {
                    return;
                }
                at = made;
            }
        }
        for operand in expr.operands() {
            self.visit(operand, at);
        }
    }

    fn stale(&self, expr: &Expr, made: Moment, at: Moment) -> bool {
        let place = match expr {
            Expr::Load { array, .. } => Place::Array(*array),
            Expr::Local(local) => Place::Local(*local),
            _ => return false,
        };
        self.changes.get(&place).is_some_and(|times| {
            let first_after = times.partition_point(|t| *t <= made.time);
            times.get(first_after).is_some_and(|t| *t <= at.time)
        })
    }

    fn change_all(&mut self, block: &Block) {
        for stmt in block {
            self.change(stmt);
            for inner in stmt.blocks() {
                self.change_all(inner);
            }
        }
    }

    /// Notes what a statement writes; the moment after it is later than the statement's own reads.
    fn change(&mut self, stmt: &Stmt) {
        let places = match stmt {
            Stmt::Assign { local, .. } => vec![Place::Local(*local)],
            Stmt::Store { array, .. } => vec![Place::Array(*array)],
            Stmt::Tile(TileOp::Copy { to, .. }) => vec![Place::Array(ArrayRef::Workgroup(*to))],
            Stmt::Tile(TileOp::Multiply { sum, .. }) => vec![Place::Local(*sum)],
            Stmt::Warpgroup(op) if op.orders_memory() => shared_places(self.module),
            Stmt::Warpgroup(op) => op.sums().iter().copied().map(Place::Local).collect(),
            Stmt::Barrier(_) | Stmt::UniformLoad { .. } | Stmt::Tile(TileOp::Wait(_)) => shared_places(self.module),
            _ => return,
        };
        self.now.time += 1;
        for place in places {
            self.changes.entry(place).or_default().push(self.now.time);
        }
    }

    /// Keeps every value whose text would grow beyond the limit. Operands come before users in the arena.
    fn split_long(&mut self) {
        let mut sizes = vec![0u32; self.kept.len()];
        for (h, expr) in self.module.exprs.iter() {
            let i = h.index();
            let operands: u32 =
                expr.operands().iter().map(|o| if self.kept[o.index()] { 0 } else { sizes[o.index()] }).sum();
            let own = u32::from(!is_free(expr) && self.candidates[i].is_some());
            sizes[i] = operands + own;
            if sizes[i] >= MAX_INLINE && self.uses[i] > 0 && self.made[i].is_some() {
                self.kept[i] = true;
            }
        }
    }
}

/// Expressions that cost nothing to repeat.
fn is_free(expr: &Expr) -> bool {
    matches!(expr, Expr::Local(_) | Expr::Extract { .. } | Expr::Splat { .. })
}

/// Memory that other invocations may have changed by the end of a barrier.
fn shared_places(module: &Module) -> Vec<Place> {
    let workgroup = module.workgroup.iter().map(|(h, _)| ArrayRef::Workgroup(h));
    let storage =
        module.buffers.iter().filter(|(_, b)| b.access == Access::ReadWrite).map(|(h, _)| ArrayRef::Buffer(h));
    workgroup.chain(storage).map(Place::Array).collect()
}

struct Lowering<'m> {
    module: &'m Module,
    candidates: &'m [Option<Handle<Local>>],
    kept: &'m [bool],
    exprs: Arena<Expr>,
    done: Vec<Option<Handle<Expr>>>,
    locals: Arena<Local>,
    names: &'m mut Names,
}

impl Lowering<'_> {
    /// The expression at a use: the kept name, or the operation itself.
    fn expr(&mut self, h: Handle<Expr>) -> Handle<Expr> {
        if let Some(done) = self.done[h.index()] {
            return done;
        }
        let new = match self.candidates[h.index()] {
            Some(local) if self.kept[h.index()] => self.exprs.append(Expr::Local(local)),
            _ => self.operation(h),
        };
        self.done[h.index()] = Some(new);
        new
    }

    fn operation(&mut self, h: Handle<Expr>) -> Handle<Expr> {
        let module = self.module;
        let expr = module.exprs[h].map_operands(|o| self.expr(o));
        self.exprs.append(expr)
    }

    fn block(&mut self, block: &Block) -> Block {
        block.iter().filter_map(|stmt| self.stmt(stmt)).collect()
    }

    fn stmt(&mut self, stmt: &Stmt) -> Option<Stmt> {
        Some(match stmt {
            Stmt::Let { local, value } if self.candidates[value.index()] == Some(*local) => {
                if !self.kept[value.index()] {
                    return None;
                }
                let name = self.names.unique(&self.locals[*local].name);
                self.locals[*local] = Local { name, kind: LocalKind::Let, ty: self.locals[*local].ty };
                Stmt::Let { local: *local, value: self.operation(*value) }
            }
            Stmt::Comment(_) | Stmt::Barrier(_) => stmt.clone(),
            Stmt::Let { local, value } => Stmt::Let { local: *local, value: self.expr(*value) },
            Stmt::Var { local, init } => Stmt::Var { local: *local, init: self.expr(*init) },
            Stmt::Assign { local, value } => Stmt::Assign { local: *local, value: self.expr(*value) },
            Stmt::Store { array, index, value } => {
                let index = self.expr(*index);
                Stmt::Store { array: *array, index, value: self.expr(*value) }
            }
            Stmt::For { local, start, end, step, unroll, body } => {
                let (start, end, step) = (self.expr(*start), self.expr(*end), self.expr(*step));
                Stmt::For { local: *local, start, end, step, unroll: *unroll, body: self.block(body) }
            }
            Stmt::If { cond, then, otherwise } => {
                let cond = self.expr(*cond);
                let then = self.block(then);
                Stmt::If { cond, then, otherwise: self.block(otherwise) }
            }
            Stmt::Collective { local, op, value } => {
                Stmt::Collective { local: *local, op: *op, value: self.expr(*value) }
            }
            Stmt::Tile(op) => Stmt::Tile(op.map(self, |s, e| s.expr(e), |_, l| l)),
            Stmt::Warpgroup(op) => Stmt::Warpgroup(op.map(self, |s, e| s.expr(e), |_, l| l)),
            Stmt::UniformLoad { local, array, index } => {
                Stmt::UniformLoad { local: *local, array: *array, index: self.expr(*index) }
            }
        })
    }
}
