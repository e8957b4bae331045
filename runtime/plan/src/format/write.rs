//! Writing. Tensors are read twice, one at a time: once for the hashes, which the header holds, and once for the bytes.

use super::header::{AliasRow, Entry, Header, TensorRow, container_type};
use super::{FormatError, KEY_ALIASES, KEY_HASH, KEY_PLAN, KEY_TENSORS, KEY_TOKENIZER, KEY_VERSION, VERSION};
use crate::limits::Limits;
use crate::{Plan, StoredShape, TensorData, TensorSource};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of tensor data.
    pub tensor_bytes: u64,
    /// Tensors in the container.
    pub tensors: usize,
    /// Names that share the bytes of another tensor.
    pub aliases: usize,
}

struct Stored {
    name: String,
    row: TensorRow,
    bytes: u64,
}

/// Writes `plan` and the tensors it needs to `path`, through a temporary file beside it. `progress` is told how many of
/// how many steps are done.
///
/// # Errors
/// A plan that breaks its rules, a tensor that cannot be read, a full disk. Nothing is left behind.
pub fn write(
    path: &Path,
    plan: &Plan,
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written, FormatError> {
    let refused = |e| FormatError::Plan { path: path.to_owned(), source: e };
    plan.validate().map_err(refused)?;
    let names = plan.tensor_names();
    let steps = 2 * names.len() as u64;
    let mut stored: Vec<Stored> = Vec::new();
    let mut aliases: BTreeMap<String, AliasRow> = BTreeMap::new();
    let mut shapes: HashMap<String, StoredShape> = HashMap::new();
    let mut known: HashMap<(String, &'static str), String> = HashMap::new();
    for (i, name) in names.iter().enumerate() {
        let (data, hash) = load(source, name)?;
        shapes.insert((*name).into(), StoredShape { storage: data.storage, shape: data.shape.clone() });
        match known.get(&(hash.clone(), data.storage.name())) {
            Some(first) => {
                aliases.insert((*name).into(), AliasRow { tensor: first.clone(), shape: data.shape });
            }
            None => {
                known.insert((hash.clone(), data.storage.name()), (*name).into());
                let row = TensorRow { storage: data.storage, shape: data.shape, blake3: hash };
                stored.push(Stored { name: (*name).into(), row, bytes: data.bytes.len() as u64 });
            }
        }
        progress(i as u64 + 1, steps);
    }
    plan.validate_tensors(&|n| shapes.get(n).cloned()).map_err(refused)?;
    stored.sort_by_key(|s| std::cmp::Reverse(alignment(&s.row)));

    let (header, tensor_bytes) = header(path, plan, &stored, &aliases)?;
    let limit = Limits::default().header_bytes;
    if header.len() as u64 > limit {
        return Err(FormatError::Limit {
            path: path.to_owned(),
            what: "header (plan and tokenizer) in bytes".into(),
            value: header.len() as u64,
            limit,
        });
    }
    replace_file(path, |w| {
        let io = || FormatError::io(path);
        w.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
        w.write_all(&header).map_err(io())?;
        for (i, s) in stored.iter().enumerate() {
            let (data, hash) = load(source, &s.name)?;
            if hash != s.row.blake3 {
                return Err(FormatError::Source {
                    tensor: s.name.clone(),
                    cause: "changed while it was written".into(),
                });
            }
            w.write_all(&data.bytes).map_err(io())?;
            progress((names.len() + i) as u64 + 1, steps);
        }
        Ok(())
    })?;
    progress(steps, steps);
    let file_bytes = 8 + header.len() as u64 + tensor_bytes;
    Ok(Written { file_bytes, tensor_bytes, tensors: stored.len(), aliases: aliases.len() })
}

fn load(source: &dyn TensorSource, name: &str) -> Result<(TensorData, String), FormatError> {
    let fault = |cause: String| FormatError::Source { tensor: name.into(), cause };
    if name == "__metadata__" {
        return Err(fault("this name is reserved".into()));
    }
    let data = source.read(name).map_err(|e| fault(e.to_string()))?;
    let elems = data.shape.iter().try_fold(1u64, |a, d| a.checked_mul(*d));
    let want = elems.and_then(|e| data.storage.size_bytes(e));
    if want != Some(data.bytes.len() as u64) {
        let found = data.bytes.len();
        return Err(fault(format!("{found} bytes do not make {:?} of {}", data.shape, data.storage)));
    }
    let hash = blake3::hash(&data.bytes).to_hex().to_string();
    Ok((data, hash))
}

fn alignment(row: &TensorRow) -> u64 {
    if row.storage.is_quantised() { 1 } else { row.storage.block_bytes() }
}

fn header(
    path: &Path,
    plan: &Plan,
    stored: &[Stored],
    aliases: &BTreeMap<String, AliasRow>,
) -> Result<(Vec<u8>, u64), FormatError> {
    let text = |part: &str, e: serde_json::Error| FormatError::malformed(path, part, e.to_string());
    let mut bare = plan.clone();
    let tokenizer = bare.model.tokenizer.take();
    let json = serde_json::to_string(&bare).map_err(|e| text("plan", e))?;
    if serde_json::from_str::<Plan>(&json).map_err(|e| text("plan", e))? != bare {
        return Err(FormatError::malformed(path, "plan", "does not survive being written; is a number not finite?"));
    }
    let rows: BTreeMap<&str, &TensorRow> = stored.iter().map(|s| (s.name.as_str(), &s.row)).collect();
    let parts = [
        ("plan", KEY_PLAN, Some(json)),
        ("tokenizer", KEY_TOKENIZER, tokenizer),
        ("tensors", KEY_TENSORS, Some(to_json(&rows).map_err(|e| text("tensors", e))?)),
        ("aliases", KEY_ALIASES, Some(to_json(aliases).map_err(|e| text("aliases", e))?)),
    ];
    let mut metadata = BTreeMap::from([(KEY_VERSION.to_owned(), VERSION.to_string())]);
    for (part, key, value) in parts {
        if let Some(v) = value {
            metadata.insert(format!("{KEY_HASH}{part}"), blake3::hash(v.as_bytes()).to_hex().to_string());
            metadata.insert(key.to_owned(), v);
        }
    }
    let mut at = 0u64;
    let mut tensors = Vec::with_capacity(stored.len());
    for s in stored {
        let (dtype, shaped) = container_type(s.row.storage);
        let shape = if shaped { s.row.shape.clone() } else { vec![s.bytes] };
        let end = at.checked_add(s.bytes).ok_or_else(|| FormatError::malformed(path, "tensors", "too many bytes"))?;
        tensors.push((s.name.clone(), Entry { dtype: dtype.into(), shape, data_offsets: (at, end) }));
        at = end;
    }
    let hashes = ["plan", "tokenizer", "tensors", "aliases"].map(|p| format!("{KEY_HASH}{p}"));
    let mut order = vec![KEY_VERSION];
    order.extend(hashes.iter().map(String::as_str));
    order.extend([KEY_TENSORS, KEY_ALIASES, KEY_PLAN, KEY_TOKENIZER]);
    let bytes = Header { metadata, tensors }.to_bytes(&order).map_err(|e| text("header", e))?;
    Ok((bytes, at))
}

fn to_json<T: Serialize>(v: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string(v)
}

/// Writes a file as a whole or not at all: `fill` writes a temporary file in the same directory, which then takes the
/// place of `path`.
///
/// # Errors
/// What `fill` returns, and failures of the file system.
pub fn replace_file<E: From<FormatError>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let io = || FormatError::io(path);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".frit-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    // The message of a failed creation names the temporary file, which nobody asked for.
    let temp = builder.tempfile_in(dir).map_err(|e| {
        let source = match (e.kind(), dir.is_dir()) {
            (kind, true) => std::io::Error::new(kind, format!("the folder {} takes no file: {kind}", dir.display())),
            (kind, false) => std::io::Error::new(kind, format!("there is no folder {}", dir.display())),
        };
        FormatError::Io { path: path.to_owned(), source }
    })?;
    {
        let mut w = BufWriter::with_capacity(1 << 20, temp.as_file());
        fill(&mut w)?;
        w.flush().map_err(io())?;
    }
    temp.as_file().sync_all().map_err(io())?;
    temp.persist(path).map_err(|e| FormatError::Io { path: path.to_owned(), source: e.error })?;
    #[cfg(unix)]
    if let Ok(d) = File::open(dir) {
        // Not every file system can sync a directory; the file itself is safe.
        let _ = d.sync_all();
    }
    Ok(())
}
