//! What all templates share: bindings, size expressions, index arithmetic and launch geometry.
//!
//! A [`KernelCtx`] owns the builder of one kernel. A [`Scope`] says what the axes, accumulators and statistics are at
//! one place of the kernel, and remembers what was computed there; clone it to enter a loop or a guard. Mistakes are
//! recorded in the builder and come back from [`KernelCtx::finish`].

use std::cell::RefCell;
use std::collections::HashMap;

use super::load::View;
use super::{Rendered, TemplateError, ptx_options};
use crate::dim::{Atom, Bounds, Dim, Sym};
use crate::dtype::{HalfFormat, Storage};
use crate::emit::{Language, ptx, wgsl};
use crate::ir::{self, Access, ArrayRef, Axis, Builder, Type, Uniforms, Val};
use crate::opt;
use crate::spec::{Arg, ArgId, Expr, ExprId, KernelSpec, Space};
use crate::target::Capabilities;

/// Most workgroups along one dimension of a grid, on every target.
pub const GROUPS: i64 = 65535;
/// Places of the table of dynamic sizes.
const SIZES: usize = 16;

/// Values at one place of a kernel.
///
/// A clone starts with everything its origin has computed; what the clone computes stays in the clone, so a scope made
/// inside a closure never leaks a value out of it.
#[derive(Clone, Default)]
pub struct Scope {
    axes: Vec<Option<Val>>,
    accs: Vec<Val>,
    stats: Vec<Val>,
    pub(super) exprs: HashMap<ExprId, Val>,
    atoms: HashMap<Atom, Val>,
    dims: HashMap<Dim, Val>,
    /// Index of a load or store: the part computed outside, and what is left to add.
    split: HashMap<(Option<ArgId>, Dim), (Val, Dim)>,
    /// Expressions along an axis whose values this invocation keeps, every [`Held::step`]-th from its lane on.
    pub(super) held: Vec<Held>,
    /// Which of the kept values belongs to this place, where that is known without the lane.
    pub(super) turn: Option<Val>,
}

/// An expression whose values at the places `lane`, `lane + step`, … of an axis an invocation keeps in an array of its own.
#[derive(Clone, Copy)]
pub(super) struct Held {
    /// The expression.
    pub expr: ExprId,
    /// The axis.
    pub axis: usize,
    /// A power of two.
    pub step: u32,
    /// The values in order.
    pub values: ArrayRef,
}

impl Scope {
    /// A scope without axes.
    pub fn new() -> Self {
        Scope::default()
    }
    /// Says what axis `k` is. Binding it again forgets everything computed so far.
    pub fn bind(&mut self, k: usize, v: Val) {
        if self.axes.len() <= k {
            self.axes.resize(k + 1, None);
        }
        if let Some(slot) = self.axes.get_mut(k) {
            if slot.is_some() {
                self.exprs.clear();
                self.atoms.clear();
                self.dims.clear();
                self.split.clear();
                self.turn = None;
            }
            *slot = Some(v);
        }
    }
    /// This scope with axis `k` bound.
    pub fn with(&self, k: usize, v: Val) -> Scope {
        let mut s = self.clone();
        s.bind(k, v);
        s
    }
    /// This scope with accumulator values, in order.
    pub fn with_accs(&self, accs: Vec<Val>) -> Scope {
        Scope { accs, ..self.clone() }
    }
    /// Adds the next finished statistic.
    pub fn push_stat(&mut self, v: Val) {
        self.stats.push(v);
    }
    /// The value of an axis.
    pub fn axis(&self, k: usize) -> Option<Val> {
        self.axes.get(k).copied().flatten()
    }
    /// The value of an accumulator.
    pub fn acc(&self, j: usize) -> Option<Val> {
        self.accs.get(j).copied()
    }
    /// The value of a statistic.
    pub fn stat(&self, j: usize) -> Option<Val> {
        self.stats.get(j).copied()
    }
}

/// What an expression depends on.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Deps {
    /// Bit k: axis k.
    pub axes: u32,
    /// Bit j: accumulator j.
    pub accs: u32,
    /// Bit j: statistic j.
    pub stats: u32,
}

