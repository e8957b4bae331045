//! Matrix products with any number of rows, blocked in registers.
//!
//! Two schedules. On CPU drivers every invocation computes a tile of outputs straight from storage: no workgroup
//! memory, no barrier. On GPUs a workgroup stages tiles of both sides in workgroup memory. In both, one accumulator
//! sums over k in ascending order, so a sum depends on the extent of k alone.
//!
//! Batch axes that the right sides do not depend on are rows like any other. Tiles beyond the edge read the last row or
//! column again, and stores are guarded.

use super::common::{KernelCtx, Scope, dispatch};
use super::stats::Team;
use super::{
    Rendered, TemplateError, View, contiguous_rows, depends_on_axis, gemm_matrix, gemm_warpgroup, multiple_of,
};
use crate::dim::{Dim, Sym, product};
use crate::dtype::Storage;
use crate::ir::{ArrayRef, Builder, Type, Val, Var};
use crate::spec::{
    Anchor, Arg, ArgId, Expr, ExprId, KernelSpec, PARTIAL_COLUMNS, PartialKind, Partials, Space, Stat, Store,
};
use crate::target::{Capabilities, Tier};

/// Rows of a staged tile along k.
const DEPTH: u32 = 16;

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let problem = Problem::new(spec)?;
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

/// How a right side is read.
pub(super) enum Right {
    /// Runs of consecutive elements along k, from a row start that depends on n.
    Runs { arg: ArgId, row: Dim },
    /// One element at a time; whether neighbours along k are neighbours in memory.
    Elements { expr: ExprId, along_k: bool },
}

pub(super) struct Problem<'a> {
    pub(super) spec: &'a KernelSpec,
    pub(super) k: &'a Dim,
    pub(super) lhs: ExprId,
    pub(super) rhs: Vec<Right>,
    /// Axis that counts rows; `first..m` are rows too.
    pub(super) m: usize,
    /// First axis that counts rows.
    pub(super) first: usize,
    /// Elements read at once along k.
    pub(super) run: u32,
    /// Statistics of the left side's rows.
    pub(super) stats: &'a [Stat],
}

/// Finished statistics of a workgroup's rows: one array each.
pub(super) type RowStats = Vec<ArrayRef>;

