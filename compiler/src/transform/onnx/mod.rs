//! Edits of ONNX files: weights of convolutions folded, merged and tied by the names of their initializers.
//!
//! A file has no roles of tensors, so that what goes by layer, head or neuron is refused here and done on the model's
//! directory before it is exported. Nodes that are not touched are written back as they were read; what no loader reads
//! (documentation, recorded shapes of intermediate values) is left out.

mod chains;
mod fold;
mod merge;
mod tie;

use super::error::{Error, Result, refuse, refuse_all};
use super::save::Partial;
use crate::ingest;
use crate::ingest::Limits;
use crate::ingest::file::SourceFile;
use crate::ingest::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_type};
use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name and purpose of every edit of ONNX files.
pub const ONNX_STEPS: &[(&str, &str)] = &[
    ("fold-batch-norms", "batch norms go into the convolutions in front of them, unless other nodes use the weight"),
    ("merge-convs", "convolutions with nothing in between become one, where that is exact"),
    ("dedupe-weights", "tensors of equal content share one buffer"),
    ("share-weights", "tensors become one: --tensors A,B,… --init mean|first"),
];

/// `FLOAT` of the format's element types.
const FLOAT: i32 = 1;

/// A file in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxModel {
    path: PathBuf,
    proto: ModelProto,
}

/// A tensor's extents and elements.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    dims: Vec<usize>,
    values: Vec<f64>,
}

impl OnnxModel {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that is missing, too large, damaged, or has what would be lost in writing.
    pub fn open(path: &Path) -> Result<OnnxModel> {
        let limits = Limits::default();
        let file = SourceFile::open(path)?;
        if file.len() > limits.onnx_bytes {
            let (value, limit) = (file.len(), limits.onnx_bytes);
            let what = "size in bytes".into();
            return Err(ingest::Error::Limit { path: path.to_owned(), what, value, limit }.into());
        }
        let damaged = |problem: String| Error::from(file.malformed("the file", problem));
        let proto = ModelProto::decode(Bytes::from(file.read(0, file.len())?))
            .map_err(|e| damaged(format!("is no ONNX model: {e}; it may be cut off or damaged")))?;
        let Some(graph) = proto.graph.as_ref().filter(|_| proto.ir_version > 0) else {
            return Err(damaged("is no ONNX model: it has no graph or no version".into()));
        };
        let mut lost = Vec::new();
        losses(graph, &mut lost);
        if !proto.functions.is_empty() {
            lost.push("functions of its own".to_owned());
        }
        if !lost.is_empty() {
            lost.dedup();
            return Err(Error::Output {
                path: path.to_owned(),
                problem: format!("cannot be edited: it has {}; store the model without", lost.join(", ")),
            });
        }
        Ok(OnnxModel { path: path.to_owned(), proto })
    }

    /// Writes the file, whole or not at all. The place must be free.
    ///
    /// # Errors
    /// A place that is taken, and what the operating system refuses.
    pub fn save(&self, to: &Path) -> Result<()> {
        let partial = Partial::of(to)?;
        let write = || {
            let mut file = fs::File::create_new(partial.path())?;
            file.write_all(&self.proto.encode_to_vec())?;
            file.sync_all()
        };
        write().map_err(|source| Error::Write { path: to.to_owned(), source })?;
        partial.finish()
    }

