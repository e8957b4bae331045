//! Models for tests: built in memory, written to a file, loaded, and evaluated by the reference.

use crate::graph::{WeightData, WeightId};
use crate::ingest::gguf::quant::dequantize;
use crate::ingest::onnx::proto::*;
use crate::ingest::{LoadOptions, load_with};
use crate::model::Model;
use crate::reference::{Array, Env, evaluate, weight_array};
use prost::Message;
use std::collections::BTreeMap;

pub const FLOAT: i32 = 1;
pub const UINT8: i32 = 2;
pub const INT64: i32 = 7;
pub const BOOL: i32 = 9;

/// An attribute.
pub fn int(name: &str, v: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: v, r#type: attribute_type::INT, ..Default::default() }
}
pub fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: v.to_vec(), r#type: attribute_type::INTS, ..Default::default() }
}
pub fn float(name: &str, v: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: v, r#type: attribute_type::FLOAT, ..Default::default() }
}
pub fn graph_attribute(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { name: name.into(), g: Some(g), r#type: attribute_type::GRAPH, ..Default::default() }
}

/// `out… = op(in…)`; the words before `=` and after `op` are names, `_` an operand that is left out.
pub fn node(text: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    let (outputs, call) = text.split_once('=').unwrap();
    let mut words = call.split_whitespace();
    let op = words.next().unwrap();
    let (domain, op_type) = op.split_once(':').unwrap_or(("", op));
    let name = |w: &str| if w == "_" { String::new() } else { w.to_owned() };
    NodeProto {
        input: words.map(name).collect(),
        output: outputs.split_whitespace().map(name).collect(),
        op_type: op_type.into(),
        domain: domain.into(),
        attribute,
        ..Default::default()
    }
}
pub fn floats(name: &str, dims: &[i64], v: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: FLOAT,
        float_data: v.to_vec(),
        ..Default::default()
    }
}
pub fn longs(name: &str, dims: &[i64], v: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: INT64,
        int64_data: v.to_vec(),
        ..Default::default()
    }
}
pub fn bytes(name: &str, dims: &[i64], v: &[u8]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: UINT8,
        raw_data: Some(bytes::Bytes::copy_from_slice(v)),
        ..Default::default()
    }
}
/// A declared value: the words of `shape` are numbers or names.
pub fn value(name: &str, elem_type: i32, shape: &str) -> ValueInfoProto {
    let dim = |w: &str| match w.parse::<i64>() {
        Ok(v) => DimensionProto { dim_value: Some(v), dim_param: None },
        Err(_) => DimensionProto { dim_value: None, dim_param: Some(w.into()) },
    };
    let shape = TensorShapeProto { dim: shape.split_whitespace().map(dim).collect() };
    let tensor_type = Some(TensorTypeProto { elem_type, shape: Some(shape) });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

/// A graph whose outputs are declared by name alone.
pub fn graph(
    inputs: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
    outputs: &str,
) -> GraphProto {
    let output = outputs.split_whitespace().map(|o| ValueInfoProto { name: o.into(), r#type: None }).collect();
    GraphProto { node, input: inputs, initializer, output, ..Default::default() }
}
pub fn model(graph: GraphProto) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![opset("", 18), opset("com.microsoft", 1)],
        ..Default::default()
    }
}

/// Loads the bytes as a file.
pub fn load_bytes(content: &[u8]) -> Result<Model, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, content).unwrap();
    load_with(&path, &LoadOptions::default()).map_err(|e| e.to_string())
}
pub fn load(m: &ModelProto) -> Result<Model, String> {
    load_bytes(&m.encode_to_vec())
}
pub fn refusal(m: &ModelProto) -> String {
    load(m).err().expect("a model that has to be refused was loaded")
}

/// An input for [`run`].
pub fn array(shape: &[usize], v: &[f64]) -> Array {
    Array::new(shape.to_vec(), v.to_vec()).unwrap()
}

/// The values of a weight that is stored in blocks.
fn quantised(m: &Model, id: WeightId) -> Option<Array> {
    let info = &m.tables.weights[id.0 as usize];
    let WeightData::Tensor { name, .. } = &info.data else { return None };
    let stored = m.weights().read(name).unwrap();
    let values = stored.storage.is_quantised().then(|| dequantize(stored.storage, &stored.bytes).unwrap())?;
    let shape = stored.shape.iter().map(|d| *d as usize).collect::<Vec<_>>();
    Some(Array::new(shape, values.into_iter().map(f64::from).collect()).unwrap())
}

/// The outputs, sizes bound from the inputs.
pub fn run_model(m: &Model, inputs: &[(&str, Array)]) -> Vec<(String, Array)> {
    let weights = |id: WeightId| quantised(m, id).map_or_else(|| weight_array(m, id, &|_| None), Ok);
    let mut env = Env::new(&weights);
    let graph = &m.graph("forward").unwrap().graph;
    crate::graph::verify::verify(graph, Some(&m.tables)).unwrap();
    for i in &graph.inputs {
        let Some((_, x)) = inputs.iter().find(|(n, _)| *n == i.name) else { continue };
        for (d, n) in graph.ty(i.value).shape.iter().zip(&x.shape) {
            if let Some(name) = d.as_size() {
                let old = env.sizes.insert(name.into(), *n as i64);
                assert!(old.is_none_or(|o| o == *n as i64), "{name} is {old:?} and {n}");
            }
        }
    }
    env.inputs = inputs.iter().map(|(n, x)| ((*n).to_owned(), x.clone())).collect::<BTreeMap<_, _>>();
    evaluate(graph, &env).unwrap()
}

/// The first output of a model that has to load.
pub fn run(m: &ModelProto, inputs: &[(&str, Array)]) -> Array {
    let m = load(m).unwrap_or_else(|e| panic!("{e}"));
    run_model(&m, inputs).remove(0).1
}

pub fn close(got: &Array, shape: &[usize], want: &[f64]) {
    assert_eq!(got.shape, shape);
    for (i, (g, w)) in got.data.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-6 * (1.0 + w.abs()), "element {i} is {g}, {w} expected");
    }
}
