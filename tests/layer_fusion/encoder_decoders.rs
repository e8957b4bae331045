//! Models with two stacks: parts shared between layers and stacks, parts dropped, depths chosen, against their definition
//! and against models made by hand.

use crate::checkpoints::*;
use crate::edits::by_hand;
use crate::harness::{BACKENDS, session};
use crate::stacks::{Written, defined};
use crate::support;
use frit::{BackendChoice, GenerateOptions, LoadedModel, Tensor};
use frit_compiler::Model;
use frit_compiler::fusion::FusionOptions;
use frit_compiler::ingest::policy::RunPolicy;
use frit_compiler::ingest::{self, LoadOptions};
use frit_compiler::transform::{Checkpoint, Tied};
use frit_plan::BufferRef;
use serde_json::json;
use std::ops::ControlFlow;

/// T1: two rows of 9 tokens in front of the encoder and of 6 in front of the decoder, as the definition says.
fn as_defined(c: &Checkpoint, depth: [usize; 2]) {
    let rows = |seed: u64, n| [0, 1].map(|i| crate::harness::tokens(seed + i, n, 61));
    let (ids, decoder_ids) = (rows(31, 9), rows(33, 6));
    let written = Written::of(c, 4);
    let want: Vec<_> = ids.iter().zip(&decoder_ids).map(|(a, b)| written.t5(a, b, depth)).collect();
    let inputs: [(&str, &[Vec<i32>]); 2] = [("input_ids", &ids), ("decoder_input_ids", &decoder_ids)];
    defined(&compiled(c, Tied::Once), &inputs, &want);
}

/// What the decoder writes of two rows, 5 tokens each.
fn written(m: &LoadedModel, backend: BackendChoice) -> Vec<Vec<u32>> {
    let source = [("input_ids", Tensor::i32(&[2, 8], crate::harness::tokens(35, 16, 61)).unwrap())];
    let options = GenerateOptions { max_new_tokens: 5, ignore_eos: true, ..Default::default() };
    let made = session(m, backend).generate_from(&source, &[], &options, &mut |_| ControlFlow::Continue(()));
    made.unwrap_or_else(|e| panic!("{e}")).rows.into_iter().map(|r| r.tokens).collect()
}

fn launches(m: &LoadedModel, program: &str) -> usize {
    m.plan.program(program).unwrap().steps.len()
}

/// The graph under a policy.
fn loaded(c: &Checkpoint, policy: RunPolicy) -> Model {
    let dir = saved(c, Tied::Once);
    let load = LoadOptions { policy, ..LoadOptions::default() };
    let model = ingest::load_with(&dir.path().join("m"), &load).unwrap_or_else(|e| panic!("{e}"));
    std::mem::forget(dir);
    model
}

/// One feed-forward part for all layers of the encoder, none in the decoder: bytes, launches, bits of the copies, and the
/// definition.
#[test]
fn row_01_one_wide_ffn_of_two_stacks() {
    let c = t5(4, 4);
    let steps = json!([
        { "transform": "share-ffn", "layers": "enc:all", "init": "mean" },
        { "transform": "drop-ffn", "layers": "dec:all" },
    ]);
    let wide = edited(&c, steps);
    let part = 2 * 32 * 64 * 4;
    // Three of the encoder's four parts, and the decoder's four with their norms.
    assert_eq!(c.bytes().unique - wide.bytes().unique, 3 * part + 4 * (part + 32 * 4));
    same_pairs(&wide, &wide, [Tied::Once, Tied::Copies]);
    as_defined(&wide, [4, 4]);
    let (a, b) = (compiled(&wide, Tied::Once), compiled(&c, Tied::Once));
    assert!(
        launches(&a, "decode") + 2 * 4 <= launches(&b, "decode"),
        "{} of {}",
        launches(&a, "decode"),
        launches(&b, "decode")
    );
    for backend in BACKENDS {
        assert_eq!(written(&a, backend), written(&compiled(&wide, Tied::Copies), backend), "{backend:?}");
    }
    // Some layers of either side; their numbers follow when layers go.
    let some = edited(
        &c,
        json!([{ "transform": "drop-ffn", "layers": "dec:1,dec:3" }, { "transform": "drop-ffn", "layers": "enc:2" }]),
    );
    as_defined(&some, [4, 4]);
    let cut = edited(
        &some,
        json!([{ "transform": "prune-layers", "layers": "dec:0" }, { "transform": "prune-layers", "layers": "enc:0-1" }]),
    );
    assert_eq!(cut.config["frit"], json!({ "drop_ffn": [0, 2], "drop_encoder_ffn": [0] }));
    as_defined(&cut, [2, 3]);
    let said = refused(&some, json!([{ "transform": "drop-ffn", "layers": "dec:3" }]));
    assert!(said.contains("layer 3 has no such part"), "{said}");
    // T4: a part of each of its own.
    same(&edited(&c, json!([{ "transform": "share-ffn", "layers": "enc:1" }])), &c);
}

