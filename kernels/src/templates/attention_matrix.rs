//! Attention of many query rows on matrix units: a workgroup takes 64 queries that share a key head, a subgroup 16 of them,
//! and passes over the keys in tiles of 32 (online softmax, as FlashAttention-2 schedules it, arXiv 2307.08691).
//!
//! Every operand is the sum of three bf16, and six products of them are summed, so that results are those of `f32`
//! products whatever the model's weights are stored as. Queries stay in registers; a tile of keys lies in workgroup memory
//! row by row, a tile of values transposed, so that both are loaded as right sides of products. Scores turn into weights
//! where they are: lane l has those of rows `l / 4` and `l / 4 + 8` at two neighbours of every eight keys, which is just how
//! a left side is spread.

use super::attention::{NONE, Place, Query, Results, Tile};
use super::common::{KernelCtx, Scope, dispatch};
use super::reduce::WARP;
use super::{Rendered, TemplateError, View};
use crate::ir::{ArrayRef, Builder, HalfFormat, Type, Val, Var};
use crate::spec::{Attention, ExprId, KernelSpec, MatmulPrecision};
use crate::target::Capabilities;

/// Subgroups of a workgroup.
const WARPS: u32 = 4;
/// Queries of a workgroup.
const QUERIES: u32 = 16 * WARPS;
/// Keys of a tile.
const KEYS: u32 = 32;
/// Invocations of a multiprocessor that registers are shared among, at least.
const RESIDENT: u32 = 256;
/// Largest head whose queries and sums stay in registers.
const MOST: u64 = 128;
/// Rows from which on tiles pay.
const ROWS: i64 = 9;
/// Each operand as a sum.
const PARTS: MatmulPrecision = MatmulPrecision::Bf16x3;

/// Whether this schedule serves.
pub(super) fn serves(spec: &KernelSpec, caps: &Capabilities, a: &Attention) -> bool {
    let many = spec.domain.get(2).is_some_and(|rows| rows.as_const().is_none_or(|n| n >= ROWS));
    let small = |n: u64| n > 0 && n <= MOST;
    caps.has_matrix
        && caps.subgroup_size == Some(WARP)
        && many
        && a.parts.is_none()
        && small(a.head_dim)
        && small(a.value_dim)
}

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities, a: &Attention) -> Result<Rendered, TemplateError> {
    let (head_dim, value_dim) = (a.head_dim as u32, a.value_dim as u32);
    let ctx = KernelCtx::new(spec, caps, [WARPS * WARP, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    b.share_multiprocessor(RESIDENT);
    let tile = Tile::new(spec, a, QUERIES, QUERIES)?;
    let groups = tile.groups();
    let keys = Side::new(b, "keys", KEYS, head_dim.next_multiple_of(16));
    let values = Side::new(b, "values", value_dim.next_multiple_of(16), KEYS);
    let me = b.let_("me", b.local_x());
    let lane = b.let_("lane", b.bit_and(me, WARP - 1));
    let group = b.let_("group", ctx.group(&groups));
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let place = Place::new(&ctx, &tile, group);
        let first = b.add(b.mul(b.shr(me, WARP.trailing_zeros()), 16), b.shr(lane, 2));
        let row = |offset: u32| {
            let i = b.let_("query", b.add(first, offset));
            let safe = b.let_("query_safe", b.min(i, tile.count() - 1));
            let exists = b.let_("exists", b.and(b.lt(i, tile.count()), place.exists(b, safe)));
            (place.query_state(&ctx, a, safe), exists)
        };
        let rows = [row(0), row(8)];
        let kernel = Kernel { ctx: &ctx, a, rows: [&rows[0].0, &rows[1].0], me, lane, keys, values };
        let left = kernel.queries(head_dim);
        let out: Vec<Var> =
            (0..value_dim.next_multiple_of(16) / 8).map(|_| b.var("out", Type::VEC4_F32, 0.0)).collect();
        // Both ends of what a row sees grow with its place.
        let (start, _) = ctx.visible_keys(a, &place.query(&ctx, b.u32(0)));
        let (_, end) = ctx.visible_keys(a, &place.query(&ctx, b.u32(tile.count() - 1)));
        let shared = place.keys();
        b.for_("t0", start, end, KEYS, |b, t0| {
            let last = b.let_("last", b.sub(end, 1));
            b.barrier();
            kernel.bring(&shared, t0, last);
            b.barrier();
            let scores = kernel.scores(&left);
            let weights = kernel.weights(&scores, &out, t0, last);
            kernel.gather(&weights, &out);
        });
        let results = Results::new(spec, a);
        let column = b.let_("column", b.shl(b.bit_and(lane, 3), 1));
        for (half, (query, exists)) in rows.iter().enumerate() {
            let total = b.let_("total", ctx.across(4, b.get(query.sum), |b, x, y| b.add(x, y)));
            let own = b.let_("own", results.factor(b, total));
            b.if_(*exists, |b| {
                for (n, out) in out.iter().enumerate() {
                    for c in 0..2 {
                        let d = b.let_("d", b.add(column, 8 * n as u32 + c));
                        let value = b.mul(b.lane(b.get(*out), 2 * half as u32 + c), own);
                        if 8 * (n as u32 + 1) <= value_dim {
                            results.element(&ctx, &query.scope, d, value);
                        } else {
                            b.if_(b.lt(d, value_dim), |_| results.element(&ctx, &query.scope, d, value));
                        }
                    }
                }
            });
        }
    });
    let sizes = [("keys", KEYS), ("rows", tile.rows), ("heads", tile.heads)];
    ctx.finish("attention_matrix", &sizes, dispatch(&groups))
}

