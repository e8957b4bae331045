//! Reads a GGUF file's header: magic, version, metadata, tensor table. Little endian, versions 2 and 3.
//!
//! Every length is compared with the bytes that are left before memory is taken for it.

use super::metadata::{Array, Metadata, Value};
use super::tensors::{self, TensorEntry, TensorInfo};
use crate::ingest::error::{Error, Result};
use crate::ingest::file::SourceFile;
use crate::ingest::limits::Limits;
use indexmap::IndexMap;
use std::path::Path;

/// The first four bytes of a GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Nesting of metadata arrays that is read.
const ARRAY_DEPTH: u32 = 4;

/// A GGUF file: metadata and tensor table in memory, the tensors' bytes on demand.
#[derive(Debug)]
pub struct GgufFile {
    file: SourceFile,
    metadata: Metadata,
    tensors: IndexMap<String, TensorInfo>,
}

impl GgufFile {
    /// Opens a file and checks its metadata and its tensor table.
    pub fn open(path: &Path, limits: &Limits) -> Result<GgufFile> {
        let file = SourceFile::open(path)?;
        let mut reader = Reader {
            file: &file,
            limits,
            at: 0,
            end: file.len().min(limits.gguf_header_bytes),
            window: Vec::new(),
            start: 0,
        };
        let (metadata, entries) = reader.header()?;
        let table = reader.at;
        let tensors = tensors::place(&file, &metadata, entries, table, limits)?;
        Ok(GgufFile { file, metadata, tensors })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    /// The tensors in the order of the table.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }
    /// The bytes of the tensor of that name; `None` when there is none.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.tensors.get(name).map(|info| self.file.read(info.offset, info.len)).transpose()
    }
    /// The file.
    pub fn file(&self) -> &SourceFile {
        &self.file
    }
    /// Takes the file.
    pub fn into_file(self) -> SourceFile {
        self.file
    }
}

/// A cursor over the header with a small window of the file in memory.
struct Reader<'a> {
    file: &'a SourceFile,
    limits: &'a Limits,
    at: u64,
    end: u64,
    window: Vec<u8>,
    start: u64,
}

