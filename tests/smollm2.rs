//! A real model at full size: SmolLM2-135M-Instruct in Q4_1, which `fixtures/fetch.sh` brings and `tests/run.sh` names
//! in the variable `FRIT_SMOLLM2`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor};
use std::ops::ControlFlow;
use std::sync::OnceLock;

const PROMPT: &str = "The capital of France is";

fn model() -> &'static LoadedModel {
    static MODEL: OnceLock<LoadedModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = std::env::var_os("FRIT_SMOLLM2")
            .expect("FRIT_SMOLLM2 names no model; `bash fixtures/fetch.sh` brings it and prints its path");
        frit::model_source::open(path.as_ref(), &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
    })
}

fn ids() -> Vec<u32> {
    Tokenizer::of(&model().plan.model).unwrap().unwrap().encode(PROMPT).unwrap()
}

fn answer(session: &mut Session, tokens: usize) -> String {
    let options = GenerateOptions { max_new_tokens: tokens, ..Default::default() };
    let made = session.generate(&[ids()], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    Tokenizer::of(&model().plan.model).unwrap().unwrap().decode(&made.rows[0].tokens).unwrap()
}

fn logits(session: &mut Session) -> Vec<f32> {
    let ids: Vec<i32> = ids().iter().map(|t| *t as i32).collect();
    let input = Tensor::i32(&[1, ids.len() as u64], ids).unwrap();
    let out = session.run(&[("input_ids", input)]).unwrap().remove(0).1;
    out.as_f32().unwrap().to_vec()
}

#[test]
fn its_layers_are_five_launches_a_token() {
    let plan = &model().plan;
    let decode = plan.report.phases.iter().find(|p| p.program == "decode").unwrap();
    assert_eq!(plan.model.layers, 30);
    assert!(decode.dispatches_per_layer <= 5 && decode.dispatches <= 5 * 30 + 3, "{}", decode.dispatches);
    assert_eq!((decode.attention.fused, decode.attention.blocks), (30, 30));
    assert!(plan.kernels.len() <= 66, "{} kernels for 30 equal layers", plan.kernels.len());
}

/// With any number of rows as well: the norm in front of gate and up is commuted through them.
#[test]
fn its_layers_are_five_launches_a_prompt() {
    for phase in model().plan.report.phases.iter().filter(|p| ["forward", "prefill"].contains(&p.program.as_str())) {
        assert_eq!(phase.dispatches_per_layer, 5, "{}", phase.program);
        assert!(phase.dispatches <= 5 * 30 + 4, "{} {}", phase.program, phase.dispatches);
        assert!(phase.regions.iter().filter(|r| r.norm == "commuted").count() >= 30, "{}", phase.program);
    }
}

/// Both backends answer, and wgpu's logits at every position of the prompt stay within 2e-2 of the largest magnitude of
/// the CPU's.
#[test]
fn it_knows_the_capital_of_france_on_both_backends() {
    let mut cpu = support::open(model(), BackendChoice::Cpu);
    assert!(answer(&mut cpu, 8).starts_with(" Paris"), "{}", answer(&mut cpu, 8));
    let want = logits(&mut cpu);
    drop(cpu);
    let mut wgpu = support::open(model(), BackendChoice::Wgpu);
    let said = answer(&mut wgpu, 2);
    assert!(said.starts_with(" Paris"), "{said}");
    let got = logits(&mut wgpu);
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let off = got.iter().zip(&want).fold(0.0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(largest.is_finite() && largest > 1.0 && off <= 2e-2 * largest, "off by {off} of {largest}");
}
