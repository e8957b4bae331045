//! Models with an encoder, which reads a text or a signal once, and a decoder, which writes token by token and attends
//! to what the encoder made.
//!
//! There are four ways to run one. `forward` takes both sequences and gives logits at every position. `encode` runs the
//! encoder and leaves keys and values for the decoder's cross-attention in cache slots. `prefill` and `decode` go on
//! from there, as those of decoders do.

use super::linear::Linear;
use super::multi_head::ScoreTerms;
use super::norm::Norm;
use super::patches::Conv1d;
use super::relative::RelativeBias;
use super::stack::{Other, OtherStates, Scene, Stack, StackLayer};
use crate::graph::{KvSlotId, StateId, ValueId, WeightId};
use crate::ingest::activation::Activation;
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::decoding::{self, Phase};
use crate::ingest::error::Gap;
use crate::ingest::policy::RunPolicy;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{InputFill, Task, sizes};

/// An encoder and a decoder.
#[derive(Clone, Debug)]
pub(crate) struct EncoderDecoder {
    pub source: Source,
    pub encoder: Stack,
    /// The encoder's relative positions.
    pub encoder_bias: Option<RelativeBias>,
    pub target: TokenEmbedding,
    pub decoder: Stack,
    pub decoder_bias: Option<RelativeBias>,
    /// What the decoder's rows are multiplied with in front of the head.
    pub head_scale: Option<f32>,
    /// To logits; `None` where something else is read from the decoder's rows.
    pub head: Option<Linear>,
    pub vocab: u64,
    /// The most tokens that the decoder writes, where there is a limit.
    pub context: Option<u64>,
    /// Tokens that the decoder begins with.
    pub start: Vec<u32>,
}

/// What the encoder reads.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Tokens; `most` of them at most.
    Tokens { embedding: TokenEmbedding, vocab: u64, most: Option<u64> },
    /// `[B, features, frames]`.
    Signal(SignalStem),
}

/// Rows for tokens.
#[derive(Clone, Debug)]
pub(crate) struct TokenEmbedding {
    /// `[vocabulary, H]`.
    pub words: WeightId,
    /// What a row is multiplied with.
    pub scale: Option<f32>,
    pub positions: Option<PositionTable>,
    pub norm: Option<Norm>,
    /// Whether positions are added behind the norm.
    pub positions_after_norm: bool,
}

/// Rows for positions.
#[derive(Clone, Debug)]
pub(crate) struct PositionTable {
    /// `[rows, H]`.
    pub table: WeightId,
    pub count: Counting,
}

/// Which row a token has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counting {
    /// Its place plus this.
    From(u64),
    /// See [`counted_positions`]; the token of padding.
    Visible { pad: u64 },
}

/// Two convolutions over a signal, and positions.
#[derive(Clone, Debug)]
pub(crate) struct SignalStem {
    pub features: u64,
    pub frames: u64,
    pub convs: [Conv1d; 2],
    pub act: Activation,
    /// `[places, H]`.
    pub positions: WeightId,
}

/// What the graphs of one model share.
#[derive(Default)]
pub(super) struct Declared {
    own: Vec<KvSlotId>,
    cross: Vec<KvSlotId>,
    source_mask: Option<StateId>,
    encoder_classes: Option<WeightId>,
    decoder_classes: Option<WeightId>,
}

/// What the encoder made.
pub(super) struct Encoded {
    pub states: ValueId,
    pub mask: Option<ValueId>,
    /// The tokens `[B, T]`, where it reads tokens.
    pub ids: Option<ValueId>,
}

impl TokenEmbedding {
    /// Rows `[B, S, H]` of the tokens `ids` `[B, S]`, the first of which is at place `past`.
    fn apply(&self, b: &mut GraphBuilder<'_>, ids: ValueId, past: Dim) -> ValueId {
        let table = b.weight(self.words);
        let mut x = b.gather(table, ids);
        if let Some(scale) = self.scale {
            let scale = b.f32(scale);
            x = b.mul(x, scale);
        }
        let norm = |b: &mut GraphBuilder<'_>, x| self.norm.as_ref().map_or(x, |norm| norm.apply(b, x));
        if self.positions_after_norm {
            x = norm(b, x);
        }
        if let Some(PositionTable { table, count }) = &self.positions {
            let table = b.weight(*table);
            let tokens = b.ty(ids).shape.get(1).cloned().unwrap_or_else(Dim::one);
            let rows = match count {
                Counting::From(first) => b.slice(table, 0, past + Dim::from(*first), tokens),
                Counting::Visible { pad } => {
                    let at = counted_positions(b, ids, *pad, past);
                    b.gather(table, at)
                }
            };
            x = b.add(x, rows);
        }
        if self.positions_after_norm { x } else { norm(b, x) }
    }
}

