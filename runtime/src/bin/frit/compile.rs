//! `frit compile`.

use crate::model::{self, Progress, bytes};
use anyhow::Result;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory or a .gguf file.
    model: PathBuf,
    /// The artifact to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Print a JSON object about the artifact.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let progress = Progress::new();
    let start = std::time::Instant::now();
    let loaded = model::open(&a.model, &progress)?;
    let compiled = start.elapsed().as_secs_f64();
    let written = frit_plan::format::write(&a.output, &loaded.plan, &*loaded.weights, &mut |d, n| {
        progress.steps("writing", d, n)
    })?;
    progress.clear();
    if a.json {
        let report = serde_json::json!({
            "file": a.output, "file_bytes": written.file_bytes, "tensor_bytes": written.tensor_bytes,
            "tensors": written.tensors, "aliases": written.aliases, "kernels": loaded.plan.kernels.len(),
            "compile_seconds": compiled,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{}: {} ({} tensors, {} kernels), compiled in {:.0} ms",
            a.output.display(),
            bytes(written.file_bytes),
            written.tensors,
            loaded.plan.kernels.len(),
            compiled * 1e3
        );
    }
    Ok(())
}
