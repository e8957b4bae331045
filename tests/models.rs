//! Models of `fixtures/` against their float64 goldens, on the CPU and on wgpu (the software adapter where there is no
//! card). Element-wise bounds are those of the fixtures' index: `|got − want| ≤ atol + rtol·|want|`.

use frit::{BackendChoice, GenerateOptions, Session, Tensor, model_source, npz, visible_tokens};
use frit_compiler::{CompileOptions, NumericMode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn arrays(path: &Path) -> BTreeMap<String, Tensor> {
    npz::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into_iter().collect()
}

fn index() -> Value {
    let text = std::fs::read_to_string(fixtures().join("devset/index.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(model: &Path, backend: BackendChoice) -> Session {
    Session::builder().backend(backend).load(model).unwrap_or_else(|e| panic!("{}: {e}", model.display()))
}

/// Rows of `want` that count: all, or those whose mask entry is 1.
fn assert_close(tag: &str, got: &Tensor, want: &Tensor, atol: f32, rtol: f32, mask: Option<&[i32]>) {
    assert_eq!(got.shape(), want.shape(), "{tag}");
    let (g, w) = (got.as_f32().unwrap(), want.as_f32().unwrap());
    let row = mask.map_or(w.len().max(1), |m| w.len() / m.len());
    let mut compared = 0;
    for (i, (g, w)) in g.iter().zip(w).enumerate() {
        assert!(g.is_finite(), "{tag}: element {i} is {g}");
        if mask.is_none_or(|m| m[i / row] != 0) {
            assert!((g - w).abs() <= atol + rtol * w.abs(), "{tag}: element {i} is {g}, {w} expected");
            compared += 1;
        }
    }
    assert!(compared > 0, "{tag}: nothing was compared");
}

fn case(tag: &str, session: &mut Session, root: &Path, case: &Value) {
    let inputs: Vec<(String, Tensor)> = arrays(&root.join(case["inputs"].as_str().unwrap())).into_iter().collect();
    let want = arrays(&root.join(case["outputs"].as_str().unwrap()));
    let mask = inputs.iter().find(|(n, _)| n == "attention_mask" && case.get("compare_where").is_some());
    let mask = mask.and_then(|(_, t)| t.as_i32()).map(<[i32]>::to_vec);
    let got: BTreeMap<String, Tensor> =
        session.run(&inputs).unwrap_or_else(|e| panic!("{tag}: {e}")).into_iter().collect();
    let bound = |k: &str| case[k].as_f64().unwrap() as f32;
    for (name, want) in want.iter().filter(|(n, _)| *n != "greedy_tokens") {
        let tag = format!("{tag} {name}");
        assert_close(&tag, &got[name], want, bound("atol"), bound("rtol"), mask.as_deref());
    }
}

/// A model compiled in a numeric mode.
fn open_in(mode: NumericMode, model: &Path, backend: BackendChoice) -> Session {
    let mut options = CompileOptions::default();
    options.fusion.numeric = mode;
    let loaded = model_source::compile_with(model, options, &mut |_| {}).unwrap();
    assert_eq!(loaded.plan.report.numeric, mode.name());
    let reordered = loaded.plan.report.phases.iter().flat_map(|p| &p.regions).any(|r| r.class != "BIT");
    assert!(mode != NumericMode::Strict || !reordered, "a region that reorders sums in mode strict");
    Session::builder().backend(backend).open(&loaded).unwrap()
}

fn directory(name: &str, backend: BackendChoice) {
    directory_in(NumericMode::Default, name, backend);
}

fn directory_in(mode: NumericMode, name: &str, backend: BackendChoice) {
    let (index, root) = (index(), fixtures().join("devset"));
    let model = index["models"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone();
    let mut session = open_in(mode, &root.join(model["dir"].as_str().unwrap()), backend);
    for (i, c) in model["cases"].as_array().unwrap().iter().enumerate() {
        case(&format!("{name} case {i} on {backend:?}"), &mut session, &root, c);
    }
    let Some(g) = model.get("generate") else { return };
    let file = arrays(&root.join(g["file"].as_str().unwrap()));
    let prompts = visible_tokens(&file["prompt_input_ids"], file.get("prompt_attention_mask")).unwrap();
    let options = GenerateOptions { max_new_tokens: 16, ..Default::default() };
    let made = session.generate(&prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let want: Vec<u32> = file["tokens"].as_i32().unwrap().iter().map(|t| *t as u32).collect();
    assert_eq!(made.rows[0].tokens, want, "{name} on {backend:?}");
}

fn gguf(backend: BackendChoice) {
    let (index, root) = (index(), fixtures().join("devset"));
    for c in index["gguf"].as_array().unwrap() {
        let file = c["file"].as_str().unwrap();
        case(&format!("{file} on {backend:?}"), &mut open(&root.join(file), backend), &root, c);
    }
}

/// Every prompt of the lexicon's goldens: logits at every position, then 24 greedy tokens, end-of-text not stopping.
fn lexicon(file: &str, prefix: &str, backend: BackendChoice) {
    let root = fixtures().join("lexicon");
    let golden = arrays(&root.join("golden.npz"));
    let mut session = open(&root.join(file), backend);
    for p in 0..5 {
        let ids = golden[&format!("p{p}_ids")].as_i32().unwrap().to_vec();
        let input = Tensor::i32(&[1, ids.len() as u64], ids.clone()).unwrap();
        let logits = &session.run(&[("input_ids", input)]).unwrap()[0].1;
        let want = &golden[&format!("{prefix}p{p}_logits")];
        let want = Tensor::f32(logits.shape(), want.as_f32().unwrap().to_vec()).unwrap();
        assert_close(&format!("prompt {p} of {file} on {backend:?}"), logits, &want, 1e-3, 1e-3, None);
        let prompt: Vec<u32> = ids.iter().map(|t| *t as u32).collect();
        let options = GenerateOptions { max_new_tokens: 24, ignore_eos: true, ..Default::default() };
        let made = session.generate(&[prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap();
        let greedy: Vec<u32> =
            golden[&format!("{prefix}p{p}_greedy")].as_i32().unwrap().iter().map(|t| *t as u32).collect();
        assert_eq!(made.rows[0].tokens, greedy, "prompt {p} of {file} on {backend:?}");
    }
}

macro_rules! on_each_backend {
    ($($name:ident: $call:expr;)*) => {
        mod cpu { use super::*; $(#[test] fn $name() { let f: fn(BackendChoice) = $call; f(BackendChoice::Cpu); })* }
        mod wgpu { use super::*; $(#[test] fn $name() { let f: fn(BackendChoice) = $call; f(BackendChoice::Wgpu); })* }
    };
}

on_each_backend! {
    gpt2_matches_its_goldens: |b| directory("gpt2", b);
    bert_matches_its_goldens: |b| directory("bert", b);
    llama_matches_its_goldens: |b| directory("llama_gqa", b);
    qwen2_matches_its_goldens: |b| directory("qwen2", b);
    strict_models_match_their_goldens: |b| for m in ["gpt2", "bert", "llama_gqa", "qwen2"] {
        directory_in(NumericMode::Strict, m, b);
    };
    // BERT's activation is the error function, which this mode approximates.
    fast_models_without_approximations_match_their_goldens: |b| for m in ["gpt2", "llama_gqa", "qwen2"] {
        directory_in(NumericMode::Fast, m, b);
    };
    gguf_files_match_their_goldens: gguf;
    lexicon_speaks_as_its_goldens: |b| lexicon("", "", b);
    lexicon_in_q8_0_speaks_as_its_goldens: |b| lexicon("lexicon-q8_0.gguf", "q8_", b);
}

/// Sequences of unlike length in one batch give what each gives alone, whichever side they are padded on.
#[test]
fn padding_does_not_change_what_a_row_says() {
    let mut session = open(&fixtures().join("devset/llama_gqa"), BackendChoice::Cpu);
    let prompts: Vec<Vec<u32>> = vec![vec![5, 17, 101], vec![9], vec![3, 4, 5, 6, 7, 8, 9]];
    let options = GenerateOptions { max_new_tokens: 8, ..Default::default() };
    let mut run = |p: &[Vec<u32>]| session.generate(p, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let together = run(&prompts);
    for (p, row) in prompts.iter().zip(&together.rows) {
        assert_eq!(run(std::slice::from_ref(p)).rows[0].tokens, row.tokens);
    }
}

/// A prompt cut into chunks gives the tokens of the whole prompt, and more sequences than the decode program takes give
/// the same as one.
#[test]
fn chunks_and_wide_batches_change_nothing() {
    let mut session = open(&fixtures().join("devset/gpt2"), BackendChoice::Cpu);
    let prompt: Vec<u32> = (0..23).map(|i| (i * 37 + 11) % 199).collect();
    let mut run = |n: usize, chunk: u64| {
        let options = GenerateOptions { max_new_tokens: 6, chunk, ..Default::default() };
        session.generate(&vec![prompt.clone(); n], &options, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let whole = run(1, 128).rows[0].tokens.clone();
    assert_eq!(run(1, 5).rows[0].tokens, whole);
    assert!(run(7, 128).rows.iter().all(|r| r.tokens == whole));
}
