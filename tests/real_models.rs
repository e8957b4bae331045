//! Real models against other engines, on the CPU and on wgpu: what onnxruntime gives for ONNX files, and transformers in
//! float64 for directories.
//!
//! `fixtures/fetch_real.sh` brings the models and prints their folder, which the variable `FRIT_REAL_MODELS` names; the
//! answers are in `fixtures/real`, made by `fixtures/tools/make_real.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor, model_source, npz};
use frit_kernels::dtype::Storage;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn open(name: &str) -> LoadedModel {
    let folder = std::env::var_os("FRIT_REAL_MODELS")
        .expect("FRIT_REAL_MODELS names no folder; `bash fixtures/fetch_real.sh` brings it and prints its path");
    model_source::open(&PathBuf::from(folder).join(name), &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

const BACKENDS: [BackendChoice; 2] = [BackendChoice::Cpu, BackendChoice::Wgpu];

fn session(model: &LoadedModel, backend: BackendChoice) -> Session {
    Session::builder().backend(backend).open(model).unwrap_or_else(|e| panic!("{e}"))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/real").join(name)
}

fn arrays(name: &str) -> BTreeMap<String, Tensor> {
    npz::read(&fixture(name)).unwrap().into_iter().collect()
}

/// `sin(0.7·i)·cos(0.013·i)`, as `make_real.py` has it.
fn signal(shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>();
    let values = (0..count).map(|i| ((0.7 * i as f64).sin() * (0.013 * i as f64).cos()) as f32).collect();
    Tensor::f32(shape, values).unwrap()
}

fn furthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0.0, |worst, (g, w)| worst.max((g - w).abs()))
}

