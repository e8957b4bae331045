//! A naive f64 evaluator of graphs: the oracle that passes, fusion and backends are measured against.
//!
//! It reads `graph/` types and nothing else of the compiler, so that it cannot inherit a pass's mistake. Speed is not
//! its business.

mod array;
mod element;
mod ops;
mod scalar;
mod weights;

#[doc(hidden)]
pub mod random;

pub use array::Array;
pub use element::{Elements, hashed};
pub(crate) use scalar::{
    binary as scalar_binary, cast as scalar_cast, literal as scalar_literal, unary as scalar_unary,
};
pub use weights::weight_array;

use crate::graph::control::Control;
use crate::graph::{Graph, GraphInput, KvSlotId, Op, StateId, TensorType, ValueId, WeightId};
use frit_kernels::dim::{Dim, Sym};
use frit_plan::{InputFill, KvPart};
use std::collections::{BTreeMap, HashMap};

/// Why a graph has no value under an environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{fault}", node.as_ref().map_or(String::new(), |n| format!("{n}: ")))]
pub struct RefError {
    /// The node, by operation and origin.
    pub node: Option<String>,
    /// What is wrong.
    pub fault: String,
}

impl RefError {
    /// A fault without a place.
    pub fn new(fault: String) -> Self {
        RefError { node: None, fault }
    }
}

/// What a graph is evaluated under.
pub struct Env<'a> {
    /// Values of sizes.
    pub sizes: BTreeMap<String, i64>,
    /// Inputs by name; one that is missing takes its fill.
    pub inputs: BTreeMap<String, Array>,
    /// States before the run.
    pub states: BTreeMap<StateId, Array>,
    /// What each part of each cache slot holds, `[B, H, P, D]`; a missing one is empty.
    pub past: HashMap<(KvSlotId, KvPart), Array>,
    /// Weights.
    pub weights: &'a dyn Fn(WeightId) -> Result<Array, String>,
    /// Whether every value is rounded to F32 once it is computed: what any evaluation in F32 loses at least.
    pub rounded: bool,
}

impl<'a> Env<'a> {
    /// An environment with weights only.
    pub fn new(weights: &'a dyn Fn(WeightId) -> Result<Array, String>) -> Self {
        Env {
            sizes: BTreeMap::new(),
            inputs: BTreeMap::new(),
            states: BTreeMap::new(),
            past: HashMap::new(),
            weights,
            rounded: false,
        }
    }
    fn dim(&self, d: &Dim) -> Result<i64, RefError> {
        let size = |s: &Sym| if let Sym::Size(n) = s { self.sizes.get(&**n).copied() } else { None };
        d.eval(&size).map_err(|e| RefError::new(e.to_string()))
    }
    fn extent(&self, d: &Dim) -> Result<usize, RefError> {
        let v = self.dim(d)?;
        usize::try_from(v).map_err(|_| RefError::new(format!("the extent {d} is {v}")))
    }
    fn shape(&self, shape: &[Dim]) -> Result<Vec<usize>, RefError> {
        shape.iter().map(|d| self.extent(d)).collect()
    }
}

/// What a run leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Outputs in declaration order.
    pub outputs: Vec<(String, Array)>,
    /// States that outputs are kept in.
    pub states: BTreeMap<StateId, Array>,
    /// Slots that were appended to, with past and new contents.
    pub caches: HashMap<(KvSlotId, KvPart), Array>,
}

/// The outputs of a graph, by name in declaration order.
///
/// # Errors
/// An unbound size, a missing input, or operands that do not fit; with the node.
pub fn evaluate(graph: &Graph, env: &Env<'_>) -> Result<Vec<(String, Array)>, RefError> {
    run(graph, env).map(|o| o.outputs)
}

/// The outputs of a graph, and the states and caches as the run leaves them.
///
/// # Errors
/// As [`evaluate`].
pub fn run(graph: &Graph, env: &Env<'_>) -> Result<Outcome, RefError> {
    let mut out = Outcome::default();
    let values = eval_graph(graph, env, &HashMap::new(), &mut out.caches)?;
    for (o, v) in graph.outputs.iter().zip(values) {
        if let Some(s) = o.state {
            out.states.insert(s, v.clone());
        }
        out.outputs.push((o.name.clone(), v));
    }
    Ok(out)
}

type Caches = HashMap<(KvSlotId, KvPart), Array>;

