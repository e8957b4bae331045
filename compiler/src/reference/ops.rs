//! The meaning of every operation but the ones with nested graphs, written out naively.

use super::array::{Array, broadcast_strides, common, elems, for_each, strides};
use super::{RefError, scalar};
use crate::graph::{AttentionAttrs, NormKind, RopeStyle};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

pub(super) fn unary(op: UnaryOp, x: &Array) -> Array {
    Array { shape: x.shape.clone(), data: x.data.iter().map(|v| scalar::unary(op, *v)).collect() }
}

pub(super) fn cast(to: Scalar, x: &Array) -> Array {
    Array { shape: x.shape.clone(), data: x.data.iter().map(|v| scalar::cast(to, *v)).collect() }
}

pub(super) fn binary(op: BinaryOp, of: Scalar, a: &Array, b: &Array) -> Result<Array, RefError> {
    let shape = common(&a.shape, &b.shape)?;
    let (sa, sb) = (broadcast_strides(&a.shape, &shape)?, broadcast_strides(&b.shape, &shape)?);
    let mut data = Vec::with_capacity(elems(&shape)?);
    for_each(&shape, &[&sa, &sb], |i| data.push(scalar::binary(op, of, a.at(i[0]), b.at(i[1]))));
    Ok(Array { shape, data })
}

pub(super) fn select(c: &Array, t: &Array, f: &Array) -> Result<Array, RefError> {
    let shape = common(&common(&c.shape, &t.shape)?, &f.shape)?;
    let s = [&c.shape, &t.shape, &f.shape].map(|own| broadcast_strides(own, &shape));
    let [sc, st, sf] = s;
    let (sc, st, sf) = (sc?, st?, sf?);
    let mut data = Vec::with_capacity(elems(&shape)?);
    for_each(&shape, &[&sc, &st, &sf], |i| data.push(if c.at(i[0]) != 0.0 { t.at(i[1]) } else { f.at(i[2]) }));
    Ok(Array { shape, data })
}

pub(super) fn transpose(x: &Array, perm: &[usize]) -> Result<Array, RefError> {
    let own = strides(&x.shape);
    let pick = |p: &usize| own.get(*p).copied().ok_or_else(|| RefError::new(format!("no axis {p}")));
    let s = perm.iter().map(pick).collect::<Result<Vec<_>, _>>()?;
    let shape: Vec<usize> = perm.iter().map(|p| x.extent(*p)).collect();
    x.strided(&shape, 0, &s)
}

pub(super) fn broadcast(x: &Array, shape: &[usize]) -> Result<Array, RefError> {
    x.strided(shape, 0, &broadcast_strides(&x.shape, shape)?)
}

pub(super) fn slice(x: &Array, axis: usize, start: usize, len: usize) -> Result<Array, RefError> {
    let s = strides(&x.shape);
    let (Some(step), Some(true)) = (s.get(axis), start.checked_add(len).map(|e| e <= x.extent(axis))) else {
        return Err(RefError::new(format!("slice of {len} from {start} along axis {axis} of {:?}", x.shape)));
    };
    let mut shape = x.shape.clone();
    shape[axis] = len;
    x.strided(&shape, start * step, &s)
}

pub(super) fn concat(parts: &[&Array], axis: usize) -> Result<Array, RefError> {
    let first = parts.first().ok_or_else(|| RefError::new("concat of nothing".into()))?;
    let mut shape = first.shape.clone();
    let total = parts.iter().map(|p| p.extent(axis)).sum();
    *shape.get_mut(axis).ok_or_else(|| RefError::new(format!("no axis {axis}")))? = total;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut data = Vec::with_capacity(elems(&shape)?);
    for o in 0..outer {
        for p in parts {
            let run = p.extent(axis) * inner;
            data.extend((o * run..(o + 1) * run).map(|i| p.at(i)));
        }
    }
    Array::new(shape, data)
}

