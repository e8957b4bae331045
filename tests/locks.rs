//! `fusion.lock` of the models in `fixtures/`: launches, regions, bytes, refusals and memory of every program.
//!
//! A change that loses or gains a fusion fails here with the lines that changed. `FRIT_UPDATE_LOCKS=1 cargo test --test
//! locks` accepts them; `git diff tests/locks` shows them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit_plan::lock_changes;
use std::path::Path;

#[test]
fn fusions_of_the_models_are_those_of_their_locks() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/locks");
    let update = std::env::var_os("FRIT_UPDATE_LOCKS").is_some();
    let mut wrong = Vec::new();
    for model in ["lexicon", "devset/llama_gqa", "devset/qwen2", "devset/gpt2", "devset/bert", "onnx/bert.onnx"] {
        let new = support::compile_with(&support::load(model), Default::default(), Vec::new()).plan.lock();
        let file = folder.join(format!("{}.lock", model.replace('/', "_")));
        if update {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&file, &new).unwrap();
        }
        let old = std::fs::read_to_string(&file).unwrap_or_default();
        let changes = lock_changes(&old, &new);
        if !changes.is_empty() {
            wrong.push(format!("{}\n{}", file.display(), changes.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_lost_fusion_is_one_line_less_and_two_more() {
    let (old, new) = ("a\nb\nb\nc\n", "a\nb\nd\ne\n");
    assert_eq!(lock_changes(old, new), ["- b", "- c", "+ d", "+ e"]);
    assert!(lock_changes(old, old).is_empty());
}
