//! Calls of reductions, products, windows and norms.

use super::{an_axis, float, of_kind, place, value};
use crate::graph::Graph;
use crate::onnx_file::Attribute::{Float, Int, Ints, Text};
use crate::onnx_file::Element;

pub fn reduce(g: &mut Graph) -> Option<()> {
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

pub fn softmax(g: &mut Graph) -> Option<()> {
    let op = g.one(&["Softmax", "Softmax", "LogSoftmax"]);
    let x = float(g, 1)?;
    let a = an_axis(g, x);
    g.one_of(op, &[("axis", Int(a))], &[x]).map(drop)
}

pub fn norm(g: &mut Graph) -> Option<()> {
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

pub fn product(g: &mut Graph) -> Option<()> {
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

pub fn einsum(g: &mut Graph) -> Option<()> {
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

pub fn convolution(g: &mut Graph) -> Option<()> {
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

pub fn pooling(g: &mut Graph) -> Option<()> {
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
