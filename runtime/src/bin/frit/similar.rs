//! `frit diff A B --calib FILE`: how far the answers of two models are apart.

use crate::transform::calibration;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use frit::calibration::Calibration;
use frit::{BackendChoice, model_source};
use frit_compiler::ingest;
use frit_compiler::transform::analyze::metrics;
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::family::Side;
use frit_compiler::transform::{Checkpoint, Tap, capture};
use std::path::Path;

/// The error behind a layer.
#[derive(Clone, Copy, ValueEnum)]
pub enum LayerError {
    /// `‖b − a‖ / ‖a‖`.
    Relative,
    /// Squared distance of the normalised states.
    Pkd,
}

/// Logits, and the states behind each layer where they are known.
struct Answers {
    logits: Dense,
    states: Vec<Dense>,
}

fn answers(path: &Path, tokens: &Calibration) -> Result<Answers> {
    let mut model = ingest::load(path)?;
    let mut names = vec![capture::LOGITS.to_owned()];
    if let Ok(c) = Checkpoint::open(path) {
        if let Ok((_, count)) = c.stack(Side::Only) {
            let taps: Vec<Tap> = (1..=count).map(Tap::Hidden).collect();
            // A model whose layers are not found has its logits compared alone.
            names.extend(capture::mark(&mut model, &c, &taps).unwrap_or_default());
        }
    }
    let loaded = model_source::compiled(&model)?;
    let all = tokens.run(&loaded, &names).with_context(|| path.display().to_string())?;
    let mut values = all.into_iter().map(|c| c.values);
    let logits = values.next().context("no logits")?;
    Ok(Answers { logits, states: values.collect() })
}

pub fn main(
    [old, new]: [&Path; 2],
    calib: &Path,
    metric: LayerError,
    backend: BackendChoice,
    json: bool,
) -> Result<()> {
    let tokens = calibration(calib, old, backend)?;
    let (a, b) = (answers(old, &tokens)?, answers(new, &tokens)?);
    if a.logits.shape != b.logits.shape {
        bail!("logits of the shapes {:?} and {:?} cannot be compared", a.logits.shape, b.logits.shape);
    }
    let (divergence, agreement) =
        (metrics::logit_divergence(&a.logits, &b.logits), metrics::top_agreement(&a.logits, &b.logits));
    // With unlike numbers of layers each of B's is compared with the one of A at the same share of the depth.
    let (la, lb) = (a.states.len(), b.states.len());
    let layers: Vec<(usize, usize, f64)> = (0..if la == 0 { 0 } else { lb })
        .map(|i| ((i + 1) * la / lb.max(1), i + 1))
        .filter(|(i, j)| *i > 0 && a.states[i - 1].shape == b.states[j - 1].shape)
        .map(|(i, j)| {
            let (x, y) = (&a.states[i - 1], &b.states[j - 1]);
            let error = match metric {
                LayerError::Relative => metrics::relative_error(x, y),
                LayerError::Pkd => metrics::pkd(x, y),
            };
            (i - 1, j - 1, error)
        })
        .collect();
    let error = metrics::relative_error(&a.logits, &b.logits);
    if json {
        let rows: Vec<_> =
            layers.iter().map(|(i, j, e)| serde_json::json!({ "old": i, "new": j, "error": e })).collect();
        let report = serde_json::json!({
            "tokens": a.logits.rows(), "logit_kl": divergence, "top1_agreement": agreement,
            "logit_error": error, "layers": rows,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("{} tokens", a.logits.rows());
    println!("logit divergence   {divergence:.6} nats, from the first model to the second");
    println!("same top token     {:.1} %", 100.0 * agreement);
    println!("logit error        {error:.3e}");
    for (i, j, e) in layers {
        println!("behind layer {i:3} and {j:3}  {e:.3e}");
    }
    Ok(())
}
