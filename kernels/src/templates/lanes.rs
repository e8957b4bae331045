//! Matrix products on drivers that run shaders on processor cores. A workgroup is one subgroup of 8. Its lanes share a few
//! rows of the left side and have columns of their own: each lane brings an eighth of the left elements and the others get
//! them by broadcast, so that every element of the left side is loaded once a workgroup, and weights are read as texels.
//! There is no workgroup memory and no barrier.
//!
//! A sum over k is one chain in ascending order of blocks, the same for any number of rows.

use super::common::{Held, KernelCtx, Scope, dispatch};
use super::product::{Problem, Right};
use super::stats::Team;
use super::{Part, Quad, Rendered, TemplateError, View, uses_gemv};
use crate::dim::Sym;
use crate::ir::{ArrayRef, Builder, Builtin, Collective, Type, Val, Var};
use crate::spec::{ArgId, Expr, ExprId, KernelSpec, Partials, Store};
use crate::target::Capabilities;

/// Invocations of a workgroup.
const LANES: u32 = 8;
/// Most elements of the left side that a lane keeps for the statistics and the products.
const MOST_HELD: u32 = 4096;
/// Columns whose weights are read one after the other before the first is decoded: reads are long chains of instructions, which
/// a processor then works on at once.
const AHEAD: usize = 4;
/// Sums that a lane makes side by side, and of one row at once: more are a longer text than a processor keeps at hand.
const SUMS: usize = 8;
/// Most often that a workgroup takes columns, for one row of the left side that its lanes keep.
const MOST_PASSES: u32 = 8;

/// Rows of a workgroup, columns of a lane at once, how often it takes columns, and elements along k of a step.
struct Tile {
    rows: u32,
    columns: u32,
    passes: u32,
    chunk: u32,
}

/// The kernel in this form; `None` where a right side is not runs of consecutive elements, or k is not a constant multiple
/// of 8.
pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Option<Rendered>, TemplateError> {
    let p = Problem::new(spec)?;
    let Some(tile) = tile(&p) else { return Ok(None) };
    let is_run = |id: ArgId| p.rhs.iter().any(|r| matches!(r, Right::Runs { arg, .. } if *arg == id));
    let view = |id: ArgId, _: &_| if is_run(id) { View::Vec4 } else { View::Scalar };
    let ctx = KernelCtx::new(spec, caps, [LANES, 1, 1], view)?;
    let Tile { rows, columns, passes, chunk } = tile;
    let across = LANES * columns;
    p.in_block(&ctx, rows, across * passes, |b, scope, row, first| {
        let lane = b.let_("lane", b.builtin(Builtin::SubgroupLane));
        let mut left: Vec<Scope> = (0..rows).map(|i| left_row(&p, &ctx, &scope, b.add(row, i), lane)).collect();
        if !spec.left.is_empty() {
            b.if_(b.eq(first, 0), |b| {
                for (i, scope) in left.iter().enumerate() {
                    b.if_(b.lt(b.add(row, i as u32), ctx.extent(&p.rows())), |_| {
                        ctx.in_turns((lane, lane), ctx.extent(p.k), LANES, |_, i, turn| {
                            let mut here = scope.with(p.k_axis(), i);
                            here.turn = turn;
                            ctx.store_left(&mut here);
                        });
                    });
                }
            });
        }
        if passes > 1 {
            left.iter_mut().for_each(|l| hold(&p, &ctx, l, lane, &[p.lhs]));
        }
        let pass = |column: Val| {
            let sums = sums(&p, &ctx, &tile, &scope, &left, (column, lane));
            write(&p, &ctx, &tile, (&scope, &left), (row, column, lane), &sums);
        };
        if passes == 1 {
            return pass(first);
        }
        b.for_("pass", 0, passes, 1, |b, i| {
            let column = b.let_("column", b.add(first, b.mul(i, across)));
            b.if_(b.lt(column, ctx.extent(&p.columns())), |_| pass(column));
        });
    });
    let mut tile = vec![("rows", rows), ("columns", across), ("chunk", chunk)];
    if passes > 1 {
        tile.push(("passes", passes));
    }
    let grid = dispatch(&p.groups(rows, across * passes));
    ctx.finish("lanes", &tile, grid).map(Some)
}

