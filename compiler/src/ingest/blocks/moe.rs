//! A mixture of experts: a router chooses some experts for each token, and only their weights are read.
//!
//! The weights of all experts are one tensor `[E, N, K]`. A product with an expert's weights is a product whose right
//! side is gathered by the token's choice, so the gather becomes an address inside the kernel of the product.

use super::ffn::Ffn;
use super::linear::Linear;
use crate::graph::{Op, ValueId, WeightId};
use crate::ingest::activation::Activation;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

/// A mixture of experts.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    pub name: &'static str,
    pub router: Router,
    pub experts: Experts,
    /// An expert that every token passes, and the projection to its gate.
    pub shared: Option<(Ffn, Option<Linear>)>,
}

/// What chooses experts.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    pub linear: Linear,
    pub experts: u64,
    /// Experts for each token.
    pub chosen: u64,
    pub scores: Scores,
    /// `[E]`: added to the scores where experts are chosen, not where they are weighed.
    pub correction: Option<WeightId>,
    pub groups: Option<Groups>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights.
    pub scale: f32,
}

/// From the router's logits to the scores by which experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scores {
    Softmax,
    Sigmoid,
    /// Logits choose; the weights are the softmax of the chosen ones.
    SoftmaxOfChosen,
}

/// Experts are chosen from the best groups only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    pub count: u64,
    pub chosen: u64,
    /// A group counts as much as its best experts, this many of them, together.
    pub best: u64,
}

/// The experts.
#[derive(Clone, Debug)]
pub(crate) struct Experts {
    pub up: ExpertUp,
    pub act: ExpertAct,
    pub down: ExpertLinear,
}

/// The projections of all experts.
#[derive(Clone, Debug)]
pub(crate) struct ExpertLinear {
    /// `[E, N, K]`, or `[E, K, N]` if `transposed`.
    pub weight: WeightId,
    pub transposed: bool,
    /// `[E, N]`.
    pub bias: Option<WeightId>,
}

/// The projections to the inner size.
#[derive(Clone, Debug)]
pub(crate) enum ExpertUp {
    Gated {
        gate: ExpertLinear,
        up: ExpertLinear,
    },
    /// Gate and up one after the other.
    Packed {
        gate_up: ExpertLinear,
        inner: u64,
    },
    /// Gate and up in turns.
    Interleaved {
        gate_up: ExpertLinear,
        inner: u64,
    },
}

/// From gate and up to the inner values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ExpertAct {
    /// `act(gate) · up`.
    Plain(Activation),
    /// `g·sigmoid(slope·g) · (u + 1)` with `g = min(gate, limit)` and u, up clamped to `[−limit, limit]`.
    Clamped { slope: f32, limit: f32 },
}

impl Mixture {
    /// `x` is `[B, S, H]`, and so is the result.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            let (choice, weights) = self.router.apply(b, x);
            let y = b.scope("experts", |b| self.experts.apply(b, x, choice, weights));
            match &self.shared {
                None => y,
                Some((ffn, gate)) => {
                    let shared = ffn.apply(b, x);
                    let shared = match gate {
                        Some(gate) => {
                            let gate = gate.apply(b, x);
                            let gate = b.unary(UnaryOp::Sigmoid, gate);
                            b.mul(shared, gate)
                        }
                        None => shared,
                    };
                    b.add(y, shared)
                }
            }
        })
    }
}

