//! Rotary embeddings from slices, products and sums.

use super::elem::{Elem, Frame};
use super::{Found, Miss};
use crate::graph::verify::same_type;
use crate::graph::{Op, RopeStyle, TensorType, ValueId};
use crate::passes::pattern::{below, first, is_private, is_single_use};
use crate::passes::rewrite::{New, Rule, Site};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};

/// ```text
/// rope          y[j] = x[j]·c[j] − x[j']·n[j],  y[j'] = x[j']·c[j] + x[j]·n[j]   ==   rope(x, c, n, positions)
/// rope-partial  concat(rope(slice(x, 0, R)), slice(x, R, D − R)) == rope{R}(x)
/// ```
/// where j' = j + R/2 (half) or the pair is 2j, 2j + 1 (interleaved), and c and n are the same for all heads. The
/// equation is checked on the elements of y, so slices, stacks, negations and tables may be arranged in any way, and
/// the heads may stand before or behind the tokens. c and n become tables with one row a token, or a row for each token
/// of each sequence where they differ between sequences; positions are the numbers of those rows. Exact.
pub(super) const RULES: &[Rule] = &[Rule::round("rope", |s, v| rope(s, v).ok()), Rule::round("rope-partial", partial)];

/// A product with a known number.
#[derive(Clone, Debug)]
struct Product {
    number: f64,
    factors: Vec<Elem>,
}

const MOST_PRODUCTS: usize = 4;

fn products(e: &Elem) -> Option<Vec<Product>> {
    let scaled = |mut p: Vec<Product>, c: f64| {
        p.iter_mut().for_each(|p| p.number *= c);
        p
    };
    let out = match e {
        Elem::Const(Literal::F32(bits)) => {
            vec![Product { number: f64::from(f32::from_bits(*bits)), factors: Vec::new() }]
        }
        Elem::Unary(UnaryOp::Neg, a) => scaled(products(a)?, -1.0),
        Elem::Binary(BinaryOp::Add, ab) => [products(&ab[0])?, products(&ab[1])?].concat(),
        Elem::Binary(BinaryOp::Sub, ab) => [products(&ab[0])?, scaled(products(&ab[1])?, -1.0)].concat(),
        Elem::Binary(BinaryOp::Mul, ab) => {
            let (a, b) = (products(&ab[0])?, products(&ab[1])?);
            let join = |(x, y): (&Product, &Product)| Product {
                number: x.number * y.number,
                factors: [x.factors.as_slice(), &y.factors].concat(),
            };
            a.iter().flat_map(|x| b.iter().map(move |y| (x, y))).map(join).collect()
        }
        other => vec![Product { number: 1.0, factors: vec![other.clone()] }],
    };
    (out.len() <= MOST_PRODUCTS).then_some(out)
}

impl Product {
    fn without(&self, x: &Elem) -> Option<Product> {
        let i = self.factors.iter().position(|f| f == x)?;
        let mut rest = self.clone();
        rest.factors.remove(i);
        Some(rest)
    }
    /// Equal but for a factor `sign`.
    fn same(&self, o: &Product, sign: f64) -> bool {
        let mut rest = o.factors.clone();
        let all = self.factors.iter().all(|f| rest.iter().position(|r| r == f).map(|i| rest.swap_remove(i)).is_some());
        all && rest.is_empty() && self.number == sign * o.number
    }
    fn mentions(&self, axis: usize) -> bool {
        self.factors.iter().any(|f| f.mentions(axis))
    }
}

/// The factors of `x0` and `x1` in a sum of two products with one of them each.
fn pair(e: &Elem, x0: &Elem, x1: &Elem) -> Option<[Product; 2]> {
    let p = products(e)?;
    let [a, b] = p.as_slice() else { return None };
    match (a.without(x0), b.without(x1)) {
        (Some(a), Some(b)) => Some([a, b]),
        _ => Some([b.without(x0)?, a.without(x1)?]),
    }
}

