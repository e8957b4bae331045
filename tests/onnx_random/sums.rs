//! Operators that add up: reductions, products, windows and norms.

use crate::array::{Answer, Nd, axis, broadcast, indices, with};
use crate::attributes::Attributes;
use crate::onnx_file::Element::Float;

/// The answer of an operator of this kind; nothing for others.
pub fn apply(op: &str, a: &Attributes, x: &[Option<&Nd>]) -> Answer {
    let first = x[0]?;
    let given = |n: usize| x.get(n).copied().flatten();
    match op {
        _ if op.starts_with("Reduce") => reduce(op, a, first, given(1)),
        "CumSum" => {
            let along = axis(x[1]?.data[0] as i64, first.rank());
            let (is_exclusive, is_reverse) = (a.int("exclusive", 0) == 1, a.int("reverse", 0) == 1);
            Some(Nd::build(first.kind, &first.shape, |i| {
                let counts = |k: &usize| {
                    let (k, here) = if is_reverse { (i[along], *k) } else { (*k, i[along]) };
                    k < here || (k == here && !is_exclusive)
                };
                (0..first.shape[along]).filter(counts).map(|k| first.at(&with(i, along, k))).sum()
            }))
        }
        "Softmax" | "LogSoftmax" => {
            let along = axis(a.int("axis", -1), first.rank());
            Some(Nd::build(Float, &first.shape, |i| {
                let line = (0..first.shape[along]).map(|k| first.at(&with(i, along, k)));
                let largest = line.clone().fold(f64::NEG_INFINITY, f64::max);
                let log = first.at(i) - largest - line.map(|v| (v - largest).exp()).sum::<f64>().ln();
                if op == "Softmax" { log.exp() } else { log }
            }))
        }
        "MatMul" => matmul(first, x[1]?),
        "Gemm" => {
            let (b, c) = (x[1]?, given(2));
            let turned = |m: &Nd, t: bool| if t { transposed(m) } else { m.clone() };
            let (l, r) = (turned(first, a.int("transA", 0) == 1), turned(b, a.int("transB", 0) == 1));
            let mut out = matmul(&l, &r)?;
            let (alpha, beta) = (f64::from(a.float("alpha", 1.0)), f64::from(a.float("beta", 1.0)));
            out.data.iter_mut().for_each(|v| *v *= alpha);
            let Some(c) = c else { return Some(out) };
            (broadcast(&[&out.shape, &c.shape])? == out.shape).then_some(())?;
            Some(Nd::build(Float, &out.shape, |i| out.at(i) + beta * c.stretched(i)))
        }
        "Einsum" => einsum(a.text("equation", ""), x),
        "Conv" => conv(a, first, x[1]?, given(2)),
        "MaxPool" | "AveragePool" => pool(op, a, first),
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let mut shape = first.shape.clone();
            shape[2..].fill(1);
            Some(Nd::build(Float, &shape, |i| {
                let all = indices(&first.shape[2..]).map(|k| first.at(&[&i[..2], &k].concat()));
                if op == "GlobalMaxPool" {
                    all.fold(f64::NEG_INFINITY, f64::max)
                } else {
                    all.sum::<f64>() / first.shape[2..].iter().product::<usize>() as f64
                }
            }))
        }
        _ => norm(op, a, first, x),
    }
}

fn transposed(m: &Nd) -> Nd {
    Nd::build(m.kind, &[m.shape[1], m.shape[0]], |i| m.at(&[i[1], i[0]]))
}

fn reduce(op: &str, a: &Attributes, x: &Nd, axes: Option<&Nd>) -> Answer {
    let rank = x.rank();
    let axes: Vec<usize> = match axes {
        Some(l) => l.ints().iter().map(|v| axis(*v, rank)).collect(),
        None => (0..rank).collect(),
    };
    let kept: Vec<usize> = (0..rank).map(|i| if axes.contains(&i) { 1 } else { x.shape[i] }).collect();
    let inner: Vec<usize> = axes.iter().map(|i| x.shape[*i]).collect();
    let count = inner.iter().product::<usize>() as f64;
    let mut out = Nd::try_build(x.kind, &kept, |i| {
        let line: Vec<f64> = indices(&inner)
            .map(|k| {
                let mut at = i.to_vec();
                axes.iter().zip(k).for_each(|(a, k)| at[*a] = k);
                x.at(&at)
            })
            .collect();
        let sum = |f: fn(f64) -> f64| line.iter().map(|v| f(*v)).sum::<f64>();
        Some(match op {
            "ReduceSum" => sum(|v| v),
            "ReduceMean" if x.is_float() => sum(|v| v) / count,
            "ReduceMax" => line.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            "ReduceMin" => line.iter().copied().fold(f64::INFINITY, f64::min),
            "ReduceProd" => line.iter().product(),
            "ReduceL1" => sum(f64::abs),
            "ReduceL2" if x.is_float() => sum(|v| v * v).sqrt(),
            "ReduceSumSquare" => sum(|v| v * v),
            "ReduceLogSumExp" if x.is_float() => sum(f64::exp).ln(),
            "ReduceLogSum" if x.is_float() && sum(|v| v) > 0.2 => sum(|v| v).ln(),
            _ => return None,
        })
    })?;
    if a.int("keepdims", 1) == 0 {
        out.shape = (0..rank).filter(|i| !axes.contains(i)).map(|i| x.shape[i]).collect();
    }
    Some(out)
}

