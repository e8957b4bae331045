//! What a target can do. Schedules and legality ask [`Capabilities`]; nothing outside `emit/` asks for a target's name.

use crate::emit::Language;
use crate::ir::Texture;
use crate::spec::{KernelSpec, Space};
use serde::{Deserialize, Serialize};

/// Which shape of schedule suits the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// A driver that runs shaders on CPU cores, with subgroups of 8 or more: loads from buffers and workgroup memory go
    /// one invocation at a time, texels and exchanges within a subgroup as vectors.
    Cpu,
    /// A GPU.
    Gpu,
    /// An NVIDIA GPU that reads PTX: warps of 32, large workgroup memory.
    Cuda,
}

impl Tier {
    /// The name used in artifacts.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Cpu => "cpu",
            Tier::Gpu => "gpu",
            Tier::Cuda => "cuda",
        }
    }

    /// The language its kernels are written in.
    pub const fn language(self) -> Language {
        match self {
            Tier::Cpu | Tier::Gpu => Language::Wgsl,
            Tier::Cuda => Language::Ptx,
        }
    }
}

/// An NVIDIA instruction set that PTX is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Architecture {
    /// `sm_80`: this GPU and every later one.
    #[serde(rename = "sm_80")]
    Sm80,
    /// `sm_90` and every later one, with launches that overlap.
    #[serde(rename = "sm_90")]
    Sm90,
    /// `sm_90` alone, with warpgroups that work apart.
    #[serde(rename = "sm_90a")]
    Sm90a,
}

impl Architecture {
    /// The name as PTX writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Sm80 => "sm_80",
            Architecture::Sm90 => "sm_90",
            Architecture::Sm90a => "sm_90a",
        }
    }
    /// Whether a GPU of this compute capability (major, minor) runs such texts.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        match self {
            Architecture::Sm80 => capability >= (8, 0),
            Architecture::Sm90 => capability >= (9, 0),
            Architecture::Sm90a => capability == (9, 0),
        }
    }
}

/// Limits and features that legality and schedules read. [`Capabilities::webgpu`] is the default legality profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Shape of schedule.
    pub tier: Tier,
    /// The instruction set, where texts are written for one.
    pub architecture: Option<Architecture>,
    /// Storage buffers a shader stage may bind.
    pub limit_storage_buffers: u32,
    /// Uniform buffers a shader stage may bind.
    pub limit_uniform_buffers: u32,
    /// Bytes of workgroup memory.
    pub limit_workgroup_bytes: u32,
    /// Invocations of a workgroup.
    pub limit_invocations: u32,
    /// Workgroups of one grid dimension.
    pub limit_groups: u32,
    /// Bytes of one storage binding.
    pub limit_binding_bytes: u64,
    /// Storage textures of a kernel.
    pub limit_storage_textures: usize,
    /// Alignment of a buffer binding's offset.
    pub offset_alignment_bytes: u32,
    /// 16-bit float arithmetic.
    pub has_f16: bool,
    /// Products of 16-bit matrices spread over subgroups of 32.
    pub has_matrix: bool,
    /// Invocations that a kernel may take for a subgroup: the fixed size, or the least where a workgroup of so many is one
    /// subgroup.
    pub subgroup_size: Option<u32>,
    /// Whether weights are bound as textures.
    pub has_texel_weights: bool,
}

impl Capabilities {
    /// How the weights of a kernel are bound; `None` where they lie in buffers.
    pub fn weight_texture(&self, spec: &KernelSpec) -> Option<Texture> {
        let weights = spec.args.iter().filter(|a| a.space == Space::Weight).count();
        self.has_texel_weights.then_some(match weights <= self.limit_storage_textures {
            true => Texture::Storage,
            false => Texture::Sampled,
        })
    }
    /// Base WebGPU limits for `tier`: 8 storage buffers, 4 storage textures, 16 KiB of workgroup memory, 256 invocations, 128 MiB bindings;
    /// for [`Tier::Cpu`] also subgroups.
    pub const fn webgpu(tier: Tier) -> Self {
        Capabilities {
            tier,
            architecture: None,
            limit_storage_buffers: 8,
            limit_uniform_buffers: 12,
            limit_workgroup_bytes: 16384,
            limit_invocations: 256,
            limit_groups: 65535,
            limit_binding_bytes: 128 << 20,
            limit_storage_textures: 4,
            offset_alignment_bytes: 256,
            has_f16: false,
            has_matrix: false,
            subgroup_size: if matches!(tier, Tier::Cpu) { Some(8) } else { None },
            has_texel_weights: matches!(tier, Tier::Cpu),
        }
    }
    /// What every NVIDIA GPU from `sm_80` on can do. A workgroup may use 99 KiB of shared memory, the least among them.
    /// A binding has fewer than 2³¹ elements of two bytes, so that 32-bit index arithmetic may be taken as signed.
    pub const fn cuda() -> Self {
        Capabilities {
            tier: Tier::Cuda,
            architecture: Some(Architecture::Sm80),
            limit_storage_buffers: 64,
            limit_uniform_buffers: 12,
            limit_workgroup_bytes: 99 << 10,
            limit_invocations: 1024,
            limit_groups: 65535,
            limit_binding_bytes: (4 << 30) - 16,
            limit_storage_textures: 0,
            offset_alignment_bytes: 16,
            has_f16: true,
            has_matrix: true,
            subgroup_size: Some(32),
            has_texel_weights: false,
        }
    }
    /// As [`cuda`](Self::cuda), for `sm_90` and later: a kernel may start while the one before it runs, and loads weights
    /// until it waits for that one.
    pub const fn cuda_overlapping() -> Self {
        Capabilities { architecture: Some(Architecture::Sm90), ..Capabilities::cuda() }
    }
    /// What GPUs of compute capability 9.0 can do, and no other: warpgroups work apart from each other, over 227 KiB of
    /// shared memory.
    pub const fn cuda_warpgroups() -> Self {
        Capabilities {
            architecture: Some(Architecture::Sm90a),
            limit_workgroup_bytes: 227 << 10,
            ..Capabilities::cuda()
        }
    }
    /// Whether warpgroups can work apart from each other.
    pub fn has_warpgroups(&self) -> bool {
        self.architecture == Some(Architecture::Sm90a)
    }
    /// Whether a kernel may start while the launch before it runs.
    pub fn overlaps(&self) -> bool {
        self.architecture == Some(Architecture::Sm90)
    }
}
