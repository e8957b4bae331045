//! Operators that move elements, and those that make them from extents.

use crate::array::{Answer, Nd, axis, broadcast, with};
use crate::attributes::Attributes;
use crate::elementwise::is_clear;
use crate::onnx_file::Element::{Float, Int64};

/// The answers of an operator of this kind; nothing for others.
pub fn apply(op: &str, a: &Attributes, x: &[Option<&Nd>]) -> Option<Vec<Nd>> {
    let first = x[0]?;
    let rank = first.rank();
    let list = |n: usize| x.get(n).copied().flatten().map(Nd::ints);
    let along = axis(a.int("axis", 0), rank.max(1));
    let one = match op {
        "Transpose" => {
            let perm: Vec<usize> = match a.ints("perm") {
                Some(p) => p.iter().map(|v| *v as usize).collect(),
                None => (0..rank).rev().collect(),
            };
            let shape: Vec<usize> = perm.iter().map(|p| first.shape[*p]).collect();
            Nd::build(first.kind, &shape, |i| {
                let mut from = vec![0; rank];
                perm.iter().zip(i).for_each(|(p, i)| from[*p] = *i);
                first.at(&from)
            })
        }
        "Reshape" => reshaped(first, &list(1)?)?,
        "Flatten" => {
            let cut = axis(a.int("axis", 1), rank);
            let (head, tail) = first.shape.split_at(cut);
            Nd::new(first.kind, &[head.iter().product(), tail.iter().product()], first.data.clone())
        }
        "Squeeze" => {
            let axes: Vec<usize> = match list(1) {
                Some(l) => l.iter().map(|v| axis(*v, rank)).collect(),
                None => (0..rank).filter(|i| first.shape[*i] == 1).collect(),
            };
            if axes.iter().any(|i| first.shape[*i] != 1) {
                return None;
            }
            let shape: Vec<usize> = (0..rank).filter(|i| !axes.contains(i)).map(|i| first.shape[i]).collect();
            Nd::new(first.kind, &shape, first.data.clone())
        }
        "Unsqueeze" => {
            let axes = list(1)?;
            let out = rank + axes.len();
            let axes: Vec<usize> = axes.iter().map(|v| axis(*v, out)).collect();
            let mut old = first.shape.iter();
            let shape: Option<Vec<usize>> =
                (0..out).map(|i| if axes.contains(&i) { Some(1) } else { old.next().copied() }).collect();
            Nd::new(first.kind, &shape?, first.data.clone())
        }
        "Expand" => {
            let want: Vec<usize> = list(1)?.iter().map(|v| *v as usize).collect();
            let shape = broadcast(&[&first.shape, &want])?;
            Nd::build(first.kind, &shape, |i| first.stretched(i))
        }
        "Concat" => {
            let parts: Vec<&Nd> = x.iter().copied().collect::<Option<_>>()?;
            let mut shape = first.shape.clone();
            let others = |s: &[usize]| with(s, along, 0);
            if parts.iter().any(|p| p.rank() != rank || others(&p.shape) != others(&shape)) {
                return None;
            }
            shape[along] = parts.iter().map(|p| p.shape[along]).sum();
            Nd::build(first.kind, &shape, |i| {
                let mut at = i[along];
                let part = parts.iter().find(|p| {
                    let is_here = at < p.shape[along];
                    at -= if is_here { 0 } else { p.shape[along] };
                    is_here
                });
                part.unwrap().at(&with(i, along, at))
            })
        }
        "Split" => {
            let extent = first.shape[along];
            let sizes: Vec<usize> = match list(1) {
                Some(l) => l.iter().map(|v| *v as usize).collect(),
                None => {
                    let n = a.int("num_outputs", 2) as usize;
                    let size = extent.div_ceil(n);
                    (0..n).map(|i| size.min(extent.saturating_sub(i * size))).collect()
                }
            };
            if sizes.iter().sum::<usize>() != extent || sizes.contains(&0) {
                return None;
            }
            let mut from = 0;
            let part = |size: &usize| {
                let mut shape = first.shape.clone();
                shape[along] = *size;
                let start = from;
                from += size;
                Nd::build(first.kind, &shape, |i| first.at(&with(i, along, start + i[along])))
            };
            return Some(sizes.iter().map(part).collect());
        }
        "Slice" => slice(first, &list(1)?, &list(2)?, &list(3)?, &list(4)?)?,
        "Gather" => {
            let index = x[1]?;
            let shape = [&first.shape[..along], &index.shape, &first.shape[along + 1..]].concat();
            let n = first.shape[along] as i64;
            Nd::try_build(first.kind, &shape, |i| {
                let which = index.at(&i[along..along + index.rank()]) as i64;
                let which = if which < 0 { which + n } else { which };
                let from = [
                    &i[..along],
                    &[usize::try_from(which).ok().filter(|w| (*w as i64) < n)?],
                    &i[along + index.rank()..],
                ];
                Some(first.at(&from.concat()))
            })?
        }
        "GatherElements" => {
            let index = x[1]?;
            let n = first.shape[along] as i64;
            Nd::try_build(first.kind, &index.shape, |i| {
                let which = index.at(i) as i64;
                let which =
                    usize::try_from(if which < 0 { which + n } else { which }).ok().filter(|w| (*w as i64) < n)?;
                Some(first.at(&with(i, along, which)))
            })?
        }
        "Pad" => {
            pad(first, &list(1)?, a.text("mode", "constant"), x.get(2).copied().flatten().map_or(0.0, |v| v.data[0]))?
        }
        "Tile" => {
            let times = list(1)?;
            let shape: Vec<usize> = first.shape.iter().zip(&times).map(|(n, t)| n * *t as usize).collect();
            Nd::build(first.kind, &shape, |i| {
                let from: Vec<usize> = i.iter().zip(&first.shape).map(|(i, n)| i % n).collect();
                first.at(&from)
            })
        }
        "Shape" => {
            let dims: Vec<f64> = first.shape.iter().map(|n| *n as f64).collect();
            Nd::new(Int64, &[rank], dims)
        }
        "Size" => Nd::new(Int64, &[], vec![first.data.len() as f64]),
        "ConstantOfShape" => {
            let shape: Vec<usize> = first.ints().iter().map(|v| *v as usize).collect();
            Nd::build(Float, &shape, |_| 0.0)
        }
        "Range" => {
            let (start, limit, step) = (first.data[0], x[1]?.data[0], x[2]?.data[0]);
            let n = ((limit - start) / step).ceil().max(0.0) as usize;
            Nd::build(first.kind, &[n], |i| start + i[0] as f64 * step)
        }
        "Trilu" => {
            let k = x.get(1).copied().flatten().map_or(0.0, |v| v.data[0]) as i64;
            let is_upper = a.int("upper", 1) == 1;
            Nd::build(first.kind, &first.shape, |i| {
                let d = i[rank - 1] as i64 - i[rank - 2] as i64;
                if (is_upper && d >= k) || (!is_upper && d <= k) { first.at(i) } else { 0.0 }
            })
        }
        "OneHot" => {
            let (depth, values) = (x[1]?.data[0], x[2]?);
            let at = axis(a.int("axis", -1), rank + 1);
            let mut shape = first.shape.clone();
            shape.insert(at, depth as usize);
            Nd::build(values.kind, &shape, |i| {
                let mut rest = i.to_vec();
                let here = rest.remove(at) as f64;
                let v = first.at(&rest);
                values.data[usize::from(v == here || v + depth == here)]
            })
        }
        "DepthToSpace" => {
            let b = a.int("blocksize", 1) as usize;
            let &[n, c, h, w] = first.shape.as_slice() else { return None };
            let channels = c / (b * b);
            Nd::build(first.kind, &[n, channels, h * b, w * b], |i| {
                let (dy, dx) = (i[2] % b, i[3] % b);
                let from = if a.text("mode", "DCR") == "CRD" {
                    i[1] * b * b + dy * b + dx
                } else {
                    (dy * b + dx) * channels + i[1]
                };
                first.at(&[i[0], from, i[2] / b, i[3] / b])
            })
        }
        "SpaceToDepth" => {
            let b = a.int("blocksize", 1) as usize;
            let &[n, c, h, w] = first.shape.as_slice() else { return None };
            if h % b != 0 || w % b != 0 {
                return None;
            }
            Nd::build(first.kind, &[n, c * b * b, h / b, w / b], |i| {
                let (block, channel) = (i[1] / c, i[1] % c);
                first.at(&[i[0], channel, i[2] * b + block / b, i[3] * b + block % b])
            })
        }
        "ArgMax" | "ArgMin" => {
            let sign = if op == "ArgMax" { 1.0 } else { -1.0 };
            let order = orders(first, along, sign)?;
            let mut out = Nd::build(Int64, &with(&first.shape, along, 1), |i| order(i)[0] as f64);
            if a.int("keepdims", 1) == 0 {
                out.shape.remove(along);
            }
            out
        }
        "TopK" => {
            let along = axis(a.int("axis", -1), rank);
            let k = x[1]?.data[0] as usize;
            if k > first.shape[along] {
                return None;
            }
            let order = orders(first, along, if a.int("largest", 1) == 1 { 1.0 } else { -1.0 })?;
            let shape = with(&first.shape, along, k);
            let values = Nd::build(first.kind, &shape, |i| first.at(&with(i, along, order(i)[i[along]])));
            return Some(vec![values, Nd::build(Int64, &shape, |i| order(i)[i[along]] as f64)]);
        }
        _ => return None,
    };
    Some(vec![one])
}

