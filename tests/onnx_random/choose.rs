//! Which operator comes next, on which operands: random calls that are valid for both bindings or are dropped.

use crate::graph::{Graph, Origin};
use crate::onnx_file::Attribute::{Float, Int, Ints, Text};
use crate::onnx_file::Element;

/// Families of operators, each as likely as it stands here.
const FAMILIES: [fn(&mut Graph) -> Option<()>; 24] = [
    unary,
    unary,
    unary,
    binary,
    binary,
    binary,
    compare,
    choice,
    whole_numbers,
    reduce,
    reduce,
    softmax,
    norm,
    product,
    product,
    einsum,
    convolution,
    pooling,
    turn,
    reshape,
    reshape,
    join,
    cut,
    pick,
];
/// Rarer ones.
const RARE: [fn(&mut Graph) -> Option<()>; 6] = [pad, stretch, from_extents, order, triangle, blocks];

/// A graph of about `calls` calls.
pub fn graph(seed: u64, calls: usize) -> Graph {
    let mut g = Graph::new(seed);
    // From 2 on: an extent of 1 would be stretched, which makes another file of the same text.
    let small = 2 + g.below(3);
    let free = ["N".to_owned(), "M".to_owned()];
    let other = 2 + g.below(3);
    // Both grow, and by more than a half: what is the same for both bindings is a number.
    let bound = [[small, 2 * small + 1 + g.below(3)], [other, 2 * other + 1 + g.below(2)]];
    for _ in 0..1 + g.below(3) {
        let rank = 1 + g.below(4);
        let dims: Vec<(String, [usize; 2])> = (0..rank)
            .map(|_| match g.below(7) {
                0 | 1 => (free[0].clone(), bound[0]),
                2 => (free[1].clone(), bound[1]),
                n => (n.to_string(), [n; 2]),
            })
            .collect();
        let kind = g.one(&[Element::Float, Element::Float, Element::Float, Element::Int64]);
        g.input(kind, &dims);
    }
    if !(0..g.values.len()).any(|i| g.values[i].kind() == Element::Float) {
        g.input(Element::Float, &[(free[0].clone(), bound[0]), ("6".to_owned(), [6; 2])]);
    }
    for _ in 0..calls * 12 {
        if g.nodes.len() >= calls {
            break;
        }
        let family = if g.below(5) == 0 { g.one(&RARE) } else { g.one(&FAMILIES) };
        let mark = g.values.len();
        if family(&mut g).is_none() && g.nodes.last().is_none_or(|n| n.outputs.iter().all(|o| *o < mark)) {
            g.values.truncate(mark);
        }
    }
    g
}

/// A value that depends on an input and satisfies a condition; more often a young one.
fn value(g: &mut Graph, is_right: impl Fn(&Graph, usize) -> bool) -> Option<usize> {
    let all: Vec<usize> =
        (0..g.values.len()).filter(|i| g.values[*i].origin != Origin::Constant && is_right(g, *i)).collect();
    let young = all.len().min(5);
    let from = if g.below(3) > 0 { all.len() - young } else { 0 };
    (!all.is_empty()).then(|| all[from + g.below(all.len() - from)])
}
fn of_kind(g: &mut Graph, kind: Element, least_rank: usize) -> Option<usize> {
    value(g, |g, i| g.values[i].kind() == kind && g.values[i].rank() >= least_rank)
}
fn float(g: &mut Graph, least_rank: usize) -> Option<usize> {
    of_kind(g, Element::Float, least_rank)
}
fn any(g: &mut Graph, least_rank: usize) -> Option<usize> {
    value(g, |g, i| g.values[i].rank() >= least_rank)
}
/// An axis of a value, counted from either end.
fn an_axis(g: &mut Graph, v: usize) -> i64 {
    let rank = g.values[v].rank();
    let a = g.below(rank) as i64;
    if g.coin() { a - rank as i64 } else { a }
}
fn place(g: &Graph, v: usize, axis: i64) -> usize {
    if axis < 0 { (axis + g.values[v].rank() as i64) as usize } else { axis as usize }
}
/// An axis of one extent.
fn fixed_axis(g: &mut Graph, v: usize) -> Option<(i64, usize)> {
    let a = an_axis(g, v);
    Some((a, g.values[v].fixed(place(g, v, a))?))
}
/// A constant that stretches to a value's shape.
fn constant_beside(g: &mut Graph, v: usize) -> usize {
    let dropped = g.below(g.values[v].rank() + 1);
    let shape: Vec<usize> = (dropped..g.values[v].rank())
        .map(|a| if g.below(4) == 0 { 1 } else { g.values[v].fixed(a).unwrap_or(1) })
        .collect();
    g.weight(&shape)
}
/// A second operand: another value of the kind, or a constant.
fn beside(g: &mut Graph, v: usize) -> usize {
    let kind = g.values[v].kind();
    let other = if g.coin() { of_kind(g, kind, 0) } else { None };
    match (other, kind) {
        (Some(o), _) => o,
        (None, Element::Float) => constant_beside(g, v),
        (None, _) => {
            let n = g.below(7) as i64 - 3;
            g.whole(&[], &[n])
        }
    }
}

