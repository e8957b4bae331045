//! Calls of operators that move elements, and of shape arithmetic.

use super::{an_axis, any, fixed_axis, float, of_kind, place, value};
use crate::graph::Graph;
use crate::onnx_file::Attribute::{Int, Ints, Text};
use crate::onnx_file::Element;

pub fn turn(g: &mut Graph) -> Option<()> {
    let x = any(g, 2)?;
    let mut perm: Vec<i64> = (0..g.values[x].rank() as i64).collect();
    for i in (1..perm.len()).rev() {
        let j = g.below(i + 1);
        perm.swap(i, j);
    }
    let given = [("perm", Ints(perm))];
    let attributes = if g.below(4) == 0 { &[] } else { &given[..] };
    g.one_of("Transpose", attributes, &[x]).map(drop)
}

pub fn reshape(g: &mut Graph) -> Option<()> {
    let x = any(g, 1)?;
    let rank = g.values[x].rank();
    match g.below(6) {
        0 => {
            let a = g.below(rank + 1) as i64;
            g.one_of("Flatten", &[("axis", Int(a))], &[x]).map(drop)
        }
        1 if rank < 4 => {
            let at = g.below(rank + 1) as i64;
            let at = if g.coin() { at } else { at - rank as i64 - 1 };
            let axes = g.list(&[at]);
            g.one_of("Unsqueeze", &[], &[x, axes]).map(drop)
        }
        2 => {
            let at = an_axis(g, x);
            let axes = g.list(&[at]);
            g.one_of("Squeeze", &[], &[x, axes]).map(drop)
        }
        // The last axis is split in two, its extents read from the value itself.
        3 if rank < 4 => {
            let last = g.values[x].fixed(rank - 1)?;
            let factors: Vec<usize> = (1..=last).filter(|n| last % n == 0).collect();
            let inner = g.one(&factors);
            let all = g.one_of("Shape", &[], &[x])?;
            let (start, end) = (g.list(&[0]), g.list(&[rank as i64 - 1]));
            let (axes, steps) = (g.list(&[0]), g.list(&[1]));
            let target = g.list(&[(last / inner) as i64, inner as i64]);
            let target = if rank == 1 {
                target
            } else {
                let head = g.one_of("Slice", &[], &[all, start, end, axes, steps])?;
                g.one_of("Concat", &[("axis", Int(0))], &[head, target])?
            };
            g.one_of("Reshape", &[], &[x, target]).map(drop)
        }
        // The first two axes become one, by a product of extents.
        4 if rank > 2 => {
            let all = g.one_of("Shape", &[], &[x])?;
            let (zero, one) = (g.whole(&[], &[0]), g.whole(&[], &[1]));
            let a = g.one_of("Gather", &[("axis", Int(0))], &[all, zero])?;
            let b = g.one_of("Gather", &[("axis", Int(0))], &[all, one])?;
            let both = g.one_of("Mul", &[], &[a, b])?;
            let axes = g.list(&[0]);
            let both = g.one_of("Unsqueeze", &[], &[both, axes])?;
            let (start, end, steps) = (g.list(&[2]), g.list(&[rank as i64]), g.list(&[1]));
            let tail = g.one_of("Slice", &[], &[all, start, end, axes, steps])?;
            let target = g.one_of("Concat", &[("axis", Int(0))], &[both, tail])?;
            g.one_of("Reshape", &[], &[x, target]).map(drop)
        }
        _ => {
            let kept = g.below(rank);
            let mut target = vec![0; kept];
            target.push(-1);
            let fixed = g.values[x].fixed(rank - 1);
            if let (true, Some(n)) = (g.coin() && kept + 1 < rank, fixed) {
                target.push(n as i64);
            }
            let target = g.list(&target);
            g.one_of("Reshape", &[], &[x, target]).map(drop)
        }
    }
}

pub fn join(g: &mut Graph) -> Option<()> {
    let x = any(g, 1)?;
    let (kind, rank) = (g.values[x].kind(), g.values[x].rank());
    let a = an_axis(g, x);
    let at = place(g, x, a);
    let other = if kind == Element::Float && g.coin() && g.values[x].is_fixed() {
        let mut shape = g.values[x].shapes()[0].to_vec();
        shape[at] = 1 + g.below(3);
        g.weight(&shape)
    } else {
        value(g, |g, i| {
            let (v, x) = (&g.values[i], &g.values[x]);
            let fits = |b: usize| (0..rank).all(|k| k == at || v.shapes()[b][k] == x.shapes()[b][k]);
            v.kind() == kind && v.rank() == rank && fits(0) && fits(1)
        })?
    };
    let parts = if g.coin() { vec![x, other] } else { vec![other, x, x] };
    g.one_of("Concat", &[("axis", Int(a))], &parts).map(drop)
}

pub fn cut(g: &mut Graph) -> Option<()> {
    let x = any(g, 1)?;
    if g.below(3) == 0 {
        let (a, extent) = fixed_axis(g, x)?;
        let along = ("axis", Int(a));
        if extent < 2 {
            return None;
        }
        let first = 1 + g.below(extent - 1);
        let sizes = g.list(&[first as i64, (extent - first) as i64]);
        return if g.coin() {
            g.call("Split", &[along], &[Some(x), Some(sizes)]).map(drop)
        } else {
            g.call("Split", &[along, ("num_outputs", Int(2))], &[Some(x)]).map(drop)
        };
    }
    let a = an_axis(g, x);
    let (start, end, step) = g.one(&[
        (0, i64::MAX, 1),
        (1, i64::MAX, 1),
        (0, -1, 1),
        (-2, i64::MAX, 1),
        (0, 2, 1),
        (0, i64::MAX, 2),
        (1, 1000, 2),
        (-1, i64::MIN, -1),
        (i64::MAX, -3, -1),
    ]);
    let (s, e, at, by) = (g.list(&[start]), g.list(&[end]), g.list(&[a]), g.list(&[step]));
    g.one_of("Slice", &[], &[x, s, e, at, by]).map(drop)
}