/// Cosines and sines of a rotation of `x` in pairs of `style`.
fn rotation(s: &Site<'_>, v: ValueId, x: ValueId, style: RopeStyle) -> std::result::Result<[Product; 2], Miss> {
    let shape = &s.g.ty(v).shape;
    let [lead @ .., last] = shape.as_slice() else { return Err(Miss::Other) };
    let half = last.div(&Dim::constant(2));
    let frame = Frame::new(s, &[lead, std::slice::from_ref(&half)].concat(), &[x]);
    let j = Dim::axis(lead.len());
    let places = match style {
        RopeStyle::Half => [j.clone(), j + half],
        RopeStyle::Interleaved => [&Dim::constant(2) * &j, &Dim::constant(2) * &j + Dim::one()],
    };
    let at = |place: &Dim| -> Vec<Dim> { (0..lead.len()).map(Dim::axis).chain([place.clone()]).collect() };
    let [x0, x1] = places.each_ref().map(|p| frame.leaf(x, &at(p)));
    let [y0, y1] = places.each_ref().map(|p| frame.elem(v, &at(p)));
    let ([c0, n0], [c1, n1]) = (pair(&y0, &x0, &x1).ok_or(Miss::Other)?, pair(&y1, &x1, &x0).ok_or(Miss::Other)?);
    if !c0.same(&c1, 1.0) {
        return Miss::because("the two elements of a pair have different cosines");
    }
    if !n0.same(&n1, -1.0) {
        return Miss::because("the sines of a pair are not opposite");
    }
    Ok([c1, n1])
}

fn rope(s: &Site<'_>, v: ValueId) -> Found {
    let ty = s.g.ty(v);
    let even = ty.last().as_const().is_some_and(|d| d >= 2 && d % 2 == 0);
    let place = matches!(s.g.op(v), Op::Binary(BinaryOp::Add | BinaryOp::Sub) | Op::Concat { .. } | Op::Reshape(_));
    if !place || ty.rank() != 4 || ty.scalar != Scalar::F32 || !even {
        return Err(Miss::Other);
    }
    let near = below(s.g, v, 8);
    let has = |f: fn(&Op) -> bool| near.iter().any(|n| f(s.g.op(*n)));
    if !has(|op| matches!(op, Op::Concat { .. })) || !has(|op| matches!(op, Op::Binary(BinaryOp::Mul))) {
        return Err(Miss::Other);
    }
    let mut miss = Miss::Other;
    let whole = |x: ValueId| {
        let of = s.g.ty(x);
        let longer = of.last().as_const() >= ty.last().as_const();
        of.scalar == ty.scalar && of.rank() == 4 && of.shape[..3] == ty.shape[..3] && longer
    };
    for x in near.iter().copied().filter(|x| *x != v && whole(*x)) {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            match rotation(s, v, x, style).and_then(|tables| raised(s, v, x, style, tables)) {
                Ok(new) => return Ok(new),
                Err(Miss::Other) => {}
                Err(e) => miss = e,
            }
        }
    }
    Err(miss)
}

fn raised(s: &Site<'_>, v: ValueId, x: ValueId, style: RopeStyle, tables: [Product; 2]) -> Found {
    let ty = s.g.ty(v);
    let mentions = |axis: usize| tables.iter().any(|t| t.mentions(axis));
    let tokens = match (mentions(1), mentions(2)) {
        (true, true) => return Miss::because("the angles differ between heads"),
        (true, false) => 1,
        (false, true) => 2,
        (false, false) if ty.shape.get(1).is_some_and(|d| d.is(1)) && !ty.shape.get(2).is_some_and(|d| d.is(1)) => 1,
        (false, false) => 2,
    };
    if !is_private(s.g, v, &[x], &[]) {
        return Miss::because("an intermediate is used elsewhere");
    }
    let [b, _, _, d] = ty.shape.as_slice() else { return Err(Miss::Other) };
    let (n, half) = (ty.shape.get(tokens).cloned().unwrap_or_default(), d.div(&Dim::constant(2)));
    let each = mentions(0) && !b.is(1);
    let rows = if each { b * &n } else { n.clone() };
    let frame = Frame::new(s, &[b.clone(), n.clone(), half.clone()], &[]);
    let place = |sym: &Sym| match sym {
        Sym::Axis(k) if *k as usize == tokens => Some(Dim::axis(1)),
        Sym::Axis(3) => Some(Dim::axis(2)),
        _ => None,
    };
    let table = |p: &Product| -> Option<New> {
        let mut y = None;
        for f in &p.factors {
            let f = frame.build(&f.substitute(&place))?;
            y = Some(match y {
                Some(y) => New::binary(BinaryOp::Mul, y, f),
                None => f,
            });
        }
        let mut y = y?;
        if p.number != 1.0 {
            y = New::binary(BinaryOp::Mul, y, New::f32(p.number as f32));
        }
        let lead = if each { b.clone() } else { Dim::one() };
        let full = New::Make(Op::Broadcast(vec![lead, n.clone(), half.clone()]), vec![y]);
        Some(New::Make(Op::Reshape(vec![rows.clone(), half.clone()]), vec![full]))
    };
    let [Some(cos), Some(sin)] = tables.each_ref().map(table) else {
        return Miss::because("the angles are no view of a value by token and pair");
    };
    let count =
        |shape: &[Dim], axis| New::Source(Op::Iota { axis, offset: Dim::zero() }, TensorType::new(Scalar::I32, shape));
    let grid = [b.clone(), n.clone()];
    let positions = match each {
        true => New::Make(Op::Reshape(grid.to_vec()), vec![count(&[rows.clone()], 0)]),
        false => count(&grid, 1),
    };
    let rotary_dim = d.as_const().and_then(|d| u64::try_from(d).ok()).ok_or(Miss::Other)?;
    let swap = |x: New| if tokens == 1 { New::Make(Op::Transpose(vec![0, 2, 1, 3]), vec![x]) } else { x };
    let part = if s.g.ty(x).last() == *d {
        New::Use(x)
    } else {
        New::make(Op::Slice { axis: 3, start: Dim::zero(), len: d.clone() }, &[x])
    };
    let y = swap(New::Make(Op::Rope { style, rotary_dim }, vec![swap(part), cos, sin, positions]));
    match y.ty(s.g) {
        Ok(made) if same_type(&made, ty, s.bounds) => Ok(y),
        Ok(made) => Miss::because(format!("the result would be {made}")),
        Err(fault) => Miss::because(fault),
    }
}

