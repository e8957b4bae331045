//! Family F: how deep a decoder runs, by layer and by token.

use crate::harness::{BACKENDS, agrees, compiled, logits, refused, same_bits, session, tokens, verified};
use crate::support::Random;
use crate::tiny::{Form, Tiny};
use frit::{Depth, GenerateOptions, Tensor};
use frit_compiler::ingest::policy::{ExitRule, Exits, FfnSkip, KvOnSkip, RunPolicy};
use serde_json::json;
use std::ops::ControlFlow;

fn exits(layers: &[u32], rule: ExitRule) -> RunPolicy {
    RunPolicy { exits: Some(Exits { layers: layers.to_vec(), rule }), ..RunPolicy::default() }
}

fn ffn_skip(threshold: f32, cold: &[u32], warmup: u32) -> RunPolicy {
    RunPolicy { ffn_skip: Some(FfnSkip { threshold, cold: cold.to_vec(), warmup }), ..RunPolicy::default() }
}

/// A fixed exit is the model cut there, bit by bit.
#[test]
fn lt_04_early_exit_after_n_layers_is_the_truncated_model() {
    let t = Tiny::llama(4);
    for n in [1, 3, 6] {
        let order: Vec<usize> = (0..n).collect();
        let exit = RunPolicy { exit_layer: Some(n as u32), ..RunPolicy::default() };
        let m = compiled(&t, exit);
        assert_eq!(m.plan.kv_slots.len(), n);
        same_bits(&m, &compiled(&t.reordered(&order), RunPolicy::default()), t.vocab);
    }
    assert!(refused(&t, RunPolicy { exit_layer: Some(7), ..RunPolicy::default() }).contains("6 layers"));
}

/// A layer left out at run time is a layer pruned; positions stay.
#[test]
fn lt_03_skipped_layers_are_pruned_layers() {
    let t = Tiny::llama(3);
    let m = compiled(&t, RunPolicy { skip_layers: vec![1, 4], ..RunPolicy::default() });
    assert_eq!(m.plan.model.layers, 4);
    same_bits(&m, &compiled(&t.reordered(&[0, 2, 3, 5]), RunPolicy::default()), t.vocab);
}

/// A threshold that nothing reaches changes no bit.
#[test]
fn row_37_a_threshold_of_infinity_is_the_model() {
    let t = Tiny::llama(37);
    let m = compiled(&t, exits(&[2, 4], ExitRule::Confidence(f32::INFINITY)));
    same_bits(&m, &compiled(&t, RunPolicy::default()), t.vocab);
    let skip = compiled(&t, ffn_skip(2.0, &[0, 5], 0));
    same_bits(&skip, &compiled(&t, RunPolicy::default()), t.vocab);
}

/// Each token of each row leaves where the definition says, and its logits are those of its exit.
#[test]
fn row_37_tokens_leave_by_confidence() {
    let t = Tiny::llama(373);
    // A threshold in the widest gap between confidences, so that no rounding decides.
    let (threshold, _) = widest(&t, &[2, 4]);
    let form = Form { exits: vec![(2, threshold), (4, threshold)], ..Form::default() };
    let policy = exits(&[2, 4], ExitRule::Confidence(threshold as f32));
    let m = compiled(&t, policy);
    let rows = vec![tokens(3, 11, t.vocab), tokens(4, 11, t.vocab)];
    let want: Vec<_> = rows.iter().map(|r| t.run(&form, r)).collect();
    let run: usize = want.iter().flat_map(|w| &w.layers_run).sum();
    assert!(run < 22 * 6 && run > 22 * 2, "{run} layers of {}", 22 * 6);
    let flat: Vec<f64> = want.iter().flat_map(|w| w.logits.concat()).collect();
    let most = flat.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for backend in BACKENDS {
        let (got, stats) = logits(&m, backend, &rows);
        assert_eq!((stats.tokens, stats.layers_run), (22, run as u64), "{backend:?}");
        let left = |n: usize| want.iter().flat_map(|w| &w.layers_run).filter(|l| **l == n).count() as u64;
        for n in [2, 4, 6] {
            assert_eq!(stats.exit_histogram.get(&(n as u32)).copied().unwrap_or(0), left(n), "{backend:?}: exit {n}");
        }
        for (g, w) in got.as_f32().unwrap().iter().zip(&flat) {
            assert!((f64::from(*g) - w).abs() <= 1e-4 * most, "{backend:?}: {g}, {w} expected");
        }
    }
}

