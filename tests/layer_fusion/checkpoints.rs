//! Checkpoints of random numbers, edited, and read back for the oracle.

use crate::harness;
use crate::support::Random;
use crate::tiny::{Form, Tiny};
use frit::calibration::Calibration;
use frit::{BackendChoice, LoadedModel, model_source};
use frit_compiler::ingest;
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::{Activations, Aid, Checkpoint, Error, Recipe, Report, Tied};
use serde_json::{Map, Value, json};
use std::path::Path;
use tempfile::TempDir;

/// The checkpoint of a model.
pub fn checkpoint(t: &Tiny) -> Checkpoint {
    let dir = t.save();
    let c = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    // Tensors are read when they are asked for: the files must stay.
    std::mem::forget(dir);
    c
}

/// A recipe from JSON steps.
pub fn recipe(steps: Value) -> Recipe {
    Recipe::parse(&steps.to_string()).unwrap_or_else(|e| panic!("{e}"))
}

/// Applies steps without calibration.
pub fn apply(c: &mut Checkpoint, steps: Value) -> Vec<Report> {
    recipe(steps).apply(c, &Aid::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Applies steps to a copy.
pub fn edited(c: &Checkpoint, steps: Value) -> Checkpoint {
    let mut out = c.clone();
    apply(&mut out, steps);
    out
}

/// Applies steps with calibration tokens.
pub fn calibrated(c: &Checkpoint, steps: Value, tokens: &Calibration) -> Checkpoint {
    let mut out = c.clone();
    let aid = Aid { activations: Some(tokens as &dyn Activations) };
    recipe(steps).apply(&mut out, &aid).unwrap_or_else(|e| panic!("{e}"));
    out
}

/// What a step is refused for.
pub fn refused(c: &Checkpoint, steps: Value) -> String {
    let parsed = Recipe::parse(&steps.to_string());
    let done: Result<_, Error> = parsed.and_then(|r| r.apply(&mut c.clone(), &Aid::default()));
    done.map_or_else(|e| e.to_string(), |_| panic!("{steps} was not refused"))
}

/// Calibration tokens: three sequences.
pub fn tokens(vocab: usize) -> Calibration {
    let sequences = [(1, 70), (2, 41), (3, 90)];
    let ids = |(seed, n)| harness::tokens(seed, n, vocab).into_iter().map(|i| i as u32).collect();
    Calibration { sequences: sequences.into_iter().map(ids).collect(), backend: BackendChoice::Cpu }
}

/// Writes a checkpoint.
pub fn saved(c: &Checkpoint, tied: Tied) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    c.save(&dir.path().join("m"), tied).unwrap_or_else(|e| panic!("{e}"));
    dir
}

/// Writes and compiles a checkpoint; what was compiled before is the same model.
pub fn compiled(c: &Checkpoint, tied: Tied) -> LoadedModel {
    let dir = saved(c, tied);
    let files = std::fs::read_dir(dir.path().join("m")).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<_> = files.map(|f| (f.file_name().unwrap().to_owned(), std::fs::read(f).unwrap())).collect();
    files.sort();
    harness::once(files, || {
        let model = ingest::load(dir.path().join("m")).unwrap_or_else(|e| panic!("{e}"));
        std::mem::forget(dir);
        model_source::compiled(&model).unwrap_or_else(|e| panic!("{e}"))
    })
}

/// T0: the model as written gives the bits of its materialised copy, on both backends.
pub fn same_as_copies(c: &Checkpoint, vocab: usize) {
    harness::same_bits(&compiled(c, Tied::Once), &compiled(c, Tied::Copies), vocab);
}

/// T1: the model as written gives what the oracle computes from its tensors.
pub fn agrees(c: &Checkpoint, like: &Tiny, form: &Form) {
    harness::agrees(&tiny(c, like), form, Default::default());
}

/// The model of a checkpoint, for the oracle.
pub fn tiny(c: &Checkpoint, like: &Tiny) -> Tiny {
    let mut t = like.clone();
    let s = c.sizes().unwrap();
    (t.hidden, t.ff, t.heads, t.kv_heads, t.head_dim) = (s.hidden, s.ff, s.heads, s.kv_heads, s.head_dim);
    t.layers = c.number("num_hidden_layers").unwrap() as usize;
    t.frit = c.config.get("frit").cloned().unwrap_or(json!({}));
    t.tensors.clear();
    t.aliases.clear();
    for name in c.names() {
        let v = c.values(name).unwrap();
        let shape = v.shape.iter().map(|d| *d as u64).collect();
        t.tensors.insert(name.into(), (shape, v.data.iter().map(|v| *v as f32).collect()));
    }
    if !c.has("lm_head.weight") {
        let table = t.tensors["model.embed_tokens.weight"].clone();
        t.tensors.insert("lm_head.weight".into(), table);
    }
    t
}

/// Tensors by name, in f64.
pub fn values(c: &Checkpoint, name: &str) -> Dense {
    c.values(name).unwrap_or_else(|e| panic!("{e}"))
}

/// Name of a layer's tensor.
pub fn at(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

/// Every linear map of a llama layer.
pub const MAPS: [&str; 7] = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
];
/// Both norms.
pub const NORMS: [&str; 2] = ["input_layernorm.weight", "post_attention_layernorm.weight"];

/// The largest difference of two tensors, relative to the largest element of the second.
pub fn distance(a: &Dense, b: &Dense) -> f64 {
    assert_eq!(a.shape, b.shape);
    let most = b.data.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    a.data.iter().zip(&b.data).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / most
}

/// A tensor is what a formula gives, up to one rounding to f32.
pub fn is(c: &Checkpoint, name: &str, want: &Dense) {
    let d = distance(&values(c, name), want);
    assert!(d <= 1e-7, "`{name}` is off by {d:e}");
}

/// Two checkpoints have the same tensors, bit for bit, and the same configuration.
pub fn same(a: &Checkpoint, b: &Checkpoint) {
    let names = |c: &Checkpoint| c.names().map(str::to_owned).collect::<Vec<_>>();
    let (mut na, mut nb) = (names(a), names(b));
    na.sort();
    nb.sort();
    assert_eq!(na, nb);
    for n in &na {
        assert_eq!(values(a, n), values(b, n), "{n}");
    }
    assert_eq!(a.config, b.config);
}

/// Largest difference of logits, relative to the largest.
pub fn logit_distance(a: &LoadedModel, b: &LoadedModel, vocab: usize) -> f64 {
    let rows = vec![harness::tokens(3, 17, vocab), harness::tokens(4, 17, vocab)];
    let run = |m: &LoadedModel| harness::logits(m, BackendChoice::Cpu, &rows).0.as_f32().unwrap().to_vec();
    let (a, b) = (run(a), run(b));
    let most = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    f64::from(a.iter().zip(&b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / most)
}

/// A T5 of random numbers: as many encoder as decoder layers unless said otherwise.
pub fn t5(encoder: usize, decoder: usize) -> Checkpoint {
    let config = json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64,
        "num_heads": 4, "num_layers": encoder, "num_decoder_layers": decoder, "vocab_size": 61,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "is_encoder_decoder": true, "tie_word_embeddings": true,
        "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    });
    let Value::Object(config) = config else { unreachable!() };
    random(config, |put| {
        put("shared.weight", &[61, 32]);
        for (side, count) in [("encoder", encoder), ("decoder", decoder)] {
            for i in 0..count {
                let at = |l: usize, n: &str| format!("{side}.block.{i}.layer.{l}.{n}.weight");
                let attention = |put: &mut dyn FnMut(&str, &[usize]), l: usize, name: &str| {
                    for p in ["q", "k", "v", "o"] {
                        put(&at(l, &format!("{name}.{p}")), &[32, 32]);
                    }
                    put(&at(l, "layer_norm"), &[32]);
                };
                attention(put, 0, "SelfAttention");
                if i == 0 {
                    put(&at(0, "SelfAttention.relative_attention_bias"), &[8, 4]);
                }
                let ffn = if side == "decoder" { 2 } else { 1 };
                if side == "decoder" {
                    attention(put, 1, "EncDecAttention");
                }
                put(&at(ffn, "DenseReluDense.wi"), &[64, 32]);
                put(&at(ffn, "DenseReluDense.wo"), &[32, 64]);
                put(&at(ffn, "layer_norm"), &[32]);
            }
            put(&format!("{side}.final_layer_norm.weight"), &[32]);
        }
    })
}

/// T0 of a model with two stacks: both checkpoints give the same bits, three rows at once, on both backends.
pub fn same_pairs(a: &Checkpoint, b: &Checkpoint, ties: [Tied; 2]) {
    let [a, b] = [(a, ties[0]), (b, ties[1])].map(|(c, tied)| compiled(c, tied));
    let ids = |seed, n: u64| frit::Tensor::i32(&[3, n], harness::tokens(seed, 3 * n as usize, 61)).unwrap();
    let inputs = [("input_ids", ids(1, 9)), ("decoder_input_ids", ids(2, 5))];
    for backend in harness::BACKENDS {
        let [x, y] = [&a, &b].map(|m| harness::session(m, backend).run(&inputs).unwrap_or_else(|e| panic!("{e}")));
        assert_eq!(x, y, "{backend:?}");
    }
}

/// A GPT-2 of random numbers: 3 layers of 48, 4 heads, 96 inner, 61 tokens.
pub fn gpt2() -> Checkpoint {
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 48, "n_head": 4, "n_layer": 3,
        "n_inner": 96, "n_positions": 128, "vocab_size": 61, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true,
    });
    let Value::Object(config) = config else { unreachable!() };
    random(config, |put| {
        put("transformer.wte.weight", &[61, 48]);
        put("transformer.wpe.weight", &[128, 48]);
        for i in 0..3 {
            for (n, shape) in [
                ("attn.c_attn", [48, 144]),
                ("attn.c_proj", [48, 48]),
                ("mlp.c_fc", [48, 96]),
                ("mlp.c_proj", [96, 48]),
            ] {
                put(&format!("transformer.h.{i}.{n}.weight"), &shape);
                put(&format!("transformer.h.{i}.{n}.bias"), &shape[1..]);
            }
            for n in ["ln_1", "ln_2"] {
                put(&format!("transformer.h.{i}.{n}.weight"), &[48]);
                put(&format!("transformer.h.{i}.{n}.bias"), &[48]);
            }
        }
        put("transformer.ln_f.weight", &[48]);
        put("transformer.ln_f.bias", &[48]);
    })
}

