//! A decoder as data: sizes, switches and the names of its tensors. A family of either format reads its configuration
//! into a [`Recipe`]; `assemble` turns every recipe into blocks in the same way.

pub(crate) mod alibi;
mod assemble;
mod extend;
mod parts;

pub(crate) use assemble::decoder;

use crate::graph::{NormKind, RopeStyle};
use crate::ingest::activation::Activation;
use crate::ingest::blocks::{Alibi, Groups, Packing, Residual, Scores};
use crate::ingest::rope::RopeConfig;
use crate::transform::extension::Extension;

/// A decoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recipe {
    pub sizes: Sizes,
    pub names: Names,
    pub embedding: EmbeddingForm,
    /// Rotary tables, by number.
    pub ropes: Vec<RopeConfig>,
    pub style: RopeStyle,
    /// The bias on the scores that falls with distance.
    pub alibi: Option<Alibi>,
    /// What differs from layer to layer.
    pub layers: Vec<LayerForm>,
    /// Of the norms around attention and feed-forward part, and of the last one.
    pub norm: NormForm,
    pub qkv: QkvForm,
    /// Queries, keys and values are clamped to `[−c, c]`.
    pub clip: Option<f32>,
    /// Norms of queries and keys.
    pub qk_norm: Option<(QkPlace, NormForm)>,
    /// Scores become `c·tanh(score/c)`.
    pub softcap: Option<f32>,
    pub ffn: FfnForm,
    pub act: Activation,
    /// Of the layers whose feed-forward part is a mixture of experts.
    pub mixture: Option<MixtureForm>,
    /// Low-rank projections of queries, keys and values, in place of `qkv`.
    pub latent: Option<LatentForm>,
    /// Whether each head has a score that takes part in the softmax and adds no value.
    pub sinks: bool,
    pub biases: Biases,
    pub residual: Residual,
    /// Factor on both parts of a layer where they join the residual.
    pub residual_scale: Option<f32>,
    /// Whether projections are stored `[K, N]`.
    pub transposed: bool,
    pub head: HeadForm,
    /// How the names of tensors end that files hold although nothing reads them.
    pub ignorable: &'static [&'static str],
    /// What layers share, lack or have besides.
    pub extension: Extension,
}

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub vocab: u64,
    pub hidden: u64,
    pub inner: u64,
    pub layers: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub context: u64,
}

/// The fields that sizes come from, for reading and for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeFields {
    pub hidden: &'static str,
    pub inner: &'static str,
    pub layers: &'static str,
    pub heads: &'static str,
    pub kv_heads: &'static str,
    pub context: &'static str,
}

/// From tokens to rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct EmbeddingForm {
    /// Factor on the rows of the table.
    pub scale: Option<f32>,
    pub positions: Option<PositionForm>,
    /// Whether a norm follows.
    pub norm: bool,
    /// The table's width where it is not the hidden size: rows are projected from it, and back before the head.
    pub width: Option<u64>,
}

/// Learned positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PositionForm {
    /// Positions, without the offset.
    pub rows: u64,
    /// The row of position 0.
    pub offset: u64,
    /// Whether positions count the tokens that the mask leaves, in a forward pass too.
    pub masked: bool,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayerForm {
    pub window: Option<u64>,
    /// The number of the rotary tables; `None`: no positions in this layer.
    pub rope: Option<usize>,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether the feed-forward part is a mixture of experts.
    pub mixed: bool,
}

/// A kind of norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NormForm {
    pub kind: NormKind,
    pub eps: f32,
    pub gain: bool,
    /// Whether rows are multiplied by `1 + gain`.
    pub one_plus: bool,
    pub bias: bool,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkvForm {
    Separate,
    Packed(Packing),
}

/// What a norm of queries and keys sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkPlace {
    /// Each head, with one gain for all.
    Heads,
    /// Each head, with a gain of its own.
    EachHead,
    /// As [`QkPlace::EachHead`], with gains that files hold apart, as `norms.{head}`.
    ListedHeads,
    /// Each head, after the rotation.
    RotatedHeads,
    /// All heads together.
    Whole,
}

