//! Decoders like Llama whose feed-forward parts are mixtures of experts: Granite MoE, Mixtral, OLMoE, Qwen2 MoE and
//! Qwen3 MoE.

use super::llama::{self, Family};
use super::relatives::{DEFAULTS, Defaults, llama, multiplied};
use super::sizes::SizeDefaults;
use crate::ingest::blocks::Scores;
use crate::ingest::hf::common_fields::window;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::recipe::{Biases, ExpertTensors, MixtureForm, QkPlace, Recipe, SharedForm};
use serde_json::Value;

/// What a family assumes where its configuration is silent.
pub(super) struct MixtureDefaults {
    /// The field of the number of experts.
    pub field: &'static str,
    pub experts: u64,
    pub chosen: Option<u64>,
    /// The field of the inner size of an expert.
    pub inner: &'static str,
}

/// A mixture with softmax scores and one tensor for each projection of each expert.
pub(super) fn mixture(f: &mut Fields<'_>, defaults: &MixtureDefaults) -> MixtureForm {
    const CHOSEN: &str = "num_experts_per_tok";
    /// Experts of a layer.
    const MOST: u64 = 1 << 16;
    let experts = f.size_to(defaults.field, Some(defaults.experts), MOST);
    let chosen = f.size(CHOSEN, defaults.chosen);
    if chosen > experts {
        f.gap(CHOSEN, format!("is {chosen}, more than the {experts} experts there are"), "correct it");
    }
    MixtureForm {
        name: "mlp",
        router: "gate",
        router_bias: false,
        experts,
        chosen,
        inner: f.size(defaults.inner, None),
        fields: [defaults.field, defaults.inner],
        scores: Scores::Softmax,
        correction: None,
        groups: None,
        normalise: false,
        scale: 1.0,
        tensors: ExpertTensors::Each(["gate_proj", "up_proj", "down_proj"]),
        shared: None,
    }
}

/// The recipe with mixtures in the layers for which `mixed` holds.
pub(super) fn with_mixture(mut recipe: Recipe, form: MixtureForm, mixed: impl Fn(usize) -> bool) -> Recipe {
    for (i, layer) in recipe.layers.iter_mut().enumerate() {
        layer.mixed = mixed(i);
    }
    Recipe { mixture: Some(form), ..recipe }
}

pub(super) fn mixtral(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { kv_heads: Some(8), context: Some(131_072), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, eps: 1e-5, theta: 1e6, ..DEFAULTS });
    let window = window(f, "sliding_window", None);
    let depth = recipe.layers.len();
    let defaults =
        MixtureDefaults { field: "num_local_experts", experts: 8, chosen: Some(2), inner: "intermediate_size" };
    let form = MixtureForm {
        name: "block_sparse_moe",
        normalise: true,
        tensors: ExpertTensors::Each(["w1", "w3", "w2"]),
        ..mixture(f, &defaults)
    };
    Box::new(with_mixture(recipe.windows(vec![window; depth]), form, |_| true))
}

pub(super) fn granite(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = llama(f, DEFAULTS);
    let bias = f.flag("attention_bias", false);
    let defaults =
        MixtureDefaults { field: "num_local_experts", experts: 8, chosen: Some(2), inner: "intermediate_size" };
    let form = MixtureForm {
        name: "block_sparse_moe",
        router: "router.layer",
        scores: Scores::SoftmaxOfChosen,
        tensors: ExpertTensors::Packed(["input_linear.weight", "output_linear.weight"]),
        ..mixture(f, &defaults)
    };
    let recipe = Recipe { biases: Biases { qkv: bias, output: bias, ..Biases::default() }, ..multiplied(f, recipe) };
    Box::new(with_mixture(recipe, form, |_| true))
}

pub(super) fn olmoe(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let sizes = SizeDefaults { context: Some(4096), ..DEFAULTS.sizes };
    let recipe = llama(f, Defaults { sizes, eps: 1e-5, ..DEFAULTS });
    let bias = f.flag("attention_bias", false);
    let defaults = MixtureDefaults { field: "num_experts", experts: 64, chosen: Some(8), inner: "intermediate_size" };
    let form = MixtureForm { normalise: f.flag("norm_topk_prob", false), ..mixture(f, &defaults) };
    let recipe = Recipe {
        clip: f.positive_or_none("clip_qkv").map(|clip| clip as f32),
        qk_norm: Some((QkPlace::Whole, recipe.norm)),
        biases: Biases { qkv: bias, output: bias, ..Biases::default() },
        ..recipe
    };
    Box::new(with_mixture(recipe, form, |_| true))
}

/// The layers that are mixtures: every `decoder_sparse_step`th but those of `mlp_only_layers`.
fn sparse_layers(f: &mut Fields<'_>, depth: usize) -> Vec<bool> {
    const FIELD: &str = "mlp_only_layers";
    let step = f.size("decoder_sparse_step", Some(1)) as usize;
    let dense: Option<Vec<u64>> = match f.get(FIELD) {
        None => Some(Vec::new()),
        Some(list) => list.as_array().and_then(|list| list.iter().map(Value::as_u64).collect()),
    };
    if dense.is_none() {
        f.gap(FIELD, "is no list of layers", "correct it");
    }
    let dense = dense.unwrap_or_default();
    (0..depth).map(|i| !dense.contains(&(i as u64)) && (i + 1).is_multiple_of(step)).collect()
}

pub(super) fn qwen2(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = llama::recipe(f, Family::Qwen2Moe);
    let qkv = f.flag("qkv_bias", true);
    let defaults =
        MixtureDefaults { field: "num_experts", experts: 60, chosen: Some(4), inner: "moe_intermediate_size" };
    let inner = f.size("shared_expert_intermediate_size", Some(5632));
    let form = MixtureForm {
        normalise: f.flag("norm_topk_prob", false),
        shared: Some(SharedForm {
            name: "shared_expert",
            parts: None,
            inner,
            gate: Some("shared_expert_gate"),
            flat_gate: false,
        }),
        ..mixture(f, &defaults)
    };
    let sparse = sparse_layers(f, recipe.layers.len());
    let recipe = Recipe { biases: Biases { qkv, ..recipe.biases }, ..recipe };
    Box::new(with_mixture(recipe, form, |i| sparse.get(i) == Some(&true)))
}

pub(super) fn qwen3(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = llama::recipe(f, Family::Qwen3Moe);
    let defaults =
        MixtureDefaults { field: "num_experts", experts: 128, chosen: Some(8), inner: "moe_intermediate_size" };
    let form = MixtureForm { normalise: f.flag("norm_topk_prob", false), ..mixture(f, &defaults) };
    let sparse = sparse_layers(f, recipe.layers.len());
    Box::new(with_mixture(recipe, form, |i| sparse.get(i) == Some(&true)))
}
