//! Binding and running: the buffers of a plan, and its programs on them.

mod poison;
mod ports;
mod run_step;
mod steps;

use super::bind;
use super::count::LaunchAccess;
use super::kernel::{Code, Sizes, refused};
use super::launch::Pool;
use super::memory::Stored;
use crate::backend::{Counters, Executor, Extent, Progress, kv_len};
use crate::{Error, Result, Tensor};
use frit_kernels::dim::{Dim, product};
use frit_plan::{KvPart, Plan, Program, TensorSource};
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};
use steps::{BoundStep, Place, Read};

/// Arguments a kernel may have.
const LIMIT_ARGS: usize = 64;

/// Float and integer buffers: arena slots, states, cache.
#[derive(Debug, Default)]
struct Buffers {
    floats: Vec<Vec<f32>>,
    ints: Vec<Vec<i32>>,
    cache_bytes: u64,
    arena_bytes: u64,
}

/// Memory of a launch, kept between launches.
#[derive(Debug, Default)]
struct Scratch {
    sizes: Sizes,
    left: Vec<f32>,
    copies_f: Vec<Vec<f32>>,
    copies_i: Vec<Vec<i32>>,
    written_f: Vec<Vec<f32>>,
    written_i: Vec<Vec<i32>>,
    pool: Pool,
}

/// A plan bound to the processor.
pub struct CpuExecutor {
    plan: Arc<Plan>,
    extent: Vec<u64>,
    weights: Vec<Stored>,
    codes: Vec<Code>,
    steps: Vec<Vec<BoundStep>>,
    buffers: Buffers,
    scratch: Scratch,
    counters: Counters,
    accesses: Option<Vec<LaunchAccess>>,
    poisons: bool,
    times: Option<Vec<Duration>>,
}

impl CpuExecutor {
    /// Compiles the kernels, reads the weights, makes the buffers.
    ///
    /// # Errors
    /// A weight that cannot be read, a plan that contradicts itself, too little memory.
    pub fn bind(plan: Arc<Plan>, source: &dyn TensorSource, extent: &Extent, progress: Progress<'_>) -> Result<Self> {
        check_extent(&plan, &extent.0)?;
        let mut codes = Vec::new();
        for k in &plan.kernels {
            k.spec.verify().map_err(|e| Error::Plan(e.to_string()))?;
            if k.spec.args.len() > LIMIT_ARGS {
                return Err(refused(&k.spec.name, format!("more than {LIMIT_ARGS} arguments")));
            }
            codes.push(Code::new(&k.spec)?);
        }
        let sizes = plan.weights.iter().map(|w| bind::size_bytes(&plan, w, &extent.0)).collect::<Result<Vec<_>>>()?;
        let total = sizes.iter().fold(0u64, |t, s| t.saturating_add(*s));
        let (mut weights, mut done) = (Vec::new(), 0u64);
        for (w, size) in plan.weights.iter().zip(&sizes) {
            weights.push(bind::load(&plan, w, source, &extent.0)?);
            done = done.saturating_add(*size);
            progress(done, total);
        }
        let mut out = CpuExecutor {
            extent: extent.0.clone(),
            weights,
            counters: Counters { pipelines: codes.iter().map(|c| c.programs).sum(), ..Counters::default() },
            codes,
            steps: Vec::new(),
            buffers: Buffers::default(),
            scratch: Scratch::default(),
            accesses: None,
            poisons: false,
            times: None,
            plan,
        };
        out.steps = (0..out.plan.programs.len()).map(|p| out.bind_program(p)).collect::<Result<_>>()?;
        out.lay_out()?;
        Ok(out)
    }