fn matmul(l: &Nd, r: &Nd) -> Answer {
    if l.rank() < 2 || r.rank() < 2 {
        return None;
    }
    let (outer_l, inner_l) = l.shape.split_at(l.rank() - 2);
    let (outer_r, inner_r) = r.shape.split_at(r.rank() - 2);
    if inner_l[1] != inner_r[0] {
        return None;
    }
    let outer = broadcast(&[outer_l, outer_r])?;
    let shape = [outer.as_slice(), &[inner_l[0], inner_r[1]]].concat();
    let own = |i: &[usize], outer: &[usize], row: usize, column: usize| {
        let skipped = i.len() - 2 - outer.len();
        let mut at: Vec<usize> =
            i[skipped..i.len() - 2].iter().zip(outer).map(|(i, n)| if *n == 1 { 0 } else { *i }).collect();
        at.extend([row, column]);
        at
    };
    Some(Nd::build(Float, &shape, |i| {
        let (row, column) = (i[i.len() - 2], i[i.len() - 1]);
        (0..inner_l[1]).map(|k| l.at(&own(i, outer_l, row, k)) * r.at(&own(i, outer_r, k, column))).sum()
    }))
}

fn einsum(equation: &str, x: &[Option<&Nd>]) -> Answer {
    let (terms, out) = equation.split_once("->")?;
    let terms: Vec<&[u8]> = terms.split(',').map(str::as_bytes).collect();
    let mut sizes = [0usize; 128];
    for (t, v) in terms.iter().zip(x) {
        let v = (*v)?;
        if t.len() != v.rank() {
            return None;
        }
        for (letter, n) in t.iter().zip(&v.shape) {
            let old = std::mem::replace(&mut sizes[usize::from(*letter)], *n);
            if old != 0 && old != *n {
                return None;
            }
        }
    }
    let out = out.as_bytes();
    let mut inner: Vec<u8> = terms.concat().into_iter().filter(|l| !out.contains(l)).collect();
    inner.sort_unstable();
    inner.dedup();
    let extents = |letters: &[u8]| letters.iter().map(|l| sizes[usize::from(*l)]).collect::<Vec<_>>();
    Some(Nd::build(Float, &extents(out), |i| {
        let product = |k: Vec<usize>| -> f64 {
            let mut place = [0usize; 128];
            out.iter().zip(i).chain(inner.iter().zip(&k)).for_each(|(l, v)| place[usize::from(*l)] = *v);
            let factor = |(t, v): (&&[u8], &Option<&Nd>)| {
                v.map_or(0.0, |v| v.at(&t.iter().map(|l| place[usize::from(*l)]).collect::<Vec<_>>()))
            };
            terms.iter().zip(x).map(factor).product()
        };
        indices(&extents(&inner)).map(product).sum()
    }))
}

/// The attributes of windows over spatial axes.
struct Windows {
    kernel: Vec<usize>,
    stride: Vec<i64>,
    dilation: Vec<i64>,
    before: Vec<i64>,
    shape: Vec<usize>,
}

impl Windows {
    fn new(a: &Attributes, kernel: &[usize], spatial: &[usize]) -> Option<Windows> {
        let rank = kernel.len();
        let list = |name: &str, n: usize, default: i64| a.ints(name).unwrap_or(vec![default; n]);
        let (stride, dilation) = (list("strides", rank, 1), list("dilations", rank, 1));
        let pads = list("pads", 2 * rank, 0);
        let extent = |i: usize| {
            let span = dilation[i] * (kernel[i] as i64 - 1) + 1;
            let room = spatial[i] as i64 + pads[i] + pads[rank + i] - span;
            (room >= 0).then(|| (room / stride[i] + 1) as usize)
        };
        let shape = (0..rank).map(extent).collect::<Option<_>>()?;
        Some(Windows { kernel: kernel.to_vec(), stride, dilation, before: pads[..rank].to_vec(), shape })
    }
    /// For each tap of the window at a place, its index in the kernel and where it lies, if it is inside.
    fn taps(&self, at: &[usize], spatial: &[usize]) -> Vec<(Vec<usize>, Vec<usize>)> {
        let inside = |tap: Vec<usize>| {
            let place = |k: usize| {
                let p = at[k] as i64 * self.stride[k] + tap[k] as i64 * self.dilation[k] - self.before[k];
                usize::try_from(p).ok().filter(|p| *p < spatial[k])
            };
            let from = (0..tap.len()).map(place).collect::<Option<Vec<_>>>()?;
            Some((tap, from))
        };
        indices(&self.kernel).filter_map(inside).collect()
    }
}

