//! A model, written to an artifact and loaded again, is the same model; a damaged artifact is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::model_source::open;
use frit::{BackendChoice, GenerateOptions, LoadedModel, Session, Tensor};
use frit_plan::format::{FritFile, write};
use frit_plan::{TensorData, TensorSource};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn artifact(folder: &Path, model: &LoadedModel) -> PathBuf {
    let file = folder.join("model.frit");
    write(&file, &model.plan, &*model.weights, &mut |_, _| {}).unwrap();
    file
}

fn session(model: &LoadedModel) -> Session {
    support::open(model, BackendChoice::Cpu)
}

fn tokens(session: &mut Session) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens: 12, ignore_eos: true, ..Default::default() };
    let prompt = vec![5, 17, 101, 7];
    session.generate(&[prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap().rows.remove(0).tokens
}

/// Same plan, same bits out, and the same file when it is written again.
#[test]
fn a_decoder_comes_back_as_it_was() {
    for path in ["lexicon", "lexicon/lexicon-q8_0.gguf", "devset/gpt2", "devset/gguf/llama_Q4_0.gguf"] {
        let folder = tempfile::tempdir().unwrap();
        let model = support::compile(&support::load(path));
        let file = artifact(folder.path(), &model);
        let back = open(&file, &mut |_| {}).unwrap();
        assert!(*back.plan == *model.plan, "{path}");
        assert!(back.artifact.is_some(), "{path}");
        assert_eq!(tokens(&mut session(&back)), tokens(&mut session(&model)), "{path}");
        let ids = Tensor::i32(&[2, 5], vec![9, 4, 3, 1, 8, 7, 6, 5, 4, 3]).unwrap();
        let inputs = [("input_ids", ids)];
        assert_eq!(session(&back).run(&inputs).unwrap(), session(&model).run(&inputs).unwrap(), "{path}");
        let again = folder.path().join("again.frit");
        write(&again, &back.plan, &*back.weights, &mut |_, _| {}).unwrap();
        assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap(), "{path}");
    }
}

#[test]
fn an_encoder_comes_back_as_it_was_on_wgpu() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::compile(&support::load("devset/bert"));
    let back = open(&artifact(folder.path(), &model), &mut |_| {}).unwrap();
    let inputs = [("input_ids", Tensor::i32(&[2, 3], vec![9, 4, 3, 1, 8, 7]).unwrap())];
    let run = |m: &LoadedModel| support::open(m, BackendChoice::Wgpu).run(&inputs).unwrap();
    assert_eq!(run(&back), run(&model));
}

/// The extension is no condition: an artifact is known by what it holds.
#[test]
fn an_artifact_is_known_by_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::compile(&support::load("devset/gpt2"));
    let other = folder.path().join("model.bin");
    std::fs::rename(artifact(folder.path(), &model), &other).unwrap();
    assert!(open(&other, &mut |_| {}).unwrap().artifact.is_some());
}

/// What opening and reading every tensor of a file says.
fn read_all(file: &Path) -> Result<(), String> {
    let f = FritFile::open(file).map_err(|e| e.to_string())?;
    let names: Vec<String> = f
        .plan()
        .weights
        .iter()
        .flat_map(|w| match &w.source {
            frit_plan::WeightSource::Parts(parts) => parts.iter().map(|p| p.tensor.clone()).collect(),
            _ => Vec::new(),
        })
        .collect();
    assert!(!names.is_empty());
    names.iter().try_for_each(|n| f.read(n).map(|_| ()).map_err(|e| e.to_string()))
}

#[test]
fn every_cut_and_every_flipped_byte_is_refused_with_the_name_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::compile(&support::load("devset/gpt2"));
    let bytes = std::fs::read(artifact(folder.path(), &model)).unwrap();
    let damaged = folder.path().join("damaged.frit");
    let refused = |what: String, content: &[u8]| {
        std::fs::write(&damaged, content).unwrap();
        let said = read_all(&damaged).expect_err(&what);
        assert!(said.contains("damaged.frit") && !said.is_empty(), "{what}: {said}");
    };
    read_all(&folder.path().join("model.frit")).unwrap();
    let step = bytes.len() / 40;
    for len in (0..12).chain((0..40).map(|i| i * step)).chain([bytes.len() - 1]) {
        refused(format!("cut to {len} bytes"), &bytes[..len]);
    }
    refused("one byte more".into(), &[&bytes[..], &[0]].concat());
    for at in (0..8).chain((0..60).map(|i| 8 + i * (bytes.len() - 9) / 60)).chain([bytes.len() - 1]) {
        let mut other = bytes.clone();
        other[at] ^= 0x15;
        refused(format!("byte {at} of {} flipped", bytes.len()), &other);
    }
}

struct Failing<'a> {
    inner: &'a dyn TensorSource,
    bad: String,
}

impl TensorSource for Failing<'_> {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        if tensor == self.bad { Err("the disk is gone".into()) } else { self.inner.read(tensor) }
    }
}

/// A write that fails half way leaves what was there, and nothing beside it.
#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = support::compile(&support::load("devset/gpt2"));
    let file = folder.path().join("model.frit");
    std::fs::write(&file, b"as before").unwrap();
    let bad = "transformer.h.1.mlp.c_fc.weight".to_owned();
    let source = Failing { inner: &*model.weights, bad: bad.clone() };
    let said = write(&file, &model.plan, &source, &mut |_, _| {}).unwrap_err().to_string();
    assert!(said.contains(&bad) && said.contains("the disk is gone"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), b"as before");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left beside it");
    let nowhere = folder.path().join("no/such/folder/model.frit");
    let said = write(&nowhere, &model.plan, &*model.weights, &mut |_, _| {}).unwrap_err().to_string();
    assert!(said.contains("model.frit"), "{said}");
    assert!(!folder.path().join("no").exists());
}
