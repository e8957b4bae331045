//! Random transformer-like graphs: what the families of models have in common, in sizes off every tile.
#![allow(dead_code)]

use crate::support::Random;
use frit::Tensor;
use frit_compiler::Model;
use frit_compiler::graph::{AttentionAttrs, Float, KvSlotId, NormKind, RopeStyle, StateId, ValueId, WeightId};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::model::MemoryTensors;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{KvPart, RopePart, Task, TensorData, sizes};
use proptest::prelude::*;
use std::sync::Arc;

/// How keys are hidden from queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masking {
    /// Not at all.
    Open,
    /// By an input.
    Input,
    /// Later keys.
    Causal,
    /// Later keys, and those a window further back.
    Window(u64),
    /// As in a decoder: later keys and a persistent mask, with the keys in a cache.
    Cache,
}

/// The feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ffn {
    /// `down(act(gate) · up)`.
    Gated,
    /// The same, with one projection for gate and up.
    Packed,
    /// `down(act(up))`.
    Plain,
}

/// What is computed of the last hidden rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The rows themselves.
    Rows,
    /// Logits of every row and the largest one's place.
    Logits,
    /// Logits of the last row as probabilities.
    Last,
    /// The mean over tokens.
    Mean,
}

/// A graph and the tensors it is run on.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub seed: u64,
    pub batch: u64,
    pub tokens: u64,
    pub heads: (u64, u64),
    pub head_dim: u64,
    pub width: u64,
    pub ffn_width: u64,
    pub layers: usize,
    pub norm: NormKind,
    pub norm_first: bool,
    /// Norms behind the parts as well as in front of them.
    pub sandwich: bool,
    /// One token of at most four sequences.
    pub one_token: bool,
    pub parallel: bool,
    pub biases: bool,
    pub fused_qkv: bool,
    pub head_norms: bool,
    pub rope: Option<(RopeStyle, bool)>,
    pub masking: Masking,
    pub score_bias: bool,
    pub softcap: bool,
    pub ffn: Ffn,
    pub activation: UnaryOp,
    pub head: Head,
    pub from_ids: bool,
    pub half_weights: bool,
}

/// A strategy for recipes.
pub fn recipes() -> impl Strategy<Value = Recipe> {
    let sizes = (
        1u64..4,
        prop_oneof![1u64..12, 15u64..18, Just(33)],
        prop::sample::select(vec![(1, 1), (2, 1), (2, 2), (4, 2), (3, 3), (6, 2)]),
        prop::sample::select(vec![2u64, 4, 6, 10, 16]),
        prop::sample::select(vec![3u64, 8, 20, 33, 48, 65]),
        prop::sample::select(vec![1u64, 7, 16, 40, 65]),
        1usize..3,
    );
    let block = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let few = (any::<bool>(), prop::bool::weighted(0.25));
    let rope = prop_oneof![
        Just(None),
        (prop_oneof![Just(RopeStyle::Half), Just(RopeStyle::Interleaved)], any::<bool>()).prop_map(Some)
    ];
    let masking = prop_oneof![
        Just(Masking::Open),
        Just(Masking::Input),
        Just(Masking::Causal),
        (1u64..6).prop_map(Masking::Window),
        Just(Masking::Cache),
    ];
    let rest = (
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(Ffn::Gated), Just(Ffn::Packed), Just(Ffn::Plain)],
        prop::sample::select(vec![
            UnaryOp::Silu,
            UnaryOp::GeluErf,
            UnaryOp::GeluTanh,
            UnaryOp::Relu,
            UnaryOp::Tanh,
            UnaryOp::Sigmoid,
        ]),
        prop_oneof![Just(Head::Rows), Just(Head::Logits), Just(Head::Last), Just(Head::Mean)],
        any::<bool>(),
        any::<bool>(),
    );
    (any::<u64>(), sizes, block, few, rope, masking, rest).prop_map(|(seed, s, b, few, rope, masking, r)| Recipe {
        seed,
        batch: s.0,
        tokens: if few.1 { 1 } else { s.1 },
        heads: s.2,
        head_dim: s.3,
        width: s.4,
        ffn_width: s.5,
        layers: s.6,
        norm: if b.0 { NormKind::Rms } else { NormKind::Layer },
        norm_first: b.1,
        sandwich: few.0,
        one_token: few.1,
        parallel: b.2,
        biases: b.3,
        fused_qkv: b.4,
        head_norms: b.5,
        rope,
        masking,
        score_bias: r.0,
        softcap: r.1,
        ffn: r.2,
        activation: r.3,
        head: r.4,
        from_ids: r.5,
        half_weights: r.6,
    })
}

