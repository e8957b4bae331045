//! Checkpoints whose layers take keys, values and attention from others, made by transforms.

use crate::checkpoints::*;
use crate::tiny::{Form, Tiny};
use frit_compiler::transform::Checkpoint;
use frit_compiler::transform::dense::Dense;
use serde_json::json;
use std::collections::BTreeMap;

fn sources(c: &Checkpoint) -> Vec<usize> {
    let map = c.config["frit"]["kv_map"].as_array().unwrap();
    map.iter().map(|s| s["k"].as_u64().unwrap() as usize).collect()
}

fn form(c: &Checkpoint) -> Form {
    let of: BTreeMap<usize, usize> = sources(c).into_iter().enumerate().filter(|(i, s)| i != s).collect();
    Form { keys: of.clone(), values: of, ..Form::default() }
}

#[test]
fn row_23_cla_made_from_a_checkpoint() {
    let t = Tiny::llama(73);
    let c = checkpoint(&t);
    let cla = edited(&c, json!([{ "transform": "share-kv", "pattern": "cla:2" }]));
    assert_eq!(sources(&cla), [0, 0, 2, 2, 4, 4]);
    let k = |l: usize| values(&c, &at(l, MAPS[1]));
    is(&cla, &at(2, MAPS[1]), &Dense::combine("", &[(0.5, &k(2)), (0.5, &k(3))]).unwrap());
    assert!(!cla.has(&at(3, MAPS[1])) && !cla.has(&at(3, MAPS[2])));
    agrees(&cla, &t, &form(&cla));
    same(&edited(&c, json!([{ "transform": "share-kv", "pattern": "cla:1" }])), &c);
}

#[test]
fn row_28_mlkv_made_from_a_checkpoint() {
    let t = Tiny::llama(28);
    let c = checkpoint(&t);
    let mlkv = edited(&c, json!([{ "transform": "share-kv", "kv-layers": 2, "kv-heads": 1 }]));
    assert_eq!(sources(&mlkv), [0, 0, 0, 3, 3, 3]);
    assert_eq!(mlkv.sizes().unwrap().kv_heads, 1);
    let v = values(&mlkv, &at(3, MAPS[2]));
    let want: f64 = (3..6).flat_map(|l| [0, 16].map(|h| values(&c, &at(l, MAPS[2])).at(h + 5, 7))).sum::<f64>() / 6.0;
    assert!((v.at(5, 7) - want).abs() < 1e-7);
    agrees(&mlkv, &t, &form(&mlkv));
    let running = edited(&c, json!([{ "transform": "share-kv", "kv-layers": 1, "init": "running-mean" }]));
    let weights = [1.0 / 32.0, 1.0 / 32.0, 1.0 / 16.0, 1.0 / 8.0, 1.0 / 4.0, 1.0 / 2.0];
    let want: f64 = (0..6).map(|l| weights[l] * values(&c, &at(l, MAPS[1])).at(3, 4)).sum();
    assert!((values(&running, &at(0, MAPS[1])).at(3, 4) - want).abs() < 1e-7);
    same(&edited(&c, json!([{ "transform": "share-kv", "kv-layers": 6, "kv-heads": 2 }])), &c);
}

#[test]
fn row_16_lckv_keeps_3_of_22() {
    let deep = Tiny::sized(16, 22, 16, [2, 1, 8], 16, 31);
    let c = checkpoint(&deep);
    let lckv = edited(&c, json!([{ "transform": "share-kv", "map": "0_20_…_20_21" }]));
    assert_eq!(sources(&lckv)[1..21], [20; 20]);
    assert!((0..22).filter(|l| lckv.has(&at(*l, MAPS[1]))).eq([0, 20, 21]));
    assert_eq!(c.bytes().unique - lckv.bytes().unique, 19 * 2 * 16 * 8 * 4);
    same(
        &edited(
            &c,
            json!([{ "transform": "share-kv", "map": (0..22).map(|l| l.to_string()).collect::<Vec<_>>().join("_") }]),
        ),
        &c,
    );
}

#[test]
fn row_47_values_of_the_first_layer() {
    let t = Tiny::llama(47);
    let c = checkpoint(&t);
    let first = edited(&c, json!([{ "transform": "share-kv", "v-from": 0, "init": "own" }]));
    assert_eq!(values(&first, &at(0, MAPS[2])), values(&c, &at(0, MAPS[2])));
    assert!(!first.has(&at(4, MAPS[2])) && first.has(&at(4, MAPS[1])));
    agrees(&first, &t, &Form { values: (1..6).map(|l| (l, 0)).collect(), ..Form::default() });
    let blend = edited(&c, json!([{ "transform": "value-residual", "lambda": ".25,.75" }]));
    agrees(&blend, &t, &Form { blend: Some([0.25, 0.75]), ..Form::default() });
    same(&edited(&c, json!([{ "transform": "value-residual", "lambda": "1,0" }])), &c);
}

#[test]
fn row_43_shared_attention_made_from_a_checkpoint() {
    let t = Tiny::llama(74);
    let c = checkpoint(&t);
    let shared = edited(&c, json!([{ "transform": "share-attention", "spans": "1-2,4-5" }]));
    assert_eq!(shared.config["frit"]["probs_from"], json!([0, 1, 1, 3, 4, 4]));
    assert!(!shared.has(&at(2, MAPS[0])) && !shared.has(&at(5, MAPS[1])) && shared.has(&at(5, MAPS[2])));
    agrees(&shared, &t, &Form { probs: [(2, 1), (5, 4)].into_iter().collect(), ..Form::default() });
    same(&edited(&c, json!([{ "transform": "share-attention", "spans": "3" }])), &c);
}

#[test]
fn row_08_san_made_from_a_checkpoint() {
    let t = Tiny::llama(8);
    let c = checkpoint(&t);
    let output = edited(&c, json!([{ "transform": "share-attention", "groups": "1-2", "what": "output" }]));
    assert!(!output.has(&at(2, MAPS[2])));
    agrees(&output, &t, &Form { outputs: [(2, 1)].into_iter().collect(), ..Form::default() });
    same(&edited(&c, json!([{ "transform": "share-attention", "block": 1 }])), &c);
}

#[test]
fn row_44_echoatt_saves_queries_and_keys() {
    let c = checkpoint(&Tiny::llama(44));
    let step = json!([{ "transform": "share-attention", "skip-first": 1, "skip-last": 1, "block": 2 }]);
    let blocks = edited(&c, step);
    assert_eq!(blocks.config["frit"]["probs_from"], json!([0, 1, 1, 3, 3, 5]));
    assert_eq!(c.bytes().unique - blocks.bytes().unique, 2 * 4 * (64 * 64 + 32 * 64));
    // TinyLlama-1.1B: 22 layers of 2048, 4 key heads of 64; W_Q and W_K of ten sharers.
    let saved = 10 * (2048 * 2048 + 256 * 2048) as u64;
    assert_eq!((saved as f64 / 1.1e9 * 100.0).round(), 4.0);
}
