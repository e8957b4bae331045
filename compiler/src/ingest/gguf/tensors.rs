//! The tensor table of a GGUF file: types, sizes, and where each tensor lies.

use super::metadata::{Metadata, Value};
use super::repack::Packed;
use crate::ingest::error::{Error, Gap, Result};
use crate::ingest::file::SourceFile;
use crate::ingest::limits::Limits;
use frit_kernels::dtype::Storage;
use indexmap::IndexMap;

/// A tensor type of the format: its number, name and block, and how it is stored here if it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// The number in files.
    pub id: u32,
    /// The name in tools.
    pub name: &'static str,
    /// Elements of a block.
    pub block_elems: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// The storage type, for the types that are read.
    pub storage: Option<Storage>,
    /// What blocks are repacked from when they are read.
    pub packed: Option<Packed>,
}

const fn read(id: u32, name: &'static str, storage: Storage) -> TensorType {
    TensorType {
        id,
        name,
        block_elems: storage.block_elems(),
        block_bytes: storage.block_bytes(),
        storage: Some(storage),
        packed: None,
    }
}

const fn repacked(id: u32, name: &'static str, packed: Packed) -> TensorType {
    let (block_elems, block_bytes) = packed.block();
    TensorType { id, name, block_elems, block_bytes, storage: Some(packed.storage()), packed: Some(packed) }
}

const fn other(id: u32, name: &'static str, block_elems: u64, block_bytes: u64) -> TensorType {
    TensorType { id, name, block_elems, block_bytes, storage: None, packed: None }
}

impl TensorType {
    /// The type of that name.
    pub fn named(name: &str) -> Option<TensorType> {
        TYPES.iter().find(|t| t.name == name).copied()
    }
}

/// Every type whose block is known; numbers that are missing were withdrawn.
pub const TYPES: [TensorType; 34] = [
    read(0, "F32", Storage::F32),
    read(1, "F16", Storage::F16),
    read(2, "Q4_0", Storage::Q4_0),
    read(3, "Q4_1", Storage::Q4_1),
    read(6, "Q5_0", Storage::Q5_0),
    read(7, "Q5_1", Storage::Q5_1),
    read(8, "Q8_0", Storage::Q8_0),
    other(9, "Q8_1", 32, 36),
    read(10, "Q2_K", Storage::Q2K),
    read(11, "Q3_K", Storage::Q3K),
    read(12, "Q4_K", Storage::Q4K),
    read(13, "Q5_K", Storage::Q5K),
    read(14, "Q6_K", Storage::Q6K),
    repacked(15, "Q8_K", Packed::Q8K),
    repacked(16, "IQ2_XXS", Packed::Iq2Xxs),
    other(17, "IQ2_XS", 256, 74),
    repacked(18, "IQ3_XXS", Packed::Iq3Xxs),
    repacked(19, "IQ1_S", Packed::Iq1S),
    read(20, "IQ4_NL", Storage::Iq4Nl),
    repacked(21, "IQ3_S", Packed::Iq3S),
    other(22, "IQ2_S", 256, 82),
    read(23, "IQ4_XS", Storage::Iq4Xs),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
    other(29, "IQ1_M", 256, 56),
    read(30, "BF16", Storage::Bf16),
    repacked(34, "TQ1_0", Packed::Tq1_0),
    repacked(35, "TQ2_0", Packed::Tq2_0),
    repacked(39, "MXFP4", Packed::Mxfp4),
    other(40, "NVFP4", 64, 36),
    other(41, "Q1_0", 128, 18),
];

/// The types that are read, for messages.
pub const READ_TYPES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ1_S, IQ2_XXS, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0 and MXFP4";

/// One row of the table as the file has it, dimensions outermost first.
#[derive(Clone, Debug)]
pub(super) struct TensorEntry {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

/// Where a tensor lies, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// How its elements are stored once they are read.
    pub storage: Storage,
    /// The blocks that they are repacked from.
    pub packed: Option<Packed>,
    /// The dimensions, outermost first: the reverse of the file's order.
    pub shape: Vec<u64>,
    /// Its first byte, counted from the start of the file.
    pub offset: u64,
    /// Its size in bytes.
    pub len: u64,
}

impl TensorInfo {
    /// Its type in the file.
    pub fn kind(&self) -> TensorType {
        let stored = |t: &&TensorType| t.storage == Some(self.storage) && t.packed == self.packed;
        TYPES.iter().find(stored).copied().unwrap_or(TYPES[0])
    }
}

