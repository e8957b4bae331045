//! Matrix-vector products by subgroups that exchange values: each takes a few columns of one row of the left side, its
//! lanes split K in chunks of 16 bytes or a block, and partial sums meet in registers.
//!
//! Every element of the left side serves all columns of a subgroup. Several chunks of each column are asked for before
//! the first is used, which is what keeps memory busy. The order of the sum depends on K and the storage alone.
//!
//! Rows of a few chunks are written out, and their weights asked for before anything else ([`warp_row`]): the statistics of a
//! norm then take no workgroup memory and no barrier. Where launches overlap, the first chunks are asked for before the
//! kernel waits for the launch in front of it.

use super::load::View;
use super::reduce::WARP;
use super::stats::Team;
use super::warp_row::{self, Kept, Place};
use super::{KernelCtx, Rendered, Scope, TemplateError, dispatch, left_row};
use crate::dim::{Dim, Sym, product};
use crate::dtype::Storage;
use crate::ir::{ArrayRef, Type, Val, Var};
use crate::spec::{ArgId, ExprId, FEW_PARTIAL_COLUMNS, KernelSpec, Space, Stat, Store};
use crate::target::Capabilities;

/// Subgroups of a workgroup.
const WARPS: u32 = 4;
/// Columns of a subgroup, of one right side.
const COLUMNS: u32 = 2;

const _: () = assert!(COLUMNS * WARPS == FEW_PARTIAL_COLUMNS);

/// Chunks of a lane, of all columns and right sides together, up to which a row is written out: four registers each.
const MOST_CHUNKS: u32 = 16;

