//! Two products in a row as one kernel: adapters, plain and gated feed-forward blocks. What they compute, what they save, and
//! where they are left alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::backend::simt::SimtBackend;
use frit::{BackendChoice, LoadedModel, Session, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::graph::NormKind;
use frit_compiler::ingest::builder::ModelBuilder;
use frit_compiler::{CompileOptions, Compiler, Model, NumericMode};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, UnaryOp};
use frit_kernels::target::Tier;
use frit_plan::{PhaseReport, RefusedEdge};
use std::sync::Arc;
use support::Random;

/// What a block is made of.
#[derive(Clone, Copy, Debug)]
struct Block {
    width: u64,
    inner: u64,
    gated: bool,
    normed: bool,
}

const ADAPTER: Block = Block { width: 64, inner: 16, gated: false, normed: false };

/// `y = x + down(act(up(norm(x))))`, with biases, for at most `rows` rows.
fn model(b: Block, rows: u64) -> Model {
    let mut m = ModelBuilder::new("block");
    let mut r = Random::new(b.inner);
    let mut matrix = |m: &mut ModelBuilder, name: &str, n: u64, k: u64| {
        m.constant(name, &[n, k], &r.floats(n * k, 1.0 / (k as f32).sqrt()))
    };
    let up = matrix(&mut m, "up", b.inner, b.width);
    let gate = b.gated.then(|| matrix(&mut m, "gate", b.inner, b.width));
    let down = matrix(&mut m, "down", b.width, b.inner);
    let gain = m.constant("gain", &[b.width], &Random::new(3).floats(b.width, 1.0));
    let bias = m.constant("bias", &[b.width], &Random::new(4).floats(b.width, 1.0));
    m.graph_with("forward", &[], &[("N", rows)], |g| {
        let x = g.input("x", Scalar::F32, &["N".into(), b.width.into()]);
        let mut h = x;
        if b.normed {
            let gain = g.weight(gain);
            h = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
        }
        let first = g.linear(h, up, None);
        let middle = match gate {
            Some(gate) => {
                let gate = g.linear(h, gate, None);
                let gate = g.unary(UnaryOp::Silu, gate);
                g.mul(gate, first)
            }
            None => g.unary(UnaryOp::GeluTanh, first),
        };
        let out = g.linear(middle, down, Some(bias));
        let y = g.add(out, x);
        g.output("y", y);
    });
    m.finish().unwrap()
}

fn forced() -> FusionOptions {
    FusionOptions { force_chains: true, ..FusionOptions::default() }
}

fn compiled(model: &Model, fusion: FusionOptions) -> LoadedModel {
    support::compile_with(model, fusion, CompileOptions::default().targets)
}

fn chains(phase: &PhaseReport) -> usize {
    phase.regions.iter().filter(|r| r.kind == "chain").count()
}

/// One launch in place of two or three, on the CPU, on an adapter, and as text of every tier under all checks, at rows off the
/// tile and on it.
#[test]
fn blocks_are_one_launch_and_compute_what_their_operations_do() {
    for block in [
        ADAPTER,
        Block { normed: true, ..ADAPTER },
        Block { width: 20, inner: 70, gated: true, normed: true },
        Block { width: 33, inner: 5, gated: false, normed: true },
        Block { width: 128, inner: 130, gated: true, normed: false },
    ] {
        let model = model(block, 4);
        let chained = compiled(&model, forced());
        let split = compiled(&model, FusionOptions { fuse_chains: false, ..FusionOptions::default() });
        let [one, two] = [&chained, &split].map(|m| m.plan.programs[0].steps.len());
        assert_eq!((one, two), (1, 2), "{block:?}");
        assert_eq!(chains(&chained.plan.report.phases[0]), 1);
        assert!(matches!(chained.plan.kernels[0].spec.anchor, Anchor::Chain(_)));
        for rows in [1, 3] {
            let x = Random::new(rows).tensor(&[rows, block.width]);
            let inputs = [("x".to_owned(), x)];
            let want = support::oracle(&model, "forward", &[("N", rows)], &inputs);
            let near = |what: &str, mut s: Session| {
                let found: Vec<(String, Tensor)> = s.run(&inputs).unwrap();
                let off = support::distance(what, &found[0].1, &want[0].1);
                assert!(off < 2e-5, "{block:?} {rows} rows, {what}: {off}");
            };
            near("cpu", support::open(&chained, BackendChoice::Cpu));
            near("wgpu", support::open(&chained, BackendChoice::Wgpu));
            for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
                let simt = SimtBackend::new(tier, Some(5));
                let checks = simt.checks();
                let s = Session::builder().bind_on(&simt, Arc::clone(&chained.plan), &*chained.weights).unwrap();
                near(tier.name(), s);
                assert!(checks.kernels().iter().all(|k| k.violations.is_empty()), "{block:?} {}", tier.name());
            }
        }
    }
}

