//! Equal layers are fused once. A model's order of operations is searched for a block that repeats; all but four of its
//! repetitions are cut out, the short graph is partitioned and its kernels are built, and the result is stretched back
//! to every layer with that layer's own weights, cache slots and values.
//!
//! The first and the last repetition are kept because what surrounds them may differ; of the two between, one must be
//! the other moved by a layer. Where that does not hold the caller partitions the whole graph instead.

use super::region::{ChainGroup, ConvGroup, MatMulGroup, Region, RegionAnchor};
use super::row_stats::RowStats;
use super::spec_builder::{Operand, PackedWeight};
use super::{Partition, Refused};
use crate::graph::{Graph, KvSlotId, Op, Tables, TensorType, ValueId, WeightData, WeightId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_plan::{KvPart, RopePart};
use rustc_hash::FxHashMap;

/// Repetitions that stay in the short graph.
const KEPT: usize = 4;
/// A block of fewer operations is not worth the search.
const SMALLEST: usize = 4;

/// A block of operations that repeats in the graph's order. Block `l`, role `r` is `order[first + l·period + r]`.
#[derive(Debug)]
pub struct Outline {
    order: Vec<ValueId>,
    position: FxHashMap<ValueId, usize>,
    first: usize,
    period: usize,
    /// How often the block occurs.
    pub count: usize,
}

/// A region with its kernel and operands.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// What one kernel computes.
    pub region: Region,
    /// Index of the kernel.
    pub kernel: u32,
    /// What its arguments stand for.
    pub operands: Vec<Operand>,
}

/// Moves what belongs to one block to another.
struct Shift<'a> {
    outline: &'a Outline,
    graph: &'a Graph,
    weights: &'a FxHashMap<WeightId, usize>,
    slots: &'a FxHashMap<KvSlotId, usize>,
    blocks: Blocks,
}

/// Which blocks become which.
#[derive(Clone, Copy)]
enum Blocks {
    /// All but the last, from one on, move this many further.
    Later { from: usize, by: usize },
    /// The last becomes the one that follows the third: in the short graph it stands there, and kernels of the third that
    /// write rows times gain for the norm behind them name it.
    LastAsFourth,
}

impl Blocks {
    fn of(self, block: usize, count: usize) -> usize {
        match self {
            Blocks::Later { from, by } if block >= from && block + 1 < count => block + by,
            Blocks::LastAsFourth if block + 1 == count => KEPT - 1,
            _ => block,
        }
    }
}

