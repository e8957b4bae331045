//! What one element of a value is, as an expression of its coordinates.
//!
//! Views, counters and elementwise functions are looked through; everything else is a leaf. Two spellings of one
//! function give equal expressions, which is what recognition compares.

use crate::fusion::coords;
use crate::graph::{Op, TensorType, ValueId, WeightData};
use crate::passes::pattern::literal;
use crate::passes::rewrite::{New, Site};
use frit_kernels::dim::{Bounds, Dim, Sym, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};
use std::cell::Cell;
use std::ops::Range;

/// An element of a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Elem {
    /// The element of a value at these coordinates.
    Leaf(ValueId, Vec<Dim>),
    /// A number.
    Const(Literal),
    /// An I32 that follows from the coordinates.
    Index(Dim),
    /// f(a).
    Unary(UnaryOp, Box<Elem>),
    /// f(a, b).
    Binary(BinaryOp, Box<[Elem; 2]>),
    /// (condition, then, else).
    Select(Box<[Elem; 3]>),
    /// A conversion.
    Cast(Scalar, Box<Elem>),
}

impl Elem {
    /// With axes replaced by expressions.
    pub fn substitute(&self, f: &dyn Fn(&Sym) -> Option<Dim>) -> Elem {
        let of = |e: &Elem| Box::new(e.substitute(f));
        match self {
            Elem::Leaf(v, at) => Elem::Leaf(*v, at.iter().map(|d| d.substitute(f)).collect()),
            Elem::Const(l) => Elem::Const(*l),
            Elem::Index(d) => Elem::Index(d.substitute(f)),
            Elem::Unary(op, a) => Elem::Unary(*op, of(a)),
            Elem::Binary(op, ab) => Elem::Binary(*op, Box::new([*of(&ab[0]), *of(&ab[1])])),
            Elem::Select(ctf) => Elem::Select(Box::new([*of(&ctf[0]), *of(&ctf[1]), *of(&ctf[2])])),
            Elem::Cast(to, a) => Elem::Cast(*to, of(a)),
        }
    }
    /// Whether it depends on an axis of the frame.
    pub fn mentions(&self, axis: usize) -> bool {
        let s = Sym::Axis(axis as u8);
        match self {
            Elem::Leaf(_, at) => at.iter().any(|d| d.mentions(&s)),
            Elem::Const(_) => false,
            Elem::Index(d) => d.mentions(&s),
            Elem::Unary(_, a) | Elem::Cast(_, a) => a.mentions(axis),
            Elem::Binary(_, ab) => ab.iter().any(|x| x.mentions(axis)),
            Elem::Select(ctf) => ctf.iter().any(|x| x.mentions(axis)),
        }
    }
}

/// Coordinates over a frame: axis k of the frame is [`Sym::Axis`] k.
pub(super) struct Frame<'a> {
    site: &'a Site<'a>,
    /// Extents of the axes.
    pub extents: Vec<Dim>,
    /// What is known of sizes and of the axes.
    pub bounds: Bounds,
    leaves: Vec<ValueId>,
    budget: Cell<usize>,
}

const BUDGET: usize = 600;

