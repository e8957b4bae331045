//! Opening a model for a verb: the default model, progress on a terminal.

use anyhow::{Result, bail};
use frit::{LoadedModel, Stage, Tensor, model_source};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

/// The model named, or the demo model of the project.
pub fn path(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(p) = named {
        return Ok(p.to_owned());
    }
    let local = Path::new("fixtures/lexicon");
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/lexicon");
    match [local.to_owned(), built].into_iter().find(|p| p.is_dir()) {
        Some(p) => Ok(p),
        None => {
            bail!("no model was named, and there is no fixtures/lexicon here\nhint: frit generate MODEL --prompt TEXT")
        }
    }
}

/// A number of bytes with a unit, as in 48KiB, that option `of` was given.
#[cfg(feature = "compiler")]
pub fn parse_bytes(of: &str, text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: Option<u64> = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "kib" | "k" => Some(1 << 10),
        "mb" => Some(1_000_000),
        "mib" | "m" => Some(1 << 20),
        "gb" => Some(1_000_000_000),
        "gib" | "g" => Some(1 << 30),
        _ => None,
    };
    match number.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f)) {
        Some(n) => Ok(n),
        None => bail!("`{text}` is no size\nhint: {of} 48KiB"),
    }
}

/// Progress on standard error, when that is a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg:10} {bar:32} {bytes}/{total_bytes}") {
            bar.set_style(style);
        }
        Progress(bar)
    }
    pub fn stage(&self, s: Stage) {
        match s {
            Stage::Open => self.0.set_message("reading"),
            Stage::Compile => self.0.set_message("compiling"),
            Stage::Weights(done, all) => {
                self.0.set_message("weights");
                self.0.set_length(all);
                self.0.set_position(done);
            }
        }
    }
    #[cfg(feature = "compiler")]
    pub fn say(&self, what: &'static str) {
        self.0.set_message(what);
        self.0.tick();
    }
    pub fn steps(&self, what: &'static str, done: u64, all: u64) {
        self.0.set_message(what);
        self.0.set_length(all);
        self.0.set_position(done);
    }
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// Opens or compiles a model.
pub fn open(path: &Path, progress: &Progress) -> Result<LoadedModel> {
    Ok(heard(model_source::open(path, &mut |s| progress.stage(s))?))
}

/// Opens or compiles a model to be run on these inputs.
pub fn open_for(path: &Path, inputs: &[(String, Tensor)], progress: &Progress) -> Result<LoadedModel> {
    Ok(heard(model_source::open_for(path, inputs, &mut |s| progress.stage(s))?))
}

/// The model, once standard error has what validation found wrong in it.
pub fn heard(loaded: LoadedModel) -> LoadedModel {
    let wrong = loaded.plan.report.validation.dropped.iter();
    wrong.for_each(|d| eprintln!("warning: validation: {d}\nhint: please report the model"));
    loaded
}

/// Says on standard error what went to a file.
pub fn written(name: &str, shape: &[u64], file: &Path) {
    eprintln!("{name} {shape:?} -> {}", file.display());
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..1000 => format!("{n} B"),
        1000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
