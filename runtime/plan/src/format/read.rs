//! Reading. The header is checked as a whole when a file is opened; tensors are read at positions when asked for.

use super::header::{AliasRow, Header, TensorRow, Unique, container_type};
use super::{FormatError, KEY_ALIASES, KEY_HASH, KEY_PLAN, KEY_TENSORS, KEY_TOKENIZER, KEY_VERSION, VERSION};
use crate::limits::Limits;
use crate::{PLAN_VERSION, Plan, StoredShape, TensorData, TensorSource};
use frit_kernels::dtype::Storage;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open artifact: its plan, and a source of its tensors.
///
/// Opening checks the header, every part's hash and the plan ([`Plan::validate`]). A tensor's bytes are compared with
/// their hash the first time they are read.
#[derive(Debug)]
pub struct FritFile {
    path: PathBuf,
    file: Positioned,
    plan: Arc<Plan>,
    tensors: BTreeMap<String, StoredTensor>,
    extents: Vec<Extent>,
}

/// A tensor of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// How elements are stored.
    pub storage: Storage,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Bytes.
    pub size_bytes: u64,
    /// The tensor of the container whose bytes these are, when it goes by another name.
    pub alias_of: Option<String>,
    extent: usize,
}

#[derive(Debug)]
struct Extent {
    offset: u64,
    len: u64,
    hash: blake3::Hash,
    checked: AtomicBool,
}

impl FritFile {
    /// Opens a file under the default limits.
    ///
    /// # Errors
    /// See [`FormatError`]; the message names the file and the part.
    pub fn open(path: &Path) -> Result<FritFile, FormatError> {
        FritFile::open_with(path, &Limits::default())
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As [`FritFile::open`].
    pub fn open_with(path: &Path, limits: &Limits) -> Result<FritFile, FormatError> {
        let file = Positioned::open(path)?;
        let bytes = header_bytes(path, &file, limits)?;
        let header: Header = serde_json::from_slice(&bytes).map_err(|e| FormatError::NotArtifact {
            path: path.to_owned(),
            reason: format!("its header cannot be read: {e}"),
        })?;
        let parts = Parts::check(path, &header)?;
        let plan = parts.plan(path)?;
        let Unique(rows) = json::<Unique<TensorRow>>(path, "tensors", parts.tensors)?;
        let Unique(aliases) = json::<Unique<AliasRow>>(path, "aliases", parts.aliases)?;
        let data_start = 8 + bytes.len() as u64;
        let (tensors, extents) = table(path, limits, &header, rows, aliases, data_start, file.len)?;
        plan.validate().map_err(|source| FormatError::Plan { path: path.to_owned(), source })?;
        let find = |n: &str| tensors.get(n).map(|t| StoredShape { storage: t.storage, shape: t.shape.clone() });
        plan.validate_tensors(&find).map_err(|source| FormatError::Plan { path: path.to_owned(), source })?;
        Ok(FritFile { path: path.to_owned(), file, plan: Arc::new(plan), tensors, extents })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The compiled model.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }
    /// All tensors by name, aliases included.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }
    /// Reads every tensor and compares it with its hash.
    ///
    /// # Errors
    /// The first tensor that was altered or cannot be read.
    pub fn verify_tensors(&self) -> Result<(), FormatError> {
        for (n, t) in self.tensors.iter().filter(|(_, t)| t.alias_of.is_none()) {
            self.bytes(n, t)?;
        }
        Ok(())
    }

    fn bytes(&self, name: &str, t: &StoredTensor) -> Result<Vec<u8>, FormatError> {
        let part = || format!("tensor `{name}`");
        let missing = || FormatError::malformed(&self.path, part(), "has no bytes");
        let e = self.extents.get(t.extent).ok_or_else(missing)?;
        let bytes = self.file.read(e.offset, e.len)?;
        if !e.checked.load(Ordering::Acquire) {
            if blake3::hash(&bytes) != e.hash {
                return Err(FormatError::Altered { path: self.path.clone(), part: part() });
            }
            e.checked.store(true, Ordering::Release);
        }
        Ok(bytes)
    }
}

impl TensorSource for FritFile {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        let unknown = || FormatError::malformed(&self.path, format!("tensor `{tensor}`"), "there is no such tensor");
        let t = self.tensors.get(tensor).ok_or_else(unknown)?;
        Ok(TensorData { storage: t.storage, shape: t.shape.clone(), bytes: self.bytes(tensor, t)? })
    }
}

