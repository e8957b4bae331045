//! A checkpoint: a configuration, and a stock of tensors in which several names may stand for one buffer.

use super::dense::{Dense, Elements};
use super::error::{Error, Result};
use super::extension::{Extension, KEY};
use super::family::{Family, NormRole, Side, Stack};
use super::gguf::{self, Origin};
use crate::ingest::hf::weights::Weights;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Index of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(u32);

/// Elements, each stored once whatever its names are.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    /// The element type as safetensors files name it.
    pub kind: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    pub data: BufferData,
}

#[derive(Clone, Debug)]
pub(super) enum BufferData {
    /// Read from the files when asked for.
    Stored { weights: Arc<Weights>, tensor: String },
    /// Read from a GGUF file when asked for, as a directory has the tensor of that name.
    Gguf { origin: Arc<Origin>, tensor: String, name: String },
    /// Made by a transform.
    Bytes(Arc<Vec<u8>>),
}

/// A file that goes along unchanged.
#[derive(Clone, Debug)]
pub(super) enum Companion {
    At(PathBuf),
    Text(String),
}

/// Bytes of a checkpoint's tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Bytes {
    /// Buffers, aliases counted once.
    pub unique: u64,
    /// Names, aliases counted each time.
    pub logical: u64,
}

/// A model's configuration and tensors, to be edited. Clones share their buffers.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// `config.json`.
    pub config: Map<String, Value>,
    pub(super) family: &'static Family,
    pub(super) prefix: String,
    pub(super) names: IndexMap<String, BufferId>,
    pub(super) buffers: Vec<Buffer>,
    /// Files that go along unchanged, by their names.
    pub(super) files: Vec<(String, Companion)>,
    /// The GGUF file that it was opened from.
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) notes: Vec<String>,
}

