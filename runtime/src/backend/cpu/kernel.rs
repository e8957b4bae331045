//! A kernel, compiled: expression programs around its anchor.

use super::attention::Attention;
use super::chain::Chain;
use super::conv_chain::ConvChain;
use super::launch::{Group, Launch};
use super::lower::{Builder, Refused, Uniform};
use super::matmul::MatMul;
use super::program::{Fault, Reg, rows};
use super::row::{self, Domain, StatCode};
use crate::{Error, Result};
use frit_kernels::spec::{Anchor, Expr, KernelSpec, LeftStore, Store};

/// Axes of a domain.
const LIMIT_AXES: usize = 16;
/// Coordinates of a domain.
const LIMIT_DOMAIN: usize = 1 << 40;
/// Floats of one scratch buffer.
const LIMIT_SCRATCH: usize = 1 << 33;

#[derive(Debug)]
enum Body {
    Map(usize),
    Row(Vec<StatCode>),
    MatMul(MatMul),
    Attention(Attention),
    Chain(Chain),
    ConvChain(ConvChain),
}

/// A compiled kernel; it serves every launch of every step.
#[derive(Debug)]
pub struct Code {
    name: String,
    uniform: Uniform,
    domain: Vec<Reg>,
    lengths: Vec<Reg>,
    groups: Vec<Group>,
    body: Body,
    value_dim: Option<usize>,
    /// Register buffers a task needs: floats and integers.
    pub buffers: (usize, usize),
    /// Which arguments are read.
    pub loads: Vec<bool>,
    /// Expression programs it became.
    pub programs: u64,
}

/// The scalar registers and extents of a launch, kept between launches.
#[derive(Debug, Default)]
pub struct Sizes {
    /// Integer registers.
    pub ints: Vec<i64>,
    /// Float registers.
    pub floats: Vec<f32>,
    /// Extents of the domain.
    pub extents: Vec<usize>,
}

impl Code {
    /// Compiles a verified kernel.
    pub fn new(spec: &KernelSpec) -> Result<Code> {
        build(spec).map_err(|reason| refused(&spec.name, reason))
    }
    /// Evaluates what depends on the sizes alone.
    pub fn size(&self, table: &[u64], to: &mut Sizes) -> Result<()> {
        let u = &self.uniform;
        to.ints.clear();
        to.ints.resize(u.ints, 0);
        to.floats.clear();
        to.floats.resize(u.floats, 0.0);
        for (slot, index) in to.ints.iter_mut().skip(u.first_size).zip(&u.sizes) {
            let v = table.get(*index).and_then(|v| i64::try_from(*v).ok());
            *slot = v.ok_or_else(|| refused(&self.name, format!("the size number {index} has no value")))?;
        }
        rows(&u.ops, &mut to.ints, &mut to.floats, &[]).map_err(|f| self.fault(f, None))?;
        to.extents.clear();
        to.extents.extend(self.domain.iter().map(|r| usize::try_from(to.ints[*r as usize]).unwrap_or(0)));
        let total = to.extents.iter().try_fold(1usize, |p, e| p.checked_mul((*e).max(1)));
        if total.is_none_or(|t| t > LIMIT_DOMAIN) {
            return Err(refused(&self.name, format!("a domain of {:?}", to.extents)));
        }
        if let (Some(v), Some(e)) = (self.value_dim, to.extents.get(3))
            && v != *e
        {
            return Err(refused(&self.name, format!("value heads of {v} elements, but an output of {e}")));
        }
        Ok(())
    }
    /// Elements of argument `k` under the sizes.
    pub fn length(&self, k: usize, sizes: &Sizes) -> usize {
        let v = self.lengths.get(k).and_then(|r| sizes.ints.get(*r as usize)).copied().unwrap_or(0);
        usize::try_from(v).unwrap_or(0)
    }
    /// Floats that each task needs, and floats that all need together.
    pub fn needs(&self, sizes: &Sizes) -> Result<(usize, usize)> {
        let (task, all) = match &self.body {
            Body::MatMul(m) => m.needs(&sizes.ints, &sizes.extents),
            Body::Attention(a) => (a.needs(), 0),
            Body::Chain(c) => (c.needs(&sizes.ints, &sizes.extents), 0),
            Body::ConvChain(c) => (c.needs(&sizes.ints, &sizes.extents), 0),
            _ => (0, 0),
        };
        if task.max(all) > LIMIT_SCRATCH {
            return Err(refused(&self.name, format!("{} floats of scratch memory", task.max(all))));
        }
        Ok((task, all))
    }
    /// Runs the kernel.
    pub fn run(&self, l: &Launch<'_>, extents: &[usize], left: &mut [f32], spec: &KernelSpec) -> Result<()> {
        let done = match &self.body {
            Body::Map(inner) => row::map(l, Domain { extents, inner: *inner }, &self.groups),
            Body::Row(stats) => row::rows(l, extents, stats, &self.groups),
            Body::MatMul(m) => m.run(l, extents, &self.groups, left),
            Body::Attention(a) => a.run(l, extents, &self.groups),
            Body::Chain(c) => c.run(l, extents, &self.groups),
            Body::ConvChain(c) => c.run(l, extents, &self.groups),
        };
        done.map_err(|f| self.fault(f, Some(spec)))
    }
    fn fault(&self, f: Fault, spec: Option<&KernelSpec>) -> Error {
        let name = spec.and_then(|s| s.args.get(f.arg as usize)).map_or("?", |a| a.name.as_str());
        refused(&self.name, format!("an index leaves the argument `{name}`"))
    }
}

