//! Attention: a workgroup serves several query rows of query heads that share a key head, so that a key or a value is loaded
//! once for all of them. Keys pass in blocks; a running maximum and sum rescale what was gathered (online softmax), so that
//! scores never leave the workgroup. What the schedules of the tiers share is here.

use super::common::{KernelCtx, Scope};
use super::reduce::WARP;
use super::{Rendered, TemplateError, attention_lanes, attention_matrix, attention_tile, attention_warp};
use crate::dim::{Dim, product};
use crate::ir::{Builder, Type, Val, Var};
use crate::spec::{Anchor, Attention, ExprId, KernelSpec, Store};
use crate::target::{Capabilities, Tier};

/// Stands for a score that no key has.
pub(super) const NONE: f32 = -1.0e30;

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let Anchor::Attention(a) = &spec.anchor else {
        return Err(TemplateError::unsupported(spec, "no attention"));
    };
    if attention_matrix::serves(spec, caps, a) {
        return attention_matrix::render(spec, caps, a);
    }
    if caps.subgroup_size == Some(WARP) && a.head_dim.max(a.value_dim) <= attention_warp::MOST {
        return attention_warp::render(spec, caps, a);
    }
    let small = |n: u64| u32::try_from(n).ok().filter(|n| *n <= 1024);
    let (Some(head_dim), Some(value_dim)) = (small(a.head_dim), small(a.value_dim)) else {
        return Err(TemplateError::unsupported(spec, "heads of more than 1024 elements"));
    };
    match caps.tier {
        Tier::Cpu => attention_lanes::render(spec, caps, a, [head_dim, value_dim]),
        Tier::Gpu | Tier::Cuda => attention_tile::render(spec, caps, a, [head_dim, value_dim]),
    }
}

/// The queries of a workgroup: query i is that of head `i mod heads` and row `i / heads`.
pub(super) struct Tile {
    /// Query heads, all of one key head.
    pub heads: u32,
    /// Query rows.
    pub rows: u32,
    /// Workgroups along batch, heads and rows.
    extents: [Dim; 3],
    positions: Dim,
}

impl Tile {
    /// At most `most` queries a workgroup, and `single` where there is one row.
    pub fn new(spec: &KernelSpec, a: &Attention, most: u32, single: u32) -> Result<Tile, TemplateError> {
        let [batch, heads, positions, _] = &spec.domain[..] else {
            return Err(TemplateError::unsupported(spec, "attention without four axes"));
        };
        let one_row = positions.is(1);
        let together = heads_together(heads, a.group, if one_row { single } else { most });
        let rows = if one_row { 1 } else { (most / together).max(1) };
        let per = |d: &Dim, n: u32| d.ceil_div(&Dim::constant(i64::from(n)));
        let extents = [batch.clone(), per(heads, together), per(positions, rows)];
        Ok(Tile { heads: together, rows, extents, positions: positions.clone() })
    }
    /// Queries of a workgroup.
    pub fn count(&self) -> u32 {
        self.heads * self.rows
    }
    /// Workgroups.
    pub fn groups(&self) -> Dim {
        product(&self.extents)
    }
}

/// Query heads that share a workgroup: of those that share a key head, as many as divide them and are no more than `most`.
fn heads_together(heads: &Dim, group: u64, most: u32) -> u32 {
    let is_grouped = heads.as_const().and_then(|h| u64::try_from(h).ok()).is_some_and(|h| h % group.max(1) == 0);
    if !is_grouped {
        return 1;
    }
    (1..=most).rev().find(|n| group % u64::from(*n) == 0).unwrap_or(1)
}

/// Where the queries of this workgroup lie.
pub(super) struct Place<'t> {
    tile: &'t Tile,
    batch: Val,
    head: Val,
    row: Val,
    last: Val,
}

