//! Matrix-vector products by subgroups that exchange values: each takes a few columns of one row of the left side, its
//! lanes split K in chunks of 16 bytes or a block, and partial sums meet in registers.
//!
//! Every element of the left side serves all columns of a subgroup. Several chunks of each column are asked for before
//! the first is used, which is what keeps memory busy. The order of the sum depends on K and the storage alone.

use super::load::View;
use super::reduce::WARP;
use super::stats::Team;
use super::{KernelCtx, Rendered, Scope, TemplateError, dispatch};
use crate::dim::{Dim, product};
use crate::dtype::Storage;
use crate::ir::{Type, Val, Var};
use crate::spec::{ArgId, ExprId, KernelSpec, Stat, Store};
use crate::target::Capabilities;

/// Subgroups of a workgroup.
const WARPS: u32 = 4;

/// The parts of a matrix-vector product.
pub(super) struct Product<'a> {
    /// Extent of the summed axis.
    pub k: &'a Dim,
    /// Left side.
    pub lhs: ExprId,
    /// Statistics of its rows.
    pub lhs_stats: &'a [Stat],
    /// Each right side's argument and the start of its rows.
    pub runs: Vec<(ArgId, Dim)>,
}

/// Elements of a chunk: 16 bytes of plain storage, or what shares a scale.
fn chunk_of(spec: &KernelSpec, runs: &[(ArgId, Dim)]) -> u32 {
    let chunk = |arg: ArgId| match spec.arg(arg).map(|a| a.storage) {
        Some(Storage::F32) => 4,
        Some(Storage::F16 | Storage::Bf16) => 8,
        _ => 32,
    };
    runs.iter().map(|(arg, _)| chunk(*arg)).max().unwrap_or(4)
}

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities, p: &Product<'_>) -> Result<Rendered, TemplateError> {
    let rank = spec.domain.len();
    let (Some(n), Some(row_axes)) = (spec.domain.last(), spec.domain.get(..rank - 1)) else {
        return Err(TemplateError::unsupported(spec, "a matmul without the axes M and N"));
    };
    let columns = if p.runs.len() == 1 { 2 } else { 1 };
    let per_group = columns * WARPS;
    let blocks = n.ceil_div(&Dim::constant(i64::from(per_group)));
    let groups = &blocks * &product(row_axes);
    let ctx = KernelCtx::new(spec, caps, [WARP * WARPS, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let constant = p.k.as_const().and_then(|k| u32::try_from(k).ok());
    let wanted = chunk_of(spec, &p.runs);
    let chunk = constant.filter(|k| k.is_multiple_of(wanted)).map_or(1, |_| wanted);
    let most = (32 / chunk).clamp(1, 4);
    // Chunks of a lane, where all lanes have as many.
    let chunks = constant.map_or(0, |k| k / (WARP * chunk));
    let unroll = (1..=most).rev().find(|u| chunks.is_multiple_of(*u)).unwrap_or(1);
    let me = b.let_("me", b.local_x());
    let lane = b.let_("lane", b.bit_and(me, WARP - 1));
    let group = b.let_("group", ctx.group(&groups));
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let count = ctx.extent(&blocks);
        let row = b.let_("m", b.div(group, count));
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, row_axes, row);
        let depth = b.let_("k_len", ctx.extent(p.k));
        if !p.lhs_stats.is_empty() {
            let team = Team { lanes: WARP * WARPS, teams: 1, lane: me, team: b.u32(0), active: b.bool(true) };
            ctx.row_stats(&mut scope, p.lhs_stats, rank, depth, &team);
        }
        let block = b.sub(group, b.mul(row, count));
        if let Some(left) = &spec.left {
            b.if_(b.eq(block, 0), |b| {
                b.for_("i", me, depth, WARP * WARPS, |_, i| ctx.store_left(&mut scope.with(rank, i), p.lhs, left));
            });
        }
        let first = b.let_("n", b.add(b.mul(block, per_group), b.mul(b.shr(me, WARP.trailing_zeros()), columns)));
        let last = b.let_("last", b.sub(ctx.extent(n), 1));
        ctx.hoist(&mut scope, &[p.lhs]);
        let start = |column: u32| -> Vec<Val> {
            let inside = b.let_("n_safe", b.min(b.add(first, column), last));
            let mut safe = scope.with(rank - 1, inside);
            p.runs.iter().map(|(arg, row)| b.let_("run", ctx.address(&mut safe, *arg, row))).collect()
        };
        let starts: Vec<Vec<Val>> = (0..columns).map(start).collect();
        let accs: Vec<Vec<Var>> =
            starts.iter().map(|s| s.iter().map(|_| b.var("acc", Type::F32, 0.0)).collect()).collect();
        let step = WARP * chunk;
        let from = b.let_("from", b.mul(lane, chunk));
        let whole = match constant {
            Some(k) => b.u32(k - k % (step * unroll)),
            None => b.u32(0),
        };
        if b.const_u32(whole) != Some(0) {
            b.for_("k", from, b.add(whole, from), step * unroll, |b, at| {
                let places: Vec<Val> = (0..unroll).map(|u| b.add(at, u * step)).collect();
                take(&ctx, p, &scope, &places, chunk, &starts, &accs);
            });
        }
        if constant.is_none_or(|k| k % (step * unroll) != 0) {
            b.for_("k", b.add(whole, from), depth, step, |_, at| {
                take(&ctx, p, &scope, &[at], chunk, &starts, &accs);
            });
        }
        let sums: Vec<Vec<Val>> = accs
            .iter()
            .map(|column| column.iter().map(|a| ctx.across(WARP, b.get(*a), |b, x, y| b.add(x, y))).collect())
            .collect();
        let stores: Vec<&Store> = spec.stores.iter().collect();
        for (i, found) in sums.into_iter().enumerate() {
            let column = b.let_("column", b.add(first, i as u32));
            b.if_(b.and(b.eq(lane, 0), b.le(column, last)), |_| {
                ctx.store_all(&scope.with(rank - 1, column).with_accs(found), &stores);
            });
        }
    });
    let tile = [("columns", per_group), ("columns_per_warp", columns), ("chunk", chunk), ("unroll", unroll)];
    ctx.finish("gemv_warp", &tile, dispatch(&groups))
}

