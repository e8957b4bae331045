//! The CUDA backend: PTX of a plan on an NVIDIA GPU.
//!
//! Binding a plan counts all device memory, then reserves it, and loads the weights; a program's kernels are loaded when
//! it is prepared or first run, from a cache on disk where they have been assembled before. A decode step is recorded as
//! one graph and replayed. Sizes, the position among them, lie in device memory; a step that chooses its token on the
//! device ends with a kernel that keeps the token in a log and moves on by one, so that many steps run while the host
//! waits once.
//!
//! A run of which no output is wanted comes back while its kernels still run; what they do wrong is told by the next call
//! that waits. All else of a run lies in one stream, so that nothing can overtake them.
//!
//! The backend reaches a GPU only through [`driver::Driver`]. One implementation is CUDA's driver, loaded when it is asked
//! for; another executes launches with the checking interpreter ([`CudaBackend::interpreted`]).

mod cache;
mod context;
mod driver;
#[cfg(feature = "verify")]
mod interpreted;
mod memory;
#[cfg(feature = "cuda")]
mod native;
mod program;

pub use cache::CACHE_VARIABLE;
#[cfg(feature = "verify")]
pub use interpreted::{Fault, Interpreted};

use super::layout::Layout;
use super::ports::{self, check_inputs, check_outputs, check_sizes};
use super::{Backend, Counters, Executor, Extent, Progress};
use crate::{Error, Result, Tensor};
use cache::Cache;
use context::{Context, Launching};
use driver::{DeviceInfo, Driver};
use frit_kernels::target::{Architecture, Tier};
use frit_plan::{KvPart, Plan, TensorSource};
use memory::{LOG_LINES, Memory};
use program::{Ending, Kernels, Prepared};
use std::sync::{Arc, Mutex, PoisonError};

/// Names the newest instruction set whose kernels are run, `sm_80`, `sm_90` or `sm_90a`, where a device could run newer ones.
pub const TARGET_VARIABLE: &str = "FRIT_CUDA_TARGET";
/// Names how launches reach the device: `overlapping`, as they do unless said, `graphs` or `single`.
pub const LAUNCH_VARIABLE: &str = "FRIT_CUDA_LAUNCH";

/// Steps that run without the host: enough to hide it, few enough that text still comes as a stream.
const STEPS_AHEAD: u64 = 8;

type Open = Arc<dyn Fn() -> Result<Box<dyn Driver>> + Send + Sync>;
/// A driver that was opened to look at its device, until a plan is bound: opening one takes long.
type Opened = Mutex<Option<Box<dyn Driver>>>;

/// An NVIDIA GPU.
pub struct CudaBackend {
    open: Open,
    opened: Opened,
    info: DeviceInfo,
    cache: Cache,
    limit_bytes: Option<u64>,
    is_hardware: bool,
    launching: Launching,
    newest: Architecture,
}

impl CudaBackend {
    /// Opens the first GPU.
    ///
    /// # Errors
    /// [`Error::NoBackend`] when there is no driver, no GPU, or one that is too old.
    #[cfg(feature = "cuda")]
    pub fn new() -> Result<CudaBackend> {
        let open: Open = Arc::new(|| Ok(Box::new(native::Native::open()?)));
        let wrong = |option: &str, said: &str, known: &str| {
            Err(Error::Option { option: option.into(), reason: format!("`{said}` is {known}") })
        };
        let launching = match std::env::var(LAUNCH_VARIABLE).unwrap_or_default().as_str() {
            "" | "overlapping" => Launching::Overlapping,
            "graphs" => Launching::Graphs,
            "single" => Launching::Single,
            other => return wrong(LAUNCH_VARIABLE, other, "none of overlapping, graphs, single"),
        };
        let newest = match std::env::var(TARGET_VARIABLE).unwrap_or_default().as_str() {
            "" | "sm_90a" => Architecture::Sm90a,
            "sm_90" => Architecture::Sm90,
            "sm_80" => Architecture::Sm80,
            other => return wrong(TARGET_VARIABLE, other, "none of sm_80, sm_90, sm_90a"),
        };
        let mut backend = Self::with(open, Cache::of_user(), true)?;
        backend.newest = newest;
        backend.launching = launching;
        Ok(backend)
    }
    /// A GPU that is not there: the backend's own code, its launches executed by the checking interpreter.
    ///
    /// # Errors
    /// None of its own.
    #[cfg(feature = "verify")]
    pub fn interpreted(device: &Interpreted) -> Result<CudaBackend> {
        let shared = device.clone();
        let open: Open = Arc::new(move || Ok(Box::new(shared.driver())));
        Self::with(open, Cache::at(device.cache_folder()), false)
    }
    fn with(open: Open, cache: Cache, is_hardware: bool) -> Result<CudaBackend> {
        let driver = open()?;
        let (info, opened) = (driver.info().clone(), Mutex::new(Some(driver)));
        let (launching, newest) = (Launching::default(), Architecture::Sm90a);
        Ok(CudaBackend { open, opened, info, cache, limit_bytes: None, is_hardware, launching, newest })
    }
    /// Refuses plans that need more device memory; it is counted before anything is allocated.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> CudaBackend {
        self.limit_bytes = Some(bytes);
        self
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        "cuda"
    }
    fn device(&self) -> String {
        let (major, minor) = self.info.capability;
        let driver = self.info.driver;
        format!("{}, sm_{major}{minor}, CUDA {}.{}", self.info.name, driver / 1000, driver % 1000 / 10)
    }
    fn is_hardware(&self) -> bool {
        self.is_hardware
    }
    fn bind(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<Box<dyn Executor>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let driver = opened.map_or_else(|| (self.open)(), Ok)?;
        let mut gpu = Context::new(driver, self.cache.clone(), self.limit_bytes);
        (gpu.launching, gpu.newest) = (self.launching, self.newest);
        let layout = Layout::new(&plan, extent)?;
        let memory = Memory::load(&mut gpu, &plan, &layout, source, extent, progress)?;
        gpu.wait()?;
        let programs = plan.programs.iter().map(|_| None).collect();
        let bound = Bound { extent: extent.clone(), layout, programs };
        let kernels = Kernels::default();
        Ok(Box::new(CudaExecutor { gpu, plan, memory, kernels, bound: Some(bound), sizes: None, device_seconds: None }))
    }
}

