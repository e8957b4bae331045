//! The end of products of warpgroups: sums spread over a subgroup, finished and stored row by row.
//!
//! Each subgroup stages 16 rows of 32 columns in an area of workgroup memory of its own, from where every lane takes a
//! column: whole rows are stored together, and the epilogue sees one element at a time as in every product.

use super::common::{KernelCtx, Scope};
use super::product::Problem;
use crate::ir::{ArrayRef, Builder, Type, Val, Var};
use crate::spec::Store;

/// Pairs of floats between rows of the staging area: half a subgroup meets every bank once.
const PITCH: u32 = 20;
/// Pairs of floats of an area.
const AREA: u32 = 16 * PITCH;

/// The staging area of all subgroups, for products of so many right sides.
pub(super) fn staging(b: &Builder, subgroups: u32, sides: usize) -> ArrayRef {
    b.workgroup("sums", Type::VEC2_F32, subgroups * AREA * sides as u32)
}

/// Where a subgroup finishes its sums.
pub(super) struct Fragments<'k, 'a> {
    p: &'k Problem<'a>,
    ctx: &'k KernelCtx<'a>,
    sums: ArrayRef,
    lane: Val,
    /// This subgroup's area, and this lane's first pair of a fragment there.
    mine: Val,
    fragment: Val,
    /// Extents of the output.
    rows: Val,
    columns: Val,
}

impl<'k, 'a> Fragments<'k, 'a> {
    /// For lane `lane` of subgroup `warp` of those that `sums` was made for.
    pub(super) fn new(p: &'k Problem<'a>, ctx: &'k KernelCtx<'a>, sums: ArrayRef, warp: Val, lane: Val) -> Self {
        let b = &ctx.b;
        let rows = b.let_("rows", ctx.extent(&p.rows()));
        let columns = b.let_("columns", ctx.extent(&p.columns()));
        let mine = b.let_("mine", b.mul(warp, AREA * p.rhs.len() as u32));
        let fragment = b.add(b.mul(b.shr(lane, 2), PITCH), b.bit_and(lane, 3));
        let fragment = b.let_("fragment", b.add(mine, fragment));
        Fragments { p, ctx, sums, lane, mine, fragment, rows, columns }
    }

    /// Stores 16 rows and 32 columns from `row` and `column` on. By right side four sums of eight columns each.
    pub(super) fn store(&self, scope: &Scope, row: Val, column: Val, accs: &[&[Var]]) {
        let (p, ctx) = (self.p, self.ctx);
        let b = &ctx.b;
        let stores: Vec<&Store> = p.spec.stores.iter().collect();
        b.subgroup_barrier();
        for (j, accs) in accs.iter().enumerate() {
            for (c, acc) in accs.iter().enumerate() {
                let first = j as u32 * AREA + 4 * c as u32;
                for (lane, offset) in [(0, 0), (2, 8 * PITCH)] {
                    let pair = b.vec2(b.lane(b.get(*acc), lane), b.lane(b.get(*acc), lane + 1));
                    b.store(self.sums, b.add(self.fragment, first + offset), pair);
                }
            }
        }
        b.subgroup_barrier();
        let at = b.let_("column", b.add(column, self.lane));
        let mut here = scope.clone();
        here.bind(p.n(), b.let_("column_safe", b.min(at, b.sub(self.columns, 1))));
        b.for_("r", 0, 16, 1, |b, r| {
            let at_row = b.let_("row", b.add(row, r));
            let of_row = |scope: &Scope| {
                let mut row = scope.clone();
                ctx.unravel(&mut row, p.first, p.extents(p.first, p.m + 1), at_row);
                row
            };
            let kept = p.spec.partials.as_ref().map(|partials| (partials, b.var("kept", Type::F32, 0.0)));
            b.if_(b.and(b.lt(at_row, self.rows), b.lt(at, self.columns)), |b| {
                let inner = of_row(&here);
                let from = b.add(b.add(self.mine, b.mul(r, PITCH)), b.shr(self.lane, 1));
                let odd = b.eq(b.bit_and(self.lane, 1), 1);
                let sum = |j: u32| {
                    let pair = b.let_("pair", b.load(self.sums, b.add(from, j * AREA)));
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
                let row = (b.lt(at_row, self.rows), || of_row(scope));
                ctx.store_tile_of_subgroup(partials, (p.n(), self.lane), (at, self.columns), b.get(kept), row);
            }
        });
    }
}
