//! `frit inspect`.

use crate::model::{self, Progress, bytes};
use anyhow::{Result, bail};
use clap::ValueEnum;
use frit::{Depth, kv_table};
use frit_kernels::dim::{Dim, product};
use frit_kernels::target::{Architecture, Tier};
use frit_kernels::templates::warpgroup_refusal;
use frit_plan::{Plan, Port, WeightSource};
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Clone, Copy, ValueEnum)]
enum Emit {
    /// The WGSL text.
    Wgsl,
    /// The PTX text.
    Ptx,
    /// The PTX text for `sm_90a` alone, or why there is none.
    #[value(name = "ptx-sm90a")]
    PtxSm90a,
    /// What the kernel computes, as JSON.
    Spec,
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// Drivers that run shaders on the processor.
    Cpu,
    /// Graphics cards.
    Gpu,
}

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, an .onnx, a .gguf or a .frit file [default: fixtures/lexicon]
    model: Option<PathBuf>,
    /// List the cache slots with their bytes per token.
    #[arg(long)]
    kv: bool,
    /// List the kernels.
    #[arg(long)]
    kernels: bool,
    /// Show one kernel.
    #[arg(long)]
    kernel: Option<String>,
    /// What to show of it.
    #[arg(long, default_value = "wgsl", requires = "kernel")]
    emit: Emit,
    /// For which tier of target.
    #[arg(long, default_value = "gpu")]
    tier: Target,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Unique and logical bytes of the weights: shared ones once, and once for every program step that reads them.
pub fn weight_bytes(plan: &Plan) -> (u64, u64) {
    let size = |d: &Dim| d.as_const().and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
    let each: Vec<u64> = plan
        .weights
        .iter()
        .map(|w| match &w.source {
            WeightSource::Parts(_) => w.storage.size_bytes(size(&product(&w.shape))).unwrap_or(0),
            WeightSource::Inline(v) => 4 * v.len() as u64,
            WeightSource::Rope { .. } => 0,
        })
        .collect();
    let mut uses: HashMap<u32, u64> = HashMap::new();
    if let Some(p) = plan.programs.first() {
        for a in p.steps.iter().flat_map(|s| &s.args) {
            if let frit_plan::BufferRef::Weight(w) = a {
                *uses.entry(*w).or_default() += 1;
            }
        }
    }
    let logical = each.iter().enumerate().map(|(i, b)| b * uses.get(&(i as u32)).copied().unwrap_or(1)).sum();
    (each.iter().sum(), logical)
}

fn extents(p: &Port) -> Vec<String> {
    p.shape.iter().map(Dim::to_string).collect()
}

/// What goes into a program or comes out of it, for scripts.
fn ports(list: &[Port]) -> Vec<serde_json::Value> {
    let one = |p: &Port| serde_json::json!({ "name": p.name, "dtype": p.storage.name(), "shape": extents(p) });
    list.iter().map(one).collect()
}

pub fn main(a: &Args) -> Result<()> {
    let path = model::path(a.model.as_deref())?;
    let progress = Progress::new();
    let loaded = model::open(&path, &progress)?;
    progress.clear();
    let plan = &loaded.plan;
    let tier = match a.tier {
        Target::Cpu => Tier::Cpu,
        Target::Gpu => Tier::Gpu,
    };
    if let Some(name) = &a.kernel {
        let Some(k) = plan.kernels().find(|k| k.name == *name) else {
            let names: Vec<&str> = plan.kernels().map(|k| k.name.as_str()).collect();
            bail!("there is no kernel `{name}`\nhint: one of {}", names.join(", "));
        };
        let tier = if let Emit::Ptx = a.emit { Tier::Cuda } else { tier };
        let text = match (a.emit, k.variant(tier)) {
            (Emit::PtxSm90a, _) => match k.variants.iter().find(|v| v.architecture == Some(Architecture::Sm90a)) {
                Some(v) => &v.text,
                None => {
                    let why = warpgroup_refusal(&k.spec).unwrap_or("the plan was made without: another text is faster");
                    bail!("`{name}` has no text of its own for sm_90a: {why}")
                }
            },
            (Emit::Spec, _) => {
                println!("{}", serde_json::to_string_pretty(&k.spec)?);
                return Ok(());
            }
            (_, Some(v)) => &v.text,
            (_, None) => bail!("`{name}` has no text for the tier {}", tier.name()),
        };
        match a.json {
            true => {
                let emit = a.emit.to_possible_value().map(|v| v.get_name().to_owned());
                let report = serde_json::json!({ "name": k.name, "emit": emit, "tier": tier.name(), "text": text });
                println!("{}", serde_json::to_string_pretty(&report)?);
            }
            false => print!("{text}"),
        }
        return Ok(());
    }
    let (unique, logical) = weight_bytes(plan);
    let slots = kv_table(plan);
    let depth = Depth::of(plan);
    let kv_bytes: u64 = slots.iter().map(|s| s.k + s.v).sum();
    let kernels: Vec<_> = plan
        .kernels()
        .map(|k| {
            let schedule = k.variant(tier).map(|v| &v.schedule);
            serde_json::json!({ "name": k.name, "bindings": k.spec.bindings(), "schedule": schedule, "hash": k.spec.hash().to_hex().to_string() })
        })
        .collect();
    if a.json {
        let programs: Vec<_> =
            plan.programs.iter().map(|p| serde_json::json!({ "name": p.name, "dispatches": p.steps.len(), "inputs": ports(&p.inputs), "outputs": ports(&p.outputs) })).collect();
        let report = serde_json::json!({
            "model": plan.model.name, "architecture": plan.model.architecture, "layers": plan.model.layers,
            "context": plan.model.context, "vocabulary": plan.model.vocab,
            "depth": depth,
            "weights": { "bytes": unique, "logical_bytes": logical, "count": plan.weights.len() },
            "kv": {
                "slots": plan.kv_slots.len(), "bytes_per_token": kv_bytes,
                "table": slots,
            },
            "programs": programs, "kernels": kernels,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let m = &plan.model;
    println!("{}  {}, {} layers, context {}, vocabulary {}", m.name, m.architecture, m.layers, m.context, m.vocab);
    let least = if depth.least < depth.executed { format!(", {} at least", depth.least) } else { String::new() };
    println!("depth    {} layers stored, {} executed{least}", depth.stored, depth.executed);
    println!("weights  {} unique, {} logical, {} buffers", bytes(unique), bytes(logical), plan.weights.len());
    println!("cache    {} slots, {} a token", plan.kv_slots.len(), bytes(kv_bytes));
    if a.kv {
        for s in &slots {
            println!("  {:12} keys {:>10}  values {:>10}", s.name, bytes(s.k), bytes(s.v));
        }
    }
    for p in &plan.programs {
        println!("program  {:12} {} launches", p.name, p.steps.len());
        for (way, list) in [("in", &p.inputs), ("out", &p.outputs)] {
            list.iter()
                .for_each(|p| println!("  {way:3} {:24} {} [{}]", p.name, p.storage.name(), extents(p).join(", ")));
        }
    }
    println!("kernels  {} ({} texts)", plan.kernels.len(), plan.kernels().map(|k| k.variants.len()).sum::<usize>());
    if a.kernels {
        for k in plan.kernels() {
            let s = k.variant(tier).map(|v| format!("{} {:?}", v.schedule.template, v.schedule.workgroup));
            println!("  {:44} {} bindings  {}", k.name, k.spec.bindings(), s.unwrap_or_default());
        }
    }
    Ok(())
}
