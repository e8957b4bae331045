//! What must hold of a [`Plan`] before a backend sees it. Plans come from files that nobody vouches for; after
//! [`Plan::validate`] every index is inside its table, every name that has to be unique is, and every argument is bound
//! to a buffer of its kind that is long enough for it.

use crate::limits;
use crate::{
    BufferRef, Kernel, KvPart, Matrix, PLAN_VERSION, Placement, Plan, Port, Program, Step, Variant, WeightDecl,
    WeightSource,
};
use frit_kernels::dim::{Dim, Sym, product};
use frit_kernels::dtype::{HalfFormat, Scalar, Storage};
use frit_kernels::emit::Language;
use frit_kernels::spec::{Anchor, Arg, KernelSpec, Space};
use frit_kernels::target::Architecture;
use std::collections::{HashMap, HashSet};

/// The broken rules of a plan, the first few of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan contradicts itself: {}", .faults.join("; "))]
pub struct PlanError {
    /// Each with its place.
    pub faults: Vec<String>,
}

fn target_name(v: &Variant) -> String {
    v.architecture.map_or_else(|| v.tier.name().to_owned(), |a| format!("{} {}", v.tier.name(), a.name()))
}

/// Whether an argument is a weight of 16-bit elements that holds a matrix, which the driver takes in tiles.
fn is_matrix(spec: &KernelSpec, m: &Matrix) -> bool {
    let Some(a) = spec.args.get(usize::from(m.argument)) else { return false };
    let elements = m.columns.checked_mul(m.rows).and_then(|n| i64::try_from(n).ok());
    let held = a.len.as_const().zip(elements).is_some_and(|(held, used)| used > 0 && used <= held);
    let halves = matches!(a.storage, Storage::F16 | Storage::Bf16);
    a.space == Space::Weight && halves && held && m.columns % 8 == 0 && (1..=256).contains(&m.tile_rows)
}

/// Faults reported at most; further ones follow from these more often than not.
const SHOWN: usize = 8;

/// A stored tensor as tables describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredShape {
    /// How elements are stored.
    pub storage: Storage,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
}

impl Plan {
    /// Checks every rule that backends rely on.
    ///
    /// # Errors
    /// The faults found.
    pub fn validate(&self) -> Result<(), PlanError> {
        let mut c = Check { plan: self, faults: Vec::new() };
        c.all();
        if c.faults.is_empty() { Ok(()) } else { Err(PlanError { faults: c.faults }) }
    }

    /// Checks that the weights can be made of the tensors that `find` knows: they exist, rows lie inside, and the
    /// number of elements is right.
    ///
    /// # Errors
    /// The faults found.
    pub fn validate_tensors(&self, find: &dyn Fn(&str) -> Option<StoredShape>) -> Result<(), PlanError> {
        let faults: Vec<String> = self
            .weights
            .iter()
            .filter_map(|w| parts_fit(w, find).err().map(|f| format!("weight `{}`: {f}", w.name)))
            .take(SHOWN)
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(PlanError { faults }) }
    }

    /// Names of the stored tensors that the weights are made of, each once, in order of first use.
    pub fn tensor_names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let parts = self.weights.iter().filter_map(|w| match &w.source {
            WeightSource::Parts(parts) => Some(parts),
            _ => None,
        });
        parts.flatten().map(|p| p.tensor.as_str()).filter(|n| seen.insert(*n)).collect()
    }

    /// The position of a size in the table.
    pub fn size_index(&self, name: &str) -> Option<usize> {
        self.sizes.iter().position(|z| z.name == name)
    }
}

