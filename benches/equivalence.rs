//! Random transformer-like graphs, fused and unfused on the CPU backend, against each other and float64: how many agree.
//!
//! `cargo bench --workspace --bench equivalence --profile dev -- --graphs 10000 --json`; `--seed N` draws others, `--only N`
//! runs one of them. Exits with 1 when a graph is wrong and prints its recipe, its errors, and beside each the error
//! that one rounding of every value makes in float64.
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

/// Largest error of any output, relative to its largest magnitude, in a graph that F32 computes well.
const TOLERANCE: f64 = 1e-4;
/// In others, by how much the error may exceed what one rounding of every value of the graph makes. An operation rounds
/// inside itself too: a sum of n terms by about √n times as much, and sums here have about 100 at most.
const ROUNDINGS: f64 = 10.0;

/// Graphs from one line about progress to the next.
const STRIDE: u64 = 250;

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
    let (mut wrong, mut hard, mut worst, mut launches) = (0u64, 0u64, [0.0f64; 2], [0usize; 2]);
    for n in 0..graphs {
        let recipe = random_graph::recipes().new_tree(&mut runner).unwrap().current();
        if n > 0 && n % STRIDE == 0 {
            eprintln!("{n} of {graphs} graphs, {wrong} wrong, {:.0} s", start.elapsed().as_secs_f64());
        }
        if only != u64::MAX && only != n {
            continue;
        }
        let (model, inputs) = (recipe.model(), recipe.inputs());
        let want = support::oracle(&model, "forward", &recipe.sizes(), &inputs);
        let rounded = support::oracle_in(&model, "forward", &recipe.sizes(), &inputs, true);
        let least: Vec<f64> = rounded.iter().zip(&want).map(|((name, r), (_, w))| support::apart(name, r, w)).collect();
        let (mut errors, mut before) = (Vec::new(), Vec::new());
        for (k, fusion) in [FusionOptions::default(), FusionOptions::unfused()].into_iter().enumerate() {
            let loaded = support::compile_with(&model, fusion, Vec::new());
            launches[k] += loaded.plan.programs[0].steps.len();
            let got = support::open(&loaded, BackendChoice::Cpu).run(&inputs).unwrap();
            for (((name, got), (_, want)), least) in got.iter().zip(&want).zip(&least) {
                let d = support::distance(name, got, want);
                worst[k] = worst[k].max(d);
                errors.push((["fused", "unfused"][k], name.clone(), d, *least));
            }
            for ((name, a), (b, least)) in got.iter().zip(before.iter().zip(&least)) {
                errors.push(("one from the other", name.clone(), support::distance(name, a, b), *least));
            }
            before = got.iter().map(|(_, t)| support::array(t)).collect();
        }
        hard += u64::from(errors.iter().any(|e| e.2 > TOLERANCE));
        if errors.iter().any(|e| e.2 > TOLERANCE.max(ROUNDINGS * e.3)) {
            wrong += 1;
            eprintln!("graph {n} of seed {seed} is wrong: {errors:?} {recipe:#?}");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if json {
        println!(
            "{{\"graphs\": {graphs}, \"seed\": {seed}, \"wrong\": {wrong}, \"hard\": {hard}, \"tolerance\": {TOLERANCE:e}, \
             \"worst_fused\": {:e}, \"worst_unfused\": {:e}, \"launches_fused\": {}, \"launches_unfused\": {}, \
             \"seconds\": {seconds:.1}}}",
            worst[0], worst[1], launches[0], launches[1]
        );
    } else {
        println!(
            "{graphs} graphs, {wrong} wrong, {hard} off by more than {TOLERANCE:e}; worst error {:.1e} fused, {:.1e} unfused; {} launches fused, {} unfused; {seconds:.1} s",
            worst[0], worst[1], launches[0], launches[1]
        );
    }
    std::process::exit(i32::from(wrong > 0));
}
