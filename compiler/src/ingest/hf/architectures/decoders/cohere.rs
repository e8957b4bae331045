//! Cohere 1 and 2 (Command R, Aya): layer norms without bias, one before both parts, which are parallel; neighbouring
//! elements rotate together; a factor on the logits. The second rotates only where a layer has a window.

use super::sizes::SizeDefaults;
use crate::graph::RopeStyle;
use crate::ingest::blocks::Residual;
use crate::ingest::hf::common_fields::{activation, layer_windows, whole_rotation};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::recipe::{Biases, HeadForm, Names, NormForm, QkPlace, Recipe, Sizes};

fn base(f: &mut Fields<'_>) -> Recipe {
    let sizes = Sizes::read(f, SizeDefaults { context: Some(8192), ..SizeDefaults::default() });
    whole_rotation(f, sizes.head_dim);
    let norm = NormForm { bias: false, ..NormForm::layer(f.positive("layer_norm_eps", Some(1e-5))) };
    let act = activation(f, "hidden_act", "silu");
    let rope = rope(f, sizes.head_dim, sizes.context);
    let bias = f.flag("attention_bias", false);
    let recipe = Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope));
    Recipe {
        names: Names { ffn_norm: None, ..recipe.names },
        style: RopeStyle::Interleaved,
        biases: Biases { qkv: bias, output: bias, ..Biases::default() },
        residual: Residual::Parallel,
        head: HeadForm {
            tied: f.flag("tie_word_embeddings", true),
            scale: Some(f.positive("logit_scale", Some(0.0625)) as f32),
            ..HeadForm::default()
        },
        ..recipe
    }
}

pub(super) fn cohere(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = base(f);
    let qk_norm = f.flag("use_qk_norm", false).then_some((QkPlace::EachHead, recipe.norm));
    Box::new(Recipe { qk_norm, ..recipe })
}

pub(super) fn cohere2(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = base(f);
    let window = f.size("sliding_window", Some(4096));
    let pattern = f.size("sliding_window_pattern", Some(4)) as usize;
    let windows = layer_windows(f, recipe.layers.len(), Some(window), |i| !(i + 1).is_multiple_of(pattern));
    let mut recipe = recipe.windows(windows);
    for layer in &mut recipe.layers {
        layer.rope = layer.rope.filter(|_| layer.window.is_some());
    }
    Box::new(recipe)
}
