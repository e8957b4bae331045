//! Symbolic integer expressions: tensor extents, index maps and launch geometry share this one algebra.
//!
//! A [`Dim`] is a polynomial with integer coefficients over atoms: symbols, floor divisions, remainders, minima and
//! maxima. Sums and products are kept in normal form, so that equal polynomials compare equal; [`Dim::simplify`] uses
//! what [`Bounds`] know to remove divisions. An index map is a `Dim` over [`Sym::Axis`] symbols, which is why views
//! compose by substitution.

mod bounds;
mod text;

pub use bounds::Bounds;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A symbol of a [`Dim`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sym {
    /// A size known when a session binds it, such as the batch `B`.
    Size(Arc<str>),
    /// An iteration axis of a kernel, printed `i0`, `i1`, …
    Axis(u8),
    /// The integer value of an expression of the same kernel (a data-dependent index), printed `v0`, `v1`, …
    Value(u32),
}

/// One factor of a monomial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// A symbol.
    Sym(Sym),
    /// `floor(a / b)` for a ≥ 0, b > 0.
    Div(Box<Dim>, Box<Dim>),
    /// `a − b·floor(a / b)`.
    Mod(Box<Dim>, Box<Dim>),
    /// The larger of two.
    Max(Box<Dim>, Box<Dim>),
    /// The smaller of two.
    Min(Box<Dim>, Box<Dim>),
}

/// A product of atoms in ascending order; the empty product is 1.
pub type Monomial = Vec<Atom>;

/// A symbolic integer in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Dim {
    terms: BTreeMap<Monomial, i64>,
}

/// Why a [`Dim`] has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DimError {
    /// A symbol has no value in the environment.
    #[error("the size `{0}` has no value")]
    Unbound(String),
    /// The arithmetic left the range of 64-bit integers.
    #[error("`{0}` overflows 64-bit integers")]
    Overflow(String),
    /// A division by zero.
    #[error("`{0}` divides by zero")]
    DivisionByZero(String),
    /// A text that is not a size expression.
    #[error("`{text}` is no size expression: {reason} at byte {at}")]
    Parse {
        /// The text as given.
        text: String,
        /// Byte offset of the fault.
        at: usize,
        /// What was expected there.
        reason: String,
    },
}

impl From<u64> for Dim {
    fn from(v: u64) -> Self {
        Dim::constant(i64::try_from(v).unwrap_or(i64::MAX))
    }
}
impl From<usize> for Dim {
    fn from(v: usize) -> Self {
        Dim::constant(i64::try_from(v).unwrap_or(i64::MAX))
    }
}
impl From<i32> for Dim {
    fn from(v: i32) -> Self {
        Dim::constant(i64::from(v))
    }
}
impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Dim::size(name)
    }
}

