//! Runs a plan by executing the *text* of its kernels on the CPU, every access checked. Slow, and exact: what comes out
//! is what a device that follows its language would compute, and everything a kernel does wrong is listed.

use super::bindings::{SIZES_BYTES, Slot, slots, tier_of, variant};
use super::layout::{Home, Layout, Place, elements, is_symbolic, record};
use super::packed::{self, NoTensors};
use super::{Backend, Counters, Executor, Extent, Progress};
use crate::tensor::Data;
use crate::{Error, Result, Tensor};
use frit_kernels::emit;
use frit_kernels::ir::{TEXELS_PER_ROW, TILE_COLUMNS};
use frit_kernels::target::Tier;
use frit_plan::{KvPart, Placement, Plan, Port, Step, TensorSource};
use frit_simt::{Argument, Buffer, Language, Launch, Options, Region, TensorMap, Texture, Violation};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was found out about one kernel.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KernelCheck {
    /// Its name.
    pub name: String,
    /// Launches executed.
    pub launches: u64,
    /// Instructions of threads.
    pub instructions: u64,
    /// Bytes that loads and stores of buffers moved.
    pub bytes: u64,
    /// Barriers that warps passed.
    pub barriers: u64,
    /// Sectors of 32 bytes that warps read and wrote, each once an access.
    pub sectors: u64,
    /// Accesses of warps to workgroup memory.
    pub shared_accesses: u64,
    /// Further passes over workgroup memory because lanes meet in a bank.
    pub bank_conflicts: u64,
    /// Branches at which lanes of a warp parted.
    pub divergences: u64,
    /// Most registers alive at one point of the text, in words of a thread.
    pub live_registers: u32,
    /// Everything it did wrong.
    pub violations: Vec<String>,
}

/// Checks of a plan's kernels, in plan order; shared between a backend and whoever asks it afterwards.
#[derive(Clone, Debug, Default)]
pub struct Checks(Arc<Mutex<Found>>);

#[derive(Clone, Debug, Default)]
struct Found {
    kernels: Vec<KernelCheck>,
    programs: BTreeSet<usize>,
}

impl Checks {
    /// What was found so far.
    pub fn kernels(&self) -> Vec<KernelCheck> {
        self.lock().kernels.clone()
    }
    /// Whether a program ran.
    pub fn has_run(&self, program: usize) -> bool {
        self.lock().programs.contains(&program)
    }
    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn with(&self, kernel: usize, f: impl FnOnce(&mut KernelCheck)) {
        if let Some(k) = self.lock().kernels.get_mut(kernel) {
            f(k);
        }
    }
}

/// The checking interpreter as a backend.
#[derive(Clone, Debug)]
pub struct SimtBackend {
    tier: Tier,
    capability: (u32, u32),
    options: Options,
    checks: Checks,
}

impl SimtBackend {
    /// Executes the WGSL that was scheduled for `tier`, or the PTX for [`Tier::Cuda`]; warps and workgroups in an order
    /// drawn from `shuffle`.
    pub fn new(tier: Tier, shuffle: Option<u64>) -> SimtBackend {
        let options = Options { shuffle, ..Options::default() };
        SimtBackend { tier, capability: (8, 0), options, checks: Checks::default() }
    }
    /// Of PTX, executes what a GPU of this compute capability runs: (8, 0) unless told otherwise.
    #[must_use]
    pub fn with_capability(mut self, capability: (u32, u32)) -> SimtBackend {
        self.capability = capability;
        self
    }
    /// Computes what the languages leave open as a device might that is unlike this one: approximate functions somewhere
    /// within their bounds, denormal numbers flushed, products and sums fused, matrix units adding in another order.
    #[must_use]
    pub fn with_adversary(mut self, seed: u64) -> SimtBackend {
        let shuffle = self.options.shuffle.or(Some(seed));
        let (perturb, permute_mma) = (Some(seed), Some(seed));
        let options = Options { shuffle, perturb, permute_mma, flush_denormals: true, contract: true, ..self.options };
        self.options = options;
        self
    }
    /// What its executors find.
    pub fn checks(&self) -> Checks {
        self.checks.clone()
    }
}

