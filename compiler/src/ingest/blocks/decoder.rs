//! A decoder: embedding, layers, head, and the ways to run it.

use super::alibi::Alibi;
use super::anchors::Anchors;
use super::attention::Attention;
use super::depth::Gate;
use super::ffn::Ffn;
use super::layer_attention::LayerAttention;
use super::linear::Linear;
use super::moe::Mixture;
use super::norm::Norm;
use super::rotary::Rope;
use super::shared::Shared;
use super::sharing::{self, Slots};
use crate::graph::{KvSlotId, ValueId, WeightId};
use crate::ingest::builder::{GraphBuilder, ModelBuilder};
use crate::ingest::decoding::{self, Phase};
use crate::ingest::policy::RunPolicy;
use crate::transform::extension::Halt;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{Passes, Retention, Task, sizes};
use std::collections::BTreeSet;

/// A decoder.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub vocab: u64,
    pub context: u64,
    pub embedding: Embedding,
    /// Rotary tables, which attentions choose by number.
    pub ropes: Vec<Rope>,
    /// The bias on the scores that falls with the distance of query and key.
    pub alibi: Option<Alibi>,
    /// What the list of layers is called.
    pub layers_name: &'static str,
    pub layers: Vec<Layer>,
    pub norm: Option<Norm>,
    pub head: Head,
    /// How tokens stop.
    pub halt: Option<Halt>,
    pub policy: RunPolicy,
}

/// From tokens to rows.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    /// `[V, E]`.
    pub table: WeightId,
    /// Learned positions.
    pub positions: Option<Positions>,
    /// Factor on the rows of the table.
    pub scale: Option<f32>,
    /// From E to the hidden size.
    pub project: Option<Linear>,
    pub norm: Option<Norm>,
}

/// Learned positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positions {
    /// `[offset + N, H]`.
    pub table: WeightId,
    /// The row of position 0.
    pub offset: u64,
    /// Whether positions count the tokens that the mask leaves, in a forward pass too.
    pub masked: bool,
}

/// A layer of a decoder.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub attention_norm: Option<Norm>,
    pub attention: Option<Attention>,
    /// On what the attention gives, before it joins the residual.
    pub attended_norm: Option<Norm>,
    pub ffn_norm: Option<Norm>,
    pub ffn: Option<Feed>,
    /// On what the feed-forward part gives, before it joins the residual.
    pub fed_norm: Option<Norm>,
    pub residual: Residual,
    /// Factor on both parts where they join the residual.
    pub residual_scale: Option<f32>,
    /// Stands for the whole layer: `x = linear(x)`.
    pub linear: Option<Linear>,
    /// `[H]`, added to what enters the layer.
    pub step: Option<WeightId>,
    pub gate: Option<Gate>,
    /// Behind the layer.
    pub layer_attention: Option<LayerAttention>,
    /// Whether tokens stop, by a map from the hidden size to 1; of the first layer of a trip.
    pub halt: Option<Linear>,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug)]
pub(crate) enum Feed {
    Dense(Ffn),
    Mixture(Box<Mixture>),
}

/// How the parts of a layer lie around the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residual {
    /// `x += attention(norm(x)); x += ffn(norm(x))`.
    Sequential,
    /// `x += attention(norm(x)) + ffn(norm(x))`; without a norm of its own the ffn reads what the attention reads.
    Parallel,
    /// `x = norm(x + attention(x)); x = norm(x + ffn(x))`.
    Behind,
    /// `n = norm(x); x = n + attention(n); n = norm(x); x = n + ffn(n)`.
    Normed,
}

/// From rows to logits.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// From the hidden size to that of the embedding.
    pub project: Option<Linear>,
    pub linear: Linear,
    /// Factor on the logits.
    pub scale: Option<f32>,
    /// Logits become `c·tanh(logit/c)`.
    pub softcap: Option<f32>,
}

/// What the graphs of one decoder share.
struct Declared {
    slots: Vec<Slots>,
    /// The constants of each rope.
    growing: Vec<Option<[WeightId; 2]>>,
    /// The constant of [`Decoder::alibi`].
    alibi: Option<WeightId>,
    /// Which tokens are anchors.
    anchors: Option<KvSlotId>,
    /// Which tokens ran, of layers that others do not see them in otherwise.
    ran: Vec<Option<KvSlotId>>,
}

