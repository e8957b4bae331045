//! Settings in which a technique must change nothing, bit by bit: against copies, and against the model without it.

use crate::checkpoints::{MAPS, NORMS, at, checkpoint, compiled as made, edited, logit_distance, tiny};
use crate::harness::{agrees, compiled, compiled_with, same_bits};
use crate::support::Random;
use crate::tiny::{Form, Tiny};
use frit_compiler::CompileOptions;
use frit_compiler::ingest::policy::{ExitRule, Exits, Probs, RunPolicy};
use frit_compiler::transform::Tied;
use serde_json::json;

fn zeroed(t: &mut Tiny, layer: usize, parts: &[&str]) {
    for p in parts {
        t.tensors.get_mut(&Tiny::name(layer, p)).unwrap().1.iter_mut().for_each(|w| *w = 0.0);
    }
}

/// Layers of a list add nothing to their state.
fn idle(t: &mut Tiny, layers: &[usize]) {
    layers.iter().for_each(|l| zeroed(t, *l, &[MAPS[3], MAPS[6]]));
}

fn copied(t: &mut Tiny, [from, to]: [usize; 2], parts: &[&str]) {
    for p in parts {
        let own = t.tensors[&Tiny::name(from, p)].clone();
        t.tensors.insert(Tiny::name(to, p), own);
    }
}

