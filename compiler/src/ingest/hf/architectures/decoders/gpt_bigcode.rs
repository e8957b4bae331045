//! GPT-BigCode (StarCoder): GPT-2 with one key head, weights stored `[N, K]`.

use super::gpt2;
use crate::ingest::blocks::Packing;
use crate::ingest::hf::common_fields::activation;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{Biases, EmbeddingForm, FfnForm, HeadForm, NormForm, PositionForm, QkvForm, Recipe, Sizes};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = gpt2::sizes(f, 1024);
    let one_key = f.flag("multi_query", true);
    let sizes = if one_key { Sizes { kv_heads: 1, ..sizes } } else { sizes };
    let norm = NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5)));
    let act = activation(f, "activation_function", "gelu_pytorch_tanh");
    let scale = if f.flag("scale_attn_weights", true) { (sizes.head_dim as f64).powf(-0.5) } else { 1.0 };
    let positions = PositionForm { rows: sizes.context, offset: 0, masked: false };
    Box::new(Recipe {
        names: gpt2::NAMES,
        embedding: EmbeddingForm { positions: Some(positions), ..EmbeddingForm::default() },
        qkv: QkvForm::Packed(if one_key { Packing::Parts } else { Packing::Groups }),
        ffn: FfnForm::Plain,
        biases: Biases { qkv: true, output: true, ffn: true, head: false },
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ignorable: gpt2::CAUSAL_MASK,
        ..Recipe::new(sizes, sizes.depth(f), norm, act, None).scale(scale)
    })
}
