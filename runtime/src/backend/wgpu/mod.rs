//! The wgpu backend: Vulkan, Metal and DirectX 12 devices, and software drivers of these.
//!
//! Binding a plan makes every buffer; a program's pipelines and bind groups are made when it is prepared or first run.
//! A run then writes the table of sizes (if it changed) and the inputs, records all launches in one compute pass, submits
//! once, and reads back only the outputs asked for.
//! Generated WGSL runs with the driver's and wgpu's bounds checks on.

mod device;
mod guard;
mod pipeline;
mod readback;
mod replay;
#[cfg(test)]
mod tests;
mod weights;

pub use device::{ADAPTER_VARIABLE, Selection};

use super::bindings::tier_of;
use super::layout::Layout;
use super::ports::{self, check_inputs, check_outputs, check_sizes};
use super::{Backend, Counters, Executor, Extent, Progress};
use crate::{Error, Result, Tensor};
use device::Gpu;
use frit_kernels::target::Tier;
use frit_plan::{KvPart, Placement, Plan, TensorSource};

use pipeline::Pipeline;
use readback::Staging;
use replay::{Buffers, Replay};
use std::sync::Arc;
use std::time::Duration;
use weights::DeviceWeights;

/// A wgpu device.
#[derive(Debug)]
pub struct WgpuBackend {
    gpu: Gpu,
    limit_bytes: Option<u64>,
}

