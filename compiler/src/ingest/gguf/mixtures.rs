//! The decoders of GGUF files that are mixtures of experts.

use super::families::{NAMES, interleaved, plain, qwen3, rms};
use super::keys::Keys;
use super::reader::GgufFile;
use crate::ingest::activation::Activation;
use crate::ingest::blocks::{Groups, Scores};
use crate::ingest::recipe::{
    ExpertTensors, HeadForm, LatentForm, LatentNames, MixtureForm, Names, QkPlace, Recipe, SharedForm,
};
use crate::ingest::rope::{RopeConfig, RopeScaling};

/// Keys of mixtures.
pub(super) const EXPERTS: &[&str] =
    &["expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_weights_norm", "expert_weights_scale"];

/// Keys of DeepSeek V2 and V3.
pub(super) const DEEPSEEK: &[&str] = &[
    "leading_dense_block_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
];

const LATENT: LatentNames = LatentNames {
    q: "attn_q",
    q_down: "attn_q_a",
    q_norm: "attn_q_a_norm",
    q_up: "attn_q_b",
    kv_down: "attn_kv_a_mqa",
    kv_norm: "attn_kv_a_norm",
    kv_up: "attn_kv_b",
    ups: ["attn_k_b", "attn_v_b"],
};

const SHARED: [&str; 3] = ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"];

