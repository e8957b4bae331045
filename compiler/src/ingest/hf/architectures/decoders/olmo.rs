//! OLMo 1 to 3: the first with layer norms that have no weights, the others with norms behind each part and over all
//! queries and keys of a token; the third has windows, in whose layers rotary positions are not scaled.

use super::relatives::{DEFAULTS, Defaults, llama};
use crate::ingest::hf::common_fields::layer_windows;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{Biases, COMMON_NAMES, Names, NormForm, QkPlace, Recipe};
use crate::ingest::rope::{RopeConfig, RopeScaling};

fn base(f: &mut Fields<'_>) -> Recipe {
    let recipe = llama(f, Defaults { eps: 1e-5, ..DEFAULTS });
    let bias = f.flag("attention_bias", false);
    Recipe { biases: Biases { qkv: bias, output: bias, ..Biases::default() }, ..recipe }
}

pub(super) fn olmo(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = base(f);
    let norm = NormForm { gain: false, bias: false, ..NormForm::layer(1e-5) };
    Box::new(Recipe { norm, clip: f.positive_or_none("clip_qkv").map(|clip| clip as f32), ..recipe })
}

/// Norms on what a part gives, and none before it.
pub(super) const NORMED_BEHIND: Names = Names {
    attention_norm: None,
    attended_norm: Some("post_attention_layernorm"),
    ffn_norm: None,
    fed_norm: Some("post_feedforward_layernorm"),
    ..COMMON_NAMES
};

fn normed_behind(f: &mut Fields<'_>) -> Recipe {
    let recipe = base(f);
    Recipe { names: NORMED_BEHIND, qk_norm: Some((QkPlace::Whole, recipe.norm)), ..recipe }
}

pub(super) fn olmo2(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    Box::new(normed_behind(f))
}

pub(super) fn olmo3(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = normed_behind(f);
    let window = f.size("sliding_window", Some(4096));
    let windows = layer_windows(f, recipe.layers.len(), Some(window), |i| !(i + 1).is_multiple_of(4));
    let mut recipe = recipe.windows(windows);
    let plain: Vec<RopeConfig> = recipe.ropes.iter().map(unscaled).collect();
    recipe.ropes.extend(plain);
    for layer in recipe.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = Some(1);
    }
    Box::new(recipe)
}

fn unscaled(rope: &RopeConfig) -> RopeConfig {
    RopeConfig { context: rope.longest(), scaling: RopeScaling::Default, ..rope.clone() }
}
