//! Every template at the sizes around its tiles, {1, tile − 1, tile, tile + 1}, and beyond: graphs of one or a few
//! operations, on the CPU and on wgpu, against float64. `kernels/tests` holds the kernels themselves to this; here
//! compiler, plan and backends are in the loop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::{BackendChoice, LoadedModel, Tensor};
use frit_compiler::Model;
use frit_compiler::graph::{AttentionAttrs, Float, NormKind, RopeStyle};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use std::collections::BTreeSet;
use support::Random;

/// Largest error, relative to the largest magnitude.
const TOLERANCE: f64 = 2e-5;

type Inputs = Vec<(String, Tensor)>;

/// Runs `forward` for every case on both backends and compares with the oracle.
fn check(what: &str, model: &Model, cases: &[Inputs]) -> LoadedModel {
    let loaded = support::compile(model);
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        let mut session = support::open(&loaded, backend);
        for inputs in cases {
            let shapes: Vec<&[u64]> = inputs.iter().map(|(_, t)| t.shape()).collect();
            let what = format!("{what} {shapes:?} on {backend:?}");
            let got = session.run(inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
            let want = support::oracle(model, "forward", &sizes(model, inputs), inputs);
            assert_eq!(got.len(), want.len(), "{what}");
            for ((name, got), (wanted, want)) in got.iter().zip(&want) {
                assert_eq!(name, wanted, "{what}");
                let d = support::distance(&format!("{what} `{name}`"), got, want);
                assert!(d <= TOLERANCE, "{what} `{name}` is off by {d:e}");
            }
        }
    }
    loaded
}

/// Sizes by the shapes of the inputs: every extent that is a bare size.
fn sizes<'m>(model: &'m Model, inputs: &Inputs) -> Vec<(&'m str, u64)> {
    let graph = &model.graph("forward").unwrap().graph;
    let mut found = Vec::new();
    for i in &graph.inputs {
        let Some((_, t)) = inputs.iter().find(|(n, _)| *n == i.name) else { continue };
        for (d, v) in graph.ty(i.value).shape.iter().zip(t.shape()) {
            if let Some(z) = model.tables.sizes.iter().find(|z| Dim::size(&z.name) == *d) {
                found.push((z.name.as_str(), *v));
            }
        }
    }
    found
}