fn tile(p: &Problem<'_>) -> Option<Tile> {
    let k = p.k.as_const().and_then(|k| u32::try_from(k).ok()).filter(|k| *k > 0)?;
    let mut is_quantised = false;
    for right in &p.rhs {
        let Right::Runs { arg, .. } = right else { return None };
        is_quantised |= p.spec.arg(*arg)?.storage.is_quantised();
    }
    if p.run != 8 || !k.is_multiple_of(8) || is_quantised && !k.is_multiple_of(32) {
        return None;
    }
    let rows = match p.rows().as_const() {
        Some(n) if n <= 8 => u32::try_from(n).ok().filter(|n| *n > 0)?,
        _ if uses_gemv(p.spec) => 1,
        _ => 8,
    };
    let all = p.columns().as_const().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
    let (mut columns, mut passes) = columns_of(rows, p.rhs.len() as u32, is_quantised, !p.stats.is_empty(), all);
    if k / LANES > MOST_HELD {
        passes = 1;
    }
    if let Some(partials) = &p.spec.partials {
        // Whole tiles of statistics.
        let tile = partials.columns / LANES;
        columns = (columns / tile).max(1) * tile;
        if p.rhs.len() > 1 {
            return None;
        }
    }
    let fits = |n: u32| k.is_multiple_of(n);
    let chunk = match (is_quantised, rows) {
        (true, 1) if k.is_multiple_of(64) => 64,
        (true, _) => 32,
        (false, 1..=2) if fits(32) => 32,
        (false, 1..=4) if fits(16) => 16,
        _ => 8,
    };
    Some(Tile { rows, columns, passes, chunk })
}

/// Columns of a lane, of a product with `sides` right sides and `all` columns, and how often a workgroup takes so many.
fn columns_of(rows: u32, sides: u32, is_quantised: bool, has_norm: bool, all: u32) -> (u32, u32) {
    if rows == 1 {
        return columns_of_one_row(sides.max(1), is_quantised, has_norm, all);
    }
    let mut columns = if sides * rows > 8 || is_quantised { 4 } else { 8 };
    if sides > 2 {
        columns = 2;
    }
    // Few columns are spread over a few workgroups, one a core at least.
    while rows < 8 && columns > 1 && all / (LANES * columns) < 8 {
        columns /= 2;
    }
    // Of many rows, the width whose tiles reach least beyond the last column; bringing the left side costs each tile about
    // as much as a column.
    let work = |width: &u32| all.div_ceil(LANES * width).saturating_mul(width + 1);
    if rows == 8 {
        columns = (columns / 2 + 1..=columns).rev().min_by_key(work).unwrap_or(columns);
    }
    (columns, 1)
}

/// Columns of a lane where there is one row, and how often a workgroup takes them: what has the least work in turns of 2, 4
/// and 8 cores together. Work is counted in columns. A workgroup brings its row, and the gains of a norm in front, at the
/// price of so many: a load from a buffer is a loop over lanes, where weights come four words at a time. Every time it hands
/// the row round among its lanes.
fn columns_of_one_row(sides: u32, is_quantised: bool, has_norm: bool, all: u32) -> (u32, u32) {
    let (row, handed) = if is_quantised { (26, 5) } else { (13, 2) };
    let row = if has_norm { 2 * row } else { row };
    let work = |(columns, passes): &(u32, u32)| -> u64 {
        let width = LANES * columns;
        let groups = u64::from(all.div_ceil(width * passes));
        let turns: u64 = [2, 4, 8].map(|cores| cores * groups.div_ceil(cores)).iter().sum();
        turns * u64::from(row + passes * (handed + sides * width))
    };
    let most = (SUMS as u32 / sides).max(2);
    let widths = || (1..=most / 2).rev().map(|pairs| 2 * pairs).chain([1]);
    (1..=MOST_PASSES).flat_map(|passes| widths().map(move |w| (w, passes))).min_by_key(work).unwrap_or((1, 1))
}

