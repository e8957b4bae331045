//! The typed graph builder: the Rust front end, and the only way the other front ends make nodes.
//!
//! Methods never fail at once. A fault is noted with the name of the place, the result is a stand-in, and
//! [`ModelBuilder::finish`] reports every fault together.

use super::decoding::GenerationRules;
use crate::graph::{
    AttentionAttrs, Float, Graph, GraphError, GraphInput, GraphOutput, KvSlot, KvSlotId, NormKind, Op, RopeStyle,
    StateId, StateInfo, Tables, TensorType, ValueId, WeightData, WeightId, WeightInfo,
};
use crate::model::{MemoryTensors, Model, ModelGraph};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, Literal, ReduceOp, UnaryOp};
use frit_plan::{InputFill, KvPart, ModelInfo, RopePart, Task, TensorData, TensorSource, sizes};
use indexmap::IndexMap;
use std::sync::Arc;

/// Builds a model: tables first, then one graph for each way to run it.
pub struct ModelBuilder {
    /// Facts about the model; change them freely.
    pub info: ModelInfo,
    /// What a generating model may write; set before its graphs are added.
    pub rules: GenerationRules,
    /// Rows of rotary tables, set before they are made: positions up to the capacity of the cache unless said.
    pub reach: Dim,
    tables: Tables,
    graphs: Vec<ModelGraph>,
    memory: MemoryTensors,
    stacks: IndexMap<String, Vec<String>>,
    source: Option<Arc<dyn TensorSource>>,
    faults: Vec<GraphError>,
}

/// Every fault of a model that was built.
#[derive(Debug, thiserror::Error)]
#[error("the graph has {} fault{}:\n{}", .0.len(), if .0.len() == 1 { "" } else { "s" }, list(.0))]
pub struct BuildError(pub Vec<GraphError>);

fn list(faults: &[GraphError]) -> String {
    faults.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n")
}

