//! BLOOM and MPT: no positions but a bias on the scores that falls with distance, by a slope for each head.

use super::falcon;
use crate::ingest::activation::Activation;
use crate::ingest::blocks::{Alibi, Packing, Residual};
use crate::ingest::hf::common_fields::{even_head_dim, only, only_text, renamed};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::alibi::{bloom_slopes, mpt_slopes};
use crate::ingest::recipe::{
    Biases, COMMON_FIELDS, COMMON_NAMES, EmbeddingForm, FfnForm, HeadForm, Names, NormForm, QkvForm, Recipe,
    SizeFields, Sizes,
};

/// The number of heads, for which slopes are made: bounded, since it comes from the file.
pub(super) fn slopes(f: &mut Fields<'_>, field: &str, heads: u64, of: fn(u64) -> Vec<f32>) -> Vec<f32> {
    const MOST: u64 = 1 << 16;
    if heads > MOST {
        f.size_gap(field, format!("is {heads}, more than {MOST}"), "correct it");
        return Vec::new();
    }
    of(heads)
}

pub(super) fn bloom(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden = renamed(f, "hidden_size", "n_embed", None, limits.dim);
    let heads = renamed(f, "n_head", "num_attention_heads", None, limits.dim);
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: hidden.saturating_mul(4),
        layers: renamed(f, "n_layer", "num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim: even_head_dim(f, "n_head", hidden, heads),
        context: f.size("seq_length", Some(2048)),
    };
    let norm = NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5)));
    let normed = f.flag("apply_residual_connection_post_layernorm", false);
    let alibi = Alibi::Exact(slopes(f, "n_head", heads, bloom_slopes));
    Box::new(Recipe {
        names: Names {
            fields: SizeFields { inner: "hidden_size", layers: "n_layer", heads: "n_head", ..COMMON_FIELDS },
            embedding_norm: "word_embeddings_layernorm",
            ..falcon::NAMES
        },
        embedding: EmbeddingForm { norm: true, ..EmbeddingForm::default() },
        alibi: Some(alibi),
        qkv: QkvForm::Packed(Packing::Groups),
        ffn: FfnForm::Plain,
        biases: Biases { qkv: true, output: true, ffn: true, head: false },
        residual: if normed { Residual::Normed } else { Residual::Sequential },
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, Activation::GeluTanh, None)
    })
}

pub(super) fn mpt(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden = renamed(f, "d_model", "hidden_size", None, limits.dim);
    let heads = renamed(f, "n_heads", "num_attention_heads", None, limits.dim);
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: hidden.saturating_mul(4),
        layers: renamed(f, "n_layers", "num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim: even_head_dim(f, "n_heads", hidden, heads),
        context: f.size("max_seq_len", Some(2048)),
    };
    let ratio = f.positive("expansion_ratio", Some(4.0));
    let most = f.positive("attn_config.alibi_bias_max", Some(8.0));
    for (field, value, only) in [("expansion_ratio", ratio, 4.0), ("attn_config.alibi_bias_max", most, 8.0)] {
        if value != only {
            f.gap(field, format!("is {value}; only {only} is read"), "use another model");
        }
    }
    only(f, "attn_config.alibi", true);
    only(f, "attn_config.qk_ln", false);
    only(f, "attn_config.prefix_lm", false);
    only(f, "attn_config.attn_uses_sequence_id", false);
    only(f, "no_bias", true);
    only_text(f, "attn_config.attn_type", "multihead_attention");
    only_text(f, "norm_type", "low_precision_layernorm");
    if f.get("logit_scale").is_some() {
        f.gap("logit_scale", "is set, and a factor on the logits is not read here", "use another model");
    }
    let norm = NormForm { bias: false, ..NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5))) };
    let scale = f.positive_or_none("attn_config.softmax_scale").unwrap_or((sizes.head_dim as f64).powf(-0.5));
    let clip = f.positive_or_none("attn_config.clip_qkv").map(|clip| clip as f32);
    let alibi = Alibi::Exact(slopes(f, "n_heads", heads, mpt_slopes));
    Box::new(Recipe {
        names: Names {
            fields: SizeFields {
                hidden: "d_model",
                inner: "d_model",
                layers: "n_layers",
                heads: "n_heads",
                context: "max_seq_len",
                ..COMMON_FIELDS
            },
            prefixes: &["transformer.", ""],
            embedding: "wte",
            layers: "blocks",
            attention: "attn",
            packed_qkv: "Wqkv",
            output: "out_proj",
            ffn: "ffn",
            attention_norm: Some("norm_1"),
            ffn_norm: Some("norm_2"),
            norm: "norm_f",
            ..COMMON_NAMES
        },
        alibi: Some(alibi),
        qkv: QkvForm::Packed(Packing::Parts),
        clip,
        ffn: FfnForm::Plain,
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, Activation::GeluErf, None).scale(scale)
    })
}
