//! Published shapes with random weights: a Hugging Face directory of `config.json` and `model.safetensors`, the same bytes
//! for the same shape and seed, so that others can be measured on them.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Standard deviation of the weights.
const SPREAD: f32 = 0.02;

/// A tensor of a model: name, extents, and whether it is a gain, which is all ones.
struct TensorSpec {
    name: String,
    shape: Vec<u64>,
    gain: bool,
}

/// A model known by its shape.
pub struct Shape {
    /// Its name on the command line.
    pub name: &'static str,
    /// Whether it generates.
    pub is_decoder: bool,
    /// Layers, as published.
    pub layers: u64,
    config: fn(u64) -> Value,
    tensors: fn(u64) -> Vec<TensorSpec>,
}

/// All of them.
pub const SHAPES: [Shape; 4] = [
    Shape {
        name: "smollm2-135m",
        is_decoder: true,
        layers: 30,
        config: |layers| llama_config(layers, [576, 1536, 9, 3, 49152, 8192], 100_000.0),
        tensors: |layers| llama_tensors(layers, [576, 1536, 9, 3, 49152]),
    },
    Shape {
        name: "llama-3.2-1b",
        is_decoder: true,
        layers: 16,
        config: |layers| llama_config(layers, [2048, 8192, 32, 8, 128_256, 131_072], 500_000.0),
        tensors: |layers| llama_tensors(layers, [2048, 8192, 32, 8, 128_256]),
    },
    Shape {
        name: "gpt2",
        is_decoder: true,
        layers: 12,
        config: |layers| {
            json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": layers, "n_head": 12,
                "n_embd": 768, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-5,
                "activation_function": "gelu_new", "bos_token_id": 50256, "eos_token_id": 50256,
                "torch_dtype": "bfloat16", "tie_word_embeddings": true
            })
        },
        tensors: gpt2_tensors,
    },
    Shape {
        name: "bert-base",
        is_decoder: false,
        layers: 12,
        config: |layers| {
            json!({
                "architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": layers,
                "num_attention_heads": 12, "hidden_size": 768, "intermediate_size": 3072, "hidden_act": "gelu",
                "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
                "pad_token_id": 0, "torch_dtype": "bfloat16"
            })
        },
        tensors: bert_tensors,
    },
];

/// The shape of that name.
pub fn find(name: &str) -> Result<&'static Shape> {
    match SHAPES.iter().find(|s| s.name == name) {
        Some(s) => Ok(s),
        None => bail!("there is no shape `{name}`\nhint: one of {}", SHAPES.map(|s| s.name).join(", ")),
    }
}

fn llama_config(layers: u64, [hidden, inner, heads, kv, vocab, context]: [u64; 6], theta: f64) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers,
        "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": hidden / heads, "vocab_size": vocab, "max_position_embeddings": context, "rms_norm_eps": 1e-5,
        "rope_theta": theta, "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "attention_bias": false, "mlp_bias": false, "torch_dtype": "bfloat16"
    })
}

fn spec(name: impl Into<String>, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.into(), shape: shape.to_vec(), gain: false }
}

fn gain(name: impl Into<String>, width: u64) -> TensorSpec {
    TensorSpec { name: name.into(), shape: vec![width], gain: true }
}

fn llama_tensors(layers: u64, [hidden, inner, heads, kv, vocab]: [u64; 5]) -> Vec<TensorSpec> {
    let keys = hidden / heads * kv;
    let mut out = vec![spec("model.embed_tokens.weight", &[vocab, hidden])];
    for i in 0..layers {
        let at = |part: &str| format!("model.layers.{i}.{part}.weight");
        out.extend([
            gain(at("input_layernorm"), hidden),
            spec(at("self_attn.q_proj"), &[hidden, hidden]),
            spec(at("self_attn.k_proj"), &[keys, hidden]),
            spec(at("self_attn.v_proj"), &[keys, hidden]),
            spec(at("self_attn.o_proj"), &[hidden, hidden]),
            gain(at("post_attention_layernorm"), hidden),
            spec(at("mlp.gate_proj"), &[inner, hidden]),
            spec(at("mlp.up_proj"), &[inner, hidden]),
            spec(at("mlp.down_proj"), &[hidden, inner]),
        ]);
    }
    out.push(gain("model.norm.weight", hidden));
    out
}