impl Backend for SimtBackend {
    fn name(&self) -> &'static str {
        "simt"
    }
    fn device(&self) -> String {
        format!("checking interpreter, {} schedules", self.tier.name())
    }
    fn is_hardware(&self) -> bool {
        false
    }
    fn bind(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<Box<dyn Executor>> {
        let name = |k: &frit_plan::Kernel| KernelCheck { name: k.name.clone(), ..KernelCheck::default() };
        *self.checks.lock() = Found { kernels: plan.kernels.iter().map(name).collect(), programs: BTreeSet::new() };
        let layout = Layout::new(&plan, extent)?;
        bytes_of(layout.side_elems)?;
        let total = plan.weights.len() as u64;
        let mut own = Vec::new();
        for (i, w) in plan.weights.iter().enumerate() {
            own.push(match w.placement {
                Placement::Own => packed::own(&plan, w, source, extent)?,
                Placement::Side => Vec::new(),
            });
            progress(i as u64 + 1, total);
        }
        let side = bytemuck::cast_slice(&packed::side(&plan, &layout, 0, source, extent)?).to_vec();
        let tier = tier_of(&plan, self.tier);
        let e = SimtExecutor {
            tier,
            capability: self.capability,
            options: self.options.clone(),
            checks: self.checks.clone(),
            own,
            side,
            memory: Some(Memory::new(&plan, layout, extent)?),
            counters: Counters::default(),
            plan,
        };
        Ok(Box::new(e))
    }
}

/// What fills values that no kernel of a run has written: no numbers, in 16 bits and in 32.
const UNWRITTEN: u8 = 0xff;

struct Memory {
    layout: Layout,
    extent: Extent,
    arena: Vec<u8>,
    ints: Vec<u8>,
    kv: Vec<Vec<u8>>,
}

impl Memory {
    fn new(plan: &Plan, layout: Layout, extent: &Extent) -> Result<Memory> {
        // A cache begins with zeros, which prompts that run in passes read.
        let slot = |i| Ok(vec![0; bytes_of(layout.kv_elems(i))?]);
        let kv = (0..plan.kv_slots.len()).map(slot).collect::<Result<_>>()?;
        Ok(Memory {
            arena: vec![UNWRITTEN; bytes_of(layout.arena_elems)?],
            ints: vec![0; bytes_of(layout.ints_elems)?],
            kv,
            extent: extent.clone(),
            layout,
        })
    }
}

struct SimtExecutor {
    tier: Tier,
    capability: (u32, u32),
    options: Options,
    checks: Checks,
    plan: Arc<Plan>,
    own: Vec<Vec<u8>>,
    side: Vec<u8>,
    memory: Option<Memory>,
    counters: Counters,
}

fn bytes_of(elems: u64) -> Result<usize> {
    const LIMIT: u64 = 1 << 32;
    let wanted = elems.saturating_mul(4);
    if wanted > LIMIT {
        return Err(Error::Limit { what: "bytes of an interpreted buffer".into(), wanted, limit: LIMIT });
    }
    Ok(wanted as usize)
}

/// The bytes of a place.
fn held(buffer: &mut [u8], place: Place) -> Result<&mut [u8]> {
    let (at, len) = (place.offset as usize * 4, place.room as usize * 4);
    buffer.get_mut(at..at + len).ok_or_else(|| Error::Plan(format!("{place:?} is outside of its buffer")))
}

/// The bytes of a place that holds `len` elements of 16 bits.
fn halves(buffer: &mut [u8], place: Place, len: u64) -> Result<&mut [u8]> {
    let at = place.offset as usize * 4;
    let outside = || Error::Plan(format!("{len} elements of {place:?} are outside of its buffer"));
    buffer.get_mut(at..at + len as usize * 2).filter(|_| len <= place.room).ok_or_else(outside)
}