/// More rows than a tile has, in several workgroups.
#[test]
fn chains_of_many_rows() {
    let block = Block { width: 48, inner: 24, gated: true, normed: false };
    let model = model(block, 100_000);
    let chained = compiled(&model, forced());
    assert_eq!(chains(&chained.plan.report.phases[0]), 1);
    for rows in [7, 8, 65] {
        let inputs = [("x".to_owned(), Random::new(rows).tensor(&[rows, block.width]))];
        let want = support::oracle(&model, "forward", &[("N", rows)], &inputs);
        for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
            let found = support::open(&chained, backend).run(&inputs).unwrap();
            let off = support::distance("y", &found[0].1, &want[0].1);
            assert!(off < 2e-5, "{rows} rows on {backend:?}: {off}");
        }
    }
}

fn refusals(model: &Model, fusion: FusionOptions) -> Vec<RefusedEdge> {
    let plan = support::compile_with(model, fusion, Vec::new()).plan;
    plan.report.phases[0].refused.iter().filter(|r| r.to.starts_with("matmul")).cloned().collect()
}

/// The cost model takes an adapter of few rows, and refuses with its numbers where rows or widths are many.
#[test]
fn the_cost_model_takes_small_chains_alone() {
    let small = compiled(&model(ADAPTER, 4), FusionOptions::default());
    assert_eq!(chains(&small.plan.report.phases[0]), 1);
    let wider = Block { width: 192, inner: 512, gated: true, normed: true };
    let cases = [
        (ADAPTER, 100_000, "N-CHAIN", "B of weights are read again"),
        (wider, 1, "N-PAR", "1 workgroups of 8 rows < 128 that fill the gpu tier"),
    ];
    for (block, rows, code, said) in cases {
        let found = refusals(&model(block, rows), FusionOptions::default());
        let [edge] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(edge.code, code);
        assert!(edge.detail.contains(said) && edge.detail.contains("us"), "{}", edge.detail);
    }
    let wide = refusals(&model(Block { width: 1024, inner: 8, gated: false, normed: false }, 4), forced());
    assert!(wide[0].code == "L10-SMEM" && wide[0].detail.contains("do not fit a workgroup"), "{wide:?}");
}

#[test]
fn chains_are_switched_off_and_not_strict() {
    let model = model(ADAPTER, 4);
    let code = |fusion| refusals(&model, fusion)[0].code.clone();
    assert_eq!(code(FusionOptions { fuse_chains: false, ..forced() }), "L20-USER");
    assert_eq!(code(FusionOptions { numeric: NumericMode::Strict, ..forced() }), "L18-MODE");
    let mut o = CompileOptions::default();
    assert!(CompileOptions::ids().contains(&"chain") && o.disable("chain"));
    assert_eq!(chains(&Compiler::new(o).compile(&model).unwrap().report.phases[0]), 0);
}

/// A chain's kernel against its operations, in f64; and a model whose every feed-forward block is forced into one.
#[test]
fn chains_are_validated() {
    for model in [
        model(Block { normed: true, gated: true, ..ADAPTER }, 4),
        support::load("devset/llama_gqa"),
        support::load("devset/gpt2"),
    ] {
        let validate = Some(CompileOptions::VALIDATION_BUDGET);
        let plan = Compiler::new(CompileOptions { fusion: forced(), validate, ..CompileOptions::default() });
        let plan = plan.compile(&model).unwrap();
        assert!(plan.report.phases.iter().any(|p| chains(p) > 0));
        assert_eq!(plan.report.validation.dropped, Vec::<String>::new());
    }
}
