//! Attention by subgroups that exchange values: a workgroup a query row, whose keys are split among teams of eight lanes.
//!
//! A team takes a few keys at a time, each lane every eighth run of four elements, so that a row of keys is read at once.
//! Every team keeps a running maximum, sum and weighted sum of values (online softmax) of its own keys; these are merged
//! once, by shuffles within a subgroup and then in workgroup memory. The order depends on the visible keys alone.

use super::attention::{NONE, Results};
use super::reduce::WARP;
use super::{KernelCtx, Rendered, Scope, TemplateError, View, dispatch};
use crate::dim::product;
use crate::ir::{Collective, Type, Val, Var};
use crate::spec::{Attention, ExprId, KernelSpec};
use crate::target::Capabilities;

/// Lanes of a team.
const LANES: u32 = 8;
/// Elements a team reads at once, four a lane.
const SPAN: u32 = 4 * LANES;
/// Subgroups of a workgroup.
const WARPS: u32 = 8;
/// Teams of a workgroup.
const TEAMS: u32 = WARPS * WARP / LANES;
/// Largest head.
pub(super) const MOST: u64 = 256;

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities, a: &Attention) -> Result<Rendered, TemplateError> {
    let small = |n: u64| u32::try_from(n).ok().filter(|n| u64::from(*n) <= MOST && *n > 0);
    let (Some(head_dim), Some(value_dim)) = (small(a.head_dim), small(a.value_dim)) else {
        return Err(TemplateError::unsupported(spec, "heads of more than 256 elements"));
    };
    // Keys of a team at once: as many as leave room in registers.
    let keys = (256 / head_dim.max(value_dim)).next_power_of_two().clamp(1, 4);
    let width = WARPS * WARP;
    let rows = product(&spec.domain[..3]);
    let ctx = KernelCtx::new(spec, caps, [width, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let me = b.let_("me", b.local_x());
    let lane = b.let_("lane", b.bit_and(me, LANES - 1));
    let team = b.let_("team", b.shr(me, LANES.trailing_zeros()));
    let tops = b.workgroup("tops", Type::F32, WARPS);
    let sums = b.workgroup("sums", Type::F32, WARPS);
    let parts = b.workgroup("parts", Type::F32, WARPS * value_dim);
    let row = b.let_("row", ctx.group(&rows));
    b.if_(b.lt(row, ctx.extent(&rows)), |b| {
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, &spec.domain[..3], row);
        let team = Team { ctx: &ctx, a, lane, team, keys };
        let roots: Vec<ExprId> = [a.q, a.k, a.v].into_iter().chain(a.mask).chain(a.bias).collect();
        ctx.hoist(&mut scope, &roots);
        let query = team.spans(head_dim, |inside, d| {
            let safe = if inside { d } else { b.min(d, head_dim - 1) };
            let q = b.mul(ctx.expr(&mut scope.with(4, safe), a.q), a.scale);
            if inside { q } else { b.select(b.lt(d, head_dim), q, 0.0) }
        });
        let query: Vec<Val> = query.iter().map(|q| b.let_("q", *q)).collect();
        let (start, end) = ctx.visible_keys(a, &scope);
        let state = State {
            largest: b.var("largest", Type::F32, NONE),
            sum: b.var("sum", Type::F32, 0.0),
            out: (0..value_dim.div_ceil(SPAN)).map(|_| b.var("out", Type::VEC4_F32, 0.0)).collect(),
        };
        b.for_("t0", start, end, TEAMS * keys, |_, t0| team.take(&scope, &query, &state, t0, end, value_dim));
        team.merge(&state);
        let warp = b.let_("warp", b.shr(me, WARP.trailing_zeros()));
        b.if_(b.lt(b.bit_and(me, WARP - 1), LANES), |b| {
            b.if_(b.eq(lane, 0), |b| {
                b.store(tops, warp, state.largest);
                b.store(sums, warp, state.sum);
            });
            let first = b.let_("first", b.mul(warp, value_dim));
            for (c, out) in state.out.iter().enumerate() {
                for i in 0..4 {
                    let d = team.element(c as u32, i);
                    let inside = if (c as u32 + 1) * SPAN <= value_dim { b.bool(true) } else { b.lt(d, value_dim) };
                    b.if_(inside, |b| b.store(parts, b.add(first, d), b.lane(b.get(*out), i)));
                }
            }
        });
        b.barrier();
        let top = (1..WARPS).fold(b.load(tops, 0), |top, w| b.max(top, b.load(tops, w)));
        let top = b.let_("top", top);
        let shares: Vec<Val> = (0..WARPS).map(|w| b.let_("share", b.exp(b.sub(b.load(tops, w), top)))).collect();
        let mut total = b.f32(0.0);
        for (w, share) in shares.iter().enumerate() {
            total = b.fma(b.load(sums, w as u32), *share, total);
        }
        let total = b.let_("total", total);
        let results = Results::new(spec, a);
        let scale = b.let_("scale", results.factor(b, total));
        results.softmax(&ctx, &scope, b.eq(me, 0), (top, total));
        b.for_("d", me, value_dim, width, |b, d| {
            let mut sum = b.f32(0.0);
            for (w, share) in shares.iter().enumerate() {
                sum = b.fma(b.load(parts, b.add(d, w as u32 * value_dim)), *share, sum);
            }
            results.element(&ctx, &scope, d, b.mul(sum, scale));
        });
    });
    ctx.finish("attention_warp", &[("teams", TEAMS), ("keys", keys)], dispatch(&rows))
}

/// What a team has gathered of its keys.
struct State {
    largest: Var,
    sum: Var,
    out: Vec<Var>,
}

struct Team<'k, 'a> {
    ctx: &'k KernelCtx<'a>,
    a: &'k Attention,
    lane: Val,
    team: Val,
    keys: u32,
}

impl Team<'_, '_> {
    /// Element i of this lane's run in span c.
    fn element(&self, c: u32, i: u32) -> Val {
        let b = &self.ctx.b;
        b.add(b.shl(self.lane, 2), c * SPAN + i)
    }

    /// Four values a span for heads of `dim` elements; `value` gets whether an element surely exists, and its number.
    fn spans(&self, dim: u32, value: impl Fn(bool, Val) -> Val) -> Vec<Val> {
        let b = &self.ctx.b;
        (0..dim.div_ceil(SPAN))
            .map(|c| {
                let one = |i| value((c + 1) * SPAN <= dim, self.element(c, i));
                b.vec4(one(0), one(1), one(2), one(3))
            })
            .collect()
    }

    /// Takes in the team's keys of the block at `t0`.
    fn take(&self, scope: &Scope, query: &[Val], state: &State, t0: Val, end: Val, value_dim: u32) {
        let (ctx, a) = (self.ctx, self.a);
        let b = &ctx.b;
        let head_dim = u32::try_from(a.head_dim).unwrap_or(0);
        let first = b.let_("t", b.add(t0, self.team));
        let last = b.let_("last", b.sub(end, 1));
        let of_key = |i: u32| {
            let t = b.add(first, i * TEAMS);
            let mut key = scope.with(5, b.let_("t_safe", b.min(t, last)));
            ctx.hoist(&mut key, &[a.k, a.v]);
            (t, key)
        };
        let keys: Vec<(Val, Scope)> = (0..self.keys).map(of_key).collect();
        let read = |key: &Scope, axis: usize, dim: u32, e: ExprId| {
            self.spans(dim, |inside, d| {
                let d = if inside { d } else { b.min(d, dim - 1) };
                ctx.expr(&mut key.with(axis, d), e)
            })
        };
        let dots: Vec<Val> = keys
            .iter()
            .map(|(_, key)| {
                let spans = read(key, 4, head_dim, a.k);
                let dot = spans.iter().zip(query).fold(b.f32(0.0), |sum, (k, q)| b.add(sum, b.dot(*k, *q)));
                b.let_("part", dot)
            })
            .collect();
        let values: Vec<Vec<Val>> = keys
            .iter()
            .map(|(_, key)| read(key, 3, value_dim, a.v).iter().map(|v| b.let_("v", *v)).collect())
            .collect();
        let scores: Vec<(Val, Val)> = keys
            .iter()
            .zip(dots)
            .map(|((t, key), dot)| {
                let mut x = ctx.across(LANES, dot, |b, x, y| b.add(x, y));
                if let Some(c) = a.softcap {
                    x = b.soft_cap(x, c);
                }
                let mut key = key.clone();
                if let Some(e) = a.bias {
                    x = b.add(x, ctx.expr(&mut key, e));
                }
                let inside = b.lt(*t, end);
                let visible = match a.mask {
                    Some(m) => b.and(inside, ctx.expr(&mut key, m)),
                    None => inside,
                };
                let visible = b.let_("visible", visible);
                (b.let_("score", b.select(visible, x, NONE)), visible)
            })
            .collect();
        let top = scores.iter().fold(b.get(state.largest), |top, (score, _)| b.max(top, *score));
        let top = b.let_("top", top);
        let fade = b.let_("fade", b.exp(b.sub(state.largest, top)));
        let weight = |(score, visible): &(Val, Val)| b.let_("p", b.select(*visible, b.exp(b.sub(*score, top)), 0.0));
        let weights: Vec<Val> = scores.iter().map(weight).collect();
        let sum = weights.iter().fold(b.mul(state.sum, fade), |sum, p| b.add(sum, *p));
        b.set(state.sum, sum);
        b.set(state.largest, top);
        for (c, out) in state.out.iter().enumerate() {
            let faded = b.mul(b.get(*out), b.splat(4, fade));
            let sum = values.iter().zip(&weights).fold(faded, |sum, (v, p)| match v.get(c) {
                Some(v) => b.fma(*v, b.splat(4, *p), sum),
                None => sum,
            });
            b.set(*out, sum);
        }
    }

    /// Joins the teams of each subgroup.
    fn merge(&self, state: &State) {
        let b = &self.ctx.b;
        let mut mask = LANES;
        while mask < WARP {
            let from = |v: Val| b.collective("other", Collective::ShuffleXor(mask), v);
            let other = from(b.get(state.largest));
            let top = b.let_("top", b.max(state.largest, other));
            let own = b.let_("own", b.exp(b.sub(state.largest, top)));
            let theirs = b.let_("theirs", b.exp(b.sub(other, top)));
            let sum = from(b.get(state.sum));
            b.set(state.sum, b.add(b.mul(state.sum, own), b.mul(sum, theirs)));
            for out in &state.out {
                let other = from(b.get(*out));
                let kept = b.mul(b.get(*out), b.splat(4, own));
                b.set(*out, b.add(kept, b.mul(other, b.splat(4, theirs))));
            }
            b.set(state.largest, top);
            mask *= 2;
        }
    }
}
