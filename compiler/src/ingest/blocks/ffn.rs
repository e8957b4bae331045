//! The feed-forward part.

use super::linear::Linear;
use crate::graph::ValueId;
use crate::ingest::activation::Activation;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

/// A feed-forward part: `down(inner(x))`.
#[derive(Clone, Debug)]
pub(crate) struct Ffn {
    pub name: &'static str,
    pub up: Up,
    pub act: Activation,
    pub down: Linear,
}

/// How the inner values come about.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    /// `act(up(x))`.
    Plain(Linear),
    /// `act(gate(x)) · up(x)`.
    Gated { gate: Linear, up: Linear },
    /// As [`Up::Gated`], with gate and up one after the other in one projection.
    Packed { gate_up: Linear, inner: u64 },
}

impl Ffn {
    /// `x` is `[…, H]`, and so is the result.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            let inner = match &self.up {
                Up::Plain(up) => {
                    let inner = up.apply(b, x);
                    self.act.apply(b, inner)
                }
                Up::Gated { gate, up } => {
                    let gate = gate.apply(b, x);
                    let up = up.apply(b, x);
                    let gate = self.act.apply(b, gate);
                    b.mul(gate, up)
                }
                Up::Packed { gate_up, inner } => {
                    let both = gate_up.apply(b, x);
                    let axis = b.ty(both).rank().saturating_sub(1);
                    let gate = b.slice(both, axis, Dim::zero(), Dim::from(*inner));
                    let up = b.slice(both, axis, Dim::from(*inner), Dim::from(*inner));
                    let gate = self.act.apply(b, gate);
                    b.mul(gate, up)
                }
            };
            self.down.apply(b, inner)
        })
    }
}
