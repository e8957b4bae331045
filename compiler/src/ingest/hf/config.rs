//! `config.json`, field by field, as transformers 4.57 understands it.
//!
//! Every field that changes the computation is read; a value that is not known is a gap with the field's name. What
//! only matters in training (dropout, initialisation) is passed over.

use super::fields::Fields;
use crate::ingest::activation::Activation;
use crate::ingest::error::Gap;
use crate::ingest::limits::Limits;
use crate::ingest::rope::{RopeConfig, RopeScaling};
use serde_json::{Map, Value};

/// The file's name.
pub const CONFIG: &str = "config.json";

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// Llama, Mistral, Qwen2, Qwen3.
    Llama(LlamaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// BERT.
    Bert(BertConfig),
}

/// Members of the Llama family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are names")]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// A decoder of the Llama family: RMS norms before each part, rotary positions, grouped queries, a gated feed-forward.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are the file's")]
pub struct LlamaConfig {
    pub family: Family,
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    pub head_dim: u64,
    pub max_position_embeddings: u64,
    pub rms_norm_eps: f32,
    pub hidden_act: Activation,
    pub rope: RopeConfig,
    /// Whether the q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    pub tie_word_embeddings: bool,
    /// The sliding window of each layer.
    pub windows: Vec<Option<u64>>,
}

/// GPT-2.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are the file's")]
pub struct Gpt2Config {
    pub vocab_size: u64,
    pub n_positions: u64,
    pub n_embd: u64,
    pub n_layer: u64,
    pub n_head: u64,
    pub n_inner: u64,
    pub activation_function: Activation,
    pub layer_norm_epsilon: f32,
    pub scale_attn_weights: bool,
    pub scale_attn_by_inverse_layer_idx: bool,
    pub tie_word_embeddings: bool,
}

/// BERT.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are the file's")]
pub struct BertConfig {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub intermediate_size: u64,
    pub hidden_act: Activation,
    pub max_position_embeddings: u64,
    pub type_vocab_size: u64,
    pub layer_norm_eps: f32,
    pub head: BertHead,
}

/// What stands on top of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BertHead {
    /// The pooler.
    Pooler,
    /// The head that predicts masked tokens, with the embedding's weights if `tied`.
    MaskedLm {
        /// Whether the embedding's weights are used.
        tied: bool,
    },
}

/// A configuration with everything that is wrong about it.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The configuration, with stand-ins where a gap is; `None` when the architecture is not known.
    pub config: Option<ModelConfig>,
    /// The architecture as the file calls it.
    pub architecture: String,
    /// Every fault.
    pub gaps: Vec<Gap>,
    /// Whether all sizes are known, so that tensors can be compared with them.
    pub sizes_known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Llama(Family),
    Gpt2,
    Bert(bool),
}

/// What is read: class, `model_type`, and what it is.
const ARCHITECTURES: [(&str, &str, Kind); 7] = [
    ("LlamaForCausalLM", "llama", Kind::Llama(Family::Llama)),
    ("MistralForCausalLM", "mistral", Kind::Llama(Family::Mistral)),
    ("Qwen2ForCausalLM", "qwen2", Kind::Llama(Family::Qwen2)),
    ("Qwen3ForCausalLM", "qwen3", Kind::Llama(Family::Qwen3)),
    ("GPT2LMHeadModel", "gpt2", Kind::Gpt2),
    ("BertModel", "bert", Kind::Bert(false)),
    ("BertForMaskedLM", "bert", Kind::Bert(true)),
];

/// Reads a configuration.
pub fn read(object: &Map<String, Value>, limits: &Limits) -> Reading {
    let mut fields = Fields::new(CONFIG, object, limits);
    let (architecture, kind) = identify(&mut fields);
    let config = kind.map(|kind| {
        common(&mut fields);
        match kind {
            Kind::Llama(family) => ModelConfig::Llama(llama(&mut fields, family)),
            Kind::Gpt2 => ModelConfig::Gpt2(gpt2(&mut fields)),
            Kind::Bert(masked_lm) => ModelConfig::Bert(bert(&mut fields, masked_lm)),
        }
    });
    let (gaps, sizes_known) = fields.into_gaps();
    Reading { config, architecture, gaps, sizes_known }
}

