//! A matrix product as all its schedules see it: which axes count rows, how right sides are read, what the rows of a tile
//! and their statistics are, and how a tile of outputs is written.
//!
//! Batch axes that the right sides do not depend on are rows like any other. Tiles beyond the edge read the last row or
//! column again, and stores are guarded.

use super::common::{KeptStats, KernelCtx, Scope};
use super::stats::Team;
use super::{TemplateError, View, contiguous_rows, depends_on_axis, gemm_matrix, multiple_of};
use crate::dim::{Dim, Sym, product};
use crate::dtype::Storage;
use crate::ir::{ArrayRef, Builder, Type, Val, Var};
use crate::spec::{Anchor, Arg, ArgId, Expr, ExprId, KernelSpec, Space, Stat, Store};
use crate::target::Capabilities;

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
        let left = self.kept_left(caps).map(|(arg, _)| arg);
        KernelCtx::new(self.spec, caps, workgroup, |id: ArgId, a: &Arg| match (a.storage, runs(id)) {
            (Storage::F32, None) if left == Some(id) => View::Vec4,
            (Storage::F32, Some(_)) => View::Vec4,
            (Storage::F16 | Storage::Bf16, Some(row)) if self.run == 8 && multiple_of(row, 8) => View::Vec4,
            _ => View::Scalar,
        })
    }
    /// The argument and the row's start of a left side that is kept in the format that it is multiplied in, in runs of eight.
    pub(super) fn kept_left(&self, caps: &Capabilities) -> Option<(ArgId, Dim)> {
        let (arg, row) = contiguous_rows(self.spec, self.lhs, self.spec.k_axis())?;
        let a = self.spec.arg(arg).filter(|a| a.is_half(caps.tier))?;
        let whole = self.spec.precision.is_auto() && a.rounded == gemm_matrix::format_of(self);
        (whole && multiple_of(self.k, 8) && multiple_of(&row, 8)).then_some((arg, row))
    }
    /// Workgroups for blocks of that many rows and columns.
    pub(super) fn groups(&self, rows: u32, columns: u32) -> Dim {
        let batch = product(self.extents(0, self.first));
        batch * self.row_blocks(rows) * self.columns().ceil_div(&Dim::constant(i64::from(columns)))
    }
    pub(super) fn row_blocks(&self, rows: u32) -> Dim {
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
    /// divisor of `rows`, of which those that are `active` do it while all others wait. Contains barriers.
    pub(super) fn row_stats(
        &self,
        ctx: &KernelCtx<'a>,
        base: &Scope,
        (first, rows): (Val, u32),
        column: Val,
        (me, threads): (Val, u32),
        active: Val,
    ) -> RowStats {
        let b = &ctx.b;
        if self.stats.is_empty() && self.spec.left.is_empty() {
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
            let team = Team { lanes, teams, lane, team, active, ahead: 0 };
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
            if !self.spec.left.is_empty() {
                let mine = b.and(active, b.and(b.eq(column, 0), b.lt(row, ctx.extent(&self.rows()))));
                b.if_(mine, |b| {
                    b.for_("i", lane, k, lanes, |_, i| {
                        ctx.store_left(&mut scope.with(self.k_axis(), i));
                    });
                });
            }
        }
        b.barrier();
        ctx.keep_stats(KeptStats { arrays: arrays.clone(), first, axes: self.first..=self.m });
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
            Right::Runs { arg, row } => run_at(ctx, scope, *arg, row),
            Right::Elements { .. } => ctx.b.u32(0),
        }
    }
    /// Writes the outputs of a tile, column by column. `accs[j][i]` holds the tile's row i, four columns a variable; `kept`
    /// takes the values whose statistics are wanted, by row and column, if any are.
    pub(super) fn write(
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
                if self.spec.stores_statistics() {
                    let stats: Vec<Val> = (0..self.stats.len()).filter_map(|j| ctx.kept_stat(&scope, j)).collect();
                    stats.into_iter().for_each(|s| scope.push_stat(s));
                }
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

/// Where a run of an argument starts.
pub(super) fn run_at(ctx: &KernelCtx<'_>, scope: &Scope, arg: ArgId, row: &Dim) -> Val {
    let at = ctx.address(&mut scope.clone(), arg, row);
    ctx.b.let_("run", at)
}

/// Whether a right side can be read in aligned runs of `n` along k.
fn spans(spec: &KernelSpec, e: ExprId, k: &Dim, n: u64) -> bool {
    let Some((arg, row)) = contiguous_rows(spec, e, spec.k_axis()) else { return false };
    let Some(a) = spec.arg(arg) else { return false };
    a.space == Space::Weight && multiple_of(k, n) && multiple_of(&row, n)
}

/// Whether neighbours along `axis` are neighbours in memory, in any load of an expression.
pub(super) fn is_along(spec: &KernelSpec, e: ExprId, axis: usize) -> bool {
    let sym = Sym::Axis(axis as u8);
    spec.exprs.reachable(&[e]).into_iter().any(|x| match spec.exprs.get(x) {
        Expr::Load { index, .. } => index.linear_in(&sym).is_some_and(|(step, _)| step.is(1)),
        _ => false,
    })
}
