//! Initializers that become one: every use reads the first, which is their mean or stays as it is.

use super::OnnxModel;
use crate::transform::error::{Result, refuse, refuse_all};
use prost::Message;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

const STEP: &str = "share-weights";

pub(super) fn apply(m: &mut OnnxModel, options: &Map<String, Value>) -> Result<Vec<String>> {
    let names: Vec<String> = options
        .get("tensors")
        .and_then(Value::as_str)
        .map(|t| t.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect())
        .unwrap_or_default();
    let mean = match options.get("init").map(|v| v.as_str().unwrap_or_default()) {
        None | Some("mean") => true,
        Some("first") => false,
        Some(other) => return refuse(STEP, format!("--init is mean or first, not `{other}`")),
    };
    let [first, others @ ..] = names.as_slice() else { return refuse(STEP, "--tensors names none") };
    let mut problems: Vec<String> = names
        .iter()
        .filter(|n| m.tensor(n).is_none())
        .map(|n| format!("`{n}` is no stored tensor of floats"))
        .collect();
    for (i, n) in names.iter().enumerate() {
        if names.iter().skip(i + 1).any(|o| o == n) {
            problems.push(format!("`{n}` is named twice"));
        }
    }
    let found: Vec<_> = names.iter().filter_map(|n| Some((n, m.tensor(n)?))).collect();
    if let Some((of, shape)) = found.first().map(|(n, t)| (n, &t.dims)) {
        let unlike = found.iter().filter(|(_, t)| t.dims != *shape);
        problems.extend(unlike.map(|(n, t)| format!("`{n}` has the shape {:?} and `{of}` {shape:?}", t.dims)));
    }
    let tensors: Vec<_> = found.into_iter().map(|(_, t)| t).collect();
    let inside = read_inside(m);
    problems.extend(others.iter().filter(|n| inside.contains(*n)).map(|n| format!("`{n}` is read inside a branch")));
    refuse_all(STEP, problems)?;
    if let Some(mut t) = tensors.first().cloned().filter(|_| mean) {
        for (i, v) in t.values.iter_mut().enumerate() {
            *v = tensors.iter().filter_map(|t| t.values.get(i)).sum::<f64>() / tensors.len() as f64;
        }
        m.put(first, &t);
    }
    let instead: HashMap<String, String> = others.iter().map(|n| (n.clone(), first.clone())).collect();
    rename(m, &instead);
    Ok(vec![format!("{} read `{first}`", others.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "))])
}

/// Lets initializers of equal type, extents and bytes be the first of them. Those that branches read stay.
pub(super) fn dedupe(m: &mut OnnxModel) -> Result<Vec<String>> {
    let inside = read_inside(m);
    let mut known: HashMap<Vec<u8>, String> = HashMap::new();
    let mut instead = HashMap::new();
    for t in m.graph().into_iter().flat_map(|g| &g.initializer).filter(|t| !inside.contains(&t.name)) {
        let mut content = t.clone();
        content.name.clear();
        let first = known.entry(content.encode_to_vec()).or_insert_with(|| t.name.clone());
        if *first != t.name {
            instead.insert(t.name.clone(), first.clone());
        }
    }
    rename(m, &instead);
    Ok(vec![format!("{} tensors have the content of another", instead.len())])
}

/// Tensors that nodes of inner graphs read.
fn read_inside(m: &OnnxModel) -> HashSet<String> {
    let inner = m.nodes().iter().flat_map(|n| &n.attribute).filter_map(|a| a.g.as_ref());
    inner.flat_map(|g| &g.node).flat_map(|n| &n.input).cloned().collect()
}

fn rename(m: &mut OnnxModel, instead: &HashMap<String, String>) {
    let nodes = m.proto.graph.iter_mut().flat_map(|g| &mut g.node);
    for name in nodes.flat_map(|n| &mut n.input) {
        if let Some(first) = instead.get(name) {
            name.clone_from(first);
        }
    }
}
