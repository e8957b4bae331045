//! Gemma 1 to 3 (text): scaled embeddings, norms by `1 + gain`, queries scaled by their own field, soft caps; from the
//! second on norms on both sides of each part, and windows in some layers, which in the third have rotary tables of
//! their own.

use super::sizes::SizeDefaults;
use crate::ingest::bind::Binder;
use crate::ingest::hf::common_fields::{activation, layer_windows, only, whole_rotation};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::{Architecture, Network};
use crate::ingest::hf::rope_fields::{RopeDefaults, rope, rope_with};
use crate::ingest::recipe::{Biases, COMMON_NAMES, EmbeddingForm, HeadForm, Names, NormForm, QkPlace, Recipe, Sizes};
use crate::ingest::rope::{RopeConfig, RopeScaling};
use serde_json::Value;

const BOTH_SIDES: Names = Names {
    attended_norm: Some("post_attention_layernorm"),
    ffn_norm: Some("pre_feedforward_layernorm"),
    fed_norm: Some("post_feedforward_layernorm"),
    ..COMMON_NAMES
};

fn base(f: &mut Fields<'_>, kv_heads: u64, act: &str, context: u64) -> Recipe {
    base_or(f, kv_heads, act, context, SizeDefaults::default())
}

fn base_or(f: &mut Fields<'_>, kv_heads: u64, act: &str, context: u64, defaults: SizeDefaults) -> Recipe {
    let defaults = SizeDefaults { kv_heads: Some(kv_heads), head_dim: Some(256), context: Some(context), ..defaults };
    let sizes = Sizes::read(f, defaults);
    whole_rotation(f, sizes.head_dim);
    let norm = NormForm { one_plus: true, ..NormForm::rms(f.positive("rms_norm_eps", Some(1e-6))) };
    let act = activation(f, act, "gelu_pytorch_tanh");
    let bias = f.flag("attention_bias", false);
    Recipe {
        embedding: EmbeddingForm { scale: Some((sizes.hidden as f64).sqrt() as f32), ..EmbeddingForm::default() },
        biases: Biases { qkv: bias, output: bias, ..Biases::default() },
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, None)
    }
}

/// A soft cap: `default` where the field is missing, none where it is `null`.
fn cap(f: &mut Fields<'_>, field: &str, default: Option<f64>) -> Option<f32> {
    match f.present(field) && f.get(field).is_none() {
        true => None,
        false => f.positive_or_none(field).or(default).map(|cap| cap as f32),
    }
}

pub(super) fn gemma(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = base(f, 16, "hidden_act", 8192);
    let rope = rope(f, recipe.sizes.head_dim, recipe.sizes.context);
    Box::new(recipe.rotated(rope))
}

pub(super) fn gemma2(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = base(f, 4, "hidden_activation", 8192);
    let rope = rope(f, recipe.sizes.head_dim, recipe.sizes.context);
    let window = f.size("sliding_window", Some(4096));
    let windows = layer_windows(f, recipe.layers.len(), Some(window), |i| i % 2 == 0);
    let scale = f.positive("query_pre_attn_scalar", Some(256.0)).powf(-0.5);
    Box::new(Recipe {
        names: BOTH_SIDES,
        softcap: cap(f, "attn_logit_softcapping", Some(50.0)),
        head: HeadForm { softcap: cap(f, "final_logit_softcapping", Some(30.0)), ..recipe.head },
        ..recipe.rotated(rope).windows(windows).scale(scale)
    })
}

pub(super) fn gemma3(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    Box::new(third(f, SizeDefaults::default()))
}

/// The texts of the model that sees pictures too.
pub(super) fn gemma3_texts(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let defaults = SizeDefaults {
        vocab: Some(262_208),
        hidden: Some(2304),
        inner: Some(9216),
        layers: Some(26),
        heads: Some(8),
        ..SizeDefaults::default()
    };
    let recipe = f.within("text_config", |f| third(f, defaults));
    let tied = f.flag("tie_word_embeddings", true);
    let names = Names { prefixes: &["model.language_model.", "language_model.model."], ..recipe.names };
    let head = HeadForm { tied, ..recipe.head };
    Box::new(Texts(Recipe { names, head, ..recipe }))
}

/// A decoder among tensors of a model that sees pictures too.
#[derive(Clone, Debug)]
struct Texts(Recipe);

impl Architecture for Texts {
    fn bind(&self, t: &mut Binder<'_>) -> Box<dyn Network> {
        Architecture::bind(&self.0, t)
    }
    fn ignorable(&self, name: &str) -> bool {
        let seen = ["vision_tower.", "multi_modal_projector."];
        let tied = self.0.head.tied && name.ends_with("lm_head.weight");
        tied || seen.iter().any(|part| name.contains(part)) || self.0.ignorable(name)
    }
}

fn third(f: &mut Fields<'_>, defaults: SizeDefaults) -> Recipe {
    let recipe = base_or(f, 4, "hidden_activation", 131_072, defaults);
    let Sizes { head_dim, context, .. } = recipe.sizes;
    only(f, "use_bidirectional_attention", false);
    let global = rope_with(f, head_dim, context, RopeDefaults { theta: 1e6, ..RopeDefaults::default() });
    let theta = f.number("rope_local_base_freq", Some(1e4), "a number above 1", |v| v > 1.0);
    let local = RopeConfig { theta, dim: head_dim, context: global.longest(), scaling: RopeScaling::Default };
    let window = f.size("sliding_window", Some(4096));
    let pattern = f.size("sliding_window_pattern", Some(6)) as usize;
    let windows = layer_windows(f, recipe.layers.len(), Some(window), |i| !(i + 1).is_multiple_of(pattern));
    let scale = f.positive("query_pre_attn_scalar", Some(256.0)).powf(-0.5);
    if f.get("attn_logit_softcapping").is_some_and(|v| *v != Value::Null) {
        f.gap("attn_logit_softcapping", "is set, and this architecture has no cap on scores", "remove it");
    }
    let softcap = cap(f, "final_logit_softcapping", None);
    let mut recipe = Recipe {
        names: BOTH_SIDES,
        qk_norm: Some((QkPlace::Heads, recipe.norm)),
        head: HeadForm { softcap, ..recipe.head },
        ..recipe.rotated(global).windows(windows).scale(scale)
    };
    recipe.ropes.push(local);
    for layer in recipe.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = Some(1);
    }
    recipe
}
