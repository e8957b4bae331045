//! Translation validation of kernels: what a region's kernel stores is what its operations compute.
//!
//! The spec is evaluated in f64 at some coordinates of every store, on memory with random contents and at small values
//! of the dynamic sizes; the same elements are computed from the graph by [`Elements`], which shares no code with the
//! building of kernels.

use super::RowStats;
use super::anchors::Site;
use super::spec_builder::{Operand, PackedWeight};
use crate::graph::{Graph, KvSlotId, Op, ValueId, WeightData};
use crate::passes::alike::{Alike, Depth};
use crate::passes::validate::{random, small_sizes};
use crate::reference::{Elements, RefError, hashed, scalar_binary, scalar_cast, scalar_literal, scalar_unary};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, Attention, ConvChain, Expr, ExprId, KernelSpec, PartialKind, ReduceOp, Stat};
use frit_plan::KvPart;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// Relative difference allowed: both sides are f64 and differ by the order of sums.
const TOLERANCE: f64 = 1e-6;
/// Elements compared of each store.
const SAMPLES: u64 = 3;

/// Compares a region's kernel with its operations. `Ok(false)`: not decided, for want of work units or of operations that
/// have elements.
///
/// # Errors
/// The store that differs, with both values.
pub fn region(site: &Site<'_>, spec: &KernelSpec, operands: &[Operand], left: &mut u64) -> Result<bool, String> {
    let sizes = small_sizes(site.tables);
    let own: HashSet<ValueId> = computed(site).collect();
    let none = HashSet::new();
    let unknown = Cell::new(false);
    let memory = Memory { site, sizes: &sizes, own: &own, shown: None, unknown: &unknown };
    let elsewhere = Memory { own: &none, ..memory };
    let found_elsewhere = |v: ValueId, i: usize| elsewhere.given(v, i);
    let shown = RefCell::new(Elements::new(site.graph, &sizes, &found_elsewhere, *left));
    let memory = Memory { shown: Some(&shown), ..memory };
    let given = |v: ValueId, i: usize| memory.given(v, i);
    let mut graph = Elements::new(site.graph, &sizes, &given, *left);
    let done = compare(&memory, &mut graph, spec, operands, left);
    *left = left.saturating_sub(1).min(graph.left);
    match done {
        Ok(found) if !unknown.get() => found.map_or(Ok(true), Err),
        _ => Ok(false),
    }
}

/// What the kernel of a region computes, its prologue aside.
fn computed(site: &Site<'_>) -> impl Iterator<Item = ValueId> {
    site.region.anchors().into_iter().chain(site.region.epilogue.iter().copied())
}

/// Whether `v` lies in memory with contents of its own: it does not show another value that lies there.
fn is_apart(site: &Site<'_>, v: ValueId) -> bool {
    let mut behind = v;
    while site.graph.op(behind).is_view() {
        let Some(o) = site.graph.operands(behind).first().copied() else { break };
        if site.stored.contains(&o) {
            return false;
        }
        behind = o;
    }
    site.stored.contains(&v)
}

/// A number for a region with its kernel: equal numbers, equal verdicts.
pub fn key(site: &Site<'_>, spec: &KernelSpec, operands: &[Operand]) -> u64 {
    let own: Vec<ValueId> = computed(site).collect();
    let depth = |v: ValueId, _| match is_apart(site, v) && !own.contains(&v) {
        true => Depth::Stop,
        false => Depth::Follow,
    };
    let mut alike = Alike::new(site.graph, site.tables, spec.hash().as_bytes());
    for v in site.region.outputs.iter().chain(&own) {
        alike.value(*v, &depth);
    }
    for o in operands {
        match o {
            Operand::Value(v) => alike.value(*v, &depth),
            Operand::Gained(v) => {
                alike.add(1u8);
                alike.value(*v, &|_, d| if d == 0 { Depth::Follow } else { Depth::Stop });
            }
            Operand::RowStats(s) => {
                alike.add((2u8, s.kind, s.tile));
                alike.value(s.of, &depth);
            }
            Operand::Weight(w) => {
                alike.add((3u8, w.rows, w.side));
                w.parts.iter().for_each(|p| alike.weight(*p));
            }
            Operand::State(s) => alike.add((4u8, s)),
            Operand::Kv(slot, part) => {
                alike.add(5u8);
                alike.slot(*slot, *part);
            }
        }
    }
    alike.finish()
}