fn header_bytes(path: &Path, file: &Positioned, limits: &Limits) -> Result<Vec<u8>, FormatError> {
    let not = |reason: &str| FormatError::NotArtifact { path: path.to_owned(), reason: reason.into() };
    if file.len < 10 {
        return Err(not("it is shorter than the smallest header"));
    }
    let mut word = [0u8; 8];
    word.copy_from_slice(&file.read(0, 8)?);
    let len = u64::from_le_bytes(word);
    let starts = file.read(8, 1)?;
    if len > file.len && starts != b"{" {
        return Err(not("it does not start with a safetensors header"));
    }
    if len > limits.header_bytes {
        return Err(FormatError::Limit {
            path: path.to_owned(),
            what: "header in bytes".into(),
            value: len,
            limit: limits.header_bytes,
        });
    }
    if len > file.len - 8 {
        return Err(FormatError::Truncated { path: path.to_owned(), expected: 8 + len, found: file.len });
    }
    file.read(8, len)
}

/// The texts of the metadata, each equal to its hash.
struct Parts<'a> {
    plan: &'a str,
    tokenizer: Option<&'a str>,
    tensors: &'a str,
    aliases: &'a str,
}

impl<'a> Parts<'a> {
    fn check(path: &Path, header: &'a Header) -> Result<Parts<'a>, FormatError> {
        let text = |k: &str| header.metadata.get(k).map(String::as_str);
        let version = text(KEY_VERSION).ok_or_else(|| FormatError::NotArtifact {
            path: path.to_owned(),
            reason: format!("it is a safetensors file without `{KEY_VERSION}` in its metadata"),
        })?;
        if version != VERSION.to_string() {
            let found = version.chars().take(40).collect();
            return Err(FormatError::Version { path: path.to_owned(), part: "the file", found, supported: VERSION });
        }
        let keys = [KEY_PLAN, KEY_TOKENIZER, KEY_TENSORS, KEY_ALIASES];
        let names = ["plan", "tokenizer", "tensors", "aliases"];
        for k in header.metadata.keys().filter(|k| k.starts_with("frit.")) {
            let hash_of = k.strip_prefix(KEY_HASH);
            if k != KEY_VERSION && !keys.contains(&k.as_str()) && !hash_of.is_some_and(|p| names.contains(&p)) {
                return Err(FormatError::malformed(path, "header", format!("unknown entry `{k}`")));
            }
        }
        let part = |key: &str, name: &str| -> Result<Option<&'a str>, FormatError> {
            let stated = text(&format!("{KEY_HASH}{name}"));
            match (text(key), stated) {
                (None, None) => Ok(None),
                (Some(t), Some(h)) if blake3::Hash::from_hex(h).is_ok_and(|h| h == blake3::hash(t.as_bytes())) => {
                    Ok(Some(t))
                }
                (Some(_), _) => Err(FormatError::Altered { path: path.to_owned(), part: format!("the {name}") }),
                (None, Some(_)) => Err(FormatError::malformed(path, name, "is missing")),
            }
        };
        let required =
            |key: &str, name: &str| part(key, name)?.ok_or_else(|| FormatError::malformed(path, name, "is missing"));
        Ok(Parts {
            plan: required(KEY_PLAN, "plan")?,
            tokenizer: part(KEY_TOKENIZER, "tokenizer")?,
            tensors: required(KEY_TENSORS, "tensors")?,
            aliases: required(KEY_ALIASES, "aliases")?,
        })
    }

    fn plan(&self, path: &Path) -> Result<Plan, FormatError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let v: Versioned = json(path, "plan", self.plan)?;
        if v.version != PLAN_VERSION {
            return Err(FormatError::Version {
                path: path.to_owned(),
                part: "the plan",
                found: v.version.to_string(),
                supported: PLAN_VERSION,
            });
        }
        let mut plan: Plan = json(path, "plan", self.plan)?;
        plan.model.tokenizer = self.tokenizer.map(str::to_owned);
        Ok(plan)
    }
}

fn json<'a, T: Deserialize<'a>>(path: &Path, part: &str, text: &'a str) -> Result<T, FormatError> {
    serde_json::from_str(text).map_err(|e| FormatError::malformed(path, part, e.to_string()))
}