/// The places of a line's elements, the largest (times `sign`) first; the lower place first among equal integers.
fn orders(x: &Nd, along: usize, sign: f64) -> Option<impl Fn(&[usize]) -> Vec<usize>> {
    let order = move |i: &[usize]| {
        let value = |k: usize| sign * x.at(&with(i, along, k));
        let mut all: Vec<usize> = (0..x.shape[along]).collect();
        all.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        all
    };
    let is_ordered = |i: Vec<usize>| {
        let value = |k: usize| x.at(&with(&i, along, k));
        order(&i).windows(2).all(|w| is_clear(value(w[0]), value(w[1])))
    };
    (!x.is_float() || crate::array::indices(&with(&x.shape, along, 1)).all(is_ordered)).then_some(order)
}

fn reshaped(x: &Nd, target: &[i64]) -> Answer {
    let copied = |i: usize, t: i64| if t == 0 { x.shape.get(i).map(|n| *n as i64) } else { Some(t) };
    let dims: Vec<i64> = target.iter().enumerate().map(|(i, t)| copied(i, *t)).collect::<Option<_>>()?;
    let known: i64 = dims.iter().filter(|d| **d > 0).product();
    let count = x.data.len() as i64;
    let shape: Vec<usize> = dims.iter().map(|d| if *d < 0 { count / known } else { *d } as usize).collect();
    (shape.iter().product::<usize>() == x.data.len()).then(|| Nd::new(x.kind, &shape, x.data.clone()))
}