    /// From now on counts which elements launches touch; slow.
    pub fn count_accesses(&mut self) {
        self.accesses = Some(Vec::new());
    }
    /// What the launches since then touched, in their order.
    pub fn take_accesses(&mut self) -> Vec<LaunchAccess> {
        self.accesses.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From now on takes the time of every launch.
    pub fn time_launches(&mut self) {
        self.times = Some(Vec::new());
    }
    /// What the launches since then took, in their order.
    pub fn take_times(&mut self) -> Vec<Duration> {
        self.times.as_mut().map(take).unwrap_or_default()
    }

    fn slots(&self) -> usize {
        self.plan.programs.iter().map(|p| p.arena.sizes.len()).max().unwrap_or(0)
    }

    /// The largest sizes a program can be run with.
    fn largest(&self, p: &Program) -> Vec<u64> {
        let mut v = self.extent.clone();
        for (name, n) in &p.fixed {
            if let Some(i) = self.plan.sizes.iter().position(|s| s.name == *name) {
                v[i] = *n;
            }
        }
        for (name, n) in &p.at_most {
            if let Some(i) = self.plan.sizes.iter().position(|s| s.name == *name) {
                v[i] = v[i].min(*n);
            }
        }
        v
    }

    fn lay_out(&mut self) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let mut floats = vec![0u64; self.slots() + 2 * plan.kv_slots.len()];
        let int_slots = plan.programs.iter().map(|p| p.ints.sizes.len()).max().unwrap_or(0);
        let mut ints = vec![0u64; plan.states.len() + int_slots];
        for p in &plan.programs {
            let sizes = self.largest(p);
            for (to, d) in floats.iter_mut().zip(&p.arena.sizes) {
                *to = (*to).max(plan.eval(d, &sizes)?);
            }
            for (to, d) in ints.iter_mut().skip(plan.states.len()).zip(&p.ints.sizes) {
                *to = (*to).max(plan.eval(d, &sizes)?);
            }
        }
        for (to, s) in ints.iter_mut().zip(&plan.states) {
            *to = plan.eval(&product(&s.shape), &self.extent)?;
        }
        let first = self.slots();
        for (i, s) in plan.kv_slots.iter().enumerate() {
            for (part, shape) in [&s.k_shape, &s.v_shape].into_iter().enumerate() {
                if !shape.is_empty() {
                    floats[first + 2 * i + part] = plan.eval(&product(shape), &self.extent)?;
                }
            }
        }
        let bytes = |v: &[u64]| v.iter().fold(0u64, |t, n| t.saturating_add(n.saturating_mul(4)));
        let cache_bytes = bytes(&floats[first..]);
        let arena_bytes = bytes(&floats[..first]).saturating_add(bytes(&ints));
        self.buffers = Buffers::default();
        self.buffers = Buffers {
            floats: floats.into_iter().map(zeros).collect::<Result<_>>()?,
            ints: ints.into_iter().map(zeros).collect::<Result<_>>()?,
            cache_bytes,
            arena_bytes,
        };
        self.counters.buffers += (self.buffers.floats.len() + self.buffers.ints.len()) as u64;
        for p in 0..plan.programs.len() {
            let sizes = self.largest(&plan.programs[p]);
            self.prepare(p, &sizes)?;
        }
        Ok(())
    }

    /// Makes scratch memory large enough for a program under `sizes`.
    fn prepare(&mut self, program: usize, sizes: &[u64]) -> Result<()> {
        let mut made = 0;
        let s = &mut self.scratch;
        for step in &self.steps[program] {
            let Some(code) = self.codes.get(step.kernel) else { continue };
            code.size(sizes, &mut s.sizes)?;
            let (task, all) = code.needs(&s.sizes)?;
            made += s.pool.reserve(code.buffers.0, code.buffers.1, task);
            if s.left.len() < all {
                s.left = zeros(all as u64)?;
                made += 1;
            }
            for a in &step.args {
                match (a.read, a.place) {
                    (Read::Copy(n), Place::Float(b)) => made += keep(&mut s.copies_f, n, self.buffers.floats[b].len()),
                    (Read::Copy(n), Place::Int(b)) => made += keep(&mut s.copies_i, n, self.buffers.ints[b].len()),
                    _ => {}
                }
            }
        }
        self.counters.buffers += made;
        Ok(())
    }

    /// A part of a cache slot under `sizes`.
    fn cache(&mut self, slot: usize, part: KvPart, sizes: &[u64]) -> Result<&mut [f32]> {
        let len = usize::try_from(kv_len(&self.plan, slot, part, sizes)?).unwrap_or(usize::MAX);
        let at = self.slots() + 2 * slot + usize::from(part == KvPart::V);
        let held = self.buffers.floats.get_mut(at).and_then(|b| b.get_mut(..len));
        held.ok_or_else(|| Error::Plan(format!("cache slot {slot} has no room for {len} elements")))
    }

    fn elements(&self, shape: &[Dim], sizes: &[u64]) -> Result<usize> {
        let mut len = 1u64;
        for d in shape {
            let e = self.plan.eval(d, sizes)?;
            len = len.checked_mul(e).ok_or_else(|| Error::Plan("a shape overflows".into()))?;
        }
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }
}

