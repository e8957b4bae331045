//! Regions, kernels and memory to a [`Plan`].

mod budget;
mod half_rows;
mod kernels;
mod weights;

use crate::error::{Error, Result};
use crate::fusion::crossover::{Decided, crossovers};
use crate::fusion::outline::{Built, Outline};
use crate::fusion::spec_builder::size_bounds;
use crate::fusion::{self, Operand, PackedWeight, Partition, Refused, RowStats, Within, anchors, guards, report};
use crate::graph::patch::Fuel;
use crate::graph::{Graph, KvSlot, Op, StateId, ValueId};
use crate::memory::{self, Lifetime};
use crate::model::{Model, ModelGraph};
use crate::options::CompileOptions;
use crate::passes;
use crate::passes::validate::Validator;
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::KernelSpec;
use frit_plan::{
    BufferRef, ExactSearch, FusionReport, InPlace, InputFill, Kernel, KvSlotDecl, PLAN_VERSION, PhaseReport, Plan,
    Port, Program, StateDecl, Step, Validation, ValueDecl, WeightDecl, sizes,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Model in, plan out.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    options: CompileOptions,
}

/// The regions of a program in launch order, and how they were found.
struct Fused {
    built: Vec<Built>,
    refused: Vec<Refused>,
    instances: u32,
    work: u64,
    exact: ExactSearch,
}

/// What a deep graph repeats, and the short graph that stands for it.
struct Short {
    outline: Outline,
    graph: Graph,
}

/// What lies in an arena for part of a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Held {
    Value(ValueId),
    RowStats(RowStats),
    Gained(ValueId),
}

impl Held {
    fn of(operand: &Operand) -> Option<Held> {
        match operand {
            Operand::Value(v) => Some(Held::Value(*v)),
            Operand::RowStats(s) => Some(Held::RowStats(*s)),
            Operand::Gained(n) => Some(Held::Gained(*n)),
            _ => None,
        }
    }
    /// Name, type of the elements, extents.
    fn describe(self, graph: &Graph) -> (String, Scalar, Vec<Dim>) {
        match self {
            Held::Value(v) => (graph.op(v).name(), graph.ty(v).scalar, graph.ty(v).shape.clone()),
            Held::Gained(n) => ("gained".into(), Scalar::F32, graph.ty(n).shape.clone()),
            Held::RowStats(s) => {
                let tail = [Dim::from(s.tiles(graph)), Dim::from(s.numbers())];
                ("row_stats".into(), Scalar::F32, s.lead(graph).iter().cloned().chain(tail).collect())
            }
        }
    }
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
    refused_rewrites: BTreeMap<String, (String, u64)>,
    validator: Validator,
    validation: Validation,
    kernel_budget: u64,
    /// Kernels that were compared with their operations and not found wrong, by [`fusion::validate::key`].
    compared: HashSet<u64>,
    /// What the programs of the graph at hand do with its edges.
    decided: Vec<Decided>,
}

