//! Writes small ONNX files: the few messages and fields of the format that tests need, byte by byte.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(&'static str),
}

/// The type of an element, by its number in the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    Float = 1,
    Int64 = 7,
    Bool = 9,
}

/// A graph under construction.
#[derive(Clone)]
pub struct OnnxFile {
    graph: Vec<u8>,
    opset: i64,
}

impl Default for OnnxFile {
    fn default() -> OnnxFile {
        OnnxFile::of_opset(17)
    }
}

fn varint(to: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        to.push(v as u8 | 0x80);
        v >>= 7;
    }
    to.push(v as u8);
}

fn number(to: &mut Vec<u8>, tag: u64, v: i64) {
    varint(to, tag << 3);
    varint(to, v as u64);
}

fn message(to: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    varint(to, tag << 3 | 2);
    varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn value(name: &str, element: Element, dims: &[&str]) -> Vec<u8> {
    let mut shape = Vec::new();
    for d in dims {
        let mut dim = Vec::new();
        match d.parse::<i64>() {
            Ok(v) => number(&mut dim, 1, v),
            Err(_) => message(&mut dim, 2, d.as_bytes()),
        }
        message(&mut shape, 1, &dim);
    }
    let (mut tensor, mut ty, mut info) = (Vec::new(), Vec::new(), Vec::new());
    number(&mut tensor, 1, element as i64);
    message(&mut tensor, 2, &shape);
    message(&mut ty, 1, &tensor);
    message(&mut info, 1, name.as_bytes());
    message(&mut info, 2, &ty);
    info
}

impl OnnxFile {
    /// An empty graph of operators as that version has them.
    pub fn of_opset(opset: i64) -> OnnxFile {
        OnnxFile { graph: Vec::new(), opset }
    }
    fn tensor(&mut self, name: &str, dims: &[usize], element: i64, raw: &[u8]) {
        let mut t = Vec::new();
        for d in dims {
            number(&mut t, 1, *d as i64);
        }
        number(&mut t, 2, element);
        message(&mut t, 8, name.as_bytes());
        message(&mut t, 9, raw);
        message(&mut self.graph, 5, &t);
    }
    /// A float tensor.
    pub fn weight(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}");
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, dims, Element::Float as i64, &raw);
    }
    /// A tensor of 64-bit integers.
    pub fn ints(&mut self, name: &str, dims: &[usize], values: &[i64]) {
        assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}");
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, dims, Element::Int64 as i64, &raw);
    }
    /// A tensor of bytes: signed or not.
    pub fn bytes(&mut self, name: &str, dims: &[usize], is_signed: bool, values: &[u8]) {
        assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}");
        self.tensor(name, dims, if is_signed { 3 } else { 2 }, values);
    }
    /// `output = op(inputs)`.
    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) {
        self.node_of_several(op, inputs, &[output], attributes);
    }
    /// `outputs = op(inputs)`.
    pub fn node_of_several(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        let mut n = Vec::new();
        for i in inputs {
            message(&mut n, 1, i.as_bytes());
        }
        for o in outputs {
            message(&mut n, 2, o.as_bytes());
        }
        message(&mut n, 3, format!("node_{}", outputs[0]).as_bytes());
        message(&mut n, 4, op.as_bytes());
        for (name, v) in attributes {
            let mut a = Vec::new();
            message(&mut a, 1, name.as_bytes());
            let kind = match v {
                Attribute::Float(f) => {
                    varint(&mut a, 2 << 3 | 5);
                    a.extend(f.to_le_bytes());
                    1
                }
                Attribute::Int(i) => {
                    number(&mut a, 3, *i);
                    2
                }
                Attribute::Text(s) => {
                    message(&mut a, 4, s.as_bytes());
                    3
                }
                Attribute::Ints(all) => {
                    all.iter().for_each(|i| number(&mut a, 8, *i));
                    7
                }
            };
            number(&mut a, 20, kind);
            message(&mut n, 5, &a);
        }
        message(&mut self.graph, 1, &n);
    }
    /// A float input; extents are numbers or names.
    pub fn input(&mut self, name: &str, dims: &[&str]) {
        self.input_of(name, Element::Float, dims);
    }
    /// An input.
    pub fn input_of(&mut self, name: &str, element: Element, dims: &[&str]) {
        message(&mut self.graph, 11, &value(name, element, dims));
    }
    /// A float output.
    pub fn output(&mut self, name: &str, dims: &[&str]) {
        self.output_of(name, Element::Float, dims);
    }
    /// An output.
    pub fn output_of(&mut self, name: &str, element: Element, dims: &[&str]) {
        message(&mut self.graph, 12, &value(name, element, dims));
    }
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut graph = self.graph.clone();
        message(&mut graph, 2, b"graph");
        let mut opset = Vec::new();
        message(&mut opset, 1, b"");
        number(&mut opset, 2, self.opset);
        let mut model = Vec::new();
        number(&mut model, 1, 8);
        message(&mut model, 7, &graph);
        message(&mut model, 8, &opset);
        model
    }
    /// Writes the file.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.encode()).unwrap();
    }
    /// The file, in a directory that lives as long as what is returned.
    pub fn save(&self) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        self.write(&path);
        (dir, path)
    }
}
