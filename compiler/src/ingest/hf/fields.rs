//! Reads the fields of a JSON object and collects what is wrong with them.
//!
//! A field is named by its path, with dots for nesting. `null` counts as missing. A fault becomes a [`Gap`] and a
//! stand-in value, so that one pass over a configuration finds every fault.

use crate::ingest::error::Gap;
use crate::ingest::limits::Limits;
use serde_json::{Map, Value};

/// A JSON object that is read field by field.
#[derive(Debug)]
pub struct Fields<'a> {
    file: &'a str,
    object: &'a Map<String, Value>,
    limits: &'a Limits,
    gaps: Vec<Gap>,
    sizes_known: bool,
}

const CORRECT: &str = "correct the file or download it again";

impl<'a> Fields<'a> {
    /// The fields of `object`, which messages ascribe to `file`.
    pub fn new(file: &'a str, object: &'a Map<String, Value>, limits: &'a Limits) -> Fields<'a> {
        Fields { file, object, limits, gaps: Vec::new(), sizes_known: true }
    }
    /// The limits in force.
    pub fn limits(&self) -> &'a Limits {
        self.limits
    }
    /// Every fault found so far, and whether all sizes are known: only then can tensors be compared with them.
    pub fn into_gaps(self) -> (Vec<Gap>, bool) {
        (self.gaps, self.sizes_known)
    }

    /// Reads the object in the field `path`, an empty one where there is none; its fields are named without the path.
    pub fn within<T>(&mut self, path: &str, read: impl FnOnce(&mut Fields<'_>) -> T) -> T {
        let none = Map::new();
        let object = match self.get(path) {
            Some(Value::Object(object)) => object,
            Some(value) => {
                self.wrong(path, value, "an object");
                &none
            }
            None => &none,
        };
        let file = format!("{}, {path}", self.file);
        let mut fields = Fields::new(&file, object, self.limits);
        let made = read(&mut fields);
        let (gaps, sizes_known) = fields.into_gaps();
        self.gaps.extend(gaps);
        self.sizes_known &= sizes_known;
        made
    }

    /// Whether the field is there, if only as `null`.
    pub fn present(&self, path: &str) -> bool {
        self.raw(path).is_some()
    }
    /// The field's value; `None` when it is missing or `null`.
    pub fn get(&self, path: &str) -> Option<&'a Value> {
        self.raw(path).filter(|v| !v.is_null())
    }
    fn raw(&self, path: &str) -> Option<&'a Value> {
        let mut parts = path.split('.');
        let first = self.object.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// Notes a fault.
    pub fn gap(&mut self, path: &str, problem: impl Into<String>, next_step: impl Into<String>) {
        self.gaps.push(Gap::field(self.file, path, problem, next_step));
    }
    /// Notes a fault after which tensors' shapes are not known.
    pub fn size_gap(&mut self, path: &str, problem: impl Into<String>, next_step: impl Into<String>) {
        self.sizes_known = false;
        self.gap(path, problem, next_step);
    }
    fn wrong(&mut self, path: &str, value: &Value, want: &str) {
        let mut text = value.to_string();
        if text.len() > 80 {
            text = format!("{}…", text.chars().take(80).collect::<String>());
        }
        self.gap(path, format!("is {text} and not {want}"), CORRECT);
    }

    /// A size from 1 to the limit for dimensions; `default` when the field is missing.
    pub fn size(&mut self, path: &str, default: Option<u64>) -> u64 {
        self.size_to(path, default, self.limits.dim)
    }
    /// A size from 1 to `most`.
    pub fn size_to(&mut self, path: &str, default: Option<u64>, most: u64) -> u64 {
        match (self.get(path), default) {
            (Some(value), _) => match value.as_u64() {
                Some(size) if (1..=most).contains(&size) => size,
                _ => {
                    self.wrong(path, value, &format!("a whole number from 1 to {most}"));
                    self.sizes_known = false;
                    1
                }
            },
            (None, Some(size)) => size,
            (None, None) => {
                self.size_gap(path, "is missing", CORRECT);
                1
            }
        }
    }
    /// A whole number from 0 to the limit for dimensions; 0 when the field is missing.
    pub fn size_or_zero(&mut self, path: &str) -> u64 {
        match self.get(path).and_then(Value::as_u64) {
            Some(0) | None if self.get(path).is_none_or(|v| v.as_u64() == Some(0)) => 0,
            _ => self.size(path, None),
        }
    }
    /// A finite number for which `good` holds; `default` when the field is missing.
    pub fn number(&mut self, path: &str, default: Option<f64>, want: &str, good: impl Fn(f64) -> bool) -> f64 {
        match (self.get(path), default) {
            (Some(value), _) => match value.as_f64().filter(|v| v.is_finite() && good(*v)) {
                Some(number) => number,
                None => {
                    self.wrong(path, value, want);
                    default.unwrap_or(1.0)
                }
            },
            (None, Some(number)) => number,
            (None, None) => {
                self.gap(path, format!("is missing; it must be {want}"), CORRECT);
                1.0
            }
        }
    }
    /// A positive number, also when rounded to f32.
    pub fn positive(&mut self, path: &str, default: Option<f64>) -> f64 {
        self.number(path, default, "a positive number", |v| v as f32 > 0.0 && (v as f32).is_finite())
    }
    /// A positive number, or nothing.
    pub fn positive_or_none(&mut self, path: &str) -> Option<f64> {
        self.get(path).is_some().then(|| self.positive(path, None))
    }
    /// A truth value.
    pub fn flag(&mut self, path: &str, default: bool) -> bool {
        match self.get(path) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(value) => {
                self.wrong(path, value, "true or false");
                default
            }
        }
    }
    /// A text; `None` when the field is missing.
    pub fn text(&mut self, path: &str) -> Option<&'a str> {
        match self.get(path)? {
            Value::String(text) => Some(text),
            value => {
                self.wrong(path, value, "a text");
                None
            }
        }
    }
    /// A list of positive numbers of that length.
    pub fn factors(&mut self, path: &str, len: u64) -> Vec<f32> {
        let Some(value) = self.get(path) else {
            self.gap(path, "is missing", CORRECT);
            return Vec::new();
        };
        let numbers: Option<Vec<f32>> = value.as_array().and_then(|items| {
            items.iter().map(|v| v.as_f64().map(|v| v as f32).filter(|v| v.is_finite() && *v > 0.0)).collect()
        });
        match numbers {
            Some(numbers) if numbers.len() as u64 == len => numbers,
            Some(numbers) => {
                self.gap(path, format!("has {} entries, but the head has {len} rotary pairs", numbers.len()), CORRECT);
                Vec::new()
            }
            None => {
                self.wrong(path, value, "a list of positive numbers");
                Vec::new()
            }
        }
    }
    /// A token id or a list of them.
    pub fn token_ids(&mut self, path: &str) -> Vec<u32> {
        let Some(value) = self.get(path) else { return Vec::new() };
        let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        let ids = match value {
            Value::Array(items) => items.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.unwrap_or_else(|| {
            self.wrong(path, value, "a token id or a list of them");
            Vec::new()
        })
    }
}