fn identify(f: &mut Fields<'_>) -> (String, Option<Kind>) {
    let model_type = f.text("model_type");
    let class = match f.get("architectures") {
        None => None,
        Some(Value::Array(classes)) => classes.first().and_then(Value::as_str),
        Some(_) => None,
    };
    let known = || ARCHITECTURES.map(|(class, ..)| class).join(", ");
    let by_class = class.and_then(|class| ARCHITECTURES.iter().find(|(c, ..)| *c == class));
    let by_type = model_type.and_then(|model_type| ARCHITECTURES.iter().find(|(_, t, _)| *t == model_type));
    let name = class.or(model_type).unwrap_or_default().to_owned();
    let found = match (class, model_type) {
        (None, None) => {
            f.gap(
                "architectures",
                "and `model_type` are missing, so the architecture is not known",
                "download the model's config.json",
            );
            None
        }
        (Some(class), _) if by_class.is_none() => {
            let of_type = model_type.map(|t| format!(" (model_type `{t}`)")).unwrap_or_default();
            f.gap(
                "architectures",
                format!("is `{class}`{of_type}, which is not read"),
                format!("use one of {}", known()),
            );
            None
        }
        (None, Some(model_type)) if by_type.is_none() => {
            f.gap("model_type", format!("is `{model_type}`, which is not read"), format!("use one of {}", known()));
            None
        }
        (Some(class), Some(model_type)) if by_class.is_some_and(|(_, t, _)| *t != model_type) => {
            f.gap(
                "architectures",
                format!("is `{class}`, which contradicts model_type `{model_type}`"),
                "correct one of them",
            );
            None
        }
        _ => by_class.or(by_type),
    };
    (name, found.map(|(.., kind)| *kind))
}

/// Fields that change the computation of any architecture.
fn common(f: &mut Fields<'_>) {
    if f.get("quantization_config").is_some() {
        let method = f.text("quantization_config.quant_method").unwrap_or("unnamed");
        f.gap(
            "quantization_config",
            format!("asks for the scheme `{method}`, which is not read"),
            "use the unquantised model or a GGUF file",
        );
    }
    for (field, what) in [
        ("is_encoder_decoder", "an encoder and a decoder"),
        ("add_cross_attention", "cross-attention"),
        ("is_decoder", "a decoder made of an encoder"),
    ] {
        if f.flag(field, false) {
            f.gap(field, format!("is true, but {what} is not supported here"), "use a model without it");
        }
    }
    let pruned = f.get("pruned_heads").and_then(Value::as_object).is_some_and(|heads| !heads.is_empty());
    if pruned {
        f.gap("pruned_heads", "is not empty, and layers with fewer heads are not supported", "use the unpruned model");
    }
}

fn activation(f: &mut Fields<'_>, field: &str, default: &str) -> Activation {
    let name = f.text(field).unwrap_or(default);
    Activation::of_hf(name).unwrap_or_else(|| {
        f.gap(field, format!("is `{name}`, which is not known"), format!("use one of {}", Activation::HF_NAMES));
        Activation::Identity
    })
}

/// The elements of a head where the heads share the hidden size evenly.
fn even_head_dim(f: &mut Fields<'_>, field: &str, hidden: u64, heads: u64) -> u64 {
    if !hidden.is_multiple_of(heads) {
        f.size_gap(field, format!("is {heads}, which does not divide the hidden size {hidden}"), "correct one of them");
    }
    (hidden / heads).max(1)
}

fn llama(f: &mut Fields<'_>, family: Family) -> LlamaConfig {
    let limits = f.limits();
    let (kv_default, context_default) = match family {
        Family::Llama => (None, 2048),
        Family::Mistral => (Some(8), 131_072),
        Family::Qwen2 | Family::Qwen3 => (Some(32), 32_768),
    };
    let hidden_size = f.size("hidden_size", None);
    let num_hidden_layers = f.size_to("num_hidden_layers", None, limits.layers);
    let heads = f.size("num_attention_heads", None);
    let kv_default = kv_default.filter(|_| !f.present("num_key_value_heads")).unwrap_or(heads);
    let kv_heads = f.size("num_key_value_heads", Some(kv_default));
    if !heads.is_multiple_of(kv_heads) {
        f.gap(
            "num_key_value_heads",
            format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
            "correct one of them",
        );
    }
    let head_dim = match f.get("head_dim") {
        Some(_) => f.size("head_dim", None),
        None if family == Family::Qwen3 && !f.present("head_dim") => 128,
        None => even_head_dim(f, "num_attention_heads", hidden_size, heads),
    };
    if !head_dim.is_multiple_of(2) {
        f.gap("head_dim", format!("is {head_dim}; rotary positions need an even one"), "correct it");
    }
    let partial = f.positive("partial_rotary_factor", Some(1.0));
    if partial != 1.0 {
        f.gap("partial_rotary_factor", format!("is {partial}; this architecture rotates whole heads"), "remove it");
    }
    let max_position_embeddings = f.size("max_position_embeddings", Some(context_default));
    let attention_bias = f.flag("attention_bias", false);
    LlamaConfig {
        family,
        vocab_size: f.size_to("vocab_size", None, limits.vocabulary),
        hidden_size,
        intermediate_size: f.size("intermediate_size", None),
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings,
        rms_norm_eps: f.positive("rms_norm_eps", Some(1e-6)) as f32,
        hidden_act: activation(f, "hidden_act", "silu"),
        rope: rope(f, head_dim, max_position_embeddings),
        qkv_bias: match family {
            Family::Qwen2 => true,
            Family::Mistral => false,
            Family::Llama | Family::Qwen3 => attention_bias,
        },
        output_bias: matches!(family, Family::Llama | Family::Qwen3) && attention_bias,
        mlp_bias: f.flag("mlp_bias", false) && family == Family::Llama,
        qk_norm: family == Family::Qwen3,
        tie_word_embeddings: f.flag("tie_word_embeddings", false),
        windows: windows(f, family, num_hidden_layers),
    }
}

