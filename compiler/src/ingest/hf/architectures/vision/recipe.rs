//! What a vision transformer is made of, as data: a family fills this in from its configuration, and
//! [`super::assemble`] binds and builds it.

use crate::ingest::activation::Activation;
use crate::ingest::hf::common_fields::{activation, even_head_dim};
use crate::ingest::hf::fields::Fields;
use serde_json::Value;

/// A vision transformer: patches, tokens in front of them, layers with norms before each part.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// What the names of the encoder's tensors begin with: under a head, and alone.
    pub prefixes: [&'static str; 2],
    pub names: Names,
    pub image: Image,
    pub layers: Layers,
    /// Learned tokens in front of the patches, by name.
    pub tokens: &'static [&'static str],
    /// Learned rows between the tokens and the patches, which have no positions.
    pub registers: u64,
    /// Whether the one token is stored `[H]` and positions as a table.
    pub flat: bool,
    pub patch_bias: bool,
    pub head: Head,
    /// Tensors that nothing reads, by a part of their name.
    pub ignored: &'static [&'static str],
}

/// The picture and how it is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub channels: u64,
    pub height: u64,
    pub width: u64,
    pub patch: u64,
}

/// The layers.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    pub count: u64,
    pub hidden: u64,
    pub heads: u64,
    pub inner: u64,
    pub act: Activation,
    pub eps: f32,
    /// Whether the projections of queries, keys and values have a bias.
    pub qkv_bias: [bool; 3],
    /// A gated feed-forward with gate and up in one.
    pub gated: bool,
    pub relative: Option<Relative>,
}

/// A bias on the scores by the two distances between patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relative {
    /// All layers share one.
    Shared,
    /// Each layer has its own.
    Own,
}

/// Names of tensors, without `.weight` and `.bias`. Empty: there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub patches: &'static str,
    /// The whole name.
    pub positions: &'static str,
    /// Behind the embedding.
    pub first_norm: &'static str,
    pub layer: fn(u64) -> String,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub ffn_norm: &'static str,
    /// Whole names of the gains on the results of both parts.
    pub gains: [&'static str; 2],
    /// Behind the last layer.
    pub final_norm: &'static str,
}

impl Names {
    /// The names of ViT.
    pub const VIT: Names = Names {
        patches: "embeddings.patch_embeddings.projection",
        positions: "embeddings.position_embeddings",
        first_norm: "",
        layer: |i| format!("encoder.layer.{i}."),
        q: "attention.attention.query",
        k: "attention.attention.key",
        v: "attention.attention.value",
        attention_output: "attention.output.dense",
        attention_norm: "layernorm_before",
        up: "intermediate.dense",
        down: "output.dense",
        ffn_norm: "layernorm_after",
        gains: ["", ""],
        final_norm: "layernorm",
    };
    /// The names of CLIP.
    pub const CLIP: Names = Names {
        patches: "embeddings.patch_embedding",
        positions: "embeddings.position_embedding.weight",
        first_norm: "pre_layrnorm",
        layer: |i| format!("encoder.layers.{i}."),
        q: "self_attn.q_proj",
        k: "self_attn.k_proj",
        v: "self_attn.v_proj",
        attention_output: "self_attn.out_proj",
        attention_norm: "layer_norm1",
        up: "mlp.fc1",
        down: "mlp.fc2",
        ffn_norm: "layer_norm2",
        gains: ["", ""],
        final_norm: "",
    };
}

/// What stands on top.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// Whether the rows themselves are an output, `last_hidden_state`.
    pub states: bool,
    pub outputs: Vec<Output>,
}

/// An output: the mean of what its parts give.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub name: &'static str,
    pub parts: Vec<(Pool, Vec<Step>)>,
}

/// Which rows an output is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// The token in front of that number.
    Token(u64),
    /// All rows as they are.
    Rows,
    /// The mean over patches.
    Patches,
    /// The first token beside the mean over patches.
    TokenAndPatches,
}

