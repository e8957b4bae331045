//! Matrix products on matrix units, for weights of 16-bit or quantised storage.
//!
//! Both sides pass through workgroup memory as 16-bit tiles, a few tiles deep: 16-bit weights and left sides that are kept
//! in 16 bits by asynchronous copies, quantised weights and other left sides, with their prologue, through registers.
//! Products accumulate in `f32`, in order of k. The tile's sums return to workgroup memory, from where each subgroup finishes and stores whole rows.
//!
//! The left side is rounded to the weights' format: `f16` for `f16` weights, bounded to its range, `bf16` for the rest.
//! Where a precision is asked for, both sides are kept as that many bf16 tiles, and every pair of tiles whose product is
//! summed is multiplied, smallest first.
//!
//! # Layout
//! An element of a tile is eight neighbours along k. Element c of row r lies at `4 r + (c ^ (r / 2 % 4))`, which spreads
//! eight rows over all banks, for writing and for loading matrices alike.

use super::common::{KernelCtx, Scope, dispatch};
use super::product::{Problem, Right, RowStats, run_at};
use super::reduce::WARP;
use super::{Rendered, TemplateError};
use crate::dim::Dim;
use crate::ir::{ArrayRef, Builder, HalfFormat, Type, Val, Var};
use crate::spec::{ArgId, Expr, MatmulPrecision, Store};
use crate::target::Capabilities;

/// Elements of a tile along k, in units of eight.
const DEPTH: u32 = 4;
/// Pairs of floats between rows of the sums' staging area, of 32 columns: half a subgroup meets every bank once.
const PITCH: u32 = 20;
/// Threads of a multiprocessor that kernels leave room for whose registers are many: of several products each sum, or of
/// values that take many loads.
const RESIDENT: u32 = 256;
/// Loads of a value of the left side from which on units are made one after the other: a norm has three.
const LONG: usize = 4;

/// How the work is split. A subgroup takes 32 columns.
struct Shape {
    /// Subgroups along rows and columns.
    warps: [u32; 2],
    /// Rows of a subgroup, in units of 16.
    tall: u32,
    /// Tiles of each side in workgroup memory.
    stages: u32,
}

impl Shape {
    fn rows(&self) -> u32 {
        self.warps[0] * self.tall * 16
    }
    fn columns(&self) -> u32 {
        self.warps[1] * 32
    }
    fn threads(&self) -> u32 {
        self.warps[0] * self.warps[1] * WARP
    }
}

/// The format to compute in, for problems that suit matrix units.
pub(super) fn format_of(p: &Problem<'_>) -> Option<HalfFormat> {
    let k = p.k.as_const()?;
    let precision = p.spec.precision;
    if k < 32 || p.rhs.len() > 2 || precision == MatmulPrecision::F32 {
        return None;
    }
    if precision.parts() > 0 {
        let served = |r: &Right| match r {
            Right::Runs { arg, .. } => p.run == 8 || p.spec.arg(*arg).is_some_and(|a| a.storage.is_quantised()),
            Right::Elements { .. } => false,
        };
        return p.rhs.iter().all(served).then_some(HalfFormat::Bf16);
    }
    let mut formats = p.rhs.iter().map(|r| match r {
        Right::Runs { arg, .. } => {
            let storage = p.spec.arg(*arg)?.storage;
            storage.matrix_format().filter(|_| p.run == 8 || storage.is_quantised())
        }
        Right::Elements { .. } => None,
    });
    let first = formats.next()??;
    formats.all(|f| f == Some(first)).then_some(first)
}

