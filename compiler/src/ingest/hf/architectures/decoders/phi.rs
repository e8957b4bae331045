//! Phi 1 to 2, with layer norms and parallel parts, and Phi 3, which is Llama with packed projections.

use super::sizes::SizeDefaults;
use crate::ingest::blocks::{Packing, Residual};
use crate::ingest::hf::common_fields::{activation, rotary_part, window};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::{RopeDefaults, rope, rope_with};
use crate::ingest::recipe::{
    Biases, COMMON_NAMES, FfnForm, HeadForm, Names, NormForm, QkPlace, QkvForm, Recipe, Sizes,
};

pub(super) fn phi(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = Sizes::read(f, SizeDefaults { context: Some(2048), ..SizeDefaults::default() });
    let rotated = rotary_part(f, sizes.head_dim, "partial_rotary_factor", 0.5);
    let rope = rope(f, rotated, sizes.context);
    let norm = NormForm::layer(f.positive("layer_norm_eps", Some(1e-5)));
    let act = activation(f, "hidden_act", "gelu_new");
    Box::new(Recipe {
        names: Names {
            qk_norm: ["q_layernorm", "k_layernorm"],
            output: "dense",
            up: "fc1",
            down: "fc2",
            ffn_norm: None,
            norm: "final_layernorm",
            ..COMMON_NAMES
        },
        qk_norm: f.flag("qk_layernorm", false).then_some((QkPlace::Heads, norm)),
        ffn: FfnForm::Plain,
        biases: Biases { qkv: true, output: true, ffn: true, head: true },
        residual: Residual::Parallel,
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    })
}

pub(super) fn phi3(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = Sizes::read(f, SizeDefaults { context: Some(4096), ..SizeDefaults::default() });
    let rotated = rotary_part(f, sizes.head_dim, "partial_rotary_factor", 1.0);
    // Old files call the scaling by the names `su` and `yarn`.
    let defaults = RopeDefaults {
        original_context: Some(4096),
        renamed: &[("su", "longrope"), ("yarn", "longrope")],
        ..RopeDefaults::default()
    };
    let rope = rope_with(f, rotated, sizes.context, defaults);
    let norm = NormForm::rms(f.positive("rms_norm_eps", Some(1e-5)));
    let act = activation(f, "hidden_act", "silu");
    let depth = sizes.depth(f);
    let window = window(f, "sliding_window", None);
    Box::new(Recipe {
        qkv: QkvForm::Packed(Packing::Parts),
        ffn: FfnForm::Packed,
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..Recipe::new(sizes, depth, norm, act, Some(rope)).windows(vec![window; depth])
    })
}