fn unary(g: &mut Graph) -> Option<()> {
    let op = g.one(&[
        "Abs",
        "Neg",
        "Relu",
        "Sign",
        "Identity",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Sin",
        "Cos",
        "Sinh",
        "Cosh",
        "Tanh",
        "Sigmoid",
        "Erf",
        "LeakyRelu",
        "Elu",
        "Celu",
        "Selu",
        "ThresholdedRelu",
        "Softplus",
        "Softsign",
        "Mish",
        "HardSigmoid",
        "HardSwish",
        "Gelu",
        "Gelu",
        "Floor",
        "Ceil",
        "Round",
        "Clip",
        "Not",
        "Cast",
        "Cast",
    ]);
    let alpha = [("alpha", Float(0.25 + g.below(4) as f32 * 0.5))];
    match op {
        "Clip" => {
            let x = float(g, 0)?;
            let (low, high) = (g.number(-0.5), g.number(1.25));
            let all = [(Some(low), Some(high)), (None, Some(high)), (Some(low), None)];
            let (low, high) = g.one(&all);
            g.call("Clip", &[], &[Some(x), low, high]).map(drop)
        }
        "Not" => {
            let x = of_kind(g, Element::Bool, 0)?;
            g.one_of(op, &[], &[x]).map(drop)
        }
        "Cast" => {
            let x = any(g, 0)?;
            let to = g.one(&[Element::Float, Element::Float, Element::Int64, Element::Bool]);
            g.one_of(op, &[("to", Int(to as i64))], &[x]).map(drop)
        }
        _ => {
            let x = if matches!(op, "Abs" | "Neg" | "Sign" | "Identity") {
                value(g, |g, i| g.values[i].kind() != Element::Bool)?
            } else {
                float(g, 0)?
            };
            let is_parametric = matches!(op, "LeakyRelu" | "Elu" | "Celu" | "ThresholdedRelu") && g.coin();
            let approximate = [("approximate", Text("tanh"))];
            let attributes = match op {
                "Gelu" if g.coin() => &approximate[..],
                _ if is_parametric => &alpha[..],
                _ => &[],
            };
            g.one_of(op, attributes, &[x]).map(drop)
        }
    }
}

