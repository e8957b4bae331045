//! Memory traffic of a kernel: how many distinct elements of each argument one launch reads and writes.
//!
//! The counts follow from the accesses themselves: the image of every index map over the axes it is evaluated at. A
//! tensor of which a kernel reads a part counts with that part. The image of an index is found by taking it apart into
//! digits (axes, quotients and remainders of axes, values of the kernel); it has as many elements as the digits have
//! combinations, which is exact for maps that views make. Where data decide which element is read, as a gather does,
//! the count is the most there can be.

use frit_kernels::dim::{Atom, Bounds, Dim, Sym, product};
use frit_kernels::spec::{Anchor, Arg, BinaryOp, Expr, ExprId, KernelSpec, Literal, Space};

/// Distinct elements of an argument that one launch touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Elements read.
    pub read: Dim,
    /// Elements written.
    pub written: Dim,
    /// Data decide which elements are read, or masking hides some: `read` is the most there can be.
    pub at_most: bool,
}

impl Touched {
    /// Bytes that go over the memory bus once: what is read and what is written.
    pub fn bytes(&self, arg: &Arg) -> Dim {
        let elems = self.read.clone() + self.written.clone();
        (elems * Dim::from(arg.storage.block_bytes())).div(&Dim::from(arg.storage.block_elems()))
    }
}

/// What a launch of `spec` touches of each argument, in their order. `bounds` say what is known of sizes.
pub fn touched<'a>(spec: &'a KernelSpec, bounds: &Bounds) -> Vec<Touched> {
    let mut reads: Vec<Vec<(Walk<'a>, Image)>> = vec![Vec::new(); spec.args.len()];
    let mut writes = vec![Dim::zero(); spec.args.len()];
    let whole = Walk::new(spec, bounds, None);
    let mut see = |walk: &Walk<'a>, roots: &[ExprId]| {
        for e in spec.exprs.reachable(roots) {
            if let Expr::Load { arg, index } = spec.exprs.get(e)
                && let Some(list) = reads.get_mut(arg.0 as usize)
            {
                let image = walk.image(index);
                if !list.iter().any(|(_, i)| *i == image) {
                    list.push((walk.clone(), image));
                }
            }
        }
    };
    let (reduced, multiplied) = anchor_roots(spec);
    let over = spec.stats_over.as_ref().map(|tiles| (spec.k_axis(), Dim::zero(), tiles.clone()));
    see(&Walk::new(spec, bounds, over), &reduced);
    see(&whole, &multiplied);
    for s in &spec.stores {
        let range = s.when.as_ref().map(|w| (w.axis as usize, w.lo.clone(), w.hi.clone()));
        let walk = Walk::new(spec, bounds, range);
        let mut roots = vec![s.value];
        s.index.visit(&mut |x| {
            if let Sym::Value(v) = x {
                roots.push(ExprId(*v));
            }
        });
        see(&walk, &roots);
        if let Some(w) = writes.get_mut(s.arg.0 as usize) {
            *w = w.clone() + walk.image(&s.index).count;
        }
    }
    for l in &spec.left {
        if let Some(w) = writes.get_mut(l.arg.0 as usize) {
            *w = w.clone() + whole.image(&l.index).count;
        }
    }
    if let Some(p) = &spec.partials
        && let Some(w) = writes.get_mut(p.arg.0 as usize)
    {
        let n = spec.domain.len().saturating_sub(1);
        let columns = spec.domain.get(n).cloned().unwrap_or_default();
        let tiles = ceil(&columns, &Dim::from(u64::from(p.columns)));
        let tiles = Walk::new(spec, bounds, Some((n, Dim::zero(), tiles)));
        *w = w.clone() + tiles.image(&p.index).count * Dim::from(u64::from(p.kind.numbers()));
    }
    let each = spec.args.iter().zip(reads).zip(writes);
    each.map(|((a, images), written)| {
        let at_most = images.iter().any(|(_, i)| i.at_most);
        Touched { read: union(&images, &a.len, &whole.bounds), written, at_most }
    })
    .collect()
}

