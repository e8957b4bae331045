//! Attention on graphics cards. A workgroup of 64 takes keys in blocks of 64: an invocation computes the scores of one key
//! with every query, then gathers elements of the values for every query. Queries and weights are shared through workgroup
//! memory.

use super::attention::{NONE, Place, Query, Results, Tile, range};
use super::common::{KernelCtx, dispatch};
use super::{Rendered, TemplateError, View};
use crate::ir::{ArrayRef, Type, Val, Var};
use crate::spec::{Attention, KernelSpec};
use crate::target::Capabilities;

/// Invocations of a workgroup, and keys of a block.
const WIDTH: u32 = 64;
/// Most queries of a workgroup.
const MOST_QUERIES: u32 = 8;
/// Most elements of all queries of a workgroup.
const MOST_ELEMENTS: u32 = 2048;
/// Most elements of the result that an invocation gathers.
const MOST_GATHERED: u32 = 16;

pub(super) fn render(
    spec: &KernelSpec,
    caps: &Capabilities,
    a: &Attention,
    [head_dim, value_dim]: [u32; 2],
) -> Result<Rendered, TemplateError> {
    let parts = value_dim.div_ceil(WIDTH).max(1);
    let most = MOST_QUERIES.min(MOST_ELEMENTS / head_dim.max(1)).min(MOST_GATHERED / parts).max(1);
    // A single row leaves few workgroups: more of them count for more than keys that are read once, unless parts make them.
    let most = 1 << most.ilog2();
    let tile = Tile::new(spec, a, most, if a.parts.is_some() { most } else { 1 })?;
    let (count, groups) = (tile.count(), tile.groups());
    let ctx = KernelCtx::new(spec, caps, [WIDTH, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let lane = b.let_("lane", b.local_x());
    let query = b.workgroup("query", Type::F32, count * head_dim);
    let group = b.let_("group", ctx.group(&groups));
    let shared = Shared {
        weights: b.workgroup("weights", Type::F32, count * WIDTH),
        partial: b.workgroup("partial", Type::F32, WIDTH),
        team: WIDTH / count.next_power_of_two(),
        lane,
    };
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let place = Place::new(&ctx, &tile, group);
        for i in 0..count {
            let mut scope = place.query(&ctx, b.u32(i));
            ctx.hoist(&mut scope, &[a.q]);
            b.for_("d", lane, head_dim, WIDTH, |b, d| {
                let q = ctx.expr(&mut scope.with(4, d), a.q);
                b.store(query, b.add(d, i * head_dim), b.mul(q, a.scale));
            });
        }
        b.barrier();
        let mut keys = place.keys();
        ctx.hoist(&mut keys, &[a.k, a.v]);
        let queries = place.queries(&ctx, a);
        let gathered = |_| (0..parts).map(|_| b.var("out", Type::F32, 0.0)).collect();
        let out: Vec<Vec<Var>> = (0..count).map(gathered).collect();
        let columns: Vec<Val> = (0..parts).map(|i| b.let_("d", b.add(lane, i * WIDTH))).collect();
        let (start, end) = range(b, &queries);
        b.for_("t0", start, end, WIDTH, |b, t0| {
            let t = b.let_("t", b.add(t0, lane));
            let key = b.let_("key", b.min(t, b.sub(end, 1)));
            let mut at = keys.with(5, key);
            ctx.hoist(&mut at, &[a.k]);
            let dots: Vec<Var> = queries.iter().map(|_| b.var("dot", Type::F32, 0.0)).collect();
            b.for_("d", 0, head_dim, 1, |b, d| {
                let k = b.let_("k", ctx.expr(&mut at.with(4, d), a.k));
                for (i, dot) in dots.iter().enumerate() {
                    b.fma_to(*dot, b.load(query, b.add(d, i as u32 * head_dim)), k);
                }
            });
            let scored: Vec<(Val, Val)> =
                queries.iter().zip(&dots).map(|(q, dot)| q.score(&ctx, a, b.get(*dot), (t, key))).collect();
            let tops = shared.tops(&ctx, &scored.iter().map(|s| s.0).collect::<Vec<_>>());
            let mut fades = Vec::new();
            for (i, ((q, scored), top)) in queries.iter().zip(scored).zip(tops).enumerate() {
                let (weight, fade) = q.take(b, scored, top);
                b.store(shared.weights, b.add(lane, i as u32 * WIDTH), weight);
                fades.push(fade);
            }
            b.barrier();
            let seen = b.let_("seen", b.min(b.u32(WIDTH), b.sub(end, t0)));
            for (part, d) in columns.iter().enumerate() {
                let mut column = keys.with(3, b.let_("column", b.min(*d, value_dim - 1)));
                ctx.hoist(&mut column, &[a.v]);
                let own: Vec<Var> = out.iter().filter_map(|o| o.get(part).copied()).collect();
                own.iter().zip(&fades).for_each(|(o, fade)| b.set(*o, b.mul(*o, *fade)));
                b.for_("j", 0, seen, 1, |b, j| {
                    let v = b.let_("v", ctx.expr(&mut column.with(5, b.add(t0, j)), a.v));
                    for (i, o) in own.iter().enumerate() {
                        b.fma_to(*o, b.load(shared.weights, b.add(j, i as u32 * WIDTH)), v);
                    }
                });
            }
            b.barrier();
        });
        let totals = shared.totals(&ctx, &queries);
        let results = Results::new(spec, a);
        for (i, total) in totals.iter().enumerate() {
            let largest = queries.get(i).map_or_else(|| b.f32(NONE), |q| b.get(q.largest));
            let i = b.u32(i as u32);
            let own = results.factor(b, *total);
            b.if_(place.exists(b, i), |b| {
                let scope = place.query(&ctx, i);
                results.softmax(&ctx, &scope, b.eq(lane, 0), (largest, *total));
                for (d, o) in columns.iter().zip(out.get(b.const_u32(i).unwrap_or(0) as usize).into_iter().flatten()) {
                    b.if_(b.lt(*d, value_dim), |b| results.element(&ctx, &scope, *d, b.mul(*o, own)));
                }
            });
        }
    });
    let sizes = [("keys", WIDTH), ("rows", tile.rows), ("heads", tile.heads)];
    ctx.finish("attention_tile", &sizes, dispatch(&groups))
}