fn binary(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Add", "Add", "Sub", "Mul", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Mod"]);
    let x = float(g, 0)?;
    let y = match op {
        "PRelu" => constant_beside(g, x),
        "Div" | "Pow" | "Mod" if g.coin() => {
            let v = 0.5 + g.below(5) as f32 * 0.5;
            g.number(v)
        }
        _ => beside(g, x),
    };
    let fmod = [("fmod", Int(1))];
    let attributes = if op == "Mod" { &fmod[..] } else { &[] };
    match op {
        "Sum" | "Mean" | "Min" | "Max" if g.coin() => {
            let z = beside(g, x);
            g.one_of(op, attributes, &[x, y, z]).map(drop)
        }
        "Add" | "Mul" | "Sub" if g.coin() => g.one_of(op, attributes, &[y, x]).map(drop),
        _ => g.one_of(op, attributes, &[x, y]).map(drop),
    }
}

fn compare(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"]);
    if matches!(op, "And" | "Or" | "Xor") {
        let (x, y) = (of_kind(g, Element::Bool, 0)?, of_kind(g, Element::Bool, 0)?);
        return g.one_of(op, &[], &[x, y]).map(drop);
    }
    let x = value(g, |g, i| g.values[i].kind() != Element::Bool)?;
    let y = beside(g, x);
    g.one_of(op, &[], &[x, y]).map(drop)
}

fn choice(g: &mut Graph) -> Option<()> {
    let (condition, x) = (of_kind(g, Element::Bool, 0)?, float(g, 0)?);
    let y = beside(g, x);
    g.one_of("Where", &[], &[condition, x, y]).map(drop)
}

fn whole_numbers(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Cast"]);
    let x = of_kind(g, Element::Int64, 0)?;
    if op == "Cast" {
        return g.one_of("Cast", &[("to", Int(Element::Float as i64))], &[x]).map(drop);
    }
    let y = beside(g, x);
    g.one_of(op, &[], &[x, y]).map(drop)
}

fn reduce(g: &mut Graph) -> Option<()> {
    let op = g.one(&[
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
        "ReduceLogSum",
        "ReduceMean",
        "ReduceSum",
        "CumSum",
    ]);
    let x = if g.below(5) == 0 { of_kind(g, Element::Int64, 1)? } else { float(g, 1)? };
    let a = an_axis(g, x);
    if op == "CumSum" {
        let at = g.whole(&[], &[a]);
        let (e, r) = (g.below(2) as i64, g.below(2) as i64);
        return g.one_of(op, &[("exclusive", Int(e)), ("reverse", Int(r))], &[x, at]).map(drop);
    }
    let keep = [("keepdims", Int(g.below(2) as i64))];
    let mut axes = vec![a];
    let b = an_axis(g, x);
    if place(g, x, a) != place(g, x, b) && g.coin() {
        axes.push(b);
    }
    let axes = (g.below(6) > 0).then(|| g.list(&axes));
    g.call(op, &keep, &[Some(x), axes]).map(drop)
}

fn softmax(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Softmax", "Softmax", "LogSoftmax"]);
    let x = float(g, 1)?;
    let a = an_axis(g, x);
    g.one_of(op, &[("axis", Int(a))], &[x]).map(drop)
}

fn norm(g: &mut Graph) -> Option<()> {
    let op = g.one(&[
        "LayerNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
    ]);
    let epsilon = ("epsilon", Float(g.one(&[1e-5, 1e-3, 1e-6])));
    if matches!(op, "LayerNormalization" | "RMSNormalization") {
        let x = float(g, 2)?;
        let rank = g.values[x].rank();
        let from = if g.below(4) == 0 { rank - 2 } else { rank - 1 };
        let shape = (from..rank).map(|a| g.values[x].fixed(a)).collect::<Option<Vec<_>>>()?;
        let (scale, bias) = (g.weight(&shape), g.weight(&shape));
        let at = if g.coin() { from as i64 } else { from as i64 - rank as i64 };
        let mut inputs = vec![x, scale];
        if op == "LayerNormalization" && g.coin() {
            inputs.push(bias);
        }
        return g.one_of(op, &[epsilon, ("axis", Int(at))], &inputs).map(drop);
    }
    let x = float(g, 3)?;
    let channels = g.values[x].fixed(1)?;
    let (scale, bias) = (g.weight(&[channels]), g.weight(&[channels]));
    match op {
        "BatchNormalization" => {
            let (mean, variance) = (g.weight(&[channels]), g.weight_between(&[channels], 0.2, 2.0));
            g.one_of(op, &[epsilon], &[x, scale, bias, mean, variance]).map(drop)
        }
        "GroupNormalization" => {
            let groups = (1..=channels).filter(|n| channels % n == 0).collect::<Vec<_>>();
            let groups = g.one(&groups) as i64;
            g.one_of(op, &[epsilon, ("num_groups", Int(groups))], &[x, scale, bias]).map(drop)
        }
        _ => g.one_of(op, &[epsilon], &[x, scale, bias]).map(drop),
    }
}

