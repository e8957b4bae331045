//! Attributes of a node, by name.

use crate::onnx_file::{Attribute, Element};

/// What a node says beside its operands.
#[derive(Clone, Debug, Default)]
pub struct Attributes(pub Vec<(&'static str, Attribute)>);

impl Attributes {
    fn get(&self, name: &str) -> Option<&Attribute> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.get(name) {
            Some(Attribute::Int(v)) => *v,
            _ => default,
        }
    }
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.get(name) {
            Some(Attribute::Ints(v)) => Some(v.clone()),
            _ => None,
        }
    }
    pub fn float(&self, name: &str, default: f32) -> f32 {
        match self.get(name) {
            Some(Attribute::Float(v)) => *v,
            _ => default,
        }
    }
    pub fn text(&self, name: &str, default: &'static str) -> &'static str {
        match self.get(name) {
            Some(Attribute::Text(v)) => v,
            _ => default,
        }
    }
    pub fn element(&self, name: &str) -> Option<Element> {
        [Element::Float, Element::Int64, Element::Bool].into_iter().find(|e| *e as i64 == self.int(name, 0))
    }
}
