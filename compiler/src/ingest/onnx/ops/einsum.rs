//! Einsum: each pair of operands is a batched product of matrices.

use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::Node;
use crate::ingest::onnx::value::Val;
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::ReduceOp;

/// A tensor and the label of each axis.
#[derive(Clone, Debug)]
struct Term {
    id: ValueId,
    labels: Vec<char>,
}

/// Labels that stand for the axes of an ellipsis, counted from the last.
fn hidden(k: usize) -> char {
    char::from_u32(0xE000 + k as u32).unwrap_or('\u{E000}')
}

fn labels(text: &str, rank: Option<usize>, dots: &mut usize) -> Res<Vec<char>> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let named = text.chars().filter(|c| *c != '.').count();
    let mut out = Vec::new();
    let mut parts = text.splitn(2, "...");
    let (head, tail) = (parts.next().unwrap_or(""), parts.next());
    out.extend(head.chars());
    if let Some(tail) = tail {
        let count = match rank {
            Some(r) => match r.checked_sub(named) {
                Some(c) => c,
                None => return malformed(format!("has {named} labels for {r} axes")),
            },
            None => *dots,
        };
        *dots = (*dots).max(count);
        out.extend((0..count).rev().map(hidden));
        out.extend(tail.chars());
    }
    if out.contains(&'.') || rank.is_some_and(|r| r != out.len()) {
        return malformed(format!("has the labels `{text}` for {rank:?} axes"));
    }
    match out.iter().enumerate().any(|(i, c)| out[..i].contains(c)) {
        true => unsupported(format!("takes a diagonal, `{text}`")),
        false => Ok(out),
    }
}

/// Einsum.
pub fn einsum(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let equation = n.text("equation", "")?;
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_owned(), Some(r.to_owned())),
        None => (equation.clone(), None),
    };
    let texts: Vec<&str> = left.split(',').collect();
    if texts.len() != n.inputs.len() {
        return malformed(format!("has {} operands for `{equation}`", n.inputs.len()));
    }
    let elem = n.input(0)?.elem;
    let mut dots = 0;
    let mut terms = Vec::new();
    for (i, t) in texts.iter().enumerate() {
        let v = n.input(i)?.clone();
        let labels = labels(t, Some(v.rank()), &mut dots)?;
        let id = cx.node(&v)?;
        terms.push(Term { id: cx.cast(id, Scalar::F32)?, labels });
    }
    let wanted = match right {
        Some(r) => labels(&r, None, &mut dots)?,
        None => {
            let all: Vec<char> = terms.iter().flat_map(|t| t.labels.iter().copied()).collect();
            let mut once: Vec<char> = all
                .iter()
                .copied()
                .filter(|c| all.iter().filter(|x| *x == c).count() == 1 && *c < '\u{E000}')
                .collect();
            once.sort_unstable();
            (0..dots).rev().map(hidden).chain(once).collect()
        }
    };
    let mut rest = terms.into_iter();
    let Some(mut out) = rest.next() else { return malformed("has no operands") };
    let mut waiting: Vec<Term> = rest.collect();
    while !waiting.is_empty() {
        let next = waiting.remove(0);
        let needed = |c: &char| wanted.contains(c) || waiting.iter().any(|t| t.labels.contains(c));
        out = pair(cx, out, next, &needed)?;
    }
    out = summed(cx, out, &|c| wanted.contains(c))?;
    let perm: Option<Vec<usize>> = wanted.iter().map(|c| out.labels.iter().position(|l| l == c)).collect();
    let Some(perm) = perm else { return malformed(format!("makes labels that no operand has, `{equation}`")) };
    let y = cx.transpose(out.id, &perm)?;
    let y = cx.cast(y, elem.scalar())?;
    Ok(vec![cx.val(y, elem)])
}

/// Sums over the labels that nobody needs.
fn summed(cx: &mut Cx<'_, '_, '_>, t: Term, needed: &dyn Fn(&char) -> bool) -> Res<Term> {
    let axes: Vec<usize> = (0..t.labels.len()).filter(|i| !needed(&t.labels[*i])).collect();
    if axes.is_empty() {
        return Ok(t);
    }
    let id = cx.reduce(ReduceOp::Sum, t.id, &axes, false)?;
    Ok(Term { id, labels: t.labels.into_iter().filter(|c| needed(c)).collect() })
}

/// The product of two terms, summed over labels that nobody needs any more.
fn pair(cx: &mut Cx<'_, '_, '_>, a: Term, b: Term, needed: &dyn Fn(&char) -> bool) -> Res<Term> {
    let a = summed(cx, a, &|c| needed(c) || b.labels.contains(c))?;
    let b = summed(cx, b, &|c| needed(c) || a.labels.contains(c))?;
    let pick = |own: &[char], f: &dyn Fn(&char) -> bool| own.iter().copied().filter(|c| f(c)).collect::<Vec<_>>();
    let shared = |c: &char| a.labels.contains(c) && b.labels.contains(c);
    let batch = pick(&a.labels, &|c| shared(c) && needed(c));
    let inner = pick(&a.labels, &|c| shared(c) && !needed(c));
    let (rows, columns) = (pick(&a.labels, &|c| !b.labels.contains(c)), pick(&b.labels, &|c| !a.labels.contains(c)));
    let extent = |cx: &Cx<'_, '_, '_>, t: &Term, c: &char| -> Dim {
        let at = t.labels.iter().position(|l| l == c);
        at.and_then(|i| cx.shape(t.id).get(i).cloned()).unwrap_or_else(Dim::one)
    };
    let mut batch_shape = Vec::new();
    for c in batch.iter().chain(&inner) {
        let (x, y) = (extent(cx, &a, c), extent(cx, &b, c));
        let d = if x.is(1) {
            y
        } else if y.is(1) {
            x
        } else {
            cx.equate(&x, &y)?
        };
        if batch.contains(c) {
            batch_shape.push(d);
        }
    }
    let arranged = |cx: &mut Cx<'_, '_, '_>, t: &Term, order: [&[char]; 3]| -> Res<ValueId> {
        let all: Vec<char> = order.concat();
        let perm: Option<Vec<usize>> = all.iter().map(|c| t.labels.iter().position(|l| l == c)).collect();
        let Some(perm) = perm else { return malformed("has labels that do not fit") };
        let moved = cx.transpose(t.id, &perm)?;
        let group = |cx: &Cx<'_, '_, '_>, g: &[char]| product(&g.iter().map(|c| extent(cx, t, c)).collect::<Vec<_>>());
        let mut shape: Vec<Dim> = order[0].iter().map(|c| extent(cx, t, c)).collect();
        shape.extend([group(cx, order[1]), group(cx, order[2])]);
        cx.reshape(moved, &shape)
    };
    let x = arranged(cx, &a, [&batch, &rows, &inner])?;
    let y = arranged(cx, &b, [&batch, &inner, &columns])?;
    let z = cx.matmul(x, y, false)?;
    let mut shape = batch_shape;
    shape.extend(rows.iter().map(|c| extent(cx, &a, c)));
    shape.extend(columns.iter().map(|c| extent(cx, &b, c)));
    let id = cx.reshape(z, &shape)?;
    Ok(Term { id, labels: [batch, rows, columns].concat() })
}