impl<'a> Frame<'a> {
    /// A frame in which `leaves` are not looked into.
    pub fn new(site: &'a Site<'a>, extents: &[Dim], leaves: &[ValueId]) -> Self {
        let bounds = site.bounds.of_axes(extents);
        Frame { site, extents: extents.to_vec(), bounds, leaves: leaves.to_vec(), budget: Cell::new(BUDGET) }
    }
    /// The element type of a value.
    pub fn scalar(&self, v: ValueId) -> Scalar {
        self.site.g.ty(v).scalar
    }
    /// The axes themselves.
    pub fn axes(&self) -> Vec<Dim> {
        (0..self.extents.len()).map(Dim::axis).collect()
    }
    /// Axes of two shapes of one value, paired in the smallest groups with equal products.
    pub fn groups(&self, from: &[Dim], to: &[Dim]) -> Vec<(Range<usize>, Range<usize>)> {
        let (mut i, mut j, mut out) = (0, 0, Vec::new());
        while i < from.len() || j < to.len() {
            let (a, b) = self.group(&from[i..], &to[j..]);
            out.push((i..i + a, j..j + b));
            (i, j) = (i + a, j + b);
        }
        out
    }
    /// The same element seen through a reshape. Groups of axes with equal products are converted on their own, so that
    /// symbolic extents of one group stay out of the others.
    pub fn reshape(&self, at: &[Dim], from: &[Dim], to: &[Dim]) -> Vec<Dim> {
        let mut out = Vec::new();
        for (i, j) in self.groups(from, to) {
            let own = at.get(i.clone()).unwrap_or_default();
            match (i.len(), j.len()) {
                (1, 1) => out.extend_from_slice(own),
                (_, 0) => {}
                _ => {
                    let linear = coords::linear(own, &from[i], &self.bounds);
                    out.extend(coords::delinear(&linear, &to[j], &self.bounds));
                }
            }
        }
        out
    }
    /// Numbers of leading axes of both shapes with the same product; the fewest.
    fn group(&self, from: &[Dim], to: &[Dim]) -> (usize, usize) {
        if from.first().zip(to.first()).is_some_and(|(a, b)| self.site.same(a, b)) {
            return (1, 1);
        }
        for total in 1..from.len() + to.len() {
            for a in (0..=total.min(from.len())).rev() {
                let b = total - a;
                if b <= to.len() && self.site.same(&product(&from[..a]), &product(&to[..b])) {
                    return (a, b);
                }
            }
        }
        (from.len(), to.len())
    }
    /// The operand of a view and the coordinates of the same element in it.
    pub fn through(&self, v: ValueId, at: &[Dim]) -> Option<(ValueId, Vec<Dim>)> {
        let g = self.site.g;
        let operands = g.operands(v);
        let x = *operands.first()?;
        let from = &g.ty(x).shape;
        let inner = match g.op(v) {
            Op::Reshape(shape) => self.reshape(at, shape, from),
            Op::Transpose(perm) => coords::transpose_back(at, perm),
            Op::Broadcast(_) => coords::broadcast(at, from),
            Op::Slice { axis, start, .. } => {
                let mut at = at.to_vec();
                let c = at.get_mut(*axis)?;
                *c = c.clone() + start.clone();
                at
            }
            Op::Concat { axis } => {
                let c = at.get(*axis)?;
                let mut start = Dim::zero();
                for o in operands {
                    let len = g.ty(o).shape.get(*axis)?.clone();
                    let here = (c.clone() - start.clone()).simplify(&self.bounds);
                    if self.bounds.nonneg(&here) && self.bounds.less(&here, &len) {
                        let mut at = at.to_vec();
                        *at.get_mut(*axis)? = here;
                        return Some((o, at));
                    }
                    start = start + len;
                }
                return None;
            }
            _ => return None,
        };
        Some((x, inner.iter().map(|d| d.simplify(&self.bounds)).collect()))
    }
    /// The element of `v` at `at`, `v` not looked into. On an axis of extent 1 there is one place.
    pub fn leaf(&self, v: ValueId, at: &[Dim]) -> Elem {
        let shape = &self.site.g.ty(v).shape;
        let place = |(k, d): (usize, &Dim)| if shape.get(k).is_some_and(|e| e.is(1)) { Dim::zero() } else { d.clone() };
        Elem::Leaf(v, at.iter().enumerate().map(place).collect())
    }
    /// The element of `v` at `at`.
    pub fn elem(&self, v: ValueId, at: &[Dim]) -> Elem {
        let g = self.site.g;
        let leaf = || self.leaf(v, at);
        if self.leaves.contains(&v) || self.budget.get() == 0 {
            return leaf();
        }
        self.budget.set(self.budget.get() - 1);
        if let Some((x, inner)) = self.through(v, at) {
            return self.elem(x, &inner);
        }
        let operands = g.operands(v);
        let of = |o: &ValueId| self.elem(*o, &coords::broadcast(at, &g.ty(*o).shape));
        match (g.op(v), operands.as_slice()) {
            (Op::Const(Literal::I32(i)), _) => Elem::Index(Dim::from(*i)),
            (Op::Const(l), _) => Elem::Const(*l),
            (Op::Iota { axis, offset }, _) => match at.get(*axis) {
                Some(c) => Elem::Index((c.clone() + offset.clone()).simplify(&self.bounds)),
                None => leaf(),
            },
            (Op::Unary(op), [a]) => match (op, of(a)) {
                (UnaryOp::Neg, Elem::Index(d)) => Elem::Index(Dim::zero() - d),
                (_, a) => Elem::Unary(*op, Box::new(a)),
            },
            (Op::Binary(op), [a, b]) => self.binary(*op, of(a), of(b)),
            (Op::Select, [c, t, f]) => Elem::Select(Box::new([of(c), of(t), of(f)])),
            (Op::Cast(to), [x]) => Elem::Cast(*to, Box::new(of(x))),
            (Op::Gather, [table, ids]) => {
                let (head, rest) = at.split_at(g.ty(*ids).rank().min(at.len()));
                let Elem::Index(row) = self.elem(*ids, head) else { return leaf() };
                let rows = g.ty(*table).shape.first().cloned().unwrap_or_default();
                if !self.bounds.nonneg(&row) || !self.bounds.less(&row, &rows) {
                    return leaf();
                }
                self.elem(*table, &[&[row], rest].concat())
            }
            (Op::Weight(_), _) => self.triangle(v, at).unwrap_or_else(leaf),
            _ => leaf(),
        }
    }
    fn binary(&self, op: BinaryOp, a: Elem, b: Elem) -> Elem {
        if let (Elem::Index(x), Elem::Index(y)) = (&a, &b) {
            let d = match op {
                BinaryOp::Add => Some(x.clone() + y.clone()),
                BinaryOp::Sub => Some(x.clone() - y.clone()),
                BinaryOp::Mul => Some(x * y),
                BinaryOp::Max => Some(x.larger(y)),
                BinaryOp::Min => Some(x.smaller(y)),
                BinaryOp::Div if self.bounds.nonneg(x) && self.bounds.less(&Dim::zero(), y) => Some(x.div(y)),
                _ => None,
            };
            if let Some(d) = d {
                return Elem::Index(d.simplify(&self.bounds));
            }
        }
        Elem::Binary(op, Box::new([a, b]))
    }
    /// A stored Bool matrix that is true where `column ≤ row + d`.
    fn triangle(&self, v: ValueId, at: &[Dim]) -> Option<Elem> {
        let g = self.site.g;
        let (Op::Weight(id), Scalar::Bool) = (g.op(v), g.ty(v).scalar) else { return None };
        let WeightData::Inline(data) = &self.site.tables.weight_info(*id)?.data else { return None };
        let [lead @ .., rows, columns] = g.ty(v).shape.as_slice() else { return None };
        let [.., row, column] = at else { return None };
        let (rows, columns) = (usize::try_from(rows.as_const()?).ok()?, usize::try_from(columns.as_const()?).ok()?);
        if !lead.iter().all(|d| d.is(1)) || rows.checked_mul(columns)? != data.len() || columns == 0 {
            return None;
        }
        let first = data.iter().take(columns).take_while(|x| **x != 0.0).count();
        let wanted = |i: usize| i % columns < i / columns + first;
        let is_triangle = data.iter().enumerate().all(|(i, x)| (*x != 0.0) == wanted(i));
        let last = row.clone() + Dim::from(first) - Dim::one();
        is_triangle.then(|| Elem::Binary(BinaryOp::Le, Box::new([Elem::Index(column.clone()), Elem::Index(last)])))
    }
    /// The value whose element over the frame is `e`: of the frame's rank, with extent 1 along axes that `e` does not
    /// depend on.
    pub fn build(&self, e: &Elem) -> Option<New> {
        Some(match e {
            Elem::Leaf(v, at) => self.view(*v, at)?,
            Elem::Const(l) => New::Make(Op::Const(*l), Vec::new()),
            Elem::Index(d) => self.index(d)?,
            Elem::Unary(op, a) => New::unary(*op, self.build(a)?),
            Elem::Binary(op, ab) => New::binary(*op, self.build(&ab[0])?, self.build(&ab[1])?),
            Elem::Select(ctf) => New::Make(Op::Select, ctf.iter().map(|x| self.build(x)).collect::<Option<Vec<_>>>()?),
            Elem::Cast(to, a) => New::Make(Op::Cast(*to), vec![self.build(a)?]),
        })
    }
    /// The coefficients of `d` by axis, and what is free of axes; `None` when it is not of that form.
    fn affine(&self, d: &Dim) -> Option<(Vec<Dim>, Dim)> {
        let mut rest = d.clone();
        let mut coefficients = Vec::new();
        for k in 0..self.extents.len() {
            let (c, r) = rest.linear_in(&Sym::Axis(k as u8))?;
            coefficients.push(c);
            rest = r;
        }
        let free = |d: &Dim| d.symbols().iter().all(|s| matches!(s, Sym::Size(_)));
        (free(&rest) && coefficients.iter().all(free)).then_some((coefficients, rest))
    }
    fn index(&self, d: &Dim) -> Option<New> {
        let (coefficients, rest) = self.affine(d)?;
        let rank = self.extents.len();
        let counter = |axis: usize, extent: Dim, offset: Dim| {
            let mut shape = vec![Dim::one(); rank];
            *shape.get_mut(axis)? = extent;
            Some(New::Source(Op::Iota { axis, offset }, TensorType::new(Scalar::I32, shape)))
        };
        let mut offset = Some(rest);
        let mut sum: Option<New> = None;
        for (k, c) in coefficients.iter().enumerate().filter(|(_, c)| !c.is(0)) {
            let start = if c.is(1) { offset.take().unwrap_or_default() } else { Dim::zero() };
            let mut term = counter(k, self.extents.get(k)?.clone(), start)?;
            if !c.is(1) {
                let factor = i32::try_from(c.as_const()?).ok()?;
                term = New::binary(BinaryOp::Mul, term, New::Make(Op::Const(Literal::I32(factor)), Vec::new()));
            }
            sum = Some(match sum {
                Some(s) => New::binary(BinaryOp::Add, s, term),
                None => term,
            });
        }
        let lone = match offset.filter(|o| sum.is_none() || !o.is(0)) {
            Some(o) => match o.as_const() {
                Some(c) => Some(New::Make(Op::Const(Literal::I32(i32::try_from(c).ok()?)), Vec::new())),
                None => Some(counter(rank.checked_sub(1)?, Dim::one(), o)?),
            },
            None => None,
        };
        match (sum, lone) {
            (Some(s), Some(l)) => Some(New::binary(BinaryOp::Add, s, l)),
            (s, l) => s.or(l),
        }
    }
    /// A view of `v`, of the frame's rank, whose element over the frame is the one of `v` at `at`.
    pub fn view(&self, v: ValueId, at: &[Dim]) -> Option<New> {
        if let Some(l) = literal(self.site.g, v) {
            return Some(New::Make(Op::Const(l), Vec::new()));
        }
        let mut shape = self.site.g.ty(v).shape.clone();
        let (mut at, mut new) = (at.to_vec(), New::Use(v));
        let mut i = 0;
        while i < at.len() {
            let pairs = (0..self.extents.len()).flat_map(|k| (0..self.extents.len()).map(move |l| (k, l)));
            let is_joined = |(k, l): &(usize, usize)| {
                k != l && !self.extents[*l].is(1) && at[i] == &Dim::axis(*k) * &self.extents[*l] + Dim::axis(*l)
            };
            if let Some((k, l)) = pairs.clone().find(is_joined) {
                let (outer, inner) = (self.extents[k].clone(), self.extents[l].clone());
                if !self.site.same(shape.get(i)?, &(&outer * &inner)) {
                    return None;
                }
                shape.splice(i..=i, [outer, inner]);
                at.splice(i..=i, [Dim::axis(k), Dim::axis(l)]);
                new = New::Make(Op::Reshape(shape.clone()), vec![new]);
                i += 1;
            }
            i += 1;
        }
        let mut place: Vec<Option<usize>> = Vec::new();
        for (i, c) in at.iter().enumerate() {
            let (coefficients, start) = self.affine(c)?;
            let used: Vec<usize> = (0..coefficients.len()).filter(|k| !coefficients[*k].is(0)).collect();
            let len = match used.as_slice() {
                [] => Dim::one(),
                [k] if coefficients[*k].is(1) && !place.contains(&Some(*k)) => self.extents[*k].clone(),
                _ => return None,
            };
            place.push(used.first().copied());
            if !start.is(0) || !self.site.same(&len, shape.get(i)?) {
                *shape.get_mut(i)? = len.clone();
                new = New::Make(Op::Slice { axis: i, start, len }, vec![new]);
            }
        }
        let used: Vec<usize> = place.iter().flatten().copied().collect();
        if used.windows(2).any(|w| w[0] > w[1]) {
            let mut perm: Vec<usize> = (0..place.len()).collect();
            perm.sort_by_key(|i| place[*i].map_or(0, |k| k + 1));
            shape = perm.iter().map(|p| shape[*p].clone()).collect();
            new = New::Make(Op::Transpose(perm), vec![new]);
        }
        let extent = |k: usize| if place.contains(&Some(k)) { self.extents[k].clone() } else { Dim::one() };
        let target: Vec<Dim> = (0..self.extents.len()).map(extent).collect();
        Some(if shape == target { new } else { New::Make(Op::Reshape(target), vec![new]) })
    }
}
