//! Writes small ONNX files: the few messages and fields of the format that convolution models need, byte by byte.

use std::path::PathBuf;
use tempfile::TempDir;

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
}

/// A graph under construction.
#[derive(Clone, Default)]
pub struct OnnxFile {
    graph: Vec<u8>,
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

fn value(name: &str, dims: &[&str]) -> Vec<u8> {
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
    number(&mut tensor, 1, 1);
    message(&mut tensor, 2, &shape);
    message(&mut ty, 1, &tensor);
    message(&mut info, 1, name.as_bytes());
    message(&mut info, 2, &ty);
    info
}

impl OnnxFile {
    /// A float tensor.
    pub fn weight(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}");
        let mut t = Vec::new();
        for d in dims {
            number(&mut t, 1, *d as i64);
        }
        number(&mut t, 2, 1);
        message(&mut t, 8, name.as_bytes());
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        message(&mut t, 9, &raw);
        message(&mut self.graph, 5, &t);
    }
    /// A tensor of bytes: signed or not.
    pub fn bytes(&mut self, name: &str, dims: &[usize], is_signed: bool, values: &[u8]) {
        assert_eq!(dims.iter().product::<usize>(), values.len(), "{name}");
        let mut t = Vec::new();
        for d in dims {
            number(&mut t, 1, *d as i64);
        }
        number(&mut t, 2, if is_signed { 3 } else { 2 });
        message(&mut t, 8, name.as_bytes());
        message(&mut t, 9, values);
        message(&mut self.graph, 5, &t);
    }
    /// `output = op(inputs)`.
    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) {
        let mut n = Vec::new();
        for i in inputs {
            message(&mut n, 1, i.as_bytes());
        }
        message(&mut n, 2, output.as_bytes());
        message(&mut n, 3, format!("node_{output}").as_bytes());
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
    /// An input; extents are numbers or names.
    pub fn input(&mut self, name: &str, dims: &[&str]) {
        message(&mut self.graph, 11, &value(name, dims));
    }
    /// An output.
    pub fn output(&mut self, name: &str, dims: &[&str]) {
        message(&mut self.graph, 12, &value(name, dims));
    }
    /// The file, in a directory that lives as long as what is returned.
    pub fn save(&self) -> (TempDir, PathBuf) {
        let mut graph = self.graph.clone();
        message(&mut graph, 2, b"graph");
        let mut opset = Vec::new();
        message(&mut opset, 1, b"");
        number(&mut opset, 2, 17);
        let mut model = Vec::new();
        number(&mut model, 1, 8);
        message(&mut model, 7, &graph);
        message(&mut model, 8, &opset);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        std::fs::write(&path, model).unwrap();
        (dir, path)
    }
}
