//! Matrix products by warpgroups that work apart (`sm_90a`), for weights of 16-bit storage.
//!
//! Of three warpgroups the last one fills a ring of tiles in workgroup memory: right sides by copies of whole tiles, a left
//! side that is kept in 16 bits by asynchronous copies, which are told to be in two tiles later, any other through registers,
//! with its prologue, rounded to the weights' format. The first two multiply 64 rows each,
//! straight from the ring, and finish their sums while the ring is filled for the next block. A workgroup goes from block
//! to block; neighbours along rows follow each other, so that they share the right side's tiles.
//!
//! # Ring
//! A stage has two barriers. `full` ends its phase when every filling invocation has arrived and all bytes are in; `free`
//! when each multiplying subgroup has let go of the stage. Both sides count stages and phases alike.

use super::common::{KernelCtx, Scope, dispatch};
use super::fragments::{Fragments, staging};
use super::product::{Problem, Right, RowStats, run_at};
use super::reduce::WARP;
use super::{Rendered, TemplateError, View};
use crate::dim::{Dim, Sym};
use crate::dtype::Storage;
use crate::ir::{ArrayRef, HalfFormat, TILE_COLUMNS, TileMap, Type, Val, Var, WARPGROUP};
use crate::spec::{Arg, ArgId, Expr, ExprId, MANY_ROWS, MatmulPrecision};
use crate::target::Capabilities;

/// Rows of a block: 64 for each of two warpgroups.
const ROWS: u32 = 128;
/// Invocations that multiply.
const CONSUMERS: u32 = 2 * WARPGROUP;
/// Elements of eight in a row of a tile.
const PIECES: u32 = TILE_COLUMNS / 8;
/// Workgroups at once: the multiprocessors of the largest GPU with this instruction set.
const RESIDENT: i64 = 132;

/// Where the tiles of a right side lie in its argument's matrix.
struct Side {
    arg: ArgId,
    map: TileMap,
    /// Column and row of the first element.
    corner: [u32; 2],
}

/// A product that warpgroups can work on.
pub(super) struct Plan {
    format: HalfFormat,
    k: u32,
    /// Columns of a block, for each right side.
    columns: u32,
    /// Tiles of each side in workgroup memory.
    stages: u32,
    sides: Vec<Side>,
}

impl Plan {
    /// Tiles of which copies run at once, beside the one that starts: with one more, those that multiply, who hold two tiles,
    /// would wait for a tile that is in and not told to be.
    fn late(&self) -> u32 {
        (self.stages - 2).min(self.k.div_ceil(TILE_COLUMNS) - 1)
    }
}