/// The mixture of a model whose experts' projections are one tensor each.
pub(super) fn mixture(k: &mut Keys<'_>, inner: &'static str, normalise: bool) -> Option<MixtureForm> {
    let experts = k.u64("expert_count").filter(|n| *n > 0)?;
    let chosen = k.size("expert_used_count", None, experts);
    Some(MixtureForm {
        name: "",
        router: "ffn_gate_inp",
        router_bias: false,
        experts,
        chosen,
        inner: k.size(inner, None, k.limits.dim),
        fields: ["expert_count", inner],
        scores: Scores::Softmax,
        correction: None,
        groups: None,
        normalise,
        scale: 1.0,
        tensors: ExpertTensors::Stacked(["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]),
        shared: None,
    })
}

pub(super) fn mixed(mut recipe: Recipe, mixture: Option<MixtureForm>) -> Recipe {
    for layer in &mut recipe.layers {
        layer.mixed = mixture.is_some();
    }
    Recipe { mixture, ..recipe }
}

pub(super) fn qwen2moe(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    k.no_window(&recipe);
    let inner = k.size("expert_shared_feed_forward_length", None, k.limits.dim);
    let shared = SharedForm { name: "", parts: Some(SHARED), inner, gate: Some("ffn_gate_inp_shexp"), flat_gate: true };
    let mixture = mixture(k, "expert_feed_forward_length", false).map(|m| MixtureForm { shared: Some(shared), ..m });
    mixed(recipe, mixture)
}

pub(super) fn qwen3moe(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = qwen3(k, file);
    let mixture = mixture(k, "expert_feed_forward_length", true);
    mixed(recipe, mixture)
}

pub(super) fn olmoe(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let recipe = plain(k, file);
    let mixture = mixture(k, "feed_forward_length", false);
    mixed(Recipe { qk_norm: Some((QkPlace::Whole, recipe.norm)), ..recipe }, mixture)
}

/// Attention with sinks, a window in every second layer, clamped experts with biases.
pub(super) fn gpt_oss(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let mut recipe = plain(k, file);
    let windows = k.windows(&recipe, None, |i| i.is_multiple_of(2));
    // The model's own scaling begins and ends between two pairs; no key says so.
    for rope in &mut recipe.ropes {
        if let RopeScaling::Yarn { truncate, .. } = &mut rope.scaling {
            *truncate = false;
        }
    }
    let form = mixture(k, "expert_feed_forward_length", false).map(|m| MixtureForm {
        router_bias: true,
        scores: Scores::SoftmaxOfChosen,
        tensors: ExpertTensors::StackedClamped(["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]),
        ..m
    });
    let names = Names { ffn_norm: Some("post_attention_norm"), ..NAMES };
    mixed(Recipe { names, sinks: true, ..recipe.windows(windows) }, form)
}

/// DeepSeek V2 and V3: low-rank projections, experts chosen from the best groups, experts that every token passes, dense
/// layers first.
pub(super) fn deepseek2(k: &mut Keys<'_>, file: &GgufFile) -> Recipe {
    let dim = k.limits.dim;
    // Older files hold the maps from the rank to keys and values as one, and the sizes of heads under other keys.
    let apart = file.get("blk.0.attn_k_b.weight").is_some();
    let [key, value] = match apart {
        true => ["attention.key_length_mla", "attention.value_length_mla"],
        false => ["attention.key_length", "attention.value_length"],
    };
    let [head_dim, value] = [key, value].map(|name| k.size(name, None, dim));
    let rotated = k.size("rope.dimension_count", None, dim);
    let kv_rank = k.size("attention.kv_lora_rank", None, dim);
    let q_rank = k.u64("attention.q_lora_rank").map(|_| k.size("attention.q_lora_rank", None, dim));
    if k.sizes_known && rotated >= head_dim {
        let problem = format!("is {rotated}, and a head has {head_dim} elements of which some are not rotated");
        k.gap("rope.dimension_count", problem, "convert the model again");
        k.sizes_known = false;
    }
    let [context, hidden, heads] =
        ["context_length", "embedding_length", "attention.head_count"].map(|name| k.size(name, None, dim));
    let sizes = k.sizes_of(file, [context, hidden, heads, heads, head_dim]);
    let norm = rms(k);
    let mut rope = k.rope(sizes, file);
    let magnitude = magnitude(k, &rope);
    if let RopeScaling::Yarn { attention_factor, .. } = &mut rope.scaling {
        *attention_factor = Some(k.positive("rope.scaling.attn_factor", Some(1.0)));
    }
    let latent = LatentForm {
        q_rank,
        kv_rank,
        plain: head_dim.saturating_sub(rotated),
        rotated,
        value,
        bias: false,
        eps: norm.eps,
        names: LATENT,
        apart,
    };
    let depth = if sizes.layers <= k.limits.layers { sizes.layers as usize } else { 0 };
    let recipe = Recipe {
        names: NAMES,
        latent: Some(latent),
        head: HeadForm { tied: file.get("output.weight").is_none(), ..HeadForm::default() },
        ignorable: if apart { &["rope_freqs.weight", "attn_kv_b.weight"] } else { &["rope_freqs.weight"] },
        ..Recipe::new(sizes, depth, norm, Activation::Silu, Some(rope))
    };
    let recipe = interleaved(recipe.scale((head_dim as f64).powf(-0.5) * magnitude * magnitude));
    let form = deepseek_mixture(k);
    let dense = k.u64("leading_dense_block_count").unwrap_or(0);
    let mut recipe = mixed(recipe, form);
    for (_, layer) in (0u64..).zip(&mut recipe.layers).take_while(|(i, _)| *i < dense) {
        layer.mixed = false;
    }
    recipe
}

/// By how much a stretched context sharpens queries and keys each.
fn magnitude(k: &mut Keys<'_>, rope: &RopeConfig) -> f64 {
    let slope = k.positive_or_none("rope.scaling.yarn_log_multiplier").unwrap_or(0.0);
    match rope.scaling {
        RopeScaling::Yarn { factor, .. } if factor > 1.0 => 1.0 + slope * factor.ln(),
        _ => 1.0,
    }
}

fn deepseek_mixture(k: &mut Keys<'_>) -> Option<MixtureForm> {
    let normalise = k.flag("expert_weights_norm", false);
    let form = mixture(k, "expert_feed_forward_length", normalise)?;
    let scores = match k.u64("expert_gating_func") {
        None | Some(1) => Scores::Softmax,
        Some(2) => Scores::Sigmoid,
        Some(other) => {
            k.gap("expert_gating_func", format!("is {other}, which is not known"), "use 1, softmax, or 2, sigmoid");
            Scores::Softmax
        }
    };
    let sigmoid = scores == Scores::Sigmoid;
    let count = k.size("expert_group_count", Some(1), form.experts);
    let chosen = k.size("expert_group_used_count", Some(count), count);
    let best = if sigmoid { 2 } else { 1 };
    if !form.experts.is_multiple_of(count) || form.experts / count < best {
        let problem = format!("is {count}, which does not go with {} experts", form.experts);
        k.gap("expert_group_count", problem, "convert the model again");
    }
    let shared = k.u64("expert_shared_count").filter(|n| *n > 0).map(|n| SharedForm {
        name: "",
        parts: Some(SHARED),
        inner: n.saturating_mul(form.inner),
        gate: None,
        flat_gate: false,
    });
    Some(MixtureForm {
        scores,
        correction: sigmoid.then_some("exp_probs_b.bias"),
        groups: (count > 1).then_some(Groups { count, chosen, best }),
        scale: k.positive("expert_weights_scale", Some(1.0)) as f32,
        shared,
        ..form
    })
}
