//! Adaptive computation time (Graves 2016, as the Universal Transformer uses it): each token stops after the trips that
//! it needs. A trip is a run of layers with the same weights; who takes part in it is decided on the device.

use super::depth::tell;
use super::linear::Linear;
use crate::graph::ValueId;
use crate::ingest::builder::GraphBuilder;
use crate::transform::extension::Halt;
use frit_kernels::spec::{BinaryOp, UnaryOp};

/// What a token has so far; all `[B, S, 1]` but for `result`.
#[derive(Clone, Copy)]
pub(super) struct Halting {
    /// Sum of the weights, 1 where it has stopped.
    sum: ValueId,
    /// Bool: who takes part in the trip under way.
    runs: ValueId,
    /// Bool: who takes part in the one behind it.
    goes_on: ValueId,
    /// What the trip under way weighs.
    weight: ValueId,
    /// `[B, S, H]`.
    result: Option<ValueId>,
}

/// Before a trip: who takes part in it and who stops behind it. `x` is `[B, S, H]`, `layers` how many ran already.
pub(super) fn begin(
    b: &mut GraphBuilder<'_>,
    halt: &Halt,
    unit: &Linear,
    before: Option<Halting>,
    x: ValueId,
    layers: usize,
) -> Halting {
    let p = unit.apply(b, x);
    let p = b.unary(UnaryOp::Sigmoid, p);
    let threshold = b.f32(halt.threshold);
    let one = b.f32(1.0);
    let Some(old) = before else {
        let stops = b.binary(BinaryOp::Lt, threshold, p);
        let goes_on = b.unary(UnaryOp::Not, stops);
        let weight = b.select(stops, one, p);
        return Halting { sum: weight, runs: goes_on, goes_on, weight, result: None };
    };
    let runs = old.goes_on;
    tell(b, &format!("trip.{layers}+{}", halt.body), runs);
    let sum = b.add(old.sum, p);
    let over = b.binary(BinaryOp::Lt, threshold, sum);
    let stays = b.unary(UnaryOp::Not, over);
    let rest = b.sub(one, old.sum);
    let weight = b.select(over, rest, p);
    let sum = b.select(over, one, sum);
    let sum = b.select(runs, sum, old.sum);
    let goes_on = b.binary(BinaryOp::And, runs, stays);
    Halting { sum, runs, goes_on, weight, result: old.result }
}

impl Halting {
    /// Who takes part in the trip under way; `None`: all do.
    pub fn running(&self) -> Option<ValueId> {
        self.result.map(|_| self.runs)
    }
    /// Behind a trip that gave `y` `[B, S, H]`: what each token has, and what those that go on begin the next one with.
    pub fn end(self, b: &mut GraphBuilder<'_>, y: ValueId) -> (Halting, ValueId) {
        let own = b.mul(y, self.weight);
        let result = match self.result {
            None => own,
            Some(old) => {
                let one = b.f32(1.0);
                let rest = b.sub(one, self.weight);
                let kept = b.mul(old, rest);
                let mixed = b.add(own, kept);
                b.select(self.runs, mixed, old)
            }
        };
        let next = b.select(self.goes_on, y, result);
        (Halting { result: Some(result), ..self }, next)
    }
    /// The result of the trips so far.
    pub fn result(&self) -> Option<ValueId> {
        self.result
    }
}
