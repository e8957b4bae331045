//! Writes a GGUF file: version 3, little endian, tensors in the order given, each at the next multiple of the alignment.

use super::metadata::{Array, Value};
use super::tensors::TensorType;
use std::io::{self, Write};

const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its elements are stored.
    pub kind: TensorType,
    /// The dimensions, outermost first; the last is a multiple of the type's block.
    pub shape: &'a [u64],
}

impl Entry<'_> {
    /// Bytes of its elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().product::<u64>() / self.kind.block_elems * self.kind.block_bytes
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Writes magic, metadata, table and elements. `elements` gives the bytes of the entry of that number, [`Entry::len`] of
/// them, and is asked in order.
///
/// # Errors
/// What `out` and `elements` refuse, and elements of another size.
pub fn write(
    out: &mut impl Write,
    metadata: &[(&str, &Value)],
    entries: &[Entry<'_>],
    mut elements: impl FnMut(usize) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    let stated = metadata.iter().find(|(key, _)| *key == ALIGNMENT_KEY);
    let align = stated.and_then(|(_, v)| v.as_u64()).filter(|a| *a > 0).unwrap_or(ALIGNMENT);
    let mut header = super::reader::MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((entries.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, v) in metadata {
        text(&mut header, key);
        header.extend(kind(v).to_le_bytes());
        value(&mut header, v);
    }
    let mut offset = 0u64;
    for e in entries {
        text(&mut header, e.name);
        header.extend((e.shape.len() as u32).to_le_bytes());
        e.shape.iter().rev().for_each(|d| header.extend(d.to_le_bytes()));
        header.extend(e.kind.id.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + e.len()).next_multiple_of(align);
    }
    pad(&mut header, align);
    out.write_all(&header)?;
    for (n, e) in entries.iter().enumerate() {
        let mut bytes = elements(n)?;
        if bytes.len() as u64 != e.len() {
            let problem = format!("tensor `{}` has {} bytes and not {}", e.name, bytes.len(), e.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        pad(&mut bytes, align);
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>, align: u64) {
    let len = (bytes.len() as u64).next_multiple_of(align);
    bytes.resize(len as usize, 0);
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn kind(v: &Value) -> u32 {
    match v {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn value(out: &mut Vec<u8>, v: &Value) {
    match v {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => text(out, v),
        Value::Array(v) => array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn array(out: &mut Vec<u8>, a: &Array) {
    fn items<T>(out: &mut Vec<u8>, kind: u32, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
        out.extend(kind.to_le_bytes());
        out.extend((items.len() as u64).to_le_bytes());
        items.iter().for_each(|item| put(out, item));
    }
    match a {
        Array::U8(v) => items(out, 0, v, |o, x| o.extend(x.to_le_bytes())),
        Array::I8(v) => items(out, 1, v, |o, x| o.extend(x.to_le_bytes())),
        Array::U16(v) => items(out, 2, v, |o, x| o.extend(x.to_le_bytes())),
        Array::I16(v) => items(out, 3, v, |o, x| o.extend(x.to_le_bytes())),
        Array::U32(v) => items(out, 4, v, |o, x| o.extend(x.to_le_bytes())),
        Array::I32(v) => items(out, 5, v, |o, x| o.extend(x.to_le_bytes())),
        Array::F32(v) => items(out, 6, v, |o, x| o.extend(x.to_le_bytes())),
        Array::Bool(v) => items(out, 7, v, |o, x| o.push(u8::from(*x))),
        Array::String(v) => items(out, 8, v, |o, x| text(o, x)),
        Array::Nested(v) => items(out, 9, v, array),
        Array::U64(v) => items(out, 10, v, |o, x| o.extend(x.to_le_bytes())),
        Array::I64(v) => items(out, 11, v, |o, x| o.extend(x.to_le_bytes())),
        Array::F64(v) => items(out, 12, v, |o, x| o.extend(x.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::super::reader::GgufFile;
    use super::*;
    use crate::ingest::Limits;
    use std::path::PathBuf;

    /// What is read is written byte by byte as it was.
    #[test]
    fn a_file_that_is_read_and_written_is_the_same() {
        for name in ["devset/gguf/llama_Q4_0.gguf", "lexicon/lexicon-q8_0.gguf"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name);
            let file = GgufFile::open(&path, &Limits::default()).unwrap();
            let metadata: Vec<(&str, &Value)> = file.metadata().iter().collect();
            let entries: Vec<Entry<'_>> =
                file.tensors().map(|t| Entry { name: &t.name, kind: t.kind(), shape: &t.shape }).collect();
            let mut out = Vec::new();
            write(&mut out, &metadata, &entries, |n| Ok(file.bytes(entries[n].name).unwrap().unwrap())).unwrap();
            assert!(out == std::fs::read(&path).unwrap(), "{name}");
        }
    }

    #[test]
    fn values_of_every_type_come_back() {
        let nested =
            Array::Nested(vec![Array::Bool(vec![true, false]), Array::String(vec!["é".into(), String::new()])]);
        let values = [
            Value::U8(1),
            Value::I8(-1),
            Value::U16(2),
            Value::I16(-2),
            Value::U32(3),
            Value::I32(-3),
            Value::F32(0.5),
            Value::Bool(true),
            Value::String("a b".into()),
            Value::U64(4),
            Value::I64(-4),
            Value::F64(0.25),
            Value::Array(nested),
            Value::Array(Array::U8(vec![1])),
            Value::Array(Array::I8(vec![-1])),
            Value::Array(Array::U16(vec![1])),
            Value::Array(Array::I16(vec![-1])),
            Value::Array(Array::U32(vec![1])),
            Value::Array(Array::I32(Vec::new())),
            Value::Array(Array::F32(vec![1.5])),
            Value::Array(Array::U64(vec![1])),
            Value::Array(Array::I64(vec![-1])),
            Value::Array(Array::F64(vec![1.5])),
        ];
        let names: Vec<String> = (0..values.len()).map(|i| format!("key.{i}")).collect();
        let metadata: Vec<(&str, &Value)> = names.iter().map(String::as_str).zip(&values).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut out = Vec::new();
        let kind = TensorType::named("F32").unwrap();
        let entry = Entry { name: "a", kind, shape: &[3] };
        write(&mut out, &metadata, &[entry.clone()], |_| Ok(vec![7; 12])).unwrap();
        std::fs::write(&path, out).unwrap();
        let file = GgufFile::open(&path, &Limits::default()).unwrap();
        assert!(file.metadata().iter().eq(metadata.iter().copied()));
        assert_eq!(file.bytes("a").unwrap(), Some(vec![7; 12]));
        let short = write(&mut Vec::new(), &[], &[entry], |_| Ok(vec![7; 11])).unwrap_err();
        assert_eq!(short.to_string(), "tensor `a` has 11 bytes and not 12");
    }
}
