//! A projection.

use crate::graph::{ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;

/// `x · wᵀ (+ bias)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linear {
    /// What it is called in its layer.
    pub name: &'static str,
    /// `[N, K]`; `[R, K]` with [`Factor::Second`].
    pub weight: WeightId,
    /// `[N]`.
    pub bias: Option<WeightId>,
    pub factor: Factor,
}

/// A part of a projection of low rank R.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Factor {
    #[default]
    None,
    /// `x · (w + b a)ᵀ`, with a `[R, K]` and b `[N, R]`.
    Update { a: WeightId, b: WeightId },
    /// `x · (b w)ᵀ`, with b `[N, R]`.
    Second(WeightId),
}

impl Linear {
    /// A projection by one matrix.
    pub fn new(name: &'static str, weight: WeightId, bias: Option<WeightId>) -> Linear {
        Linear { name, weight, bias, factor: Factor::None }
    }

    /// `x` is `[…, K]`, the result `[…, N]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| match self.factor {
            Factor::None => b.linear(x, self.weight, self.bias),
            Factor::Update { a, b: second } => {
                let y = b.linear(x, self.weight, self.bias);
                let inner = b.linear(x, a, None);
                let update = b.linear(inner, second, None);
                b.add(y, update)
            }
            Factor::Second(second) => {
                let inner = b.linear(x, self.weight, None);
                b.linear(inner, second, self.bias)
            }
        })
    }
}