pub fn pick(g: &mut Graph) -> Option<()> {
    let x = any(g, 1)?;
    let (a, extent) = fixed_axis(g, x)?;
    let along = [("axis", Int(a))];
    if g.below(3) == 0 {
        let rank = g.values[x].rank();
        let shape = (0..rank).map(|k| g.values[x].fixed(k)).collect::<Option<Vec<_>>>()?;
        let count: usize = shape.iter().product();
        let which: Vec<i64> = (0..count).map(|_| g.below(2 * extent) as i64 - extent as i64).collect();
        let index = g.whole(&shape, &which);
        return g.one_of("GatherElements", &along, &[x, index]).map(drop);
    }
    let index = if g.coin() {
        of_kind(g, Element::Int64, 0)?
    } else {
        let shape = g.one(&[&[][..], &[3], &[2, 2]]);
        let which: Vec<i64> = (0..shape.iter().product()).map(|_| g.below(2 * extent) as i64 - extent as i64).collect();
        g.whole(shape, &which)
    };
    g.one_of("Gather", &along, &[x, index]).map(drop)
}

pub fn pad(g: &mut Graph) -> Option<()> {
    let x = float(g, 1)?;
    let rank = g.values[x].rank();
    let mode = g.one(&["constant", "edge", "reflect"]);
    let low = if mode == "constant" { -1 } else { 0 };
    let pads: Vec<i64> = (0..2 * rank).map(|_| low + g.below(3) as i64).collect();
    let pads = g.list(&pads);
    let fill = (mode == "constant" && g.coin()).then(|| g.number(0.75));
    g.call("Pad", &[("mode", Text(mode))], &[Some(x), Some(pads), fill]).map(drop)
}

pub fn stretch(g: &mut Graph) -> Option<()> {
    let x = any(g, 1)?;
    match g.below(3) {
        0 => {
            let times: Vec<i64> = (0..g.values[x].rank()).map(|_| 1 + g.below(2) as i64).collect();
            let times = g.list(&times);
            g.one_of("Tile", &[], &[x, times]).map(drop)
        }
        1 => {
            let other = any(g, 1)?;
            let target = g.one_of("Shape", &[], &[other])?;
            g.one_of("Expand", &[], &[x, target]).map(drop)
        }
        _ => {
            let lead = 1 + g.below(3) as i64;
            let mut target = vec![lead];
            target.extend(vec![1; g.values[x].rank()]);
            let target = g.list(&target);
            g.one_of("Expand", &[], &[x, target]).map(drop)
        }
    }
}

/// Values made of extents alone.
pub fn from_extents(g: &mut Graph) -> Option<()> {
    let x = any(g, 1)?;
    let a = an_axis(g, x);
    let all = g.one_of("Shape", &[], &[x])?;
    match g.below(3) {
        0 => g.one_of("ConstantOfShape", &[], &[all]).map(drop),
        1 => {
            let at = g.whole(&[], &[a]);
            let extent = g.one_of("Gather", &[("axis", Int(0))], &[all, at])?;
            let (start, step) = (g.whole(&[], &[0]), g.whole(&[], &[1]));
            let steps = g.one_of("Range", &[], &[start, extent, step])?;
            g.one_of("Cast", &[("to", Int(Element::Float as i64))], &[steps]).map(drop)
        }
        _ => {
            let count = g.one_of("Size", &[], &[x])?;
            g.one_of("Cast", &[("to", Int(Element::Float as i64))], &[count]).map(drop)
        }
    }
}

pub fn order(g: &mut Graph) -> Option<()> {
    let x = float(g, 1)?;
    let a = an_axis(g, x);
    let op = g.one(&["ArgMax", "ArgMin", "TopK", "OneHot"]);
    match op {
        "TopK" => {
            let extent = g.values[x].fixed(place(g, x, a))?;
            let k = 1 + g.below(extent) as i64;
            let k = g.list(&[k]);
            let largest = g.below(2) as i64;
            g.call("TopK", &[("axis", Int(a)), ("largest", Int(largest))], &[Some(x), Some(k)]).map(drop)
        }
        "OneHot" => {
            let index = of_kind(g, Element::Int64, 1)?;
            let depth = g.whole(&[], &[5]);
            let values = g.weight(&[2]);
            g.one_of("OneHot", &[("axis", Int(-1))], &[index, depth, values]).map(drop)
        }
        _ => {
            let keep = g.below(2) as i64;
            g.one_of(op, &[("axis", Int(a)), ("keepdims", Int(keep))], &[x]).map(drop)
        }
    }
}

pub fn triangle(g: &mut Graph) -> Option<()> {
    let x = float(g, 2)?;
    let upper = g.below(2) as i64;
    let k = g.below(3) as i64 - 1;
    let k = g.whole(&[], &[k]);
    g.one_of("Trilu", &[("upper", Int(upper))], &[x, k]).map(drop)
}

pub fn blocks(g: &mut Graph) -> Option<()> {
    let x = value(g, |g, i| g.values[i].kind() == Element::Float && g.values[i].rank() == 4)?;
    if g.coin() {
        return g.one_of("SpaceToDepth", &[("blocksize", Int(2))], &[x]).map(drop);
    }
    let channels = g.values[x].fixed(1)?;
    let mode = g.one(&["DCR", "CRD"]);
    (channels % 4 == 0).then_some(())?;
    g.one_of("DepthToSpace", &[("blocksize", Int(2)), ("mode", Text(mode))], &[x]).map(drop)
}