impl Embedding {
    /// `ids` and `positions` are `[B, S]`, the result is `[B, S, H]`.
    fn apply(&self, b: &mut GraphBuilder<'_>, ids: ValueId, positions: ValueId) -> ValueId {
        b.scope("embedding", |b| {
            let table = b.weight(self.table);
            let x = b.gather(table, ids);
            let x = scaled(b, x, self.scale);
            let x = self.project.as_ref().map_or(x, |linear| linear.apply(b, x));
            let x = match self.positions {
                Some(learned) => {
                    let table = b.weight(learned.table);
                    let at = match i32::try_from(learned.offset) {
                        Ok(0) | Err(_) => positions,
                        Ok(offset) => {
                            let offset = b.i32(offset);
                            b.add(positions, offset)
                        }
                    };
                    let learned = b.gather(table, at);
                    b.add(x, learned)
                }
                None => x,
            };
            normed(b, self.norm.as_ref(), x)
        })
    }
}

impl Layer {
    /// `x` is `[B, S, H]`, and so is the result.
    pub(super) fn apply(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> ValueId {
        if let Some(linear) = &self.linear {
            return linear.apply(b, x);
        }
        match self.residual {
            Residual::Sequential => {
                let x = self.attended(b, shared, layer, x);
                self.fed(b, x)
            }
            Residual::Parallel => {
                let n = normed(b, self.attention_norm.as_ref(), x);
                let attended = self.attend(b, shared, layer, n);
                let n = match &self.ffn_norm {
                    Some(norm) => norm.apply(b, x),
                    None => n,
                };
                let fed = self.feed(b, n);
                let sum = match (attended, fed) {
                    (Some(attended), Some(fed)) => Some(b.add(attended, fed)),
                    (one, other) => one.or(other),
                };
                sum.map_or(x, |sum| b.add(x, sum))
            }
            Residual::Behind => {
                let join = |b: &mut GraphBuilder<'_>, x, y: Option<ValueId>, norm: Option<&Norm>| {
                    y.map_or(x, |y| {
                        let x = b.add(x, y);
                        normed(b, norm, x)
                    })
                };
                let y = self.attend(b, shared, layer, x);
                let x = join(b, x, y, self.attention_norm.as_ref());
                let y = self.feed(b, x);
                join(b, x, y, self.ffn_norm.as_ref())
            }
            Residual::Normed => {
                let n = normed(b, self.attention_norm.as_ref(), x);
                let y = self.attend(b, shared, layer, n);
                let x = y.map_or(n, |y| b.add(n, y));
                let n = normed(b, self.ffn_norm.as_ref(), x);
                let y = self.feed(b, n);
                y.map_or(n, |y| b.add(n, y))
            }
        }
    }

