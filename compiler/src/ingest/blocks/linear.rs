//! A projection.

use crate::graph::{Op, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::Dim;

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

    /// The `count` rows of the matrix from `first` on: `x` is `[…, K]`, the result `[…, count]`.
    pub fn apply_rows(&self, b: &mut GraphBuilder<'_>, x: ValueId, first: &Dim, count: &Dim) -> ValueId {
        b.scope(self.name, |b| {
            let w = b.weight(self.weight);
            let w = b.slice(w, 0, first.clone(), count.clone());
            let y = b.op(Op::MatMul { b_transposed: true }, &[x, w]);
            self.bias.map_or(y, |bias| {
                let bias = b.weight(bias);
                let bias = b.slice(bias, 0, first.clone(), count.clone());
                b.add(y, bias)
            })
        })
    }
    /// The first `count` columns of the matrix: `x` is `[…, count]`, the result `[…, N]`.
    pub fn apply_columns(&self, b: &mut GraphBuilder<'_>, x: ValueId, count: &Dim) -> ValueId {
        b.scope(self.name, |b| {
            let w = b.weight(self.weight);
            let w = b.slice(w, 1, Dim::zero(), count.clone());
            let y = b.op(Op::MatMul { b_transposed: true }, &[x, w]);
            self.bias.map_or(y, |bias| {
                let bias = b.weight(bias);
                b.add(y, bias)
            })
        })
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
