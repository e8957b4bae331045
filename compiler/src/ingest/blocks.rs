//! The parts that transformers are made of, as graph fragments. Architectures fill in weights and sizes; the order of
//! operations is decided here, once.

use super::activation::Activation;
use super::builder::{GraphBuilder, ModelBuilder};
use super::rope::{Beyond, Frequencies};
use crate::graph::{AttentionAttrs, Float, KvSlotId, NormKind, RopeStyle, ValueId, WeightId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{KvPart, RopePart, Task, sizes};

/// A projection.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// What it is called in its layer.
    pub name: &'static str,
    /// `[N, K]`.
    pub weight: WeightId,
    /// `[N]`.
    pub bias: Option<WeightId>,
}

/// A normalisation.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub name: &'static str,
    pub kind: NormKind,
    pub eps: f32,
    pub gain: WeightId,
    pub bias: Option<WeightId>,
}

/// The projections that make queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Qkv {
    Separate([Linear; 3]),
    /// One projection whose result is cut in three.
    Fused(Linear),
}

/// Self-attention.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub name: &'static str,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub scale: f32,
    pub window: Option<u64>,
    pub qkv: Qkv,
    /// Norms of queries and keys, per head.
    pub qk_norm: Option<[Norm; 2]>,
    pub output: Linear,
}

/// A feed-forward part.
#[derive(Clone, Debug)]
pub(crate) enum Ffn {
    /// `down(act(gate(x)) · up(x))`.
    Gated { name: &'static str, gate: Linear, up: Linear, down: Linear, act: Activation },
    /// `down(act(up(x)))`.
    Plain { name: &'static str, up: Linear, down: Linear, act: Activation },
}

/// Rotary positions.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pub frequencies: Frequencies,
    pub style: RopeStyle,
}

/// A layer of a decoder: norms before each part, residuals around it.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub attention_norm: Norm,
    pub attention: Attention,
    pub ffn_norm: Norm,
    pub ffn: Ffn,
}

/// A decoder.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub vocab: u64,
    pub context: u64,
    pub embedding: WeightId,
    /// Learned positions.
    pub positions: Option<WeightId>,
    pub rope: Option<Rope>,
    /// What the list of layers is called.
    pub layers_name: &'static str,
    pub layers: Vec<Layer>,
    pub norm: Norm,
    pub head: Linear,
}

/// What the layers of one graph share.
pub(crate) struct Shared {
    batch: Dim,
    tokens: Dim,
    /// Bool, broadcastable to `[B, H, S, T]`.
    mask: Option<ValueId>,
    /// I32 `[B, S]`.
    positions: Option<ValueId>,
    rope: Option<Rotation>,
    /// A cache slot for each layer of a decoder.
    slots: Vec<KvSlotId>,
}

/// The rotary tables of one graph.
#[derive(Clone, Copy)]
struct Rotation {
    cos: Table,
    sin: Table,
    style: RopeStyle,
    rotary_dim: u64,
}

#[derive(Clone, Copy)]
enum Table {
    Fixed(WeightId),
    /// Depends on the length of the sequence.
    Computed(ValueId),
}

/// What the graphs of one decoder share.
struct Declared {
    slots: Vec<KvSlotId>,
    /// The constants of [`Beyond::Growing`].
    growing: Option<[WeightId; 2]>,
}

/// The ways to run a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Logits at every position.
    Forward,
    /// Logits at the last position, and the token that follows.
    Prefill,
    /// As prefill, for the token found before.
    Decode,
}

impl Linear {
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| b.linear(x, self.weight, self.bias))
    }
}

impl Norm {
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            let gain = b.weight(self.gain);
            let bias = self.bias.map(|bias| b.weight(bias));
            b.norm(self.kind, x, self.eps, Some(gain), bias)
        })
    }
}