impl Reader<'_> {
    const WINDOW: u64 = 1 << 16;

    fn header(&mut self) -> Result<(Metadata, Vec<TensorEntry>)> {
        let magic: [u8; 4] = self.fixed("magic")?;
        if magic != MAGIC {
            return Err(self.file.malformed("magic", format!("is {magic:02x?} and not `GGUF`")));
        }
        let version = self.u32("version")?;
        match version {
            2 | 3 => {}
            1 => return Err(self.unread_version("1 is older than what is read (2 and 3); convert the model again")),
            _ if matches!(version.swap_bytes(), 1..=3) => {
                return Err(
                    self.unread_version("is big-endian, which is not read; convert the model again as little endian")
                );
            }
            _ => return Err(self.unread_version(&format!("{version} is not known; versions 2 and 3 are read"))),
        }
        let tensors = self.u64("tensor count")?;
        let pairs = self.u64("metadata count")?;
        self.limit("number of tensors", tensors, self.limits.tensors)?;
        self.limit("number of metadata pairs", pairs, self.limits.metadata_pairs)?;

        let mut metadata = IndexMap::new();
        for i in 0..pairs {
            let key = self.name(&format!("key {i} of the metadata"))?;
            let kind = self.u32(&key)?;
            let value = self.value(&key, kind)?;
            if metadata.contains_key(&key) {
                return Err(self.file.malformed(format!("metadata `{key}`"), "is there twice"));
            }
            metadata.insert(key, value);
        }
        let entries = (0..tensors).map(|i| self.entry(i)).collect::<Result<Vec<_>>>()?;
        Ok((Metadata::new(self.file.name(), metadata), entries))
    }

    fn entry(&mut self, i: u64) -> Result<TensorEntry> {
        let name = self.name(&format!("name of tensor {i}"))?;
        let place = format!("tensor `{name}`");
        let rank = self.u32(&place)?;
        if rank == 0 || u64::from(rank) > self.limits.rank {
            return Err(self
                .file
                .malformed(place, format!("has {rank} dimensions; 1 to {} are read", self.limits.rank)));
        }
        let mut shape = (0..rank).map(|_| self.u64(&place)).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let (kind, offset) = (self.u32(&place)?, self.u64(&place)?);
        Ok(TensorEntry { name, shape, kind, offset })
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.fixed(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.fixed(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed(key)?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string(key)?),
            9 => Value::Array(self.array(key, ARRAY_DEPTH)?),
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.fixed(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(key)?)),
            _ => return Err(self.file.malformed(format!("metadata `{key}`"), format!("has the unknown type {kind}"))),
        })
    }

    fn array(&mut self, key: &str, depth: u32) -> Result<Array> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        if depth == 0 {
            return Err(self.file.malformed(format!("metadata `{key}`"), "nests arrays too deeply"));
        }
        Ok(match kind {
            0 => Array::U8(self.fixed_items(key, count, u8::from_le_bytes)?),
            1 => Array::I8(self.fixed_items(key, count, i8::from_le_bytes)?),
            2 => Array::U16(self.fixed_items(key, count, u16::from_le_bytes)?),
            3 => Array::I16(self.fixed_items(key, count, i16::from_le_bytes)?),
            4 => Array::U32(self.fixed_items(key, count, u32::from_le_bytes)?),
            5 => Array::I32(self.fixed_items(key, count, i32::from_le_bytes)?),
            6 => Array::F32(self.fixed_items(key, count, f32::from_le_bytes)?),
            7 => Array::Bool(self.items(key, count, 1, |r| r.bool(key))?),
            8 => Array::String(self.items(key, count, 8, |r| r.string(key))?),
            9 => Array::Nested(self.items(key, count, 12, |r| r.array(key, depth - 1))?),
            10 => Array::U64(self.fixed_items(key, count, u64::from_le_bytes)?),
            11 => Array::I64(self.fixed_items(key, count, i64::from_le_bytes)?),
            12 => Array::F64(self.fixed_items(key, count, f64::from_le_bytes)?),
            _ => {
                return Err(self
                    .file
                    .malformed(format!("metadata `{key}`"), format!("has the unknown item type {kind}")));
            }
        })
    }

    fn fixed_items<T, const N: usize>(&mut self, key: &str, count: u64, make: fn([u8; N]) -> T) -> Result<Vec<T>> {
        self.items(key, count, N as u64, |r| r.fixed(key).map(make))
    }

    /// `count` items of at least `least` bytes each.
    fn items<T>(
        &mut self,
        key: &str,
        count: u64,
        least: u64,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let fits = count.checked_mul(least).is_some_and(|bytes| bytes <= self.left());
        let capacity = usize::try_from(count).ok().filter(|_| fits);
        let Some(capacity) = capacity else {
            return Err(self.short(key, format!("{count} items")));
        };
        let mut items = Vec::with_capacity(capacity);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        match self.fixed(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.file.malformed(format!("metadata `{key}`"), format!("{other} is no truth value"))),
        }
    }
    fn u32(&mut self, place: &str) -> Result<u32> {
        self.fixed(place).map(u32::from_le_bytes)
    }
    fn u64(&mut self, place: &str) -> Result<u64> {
        self.fixed(place).map(u64::from_le_bytes)
    }
    fn name(&mut self, place: &str) -> Result<String> {
        let len = self.u64(place)?;
        self.limit(&format!("length of {place}"), len, self.limits.name_bytes)?;
        self.text(place, len)
    }
    fn string(&mut self, place: &str) -> Result<String> {
        let len = self.u64(place)?;
        self.text(place, len)
    }
    fn text(&mut self, place: &str, len: u64) -> Result<String> {
        if len > self.left() {
            return Err(self.short(place, format!("a text of {len} bytes")));
        }
        let bytes = if len <= Self::WINDOW {
            let slice = self.window(len)?;
            slice.to_vec()
        } else {
            self.file.read(self.at, len)?
        };
        self.at += len;
        String::from_utf8(bytes).map_err(|_| self.file.malformed(place, "is not UTF-8"))
    }
    fn fixed<const N: usize>(&mut self, place: &str) -> Result<[u8; N]> {
        if N as u64 > self.left() {
            return Err(self.short(place, format!("{N} bytes")));
        }
        let mut out = [0; N];
        out.copy_from_slice(self.window(N as u64)?);
        self.at += N as u64;
        Ok(out)
    }

    /// The next `len` bytes, which are at most [`Self::WINDOW`] and known to be there.
    fn window(&mut self, len: u64) -> Result<&[u8]> {
        let held = self.at >= self.start && self.at + len <= self.start + self.window.len() as u64;
        if !held {
            self.window = self.file.read(self.at, Self::WINDOW.min(self.file.len() - self.at))?;
            self.start = self.at;
        }
        let from = (self.at - self.start) as usize;
        let slice = self.window.get(from..from + len as usize);
        slice.ok_or_else(|| self.file.malformed("header", "the file shrank while it was read"))
    }

    fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }
    fn short(&self, place: &str, what: String) -> Error {
        if self.end < self.file.len() {
            let (limit, path) = (self.limits.gguf_header_bytes, self.file.path().to_owned());
            return Error::Limit {
                path,
                what: "size of metadata and tensor table".into(),
                value: self.file.len(),
                limit,
            };
        }
        self.file
            .malformed(place, format!("{what} at {} reach beyond the end of the file ({} bytes)", self.at, self.end))
    }
    fn limit(&self, what: &str, value: u64, limit: u64) -> Result<()> {
        if value <= limit {
            return Ok(());
        }
        Err(Error::Limit { path: self.file.path().to_owned(), what: what.into(), value, limit })
    }
    fn unread_version(&self, problem: &str) -> Error {
        Error::Format { path: self.file.path().to_owned(), problem: format!("GGUF version {problem}") }
    }
}
