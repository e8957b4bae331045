//! GPT-OSS: attention with sinks, a window in every second layer, clamped experts with biases.

use super::mixtures::{MixtureDefaults, mixture, with_mixture};
use super::relatives::{DEFAULTS, Defaults, llama};
use super::sizes::SizeDefaults;
use crate::ingest::blocks::Scores;
use crate::ingest::hf::common_fields::{layer_windows, only_text};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{Biases, ExpertTensors, MixtureForm, Recipe};

pub(super) fn read(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { kv_heads: Some(8), head_dim: Some(64), context: Some(131_072), ..DEFAULTS.sizes };
    if !f.present("rope_scaling") {
        f.gap("rope_scaling", "is missing; its default is a YaRN scaling that has to be written out", "add it");
    }
    let recipe = llama(f, Defaults { sizes, eps: 1e-5, theta: 150_000.0, ..DEFAULTS });
    only_text(f, "hidden_act", "silu");
    let window = f.size("sliding_window", Some(128));
    let windows = layer_windows(f, recipe.layers.len(), Some(window), |i| i % 2 == 0);
    let defaults =
        MixtureDefaults { field: "num_local_experts", experts: 128, chosen: Some(4), inner: "intermediate_size" };
    // Quantised experts are stored row by row.
    let form = MixtureForm {
        router: "router",
        router_bias: true,
        scores: Scores::SoftmaxOfChosen,
        tensors: ExpertTensors::Interleaved { turned: f.get("quantization_config").is_none() },
        ..mixture(f, &defaults)
    };
    let recipe = Recipe {
        biases: Biases { qkv: true, output: true, ..Biases::default() },
        sinks: true,
        ..recipe.windows(windows)
    };
    Box::new(with_mixture(recipe, form, |_| true))
}
