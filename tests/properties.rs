//! Random transformer-like graphs: fused, unfused and the float64 evaluator agree, on the CPU and on wgpu.
//!
//! A failing recipe shrinks; its `Debug` form is all that is needed to build it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/random_graph.rs"]
mod random_graph;
mod support;

use frit::{BackendChoice, Tensor};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::FusionOptions;
use frit_kernels::target::Capabilities;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRng, TestRunner};
use random_graph::{Recipe, recipes};

/// Largest error of any output, relative to its largest magnitude.
const TOLERANCE: f64 = 1e-4;

/// Runs a recipe fused and unfused and compares both with the oracle.
fn agrees(recipe: &Recipe, backend: BackendChoice, targets: &[Capabilities]) -> Result<(), TestCaseError> {
    let model = recipe.model();
    let inputs = recipe.inputs();
    let want = support::oracle(&model, "forward", &recipe.sizes(), &inputs);
    for (name, fusion) in [("fused", FusionOptions::default()), ("unfused", FusionOptions::unfused())] {
        let loaded = support::compile_with(&model, fusion, targets.to_vec());
        let mut session = support::open(&loaded, backend);
        let got: Vec<(String, Tensor)> =
            session.run(&inputs).map_err(|e| TestCaseError::fail(format!("{name} on {backend:?}: {e}")))?;
        prop_assert_eq!(got.len(), want.len());
        for ((output, got), (_, want)) in got.iter().zip(&want) {
            let d = support::distance(&format!("{name} `{output}` on {backend:?}"), got, want);
            prop_assert!(d <= TOLERANCE, "{} `{}` on {:?} is off by {:e}", name, output, backend, d);
        }
    }
    Ok(())
}

/// `cases` recipes of a fixed seed; `FRIT_PROPERTY_CASES` asks for another number.
fn all(seed: u8, cases: u32, shrink: u32, test: impl Fn(&Recipe) -> Result<(), TestCaseError>) {
    let cases = std::env::var("FRIT_PROPERTY_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrink, ..Config::default() };
    let rng = TestRng::from_seed(config.rng_algorithm, &[seed; 32]);
    let done = TestRunner::new_with_rng(config, rng).run(&recipes(), |r| test(&r));
    if let Err(TestError::Fail(why, recipe)) = &done {
        panic!("{why}\n{recipe:#?}");
    }
    done.unwrap();
}

#[test]
fn fused_and_unfused_agree_with_float64_on_the_processor() {
    all(1, 300, 500, |r| agrees(r, BackendChoice::Cpu, &[]));
}

#[test]
fn fused_and_unfused_agree_with_float64_on_wgpu() {
    all(2, 8, 20, |r| agrees(r, BackendChoice::Wgpu, &CompileOptions::default().targets));
}
