//! Single elements of a graph's values, computed on demand in f64: what a rewrite is checked with at sizes at which whole
//! tensors would be too large. Operations mean what [`super::evaluate`] says they mean.

use super::array::strides;
use super::{Env, RefError, scalar};
use crate::graph::{AttentionAttrs, Graph, NormKind, Op, RopeStyle, ValueId};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::spec::ReduceOp;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Computes elements of values of one graph under given sizes.
pub struct Elements<'a> {
    graph: &'a Graph,
    sizes: &'a BTreeMap<String, i64>,
    given: &'a dyn Fn(ValueId, usize) -> Option<f64>,
    nodes: FxHashMap<ValueId, std::rc::Rc<Info>>,
    memo: FxHashMap<(ValueId, usize), f64>,
    /// Evaluations that may still be made.
    pub left: u64,
    /// Set when an attention met a row that sees no key, which is 0 by definition.
    pub met_empty_row: bool,
}

struct Info {
    shape: Vec<usize>,
    operands: Vec<ValueId>,
}

/// A number that depends on `id` and `i` and looks random.
pub fn hashed(id: u64, i: usize) -> u64 {
    let mut x = (id ^ 0x9e37_79b9_7f4a_7c15).wrapping_add((i as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn fault<T>(what: impl Into<String>) -> Result<T, RefError> {
    Err(RefError::new(what.into()))
}

impl<'a> Elements<'a> {
    /// Elements under `sizes`, with at most `limit` evaluations. `given` has the elements of values that are not
    /// computed: inputs, weights, and wherever else a computation shall begin.
    pub fn new(
        graph: &'a Graph,
        sizes: &'a BTreeMap<String, i64>,
        given: &'a dyn Fn(ValueId, usize) -> Option<f64>,
        limit: u64,
    ) -> Self {
        Elements {
            graph,
            sizes,
            given,
            nodes: FxHashMap::default(),
            memo: FxHashMap::default(),
            left: limit,
            met_empty_row: false,
        }
    }
    /// The value of a size expression.
    ///
    /// # Errors
    /// An unknown size, or a negative value.
    pub fn size(&self, d: &Dim) -> Result<usize, RefError> {
        if let Some(v) = d.as_const() {
            return usize::try_from(v).map_err(|_| RefError::new(format!("the extent {v}")));
        }
        let none = |_| Err(String::new());
        let mut env = Env::new(&none);
        env.sizes = self.sizes.clone();
        env.extent(d)
    }
    fn signed(&self, d: &Dim) -> Result<i64, RefError> {
        let size = |s: &Sym| self.sizes.get(&s.to_string()).copied();
        d.eval(&size).map_err(|e| RefError::new(e.to_string()))
    }
    fn info(&mut self, v: ValueId) -> Result<std::rc::Rc<Info>, RefError> {
        if let Some(i) = self.nodes.get(&v) {
            return Ok(i.clone());
        }
        let shape = self.graph.ty(v).shape.iter().map(|d| self.size(d)).collect::<Result<Vec<_>, _>>()?;
        let info = std::rc::Rc::new(Info { shape, operands: self.graph.operands(v) });
        self.nodes.insert(v, info.clone());
        Ok(info)
    }
    /// The extents of a value.
    ///
    /// # Errors
    /// An unknown size.
    pub fn shape(&mut self, v: ValueId) -> Result<Vec<usize>, RefError> {
        Ok(self.info(v)?.shape.clone())
    }
    /// Element `i`, counted row-major, of a value.
    ///
    /// # Errors
    /// An operation that has no element by itself, more work than allowed, operands that do not fit.
    pub fn at(&mut self, v: ValueId, i: usize) -> Result<f64, RefError> {
        if let Some(x) = self.memo.get(&(v, i)) {
            return Ok(*x);
        }
        self.left = self.left.checked_sub(1).ok_or_else(|| RefError::new("too much work".into()))?;
        let x = match (self.given)(v, i) {
            Some(x) => x,
            None => self.compute(v, i)?,
        };
        self.memo.insert((v, i), x);
        Ok(x)
    }
    /// The position in an operand that broadcasts to `shape`, of element `i` of the result.
    fn spread(&mut self, o: ValueId, shape: &[usize], mut i: usize) -> Result<usize, RefError> {
        let own = self.info(o)?;
        if own.shape == shape {
            return Ok(i);
        }
        let skip = shape.len().checked_sub(own.shape.len()).ok_or_else(|| RefError::new("a broadcast".into()))?;
        let (mut at, mut step) = (0, 1);
        for (k, e) in shape.iter().enumerate().rev() {
            let c = i % e.max(&1);
            i /= e.max(&1);
            if let Some(d) = k.checked_sub(skip).and_then(|k| own.shape.get(k)) {
                at += if *d == 1 { 0 } else { c * step };
                step *= d;
            }
        }
        Ok(at)
    }
    fn compute(&mut self, v: ValueId, i: usize) -> Result<f64, RefError> {
        let graph = self.graph;
        let info = self.info(v)?;
        let (shape, ops) = (&info.shape, &info.operands);
        let op = |k: usize| ops.get(k).copied().ok_or_else(|| RefError::new(format!("operand {k} is missing")));
        match graph.op(v) {
            Op::Const(l) => Ok(scalar::literal(*l)),
            Op::Iota { axis, offset } => {
                let step = strides(shape).get(*axis).copied().unwrap_or(1).max(1);
                let extent = shape.get(*axis).copied().unwrap_or(1).max(1);
                Ok((i / step % extent) as f64 + self.signed(offset)? as f64)
            }
            Op::Unary(f) => Ok(scalar::unary(*f, self.at(op(0)?, i)?)),
            Op::Cast(to) => Ok(scalar::cast(*to, self.at(op(0)?, i)?)),
            Op::Binary(f) => {
                let (a, b) = (op(0)?, op(1)?);
                let (x, y) = (self.spread(a, shape, i)?, self.spread(b, shape, i)?);
                Ok(scalar::binary(*f, graph.ty(a).scalar, self.at(a, x)?, self.at(b, y)?))
            }
            Op::Select => {
                let c = self.spread(op(0)?, shape, i)?;
                let k = if self.at(op(0)?, c)? != 0.0 { 1 } else { 2 };
                let at = self.spread(op(k)?, shape, i)?;
                self.at(op(k)?, at)
            }
            Op::Reshape(_) => self.at(op(0)?, i),
            Op::Broadcast(_) => {
                let at = self.spread(op(0)?, shape, i)?;
                self.at(op(0)?, at)
            }
            Op::Transpose(perm) => {
                let own = self.info(op(0)?)?;
                let (steps, from) = (strides(shape), strides(&own.shape));
                let axes = perm.iter().zip(&steps).zip(shape);
                let at = axes.map(|((p, step), e)| i / step.max(&1) % e.max(&1) * from.get(*p).copied().unwrap_or(0));
                self.at(op(0)?, at.sum())
            }
            Op::Slice { axis, start, .. } => {
                let own = self.info(op(0)?)?;
                let (steps, from) = (strides(shape), strides(&own.shape));
                let first = self.size(start)? * from.get(*axis).copied().unwrap_or(0);
                let axes = steps.iter().zip(shape).zip(&from);
                let at: usize = axes.map(|((step, e), f)| i / step.max(&1) % e.max(&1) * f).sum();
                self.at(op(0)?, at + first)
            }
            Op::Concat { axis } => {
                let inner: usize = shape.iter().skip(axis + 1).product();
                let extent = shape.get(*axis).copied().unwrap_or(1).max(1);
                let (outer, mut c, rest) = (i / (inner * extent).max(1), i / inner.max(1) % extent, i % inner.max(1));
                for o in ops {
                    let own = self.info(*o)?.shape.get(*axis).copied().unwrap_or(1);
                    if c < own {
                        return self.at(*o, (outer * own + c) * inner + rest);
                    }
                    c -= own;
                }
                fault("a concat of too little")
            }
            Op::Gather => {
                let table = self.info(op(0)?)?;
                if table.shape.contains(&0) {
                    return fault("a row of an empty table");
                }
                let row: usize = table.shape.iter().skip(1).product();
                let last = table.shape.first().copied().unwrap_or(1).saturating_sub(1);
                let id = self.at(op(1)?, i / row.max(1))?.clamp(0.0, last as f64) as usize;
                self.at(op(0)?, id * row + i % row.max(1))
            }
            Op::Reduce { op: f, axes, .. } => self.reduce(*f, op(0)?, axes, i),
            Op::MatMul { b_transposed } => {
                let (a, b) = (op(0)?, op(1)?);
                let (sa, sb) = (self.info(a)?, self.info(b)?);
                let (Some(n), Some(m)) = (shape.last(), shape.iter().rev().nth(1)) else {
                    return fault("a product of vectors");
                };
                let k = sa.shape.last().copied().unwrap_or(1);
                let (col, r, batch) = (i % n.max(&1), i / n.max(&1) % m.max(&1), i / (n * m).max(1));
                let lead = &shape[..shape.len() - 2];
                let fold = |own: &[usize]| {
                    let own = &own[..own.len().saturating_sub(2)];
                    let (mut rest, mut at, mut step) = (batch, 0, 1);
                    for (back, e) in lead.iter().rev().enumerate() {
                        let c = rest % e.max(&1);
                        rest /= e.max(&1);
                        if let Some(d) = own.iter().rev().nth(back) {
                            at += if *d == 1 { 0 } else { c * step };
                            step *= d;
                        }
                    }
                    at
                };
                let (a0, b0) = (fold(&sa.shape) * m * k, fold(&sb.shape) * k * n);
                let mut sum = 0.0;
                for t in 0..k {
                    let bi = if *b_transposed { col * k + t } else { t * n + col };
                    sum += self.at(a, a0 + r * k + t)? * self.at(b, b0 + bi)?;
                }
                Ok(sum)
            }
            Op::Softmax => {
                let n = shape.last().copied().unwrap_or(1).max(1);
                let row = self.row(op(0)?, i / n, n)?;
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
                let first = i / n * n;
                row.iter().enumerate().for_each(|(j, x)| {
                    self.memo.insert((v, first + j), (x - max).exp() / sum);
                });
                Ok((row[i % n] - max).exp() / sum)
            }
            Op::Norm { kind, eps, has_gain, has_bias } => {
                let n = shape.last().copied().unwrap_or(1).max(1);
                let mut row = self.row(op(0)?, i / n, n)?;
                if *kind == NormKind::Layer {
                    let mean = row.iter().sum::<f64>() / n as f64;
                    row.iter_mut().for_each(|x| *x -= mean);
                }
                let square = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
                let scale = 1.0 / (square + f64::from(eps.0)).sqrt();
                let gain = if *has_gain { self.at(op(1)?, i % n)? } else { 1.0 };
                let bias = if *has_bias { self.at(op(1 + usize::from(*has_gain))?, i % n)? } else { 0.0 };
                Ok(row[i % n] * scale * gain + bias)
            }
            Op::Rope { style, rotary_dim } => self.rope(*style, *rotary_dim as usize, ops, shape, i),
            Op::Attention(a) => self.attention(a, None, ops, shape, i),
            Op::AttentionParts { attrs, parts } => self.attention(attrs, Some(*parts as usize), ops, shape, i),
            Op::MergeParts { parts } => {
                let (n, width, row) = (*parts as usize, shape[3], i / shape[3].max(1));
                let rows = shape[1] * shape[2];
                let (b, inner) = (row / rows.max(1), row % rows.max(1));
                let x = op(0)?;
                let first = |c: usize| ((b * n + c) * rows + inner) * (width + 2);
                let mut tops = Vec::with_capacity(n);
                for c in 0..n {
                    tops.push(self.at(x, first(c) + width)?);
                }
                let top = tops.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let (mut sum, mut value) = (0.0, 0.0);
                for (c, t) in tops.iter().enumerate() {
                    sum += (t - top).exp() * self.at(x, first(c) + width + 1)?;
                    value += (t - top).exp() * self.at(x, first(c) + i % width)?;
                }
                Ok(if sum > 0.0 { value / sum } else { 0.0 })
            }
            other => fault(format!("{} has no element of its own", other.name())),
        }
    }
    fn row(&mut self, x: ValueId, row: usize, n: usize) -> Result<Vec<f64>, RefError> {
        (0..n).map(|j| self.at(x, row * n + j)).collect()
    }
    fn reduce(&mut self, f: ReduceOp, x: ValueId, axes: &[usize], i: usize) -> Result<f64, RefError> {
        let own = self.info(x)?;
        let steps = strides(&own.shape);
        let (mut rest, mut first) = (i, 0);
        for (k, e) in own.shape.iter().enumerate().rev() {
            if !axes.contains(&k) {
                first += rest % e.max(&1) * steps[k];
                rest /= e.max(&1);
            }
        }
        let count: usize = axes.iter().filter_map(|a| own.shape.get(*a)).product();
        let init = match f {
            ReduceOp::Sum => 0.0,
            ReduceOp::Prod => 1.0,
            ReduceOp::Max | ReduceOp::ArgMax => -3.0e38,
            ReduceOp::Min => 3.0e38,
        };
        let (mut acc, mut best) = (init, 0);
        for j in 0..count {
            let (mut c, mut at) = (j, first);
            for a in axes.iter().rev() {
                let e = own.shape.get(*a).copied().unwrap_or(1).max(1);
                at += c % e * steps.get(*a).copied().unwrap_or(0);
                c /= e;
            }
            let x = self.at(x, at)?;
            match f {
                ReduceOp::Sum => acc += x,
                ReduceOp::Prod => acc *= x,
                ReduceOp::Max => acc = acc.max(x),
                ReduceOp::Min => acc = acc.min(x),
                ReduceOp::ArgMax if x > acc => (acc, best) = (x, j),
                ReduceOp::ArgMax => {}
            }
        }
        Ok(if f == ReduceOp::ArgMax { best as f64 } else { acc })
    }
    fn rope(
        &mut self,
        style: RopeStyle,
        rotary: usize,
        ops: &[ValueId],
        shape: &[usize],
        i: usize,
    ) -> Result<f64, RefError> {
        let (&[x, cos, sin, pos], &[_, heads, tokens, dim]) = (ops, shape) else { return fault("rope of 4 axes") };
        let (d, row, half) = (i % dim, i / dim, rotary / 2);
        if d >= rotary {
            return self.at(x, i);
        }
        let token = row / (heads * tokens).max(1) * tokens + row % tokens.max(1);
        let rows = self.info(cos)?.shape.first().copied().unwrap_or(1);
        let p = self.at(pos, token)?.clamp(0.0, rows.saturating_sub(1) as f64) as usize;
        let (j, is_first, partner) = match style {
            RopeStyle::Half => (d % half, d < half, (d + half) % rotary),
            RopeStyle::Interleaved => (d / 2, d % 2 == 0, d ^ 1),
        };
        let (c, s) = (self.at(cos, p * half + j)?, self.at(sin, p * half + j)?);
        let (own, other) = (self.at(x, i)?, self.at(x, row * dim + partner)?);
        Ok(if is_first { own * c - other * s } else { own * c + other * s })
    }
    fn attention(
        &mut self,
        a: &AttentionAttrs,
        parts: Option<usize>,
        ops: &[ValueId],
        shape: &[usize],
        i: usize,
    ) -> Result<f64, RefError> {
        let (&[q, k, value, ..], &[_, heads, queries, columns]) = (ops, shape) else { return fault("attention") };
        let width = if parts.is_some() { columns.saturating_sub(2) } else { columns };
        let (ks, dim) = (self.shape(k)?, self.info(q)?.shape.last().copied().unwrap_or(1));
        let &[_, groups, keys, _] = ks.as_slice() else { return fault("attention of 4 axes") };
        let (e, row) = (i % columns, i / columns);
        let (s, h, of) = (row % queries, row / queries % heads, row / (queries * heads));
        let b = parts.map_or(of, |n| of / n.max(1));
        let row = (b * heads + h) * queries + s;
        let g = b * groups + h / (heads / groups.max(1)).max(1);
        let offset = a.causal.as_ref().map(|d| self.signed(d)).transpose()?;
        let own = parts.map(|n| super::ops::part((of % n.max(1), n), (queries, keys), offset, a.window));
        let scores = [parts.map_or(shape[0], |n| shape[0] / n.max(1)), heads, queries, keys];
        let (mut seen, mut max) = (Vec::new(), f64::NEG_INFINITY);
        for t in 0..keys {
            let last = offset.map(|o| s as i64 + o);
            let hidden =
                last.is_some_and(|l| t as i64 > l) || last.zip(a.window).is_some_and(|(l, w)| t as i64 <= l - w as i64);
            let spot = ((b * heads + h) * queries + s) * keys + t;
            if hidden || own.as_ref().is_some_and(|own| !own.contains(&t)) {
                continue;
            }
            if a.has_mask {
                let m = ops.get(3).copied().unwrap_or(q);
                let at = self.spread(m, &scores, spot)?;
                if self.at(m, at)? == 0.0 {
                    continue;
                }
            }
            let mut score = 0.0;
            for d in 0..dim {
                score += self.at(q, row * dim + d)? * self.at(k, (g * keys + t) * dim + d)?;
            }
            score *= f64::from(a.scale.0);
            if let Some(c) = a.softcap {
                score = f64::from(c.0) * (score / f64::from(c.0)).tanh();
            }
            if a.has_bias {
                let m = ops.get(3 + usize::from(a.has_mask)).copied().unwrap_or(q);
                let at = self.spread(m, &scores, spot)?;
                score += self.at(m, at)?;
            }
            max = max.max(score);
            seen.push((t, score));
        }
        self.met_empty_row |= seen.is_empty() && parts.is_none();
        let sum: f64 = seen.iter().map(|(_, x)| (x - max).exp()).sum();
        match (parts, e.checked_sub(width)) {
            (Some(_), Some(0)) => return Ok(max.max(-1e30)),
            (Some(_), Some(_)) => return Ok(sum),
            _ => {}
        }
        let sum = if parts.is_some() { 1.0 } else { sum };
        let mut out = 0.0;
        for (t, x) in seen {
            out += (x - max).exp() / sum * self.at(value, (g * keys + t) * width + e)?;
        }
        Ok(out)
    }
}