/// Tokens of the vocabulary.
const VOCAB: u64 = 29;
/// Positions of the rotary tables.
const POSITIONS: u64 = 40;

struct Weights<'m> {
    m: &'m mut ModelBuilder,
    r: Random,
    /// Where matrices of 16 bits are stored; `None`: they have 32.
    half: Option<MemoryTensors>,
}

impl Weights<'_> {
    /// A matrix of which each row has a length of about 1.
    fn matrix(&mut self, name: &str, rows: u64, columns: u64) -> WeightId {
        let values = self.r.floats(rows * columns, 1.7 / (columns as f32).sqrt());
        let Some(half) = &mut self.half else { return self.m.constant(name, &[rows, columns], &values) };
        let bytes = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        half.0.insert(name.into(), TensorData { storage: Storage::F16, shape: vec![rows, columns], bytes });
        self.m.stored(name, Storage::F16, &[rows, columns])
    }
    fn vector(&mut self, name: &str, n: u64) -> WeightId {
        let values = self.r.floats(n, 0.5);
        self.m.constant(name, &[n], &values)
    }
    fn gain(&mut self, name: &str, n: u64) -> WeightId {
        let values: Vec<f32> = self.r.floats(n, 0.5).iter().map(|v| 1.0 + v).collect();
        self.m.constant(name, &[n], &values)
    }
    fn linear(&mut self, name: &str, rows: u64, columns: u64, bias: bool) -> (WeightId, Option<WeightId>) {
        let w = self.matrix(name, rows, columns);
        (w, bias.then(|| self.vector(&format!("{name}.bias"), rows)))
    }
}

type Linear = (WeightId, Option<WeightId>);

struct Layer {
    norms: [(WeightId, Option<WeightId>); 4],
    head_norms: [WeightId; 2],
    qkv: Vec<Linear>,
    output: Linear,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    slot: Option<KvSlotId>,
}

impl Recipe {
    fn token_count(&self) -> Dim {
        if self.one_token { Dim::one() } else { Dim::size(sizes::TOKENS) }
    }
    fn kv_width(&self) -> u64 {
        self.heads.1 * self.head_dim
    }
    fn q_width(&self) -> u64 {
        self.heads.0 * self.head_dim
    }
    fn rotary(&self) -> Option<(RopeStyle, u64)> {
        let (style, partial) = self.rope?;
        let whole = self.head_dim / 2 * 2;
        Some((style, if partial && whole > 2 { whole - 2 } else { whole }))
    }

    fn layer(&self, w: &mut Weights<'_>, i: usize) -> Layer {
        let at = |n: &str| format!("layers.{i}.{n}");
        let (h, q, kv, b) = (self.width, self.q_width(), self.kv_width(), self.biases);
        let with_bias = self.norm == NormKind::Layer;
        let norms = ["norm1", "norm2", "norm3", "norm4"].map(|n| {
            let gain = w.gain(&at(n), h);
            (gain, with_bias.then(|| w.vector(&at(&format!("{n}.bias")), h)))
        });
        let qkv = match self.fused_qkv {
            true => vec![w.linear(&at("qkv"), q + 2 * kv, h, b)],
            false => vec![w.linear(&at("q"), q, h, b), w.linear(&at("k"), kv, h, b), w.linear(&at("v"), kv, h, b)],
        };
        Layer {
            norms,
            head_norms: ["q_norm", "k_norm"].map(|n| w.gain(&at(n), self.head_dim)),
            qkv,
            output: w.linear(&at("o"), h, q, b),
            gate: (self.ffn == Ffn::Gated).then(|| w.linear(&at("gate"), self.ffn_width, h, b)),
            up: w.linear(&at("up"), self.ffn_width * if self.ffn == Ffn::Packed { 2 } else { 1 }, h, b),
            down: w.linear(&at("down"), h, self.ffn_width, b),
            slot: (self.masking == Masking::Cache)
                .then(|| w.m.kv_slot(&at("cache"), self.heads.1, self.head_dim, self.head_dim)),
        }
    }