/// A right side in workgroup memory, in parts: rows of units of eight neighbours along what is summed.
struct Side {
    parts: Vec<ArrayRef>,
    rows: u32,
    units: u32,
    /// Units from row to row, an odd number: eight rows meet all banks.
    pitch: u32,
}

impl Side {
    fn new(b: &Builder, name: &str, rows: u32, depth: u32) -> Side {
        let (units, pitch) = (depth / 8, (depth / 8) | 1);
        let parts = (0..PARTS.parts()).map(|_| b.workgroup(name, Type::VEC4_U32, rows * pitch)).collect();
        Side { parts, rows, units, pitch }
    }
    /// Stores eight neighbours.
    fn keep(&self, b: &Builder, (row, unit): (Val, Val), values: &[Val]) {
        let at = b.let_("slot", b.add(b.mul(row, self.pitch), unit));
        let pairs: Vec<Vec<Val>> = values.chunks_exact(2).map(|p| split(b, [p[0], p[1]])).collect();
        for (i, part) in self.parts.iter().enumerate() {
            let words: Vec<Val> = pairs.iter().filter_map(|p| p.get(i)).copied().collect();
            if let [x, y, z, w] = words.as_slice() {
                b.store(*part, at, b.vec4(*x, *y, *z, *w));
            }
        }
    }
    /// Sixteen rows from `row` on at the two units of step `step`, by part: the right sides of two products.
    fn load(&self, b: &Builder, lane: Val, row: u32, step: u32) -> Vec<[Val; 2]> {
        let at = b.add(b.add(b.bit_and(lane, 7), b.shl(b.shr(lane, 4), 3)), row);
        let unit = b.add(b.bit_and(b.shr(lane, 3), 1), 2 * step);
        let at = b.let_("at", b.add(b.mul(at, self.pitch), unit));
        let two = |part: &ArrayRef| {
            let w = b.load_matrix("w", *part, at);
            [b.vec2(b.lane(w, 0), b.lane(w, 1)), b.vec2(b.lane(w, 2), b.lane(w, 3))]
        };
        self.parts.iter().map(two).collect()
    }
}

/// A pair as a sum of pairs of bf16, largest first.
fn split(b: &Builder, pair: [Val; 2]) -> Vec<Val> {
    let mut rest = pair;
    let mut parts = Vec::with_capacity(PARTS.parts());
    for i in 0..PARTS.parts() {
        let word = b.let_("part", b.pack_2x_bf16(b.vec2(rest[0], rest[1])));
        parts.push(word);
        if i + 1 < PARTS.parts() {
            rest =
                [b.let_("rest", b.sub(rest[0], b.bf16_low(word))), b.let_("rest", b.sub(rest[1], b.bf16_high(word)))];
        }
    }
    parts
}

/// A left side of 16 × 16 by part.
type Left = Vec<Val>;

