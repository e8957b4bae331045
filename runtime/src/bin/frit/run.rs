//! `frit run`.

use crate::expect::compare;
use crate::model::{self, Progress};
use anyhow::{Context, Result, anyhow, bail};
use frit::tokenizer::Tokenizer;
use frit::{BackendChoice, Session, npz};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, an .onnx, a .gguf or a .frit file.
    model: PathBuf,
    /// An .npz file with the model's inputs by name.
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// A text, for models that read `input_ids`; may be given more than once.
    #[arg(long, conflicts_with = "inputs")]
    text: Vec<String>,
    /// Where the outputs are written, as .npz; not needed where what ran is asked for.
    #[arg(long, required_unless_present_any = ["stats", "json", "expect"])]
    output: Option<PathBuf>,
    /// An .npz file with what the outputs have to be, by name; fails where one is further off. Rows whose `attention_mask` is
    /// 0 are not compared.
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// How far an output may be from --expect, of its largest magnitude or 1.
    #[arg(long, default_value_t = 1e-3, requires = "expect")]
    tolerance: f64,
    /// auto, cpu, wgpu or cuda.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    policy: crate::policy::Policy,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    devices: crate::devices::Devices,
    /// Print what ran: layers, feed-forward parts, exits.
    #[arg(long, value_name = "FORM", value_parser = ["json"])]
    stats: Option<String>,
    /// Print a JSON object about the run.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let progress = Progress::new();
    let mut inputs = match &a.inputs {
        Some(f) => npz::read(f)?,
        None => Vec::new(),
    };
    #[cfg(feature = "compiler")]
    let steered = match a.policy.open(&a.model, a.devices.options(), &progress)? {
        None => a.devices.open(&a.model, &progress)?,
        some => some,
    };
    #[cfg(not(feature = "compiler"))]
    let steered = None;
    let loaded = steered.map_or_else(|| model::open_for(&a.model, &inputs, &progress), Ok)?;
    if !a.text.is_empty() {
        let tokenizer = Tokenizer::of(&loaded.plan.model)?
            .with_context(|| format!("{} has no tokenizer, so that it cannot read texts", a.model.display()))?;
        let texts: Vec<&str> = a.text.iter().map(String::as_str).collect();
        inputs = frit::embed::batch(&tokenizer, &texts)?;
    }
    let mut session = Session::builder().backend(a.backend).progress(|s| progress.stage(s)).open(&loaded)?;
    #[cfg(feature = "compiler")]
    a.policy.steer(&mut session)?;
    progress.clear();
    let start = std::time::Instant::now();
    let outputs = session.run(&inputs).map_err(|e| match (&e, inputs.is_empty()) {
        (frit::Error::Inputs(_), true) => anyhow!("{e}\nhint: --inputs FILE or --text TEXT"),
        _ => e.into(),
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(output) = &a.output {
        let arrays: Vec<(&str, npz::Array<'_>)> =
            outputs.iter().map(|(n, t)| (n.as_str(), npz::Array::Tensor(t))).collect();
        npz::write(output, &arrays)?;
        outputs.iter().for_each(|(n, t)| model::written(n, t.shape(), output));
    }
    if a.stats.is_some() && !a.json {
        println!("{}", serde_json::to_string_pretty(session.stats())?);
    }
    let compared = match &a.expect {
        Some(file) => compare(&npz::read(file)?, &outputs, &inputs)?,
        None => Vec::new(),
    };
    if a.json {
        let shapes: serde_json::Map<String, serde_json::Value> =
            outputs.iter().map(|(n, t)| (n.clone(), serde_json::json!(t.shape()))).collect();
        let mut report = serde_json::json!({
            "backend": session.backend(), "device": session.device(), "seconds": seconds,
            "outputs": shapes, "counters": session.counters(), "compared": compared,
        });
        if let (Some(_), Some(report)) = (&a.stats, report.as_object_mut()) {
            report.insert("stats".into(), serde_json::to_value(session.stats())?);
        }
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for c in &compared {
            println!("{:20} {:.2e} off, the largest is {:.2e}", c.name, c.max_difference, c.magnitude);
        }
    }
    let far: Vec<&str> = compared.iter().filter(|c| !c.is_within(a.tolerance)).map(|c| c.name.as_str()).collect();
    if !far.is_empty() {
        bail!("{}: not what is expected within {:e}", far.join(", "), a.tolerance);
    }
    Ok(())
}
