//! Matrix products with any number of rows, blocked in registers.
//!
//! Two schedules. On CPU drivers every invocation computes a tile of outputs straight from storage: no workgroup
//! memory, no barrier. On GPUs a workgroup stages tiles of both sides in workgroup memory. In both, one accumulator
//! sums over k in ascending order, so a sum depends on the extent of k alone.

use super::common::{KernelCtx, Scope, dispatch};
use super::product::{Problem, Right, is_along};
use super::{Rendered, TemplateError, gemm_matrix, gemm_warpgroup};
use crate::ir::{Builder, Type, Val, Var};
use crate::spec::{ExprId, KernelSpec, PARTIAL_COLUMNS, PartialKind, Partials};
use crate::target::{Capabilities, Tier};

/// Rows of a staged tile along k.
const DEPTH: u32 = 16;

/// Threads of a multiprocessor that staged tiles leave room for: twice as many leave registers for most kernels only.
const RESIDENT: u32 = 256;

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let problem = Problem::new(spec)?;
    if spec.partials.as_ref().is_some_and(|p| p.columns != PARTIAL_COLUMNS || p.kind == PartialKind::Largest) {
        return Err(TemplateError::unsupported(spec, "tiles of few rows, of a product of many"));
    }
    if caps.has_warpgroups()
        && let Ok(plan) = gemm_warpgroup::plan(&problem)
    {
        return gemm_warpgroup::render(&problem, caps, &plan);
    }
    if caps.has_matrix
        && let Some(format) = gemm_matrix::format_of(&problem)
    {
        return gemm_matrix::render(&problem, caps, format);
    }
    match caps.tier {
        Tier::Cpu if spec.partials.is_some() => {
            Err(TemplateError::unsupported(spec, "statistics of tiles of a product that is no run of blocks along k"))
        }
        Tier::Cpu => in_registers(&problem, caps),
        Tier::Gpu | Tier::Cuda => staged(&problem, caps),
    }
}

fn zeroed(b: &Builder, accs: usize, rows: u32, columns: u32) -> Vec<Vec<Vec<Var>>> {
    let four = |_| b.var("acc", Type::VEC4_F32, 0.0);
    (0..accs).map(|_| (0..rows).map(|_| (0..columns / 4).map(four).collect()).collect()).collect()
}

/// A register tile a invocation, straight from storage.
fn in_registers<'a>(p: &Problem<'a>, caps: &'a Capabilities) -> Result<Rendered, TemplateError> {
    let (height, width) = match p.rhs.len() {
        1 => (8, 8),
        2 => (8, 4),
        _ => (4, 4),
    };
    let side = 8;
    let ctx = p.context(caps, [side, side, 1])?;
    let b = &ctx.b;
    let (rows, columns) = (side * height, side * width);
    p.in_block(&ctx, rows, columns, |b, scope, first, column| {
        let me = b.add(b.mul(b.local_y(), side), b.local_x());
        let stats = p.row_stats(&ctx, &scope, (first, rows), column, (me, side * side), b.bool(true));
        let local = b.let_("local", b.mul(b.local_y(), height));
        let row = b.let_("row0", b.add(first, local));
        let column = b.let_("column0", b.add(column, b.mul(b.local_x(), width)));
        let inside = b.and(b.lt(row, ctx.extent(&p.rows())), b.lt(column, ctx.extent(&p.columns())));
        b.if_(inside, |b| {
            let accs = zeroed(b, p.rhs.len(), height, width);
            let left: Vec<Scope> =
                (0..height).map(|i| p.row_scope(&ctx, &scope, first, b.add(local, i), &stats)).collect();
            let right: Vec<Scope> = (0..width).map(|j| p.column_scope(&ctx, &scope, b.add(column, j))).collect();
            let starts: Vec<Vec<Val>> =
                p.rhs.iter().map(|r| right.iter().map(|s| p.run_start(&ctx, s, r)).collect()).collect();
            let k = ctx.extent(p.k);
            let whole = b.bit_and(k, !(p.run - 1));
            b.for_("k", 0, whole, p.run, |_, k| p.accumulate(&ctx, &accs, &left, &right, &starts, k, p.run));
            let rest = p.k.as_const().is_none_or(|k| k % i64::from(p.run) != 0);
            if rest {
                b.for_("k", whole, k, 1, |_, k| p.accumulate(&ctx, &accs, &left, &right, &starts, k, 1));
            }
            p.write(&ctx, &scope, row, column, &accs, &[]);
        });
    });
    let _ = b;
    let tile = [("rows", rows), ("columns", columns), ("row_tile", height), ("column_tile", width), ("k_step", p.run)];
    let grid = dispatch(&p.groups(rows, columns));
    ctx.finish("gemm_registers", &tile, grid)
}