impl Checkpoint {
    /// The family.
    pub fn family(&self) -> &'static Family {
        self.family
    }
    /// What was lost when it was opened, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }
    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }
    /// The buffer that a name stands for. Two names with one buffer are aliases.
    pub fn buffer(&self, name: &str) -> Option<BufferId> {
        self.names.get(name).copied()
    }
    /// The dimensions of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[u64]> {
        self.names.get(name).map(|id| self.buffers[id.0 as usize].shape.as_slice())
    }
    pub(super) fn stored(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }
    pub(super) fn len_of(&self, id: BufferId) -> u64 {
        let b = self.stored(id);
        match &b.data {
            BufferData::Bytes(bytes) => bytes.len() as u64,
            BufferData::Stored { weights, tensor } => weights.get(tensor).map_or(0, |info| info.len),
            BufferData::Gguf { origin, tensor, .. } => origin.len(tensor),
        }
    }
    /// Bytes, aliases counted once and each time.
    pub fn bytes(&self) -> Bytes {
        let unique: HashSet<BufferId> = self.names.values().copied().collect();
        Bytes {
            unique: unique.into_iter().map(|id| self.len_of(id)).sum(),
            logical: self.names.values().map(|id| self.len_of(*id)).sum(),
        }
    }
    /// The bytes of a tensor, as stored.
    ///
    /// # Errors
    /// A name that does not exist, or a file that cannot be read.
    pub fn raw(&self, name: &str) -> Result<Arc<Vec<u8>>> {
        let id = self.buffer(name).ok_or_else(|| missing(name))?;
        self.raw_of(id)
    }
    pub(super) fn raw_of(&self, id: BufferId) -> Result<Arc<Vec<u8>>> {
        match &self.stored(id).data {
            BufferData::Bytes(bytes) => Ok(Arc::clone(bytes)),
            BufferData::Stored { weights, tensor } => {
                Ok(Arc::new(weights.bytes(tensor)?.ok_or_else(|| missing(tensor))?))
            }
            BufferData::Gguf { origin, tensor, name } => Ok(Arc::new(origin.elements(tensor, name)?)),
        }
    }
    /// The elements of a tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::raw`], and a tensor that is not made of floats.
    pub fn values(&self, name: &str) -> Result<Dense> {
        let id = self.buffer(name).ok_or_else(|| missing(name))?;
        let shape = self.stored(id).shape.iter().map(|d| *d as usize).collect();
        Ok(Dense { shape, data: self.values_of(id).map_err(|e| e.of_tensor(name))? })
    }
    pub(super) fn values_of(&self, id: BufferId) -> Result<Vec<f64>> {
        let (kind, bytes) = (&self.stored(id).kind, self.raw_of(id)?);
        let values = Elements::of(kind).map(|e| e.decode(&bytes)).or_else(|| gguf::values(kind, &bytes));
        values.ok_or_else(|| Error::Refused {
            step: "tensor".into(),
            problems: vec![format!("is stored as {kind}, and only floats and blocks of them are edited")],
        })
    }
    /// Puts a tensor under a name, in a buffer of its own, rounded once to the type that the name had, else to that of
    /// the model.
    pub fn put(&mut self, name: &str, values: &Dense) {
        let kind = self.buffer(name).and_then(|id| Elements::of(&self.stored(id).kind));
        self.put_as(name, values, kind.unwrap_or_else(|| self.elements()));
    }
    fn put_as(&mut self, name: &str, values: &Dense, elements: Elements) {
        let data = BufferData::Bytes(Arc::new(elements.encode(&values.data)));
        let shape = values.shape.iter().map(|d| *d as u64).collect();
        self.insert(name, Buffer { kind: elements.name().into(), shape, data });
    }
    pub(super) fn insert(&mut self, name: &str, buffer: Buffer) {
        self.names.insert(name.into(), BufferId(self.buffers.len() as u32));
        self.buffers.push(buffer);
    }
    /// The element type of the embedding, which stands for the model's.
    pub fn elements(&self) -> Elements {
        let table =
            self.embedding().and_then(|name| self.buffer(&name)).or_else(|| self.names.values().next().copied());
        table.and_then(|id| Elements::of(&self.stored(id).kind)).unwrap_or(Elements::F32)
    }
    /// Lets `name` stand for the buffer of `of`.
    ///
    /// # Errors
    /// `of` does not exist.
    pub fn alias(&mut self, name: &str, of: &str) -> Result<()> {
        let id = self.buffer(of).ok_or_else(|| missing(of))?;
        self.names.insert(name.into(), id);
        Ok(())
    }
    /// Takes a name away.
    pub fn remove(&mut self, name: &str) -> bool {
        self.names.shift_remove(name).is_some()
    }
    /// Names that stand for the buffer of `name`, itself included.
    pub fn aliases(&self, name: &str) -> Vec<&str> {
        let id = self.buffer(name);
        self.names.iter().filter(|(_, b)| Some(**b) == id).map(|(n, _)| n.as_str()).collect()
    }
    /// Gives every name a buffer of its own. Returns how many names shared one before.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn untie(&mut self) -> Result<usize> {
        let mut seen = HashSet::new();
        let names: Vec<(String, BufferId)> = self.names.iter().map(|(n, id)| (n.clone(), *id)).collect();
        let mut untied = 0;
        for (name, id) in names.into_iter().filter(|(_, id)| !seen.insert(*id)) {
            let copy =
                Buffer { data: BufferData::Bytes(Arc::new(self.raw_of(id)?.to_vec())), ..self.stored(id).clone() };
            self.insert(&name, copy);
            untied += 1;
        }
        Ok(untied)
    }
    /// Lets names of tensors with equal type, shape and bytes stand for one buffer. Returns how many found another.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn dedupe(&mut self) -> Result<usize> {
        let mut known: HashMap<(String, Vec<u64>, blake3::Hash), BufferId> = HashMap::new();
        let mut becomes: HashMap<BufferId, BufferId> = HashMap::new();
        let ids: Vec<BufferId> = self.names.values().copied().collect();
        for id in ids {
            if becomes.contains_key(&id) {
                continue;
            }
            let b = self.stored(id);
            let key = (b.kind.clone(), b.shape.clone(), blake3::hash(&self.raw_of(id)?));
            becomes.insert(id, *known.entry(key).or_insert(id));
        }
        let mut found = 0;
        for id in self.names.values_mut() {
            if let Some(other) = becomes.get(id).filter(|other| *other != id) {
                *id = *other;
                found += 1;
            }
        }
        Ok(found)
    }

    /// The name of the embedding table.
    pub fn embedding(&self) -> Option<String> {
        let names = self.family.embeddings.iter().map(|e| format!("{}{e}", self.prefix));
        names.into_iter().find(|n| self.has(n))
    }
    /// A stack and its number of layers.
    ///
    /// # Errors
    /// A side that the family does not have, or a count that the configuration lacks.
    pub fn stack(&self, side: Side) -> Result<(&'static Stack, usize)> {
        let name = if side == Side::Encoder { "encoder" } else { "decoder" };
        let Some(stack) = self.family.stack(side) else {
            let problem = match side {
                Side::Only => "has an encoder and a decoder; say which with enc: or dec:".to_owned(),
                _ => format!("has no {name} of its own"),
            };
            return super::error::refuse(self.family.name, problem);
        };
        let count = self.number(stack.count).or_else(|| self.number("num_layers")).filter(|n| *n > 0);
        let count = count.ok_or_else(|| Error::Refused {
            step: "config.json".into(),
            problems: vec![format!("field `{}` is missing or no positive number", stack.count)],
        })?;
        Ok((stack, count as usize))
    }
    /// The beginning of the names of a layer's tensors.
    pub fn layer(&self, stack: &Stack, i: usize) -> String {
        format!("{}{}", self.prefix, stack.layer.replacen("{}", &i.to_string(), 1))
    }
    /// Names of a layer's tensors, without their beginning.
    pub fn layer_parts(&self, stack: &Stack, i: usize) -> Vec<String> {
        let at = self.layer(stack, i);
        self.names().filter_map(|n| n.strip_prefix(&at)).map(str::to_owned).collect()
    }
    /// Whether a tensor of a layer belongs to a norm.
    pub fn is_norm(stack: &Stack, part: &str) -> bool {
        stack.norms.iter().any(|(_, stem)| part.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.')))
    }
    /// Stem (without prefix of the layer) of the norm of that role.
    pub fn norm_stem(stack: &Stack, role: NormRole) -> Option<&'static str> {
        stack.norms.iter().find(|(r, _)| *r == role).map(|(_, stem)| *stem)
    }

    /// A number of the configuration.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.config.get(field).and_then(Value::as_u64)
    }
    /// Sets a field.
    pub fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.config.insert(field.into(), value.into());
    }
    /// What the fields of the family cannot say.
    ///
    /// # Errors
    /// An object that is not understood.
    pub fn extension(&self) -> Result<Extension> {
        Extension::of(&self.config)
            .map_err(|e| Error::Refused { step: "config.json".into(), problems: vec![format!("field `{KEY}`: {e}")] })
    }
    /// Writes the extension; an empty one is left out.
    pub fn set_extension(&mut self, extension: &Extension) {
        match serde_json::to_value(extension) {
            Ok(value) if !extension.is_empty() => {
                self.config.insert(KEY.into(), value);
            }
            _ => {
                self.config.shift_remove(KEY);
            }
        }
    }
}

fn missing(name: &str) -> Error {
    Error::Refused { step: format!("tensor `{name}`"), problems: vec!["does not exist".into()] }
}