fn table(
    path: &Path,
    limits: &Limits,
    header: &Header,
    rows: Vec<(String, TensorRow)>,
    aliases: Vec<(String, AliasRow)>,
    data_start: u64,
    file_len: u64,
) -> Result<(BTreeMap<String, StoredTensor>, Vec<Extent>), FormatError> {
    let limit = |what: String, value: u64, limit: u64| match value <= limit {
        true => Ok(()),
        false => Err(FormatError::Limit { path: path.to_owned(), what, value, limit }),
    };
    limit("number of tensors".into(), rows.len().saturating_add(aliases.len()) as u64, limits.tensors as u64)?;
    let shaped = |name: &str, storage: Storage, shape: &[u64]| -> Result<u64, FormatError> {
        let short: String = name.chars().take(80).collect();
        limit(format!("length of the name of tensor `{short}`"), name.len() as u64, limits.name_bytes as u64)?;
        limit(format!("rank of tensor `{short}`"), shape.len() as u64, limits.rank as u64)?;
        for d in shape {
            limit(format!("an extent of tensor `{short}`"), *d, limits.dim)?;
        }
        let elems = shape.iter().try_fold(1u64, |a, d| a.checked_mul(*d));
        elems.and_then(|e| storage.size_bytes(e)).ok_or_else(|| {
            FormatError::malformed(path, format!("tensor `{short}`"), format!("{shape:?} is no shape of {storage}"))
        })
    };
    let rows: BTreeMap<String, TensorRow> = rows.into_iter().collect();
    let mut tensors = BTreeMap::new();
    let mut extents = Vec::with_capacity(header.tensors.len());
    let mut at = 0u64;
    for (name, e) in &header.tensors {
        let fault = |reason: String| FormatError::malformed(path, format!("tensor `{name}`"), reason);
        let row = rows.get(name).ok_or_else(|| fault("is not described".into()))?;
        let size_bytes = shaped(name, row.storage, &row.shape)?;
        let (dtype, keeps) = container_type(row.storage);
        let as_stored = if keeps { row.shape.clone() } else { vec![size_bytes] };
        if e.dtype != dtype || e.shape != as_stored {
            let found = format!("{:?} of {}", e.shape, e.dtype);
            return Err(fault(format!("{found} is not {:?} of {}", row.shape, row.storage)));
        }
        if e.data_offsets.0 != at || e.data_offsets.1.checked_sub(at) != Some(size_bytes) {
            return Err(fault(format!("offsets {:?}, {at} and {size_bytes} bytes expected", e.data_offsets)));
        }
        let hash = blake3::Hash::from_hex(&row.blake3).map_err(|_| fault("has no hash".into()))?;
        let offset = data_start.checked_add(at).ok_or_else(|| fault("lies too far".into()))?;
        let stored = StoredTensor {
            storage: row.storage,
            shape: row.shape.clone(),
            size_bytes,
            alias_of: None,
            extent: extents.len(),
        };
        tensors.insert(name.clone(), stored);
        extents.push(Extent { offset, len: size_bytes, hash, checked: AtomicBool::new(false) });
        at = e.data_offsets.1;
    }
    if let Some(name) = rows.keys().find(|n| !tensors.contains_key(*n)) {
        return Err(FormatError::malformed(path, format!("tensor `{name}`"), "is not in the file"));
    }
    let expected = data_start.saturating_add(at);
    if expected != file_len {
        return Err(FormatError::Truncated { path: path.to_owned(), expected, found: file_len });
    }
    for (name, a) in aliases {
        let fault = |reason: &str| FormatError::malformed(path, format!("tensor `{name}`"), reason);
        let target =
            rows.get(&a.tensor).and(tensors.get(&a.tensor)).ok_or_else(|| fault("is an alias of no tensor"))?;
        let (storage, extent, size) = (target.storage, target.extent, target.size_bytes);
        if shaped(&name, storage, &a.shape)? != size {
            return Err(fault("is an alias of a tensor of another size"));
        }
        let stored = StoredTensor { storage, shape: a.shape, size_bytes: size, alias_of: Some(a.tensor), extent };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(fault("is both a tensor and an alias"));
        }
    }
    Ok((tensors, extents))
}

/// A regular file that is read at positions. Nothing is mapped, so a file that shrinks is an error and no signal.
#[derive(Debug)]
struct Positioned {
    path: PathBuf,
    len: u64,
    file: File,
    #[cfg(not(unix))]
    seek: std::sync::Mutex<()>,
}

impl Positioned {
    fn open(path: &Path) -> Result<Positioned, FormatError> {
        let kind = std::fs::metadata(path).map_err(FormatError::io(path))?;
        if !kind.is_file() {
            return Err(FormatError::NotArtifact { path: path.to_owned(), reason: "it is not a regular file".into() });
        }
        let file = File::open(path).map_err(FormatError::io(path))?;
        let len = file.metadata().map_err(FormatError::io(path))?.len();
        Ok(Positioned {
            path: path.to_owned(),
            len,
            file,
            #[cfg(not(unix))]
            seek: std::sync::Mutex::new(()),
        })
    }

    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, FormatError> {
        let end = offset.checked_add(len).filter(|e| *e <= self.len);
        let (Some(_), Ok(len)) = (end, usize::try_from(len)) else {
            return Err(FormatError::Truncated {
                path: self.path.clone(),
                expected: offset.saturating_add(len),
                found: self.len,
            });
        };
        let mut out = vec![0; len];
        self.read_exact_at(offset, &mut out).map_err(FormatError::io(&self.path))?;
        Ok(out)
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
