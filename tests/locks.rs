//! `fusion.lock` of the models in `fixtures/`: launches, regions, bytes, refusals and memory of every program.
//!
//! A change that loses or gains a fusion fails here with the lines that changed. `FRIT_UPDATE_LOCKS=1 cargo test --test
//! locks` accepts them; `git diff tests/locks` shows them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit_compiler::{Model, ingest};
use frit_plan::lock_changes;
use std::path::Path;

/// Every kind of model that layers come from, and of each decoder both what a config and what an exporter says.
const MODELS: [&str; 18] = [
    "lexicon",
    "devset/llama_gqa",
    "devset/qwen2",
    "devset/gpt2",
    "devset/bert",
    "devset/gguf/llama_Q8_0.gguf",
    "families/albert",
    "families/t5",
    "families/t5_encoder",
    "families/vit",
    "families/whisper",
    "families/gemma2",
    "onnx/bert.onnx",
    "onnx/llama_gqa.onnx",
    "onnx/llama_gqa_past.onnx",
    "onnx/gpt2.onnx",
    "onnx/gpt2_past.onnx",
    "onnx/gemma2_ts.onnx",
];

/// Whether the variable of that value asks for the locks to be written.
fn asks(value: Option<&str>) -> bool {
    value.is_some_and(|v| !v.is_empty() && v != "0")
}

/// The lines in which the lock `name` and the plan of `model` differ.
fn changes(name: &str, model: &Model) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/locks");
    let new = support::compile_with(model, Default::default(), Vec::new()).plan.lock();
    let file = folder.join(format!("{name}.lock"));
    if asks(std::env::var("FRIT_UPDATE_LOCKS").ok().as_deref()) {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&file, &new).unwrap();
    }
    let old = std::fs::read_to_string(&file).unwrap_or_default();
    let changes = lock_changes(&old, &new);
    (!changes.is_empty()).then(|| format!("{}\n{}", file.display(), changes.join("\n")))
}

#[test]
fn fusions_of_the_models_are_those_of_their_locks() {
    let wrong: Vec<String> = MODELS.iter().filter_map(|m| changes(&m.replace('/', "_"), &support::load(m))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A file of tensors without those whose names end so.
fn without(file: &[u8], dropped: &[&str]) -> Vec<u8> {
    let (length, rest) = file.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
    header.retain(|name, _| name != "__metadata__" && !dropped.iter().any(|end| name.ends_with(end)));
    let mut kept = Vec::new();
    for tensor in header.values_mut() {
        let at = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let (first, start, end) = (kept.len(), at(0), at(1));
        kept.extend(&data[start..end]);
        tensor["data_offsets"] = vec![first, kept.len()].into();
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &kept].concat()
}

/// A Llama whose second layer attends to the keys and values of the first.
#[test]
fn so_are_those_of_layers_that_share_a_cache() {
    let (from, to) = (support::fixture("devset/llama_gqa"), tempfile::tempdir().unwrap());
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["use_cla"] = true.into();
    config["cla_share_factor"] = 2.into();
    std::fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let dropped = ["layers.1.self_attn.k_proj.weight", "layers.1.self_attn.v_proj.weight"];
    std::fs::write(to.path().join("model.safetensors"), without(&bytes, &dropped)).unwrap();
    let model = ingest::load(to.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(model.tables.kv_slots.len(), 1);
    let wrong = changes("llama_gqa_shared_cache", &model);
    assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
}

#[test]
fn an_empty_variable_writes_no_lock() {
    assert!(asks(Some("1")));
    assert!([None, Some(""), Some("0")].iter().all(|v| !asks(*v)));
}

#[test]
fn a_lost_fusion_is_one_line_less_and_two_more() {
    let (old, new) = ("a\nb\nb\nc\n", "a\nb\nd\ne\n");
    assert_eq!(lock_changes(old, new), ["- b", "- c", "+ d", "+ e"]);
    assert!(lock_changes(old, old).is_empty());
}
