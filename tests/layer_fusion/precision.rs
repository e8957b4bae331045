//! Matmuls whose operands are sums of bf16 numbers.

use crate::support::{self, Random};
use frit::backend::simt::SimtBackend;
use frit::verify::{VerifyOptions, verify};
use frit::{BackendChoice, LoadedModel, Session, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::ingest::builder::ModelBuilder;
use frit_compiler::{CompileOptions, Model};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{MatmulPrecision, split_bf16, to_bf16};
use frit_kernels::target::Tier;
use std::sync::Arc;

/// The nearest of the bf16 around `x`, found among all of them by distance in float64; of two, the one whose last bit is 0.
fn nearest(x: f32) -> f32 {
    let below = f32::from_bits(x.to_bits() & 0xffff_0000);
    let above = f32::from_bits((x.to_bits() & 0xffff_0000).wrapping_add(0x1_0000));
    let far = |v: f32| if v.is_infinite() { f64::from(x.signum()) * 2f64.powi(128) } else { f64::from(v) };
    let (low, high) = ((f64::from(x) - far(below)).abs(), (f64::from(x) - far(above)).abs());
    let even = (below.to_bits() >> 16) & 1 == 0;
    if low < high || low == high && even { below } else { above }
}

#[test]
fn row_10_bf16_rounds_to_nearest_even() {
    for upper in 0..=0xffffu32 {
        let exact = f32::from_bits(upper << 16);
        if exact.is_nan() {
            assert!(to_bf16(exact).is_nan());
            assert!(to_bf16(f32::from_bits(upper << 16 | 0xffff)).is_nan());
            continue;
        }
        assert_eq!(to_bf16(exact).to_bits(), exact.to_bits());
        for lower in [1, 2, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff] {
            let x = f32::from_bits(upper << 16 | lower);
            if x.is_nan() {
                // Behind infinity: a NaN by its lower half alone stays one.
                assert!(to_bf16(x).is_nan());
                continue;
            }
            assert_eq!(to_bf16(x).to_bits(), nearest(x).to_bits(), "{x:e} ({:x})", x.to_bits());
        }
    }
    // Three parts hold all 24 bits.
    let mut r = Random::new(10);
    for _ in 0..10_000 {
        let x = r.unit() * 2f32.powi(r.below(40) as i32 - 20);
        let (a, rest) = split_bf16(x);
        let (b, rest) = split_bf16(rest);
        let (c, rest) = split_bf16(rest);
        assert_eq!((f64::from(a) + f64::from(b) + f64::from(c), rest), (f64::from(x), 0.0));
    }
    assert_eq!(split_bf16(f32::INFINITY), (f32::INFINITY, 0.0));
    assert_eq!(split_bf16(f32::MAX), (f32::INFINITY, 0.0));
}

/// Numbers of a normal distribution, by sums of twelve uniform ones.
fn normal(r: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| (0..12).map(|_| r.unit()).sum::<f32>() / 2.0).collect()
}

/// `x [M, k]` times the transpose of `w [n, k]`.
fn product(w: &[f32], n: usize, k: usize) -> Model {
    let mut m = ModelBuilder::new("product");
    let w = m.constant("w", &[n as u64, k as u64], w);
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &["M".into(), (k as u64).into()]);
        let y = g.linear(x, w, None);
        g.output("y", y);
    });
    m.finish().unwrap()
}

fn compiled(model: &Model, precision: MatmulPrecision) -> LoadedModel {
    let fusion = FusionOptions { matmul_precision: precision, ..FusionOptions::default() };
    support::compile_with(model, fusion, CompileOptions::default().targets)
}

/// Runs on the CPU, on an adapter, and kernel texts of all three tiers.
fn on_each(m: &LoadedModel, x: &Tensor, mut then: impl FnMut(&str, &[f32])) {
    let mut run = |name: &str, mut session: Session| {
        let out = session.run(&[("x", x.clone())]).unwrap_or_else(|e| panic!("{name}: {e}"));
        then(name, out[0].1.as_f32().unwrap());
    };
    run("the CPU", support::open(m, BackendChoice::Cpu));
    run("wgpu", support::open(m, BackendChoice::Wgpu));
    for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
        let simt = SimtBackend::new(tier, None);
        let session = Session::builder().bind_on(&simt, Arc::clone(&m.plan), &*m.weights).unwrap();
        run(&format!("the interpreter, {}", tier.name()), session);
        let broken: Vec<_> = simt.checks().kernels().into_iter().flat_map(|k| k.violations).collect();
        assert!(broken.is_empty(), "{}: {broken:?}", tier.name());
    }
}