impl<'a> Problem<'a> {
    /// Adds the products of `depth` steps along k to a register tile.
    fn accumulate(
        &self,
        ctx: &KernelCtx<'a>,
        accs: &[Vec<Vec<Var>>],
        left: &[Scope],
        right: &[Scope],
        starts: &[Vec<Val>],
        k: Val,
        depth: u32,
    ) {
        let b = &ctx.b;
        let at = |scope: &Scope, expr: ExprId| -> Vec<Val> {
            let one = |i| ctx.expr(&mut scope.with(self.k_axis(), b.add(k, i)), expr);
            (0..depth).map(one).collect()
        };
        let parts = |v: Vec<Val>| -> Vec<Vec<Val>> { v.into_iter().map(|x| ctx.parts(x)).collect() };
        let rows: Vec<Vec<Vec<Val>>> = left.iter().map(|s| parts(at(s, self.lhs))).collect();
        for ((acc, side), starts) in accs.iter().zip(&self.rhs).zip(starts) {
            let columns: Vec<Vec<Val>> = match side {
                Right::Runs { arg, .. } if depth > 1 => {
                    let lanes = |start: &Val| {
                        let quads = ctx.values(&ctx.row_chunk(*arg, b.add(*start, k), depth));
                        quads.iter().flat_map(|q| (0..4).map(|l| b.lane(*q, l))).collect()
                    };
                    starts.iter().map(lanes).collect()
                }
                Right::Runs { arg, .. } => starts.iter().map(|s| vec![ctx.element(*arg, b.add(*s, k))]).collect(),
                Right::Elements { expr, .. } => right.iter().map(|s| at(s, *expr)).collect(),
            };
            for i in 0..depth as usize {
                let fours: Vec<Vec<Val>> = columns
                    .chunks_exact(4)
                    .map(|c| {
                        let v: Vec<Val> = c.iter().filter_map(|c| c.get(i)).copied().collect();
                        ctx.parts(four(b, &v))
                    })
                    .collect();
                for (row, acc) in rows.iter().zip(acc) {
                    let Some(x) = row.get(i) else { continue };
                    for (var, y) in acc.iter().zip(&fours) {
                        ctx.multiply_parts(*var, x, y);
                    }
                }
            }
        }
    }
}

fn four(b: &Builder, v: &[Val]) -> Val {
    match v {
        [x, y, z, w] => b.vec4(*x, *y, *z, *w),
        _ => {
            b.error("four lanes expected");
            b.zero(Type::VEC4_F32)
        }
    }
}

/// Columns of a staged tile.
pub(super) fn staged_columns(sides: usize) -> u32 {
    if sides <= 2 { 64 } else { 32 }
}