fn compare(
    memory: &Memory<'_>,
    graph: &mut Elements<'_>,
    spec: &KernelSpec,
    operands: &[Operand],
    left: &mut u64,
) -> Result<Option<String>, RefError> {
    let read = |arg: usize, i: i64| operands.get(arg).map_or(f64::NAN, |o| memory.element(o, i));
    let mut eval = Eval::new(spec, memory.sizes, &read, left);
    let extents: Vec<i64> = spec.domain.iter().map(|d| eval.number(d)).collect::<Result<_, _>>()?;
    if extents.contains(&0) {
        return Ok(None);
    }
    let mut seed = 0;
    let mut pick = |n: i64| {
        seed += 1;
        (hashed(seed, n as usize) % n.max(1) as u64) as i64
    };
    for s in &spec.stores {
        for _ in 0..SAMPLES {
            for (k, e) in extents.iter().enumerate() {
                eval.axes[k] = pick(*e);
            }
            if let Some(w) = &s.when {
                let (lo, hi) = (eval.number(&w.lo)?, eval.number(&w.hi)?);
                if lo >= hi {
                    break;
                }
                eval.axes[w.axis as usize] = lo + pick(hi - lo);
            }
            let got = eval.store(s.value)?;
            let at = eval.number(&s.index)?;
            let want = memory.expected(graph, operands.get(s.arg.0 as usize), at)?;
            if let Some(want) = want.filter(|w| differ(got, *w)) {
                let name = spec.arg(s.arg).map_or("?", |a| a.name.as_str());
                return Ok(Some(format!("`{name}`[{at}] is {got:e}, its operations give {want:e}")));
            }
        }
    }
    if let (Some(p), Some(columns)) = (&spec.partials, extents.last()) {
        let (n, tile) = (extents.len() - 1, i64::from(p.columns));
        for (k, e) in extents.iter().enumerate() {
            eval.axes[k] = pick(*e);
        }
        let number = eval.axes[n] / tile;
        let mut v = Vec::new();
        for c in number * tile..((number + 1) * tile).min(*columns) {
            eval.axes[n] = c;
            v.push(eval.store(p.value)?);
        }
        eval.axes[n] = number;
        let first = eval.number(&p.index)?;
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let found = match p.kind {
            PartialKind::Squares => vec![v.iter().map(|v| v * v).sum::<f64>()],
            PartialKind::Moments => vec![mean, v.iter().map(|v| (v - mean) * (v - mean)).sum()],
            PartialKind::Largest => {
                let (place, value) = largest(&v);
                vec![value, (number * tile) as f64 + place as f64]
            }
        };
        for (i, got) in found.into_iter().enumerate() {
            let want = memory.expected(graph, operands.get(p.arg.0 as usize), first + i as i64)?;
            if let Some(want) = want.filter(|w| differ(got, *w)) {
                return Ok(Some(format!("statistic {i} at {first} is {got:e}, its operations give {want:e}")));
            }
        }
    }
    for l in &spec.left {
        let k = spec.k_axis();
        for _ in 0..SAMPLES {
            for (a, e) in extents.iter().enumerate() {
                eval.axes[a] = pick(*e);
            }
            eval.row_stats()?;
            eval.axes[k] = pick(eval.inner);
            let (got, at) = (eval.value(l.value)?, eval.number(&l.index)?);
            let want = memory.expected(graph, operands.get(l.arg.0 as usize), at)?;
            if let Some(want) = want.filter(|w| differ(got, *w)) {
                return Ok(Some(format!("the left side at {at} is {got:e}, its operations give {want:e}")));
            }
        }
    }
    Ok(None)
}

