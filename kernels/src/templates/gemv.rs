//! Matrix-vector products: few rows against a weight with k-contiguous rows. A workgroup takes a block of columns of one
//! row of the left side; the lanes of a column split K in chunks, and a tree adds their partial sums. The order of the
//! sum depends on K alone.
//!
//! Where results are functions of statistics of a run of columns, a workgroup takes the run, pass by pass, keeps its sums, and
//! writes them when it has the statistics.

use super::gemv_warp::{self, Product};
use super::reduce::WARP;
use super::stats::Team;
use super::{KernelCtx, Rendered, Scope, TemplateError, View, contiguous_rows, dispatch, left_row};
use crate::dim::{Dim, product};
use crate::ir::{ArrayRef, Type, Val};
use crate::spec::{Anchor, ArgId, FEW_PARTIAL_COLUMNS, KernelSpec, Store};
use crate::target::{Capabilities, Tier};

/// Columns of a workgroup on graphics cards.
pub(super) const COLUMNS: u32 = 8;
const _: () = assert!(COLUMNS == FEW_PARTIAL_COLUMNS);

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let Anchor::MatMul { k, lhs, lhs_stats, rhs } = &spec.anchor else {
        return Err(TemplateError::unsupported(spec, "no matmul"));
    };
    if spec.partials.as_ref().is_some_and(|p| p.columns != FEW_PARTIAL_COLUMNS || rhs.len() > 1) {
        return Err(TemplateError::unsupported(spec, "statistics of tiles that no workgroup has of few rows"));
    }
    let rank = spec.domain.len();
    let runs: Vec<(ArgId, Dim)> = rhs.iter().filter_map(|r| contiguous_rows(spec, *r, rank)).collect();
    if runs.len() != rhs.len() {
        return Err(TemplateError::unsupported(spec, "a right side whose rows are not contiguous"));
    }
    if spec.columns.is_some() && !super::uses_gemv(spec) {
        return Err(TemplateError::unsupported(spec, "statistics of columns of many rows"));
    }
    let run = spec.columns.as_ref().and_then(|c| u32::try_from(c.width).ok());
    if caps.subgroup_size == Some(WARP) && run.is_none() {
        return gemv_warp::render(spec, caps, &Product { k, lhs: *lhs, lhs_stats, runs });
    }
    let plain = lhs_stats.is_empty() && !left_row::is_costly(spec, *lhs);
    let held = left_row::length(k, caps).filter(|_| !plain);
    let (lanes, columns) = match caps.tier {
        Tier::Gpu | Tier::Cuda if run.is_some() => (16u32, 16u32),
        Tier::Cpu if spec.partials.is_some() => (8, FEW_PARTIAL_COLUMNS),
        Tier::Cpu if held.is_some() || run.is_some() => (8, 16),
        Tier::Cpu => (8, 4),
        Tier::Gpu | Tier::Cuda => (16, COLUMNS),
    };
    let width = lanes * columns;
    let block_columns = run.unwrap_or(columns);
    let n = &spec.domain[rank - 1];
    let blocks = n.ceil_div(&Dim::constant(i64::from(block_columns)));
    let rows = product(&spec.domain[..rank - 1]);
    let groups = &blocks * &rows;
    let ctx = KernelCtx::new(spec, caps, [width, 1, 1], |_, _| View::Scalar)?;
    let chunk = k.as_const().and_then(|k| u64::try_from(k).ok()).map_or(1, |k| ctx.chunk_for(k));
    let b = &ctx.b;
    let me = b.let_("me", b.local_x());
    let lane = b.let_("lane", b.rem(me, lanes));
    let shared = |name: &str, len: u32| -> Vec<ArrayRef> {
        (0..rhs.len()).map(|j| b.workgroup(&format!("{name}{j}"), Type::F32, len)).collect()
    };
    let sums = shared("sums", width);
    let kept = run.map_or_else(Vec::new, |run| shared("kept", run));
    let results = spec.partials.as_ref().map(|p| (p, b.workgroup("results", Type::F32, FEW_PARTIAL_COLUMNS)));
    let passes = block_columns.div_ceil(columns);
    let group = b.let_("group", ctx.group(&groups));
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let count = ctx.extent(&blocks);
        let row = b.let_("m", b.div(group, count));
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, &spec.domain[..rank - 1], row);
        let depth = b.let_("k_len", ctx.extent(k));
        if !lhs_stats.is_empty() {
            let team = Team { lanes: width, teams: 1, lane: me, team: b.u32(0), active: b.bool(true), ahead: 0 };
            ctx.row_stats(&mut scope, lhs_stats, rank, depth, &team);
        }
        let block = b.rem(group, count);
        if !spec.left.is_empty() {
            b.if_(b.eq(block, 0), |b| {
                b.for_("i", me, depth, width, |_, i| ctx.store_left(&mut scope.with(rank, i)));
            });
        }
        let row = held.map(|k| left_row::hold(&ctx, &scope, (*lhs, rank), k, (me, width)));
        let first = b.mul(block, block_columns);
        let start = if run.is_some() || results.is_some() { b.let_("start", first) } else { first };
        let last = match run {
            Some(run) => b.let_("last", b.add(start, run - 1)),
            None => b.sub(ctx.extent(n), 1),
        };
        let stores: Vec<&Store> = spec.stores.iter().collect();
        let product = |pass: Val| {
            let mut local = b.div(me, lanes);
            if passes > 1 {
                local = b.add(b.mul(pass, columns), local);
            }
            let column = b.let_("n", b.add(start, local));
            let inside = b.let_("n_safe", b.min(column, last));
            let mut safe = scope.with(rank - 1, inside);
            ctx.hoist(&mut safe, &[*lhs]);
            let starts: Vec<_> =
                runs.iter().map(|(arg, row)| b.let_("run", ctx.address(&mut safe.clone(), *arg, row))).collect();
            let accs: Vec<_> = (0..rhs.len()).map(|j| b.var(&format!("acc{j}"), Type::F32, 0.0)).collect();
            b.for_("k", b.mul(lane, chunk), depth, lanes * chunk, |b, at| {
                let x = |i: u32| match row {
                    Some(row) => b.load(row, b.add(at, i)),
                    None => ctx.expr(&mut safe.with(rank, b.add(at, i)), *lhs),
                };
                if chunk == 1 {
                    let x = ctx.parts(x(0));
                    for ((arg, _), (start, acc)) in runs.iter().zip(starts.iter().zip(&accs)) {
                        ctx.multiply_parts(*acc, &x, &ctx.parts(ctx.element(*arg, b.add(*start, at))));
                    }
                    return;
                }
                let quads: Vec<_> = (0..chunk / 4)
                    .map(|q| ctx.parts(b.vec4(x(4 * q), x(4 * q + 1), x(4 * q + 2), x(4 * q + 3))))
                    .collect();
                for ((arg, _), (start, acc)) in runs.iter().zip(starts.iter().zip(&accs)) {
                    let values = ctx.values(&ctx.row_chunk(*arg, b.add(*start, at), chunk));
                    for (x, w) in quads.iter().zip(values) {
                        ctx.dot_parts(*acc, x, &ctx.parts(w));
                    }
                }
            });
            for (s, a) in sums.iter().zip(&accs) {
                b.store(*s, me, b.get(*a));
            }
            b.barrier();
            let mut half = lanes / 2;
            while half > 0 {
                b.if_(b.lt(lane, half), |b| {
                    for s in &sums {
                        b.store(*s, me, b.add(b.load(*s, me), b.load(*s, b.add(me, half))));
                    }
                });
                b.barrier();
                half /= 2;
            }
            b.if_(b.and(b.eq(lane, 0), b.le(column, last)), |b| {
                let found: Vec<Val> = sums.iter().map(|s| b.load(*s, me)).collect();
                if run.is_none() {
                    let mut here = scope.with(rank - 1, column).with_accs(found);
                    if let Some((p, results)) = results {
                        b.store(results, b.sub(column, start), ctx.expr(&mut here, p.value));
                    }
                    return ctx.store_all(&here, &stores);
                }
                let at = b.sub(column, start);
                kept.iter().zip(found).for_each(|(array, sum)| b.store(*array, at, sum));
            });
            if let Some((p, results)) = results {
                ctx.store_tile_of_workgroup(p, (me, rank - 1), (start, ctx.extent(n)), results, &scope);
            }
        };
        let Some(run) = run else { return product(b.u32(0)) };
        match passes {
            1 => product(b.u32(0)),
            _ => b.for_("pass", 0, passes, 1, |_, pass| product(pass)),
        }
        b.barrier();
        let column = |scope: &Scope, i: Val| {
            let sums = kept.iter().map(|array| b.let_("sum", b.load(*array, i))).collect();
            scope.with(rank - 1, b.add(start, i)).with_accs(sums)
        };
        let mut scope = scope.clone();
        let team = Team { lanes: width, teams: 1, lane: me, team: b.u32(0), active: b.bool(true), ahead: 0 };
        ctx.column_stats(&mut scope, spec.column_stats(), &column, b.u32(run), &team);
        b.for_("i", me, run, width, |_, i| ctx.store_all(&column(&scope, i), &stores));
    });
    let mut tile = vec![("columns", columns), ("lanes", lanes), ("chunk", chunk)];
    tile.extend(run.map(|_| ("passes", passes)));
    ctx.finish("gemv", &tile, dispatch(&groups))
}