/// How to work on a product, or why it is left to the kernel for every GPU.
pub(super) fn plan(p: &Problem<'_>) -> Result<Plan, &'static str> {
    let k = p.k.as_const().and_then(|k| u32::try_from(k).ok()).ok_or("the sum's extent is not constant")?;
    if p.spec.precision != MatmulPrecision::Auto {
        return Err("a precision is asked for");
    }
    if k < TILE_COLUMNS {
        return Err("the sum is shorter than a tile");
    }
    if p.first > 0 {
        return Err("right sides differ between batches");
    }
    let columns = p.columns().as_const().ok_or("the number of columns is not constant")?;
    if columns < 64 || p.rhs.len() > 2 {
        return Err(if columns < 64 { "there are fewer columns than a tile has" } else { "more than two right sides" });
    }
    // A block of twice the columns reads three quarters of the bytes for each product; every workgroup should have one.
    let rows = p.rows().as_const().unwrap_or(MANY_ROWS as i64);
    let wide = (rows / i64::from(ROWS)) * (columns * p.rhs.len() as i64 / 256) >= RESIDENT;
    let width = if wide { 256 } else { 128 } / p.rhs.len() as u32;
    let sides = p.rhs.iter().map(|r| side(p, r, k, width)).collect::<Result<Vec<Side>, _>>()?;
    let storage = |s: &Side| p.spec.arg(s.arg).map(|a| a.storage);
    let format = match sides.first().and_then(storage) {
        Some(Storage::F16) => HalfFormat::F16,
        Some(Storage::Bf16) => HalfFormat::Bf16,
        _ => return Err("the weights are not of 16 bits"),
    };
    if sides.iter().any(|s| storage(s) != sides.first().and_then(storage)) {
        return Err("the right sides differ in storage");
    }
    let same = |s: &Side, o: &Side| s.arg != o.arg || s.map == o.map;
    if sides.iter().any(|s| sides.iter().any(|o| !same(s, o))) {
        return Err("one weight is read with two row lengths");
    }
    // Two right sides stage twice the sums.
    let stages = if wide && p.rhs.len() == 2 { 3 } else { 4 };
    Ok(Plan { format, k, columns: width, stages, sides })
}

fn side(p: &Problem<'_>, right: &Right, k: u32, tile_rows: u32) -> Result<Side, &'static str> {
    let Right::Runs { arg, row } = right else { return Err("a right side is not read in runs along the sum") };
    let a = p.spec.arg(*arg).ok_or("a right side is no argument")?;
    let bytes = matches!(a.storage, Storage::F16 | Storage::Bf16);
    if !bytes {
        return Err("the weights are not of 16 bits");
    }
    let linear = row.linear_in(&Sym::Axis(p.n() as u8));
    let (pitch, start) = linear.ok_or("rows of a right side are not evenly apart")?;
    let number = |d: &Dim| d.as_const().and_then(|v| u32::try_from(v).ok());
    let (Some(pitch), Some(start), Some(len)) = (number(&pitch), number(&start), number(&a.len)) else {
        return Err("where rows of a right side lie depends on data or sizes");
    };
    if pitch == 0 || !pitch.is_multiple_of(8) || !start.is_multiple_of(8) || start % pitch + k > pitch {
        return Err("rows of a right side do not begin at 16 bytes");
    }
    let others = std::iter::once(p.lhs).chain(p.spec.stores.iter().map(|s| s.value));
    let others: Vec<ExprId> = others.chain(p.stats.iter().flat_map(|s| [Some(s.value), s.finish]).flatten()).collect();
    let reads = |e: ExprId| matches!(p.spec.exprs.get(e), Expr::Load { arg: x, .. } if x == arg);
    if p.spec.exprs.reachable(&others).into_iter().any(reads) {
        return Err("a right side is read elsewhere as well");
    }
    let map = TileMap { columns: u64::from(pitch), rows: u64::from(len / pitch), tile_rows };
    Ok(Side { arg: *arg, map, corner: [start % pitch, start / pitch] })
}

pub(super) fn render<'a>(p: &Problem<'a>, caps: &'a Capabilities, plan: &Plan) -> Result<Rendered, TemplateError> {
    let kept = p.kept_left(caps);
    let view = |id: ArgId, _: &Arg| match plan.sides.iter().find(|s| s.arg == id) {
        Some(s) => View::Tiles(s.map),
        None if kept.as_ref().is_some_and(|(arg, _)| *arg == id) => View::Vec4,
        None => View::Scalar,
    };
    let ctx = KernelCtx::new(p.spec, caps, [CONSUMERS + WARPGROUP, 1, 1], view)?;
    let b = &ctx.b;
    let columns = plan.columns;
    let stages = plan.stages;
    let left = b.workgroup("left", Type::VEC4_U32, stages * ROWS * PIECES);
    let right = plan.sides.iter().map(|_| b.workgroup("right", Type::VEC4_U32, stages * columns * PIECES)).collect();
    let sums = staging(b, CONSUMERS / WARP, p.rhs.len());
    let barriers = |name: &str| b.workgroup(name, Type::VEC2_U32, stages);
    let (full, free) = (barriers("full"), barriers("free"));
    let me = b.let_("me", b.local_x());
    b.if_(b.eq(me, 0), |b| {
        for stage in 0..stages {
            b.make_barrier(full, stage, WARPGROUP + 1);
            b.make_barrier(free, stage, CONSUMERS / WARP);
        }
    });
    b.barrier();
    let stage = b.var("stage", Type::U32, 0);
    let phase = b.var("phase", Type::U32, 0);
    let ring = Ring { left, right, full, free, stage, phase };
    let kernel = Kernel { p, ctx: &ctx, plan, kept, ring, me };
    let groups = b.let_("groups", ctx.extent(&p.groups(ROWS, columns)));
    let row_blocks = b.let_("row_blocks", ctx.extent(&p.rows().ceil_div(&Dim::constant(i64::from(ROWS)))));
    let across = b.num_groups(crate::ir::Axis::X);
    let first = b.let_("first", b.add(b.mul(b.group_y(), across), b.group_x()));
    let step = b.let_("step", b.mul(across, b.num_groups(crate::ir::Axis::Y)));
    b.for_("block", first, groups, step, |b, block| {
        let rest = b.let_("rest", b.div(block, row_blocks));
        let row = b.let_("first_row", b.mul(b.sub(block, b.mul(rest, row_blocks)), ROWS));
        let column = b.let_("first_column", b.mul(rest, columns));
        let scope = Scope::new();
        let active = b.lt(me, CONSUMERS);
        if p.spec.stores_statistics() {
            // Whoever finishes the block before still reads its statistics.
            b.barrier();
        }
        let stats = p.row_stats(&ctx, &scope, (row, ROWS), column, (me, CONSUMERS), active);
        let team = b.let_("team", b.shr(b.local_x(), WARPGROUP.trailing_zeros()));
        b.if_else(
            b.eq(team, CONSUMERS / WARPGROUP),
            |_| kernel.fill(&scope, row, column, &stats),
            |_| kernel.multiply(&scope, row, column, team, sums),
        );
    });
    let tile = [("rows", ROWS), ("columns", columns), ("k_step", TILE_COLUMNS), ("stages", stages)];
    let grid = dispatch(&p.groups(ROWS, columns).smaller(&Dim::constant(RESIDENT)));
    ctx.finish("gemm_warpgroup", &tile, grid)
}

struct Ring {
    left: ArrayRef,
    /// By side.
    right: Vec<ArrayRef>,
    full: ArrayRef,
    free: ArrayRef,
    stage: Var,
    /// Parity of the phase of `full` that this round through the ring ends.
    phase: Var,
}

struct Kernel<'k, 'a> {
    p: &'k Problem<'a>,
    ctx: &'k KernelCtx<'a>,
    plan: &'k Plan,
    /// A left side that is copied as it is kept, and where its rows start.
    kept: Option<(ArgId, Dim)>,
    ring: Ring,
    me: Val,
}

/// Eight elements that an invocation brings into every left tile.
struct Unit {
    /// Where they lie in a tile.
    slot: Val,
    /// The first along k, in the tile.
    k: Val,
    /// Their row.
    scope: Scope,
    /// Where the row starts, of a left side that is copied.
    start: Option<Val>,
}

impl Kernel<'_, '_> {
    /// Goes to the next stage.
    fn advance(&self) {
        let (b, ring) = (&self.ctx.b, &self.ring);
        let last = b.let_("last", b.eq(ring.stage, self.plan.stages - 1));
        b.set(ring.phase, b.select(last, b.bit_xor(ring.phase, 1), b.get(ring.phase)));
        b.set(ring.stage, b.select(last, b.u32(0), b.add(ring.stage, 1)));
    }

    /// Brings all tiles of the block at `row` and `column`.
    fn fill(&self, scope: &Scope, row: Val, column: Val, stats: &RowStats) {
        let (p, b, ring) = (self.p, &self.ctx.b, &self.ring);
        let columns = self.plan.columns;
        let mine = b.let_("mine", b.bit_and(self.me, WARPGROUP - 1));
        let units: Vec<Unit> = (0..ROWS * PIECES / WARPGROUP)
            .map(|i| {
                let unit = b.add(mine, i * WARPGROUP);
                let local = b.let_("tile_row", b.shr(unit, PIECES.trailing_zeros()));
                let piece = b.bit_and(unit, PIECES - 1);
                let place = b.bit_xor(piece, b.bit_and(local, PIECES - 1));
                let slot = b.let_("slot", b.add(b.mul(local, PIECES), place));
                let k = b.let_("unit_k", b.mul(piece, 8));
                let scope = p.row_scope(self.ctx, scope, row, local, stats);
                let start = self.kept.as_ref().map(|(arg, row)| run_at(self.ctx, &scope, *arg, row));
                Unit { slot, k, scope, start }
            })
            .collect();
        let late = self.plan.late();
        b.for_("k", 0, self.plan.k, TILE_COLUMNS, |b, at| {
            b.await_phase(ring.free, ring.stage, b.bit_xor(ring.phase, 1));
            b.if_(b.eq(mine, 0), |b| {
                let bytes = columns * TILE_COLUMNS * 2 * self.plan.sides.len() as u32;
                let here = b.get(ring.stage);
                b.arrive_with(ring.full, here, bytes);
                for (side, to) in self.plan.sides.iter().zip(&ring.right) {
                    let Some(matrix) = self.ctx.buffer(side.arg) else { continue };
                    let [c, r] = side.corner;
                    let start = b.mul(here, columns * PIECES);
                    b.bring_tile((*to, start), matrix, [b.add(at, c), b.add(column, r)], (ring.full, here));
                }
            });
            match self.kept.as_ref().and_then(|(arg, _)| self.ctx.buffer(*arg)) {
                Some(from) => {
                    self.start_copies(&units, from, at);
                    b.if_(b.ge(at, late * TILE_COLUMNS), |_| self.tell(late, late));
                }
                None => {
                    let values: Vec<Val> = units.iter().map(|u| self.element(u, at)).collect();
                    let first = b.let_("tile", b.mul(ring.stage, ROWS * PIECES));
                    for (unit, v) in units.iter().zip(values) {
                        b.store(ring.left, b.add(first, unit.slot), v);
                    }
                    b.publish();
                    b.arrive(ring.full, ring.stage);
                }
            }
            self.advance();
        });
        if self.kept.is_some() {
            (1..=late).rev().for_each(|ago| self.tell(ago - 1, ago));
        }
    }

    /// Starts the copies of the left tile from `at` on along k; zeros beyond its end.
    fn start_copies(&self, units: &[Unit], from: ArrayRef, at: Val) {
        let (b, ring) = (&self.ctx.b, &self.ring);
        let first = b.let_("tile", b.mul(ring.stage, ROWS * PIECES));
        for unit in units {
            let here = b.add(at, unit.k);
            let safe = b.let_("unit_at", b.min(here, self.plan.k - 8));
            let Some(start) = unit.start else { continue };
            let inside = b.lt(here, self.plan.k);
            b.copy_async(ring.left, b.add(first, unit.slot), from, b.shr(b.add(start, safe), 3), inside);
        }
        b.commit_copies();
    }

    /// Waits for all but the last `pending` tiles of copies, and says that the tile `ago` stages ago is in.
    fn tell(&self, pending: u32, ago: u32) {
        let (b, ring) = (&self.ctx.b, &self.ring);
        b.wait_copies(pending);
        b.publish();
        let stages = self.plan.stages;
        let stage = match stages.is_power_of_two() {
            true => b.bit_and(b.add(ring.stage, stages - ago), stages - 1),
            false => b.select(b.ge(ring.stage, ago), b.sub(ring.stage, ago), b.add(ring.stage, stages - ago)),
        };
        b.arrive(ring.full, b.let_("in", stage));
    }

    /// The rounded elements of a unit, zeros beyond the end of k.
    fn element(&self, unit: &Unit, at: Val) -> Val {
        let (p, ctx) = (self.p, self.ctx);
        let b = &ctx.b;
        let here = b.add(at, unit.k);
        let partial = !self.plan.k.is_multiple_of(TILE_COLUMNS);
        let safe = if partial { b.let_("unit_at", b.min(here, self.plan.k - 8)) } else { b.let_("unit_at", here) };
        let inside = b.lt(here, self.plan.k);
        let one = |i: u32| {
            let v = ctx.expr(&mut unit.scope.with(p.k_axis(), b.add(safe, i)), p.lhs);
            let v = if partial { b.select(inside, v, 0.0) } else { v };
            match self.plan.format {
                HalfFormat::F16 => b.clamp(v, -HalfFormat::F16_MAX, HalfFormat::F16_MAX),
                HalfFormat::Bf16 => v,
            }
        };
        let values: Vec<Val> = (0..8).map(|i| b.let_("x", one(i))).collect();
        let pack = |pair: &[Val]| match (pair, self.plan.format) {
            ([x, y], HalfFormat::F16) => b.pack_2x16_float(b.vec2(*x, *y)),
            ([x, y], HalfFormat::Bf16) => b.pack_2x_bf16(b.vec2(*x, *y)),
            _ => b.u32(0),
        };
        match values.chunks(2).map(pack).collect::<Vec<Val>>().as_slice() {
            [x, y, z, w] => b.let_("eight", b.vec4(*x, *y, *z, *w)),
            _ => b.zero(Type::VEC4_U32),
        }
    }

    /// Multiplies the tiles of the block and stores what comes of it.
    fn multiply(&self, scope: &Scope, row: Val, column: Val, team: Val, sums: ArrayRef) {
        let (b, ring) = (&self.ctx.b, &self.ring);
        let columns = self.plan.columns;
        let lane = b.let_("lane", b.bit_and(self.me, WARP - 1));
        let warp = b.let_("warp", b.shr(self.me, WARP.trailing_zeros()));
        let eights = |_: &Side| (0..columns / 8).map(|_| b.var("acc", Type::VEC4_F32, 0.0)).collect();
        let accs: Vec<Vec<Var>> = self.plan.sides.iter().map(eights).collect();
        // A stage is let go of while the products of the next one run.
        let let_go = |before: Val| {
            b.subgroup_barrier();
            b.if_(b.eq(lane, 0), |b| b.arrive(ring.free, before));
        };
        let before = b.var("before", Type::U32, 0);
        b.for_("k", 0, self.plan.k, TILE_COLUMNS, |b, at| {
            let here = b.let_("here", b.get(ring.stage));
            b.await_phase(ring.full, here, ring.phase);
            let mine = b.let_("mine", b.mul(team, 64 * PIECES));
            let left = b.let_("left_tile", b.add(b.mul(here, ROWS * PIECES), mine));
            let start = b.let_("right_tile", b.mul(here, columns * PIECES));
            for (accs, right) in accs.iter().zip(&ring.right) {
                b.multiply_tiles(accs, (ring.left, left), (*right, start), self.plan.format);
            }
            b.settle(accs.len() as u32);
            b.if_(b.gt(at, 0), |b| let_go(b.get(before)));
            b.set(before, here);
            self.advance();
        });
        b.settle(0);
        let_go(b.get(before));
        let fragments = Fragments::new(self.p, self.ctx, sums, warp, lane);
        let first = b.let_("row0", b.add(row, b.mul(warp, 16)));
        for c in 0..columns / 32 {
            let four = |accs: &'_ Vec<Var>| accs.get(4 * c as usize..4 * c as usize + 4).unwrap_or_default().to_vec();
            let four: Vec<Vec<Var>> = accs.iter().map(four).collect();
            let four: Vec<&[Var]> = four.iter().map(Vec::as_slice).collect();
            fragments.store(scope, first, b.add(column, 32 * c), &four);
        }
    }
}