/// Columns of a workgroup of a product behind a norm.
pub(super) fn columns_of_group(few_rows: bool, sides: u32, is_quantised: bool, all: u32) -> u32 {
    let (columns, passes) = columns_of(if few_rows { 1 } else { 8 }, sides, is_quantised, true, all);
    LANES * columns * passes
}

/// The scope of row `row` of the left side, the last where it lies beyond, with its statistics.
fn left_row(p: &Problem<'_>, ctx: &KernelCtx<'_>, base: &Scope, row: Val, lane: Val) -> Scope {
    let b = &ctx.b;
    let mut scope = p.bare_row(ctx, base, row);
    ctx.hoist(&mut scope, &[p.lhs]);
    if p.stats.is_empty() {
        return scope;
    }
    if p.spec.stats_over.is_none() {
        hold(p, ctx, &mut scope, lane, &along_k(p));
    }
    let team = Team { lanes: LANES, teams: 1, lane, team: b.u32(0), active: b.bool(true), ahead: 0 };
    ctx.row_stats(&mut scope, p.stats, p.k_axis(), ctx.extent(p.k), &team);
    scope
}

/// What the statistics read along k.
fn along_k(p: &Problem<'_>) -> Vec<ExprId> {
    let values: Vec<ExprId> = p.stats.iter().map(|s| s.value).collect();
    let axis = Sym::Axis(p.k_axis() as u8);
    let along = |e: &ExprId| matches!(p.spec.exprs.get(*e), Expr::Load { index, .. } if index.mentions(&axis));
    p.spec.exprs.reachable(&values).into_iter().filter(along).collect()
}

/// Computes these along k, and keeps them instead of what was kept: each lane its share.
fn hold(p: &Problem<'_>, ctx: &KernelCtx<'_>, scope: &mut Scope, lane: Val, what: &[ExprId]) {
    let b = &ctx.b;
    let share = p.k.as_const().and_then(|k| u32::try_from(k).ok()).unwrap_or(u32::MAX) / LANES;
    if share > MOST_HELD {
        return;
    }
    let axis = p.k_axis();
    let floats = what.iter().filter(|e| p.spec.exprs.scalar(**e) == crate::dtype::Scalar::F32);
    let held: Vec<Held> =
        floats.map(|e| Held { expr: *e, axis, step: LANES, values: b.private("held", Type::F32, share) }).collect();
    ctx.in_turns((lane, lane), ctx.extent(p.k), LANES, |b, i, turn| {
        let mut at = scope.with(axis, i);
        at.turn = turn;
        for h in &held {
            let value = ctx.expr(&mut at, h.expr);
            b.store(h.values, turn.unwrap_or_else(|| b.shr(i, LANES.trailing_zeros())), value);
        }
    });
    scope.held = held;
}

