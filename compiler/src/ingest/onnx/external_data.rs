//! Tensors that lie in files beside the model.
//!
//! Such a file is named by the model and so by nobody who can be trusted: it must be a plain path inside the model's own
//! directory, no link that leads out of it and no second name of a file elsewhere. Ranges are compared with the file's
//! length before memory is taken.

use super::proto::StringStringEntryProto;
use crate::ingest::error::Result;
use crate::ingest::file::{ModelDir, SourceFile};
use indexmap::IndexMap;
use std::sync::Arc;

/// The files of a model, each opened once.
#[derive(Debug)]
pub struct ExternalFiles {
    dir: ModelDir,
    model: String,
    open: IndexMap<String, Arc<SourceFile>>,
    limit_files: u64,
}

/// A range of a file.
#[derive(Clone, Debug)]
pub struct Range {
    /// The file.
    pub file: Arc<SourceFile>,
    /// First byte.
    pub offset: u64,
}

impl ExternalFiles {
    /// Files in `dir`, named by the file `model`.
    pub fn new(dir: ModelDir, model: String, limit_files: u64) -> Self {
        ExternalFiles { dir, model, open: IndexMap::new(), limit_files }
    }

    /// Where the `len` bytes of a tensor lie.
    ///
    /// # Errors
    /// Entries that contradict themselves, a file outside the directory, a range outside the file.
    pub fn locate(&mut self, entries: &[StringStringEntryProto], len: u64) -> std::result::Result<Range, String> {
        let find = |key: &str| entries.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let location = find("location").ok_or("its external data has no location")?;
        let number = |key: &str| match find(key) {
            Some(text) => match text.trim().parse::<u64>() {
                Ok(v) => Ok(Some(v)),
                Err(_) => Err(format!("its external data has the {key} `{}`", short(text))),
            },
            None => Ok(None),
        };
        let offset = number("offset")?.unwrap_or(0);
        if let Some(stated) = number("length")?
            && stated != len
        {
            return Err(format!("its external data has {stated} bytes, its shape asks for {len}"));
        }
        let file = self.file(location).map_err(|e| e.to_string())?;
        match offset.checked_add(len) {
            Some(end) if end <= file.len() => Ok(Range { file, offset }),
            _ => Err(format!(
                "{len} bytes at {offset} lie beyond the end of `{}` ({} bytes)",
                short(location),
                file.len()
            )),
        }
    }

    fn file(&mut self, location: &str) -> Result<Arc<SourceFile>> {
        let plain = location.strip_prefix("./").unwrap_or(location);
        if let Some(file) = self.open.get(plain) {
            return Ok(Arc::clone(file));
        }
        if self.open.len() as u64 >= self.limit_files {
            return Err(crate::ingest::Error::Limit {
                path: self.dir.path().join(&self.model),
                what: "number of external files".into(),
                value: self.open.len() as u64 + 1,
                limit: self.limit_files,
            });
        }
        let file = Arc::new(self.dir.file(plain, &self.model)?);
        sole_name(&file)?;
        self.open.insert(plain.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

#[cfg(unix)]
fn sole_name(file: &SourceFile) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let names = std::fs::metadata(file.path()).map_or(1, |m| m.nlink());
    match names {
        0 | 1 => Ok(()),
        n => Err(file.malformed("external data", format!("is a hard link, one of {n}; put a copy there"))),
    }
}
#[cfg(not(unix))]
fn sole_name(_: &SourceFile) -> Result<()> {
    Ok(())
}

/// The beginning of a text of the file, for messages.
pub fn short(text: &str) -> String {
    const SHOWN: usize = 80;
    let clean: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > SHOWN { format!("{clean}…") } else { clean }
}
