//! Attention: a workgroup a query row. Keys pass in blocks of one a lane; a running maximum and sum rescale what was
//! gathered (online softmax), so that keys are read once and scores never leave the workgroup.

use super::reduce::{Reducer, WARP};
use super::{KernelCtx, Rendered, Scope, TemplateError, View, attention_warp, dispatch};
use crate::dim::{Dim, product};
use crate::ir::{Type, Val};
use crate::spec::{Anchor, Attention, KernelSpec, ReduceOp, Store};
use crate::target::{Capabilities, Tier};

/// Stands for a score that no key has.
pub(super) const NONE: f32 = -1.0e30;

pub(super) fn render(spec: &KernelSpec, caps: &Capabilities) -> Result<Rendered, TemplateError> {
    let Anchor::Attention(a) = &spec.anchor else {
        return Err(TemplateError::unsupported(spec, "no attention"));
    };
    if caps.subgroup_size == Some(WARP) && a.head_dim.max(a.value_dim) <= attention_warp::MOST {
        return attention_warp::render(spec, caps, a);
    }
    let width = match caps.tier {
        Tier::Cpu => 16u32,
        Tier::Gpu | Tier::Cuda => 64,
    };
    let small = |n: u64| u32::try_from(n).ok().filter(|n| *n <= 1024);
    let (Some(head_dim), Some(value_dim)) = (small(a.head_dim), small(a.value_dim)) else {
        return Err(TemplateError::unsupported(spec, "heads of more than 1024 elements"));
    };
    let rows = product(&spec.domain[..3]);
    let ctx = KernelCtx::new(spec, caps, [width, 1, 1], |_, _| View::Scalar)?;
    let b = &ctx.b;
    let lane = b.let_("lane", b.local_x());
    let query = b.workgroup("query", Type::F32, head_dim);
    let weight = b.workgroup("weight", Type::F32, width);
    let reducer = Reducer::new(&ctx, width);
    let group = b.let_("row", ctx.group(&rows));
    let stores: Vec<&Store> = spec.stores.iter().collect();
    b.if_(b.lt(group, ctx.extent(&rows)), |b| {
        let mut scope = Scope::new();
        ctx.unravel(&mut scope, 0, &spec.domain[..3], group);
        ctx.hoist(&mut scope, &[a.q]);
        b.for_("d", lane, head_dim, width, |b, d| {
            let q = ctx.expr(&mut scope.with(4, d), a.q);
            b.store(query, d, b.mul(q, a.scale));
        });
        b.barrier();
        let (start, end) = ctx.visible_keys(a, &scope);
        let largest = b.var("largest", Type::F32, NONE);
        let sum = b.var("sum", Type::F32, 0.0);
        let parts = value_dim.div_ceil(width);
        let out: Vec<_> = (0..parts).map(|i| b.var(&format!("out{i}"), Type::F32, 0.0)).collect();
        let roots: Vec<_> = [a.k, a.v].into_iter().chain(a.mask).chain(a.bias).collect();
        ctx.hoist(&mut scope, &roots);
        b.for_("t0", start, end, width, |b, t0| {
            let t = b.let_("t", b.add(t0, lane));
            let score = b.var("score", Type::F32, NONE);
            let seen = b.var("seen", Type::F32, 0.0);
            b.if_(b.lt(t, end), |b| {
                let mut key = scope.with(5, t);
                let dot = b.var("dot", Type::F32, 0.0);
                ctx.hoist(&mut key, &[a.k]);
                b.for_("d", 0, head_dim, 1, |b, d| {
                    let k = ctx.expr(&mut key.with(4, d), a.k);
                    b.fma_to(dot, b.load(query, d), k);
                });
                let mut x = b.get(dot);
                if let Some(c) = a.softcap {
                    x = b.soft_cap(x, c);
                }
                if let Some(e) = a.bias {
                    x = b.add(x, ctx.expr(&mut key, e));
                }
                let visible = match a.mask {
                    Some(m) => ctx.expr(&mut key, m),
                    None => b.bool(true),
                };
                b.set(score, b.select(visible, x, NONE));
                b.set(seen, b.select(visible, 1.0, 0.0));
            });
            let block = reducer.all(&ctx, ReduceOp::Max, lane, b.get(score));
            let top = b.let_("top", b.max(largest, block));
            let p = b.let_("p", b.mul(seen, b.exp(b.sub(score, top))));
            let fade = b.let_("fade", b.exp(b.sub(largest, top)));
            b.store(weight, lane, p);
            let added = reducer.all(&ctx, ReduceOp::Sum, lane, p);
            b.set(sum, b.fma(sum, fade, added));
            b.set(largest, top);
            let count = b.let_("count", b.min(b.u32(width), b.sub(end, t0)));
            for (i, o) in out.iter().enumerate() {
                let d = b.add(lane, i as u32 * width);
                let d = b.let_("d", b.min(d, value_dim - 1));
                let gathered = b.var("gathered", Type::F32, 0.0);
                let mut column = scope.with(3, d);
                ctx.hoist(&mut column, &[a.v]);
                b.for_("j", 0, count, 1, |b, j| {
                    let v = ctx.expr(&mut column.with(5, b.add(t0, j)), a.v);
                    b.fma_to(gathered, b.load(weight, j), v);
                });
                b.set(*o, b.fma(b.get(*o), fade, gathered));
            }
            b.barrier();
        });
        let share = b.let_("share", b.select(b.gt(sum, 0.0), b.rcp(b.max(sum, 1.0e-30)), 0.0));
        for (i, o) in out.iter().enumerate() {
            let d = b.add(lane, i as u32 * width);
            b.if_(b.lt(d, value_dim), |b| {
                let here = scope.with(3, d).with_accs(vec![b.mul(b.get(*o), share)]);
                ctx.store_all(&here, &stores);
            });
        }
    });
    ctx.finish("attention", &[("keys", width)], dispatch(&rows))
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
        (b.let_("start", start), b.let_("end", end))
    }
}