fn with_bias(out: &mut Vec<TensorSpec>, stem: &str, shape: &[u64], width: u64) {
    out.extend([spec(format!("{stem}.weight"), shape), spec(format!("{stem}.bias"), &[width])]);
}

fn norm(out: &mut Vec<TensorSpec>, stem: &str, width: u64) {
    out.extend([gain(format!("{stem}.weight"), width), spec(format!("{stem}.bias"), &[width])]);
}

fn gpt2_tensors(layers: u64) -> Vec<TensorSpec> {
    let mut out = vec![spec("transformer.wte.weight", &[50257, 768]), spec("transformer.wpe.weight", &[1024, 768])];
    for i in 0..layers {
        let at = |part: &str| format!("transformer.h.{i}.{part}");
        norm(&mut out, &at("ln_1"), 768);
        with_bias(&mut out, &at("attn.c_attn"), &[768, 2304], 2304);
        with_bias(&mut out, &at("attn.c_proj"), &[768, 768], 768);
        norm(&mut out, &at("ln_2"), 768);
        with_bias(&mut out, &at("mlp.c_fc"), &[768, 3072], 3072);
        with_bias(&mut out, &at("mlp.c_proj"), &[3072, 768], 768);
    }
    norm(&mut out, "transformer.ln_f", 768);
    out
}

fn bert_tensors(layers: u64) -> Vec<TensorSpec> {
    let mut out = vec![
        spec("embeddings.word_embeddings.weight", &[30522, 768]),
        spec("embeddings.position_embeddings.weight", &[512, 768]),
        spec("embeddings.token_type_embeddings.weight", &[2, 768]),
    ];
    norm(&mut out, "embeddings.LayerNorm", 768);
    for i in 0..layers {
        let at = |part: &str| format!("encoder.layer.{i}.{part}");
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            with_bias(&mut out, &at(part), &[768, 768], 768);
        }
        norm(&mut out, &at("attention.output.LayerNorm"), 768);
        with_bias(&mut out, &at("intermediate.dense"), &[3072, 768], 3072);
        with_bias(&mut out, &at("output.dense"), &[768, 3072], 768);
        norm(&mut out, &at("output.LayerNorm"), 768);
    }
    with_bias(&mut out, "pooler.dense", &[768, 768], 768);
    out
}

/// A stream of numbers with mean zero and deviation [`SPREAD`]: sums of four uniform ones.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let parts = (0..4).map(|i| ((self.0 >> (16 * i)) & 0xffff) as f32 / 65536.0).sum::<f32>();
        // four uniform numbers have a variance of a third
        let v = (parts - 2.0) * SPREAD * 3f32.sqrt();
        (v.to_bits() >> 16) as u16
    }
}

/// Writes the model unless it is there, and returns its folder.
pub fn write(shape: &Shape, layers: u64, seed: u64, below: &Path) -> Result<PathBuf> {
    let folder = below.join(format!("{}-{layers}-{seed}", shape.name));
    if folder.join("config.json").is_file() {
        eprintln!("random weights of {} are in {}", shape.name, folder.display());
        return Ok(folder);
    }
    eprintln!("writing random weights of {} to {}", shape.name, folder.display());
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let tensors = (shape.tensors)(layers);
    let mut header = serde_json::Map::new();
    let mut at = 0u64;
    for t in &tensors {
        let end = at + 2 * t.shape.iter().product::<u64>();
        header.insert(t.name.clone(), json!({ "dtype": "BF16", "shape": t.shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut head = serde_json::to_vec(&header)?;
    head.resize(head.len().next_multiple_of(8), b' ');
    let path = folder.join("model.safetensors");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
    file.write_all(&(head.len() as u64).to_le_bytes())?;
    file.write_all(&head)?;
    for (i, t) in tensors.iter().enumerate() {
        let mut noise = Noise(seed.wrapping_add(i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..t.shape.iter().product::<u64>() {
            let v = if t.gain { 0x3f80 } else { noise.next() };
            file.write_all(&v.to_le_bytes())?;
        }
    }
    file.flush()?;
    // last, so that a folder with a config is whole
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&(shape.config)(layers))?)?;
    Ok(folder)
}
