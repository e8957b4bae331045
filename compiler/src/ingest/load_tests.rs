#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::graph::Op;
use frit_plan::Task;
use serde_json::Value;
use std::path::PathBuf;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path)
}

fn loaded(path: &str) -> Model {
    load(fixture(path)).unwrap_or_else(|e| unreachable!("{path}: {e}"))
}

fn names(model: &Model) -> Vec<&str> {
    model.graphs.iter().map(|g| g.name.as_str()).collect()
}

fn count(model: &Model, graph: &str, want: impl Fn(&Op) -> bool) -> usize {
    let graph = &model.graph(graph).unwrap().graph;
    graph.order().into_iter().filter(|v| want(graph.op(*v))).count()
}

fn manifest(list: &str) -> Vec<Value> {
    let text = std::fs::read(fixture("hostile/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&text).unwrap();
    manifest[list].as_array().unwrap().clone()
}

#[test]
fn hostile_files_are_refused_by_name() {
    let mut wrong = Vec::new();
    for entry in manifest("refused") {
        let path = entry["path"].as_str().unwrap();
        let words: Vec<&str> = entry["contains"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        match load(fixture("hostile").join(path)) {
            Ok(_) => wrong.push(format!("{path}: loaded, although {}", entry["fault"])),
            Err(e) => {
                let message = e.to_string().replace(&fixture("hostile").display().to_string(), "");
                let named = message.replace(path, path.rsplit('/').next().unwrap());
                if !words.iter().any(|w| named.contains(w)) || matches!(e, Error::Internal { .. }) {
                    wrong.push(format!("{path}: {message:?} names none of {words:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_good_ones_among_the_hostile_are_loaded() {
    for entry in manifest("accepted") {
        loaded(&format!("hostile/{}", entry["path"].as_str().unwrap()));
    }
}

#[test]
fn decoders_have_four_ways_to_run() {
    for path in ["devset/gpt2", "devset/llama_gqa", "devset/qwen2", "lexicon", "lexicon/lexicon-q8_0.gguf"] {
        let model = loaded(path);
        assert_eq!(names(&model), ["forward", "prefill", "decode", "decode_wide"], "{path}");
        assert_eq!(model.info.task, Task::Decoder);
        let sizes: Vec<&str> = model.tables.sizes.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(sizes, ["B", "S", "P", "T"], "{path}");
        let layers = model.info.layers as usize;
        assert_eq!(model.tables.kv_slots.len(), layers);
        for graph in names(&model) {
            assert_eq!(count(&model, graph, |op| matches!(op, Op::Attention(_))), layers, "{path} {graph}");
        }
        for weight in &model.tables.weights {
            if let crate::graph::WeightData::Tensor { name, .. } = &weight.data {
                let data = model.source.read(name).unwrap();
                assert_eq!(data.storage, weight.storage, "{path} {name}");
                let elems = data.shape.iter().product();
                assert_eq!(data.storage.size_bytes(elems), Some(data.bytes.len() as u64), "{path} {name}");
            }
        }
    }
}

#[test]
fn an_encoder_has_one_way_to_run() {
    let model = loaded("devset/bert");
    assert_eq!((names(&model), model.info.task), (vec!["forward"], Task::Encoder));
    let graph = &model.graph("forward").unwrap().graph;
    let outputs: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(outputs, ["last_hidden_state", "pooler_output"]);
    assert_eq!(graph.ty(graph.outputs[0].value).to_string(), "f32[B, S, 48]");
    assert_eq!(graph.ty(graph.outputs[1].value).to_string(), "f32[B, 48]");
}

#[test]
fn a_tied_head_is_the_embedding() {
    for path in ["devset/qwen2", "devset/gpt2", "lexicon", "lexicon/lexicon-q8_0.gguf"] {
        let model = loaded(path);
        let vocab = model.info.vocab;
        let wide =
            model.tables.weights.iter().filter(|w| w.shape.first().is_some_and(|d| d.as_const() == Some(vocab as i64)));
        assert_eq!(wide.count(), 1, "{path}");
    }
    assert_eq!(loaded("devset/llama_gqa").tables.weights.iter().filter(|w| w.names[0].contains("lm_head")).count(), 1);
}

#[test]
fn settings_of_text_come_along() {
    for path in ["lexicon", "lexicon/lexicon-q8_0.gguf"] {
        let info = loaded(path).info;
        assert_eq!((info.eos, info.bos), (vec![1], None), "{path}");
        assert_eq!((info.vocab, info.context, info.layers), (4096, 256, 6), "{path}");
        assert!(info.tokenizer.is_some_and(|t| t.contains("\"merges\"")), "{path}");
    }
}

#[test]
fn the_context_is_bounded_by_the_model() {
    let with = |context| {
        load_with(&fixture("devset/llama_gqa"), &LoadOptions { context: Some(context), ..Default::default() })
    };
    assert_eq!(with(16).unwrap_or_else(|e| unreachable!("{e}")).info.context, 16);
    assert!(with(65).is_err_and(|e| e.to_string().contains("64 positions")));
}

#[test]
fn other_formats_are_refused_with_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    for (name, want) in [
        ("model.onnx", "is no ONNX model"),
        ("model.safetensors", "directory"),
        ("pytorch_model.bin", "safetensors"),
        ("notes.txt", "no format"),
    ] {
        std::fs::write(dir.path().join(name), b"anything").unwrap();
        let e = load(dir.path().join(name)).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(want) && e.contains(name), "{e}");
    }
}

/// Whatever bytes change, a model is loaded or refused, and what is refused is not called a fault of this program.
fn survives(write: impl Fn(&[u8], &std::path::Path), bytes: &[u8], edits: &[(usize, u8)]) -> Result<(), String> {
    let mut bytes = bytes.to_vec();
    for (at, value) in edits {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write(&bytes, &path);
    match load(&path) {
        Err(e @ Error::Internal { .. }) => Err(e.to_string()),
        _ => Ok(()),
    }
}

proptest::proptest! {
    #[test]
    fn changed_gguf_files_never_break_the_loader(edits in proptest::collection::vec((0usize..1600, proptest::num::u8::ANY), 1..6)) {
        let good = std::fs::read(fixture("hostile/gguf/good.gguf")).unwrap();
        survives(|bytes, path| std::fs::write(path, bytes).unwrap(), &good, &edits).map_err(proptest::test_runner::TestCaseError::fail)?;
    }

    #[test]
    fn changed_directories_never_break_the_loader(
        family in proptest::sample::select(vec!["llama", "qwen3", "gpt2", "bert"]),
        in_config in proptest::bool::ANY,
        edits in proptest::collection::vec((0usize..1600, proptest::num::u8::ANY), 1..6),
    ) {
        let (changed, same) = if in_config { ("config.json", "model.safetensors") } else { ("model.safetensors", "config.json") };
        let read = |name: &str| std::fs::read(fixture("hostile/hf").join(family).join(name)).unwrap();
        let other = read(same);
        survives(|bytes, path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join(changed), bytes).unwrap();
            std::fs::write(path.join(same), &other).unwrap();
        }, &read(changed), &edits).map_err(proptest::test_runner::TestCaseError::fail)?;
    }
}