impl<'t> Place<'t> {
    /// The place of workgroup `group`.
    pub fn new(ctx: &KernelCtx<'_>, tile: &'t Tile, group: Val) -> Place<'t> {
        let b = &ctx.b;
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, &tile.extents, group);
        let at = |k: usize| scope.axis(k).unwrap_or_else(|| b.u32(0));
        Place {
            tile,
            batch: at(0),
            head: b.let_("head", b.mul(at(1), tile.heads)),
            row: b.let_("first_row", b.mul(at(2), tile.rows)),
            last: b.let_("last_row", b.sub(ctx.extent(&tile.positions), 1)),
        }
    }
    fn row_of(&self, b: &Builder, i: Val) -> Val {
        b.add(self.row, if self.tile.heads == 1 { i } else { b.div(i, self.tile.heads) })
    }
    /// The scope of query `i`; rows beyond the end repeat the last.
    pub fn query(&self, ctx: &KernelCtx<'_>, i: Val) -> Scope {
        let b = &ctx.b;
        let head = if self.tile.heads == 1 { self.head } else { b.add(self.head, b.rem(i, self.tile.heads)) };
        let mut scope = Scope::new();
        scope.bind(0, self.batch);
        scope.bind(1, b.let_("h", head));
        scope.bind(2, b.let_("s", b.min(self.row_of(b, i), self.last)));
        scope
    }
    /// Whether query `i` exists.
    pub fn exists(&self, b: &Builder, i: Val) -> Val {
        b.le(self.row_of(b, i), self.last)
    }
    /// The scope of the keys and values that all queries share.
    pub fn keys(&self) -> Scope {
        let mut scope = Scope::new();
        scope.bind(0, self.batch);
        scope.bind(1, self.head);
        scope
    }
    /// The softmax of every query before the first key.
    pub fn queries(&self, ctx: &KernelCtx<'_>, a: &Attention) -> Vec<Query> {
        let b = &ctx.b;
        (0..self.tile.count()).map(|i| self.query_state(ctx, a, b.u32(i))).collect()
    }
    /// The softmax of query `i` before the first key.
    pub fn query_state(&self, ctx: &KernelCtx<'_>, a: &Attention, i: Val) -> Query {
        let b = &ctx.b;
        let mut scope = self.query(ctx, i);
        let (start, end) = ctx.visible_keys(a, &scope);
        let added: Vec<ExprId> = a.mask.into_iter().chain(a.bias).collect();
        ctx.hoist(&mut scope, &added);
        let largest = b.var("largest", Type::F32, NONE);
        Query { scope, start, end, largest, sum: b.var("sum", Type::F32, 0.0) }
    }
}

/// A query row of one head, and its softmax so far.
pub(super) struct Query {
    pub scope: Scope,
    /// First visible key.
    pub start: Val,
    /// One past the last visible key.
    pub end: Val,
    /// Largest score.
    pub largest: Var,
    /// Sum of the weights of this invocation's keys.
    pub sum: Var,
}

impl Query {
    /// The score of the key at place `t` and whether the query sees it; `key` is `t`, or a key that exists.
    pub fn score(&self, ctx: &KernelCtx<'_>, a: &Attention, dot: Val, (t, key): (Val, Val)) -> (Val, Val) {
        let b = &ctx.b;
        let mut at = self.scope.with(5, key);
        let mut x = dot;
        if let Some(c) = a.softcap {
            x = b.soft_cap(x, c);
        }
        if let Some(e) = a.bias {
            x = b.add(x, ctx.expr(&mut at, e));
        }
        let mut visible = b.and(b.ge(t, self.start), b.lt(t, self.end));
        if let Some(m) = a.mask {
            visible = b.and(visible, ctx.expr(&mut at, m));
        }
        let visible = b.let_("visible", visible);
        (b.let_("score", b.select(visible, x, NONE)), visible)
    }
    /// Takes a key into the softmax, whose block has the largest score `block`: its weight, and the factor on what was
    /// gathered before.
    pub fn take(&self, b: &Builder, (score, visible): (Val, Val), block: Val) -> (Val, Val) {
        let top = b.let_("top", b.max(self.largest, block));
        let weight = b.let_("weight", b.select(visible, b.exp(b.sub(score, top)), 0.0));
        let fade = b.let_("fade", b.exp(b.sub(self.largest, top)));
        b.set(self.sum, b.fma(self.sum, fade, weight));
        b.set(self.largest, top);
        (weight, fade)
    }
}