impl Router {
    /// The experts of each token of `x` `[B, S, H]`, I32 `[B, S, k]`, and their weights `[B, S, k]`.
    fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> (ValueId, ValueId) {
        b.scope("router", |b| {
            let logits = self.linear.apply(b, x);
            let scores = match self.scores {
                Scores::Softmax => b.softmax(logits),
                Scores::Sigmoid => b.unary(UnaryOp::Sigmoid, logits),
                Scores::SoftmaxOfChosen => logits,
            };
            let order = match self.correction {
                Some(correction) => {
                    let correction = b.weight(correction);
                    b.add(scores, correction)
                }
                None => scores,
            };
            let order = match self.groups {
                Some(groups) => self.in_best_groups(b, order, groups),
                None => order,
            };
            let rank = rank(b, order);
            let number = b.iota(&[Dim::from(self.experts)], 0, Dim::zero());
            let number = b.cast(number, Scalar::F32);
            let choice = self.of_each_rank(b, rank, number);
            let choice = b.cast(choice, Scalar::I32);
            let weights = self.of_each_rank(b, rank, scores);
            let weights = match self.scores {
                Scores::SoftmaxOfChosen => b.softmax(weights),
                _ => weights,
            };
            let weights = if self.normalise {
                let sum = b.reduce(ReduceOp::Sum, weights, &[2], true);
                b.binary(BinaryOp::Div, weights, sum)
            } else {
                weights
            };
            let scale = b.f32(self.scale);
            (choice, if self.scale == 1.0 { weights } else { b.mul(weights, scale) })
        })
    }

    /// `values` `[…, E]` of the expert of each rank below k: `[B, S, k]`.
    fn of_each_rank(&self, b: &mut GraphBuilder<'_>, rank: ValueId, values: ValueId) -> ValueId {
        let place = b.iota(&[Dim::from(self.chosen), Dim::one()], 0, Dim::zero());
        let place = b.cast(place, Scalar::F32);
        let rank = widened(b, rank);
        let is = b.binary(BinaryOp::Eq, rank, place);
        let values = widened(b, values);
        let zero = b.f32(0.0);
        let one = b.select(is, values, zero);
        let last = b.ty(one).rank().saturating_sub(1);
        b.reduce(ReduceOp::Sum, one, &[last], false)
    }

    /// `order` `[B, S, E]` with 0 for experts outside the best groups.
    fn in_best_groups(&self, b: &mut GraphBuilder<'_>, order: ValueId, groups: Groups) -> ValueId {
        let whole = b.ty(order).shape.clone();
        let mut split = whole.to_vec();
        split.truncate(2);
        split.extend([Dim::from(groups.count), Dim::from(self.experts / groups.count.max(1))]);
        let order = b.reshape(order, &split);
        let zero = b.f32(0.0);
        let value = match groups.best {
            1 => b.reduce(ReduceOp::Max, order, &[3], false),
            best => {
                let rank = rank(b, order);
                let best = b.f32(best as f32);
                let counts = b.binary(BinaryOp::Lt, rank, best);
                let counted = b.select(counts, order, zero);
                b.reduce(ReduceOp::Sum, counted, &[3], false)
            }
        };
        let rank = rank(b, value);
        let chosen = b.f32(groups.chosen as f32);
        let chosen = b.binary(BinaryOp::Lt, rank, chosen);
        split.pop();
        split.push(Dim::one());
        let chosen = b.reshape(chosen, &split);
        let order = b.select(chosen, order, zero);
        b.reshape(order, &whole)
    }
}

/// An axis of extent 1 before the last.
fn widened(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    let mut shape = b.ty(x).shape.to_vec();
    shape.insert(shape.len().saturating_sub(1), Dim::one());
    b.reshape(x, &shape)
}

/// How many elements of its row each element of `x` `[…, N]` comes behind: larger ones, and equal ones before it. F32.
fn rank(b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
    let shape = b.ty(x).shape.to_vec();
    let axis = shape.len();
    let extent = shape.last().cloned().unwrap_or_else(Dim::one);
    let mut column = shape;
    column.push(Dim::one());
    let own = b.reshape(x, &column);
    let other = widened(b, x);
    let larger = b.binary(BinaryOp::Lt, own, other);
    let equal = b.binary(BinaryOp::Eq, own, other);
    let own_at = b.iota(&[extent.clone(), Dim::one()], 0, Dim::zero());
    let other_at = b.iota(&[Dim::one(), extent], 1, Dim::zero());
    let before = b.binary(BinaryOp::Lt, other_at, own_at);
    let equal = b.binary(BinaryOp::And, equal, before);
    let ahead = b.binary(BinaryOp::Or, larger, equal);
    let ahead = b.cast(ahead, Scalar::F32);
    b.reduce(ReduceOp::Sum, ahead, &[axis], false)
}

