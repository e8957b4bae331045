//! Graph to regions to kernels: which operations share a kernel, and what each kernel computes.
//!
//! A region is one anchor (attention, matmul, row reduction, or none), the operations behind it that it computes in the
//! same invocation, and the operations in front of it that it expands where it reads them. [`legality`] holds the
//! reasons for what was not fused.

pub mod anchors;
pub mod buckets;
pub mod coords;
pub mod cost;
pub mod crossover;
pub mod dequant;
mod drawing;
pub mod guards;
pub mod key_parts;
mod layers;
pub mod legality;
pub mod outline;
pub mod overruled;
mod partition;
pub mod region;
pub mod report;
pub mod row_stats;
pub mod spec_builder;
pub mod traffic;
pub mod validate;

pub use legality::Refusal;
pub use overruled::Overruled;
pub use partition::{Partition, depends_on_tokens, is_anchor};
pub use region::{ChainGroup, ConvGroup, MatMulForm, MatMulGroup, Region, RegionAnchor};
pub use row_stats::RowStats;
pub use spec_builder::{Operand, PackedWeight};

use crate::graph::{Graph, Tables, ValueId};
use crate::numeric::NumericMode;
use frit_kernels::dim::Dim;
use frit_kernels::spec::MatmulPrecision;
use frit_kernels::target::Tier;
use frit_plan::Condition;
use std::collections::{BTreeMap, HashSet};

/// What fusion may do. Every switch is on by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusionOptions {
    /// Absorb operations behind an anchor.
    pub fuse_epilogues: bool,
    /// Rotary embeddings behind projections.
    pub fuse_rope: bool,
    /// Expand pointwise operations where they are read.
    pub fuse_prologues: bool,
    /// Decode quantised weights in the products that read them.
    pub fuse_dequant: bool,
    /// Sum the taps of depthwise convolutions where a matmul of few columns reads the sums.
    pub fuse_windows: bool,
    /// Compute norms inside the matmul that reads them.
    pub fuse_norms: bool,
    /// Compute the norm in front of such a norm there as well.
    pub fuse_norm_pairs: bool,
    /// Compute a norm of each head in the matmul that makes the heads.
    pub fuse_head_norms: bool,
    /// Write statistics of rows where they are made, for the matmul behind a norm to join.
    pub forward_stats: bool,
    /// Write the largest of each tile of columns where rows are made, for the search of the largest of a row.
    pub forward_largest: bool,
    /// Multiply rows that are not normalised, and scale the sums by such statistics.
    pub commute_norms: bool,
    /// Search windows of the graph for cheaper regions than the greedy ones.
    pub exact: bool,
    /// Search those as well between whose operations views lie, such as that of queries, keys, values and cache writes. Off by
    /// default: it has many regions with costly index arithmetic, takes compiling four times as long, and in no model that
    /// was tried is there a cheaper region.
    pub exact_through_views: bool,
    /// Run matmuls with the same left side as one.
    pub merge_siblings: bool,
    /// Make pointwise values beside each other by one kernel.
    pub merge_maps: bool,
    /// Run two matmuls in a row as one kernel, where that pays.
    pub fuse_chains: bool,
    /// Run two convolutions in a row as one kernel, where that pays.
    pub fuse_conv_chains: bool,
    /// Keep values that every reader rounds to 16 bits so, on targets with matrix units.
    pub half_rows: bool,
    /// Run both kinds of chains so wherever they fit, paying or not: for tests and measurements.
    pub force_chains: bool,
    /// The same of convolutions alone.
    pub force_conv_chains: bool,
    /// Which classes of fusions may be made.
    pub numeric: NumericMode,
    /// How exactly matmuls multiply; those inside attention are `f32` always.
    pub matmul_precision: MatmulPrecision,
    /// The kinds of devices that the plan is for: a fusion has to pay on each of them.
    pub tiers: Vec<Tier>,
    /// The number of keys from which attention of one row takes them in parts, on every kind of device; `None`: where the
    /// cost model says that it pays.
    pub key_parts_from: Option<u64>,
    /// Why kinds of fusion are off that no user switched off, by their names in [`FusionOptions::IDS`].
    pub overruled: BTreeMap<String, Overruled>,
    /// Operations whose origin contains one of these are not fused.
    pub no_fuse: Vec<String>,
    /// Kinds of fusion that are off where the origin of an operation contains a text: names in [`FusionOptions::IDS`] and
    /// texts.
    pub off_at: Vec<(String, String)>,
    /// Edges that are not fused, by parts of the names or origins of their operations.
    pub off_edges: Vec<(String, String)>,
    /// An edge, given likewise, for which the report answers every condition.
    pub ask: Option<(String, String)>,
    /// How many operations are absorbed at most, in the order in which fusion meets them.
    pub fuel: Option<u64>,
    /// Storage bindings that a kernel may have.
    pub limit_bindings: u32,
    /// Invocations that a workgroup may have.
    pub limit_invocations: u32,
    /// Largest binding; larger weights are split by rows.
    pub limit_binding_bytes: u64,
}

