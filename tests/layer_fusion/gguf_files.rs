//! GGUF files in and out of transforms. Files are made here from directories, as llama.cpp's converters are known to.

use crate::support::{Random, fixture};
use crate::tiny::Tiny;
use frit::calibration::Calibration;
use frit::{BackendChoice, LoadedModel, Session, Tensor, model_source};
use frit_compiler::ingest;
use frit_compiler::ingest::gguf::metadata::{Array, Value as Meta};
use frit_compiler::ingest::gguf::reader::GgufFile;
use frit_compiler::ingest::gguf::tensors::TensorType;
use frit_compiler::ingest::gguf::writer::{self, Entry};
use frit_compiler::transform::{Activations, Aid, Checkpoint, Recipe, Tied};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

fn logits(path: &Path, vocab: usize) -> Vec<f32> {
    let model: LoadedModel = model_source::compiled(&ingest::load(path).unwrap_or_else(|e| panic!("{e}"))).unwrap();
    let mut session = Session::builder().backend(BackendChoice::Cpu).open(&model).unwrap();
    let ids: Vec<i32> = (0..18).map(|i| (i * 37 + 5) % vocab as i32).collect();
    let out = session.run(&[("input_ids", Tensor::i32(&[2, 9], ids).unwrap())]).unwrap();
    out.iter().find(|(name, _)| name == "logits").unwrap().1.as_f32().unwrap().to_vec()
}

fn edit(from: &Path, steps: Value, save: impl FnOnce(&Checkpoint)) {
    let mut c = Checkpoint::open(from).unwrap_or_else(|e| panic!("{e}"));
    Recipe::parse(&steps.to_string()).unwrap().apply(&mut c, &Aid::default()).unwrap_or_else(|e| panic!("{e}"));
    save(&c);
}

fn close(a: &[f32], b: &[f32], bound: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let most = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(off <= bound * most, "{what}: {off} of {most}");
}

/// The keys and tensors of a directory of one of the families, under the format's names.
struct Converted {
    metadata: Vec<(String, Meta)>,
    tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
}

