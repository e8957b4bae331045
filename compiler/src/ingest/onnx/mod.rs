//! ONNX files.
//!
//! The file is read as a whole but for external data, which is read when weights are. The graph is imported node by
//! node; sizes that must be equal or bounded for it to make sense are assumed to be so, and the import starts again
//! under the assumption, until nothing new is assumed. Everything unsupported is reported at once, before a weight is
//! read.

mod blocks;
mod context;
mod coordinate;
mod decoder;
mod dims;
mod elem;
mod error;
mod external_data;
mod fold;
mod import;
mod integers;
mod node;
mod ops;
pub(crate) mod proto;
mod stock;
mod text;
mod value;

use super::LoadOptions;
use super::builder::ModelBuilder;
use super::decoding::{self, GenerationRules, Phase};
use super::error::{Error, Gap, Result};
use super::file::{ModelDir, SourceFile};
use crate::model::Model;
use bytes::Bytes;
use context::Constants;
use dims::Sizes;
use error::{Report, Res, Stop};
use external_data::ExternalFiles;
use frit_plan::{Task, sizes};
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
    if options.dedupe {
        constants.dedupe();
    }
    let text = text::read(parent, limits)?;
    let name = display_name(path);
    let import = Import { model: &model, graph, name, context: text.context, rules: &text.settings.rules, options };
    let (interface, obstacle) = match decoder::interface(graph) {
        Ok(found) => (found, None),
        Err(obstacle) => (None, Some(obstacle)),
    };
    let first = import.settle(interface.as_ref(), &mut constants);
    let (made, obstacle) = match (first, &interface) {
        // A decoder whose cache cannot be kept is still a graph.
        (Err(gaps), Some(_)) => {
            let obstacle = gaps.first().map(|g| g.problem.clone());
            (import.settle(None, &mut constants), obstacle)
        }
        (made, _) => (made, obstacle),
    };
    drop(constants);
    let mut m = made.map_err(|gaps| Error::Unsupported { path: path.to_owned(), gaps })?;
    m.info.cache_obstacle = obstacle;
    m.info.rules = text.settings.rules.for_host();
    (m.info.tokenizer, m.info.eos, m.info.bos) = (text.settings.tokenizer, text.settings.eos, text.settings.bos);
    m.source(Arc::new(stock));
    m.finish().map_err(|e| Error::Internal { path: path.to_owned(), problem: e.to_string() })
}

/// A file that is imported, perhaps several times.
struct Import<'a> {
    model: &'a proto::ModelProto,
    graph: &'a proto::GraphProto,
    name: String,
    context: u64,
    rules: &'a GenerationRules,
    options: &'a LoadOptions,
}

impl<'a> Import<'a> {
    /// Imports until nothing new is assumed of sizes: the file's own graph, and those of a decoder.
    ///
    /// # Errors
    /// Everything that is not supported.
    fn settle(
        &self,
        decoder: Option<&decoder::Interface>,
        constants: &mut Constants<'a>,
    ) -> std::result::Result<ModelBuilder, Vec<Gap>> {
        let mut own = Sizes::default();
        let mut decoders = decoder.map(decoder::Interface::sizes).unwrap_or_default();
        for _ in 0..ASSUMPTIONS {
            let mut m = ModelBuilder::new(&self.name);
            m.rules.clone_from(self.rules);
            let producer = &self.model.producer_name;
            m.info.architecture = if producer.is_empty() { "onnx".into() } else { external_data::short(producer) };
            let mut report = Report::default();
            let mut stop = self.run(&mut m, "forward", &[], &[], constants, &mut own, None, &mut report);
            let mut settled = &mut own;
            if let (Some(interface), Ok(())) = (decoder, &stop) {
                settled = &mut decoders;
                stop = self.decoder(&mut m, interface, constants, settled, &mut report);
            }
            match stop {
                Err(Stop::Assume(a)) if settled.assume(a.clone()) => continue,
                Err(Stop::Assume(a)) => {
                    let problem = format!("contradicts itself: {a:?} does not hold");
                    return Err(vec![Gap::file("the model", problem, error::REPAIR)]);
                }
                _ => {}
            }
            return if report.is_empty() { Ok(m) } else { Err(report.gaps()) };
        }
        let problem = format!("needs more than {ASSUMPTIONS} assumptions about its sizes");
        Err(vec![Gap::file("the model", problem, "export it with more of its extents fixed or named")])
    }

    fn decoder(
        &self,
        m: &mut ModelBuilder,
        interface: &decoder::Interface,
        constants: &mut Constants<'a>,
        sizes: &mut Sizes,
        report: &mut Report,
    ) -> Res<()> {
        decoding::declare_sizes(m, None, self.context);
        let slots = interface.slots(m);
        let role = |phase| Some(decoder::Role { interface, slots: &slots, phase });
        m.info.task = Task::Decoder;
        m.info.context = self.context;
        m.info.layers = u32::try_from(interface.layers()).unwrap_or(u32::MAX);
        let (one, few) = ([(sizes::TOKENS, 1)], [(sizes::BATCH, 4)]);
        self.run(m, "prefill", &[], &[], constants, sizes, role(Phase::Prefill), report)?;
        self.run(m, "decode", &one, &few, constants, sizes, role(Phase::Decode), report)?;
        self.run(m, "decode_wide", &one, &[], constants, sizes, role(Phase::Decode), report)
    }

    fn run(
        &self,
        m: &mut ModelBuilder,
        name: &str,
        fixed: &[(&str, u64)],
        at_most: &[(&str, u64)],
        constants: &mut Constants<'a>,
        sizes: &mut Sizes,
        role: Option<decoder::Role<'_>>,
        report: &mut Report,
    ) -> Res<()> {
        let mut stop = Ok(());
        let given = &self.options.inputs;
        m.graph_with(name, fixed, at_most, |b| {
            stop = import::run(self.model, self.graph, b, constants, sizes, given, role, report);
        });
        stop
    }
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