fn product(g: &mut Graph) -> Option<()> {
    let x = float(g, 2)?;
    let rank = g.values[x].rank();
    if rank == 2 && g.coin() {
        let is_turned = [g.below(2) as i64, g.below(2) as i64];
        let k = g.values[x].fixed(if is_turned[0] == 1 { 0 } else { 1 })?;
        let n = 1 + g.below(7);
        let w = g.weight(&if is_turned[1] == 1 { [n, k] } else { [k, n] });
        let shapes: [Option<&[usize]>; 4] = [None, Some(&[n]), Some(&[1, n]), Some(&[])];
        let c = g.one(&shapes).map(|s| g.weight(s));
        let attributes = [
            ("transA", Int(is_turned[0])),
            ("transB", Int(is_turned[1])),
            ("alpha", Float(g.one(&[1.0, 0.5]))),
            ("beta", Float(g.one(&[1.0, 0.75]))),
        ];
        return g.call("Gemm", &attributes, &[Some(x), Some(w), c]).map(drop);
    }
    let other = if g.coin() {
        float(g, 2)?
    } else {
        let k = g.values[x].fixed(rank - 1)?;
        let n = 1 + g.below(9);
        let outer = if rank > 2 && g.below(3) == 0 { g.values[x].fixed(rank - 3) } else { None };
        g.weight(&outer.map_or(vec![k, n], |o| vec![o, k, n]))
    };
    g.one_of("MatMul", &[], &[x, other]).map(drop)
}

fn einsum(g: &mut Graph) -> Option<()> {
    let (equation, left, right) = g.one(&[
        ("ij,kj->ik", 2, 2),
        ("bij,bkj->bik", 3, 3),
        ("bhid,bhjd->bhij", 4, 4),
        ("bihd,bjhd->bhij", 4, 4),
        ("bij,jk->bik", 3, 2),
        ("ij->ji", 2, 0),
        ("ij->i", 2, 0),
        ("bij,bi->bj", 3, 2),
    ]);
    let x = value(g, |g, i| g.values[i].kind() == Element::Float && g.values[i].rank() == left)?;
    let attributes = [("equation", Text(equation))];
    if right == 0 {
        return g.one_of("Einsum", &attributes, &[x]).map(drop);
    }
    let y = value(g, |g, i| g.values[i].kind() == Element::Float && g.values[i].rank() == right)?;
    g.one_of("Einsum", &attributes, &[x, y]).map(drop)
}

/// Attributes of windows on `axes` spatial axes.
fn windows(g: &mut Graph, kernel: &[usize]) -> Vec<(&'static str, crate::onnx_file::Attribute)> {
    let axes = kernel.len();
    let mut drawn = |n: usize, low: i64, high: usize| (0..n).map(|_| low + g.below(high) as i64).collect::<Vec<_>>();
    let (strides, dilations) = (drawn(axes, 1, 2), drawn(axes, 1, 2));
    let pads: Vec<i64> =
        drawn(2 * axes, 0, 2).iter().enumerate().map(|(i, p)| (*p).min(kernel[i % axes] as i64 - 1)).collect();
    let mut all = vec![("kernel_shape", Ints(kernel.iter().map(|k| *k as i64).collect()))];
    let options = [("strides", Ints(strides)), ("pads", Ints(pads)), ("dilations", Ints(dilations))];
    all.extend(options.into_iter().filter(|_| g.coin()));
    all
}

