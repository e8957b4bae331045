//! Random transformer-like graphs, fused and unfused on the CPU backend against float64: how many agree.
//!
//! `cargo bench -p frit-workspace --bench equivalence -- --graphs 10000 --json`; `--seed N` draws others, `--only N`
//! runs one of them. Exits with 1 when a graph is wrong and prints its recipe and its errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/support/random_graph.rs"]
mod random_graph;
#[path = "../tests/support/mod.rs"]
mod support;

use frit::BackendChoice;
use frit_compiler::fusion::FusionOptions;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};
use std::time::Instant;

/// Largest error of any output, relative to its largest magnitude.
const TOLERANCE: f64 = 1e-4;

fn number(name: &str, usual: u64) -> u64 {
    let mut args = std::env::args().skip_while(|a| a != name);
    args.nth(1).and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick" || a == "--test");
    let graphs = number("--graphs", if quick { 50 } else { 10_000 });
    let seed = number("--seed", 1);
    let only = number("--only", u64::MAX);
    let json = std::env::args().any(|a| a == "--json");
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() });
    let start = Instant::now();
    let (mut wrong, mut worst, mut launches) = (0u64, [0.0f64; 2], [0usize; 2]);
    for n in 0..graphs {
        let recipe = random_graph::recipes().new_tree(&mut runner).unwrap().current();
        if only != u64::MAX && only != n {
            continue;
        }
        let (model, inputs) = (recipe.model(), recipe.inputs());
        let want = support::oracle(&model, "forward", &recipe.sizes(), &inputs);
        let mut errors = Vec::new();
        for (k, fusion) in [FusionOptions::default(), FusionOptions::unfused()].into_iter().enumerate() {
            let loaded = support::compile_with(&model, fusion, Vec::new());
            launches[k] += loaded.plan.programs[0].steps.len();
            let got = support::open(&loaded, BackendChoice::Cpu).run(&inputs).unwrap();
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                let d = support::distance(name, got, want);
                worst[k] = worst[k].max(d);
                errors.push((["fused", "unfused"][k], name.clone(), d));
            }
        }
        if errors.iter().any(|e| e.2 > TOLERANCE) {
            wrong += 1;
            eprintln!("graph {n} of seed {seed} is wrong: {errors:?} {recipe:#?}");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if json {
        println!(
            "{{\"graphs\": {graphs}, \"seed\": {seed}, \"wrong\": {wrong}, \"tolerance\": {TOLERANCE:e}, \
             \"worst_fused\": {:e}, \"worst_unfused\": {:e}, \"launches_fused\": {}, \"launches_unfused\": {}, \
             \"seconds\": {seconds:.1}}}",
            worst[0], worst[1], launches[0], launches[1]
        );
    } else {
        println!(
            "{graphs} graphs, {wrong} wrong; worst error {:.1e} fused, {:.1e} unfused; {} launches fused, {} unfused; {seconds:.1} s",
            worst[0], worst[1], launches[0], launches[1]
        );
    }
    std::process::exit(i32::from(wrong > 0));
}
