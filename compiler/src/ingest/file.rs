//! Files of a model: opened once, read at positions, and never outside the model's own directory.

use super::error::{Error, Result};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// An open regular file that is read at positions. Nothing is mapped, so a file that shrinks is an error and no signal.
#[derive(Debug)]
pub struct SourceFile {
    path: PathBuf,
    len: u64,
    file: File,
    #[cfg(not(unix))]
    seek: std::sync::Mutex<()>,
}

impl SourceFile {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<SourceFile> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let before = std::fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Missing { path: path.to_owned(), problem: "there is no such file".into() }
            }
            _ => Error::Read { path: path.to_owned(), source },
        })?;
        if !before.is_file() {
            return Err(Error::Format { path: path.to_owned(), problem: "is not a regular file".into() });
        }
        let file = File::open(path).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        #[cfg(unix)]
        return Ok(SourceFile { path: path.to_owned(), len, file });
        #[cfg(not(unix))]
        return Ok(SourceFile { path: path.to_owned(), len, file, seek: std::sync::Mutex::new(()) });
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The file's name without its directory.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }
    /// Bytes of the file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `out` from `offset` on.
    pub fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len() as u64)?;
        self.read_exact_at(offset, out).map_err(|source| Error::Read { path: self.path.clone(), source })
    }

    /// The `len` bytes from `offset` on; the range is compared with the file's length before memory is taken.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.check(offset, len)?;
        let len = usize::try_from(len).map_err(|_| self.malformed("size", "does not fit this machine's memory"))?;
        let mut out = vec![0; len];
        self.read_into(offset, &mut out)?;
        Ok(out)
    }

    /// The error that blames `place` in this file.
    pub fn malformed(&self, place: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Malformed { path: self.path.clone(), place: place.into(), problem: problem.into() }
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => {
                let problem = format!("{len} bytes at {offset} lie beyond the end of the file ({} bytes)", self.len);
                Err(self.malformed("range", problem))
            }
        }
    }

    #[cfg(unix)]
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }
    #[cfg(not(unix))]
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let _guard = self.seek.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}

/// A model's directory. Files are opened by plain names and may not lead out of it.
///
/// Links are followed only where they stay inside, or where the directory is a snapshot of a download cache
/// (`REPO/snapshots/REVISION`) and they stay inside `REPO`, since such caches consist of links to `REPO/blobs`.
#[derive(Clone, Debug)]
pub struct ModelDir {
    path: PathBuf,
    inside: PathBuf,
}

impl ModelDir {
    /// Opens a directory.
    pub fn open(path: &Path) -> Result<ModelDir> {
        let root = path.canonicalize().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Missing { path: path.to_owned(), problem: "there is no such directory".into() }
            }
            _ => Error::Read { path: path.to_owned(), source },
        })?;
        let snapshots = root.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"));
        let inside = snapshots.and_then(Path::parent).unwrap_or(&root).to_owned();
        Ok(ModelDir { path: path.to_owned(), inside })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether an entry of that name exists.
    pub fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    /// Names of the directory's entries that end with one of `ends`, sorted, at most 64.
    pub fn names_ending(&self, ends: &[&str]) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|n| ends.iter().any(|e| n.ends_with(e))).take(64).collect();
        names.sort();
        names
    }

    /// Opens the file of that name; `named_by` says who asked for it, for the message.
    pub fn file(&self, name: &str, named_by: &str) -> Result<SourceFile> {
        let path = self.path.join(name);
        let refuse = |problem: String| Error::Malformed {
            path: self.path.join(named_by),
            place: format!("file `{name}`"),
            problem,
        };
        if name.is_empty()
            || !Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
            || name.contains('\\')
        {
            return Err(refuse("leads out of the model's directory".into()));
        }
        let file = SourceFile::open(&path)?;
        let real = path.canonicalize().map_err(|source| Error::Read { path: path.clone(), source })?;
        if !real.starts_with(&self.inside) {
            return Err(refuse("is a link that leads out of the model's directory; put a copy there".into()));
        }
        Ok(file)
    }

    /// The text of a file of at most `limit` bytes; `None` when there is none.
    pub fn text(&self, name: &str, limit: u64) -> Result<Option<String>> {
        if !self.has(name) {
            return Ok(None);
        }
        let file = self.file(name, name)?;
        if file.len() > limit {
            return Err(Error::Limit {
                path: file.path().to_owned(),
                what: "size in bytes".into(),
                value: file.len(),
                limit,
            });
        }
        let bytes = file.read(0, file.len())?;
        String::from_utf8(bytes).map(Some).map_err(|_| file.malformed("text", "is not UTF-8"))
    }
}