    /// The model with the one graph `forward`.
    pub fn model(&self) -> Model {
        let mut m = ModelBuilder::new("random");
        let mut states = None;
        m.size(sizes::BATCH, 1, self.one_token.then_some(4));
        if self.masking == Masking::Cache {
            m.info.task = Task::Decoder;
            m.info.vocab = VOCAB;
            m.size(sizes::TOKENS, 1, None);
            m.size(sizes::PAST, 0, None);
            m.size(sizes::CAPACITY, 1, Some(POSITIONS));
            let (b, t) = (Dim::size(sizes::BATCH), Dim::size(sizes::CAPACITY));
            let mask = m.state("key_mask", Storage::Bool, &[b.clone(), t]);
            states = Some((mask, m.state("pos_offset", Storage::I32, &[b])));
        }
        let mut w =
            Weights { m: &mut m, r: Random::new(self.seed), half: self.half_weights.then(MemoryTensors::default) };
        let embedding = w.matrix("embedding", VOCAB, self.width);
        let layers: Vec<Layer> = (0..self.layers).map(|i| self.layer(&mut w, i)).collect();
        let last = w.gain("norm", self.width);
        let head = w.linear("head", VOCAB, self.width, self.biases);
        if let Some(half) = w.half.take() {
            m.source(Arc::new(half));
        }
        let tables = self.rotary().map(|(_, dim)| {
            let inv_freq: Vec<f32> = (0..dim / 2).map(|i| 10.0f32.powf(-2.0 * i as f32 / dim as f32)).collect();
            if states.is_some() {
                return [RopePart::Cos, RopePart::Sin].map(|part| m.rope_table(&inv_freq, 1.0, part));
            }
            let angles = || (0..POSITIONS).flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f));
            let cos: Vec<f32> = angles().map(f32::cos).collect();
            let sin: Vec<f32> = angles().map(f32::sin).collect();
            [m.constant("cos", &[POSITIONS, dim / 2], &cos), m.constant("sin", &[POSITIONS, dim / 2], &sin)]
        });
        m.graph("forward", |g| {
            let (b, s) = (Dim::size(sizes::BATCH), self.token_count());
            let mut x = if self.from_ids || states.is_some() {
                let ids = g.input("input_ids", Scalar::I32, &[b.clone(), s.clone()]);
                let table = g.weight(embedding);
                g.gather(table, ids)
            } else {
                g.input("x", Scalar::F32, &[b.clone(), s.clone(), self.width.into()])
            };
            let shared = self.shared(g, states, tables);
            for (i, layer) in layers.iter().enumerate() {
                x = g.scope(&format!("layers.{i}"), |g| self.block(g, layer, &shared, x));
            }
            let gain = g.weight(last);
            let x = g.norm(self.norm, x, 1e-3, Some(gain), None);
            self.finish(g, x, head);
        });
        m.finish().unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    fn shared(
        &self,
        g: &mut GraphBuilder<'_>,
        states: Option<(StateId, StateId)>,
        tables: Option<[WeightId; 2]>,
    ) -> Shared {
        let (b, s) = (Dim::size(sizes::BATCH), self.token_count());
        let past = if states.is_some() { Dim::size(sizes::PAST) } else { Dim::zero() };
        let keys = past.clone() + s.clone();
        let mask = match (self.masking, states) {
            (Masking::Input, _) => {
                let m = g.input("mask", Scalar::Bool, &[b.clone(), s.clone()]);
                Some(g.reshape(m, &[b.clone(), 1.into(), 1.into(), s.clone()]))
            }
            (_, Some((mask, _))) => {
                let m = g.state(mask);
                let m = g.slice(m, 1, Dim::zero(), keys.clone());
                Some(g.reshape(m, &[b.clone(), 1.into(), 1.into(), keys.clone()]))
            }
            _ => None,
        };
        let mut at = g.iota(&[b.clone(), s.clone()], 1, past.clone());
        if let Some((_, offset)) = states {
            let offset = g.state(offset);
            let offset = g.reshape(offset, &[b, 1.into()]);
            at = g.add(at, offset);
            let zero = g.i32(0);
            at = g.binary(BinaryOp::Max, at, zero);
        }
        let bias = self.score_bias.then(|| {
            let from = g.iota(&[s.clone(), 1.into()], 0, past.clone());
            let to = g.iota(&[1.into(), keys.clone()], 1, Dim::zero());
            let distance = g.sub(from, to);
            let distance = g.cast(distance, Scalar::F32);
            let slope = g.f32(-0.125);
            let bias = g.mul(distance, slope);
            g.reshape(bias, &[1.into(), 1.into(), s.clone(), keys.clone()])
        });
        let tables = tables.map(|t| t.map(|t| g.weight(t)));
        Shared { mask, bias, at, tables, past }
    }

    fn block(&self, g: &mut GraphBuilder<'_>, l: &Layer, shared: &Shared, x: ValueId) -> ValueId {
        let norm = |g: &mut GraphBuilder<'_>, i: usize, x: ValueId| {
            let (gain, bias) = l.norms[i];
            let gain = g.weight(gain);
            let bias = bias.map(|b| g.weight(b));
            g.norm(self.norm, x, 1e-3, Some(gain), bias)
        };
        match (self.norm_first, self.parallel) {
            (true, false) => {
                let n = norm(g, 0, x);
                let a = self.attention(g, l, shared, n);
                let a = if self.sandwich { norm(g, 2, a) } else { a };
                let x = g.add(x, a);
                let n = norm(g, 1, x);
                let f = self.ffn(g, l, n);
                let f = if self.sandwich { norm(g, 3, f) } else { f };
                g.add(x, f)
            }
            (true, true) => {
                let n = norm(g, 0, x);
                let (a, f) = (self.attention(g, l, shared, n), self.ffn(g, l, n));
                let both = g.add(a, f);
                g.add(x, both)
            }
            (false, _) => {
                let a = self.attention(g, l, shared, x);
                let x = g.add(x, a);
                let x = norm(g, 0, x);
                let f = self.ffn(g, l, x);
                let x = g.add(x, f);
                norm(g, 1, x)
            }
        }
    }

    fn attention(&self, g: &mut GraphBuilder<'_>, l: &Layer, shared: &Shared, x: ValueId) -> ValueId {
        let (b, s) = (Dim::size(sizes::BATCH), self.token_count());
        let (q, kv) = (self.q_width(), self.kv_width());
        let parts: Vec<ValueId> = match l.qkv.as_slice() {
            [(w, bias)] => {
                let all = g.linear(x, *w, *bias);
                [(0, q), (q, kv), (q + kv, kv)].map(|(at, n)| g.slice(all, 2, at.into(), n.into())).to_vec()
            }
            all => all.iter().map(|(w, bias)| g.linear(x, *w, *bias)).collect(),
        };
        let heads = |g: &mut GraphBuilder<'_>, i: usize, count: u64, norm: Option<WeightId>, turned: bool| {
            let y = g.reshape(parts[i], &[b.clone(), s.clone(), count.into(), self.head_dim.into()]);
            let y = match norm.filter(|_| self.head_norms) {
                Some(gain) => {
                    let gain = g.weight(gain);
                    g.norm(NormKind::Rms, y, 1e-3, Some(gain), None)
                }
                None => y,
            };
            let y = g.transpose(y, &[0, 2, 1, 3]);
            match (self.rotary().filter(|_| turned), shared.tables) {
                (Some((style, dim)), Some([cos, sin])) => g.rope(y, cos, sin, shared.at, style, dim),
                _ => y,
            }
        };
        let q = heads(g, 0, self.heads.0, Some(l.head_norms[0]), true);
        let k = heads(g, 1, self.heads.1, Some(l.head_norms[1]), true);
        let v = heads(g, 2, self.heads.1, None, false);
        let (k, v) = match l.slot {
            Some(slot) => (g.kv_append(slot, KvPart::K, k), g.kv_append(slot, KvPart::V, v)),
            None => (k, v),
        };
        let attrs = AttentionAttrs {
            scale: Float(1.0 / (self.head_dim as f32).sqrt()),
            causal: matches!(self.masking, Masking::Causal | Masking::Window(_) | Masking::Cache)
                .then(|| shared.past.clone()),
            window: if let Masking::Window(w) = self.masking { Some(w) } else { None },
            softcap: self.softcap.then_some(Float(3.0)),
            has_mask: false,
            has_bias: false,
        };
        let y = g.attention(q, k, v, shared.mask, shared.bias, attrs);
        let y = g.transpose(y, &[0, 2, 1, 3]);
        let y = g.reshape(y, &[b.clone(), s.clone(), self.q_width().into()]);
        g.linear(y, l.output.0, l.output.1)
    }

    fn ffn(&self, g: &mut GraphBuilder<'_>, l: &Layer, x: ValueId) -> ValueId {
        let up = g.linear(x, l.up.0, l.up.1);
        let (gate, up) = match (self.ffn, l.gate) {
            (Ffn::Packed, _) => {
                let n = self.ffn_width;
                let [gate, up] = [0, n].map(|at| g.slice(up, 2, at.into(), n.into()));
                (Some(gate), up)
            }
            (_, Some((gate, bias))) => (Some(g.linear(x, gate, bias)), up),
            (_, None) => (None, up),
        };
        let inner = match gate {
            Some(gate) => {
                let gate = g.unary(self.activation, gate);
                g.mul(gate, up)
            }
            None => g.unary(self.activation, up),
        };
        g.linear(inner, l.down.0, l.down.1)
    }

    fn finish(&self, g: &mut GraphBuilder<'_>, x: ValueId, head: Linear) {
        let (b, s) = (Dim::size(sizes::BATCH), self.token_count());
        match self.head {
            Head::Rows => g.output("rows", x),
            Head::Logits => {
                let logits = g.linear(x, head.0, head.1);
                g.output("logits", logits);
                g.output("rows", x);
            }
            Head::Last => {
                let last = g.slice(x, 1, s - Dim::one(), Dim::one());
                let logits = g.linear(last, head.0, head.1);
                let logits = g.reshape(logits, &[b, VOCAB.into()]);
                let p = g.softmax(logits);
                g.output("probabilities", p);
            }
            Head::Mean => {
                let sum = g.reduce(ReduceOp::Sum, x, &[1], false);
                let scale = g.f32(1.0 / 16.0);
                let mean = g.mul(sum, scale);
                let pooled = g.linear(mean, head.0, head.1);
                let pooled = g.unary(UnaryOp::Tanh, pooled);
                g.output("pooled", pooled);
            }
        }
    }

    /// Tensors for `forward`.
    pub fn inputs(&self) -> Vec<(String, Tensor)> {
        let mut r = Random::new(self.seed ^ 0x5eed);
        let shape = [self.batch, self.tokens];
        let mut out = match self.from_ids || self.masking == Masking::Cache {
            true => vec![("input_ids".to_owned(), r.ints(&shape, VOCAB))],
            false => vec![("x".to_owned(), r.tensor(&[self.batch, self.tokens, self.width]))],
        };
        if self.masking == Masking::Input {
            out.push(("mask".to_owned(), r.ints(&shape, 2)));
        }
        out
    }

    /// The values of all sizes in a run on [`Recipe::inputs`].
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        let cache = self.masking == Masking::Cache;
        let mut out = vec![(sizes::BATCH, self.batch), (sizes::TOKENS, self.tokens)];
        if cache {
            out.extend([(sizes::PAST, 0), (sizes::CAPACITY, self.tokens)]);
        }
        out
    }
}

/// What the layers share.
struct Shared {
    mask: Option<ValueId>,
    bias: Option<ValueId>,
    at: ValueId,
    tables: Option<[ValueId; 2]>,
    past: Dim,
}
