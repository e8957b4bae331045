//! `frit analyze`.

use crate::transform::calibration;
use anyhow::{Context, Result};
use clap::ValueEnum;
use frit::BackendChoice;
use frit_compiler::transform::{Aid, Checkpoint, Metric};
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// How much each layer matters.
    Layers,
    /// How much each layer's attention differs from that of the layer before.
    Attention,
}

#[derive(clap::Args)]
pub struct Args {
    /// What is measured.
    what: What,
    /// A Hugging Face directory or a GGUF file.
    model: PathBuf,
    /// Calibration tokens: lines of token ids, lines of text, or an .npz with `input_ids`.
    #[arg(long)]
    calib: PathBuf,
    /// cosine, cka, linearity, npib, macro-influence, js-attn, angular-kv, norm-ratio or pkd.
    #[arg(long)]
    metric: Option<String>,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&a.model)?;
    let calibration = calibration(&a.calib, &a.model, a.backend)?;
    let metric: Metric = match (&a.metric, a.what) {
        (Some(name), _) => {
            serde_json::from_value(serde_json::json!(name)).with_context(|| format!("--metric {name}"))?
        }
        (None, What::Layers) => Metric::Cosine,
        (None, What::Attention) => Metric::JsAttn,
    };
    let scores = Aid { activations: Some(&calibration) }.importance(&checkpoint, metric)?;
    let tokens: usize = calibration.sequences.iter().map(Vec::len).sum();
    if a.json {
        let report = serde_json::json!({ "metric": metric.name(), "tokens": tokens, "layers": scores });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("{} over {tokens} tokens, low for layers that matter little", metric.name());
    for (i, s) in scores.iter().enumerate() {
        if s.is_nan() { println!("{i:5}  -") } else { println!("{i:5}  {s:.6}") }
    }
    Ok(())
}
