//! Masks: truth values as conditions on coordinates, however they are spelled.

use super::elem::{Elem, Frame};
use crate::passes::rewrite::New;
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, Literal, UnaryOp};

/// A truth value over the axes of a frame.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cond {
    /// Everywhere.
    Known(bool),
    /// `d ≥ 0`.
    NonNegative(Dim),
    /// What a value says.
    Says(Elem),
    /// Not.
    Not(Box<Cond>),
    /// All of them.
    All(Vec<Cond>),
    /// Any of them.
    Any(Vec<Cond>),
}

/// A score to which this or less is added counts as hidden: its weight vanishes beside any visible one. The largest
/// such constant in use is −10⁴.
pub(super) const HIDDEN: f64 = -9.9e3;

impl Frame<'_> {
    fn at_least_zero(&self, d: Dim) -> Cond {
        let d = d.simplify(&self.bounds);
        match () {
            () if self.bounds.nonneg(&d) => Cond::Known(true),
            () if self.bounds.nonneg(&(Dim::zero() - d.clone() - Dim::one())) => Cond::Known(false),
            () => Cond::NonNegative(d),
        }
    }
    /// Where `c` does not hold.
    pub fn not(&self, c: Cond) -> Cond {
        match c {
            Cond::Known(b) => Cond::Known(!b),
            Cond::NonNegative(d) => self.at_least_zero(Dim::zero() - d - Dim::one()),
            Cond::Not(c) => *c,
            Cond::All(cs) => any(cs.into_iter().map(|c| self.not(c)).collect()),
            Cond::Any(cs) => all(cs.into_iter().map(|c| self.not(c)).collect()),
            c @ Cond::Says(_) => Cond::Not(Box::new(c)),
        }
    }
    /// The condition under which a Bool element is true.
    pub fn cond(&self, e: &Elem) -> Cond {
        let says = || Cond::Says(e.clone());
        match e {
            Elem::Const(Literal::Bool(b)) => Cond::Known(*b),
            Elem::Unary(UnaryOp::Not, a) => self.not(self.cond(a)),
            Elem::Binary(BinaryOp::And, ab) => all(ab.iter().map(|x| self.cond(x)).collect()),
            Elem::Binary(BinaryOp::Or, ab) => any(ab.iter().map(|x| self.cond(x)).collect()),
            Elem::Binary(op @ (BinaryOp::Le | BinaryOp::Lt | BinaryOp::Eq), ab) => match (op, &**ab) {
                (BinaryOp::Le, [Elem::Index(a), Elem::Index(b)]) => self.at_least_zero(b.clone() - a.clone()),
                (BinaryOp::Lt, [Elem::Index(a), Elem::Index(b)]) => {
                    self.at_least_zero(b.clone() - a.clone() - Dim::one())
                }
                (BinaryOp::Eq, [Elem::Index(a), Elem::Index(b)]) => {
                    let (up, down) = (b.clone() - a.clone(), a.clone() - b.clone());
                    all(vec![self.at_least_zero(up), self.at_least_zero(down)])
                }
                (_, [a, b]) => self.compared(*op, a, b).unwrap_or_else(says),
            },
            Elem::Select(ctf) => {
                let c = self.cond(&ctf[0]);
                let (t, f) = (self.cond(&ctf[1]), self.cond(&ctf[2]));
                any(vec![all(vec![c.clone(), t]), all(vec![self.not(c), f])])
            }
            Elem::Cast(Scalar::Bool, a) => match self.cases(a) {
                Some(cases) => any(cases.into_iter().filter(|(_, x)| *x != 0.0).map(|(c, _)| c).collect()),
                None => says(),
            },
            _ => says(),
        }
    }
    fn compared(&self, op: BinaryOp, a: &Elem, b: &Elem) -> Option<Cond> {
        let (a, b) = (self.cases(a)?, self.cases(b)?);
        let holds = |x: f64, y: f64| match op {
            BinaryOp::Le => x <= y,
            BinaryOp::Lt => x < y,
            _ => x == y,
        };
        let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (x, y)));
        Some(any(pairs.filter(|(x, y)| holds(x.1, y.1)).map(|(x, y)| all(vec![x.0.clone(), y.0.clone()])).collect()))
    }
    /// A number that takes few values: each with the condition under which it is taken. The conditions exclude each
    /// other, and one of them holds.
    pub fn cases(&self, e: &Elem) -> Option<Vec<(Cond, f64)>> {
        let sure = |x: f64| Some(vec![(Cond::Known(true), x)]);
        match e {
            Elem::Const(Literal::F32(bits)) => sure(f64::from(f32::from_bits(*bits))),
            Elem::Const(Literal::I32(i)) => sure(f64::from(*i)),
            Elem::Index(d) => sure(d.as_const()? as f64),
            Elem::Cast(to, a) => match self.truth(a) {
                Some(c) => Some(joined(vec![(c.clone(), 1.0), (self.not(c), 0.0)])),
                None => {
                    let whole = |x: f64| if *to == Scalar::I32 { x.trunc() } else { x };
                    Some(self.cases(a)?.into_iter().map(|(c, x)| (c, whole(x))).collect())
                }
            },
            Elem::Select(ctf) => {
                let c = self.cond(&ctf[0]);
                let under = |c: &Cond, cases: Vec<(Cond, f64)>| {
                    let c = c.clone();
                    cases.into_iter().map(move |(d, x)| (all(vec![c.clone(), d]), x))
                };
                let (t, f) = (self.cases(&ctf[1])?, self.cases(&ctf[2])?);
                let other = self.not(c.clone());
                few(under(&c, t).chain(under(&other, f)).collect())
            }
            Elem::Unary(UnaryOp::Neg, a) => Some(self.cases(a)?.into_iter().map(|(c, x)| (c, -x)).collect()),
            Elem::Binary(op, ab) => {
                let f = |x: f64, y: f64| match op {
                    BinaryOp::Add => Some(x + y),
                    BinaryOp::Sub => Some(x - y),
                    BinaryOp::Mul => Some(x * y),
                    BinaryOp::Div => Some(x / y),
                    BinaryOp::Max => Some(x.max(y)),
                    BinaryOp::Min => Some(x.min(y)),
                    _ => None,
                };
                let (a, b) = (self.cases(&ab[0])?, self.cases(&ab[1])?);
                let mut out = Vec::new();
                for ((c, x), (d, y)) in a.iter().flat_map(|x| b.iter().map(move |y| (x, y))) {
                    let z = f(*x, *y).filter(|z| !z.is_nan())?;
                    out.push((all(vec![c.clone(), d.clone()]), z));
                }
                few(out)
            }
            _ => None,
        }
    }
    /// The condition of an element that is known to be a truth value.
    fn truth(&self, e: &Elem) -> Option<Cond> {
        let is_bool = match e {
            Elem::Const(l) => l.scalar() == Scalar::Bool,
            Elem::Unary(op, _) => *op == UnaryOp::Not,
            Elem::Binary(op, _) => op.is_comparison() || matches!(op, BinaryOp::And | BinaryOp::Or),
            Elem::Cast(to, _) => *to == Scalar::Bool,
            Elem::Leaf(v, _) => self.scalar(*v) == Scalar::Bool,
            Elem::Select(_) | Elem::Index(_) => false,
        };
        is_bool.then(|| self.cond(e))
    }
    /// Where a number that is added to scores is 0, if it is somewhere and at most [`HIDDEN`] elsewhere.
    pub fn visible(&self, e: &Elem, factor: f64) -> Option<Cond> {
        let (zero, hidden): (Vec<_>, Vec<_>) = self.cases(e)?.into_iter().partition(|(_, x)| *x == 0.0);
        let fits = !zero.is_empty() && hidden.iter().all(|(_, x)| x * factor <= HIDDEN);
        fits.then(|| self.not(any(hidden.into_iter().map(|(c, _)| c).collect())))
    }
    /// The Bool value of the frame's rank that says `c`.
    pub fn say(&self, c: &Cond) -> Option<New> {
        let of = |cs: &[Cond], op: BinaryOp| {
            let mut cs = cs.iter();
            let first = self.say(cs.next()?)?;
            cs.try_fold(first, |a, c| Some(New::binary(op, a, self.say(c)?)))
        };
        Some(match c {
            Cond::Known(b) => New::Make(crate::graph::Op::Const(Literal::Bool(*b)), Vec::new()),
            Cond::NonNegative(d) => {
                let (mut low, mut high) = (Dim::zero(), d.clone());
                for k in 0..self.extents.len() {
                    let (c, _) = high.linear_in(&Sym::Axis(k as u8))?;
                    if c.as_const()? < 0 {
                        let part = &c * &Dim::axis(k);
                        (low, high) = (low - part.clone(), high - part);
                    }
                }
                let pair = [Elem::Index(low), Elem::Index(high)];
                New::binary(BinaryOp::Le, self.build(&pair[0])?, self.build(&pair[1])?)
            }
            Cond::Says(e) => self.build(e)?,
            Cond::Not(c) => New::unary(UnaryOp::Not, self.say(c)?),
            Cond::All(cs) => of(cs, BinaryOp::And)?,
            Cond::Any(cs) => of(cs, BinaryOp::Or)?,
        })
    }
}