/// The kind of feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FfnForm {
    Plain,
    Gated,
    /// Gated, with gate and up in one projection.
    Packed,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MixtureForm {
    /// Its name in the layer.
    pub name: &'static str,
    /// The router's name.
    pub router: &'static str,
    pub router_bias: bool,
    pub experts: u64,
    /// Experts for each token.
    pub chosen: u64,
    /// The inner size of an expert.
    pub inner: u64,
    /// The fields of the number of experts and of their inner size.
    pub fields: [&'static str; 2],
    pub scores: Scores,
    /// The tensor that is added to the scores where experts are chosen.
    pub correction: Option<&'static str>,
    pub groups: Option<Groups>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights.
    pub scale: f32,
    pub tensors: ExpertTensors,
    pub shared: Option<SharedForm>,
}

/// How the weights of experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertTensors {
    /// Gate, up and down of each expert by itself.
    Each([&'static str; 3]),
    /// Those of all experts as one: gate and up packed, and down.
    Packed([&'static str; 2]),
    /// Those of all experts as one: gate, up and down.
    Stacked([&'static str; 3]),
    /// As [`ExpertTensors::Stacked`], with biases and the activation of [`ExpertTensors::Interleaved`].
    StackedClamped([&'static str; 3]),
    /// Those of all experts as one, gate and up in turns, with biases; `turned`: stored `[K, N]`.
    Interleaved { turned: bool },
}

/// An expert that every token passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedForm {
    pub name: &'static str,
    /// The names of gate, up and down where they are not those of the dense layers.
    pub parts: Option<[&'static str; 3]>,
    pub inner: u64,
    /// The projection to its gate.
    pub gate: Option<&'static str>,
    /// Whether that is stored as a row, `[H]`, and not as `[1, H]`.
    pub flat_gate: bool,
}

/// Low-rank projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LatentForm {
    /// The rank of queries; `None`: they are projected at once.
    pub q_rank: Option<u64>,
    pub kv_rank: u64,
    /// Elements of a head that are not rotated.
    pub plain: u64,
    /// Elements of a head that are rotated.
    pub rotated: u64,
    /// Elements of a value head.
    pub value: u64,
    /// Whether the projections to the ranks, and that of the output, have a bias.
    pub bias: bool,
    /// Of the norms between the projections.
    pub eps: f32,
    pub names: LatentNames,
    /// Whether the maps from the rank to keys and to values are tensors of their own, see
    /// [`crate::ingest::blocks::LatentUp::Apart`].
    pub apart: bool,
}

/// The names of low-rank projections and of the norms between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LatentNames {
    pub q: &'static str,
    pub q_down: &'static str,
    pub q_norm: &'static str,
    pub q_up: &'static str,
    pub kv_down: &'static str,
    pub kv_norm: &'static str,
    pub kv_up: &'static str,
    /// Keys and values, where they are apart.
    pub ups: [&'static str; 2],
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Biases {
    pub qkv: bool,
    pub output: bool,
    pub ffn: bool,
    pub head: bool,
}

/// From rows to logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct HeadForm {
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether the last layer is followed by no norm.
    pub bare: bool,
    /// Factor on the logits.
    pub scale: Option<f32>,
    /// Logits become `c·tanh(logit/c)`.
    pub softcap: Option<f32>,
}

/// The names of tensors. Those of a layer come behind `{prefix}{layers}.{i}.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub fields: SizeFields,
    /// What the names of all tensors but the head begin with; files are known to use one of these.
    pub prefixes: &'static [&'static str],
    pub embedding: &'static str,
    pub embedding_norm: &'static str,
    pub positions: &'static str,
    pub layers: &'static str,
    pub attention: &'static str,
    pub qkv: [&'static str; 3],
    pub packed_qkv: &'static str,
    pub qk_norm: [&'static str; 2],
    /// The whole name.
    pub sinks: &'static str,
    pub output: &'static str,
    pub ffn: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub packed_up: &'static str,
    pub down: &'static str,
    pub attention_norm: Option<&'static str>,
    pub attended_norm: Option<&'static str>,
    pub ffn_norm: Option<&'static str>,
    pub fed_norm: Option<&'static str>,
    pub norm: &'static str,
    pub head: &'static str,
    /// The projections of a table that is narrower than the hidden size: of its rows, and back.
    pub project: [&'static str; 2],
}

/// The names that most decoders share.
pub(crate) const COMMON_NAMES: Names = Names {
    fields: COMMON_FIELDS,
    prefixes: &["model."],
    embedding: "embed_tokens",
    embedding_norm: "embed_norm",
    positions: "embed_positions",
    layers: "layers",
    attention: "self_attn",
    qkv: ["q_proj", "k_proj", "v_proj"],
    packed_qkv: "qkv_proj",
    qk_norm: ["q_norm", "k_norm"],
    sinks: "sinks",
    output: "o_proj",
    ffn: "mlp",
    gate: "gate_proj",
    up: "up_proj",
    packed_up: "gate_up_proj",
    down: "down_proj",
    attention_norm: Some("input_layernorm"),
    attended_norm: None,
    ffn_norm: Some("post_attention_layernorm"),
    fed_norm: None,
    norm: "norm",
    head: "lm_head",
    project: ["project_in", "project_out"],
};

/// The names that most configurations share.
pub(crate) const COMMON_FIELDS: SizeFields = SizeFields {
    hidden: "hidden_size",
    inner: "intermediate_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    context: "max_position_embeddings",
};

impl Sizes {
    /// The usual factor on scores, `1/√head_dim`.
    pub fn scale(&self) -> f32 {
        (self.head_dim as f64).powf(-0.5) as f32
    }
}

impl NormForm {
    /// The root-mean-square norm.
    pub fn rms(eps: f64) -> NormForm {
        NormForm { kind: NormKind::Rms, eps: eps as f32, gain: true, one_plus: false, bias: false }
    }
    /// The layer norm with gain and bias.
    pub fn layer(eps: f64) -> NormForm {
        NormForm { kind: NormKind::Layer, eps: eps as f32, gain: true, one_plus: false, bias: true }
    }
}

impl Recipe {
    /// A decoder like Llama: RMS norms before each part, a gated feed-forward, rotary positions by `rope` if there are
    /// any, no bias, a head of its own.
    pub fn new(sizes: Sizes, depth: usize, norm: NormForm, act: Activation, rope: Option<RopeConfig>) -> Recipe {
        let layer = LayerForm { window: None, rope: rope.as_ref().map(|_| 0), scale: sizes.scale(), mixed: false };
        Recipe {
            sizes,
            names: COMMON_NAMES,
            embedding: EmbeddingForm::default(),
            ropes: rope.into_iter().collect(),
            style: RopeStyle::Half,
            alibi: None,
            layers: vec![layer; depth],
            norm,
            qkv: QkvForm::Separate,
            clip: None,
            qk_norm: None,
            softcap: None,
            ffn: FfnForm::Gated,
            act,
            mixture: None,
            latent: None,
            sinks: false,
            biases: Biases::default(),
            residual: Residual::Sequential,
            residual_scale: None,
            transposed: false,
            head: HeadForm::default(),
            ignorable: &[],
            extension: Extension::default(),
        }
    }

    /// Gives every layer these rotary tables.
    pub fn rotated(mut self, rope: RopeConfig) -> Recipe {
        self.ropes = vec![rope];
        self.layers.iter_mut().for_each(|layer| layer.rope = Some(0));
        self
    }
    /// Sets the sliding window of each layer.
    pub fn windows(mut self, windows: Vec<Option<u64>>) -> Recipe {
        for (layer, window) in self.layers.iter_mut().zip(windows) {
            layer.window = window;
        }
        self
    }
    /// Sets the factor on the scores of every layer.
    pub fn scale(mut self, scale: f64) -> Recipe {
        self.layers.iter_mut().for_each(|layer| layer.scale = scale as f32);
        self
    }
}