/// Workgroup memory through which values of all queries meet.
struct Shared {
    /// A place for every query and invocation.
    weights: ArrayRef,
    /// A place for every invocation.
    partial: ArrayRef,
    /// Invocations that join the values of one query.
    team: u32,
    lane: Val,
}

impl Shared {
    /// The largest of every query's values over all invocations, the same in each. Contains barriers.
    fn tops(&self, ctx: &KernelCtx<'_>, mine: &[Val]) -> Vec<Val> {
        self.join(ctx, mine, NONE, |ctx, x, y| ctx.b.max(x, y))
    }
    /// The sum of every query's weights over all invocations, the same in each. Contains barriers.
    fn totals(&self, ctx: &KernelCtx<'_>, queries: &[Query]) -> Vec<Val> {
        let sums: Vec<Val> = queries.iter().map(|q| ctx.b.get(q.sum)).collect();
        self.join(ctx, &sums, 0.0, |ctx, x, y| ctx.b.add(x, y))
    }
    fn join(
        &self,
        ctx: &KernelCtx<'_>,
        mine: &[Val],
        first: f32,
        join: impl Fn(&KernelCtx<'_>, Val, Val) -> Val,
    ) -> Vec<Val> {
        let b = &ctx.b;
        for (i, v) in mine.iter().enumerate() {
            b.store(self.weights, b.add(self.lane, i as u32 * WIDTH), *v);
        }
        b.barrier();
        // A team takes the values of its query in strides.
        let (query, member) = (b.div(self.lane, self.team), b.rem(self.lane, self.team));
        let from = b.let_("from", b.add(b.mul(b.min(query, mine.len() as u32 - 1), WIDTH), member));
        let so_far = b.var("so_far", Type::F32, first);
        b.for_("step", 0, WIDTH, self.team, |b, step| {
            b.set(so_far, join(ctx, b.get(so_far), b.load(self.weights, b.add(from, step))));
        });
        b.store(self.partial, self.lane, so_far);
        b.barrier();
        (0..mine.len() as u32)
            .map(|i| {
                let all = b.var("all", Type::F32, b.load(self.partial, i * self.team));
                b.for_("member", 1, self.team, 1, |b, m| {
                    b.set(all, join(ctx, b.get(all), b.load(self.partial, b.add(m, i * self.team))));
                });
                b.let_("joined", b.get(all))
            })
            .collect()
    }
}
