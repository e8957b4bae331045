//! Launches that the device itself leaves out: before the first launch that depends on a value, one small kernel looks
//! whether any of its elements is set, and writes the grids of all launches that depend on it: as they are, or zeros.

use super::super::layout::{Layout, elements};
use super::device::Gpu;
use super::replay::Buffers;
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_plan::{BufferRef, Plan, Program};
use wgpu::BufferUsages as Usage;

/// Words of a guard in the table: first element, elements, first grid, grids.
const WORDS: usize = 4;

const TEXT: &str = "
@group(0) @binding(0) var<storage, read> ints: array<i32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> grids: array<u32>;
@group(0) @binding(3) var<uniform> guard: vec4<u32>;
var<workgroup> any: atomic<u32>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) t: u32) {
    let offset = table[guard.x];
    let len = table[guard.x + 1u];
    let first = table[guard.x + 2u];
    let count = table[guard.x + 3u];
    for (var i = t; i < len; i += 64u) {
        if (ints[offset + i] != 0) {
            atomicOr(&any, 1u);
        }
    }
    workgroupBarrier();
    let scale = atomicLoad(&any);
    for (var i = t; i < 3u * count; i += 64u) {
        grids[3u * first + i] = scale * table[guard.y + 3u * first + i];
    }
}
";

/// A value that launches depend on.
#[derive(Debug)]
struct Guard {
    /// The value's index in the program.
    value: u32,
    offset: u64,
    shape: Vec<Dim>,
    /// Its first launch among the guarded ones, and how many there are.
    first: usize,
    /// The grid of each launch, by number of the replay.
    grids: Vec<usize>,
    group: wgpu::BindGroup,
}

/// The guarded launches of a program.
#[derive(Debug)]
pub(super) struct Guards {
    pipeline: wgpu::ComputePipeline,
    list: Vec<Guard>,
    table: wgpu::Buffer,
    /// Arguments of the indirect dispatches.
    args: wgpu::Buffer,
    /// The launch of each step among the guarded ones.
    places: Vec<Option<usize>>,
}

impl Guards {
    /// What the guarded steps of program `at` need; `grids[i]` is the grid of step i by number. `None` without any.
    pub fn new(
        gpu: &Gpu,
        plan: &Plan,
        at: usize,
        program: &Program,
        layout: &Layout,
        buffers: &Buffers,
        grids: &[usize],
    ) -> Result<Option<Guards>> {
        let mut values: Vec<u32> = program.steps.iter().filter_map(|s| s.when).collect();
        values.sort_unstable();
        values.dedup();
        if values.is_empty() {
            return Ok(None);
        }
        let guarded = program.steps.iter().filter(|s| s.when.is_some()).count();
        let words = (values.len() * WORDS + 3 * guarded) as u64;
        let table = gpu.buffer("guards", words * 4, Usage::STORAGE | Usage::COPY_DST)?;
        let args = gpu.buffer("guarded grids", guarded as u64 * 12, Usage::STORAGE | Usage::INDIRECT)?;
        let storage = |binding, read_only| entry(binding, wgpu::BufferBindingType::Storage { read_only });
        let entries =
            [storage(0, true), storage(1, true), storage(2, false), entry(3, wgpu::BufferBindingType::Uniform)];
        let (pipeline, group_layout) = gpu.pipeline("guard", TEXT, &entries)?;
        let mut places = vec![None; program.steps.len()];
        let (mut list, mut next) = (Vec::new(), 0);
        for (g, value) in values.iter().enumerate() {
            let decl = program.values.get(*value as usize);
            let decl = decl.ok_or_else(|| Error::Plan(format!("there is no value {value}")))?;
            let place = layout.place(plan, at, BufferRef::Value(*value))?;
            let record = gpu.buffer("guard", 16, Usage::UNIFORM | Usage::COPY_DST)?;
            let which = [(g * WORDS) as u32, (values.len() * WORDS) as u32, 0, 0];
            gpu.write(&record, 0, bytemuck::cast_slice(&which));
            let bound = [&buffers.ints, &table, &args, &record];
            let bindings: Vec<wgpu::BindGroupEntry<'_>> = (0..)
                .zip(bound)
                .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() })
                .collect();
            let group = gpu.bind_group("guard", &group_layout, &bindings)?;
            let (first, mut own) = (next, Vec::new());
            for (i, _) in program.steps.iter().enumerate().filter(|(_, s)| s.when == Some(*value)) {
                if let Some(slot) = places.get_mut(i) {
                    *slot = Some(next);
                }
                own.push(grids.get(i).copied().unwrap_or_default());
                next += 1;
            }
            list.push(Guard {
                value: *value,
                offset: place.offset,
                shape: decl.shape.clone(),
                first,
                grids: own,
                group,
            });
        }
        Ok(Some(Guards { pipeline, list, table, args, places }))
    }
    /// Tells the device where the values lie and the full grid of every launch.
    pub fn write(&self, gpu: &Gpu, plan: &Plan, sizes: &[u64], grids: &[[u32; 3]]) -> Result<()> {
        let word = |v: u64| u32::try_from(v).map_err(|_| Error::Plan(format!("{v} elements of a guard")));
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        for g in &self.list {
            let len = elements(plan, &g.shape, sizes)?;
            head.extend([word(g.offset)?, word(len)?, word(g.first as u64)?, word(g.grids.len() as u64)?]);
            tail.extend(g.grids.iter().flat_map(|i| grids.get(*i).copied().unwrap_or_default()));
        }
        head.extend(tail);
        gpu.write(&self.table, 0, bytemuck::cast_slice(&head));
        Ok(())
    }
    /// Looks at a value. Must come behind the launch that makes it and in front of those that depend on it.
    pub fn look<'p>(&'p self, gpu: &Gpu, pass: &mut wgpu::ComputePass<'p>, value: u32) {
        let Some(g) = self.list.iter().find(|g| g.value == value) else { return };
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &g.group, &[]);
        gpu.dispatch(pass, [1, 1, 1]);
    }
    /// The buffer and the offset of a step's grid.
    pub fn grid(&self, step: usize) -> Option<(&wgpu::Buffer, u64)> {
        self.places.get(step).copied().flatten().map(|k| (&self.args, k as u64 * 12))
    }
}

fn entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
