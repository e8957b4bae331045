//! What the number of rows decides: the schedule of products, and which rows are computed at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::{BackendChoice, Tensor};
use frit_compiler::graph::NormKind;
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::{Compiler, Model};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::Anchor;
use frit_kernels::target::Tier;
use frit_plan::{Plan, sizes};
use support::Random;

/// How the products of a program are scheduled on graphics cards.
fn schedules(plan: &Plan, program: &str) -> Vec<String> {
    let kernels = plan.program(program).unwrap().steps.iter().map(|s| &plan.kernels[s.kernel as usize]);
    let products = kernels.filter(|k| matches!(k.spec.anchor, Anchor::MatMul { .. }));
    products.map(|k| k.variant(Tier::Gpu).unwrap().schedule.template.clone()).collect()
}

/// Of up to four sequences each row is multiplied by itself; of more, a weight that is read serves many rows.
#[test]
fn batched_decoding_multiplies_matrices() {
    for model in ["lexicon", "devset/gpt2", "onnx/llama_gqa_past.onnx"] {
        let plan = support::compile(&support::load(model)).plan;
        for (program, schedule) in [("decode", "gemv"), ("decode_wide", "gemm_staged")] {
            let found = schedules(&plan, program);
            assert!(!found.is_empty() && found.iter().all(|s| s == schedule), "{model} {program}: {found:?}");
        }
    }
}

/// Prompts compute the logits of their last row alone, whoever wrote the graph.
#[test]
fn prompts_have_logits_of_one_row() {
    for model in ["lexicon", "devset/gpt2", "onnx/gpt2_past.onnx", "onnx/llama_gqa_past.onnx"] {
        let plan = support::compile(&support::load(model)).plan;
        let prefill = plan.report.phases.iter().find(|p| p.program == "prefill").unwrap();
        let last = prefill.regions.iter().rfind(|r| r.kind == "matmul").unwrap();
        let of_tokens = last.flops.symbols().iter().any(|s| s.to_string() == sizes::TOKENS);
        assert!(!of_tokens && !last.flops.is(0), "{model}: {} in {}", last.flops, last.kernel);
    }
}

/// A product of `N` rows, normed and gained, of which `build` makes the outputs.
fn cut(build: impl FnOnce(&mut GraphBuilder<'_>, frit_compiler::graph::ValueId)) -> Model {
    let mut m = ModelBuilder::new("cut");
    m.size("N", 8, None);
    let mut r = Random::new(5);
    let w = m.constant("w", &[24, 40], &r.floats(24 * 40, 0.5));
    let (bias, gain) = (m.constant("b", &[24], &r.floats(24, 1.0)), m.constant("g", &[40], &r.floats(40, 1.0)));
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &[2.into(), "N".into(), 40.into()]);
        let gain = g.weight(gain);
        let x = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
        let y = g.linear(x, w, Some(bias));
        build(g, y);
    });
    m.finish().unwrap()
}

/// Whether some region computes for all N rows; the outputs are the reference's.
fn takes_all_rows(model: &Model) -> bool {
    let plan = Compiler::default().compile(model).unwrap();
    let all = plan.report.phases[0].regions.iter().any(|r| r.flops.symbols().iter().any(|s| s.to_string() == "N"));
    let mut inputs = vec![("x".to_owned(), Random::new(9).tensor(&[2, 19, 40]))];
    if model.graph("forward").unwrap().graph.inputs.iter().any(|i| i.name == "other") {
        inputs.push(("other".to_owned(), Random::new(10).tensor(&[2, 19, 24])));
    }
    let want = support::oracle(model, "forward", &[("N", 19)], &inputs);
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        let mut session = support::open(&support::compile(model), backend);
        let given: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        for ((name, got), (_, want)) in session.run(&given).unwrap().iter().zip(&want) {
            assert!(support::distance(name, got, want) < 1e-5, "{name} on {backend:?}");
        }
    }
    all
}

#[test]
fn rows_that_nobody_reads_are_not_made() {
    let last = || Dim::size("N") - Dim::from(3);
    let cut_rows = |g: &mut GraphBuilder<'_>, y| g.slice(y, 1, last(), 2.into());
    assert!(!takes_all_rows(&cut(|g, y| {
        let y = cut_rows(g, y);
        g.output("y", y);
    })));
    // Something else reads them.
    assert!(takes_all_rows(&cut(|g, y| {
        let z = cut_rows(g, y);
        g.output("z", z);
        g.output("y", y);
    })));
    // Columns are cut.
    assert!(takes_all_rows(&cut(|g, y| {
        let y = g.slice(y, 2, 5.into(), 7.into());
        g.output("y", y);
    })));
    // What is added differs from row to row.
    assert!(takes_all_rows(&cut(|g, y| {
        let x = g.input("other", Scalar::F32, &[2.into(), "N".into(), 24.into()]);
        let y = g.add(y, x);
        let y = cut_rows(g, y);
        g.output("y", y);
    })));
}