impl Compiler {
    /// A compiler with these options.
    pub fn new(options: CompileOptions) -> Self {
        Compiler { options }
    }
    /// Compiles every graph of a model. No weight is read.
    ///
    /// # Errors
    /// A graph that breaks the IR's rules, an operation that no kernel can express, or a budget of memory that cannot be
    /// kept.
    pub fn compile(&self, model: &Model) -> Result<Plan> {
        match &self.options.peak {
            Some(peak) => budget::within(model, &self.options, peak),
            None => self.plan(model),
        }
    }
    fn plan(&self, model: &Model) -> Result<Plan> {
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
            refused_rewrites: BTreeMap::new(),
            validator: self.options.validate.map_or_else(Validator::off, Validator::new),
            validation: Validation { on: self.options.validate.is_some(), ..Validation::default() },
            kernel_budget: self.options.validate.unwrap_or(0),
            compared: HashSet::new(),
            decided: Vec::new(),
        };
        let (mut programs, mut phases) = (Vec::new(), Vec::new());
        for g in &model.graphs {
            for (program, phase) in l.programs(g)? {
                programs.push(program);
                phases.push(phase);
            }
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
            report: FusionReport {
                phases,
                rewrites: l.rewrites,
                numeric: self.options.fusion.arithmetic(),
                refused_rewrites: l.refused_rewrites,
                validation: Validation {
                    rewrites: l.validator.counts,
                    dropped: l
                        .validator
                        .dropped
                        .iter()
                        .map(|(rule, place)| format!("rewrite {rule} at {place}"))
                        .chain(l.validation.dropped)
                        .collect(),
                    ..l.validation
                },
            },
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
    /// The program of a graph for any number of rows, and those for few rows that differ from it.
    fn programs(&mut self, g: &ModelGraph) -> Result<Vec<(Program, PhaseReport)>> {
        let mut graph = g.graph.clone();
        self.passes(&mut graph, g)?;
        copy_source_outputs(&mut graph);
        let tables = &self.model.tables;
        fusion::dequant::decode_apart(&mut graph, tables, &self.options.fusion);
        let short = self.short(&graph);
        let bounds_sequences = |g: &ModelGraph| g.at_most.iter().any(|(name, _)| name == sizes::BATCH);
        let for_few = |o: &ModelGraph| o.fixed == g.fixed && bounds_sequences(o);
        let whole = Within {
            at_most: g.at_most.clone(),
            limits: g.limits.clone(),
            many_sequences: !bounds_sequences(g) && self.model.graphs.iter().any(for_few),
        };
        let options = &self.options.fusion;
        let seen = short.as_ref().map_or(&graph, |s| &s.graph);
        let buckets = fusion::buckets::divide(seen, tables, &whole, options);
        self.decided.clear();
        let mut first = self.program(&graph, short.as_ref(), g, g.name.clone(), &whole, buckets.whole)?;
        first.1.work += buckets.work;
        let mut out = vec![first];
        for b in buckets.few {
            let name = Plan::bucket_name(&g.name, b.most);
            out.push(self.program(&graph, short.as_ref(), g, name, &b.within, b.partition)?);
        }
        if let Some((_, phase)) = out.first_mut() {
            phase.crossovers = crossovers(&graph, &self.decided);
        }
        out.extend(self.in_parts(&graph, g, &whole)?);
        Ok(out)
    }
    /// The program with the keys of attention in parts, where that pays on some kind of device and adds no launch.
    fn in_parts(&mut self, graph: &Graph, g: &ModelGraph, within: &Within) -> Result<Option<(Program, PhaseReport)>> {
        let Some(instead) = fusion::key_parts::instead(graph, &g.name, &self.options.fusion) else { return Ok(None) };
        let mut split = graph.clone();
        if self.applied(&mut split, passes::PassManager::split_keys())? == 0 {
            return Ok(None);
        }
        let short = self.short(&split);
        let divided = |graph: &Graph, short: Option<&Short>| {
            let graph = short.map_or(graph, |s| &s.graph);
            fusion::partition(graph, &self.model.tables, within, &self.options.fusion, &HashSet::new())
        };
        let part = divided(&split, short.as_ref());
        if part.regions.len() > divided(graph, self.short(graph).as_ref()).regions.len() {
            return Ok(None);
        }
        let name = format!("{}+parts", g.name);
        let (mut program, phase) = self.program(&split, short.as_ref(), g, name, within, part)?;
        program.instead = Some(instead);
        Ok(Some((program, phase)))
    }
    /// What a deep graph repeats.
    fn short(&self, graph: &Graph) -> Option<Short> {
        let equal = self.options.outline && !self.options.fusion.tells_places_apart();
        let outline = equal.then(|| Outline::find(graph, &self.model.tables)).flatten();
        outline.and_then(|outline| outline.shrink(graph).map(|graph| Short { outline, graph }))
    }
    fn program(
        &mut self,
        graph: &Graph,
        short: Option<&Short>,
        g: &ModelGraph,
        name: String,
        within: &Within,
        divided: Partition,
    ) -> Result<(Program, PhaseReport)> {
        let tables = &self.model.tables;
        let Fused { built, refused, instances, work, exact } = self.regions(graph, short, within, divided)?;
        let steps_last = (built.len() as u32).saturating_sub(1);
        let mut live: HashMap<Held, (u32, u32)> = HashMap::new();
        let mut values: Vec<Held> = Vec::new();
        let mut touch = |v: Held, at: u32| {
            let range = live.entry(v).or_insert_with(|| {
                values.push(v);
                (at, at)
            });
            *range = (range.0.min(at), range.1.max(at));
        };
        for i in &graph.inputs {
            touch(Held::Value(i.value), 0);
        }
        for (at, b) in built.iter().enumerate() {
            b.operands.iter().filter_map(Held::of).for_each(|v| touch(v, at as u32));
        }
        for o in &graph.outputs {
            touch(Held::Value(o.value), steps_last);
        }
        let state_of: HashMap<ValueId, StateId> =
            graph.outputs.iter().filter_map(|o| Some((o.value, o.state?))).collect();
        values.retain(|v| !matches!(v, Held::Value(v) if state_of.contains_key(v)));
        let over = if self.options.in_place { self.overwritable(graph, &built) } else { HashMap::new() };
        let mut in_place: Vec<(u32, Held, Held)> = Vec::new();
        let bounds = size_bounds(tables);
        let mut decls: Vec<ValueDecl> = Vec::new();
        let mut index: HashMap<Held, u32> = HashMap::new();
        let mut layouts = Vec::new();
        for float in [true, false] {
            let is_float = |v: &Held| v.describe(graph).1 == Scalar::F32;
            let own: Vec<Held> = values.iter().copied().filter(|v| is_float(v) == float).collect();
            let place: HashMap<Held, usize> = own.iter().enumerate().map(|(i, v)| (*v, i)).collect();
            let lifetimes: Vec<Lifetime> = own
                .iter()
                .map(|v| Lifetime {
                    size: product(&v.describe(graph).2),
                    live: live.get(v).copied().unwrap_or((0, steps_last)),
                    over: over.get(v).into_iter().flatten().filter_map(|i| place.get(i).copied()).collect(),
                })
                .collect();
            let (slots, layout) = memory::assign(&lifetimes, &bounds);
            for (v, life) in own.iter().zip(&lifetimes) {
                let slot = |v: &Held| place.get(v).and_then(|i| slots.get(*i)).copied();
                let shares = |i: &&Held| slot(i) == slot(v) && live.get(*i).is_some_and(|l| l.1 == life.live.0);
                if let Some(i) = over.get(v).into_iter().flatten().find(shares) {
                    in_place.push((life.live.0, *v, *i));
                }
            }
            for ((v, life), slot) in own.iter().zip(&lifetimes).zip(slots) {
                index.insert(*v, decls.len() as u32);
                let (name, scalar, shape) = v.describe(graph);
                let name = format!("v{}_{name}", decls.len());
                decls.push(ValueDecl { name, storage: storage(scalar), shape, slot, live: life.live });
            }
            layouts.push(layout);
        }
        in_place.sort();
        let described = |v: &Held| index.get(v).and_then(|i| decls.get(*i as usize)).map(|d| d.name.clone());
        let in_place = in_place
            .iter()
            .filter_map(|(step, o, i)| Some(InPlace { step: *step, output: described(o)?, input: described(i)? }))
            .collect();
        let buffer = |v: Held| match (v, index.get(&v)) {
            (Held::Value(v), _) if state_of.contains_key(&v) => Ok(BufferRef::State(state_of[&v].0)),
            (_, Some(i)) => Ok(BufferRef::Value(*i)),
            _ => Err(Error::Internal { pass: "lower", fault: format!("{} has no buffer", v.describe(graph).0) }),
        };
        let guards = guards::guards(graph, &built);
        let nothing_stored = HashSet::new();
        let mut steps = Vec::with_capacity(built.len());
        for (b, guard) in built.iter().zip(guards) {
            let mut args = Vec::with_capacity(b.operands.len());
            for o in &b.operands {
                args.push(match o {
                    Operand::Value(v) => buffer(Held::Value(*v))?,
                    Operand::RowStats(s) => buffer(Held::RowStats(*s))?,
                    Operand::Gained(n) => buffer(Held::Gained(*n))?,
                    Operand::State(s) => BufferRef::State(s.0),
                    Operand::Kv(slot, part) => BufferRef::Kv { slot: slot.0, part: *part },
                    Operand::Weight(w) => {
                        BufferRef::Weight(weights::weight(&mut self.weights, &mut self.weight_ids, tables, w)?)
                    }
                });
            }
            let site = anchors::Site { graph, tables, stored: &nothing_stored, region: &b.region };
            steps.push(Step {
                kernel: b.kernel,
                args,
                label: anchors::describe(&site),
                when: guard.and_then(|v| index.get(&Held::Value(v)).copied()),
            });
        }
        let port = |name: &str, v: ValueId, fill: InputFill| {
            let ty = graph.ty(v);
            Ok::<_, Error>(Port {
                name: name.into(),
                storage: storage(ty.scalar),
                shape: ty.shape.clone(),
                buffer: buffer(Held::Value(v))?,
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
        let ask = |edge: &Refused| {
            let asked = self.options.fusion.ask.as_ref();
            let meant = |(from, to): &&(String, String)| {
                fusion::is_named(graph, edge.from, from) && fusion::is_named(graph, edge.to, to)
            };
            let conditions = |_| {
                let regions = built.iter().map(|b| b.region.clone()).collect();
                fusion::conditions(graph, tables, within, &self.options.fusion, regions, edge)
            };
            asked.filter(meant).map(conditions).unwrap_or_default()
        };
        let told = report::phase(&name, graph, tables, &refused, &named, &ask);
        let phase = PhaseReport { instances, work, exact, in_place, ..told };
        let most_rows = within.limits.last().map(|l| l.1).filter(|_| name != g.name);
        self.decided.push(Decided::new(most_rows, built.iter().map(|b| &b.region), &refused));
        let ints = layouts.pop().unwrap_or_default();
        let arena = layouts.pop().unwrap_or_default();
        let program = Program {
            name,
            fixed: g.fixed.clone(),
            at_most: within.at_most.clone(),
            limits: within.limits.clone(),
            instead: None,
            inputs,
            outputs,
            values: decls,
            arena,
            ints,
            steps,
        };
        Ok((program, phase))
    }

    /// For each value, the inputs of the step that makes it whose storage it may take by the kernel's alias contracts.
    /// Values that leave the graph are never written over.
    fn overwritable(&self, graph: &Graph, built: &[Built]) -> HashMap<Held, Vec<Held>> {
        let mut over: HashMap<Held, Vec<Held>> = HashMap::new();
        for b in built {
            let Some(kernel) = self.kernels.get(b.kernel as usize) else { continue };
            for a in &kernel.spec.aliases {
                let of = |id: frit_kernels::spec::ArgId| match b.operands.get(id.0 as usize) {
                    Some(Operand::Value(v)) => Some(*v),
                    _ => None,
                };
                if let (Some(o), Some(i)) = (of(a.output), of(a.input))
                    && !graph.is_output(i)
                {
                    over.entry(Held::Value(o)).or_default().push(Held::Value(i));
                }
            }
        }
        over
    }

    fn passes(&mut self, graph: &mut Graph, g: &ModelGraph) -> Result<()> {
        self.applied(graph, passes::PassManager::standard(&g.fixed)).map(|_| ())
    }
    /// Runs passes as the options say; how many rewrites they applied.
    fn applied(&mut self, graph: &mut Graph, mut manager: passes::PassManager<'static>) -> Result<u64> {
        manager.options.skip.clone_from(&self.options.skip_passes);
        manager.options.mode = self.options.fusion.numeric;
        manager.options.disabled.clone_from(&self.options.disabled_rules);
        manager.options.validator = std::mem::replace(&mut self.validator, Validator::off());
        if let Some(left) = self.fuel {
            manager.options.fuel = Fuel::limited(left);
        }
        let log = manager.run(graph, &self.model.tables)?;
        self.validator = std::mem::replace(&mut manager.options.validator, Validator::off());
        for (rule, (class, n)) in &log.refused {
            self.refused_rewrites.entry((*rule).into()).or_insert_with(|| (class.name().into(), 0)).1 += n;
        }
        for pass in &log.passes {
            for (rule, n) in &pass.rules {
                *self.rewrites.entry((*rule).into()).or_default() += n;
            }
        }
        self.fuel = self.fuel.map(|f| f.saturating_sub(log.total()));
        Ok(log.total())
    }
    /// Regions of a graph in launch order, with their kernels. Where layers repeat, four of them are fused and the others
    /// follow from these.
    /// `divided` is how the graph that is fused is divided, as long as no kernel is found wrong.
    fn regions(&mut self, graph: &Graph, short: Option<&Short>, within: &Within, divided: Partition) -> Result<Fused> {
        let mut divided = Some(divided);
        if let Some(Short { outline, graph: short }) = short {
            let (part, built, specs) = self.fused(short, within, divided.take())?;
            if let Some((built, refused)) = outline.stretch(graph, &part, &built) {
                let built = self.registered(graph, built, &specs)?;
                let instances = outline.instances();
                return Ok(Fused { built, refused, instances, work: part.work, exact: part.exact });
            }
        }
        let (part, built, specs) = self.fused(graph, within, divided)?;
        let built = self.registered(graph, built, &specs)?;
        Ok(Fused { built, refused: part.refused, instances: 0, work: part.work, exact: part.exact })
    }
}
