//! Symbolic extents while a model is imported: what is assumed of them, and what two of them being equal means.

use super::error::{Assumption, Res, Stop, malformed};
use frit_kernels::dim::{Atom, Bounds, Dim, Sym};
use frit_plan::sizes;
use indexmap::IndexMap;

/// What is assumed of sizes, and the names they go by.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    equal: IndexMap<String, Dim>,
    at_most: IndexMap<String, (Dim, u64)>,
    at_least: IndexMap<String, u64>,
    declared: IndexMap<String, Option<u64>>,
}

impl Sizes {
    /// The sizes of a decoder that keeps a cache: they are never taken for others.
    pub fn decoder() -> Sizes {
        let mut out = Sizes::default();
        for name in [sizes::BATCH, sizes::TOKENS, sizes::PAST] {
            out.declared.insert(name.into(), None);
        }
        out
    }
    /// Takes an extent that the model names to be `d`; `false` when it is something else.
    pub fn name(&mut self, model_name: &str, d: &Dim) -> bool {
        self.declare(model_name) == *d || self.assume(Assumption::Equal(plain_name(model_name), d.clone()))
    }
    /// Adds an assumption; `false` when it adds nothing.
    pub fn assume(&mut self, a: Assumption) -> bool {
        match a {
            Assumption::Equal(name, d) => {
                let d = self.resolve(&d);
                if d.mentions(&Sym::Size(name.as_str().into())) || self.equal.contains_key(&name) {
                    return false;
                }
                self.equal.insert(name, d);
                let all: Vec<String> = self.equal.keys().cloned().collect();
                for k in all {
                    if let Some(d) = self.equal.get(&k).map(|d| self.resolve(d)) {
                        self.equal.insert(k, d);
                    }
                }
                true
            }
            Assumption::AtMost(name, sum, max) => match self.at_most.get_mut(&name) {
                Some((known, least)) => {
                    let covers = (sum.clone() - known.clone()).terms().all(|(_, c)| c >= 0);
                    let tighter = covers && max <= *least && (sum != *known || max < *least);
                    if tighter {
                        (*known, *least) = (sum, max);
                    }
                    tighter
                }
                None => self.at_most.insert(name, (sum, max)).is_none(),
            },
            Assumption::AtLeast(name, min) => {
                let known = self.at_least.entry(name).or_default();
                let is_more = min > *known;
                *known = min.max(*known);
                is_more
            }
        }
    }
    /// The expression with everything assumed equal put in.
    pub fn resolve(&self, d: &Dim) -> Dim {
        d.substitute(&|s| match s {
            Sym::Size(n) => self.equal.get(&**n).cloned(),
            _ => None,
        })
    }
    /// Declares a size under the name that the model gives it; the result is what it is assumed to be.
    pub fn declare(&mut self, model_name: &str) -> Dim {
        let name = plain_name(model_name);
        self.declared.entry(name.clone()).or_insert(None);
        self.resolve(&Dim::size(&name))
    }
    /// Sizes that occur in `used`, with bounds: name, smallest, largest.
    pub fn bounds_of(&self, name: &str) -> (u64, Option<u64>) {
        let min = u64::from(name != sizes::PAST && !name.to_ascii_lowercase().contains("past"));
        let min = self.at_least.get(name).map_or(min, |least| min.max(*least));
        (min, self.at_most.get(name).map(|(_, max)| *max))
    }
    /// Sums of sizes that are at most a number.
    pub fn limits(&self) -> impl Iterator<Item = (Dim, u64)> {
        self.at_most.values().filter(|(sum, _)| sum.as_size().is_none()).map(|(sum, max)| (self.resolve(sum), *max))
    }
    /// The size of a sum that is assumed to be bounded when the sum has to be: the one declared last.
    pub fn bounded_part(&self, sum: &Dim) -> Option<String> {
        let linear = |s: &Sym| sum.linear_in(s).is_some_and(|(c, _)| c.is(1));
        let sizes = sum.symbols().into_iter().filter(|s| matches!(s, Sym::Size(_)) && linear(s));
        sizes.map(|s| s.to_string()).max_by_key(|name| self.order(name))
    }
    /// What is known of all sizes.
    pub fn bounds(&self) -> Bounds {
        let mut b = Bounds::new();
        for name in self.declared.keys() {
            let (min, _) = self.bounds_of(name);
            let int = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
            let own = Dim::size(name);
            let max = self.at_most.get(name).map(|(sum, max)| Dim::constant(int(*max)) + own - self.resolve(sum));
            b.set(Sym::Size(name.as_str().into()), int(min), max);
        }
        b
    }
    /// The smallest raise of one size's least value under which something holds of an expression, among those that the
    /// numbers in it suggest; none for the sizes of a decoder, which a host chooses.
    pub fn raised(&self, d: &Dim, bounds: &Bounds, holds: impl Fn(&Bounds) -> bool) -> Option<Assumption> {
        if d.as_const().is_some() {
            return None;
        }
        let mut least: Vec<i64> = numbers(d).into_iter().flat_map(|n| [n, n + 1]).chain(2..=4).collect();
        least.retain(|n| (2..=1 << 20).contains(n));
        least.sort_unstable();
        least.dedup();
        let is_own = |n: &str| ![sizes::BATCH, sizes::TOKENS, sizes::PAST].contains(&n);
        let names = d.symbols().into_iter().filter(|s| matches!(s, Sym::Size(n) if is_own(n)));
        let all = names.flat_map(|s| least.iter().map(move |n| (s.clone(), *n)));
        let lifted = |(s, n): &(Sym, i64)| {
            let name = s.to_string();
            let (min, max) = self.bounds_of(&name);
            let is_between = *n as u64 > min && max.is_none_or(|m| *n as u64 <= m);
            let mut raised = bounds.clone();
            let max = self.at_most.get(&name).map(|_| bounds.most(s)).unwrap_or_default();
            raised.set(s.clone(), *n, max);
            is_between && holds(&raised)
        };
        all.into_iter().find(lifted).map(|(s, n)| Assumption::AtLeast(s.to_string(), n as u64))
    }
    fn order(&self, name: &str) -> usize {
        self.declared.get_index_of(name).unwrap_or(usize::MAX)
    }
    /// Makes `a` and `b` one extent: by arithmetic, or by an assumption on which the import starts again.
    ///
    /// # Errors
    /// The assumption; or that they differ whatever the sizes are.
    pub fn equate(&self, a: &Dim, b: &Dim, bounds: &Bounds) -> Res<Dim> {
        let (a, b) = (a.simplify(bounds), b.simplify(bounds));
        let diff = (a.clone() - b.clone()).simplify(bounds);
        if diff.is(0) {
            return Ok(a);
        }
        let fail = || malformed(format!("the extents {a} and {b} do not agree"));
        if diff.as_const().is_some() {
            return fail();
        }
        let by = |name: &str, d: &Dim| Err(Stop::Assume(Assumption::Equal(name.to_owned(), d.clone())));
        match (a.as_size(), b.as_size()) {
            (Some(x), Some(y)) if self.order(x) > self.order(y) => return by(x, &b),
            (_, Some(y)) if !a.mentions(&size(y)) => return by(y, &a),
            (Some(x), _) if !b.mentions(&size(x)) => return by(x, &b),
            _ => {}
        }
        let clipped = clipped(&diff);
        let raised = || self.raised(&diff, bounds, |b| diff.simplify(b).is(0));
        if let Some(least) = (!clipped.is_empty()).then(raised).flatten() {
            return Err(Stop::Assume(least));
        }
        for atom in clipped {
            let Atom::Min(x, y) = &atom else { continue };
            for (taken, other) in [(x, y), (y, x)] {
                if !replace(&diff, &atom, taken).simplify(bounds).is(0) {
                    continue;
                }
                if let (Some(name), Some(max)) = (self.bounded_part(taken), other.as_const()) {
                    let max = u64::try_from(max).unwrap_or(0);
                    return Err(Stop::Assume(Assumption::AtMost(name, (**taken).clone(), max)));
                }
                // Of two sizes, the shorter is never meant: they are one.
                return self.equate(taken, other, bounds).and_then(|_| fail());
            }
        }
        let mut names: Vec<Sym> = diff.symbols();
        names.sort_by_key(|s| std::cmp::Reverse(self.order(&s.to_string())));
        for s in names {
            let Some((c, rest)) = diff.linear_in(&s) else { continue };
            let value = match c.as_const() {
                Some(1) => Dim::zero() - rest,
                Some(-1) => rest,
                _ => {
                    let (q, r) = (Dim::zero() - rest).split(&c);
                    if !r.is(0) {
                        continue;
                    }
                    q
                }
            };
            let (min, _) = self.bounds_of(&s.to_string());
            if bounds.le(&Dim::from(min), &value) {
                return by(&s.to_string(), &value);
            }
        }
        fail()
    }
}