pub(super) fn gather(table: &Array, ids: &Array) -> Result<Array, RefError> {
    let rows = table.extent(0);
    if rows == 0 {
        return Err(RefError::new("gather from an empty table".into()));
    }
    let row: usize = table.shape.iter().skip(1).product();
    let shape: Vec<usize> = ids.shape.iter().chain(table.shape.iter().skip(1)).copied().collect();
    let mut data = Vec::with_capacity(elems(&shape)?);
    for id in &ids.data {
        let r = id.clamp(0.0, (rows - 1) as f64) as usize;
        data.extend((r * row..(r + 1) * row).map(|i| table.at(i)));
    }
    Ok(Array { shape, data })
}

pub(super) fn reduce(op: ReduceOp, x: &Array, axes: &[usize], keep: bool) -> Result<Array, RefError> {
    let kept: Vec<usize> = x.shape.iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect();
    let to = broadcast_strides(&kept, &x.shape)?;
    let init = match op {
        ReduceOp::Sum => 0.0,
        ReduceOp::Prod => 1.0,
        ReduceOp::Max | ReduceOp::ArgMax => -3.0e38,
        ReduceOp::Min => 3.0e38,
    };
    let mut acc = vec![init; elems(&kept)?];
    let mut best = vec![0.0; acc.len()];
    let along = axes.first().map_or(1, |a| strides(&x.shape).get(*a).copied().unwrap_or(1).max(1));
    let extent = axes.first().map_or(1, |a| x.extent(*a).max(1));
    for_each(&x.shape, &[&strides(&x.shape), &to], |i| {
        let (v, a) = (x.at(i[0]), i[1]);
        match op {
            ReduceOp::Sum => acc[a] += v,
            ReduceOp::Prod => acc[a] *= v,
            ReduceOp::Max => acc[a] = acc[a].max(v),
            ReduceOp::Min => acc[a] = acc[a].min(v),
            ReduceOp::ArgMax => {
                if v > acc[a] {
                    acc[a] = v;
                    best[a] = (i[0] / along % extent) as f64;
                }
            }
        }
    });
    let shape = if keep { kept } else { dropped(&x.shape, axes) };
    Array::new(shape, if op == ReduceOp::ArgMax { best } else { acc })
}

fn dropped(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect()
}

pub(super) fn matmul(a: &Array, b: &Array, b_transposed: bool) -> Result<Array, RefError> {
    let fail = || RefError::new(format!("matmul of {:?} and {:?}", a.shape, b.shape));
    let ([ab @ .., m, k], [bb @ .., p, q]) = (a.shape.as_slice(), b.shape.as_slice()) else {
        return Err(fail());
    };
    let (kb, n) = if b_transposed { (*q, *p) } else { (*p, *q) };
    if *k != kb {
        return Err(fail());
    }
    let (m, k) = (*m, *k);
    let batch = common(ab, bb)?;
    let mut shape = batch.clone();
    shape.extend([m, n]);
    let mut out = Array::full(&shape, 0.0)?;
    let (sa, sb) = (broadcast_strides(ab, &batch)?, broadcast_strides(bb, &batch)?);
    let mut block = 0;
    for_each(&batch, &[&sa, &sb], |i| {
        let (a0, b0) = (i[0] * m * k, i[1] * k * n);
        for r in 0..m {
            let row = &mut out.data[(block * m + r) * n..(block * m + r + 1) * n];
            for (c, o) in row.iter_mut().enumerate() {
                let mut sum = 0.0;
                for t in 0..k {
                    let bi = if b_transposed { c * k + t } else { t * n + c };
                    sum += a.at(a0 + r * k + t) * b.at(b0 + bi);
                }
                *o = sum;
            }
        }
        block += 1;
    });
    Ok(out)
}

/// Calls `f` on every row of the last axis.
fn rows(x: &Array, mut f: impl FnMut(&mut [f64])) -> Array {
    let mut out = x.clone();
    let n = x.shape.last().copied().unwrap_or(1);
    if n > 0 {
        out.data.chunks_mut(n).for_each(&mut f);
    }
    out
}

