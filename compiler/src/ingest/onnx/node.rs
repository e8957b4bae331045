//! One call of an operator: its operands and attributes.

use super::elem::{Elem, code_name};
use super::error::{Res, Stop, malformed};
use super::external_data::short;
use super::proto::{AttributeProto, GraphProto, TensorProto, attribute_type as kind};
use super::value::Val;

/// A call whose operands were imported.
pub struct Node<'a> {
    /// The operator.
    pub op: &'a str,
    /// Its domain, empty for the standard one.
    pub domain: &'a str,
    /// The version of the domain that the call is written for.
    pub opset: i64,
    /// Operands; `None` where one is left out.
    pub inputs: Vec<Option<Val>>,
    /// Attributes by name, those of functions resolved.
    pub attributes: Vec<(&'a str, &'a AttributeProto)>,
    /// Results that are named, in order; an empty name is a result that nobody wants.
    pub outputs: Vec<&'a str>,
}

impl<'a> Node<'a> {
    /// Operand `i`, which must be there.
    pub fn input(&self, i: usize) -> Res<&Val> {
        match self.inputs.get(i) {
            Some(Some(v)) => Ok(v),
            _ => malformed(format!("operand {i} is missing")),
        }
    }
    /// Operand `i`, if it is there.
    pub fn optional(&self, i: usize) -> Option<&Val> {
        self.inputs.get(i).and_then(Option::as_ref)
    }
    /// Whether result `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.outputs.get(i).is_some_and(|o| !o.is_empty())
    }
    fn find(&self, name: &str, kinds: &[i32]) -> Res<Option<&'a AttributeProto>> {
        match self.attributes.iter().find(|(n, _)| *n == name) {
            None => Ok(None),
            Some((_, a)) if a.r#type == 0 || kinds.contains(&a.r#type) => Ok(Some(a)),
            Some((_, a)) => malformed(format!("the attribute `{name}` is of kind {}", a.r#type)),
        }
    }
    /// An integer attribute.
    pub fn int(&self, name: &str, default: i64) -> Res<i64> {
        Ok(self.find(name, &[kind::INT])?.map_or(default, |a| a.i))
    }
    /// An integer attribute, if given.
    pub fn int_if(&self, name: &str) -> Res<Option<i64>> {
        Ok(self.find(name, &[kind::INT])?.map(|a| a.i))
    }
    /// A flag.
    pub fn flag(&self, name: &str, default: bool) -> Res<bool> {
        Ok(self.int(name, i64::from(default))? != 0)
    }
    /// A float attribute.
    pub fn float(&self, name: &str, default: f32) -> Res<f32> {
        Ok(self.float_if(name)?.unwrap_or(default))
    }
    /// A float attribute, if given.
    pub fn float_if(&self, name: &str) -> Res<Option<f32>> {
        match self.find(name, &[kind::FLOAT])? {
            Some(a) if a.f.is_finite() => Ok(Some(a.f)),
            Some(a) => malformed(format!("the attribute `{name}` is {}", a.f)),
            None => Ok(None),
        }
    }
    /// A list of floats, if given.
    pub fn floats_if(&self, name: &str) -> Res<Option<Vec<f64>>> {
        Ok(self.find(name, &[kind::FLOATS])?.map(|a| a.floats.iter().map(|v| f64::from(*v)).collect()))
    }
    /// A list of integers, if given.
    pub fn ints(&self, name: &str) -> Res<Option<&'a [i64]>> {
        Ok(self.find(name, &[kind::INTS])?.map(|a| a.ints.as_slice()))
    }
    /// A text.
    pub fn text(&self, name: &str, default: &str) -> Res<String> {
        match self.find(name, &[kind::STRING])? {
            Some(a) => Ok(short(&String::from_utf8_lossy(&a.s))),
            None => Ok(default.to_owned()),
        }
    }
    /// A tensor, if given.
    pub fn tensor(&self, name: &str) -> Res<Option<&'a TensorProto>> {
        Ok(self.find(name, &[kind::TENSOR])?.and_then(|a| a.t.as_ref()))
    }
    /// A nested graph.
    pub fn graph(&self, name: &str) -> Res<&'a GraphProto> {
        match self.find(name, &[kind::GRAPH])?.and_then(|a| a.g.as_ref()) {
            Some(g) => Ok(g),
            None => malformed(format!("the attribute `{name}` is missing")),
        }
    }
    /// An element type.
    pub fn elem(&self, name: &str, default: Elem) -> Res<Elem> {
        match self.int_if(name)? {
            None => Ok(default),
            Some(code) => {
                let code = i32::try_from(code).unwrap_or(-1);
                let none = || Stop::Gap {
                    problem: format!("the attribute `{name}` asks for {}, which is not computed", code_name(code)),
                    next: super::error::EXPORT,
                };
                Elem::from_code(code).ok_or_else(none)
            }
        }
    }
    /// An attribute that is an axis of `rank` axes, counted from the end when negative.
    pub fn axis(&self, name: &str, default: i64, rank: usize) -> Res<usize> {
        axis(self.int(name, default)?, rank)
    }
}

/// An axis of `rank`, counted from the end when negative.
pub fn axis(a: i64, rank: usize) -> Res<usize> {
    let r = i64::try_from(rank).unwrap_or(i64::MAX);
    match if a < 0 { a + r } else { a } {
        k if (0..r).contains(&k) => Ok(k as usize),
        _ => malformed(format!("axis {a} of {rank} axes")),
    }
}

/// Axes of `rank`, each once, ascending.
pub fn axes(list: &[i64], rank: usize) -> Res<Vec<usize>> {
    let mut out = list.iter().map(|a| axis(*a, rank)).collect::<Res<Vec<_>>>()?;
    out.sort_unstable();
    match out.windows(2).any(|w| w.first() == w.last()) {
        true => malformed(format!("an axis occurs twice in {list:?}")),
        false => Ok(out),
    }
}
