//! Common subexpressions.

use super::{Changed, Ctx, Pass};
use crate::error::{Error, Result};
use crate::graph::control::Control;
use crate::graph::patch::Editor;
use crate::graph::{Graph, Op, TensorType, ValueId};
use frit_kernels::spec::BinaryOp;
use rustc_hash::FxHashMap;

/// Lets equal nodes be one: same operation, same operands, same type.
///
/// `f(x) … f(x) == let y = f(x) in y … y`   class: exact
///
/// Operands of commutative functions count as equal in either order. Cache writes and nested graphs with effects are
/// never joined. Pre: none. Post: no two nodes are equal, but for those; the first in graph order stays.
pub struct Cse;

impl Cse {
    /// Its name.
    pub const NAME: &'static str = "cse";
}

pub(super) fn is_commutative(op: &Op) -> bool {
    use BinaryOp::{Add, And, Eq, Max, Min, Mul, Or};
    matches!(op, Op::Binary(Add | Mul | Max | Min | Eq | And | Or))
}

fn writes(g: &Graph) -> bool {
    g.values().any(|v| match g.op(v) {
        Op::KvAppend { .. } => true,
        Op::Control(c) => writes(c.body()),
        _ => false,
    })
}

impl Pass for Cse {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        let mut known: FxHashMap<(Op, TensorType, Vec<ValueId>), ValueId> = FxHashMap::default();
        let mut changed = false;
        for v in graph.order() {
            let Some(node) = graph.get(v) else { continue };
            let effect = match &node.op {
                Op::KvAppend { .. } | Op::Input(_) => true,
                Op::Control(c) => writes(Control::body(c)),
                _ => false,
            };
            if effect {
                continue;
            }
            let mut operands = graph.operands(v);
            if is_commutative(&node.op) {
                operands.sort_unstable();
            }
            let key = (node.op.clone(), node.ty.clone(), operands);
            match known.get(&key).copied() {
                Some(first) => {
                    let replaced = Editor::new(graph, "common-subexpression", &mut ctx.log).replace(v, first);
                    let fail = |e: crate::graph::GraphError| Error::Internal { pass: Self::NAME, fault: e.to_string() };
                    changed |= replaced.map_err(fail)?;
                }
                None => {
                    known.insert(key, v);
                }
            }
        }
        Ok(Changed::from(changed))
    }
}