pub(super) fn softmax(x: &Array) -> Array {
    rows(x, |row| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for v in row.iter_mut() {
            *v = (*v - max).exp();
            sum += *v;
        }
        row.iter_mut().for_each(|v| *v /= sum);
    })
}

pub(super) fn norm(kind: NormKind, eps: f64, x: &Array, gain: Option<&Array>, bias: Option<&Array>) -> Array {
    rows(x, |row| {
        let n = row.len() as f64;
        if kind == NormKind::Layer {
            let mean = row.iter().sum::<f64>() / n;
            row.iter_mut().for_each(|v| *v -= mean);
        }
        let square = row.iter().map(|v| v * v).sum::<f64>() / n;
        let scale = 1.0 / (square + eps).sqrt();
        for (i, v) in row.iter_mut().enumerate() {
            *v = *v * scale * gain.map_or(1.0, |g| g.at(i)) + bias.map_or(0.0, |b| b.at(i));
        }
    })
}

pub(super) fn rope(
    style: RopeStyle,
    rotary: usize,
    x: &Array,
    cos: &Array,
    sin: &Array,
    pos: &Array,
) -> Result<Array, RefError> {
    let [batch, heads, tokens, dim] = x.four()?;
    let half = rotary / 2;
    if cos.extent(0) == 0 || rotary > dim || cos.extent(1) != half || pos.data.len() != batch * tokens {
        return Err(RefError::new(format!("rope of {:?} by tables {:?}", x.shape, cos.shape)));
    }
    let mut out = x.clone();
    for b in 0..batch {
        for h in 0..heads {
            for s in 0..tokens {
                let p = pos.at(b * tokens + s).clamp(0.0, (cos.extent(0) - 1) as f64) as usize;
                let row = ((b * heads + h) * tokens + s) * dim;
                for j in 0..half {
                    let (i0, i1) = match style {
                        RopeStyle::Half => (row + j, row + j + half),
                        RopeStyle::Interleaved => (row + 2 * j, row + 2 * j + 1),
                    };
                    let (c, n) = (cos.at(p * half + j), sin.at(p * half + j));
                    out.data[i0] = x.at(i0) * c - x.at(i1) * n;
                    out.data[i1] = x.at(i1) * c + x.at(i0) * n;
                }
            }
        }
    }
    Ok(out)
}

/// Operands and resolved attributes of an attention.
pub(super) struct Attention<'a> {
    pub q: &'a Array,
    pub k: &'a Array,
    pub v: &'a Array,
    pub mask: Option<&'a Array>,
    pub bias: Option<&'a Array>,
    pub attrs: &'a AttentionAttrs,
    pub offset: Option<i64>,
    pub parts: Option<usize>,
}

/// The keys of part `part` of `parts`, as [`Op::AttentionParts`](crate::graph::Op::AttentionParts) has them.
pub(super) fn part(
    (part, parts): (usize, usize),
    (queries, keys): (usize, usize),
    offset: Option<i64>,
    window: Option<u64>,
) -> std::ops::Range<usize> {
    let end = offset.map_or(keys as i64, |o| (queries as i64 + o).min(keys as i64));
    let first = window.map_or(0, |w| (offset.unwrap_or(0) + 1 - w as i64).max(0));
    let step = frit_kernels::spec::KeyParts::STEP as usize;
    let len = ((end - first).max(0) as usize).div_ceil(parts.max(1)).next_multiple_of(step);
    let from = first as usize + part * len;
    from..from + len
}