impl SignalStem {
    /// Rows the encoder sees.
    pub fn places(&self) -> u64 {
        let [first, second] = &self.convs;
        second.places(first.places(self.frames))
    }
    fn apply(&self, b: &mut GraphBuilder<'_>, signal: ValueId) -> ValueId {
        let [first, second] = &self.convs;
        let x = b.transpose(signal, &[2, 0, 1]);
        let x = first.apply(b, x, self.frames);
        let x = self.act.apply(b, x);
        let x = b.transpose(x, &[1, 0, 2]);
        let x = second.apply(b, x, first.places(self.frames));
        let x = self.act.apply(b, x);
        let positions = b.weight(self.positions);
        b.add(x, positions)
    }
}

/// The encoder of tokens by itself.
#[derive(Clone, Debug)]
pub(crate) struct TokenEncoder {
    pub embedding: TokenEmbedding,
    pub vocab: u64,
    pub encoder: Stack,
    pub bias: RelativeBias,
}

impl TokenEncoder {
    /// Declares sizes and adds the one way to run the model.
    pub fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, None);
        m.info.task = Task::Encoder;
        m.info.layers = u32::try_from(self.encoder.layers.len()).unwrap_or(u32::MAX);
        m.info.vocab = self.vocab;
        let classes = self.bias.constant(m, "encoder.classes");
        m.graph("forward", |b| {
            let (batch, len) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
            let shape = [batch, len.clone()];
            let ids = b.input("input_ids", Scalar::I32, &shape);
            let attended = b.input_or("attention_mask", Scalar::I32, &shape, InputFill::Ones);
            let visible = b.cast(attended, Scalar::Bool);
            let mask = Some(key_mask(b, visible));
            let classes = Some(self.bias.classes(b, classes, Dim::zero(), len.clone(), len));
            let bias = shared_bias(b, Some(&self.bias), classes);
            let scores = ScoreTerms { mask, bias, causal: None };
            let states = b.scope("encoder", |b| {
                let x = b.scope("embedding", |b| self.embedding.apply(b, ids, Dim::zero()));
                self.encoder.apply(b, &Scene { scores, classes, ..Scene::default() }, x)
            });
            b.output("last_hidden_state", states);
        });
    }
}

impl EncoderDecoder {
    /// Rows of the encoder.
    fn source_len(&self) -> Dim {
        match &self.source {
            Source::Tokens { .. } => Dim::size(sizes::SOURCE),
            Source::Signal(stem) => Dim::from(stem.places()),
        }
    }