/// Sums of 4096 products, one row and many: every element within the bound of its precision, and the errors of the table.
#[test]
fn row_10_errors_by_precision() {
    let k = 4096;
    for (rows, columns) in [(1usize, 9usize), (9, 5)] {
        let mut r = Random::new(rows as u64);
        let (x, w) = (normal(&mut r, rows * k), normal(&mut r, columns * k));
        let dot = |f: &dyn Fn(f64) -> f64, i: usize, j: usize| -> f64 {
            (0..k).map(|t| f(f64::from(x[i * k + t]) * f64::from(w[j * k + t]))).sum()
        };
        let cells: Vec<(usize, usize)> = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).collect();
        let want: Vec<f64> = cells.iter().map(|(i, j)| dot(&|v| v, *i, *j)).collect();
        let magnitude: Vec<f64> = cells.iter().map(|(i, j)| dot(&f64::abs, *i, *j)).collect();
        let most = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let model = product(&w, columns, k);
        let x = Tensor::f32(&[rows as u64, k as u64], x.clone()).unwrap();
        let mut plain: Vec<(String, f64)> = Vec::new();
        for precision in
            [MatmulPrecision::F32, MatmulPrecision::Bf16x1, MatmulPrecision::Bf16x2, MatmulPrecision::Bf16x3]
        {
            let bound = precision.error_bound(k as u64);
            on_each(&compiled(&model, precision), &x, |name, got| {
                let what = format!("{} on {name}, {rows} rows", precision.name());
                assert_eq!(got.len(), want.len());
                let mut worst = 0.0f64;
                for ((g, w), m) in got.iter().zip(&want).zip(&magnitude) {
                    let off = (f64::from(*g) - w).abs();
                    assert!(off <= bound * m, "{what}: {g} for {w}");
                    worst = worst.max(off / most);
                }
                match precision {
                    MatmulPrecision::Bf16x1 => assert!(worst <= 1e-2 && worst > 1e-5, "{what}: {worst:e}"),
                    MatmulPrecision::Bf16x2 => assert!(worst <= 2e-5, "{what}: {worst:e}"),
                    MatmulPrecision::Bf16x3 => {
                        let own = plain.iter().find(|(n, _)| n == name).unwrap().1;
                        // Two errors of the same size can fall either way: an ulp of the largest is allowed for.
                        assert!(worst <= 2.0 * own + 1.2e-7, "{what}: {worst:e}, f32 {own:e}");
                    }
                    _ => plain.push((name.to_owned(), worst)),
                }
            });
        }
    }
}

/// T4: where both sides are bf16 numbers already, one product says all: the bits are those of `f32`, wherever the same
/// instructions multiply.
#[test]
fn row_10_exact_operands_lose_nothing() {
    let (rows, columns, k) = (11usize, 13usize, 100usize);
    let mut r = Random::new(4);
    let mut exact = |n: usize| -> Vec<f32> { r.floats(n as u64, 1.0).into_iter().map(to_bf16).collect() };
    let (x, w) = (exact(rows * k), exact(columns * k));
    let model = product(&w, columns, k);
    let x = Tensor::f32(&[rows as u64, k as u64], x).unwrap();
    let mut f32s: Vec<(String, Vec<f32>)> = Vec::new();
    on_each(&compiled(&model, MatmulPrecision::F32), &x, |name, got| f32s.push((name.to_owned(), got.to_vec())));
    for precision in [MatmulPrecision::Bf16x1, MatmulPrecision::Bf16x2, MatmulPrecision::Bf16x3] {
        on_each(&compiled(&model, precision), &x, |name, got| {
            let want = &f32s.iter().find(|(n, _)| n == name).unwrap().1;
            let off = got.iter().zip(want).fold(0.0f32, |m, (g, w)| m.max((g - w).abs()));
            if name.contains("cuda") || precision != MatmulPrecision::Bf16x1 {
                // Matrix units, and terms that are zeros, add in another order.
                assert!(off <= 2e-6, "{} on {name}: {off:e}", precision.name());
            } else {
                assert_eq!(got, want, "{} on {name}", precision.name());
            }
        });
    }
}

/// Precisions are part of a kernel, in reports and in the artifact, and of what a whole decoder computes.
#[test]
fn row_10_a_decoder_in_each_precision() {
    let model = support::load("devset/llama_gqa");
    let ids = Tensor::i32(&[2, 7], Random::new(3).ints(&[2, 7], 90).as_i32().unwrap().to_vec()).unwrap();
    let inputs = [("input_ids".to_owned(), ids)];
    let want = support::oracle(&model, "forward", &[("B", 2), ("S", 7), ("P", 0), ("T", 7)], &inputs);
    for (precision, tolerance) in [
        (MatmulPrecision::F32, 1e-5),
        (MatmulPrecision::Bf16x1, 3e-2),
        (MatmulPrecision::Bf16x2, 1e-4),
        (MatmulPrecision::Bf16x3, 1e-5),
    ] {
        let m = compiled(&model, precision);
        let matmuls = m.plan.kernels().filter(|k| k.spec.precision == precision).count();
        assert!(matmuls >= 4, "{matmuls} of {}", m.plan.kernels.len());
        assert!(m.plan.report.numeric.contains(precision.name()), "{}", m.plan.report.numeric);
        for backend in crate::harness::BACKENDS {
            let got = support::open(&m, backend).run(&inputs).unwrap();
            let off = support::distance("logits", &got[0].1, &want[0].1);
            assert!(off <= tolerance, "{} on {backend:?}: {off:e}", precision.name());
            assert!(precision != MatmulPrecision::Bf16x1 || off > 1e-6, "nothing was rounded: {off:e}");
        }
        if precision == MatmulPrecision::Bf16x3 {
            // Matrix units with three tiles of each side, two right sides included, under all checks.
            let options = VerifyOptions { batch: 2, tokens: 9, new_tokens: 0, ..VerifyOptions::default() };
            let found = verify(&m, Tier::Cuda, &options).unwrap_or_else(|e| panic!("{e}"));
            assert!(found.passed(), "{:?}", found.outputs);
        }
    }
}
