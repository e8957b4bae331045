//! Row 6: ALBERT, loaded as published, against its definition and its published sizes.

use crate::harness::{BACKENDS, compiled, reads, session, tokens};
use crate::stacks::{Written, defined};
use crate::support::Random;
use crate::tiny::Tiny;
use frit::{LoadedModel, Tensor};
use frit_compiler::ingest;
use frit_compiler::ingest::policy::RunPolicy;
use frit_plan::{BufferRef, WeightSource};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Pieces, embedding, hidden size, inner width, layers, groups.
type Sizes = [usize; 6];

fn config(
    [vocab, embedding, hidden, inner, layers, groups]: Sizes,
    heads: usize,
    places: usize,
) -> Vec<(&'static str, Value)> {
    let fields = [
        ("architectures", json!(["AlbertModel"])),
        ("model_type", json!("albert")),
        ("hidden_act", json!("gelu_new")),
        ("vocab_size", json!(vocab)),
        ("embedding_size", json!(embedding)),
        ("hidden_size", json!(hidden)),
        ("intermediate_size", json!(inner)),
        ("num_hidden_layers", json!(layers)),
        ("num_hidden_groups", json!(groups)),
        ("inner_group_num", json!(1)),
        ("num_attention_heads", json!(heads)),
        ("max_position_embeddings", json!(places)),
        ("type_vocab_size", json!(2)),
        ("layer_norm_eps", json!(1e-12)),
        ("tie_word_embeddings", json!(true)),
    ];
    fields.into()
}

/// Every tensor of the checkpoint, in the published names.
fn shapes([vocab, e, h, inner, _, groups]: Sizes, places: usize) -> Vec<(String, Vec<usize>)> {
    let mut out = Vec::new();
    let mut put = |name: &str, shape: &[usize]| out.push((name.to_owned(), shape.to_vec()));
    for (n, rows) in [("word", vocab), ("position", places), ("token_type", 2)] {
        put(&format!("embeddings.{n}_embeddings.weight"), &[rows, e]);
    }
    let mut both = |stem: &str, shape: &[usize]| {
        put(&format!("{stem}.weight"), shape);
        put(&format!("{stem}.bias"), &shape[..1]);
    };
    both("embeddings.LayerNorm", &[e]);
    both("encoder.embedding_hidden_mapping_in", &[h, e]);
    for g in 0..groups {
        let at = |n: &str| format!("encoder.albert_layer_groups.{g}.albert_layers.0.{n}");
        for n in ["query", "key", "value", "dense"] {
            both(&at(&format!("attention.{n}")), &[h, h]);
        }
        both(&at("attention.LayerNorm"), &[h]);
        both(&at("ffn"), &[inner, h]);
        both(&at("ffn_output"), &[h, inner]);
        both(&at("full_layer_layer_norm"), &[h]);
    }
    both("pooler", &[h, h]);
    out
}

fn albert(seed: u64, sizes: Sizes) -> Tiny {
    let mut t = Tiny::llama(seed);
    (t.tensors, t.config) = (BTreeMap::new(), config(sizes, 4, 40));
    let mut r = Random::new(seed);
    for (name, shape) in shapes(sizes, 40) {
        let scale = if shape.len() > 1 { 1.7 / (shape[1] as f32).sqrt() } else { 0.2 };
        t.random(&mut r, &name, &shape, scale);
        if name.contains("orm.weight") {
            t.tensors.get_mut(&name).unwrap().1.iter_mut().for_each(|v| *v += 1.0);
        }
    }
    t
}

/// The published form, with one group, several, and as many as layers, against float64; a group is one set of buffers.
#[test]
fn row_06_albert_is_its_definition() {
    let rows = [tokens(61, 9, 61), tokens(62, 9, 61)];
    for groups in [1, 2, 6] {
        let t = albert(60 + groups as u64, [61, 16, 32, 48, 6, groups]);
        let m = compiled(&t, RunPolicy::default());
        let written = Written::of_tiny(&t, 4);
        let want: Vec<_> = rows.iter().map(|r| written.albert(r, 6, groups)).collect();
        defined(&m, &[("input_ids", &rows)], &want);
        assert_eq!(reads(&m.plan, "ffn_output.weight").len(), groups);
    }
}

/// Groups that hold the same numbers are one group, bit by bit: tied equals the untied copy.
#[test]
fn row_06_albert_is_its_untied_copy() {
    let one = albert(66, [61, 16, 32, 48, 6, 1]);
    let mut copies = one.clone();
    copies.config = config([61, 16, 32, 48, 6, 6], 4, 40);
    let first = "encoder.albert_layer_groups.0.";
    for (name, tensor) in one.tensors.iter().filter(|(n, _)| n.starts_with(first)) {
        for g in 1..6 {
            copies.tensors.insert(format!("encoder.albert_layer_groups.{g}.{}", &name[first.len()..]), tensor.clone());
        }
    }
    let ids = Tensor::i32(&[3, 11], tokens(67, 33, 61)).unwrap();
    let run = |t: &Tiny, backend| {
        session(&compiled(t, RunPolicy::default()), backend).run(&[("input_ids", ids.clone())]).unwrap()
    };
    for backend in BACKENDS {
        assert_eq!(run(&one, backend), run(&copies, backend), "{backend:?}");
    }
}

/// A checkpoint of published sizes: names and shapes, its bytes all zero and never read.
fn hollow(sizes: Sizes, heads: usize) -> LoadedModel {
    let dir = tempfile::tempdir().unwrap();
    let config: serde_json::Map<String, Value> =
        config(sizes, heads, 512).into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    std::fs::write(dir.path().join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes(sizes, 512) {
        let end = at + 4 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let file = dir.path().join("model.safetensors");
    std::fs::write(&file, &start).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len((start.len() + at) as u64).unwrap();
    let model = ingest::load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let loaded = frit::model_source::compiled(&model).unwrap_or_else(|e| panic!("{e}"));
    std::mem::forget(dir);
    loaded
}

/// Parameters that a plan holds, and those of the layers that it executes.
fn parameters(m: &LoadedModel) -> [u64; 2] {
    let plan = &m.plan;
    let steps = &plan.programs[0].steps;
    let uses = |w: usize| {
        let reads = |a: &&BufferRef| **a == BufferRef::Weight(w as u32);
        steps.iter().flat_map(|s| &s.args).filter(reads).count() as u64
    };
    let stored = plan.weights.iter().enumerate().filter(|(_, w)| matches!(w.source, WeightSource::Parts(_)));
    let mut all = [0; 2];
    for (i, w) in stored {
        let n: u64 = w.shape.iter().map(|d| d.as_const().unwrap() as u64).product();
        all[0] += n;
        all[1] += n * uses(i).max(1);
    }
    all
}

/// albert-base-v2: 11.7 million parameters are held, 89.7 million are what its twelve layers work with.
#[test]
fn row_06_albert_base_holds_12_of_90_million() {
    let [held, logical] = parameters(&hollow([30000, 128, 768, 3072, 12, 1], 12));
    let millions = |n: u64| (n as f64 / 1e5).round() / 10.0;
    assert_eq!((millions(held), millions(logical)), (11.7, 89.7), "{held} and {logical}");
}
