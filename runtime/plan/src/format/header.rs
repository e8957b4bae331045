//! The JSON header of a container and the tables inside its metadata. Names that occur twice are refused: readers
//! would disagree on which one counts.

use frit_kernels::dtype::Storage;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// An entry of the container's own table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Element type as safetensors names it.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<u64>,
    /// First byte and one past the last, counted from the end of the header.
    pub data_offsets: (u64, u64),
}

/// A row of `frit.tensors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRow {
    /// How elements are stored.
    pub storage: Storage,
    /// True extents.
    pub shape: Vec<u64>,
    /// Hash of the bytes.
    pub blake3: String,
}

/// A row of `frit.aliases`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliasRow {
    /// The tensor of the container.
    pub tensor: String,
    /// True extents.
    pub shape: Vec<u64>,
}

/// A JSON object whose keys are in order and unique.
pub struct Unique<T>(pub Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Unique<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut out: Vec<(String, T)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((k, v)) = map.next_entry::<String, T>()? {
                    if !seen.insert(k.clone()) {
                        return Err(A::Error::custom(format!("`{k}` occurs twice")));
                    }
                    out.push((k, v));
                }
                Ok(Unique(out))
            }
        }
        d.deserialize_map(V(PhantomData))
    }
}

/// The header: metadata and tensors.
pub struct Header {
    /// Texts by key.
    pub metadata: BTreeMap<String, String>,
    /// Tensors in the order of the file.
    pub tensors: Vec<(String, Entry)>,
}

const METADATA: &str = "__metadata__";

enum Item {
    Texts(Unique<String>),
    Tensor(Entry),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a safetensors header")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut h = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut seen = std::collections::HashSet::new();
                while let Some(k) = map.next_key::<String>()? {
                    if !seen.insert(k.clone()) {
                        return Err(A::Error::custom(format!("`{k}` occurs twice")));
                    }
                    let item = match k == METADATA {
                        true => Item::Texts(map.next_value()?),
                        false => Item::Tensor(map.next_value()?),
                    };
                    match item {
                        Item::Texts(t) => h.metadata.extend(t.0),
                        Item::Tensor(t) => h.tensors.push((k, t)),
                    }
                }
                Ok(h)
            }
        }
        d.deserialize_map(V)
    }
}

impl Header {
    /// The header's text, padded so that the data start on a multiple of eight.
    pub fn to_bytes(&self, metadata_order: &[&str]) -> Result<Vec<u8>, serde_json::Error> {
        let mut texts = serde_json::Map::new();
        for k in metadata_order {
            if let Some(v) = self.metadata.get(*k) {
                texts.insert((*k).into(), v.as_str().into());
            }
        }
        let mut all = serde_json::Map::new();
        all.insert(METADATA.into(), texts.into());
        for (name, e) in &self.tensors {
            all.insert(name.clone(), serde_json::to_value(e)?);
        }
        let mut out = serde_json::to_vec(&all)?;
        out.resize(out.len().next_multiple_of(8), b' ');
        Ok(out)
    }
}

/// How safetensors names a storage type, and whether the tensor keeps its shape there.
pub const fn container_type(s: Storage) -> (&'static str, bool) {
    match s {
        Storage::F32 => ("F32", true),
        Storage::F16 => ("F16", true),
        Storage::Bf16 => ("BF16", true),
        Storage::I32 | Storage::Bool => ("I32", true),
        _ => ("U8", false),
    }
}