/// What changes with the extent.
struct Bound {
    extent: Extent,
    layout: Layout,
    programs: Vec<Option<Prepared>>,
}

struct CudaExecutor {
    gpu: Context,
    plan: Arc<Plan>,
    memory: Memory,
    kernels: Kernels,
    /// Absent after a resize that failed.
    bound: Option<Bound>,
    /// The table of sizes as the device has it.
    sizes: Option<[u32; 16]>,
    device_seconds: Option<f64>,
}

fn unbound() -> Error {
    Error::Device("it has no buffers since a resize failed".into())
}

impl CudaExecutor {
    /// Writes the table of sizes if the device has another one.
    fn set_sizes(&mut self, table: [u32; 16]) -> Result<()> {
        if self.sizes != Some(table) {
            self.sizes = None;
            self.gpu.write(self.memory.sizes, bytemuck::cast_slice(&table))?;
            self.sizes = Some(table);
        }
        Ok(())
    }
    /// Runs `steps` steps and reads the log once.
    fn steps(
        &mut self,
        program: usize,
        sizes: &[u64],
        advance: usize,
        steps: u64,
        wanted: usize,
    ) -> Result<Vec<Tensor>> {
        self.prepare(program)?;
        let plan = Arc::clone(&self.plan);
        let bound = self.bound.as_mut().ok_or_else(unbound)?;
        let (Some(decl), Some(Some(ready))) = (plan.programs.get(program), bound.programs.get_mut(program)) else {
            return Err(Error::Plan(format!("there is no program {program}")));
        };
        let past = sizes.get(advance).copied().unwrap_or(0);
        let mut last = sizes.to_vec();
        if let Some(v) = last.get_mut(advance) {
            *v = past + steps - 1;
        }
        check_sizes(&plan, decl, &bound.extent, &last)?;
        let mut table = check_sizes(&plan, decl, &bound.extent, sizes)?;
        let outputs = check_outputs(&plan, decl, &ready.outputs, sizes, &[wanted])?;
        self.set_sizes(table)?;
        let bound = self.bound.as_mut().ok_or_else(unbound)?;
        let Some(Some(ready)) = bound.programs.get_mut(program) else { return Err(unbound()) };
        let mut at = sizes.to_vec();
        self.sizes = None;
        let ending = Ending::Advance { size: advance, output: wanted };
        for step in 0..steps {
            if let Some(v) = at.get_mut(advance) {
                *v = past + step;
            }
            let grids = ready.grids(&plan, &at)?;
            ready.run(&mut self.gpu, &mut self.kernels, &plan, &self.memory, &at, &grids, ending)?;
        }
        if let Some(v) = table.get_mut(advance) {
            *v += steps as u32;
        }
        let line = self.memory.log_rows as usize * 4;
        let mut log = vec![0u8; line * LOG_LINES as usize];
        self.gpu.read(self.memory.log, &mut log)?;
        self.sizes = Some(table);
        let mut out = Vec::new();
        for step in 0..steps {
            let from = ((past + step) % LOG_LINES) as usize * line;
            out.extend(ports::tensors(&outputs, log.get(from..from + line).unwrap_or_default())?);
        }
        Ok(out)
    }
}

