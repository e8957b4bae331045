//! Runs a rendered kernel on an adapter, through the binding convention of generated kernels.

use super::Case;
use super::blocks::{Data, words};
use super::layout::{Layout, bytes};
use frit_kernels::dtype::Scalar;
use frit_kernels::ir::{Access, TEXELS_PER_ROW, Texture};
use frit_kernels::templates::Rendered;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    has_subgroups_of_8: bool,
}

/// What a run left.
pub struct Outcome {
    /// Numbers of every argument; empty for those not written.
    pub args: Vec<Vec<f64>>,
    /// Best time of a run.
    pub best_ms: f64,
    /// Time of all runs together.
    pub total_ms: f64,
}

fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| {
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let wanted = std::env::var("FRIT_WGPU_ADAPTER").unwrap_or_default().to_lowercase();
        let adapters = pollster::block_on(instance.enumerate_adapters(backends));
        let mut suits = adapters.into_iter().filter(|a| a.get_info().name.to_lowercase().contains(&wanted));
        let adapter = suits.next()?;
        let offered = adapter.limits();
        let limits = wgpu::Limits {
            max_buffer_size: offered.max_buffer_size,
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            ..wgpu::Limits::default()
        };
        let required_features = adapter.features() & wgpu::Features::SUBGROUP;
        let asked = wgpu::DeviceDescriptor { required_features, required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&asked)).ok()?;
        let info = adapter.get_info();
        let texels = info.subgroup_min_size >= 8 && required_features.contains(wgpu::Features::SUBGROUP);
        Some(Gpu { device, queue, has_subgroups_of_8: texels })
    })
    .as_ref()
}

/// Runs the kernel `runs` times on fresh copies of its data; `None` without an adapter.
pub fn run(case: &Case, r: &Rendered, runs: usize) -> Option<Outcome> {
    let gpu = gpu().filter(|g| g.has_subgroups_of_8 || !uses_subgroups(r))?;
    let spec = &case.spec;
    let Layout { spaces, place, record, sizes, grid } = Layout::new(case, r);
    assert!(grid.iter().all(|g| (1..=65535).contains(g)), "grid {grid:?}");

    let contents: Vec<Vec<u8>> = spaces.iter().map(|s| bytes(&s.1)).chain([bytes(&record), bytes(&sizes)]).collect();
    let n = spaces.len();
    let buffers: Vec<wgpu::Buffer> = contents
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let kind = if i < n { wgpu::BufferUsages::STORAGE } else { wgpu::BufferUsages::UNIFORM };
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: c.len() as u64,
                usage: kind | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        })
        .collect();
    let textures: Vec<Option<(Texture, wgpu::TextureView)>> = (0..n + 2)
        .map(|i| match r.module.buffers.values().find(|b| b.binding == i as u32)?.access {
            Access::Texels(kind) => Some((kind, texture(gpu, &contents[i]))),
            _ => None,
        })
        .collect();
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..n + 2)
        .map(|i| wgpu::BindGroupLayoutEntry {
            binding: i as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: match (spaces.get(i), &textures[i]) {
                (_, Some((Texture::Storage, _))) => wgpu::BindingType::StorageTexture {
                    access: wgpu::StorageTextureAccess::ReadOnly,
                    format: wgpu::TextureFormat::Rgba32Uint,
                    view_dimension: wgpu::TextureViewDimension::D2,
                },
                (_, Some((Texture::Sampled, _))) => wgpu::BindingType::Texture {
                    sample_type: wgpu::TextureSampleType::Uint,
                    view_dimension: wgpu::TextureViewDimension::D2,
                    multisampled: false,
                },
                (Some((_, _, written)), None) => buffer(wgpu::BufferBindingType::Storage { read_only: !written }),
                (None, None) => buffer(wgpu::BufferBindingType::Uniform),
            },
            count: None,
        })
        .collect();
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(&spec.name),
        source: wgpu::ShaderSource::Wgsl(r.text.as_str().into()),
    });
    let group_layout =
        gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&group_layout)],
        immediate_size: 0,
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&spec.name),
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let bound: Vec<wgpu::BindGroupEntry> = buffers
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let resource = match &textures[i] {
                Some((_, view)) => wgpu::BindingResource::TextureView(view),
                None => b.as_entire_binding(),
            };
            wgpu::BindGroupEntry { binding: i as u32, resource }
        })
        .collect();
    let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &group_layout,
        entries: &bound,
    });
    let (mut best_ms, mut total_ms) = (f64::MAX, 0.0);
    for _ in 0..runs.max(1) {
        for (b, c) in buffers.iter().zip(&contents) {
            gpu.queue.write_buffer(b, 0, c);
        }
        wait(gpu, gpu.queue.submit([]));
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        }
        let start = Instant::now();
        wait(gpu, gpu.queue.submit([encoder.finish()]));
        let ms = start.elapsed().as_secs_f64() * 1e3;
        best_ms = best_ms.min(ms);
        total_ms += ms;
    }
    let left: Vec<Vec<u32>> = (0..n).map(|i| if spaces[i].2 { read(gpu, &buffers[i]) } else { Vec::new() }).collect();
    for (i, now) in left.iter().enumerate().filter(|(_, l)| !l.is_empty()) {
        let args = place.iter().zip(&case.data).zip(&spec.args).filter(|((p, _), a)| p.0 == i && a.written);
        let ranges: Vec<_> = args.map(|((p, d), a)| p.1..p.1 + words(a.storage, d).len()).collect();
        let inside = |w: usize| ranges.iter().any(|r| r.contains(&w));
        for (w, (was, now)) in spaces[i].1.iter().zip(now).enumerate() {
            assert!(
                was == now || inside(w),
                "{}: word {w} of {:?} was overwritten\n{}",
                spec.name,
                spaces[i].0,
                r.text
            );
        }
    }
    let args =
        spec.args.iter().zip(&place).zip(&case.data).map(|((a, (at, start)), d)| {
            let len = match d {
                Data::F32(v) => v.len(),
                Data::I32(v) => v.len(),
                Data::Bytes(_) => 0,
            };
            let found = left[*at].get(*start..start + len).filter(|_| a.written).unwrap_or_default();
            found
                .iter()
                .map(|w| {
                    if a.storage.scalar() == Scalar::F32 { f64::from(f32::from_bits(*w)) } else { f64::from(*w as i32) }
                })
                .collect()
        });
    Some(Outcome { args: args.collect(), best_ms, total_ms })
}

