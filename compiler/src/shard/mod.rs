//! Tensor parallelism, simulated: a model's graphs as `n` devices would run them, in one process.
//!
//! A product with a weight `[N, K]` is split by columns, each device holding N/n rows of the weight and giving a slice of
//! the result; pointwise operations stay on the slices; a product whose left side is in slices is split by rows, each
//! device holding K/n columns of the weight and giving a summand. Slices become whole by an all-gather, summands by an
//! all-reduce. In the graph of all devices these are a concatenation and a sum; [`Exchange`] says what goes over the wire.
//! Everything else runs on every device alike and is in the graph once.

mod volume;

pub use volume::{weight_gathered, weight_stationary_1d, weight_stationary_2d};

use crate::graph::{Graph, GraphError, GraphInput, GraphOutput, Op, ValueId};
use crate::model::{Model, ModelGraph};
use frit_kernels::dim::Dim;
use frit_kernels::spec::BinaryOp;
use std::collections::HashMap;

/// How devices come to a value together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Slices of the last axis, put together on every device.
    AllGather,
    /// Summands, added up on every device.
    AllReduce,
}

/// A value that devices exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// How.
    pub collective: Collective,
    /// The operation whose result is exchanged.
    pub origin: String,
    /// Elements of the whole value.
    pub elements: Dim,
}

impl Exchange {
    /// F32 elements that each of `devices` sends: of v elements, (n − 1)·v/n for a gather in a ring and twice as many for a
    /// sum, which is a scattered reduction and a gather (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for
    /// clusters of workstations", 2009).
    pub fn sent_elements(&self, devices: u64) -> Dim {
        let each = self.elements.clone() * Dim::from(devices.saturating_sub(1));
        let rounds = match self.collective {
            Collective::AllGather => 1,
            Collective::AllReduce => 2,
        };
        (each * Dim::constant(rounds)).div(&Dim::from(devices.max(1)))
    }
}

/// A model over devices.
#[derive(Clone)]
pub struct Sharded {
    /// What all devices compute, in one graph each.
    pub model: Model,
    /// By graph, in order.
    pub exchanges: Vec<Vec<Exchange>>,
    /// Devices.
    pub devices: u64,
}

/// Splits every product with a weight whose extents divide by `devices`.
///
/// # Errors
/// No device, or a graph that breaks the rules of the IR.
pub fn tensor_parallel(model: &Model, devices: u64) -> Result<Sharded, GraphError> {
    if devices == 0 {
        return Err(GraphError { node: "the mesh".into(), fault: "has no device".into() });
    }
    let mut out = Sharded { model: model.clone(), exchanges: Vec::new(), devices };
    for (from, to) in model.graphs.iter().zip(&mut out.model.graphs) {
        let mut split = Splitter::new(model, from, devices);
        split.run()?;
        to.graph = split.to;
        out.exchanges.push(split.exchanges);
    }
    Ok(out)
}

/// Where a value of the old graph is in the new one.
#[derive(Clone, Debug)]
enum Placed {
    /// On every device.
    Whole(ValueId),
    /// A slice of the last axis on each.
    Slices(Vec<ValueId>),
}

struct Splitter<'a> {
    model: &'a Model,
    from: &'a ModelGraph,
    to: Graph,
    placed: HashMap<ValueId, Placed>,
    /// Values that were gathered already.
    whole: HashMap<ValueId, ValueId>,
    exchanges: Vec<Exchange>,
    devices: u64,
}