impl Experts {
    /// `x` is `[B, S, H]`, `choice` and `weights` are `[B, S, k]`.
    fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, choice: ValueId, weights: ValueId) -> ValueId {
        let mut row = b.ty(x).shape.to_vec();
        row.splice(2..2, [Dim::one(), Dim::one()]);
        let x = b.reshape(x, &row);
        let [gate, up] = match &self.up {
            ExpertUp::Gated { gate, up } => [gate.apply(b, x, choice), up.apply(b, x, choice)],
            ExpertUp::Packed { gate_up, inner } => {
                let both = gate_up.apply(b, x, choice);
                [0, *inner].map(|from| b.slice(both, 4, Dim::from(from), Dim::from(*inner)))
            }
            ExpertUp::Interleaved { gate_up, inner } => {
                let both = gate_up.apply(b, x, choice);
                let mut shape = b.ty(both).shape.to_vec();
                shape.truncate(4);
                let flat: Vec<Dim> = shape.iter().cloned().chain([Dim::from(*inner)]).collect();
                shape.extend([Dim::from(*inner), Dim::constant(2)]);
                let both = b.reshape(both, &shape);
                [0u64, 1].map(|from| {
                    let part = b.slice(both, 5, Dim::from(from), Dim::one());
                    b.reshape(part, &flat)
                })
            }
        };
        let inner = self.act.apply(b, gate, up);
        let y = self.down.apply(b, inner, choice);
        let shape = b.ty(y).shape.to_vec();
        let flat: Vec<Dim> = [0, 1, 2, 4].iter().filter_map(|i| shape.get(*i).cloned()).collect();
        let y = b.reshape(y, &flat);
        let each: Vec<Dim> = flat.iter().take(3).cloned().chain([Dim::one()]).collect();
        let weights = b.reshape(weights, &each);
        let y = b.mul(y, weights);
        let y = b.transpose(y, &[0, 1, 3, 2]);
        b.reduce(ReduceOp::Sum, y, &[3], false)
    }
}

impl ExpertLinear {
    /// `x` is `[B, S, k or 1, 1, K]`, `choice` is `[B, S, k]`; the result is `[B, S, k, 1, N]`.
    fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId, choice: ValueId) -> ValueId {
        let weight = b.weight(self.weight);
        let weight = b.gather(weight, choice);
        let y = b.op(Op::MatMul { b_transposed: !self.transposed }, &[x, weight]);
        match self.bias {
            Some(bias) => {
                let bias = b.weight(bias);
                let bias = b.gather(bias, choice);
                let bias = widened(b, bias);
                b.add(y, bias)
            }
            None => y,
        }
    }
}

impl ExpertAct {
    fn apply(self, b: &mut GraphBuilder<'_>, gate: ValueId, up: ValueId) -> ValueId {
        match self {
            ExpertAct::Plain(act) => {
                let gate = act.apply(b, gate);
                b.mul(gate, up)
            }
            ExpertAct::Clamped { slope, limit } => {
                let [low, high] = [-limit, limit].map(|bound| b.f32(bound));
                let gate = b.binary(BinaryOp::Min, gate, high);
                let up = b.binary(BinaryOp::Max, up, low);
                let up = b.binary(BinaryOp::Min, up, high);
                let slope = b.f32(slope);
                let sharp = b.mul(gate, slope);
                let sharp = b.unary(UnaryOp::Sigmoid, sharp);
                let gate = b.mul(gate, sharp);
                let one = b.f32(1.0);
                let up = b.add(up, one);
                b.mul(gate, up)
            }
        }
    }
}
