//! A one-invocation evaluator of integer kernels: the meaning that builder and passes must keep.

use std::collections::BTreeMap;

use crate::ir::*;

/// Runs the body on buffers of words and returns them. Indices wrap around.
pub(super) fn run(module: &Module, mut memory: BTreeMap<ArrayRef, Vec<u32>>) -> BTreeMap<ArrayRef, Vec<u32>> {
    for (h, array) in module.private.iter() {
        memory.insert(ArrayRef::Private(h), vec![0; array.len as usize]);
    }
    let mut machine = Machine { module, locals: BTreeMap::new(), memory };
    machine.block(&module.body);
    machine.memory
}

struct Machine<'m> {
    module: &'m Module,
    locals: BTreeMap<Handle<Local>, u32>,
    memory: BTreeMap<ArrayRef, Vec<u32>>,
}

impl Machine<'_> {
    fn block(&mut self, block: &Block) {
        for stmt in block {
            match stmt {
                Stmt::Let { local, value } | Stmt::Var { local, init: value } | Stmt::Assign { local, value } => {
                    let value = self.expr(*value);
                    self.locals.insert(*local, value);
                }
                Stmt::Store { array, index, value } => {
                    let (index, value) = (self.expr(*index), self.expr(*value));
                    let cells = self.memory.get_mut(array).unwrap();
                    let at = index as usize % cells.len();
                    cells[at] = value;
                }
                Stmt::For { local, start, end, step, body, .. } => {
                    let start = self.expr(*start);
                    self.locals.insert(*local, start);
                    loop {
                        let end = self.expr(*end);
                        if self.locals[local] >= end {
                            break;
                        }
                        self.block(body);
                        let step = self.expr(*step);
                        *self.locals.get_mut(local).unwrap() += step;
                    }
                }
                Stmt::If { cond, then, otherwise } => {
                    let cond = self.expr(*cond);
                    self.block(if cond != 0 { then } else { otherwise });
                }
                _ => {}
            }
        }
    }

    fn expr(&self, h: Handle<Expr>) -> u32 {
        match &self.module.exprs[h] {
            Expr::Literal(Literal::U32(v)) => *v,
            Expr::Literal(Literal::Bool(v)) => u32::from(*v),
            Expr::Builtin(_) => 3,
            Expr::Local(local) => self.locals[local],
            Expr::Load { array, index } => {
                let cells = &self.memory[array];
                cells[self.expr(*index) as usize % cells.len()]
            }
            Expr::Binary(op, a, b) => {
                let (a, b) = (self.expr(*a), self.expr(*b));
                match op {
                    BinaryOp::Add => a.wrapping_add(b),
                    BinaryOp::Sub => a.wrapping_sub(b),
                    BinaryOp::Mul => a.wrapping_mul(b),
                    BinaryOp::Min => a.min(b),
                    BinaryOp::Max => a.max(b),
                    BinaryOp::BitXor => a ^ b,
                    BinaryOp::BitAnd => a & b,
                    BinaryOp::Lt => u32::from(a < b),
                    BinaryOp::Ge => u32::from(a >= b),
                    BinaryOp::Eq => u32::from(a == b),
                    other => panic!("{other:?}"),
                }
            }
            Expr::Ternary(TernaryOp::Select, c, a, b) => {
                if self.expr(*c) != 0 {
                    self.expr(*a)
                } else {
                    self.expr(*b)
                }
            }
            other => panic!("{other:?}"),
        }
    }
}
