//! The feed-forward part.

use super::linear::{Factor, Linear};
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
    /// How many inner values there are, where that is known.
    pub inner: Option<u64>,
    /// How many of them are computed, the first ones, where that is chosen when the model runs.
    pub active: Option<Dim>,
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
    /// The inner width of a part whose matrices can be cut: those that are no products of low rank.
    pub fn width(&self) -> Option<u64> {
        let up = match &self.up {
            Up::Plain(up) => vec![up],
            Up::Gated { gate, up } => vec![gate, up],
            Up::Packed { gate_up, .. } => vec![gate_up],
        };
        let whole = up.into_iter().chain([&self.down]).all(|linear| linear.factor == Factor::None);
        self.inner.filter(|_| whole)
    }

    /// `x` is `[…, H]`, and so is the result.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            // The first inner values of a part that begins in a row of its matrix.
            let part = |b: &mut GraphBuilder<'_>, linear: &Linear, from: u64| match &self.active {
                Some(active) => linear.apply_rows(b, x, &Dim::from(from), active),
                None => linear.apply(b, x),
            };
            let inner = match &self.up {
                Up::Plain(up) => {
                    let inner = part(b, up, 0);
                    self.act.apply(b, inner)
                }
                Up::Gated { gate, up } => {
                    let gate = part(b, gate, 0);
                    let up = part(b, up, 0);
                    let gate = self.act.apply(b, gate);
                    b.mul(gate, up)
                }
                Up::Packed { gate_up, inner } if self.active.is_some() => {
                    let gate = part(b, gate_up, 0);
                    let up = part(b, gate_up, *inner);
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
            match &self.active {
                Some(active) => self.down.apply_columns(b, inner, active),
                None => self.down.apply(b, inner),
            }
        })
    }
}