fn model(weights: impl FnOnce(&mut ModelBuilder) -> Box<dyn FnOnce(&mut GraphBuilder<'_>)>) -> Model {
    let mut m = ModelBuilder::new("conformance");
    let build = weights(&mut m);
    m.graph("forward", build);
    m.finish().unwrap_or_else(|e| panic!("{e}"))
}

fn templates(loaded: &LoadedModel) -> BTreeSet<&str> {
    loaded.plan.kernels().flat_map(|k| &k.variants).map(|v| v.schedule.template.as_str()).collect()
}

/// `x [N, width]` for several N.
fn rows(width: u64, counts: &[u64], seed: u64) -> Vec<Inputs> {
    let mut r = Random::new(seed);
    counts.iter().map(|n| vec![("x".to_owned(), r.tensor(&[*n, width]))]).collect()
}

#[test]
fn map_around_the_width_of_a_workgroup() {
    for width in [1, 63, 64, 65, 127, 128, 129, 257] {
        let m = model(|m| {
            let shift = m.constant("shift", &[width], &Random::new(width).floats(width, 1.0));
            Box::new(move |g| {
                let x = g.input("x", Scalar::F32, &["N".into(), width.into()]);
                let shift = g.weight(shift);
                let y = g.add(x, shift);
                let y = g.unary(UnaryOp::GeluTanh, y);
                let z = g.binary(BinaryOp::Max, x, y);
                let y = g.mul(y, z);
                g.output("y", y);
            })
        });
        let loaded = check("map", &m, &rows(width, &[1, 3], width));
        assert_eq!(templates(&loaded), BTreeSet::from(["map"]));
    }
}

#[test]
fn map_of_many_elements_by_number() {
    let m = model(|_| {
        Box::new(|g| {
            let x = g.input("x", Scalar::F32, &["N".into()]);
            let y = g.unary(UnaryOp::Silu, x);
            g.output("y", y);
        })
    });
    let mut r = Random::new(9);
    let counts = [1, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 70_001];
    let cases: Vec<Inputs> = counts.iter().map(|n| vec![("x".to_owned(), r.tensor(&[*n]))]).collect();
    check("map by number", &m, &cases);
}

#[test]
fn row_statistics_around_every_change_of_schedule() {
    for width in [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1025] {
        let m = model(|m| {
            let mut r = Random::new(width);
            let gain = m.constant("gain", &[width], &r.floats(width, 1.0));
            let bias = m.constant("bias", &[width], &r.floats(width, 1.0));
            Box::new(move |g| {
                let x = g.input("x", Scalar::F32, &["N".into(), width.into()]);
                let (gain, bias) = (g.weight(gain), g.weight(bias));
                let y = g.norm(NormKind::Layer, x, 1e-2, Some(gain), Some(bias));
                g.output("layer_norm", y);
                let y = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
                g.output("rms_norm", y);
                let y = g.softmax(x);
                g.output("softmax", y);
                let y = g.reduce(ReduceOp::ArgMax, x, &[1], true);
                g.output("argmax", y);
            })
        });
        let loaded = check("row", &m, &rows(width, &[1, 3, 4, 5, 9], width));
        assert!(templates(&loaded).contains("row"), "{:?}", templates(&loaded));
    }
}

/// A product of `x [B, k]` with a weight `[n, k]`: one token of each of B sequences.
fn tokens(n: u64, k: u64) -> Model {
    let mut m = ModelBuilder::new("product");
    let mut r = Random::new(1000 * n + k);
    let w = m.constant("w", &[n, k], &r.floats(n * k, 1.0));
    let b = m.constant("b", &[n], &r.floats(n, 1.0));
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &["B".into(), k.into()]);
        let y = g.linear(x, w, Some(b));
        let y = g.unary(UnaryOp::Relu, y);
        g.output("y", y);
    });
    m.finish().unwrap()
}

#[test]
fn gemm_at_every_tail_of_rows_columns_and_sum() {
    let m = |n, k| {
        let mut m = ModelBuilder::new("gemm");
        let mut r = Random::new(1000 * n + k);
        let w = m.constant("w", &[n, k], &r.floats(n * k, 1.0));
        let b = m.constant("b", &[n], &r.floats(n, 1.0));
        m.graph("forward", |g| {
            let x = g.input("x", Scalar::F32, &["B".into(), "S".into(), k.into()]);
            let y = g.linear(x, w, Some(b));
            let y = g.unary(UnaryOp::GeluErf, y);
            g.output("y", y);
        });
        m.finish().unwrap()
    };
    let cases = |k: u64, counts: &[(u64, u64)]| -> Vec<Inputs> {
        let mut r = Random::new(k);
        counts.iter().map(|(b, s)| vec![("x".to_owned(), r.tensor(&[*b, *s, k]))]).collect()
    };
    let tails = [(1, 1), (1, 7), (1, 8), (1, 9), (1, 15), (1, 17), (1, 63), (1, 64), (1, 65), (2, 32), (3, 43)];
    let loaded = check("gemm", &m(65, 17), &cases(17, &tails));
    assert!(templates(&loaded).iter().any(|t| t.starts_with("gemm")), "{:?}", templates(&loaded));
    for n in [1, 3, 4, 5, 63, 64, 127, 129] {
        check("gemm", &m(n, 16), &cases(16, &[(1, 5), (2, 33)]));
    }
    for k in [1, 2, 3, 4, 7, 8, 9, 15, 31, 32, 33, 100] {
        check("gemm", &m(9, k), &cases(k, &[(1, 9), (2, 4)]));
    }
}

#[test]
fn gemv_at_every_tail_of_columns_and_sum() {
    for n in [1, 3, 4, 5, 7, 8, 9, 31, 33] {
        let loaded = check("gemv", &tokens(n, 24), &rows(24, &[1, 2, 5], n));
        assert_eq!(templates(&loaded), BTreeSet::from(["gemv", "gemv_warp", "lanes"]));
    }
    for n in [63, 64, 65, 511, 512, 513, 520] {
        check("gemv", &tokens(n, 40), &rows(40, &[1, 3], n));
    }
    for k in [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257, 1000] {
        check("gemv", &tokens(6, k), &rows(k, &[1, 3], k));
    }
}