impl SimtExecutor {
    fn memory(&mut self) -> Result<&mut Memory> {
        self.memory.as_mut().ok_or_else(|| Error::Device("it has no buffers since a resize failed".into()))
    }
    fn buffer(&mut self, home: Home) -> Result<&mut Vec<u8>> {
        let lost = || Error::Plan(format!("nothing is bound to {home:?}"));
        Ok(match home {
            Home::Side => &mut self.side,
            Home::Own(w) => self.own.get_mut(w as usize).ok_or_else(lost)?,
            Home::Arena => &mut self.memory()?.arena,
            Home::Ints => &mut self.memory()?.ints,
            Home::Kv(i) => self.memory()?.kv.get_mut(i as usize).ok_or_else(lost)?,
        })
    }
    fn launch(&mut self, program: usize, step: &Step, sizes: &[u64]) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let at = step.kernel as usize;
        let kernel = plan.kernels.get(at).ok_or_else(|| super::layout::no_kernel(step))?;
        let refused = |reason: String| Error::Kernel { backend: "simt", kernel: kernel.name.clone(), reason };
        let text = match self.tier {
            Tier::Cuda => kernel.ptx(self.capability).map_or_else(|| variant(kernel, self.tier), Ok)?,
            tier => variant(kernel, tier)?,
        };
        let language = match text.tier.language() {
            emit::Language::Wgsl => Language::Wgsl,
            emit::Language::Ptx => Language::Ptx,
        };
        let places = self.memory()?.layout.places(&plan, program, step)?;
        let lens = kernel.spec.args.iter().map(|a| Ok(plan.eval(&a.len, sizes)?)).collect::<Result<Vec<u64>>>()?;
        let mut arguments = Vec::new();
        let mut homes = Vec::new();
        for slot in slots(&kernel.spec, self.tier) {
            let (argument, home) = match slot {
                Slot::Texels { arg, .. } => {
                    let place = places.get(arg).copied().ok_or_else(|| super::layout::no_kernel(step))?;
                    let name = format!("{:?}", place.home).to_lowercase();
                    let mut bytes = self.buffer(place.home)?.clone();
                    // A device holds whole texels; the last one is filled up with zeros.
                    bytes.resize(bytes.len().next_multiple_of(16), 0);
                    (Argument::Texture(Texture { name, width: TEXELS_PER_ROW, bytes }), None)
                }
                Slot::Storage { arg, written } => {
                    let place = places.get(arg).copied().ok_or_else(|| super::layout::no_kernel(step))?;
                    let name = format!("{:?}", place.home).to_lowercase();
                    let half = kernel.spec.args.get(arg).filter(|a| a.is_half(self.tier));
                    let b = match half.zip(lens.get(arg)) {
                        Some((a, len)) => {
                            let name = format!("{} in {name}", a.name);
                            let bytes = halves(self.buffer(place.home)?, place, *len)?.to_vec();
                            Buffer { name, bytes, initialised: !written, writable: written, regions: Vec::new() }
                        }
                        None => {
                            let regions = regions(&kernel.spec.args, &places, &lens, (place.home, self.tier));
                            let bytes = self.buffer(place.home)?.clone();
                            Buffer { name, bytes, initialised: true, writable: written, regions }
                        }
                    };
                    let len = half.and(lens.get(arg).copied());
                    (Argument::Buffer(b), written.then_some((place, len)))
                }
                Slot::Record => (Argument::Bytes(words(&record(&places)?)), None),
                Slot::Sizes => {
                    let mut table: Vec<u32> = sizes.iter().map(|s| u32::try_from(*s).unwrap_or(u32::MAX)).collect();
                    table.resize(SIZES_BYTES as usize / 4, 0);
                    let table = words(&table);
                    match language {
                        // a step's end moves on the sizes; no kernel of a plan writes them
                        Language::Ptx => {
                            let end = table.len() as u64;
                            let regions = vec![Region { start: 0, end, initialised: true, writable: false }];
                            (Argument::Buffer(Buffer { regions, ..Buffer::inout("sizes", table) }), None)
                        }
                        Language::Wgsl => (Argument::Bytes(table), None),
                    }
                }
            };
            arguments.push(argument);
            homes.push(home);
        }
        let mut matrices = Vec::new();
        for m in &text.matrices {
            let is_arg = |s: &Slot| matches!(s, Slot::Storage { arg, .. } if *arg == usize::from(m.argument));
            let at = slots(&kernel.spec, self.tier).iter().position(is_arg);
            let slot =
                at.and_then(|i| arguments.get_mut(i)).ok_or_else(|| refused("a matrix of no argument".into()))?;
            let argument = homes.len() + matrices.len();
            let map = TensorMap::of_halves(argument, [m.columns, m.rows], [TILE_COLUMNS, m.tile_rows]);
            matrices.push(std::mem::replace(slot, Argument::TensorMap(map)));
        }
        arguments.extend(matrices);
        let mut grid = [0u32; 3];
        for (g, d) in grid.iter_mut().zip(&text.grid) {
            let v = plan.eval(d, sizes)?;
            *g = u32::try_from(v).map_err(|_| refused(format!("a grid of {v} workgroups")))?;
        }
        if grid.contains(&0) {
            return Ok(());
        }
        let launch = Launch {
            kernel: &kernel.name,
            text: &text.text,
            language,
            entry: Some("main"),
            workgroup: text.schedule.workgroup,
            grid,
            arguments,
            dynamic_shared_bytes: text.dynamic_shared_bytes,
        };
        let outcome = frit_simt::run(&launch, &self.options).map_err(|e| refused(e.to_string()))?;
        // Arguments that are bound alone lie in buffers that others share.
        let mut written: Vec<_> = homes.into_iter().zip(outcome.buffers).filter_map(|(h, b)| Some((h?, b))).collect();
        written.sort_by_key(|((_, half), _)| half.is_some());
        for ((place, half), bytes) in written {
            let buffer = self.buffer(place.home)?;
            match half {
                Some(len) => halves(buffer, place, len)?.copy_from_slice(&bytes),
                None => *buffer = bytes,
            }
        }
        self.counters.dispatches += 1;
        let c = &outcome.counters;
        self.checks.with(at, |k| {
            k.launches += 1;
            k.instructions += c.thread.iter().sum::<u64>();
            k.bytes += c.global_read_bytes + c.global_write_bytes;
            k.barriers += c.barriers;
            k.sectors += c.global_read_sectors + c.global_write_sectors;
            k.shared_accesses += c.shared_accesses;
            k.bank_conflicts += c.bank_conflicts;
            k.divergences += c.divergences;
            k.live_registers = k.live_registers.max(c.live_registers);
            for v in outcome.violations.iter().map(Violation::to_string) {
                if !k.violations.contains(&v) {
                    k.violations.push(v);
                }
            }
        });
        Ok(())
    }
    fn shape(&self, port: &Port, sizes: &[u64]) -> Result<(Vec<u64>, usize)> {
        let shape = port.shape.iter().map(|d| Ok(self.plan.eval(d, sizes)?)).collect::<Result<Vec<_>>>()?;
        let elems = elements(&self.plan, &port.shape, sizes)?;
        Ok((shape, elems as usize))
    }
    fn port(&mut self, program: usize, port: &Port) -> Result<Place> {
        let plan = Arc::clone(&self.plan);
        self.memory()?.layout.place(&plan, program, port.buffer)
    }
}

