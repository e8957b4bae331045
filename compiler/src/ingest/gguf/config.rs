//! The configuration that transformers would have for the model in a GGUF file.

use super::model::read_recipe;
use super::reader::GgufFile;
use crate::ingest::error::Gap;
use crate::ingest::limits::Limits;
use crate::ingest::recipe::{QkPlace, Recipe};
use crate::ingest::rope::{RopeConfig, RopeScaling};
use serde_json::{Map, Value, json};

/// What differs between architectures in their configurations.
struct Class {
    architecture: &'static str,
    model_type: &'static str,
    class: &'static str,
    /// The field of the activation, and its name there.
    activation: [&'static str; 2],
}

const fn class(architecture: &'static str, model_type: &'static str, class: &'static str) -> Class {
    Class { architecture, model_type, class, activation: ["hidden_act", "silu"] }
}

const CLASSES: [Class; 7] = [
    class("llama", "llama", "LlamaForCausalLM"),
    class("qwen2", "qwen2", "Qwen2ForCausalLM"),
    class("qwen3", "qwen3", "Qwen3ForCausalLM"),
    class("phi3", "phi3", "Phi3ForCausalLM"),
    Class { activation: ["hidden_act", "gelu_pytorch_tanh"], ..class("gemma", "gemma", "GemmaForCausalLM") },
    Class { activation: ["hidden_activation", "gelu_pytorch_tanh"], ..class("gemma2", "gemma2", "Gemma2ForCausalLM") },
    Class {
        activation: ["hidden_activation", "gelu_pytorch_tanh"],
        ..class("gemma3", "gemma3_text", "Gemma3ForCausalLM")
    },
];

/// The fields of `config.json`, tokens aside.
///
/// # Errors
/// An architecture that has no directory form here, and keys that such a configuration has no field for.
pub(crate) fn config(file: &GgufFile, limits: &Limits) -> Result<Map<String, Value>, Vec<Gap>> {
    let (architecture, recipe, mut gaps) = read_recipe(file, limits)?;
    let gap = |key: &str, problem: String| {
        file.metadata().gap(key, problem, "transform the Hugging Face directory of the model instead")
    };
    let Some(class) = CLASSES.iter().find(|c| c.architecture == architecture) else {
        let known: Vec<&str> = CLASSES.iter().map(|c| c.architecture).collect();
        let problem = format!("is `{architecture}`; GGUF files of {} are transformed", known.join(", "));
        return Err(vec![gap("general.architecture", problem)]);
    };
    if recipe.mixture.is_some() {
        gaps.push(gap(&format!("{architecture}.expert_count"), "makes a mixture of experts".into()));
    }
    let rotated = recipe.ropes.first();
    if rotated.is_some_and(|r| r.dim != recipe.sizes.head_dim) && architecture != "phi3" {
        let key = format!("{architecture}.rope.dimension_count");
        gaps.push(gap(&key, "is not the size of a head".into()));
    }
    let b = recipe.biases;
    let whole = match architecture {
        "qwen2" => b.qkv && !b.output && !b.ffn,
        "llama" | "qwen3" => b.qkv == b.output && (!b.ffn || architecture == "llama"),
        _ => b.qkv == b.output && !b.ffn,
    };
    if !whole || b.head {
        let problem = format!("has biases in projections where {} has none", class.class);
        gaps.push(gap("tensors", problem));
    }
    if gaps.is_empty() { Ok(fields(class, &recipe)) } else { Err(gaps) }
}

fn fields(class: &Class, recipe: &Recipe) -> Map<String, Value> {
    let s = recipe.sizes;
    let [act_field, act] = class.activation;
    let Value::Object(mut out) = json!({
        "architectures": [class.class],
        "model_type": class.model_type,
        "hidden_size": s.hidden,
        "intermediate_size": s.inner,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "vocab_size": s.vocab,
        "max_position_embeddings": s.context,
        "rms_norm_eps": shortest(recipe.norm.eps),
        "tie_word_embeddings": recipe.head.tied,
        act_field: act,
    }) else {
        return Map::new();
    };
    let mut set = |field: &str, value: Value| out.insert(field.into(), value);
    match class.model_type {
        "llama" => {
            set("attention_bias", recipe.biases.qkv.into());
            set("mlp_bias", recipe.biases.ffn.into());
        }
        "qwen2" => {
            set("use_sliding_window", false.into());
        }
        "qwen3" => {
            debug_assert!(matches!(recipe.qk_norm, Some((QkPlace::Heads, _))));
            set("use_sliding_window", false.into());
            set("attention_bias", recipe.biases.qkv.into());
        }
        "phi3" => {
            let rotated = recipe.ropes.first().map_or(s.head_dim, |r| r.dim);
            set("partial_rotary_factor", (rotated as f64 / s.head_dim as f64).into());
            set("sliding_window", Value::Null);
        }
        _ => {
            set("attention_bias", recipe.biases.qkv.into());
        }
    }
    if matches!(class.model_type, "gemma2" | "gemma3_text") {
        let scale = recipe.layers.first().map_or(1.0, |l| f64::from(l.scale));
        set("query_pre_attn_scalar", ((1.0 / (scale * scale)).round() as u64).into());
        set("final_logit_softcapping", recipe.head.softcap.map_or(Value::Null, |c| shortest(c).into()));
        let window = recipe.layers.iter().find_map(|l| l.window);
        set("sliding_window", window.map_or(Value::Null, Value::from));
        let kinds =
            recipe.layers.iter().map(|l| if l.window.is_some() { "sliding_attention" } else { "full_attention" });
        set("layer_types", kinds.collect());
    }
    match class.model_type {
        "gemma2" => {
            set("attn_logit_softcapping", recipe.softcap.map_or(Value::Null, |c| shortest(c).into()));
        }
        "gemma3_text" => {
            set("rope_local_base_freq", recipe.ropes.get(1).map_or(1e4, |r| r.theta).into());
        }
        _ => {}
    }
    if let Some(rope) = recipe.ropes.first() {
        out.insert("rope_theta".into(), shortest(rope.theta as f32).into());
        scaling(rope, &mut out);
    }
    out
}

fn scaling(rope: &RopeConfig, out: &mut Map<String, Value>) {
    let scaling = match &rope.scaling {
        RopeScaling::Default => return,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original_context } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original_context,
        }),
        RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original_context, .. } => json!({
            "rope_type": "yarn", "factor": factor, "attention_factor": attention_factor, "beta_fast": beta_fast,
            "beta_slow": beta_slow, "original_max_position_embeddings": original_context,
        }),
        RopeScaling::LongRope { short, long, factor, attention_factor, original_context } => {
            if let Some(original) = original_context {
                out.insert("original_max_position_embeddings".into(), (*original).into());
            }
            json!({
                "rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": factor,
                "attention_factor": attention_factor,
            })
        }
        // The two lists of one scaling, when they are the same, hold at any length.
        RopeScaling::Divisors(divisors) => json!({
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "factor": 1.0,
            "attention_factor": 1.0,
        }),
    };
    out.insert("rope_scaling".into(), scaling);
}

/// The f64 with the shortest text that is this f32 when rounded.
fn shortest(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::from(v))
}
