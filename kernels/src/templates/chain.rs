//! Two products in a row. A workgroup owns a few rows: it keeps them in its memory, computes a slice of the middle values of
//! all of them, an invocation a middle column, and adds their products to sums that it keeps in registers, an invocation a
//! column of the result. Middle values never leave the workgroup. The order of both sums depends on their extents alone.

use super::common::{KernelCtx, Scope, dispatch};
use super::stats::Team;
use super::{Rendered, TemplateError, View, contiguous_rows};
use crate::dim::{Dim, product};
use crate::ir::{ArrayRef, Type, Val, Var};
use crate::spec::{ArgId, Chain, KernelSpec, Store};
use crate::target::Capabilities;

/// Invocations of a workgroup, and middle values of a row that it holds at once.
pub const SLICE: u32 = 64;
/// Rows of a workgroup.
pub const ROWS: u32 = 8;
/// Most columns of the result that an invocation adds up.
const MOST_COLUMNS: u32 = 4;
/// Invocations that reduce a row together.
const LANES: u32 = SLICE / ROWS;

/// Whether a workgroup holds rows of `k` elements and sums of `n` columns, with this much memory.
pub fn fits(k: u64, n: u64, workgroup_bytes: u64) -> bool {
    // The rows, the middle values, and as much again for statistics.
    let bytes = 4 * u64::from(ROWS) * (k + 2 * u64::from(SLICE));
    bytes <= workgroup_bytes && n <= u64::from(SLICE * MOST_COLUMNS)
}

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities, c: &Chain) -> Result<Rendered, TemplateError> {
    let rank = spec.domain.len();
    let (inner_axis, k_axis) = (rank, rank + 1);
    let number = |d: &Dim| d.as_const().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let (Some(k), Some(inner), Some(n)) = (number(&c.k), number(&c.inner), spec.domain.last().and_then(number)) else {
        return Err(TemplateError::unsupported(spec, "a chain of products whose widths are not known"));
    };
    let up: Vec<(ArgId, Dim)> = c.up.iter().filter_map(|e| contiguous_rows(spec, *e, k_axis)).collect();
    let down = contiguous_rows(spec, c.down, inner_axis);
    let (Some((down, down_row)), true) = (down, up.len() == c.up.len()) else {
        return Err(TemplateError::unsupported(spec, "a chain whose right sides are not contiguous"));
    };
    if !fits(u64::from(k), u64::from(n), u64::from(caps.limit_workgroup_bytes)) {
        return Err(TemplateError::unsupported(spec, format!("a chain of {k} and {n} columns")));
    }
    let row_axes = spec.domain.get(..rank - 1).unwrap_or_default();
    let rows = product(row_axes);
    let groups = rows.ceil_div(&Dim::from(u64::from(ROWS)));
    let ctx = KernelCtx::new(spec, caps, [SLICE, 1, 1], |_, _| View::Scalar)?;
    let (k_chunk, inner_chunk) = (ctx.chunk_for(u64::from(k)).min(8), ctx.chunk_for(u64::from(inner)).min(8));
    let b = &ctx.b;
    let me = b.let_("me", b.local_x());
    let left = b.workgroup("left", Type::F32, ROWS * k);
    let middle = b.workgroup("middle", Type::F32, ROWS * SLICE);
    let group = b.let_("group", ctx.group(&groups));
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let first = b.let_("first_row", b.mul(group, ROWS));
        let end = b.let_("rows", ctx.extent(&rows));
        let row_of = |r: Val| {
            let mut scope = Scope::new();
            let at = b.let_("row", b.min(b.add(first, r), b.sub(end, 1)));
            ctx.unravel(&mut scope, 0, row_axes, at);
            scope
        };
        let team = b.let_("team", b.div(me, LANES));
        let lane = b.let_("lane", b.rem(me, LANES));
        let mut own = row_of(team);
        if !c.lhs_stats.is_empty() {
            let team = Team { lanes: LANES, teams: ROWS, lane, team, active: b.bool(true), ahead: 0 };
            ctx.row_stats(&mut own, &c.lhs_stats, k_axis, b.u32(k), &team);
        }
        ctx.hoist(&mut own, &[c.lhs]);
        let to = b.let_("to", b.mul(team, k));
        b.for_("at", lane, k, LANES, |b, at| {
            b.store(left, b.add(to, at), ctx.expr(&mut own.with(k_axis, at), c.lhs));
        });
        b.barrier();
        let zero = |name: &str| b.var(name, Type::F32, 0.0);
        let sums = |count: usize, name: &str| -> Vec<Vec<Var>> {
            (0..count).map(|_| (0..ROWS).map(|_| zero(name)).collect()).collect()
        };
        let out = sums(n.div_ceil(SLICE) as usize, "out");
        let columns: Vec<Val> = (0..out.len() as u32).map(|j| b.let_("n", b.add(me, j * SLICE))).collect();
        let starts: Vec<Val> = columns
            .iter()
            .map(|n_at| {
                let inside = b.let_("n_safe", b.min(*n_at, n - 1));
                b.let_("run", ctx.address(&mut Scope::new().with(rank - 1, inside), down, &down_row))
            })
            .collect();
        // Adds to `sums`, a row of ROWS each, the products of rows in `from` from `at` on, `step` apart, with a run of each side.
        let multiply = |sums: &[Vec<Var>], sides: &[Vec<Val>], from: ArrayRef, at: Val, step: u32, chunk: u32| {
            for r in 0..ROWS {
                let start = b.let_("from", b.add(at, r * step));
                let x: Vec<Val> = (0..chunk).map(|j| b.let_("x", b.load(from, b.add(start, j)))).collect();
                for (sums, w) in sums.iter().zip(sides) {
                    let Some(sum) = sums.get(r as usize).copied() else { continue };
                    match (x.as_slice(), w.as_slice()) {
                        ([x], [w]) => b.fma_to(sum, *x, *w),
                        _ => x.chunks_exact(4).zip(w).for_each(|(x, w)| {
                            let [x, y, z, q] = x else { return };
                            ctx.dot_parts(sum, &ctx.parts(b.vec4(*x, *y, *z, *q)), &ctx.parts(*w));
                        }),
                    }
                }
            }
        };
        let weights = |arg: ArgId, at: Val, chunk: u32| -> Vec<Val> {
            let all = if chunk == 1 { vec![ctx.element(arg, at)] } else { ctx.values(&ctx.row_chunk(arg, at, chunk)) };
            all.into_iter().map(|w| b.let_("w", w)).collect()
        };
        b.for_("i0", 0, inner, SLICE, |b, i0| {
            let i = b.let_("i", b.add(i0, me));
            let inside = b.let_("i_safe", b.min(i, inner - 1));
            let mut at = Scope::new().with(inner_axis, inside);
            let runs: Vec<Val> = up.iter().map(|(arg, row)| b.let_("run", ctx.address(&mut at, *arg, row))).collect();
            let accs = sums(up.len(), "acc");
            b.for_("k", 0, k, k_chunk, |b, at| {
                let sides: Vec<Vec<Val>> =
                    up.iter().zip(&runs).map(|((arg, _), run)| weights(*arg, b.add(*run, at), k_chunk)).collect();
                multiply(&accs, &sides, left, at, k, k_chunk);
            });
            for r in 0..ROWS {
                let found = accs.iter().filter_map(|a| a.get(r as usize)).map(|a| b.get(*a)).collect();
                let mut at = row_of(b.u32(r)).with(inner_axis, inside).with_accs(found);
                let value = ctx.expr(&mut at, c.middle);
                b.store(middle, b.add(me, r * SLICE), b.select(b.lt(i, inner), value, 0.0));
            }
            b.barrier();
            let seen = b.let_("seen", b.min(b.u32(SLICE), b.sub(b.u32(inner), i0)));
            b.for_("j", 0, seen, inner_chunk, |b, j| {
                let at = b.add(i0, j);
                let sides: Vec<Vec<Val>> =
                    starts.iter().map(|start| weights(down, b.add(*start, at), inner_chunk)).collect();
                multiply(&out, &sides, middle, j, SLICE, inner_chunk);
            });
            b.barrier();
        });
        let stores: Vec<&Store> = spec.stores.iter().collect();
        for (column, out) in columns.iter().zip(&out) {
            b.if_(b.lt(*column, n), |b| {
                for (r, sum) in (0u32..).zip(out) {
                    b.if_(b.lt(b.add(first, r), end), |b| {
                        let here = row_of(b.u32(r)).with(rank - 1, *column).with_accs(vec![b.get(*sum)]);
                        ctx.store_all(&here, &stores);
                    });
                }
            });
        }
    });
    let tile = [("rows", ROWS), ("slice", SLICE), ("k_chunk", k_chunk), ("inner_chunk", inner_chunk)];
    ctx.finish("chain", &tile, dispatch(&groups))
}