/// The sums of right side j, row r and column c of this lane: `[j][r][c]`.
fn sums(
    p: &Problem<'_>,
    ctx: &KernelCtx<'_>,
    tile: &Tile,
    base: &Scope,
    left: &[Scope],
    (column, lane): (Val, Val),
) -> Vec<Vec<Vec<Var>>> {
    let b = &ctx.b;
    let zero = |_| b.var("acc", Type::F32, 0.0);
    let accs: Vec<Vec<Vec<Var>>> =
        p.rhs.iter().map(|_| (0..tile.rows).map(|_| (0..tile.columns).map(zero).collect()).collect()).collect();
    let own: Vec<Scope> =
        (0..tile.columns).map(|c| p.column_scope(ctx, base, b.add(b.add(column, c * LANES), lane))).collect();
    let starts: Vec<Vec<Val>> = p.rhs.iter().map(|r| own.iter().map(|s| p.run_start(ctx, s, r)).collect()).collect();
    let in_place = !ctx.is_split() && p.rhs.iter().any(|r| matches!(r, Right::Runs { arg, .. } if ctx.has_bytes(*arg)));
    let units = in_place.then(|| b.let_("units", ctx.units_in_place(lane)));
    b.for_("k", 0, ctx.extent(p.k), tile.chunk, |b, k| {
        let mut rows = left_chunks(p, ctx, base, left, (k, lane, units), tile.chunk);
        // So many sums are made side by side.
        let together = (SUMS / rows.len()).max(1);
        for ((right, starts), accs) in p.rhs.iter().zip(&starts).zip(&accs) {
            let Right::Runs { arg, .. } = right else { continue };
            for (group, starts) in starts.chunks(AHEAD).enumerate() {
                let read = |start: &Val| ctx.row_chunk(*arg, b.add(*start, k), tile.chunk);
                let read: Vec<Vec<Part>> = starts.iter().map(read).collect();
                for (i, read) in read.chunks(together).enumerate() {
                    let first = group * AHEAD + i * together;
                    let accs: Vec<Vec<Var>> = (0..read.len())
                        .map(|c| accs.iter().filter_map(|a| a.get(first + c)).copied().collect())
                        .collect();
                    if ctx.is_split() {
                        add_split(ctx, &accs, &rows, read);
                    } else {
                        add(ctx, &accs, &mut rows, read);
                    }
                }
            }
        }
    });
    accs
}

/// `chunk` elements of a row of the left side: those this lane brings, every eighth, and all of them, the same in every
/// lane.
struct LeftChunk {
    own: Vec<Val>,
    /// Part by part, where elements are split.
    plain: Vec<Vec<Val>>,
    /// As [`KernelCtx::bytes_in_place`] wants them; empty where no right side has bytes.
    in_place: Vec<Val>,
    totals: Vec<(usize, usize, Val)>,
}

impl LeftChunk {
    /// The sum of `len` elements from `from` on.
    fn total(&mut self, b: &Builder, from: usize, len: usize) -> Val {
        if let Some((.., total)) = self.totals.iter().find(|t| (t.0, t.1) == (from, len)) {
            return *total;
        }
        let lanes = LANES as usize;
        let own = self.own.get(from / lanes..(from + len) / lanes).unwrap_or_default();
        let mut total = sum(b, own);
        for mask in [4, 2, 1] {
            let named = b.let_("total", total);
            total = b.add(named, b.collective("other", Collective::ShuffleXor(mask), named));
        }
        let total = b.let_("total", total);
        self.totals.push((from, len, total));
        total
    }
}

/// `chunk` elements from `k` on of every row of the left side.
fn left_chunks(
    p: &Problem<'_>,
    ctx: &KernelCtx<'_>,
    base: &Scope,
    left: &[Scope],
    (k, lane, units): (Val, Val, Option<Val>),
    chunk: u32,
) -> Vec<LeftChunk> {
    let b = &ctx.b;
    let places: Vec<Val> = (0..chunk / LANES).map(|j| b.let_("at", b.add(b.add(k, j * LANES), lane))).collect();
    // What depends on k alone is computed once for all rows.
    let is_held = left.iter().all(|row| row.held.iter().any(|h| h.expr == p.lhs));
    let shared: Vec<Scope> = places
        .iter()
        .map(|at| {
            let mut scope = base.with(p.k_axis(), *at);
            if !is_held {
                ctx.load_here(&mut scope, &[p.lhs]);
            }
            scope
        })
        .collect();
    let all = |own: &[Val]| -> Vec<Val> {
        own.iter().flat_map(|v| (0..LANES).map(|l| b.collective("x", Collective::Broadcast(l), *v))).collect()
    };
    let has_floats = p.rhs.iter().any(|r| !matches!(r, Right::Runs { arg, .. } if ctx.has_bytes(*arg)));
    left.iter()
        .map(|row| {
            let own = places.iter().zip(&shared).map(|(at, shared)| {
                let mut scope = row.with(p.k_axis(), *at);
                scope.exprs.extend(shared.exprs.iter().map(|(e, v)| (*e, *v)));
                b.let_("own", ctx.expr(&mut scope, p.lhs))
            });
            let own: Vec<Val> = own.collect();
            let plain = match (ctx.is_split(), has_floats) {
                (true, _) => {
                    let split: Vec<Vec<Val>> = own.iter().map(|v| ctx.parts(*v)).collect();
                    let count = split.first().map_or(0, Vec::len);
                    (0..count)
                        .map(|i| all(&split.iter().filter_map(|v| v.get(i).copied()).collect::<Vec<_>>()))
                        .collect()
                }
                (false, true) => vec![all(&own)],
                (false, false) => Vec::new(),
            };
            let in_place = units.map(|u| all(&own.iter().map(|v| b.let_("placed", b.mul(*v, u))).collect::<Vec<_>>()));
            LeftChunk { own, plain, in_place: in_place.unwrap_or_default(), totals: Vec::new() }
        })
        .collect()
}

