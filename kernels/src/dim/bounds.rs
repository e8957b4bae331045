//! What is known of symbols, and what follows from it: the prover behind every simplification and bounds check.

use super::{Atom, Dim, Monomial, Sym};
use std::collections::BTreeMap;

/// What is known of symbols: inclusive bounds, the upper one possibly symbolic.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    known: BTreeMap<Sym, (i64, Option<Dim>)>,
}

impl Bounds {
    /// Nothing known but that sizes are at least 1 and axes and values at least 0.
    pub fn new() -> Self {
        Bounds::default()
    }
    /// States `lo ≤ s ≤ hi`.
    pub fn set(&mut self, s: Sym, lo: i64, hi: Option<Dim>) {
        self.known.insert(s, (lo, hi));
    }
    /// States `0 ≤ axis k < extent`.
    pub fn axis(&mut self, k: usize, extent: &Dim) {
        self.set(Sym::Axis(k as u8), 0, Some(extent.clone() - Dim::one()));
    }
    /// Bounds in which axis k runs over `extents[k]`.
    pub fn of_axes(&self, extents: &[Dim]) -> Bounds {
        let mut b = self.clone();
        for (k, e) in extents.iter().enumerate() {
            b.axis(k, e);
        }
        b
    }
    /// The stated largest value of a symbol.
    pub fn most(&self, s: &Sym) -> Option<Dim> {
        self.known.get(s).and_then(|k| k.1.clone())
    }
    fn lo(&self, s: &Sym) -> i64 {
        self.known.get(s).map_or(if matches!(s, Sym::Size(_)) { 1 } else { 0 }, |k| k.0)
    }
    /// Whether `a < b` is proved.
    pub fn less(&self, a: &Dim, b: &Dim) -> bool {
        self.nonneg(&(b.clone() - a.clone() - Dim::one()))
    }
    /// Whether `a ≤ b` is proved.
    pub fn le(&self, a: &Dim, b: &Dim) -> bool {
        self.nonneg(&(b.clone() - a.clone()))
    }
    /// Whether `d ≥ 0` is proved. A `false` means not proved, not disproved.
    pub fn nonneg(&self, d: &Dim) -> bool {
        self.nonneg_at(d, 0)
    }
    fn nonneg_at(&self, d: &Dim, depth: usize) -> bool {
        if let Some(v) = d.as_const() {
            return v >= 0;
        }
        if depth > 12 {
            return false;
        }
        for (m, _) in d.terms() {
            for a in m {
                match a {
                    Atom::Sym(s @ (Sym::Axis(_) | Sym::Value(_))) => return self.eliminate(d, s, depth),
                    Atom::Div(..) | Atom::Mod(..) | Atom::Max(..) | Atom::Min(..) => {
                        return self.eliminate_atom(d, a, depth);
                    }
                    Atom::Sym(Sym::Size(_)) => {}
                }
            }
        }
        if let Some(s) = d.symbols().into_iter().find(|s| self.lo(s) != 0) {
            let lo = self.lo(&s);
            let shifted = d.substitute(&|x| (*x == s).then(|| Dim::sym(s.clone()) + Dim::constant(lo)));
            let mut b = self.clone();
            b.set(s.clone(), 0, self.known.get(&s).and_then(|k| k.1.clone()).map(|h| h - Dim::constant(lo)));
            for hi in b.known.values_mut().filter_map(|k| k.1.as_mut()).filter(|hi| hi.mentions(&s)) {
                *hi = hi.substitute(&|x| (*x == s).then(|| Dim::sym(s.clone()) + Dim::constant(lo)));
            }
            return b.nonneg_at(&shifted, depth + 1);
        }
        if d.terms().all(|(_, c)| c >= 0) {
            return true;
        }
        for s in d.symbols() {
            if let (Some((c, r)), Some((_, Some(hi)))) = (d.linear_in(&s), self.known.get(&s))
                && self.nonneg_at(&(Dim::zero() - c.clone()), depth + 1)
            {
                return self.nonneg_at(&(&c * hi + r), depth + 1);
            }
        }
        false
    }
    fn eliminate(&self, d: &Dim, s: &Sym, depth: usize) -> bool {
        let Some((c, r)) = d.linear_in(s) else { return false };
        if self.nonneg_at(&c, depth + 1) {
            return self.nonneg_at(&(&c * &Dim::constant(self.lo(s)) + r), depth + 1);
        }
        match self.known.get(s) {
            Some((_, Some(hi))) if self.nonneg_at(&(Dim::zero() - c.clone()), depth + 1) => {
                self.nonneg_at(&(&c * hi + r), depth + 1)
            }
            _ => false,
        }
    }
    fn eliminate_atom(&self, d: &Dim, a: &Atom, depth: usize) -> bool {
        let stand_in = Sym::Value(u32::MAX - depth as u32);
        let replaced = replace_atom(d, a, &stand_in);
        let (lo, hi) = match a {
            Atom::Mod(x, y) if self.nonneg_at(x, depth + 1) => (0, Some((**y).clone() - Dim::one())),
            Atom::Div(x, y) if self.nonneg_at(x, depth + 1) => {
                let hi = self.upper(x, depth + 1).map(|u| u.div(y)).filter(|h| h.as_const().is_some());
                (0, hi)
            }
            Atom::Min(x, y) if self.nonneg_at(x, depth + 1) && self.nonneg_at(y, depth + 1) => (0, Some((**x).clone())),
            Atom::Max(x, y) if self.nonneg_at(x, depth + 1) || self.nonneg_at(y, depth + 1) => (0, None),
            _ => return false,
        };
        let mut b = self.clone();
        b.set(stand_in, lo, hi);
        b.nonneg_at(&replaced, depth + 1)
    }
    /// An upper bound of `d` free of axes, where one is found.
    pub fn upper(&self, d: &Dim, depth: usize) -> Option<Dim> {
        if depth > 12 {
            return None;
        }
        let Some(s) = d.symbols().into_iter().find(|s| matches!(s, Sym::Axis(_) | Sym::Value(_))) else {
            return Some(d.clone());
        };
        let (c, r) = d.linear_in(&s)?;
        let at =
            if self.nonneg_at(&c, depth + 1) { self.known.get(&s)?.1.clone()? } else { Dim::constant(self.lo(&s)) };
        self.upper(&(&c * &at + r), depth + 1)
    }
}

fn replace_atom(d: &Dim, a: &Atom, by: &Sym) -> Dim {
    let mut out = Dim::zero();
    for (m, c) in &d.terms {
        let m: Monomial = m.iter().map(|x| if x == a { Atom::Sym(by.clone()) } else { x.clone() }).collect();
        let mut p = Dim::constant(*c);
        for x in m {
            p = &p * &Dim::atom(x);
        }
        out = out + p;
    }
    out
}
