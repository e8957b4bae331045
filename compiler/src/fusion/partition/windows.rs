//! Windows that the left side of a matmul takes of the result of another one.
//!
//! A convolution's matmul reads `[batch, places, channels · taps]`, a view of `[batch, rows, columns, channels, taps, taps]`
//! (`[batch, places, channels, taps]` along one axis) whose elements are moved by gathers and selects. Where each of those
//! coordinates goes is followed symbolically. A coordinate of the source that follows from a place and a tap is evaluated at
//! all of them, so that what is found is proved and not guessed.

use super::Partitioner;
use crate::fusion::coords::{self, Coords};
use crate::fusion::spec_builder::SpecBuilder;
use crate::graph::{Op, ValueId};
use crate::reference::{scalar_binary, scalar_cast, scalar_literal, scalar_unary};
use frit_kernels::dim::{Dim, Sym, product};
use frit_kernels::spec::{Expr, ExprId, Exprs, Literal, Window};
use std::collections::{BTreeSet, HashSet};

/// Windows over a value.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    /// The value.
    pub source: ValueId,
    /// Operations that take the windows, from the matmul back.
    pub path: Vec<ValueId>,
    /// Along rows and columns of the source.
    pub windows: [Window; 2],
    /// Channels of the source.
    pub channels: u64,
}

/// One place along rows, of one element: what windows along a single axis do along the other.
const POINT: Window = Window { extent: 1, places: 1, taps: 1, stride: 1, dilation: 1, before: 0 };

impl Partitioner<'_> {
    /// The value whose elements `lhs` consists of, and the operations that move them, from `lhs` back.
    pub(super) fn path_of(&self, lhs: ValueId) -> (ValueId, Vec<ValueId>) {
        let (mut v, mut path) = (lhs, Vec::new());
        while self.moves(v)
            && let Some(from) = self.moved(v)
        {
            path.push(v);
            v = from;
        }
        (v, path)
    }
    /// The windows that `lhs` takes of what members of a region make of the matmul `up`; `None` for any other form.
    pub(super) fn windows_over(&self, lhs: ValueId, up: ValueId, members: &HashSet<ValueId>) -> Option<Taken> {
        let (source, path) = self.path_of(lhs);
        let fixed = |d: &Dim| d.as_const().and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        let first = path.iter().position(|v| !matches!(self.graph.op(*v), Op::Reshape(_)))?;
        let grid = self.graph.ty(*path.get(first)?).shape.clone();
        let spatial = match grid.len() {
            4 => 1,
            6 => 2,
            _ => return None,
        };
        let [batch, area, depth] = self.graph.ty(lhs).shape.as_slice() else { return None };
        let merged = |range: std::ops::Range<usize>| product(grid.get(range).unwrap_or_default());
        let whole = merged(1..1 + spatial) == *area && merged(1 + spatial..grid.len()) == *depth;
        if !whole || grid.first() != Some(batch) {
            return None;
        }
        let channels = fixed(grid.get(1 + spatial)?)?;
        let stored = HashSet::from([source]);
        let mut b = SpecBuilder::new(self.graph, self.tables, &stored, &grid);
        let read = Read::through(&mut b, path.get(first..)?, (0..grid.len()).map(Dim::axis).collect())?;
        let made = self.coordinates(up, source, members)?;
        let (mut taken, shape) = (Vec::new(), self.graph.ty(source).shape.clone());
        for ((made, at), extent) in made.into_iter().zip(&read.at).zip(shape) {
            let kept = [(0, 0), (2, 1 + spatial)].into_iter().find(|(axis, _)| made == Dim::axis(*axis));
            match kept {
                Some((_, axis)) if *at == Dim::axis(axis) => {}
                Some(_) => return None,
                None => taken.push((made, at.clone(), extent)),
            }
        }
        let place = |a: usize| -> Option<[(usize, u64); 2]> {
            let axes = [1 + a, 2 + spatial + a];
            Some([(axes[0], fixed(grid.get(axes[0])?)?), (axes[1], fixed(grid.get(axes[1])?)?)])
        };
        let window = |a: usize, at: &Dim, extent: u64| read.window(&b.exprs, at, place(a)?, extent);
        let mut sides: Vec<[(Dim, u64); 2]> = Vec::new();
        match taken.as_slice() {
            [(made, at, extent)] if *made == Dim::axis(1) && spatial == 1 => {
                let windows = [POINT, window(0, at, fixed(extent)?)?];
                return Some(Taken { source, path, windows, channels }).filter(|_| read.is_separate(&b.exprs, 1));
            }
            [(made, at, area)] if *made == Dim::axis(1) => {
                let area = fixed(area)?;
                let shapes = path.iter().flat_map(|v| self.graph.ty(*v).shape.iter().filter_map(fixed));
                for width in shapes.filter(|w| area.is_multiple_of(*w)).collect::<BTreeSet<u64>>() {
                    let w = Dim::from(width);
                    let (y, x) = (at.div(&w).simplify(&b.bounds), at.rem(&w).simplify(&b.bounds));
                    sides.push([(y, area / width), (x, width)]);
                }
            }
            [one, other] => {
                for ((row, y, height), (column, x, width)) in [(one, other), (other, one)] {
                    let place = Dim::axis(1);
                    if *row == place.div(width) && *column == place.rem(width) {
                        sides.push([(y.clone(), fixed(height)?), (x.clone(), fixed(width)?)]);
                    }
                }
            }
            _ => return None,
        }
        let found = sides
            .into_iter()
            .find_map(|[(y, height), (x, width)]| Some([window(0, &y, height)?, window(1, &x, width)?]));
        let windows = found.filter(|_| spatial == 2 && read.is_separate(&b.exprs, 2))?;
        Some(Taken { source, path, windows, channels })
    }
    /// Where the element `(i0, i1, i2)` of the matmul `up` is in `v`, which the region's members make of it.
    fn coordinates(&self, up: ValueId, v: ValueId, members: &HashSet<ValueId>) -> Option<Coords> {
        let mut way = vec![v];
        let mut at = v;
        while at != up {
            at = self.graph.operands(at).into_iter().find(|o| members.contains(o))?;
            way.push(at);
        }
        let mut shape = self.graph.ty(up).shape.clone();
        let mut bounds = self.bounds.clone();
        shape.iter().enumerate().for_each(|(k, d)| bounds.axis(k, d));
        let mut coords: Coords = (0..shape.len()).map(Dim::axis).collect();
        for v in way.into_iter().rev().skip(1) {
            match self.graph.op(v) {
                Op::Reshape(to) => coords = coords::reshape(&coords, &shape, to, &bounds),
                Op::Transpose(perm) => coords = coords::transpose_forward(&coords, perm),
                Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => {}
                _ => return None,
            }
            shape = self.graph.ty(v).shape.clone();
        }
        (shape.len() == coords.len() && self.graph.ty(up).shape.len() == 3).then_some(coords)
    }
}

