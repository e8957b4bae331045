//! Programs made ready to run: kernels loaded and parameters filled in once; then a run is a list of launches, or one
//! graph where the same launches come again.

use super::super::bindings::{Slot, slots};
use super::super::layout::{Home, Layout, Place, no_kernel, record};
use super::super::ports::port_places;
use super::context::{Context, Launching};
use super::driver::{Function, Graph, Launch, Parameter};
use super::memory::Memory;
use crate::{Error, Result};
use frit_kernels::dim::Dim;
use frit_kernels::target::Tier;
use frit_plan::{BufferRef, Plan, Program, Variant, sizes};
use std::collections::BTreeMap;

/// Graphs that a program keeps; the one used longest ago goes first.
const GRAPHS: usize = 8;
/// Blocks of one grid dimension.
const GRID_LIMITS: [u64; 3] = [(1 << 31) - 1, 65535, 65535];
/// Ends a step without the host; see its head.
const ADVANCE: &str = include_str!("advance.ptx");

/// A loaded kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    function: Function,
    overlaps: bool,
}

/// The kernels of a plan, loaded when a program first needs them.
#[derive(Debug, Default)]
pub(super) struct Kernels {
    loaded: BTreeMap<u32, Loaded>,
    advance: Option<Function>,
}

/// Whether a kernel waits by itself for what it reads, so that it may start early.
fn overlaps(ptx: &str) -> bool {
    ptx.contains("griddepcontrol.wait")
}

fn variant<'p>(plan: &'p Plan, kernel: u32, gpu: &Context) -> Result<&'p Variant> {
    let capability = gpu.info().capability;
    let k = plan.kernels.get(kernel as usize).ok_or_else(|| Error::Plan(format!("there is no kernel {kernel}")))?;
    k.ptx_until(capability, gpu.newest).ok_or_else(|| Error::Kernel {
        backend: "cuda",
        kernel: k.name.clone(),
        reason: format!("the plan holds no PTX of it for compute capability {}.{}", capability.0, capability.1),
    })
}

impl Kernels {
    fn load(&mut self, gpu: &mut Context, plan: &Plan, kernel: u32) -> Result<Loaded> {
        if let Some(l) = self.loaded.get(&kernel) {
            return Ok(*l);
        }
        let v = variant(plan, kernel, gpu)?;
        let name = plan.kernels.get(kernel as usize).map_or("", |k| k.name.as_str());
        let function = gpu.kernel(name, &v.text, v.dynamic_shared_bytes)?;
        let l = Loaded { function, overlaps: gpu.launching == Launching::Overlapping && overlaps(&v.text) };
        self.loaded.insert(kernel, l);
        Ok(l)
    }
    fn advance(&mut self, gpu: &mut Context) -> Result<Function> {
        match self.advance {
            Some(f) => Ok(f),
            None => Ok(*self.advance.insert(gpu.kernel("advance", ADVANCE, 0)?)),
        }
    }
}

/// Whether a run hands its token to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// The host takes over.
    Host,
    /// The step ends on the device: the size of this index grows by one, and the output of that index is logged.
    Advance { size: usize, output: usize },
}

#[derive(Debug)]
struct Recorded {
    grids: Vec<[u32; 3]>,
    ending: Ending,
    graph: Graph,
}

/// A program ready to run.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Launches whose grid is not settled.
    launches: Vec<Launch>,
    grids: Vec<[Dim; 3]>,
    pub inputs: Vec<Place>,
    pub outputs: Vec<Place>,
    graphs: Vec<Recorded>,
    /// The grids of the run before, which are worth recording when they come again.
    last: Vec<[u32; 3]>,
    /// Whether its first run already is recorded: it steps through tokens.
    steps: bool,
}

