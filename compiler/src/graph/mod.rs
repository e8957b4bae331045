//! The graph IR: SSA over tensors with symbolic extents. Every node has one result; operands are edges labelled with
//! their port. Weights, cache slots and states are named by ids of the model's [`Tables`].

pub mod control;
pub mod dot;
mod infer;
mod op;
pub mod patch;
mod tables;
mod tensor_type;
pub mod text;
pub mod verify;

pub use infer::{broadcast_shapes, infer};
pub use op::{AttentionAttrs, Float, NormKind, Op, RopeStyle};
pub use tables::{KvSlot, KvSlotId, StateId, StateInfo, Tables, WeightData, WeightId, WeightInfo};
pub use tensor_type::TensorType;

use crate::numeric::ProofClass;
use frit_plan::InputFill;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::collections::HashSet;

/// A broken rule of the graph IR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {fault}")]
pub struct GraphError {
    /// The node, by name and operation.
    pub node: String,
    /// What is wrong.
    pub fault: String,
}

/// A node and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(NodeIndex<u32>);

impl ValueId {
    /// A small number, stable while the graph lives.
    pub fn index(self) -> usize {
        self.0.index()
    }
    /// The value of that number.
    pub fn from_index(i: usize) -> Self {
        ValueId(NodeIndex::new(i))
    }
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// The type of its result.
    pub ty: TensorType,
    /// Where it comes from in the source model, such as `model.layers.0.mlp.up_proj`.
    pub origin: String,
    /// Rewrites above [`ProofClass::Bit`] that made it, or something that it stands for.
    pub rewrites: Vec<(&'static str, ProofClass)>,
}

/// A result that leaves the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphOutput {
    /// The name tensors go by.
    pub name: String,
    /// The value.
    pub value: ValueId,
    /// Written to this state at the end of the run as well.
    pub state: Option<StateId>,
}

/// A declared input.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphInput {
    /// The name tensors go by.
    pub name: String,
    /// The input node.
    pub value: ValueId,
    /// What stands in when the host gives nothing.
    pub fill: InputFill,
}

/// A dataflow graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    g: StableDiGraph<Node, u8>,
    /// Inputs in declaration order.
    pub inputs: Vec<GraphInput>,
    /// Outputs in declaration order.
    pub outputs: Vec<GraphOutput>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Graph::default()
    }
    /// Adds a node whose type is already known. Passes use [`patch`] instead.
    pub(crate) fn push(&mut self, op: Op, inputs: &[ValueId], ty: TensorType, origin: &str) -> ValueId {
        let n = self.g.add_node(Node { op, ty, origin: origin.into(), rewrites: Vec::new() });
        for (port, i) in inputs.iter().enumerate() {
            self.g.add_edge(i.0, n, port as u8);
        }
        ValueId(n)
    }
    /// Adds a node and infers its type.
    ///
    /// # Errors
    /// Operands that the operation does not take.
    pub fn add(&mut self, op: Op, inputs: &[ValueId], origin: &str) -> Result<ValueId, GraphError> {
        let types: Vec<&TensorType> = inputs.iter().filter_map(|v| self.get(*v)).map(|n| &n.ty).collect();
        let fail = |fault: String| GraphError { node: format!("{} ({origin})", op.name()), fault };
        if types.len() != inputs.len() {
            return Err(fail("an operand does not exist".into()));
        }
        let ty = infer(&op, &types).map_err(fail)?;
        Ok(self.push(op, inputs, ty, origin))
    }
    /// The node, if it exists.
    pub fn get(&self, v: ValueId) -> Option<&Node> {
        self.g.node_weight(v.0)
    }
    /// The node.
    ///
    /// # Panics
    /// Never for ids of this graph that were not removed; an unknown id gives a placeholder constant.
    pub fn node(&self, v: ValueId) -> &Node {
        static MISSING: std::sync::OnceLock<Node> = std::sync::OnceLock::new();
        self.g.node_weight(v.0).unwrap_or_else(|| {
            MISSING.get_or_init(|| Node {
                op: Op::Const(frit_kernels::spec::Literal::f32(0.0)),
                ty: TensorType::new(frit_kernels::dtype::Scalar::F32, []),
                origin: "missing".into(),
                rewrites: Vec::new(),
            })
        })
    }
    pub(crate) fn node_mut(&mut self, v: ValueId) -> Option<&mut Node> {
        self.g.node_weight_mut(v.0)
    }
    /// The operation.
    pub fn op(&self, v: ValueId) -> &Op {
        &self.node(v).op
    }
    /// The type.
    pub fn ty(&self, v: ValueId) -> &TensorType {
        &self.node(v).ty
    }
    /// Operands in port order.
    pub fn operands(&self, v: ValueId) -> Vec<ValueId> {
        let mut e: Vec<(u8, NodeIndex)> =
            self.g.edges_directed(v.0, Direction::Incoming).map(|e| (*e.weight(), e.source())).collect();
        e.sort();
        e.into_iter().map(|(_, n)| ValueId(n)).collect()
    }
    /// Users, each once for every port it uses, in ascending order.
    pub fn users(&self, v: ValueId) -> Vec<ValueId> {
        let mut u: Vec<ValueId> =
            self.g.edges_directed(v.0, Direction::Outgoing).map(|e| ValueId(e.target())).collect();
        u.sort();
        u
    }
    /// Whether the value leaves the graph.
    pub fn is_output(&self, v: ValueId) -> bool {
        self.outputs.iter().any(|o| o.value == v)
    }
    /// All nodes, in ascending order.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.g.node_indices().map(ValueId)
    }
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.g.node_count()
    }
    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.g.node_count() == 0
    }
    /// Nodes that outputs and effects depend on, operands first, in an order that follows from the structure alone (depth
    /// first from the outputs, operands in port order); effects that no output needs come last, as they were built.
    pub fn order(&self) -> Vec<ValueId> {
        let mut done: HashSet<ValueId> = HashSet::new();
        let mut out = Vec::with_capacity(self.len());
        let effects = self.values().filter(|v| self.op(*v).has_effect()).collect::<Vec<_>>();
        for root in self.outputs.iter().map(|o| o.value).chain(effects) {
            let mut stack = vec![(root, 0usize)];
            while let Some((v, k)) = stack.pop() {
                if done.contains(&v) {
                    continue;
                }
                match self.operands(v).get(k) {
                    Some(i) => {
                        stack.push((v, k + 1));
                        if !done.contains(i) {
                            stack.push((*i, 0));
                        }
                    }
                    None => {
                        done.insert(v);
                        out.push(v);
                    }
                }
            }
        }
        out
    }
    #[allow(dead_code)]
    pub(crate) fn redirect(&mut self, old: ValueId, new: ValueId) {
        let edges: Vec<_> =
            self.g.edges_directed(old.0, Direction::Outgoing).map(|e| (e.id(), e.target(), *e.weight())).collect();
        for (e, target, port) in edges {
            if target != new.0 {
                self.g.remove_edge(e);
                self.g.add_edge(new.0, target, port);
            }
        }
        for o in &mut self.outputs {
            if o.value == old {
                o.value = new;
            }
        }
    }
    pub(crate) fn remove(&mut self, v: ValueId) {
        self.g.remove_node(v.0);
    }
    pub(crate) fn set_operand(&mut self, v: ValueId, port: usize, new: ValueId) {
        let edge = self.g.edges_directed(v.0, Direction::Incoming).find(|e| *e.weight() as usize == port);
        if let Some(e) = edge.map(|e| e.id()) {
            self.g.remove_edge(e);
        }
        self.g.add_edge(new.0, v.0, port as u8);
    }
}