fn size(name: &str) -> Sym {
    Sym::Size(name.into())
}

/// The minima in an expression, those inside others too.
fn clipped(d: &Dim) -> Vec<Atom> {
    let mut out = Vec::new();
    for a in d.terms().flat_map(|(m, _)| m) {
        if let Atom::Min(x, y) | Atom::Max(x, y) | Atom::Div(x, y) | Atom::Mod(x, y) = a {
            out.extend(clipped(x));
            out.extend(clipped(y));
        }
        if matches!(a, Atom::Min(..)) {
            out.push(a.clone());
        }
    }
    out
}

/// The numbers in an expression, without their signs.
fn numbers(d: &Dim) -> Vec<i64> {
    let mut out = Vec::new();
    for (m, c) in d.terms() {
        out.push(c.saturating_abs());
        for a in m {
            if let Atom::Min(x, y) | Atom::Max(x, y) | Atom::Div(x, y) | Atom::Mod(x, y) = a {
                out.extend(numbers(x));
                out.extend(numbers(y));
            }
        }
    }
    out
}

fn replace(d: &Dim, atom: &Atom, by: &Dim) -> Dim {
    let mut out = Dim::zero();
    for (m, c) in d.terms() {
        let mut p = Dim::constant(c);
        for a in m {
            let within = |x: &Dim| replace(x, atom, by);
            p = match a {
                a if a == atom => &p * by,
                Atom::Sym(s) => &p * &Dim::sym(s.clone()),
                Atom::Div(x, y) => &p * &within(x).div(&within(y)),
                Atom::Mod(x, y) => &p * &within(x).rem(&within(y)),
                Atom::Max(x, y) => &p * &within(x).larger(&within(y)),
                Atom::Min(x, y) => &p * &within(x).smaller(&within(y)),
            };
        }
        out = out + p;
    }
    out
}

