//! What a token costs after warm-up: one submission, one pass, nothing created, four bytes back a row.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::backend::Counters;
use frit::{BackendChoice, GenerateOptions, Session};
use std::ops::ControlFlow;

fn generate(session: &mut Session, prompts: &[Vec<u32>], tokens: usize) {
    let options = GenerateOptions { max_new_tokens: tokens, ignore_eos: true, ..Default::default() };
    let made = session.generate(prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(made.rows.iter().all(|r| r.tokens.len() == tokens));
}

/// What a generation of one token and one of `tokens` cost, each after a run that leaves the device in the same state.
fn costs(session: &mut Session, prompts: &[Vec<u32>], tokens: usize) -> [Counters; 2] {
    [1, tokens].map(|n| {
        generate(session, prompts, 3);
        let before = session.counters();
        generate(session, prompts, n);
        minus(&session.counters(), &before)
    })
}

fn minus(a: &Counters, b: &Counters) -> Counters {
    Counters {
        dispatches: a.dispatches - b.dispatches,
        submits: a.submits - b.submits,
        passes: a.passes - b.passes,
        writes: a.writes - b.writes,
        read_bytes: a.read_bytes - b.read_bytes,
        pipelines: a.pipelines - b.pipelines,
        bind_groups: a.bind_groups - b.bind_groups,
        buffers: a.buffers - b.buffers,
    }
}

/// The counters of `TOKENS` decode runs: those of a prompt and `1 + TOKENS` tokens, less those of a prompt and one.
const TOKENS: u64 = 12;

fn decode(session: &mut Session, prompts: &[Vec<u32>]) -> Counters {
    generate(session, prompts, 1 + TOKENS as usize);
    let [one, many] = costs(session, prompts, 1 + TOKENS as usize);
    minus(&many, &one)
}

fn prompts(rows: usize) -> Vec<Vec<u32>> {
    (0..rows).map(|r| (0..5 + r as u32).map(|i| 3 + (7 * i + 11 * r as u32) % 55).collect()).collect()
}

fn check(model: &str, rows: usize, backend: BackendChoice) {
    let loaded = support::compile(&support::load(model));
    let mut session = support::open(&loaded, backend);
    let c = decode(&mut session, &prompts(rows));
    let program = if rows <= 4 { "decode" } else { "decode_wide" };
    let launches = loaded.plan.program(program).unwrap().steps.len() as u64;
    let what = format!("{model}, {rows} rows on {backend:?}: {c:?}");
    assert_eq!(c.dispatches, TOKENS * launches, "{what}");
    assert_eq!((c.pipelines, c.bind_groups, c.buffers), (0, 0, 0), "{what}");
    if backend == BackendChoice::Wgpu {
        assert_eq!((c.submits, c.passes), (TOKENS, TOKENS), "{what}");
        assert_eq!(c.read_bytes, 4 * TOKENS * rows as u64, "{what}");
        assert_eq!(c.writes, TOKENS, "{what}: the table of sizes and nothing else");
    }
}

#[test]
fn a_token_of_the_lexicon_costs_one_submission_and_creates_nothing() {
    check("lexicon", 1, BackendChoice::Wgpu);
}

#[test]
fn so_does_a_token_of_several_rows() {
    check("devset/gpt2", 3, BackendChoice::Wgpu);
    check("devset/llama_gqa", 6, BackendChoice::Wgpu);
}

#[test]
fn the_processor_creates_nothing_either() {
    check("lexicon", 1, BackendChoice::Cpu);
    check("devset/qwen2", 3, BackendChoice::Cpu);
}

/// A layer is at most five launches in decode, a token at most 5L + 3, and no launch binds more than eight buffers.
fn within_five_a_layer(model: &str) {
    let loaded = support::compile(&support::load(model));
    let layers = loaded.plan.model.layers;
    assert!(layers > 0, "{model} has no layers");
    let decode = loaded.plan.report.phases.iter().find(|p| p.program == "decode").unwrap();
    assert!(decode.dispatches_per_layer <= 5, "{model}: {} a layer", decode.dispatches_per_layer);
    assert!(decode.dispatches <= 5 * layers + 3, "{model}: {} a token", decode.dispatches);
    assert!(decode.regions.iter().all(|r| r.bindings <= 8), "{model}");
}

/// Layers with norms behind their parts, in front of rotations, or both, beside the plain form.
#[test]
fn a_layer_takes_five_launches_whatever_its_norms() {
    for model in ["gemma", "gemma2", "gemma3", "qwen3", "mistral", "cohere"] {
        within_five_a_layer(&format!("families/{model}"));
    }
    check("families/gemma3", 1, BackendChoice::Wgpu);
    check("families/qwen3", 3, BackendChoice::Cpu);
}

/// Decoders that an exporter wrote compute what a config says of the others: angles, masks and positions are no launches
/// of a layer.
#[test]
fn decoders_from_onnx_take_no_more() {
    for model in ["llama_gqa_past", "gpt2_past"] {
        within_five_a_layer(&format!("onnx/{model}.onnx"));
    }
    check("onnx/llama_gqa_past.onnx", 1, BackendChoice::Wgpu);
    check("onnx/gpt2_past.onnx", 3, BackendChoice::Cpu);
}