    /// Declares sizes, states and cache slots, and adds the ways to run the model.
    pub fn build(&self, m: &mut ModelBuilder) {
        let batch = Dim::size(sizes::BATCH);
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, None);
        m.size(sizes::PAST, 0, None);
        m.size(sizes::CAPACITY, 1, self.context);
        if let Source::Tokens { vocab, most, .. } = &self.source {
            m.size(sizes::SOURCE, 1, *most);
            m.info.source_vocab = *vocab;
        }
        m.info.task = Task::EncoderDecoder;
        m.info.layers = u32::try_from(self.decoder.layers.len()).unwrap_or(u32::MAX);
        m.info.context = self.context.unwrap_or(0);
        m.info.vocab = self.vocab;
        m.info.start.clone_from(&self.start);
        let slot = |m: &mut ModelBuilder, name: String, layer: &StackLayer, len: Dim| {
            let a = &layer.attention.run;
            m.kv_slot_of(&name, a.heads, a.head_dim, a.head_dim, len)
        };
        let layers = &self.decoder.layers;
        let numbered = || layers.iter().enumerate();
        let own = numbered().map(|(i, l)| slot(m, format!("layer{i}"), l, Dim::size(sizes::CAPACITY))).collect();
        let mut cross: Vec<KvSlotId> = Vec::with_capacity(layers.len());
        for ((i, l), first) in numbered().zip(self.decoder.memories()) {
            let known = cross.get(first).copied();
            cross.push(known.unwrap_or_else(|| slot(m, format!("cross{i}"), l, self.source_len())));
        }
        let source_mask = matches!(self.source, Source::Tokens { .. })
            .then(|| m.state("source_mask", Storage::Bool, &[batch, self.source_len()]));
        let encoder_classes = self.encoder_bias.as_ref().map(|bias| bias.constant(m, "encoder.classes"));
        let decoder_classes = self.decoder_bias.as_ref().map(|bias| bias.constant(m, "decoder.classes"));
        let declared = Declared { own, cross, source_mask, encoder_classes, decoder_classes };
        m.graph("forward", |b| self.forward(b, &declared));
        m.graph("encode", |b| {
            let encoded = self.encode(b, &declared);
            b.scope("decoder", |b| self.decoder.fill(b, &declared.cross, encoded.states));
            b.output("last_hidden_state", encoded.states);
        });
        m.graph("prefill", |b| self.step(b, Phase::Prefill, &declared));
        let one = [(sizes::TOKENS, 1)];
        m.graph_with("decode", &one, &[(sizes::BATCH, 4)], |b| self.step(b, Phase::Decode, &declared));
        m.graph_with("decode_wide", &one, &[], |b| self.step(b, Phase::Decode, &declared));
    }

    /// The encoder's rows; declares what it reads.
    pub(super) fn encode(&self, b: &mut GraphBuilder<'_>, declared: &Declared) -> Encoded {
        let (batch, len) = (Dim::size(sizes::BATCH), self.source_len());
        match &self.source {
            Source::Tokens { embedding, .. } => {
                let shape = [batch, len.clone()];
                let ids = b.input("input_ids", Scalar::I32, &shape);
                let attended = b.input_or("attention_mask", Scalar::I32, &shape, InputFill::Ones);
                let visible = b.cast(attended, Scalar::Bool);
                let mask = key_mask(b, visible);
                let classes = match (&self.encoder_bias, declared.encoder_classes) {
                    (Some(bias), Some(table)) => Some(bias.classes(b, table, Dim::zero(), len.clone(), len)),
                    _ => None,
                };
                let bias = shared_bias(b, self.encoder_bias.as_ref(), classes);
                let scores = ScoreTerms { mask: Some(mask), bias, causal: None };
                let states = b.scope("encoder", |b| {
                    let x = b.scope("embedding", |b| embedding.apply(b, ids, Dim::zero()));
                    self.encoder.apply(b, &Scene { scores, classes, ..Scene::default() }, x)
                });
                Encoded { states, mask: Some(mask), ids: Some(ids) }
            }
            Source::Signal(stem) => {
                let shape = [batch, Dim::from(stem.features), Dim::from(stem.frames)];
                let signal = b.input("input_features", Scalar::F32, &shape);
                let states = b.scope("encoder", |b| {
                    let x = stem.apply(b, signal);
                    self.encoder.apply(b, &Scene::default(), x)
                });
                Encoded { states, mask: None, ids: None }
            }
        }
    }

    /// The decoder's rows for the tokens `ids` `[B, S]`.
    pub(super) fn decode(
        &self,
        b: &mut GraphBuilder<'_>,
        declared: &Declared,
        ids: ValueId,
        past: Dim,
        scene: Scene<'_>,
    ) -> ValueId {
        let tokens = b.ty(ids).shape.get(1).cloned().unwrap_or_else(Dim::one);
        let classes = match (&self.decoder_bias, declared.decoder_classes) {
            (Some(bias), Some(table)) => {
                Some(bias.classes(b, table, past.clone(), tokens.clone(), past.clone() + tokens))
            }
            _ => None,
        };
        let bias = shared_bias(b, self.decoder_bias.as_ref(), classes);
        let scores = ScoreTerms { bias, causal: Some(past.clone()), ..scene.scores };
        b.scope("decoder", |b| {
            let x = b.scope("embedding", |b| self.target.apply(b, ids, past));
            self.decoder.apply(b, &Scene { scores, classes, ..scene }, x)
        })
    }

    /// Takes a policy: how many layers of either side run. What else it asks for is a gap.
    pub fn set_policy(&mut self, policy: &RunPolicy) -> Vec<Gap> {
        let gap = |field: &str, problem: String| Gap::field("the run policy", field, problem, "ask for something else");
        let mut gaps = Vec::new();
        if *policy != (RunPolicy { depth: policy.depth, ..RunPolicy::default() }) {
            gaps.push(gap("policy", "is for decoders alone, but for the depth of either side".into()));
        }
        let Some(depth) = policy.depth else { return gaps };
        for (n, side) in depth.into_iter().zip([&mut self.encoder, &mut self.decoder]) {
            let stored = side.layers.len();
            if n == 0 || n as usize > stored {
                gaps.push(gap("depth", format!("asks for {n} layers of a stack of {stored}")));
            }
            side.layers.truncate(n as usize);
        }
        gaps
    }

    fn logits(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let x = match self.head_scale {
            Some(scale) => {
                let scale = b.f32(scale);
                b.mul(x, scale)
            }
            None => x,
        };
        self.head.as_ref().map_or(x, |head| head.apply(b, x))
    }

    fn forward(&self, b: &mut GraphBuilder<'_>, declared: &Declared) {
        let encoded = self.encode(b, declared);
        let shape = [Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS)];
        let ids = b.input("decoder_input_ids", Scalar::I32, &shape);
        let attended = b.input_or("decoder_attention_mask", Scalar::I32, &shape, InputFill::Ones);
        let visible = b.cast(attended, Scalar::Bool);
        let mask = Some(key_mask(b, visible));
        let other = Some(Other { mask: encoded.mask, states: OtherStates::Here(encoded.states) });
        let scene = Scene { scores: ScoreTerms { mask, ..ScoreTerms::default() }, other, ..Scene::default() };
        let x = self.decode(b, declared, ids, Dim::zero(), scene);
        let logits = self.logits(b, x);
        b.output("logits", logits);
    }

    fn step(&self, b: &mut GraphBuilder<'_>, phase: Phase, declared: &Declared) {
        let ids = decoding::tokens(b, phase, "input_ids");
        let mask = declared.source_mask.map(|state| {
            let visible = b.state(state);
            key_mask(b, visible)
        });
        let other = Some(Other { mask, states: OtherStates::Filled(&declared.cross) });
        let scene = Scene { slots: Some(&declared.own), other, ..Scene::default() };
        let x = self.decode(b, declared, ids, Dim::size(sizes::PAST), scene);
        let last = b.slice(x, 1, Dim::size(sizes::TOKENS) - Dim::one(), Dim::one());
        let logits = self.logits(b, last);
        decoding::choose(b, phase, logits, self.vocab);
    }
}

