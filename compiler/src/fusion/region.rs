//! A region: what one kernel computes.

use super::row_stats::RowStats;
use super::spec_builder::PackedWeight;
use crate::graph::{RopeStyle, ValueId};
use frit_kernels::spec::Window;

/// The operation a region is built around.
#[derive(Clone, Debug, PartialEq)]
pub enum RegionAnchor {
    /// Pointwise operations.
    Map,
    /// A reduction, softmax or norm.
    Row(ValueId),
    /// Matmuls of one left side.
    MatMul(MatMulGroup),
    /// Attention.
    Attention(ValueId),
    /// Two matmuls in a row.
    Chain(Box<ChainGroup>),
    /// Two convolutions in a row.
    ConvChain(Box<ConvGroup>),
}

/// Two matmuls in a row, with what lies between them.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainGroup {
    /// The first: one member, or two that are paired.
    pub up: MatMulGroup,
    /// Pointwise operations behind it, in graph order; the last one is the left side of `down`.
    pub middle: Vec<ValueId>,
    /// The second.
    pub down: ValueId,
}

/// Two convolutions in a row: matmuls of which the second one's rows are windows over what is made of the first one's result.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvGroup {
    /// The first matmul, `[batch, places, channels]`.
    pub up: ValueId,
    /// Pointwise operations and views behind it, in graph order.
    pub middle: Vec<ValueId>,
    /// What the windows are taken of: `up` or one of `middle`.
    pub source: ValueId,
    /// Operations that take the windows, from the second matmul back.
    pub taken: Vec<ValueId>,
    /// Windows along rows and columns.
    pub windows: [Window; 2],
    /// Channels of the source.
    pub channels: u64,
    /// The second matmul, `[batch, places, channels]`.
    pub down: ValueId,
}

/// Matmuls that share their left side and run as one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMulGroup {
    /// The matmuls in order of their columns.
    pub members: Vec<ValueId>,
    /// How columns map to accumulators.
    pub form: MatMulForm,
    /// The norm that is computed inside, if the left side is normalised here.
    pub norm: Option<ValueId>,
    /// Operations that make the rows of that norm and are computed inside as well, in graph order: another norm, what
    /// follows it, and views.
    pub before: Vec<ValueId>,
    /// Where the statistics of that norm are joined from; `None`: every column tile reads the rows for them.
    pub stats: Option<RowStats>,
    /// The norm is commuted through the product: the left side is `x·γ`, and the statistics scale the sums.
    pub commuted: bool,
}

impl MatMulGroup {
    /// Matmuls whose left side lies in memory.
    pub fn new(members: Vec<ValueId>, form: MatMulForm) -> Self {
        MatMulGroup { members, form, norm: None, before: Vec::new(), stats: None, commuted: false }
    }
    /// What is computed of the left side, in graph order.
    pub fn left(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.before.iter().copied().chain(self.norm)
    }
}

/// How the columns of a matmul group map to accumulators.
#[derive(Clone, Debug, PartialEq)]
pub enum MatMulForm {
    /// One accumulator; the members' columns follow each other.
    Concat,
    /// Two members of equal width, one accumulator each: gate and up.
    Paired,
    /// Two accumulators: the two elements of each rotary pair; the members' columns follow each other.
    RotaryPairs {
        /// Which elements pair up.
        style: RopeStyle,
        /// Elements of a head.
        head_dim: u64,
    },
}

/// What one kernel computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// The operation it is built around.
    pub anchor: RegionAnchor,
    /// Operations behind the anchor that it absorbs, in graph order.
    pub epilogue: Vec<ValueId>,
    /// Operations in front of the anchor that it computes itself, in graph order.
    pub prologue: Vec<ValueId>,
    /// Values it writes, in graph order.
    pub outputs: Vec<ValueId>,
    /// Statistics that it writes beside one of its outputs.
    pub forwards: Option<RowStats>,
    /// What a search for the largest of each row reads instead of the rows: those of their tiles.
    pub tiles: Option<RowStats>,
    /// Norms of that output for which it writes the rows times their gain, in graph order.
    pub gained: Vec<ValueId>,
    /// Only this row range of the packed weight (a weight too large for one binding).
    pub rows: Option<(u64, u64)>,
    /// Whether its kernel is made for few rows; see [`KernelSpec::few_rows`](frit_kernels::spec::KernelSpec::few_rows).
    pub few_rows: bool,
}

impl Region {
    /// A region around `anchor`.
    pub fn new(anchor: RegionAnchor) -> Self {
        Region {
            anchor,
            epilogue: Vec::new(),
            prologue: Vec::new(),
            outputs: Vec::new(),
            forwards: None,
            tiles: None,
            gained: Vec::new(),
            rows: None,
            few_rows: false,
        }
    }
    /// The anchor's own operations.
    pub fn anchors(&self) -> Vec<ValueId> {
        match &self.anchor {
            RegionAnchor::Map => Vec::new(),
            RegionAnchor::Row(v) | RegionAnchor::Attention(v) => vec![*v],
            RegionAnchor::MatMul(g) => g.members.iter().copied().chain(g.left()).collect(),
            RegionAnchor::Chain(c) => {
                let up = c.up.norm.into_iter().chain(c.up.members.iter().copied());
                up.chain(c.middle.iter().copied()).chain([c.down]).collect()
            }
            RegionAnchor::ConvChain(c) => {
                let between = c.middle.iter().chain(c.taken.iter().rev());
                [c.up].iter().chain(between).chain([&c.down]).copied().collect()
            }
        }
    }
    /// Kind as reports name it.
    pub fn kind(&self) -> &'static str {
        match &self.anchor {
            RegionAnchor::Map => "map",
            RegionAnchor::Row(_) => "row",
            RegionAnchor::MatMul(_) => "matmul",
            RegionAnchor::Chain(_) => "chain",
            RegionAnchor::ConvChain(_) => "conv_chain",
            RegionAnchor::Attention(_) => "attention",
        }
    }
    /// Every operation inside.
    pub fn members(&self) -> Vec<ValueId> {
        let mut all = self.prologue.clone();
        all.extend(self.anchors());
        all.extend(&self.epilogue);
        all.sort();
        all.dedup();
        all
    }
    /// The right sides of a matmul group, if they are all weights `[N, K]`, the same for every batch.
    pub fn packed(&self, graph: &crate::graph::Graph) -> Option<PackedWeight> {
        let RegionAnchor::MatMul(g) = &self.anchor else { return None };
        let part = |m: &ValueId| match graph.operands(*m).get(1).map(|w| (graph.op(*w), graph.ty(*w).shape.len())) {
            Some((crate::graph::Op::Weight(w), 2)) => Some(*w),
            _ => None,
        };
        let parts = g.members.iter().map(part).collect::<Option<Vec<_>>>()?;
        Some(PackedWeight { parts, rows: self.rows, side: false })
    }
}
