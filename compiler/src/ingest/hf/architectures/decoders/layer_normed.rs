//! Relatives of Llama with layer norms: Nemotron, StableLM and StarCoder2.

use super::sizes::SizeDefaults;
use crate::ingest::blocks::Residual;
use crate::ingest::hf::common_fields::{activation, rotary_part, whole_rotation, window};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::recipe::{Biases, FfnForm, HeadForm, Names, NormForm, QkPlace, Recipe, Sizes};

/// Norms by `1 + gain`, half of each head rotated, a plain feed-forward.
pub(super) fn nemotron(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = Sizes::read(f, SizeDefaults { context: Some(4096), ..SizeDefaults::default() });
    let rotated = rotary_part(f, sizes.head_dim, "partial_rotary_factor", 0.5);
    let rope = rope(f, rotated, sizes.context);
    let norm = NormForm { one_plus: true, ..NormForm::layer(f.positive("norm_eps", Some(1e-5))) };
    let act = activation(f, "hidden_act", "relu2");
    let (attention, ffn) = (f.flag("attention_bias", false), f.flag("mlp_bias", false));
    Box::new(Recipe {
        ffn: FfnForm::Plain,
        biases: Biases { qkv: attention, output: attention, ffn, head: false },
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    })
}

/// A quarter of each head rotated, parts in a row or parallel.
pub(super) fn stablelm(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let defaults = SizeDefaults { kv_heads: Some(32), context: Some(4096), ..SizeDefaults::default() };
    let sizes = Sizes::read(f, defaults);
    let rotated = rotary_part(f, sizes.head_dim, "partial_rotary_factor", 0.25);
    let rope = rope(f, rotated, sizes.context);
    let norm = NormForm::layer(f.positive("layer_norm_eps", Some(1e-5)));
    let act = activation(f, "hidden_act", "silu");
    let head_norm = NormForm { bias: false, ..norm };
    let qk_norm = f.flag("qk_layernorm", false).then_some((QkPlace::ListedHeads, head_norm));
    let recipe = Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope));
    let names = Names { qk_norm: ["q_layernorm", "k_layernorm"], ..recipe.names };
    let recipe = Recipe {
        names,
        qk_norm,
        biases: Biases { qkv: f.flag("use_qkv_bias", false), ..Biases::default() },
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..recipe
    };
    Box::new(match f.flag("use_parallel_residual", false) {
        false => recipe,
        true => Recipe { names: Names { ffn_norm: None, ..recipe.names }, residual: Residual::Parallel, ..recipe },
    })
}

/// Biases throughout, a plain feed-forward, one window for all layers.
pub(super) fn starcoder2(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let defaults = SizeDefaults { kv_heads: Some(2), context: Some(4096), ..SizeDefaults::default() };
    let sizes = Sizes::read(f, defaults);
    whole_rotation(f, sizes.head_dim);
    let rope = rope(f, sizes.head_dim, sizes.context);
    let norm = NormForm::layer(f.positive("norm_epsilon", Some(1e-5)));
    let act = activation(f, "hidden_act", "gelu_pytorch_tanh");
    let bias = f.flag("use_bias", true);
    let window = window(f, "sliding_window", None);
    let depth = sizes.depth(f);
    let recipe = Recipe::new(sizes, depth, norm, act, Some(rope)).windows(vec![window; depth]);
    Box::new(Recipe {
        names: Names { up: "c_fc", down: "c_proj", ..recipe.names },
        ffn: FfnForm::Plain,
        biases: Biases { qkv: bias, output: bias, ffn: bias, head: false },
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ..recipe
    })
}