impl ModelBuilder {
    /// An empty model.
    pub fn new(name: &str) -> Self {
        ModelBuilder {
            info: ModelInfo {
                name: name.into(),
                architecture: "graph".into(),
                task: Task::Graph,
                layers: 0,
                context: 0,
                vocab: 0,
                eos: Vec::new(),
                bos: None,
                source_vocab: 0,
                start: Vec::new(),
                tokenizer: None,
                cache_obstacle: None,
                retention: None,
                passes: None,
                rules: Default::default(),
                chat: None,
            },
            rules: GenerationRules::default(),
            reach: Dim::size(frit_plan::sizes::CAPACITY),
            tables: Tables::default(),
            graphs: Vec::new(),
            memory: MemoryTensors::default(),
            stacks: IndexMap::new(),
            source: None,
            faults: Vec::new(),
        }
    }
    /// Sets where stored tensors are read from; tensors given to the builder itself come first.
    pub fn source(&mut self, source: Arc<dyn TensorSource>) {
        self.source = Some(source);
    }
    /// Declares a dynamic size with its bounds. Sizes that occur in input shapes only are declared by themselves.
    pub fn size(&mut self, name: &str, min: u64, max: Option<u64>) {
        self.tables.size(name, min, max);
    }
    /// A constant tensor held in memory.
    pub fn constant(&mut self, name: &str, shape: &[u64], values: &[f32]) -> WeightId {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.held(name, Storage::F32, shape, values.len(), bytes)
    }
    /// As [`ModelBuilder::constant`], each value rounded to the nearest `bf16` or `f16`; other storage is a fault.
    pub fn constant_half(&mut self, name: &str, storage: Storage, shape: &[u64], values: &[f32]) -> WeightId {
        let bytes = match storage {
            Storage::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            Storage::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            other => {
                self.fault(name, format!("{other} is no 16-bit storage of floats"));
                Vec::new()
            }
        };
        self.held(name, storage, shape, values.len(), bytes)
    }
    fn held(&mut self, name: &str, storage: Storage, shape: &[u64], count: usize, bytes: Vec<u8>) -> WeightId {
        let elems = shape.iter().try_fold(1u64, |p, d| p.checked_mul(*d));
        if elems != Some(count as u64) {
            self.fault(name, format!("{count} values for the shape {shape:?}"));
        }
        let data = TensorData { storage, shape: shape.to_vec(), bytes };
        if self.memory.0.insert(name.into(), data).is_some() {
            self.fault(name, "a constant of this name exists already".into());
        }
        self.stored(name, storage, shape)
    }
    /// As [`ModelBuilder::constant`] at the first call with that name; later ones give the same weight.
    pub fn constant_once(&mut self, name: &str, shape: &[u64], values: &[f32]) -> WeightId {
        if self.memory.0.contains_key(name) {
            return self.stored(name, Storage::F32, shape);
        }
        self.constant(name, shape, values)
    }
    /// A constant tensor of integers held in memory.
    pub fn constant_ints(&mut self, name: &str, shape: &[u64], values: &[i32]) -> WeightId {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.held(name, Storage::I32, shape, values.len(), bytes)
    }
    /// A tensor of the source, used as stored.
    pub fn stored(&mut self, name: &str, storage: Storage, shape: &[u64]) -> WeightId {
        self.stored_as(name, name, storage, shape)
    }
    /// As [`ModelBuilder::stored`], for a parameter that shares the tensor `of`. It is one weight, whatever its names.
    pub fn stored_as(&mut self, name: &str, of: &str, storage: Storage, shape: &[u64]) -> WeightId {
        let shape = shape.iter().map(|d| Dim::from(*d)).collect();
        let data = WeightData::Tensor { name: of.into(), transpose: false };
        self.tables.weight(WeightInfo { names: vec![name.into()], storage, shape, data })
    }
    /// Tensors of the source as one, `[parts.len(), shape…]`; `shape` is that of each.
    pub fn stacked(&mut self, name: &str, parts: Vec<String>, storage: Storage, shape: &[u64]) -> WeightId {
        let whole: Vec<u64> = [parts.len() as u64].iter().chain(shape).copied().collect();
        self.stacks.insert(name.into(), parts);
        self.stored(name, storage, &whole)
    }
    /// A tensor stored as `[K, N]` that is used as `[N, K]`; plain storage types only. `shape` is the stored one.
    pub fn stored_transposed(&mut self, name: &str, storage: Storage, shape: [u64; 2]) -> WeightId {
        self.stored_transposed_as(name, name, storage, shape)
    }
    /// As [`ModelBuilder::stored_transposed`], for a parameter that shares the tensor `of`.
    pub fn stored_transposed_as(&mut self, name: &str, of: &str, storage: Storage, shape: [u64; 2]) -> WeightId {
        if storage.is_quantised() {
            self.fault(name, format!("a {storage} tensor cannot be transposed"));
        }
        let shape = vec![Dim::from(shape[1]), Dim::from(shape[0])];
        let data = WeightData::Tensor { name: of.into(), transpose: true };
        self.tables.weight(WeightInfo { names: vec![name.into()], storage, shape, data })
    }
    /// A rotary table `[reach, inv_freq.len()]`, see [`frit_plan::WeightSource::Rope`].
    pub fn rope_table(&mut self, inv_freq: &[f32], scale: f32, part: RopePart) -> WeightId {
        let data = WeightData::Rope { inv_freq: inv_freq.to_vec(), scale, part };
        let known = self.tables.weights.iter().position(|w| w.data == data);
        if let Some(i) = known {
            return WeightId(i as u32);
        }
        let name = match part {
            RopePart::Cos => "rope.cos",
            RopePart::Sin => "rope.sin",
        };
        let shape = vec![self.reach.clone(), Dim::from(inv_freq.len())];
        self.tables.weight(WeightInfo { names: vec![name.into()], storage: Storage::F32, shape, data })
    }
    /// A cache slot that grows by each run's tokens.
    pub fn kv_slot(&mut self, name: &str, heads: u64, k_dim: u64, v_dim: u64) -> KvSlotId {
        self.kv_slot_of(name, heads, k_dim, v_dim, Dim::size(frit_plan::sizes::CAPACITY))
    }
    /// A cache slot with room for `len` positions.
    pub fn kv_slot_of(&mut self, name: &str, heads: u64, k_dim: u64, v_dim: u64, len: Dim) -> KvSlotId {
        self.tables.kv_slot(KvSlot { name: name.into(), heads, k_dim, v_dim, len })
    }
    /// A persistent integer state; the same name is the same state.
    pub fn state(&mut self, name: &str, storage: Storage, shape: &[Dim]) -> StateId {
        self.tables.state(StateInfo { name: name.into(), storage, shape: shape.to_vec() })
    }
    /// Adds a way to run the model.
    pub fn graph(&mut self, name: &str, build: impl FnOnce(&mut GraphBuilder<'_>)) {
        self.graph_with(name, &[], &[], build);
    }
    /// Adds a way to run the model in which some sizes are fixed or bounded from above.
    pub fn graph_with(
        &mut self,
        name: &str,
        fixed: &[(&str, u64)],
        at_most: &[(&str, u64)],
        build: impl FnOnce(&mut GraphBuilder<'_>),
    ) {
        let mut b = GraphBuilder { m: self, g: Graph::new(), scope: Vec::new(), limits: Vec::new() };
        build(&mut b);
        let (graph, limits) = (b.g, b.limits);
        if graph.outputs.is_empty() {
            self.fault(name, "the graph has no output".into());
        }
        let own = |v: &[(&str, u64)]| v.iter().map(|(n, k)| ((*n).to_owned(), *k)).collect();
        self.graphs.push(ModelGraph { name: name.into(), graph, fixed: own(fixed), at_most: own(at_most), limits });
    }
    /// Notes a fault of the model.
    pub fn fault(&mut self, place: &str, fault: String) {
        self.faults.push(GraphError { node: place.into(), fault });
    }
    /// The finished model.
    ///
    /// # Errors
    /// Every fault noted while building.
    pub fn finish(mut self) -> Result<Model, BuildError> {
        if self.graphs.is_empty() {
            self.fault("model", "it has no graph".into());
        }
        if self.tables.sizes.len() > 16 {
            self.fault("model", format!("{} dynamic sizes; 16 are allowed", self.tables.sizes.len()));
        }
        if !self.faults.is_empty() {
            return Err(BuildError(self.faults));
        }
        let stacks = self.stacks;
        let source = self.source.map(|s| match stacks.is_empty() {
            true => s,
            false => Arc::new(Stacked(stacks, s)) as Arc<dyn TensorSource>,
        });
        let source: Arc<dyn TensorSource> = match source {
            Some(s) if self.memory.0.is_empty() => s,
            Some(s) => Arc::new(Layered(self.memory, s)),
            None => Arc::new(self.memory),
        };
        Ok(Model { info: self.info, tables: self.tables, graphs: self.graphs, source })
    }
}

struct Layered(MemoryTensors, Arc<dyn TensorSource>);

impl TensorSource for Layered {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        if self.0.0.contains_key(tensor) { self.0.read(tensor) } else { self.1.read(tensor) }
    }
}

/// Gives several tensors of a source as one.
struct Stacked(IndexMap<String, Vec<String>>, Arc<dyn TensorSource>);

impl TensorSource for Stacked {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        let Some(parts) = self.0.get(tensor) else { return self.1.read(tensor) };
        let mut whole: Option<TensorData> = None;
        for part in parts {
            let part = self.1.read(part)?;
            match &mut whole {
                None => whole = Some(TensorData { shape: [1].iter().chain(&part.shape).copied().collect(), ..part }),
                Some(whole) => {
                    whole.bytes.extend_from_slice(&part.bytes);
                    if let Some(count) = whole.shape.first_mut() {
                        *count += 1;
                    }
                }
            }
        }
        whole.ok_or_else(|| format!("tensor `{tensor}` is made of nothing").into())
    }
}