/// Adds to `accs[c][r]` the products of row r's elements with what was read of column c. Every sum is a chain in ascending
/// order of k; the links of all of them alternate, since a link waits for the one in front of it.
fn add(ctx: &KernelCtx<'_>, accs: &[Vec<Var>], rows: &mut [LeftChunk], columns: &[Vec<Part>]) {
    let b = &ctx.b;
    let mut from = 0;
    for i in 0..columns.first().map_or(0, Vec::len) {
        let parts: Vec<Part> = columns.iter().filter_map(|c| c.get(i)).map(|p| with_scale(b, p)).collect();
        let len = parts.first().map_or(0, |p| 4 * p.quads.len());
        let mut sums: Vec<Vec<Val>> = Vec::new();
        for (part, accs) in parts.iter().zip(accs) {
            let start = |acc: &Var| if part.is_plain() { b.get(*acc) } else { b.f32(0.0) };
            sums.push(accs.iter().map(start).collect());
        }
        for q in 0..len / 4 {
            for (part, sums) in parts.iter().zip(&mut sums) {
                let Some(quad) = part.quads.get(q) else { continue };
                let w = match quad {
                    Quad::Bytes(w) => ctx.bytes_in_place(*w),
                    Quad::Floats(v) => *v,
                };
                let w = b.let_("w", w);
                for (sum, row) in sums.iter_mut().zip(rows.iter()) {
                    let all = match quad {
                        Quad::Bytes(_) => Some(&row.in_place),
                        Quad::Floats(_) => row.plain.first(),
                    };
                    let Some(xs) = all.and_then(|xs| xs.get(from + 4 * q..from + 4 * q + 4)) else {
                        b.error("elements of the left side in another form than the weights'");
                        continue;
                    };
                    let next = (0u32..).zip(xs).fold(*sum, |sum, (i, x)| b.fma(*x, b.lane(w, i), sum));
                    *sum = b.let_("sum", next);
                }
            }
        }
        for ((part, sums), accs) in parts.iter().zip(&sums).zip(accs) {
            for ((sum, acc), row) in sums.iter().zip(accs).zip(rows.iter_mut()) {
                let before = match part.min {
                    Some(m) => b.fma(row.total(b, from, len), m, b.get(*acc)),
                    None => b.get(*acc),
                };
                match part.scale {
                    _ if part.is_plain() => b.set(*acc, *sum),
                    Some(s) => b.set(*acc, b.fma(*sum, s, before)),
                    None => b.set(*acc, b.add(*sum, before)),
                }
            }
        }
        from += len;
    }
}

/// The part, its scale and minimum computed once.
fn with_scale(b: &Builder, p: &Part) -> Part {
    Part { quads: p.quads.clone(), scale: p.scale.map(|s| b.let_("scale", s)), min: p.min.map(|m| b.let_("low", m)) }
}