/// The outputs of `NAME.onnx` for the stored inputs: floats within `atol`, integers equal.
fn outputs_match(name: &str, atol: f32) {
    let inputs: Vec<(String, Tensor)> = arrays(&format!("{name}_in.npz")).into_iter().collect();
    let model = open(&format!("{name}.onnx"));
    for backend in BACKENDS {
        let got: BTreeMap<String, Tensor> = session(&model, backend).run(&inputs).unwrap().into_iter().collect();
        for (output, want) in arrays(&format!("{name}_out.npz")) {
            let got = &got[&output];
            assert_eq!(got.shape(), want.shape(), "{output}");
            match (got.as_f32(), want.as_f32()) {
                (Some(g), Some(w)) => {
                    let off = furthest(g, w);
                    println!("{name} {output} on {backend:?}: {off:.1e} off");
                    assert!(off <= atol, "{output} is {off} off on {backend:?}");
                }
                _ => assert_eq!(got.as_i32(), want.as_i32(), "{output} on {backend:?}"),
            }
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn weights_of_8_bits_give_what_onnxruntime_gives() {
    outputs_match("minilm_int8", 1e-4);
}

/// Every matrix stays quantised: of floats there are only biases and gains. Queries, keys and values of a layer are one
/// matrix here, so that six layers have 24, and there are the tables of words and positions.
#[test]
fn weights_of_8_bits_stay_weights_of_8_bits() {
    let plan = open("minilm_int8.onnx").plan;
    let elems = |w: &frit_plan::WeightDecl| w.shape.iter().map(|d| d.as_const().unwrap()).product::<i64>();
    let plain = plan.weights.iter().filter(|w| w.storage == Storage::F32).map(elems).max().unwrap();
    assert!(plain <= 1536, "{plain}");
    let quantised = plan.weights.iter().filter(|w| w.storage.is_quantised()).count();
    assert_eq!(quantised, 26);
}

#[test]
fn an_export_of_old_style_gives_what_onnxruntime_gives() {
    outputs_match("minilm_l3", 1e-4);
}

#[test]
fn a_recogniser_of_lines_gives_what_onnxruntime_gives() {
    let model = open("rec.onnx");
    for backend in BACKENDS {
        recognises(&model, backend);
    }
}

fn recognises(model: &LoadedModel, backend: BackendChoice) {
    let got = session(model, backend).run(&[("x", signal(&[1, 3, 48, 64]))]).unwrap().remove(0).1;
    let want = arrays("rec_out.npz");
    let classes = got.shape()[2] as usize;
    let rows: Vec<&[f32]> = got.as_f32().unwrap().chunks_exact(classes).collect();
    let some: Vec<f32> = rows.iter().flat_map(|r| r.iter().step_by(29).copied()).collect();
    let off = furthest(&some, want["probabilities"].as_f32().unwrap());
    println!("rec on {backend:?}: {off:.1e} off");
    assert!(off <= 1e-3, "{off}");
    let best = |r: &&[f32]| (0..classes).max_by(|a, b| r[*a].total_cmp(&r[*b])).unwrap() as i32;
    assert_eq!(rows.iter().map(best).collect::<Vec<_>>(), want["best"].as_i32().unwrap());
}

#[test]
fn vectors_of_texts_point_where_those_of_float64_do() {
    let model = open("minilm_l6");
    for backend in BACKENDS {
        points(&model, backend);
    }
}

fn points(model: &LoadedModel, backend: BackendChoice) {
    let tokenizer = Tokenizer::of(&model.plan.model).unwrap().unwrap();
    let texts = std::fs::read_to_string(fixture("minilm_l6.txt")).unwrap();
    let texts: Vec<&str> = texts.lines().collect();
    let inputs = frit::embed::batch(&tokenizer, &texts).unwrap();
    let mask = inputs.iter().find(|i| i.0 == "attention_mask").unwrap().1.as_i32().unwrap().to_vec();
    let outputs: BTreeMap<String, Tensor> = session(model, backend).run(&inputs).unwrap().into_iter().collect();
    let states = &outputs["last_hidden_state"];
    let (tokens, width) = (states.shape()[1] as usize, states.shape()[2] as usize);
    let want = arrays("minilm_l6_out.npz");
    let want = want["vectors"].as_f32().unwrap().chunks_exact(width);
    let rows = states.as_f32().unwrap().chunks_exact(tokens * width).zip(mask.chunks_exact(tokens));
    for ((row, mask), want) in rows.zip(want) {
        let mut mean = vec![0.0; width];
        for (state, _) in row.chunks_exact(width).zip(mask).filter(|(_, m)| **m != 0) {
            mean.iter_mut().zip(state).for_each(|(m, s)| *m += s);
        }
        let cosine = cosine(&mean, want);
        println!("minilm_l6 on {backend:?}: cosine {cosine:.8}");
        assert!(cosine >= 0.99999, "{cosine}");
    }
}

/// The encoder's states, and greedy tokens under the model's own rules: what it begins with, what it must not write.
#[test]
fn whisper_hears_and_writes_what_float64_does() {
    let model = open("whisper_tiny_en");
    assert_eq!(model.plan.model.start, [50_257, 50_362]);
    // A software driver takes long for the signal; a few tokens show that its cache is kept.
    for (backend, tokens) in [(BackendChoice::Cpu, 12), (BackendChoice::Wgpu, 3)] {
        hears(&model, backend, tokens);
    }
}

fn hears(model: &LoadedModel, backend: BackendChoice, max_new_tokens: usize) {
    let want = arrays("whisper_out.npz");
    let mut session = session(model, backend);
    let features = signal(&[1, 80, 3000]);
    let given = [
        ("input_features", features.clone()),
        ("decoder_input_ids", Tensor::i32(&[1, 2], vec![50_257, 50_362]).unwrap()),
    ];
    let logits = session.run(&given).unwrap().remove(0).1;
    let last = logits.as_f32().unwrap().chunks_exact(51_864).last().unwrap();
    let some: Vec<f32> = last.iter().step_by(97).copied().collect();
    let off = furthest(&some, &want["logits"].as_f32().unwrap()[..some.len()]);
    println!("whisper on {backend:?}: logits {off:.1e} off");
    assert!(off <= 1e-2, "{off}");

    let options = GenerateOptions { max_new_tokens, ignore_eos: true, ..GenerateOptions::default() };
    let made =
        session.generate_from(&[("input_features", features)], &[], &options, &mut |_| ControlFlow::Continue(()));
    let tokens: Vec<i32> = made.unwrap().rows[0].tokens.iter().map(|t| *t as i32).collect();
    assert_eq!(tokens, want["tokens"].as_i32().unwrap()[..max_new_tokens]);
}
