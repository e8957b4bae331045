//! `frit compile`.

#[cfg(not(feature = "compiler"))]
use crate::model;
use crate::model::{Progress, bytes};
use anyhow::{Result, bail};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, an .onnx or a .gguf file.
    model: PathBuf,
    /// The artifact to write.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Search for the rewrite or fusion that makes a command fail; `{}` in it stands for the artifact.
    #[cfg(feature = "compiler")]
    #[arg(long, value_name = "CMD", conflicts_with = "json")]
    bisect: Option<String>,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    switches: crate::switches::Switches,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    policy: crate::policy::Policy,
    /// Print a JSON object about the artifact.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let progress = Progress::new();
    #[cfg(feature = "compiler")]
    if let Some(command) = &a.bisect {
        let (model, policy, options) = (a.model.as_path(), &a.policy, a.switches.options()?);
        return crate::bisect::Search { model, policy, options, command, progress: &progress }.run();
    }
    let Some(output) = &a.output else {
        bail!("no artifact is named\nhint: frit compile {} --output x.frit", a.model.display())
    };
    let start = std::time::Instant::now();
    #[cfg(feature = "compiler")]
    let loaded = match a.policy.open(&a.model, a.switches.options()?, &progress)? {
        Some(loaded) => {
            progress.clear();
            a.switches.check(&loaded.plan)?;
            loaded
        }
        None => a.switches.open(&a.model, &progress)?,
    };
    #[cfg(not(feature = "compiler"))]
    let loaded = model::open(&a.model, &progress)?;
    let compiled = start.elapsed().as_secs_f64();
    let written =
        frit_plan::format::write(output, &loaded.plan, &*loaded.weights, &mut |d, n| progress.steps("writing", d, n))?;
    progress.clear();
    if a.json {
        let report = serde_json::json!({
            "file": output, "file_bytes": written.file_bytes, "tensor_bytes": written.tensor_bytes,
            "tensors": written.tensors, "aliases": written.aliases, "kernels": loaded.plan.kernels.len(),
            "compile_seconds": compiled,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{}: {} ({} tensors, {} kernels), compiled in {:.0} ms",
            output.display(),
            bytes(written.file_bytes),
            written.tensors,
            loaded.plan.kernels.len(),
            compiled * 1e3
        );
    }
    Ok(())
}