impl<'a> Problem<'a> {
    pub(super) fn new(spec: &'a KernelSpec) -> Result<Self, TemplateError> {
        let Anchor::MatMul { k, lhs, lhs_stats, rhs } = &spec.anchor else {
            return Err(TemplateError::unsupported(spec, "not a matmul"));
        };
        let Some(m) = spec.domain.len().checked_sub(2) else {
            return Err(TemplateError::unsupported(spec, "a matmul without the axes M and N"));
        };
        let batched = rhs.iter().any(|r| (0..m).any(|axis| depends_on_axis(spec, *r, axis)));
        let run = if rhs.iter().all(|r| spans(spec, *r, k, 8)) { 8 } else { 4 };
        let sides = rhs.iter().map(|r| match contiguous_rows(spec, *r, spec.k_axis()) {
            Some((arg, row)) if spans(spec, *r, k, 4) => Right::Runs { arg, row },
            _ => Right::Elements { expr: *r, along_k: is_along(spec, *r, spec.k_axis()) },
        });
        let first = if batched { m } else { 0 };
        Ok(Problem { spec, k, lhs: *lhs, rhs: sides.collect(), m, first, run, stats: lhs_stats })
    }
    pub(super) fn n(&self) -> usize {
        self.m + 1
    }
    pub(super) fn k_axis(&self) -> usize {
        self.m + 2
    }
    pub(super) fn extents(&self, from: usize, to: usize) -> &'a [Dim] {
        self.spec.domain.get(from..to).unwrap_or_default()
    }
    pub(super) fn rows(&self) -> Dim {
        product(self.extents(self.first, self.m + 1))
    }
    pub(super) fn columns(&self) -> Dim {
        product(self.extents(self.n(), self.n() + 1))
    }
    pub(super) fn context(&self, caps: &'a Capabilities, workgroup: [u32; 3]) -> Result<KernelCtx<'a>, TemplateError> {
        let runs = |id: ArgId| {
            let mut named = self.rhs.iter().filter_map(|r| match r {
                Right::Runs { arg, row } if *arg == id => Some(row),
                _ => None,
            });
            named.next()
        };
        KernelCtx::new(self.spec, caps, workgroup, |id: ArgId, a: &Arg| match (a.storage, runs(id)) {
            (Storage::F32, Some(_)) => View::Vec4,
            (Storage::F16 | Storage::Bf16, Some(row)) if self.run == 8 && multiple_of(row, 8) => View::Vec4,
            _ => View::Scalar,
        })
    }
    /// Workgroups for blocks of that many rows and columns.
    pub(super) fn groups(&self, rows: u32, columns: u32) -> Dim {
        let batch = product(self.extents(0, self.first));
        batch * self.row_blocks(rows) * self.columns().ceil_div(&Dim::constant(i64::from(columns)))
    }
    fn row_blocks(&self, rows: u32) -> Dim {
        self.rows().ceil_div(&Dim::constant(i64::from(rows)))
    }
    /// Runs `body` in every workgroup that has a block, with the batch axes bound and the block's first row and column.
    pub(super) fn in_block(
        &self,
        ctx: &KernelCtx<'a>,
        rows: u32,
        columns: u32,
        body: impl FnOnce(&Builder, Scope, Val, Val),
    ) {
        let b = &ctx.b;
        let groups = self.groups(rows, columns);
        let group = b.let_("group", ctx.group(&groups));
        let folded = b.const_u32(group).is_none() && groups.as_const().is_none_or(|g| g > super::common::GROUPS);
        let exists = if folded { b.lt(group, ctx.extent(&groups)) } else { b.bool(true) };
        b.if_(exists, |b| {
            let row_blocks = b.let_("row_blocks", ctx.extent(&self.row_blocks(rows)));
            let rest = b.let_("rest", b.div(group, row_blocks));
            let row = b.let_("first_row", b.mul(b.sub(group, b.mul(rest, row_blocks)), rows));
            let mut scope = Scope::new();
            let column = if self.first == 0 {
                rest
            } else {
                let blocks = ctx.extent(&self.columns().ceil_div(&Dim::constant(i64::from(columns))));
                let batch = b.let_("batch", b.div(rest, blocks));
                ctx.unravel(&mut scope, 0, self.extents(0, self.first), batch);
                b.sub(rest, b.mul(batch, blocks))
            };
            let column = b.let_("first_column", b.mul(column, columns));
            body(b, scope, row, column);
        });
    }
    /// The scope of row `local` of the workgroup's rows from `first`, the last row where it lies beyond.
    pub(super) fn row_scope(
        &self,
        ctx: &KernelCtx<'a>,
        base: &Scope,
        first: Val,
        local: Val,
        stats: &RowStats,
    ) -> Scope {
        let b = &ctx.b;
        let mut scope = self.bare_row(ctx, base, b.add(first, local));
        for s in stats {
            scope.push_stat(b.let_("stat", b.load(*s, local)));
        }
        ctx.hoist(&mut scope, &[self.lhs]);
        scope
    }
    pub(super) fn bare_row(&self, ctx: &KernelCtx<'a>, base: &Scope, row: Val) -> Scope {
        let b = &ctx.b;
        let last = ctx.extent(&(self.rows() - Dim::one()));
        let row = b.let_("row", b.min(row, last));
        let mut scope = base.clone();
        ctx.unravel(&mut scope, self.first, self.extents(self.first, self.m + 1), row);
        scope
    }
    /// Reduces the workgroup's `rows` rows from `first` and keeps their statistics in workgroup memory; the workgroups of
    /// the first columns write the left side, if it is wanted. `me` counts `threads` invocations, a multiple or a
    /// divisor of `rows`. Contains barriers.
    pub(super) fn row_stats(
        &self,
        ctx: &KernelCtx<'a>,
        base: &Scope,
        (first, rows): (Val, u32),
        column: Val,
        (me, threads): (Val, u32),
    ) -> RowStats {
        self.row_stats_where(ctx, base, (first, rows), column, (me, threads), ctx.b.bool(true))
    }
    /// As [`row_stats`](Self::row_stats) by the `threads` invocations that are `active`, all others waiting.
    pub(super) fn row_stats_where(
        &self,
        ctx: &KernelCtx<'a>,
        base: &Scope,
        (first, rows): (Val, u32),
        column: Val,
        (me, threads): (Val, u32),
        active: Val,
    ) -> RowStats {
        let b = &ctx.b;
        if self.stats.is_empty() && self.spec.left.is_none() {
            return Vec::new();
        }
        let lanes = (threads / rows).max(1);
        let teams = threads / lanes;
        let arrays: RowStats = self.stats.iter().map(|_| b.workgroup("row_stat", Type::F32, rows)).collect();
        let k = ctx.extent(self.k);
        for turn in 0..rows.div_ceil(teams) {
            let (team, lane) = if lanes == 1 {
                (me, b.u32(0))
            } else {
                (b.let_("team", b.div(me, lanes)), b.let_("lane", b.rem(me, lanes)))
            };
            let local = b.let_("local", b.add(team, turn * teams));
            let row = b.let_("at", b.add(first, local));
            let mut scope = self.bare_row(ctx, base, row);
            let team = Team { lanes, teams, lane, team, active };
            ctx.row_stats(&mut scope, self.stats, self.k_axis(), k, &team);
            let write = |b: &Builder| {
                for (j, array) in arrays.iter().enumerate() {
                    if let Some(v) = scope.stat(j) {
                        b.store(*array, local, v);
                    }
                }
            };
            let writes = if lanes == 1 { active } else { b.and(active, b.eq(lane, 0)) };
            b.if_(writes, write);
            if let Some(left) = &self.spec.left {
                let mine = b.and(active, b.and(b.eq(column, 0), b.lt(row, ctx.extent(&self.rows()))));
                b.if_(mine, |b| {
                    b.for_("i", lane, k, lanes, |_, i| {
                        ctx.store_left(&mut scope.with(self.k_axis(), i), self.lhs, left);
                    });
                });
            }
        }
        b.barrier();
        arrays
    }
    /// The scope of a column, the last one where `column` lies beyond.
    pub(super) fn column_scope(&self, ctx: &KernelCtx<'a>, base: &Scope, column: Val) -> Scope {
        let b = &ctx.b;
        let last = ctx.extent(&(self.columns() - Dim::one()));
        let mut scope = base.clone();
        scope.bind(self.n(), b.let_("column", b.min(column, last)));
        for right in &self.rhs {
            if let Right::Elements { expr, .. } = right {
                ctx.hoist(&mut scope, &[*expr]);
            }
        }
        scope
    }
    /// The start of a column's run of right side `right`, counted from the start of the buffer.
    pub(super) fn run_start(&self, ctx: &KernelCtx<'a>, scope: &Scope, right: &Right) -> Val {
        match right {
            Right::Runs { arg, row } => {
                let at = ctx.address(&mut scope.clone(), *arg, row);
                ctx.b.let_("run", at)
            }
            Right::Elements { .. } => ctx.b.u32(0),
        }
    }
    /// Writes the outputs of a tile, column by column. `accs[j][i]` holds the tile's row i, four columns a variable; `kept`
    /// takes the values whose statistics are wanted, by row and column, if any are.
    fn write(
        &self,
        ctx: &KernelCtx<'a>,
        base: &Scope,
        row: Val,
        column: Val,
        accs: &[Vec<Vec<Var>>],
        kept: &[Vec<Var>],
    ) {
        let b = &ctx.b;
        let stores: Vec<&Store> = self.spec.stores.iter().collect();
        let roots: Vec<ExprId> = stores.iter().map(|s| s.value).collect();
        let rows = b.let_("rows", ctx.extent(&self.rows()));
        let columns = b.let_("columns", ctx.extent(&self.columns()));
        let height = accs.first().map_or(0, Vec::len);
        let width = 4 * accs.first().and_then(|a| a.first()).map_or(0, Vec::len);
        let scopes: Vec<(Val, Scope)> = (0..height)
            .map(|i| {
                let at = b.add(row, i as u32);
                let inside = b.let_("in_rows", b.lt(at, rows));
                let mut scope = base.clone();
                let at = b.min(at, b.sub(rows, 1));
                ctx.unravel(&mut scope, self.first, self.extents(self.first, self.m + 1), at);
                ctx.hoist(&mut scope, &roots);
                stores.iter().for_each(|s| ctx.hoist_index(&mut scope, Some(s.arg), &s.index));
                (inside, scope)
            })
            .collect();
        for j in 0..width {
            let at = b.let_("column", b.add(column, j as u32));
            b.if_(b.lt(at, columns), |b| {
                for (i, (inside, scope)) in scopes.iter().enumerate() {
                    b.if_(*inside, |b| {
                        let lane = |acc: &Vec<Vec<Var>>| {
                            let four = acc.get(i).and_then(|r| r.get(j / 4)).copied();
                            four.map(|v| b.lane(b.get(v), j as u32 % 4))
                        };
                        let found = accs.iter().filter_map(lane).collect();
                        let mut here = scope.with(self.n(), at).with_accs(found);
                        if let (Some(p), Some(kept)) = (&self.spec.partials, kept.get(i).and_then(|r| r.get(j))) {
                            b.set(*kept, ctx.expr(&mut here, p.value));
                        }
                        ctx.store_all(&here, &stores);
                    });
                }
            });
        }
    }
}

