//! Drops values that nothing reads.

use std::collections::BTreeSet;

use crate::ir::{Block, Expr, Handle, Local, Module, Stmt};

/// Removes each `let` whose name no statement reads, until none is left. Loads have no effect, so they may go.
pub(super) fn drop_unused(mut module: Module) -> Module {
    loop {
        let mut used = BTreeSet::new();
        collect(&module, &module.body, &mut used);
        let body = std::mem::take(&mut module.body);
        let before = count(&body);
        module.body = retain(body, &used);
        if count(&module.body) == before {
            return module.compact();
        }
    }
}

fn collect(module: &Module, block: &Block, used: &mut BTreeSet<Handle<Local>>) {
    for stmt in block {
        let mut exprs = stmt.exprs();
        while let Some(h) = exprs.pop() {
            if let Expr::Local(local) = &module.exprs[h] {
                used.insert(*local);
            }
            exprs.extend(module.exprs[h].operands());
        }
        for inner in stmt.blocks() {
            collect(module, inner, used);
        }
    }
}

fn retain(block: Block, used: &BTreeSet<Handle<Local>>) -> Block {
    block
        .into_iter()
        .filter_map(|stmt| match stmt {
            Stmt::Let { local, .. } if !used.contains(&local) => None,
            Stmt::For { local, start, end, step, unroll, body } => {
                Some(Stmt::For { local, start, end, step, unroll, body: retain(body, used) })
            }
            Stmt::If { cond, then, otherwise } => {
                Some(Stmt::If { cond, then: retain(then, used), otherwise: retain(otherwise, used) })
            }
            other => Some(other),
        })
        .collect()
}

fn count(block: &Block) -> usize {
    block.iter().map(|s| 1 + s.blocks().into_iter().map(count).sum::<usize>()).sum()
}