impl Deps {
    fn or(self, o: Deps) -> Deps {
        Deps { axes: self.axes | o.axes, accs: self.accs | o.accs, stats: self.stats | o.stats }
    }
}

/// One kernel under construction.
pub struct KernelCtx<'a> {
    /// The builder.
    pub b: Builder,
    /// What the kernel computes.
    pub spec: &'a KernelSpec,
    /// What the target can do.
    pub caps: &'a Capabilities,
    pub(super) workgroup: [u32; 3],
    buffers: Vec<ArrayRef>,
    views: Vec<View>,
    record: Uniforms,
    sizes: Uniforms,
    deps: Vec<Deps>,
    users: Vec<u32>,
    bounds: Bounds,
    pub(super) kept: RefCell<Option<KeptStats>>,
}

/// Statistics of a workgroup's rows in workgroup memory.
pub(super) struct KeptStats {
    /// One array each.
    pub arrays: Vec<ArrayRef>,
    /// The first row.
    pub first: Val,
    /// The axes that count rows.
    pub axes: std::ops::RangeInclusive<usize>,
}

impl<'a> KernelCtx<'a> {
    /// Starts a kernel: declares every binding. `view` chooses how a weight's buffer is seen; see [`View`].
    ///
    /// # Errors
    /// [`TemplateError::Unsupported`] for storage that a space cannot hold.
    pub fn new(
        spec: &'a KernelSpec,
        caps: &'a Capabilities,
        workgroup: [u32; 3],
        view: impl Fn(ArgId, &Arg) -> View,
    ) -> Result<Self, TemplateError> {
        let used = workgroup.iter().map(|n| u64::from(*n)).product::<u64>();
        let limit = u64::from(caps.limit_invocations);
        if used > limit {
            return Err(TemplateError::Invocations { kernel: spec.name.clone(), used, limit });
        }
        let b = Builder::new(&spec.name, workgroup);
        let texture = caps.weight_texture(spec);
        let mut bound: Vec<(Space, ArrayRef)> = Vec::new();
        let (mut buffers, mut views) = (Vec::new(), Vec::new());
        for (i, a) in spec.args.iter().enumerate() {
            let id = ArgId(i as u16);
            let view = match (a.space, view(id, a)) {
                (Space::Weight, view) if texture.is_some() => View::Texels { aligned: view == View::Vec4 },
                (Space::Weight, view) => view,
                (_, View::Vec4) if a.is_half(caps.tier) && !a.written => View::Vec4,
                _ => View::Scalar,
            };
            views.push(view);
            let alone = a.is_bound_alone(caps.tier);
            if let Some((_, r)) = bound.iter().find(|(s, _)| *s == a.space).filter(|_| !alone) {
                buffers.push(*r);
                continue;
            }
            let fits = match a.space {
                Space::Weight => true,
                Space::Ints => matches!(a.storage, Storage::I32 | Storage::Bool),
                _ => a.storage == Storage::F32,
            };
            if !fits {
                let reason = format!("`{}` is stored as {} in {:?}", a.name, a.storage, a.space);
                return Err(TemplateError::unsupported(spec, reason));
            }
            let written = spec.args.iter().any(|o| o.space == a.space && o.written);
            let array = match a.space {
                Space::Arena if alone => {
                    let elem = match a.rounded {
                        _ if view == View::Vec4 => Type::VEC4_U32,
                        Some(HalfFormat::F16) => Type::F16,
                        _ => Type::BF16,
                    };
                    let access = if a.written { Access::ReadWrite } else { Access::ReadOnly };
                    b.buffer(&a.name, access, elem)
                }
                Space::Arena => b.output("arena", Type::F32),
                Space::Ints => b.output("ints", Type::I32),
                Space::Side => b.input("side", Type::F32),
                Space::Kv(n) => {
                    let access = if written { Access::ReadWrite } else { Access::ReadOnly };
                    b.buffer(&format!("kv{n}"), access, Type::F32)
                }
                Space::Weight => {
                    let access = match (texture, view) {
                        (Some(texture), _) => Access::Texels(texture),
                        (None, View::Tiles(map)) => Access::Tiles(map),
                        (None, _) => Access::Constant,
                    };
                    b.buffer(&a.name, access, view.elem(a.storage))
                }
            };
            if !alone {
                bound.push((a.space, array));
            }
            buffers.push(array);
        }
        let names: Vec<String> = spec.args.iter().map(|a| format!("{}_at", a.name)).collect();
        let mut fields: Vec<(&str, ir::Scalar)> = names.iter().map(|n| (n.as_str(), ir::Scalar::U32)).collect();
        if fields.is_empty() {
            fields.push(("unused", ir::Scalar::U32));
        }
        let record = b.uniforms("record", &fields);
        let slots: Vec<String> = (0..SIZES)
            .map(|i| match spec.sizes.iter().find(|z| z.index as usize == i) {
                Some(z) => format!("size_{}", identifier(&z.name)),
                None => format!("unused_{i}"),
            })
            .collect();
        let fields: Vec<(&str, ir::Scalar)> = slots.iter().map(|n| (n.as_str(), ir::Scalar::U32)).collect();
        let sizes = b.uniforms("sizes", &fields);
        let (deps, users) = analyse(spec);
        let bounds = Bounds::new().of_axes(&spec.domain);
        Ok(KernelCtx {
            b,
            spec,
            caps,
            workgroup,
            buffers,
            views,
            record,
            sizes,
            deps,
            users,
            bounds,
            kept: RefCell::new(None),
        })
    }