/// Whether a right side can be read in aligned runs of `n` along k.
fn spans(spec: &KernelSpec, e: ExprId, k: &Dim, n: u64) -> bool {
    let Some((arg, row)) = contiguous_rows(spec, e, spec.k_axis()) else { return false };
    let Some(a) = spec.arg(arg) else { return false };
    a.space == Space::Weight && multiple_of(k, n) && multiple_of(&row, n)
}

/// Whether neighbours along `axis` are neighbours in memory, in any load of an expression.
fn is_along(spec: &KernelSpec, e: ExprId, axis: usize) -> bool {
    let sym = Sym::Axis(axis as u8);
    spec.exprs.reachable(&[e]).into_iter().any(|x| match spec.exprs.get(x) {
        Expr::Load { index, .. } => index.linear_in(&sym).is_some_and(|(step, _)| step.is(1)),
        _ => false,
    })
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
        let stats = p.row_stats(&ctx, &scope, (first, rows), column, (me, side * side));
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
    let left = b.workgroup("left", Type::VEC4_F32, DEPTH * (down + 1));
    let right: Vec<_> = p.rhs.iter().map(|_| b.workgroup("right", Type::VEC4_F32, DEPTH * (across + 1))).collect();
    p.in_block(&ctx, rows, columns, |b, scope, row, column| {
        let k = ctx.extent(p.k);
        let tail = p.k.as_const().is_none_or(|k| k % i64::from(DEPTH) != 0);
        let (x, y) = (b.local_x(), b.local_y());
        let me = b.let_("me", b.add(b.mul(y, across), x));
        let threads = across * down;
        let accs = zeroed(b, p.rhs.len(), 4, columns / across);
        let stats = p.row_stats(&ctx, &scope, (row, rows), column, (me, threads));

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
        PartialKind::Moments => {
            let means = b.workgroup("means", Type::F32, 4 * t.down * tiles);
            spread(&|_, v| v);
            b.barrier();
            let mean = b.let_("mean", b.div(total(), ctx.partial_count(columns, tile)));
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
