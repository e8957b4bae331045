//! What lies in memory where a kernel is validated: random numbers, and what operations elsewhere make of them.

use super::{is_apart, largest};
use crate::fusion::RowStats;
use crate::fusion::anchors::Site;
use crate::fusion::spec_builder::{Operand, PackedWeight};
use crate::graph::{Graph, KvSlotId, Op, ValueId, WeightData};
use crate::passes::validate::random;
use crate::reference::{Elements, RefError};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::PartialKind;
use frit_plan::KvPart;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};

/// Random contents of everything a kernel reads.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    pub site: &'a Site<'a>,
    pub sizes: &'a BTreeMap<String, i64>,
    /// What the kernel computes.
    pub own: &'a HashSet<ValueId>,
    /// Values that show others.
    pub shown: Option<&'a RefCell<Elements<'a>>>,
    /// Set once an element that was asked for could not be computed.
    pub unknown: &'a Cell<bool>,
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
    pub fn element(&self, o: &Operand, i: i64) -> f64 {
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
    pub fn given(&self, v: ValueId, i: usize) -> Option<f64> {
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
    pub fn expected(&self, graph: &mut Elements<'_>, o: Option<&Operand>, i: i64) -> Result<Option<f64>, RefError> {
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