    /// `x + attention(norm(x))`.
    pub(super) fn attended(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> ValueId {
        if self.attention.is_none() {
            return x;
        }
        let n = normed(b, self.attention_norm.as_ref(), x);
        let y = self.attend(b, shared, layer, n);
        y.map_or(x, |y| b.add(x, y))
    }
    /// `x + ffn(norm(x))`.
    pub(super) fn fed(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        if self.ffn.is_none() {
            return x;
        }
        let n = normed(b, self.ffn_norm.as_ref(), x);
        let y = self.feed(b, n);
        y.map_or(x, |y| b.add(x, y))
    }

    fn attend(&self, b: &mut GraphBuilder<'_>, shared: &Shared, layer: usize, x: ValueId) -> Option<ValueId> {
        let y = self.attention.as_ref()?.apply(b, shared, layer, x);
        let y = normed(b, self.attended_norm.as_ref(), y);
        Some(scaled(b, y, self.residual_scale))
    }
    fn feed(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> Option<ValueId> {
        let y = match self.ffn.as_ref()? {
            Feed::Dense(ffn) => ffn.apply(b, x),
            Feed::Mixture(mixture) => mixture.apply(b, x),
        };
        let y = normed(b, self.fed_norm.as_ref(), y);
        Some(scaled(b, y, self.residual_scale))
    }
}

impl Head {
    /// Logits of rows `[…, H]`.
    pub(super) fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        let x = self.project.as_ref().map_or(x, |linear| linear.apply(b, x));
        let logits = self.linear.apply(b, x);
        let logits = scaled(b, logits, self.scale);
        let Some(cap) = self.softcap else { return logits };
        let [shrink, cap] = [1.0 / cap, cap].map(|factor| b.f32(factor));
        let logits = b.mul(logits, shrink);
        let logits = b.unary(UnaryOp::Tanh, logits);
        b.mul(logits, cap)
    }
}

pub(super) fn normed(b: &mut GraphBuilder<'_>, norm: Option<&Norm>, x: ValueId) -> ValueId {
    norm.map_or(x, |norm| norm.apply(b, x))
}

fn scaled(b: &mut GraphBuilder<'_>, x: ValueId, factor: Option<f32>) -> ValueId {
    match factor {
        Some(factor) if factor != 1.0 => {
            let factor = b.f32(factor);
            b.mul(x, factor)
        }
        _ => x,
    }
}

impl Decoder {
    /// Declares sizes, states and cache slots, and adds the four ways to run the model.
    pub fn build(&self, m: &mut ModelBuilder) {
        let one_by_one = sharing::reads_above(&self.layers) && self.policy.prefill_passes.is_none();
        decoding::declare_sizes(m, one_by_one.then_some(1), self.context);
        if let Some(width) = self.ff_width().filter(|_| self.policy.ff_active) {
            m.size(sizes::ACTIVE, 1, Some(width));
        }
        m.info.task = Task::Decoder;
        m.info.layers = u32::try_from(self.depth()).unwrap_or(u32::MAX);
        m.info.context = self.context;
        m.info.vocab = self.vocab;
        if let Some(keep) = self.policy.kv_keep.as_ref().filter(|_| self.evicts()) {
            m.size(sizes::POSITIONS, 1, Some(self.context));
            m.reach = Dim::size(sizes::POSITIONS);
            m.info.retention = Some(Retention { anchors: keep.anchors.clone(), window: keep.window });
        }
        let merge = self.merged_from().zip(self.policy.kv_merge);
        let slots = sharing::declare(m, &self.layers, |i| self.runs(i), merge);
        m.info.passes = self.policy.prefill_passes.map(|passes| {
            let above =
                (0..self.layers.len()).filter_map(|i| self.layers.get(i)?.attention.as_ref().map(|a| (i, a.sources)));
            let read = above.flat_map(|(i, s)| [s.keys, s.values].into_iter().flatten().filter(move |from| *from > i));
            let of = |from: usize| slots.get(from).map_or([None; 2], |s| [s.k, s.v]);
            let slots: BTreeSet<u32> = read.flat_map(of).flatten().map(|slot| slot.0).collect();
            Passes { most: passes.most, until: passes.until, slots: slots.into_iter().collect() }
        });
        let anchors = self.policy.kv_keep.as_ref().map(|_| m.kv_slot("anchors", 1, 1, 0));
        let drops = |i: usize| self.drops(i).then(|| m.kv_slot(&format!("layer{i}.ran"), 1, 1, 0));
        let ran = (0..self.layers.len()).map(drops).collect();
        let growing = self.ropes.iter().enumerate().map(|(i, rope)| rope.constants(m, i)).collect();
        let alibi = self.alibi.as_ref().map(|alibi| alibi.constant(m, self.context));
        let declared = Declared { slots, growing, alibi, anchors, ran };
        m.graph("forward", |b| self.graph(b, Phase::Forward, &declared));
        m.graph("prefill", |b| self.graph(b, Phase::Prefill, &declared));
        let one = [(sizes::TOKENS, 1)];
        m.graph_with("decode", &one, &[(sizes::BATCH, 4)], |b| self.graph(b, Phase::Decode, &declared));
        m.graph_with("decode_wide", &one, &[], |b| self.graph(b, Phase::Decode, &declared));
    }

    /// The inner width of the feed-forward parts, where they all have the same and can be cut.
    pub(super) fn ff_width(&self) -> Option<u64> {
        let widths = self.layers.iter().filter_map(|l| l.ffn.as_ref()).map(|feed| match feed {
            Feed::Dense(ffn) => ffn.width(),
            Feed::Mixture(_) => None,
        });
        let mut widths = widths.collect::<Vec<_>>();
        widths.dedup();
        match widths[..] {
            [width] => width,
            _ => None,
        }
    }

