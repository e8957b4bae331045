//! Safetensors files, read lazily: the headers at once, under limits, the tensors' bytes when asked for.
//!
//! A directory holds either `model.safetensors` or `model.safetensors.index.json` with the shards it names. A file is
//! accepted only if its tensors cover the data exactly: ascending offsets, no overlap, no gap, no rest, and a size that
//! agrees with type and shape. What the tensors mean is not this module's business.
//!
//! A tensor that several names share is stored once. The other names are in the file's metadata: as a JSON object under
//! `frit.aliases`, or one by one, `name: stored name`, as other writers of shared tensors put them there.

use crate::ingest::error::{Error, Result};
use crate::ingest::file::{ModelDir, SourceFile};
use crate::ingest::limits::Limits;
use crate::transform::extension::ALIASES;
use indexmap::IndexMap;
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::path::Path;

/// The file name of unsharded weights.
pub const SINGLE: &str = "model.safetensors";
/// The file name of the index of sharded weights.
pub const INDEX: &str = "model.safetensors.index.json";

/// Where a tensor lies, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Which of the files holds it.
    pub file: usize,
    /// Its first byte, counted from the start of the file.
    pub offset: u64,
    /// Its size in bytes.
    pub len: u64,
}

/// The tensors of one or more safetensors files.
#[derive(Debug)]
pub struct Weights {
    files: Vec<SourceFile>,
    tensors: IndexMap<String, TensorInfo>,
    aliases: IndexMap<String, String>,
}

impl Weights {
    /// Opens the weights of a model's directory.
    pub fn open_dir(dir: &ModelDir, limits: &Limits) -> Result<Weights> {
        if dir.has(SINGLE) {
            return Weights::read(vec![dir.file(SINGLE, SINGLE)?], limits);
        }
        if let Some(index) = dir.text(INDEX, limits.text_bytes)? {
            return Weights::open_shards(dir, &index, limits);
        }
        let others = dir.names_ending(&[".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"]);
        let problem = match others.as_slice() {
            [] => format!("the directory holds neither {SINGLE} nor {INDEX}; download the model's safetensors files"),
            [first, ..] => format!("{first} is not read, since such files can run code; save the model as {SINGLE}"),
        };
        Err(Error::Missing { path: dir.path().to_owned(), problem })
    }

    /// Opens one file.
    pub fn open_file(path: &Path, limits: &Limits) -> Result<Weights> {
        Weights::read(vec![SourceFile::open(path)?], limits)
    }

    fn open_shards(dir: &ModelDir, index: &str, limits: &Limits) -> Result<Weights> {
        let blame = |place: &str, problem: String| Error::Malformed {
            path: dir.path().join(INDEX),
            place: place.to_owned(),
            problem,
        };
        let index: serde_json::Value =
            serde_json::from_str(index).map_err(|e| blame("text", format!("is not JSON: {e}")))?;
        let map = index.get("weight_map").and_then(serde_json::Value::as_object);
        let map = map.ok_or_else(|| blame("weight_map", "is missing or not an object".into()))?;
        let mut shards: IndexMap<&str, usize> = IndexMap::new();
        let mut placed = Vec::with_capacity(map.len());
        for (tensor, shard) in map {
            let shard = shard.as_str().ok_or_else(|| blame("weight_map", format!("`{tensor}` names no file")))?;
            let next = shards.len();
            placed.push((tensor, *shards.entry(shard).or_insert(next)));
        }
        if shards.len() as u64 > limits.shards {
            let (value, limit) = (shards.len() as u64, limits.shards);
            return Err(Error::Limit { path: dir.path().join(INDEX), what: "number of files".into(), value, limit });
        }
        let files = shards.keys().map(|shard| dir.file(shard, INDEX)).collect::<Result<Vec<_>>>()?;
        let weights = Weights::read(files, limits)?;
        let strays: Vec<&str> = placed
            .iter()
            .filter(|(tensor, shard)| weights.get(tensor).is_none_or(|info| info.file != *shard))
            .map(|(tensor, _)| tensor.as_str())
            .collect();
        match strays.as_slice() {
            [] => Ok(weights),
            some => Err(blame("weight_map", format!("the named files do not hold {}", some.join(", ")))),
        }
    }

