//! GGUF files of `fixtures/gguf_families`, one an architecture, against the float64 goldens of the models that they
//! were converted from, on the CPU and on wgpu. The set is in the form of `fixtures/devset`; a new entry is a new test.
#![allow(clippy::unwrap_used)]

use frit::{BackendChoice, GenerateOptions, Session, Tensor, npz};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf_families")
}

fn arrays(entry: &Value, key: &str) -> Vec<(String, Tensor)> {
    npz::read(&root().join(entry[key].as_str().unwrap())).unwrap().into_iter().collect()
}

/// What is wrong with the logits of one case, and with the token that generation puts behind its prompt.
fn faults(entry: &Value, backend: BackendChoice) -> Vec<String> {
    let file = root().join(entry["file"].as_str().unwrap());
    let mut session = match Session::builder().backend(backend).load(&file) {
        Ok(session) => session,
        Err(e) => return vec![e.to_string()],
    };
    let inputs = arrays(entry, "inputs");
    let want = arrays(entry, "outputs").into_iter().find(|(n, _)| n == "logits").unwrap().1;
    let made = session.run(&inputs).map(|out| out.into_iter().find(|(n, _)| n == "logits").unwrap().1);
    let got = match made {
        Ok(got) => got,
        Err(e) => return vec![e.to_string()],
    };
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.as_f32().unwrap(), want.as_f32().unwrap());
    let [atol, rtol] = ["atol", "rtol"].map(|k| entry[k].as_f64().unwrap() as f32);
    let off = |(g, w): (&f32, &f32)| !g.is_finite() || (g - w).abs() > atol + rtol * w.abs();
    let mut faults = Vec::new();
    if let Some(i) = got.iter().zip(want).position(off) {
        faults.push(format!("logit {i} is {}, {} expected", got[i], want[i]));
    }
    let ids = inputs[0].1.as_i32().unwrap();
    let last = &want[want.len() - want.len() / ids.len()..];
    let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    let prompt: Vec<u32> = ids.iter().map(|t| *t as u32).collect();
    let options = GenerateOptions { max_new_tokens: 1, ignore_eos: true, ..Default::default() };
    match session.generate(&[prompt], &options, &mut |_| ControlFlow::Continue(())) {
        Ok(made) if made.rows[0].tokens == [best as u32] => {}
        Ok(made) => faults.push(format!("wrote {:?}, {best} expected", made.rows[0].tokens)),
        Err(e) => faults.push(e.to_string()),
    }
    faults
}

fn all(backend: BackendChoice) {
    let index: Value = serde_json::from_str(&std::fs::read_to_string(root().join("index.json")).unwrap()).unwrap();
    let entries = index["gguf"].as_array().unwrap();
    assert!(entries.len() >= 15, "only {} cases", entries.len());
    let of = |e: &Value| faults(e, backend).into_iter().map(|f| format!("{}: {f}", e["inputs"])).collect::<Vec<_>>();
    let faults: Vec<String> = entries.iter().flat_map(of).collect();
    assert!(faults.is_empty(), "{backend:?}:\n{}", faults.join("\n"));
}

#[test]
fn every_architecture_matches_its_goldens_on_the_cpu() {
    all(BackendChoice::Cpu);
}

#[test]
fn every_architecture_matches_its_goldens_on_wgpu() {
    all(BackendChoice::Wgpu);
}
