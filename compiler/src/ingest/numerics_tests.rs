//! Loaded models, evaluated by the reference, give the numbers that other programs computed for them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use crate::graph::{WeightData, WeightId};
use crate::ingest::gguf::quant::dequantize;
use crate::ingest::load;
use crate::model::Model;
use crate::reference::{Array, Env, evaluate, weight_array};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path)
}

/// The arrays of an uncompressed npz file, as f64.
fn npz(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap();
    let number = |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
    let end = bytes.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    let (count, mut at) = (number(end + 10, 2), number(end + 16, 4));
    let mut arrays = BTreeMap::new();
    for _ in 0..count {
        let (size, name_len, extra, comment) =
            (number(at + 24, 4), number(at + 28, 2), number(at + 30, 2), number(at + 32, 2));
        assert_eq!(number(at + 10, 2), 0, "{} is compressed", path.display());
        let name = String::from_utf8(bytes[at + 46..at + 46 + name_len].to_vec()).unwrap();
        let local = number(at + 42, 4);
        let data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
        arrays.insert(name.trim_end_matches(".npy").to_owned(), npy(&bytes[data..data + size]));
        at += 46 + name_len + extra + comment;
    }
    arrays
}

fn npy(bytes: &[u8]) -> Array {
    let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + header_len]).unwrap();
    let shape = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let shape: Vec<usize> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    let data = &bytes[10 + header_len..];
    let values = match header {
        h if h.contains("<f4") => {
            data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        h if h.contains("<i8") => {
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
        }
        h if h.contains("<i4") => {
            data.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        _ => return Array::new([0], Vec::new()).unwrap(),
    };
    Array::new(shape, values).unwrap()
}

/// A weight with block-quantised storage decoded.
fn weight(model: &Model, id: WeightId, capacity: i64) -> Result<Array, String> {
    let info = model.tables.weight_info(id).ok_or("no such weight")?;
    match &info.data {
        WeightData::Tensor { name, .. } if info.storage.is_quantised() => {
            let stored = model.source.read(name).map_err(|e| e.to_string())?;
            let values = dequantize(stored.storage, &stored.bytes).ok_or("broken blocks")?;
            let shape: Vec<usize> = stored.shape.iter().map(|d| *d as usize).collect();
            Array::new(shape, values.into_iter().map(f64::from).collect()).map_err(|e| e.to_string())
        }
        _ => weight_array(model, id, &|size| (size == "T").then_some(capacity)),
    }
}

/// The outputs of `forward`, with `mask` over keys and positions counted from the first column.
fn forward(model: &Model, inputs: &BTreeMap<String, Array>, mask: Option<&Array>) -> HashMap<String, Array> {
    let ids = &inputs["input_ids"];
    let (batch, tokens) = (ids.shape[0], ids.shape[1]);
    let weights = |id: WeightId| weight(model, id, tokens as i64);
    let mut env = Env::new(&weights);
    for (name, value) in [("B", batch), ("S", tokens), ("P", 0), ("T", tokens)] {
        env.sizes.insert(name.into(), value as i64);
    }
    let graph = &model.graph("forward").unwrap().graph;
    env.inputs = inputs.clone();
    for (i, state) in model.tables.states.iter().enumerate() {
        let value = match state.name.as_str() {
            "key_mask" => mask.cloned().unwrap_or_else(|| Array::full(&[batch, tokens], 1.0).unwrap()),
            "pos_offset" => Array::full(&[batch], 0.0).unwrap(),
            _ => Array::full(&[batch, 1], 0.0).unwrap(),
        };
        env.states.insert(crate::graph::StateId(i as u32), value);
    }
    evaluate(graph, &env).unwrap_or_else(|e| unreachable!("{e}")).into_iter().collect()
}

fn compare(what: &str, got: &Array, want: &Array, atol: f64, rtol: f64, compared: impl Fn(usize) -> bool) {
    assert_eq!(got.shape, want.shape, "{what}");
    let last = want.shape.last().copied().unwrap_or(1);
    for (i, (g, w)) in got.data.iter().zip(&want.data).enumerate() {
        assert!(!compared(i / last) || (g - w).abs() <= atol + rtol * w.abs(), "{what} at {i}: {g} and not {w}");
    }
}

/// Compares every case of a set in the form of `fixtures/devset`, and says how many outputs it compared.
fn check_set(root: &Path) -> usize {
    let index: Value = serde_json::from_slice(&std::fs::read(root.join("index.json")).unwrap()).unwrap();
    let models = index["models"].as_array().unwrap().iter();
    let of_models = models.flat_map(|m| m["cases"].as_array().unwrap().iter().map(move |case| (&m["dir"], case)));
    let of_files = index["gguf"].as_array().unwrap().iter().map(|case| (&case["file"], case));
    let mut loaded: HashMap<&str, Model> = HashMap::new();
    let mut compared = 0;
    for (path, case) in of_models.chain(of_files) {
        let path = path.as_str().unwrap();
        let model = loaded.entry(path).or_insert_with(|| load(root.join(path)).unwrap_or_else(|e| unreachable!("{e}")));
        let file = |key: &str| npz(&root.join(case[key].as_str().unwrap()));
        let (inputs, outputs) = (file("inputs"), file("outputs"));
        let mask = inputs.get("attention_mask");
        let got = forward(model, &inputs, mask);
        let masked = case.get("compare_where").is_some();
        for (name, want) in outputs.iter().filter(|(name, _)| *name != "greedy_tokens") {
            let at = |row: usize| !masked || mask.is_none_or(|m| m.data[row] == 1.0);
            let (atol, rtol) = (case["atol"].as_f64().unwrap(), case["rtol"].as_f64().unwrap());
            compare(&format!("{path} {name} of {}", case["inputs"]), &got[name], want, atol, rtol, at);
            compared += 1;
        }
    }
    compared
}

#[test]
fn models_give_the_numbers_of_transformers() {
    assert!(check_set(&fixture("devset")) >= 18);
}

/// `FRIT_MODELS` names a set that `fixtures/tools/make_models.py` made.
#[test]
fn the_larger_set_gives_the_numbers_of_transformers() {
    if let Some(root) = std::env::var_os("FRIT_MODELS") {
        assert!(check_set(Path::new(&root)) > 100);
    }
}

#[test]
fn both_forms_of_the_lexicon_give_their_goldens() {
    let golden = npz(&fixture("lexicon/golden.npz"));
    for (path, prefix) in [("lexicon", ""), ("lexicon/lexicon-q8_0.gguf", "q8_")] {
        let model = load(fixture(path)).unwrap_or_else(|e| unreachable!("{e}"));
        let ids = &golden["p0_ids"];
        let ids = Array::new([1, ids.data.len()], ids.data.clone()).unwrap();
        let got = forward(&model, &BTreeMap::from([("input_ids".into(), ids)]), None);
        let want = golden.get(&format!("{prefix}p0_logits")).or(golden.get(&format!("p0_{prefix}logits"))).unwrap();
        let got = Array::new(want.shape.clone(), got["logits"].data.clone()).unwrap();
        compare(path, &got, want, 1e-4, 1e-3, |_| true);
    }
}