/// [`add`] for elements that are sums of parts.
fn add_split(ctx: &KernelCtx<'_>, accs: &[Vec<Var>], rows: &[LeftChunk], columns: &[Vec<Part>]) {
    let b = &ctx.b;
    for (accs, parts) in accs.iter().zip(columns) {
        let named: Vec<Part> = parts.iter().map(|p| with_scale(b, p)).collect();
        let quads: Vec<Vec<Val>> = ctx.values(&named).into_iter().map(|q| ctx.parts(b.let_("w", q))).collect();
        for (xs, acc) in rows.iter().zip(accs) {
            for (q, w) in quads.iter().enumerate() {
                for i in 0..4usize {
                    let x: Vec<Val> = xs.plain.iter().filter_map(|part| part.get(4 * q + i)).copied().collect();
                    let w: Vec<Val> = w.iter().map(|w| b.lane(*w, i as u32)).collect();
                    ctx.multiply_parts(*acc, &x, &w);
                }
            }
        }
    }
}

fn sum(b: &Builder, xs: &[Val]) -> Val {
    xs.iter().copied().reduce(|s, x| b.add(s, x)).unwrap_or_else(|| b.f32(0.0))
}

/// Writes the outputs of this lane, column by column, so that what depends on the column alone is loaded once for all
/// rows.
fn write(
    p: &Problem<'_>,
    ctx: &KernelCtx<'_>,
    tile: &Tile,
    (base, left): (&Scope, &[Scope]),
    (row, column, lane): (Val, Val, Val),
    sums: &[Vec<Vec<Var>>],
) {
    let b = &ctx.b;
    let scales: Vec<ArrayRef> = match p.spec.stores_statistics() {
        true => p.stats.iter().map(|_| b.private("scale", Type::F32, tile.rows)).collect(),
        false => Vec::new(),
    };
    for (j, array) in scales.iter().enumerate() {
        for (i, stat) in left.iter().enumerate().filter_map(|(i, l)| Some((i, l.stat(j)?))) {
            b.store(*array, i as u32, stat);
        }
    }
    let found: Vec<_> = sums.iter().map(|_| b.private("found", Type::F32, tile.rows * tile.columns)).collect();
    for (array, sums) in found.iter().zip(sums) {
        for (i, sum) in sums.iter().flatten().enumerate() {
            b.store(*array, i as u32, b.get(*sum));
        }
    }
    let (rows, columns) = (ctx.extent(&p.rows()), ctx.extent(&p.columns()));
    let groups = together(p);
    let kept = p.spec.partials.as_ref().map(|partials| {
        let kept = b.private("kept", Type::F32, tile.rows * tile.columns);
        b.for_("i", 0, tile.rows * tile.columns, 1, |b, i| b.store(kept, i, 0.0));
        (partials, kept)
    });
    let at_row = |scope: &Scope, r: Val, m: Val| {
        let mut scope = scope.clone();
        ctx.unravel(&mut scope, p.first, p.extents(p.first, p.m + 1), m);
        scales.iter().for_each(|s| scope.push_stat(b.let_("scale", b.load(*s, r))));
        scope
    };
    let only_row = (tile.rows == 1).then(|| {
        let mut scope = at_row(base, b.u32(0), row);
        for stores in &groups {
            ctx.hoist(&mut scope, &values(stores));
        }
        scope
    });
    b.for_("c", 0, tile.columns, 1, |b, c| {
        let n = b.let_("n", b.add(b.add(column, b.mul(c, LANES)), lane));
        b.if_(b.lt(n, columns), |b| {
            for stores in &groups {
                let mut scope = only_row.as_ref().unwrap_or(base).with(p.n(), n);
                let alike = stores.first().filter(|s| stores.iter().all(|o| o.when == s.when));
                let inside = alike.map_or_else(|| b.bool(true), |s| ctx.when(&mut scope, s));
                // What the guard says is not asked again.
                let free: Vec<Store> = stores
                    .iter()
                    .map(|s| Store { when: s.when.clone().filter(|_| alike.is_none()), ..(*s).clone() })
                    .collect();
                let stores: Vec<&Store> = free.iter().collect();
                b.if_(inside, |b| {
                    let accs = |i: Val| found.iter().map(|a| b.let_("found", b.load(*a, i))).collect();
                    let keep = |i: Val, here: &mut Scope| {
                        if let Some((partials, kept)) = &kept
                            && stores.iter().any(|s| s.value == partials.value)
                        {
                            b.store(*kept, i, ctx.expr(here, partials.value));
                        }
                    };
                    if only_row.is_some() {
                        let mut here = scope.with_accs(accs(c));
                        keep(c, &mut here);
                        return ctx.store_all(&here, &stores);
                    }
                    if alike.is_some() {
                        ctx.load_here(&mut scope, &values(&stores));
                    }
                    b.for_("r", 0, tile.rows, 1, |b, r| {
                        let m = b.let_("m", b.add(row, r));
                        b.if_(b.lt(m, rows), |b| {
                            let i = b.add(b.mul(r, tile.columns), c);
                            let mut here = at_row(&scope, r, m).with_accs(accs(i));
                            keep(i, &mut here);
                            ctx.store_all(&here, &stores);
                        });
                    });
                });
            }
        });
    });
    if let Some(kept) = kept {
        write_partials(p, ctx, tile, base, (row, column, lane), kept);
    }
}

