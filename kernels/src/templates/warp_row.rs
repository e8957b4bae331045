//! A row of the left side as the lanes of one warp have it: in chunks, lane after lane, all of them known when the kernel
//! is written. What a lane loads for a statistic of the row it keeps for the product, and the statistic needs neither
//! workgroup memory nor a barrier: every warp computes it for itself.

use super::common::{KernelCtx, Scope};
use super::reduce::WARP;
use super::stats::{combine, initial};
use crate::ir::{Builder, Collective, Val};
use crate::spec::{Expr, ExprId, KernelSpec, ReduceOp, Stat};
use std::collections::HashMap;

/// Elements of a row that a lane keeps in registers.
const KEPT: u32 = 32;

/// A chunk of a lane.
pub(super) struct Place {
    /// Its first element; one that is there in any case.
    pub at: Val,
    /// Whether the chunk is the lane's, where some lanes have none: they are given the row's last one.
    pub inside: Option<Val>,
}

/// What a lane loaded of a chunk, by element.
pub(super) type Kept = Vec<HashMap<ExprId, Val>>;

/// The chunks of a lane in a row of `k` elements, a multiple of `chunk`.
pub(super) fn places(b: &Builder, lane: Val, k: u32, chunk: u32) -> Vec<Place> {
    let step = WARP * chunk;
    let from = b.let_("from", b.mul(lane, chunk));
    let place = |unit: u32| {
        let at = if unit == 0 { from } else { b.let_("at", b.add(from, unit * step)) };
        if (unit + 1) * step <= k {
            return Place { at, inside: None };
        }
        let inside = b.let_("inside", b.lt(at, k));
        Place { at: b.let_("at", b.min(at, k - chunk)), inside: Some(inside) }
    };
    (0..k.div_ceil(step)).map(place).collect()
}

/// Whether a warp can compute these statistics for itself.
pub(super) fn serves(spec: &KernelSpec, stats: &[Stat]) -> bool {
    !stats.is_empty() && spec.stats_over.is_none() && stats.iter().all(|s| s.op != ReduceOp::ArgMax)
}

/// Adds the statistics of the row of `scope` to it, and returns what the product at `lhs` need not load again, by chunk.
/// The order of a sum depends on the places alone.
pub(super) fn stats(
    ctx: &KernelCtx<'_>,
    scope: &mut Scope,
    stats: &[Stat],
    (lhs, axis): (ExprId, usize),
    places: &[Place],
    chunk: u32,
) -> Vec<Kept> {
    let b = &ctx.b;
    let roots: Vec<ExprId> = stats.iter().map(|s| s.value).collect();
    let mut row = scope.clone();
    ctx.hoist(&mut row, &roots);
    let wanted = ctx.spec.exprs.reachable(&[lhs]);
    let few = places.len() as u32 * chunk <= KEPT;
    let is_load = |e: &ExprId| matches!(ctx.spec.exprs.get(*e), Expr::Load { .. });
    let loads: Vec<ExprId> =
        ctx.spec.exprs.reachable(&roots).into_iter().filter(|e| few && is_load(e) && wanted.contains(e)).collect();
    let kept: Vec<Kept> = places
        .iter()
        .map(|p| {
            let element = |i: u32| {
                let mut here = row.with(axis, b.add(p.at, i));
                loads.iter().map(|e| (*e, b.let_("x", ctx.expr(&mut here, *e)))).collect()
            };
            (0..chunk).map(element).collect()
        })
        .collect();
    for s in stats {
        let mut row = scope.clone();
        ctx.hoist(&mut row, &[s.value]);
        let of_chunk = |(p, kept): (&Place, &Kept)| {
            let element = |i: u32| {
                let mut here = row.with(axis, b.add(p.at, i));
                here.exprs.extend(kept.get(i as usize).into_iter().flatten());
                ctx.expr(&mut here, s.value)
            };
            let all = balanced(b, s.op, (0..chunk).map(element).collect());
            match p.inside {
                Some(inside) => b.select(inside, all, initial(s.op)),
                None => all,
            }
        };
        let own = places.iter().zip(&kept).map(of_chunk).collect();
        let mut all = b.let_("reduced", balanced(b, s.op, own));
        let mut mask = WARP / 2;
        while mask > 0 {
            let other = b.collective("other", Collective::ShuffleXor(mask), all);
            all = b.let_("reduced", combine(b, s.op, all, other));
            mask /= 2;
        }
        let done = ctx.finished(scope, s, all);
        scope.push_stat(done);
    }
    kept
}

/// The elements of the left side at all places, computed once, in the form of what was kept.
pub(super) fn elements(
    ctx: &KernelCtx<'_>,
    scope: &Scope,
    (lhs, axis): (ExprId, usize),
    places: &[Place],
    chunk: u32,
    kept: &[Kept],
) -> Vec<Kept> {
    let b = &ctx.b;
    let of_chunk = |(u, p): (usize, &Place)| {
        let element = |i: u32| {
            let mut here = scope.with(axis, b.add(p.at, i));
            here.exprs.extend(kept.get(u).and_then(|k| k.get(i as usize)).into_iter().flatten());
            HashMap::from([(lhs, b.let_("x", ctx.expr(&mut here, lhs)))])
        };
        (0..chunk).map(element).collect()
    };
    places.iter().enumerate().map(of_chunk).collect()
}

/// All values combined, neighbours first.
fn balanced(b: &Builder, op: ReduceOp, mut values: Vec<Val>) -> Val {
    while values.len() > 1 {
        let pairs = values.chunks(2).map(|pair| match pair {
            [x, y] => combine(b, op, *x, *y),
            rest => rest.first().copied().unwrap_or_else(|| b.f32(initial(op))),
        });
        values = pairs.collect();
    }
    values.first().copied().unwrap_or_else(|| b.f32(initial(op)))
}