/// Number `i` of the statistics `s`, from the elements of its value.
fn row_stats(
    graph: &Graph,
    s: &RowStats,
    i: usize,
    mut element: impl FnMut(usize) -> Result<f64, RefError>,
) -> Result<f64, RefError> {
    let (width, tile, tiles) = (s.width(graph) as usize, s.tile as usize, s.tiles(graph) as usize);
    let numbers = s.numbers() as usize;
    let (row, at, number) = (i / (tiles * numbers).max(1), i / numbers % tiles.max(1), i % numbers);
    let columns = at * tile..((at + 1) * tile).min(width);
    let v = columns.map(|c| element(row * width + c)).collect::<Result<Vec<f64>, _>>()?;
    let mean = v.iter().sum::<f64>() / v.len().max(1) as f64;
    Ok(match (s.kind, number) {
        (PartialKind::Squares, _) => v.iter().map(|v| v * v).sum(),
        (PartialKind::Moments, 0) => mean,
        (PartialKind::Moments, _) => v.iter().map(|v| (v - mean) * (v - mean)).sum(),
        (PartialKind::Largest, 0) => largest(&v).1,
        (PartialKind::Largest, _) => (at * tile + largest(&v).0) as f64,
    })
}

/// The first largest of some numbers, with its place.
fn largest(v: &[f64]) -> (usize, f64) {
    let later = |best: (usize, f64), (i, x): (usize, &f64)| if *x > best.1 { (i, *x) } else { best };
    v.iter().enumerate().fold((0, f64::NEG_INFINITY), later)
}

fn differ(a: f64, b: f64) -> bool {
    let same = a == b || (a.is_nan() && b.is_nan());
    !same && ((a - b).abs() > TOLERANCE * a.abs().max(1.0) || a.is_nan() || b.is_nan())
}

/// Random contents of everything a kernel reads.
#[derive(Clone, Copy)]
struct Memory<'a> {
    site: &'a Site<'a>,
    sizes: &'a BTreeMap<String, i64>,
    /// What the kernel computes.
    own: &'a HashSet<ValueId>,
    /// Values that show others.
    shown: Option<&'a RefCell<Elements<'a>>>,
    /// Set once an element that was asked for could not be computed.
    unknown: &'a Cell<bool>,
}