/// The sliding window of each layer.
fn windows(f: &mut Fields<'_>, family: Family, layers: u64) -> Vec<Option<u64>> {
    let layers = if layers <= f.limits().layers { layers as usize } else { 0 };
    let sliding = |f: &mut Fields<'_>| match f.present("sliding_window") && f.get("sliding_window").is_none() {
        true => None,
        false => Some(f.size("sliding_window", Some(4096))),
    };
    match family {
        Family::Llama => vec![None; layers],
        Family::Mistral => vec![sliding(f); layers],
        Family::Qwen2 | Family::Qwen3 => {
            let window = if f.flag("use_sliding_window", false) { sliding(f) } else { None };
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

fn layer_types(f: &mut Fields<'_>, types: &Value, layers: usize, window: Option<u64>) -> Vec<Option<u64>> {
    const FIELD: &str = "layer_types";
    let Some(types) = types.as_array() else {
        f.gap(FIELD, "is no list", "correct it");
        return vec![None; layers];
    };
    if types.len() != layers {
        f.gap(FIELD, format!("has {} entries for {layers} layers", types.len()), "correct it or num_hidden_layers");
    }
    let mut windows = Vec::with_capacity(layers);
    for kind in types.iter().take(layers) {
        windows.push(match kind.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") if window.is_some() => window,
            Some("sliding_attention") => {
                f.gap(
                    FIELD,
                    "has a `sliding_attention`, but no window is set",
                    "set use_sliding_window and sliding_window",
                );
                None
            }
            _ => {
                f.gap(FIELD, format!("has {kind}, which is not known"), "use full_attention or sliding_attention");
                None
            }
        });
    }
    windows.resize(layers, None);
    windows
}

/// Rotary positions: `rope_theta` and `rope_scaling`, or both in `rope_parameters`.
fn rope(f: &mut Fields<'_>, dim: u64, context: u64) -> RopeConfig {
    let table = if f.get("rope_scaling").is_none() && f.get("rope_parameters").is_some() {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let at = |field: &str| format!("{table}.{field}");
    let theta_path = if f.get(&at("rope_theta")).is_some() { at("rope_theta") } else { "rope_theta".to_owned() };
    let theta = f.number(&theta_path, Some(10_000.0), "a number above 1", |v| v > 1.0);
    RopeConfig { theta, dim, context, scaling: scaling(f, table, dim, context) }
}

fn scaling(f: &mut Fields<'_>, table: &str, dim: u64, context: u64) -> RopeScaling {
    let at = |field: &str| format!("{table}.{field}");
    match f.get(table) {
        None => return RopeScaling::Default,
        Some(Value::Object(_)) => {}
        Some(_) => {
            f.gap(table, "is no object", "correct it");
            return RopeScaling::Default;
        }
    }
    let (new, old) = (f.text(&at("rope_type")), f.text(&at("type")));
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        f.gap(table, format!("has rope_type `{new}` and type `{old}`"), "remove the wrong one");
    }
    let original = |f: &mut Fields<'_>, default| f.size(&at("original_max_position_embeddings"), default);
    match new.or(old) {
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: f.positive(&at("factor"), None) },
        Some("dynamic") => {
            if dim <= 2 {
                f.gap(table, "is `dynamic`, which a head of 2 elements does not have", "use another scaling");
            }
            RopeScaling::Dynamic { factor: f.number(&at("factor"), None, "a number of at least 1", |v| v >= 1.0) }
        }
        Some("yarn") => RopeScaling::Yarn {
            factor: f.positive(&at("factor"), None),
            attention_factor: f.positive_or_none(&at("attention_factor")),
            beta_fast: f.number(&at("beta_fast"), Some(32.0), "a number", |v| v > 0.0),
            beta_slow: f.number(&at("beta_slow"), Some(1.0), "a number", |v| v > 0.0),
            mscale: f.positive_or_none(&at("mscale")),
            mscale_all_dim: f.positive_or_none(&at("mscale_all_dim")),
            original_context: original(f, Some(context)),
            truncate: f.flag(&at("truncate"), true),
        },
        Some("llama3") => {
            let low = f.positive(&at("low_freq_factor"), None);
            let high = f.positive(&at("high_freq_factor"), None);
            if high <= low && f.get(&at("low_freq_factor")).is_some() && f.get(&at("high_freq_factor")).is_some() {
                f.gap(
                    &at("high_freq_factor"),
                    format!("is {high}, not above low_freq_factor {low}"),
                    "correct one of them",
                );
            }
            RopeScaling::Llama3 {
                factor: f.positive(&at("factor"), None),
                low,
                high,
                original_context: original(f, None),
            }
        }
        Some("longrope") => {
            let original_context =
                f.get("original_max_position_embeddings").map(|_| f.size("original_max_position_embeddings", None));
            let factor = f.positive_or_none(&at("factor"));
            let attention_factor = f.positive_or_none(&at("attention_factor"));
            if factor.is_none() && attention_factor.is_none() && original_context.is_none() {
                f.gap(
                    &at("factor"),
                    "is missing, and so are attention_factor and original_max_position_embeddings",
                    "add one of them",
                );
            }
            let short = f.factors(&at("short_factor"), dim / 2);
            let long = f.factors(&at("long_factor"), dim / 2);
            RopeScaling::LongRope { short, long, factor, attention_factor, original_context }
        }
        Some(other) => {
            f.gap(
                table,
                format!("has the type `{other}`, which is not known"),
                "use default, linear, dynamic, yarn, llama3 or longrope",
            );
            RopeScaling::Default
        }
        None => {
            f.gap(table, "has no rope_type", "add it: default, linear, dynamic, yarn, llama3 or longrope");
            RopeScaling::Default
        }
    }
}

