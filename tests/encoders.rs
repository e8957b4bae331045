//! Encoders, encoder-decoders and vision models of `fixtures/families` against their float64 goldens on every backend:
//! the outputs of every case, and for encoder-decoders the tokens they write. And vectors of texts, as a directory in
//! the form of sentence-transformers declares them.

use frit::embed::Pooling;
use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, GenerateOptions, Session, Tensor, model_source, npz};
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

/// The models of these tasks: folder and index entry.
fn models() -> Vec<(PathBuf, Value)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(fixtures().join("families")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(folder.join("index.json")) else { continue };
        let index: Value = serde_json::from_str(&text).unwrap();
        if matches!(index["task"].as_str(), Some("encoder" | "encdec" | "vision")) {
            out.push((folder, index));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

/// The first element that is off, if one is: `|got − want| > atol + rtol·|want|` in a row whose mask entry is not 0.
fn off(got: &Tensor, want: &Tensor, case: &Value, mask: Option<&[i32]>) -> Option<String> {
    if got.shape() != want.shape() {
        return Some(format!("has the shape {:?}, {:?} expected", got.shape(), want.shape()));
    }
    let (got, want) = (got.as_f32().unwrap(), want.as_f32().unwrap());
    let [atol, rtol] = ["atol", "rtol"].map(|k| case[k].as_f64().unwrap() as f32);
    let row = mask.map_or(1, |m| want.len() / m.len());
    let counts = |i: usize| mask.is_none_or(|m| m[i / row] != 0);
    let wrong =
        |i: &usize| counts(*i) && ((got[*i] - want[*i]).abs() > atol + rtol * want[*i].abs() || !got[*i].is_finite());
    (0..want.len()).find(wrong).map(|i| format!("element {i} is {}, {} expected", got[i], want[i]))
}

fn check(folder: &Path, index: &Value, backend: BackendChoice) -> Vec<String> {
    let root = fixtures().join("families");
    let mut faults = Vec::new();
    let mut session = match Session::builder().backend(backend).load(folder) {
        Ok(session) => session,
        Err(e) => return vec![e.to_string()],
    };
    let cases = index["cases"].as_array().unwrap();
    assert!(!cases.is_empty(), "{} has no case", folder.display());
    for (i, case) in cases.iter().enumerate() {
        let inputs: Vec<(String, Tensor)> = arrays(&root.join(case["inputs"].as_str().unwrap())).into_iter().collect();
        let mask = inputs.iter().find(|(n, _)| n == "attention_mask" && case.get("compare_where").is_some());
        let mask = mask.and_then(|(_, t)| t.as_i32()).map(<[i32]>::to_vec);
        let got: BTreeMap<String, Tensor> = match session.run(&inputs) {
            Ok(out) => out.into_iter().collect(),
            Err(e) => {
                faults.push(format!("case {i}: {e}"));
                continue;
            }
        };
        for (name, want) in arrays(&root.join(case["outputs"].as_str().unwrap())) {
            let fault = match got.get(&name) {
                Some(got) => off(got, &want, case, mask.as_deref()),
                None => Some("is not among the outputs".into()),
            };
            faults.extend(fault.map(|f| format!("case {i}: `{name}` {f}")));
        }
    }
    if let Some(entry) = index.get("generate_from") {
        let file = arrays(&root.join(entry["file"].as_str().unwrap()));
        let source: Vec<(String, Tensor)> =
            file.iter().filter_map(|(n, t)| Some((n.strip_prefix("prompt_")?.to_owned(), t.clone()))).collect();
        let want: Vec<u32> = file["tokens"].as_i32().unwrap().iter().map(|t| *t as u32).collect();
        let options = GenerateOptions { max_new_tokens: want.len(), ..Default::default() };
        match session.generate_from(&source, &[], &options, &mut |_| ControlFlow::Continue(())) {
            Ok(made) if made.rows[0].tokens == want => {}
            Ok(made) => faults.push(format!("wrote {:?}, {want:?} expected", made.rows[0].tokens)),
            Err(e) => faults.push(e.to_string()),
        }
    }
    faults
}

fn all(backend: BackendChoice) {
    let models = models();
    assert!(models.len() >= 26, "only {} models", models.len());
    let mut faults = Vec::new();
    for (folder, index) in &models {
        faults.extend(check(folder, index, backend).into_iter().map(|f| format!("{}: {f}", index["name"])));
    }
    assert!(faults.is_empty(), "{backend:?}:\n{}", faults.join("\n"));
}

#[test]
fn every_model_matches_its_goldens_on_the_cpu() {
    all(BackendChoice::Cpu);
}

#[test]
fn every_model_matches_its_goldens_on_wgpu() {
    all(BackendChoice::Wgpu);
}

#[test]
fn a_text_of_full_length_ends_with_the_token_that_the_settings_force() {
    let from = fixtures().join("families/bart");
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("generation_config.json"), r#"{"forced_eos_token_id": [7, 9]}"#).unwrap();
    let file = arrays(&from.join("gen.npz"));
    let source: Vec<(String, Tensor)> =
        file.iter().filter_map(|(n, t)| Some((n.strip_prefix("prompt_")?.to_owned(), t.clone()))).collect();
    let mut want: Vec<u32> = file["tokens"].as_i32().unwrap().iter().map(|t| *t as u32).collect();
    let options = GenerateOptions { max_new_tokens: want.len(), ..Default::default() };
    let mut session = Session::builder().backend(BackendChoice::Cpu).load(folder.path()).unwrap();
    let made = session.generate_from(&source, &[], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_ne!(want.last(), Some(&7));
    want.pop();
    want.push(7);
    assert_eq!(made.rows[0].tokens, want);
}

/// Pools, length limit and normalisation are those of the directory; batches of any size give the same.
#[test]
fn vectors_of_texts_are_those_that_the_directory_declares() {
    let dir = fixtures().join("embed");
    let pooling = Pooling::of_dir(&dir).unwrap();
    let loaded = model_source::open(&dir, &mut |_| {}).unwrap();
    let mut tokenizer = Tokenizer::of(&loaded.plan.model).unwrap().unwrap();
    tokenizer.truncate(pooling.max_tokens.unwrap()).unwrap();
    let text = std::fs::read_to_string(dir.join("texts.txt")).unwrap();
    let texts: Vec<&str> = text.lines().collect();
    let golden = arrays(&dir.join("golden.npz"));
    let want = golden["embeddings"].as_f32().unwrap();
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        let mut session = Session::builder().backend(backend).open(&loaded).unwrap();
        for per_run in [1, 3, 32] {
            let rows = session.embed(&tokenizer, &pooling, &texts, per_run).unwrap();
            let got: Vec<f32> = rows.into_iter().flatten().collect();
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{backend:?}, {per_run} together: off by {worst:e}");
        }
    }
}
