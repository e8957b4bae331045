//! Llama, Mistral, Qwen2 and Qwen3: one architecture with a few switches.

use crate::graph::{NormKind, RopeStyle};
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{Attention, Decoder, Ffn, Layer, Linear, Norm, Qkv, Rope};
use crate::ingest::hf::config::LlamaConfig;

/// Tensors that old files hold although nothing reads them, and the head of a model that uses its embedding.
pub fn ignorable(config: &LlamaConfig, name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
}

/// Binds the tensors of a model; what is wrong is left in the binder.
pub fn bind(config: &LlamaConfig, t: &mut Binder<'_>) -> Decoder {
    let hidden: Extent<'_> = (config.hidden_size, "hidden_size");
    let vocab: Extent<'_> = (config.vocab_size, "vocab_size");
    let embedding = t.take("model.embed_tokens.weight", &[vocab, hidden]);
    let layers = t.layers(config.num_hidden_layers, "num_hidden_layers", |i| format!("model.layers.{i}."));
    let layers = layers.into_iter().zip(&config.windows).map(|(i, window)| layer(config, t, i, *window)).collect();
    let norm = norm(config, t, "norm", "model.norm", hidden);
    let head = if config.tie_word_embeddings { embedding } else { t.take("lm_head.weight", &[vocab, hidden]) };
    Decoder {
        vocab: config.vocab_size,
        context: config.rope.longest(),
        embedding,
        positions: None,
        rope: Some(Rope { frequencies: config.rope.frequencies(), style: RopeStyle::Half }),
        layers_name: "layers",
        layers,
        norm,
        head: Linear { name: "lm_head", weight: head, bias: None },
    }
}

fn norm(config: &LlamaConfig, t: &mut Binder<'_>, name: &'static str, stem: &str, size: Extent<'_>) -> Norm {
    let gain = t.take(&format!("{stem}.weight"), &[size]);
    Norm { name, kind: NormKind::Rms, eps: config.rms_norm_eps, gain, bias: None }
}

fn layer(config: &LlamaConfig, t: &mut Binder<'_>, i: u64, window: Option<u64>) -> Layer {
    let at = |part: &str| format!("model.layers.{i}.{part}");
    let hidden = (config.hidden_size, "hidden_size");
    let inner = (config.intermediate_size, "intermediate_size");
    let queries = (config.num_attention_heads * config.head_dim, "num_attention_heads × head_dim");
    let keys = (config.num_key_value_heads * config.head_dim, "num_key_value_heads × head_dim");
    let per_head = (config.head_dim, "head_dim");
    let mut linear = |name: &'static str, part: &str, out: Extent<'_>, from: Extent<'_>, bias: bool| {
        let stem = at(&format!("{part}.{name}"));
        let weight = t.take(&format!("{stem}.weight"), &[out, from]);
        let bias = bias.then(|| t.take(&format!("{stem}.bias"), &[out]));
        Linear { name, weight, bias }
    };
    let qkv = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
        .map(|(name, out)| linear(name, "self_attn", out, hidden, config.qkv_bias));
    let output = linear("o_proj", "self_attn", hidden, queries, config.output_bias);
    let gate = linear("gate_proj", "mlp", inner, hidden, config.mlp_bias);
    let up = linear("up_proj", "mlp", inner, hidden, config.mlp_bias);
    let down = linear("down_proj", "mlp", hidden, inner, config.mlp_bias);
    let qk_norm = config
        .qk_norm
        .then(|| ["q_norm", "k_norm"].map(|name| norm(config, t, name, &at(&format!("self_attn.{name}")), per_head)));
    Layer {
        attention_norm: norm(config, t, "input_layernorm", &at("input_layernorm"), hidden),
        attention: Attention {
            name: "self_attn",
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: (config.head_dim as f64).powf(-0.5) as f32,
            window,
            qkv: Qkv::Separate(qkv),
            qk_norm,
            output,
        },
        ffn_norm: norm(config, t, "post_attention_layernorm", &at("post_attention_layernorm"), hidden),
        ffn: Ffn::Gated { name: "mlp", gate, up, down, act: config.hidden_act },
    }
}