/// An element of a value as it is read at the axes of a grid: where it is, and the conditions without which it is 0.
struct Read {
    at: Coords,
    conditions: Vec<ExprId>,
}

impl Read {
    /// What `path`, from the grid back, reads at the coordinates `at`.
    fn through(b: &mut SpecBuilder<'_>, path: &[ValueId], mut at: Coords) -> Option<Read> {
        let mut conditions = Vec::new();
        for v in path {
            let ops = b.graph.operands(*v);
            let shape = |k: usize| ops.get(k).map(|o| b.graph.ty(*o).shape.clone());
            at = match b.graph.op(*v) {
                Op::Reshape(to) => coords::reshape(&at, to, &shape(0)?, &b.bounds),
                Op::Transpose(perm) => coords::transpose_back(&at, perm),
                Op::Broadcast(_) => coords::broadcast(&at, &shape(0)?),
                Op::Slice { axis, start, .. } => {
                    let moved = at.get_mut(*axis)?;
                    *moved = (moved.clone() + start.clone()).simplify(&b.bounds);
                    at
                }
                Op::Gather => {
                    let (rows, rank) = (shape(0)?.first()?.clone(), shape(1)?.len());
                    let (ids_at, rest) = at.split_at_checked(rank)?;
                    let (ids_at, rest) = (ids_at.to_vec(), rest.to_vec());
                    let id = b.expr_at(*ops.get(1)?, &ids_at).ok()?;
                    [b.clamped(id, &rows)].into_iter().chain(rest).collect()
                }
                Op::Select => {
                    let (c, zero) = (coords::broadcast(&at, &shape(0)?), coords::broadcast(&at, &shape(2)?));
                    conditions.push(b.expr_at(*ops.first()?, &c).ok()?);
                    let otherwise = b.expr_at(*ops.get(2)?, &zero).ok()?;
                    if *b.exprs.get(otherwise) != Expr::Const(Literal::f32(0.0)) {
                        return None;
                    }
                    coords::broadcast(&at, &shape(1)?)
                }
                _ => return None,
            };
        }
        Some(Read { at, conditions })
    }
    /// Whether every condition is one of a single axis of windows.
    fn is_separate(&self, exprs: &Exprs, spatial: usize) -> bool {
        let own = |a: usize| 1u64 << (1 + a) | 1u64 << (2 + spatial + a);
        self.conditions.iter().all(|c| (0..spatial).any(|a| axes_of(exprs, *c) & !own(a) == 0))
    }
    /// The windows along one axis, if the coordinate `at` and the conditions on its place and tap are those of windows.
    fn window(&self, exprs: &Exprs, at: &Dim, [place, tap]: [(usize, u64); 2], extent: u64) -> Option<Window> {
        let own = 1u64 << place.0 | 1u64 << tap.0;
        if axes_in(exprs, at) & !own != 0 {
            return None;
        }
        let conditions: Vec<ExprId> =
            self.conditions.iter().copied().filter(|c| axes_of(exprs, *c) & !own == 0).collect();
        let mut table: Vec<Vec<Option<u64>>> = Vec::new();
        for p in 0..place.1 {
            let mut row = Vec::new();
            for t in 0..tap.1 {
                let probe = Probe { exprs, at: [(place.0, p), (tap.0, t)] };
                let seen: Option<Vec<f64>> = conditions.iter().map(|c| probe.value(*c)).collect();
                let inside = seen?.into_iter().all(|c| c != 0.0);
                row.push(if inside { Some(u64::try_from(probe.index(at)?).ok()?) } else { None });
            }
            table.push(row);
        }
        fit(&table, extent)
    }
}