impl Executor for CpuExecutor {
    fn prepare(&mut self, program: usize) -> Result<()> {
        match self.steps.get(program) {
            Some(_) => Ok(()),
            None => Err(Error::Plan(format!("there is no program {program}"))),
        }
    }
    fn resize(&mut self, extent: &Extent) -> Result<()> {
        check_extent(&self.plan, &extent.0)?;
        let plan = Arc::clone(&self.plan);
        for (w, stored) in plan.weights.iter().zip(&mut self.weights) {
            if bind::follows_sizes(w) {
                *stored = bind::load(&plan, w, &Nothing, &extent.0)?;
            }
        }
        self.extent.clone_from(&extent.0);
        self.lay_out()
    }
    fn write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let decl = plan.states.get(state).ok_or_else(|| Error::Plan(format!("there is no state {state}")))?;
        let len = self.elements(&decl.shape, sizes)?;
        let to = self.buffers.ints.get_mut(state).and_then(|b| b.get_mut(..len)).filter(|to| to.len() == data.len());
        let wrong = || Error::Shape {
            what: format!("state `{}`", decl.name),
            expected: format!("{len} elements"),
            found: format!("{} elements", data.len()),
        };
        to.ok_or_else(wrong)?.copy_from_slice(data);
        self.counters.writes += 1;
        Ok(())
    }
    fn read_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64]) -> Result<Vec<f32>> {
        Ok(self.cache(slot, part, sizes)?.to_vec())
    }
    fn write_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64], data: &[f32]) -> Result<()> {
        let to = self.cache(slot, part, sizes)?;
        let wrong = Error::Shape {
            what: format!("cache slot {slot}"),
            expected: format!("{} elements", to.len()),
            found: format!("{} elements", data.len()),
        };
        if to.len() != data.len() {
            return Err(wrong);
        }
        to.copy_from_slice(data);
        Ok(())
    }
    fn run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>> {
        self.check_run(program, sizes, inputs.len(), wanted)?;
        let plan = Arc::clone(&self.plan);
        let p = &plan.programs[program];
        self.poison(program, None);
        for (port, t) in p.inputs.iter().zip(inputs) {
            self.write_input(port, p, sizes, t)?;
        }
        rayon::scope(|_| {
            (0..self.steps[program].len()).try_for_each(|at| {
                let start = Instant::now();
                self.step(program, at, sizes)?;
                if let Some(times) = &mut self.times {
                    times.push(start.elapsed());
                }
                self.poison(program, Some(at));
                Ok::<(), Error>(())
            })
        })?;
        wanted.iter().map(|w| self.read_output(&p.outputs[*w], p, sizes)).collect()
    }
    fn counters(&self) -> Counters {
        self.counters
    }
    fn memory_bytes(&self) -> [u64; 3] {
        let weights = self.weights.iter().map(Stored::size_bytes).sum();
        [weights, self.buffers.cache_bytes, self.buffers.arena_bytes]
    }
}

/// A source for weights that need none.
struct Nothing;
impl TensorSource for Nothing {
    fn read(
        &self,
        tensor: &str,
    ) -> std::result::Result<frit_plan::TensorData, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("`{tensor}` depends on the sizes, but is stored").into())
    }
}

fn check_extent(plan: &Plan, extent: &[u64]) -> Result<()> {
    if extent.len() == plan.sizes.len() {
        return Ok(());
    }
    Err(Error::Plan(format!("an extent of {} sizes for {}", extent.len(), plan.sizes.len())))
}

/// `n` zeros, or an error where there is no memory for them.
fn zeros<T: Clone + bytemuck::Zeroable>(n: u64) -> Result<Vec<T>> {
    let short = || Error::Limit { what: "elements of a buffer".into(), wanted: n, limit: isize::MAX as u64 / 4 };
    let len = usize::try_from(n).map_err(|_| short())?;
    let mut probe: Vec<T> = Vec::new();
    probe.try_reserve_exact(len).map_err(|_| short())?;
    drop(probe);
    Ok(vec![T::zeroed(); len])
}

/// Makes room for `len` elements in buffer `n`; 1 when it had to grow.
fn keep<T>(list: &mut Vec<Vec<T>>, n: usize, len: usize) -> u64 {
    if list.len() <= n {
        list.resize_with(n + 1, Vec::new);
    }
    let grows = list[n].capacity() < len;
    if grows {
        let have = list[n].len();
        list[n].reserve_exact(len.saturating_sub(have));
    }
    u64::from(grows)
}