impl Prepared {
    /// Prepares program `at`.
    pub fn new(
        gpu: &mut Context,
        kernels: &mut Kernels,
        plan: &Plan,
        at: usize,
        program: &Program,
        layout: &Layout,
        memory: &Memory,
    ) -> Result<Prepared> {
        let (mut launches, mut grids) = (Vec::new(), Vec::new());
        for step in &program.steps {
            let spec = &plan.kernels.get(step.kernel as usize).ok_or_else(|| no_kernel(step))?.spec;
            let places = layout.places(plan, at, step)?;
            let loaded = kernels.load(gpu, plan, step.kernel)?;
            let v = variant(plan, step.kernel, gpu)?;
            let mut parameters = Vec::new();
            for slot in slots(spec, Tier::Cuda) {
                parameters.push(match slot {
                    Slot::Storage { arg, .. } | Slot::Texels { arg, .. } => {
                        let place = places.get(arg).ok_or_else(|| no_kernel(step))?;
                        let half = spec.args.get(arg).is_some_and(|a| a.is_half(Tier::Cuda));
                        let at = memory.get(place.home)? + if half { place.offset * 4 } else { 0 };
                        match v.matrices.iter().find(|m| usize::from(m.argument) == arg) {
                            Some(m) => Parameter::Block(gpu.tensor_map(at, m)?),
                            None if matches!(place.home, Home::Own(_) | Home::Side) => Parameter::Constant(at),
                            None => Parameter::Address(at),
                        }
                    }
                    Slot::Record => Parameter::Block(bytemuck::cast_slice(&record(&places)?).to_vec()),
                    Slot::Sizes => Parameter::Address(memory.sizes),
                });
            }
            launches.push(Launch {
                function: loaded.function,
                grid: [0; 3],
                block: v.schedule.workgroup,
                shared_bytes: v.dynamic_shared_bytes,
                overlaps: loaded.overlaps,
                parameters,
            });
            grids.push(v.grid.clone());
        }
        Ok(Prepared {
            launches,
            grids,
            inputs: port_places(plan, layout, at, &program.inputs)?,
            outputs: port_places(plan, layout, at, &program.outputs)?,
            graphs: Vec::new(),
            last: Vec::new(),
            steps: program.fixed.iter().any(|(n, v)| n == sizes::TOKENS && *v == 1),
        })
    }
    /// The grid of each launch under `sizes`; empty ones are not launched.
    pub fn grids(&self, plan: &Plan, sizes: &[u64]) -> Result<Vec<[u32; 3]>> {
        let mut out = Vec::with_capacity(self.grids.len());
        for dims in &self.grids {
            let mut grid = [0; 3];
            for ((g, d), limit) in grid.iter_mut().zip(dims).zip(GRID_LIMITS) {
                let v = plan.eval(d, sizes)?;
                let wide = || Error::Limit { what: "blocks of a grid".into(), wanted: v, limit };
                *g = u32::try_from(v).ok().filter(|_| v <= limit).ok_or_else(wide)?;
            }
            out.push(grid);
        }
        Ok(out)
    }
    /// Whether [`Prepared::run`] would replay a graph.
    fn recorded(&mut self, grids: &[[u32; 3]], ending: Ending) -> Option<Graph> {
        let i = self.graphs.iter().position(|r| r.grids == grids && r.ending == ending)?;
        let found = self.graphs.remove(i);
        let graph = found.graph;
        self.graphs.push(found);
        Some(graph)
    }
    /// Runs the program once.
    pub fn run(
        &mut self,
        gpu: &mut Context,
        kernels: &mut Kernels,
        plan: &Plan,
        memory: &Memory,
        values: &[u64],
        grids: &[[u32; 3]],
        ending: Ending,
    ) -> Result<()> {
        gpu.counters.submits += 1;
        let launched = grids.iter().filter(|g| !g.contains(&0)).count() as u64;
        gpu.counters.dispatches += launched + u64::from(ending != Ending::Host);
        if let Some(graph) = self.recorded(grids, ending) {
            return timed(gpu, |gpu| gpu.replay(graph));
        }
        let settled = |(l, g): (&Launch, &[u32; 3])| Launch { grid: *g, ..l.clone() };
        let mut launches: Vec<Launch> =
            self.launches.iter().zip(grids).filter(|(_, g)| !g.contains(&0)).map(settled).collect();
        if let Ending::Advance { size, output } = ending {
            launches.push(self.advance(gpu, kernels, plan, memory, values, size, output)?);
        }
        let again = self.last == grids;
        self.last = grids.to_vec();
        if gpu.launching == Launching::Single || (!self.steps && !again) {
            return timed(gpu, |gpu| launches.iter().try_for_each(|l| gpu.launch(l)));
        }
        if self.graphs.len() >= GRAPHS {
            let oldest = self.graphs.remove(0);
            gpu.forget(oldest.graph)?;
        }
        let graph = gpu.record(&launches)?;
        self.graphs.push(Recorded { grids: grids.to_vec(), ending, graph });
        timed(gpu, |gpu| gpu.replay(graph))
    }
    fn advance(
        &self,
        gpu: &mut Context,
        kernels: &mut Kernels,
        plan: &Plan,
        memory: &Memory,
        values: &[u64],
        size: usize,
        output: usize,
    ) -> Result<Launch> {
        let fault = || Error::Plan(format!("output {output} cannot be kept for {size}"));
        let place = self.outputs.get(output).ok_or_else(fault)?;
        let rows = plan.size_index(sizes::BATCH).and_then(|i| values.get(i)).copied().unwrap_or(1);
        if rows > memory.log_rows {
            return Err(fault());
        }
        let words = [place.offset, rows, size as u64, memory.log_rows, super::memory::LOG_LINES - 1, 0, 0, 0];
        let words = words.into_iter().map(u32::try_from).collect::<std::result::Result<Vec<_>, _>>();
        let parameters = vec![
            Parameter::Address(memory.get(place.home)?),
            Parameter::Address(memory.sizes),
            Parameter::Address(memory.log),
            Parameter::Block(bytemuck::cast_slice(&words.map_err(|_| fault())?).to_vec()),
        ];
        Ok(Launch {
            function: kernels.advance(gpu)?,
            grid: [1; 3],
            block: [32, 1, 1],
            shared_bytes: 0,
            overlaps: false,
            parameters,
        })
    }
    /// Gives the graphs back.
    pub fn forget(&mut self, gpu: &mut Context) -> Result<()> {
        self.graphs.drain(..).try_for_each(|r| gpu.forget(r.graph))
    }
}

/// What `f` asks for, between two marks.
fn timed(gpu: &mut Context, f: impl FnOnce(&mut Context) -> Result<()>) -> Result<()> {
    gpu.mark(false)?;
    f(gpu)?;
    gpu.mark(true)
}

/// Whether the output is a state of whole numbers, one for each row, which a step can keep in the log.
pub(super) fn can_be_logged(program: &Program, output: usize) -> bool {
    let Some(port) = program.outputs.get(output) else { return false };
    let per_row = port.shape.iter().all(|d| d.is(1) || *d == Dim::size(sizes::BATCH));
    matches!(port.buffer, BufferRef::State(_)) && port.storage == frit_kernels::dtype::Storage::I32 && per_row
}
