//! From a path to a plan and its weights: an artifact, or a model that is compiled now. The one place that knows the
//! compiler.

#[cfg(feature = "compiler")]
use crate::tensor::Data;
use crate::{Error, Result, Tensor};
use frit_plan::format::FritFile;
use frit_plan::{Plan, TensorSource};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// What the host is told while a model is made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Files are opened and their tables read.
    Open,
    /// The graph is compiled.
    Compile,
    /// Weights are read and brought to the device: bytes done, bytes in all.
    Weights(u64, u64),
}

/// A plan and where its tensors are.
#[derive(Clone)]
pub struct LoadedModel {
    /// The compiled model.
    pub plan: Arc<Plan>,
    /// Its stored tensors.
    pub weights: Arc<dyn TensorSource>,
    /// The open artifact, when it was one.
    pub artifact: Option<Arc<FritFile>>,
}

/// Opens `path`: a `.frit` file, or with the feature `compiler` a Hugging Face directory or a `.gguf` file.
///
/// # Errors
/// A file that is missing, damaged or not supported.
pub fn open(path: &Path, progress: &mut dyn FnMut(Stage)) -> Result<LoadedModel> {
    open_for(path, &[], progress)
}

/// Opens as [`open`] does. A model whose extents depend on the values of its inputs is compiled for these values, and
/// is right for no others.
///
/// # Errors
/// As [`open`].
pub fn open_for(path: &Path, inputs: &[(String, Tensor)], progress: &mut dyn FnMut(Stage)) -> Result<LoadedModel> {
    progress(Stage::Open);
    let exists = std::fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    if exists.is_file() && is_artifact(path) {
        let file = Arc::new(FritFile::open(path)?);
        return Ok(LoadedModel { plan: Arc::clone(file.plan()), weights: file.clone(), artifact: Some(file) });
    }
    compile(path, inputs, progress)
}

/// Whether a file is to be read as an artifact: by its extension, else by its content.
pub fn is_artifact(path: &Path) -> bool {
    if path.extension().is_some_and(|e| e == "frit") {
        return true;
    }
    let mut head = [0u8; 64];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head));
    let mark = b"\"frit.version\"";
    read.is_ok() && head.windows(mark.len()).any(|w| w == mark)
}

#[cfg(feature = "compiler")]
fn compile(path: &Path, inputs: &[(String, Tensor)], progress: &mut dyn FnMut(Stage)) -> Result<LoadedModel> {
    use frit_compiler::ingest::{self, InputElements, InputValue, LoadOptions};
    let model = ingest::load(path).or_else(|general| {
        let value = |t: &Tensor| InputValue {
            shape: t.shape().to_vec(),
            elements: match t.data() {
                Data::F32(v) => InputElements::Floats(v.clone()),
                Data::I32(v) => InputElements::Ints(v.iter().map(|x| i64::from(*x)).collect()),
            },
        };
        match (&general, inputs.is_empty()) {
            (ingest::Error::Unsupported { .. }, false) => {
                let inputs = inputs.iter().map(|(n, t)| (n.clone(), value(t))).collect();
                ingest::load_with(path, &LoadOptions { inputs, ..LoadOptions::default() }).map_err(|_| general)
            }
            _ => Err(general),
        }
    });
    let model = model.map_err(frit_compiler::Error::from)?;
    progress(Stage::Compile);
    compiled(&model)
}

/// A model made with the typed builder, compiled for every backend.
///
/// # Errors
/// A graph that no kernel can express.
#[cfg(feature = "compiler")]
pub fn compiled(model: &frit_compiler::Model) -> Result<LoadedModel> {
    let plan = frit_compiler::Compiler::default().compile(model)?;
    Ok(LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None })
}

/// Compiles the model at `path` with options of one's own.
///
/// # Errors
/// As [`open`].
#[cfg(feature = "compiler")]
pub fn compile_with(
    path: &Path,
    options: frit_compiler::CompileOptions,
    progress: &mut dyn FnMut(Stage),
) -> Result<LoadedModel> {
    compile_as(path, &frit_compiler::ingest::LoadOptions::default(), options, progress)
}

/// Compiles the model at `path` as [`compile_with`] does, loaded with options of one's own.
///
/// # Errors
/// As [`open`].
#[cfg(feature = "compiler")]
pub fn compile_as(
    path: &Path,
    load: &frit_compiler::ingest::LoadOptions,
    options: frit_compiler::CompileOptions,
    progress: &mut dyn FnMut(Stage),
) -> Result<LoadedModel> {
    progress(Stage::Open);
    let model = frit_compiler::ingest::load_with(path, load).map_err(frit_compiler::Error::from)?;
    progress(Stage::Compile);
    let plan = frit_compiler::Compiler::new(options).compile(&model)?;
    Ok(LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None })
}

#[cfg(not(feature = "compiler"))]
fn compile(path: &Path, _inputs: &[(String, Tensor)], _progress: &mut dyn FnMut(Stage)) -> Result<LoadedModel> {
    Err(Error::NeedsCompiler { path: path.to_owned() })
}
