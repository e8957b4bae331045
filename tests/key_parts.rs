//! Attention of one row with its keys in parts: the same tokens on every backend, no launch more, and a plan without it
//! wherever it is switched off, not allowed or not worth it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::backend::cuda::{CudaBackend, Interpreted};
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::{CompileOptions, Compiler, NumericMode};
use frit_kernels::spec::Anchor;
use frit_kernels::target::Tier;
use frit_plan::Plan;
use std::ops::ControlFlow;
use std::sync::Arc;

const IN_PARTS: &str = "decode+parts";

/// The default plan, and the one that takes keys in parts from the first one on, on every kind of device.
fn both(model: &str) -> [LoadedModel; 2] {
    [None, Some(1)].map(|key_parts_from| {
        let fusion = FusionOptions { key_parts_from, ..FusionOptions::default() };
        support::compile_with(&support::load(model), fusion, CompileOptions::default().targets)
    })
}

fn tokens(session: &mut Session, prompts: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
    let options = GenerateOptions { max_new_tokens: count, ignore_eos: true, ..Default::default() };
    let made = session.generate(prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    made.rows.into_iter().map(|r| r.tokens).collect()
}

/// Prompts of these lengths: shorter ones are padded on the left.
fn prompts(lengths: &[u32]) -> Vec<Vec<u32>> {
    lengths.iter().enumerate().map(|(r, n)| (0..*n).map(|i| 3 + (7 * i + 11 * r as u32) % 55).collect()).collect()
}

/// Grouped heads, biases, learned positions, layers with windows and soft-caps, ALiBi; more keys than a part has, and rows
/// whose first part is padding.
#[test]
fn tokens_do_not_depend_on_parts() {
    for (model, longest, on_wgpu) in [
        ("lexicon", 130, true),
        ("devset/qwen2", 48, false),
        ("devset/gpt2", 48, true),
        ("families/gemma2", 70, true),
        ("families/mpt", 70, false),
    ] {
        let [whole, parts] = both(model);
        assert!(parts.plan.program(IN_PARTS).is_some(), "{model}");
        for lengths in [&[1][..], &[longest, 2, 9]] {
            let prompts = prompts(lengths);
            let want = tokens(&mut support::open(&whole, BackendChoice::Cpu), &prompts, 12);
            assert_eq!(
                tokens(&mut support::open(&parts, BackendChoice::Cpu), &prompts, 12),
                want,
                "{model} {lengths:?}"
            );
            if on_wgpu {
                let found = tokens(&mut support::open(&parts, BackendChoice::Wgpu), &prompts, 12);
                assert_eq!(found, want, "{model} {lengths:?} on wgpu");
            }
        }
    }
}

/// PTX under the interpreter.
#[test]
fn tokens_do_not_depend_on_parts_on_cuda() {
    let [whole, parts] = both("devset/llama_gqa");
    let prompts = prompts(&[40, 3]);
    let want = tokens(&mut support::open(&whole, BackendChoice::Cpu), &prompts, 3);
    let device = Interpreted::default();
    let backend = CudaBackend::interpreted(&device).unwrap();
    let mut session = Session::builder().bind_on(&backend, Arc::clone(&parts.plan), &*parts.weights).unwrap();
    assert_eq!(tokens(&mut session, &prompts, 3), want);
    assert!(device.checks().iter().all(|k| k.violations.is_empty()));
}

#[test]
fn parts_add_no_launch_and_are_taken_from_some_number_of_keys_on() {
    for model in ["lexicon", "devset/llama_gqa", "devset/gpt2"] {
        let [plan, forced] = both(model).map(|m| m.plan);
        let program = |plan: &Plan, name: &str| plan.programs.iter().position(|p| p.name == name).unwrap();
        let (decode, parts) = (program(&plan, "decode"), program(&plan, IN_PARTS));
        assert_eq!(plan.programs[decode].steps.len(), plan.programs[parts].steps.len(), "{model}");
        let [a, b] = [decode, parts].map(|i| &plan.report.phases[i]);
        assert_eq!((a.dispatches, a.dispatches_per_layer), (b.dispatches, b.dispatches_per_layer), "{model}");
        assert_eq!(b.attention.fused, b.attention.blocks, "{model}");
        let in_parts = |i: usize| {
            let kernels = plan.programs[i].steps.iter().map(|s| &plan.kernels[s.kernel as usize].spec.anchor);
            kernels.filter(|k| matches!(k, Anchor::Attention(a) if a.parts.is_some())).count() as u32
        };
        assert_eq!((in_parts(decode), in_parts(parts)), (0, b.attention.blocks), "{model}");
        let at = |plan: &Plan, keys: u64, tier| {
            let value = |name: &str| match name {
                "P" => keys - 1,
                "T" => 1024,
                _ => 1,
            };
            let sizes: Vec<u64> = plan.sizes.iter().map(|s| value(&s.name)).collect();
            plan.fitting(decode, &sizes, tier)
        };
        for (tier, from) in &plan.programs[parts].instead.as_ref().unwrap().from {
            assert_ne!(*tier, Tier::Cpu, "{model}");
            assert_eq!([at(&plan, from - 1, *tier), at(&plan, *from, *tier)], [decode, parts], "{model} {tier:?}");
        }
        assert_eq!(at(&plan, 1000, Tier::Cpu), decode, "{model}");
        assert_eq!(at(&forced, 1, Tier::Cpu), program(&forced, IN_PARTS), "{model}");
    }
}

#[test]
fn parts_are_switched_off_and_not_strict() {
    let model = support::load("devset/llama_gqa");
    let has = |options: CompileOptions| {
        let plan = Compiler::new(options).compile(&model).unwrap();
        (plan.program(IN_PARTS).is_some(), plan.report.refused_rewrites.contains_key("split-keys"))
    };
    assert_eq!(has(CompileOptions::default()), (true, false));
    let mut off = CompileOptions::default();
    assert!(off.disable("split-keys"));
    assert_eq!(has(off), (false, false));
    let strict = FusionOptions { numeric: NumericMode::Strict, ..FusionOptions::default() };
    assert_eq!(has(CompileOptions { fusion: strict, ..CompileOptions::default() }), (false, true));
    let on_cores = FusionOptions { tiers: vec![Tier::Cpu], ..FusionOptions::default() };
    assert_eq!(has(CompileOptions { fusion: on_cores, ..CompileOptions::default() }), (false, false));
}

/// Both sides of the rewrite, and the kernels with parts, in f64.
#[test]
fn parts_are_validated() {
    for model in ["devset/llama_gqa", "families/gemma2"] {
        let options = CompileOptions { validate: Some(CompileOptions::VALIDATION_BUDGET), ..CompileOptions::default() };
        let plan = Compiler::new(options).compile(&support::load(model)).unwrap();
        assert!(plan.program(IN_PARTS).is_some(), "{model}");
        let v = &plan.report.validation;
        assert_eq!(v.dropped, Vec::<String>::new(), "{model}");
        assert!(plan.report.rewrites["split-keys"] > 0, "{model}");
    }
}
