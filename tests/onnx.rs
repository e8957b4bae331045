//! ONNX files of both exporters against float64 goldens, on the CPU and on wgpu, and what the command line's loader does
//! with models that compute extents from inputs.

use frit::{BackendChoice, Finish, GenerateOptions, Session, Tensor, model_source, npz};
use frit_plan::Task;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::slice::from_ref;

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
const GPT2: [(&str, &str); 3] = [
    ("devset/gpt2/case0_in.npz", "devset/gpt2/case0_out.npz"),
    ("devset/gpt2/case1_in.npz", "devset/gpt2/case1_out.npz"),
    ("devset/gpt2/case2_in.npz", "devset/gpt2/case2_out.npz"),
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
    gpt2_of_the_dynamo_exporter: |b| matches("gpt2.onnx", &GPT2, &[2], b);
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

/// Prompts of one row each, and the tokens that have to follow.
fn golden(model: &str) -> (Vec<u32>, Vec<u32>) {
    let all = arrays(&format!("devset/{model}/gen.npz"));
    let ids = |name: &str| all[name].as_i32().unwrap().iter().map(|t| *t as u32).collect();
    (ids("prompt_input_ids"), ids("tokens"))
}

fn continued(session: &mut Session, prompts: &[Vec<u32>], count: usize, chunk: u64) -> Vec<Vec<u32>> {
    let options = GenerateOptions { max_new_tokens: count, ignore_eos: true, chunk, ..GenerateOptions::default() };
    let made = session.generate(prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    made.rows.into_iter().map(|r| r.tokens).collect()
}

/// A decoder exported with its cache as inputs and outputs keeps it in slots: it generates what transformers does, from
/// a prompt in one piece or in chunks, alone or in a batch with a shorter prompt.
fn keeps_its_cache(model: &str, backend: BackendChoice) {
    let path = fixtures().join("onnx").join(format!("{model}_past.onnx"));
    let mut session = Session::builder().backend(backend).load(&path).unwrap();
    let plan = session.plan().clone();
    assert_eq!((plan.model.task, plan.kv_slots.len()), (Task::Decoder, 2));
    let decode = plan.programs.iter().find(|p| p.name == "decode").unwrap();
    assert!(decode.inputs.is_empty(), "{:?}", decode.inputs);
    for phase in plan.report.phases.iter().filter(|p| p.program != "forward") {
        assert_eq!(phase.attention.fused, 2, "{}", phase.program);
    }

    let (prompt, want) = golden(model);
    assert_eq!(continued(&mut session, from_ref(&prompt), want.len(), 128), from_ref(&want));
    assert_eq!(continued(&mut session, from_ref(&prompt), want.len(), 4), from_ref(&want));
    let short = prompt[prompt.len() - 4..].to_vec();
    let alone = continued(&mut session, from_ref(&short), 5, 128).remove(0);
    let both = continued(&mut session, &[short, prompt], 5, 3);
    assert_eq!(both, [alone, want[..5].to_vec()]);
}

/// The file's own graph is kept too: the host may carry the cache itself, from run to run.
fn runs_with_the_hosts_cache(model: &str, backend: BackendChoice) {
    let path = fixtures().join("onnx").join(format!("{model}_past.onnx"));
    let mut session = Session::builder().backend(backend).load(&path).unwrap();
    let forward = session.plan().programs.iter().find(|p| p.name == "forward").unwrap();
    let pasts: Vec<(String, u64, u64)> = (forward.inputs.iter())
        .filter(|p| p.name.starts_with("past"))
        .map(|p| {
            let number = |k: usize| p.shape[k].as_const().unwrap() as u64;
            (p.name.clone(), number(1), number(3))
        })
        .collect();
    assert_eq!(pasts.len(), 4);
    let (prompt, want) = golden(model);
    let mut cache: Vec<Tensor> =
        pasts.iter().map(|(_, heads, width)| Tensor::f32(&[1, *heads, 0, *width], Vec::new()).unwrap()).collect();
    let (mut held, mut next) = (0, prompt);
    let mut said = Vec::new();
    for _ in 0..4 {
        let new = next.len() as u64;
        let positions = (held..held + new).map(|p| p as i32).collect();
        let mut inputs = vec![
            ("input_ids".to_owned(), Tensor::i32(&[1, new], next.iter().map(|t| *t as i32).collect()).unwrap()),
            ("attention_mask".to_owned(), Tensor::i32(&[1, held + new], vec![1; (held + new) as usize]).unwrap()),
            ("position_ids".to_owned(), Tensor::i32(&[1, new], positions).unwrap()),
        ];
        inputs.extend(pasts.iter().map(|p| p.0.clone()).zip(cache));
        let mut out: BTreeMap<String, Tensor> = session.run(&inputs).unwrap().into_iter().collect();
        cache = pasts.iter().map(|p| out.remove(&p.0.replace("past_key_values", "present")).unwrap()).collect();
        held += new;
        let logits = out["logits"].as_f32().unwrap();
        let last = &logits[logits.len() - 199..];
        let token = (0..199u32).max_by(|a, b| last[*a as usize].total_cmp(&last[*b as usize])).unwrap();
        said.push(token);
        next = vec![token];
    }
    assert_eq!(said, want[..4]);
}

mod decoders {
    use super::*;

    on_each_backend! {
        llama_keeps_its_cache: |b| keeps_its_cache("llama_gqa", b);
        gpt2_keeps_its_cache: |b| keeps_its_cache("gpt2", b);
        llama_runs_with_the_hosts_cache: |b| runs_with_the_hosts_cache("llama_gqa", b);
    }
}

/// Rotary embeddings are seen when there is one token too: a decode step has five launches a layer.
#[test]
fn a_decoder_has_the_same_layers_for_one_token_and_for_many() {
    let path = fixtures().join("onnx/llama_gqa_past.onnx");
    let plan = model_source::open(&path, &mut |_| {}).unwrap().plan;
    let dispatches = |name: &str| plan.report.phases.iter().find(|p| p.program == name).unwrap().dispatches;
    // Two layers, embedding with the angles, final norm with the head, the choice of a token.
    assert_eq!(dispatches("decode"), 2 * 5 + 3);
    // The last row is cut out where its kernel reads it.
    assert_eq!(dispatches("prefill"), dispatches("decode"));
}

/// A table of 64 positions bounds past and new tokens together, in the file's graph and for the token loop.
#[test]
fn the_positions_of_a_table_bound_the_sequence() {
    let path = fixtures().join("onnx/gpt2_past.onnx");
    let mut session = Session::builder().backend(BackendChoice::Cpu).load(&path).unwrap();
    let (prompt, _) = golden("gpt2");
    let options = GenerateOptions { max_new_tokens: 200, ignore_eos: true, ..GenerateOptions::default() };
    let made = session.generate(from_ref(&prompt), &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((made.rows[0].finish, made.rows[0].tokens.len()), (Finish::ContextFull, 64 - prompt.len() + 1));

    let forward = session.plan().programs.iter().find(|p| p.name == "forward").unwrap();
    let limits: Vec<(String, u64)> = forward.limits.iter().map(|(d, max)| (d.to_string(), *max)).collect();
    assert_eq!(limits, [("past_sequence_length + sequence_length".to_owned(), 64)]);
}

/// An export without a cache generates too, running everything again for each token.
#[test]
fn an_export_without_a_cache_generates_by_recomputing() {
    let mut session =
        Session::builder().backend(BackendChoice::Cpu).load(&fixtures().join("onnx/llama_gqa.onnx")).unwrap();
    let (prompt, want) = golden("llama_gqa");
    assert_eq!(continued(&mut session, from_ref(&prompt), want.len(), 128), from_ref(&want));
    let short = prompt[..3].to_vec();
    let alone = continued(&mut session, from_ref(&short), 4, 128).remove(0);
    assert_eq!(continued(&mut session, &[prompt, short], 4, 128)[1], alone);
}

/// A model that gives no logits says so.
#[test]
fn an_encoder_does_not_generate() {
    let mut session = Session::builder().backend(BackendChoice::Cpu).load(&fixtures().join("onnx/bert.onnx")).unwrap();
    let e = session.generate(&[vec![1]], &GenerateOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(e.to_string().contains("does not generate text"), "{e}");
}

/// The operations of each region that has an anchor, however they are ordered, without cache writes: exports have no cache.
fn regions(model: &str) -> Vec<Vec<String>> {
    let loaded = model_source::open(&fixtures().join(model), &mut |_| {}).unwrap_or_else(|e| panic!("{model}: {e}"));
    let phase = loaded.plan.report.phases.iter().find(|p| p.program == "forward").unwrap();
    let with_anchor = phase.regions.iter().filter(|r| r.kind != "map");
    let mut all: Vec<Vec<String>> = with_anchor
        .map(|r| {
            let mut ops: Vec<String> = r.ops.iter().filter(|o| *o != "kv_append").cloned().collect();
            ops.sort();
            ops
        })
        .collect();
    all.sort();
    all
}

/// Weights come to the same regions from a directory and from both exporters.
#[test]
fn a_directory_and_its_exports_have_the_same_regions() {
    let bert = regions("devset/bert");
    assert_eq!(bert.len(), 12);
    assert_eq!(regions("onnx/bert.onnx"), bert);
    assert_eq!(regions("onnx/bert_ts.onnx"), bert);
    let llama = regions("devset/llama_gqa");
    assert_eq!(llama.len(), 11);
    assert_eq!(regions("onnx/llama_gqa.onnx"), llama);
    let gpt2 = regions("devset/gpt2");
    assert_eq!(gpt2.len(), 11);
    assert_eq!(regions("onnx/gpt2.onnx"), gpt2);
}