fn parts_fit(w: &WeightDecl, find: &dyn Fn(&str) -> Option<StoredShape>) -> Result<(), String> {
    let WeightSource::Parts(parts) = &w.source else { return Ok(()) };
    let mut elems = 0u64;
    for p in parts {
        let t = find(&p.tensor).ok_or_else(|| format!("there is no tensor `{}`", p.tensor))?;
        let total = t.shape.iter().try_fold(1u64, |a, d| a.checked_mul(*d)).ok_or("too many elements")?;
        if t.storage.is_quantised() && (w.storage != t.storage || p.transpose) {
            return Err(format!("tensor `{}` of {} cannot be read as {}", p.tensor, t.storage, w.storage));
        }
        if p.transpose && t.shape.len() != 2 {
            return Err(format!("tensor `{}` has {} extents and cannot be transposed", p.tensor, t.shape.len()));
        }
        let rows = if p.transpose { t.shape.get(1) } else { t.shape.first() }.copied().unwrap_or(1);
        let used = match p.rows {
            Some((lo, hi)) if lo < hi && hi <= rows => total / rows.max(1) * (hi - lo),
            Some((lo, hi)) => return Err(format!("rows {lo}..{hi} of tensor `{}`, which has {rows}", p.tensor)),
            None => total,
        };
        elems = elems.checked_add(used).ok_or("too many elements")?;
    }
    let want = product(&w.shape).as_const().and_then(|v| u64::try_from(v).ok());
    if want == Some(elems) {
        Ok(())
    } else {
        Err(format!("its tensors hold {elems} elements, its shape {}", product(&w.shape)))
    }
}

struct Check<'a> {
    plan: &'a Plan,
    faults: Vec<String>,
}

/// Kind, length and type of what a launch's argument is bound to.
struct Bound {
    storage: Storage,
    len: Dim,
    fits: fn(Space) -> bool,
    writable: bool,
}