    /// Whether columns that no token sees any more may leave the cache: nothing then follows from the length of the past.
    fn evicts(&self) -> bool {
        self.policy.kv_keep.is_some() && self.ropes.iter().all(|rope| rope.frequencies.beyond.is_none())
    }

    fn graph(&self, b: &mut GraphBuilder<'_>, phase: Phase, declared: &Declared) {
        let (batch, tokens) = (Dim::size(sizes::BATCH), Dim::size(sizes::TOKENS));
        let past = Dim::size(sizes::PAST);
        let keys = past.clone() + tokens.clone();
        let ids = decoding::tokens(b, phase, "input_ids");
        let key_mask = decoding::visible(b);
        let mask = b.reshape(key_mask, &[batch.clone(), Dim::one(), Dim::one(), keys.clone()]);
        let positions = decoding::positions(b);

        let tables = self.ropes.iter().zip(&declared.growing);
        let rotations = tables.map(|(rope, growing)| rope.tables(b, &keys, *growing)).collect();
        let bias = declared.alibi.map(|constant| {
            if !self.alibi.as_ref().is_some_and(Alibi::is_by_position) {
                return Alibi::distances(b, constant, &keys);
            }
            let positions = match phase {
                Phase::Forward => visible_before(b, key_mask, &batch, [&Dim::zero(), &keys], &keys),
                _ => decoding::key_positions(b),
            };
            Alibi::at(b, constant, positions)
        });
        let anchors = self.policy.kv_keep.as_ref().zip(declared.anchors).map(|(keep, slot)| {
            let shape = [batch.clone(), Dim::one(), tokens.clone(), keys.clone()];
            Anchors::new(b, keep, slot, ids, mask, &shape)
        });
        let shared = Shared {
            batch: batch.clone(),
            tokens: tokens.clone(),
            mask: Some(mask),
            bias,
            positions: Some(positions),
            rotations,
            slots: declared.slots.clone(),
            first_query: past.clone(),
            kept: self.kept((phase == Phase::Decode).then_some(1)),
            anchors,
            merge: self.policy.kv_merge,
            in_passes: self.policy.prefill_passes.is_some(),
            tells: phase != Phase::Prefill,
            ran: declared.ran.clone(),
            visible: Default::default(),
            made: Default::default(),
        };

        let masked = self.embedding.positions.is_some_and(|p| p.masked) && phase == Phase::Forward;
        let learned = match masked {
            true => visible_before(b, key_mask, &batch, [&past, &tokens], &keys),
            false => positions,
        };
        let x = self.embedding.apply(b, ids, learned);
        let (x, is_last) = self.stack(b, shared, x, phase == Phase::Prefill);
        let mixed_norms = self.policy.layer_mix.as_ref().is_some_and(|mix| mix.normed);
        let norm = self.norm.as_ref().filter(|_| !mixed_norms);
        if phase == Phase::Forward {
            let x = normed(b, norm, x);
            let logits = self.head.apply(b, x);
            b.output("logits", logits);
            return;
        }
        let last = if is_last { x } else { b.slice(x, 1, tokens - Dim::one(), Dim::one()) };
        let last = normed(b, norm, last);
        let logits = self.head.apply(b, last);
        decoding::choose(b, phase, logits, self.vocab);
    }
}

/// The number of visible keys before each of `count` columns from `first` on, `[B, count]`.
fn visible_before(
    b: &mut GraphBuilder<'_>,
    key_mask: ValueId,
    batch: &Dim,
    [first, count]: [&Dim; 2],
    keys: &Dim,
) -> ValueId {
    b.scope("positions", |b| {
        let square = [Dim::one(), count.clone(), keys.clone()];
        let query = b.iota(&square, 1, first.clone());
        let key = b.iota(&square, 2, Dim::zero());
        let before = b.binary(BinaryOp::Lt, key, query);
        let visible = b.reshape(key_mask, &[batch.clone(), Dim::one(), keys.clone()]);
        let both = b.binary(BinaryOp::And, before, visible);
        let ones = b.cast(both, Scalar::F32);
        let count = b.reduce(ReduceOp::Sum, ones, &[2], false);
        b.cast(count, Scalar::I32)
    })
}
