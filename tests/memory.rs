//! Memory after fusion: a plan gives the same results when dead memory holds nonsense, values written over dying inputs
//! save memory and change nothing, and plans that break the rules are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/random_graph.rs"]
mod random_graph;
mod support;

use frit::backend::cpu::CpuExecutor;
use frit::backend::{Executor, Extent};
use frit::{LoadedModel, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::{CompileOptions, Compiler, Model};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_plan::{Plan, sizes};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::sync::Arc;
use support::Random;

const MODELS: [&str; 5] =
    ["lexicon/lexicon-q8_0.gguf", "devset/llama_gqa", "devset/qwen2", "devset/gpt2", "devset/bert"];

fn compiled(model: &Model, fusion: FusionOptions, in_place: bool) -> LoadedModel {
    let options = CompileOptions { fusion, targets: Vec::new(), in_place, ..CompileOptions::default() };
    let plan = Compiler::new(options).compile(model).unwrap();
    plan.validate().unwrap();
    LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None }
}

/// Every output of a program on random inputs, as bits.
fn outputs(model: &LoadedModel, number: usize, at: &[u64], poison: bool) -> Vec<Vec<u32>> {
    let plan = &model.plan;
    let program = &plan.programs[number];
    let mut e = CpuExecutor::bind(plan.clone(), &*model.weights, &Extent(at.to_vec()), &mut |_, _| {}).unwrap();
    if poison {
        e.poison_dead_values();
    }
    for (i, s) in plan.states.iter().enumerate() {
        let len: u64 = s.shape.iter().map(|d| plan.eval(d, at).unwrap()).product();
        e.write_state(i, at, &vec![1; len as usize]).unwrap();
    }
    let mut r = Random::new(9);
    let inputs: Vec<Tensor> = program
        .inputs
        .iter()
        .map(|p| {
            let shape: Vec<u64> = p.shape.iter().map(|d| plan.eval(d, at).unwrap()).collect();
            if p.storage.scalar() == Scalar::F32 { r.tensor(&shape) } else { r.ints(&shape, 2) }
        })
        .collect();
    let wanted: Vec<usize> = (0..program.outputs.len()).collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let first = e.run(number, at, &inputs, &wanted).unwrap();
    let bits = |t: &Tensor| match (t.as_f32(), t.as_i32()) {
        (Some(v), _) => v.iter().map(|v| v.to_bits()).collect(),
        (_, Some(v)) => v.iter().map(|v| *v as u32).collect(),
        _ => Vec::new(),
    };
    first.iter().map(bits).collect()
}

fn sizes_of(plan: &Plan, number: usize) -> Vec<u64> {
    let program = &plan.programs[number];
    let size = |name: &str| {
        let usual = match name {
            sizes::BATCH => 2,
            sizes::TOKENS => 3,
            sizes::PAST if program.name != "prefill" => 5,
            sizes::PAST => 0,
            _ => 13,
        };
        program.fixed.iter().find(|f| f.0 == name).map_or(usual, |f| f.1)
    };
    plan.sizes.iter().map(|s| size(&s.name)).collect()
}

fn arena(plan: &Plan, number: usize, at: &[u64]) -> u64 {
    plan.programs[number].arena.sizes.iter().map(|d| plan.eval(d, at).unwrap()).sum()
}

#[test]
fn models_read_nothing_that_is_dead_and_write_in_place_without_a_trace() {
    let mut in_place = 0;
    for name in MODELS {
        let model = support::load(name);
        for fusion in [FusionOptions::default(), FusionOptions::unfused()] {
            let (plain, shared) = (compiled(&model, fusion.clone(), false), compiled(&model, fusion, true));
            for number in 0..shared.plan.programs.len() {
                let at = sizes_of(&shared.plan, number);
                let want = outputs(&plain, number, &at, false);
                for (poison, m) in [(true, &plain), (false, &shared), (true, &shared)] {
                    assert_eq!(outputs(m, number, &at, poison), want, "{name} program {number}, poisoned: {poison}");
                }
                assert!(arena(&shared.plan, number, &at) <= arena(&plain.plan, number, &at), "{name} {number}");
                in_place += shared.plan.report.phases[number].in_place.len();
                assert!(plain.plan.report.phases[number].in_place.is_empty());
            }
        }
    }
    assert!(in_place > 50, "{in_place} values in place");
}

#[test]
fn random_graphs_read_nothing_that_is_dead() {
    let config = Config { cases: 40, failure_persistence: None, rng_seed: RngSeed::Fixed(21), ..Config::default() };
    TestRunner::new(config)
        .run(&random_graph::recipes(), |recipe| {
            let model = recipe.model();
            let (plain, shared) =
                (compiled(&model, FusionOptions::default(), false), compiled(&model, FusionOptions::default(), true));
            let known = recipe.sizes();
            let at: Vec<u64> =
                plain.plan.sizes.iter().map(|s| known.iter().find(|k| k.0 == s.name).map_or(1, |k| k.1)).collect();
            let want = outputs(&plain, 0, &at, false);
            for (poison, m) in [(true, &plain), (true, &shared)] {
                if outputs(m, 0, &at, poison) != want {
                    return Err(TestCaseError::fail("other results over poisoned memory"));
                }
            }
            Ok(())
        })
        .unwrap();
}

/// A plan in which a value lies where another is still needed: validation names both, and poisoned memory shows it.
#[test]
fn a_bad_plan_is_refused_and_would_give_other_results() {
    let model = support::load("devset/bert");
    let good = compiled(&model, FusionOptions::default(), true);
    let at = sizes_of(&good.plan, 0);
    let want = outputs(&good, 0, &at, true);
    let mut plan = (*good.plan).clone();
    let program = &mut plan.programs[0];
    let size = |p: &frit_plan::Program, i: usize| -> Dim { product(&p.values[i].shape) };
    let count = program.values.len();
    let pair = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).find(|&(a, b)| {
        let (x, y) = (&program.values[a], &program.values[b]);
        x.storage == y.storage
            && x.slot != y.slot
            && size(program, a) == size(program, b)
            && x.live.0 < y.live.0
            && y.live.0 < x.live.1
    });
    let (a, b) = pair.expect("two values that are alive together");
    program.values[b].slot = program.values[a].slot;
    let fault = plan.validate().unwrap_err().to_string();
    assert!(fault.contains("while both are alive"), "{fault}");
    let bad = LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None };
    assert_ne!(outputs(&bad, 0, &at, true), want);
}

/// A life that ends too early is seen by nothing but poisoned memory.
#[test]
fn poison_shows_a_value_that_is_read_after_its_life() {
    let model = support::load("devset/bert");
    let good = compiled(&model, FusionOptions::default(), false);
    let at = sizes_of(&good.plan, 0);
    let want = outputs(&good, 0, &at, false);
    let mut plan = (*good.plan).clone();
    let late = plan.programs[0].values.iter_mut().find(|v| v.live.1 > v.live.0 + 1 && v.live.0 > 0).unwrap();
    late.live.1 -= 1;
    let bad = LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None };
    assert_eq!(outputs(&bad, 0, &at, false), want, "the memory itself still holds it");
    assert_ne!(outputs(&bad, 0, &at, true), want);
}