/// A field that has a second name in transformers' attribute map. Both may be there if they agree.
fn renamed(f: &mut Fields<'_>, field: &str, other: &str, default: Option<u64>, most: u64) -> u64 {
    match (f.get(field), f.get(other)) {
        (Some(a), Some(b)) if a != b => {
            f.size_gap(field, format!("is {a}, but {other} is {b}"), "remove one of them");
            1
        }
        (None, Some(_)) => f.size_to(other, None, most),
        _ => f.size_to(field, default, most),
    }
}

fn gpt2(f: &mut Fields<'_>) -> Gpt2Config {
    let limits = f.limits();
    let n_embd = renamed(f, "n_embd", "hidden_size", None, limits.dim);
    let n_head = renamed(f, "n_head", "num_attention_heads", None, limits.dim);
    even_head_dim(f, "n_head", n_embd, n_head);
    // The order of the operations and their precision, not the function.
    f.flag("reorder_and_upcast_attn", false);
    Gpt2Config {
        vocab_size: f.size_to("vocab_size", None, limits.vocabulary),
        n_positions: renamed(f, "n_positions", "max_position_embeddings", Some(1024), limits.dim),
        n_embd,
        n_layer: renamed(f, "n_layer", "num_hidden_layers", None, limits.layers),
        n_head,
        n_inner: f.size("n_inner", n_embd.checked_mul(4)),
        activation_function: activation(f, "activation_function", "gelu_new"),
        layer_norm_epsilon: f.positive("layer_norm_epsilon", Some(1e-5)) as f32,
        scale_attn_weights: f.flag("scale_attn_weights", true),
        scale_attn_by_inverse_layer_idx: f.flag("scale_attn_by_inverse_layer_idx", false),
        tie_word_embeddings: f.flag("tie_word_embeddings", true),
    }
}

fn bert(f: &mut Fields<'_>, masked_lm: bool) -> BertConfig {
    let limits = f.limits();
    let hidden_size = f.size("hidden_size", None);
    let heads = f.size("num_attention_heads", None);
    even_head_dim(f, "num_attention_heads", hidden_size, heads);
    let positions = f.text("position_embedding_type").unwrap_or("absolute");
    if positions != "absolute" {
        f.gap(
            "position_embedding_type",
            format!("is `{positions}`; only `absolute` is read"),
            "use a model with absolute positions",
        );
    }
    let tied = f.flag("tie_word_embeddings", true);
    BertConfig {
        vocab_size: f.size_to("vocab_size", None, limits.vocabulary),
        hidden_size,
        num_hidden_layers: f.size_to("num_hidden_layers", None, limits.layers),
        num_attention_heads: heads,
        intermediate_size: f.size("intermediate_size", None),
        hidden_act: activation(f, "hidden_act", "gelu"),
        max_position_embeddings: f.size("max_position_embeddings", Some(512)),
        type_vocab_size: f.size("type_vocab_size", Some(2)),
        layer_norm_eps: f.positive("layer_norm_eps", Some(1e-12)) as f32,
        head: if masked_lm { BertHead::MaskedLm { tied } } else { BertHead::Pooler },
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