/// The range of key positions that any of `queries` rows sees: causal masking hides what comes after the last of them, a
/// window what comes before the first one's.
pub fn visible_keys(
    queries: &Dim,
    keys: &Dim,
    offset: Option<&Dim>,
    window: Option<u64>,
    bounds: &Bounds,
) -> (Dim, Dim) {
    let first = offset.cloned().unwrap_or_default();
    let hi = offset.map_or_else(|| keys.clone(), |d| keys.smaller(&(queries.clone() + d.clone())));
    let lo = window.map(|w| (first + Dim::one() - Dim::from(w)).larger(&Dim::zero()));
    (lo.unwrap_or_default().simplify(bounds), hi.simplify(bounds))
}

/// Bytes of weights and of everything else that one launch moves.
pub fn moved(spec: &KernelSpec, bounds: &Bounds) -> (Dim, Dim) {
    let (mut weights, mut rest) = (Dim::zero(), Dim::zero());
    for (a, t) in spec.args.iter().zip(touched(spec, bounds)) {
        let sum = if matches!(a.space, Space::Weight | Space::Side) { &mut weights } else { &mut rest };
        *sum = sum.clone() + t.bytes(a);
    }
    (weights, rest)
}

/// What the statistics of an anchor are made of, and what else it reads.
fn anchor_roots(spec: &KernelSpec) -> (Vec<ExprId>, Vec<ExprId>) {
    let stats = |s: &[frit_kernels::spec::Stat]| s.iter().flat_map(|s| [Some(s.value), s.finish]).flatten().collect();
    match &spec.anchor {
        Anchor::Map => (Vec::new(), Vec::new()),
        Anchor::Row { stats: s } => (stats(s), Vec::new()),
        Anchor::MatMul { lhs, lhs_stats, rhs, .. } => (stats(lhs_stats), rhs.iter().copied().chain([*lhs]).collect()),
        Anchor::Chain(c) => (stats(&c.lhs_stats), c.up.iter().copied().chain([c.lhs, c.middle, c.down]).collect()),
        Anchor::ConvChain(c) => (Vec::new(), c.roots().to_vec()),
        Anchor::Attention(a) => (Vec::new(), [a.q, a.k, a.v].into_iter().chain(a.mask).chain(a.bias).collect()),
    }
}

/// The elements an index names: how many, and between which two.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Image {
    index: Dim,
    count: Dim,
    hull: Option<(Dim, Dim)>,
    at_most: bool,
}

impl Image {
    fn is_dense(&self) -> bool {
        self.hull.as_ref().is_some_and(|(lo, hi)| hi.clone() - lo.clone() + Dim::one() == self.count)
    }
    /// Whether `o` has every element of this image: it is dense and wider, or equally wide and like it.
    fn within(&self, o: &Image, bounds: &Bounds) -> bool {
        let (Some(a), Some(b)) = (&self.hull, &o.hull) else { return false };
        let inside = bounds.le(&b.0, &a.0) && bounds.le(&a.1, &b.1);
        inside && (o.is_dense() || (a == b && bounds.le(&self.count, &o.count)))
    }
}