/// Writes the statistics of this workgroup's rows and columns, whose values lie in `kept` as its sums do.
fn write_partials(
    p: &Problem<'_>,
    ctx: &KernelCtx<'_>,
    tile: &Tile,
    base: &Scope,
    (row, column, lane): (Val, Val, Val),
    (partials, kept): (&Partials, ArrayRef),
) {
    let b = &ctx.b;
    let (rows, columns) = (ctx.extent(&p.rows()), ctx.extent(&p.columns()));
    let own = partials.columns / LANES;
    b.for_("r", 0, tile.rows, 1, |b, r| {
        let m = b.let_("m", b.add(row, r));
        let write = |t: Val| {
            let first = b.let_("first", b.add(column, b.mul(t, partials.columns)));
            let number = b.let_("tile", b.div(first, partials.columns));
            let values: Vec<(Val, Val, Val)> = (0..own)
                .map(|c| {
                    let at = b.add(b.mul(r, tile.columns), b.add(b.mul(t, own), c));
                    let column = b.add(b.add(first, c * LANES), lane);
                    (b.let_("kept", b.load(kept, at)), column, b.lt(column, columns))
                })
                .collect();
            let count = ctx.partial_count(partials.columns, columns, number);
            let numbers = ctx.joined_partials(partials.kind, LANES, &values, count);
            let exists = b.and(b.lt(m, rows), b.lt(first, columns));
            b.if_(b.and(b.eq(lane, 0), exists), |_| {
                let mut scope = base.clone();
                ctx.unravel(&mut scope, p.first, p.extents(p.first, p.m + 1), m);
                ctx.store_partials(partials, &scope, p.n(), number, &numbers);
            });
        };
        match own {
            1 => b.for_("t", 0, tile.columns, 1, |_, t| write(t)),
            _ => (0..tile.columns / own).for_each(|t| write(b.u32(t))),
        }
    });
}

fn values(stores: &[&Store]) -> Vec<ExprId> {
    stores.iter().map(|s| s.value).collect()
}

/// The stores by their ranges of columns: those of one range are written together. All of them are where one may write
/// what another one reads.
fn together<'a>(p: &Problem<'a>) -> Vec<Vec<&'a Store>> {
    let mut groups: Vec<Vec<&Store>> = Vec::new();
    for s in &p.spec.stores {
        let like = |g: &&mut Vec<&Store>| !p.spec.aliases.is_empty() || g.iter().all(|o| o.when == s.when);
        match groups.iter_mut().find(like) {
            Some(g) => g.push(s),
            None => groups.push(vec![s]),
        }
    }
    groups
}
