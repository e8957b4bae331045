//! GLM and GLM 4: half of each head rotated in neighbouring pairs, gate and up in one projection; the latter with norms
//! on both sides of each part.

use super::sizes::SizeDefaults;
use crate::graph::RopeStyle;
use crate::ingest::hf::common_fields::{activation, rotary_part};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::recipe::{Biases, FfnForm, HeadForm, Names, NormForm, Recipe, Sizes};

fn recipe(f: &mut Fields<'_>) -> Recipe {
    let defaults =
        SizeDefaults { kv_heads: Some(2), head_dim: Some(128), context: Some(131_072), ..SizeDefaults::default() };
    let sizes = Sizes::read(f, defaults);
    let rotated = rotary_part(f, sizes.head_dim, "partial_rotary_factor", 0.5);
    let rope = rope(f, rotated, sizes.context);
    let norm = NormForm::rms(f.positive("rms_norm_eps", Some(1.5625e-7)));
    let act = activation(f, "hidden_act", "silu");
    Recipe {
        style: RopeStyle::Interleaved,
        ffn: FfnForm::Packed,
        biases: Biases { qkv: f.flag("attention_bias", true), ..Biases::default() },
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    }
}

pub(super) fn glm(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    Box::new(recipe(f))
}

pub(super) fn glm4(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = recipe(f);
    let names =
        Names { attended_norm: Some("post_self_attn_layernorm"), fed_norm: Some("post_mlp_layernorm"), ..recipe.names };
    Box::new(Recipe { names, ..recipe })
}
