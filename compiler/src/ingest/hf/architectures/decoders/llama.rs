//! Llama, Mistral, Qwen2 and Qwen3: RMS norms before each part, rotary positions, grouped queries, a gated feed-forward.

use super::kv_fields;
use super::sizes::SizeDefaults;
use crate::ingest::hf::common_fields::{activation, layer_types, whole_rotation, window};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::recipe::{Biases, HeadForm, NormForm, QkPlace, Recipe, Sizes};
use crate::transform::extension::Extension;
use serde_json::Value;

/// Members of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    /// Qwen2 with mixtures of experts.
    Qwen2Moe,
    /// Qwen3 with mixtures of experts.
    Qwen3Moe,
}

pub(super) fn read(f: &mut Fields<'_>, family: Family) -> Box<dyn Architecture> {
    Box::new(recipe(f, family))
}

pub(crate) fn recipe(f: &mut Fields<'_>, family: Family) -> Recipe {
    let (kv_heads, context, head_dim) = match family {
        Family::Llama => (None, 2048, None),
        Family::Mistral => (Some(8), 131_072, None),
        Family::Qwen2 => (Some(32), 32_768, None),
        Family::Qwen3 => (Some(32), 32_768, Some(128)),
        Family::Qwen2Moe => (Some(16), 32_768, None),
        Family::Qwen3Moe => (Some(4), 32_768, None),
    };
    let defaults = SizeDefaults { kv_heads, context: Some(context), head_dim, ..SizeDefaults::default() };
    let sizes = Sizes::read(f, defaults);
    whole_rotation(f, sizes.head_dim);
    let norm = NormForm::rms(f.positive("rms_norm_eps", Some(1e-6)));
    let act = activation(f, "hidden_act", "silu");
    let rope = rope(f, sizes.head_dim, sizes.context);
    let attention_bias = f.flag("attention_bias", false);
    let biases = Biases {
        qkv: match family {
            Family::Qwen2 | Family::Qwen2Moe => true,
            Family::Mistral => false,
            Family::Llama | Family::Qwen3 | Family::Qwen3Moe => attention_bias,
        },
        output: matches!(family, Family::Llama | Family::Qwen3 | Family::Qwen3Moe) && attention_bias,
        ffn: f.flag("mlp_bias", false) && family == Family::Llama,
        head: false,
    };
    let depth = sizes.depth(f);
    let shared = kv_fields::read(f, depth);
    let windows = match shared.windows.is_empty() {
        true => windows(f, family, depth),
        false => shared.windows,
    };
    Recipe {
        extension: Extension { kv_map: shared.map, ..Extension::default() },
        biases,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe).then_some((QkPlace::Heads, norm)),
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..Recipe::new(sizes, depth, norm, act, Some(rope)).windows(windows)
    }
}

/// The sliding window of each layer.
fn windows(f: &mut Fields<'_>, family: Family, layers: usize) -> Vec<Option<u64>> {
    match family {
        Family::Llama => vec![None; layers],
        Family::Mistral => vec![window(f, "sliding_window", Some(4096)); layers],
        // All layers or none.
        Family::Qwen2Moe | Family::Qwen3Moe => {
            let on = f.flag("use_sliding_window", false);
            let window = window(f, "sliding_window", Some(4096)).filter(|_| on);
            vec![window; layers]
        }
        Family::Qwen2 | Family::Qwen3 => {
            let window =
                if f.flag("use_sliding_window", false) { window(f, "sliding_window", Some(4096)) } else { None };
            let from = f.get("max_window_layers").and_then(Value::as_u64);
            if f.get("max_window_layers").is_some() && from.is_none() {
                f.gap("max_window_layers", "is no whole number", "correct it");
            }
            match f.get("layer_types") {
                None => (0..layers).map(|i| window.filter(|_| i as u64 >= from.unwrap_or(28))).collect(),
                Some(types) => layer_types(f, types, layers, window),
            }
        }
    }
}
