//! Marks values inside a model as outputs, so that the ordinary runtime gives them.

use super::calibration::Tap;
use super::checkpoint::Checkpoint;
use super::family::{Role, Side};
use crate::graph::{Graph, GraphOutput, Op, ValueId};
use crate::model::Model;
use frit_kernels::spec::BinaryOp;

/// The program that gives all positions.
const PROGRAM: &str = "forward";
/// The output that holds logits.
pub const LOGITS: &str = "logits";

/// Adds an output for each place to the program of all positions; gives their names, in the order of `taps`. Values of
/// heads leave as `[B, H, S, D]`, all others as `[B, S, width]`.
///
/// # Errors
/// A place that the model does not have.
pub fn mark(model: &mut Model, c: &Checkpoint, taps: &[Tap]) -> Result<Vec<String>, String> {
    let finder = Finder::new(model, c)?;
    let found: Vec<(Tap, Option<ValueId>)> = taps.iter().map(|t| (*t, finder.find(*t))).collect();
    let graph = model.graphs.iter_mut().find(|g| g.name == PROGRAM).map(|g| &mut g.graph);
    let graph = graph.ok_or("the model has no program that gives all positions")?;
    let mut names = Vec::new();
    for (tap, value) in found {
        if tap == Tap::Logits {
            names.push(LOGITS.to_owned());
            continue;
        }
        let value = value.ok_or_else(|| format!("the model has no place {tap:?}"))?;
        let known =
            graph.outputs.iter().find(|o| o.value == value && o.name.starts_with("tap.")).map(|o| o.name.clone());
        let name = known.unwrap_or_else(|| {
            let name = format!("tap.{}", graph.outputs.len());
            graph.outputs.push(GraphOutput { name: name.clone(), value, state: None });
            name
        });
        names.push(name);
    }
    Ok(names)
}

/// Finds places by where nodes come from and by the weights they read.
struct Finder<'a> {
    model: &'a Model,
    graph: &'a Graph,
    c: &'a Checkpoint,
    /// Nodes of each layer.
    layers: Vec<Vec<ValueId>>,
}

impl<'a> Finder<'a> {
    fn new(model: &'a Model, c: &'a Checkpoint) -> Result<Finder<'a>, String> {
        let graph = &model.graph(PROGRAM).ok_or("the model has no program that gives all positions")?.graph;
        let (stack, count) = c.stack(Side::Only).map_err(|e| e.to_string())?;
        let mut layers = vec![Vec::new(); count];
        let name = stack.layer.trim_end_matches("{}.");
        for v in graph.order().into_iter().filter(|v| !graph.op(*v).is_source()) {
            if let Some(of) = layer_of(&graph.node(v).origin, name).and_then(|i| layers.get_mut(i)) {
                of.push(v);
            }
        }
        Ok(Finder { model, graph, c, layers })
    }

    fn find(&self, tap: Tap) -> Option<ValueId> {
        let count = self.layers.len();
        match tap {
            Tap::Hidden(0) => self.entry(0),
            Tap::Hidden(i) if i <= count => self.exit(i - 1),
            Tap::Hidden(_) | Tap::Logits => None,
            Tap::AttentionIn(i) => self.graph.operands(self.map(i, Role::Q)?).first().copied(),
            Tap::AttentionInner(i) => self.graph.operands(self.map(i, Role::O)?).first().copied(),
            Tap::AttentionOut(i) => Some(self.with_bias(self.map(i, Role::O)?)),
            Tap::FfnIn(i) => self.graph.operands(self.map(i, Role::Up)?).first().copied(),
            Tap::FfnInner(i) => self.graph.operands(self.map(i, Role::Down)?).first().copied(),
            Tap::FfnOut(i) => Some(self.with_bias(self.map(i, Role::Down)?)),
            Tap::Queries(i) => self.of_attention(i, 0),
            Tap::Keys(i) => self.of_attention(i, 1),
            Tap::Values(i) => self.of_attention(i, 2),
        }
    }

    /// What enters a layer: the one value of the stream's type that its nodes read from outside.
    fn entry(&self, i: usize) -> Option<ValueId> {
        let nodes = self.layers.get(i)?;
        let mut from: Vec<ValueId> = nodes.iter().flat_map(|v| self.graph.operands(*v)).collect();
        from.retain(|v| !nodes.contains(v) && !self.graph.op(*v).is_source() && self.is_stream(*v));
        from.first().copied()
    }

    /// What leaves a layer.
    fn exit(&self, i: usize) -> Option<ValueId> {
        let nodes = self.layers.get(i)?;
        let leaves = |v: &&ValueId| {
            let used = self.graph.users(**v).iter().any(|u| !nodes.contains(u)) || self.graph.is_output(**v);
            used && self.is_stream(**v)
        };
        nodes.iter().rev().find(leaves).copied()
    }

    fn is_stream(&self, v: ValueId) -> bool {
        let hidden = self.c.sizes().map_or(0, |s| s.hidden);
        let shape = &self.graph.ty(v).shape;
        shape.len() == 3 && shape.last().and_then(frit_kernels::dim::Dim::as_const) == Some(hidden as i64)
    }

    /// The product with a layer's weight of that role.
    fn map(&self, i: usize, role: Role) -> Option<ValueId> {
        let (stack, _) = self.c.stack(Side::Only).ok()?;
        let (_, stem) = self.c.stem(stack, i, role)?;
        let name = format!("{}{stem}.weight", self.c.layer(stack, i));
        let is_weight = |v: &ValueId| match self.graph.op(*v) {
            Op::Weight(id) => self.model.tables.weight_info(*id).is_some_and(|w| w.names.contains(&name)),
            _ => false,
        };
        let reads = |v: &&ValueId| {
            matches!(self.graph.op(**v), Op::MatMul { .. }) && self.graph.operands(**v).iter().any(is_weight)
        };
        self.layers.get(i)?.iter().find(reads).copied()
    }

    fn with_bias(&self, product: ValueId) -> ValueId {
        let adds_weight = |v: &ValueId| {
            matches!(self.graph.op(*v), Op::Binary(BinaryOp::Add))
                && self.graph.operands(*v).iter().any(|o| matches!(self.graph.op(*o), Op::Weight(_)))
        };
        match self.graph.users(product).as_slice() {
            [one] if adds_weight(one) => *one,
            _ => product,
        }
    }

    fn of_attention(&self, i: usize, port: usize) -> Option<ValueId> {
        let attention = self.layers.get(i)?.iter().find(|v| matches!(self.graph.op(**v), Op::Attention(_)))?;
        let value = self.graph.operands(*attention).get(port).copied()?;
        match self.graph.op(value) {
            Op::KvAppend { .. } | Op::KvRead { .. } => self.graph.operands(value).first().copied(),
            _ => Some(value),
        }
    }
}

/// The number behind the name of the list of layers in an origin: `layers.3.mlp` or `model.layers.3`.
fn layer_of(origin: &str, list: &str) -> Option<usize> {
    let list = list.trim_end_matches('.');
    let last = list.rsplit('.').next().unwrap_or(list);
    let rest = origin.split_once(&format!("{last}."))?.1;
    rest.split('.').next()?.parse().ok()
}