impl WgpuBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoBackend`] when no adapter suits, with a list of those found.
    pub fn new(selection: &Selection) -> Result<WgpuBackend> {
        Ok(WgpuBackend { gpu: Gpu::open(selection)?, limit_bytes: None })
    }
    /// Refuses plans that need more device memory; it is counted before anything is allocated.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> WgpuBackend {
        self.limit_bytes = Some(bytes);
        self
    }
    /// How long a submission may take before the device counts as failed. The default is one minute for hardware and
    /// 15 minutes for software drivers.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> WgpuBackend {
        self.gpu.timeout = timeout;
        self
    }
    /// Which schedules the device runs.
    pub fn tier(&self) -> Tier {
        self.gpu.tier
    }
}

impl Backend for WgpuBackend {
    fn name(&self) -> &'static str {
        "wgpu"
    }
    fn device(&self) -> String {
        device::describe(&self.gpu.info)
    }
    fn is_hardware(&self) -> bool {
        self.gpu.info.device_type != wgpu::DeviceType::Cpu
    }
    fn bind(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<Box<dyn Executor>> {
        let gpu = self.gpu.share();
        gpu.check()?;
        let tier = tier_of(&plan, self.tier());
        let layout = Layout::new(&plan, extent)?;
        account(&gpu, &plan, &layout, self.limit_bytes)?;
        let pipelines = plan.kernels.iter().map(|_| None).collect();
        let weights = DeviceWeights::load(&gpu, tier, &plan, &layout, source, extent, progress)?;
        let mut executor = WgpuExecutor {
            gpu,
            tier,
            limit_bytes: self.limit_bytes,
            plan,
            pipelines,
            weights,
            bound: None,
            staging: Staging::default(),
            sizes: None,
            pending: None,
            failed: None,
        };
        executor.lay_out(layout, extent)?;
        Ok(Box::new(executor))
    }
}

/// Checks what `layout` needs against the limits of the device and the caller's.
fn account(gpu: &Gpu, plan: &Plan, layout: &Layout, limit: Option<u64>) -> Result<()> {
    for (w, bytes) in plan.weights.iter().zip(&layout.own_bytes) {
        if w.placement == Placement::Own {
            gpu.fits(&w.name, *bytes, true)?;
        }
    }
    for (i, slot) in plan.kv_slots.iter().enumerate() {
        gpu.fits(&slot.name, layout.kv_elems(i).saturating_mul(4), true)?;
    }
    let arenas = [("side", layout.side_elems), ("arena", layout.arena_elems), ("ints", layout.ints_elems)];
    for (label, elems) in arenas {
        gpu.fits(label, elems.saturating_mul(4), true)?;
    }
    let wanted = layout.bytes().into_iter().fold(0, u64::saturating_add);
    match limit {
        Some(limit) if wanted > limit => Err(Error::Limit { what: "bytes of device memory".into(), wanted, limit }),
        _ => Ok(()),
    }
}

/// What changes with the extent.
#[derive(Debug)]
struct Bound {
    extent: Extent,
    layout: Layout,
    buffers: Buffers,
    /// Programs that are ready to run.
    programs: Vec<Option<Replay>>,
}

struct WgpuExecutor {
    gpu: Gpu,
    tier: Tier,
    limit_bytes: Option<u64>,
    plan: Arc<Plan>,
    pipelines: Vec<Option<Pipeline>>,
    weights: DeviceWeights,
    bound: Option<Bound>,
    staging: Staging,
    /// The table of sizes as the device has it.
    sizes: Option<[u32; 16]>,
    /// A submission that nobody has waited for.
    pending: Option<wgpu::SubmissionIndex>,
    failed: Option<String>,
}

impl WgpuExecutor {
    fn lay_out(&mut self, layout: Layout, extent: &Extent) -> Result<()> {
        let buffers = Buffers::new(&self.gpu, &self.plan, &layout)?;
        let programs = self.plan.programs.iter().map(|_| None).collect();
        self.sizes = None;
        self.bound = Some(Bound { extent: extent.clone(), layout, buffers, programs });
        Ok(())
    }
    /// Makes what a program needs, unless it is there.
    fn try_prepare(&mut self, program: usize) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let bound = usable(&self.failed, &self.gpu, &self.bound)?;
        let Some(decl) = plan.programs.get(program) else {
            return Err(Error::Plan(format!("there is no program {program}")));
        };
        if bound.programs.get(program).is_some_and(Option::is_some) {
            return Ok(());
        }
        pipeline::build(&self.gpu, &plan, decl, self.tier, &mut self.pipelines)?;
        let replay = Replay::new(
            &self.gpu,
            &plan,
            program,
            decl,
            &bound.layout,
            &bound.extent,
            self.tier,
            &self.pipelines,
            &bound.buffers,
            &self.weights,
        )?;
        if let Some(slot) = self.bound.as_mut().and_then(|b| b.programs.get_mut(program)) {
            *slot = Some(replay);
        }
        Ok(())
    }
    /// Remembers a failure of the device: the executor is of no further use.
    fn noted<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(Error::Device(text)) = &result {
            self.failed.get_or_insert(text.clone());
        }
        result
    }
    fn try_resize(&mut self, extent: &Extent) -> Result<()> {
        usable(&self.failed, &self.gpu, &self.bound)?;
        let layout = Layout::new(&self.plan, extent)?;
        account(&self.gpu, &self.plan, &layout, self.limit_bytes)?;
        if let Some(index) = self.pending.take() {
            self.gpu.wait(index)?;
        }
        self.bound = None;
        self.gpu.tidy()?;
        self.weights.resize(&self.gpu, &self.plan, &layout, extent)?;
        self.lay_out(layout, extent)
    }
    fn try_run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>> {
        self.try_prepare(program)?;
        let plan = Arc::clone(&self.plan);
        let bound = usable(&self.failed, &self.gpu, &self.bound)?;
        let (Some(decl), Some(Some(replay))) = (plan.programs.get(program), bound.programs.get(program)) else {
            return Err(Error::Plan(format!("there is no program {program}")));
        };
        let table = check_sizes(&plan, decl, &bound.extent, sizes)?;
        let given = check_inputs(&plan, decl, &replay.inputs, sizes, inputs)?;
        let outputs = check_outputs(&plan, decl, &replay.outputs, sizes, wanted)?;
        let bytes = outputs.iter().try_fold(0u64, |n, o| n.checked_add(o.elems * 4));
        let bytes = bytes.ok_or_else(|| Error::Plan("outputs overflow the address space".into()))?;
        let grids = replay.grids(&plan, sizes, self.gpu.limits.max_compute_workgroups_per_dimension)?;
        let staging = match bytes {
            0 => None,
            n => Some(self.staging.reserve(&self.gpu, n, replay.output_bytes)?),
        };

        let writes = ports::writes(&given);
        let mut targets = Vec::new();
        for w in &writes {
            targets.push(bound.buffers.get(&self.weights, w.home)?);
        }
        let mut sources = Vec::new();
        for o in &outputs {
            sources.push(bound.buffers.get(&self.weights, o.place.home)?);
        }
        let is_new = self.sizes != Some(table);
        let mut failed = None;
        let (index, error) = self.gpu.scoped(|| {
            if is_new {
                self.gpu.write(&bound.buffers.sizes, 0, bytemuck::cast_slice(&table));
            }
            for (w, buffer) in writes.iter().zip(&targets) {
                self.gpu.write(buffer, w.offset_bytes, &w.bytes);
            }
            if let Err(e) = replay.write_guards(&self.gpu, &plan, sizes, &grids) {
                failed = Some(e);
            }
            let mut encoder = self.gpu.encoder();
            replay.record(&self.gpu, &mut encoder, &self.pipelines, &grids);
            let mut at = 0;
            for (o, buffer) in outputs.iter().zip(&sources) {
                if let Some(staging) = staging.filter(|_| o.elems > 0) {
                    encoder.copy_buffer_to_buffer(buffer, o.place.offset * 4, staging, at, o.elems * 4);
                    at += o.elems * 4;
                }
            }
            self.gpu.submit(Some(encoder))
        });
        if let Some(e) = failed {
            return Err(e);
        }
        if let Some(e) = error {
            return Err(Error::Device(format!("program `{}`: {e}", decl.name)));
        }
        let result = match staging {
            Some(staging) => {
                let read = self.gpu.read(staging, bytes, index, |b| ports::tensors(&outputs, b))?;
                self.pending = None;
                read
            }
            None => {
                let before = self.pending.replace(index);
                match before {
                    Some(i) => self.gpu.wait(i)?,
                    None => self.gpu.tidy()?,
                }
                ports::tensors(&outputs, &[])
            }
        };
        self.sizes = Some(table);
        result
    }
    fn try_read_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64]) -> Result<Vec<f32>> {
        let bound = usable(&self.failed, &self.gpu, &self.bound)?;
        let place = bound.layout.cache(&self.plan, slot, part, sizes)?;
        let (from, bytes) = (bound.buffers.get(&self.weights, place.home)?, place.room * 4);
        let staging = self.staging.reserve(&self.gpu, bytes, 0)?;
        let (index, error) = self.gpu.scoped(|| {
            let mut encoder = self.gpu.encoder();
            encoder.copy_buffer_to_buffer(from, place.offset * 4, staging, 0, bytes);
            self.gpu.submit(Some(encoder))
        });
        if let Some(e) = error {
            return Err(Error::Device(e.to_string()));
        }
        let read = self.gpu.read(staging, bytes, index, bytemuck::pod_collect_to_vec::<u8, f32>);
        self.pending = None;
        read
    }
    fn try_write_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64], data: &[f32]) -> Result<()> {
        let bound = usable(&self.failed, &self.gpu, &self.bound)?;
        let place = bound.layout.cache_for(&self.plan, slot, part, sizes, data)?;
        let to = bound.buffers.get(&self.weights, place.home)?;
        let ((), error) = self.gpu.scoped(|| self.gpu.write(to, place.offset * 4, bytemuck::cast_slice(data)));
        match error {
            Some(e) => Err(Error::Device(e.to_string())),
            None => Ok(()),
        }
    }
    fn try_write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()> {
        let bound = usable(&self.failed, &self.gpu, &self.bound)?;
        let place = ports::check_state(&self.plan, &bound.layout, state, sizes, data.len())?;
        let (ints, bytes) = (&bound.buffers.ints, bytemuck::cast_slice(data));
        let ((), error) = self.gpu.scoped(|| self.gpu.write(ints, place.offset * 4, bytes));
        match error {
            Some(e) => Err(Error::Device(e.to_string())),
            None => Ok(()),
        }
    }
}

fn usable<'a>(failed: &Option<String>, gpu: &Gpu, bound: &'a Option<Bound>) -> Result<&'a Bound> {
    if let Some(text) = failed {
        return Err(Error::Device(text.clone()));
    }
    gpu.check()?;
    bound.as_ref().ok_or_else(|| Error::Device("it has no buffers since a resize failed".into()))
}

impl Executor for WgpuExecutor {
    fn tier(&self) -> Tier {
        self.tier
    }
    fn prepare(&mut self, program: usize) -> Result<()> {
        let r = self.try_prepare(program);
        self.noted(r)
    }
    fn resize(&mut self, extent: &Extent) -> Result<()> {
        let r = self.try_resize(extent);
        self.noted(r)
    }
    fn write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()> {
        let r = self.try_write_state(state, sizes, data);
        self.noted(r)
    }
    fn read_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64]) -> Result<Vec<f32>> {
        let r = self.try_read_kv(slot, part, sizes);
        self.noted(r)
    }
    fn write_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64], data: &[f32]) -> Result<()> {
        let r = self.try_write_kv(slot, part, sizes, data);
        self.noted(r)
    }
    fn run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>> {
        let r = self.try_run(program, sizes, inputs, wanted);
        self.noted(r)
    }
    fn counters(&self) -> Counters {
        self.gpu.counters()
    }
    fn memory_bytes(&self) -> [u64; 3] {
        let Some(bound) = &self.bound else { return [0; 3] };
        let [weights, cache, arenas] = bound.layout.bytes();
        let records: u64 = bound.programs.iter().flatten().map(|p| p.record_bytes).sum();
        [weights, cache, arenas + records + self.staging.bytes()]
    }
}