/// A rotation of the first elements of a head, joined with the others.
fn partial(s: &Site<'_>, v: ValueId) -> Option<New> {
    let g = s.g;
    let Op::Concat { axis: 3 } = g.op(v) else { return None };
    let [rotated, rest] = g.operands(v)[..] else { return None };
    let swapped = matches!(g.op(rotated), Op::Transpose(p) if *p == [0, 2, 1, 3]);
    let y = if swapped { first(g, rotated)? } else { rotated };
    let Op::Rope { style, rotary_dim } = g.op(y) else { return None };
    let [input, cos, sin, positions] = g.operands(y)[..] else { return None };
    let part = if swapped {
        let Op::Transpose(p) = g.op(input) else { return None };
        (*p == [0, 2, 1, 3]).then(|| first(g, input))??
    } else {
        input
    };
    let cut = |p: ValueId| match g.op(p) {
        Op::Slice { axis: 3, start, len } => Some((first(g, p)?, start.clone(), len.clone())),
        _ => None,
    };
    let ((x, zero, r), (x2, from, _)) = (cut(part)?, cut(rest)?);
    let all = x == x2 && zero.is(0) && r == from && r.is(i64::try_from(*rotary_dim).ok()?) && g.ty(x) == g.ty(v);
    if !all || !is_single_use(g, rotated) || !is_single_use(g, y) {
        return None;
    }
    let swap = |x: New| if swapped { New::Make(Op::Transpose(vec![0, 2, 1, 3]), vec![x]) } else { x };
    let tables = [cos, sin, positions].map(New::Use);
    let op = Op::Rope { style: *style, rotary_dim: *rotary_dim };
    Some(swap(New::Make(op, [swap(New::Use(x))].into_iter().chain(tables).collect())))
}

/// Why a sum with a rotated half is no rotary embedding.
pub(super) fn doubt(s: &Site<'_>, v: ValueId) -> Option<String> {
    Miss::reason(rope(s, v)).or_else(|| half_turned(s, v).then(|| "the pairs are not those of a rotation".into()))
}

/// Whether a negated slice is joined with another of the same value and multiplied below.
fn half_turned(s: &Site<'_>, v: ValueId) -> bool {
    let g = s.g;
    let Op::Binary(BinaryOp::Add) = g.op(v) else { return false };
    let slice_of = |p: ValueId| match g.op(p) {
        Op::Slice { .. } => first(g, p),
        Op::Unary(UnaryOp::Neg) => {
            first(g, p).filter(|q| matches!(g.op(*q), Op::Slice { .. })).and_then(|q| first(g, q))
        }
        _ => None,
    };
    below(g, v, 2).into_iter().any(|n| {
        let parts = g.operands(n);
        matches!(g.op(n), Op::Concat { .. })
            && parts.len() == 2
            && parts.iter().any(|p| matches!(g.op(*p), Op::Unary(UnaryOp::Neg)))
            && slice_of(parts[0]).is_some()
            && slice_of(parts[0]) == slice_of(parts[1])
    })
}