/// The number of elements in any of the images of one argument of `len` elements.
fn union(reads: &[(Walk<'_>, Image)], len: &Dim, bounds: &Bounds) -> Dim {
    let covers = |(w, i): &(Walk<'_>, Image), (_, o): &(Walk<'_>, Image)| i.within(o, bounds) || w.within_rows(i, o);
    let mut kept: Vec<&(Walk<'_>, Image)> = Vec::new();
    for r in reads {
        if !kept.iter().any(|k| covers(r, k)) {
            kept.retain(|k| !covers(k, r));
            kept.push(r);
        }
    }
    match kept.as_slice() {
        [] => Dim::zero(),
        [one] => one.1.count.clone(),
        many => {
            let sum = many.iter().fold(Dim::zero(), |s, i| s + i.1.count.clone());
            sum.smaller(len).simplify(bounds)
        }
    }
}

/// The axes of a kernel while some of its expressions are evaluated.
#[derive(Clone)]
struct Walk<'a> {
    spec: &'a KernelSpec,
    extents: Vec<Dim>,
    first: Vec<Dim>,
    bounds: Bounds,
}

impl<'a> Walk<'a> {
    fn new(spec: &'a KernelSpec, bounds: &Bounds, range: Option<(usize, Dim, Dim)>) -> Self {
        let mut extents = spec.domain.clone();
        let mut first = vec![Dim::zero(); extents.len()];
        match &spec.anchor {
            Anchor::MatMul { k, .. } => extents.push(k.clone()),
            Anchor::Chain(c) => extents.extend([c.inner.clone(), c.k.clone()]),
            Anchor::ConvChain(c) => {
                let axes = c.axes();
                first.resize(4, Dim::zero());
                first.extend(axes.iter().map(|(lo, _)| Dim::from(*lo)));
                extents.extend(axes.map(|(_, extent)| extent));
            }
            Anchor::Attention(a) => {
                let queries = spec.domain.get(2).cloned().unwrap_or_else(Dim::one);
                let (lo, hi) = visible_keys(&queries, &a.kv_len, a.causal_offset.as_ref(), a.window, bounds);
                extents.extend([Dim::from(a.head_dim), hi - lo.clone()]);
                first = vec![Dim::zero(), Dim::zero(), Dim::zero(), Dim::zero(), Dim::zero(), lo];
            }
            _ => {}
        }
        first.resize(extents.len(), Dim::zero());
        if let Some((axis, lo, hi)) = range
            && axis < extents.len()
        {
            extents[axis] = hi - lo.clone();
            first[axis] = lo;
        }
        let bounds = bounds.of_axes(&extents);
        Walk { spec, extents, first, bounds }
    }
    fn image(&self, index: &Dim) -> Image {
        let moved = index.substitute(&|s| match s {
            Sym::Axis(k) => {
                let first = self.first.get(*k as usize).filter(|f| !f.is(0))?;
                Some(Dim::axis(*k as usize) + first.clone())
            }
            _ => None,
        });
        let index = moved.simplify(&self.bounds);
        let mut at_most = match &self.spec.anchor {
            Anchor::Attention(a) if a.causal_offset.is_some() || a.window.is_some() => {
                index.mentions(&Sym::Axis(2)) && index.mentions(&Sym::Axis(5))
            }
            _ => false,
        };
        index.visit(&mut |s| at_most |= matches!(s, Sym::Value(_)));
        let hull = self.interval(&index).map(|(a, b)| (a.simplify(&self.bounds), b.simplify(&self.bounds)));
        let mut count = self.combinations(&index);
        if let Some((lo, hi)) = &hull {
            let span = hi.clone() - lo.clone() + Dim::one();
            if self.overlaps(&index) || self.bounds.le(&span, &count) {
                count = self.smaller(&count, &span);
            }
        }
        Image { index, count, hull, at_most }
    }
    /// Whether two images differ in one axis alone, along which `o` has every element of `i`.
    fn within_rows(&self, i: &Image, o: &Image) -> bool {
        (0..self.extents.len()).any(|axis| {
            let mask = 1u64 << axis;
            let split = |d: &Dim| {
                let (mut along, mut rest) = (Dim::zero(), Dim::zero());
                for (monomial, c) in d.terms() {
                    let term = monomial.iter().fold(Dim::constant(c), |p, a| &p * &as_dim(a));
                    let axes = monomial.iter().fold(0, |m, a| m | self.axes_of(a));
                    if axes == mask || monomial.is_empty() { along = along + term } else { rest = rest + term }
                }
                (along, rest)
            };
            let ((a, x), (b, y)) = (split(&i.index), split(&o.index));
            x == y && self.axes(&x) & mask == 0 && self.image(&a).within(&self.image(&b), &self.bounds)
        })
    }
    fn smaller(&self, a: &Dim, b: &Dim) -> Dim {
        a.smaller(b).simplify(&self.bounds)
    }
    /// Combinations of the digits of `index`, a digit being an atom that an axis or a value moves.
    fn combinations(&self, index: &Dim) -> Dim {
        let mut groups: Vec<(u64, Vec<Atom>, Dim)> = Vec::new();
        for (monomial, _) in index.terms() {
            let moving: Vec<&Atom> = monomial.iter().filter(|a| self.axes_of(a) != 0).collect();
            let mask = moving.iter().fold(0, |m, a| m | self.axes_of(a));
            let range = match moving.as_slice() {
                [] => continue,
                [one] => self.range(one),
                _ => self.extent_of(mask),
            };
            let digit: Vec<Atom> = moving.into_iter().cloned().collect();
            let (mut touching, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(|g| g.0 & mask != 0);
            groups = apart;
            let known = touching.iter().any(|g| g.1 == digit);
            let ranges = if known { Dim::one() } else { range };
            let joined = touching.iter().fold((mask, ranges), |(m, r), g| (m | g.0, &r * &g.2));
            match touching.as_mut_slice() {
                [one] if known => groups.push((one.0, std::mem::take(&mut one.1), one.2.clone())),
                _ => groups.push((joined.0, digit, joined.1)),
            }
        }
        let each = groups.iter().map(|(mask, _, ranges)| self.smaller(ranges, &self.extent_of(*mask)));
        let parts: Vec<Dim> = each.collect();
        product(&parts)
    }
    /// Whether two axes step through memory alike, so that different coordinates name one element.
    fn overlaps(&self, index: &Dim) -> bool {
        let mut steps: Vec<(Dim, u64)> = Vec::new();
        for (monomial, c) in index.terms() {
            let mask = monomial.iter().fold(0, |m, a| m | self.axes_of(a));
            let still = monomial.iter().filter(|a| self.axes_of(a) == 0);
            let step = still.fold(Dim::constant(c.abs()), |p, a| &p * &as_dim(a));
            if mask != 0 && steps.iter().any(|(s, m)| *s == step && m & mask == 0) {
                return true;
            }
            steps.push((step, mask));
        }
        false
    }
    fn extent_of(&self, mask: u64) -> Dim {
        let axes = self.extents.iter().enumerate().filter(|(k, _)| mask & (1 << k) != 0);
        product(axes.map(|(_, e)| e))
    }
    /// The axes an atom depends on, directly or through values of the kernel, as bits.
    fn axes_of(&self, atom: &Atom) -> u64 {
        match atom {
            Atom::Sym(s) => self.axes_of_symbol(s),
            Atom::Div(a, b) | Atom::Mod(a, b) | Atom::Max(a, b) | Atom::Min(a, b) => self.axes(a) | self.axes(b),
        }
    }
    fn axes(&self, d: &Dim) -> u64 {
        let mut mask = 0;
        d.visit(&mut |s| mask |= self.axes_of_symbol(s));
        mask
    }
    fn axes_of_symbol(&self, s: &Sym) -> u64 {
        match s {
            Sym::Size(_) => 0,
            Sym::Axis(k) => 1u64.checked_shl(u32::from(*k)).unwrap_or(0),
            Sym::Value(v) => {
                let below = self.spec.exprs.reachable(&[ExprId(*v)]);
                let of = |e: ExprId| match self.spec.exprs.get(e) {
                    Expr::Load { index: d, .. } | Expr::Coord(d) => {
                        let own = d.symbols().into_iter().filter(|s| matches!(s, Sym::Axis(_)));
                        own.fold(0, |m, s| m | self.axes_of_symbol(&s))
                    }
                    _ => 0,
                };
                below.into_iter().fold(0, |m, e| m | of(e))
            }
        }
    }
    /// How many values an atom takes at most.
    fn range(&self, atom: &Atom) -> Dim {
        let extent = self.extent_of(self.axes_of(atom));
        let span = match atom {
            Atom::Div(a, b) => self.interval(a).map(|(lo, hi)| ceil(&(hi - lo + Dim::one()), b)),
            _ => self.atom_interval(atom).map(|(lo, hi)| hi - lo + Dim::one()),
        };
        match span {
            Some(s) => self.smaller(&extent, &s.simplify(&self.bounds)),
            None => extent,
        }
    }
    fn interval(&self, d: &Dim) -> Option<(Dim, Dim)> {
        let (mut lo, mut hi) = (Dim::zero(), Dim::zero());
        let d = &with_digits(d);
        for (monomial, c) in d.terms() {
            let (mut a, mut b) = (Dim::constant(c.abs()), Dim::constant(c.abs()));
            for atom in monomial {
                let (x, y) = self.atom_interval(atom)?;
                (a, b) = (&a * &x, &b * &y);
            }
            if c < 0 {
                (a, b) = (Dim::zero() - b, Dim::zero() - a);
            }
            (lo, hi) = (lo + a, hi + b);
        }
        Some((lo, hi))
    }
    fn atom_interval(&self, atom: &Atom) -> Option<(Dim, Dim)> {
        let fixed = || Some((Dim::zero() + as_dim(atom), as_dim(atom)));
        if self.axes_of(atom) == 0 && !matches!(atom, Atom::Sym(Sym::Value(_))) {
            return fixed();
        }
        match atom {
            Atom::Sym(Sym::Axis(k)) => Some((Dim::zero(), self.extents.get(*k as usize)?.clone() - Dim::one())),
            Atom::Sym(Sym::Value(v)) => Some((Dim::zero(), self.largest(ExprId(*v))?)),
            Atom::Sym(Sym::Size(_)) => fixed(),
            Atom::Div(a, b) => {
                let (lo, hi) = self.interval(a)?;
                Some((lo.div(b).simplify(&self.bounds), ceil(&(hi + Dim::one()), b) - Dim::one()))
            }
            Atom::Mod(a, b) => {
                let (_, hi) = self.interval(a)?;
                Some((Dim::zero(), self.smaller(&hi, &((**b).clone() - Dim::one()))))
            }
            Atom::Max(a, b) => {
                let ((a, b), (c, d)) = (self.interval(a)?, self.interval(b)?);
                Some((a.larger(&c).simplify(&self.bounds), b.larger(&d).simplify(&self.bounds)))
            }
            Atom::Min(a, b) => {
                let ((a, b), (c, d)) = (self.interval(a)?, self.interval(b)?);
                Some((self.smaller(&a, &c), self.smaller(&b, &d)))
            }
        }
    }
    /// The largest value of an index that is clamped to a table.
    fn largest(&self, e: ExprId) -> Option<Dim> {
        let number = |e: ExprId| match self.spec.exprs.get(e) {
            Expr::Const(Literal::I32(v)) => Some(Dim::constant(i64::from(*v))),
            Expr::Coord(d) if self.axes(d) == 0 => Some(d.clone()),
            _ => None,
        };
        match self.spec.exprs.get(e) {
            Expr::Binary(BinaryOp::Min, a, b) => number(*b).or_else(|| number(*a)),
            Expr::Binary(BinaryOp::Max, a, b) => self.largest(*a).or_else(|| self.largest(*b)),
            _ => None,
        }
    }
}

/// `d` with every axis x whose remainder by b it mentions as well written as `b·⌊x/b⌋ + x mod b`.
fn with_digits(d: &Dim) -> Dim {
    let remainder = |x: &Atom| {
        d.terms().flat_map(|(m, _)| m).find_map(|a| match a {
            Atom::Mod(of, by) if **of == as_dim(x) => Some((of, by)),
            _ => None,
        })
    };
    d.terms().fold(Dim::zero(), |sum, (monomial, c)| {
        let parts = monomial.iter().map(|a| match remainder(a) {
            Some((of, by)) => &of.div(by) * by + of.rem(by),
            None => as_dim(a),
        });
        sum + parts.fold(Dim::constant(c), |p, a| &p * &a)
    })
}

/// `⌈d / by⌉`.
fn ceil(d: &Dim, by: &Dim) -> Dim {
    match d.split(by) {
        (q, r) if r.is(0) => q,
        _ => d.ceil_div(by),
    }
}

fn as_dim(atom: &Atom) -> Dim {
    match atom {
        Atom::Sym(s) => Dim::sym(s.clone()),
        Atom::Div(a, b) => a.div(b),
        Atom::Mod(a, b) => a.rem(b),
        Atom::Max(a, b) => a.larger(b),
        Atom::Min(a, b) => a.smaller(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frit_kernels::dtype::{Scalar, Storage};
    use frit_kernels::spec::{ArgId, Exprs, Store};

    /// A map over `domain` that reads an argument of `len` elements at each of `indices`.
    fn reads(domain: &[&str], len: &str, indices: &[&str]) -> String {
        let dim = |s: &str| s.parse::<Dim>().unwrap();
        let mut exprs = Exprs::default();
        let loads: Vec<ExprId> =
            indices.iter().map(|i| exprs.add(Expr::Load { arg: ArgId(0), index: dim(i) }, Scalar::F32)).collect();
        let value = loads.iter().skip(1).fold(loads[0], |s, l| exprs.binary(BinaryOp::Add, s, *l));
        let arg = |name: &str, written| Arg {
            name: name.into(),
            space: Space::Arena,
            storage: Storage::F32,
            len: dim(len),
            written,
            rounded: None,
        };
        let spec = KernelSpec {
            name: "k".into(),
            domain: domain.iter().map(|d| dim(d)).collect(),
            anchor: Anchor::Map,
            args: vec![arg("x", false), arg("y", true)],
            exprs,
            stores: vec![Store { arg: ArgId(1), index: Dim::axis(0), value, when: None, per_row: false }],
            left: Vec::new(),
            columns: None,
            stats_over: None,
            partials: None,
            few_rows: false,
            precision: frit_kernels::spec::MatmulPrecision::Auto,
            aliases: Vec::new(),
            sizes: Vec::new(),
        };
        touched(&spec, &Bounds::new())[0].read.to_string()
    }

    #[test]
    fn a_part_of_a_tensor_counts_as_that_part() {
        assert_eq!(reads(&["B*S", "48"], "48*B*S", &["48*i0 + i1"]), "48*B*S");
        assert_eq!(reads(&["B", "S"], "B*T", &["T*i0 + i1"]), "B*S");
        assert_eq!(reads(&["B*S", "20"], "40*B*S", &["40*i0 + i1"]), "20*B*S");
        assert_eq!(reads(&["B*S", "48"], "48", &["i1"]), "48");
        assert_eq!(reads(&["B*S", "48"], "4*B*S", &["4*i0 + div(i1, 12)"]), "4*B*S");
    }
    #[test]
    fn two_parts_count_both_and_one_part_twice_counts_once() {
        assert_eq!(reads(&["B*S", "20"], "40*B*S", &["40*i0 + i1", "40*i0 + i1 + 20"]), "40*B*S");
        assert_eq!(reads(&["B*S", "16"], "16*B*S", &["16*i0 + i1", "16*i0 + mod(i1 + 8, 16)"]), "16*B*S");
        assert_eq!(reads(&["B*S", "4"], "12*B*S", &["12*i0 + i1", "12*i0 + i1 + 1 - 2*mod(i1, 2)"]), "4*B*S");
        assert_eq!(reads(&["B*S", "4"], "12*B*S", &["12*i0 + i1", "12*i0 + mod(i1 + 1, 2)"]), "4*B*S");
    }
    #[test]
    fn the_two_digits_of_one_axis_are_not_counted_twice() {
        assert_eq!(reads(&["B*S", "12"], "24*B*S", &["24*div(i0, S)*S + 24*mod(i0, S) + i1 + 6*div(i1, 6)"]), "12*B*S");
    }
}