impl Memory<'_> {
    /// The extent of a value's token axis.
    fn tokens(&self, v: ValueId) -> usize {
        self.site.graph.ty(v).shape.get(2).map_or(1, |d| self.extent(d))
    }
    /// Positions that a slot has room for.
    fn room(&self, slot: KvSlotId) -> usize {
        self.site.tables.kv_slots.get(slot.0 as usize).map_or(1, |i| self.extent(&i.len).max(1))
    }
    fn slot(&self, slot: KvSlotId, part: KvPart) -> (usize, usize) {
        let info = self.site.tables.kv_slots.get(slot.0 as usize);
        let (h, d) = info.map_or((1, 1), |i| (i.heads, if part == KvPart::K { i.k_dim } else { i.v_dim }));
        ((h as usize).max(1), (d as usize).max(1))
    }
    /// An element of a cache part; `tokens` is the extent of the token axis in which `i` counts.
    fn cached(&self, slot: KvSlotId, part: KvPart, i: usize, tokens: usize) -> f64 {
        let (_, dim) = self.slot(slot, part);
        let (row, token, d) = (i / (dim * tokens.max(1)), i / dim % tokens.max(1), i % dim);
        random(
            u64::from(slot.0) << 1 | u64::from(part == KvPart::V) | 3 << 40,
            (row << 20 | token) << 12 | d,
            Scalar::F32,
            false,
        )
    }
    fn weight(&self, w: &PackedWeight, i: usize) -> f64 {
        let mut i = i;
        for (n, part) in w.parts.iter().enumerate() {
            let Some(info) = self.site.tables.weight_info(*part) else { return f64::NAN };
            let extents = info.shape.iter().map(|d| self.extent(d));
            let shape: Vec<usize> = extents.collect();
            let len: usize = shape.iter().product();
            if let (Some((lo, _)), 0) = (w.rows, n) {
                i += lo as usize * shape.iter().skip(1).product::<usize>();
            }
            if i < len {
                return match &info.data {
                    WeightData::Inline(v) => v.get(i).map_or(f64::NAN, |v| f64::from(*v)),
                    _ => random(u64::from(part.0) | 1 << 40, i, Scalar::F32, false),
                };
            }
            i -= len;
        }
        f64::NAN
    }
    fn extent(&self, d: &Dim) -> usize {
        let find = |s: &Sym| self.sizes.get(&s.to_string()).copied();
        d.eval(&find).map_or(0, |v| v.max(0) as usize)
    }
    /// What a kernel finds at element `i` of an argument.
    fn element(&self, o: &Operand, i: i64) -> f64 {
        let Ok(i) = usize::try_from(i) else { return f64::NAN };
        match o {
            Operand::Value(v) if is_apart(self.site, *v) || !self.site.graph.op(*v).is_view() => {
                random(v.index() as u64 | 4 << 40, i, self.site.graph.ty(*v).scalar, false)
            }
            Operand::Value(v) => {
                let shown = self.shown.and_then(|s| s.try_borrow_mut().ok()?.at(*v, i).ok());
                shown.unwrap_or_else(|| {
                    self.unknown.set(true);
                    f64::NAN
                })
            }
            Operand::RowStats(s) => {
                let whole = |at: usize| Ok::<f64, RefError>(self.element(&Operand::Value(s.of), at as i64));
                row_stats(self.site.graph, s, i, whole).unwrap_or(f64::NAN)
            }
            Operand::Gained(n) => {
                let ops = self.site.graph.operands(*n);
                let [x, gain] = [0, 1].map(|k| ops.get(k).copied().unwrap_or(*n));
                let width = self.site.graph.ty(*n).last().as_const().map_or(1, |w| w.max(1) as usize);
                let of = |v: ValueId, at: usize| match self.site.graph.op(v) {
                    Op::Weight(w) => self.weight(&PackedWeight { parts: vec![*w], rows: None, side: false }, at),
                    _ => self.element(&Operand::Value(v), at as i64),
                };
                of(x, i) * of(gain, i % width)
            }
            Operand::State(s) => {
                let storage = self.site.tables.states.get(s.0 as usize).map(|s| s.storage.scalar());
                random(u64::from(s.0) | 2 << 40, i, storage.unwrap_or(Scalar::I32), false)
            }
            Operand::Kv(slot, part) => self.cached(*slot, *part, i, self.room(*slot)),
            Operand::Weight(w) => self.weight(w, i),
        }
    }
    /// The same for values of the graph; `None` for what is computed.
    fn given(&self, v: ValueId, i: usize) -> Option<f64> {
        Some(match self.site.graph.op(v) {
            Op::Const(_) | Op::Iota { .. } => return None,
            Op::Weight(w) => self.weight(&PackedWeight { parts: vec![*w], rows: None, side: false }, i),
            Op::State(s) => self.element(&Operand::State(*s), i as i64),
            Op::KvAppend { slot, part, .. } | Op::KvRead { slot, part } | Op::KvLoad { slot, part } => {
                self.cached(*slot, *part, i, self.tokens(v))
            }
            Op::Input(_) => self.element(&Operand::Value(v), i as i64),
            _ if is_apart(self.site, v) && !self.own.contains(&v) => self.element(&Operand::Value(v), i as i64),
            _ => return None,
        })
    }
    /// What the graph has where a kernel stores at element `i` of an argument.
    fn expected(&self, graph: &mut Elements<'_>, o: Option<&Operand>, i: i64) -> Result<Option<f64>, RefError> {
        let at = usize::try_from(i).map_err(|_| RefError::new(format!("a store at {i}")))?;
        match o {
            Some(Operand::Value(v)) => graph.at(*v, at).map(Some),
            Some(Operand::RowStats(s)) => row_stats(self.site.graph, s, at, |i| graph.at(s.of, i)).map(Some),
            Some(Operand::Gained(n)) => {
                let ops = self.site.graph.operands(*n);
                let [x, gain] = [0, 1].map(|k| ops.get(k).copied().unwrap_or(*n));
                let width = self.site.graph.ty(*n).last().as_const().map_or(1, |w| w.max(1) as usize);
                Ok(Some(graph.at(x, at)? * graph.at(gain, at % width)?))
            }
            Some(Operand::Kv(slot, part)) => {
                let is = |v: &&ValueId| matches!(self.site.graph.op(**v), Op::KvAppend { slot: s, part: p, .. } if s == slot && p == part);
                let node = self.site.region.outputs.iter().find(is);
                let Some(x) = node.and_then(|n| self.site.graph.operands(*n).first().copied()) else { return Ok(None) };
                let (_, dim) = self.slot(*slot, *part);
                let past = node.map(|n| self.site.graph.op(*n)).and_then(|op| match op {
                    Op::KvAppend { past, .. } => Some(self.extent(past)),
                    _ => None,
                });
                let (capacity, past, tokens) = (self.room(*slot), past.unwrap_or(0), self.tokens(x));
                let (row, token, d) = (at / (dim * capacity), at / dim % capacity, at % dim);
                match token.checked_sub(past).filter(|t| *t < tokens) {
                    Some(t) => graph.at(x, (row * tokens + t) * dim + d).map(Some),
                    None => Err(RefError::new("an append elsewhere".into())),
                }
            }
            _ => Ok(None),
        }
    }
}