/// The windows of which a table names the element at every place and tap.
fn fit(table: &[Vec<Option<u64>>], extent: u64) -> Option<Window> {
    let (places, taps) = (table.len(), table.first()?.len());
    let at = |p: usize, t: usize| table.get(p).and_then(|r| r.get(t)).copied().flatten();
    let all = || (0..places).flat_map(|p| (0..taps).map(move |t| (p, t)));
    let step = |next: fn(usize, usize) -> (usize, usize)| {
        all().find_map(|(p, t)| {
            let (q, u) = next(p, t);
            at(q, u)?.checked_sub(at(p, t)?)
        })
    };
    let stride = if places == 1 { 1 } else { step(|p, t| (p + 1, t))? };
    let dilation = if taps == 1 { 1 } else { step(|p, t| (p, t + 1))? };
    let before = all().find_map(|(p, t)| (p as u64 * stride + t as u64 * dilation).checked_sub(at(p, t)?))?;
    let w = Window { extent, places: places as u64, taps: taps as u64, stride, dilation, before };
    let same = stride > 0 && dilation > 0 && all().all(|(p, t)| w.at(p as u64, t as u64) == at(p, t));
    same.then_some(w)
}

/// The axes that an index follows from, as bits.
fn axes_in(exprs: &Exprs, d: &Dim) -> u64 {
    let mut mask = 0;
    d.visit(&mut |s| {
        mask |= match s {
            Sym::Axis(k) => 1u64.checked_shl(u32::from(*k)).unwrap_or(u64::MAX),
            Sym::Value(v) => axes_of(exprs, ExprId(*v)),
            Sym::Size(_) => 0,
        }
    });
    mask
}

/// The axes that an expression follows from; all of them where it reads memory.
fn axes_of(exprs: &Exprs, e: ExprId) -> u64 {
    let each = exprs.reachable(&[e]).into_iter().map(|x| match exprs.get(x) {
        Expr::Coord(d) => {
            let own = d.symbols().into_iter();
            own.fold(0, |m, s| if let Sym::Axis(k) = s { m | 1u64 << k.min(63) } else { m })
        }
        Expr::Load { .. } => u64::MAX,
        _ => 0,
    });
    each.fold(0, |a, b| a | b)
}

/// Expressions at a place and a tap.
struct Probe<'e> {
    exprs: &'e Exprs,
    at: [(usize, u64); 2],
}

impl Probe<'_> {
    fn index(&self, d: &Dim) -> Option<i64> {
        let find = |s: &Sym| match s {
            Sym::Axis(k) => self.at.iter().find(|(axis, _)| *axis == usize::from(*k)).map(|(_, v)| *v as i64),
            Sym::Value(v) => self.value(ExprId(*v)).map(|v| v as i64),
            Sym::Size(_) => None,
        };
        d.eval(&find).ok()
    }
    fn value(&self, e: ExprId) -> Option<f64> {
        let scalar = |a: ExprId| self.exprs.scalar(a);
        Some(match self.exprs.get(e) {
            Expr::Coord(d) => self.index(d)? as f64,
            Expr::Const(l) => scalar_literal(*l),
            Expr::Unary(f, a) => scalar_unary(*f, self.value(*a)?),
            Expr::Binary(f, a, b) => scalar_binary(*f, scalar(*a), self.value(*a)?, self.value(*b)?),
            Expr::Cast(to, a) => scalar_cast(*to, self.value(*a)?),
            Expr::Select { cond, t, f } => self.value(if self.value(*cond)? != 0.0 { *t } else { *f })?,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_windows_or_nothing() {
        let w = Window { extent: 9, places: 5, taps: 3, stride: 2, dilation: 2, before: 3 };
        let table: Vec<Vec<Option<u64>>> = (0..5).map(|p| (0..3).map(|t| w.at(p, t)).collect()).collect();
        assert_eq!(fit(&table, 9), Some(w));
        for (p, t, other) in [(4, 2, Some(8)), (2, 1, None), (0, 0, Some(0))] {
            let mut wrong = table.clone();
            assert_ne!(wrong[p][t], other);
            wrong[p][t] = other;
            assert_eq!(fit(&wrong, 9), None, "{p} {t}");
        }
    }
}
