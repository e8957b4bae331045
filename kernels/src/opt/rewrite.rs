//! One walk that rebuilds a module with folded expressions.

use std::collections::BTreeMap;

use crate::ir::fold::{self, Folded};
use crate::ir::names::Names;
use crate::ir::{Arena, Block, Expr, Handle, Literal, Local, LocalKind, Module, Stmt, TileOp};

/// Most trips of a loop that is repeated in the text.
const MAX_TRIPS: u64 = 64;
/// Most statements that repeating one loop may yield.
const MAX_STMTS: u64 = 4096;

pub(super) fn rewrite(module: &Module, unroll: bool) -> Module {
    let mut names = Names::default();
    let declared = module.buffers.values().map(|b| &b.name);
    let declared = declared.chain(module.uniforms.values().map(|u| &u.name));
    let declared = declared.chain(module.workgroup.values().chain(module.private.values()).map(|a| &a.name));
    for name in declared {
        names.unique(name);
    }
    let mut rewriter =
        Rewriter { from: module, unroll, exprs: Arena::new(), locals: Arena::new(), meaning: BTreeMap::new(), names };
    let mut body = Block::new();
    rewriter.block(&module.body, &mut body);
    let Rewriter { exprs, locals, .. } = rewriter;
    let rest = module.clone();
    Module { exprs, locals, body, ..rest }.compact()
}

struct Rewriter<'m> {
    from: &'m Module,
    unroll: bool,
    exprs: Arena<Expr>,
    locals: Arena<Local>,
    /// What a name of the old module stands for in the new one.
    meaning: BTreeMap<Handle<Local>, Expr>,
    names: Names,
}

impl Rewriter<'_> {
    fn expr(&mut self, h: Handle<Expr>) -> Handle<Expr> {
        let from = self.from;
        let expr = match &from.exprs[h] {
            Expr::Local(local) => self.meaning.get(local).cloned().unwrap_or(Expr::Local(*local)),
            other => other.map_operands(|o| self.expr(o)),
        };
        self.append(expr)
    }

    fn append(&mut self, expr: Expr) -> Handle<Expr> {
        match fold::step(&self.exprs, &expr) {
            Some(Folded::Same(h)) => h,
            Some(Folded::New(expr)) => self.append(expr),
            Some(Folded::Chain(op, a, literal)) => {
                let c = self.exprs.append(Expr::Literal(literal));
                self.append(Expr::Binary(op, a, c))
            }
            None => self.exprs.append(expr),
        }
    }

    fn declare(&mut self, old: Handle<Local>) -> Handle<Local> {
        let Local { name, ty, kind } = &self.from.locals[old];
        let name = self.names.unique(name);
        let new = self.locals.append(Local { name, ty: *ty, kind: *kind });
        self.meaning.insert(old, Expr::Local(new));
        new
    }

    fn current(&self, old: Handle<Local>) -> Handle<Local> {
        match self.meaning.get(&old) {
            Some(Expr::Local(new)) => *new,
            _ => old,
        }
    }

    /// Whether a name for this expression may be replaced by the expression anywhere in its scope.
    fn is_plain(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Literal(_) => true,
            Expr::Local(local) => self.locals[*local].kind != LocalKind::Var,
            _ => false,
        }
    }

    fn literal(&self, h: Handle<Expr>) -> Option<Literal> {
        match self.exprs[h] {
            Expr::Literal(l) => Some(l),
            _ => None,
        }
    }

    fn block(&mut self, block: &Block, out: &mut Block) {
        for stmt in block {
            self.stmt(stmt, out);
        }
    }

    fn nested(&mut self, block: &Block) -> Block {
        let mut out = Block::new();
        self.block(block, &mut out);
        out
    }

    fn stmt(&mut self, stmt: &Stmt, out: &mut Block) {
        let new = match stmt {
            Stmt::Comment(_) | Stmt::Barrier(_) => stmt.clone(),
            Stmt::Let { local, value } => {
                let value = self.expr(*value);
                let expr = self.exprs[value].clone();
                if self.is_plain(&expr) {
                    self.meaning.insert(*local, expr);
                    return;
                }
                Stmt::Let { local: self.declare(*local), value }
            }
            Stmt::Var { local, init } => {
                let init = self.expr(*init);
                Stmt::Var { local: self.declare(*local), init }
            }
            Stmt::Assign { local, value } => {
                let value = self.expr(*value);
                Stmt::Assign { local: self.current(*local), value }
            }
            Stmt::Store { array, index, value } => {
                let index = self.expr(*index);
                Stmt::Store { array: *array, index, value: self.expr(*value) }
            }
            Stmt::Collective { local, op, value } => {
                let value = self.expr(*value);
                Stmt::Collective { local: self.declare(*local), op: *op, value }
            }
            Stmt::Tile(op @ TileOp::Load { .. }) => Stmt::Tile(op.map(self, |s, e| s.expr(e), |s, l| s.declare(l))),
            Stmt::Tile(op) => Stmt::Tile(op.map(self, |s, e| s.expr(e), |s, l| s.current(l))),
            Stmt::Warpgroup(op) => Stmt::Warpgroup(op.map(self, |s, e| s.expr(e), |s, l| s.current(l))),
            Stmt::UniformLoad { local, array, index } => {
                let index = self.expr(*index);
                Stmt::UniformLoad { local: self.declare(*local), array: *array, index }
            }
            Stmt::If { cond, then, otherwise } => {
                let cond = self.expr(*cond);
                match self.literal(cond) {
                    Some(Literal::Bool(true)) => return self.block(then, out),
                    Some(Literal::Bool(false)) => return self.block(otherwise, out),
                    _ => {}
                }
                let then = self.nested(then);
                let otherwise = self.nested(otherwise);
                if then.is_empty() && otherwise.is_empty() {
                    return;
                }
                Stmt::If { cond, then, otherwise }
            }
            Stmt::For { local, start, end, step, unroll, body } => {
                let [start, end, step] = [*start, *end, *step].map(|h| self.expr(h));
                if let Some(values) = self.trips([start, end, step], *unroll, body) {
                    for value in values {
                        self.meaning.insert(*local, Expr::Literal(value));
                        self.block(body, out);
                    }
                    return;
                }
                let local = self.declare(*local);
                Stmt::For { local, start, end, step, unroll: *unroll, body: self.nested(body) }
            }
        };
        out.push(new);
    }

    /// The values of the loop variable, if the loop is to be replaced by its iterations.
    fn trips(&self, bounds: [Handle<Expr>; 3], hint: bool, body: &Block) -> Option<Vec<Literal>> {
        let [Some(Literal::U32(lo)), Some(Literal::U32(hi)), Some(Literal::U32(by))] = bounds.map(|h| self.literal(h))
        else {
            return None;
        };
        if by == 0 {
            return None;
        }
        let trips = u64::from(hi.saturating_sub(lo)).div_ceil(u64::from(by));
        let few = trips <= MAX_TRIPS && trips.saturating_mul(count(body)) <= MAX_STMTS;
        if trips > 1 && !(self.unroll && hint && few) {
            return None;
        }
        Some((0..trips).map(|i| Literal::U32(lo.wrapping_add((i as u32).wrapping_mul(by)))).collect())
    }
}

fn count(block: &Block) -> u64 {
    block.iter().map(|s| 1 + s.blocks().into_iter().map(count).sum::<u64>()).sum()
}