pub(super) fn render<'a>(
    p: &Problem<'a>,
    caps: &'a Capabilities,
    format: HalfFormat,
) -> Result<Rendered, TemplateError> {
    let wide = p.spec.domain.last().and_then(|n| n.as_const()).is_some_and(|n| n >= 2048);
    let parts = p.spec.precision.parts().max(1);
    let stages = if parts * (1 + p.rhs.len()) > 6 { 2 } else { 3 };
    let shape = match p.rhs.len() {
        1 if wide && parts == 1 => Shape { warps: [2, 4], tall: 4, stages },
        _ => Shape { warps: [2, 2], tall: 2, stages },
    };
    let ctx = p.context(caps, [shape.threads(), 1, 1])?;
    let b = &ctx.b;
    if p.spec.precision.parts() > 0 || is_long(p) {
        b.share_multiprocessor(RESIDENT);
    }
    let tiles = |name: &str, rows: u32, count: usize| -> Vec<ArrayRef> {
        (0..count).map(|_| b.workgroup(name, Type::VEC4_U32, stages * rows * DEPTH)).collect()
    };
    let left = tiles("left", shape.rows(), parts);
    let right: Vec<Vec<ArrayRef>> = p
        .rhs
        .iter()
        .map(|side| tiles("right", shape.columns(), if copied(p, format, side).is_some() { 1 } else { parts }))
        .collect();
    let sums = b.workgroup("sums", Type::VEC2_F32, shape.threads() / WARP * 16 * PITCH * p.rhs.len() as u32);
    p.in_block(&ctx, shape.rows(), shape.columns(), |b, scope, row, column| {
        let me = b.let_("me", b.local_x());
        let kept = p.kept_left(caps);
        let kernel = Kernel { p, ctx: &ctx, shape: &shape, format, kept, left: &left, right: &right, me };
        let stats = p.row_stats(&ctx, &scope, (row, shape.rows()), column, (me, shape.threads()), b.bool(true));
        let accs = kernel.products(&scope, row, column, &stats);
        kernel.write(&scope, row, column, sums, &accs);
    });
    let tile = [
        ("rows", shape.rows()),
        ("columns", shape.columns()),
        ("k_step", 8 * DEPTH),
        ("stages", stages),
        ("warp_rows", 16 * shape.tall),
        ("warp_columns", 32),
    ];
    let grid = dispatch(&p.groups(shape.rows(), shape.columns()));
    ctx.finish("gemm_matrix", &tile, grid)
}

/// Whether a value of the left side takes many loads.
fn is_long(p: &Problem<'_>) -> bool {
    let made_of = p.spec.exprs.reachable(&[p.lhs]);
    made_of.iter().filter(|e| matches!(p.spec.exprs.get(**e), Expr::Load { .. })).count() >= LONG
}

/// What a thread brings into a tile: one unit of eight elements at a time.
struct Unit {
    /// Where it lies in a tile.
    slot: Val,
    /// Its first element along k, in the tile.
    k: Val,
    /// Its row or column.
    scope: Scope,
    /// The start of its run, for sides that are read in runs.
    starts: Vec<Val>,
}

struct Kernel<'k, 'a> {
    p: &'k Problem<'a>,
    ctx: &'k KernelCtx<'a>,
    shape: &'k Shape,
    format: HalfFormat,
    /// A left side that is copied as it is kept, and where its rows start.
    kept: Option<(ArgId, Dim)>,
    /// By part.
    left: &'k [ArrayRef],
    /// By side, then by part.
    right: &'k [Vec<ArrayRef>],
    me: Val,
}

/// The argument of a right side that is copied as it is stored.
fn copied(p: &Problem<'_>, format: HalfFormat, right: &Right) -> Option<ArgId> {
    let Right::Runs { arg, .. } = right else { return None };
    p.spec.arg(*arg).filter(|a| a.storage == format.storage()).map(|_| *arg)
}

/// Sums by right side, 16 rows, 8 columns: of the products of leading parts, and of all others, which are small.
type Sums = Vec<Vec<Vec<(Var, Var)>>>;

