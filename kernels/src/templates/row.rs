//! Reductions along rows, and what is computed from them: norms, softmax, argmax.
//!
//! A team of invocations owns a row. Long rows get a workgroup each on GPUs; CPU drivers get one subgroup,
//! and several rows in a workgroup where rows are short.

use super::common::{KernelCtx, Scope, dispatch};
use super::map::is_folded;
use super::stats::{AHEAD, Team};
use super::{Rendered, TemplateError, View};
use crate::dim::{Dim, product};
use crate::spec::{AliasKind, Anchor, Expr, ExprId, KernelSpec, Store};
use crate::target::{Capabilities, Tier};

/// Invocations of a team and teams of a workgroup, for rows of that extent.
fn shape(extent: &Dim, caps: &Capabilities) -> (u32, u32) {
    let n = extent.as_const().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
    match caps.tier {
        Tier::Cpu if n <= 16 => (1, 32),
        Tier::Cpu => (8, 1),
        Tier::Gpu if n <= 8 => (1, 64),
        Tier::Gpu if n <= 64 => (16, 8),
        Tier::Gpu if n <= 256 => (32, 4),
        Tier::Gpu if n <= 1024 => (128, 1),
        Tier::Cuda if n >= 8192 => (1024, 1),
        Tier::Gpu | Tier::Cuda => (256, 1),
    }
}

/// Elements of a row of `extent` that are asked for several at a time: where loads wait for memory, and nothing else hides
/// that.
fn ahead(extent: &Dim, lanes: u32, caps: &Capabilities) -> u32 {
    let n = extent.as_const().and_then(|n| u32::try_from(n).ok());
    n.filter(|_| caps.tier == Tier::Cuda).map_or(0, |n| n - n % (lanes * AHEAD))
}

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let (Anchor::Row { stats }, Some((extent, row_axes))) = (&spec.anchor, spec.domain.split_last()) else {
        return Err(TemplateError::unsupported(spec, "no reduced axis"));
    };
    check_shared_rows(spec)?;
    let last = row_axes.len();
    let (lanes, teams) = shape(extent, caps);
    let ctx = KernelCtx::new(spec, caps, [lanes * teams, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let rows = product(row_axes);
    let groups = rows.ceil_div(&Dim::constant(i64::from(teams)));
    let group = b.let_("group", ctx.group(&groups));
    let (lane, team) = match (lanes, teams) {
        (_, 1) => (b.local_x(), b.u32(0)),
        (1, _) => (b.u32(0), b.local_x()),
        _ => (
            b.let_("lane", b.bit_and(b.local_x(), lanes - 1)),
            b.let_("team", b.shr(b.local_x(), lanes.trailing_zeros())),
        ),
    };
    let row = b.let_("row", b.add(b.mul(group, teams), team));
    let guarded = is_folded(&groups) || !rows.split(&Dim::constant(i64::from(teams))).1.is(0);
    let active = if guarded { b.let_("active", b.lt(row, ctx.extent(&rows))) } else { b.bool(true) };
    let team = Team { lanes, teams, lane, team, active, ahead: ahead(extent, lanes, caps) };
    let mut scope = Scope::new();
    // A team without a row computes the addresses of row 0 and reads nothing.
    let row = if guarded { b.select(active, row, 0) } else { row };
    ctx.unravel(&mut scope, 0, row_axes, row);
    let n = ctx.extent(extent);
    ctx.row_stats(&mut scope, stats, last, n, &team);
    let (once, each): (Vec<&Store>, Vec<&Store>) = spec.stores.iter().partition(|s| s.per_row);
    b.if_(active, |b| {
        if !once.is_empty() {
            let first = if lanes == 1 { b.bool(true) } else { b.eq(lane, 0) };
            b.if_(first, |b| ctx.store_all(&scope.with(last, b.u32(0)), &once));
        }
        if each.is_empty() {
            return;
        }
        let values: Vec<ExprId> = each.iter().map(|s| s.value).collect();
        ctx.hoist(&mut scope, &values);
        for st in &each {
            ctx.hoist_index(&mut scope, Some(st.arg), &st.index);
        }
        ctx.in_turns((lane, lane), n, lanes, |_, i, _| ctx.store_all(&scope.with(last, i), &each));
    });
    ctx.finish("row", &[("lanes", lanes), ("rows", teams)], dispatch(&groups))
}

/// Storage shared along a row is safe where the last pass reads it at the very element that it writes: whatever else
/// reads it comes before a barrier.
fn check_shared_rows(spec: &KernelSpec) -> Result<(), TemplateError> {
    for alias in spec.aliases.iter().filter(|a| a.kind == AliasKind::SameRow) {
        let roots: Vec<ExprId> = spec.stores.iter().map(|s| s.value).collect();
        for e in spec.exprs.reachable(&roots) {
            let Expr::Load { arg, index } = spec.exprs.get(e) else { continue };
            let kept = |s: &&Store| s.arg == alias.output && (s.index != *index || s.per_row);
            if *arg == alias.input && spec.stores.iter().find(kept).is_some() {
                return Err(TemplateError::unsupported(
                    spec,
                    "a row is overwritten while other elements of it are read",
                ));
            }
        }
    }
    Ok(())
}
