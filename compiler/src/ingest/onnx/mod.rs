//! ONNX files.
//!
//! The file is read as a whole but for external data, which is read when weights are. The graph is imported node by
//! node; sizes that must be equal or bounded for it to make sense are assumed to be so, and the import starts again
//! under the assumption, until nothing new is assumed. Everything unsupported is reported at once, before a weight is
//! read.

mod context;
mod coordinate;
mod dims;
mod elem;
mod error;
mod external_data;
mod fold;
mod import;
mod node;
mod ops;
mod proto;
mod stock;
mod value;

use super::LoadOptions;
use super::builder::ModelBuilder;
use super::error::{Error, Gap, Result};
use super::file::{ModelDir, SourceFile};
use crate::model::Model;
use bytes::Bytes;
use context::Constants;
use dims::Sizes;
use error::{Report, Stop};
use external_data::ExternalFiles;
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use stock::Stock;

/// Assumptions about sizes, at most.
const ASSUMPTIONS: usize = 256;

/// Loads an ONNX file.
///
/// # Errors
/// A file that is missing or malformed, and the list of everything in it that is not supported.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
    let limits = &options.limits;
    let file = SourceFile::open(path)?;
    if file.len() > limits.onnx_bytes {
        let (value, limit) = (file.len(), limits.onnx_bytes);
        return Err(Error::Limit { path: path.to_owned(), what: "size in bytes".into(), value, limit });
    }
    let bytes = Bytes::from(file.read(0, file.len())?);
    let model = proto::ModelProto::decode(bytes)
        .map_err(|e| file.malformed("the file", format!("is no ONNX model: {e}; it may be cut off or damaged")))?;
    let graph = match &model.graph {
        Some(g) if model.ir_version > 0 => g,
        _ => return Err(file.malformed("the file", "is no ONNX model: it has no graph or no version")),
    };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = ExternalFiles::new(ModelDir::open(parent)?, file.name(), limits.shards);
    let mut stock = Stock::default();
    let mut constants = Constants::new(&mut stock, &mut files, limits);
    let mut sizes = Sizes::default();
    for _ in 0..ASSUMPTIONS {
        let mut m = ModelBuilder::new(&display_name(path));
        m.info.architecture =
            if model.producer_name.is_empty() { "onnx".into() } else { external_data::short(&model.producer_name) };
        let mut report = Report::default();
        let mut stop = Ok(());
        m.graph("forward", |b| {
            stop = import::run(&model, graph, b, &mut constants, &mut sizes, &options.inputs, &mut report)
        });
        match stop {
            Err(Stop::Assume(a)) if sizes.assume(a.clone()) => continue,
            Err(Stop::Assume(a)) => {
                let gap = Gap::file("the model", format!("contradicts itself: {a:?} does not hold"), error::REPAIR);
                return Err(Error::Unsupported { path: path.to_owned(), gaps: vec![gap] });
            }
            _ => {}
        }
        if !report.is_empty() {
            return Err(Error::Unsupported { path: path.to_owned(), gaps: report.gaps() });
        }
        drop(constants);
        m.source(Arc::new(stock));
        return m.finish().map_err(|e| Error::Internal { path: path.to_owned(), problem: e.to_string() });
    }
    let problem = format!("needs more than {ASSUMPTIONS} assumptions about its sizes");
    let gap = Gap::file("the model", problem, "export it with more of its extents fixed or named");
    Err(Error::Unsupported { path: path.to_owned(), gaps: vec![gap] })
}

/// The file's name without its extension; of the usual `model.onnx`, the directory's.
fn display_name(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = real.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = real.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    match (stem.as_str(), parent) {
        ("model" | "", Some(dir)) => dir,
        _ => stem,
    }
}

#[cfg(test)]
mod tests;
