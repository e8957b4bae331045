//! The fusion report: what was fused, what was not and why, and the bytes of both. It is stored in the artifact.

use crate::Rates;
use crate::drawing::Drawing;
use frit_kernels::dim::Dim;
use frit_kernels::target::Tier;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FusionReport {
    /// One part a program.
    pub phases: Vec<PhaseReport>,
    /// Rewrites of the graphs by rule, all programs together.
    #[serde(default)]
    pub rewrites: BTreeMap<String, u64>,
    /// The numeric mode: `strict`, `default` or `fast`.
    #[serde(default)]
    pub numeric: String,
    /// Rules that matched and that the numeric mode does not allow (`L18-MODE`): proof class and places.
    #[serde(default)]
    pub refused_rewrites: BTreeMap<String, (String, u64)>,
    /// What translation validation found.
    #[serde(default)]
    pub validation: Validation,
}

/// Translation validation: both sides of every rewrite, and every kernel and its operations, compared on random
/// operands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Whether it was asked for.
    pub on: bool,
    /// Rewrites found equal, found different, and not decided.
    pub rewrites: [u64; 3],
    /// Kernels found equal, found different, and not decided.
    pub kernels: [u64; 3],
    /// Rewrites and kernels that were dropped for the unfused form, with their places; and kernels of one operation that
    /// were found different, of which there is no other form.
    pub dropped: Vec<String>,
}

/// The report of one program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// The program: `forward`, `prefill`, `decode`, `decode_wide`.
    pub program: String,
    /// Launches of one run.
    pub dispatches: u32,
    /// Launches of the layer that has most; 0 without layers.
    pub dispatches_per_layer: u32,
    /// Launches of every layer, in launch order.
    #[serde(default)]
    pub layers: Vec<LayerCount>,
    /// Launches of no layer: with those of the layers, all.
    #[serde(default)]
    pub outside_layers: u32,
    /// Launches if every operation were a kernel of its own.
    pub unfused_dispatches: u32,
    /// Repetitions of a block of layers whose regions follow from another repetition's, without being fused again.
    #[serde(default)]
    pub instances: u32,
    /// Decisions that fusion took: what compiling costs, in units that no clock disturbs.
    #[serde(default)]
    pub work: u64,
    /// The greedy regions against the best ones.
    #[serde(default)]
    pub exact: ExactSearch,
    /// Values that are written over an input of the same step.
    #[serde(default)]
    pub in_place: Vec<InPlace>,
    /// Attention blocks of the graph, and how many became one kernel.
    pub attention: AttentionCount,
    /// Every region in launch order.
    pub regions: Vec<RegionReport>,
    /// Every edge between operations that was considered and refused.
    pub refused: Vec<RefusedEdge>,
    /// Edges that this program and those for fewer rows decide differently.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crossovers: Vec<Crossover>,
    /// The operations before fusion.
    #[serde(default)]
    pub drawing: Drawing,
    /// Bytes of one run, symbolic in the sizes.
    pub ledger: Ledger,
}

/// What an exhaustive search of a program's windows found, by the model of costs: sums over distinct windows and the kinds
/// of devices that the plan is for, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactSearch {
    /// Distinct windows: operations that may share kernels as far as their kinds say.
    pub windows: u32,
    /// Those that were too large to be searched; their greedy regions stand.
    pub unsearched: u32,
    /// Windows in which the search found cheaper regions.
    pub improved: u32,
    /// What the greedy regions of searched windows take.
    pub greedy_ns: u64,
    /// What the regions take that were chosen.
    pub exact_ns: u64,
    /// Sets of operations and steps that were looked at.
    pub work: u64,
    /// Whether the regions are those of the search.
    pub taken: bool,
}

/// A value that takes the storage of an input that dies in the step that makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlace {
    /// The step.
    pub step: u32,
    /// The value written.
    pub output: String,
    /// The value it is written over.
    pub input: String,
}

/// Attention blocks found and fused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionCount {
    /// In the graph.
    pub blocks: u32,
    /// As one kernel.
    pub fused: u32,
}

/// Launches of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCount {
    /// The path of the layer in the source model, with its stack; or a number of its attention where names do not tell.
    pub layer: String,
    /// Launches around one of its operations.
    pub dispatches: u32,
}