fn eval_graph(
    graph: &Graph,
    env: &Env<'_>,
    bound: &HashMap<ValueId, Array>,
    caches: &mut Caches,
) -> Result<Vec<Array>, RefError> {
    let order = graph.order();
    let mut uses: HashMap<ValueId, usize> = HashMap::new();
    for v in order.iter().flat_map(|v| graph.operands(*v)).chain(graph.outputs.iter().map(|o| o.value)) {
        *uses.entry(v).or_default() += 1;
    }
    let mut values: HashMap<ValueId, Array> = HashMap::new();
    for v in order {
        let operands = graph.operands(v);
        let value = match bound.get(&v) {
            Some(x) => x.clone(),
            None => {
                let xs = operands.iter().filter_map(|o| values.get(o)).collect::<Vec<_>>();
                if xs.len() != operands.len() {
                    return Err(at_node(graph, v, RefError::new("an operand has no value".into())));
                }
                let mut x = eval_node(graph, v, &xs, env, caches).map_err(|e| at_node(graph, v, e))?;
                if env.rounded {
                    x.data.iter_mut().for_each(|v| *v = f64::from(*v as f32));
                }
                check(&x, graph.ty(v), env).map_err(|e| at_node(graph, v, e))?;
                x
            }
        };
        values.insert(v, value);
        for o in operands {
            if let Some(n) = uses.get_mut(&o) {
                *n -= 1;
                if *n == 0 {
                    values.remove(&o);
                }
            }
        }
    }
    let find = |v: &ValueId| values.get(v).cloned().ok_or_else(|| RefError::new("an output has no value".into()));
    graph.outputs.iter().map(|o| find(&o.value)).collect()
}

fn at_node(graph: &Graph, v: ValueId, e: RefError) -> RefError {
    let n = graph.node(v);
    RefError { node: e.node.or_else(|| Some(format!("{} ({})", n.op.name(), n.origin))), fault: e.fault }
}

fn check(x: &Array, ty: &TensorType, env: &Env<'_>) -> Result<(), RefError> {
    let want = env.shape(&ty.shape)?;
    if want == x.shape {
        Ok(())
    } else {
        Err(RefError::new(format!("the value has shape {:?}, {ty} is {want:?}", x.shape)))
    }
}

fn eval_node(graph: &Graph, v: ValueId, xs: &[&Array], env: &Env<'_>, caches: &mut Caches) -> Result<Array, RefError> {
    let node = graph.node(v);
    let arity = |n: usize| RefError::new(format!("{n} operands expected, {} found", xs.len()));
    let x = |i: usize| xs.get(i).copied().ok_or_else(|| arity(i + 1));
    Ok(match &node.op {
        Op::Input(name) => match env.inputs.get(name) {
            Some(x) => x.clone(),
            None => filled(graph.inputs.iter().find(|i| i.value == v), name, &env.shape(&node.ty.shape)?)?,
        },
        Op::State(id) => match env.states.get(id) {
            Some(x) => x.clone(),
            None => return Err(RefError::new(format!("state {} has no value", id.0))),
        },
        Op::Weight(id) => (env.weights)(*id).map_err(RefError::new)?,
        Op::Const(l) => Array::scalar(scalar::literal(*l)),
        Op::Iota { axis, offset } => {
            let (shape, offset) = (env.shape(&node.ty.shape)?, env.dim(offset)?);
            let mut along = vec![0; shape.len()];
            *along.get_mut(*axis).ok_or_else(|| RefError::new(format!("no axis {axis}")))? = 1;
            let mut data = Vec::new();
            array::for_each(&shape, &[&along], |i| data.push((i[0] as i64 + offset) as f64));
            Array::new(shape, data)?
        }
        Op::Unary(op) => ops::unary(*op, x(0)?),
        Op::Binary(op) => {
            let of = graph.operands(v).first().map_or(node.ty.scalar, |a| graph.ty(*a).scalar);
            ops::binary(*op, of, x(0)?, x(1)?)?
        }
        Op::Select => ops::select(x(0)?, x(1)?, x(2)?)?,
        Op::Cast(to) => ops::cast(*to, x(0)?),
        Op::Reshape(shape) => Array::new(env.shape(shape)?, x(0)?.data.clone())?,
        Op::Transpose(perm) => ops::transpose(x(0)?, perm)?,
        Op::Broadcast(shape) => ops::broadcast(x(0)?, &env.shape(shape)?)?,
        Op::Slice { axis, start, len } => ops::slice(x(0)?, *axis, env.extent(start)?, env.extent(len)?)?,
        Op::Concat { axis } => ops::concat(xs, *axis)?,
        Op::Gather => ops::gather(x(0)?, x(1)?)?,
        Op::Reduce { op, axes, keep } => ops::reduce(*op, x(0)?, axes, *keep)?,
        Op::MatMul { b_transposed } => ops::matmul(x(0)?, x(1)?, *b_transposed)?,
        Op::Softmax => ops::softmax(x(0)?),
        Op::Norm { kind, eps, has_gain, has_bias } => {
            let gain = has_gain.then(|| x(1)).transpose()?;
            let bias = has_bias.then(|| x(1 + usize::from(*has_gain))).transpose()?;
            ops::norm(*kind, f64::from(eps.0), x(0)?, gain, bias)
        }
        Op::Rope { style, rotary_dim } => ops::rope(*style, *rotary_dim as usize, x(0)?, x(1)?, x(2)?, x(3)?)?,
        Op::KvLoad { slot, part } => match env.past.get(&(*slot, *part)) {
            Some(x) => x.clone(),
            None if node.ty.shape.get(2).map(|d| env.dim(d)).transpose()? == Some(0) => {
                Array::full(&env.shape(&node.ty.shape)?, 0.0)?
            }
            None => return Err(RefError::new(format!("slot {} is empty", slot.0))),
        },
        Op::KvAppend { slot, part, past } => {
            let new = x(0)?;
            let all = match env.past.get(&(*slot, *part)) {
                Some(before) if env.dim(past)? > 0 => ops::concat(&[before, new], 2)?,
                _ => new.clone(),
            };
            caches.insert((*slot, *part), all.clone());
            all
        }
        Op::KvRead { slot, part } => match caches.get(&(*slot, *part)) {
            Some(x) => x.clone(),
            None => return Err(RefError::new(format!("slot {} was not appended to", slot.0))),
        },
        Op::MergeParts { parts } => ops::merge_parts(x(0)?, *parts as usize)?,
        Op::Attention(a) | Op::AttentionParts { attrs: a, .. } => {
            let parts = node.op.attention().and_then(|(_, parts)| parts).map(|n| n as usize);
            let mask = a.has_mask.then(|| x(3)).transpose()?;
            let bias = a.has_bias.then(|| x(3 + usize::from(a.has_mask))).transpose()?;
            let offset = match (&a.causal, a.window) {
                (Some(d), _) => Some(env.dim(d)?),
                (None, Some(_)) => return Err(RefError::new("a window without causal masking".into())),
                (None, None) => None,
            };
            ops::attention(&ops::Attention { q: x(0)?, k: x(1)?, v: x(2)?, mask, bias, attrs: a, offset, parts })?
        }
        Op::Control(c) => control(c, xs, env, caches)?,
    })
}

