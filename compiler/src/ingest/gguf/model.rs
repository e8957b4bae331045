//! From a GGUF file to a model: its family's recipe, its tensors, its tokenizer.

use super::families;
use super::keys::Keys;
use super::reader::GgufFile;
use super::tensors::READ_TYPES;
use super::tokenizer;
use crate::ingest::bind::{Binder, Stored};
use crate::ingest::builder::ModelBuilder;
use crate::ingest::error::{Error, Gap, Result};
use crate::ingest::recipe::Recipe;
use crate::ingest::{Limits, LoadOptions, limit_context, recipe};
use crate::model::Model;
use frit_kernels::dtype::Storage;
use frit_plan::{TensorData, TensorSource};
use indexmap::IndexMap;
use std::path::Path;
use std::sync::Arc;

/// Loads a GGUF file.
///
/// # Errors
/// A malformed file, and the list of everything that is not supported.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
    let file = GgufFile::open(path, &options.limits)?;
    let unsupported = |gaps: Vec<Gap>| Error::Unsupported { path: path.to_owned(), gaps };
    let (architecture, recipe, mut gaps) = read_recipe(&file, &options.limits).map_err(unsupported)?;

    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = file.metadata().str("general.name").ok().flatten().map_or(stem, str::to_owned);
    let stock: IndexMap<String, Stored> = file
        .tensors()
        .map(|t| {
            let storage = Some(t.storage).filter(|s| !matches!(s, Storage::I32 | Storage::Bool));
            (
                t.name.clone(),
                Stored { storage, kind: t.storage.name().to_uppercase(), shape: t.shape.clone(), stored_as: None },
            )
        })
        .collect();
    let mut m = ModelBuilder::new(&name);
    m.info.architecture = architecture.into();
    let mut binder = Binder::new(&mut m, &stock, READ_TYPES);
    let mut decoder = recipe::decoder(&recipe, &mut binder);
    gaps.extend(binder.finish(|name| recipe.ignorable(name)));
    if !gaps.is_empty() {
        return Err(unsupported(gaps));
    }
    limit_context(&mut decoder.context, options, path)?;
    let gaps = decoder.set_policy(&options.policy);
    if !gaps.is_empty() {
        return Err(unsupported(gaps));
    }
    decoder.build(&mut m);
    // A model runs on token ids even where its tokenizer is not understood.
    match tokenizer::convert(file.metadata()) {
        Ok(Some(t)) => (m.info.eos, m.info.tokenizer, m.info.chat) = (t.stops, Some(t.json), t.chat),
        _ => {
            let eos = file.metadata().u64("tokenizer.ggml.eos_token_id").ok().flatten();
            m.info.eos = eos.and_then(|id| u32::try_from(id).ok()).into_iter().collect();
        }
    }
    m.source(Arc::new(file));
    m.finish().map_err(|e| Error::Internal { path: path.to_owned(), problem: e.to_string() })
}

/// The name of a file's architecture, its recipe, and what of it is not supported.
///
/// # Errors
/// An architecture that is not read, and sizes that are not known: then there is no recipe.
pub(super) fn read_recipe(file: &GgufFile, limits: &Limits) -> Result<(&'static str, Recipe, Vec<Gap>), Vec<Gap>> {
    let family = families::of(file).map_err(|gap| vec![gap])?;
    let mut keys = Keys { metadata: file.metadata(), prefix: family.name, limits, gaps: Vec::new(), sizes_known: true };
    let recipe = (family.read)(&mut keys, file);
    keys.refuse_others(family.keys);
    let Keys { gaps, sizes_known, .. } = keys;
    if sizes_known { Ok((family.name, recipe, gaps)) } else { Err(gaps) }
}

impl TensorSource for GgufFile {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        let missing = || format!("there is no tensor `{tensor}`");
        let info = self.get(tensor).ok_or_else(missing)?;
        let bytes = self.bytes(tensor)?.ok_or_else(missing)?;
        let bytes = match info.packed {
            None => bytes,
            Some(packed) => packed.repack(&bytes).ok_or_else(|| format!("tensor `{tensor}` ends within a block"))?,
        };
        Ok(TensorData { storage: info.storage, shape: info.shape.clone(), bytes })
    }
}
