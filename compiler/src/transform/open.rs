//! Reads a checkpoint from a Hugging Face directory or a GGUF file. Tensors stay in their files until they are asked for.

use super::checkpoint::{Buffer, BufferData, Checkpoint, Companion};
use super::error::{Error, Result};
use super::family::{FAMILIES, Family};
use super::gguf;
use crate::ingest;
use crate::ingest::Limits;
use crate::ingest::file::ModelDir;
use crate::ingest::hf::config::CONFIG;
use crate::ingest::hf::text_files;
use crate::ingest::hf::weights::Weights;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// Files beside the weights that go along unchanged.
const COMPANIONS: [&str; 14] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "LICENSE",
    "LICENSE.wordnet",
];

impl Checkpoint {
    /// Opens a model's directory, or its GGUF file.
    ///
    /// # Errors
    /// Files that are missing or malformed, and an architecture whose tensors are not known by their roles.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let limits = Limits::default();
        if gguf::is_gguf(path) {
            return gguf::open(path);
        }
        if !path.is_dir() {
            let problem = if path.exists() {
                "is neither a directory in Hugging Face form nor a .gguf file"
            } else {
                "there is no such directory"
            };
            return Err(ingest::Error::Format { path: path.to_owned(), problem: problem.into() }.into());
        }
        let dir = ModelDir::open(path)?;
        let config = text_files::object(&dir, CONFIG, &limits)?.ok_or_else(|| ingest::Error::Missing {
            path: path.to_owned(),
            problem: format!("the directory has no {CONFIG}"),
        })?;
        let weights = Arc::new(Weights::open_dir(&dir, &limits)?);
        let mut checkpoint = Checkpoint::empty(config, path)?;
        for info in weights.tensors() {
            let data = BufferData::Stored { weights: Arc::clone(&weights), tensor: info.name.clone() };
            let buffer = Buffer { kind: format!("{:?}", info.dtype), shape: info.shape.clone(), data };
            checkpoint.insert(&info.name, buffer);
        }
        for (name, of) in weights.aliases() {
            checkpoint.alias(name, of)?;
        }
        let family = checkpoint.family;
        let probe = |p: &&str| family.embeddings.iter().any(|e| checkpoint.has(&format!("{p}{e}")));
        checkpoint.prefix = family.prefixes.iter().copied().find(probe).unwrap_or_default().to_owned();
        checkpoint.files = COMPANIONS
            .iter()
            .filter(|name| dir.has(name))
            .map(|name| dir.file(name, name).map(|f| ((*name).to_owned(), Companion::At(f.path().to_owned()))))
            .collect::<Result<_, _>>()?;
        Ok(checkpoint)
    }

    /// A checkpoint without tensors. `at` is where the configuration is from, for messages.
    ///
    /// # Errors
    /// An architecture that is not known.
    pub fn empty(config: Map<String, Value>, at: &Path) -> Result<Checkpoint> {
        let family = Family::of(&config).ok_or_else(|| {
            let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)").to_owned();
            let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
            Error::Ingest(ingest::Error::Unsupported {
                path: at.to_owned(),
                gaps: vec![ingest::Gap::field(
                    CONFIG,
                    "model_type",
                    format!("is `{kind}`, whose tensors are not known by their roles"),
                    format!("use one of {}", known.join(", ")),
                )],
            })
        })?;
        let prefix = family.prefixes.first().copied().unwrap_or_default().to_owned();
        Ok(Checkpoint {
            config,
            family,
            prefix,
            names: IndexMap::new(),
            buffers: Vec::new(),
            files: Vec::new(),
            origin: None,
            notes: Vec::new(),
        })
    }
}
