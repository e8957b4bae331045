//! Kernels as pipelines, and the bindings that every generated kernel has.
//!
//! Group 0 holds, numbered from 0: one binding for each distinct space of the kernel's arguments in order of first
//! occurrence, where every [`Space::Weight`] argument counts by itself; then the uniform `record`, the element offset of
//! each argument in its binding; then the uniform `sizes`, the plan's table of sizes.

use super::device::Gpu;
use crate::{Error, Result};
use frit_kernels::spec::{KernelSpec, Space};
use frit_kernels::target::Tier;
use frit_plan::{Kernel, Plan, Program, Variant};
use rayon::prelude::*;

/// Bytes of the table of sizes.
pub(super) const SIZES_BYTES: u64 = 64;

/// One binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// A storage buffer: that of this argument.
    Storage { arg: usize, written: bool },
    /// The step's record.
    Record,
    /// The table of sizes.
    Sizes,
}

/// The bindings of a kernel in order.
pub(super) fn slots(spec: &KernelSpec) -> Vec<Slot> {
    let mut seen: Vec<Space> = Vec::new();
    let mut out = Vec::new();
    for (i, a) in spec.args.iter().enumerate() {
        if a.space != Space::Weight {
            if seen.contains(&a.space) {
                continue;
            }
            seen.push(a.space);
        }
        let written = match a.space {
            Space::Arena | Space::Ints => true,
            Space::Weight | Space::Side => false,
            Space::Kv(_) => spec.args.iter().any(|b| b.space == a.space && b.written),
        };
        out.push(Slot::Storage { arg: i, written });
    }
    out.extend([Slot::Record, Slot::Sizes]);
    out
}

/// A kernel on the device.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub group: wgpu::BindGroupLayout,
    pub slots: Vec<Slot>,
}

/// The text of a kernel that suits `tier`: every variant is right on every tier, one is the faster.
pub(super) fn variant(kernel: &Kernel, tier: Tier) -> Result<&Variant> {
    kernel.variant(tier).or(kernel.variants.first()).ok_or_else(|| Error::Kernel {
        backend: "wgpu",
        kernel: kernel.name.clone(),
        reason: "the artifact holds no WGSL for it".into(),
    })
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
        if known.get(k).ok_or_else(|| super::layout::no_kernel(step))?.is_none() && !missing.contains(&k) {
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
    let slots = slots(&kernel.spec);
    let entry = |(i, s): (usize, &Slot)| wgpu::BindGroupLayoutEntry {
        binding: i as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match s {
                Slot::Storage { written, .. } => wgpu::BufferBindingType::Storage { read_only: !written },
                Slot::Record | Slot::Sizes => wgpu::BufferBindingType::Uniform,
            },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let entries: Vec<_> = slots.iter().enumerate().map(entry).collect();
    let (pipeline, group) = gpu.pipeline(&kernel.name, &variant(kernel, tier)?.wgsl, &entries)?;
    Ok(Pipeline { pipeline, group, slots })
}