impl Kernel<'_, '_> {
    /// The units of a tile of `rows` rows that this thread brings.
    fn units(&self, rows: u32, scope: impl Fn(Val) -> (Scope, Vec<Val>)) -> Vec<Unit> {
        let b = &self.ctx.b;
        let threads = self.shape.threads();
        (0..rows * DEPTH / threads)
            .map(|i| {
                let unit = b.add(self.me, i * threads);
                let row = b.let_("tile_row", b.shr(unit, 2));
                let column = b.bit_and(unit, DEPTH - 1);
                let slot = b.let_("slot", b.add(b.shl(row, 2), swizzle(b, row, column)));
                let k = b.let_("unit_k", b.shl(column, 3));
                let (scope, starts) = scope(row);
                Unit { slot, k, scope, starts }
            })
            .collect()
    }

    /// The sums of the block at `row` and `column`.
    fn products(&self, scope: &Scope, row: Val, column: Val, stats: &RowStats) -> Sums {
        let (p, b) = (self.p, &self.ctx.b);
        let (rows, columns, stages) = (self.shape.rows(), self.shape.columns(), self.shape.stages);
        let mut accs = Sums::new();
        let is_split = self.ctx.precision().parts() > 1;
        for _ in &p.rhs {
            let four = |_| {
                let acc = b.var("acc", Type::VEC4_F32, 0.0);
                (acc, if is_split { b.var("small", Type::VEC4_F32, 0.0) } else { acc })
            };
            accs.push((0..self.shape.tall).map(|_| (0..4).map(four).collect()).collect());
        }
        let left = self.units(rows, |r| {
            let scope = p.row_scope(self.ctx, scope, row, r, stats);
            let starts = self.kept.iter().map(|(arg, row)| run_at(self.ctx, &scope, *arg, row)).collect();
            (scope, starts)
        });
        let right = self.units(columns, |c| {
            let scope = p.column_scope(self.ctx, scope, b.add(column, c));
            let starts = p.rhs.iter().map(|r| p.run_start(self.ctx, &scope, r)).collect();
            (scope, starts)
        });
        let k = p.k.as_const().and_then(|k| u32::try_from(k).ok()).unwrap_or(0);
        let (ahead, behind): (&[Unit], &[Unit]) = match self.kept {
            Some(_) => (&[], &[]),
            None if is_long(p) => (&[], &left),
            None => (&left, &[]),
        };
        let make = |at: Val, stage: Val| {
            for unit in behind {
                let unit = std::slice::from_ref(unit);
                // Loads of one unit are not asked for while another holds registers.
                b.barrier();
                let values = self.read(unit, &[], k, at);
                self.keep(unit, &[], values, stage);
            }
        };
        let copies = self.kept.is_some() || p.rhs.iter().any(|r| copied(p, self.format, r).is_some());
        for stage in 0..stages - 1 {
            let at = b.u32(stage * 8 * DEPTH);
            self.start_copies(&left, &right, k, at, b.u32(stage));
            if copies {
                b.commit_copies();
            }
            let units = self.read(ahead, &right, k, at);
            self.keep(ahead, &right, units, b.u32(stage));
            make(at, b.u32(stage));
        }
        let here = b.var("stage", Type::U32, 0);
        b.for_("k", 0, k, 8 * DEPTH, |b, at| {
            if copies {
                b.wait_copies(stages - 2);
            }
            b.barrier();
            let next = b.let_("next", b.add(at, (stages - 1) * 8 * DEPTH));
            let free = b.let_("free", b.select(b.eq(here, 0), stages - 1, b.sub(here, 1)));
            self.start_copies(&left, &right, k, next, free);
            if copies {
                b.commit_copies();
            }
            let units = self.read(ahead, &right, k, next);
            self.multiply(&accs, b.get(here));
            self.keep(ahead, &right, units, free);
            make(next, free);
            b.set(here, b.select(b.eq(here, stages - 1), 0, b.add(here, 1)));
        });
        if copies {
            b.wait_copies(0);
        }
        for (acc, small) in accs.iter().flatten().flatten().filter(|_| is_split) {
            b.add_to(*acc, b.get(*small));
        }
        accs
    }