/// Checks the table against itself and the file. `table_end` is where the table ends; the data begin at the next
/// multiple of `general.alignment`.
pub(super) fn place(
    file: &SourceFile,
    metadata: &Metadata,
    entries: Vec<TensorEntry>,
    table_end: u64,
    limits: &Limits,
) -> Result<IndexMap<String, TensorInfo>> {
    let align = alignment(file, metadata)?;
    let data = table_end.next_multiple_of(align);
    let mut gaps = Vec::new();
    let mut spans: Vec<(u64, u64, String)> = Vec::with_capacity(entries.len());
    let mut tensors = IndexMap::with_capacity(entries.len());
    for TensorEntry { name, shape, kind, offset } in entries {
        let blame = |problem: String| file.malformed(format!("tensor `{name}`"), problem);
        let Some(kind) = TYPES.iter().find(|t| t.id == kind) else {
            gaps.push(Gap::tensor(
                &name,
                format!("has the unknown type {kind}"),
                format!("quantise the model to one of {READ_TYPES}"),
            ));
            continue;
        };
        let Some(storage) = kind.storage else {
            let problem = format!("has type {} ({}), which is not read", kind.name, kind.id);
            gaps.push(Gap::tensor(&name, problem, format!("quantise the model to one of {READ_TYPES}")));
            continue;
        };
        if let Some(dim) = shape.iter().find(|d| **d == 0 || **d > limits.dim) {
            return Err(blame(format!("has a dimension of {dim}; 1 to {} are read", limits.dim)));
        }
        let row = shape.last().copied().unwrap_or(1);
        if row % kind.block_elems != 0 {
            return Err(blame(format!(
                "has rows of {row}, which is no multiple of {}'s block of {}",
                kind.name, kind.block_elems
            )));
        }
        let elems = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let len = elems.and_then(|n| (n / kind.block_elems).checked_mul(kind.block_bytes));
        let len = len.ok_or_else(|| blame(format!("has a shape {shape:?} whose size exceeds 64 bits")))?;
        if offset % align != 0 {
            return Err(blame(format!("begins at {offset}, which is no multiple of the alignment {align}")));
        }
        let start = data.checked_add(offset);
        let end = start.and_then(|s| s.checked_add(len));
        let (Some(start), Some(end)) = (start, end.filter(|e| *e <= file.len())) else {
            let problem =
                format!("its {len} bytes at offset {offset} lie beyond the end of the file ({} bytes)", file.len());
            return Err(blame(problem));
        };
        if tensors.contains_key(&name) {
            return Err(blame("is there twice".into()));
        }
        spans.push((start, end, name.clone()));
        tensors.insert(name.clone(), TensorInfo { name, storage, packed: kind.packed, shape, offset: start, len });
    }
    if !gaps.is_empty() {
        return Err(Error::Unsupported { path: file.path().to_owned(), gaps });
    }
    cover(file, spans, data, align)?;
    Ok(tensors)
}

/// The spans must follow each other with no more than padding between and after them.
fn cover(file: &SourceFile, mut spans: Vec<(u64, u64, String)>, data: u64, align: u64) -> Result<()> {
    spans.sort();
    let mut end = data;
    let mut before = "the tensor table".to_owned();
    for (start, stop, name) in spans {
        if start < end {
            return Err(file.malformed(format!("tensor `{name}`"), format!("overlaps {before}")));
        }
        if start - end >= align {
            return Err(file
                .malformed(format!("tensor `{name}`"), format!("leaves {} unused bytes after {before}", start - end)));
        }
        (end, before) = (stop, format!("tensor `{name}`"));
    }
    if file.len().saturating_sub(end) >= align {
        return Err(file.malformed("data", format!("{} bytes after {before} belong to no tensor", file.len() - end)));
    }
    Ok(())
}

/// `general.alignment`: a power of two from 8 to 1 MiB, 32 when the key is missing.
fn alignment(file: &SourceFile, metadata: &Metadata) -> Result<u64> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(32),
        Some(Value::U32(v)) if v.is_power_of_two() && (8..=1 << 20).contains(v) => Ok(u64::from(*v)),
        Some(Value::U32(v)) => Err(file.malformed(KEY, format!("{v} is no power of two from 8 to 1048576"))),
        Some(_) => Err(file.malformed(KEY, "is not a 32-bit unsigned integer")),
    }
}
