//! Choice of an adapter, the device's limits, and every call that creates something or moves bytes. Calls go through
//! [`Gpu`], which counts them and turns what wgpu reports into [`Error`]s.

use super::super::Counters;
use crate::{Error, Result};
use frit_kernels::ir::TEXELS_PER_ROW;
use frit_kernels::target::Tier;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Overrides the choice of the adapter: a part of its name, driver or API, in any case.
pub const ADAPTER_VARIABLE: &str = "FRIT_WGPU_ADAPTER";

/// Format of textures of weights.
pub(super) const TEXELS: wgpu::TextureFormat = wgpu::TextureFormat::Rgba32Uint;
/// Bytes of a row of a texture of weights.
pub(super) const ROW_BYTES: u64 = TEXELS_PER_ROW as u64 * 16;

/// Which adapter to use. [`ADAPTER_VARIABLE`] goes before `Best` and `Hardware`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// Graphics hardware when there is some, else a software driver.
    #[default]
    Best,
    /// Graphics hardware only.
    Hardware,
    /// The first adapter whose name, driver or API contains this text, in any case.
    Named(String),
}

/// Index of the adapter to use.
pub(super) fn choose(found: &[wgpu::AdapterInfo], selection: &Selection) -> Result<usize> {
    let rank = |i: &wgpu::AdapterInfo| match i.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::VirtualGpu => 1,
        wgpu::DeviceType::IntegratedGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    let suits = |i: &wgpu::AdapterInfo| match selection {
        Selection::Best => true,
        Selection::Hardware => i.device_type != wgpu::DeviceType::Cpu,
        Selection::Named(part) => describe(i).to_lowercase().contains(&part.to_lowercase()),
    };
    let best = found.iter().enumerate().filter(|(_, i)| suits(i)).min_by_key(|(_, i)| rank(i));
    best.map(|(k, _)| k).ok_or_else(|| {
        let list: Vec<String> = found.iter().map(describe).collect();
        let there = if list.is_empty() { "no adapter".into() } else { list.join("; ") };
        none(match selection {
            Selection::Best => format!("no adapter for Vulkan, Metal or DirectX 12 that computes; found: {there}"),
            Selection::Hardware => format!("no graphics hardware; found: {there}"),
            Selection::Named(part) => format!("no adapter named `{part}`; found: {there}"),
        })
    })
}

/// Name, driver and API of an adapter.
pub(super) fn describe(i: &wgpu::AdapterInfo) -> String {
    let driver = [i.driver.as_str(), i.driver_info.as_str()];
    let driver: Vec<&str> = driver.into_iter().filter(|s| !s.is_empty()).collect();
    let driver = if driver.is_empty() { String::new() } else { format!("{}, ", driver.join(" ")) };
    format!("{} ({driver}{})", i.name, i.backend)
}

/// Software drivers with subgroups of at least 8 take the schedules made for CPU cores.
pub(super) fn tier(i: &wgpu::AdapterInfo, features: wgpu::Features) -> Tier {
    let exchanges = features.contains(wgpu::Features::SUBGROUP) && i.subgroup_min_size >= 8;
    if i.device_type == wgpu::DeviceType::Cpu && exchanges { Tier::Cpu } else { Tier::Gpu }
}

fn none(reason: String) -> Error {
    Error::NoBackend { backend: "wgpu".into(), reason }
}

#[derive(Debug, Default)]
struct Tally {
    dispatches: AtomicU64,
    submits: AtomicU64,
    passes: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    pipelines: AtomicU64,
    bind_groups: AtomicU64,
    buffers: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A device with its queue. Creation, writes, launches, submissions and reads happen here and nowhere else.
#[derive(Debug)]
pub(super) struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    /// Which schedules suit it.
    pub tier: Tier,
    pub limits: wgpu::Limits,
    pub timeout: Duration,
    /// Every wait ends as if the device had not answered in time.
    #[cfg(test)]
    pub stalled: Arc<std::sync::atomic::AtomicBool>,
    lost: Arc<Mutex<Option<String>>>,
    tally: Tally,
}