impl Ffn {
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        match self {
            Ffn::Gated { name, gate, up, down, act } => b.scope(name, |b| {
                let gate = gate.apply(b, x);
                let up = up.apply(b, x);
                let gate = act.apply(b, gate);
                let inner = b.mul(gate, up);
                down.apply(b, inner)
            }),
            Ffn::Plain { name, up, down, act } => b.scope(name, |b| {
                let inner = up.apply(b, x);
                let inner = act.apply(b, inner);
                down.apply(b, inner)
            }),
        }
    }
}

impl Attention {
    /// `x` is `[B, S, H]`; `layer` chooses the cache slot of a decoder. Without slots every query sees every key that
    /// the mask leaves.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            let [q, k, v] = self.project(b, x);
            let [q_norm, k_norm] = match &self.qk_norm {
                Some([q, k]) => [Some(q), Some(k)],
                None => [None, None],
            };
            let q = self.heads(b, shared, q, self.heads, q_norm);
            let k = self.heads(b, shared, k, self.kv_heads, k_norm);
            let v = self.heads(b, shared, v, self.kv_heads, None);
            let (q, k) = (shared.rotate(b, q), shared.rotate(b, k));
            let slot = shared.slots.get(layer).copied();
            let (k, v) = match slot {
                Some(slot) => (b.kv_append(slot, KvPart::K, k), b.kv_append(slot, KvPart::V, v)),
                None => (k, v),
            };
            let attrs = AttentionAttrs {
                scale: Float(self.scale),
                causal: slot.map(|_| Dim::size(sizes::PAST)),
                window: self.window,
                softcap: None,
                has_mask: false,
                has_bias: false,
            };
            let y = b.attention(q, k, v, shared.mask, None, attrs);
            let y = b.transpose(y, &[0, 2, 1, 3]);
            let width = Dim::from(self.heads * self.head_dim);
            let y = b.reshape(y, &[shared.batch.clone(), shared.tokens.clone(), width]);
            self.output.apply(b, y)
        })
    }

    fn project(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> [ValueId; 3] {
        match &self.qkv {
            Qkv::Separate([q, k, v]) => [q.apply(b, x), k.apply(b, x), v.apply(b, x)],
            Qkv::Fused(all) => {
                let all = all.apply(b, x);
                let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
                [(0, q), (q, kv), (q + kv, kv)].map(|(from, len)| b.slice(all, 2, Dim::from(from), Dim::from(len)))
            }
        }
    }

    /// `[B, S, h·d]` to `[B, h, S, d]`.
    fn heads(&self, b: &mut GraphBuilder<'_>, shared: &Shared, x: ValueId, heads: u64, norm: Option<&Norm>) -> ValueId {
        let shape = [shared.batch.clone(), shared.tokens.clone(), Dim::from(heads), Dim::from(self.head_dim)];
        let x = b.reshape(x, &shape);
        let x = match norm {
            Some(norm) => norm.apply(b, x),
            None => x,
        };
        b.transpose(x, &[0, 2, 1, 3])
    }
}

impl Shared {
    /// What the layers of an encoder share.
    pub fn encoder(batch: Dim, tokens: Dim, mask: ValueId) -> Shared {
        Shared { batch, tokens, mask: Some(mask), positions: None, rope: None, slots: Vec::new() }
    }

    fn rotate(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let (Some(rotation), Some(positions)) = (self.rope, self.positions) else { return x };
        let [cos, sin] = [rotation.cos, rotation.sin].map(|table| match table {
            Table::Fixed(weight) => b.weight(weight),
            Table::Computed(value) => value,
        });
        b.rope(x, cos, sin, positions, rotation.style, rotation.rotary_dim)
    }
}

impl Rope {
    /// The constants of [`Beyond::Growing`]: frequencies and exponents.
    fn constants(&self, m: &mut ModelBuilder) -> Option<[WeightId; 2]> {
        let Some(Beyond::Growing { exponents, .. }) = &self.frequencies.beyond else { return None };
        let shape = [1, exponents.len() as u64];
        let inv_freq = m.constant("rope.inv_freq", &shape, &self.frequencies.inv_freq);
        Some([inv_freq, m.constant("rope.exponents", &shape, exponents)])
    }

