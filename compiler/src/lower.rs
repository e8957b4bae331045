//! Regions, kernels and memory to a [`Plan`].

use crate::error::{Error, Result};
use crate::fusion::outline::{Built, Outline};
use crate::fusion::spec_builder::size_bounds;
use crate::fusion::{self, FusionOptions, Operand, PackedWeight, Partition, Refused, anchors, report};
use crate::graph::patch::Fuel;
use crate::graph::{Graph, KvSlot, Op, StateId, Tables, ValueId, WeightData};
use crate::memory::{self, Lifetime};
use crate::model::{Model, ModelGraph};
use crate::passes;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::KernelSpec;
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates;
use frit_plan::{
    BufferRef, FusionReport, InputFill, Kernel, KvSlotDecl, PLAN_VERSION, Part, PhaseReport, Placement, Plan, Port,
    Program, Schedule, StateDecl, Step, ValueDecl, Variant, WeightDecl, WeightSource, sizes,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How to compile.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    /// What fusion may do.
    pub fusion: FusionOptions,
    /// Kernel texts are made for these; the CPU backend needs none.
    pub targets: Vec<Capabilities>,
    /// Fuse equal layers once; the plan is the same without, only later.
    pub outline: bool,
    /// Passes left out, by name.
    pub skip_passes: Vec<String>,
    /// How many rewrites are applied at most, over all programs in their order.
    pub rewrite_fuel: Option<u64>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            fusion: FusionOptions::default(),
            targets: vec![Capabilities::webgpu(Tier::Cpu), Capabilities::webgpu(Tier::Gpu), Capabilities::cuda()],
            outline: true,
            skip_passes: Vec::new(),
            rewrite_fuel: None,
        }
    }
}

/// Model in, plan out.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    options: CompileOptions,
}

struct Lowering<'a> {
    model: &'a Model,
    options: &'a CompileOptions,
    weights: Vec<WeightDecl>,
    weight_ids: HashMap<PackedWeight, u32>,
    kernels: Vec<Kernel>,
    kernel_ids: HashMap<blake3::Hash, u32>,
    names: HashMap<String, u32>,
    fuel: Option<u64>,
    rewrites: BTreeMap<String, u64>,
}

impl Compiler {
    /// A compiler with these options.
    pub fn new(options: CompileOptions) -> Self {
        Compiler { options }
    }
    /// Compiles every graph of a model. No weight is read.
    ///
    /// # Errors
    /// A graph that breaks the IR's rules, or an operation that no kernel can express.
    pub fn compile(&self, model: &Model) -> Result<Plan> {
        let mut l = Lowering {
            model,
            options: &self.options,
            weights: Vec::new(),
            weight_ids: HashMap::new(),
            kernels: Vec::new(),
            kernel_ids: HashMap::new(),
            names: HashMap::new(),
            fuel: self.options.rewrite_fuel,
            rewrites: BTreeMap::new(),
        };
        let (mut programs, mut phases) = (Vec::new(), Vec::new());
        for g in &model.graphs {
            let (program, phase) = l.program(g)?;
            programs.push(program);
            phases.push(phase);
        }
        let tables = &model.tables;
        let batch_by = |slot: &KvSlot, dim: u64| match dim {
            0 => Vec::new(),
            d => vec![Dim::size(sizes::BATCH), slot.heads.into(), slot.len.clone(), d.into()],
        };
        Ok(Plan {
            version: PLAN_VERSION,
            compiler: env!("CARGO_PKG_VERSION").into(),
            model: model.info.clone(),
            sizes: tables.sizes.clone(),
            weights: l.weights,
            kv_slots: tables
                .kv_slots
                .iter()
                .map(|s| KvSlotDecl {
                    name: s.name.clone(),
                    k_shape: batch_by(s, s.k_dim),
                    v_shape: batch_by(s, s.v_dim),
                })
                .collect(),
            states: tables
                .states
                .iter()
                .map(|s| StateDecl { name: s.name.clone(), storage: s.storage, shape: s.shape.clone() })
                .collect(),
            kernels: l.kernels,
            programs,
            report: FusionReport { phases, rewrites: l.rewrites },
        })
    }
}