impl Gpu {
    /// Opens the adapter that `selection` names.
    pub fn open(selection: &Selection) -> Result<Gpu> {
        let selection = match (selection, std::env::var(ADAPTER_VARIABLE)) {
            (Selection::Best | Selection::Hardware, Ok(part)) if !part.is_empty() => Selection::Named(part),
            (s, _) => s.clone(),
        };
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let computes =
            |a: &wgpu::Adapter| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS);
        let adapters: Vec<wgpu::Adapter> =
            pollster::block_on(instance.enumerate_adapters(backends)).into_iter().filter(computes).collect();
        let infos: Vec<wgpu::AdapterInfo> = adapters.iter().map(wgpu::Adapter::get_info).collect();
        let at = choose(&infos, &selection)?;
        let (Some(adapter), Some(info)) = (adapters.get(at), infos.get(at)) else {
            return Err(none("the adapter is gone".into()));
        };
        let offered = adapter.limits();
        let limits = wgpu::Limits {
            max_buffer_size: offered.max_buffer_size,
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            ..wgpu::Limits::default()
        };
        let tier = tier(info, adapter.features());
        let required_features = if tier == Tier::Cpu { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
        let asked = wgpu::DeviceDescriptor {
            label: Some("frit"),
            required_features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&asked)).map_err(|e| none(format!("{}: {e}", describe(info))))?;
        let lost = Arc::new(Mutex::new(None));
        let note = |prefix: &'static str| {
            let lost = Arc::clone(&lost);
            move |text: String| {
                lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(format!("{prefix}{text}"));
            }
        };
        let on_lost = note("device lost: ");
        device.set_device_lost_callback(move |_, text| on_lost(text));
        let on_error = note("");
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| on_error(e.to_string())));
        let software = info.device_type == wgpu::DeviceType::Cpu;
        Ok(Gpu {
            device,
            queue,
            info: info.clone(),
            tier,
            limits,
            timeout: Duration::from_secs(if software { 900 } else { 60 }),
            #[cfg(test)]
            stalled: Arc::default(),
            lost,
            tally: Tally::default(),
        })
    }
    /// The same device with counters of its own.
    pub fn share(&self) -> Gpu {
        Gpu {
            device: self.device.clone(),
            queue: self.queue.clone(),
            info: self.info.clone(),
            tier: self.tier,
            limits: self.limits.clone(),
            timeout: self.timeout,
            #[cfg(test)]
            stalled: Arc::clone(&self.stalled),
            lost: Arc::clone(&self.lost),
            tally: Tally::default(),
        }
    }
    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let t = &self.tally;
        Counters {
            dispatches: get(&t.dispatches),
            submits: get(&t.submits),
            passes: get(&t.passes),
            writes: get(&t.writes),
            read_bytes: get(&t.read_bytes),
            pipelines: get(&t.pipelines),
            bind_groups: get(&t.bind_groups),
            buffers: get(&t.buffers),
        }
    }
    /// Fails when the device was lost or reported an error outside every scope.
    pub fn check(&self) -> Result<()> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(text) => Err(Error::Device(text.clone())),
            None => Ok(()),
        }
    }
    /// Runs `f`; what the device reports meanwhile is the second value.
    pub fn scoped<T>(&self, f: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = f();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        (made, memory.or(validation).or(internal))
    }
    fn guarded<T>(&self, what: &str, f: impl FnOnce() -> T) -> Result<T> {
        let (made, error) = self.scoped(f);
        if let Some(e) = error {
            return Err(Error::Device(format!("{what}: {e}")));
        }
        self.check()?;
        Ok(made)
    }
    /// A zeroed buffer of at least `bytes` bytes.
    pub fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let size = bytes.max(16).div_ceil(16) * 16;
        let storage = usage.contains(wgpu::BufferUsages::STORAGE);
        self.fits(label, size, storage)?;
        let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        add(&self.tally.buffers, 1);
        self.guarded(&format!("buffer `{label}` of {size} bytes"), || self.device.create_buffer(&desc))
    }
    /// Fails when a buffer of that size cannot be made or bound.
    pub fn fits(&self, label: &str, bytes: u64, storage: bool) -> Result<()> {
        let limit = if storage {
            self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size)
        } else {
            self.limits.max_buffer_size
        };
        if bytes > limit {
            let what = format!("bytes of buffer `{label}` on {}", self.info.name);
            return Err(Error::Limit { what, wanted: bytes, limit });
        }
        Ok(())
    }
    /// A texture of `vec4<u32>` for at least `bytes` bytes, [`TEXELS_PER_ROW`] a row.
    pub fn texels(&self, label: &str, bytes: u64) -> Result<wgpu::Texture> {
        let rows = bytes.div_ceil(ROW_BYTES).max(1);
        let limit = u64::from(self.limits.max_texture_dimension_2d);
        let height = u32::try_from(rows).ok().filter(|_| rows <= limit).ok_or_else(|| Error::Limit {
            what: format!("rows of texture `{label}` on {}", self.info.name),
            wanted: rows,
            limit,
        })?;
        let desc = wgpu::TextureDescriptor {
            label: Some(label),
            size: wgpu::Extent3d { width: TEXELS_PER_ROW, height, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: TEXELS,
            usage: wgpu::TextureUsages::STORAGE_BINDING
                | wgpu::TextureUsages::TEXTURE_BINDING
                | wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        };
        add(&self.tally.buffers, 1);
        self.guarded(&format!("texture `{label}` of {rows} rows"), || self.device.create_texture(&desc))
    }
    /// Writes whole rows of a texture from row `row` on, in order before the next submission.
    pub fn write_rows(&self, texture: &wgpu::Texture, row: u32, bytes: &[u8]) {
        let rows = bytes.len() as u64 / ROW_BYTES;
        let layout =
            wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(ROW_BYTES as u32), rows_per_image: None };
        let to =
            wgpu::TexelCopyTextureInfo { origin: wgpu::Origin3d { x: 0, y: row, z: 0 }, ..texture.as_image_copy() };
        let size = wgpu::Extent3d { width: TEXELS_PER_ROW, height: rows as u32, depth_or_array_layers: 1 };
        if rows > 0 {
            add(&self.tally.writes, 1);
            self.queue.write_texture(to, bytes, layout, size);
        }
    }
    /// A bind group.
    pub fn bind_group(
        &self,
        label: &str,
        layout: &wgpu::BindGroupLayout,
        entries: &[wgpu::BindGroupEntry<'_>],
    ) -> Result<wgpu::BindGroup> {
        add(&self.tally.bind_groups, 1);
        let desc = wgpu::BindGroupDescriptor { label: Some(label), layout, entries };
        self.guarded(&format!("bindings of `{label}`"), || self.device.create_bind_group(&desc))
    }
    /// A pipeline with entry point `main` and its layout of group 0.
    pub fn pipeline(
        &self,
        kernel: &str,
        wgsl: &str,
        entries: &[wgpu::BindGroupLayoutEntry],
    ) -> Result<(wgpu::ComputePipeline, wgpu::BindGroupLayout)> {
        add(&self.tally.pipelines, 1);
        let (made, error) = self.scoped(|| {
            let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel),
                source: wgpu::ShaderSource::Wgsl(wgsl.into()),
            });
            let group =
                self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel), entries });
            let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel),
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel),
                layout: Some(&layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            (pipeline, group)
        });
        if let Some(e) = error {
            return Err(Error::Kernel { backend: "wgpu", kernel: kernel.into(), reason: e.to_string() });
        }
        self.check()?;
        Ok(made)
    }
    /// Writes bytes, in order before the next submission.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            add(&self.tally.writes, 1);
            self.queue.write_buffer(buffer, offset, bytes);
        }
    }
    /// An encoder.
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("frit") })
    }
    /// Begins a compute pass.
    pub fn pass<'a>(&self, encoder: &'a mut wgpu::CommandEncoder) -> wgpu::ComputePass<'a> {
        add(&self.tally.passes, 1);
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("frit"), timestamp_writes: None })
    }
    /// Launches the bound kernel.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, [x, y, z]: [u32; 3]) {
        add(&self.tally.dispatches, 1);
        pass.dispatch_workgroups(x, y, z);
    }
    /// Launches the bound kernel with the grid at `offset` of `args`, which the device reads when it comes to it.
    pub fn dispatch_indirect(&self, pass: &mut wgpu::ComputePass<'_>, args: &wgpu::Buffer, offset: u64) {
        add(&self.tally.dispatches, 1);
        pass.dispatch_workgroups_indirect(args, offset);
    }
    /// Submits what was recorded, and the writes before it.
    pub fn submit(&self, encoder: Option<wgpu::CommandEncoder>) -> wgpu::SubmissionIndex {
        add(&self.tally.submits, 1);
        self.queue.submit(encoder.map(wgpu::CommandEncoder::finish))
    }
    /// Waits for a submission, at most [`Gpu::timeout`].
    pub fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        self.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(self.timeout) })
    }
    /// Lets the device free what is no longer used.
    pub fn tidy(&self) -> Result<()> {
        self.poll(wgpu::PollType::Poll)
    }
    fn poll(&self, how: wgpu::PollType) -> Result<()> {
        // wgpu-core panics here when the driver reports a lost device
        let polled = catch_unwind(AssertUnwindSafe(|| self.device.poll(how)));
        self.check()?;
        #[cfg(test)]
        let polled = if self.stalled.load(Ordering::Relaxed) { Ok(Err(wgpu::PollError::Timeout)) } else { polled };
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(wgpu::PollError::Timeout)) => {
                Err(Error::Device(format!("{} gave no answer within {} s", self.info.name, self.timeout.as_secs_f32())))
            }
            Ok(Err(e)) => Err(Error::Device(e.to_string())),
            Err(_) => Err(Error::Device(format!("{} was lost while it worked", self.info.name))),
        }
    }
    /// Waits for `index`, maps the first `bytes` bytes of `staging` and hands them to `f`.
    pub fn read<T>(
        &self,
        staging: &wgpu::Buffer,
        bytes: u64,
        index: wgpu::SubmissionIndex,
        f: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        let mapped = Arc::new(Mutex::new(None));
        let told = Arc::clone(&mapped);
        staging.map_async(wgpu::MapMode::Read, 0..bytes, move |r| {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(r);
        });
        self.wait(index)?;
        let answer = mapped.lock().unwrap_or_else(PoisonError::into_inner).take();
        match answer {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(Error::Device(format!("outputs could not be mapped: {e}"))),
            None => return Err(Error::Device("outputs were not mapped when their commands were done".into())),
        }
        let out = match staging.get_mapped_range(0..bytes) {
            Ok(view) => f(&view),
            Err(e) => return Err(Error::Device(format!("outputs could not be read: {e}"))),
        };
        staging.unmap();
        add(&self.tally.read_bytes, bytes);
        Ok(out)
    }
    #[cfg(test)]
    pub fn lose(&self) {
        self.device.destroy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, device_type: wgpu::DeviceType) -> wgpu::AdapterInfo {
        let mut i = wgpu::AdapterInfo::new(device_type, wgpu::Backend::Vulkan);
        i.name = name.into();
        i
    }

    #[test]
    fn hardware_goes_before_software() {
        let found = [
            adapter("llvmpipe", wgpu::DeviceType::Cpu),
            adapter("Intel", wgpu::DeviceType::IntegratedGpu),
            adapter("NVIDIA", wgpu::DeviceType::DiscreteGpu),
        ];
        assert_eq!(choose(&found, &Selection::Best).unwrap(), 2);
        assert_eq!(choose(&found[..2], &Selection::Best).unwrap(), 1);
        assert_eq!(choose(&found, &Selection::Named("LLVM".into())).unwrap(), 0);
    }
    #[test]
    fn a_missing_adapter_is_told_with_what_there_is() {
        let found = [adapter("llvmpipe", wgpu::DeviceType::Cpu)];
        let e = choose(&found, &Selection::Hardware).unwrap_err().to_string();
        assert!(e.contains("no graphics hardware") && e.contains("llvmpipe"), "{e}");
        let e = choose(&found, &Selection::Named("radeon".into())).unwrap_err().to_string();
        assert!(e.contains("`radeon`"), "{e}");
        let e = choose(&[], &Selection::Best).unwrap_err().to_string();
        assert!(e.contains("no adapter"), "{e}");
    }
    #[test]
    fn software_with_short_subgroups_is_the_cpu_tier() {
        let mut i = adapter("llvmpipe", wgpu::DeviceType::Cpu);
        (i.subgroup_min_size, i.subgroup_max_size) = (8, 8);
        assert_eq!(tier(&i, wgpu::Features::SUBGROUP), Tier::Cpu);
        assert_eq!(tier(&i, wgpu::Features::empty()), Tier::Gpu);
        i.device_type = wgpu::DeviceType::DiscreteGpu;
        assert_eq!(tier(&i, wgpu::Features::SUBGROUP), Tier::Gpu);
        (i.device_type, i.subgroup_min_size) = (wgpu::DeviceType::Cpu, 4);
        assert_eq!(tier(&i, wgpu::Features::SUBGROUP), Tier::Gpu);
    }
}
