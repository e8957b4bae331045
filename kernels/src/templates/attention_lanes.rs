//! Attention on drivers that run shaders on processor cores. A workgroup is one subgroup of 8. Keys pass in blocks of 8: a
//! lane computes the scores of one key, then gathers an eighth of the elements of the values. Queries and weights reach the
//! other lanes by broadcast. There is no workgroup memory and no barrier.

use super::attention::{Place, Query, Results, Tile, range};
use super::common::{KernelCtx, Scope, dispatch};
use super::{Rendered, TemplateError, View};
use crate::ir::{ArrayRef, Builder, Builtin, Collective, Type, Val, Var};
use crate::spec::{Attention, KernelSpec};
use crate::target::Capabilities;

/// Invocations of a workgroup, and keys of a block.
const LANES: u32 = 8;
/// Most queries of a workgroup.
const MOST_QUERIES: u32 = 8;

pub(super) fn render(
    spec: &KernelSpec,
    caps: &Capabilities,
    a: &Attention,
    [head_dim, value_dim]: [u32; 2],
) -> Result<Rendered, TemplateError> {
    let tile = Tile::new(spec, a, MOST_QUERIES, MOST_QUERIES)?;
    let (count, groups) = (tile.count(), tile.groups());
    let ctx = KernelCtx::new(spec, caps, [LANES, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let lane = b.let_("lane", b.builtin(Builtin::SubgroupLane));
    let group = b.let_("group", ctx.group(&groups));
    let parts = [head_dim.div_ceil(LANES), value_dim.div_ceil(LANES)];
    let query = b.private("query", Type::F32, count * parts[0]);
    let out = b.private("out", Type::F32, count * parts[1]);
    let shares = b.private("shares", Type::F32, count);
    b.if_(b.lt(group, ctx.extent(&groups)), |b| {
        let place = Place::new(&ctx, &tile, group);
        b.for_("i", 0, count, 1, |b, i| {
            let mut scope = place.query(&ctx, i);
            ctx.hoist(&mut scope, &[a.q]);
            let to = b.let_("to", b.mul(i, parts[0]));
            b.for_("part", 0, parts[0], 1, |b, part| {
                let d = b.let_("d", b.min(b.add(b.mul(part, LANES), lane), head_dim - 1));
                let q = ctx.expr(&mut scope.with(4, d), a.q);
                b.store(query, b.add(to, part), b.mul(q, a.scale));
            });
        });
        let mut keys = place.keys();
        ctx.hoist(&mut keys, &[a.k, a.v]);
        let queries = place.queries(&ctx, a);
        let (start, end) = range(b, &queries);
        b.for_("t0", start, end, LANES, |b, t0| {
            let t = b.let_("t", b.add(t0, lane));
            let key = b.let_("key", b.min(t, b.sub(end, 1)));
            let dots = scores(&ctx, a, &keys.with(5, key), query, &queries, head_dim);
            let weigh = |(q, dot): (&Query, Var)| {
                let scored = q.score(&ctx, a, b.get(dot), (t, key));
                let block = ctx.across(LANES, scored.0, |b, x, y| b.max(x, y));
                let (key, fade) = q.take(b, scored, block);
                Weight { key, fade }
            };
            let weights: Vec<Weight> = queries.iter().zip(dots).map(weigh).collect();
            gather(&ctx, a, &keys, out, &weights, (t0, end, lane), value_dim);
        });
        let results = Results::new(spec, a);
        for (i, q) in queries.iter().enumerate() {
            let sum = b.let_("total", ctx.across(LANES, b.get(q.sum), |b, x, y| b.add(x, y)));
            b.store(shares, i as u32, results.factor(b, sum));
            let once = b.and(b.eq(lane, 0), place.exists(b, b.u32(i as u32)));
            results.softmax(&ctx, &q.scope, once, (b.get(q.largest), sum));
        }
        b.for_("i", 0, count, 1, |b, i| {
            b.if_(place.exists(b, i), |b| {
                let scope = place.query(&ctx, i);
                let share = b.let_("own_share", b.load(shares, i));
                b.for_("part", 0, parts[1], 1, |b, part| {
                    let d = b.let_("d", b.add(b.mul(part, LANES), lane));
                    let body = |b: &Builder| {
                        let found = b.load(out, b.add(b.mul(i, parts[1]), part));
                        results.element(&ctx, &scope, d, b.mul(found, share));
                    };
                    if value_dim % LANES == 0 { body(b) } else { b.if_(b.lt(d, value_dim), body) }
                });
            });
        });
    });
    let sizes = [("keys", LANES), ("rows", tile.rows), ("heads", tile.heads)];
    ctx.finish("attention_lanes", &sizes, dispatch(&groups))
}

/// What a lane's key counts for a query, and what is left of what was gathered before.
struct Weight {
    key: Val,
    fade: Val,
}

/// The products of every query with the key of this lane.
fn scores(
    ctx: &KernelCtx<'_>,
    a: &Attention,
    key: &Scope,
    query: ArrayRef,
    queries: &[Query],
    head_dim: u32,
) -> Vec<Var> {
    let b = &ctx.b;
    let parts = head_dim.div_ceil(LANES);
    let dots: Vec<Var> = queries.iter().map(|_| b.var("dot", Type::F32, 0.0)).collect();
    let mut key = key.clone();
    ctx.hoist(&mut key, &[a.k]);
    let block = |part: Val, elements: u32| {
        let own: Vec<Val> =
            (0..queries.len() as u32).map(|i| b.let_("own", b.load(query, b.add(part, i * parts)))).collect();
        for l in 0..elements {
            let d = b.add(b.mul(part, LANES), l);
            let k = b.let_("k", ctx.expr(&mut key.with(4, d), a.k));
            for (dot, own) in dots.iter().zip(&own) {
                b.fma_to(*dot, b.collective("q", Collective::Broadcast(l), *own), k);
            }
        }
    };
    b.for_("part", 0, head_dim / LANES, 1, |_, part| block(part, LANES));
    if head_dim % LANES != 0 {
        block(b.u32(head_dim / LANES), head_dim % LANES);
    }
    dots
}

/// Adds the values of a block of keys from `t0` on to what was gathered: each lane its elements of every query.
fn gather(
    ctx: &KernelCtx<'_>,
    a: &Attention,
    keys: &Scope,
    out: ArrayRef,
    weights: &[Weight],
    (t0, end, lane): (Val, Val, Val),
    value_dim: u32,
) {
    let b = &ctx.b;
    let parts = value_dim.div_ceil(LANES);
    let shares: Vec<Vec<Val>> = weights
        .iter()
        .map(|w| (0..LANES).map(|l| b.collective("p", Collective::Broadcast(l), w.key)).collect())
        .collect();
    let places: Vec<Val> = (0..LANES).map(|l| b.let_("key", b.min(b.add(t0, l), b.sub(end, 1)))).collect();
    b.for_("part", 0, parts, 1, |b, part| {
        let d = b.add(b.mul(part, LANES), lane);
        let d = b.let_("d", if value_dim % LANES == 0 { d } else { b.min(d, value_dim - 1) });
        let mut column = keys.with(3, d);
        ctx.hoist(&mut column, &[a.v]);
        let values: Vec<Val> = places.iter().map(|t| b.let_("v", ctx.expr(&mut column.with(5, *t), a.v))).collect();
        for (i, (w, shares)) in weights.iter().zip(&shares).enumerate() {
            let to = b.let_("to", b.add(part, i as u32 * parts));
            let faded = b.let_("faded", b.mul(b.load(out, to), w.fade));
            let mut sum = faded;
            for (v, p) in values.iter().zip(shares) {
                sum = b.let_("sum", b.fma(*p, *v, sum));
            }
            b.store(out, to, sum);
        }
    });
}
