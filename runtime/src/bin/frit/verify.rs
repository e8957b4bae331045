//! `frit verify`.

use crate::model::{self, Progress, bytes};
use anyhow::{Result, bail};
use frit::BackendChoice;
use frit::verify::{DeviceCheck, OutputCheck, TierCheck, VerifyOptions, verify, verify_on};
use frit_kernels::target::Tier;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a .gguf, .onnx or .frit file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// What is executed: WGSL as scheduled for software drivers or for graphics cards, PTX, or all of them.
    #[arg(long, default_value = "all", value_parser = ["wgsl-cpu", "wgsl-gpu", "wgsl", "ptx", "all"])]
    target: String,
    /// Run on this backend's device instead of executing the texts here: auto, cpu, wgpu or cuda.
    #[arg(long, conflicts_with_all = ["target", "shuffle", "adversarial"])]
    on: Option<BackendChoice>,
    /// Sequences of a run.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Tokens of a run, and the extent of every other size of the model.
    #[arg(long, default_value_t = 7)]
    tokens: u64,
    /// Tokens a decoder goes on with.
    #[arg(long, default_value_t = 3)]
    new_tokens: usize,
    /// Largest difference from the CPU backend, relative to the output's largest magnitude [default: 1e-4, and 5e-2 where
    /// matrix units round both sides of a product to 16 bits].
    #[arg(long)]
    tolerance: Option<f64>,
    /// Run warps and workgroups in an order drawn from this seed.
    #[arg(long)]
    shuffle: Option<u64>,
    /// Draw from this seed what the languages leave open: the last bits of approximate functions, denormal numbers, fused
    /// products and sums, the order in which matrix units add.
    #[arg(long, value_name = "SEED")]
    adversarial: Option<u64>,
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    switches: crate::switches::Switches,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// GPUs for which some kernels have a text of their own.
const WARPGROUPS: (u32, u32) = (9, 0);

pub fn main(a: &Args) -> Result<()> {
    let path = model::path(a.model.as_deref())?;
    let progress = Progress::new();
    #[cfg(feature = "compiler")]
    let loaded = a.switches.open(&path, &progress)?;
    #[cfg(not(feature = "compiler"))]
    let loaded = model::open(&path, &progress)?;
    progress.clear();
    let options = VerifyOptions {
        batch: a.batch,
        tokens: a.tokens,
        new_tokens: a.new_tokens,
        tolerance: a.tolerance,
        shuffle: a.shuffle,
        adversarial: a.adversarial,
        ..VerifyOptions::default()
    };
    if let Some(choice) = a.on {
        let done = verify_on(&loaded, &*choice.open()?, &options)?;
        if a.json {
            let report =
                serde_json::json!({ "model": loaded.plan.model.name, "passed": done.passed(), "device": done });
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print_device(&done);
        }
        return if done.passed() { Ok(()) } else { bail!("{} did not pass", path.display()) };
    }
    // A plan may have been written for some kinds of devices alone.
    let is_held = |t: &Tier| loaded.plan.kernels.iter().all(|k| k.variant(*t).is_some());
    let tiers: Vec<Tier> = match a.target.as_str() {
        "wgsl-cpu" => vec![Tier::Cpu],
        "wgsl-gpu" => vec![Tier::Gpu],
        "wgsl" => vec![Tier::Cpu, Tier::Gpu],
        "ptx" => vec![Tier::Cuda],
        _ => [Tier::Cpu, Tier::Gpu, Tier::Cuda].into_iter().filter(is_held).collect(),
    };
    if tiers.is_empty() {
        bail!("{} holds kernel texts for no kind of device in full: nothing can be executed", path.display());
    }
    let mut done = tiers.iter().map(|t| Ok(verify(&loaded, *t, &options)?)).collect::<Result<Vec<_>>>()?;
    let apart = |k: &frit_plan::Kernel| k.ptx(WARPGROUPS).is_some_and(|v| Some(v) != k.ptx((8, 0)));
    if tiers.contains(&Tier::Cuda) && loaded.plan.kernels.iter().any(apart) {
        done.push(verify(&loaded, Tier::Cuda, &VerifyOptions { capability: WARPGROUPS, ..options })?);
    }
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
    println!("{}, checked for {}", heading(t), t.proved.join(", "));
    for k in &t.kernels {
        let state = if k.launches == 0 {
            "NOT LAUNCHED"
        } else if k.violations.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            " {:58} {:>4} launches {:>12} instructions {:>10} {:>9} sectors {:>8} conflicts {:>3} live  {state}",
            k.name,
            k.launches,
            k.instructions,
            bytes(k.bytes),
            k.sectors,
            k.bank_conflicts,
            k.live_registers
        );
        k.violations.iter().for_each(|v| println!("    {v}"));
    }
    print_comparison(&t.outputs, t.same_tokens);
    println!(
        " {} kernels, {} not launched at these sizes, {} violations",
        t.kernels.len(),
        t.not_launched.len(),
        t.violations()
    );
    t.not_launched.iter().for_each(|name| println!(" NOT LAUNCHED: {name}"));
    println!();
}

fn print_device(d: &DeviceCheck) {
    println!("{} on {}", d.backend, d.device);
    print_comparison(&d.outputs, d.same_tokens);
}

fn print_comparison(outputs: &[OutputCheck], same_tokens: Option<bool>) {
    for o in outputs {
        let state = if o.agrees { "agrees" } else { "DIFFERS" };
        println!(
            " output {:20} {state} with the CPU backend: {:.2e} of {:.2e}, {:.0e} at most",
            o.name, o.max_difference, o.magnitude, o.bound
        );
    }
    match same_tokens {
        Some(true) => println!(" generated tokens are the CPU's"),
        Some(false) => println!(" generated tokens DIFFER from the CPU's"),
        None => {}
    }
}

fn heading(t: &TierCheck) -> &'static str {
    match (t.tier, t.capability) {
        ("cpu", _) => "WGSL for software drivers",
        ("gpu", _) => "WGSL for graphics cards",
        (_, Some(WARPGROUPS)) => "PTX for sm_90a where there is one",
        _ => "PTX for sm_80 and later",
    }
}