/// A step from pooled rows to an output.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// `inner`: its name begins as those of the encoder do.
    Linear {
        name: &'static str,
        inner: bool,
        from: u64,
        to: u64,
        bias: bool,
    },
    /// From all rows to one: attention of a learned query, and a feed-forward part. Of the encoder.
    Attend {
        name: &'static str,
    },
    Act(Activation),
    /// Of the encoder.
    Norm {
        name: &'static str,
    },
}

impl Step {
    /// A linear map of the head, with a bias.
    pub fn classifier(name: &'static str, from: u64, to: u64) -> Step {
        Step::Linear { name, inner: false, from, to, bias: true }
    }
}

impl Output {
    /// An output of one part.
    pub fn of(name: &'static str, pool: Pool, steps: Vec<Step>) -> Output {
        Output { name, parts: vec![(pool, steps)] }
    }
}

impl Image {
    /// Patches down and across.
    pub fn grid(&self) -> [u64; 2] {
        [self.height / self.patch.max(1), self.width / self.patch.max(1)]
    }
    /// Patches.
    pub fn patches(&self) -> u64 {
        self.grid().iter().product()
    }
}

/// A size that may be given for both axes at once.
fn both(f: &mut Fields<'_>, field: &str, default: u64) -> [u64; 2] {
    let most = f.limits().dim;
    match f.get(field) {
        Some(Value::Array(items)) => {
            let sizes: Vec<u64> = items.iter().filter_map(Value::as_u64).filter(|n| (1..=most).contains(n)).collect();
            match sizes.as_slice() {
                [height, width] if items.len() == 2 => [*height, *width],
                _ => {
                    f.size_gap(field, "is no size and no pair of sizes", "correct it");
                    [default; 2]
                }
            }
        }
        _ => [f.size(field, Some(default)); 2],
    }
}

/// Reads the picture's sizes.
pub(crate) fn image(f: &mut Fields<'_>, prefix: &str, default: [u64; 2]) -> Image {
    let [height, width] = both(f, &format!("{prefix}image_size"), default[0]);
    let patches = both(f, &format!("{prefix}patch_size"), default[1]);
    let patch = patches[0];
    if patches[1] != patch {
        f.size_gap("patch_size", "is not square, which is not supported", "use a model with square patches");
    }
    if patch > height || patch > width {
        f.size_gap("patch_size", format!("is {patch}, more than the image {height}×{width}"), "correct one of them");
    }
    let channels = f.size(&format!("{prefix}num_channels"), Some(3));
    Image { channels, height, width, patch: patch.max(1) }
}

/// Reads the layers' sizes with the defaults of ViT.
pub(crate) fn layers(f: &mut Fields<'_>, prefix: &str, act: &str, eps: f64) -> Layers {
    layers_or(f, prefix, act, eps, [768, 12, 3072])
}

/// Reads the layers' sizes with these defaults for the hidden size, the heads and the inner size.
pub(crate) fn layers_or(
    f: &mut Fields<'_>,
    prefix: &str,
    act: &str,
    eps: f64,
    [hidden, heads, inner]: [u64; 3],
) -> Layers {
    let limits = f.limits();
    let field = |name: &str| format!("{prefix}{name}");
    let hidden = f.size(&field("hidden_size"), Some(hidden));
    let heads = f.size(&field("num_attention_heads"), Some(heads));
    even_head_dim(f, &field("num_attention_heads"), hidden, heads);
    Layers {
        count: f.size_to(&field("num_hidden_layers"), Some(12), limits.layers),
        hidden,
        heads,
        inner: f.size(&field("intermediate_size"), Some(inner)),
        act: activation(f, &field("hidden_act"), act),
        eps: f.positive(&field("layer_norm_eps"), Some(eps)) as f32,
        qkv_bias: [true; 3],
        gated: false,
        relative: None,
    }
}