/// Tiles of both sides in workgroup memory, 4 × 4 outputs of each accumulator an invocation.
fn staged<'a>(p: &Problem<'a>, caps: &'a Capabilities) -> Result<Rendered, TemplateError> {
    let (across, down) = (staged_columns(p.rhs.len()) / 4, 16);
    let (rows, columns) = (4 * down, 4 * across);
    let ctx = p.context(caps, [across, down, 1])?;
    let b = &ctx.b;
    b.share_multiprocessor(RESIDENT);
    let left = b.workgroup("left", Type::VEC4_F32, DEPTH * (down + 1));
    let right: Vec<_> = p.rhs.iter().map(|_| b.workgroup("right", Type::VEC4_F32, DEPTH * (across + 1))).collect();
    p.in_block(&ctx, rows, columns, |b, scope, row, column| {
        let k = ctx.extent(p.k);
        let tail = p.k.as_const().is_none_or(|k| k % i64::from(DEPTH) != 0);
        let (x, y) = (b.local_x(), b.local_y());
        let me = b.let_("me", b.add(b.mul(y, across), x));
        let threads = across * down;
        let accs = zeroed(b, p.rhs.len(), 4, columns / across);
        let stats = p.row_stats(&ctx, &scope, (row, rows), column, (me, threads), b.bool(true));

        let left_along = is_along(p.spec, p.lhs, p.k_axis());
        let left_loads: Vec<Load> = units(b, me, threads, DEPTH * down, down, left_along)
            .into_iter()
            .map(|(step, four)| {
                let local = |i: u32| b.add(b.mul(four, 4), i);
                let scopes = (0..4).map(|i| p.row_scope(&ctx, &scope, row, local(i), &stats)).collect();
                Load { step, slot: b.let_("slot", b.add(b.mul(step, down + 1), four)), scopes }
            })
            .collect();
        let mut right_loads: Vec<Vec<Load>> = Vec::new();
        let mut block_loads: Vec<Option<(Val, Val, Vec<Val>)>> = Vec::new();
        for side in &p.rhs {
            match side {
                Right::Runs { .. } => {
                    // A quarter of DEPTH times `across` blocks of 4 columns and 4 steps.
                    let unit = b.let_("unit", b.rem(me, DEPTH / 4 * across));
                    let (step, of) = (b.mul(b.bit_and(unit, DEPTH / 4 - 1), 4), b.div(unit, DEPTH / 4));
                    let (step, of) = (b.let_("step", step), b.let_("of", of));
                    let start = |i: u32| {
                        let at = b.add(column, b.add(b.mul(of, 4), i));
                        p.run_start(&ctx, &p.column_scope(&ctx, &scope, at), side)
                    };
                    block_loads.push(Some((step, of, (0..4).map(start).collect())));
                    right_loads.push(Vec::new());
                }
                Right::Elements { along_k, .. } => {
                    let loads =
                        units(b, me, threads, DEPTH * across, across, *along_k).into_iter().map(|(step, of)| {
                            let at = |i: u32| b.add(column, b.add(b.mul(of, 4), i));
                            let scopes = (0..4).map(|i| p.column_scope(&ctx, &scope, at(i))).collect();
                            Load { step, slot: b.let_("slot", b.add(b.mul(step, across + 1), of)), scopes }
                        });
                    right_loads.push(loads.collect());
                    block_loads.push(None);
                }
            }
        }
        let last = b.let_("last", b.sub(k, 1));
        b.for_("k0", 0, k, DEPTH, |b, k0| {
            let element = |load: &Load, expr: ExprId| {
                let at = b.let_("at", b.add(k0, load.step));
                let clamped = if tail { b.min(at, last) } else { at };
                let v: Vec<Val> =
                    load.scopes.iter().map(|s| ctx.expr(&mut s.with(p.k_axis(), clamped), expr)).collect();
                let v = four(b, &v);
                if tail { b.select(b.lt(at, k), v, b.zero(Type::VEC4_F32)) } else { v }
            };
            for load in &left_loads {
                b.store(left, load.slot, element(load, p.lhs));
            }
            for (j, side) in p.rhs.iter().enumerate() {
                let Some(tile) = right.get(j).copied() else { continue };
                match (side, block_loads.get(j)) {
                    (Right::Elements { expr, .. }, _) => {
                        for load in right_loads.get(j).into_iter().flatten() {
                            b.store(tile, load.slot, element(load, *expr));
                        }
                    }
                    (Right::Runs { arg, .. }, Some(Some((step, of, starts)))) => {
                        let blocks = DEPTH / 4 * across;
                        let turn = (j as u32 * blocks) % threads;
                        let mine = b.and(b.ge(me, turn), b.lt(me, turn + blocks));
                        b.if_(mine, |b| {
                            let at = b.let_("at", b.add(k0, *step));
                            let clamped = if tail { b.min(at, b.sub(k, 4)) } else { at };
                            let zero = b.zero(Type::VEC4_F32);
                            let mut runs: Vec<Val> = Vec::new();
                            for start in starts {
                                let quads = ctx.values(&ctx.row_chunk(*arg, b.add(*start, clamped), 4));
                                let quad = quads.first().copied().unwrap_or(zero);
                                let quad = if tail { b.select(b.lt(at, k), quad, zero) } else { quad };
                                runs.push(b.let_("run", quad));
                            }
                            for i in 0..4 {
                                let v: Vec<Val> = runs.iter().map(|r| b.lane(*r, i)).collect();
                                let slot = b.add(b.mul(b.add(*step, i), across + 1), *of);
                                b.store(tile, slot, four(b, &v));
                            }
                        });
                    }
                    _ => b.error("no loads of a right side"),
                }
            }
            b.barrier();
            for i in 0..DEPTH {
                let xs = ctx.parts(b.let_("xs", b.load(left, b.add(y, i * (down + 1)))));
                for (tile, acc) in right.iter().zip(&accs) {
                    let ys = ctx.parts(b.let_("ys", b.load(*tile, b.add(x, i * (across + 1)))));
                    for (lane, var) in acc.iter().flatten().enumerate() {
                        let xs: Vec<Val> = xs.iter().map(|x| b.lane(*x, lane as u32)).collect();
                        ctx.multiply_parts(*var, &xs, &ys);
                    }
                }
            }
            b.barrier();
        });
        let row0 = b.let_("row0", b.add(row, b.mul(y, 4)));
        let column0 = b.let_("column0", b.add(column, b.mul(x, 4)));
        let zero = |_| b.var("kept", Type::F32, 0.0);
        let kept: Vec<Vec<Var>> = match &p.spec.partials {
            Some(_) => (0..4).map(|_| (0..4).map(zero).collect()).collect(),
            None => Vec::new(),
        };
        p.write(&ctx, &scope, row0, column0, &accs, &kept);
        if let Some(partials) = &p.spec.partials {
            let tile = Staged { across, down, x, y, row, column };
            staged_partials(p, &ctx, &scope, &tile, partials, &kept);
        }
    });
    let tile = [("rows", rows), ("columns", columns), ("row_tile", 4), ("column_tile", 4), ("k_step", DEPTH)];
    let grid = dispatch(&p.groups(rows, columns));
    ctx.finish("gemm_staged", &tile, grid)
}

