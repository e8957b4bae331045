//! Whole models: what a prompt and a token take, fused and unfused, on the CPU and on wgpu.
//!
//! `cargo bench --workspace --bench end_to_end` prints a table first, whose two builds were measured in turns within one
//! run, so that a busy machine burdens both alike; beside the time on the clock stands the processor time of all threads,
//! which other programs do not add to. `-- table` prints the table alone. With `FRIT_SMOLLM2` (see `fixtures/fetch.sh`)
//! also of the real model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::{CompileOptions, Compiler, ingest};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Rounds of a row of the table.
const ROUNDS: usize = 9;
/// Seconds that a turn takes at least: what is timed is run again until then.
const TURN: f64 = 0.3;

/// Seconds that the threads of this process have spent on a processor; NaN where the system does not tell.
fn processor_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return f64::NAN };
    let spent = threads.flatten().filter_map(|t| {
        let text = std::fs::read_to_string(t.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    spent.sum::<f64>() / 1e9
}

/// What one run of a form took.
struct Took {
    seconds: f64,
    /// Seconds of all threads together on a processor.
    busy: f64,
    /// Tokens or runs.
    units: f64,
    launches: f64,
}

/// A row of the table: medians of rounds in the order fused, unfused, unfused, fused. `run` makes one run of a form.
fn row(what: &str, run: &mut dyn FnMut(usize) -> Took) {
    let mut rounds: Vec<[f64; 4]> = Vec::new();
    let mut launches = [0.0; 2];
    for _ in 0..ROUNDS {
        let turns = [0, 1, 1, 0].map(|form| {
            let mut all = Took { seconds: 0.0, busy: 0.0, units: 0.0, launches: 0.0 };
            while all.seconds < TURN {
                let t = run(form);
                all.seconds += t.seconds;
                all.busy += t.busy;
                all.units += t.units;
                all.launches += t.launches;
            }
            launches[form] = all.launches / all.units;
            [all.seconds / all.units, all.busy / all.units]
        });
        let mean = |a: usize, b: usize, k: usize| (turns[a][k] + turns[b][k]) / 2.0;
        rounds.push([mean(0, 3, 0), mean(1, 2, 0), mean(0, 3, 1), mean(1, 2, 1)]);
    }
    let median = |of: &dyn Fn(&[f64; 4]) -> f64| {
        let mut v: Vec<f64> = rounds.iter().map(of).collect();
        v.sort_by(f64::total_cmp);
        v[ROUNDS / 2]
    };
    let [clock, unfused, busy, unfused_busy] = [0, 1, 2, 3].map(|i| median(&|r| r[i]) * 1e3);
    println!(
        "| {what} | {} | {} | {:.1} % | {clock:.2} ms | {unfused:.2} ms | {:.2} | {busy:.2} ms | {unfused_busy:.2} ms | {:.2} |",
        launches[0],
        launches[1],
        100.0 * (1.0 - launches[0] / launches[1]),
        median(&|r| r[1] / r[0]),
        median(&|r| r[3] / r[2]),
    );
}

fn both(path: &Path, backend: BackendChoice, unfused: FusionOptions) -> [Session; 2] {
    [FusionOptions::default(), unfused]
        .map(|fusion| Session::builder().backend(backend).open(&load(path, fusion)).unwrap())
}

/// Nothing fused, and the weights of layers decoded by kernels of their own. That of the logits is left: in F32 it would not
/// fit a binding of 128 MiB beside the other values.
fn layers_decoded_apart() -> FusionOptions {
    FusionOptions { off_at: vec![("dequant".into(), "layers.".into())], ..FusionOptions::unfused() }
}

fn decode_row(name: &str, path: &Path, backend: BackendChoice, tokens: usize, unfused: FusionOptions) {
    let mut sessions = both(path, backend, unfused);
    let prompt: Vec<u32> = (0..16).map(|i| 5 + 31 * i).collect();
    sessions.iter_mut().for_each(|s| {
        decode(s, &prompt, tokens);
    });
    row(&format!("{name}, token, {backend:?}"), &mut |form| {
        let session = &mut sessions[form];
        // The prompt is run with no token behind it too, and taken off.
        let mut measured = |tokens: usize| {
            let (launches, busy) = (session.counters().dispatches, processor_seconds());
            let seconds = decode(session, &prompt, tokens);
            (seconds, processor_seconds() - busy, (session.counters().dispatches - launches) as f64)
        };
        let ((_, prompt_busy, prompt_launches), (seconds, busy, launches)) = (measured(0), measured(tokens));
        Took { seconds, busy: busy - prompt_busy, units: tokens as f64, launches: launches - prompt_launches }
    });
}

fn ids(batch: u64, tokens: u64) -> Tensor {
    let ids: Vec<i32> = (0..batch * tokens).map(|i| (3 + i * 17 % 190) as i32).collect();
    Tensor::i32(&[batch, tokens], ids).unwrap()
}

fn forward_row(name: &str, path: &Path, backend: BackendChoice, batch: u64, tokens: u64) {
    let mut sessions = both(path, backend, FusionOptions::unfused());
    let input = [("input_ids", ids(batch, tokens))];
    sessions.iter_mut().for_each(|s| {
        s.run(&input).unwrap();
    });
    row(&format!("{name}, {batch}x{tokens}, {backend:?}"), &mut |form| {
        let session = &mut sessions[form];
        let before = session.counters().dispatches;
        let (start, busy) = (Instant::now(), processor_seconds());
        session.run(&input).unwrap();
        let (seconds, busy) = (start.elapsed().as_secs_f64(), processor_seconds() - busy);
        Took { seconds, busy, units: 1.0, launches: (session.counters().dispatches - before) as f64 }
    });
}

fn table(fixtures: &Path) {
    println!(
        "| model, what, backend | launches fused | unfused | fewer | fused | unfused | ratio | processor fused | unfused | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let real = std::env::var_os("FRIT_SMOLLM2").map(PathBuf::from);
    for backend in BACKENDS.into_iter().rev() {
        decode_row("lexicon", &fixtures.join("lexicon"), backend, 32, FusionOptions::unfused());
        forward_row("lexicon", &fixtures.join("lexicon"), backend, 1, 128);
        forward_row("BERT of the dev set", &fixtures.join("devset/bert"), backend, 8, 32);
        if let Some(path) = &real {
            decode_row("SmolLM2-135M", path, backend, 8, FusionOptions::unfused());
            decode_row("SmolLM2-135M, weights decoded apart if unfused", path, backend, 4, layers_decoded_apart());
            forward_row("SmolLM2-135M", path, backend, 1, 32);
        }
    }
}

fn decoder(c: &mut Criterion, name: &str, path: &Path, tokens: usize) {
    let mut group = c.benchmark_group(format!("{name} token"));
    group.sample_size(10).throughput(Throughput::Elements(1));
    let prompt: Vec<u32> = (0..16).map(|i| 5 + 31 * i).collect();
    let model = load(path, FusionOptions::default());
    for backend in BACKENDS {
        let mut session = Session::builder().backend(backend).open(&model).unwrap();
        decode(&mut session, &prompt, 2);
        group.bench_function(BenchmarkId::from_parameter(session.backend()), |b| {
            b.iter_custom(|n| {
                let all: f64 = (0..n).map(|_| decode(&mut session, &prompt, tokens)).sum();
                Duration::from_secs_f64(all / tokens as f64)
            });
        });
    }
    group.finish();
}

fn forward(c: &mut Criterion, name: &str, path: &Path, batch: u64, tokens: u64) {
    let mut group = c.benchmark_group(format!("{name} forward {batch}x{tokens}"));
    group.sample_size(10).throughput(Throughput::Elements(batch * tokens));
    let input = [("input_ids", ids(batch, tokens))];
    let model = load(path, FusionOptions::default());
    for backend in BACKENDS {
        let mut session = Session::builder().backend(backend).open(&model).unwrap();
        session.run(&input).unwrap();
        group.bench_function(BenchmarkId::from_parameter(session.backend()), |b| {
            b.iter(|| session.run(&input).unwrap());
        });
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    table(&fixtures);
    if std::env::args().any(|a| a == "table") {
        return;
    }
    decoder(c, "lexicon", &fixtures.join("lexicon"), 32);
    forward(c, "lexicon", &fixtures.join("lexicon"), 1, 128);
    forward(c, "bert (dev)", &fixtures.join("devset/bert"), 8, 32);
}

criterion_group!(benches, all);
criterion_main!(benches);