impl Dim {
    /// The number `v`.
    pub fn constant(v: i64) -> Self {
        let mut terms = BTreeMap::new();
        if v != 0 {
            terms.insert(Vec::new(), v);
        }
        Dim { terms }
    }
    /// Zero.
    pub fn zero() -> Self {
        Dim::default()
    }
    /// One.
    pub fn one() -> Self {
        Dim::constant(1)
    }
    /// A named size.
    pub fn size(name: &str) -> Self {
        Dim::atom(Atom::Sym(Sym::Size(name.into())))
    }
    /// An iteration axis.
    pub fn axis(k: usize) -> Self {
        Dim::atom(Atom::Sym(Sym::Axis(k as u8)))
    }
    /// A data-dependent value: the expression numbered `id`.
    pub fn value(id: u32) -> Self {
        Dim::atom(Atom::Sym(Sym::Value(id)))
    }
    /// A symbol.
    pub fn sym(s: Sym) -> Self {
        Dim::atom(Atom::Sym(s))
    }
    fn atom(a: Atom) -> Self {
        Dim { terms: BTreeMap::from([(vec![a], 1)]) }
    }
    /// The terms in normal order: monomial and coefficient.
    pub fn terms(&self) -> impl Iterator<Item = (&Monomial, i64)> {
        self.terms.iter().map(|(m, c)| (m, *c))
    }
    /// The value, if no symbol occurs.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }
    /// The name, if this is nothing but a size.
    pub fn as_size(&self) -> Option<&str> {
        let mut terms = self.terms();
        match (terms.next(), terms.next()) {
            (Some((m, 1)), None) => match m.as_slice() {
                [Atom::Sym(Sym::Size(n))] => Some(n),
                _ => None,
            },
            _ => None,
        }
    }
    /// Whether this is the number `v`.
    pub fn is(&self, v: i64) -> bool {
        self.as_const() == Some(v)
    }
    fn add_term(&mut self, m: Monomial, c: i64) {
        let e = self.terms.entry(m).or_insert(0);
        *e = e.saturating_add(c);
        if *e == 0 {
            self.terms.retain(|_, c| *c != 0);
        }
    }
    /// `floor(self / d)`; folds constants and exact divisions.
    pub fn div(&self, d: &Dim) -> Dim {
        if d.is(1) || self.is(0) {
            return self.clone();
        }
        let (q, r) = self.split(d);
        if r.is(0) {
            return q;
        }
        if let (Some(a), Some(b)) = (r.as_const(), d.as_const())
            && b != 0
        {
            return q + Dim::constant(a.div_euclid(b));
        }
        if let ([(m, 1)], Some(b)) = (r.terms.iter().map(|(m, c)| (m, *c)).collect::<Vec<_>>().as_slice(), d.as_const())
            && let [Atom::Div(a, c)] = m.as_slice()
            && b > 0
        {
            return q + a.div(&(&**c * &Dim::constant(b)));
        }
        q + Dim::atom(Atom::Div(Box::new(r), Box::new(d.clone())))
    }
    /// `ceil(self / d)`.
    pub fn ceil_div(&self, d: &Dim) -> Dim {
        (self.clone() + d.clone() - Dim::one()).div(d)
    }
    /// The remainder of `self / d`.
    pub fn rem(&self, d: &Dim) -> Dim {
        if d.is(1) {
            return Dim::zero();
        }
        let (_, r) = self.split(d);
        if r.is(0) {
            return r;
        }
        if let (Some(a), Some(b)) = (r.as_const(), d.as_const())
            && b != 0
        {
            return Dim::constant(a.rem_euclid(b));
        }
        Dim::atom(Atom::Mod(Box::new(r), Box::new(d.clone())))
    }
    /// The larger of two.
    pub fn larger(&self, o: &Dim) -> Dim {
        match (self.as_const(), o.as_const()) {
            (Some(a), Some(b)) => Dim::constant(a.max(b)),
            _ if self == o => self.clone(),
            _ => {
                let (a, b) = if self <= o { (self, o) } else { (o, self) };
                Dim::atom(Atom::Max(Box::new(a.clone()), Box::new(b.clone())))
            }
        }
    }
    /// The smaller of two.
    pub fn smaller(&self, o: &Dim) -> Dim {
        match (self.as_const(), o.as_const()) {
            (Some(a), Some(b)) => Dim::constant(a.min(b)),
            _ if self == o => self.clone(),
            _ => {
                let (a, b) = if self <= o { (self, o) } else { (o, self) };
                Dim::atom(Atom::Min(Box::new(a.clone()), Box::new(b.clone())))
            }
        }
    }
    /// `self = q·d + r`, moving every term that `d` divides exactly into `q`, and of a constant as much as leaves a
    /// remainder in `[0, d)`. Only a single-term `d` (or an exact constant multiple of `d`) divides.
    pub fn split(&self, d: &Dim) -> (Dim, Dim) {
        if self == d {
            return (Dim::one(), Dim::zero());
        }
        let Some((dm, dc)) = d.single() else {
            return (Dim::zero(), self.clone());
        };
        let (mut q, mut r) = (Dim::zero(), Dim::zero());
        for (m, c) in &self.terms {
            if m.is_empty() && dm.is_empty() && dc > 0 {
                q.add_term(Vec::new(), c.div_euclid(dc));
                r.add_term(Vec::new(), c.rem_euclid(dc));
                continue;
            }
            match (c % dc == 0).then(|| without(m, dm)).flatten() {
                Some(rest) => q.add_term(rest, c / dc),
                None => r.add_term(m.clone(), *c),
            }
        }
        (q, r)
    }
    fn single(&self) -> Option<(&Monomial, i64)> {
        match self.terms.len() {
            1 => self.terms.iter().next().map(|(m, c)| (m, *c)),
            _ => None,
        }
    }
    /// Replaces symbols by expressions; a symbol that `f` maps to `None` stays.
    pub fn substitute(&self, f: &dyn Fn(&Sym) -> Option<Dim>) -> Dim {
        let mut out = Dim::zero();
        for (m, c) in &self.terms {
            let mut p = Dim::constant(*c);
            for a in m {
                p = &p * &a.substitute(f);
            }
            out = out + p;
        }
        out
    }
    /// The value under `env`.
    ///
    /// # Errors
    /// [`DimError`] for an unbound symbol, a division by zero or an overflow.
    pub fn eval(&self, env: &dyn Fn(&Sym) -> Option<i64>) -> Result<i64, DimError> {
        let over = || DimError::Overflow(self.to_string());
        let mut sum = 0i64;
        for (m, c) in &self.terms {
            let mut p = *c;
            for a in m {
                p = p.checked_mul(a.eval(env)?).ok_or_else(over)?;
            }
            sum = sum.checked_add(p).ok_or_else(over)?;
        }
        Ok(sum)
    }
    /// Every symbol, each once, in order of first occurrence.
    pub fn symbols(&self) -> Vec<Sym> {
        let mut out = Vec::new();
        self.visit(&mut |s| {
            if !out.contains(s) {
                out.push(s.clone());
            }
        });
        out
    }
    /// Calls `f` on every occurrence of a symbol.
    pub fn visit(&self, f: &mut dyn FnMut(&Sym)) {
        for m in self.terms.keys() {
            for a in m {
                match a {
                    Atom::Sym(s) => f(s),
                    Atom::Div(x, y) | Atom::Mod(x, y) | Atom::Max(x, y) | Atom::Min(x, y) => {
                        x.visit(f);
                        y.visit(f);
                    }
                }
            }
        }
    }
    /// Whether `s` occurs.
    pub fn mentions(&self, s: &Sym) -> bool {
        let mut hit = false;
        self.visit(&mut |x| hit |= x == s);
        hit
    }
    /// The coefficient `c` and rest `r` of `self = c·s + r`, if `s` occurs in no other way.
    pub fn linear_in(&self, s: &Sym) -> Option<(Dim, Dim)> {
        let (mut c, mut r) = (Dim::zero(), Dim::zero());
        for (m, k) in &self.terms {
            let here: Vec<usize> =
                m.iter().enumerate().filter(|(_, a)| **a == Atom::Sym(s.clone())).map(|(i, _)| i).collect();
            let inside = |m: &[Atom]| Dim { terms: BTreeMap::from([(m.to_vec(), 1)]) }.mentions(s);
            match here.as_slice() {
                [] if !inside(m) => r.add_term(m.clone(), *k),
                [i] => {
                    let mut rest = m.clone();
                    rest.remove(*i);
                    if inside(&rest) {
                        return None;
                    }
                    c.add_term(rest, *k);
                }
                _ => return None,
            }
        }
        Some((c, r))
    }
    /// Removes divisions and remainders that `bounds` decide, and joins `d·floor(x/d) + x mod d` to `x`.
    pub fn simplify(&self, bounds: &Bounds) -> Dim {
        let mut out = Dim::zero();
        for (m, c) in &self.terms {
            let mut p = Dim::constant(*c);
            for a in m {
                p = &p * &a.simplify(bounds);
            }
            out = out + p;
        }
        out.join_remainders()
    }
    fn join_remainders(self) -> Dim {
        for (m, c) in &self.terms {
            for (i, a) in m.iter().enumerate() {
                let Atom::Mod(x, d) = a else { continue };
                let mut rest = m.clone();
                rest.remove(i);
                let quotient = x.div(d);
                let rest = Dim { terms: BTreeMap::from([(rest, *c)]) };
                let partner = &(&rest * &quotient) * d;
                let wanted =
                    !partner.terms.is_empty() && partner.terms.iter().all(|(pm, pc)| self.terms.get(pm) == Some(pc));
                if wanted {
                    let modterm = Dim { terms: BTreeMap::from([(m.clone(), *c)]) };
                    let joined = self.clone() - partner - modterm + &rest * x;
                    return joined.join_remainders();
                }
            }
        }
        self
    }
}