    fn read(files: Vec<SourceFile>, limits: &Limits) -> Result<Weights> {
        let mut tensors = IndexMap::new();
        let mut named = Vec::new();
        for (i, file) in files.iter().enumerate() {
            let (infos, metadata) = read_header(file, i, limits)?;
            named.push(metadata);
            for info in infos {
                if tensors.len() as u64 >= limits.tensors {
                    let (value, limit) = (tensors.len() as u64 + 1, limits.tensors);
                    return Err(Error::Limit {
                        path: file.path().to_owned(),
                        what: "number of tensors".into(),
                        value,
                        limit,
                    });
                }
                if tensors.contains_key(&info.name) {
                    return Err(
                        file.malformed(format!("tensor `{}`", info.name), "is in two files; delete one of them")
                    );
                }
                tensors.insert(info.name.clone(), info);
            }
        }
        let mut aliases = IndexMap::new();
        for (file, metadata) in files.iter().zip(named) {
            for (name, of) in read_aliases(file, metadata, &tensors, limits)? {
                aliases.insert(name, of);
            }
        }
        Ok(Weights { files, tensors, aliases })
    }

    /// Names that share the tensor of another name: the name, and that of the stored tensor.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(name, of)| (name.as_str(), of.as_str()))
    }

    /// The files, in the order of [`TensorInfo::file`].
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }
    /// Takes the files, in the order of [`TensorInfo::file`].
    pub fn into_files(self) -> Vec<SourceFile> {
        self.files
    }
    /// The tensors in the order of files and offsets.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }
    /// The bytes of the tensor of that name; `None` when there is none.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        self.files.get(info.file).map(|file| file.read(info.offset, info.len)).transpose()
    }
}

/// The names in a file's metadata that share a tensor.
fn read_aliases(
    file: &SourceFile,
    metadata: IndexMap<String, String>,
    tensors: &IndexMap<String, TensorInfo>,
    limits: &Limits,
) -> Result<IndexMap<String, String>> {
    let mut aliases: IndexMap<String, String> =
        metadata.iter().filter(|(k, v)| !tensors.contains_key(*k) && tensors.contains_key(*v)).map(own).collect();
    if let Some(text) = metadata.get(ALIASES) {
        let listed: IndexMap<String, String> = serde_json::from_str(text)
            .map_err(|e| file.malformed(ALIASES, format!("is no JSON object of tensor names: {e}")))?;
        for (name, of) in &listed {
            let problem = match (tensors.contains_key(name), tensors.contains_key(of)) {
                (true, _) => "is stored, and is said to be the name of another tensor too".to_owned(),
                (_, false) => format!("is said to be `{of}`, which is not stored"),
                _ if name.len() as u64 > limits.name_bytes => format!("has more than {} bytes", limits.name_bytes),
                _ => continue,
            };
            return Err(file.malformed(format!("{ALIASES}, tensor `{name}`"), problem));
        }
        aliases.extend(listed);
    }
    let (value, limit) = ((tensors.len() + aliases.len()) as u64, limits.tensors);
    if value > limit {
        return Err(Error::Limit { path: file.path().to_owned(), what: "number of tensors".into(), value, limit });
    }
    Ok(aliases)
}

fn own((a, b): (&String, &String)) -> (String, String) {
    (a.clone(), b.clone())
}

