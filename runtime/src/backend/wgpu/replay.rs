//! Programs made ready to run: bind groups and records once, then a run is a list of launches.

use super::super::Extent;
use super::super::bindings::{SIZES_BYTES, Slot, variant};
use super::super::layout::{Home, Layout, Place, RECORD_ALIGN, elements, largest, no_kernel, record};
use super::super::ports::port_places;
use super::device::Gpu;
use super::guard::Guards;
use super::pipeline::Pipeline;
use super::weights::DeviceWeights;
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_kernels::target::Tier;
use frit_plan::{Plan, Program};
use wgpu::BufferUsages as Usage;

/// What depends on the extent, without weights.
#[derive(Debug)]
pub(super) struct Buffers {
    pub arena: wgpu::Buffer,
    pub ints: wgpu::Buffer,
    pub kv: Vec<wgpu::Buffer>,
    pub sizes: wgpu::Buffer,
}

impl Buffers {
    pub fn new(gpu: &Gpu, plan: &Plan, layout: &Layout) -> Result<Buffers> {
        let storage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        let mut kv = Vec::new();
        for (i, slot) in plan.kv_slots.iter().enumerate() {
            kv.push(gpu.buffer(&slot.name, layout.kv_elems(i) * 4, storage)?);
        }
        Ok(Buffers {
            arena: gpu.buffer("arena", layout.arena_elems * 4, storage)?,
            ints: gpu.buffer("ints", layout.ints_elems * 4, storage)?,
            kv,
            sizes: gpu.buffer("sizes", SIZES_BYTES, Usage::UNIFORM | Usage::COPY_DST)?,
        })
    }
    /// The buffer behind `home`.
    pub fn get<'a>(&'a self, weights: &'a DeviceWeights, home: Home) -> Result<&'a wgpu::Buffer> {
        let found = match home {
            Home::Arena => Some(&self.arena),
            Home::Ints => Some(&self.ints),
            Home::Side => weights.side(),
            Home::Kv(i) => self.kv.get(i as usize),
            Home::Own(w) => weights.own(w),
        };
        found.ok_or_else(|| Error::Plan(format!("nothing is bound to {home:?}")))
    }
}

#[derive(Debug)]
struct Launch {
    kernel: usize,
    grid: usize,
    group: wgpu::BindGroup,
    /// The value that must not be 0 everywhere for the launch to count.
    when: Option<u32>,
}

/// A program ready to run.
#[derive(Debug)]
pub(super) struct Replay {
    launches: Vec<Launch>,
    /// Each launched kernel's grid, once.
    grids: Vec<(usize, [Dim; 3])>,
    guards: Option<Guards>,
    pub inputs: Vec<Place>,
    pub outputs: Vec<Place>,
    /// Bytes of all outputs at the extent.
    pub output_bytes: u64,
    pub record_bytes: u64,
}