fn storage(s: Scalar) -> Storage {
    match s {
        Scalar::F32 => Storage::F32,
        Scalar::I32 => Storage::I32,
        Scalar::Bool => Storage::Bool,
    }
}

/// Outputs that name a source get a copy of their own.
fn copy_source_outputs(graph: &mut Graph) {
    for i in 0..graph.outputs.len() {
        let v = graph.outputs[i].value;
        let duplicate = graph.outputs.iter().take(i).any(|o| o.value == v);
        if graph.op(v).is_source() || matches!(graph.op(v), Op::KvAppend { .. } | Op::KvRead { .. }) || duplicate {
            let ty = graph.ty(v).clone();
            let copy = graph.push(Op::Reshape(ty.shape.clone()), &[v], ty, "output");
            graph.outputs[i].value = copy;
        }
    }
}

impl Lowering<'_> {
    fn program(&mut self, g: &ModelGraph) -> Result<(Program, PhaseReport)> {
        let tables = &self.model.tables;
        let mut graph = g.graph.clone();
        self.passes(&mut graph, g)?;
        copy_source_outputs(&mut graph);
        let (built, refused, instances) = self.regions(&graph, g)?;
        let steps_last = (built.len() as u32).saturating_sub(1);
        let mut live: HashMap<ValueId, (u32, u32)> = HashMap::new();
        let mut values: Vec<ValueId> = Vec::new();
        let mut touch = |v: ValueId, at: u32| {
            let range = live.entry(v).or_insert_with(|| {
                values.push(v);
                (at, at)
            });
            *range = (range.0.min(at), range.1.max(at));
        };
        for i in &graph.inputs {
            touch(i.value, 0);
        }
        for (at, b) in built.iter().enumerate() {
            for o in &b.operands {
                if let Operand::Value(v) = o {
                    touch(*v, at as u32);
                }
            }
        }
        for o in &graph.outputs {
            touch(o.value, steps_last);
        }
        let state_of: HashMap<ValueId, StateId> =
            graph.outputs.iter().filter_map(|o| Some((o.value, o.state?))).collect();
        values.retain(|v| !state_of.contains_key(v));
        let bounds = size_bounds(tables);
        let mut decls: Vec<ValueDecl> = Vec::new();
        let mut index: HashMap<ValueId, u32> = HashMap::new();
        let mut layouts = Vec::new();
        for float in [true, false] {
            let own: Vec<ValueId> =
                values.iter().copied().filter(|v| (graph.ty(*v).scalar == Scalar::F32) == float).collect();
            let lifetimes: Vec<Lifetime> = own
                .iter()
                .map(|v| Lifetime { size: graph.ty(*v).elems(), live: live.get(v).copied().unwrap_or((0, steps_last)) })
                .collect();
            let (slots, layout) = memory::assign(&lifetimes, &bounds);
            for ((v, life), slot) in own.iter().zip(&lifetimes).zip(slots) {
                index.insert(*v, decls.len() as u32);
                let ty = graph.ty(*v);
                let name = format!("v{}_{}", decls.len(), graph.op(*v).name());
                decls.push(ValueDecl {
                    name,
                    storage: storage(ty.scalar),
                    shape: ty.shape.clone(),
                    slot,
                    live: life.live,
                });
            }
            layouts.push(layout);
        }
        let buffer = |v: ValueId| match (state_of.get(&v), index.get(&v)) {
            (Some(s), _) => Ok(BufferRef::State(s.0)),
            (_, Some(i)) => Ok(BufferRef::Value(*i)),
            _ => Err(Error::Internal { pass: "lower", fault: format!("{} has no buffer", graph.op(v).name()) }),
        };
        let nothing_stored = HashSet::new();
        let mut steps = Vec::with_capacity(built.len());
        for b in &built {
            let mut args = Vec::with_capacity(b.operands.len());
            for o in &b.operands {
                args.push(match o {
                    Operand::Value(v) => buffer(*v)?,
                    Operand::State(s) => BufferRef::State(s.0),
                    Operand::Kv(slot, part) => BufferRef::Kv { slot: slot.0, part: *part },
                    Operand::Weight(w) => {
                        BufferRef::Weight(weight(&mut self.weights, &mut self.weight_ids, tables, w)?)
                    }
                });
            }
            let site = anchors::Site { graph: &graph, tables, stored: &nothing_stored, region: &b.region };
            steps.push(Step { kernel: b.kernel, args, label: anchors::describe(&site) });
        }
        let port = |name: &str, v: ValueId, fill: InputFill| {
            let ty = graph.ty(v);
            Ok::<_, Error>(Port {
                name: name.into(),
                storage: storage(ty.scalar),
                shape: ty.shape.clone(),
                buffer: buffer(v)?,
                fill,
            })
        };
        let inputs = graph.inputs.iter().map(|i| port(&i.name, i.value, i.fill)).collect::<Result<Vec<_>>>()?;
        let outputs =
            graph.outputs.iter().map(|o| port(&o.name, o.value, InputFill::Required)).collect::<Result<Vec<_>>>()?;
        let named: Vec<(&fusion::Region, &KernelSpec, &str)> = built
            .iter()
            .filter_map(|b| self.kernels.get(b.kernel as usize).map(|k| (&b.region, &k.spec, k.name.as_str())))
            .collect();
        let phase = PhaseReport { instances, ..report::phase(&g.name, &graph, &refused, &named) };
        let ints = layouts.pop().unwrap_or_default();
        let arena = layouts.pop().unwrap_or_default();
        let program = Program {
            name: g.name.clone(),
            fixed: g.fixed.clone(),
            at_most: g.at_most.clone(),
            limits: g.limits.clone(),
            inputs,
            outputs,
            values: decls,
            arena,
            ints,
            steps,
        };
        Ok((program, phase))
    }

    fn passes(&mut self, graph: &mut Graph, g: &ModelGraph) -> Result<()> {
        let mut manager = passes::PassManager::standard(&g.fixed);
        manager.options.skip.clone_from(&self.options.skip_passes);
        if let Some(left) = self.fuel {
            manager.options.fuel = Fuel::limited(left);
        }
        let log = manager.run(graph, &self.model.tables)?;
        for pass in &log.passes {
            for (rule, n) in &pass.rules {
                *self.rewrites.entry((*rule).into()).or_default() += n;
            }
        }
        self.fuel = self.fuel.map(|f| f.saturating_sub(log.total()));
        Ok(())
    }
    /// Regions of a graph in launch order, with their kernels. Where layers repeat, four of them are fused and the others
    /// follow from these.
    fn regions(&mut self, graph: &Graph, g: &ModelGraph) -> Result<(Vec<Built>, Vec<Refused>, u32)> {
        if self.options.outline
            && let Some(outline) = Outline::find(graph, &self.model.tables)
            && let Some(short) = outline.shrink(graph)
        {
            let (part, built, specs) = self.fused(&short, g)?;
            if let Some((built, refused)) = outline.stretch(graph, &part, &built) {
                return Ok((self.registered(built, &specs)?, refused, outline.instances()));
            }
        }
        let (part, built, specs) = self.fused(graph, g)?;
        Ok((self.registered(built, &specs)?, part.refused, 0))
    }
    /// The partition of a graph, its regions, and their distinct kernels, which [`Built::kernel`] counts.
    fn fused(&self, graph: &Graph, g: &ModelGraph) -> Result<(Partition, Vec<Built>, Vec<KernelSpec>)> {
        let tables = &self.model.tables;
        let part = fusion::partition(graph, tables, &g.at_most, &self.options.fusion);
        let (mut built, mut specs) = (Vec::with_capacity(part.regions.len()), Vec::new());
        let mut known: HashMap<blake3::Hash, u32> = HashMap::new();
        for region in &part.regions {
            let site = anchors::Site { graph, tables, stored: &part.stored, region };
            let (spec, operands) = anchors::build(&site).map_err(|fault| Error::Internal {
                pass: "fusion",
                fault: format!("{}: {fault}", anchors::describe(&site)),
            })?;
            let kernel = *known.entry(spec.hash()).or_insert_with(|| {
                specs.push(spec);
                specs.len() as u32 - 1
            });
            built.push(Built { region: region.clone(), kernel, operands });
        }
        Ok((part, built, specs))
    }
    /// Renders the kernels of regions and numbers them as the plan does.
    fn registered(&mut self, mut built: Vec<Built>, specs: &[KernelSpec]) -> Result<Vec<Built>> {
        let ids = specs.iter().map(|s| self.kernel(s)).collect::<Result<Vec<u32>>>()?;
        for b in &mut built {
            b.kernel = ids.get(b.kernel as usize).copied().unwrap_or_default();
        }
        Ok(built)
    }

    /// The kernel of a spec, rendered on first sight.
    fn kernel(&mut self, spec: &KernelSpec) -> Result<u32> {
        let hash = spec.hash();
        if let Some(id) = self.kernel_ids.get(&hash) {
            return Ok(*id);
        }
        spec.verify().map_err(|e| Error::Internal { pass: "fusion", fault: e.to_string() })?;
        let mut variants = Vec::new();
        for caps in &self.options.targets {
            let r = templates::render(spec, caps)
                .map_err(|e| Error::Unsupported { region: spec.name.clone(), reason: e.to_string() })?;
            let dynamic_shared_bytes = u32::try_from(r.dynamic_shared_bytes())
                .map_err(|e| Error::Unsupported { region: spec.name.clone(), reason: e.to_string() })?;
            variants.push(Variant {
                tier: caps.tier,
                schedule: Schedule { template: r.template.into(), workgroup: r.workgroup, tile: r.tile },
                grid: r.grid,
                architecture: caps.architecture,
                dynamic_shared_bytes,
                text: r.text,
            });
        }
        let n = self.names.entry(spec.name.clone()).or_insert(0);
        *n += 1;
        let name = if *n == 1 { spec.name.clone() } else { format!("{}_{n}", spec.name) };
        let id = self.kernels.len() as u32;
        self.kernels.push(Kernel { name, spec: spec.clone(), variants });
        self.kernel_ids.insert(hash, id);
        Ok(id)
    }
}

