//! Families G and I: layers run again, and outputs of several layers read together.

use crate::harness::{agrees, compiled, reads, same_bits};
use crate::support::Random;
use crate::tiny::{Form, Tiny};
use frit_compiler::ingest::policy::{LayerMix, RunPolicy};
use serde_json::json;

fn mix(weights: &[f32], normed: bool) -> RunPolicy {
    RunPolicy { layer_mix: Some(LayerMix { weights: weights.to_vec(), normed }), ..RunPolicy::default() }
}

/// Both forms of mixed layers; the last layer alone is the model.
#[test]
fn row_50_merge_decoding_mixes_layers() {
    let t = Tiny::llama(50);
    let weights = [0.0f32, 0.25, 0.0, -0.5, 0.75, 1.0];
    let wide: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
    for normed in [false, true] {
        let form = Form { mix: Some((wide.clone(), normed)), ..Form::default() };
        agrees(&t, &form, mix(&weights, normed));
        let last = compiled(&t, mix(&[0.0, 0.0, 0.0, 0.0, 0.0, 1.0], normed));
        same_bits(&last, &compiled(&t, RunPolicy::default()), t.vocab);
    }
}

/// However many layers are mixed, two more buffers at most: the sum as it was, and as a layer leaves it.
#[test]
fn mixed_layers_keep_two_buffers_at_most() {
    let t = Tiny::llama(32);
    let elements = |policy: RunPolicy| {
        let m = compiled(&t, policy);
        let at: Vec<u64> = m.plan.sizes.iter().map(|s| if s.name == "P" { 0 } else { 1 }).collect();
        let sizes = &m.plan.program("forward").unwrap().arena.sizes;
        sizes.iter().map(|d| m.plan.eval(d, &at).unwrap()).sum::<u64>()
    };
    let (mixed, plain) = (elements(mix(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], false)), elements(RunPolicy::default()));
    assert!(mixed <= plain + 2 * 64, "{mixed} elements a token, {plain} without the sum");
}

/// A second traversal of a layer, blended with the first by a gate.
#[test]
fn row_35_trol_blends_two_traversals() {
    let base = Tiny::llama(35).reordered(&[0, 0, 1, 1, 2, 2]);
    let mut t = base.clone();
    let mut r = Random::new(6);
    for l in [1, 3, 5] {
        t.random(&mut r, &Tiny::name(l, "gate.weight"), &[1, 64], 0.2);
        t.random(&mut r, &Tiny::name(l, "gate.bias"), &[1], 0.5);
    }
    t.frit["gates"] = json!([1, 3, 5].map(|l| json!({ "layer": l, "kind": "mix" })));
    agrees(&t, &Form { mixes: vec![1, 3, 5], ..Form::default() }, RunPolicy::default());
}

/// Steps: each trip of one block adds a vector of its own, and has a cache of its own.
#[test]
fn row_04_universal_transformer_adds_step_embeddings() {
    let mut t = Tiny::llama(40).reordered(&[0, 0, 0, 0]);
    let mut r = Random::new(7);
    for l in 0..4 {
        t.random(&mut r, &Tiny::name(l, "step"), &[64], 0.3);
    }
    t.frit["steps"] = json!(true);
    agrees(&t, &Form { steps: true, ..Form::default() }, RunPolicy::default());
    assert_eq!(compiled(&t, RunPolicy::default()).plan.kv_slots.len(), 4);
}

/// Two trips over a block of three layers, each trip with its own low-rank updates.
#[test]
fn row_48_relaxed_recursion_updates_each_trip() {
    let mut t = Tiny::llama(48).reordered(&[0, 1, 2, 0, 1, 2]);
    let mut r = Random::new(8);
    for l in 0..6 {
        for (part, out, from) in
            [("self_attn.q_proj", 64, 64), ("mlp.down_proj", 64, 128), ("self_attn.k_proj", 32, 64)]
        {
            t.random(&mut r, &Tiny::name(l, &format!("{part}.lora_a.weight")), &[4, from], 0.2);
            t.random(&mut r, &Tiny::name(l, &format!("{part}.lora_b.weight")), &[out, 4], 0.2);
        }
    }
    t.frit["lora"] = json!(4);
    agrees(&t, &Form { lora: true, ..Form::default() }, RunPolicy::default());
}

/// One layer run again and again is one set of weights and as many caches; the bits are those of copies.
#[test]
fn row_07_recurrent_stacking_has_a_cache_for_each_trip() {
    let base = Tiny::llama(7);
    let (tied, copies) = (base.tied(&[0; 6]), base.reordered(&[0; 6]));
    let (a, b) = (compiled(&tied, RunPolicy::default()), compiled(&copies, RunPolicy::default()));
    assert_eq!((a.plan.kv_slots.len(), reads(&a.plan, "q_proj").len()), (6, 1));
    same_bits(&a, &b, base.vocab);
}

/// Each layer twice in a row.
#[test]
fn row_40_mobilellm_repeats_layers() {
    let base = Tiny::llama(401);
    let order = [0, 0, 1, 1, 2, 2];
    let (tied, copies) = (base.tied(&order), base.reordered(&order));
    let (a, b) = (compiled(&tied, RunPolicy::default()), compiled(&copies, RunPolicy::default()));
    assert_eq!((a.plan.kv_slots.len(), reads(&a.plan, "mlp.up_proj").len()), (6, 3));
    same_bits(&a, &b, base.vocab);
}

/// However often a block runs, its kernels are compiled once.
#[test]
fn row_49_kernels_do_not_grow_with_trips() {
    let base = Tiny::llama(49);
    let kernels = |trips: usize| compiled(&base.tied(&vec![0; trips]), RunPolicy::default()).plan.kernels.len();
    assert_eq!([kernels(2), kernels(6), kernels(24)], [kernels(12); 3]);
}