/// Adds the products of the chunks at `places` to the sums of every column.
fn take(
    ctx: &KernelCtx<'_>,
    p: &Product<'_>,
    scope: &Scope,
    places: &[Val],
    chunk: u32,
    starts: &[Vec<Val>],
    accs: &[Vec<Var>],
) {
    let b = &ctx.b;
    let axis = ctx.spec.domain.len();
    for at in places {
        let x = |i: u32| ctx.expr(&mut scope.with(axis, b.add(*at, i)), p.lhs);
        if chunk == 1 {
            let x = ctx.parts(x(0));
            for (starts, accs) in starts.iter().zip(accs) {
                for ((arg, _), (start, acc)) in p.runs.iter().zip(starts.iter().zip(accs)) {
                    ctx.multiply_parts(*acc, &x, &ctx.parts(ctx.element(*arg, b.add(*start, *at))));
                }
            }
            continue;
        }
        let quads: Vec<Vec<Val>> =
            (0..chunk / 4).map(|q| ctx.parts(b.vec4(x(4 * q), x(4 * q + 1), x(4 * q + 2), x(4 * q + 3)))).collect();
        for (starts, accs) in starts.iter().zip(accs) {
            for ((arg, _), (start, acc)) in p.runs.iter().zip(starts.iter().zip(accs)) {
                let values = ctx.values(&ctx.row_chunk(*arg, b.add(*start, *at), chunk));
                for (x, w) in quads.iter().zip(values) {
                    ctx.dot_parts(*acc, x, &ctx.parts(w));
                }
            }
        }
    }
}
