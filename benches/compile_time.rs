//! How long compiling takes: by the number of equal layers, of a model of 135 M parameters, and from an artifact.
//!
//! `cargo bench --workspace --bench compile_time`; with `FRIT_SMOLLM2` (see `fixtures/fetch.sh`) also of the real model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use frit::{BackendChoice, Session, Stage, model_source};
use frit_compiler::{Compiler, ingest};
use frit_plan::format;
use std::path::PathBuf;
use std::time::Instant;

#[path = "../tests/support/stack.rs"]
mod stack;

fn by_depth(c: &mut Criterion) {
    let mut group = c.benchmark_group("graph to plan");
    group.sample_size(10);
    for layers in [12, 48, 120] {
        let model = stack::stack(layers);
        let plan = Compiler::default().compile(&model).unwrap();
        println!("{layers} layers: {} kernels, {} launches", plan.kernels.len(), plan.programs[0].steps.len());
        group.bench_with_input(BenchmarkId::from_parameter(layers), &model, |b, m| {
            b.iter(|| Compiler::default().compile(m).unwrap());
        });
    }
    group.finish();
}

fn models(c: &mut Criterion) {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let real = std::env::var_os("FRIT_SMOLLM2").map(|p| ("SmolLM2-135M", PathBuf::from(p)));
    let mut group = c.benchmark_group("model");
    group.sample_size(10);
    for (name, path) in [("lexicon", fixtures.join("lexicon"))].into_iter().chain(real) {
        let started = Instant::now();
        let model = ingest::load(&path).unwrap();
        let loaded = started.elapsed();
        let plan = Compiler::default().compile(&model).unwrap();
        println!(
            "{name}: tables read in {:.0} ms, compiled in {:.0} ms; {} kernels, {} launches a token, no weight read",
            loaded.as_secs_f64() * 1e3,
            (started.elapsed() - loaded).as_secs_f64() * 1e3,
            plan.kernels.len(),
            plan.program("decode").map_or(0, |p| p.steps.len())
        );
        group.bench_function(BenchmarkId::new("graph to plan", name), |b| {
            b.iter(|| Compiler::default().compile(&model).unwrap());
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.frit");
        format::write(&file, &plan, &*model.weights(), &mut |_, _| {}).unwrap();
        start(name, &file);
        group.bench_function(BenchmarkId::new("open .frit", name), |b| {
            b.iter(|| model_source::open(&file, &mut |_| {}).unwrap());
        });
    }
    group.finish();
}

/// Prints how long a session takes from an artifact, and how much of that is the reading of weights.
fn start(name: &str, file: &std::path::Path) {
    let started = Instant::now();
    let mut weights = [None; 2];
    let told = |s: Stage| {
        if let Stage::Weights(..) = s {
            let now = started.elapsed().as_secs_f64();
            weights = [weights[0].or(Some(now)), Some(now)];
        }
    };
    let session = Session::builder().backend(BackendChoice::Cpu).progress(told).load(file).unwrap();
    let all = started.elapsed().as_secs_f64();
    drop(session);
    let reading = match weights {
        [Some(from), Some(to)] => to - from,
        _ => 0.0,
    };
    println!("{name}: session from .frit in {all:.3} s, of which {reading:.3} s read weights");
}

criterion_group!(benches, by_depth, models);
criterion_main!(benches);
