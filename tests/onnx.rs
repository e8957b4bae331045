//! ONNX files of both exporters against float64 goldens, on the CPU and on wgpu, and what the command line's loader does
//! with models that compute extents from inputs.

use frit::{BackendChoice, Session, Tensor, model_source, npz};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn arrays(path: &str) -> BTreeMap<String, Tensor> {
    let path = fixtures().join(path);
    npz::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into_iter().collect()
}

/// Each case of `fixtures/devset/NAME` (or the one case beside the model), rows of padding left out where the goldens
/// leave them out. `|got − want| ≤ 1e-4 + 1e-3·|want|`, the bound of these cases in the set's index.
fn matches(model: &str, cases: &[(&str, &str)], padded: &[usize], backend: BackendChoice) {
    let path = fixtures().join("onnx").join(model);
    let mut session = Session::builder().backend(backend).load(&path).unwrap_or_else(|e| panic!("{model}: {e}"));
    for (i, (inputs, outputs)) in cases.iter().enumerate() {
        let inputs: Vec<(String, Tensor)> = arrays(inputs).into_iter().collect();
        let mask = inputs.iter().find(|(n, _)| n == "attention_mask" && padded.contains(&i));
        let mask: Option<Vec<i32>> = mask.and_then(|(_, t)| t.as_i32()).map(<[i32]>::to_vec);
        let got: BTreeMap<String, Tensor> = session.run(&inputs).unwrap().into_iter().collect();
        let mut compared = 0;
        for (name, want) in arrays(outputs) {
            let Some(got) = got.get(&name).or_else(|| got.values().next()) else { panic!("{model} has no {name}") };
            assert_eq!(got.shape(), want.shape(), "{model} case {i} {name}");
            let (g, w) = (got.as_f32().unwrap(), want.as_f32().unwrap());
            let row = mask.as_ref().map_or(w.len(), |m| w.len() / m.len());
            for (k, (g, w)) in g.iter().zip(w).enumerate() {
                if mask.as_ref().is_none_or(|m| m[k / row] != 0) {
                    assert!(
                        (g - w).abs() <= 1e-4 + 1e-3 * w.abs(),
                        "{model} case {i} {name}[{k}] is {g}, {w} expected"
                    );
                    compared += 1;
                }
            }
        }
        assert!(compared > 0, "{model} case {i}: nothing was compared");
    }
}

const BERT: [(&str, &str); 3] = [
    ("devset/bert/case0_in.npz", "devset/bert/case0_out.npz"),
    ("devset/bert/case1_in.npz", "devset/bert/case1_out.npz"),
    ("devset/bert/case2_in.npz", "devset/bert/case2_out.npz"),
];
const LLAMA: [(&str, &str); 3] = [
    ("devset/llama_gqa/case0_in.npz", "devset/llama_gqa/case0_out.npz"),
    ("devset/llama_gqa/case1_in.npz", "devset/llama_gqa/case1_out.npz"),
    ("devset/llama_gqa/case2_in.npz", "devset/llama_gqa/case2_out.npz"),
];
const GEMMA: [(&str, &str); 1] = [("onnx/gemma2_in.npz", "onnx/gemma2_out.npz")];

macro_rules! on_each_backend {
    ($($name:ident: $call:expr;)*) => {
        mod cpu { use super::*; $(#[test] fn $name() { let f: fn(BackendChoice) = $call; f(BackendChoice::Cpu); })* }
        mod wgpu { use super::*; $(#[test] fn $name() { let f: fn(BackendChoice) = $call; f(BackendChoice::Wgpu); })* }
    };
}

on_each_backend! {
    bert_of_the_dynamo_exporter: |b| matches("bert.onnx", &BERT, &[], b);
    bert_of_torchscript: |b| matches("bert_ts.onnx", &BERT, &[], b);
    llama_of_the_dynamo_exporter: |b| matches("llama_gqa.onnx", &LLAMA, &[2], b);
    gemma2_of_torchscript: |b| matches("gemma2_ts.onnx", &GEMMA, &[], b);
}

/// Each of an exporter's several names for one extent is the same size to a host.
#[test]
fn a_model_has_one_size_for_each_extent() {
    let session = Session::builder().backend(BackendChoice::Cpu).load(&fixtures().join("onnx/llama_gqa.onnx")).unwrap();
    let sizes: Vec<&str> = session.plan().sizes.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(sizes, ["s10", "s21"]);
}

/// An attention mask of other extents than the ids is an input error that names both.
#[test]
fn inputs_that_do_not_agree_are_refused() {
    let mut session =
        Session::builder().backend(BackendChoice::Cpu).load(&fixtures().join("onnx/llama_gqa.onnx")).unwrap();
    let ids = Tensor::i32(&[1, 3], vec![1, 2, 3]).unwrap();
    let mask = Tensor::i32(&[1, 4], vec![1; 4]).unwrap();
    let e = session.run(&[("input_ids", ids), ("attention_mask", mask)]).unwrap_err().to_string();
    assert!(e.contains("s21") && e.contains("attention_mask") && e.contains("input_ids"), "{e}");
}

/// A model given inputs of the right values is compiled in the general way: the values change nothing.
#[test]
fn values_of_inputs_are_used_only_where_extents_need_them() {
    let path = fixtures().join("onnx/bert.onnx");
    let inputs: Vec<(String, Tensor)> = arrays(BERT[0].0).into_iter().collect();
    let general = model_source::open(&path, &mut |_| {}).unwrap();
    let given = model_source::open_for(&path, &inputs, &mut |_| {}).unwrap();
    assert_eq!(general.plan.programs, given.plan.programs);
}