fn convolution(g: &mut Graph) -> Option<()> {
    let x = value(g, |g, i| g.values[i].kind() == Element::Float && matches!(g.values[i].rank(), 3 | 4))?;
    let axes = g.values[x].rank() - 2;
    let channels = g.values[x].fixed(1)?;
    let groups: Vec<usize> = (1..=channels).filter(|n| channels % n == 0).collect();
    let groups = if g.coin() { 1 } else { g.one(&groups) };
    let outs = groups * (1 + g.below(3));
    let kernel: Vec<usize> = (0..axes).map(|_| 1 + g.below(3)).collect();
    let w = g.weight(&[&[outs, channels / groups], kernel.as_slice()].concat());
    let bias = if g.coin() { Some(g.weight(&[outs])) } else { None };
    let mut attributes = windows(g, &kernel);
    attributes.push(("group", Int(groups as i64)));
    g.call("Conv", &attributes, &[Some(x), Some(w), bias]).map(drop)
}

fn pooling(g: &mut Graph) -> Option<()> {
    let x = value(g, |g, i| g.values[i].kind() == Element::Float && matches!(g.values[i].rank(), 3 | 4))?;
    let op = g.one(&["MaxPool", "AveragePool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]);
    if op.starts_with("Global") {
        return g.one_of(op, &[], &[x]).map(drop);
    }
    let kernel: Vec<usize> = (0..g.values[x].rank() - 2).map(|_| 1 + g.below(3)).collect();
    let mut attributes = windows(g, &kernel);
    if op == "AveragePool" && g.coin() {
        attributes.push(("count_include_pad", Int(1)));
    }
    g.one_of(op, &attributes, &[x]).map(drop)
}

fn turn(g: &mut Graph) -> Option<()> {
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

fn reshape(g: &mut Graph) -> Option<()> {
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

fn join(g: &mut Graph) -> Option<()> {
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

fn cut(g: &mut Graph) -> Option<()> {
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

fn pick(g: &mut Graph) -> Option<()> {
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

fn pad(g: &mut Graph) -> Option<()> {
    let x = float(g, 1)?;
    let rank = g.values[x].rank();
    let mode = g.one(&["constant", "edge", "reflect"]);
    let low = if mode == "constant" { -1 } else { 0 };
    let pads: Vec<i64> = (0..2 * rank).map(|_| low + g.below(3) as i64).collect();
    let pads = g.list(&pads);
    let fill = (mode == "constant" && g.coin()).then(|| g.number(0.75));
    g.call("Pad", &[("mode", Text(mode))], &[Some(x), Some(pads), fill]).map(drop)
}

fn stretch(g: &mut Graph) -> Option<()> {
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
fn from_extents(g: &mut Graph) -> Option<()> {
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

fn order(g: &mut Graph) -> Option<()> {
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

fn triangle(g: &mut Graph) -> Option<()> {
    let x = float(g, 2)?;
    let upper = g.below(2) as i64;
    let k = g.below(3) as i64 - 1;
    let k = g.whole(&[], &[k]);
    g.one_of("Trilu", &[("upper", Int(upper))], &[x, k]).map(drop)
}

fn blocks(g: &mut Graph) -> Option<()> {
    let x = value(g, |g, i| g.values[i].kind() == Element::Float && g.values[i].rank() == 4)?;
    if g.coin() {
        return g.one_of("SpaceToDepth", &[("blocksize", Int(2))], &[x]).map(drop);
    }
    let channels = g.values[x].fixed(1)?;
    let mode = g.one(&["DCR", "CRD"]);
    (channels % 4 == 0).then_some(())?;
    g.one_of("DepthToSpace", &[("blocksize", Int(2)), ("mode", Text(mode))], &[x]).map(drop)
}