/// The keys that any of the queries sees: first, and one past the last.
pub(super) fn range(b: &Builder, queries: &[Query]) -> (Val, Val) {
    let join = |pick: fn(&Query) -> Val, join: fn(&Builder, Val, Val) -> Val| {
        queries.iter().map(pick).reduce(|x, y| join(b, x, y)).unwrap_or_else(|| b.u32(0))
    };
    let start = join(|q| q.start, |b, x, y| b.min(x, y));
    let end = join(|q| q.end, |b, x, y| b.max(x, y));
    (b.let_("first_key", start), b.let_("end_key", end))
}

/// The reciprocal of the sum of weights; 0 for a query that sees no key.
fn share(b: &Builder, sum: Val) -> Val {
    b.let_("share", b.select(b.gt(sum, 0.0), b.rcp(b.max(sum, 1.0e-30)), 0.0))
}

impl KernelCtx<'_> {
    /// The range of keys that causal masking and the window leave to the query row of `scope`.
    pub(super) fn visible_keys(&self, a: &Attention, scope: &Scope) -> (Val, Val) {
        let b = &self.b;
        let s = scope.axis(2).unwrap_or_else(|| b.u32(0));
        let end = match &a.causal_offset {
            Some(o) => b.min(self.extent(&a.kv_len), b.add(b.add(s, self.extent(o)), 1)),
            None => self.extent(&a.kv_len),
        };
        let start = match a.window {
            Some(w) => {
                let w = u32::try_from(w).unwrap_or(u32::MAX);
                let here = b.add(b.add(s, self.extent(a.causal_offset.as_ref().unwrap_or(&Dim::zero()))), 1);
                b.select(b.gt(here, w), b.sub(here, w), 0)
            }
            None => b.u32(0),
        };
        let (start, end) = match &a.parts {
            Some(p) => {
                let count = u32::try_from(p.count).unwrap_or(u32::MAX);
                let part = b.rem(scope.axis(0).unwrap_or_else(|| b.u32(0)), count);
                let len = b.let_("part_len", self.extent(&p.len));
                let first = b.let_("part_first", b.add(self.extent(&p.first), b.mul(part, len)));
                (b.max(start, first), b.min(end, b.add(first, len)))
            }
            None => (start, end),
        };
        (b.let_("start", start), b.let_("end", end))
    }
}

/// What a kernel stores of a query: its elements, and with keys in parts its softmax, once.
pub(super) struct Results<'s> {
    elements: Vec<&'s Store>,
    softmax: Vec<&'s Store>,
    in_parts: bool,
}

impl<'s> Results<'s> {
    pub fn new(spec: &'s KernelSpec, a: &Attention) -> Results<'s> {
        let (softmax, elements) = spec.stores.iter().partition(|s| s.per_row);
        Results { elements, softmax, in_parts: a.parts.is_some() }
    }
    /// The factor on what was gathered with weights that add up to `sum`.
    pub fn factor(&self, b: &Builder, sum: Val) -> Val {
        if self.in_parts { b.f32(1.0) } else { share(b, sum) }
    }
    /// Stores element `d` of the query of `scope`.
    pub fn element(&self, ctx: &KernelCtx<'_>, scope: &Scope, d: Val, value: Val) {
        ctx.store_all(&scope.with(3, d).with_accs(vec![value]), &self.elements);
    }
    /// Stores the softmax of the query of `scope`, where `once` holds: for one invocation.
    pub fn softmax(&self, ctx: &KernelCtx<'_>, scope: &Scope, once: Val, (largest, sum): (Val, Val)) {
        if self.softmax.is_empty() {
            return;
        }
        let mut scope = scope.clone();
        scope.push_stat(largest);
        scope.push_stat(sum);
        ctx.b.if_(once, |_| ctx.store_all(&scope, &self.softmax));
    }
}