fn shared_bias(b: &mut GraphBuilder<'_>, bias: Option<&RelativeBias>, classes: Option<ValueId>) -> Option<ValueId> {
    bias.zip(classes).and_then(|(bias, classes)| bias.shared(b, classes))
}

/// A mask `[B, 1, 1, T]` from visible tokens `[B, T]`.
pub(crate) fn key_mask(b: &mut GraphBuilder<'_>, visible: ValueId) -> ValueId {
    let mut shape = b.ty(visible).shape.clone();
    shape.splice(1..1, [Dim::one(), Dim::one()]);
    b.reshape(visible, &shape)
}

/// Positions `[B, S]` of tokens in `ids` `[B, S]`: `pad` for the token `pad`, and for others `pad + past` plus their
/// number among the others.
pub(crate) fn counted_positions(b: &mut GraphBuilder<'_>, ids: ValueId, pad: u64, past: Dim) -> ValueId {
    let shape = b.ty(ids).shape.clone();
    let [batch, tokens] = match shape.as_slice() {
        [batch, tokens] => [batch.clone(), tokens.clone()],
        _ => [Dim::one(), Dim::one()],
    };
    let pad_token = b.i32(i32::try_from(pad).unwrap_or(i32::MAX));
    let is_pad = b.binary(BinaryOp::Eq, ids, pad_token);
    let counts = b.unary(UnaryOp::Not, is_pad);
    let counts = b.cast(counts, Scalar::F32);
    let each = b.reshape(counts, &[batch, Dim::one(), tokens.clone()]);
    let i = b.iota(&[Dim::one(), tokens.clone(), Dim::one()], 1, Dim::zero());
    let j = b.iota(&[Dim::one(), Dim::one(), tokens], 2, Dim::zero());
    let later = b.binary(BinaryOp::Lt, i, j);
    let zero = b.f32(0.0);
    let each = b.select(later, zero, each);
    let number = b.reduce(ReduceOp::Sum, each, &[2], false);
    let number = b.cast(number, Scalar::I32);
    let number = if past.is(0) {
        number
    } else {
        let past = b.iota(&[Dim::one(), Dim::one()], 0, past);
        b.add(number, past)
    };
    let counts = b.cast(counts, Scalar::I32);
    let number = b.mul(number, counts);
    b.add(number, pad_token)
}
