//! Kernels as pipelines.

use super::super::bindings::{Slot, slots, variant};
use super::super::layout;
use super::device::{Gpu, TEXELS};
use crate::{Error, Result};
use frit_kernels::ir::Texture;
use frit_kernels::target::Tier;
use frit_plan::{Kernel, Plan, Program};
use rayon::prelude::*;

/// A kernel on the device.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub group: wgpu::BindGroupLayout,
    pub slots: Vec<Slot>,
}

/// Makes the pipelines of a program's kernels that `known` does not hold yet.
pub(super) fn build(
    gpu: &Gpu,
    plan: &Plan,
    program: &Program,
    tier: Tier,
    known: &mut [Option<Pipeline>],
) -> Result<()> {
    let mut missing: Vec<usize> = Vec::new();
    for step in &program.steps {
        let k = step.kernel as usize;
        if known.get(k).ok_or_else(|| layout::no_kernel(step))?.is_none() && !missing.contains(&k) {
            missing.push(k);
        }
    }
    let kernels: Vec<(usize, &Kernel)> = missing.iter().filter_map(|k| Some((*k, plan.kernels.get(*k)?))).collect();
    let made: Result<Vec<(usize, Pipeline)>> =
        kernels.into_par_iter().map(|(at, k)| Ok((at, one(gpu, k, tier)?))).collect();
    for (at, p) in made? {
        if let Some(slot) = known.get_mut(at) {
            *slot = Some(p);
        }
    }
    Ok(())
}

fn one(gpu: &Gpu, kernel: &Kernel, tier: Tier) -> Result<Pipeline> {
    let limit = gpu.limits.max_storage_buffers_per_shader_stage;
    if kernel.spec.bindings() > limit as usize {
        return Err(Error::Kernel {
            backend: "wgpu",
            kernel: kernel.name.clone(),
            reason: format!("{} storage buffers, the device is asked for {limit}", kernel.spec.bindings()),
        });
    }
    let slots = slots(&kernel.spec, tier);
    let entry = |(i, s): (usize, &Slot)| wgpu::BindGroupLayoutEntry {
        binding: i as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: match s {
            Slot::Storage { written, .. } => buffer(wgpu::BufferBindingType::Storage { read_only: !written }),
            Slot::Texels { texture: Texture::Storage, .. } => wgpu::BindingType::StorageTexture {
                access: wgpu::StorageTextureAccess::ReadOnly,
                format: TEXELS,
                view_dimension: wgpu::TextureViewDimension::D2,
            },
            Slot::Texels { texture: Texture::Sampled, .. } => wgpu::BindingType::Texture {
                sample_type: wgpu::TextureSampleType::Uint,
                view_dimension: wgpu::TextureViewDimension::D2,
                multisampled: false,
            },
            Slot::Record | Slot::Sizes => buffer(wgpu::BufferBindingType::Uniform),
        },
        count: None,
    };
    let entries: Vec<_> = slots.iter().enumerate().map(entry).collect();
    let (pipeline, group) = gpu.pipeline(&kernel.name, &variant(kernel, tier)?.text, &entries)?;
    Ok(Pipeline { pipeline, group, slots })
}

fn buffer(ty: wgpu::BufferBindingType) -> wgpu::BindingType {
    wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None }
}