impl Replay {
    /// Prepares program `at`.
    pub fn new(
        gpu: &Gpu,
        plan: &Plan,
        at: usize,
        program: &Program,
        layout: &Layout,
        extent: &Extent,
        tier: Tier,
        pipelines: &[Option<Pipeline>],
        buffers: &Buffers,
        weights: &DeviceWeights,
    ) -> Result<Replay> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut steps = Vec::new();
        for step in &program.steps {
            let places = layout.places(plan, at, step)?;
            let words = record(&places)?;
            steps.push((step, places, bytes.len() as u64, words.len() as u64 * 4));
            bytes.extend_from_slice(bytemuck::cast_slice(&words));
            bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGN as usize), 0);
        }
        let records = gpu.buffer("records", bytes.len() as u64, Usage::UNIFORM | Usage::COPY_DST)?;
        gpu.write(&records, 0, &bytes);

        let mut launches = Vec::new();
        let mut grids: Vec<(usize, [Dim; 3])> = Vec::new();
        for (step, places, from, len) in steps {
            let kernel = step.kernel as usize;
            let (Some(Some(p)), Some(k)) = (pipelines.get(kernel), plan.kernels.get(kernel)) else {
                return Err(no_kernel(step));
            };
            let mut entries = Vec::new();
            for (i, slot) in p.slots.iter().enumerate() {
                let (buffer, offset, size) = match slot {
                    Slot::Texels { arg, .. } => {
                        let place = places.get(*arg).ok_or_else(|| no_kernel(step))?;
                        let view = weights.texels(place.home)?;
                        let resource = wgpu::BindingResource::TextureView(view);
                        entries.push(wgpu::BindGroupEntry { binding: i as u32, resource });
                        continue;
                    }
                    Slot::Storage { arg, .. } => {
                        let place = places.get(*arg).ok_or_else(|| no_kernel(step))?;
                        (buffers.get(weights, place.home)?, 0, None)
                    }
                    Slot::Record => (&records, from, wgpu::BufferSize::new(len)),
                    Slot::Sizes => (&buffers.sizes, 0, wgpu::BufferSize::new(SIZES_BYTES)),
                };
                let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
                entries.push(wgpu::BindGroupEntry { binding: i as u32, resource });
            }
            let group = gpu.bind_group(&step.label, &p.group, &entries)?;
            let grid = match grids.iter().position(|(known, _)| *known == kernel) {
                Some(i) => i,
                None => {
                    grids.push((kernel, variant(k, tier)?.grid.clone()));
                    grids.len() - 1
                }
            };
            launches.push(Launch { kernel, grid, group, when: step.when });
        }

        let sizes = largest(plan, program, extent);
        let mut output_bytes = 0u64;
        for p in &program.outputs {
            output_bytes = output_bytes.saturating_add(elements(plan, &p.shape, &sizes)?.saturating_mul(4));
        }
        let by_step: Vec<usize> = launches.iter().map(|l| l.grid).collect();
        let guards = Guards::new(gpu, plan, at, program, layout, buffers, &by_step)?;
        Ok(Replay {
            launches,
            grids,
            guards,
            inputs: port_places(plan, layout, at, &program.inputs)?,
            outputs: port_places(plan, layout, at, &program.outputs)?,
            output_bytes,
            record_bytes: bytes.len() as u64,
        })
    }
    /// The grid of each launched kernel under `sizes`.
    pub fn grids(&self, plan: &Plan, sizes: &[u64], limit: u32) -> Result<Vec<[u32; 3]>> {
        let mut out = Vec::new();
        for (kernel, dims) in &self.grids {
            let mut grid = [0; 3];
            for (g, d) in grid.iter_mut().zip(dims) {
                let v = plan.eval(d, sizes)?;
                *g = u32::try_from(v).ok().filter(|v| *v <= limit).ok_or_else(|| Error::Kernel {
                    backend: "wgpu",
                    kernel: plan.kernels.get(*kernel).map_or_else(String::new, |k| k.name.clone()),
                    reason: format!("a grid of {v} workgroups exceeds {limit}"),
                })?;
            }
            out.push(grid);
        }
        Ok(out)
    }
    /// Brings what guarded launches need to the device.
    ///
    /// # Errors
    /// Extents that have no value.
    pub fn write_guards(&self, gpu: &Gpu, plan: &Plan, sizes: &[u64], grids: &[[u32; 3]]) -> Result<()> {
        self.guards.as_ref().map_or(Ok(()), |g| g.write(gpu, plan, sizes, grids))
    }
    /// Records every launch whose grid is not empty.
    pub fn record(
        &self,
        gpu: &Gpu,
        encoder: &mut wgpu::CommandEncoder,
        pipelines: &[Option<Pipeline>],
        grids: &[[u32; 3]],
    ) {
        let mut pass = gpu.pass(encoder);
        let mut bound = None;
        let mut looked: Vec<u32> = Vec::new();
        for (at, l) in self.launches.iter().enumerate() {
            let grid = grids.get(l.grid).copied().unwrap_or_default();
            let Some(Some(p)) = pipelines.get(l.kernel) else { continue };
            if grid.contains(&0) {
                continue;
            }
            let guard = l.when.and_then(|v| Some((v, self.guards.as_ref()?)));
            if let Some((value, guards)) = guard
                && !looked.contains(&value)
            {
                guards.look(gpu, &mut pass, value);
                looked.push(value);
                bound = None;
            }
            if bound != Some(l.kernel) {
                pass.set_pipeline(&p.pipeline);
                bound = Some(l.kernel);
            }
            pass.set_bind_group(0, &l.group, &[]);
            match guard.and_then(|(_, guards)| guards.grid(at)) {
                Some((args, offset)) => gpu.dispatch_indirect(&mut pass, args, offset),
                None => gpu.dispatch(&mut pass, grid),
            }
        }
    }
}