/// A GPT-NeoX of random numbers: 3 layers of 48, 4 heads whose queries, keys and values are side by side, 96 inner.
pub fn neox() -> Checkpoint {
    let config = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 48, "num_attention_heads": 4,
        "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 61, "max_position_embeddings": 128,
        "rotary_pct": 0.5, "rotary_emb_base": 10000, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "use_parallel_residual": false, "attention_bias": true, "tie_word_embeddings": false,
    });
    let Value::Object(config) = config else { unreachable!() };
    random(config, |put| {
        put("gpt_neox.embed_in.weight", &[61, 48]);
        let mut both = |stem: &str, shape: &[usize]| {
            put(&format!("{stem}.weight"), shape);
            put(&format!("{stem}.bias"), &shape[..1]);
        };
        for i in 0..3 {
            let at = |n: &str| format!("gpt_neox.layers.{i}.{n}");
            both(&at("attention.query_key_value"), &[144, 48]);
            both(&at("attention.dense"), &[48, 48]);
            both(&at("mlp.dense_h_to_4h"), &[96, 48]);
            both(&at("mlp.dense_4h_to_h"), &[48, 96]);
            both(&at("input_layernorm"), &[48]);
            both(&at("post_attention_layernorm"), &[48]);
        }
        both("gpt_neox.final_layer_norm", &[48]);
        put("embed_out.weight", &[61, 48]);
    })
}