/// Whether a kernel needs subgroups of at least 8.
fn uses_subgroups(r: &Rendered) -> bool {
    r.text.contains("subgroup")
}

fn buffer(ty: wgpu::BufferBindingType) -> wgpu::BindingType {
    wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None }
}

/// The bytes as texels of 16 bytes.
fn texture(gpu: &Gpu, bytes: &[u8]) -> wgpu::TextureView {
    let row = TEXELS_PER_ROW * 16;
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(1).next_multiple_of(row as usize), 0xff);
    let size = wgpu::Extent3d {
        width: TEXELS_PER_ROW,
        height: u32::try_from(bytes.len()).unwrap() / row,
        depth_or_array_layers: 1,
    };
    let texture = gpu.device.create_texture(&wgpu::TextureDescriptor {
        label: None,
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: wgpu::TextureFormat::Rgba32Uint,
        usage: wgpu::TextureUsages::STORAGE_BINDING
            | wgpu::TextureUsages::TEXTURE_BINDING
            | wgpu::TextureUsages::COPY_DST,
        view_formats: &[],
    });
    let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(row), rows_per_image: None };
    gpu.queue.write_texture(texture.as_image_copy(), &bytes, layout, size);
    texture.create_view(&wgpu::TextureViewDescriptor::default())
}

fn wait(gpu: &Gpu, index: wgpu::SubmissionIndex) {
    let how = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(Duration::from_secs(120)) };
    gpu.device.poll(how).unwrap();
}

fn read(gpu: &Gpu, from: &wgpu::Buffer) -> Vec<u32> {
    let staging = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: from.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(from, 0, &staging, 0, from.size());
    let index = gpu.queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |r| r.unwrap());
    wait(gpu, index);
    let view = staging.get_mapped_range(..).unwrap();
    view.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}