    /// Starts the copies of the tile from `at` on along k into a stage; zeros beyond the end of k.
    fn start_copies(&self, left: &[Unit], right: &[Unit], k: u32, at: Val, stage: Val) {
        let b = &self.ctx.b;
        let copy = |units: &[Unit], side: usize, to: ArrayRef, from: ArrayRef, first: Val| {
            for unit in units {
                let (inside, here) = self.within(k, b.add(at, unit.k));
                let Some(start) = unit.starts.get(side) else { continue };
                b.copy_async(to, b.add(first, unit.slot), from, b.shr(b.add(*start, here), 3), inside);
            }
        };
        let kept = self.kept.as_ref().and_then(|(arg, _)| self.ctx.buffer(*arg));
        if let (Some(from), Some(to)) = (kept, self.left.first()) {
            copy(left, 0, *to, from, b.mul(stage, self.shape.rows() * DEPTH));
        }
        let first = b.mul(stage, self.shape.columns() * DEPTH);
        for (j, side) in self.p.rhs.iter().enumerate() {
            let from = copied(self.p, self.format, side).and_then(|arg| self.ctx.buffer(arg));
            let to = self.right.get(j).and_then(|parts| parts.first());
            if let (Some(from), Some(to)) = (from, to) {
                copy(right, j, *to, from, first);
            }
        }
    }

    /// Whether a unit lies before the end of k, and its place or the last one.
    fn within(&self, k: u32, at: Val) -> (Val, Val) {
        let b = &self.ctx.b;
        (b.let_("in_k", b.lt(at, k)), b.let_("unit_at", b.min(at, k - 8)))
    }

    /// The values of a tile that pass through registers: the left side's, then each right side's.
    fn read(&self, left: &[Unit], right: &[Unit], k: u32, at: Val) -> Vec<Vec<Vec<Val>>> {
        let (p, ctx) = (self.p, self.ctx);
        let b = &ctx.b;
        let partial = !k.is_multiple_of(8 * DEPTH);
        let finished = |inside: Val, v: Val| {
            let v = if partial { b.select(inside, v, 0.0) } else { v };
            let v =
                if self.format == HalfFormat::F16 { b.clamp(v, -HalfFormat::F16_MAX, HalfFormat::F16_MAX) } else { v };
            b.let_("x", v)
        };
        let mut all = Vec::new();
        all.push(
            left.iter()
                .map(|unit| {
                    let (inside, here) = self.within(k, b.add(at, unit.k));
                    let one = |i| ctx.expr(&mut unit.scope.with(p.k_axis(), b.add(here, i)), p.lhs);
                    (0..8).map(|i| finished(inside, one(i))).collect()
                })
                .collect(),
        );
        for (j, side) in p.rhs.iter().enumerate() {
            let Right::Runs { arg, .. } = side else { continue };
            if copied(self.p, self.format, side).is_some() {
                all.push(Vec::new());
                continue;
            }
            let values = right.iter().map(|unit| {
                let (_, here) = self.within(k, b.add(at, unit.k));
                let start = unit.starts.get(j).copied().unwrap_or_else(|| b.u32(0));
                let quads = ctx.values(&ctx.row_chunk(*arg, b.add(start, here), 8));
                quads.iter().map(|q| b.let_("w", *q)).flat_map(|q| (0..4).map(move |l| b.lane(q, l))).collect()
            });
            all.push(values.collect());
        }
        all
    }

