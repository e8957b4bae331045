//! Recipes, files, and what contradicts itself.

use crate::checkpoints::*;
use crate::tiny::Tiny;
use frit_compiler::transform::{Aid, Checkpoint, Recipe, Tied};
use serde_json::json;

#[test]
fn yaml_and_json_are_one_recipe() {
    let yaml = "- transform: prune-layers\n  layers: 1,4\n- {transform: share-layers, pattern: 'cycle:2', private: norms}\n\
                - {transform: merge-layers, pairs: '2:3', method: slerp, t: 0.25}\n";
    let parsed = Recipe::parse(yaml).unwrap();
    let text = serde_json::to_string(&parsed).unwrap();
    assert_eq!(Recipe::parse(&text).unwrap(), parsed);
    let mut c = checkpoint(&Tiny::llama(70));
    let reports = parsed.apply(&mut c, &Aid::default()).unwrap();
    assert_eq!(reports.iter().map(|r| r.layers).collect::<Vec<_>>(), [[6, 4], [4, 4], [4, 3]]);
    for (text, want) in [
        ("- transform: prune\n", "step 1 (prune): there is no transform of this name"),
        ("- {transform: untie}\n- {transform: share-layers}\n", "step 2 (share-layers): missing field `pattern`"),
        ("- {transform: untie, hard: true}\n", "step 1 (untie): unknown field `hard`"),
        ("- {layers: 3}\n", "step 1: has no `transform`"),
        ("a: b\n", "is no list of steps"),
        ("- {transform: keep-layers, layers: 3-}\n", "is no list of layers"),
        ("[]", "has no steps"),
        ("- [", "recipe"),
    ] {
        let said = Recipe::parse(text).unwrap_err().to_string();
        assert!(said.contains(want), "{text}: {said}");
    }
}

#[test]
fn a_refused_recipe_changes_nothing() {
    let c = checkpoint(&Tiny::llama(71));
    let mut edited = c.clone();
    let steps =
        recipe(json!([{ "transform": "prune-layers", "layers": 0 }, { "transform": "prune-layers", "layers": 5 }]));
    let said = steps.apply(&mut edited, &Aid::default()).unwrap_err().to_string();
    assert!(said.contains("layer 5 does not exist; there are 5"), "{said}");
    same(&edited, &c);
}

#[test]
fn contradictions_are_named() {
    let c = checkpoint(&Tiny::llama(72));
    let cla = edited(&c, json!([{ "transform": "share-kv", "pattern": "cla:2" }]));
    let said = refused(&cla, json!([{ "transform": "prune-layers", "layers": "2" }]));
    assert!(
        said.contains("layer 2 makes the keys and values that layers [3] attend to") && said.contains("--reassign"),
        "{said}"
    );
    let moved = edited(&cla, json!([{ "transform": "prune-layers", "layers": "2", "reassign": true }]));
    assert_eq!(moved.config["frit"]["kv_map"][2], json!({ "k": 2, "v": 2 }));
    assert_eq!(values(&moved, &at(2, MAPS[1])), values(&cla, &at(2, MAPS[1])));
    let shared = edited(&c, json!([{ "transform": "share-attention", "spans": "1-3" }]));
    let normed = edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:2", "private": "norms" }]));
    let relaxed = edited(&c, json!([{ "transform": "recurse", "block": 3, "lora-rank": 2 }]));
    for (c, step, want) in [
        (&cla, json!({ "transform": "share-attention", "spans": "1-2" }), "attend by other layers already"),
        (&shared, json!({ "transform": "prune-layers", "layers": 1 }), "the attention that layers [2, 3] reuse"),
        (&shared, json!({ "transform": "drop-attention", "layers": 1 }), "layers [2, 3] attend by"),
        (&c, json!({ "transform": "share-layers", "pattern": "groups:0-2,2-3" }), "layer 2 is in two groups"),
        (&cla, json!({ "transform": "share-layers", "pattern": "all" }), "layer 1 has no `self_attn.k_proj.weight`"),
        (&cla, json!({ "transform": "permute-layers", "order": "1,0,2-5" }), "their order is part of the model"),
        (&c, json!({ "transform": "share-layers", "pattern": "cycle:9" }), "9 sets of weights for 6 layers"),
        (&relaxed, json!({ "transform": "recurse", "block": 2, "lora-rank": 2 }), "fold them first"),
        (&c, json!({ "transform": "keep-layers", "layers": "dec:0,enc:1" }), "give them apart"),
        (&c, json!({ "transform": "prune-layers", "layers": "4-9" }), "layer 9 does not exist; there are 6"),
        (&normed, json!({ "transform": "fold-norms" }), "behind a norm with another gain"),
    ] {
        let said = refused(c, json!([step]));
        assert!(said.contains(want), "{said}");
    }
}

#[test]
fn outputs_are_whole_or_not_there() {
    let c = checkpoint(&Tiny::llama(75));
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("out");
    c.save(&at, Tied::Once).unwrap();
    let said = c.save(&at, Tied::Once).unwrap_err().to_string();
    assert!(said.contains("exists already"), "{said}");
    same(&Checkpoint::open(&at).unwrap(), &c);
    // A source that breaks off leaves nothing behind.
    let broken = Tiny::llama(76).save();
    let gone = Checkpoint::open(broken.path()).unwrap();
    let file = broken.path().join("model.safetensors");
    let half = std::fs::metadata(&file).unwrap().len() / 2;
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(half).unwrap();
    let other = dir.path().join("other");
    assert!(gone.save(&other, Tied::Once).is_err());
    assert!(!other.exists());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["out"]);
}

#[test]
fn what_is_not_known_is_said() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    std::fs::copy(Tiny::llama(77).save().path().join("model.safetensors"), dir.path().join("model.safetensors"))
        .unwrap();
    let said = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(said.contains("model_type") && said.contains("`mamba`") && said.contains("llama"), "{said}");
    let said = Checkpoint::open(&dir.path().join("config.json")).unwrap_err().to_string();
    assert!(said.contains("is neither a directory"), "{said}");
    assert!(refused(&bert(), json!([{ "transform": "drop-ffn", "layers": 1 }])).contains("a norm follows the part"));
}
