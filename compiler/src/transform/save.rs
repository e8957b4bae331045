//! Writes a checkpoint as a Hugging Face directory, whole or not at all: into a directory beside the place, which is
//! then renamed.

use super::checkpoint::{BufferId, Checkpoint, Companion};
use super::dense::Elements;
use super::error::{Error, Result};
use super::extension::ALIASES;
use super::gguf;
use crate::ingest::hf::config::CONFIG;
use crate::ingest::hf::weights::SINGLE;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// How tied tensors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tied {
    /// Once, with the other names in the file's metadata.
    #[default]
    Once,
    /// As copies, for programs that know no aliases.
    Copies,
}

/// A directory or a file beside the place that it is for; removed unless it gets there.
pub(super) struct Partial {
    path: PathBuf,
    to: PathBuf,
    kept: bool,
}

impl Partial {
    /// Where to write first what is to lie at `to`.
    ///
    /// # Errors
    /// A place that is taken, or that has no name.
    pub fn of(to: &Path) -> Result<Partial> {
        let wrong = |problem: &str| Error::Output { path: to.to_owned(), problem: problem.into() };
        if to.exists() {
            return Err(wrong("exists already; remove it or name another place"));
        }
        let name = to.file_name().ok_or_else(|| wrong("names nothing that could be written"))?.to_string_lossy();
        let path = to.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        Ok(Partial { path, to: to.to_owned(), kept: false })
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Moves it to its place.
    pub fn finish(mut self) -> Result<()> {
        fs::rename(&self.path, &self.to).map_err(|source| Error::Write { path: self.to.clone(), source })?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done about what cannot be removed.
            let _ = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
        }
    }
}

impl Checkpoint {
    /// Writes the model's directory. The place must be free.
    ///
    /// # Errors
    /// A place that is taken, and what the operating system refuses. Nothing is left behind then.
    pub fn save(&self, to: &Path, tied: Tied) -> Result<()> {
        let partial = Partial::of(to)?;
        let path = partial.path();
        let at = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        fs::create_dir(path).map_err(|e| at(path, e))?;
        for (name, from) in &self.files {
            let to = path.join(name);
            let done = match from {
                Companion::At(from) => fs::copy(from, &to).map(|_| ()),
                Companion::Text(text) => fs::write(&to, text),
            };
            done.map_err(|e| at(&to, e))?;
        }
        let config = path.join(CONFIG);
        let mut text = serde_json::to_string_pretty(&self.config)
            .map_err(|e| Error::Output { path: config.clone(), problem: format!("cannot be written as JSON: {e}") })?;
        text.push('\n');
        fs::write(&config, text).map_err(|e| at(&config, e))?;
        self.write_weights(&path.join(SINGLE), tied)?;
        partial.finish()
    }

    /// Names that are stored, and the names that stand for each of them.
    fn stored_names(&self, tied: Tied) -> (Vec<(&str, BufferId)>, Map<String, Value>) {
        let mut first: IndexMap<BufferId, &str> = IndexMap::new();
        let (mut stored, mut aliases) = (Vec::new(), Map::new());
        for (name, id) in &self.names {
            match first.get(id) {
                Some(of) if tied == Tied::Once => {
                    aliases.insert(name.clone(), Value::from(*of));
                }
                _ => {
                    first.insert(*id, name);
                    stored.push((name.as_str(), *id));
                }
            }
        }
        (stored, aliases)
    }

    fn write_weights(&self, path: &Path, tied: Tied) -> Result<()> {
        let at = |source| Error::Write { path: path.to_owned(), source };
        let (stored, aliases) = self.stored_names(tied);
        let mut metadata = Map::from_iter([("format".to_owned(), Value::from("pt"))]);
        if !aliases.is_empty() {
            metadata.insert(ALIASES.into(), Value::from(Value::Object(aliases).to_string()));
        }
        let mut header = Map::from_iter([("__metadata__".to_owned(), Value::Object(metadata))]);
        let mut end = 0u64;
        for (name, id) in &stored {
            let (from, b) = (end, self.stored(*id));
            let (kind, len) = self.form(*id);
            end += len;
            let entry = serde_json::json!({ "dtype": kind, "shape": b.shape, "data_offsets": [from, end] });
            header.insert((*name).to_owned(), entry);
        }
        let mut header = Value::Object(header).to_string();
        header.extend(std::iter::repeat_n(' ', (8 - header.len() % 8) % 8));
        let mut file = BufWriter::new(fs::File::create(path).map_err(at)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(at)?;
        file.write_all(header.as_bytes()).map_err(at)?;
        for (_, id) in &stored {
            match gguf::is_blocks(&self.stored(*id).kind) {
                true => file.write_all(&Elements::F32.encode(&self.values_of(*id)?)).map_err(at)?,
                false => file.write_all(&self.raw_of(*id)?).map_err(at)?,
            }
        }
        file.into_inner().map_err(|e| at(e.into_error()))?.sync_all().map_err(at)
    }

    /// The type and the bytes of a buffer in a safetensors file, where blocks are their values.
    fn form(&self, id: BufferId) -> (&str, u64) {
        let b = self.stored(id);
        match gguf::is_blocks(&b.kind) {
            true => (Elements::F32.name(), b.shape.iter().product::<u64>() * 4),
            false => (&b.kind, self.len_of(id)),
        }
    }
}
