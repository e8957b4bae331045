//! The row of a left side that costs more than a load, computed once a workgroup and kept in its memory.

use super::common::{KernelCtx, Scope};
use crate::dim::{Bounds, Dim, Sym};
use crate::ir::{ArrayRef, Type, Val};
use crate::spec::{Expr, ExprId, KernelSpec};
use crate::target::Capabilities;

/// Neighbours that an invocation computes together.
const RUN: u32 = 4;
/// Loads of an element from which on a left side is computed once.
const LOADS: usize = 5;

/// Whether an element of the left side takes so many loads that a workgroup computes it once: attention's parts, merged.
pub(super) fn is_costly(spec: &KernelSpec, lhs: ExprId) -> bool {
    let loads = |e: &ExprId| matches!(spec.exprs.get(*e), Expr::Load { .. });
    spec.exprs.reachable(&[lhs]).iter().filter(|e| loads(e)).count() >= LOADS
}

/// The length of a row that takes no more than three quarters of a workgroup's memory.
pub(super) fn length(k: &Dim, caps: &Capabilities) -> Option<u32> {
    let k = k.as_const().and_then(|k| u32::try_from(k).ok())?;
    (k > 0 && u64::from(k) * 4 <= u64::from(caps.limit_workgroup_bytes) / 4 * 3).then_some(k)
}

/// Computes the left side along `axis` at the row of `scope`. What neighbours have in common, such as what depends on a
/// head alone, is computed once for each [`RUN`] of them. Contains a barrier.
pub(super) fn hold(
    ctx: &KernelCtx<'_>,
    scope: &Scope,
    (lhs, axis): (ExprId, usize),
    k: u32,
    (me, width): (Val, u32),
) -> ArrayRef {
    let b = &ctx.b;
    let row = b.workgroup("row", Type::F32, k);
    let mut here = scope.clone();
    ctx.hoist(&mut here, &[lhs]);
    let common = if k.is_multiple_of(RUN) { common(ctx.spec, lhs, axis) } else { Vec::new() };
    let run = if common.is_empty() { 1 } else { RUN };
    b.for_("i", if run > 1 { b.mul(me, run) } else { me }, k, width * run, |b, i| {
        let mut first = here.with(axis, i);
        for e in &common {
            let v = b.let_("shared", ctx.expr(&mut first, *e));
            first.exprs.insert(*e, v);
        }
        for j in 0..run {
            let at = b.add(i, j);
            let mut own = here.with(axis, at);
            own.exprs.extend(common.iter().filter_map(|e| Some((*e, *first.exprs.get(e)?))));
            b.store(row, at, ctx.expr(&mut own, lhs));
        }
    });
    b.barrier();
    row
}

/// What of `root` depends on `axis`, and is the same for all [`RUN`] neighbours from a multiple of it on.
fn common(spec: &KernelSpec, root: ExprId, axis: usize) -> Vec<ExprId> {
    let (outer, inner) = (Sym::Axis(254), Sym::Axis(255));
    let mut bounds = Bounds::new();
    bounds.axis(255, &Dim::from(u64::from(RUN)));
    let split = Dim::sym(outer) * Dim::from(u64::from(RUN)) + Dim::sym(inner.clone());
    let own = Sym::Axis(axis as u8);
    let alike = |d: &Dim| {
        let d = d.substitute(&|s| (*s == own).then(|| split.clone()));
        !d.simplify(&bounds).mentions(&inner)
    };
    let mut same = vec![false; spec.exprs.len()];
    let mut varies = vec![false; spec.exprs.len()];
    for e in spec.exprs.reachable(&[root]) {
        let below = spec.exprs.operands(e);
        let of = |list: &[bool], e: &ExprId| list.get(e.0 as usize) == Some(&true);
        let (mut is_same, mut moves) = (below.iter().all(|o| of(&same, o)), below.iter().any(|o| of(&varies, o)));
        if let Expr::Load { index: d, .. } | Expr::Coord(d) = spec.exprs.get(e) {
            is_same &= alike(d);
            moves |= d.mentions(&own);
        }
        if let (Some(s), Some(v)) = (same.get_mut(e.0 as usize), varies.get_mut(e.0 as usize)) {
            (*s, *v) = (is_same, moves);
        }
    }
    let both = |e: &ExprId| same.get(e.0 as usize) == Some(&true) && varies.get(e.0 as usize) == Some(&true);
    spec.exprs.reachable(&[root]).into_iter().filter(both).collect()
}
