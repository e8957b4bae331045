//! GPT-NeoX: heads partly rotated, layer norms, parallel or sequential parts, queries, keys and values packed head by
//! head.

use crate::ingest::blocks::{Packing, Residual};
use crate::ingest::hf::common_fields::{activation, even_head_dim, rotary_part};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::{RopeDefaults, rope_with};
use crate::ingest::recipe::{Biases, COMMON_NAMES, FfnForm, HeadForm, Names, NormForm, QkvForm, Recipe, Sizes};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden = f.size("hidden_size", None);
    let heads = f.size("num_attention_heads", None);
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: f.size("intermediate_size", None),
        layers: f.size_to("num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim: even_head_dim(f, "num_attention_heads", hidden, heads),
        context: f.size("max_position_embeddings", Some(2048)),
    };
    let rotated = rotary_part(f, sizes.head_dim, "rotary_pct", 0.25);
    let defaults = RopeDefaults { theta_field: "rotary_emb_base", ..RopeDefaults::default() };
    let rope = rope_with(f, rotated, sizes.context, defaults);
    let norm = NormForm::layer(f.positive("layer_norm_eps", Some(1e-5)));
    let act = activation(f, "hidden_act", "gelu");
    let bias = f.flag("attention_bias", true);
    let parallel = f.flag("use_parallel_residual", true);
    Box::new(Recipe {
        names: Names {
            prefixes: &["gpt_neox.", ""],
            embedding: "embed_in",
            attention: "attention",
            packed_qkv: "query_key_value",
            output: "dense",
            up: "dense_h_to_4h",
            down: "dense_4h_to_h",
            norm: "final_layer_norm",
            head: "embed_out",
            ..COMMON_NAMES
        },
        qkv: QkvForm::Packed(Packing::Groups),
        ffn: FfnForm::Plain,
        biases: Biases { qkv: bias, output: bias, ffn: true, head: false },
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ignorable: &[".attention.bias", ".attention.masked_bias"],
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    })
}