impl Default for FusionOptions {
    fn default() -> Self {
        FusionOptions {
            fuse_epilogues: true,
            fuse_rope: true,
            fuse_prologues: true,
            fuse_dequant: true,
            fuse_windows: true,
            fuse_norms: true,
            fuse_norm_pairs: true,
            fuse_head_norms: true,
            forward_stats: true,
            forward_largest: true,
            commute_norms: true,
            exact: true,
            exact_through_views: false,
            merge_siblings: true,
            merge_maps: true,
            fuse_chains: true,
            fuse_conv_chains: true,
            half_rows: true,
            force_chains: false,
            force_conv_chains: false,
            numeric: NumericMode::default(),
            matmul_precision: MatmulPrecision::Auto,
            tiers: vec![Tier::Cpu, Tier::Gpu, Tier::Cuda],
            key_parts_from: None,
            overruled: BTreeMap::new(),
            no_fuse: Vec::new(),
            off_at: Vec::new(),
            off_edges: Vec::new(),
            ask: None,
            fuel: None,
            limit_bindings: 8,
            limit_invocations: 256,
            limit_binding_bytes: 128 << 20,
        }
    }
}

impl FusionOptions {
    /// Names of the switches, for [`FusionOptions::switch_off`].
    pub const IDS: [&'static str; 16] = [
        "epilogue",
        "rope",
        "prologue",
        "dequant",
        "windows",
        "norm",
        "norm-pairs",
        "head-norms",
        "stat-forward",
        "argmax-tiles",
        "commute",
        "siblings",
        "sibling-maps",
        "chain",
        "conv-chain",
        "half-rows",
    ];
    /// Switches one kind of fusion off; `false` for a name that is not in [`FusionOptions::IDS`].
    pub fn switch_off(&mut self, id: &str) -> bool {
        let switch = match id {
            "epilogue" => &mut self.fuse_epilogues,
            "rope" => &mut self.fuse_rope,
            "prologue" => &mut self.fuse_prologues,
            "dequant" => &mut self.fuse_dequant,
            "windows" => &mut self.fuse_windows,
            "norm" => &mut self.fuse_norms,
            "norm-pairs" => &mut self.fuse_norm_pairs,
            "head-norms" => &mut self.fuse_head_norms,
            "stat-forward" => &mut self.forward_stats,
            "argmax-tiles" => &mut self.forward_largest,
            "commute" => &mut self.commute_norms,
            "siblings" => &mut self.merge_siblings,
            "sibling-maps" => &mut self.merge_maps,
            "chain" => &mut self.fuse_chains,
            "conv-chain" => &mut self.fuse_conv_chains,
            "half-rows" => &mut self.half_rows,
            _ => return false,
        };
        *switch = false;
        true
    }
    /// Whether a kind of fusion is on, by its name in [`FusionOptions::IDS`].
    fn is_on(&self, id: &str) -> bool {
        match id {
            "epilogue" => self.fuse_epilogues,
            "rope" => self.fuse_rope,
            "prologue" => self.fuse_prologues,
            "dequant" => self.fuse_dequant,
            "windows" => self.fuse_windows,
            "norm" => self.fuse_norms,
            "norm-pairs" => self.fuse_norm_pairs,
            "head-norms" => self.fuse_head_norms,
            "stat-forward" => self.forward_stats,
            "argmax-tiles" => self.forward_largest,
            "commute" => self.commute_norms,
            "siblings" => self.merge_siblings,
            "sibling-maps" => self.merge_maps,
            "chain" => self.fuse_chains,
            "conv-chain" => self.fuse_conv_chains,
            "half-rows" => self.half_rows,
            _ => false,
        }
    }
    /// The text by which a kind of fusion is switched off where an operation comes from.
    pub(crate) fn place_off(&self, id: &str, origin: &str) -> Option<&str> {
        let at = |(off, part): &&(String, String)| off == id && origin.contains(part.as_str());
        self.off_at.iter().find(at).map(|(_, part)| part.as_str())
    }
    /// Whether layers that do the same may be fused differently: something is switched off by place.
    pub fn tells_places_apart(&self) -> bool {
        !(self.no_fuse.is_empty() && self.off_at.is_empty() && self.off_edges.is_empty())
    }
    /// Switches one kind of fusion off for a reason; `false` for a name that is not in [`FusionOptions::IDS`].
    pub fn overrule(&mut self, id: &str, why: Overruled) -> bool {
        let known = self.switch_off(id);
        if known {
            self.overruled.insert(id.into(), why);
        }
        known
    }
    /// The refusal where fusion `id` is off; `said`: that it is.
    fn refused_by_switch(&self, id: &str, said: &str) -> (Refusal, String) {
        match self.overruled.get(id) {
            Some(why) => (why.code(), why.to_string()),
            None => (Refusal::User, said.into()),
        }
    }
    /// The numeric mode and, where one was asked for, the precision of matmuls, for reports.
    pub fn arithmetic(&self) -> String {
        match self.matmul_precision {
            MatmulPrecision::Auto => self.numeric.name().into(),
            p => format!("{}, matmuls in {}", self.numeric.name(), p.name()),
        }
    }
    /// Every operation a kernel of its own; views and integer arithmetic are still expanded in place where they are read.
    /// A view behind an anchor is an epilogue: one that nothing but the host reads is a copy of its own here, a launch that
    /// [`PhaseReport::unfused_dispatches`](frit_plan::PhaseReport::unfused_dispatches) does not count and that
    /// [`FusionOptions::fuel`] of 0 saves, since absorbing a view spends none. Decoding a weight is no operation of the graph:
    /// products still decode what they read, unless `dequant` is switched off as well.
    pub fn unfused() -> Self {
        FusionOptions {
            fuse_epilogues: false,
            fuse_rope: false,
            fuse_prologues: false,
            fuse_windows: false,
            fuse_norms: false,
            fuse_norm_pairs: false,
            fuse_head_norms: false,
            forward_stats: false,
            forward_largest: false,
            commute_norms: false,
            merge_siblings: false,
            merge_maps: false,
            fuse_chains: false,
            fuse_conv_chains: false,
            half_rows: false,
            ..FusionOptions::default()
        }
    }
}

