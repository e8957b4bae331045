//! Which powers of two divide an integer, whatever the launch: what aligned accesses are decided by.

use crate::ir::{BinaryOp as B, Expr, Handle, Literal, Module, Stmt, TernaryOp};

use super::Options;

/// Largest power of two that is told apart.
const MOST: u32 = 1 << 12;

/// For each expression, a power of two that divides its value.
pub(super) struct Multiples(Vec<u32>);

/// What a name stands for.
#[derive(Clone, Copy)]
enum Meaning {
    Unknown,
    Value(Handle<Expr>),
    /// A loop variable with its start and step.
    Steps(Handle<Expr>, Handle<Expr>),
}

impl Multiples {
    /// Analyses a module in compact form, in which operands and the values of names come before their users.
    pub(super) fn of(module: &Module, options: &Options) -> Multiples {
        let mut meaning = vec![Meaning::Unknown; module.locals.len()];
        let mut blocks = vec![&module.body];
        while let Some(block) = blocks.pop() {
            for stmt in block {
                match stmt {
                    Stmt::Let { local, value } => meaning[local.index()] = Meaning::Value(*value),
                    Stmt::For { local, start, step, .. } => meaning[local.index()] = Meaning::Steps(*start, *step),
                    _ => {}
                }
                blocks.extend(stmt.blocks());
            }
        }
        let mut known = Multiples(Vec::with_capacity(module.exprs.len()));
        for expr in module.exprs.values() {
            let factor = known.factor(module, options, &meaning, expr);
            known.0.push(factor.clamp(1, MOST));
        }
        known
    }

    /// A power of two that divides the value.
    pub(super) fn get(&self, h: Handle<Expr>) -> u32 {
        self.0.get(h.index()).copied().unwrap_or(1)
    }

    fn factor(&self, module: &Module, options: &Options, meaning: &[Meaning], expr: &Expr) -> u32 {
        let of = |h: &Handle<Expr>| self.get(*h);
        let constant = |h: &Handle<Expr>| match module.exprs[*h] {
            Expr::Literal(Literal::U32(v)) => Some(v),
            _ => None,
        };
        match expr {
            Expr::Literal(Literal::U32(v)) => of_constant(*v),
            Expr::Literal(Literal::I32(v)) => of_constant(*v as u32),
            Expr::Uniform { block, .. } => {
                let name = &module.uniforms[*block].name;
                options.multiples.iter().find(|(b, _)| b == name).map_or(1, |(_, n)| of_constant(*n))
            }
            Expr::Local(local) => match meaning.get(local.index()) {
                Some(Meaning::Value(value)) => of(value),
                Some(Meaning::Steps(start, step)) => of(start).min(of(step)),
                _ => 1,
            },
            Expr::Binary(op, a, b) => match op {
                B::Add | B::Sub | B::BitOr | B::BitXor | B::Min | B::Max | B::Rem => of(a).min(of(b)),
                B::Mul => of(a).saturating_mul(of(b)),
                B::BitAnd => of(a).max(of(b)),
                B::Shl => constant(b).map_or(1, |c| of(a).saturating_mul(1 << c.min(12))),
                B::Shr => constant(b).map_or(1, |c| of(a) >> c.min(31)),
                B::Div => constant(b).filter(|c| c.is_power_of_two()).map_or(1, |c| of(a) / c),
                _ => 1,
            },
            Expr::Ternary(TernaryOp::Select, _, a, b) => of(a).min(of(b)),
            Expr::Ternary(TernaryOp::Clamp, a, b, c) => of(a).min(of(b)).min(of(c)),
            _ => 1,
        }
    }
}

fn of_constant(v: u32) -> u32 {
    if v == 0 { MOST } else { 1 << v.trailing_zeros().min(12) }
}
