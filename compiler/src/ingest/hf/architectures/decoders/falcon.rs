//! Falcon, with rotary positions or a bias by distance: the first design (one key head, or one for each head), and the second (grouped keys,
//! a norm for each of the parallel parts).

use super::alibi::slopes;
use crate::ingest::blocks::{Alibi, Packing, Residual};
use crate::ingest::hf::common_fields::{activation, even_head_dim, even_rotation, renamed};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::recipe::alibi::bloom_slopes;
use crate::ingest::recipe::{
    Biases, COMMON_FIELDS, COMMON_NAMES, FfnForm, HeadForm, Names, NormForm, QkvForm, Recipe, SizeFields, Sizes,
};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden = renamed(f, "hidden_size", "n_embed", None, limits.dim);
    let heads = f.size("num_attention_heads", None);
    let head_dim = even_head_dim(f, "num_attention_heads", hidden, heads);
    let has_alibi = f.flag("alibi", false);
    if !has_alibi {
        even_rotation(f, "num_attention_heads", head_dim);
    }
    let second = f.flag("new_decoder_architecture", false);
    let one_key = f.flag("multi_query", true);
    let kv_heads = match (second, one_key) {
        (true, _) => f.size("num_kv_heads", Some(heads)),
        (false, true) => 1,
        (false, false) => heads,
    };
    if !heads.is_multiple_of(kv_heads) {
        f.gap("num_kv_heads", format!("is {kv_heads}, which does not divide the {heads} heads"), "correct one of them");
    }
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: f.size("ffn_hidden_size", hidden.checked_mul(4)),
        layers: f.size_to("num_hidden_layers", None, limits.layers),
        heads,
        kv_heads,
        head_dim,
        context: f.size("max_position_embeddings", Some(2048)),
    };
    let parallel = f.flag("parallel_attn", true);
    let norms = f.size("num_ln_in_parallel_attn", Some(if second { 2 } else { 1 }));
    if !matches!((second, parallel, norms), (true, true, 1 | 2) | (false, true, 1) | (false, false, _)) {
        f.gap(
            "num_ln_in_parallel_attn",
            format!("is {norms}, which does not go with parallel_attn {parallel} in this design"),
            "correct one of them",
        );
    }
    let rope = (!has_alibi).then(|| rope(f, head_dim, sizes.context));
    let alibi = has_alibi.then(|| alibi(f, &sizes));
    let norm = NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5)));
    let act = activation(f, "activation", "gelu");
    let bias = f.flag("bias", false);
    let (attention_norm, ffn_norm) = match (parallel, norms) {
        (true, 2) => ("ln_attn", Some("ln_mlp")),
        (true, _) => ("input_layernorm", None),
        (false, _) => ("input_layernorm", Some("post_attention_layernorm")),
    };
    Box::new(Recipe {
        names: Names {
            fields: SizeFields { inner: "ffn_hidden_size", ..COMMON_FIELDS },
            attention_norm: Some(attention_norm),
            ffn_norm,
            ..NAMES
        },
        alibi,
        qkv: QkvForm::Packed(Packing::Groups),
        ffn: FfnForm::Plain,
        biases: Biases { qkv: bias, output: bias, ffn: bias, head: false },
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, rope)
    })
}

/// The bias of a head on keys at each position, rounded to 16 bits and divided as the scores are.
fn alibi(f: &mut Fields<'_>, sizes: &Sizes) -> Alibi {
    const MOST: u64 = 1 << 24;
    let slopes = slopes(f, "num_attention_heads", sizes.heads, bloom_slopes);
    let entries = sizes.context.saturating_mul(sizes.heads);
    if entries > MOST {
        let problem = format!("makes a table of {entries} positions and heads; the most is {MOST}");
        f.size_gap("max_position_embeddings", problem, "correct it");
    }
    Alibi::Rounded { slopes, scale: sizes.scale() }
}

pub(super) const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embedding: "word_embeddings",
    layers: "h",
    attention: "self_attention",
    packed_qkv: "query_key_value",
    output: "dense",
    up: "dense_h_to_4h",
    down: "dense_4h_to_h",
    norm: "ln_f",
    ..COMMON_NAMES
};