    /// The tables for sequences of `len` tokens, those in the cache included.
    fn tables(&self, b: &mut GraphBuilder<'_>, len: &Dim, growing: Option<[WeightId; 2]>) -> Rotation {
        let Frequencies { inv_freq, scale, beyond } = &self.frequencies;
        let rotary_dim = inv_freq.len() as u64 * 2;
        let [cos, sin] = match beyond {
            None => {
                [RopePart::Cos, RopePart::Sin].map(|part| Table::Fixed(b.model().rope_table(inv_freq, *scale, part)))
            }
            Some(beyond) => b.scope("rope", |b| match beyond {
                Beyond::Other { after, inv_freq: other } => {
                    let longer = is_longer(b, len, *after);
                    [RopePart::Cos, RopePart::Sin].map(|part| {
                        let [longer_table, table] = [other, inv_freq].map(|inv_freq| {
                            let table = b.model().rope_table(inv_freq, *scale, part);
                            let table = b.weight(table);
                            b.slice(table, 0, Dim::zero(), len.clone())
                        });
                        Table::Computed(b.select(longer, longer_table, table))
                    })
                }
                Beyond::Growing { after, factor, .. } => growing_tables(b, len, growing, *after, *factor),
            }),
        };
        Rotation { cos, sin, style: self.style, rotary_dim }
    }
}

/// The length as an I32 scalar.
fn length(b: &mut GraphBuilder<'_>, len: &Dim) -> ValueId {
    let len = b.iota(&[Dim::one()], 0, len.clone());
    b.reshape(len, &[])
}

fn is_longer(b: &mut GraphBuilder<'_>, len: &Dim, after: u64) -> ValueId {
    let len = length(b, len);
    let after = b.i32(i32::try_from(after).unwrap_or(i32::MAX));
    b.binary(BinaryOp::Lt, after, len)
}

/// Tables whose frequencies fall as the sequence grows, see [`Beyond::Growing`]. Angles are brought into one turn before
/// their cosine is taken.
fn growing_tables(
    b: &mut GraphBuilder<'_>,
    len: &Dim,
    constants: Option<[WeightId; 2]>,
    after: u64,
    factor: f32,
) -> [Table; 2] {
    let [inv_freq, exponents] = constants.unwrap_or([WeightId(u32::MAX); 2]).map(|id| b.weight(id));
    let tokens = length(b, len);
    let tokens = b.cast(tokens, Scalar::F32);
    let least = b.f32(after as f32);
    let tokens = b.binary(BinaryOp::Max, tokens, least);
    let slope = b.f32(factor / after as f32);
    let growth = b.mul(tokens, slope);
    let past = b.f32(factor - 1.0);
    let growth = b.sub(growth, past);
    let change = b.binary(BinaryOp::Pow, growth, exponents);
    let inv_freq = b.mul(inv_freq, change);

    let positions = b.iota(&[len.clone(), Dim::one()], 0, Dim::zero());
    let positions = b.cast(positions, Scalar::F32);
    let angle = b.mul(positions, inv_freq);
    let turn = b.f32(std::f32::consts::TAU);
    let turns = b.binary(BinaryOp::Div, angle, turn);
    let whole = b.unary(UnaryOp::Floor, turns);
    let whole = b.mul(whole, turn);
    let angle = b.sub(angle, whole);
    [UnaryOp::Cos, UnaryOp::Sin].map(|wave| Table::Computed(b.unary(wave, angle)))
}