/// Reads and checks one header; the tensors come in the order of their offsets, then the metadata.
fn read_header(
    file: &SourceFile,
    index: usize,
    limits: &Limits,
) -> Result<(Vec<TensorInfo>, IndexMap<String, String>)> {
    const PREFIX: u64 = 8;
    let mut length = [0; PREFIX as usize];
    if file.len() < PREFIX {
        return Err(file.malformed("header", format!("the file has {} bytes and no header", file.len())));
    }
    file.read_into(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let data = length.checked_add(PREFIX).filter(|end| *end <= file.len()).ok_or_else(|| {
        file.malformed("header", format!("its length is {length} bytes, but the file has only {}", file.len()))
    })?;
    if length > limits.safetensors_header_bytes {
        let limit = limits.safetensors_header_bytes;
        return Err(Error::Limit {
            path: file.path().to_owned(),
            what: "header in bytes".into(),
            value: length,
            limit,
        });
    }
    let text = file.read(PREFIX, length)?;
    let text = std::str::from_utf8(&text).map_err(|_| file.malformed("header", "is not UTF-8"))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let header = serde::de::DeserializeSeed::deserialize(HeaderSeed(limits), &mut reader)
        .and_then(|header| reader.end().map(|()| header))
        .map_err(|e| file.malformed("header", e.to_string()))?;
    let Header { entries, metadata } = header;
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.offsets);

    let mut end = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let blame = |problem: String| file.malformed(format!("tensor `{name}`"), problem);
        let (from, to) = entry.offsets;
        let len = to.checked_sub(from).ok_or_else(|| blame(format!("ends at {to}, before it begins at {from}")))?;
        if from != end {
            let problem =
                if from < end { "overlaps the tensor before it" } else { "leaves a gap after the tensor before it" };
            return Err(blame(format!("begins at {from} and {problem}, which ends at {end}")));
        }
        end = to;
        let dtype = Dtype::deserialize(IntoDeserializer::<serde_json::Error>::into_deserializer(entry.dtype.as_str()))
            .map_err(|_| blame(format!("has the unknown type {:?}", entry.dtype)))?;
        if let Some(dim) = entry.shape.iter().find(|d| **d > limits.dim) {
            return Err(blame(format!("has a dimension of {dim}, above the limit of {}", limits.dim)));
        }
        let elems = entry.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bits = elems.and_then(|n| n.checked_mul(dtype.bitsize() as u64));
        if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != len) {
            return Err(blame(format!("has {len} bytes, which disagrees with shape {:?} of {dtype:?}", entry.shape)));
        }
        let offset = data.checked_add(from).filter(|o| o.checked_add(len).is_some_and(|end| end <= file.len()));
        let offset = offset.ok_or_else(|| blame(format!("ends at {to}, beyond the end of the file")))?;
        tensors.push(TensorInfo { name, dtype, shape: entry.shape, file: index, offset, len });
    }
    match data.checked_add(end) {
        Some(end) if end == file.len() => Ok((tensors, metadata)),
        _ => Err(file.malformed("data", format!("the tensors end at {end}, the data at {}", file.len() - data))),
    }
}

/// One entry of a header, before its parts are compared with each other.
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    offsets: (u64, u64),
}

/// Entries by name, and the texts of the metadata.
struct Header {
    entries: IndexMap<String, Entry>,
    metadata: IndexMap<String, String>,
}

/// Reads a whole header, refusing names that come twice and counts above the limits while it reads.
struct HeaderSeed<'a>(&'a Limits);

impl<'de> serde::de::DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let limits = self.0;
        let (mut entries, mut metadata) = (IndexMap::new(), IndexMap::new());
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if let serde_json::Value::Object(texts) = map.next_value()? {
                    metadata = texts.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect();
                }
                continue;
            }
            if name.len() as u64 > limits.name_bytes {
                return Err(A::Error::custom(format!("a name has more than {} bytes", limits.name_bytes)));
            }
            if entries.len() as u64 >= limits.tensors {
                return Err(A::Error::custom(format!("there are more than {} tensors", limits.tensors)));
            }
            let entry = map.next_value_seed(EntrySeed(limits));
            let entry = entry.map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor `{name}` is there twice")));
            }
            entries.insert(name, entry);
        }
        Ok(Header { entries, metadata })
    }
}

struct EntrySeed<'a>(&'a Limits);

impl<'de> serde::de::DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let again = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(DimsSeed(self.0.rank))?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<(u64, u64)>()?).is_some(),
                _ => map.next_value::<IgnoredAny>().map(|_| false)?,
            };
            if again {
                return Err(A::Error::custom(format!("`{key}` is there twice")));
            }
        }
        Ok(Entry {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}

/// Reads at most so many dimensions.
struct DimsSeed(u64);

impl<'de> serde::de::DeserializeSeed<'de> for DimsSeed {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for DimsSeed {
    type Value = Vec<u64>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if dims.len() as u64 >= self.0 {
                return Err(A::Error::custom(format!("has more than {} dimensions", self.0)));
            }
            dims.push(dim);
        }
        Ok(dims)
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
