//! GPT-J and CodeGen: the first elements of each head rotated in neighbouring pairs, one norm before both parts, which
//! are parallel.

use super::gpt2;
use crate::graph::RopeStyle;
use crate::ingest::blocks::{Packing, Residual};
use crate::ingest::hf::common_fields::{activation, even_rotation};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::most_rotated;
use crate::ingest::recipe::{Biases, FfnForm, HeadForm, Names, NormForm, QkvForm, Recipe};
use crate::ingest::rope::{RopeConfig, RopeScaling};

fn recipe(f: &mut Fields<'_>) -> Recipe {
    let sizes = gpt2::sizes(f, 2048);
    if f.present("rotary_dim") && f.get("rotary_dim").is_none() {
        f.gap("rotary_dim", "is null, and the tables of such a model do not fit its heads", "give it a number");
    }
    let dim = f.size("rotary_dim", Some(64));
    even_rotation(f, "rotary_dim", dim);
    most_rotated(f, "rotary_dim", dim);
    if dim > sizes.head_dim {
        f.gap("rotary_dim", format!("is {dim}, more than the {} elements of a head", sizes.head_dim), "correct it");
    }
    let rope = RopeConfig { theta: 1e4, dim, context: sizes.context, scaling: RopeScaling::Default };
    let norm = NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5)));
    let act = activation(f, "activation_function", "gelu_new");
    Recipe {
        names: Names { output: "out_proj", up: "fc_in", down: "fc_out", ffn_norm: None, ..gpt2::NAMES },
        style: RopeStyle::Interleaved,
        ffn: FfnForm::Plain,
        biases: Biases { ffn: true, head: true, ..Biases::default() },
        residual: Residual::Parallel,
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ignorable: gpt2::CAUSAL_MASK,
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    }
}

pub(super) fn gptj(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    Box::new(recipe(f))
}

pub(super) fn codegen(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = recipe(f);
    let heads = recipe.sizes.heads;
    if !heads.is_multiple_of(Packing::SHARDS) {
        f.gap("n_head", format!("is {heads}, which the {} shards do not share evenly", Packing::SHARDS), "correct it");
    }
    Box::new(Recipe {
        names: Names { packed_qkv: "qkv_proj", ..recipe.names },
        qkv: QkvForm::Packed(Packing::Shards),
        ignorable: &[".attn.causal_mask"],
        ..recipe
    })
}