impl Check<'_> {
    fn ensure(&mut self, ok: bool, fault: impl FnOnce() -> String) -> bool {
        if !ok && self.faults.len() < SHOWN {
            self.faults.push(fault());
        }
        ok
    }
    fn unique<'s>(&mut self, what: &str, names: impl Iterator<Item = &'s str>) {
        let mut seen = HashSet::new();
        for n in names {
            self.ensure(n.len() <= 4096, || format!("{what} with a name of {} bytes", n.len()));
            self.ensure(seen.insert(n), || format!("two of the {what} are named `{n}`"));
        }
    }

    fn all(&mut self) {
        let p = self.plan;
        if !self.ensure(p.version == PLAN_VERSION, || format!("version {} is not {PLAN_VERSION}", p.version)) {
            return;
        }
        for (what, found, limit) in [
            ("sizes", p.sizes.len(), limits::SIZES),
            ("kernels", p.kernels.len(), limits::KERNELS),
            ("programs", p.programs.len(), limits::PROGRAMS),
        ] {
            if !self.ensure(found <= limit, || format!("{found} {what}, at most {limit} are allowed")) {
                return;
            }
        }
        self.unique("sizes", p.sizes.iter().map(|s| s.name.as_str()));
        self.unique("weights", p.weights.iter().map(|w| w.name.as_str()));
        self.unique("cache slots", p.kv_slots.iter().map(|w| w.name.as_str()));
        self.unique("states", p.states.iter().map(|w| w.name.as_str()));
        self.unique("kernels", p.kernels.iter().map(|w| w.name.as_str()));
        self.unique("programs", p.programs.iter().map(|w| w.name.as_str()));
        for s in &p.sizes {
            let ordered = s.max.is_none_or(|m| s.min <= m && m <= i64::MAX as u64);
            self.ensure(ordered, || format!("size `{}` lies between {} and {:?}", s.name, s.min, s.max));
        }
        for w in &p.weights {
            self.weight(w);
        }
        for s in &p.kv_slots {
            for shape in [&s.k_shape, &s.v_shape] {
                self.ensure(shape.is_empty() || shape.len() == 4, || {
                    format!("cache slot `{}` has no 4 extents", s.name)
                });
                self.dims(&format!("cache slot `{}`", s.name), shape);
            }
        }
        for s in &p.states {
            let integer = s.storage.scalar() != Scalar::F32;
            self.ensure(integer, || format!("state `{}` is {}, not i32 or bool", s.name, s.storage));
            self.dims(&format!("state `{}`", s.name), &s.shape);
        }
        let known = |t: u32| p.model.vocab == 0 || u64::from(t) < p.model.vocab;
        for t in p.model.eos.iter().chain(&p.model.bos).chain(&p.model.rules.last) {
            self.ensure(known(*t), || format!("token {t} is not in the vocabulary of {}", p.model.vocab));
        }
        for k in &p.kernels {
            self.kernel(k);
        }
        if self.faults.is_empty() {
            for g in &p.programs {
                self.program(g);
            }
        }
    }

    /// Every symbol is a declared size.
    fn dims<'d>(&mut self, place: &str, dims: impl IntoIterator<Item = &'d Dim>) {
        for d in dims {
            let mut unknown = None;
            d.visit(&mut |s| match s {
                Sym::Size(n) if self.plan.size_index(n).is_some() => {}
                other => unknown = Some(other.to_string()),
            });
            if let Some(s) = unknown {
                self.ensure(false, || format!("{place}: `{s}` in `{d}` is no size of the plan"));
            }
        }
    }

    fn weight(&mut self, w: &WeightDecl) {
        let place = format!("weight `{}`", w.name);
        self.dims(&place, &w.shape);
        self.ensure(w.shape.len() <= 8, || format!("{place} has {} extents", w.shape.len()));
        self.ensure(w.placement == Placement::Own || w.storage == Storage::F32, || {
            format!("{place} is {} in the side buffer", w.storage)
        });
        match &w.source {
            WeightSource::Parts(parts) => {
                self.ensure(!parts.is_empty(), || format!("{place} is made of nothing"));
            }
            WeightSource::Rope { inv_freq, .. } => {
                let half = w.shape.get(1).and_then(Dim::as_const);
                let ok = w.storage == Storage::F32 && w.shape.len() == 2 && half == i64::try_from(inv_freq.len()).ok();
                self.ensure(ok, || format!("{place} is no rotary table of {} frequencies", inv_freq.len()));
            }
            WeightSource::Inline(v) => {
                let ok = w.storage == Storage::F32 && product(&w.shape).as_const() == i64::try_from(v.len()).ok();
                self.ensure(ok, || format!("{place} holds {} values, its shape {}", v.len(), product(&w.shape)));
            }
        }
    }

    fn kernel(&mut self, k: &Kernel) {
        let place = format!("kernel `{}`", k.name);
        let s = &k.spec;
        for (what, found, limit) in
            [("expressions", s.exprs.len(), limits::EXPRESSIONS), ("arguments", s.args.len(), limits::ARGUMENTS)]
        {
            if !self.ensure(found <= limit, || format!("{place} has {found} {what}, at most {limit} are allowed")) {
                return;
            }
        }
        if let Err(e) = s.verify() {
            self.ensure(false, || e.to_string());
        }
        for z in &s.sizes {
            let named = self.plan.sizes.get(usize::from(z.index)).is_some_and(|d| d.name == z.name);
            self.ensure(named, || format!("{place}: size `{}` is not number {} of the plan", z.name, z.index));
        }
        if let Anchor::Attention(a) = &s.anchor {
            self.dims(&place, &a.causal_offset);
        }
        for (i, v) in k.variants.iter().enumerate() {
            let target = (v.tier, v.architecture);
            let first = !k.variants.iter().take(i).any(|w| (w.tier, w.architecture) == target);
            self.ensure(first, || format!("{place} has two texts for {}", target_name(v)));
            let is_ptx = v.tier.language() == Language::Ptx;
            self.ensure(is_ptx == v.architecture.is_some(), || {
                format!("{place}: the text for {} has the wrong instruction set", target_name(v))
            });
            for m in &v.matrices {
                self.ensure(v.architecture == Some(Architecture::Sm90a) && is_matrix(s, m), || {
                    let (argument, rows, columns) = (m.argument, m.rows, m.columns);
                    let target = target_name(v);
                    format!("{place}: argument {argument} is no matrix of {rows} rows of {columns} for {target}")
                });
            }
            let shared = u64::from(v.dynamic_shared_bytes);
            self.ensure(shared <= limits::SHARED_BYTES && (is_ptx || shared == 0), || {
                format!("{place}: {shared} bytes of workgroup memory for {}", target_name(v))
            });
            let invocations = v.schedule.workgroup.iter().try_fold(1u64, |p, n| p.checked_mul(u64::from(*n)));
            let ok = invocations.is_some_and(|n| (1..=limits::INVOCATIONS).contains(&n));
            self.ensure(ok, || format!("{place}: a workgroup of {:?}", v.schedule.workgroup));
            self.ensure(v.text.len() <= limits::TEXT_BYTES, || format!("{place}: a text of {} bytes", v.text.len()));
            self.dims(&place, &v.grid);
        }
    }

    fn program(&mut self, g: &Program) {
        let place = format!("program `{}`", g.name);
        for (what, found) in [("values", g.values.len()), ("steps", g.steps.len())] {
            if !self.ensure(found <= limits::STEPS, || format!("{place} has {found} {what}")) {
                return;
            }
        }
        for (n, v) in g.fixed.iter().chain(&g.at_most) {
            let declared = self.plan.sizes.iter().find(|z| z.name == *n);
            let ok = declared
                .is_some_and(|z| *v >= z.min && z.max.is_none_or(|m| *v <= m || g.at_most.iter().any(|a| a.0 == *n)));
            self.ensure(ok, || format!("{place} sets size `{n}` to {v}"));
        }
        if let Some(i) = &g.instead {
            let names = |ports: &[Port]| ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
            let same = self.plan.program(&i.of).is_some_and(|o| {
                o.instead.is_none() && names(&o.inputs) == names(&g.inputs) && names(&o.outputs) == names(&g.outputs)
            });
            self.ensure(same, || format!("{place} does not do what `{}` does", i.of));
            self.dims(&place, [&i.keys]);
        }
        self.unique(&format!("inputs of {place}"), g.inputs.iter().map(|p| p.name.as_str()));
        self.unique(&format!("outputs of {place}"), g.outputs.iter().map(|p| p.name.as_str()));
        self.unique(&format!("values of {place}"), g.values.iter().map(|p| p.name.as_str()));
        self.dims(&place, g.arena.sizes.iter().chain(&g.ints.sizes));
        let probes = self.probes(g);
        for v in &g.values {
            let value = format!("{place}, value `{}`", v.name);
            self.dims(&value, &v.shape);
            let plain = matches!(v.storage, Storage::F32 | Storage::I32 | Storage::Bool);
            self.ensure(plain, || format!("{value} is {}", v.storage));
            let slots = if v.storage == Storage::F32 { &g.arena } else { &g.ints };
            match slots.sizes.get(v.slot as usize) {
                Some(slot) => self.fits(&value, &product(&v.shape), slot, &probes),
                None => {
                    self.ensure(false, || format!("{value} lies in slot {} of {}", v.slot, slots.sizes.len()));
                }
            }
            self.ensure(v.live.0 <= v.live.1, || format!("{value} lives from step {} to {}", v.live.0, v.live.1));
        }
        self.sharing(g, &place);
        for p in &g.inputs {
            self.port(g, p, &format!("{place}, input `{}`", p.name), &probes);
        }
        for p in &g.outputs {
            self.port(g, p, &format!("{place}, output `{}`", p.name), &probes);
        }
        for (i, s) in g.steps.iter().enumerate() {
            self.step(g, s, &format!("{place}, step {i}"), &probes);
        }
        self.rounding(g, &place);
    }

    /// All kernels agree on the format that a value is rounded to, and values that the host sees are not rounded.
    fn rounding(&mut self, g: &Program, place: &str) {
        let ports = g.inputs.iter().chain(&g.outputs);
        let mut known: HashMap<BufferRef, Option<HalfFormat>> = ports.map(|p| (p.buffer, None)).collect();
        for s in &g.steps {
            let Some(k) = self.plan.kernels.get(s.kernel as usize) else { continue };
            for (a, r) in k.spec.args.iter().zip(&s.args) {
                let said = *known.entry(*r).or_insert(a.rounded);
                self.ensure(said == a.rounded, || {
                    let format = |f: Option<HalfFormat>| f.map_or("none", HalfFormat::name);
                    let (one, other) = (format(a.rounded), format(said));
                    format!("{place}: `{}` of `{}` is rounded to {one}, elsewhere to {other}", a.name, k.name)
                });
            }
        }
    }

    /// Values of one slot are alive one after another. Where one begins at the step at which another ends, that step's
    /// kernel must allow it by an alias contract.
    fn sharing(&mut self, g: &Program, place: &str) {
        let mut slots: HashMap<(bool, u32), Vec<usize>> = HashMap::new();
        for (i, v) in g.values.iter().enumerate() {
            slots.entry((v.storage == Storage::F32, v.slot)).or_default().push(i);
        }
        let mut slots: Vec<_> = slots.into_iter().collect();
        slots.sort();
        for (_, mut values) in slots {
            values.sort_by_key(|i| g.values.get(*i).map(|v| (v.live, *i)));
            for pair in values.windows(2) {
                let (Some(a), Some(b)) = (pair.first(), pair.last()) else { continue };
                let (Some(old), Some(new)) = (g.values.get(*a), g.values.get(*b)) else { continue };
                let apart = old.live.1 < new.live.0;
                let over = old.live.1 == new.live.0 && self.overwrites(g, new.live.0, *b as u32, *a as u32);
                self.ensure(apart || over, || {
                    format!("{place}: `{}` and `{}` share slot {} while both are alive", old.name, new.name, old.slot)
                });
            }
        }
    }
    fn overwrites(&self, g: &Program, step: u32, output: u32, input: u32) -> bool {
        let Some(s) = g.steps.get(step as usize) else { return false };
        let Some(k) = self.plan.kernels.get(s.kernel as usize) else { return false };
        let is = |id: frit_kernels::spec::ArgId, v: u32| s.args.get(id.0 as usize) == Some(&BufferRef::Value(v));
        k.spec.aliases.iter().any(|a| is(a.output, output) && is(a.input, input))
    }

    fn port(&mut self, g: &Program, p: &Port, place: &str, probes: &[Vec<u64>]) {
        self.dims(place, &p.shape);
        let bound = match p.buffer {
            BufferRef::Value(_) | BufferRef::State(_) => self.bound(g, p.buffer),
            _ => None,
        };
        match bound {
            Some(b) => {
                self.ensure(b.storage == p.storage, || format!("{place} is {}, its buffer {}", p.storage, b.storage));
                self.fits(place, &product(&p.shape), &b.len, probes);
            }
            None => {
                self.ensure(false, || format!("{place} has no buffer"));
            }
        }
    }

    fn step(&mut self, g: &Program, s: &Step, place: &str, probes: &[Vec<u64>]) {
        let Some(k) = self.plan.kernels.get(s.kernel as usize) else {
            self.ensure(false, || format!("{place} launches kernel {} of {}", s.kernel, self.plan.kernels.len()));
            return;
        };
        let (found, want) = (s.args.len(), k.spec.args.len());
        if !self.ensure(found == want, || format!("{place} gives `{}` {found} arguments, not {want}", k.name)) {
            return;
        }
        let told = s.when.map(|v| g.values.get(v as usize).is_some_and(|v| v.storage.scalar() != Scalar::F32));
        self.ensure(told != Some(false), || format!("{place} depends on {:?}, which is no integer value", s.when));
        let mut slots: HashMap<u8, u32> = HashMap::new();
        for (a, r) in k.spec.args.iter().zip(&s.args) {
            self.argument(g, a, *r, place, probes);
            if let (Space::Kv(n), BufferRef::Kv { slot, .. }) = (a.space, r) {
                let same = *slots.entry(n).or_insert(*slot) == *slot;
                self.ensure(same, || format!("{place}: cache slot {n} of `{}` is two slots", k.name));
            }
        }
    }

    fn argument(&mut self, g: &Program, a: &Arg, r: BufferRef, place: &str, probes: &[Vec<u64>]) {
        let Some(b) = self.bound(g, r) else {
            self.ensure(false, || format!("{place}: `{}` is bound to {r:?}, which does not exist", a.name));
            return;
        };
        let integers = |s: Storage| s.scalar() != Scalar::F32;
        let same = b.storage == a.storage || (integers(b.storage) && integers(a.storage));
        self.ensure(same, || format!("{place}: `{}` is {}, its buffer {}", a.name, a.storage, b.storage));
        self.ensure((b.fits)(a.space), || format!("{place}: `{}` in {:?} is bound to {r:?}", a.name, a.space));
        self.ensure(b.writable || !a.written, || format!("{place}: `{}` is written, but {r:?} is read only", a.name));
        self.fits(&format!("{place}, argument `{}`", a.name), &a.len, &b.len, probes);
    }

    fn bound(&self, g: &Program, r: BufferRef) -> Option<Bound> {
        let p = self.plan;
        Some(match r {
            BufferRef::Value(i) => {
                let v = g.values.get(i as usize)?;
                let fits: fn(Space) -> bool =
                    if v.storage == Storage::F32 { |s| s == Space::Arena } else { |s| s == Space::Ints };
                Bound { storage: v.storage, len: product(&v.shape), fits, writable: true }
            }
            BufferRef::State(i) => {
                let v = p.states.get(i as usize)?;
                Bound { storage: v.storage, len: product(&v.shape), fits: |s| s == Space::Ints, writable: true }
            }
            BufferRef::Weight(i) => {
                let w = p.weights.get(i as usize)?;
                let fits: fn(Space) -> bool = match w.placement {
                    Placement::Own => |s| s == Space::Weight,
                    Placement::Side => |s| s == Space::Side,
                };
                Bound { storage: w.storage, len: product(&w.shape), fits, writable: false }
            }
            BufferRef::Kv { slot, part } => {
                let s = p.kv_slots.get(slot as usize)?;
                let shape = if part == KvPart::K { &s.k_shape } else { &s.v_shape };
                if shape.is_empty() {
                    return None;
                }
                Bound {
                    storage: Storage::F32,
                    len: product(shape),
                    fits: |s| matches!(s, Space::Kv(_)),
                    writable: true,
                }
            }
        })
    }

    /// Size tables at which lengths are compared: the smallest, some odd ones between, and large ones, within what the
    /// program allows and with `P + S ≤ T`.
    fn probes(&self, g: &Program) -> Vec<Vec<u64>> {
        const STEPS: [[u64; 6]; 4] =
            [[0; 6], [1, 4, 2, 9, 3, 5], [12, 58, 30, 130, 16, 22], [70, 1030, 510, 4093, 210, 330]];
        let within = |name: &str, v: u64| {
            let z = self.plan.sizes.iter().find(|z| z.name == name);
            let v = z.map_or(v, |z| v.max(z.min).min(z.max.unwrap_or(u64::MAX)));
            let v = g.at_most.iter().filter(|a| a.0 == name).fold(v, |v, a| v.min(a.1));
            g.fixed.iter().find(|f| f.0 == name).map_or(v, |f| f.1)
        };
        let one = |add: &[u64; 6]| -> Vec<u64> {
            let mut t: Vec<u64> = self
                .plan
                .sizes
                .iter()
                .zip(add.iter().cycle())
                .map(|(z, a)| within(&z.name, z.min.saturating_add(*a)))
                .collect();
            let at = |n: &str| self.plan.size_index(n);
            if let (Some(s), Some(p), Some(c)) =
                (at(crate::sizes::TOKENS), at(crate::sizes::PAST), at(crate::sizes::CAPACITY))
            {
                let used = t.get(s).copied().unwrap_or(0).saturating_add(t.get(p).copied().unwrap_or(0));
                if let Some(c) = t.get_mut(c) {
                    *c = (*c).max(used);
                }
            }
            t
        };
        STEPS.iter().map(one).collect()
    }

    fn fits(&mut self, place: &str, need: &Dim, have: &Dim, probes: &[Vec<u64>]) {
        if need == have {
            return;
        }
        for t in probes {
            match (self.plan.eval(need, t), self.plan.eval(have, t)) {
                (Ok(n), Ok(h)) => {
                    if !self.ensure(n <= h, || format!("{place} needs `{need}` elements, there are `{have}`")) {
                        return;
                    }
                }
                (Err(e), _) | (_, Err(e)) => {
                    self.ensure(false, || format!("{place}: {e}"));
                    return;
                }
            }
        }
    }
}
