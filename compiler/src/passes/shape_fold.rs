//! What extents alone decide.

use super::pattern::first;
use super::rewrite::{New, Rule, Site, sweep};
use super::{Changed, Ctx, Pass};
use crate::error::Result;
use crate::graph::{Graph, Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::spec::{Literal, ReduceOp};

/// Folds what follows from extents.
///
/// ```text
/// transpose-of-units   transpose(x, p) == reshape(x)        where p keeps the order of axes that are not 1
/// reduce-of-units      reduce(x, axes) == reshape(x)        sum, max, min, product over axes of extent 1
/// argmax-of-unit       argmax(x, axis) == 0                 over an axis of extent 1
/// empty-part           concat(x, e, y) == concat(x, y)      e of extent 0 along the axis
/// slice-of-unit        slice(x, axis, s, 1) == x            where the axis has extent 1
/// ```
/// All exact; the extreme values from which max and min start aside. Pre: canonical. Post: none of the left sides is
/// left.
pub struct ShapeFold;

impl ShapeFold {
    /// Its name.
    pub const NAME: &'static str = "shape-fold";
}

pub(super) const RULES: &[Rule] = &[
    Rule::exact("transpose-of-units", transpose_of_units),
    Rule::exact("reduce-of-units", reduce_of_units),
    Rule::exact("argmax-of-unit", argmax_of_unit),
    Rule::exact("empty-part", empty_part),
    Rule::exact("slice-of-unit", slice_of_unit),
];

impl Pass for ShapeFold {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn run(&self, graph: &mut Graph, ctx: &mut Ctx<'_>) -> Result<Changed> {
        sweep(Self::NAME, graph, ctx, RULES)
    }
}

fn transpose_of_units(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Transpose(p) = s.g.op(v) else { return None };
    let x = first(s.g, v)?;
    let long: Vec<usize> = p.iter().copied().filter(|a| !s.g.ty(x).shape.get(*a).is_some_and(|d| d.is(1))).collect();
    let kept = long.windows(2).all(|w| w[0] < w[1]);
    kept.then(|| New::make(Op::Reshape(s.g.ty(v).shape.clone()), &[x]))
}

fn reduce_of_units(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Reduce { op, axes, .. } = s.g.op(v) else { return None };
    let x = first(s.g, v)?;
    let units = axes.iter().all(|a| s.g.ty(x).shape.get(*a).is_some_and(|d| d.is(1)));
    (units && *op != ReduceOp::ArgMax).then(|| New::make(Op::Reshape(s.g.ty(v).shape.clone()), &[x]))
}

fn argmax_of_unit(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Reduce { op: ReduceOp::ArgMax, axes, .. } = s.g.op(v) else { return None };
    let x = first(s.g, v)?;
    let unit = axes.iter().all(|a| s.g.ty(x).shape.get(*a).is_some_and(|d| d.is(1)));
    let zero = New::Make(Op::Const(Literal::I32(0)), Vec::new());
    unit.then(|| New::Make(Op::Broadcast(s.g.ty(v).shape.clone()), vec![zero]))
}

fn empty_part(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Concat { axis } = s.g.op(v) else { return None };
    let parts = s.g.operands(v);
    let full: Vec<ValueId> =
        parts.iter().copied().filter(|p| !s.g.ty(*p).shape.get(*axis).is_some_and(|d| d.is(0))).collect();
    (!full.is_empty() && full.len() < parts.len()).then(|| New::make(Op::Concat { axis: *axis }, &full))
}

fn slice_of_unit(s: &Site<'_>, v: ValueId) -> Option<New> {
    let Op::Slice { axis, len, .. } = s.g.op(v) else { return None };
    let x = first(s.g, v)?;
    (*len == Dim::one() && s.g.ty(x).shape.get(*axis)?.is(1)).then_some(New::Use(x))
}
