//! Named rules and the sweep that applies them.

use super::{Changed, Ctx};
use crate::error::{Error, Result};
use crate::graph::patch::Editor;
use crate::graph::{Graph, GraphError, Op, Tables, TensorType, ValueId, infer};
use crate::numeric::ProofClass;
use frit_kernels::dim::Bounds;
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};

/// What a rule may look at.
pub(super) struct Site<'a> {
    pub g: &'a Graph,
    pub tables: &'a Tables,
    pub bounds: &'a Bounds,
}

/// The right side of a rule.
pub(super) enum New {
    /// A value that exists.
    Use(ValueId),
    /// A new node.
    Make(Op, Vec<New>),
    /// A new source of a stated type.
    Source(Op, TensorType),
}

impl New {
    /// The type of its result.
    ///
    /// # Errors
    /// Operands that an operation in it does not take.
    pub fn ty(&self, g: &Graph) -> std::result::Result<TensorType, String> {
        match self {
            New::Use(v) => Ok(g.ty(*v).clone()),
            New::Source(_, ty) => Ok(ty.clone()),
            New::Make(op, inputs) => {
                let types = inputs.iter().map(|i| i.ty(g)).collect::<std::result::Result<Vec<_>, _>>()?;
                infer(op, &types.iter().collect::<Vec<_>>())
            }
        }
    }
    pub fn make(op: Op, inputs: &[ValueId]) -> New {
        New::Make(op, inputs.iter().map(|v| New::Use(*v)).collect())
    }
    pub fn unary(op: UnaryOp, a: New) -> New {
        New::Make(Op::Unary(op), vec![a])
    }
    pub fn binary(op: BinaryOp, a: New, b: New) -> New {
        New::Make(Op::Binary(op), vec![a, b])
    }
    pub fn f32(v: f32) -> New {
        New::Make(Op::Const(Literal::f32(v)), Vec::new())
    }
}

/// The right side of a rule for a node, where its left side matches.
pub(super) type Apply = fn(&Site<'_>, ValueId) -> Option<New>;

/// A rule, and what it does to numbers.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub name: &'static str,
    pub class: ProofClass,
    pub apply: Apply,
}

impl Rule {
    pub const fn exact(name: &'static str, apply: Apply) -> Rule {
        Rule { name, class: ProofClass::Bit, apply }
    }
    pub const fn round(name: &'static str, apply: Apply) -> Rule {
        Rule { name, class: ProofClass::Round, apply }
    }
    pub const fn reassoc(name: &'static str, apply: Apply) -> Rule {
        Rule { name, class: ProofClass::Reassoc, apply }
    }
    pub const fn approx(name: &'static str, apply: Apply) -> Rule {
        Rule { name, class: ProofClass::Approx, apply }
    }
}

const MAX_ROUNDS: usize = 24;

/// Applies rules to every node, operands first, until none matches. The number of rounds is bounded; hitting the bound
/// is noted in the context.
pub(super) fn sweep(pass: &'static str, graph: &mut Graph, ctx: &mut Ctx<'_>, rules: &[Rule]) -> Result<Changed> {
    let mut changed = false;
    for _ in 0..MAX_ROUNDS {
        let mut again = false;
        for v in graph.order() {
            again |= apply_at(pass, graph, ctx, rules, v)?;
            if ctx.log.fuel.is_spent() {
                return Ok(Changed::from(changed | again));
            }
        }
        if !again {
            return Ok(Changed::from(changed));
        }
        changed = true;
    }
    ctx.unfinished.push(pass);
    Ok(Changed::Yes)
}

fn apply_at(pass: &'static str, graph: &mut Graph, ctx: &mut Ctx<'_>, rules: &[Rule], v: ValueId) -> Result<bool> {
    for rule in rules {
        if graph.get(v).is_none() {
            return Ok(false);
        }
        let site = Site { g: graph, tables: ctx.tables, bounds: &ctx.bounds };
        let Some(new) = (rule.apply)(&site, v) else { continue };
        ctx.tried += 1;
        if ctx.disabled.iter().any(|d| is_off(d, rule.name, &graph.node(v).origin)) {
            continue;
        }
        if !ctx.mode.allows(rule.class) {
            ctx.refused.insert((rule.name, v), rule.class);
            continue;
        }
        if ctx.wrong.contains(&(rule.name, v)) {
            continue;
        }
        let bounds = ctx.bounds.clone();
        let mut e = Editor::new(graph, rule.name, &mut ctx.log).of_class(rule.class).with_bounds(&bounds);
        let origin = e.graph().node(v).origin.clone();
        let approximate = rule.class == ProofClass::Approx;
        let done = build(&mut e, &new, &origin).and_then(|n| {
            if approximate || ctx.validator.admits(e.graph(), ctx.tables, rule.name, v, n) {
                return e.replace(v, n);
            }
            ctx.wrong.insert((rule.name, v));
            e.discard(n);
            Ok(false)
        });
        if done.map_err(|f: GraphError| Error::Internal { pass, fault: format!("{}: {f}", rule.name) })? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a switch, `RULE` or `RULE@ORIGIN`, stops a rule at a node of that origin.
fn is_off(switch: &str, rule: &str, origin: &str) -> bool {
    match switch.split_once('@') {
        Some((name, part)) => name == rule && origin.contains(part),
        None => switch == rule,
    }
}

fn build(e: &mut Editor<'_>, new: &New, origin: &str) -> std::result::Result<ValueId, GraphError> {
    match new {
        New::Use(v) => Ok(*v),
        New::Source(op, ty) => Ok(e.add_source(op.clone(), ty.clone(), origin)),
        New::Make(op, inputs) => {
            let inputs = inputs.iter().map(|i| build(e, i, origin)).collect::<std::result::Result<Vec<_>, _>>()?;
            e.add(op.clone(), &inputs, origin)
        }
    }
}
