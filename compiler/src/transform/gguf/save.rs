//! Writes a checkpoint that was opened from a GGUF file as a GGUF file: whole or not at all.

use super::names::Conversion;
use super::{Origin, is_carried};
use crate::ingest::gguf;
use crate::ingest::gguf::metadata::Value as Meta;
use crate::ingest::gguf::reader::GgufFile;
use crate::ingest::gguf::tensors::TensorType;
use crate::ingest::gguf::writer::{self, Entry};
use crate::ingest::{Limits, LoadOptions};
use crate::transform::checkpoint::{BufferData, BufferId, Checkpoint};
use crate::transform::error::{Error, Result, refuse, refuse_all};
use crate::transform::save::{Partial, Tied};
use indexmap::{IndexMap, IndexSet};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter};
use std::path::Path;

const STEP: &str = "a GGUF file";
/// Fields of the configuration that state tokens, which are in the metadata already.
const TOKENS: [&str; 2] = ["bos_token_id", "eos_token_id"];

/// A tensor of the file to be.
struct Planned {
    name: String,
    kind: TensorType,
    shape: Vec<u64>,
    from: From,
}

enum From {
    /// A tensor of the file that was read, as it lies there.
    File(String),
    /// A buffer, and what is done to its elements.
    Buffer(BufferId, Conversion),
    /// As [`From::Buffer`], of elements that become F32.
    Floats(BufferId, Conversion),
}

impl Checkpoint {
    /// Writes a GGUF file with the metadata of the one that the checkpoint was opened from. The place must be free.
    ///
    /// # Errors
    /// A checkpoint from a directory; everything that the format has no place for: shared tensors unless they are to be
    /// copies, and what layers share, lack or have besides; a place that is taken, and what the operating system
    /// refuses. Nothing is left behind then.
    pub fn save_gguf(&self, to: &Path, tied: Tied) -> Result<()> {
        let Some(origin) = &self.origin else {
            let problem = "a GGUF file is written from a GGUF file, whose metadata it keeps; name a directory".into();
            return Err(Error::Output { path: to.to_owned(), problem });
        };
        let planned = self.planned(origin, tied)?;
        let metadata = self.metadata(origin);
        let entries: Vec<Entry<'_>> =
            planned.iter().map(|p| Entry { name: &p.name, kind: p.kind, shape: &p.shape }).collect();
        let pairs: Vec<(&str, &Meta)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();

        let partial = Partial::of(to)?;
        let path = partial.path();
        let at = |source| Error::Write { path: path.to_owned(), source };
        let mut out = BufWriter::new(fs::File::create_new(path).map_err(at)?);
        let elements = |n: usize| self.bytes_of(origin, &planned[n]).map_err(io::Error::other);
        writer::write(&mut out, &pairs, &entries, elements).map_err(at)?;
        out.into_inner().map_err(|e| at(e.into_error()))?.sync_all().map_err(at)?;
        self.compare(path)?;
        partial.finish()
    }

    fn planned(&self, origin: &Origin, tied: Tied) -> Result<Vec<Planned>> {
        let carried = origin.file.tensors().filter(|t| is_carried(&t.name));
        let mut out: Vec<Planned> = carried
            .map(|t| Planned {
                name: t.name.clone(),
                kind: t.kind(),
                shape: t.shape.clone(),
                from: From::File(t.name.clone()),
            })
            .collect();
        let (mut problems, mut known) = (Vec::new(), HashMap::new());
        let embedding = self.embedding().and_then(|n| self.buffer(&n));
        for (name, id) in &self.names {
            if self.family.head == Some(name) && Some(*id) == embedding {
                // A file without a head has its embedding as head.
                continue;
            }
            let Some(there) = origin.layout.in_file(name) else {
                problems.push(format!("tensor `{name}` has no name there"));
                continue;
            };
            if let Some(other) = known.insert(*id, name).filter(|_| tied == Tied::Once) {
                problems.push(format!("`{name}` shares the elements of `{other}`; give --materialize for a copy"));
            }
            let buffer = self.stored(*id);
            let to = origin.layout.conversion(name);
            let kind = TensorType::named(&buffer.kind).filter(|k| k.storage.is_some());
            let Some(kind) = kind else {
                problems.push(format!("tensor `{name}` is of {}, which the format has no type for", buffer.kind));
                continue;
            };
            let floats = TensorType::named("F32").filter(|f| buffer.shape.len() == 1 && *f != kind);
            let from = match &buffer.data {
                BufferData::Gguf { tensor, name: read_as, .. } if origin.layout.conversion(read_as) == to => {
                    From::File(tensor.clone())
                }
                _ if floats.is_some() => From::Floats(*id, to),
                _ => From::Buffer(*id, to),
            };
            let kind = floats.filter(|_| matches!(from, From::Floats(..))).unwrap_or(kind);
            out.push(Planned { name: there, kind, shape: buffer.shape.clone(), from });
        }
        refuse_all(STEP, problems)?;
        Ok(out)
    }

    fn bytes_of(&self, origin: &Origin, p: &Planned) -> Result<Vec<u8>> {
        let rows = p.shape.first().copied().unwrap_or(1) as usize;
        match &p.from {
            From::File(tensor) => origin.stored(tensor),
            From::Buffer(id, to) => Ok(to.redo(self.raw_of(*id)?.to_vec(), rows, origin.head)),
            From::Floats(id, to) => {
                let values = self.values_of(*id)?;
                let bytes = values.into_iter().flat_map(|v| (v as f32).to_le_bytes()).collect();
                Ok(to.redo(bytes, rows, origin.head))
            }
        }
    }

    /// The metadata of the file that was read, with the sizes of the configuration.
    fn metadata(&self, origin: &Origin) -> IndexMap<String, Meta> {
        let mut out: IndexMap<String, Meta> =
            origin.file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        let architecture = match out.get("general.architecture") {
            Some(Meta::String(name)) => name.clone(),
            _ => String::new(),
        };
        let mut set = |key: &str, size: u64| {
            out.insert(format!("{architecture}.{key}"), Meta::U32(u32::try_from(size).unwrap_or(u32::MAX)));
        };
        let sizes = [
            ("num_hidden_layers", "block_count"),
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
            ("head_dim", "attention.value_length"),
        ];
        for (field, key) in sizes {
            if let Some(size) = self.number(field) {
                set(key, size);
            }
        }
        out
    }

    /// Compares the configurations, and loads what was written.
    fn compare(&self, written: &Path) -> Result<()> {
        let limits = Limits::default();
        let there = match gguf::config(&GgufFile::open(written, &limits)?, &limits) {
            Ok(config) => config,
            Err(gaps) => return refuse_all(STEP, gaps.iter().map(ToString::to_string).collect()),
        };
        let fields: IndexSet<&String> = self.config.keys().chain(there.keys()).collect();
        let differs = |field: &&&String| {
            let same = |v: Option<&Value>| v.filter(|v| !v.is_null()).cloned();
            !TOKENS.contains(&field.as_str()) && same(self.config.get(**field)) != same(there.get(**field))
        };
        let problems: Vec<String> = fields
            .iter()
            .filter(differs)
            .map(|field| {
                let value = self.config.get(*field).map_or("missing".to_owned(), Value::to_string);
                format!("has no place for `{field}` of the configuration, which is {value}")
            })
            .collect();
        if !problems.is_empty() {
            return refuse(STEP, format!("{}; write a directory or a .frit file", problems.join("; ")));
        }
        gguf::load(written, &LoadOptions::default())?;
        Ok(())
    }
}
