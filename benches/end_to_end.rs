//! Whole models: what a prompt and a token take, fused and unfused, on the CPU and on wgpu.
//!
//! `cargo bench --bench end_to_end`; with `FRIT_SMOLLM2` (see `fixtures/fetch.sh`) also of the real model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::{CompileOptions, Compiler, ingest};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BACKENDS: [BackendChoice; 2] = [BackendChoice::Cpu, BackendChoice::Wgpu];

fn load(path: &Path, fusion: FusionOptions) -> LoadedModel {
    let model = ingest::load(path).unwrap();
    let options = CompileOptions { fusion, ..CompileOptions::default() };
    let plan = Compiler::new(options).compile(&model).unwrap();
    LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None }
}

/// Seconds of the decode runs for `tokens` tokens.
fn decode(session: &mut Session, prompt: &[u32], tokens: usize) -> f64 {
    let options = GenerateOptions { max_new_tokens: tokens + 1, ignore_eos: true, ..Default::default() };
    let made = session.generate(&[prompt.to_vec()], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(made.stats.decode_steps, tokens as u64);
    made.stats.decode_seconds
}

fn decoder(c: &mut Criterion, name: &str, path: &Path, tokens: usize) {
    let mut group = c.benchmark_group(format!("{name} token"));
    group.sample_size(10).throughput(Throughput::Elements(1));
    let prompt: Vec<u32> = (0..16).map(|i| 5 + 31 * i).collect();
    for (form, fusion) in [("fused", FusionOptions::default()), ("unfused", FusionOptions::unfused())] {
        let model = load(path, fusion);
        for backend in BACKENDS {
            let mut session = Session::builder().backend(backend).open(&model).unwrap();
            decode(&mut session, &prompt, 2);
            let phase = model.plan.report.phases.iter().find(|p| p.program == "decode").unwrap();
            println!("{name} {form} on {}: {} launches a token", session.device(), phase.dispatches);
            group.bench_function(BenchmarkId::new(form, session.backend()), |b| {
                b.iter_custom(|n| {
                    let all: f64 = (0..n).map(|_| decode(&mut session, &prompt, tokens)).sum();
                    Duration::from_secs_f64(all / tokens as f64)
                });
            });
        }
    }
    group.finish();
}

fn forward(c: &mut Criterion, name: &str, path: &Path, batch: u64, tokens: u64) {
    let mut group = c.benchmark_group(format!("{name} forward {batch}x{tokens}"));
    group.sample_size(10).throughput(Throughput::Elements(batch * tokens));
    let ids: Vec<i32> = (0..batch * tokens).map(|i| (3 + i * 17 % 190) as i32).collect();
    let input = [("input_ids", Tensor::i32(&[batch, tokens], ids).unwrap())];
    for (form, fusion) in [("fused", FusionOptions::default()), ("unfused", FusionOptions::unfused())] {
        let model = load(path, fusion);
        for backend in BACKENDS {
            let mut session = Session::builder().backend(backend).open(&model).unwrap();
            session.run(&input).unwrap();
            println!("{name} {form}: {} launches", model.plan.program("forward").unwrap().steps.len());
            group
                .bench_function(BenchmarkId::new(form, session.backend()), |b| b.iter(|| session.run(&input).unwrap()));
        }
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    decoder(c, "lexicon", &fixtures.join("lexicon"), 32);
    forward(c, "lexicon", &fixtures.join("lexicon"), 1, 128);
    forward(c, "bert (dev)", &fixtures.join("devset/bert"), 8, 32);
    if let Some(path) = std::env::var_os("FRIT_SMOLLM2") {
        decoder(c, "SmolLM2-135M", Path::new(&path), 8);
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