impl Executor for CudaExecutor {
    fn tier(&self) -> Tier {
        Tier::Cuda
    }
    fn prepare(&mut self, program: usize) -> Result<()> {
        self.gpu.check()?;
        let plan = Arc::clone(&self.plan);
        let bound = self.bound.as_mut().ok_or_else(unbound)?;
        let (Some(decl), Some(slot)) = (plan.programs.get(program), bound.programs.get_mut(program)) else {
            return Err(Error::Plan(format!("there is no program {program}")));
        };
        if slot.is_none() {
            let (gpu, kernels) = (&mut self.gpu, &mut self.kernels);
            *slot = Some(Prepared::new(gpu, kernels, &plan, program, decl, &bound.layout, &self.memory)?);
        }
        Ok(())
    }
    fn resize(&mut self, extent: &Extent) -> Result<()> {
        self.gpu.check()?;
        let plan = Arc::clone(&self.plan);
        let layout = Layout::new(&plan, extent)?;
        let bound = self.bound.as_ref().ok_or_else(unbound)?;
        Memory::check(&mut self.gpu, &plan, (&bound.layout, &bound.extent), (&layout, extent))?;
        self.gpu.wait()?;
        let mut old = self.bound.take().ok_or_else(unbound)?;
        for p in old.programs.iter_mut().flatten() {
            p.forget(&mut self.gpu)?;
        }
        self.memory.resize(&mut self.gpu, &plan, &old.layout, &layout, extent)?;
        let programs = plan.programs.iter().map(|_| None).collect();
        self.bound = Some(Bound { extent: extent.clone(), layout, programs });
        Ok(())
    }
    fn write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()> {
        let bound = self.bound.as_ref().ok_or_else(unbound)?;
        let place = ports::check_state(&self.plan, &bound.layout, state, sizes, data.len())?;
        let at = self.memory.get(place.home)? + place.offset * 4;
        self.gpu.write(at, bytemuck::cast_slice(data))
    }
    fn read_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64]) -> Result<Vec<f32>> {
        let bound = self.bound.as_ref().ok_or_else(unbound)?;
        let place = bound.layout.cache(&self.plan, slot, part, sizes)?;
        let mut out = vec![0.0f32; place.room as usize];
        self.gpu.read(self.memory.get(place.home)? + place.offset * 4, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
    fn write_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64], data: &[f32]) -> Result<()> {
        let bound = self.bound.as_ref().ok_or_else(unbound)?;
        let place = bound.layout.cache_for(&self.plan, slot, part, sizes, data)?;
        self.gpu.write(self.memory.get(place.home)? + place.offset * 4, bytemuck::cast_slice(data))
    }
    fn run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>> {
        self.prepare(program)?;
        let plan = Arc::clone(&self.plan);
        let bound = self.bound.as_ref().ok_or_else(unbound)?;
        let (Some(decl), Some(Some(ready))) = (plan.programs.get(program), bound.programs.get(program)) else {
            return Err(Error::Plan(format!("there is no program {program}")));
        };
        let table = check_sizes(&plan, decl, &bound.extent, sizes)?;
        let given = check_inputs(&plan, decl, &ready.inputs, sizes, inputs)?;
        let outputs = check_outputs(&plan, decl, &ready.outputs, sizes, wanted)?;
        let grids = ready.grids(&plan, sizes)?;
        self.set_sizes(table)?;
        for w in ports::writes(&given) {
            self.gpu.write(self.memory.get(w.home)? + w.offset_bytes, &w.bytes)?;
        }
        let bound = self.bound.as_mut().ok_or_else(unbound)?;
        let Some(Some(ready)) = bound.programs.get_mut(program) else { return Err(unbound()) };
        ready.run(&mut self.gpu, &mut self.kernels, &plan, &self.memory, sizes, &grids, Ending::Host)?;
        let mut out = Vec::new();
        for o in outputs {
            let mut bytes = vec![0u8; o.elems as usize * 4];
            self.gpu.read(self.memory.get(o.place.home)? + o.place.offset * 4, &mut bytes)?;
            out.extend(ports::tensors(&[o], &bytes)?);
        }
        if self.gpu.is_timed {
            self.gpu.wait()?;
            self.device_seconds = self.gpu.between_marks()?;
        }
        Ok(out)
    }
    fn time_on_device(&mut self, wanted: bool) {
        self.gpu.is_timed = wanted;
        self.device_seconds = None;
    }
    fn device_seconds(&self) -> Option<f64> {
        self.device_seconds
    }
    fn steps_ahead(&self) -> u64 {
        STEPS_AHEAD
    }
    fn run_ahead(
        &mut self,
        program: usize,
        sizes: &[u64],
        advance: usize,
        steps: u64,
        wanted: usize,
    ) -> Result<Vec<Tensor>> {
        let plan = Arc::clone(&self.plan);
        let can = plan.programs.get(program).is_some_and(|p| p.inputs.is_empty() && program::can_be_logged(p, wanted));
        let mut out = Vec::new();
        let mut at = sizes.to_vec();
        let mut left = steps;
        while left > 0 {
            let now = if can { left.min(LOG_LINES) } else { 1 };
            out.extend(match can {
                true => self.steps(program, &at, advance, now, wanted)?,
                false => self.run(program, &at, &[], &[wanted])?,
            });
            if let Some(v) = at.get_mut(advance) {
                *v += now;
            }
            left -= now;
        }
        Ok(out)
    }
    fn counters(&self) -> Counters {
        self.gpu.counters
    }
    fn memory_bytes(&self) -> [u64; 3] {
        let Some(bound) = &self.bound else { return [0; 3] };
        let [weights, cache, arenas] = bound.layout.bytes();
        [weights, cache, arenas + self.memory.extra_bytes()]
    }
}
