//! Statistics of a result by tiles of its columns, which the kernel behind a residual stream normalises rows by.

use super::KernelCtx;
use super::common::Scope;
use super::reduce::WARP;
use super::stats::{initial, take_larger};
use crate::dtype::Storage;
use crate::ir::{ArrayRef, Builder, Collective, Scalar, Type, Val};
use crate::spec::{FEW_PARTIAL_COLUMNS, PARTIAL_COLUMNS, PartialKind, Partials, ReduceOp};

const _: () = assert!(PARTIAL_COLUMNS == WARP);

/// Whether the kernels of a product with a weight of that storage write statistics of their result on every target:
/// those of many rows do, where k is a multiple of what is read at once.
pub fn writes_partials(few_rows: bool, k: Option<u64>, weight: Storage) -> bool {
    let step = if weight.is_quantised() { 32 } else { 8 };
    !few_rows && k.is_some_and(|k| k > 0 && k.is_multiple_of(step))
}

impl KernelCtx<'_> {
    /// Elements of tile `tile` of `width` columns of a row of `columns`, as a float; at least 1 past the last tile, whose
    /// numbers nobody stores.
    pub(super) fn partial_count(&self, width: u32, columns: Val, tile: Val) -> Val {
        let b = &self.b;
        let left = b.sub(columns, b.mul(tile, width));
        b.let_("count", b.cast(Scalar::F32, b.max(b.min(left, width), 1)))
    }
    /// Writes the numbers of a tile. `row` has the row axes bound, `n` is the axis of columns.
    pub(super) fn store_partials(&self, p: &Partials, row: &Scope, n: usize, tile: Val, numbers: &[Val]) {
        let b = &self.b;
        let at = self.address(&mut row.with(n, tile), p.arg, &p.index);
        match self.buffer(p.arg) {
            Some(array) => {
                for (i, number) in numbers.iter().enumerate() {
                    b.store(array, b.add(at, i as u32), *number);
                }
            }
            None => b.error(format!("store to argument {}", p.arg.0)),
        }
    }
    /// Writes the numbers of the tile that begins at column `start`, whose elements lie in `kept` in workgroup memory: one
    /// invocation joins them. `row` has the row axes bound. Contains barriers.
    pub(super) fn store_tile_of_workgroup(
        &self,
        p: &Partials,
        (me, n): (Val, usize),
        (start, columns): (Val, Val),
        kept: ArrayRef,
        row: &Scope,
    ) {
        let b = &self.b;
        b.barrier();
        b.if_(b.and(b.eq(me, 0), b.lt(start, columns)), |b| {
            let tile = b.let_("tile", b.div(start, FEW_PARTIAL_COLUMNS));
            let last = b.let_("last", b.sub(b.sub(columns, 1), start));
            let own: Vec<(Val, Val, Val)> = (0..FEW_PARTIAL_COLUMNS)
                .map(|i| {
                    let kept = b.let_("kept", b.load(kept, b.min(b.u32(i), last)));
                    (kept, b.add(start, i), b.le(i, last))
                })
                .collect();
            let count = self.partial_count(FEW_PARTIAL_COLUMNS, columns, tile);
            let numbers = self.joined_partials(p.kind, 1, &own, count);
            self.store_partials(p, row, n, tile, &numbers);
        });
        b.barrier();
    }
    /// Writes the numbers of a tile whose elements are spread over a subgroup: `value` at column `at` of `columns`. `place`
    /// gives the scope with the row axes bound, where the row exists. Must be reached by whole subgroups.
    pub(super) fn store_tile_of_subgroup(
        &self,
        p: &Partials,
        (n, lane): (usize, Val),
        (at, columns): (Val, Val),
        value: Val,
        (exists, place): (Val, impl Fn() -> Scope),
    ) {
        let b = &self.b;
        let start = b.sub(at, lane);
        let tile = b.let_("tile", b.div(start, PARTIAL_COLUMNS));
        let count = self.partial_count(PARTIAL_COLUMNS, columns, tile);
        let numbers = self.joined_partials(p.kind, WARP, &[(value, at, b.lt(at, columns))], count);
        let writes = b.and(b.eq(lane, 0), b.and(exists, b.lt(start, columns)));
        b.if_(writes, |_| self.store_partials(p, &place(), n, tile, &numbers));
    }
    /// The numbers of a tile whose elements are spread over `lanes` invocations of a subgroup, each of which has some of
    /// them with their columns and whether they exist. Must be reached by whole workgroups where there are several.
    pub(super) fn joined_partials(
        &self,
        kind: PartialKind,
        lanes: u32,
        own: &[(Val, Val, Val)],
        count: Val,
    ) -> Vec<Val> {
        let b = &self.b;
        let total = |terms: Vec<Val>| {
            let mine = terms.into_iter().reduce(|s, v| b.add(s, v)).unwrap_or_else(|| b.f32(0.0));
            b.let_("total", self.across(lanes, b.let_("mine", mine), |b, x, y| b.add(x, y)))
        };
        let of = |f: &dyn Fn(&Builder, Val) -> Val| {
            own.iter().map(|(v, _, exists)| b.select(*exists, f(b, *v), b.f32(0.0))).collect::<Vec<Val>>()
        };
        match kind {
            PartialKind::Squares => vec![total(of(&|b, v| b.mul(v, v)))],
            PartialKind::Moments => {
                let mean = b.let_("mean", b.div(total(of(&|_, v| v)), count));
                let apart = |b: &Builder, v: Val| {
                    let d = b.sub(v, mean);
                    b.mul(d, d)
                };
                vec![mean, total(of(&apart))]
            }
            PartialKind::Largest => {
                let least = initial(ReduceOp::ArgMax);
                // Where no element is larger, the first place is the smallest of equal ones.
                let first = own.first().map_or(b.f32(0.0), |(_, at, _)| b.cast(Scalar::F32, *at));
                let (value, place) = (b.var("largest", Type::F32, least), b.var("place", Type::F32, first));
                let take = |v: Val, at: Val| take_larger(b, (value, place), (v, at));
                for (v, at, exists) in own {
                    take(b.select(*exists, *v, b.f32(least)), b.cast(Scalar::F32, *at));
                }
                let mut mask = lanes / 2;
                while mask > 0 {
                    let [v, at] = [value, place].map(|x| b.collective("other", Collective::ShuffleXor(mask), b.get(x)));
                    take(v, at);
                    mask /= 2;
                }
                vec![b.get(value), b.get(place)]
            }
        }
    }
}
