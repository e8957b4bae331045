//! Families G and I: layers run again, and outputs of several layers read together.

use crate::harness::{
    BACKENDS, agrees, cache_bytes, compiled, compiled_with, logits, reads, refused, same_bits, tokens, verified,
};
use crate::support::Random;
use crate::tiny::{Form, Tiny};
use frit_compiler::CompileOptions;
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

/// Outputs of all layers, normalised and weighed, come to the head; the sum is accumulated as they are made.
#[test]
fn row_32_gtrans_accumulates_the_outputs_of_layers() {
    let t = Tiny::llama(32);
    let weights = [0.1f32, 0.2, 0.15, 0.25, 0.05, 0.25];
    let wide: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
    agrees(&t, &Form { mix: Some((wide, true)), ..Form::default() }, mix(&weights, true));
    let last = compiled(&t, mix(&[0.0, 0.0, 0.0, 0.0, 0.0, 1.0], true));
    same_bits(&last, &compiled(&t, RunPolicy::default()), t.vocab);
}

/// However many layers are mixed, two more buffers at most: the sum as it was, and as a layer leaves it.
#[test]
fn row_32_gtrans_keeps_two_buffers_at_most() {
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

/// One body for all layers, or each layer by itself: the same launches of the same kernels, and the same bits. A layer that
/// is other than the rest is no part of the loop.
#[test]
fn row_49_kernel_looping_compiles_one_body() {
    let looped = CompileOptions::default();
    let unrolled = CompileOptions { outline: false, ..CompileOptions::default() };
    let mut odd = Tiny::sized(491, 16, 64, [4, 2, 16], 128, 97);
    odd.frit["drop_ffn"] = json!([7]);
    odd.without(7, &["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]);
    odd.without(7, &["post_attention_layernorm.weight"]);
    for (t, repeats) in
        [(Tiny::sized(490, 12, 64, [4, 2, 16], 128, 97), true), (odd, true), (Tiny::llama(492).reordered(&[0]), false)]
    {
        let (a, b) = (
            compiled_with(&t, RunPolicy::default(), looped.clone()),
            compiled_with(&t, RunPolicy::default(), unrolled.clone()),
        );
        let instances = |m: &frit::LoadedModel| m.plan.report.phases.iter().map(|p| p.instances).collect::<Vec<_>>();
        assert!(instances(&b).iter().all(|n| *n == 0));
        assert_eq!(instances(&a).iter().all(|n| *n > 0), repeats, "{:?}", instances(&a));
        let steps = |m: &frit::LoadedModel| m.plan.programs.iter().map(|p| p.steps.len()).collect::<Vec<_>>();
        assert_eq!((steps(&a), a.plan.kernels.len()), (steps(&b), b.plan.kernels.len()));
        let work = |m: &frit::LoadedModel| m.plan.report.phases.iter().map(|p| p.work).sum::<u64>();
        assert!(!repeats || work(&a) < work(&b), "{} and {}", work(&a), work(&b));
        same_bits(&a, &b, t.vocab);
    }
}

/// Behind some layers every token attends to its own states so far; an output map of zeros changes no bit, and nothing of
/// it is cached.
#[test]
fn row_33_layer_wise_representation_fusion() {
    let mut t = Tiny::llama(33);
    let mut r = Random::new(9);
    let layers = [0, 2, 5];
    for l in layers {
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            t.random(&mut r, &Tiny::name(l, &format!("layer_attention.{part}.weight")), &[64, 64], 0.3);
        }
    }
    t.frit["layer_attention"] = json!(layers);
    agrees(&t, &Form { layer_attention: layers.to_vec(), ..Form::default() }, RunPolicy::default());
    verified(&compiled(&t, RunPolicy::default()));
    let plain = Tiny::llama(33);
    let bytes = |t: &Tiny| cache_bytes(&compiled(t, RunPolicy::default()).plan, 1, 5);
    assert_eq!(bytes(&t), bytes(&plain));
    for l in layers {
        let zero = t.tensors.get_mut(&Tiny::name(l, "layer_attention.o_proj.weight")).unwrap();
        zero.1.iter_mut().for_each(|w| *w = 0.0);
    }
    same_bits(&compiled(&t, RunPolicy::default()), &compiled(&plain, RunPolicy::default()), t.vocab);
    t.frit["layer_attention"] = json!([6]);
    assert!(refused(&t, RunPolicy::default()).contains("names layer 6"));
}

/// A block of two layers run three times, with tokens that stop when they are done.
fn halting(seed: u64, bias: f32) -> Tiny {
    let mut t = Tiny::llama(seed).reordered(&[0, 1, 0, 1, 0, 1]);
    let mut r = Random::new(seed);
    for l in [0, 2, 4] {
        t.random(&mut r, &Tiny::name(l, "halt.weight"), &[1, 64], 0.35);
        t.tensors.insert(Tiny::name(l, "halt.bias"), (vec![1], vec![bias]));
    }
    for l in 0..6 {
        t.random(&mut r, &Tiny::name(l, "step"), &[64], 0.3);
    }
    t.frit["steps"] = json!(true);
    t
}

/// Adaptive computation time by the paper's update: who stops when, what a stopped token keeps, and how many trips ran.
#[test]
fn row_04_universal_transformer_halts_by_token() {
    let mut t = halting(44, 0.2);
    let threshold = 0.9f32;
    t.frit["halt"] = json!({ "body": 2, "threshold": threshold });
    let form = Form { steps: true, halt: Some((2, f64::from(threshold))), ..Form::default() };
    let want = agrees(&t, &form, RunPolicy::default());
    let trips: Vec<usize> = want.iter().flat_map(|w| w.trips.clone()).collect();
    // The weights of a token that stopped add up to one.
    let sums = want.iter().flat_map(|w| w.weights.iter().zip(&w.trips));
    assert!(sums.filter(|(_, trips)| **trips < 3).all(|(sum, _)| (sum - 1.0).abs() < 1e-15));
    let took = |n: usize| trips.iter().filter(|t| **t == n).count() as u64;
    assert!((1..=3).all(|n| took(n) > 0), "{trips:?}");
    let m = compiled(&t, RunPolicy::default());
    for backend in BACKENDS {
        let stats = logits(&m, backend, &[tokens(3, 11, t.vocab), tokens(4, 11, t.vocab)]).1;
        let counted: Vec<u64> = (1..=3).map(|n| stats.trips.get(&n).copied().unwrap_or(0)).collect();
        assert_eq!(counted, [took(1), took(2), took(3)], "{backend:?}");
        assert_eq!(stats.layers_run, 2 * trips.iter().sum::<usize>() as u64, "{backend:?}");
    }
    verified(&m);
}

/// Tokens that are done at once run one trip, bit by bit: the launches behind it are not made.
#[test]
fn row_04_universal_transformer_that_halts_at_once_is_one_trip() {
    let mut t = halting(45, 0.0);
    t.frit["halt"] = json!({ "body": 2, "threshold": -1.0 });
    let m = compiled(&t, RunPolicy::default());
    let mut once = t.reordered(&[0, 1]);
    once.frit = json!({ "steps": true });
    for l in [0, 1] {
        once.tensors.remove(&Tiny::name(l, "halt.weight"));
        once.tensors.remove(&Tiny::name(l, "halt.bias"));
    }
    same_bits(&m, &compiled(&once, RunPolicy::default()), t.vocab);
    t.frit["halt"] = json!({ "body": 4, "threshold": 0.9 });
    assert!(refused(&t, RunPolicy::default()).contains("trips of 4 layers in a model of 6"));
    t.frit["halt"] = json!({ "body": 2, "threshold": 0.9 });
    let e = refused(&t, RunPolicy { exit_layer: Some(3), ..RunPolicy::default() });
    assert!(e.contains("decide by themselves"), "{e}");
}