    /// Applies an edit by its name and says what it did, one line each. After an error nothing is changed.
    ///
    /// # Errors
    /// A name that is not in [`ONNX_STEPS`], options that it does not have, and everything that stands in its way.
    pub fn apply(&mut self, name: &str, options: &Map<String, Value>) -> Result<Vec<String>> {
        let known: &[&str] = if name == "share-weights" { &["tensors", "init"] } else { &[] };
        let exists = ONNX_STEPS.iter().any(|(n, _)| *n == name);
        if let Some(other) = options.keys().find(|k| exists && !known.contains(&k.as_str())) {
            return Err(Error::Recipe { at: format!(" ({name})"), problem: format!("unknown field `{other}`") });
        }
        let mut edited = self.clone();
        let changes = match name {
            "fold-batch-norms" => fold::apply(&mut edited),
            "merge-convs" => merge::apply(&mut edited),
            "dedupe-weights" => tie::dedupe(&mut edited),
            "share-weights" => tie::apply(&mut edited, options),
            _ => {
                let here: Vec<&str> = ONNX_STEPS.iter().map(|(n, _)| *n).collect();
                refuse(
                    name,
                    format!(
                        "{} is an ONNX file, whose tensors have no roles; {} edit such files, every other transform a Hugging Face directory, before it is exported",
                        self.path.display(),
                        here.join(", ")
                    ),
                )
            }
        }?;
        edited.sweep();
        *self = edited;
        Ok(changes)
    }

    /// Bytes of its initializers.
    pub fn weight_bytes(&self) -> u64 {
        let elements = |t: &TensorProto| t.dims.iter().map(|d| d.unsigned_abs()).product::<u64>();
        self.graph().map_or(0, |g| g.initializer.iter().map(|t| 4 * elements(t)).sum())
    }

    fn graph(&self) -> Option<&GraphProto> {
        self.proto.graph.as_ref()
    }
    fn nodes(&self) -> &[NodeProto] {
        self.graph().map_or(&[], |g| g.node.as_slice())
    }
    fn node_mut(&mut self, i: usize) -> Option<&mut NodeProto> {
        self.proto.graph.as_mut().and_then(|g| g.node.get_mut(i))
    }
    /// How often every value is used: as an operand of nodes, those of branches included, or as an output.
    fn uses(&self) -> HashMap<String, usize> {
        let mut uses = HashMap::new();
        if let Some(g) = self.graph() {
            count_uses(g, &mut uses);
        }
        uses
    }
    /// A float initializer.
    fn tensor(&self, name: &str) -> Option<Tensor> {
        let t = self.graph()?.initializer.iter().find(|t| t.name == name && t.data_type == FLOAT)?;
        let dims = t.dims.iter().map(|d| usize::try_from(*d)).collect::<Result<Vec<_>, _>>().ok()?;
        let values: Vec<f64> = match &t.raw_data {
            Some(raw) => raw.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            None => t.float_data.iter().map(|v| f64::from(*v)).collect(),
        };
        (dims.iter().product::<usize>() == values.len()).then_some(Tensor { dims, values })
    }
    /// Sets or adds a float initializer; numbers are rounded once.
    fn put(&mut self, name: &str, t: &Tensor) {
        let raw: Vec<u8> = t.values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        let made = TensorProto {
            name: name.into(),
            dims: t.dims.iter().map(|d| *d as i64).collect(),
            data_type: FLOAT,
            raw_data: Some(raw.into()),
            ..Default::default()
        };
        if let Some(g) = self.proto.graph.as_mut() {
            match g.initializer.iter_mut().find(|t| t.name == name) {
                Some(known) => *known = made,
                None => g.initializer.push(made),
            }
        }
    }
    /// A name that nothing has.
    fn free_name(&self, stem: &str) -> String {
        let Some(g) = self.graph() else { return stem.into() };
        let taken = |n: &str| {
            g.initializer.iter().any(|t| t.name == n)
                || g.input.iter().any(|i| i.name == n)
                || g.node.iter().any(|x| x.output.iter().chain(&x.input).any(|v| v == n))
        };
        let mut name = stem.to_owned();
        let mut count = 1;
        while taken(&name) {
            count += 1;
            name = format!("{stem}_{count}");
        }
        name
    }
    /// Removes initializers that nothing reads.
    fn sweep(&mut self) {
        let uses = self.uses();
        if let Some(g) = self.proto.graph.as_mut() {
            g.initializer.retain(|t| uses.contains_key(&t.name));
            let kept: Vec<String> = g.initializer.iter().map(|t| t.name.clone()).collect();
            // Old versions list initializers among the inputs as well.
            g.input.retain(|i| uses.contains_key(&i.name) || kept.contains(&i.name));
        }
    }
}