/// A size's name as size expressions spell it: letters, digits and underscores, not one of the names that decoders give
/// their own sizes, not one that reads as an axis or a value.
pub fn plain_name(name: &str) -> String {
    let mut out: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !out.starts_with(|c: char| c.is_ascii_alphabetic()) {
        out.insert_str(0, "n_");
    }
    let numbered = |p: char| out.strip_prefix(p).is_some_and(|n| n.parse::<u32>().is_ok());
    if out.len() == 1 || numbered('i') || numbered('v') || matches!(out.as_str(), "div" | "mod" | "max" | "min") {
        out.insert_str(0, "n_");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(s: &str) -> Dim {
        s.parse().unwrap()
    }
    fn sizes(names: &[&str]) -> Sizes {
        let mut s = Sizes::default();
        names.iter().for_each(|n| {
            s.declare(n);
        });
        s
    }

    #[test]
    fn the_later_of_two_names_gives_way() {
        let s = sizes(&["s10", "s86"]);
        let want = Err(Stop::Assume(Assumption::Equal("s86".into(), d("s10"))));
        assert_eq!(s.equate(&d("s10"), &d("s86"), &s.bounds()), want);
        assert_eq!(s.equate(&d("s86"), &d("s10"), &s.bounds()), want);
    }
    #[test]
    fn a_sum_names_the_size_of_the_whole() {
        let s = sizes(&["past", "seq", "total"]);
        let want = Err(Stop::Assume(Assumption::Equal("total".into(), d("past + seq"))));
        assert_eq!(s.equate(&d("past + seq"), &d("total"), &s.bounds()), want);
    }
    #[test]
    fn a_clipped_size_is_bounded() {
        let mut s = sizes(&["bb", "ss"]);
        let want = Assumption::AtMost("ss".into(), d("ss"), 64);
        let found = s.equate(&d("bb*ss*48"), &d("bb*min(ss, 64)*48"), &s.bounds());
        assert_eq!(found, Err(Stop::Assume(want.clone())));
        assert!(s.assume(want.clone()) && !s.assume(want));
        assert_eq!(s.equate(&d("bb*ss"), &d("bb*min(ss, 64)"), &s.bounds()), Ok(d("bb*ss")));
    }
    #[test]
    fn a_clipped_sum_is_bounded_as_a_whole() {
        let mut s = sizes(&["seq", "past"]);
        let slice = d("max(0, min(64, past + seq) - past)");
        let want = Assumption::AtMost("past".into(), d("past + seq"), 64);
        assert_eq!(s.equate(&slice, &d("seq"), &s.bounds()), Err(Stop::Assume(want.clone())));
        assert!(s.assume(Assumption::AtMost("past".into(), d("past"), 64)));
        assert!(s.assume(want.clone()) && !s.assume(want));
        assert!(!s.assume(Assumption::AtMost("past".into(), d("past"), 64)));
        assert_eq!(s.equate(&slice, &d("seq"), &s.bounds()), Ok(d("seq")));
        assert_eq!(s.limits().collect::<Vec<_>>(), [(d("past + seq"), 64)]);
    }
    #[test]
    fn what_a_slice_takes_is_there() {
        let mut s = sizes(&["nn"]);
        let want = Assumption::AtLeast("nn".into(), 2);
        for taken in ["min(nn, 2)", "nn - min(nn, max(0, nn - 2))"] {
            assert_eq!(s.equate(&d(taken), &d("2"), &s.bounds()), Err(Stop::Assume(want.clone())), "{taken}");
        }
        assert!(s.assume(want.clone()) && !s.assume(want) && !s.assume(Assumption::AtLeast("nn".into(), 1)));
        assert_eq!(s.equate(&d("min(nn, 2)"), &d("2"), &s.bounds()), Ok(d("2")));
        assert_eq!(s.bounds_of("nn"), (2, None));
    }
    #[test]
    fn numbers_that_differ_are_refused() {
        let s = sizes(&["aa"]);
        assert!(matches!(s.equate(&d("aa + 3"), &d("aa + 4"), &s.bounds()), Err(Stop::Gap { .. })));
    }
    #[test]
    fn names_read_back_as_sizes() {
        for n in ["S", "batch", "past_sequence_length + 1", "i7", "v1", "((s10*Min(64, s21))//s21)", "3d", "mod", "é"]
        {
            let p = plain_name(n);
            assert_eq!(d(&p).as_size(), Some(p.as_str()), "{n}");
        }
        assert_ne!(plain_name("S"), "S");
    }
    #[test]
    fn assumptions_compose() {
        let mut s = sizes(&["aa", "bb", "cc"]);
        assert!(s.assume(Assumption::Equal("cc".into(), d("bb"))));
        assert!(s.assume(Assumption::Equal("bb".into(), d("aa"))));
        assert_eq!(s.resolve(&d("cc*2 + bb")), d("3*aa"));
        assert!(!s.assume(Assumption::Equal("aa".into(), d("cc"))));
    }
}