/// The block of a workgroup of `across` × `down` invocations, 4 × 4 outputs each.
struct Staged {
    across: u32,
    down: u32,
    x: Val,
    y: Val,
    row: Val,
    column: Val,
}

/// Writes the statistics of a block's rows, of whose values each invocation has 4 × 4: every row's are summed by one
/// invocation a tile of statistics. Contains barriers.
fn staged_partials(
    p: &Problem<'_>,
    ctx: &KernelCtx<'_>,
    base: &Scope,
    t: &Staged,
    partials: &Partials,
    kept: &[Vec<Var>],
) {
    let b = &ctx.b;
    let fours = PARTIAL_COLUMNS / 4;
    let tiles = t.across / fours;
    let pitch = t.across + 1;
    let (rows, columns) = (ctx.extent(&p.rows()), ctx.extent(&p.columns()));
    let sums = b.workgroup("sums", Type::F32, 4 * t.down * pitch);
    let at_row = |i: usize| b.add(b.mul(t.y, 4), i as u32);
    let me = b.let_("me", b.add(b.mul(t.y, t.across), t.x));
    let (local, own) = (b.let_("local", b.div(me, tiles)), b.let_("own", b.rem(me, tiles)));
    let first = b.let_("first", b.add(t.column, b.mul(own, PARTIAL_COLUMNS)));
    let tile = b.let_("tile", b.div(first, PARTIAL_COLUMNS));
    let at = b.let_("row_of", b.add(t.row, local));
    let counts = b.lt(me, 4 * t.down * tiles);
    let exists = b.let_("exists", b.and(counts, b.and(b.lt(at, rows), b.lt(first, columns))));
    let spread = |of: &dyn Fn(usize, Val) -> Val| {
        for (i, row) in kept.iter().enumerate() {
            let terms = row.iter().map(|v| of(i, b.get(*v))).collect::<Vec<Val>>();
            let mut inside = Vec::new();
            for (j, v) in terms.into_iter().enumerate() {
                let column = b.add(b.add(t.column, b.mul(t.x, 4)), j as u32);
                inside.push(b.select(b.lt(column, columns), v, b.f32(0.0)));
            }
            let sum = inside.into_iter().reduce(|s, v| b.add(s, v)).unwrap_or_else(|| b.f32(0.0));
            b.store(sums, b.add(b.mul(at_row(i), pitch), t.x), sum);
        }
    };
    let total = || {
        let from = b.add(b.mul(b.min(local, 4 * t.down - 1), pitch), b.mul(own, fours));
        let terms = (0..fours).map(|i| b.load(sums, b.add(from, i)));
        b.let_("total", terms.reduce(|s, v| b.add(s, v)).unwrap_or_else(|| b.f32(0.0)))
    };
    let write = |numbers: &[Val]| {
        b.if_(exists, |_| {
            let mut scope = base.clone();
            ctx.unravel(&mut scope, p.first, p.extents(p.first, p.m + 1), at);
            ctx.store_partials(partials, &scope, p.n(), tile, numbers);
        });
    };
    match partials.kind {
        PartialKind::Squares => {
            spread(&|_, v| b.mul(v, v));
            b.barrier();
            write(&[total()]);
        }
        PartialKind::Largest => b.error("the largest of many rows"),
        PartialKind::Moments => {
            let means = b.workgroup("means", Type::F32, 4 * t.down * tiles);
            spread(&|_, v| v);
            b.barrier();
            let mean = b.let_("mean", b.div(total(), ctx.partial_count(PARTIAL_COLUMNS, columns, tile)));
            b.if_(counts, |b| b.store(means, me, mean));
            b.barrier();
            let of = b.let_("of", b.div(t.x, fours));
            spread(&|i, v| {
                let mean = b.load(means, b.add(b.mul(at_row(i), tiles), of));
                let apart = b.let_("apart", b.sub(v, mean));
                b.mul(apart, apart)
            });
            b.barrier();
            write(&[mean, total()]);
        }
    }
}

/// Four rows or columns at one step along k, that an invocation brings to a tile.
struct Load {
    step: Val,
    slot: Val,
    scopes: Vec<Scope>,
}

/// Which steps and groups of four an invocation brings, of `count` in all; invocations that are neighbours take
/// neighbours along k, or else neighbours among the `fours`.
fn units(b: &Builder, me: Val, threads: u32, count: u32, fours: u32, along_k: bool) -> Vec<(Val, Val)> {
    (0..count.div_ceil(threads))
        .map(|turn| {
            let unit = b.add(me, turn * threads);
            let (step, four) = if along_k {
                (b.bit_and(unit, DEPTH - 1), b.div(unit, DEPTH))
            } else {
                (b.div(unit, fours), b.rem(unit, fours))
            };
            (b.let_("step", step), b.let_("four", four))
        })
        .collect()
}