#[test]
fn gemv_with_a_norm_in_front() {
    for k in [2, 5, 16, 48, 65, 300] {
        let mut m = ModelBuilder::new("norm_gemv");
        let mut r = Random::new(k);
        let gain = m.constant("gain", &[k], &r.floats(k, 1.0));
        let w = m.constant("w", &[10, k], &r.floats(10 * k, 1.0));
        m.graph_with("forward", &[], &[("B", 4)], |g| {
            let x = g.input("x", Scalar::F32, &["B".into(), k.into()]);
            let gain = g.weight(gain);
            let y = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
            let y = g.linear(y, w, None);
            g.output("y", y);
        });
        let loaded = check("norm and gemv", &m.finish().unwrap(), &rows(k, &[1, 4], k));
        let regions = &loaded.plan.report.phases[0].regions;
        assert_eq!(regions.len(), 1, "{k}: {regions:?} {:?}", loaded.plan.report.phases[0].refused);
    }
}

struct Heads {
    query: u64,
    key: u64,
    dim: u64,
}

/// Attention over `x`-shaped inputs with their own lengths; `extra` adds what its name says.
fn attention(h: &Heads, causal: bool, window: Option<u64>, softcap: Option<f32>, masked: bool, biased: bool) -> Model {
    let (query, key, dim) = (h.query, h.key, h.dim);
    model(|_| {
        Box::new(move |g| {
            let of = |heads: u64, len: &str| ["B".into(), heads.into(), len.into(), dim.into()];
            let keys = if causal { "S" } else { "T" };
            let q = g.input("q", Scalar::F32, &of(query, "S"));
            let k = g.input("k", Scalar::F32, &of(key, keys));
            let v = g.input("v", Scalar::F32, &of(key, keys));
            let mask = masked.then(|| g.input("mask", Scalar::Bool, &["B".into(), 1.into(), 1.into(), keys.into()]));
            let bias = biased.then(|| g.input("bias", Scalar::F32, &[query.into(), "S".into(), keys.into()]));
            let bias = bias.map(|b| g.reshape(b, &[1.into(), query.into(), "S".into(), keys.into()]));
            let attrs = AttentionAttrs {
                scale: Float(1.0 / (dim as f32).sqrt()),
                causal: causal.then(Dim::zero),
                window,
                softcap: softcap.map(Float),
                has_mask: false,
                has_bias: false,
            };
            let y = g.attention(q, k, v, mask, bias, attrs);
            g.output("y", y);
        })
    })
}

fn attention_inputs(h: &Heads, b: u64, s: u64, t: u64, masked: bool, biased: bool) -> Inputs {
    let mut r = Random::new(1000 * s + t);
    let mut out = vec![
        ("q".to_owned(), r.tensor(&[b, h.query, s, h.dim])),
        ("k".to_owned(), r.tensor(&[b, h.key, t, h.dim])),
        ("v".to_owned(), r.tensor(&[b, h.key, t, h.dim])),
    ];
    if masked {
        out.push(("mask".to_owned(), r.ints(&[b, 1, 1, t], 2)));
    }
    if biased {
        out.push(("bias".to_owned(), r.tensor(&[h.query, s, t])));
    }
    out
}

#[test]
fn attention_around_a_block_of_keys() {
    let heads = Heads { query: 4, key: 2, dim: 12 };
    let plain = attention(&heads, false, None, None, true, false);
    let lengths = [(1, 1), (1, 15), (2, 16), (3, 17), (1, 63), (2, 64), (1, 65), (5, 130), (17, 3)];
    let cases: Vec<Inputs> = lengths.iter().map(|(s, t)| attention_inputs(&heads, 2, *s, *t, true, false)).collect();
    check("attention", &plain, &cases);
    let causal = attention(&heads, true, None, None, true, false);
    let cases: Vec<Inputs> =
        [1, 2, 15, 16, 17, 33, 65].iter().map(|s| attention_inputs(&heads, 2, *s, *s, true, false)).collect();
    check("causal attention", &causal, &cases);
}