fn conv(a: &Attributes, x: &Nd, w: &Nd, bias: Option<&Nd>) -> Answer {
    let groups = a.int("group", 1) as usize;
    if x.rank() != w.rank() || x.shape[1] != w.shape[1] * groups || !w.shape[0].is_multiple_of(groups) {
        return None;
    }
    let spatial = &x.shape[2..];
    let windows = Windows::new(a, &w.shape[2..], spatial)?;
    let per_group = w.shape[0] / groups;
    let shape = [&[x.shape[0], w.shape[0]], windows.shape.as_slice()].concat();
    Some(Nd::build(Float, &shape, |i| {
        let from = i[1] / per_group * w.shape[1];
        let mut sum = bias.map_or(0.0, |b| b.data[i[1]]);
        for (tap, place) in windows.taps(&i[2..], spatial) {
            for c in 0..w.shape[1] {
                sum += w.at(&[&[i[1], c], tap.as_slice()].concat())
                    * x.at(&[&[i[0], from + c], place.as_slice()].concat());
            }
        }
        sum
    }))
}

fn pool(op: &str, a: &Attributes, x: &Nd) -> Answer {
    let kernel: Vec<usize> = a.ints("kernel_shape")?.iter().map(|v| *v as usize).collect();
    let spatial = &x.shape[2..];
    let windows = Windows::new(a, &kernel, spatial)?;
    let shape = [&x.shape[..2], windows.shape.as_slice()].concat();
    Nd::try_build(Float, &shape, |i| {
        let taps = windows.taps(&i[2..], spatial);
        let values = taps.iter().map(|(_, place)| x.at(&[&i[..2], place.as_slice()].concat()));
        let count = if a.int("count_include_pad", 0) == 1 { kernel.iter().product() } else { taps.len() };
        (!taps.is_empty()).then(|| match op {
            "MaxPool" => values.fold(f64::NEG_INFINITY, f64::max),
            _ => values.sum::<f64>() / count as f64,
        })
    })
}

/// Mean and variance of elements; nothing for elements so alike that their differences are rounding.
fn moments(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let values: Vec<f64> = values.collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    (variance > 1e-3 * mean * mean + 1e-4).then_some((mean, variance))
}

fn norm(op: &str, a: &Attributes, x: &Nd, operands: &[Option<&Nd>]) -> Answer {
    let given = |n: usize| operands.get(n).copied().flatten();
    let epsilon = f64::from(a.float("epsilon", 1e-5));
    let (scale, bias) = (given(1)?, given(2));
    match op {
        "LayerNormalization" | "RMSNormalization" => {
            let from = axis(a.int("axis", -1), x.rank());
            (broadcast(&[&x.shape[from..], &scale.shape])? == x.shape[from..]).then_some(())?;
            Nd::try_build(Float, &x.shape, |i| {
                let (head, tail) = i.split_at(from);
                let row = indices(&x.shape[from..]).map(|k| x.at(&[head, &k].concat()));
                let (mean, variance) = if op == "RMSNormalization" {
                    (0.0, row.map(|v| v * v).sum::<f64>() / x.shape[from..].iter().product::<usize>() as f64)
                } else {
                    moments(row)?
                };
                let normal = (x.at(i) - mean) / (variance + epsilon).sqrt();
                Some(normal * scale.stretched(tail) + bias.map_or(0.0, |b| b.stretched(tail)))
            })
        }
        "BatchNormalization" => {
            let (bias, mean, variance) = (bias?, given(3)?, given(4)?);
            Some(Nd::build(Float, &x.shape, |i| {
                let c = i[1];
                (x.at(i) - mean.data[c]) / (variance.data[c] + epsilon).sqrt() * scale.data[c] + bias.data[c]
            }))
        }
        "InstanceNormalization" | "GroupNormalization" => {
            let bias = bias?;
            let channels = x.shape[1];
            let groups = if op == "GroupNormalization" { a.int("num_groups", 1) as usize } else { channels };
            let size = channels / groups;
            let inner = [&[size], &x.shape[2..]].concat();
            Nd::try_build(Float, &x.shape, |i| {
                let first = i[1] / size * size;
                let all = indices(&inner).map(|k| x.at(&[&[i[0], first + k[0]], &k[1..]].concat()));
                let (mean, variance) = moments(all)?;
                Some((x.at(i) - mean) / (variance + epsilon).sqrt() * scale.data[i[1]] + bias.data[i[1]])
            })
        }
        _ => None,
    }
}
