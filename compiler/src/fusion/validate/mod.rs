//! Translation validation of kernels: what a region's kernel stores is what its operations compute.
//!
//! The spec is evaluated in f64 at some coordinates of every store, on memory with random contents and at small values
//! of the dynamic sizes; the same elements are computed from the graph by [`Elements`], which shares no code with the
//! building of kernels.

mod eval;
mod memory;

use super::anchors::Site;
use super::spec_builder::Operand;
use crate::graph::ValueId;
use crate::passes::alike::{Alike, Depth};
use crate::passes::validate::small_sizes;
use crate::reference::{Elements, RefError, hashed};
use eval::Eval;
use frit_kernels::spec::{KernelSpec, PartialKind};
use memory::Memory;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

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

/// The first largest of some numbers, with its place.
fn largest(v: &[f64]) -> (usize, f64) {
    let later = |best: (usize, f64), (i, x): (usize, &f64)| if *x > best.1 { (i, *x) } else { best };
    v.iter().enumerate().fold((0, f64::NEG_INFINITY), later)
}

fn differ(a: f64, b: f64) -> bool {
    let same = a == b || (a.is_nan() && b.is_nan());
    !same && ((a - b).abs() > TOLERANCE * a.abs().max(1.0) || a.is_nan() || b.is_nan())
}