/// A BLOOM of random numbers: 3 layers of 48, 4 heads whose queries, keys and values are side by side.
pub fn bloom() -> Checkpoint {
    let config = json!({
        "architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 48, "n_head": 4, "n_layer": 3,
        "vocab_size": 61, "layer_norm_epsilon": 1e-5, "seq_length": 128,
    });
    let Value::Object(config) = config else { unreachable!() };
    random(config, |put| {
        put("transformer.word_embeddings.weight", &[61, 48]);
        let mut both = |stem: &str, shape: &[usize]| {
            put(&format!("{stem}.weight"), shape);
            put(&format!("{stem}.bias"), &shape[..1]);
        };
        both("transformer.word_embeddings_layernorm", &[48]);
        for i in 0..3 {
            let at = |n: &str| format!("transformer.h.{i}.{n}");
            both(&at("self_attention.query_key_value"), &[144, 48]);
            both(&at("self_attention.dense"), &[48, 48]);
            both(&at("mlp.dense_h_to_4h"), &[192, 48]);
            both(&at("mlp.dense_4h_to_h"), &[48, 192]);
            both(&at("input_layernorm"), &[48]);
            both(&at("post_attention_layernorm"), &[48]);
        }
        both("transformer.ln_f", &[48]);
    })
}

/// A BERT of random numbers: 12 layers of 32, 4 heads, 64 inner, 61 tokens.
pub fn bert() -> Checkpoint {
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 12,
        "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu", "max_position_embeddings": 64,
        "type_vocab_size": 2, "vocab_size": 61, "layer_norm_eps": 1e-12, "position_embedding_type": "absolute",
    });
    let Value::Object(config) = config else { unreachable!() };
    random(config, |put| {
        for (n, rows) in [("word", 61), ("position", 64), ("token_type", 2)] {
            put(&format!("embeddings.{n}_embeddings.weight"), &[rows, 32]);
        }
        let mut both = |stem: &str, shape: &[usize]| {
            put(&format!("{stem}.weight"), shape);
            put(&format!("{stem}.bias"), &shape[..1]);
        };
        both("embeddings.LayerNorm", &[32]);
        for i in 0..12 {
            let at = |n: &str| format!("encoder.layer.{i}.{n}");
            for n in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
                both(&at(n), &[32, 32]);
            }
            both(&at("intermediate.dense"), &[64, 32]);
            both(&at("output.dense"), &[32, 64]);
            both(&at("attention.output.LayerNorm"), &[32]);
            both(&at("output.LayerNorm"), &[32]);
        }
        both("pooler.dense", &[32, 32]);
    })
}

fn random(config: Map<String, Value>, build: impl FnOnce(&mut dyn FnMut(&str, &[usize]))) -> Checkpoint {
    let mut c = Checkpoint::empty(config, Path::new("memory")).unwrap_or_else(|e| panic!("{e}"));
    let mut r = Random::new(11);
    let mut names = Vec::new();
    build(&mut |name, shape| {
        let n: usize = shape.iter().product();
        let norm = ["norm", "Norm", "ln_"].iter().any(|s| name.contains(s)) && name.ends_with("weight");
        let scale = if shape.len() > 1 { 1.7 / (shape[1] as f32).sqrt() } else { 0.2 };
        let shift = if norm { 1.0 } else { 0.0 };
        let data = r.floats(n as u64, scale).into_iter().map(|v| f64::from(v + shift)).collect();
        names.push(name.to_owned());
        c.put(name, &Dense { shape: shape.to_vec(), data });
    });
    // Prefixes are found by the files' names.
    let dir = saved(&c, Tied::Once);
    let c = Checkpoint::open(&dir.path().join("m")).unwrap_or_else(|e| panic!("{e}"));
    std::mem::forget(dir);
    c
}