    /// The argument of an id.
    pub fn arg(&self, id: ArgId) -> Option<&'a Arg> {
        self.spec.arg(id)
    }
    /// The buffer an argument lives in.
    pub fn buffer(&self, id: ArgId) -> Option<ArrayRef> {
        self.buffers.get(id.0 as usize).copied()
    }
    /// How the buffer of an argument is seen.
    pub fn view(&self, id: ArgId) -> View {
        self.views.get(id.0 as usize).copied().unwrap_or(View::Scalar)
    }
    /// The element offset of an argument inside its buffer; 0 for one that is bound alone.
    pub fn offset(&self, id: ArgId) -> Val {
        match self.arg(id) {
            Some(a) if !a.is_bound_alone(self.caps.tier) => self.b.field(self.record, &format!("{}_at", a.name)),
            _ => self.b.u32(0),
        }
    }
    /// A dynamic size.
    pub fn size(&self, name: &str) -> Val {
        if self.spec.sizes.iter().any(|z| z.name == name) {
            return self.b.field(self.sizes, &format!("size_{}", identifier(name)));
        }
        self.b.error(format!("the size `{name}` is not declared"));
        self.b.u32(0)
    }
    /// A size expression without axes.
    pub fn extent(&self, d: &Dim) -> Val {
        self.dim(&mut Scope::new(), d)
    }
    /// Records an error of the template and stands in for the value.
    pub(super) fn poison(&self, what: impl Into<String>) -> Val {
        self.b.error(what);
        self.b.u32(0)
    }
    /// How many expressions, stores and statistics name this expression.
    pub(super) fn users(&self, e: ExprId) -> u32 {
        self.users.get(e.0 as usize).copied().unwrap_or(0)
    }
    pub(super) fn deps(&self, e: ExprId) -> Deps {
        self.deps.get(e.0 as usize).copied().unwrap_or_default()
    }
    /// Whether all that an expression depends on is bound in `scope`.
    pub fn is_bound(&self, scope: &Scope, e: ExprId) -> bool {
        self.deps_bound(scope, self.deps(e))
    }
    fn deps_bound(&self, scope: &Scope, d: Deps) -> bool {
        let below = |mask: u32, n: usize| mask >> n.min(31) == 0;
        (0..32).all(|k| d.axes >> k & 1 == 0 || scope.axis(k).is_some())
            && below(d.accs, scope.accs.len())
            && below(d.stats, scope.stats.len())
    }
    fn sym_deps(&self, s: &Sym) -> Deps {
        match s {
            Sym::Axis(k) => Deps { axes: 1 << (*k).min(31), ..Deps::default() },
            Sym::Value(v) => self.deps(ExprId(*v)),
            Sym::Size(_) => Deps::default(),
        }
    }
    fn dim_deps(&self, d: &Dim) -> Deps {
        let mut deps = Deps::default();
        d.visit(&mut |s| deps = deps.or(self.sym_deps(s)));
        deps
    }

    /// Lowers a size expression to `u32`, modulo 2³²; divisions see their true, nonnegative operands.
    pub fn dim(&self, scope: &mut Scope, d: &Dim) -> Val {
        if let Some(v) = scope.dims.get(d) {
            return *v;
        }
        let v = match scope.split.get(&(None, d.clone())).cloned() {
            Some((outer, rest)) => {
                let inner = self.dim(scope, &rest);
                self.b.add(outer, inner)
            }
            None => self.sum(scope, d),
        };
        scope.dims.insert(d.clone(), v);
        v
    }
    /// The address of element `index` of an argument in its buffer.
    pub fn address(&self, scope: &mut Scope, arg: ArgId, index: &Dim) -> Val {
        match scope.split.get(&(Some(arg), index.clone())).cloned() {
            Some((outer, rest)) => {
                let inner = self.dim(scope, &rest);
                self.b.add(outer, inner)
            }
            None => {
                let i = self.dim(scope, index);
                self.b.add(self.offset(arg), i)
            }
        }
    }
    fn sum(&self, scope: &mut Scope, d: &Dim) -> Val {
        let b = &self.b;
        let mut total: Option<Val> = None;
        let mut terms: Vec<_> = d.terms().collect();
        terms.sort_by_key(|(m, c)| (*c < 0, m.is_empty()));
        for (m, c) in terms {
            let mut p: Option<Val> = None;
            for a in m {
                let v = self.atom(scope, a);
                p = Some(match p {
                    Some(q) => b.mul(q, v),
                    None => v,
                });
            }
            let Ok(k) = u32::try_from(c.unsigned_abs()) else {
                return self.poison(format!("the factor {c} of `{d}` exceeds 32 bits"));
            };
            let term = match p {
                Some(p) => b.mul(p, k),
                None => b.u32(k),
            };
            total = Some(match total {
                Some(t) if c < 0 => b.sub(t, term),
                Some(t) => b.add(t, term),
                None if c < 0 => b.sub(b.u32(0), term),
                None => term,
            });
        }
        total.unwrap_or_else(|| b.u32(0))
    }
    fn atom(&self, scope: &mut Scope, a: &Atom) -> Val {
        let b = &self.b;
        match a {
            Atom::Sym(Sym::Size(n)) => return self.size(n),
            Atom::Sym(Sym::Axis(k)) => {
                return match scope.axis(*k as usize) {
                    Some(v) => v,
                    None => self.poison(format!("axis {k} is not bound here")),
                };
            }
            Atom::Sym(Sym::Value(v)) => {
                let x = self.expr(scope, ExprId(*v));
                return b.cast(ir::Scalar::U32, x);
            }
            _ => {}
        }
        if let Some(v) = scope.atoms.get(a) {
            return *v;
        }
        let v = match a {
            Atom::Div(x, y) | Atom::Mod(x, y) => {
                let (p, q) = (self.dim(scope, x), self.dim(scope, y));
                let is_div = matches!(a, Atom::Div(..));
                match b.const_u32(q) {
                    Some(c) if c.is_power_of_two() && is_div => b.shr(p, c.trailing_zeros()),
                    Some(c) if c.is_power_of_two() => b.bit_and(p, c - 1),
                    _ if is_div => b.div(p, q),
                    _ => b.rem(p, q),
                }
            }
            Atom::Max(x, y) | Atom::Min(x, y) => {
                let (p, q) = (self.dim(scope, x), self.dim(scope, y));
                let is_max = matches!(a, Atom::Max(..));
                let pick = |p: Val, q: Val| if is_max { b.max(p, q) } else { b.min(p, q) };
                if self.bounds.nonneg(x) && self.bounds.nonneg(y) {
                    pick(p, q)
                } else {
                    let signed = pick(b.bitcast(ir::Scalar::I32, p), b.bitcast(ir::Scalar::I32, q));
                    b.bitcast(ir::Scalar::U32, signed)
                }
            }
            Atom::Sym(_) => b.u32(0),
        };
        scope.atoms.insert(a.clone(), v);
        v
    }

    /// Says where statistics of rows are found from here on.
    pub(super) fn keep_stats(&self, kept: KeptStats) {
        self.kept.replace(Some(kept));
    }

    /// Computes here what `roots` need and what depends only on what is bound here: whole expressions, and the parts
    /// of addresses. Call it before entering an inner loop.
    pub fn hoist(&self, scope: &mut Scope, roots: &[ExprId]) {
        for e in self.spec.exprs.reachable(roots) {
            let bound = self.is_bound(scope, e);
            match self.spec.exprs.get(e) {
                Expr::Const(_) | Expr::Acc(_) | Expr::Stat(_) => {}
                _ if bound => {
                    self.expr(scope, e);
                }
                Expr::Load { arg, index } => self.hoist_index(scope, Some(*arg), index),
                Expr::Coord(d) => self.hoist_index(scope, None, d),
                _ => {}
            }
        }
    }
    /// Computes here the part of an address that depends only on what is bound here.
    pub fn hoist_index(&self, scope: &mut Scope, arg: Option<ArgId>, index: &Dim) {
        let key = (arg, index.clone());
        if scope.split.contains_key(&key) || self.deps_bound(scope, self.dim_deps(index)) {
            return;
        }
        let (mut outer, mut rest) = (Dim::zero(), Dim::zero());
        for (m, c) in index.terms() {
            let mut deps = Deps::default();
            let mut term = Dim::constant(c);
            for a in m {
                let factor = factor(a);
                deps = deps.or(self.dim_deps(&factor));
                term = term * factor;
            }
            let here = self.deps_bound(scope, deps);
            let target = if here { &mut outer } else { &mut rest };
            *target = target.clone() + term;
        }
        let constant = outer.as_const().is_some();
        if constant && arg.is_none() {
            return;
        }
        let v = self.dim(scope, &outer);
        let v = match arg {
            Some(a) => self.b.add(self.offset(a), v),
            None => v,
        };
        scope.split.insert(key, (v, rest));
    }

    /// The number of this workgroup in a grid folded by [`dispatch`].
    pub fn group(&self, groups: &Dim) -> Val {
        let b = &self.b;
        if groups.as_const().is_some_and(|g| g <= GROUPS) {
            return b.group_x();
        }
        b.add(b.mul(b.group_y(), b.num_groups(Axis::X)), b.group_x())
    }
    /// Splits a running number into coordinates of `extents`, the last fastest, and binds them to axes `first…`.
    /// `linear` must be below the product of the extents for the coordinates to be in range.
    pub fn unravel(&self, scope: &mut Scope, first: usize, extents: &[Dim], linear: Val) {
        let b = &self.b;
        let mut left = linear;
        for (k, e) in extents.iter().enumerate().rev() {
            if k == 0 {
                scope.bind(first, left);
            } else if e.is(1) {
                scope.bind(first + k, b.u32(0));
            } else {
                let n = self.extent(e);
                let (q, r) = match b.const_u32(n) {
                    Some(c) if c.is_power_of_two() => (b.shr(left, c.trailing_zeros()), b.bit_and(left, c - 1)),
                    _ => {
                        let q = b.div(left, n);
                        (q, b.sub(left, b.mul(q, n)))
                    }
                };
                scope.bind(first + k, b.let_(&format!("i{}", first + k), r));
                left = q;
            }
        }
    }

    /// Ends the kernel: verifies it against the target and writes its text.
    ///
    /// # Errors
    /// [`TemplateError`] for what the builder recorded, a rule of the IR, or a limit of the target.
    pub fn finish(
        self,
        template: &'static str,
        tile: &[(&str, u32)],
        grid: [Dim; 3],
    ) -> Result<Rendered, TemplateError> {
        let KernelCtx { b, spec, caps, workgroup, views, .. } = self;
        let mut module = b.finish()?;
        let waits = |s: &ir::Stmt| matches!(s, ir::Stmt::Barrier(ir::Barrier::Launch));
        if caps.overlaps() && !module.body.iter().any(waits) {
            module.body.insert(0, ir::Stmt::Barrier(ir::Barrier::Launch));
        }
        ir::verify(&module, caps)?;
        let module = opt::simplify(&module);
        let language = caps.tier.language();
        let text = match language {
            Language::Wgsl => wgsl::emit(&module, &wgsl::Options::default()).map_err(|e| e.to_string()),
            Language::Ptx => {
                let tile: Vec<String> = tile.iter().map(|(name, n)| format!("{name} {n}")).collect();
                let schedule = format!("{template}: {}", tile.join(", "));
                let header = vec![format!("spec {}", spec.hash().to_hex()), schedule];
                ptx::emit(&module, &ptx::Options { header, ..ptx_options() }).map_err(|e| e.to_string())
            }
        };
        let text = text.map_err(|reason| TemplateError::Emit { kernel: spec.name.clone(), reason })?;
        let tile = tile.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        let matrix = |(i, view): (usize, &View)| match view {
            View::Tiles(map) => Some((ArgId(i as u16), *map)),
            _ => None,
        };
        let matrices = views.iter().enumerate().filter_map(matrix).collect();
        Ok(Rendered { template, workgroup, tile, grid, module, language, text, matrices })
    }
}

