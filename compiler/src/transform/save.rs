//! Writes a checkpoint as a Hugging Face directory, whole or not at all: into a directory beside the place, which is
//! then renamed.

use super::checkpoint::{BufferId, Checkpoint};
use super::error::{Error, Result};
use super::extension::ALIASES;
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

/// A directory that is removed unless it is given its final name.
struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done about a directory that cannot be removed.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Checkpoint {
    /// Writes the model's directory. The place must be free.
    ///
    /// # Errors
    /// A place that is taken, and what the operating system refuses. Nothing is left behind then.
    pub fn save(&self, to: &Path, tied: Tied) -> Result<()> {
        let wrong = |problem: &str| Error::Output { path: to.to_owned(), problem: problem.into() };
        if to.exists() {
            return Err(wrong("exists already; remove it or name another place"));
        }
        let name = to.file_name().ok_or_else(|| wrong("names no directory"))?.to_string_lossy().into_owned();
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = parent.join(format!(".{name}.{}.partial", std::process::id()));
        let at = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        fs::create_dir(&path).map_err(|e| at(&path, e))?;
        let mut partial = Partial { path: path.clone(), kept: false };

        for (name, from) in &self.files {
            fs::copy(from, path.join(name)).map_err(|e| at(&path.join(name), e))?;
        }
        let config = path.join(CONFIG);
        let mut text = serde_json::to_string_pretty(&self.config)
            .map_err(|e| Error::Output { path: config.clone(), problem: format!("cannot be written as JSON: {e}") })?;
        text.push('\n');
        fs::write(&config, text).map_err(|e| at(&config, e))?;
        self.write_weights(&path.join(SINGLE), tied)?;
        fs::rename(&path, to).map_err(|e| at(to, e))?;
        partial.kept = true;
        Ok(())
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
            end += self.len_of(*id);
            let entry = serde_json::json!({ "dtype": b.kind, "shape": b.shape, "data_offsets": [from, end] });
            header.insert((*name).to_owned(), entry);
        }
        let mut header = Value::Object(header).to_string();
        header.extend(std::iter::repeat_n(' ', (8 - header.len() % 8) % 8));
        let mut file = BufWriter::new(fs::File::create(path).map_err(at)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(at)?;
        file.write_all(header.as_bytes()).map_err(at)?;
        for (_, id) in &stored {
            file.write_all(&self.raw_of(*id)?).map_err(at)?;
        }
        file.into_inner().map_err(|e| at(e.into_error()))?.sync_all().map_err(at)
    }
}