fn converted(architecture: &str, dir: &Path) -> Converted {
    let c = Checkpoint::open(dir).unwrap();
    let n = |field: &str| c.number(field);
    let f = |field: &str| c.config.get(field).and_then(Value::as_f64);
    let heads = n("num_attention_heads").unwrap();
    let head_dim = n("head_dim").unwrap_or_else(|| n("hidden_size").unwrap() / heads);
    let mut metadata = vec![("general.architecture".to_owned(), Meta::String(architecture.into()))];
    let mut put = |key: &str, value: Meta| metadata.push((format!("{architecture}.{key}"), value));
    for (key, value) in [
        ("block_count", n("num_hidden_layers")),
        ("context_length", n("max_position_embeddings")),
        ("embedding_length", n("hidden_size")),
        ("feed_forward_length", n("intermediate_size")),
        ("attention.head_count", Some(heads)),
        ("attention.head_count_kv", n("num_key_value_heads").or(Some(heads))),
        ("attention.key_length", Some(head_dim)),
        ("attention.value_length", Some(head_dim)),
        ("rope.dimension_count", Some((head_dim as f64 * f("partial_rotary_factor").unwrap_or(1.0)) as u64)),
        ("attention.sliding_window", n("sliding_window").filter(|_| architecture.starts_with("gemma"))),
    ] {
        if let Some(value) = value {
            put(key, Meta::U32(value as u32));
        }
    }
    put("attention.layer_norm_rms_epsilon", Meta::F32(f("rms_norm_eps").unwrap_or(1e-6) as f32));
    put("rope.freq_base", Meta::F32(f("rope_theta").unwrap_or(1e4) as f32));
    for (field, key) in
        [("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping", "final_logit_softcapping")]
    {
        if let Some(cap) = f(field) {
            put(key, Meta::F32(cap as f32));
        }
    }
    // An item of every array type that tokenizers do not use, to be carried along.
    metadata.push(("general.tags".into(), Meta::Array(Array::String(vec!["test".into()]))));

    let around = architecture.starts_with("gemma") && architecture != "gemma";
    let mut tensors = Vec::new();
    for name in c.names() {
        if name == "lm_head.weight" && c.buffer(name) == c.buffer("model.embed_tokens.weight") {
            continue;
        }
        let values = c.values(name).unwrap();
        let mut data: Vec<f32> = values.data.iter().map(|v| *v as f32).collect();
        let (rows, cols) = (values.rows(), values.cols());
        let is_rotated = name.contains("q_proj") || name.contains("k_proj");
        if architecture == "llama" && is_rotated {
            // [heads, 2, half, in] becomes [heads, half, 2, in].
            let (d, half) = (head_dim as usize, head_dim as usize / 2);
            let old = data.clone();
            for h in 0..rows / d {
                for j in 0..half {
                    for p in 0..2 {
                        let (to, from) = (h * d + 2 * j + p, h * d + p * half + j);
                        data[to * cols..(to + 1) * cols].copy_from_slice(&old[from * cols..(from + 1) * cols]);
                    }
                }
            }
        }
        if architecture.starts_with("gemma") && name.contains("norm") {
            data.iter_mut().for_each(|v| *v += 1.0);
        }
        let mut there = name
            .replace("model.embed_tokens", "token_embd")
            .replace("model.norm", "output_norm")
            .replace("lm_head", "output")
            .replace("model.layers", "blk")
            .replace("self_attn.o_proj", "attn_output")
            .replace("mlp.gate_up_proj", "ffn_up")
            .replace("input_layernorm", "attn_norm")
            .replace("pre_feedforward_layernorm", "ffn_norm")
            .replace("post_feedforward_layernorm", "post_ffw_norm")
            .replace("post_attention_layernorm", if around { "post_attention_norm" } else { "ffn_norm" });
        for part in ["q", "k", "v", "qkv"] {
            there = there.replace(&format!("self_attn.{part}_proj"), &format!("attn_{part}"));
            there = there.replace(&format!("self_attn.{part}_norm"), &format!("attn_{part}_norm"));
        }
        for part in ["gate", "up", "down"] {
            there = there.replace(&format!("mlp.{part}_proj"), &format!("ffn_{part}"));
        }
        tensors.push((there, values.shape.iter().map(|d| *d as u64).collect(), data));
    }
    Converted { metadata, tensors }
}

impl Converted {
    fn write(&self, path: &Path) {
        let kind = TensorType::named("F32").unwrap();
        let metadata: Vec<(&str, &Meta)> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let entries: Vec<Entry<'_>> = self.tensors.iter().map(|(name, shape, _)| Entry { name, kind, shape }).collect();
        let mut out = Vec::new();
        let bytes = |n: usize| Ok(self.tensors[n].2.iter().flat_map(|v| v.to_le_bytes()).collect());
        writer::write(&mut out, &metadata, &entries, bytes).unwrap();
        std::fs::write(path, out).unwrap();
    }
}

/// A copy of a directory whose configuration has the values that the format implies and has no keys for.
fn implied(architecture: &str, from: &Path, to: &Path) {
    let mut c = Checkpoint::open(from).unwrap();
    if matches!(architecture, "gemma2" | "gemma3") {
        let head_dim = c.number("head_dim").unwrap();
        c.set("query_pre_attn_scalar", head_dim);
    }
    if architecture == "gemma3" {
        c.set("rope_local_base_freq", 1e4);
        c.set("rope_scaling", Value::Null);
        let layers = c.number("num_hidden_layers").unwrap();
        c.set("layer_types", vec!["sliding_attention"; layers as usize]);
    }
    c.save(to, Tied::Once).unwrap();
}