/// Evaluates a spec.
struct Eval<'a> {
    spec: &'a KernelSpec,
    dims: BTreeMap<String, i64>,
    index: Vec<Option<Dim>>,
    read: &'a dyn Fn(usize, i64) -> f64,
    left: &'a mut u64,
    axes: [i64; 256],
    acc: [f64; 4],
    stats: Vec<f64>,
    inner: i64,
    values: Vec<f64>,
    /// What an expression is computed from, in order, once it was asked for.
    orders: Vec<Option<Rc<[ExprId]>>>,
}

impl<'a> Eval<'a> {
    fn new(
        spec: &'a KernelSpec,
        sizes: &BTreeMap<String, i64>,
        read: &'a dyn Fn(usize, i64) -> f64,
        left: &'a mut u64,
    ) -> Self {
        let fixed = |d: &Dim| d.substitute(&|s| sizes.get(&s.to_string()).map(|v| Dim::constant(*v)));
        let index = spec.exprs.iter().map(|(_, e)| match e {
            Expr::Load { index, .. } => Some(fixed(index)),
            Expr::Coord(d) => Some(fixed(d)),
            _ => None,
        });
        let mut out = Eval {
            spec,
            dims: sizes.clone(),
            index: index.collect(),
            read,
            left,
            axes: [0; 256],
            acc: [0.0; 4],
            stats: Vec::new(),
            inner: 1,
            values: vec![0.0; spec.exprs.len()],
            orders: vec![None; spec.exprs.len()],
        };
        let inner = match &spec.anchor {
            Anchor::MatMul { k, .. } => Some(k),
            Anchor::Chain(c) => Some(&c.k),
            Anchor::ConvChain(c) => Some(&c.k),
            Anchor::Row { .. } => spec.domain.last(),
            _ => None,
        };
        out.inner = inner.and_then(|d| out.number(d).ok()).unwrap_or(1);
        out
    }
    fn number(&self, d: &Dim) -> Result<i64, RefError> {
        let find = |s: &Sym| match s {
            Sym::Size(_) => self.dims.get(&s.to_string()).copied(),
            Sym::Axis(k) => self.axes.get(*k as usize).copied(),
            Sym::Value(v) => self.values.get(*v as usize).map(|v| *v as i64),
        };
        d.eval(&find).map_err(|e| RefError::new(e.to_string()))
    }
    fn order(&mut self, root: ExprId) -> Rc<[ExprId]> {
        let found = || Rc::from(self.spec.exprs.reachable(&[root]));
        match self.orders.get_mut(root.0 as usize) {
            Some(known) => known.get_or_insert_with(found).clone(),
            None => found(),
        }
    }
    fn value(&mut self, root: ExprId) -> Result<f64, RefError> {
        let exprs = &self.spec.exprs;
        let order = self.order(root);
        *self.left = self.left.checked_sub(order.len() as u64).ok_or_else(|| RefError::new("too much work".into()))?;
        for id in order.iter().copied() {
            let at = |e: &ExprId| self.values.get(e.0 as usize).copied().unwrap_or(f64::NAN);
            let x = match exprs.get(id) {
                Expr::Load { arg, .. } => match self.index.get(id.0 as usize) {
                    Some(Some(d)) => (self.read)(arg.0 as usize, self.number(d)?),
                    _ => f64::NAN,
                },
                Expr::Coord(_) => match self.index.get(id.0 as usize) {
                    Some(Some(d)) => self.number(d)? as f64,
                    _ => f64::NAN,
                },
                Expr::Const(l) => scalar_literal(*l),
                Expr::Unary(f, a) => scalar_unary(*f, at(a)),
                Expr::Binary(f, a, b) => scalar_binary(*f, exprs.scalar(*a), at(a), at(b)),
                Expr::Select { cond, t, f } => {
                    if at(cond) != 0.0 {
                        at(t)
                    } else {
                        at(f)
                    }
                }
                Expr::Cast(to, a) => scalar_cast(*to, at(a)),
                Expr::Acc(j) => self.acc.get(*j as usize).copied().unwrap_or(f64::NAN),
                Expr::Stat(j) => self.stats.get(*j as usize).copied().unwrap_or(f64::NAN),
            };
            if let Some(slot) = self.values.get_mut(id.0 as usize) {
                *slot = x;
            }
        }
        Ok(self.values.get(root.0 as usize).copied().unwrap_or(f64::NAN))
    }
    /// The statistics of the row that the axes name.
    fn row_stats(&mut self) -> Result<(), RefError> {
        let spec = self.spec;
        let axis = match &spec.anchor {
            Anchor::Row { .. } => spec.domain.len().saturating_sub(1),
            _ => spec.k_axis(),
        };
        let inner = match &spec.stats_over {
            Some(tiles) => self.number(tiles)?,
            None => self.inner,
        };
        self.stats.clear();
        self.reduce(spec.row_stats(), axis, inner, &mut |_, _| {})
    }
    /// Adds the statistics `list` over `inner` places of `axis`, at each of which `arrive` says what else is known.
    fn reduce(
        &mut self,
        list: &[Stat],
        axis: usize,
        inner: i64,
        arrive: &mut dyn FnMut(&mut Self, i64),
    ) -> Result<(), RefError> {
        let kept = self.axes[axis];
        for s in list {
            let (mut acc, mut best) = match s.op {
                ReduceOp::Sum => (0.0, 0),
                ReduceOp::Prod => (1.0, 0),
                ReduceOp::Max | ReduceOp::ArgMax => (-3.0e38, 0),
                ReduceOp::Min => (3.0e38, 0),
            };
            for j in 0..inner {
                self.axes[axis] = j;
                arrive(self, j);
                let x = self.value(s.value)?;
                match s.op {
                    ReduceOp::Sum => acc += x,
                    ReduceOp::Prod => acc *= x,
                    ReduceOp::Max => acc = f64::max(acc, x),
                    ReduceOp::Min => acc = f64::min(acc, x),
                    ReduceOp::ArgMax if x > acc => (acc, best) = (x, j),
                    ReduceOp::ArgMax => {}
                }
            }
            self.axes[axis] = kept;
            self.stats.push(if s.op == ReduceOp::ArgMax { best as f64 } else { acc });
            if let Some(f) = s.finish {
                let x = self.value(f)?;
                if let Some(last) = self.stats.last_mut() {
                    *last = x;
                }
            }
        }
        Ok(())
    }
    /// The value of a store at the coordinates that the axes name.
    fn store(&mut self, value: ExprId) -> Result<f64, RefError> {
        self.row_stats()?;
        let spec = self.spec;
        match &spec.anchor {
            Anchor::Map | Anchor::Row { .. } => {}
            Anchor::MatMul { lhs, rhs, .. } => {
                if let Some(c) = &spec.columns {
                    let (n, width) = (spec.domain.len().saturating_sub(1), c.width.max(1) as i64);
                    let column = self.axes[n];
                    let mut sums: Vec<[f64; 4]> = Vec::new();
                    for i in 0..width {
                        self.axes[n] = column - column % width + i;
                        self.products(*lhs, rhs)?;
                        sums.push(self.acc);
                    }
                    self.reduce(&c.stats, n, width, &mut |eval, i| {
                        eval.acc = sums.get(i as usize).copied().unwrap_or_default();
                    })?;
                    self.axes[n] = column;
                }
                self.products(*lhs, rhs)?;
            }
            Anchor::Chain(c) => {
                let (i_axis, k_axis, inner) = (spec.domain.len(), spec.k_axis(), self.number(&c.inner)?);
                let mut sum = 0.0;
                for i in 0..inner {
                    self.axes[i_axis] = i;
                    let mut acc = [0.0; 4];
                    for t in 0..self.inner {
                        self.axes[k_axis] = t;
                        let x = self.value(c.lhs)?;
                        for (a, r) in acc.iter_mut().zip(&c.up) {
                            *a += x * self.value(*r)?;
                        }
                    }
                    self.acc = acc;
                    sum += self.value(c.middle)? * self.value(c.down)?;
                }
                self.acc = [sum, 0.0, 0.0, 0.0];
            }
            Anchor::ConvChain(c) => self.acc = [self.conv_chain(c)?, 0.0, 0.0, 0.0],
            Anchor::Attention(a) => {
                let (out, softmax) = self.attention(a)?;
                self.acc[0] = out;
                self.stats = softmax.to_vec();
            }
        }
        self.value(value)
    }
    /// The accumulators of a matmul at the coordinates that the axes name.
    fn products(&mut self, lhs: ExprId, rhs: &[ExprId]) -> Result<(), RefError> {
        let k = self.spec.k_axis();
        let mut acc = [0.0; 4];
        for j in 0..self.inner {
            self.axes[k] = j;
            let x = self.value(lhs)?;
            for (a, r) in acc.iter_mut().zip(rhs) {
                *a += x * self.value(*r)?;
            }
        }
        self.acc = acc;
        Ok(())
    }
    /// The accumulator of two convolutions in a row.
    fn conv_chain(&mut self, c: &ConvChain) -> Result<f64, RefError> {
        let place = [self.axes[1], self.axes[2]].map(|p| p.max(0) as u64);
        let mut sum = 0.0;
        for t in 0..c.taps() {
            let tap = [t / c.windows[1].taps, t % c.windows[1].taps];
            let at = [0, 1].map(|a| c.windows[a].at(place[a], tap[a]));
            let [Some(y), Some(x)] = at else { continue };
            (self.axes[4], self.axes[5]) = (y as i64, x as i64);
            for channel in 0..c.channels {
                self.axes[6] = channel as i64;
                self.axes[8] = (channel * c.taps() + t) as i64;
                let mut acc = 0.0;
                for k in 0..self.inner {
                    self.axes[7] = k;
                    acc += self.value(c.lhs)? * self.value(c.up)?;
                }
                self.acc[0] = acc;
                sum += self.value(c.middle)? * self.value(c.down)?;
            }
        }
        Ok(sum)
    }
    /// The accumulator, and the largest score and the sum of weights.
    fn attention(&mut self, a: &Attention) -> Result<(f64, [f64; 2]), RefError> {
        let keys = self.number(&a.kv_len)?;
        let offset = a.causal_offset.as_ref().map(|d| self.number(d)).transpose()?;
        let (mut seen, mut max) = (Vec::new(), f64::NEG_INFINITY);
        let own = match &a.parts {
            Some(p) => {
                let (first, len) = (self.number(&p.first)?, self.number(&p.len)?);
                let from = first + self.axes[0] % p.count.max(1) as i64 * len;
                from.max(0)..(from + len).min(keys)
            }
            None => 0..keys,
        };
        for t in own {
            self.axes[5] = t;
            let last = self.axes[2] + offset.unwrap_or(0);
            let hidden = (offset.is_some() && t > last) || a.window.is_some_and(|w| t <= last - w as i64);
            if hidden || (a.mask.is_some() && self.value(a.mask.unwrap_or(a.q))? == 0.0) {
                continue;
            }
            let mut score = 0.0;
            for d in 0..a.head_dim as i64 {
                self.axes[4] = d;
                score += self.value(a.q)? * self.value(a.k)?;
            }
            score *= f64::from(a.scale);
            if let Some(c) = a.softcap {
                score = f64::from(c) * (score / f64::from(c)).tanh();
            }
            if let Some(b) = a.bias {
                score += self.value(b)?;
            }
            max = max.max(score);
            seen.push((t, score));
        }
        let sum: f64 = seen.iter().map(|(_, x)| (x - max).exp()).sum();
        let total = if a.parts.is_some() { 1.0 } else { sum };
        let mut out = 0.0;
        for (t, x) in seen {
            self.axes[5] = t;
            out += (x - max).exp() / total * self.value(a.v)?;
        }
        Ok((out, [max.max(-1e30), sum]))
    }
}
