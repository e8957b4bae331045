//! Which integers of the graph are coordinates: exporters spell views as gathers at positions that they count.

use super::context::Cx;
use crate::graph::{Graph, Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal};

/// Integers that are the coordinate along an axis of their own shape plus an offset; with no axis, the offset alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Coordinate {
    /// The axis; `None`: the same everywhere.
    pub axis: Option<usize>,
    /// Added to the coordinate.
    pub offset: Dim,
}

/// What `v` is, if it is a coordinate.
pub fn of(g: &Graph, v: ValueId) -> Option<Coordinate> {
    of_at(g, v, 0)
}

fn of_at(g: &Graph, v: ValueId, depth: usize) -> Option<Coordinate> {
    if depth > 24 || g.ty(v).scalar != Scalar::I32 {
        return None;
    }
    let operands = g.operands(v);
    let shape = &g.ty(v).shape;
    let first = || operands.first().and_then(|x| Some((*x, of_at(g, *x, depth + 1)?)));
    match g.op(v) {
        Op::Const(Literal::I32(c)) => Some(Coordinate { axis: None, offset: Dim::constant(i64::from(*c)) }),
        Op::Iota { axis, offset } if shape.get(*axis)?.is(1) => Some(Coordinate { axis: None, offset: offset.clone() }),
        Op::Iota { axis, offset } => Some(Coordinate { axis: Some(*axis), offset: offset.clone() }),
        Op::Reshape(to) => {
            let (x, c) = first()?;
            let Some(axis) = c.axis else { return Some(c) };
            let from = &g.ty(x).shape;
            let long = |s: &[Dim]| s.iter().enumerate().filter(|(_, d)| !d.is(1)).map(|(i, _)| i).collect::<Vec<_>>();
            let (a, b) = (long(from), long(to));
            let same = a.len() == b.len() && a.iter().zip(&b).all(|(i, j)| from.get(*i) == to.get(*j));
            let place = a.iter().position(|i| *i == axis)?;
            same.then(|| b.get(place).copied()).flatten().map(|axis| Coordinate { axis: Some(axis), ..c })
        }
        Op::Transpose(p) => {
            let (_, c) = first()?;
            let axis = match c.axis {
                Some(a) => Some(p.iter().position(|x| *x == a)?),
                None => None,
            };
            Some(Coordinate { axis, ..c })
        }
        Op::Broadcast(to) => {
            let (x, c) = first()?;
            let lead = to.len().checked_sub(g.ty(x).rank())?;
            Some(Coordinate { axis: c.axis.map(|a| a + lead), ..c })
        }
        Op::Slice { axis, start, .. } => {
            let (_, c) = first()?;
            let moved = if c.axis == Some(*axis) { start.clone() } else { Dim::zero() };
            Some(Coordinate { offset: c.offset.clone() + moved, ..c })
        }
        Op::Binary(f @ (BinaryOp::Add | BinaryOp::Sub)) => {
            let [x, y] = operands[..] else { return None };
            let (a, b) = (of_at(g, x, depth + 1)?, of_at(g, y, depth + 1)?);
            let lead = |v: ValueId| shape.len().checked_sub(g.ty(v).rank());
            let axis = match (a.axis, b.axis, f) {
                (Some(i), None, _) => Some(i + lead(x)?),
                (None, Some(i), BinaryOp::Add) => Some(i + lead(y)?),
                (None, None, _) => None,
                _ => return None,
            };
            let offset = if *f == BinaryOp::Add { a.offset + b.offset } else { a.offset - b.offset };
            Some(Coordinate { axis, offset })
        }
        _ => None,
    }
}

/// Whether no element of integers is negative, as far as their making shows.
pub fn nonneg(cx: &Cx<'_, '_, '_>, v: ValueId) -> bool {
    nonneg_at(cx, v, 0)
}

fn nonneg_at(cx: &Cx<'_, '_, '_>, v: ValueId, depth: usize) -> bool {
    let g = cx.b.built();
    let operands = g.operands(v);
    let all = || operands.iter().all(|o| nonneg_at(cx, *o, depth + 1));
    let any = || operands.iter().any(|o| nonneg_at(cx, *o, depth + 1));
    if depth > 24 {
        return false;
    }
    match g.op(v) {
        Op::Const(Literal::I32(c)) => *c >= 0,
        Op::Iota { offset, .. } => cx.bounds.nonneg(offset),
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. } | Op::Concat { .. } => all(),
        Op::Cast(_) => {
            operands.first().is_some_and(|x| g.ty(*x).scalar == Scalar::Bool || nonneg_at(cx, *x, depth + 1))
        }
        Op::Binary(BinaryOp::Max) => any(),
        Op::Binary(BinaryOp::Add | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Min) => all(),
        Op::Unary(frit_kernels::spec::UnaryOp::Abs) => true,
        Op::Reduce { op: frit_kernels::spec::ReduceOp::ArgMax, .. } => true,
        Op::Select => operands.iter().skip(1).all(|o| nonneg_at(cx, *o, depth + 1)),
        _ => false,
    }
}
