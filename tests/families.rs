//! Every decoder in `fixtures/families` (`encoders.rs` has the others) against its float64 goldens, on the CPU and on wgpu (the software adapter where
//! there is no card). A folder there is one model in Hugging Face form with an `index.json`: an entry of the list
//! `models` of `fixtures/devset/index.json`, its paths relative to `fixtures/families`. A new folder is a new test.
#![allow(clippy::unwrap_used)]

use frit::{BackendChoice, GenerateOptions, Session, Tensor, npz, visible_tokens};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

type Outcome<T = ()> = Result<T, String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families")
}

fn text<'v>(value: &'v Value, key: &str) -> Outcome<&'v str> {
    value[key].as_str().ok_or_else(|| format!("index.json has no text `{key}`"))
}

fn arrays(entry: &Value, key: &str) -> Outcome<BTreeMap<String, Tensor>> {
    let path = root().join(text(entry, key)?);
    Ok(npz::read(&path).map_err(|e| format!("{}: {e}", path.display()))?.into_iter().collect())
}

/// Every element, or those of rows whose mask entry is 1: `|got − want| ≤ atol + rtol·|want|`.
fn close(got: &Tensor, want: &Tensor, [atol, rtol]: [f32; 2], mask: Option<&[i32]>) -> Outcome {
    if got.shape() != want.shape() {
        return Err(format!("shape {:?}, {:?} expected", got.shape(), want.shape()));
    }
    let (Some(got), Some(want)) = (got.as_f32(), want.as_f32()) else { return Err("is not of floats".into()) };
    let row = mask.map_or(1, |mask| want.len() / mask.len().max(1));
    let counts = |i: usize| mask.is_none_or(|mask| mask.get(i / row) == Some(&1));
    let mut worst = 0.0f32;
    let mut compared = 0;
    for (i, (got, want)) in got.iter().zip(want).enumerate().filter(|(i, _)| counts(*i)) {
        if !got.is_finite() {
            return Err(format!("element {i} is {got}"));
        }
        worst = worst.max((got - want).abs() - rtol * want.abs());
        compared += 1;
    }
    match compared {
        0 => Err("nothing was compared".into()),
        _ if worst > atol => Err(format!("off by {worst:e} beyond rtol, atol is {atol:e}")),
        _ => Ok(()),
    }
}

fn case(session: &mut Session, case: &Value) -> Outcome {
    let inputs: Vec<(String, Tensor)> = arrays(case, "inputs")?.into_iter().collect();
    let mask = inputs.iter().find(|(n, _)| n == "attention_mask" && case.get("compare_where").is_some());
    let mask = mask.and_then(|(_, t)| t.as_i32());
    let got: BTreeMap<String, Tensor> = session.run(&inputs).map_err(|e| e.to_string())?.into_iter().collect();
    let bounds = ["atol", "rtol"].map(|k| case[k].as_f64().unwrap_or(0.0) as f32);
    for (name, want) in &arrays(case, "outputs")? {
        let got = got.get(name).ok_or_else(|| format!("there is no output `{name}`"))?;
        close(got, want, bounds, mask).map_err(|e| format!("`{name}`: {e}"))?;
    }
    Ok(())
}

/// Greedy tokens of one prompt, or of a batch padded on the left.
fn generation(session: &mut Session, entry: &Value) -> Outcome {
    let file = arrays(entry, "file")?;
    let of = |name: &str| file.get(name).ok_or_else(|| format!("there is no array `{name}`"));
    let prompts =
        visible_tokens(of("prompt_input_ids")?, file.get("prompt_attention_mask")).map_err(|e| e.to_string())?;
    let want: Vec<u32> = of("tokens")?.as_i32().unwrap_or_default().iter().map(|t| *t as u32).collect();
    let options =
        GenerateOptions { max_new_tokens: want.len() / prompts.len().max(1), ignore_eos: true, ..Default::default() };
    let made = session.generate(&prompts, &options, &mut |_| ControlFlow::Continue(())).map_err(|e| e.to_string())?;
    let got: Vec<u32> = made.rows.iter().flat_map(|row| row.tokens.iter().copied()).collect();
    if got == want { Ok(()) } else { Err(format!("tokens {got:?}, {want:?} expected")) }
}

fn model(folder: &Path, backend: BackendChoice) -> Outcome {
    let index = std::fs::read_to_string(folder.join("index.json")).map_err(|e| format!("index.json: {e}"))?;
    let entry: Value = serde_json::from_str(&index).map_err(|e| format!("index.json: {e}"))?;
    let dir = root().join(text(&entry, "dir")?);
    let mut session = Session::builder().backend(backend).load(&dir).map_err(|e| e.to_string())?;
    let cases = entry["cases"].as_array().filter(|cases| !cases.is_empty()).ok_or("index.json has no cases")?;
    for (i, entry) in cases.iter().enumerate() {
        case(&mut session, entry).map_err(|e| format!("case {i}: {e}"))?;
    }
    for key in ["generate", "generate_batch"] {
        if let Some(entry) = entry.get(key) {
            generation(&mut session, entry).map_err(|e| format!("{key}: {e}"))?;
        }
    }
    Ok(())
}

fn is_decoder(folder: &Path) -> bool {
    let index = std::fs::read_to_string(folder.join("index.json")).unwrap_or_default();
    let entry: Value = serde_json::from_str(&index).unwrap_or_default();
    !matches!(entry["task"].as_str(), Some("encoder" | "encdec" | "vision"))
}

/// `FRIT_FAMILIES` bounds the models to those whose names contain it.
fn all(backend: BackendChoice) {
    let only = std::env::var("FRIT_FAMILIES").unwrap_or_default();
    let entries = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| path.is_dir() && path.file_name().is_some_and(|n| n.to_string_lossy().contains(&only));
    let mut folders: Vec<PathBuf> = entries.filter(|path| named(path) && is_decoder(path)).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no model is called *{only}*");
    let failures: Vec<String> = folders
        .iter()
        .filter_map(|folder| model(folder, backend).err().map(|e| format!("{}: {e}", folder.display())))
        .collect();
    assert!(failures.is_empty(), "{} of {} on {backend:?}:\n{}", failures.len(), folders.len(), failures.join("\n"));
}

#[test]
fn every_family_matches_its_goldens_on_the_cpu() {
    all(BackendChoice::Cpu);
}

#[test]
fn every_family_matches_its_goldens_on_wgpu() {
    all(BackendChoice::Wgpu);
}
