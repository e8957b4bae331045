//! Kernels of a plan: meaning, and one text for each tier of target.

use frit_kernels::dim::Dim;
use frit_kernels::spec::KernelSpec;
use frit_kernels::target::Tier;
use serde::{Deserialize, Serialize};

/// A kernel: its meaning and its renderings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Stable name, unique in the plan.
    pub name: String,
    /// What it computes.
    pub spec: KernelSpec,
    /// Generated texts.
    pub variants: Vec<Variant>,
}

impl Kernel {
    /// The text for a tier.
    pub fn variant(&self, tier: Tier) -> Option<&Variant> {
        self.variants.iter().find(|v| v.tier == tier)
    }
}

/// One rendering of a kernel for a tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// The tier it was scheduled for.
    pub tier: Tier,
    /// How it was scheduled.
    pub schedule: Schedule,
    /// Workgroups per dimension over the sizes of a launch; each at least 1 and already folded under the limit.
    pub grid: [Dim; 3],
    /// WGSL.
    pub wgsl: String,
}

/// A schedule in readable form: the template's name and its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Template: `map`, `row`, `gemm`, `gemv`, `attention_prefill`, `attention_decode`.
    pub template: String,
    /// Invocations per workgroup dimension.
    pub workgroup: [u32; 3],
    /// Tile sizes and factors by name, in order.
    pub tile: Vec<(String, u32)>,
}
