//! A kernel's spec evaluated in f64, element by element.

use crate::reference::{RefError, scalar_binary, scalar_cast, scalar_literal, scalar_unary};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::spec::{Anchor, Attention, ConvChain, Expr, ExprId, KernelSpec, ReduceOp, Stat};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Evaluates a spec.
pub(super) struct Eval<'a> {
    spec: &'a KernelSpec,
    dims: BTreeMap<String, i64>,
    index: Vec<Option<Dim>>,
    read: &'a dyn Fn(usize, i64) -> f64,
    left: &'a mut u64,
    pub axes: [i64; 256],
    acc: [f64; 4],
    stats: Vec<f64>,
    pub inner: i64,
    values: Vec<f64>,
    /// What an expression is computed from, in order, once it was asked for.
    orders: Vec<Option<Rc<[ExprId]>>>,
}

impl<'a> Eval<'a> {
    pub fn new(
        spec: &'a KernelSpec,
        sizes: &BTreeMap<String, i64>,
        read: &'a dyn Fn(usize, i64) -> f64,
        left: &'a mut u64,
    ) -> Self {
        let fixed = |d: &Dim| d.substitute(&|s| sizes.get(&s.to_string()).map(|v| Dim::constant(*v)));
        let index = spec.exprs.iter().map(|(_, e)| match e {
            Expr::Load { index, .. } => Some(fixed(index)),
            Expr::Coord(d) => Some(fixed(d)),
            _ => None,
        });
        let mut out = Eval {
            spec,
            dims: sizes.clone(),
            index: index.collect(),
            read,
            left,
            axes: [0; 256],
            acc: [0.0; 4],
            stats: Vec::new(),
            inner: 1,
            values: vec![0.0; spec.exprs.len()],
            orders: vec![None; spec.exprs.len()],
        };
        let inner = match &spec.anchor {
            Anchor::MatMul { k, .. } => Some(k),
            Anchor::Chain(c) => Some(&c.k),
            Anchor::ConvChain(c) => Some(&c.k),
            Anchor::Row { .. } => spec.domain.last(),
            _ => None,
        };
        out.inner = inner.and_then(|d| out.number(d).ok()).unwrap_or(1);
        out
    }
    pub fn number(&self, d: &Dim) -> Result<i64, RefError> {
        let find = |s: &Sym| match s {
            Sym::Size(_) => self.dims.get(&s.to_string()).copied(),
            Sym::Axis(k) => self.axes.get(*k as usize).copied(),
            Sym::Value(v) => self.values.get(*v as usize).map(|v| *v as i64),
        };
        d.eval(&find).map_err(|e| RefError::new(e.to_string()))
    }
    fn order(&mut self, root: ExprId) -> Rc<[ExprId]> {
        let found = || Rc::from(self.spec.exprs.reachable(&[root]));
        match self.orders.get_mut(root.0 as usize) {
            Some(known) => known.get_or_insert_with(found).clone(),
            None => found(),
        }
    }
    pub fn value(&mut self, root: ExprId) -> Result<f64, RefError> {
        let exprs = &self.spec.exprs;
        let order = self.order(root);
        *self.left = self.left.checked_sub(order.len() as u64).ok_or_else(|| RefError::new("too much work".into()))?;
        for id in order.iter().copied() {
            let at = |e: &ExprId| self.values.get(e.0 as usize).copied().unwrap_or(f64::NAN);
            let x = match exprs.get(id) {
                Expr::Load { arg, .. } => match self.index.get(id.0 as usize) {
                    Some(Some(d)) => (self.read)(arg.0 as usize, self.number(d)?),
                    _ => f64::NAN,
                },
                Expr::Coord(_) => match self.index.get(id.0 as usize) {
                    Some(Some(d)) => self.number(d)? as f64,
                    _ => f64::NAN,
                },
                Expr::Const(l) => scalar_literal(*l),
                Expr::Unary(f, a) => scalar_unary(*f, at(a)),
                Expr::Binary(f, a, b) => scalar_binary(*f, exprs.scalar(*a), at(a), at(b)),
                Expr::Select { cond, t, f } => {
                    if at(cond) != 0.0 {
                        at(t)
                    } else {
                        at(f)
                    }
                }
                Expr::Cast(to, a) => scalar_cast(*to, at(a)),
                Expr::Acc(j) => self.acc.get(*j as usize).copied().unwrap_or(f64::NAN),
                Expr::Stat(j) => self.stats.get(*j as usize).copied().unwrap_or(f64::NAN),
            };
            if let Some(slot) = self.values.get_mut(id.0 as usize) {
                *slot = x;
            }
        }
        Ok(self.values.get(root.0 as usize).copied().unwrap_or(f64::NAN))
    }
    /// The statistics of the row that the axes name.
    pub fn row_stats(&mut self) -> Result<(), RefError> {
        let spec = self.spec;
        let axis = match &spec.anchor {
            Anchor::Row { .. } => spec.domain.len().saturating_sub(1),
            _ => spec.k_axis(),
        };
        let inner = match &spec.stats_over {
            Some(tiles) => self.number(tiles)?,
            None => self.inner,
        };
        self.stats.clear();
        self.reduce(spec.row_stats(), axis, inner, &mut |_, _| {})
    }
    /// Adds the statistics `list` over `inner` places of `axis`, at each of which `arrive` says what else is known.
    fn reduce(
        &mut self,
        list: &[Stat],
        axis: usize,
        inner: i64,
        arrive: &mut dyn FnMut(&mut Self, i64),
    ) -> Result<(), RefError> {
        let kept = self.axes[axis];
        for s in list {
            let (mut acc, mut best) = match s.op {
                ReduceOp::Sum => (0.0, 0),
                ReduceOp::Prod => (1.0, 0),
                ReduceOp::Max | ReduceOp::ArgMax => (-3.0e38, 0),
                ReduceOp::Min => (3.0e38, 0),
            };
            for j in 0..inner {
                self.axes[axis] = j;
                arrive(self, j);
                let x = self.value(s.value)?;
                match s.op {
                    ReduceOp::Sum => acc += x,
                    ReduceOp::Prod => acc *= x,
                    ReduceOp::Max => acc = f64::max(acc, x),
                    ReduceOp::Min => acc = f64::min(acc, x),
                    ReduceOp::ArgMax if x > acc => (acc, best) = (x, j),
                    ReduceOp::ArgMax => {}
                }
            }
            self.axes[axis] = kept;
            self.stats.push(if s.op == ReduceOp::ArgMax { best as f64 } else { acc });
            if let Some(f) = s.finish {
                let x = self.value(f)?;
                if let Some(last) = self.stats.last_mut() {
                    *last = x;
                }
            }
        }
        Ok(())
    }
    /// The value of a store at the coordinates that the axes name.
    pub fn store(&mut self, value: ExprId) -> Result<f64, RefError> {
        self.row_stats()?;
        let spec = self.spec;
        match &spec.anchor {
            Anchor::Map | Anchor::Row { .. } => {}
            Anchor::MatMul { lhs, rhs, .. } => {
                if let Some(c) = &spec.columns {
                    let (n, width) = (spec.domain.len().saturating_sub(1), c.width.max(1) as i64);
                    let column = self.axes[n];
                    let mut sums: Vec<[f64; 4]> = Vec::new();
                    for i in 0..width {
                        self.axes[n] = column - column % width + i;
                        self.products(*lhs, rhs)?;
                        sums.push(self.acc);
                    }
                    self.reduce(&c.stats, n, width, &mut |eval, i| {
                        eval.acc = sums.get(i as usize).copied().unwrap_or_default();
                    })?;
                    self.axes[n] = column;
                }
                self.products(*lhs, rhs)?;
            }
            Anchor::Chain(c) => {
                let (i_axis, k_axis, inner) = (spec.domain.len(), spec.k_axis(), self.number(&c.inner)?);
                let mut sum = 0.0;
                for i in 0..inner {
                    self.axes[i_axis] = i;
                    let mut acc = [0.0; 4];
                    for t in 0..self.inner {
                        self.axes[k_axis] = t;
                        let x = self.value(c.lhs)?;
                        for (a, r) in acc.iter_mut().zip(&c.up) {
                            *a += x * self.value(*r)?;
                        }
                    }
                    self.acc = acc;
                    sum += self.value(c.middle)? * self.value(c.down)?;
                }
                self.acc = [sum, 0.0, 0.0, 0.0];
            }
            Anchor::ConvChain(c) => self.acc = [self.conv_chain(c)?, 0.0, 0.0, 0.0],
            Anchor::Attention(a) => {
                let (out, softmax) = self.attention(a)?;
                self.acc[0] = out;
                self.stats = softmax.to_vec();
            }
        }
        self.value(value)
    }
    /// The accumulators of a matmul at the coordinates that the axes name.
    fn products(&mut self, lhs: ExprId, rhs: &[ExprId]) -> Result<(), RefError> {
        let k = self.spec.k_axis();
        let mut acc = [0.0; 4];
        for j in 0..self.inner {
            self.axes[k] = j;
            let x = self.value(lhs)?;
            for (a, r) in acc.iter_mut().zip(rhs) {
                *a += x * self.value(*r)?;
            }
        }
        self.acc = acc;
        Ok(())
    }
    /// The accumulator of two convolutions in a row.
    fn conv_chain(&mut self, c: &ConvChain) -> Result<f64, RefError> {
        let place = [self.axes[1], self.axes[2]].map(|p| p.max(0) as u64);
        let mut sum = 0.0;
        for t in 0..c.taps() {
            let tap = [t / c.windows[1].taps, t % c.windows[1].taps];
            let at = [0, 1].map(|a| c.windows[a].at(place[a], tap[a]));
            let [Some(y), Some(x)] = at else { continue };
            (self.axes[4], self.axes[5]) = (y as i64, x as i64);
            for channel in 0..c.channels {
                self.axes[6] = channel as i64;
                self.axes[8] = (channel * c.taps() + t) as i64;
                let mut acc = 0.0;
                for k in 0..self.inner {
                    self.axes[7] = k;
                    acc += self.value(c.lhs)? * self.value(c.up)?;
                }
                self.acc[0] = acc;
                sum += self.value(c.middle)? * self.value(c.down)?;
            }
        }
        Ok(sum)
    }
    /// The accumulator, and the largest score and the sum of weights.
    fn attention(&mut self, a: &Attention) -> Result<(f64, [f64; 2]), RefError> {
        let keys = self.number(&a.kv_len)?;
        let offset = a.causal_offset.as_ref().map(|d| self.number(d)).transpose()?;
        let (mut seen, mut max) = (Vec::new(), f64::NEG_INFINITY);
        let own = match &a.parts {
            Some(p) => {
                let (first, len) = (self.number(&p.first)?, self.number(&p.len)?);
                let from = first + self.axes[0] % p.count.max(1) as i64 * len;
                from.max(0)..(from + len).min(keys)
            }
            None => 0..keys,
        };
        for t in own {
            self.axes[5] = t;
            let last = self.axes[2] + offset.unwrap_or(0);
            let hidden = (offset.is_some() && t > last) || a.window.is_some_and(|w| t <= last - w as i64);
            if hidden || (a.mask.is_some() && self.value(a.mask.unwrap_or(a.q))? == 0.0) {
                continue;
            }
            let mut score = 0.0;
            for d in 0..a.head_dim as i64 {
                self.axes[4] = d;
                score += self.value(a.q)? * self.value(a.k)?;
            }
            score *= f64::from(a.scale);
            if let Some(c) = a.softcap {
                score = f64::from(c) * (score / f64::from(c)).tanh();
            }
            if let Some(b) = a.bias {
                score += self.value(b)?;
            }
            max = max.max(score);
            seen.push((t, score));
        }
        let sum: f64 = seen.iter().map(|(_, x)| (x - max).exp()).sum();
        let total = if a.parts.is_some() { 1.0 } else { sum };
        let mut out = 0.0;
        for (t, x) in seen {
            self.axes[5] = t;
            out += (x - max).exp() / total * self.value(a.v)?;
        }
        Ok((out, [max.max(-1e30), sum]))
    }
}