fn without(m: &Monomial, d: &Monomial) -> Option<Monomial> {
    let mut rest = m.clone();
    for a in d {
        let i = rest.iter().position(|x| x == a)?;
        rest.remove(i);
    }
    Some(rest)
}

impl Atom {
    fn substitute(&self, f: &dyn Fn(&Sym) -> Option<Dim>) -> Dim {
        match self {
            Atom::Sym(s) => f(s).unwrap_or_else(|| Dim::sym(s.clone())),
            Atom::Div(a, b) => a.substitute(f).div(&b.substitute(f)),
            Atom::Mod(a, b) => a.substitute(f).rem(&b.substitute(f)),
            Atom::Max(a, b) => a.substitute(f).larger(&b.substitute(f)),
            Atom::Min(a, b) => a.substitute(f).smaller(&b.substitute(f)),
        }
    }
    fn eval(&self, env: &dyn Fn(&Sym) -> Option<i64>) -> Result<i64, DimError> {
        let pair = |a: &Dim, b: &Dim| Ok::<_, DimError>((a.eval(env)?, b.eval(env)?));
        match self {
            Atom::Sym(s) => env(s).ok_or_else(|| DimError::Unbound(s.to_string())),
            Atom::Div(a, b) | Atom::Mod(a, b) => {
                let (x, y) = pair(a, b)?;
                if y == 0 {
                    return Err(DimError::DivisionByZero(format!("{a} / {b}")));
                }
                Ok(if matches!(self, Atom::Div(..)) { x.div_euclid(y) } else { x.rem_euclid(y) })
            }
            Atom::Max(a, b) => pair(a, b).map(|(x, y)| x.max(y)),
            Atom::Min(a, b) => pair(a, b).map(|(x, y)| x.min(y)),
        }
    }
    fn simplify(&self, bounds: &Bounds) -> Dim {
        match self {
            Atom::Sym(_) => Dim::atom(self.clone()),
            Atom::Div(a, b) => {
                let (a, b) = (a.simplify(bounds), b.simplify(bounds));
                let (q, r) = a.split(&b);
                if bounds.nonneg(&r) && bounds.less(&r, &b) { q } else { a.div(&b) }
            }
            Atom::Mod(a, b) => {
                let (a, b) = (a.simplify(bounds), b.simplify(bounds));
                let (_, r) = a.split(&b);
                if bounds.nonneg(&r) && bounds.less(&r, &b) { r } else { a.rem(&b) }
            }
            Atom::Max(a, b) | Atom::Min(a, b) => {
                let (a, b) = (a.simplify(bounds), b.simplify(bounds));
                let is_max = matches!(self, Atom::Max(..));
                if bounds.nonneg(&(a.clone() - b.clone())) {
                    return if is_max { a } else { b };
                }
                if bounds.nonneg(&(b.clone() - a.clone())) {
                    return if is_max { b } else { a };
                }
                if is_max { a.larger(&b) } else { a.smaller(&b) }
            }
        }
    }
}

impl std::ops::Add for Dim {
    type Output = Dim;
    fn add(mut self, o: Dim) -> Dim {
        for (m, c) in o.terms {
            self.add_term(m, c);
        }
        self
    }
}
impl std::ops::Sub for Dim {
    type Output = Dim;
    fn sub(mut self, o: Dim) -> Dim {
        for (m, c) in o.terms {
            self.add_term(m, -c);
        }
        self
    }
}
impl std::ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, o: Dim) -> Dim {
        &self * &o
    }
}
impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, o: &Dim) -> Dim {
        let mut out = Dim::zero();
        for (m, c) in &self.terms {
            for (n, k) in &o.terms {
                let mut p: Monomial = m.iter().chain(n).cloned().collect();
                p.sort();
                out.add_term(p, c.saturating_mul(*k));
            }
        }
        out
    }
}

/// The product of extents: the number of elements of a shape.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::one(), |p, d| &p * d)
}

#[cfg(test)]
mod tests;