/// Builds one graph. Shapes broadcast from the right as in NumPy.
pub struct GraphBuilder<'a> {
    m: &'a mut ModelBuilder,
    g: Graph,
    scope: Vec<String>,
    limits: Vec<(Dim, u64)>,
}

impl GraphBuilder<'_> {
    /// Names the source of nodes built inside, such as `layers.0.mlp`.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.into());
        let t = build(self);
        self.scope.pop();
        t
    }
    /// The model's tables and facts.
    pub fn model(&mut self) -> &mut ModelBuilder {
        self.m
    }
    /// Runs in which the sum of sizes is larger are refused.
    pub fn limit(&mut self, sum: Dim, max: u64) {
        self.limits.push((sum, max));
    }
    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &TensorType {
        self.g.ty(v)
    }
    fn origin(&self) -> String {
        self.scope.join(".")
    }
    /// Names the source of the nodes built from now on.
    pub fn place(&mut self, name: &str) {
        self.scope = vec![name.into()];
    }
    /// The graph so far.
    pub fn built(&self) -> &Graph {
        &self.g
    }
    /// Adds any operation, for callers that report faults themselves.
    ///
    /// # Errors
    /// Operands that the operation does not take.
    pub fn try_op(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let origin = self.origin();
        self.g.add(op, inputs, &origin)
    }
    /// Adds any operation.
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        match self.try_op(op, inputs) {
            Ok(v) => v,
            Err(e) => {
                self.m.faults.push(e);
                inputs.first().copied().unwrap_or_else(|| {
                    self.g.push(Op::Const(Literal::f32(0.0)), &[], TensorType::new(Scalar::F32, []), "fault")
                })
            }
        }
    }
    fn source_node(&mut self, op: Op, scalar: Scalar, shape: Vec<Dim>, origin: &str) -> ValueId {
        for d in &shape {
            for s in d.symbols() {
                self.m.tables.size(&s.to_string(), 1, None);
            }
        }
        self.g.push(op, &[], TensorType::new(scalar, shape), origin)
    }
    /// An input that the host must give.
    pub fn input(&mut self, name: &str, scalar: Scalar, shape: &[Dim]) -> ValueId {
        self.input_or(name, scalar, shape, InputFill::Required)
    }
    /// An input that the host may leave out.
    pub fn input_or(&mut self, name: &str, scalar: Scalar, shape: &[Dim], fill: InputFill) -> ValueId {
        if self.g.inputs.iter().any(|i| i.name == name) {
            self.m.fault(name, "an input of this name exists already".into());
        }
        let value = self.source_node(Op::Input(name.into()), scalar, shape.to_vec(), name);
        self.g.inputs.push(GraphInput { name: name.into(), value, fill });
        value
    }
    /// A constant tensor.
    pub fn weight(&mut self, id: WeightId) -> ValueId {
        let Some(info) = self.m.tables.weight_info(id).cloned() else {
            self.m.fault("weight", format!("weight {} does not exist", id.0));
            return self.f32(0.0);
        };
        let name = info.names.first().cloned().unwrap_or_default();
        self.source_node(Op::Weight(id), info.storage.scalar(), info.shape, &name)
    }
    /// A state as it was when the run began.
    pub fn state(&mut self, id: StateId) -> ValueId {
        let Some(info) = self.m.tables.states.get(id.0 as usize).cloned() else {
            self.m.fault("state", format!("state {} does not exist", id.0));
            return self.f32(0.0);
        };
        self.source_node(Op::State(id), info.storage.scalar(), info.shape, &info.name)
    }
    /// A float scalar.
    pub fn f32(&mut self, v: f32) -> ValueId {
        if !v.is_finite() {
            let place = self.origin();
            self.m.fault(&place, format!("the constant {v} is not finite"));
        }
        self.op(Op::Const(Literal::f32(v)), &[])
    }
    /// An integer scalar.
    pub fn i32(&mut self, v: i32) -> ValueId {
        self.op(Op::Const(Literal::I32(v)), &[])
    }
    /// I32 tensor of `shape` holding the coordinate along `axis` plus `offset`.
    pub fn iota(&mut self, shape: &[Dim], axis: usize, offset: Dim) -> ValueId {
        if axis >= shape.len() {
            self.m.fault("iota", format!("axis {axis} of {} axes", shape.len()));
        }
        let origin = self.origin();
        self.source_node(Op::Iota { axis, offset }, Scalar::I32, shape.to_vec(), &origin)
    }
    /// f(a).
    pub fn unary(&mut self, f: UnaryOp, a: ValueId) -> ValueId {
        self.op(Op::Unary(f), &[a])
    }
    /// f(a, b).
    pub fn binary(&mut self, f: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Binary(f), &[a, b])
    }
    /// a + b.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Add, a, b)
    }
    /// a − b.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Sub, a, b)
    }
    /// a·b.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Mul, a, b)
    }
    /// `t` where `cond`, else `f`.
    pub fn select(&mut self, cond: ValueId, t: ValueId, f: ValueId) -> ValueId {
        self.op(Op::Select, &[cond, t, f])
    }
    /// Value conversion.
    pub fn cast(&mut self, a: ValueId, to: Scalar) -> ValueId {
        if self.ty(a).scalar == to { a } else { self.op(Op::Cast(to), &[a]) }
    }
    /// The same elements with other extents.
    pub fn reshape(&mut self, a: ValueId, shape: &[Dim]) -> ValueId {
        self.op(Op::Reshape(shape.to_vec()), &[a])
    }
    /// Axis k of the result is axis `perm[k]`.
    pub fn transpose(&mut self, a: ValueId, perm: &[usize]) -> ValueId {
        self.op(Op::Transpose(perm.to_vec()), &[a])
    }
    /// Repeats axes of extent 1.
    pub fn broadcast(&mut self, a: ValueId, shape: &[Dim]) -> ValueId {
        self.op(Op::Broadcast(shape.to_vec()), &[a])
    }
    /// `len` elements of `axis` from `start`.
    pub fn slice(&mut self, a: ValueId, axis: usize, start: Dim, len: Dim) -> ValueId {
        self.op(Op::Slice { axis, start, len }, &[a])
    }
    /// Operands one behind the other.
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> ValueId {
        self.op(Op::Concat { axis }, parts)
    }
    /// Rows of `table` by index.
    pub fn gather(&mut self, table: ValueId, ids: ValueId) -> ValueId {
        self.op(Op::Gather, &[table, ids])
    }
    /// Reduction over axes.
    pub fn reduce(&mut self, op: ReduceOp, a: ValueId, axes: &[usize], keep: bool) -> ValueId {
        self.op(Op::Reduce { op, axes: axes.to_vec(), keep }, &[a])
    }
    /// `a · b`.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::MatMul { b_transposed: false }, &[a, b])
    }
    /// `x · wᵀ (+ bias)` with a weight stored `[N, K]`.
    pub fn linear(&mut self, x: ValueId, w: WeightId, bias: Option<WeightId>) -> ValueId {
        let w = self.weight(w);
        let y = self.op(Op::MatMul { b_transposed: true }, &[x, w]);
        match bias {
            Some(b) => {
                let b = self.weight(b);
                self.add(y, b)
            }
            None => y,
        }
    }
    /// Softmax over the last axis.
    pub fn softmax(&mut self, a: ValueId) -> ValueId {
        self.op(Op::Softmax, &[a])
    }
    /// Normalisation over the last axis with optional gain and bias.
    pub fn norm(
        &mut self,
        kind: NormKind,
        x: ValueId,
        eps: f32,
        gain: Option<ValueId>,
        bias: Option<ValueId>,
    ) -> ValueId {
        let op = Op::Norm { kind, eps: Float(eps), has_gain: gain.is_some(), has_bias: bias.is_some() };
        let inputs: Vec<ValueId> = [Some(x), gain, bias].into_iter().flatten().collect();
        self.op(op, &inputs)
    }
    /// Rotary embedding of `x` `[B, H, S, D]`.
    pub fn rope(
        &mut self,
        x: ValueId,
        cos: ValueId,
        sin: ValueId,
        positions: ValueId,
        style: RopeStyle,
        rotary_dim: u64,
    ) -> ValueId {
        self.op(Op::Rope { style, rotary_dim }, &[x, cos, sin, positions])
    }
    /// Appends `x` `[B, H, S, D]` to a cache slot; gives the slot's contents.
    pub fn kv_append(&mut self, slot: KvSlotId, part: KvPart, x: ValueId) -> ValueId {
        self.op(Op::KvAppend { slot, part, past: Dim::size(frit_plan::sizes::PAST) }, &[x])
    }
    /// Writes `x` `[B, H, S, D]` to the front of a cache slot, for later runs to load.
    pub fn kv_fill(&mut self, slot: KvSlotId, part: KvPart, x: ValueId) -> ValueId {
        self.op(Op::KvAppend { slot, part, past: Dim::zero() }, &[x])
    }
    /// What an earlier run left in a cache slot: `[B, H, room, D]`.
    pub fn kv_load(&mut self, slot: KvSlotId, part: KvPart) -> ValueId {
        let Some(info) = self.m.tables.kv_slots.get(slot.0 as usize).cloned() else {
            self.m.fault("slot", format!("slot {} does not exist", slot.0));
            return self.f32(0.0);
        };
        let dim = if part == KvPart::K { info.k_dim } else { info.v_dim };
        let shape = vec![Dim::size(frit_plan::sizes::BATCH), info.heads.into(), info.len, dim.into()];
        self.source_node(Op::KvLoad { slot, part }, Scalar::F32, shape, &info.name)
    }
    /// What a cache slot of `heads` heads of `dim` elements held before the run.
    pub fn kv_past(&mut self, slot: KvSlotId, part: KvPart, heads: u64, dim: u64) -> ValueId {
        self.kv_rows(slot, part, heads, dim, Dim::size(sizes::PAST))
    }
    /// The first `len` rows that a cache slot of `heads` heads of `dim` elements held before the run.
    pub fn kv_rows(&mut self, slot: KvSlotId, part: KvPart, heads: u64, dim: u64, len: Dim) -> ValueId {
        let shape = [Dim::size(sizes::BATCH), Dim::from(heads), len, Dim::from(dim)];
        let origin = self.origin();
        self.source_node(Op::KvLoad { slot, part }, Scalar::F32, shape.to_vec(), &origin)
    }
    /// Scaled dot-product attention; see [`Op::Attention`]. `has_mask` and `has_bias` of `attrs` are set here.
    pub fn attention(
        &mut self,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        mask: Option<ValueId>,
        bias: Option<ValueId>,
        attrs: AttentionAttrs,
    ) -> ValueId {
        let attrs = AttentionAttrs { has_mask: mask.is_some(), has_bias: bias.is_some(), ..attrs };
        let inputs: Vec<ValueId> = [Some(q), Some(k), Some(v), mask, bias].into_iter().flatten().collect();
        self.op(Op::Attention(attrs), &inputs)
    }
    /// Declares an output.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.output_to(name, value, None);
    }
    /// Declares an output that is also kept in a state.
    pub fn output_to(&mut self, name: &str, value: ValueId, state: Option<StateId>) {
        if self.g.outputs.iter().any(|o| o.name == name) {
            self.m.fault(name, "an output of this name exists already".into());
        }
        self.g.outputs.push(GraphOutput { name: name.into(), value, state });
    }
}