fn filled(input: Option<&GraphInput>, name: &str, shape: &[usize]) -> Result<Array, RefError> {
    match input.map(|i| i.fill) {
        Some(InputFill::Zeros) => Array::full(shape, 0.0),
        Some(InputFill::Ones) => Array::full(shape, 1.0),
        _ => Err(RefError::new(format!("the input `{name}` is missing"))),
    }
}

fn control(c: &Control, xs: &[&Array], env: &Env<'_>, caches: &mut Caches) -> Result<Array, RefError> {
    let body = c.body();
    let mut run = |args: Vec<Array>| -> Result<Array, RefError> {
        let bound = body.inputs.iter().map(|i| i.value).zip(args).collect();
        let none = || RefError::new("a nested graph without output".into());
        eval_graph(body, env, &bound, caches)?.into_iter().next().ok_or_else(none)
    };
    let missing = || RefError::new("a nested graph without operands".into());
    let own = |x: &&Array| (*x).clone();
    match c {
        Control::Loop { trips, per_trip, .. } => {
            let mut carried = xs.first().map(own).ok_or_else(missing)?;
            for trip in 0..env.extent(trips)? {
                let arg = |(i, x): (usize, &&Array)| match (i, per_trip.contains(&i)) {
                    (_, true) => {
                        let one = ops::slice(x, 0, trip, 1)?;
                        Array::new(x.shape.get(1..).unwrap_or_default(), one.data)
                    }
                    (0, false) => Ok(carried.clone()),
                    (_, false) => Ok((*x).clone()),
                };
                let args = xs.iter().enumerate().map(arg).collect::<Result<Vec<_>, _>>()?;
                carried = run(args)?;
            }
            Ok(carried)
        }
        Control::Predicated { .. } | Control::Exit { .. } => {
            let (kept, flag) = (xs.first().map(own).ok_or_else(missing)?, xs.last().map(own).ok_or_else(missing)?);
            let new = run(xs.iter().map(own).collect())?;
            let mut shape = flag.shape.clone();
            shape.resize(kept.rank().max(shape.len()), 1);
            let flag = Array::new(shape, flag.data)?;
            match c {
                Control::Exit { .. } => ops::select(&flag, &kept, &new),
                _ => ops::select(&flag, &new, &kept),
            }
        }
    }
}

#[cfg(test)]
mod tests;