/// Invocations of a multiprocessor, by how many registers weights and left side may then take.
const RESIDENT: [(u32, u32); 3] = [(512, 80), (384, 112), (256, u32::MAX)];
/// Multiprocessors of a large GPU: so many workgroups that all run at once are enough.
const MULTIPROCESSORS: u32 = 132;
/// Passes of a workgroup at most.
const MOST_PASSES: u32 = 16;
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
    let shape = Shape::new(spec, p, n);
    let blocks = n.ceil_div(&Dim::constant(i64::from(shape.per_group() * shape.passes)));
    let groups = &blocks * &product(row_axes);
    let ctx = KernelCtx::new(spec, caps, [WARP * WARPS, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    b.share_multiprocessor(shape.resident(p));
    let me = b.let_("me", b.local_x());
    let lane = b.let_("lane", b.bit_and(me, WARP - 1));
    let group = b.let_("group", ctx.group(&groups));
    let results = spec.partials.as_ref().map(|_| b.workgroup("results", Type::F32, FEW_PARTIAL_COLUMNS));
    let kernel = Kernel { ctx: &ctx, p, n, row_axes, shape: &shape, me, lane, group, blocks: &blocks, results };
    match shape.short {
        Some(k) => kernel.short_rows(k, &groups),
        None => kernel.long_rows(&groups),
    }
    let tile = [
        ("columns", shape.per_group()),
        ("columns_per_warp", shape.columns),
        ("chunk", shape.chunk),
        ("unroll", shape.short.map_or(shape.unroll, |k| k.div_ceil(shape.step()))),
        ("passes", shape.passes),
    ];
    ctx.finish("gemv_warp", &tile, dispatch(&groups))
}

/// How the work is split.
struct Shape {
    /// Columns of a subgroup at once.
    columns: u32,
    /// Elements of a chunk.
    chunk: u32,
    /// The extent of a row that is written out, chunk by chunk.
    short: Option<u32>,
    /// How often a workgroup takes columns, for one row of the left side that its lanes keep.
    passes: u32,
    /// Chunks at once, of a row that is not written out, and the elements that are taken so.
    unroll: u32,
    whole: u32,
}

impl Shape {
    fn new(spec: &KernelSpec, p: &Product<'_>, n: &Dim) -> Shape {
        let columns = if p.runs.len() == 1 { COLUMNS } else { 1 };
        let constant = p.k.as_const().and_then(|k| u32::try_from(k).ok());
        let wanted = chunk_of(spec, &p.runs);
        let chunk = constant.filter(|k| k.is_multiple_of(wanted)).map_or(1, |_| wanted);
        let step = WARP * chunk;
        let short = constant.filter(|k| chunk > 1 && k.div_ceil(step) * columns * p.runs.len() as u32 <= MOST_CHUNKS);
        let most = (32 / chunk).clamp(1, 4);
        // Chunks of a lane, where all lanes have as many.
        let chunks = constant.map_or(0, |k| k / step);
        let unroll = (1..=most).rev().find(|u| chunks.is_multiple_of(*u)).unwrap_or(1);
        let whole = constant.map_or(0, |k| k - k % (step * unroll));
        let mut shape = Shape { columns, chunk, short, passes: 1, unroll, whole };
        let wide = n.as_const().and_then(|n| u32::try_from(n).ok()).filter(|_| short.is_some());
        // What precedes the product is computed once for all passes. Of shorter rows it costs less than passes do.
        let is_long = shape.registers(p) > RESIDENT[1].1;
        if let Some(wide) = wide.filter(|_| is_long && !p.lhs_stats.is_empty() && p.is_plain(spec)) {
            shape.passes = 2;
            let workgroups = MULTIPROCESSORS * shape.resident(p) / (WARP * WARPS);
            let passes = wide.div_ceil(shape.per_group() * workgroups).min(MOST_PASSES);
            // Two passes leave every other multiprocessor half the work.
            shape.passes = if passes > 2 { passes } else { 1 };
        }
        shape
    }
    fn per_group(&self) -> u32 {
        self.columns * WARPS
    }
    fn step(&self) -> u32 {
        WARP * self.chunk
    }
    /// Invocations that share a multiprocessor.
    fn resident(&self, p: &Product<'_>) -> u32 {
        let registers = self.registers(p);
        // Without passes the left side is used up chunk by chunk.
        let registers = if self.passes == 1 { registers.min(RESIDENT[1].1) } else { registers };
        RESIDENT.iter().find(|(_, most)| registers <= *most).map_or(RESIDENT[2].0, |(resident, _)| *resident)
    }
    /// Words of weights and floats of the left side that a lane has at once, of a row that is written out.
    fn registers(&self, p: &Product<'_>) -> u32 {
        let chunks = self.short.map_or(0, |k| k.div_ceil(self.step()));
        chunks * (self.chunk + self.chunk / 2 * self.columns * p.runs.len() as u32)
    }
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

struct Kernel<'k, 'a> {
    ctx: &'k KernelCtx<'a>,
    p: &'k Product<'a>,
    n: &'k Dim,
    row_axes: &'k [Dim],
    shape: &'k Shape,
    me: Val,
    lane: Val,
    group: Val,
    /// Workgroups of a row.
    blocks: &'k Dim,
    /// Where results go of which statistics are wanted.
    results: Option<ArrayRef>,
}

impl Kernel<'_, '_> {
    /// Which row, and which block of columns.
    fn split(&self) -> (Val, Val) {
        let b = &self.ctx.b;
        let count = self.ctx.extent(self.blocks);
        let row = b.let_("m", b.div(self.group, count));
        (row, b.let_("block", b.sub(self.group, b.mul(row, count))))
    }

    /// The columns of this subgroup in a pass over block `block`.
    fn columns(&self, scope: &Scope, block: Val, pass: Val) -> Columns {
        let (ctx, shape) = (self.ctx, self.shape);
        let b = &ctx.b;
        let block = if shape.passes > 1 { b.add(b.mul(block, shape.passes), pass) } else { block };
        let warp = b.shr(self.me, WARP.trailing_zeros());
        let first = b.let_("n", b.add(b.mul(block, shape.per_group()), b.mul(warp, shape.columns)));
        let last = b.let_("last", b.sub(ctx.extent(self.n), 1));
        let axis = self.row_axes.len();
        let start = |column: u32| -> Vec<Val> {
            let inside = b.let_("n_safe", b.min(b.add(first, column), last));
            let mut safe = scope.with(axis, inside);
            self.p.runs.iter().map(|(arg, row)| b.let_("run", ctx.address(&mut safe, *arg, row))).collect()
        };
        Columns { first, last, starts: (0..shape.columns).map(start).collect() }
    }

    /// What precedes the product of a row: its statistics, its copy if it is wanted elsewhere, and the left side in workgroup
    /// memory if it is costly. With `places`, every subgroup computes the statistics for itself.
    fn begin(&self, row: Val, block: Val, places: Option<&[Place]>) -> (Scope, Vec<Kept>, Option<ArrayRef>) {
        let (ctx, p, me) = (self.ctx, self.p, self.me);
        let (b, spec, axis) = (&ctx.b, ctx.spec, ctx.spec.domain.len());
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, self.row_axes, row);
        let depth = b.let_("k_len", ctx.extent(p.k));
        let mut kept = Vec::new();
        match places.filter(|_| warp_row::serves(spec, p.lhs_stats)) {
            Some(places) => {
                kept = warp_row::stats(ctx, &mut scope, p.lhs_stats, (p.lhs, axis), places, self.shape.chunk);
            }
            None if !p.lhs_stats.is_empty() => {
                let (zero, all) = (b.u32(0), b.bool(true));
                let team = Team { lanes: WARP * WARPS, teams: 1, lane: me, team: zero, active: all, ahead: 0 };
                ctx.row_stats(&mut scope, p.lhs_stats, axis, depth, &team);
            }
            None => {}
        }
        if !spec.left.is_empty() {
            b.if_(b.eq(block, 0), |b| {
                b.for_("i", me, depth, WARP * WARPS, |_, i| ctx.store_left(&mut scope.with(axis, i)));
            });
        }
        let held = left_row::length(p.k, ctx.caps).filter(|_| left_row::is_costly(spec, p.lhs));
        let row = held.map(|k| left_row::hold(ctx, &scope, (p.lhs, axis), k, (me, WARP * WARPS)));
        if row.is_none() {
            ctx.hoist(&mut scope, &[p.lhs]);
        }
        (scope, kept, row)
    }

    /// Rows of a few chunks, all of which are asked for at once.
    fn short_rows(&self, k: u32, groups: &Dim) {
        let (ctx, p, shape) = (self.ctx, self.p, self.shape);
        let b = &ctx.b;
        let places = warp_row::places(b, self.lane, k, shape.chunk);
        let early = p.reads_ahead(ctx.spec, self.n);
        let ask = |columns: &Columns| -> Vec<Words> {
            places.iter().filter(|_| early).map(|place| columns.ask(ctx, p, place.at, shape.chunk)).collect()
        };
        let ahead = early.then(|| {
            let (row, block) = self.split();
            let columns = self.columns(&Scope::new(), block, b.u32(0));
            let words = ask(&columns);
            if ctx.caps.overlaps() {
                b.launch_barrier();
            }
            (row, block, columns, words)
        });
        b.if_(b.lt(self.group, ctx.extent(groups)), |b| {
            let (row, block) = ahead.as_ref().map_or_else(|| self.split(), |a| (a.0, a.1));
            let (scope, mut kept, row) = self.begin(row, block, Some(&places));
            if shape.passes > 1 {
                kept = warp_row::elements(ctx, &scope, (p.lhs, ctx.spec.domain.len()), &places, shape.chunk, &kept);
            }
            let take = |columns: &Columns, words: &[Words]| {
                let sum = Sum::new(ctx, p, shape.chunk, columns, row, self.results);
                for (u, place) in places.iter().enumerate() {
                    let product = || sum.take(&scope, place.at, kept.get(u), words.get(u));
                    match place.inside {
                        Some(inside) => b.if_(inside, |_| product()),
                        None => product(),
                    }
                }
                sum.store(&scope, self.lane, columns);
                self.store_partials(&scope, columns);
            };
            let own;
            let (columns, words) = match &ahead {
                Some((_, _, columns, words)) => (columns, words.as_slice()),
                None => {
                    own = self.columns(&scope, block, b.u32(0));
                    (&own, [].as_slice())
                }
            };
            take(columns, words);
            if shape.passes > 1 {
                b.for_("pass", 1, shape.passes, 1, |_, pass| {
                    let columns = self.columns(&scope, block, pass);
                    take(&columns, &ask(&columns));
                });
            }
        });
    }

    /// Rows that are passed over in loops; where launches overlap, the first chunks are asked for before the wait.
    fn long_rows(&self, groups: &Dim) {
        let (ctx, p, shape) = (self.ctx, self.p, self.shape);
        let (b, step) = (&ctx.b, shape.step());
        let early = ctx.caps.overlaps() && shape.whole > 0 && shape.chunk > 1 && p.reads_ahead(ctx.spec, self.n);
        let ahead = early.then(|| {
            let (row, block) = self.split();
            let columns = self.columns(&Scope::new(), block, b.u32(0));
            let places = warp_row::places(b, self.lane, step * shape.unroll, shape.chunk);
            let words: Vec<Words> = places.iter().map(|at| columns.ask(ctx, p, at.at, shape.chunk)).collect();
            b.launch_barrier();
            (row, block, columns, places, words)
        });
        b.if_(b.lt(self.group, ctx.extent(groups)), |b| {
            let (row, block) = ahead.as_ref().map_or_else(|| self.split(), |a| (a.0, a.1));
            let (scope, _, row) = self.begin(row, block, None);
            let own;
            let columns = match &ahead {
                Some(a) => &a.2,
                None => {
                    own = self.columns(&scope, block, b.u32(0));
                    &own
                }
            };
            let sum = Sum::new(ctx, p, shape.chunk, columns, row, self.results);
            for (place, words) in ahead.iter().flat_map(|a| a.3.iter().zip(&a.4)) {
                sum.take(&scope, place.at, None, Some(words));
            }
            let from = ahead.as_ref().and_then(|a| Some(a.3.first()?.at));
            let from = from.unwrap_or_else(|| b.let_("from", b.mul(self.lane, shape.chunk)));
            let begun = if ahead.is_some() { step * shape.unroll } else { 0 };
            if shape.whole > begun {
                let start = if begun > 0 { b.add(from, begun) } else { from };
                b.for_("k", start, b.add(b.u32(shape.whole), from), step * shape.unroll, |b, at| {
                    let places: Vec<Val> = (0..shape.unroll).map(|u| b.add(at, u * step)).collect();
                    places.into_iter().for_each(|at| sum.take(&scope, at, None, None));
                });
            }
            if p.k.as_const().is_none_or(|k| k % i64::from(step * shape.unroll) != 0) {
                let depth = ctx.extent(p.k);
                b.for_("k", b.add(b.u32(shape.whole), from), depth, step, |_, at| sum.take(&scope, at, None, None));
            }
            sum.store(&scope, self.lane, columns);
            self.store_partials(&scope, columns);
        });
    }

    /// Writes the statistics of this pass's columns, if they are wanted, from the results that the subgroups left.
    fn store_partials(&self, scope: &Scope, columns: &Columns) {
        let (Some(p), Some(results)) = (&self.ctx.spec.partials, self.results) else { return };
        let b = &self.ctx.b;
        let warp = b.shr(self.me, WARP.trailing_zeros());
        let start = b.let_("start", b.sub(columns.first, b.mul(warp, self.shape.columns)));
        let n = self.ctx.extent(self.n);
        self.ctx.store_tile_of_workgroup(p, (self.me, self.row_axes.len()), (start, n), results, scope);
    }
}

impl Product<'_> {
    /// Whether the weights are of plain storage.
    fn is_plain(&self, spec: &KernelSpec) -> bool {
        self.runs.iter().all(|(arg, _)| spec.arg(*arg).is_some_and(|a| !a.storage.is_quantised()))
    }
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
    p: &'k Product<'a>,
    chunk: u32,
    starts: &'k [Vec<Val>],
    /// By column and right side.
    accs: Vec<Vec<Var>>,
    /// The left side in workgroup memory.
    row: Option<ArrayRef>,
    /// Where results go of which statistics are wanted.
    results: Option<ArrayRef>,
}