    /// Writes what [`read`](Self::read) read into a stage.
    fn keep(&self, left: &[Unit], right: &[Unit], values: Vec<Vec<Vec<Val>>>, stage: Val) {
        let b = &self.ctx.b;
        for (i, values) in values.into_iter().enumerate() {
            let (arrays, units, size) = match i.checked_sub(1) {
                None => (Some(self.left), left, self.shape.rows() * DEPTH),
                Some(j) => (self.right.get(j).map(Vec::as_slice), right, self.shape.columns() * DEPTH),
            };
            let first = b.mul(stage, size);
            for (unit, v) in units.iter().zip(values) {
                let parts: Vec<Vec<Val>> = v.into_iter().map(|x| self.ctx.parts(x)).collect();
                for (i, array) in arrays.into_iter().flatten().enumerate() {
                    let part: Vec<Val> = parts.iter().filter_map(|x| x.get(i)).copied().collect();
                    let [p, q, r, s, t, u, v, w] = part.as_slice() else { continue };
                    let pack = |x: &Val, y: &Val| {
                        let pair = b.vec2(*x, *y);
                        match self.format {
                            HalfFormat::F16 => b.pack_2x16_float(pair),
                            HalfFormat::Bf16 => b.pack_2x_bf16(pair),
                        }
                    };
                    let element = b.vec4(pack(p, q), pack(r, s), pack(t, u), pack(v, w));
                    b.store(*array, b.add(first, unit.slot), element);
                }
            }
        }
    }

    /// This thread's subgroup by rows and columns, and its lane.
    fn position(&self) -> (Val, Val, Val) {
        let b = &self.ctx.b;
        let warp = b.shr(self.me, WARP.trailing_zeros());
        let across = self.shape.warps[1];
        let lane = b.bit_and(self.me, WARP - 1);
        (b.shr(warp, across.trailing_zeros()), b.bit_and(warp, across - 1), lane)
    }

    /// Adds the products of the tiles in a stage.
    fn multiply(&self, accs: &Sums, stage: Val) {
        let b = &self.ctx.b;
        let (down, across, lane) = self.position();
        let left_row = b.add(b.mul(down, 16 * self.shape.tall), b.bit_and(lane, 15));
        let left_row = b.let_("left_row", left_row);
        let right_row = b.add(b.bit_and(lane, 7), b.shl(b.shr(lane, 4), 3));
        let right_row = b.let_("right_row", b.add(b.mul(across, 32), right_row));
        let left_first = b.add(b.mul(stage, self.shape.rows() * DEPTH), b.shl(left_row, 2));
        let left_first = b.let_("left_first", left_first);
        let right_first = b.add(b.mul(stage, self.shape.columns() * DEPTH), b.shl(right_row, 2));
        let right_first = b.let_("right_first", right_first);
        for step in 0..DEPTH / 2 {
            let column = b.add(b.shr(lane, 4), 2 * step);
            let at = b.let_("at", b.add(left_first, swizzle(b, left_row, column)));
            // By 16 rows, then by part.
            let load = |name: &str, parts: &[ArrayRef], at: Val, i: u32| -> Vec<Val> {
                parts.iter().map(|part| b.load_matrix(name, *part, b.add(at, 16 * DEPTH * i))).collect()
            };
            let a: Vec<Vec<Val>> = (0..self.shape.tall).map(|i| load("a", self.left, at, i)).collect();
            let column = b.add(b.bit_and(b.shr(lane, 3), 1), 2 * step);
            let at = b.let_("at", b.add(right_first, swizzle(b, right_row, column)));
            for (parts, accs) in self.right.iter().zip(accs) {
                let two: Vec<Vec<Val>> = (0..2).map(|i| load("w", parts, at, i)).collect();
                for (i, (a, accs)) in a.iter().zip(accs).enumerate() {
                    // Back and forth, so that neighbours share an operand.
                    let mut order: Vec<usize> = (0..accs.len()).collect();
                    if i % 2 == 1 {
                        order.reverse();
                    }
                    for j in order {
                        let (Some((acc, small)), Some(w)) = (accs.get(j), two.get(j / 2)) else { continue };
                        let half = 2 * (j as u32 % 2);
                        let terms = self.ctx.terms(a, w);
                        for (t, (a, w)) in terms.iter().enumerate() {
                            let sum = if t + 1 == terms.len() { acc } else { small };
                            b.multiply_to(*sum, self.format, *a, b.vec2(b.lane(*w, half), b.lane(*w, half + 1)));
                        }
                    }
                }
            }
        }
    }