impl Outline {
    /// The block that covers most of the graph with at least five repetitions, if there is one.
    pub fn find(graph: &Graph, tables: &Tables) -> Option<Outline> {
        let order = graph.order();
        let position: FxHashMap<ValueId, usize> = order.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let shapes = numbered(graph, tables, &order);
        let mut last: FxHashMap<usize, usize> = FxHashMap::default();
        let mut steps: FxHashMap<usize, usize> = FxHashMap::default();
        for (i, s) in shapes.iter().enumerate() {
            if let Some(before) = last.insert(*s, i) {
                *steps.entry(i - before).or_default() += 1;
            }
        }
        let operands: Vec<Vec<usize>> = order
            .iter()
            .map(|v| graph.operands(*v).iter().filter_map(|o| position.get(o).copied()).collect())
            .collect();
        let mut periods: Vec<usize> =
            steps.into_iter().filter(|(p, n)| *p >= SMALLEST && *n > KEPT).map(|(p, _)| p).collect();
        periods.sort_unstable();
        let best_of = |periods: &mut dyn Iterator<Item = usize>| {
            let mut best: Option<(usize, usize, usize)> = None;
            for p in periods {
                let Some((first, count)) = longest(&shapes, &operands, p) else { continue };
                if count > KEPT && best.is_none_or(|(_, bp, bc)| count * p > bp * bc) {
                    best = Some((first, p, count));
                }
            }
            best
        };
        // Layers that use several sets of weights in turn repeat after as many layers as there are sets.
        let in_turn = |p: &usize| {
            (2..=order.len() / (p * (KEPT + 1))).map({
                let p = *p;
                move |n| n * p
            })
        };
        let best = best_of(&mut periods.iter().copied());
        let (first, period, count) = best.or_else(|| best_of(&mut periods.iter().flat_map(in_turn)))?;
        let out = Outline { order, position, first, period, count };
        out.closed(graph).then_some(out)
    }
    /// Repetitions that the short graph lacks.
    pub fn instances(&self) -> u32 {
        (self.count - KEPT) as u32
    }
    /// Block and role of a value.
    fn place(&self, v: ValueId) -> Option<(usize, usize)> {
        let at = self.position.get(&v)?.checked_sub(self.first)?;
        let (block, role) = (at / self.period, at % self.period);
        (block < self.count).then_some((block, role))
    }
    fn block(&self, v: ValueId) -> Option<usize> {
        self.place(v).map(|p| p.0)
    }
    fn at(&self, block: usize, role: usize) -> Option<ValueId> {
        self.order.get(self.first + block * self.period + role).copied()
    }
    /// Whether only the last block is read from behind the blocks, and only it leaves the graph.
    fn closed(&self, graph: &Graph) -> bool {
        let end = self.first + self.count * self.period;
        let inner = |v: &ValueId| self.block(*v).is_some_and(|b| b + 1 < self.count);
        let behind = self.order.get(end..).unwrap_or_default();
        !behind.iter().any(|v| graph.operands(*v).iter().any(inner)) && !graph.outputs.iter().any(|o| inner(&o.value))
    }
    /// The graph without the blocks between the third and the last one; `None` when the last block reads further back
    /// than that.
    pub fn shrink(&self, graph: &Graph) -> Option<Graph> {
        let mut g = graph.clone();
        let cut = KEPT - 1..self.count - 1;
        let moved = self.count - KEPT;
        for role in 0..self.period {
            let v = self.at(self.count - 1, role)?;
            for (port, o) in graph.operands(v).into_iter().enumerate() {
                match self.place(o) {
                    Some((b, r)) if b + 1 < self.count && b >= self.count.saturating_sub(3) => {
                        g.set_operand(v, port, self.at(b - moved, r)?);
                    }
                    Some((b, _)) if b + 1 < self.count => return None,
                    _ => {}
                }
            }
        }
        for block in cut.rev() {
            for role in (0..self.period).rev() {
                g.remove(self.at(block, role)?);
            }
        }
        Some(g)
    }
    /// The partition of the whole graph from that of the short one; `None` when the second and third blocks were not
    /// fused alike. `part` and `built` speak of the short graph.
    pub fn stretch(&self, graph: &Graph, part: &Partition, built: &[Built]) -> Option<(Vec<Built>, Vec<Refused>)> {
        let (weights, slots) = self.owners(graph);
        let moved = |blocks: Blocks| Shift { outline: self, graph, weights: &weights, slots: &slots, blocks };
        let shift = |from: usize, by: usize| moved(Blocks::Later { from, by });
        if built.iter().any(|b| self.reach(graph, &b.region) > 1) {
            return None;
        }
        let tags: Vec<Option<usize>> = built.iter().map(|b| self.tag(graph, &b.region)).collect();
        let run = |block: usize| -> Option<(usize, usize)> {
            let lo = tags.iter().position(|t| *t == Some(block))?;
            let n = tags.iter().filter(|t| **t == Some(block)).count();
            tags.get(lo..lo + n)?.iter().all(|t| *t == Some(block)).then_some((lo, lo + n))
        };
        let ((a, b), (c, d)) = (run(1)?, run(2)?);
        if b != c {
            return None;
        }
        let (unit, next) = (built.get(a..b)?, built.get(c..d)?);
        let (one, follow) = (shift(0, 1), moved(Blocks::LastAsFourth));
        let alike = unit.len() == next.len()
            && unit.iter().zip(next).all(|(x, y)| one.built(x).zip(follow.built(y)).is_some_and(|(x, y)| x == y));
        if !alike {
            return None;
        }
        let lacking = self.count - KEPT;
        let mut out: Vec<Built> = built.get(..b)?.to_vec();
        for by in 1..=lacking + 1 {
            let s = shift(0, by);
            for x in unit {
                out.push(s.built(x)?);
            }
        }
        let tail = shift(1, lacking);
        for x in built.get(d..)? {
            out.push(tail.built(x)?);
        }
        let mut refused = Vec::new();
        for r in &part.refused {
            let tag = [r.from, r.to].iter().filter_map(|v| self.block(*v)).max();
            match tag {
                Some(1) => {
                    for by in 0..=lacking + 1 {
                        let s = shift(0, by);
                        let (from, to) = (s.value(r.from)?, s.value(r.to)?);
                        refused.push(Refused { from, to, ..r.clone() });
                    }
                }
                Some(2) => {}
                Some(b) if b + 1 == self.count => {
                    refused.push(Refused { from: tail.value(r.from)?, to: tail.value(r.to)?, ..r.clone() });
                }
                _ => refused.push(r.clone()),
            }
        }
        refused.sort_by_key(|r| (r.from, r.to, r.code));
        Some((out, refused))
    }
    /// How many blocks apart in the short graph the operations of a region are at most. Matmuls of all blocks with one left
    /// side are one region; moved as a whole it would lose those that were cut out.
    fn reach(&self, graph: &Graph, region: &Region) -> usize {
        let all = region.members();
        let own = all.iter().filter(|v| !graph.op(**v).is_source());
        let blocks: Vec<usize> = own.filter_map(|v| self.block(*v)).map(|b| b.min(KEPT - 1)).collect();
        blocks.iter().max().zip(blocks.iter().min()).map_or(0, |(last, first)| last - first)
    }
    /// The block a region belongs to: the last one it computes anything of.
    fn tag(&self, graph: &Graph, region: &Region) -> Option<usize> {
        let all = region.members();
        all.iter().filter(|v| !graph.op(**v).is_source()).filter_map(|v| self.block(*v)).max()
    }
    fn owners(&self, graph: &Graph) -> (FxHashMap<WeightId, usize>, FxHashMap<KvSlotId, usize>) {
        let (mut weights, mut slots) = (FxHashMap::default(), FxHashMap::default());
        for (i, v) in self.order.iter().enumerate() {
            match graph.op(*v) {
                Op::Weight(w) => {
                    weights.entry(*w).or_insert(i);
                }
                Op::KvAppend { slot, .. } | Op::KvLoad { slot, .. } => {
                    slots.entry(*slot).or_insert(i);
                }
                _ => {}
            }
        }
        (weights, slots)
    }
}