impl Decoder {
    /// Declares sizes, states and cache slots, and adds the four ways to run the model.
    pub fn build(&self, m: &mut ModelBuilder) {
        m.size(sizes::BATCH, 1, None);
        m.size(sizes::TOKENS, 1, None);
        m.size(sizes::PAST, 0, None);
        m.size(sizes::CAPACITY, 1, Some(self.context));
        m.info.task = Task::Decoder;
        m.info.layers = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        m.info.context = self.context;
        m.info.vocab = self.vocab;
        let slots: Vec<KvSlotId> = (0..)
            .zip(&self.layers)
            .map(|(i, layer): (u64, _)| {
                let a = &layer.attention;
                m.kv_slot(&format!("layer{i}"), a.kv_heads, a.head_dim, a.head_dim)
            })
            .collect();
        let growing = self.rope.as_ref().and_then(|rope| rope.constants(m));
        let declared = Declared { slots, growing };
        m.graph("forward", |b| self.graph(b, Phase::Forward, &declared));
        m.graph("prefill", |b| self.graph(b, Phase::Prefill, &declared));
        let one = [(sizes::TOKENS, 1)];
        m.graph_with("decode", &one, &[(sizes::BATCH, 4)], |b| self.graph(b, Phase::Decode, &declared));
        m.graph_with("decode_wide", &one, &[], |b| self.graph(b, Phase::Decode, &declared));
    }

    fn graph(&self, b: &mut GraphBuilder<'_>, phase: Phase, declared: &Declared) {
        let (batch, tokens) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
        let (past, capacity) = (Dim::size(sizes::PAST), Dim::size(sizes::CAPACITY));
        let key_mask = b.model().state("key_mask", Storage::Bool, &[batch.clone(), capacity]);
        let pos_offset = b.model().state("pos_offset", Storage::I32, std::slice::from_ref(&batch));
        let next_token = b.model().state("next_token", Storage::I32, &[batch.clone(), Dim::one()]);

        let ids = match phase {
            Phase::Forward | Phase::Prefill => b.input("input_ids", Scalar::I32, &[batch.clone(), tokens.clone()]),
            Phase::Decode => {
                let token = b.state(next_token);
                b.slice(token, 1, Dim::zero(), tokens.clone())
            }
        };
        let mask = b.state(key_mask);
        let keys = past.clone() + tokens.clone();
        let mask = b.slice(mask, 1, Dim::zero(), keys.clone());
        let mask = b.reshape(mask, &[batch.clone(), Dim::one(), Dim::one(), keys.clone()]);

        let at = b.iota(&[batch.clone(), tokens.clone()], 1, past);
        let offset = b.state(pos_offset);
        let offset = b.reshape(offset, &[batch.clone(), Dim::one()]);
        let at = b.add(at, offset);
        let zero = b.i32(0);
        let positions = b.binary(BinaryOp::Max, at, zero);

        let rope = self.rope.as_ref().map(|rope| rope.tables(b, &keys, declared.growing));
        let shared = Shared {
            batch: batch.clone(),
            tokens: tokens.clone(),
            mask: Some(mask),
            positions: Some(positions),
            rope,
            slots: declared.slots.clone(),
        };

        let mut x = b.scope("embedding", |b| {
            let table = b.weight(self.embedding);
            let x = b.gather(table, ids);
            match self.positions {
                Some(table) => {
                    let table = b.weight(table);
                    let learned = b.gather(table, positions);
                    b.add(x, learned)
                }
                None => x,
            }
        });
        for (i, layer) in self.layers.iter().enumerate() {
            x = b.scope(&format!("{}.{i}", self.layers_name), |b| {
                let normed = layer.attention_norm.apply(b, x);
                let attended = layer.attention.apply(b, &shared, i, normed);
                let x = b.add(x, attended);
                let normed = layer.ffn_norm.apply(b, x);
                let fed = layer.ffn.apply(b, normed);
                b.add(x, fed)
            });
        }
        if phase == Phase::Forward {
            let x = self.norm.apply(b, x);
            let logits = self.head.apply(b, x);
            b.output("logits", logits);
            return;
        }
        let last = b.slice(x, 1, tokens - Dim::one(), Dim::one());
        let last = self.norm.apply(b, last);
        let logits = self.head.apply(b, last);
        let logits = b.reshape(logits, &[batch, Dim::from(self.vocab)]);
        let token = b.reduce(ReduceOp::ArgMax, logits, &[1], true);
        b.output("logits", logits);
        b.output_to("next_token", token, Some(next_token));
    }
}
