//! Which operator comes next, on which operands: random calls that are valid for both bindings or are dropped.

mod elementwise;
mod movement;
mod sums;

use crate::graph::{Graph, Origin};
use crate::onnx_file::Element;

/// Families of operators, each as likely as it stands here.
const FAMILIES: [fn(&mut Graph) -> Option<()>; 24] = [
    elementwise::unary,
    elementwise::unary,
    elementwise::unary,
    elementwise::binary,
    elementwise::binary,
    elementwise::binary,
    elementwise::compare,
    elementwise::choice,
    elementwise::whole_numbers,
    sums::reduce,
    sums::reduce,
    sums::softmax,
    sums::norm,
    sums::product,
    sums::product,
    sums::einsum,
    sums::convolution,
    sums::pooling,
    movement::turn,
    movement::reshape,
    movement::reshape,
    movement::join,
    movement::cut,
    movement::pick,
];
/// Rarer ones.
const RARE: [fn(&mut Graph) -> Option<()>; 6] =
    [movement::pad, movement::stretch, movement::from_extents, movement::order, movement::triangle, movement::blocks];

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
