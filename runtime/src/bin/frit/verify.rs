//! `frit verify`.

use crate::model::{self, Progress, bytes};
use anyhow::{Result, bail};
use frit::verify::{TierCheck, VerifyOptions, verify};
use frit_kernels::target::Tier;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a .gguf, .onnx or .frit file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// Whose schedules: cpu (software drivers), gpu, or both.
    #[arg(long, default_value = "both", value_parser = ["cpu", "gpu", "both"])]
    tier: String,
    /// Sequences of a run.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Tokens of a run, and the extent of every other size of the model.
    #[arg(long, default_value_t = 7)]
    tokens: u64,
    /// Tokens a decoder goes on with.
    #[arg(long, default_value_t = 3)]
    new_tokens: usize,
    /// Largest difference from the CPU backend, relative to the output's largest magnitude.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Run warps and workgroups in an order drawn from this seed.
    #[arg(long)]
    shuffle: Option<u64>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub fn main(a: &Args) -> Result<()> {
    let path = model::path(a.model.as_deref())?;
    let progress = Progress::new();
    let loaded = model::open(&path, &progress)?;
    progress.clear();
    let options = VerifyOptions {
        batch: a.batch,
        tokens: a.tokens,
        new_tokens: a.new_tokens,
        tolerance: a.tolerance,
        shuffle: a.shuffle,
    };
    let tiers: &[Tier] = match a.tier.as_str() {
        "cpu" => &[Tier::Cpu],
        "gpu" => &[Tier::Gpu],
        _ => &[Tier::Cpu, Tier::Gpu],
    };
    let done = tiers.iter().map(|t| Ok(verify(&loaded, *t, &options)?)).collect::<Result<Vec<_>>>()?;
    let passed = done.iter().all(TierCheck::passed);
    if a.json {
        let report = serde_json::json!({ "model": loaded.plan.model.name, "passed": passed, "tiers": done });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        done.iter().for_each(print);
    }
    if passed { Ok(()) } else { bail!("{} did not pass", path.display()) }
}

fn print(t: &TierCheck) {
    println!(
        "{} schedules: every access in bounds, initialised, race-free; every barrier uniform; every value finite",
        t.tier
    );
    for k in &t.kernels {
        let state = if k.launches == 0 {
            "not launched"
        } else if k.violations.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            " {:58} {:>4} launches {:>12} instructions {:>10}  {state}",
            k.name,
            k.launches,
            k.instructions,
            bytes(k.bytes)
        );
        k.violations.iter().for_each(|v| println!("    {v}"));
    }
    for o in &t.outputs {
        let state = if o.agrees { "agrees" } else { "DIFFERS" };
        println!(" output {:20} {state} with the CPU backend: {:.2e} of {:.2e}", o.name, o.max_difference, o.magnitude);
    }
    match t.same_tokens {
        Some(true) => println!(" generated tokens are the CPU's"),
        Some(false) => println!(" generated tokens DIFFER from the CPU's"),
        None => {}
    }
    println!(
        " {} kernels, {} not launched at these sizes, {} violations\n",
        t.kernels.len(),
        t.not_launched,
        t.violations()
    );
}