impl<'a> Splitter<'a> {
    fn new(model: &'a Model, from: &'a ModelGraph, devices: u64) -> Self {
        let (placed, whole) = (HashMap::new(), HashMap::new());
        Splitter { model, from, to: Graph::new(), placed, whole, exchanges: Vec::new(), devices }
    }
    fn run(&mut self) -> Result<(), GraphError> {
        let old = &self.from.graph;
        for v in old.order() {
            let placed = self.place(v)?;
            self.placed.insert(v, placed);
        }
        for i in &old.inputs {
            let value = self.gathered(i.value)?;
            self.to.inputs.push(GraphInput { value, ..i.clone() });
        }
        for o in &old.outputs {
            let value = self.gathered(o.value)?;
            self.to.outputs.push(GraphOutput { value, ..o.clone() });
        }
        Ok(())
    }
    fn place(&mut self, v: ValueId) -> Result<Placed, GraphError> {
        let old = &self.from.graph;
        let node = old.node(v);
        let ops = old.operands(v);
        let sliced = |s: &Self, o: &ValueId| matches!(s.placed.get(o), Some(Placed::Slices(_)));
        match &node.op {
            Op::MatMul { b_transposed: true } if self.devices > 1 => {
                if let Some([n, k]) = ops.get(1).and_then(|w| self.weight(*w)) {
                    return self.product(v, &ops, n, k);
                }
            }
            Op::Unary(_) | Op::Cast(_) | Op::Binary(_) | Op::Select if ops.iter().any(|o| sliced(self, o)) => {
                let last = old.ty(v).last();
                let slices = (0..self.devices)
                    .map(|i| {
                        let args = ops.iter().map(|o| self.slice(*o, i, &last)).collect::<Result<Vec<_>, _>>()?;
                        self.to.add(node.op.clone(), &args, &node.origin)
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                return Ok(Placed::Slices(slices));
            }
            _ => {}
        }
        let args = ops.iter().map(|o| self.gathered(*o)).collect::<Result<Vec<_>, _>>()?;
        Ok(Placed::Whole(self.to.push(node.op.clone(), &args, node.ty.clone(), &node.origin)))
    }
    /// Extents of a plain weight `[N, K]`.
    fn weight(&self, v: ValueId) -> Option<[u64; 2]> {
        let Op::Weight(id) = self.from.graph.op(v) else { return None };
        let info = self.model.tables.weight_info(*id)?;
        let [n, k] = info.shape.as_slice() else { return None };
        let plain = !info.storage.is_quantised();
        let extent = |d: &Dim| d.as_const().and_then(|v| u64::try_from(v).ok());
        if plain { Some([extent(n)?, extent(k)?]) } else { None }
    }
    fn product(&mut self, v: ValueId, ops: &[ValueId], n: u64, k: u64) -> Result<Placed, GraphError> {
        let old = &self.from.graph;
        let node = old.node(v);
        let (x, w) = match ops {
            [x, w] => (*x, self.gathered(*w)?),
            _ => return Err(GraphError { node: node.origin.clone(), fault: "a product of other than two".into() }),
        };
        let count = self.devices;
        let part = |s: &mut Self, axis: usize, extent: u64, i: u64| {
            let (start, len) = (Dim::from(extent / count * i), Dim::from(extent / count));
            s.to.add(Op::Slice { axis, start, len }, &[w], &node.origin)
        };
        if let Some(Placed::Slices(slices)) = self.placed.get(&x).cloned()
            && k % count == 0
        {
            let mut sum = None;
            for (i, x) in (0..count).zip(slices) {
                let w = part(self, 1, k, i)?;
                let term = self.to.add(node.op.clone(), &[x, w], &node.origin)?;
                sum = Some(match sum {
                    Some(sum) => self.to.add(Op::Binary(BinaryOp::Add), &[sum, term], &node.origin)?,
                    None => term,
                });
            }
            if let Some(sum) = sum {
                self.exchange(Collective::AllReduce, v);
                return Ok(Placed::Whole(sum));
            }
        }
        let x = self.gathered(x)?;
        if n % count != 0 {
            return Ok(Placed::Whole(self.to.add(node.op.clone(), &[x, w], &node.origin)?));
        }
        let slices = (0..count)
            .map(|i| {
                let w = part(self, 0, n, i)?;
                self.to.add(node.op.clone(), &[x, w], &node.origin)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Placed::Slices(slices))
    }
    fn exchange(&mut self, collective: Collective, v: ValueId) {
        let old = &self.from.graph;
        self.exchanges.push(Exchange { collective, origin: old.node(v).origin.clone(), elements: old.ty(v).elems() });
    }
    /// The whole of a value of the old graph.
    fn gathered(&mut self, v: ValueId) -> Result<ValueId, GraphError> {
        let slices = match self.placed.get(&v) {
            Some(Placed::Whole(w)) => return Ok(*w),
            Some(Placed::Slices(slices)) => slices.clone(),
            None => return Err(GraphError { node: "the mesh".into(), fault: "a value before its operands".into() }),
        };
        if let Some(w) = self.whole.get(&v) {
            return Ok(*w);
        }
        let axis = self.from.graph.ty(v).shape.len().saturating_sub(1);
        let origin = self.from.graph.node(v).origin.clone();
        let w = self.to.add(Op::Concat { axis }, &slices, &origin)?;
        self.exchange(Collective::AllGather, v);
        self.whole.insert(v, w);
        Ok(w)
    }
    /// Device `i`'s slice of an operand of a pointwise operation whose result has `last` elements along its last axis.
    fn slice(&mut self, v: ValueId, i: u64, last: &Dim) -> Result<ValueId, GraphError> {
        if let Some(Placed::Slices(slices)) = self.placed.get(&v)
            && let Some(s) = slices.get(i as usize)
        {
            return Ok(*s);
        }
        let w = self.gathered(v)?;
        let ty = self.to.ty(w).clone();
        let Some(extent) = last.as_const().filter(|_| ty.shape.last() == Some(last)) else { return Ok(w) };
        let each = extent.unsigned_abs() / self.devices;
        let slice = Op::Slice { axis: ty.shape.len() - 1, start: Dim::from(each * i), len: Dim::from(each) };
        let origin = self.from.graph.node(v).origin.clone();
        self.to.add(slice, &[w], &origin)
    }
}
