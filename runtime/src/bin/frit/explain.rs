//! `frit explain`.

use crate::model::{self, Progress, bytes};
use anyhow::{Result, bail};
use frit_kernels::dim::Dim;
use frit_plan::{PhaseReport, Plan, sizes};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a .gguf or a .frit file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// forward, prefill, decode or decode_wide [default: decode, or forward for encoders]
    #[arg(long)]
    phase: Option<String>,
    /// Sequences that bytes are counted for.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Tokens of each sequence that bytes are counted for.
    #[arg(long, default_value_t = 64)]
    tokens: u64,
    /// Tokens already in the cache.
    #[arg(long, default_value_t = 64)]
    past: u64,
    /// Show every region and edge, not one layer.
    #[arg(long)]
    all: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn values(a: &Args, plan: &Plan, program: &str) -> Vec<u64> {
    let fixed = plan.program(program).map(|p| p.fixed.clone()).unwrap_or_default();
    let value = |name: &str| match name {
        _ if fixed.iter().any(|(n, _)| n == name) => fixed.iter().find(|(n, _)| n == name).map_or(1, |f| f.1),
        sizes::BATCH => a.batch,
        sizes::TOKENS => a.tokens,
        sizes::PAST if program == "decode" || program == "decode_wide" => a.past,
        sizes::PAST => 0,
        sizes::CAPACITY => a.past + a.tokens,
        _ => 1,
    };
    plan.sizes.iter().map(|s| value(&s.name).max(s.min)).collect()
}

fn json(plan: &Plan) -> serde_json::Value {
    let find = |n: &str| plan.report.phases.iter().find(|p| p.program == n);
    let main = find("decode").or_else(|| plan.report.phases.first());
    let prefill = find("prefill").or_else(|| find("forward"));
    serde_json::json!({
        "model": plan.model.name,
        "dispatches": {
            "prefill": prefill.map(|p| p.dispatches),
            "decode": find("decode").map(|p| p.dispatches),
            "decode_per_layer": find("decode").map(|p| p.dispatches_per_layer),
        },
        "unfused_dispatches": main.map(|p| p.unfused_dispatches),
        "attention": main.map(|p| p.attention),
        "regions": main.map(|p| &p.regions),
        "refused": main.map(|p| &p.refused),
        "ledger": main.map(|p| &p.ledger),
        "phases": plan.report.phases,
    })
}

pub fn main(a: &Args) -> Result<()> {
    let path = model::path(a.model.as_deref())?;
    let progress = Progress::new();
    let loaded = model::open(&path, &progress)?;
    progress.clear();
    let plan = &loaded.plan;
    if a.json {
        println!("{}", serde_json::to_string_pretty(&json(plan))?);
        return Ok(());
    }
    let wanted =
        a.phase.clone().unwrap_or_else(|| if plan.program("decode").is_some() { "decode" } else { "forward" }.into());
    let Some(phase) = plan.report.phases.iter().find(|p| p.program == wanted) else {
        let have: Vec<&str> = plan.report.phases.iter().map(|p| p.program.as_str()).collect();
        bail!("{} has no phase `{wanted}`\nhint: --phase {}", path.display(), have.join(" | "));
    };
    print(a, plan, phase);
    Ok(())
}

fn layer_of(origins: &[String]) -> Option<u32> {
    origins.iter().flat_map(|o| o.split('.')).find_map(|p| p.parse().ok())
}

fn print(a: &Args, plan: &Plan, phase: &PhaseReport) {
    let at = values(a, plan, &phase.program);
    let named: Vec<String> = plan.sizes.iter().zip(&at).map(|(s, v)| format!("{} = {v}", s.name)).collect();
    let signed = |d: &Dim| {
        let find = |s: &frit_kernels::dim::Sym| {
            let i = plan.sizes.iter().position(|z| z.name == s.to_string())?;
            i64::try_from(*at.get(i)?).ok()
        };
        d.eval(&find).unwrap_or(0)
    };
    let count = |d: &Dim| bytes(u64::try_from(signed(d)).unwrap_or(0));
    println!("{}  {}  at {}", plan.model.name, phase.program, named.join(", "));
    println!(
        "{} kernels, {} if nothing were fused, {} in each of {} layers; attention blocks fused: {} of {}\n",
        phase.dispatches,
        phase.unfused_dispatches,
        phase.dispatches_per_layer,
        plan.model.layers,
        phase.attention.fused,
        phase.attention.blocks
    );
    let middle = (plan.model.layers / 2).min(plan.model.layers.saturating_sub(1));
    let shown = |origins: &[String]| a.all || layer_of(origins).is_none_or(|l| l == middle);
    println!("fused");
    for r in phase.regions.iter().filter(|r| shown(&r.origins)) {
        println!(
            " K{:<3} {:9} {:44} saves {:>9} and {} launches   weights {:>9}   bindings {}   {}",
            r.id,
            r.kind,
            r.ops.join(" · "),
            count(&r.saved_bytes),
            r.saved_launches,
            count(&r.weight_bytes),
            r.bindings,
            r.class
        );
        if let Some(o) = r.origins.first() {
            let more = if r.origins.len() > 1 { format!(" and {} more", r.origins.len() - 1) } else { String::new() };
            println!("      from {o}{more}");
        }
    }
    println!("\nnot fused");
    for e in
        phase.refused.iter().filter(|e| shown(&[e.from.clone(), e.to.clone()].map(|s| s.replace(['(', ')', ' '], "."))))
    {
        println!(" {:14} {} -> {}\n                {}; to allow it: {}", e.code, e.from, e.to, e.detail, e.remedy);
    }
    let l = &phase.ledger;
    println!(
        "\nledger   weights {} | activations {} -> {} | together {}",
        count(&l.weights),
        count(&l.activations_unfused),
        count(&l.activations_fused),
        count(&l.total)
    );
    if !a.all {
        println!("(layer {middle} stands for all layers; --all shows each)");
    }
}
