#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::ingest::activation::Activation;
use crate::ingest::hf::architectures::decoders::gpt2;
use crate::ingest::hf::architectures::decoders::llama::{self, Family};
use crate::ingest::recipe::{Biases, HeadForm, NormForm, Recipe};
use serde_json::json;

fn reading(base: Value, extra: Value) -> Reading {
    let mut config = base.as_object().unwrap().clone();
    for (key, value) in extra.as_object().unwrap() {
        config.insert(key.clone(), value.clone());
    }
    read(&config, &Limits::default())
}

fn gaps_of(f: Fields<'_>) -> Vec<Gap> {
    f.into_gaps().0
}

fn llama_with(family: Family, extra: Value) -> Recipe {
    let mut config = json!({
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 32,
    });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let limits = Limits::default();
    let mut f = Fields::new(CONFIG, config.as_object().unwrap(), &limits);
    let recipe = llama::recipe(&mut f, family);
    assert_eq!(gaps_of(f), []);
    recipe
}

fn windows(recipe: &Recipe) -> Vec<Option<u64>> {
    recipe.layers.iter().map(|layer| layer.window).collect()
}

#[test]
fn missing_fields_have_the_defaults_of_transformers() {
    let llama = llama_with(Family::Llama, json!({}));
    assert_eq!((llama.sizes.kv_heads, llama.sizes.head_dim, llama.sizes.context), (32, 2, 2048));
    assert_eq!((llama.norm, llama.act, llama.ropes[0].theta), (NormForm::rms(1e-6), Activation::Silu, 1e4));
    assert_eq!((llama.biases, llama.qk_norm, llama.head), (Biases::default(), None, HeadForm::default()));
    assert_eq!(windows(&llama), [None; 4]);

    let mistral = llama_with(Family::Mistral, json!({}));
    assert_eq!((mistral.sizes.kv_heads, windows(&mistral)), (8, vec![Some(4096); 4]));
    assert_eq!(llama_with(Family::Mistral, json!({"num_key_value_heads": null})).sizes.kv_heads, 32);
    assert_eq!(windows(&llama_with(Family::Mistral, json!({"sliding_window": null}))), [None; 4]);

    let qwen2 = llama_with(Family::Qwen2, json!({"attention_bias": false})).biases;
    assert!(qwen2.qkv && !qwen2.output);
    let qwen3 = llama_with(Family::Qwen3, json!({"attention_bias": true}));
    assert!(qwen3.biases.qkv && qwen3.biases.output && qwen3.qk_norm.is_some());
    assert_eq!(qwen3.sizes.head_dim, 128);
}

#[test]
fn windows_follow_layer_types_or_the_first_windowed_layer() {
    let windowed = |extra| windows(&llama_with(Family::Qwen2, extra));
    let on = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 3});
    assert_eq!(windowed(on.clone()), [None, None, None, Some(7)]);
    let mut typed = on;
    typed["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
    assert_eq!(windowed(typed), [Some(7), None, None, Some(7)]);
    assert_eq!(windowed(json!({"use_sliding_window": false, "sliding_window": 7, "max_window_layers": 0})), [None; 4]);
}

#[test]
fn gpt2_reads_both_names_of_its_sizes() {
    let with = |extra: Value| {
        let mut config = json!({"vocab_size": 100, "n_embd": 48, "n_layer": 2});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let limits = Limits::default();
        let mut f = Fields::new(CONFIG, config.as_object().unwrap(), &limits);
        let recipe = gpt2::recipe(&mut f);
        (recipe, f.into_gaps())
    };
    let (old, gaps) = with(json!({"n_head": 4}));
    assert_eq!(gaps, (vec![], true));
    assert_eq!(old, with(json!({"num_attention_heads": 4})).0);
    assert_eq!((old.sizes.inner, old.sizes.context, old.act), (192, 1024, Activation::GeluTanh));
    assert!(old.head.tied && old.layers.iter().all(|layer| layer.scale == 12f32.powf(-0.5)));
    let by_layer = with(json!({"n_head": 4, "scale_attn_weights": false, "scale_attn_by_inverse_layer_idx": true})).0;
    assert_eq!(by_layer.layers.iter().map(|layer| layer.scale).collect::<Vec<_>>(), [1.0, 0.5]);
    let (_, (gaps, sizes_known)) = with(json!({"n_head": 4, "num_attention_heads": 8}));
    assert!(!sizes_known && gaps.iter().any(|g| g.to_string().contains("n_head")));
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