impl Shift<'_> {
    fn value(&self, v: ValueId) -> Option<ValueId> {
        match self.outline.place(v) {
            Some((b, r)) => self.outline.at(self.blocks.of(b, self.outline.count), r),
            None => Some(v),
        }
    }
    fn values(&self, vs: &[ValueId]) -> Option<Vec<ValueId>> {
        vs.iter().map(|v| self.value(*v)).collect()
    }
    fn weight(&self, w: WeightId) -> Option<WeightId> {
        let node = self.outline.order.get(*self.weights.get(&w)?).copied()?;
        match self.graph.op(self.value(node)?) {
            Op::Weight(w) => Some(*w),
            _ => None,
        }
    }
    fn slot(&self, s: KvSlotId) -> Option<KvSlotId> {
        let node = self.outline.order.get(*self.slots.get(&s)?).copied()?;
        match self.graph.op(self.value(node)?) {
            Op::KvAppend { slot, .. } | Op::KvLoad { slot, .. } => Some(*slot),
            _ => None,
        }
    }
    fn operand(&self, o: &Operand) -> Option<Operand> {
        Some(match o {
            Operand::Value(v) => Operand::Value(self.value(*v)?),
            Operand::Weight(w) => {
                let parts = w.parts.iter().map(|p| self.weight(*p)).collect::<Option<_>>()?;
                Operand::Weight(PackedWeight { parts, ..w.clone() })
            }
            Operand::RowStats(s) => Operand::RowStats(RowStats { of: self.value(s.of)?, ..*s }),
            Operand::Gained(n) => Operand::Gained(self.value(*n)?),
            Operand::State(s) => Operand::State(*s),
            Operand::Kv(slot, part) => Operand::Kv(self.slot(*slot)?, *part),
        })
    }
    /// `None` where a value has no counterpart; nothing has one.
    fn row_stats(&self, s: Option<RowStats>) -> Option<Option<RowStats>> {
        match s {
            Some(s) => Some(Some(RowStats { of: self.value(s.of)?, ..s })),
            None => Some(None),
        }
    }
    fn group(&self, g: &MatMulGroup) -> Option<MatMulGroup> {
        let norm = match g.norm {
            Some(n) => Some(self.value(n)?),
            None => None,
        };
        Some(MatMulGroup {
            members: self.values(&g.members)?,
            form: g.form.clone(),
            norm,
            before: self.values(&g.before)?,
            stats: self.row_stats(g.stats)?,
            commuted: g.commuted,
        })
    }
    fn region(&self, r: &Region) -> Option<Region> {
        let anchor = match &r.anchor {
            RegionAnchor::Map => RegionAnchor::Map,
            RegionAnchor::Row(v) => RegionAnchor::Row(self.value(*v)?),
            RegionAnchor::Attention(v) => RegionAnchor::Attention(self.value(*v)?),
            RegionAnchor::MatMul(g) => RegionAnchor::MatMul(self.group(g)?),
            RegionAnchor::Chain(c) => RegionAnchor::Chain(Box::new(ChainGroup {
                up: self.group(&c.up)?,
                middle: self.values(&c.middle)?,
                down: self.value(c.down)?,
            })),
            RegionAnchor::ConvChain(c) => RegionAnchor::ConvChain(Box::new(ConvGroup {
                up: self.value(c.up)?,
                middle: self.values(&c.middle)?,
                source: self.value(c.source)?,
                taken: self.values(&c.taken)?,
                windows: c.windows,
                channels: c.channels,
                down: self.value(c.down)?,
            })),
        };
        Some(Region {
            anchor,
            epilogue: self.values(&r.epilogue)?,
            prologue: self.values(&r.prologue)?,
            outputs: self.values(&r.outputs)?,
            forwards: self.row_stats(r.forwards)?,
            tiles: self.row_stats(r.tiles)?,
            gained: self.values(&r.gained)?,
            rows: r.rows,
            few_rows: r.few_rows,
        })
    }
    fn built(&self, b: &Built) -> Option<Built> {
        Some(Built {
            region: self.region(&b.region)?,
            kernel: b.kernel,
            operands: b.operands.iter().map(|o| self.operand(o)).collect::<Option<_>>()?,
        })
    }
}