/// Layers with the same weights read the encoder alike: its keys and values are made once and kept once for all of them.
/// The copies make and keep them for each, and give the same bits.
#[test]
fn row_07_keys_of_the_encoder_are_made_once() {
    let c = t5(2, 6);
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "all", "stack": "dec" }]));
    let (once, copies) = (compiled(&shared, Tied::Once), compiled(&shared, Tied::Copies));
    let crossed = |m: &LoadedModel| m.plan.kv_slots.iter().filter(|s| s.name.starts_with("cross")).count();
    let own = |m: &LoadedModel| m.plan.kv_slots.len() - crossed(m);
    assert_eq!((crossed(&once), own(&once)), (1, 6));
    assert_eq!((crossed(&copies), own(&copies)), (6, 6));
    let filled = |m: &LoadedModel| {
        let steps = &m.plan.program("encode").unwrap().steps;
        let all = steps.iter().flat_map(|s| &s.args).filter(|a| matches!(a, BufferRef::Kv { .. }));
        all.collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!((filled(&once), filled(&copies)), (2, 12));
    assert!(launches(&once, "encode") < launches(&copies, "encode"));
    same_pairs(&shared, &shared, [Tied::Once, Tied::Copies]);
    for backend in BACKENDS {
        assert_eq!(written(&once, backend), written(&copies, backend), "{backend:?}");
    }
    as_defined(&shared, [2, 6]);
    // Two sets of weights in turn are two slots.
    let cycle = edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:2", "stack": "dec" }]));
    assert_eq!(crossed(&compiled(&cycle, Tied::Once)), 2);
    as_defined(&cycle, [2, 6]);
    // T4: one trip.
    let one = edited(&c, json!([{ "transform": "truncate", "decoder-layers": 1 }]));
    let shared = edited(&one, json!([{ "transform": "share-layers", "pattern": "all", "stack": "dec" }]));
    same(&shared, &one);
}

/// Encoder and decoder tied, cross-attention too: the definition; and a file that stores every tensor twice is one buffer
/// each when contents are compared.
#[test]
fn row_09_tied_transformers_are_their_definition() {
    let c = edited(&t5(3, 3), json!([{ "transform": "tie-encoder-decoder", "cross": true }]));
    as_defined(&c, [3, 3]);
    let dir = saved(&c, Tied::Copies);
    let load = LoadOptions { dedupe: true, ..LoadOptions::default() };
    let model = ingest::load_with(&dir.path().join("m"), &load).unwrap();
    let deduped = frit::model_source::compiled(&model).unwrap();
    assert_eq!(deduped.plan.tensor_names(), compiled(&c, Tied::Once).plan.tensor_names());
    assert!(deduped.plan.tensor_names().len() < compiled(&c, Tied::Copies).plan.tensor_names().len());
}

/// A depth of either side asked for at run time is the model cut there, bit by bit, in all 36 ways; what it writes too.
#[test]
fn row_20_every_depth_is_the_model_cut_there() {
    let c = t5(6, 6);
    let ids = |seed, n: u64| Tensor::i32(&[2, n], crate::harness::tokens(seed, 2 * n as usize, 61)).unwrap();
    let inputs = [("input_ids", ids(1, 7)), ("decoder_input_ids", ids(2, 4))];
    for (n, m) in (1..=6).flat_map(|n| (1..=6).map(move |m| (n, m))) {
        // All on the CPU, whose plans need no texts, without a search for cheaper regions and the ways to run that are not
        // run; some of both sides on both backends, writing too.
        let writes = [[1, 6], [4, 4], [6, 1]].contains(&[n, m]);
        let make = |c: &Checkpoint, depth| {
            let mut model = loaded(c, RunPolicy { depth, ..RunPolicy::default() });
            assert_eq!(model.tables.kv_slots.len(), 2 * m as usize);
            if writes {
                return support::compile(&model);
            }
            model.graphs.retain(|g| g.name == "forward");
            let options = FusionOptions { exact: false, ..FusionOptions::default() };
            support::compile_with(&model, options, Vec::new())
        };
        let (at, cut) = (make(&c, Some([n, m])), make(&by_hand(&c, [n as usize, m as usize]), None));
        for backend in BACKENDS.into_iter().filter(|b| *b == BackendChoice::Cpu || writes) {
            let [a, b] = [&at, &cut].map(|m| session(m, backend).run(&inputs).unwrap());
            assert_eq!(a, b, "{n} and {m} on {backend:?}");
            if writes {
                assert_eq!(written(&at, backend), written(&cut, backend), "{n} and {m} on {backend:?}");
            }
        }
    }
    as_defined(&edited(&c, json!([{ "transform": "truncate", "encoder-layers": 5, "decoder-layers": 2 }])), [5, 2]);
    let wrong = |depth| {
        let dir = saved(&c, Tied::Once);
        let load = LoadOptions {
            policy: RunPolicy { depth, exit_layer: depth.map(|d| d[1]).filter(|d| *d == 1), ..RunPolicy::default() },
            ..LoadOptions::default()
        };
        ingest::load_with(&dir.path().join("m"), &load).map(drop).unwrap_err().to_string()
    };
    assert!(
        wrong(Some([7, 0])).contains("7 layers of a stack of 6")
            && wrong(Some([7, 0])).contains("0 layers of a stack of 6")
    );
    assert!(wrong(Some([1, 1])).contains("but for the depth"), "{}", wrong(Some([1, 1])));
}
