//! The files beside a model that say how it is used with text; an export may have them in its own directory or, when it
//! lies in a folder `onnx`, in the one above.

use crate::ingest::error::{Error, Result};
use crate::ingest::file::ModelDir;
use crate::ingest::hf::config::CONFIG;
use crate::ingest::hf::fields::Fields;
use crate::ingest::hf::text_files::{self, TextSettings};
use crate::ingest::limits::Limits;
use std::path::Path;

const TOKENIZER: &str = "tokenizer.json";
/// Names that configurations give the longest context.
const CONTEXTS: [&str; 4] = ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"];
/// Tokens that a cache holds at most when no configuration tells.
const CONTEXT: u64 = 2048;

/// What is known of a model's use with text.
#[derive(Debug, Default)]
pub struct Text {
    /// Tokenizer and special tokens.
    pub settings: TextSettings,
    /// Tokens that a cache holds at most.
    pub context: u64,
}

/// Reads tokenizer, end of text and context. What lies beside a file without a tokenizer may belong to something else:
/// there, files that cannot be read are passed over.
///
/// # Errors
/// Settings beside a tokenizer that are malformed.
pub fn read(parent: &Path, limits: &Limits) -> Result<Text> {
    let above = parent.canonicalize().ok().filter(|p| p.ends_with("onnx")).and_then(|p| p.parent().map(Path::to_owned));
    let own = ModelDir::open(parent)?;
    let dir = match above {
        Some(above) if !own.has(TOKENIZER) && !own.has(CONFIG) => ModelDir::open(&above)?,
        _ => own,
    };
    let mut text = Text { context: CONTEXT, ..Text::default() };
    let used = dir.has(TOKENIZER);
    let config = match text_files::object(&dir, CONFIG, limits) {
        Ok(config) => config.unwrap_or_default(),
        Err(e) if used => return Err(e),
        Err(_) => return Ok(text),
    };
    let mut fields = Fields::new(CONFIG, &config, limits);
    if let Some(name) = CONTEXTS.iter().find(|name| fields.get(name).is_some()) {
        text.context = fields.size(name, None);
    }
    let (mut gaps, _) = fields.into_gaps();
    match text_files::read(&dir, &config, limits) {
        Ok((settings, faults)) => {
            gaps.extend(faults);
            text.settings = settings;
        }
        Err(e) if used => return Err(e),
        Err(_) => {}
    }
    match (used, gaps.is_empty()) {
        (true, false) => Err(Error::Unsupported { path: dir.path().to_owned(), gaps }),
        (false, false) => Ok(Text { context: CONTEXT, ..Text::default() }),
        _ => Ok(text),
    }
}
