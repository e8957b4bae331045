#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use serde_json::json;

fn reading(base: Value, extra: Value) -> Reading {
    let mut config = base.as_object().unwrap().clone();
    for (key, value) in extra.as_object().unwrap() {
        config.insert(key.clone(), value.clone());
    }
    read(&config, &Limits::default())
}

fn llama_with(model_type: &str, extra: Value) -> LlamaConfig {
    let base = json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 32,
    });
    let reading = reading(base, extra);
    assert_eq!(reading.gaps, []);
    match reading.config {
        Some(ModelConfig::Llama(config)) => config,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn missing_fields_have_the_defaults_of_transformers() {
    let llama = llama_with("llama", json!({}));
    assert_eq!((llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings), (32, 2, 2048));
    assert_eq!((llama.rms_norm_eps, llama.hidden_act, llama.rope.theta), (1e-6, Activation::Silu, 1e4));
    assert!(!llama.qkv_bias && !llama.output_bias && !llama.mlp_bias && !llama.qk_norm && !llama.tie_word_embeddings);
    assert_eq!(llama.windows, [None; 4]);

    let mistral = llama_with("mistral", json!({}));
    assert_eq!((mistral.num_key_value_heads, mistral.windows), (8, vec![Some(4096); 4]));
    assert_eq!(llama_with("mistral", json!({"num_key_value_heads": null})).num_key_value_heads, 32);
    assert_eq!(llama_with("mistral", json!({"sliding_window": null})).windows, [None; 4]);

    let qwen2 = llama_with("qwen2", json!({"attention_bias": false}));
    assert!(qwen2.qkv_bias && !qwen2.output_bias);
    let qwen3 = llama_with("qwen3", json!({"attention_bias": true}));
    assert!(qwen3.qkv_bias && qwen3.output_bias && qwen3.qk_norm);
    assert_eq!(qwen3.head_dim, 128);
}

#[test]
fn windows_follow_layer_types_or_the_first_windowed_layer() {
    let windowed = |extra| llama_with("qwen2", extra).windows;
    let on = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 3});
    assert_eq!(windowed(on.clone()), [None, None, None, Some(7)]);
    let mut typed = on;
    typed["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
    assert_eq!(windowed(typed), [Some(7), None, None, Some(7)]);
    assert_eq!(windowed(json!({"use_sliding_window": false, "sliding_window": 7, "max_window_layers": 0})), [None; 4]);
}

#[test]
fn gpt2_reads_both_names_of_its_sizes() {
    let base = json!({"architectures": ["GPT2LMHeadModel"], "vocab_size": 100, "n_embd": 48, "n_layer": 2});
    let old = reading(base.clone(), json!({"n_head": 4}));
    let new = reading(base.clone(), json!({"num_attention_heads": 4}));
    assert_eq!(old.config, new.config);
    let Some(ModelConfig::Gpt2(config)) = old.config else { unreachable!() };
    assert_eq!((config.n_inner, config.n_positions, config.activation_function), (192, 1024, Activation::GeluTanh));
    assert!(config.tie_word_embeddings && config.scale_attn_weights && !config.scale_attn_by_inverse_layer_idx);
    let both = reading(base, json!({"n_head": 4, "num_attention_heads": 8}));
    assert!(!both.sizes_known && both.gaps.iter().any(|g| g.to_string().contains("n_head")));
}

#[test]
fn all_gaps_come_at_once() {
    let base = json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 1, "num_attention_heads": 4,
    });
    let reading = reading(
        base,
        json!({
            "hidden_act": "swishplus", "rms_norm_eps": -1.0, "quantization_config": {"quant_method": "awq"},
            "rope_scaling": {"rope_type": "spiral"}, "num_key_value_heads": 3, "attention_bias": "yes",
        }),
    );
    let text: Vec<String> = reading.gaps.iter().map(Gap::to_string).collect();
    assert_eq!(text.len(), 6, "{text:#?}");
    for word in ["swishplus", "rms_norm_eps", "awq", "spiral", "num_key_value_heads", "attention_bias"] {
        assert!(text.iter().any(|t| t.contains(word)), "{word} in {text:#?}");
    }
    assert!(reading.sizes_known);
}