/// Four pairs as a left side: upper left, lower left, upper right, lower right.
fn left_side(b: &Builder, pairs: [[Val; 2]; 4]) -> Left {
    let [p, q, r, s] = pairs.map(|pair| split(b, pair));
    let words = p.iter().zip(&q).zip(r.iter().zip(&s));
    words.map(|((p, q), (r, s))| b.let_("a", b.vec4(*p, *q, *r, *s))).collect()
}

struct Kernel<'k, 'a> {
    ctx: &'k KernelCtx<'a>,
    a: &'k Attention,
    /// This lane's upper and lower row.
    rows: [&'k Query; 2],
    me: Val,
    lane: Val,
    keys: Side,
    values: Side,
}

impl Kernel<'_, '_> {
    /// This lane's first column of eight.
    fn column(&self) -> Val {
        let b = &self.ctx.b;
        b.shl(b.bit_and(self.lane, 3), 1)
    }

    /// Element `d` of a head of `dim`, zero beyond its end.
    fn element(&self, scope: &Scope, axis: usize, d: Val, dim: u32, e: ExprId) -> Val {
        let b = &self.ctx.b;
        if dim.is_multiple_of(16) {
            return self.ctx.expr(&mut scope.with(axis, d), e);
        }
        let safe = b.let_("d_safe", b.min(d, dim - 1));
        b.select(b.lt(d, dim), self.ctx.expr(&mut scope.with(axis, safe), e), 0.0)
    }

    /// The scaled queries, by steps of 16 elements.
    fn queries(&self, head_dim: u32) -> Vec<Left> {
        let (ctx, a) = (self.ctx, self.a);
        let b = &ctx.b;
        let hoisted = self.rows.map(|row| {
            let mut scope = row.scope.clone();
            ctx.hoist(&mut scope, &[a.q]);
            scope
        });
        let column = b.let_("column", self.column());
        let pair = |row: usize, from: u32| {
            [0, 1].map(|c| {
                let d = b.let_("d", b.add(column, from + c));
                let q = hoisted.get(row).map_or_else(|| b.f32(0.0), |s| self.element(s, 4, d, head_dim, a.q));
                b.let_("q", b.mul(q, a.scale))
            })
        };
        let step = |k: u32| left_side(b, [pair(0, 16 * k), pair(1, 16 * k), pair(0, 16 * k + 8), pair(1, 16 * k + 8)]);
        (0..head_dim.div_ceil(16)).map(step).collect()
    }

    /// Brings the tile of keys and values at `t0`; keys behind `last` are that one.
    fn bring(&self, shared: &Scope, t0: Val, last: Val) {
        let (ctx, a) = (self.ctx, self.a);
        let b = &ctx.b;
        let key = |i: Val| {
            let mut scope = shared.with(5, b.let_("t", b.min(b.add(t0, i), last)));
            ctx.hoist(&mut scope, &[a.k, a.v]);
            scope
        };
        let head_dim = u32::try_from(a.head_dim).unwrap_or(0);
        self.each(self.keys.rows * self.keys.units, |unit| {
            let (row, unit) =
                (b.let_("key", b.div(unit, self.keys.units)), b.let_("unit", b.rem(unit, self.keys.units)));
            let scope = key(row);
            let from = b.let_("from", b.shl(unit, 3));
            let of = |i| b.let_("k", self.element(&scope, 4, b.add(from, i), head_dim, a.k));
            let values: Vec<Val> = (0..8).map(of).collect();
            self.keys.keep(b, (row, unit), &values);
        });
        let value_dim = u32::try_from(a.value_dim).unwrap_or(0);
        self.each(self.values.rows * self.values.units, |unit| {
            let (d, unit) = (b.let_("d", b.rem(unit, self.values.rows)), b.let_("unit", b.div(unit, self.values.rows)));
            let from = b.let_("from", b.shl(unit, 3));
            let of = |i| b.let_("v", self.element(&key(b.add(from, i)), 3, d, value_dim, a.v));
            let values: Vec<Val> = (0..8).map(of).collect();
            self.values.keep(b, (d, unit), &values);
        });
    }