const FAMILIES: [(&str, &str); 6] = [
    ("llama", "devset/llama_gqa"),
    ("qwen2", "devset/qwen2"),
    ("phi3", "families/phi3_partial"),
    ("gemma", "families/gemma"),
    ("gemma2", "families/gemma2"),
    ("gemma3", "families/gemma3"),
];

/// A file, the directory made of it, and the file that is written again all compute what the directory computes that it
/// was converted from.
#[test]
fn every_family_goes_into_a_directory_and_back() {
    let mut qwen3 = Tiny::llama(7);
    qwen3.config = vec![("model_type", json!("qwen3")), ("architectures", json!(["Qwen3ForCausalLM"]))];
    for layer in 0..qwen3.layers {
        for part in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
            qwen3.random(&mut Random::new(layer as u64), &Tiny::name(layer, part), &[qwen3.head_dim], 1.0);
        }
    }
    let qwen3 = qwen3.save();
    let fixtures = FAMILIES.map(|(architecture, name)| (architecture, fixture(name)));
    for (architecture, from) in fixtures.into_iter().chain([("qwen3", qwen3.path().to_owned())]) {
        let vocab = Checkpoint::open(&from).unwrap().number("vocab_size").unwrap() as usize;
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        implied(architecture, &from, &at("from"));
        converted(architecture, &at("from")).write(&at("a.gguf"));
        let want = logits(&at("from"), vocab);
        // The rows of a head lie in another order in files of llama, so that sums over it are rounded otherwise.
        close(&logits(&at("a.gguf"), vocab), &want, 1e-5, architecture);
        let c = Checkpoint::open(&at("a.gguf")).unwrap_or_else(|e| panic!("{architecture}: {e}"));
        c.save(&at("b"), Tied::Once).unwrap();
        close(&logits(&at("b"), vocab), &want, 1e-5, architecture);
        c.save_gguf(&at("c.gguf"), Tied::Once).unwrap_or_else(|e| panic!("{architecture}: {e}"));
        assert_eq!(logits(&at("c.gguf"), vocab), logits(&at("a.gguf"), vocab), "{architecture}");
    }
}

/// Layers that go leave the blocks of the others as they were.
#[test]
fn blocks_stay_as_they_are() {
    let dir = TempDir::new().unwrap();
    let (from, to) = (fixture("devset/gguf/llama_Q4_0.gguf"), dir.path().join("pruned.gguf"));
    edit(&from, json!([{"transform": "prune-layers", "layers": "0"}]), |c| c.save_gguf(&to, Tied::Once).unwrap());
    let limits = ingest::Limits::default();
    let [old, new] = [&from, &to].map(|p| GgufFile::open(p, &limits).unwrap());
    let layers = |f: &GgufFile| f.metadata().u64("llama.block_count").unwrap().unwrap();
    assert_eq!(layers(&new) + 1, layers(&old));
    let mut blocks = 0;
    for t in new.tensors() {
        let was = match t.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => format!("blk.{}.{part}", layer.parse::<u64>().unwrap() + 1),
            None => t.name.clone(),
        };
        assert_eq!(old.get(&was).unwrap().kind(), t.kind(), "{was}");
        assert_eq!(old.bytes(&was).unwrap(), new.bytes(&t.name).unwrap(), "{was}");
        blocks += usize::from(t.kind().name == "Q4_0");
    }
    assert!(blocks >= 7 * layers(&new) as usize, "{blocks}");
    let others = |f: &GgufFile| {
        let kept =
            f.metadata().iter().filter(|(k, _)| !k.starts_with("llama.")).map(|(k, v)| (k.to_owned(), v.clone()));
        kept.collect::<Vec<_>>()
    };
    assert_eq!(others(&old), others(&new), "the tokenizer goes along");
}