/// All of `cs`.
pub(super) fn all(cs: Vec<Cond>) -> Cond {
    gathered(cs, true)
}

/// Any of `cs`.
pub(super) fn any(cs: Vec<Cond>) -> Cond {
    gathered(cs, false)
}

fn gathered(cs: Vec<Cond>, unit: bool) -> Cond {
    let mut out: Vec<Cond> = Vec::new();
    for c in cs {
        match c {
            Cond::Known(b) if b == unit => {}
            Cond::Known(b) => return Cond::Known(b),
            Cond::All(inner) if unit => out.extend(inner),
            Cond::Any(inner) if !unit => out.extend(inner),
            c => out.push(c),
        }
    }
    let mut distinct: Vec<Cond> = Vec::new();
    for c in out {
        if !distinct.contains(&c) {
            distinct.push(c);
        }
    }
    match distinct.len() {
        0 => Cond::Known(unit),
        1 => distinct.swap_remove(0),
        _ if unit => Cond::All(distinct),
        _ => Cond::Any(distinct),
    }
}

/// Cases of one value become one.
fn joined(cases: Vec<(Cond, f64)>) -> Vec<(Cond, f64)> {
    let mut out: Vec<(Vec<Cond>, f64)> = Vec::new();
    for (c, x) in cases {
        if c == Cond::Known(false) {
            continue;
        }
        match out.iter_mut().find(|(_, y)| *y == x) {
            Some((cs, _)) => cs.push(c),
            None => out.push((vec![c], x)),
        }
    }
    let lone = out.len() == 1;
    out.into_iter().map(|(cs, x)| (if lone { Cond::Known(true) } else { any(cs) }, x)).collect()
}

fn few(cases: Vec<(Cond, f64)>) -> Option<Vec<(Cond, f64)>> {
    let j = joined(cases);
    (j.len() <= 4).then_some(j)
}
