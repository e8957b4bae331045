//! What a word costs by the way it is bound, and what a launch costs where all activations lie in one arena that is bound
//! for reading and writing, beside two arenas of which a launch reads one and writes the other.
//!
//! `cargo bench --workspace --bench bindings` on the first adapter, or that whose name has `FRIT_WGPU_ADAPTER` in it; the
//! forms are measured in turns within one run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};
use wgpu::{BindingType, BufferBindingType, BufferUsages, TextureFormat};

/// Workgroups of 8 invocations, and words that each invocation reads.
const GROUPS: u32 = 64;
const WORDS: u32 = 4096;
/// Words of what is read: a uniform buffer may have 64 KiB.
const LEN: u32 = 16384;
/// Launches in a row, and invocations of each.
const LAUNCHES: u32 = 300;
const WIDTH: u32 = 576;
const ROUNDS: usize = 15;

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
}

fn gpu() -> Option<Gpu> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let wanted = std::env::var("FRIT_WGPU_ADAPTER").unwrap_or_default().to_lowercase();
    let adapters = pollster::block_on(instance.enumerate_adapters(backends));
    let adapter = adapters.into_iter().find(|a| a.get_info().name.to_lowercase().contains(&wanted))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).ok()?;
    Some(Gpu { device, queue, name: adapter.get_info().name })
}

impl Gpu {
    fn buffer(&self, words: u32, usage: BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: u64::from(words) * 4,
            usage,
            mapped_at_creation: false,
        })
    }
    fn texels(&self) -> wgpu::TextureView {
        let texture = self.device.create_texture(&wgpu::TextureDescriptor {
            label: None,
            size: wgpu::Extent3d { width: 1024, height: LEN / 4096, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: TextureFormat::Rgba32Uint,
            usage: wgpu::TextureUsages::STORAGE_BINDING,
            view_formats: &[],
        });
        texture.create_view(&wgpu::TextureViewDescriptor::default())
    }
    /// A pipeline and its bindings, in order.
    fn prepare(
        &self,
        text: &str,
        bound: &[(BindingType, wgpu::BindingResource<'_>)],
    ) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
        let entries: Vec<_> = (0u32..)
            .zip(bound)
            .map(|(binding, (ty, _))| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: *ty,
                count: None,
            })
            .collect();
        let of =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&of)],
            immediate_size: 0,
        });
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let entries: Vec<_> = (0u32..)
            .zip(bound)
            .map(|(binding, (_, resource))| wgpu::BindGroupEntry { binding, resource: resource.clone() })
            .collect();
        let group =
            self.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &of, entries: &entries });
        (pipeline, group)
    }
    /// Seconds of `launches` launches in one submission, which take the pipelines in turn.
    fn seconds(&self, forms: &[(wgpu::ComputePipeline, wgpu::BindGroup)], launches: u32, groups: u32) -> f64 {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for (pipeline, group) in forms.iter().cycle().take(launches as usize) {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(groups, 1, 1);
        }
        drop(pass);
        let start = Instant::now();
        let index = self.queue.submit([encoder.finish()]);
        let how = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(Duration::from_secs(120)) };
        self.device.poll(how).unwrap();
        start.elapsed().as_secs_f64()
    }
}

fn storage(read_only: bool) -> BindingType {
    buffer(BufferBindingType::Storage { read_only })
}

fn buffer(ty: BufferBindingType) -> BindingType {
    BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None }
}

/// A kernel whose invocations add up [`WORDS`] words and store the sum; `read` is the word at place `i`, `step` how many
/// words it is.
fn sums(declared: &str, begin: &str, read: &str, step: u32) -> String {
    format!(
        "{declared}
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
    {begin}
    var sum = 0.0;
    for (var n = 0u; n < {WORDS}u; n += {step}u) {{
        let i = (n * 8u + lane * {step}u + (id.x >> 3u)) & {}u;
        sum += {read};
    }}
    out[id.x] = sum;
}}
",
        LEN - 1
    )
}

/// Medians of what each form takes, in turns; and of how many times the first takes what it does.
fn in_turns(forms: &[&dyn Fn() -> f64]) -> Vec<(f64, f64)> {
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for round in 0..=ROUNDS {
        let taken = forms.iter().map(|f| f()).collect();
        if round > 0 {
            rounds.push(taken);
        }
    }
    let median = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    (0..forms.len())
        .map(|i| (median(rounds.iter().map(|r| r[i]).collect()), median(rounds.iter().map(|r| r[0] / r[i]).collect())))
        .collect()
}

