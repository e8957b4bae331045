//! A pair of an encoder and a decoder that writes nothing: the decoder reads the text that the encoder read, one place
//! later, and a head reads its rows.

use super::encoder_decoder::{Declared, EncoderDecoder};
use super::linear::Linear;
use super::multi_head::ScoreTerms;
use super::stack::{Other, OtherStates, Scene};
use crate::graph::ValueId;
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{Task, sizes};

/// A pair with a head.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Without a head of its own.
    pub pair: EncoderDecoder,
    pub first: First,
    pub top: Top,
}

/// The token that the decoder reads first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First {
    Token(u32),
    /// The last one that is not this token of padding, as mBART's, which names the language.
    Last {
        pad: u32,
    },
}

/// What is read from the decoder's rows `[B, S, H]`.
#[derive(Clone, Debug)]
pub(crate) enum Top {
    /// The rows: `last_hidden_state`.
    States,
    /// Classes of a text `[B, n]`, `logits`, from the row of its last token `end`.
    Classes { end: u32, dense: Linear, out: Linear },
    /// Where an answer begins and ends `[B, S]`: `start_logits`, `end_logits`.
    Answer(Linear),
}

impl Reading {
    /// Declares sizes and adds the one way to run the model.
    pub fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::SOURCE, 1, self.pair.context);
        m.info.task = Task::Encoder;
        m.info.layers = u32::try_from(self.pair.decoder.layers.len()).unwrap_or(u32::MAX);
        m.info.context = self.pair.context.unwrap_or(0);
        m.info.vocab = self.pair.vocab;
        m.graph("forward", |b| self.forward(b));
    }

    fn forward(&self, b: &mut GraphBuilder<'_>) {
        let declared = Declared::default();
        let encoded = self.pair.encode(b, &declared);
        let Some(ids) = encoded.ids else { return };
        let shifted = self.shifted(b, ids);
        let other = Some(Other { mask: encoded.mask, states: OtherStates::Here(encoded.states) });
        let scene = Scene { scores: ScoreTerms::default(), other, ..Scene::default() };
        let x = self.pair.decode(b, &declared, shifted, Dim::zero(), scene);
        match &self.top {
            Top::States => b.output("last_hidden_state", x),
            Top::Classes { end, dense, out } => {
                let row = last_row(b, x, ids, *end);
                let hidden = dense.apply(b, row);
                let hidden = b.unary(UnaryOp::Tanh, hidden);
                let logits = out.apply(b, hidden);
                b.output("logits", logits);
            }
            Top::Answer(linear) => {
                let both = linear.apply(b, x);
                let mut shape = b.ty(both).shape.clone();
                shape.pop();
                for (at, name) in ["start_logits", "end_logits"].into_iter().enumerate() {
                    let column = b.slice(both, 2, Dim::from(at), Dim::one());
                    let column = b.reshape(column, &shape);
                    b.output(name, column);
                }
            }
        }
    }

    /// `ids` `[B, S]` one place later.
    fn shifted(&self, b: &mut GraphBuilder<'_>, ids: ValueId) -> ValueId {
        let shape = b.ty(ids).shape.clone();
        let place = b.iota(&shape, 1, Dim::zero());
        let [zero, one] = [0, 1].map(|v| b.i32(v));
        let before = b.sub(place, one);
        let before = b.binary(BinaryOp::Max, before, zero);
        let rest = at_places(b, ids, before);
        let first = match self.first {
            First::Token(token) => b.i32(i32::try_from(token).unwrap_or(i32::MAX)),
            First::Last { pad } => {
                let pad = b.i32(i32::try_from(pad).unwrap_or(i32::MAX));
                let padding = b.binary(BinaryOp::Eq, ids, pad);
                let visible = b.unary(UnaryOp::Not, padding);
                let count = b.cast(visible, Scalar::F32);
                let count = b.reduce(ReduceOp::Sum, count, &[1], true);
                let count = b.cast(count, Scalar::I32);
                let last = b.sub(count, one);
                let last = b.binary(BinaryOp::Max, last, zero);
                at_places(b, ids, last)
            }
        };
        let is_first = b.binary(BinaryOp::Eq, place, zero);
        b.select(is_first, first, rest)
    }
}

/// The tokens of `ids` `[B, S]` at places `[B, n]` of their rows.
fn at_places(b: &mut GraphBuilder<'_>, ids: ValueId, places: ValueId) -> ValueId {
    let shape = b.ty(ids).shape.clone();
    let at = in_all_rows(b, &shape, places);
    let flat = b.reshape(ids, &[frit_kernels::dim::product(&shape)]);
    b.gather(flat, at)
}

/// Places of rows of `[B, S]` as places of all rows one after the other.
fn in_all_rows(b: &mut GraphBuilder<'_>, shape: &[Dim], places: ValueId) -> ValueId {
    let [batch, len] = [0, 1].map(|i| shape.get(i).cloned().unwrap_or_else(Dim::one));
    let mut column = vec![batch];
    column.resize(b.ty(places).rank(), Dim::one());
    let row = b.iota(&column, 0, Dim::zero());
    let len = b.iota(&[Dim::one()], 0, len);
    let row = b.mul(row, len);
    b.add(row, places)
}

/// The row `[B, H]` of `x` `[B, S, H]` where `ids` `[B, S]` has its last token `end`; the first where it has none.
fn last_row(b: &mut GraphBuilder<'_>, x: ValueId, ids: ValueId, end: u32) -> ValueId {
    let shape = b.ty(ids).shape.clone();
    let width = b.ty(x).last();
    let end = b.i32(i32::try_from(end).unwrap_or(i32::MAX));
    let ends = b.binary(BinaryOp::Eq, ids, end);
    let place = b.iota(&shape, 1, Dim::zero());
    let place = b.cast(place, Scalar::F32);
    let zero = b.f32(0.0);
    let place = b.select(ends, place, zero);
    let last = b.reduce(ReduceOp::Max, place, &[1], false);
    let last = b.cast(last, Scalar::I32);
    let at = in_all_rows(b, &shape, last);
    let rows = b.reshape(x, &[frit_kernels::dim::product(&shape), width]);
    b.gather(rows, at)
}
