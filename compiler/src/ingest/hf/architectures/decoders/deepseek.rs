//! DeepSeek V2 and V3: low-rank projections of queries, keys and values, experts chosen from the best groups, experts
//! that every token passes.

use super::mixtures::{MixtureDefaults, mixture, with_mixture};
use crate::graph::RopeStyle;
use crate::ingest::blocks::{Groups, Scores};
use crate::ingest::hf::common_fields::{activation, even_rotation, only};
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::registry::Architecture;
use crate::ingest::hf::rope_fields::rope;
use crate::ingest::recipe::{
    Biases, HeadForm, LatentForm, LatentNames, MixtureForm, NormForm, Recipe, SharedForm, Sizes,
};
use crate::ingest::rope::RopeScaling;

const NAMES: LatentNames = LatentNames {
    q: "q_proj",
    q_down: "q_a_proj",
    q_norm: "q_a_layernorm",
    q_up: "q_b_proj",
    kv_down: "kv_a_proj_with_mqa",
    kv_norm: "kv_a_layernorm",
    kv_up: "kv_b_proj",
    ups: ["k_b_proj", "v_b_proj"],
};

fn recipe(f: &mut Fields<'_>, context: u64) -> Recipe {
    let limits = f.limits();
    let (hidden, heads) = (f.size("hidden_size", None), f.size("num_attention_heads", None));
    let kv_heads = f.size("num_key_value_heads", Some(heads));
    if kv_heads != heads {
        f.gap("num_key_value_heads", format!("is {kv_heads}, unlike the {heads} heads"), "correct one of them");
    }
    let q_rank = match f.present("q_lora_rank") && f.get("q_lora_rank").is_none() {
        true => None,
        false => Some(f.size("q_lora_rank", Some(1536))),
    };
    let latent = LatentForm {
        q_rank,
        kv_rank: f.size("kv_lora_rank", Some(512)),
        plain: f.size("qk_nope_head_dim", Some(128)),
        rotated: f.size("qk_rope_head_dim", Some(64)),
        value: f.size("v_head_dim", Some(128)),
        bias: f.flag("attention_bias", false),
        eps: 1e-6,
        names: NAMES,
        apart: false,
    };
    even_rotation(f, "qk_rope_head_dim", latent.rotated);
    let sizes = Sizes {
        vocab: f.size_to("vocab_size", None, limits.vocabulary),
        hidden,
        inner: f.size("intermediate_size", None),
        layers: f.size_to("num_hidden_layers", None, limits.layers),
        heads,
        kv_heads: heads,
        head_dim: latent.plain.saturating_add(latent.rotated),
        context: f.size("max_position_embeddings", Some(context)),
    };
    let norm = NormForm::rms(f.positive("rms_norm_eps", Some(1e-6)));
    let act = activation(f, "hidden_act", "silu");
    let rope = rope(f, latent.rotated, sizes.context);
    Recipe {
        style: RopeStyle::Interleaved,
        latent: Some(latent),
        biases: Biases { output: latent.bias, ..Biases::default() },
        head: HeadForm { tied: f.flag("tie_word_embeddings", false), ..HeadForm::default() },
        ..Recipe::new(sizes, sizes.depth(f), norm, act, Some(rope))
    }
}

/// The mixture, with groups of which each counts as its `best` experts together.
fn experts(f: &mut Fields<'_>, count: u64, chosen: Option<u64>, scale: f64, shared: Option<u64>) -> MixtureForm {
    let defaults =
        MixtureDefaults { field: "n_routed_experts", experts: count, chosen, inner: "moe_intermediate_size" };
    let form = mixture(f, &defaults);
    let shared = match f.present("n_shared_experts") && f.get("n_shared_experts").is_none() {
        true => None,
        false => Some(f.size("n_shared_experts", shared)),
    };
    let shared = shared.map(|n| SharedForm {
        name: "shared_experts",
        parts: None,
        inner: n.saturating_mul(form.inner),
        gate: None,
        flat_gate: false,
    });
    MixtureForm { scale: f.positive("routed_scaling_factor", Some(scale)) as f32, shared, ..form }
}

fn groups(f: &mut Fields<'_>, experts: u64, defaults: [Option<u64>; 2], best: u64) -> Groups {
    let count = f.size("n_group", defaults[0]);
    let chosen = f.size("topk_group", defaults[1]);
    if !experts.is_multiple_of(count) || chosen > count || experts / count.max(1) < best {
        f.gap(
            "n_group",
            format!("is {count}, which does not go with {experts} experts and topk_group {chosen}"),
            "correct one of them",
        );
    }
    Groups { count, chosen, best }
}

pub(super) fn v2(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = recipe(f, 2048);
    let form = experts(f, 64, None, 1.0, Some(2));
    let groups = match f.text("topk_method").unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => Some(groups(f, form.experts, [None, None], 1)),
        other => {
            f.gap("topk_method", format!("is `{other}`, which is not known"), "use greedy or group_limited_greedy");
            None
        }
    };
    let first = f.get("first_k_dense_replace").map_or(0, |_| f.size_or_zero("first_k_dense_replace"));
    only(f, "mlp_bias", false);
    Box::new(with_mixture(recipe, MixtureForm { groups, ..form }, |i| i as u64 >= first))
}

pub(super) fn v3(f: &mut Fields<'_>) -> Box<dyn Architecture> {
    let recipe = recipe(f, 4096);
    let form = experts(f, 256, Some(8), 2.5, Some(1));
    let groups = groups(f, form.experts, [Some(8), Some(4)], 2);
    let first = f.get("first_k_dense_replace").map_or(3, |_| f.size_or_zero("first_k_dense_replace"));
    let form = MixtureForm {
        scores: Scores::Sigmoid,
        correction: Some("gate.e_score_correction_bias"),
        groups: Some(groups),
        normalise: f.flag("norm_topk_prob", true),
        ..form
    };
    let style = if f.flag("rope_interleave", true) { RopeStyle::Interleaved } else { RopeStyle::Half };
    // A stretched context sharpens the scores as well.
    let magnitude = recipe.ropes.first().map_or(1.0, |rope| match &rope.scaling {
        RopeScaling::Yarn { factor, mscale_all_dim: Some(all), .. } if *factor > 1.0 => 0.1 * all * factor.ln() + 1.0,
        _ => 1.0,
    });
    let scale = (recipe.sizes.head_dim as f64).powf(-0.5) * magnitude * magnitude;
    Box::new(with_mixture(Recipe { style, ..recipe.scale(scale) }, form, |i| i as u64 >= first))
}
