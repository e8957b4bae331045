//! How long compiling takes: by the number of equal layers, of a model of 135 M parameters, and from an artifact.
//!
//! `cargo bench --workspace --bench compile_time`; with `FRIT_SMOLLM2` (see `fixtures/fetch.sh`) also of the real model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use frit::{BackendChoice, Session, Stage, model_source};
use frit_compiler::graph::{AttentionAttrs, Float, NormKind, RopeStyle};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::{Compiler, Model, ingest};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::UnaryOp;
use frit_plan::{RopePart, format};
use std::path::PathBuf;
use std::time::Instant;

const HIDDEN: u64 = 576;
const HEADS: (u64, u64, u64) = (9, 3, 64);
const FFN: u64 = 1536;

/// A stack of equal decoder layers in the shape of SmolLM2-135M. Its weights have names and shapes only.
fn stack(layers: usize) -> Model {
    let mut m = ModelBuilder::new("stack");
    let (query, key, dim) = HEADS;
    let w = |m: &mut ModelBuilder, l: usize, n: &str, shape: &[u64]| {
        m.stored(&format!("layers.{l}.{n}"), Storage::F32, shape)
    };
    let inv_freq: Vec<f32> = (0..dim / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / dim as f32)).collect();
    let [cos, sin] = [RopePart::Cos, RopePart::Sin].map(|p| m.rope_table(&inv_freq, 1.0, p));
    let weights: Vec<_> = (0..layers)
        .map(|l| {
            let names = [("norm1", vec![HIDDEN]), ("norm2", vec![HIDDEN])].map(|(n, s)| w(&mut m, l, n, &s));
            let products = [
                ("q", query * dim, HIDDEN),
                ("k", key * dim, HIDDEN),
                ("v", key * dim, HIDDEN),
                ("o", HIDDEN, query * dim),
                ("gate", FFN, HIDDEN),
                ("up", FFN, HIDDEN),
                ("down", HIDDEN, FFN),
            ];
            (names, products.map(|(n, rows, columns)| w(&mut m, l, n, &[rows, columns])))
        })
        .collect();
    m.graph("forward", |g: &mut GraphBuilder<'_>| {
        let (b, s): (Dim, Dim) = ("B".into(), "S".into());
        let mut x = g.input("x", Scalar::F32, &[b.clone(), s.clone(), HIDDEN.into()]);
        let at = g.iota(&[b.clone(), s.clone()], 1, Dim::zero());
        for (l, ([n1, n2], [q, k, v, o, gate, up, down])) in weights.iter().enumerate() {
            x = g.scope(&format!("layers.{l}"), |g| {
                let gain = g.weight(*n1);
                let h = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
                let [q, k, v] = [(q, query), (k, key), (v, key)].map(|(w, heads)| {
                    let y = g.linear(h, *w, None);
                    let y = g.reshape(y, &[b.clone(), s.clone(), heads.into(), dim.into()]);
                    g.transpose(y, &[0, 2, 1, 3])
                });
                let (c, z) = (g.weight(cos), g.weight(sin));
                let [q, k] = [q, k].map(|y| g.rope(y, c, z, at, RopeStyle::Half, dim));
                let attrs = AttentionAttrs {
                    scale: Float(0.125),
                    causal: Some(Dim::zero()),
                    window: None,
                    softcap: None,
                    has_mask: false,
                    has_bias: false,
                };
                let y = g.attention(q, k, v, None, None, attrs);
                let y = g.transpose(y, &[0, 2, 1, 3]);
                let y = g.reshape(y, &[b.clone(), s.clone(), (query * dim).into()]);
                let y = g.linear(y, *o, None);
                let x = g.add(x, y);
                let gain = g.weight(*n2);
                let h = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
                let (gate, up) = (g.linear(h, *gate, None), g.linear(h, *up, None));
                let gate = g.unary(UnaryOp::Silu, gate);
                let h = g.mul(gate, up);
                let y = g.linear(h, *down, None);
                g.add(x, y)
            });
        }
        g.output("y", x);
    });
    m.finish().unwrap()
}

fn by_depth(c: &mut Criterion) {
    let mut group = c.benchmark_group("graph to plan");
    group.sample_size(10);
    for layers in [1, 8, 30, 120] {
        let model = stack(layers);
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