/// What a node does, whatever the identity of its weight or cache slot.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// Storage and extents of a weight, and how it is made.
    Weight(Option<(Storage, Vec<Dim>, Making)>),
    /// Heads and their widths, of keys or of values; whether it appends.
    Cache(Option<(u64, u64, u64, Dim)>, bool, String),
    Op(Op),
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Making {
    Tensor { transpose: bool },
    Rope { is_cos: bool },
    Inline,
}

pub(super) fn shape_of(graph: &Graph, tables: &Tables, v: ValueId) -> (Shape, TensorType) {
    let node = graph.node(v);
    let shape = match &node.op {
        Op::Weight(w) => Shape::Weight(tables.weight_info(*w).map(|i| {
            let making = match &i.data {
                WeightData::Tensor { transpose, .. } => Making::Tensor { transpose: *transpose },
                WeightData::Rope { part, .. } => Making::Rope { is_cos: *part == RopePart::Cos },
                WeightData::Inline(_) => Making::Inline,
            };
            (i.storage, i.shape.clone(), making)
        })),
        Op::KvAppend { slot, part, .. } | Op::KvRead { slot, part } | Op::KvLoad { slot, part } => {
            let info = tables.kv_slots.get(slot.0 as usize).map(|i| (i.heads, i.k_dim, i.v_dim, i.len.clone()));
            Shape::Cache(info, *part == KvPart::K, node.op.name())
        }
        op => Shape::Op(op.clone()),
    };
    (shape, node.ty.clone())
}

/// A number for each node, equal where nodes do the same.
fn numbered(graph: &Graph, tables: &Tables, order: &[ValueId]) -> Vec<usize> {
    let mut known: FxHashMap<(Shape, TensorType), usize> = FxHashMap::default();
    let number = |v: &ValueId| {
        let next = known.len();
        *known.entry(shape_of(graph, tables, *v)).or_insert(next)
    };
    order.iter().map(number).collect()
}

/// The longest stretch of repetitions at distance `p`: where it starts, and how many blocks it holds. Positions i and
/// i + p agree when they do the same and each operand is either p further as well or the same one in front of it all.
fn longest(shapes: &[usize], operands: &[Vec<usize>], p: usize) -> Option<(usize, usize)> {
    let n = shapes.len().checked_sub(p)?;
    let mut best: Option<(usize, usize)> = None;
    let mut start = 0;
    let mut i = 0;
    while i < n {
        let same = shapes[i] == shapes[i + p] && operands[i].len() == operands[i + p].len();
        let pairs = || operands[i].iter().zip(&operands[i + p]);
        if !same || pairs().any(|(a, b)| *b != a + p && a != b) {
            start = i + 1;
        } else if let Some(latest) = pairs().filter(|(a, b)| a == b && **a >= start).map(|(a, _)| *a).max() {
            start = latest + 1;
        }
        let count = (i + 1 - start.min(i + 1)) / p + 1;
        if count > 1 && best.is_none_or(|(_, c)| count > c) {
            best = Some((start, count));
        }
        i += 1;
    }
    best
}