fn weight(
    weights: &mut Vec<WeightDecl>,
    ids: &mut HashMap<PackedWeight, u32>,
    tables: &Tables,
    w: &PackedWeight,
) -> Result<u32> {
    if let Some(id) = ids.get(w) {
        return Ok(*id);
    }
    let missing = || Error::Internal { pass: "lower", fault: "a weight that does not exist".into() };
    let infos = w.parts.iter().map(|p| tables.weight_info(*p)).collect::<Option<Vec<_>>>().ok_or_else(missing)?;
    let first = infos.first().ok_or_else(missing)?;
    let mut shape = first.shape.clone();
    if let Some(rows) = shape.first_mut() {
        *rows = match w.rows {
            Some((lo, hi)) => Dim::from(hi - lo),
            None => infos.iter().fold(Dim::zero(), |s, i| s + i.shape.first().cloned().unwrap_or_else(Dim::one)),
        };
    }
    let part = |i: &&crate::graph::WeightInfo| match &i.data {
        WeightData::Tensor { name, transpose } => {
            Some(Part { tensor: name.clone(), transpose: *transpose, rows: w.rows })
        }
        _ => None,
    };
    let source = match &first.data {
        WeightData::Tensor { .. } => {
            WeightSource::Parts(infos.iter().map(part).collect::<Option<Vec<_>>>().ok_or_else(missing)?)
        }
        WeightData::Rope { inv_freq, scale, part } => {
            WeightSource::Rope { inv_freq: inv_freq.clone(), scale: *scale, part: *part }
        }
        WeightData::Inline(v) => WeightSource::Inline(v.clone()),
    };
    let names: Vec<&str> = infos.iter().filter_map(|i| i.names.first().map(String::as_str)).collect();
    let id = weights.len() as u32;
    let stem = names.join(" + ");
    let taken = |n: &str| weights.iter().any(|w| w.name == n);
    let mut name = stem.clone();
    let mut count = 1;
    while taken(&name) {
        count += 1;
        name = format!("{stem} ({count})");
    }
    weights.push(WeightDecl {
        name,
        storage: if w.side { Storage::F32 } else { first.storage },
        shape,
        placement: if w.side { Placement::Side } else { Placement::Own },
        source,
    });
    ids.insert(w.clone(), id);
    Ok(id)
}
