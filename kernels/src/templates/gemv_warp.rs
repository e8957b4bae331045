//! Matrix-vector products by subgroups that exchange values: each takes a few columns of one row of the left side, its
//! lanes split K in chunks of 16 bytes or a block, and partial sums meet in registers.
//!
//! Every element of the left side serves all columns of a subgroup. Several chunks of each column are asked for before
//! the first is used, which is what keeps memory busy. The order of the sum depends on K and the storage alone.
//!
//! Where launches overlap, the first chunks are asked for before the kernel waits for the launch in front of it.

use super::load::View;
use super::reduce::WARP;
use super::stats::Team;
use super::{KernelCtx, Rendered, Scope, TemplateError, dispatch, left_row};
use crate::dim::{Dim, Sym, product};
use crate::dtype::Storage;
use crate::ir::{ArrayRef, Type, Val, Var};
use crate::spec::{ArgId, ExprId, KernelSpec, Space, Stat, Store};
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
    let step = WARP * chunk;
    let whole = constant.map_or(0, |k| k - k % (step * unroll));
    let early = caps.overlaps() && whole > 0 && chunk > 1 && p.reads_ahead(spec, n);
    // Which block of columns, which row, and where the weights lie.
    let split = || {
        let count = ctx.extent(&blocks);
        let row = b.let_("m", b.div(group, count));
        (row, b.sub(group, b.mul(row, count)))
    };
    let columns_of = |scope: &mut Scope, block: Val, hoisted: &[ExprId]| {
        let first = b.let_("n", b.add(b.mul(block, per_group), b.mul(b.shr(me, WARP.trailing_zeros()), columns)));
        let last = b.let_("last", b.sub(ctx.extent(n), 1));
        ctx.hoist(scope, hoisted);
        let start = |column: u32| -> Vec<Val> {
            let inside = b.let_("n_safe", b.min(b.add(first, column), last));
            let mut safe = scope.with(rank - 1, inside);
            p.runs.iter().map(|(arg, row)| b.let_("run", ctx.address(&mut safe, *arg, row))).collect()
        };
        Columns { first, last, starts: (0..columns).map(start).collect() }
    };
    let from = || b.let_("from", b.mul(lane, chunk));
    let ahead = early.then(|| {
        let (row, block) = split();
        let (columns, from) = (columns_of(&mut Scope::new(), block, &[]), from());
        let words = (0..unroll).map(|u| columns.ask(&ctx, p, b.add(from, u * step), chunk)).collect();
        b.launch_barrier();
        Ahead { row, block, columns, from, words }
    });
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let (row, block) = ahead.as_ref().map_or_else(split, |a| (a.row, a.block));
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, row_axes, row);
        let depth = b.let_("k_len", ctx.extent(p.k));
        if !p.lhs_stats.is_empty() {
            let team = Team { lanes: WARP * WARPS, teams: 1, lane: me, team: b.u32(0), active: b.bool(true) };
            ctx.row_stats(&mut scope, p.lhs_stats, rank, depth, &team);
        }
        if let Some(left) = &spec.left {
            b.if_(b.eq(block, 0), |b| {
                b.for_("i", me, depth, WARP * WARPS, |_, i| ctx.store_left(&mut scope.with(rank, i), p.lhs, left));
            });
        }
        let held = left_row::length(p.k, caps).filter(|_| left_row::is_costly(spec, p.lhs));
        let row = held.map(|k| left_row::hold(&ctx, &scope, (p.lhs, rank), k, (me, WARP * WARPS)));
        let hoisted: &[ExprId] = if row.is_some() { &[] } else { &[p.lhs] };
        let found = match &ahead {
            Some(_) => {
                ctx.hoist(&mut scope, hoisted);
                None
            }
            None => Some(columns_of(&mut scope, block, hoisted)),
        };
        let Some(place) = ahead.as_ref().map(|a| &a.columns).or(found.as_ref()) else { return };
        let (first, last, starts) = (place.first, place.last, &place.starts);
        let accs: Vec<Vec<Var>> =
            starts.iter().map(|s| s.iter().map(|_| b.var("acc", Type::F32, 0.0)).collect()).collect();
        let from = ahead.as_ref().map_or_else(from, |a| a.from);
        let sum = Sum { ctx: &ctx, p, chunk, starts, accs: &accs, row };
        if let Some(a) = &ahead {
            for (u, words) in a.words.iter().enumerate() {
                sum.take(&scope, b.add(from, u as u32 * step), Some(words));
            }
        }
        let begun = if ahead.is_some() { step * unroll } else { 0 };
        if whole > begun {
            let start = if begun > 0 { b.add(from, begun) } else { from };
            b.for_("k", start, b.add(b.u32(whole), from), step * unroll, |b, at| {
                let places: Vec<Val> = (0..unroll).map(|u| b.add(at, u * step)).collect();
                places.into_iter().for_each(|at| sum.take(&scope, at, None));
            });
        }
        if constant.is_none_or(|k| k % (step * unroll) != 0) {
            b.for_("k", b.add(b.u32(whole), from), depth, step, |_, at| sum.take(&scope, at, None));
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

/// Raw chunks of every column and right side.
type Words = Vec<Vec<Vec<Val>>>;

/// The columns of a subgroup.
struct Columns {
    first: Val,
    last: Val,
    /// Where each column's rows start, by column and right side.
    starts: Vec<Vec<Val>>,
}

/// What is known and loaded while the launch before may still run.
struct Ahead {
    row: Val,
    block: Val,
    columns: Columns,
    from: Val,
    /// By chunk.
    words: Vec<Words>,
}

impl Product<'_> {
    /// Whether weights can be loaded before the launch before has ended: plain ones, whose place depends on no size.
    fn reads_ahead(&self, spec: &KernelSpec, n: &Dim) -> bool {
        let axis = Sym::Axis((spec.domain.len() - 1) as u8);
        let plain = |arg: ArgId| spec.arg(arg).is_some_and(|a| !a.storage.is_quantised() && a.space == Space::Weight);
        let fixed = |row: &Dim| row.symbols().iter().all(|s| *s == axis);
        n.as_const().is_some() && self.runs.iter().all(|(arg, row)| plain(*arg) && fixed(row))
    }
}

