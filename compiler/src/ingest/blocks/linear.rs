//! A projection.

use crate::graph::{ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;

/// `x · wᵀ (+ bias)`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// What it is called in its layer.
    pub name: &'static str,
    /// `[N, K]`.
    pub weight: WeightId,
    /// `[N]`.
    pub bias: Option<WeightId>,
}

impl Linear {
    /// `x` is `[…, K]`, the result `[…, N]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| b.linear(x, self.weight, self.bias))
    }
}