/// The grid that runs `groups` workgroups: folded into two dimensions beyond 65535. Groups may be started in excess;
/// the kernel guards against those.
pub fn dispatch(groups: &Dim) -> [Dim; 3] {
    let most = Dim::constant(GROUPS);
    let groups = if Bounds::new().less(&Dim::zero(), groups) { groups.clone() } else { groups.larger(&Dim::one()) };
    if groups.as_const().is_some_and(|g| g <= GROUPS) {
        return [groups, Dim::one(), Dim::one()];
    }
    [groups.smaller(&most), groups.ceil_div(&most), Dim::one()]
}

/// An atom as a size expression.
fn factor(a: &Atom) -> Dim {
    match a {
        Atom::Sym(s) => Dim::sym(s.clone()),
        Atom::Div(x, y) => x.div(y),
        Atom::Mod(x, y) => x.rem(y),
        Atom::Max(x, y) => x.larger(y),
        Atom::Min(x, y) => x.smaller(y),
    }
}

/// A name in which every character suits an identifier.
fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// What each expression depends on, and by how many it is used.
fn analyse(spec: &KernelSpec) -> (Vec<Deps>, Vec<u32>) {
    let mut deps: Vec<Deps> = Vec::with_capacity(spec.exprs.len());
    let mut users = vec![0u32; spec.exprs.len()];
    let axes_of = |d: &Dim| {
        let mut m = 0;
        d.visit(&mut |s| {
            if let Sym::Axis(k) = s {
                m |= 1 << (*k).min(31);
            }
        });
        m
    };
    for (id, e) in spec.exprs.iter() {
        let mut d = match e {
            Expr::Load { index, .. } => Deps { axes: axes_of(index), ..Deps::default() },
            Expr::Coord(x) => Deps { axes: axes_of(x), ..Deps::default() },
            Expr::Acc(j) => Deps { accs: 1 << (*j).min(31), ..Deps::default() },
            Expr::Stat(j) => Deps { stats: 1 << (*j).min(31), ..Deps::default() },
            _ => Deps::default(),
        };
        for o in spec.exprs.operands(id) {
            d = d.or(deps.get(o.0 as usize).copied().unwrap_or_default());
            if let Some(n) = users.get_mut(o.0 as usize) {
                *n += 1;
            }
        }
        deps.push(d);
    }
    for st in &spec.stores {
        if let Some(n) = users.get_mut(st.value.0 as usize) {
            *n += 1;
        }
    }
    (deps, users)
}