fn slice(x: &Nd, starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) -> Answer {
    let mut ranges: Vec<(i64, i64, i64)> = x.shape.iter().map(|n| (0, *n as i64, 1)).collect();
    for (((s, e), a), step) in starts.iter().zip(ends).zip(axes).zip(steps) {
        let at = axis(*a, x.rank());
        let n = x.shape[at] as i64;
        let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
        ranges[at] = if *step > 0 {
            (wrap(*s).clamp(0, n), wrap(*e).clamp(0, n), *step)
        } else {
            (wrap(*s).clamp(0, n - 1), wrap(*e).clamp(-1, n - 1), *step)
        };
    }
    let count = |&(s, e, step): &(i64, i64, i64)| {
        let span = if step > 0 { e - s } else { s - e };
        (span.max(0) as usize).div_ceil(step.unsigned_abs() as usize)
    };
    let shape: Vec<usize> = ranges.iter().map(count).collect();
    let from =
        |i: &[usize]| -> Vec<usize> { i.iter().zip(&ranges).map(|(i, r)| (r.0 + *i as i64 * r.2) as usize).collect() };
    (!shape.contains(&0)).then(|| Nd::build(x.kind, &shape, |i| x.at(&from(i))))
}

fn pad(x: &Nd, pads: &[i64], mode: &str, fill: f64) -> Answer {
    let rank = x.rank();
    let shape: Vec<i64> = (0..rank).map(|i| x.shape[i] as i64 + pads[i] + pads[rank + i]).collect();
    if shape.iter().any(|n| *n <= 0) {
        return None;
    }
    let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
    Nd::try_build(x.kind, &shape, |i| {
        let mut from = Vec::new();
        for (k, at) in i.iter().enumerate() {
            let (at, n) = (*at as i64 - pads[k], x.shape[k] as i64);
            let inside = match mode {
                "edge" => at.clamp(0, n - 1),
                "reflect" if at < 0 => -at,
                "reflect" if at >= n => 2 * n - 2 - at,
                _ => at,
            };
            if !(0..n).contains(&inside) {
                return (mode == "constant").then_some(fill);
            }
            from.push(inside as usize);
        }
        Some(x.at(&from))
    })
}
