//! GPT-Neo: GPT-2 with separate projections, scores without a factor, and a window in every local layer.

use super::gpt2;
use crate::ingest::hf::common_fields::{activation, even_head_dim, renamed};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{
    Biases, COMMON_FIELDS, EmbeddingForm, FfnForm, HeadForm, Names, NormForm, PositionForm, Recipe, SizeFields, Sizes,
};
use serde_json::Value;

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let limits = f.limits();
    let hidden = f.size("hidden_size", None);
    let heads = renamed(f, "num_heads", "num_attention_heads", None, limits.dim);
    let head_dim = even_head_dim(f, "num_heads", hidden, heads);
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: f.size("intermediate_size", hidden.checked_mul(4)),
        layers: renamed(f, "num_layers", "num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim,
        context: f.size("max_position_embeddings", Some(2048)),
    };
    let depth = sizes.depth(f);
    let windows = windows(f, depth);
    let norm = NormForm::layer(f.positive("layer_norm_epsilon", Some(1e-5)));
    let act = activation(f, "activation_function", "gelu_new");
    let positions = PositionForm { rows: sizes.context, offset: 0, masked: false };
    Box::new(Recipe {
        names: Names {
            fields: SizeFields { layers: "num_layers", heads: "num_heads", ..COMMON_FIELDS },
            attention: "attn.attention",
            output: "out_proj",
            ..gpt2::NAMES
        },
        embedding: EmbeddingForm { positions: Some(positions), ..EmbeddingForm::default() },
        ffn: FfnForm::Plain,
        biases: Biases { output: true, ffn: true, ..Biases::default() },
        head: HeadForm { tied: f.flag("tie_word_embeddings", true), ..HeadForm::default() },
        ignorable: &[".attn.attention.bias", ".attn.attention.masked_bias"],
        ..Recipe::new(sizes, depth, norm, act, None).windows(windows).scale(1.0)
    })
}

/// The window of each layer: `attention_types` holds patterns of `global` and `local`, each with a number of
/// repetitions.
fn windows(f: &mut Fields<'_>, depth: usize) -> Vec<Option<u64>> {
    const FIELD: &str = "attention_types";
    let window = f.size("window_size", Some(256));
    let mut windows = Vec::with_capacity(depth);
    let items = f.get(FIELD).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for item in items {
        let kinds = item.get(0).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let times = item.get(1).and_then(Value::as_u64).unwrap_or(0).min(depth as u64);
        let pattern: Option<Vec<_>> = kinds
            .iter()
            .map(|kind| match kind.as_str() {
                Some("global") => Some(None),
                Some("local") => Some(Some(window)),
                _ => None,
            })
            .collect();
        let Some(pattern) = pattern else {
            f.gap(FIELD, format!("has {item}, which is not known"), "use lists of global and local");
            continue;
        };
        for _ in 0..times {
            windows.extend(pattern.iter().copied().take(depth + 1 - windows.len().min(depth)));
        }
    }
    if windows.len() != depth {
        f.gap(FIELD, format!("is not for the {depth} layers of num_layers"), "correct one of them");
    }
    windows.resize(depth, None);
    windows
}