/// An edit of values gives what the same edit of the directory gives whose values are those of the blocks.
#[test]
fn values_of_blocks_are_edited() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let from = fixture("lexicon/lexicon-q8_0.gguf");
    Checkpoint::open(&from).unwrap().save(&at("plain"), Tied::Once).unwrap();
    let steps = json!([
        {"transform": "merge-layers", "pairs": "3:4", "method": "slerp", "t": 0.3},
        {"transform": "prune-heads", "kv-heads": "0", "layers": "all"},
    ]);
    edit(&at("plain"), steps.clone(), |c| c.save(&at("a"), Tied::Once).unwrap());
    edit(&from, steps.clone(), |c| c.save(&at("b"), Tied::Once).unwrap());
    edit(&from, steps, |c| c.save_gguf(&at("c.gguf"), Tied::Once).unwrap());
    let vocab = Checkpoint::open(&from).unwrap().number("vocab_size").unwrap() as usize;
    let [a, b, c] = ["a", "b", "c.gguf"].map(|name| logits(&at(name), vocab));
    assert_eq!(a, b);
    // Layers that are not edited stay blocks in the file, whose products the runtime sums in another order.
    close(&c, &a, 2e-5, "the file");
    let sizes = |p: &str| Checkpoint::open(&at(p)).unwrap().sizes().unwrap();
    assert_eq!(sizes("a"), sizes("c.gguf"));

    let tokens = Calibration { sequences: vec![(1..60).collect(), (40..100).collect()], backend: BackendChoice::Cpu };
    let scores = |p: &Path| {
        let c = Checkpoint::open(p).unwrap();
        let aid = Aid { activations: Some(&tokens as &dyn Activations) };
        aid.importance(&c, frit_compiler::transform::Metric::Cosine).unwrap()
    };
    assert_eq!(scores(&from), scores(&at("plain")), "files are analysed as directories are");
}

#[test]
fn what_the_format_has_no_place_for_is_refused() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("x.gguf");
    let from = fixture("devset/gguf/llama_F16.gguf");
    let said = |steps: Value, tied: Tied| {
        let mut said = String::new();
        edit(&from, steps, |c| said = c.save_gguf(&to, tied).map_or_else(|e| e.to_string(), |()| "written".into()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), usize::from(said == "written"), "{said}");
        let _ = std::fs::remove_file(&to);
        said
    };
    let kv = said(json!([{"transform": "share-kv", "pattern": "cla:2"}]), Tied::Once);
    assert!(kv.contains("`frit` of the configuration") && kv.contains("write a directory"), "{kv}");
    let shared = json!([{"transform": "share-layers", "pattern": "all"}]);
    let tied = said(shared.clone(), Tied::Once);
    assert!(tied.contains("model.layers.1.self_attn.q_proj.weight") && tied.contains("--materialize"), "{tied}");
    assert_eq!(said(shared, Tied::Copies), "written");

    let directory = Checkpoint::open(&fixture("devset/llama_gqa")).unwrap();
    let said = directory.save_gguf(&to, Tied::Once).unwrap_err().to_string();
    assert!(said.contains("is written from a GGUF file"), "{said}");

    let mut other = converted("llama", &fixture("devset/llama_gqa"));
    other.metadata.iter_mut().for_each(|(key, value)| {
        *key = key.replace("llama.", "seed_oss.");
        if *value == Meta::String("llama".into()) {
            *value = Meta::String("seed_oss".into());
        }
    });
    other.tensors.iter_mut().for_each(|(name, ..)| *name = name.replace("ffn_norm", "post_attention_norm"));
    other.write(&to);
    let said = Checkpoint::open(&to).unwrap_err().to_string();
    assert!(said.contains("seed_oss") && said.contains("phi3"), "{said}");
}

#[test]
fn damaged_files_are_refused() {
    let (mut refused, mut opened) = (0, Vec::new());
    for entry in std::fs::read_dir(fixture("hostile/gguf")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match Checkpoint::open(&path) {
            Ok(_) => opened.push(name),
            Err(e) => {
                assert!(e.to_string().contains(&name), "{name}: {e}");
                refused += 1;
            }
        }
    }
    assert_eq!(opened, ["good.gguf"]);
    assert!(refused > 45, "{refused} files");
}
