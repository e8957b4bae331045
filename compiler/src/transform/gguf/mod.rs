//! GGUF files as checkpoints. A file is opened as the directory that it was converted from: its configuration, names and
//! order of rows are those of transformers, so that every transform works. Blocks stay as they are until a transform
//! changes their values.

mod names;
mod save;

use super::checkpoint::{Buffer, BufferData, Checkpoint, Companion};
use super::error::Result;
use crate::ingest::gguf::quant::dequantize;
use crate::ingest::gguf::reader::GgufFile;
use crate::ingest::gguf::tensors::TensorType;
use crate::ingest::gguf::{self, tokenizer};
use crate::ingest::{self, Gap, Limits, LoadOptions};
use names::{Conversion, Layout};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// The file that a checkpoint was opened from.
#[derive(Debug)]
pub(super) struct Origin {
    file: GgufFile,
    layout: &'static Layout,
    /// Rows of a head.
    head: usize,
}

/// Whether the path names a GGUF file.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Whether a type of elements is blocks, which safetensors files have no type for.
pub(super) fn is_blocks(kind: &str) -> bool {
    TensorType::named(kind).is_some_and(|t| t.storage.is_some() && t.block_elems > 1)
}

/// The values of elements of a type of the format; `None` for types that are not read, and for broken blocks.
pub(super) fn values(kind: &str, bytes: &[u8]) -> Option<Vec<f64>> {
    let kind = TensorType::named(kind)?;
    let values = match kind.packed {
        Some(packed) => dequantize(kind.storage?, &packed.repack(bytes)?)?,
        None => dequantize(kind.storage?, bytes)?,
    };
    Some(values.into_iter().map(f64::from).collect())
}

impl Origin {
    /// The bytes of a tensor in the order of rows and with the gains of a directory, where its name is `name`.
    pub fn elements(&self, tensor: &str, name: &str) -> Result<Vec<u8>> {
        let bytes = self.stored(tensor)?;
        let rows = self.file.get(tensor).and_then(|t| t.shape.first().copied()).unwrap_or(1);
        Ok(self.layout.conversion(name).undo(bytes, rows as usize, self.head))
    }
    /// The bytes of a tensor as they lie in the file.
    fn stored(&self, tensor: &str) -> Result<Vec<u8>> {
        let missing = || self.file.file().malformed(format!("tensor `{tensor}`"), "is gone");
        Ok(self.file.bytes(tensor)?.ok_or_else(missing)?)
    }
    /// Bytes of a tensor.
    pub fn len(&self, tensor: &str) -> u64 {
        self.file.get(tensor).map_or(0, |t| t.len)
    }
}

/// Opens a file.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let limits = Limits::default();
    // What is missing or malformed is said as of any model.
    gguf::load(path, &LoadOptions::default())?;
    let file = GgufFile::open(path, &limits)?;
    let unsupported = |gaps: Vec<Gap>| ingest::Error::Unsupported { path: path.to_owned(), gaps };
    let config = gguf::config(&file, &limits).map_err(unsupported)?;
    let architecture = file.metadata().str("general.architecture").ok().flatten().unwrap_or_default().to_owned();
    let mut checkpoint = Checkpoint::empty(config, path)?;
    let layout = Layout::of(&architecture).ok_or_else(|| {
        let problem = "is an architecture whose tensors have no names in a directory";
        unsupported(vec![file.metadata().gap("general.architecture", problem, "transform the directory instead")])
    })?;
    let head = checkpoint.sizes()?.head_dim;
    let origin = Arc::new(Origin { file, layout, head });
    let packed = architecture == "phi3";
    let mut gaps = Vec::new();
    for t in origin.file.tensors().filter(|t| !is_carried(&t.name)) {
        let Some(name) = layout.in_directory(&t.name, packed) else {
            gaps.push(Gap::tensor(
                &t.name,
                "has no name in a directory",
                "transform the directory of the model instead",
            ));
            continue;
        };
        if layout.conversion(&name) == Conversion::PlusOne && t.kind().name != "F32" {
            gaps.push(Gap::tensor(&t.name, format!("is a gain of {}", t.kind().name), "convert the model again"));
        }
        let data = BufferData::Gguf { origin: Arc::clone(&origin), tensor: t.name.clone(), name: name.clone() };
        checkpoint.insert(&name, Buffer { kind: t.kind().name.into(), shape: t.shape.clone(), data });
    }
    if !gaps.is_empty() {
        return Err(unsupported(gaps).into());
    }
    companions(&mut checkpoint, &origin.file);
    checkpoint.origin = Some(origin);
    Ok(checkpoint)
}

/// Tensors that follow from the configuration, and stay in the file as they are.
fn is_carried(name: &str) -> bool {
    name.starts_with("rope_f")
}

/// The tokenizer, the chat template and the tokens that end a text, as files of a directory.
fn companions(checkpoint: &mut Checkpoint, file: &GgufFile) {
    let t = match tokenizer::convert(file.metadata()) {
        Ok(Some(t)) => t,
        Ok(None) => return,
        Err(gap) => {
            checkpoint.notes.push(format!("a directory gets no tokenizer: {gap}"));
            return;
        }
    };
    let mut settings = Map::from_iter([("add_bos_token".to_owned(), Value::from(t.add_bos))]);
    if let Some(chat) = &t.chat {
        settings.insert("chat_template".into(), chat.template.as_str().into());
        for (field, token) in [("bos_token", &chat.bos), ("eos_token", &chat.eos)] {
            settings.insert(field.into(), token.as_deref().map_or(Value::Null, Value::from));
        }
    }
    let generation = json!({ "bos_token_id": t.bos, "eos_token_id": t.stops, "pad_token_id": t.pad });
    checkpoint.set("bos_token_id", t.bos);
    checkpoint.set("eos_token_id", t.eos);
    checkpoint.files = [
        ("tokenizer.json", t.json),
        ("tokenizer_config.json", Value::Object(settings).to_string()),
        ("generation_config.json", generation.to_string()),
    ]
    .map(|(name, text)| (name.to_owned(), Companion::Text(text)))
    .into();
}
