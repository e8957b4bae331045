//! Kernels of a plan: meaning, and a text for each target.

use frit_kernels::dim::Dim;
use frit_kernels::spec::KernelSpec;
use frit_kernels::target::{Architecture, Tier};
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
    /// The first text for a tier.
    pub fn variant(&self, tier: Tier) -> Option<&Variant> {
        self.variants.iter().find(|v| v.tier == tier)
    }
    /// The PTX for a GPU of this compute capability (major, minor): that of the newest instruction set it has.
    pub fn ptx(&self, capability: (u32, u32)) -> Option<&Variant> {
        self.ptx_until(capability, Architecture::Sm90a)
    }
    /// As [`Kernel::ptx`], of no newer instruction set than this.
    pub fn ptx_until(&self, capability: (u32, u32), newest: Architecture) -> Option<&Variant> {
        let runs = |a: Architecture| a <= newest && a.runs_on(capability);
        let serves = |v: &&Variant| v.tier == Tier::Cuda && v.architecture.is_some_and(runs);
        self.variants.iter().filter(serves).max_by_key(|v| v.architecture)
    }
}

/// One rendering of a kernel for a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// The tier it was scheduled for; it settles the language.
    pub tier: Tier,
    /// The instruction set that PTX is written for; WGSL has none.
    pub architecture: Option<Architecture>,
    /// How it was scheduled.
    pub schedule: Schedule,
    /// Workgroups per dimension over the sizes of a launch; each at least 1 and already folded under the limit.
    pub grid: [Dim; 3],
    /// Workgroup memory that a launch must ask for, in bytes; 0 where the text declares it all.
    pub dynamic_shared_bytes: u32,
    /// The kernel in the tier's language, entry point `main`.
    pub text: String,
    /// Arguments that the kernel reaches through tensor maps, in place of their addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matrices: Vec<Matrix>,
}

/// A matrix of 16-bit elements, row by row from the start of an argument's buffer, of which a kernel brings tiles of
/// [`TILE_COLUMNS`](frit_kernels::ir::TILE_COLUMNS) columns in 128-byte swizzle; zeros beyond its edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// Which argument of the kernel.
    pub argument: u16,
    /// Elements of a row, a multiple of 8.
    pub columns: u64,
    /// Rows.
    pub rows: u64,
    /// Rows of a tile, up to 256.
    pub tile_rows: u32,
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