/// The attention whose parts lie in `x`.
pub(super) fn merge_parts(x: &Array, parts: usize) -> Result<Array, RefError> {
    let [all, heads, queries, row] = x.four()?;
    let width = row.saturating_sub(2);
    let mut out = Array::full(&[all / parts.max(1), heads, queries, width], 0.0)?;
    for (b, h, s) in coords(all / parts.max(1), heads, queries) {
        let at = |c: usize| (((b * parts + c) * heads + h) * queries + s) * row;
        let top = (0..parts).map(|c| x.at(at(c) + width)).fold(f64::NEG_INFINITY, f64::max);
        let share = |c: usize| (x.at(at(c) + width) - top).exp();
        let sum: f64 = (0..parts).map(|c| share(c) * x.at(at(c) + width + 1)).sum();
        for e in 0..width {
            let v: f64 = (0..parts).map(|c| share(c) * x.at(at(c) + e)).sum();
            out.data[((b * heads + h) * queries + s) * width + e] = if sum > 0.0 { v / sum } else { 0.0 };
        }
    }
    Ok(out)
}

pub(super) fn attention(at: &Attention<'_>) -> Result<Array, RefError> {
    let ([batch, heads, queries, dim], [_, groups, keys, _]) = (at.q.four()?, at.k.four()?);
    let width = at.v.four()?[3];
    if groups == 0 || heads % groups != 0 || at.v.extent(2) != keys || at.k.extent(3) != dim {
        return Err(RefError::new(format!("attention of {:?}, {:?}, {:?}", at.q.shape, at.k.shape, at.v.shape)));
    }
    let scores = [batch, heads, queries, keys];
    let of = |x: Option<&Array>| x.map(|x| broadcast_strides(&x.shape, &scores)).transpose();
    let (mask_at, bias_at) = (of(at.mask)?, of(at.bias)?);
    let spot = |s: &[usize], c: [usize; 4]| s.iter().zip(c).map(|(s, c)| s * c).sum::<usize>();
    let (count, columns) = at.parts.map_or((1, width), |n| (n, width + 2));
    let mut out = Array::full(&[count * batch, heads, queries, columns], 0.0)?;
    for (of, h, s) in coords(count * batch, heads, queries) {
        let b = of / count.max(1);
        let own = at.parts.map(|n| part((of % n.max(1), n), (queries, keys), at.offset, at.attrs.window));
        let g = b * groups + h / (heads / groups);
        let q0 = ((b * heads + h) * queries + s) * dim;
        let mut row: Vec<(usize, f64)> = Vec::new();
        for t in 0..keys {
            let last = at.offset.map(|o| s as i64 + o);
            let past = last.is_some_and(|l| t as i64 > l);
            let old = last.zip(at.attrs.window).is_some_and(|(l, w)| t as i64 <= l - w as i64);
            let hidden = at.mask.zip(mask_at.as_deref()).is_some_and(|(m, st)| m.at(spot(st, [b, h, s, t])) == 0.0);
            let elsewhere = own.as_ref().is_some_and(|own| !own.contains(&t));
            if past || old || hidden || elsewhere {
                continue;
            }
            let k0 = (g * keys + t) * dim;
            let dot: f64 = (0..dim).map(|d| at.q.at(q0 + d) * at.k.at(k0 + d)).sum();
            let mut score = dot * f64::from(at.attrs.scale.0);
            if let Some(c) = at.attrs.softcap {
                let c = f64::from(c.0);
                score = c * (score / c).tanh();
            }
            score += at.bias.zip(bias_at.as_deref()).map_or(0.0, |(x, st)| x.at(spot(st, [b, h, s, t])));
            row.push((t, score));
        }
        let max = row.iter().map(|(_, v)| *v).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|(_, v)| (v - max).exp()).sum();
        let o0 = ((of * heads + h) * queries + s) * columns;
        if at.parts.is_some() {
            (out.data[o0 + width], out.data[o0 + width + 1]) = (max.max(-1e30), sum);
        }
        let total = if at.parts.is_some() { 1.0 } else { sum };
        for (t, v) in row {
            let p = (v - max).exp() / total;
            for e in 0..width {
                out.data[o0 + e] += p * at.v.at((g * keys + t) * width + e);
            }
        }
    }
    Ok(out)
}

fn coords(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |x| (0..b).flat_map(move |y| (0..c).map(move |z| (x, y, z))))
}
