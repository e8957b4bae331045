#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::ingest::gguf::metadata::{Array, Value as Meta};
use crate::ingest::gguf::reader::GgufFile;
use crate::ingest::limits::Limits;
use std::path::PathBuf;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path)
}

fn strings(items: &[&str]) -> Meta {
    Meta::Array(Array::String(items.iter().map(|s| (*s).to_owned()).collect()))
}

fn metadata(pairs: Vec<(&str, Meta)>) -> Metadata {
    Metadata::new("test.gguf".into(), pairs.into_iter().map(|(k, v)| (format!("tokenizer.ggml.{k}"), v)).collect())
}

fn json_of(tokenizer: &Tokenizer) -> Value {
    serde_json::from_str(&tokenizer.json).unwrap()
}

#[test]
fn the_lexicon_tokenizer_is_the_one_beside_it() {
    let file = GgufFile::open(&fixture("lexicon/lexicon-q8_0.gguf"), &Limits::default()).unwrap();
    let got = convert(file.metadata()).unwrap().unwrap();
    let want: Value = serde_json::from_slice(&std::fs::read(fixture("lexicon/tokenizer.json")).unwrap()).unwrap();
    let json = json_of(&got);
    for key in ["added_tokens", "normalizer", "pre_tokenizer", "decoder"] {
        assert_eq!(json[key], want[key], "{key}");
    }
    assert_eq!(json["post_processor"]["single"], want["post_processor"]["single"]);
    assert_eq!(json["model"]["vocab"].as_object().unwrap(), want["model"]["vocab"].as_object().unwrap());
    assert_eq!(json["model"]["merges"], want["model"]["merges"]);
    assert_eq!((got.bos, got.eos, got.add_bos, got.add_eos), (Some(0), Some(1), true, false));
    assert_eq!((got.stops, got.dropped_merges, got.len), (vec![1], 0, 4096));
}

#[test]
fn merges_without_a_result_in_the_vocabulary_are_counted_not_kept() {
    let got = convert(&metadata(vec![
        ("model", Meta::String("gpt2".into())),
        ("pre", Meta::String("qwen2".into())),
        ("tokens", strings(&["a", "b", "ab", "c"])),
        ("merges", strings(&["a b", "b c"])),
    ]));
    let got = got.unwrap().unwrap();
    assert_eq!(json_of(&got)["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(got.dropped_merges, 1);
    assert_eq!(json_of(&got)["normalizer"]["type"], "NFC");
    assert_eq!(json_of(&got)["post_processor"], Value::Null);
}

#[test]
fn scores_imply_merges_best_first() {
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a", "▁ab", "<0x0A>"];
    let scores = [0.0, 0.0, 0.0, -7.0, -8.0, -9.0, -1.0, -2.0, -0.5, 0.0];
    let types = [2, 3, 3, 1, 1, 1, 1, 1, 1, 6];
    let got = convert(&metadata(vec![
        ("model", Meta::String("llama".into())),
        ("tokens", strings(&tokens)),
        ("scores", Meta::Array(Array::F32(scores.to_vec()))),
        ("token_type", Meta::Array(Array::I32(types.to_vec()))),
    ]));
    let got = got.unwrap().unwrap();
    let json = json_of(&got);
    let want = json!([["▁a", "b"], ["▁", "ab"], ["a", "b"], ["▁", "a"]]);
    assert_eq!(json["model"]["merges"], want);
    assert_eq!(json["model"]["unk_token"], "<unk>");
    assert_eq!(json["model"]["byte_fallback"], true);
    assert_eq!(json["added_tokens"].as_array().unwrap().len(), 3);
    assert_eq!((got.bos, got.eos, got.add_bos), (Some(1), Some(2), true));
    assert_eq!(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
}

#[test]
fn faults_name_their_key() {
    let base =
        || vec![("model", Meta::String("gpt2".into())), ("tokens", strings(&["a", "b"])), ("merges", strings(&[]))];
    for (key, value, want) in [
        ("model", Meta::String("t5".into()), "tokenizer.ggml.model"),
        ("model", Meta::U32(1), "tokenizer.ggml.model"),
        ("tokens", strings(&["a", "a"]), "ids 0 and 1"),
        ("merges", strings(&["ab"]), "no pair"),
        ("merges", strings(&[" "]), "no pair"),
        ("merges", strings(&[""]), "no pair"),
        ("pre", Meta::String("nonesuch".into()), "nonesuch"),
        ("bos_token_id", Meta::U32(2), "tokenizer.ggml.bos_token_id"),
        ("token_type", Meta::Array(Array::I32(vec![1])), "1 entries for 2 tokens"),
        ("add_bos_token", Meta::U8(1), "tokenizer.ggml.add_bos_token"),
    ] {
        let mut pairs = base();
        pairs.retain(|(k, _)| *k != key);
        pairs.push((key, value));
        let gap = convert(&metadata(pairs)).unwrap_err().to_string();
        assert!(gap.contains(want), "{key}: {gap}");
    }
    assert_eq!(convert(&metadata(vec![])), Ok(None));
}
