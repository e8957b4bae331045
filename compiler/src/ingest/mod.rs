//! Model files in, graph and weights out.
//!
//! What enters: a Hugging Face directory, a GGUF file or an ONNX file. What leaves: a verified graph, its weights (read lazily), the
//! tokenizer's text and the settings of generation. Nothing after this module knows which format it was.
#![deny(clippy::indexing_slicing)]

pub mod activation;
mod bind;
mod blocks;
pub mod builder;
mod decoding;
pub mod error;
pub mod file;
pub mod gguf;
pub mod hf;
pub mod limits;
pub mod onnx;
pub mod policy;
mod recipe;
pub mod rope;

pub use error::{Error, Gap, Place, Result};
pub use limits::Limits;
pub use policy::RunPolicy;

use crate::model::Model;
use file::SourceFile;
use std::path::Path;

/// How a model is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// What is accepted at most.
    pub limits: Limits,
    /// Positions that the model is built for; `None`: as many as it has.
    pub context: Option<u64>,
    /// Values that inputs will have. A graph that computes extents from an input can be built for these alone; small
    /// ones are put in as constants.
    pub inputs: Vec<(String, InputValue)>,
    /// Reads every tensor of a directory once, and lets those of equal content be one weight.
    pub dedupe: bool,
    /// How deep a decoder runs.
    pub policy: RunPolicy,
}

/// The value of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputValue {
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// The elements in row-major order.
    pub elements: InputElements,
}

/// Elements of an [`InputValue`].
#[derive(Clone, Debug, PartialEq)]
pub enum InputElements {
    /// Floats.
    Floats(Vec<f32>),
    /// Integers and truth values.
    Ints(Vec<i64>),
}

/// Loads a model with the default limits: a directory in Hugging Face form, a GGUF file or an ONNX file.
///
/// # Errors
/// What is missing, malformed or above a limit; or, for a well-formed model, the list of everything about it that is
/// not supported.
pub fn load(path: impl AsRef<Path>) -> Result<Model> {
    load_with(path.as_ref(), &LoadOptions::default())
}

/// Loads a model as [`load`] does, with these options.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, options: &LoadOptions) -> Result<Model> {
    let refuse = |problem: &str| Err(Error::Format { path: path.to_owned(), problem: problem.into() });
    let meta = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            let problem =
                "there is no such file or directory; give a model's directory, a .gguf or an .onnx file".into();
            Error::Missing { path: path.to_owned(), problem }
        }
        _ => Error::Read { path: path.to_owned(), source },
    })?;
    if meta.is_dir() {
        return hf::load(path, options);
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let file = SourceFile::open(path)?;
    let mut magic = [0; 4];
    let is_gguf = file.len() >= 4 && file.read_into(0, &mut magic).is_ok() && magic == gguf::reader::MAGIC;
    match extension.as_str() {
        "gguf" => gguf::load(path, options),
        _ if is_gguf => gguf::load(path, options),
        "onnx" => onnx::load(path, options),
        "safetensors" | "json" => refuse("is one file of a model; give the directory it lies in"),
        "frit" => refuse("is compiled already; run it as it is"),
        "bin" | "pt" | "pth" | "ckpt" => {
            refuse("is a pickle, which is not read since it can run code; save the model as safetensors")
        }
        _ => refuse(
            "is in no format that is read; give a model's directory in Hugging Face form, a .gguf or an .onnx file",
        ),
    }
}

/// Bounds a decoder's context by what the caller wants.
fn limit_context(context: &mut u64, options: &LoadOptions, path: &Path) -> Result<()> {
    match options.context {
        Some(wanted) if wanted > *context => {
            let problem = format!("has {} positions; {wanted} are asked for", *context);
            let gap = Gap::field("the model", "context", problem, format!("ask for at most {}", *context));
            Err(Error::Unsupported { path: path.to_owned(), gaps: vec![gap] })
        }
        Some(wanted) => {
            *context = wanted.max(1);
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod numerics_tests;
