//! `frit embed`.

use crate::model::{self, Progress};
use anyhow::{Context, Result, bail};
use frit::embed::{Pool, Pooling};
use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, Session, npz};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, an .onnx or a .frit file of a model that gives `last_hidden_state`.
    model: PathBuf,
    /// A text; may be given more than once.
    #[arg(long)]
    text: Vec<String>,
    /// A file with one text a line.
    #[arg(long)]
    file: Option<PathBuf>,
    /// How rows become one, instead of what the directory declares: cls, max, mean, mean_sqrt, weighted or last.
    #[arg(long)]
    pooling: Option<Pool>,
    /// Bring vectors to length 1 even if the directory does not say so.
    #[arg(long)]
    normalize: bool,
    /// Texts that are run together.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Where the vectors are written, as `embeddings`.
    #[arg(long)]
    npz: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
}

pub fn main(a: &Args) -> Result<()> {
    let mut texts = a.text.clone();
    if let Some(file) = &a.file {
        let all = std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
        texts.extend(all.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned));
    }
    if texts.is_empty() {
        bail!("there is no text\nhint: --text TEXT, or --file FILE with one text a line");
    }
    let dir = if a.model.is_dir() { a.model.clone() } else { a.model.parent().map(PathBuf::from).unwrap_or_default() };
    let mut pooling = Pooling::of_dir(&dir)?;
    if let Some(pool) = a.pooling {
        pooling.pools = vec![pool];
    }
    pooling.normalize |= a.normalize;
    let progress = Progress::new();
    let loaded = model::open(&a.model, &progress)?;
    let mut tokenizer = Tokenizer::of(&loaded.plan.model)?
        .with_context(|| format!("{} has no tokenizer, so that it cannot read texts", a.model.display()))?;
    let context = usize::try_from(loaded.plan.model.context).ok().filter(|n| *n > 0);
    if let Some(most) = pooling.max_tokens.into_iter().chain(context).min() {
        tokenizer.truncate(most)?;
    }
    let mut session = Session::builder().backend(a.backend).progress(|s| progress.stage(s)).open(&loaded)?;
    progress.clear();
    let all: Vec<&str> = texts.iter().map(String::as_str).collect();
    let rows = session.embed(&tokenizer, &pooling, &all, a.batch)?;
    let width = rows.first().map_or(0, Vec::len);
    if let Some(file) = &a.npz {
        let flat: Vec<f32> = rows.iter().flatten().copied().collect();
        let tensor = frit::Tensor::f32(&[rows.len() as u64, width as u64], flat)?;
        npz::write(file, &[("embeddings", npz::Array::Tensor(&tensor))])?;
    }
    if a.json {
        let report = serde_json::json!({
            "backend": session.backend(), "device": session.device(), "dimension": width, "embeddings": rows,
        });
        println!("{report}");
    } else if a.npz.is_none() {
        for row in &rows {
            let numbers: Vec<String> = row.iter().map(|v| format!("{v:.6}")).collect();
            println!("{}", numbers.join(" "));
        }
    }
    Ok(())
}
