//! The end of a kernel: only the expressions that its stores and anchor need, and the sizes that occur in it.

use super::{Operand, SpecBuilder};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::spec::{Anchor, Expr, ExprId, Exprs, KernelSpec, MatmulPrecision, SizeSlot, Stat, Store};
use std::collections::{BTreeSet, HashMap};

impl SpecBuilder<'_> {
    /// The kernel, with only what its stores and anchor need.
    pub fn finish(
        self,
        name: String,
        domain: Vec<Dim>,
        anchor: Anchor,
        stores: Vec<Store>,
    ) -> (KernelSpec, Vec<Operand>) {
        let mut spec = KernelSpec {
            name,
            domain,
            anchor,
            few_rows: false,
            args: self.args,
            exprs: self.exprs,
            stores,
            left: self.left,
            columns: self.columns,
            stats_over: self.stats_over,
            partials: self.partials,
            precision: MatmulPrecision::Auto,
            aliases: Vec::new(),
            sizes: Vec::new(),
        };
        compact(&mut spec);
        let mut used: BTreeSet<String> = BTreeSet::new();
        let mut see = |d: &Dim| {
            d.visit(&mut |s| {
                if let Sym::Size(n) = s {
                    used.insert(n.to_string());
                }
            });
        };
        spec.domain.iter().for_each(&mut see);
        spec.args.iter().for_each(|a| see(&a.len));
        for (_, e) in spec.exprs.iter() {
            match e {
                Expr::Load { index, .. } => see(index),
                Expr::Coord(d) => see(d),
                _ => {}
            }
        }
        for s in &spec.stores {
            see(&s.index);
            if let Some(w) = &s.when {
                see(&w.lo);
                see(&w.hi);
            }
        }
        spec.left.iter().for_each(|l| see(&l.index));
        spec.stats_over.iter().for_each(&mut see);
        spec.partials.iter().for_each(|p| see(&p.index));
        match &spec.anchor {
            Anchor::MatMul { k, .. } => see(k),
            Anchor::Chain(c) => [&c.k, &c.inner].into_iter().for_each(&mut see),
            Anchor::ConvChain(c) => see(&c.k),
            Anchor::Attention(a) => {
                see(&a.kv_len);
                a.parts.iter().for_each(|p| [&p.first, &p.len].into_iter().for_each(&mut see));
                a.causal_offset.iter().for_each(&mut see);
            }
            _ => {}
        }
        let table = &self.tables.sizes;
        let slots = table.iter().enumerate().filter(|(_, s)| used.contains(&s.name));
        spec.sizes = slots.map(|(i, s)| SizeSlot { name: s.name.clone(), index: i as u8 }).collect();
        (spec, self.operands)
    }
}

/// Drops expressions that nothing uses and renumbers the rest, so that equal kernels are equal to the letter.
fn compact(spec: &mut KernelSpec) {
    let beside = spec.left.iter().map(|l| l.value).chain(spec.partials.as_ref().map(|p| p.value));
    let mut roots: Vec<ExprId> = spec.stores.iter().map(|s| s.value).chain(beside).collect();
    let stats = |st: &[Stat]| -> Vec<ExprId> { st.iter().flat_map(|s| [Some(s.value), s.finish]).flatten().collect() };
    roots.extend(stats(spec.column_stats()));
    match &spec.anchor {
        Anchor::Map => {}
        Anchor::Row { stats: st } => roots.extend(stats(st)),
        Anchor::MatMul { lhs, lhs_stats, rhs, .. } => {
            roots.extend(stats(lhs_stats));
            roots.push(*lhs);
            roots.extend(rhs);
        }
        Anchor::Chain(c) => {
            roots.extend(stats(&c.lhs_stats));
            roots.extend([c.lhs, c.middle, c.down]);
            roots.extend(&c.up);
        }
        Anchor::ConvChain(c) => roots.extend(c.roots()),
        Anchor::Attention(a) => roots.extend([a.q, a.k, a.v].into_iter().chain(a.mask).chain(a.bias)),
    }
    for s in &spec.stores {
        s.index.visit(&mut |s| {
            if let Sym::Value(v) = s {
                roots.push(ExprId(*v));
            }
        });
    }
    let keep = spec.exprs.reachable(&roots);
    let mut map: HashMap<u32, u32> = HashMap::new();
    let mut out = Exprs::default();
    for id in keep {
        let dim = |d: &Dim| {
            d.substitute(&|s| match s {
                Sym::Value(v) => map.get(v).map(|n| Dim::value(*n)),
                _ => None,
            })
        };
        let at = |e: &ExprId| ExprId(map.get(&e.0).copied().unwrap_or(e.0));
        let new = match spec.exprs.get(id) {
            Expr::Load { arg, index } => Expr::Load { arg: *arg, index: dim(index) },
            Expr::Coord(d) => Expr::Coord(dim(d)),
            Expr::Unary(u, a) => Expr::Unary(*u, at(a)),
            Expr::Binary(b, x, y) => Expr::Binary(*b, at(x), at(y)),
            Expr::Select { cond, t, f } => Expr::Select { cond: at(cond), t: at(t), f: at(f) },
            Expr::Cast(s, a) => Expr::Cast(*s, at(a)),
            leaf => leaf.clone(),
        };
        let n = out.add(new, spec.exprs.scalar(id));
        map.insert(id.0, n.0);
    }
    let at = |e: &mut ExprId| *e = ExprId(map.get(&e.0).copied().unwrap_or(e.0));
    let fix = |st: &mut Vec<Stat>| {
        for s in st {
            at(&mut s.value);
            s.finish.iter_mut().for_each(at);
        }
    };
    spec.columns.iter_mut().for_each(|c| fix(&mut c.stats));
    match &mut spec.anchor {
        Anchor::Map => {}
        Anchor::Row { stats } => fix(stats),
        Anchor::MatMul { lhs, lhs_stats, rhs, .. } => {
            fix(lhs_stats);
            at(lhs);
            rhs.iter_mut().for_each(at);
        }
        Anchor::Chain(c) => {
            fix(&mut c.lhs_stats);
            [&mut c.lhs, &mut c.middle, &mut c.down].into_iter().for_each(at);
            c.up.iter_mut().for_each(at);
        }
        Anchor::ConvChain(c) => [&mut c.lhs, &mut c.up, &mut c.middle, &mut c.down].into_iter().for_each(at),
        Anchor::Attention(a) => {
            at(&mut a.q);
            at(&mut a.k);
            at(&mut a.v);
            a.mask.iter_mut().for_each(at);
            a.bias.iter_mut().for_each(at);
        }
    }
    spec.left.iter_mut().for_each(|l| at(&mut l.value));
    spec.partials.iter_mut().for_each(|p| at(&mut p.value));
    for s in &mut spec.stores {
        at(&mut s.value);
        s.index = s.index.substitute(&|x| match x {
            Sym::Value(v) => map.get(v).map(|n| Dim::value(*n)),
            _ => None,
        });
    }
    spec.exprs = out;
}
