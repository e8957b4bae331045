//! The seam between plans and devices.
//!
//! A [`Backend`] binds a plan to a device: it reads the weights once and sizes its buffers for the largest run that
//! [`Extent`] allows. The [`Executor`] it gives runs programs. After the first run of a program with given bounds,
//! running it again makes no pipeline, bind group or buffer ([`Counters`] tell).

#[cfg(any(feature = "cuda", feature = "wgpu", feature = "verify"))]
pub(crate) mod bindings;
pub mod cpu;
#[cfg(any(feature = "cuda", feature = "verify"))]
pub mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "verify"))]
pub(crate) mod layout;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "verify"))]
pub(crate) mod packed;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "verify"))]
pub(crate) mod ports;
#[cfg(feature = "verify")]
pub mod simt;
pub(crate) mod weights;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::{Error, Result, Tensor};
use frit_kernels::target::Tier;
use frit_plan::{KvPart, Plan, TensorSource};
use std::sync::Arc;

/// The largest sizes an executor must serve, in the order of [`Plan::sizes`]. Buffers are laid out for these values, so
/// that no offset changes between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent(pub Vec<u64>);

/// Called while weights are loaded: bytes done, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A kind of device.
pub trait Backend {
    /// `cpu`, `wgpu`, `cuda`.
    fn name(&self) -> &'static str;
    /// The device, for people.
    fn device(&self) -> String;
    /// Whether it is real graphics hardware (what `auto` looks for).
    fn is_hardware(&self) -> bool;
    /// Binds `plan`: reads weights from `source`, makes buffers for `extent`.
    ///
    /// # Errors
    /// A weight that cannot be read, a kernel the device cannot run, too little memory.
    fn bind(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<Box<dyn Executor>>;
}

/// A plan bound to a device.
pub trait Executor: Send {
    /// Makes what a program needs besides buffers, so that its first run is as fast as the next ones. Without it the
    /// first run does so.
    ///
    /// # Errors
    /// A kernel the device cannot run, a program that does not exist.
    fn prepare(&mut self, program: usize) -> Result<()>;
    /// Lays the buffers out again for a larger extent; weights stay, cache and states are lost.
    ///
    /// # Errors
    /// As [`Backend::bind`].
    fn resize(&mut self, extent: &Extent) -> Result<()>;
    /// Writes a whole state (index into [`Plan::states`]), given densely for the current value of its shape under
    /// `sizes`.
    ///
    /// # Errors
    /// A wrong length, or a failed device.
    fn write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()>;
    /// Reads a part of a cache slot (index into [`Plan::kv_slots`]) as it lies there, with the shape it has under `sizes`.
    ///
    /// # Errors
    /// No such part, sizes beyond the extent, a failed device, or one that does not give its cache away.
    fn read_kv(&mut self, slot: usize, _part: KvPart, _sizes: &[u64]) -> Result<Vec<f32>> {
        Err(Error::Device(format!("cache slot {slot} cannot be read on this device")))
    }
    /// Writes a part of a cache slot, as [`Executor::read_kv`] gives it.
    ///
    /// # Errors
    /// As [`Executor::read_kv`]; a wrong length.
    fn write_kv(&mut self, slot: usize, _part: KvPart, _sizes: &[u64], _data: &[f32]) -> Result<()> {
        Err(Error::Device(format!("cache slot {slot} cannot be written on this device")))
    }
    /// Runs a program (index into [`Plan::programs`]) with the given sizes (in the order of [`Plan::sizes`]).
    /// `inputs[i]` is the tensor of the program's input i, already of the declared shape and type. Returns the outputs
    /// whose indices are in `wanted`, in that order; nothing else is read back.
    ///
    /// # Errors
    /// Sizes beyond the extent, or a failed device.
    fn run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>>;
    /// The kind of device, which decides which of two programs is the better one.
    fn tier(&self) -> Tier {
        Tier::Cpu
    }
    /// How many runs of a program that feeds itself this executor does best without the host in between.
    fn steps_ahead(&self) -> u64 {
        1
    }
    /// Runs a program without inputs `steps` times, with the size `advance` (index into [`Plan::sizes`]) one larger each
    /// time, and returns output `wanted` of every run in order.
    ///
    /// # Errors
    /// As [`Executor::run`], which is what it is made of.
    fn run_ahead(
        &mut self,
        program: usize,
        sizes: &[u64],
        advance: usize,
        steps: u64,
        wanted: usize,
    ) -> Result<Vec<Tensor>> {
        let mut sizes = sizes.to_vec();
        let mut out = Vec::new();
        for _ in 0..steps {
            out.extend(self.run(program, &sizes, &[], &[wanted])?);
            if let Some(v) = sizes.get_mut(advance) {
                *v += 1;
            }
        }
        Ok(out)
    }
    /// Asks for the time of runs by the device's own clock, where it has one.
    fn time_on_device(&mut self, _wanted: bool) {}
    /// Seconds that the kernels of the last [`Executor::run`] took by the device's clock, bringing inputs and taking
    /// outputs left out; none where that was not asked for or there is no such clock.
    fn device_seconds(&self) -> Option<f64> {
        None
    }
    /// What has been created and moved so far.
    fn counters(&self) -> Counters;
    /// Bytes held on the device: weights, cache, arenas.
    fn memory_bytes(&self) -> [u64; 3];
}

/// Elements of a part of a cache slot under `sizes`.
pub(crate) fn kv_len(plan: &Plan, slot: usize, part: KvPart, sizes: &[u64]) -> Result<u64> {
    let decl = plan.kv_slots.get(slot);
    let shape = decl.map(|s| if part == KvPart::K { &s.k_shape } else { &s.v_shape }).filter(|s| !s.is_empty());
    let shape = shape.ok_or_else(|| Error::Plan(format!("there is no such part of cache slot {slot}")))?;
    Ok(plan.eval(&frit_kernels::dim::product(shape), sizes)?)
}

/// What an executor did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Kernel launches.
    pub dispatches: u64,
    /// Command submissions.
    pub submits: u64,
    /// Compute passes.
    pub passes: u64,
    /// Host-to-device writes.
    pub writes: u64,
    /// Bytes read back.
    pub read_bytes: u64,
    /// Pipelines (CPU: compiled expression programs) made.
    pub pipelines: u64,
    /// Bind groups made.
    pub bind_groups: u64,
    /// Buffers (CPU: heap buffers of kernel size) made.
    pub buffers: u64,
}