fn words(w: &[u32]) -> Vec<u8> {
    w.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The parts of `home` that a kernel's arguments lie in. What is bound alone needs none.
fn regions(
    args: &[frit_kernels::spec::Arg],
    places: &[Place],
    lens: &[u64],
    (home, tier): (Home, Tier),
) -> Vec<Region> {
    let mut out: Vec<Region> = Vec::new();
    for ((a, p), len) in args.iter().zip(places).zip(lens) {
        if p.home != home || a.is_bound_alone(tier) {
            continue;
        }
        let (start, end) = (p.offset * 4, (p.offset + len) * 4);
        match out.iter_mut().find(|r| r.start == start && r.end == end) {
            Some(r) => {
                r.writable |= a.written;
                r.initialised |= !a.written;
            }
            // what earlier runs left in a cache or a state may be read; an output only behind its store
            None => {
                let lasting = matches!(home, Home::Kv(_) | Home::Ints);
                out.push(Region { start, end, initialised: !a.written || lasting, writable: a.written });
            }
        }
    }
    out
}

impl Executor for SimtExecutor {
    fn tier(&self) -> Tier {
        self.tier
    }
    fn prepare(&mut self, program: usize) -> Result<()> {
        match self.plan.programs.get(program) {
            Some(_) => Ok(()),
            None => Err(Error::Plan(format!("there is no program {program}"))),
        }
    }
    fn resize(&mut self, extent: &Extent) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let layout = Layout::new(&plan, extent)?;
        let fixed = bytes_of(layout.side_fixed_elems)?;
        let symbolic = packed::side(&plan, &layout, layout.side_fixed_elems, &NoTensors, extent)?;
        self.side.truncate(fixed);
        self.side.extend_from_slice(bytemuck::cast_slice(&symbolic));
        for (w, slot) in plan.weights.iter().zip(&mut self.own) {
            if w.placement == Placement::Own && is_symbolic(w) {
                *slot = packed::own(&plan, w, &NoTensors, extent)?;
            }
        }
        self.memory = Some(Memory::new(&plan, layout, extent)?);
        Ok(())
    }
    fn write_state(&mut self, state: usize, sizes: &[u64], data: &[i32]) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let memory = self.memory()?;
        let (Some(decl), Some(place)) = (plan.states.get(state), memory.layout.state(state)) else {
            return Err(Error::Plan(format!("there is no state {state}")));
        };
        let want = elements(&plan, &decl.shape, sizes)?;
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let at = place.offset as usize * 4;
        match memory.ints.get_mut(at..at + bytes.len()) {
            Some(to) if want == data.len() as u64 && want <= place.room => {
                to.copy_from_slice(&bytes);
                Ok(())
            }
            _ => Err(Error::Shape {
                what: format!("state `{}`", decl.name),
                expected: format!("{want} elements"),
                found: format!("{} elements", data.len()),
            }),
        }
    }
    fn read_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64]) -> Result<Vec<f32>> {
        let plan = Arc::clone(&self.plan);
        let place = self.memory()?.layout.cache(&plan, slot, part, sizes)?;
        let held = held(self.buffer(place.home)?, place)?;
        Ok(held.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect())
    }
    fn write_kv(&mut self, slot: usize, part: KvPart, sizes: &[u64], data: &[f32]) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let place = self.memory()?.layout.cache_for(&plan, slot, part, sizes, data)?;
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        held(self.buffer(place.home)?, place)?.copy_from_slice(&bytes);
        Ok(())
    }
    fn run(&mut self, program: usize, sizes: &[u64], inputs: &[&Tensor], wanted: &[usize]) -> Result<Vec<Tensor>> {
        let plan = Arc::clone(&self.plan);
        let decl = plan.programs.get(program).ok_or_else(|| Error::Plan(format!("there is no program {program}")))?;
        let extent = self.memory()?.extent.clone();
        for ((s, v), most) in plan.sizes.iter().zip(sizes).zip(&extent.0) {
            if v > most {
                return Err(Error::Limit { what: format!("size {}", s.name), wanted: *v, limit: *most });
            }
        }
        if inputs.len() != decl.inputs.len() {
            return Err(Error::Inputs(vec![format!("{} inputs for {}", inputs.len(), decl.inputs.len())]));
        }
        // Whoever reads what no kernel of this run has written shows in the outputs.
        self.memory()?.arena.fill(UNWRITTEN);
        for (port, t) in decl.inputs.iter().zip(inputs) {
            let (_, elems) = self.shape(port, sizes)?;
            let bytes: Vec<u8> = match t.data() {
                Data::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Data::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            let place = self.port(program, port)?;
            let at = place.offset as usize * 4;
            match self.buffer(place.home)?.get_mut(at..at + bytes.len()) {
                Some(to) if bytes.len() == elems * 4 => to.copy_from_slice(&bytes),
                _ => {
                    return Err(Error::Shape {
                        what: format!("input `{}`", port.name),
                        expected: format!("{elems} elements"),
                        found: format!("{:?}", t.shape()),
                    });
                }
            }
        }
        for step in &decl.steps {
            self.launch(program, step, sizes)?;
        }
        self.checks.lock().programs.insert(program);
        let mut out = Vec::new();
        for w in wanted {
            let port = decl.outputs.get(*w).ok_or_else(|| Error::Plan(format!("there is no output {w}")))?;
            let (shape, elems) = self.shape(port, sizes)?;
            let place = self.port(program, port)?;
            let at = place.offset as usize * 4;
            let bytes = self.buffer(place.home)?.get(at..at + elems * 4).unwrap_or_default();
            let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            let data = match port.storage.scalar() {
                frit_kernels::dtype::Scalar::F32 => Data::F32(words.map(f32::from_le_bytes).collect()),
                _ => Data::I32(words.map(i32::from_le_bytes).collect()),
            };
            out.push(Tensor::new(shape, data)?);
        }
        Ok(out)
    }
    fn counters(&self) -> Counters {
        self.counters
    }
    fn memory_bytes(&self) -> [u64; 3] {
        let Some(m) = &self.memory else { return [0; 3] };
        let weights = self.side.len() + self.own.iter().map(Vec::len).sum::<usize>();
        let cache: usize = m.kv.iter().map(Vec::len).sum();
        [weights as u64, cache as u64, (m.arena.len() + m.ints.len()) as u64]
    }
}