/// Trips rolled into one compiled body, with a vector of their own each, are the trips written one after the other.
#[test]
fn row_04_universal_transformer_rolled_is_unrolled() {
    let mut t = Tiny::sized(404, 2, 64, [4, 2, 16], 128, 97).reordered(&[0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
    let mut r = Random::new(404);
    for l in 0..12 {
        t.random(&mut r, &Tiny::name(l, "step"), &[64], 0.3);
    }
    t.frit["steps"] = json!(true);
    let [rolled, unrolled] = [true, false].map(|outline| {
        compiled_with(&t, RunPolicy::default(), CompileOptions { outline, ..CompileOptions::default() })
    });
    let bodies = |m: &frit::LoadedModel| m.plan.report.phases.iter().map(|p| p.instances).collect::<Vec<_>>();
    assert!(bodies(&rolled).iter().all(|n| *n > 0), "{:?}", bodies(&rolled));
    assert!(bodies(&unrolled).iter().all(|n| *n == 0));
    same_bits(&rolled, &unrolled, t.vocab);
}

/// Layers that use several sets of weights in turn roll into one loop over as many layers as there are sets; so does one
/// set. A cycle that turns back is two, of which the longer is rolled. The bits are those of layers compiled one by one.
#[test]
fn row_05_cycles_roll_into_one_loop() {
    let turn = |i: usize| if i < 24 { i % 3 } else { 2 - i % 3 };
    let cases: [(usize, Vec<usize>, u32); 4] = [
        (1, vec![0; 12], 7),
        (2, (0..16).map(|i| i % 2).collect(), 3),
        (3, (0..24).map(|i| i % 3).collect(), 3),
        (3, (0..27).map(turn).collect(), 3),
    ];
    let mut kernels = Vec::new();
    for (sets, order, instances) in cases {
        let t = Tiny::sized(505, sets, 64, [4, 2, 16], 128, 97).tied(&order);
        let [one, each] = [true, false].map(|outline| {
            compiled_with(&t, RunPolicy::default(), CompileOptions { outline, ..CompileOptions::default() })
        });
        let found: Vec<u32> = one.plan.report.phases.iter().map(|p| p.instances).collect();
        assert!(found.iter().all(|n| *n == instances), "{sets} sets: {found:?}");
        assert_eq!(one.plan.kernels.len(), each.plan.kernels.len());
        kernels.push(one.plan.kernels.len());
        same_bits(&one, &each, t.vocab);
    }
    assert!(kernels.iter().all(|n| *n == kernels[0]), "{kernels:?}");
}

/// A layer that has the queries, the keys and the input of the one whose probabilities it takes computes what it did.
#[test]
fn row_08_san_probabilities_of_equal_layers_are_equal() {
    let mut t = Tiny::llama(88);
    idle(&mut t, &[2]);
    copied(&mut t, [2, 3], &[NORMS[0], MAPS[0], MAPS[1]]);
    let c = checkpoint(&t);
    let shared = edited(&c, json!([{ "transform": "share-attention", "groups": "2-3" }]));
    assert!(!shared.has(&at(3, MAPS[0])) && !shared.has(&at(3, MAPS[1])) && shared.has(&at(3, MAPS[2])));
    assert!(logit_distance(&made(&shared, Tied::Once), &made(&c, Tied::Once), t.vocab) < 1e-6);
    agrees(&tiny(&shared, &t), &Form { probs: [(3, 2)].into(), ..Form::default() }, RunPolicy::default());
}

/// Keys and values that a layer takes from another are, bit by bit, those that it would have made of the same input by
/// copies of the same weights.
#[test]
fn row_23_cla_is_its_materialised_copy() {
    let mut t = Tiny::llama(238);
    idle(&mut t, &[0, 2, 4]);
    for l in [0, 2, 4] {
        copied(&mut t, [l, l + 1], &[NORMS[0], MAPS[1], MAPS[2]]);
    }
    let copies = compiled(&t, RunPolicy::default());
    let sources = [0, 0, 2, 2, 4, 4];
    t.share_kv(&sources, &sources);
    let shared = compiled(&t, RunPolicy::default());
    assert_eq!((copies.plan.kv_slots.len(), shared.plan.kv_slots.len()), (6, 3));
    same_bits(&shared, &copies, t.vocab);
}

/// Gemma-3n: 35 layers, every fifth of which sees all tokens, the last 15 of which read the last layer of their kind in
/// front of them: 20 slots.
#[test]
fn row_23_gemma_3n_keeps_20_slots_for_35_layers() {
    let mut t = Tiny::sized(235, 35, 16, [2, 1, 8], 16, 31);
    let kinds: Vec<&str> = (0..35).map(|l| if l % 5 == 4 { "full_attention" } else { "sliding_attention" }).collect();
    for l in 20..35 {
        t.without(l, &[MAPS[1], MAPS[2]]);
    }
    t.config = vec![("num_kv_shared_layers", json!(15)), ("layer_types", json!(kinds)), ("sliding_window", json!(8))];
    let m = compiled(&t, RunPolicy::default());
    assert_eq!(m.plan.kv_slots.len(), 20);
    let names: Vec<&str> = m.plan.kv_slots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        (names[18], names[19]),
        ("layer18", "layer19"),
        "the last sliding and the last full layer of those that keep"
    );
}

/// A gate that lets no second traversal through, and one module for the gates of all layers, which files store once or
/// as often as there are layers.
#[test]
fn row_35_trol_gates_closed_and_shared() {
    let base = Tiny::llama(351).reordered(&[0, 0, 1, 1, 2, 2]);
    let gated = |bias: f32, shared: bool| {
        let mut t = base.clone();
        let mut r = Random::new(6);
        for l in [1usize, 3, 5] {
            if shared && l > 1 {
                for part in ["gate.weight", "gate.bias"] {
                    let first = t.tensors[&Tiny::name(1, part)].clone();
                    t.tensors.insert(Tiny::name(l, part), first);
                }
                continue;
            }
            t.random(&mut r, &Tiny::name(l, "gate.weight"), &[1, 64], 0.2);
            t.tensors.insert(Tiny::name(l, "gate.bias"), (vec![1], vec![bias]));
        }
        t.frit["gates"] = json!([1, 3, 5].map(|l| json!({ "layer": l, "kind": "mix" })));
        t
    };
    // tanh of a hundred is one to the last bit: s is 0, and x + 0 · (y − x) is x.
    let closed = compiled(&gated(-100.0, false), RunPolicy::default());
    same_bits(&closed, &compiled(&Tiny::llama(351).reordered(&[0, 1, 2]), RunPolicy::default()), base.vocab);
    // One module for all, stored for each layer or once under all their names.
    let each = gated(0.4, true);
    let mut once = each.clone();
    for l in [3, 5] {
        for part in ["gate.weight", "gate.bias"] {
            once.tensors.remove(&Tiny::name(l, part)).unwrap();
            once.aliases.insert(Tiny::name(l, part), Tiny::name(1, part));
        }
    }
    let form = Form { mixes: vec![1, 3, 5], ..Form::default() };
    agrees(&each, &form, RunPolicy::default());
    agrees(&once, &form, RunPolicy::default());
    same_bits(&compiled(&each, RunPolicy::default()), &compiled(&once, RunPolicy::default()), base.vocab);
}

/// Traversals made from an ordinary checkpoint: gates that are closed, gates of a bias, gates of a file, and what becomes of
/// their numbers when layers go.
#[test]
fn row_35_trol_made_from_a_checkpoint() {
    let t = Tiny::sized(352, 3, 64, [4, 2, 16], 128, 97);
    let c = checkpoint(&t);
    let twice = |gate: serde_json::Value| {
        edited(&c, json!([{ "transform": "traverse", "layers": "0,2", "times": 2, "gate": gate }]))
    };
    let open = twice(json!(0.7));
    assert_eq!(open.config["frit"]["gates"], json!([{ "layer": 1, "kind": "mix" }, { "layer": 4, "kind": "mix" }]));
    assert_eq!(open.bytes().unique - c.bytes().unique, 2 * (64 + 1) * 4);
    agrees(&tiny(&open, &t), &Form { mixes: vec![1, 4], ..Form::default() }, RunPolicy::default());
    same_bits(&made(&open, Tied::Once), &made(&open, Tied::Copies), t.vocab);
    // Closed: one traversal.
    same_bits(&made(&twice(json!(-100)), Tied::Once), &compiled(&t, RunPolicy::default()), t.vocab);
    // Gates that were trained elsewhere.
    let mut trained = t.clone();
    let mut r = Random::new(8);
    for l in [0, 2] {
        trained.random(&mut r, &Tiny::name(l, "gate.weight"), &[1, 64], 0.2);
        trained.random(&mut r, &Tiny::name(l, "gate.bias"), &[1], 0.5);
    }
    let dir = trained.save();
    let read = twice(json!(dir.path()));
    assert_eq!(
        crate::checkpoints::values(&read, &at(4, "gate.bias")).data[0] as f32,
        trained.tensors[&Tiny::name(2, "gate.bias")].1[0]
    );
    agrees(&tiny(&read, &t), &Form { mixes: vec![1, 4], ..Form::default() }, RunPolicy::default());
    let pruned = edited(&read, json!([{ "transform": "prune-layers", "layers": "2" }]));
    assert_eq!(pruned.config["frit"]["gates"], json!([{ "layer": 1, "kind": "mix" }, { "layer": 3, "kind": "mix" }]));
    agrees(&tiny(&pruned, &t), &Form { mixes: vec![1, 3], ..Form::default() }, RunPolicy::default());
    // T4: once.
    let once = json!([{ "transform": "traverse", "layers": "all", "times": 1 }]);
    crate::checkpoints::same(&edited(&c, once), &c);
    let said = crate::checkpoints::refused(
        &c,
        json!([{ "transform": "traverse", "layers": "1", "times": 2, "gate": dir.path() }]),
    );
    assert!(said.contains("has no `model.layers.1.gate.weight`"), "{said}");
}

/// A list of layers whose feed-forward part nobody runs is the model without those parts.
#[test]
fn row_17_a_static_list_is_drop_ffn() {
    let t = Tiny::llama(170);
    let skipped = compiled(&t, RunPolicy { skip_ffns: vec![2, 4], ..RunPolicy::default() });
    let dropped = edited(&checkpoint(&t), json!([{ "transform": "drop-ffn", "layers": "2,4" }]));
    same_bits(&skipped, &made(&dropped, Tied::Once), t.vocab);
    let said = crate::harness::refused(&t, RunPolicy { skip_ffns: vec![6], ..RunPolicy::default() });
    assert!(said.contains("holds 6; the model has layers 0 to 5"), "{said}");
}

/// A layer that the device decides to skip for every token is a layer pruned, where nobody reads its keys.
#[test]
fn lt_03_layers_that_nobody_is_sent_through_are_pruned_layers() {
    let mut t = Tiny::llama(303);
    let plain = t.clone();
    for l in [1, 4] {
        t.tensors.insert(Tiny::name(l, "gate.weight"), (vec![1, 64], vec![0.0; 64]));
        t.tensors.insert(Tiny::name(l, "gate.bias"), (vec![1], vec![-1.0]));
    }
    t.frit["gates"] = json!([1, 4].map(|l| json!({ "layer": l, "kind": "route" })));
    let m = compiled(&t, RunPolicy::default());
    same_bits(&m, &compiled(&plain.reordered(&[0, 2, 3, 5]), RunPolicy::default()), t.vocab);
    for l in [1, 4] {
        t.tensors.insert(Tiny::name(l, "gate.bias"), (vec![1], vec![1.0]));
    }
    same_bits(&compiled(&t, RunPolicy::default()), &compiled(&plain, RunPolicy::default()), t.vocab);
}

/// Layers above an exit that add nothing: tokens that left have the keys, values and logits of those that stayed.
#[test]
fn lt_09_exits_below_idle_layers_change_nothing() {
    let mut t = Tiny::llama(909);
    idle(&mut t, &[2, 3, 4, 5]);
    let policy =
        RunPolicy { exits: Some(Exits { layers: vec![2], rule: ExitRule::Confidence(0.0) }), ..RunPolicy::default() };
    let (left, whole) = (compiled(&t, policy.clone()), compiled(&t, RunPolicy::default()));
    assert_eq!(left.plan.kv_slots.len(), whole.plan.kv_slots.len());
    same_bits(&left, &whole, t.vocab);
    // Layer 5 reads what those that left before it appended: alive again, it gives what it gives when all stay in front.
    agrees(&t, &Form { exits: vec![(2, 0.0)], ..Form::default() }, policy);
}

/// Heads taken out by hand: the same bits.
#[test]
fn lt_11_pruned_heads_are_slices() {
    let t = Tiny::sized(112, 3, 64, [8, 4, 16], 128, 97);
    let cut = edited(&checkpoint(&t), json!([{ "transform": "prune-heads", "kv-heads": "1,3" }]));
    let mut hand = t.clone();
    (hand.heads, hand.kv_heads) = (4, 2);
    let rows = |(_, v): &(Vec<u64>, Vec<f32>), heads: &[usize]| -> (Vec<u64>, Vec<f32>) {
        let kept: Vec<f32> = heads.iter().flat_map(|h| v[h * 16 * 64..][..16 * 64].to_vec()).collect();
        (vec![heads.len() as u64 * 16, 64], kept)
    };
    for l in 0..3 {
        for (part, heads) in [(MAPS[0], &[0usize, 1, 4, 5][..]), (MAPS[1], &[0, 2]), (MAPS[2], &[0, 2])] {
            let name = Tiny::name(l, part);
            let own = rows(&t.tensors[&name], heads);
            hand.tensors.insert(name, own);
        }
        let name = Tiny::name(l, MAPS[3]);
        let o = &t.tensors[&name].1;
        let kept =
            o.chunks(8 * 16).flat_map(|r| [0, 1, 4, 5].into_iter().flat_map(move |h| r[h * 16..][..16].to_vec()));
        hand.tensors.insert(name, (vec![64, 64], kept.collect()));
    }
    same_bits(&made(&cut, Tied::Once), &compiled(&hand, RunPolicy::default()), t.vocab);
}

/// Spans and blocks of one layer, and probabilities stored of a model that shares none.
#[test]
fn row_44_echoatt_blocks_of_one_are_the_model() {
    let t = Tiny::llama(440);
    let c = checkpoint(&t);
    let step = json!([{ "transform": "share-attention", "skip-first": 1, "skip-last": 1, "block": 1 }]);
    crate::checkpoints::same(&edited(&c, step), &c);
    let stored = RunPolicy { probs: Probs::Store, ..RunPolicy::default() };
    same_bits(&compiled(&t, stored), &compiled(&t, RunPolicy::default()), t.vocab);
}

/// A student made of chosen layers runs as the model that is written down with them.
#[test]
fn row_31_selections_are_rebuilt_models() {
    let t = Tiny::llama(310);
    let c = checkpoint(&t);
    for (list, order) in [("every:2", vec![0, 2, 4]), ("last:3", vec![3, 4, 5]), ("0-3", vec![0, 1, 2, 3])] {
        let student = edited(&c, json!([{ "transform": "keep-layers", "layers": list }]));
        same_bits(&made(&student, Tied::Once), &compiled(&t.reordered(&order), RunPolicy::default()), t.vocab);
    }
}