    /// Deals `count` pieces of work out to all invocations.
    fn each(&self, count: u32, work: impl Fn(Val)) {
        let b = &self.ctx.b;
        let width = WARPS * WARP;
        for round in 0..count.div_ceil(width) {
            let at = b.let_("piece", b.add(self.me, round * width));
            if (round + 1) * width <= count {
                work(at);
            } else {
                b.if_(b.lt(at, count), |_| work(at));
            }
        }
    }

    /// `sum += a bᵀ`, smallest terms first.
    fn multiply(&self, sum: Var, left: &Left, right: &[[Val; 2]], which: usize) {
        for (i, j) in PARTS.terms() {
            if let (Some(x), Some(y)) = (left.get(*i), right.get(*j).and_then(|two| two.get(which))) {
                self.ctx.b.multiply_to(sum, HalfFormat::Bf16, *x, *y);
            }
        }
    }

    /// The products of queries and the tile's keys, eight keys each.
    fn scores(&self, left: &[Left]) -> Vec<Var> {
        let b = &self.ctx.b;
        let sums: Vec<Var> = (0..KEYS / 8).map(|_| b.var("scores", Type::VEC4_F32, 0.0)).collect();
        for (step, left) in left.iter().enumerate() {
            for (j, two) in sums.chunks_exact(2).enumerate() {
                let right = self.keys.load(b, self.lane, 16 * j as u32, step as u32);
                two.iter().enumerate().for_each(|(which, sum)| self.multiply(*sum, left, &right, which));
            }
        }
        sums
    }

    /// Takes the tile's scores into the softmax of both rows, and returns their weights as left sides of 16 keys; what was
    /// gathered before fades.
    fn weights(&self, scores: &[Var], out: &[Var], t0: Val, last: Val) -> Vec<Left> {
        let (ctx, a) = (self.ctx, self.a);
        let b = &ctx.b;
        let column = b.let_("column", b.add(t0, self.column()));
        let mut fades = Vec::new();
        let mut weights: Vec<Vec<Val>> = Vec::new();
        for (half, row) in self.rows.iter().enumerate() {
            let mut found = Vec::new();
            for (n, sum) in scores.iter().enumerate() {
                for c in 0..2 {
                    let t = b.let_("t", b.add(column, 8 * n as u32 + c));
                    let key = b.let_("t_safe", b.min(t, last));
                    found.push(row.score(ctx, a, b.lane(b.get(*sum), 2 * half as u32 + c), (t, key)));
                }
            }
            let block = found.iter().map(|(score, _)| *score).reduce(|x, y| b.max(x, y)).unwrap_or_else(|| b.f32(NONE));
            let block = ctx.across(4, block, |b, x, y| b.max(x, y));
            let top = b.let_("top", b.max(row.largest, block));
            let fade = b.let_("fade", b.exp(b.sub(row.largest, top)));
            let own: Vec<Val> = found
                .iter()
                .map(|(score, visible)| b.let_("weight", b.select(*visible, b.exp(b.sub(*score, top)), 0.0)))
                .collect();
            b.set(row.sum, own.iter().fold(b.mul(row.sum, fade), |sum, w| b.add(sum, *w)));
            b.set(row.largest, top);
            fades.push(fade);
            weights.push(own);
        }
        if let [upper, lower] = fades.as_slice() {
            let fade = b.let_("fades", b.vec4(*upper, *upper, *lower, *lower));
            out.iter().for_each(|o| b.set(*o, b.mul(*o, fade)));
        }
        let pair = |half: usize, n: usize| {
            [0, 1].map(|c| weights.get(half).and_then(|w| w.get(2 * n + c)).copied().unwrap_or_else(|| b.f32(0.0)))
        };
        let left = |k: usize| left_side(b, [pair(0, 2 * k), pair(1, 2 * k), pair(0, 2 * k + 1), pair(1, 2 * k + 1)]);
        (0..KEYS as usize / 16).map(left).collect()
    }

    /// Adds the tile's values by their weights.
    fn gather(&self, weights: &[Left], out: &[Var]) {
        let b = &self.ctx.b;
        for (step, left) in weights.iter().enumerate() {
            for (j, two) in out.chunks_exact(2).enumerate() {
                let right = self.values.load(b, self.lane, 16 * j as u32, step as u32);
                two.iter().enumerate().for_each(|(which, sum)| self.multiply(*sum, left, &right, which));
            }
        }
    }
}