    /// Stores the block: 16 rows of every subgroup at a time.
    fn write(&self, scope: &Scope, row: Val, column: Val, sums: ArrayRef, accs: &Sums) {
        let (p, ctx) = (self.p, self.ctx);
        let b = &ctx.b;
        let stores: Vec<&Store> = p.spec.stores.iter().collect();
        let rows = b.let_("rows", ctx.extent(&p.rows()));
        let columns = b.let_("columns", ctx.extent(&p.columns()));
        let (down, across, lane) = self.position();
        let warp = b.shr(self.me, WARP.trailing_zeros());
        let area = 16 * PITCH;
        let mine = b.let_("mine", b.mul(warp, area * accs.len() as u32));
        let fragment = b.add(b.mul(b.shr(lane, 2), PITCH), b.bit_and(lane, 3));
        let fragment = b.let_("fragment", b.add(mine, fragment));
        let at = b.let_("column", b.add(b.add(column, b.mul(across, 32)), lane));
        let safe = b.let_("column_safe", b.min(at, b.sub(columns, 1)));
        let mut here = scope.clone();
        here.bind(p.n(), safe);
        for i in 0..self.shape.tall {
            b.barrier();
            for (j, accs) in accs.iter().enumerate() {
                let Some(accs) = accs.get(i as usize) else { continue };
                for (c, (acc, _)) in accs.iter().enumerate() {
                    let first = j as u32 * area + 4 * c as u32;
                    for (lane, offset) in [(0, 0), (2, 8 * PITCH)] {
                        let pair = b.vec2(b.lane(b.get(*acc), lane), b.lane(b.get(*acc), lane + 1));
                        b.store(sums, b.add(fragment, first + offset), pair);
                    }
                }
            }
            b.barrier();
            let first = b.add(row, b.mul(down, 16 * self.shape.tall));
            let first = b.let_("row0", b.add(first, 16 * i));
            b.for_("r", 0, 16, 1, |b, r| {
                let at_row = b.let_("row", b.add(first, r));
                let kept = p.spec.partials.as_ref().map(|partials| (partials, b.var("kept", Type::F32, 0.0)));
                b.if_(b.and(b.lt(at_row, rows), b.lt(at, columns)), |b| {
                    let mut inner = here.clone();
                    ctx.unravel(&mut inner, p.first, p.extents(p.first, p.m + 1), at_row);
                    let from = b.add(b.add(mine, b.mul(r, PITCH)), b.shr(lane, 1));
                    let odd = b.eq(b.bit_and(lane, 1), 1);
                    let sum = |j: u32| {
                        let pair = b.let_("pair", b.load(sums, b.add(from, j * area)));
                        b.let_("sum", b.select(odd, b.lane(pair, 1), b.lane(pair, 0)))
                    };
                    let found: Vec<Val> = (0..accs.len() as u32).map(sum).collect();
                    let mut inner = inner.with_accs(found);
                    if let Some((partials, kept)) = &kept {
                        b.set(*kept, ctx.expr(&mut inner, partials.value));
                    }
                    ctx.store_all(&inner, &stores);
                });
                if let Some((partials, kept)) = kept {
                    let of_row = || {
                        let mut row = scope.clone();
                        ctx.unravel(&mut row, p.first, p.extents(p.first, p.m + 1), at_row);
                        row
                    };
                    let row = (b.lt(at_row, rows), of_row);
                    ctx.store_tile_of_subgroup(partials, (p.n(), lane), (at, columns), b.get(kept), row);
                }
            });
        }
    }
}

/// The place of element `column` in its row of a tile.
fn swizzle(b: &Builder, row: Val, column: Val) -> Val {
    b.bit_xor(column, b.bit_and(b.shr(row, 1), DEPTH - 1))
}