fn main() {
    let Some(gpu) = gpu() else { return println!("no adapter") };
    let both = BufferUsages::STORAGE | BufferUsages::COPY_DST;
    let arena = gpu.buffer(LEN, both);
    let (own, out) = (gpu.buffer(LEN, both), gpu.buffer(GROUPS * 8, both));
    let uniform = gpu.buffer(LEN, BufferUsages::UNIFORM | BufferUsages::COPY_DST);
    let texels = gpu.texels();
    let writes = (storage(false), out.as_entire_binding());
    let result = "@group(0) @binding(1) var<storage, read_write> out: array<f32>;";
    let vec4 = "array<vec4<f32>, 4096>";
    let words = [
        (
            "storage buffer, read_write",
            sums("@group(0) @binding(0) var<storage, read_write> out: array<f32>;", "", "out[i]", 1),
            vec![(storage(false), arena.as_entire_binding())],
        ),
        (
            "storage buffer, read",
            sums(&format!("@group(0) @binding(0) var<storage, read> x: array<f32>;\n{result}"), "", "x[i]", 1),
            vec![(storage(true), own.as_entire_binding()), writes.clone()],
        ),
        (
            "uniform buffer",
            sums(&format!("@group(0) @binding(0) var<uniform> x: {vec4};\n{result}"), "", "x[i >> 2u][i & 3u]", 1),
            vec![(buffer(BufferBindingType::Uniform), uniform.as_entire_binding()), writes.clone()],
        ),
        (
            "storage texture, four words a load",
            sums(
                &format!("@group(0) @binding(0) var x: texture_storage_2d<rgba32uint, read>;\n{result}"),
                "",
                "dot(bitcast<vec4<f32>>(textureLoad(x, vec2<u32>((i >> 2u) & 1023u, i >> 12u))), vec4<f32>(1.0))",
                4,
            ),
            vec![
                (
                    BindingType::StorageTexture {
                        access: wgpu::StorageTextureAccess::ReadOnly,
                        format: TextureFormat::Rgba32Uint,
                        view_dimension: wgpu::TextureViewDimension::D2,
                    },
                    wgpu::BindingResource::TextureView(&texels),
                ),
                writes.clone(),
            ],
        ),
        (
            "workgroup memory",
            sums(
                "var<workgroup> x: array<f32, 1024>;\n@group(0) @binding(0) var<storage, read_write> out: array<f32>;",
                "x[lane] = f32(lane);",
                "x[i & 1023u]",
                1,
            ),
            vec![writes.clone()],
        ),
        (
            "private array",
            sums(
                "@group(0) @binding(0) var<storage, read_write> out: array<f32>;",
                "var x: array<f32, 64>; x[lane] = f32(lane);",
                "x[(i >> 3u) & 63u]",
                1,
            ),
            vec![writes.clone()],
        ),
    ];
    let prepared: Vec<_> = words.iter().map(|(_, text, bound)| [gpu.prepare(text, bound)]).collect();
    let runs: Vec<_> = prepared.iter().map(|p| || gpu.seconds(p, 1, GROUPS)).collect();
    let found = in_turns(&runs.iter().map(|r| r as &dyn Fn() -> f64).collect::<Vec<_>>());
    println!("{}: a word of {LEN}, {} invocations in groups of 8, medians of {ROUNDS} turns", gpu.name, GROUPS * 8);
    println!("| bound as | ns a word and invocation | times read_write |\n|---|---|---|");
    for ((name, ..), (seconds, ratio)) in words.iter().zip(found) {
        println!("| {name} | {:.2} | {ratio:.2} |", seconds * 1e9 / f64::from(GROUPS * 8) / f64::from(WORDS));
    }

    // Each launch reads what the one in front of it wrote.
    let step = |declared: &str, read: &str, write: &str| {
        format!(
            "{declared}
@compute @workgroup_size(8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    {write} = {read} * 0.5 + 1.0;
}}
"
        )
    };
    let whole = "@group(0) @binding(0) var<storage, read_write> arena: array<f32>;";
    let one = [(0, WIDTH), (WIDTH, 0)].map(|(from, to)| {
        let text = step(whole, &format!("arena[id.x + {from}u]"), &format!("arena[id.x + {to}u]"));
        gpu.prepare(&text, &[(storage(false), arena.as_entire_binding())])
    });
    let apart = "@group(0) @binding(0) var<storage, read> x: array<f32>;\n@group(0) @binding(1) var<storage, read_write> y: array<f32>;";
    let two = [(&arena, &own), (&own, &arena)].map(|(x, y)| {
        let bound = [(storage(true), x.as_entire_binding()), (storage(false), y.as_entire_binding())];
        gpu.prepare(&step(apart, "x[id.x]", "y[id.x]"), &bound)
    });
    let run = |forms: &[(wgpu::ComputePipeline, wgpu::BindGroup)]| gpu.seconds(forms, LAUNCHES, WIDTH / 8);
    let found = in_turns(&[&|| run(&one), &|| run(&two)]);
    println!("\n{LAUNCHES} launches of {WIDTH} invocations, each reading what the one in front wrote");
    println!("| arenas | µs a launch | times one |\n|---|---|---|");
    for (name, (seconds, ratio)) in ["one, read_write", "two, one read and one read_write"].iter().zip(found) {
        println!("| {name} | {:.2} | {ratio:.2} |", seconds * 1e6 / f64::from(LAUNCHES));
    }
}
