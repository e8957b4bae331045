//! Binding and running: buffers, launches, inputs and outputs.

mod poison;

use super::bind;
use super::count::{LaunchAccess, counted};
use super::kernel::{Code, Sizes, refused};
use super::launch::{Launch, Pool};
use super::memory::{Stored, View, shared};
use crate::backend::{Counters, Executor, Extent, Progress};
use crate::tensor::Data;
use crate::{Error, Result, Tensor};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::Space;
use frit_plan::{BufferRef, KvPart, Plan, Port, Program, TensorSource};
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments a kernel may have.
const LIMIT_ARGS: usize = 64;

/// Where a buffer of the plan lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Weight(usize),
    Float(usize),
    Int(usize),
}

/// How an argument that shares its buffer with an output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// The launch does not write its buffer.
    Plain,
    /// From a copy made before the launch.
    Copy(usize),
    /// Through the written view of that number.
    Written(usize),
}

#[derive(Debug)]
struct BoundArg {
    place: Place,
    read: Read,
    write: Option<usize>,
}

#[derive(Debug)]
struct BoundStep {
    kernel: usize,
    args: Vec<BoundArg>,
    written: Vec<Place>,
    /// The buffer and the extents of what must not be 0 everywhere for the launch to count.
    when: Option<(usize, Vec<Dim>)>,
}

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
    fn place(&self, p: &Program, r: BufferRef) -> Option<Place> {
        let plan = &*self.plan;
        Some(match r {
            BufferRef::Weight(w) => Place::Weight(((w as usize) < plan.weights.len()).then_some(w as usize)?),
            BufferRef::State(s) => Place::Int(((s as usize) < plan.states.len()).then_some(s as usize)?),
            BufferRef::Kv { slot, part } => {
                let slot = ((slot as usize) < plan.kv_slots.len()).then_some(slot as usize)?;
                Place::Float(self.slots() + 2 * slot + usize::from(part == KvPart::V))
            }
            BufferRef::Value(v) => {
                let v = p.values.get(v as usize)?;
                let slot = v.slot as usize;
                match v.storage {
                    Storage::F32 => Place::Float((slot < p.arena.sizes.len()).then_some(slot)?),
                    Storage::I32 | Storage::Bool => {
                        Place::Int(plan.states.len() + (slot < p.ints.sizes.len()).then_some(slot)?)
                    }
                    _ => return None,
                }
            }
        })
    }
    fn storage(&self, place: Place) -> (Storage, Scalar) {
        let s = match place {
            Place::Weight(w) => self.weights.get(w).map_or(Storage::F32, Stored::storage),
            Place::Float(_) => Storage::F32,
            Place::Int(_) => Storage::I32,
        };
        (s, s.scalar())
    }

    fn bind_program(&self, p: usize) -> Result<Vec<BoundStep>> {
        let plan = &*self.plan;
        let program = &plan.programs[p];
        let mut out = Vec::new();
        for step in &program.steps {
            let at =
                |reason: String| Error::Plan(format!("program `{}`, step `{}`: {reason}", program.name, step.label));
            let kernel = step.kernel as usize;
            let (Some(k), Some(code)) = (plan.kernels.get(kernel), self.codes.get(kernel)) else {
                return Err(at(format!("there is no kernel {kernel}")));
            };
            if k.spec.args.len() != step.args.len() {
                return Err(at(format!("{} arguments for {}", step.args.len(), k.spec.args.len())));
            }
            let mut places = Vec::new();
            let mut written: Vec<Place> = Vec::new();
            for (a, r) in k.spec.args.iter().zip(&step.args) {
                let place = self.place(program, *r).ok_or_else(|| at(format!("`{}` has no buffer", a.name)))?;
                let (storage, scalar) = self.storage(place);
                if storage != a.storage && (scalar == Scalar::F32 || a.storage.scalar() == Scalar::F32) {
                    return Err(at(format!("`{}` is {}, its buffer {storage}", a.name, a.storage)));
                }
                if a.written && matches!(place, Place::Weight(_)) {
                    return Err(at(format!("`{}` writes a weight", a.name)));
                }
                if a.written && !written.contains(&place) {
                    written.push(place);
                }
                places.push(place);
            }
            let (mut copies_f, mut copies_i) = (0, 0);
            let all = places.clone();
            let contracted = |n: usize, place: Place| {
                let mut writers =
                    k.spec.args.iter().zip(&all).enumerate().filter(|(_, (a, p))| a.written && **p == place);
                writers.all(|(o, _)| {
                    k.spec.aliases.iter().any(|a| usize::from(a.input.0) == n && usize::from(a.output.0) == o)
                })
            };
            let bound = k.spec.args.iter().zip(places).zip(&code.loads).enumerate().map(|(n, ((a, place), loaded))| {
                let number = written.iter().position(|w| *w == place);
                let read = match (number, place) {
                    (Some(w), _) if !a.written && contracted(n, place) => Read::Written(w),
                    (Some(_), Place::Float(_)) if *loaded && !matches!(a.space, Space::Kv(_)) => {
                        copies_f += 1;
                        Read::Copy(copies_f - 1)
                    }
                    (Some(_), Place::Int(_)) if *loaded => {
                        copies_i += 1;
                        Read::Copy(copies_i - 1)
                    }
                    (Some(n), _) => Read::Written(n),
                    (None, _) => Read::Plain,
                };
                BoundArg { place, read, write: number.filter(|_| a.written) }
            });
            let args = bound.collect();
            let when =
                match step.when.map(|v| (self.place(program, BufferRef::Value(v)), program.values.get(v as usize))) {
                    None => None,
                    Some((Some(Place::Int(b)), Some(v))) => Some((b, v.shape.clone())),
                    Some(_) => return Err(at("depends on a value that is no integer".into())),
                };
            out.push(BoundStep { kernel, args, written, when });
        }
        for port in program.inputs.iter().chain(&program.outputs) {
            let place = self.place(program, port.buffer);
            let fits = place.is_some_and(|p| {
                self.storage(p).1 == port.storage.scalar() || {
                    self.storage(p).1 != Scalar::F32 && port.storage.scalar() != Scalar::F32
                }
            });
            if !fits {
                return Err(Error::Plan(format!(
                    "program `{}`: `{}` has no buffer of its type",
                    program.name, port.name
                )));
            }
        }
        Ok(out)
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

    fn step(&mut self, program: usize, at: usize, sizes: &[u64]) -> Result<()> {
        let step = &self.steps[program][at];
        if let Some((buffer, shape)) = &step.when {
            let told = self.buffers.ints[*buffer].get(..self.elements(shape, sizes)?).unwrap_or_default();
            if told.iter().all(|v| *v == 0) {
                return Ok(());
            }
        }
        let (code, kernel) = (&self.codes[step.kernel], &self.plan.kernels[step.kernel]);
        let s = &mut self.scratch;
        code.size(sizes, &mut s.sizes)?;
        let (task, all) = code.needs(&s.sizes)?;
        let mut made = s.pool.reserve(code.buffers.0, code.buffers.1, task);
        if s.left.len() < all {
            s.left = zeros(all as u64)?;
            made += 1;
        }
        for (k, a) in step.args.iter().enumerate() {
            let len = code.length(k, &s.sizes);
            let have = match a.place {
                Place::Weight(w) => self.weights[w].view().len(),
                Place::Float(b) => self.buffers.floats[b].len(),
                Place::Int(b) => self.buffers.ints[b].len(),
            };
            if len > have {
                let name = kernel.spec.args.get(k).map_or("?", |a| a.name.as_str());
                return Err(refused(&kernel.spec.name, format!("`{name}` has {len} elements, its buffer {have}")));
            }
            match (a.read, a.place) {
                (Read::Copy(n), Place::Float(b)) => {
                    made += keep(&mut s.copies_f, n, have);
                    s.copies_f[n].clear();
                    s.copies_f[n].extend_from_slice(&self.buffers.floats[b][..len]);
                }
                (Read::Copy(n), Place::Int(b)) => {
                    made += keep(&mut s.copies_i, n, have);
                    s.copies_i[n].clear();
                    s.copies_i[n].extend_from_slice(&self.buffers.ints[b][..len]);
                }
                _ => {}
            }
        }
        self.counters.buffers += made;
        self.counters.dispatches += 1;
        s.written_f.clear();
        s.written_i.clear();
        for w in &step.written {
            match *w {
                Place::Float(b) => s.written_f.push(take(&mut self.buffers.floats[b])),
                Place::Int(b) => s.written_i.push(take(&mut self.buffers.ints[b])),
                Place::Weight(_) => {}
            }
        }
        let done = {
            let mut written: [&[std::sync::atomic::AtomicU32]; LIMIT_ARGS] = [&[]; LIMIT_ARGS];
            let (mut f, mut i) = (s.written_f.iter_mut(), s.written_i.iter_mut());
            for (slot, w) in written.iter_mut().zip(&step.written) {
                let words = match w {
                    Place::Float(_) => f.next().map(|v| bytemuck::cast_slice_mut::<f32, u32>(v)),
                    Place::Int(_) => i.next().map(|v| bytemuck::cast_slice_mut::<i32, u32>(v)),
                    Place::Weight(_) => None,
                };
                *slot = words.map_or(&[], |w| shared(w));
            }
            let mut read = [View::Shared(&[]); LIMIT_ARGS];
            let mut write = [View::Shared(&[]); LIMIT_ARGS];
            for (k, a) in step.args.iter().enumerate() {
                let view = match (a.read, a.place) {
                    (Read::Written(n), _) => View::Shared(written[n]),
                    (Read::Copy(n), Place::Int(_)) => View::I32(&s.copies_i[n]),
                    (Read::Copy(n), _) => View::F32(&s.copies_f[n]),
                    (Read::Plain, Place::Weight(w)) => self.weights[w].view(),
                    (Read::Plain, Place::Float(b)) => View::F32(&self.buffers.floats[b]),
                    (Read::Plain, Place::Int(b)) => View::I32(&self.buffers.ints[b]),
                };
                let len = code.length(k, &s.sizes);
                let none = View::Shared(&[]);
                read[k] = if len == 0 { View::Nothing } else { view.first(len).unwrap_or(none) };
                write[k] = a.write.and_then(|n| View::Shared(written[n]).first(len)).unwrap_or(none);
            }
            let n = step.args.len();
            let launch = Launch {
                ints: &s.sizes.ints,
                floats: &s.sizes.floats,
                read: &read[..n],
                write: &write[..n],
                pool: &s.pool,
            };
            let left = &mut s.left[..all];
            match &mut self.accesses {
                None => code.run(&launch, &s.sizes.extents, left, &kernel.spec),
                Some(list) => {
                    counted(&launch, list, (program, at), |l| code.run(l, &s.sizes.extents, left, &kernel.spec))
                }
            }
        };
        let (mut f, mut i) = (s.written_f.drain(..), s.written_i.drain(..));
        for w in &step.written {
            match *w {
                Place::Float(b) => self.buffers.floats[b] = f.next().unwrap_or_default(),
                Place::Int(b) => self.buffers.ints[b] = i.next().unwrap_or_default(),
                Place::Weight(_) => {}
            }
        }
        done
    }

    fn check_run(&self, program: usize, sizes: &[u64], inputs: usize, wanted: &[usize]) -> Result<()> {
        let p = self.plan.programs.get(program).ok_or_else(|| Error::Plan(format!("there is no program {program}")))?;
        if sizes.len() != self.plan.sizes.len() {
            return Err(Error::Plan(format!("{} sizes for {}", sizes.len(), self.plan.sizes.len())));
        }
        for ((s, v), limit) in self.plan.sizes.iter().zip(sizes).zip(self.largest(p)) {
            let fixed = p.fixed.iter().any(|(n, _)| *n == s.name);
            if *v > limit || (fixed && *v != limit) {
                let what = format!("the size {} of program `{}`", s.name, p.name);
                return Err(Error::Limit { what, wanted: *v, limit });
            }
        }
        if inputs != p.inputs.len() {
            return Err(Error::Inputs(vec![format!("{inputs} inputs for {}", p.inputs.len())]));
        }
        match wanted.iter().find(|w| **w >= p.outputs.len()) {
            Some(w) => Err(Error::Plan(format!("program `{}` has no output {w}", p.name))),
            None => Ok(()),
        }
    }
    fn write_input(&mut self, port: &Port, program: &Program, sizes: &[u64], t: &Tensor) -> Result<()> {
        let len = self.elements(&port.shape, sizes)?;
        let wrong = |found: String| Error::Shape {
            what: format!("input `{}`", port.name),
            expected: format!("{len} elements of {}", port.storage),
            found,
        };
        let no_buffer = || Error::Plan(format!("`{}` has no buffer for {len} elements", port.name));
        let place = self.place(program, port.buffer).ok_or_else(no_buffer)?;
        match (place, t.data()) {
            (Place::Float(b), Data::F32(v)) if v.len() == len => {
                let to = self.buffers.floats[b].get_mut(..len).ok_or_else(no_buffer)?;
                to.copy_from_slice(v);
            }
            (Place::Int(b), Data::I32(v)) if v.len() == len => {
                let to = self.buffers.ints[b].get_mut(..len).ok_or_else(no_buffer)?;
                to.copy_from_slice(v);
            }
            (_, Data::F32(v)) => return Err(wrong(format!("{} floats", v.len()))),
            (_, Data::I32(v)) => return Err(wrong(format!("{} integers", v.len()))),
        }
        self.counters.writes += 1;
        Ok(())
    }
    fn read_output(&mut self, port: &Port, program: &Program, sizes: &[u64]) -> Result<Tensor> {
        let len = self.elements(&port.shape, sizes)?;
        let shape = port.shape.iter().map(|d| self.plan.eval(d, sizes)).collect::<std::result::Result<_, _>>()?;
        let missing = || Error::Plan(format!("the output `{}` has no buffer of {len} elements", port.name));
        let data = match self.place(program, port.buffer).ok_or_else(missing)? {
            Place::Float(b) => Data::F32(self.buffers.floats[b].get(..len).ok_or_else(missing)?.to_vec()),
            Place::Int(b) => Data::I32(self.buffers.ints[b].get(..len).ok_or_else(missing)?.to_vec()),
            Place::Weight(w) => {
                let view = self.weights[w].view().first(len).ok_or_else(missing)?;
                let run = super::memory::Run { start: 0, step: 1 };
                if let View::I32(v) = view {
                    Data::I32(v.to_vec())
                } else {
                    let mut v = vec![0.0; len];
                    view.read_f32(run, &mut v);
                    Data::F32(v)
                }
            }
        };
        self.counters.read_bytes += len as u64 * 4;
        Tensor::new(shape, data)
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
