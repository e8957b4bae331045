//! Relatives of Llama that differ from it by little: Arcee, ERNIE 4.5, Granite, Helium, Hunyuan, Seed-OSS, SmolLM3.

use super::sizes::SizeDefaults;
use crate::graph::RopeStyle;
use crate::ingest::hf::common_fields::{activation, layer_windows, whole_rotation, window};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::{RopeDefaults, rope_with};
use crate::ingest::recipe::{Biases, EmbeddingForm, FfnForm, HeadForm, Names, NormForm, QkPlace, Recipe, Sizes};
use serde_json::Value;

/// What a family assumes where its configuration is silent.
pub(super) struct Defaults {
    pub sizes: SizeDefaults,
    pub eps: f64,
    pub theta: f64,
    pub act: &'static str,
    pub tied: bool,
}

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: SizeDefaults {
        vocab: None,
        hidden: None,
        inner: None,
        layers: None,
        heads: None,
        kv_heads: None,
        head_dim: None,
        context: Some(2048),
    },
    eps: 1e-6,
    theta: 1e4,
    act: "silu",
    tied: false,
};

/// Llama without biases.
pub(super) fn llama(f: &mut Fields<'_>, defaults: Defaults) -> Recipe {
    let sizes = Sizes::read(f, defaults.sizes);
    whole_rotation(f, sizes.head_dim);
    let norm = NormForm::rms(f.positive("rms_norm_eps", Some(defaults.eps)));
    let act = activation(f, "hidden_act", defaults.act);
    let theta = RopeDefaults { theta: defaults.theta, ..RopeDefaults::default() };
    let rope = rope_with(f, sizes.head_dim, sizes.context, theta);
    Recipe {
        head: HeadForm { tied: f.flag("tie_word_embeddings", defaults.tied), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    }
}

fn flags(f: &mut Fields<'_>, attention: &str, output: Option<&str>, ffn: Option<&str>) -> Biases {
    let qkv = f.flag(attention, false);
    Biases {
        qkv,
        output: output.is_some_and(|field| f.flag(field, false)),
        ffn: ffn.is_some_and(|field| f.flag(field, false)),
        head: false,
    }
}

pub(super) fn arcee(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { context: Some(4096), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, eps: 1e-5, act: "relu2", ..DEFAULTS });
    let biases = flags(f, "attention_bias", Some("attention_bias"), Some("mlp_bias"));
    Box::new(Recipe { ffn: FfnForm::Plain, biases, ..recipe })
}

pub(super) fn ernie(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { kv_heads: Some(2), head_dim: Some(128), context: Some(131_072), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, eps: 1e-5, theta: 5e5, tied: true, ..DEFAULTS });
    let biases = flags(f, "use_bias", Some("use_bias"), Some("use_bias"));
    Box::new(Recipe { style: RopeStyle::Interleaved, biases, ..recipe })
}

pub(super) fn granite(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = llama(f, DEFAULTS);
    let biases = flags(f, "attention_bias", Some("attention_bias"), Some("mlp_bias"));
    Box::new(Recipe { biases, ..multiplied(f, recipe) })
}

/// Granite's factors on embedding, scores, residuals and logits.
pub(super) fn multiplied(f: &mut Fields<'_>, recipe: Recipe) -> Recipe {
    let mut factor = |field: &str| f.positive(field, Some(1.0));
    let (embedding, residual) = (factor("embedding_multiplier"), factor("residual_multiplier"));
    let (scores, logits) = (factor("attention_multiplier"), factor("logits_scaling"));
    Recipe {
        embedding: EmbeddingForm { scale: Some(embedding as f32), ..recipe.embedding },
        residual_scale: Some(residual as f32),
        head: HeadForm { scale: Some((1.0 / logits) as f32), ..recipe.head },
        ..recipe.scale(scores)
    }
}

pub(super) fn helium(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { kv_heads: Some(20), head_dim: Some(128), context: Some(4096), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, eps: 1e-8, theta: 1e5, ..DEFAULTS });
    let biases = flags(f, "attention_bias", None, Some("mlp_bias"));
    Box::new(Recipe { style: RopeStyle::Interleaved, biases, ..recipe })
}

pub(super) fn hunyuan(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = llama(f, Defaults { eps: 1e-5, ..DEFAULTS });
    if f.get("rope_scaling.alpha").is_some() {
        f.gap("rope_scaling.alpha", "is set, and this way to scale is not read", "use another model");
    }
    let biases = flags(f, "attention_bias", Some("attention_bias"), None);
    let names = Names { qk_norm: ["query_layernorm", "key_layernorm"], ..recipe.names };
    Box::new(Recipe { names, qk_norm: Some((QkPlace::RotatedHeads, recipe.norm)), biases, ..recipe })
}

pub(super) fn seed_oss(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { kv_heads: Some(8), head_dim: Some(128), context: Some(524_288), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, ..DEFAULTS });
    let biases = Biases {
        qkv: f.flag("attention_bias", true),
        output: f.flag("attention_out_bias", false),
        ffn: f.flag("mlp_bias", false),
        head: false,
    };
    Box::new(Recipe { biases, ..recipe })
}

/// SmolLM3 rotates no heads in some layers.
pub(super) fn smollm3(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    const FIELD: &str = "no_rope_layers";
    let sizes = SizeDefaults { kv_heads: Some(4), context: Some(32_768), ..DEFAULTS.sizes };
    let mut recipe = llama(f, Defaults { sizes, theta: 2e6, tied: true, ..DEFAULTS });
    recipe.biases = flags(f, "attention_bias", Some("attention_bias"), Some("mlp_bias"));
    let depth = recipe.layers.len();
    let interval = f.size("no_rope_layer_interval", Some(4)) as usize;
    let rotated: Vec<bool> = match f.get(FIELD) {
        None => (0..depth).map(|i| !(i + 1).is_multiple_of(interval)).collect(),
        Some(list) => list
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_u64).map(|is| is != 0).collect())
            .unwrap_or_default(),
    };
    if rotated.len() != depth {
        f.gap(FIELD, format!("is not one number for each of the {depth} layers"), "correct it or num_hidden_layers");
    }
    let window = if f.flag("use_sliding_window", false) { window(f, "sliding_window", None) } else { None };
    let without = rotated.clone();
    let windows = layer_windows(f, depth, window, |i| window.is_some() && without.get(i) == Some(&false));
    let mut recipe = recipe.windows(windows);
    for (layer, rotated) in recipe.layers.iter_mut().zip(rotated) {
        layer.rope = layer.rope.filter(|_| rotated);
    }
    Box::new(recipe)
}