/// The threshold furthest from every confidence at the exits, and how far it is.
fn widest(t: &Tiny, after: &[usize]) -> (f64, f64) {
    let mut seen = Vec::new();
    for n in after {
        let cut = t.reordered(&(0..*n).collect::<Vec<_>>());
        for seed in [3, 4] {
            for l in cut.run(&Form::default(), &tokens(seed, 11, t.vocab)).logits {
                let most = l.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                seen.push(1.0 / l.iter().map(|v| (v - most).exp()).sum::<f64>());
            }
        }
    }
    seen.sort_by(f64::total_cmp);
    let (low, high) = (seen.len() / 4, 3 * seen.len() / 4);
    let gaps = seen[low..high].windows(2).map(|w| (0.5 * (w[0] + w[1]), 0.5 * (w[1] - w[0])));
    gaps.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

/// Where every token has left, the launches behind the exit are not made: on the CPU they are counted.
#[test]
fn lt_04_nobody_left_means_nothing_launched() {
    let t = Tiny::llama(41);
    let ids = Tensor::i32(&[1, 6], tokens(1, 6, t.vocab)).unwrap();
    let launches = |threshold: f32| {
        let m = compiled(&t, exits(&[1, 3], ExitRule::Confidence(threshold)));
        let mut s = session(&m, frit::BackendChoice::Cpu);
        s.run(&[("input_ids", ids.clone())]).unwrap();
        (s.counters().dispatches, s.stats().layers_run)
    };
    let m = compiled(&t, exits(&[1, 3], ExitRule::Confidence(0.0)));
    let steps = &m.plan.program("forward").unwrap().steps;
    let listed: Vec<String> = steps.iter().map(|s| format!("{} when {:?}", s.label, s.when)).collect();
    let (all, ran_all) = launches(f32::INFINITY);
    let (few, ran_few) = launches(0.0);
    assert_eq!((ran_all, ran_few), (36, 6));
    // Of the five layers behind the exit each keeps the launch that appends keys and values, and the select.
    assert!(few + 5 * 4 <= all, "{few} of {all} launches: {listed:#?}");
}

/// Everybody leaves at the first exit: the run is the truncated model, and its cache goes on with states that passed.
#[test]
fn lt_09_keys_of_layers_behind_an_exit_are_made_of_the_state_that_left() {
    let t = Tiny::llama(9);
    let form = Form { exits: vec![(2, 0.0)], ..Form::default() };
    let m = compiled(&t, exits(&[2], ExitRule::Confidence(0.0)));
    assert_eq!(m.plan.kv_slots.len(), 6);
    agrees(&t, &form, exits(&[2], ExitRule::Confidence(0.0)));
    let cut = compiled(&t.reordered(&[0, 1]), RunPolicy::default());
    same_bits(&m, &cut, t.vocab);
}

/// Other rules: a margin of 0 and one sighting are met at once; a margin above 1 and too many sightings never.
#[test]
fn row_37_margin_and_saturation() {
    let t = Tiny::llama(375);
    let whole = compiled(&t, RunPolicy::default());
    let cut = compiled(&t.reordered(&[0, 1]), RunPolicy::default());
    same_bits(&compiled(&t, exits(&[2, 4], ExitRule::Margin(1.5))), &whole, t.vocab);
    same_bits(&compiled(&t, exits(&[2, 4], ExitRule::Saturation(3))), &whole, t.vocab);
    same_bits(&compiled(&t, exits(&[2, 4], ExitRule::Margin(-1.0))), &cut, t.vocab);
    same_bits(&compiled(&t, exits(&[2, 4], ExitRule::Saturation(1))), &cut, t.vocab);
}

/// Feed-forward parts are skipped token by token as the definition says; cold layers and the first tokens never.
#[test]
fn row_17_ffn_skip_is_greedy_by_token() {
    let mut t = Tiny::llama(17);
    for l in 0..6 {
        // Parts that change a state little, some less than others.
        let down = t.tensors.get_mut(&Tiny::name(l, "mlp.down_proj.weight")).unwrap();
        down.1.iter_mut().for_each(|w| *w *= 0.35);
    }
    // The text and the threshold of those tried whose decisions are the clearest, where tokens of both rows decide unlike.
    let at = |threshold: f64| Form { ffn_skip: Some((threshold, vec![0, 5], 3)), ..Form::default() };
    let mut best = (0.0f64, 0.0, [Vec::new(), Vec::new()]);
    for (seed, k) in (0..12).flat_map(|seed| (0..30).map(move |k| (seed, k))) {
        let (ids, threshold) = ([0, 1].map(|row| tokens(2 * seed + row, 7, t.vocab)), 0.925 + f64::from(k) / 500.0);
        let runs = ids.each_ref().map(|i| t.run(&at(threshold), i));
        let margin = runs.iter().map(|r| r.margin).fold(f64::INFINITY, f64::min);
        let differ = runs.iter().all(|r| r.ffn_run[3..].iter().any(|n| *n != r.ffn_run[3]));
        if margin > best.0 && differ && runs[0].ffn_run != runs[1].ffn_run {
            best = (margin, threshold, ids);
        }
    }
    let (margin, threshold, ids) = best;
    assert!(margin >= 1e-3, "{margin}");
    let form = at(threshold);
    let m = compiled(&t, ffn_skip(threshold as f32, &[0, 5], 3));
    let want: Vec<_> = ids.iter().map(|i| t.run(&form, i)).collect();
    let flat: Vec<f64> = want.iter().flat_map(|w| w.logits.concat()).collect();
    let most = flat.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    // The first layer that may be skipped has nothing before it to be skipped by, and always runs.
    let counted: usize = want.iter().flat_map(|w| &w.ffn_run).map(|n| n - 1).sum();
    for backend in BACKENDS {
        let (got, stats) = logits(&m, backend, &ids);
        assert_eq!((stats.ffn_run, stats.ffn_possible), (counted as u64, 14 * 3), "{backend:?}");
        for (g, w) in got.as_f32().unwrap().iter().zip(&flat) {
            assert!((f64::from(*g) - w).abs() <= 1e-4 * most, "{backend:?}: {g}, {w} expected");
        }
    }
}

/// Routers: a token that is not sent through a layer keeps its state; its keys and values are visible there.
#[test]
fn row_41_dlo_routes_tokens() {
    let mut t = Tiny::llama(411);
    let mut r = Random::new(5);
    for l in [1, 3, 4] {
        t.random(&mut r, &Tiny::name(l, "gate.weight"), &[1, 64], 0.4);
        t.random(&mut r, &Tiny::name(l, "gate.bias"), &[1], 0.1);
    }
    t.frit["gates"] = json!([1, 3, 4].map(|l| json!({ "layer": l, "kind": "route" })));
    let form = Form { routes: vec![1, 3, 4], ..Form::default() };
    // The other rule: whoever was sent past a layer is not seen there.
    let dropping = RunPolicy { kv_on_skip: KvOnSkip::Drop, ..RunPolicy::default() };
    let dropped = agrees(&t, &Form { drops: true, ..form.clone() }, dropping.clone());
    verified(&compiled(&t, dropping.clone()));
    assert!(refused(&Tiny::llama(411), dropping).contains("no layer has a router"));
    let want = agrees(&t, &form, RunPolicy::default());
    assert!(dropped.iter().zip(&want).any(|(d, w)| d.logits != w.logits), "no token that is seen was dropped");
    let run: usize = want.iter().flat_map(|w| &w.layers_run).sum();
    assert!(run > 3 * 22 && run < 6 * 22, "{run}");
    let m = compiled(&t, RunPolicy::default());
    for backend in BACKENDS {
        let stats = logits(&m, backend, &[tokens(3, 11, t.vocab), tokens(4, 11, t.vocab)]).1;
        assert_eq!(stats.layers_run, run as u64, "{backend:?}");
    }
}

/// Decisions, selects and what they guard: the kernels' texts hold under all checks.
#[test]
fn lt_04_kernels_of_exits_are_checked() {
    let t = Tiny::sized(44, 3, 32, [2, 1, 16], 48, 19);
    verified(&compiled(&t, exits(&[1, 2], ExitRule::Margin(0.2))));
    verified(&compiled(&t, ffn_skip(0.9, &[0], 1)));
}

/// What a plan says about its depth, and what a run then does: tied layers are stored once, exits and routers spare layers.
#[test]
fn lt_07_depth_is_told_before_and_after_a_run() {
    let t = Tiny::llama(70);
    let depth = |m: &frit::LoadedModel| {
        let d = Depth::of(&m.plan);
        [d.stored, d.executed, d.least]
    };
    assert_eq!(depth(&compiled(&t, RunPolicy::default())), [6, 6, 6]);
    assert_eq!(depth(&compiled(&t.tied(&[0, 1, 0, 1, 0, 1]), RunPolicy::default())), [2, 6, 6]);
    assert_eq!(depth(&compiled(&t, RunPolicy { skip_layers: vec![2], ..RunPolicy::default() })), [5, 5, 5]);
    // Updates and gates that runs of a tied layer have of their own store no layer.
    let made = |step: serde_json::Value| {
        let c = crate::checkpoints::edited(&crate::checkpoints::checkpoint(&t), json!([step]));
        depth(&crate::checkpoints::compiled(&c, frit_compiler::transform::Tied::Once))
    };
    assert_eq!(made(json!({ "transform": "recurse", "block": 2, "lora-rank": 4 })), [2, 6, 6]);
    assert_eq!(made(json!({ "transform": "traverse", "layers": "1-2", "times": 2 })), [6, 8, 8]);
    let mut routed = t.clone();
    let mut r = Random::new(7);
    routed_at(&mut routed, &mut r, 3);
    assert_eq!(depth(&compiled(&routed, RunPolicy::default())), [6, 6, 5]);
    let m = compiled(&t, exits(&[2, 4], ExitRule::Confidence(0.0)));
    assert_eq!(depth(&m), [6, 6, 2]);
    let (_, stats) = logits(&m, frit::BackendChoice::Cpu, &[tokens(3, 11, t.vocab)]);
    assert_eq!((stats.tokens, stats.layers, stats.layers_run), (11, 6, 2 * 11));
    let said = serde_json::to_value(&stats).unwrap();
    for field in ["layers_run", "ffn_run", "exit_histogram", "trips"] {
        assert!(said.get(field).is_some(), "{field} is not told");
    }
}

fn routed_at(t: &mut Tiny, r: &mut Random, layer: usize) {
    t.random(r, &Tiny::name(layer, "gate.weight"), &[1, 64], 0.4);
    t.random(r, &Tiny::name(layer, "gate.bias"), &[1], 0.1);
    t.frit["gates"] = json!([{ "layer": layer, "kind": "route" }]);
}

/// A generation says what ran.
#[test]
fn row_29_a_generation_tells_its_depth() {
    let t = Tiny::llama(29);
    let m = compiled(&t, exits(&[2], ExitRule::Confidence(0.0)));
    for backend in BACKENDS {
        let options = GenerateOptions { max_new_tokens: 4, ignore_eos: true, ..Default::default() };
        let made = session(&m, backend)
            .generate(&[vec![1, 2, 3], vec![4]], &options, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        let depth = &made.stats.depth;
        assert_eq!((depth.tokens, depth.layers, depth.layers_run), (6, 6, 12), "{backend:?}");
        assert_eq!(depth.exit_histogram.get(&2), Some(&6));
    }
}