/// An edge that was considered and not fused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Producer.
    pub from: ValueId,
    /// Consumer.
    pub to: ValueId,
    /// The first condition that failed.
    pub code: Refusal,
    /// Operands and numbers.
    pub detail: String,
}

/// The runs that a program is for, beyond the bounds of its sizes.
#[derive(Clone, Debug, Default)]
pub struct Within {
    /// Sizes bounded from above.
    pub at_most: Vec<(String, u64)>,
    /// Expressions of sizes bounded from above, such as B·S ≤ 64.
    pub limits: Vec<(Dim, u64)>,
    /// They have many sequences: for few there is another program.
    pub many_sequences: bool,
}

/// Every condition of a refused edge, in the order of the codes, for `regions`, which are those of the whole graph.
pub fn conditions(
    graph: &Graph,
    tables: &Tables,
    within: &Within,
    options: &FusionOptions,
    regions: Vec<Region>,
    edge: &Refused,
) -> Vec<Condition> {
    let apart = HashSet::new();
    partition::Partitioner::new(graph, tables, within, options, &apart).conditions(regions, edge)
}

/// Whether an operation is meant by a part of its name or origin.
pub fn is_named(graph: &Graph, v: ValueId, part: &str) -> bool {
    report::describe(graph, v).contains(part)
}

/// Splits a graph into regions. Operations in `apart` are not fused: kernels that held them were found wrong.
pub fn partition(
    graph: &Graph,
    tables: &Tables,
    within: &Within,
    options: &FusionOptions,
    apart: &HashSet<ValueId>,
) -> Partition {
    partition::Partitioner::new(graph, tables, within, options, apart).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switches_together_leave_nothing_fused() {
        let mut o = FusionOptions::default();
        for id in FusionOptions::IDS {
            let before = o.clone();
            assert!(o.is_on(id), "{id}");
            assert!(o.switch_off(id));
            assert!(!o.is_on(id) && o != before, "{id}");
        }
        assert_eq!(o, FusionOptions { fuse_dequant: false, ..FusionOptions::unfused() });
        assert!(!o.switch_off("nope"));
    }
}
