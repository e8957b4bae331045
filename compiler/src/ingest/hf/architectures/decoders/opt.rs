//! OPT: learned positions that count visible tokens from 2 on, norms before or behind each part, an embedding that may
//! be narrower than the model.

use crate::ingest::blocks::Residual;
use crate::ingest::hf::common_fields::{activation, even_head_dim};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{
    Biases, COMMON_FIELDS, COMMON_NAMES, EmbeddingForm, FfnForm, HeadForm, Names, NormForm, PositionForm, Recipe,
    SizeFields, Sizes,
};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden = f.size("hidden_size", None);
    let heads = f.size("num_attention_heads", None);
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: f.size("ffn_dim", None),
        layers: f.size_to("num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim: even_head_dim(f, "num_attention_heads", hidden, heads),
        context: f.size("max_position_embeddings", Some(2048)),
    };
    let affine = f.flag("layer_norm_elementwise_affine", true);
    let norm = NormForm { gain: affine, bias: affine, ..NormForm::layer(1e-5) };
    let act = activation(f, "activation_function", "relu");
    let bias = f.flag("enable_bias", true);
    let before = f.flag("do_layer_norm_before", true);
    let width = f.size("word_embed_proj_dim", Some(hidden));
    let positions = PositionForm { rows: sizes.context, offset: 2, masked: true };
    Box::new(Recipe {
        names: Names {
            fields: SizeFields { inner: "ffn_dim", ..COMMON_FIELDS },
            prefixes: &["model.decoder.", "decoder."],
            output: "out_proj",
            ffn: "",
            up: "fc1",
            down: "fc2",
            attention_norm: Some("self_attn_layer_norm"),
            ffn_norm: Some("final_layer_norm"),
            norm: "final_layer_norm",
            ..COMMON_NAMES
        },
        embedding: EmbeddingForm {
            positions: Some(positions),
            width: (width != hidden).then_some(width),
            ..EmbeddingForm::default()
        },
        ffn: FfnForm::Plain,
        biases: Biases { qkv: bias, output: bias, ffn: bias, head: false },
        residual: if before { Residual::Sequential } else { Residual::Behind },
        head: HeadForm {
            tied: f.flag("tie_word_embeddings", true),
            bare: !before || f.flag("_remove_final_layer_norm", false),
            ..HeadForm::default()
        },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, None)
    })
}
