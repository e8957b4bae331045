//! The typed key-value pairs of a GGUF file, and access that says which key is wrong.

use crate::ingest::error::Gap;
use indexmap::IndexMap;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the format's types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the format's types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Nested(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => "an unsigned integer",
            Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => "an integer",
            Value::F32(_) | Value::F64(_) => "a number",
            Value::Bool(_) => "a truth value",
            Value::String(_) => "a text",
            Value::Array(_) => "an array",
        }
    }
    /// A non-negative integer of any width.
    pub(super) fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => u64::try_from(v).ok(),
            Value::I16(v) => u64::try_from(v).ok(),
            Value::I32(v) => u64::try_from(v).ok(),
            Value::I64(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }
}

/// The metadata of one file, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    file: String,
    values: IndexMap<String, Value>,
}

/// A value that is there, one that is not, or the gap that its type makes.
pub type Read<T> = Result<Option<T>, Gap>;

impl Metadata {
    /// Metadata that messages ascribe to `file`.
    pub fn new(file: String, values: IndexMap<String, Value>) -> Metadata {
        Metadata { file, values }
    }
    /// The name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }
    /// All pairs, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(k, v)| (k.as_str(), v))
    }
    /// A gap at a key.
    pub fn gap(&self, key: &str, problem: impl Into<String>, next_step: impl Into<String>) -> Gap {
        Gap::field(&self.file, key, problem, next_step)
    }

    fn typed<'a, T>(&'a self, key: &str, want: &str, take: impl FnOnce(&'a Value) -> Option<T>) -> Read<T> {
        let Some(value) = self.get(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| {
            self.gap(
                key,
                format!("is {} and not {want}", value.kind()),
                "convert the model again with a current converter",
            )
        })
    }
    /// A non-negative integer of any width.
    pub fn u64(&self, key: &str) -> Read<u64> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }
    /// A number of either width.
    pub fn f64(&self, key: &str) -> Read<f64> {
        self.typed(key, "a number", |value| match value {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            _ => None,
        })
    }
    /// A truth value.
    pub fn bool(&self, key: &str) -> Read<bool> {
        self.typed(key, "a truth value", |value| if let Value::Bool(v) = value { Some(*v) } else { None })
    }
    /// A text.
    pub fn str(&self, key: &str) -> Read<&str> {
        self.typed(key, "a text", |value| if let Value::String(v) = value { Some(v.as_str()) } else { None })
    }
    /// An array of texts.
    pub fn strings(&self, key: &str) -> Read<&[String]> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }
    /// An array of numbers, as f32.
    pub fn f32s(&self, key: &str) -> Read<&[f32]> {
        self.typed(key, "an array of numbers", |value| match value {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }
    /// An array of integers of either sign, 32 bits wide.
    pub fn i32s(&self, key: &str) -> Read<Vec<i32>> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Array(Array::I32(v)) => Some(v.clone()),
            Value::Array(Array::U32(v)) => v.iter().map(|v| i32::try_from(*v).ok()).collect(),
            _ => None,
        })
    }
}