impl<'k, 'a> Sum<'k, 'a> {
    fn new(
        ctx: &'k KernelCtx<'a>,
        p: &'k Product<'a>,
        chunk: u32,
        columns: &'k Columns,
        row: Option<ArrayRef>,
        results: Option<ArrayRef>,
    ) -> Sum<'k, 'a> {
        let acc = |_| ctx.b.var("acc", Type::F32, 0.0);
        let accs = columns.starts.iter().map(|s| s.iter().map(acc).collect()).collect();
        Sum { ctx, p, chunk, starts: &columns.starts, accs, row, results }
    }
    /// Adds the products of the chunk at `at`, of which the left side or the weights may have been loaded already.
    fn take(&self, scope: &Scope, at: Val, kept: Option<&Kept>, loaded: Option<&Words>) {
        let (ctx, p, chunk) = (self.ctx, self.p, self.chunk);
        let b = &ctx.b;
        let axis = ctx.spec.domain.len();
        let x = |i: u32| match self.row {
            Some(row) => b.load(row, b.add(at, i)),
            None => {
                let mut here = scope.with(axis, b.add(at, i));
                here.exprs.extend(kept.and_then(|k| k.get(i as usize)).into_iter().flatten());
                ctx.expr(&mut here, p.lhs)
            }
        };
        if chunk == 1 {
            let x = ctx.parts(x(0));
            for (starts, accs) in self.starts.iter().zip(&self.accs) {
                for ((arg, _), (start, acc)) in p.runs.iter().zip(starts.iter().zip(accs)) {
                    ctx.multiply_parts(*acc, &x, &ctx.parts(ctx.element(*arg, b.add(*start, at))));
                }
            }
            return;
        }
        let quads: Vec<Vec<Val>> =
            (0..chunk / 4).map(|q| ctx.parts(b.vec4(x(4 * q), x(4 * q + 1), x(4 * q + 2), x(4 * q + 3)))).collect();
        for (c, (starts, accs)) in self.starts.iter().zip(&self.accs).enumerate() {
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
    /// Joins the lanes' sums and stores every column that exists.
    fn store(&self, scope: &Scope, lane: Val, columns: &Columns) {
        let ctx = self.ctx;
        let b = &ctx.b;
        let across = |acc: &Var| ctx.across(WARP, b.get(*acc), |b, x, y| b.add(x, y));
        let sums: Vec<Vec<Val>> = self.accs.iter().map(|column| column.iter().map(across).collect()).collect();
        let stores: Vec<&Store> = ctx.spec.stores.iter().collect();
        for (i, found) in sums.into_iter().enumerate() {
            let column = b.let_("column", b.add(columns.first, i as u32));
            b.if_(b.and(b.eq(lane, 0), b.le(column, columns.last)), |_| {
                let axis = ctx.spec.domain.len() - 1;
                let mut here = scope.with(axis, column).with_accs(found);
                if let Some((p, results)) = ctx.spec.partials.as_ref().zip(self.results) {
                    b.store(results, b.rem(column, FEW_PARTIAL_COLUMNS), ctx.expr(&mut here, p.value));
                }
                ctx.store_all(&here, &stores);
            });
        }
    }
}