#[test]
fn attention_with_windows_biases_caps_and_odd_heads() {
    for (query, key, dim) in [(1, 1, 1), (3, 3, 5), (6, 2, 16), (2, 1, 17), (1, 1, 65)] {
        let heads = Heads { query, key, dim };
        let m = attention(&heads, true, Some(4), Some(2.5), false, true);
        let cases: Vec<Inputs> =
            [1, 4, 5, 19].iter().map(|s| attention_inputs(&heads, 2, *s, *s, false, true)).collect();
        check("windowed attention", &m, &cases);
    }
}

/// A row that sees no key is zero, on every backend.
#[test]
fn a_query_without_keys_is_zero() {
    let heads = Heads { query: 2, key: 1, dim: 8 };
    let m = attention(&heads, false, None, None, true, false);
    let mut inputs = attention_inputs(&heads, 2, 3, 20, true, false);
    let mut mask = vec![0; 40];
    mask[20..].fill(1);
    inputs[3].1 = Tensor::i32(&[2, 1, 1, 20], mask).unwrap();
    let loaded = check("masked row", &m, std::slice::from_ref(&inputs));
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        let y = support::open(&loaded, backend).run(&inputs).unwrap().remove(0).1;
        let (unseen, seen) = y.as_f32().unwrap().split_at(2 * 3 * 8);
        assert!(unseen.iter().all(|v| *v == 0.0) && seen.iter().any(|v| *v != 0.0), "{backend:?}");
    }
}

/// A whole decoder layer's products with rotary embeddings of both styles, whole and partial.
#[test]
fn rotary_projections_in_both_styles() {
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for (dim, rotary) in [(2, 2), (6, 6), (8, 4), (16, 16)] {
            let m = model(|m| {
                let mut r = Random::new(dim);
                let half = rotary / 2;
                let angles: Vec<f32> =
                    (0..64 * half).map(|i| (i / half) as f32 / 3.0f32.powi((i % half) as i32)).collect();
                let waves = |f: fn(f32) -> f32| angles.iter().map(|a| f(*a)).collect::<Vec<_>>();
                let cos = m.constant("cos", &[64, half], &waves(f32::cos));
                let sin = m.constant("sin", &[64, half], &waves(f32::sin));
                let w = m.constant("w", &[3 * dim, 20], &r.floats(60 * dim, 1.0));
                Box::new(move |g| {
                    let (b, s): (Dim, Dim) = ("B".into(), "S".into());
                    let x = g.input("x", Scalar::F32, &[b.clone(), s.clone(), 20.into()]);
                    let y = g.linear(x, w, None);
                    let y = g.reshape(y, &[b.clone(), s.clone(), 3.into(), dim.into()]);
                    let y = g.transpose(y, &[0, 2, 1, 3]);
                    let at = g.iota(&[b, s], 1, Dim::from(3u64));
                    let (cos, sin) = (g.weight(cos), g.weight(sin));
                    let y = g.rope(y, cos, sin, at, style, rotary);
                    g.output("y", y);
                })
            });
            let mut r = Random::new(dim);
            let cases: Vec<Inputs> = [(1, 1), (2, 7), (1, 33)]
                .iter()
                .map(|(b, s)| vec![("x".to_owned(), r.tensor(&[*b, *s, 20]))])
                .collect();
            check(&format!("{style:?} rotation of {rotary} in {dim}"), &m, &cases);
        }
    }
}

/// Rows picked by data, also beyond the table, which clamps.
#[test]
fn gather_clamps_what_lies_outside() {
    let m = model(|m| {
        let table = m.constant("table", &[7, 33], &Random::new(1).floats(7 * 33, 1.0));
        Box::new(move |g| {
            let ids = g.input("ids", Scalar::I32, &["B".into(), "S".into()]);
            let table = g.weight(table);
            let y = g.gather(table, ids);
            let y = g.unary(UnaryOp::Tanh, y);
            g.output("y", y);
        })
    });
    let ids = Tensor::i32(&[2, 3], vec![0, 6, 7, -1, i32::MAX, 3]).unwrap();
    check("gather", &m, &[vec![("ids".to_owned(), ids)]]);
}