fn count_uses(g: &GraphProto, uses: &mut HashMap<String, usize>) {
    let mut see = |name: &String| *uses.entry(name.clone()).or_default() += 1;
    g.node.iter().flat_map(|n| &n.input).for_each(&mut see);
    g.output.iter().map(|o| &o.name).for_each(&mut see);
    for inner in g.node.iter().flat_map(|n| &n.attribute).filter_map(|a| a.g.as_ref()) {
        count_uses(inner, uses);
    }
}

/// What of a graph would be lost in writing it.
fn losses(g: &GraphProto, lost: &mut Vec<String>) {
    if !g.sparse_initializer.is_empty() {
        lost.push("sparse tensors".into());
    }
    for t in &g.initializer {
        if t.data_location != 0 || !t.external_data.is_empty() {
            lost.push("weights in other files".into());
        }
        if t.data_type == 8 {
            lost.push("tensors of text".into());
        }
    }
    for i in g.input.iter().chain(&g.output) {
        if i.r#type.as_ref().is_some_and(|t| t.tensor_type.is_none()) {
            lost.push(format!("the value `{}`, which is no tensor", i.name));
        }
    }
    for n in &g.node {
        for a in &n.attribute {
            if !(attribute_type::FLOAT..=8).contains(&a.r#type) {
                lost.push(format!("the attribute `{}` of {} in a form that is not written", a.name, n.op_type));
            }
            if let Some(inner) = &a.g {
                losses(inner, lost);
            }
        }
    }
}

/// The attributes of a convolution.
pub(crate) struct ConvAttributes {
    pads: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    groups: i64,
    is_padded_by_rule: bool,
}

impl ConvAttributes {
    fn of(n: &NodeProto, axes: usize) -> ConvAttributes {
        let find = |name: &str| n.attribute.iter().find(|a| a.name == name);
        let ints = |name: &str, len: usize, usual: i64| match find(name) {
            Some(a) if a.ints.len() == len => a.ints.clone(),
            _ => vec![usual; len],
        };
        let rule = find("auto_pad").map(|a| a.s.to_vec()).unwrap_or_default();
        ConvAttributes {
            pads: ints("pads", 2 * axes, 0),
            strides: ints("strides", axes, 1),
            dilations: ints("dilations", axes, 1),
            groups: find("group").map_or(1, |a| a.i),
            is_padded_by_rule: !matches!(rule.as_slice(), b"" | b"NOTSET" | b"VALID"),
        }
    }
}

fn ints(name: &str, v: Vec<i64>) -> AttributeProto {
    AttributeProto { name: name.into(), ints: v, r#type: attribute_type::INTS, ..Default::default() }
}

/// Applies `edit` at every node, again where it changed something. It says what it did, or why the place stays, or `None`
/// where it does not concern the node.
///
/// # Errors
/// Nothing was changed: why each place stays, or `none` where there is no place.
fn wherever(
    m: &mut OnnxModel,
    step: &str,
    none: &str,
    edit: fn(&mut OnnxModel, usize) -> Option<std::result::Result<String, String>>,
) -> Result<Vec<String>> {
    let (mut changes, mut kept) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < m.nodes().len() {
        match edit(m, at) {
            Some(Ok(line)) => changes.push(line),
            Some(Err(why)) => {
                kept.push(why);
                at += 1;
            }
            None => at += 1,
        }
    }
    if changes.is_empty() {
        if kept.is_empty() {
            kept.push(none.into());
        }
        refuse_all(step, kept)?;
    } else {
        changes.extend(kept.into_iter().map(|why| format!("kept: {why}")));
    }
    Ok(changes)
}

fn called(n: &NodeProto) -> String {
    if n.name.is_empty() { n.output.first().cloned().unwrap_or_default() } else { n.name.clone() }
}