/// The error for a kernel that cannot run.
pub fn refused(kernel: &str, reason: impl Into<String>) -> Error {
    Error::Kernel { backend: "cpu", kernel: kernel.into(), reason: reason.into() }
}

fn build(spec: &KernelSpec) -> std::result::Result<Code, Refused> {
    let nd = spec.domain.len();
    if nd > LIMIT_AXES {
        return Err(format!("{nd} axes"));
    }
    let axes = match &spec.anchor {
        Anchor::Map | Anchor::Row { .. } => nd.max(1),
        Anchor::MatMul { .. } => nd + 1,
        Anchor::Chain(_) => nd + 2,
        Anchor::ConvChain(_) => ConvChain::AXES,
        Anchor::Attention(_) => 6,
    };
    let mut b = Builder::new(spec, axes);
    let domain = spec.domain.iter().map(|d| b.size(d)).collect::<std::result::Result<_, _>>()?;
    let lengths = spec.args.iter().map(|a| b.size(&a.len)).collect::<std::result::Result<_, _>>()?;
    let last = nd.saturating_sub(1);
    let (body, inner) = match &spec.anchor {
        Anchor::Map => {
            let inner = (0..nd).rev().find(|a| !spec.domain[*a].is(1)).unwrap_or(last);
            (Body::Map(inner), inner)
        }
        Anchor::Row { stats } => (Body::Row(row::stats(&mut b, spec, axes, stats, last)?), last),
        Anchor::MatMul { k, lhs, lhs_stats, rhs } => {
            let mut m = MatMul::new(&mut b, spec, k, *lhs, lhs_stats, rhs)?;
            let own = |l: &LeftStore| Store {
                arg: l.arg,
                index: l.index.clone(),
                value: l.value,
                when: None,
                per_row: false,
            };
            m.left = groups(&mut b, &spec.left.iter().map(own).collect::<Vec<_>>(), nd)?;
            (Body::MatMul(m), last)
        }
        Anchor::Chain(c) => (Body::Chain(Chain::new(&mut b, spec, c)?), last),
        Anchor::ConvChain(c) => (Body::ConvChain(ConvChain::new(&mut b, spec, c)?), last),
        Anchor::Attention(a) => (Body::Attention(Attention::new(&mut b, spec, a)?), 3),
    };
    let groups = groups(&mut b, &spec.stores, inner)?;
    let mut loads = vec![false; spec.args.len()];
    for (_, e) in spec.exprs.iter() {
        if let Expr::Load { arg, .. } = e
            && let Some(l) = loads.get_mut(arg.0 as usize)
        {
            *l = true;
        }
    }
    let value_dim = match &spec.anchor {
        Anchor::Attention(a) => Some(a.value_dim as usize),
        _ => None,
    };
    let (buffers, programs) = (b.buffers, b.programs);
    let uniform = b.finish()?;
    Ok(Code { name: spec.name.clone(), uniform, domain, lengths, groups, body, value_dim, buffers, loads, programs })
}

fn groups(b: &mut Builder<'_>, stores: &[Store], inner: usize) -> std::result::Result<Vec<Group>, Refused> {
    let mut out = Vec::new();
    let mut left: Vec<&Store> = stores.iter().collect();
    while let Some(first) = left.first().copied() {
        let same = |s: &Store| s.when == first.when && s.per_row == first.per_row;
        let (now, later): (Vec<&Store>, Vec<&Store>) = left.into_iter().partition(|s| same(s));
        left = later;
        let when = match &first.when {
            Some(w) => Some((w.axis as usize, b.size(&w.lo)?, b.size(&w.hi)?)),
            None => None,
        };
        let along = (!first.per_row).then_some(inner);
        out.push(Group { when, per_row: first.per_row, program: b.stores(&now, along)? });
    }
    Ok(out)
}