impl Columns {
    /// Asks for the chunks at `at` along k.
    fn ask(&self, ctx: &KernelCtx<'_>, p: &Product<'_>, at: Val, chunk: u32) -> Words {
        let b = &ctx.b;
        let one = |(start, (arg, _)): (&Val, &(ArgId, Dim))| {
            ctx.raw(*arg, b.add(*start, at), chunk).into_iter().map(|w| b.let_("ahead", w)).collect()
        };
        self.starts.iter().map(|starts| starts.iter().zip(&p.runs).map(one).collect()).collect()
    }
}

/// The sums of every column.
struct Sum<'k, 'a> {
    ctx: &'k KernelCtx<'a>,
    p: &'k Product<'k>,
    chunk: u32,
    starts: &'k [Vec<Val>],
    accs: &'k [Vec<Var>],
    /// The left side in workgroup memory.
    row: Option<ArrayRef>,
}

impl Sum<'_, '_> {
    /// Adds the products of the chunk at `at`, whose weights may have been loaded already.
    fn take(&self, scope: &Scope, at: Val, loaded: Option<&Words>) {
        let (ctx, p, chunk) = (self.ctx, self.p, self.chunk);
        let b = &ctx.b;
        let axis = ctx.spec.domain.len();
        let x = |i: u32| match self.row {
            Some(row) => b.load(row, b.add(at, i)),
            None => ctx.expr(&mut scope.with(axis, b.add(at, i)), p.lhs),
        };
        if chunk == 1 {
            let x = ctx.parts(x(0));
            for (starts, accs) in self.starts.iter().zip(self.accs) {
                for ((arg, _), (start, acc)) in p.runs.iter().zip(starts.iter().zip(accs)) {
                    ctx.multiply_parts(*acc, &x, &ctx.parts(ctx.element(*arg, b.add(*start, at))));
                }
            }
            return;
        }
        let quads: Vec<Vec<Val>> =
            (0..chunk / 4).map(|q| ctx.parts(b.vec4(x(4 * q), x(4 * q + 1), x(4 * q + 2), x(4 * q + 3)))).collect();
        for (c, (starts, accs)) in self.starts.iter().zip(self.accs).enumerate() {
            for (j, ((arg, _), (start, acc))) in p.runs.iter().zip(starts.iter().zip(accs)).enumerate() {
                let loaded = loaded.and_then(|w| w.get(c)?.get(j));
                let values = match (loaded, ctx.spec.arg(*arg)) {
                    (Some(words), Some(a)) => ctx.decoded(a.storage, words),
                    _ => ctx.values(&ctx.row_chunk(*arg, b.add(*start, at), chunk)),
                };
                for (x, w) in quads.iter().zip(values) {
                    ctx.dot_parts(*acc, x, &ctx.parts(w));
                }
            }
        }
    }
}
