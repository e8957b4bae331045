//! GPT-2: learned positions, layer norms, one projection for queries, keys and values, weights stored `[K, N]`.

use crate::ingest::blocks::Packing;
use crate::ingest::hf::common_fields::{activation, even_head_dim, renamed};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{
    Biases, COMMON_FIELDS, COMMON_NAMES, EmbeddingForm, FfnForm, HeadForm, Names, NormForm, PositionForm, QkvForm,
    Recipe, SizeFields, Sizes,
};

pub(super) const NAMES: Names = Names {
    fields: SizeFields {
        hidden: "n_embd",
        inner: "n_inner",
        layers: "n_layer",
        heads: "n_head",
        context: "n_positions",
        ..COMMON_FIELDS
    },
    prefixes: &["transformer.", ""],
    embedding: "wte",
    positions: "wpe",
    layers: "h",
    attention: "attn",
    packed_qkv: "c_attn",
    output: "c_proj",
    up: "c_fc",
    down: "c_proj",
    attention_norm: Some("ln_1"),
    ffn_norm: Some("ln_2"),
    norm: "ln_f",
    ..COMMON_NAMES
};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    Box::new(recipe(f))
}

/// Sizes by GPT-2's names or the common ones, with `context` positions where none are given.
pub(super) fn sizes(f: &mut Fields<'_>, context: u64) -> Sizes {
    let limits = f.limits();
    let hidden = renamed(f, "n_embd", "hidden_size", None, limits.dim);
    let heads = renamed(f, "n_head", "num_attention_heads", None, limits.dim);
    let head_dim = even_head_dim(f, "n_head", hidden, heads);
    Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: f.size("n_inner", hidden.checked_mul(4)),
        layers: renamed(f, "n_layer", "num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim,
        context: renamed(f, "n_positions", "max_position_embeddings", Some(context), limits.dim),
    }
}

pub(crate) fn recipe(f: &mut Fields<'_>) -> Recipe {
    let sizes = sizes(f, 1024);
    // The order of the operations and their precision, not the function.
    f.flag("reorder_and_upcast_attn", false);
    let act = activation(f, "activation_function", "gelu_new");
    let norm = NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5)));
    let by_width = if f.flag("scale_attn_weights", true) { (sizes.head_dim as f64).powf(-0.5) } else { 1.0 };
    let by_layer = f.flag("scale_attn_by_inverse_layer_idx", false);
    let mut recipe = Recipe {
        names: NAMES,
        embedding: EmbeddingForm {
            positions: Some(PositionForm { rows: sizes.context, offset: 0, masked: false }),
            ..EmbeddingForm::default()
        },
        qkv: QkvForm::Packed(Packing::Parts),
        ffn: FfnForm::Plain,
        biases: Biases { qkv: true, output: true, ffn: true, head: false },
        transposed: true,
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ignorable: CAUSAL_MASK,
        ..Recipe::new(sizes, sizes.depth(f), norm, act, None).scale(by_width)
    };
    if by_layer {
        for (i, layer) in recipe.layers.iter_mut().enumerate() {
            layer.scale = (by_width / (i + 1) as f64) as f32;
        }
    }
    recipe
}

/// Old files hold the causal mask.
pub(super) const CAUSAL_MASK: &[&str] = &[".attn.bias", ".attn.masked_bias"];
