//! Hugging Face directories: configuration, weights, architectures.

mod architectures;
mod common_fields;
pub mod config;
pub mod fields;
mod mxfp4;
mod registry;
pub(in crate::ingest) mod rope_fields;
pub mod text_files;
pub mod weights;

use super::bind::{Binder, Stored};
use super::builder::ModelBuilder;
use super::error::{Error, Gap, Result};
use super::file::ModelDir;
use super::{LoadOptions, limit_context};
use crate::model::Model;
use crate::transform::extension::Extension;
use config::CONFIG;
use frit_kernels::dtype::Storage;
use frit_plan::{TensorData, TensorSource};
use indexmap::IndexMap;
use safetensors::Dtype;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;
use weights::Weights;

/// The types that are read, for messages.
const READ_TYPES: &str = "F32, F16 and BF16";

/// Loads a model's directory.
///
/// # Errors
/// Files that are missing or malformed, and the list of everything that is not supported.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
    let limits = &options.limits;
    let dir = ModelDir::open(path)?;
    let object = text_files::object(&dir, CONFIG, limits)?.ok_or_else(|| Error::Missing {
        path: dir.path().to_owned(),
        problem: format!("the directory has no {CONFIG}; give the directory of a model in Hugging Face form"),
    })?;
    let reading = config::read(&object, limits);
    let mut gaps = reading.gaps;
    let unsupported = |gaps: Vec<Gap>| Error::Unsupported { path: path.to_owned(), gaps };
    let (Some(mut config), true) = (reading.config, reading.sizes_known) else { return Err(unsupported(gaps)) };
    match Extension::of(&object) {
        Ok(extension) => gaps.extend(config.extend(extension)),
        Err(e) => gaps.push(Gap::field(CONFIG, "frit", e.to_string(), "correct it")),
    }
    if !gaps.is_empty() {
        return Err(unsupported(gaps));
    }

    let weights = Weights::open_dir(&dir, limits)?;
    let (text, faults) = text_files::read(&dir, &object, limits)?;
    gaps.extend(faults);
    let mut stock = stock(&weights);
    mxfp4::join(&mut stock);
    if options.dedupe {
        dedupe(&weights, &mut stock)?;
    }
    let mut m = ModelBuilder::new(&display_name(path));
    m.info.architecture = reading.architecture;
    let mut binder = Binder::new(&mut m, &stock, READ_TYPES);
    let mut network = config.bind(&mut binder);
    gaps.extend(binder.finish(|name| config.ignorable(name)));
    if !gaps.is_empty() {
        return Err(unsupported(gaps));
    }
    if let Some(context) = network.context() {
        limit_context(context, options, path)?;
    }
    let gaps = network.set_policy(&options.policy);
    if !gaps.is_empty() {
        return Err(unsupported(gaps));
    }
    m.rules = text.rules;
    network.build(&mut m);
    if m.info.task == frit_plan::Task::EncoderDecoder && !m.info.start.is_empty() {
        let begin = m.rules.begin.clone();
        m.info.start.extend(begin);
    }
    m.info.rules = m.rules.for_host();
    (m.info.tokenizer, m.info.eos, m.info.bos, m.info.chat) = (text.tokenizer, text.eos, text.bos, text.chat);
    m.source(Arc::new(weights));
    m.finish().map_err(|e| Error::Internal { path: path.to_owned(), problem: e.to_string() })
}

/// The directory's own name.
fn display_name(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "model".into())
}

fn storage_of(dtype: Dtype) -> Option<Storage> {
    match dtype {
        Dtype::F32 => Some(Storage::F32),
        Dtype::F16 => Some(Storage::F16),
        Dtype::BF16 => Some(Storage::Bf16),
        _ => None,
    }
}

fn stock(weights: &Weights) -> IndexMap<String, Stored> {
    let stored = |t: &weights::TensorInfo| Stored {
        storage: storage_of(t.dtype),
        kind: format!("{:?}", t.dtype),
        shape: t.shape.clone(),
        stored_as: None,
    };
    let mut stock: IndexMap<String, Stored> = weights.tensors().map(|t| (t.name.clone(), stored(t))).collect();
    for (name, of) in weights.aliases() {
        let shared = stock.get(of).map(|t| Stored { stored_as: Some(of.to_owned()), ..t.clone() });
        stock.extend(shared.map(|t| (name.to_owned(), t)));
    }
    stock
}

/// Lets tensors of equal type, shape and bytes be one, as if the others were names of the first.
fn dedupe(weights: &Weights, stock: &mut IndexMap<String, Stored>) -> Result<()> {
    let mut known: HashMap<(String, Vec<u64>, blake3::Hash), String> = HashMap::new();
    for (name, tensor) in stock.iter_mut().filter(|(_, t)| t.stored_as.is_none()) {
        let Some(bytes) = weights.bytes(name)? else { continue };
        let key = (tensor.kind.clone(), tensor.shape.clone(), blake3::hash(&bytes));
        match known.entry(key) {
            Entry::Occupied(first) => tensor.stored_as = Some(first.get().clone()),
            Entry::Vacant(free) => {
                free.insert(name.clone());
            }
        }
    }
    let firsts: HashMap<String, String> =
        stock.iter().filter_map(|(name, t)| Some((name.clone(), t.stored_as.clone()?))).collect();
    for tensor in stock.values_mut() {
        if let Some(first) = tensor.stored_as.as_ref().and_then(|of| firsts.get(of)) {
            tensor.stored_as = Some(first.clone());
        }
    }
    Ok(())
}

impl TensorSource for Weights {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(joined) = mxfp4::read(self, tensor)? {
            return Ok(joined);
        }
        let info = self.get(tensor).ok_or_else(|| format!("there is no tensor `{tensor}`"))?;
        let storage =
            storage_of(info.dtype).ok_or_else(|| format!("tensor `{tensor}` is stored as {:?}", info.dtype))?;
        let bytes = self.bytes(tensor)?.ok_or_else(|| format!("there is no tensor `{tensor}`"))?;
        Ok(TensorData { storage, shape: info.shape.clone(), bytes })
    }
}