/// One region: one launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegionReport {
    /// Stable number in launch order.
    pub id: u32,
    /// `map`, `row`, `matmul`, `attention`, `chain`, `conv_chain`; `copy`: a view that is stored; `index`: integers or truth
    /// values that are. The unfused graph has no launch for the last two, which save a negative number of bytes.
    pub kind: String,
    /// The kernel's name.
    pub kernel: String,
    /// Operations inside, in order.
    pub ops: Vec<String>,
    /// Where they come from in the source model.
    pub origins: Vec<String>,
    /// What it writes or reads of stored views and stored integers or truth values, which the unfused graph has no launch
    /// for: why a region may move more bytes than its operations alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<String>,
    /// Bytes not moved because the region is one kernel.
    pub saved_bytes: Dim,
    /// Launches saved: operations that no region in front counts, less one. Negative for `copy` and `index`.
    pub saved_launches: i32,
    /// Storage bindings.
    pub bindings: u32,
    /// Proof class of the fusion: `BIT`, `ROUND`, `REASSOC`, `APPROX`.
    pub class: String,
    /// Rewrites of a class above `BIT` that made one of its operations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewrites: Vec<AppliedRewrite>,
    /// Weight bytes it reads.
    pub weight_bytes: Dim,
    /// Activation and cache bytes it reads and writes.
    pub activation_bytes: Dim,
    /// Additions and multiplications of its products and of attention; 0 for other regions.
    #[serde(default)]
    pub flops: Dim,
    /// Where the statistics of the norm in front of a product come from: `recomputed` in every column tile, or `forwarded`
    /// by the kernel that makes the rows; empty without a norm.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub norm: String,
}

impl RegionReport {
    /// Predicted time in µs on devices of a tier, with `count` the value of a number of bytes or operations at some sizes.
    pub fn predicted_us(&self, tier: Tier, count: &dyn Fn(&Dim) -> i64) -> f64 {
        let bytes = count(&self.weight_bytes) + count(&self.activation_bytes);
        Rates::of(tier).launch_time_us(bytes as f64, count(&self.flops) as f64)
    }
}

/// An edge that was not fused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedEdge {
    /// Producer.
    pub from: String,
    /// Consumer.
    pub to: String,
    /// Stable code.
    pub code: String,
    /// Operands and numbers.
    pub detail: String,
    /// The smallest change that would allow it.
    pub remedy: String,
    /// Every condition in the order of the codes, of edges that the compilation was asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A condition of fusion, for one edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Stable code of its failure.
    pub code: String,
    /// What was found.
    pub verdict: Verdict,
    /// Operands and numbers, or why it was not asked.
    pub detail: String,
}

/// What became of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It holds.
    #[serde(rename = "holds")]
    Holds,
    /// It fails.
    #[serde(rename = "fails")]
    Fails,
    /// It speaks of a kernel that an earlier condition rules out.
    #[serde(rename = "not asked")]
    NotAsked,
}

impl Verdict {
    /// As reports say it.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Holds => "holds",
            Verdict::Fails => "fails",
            Verdict::NotAsked => "not asked",
        }
    }
}

/// A rewrite that changes numbers, as a region notes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AppliedRewrite {
    /// The rule.
    pub rule: String,
    /// Its proof class.
    pub class: String,
}

/// An edge that is fused for some numbers of rows and not for others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crossover {
    /// Producer.
    pub from: String,
    /// Consumer.
    pub to: String,
    /// Edges that are decided like this one and whose operations are of the same kinds, this one included.
    pub times: u32,
    /// From few rows to many.
    pub decisions: Vec<BucketDecision>,
}

/// What a program for some number of rows does with an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BucketDecision {
    /// The most rows; `None`: any number.
    pub most_rows: Option<u64>,
    /// Whether one kernel holds both operations.
    pub fused: bool,
    /// The code of the refusal; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Its operands and numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Bytes of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Weight bytes read.
    pub weights: Dim,
    /// Activation bytes if every operation were a kernel of its own.
    pub activations_unfused: Dim,
    /// Activation bytes of the plan.
    pub activations_fused: Dim,
    /// `weights + activations_fused`.
    pub total: Dim,
}
