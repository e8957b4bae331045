//! GPT-2: learned positions, layer norms, one projection for queries, keys and values, weights stored `[K, N]`.

use crate::graph::NormKind;
use crate::ingest::bind::{Binder, Extent};
use crate::ingest::blocks::{Attention, Decoder, Ffn, Layer, Linear, Norm, Qkv};
use crate::ingest::hf::config::Gpt2Config;

/// Tensors that files hold although nothing reads them: the causal mask, and the head where it is the embedding.
pub fn ignorable(config: &Gpt2Config, name: &str) -> bool {
    let mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    mask || (config.tie_word_embeddings && name == "lm_head.weight")
}

/// Binds the tensors of a model, whose names begin with `prefix`; what is wrong is left in the binder.
pub fn bind(config: &Gpt2Config, prefix: &str, t: &mut Binder<'_>) -> Decoder {
    let hidden: Extent<'_> = (config.n_embd, "n_embd");
    let vocab: Extent<'_> = (config.vocab_size, "vocab_size");
    let embedding = t.take(&format!("{prefix}wte.weight"), &[vocab, hidden]);
    let positions = t.take(&format!("{prefix}wpe.weight"), &[(config.n_positions, "n_positions"), hidden]);
    let layers = t.layers(config.n_layer, "n_layer", |i| format!("{prefix}h.{i}."));
    let layers = layers.into_iter().map(|i| layer(config, t, &format!("{prefix}h.{i}"), i)).collect();
    let norm = norm(config, t, "ln_f", &format!("{prefix}ln_f"));
    let head = if config.tie_word_embeddings { embedding } else { t.take("lm_head.weight", &[vocab, hidden]) };
    Decoder {
        vocab: config.vocab_size,
        context: config.n_positions,
        embedding,
        positions: Some(positions),
        rope: None,
        layers_name: "h",
        layers,
        norm,
        head: Linear { name: "lm_head", weight: head, bias: None },
    }
}

fn norm(config: &Gpt2Config, t: &mut Binder<'_>, name: &'static str, stem: &str) -> Norm {
    let size = (config.n_embd, "n_embd");
    let gain = t.take(&format!("{stem}.weight"), &[size]);
    let bias = Some(t.take(&format!("{stem}.bias"), &[size]));
    Norm { name, kind: NormKind::Layer, eps: config.layer_norm_epsilon, gain, bias }
}

fn layer(config: &Gpt2Config, t: &mut Binder<'_>, stem: &str, i: u64) -> Layer {
    let hidden = (config.n_embd, "n_embd");
    let inner = (config.n_inner, "n_inner");
    let mut linear = |name: &'static str, part: &str, from: Extent<'_>, out: Extent<'_>| {
        let stem = format!("{stem}.{part}.{name}");
        let weight = t.take_transposed(&format!("{stem}.weight"), from, out);
        let bias = Some(t.take(&format!("{stem}.bias"), &[out]));
        Linear { name, weight, bias }
    };
    let qkv = linear("c_attn", "attn", hidden, (3 * config.n_embd, "3 × n_embd"));
    let output = linear("c_proj", "attn", hidden, hidden);
    let up = linear("c_fc", "mlp", hidden, inner);
    let down = linear("c_proj", "mlp", inner, hidden);
    let head_dim = config.n_embd / config.n_head;
    let by_width = if config.scale_attn_weights { (head_dim as f64).powf(-0.5) } else { 1.0 };
    let by_layer = if config.scale_attn_by_inverse_layer_idx { 1.0 / (i + 1) as f64 } else { 1.0 };
    Layer {
        attention_norm: norm(config, t, "ln_1", &format!("{stem}.ln_1")),
        attention: Attention {
            name: "attn",
            heads: config.n_head,
            kv_heads: config.n_head,
            head_dim,
            scale: (by_width * by_layer) as f32,
            window: None,
            qkv: Qkv::Fused(qkv),
            qk_norm: None,
            output,
        },
        ffn_norm: norm(config, t, "ln_2", &format!("{stem}.ln_2")),
        ffn: Ffn::Plain { name: "mlp", up, down, act: config.activation_function },
    }
}
