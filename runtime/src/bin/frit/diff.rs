//! `frit diff`.

use crate::model::{self, Progress};
use anyhow::Result;
use frit_plan::{PhaseReport, Plan};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// A model or artifact.
    old: PathBuf,
    /// Another, or the same compiled by another version.
    new: PathBuf,
    /// Compare what the two compute for these tokens instead of how: lines of token ids, lines of text, or an .npz with
    /// `input_ids`. Logit divergence, agreement of the most likely token, and the error behind each layer.
    #[cfg(feature = "compiler")]
    #[arg(long)]
    calib: Option<PathBuf>,
    /// The error behind layers, with --calib: relative or pkd.
    #[cfg(feature = "compiler")]
    #[arg(long, default_value = "relative", requires = "calib")]
    metric: crate::similar::LayerError,
    /// With --calib: auto, cpu, wgpu or cuda.
    #[cfg(feature = "compiler")]
    #[arg(long, default_value = "auto", requires = "calib")]
    backend: frit::BackendChoice,
    /// Exit with 1 where the plans differ.
    #[arg(long)]
    exit_code: bool,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// What changed in one program.
#[derive(serde::Serialize)]
struct Change {
    program: String,
    dispatches: [u32; 2],
    bytes: [String; 2],
    /// Regions by what they hold: more or fewer of them.
    regions: BTreeMap<String, i64>,
    /// Refusals by code.
    refused: BTreeMap<String, i64>,
}

impl Change {
    fn is_none(&self) -> bool {
        let same = self.dispatches[0] == self.dispatches[1] && self.bytes[0] == self.bytes[1];
        same && self.regions.is_empty() && self.refused.is_empty()
    }
}

fn tally<'a>(old: impl Iterator<Item = String> + 'a, new: impl Iterator<Item = String> + 'a) -> BTreeMap<String, i64> {
    let mut out: BTreeMap<String, i64> = BTreeMap::new();
    old.for_each(|k| *out.entry(k).or_default() -= 1);
    new.for_each(|k| *out.entry(k).or_default() += 1);
    out.retain(|_, n| *n != 0);
    out
}

fn change(name: &str, old: &PhaseReport, new: &PhaseReport) -> Change {
    let region = |r: &frit_plan::RegionReport| format!("{} {}", r.kind, r.ops.join(" · "));
    Change {
        program: name.into(),
        dispatches: [old.dispatches, new.dispatches],
        bytes: [old, new].map(|p| p.ledger.activations_fused.to_string()),
        regions: tally(old.regions.iter().map(region), new.regions.iter().map(region)),
        refused: tally(old.refused.iter().map(|r| r.code.clone()), new.refused.iter().map(|r| r.code.clone())),
    }
}

fn texts(plan: &Plan) -> BTreeMap<&str, String> {
    let text = |k: &frit_plan::Kernel| k.variants.iter().map(|v| v.text.as_str()).collect::<String>();
    plan.kernels.iter().map(|k| (k.name.as_str(), text(k))).collect()
}

pub fn main(a: &Args) -> Result<ExitCode> {
    #[cfg(feature = "compiler")]
    if let Some(calib) = &a.calib {
        crate::similar::main([a.old.as_path(), a.new.as_path()], calib, a.metric, a.backend, a.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new();
    let (old, new) = (model::open(&a.old, &progress)?, model::open(&a.new, &progress)?);
    progress.clear();
    let (old, new) = (&*old.plan, &*new.plan);
    let none = PhaseReport::default();
    let find = |p: &Plan, name: &str| p.report.phases.iter().find(|x| x.program == name).cloned();
    let mut names: Vec<&str> = old.report.phases.iter().chain(&new.report.phases).map(|p| p.program.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let changes: Vec<Change> = names
        .iter()
        .map(|n| change(n, &find(old, n).unwrap_or(none.clone()), &find(new, n).unwrap_or(none.clone())))
        .collect();
    let (before, after) = (texts(old), texts(new));
    let gone: Vec<&str> = before.keys().filter(|k| !after.contains_key(*k)).copied().collect();
    let added: Vec<&str> = after.keys().filter(|k| !before.contains_key(*k)).copied().collect();
    let altered: Vec<&str> =
        before.iter().filter(|(k, t)| after.get(*k).is_some_and(|u| u != *t)).map(|(k, _)| *k).collect();
    let weights = [old, new].map(|p| crate::inspect::weight_bytes(p).0);
    let kernels_same = gone.is_empty() && added.is_empty() && altered.is_empty();
    let same = kernels_same && weights[0] == weights[1] && changes.iter().all(Change::is_none);
    let code = if a.exit_code && !same { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if a.json {
        let report = serde_json::json!({
            "same": same, "weight_bytes": weights,
            "programs": changes, "kernels": { "gone": gone, "added": added, "altered": altered },
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(code);
    }
    if same {
        println!("the plans are the same: {} programs, {} kernels", changes.len(), before.len());
        return Ok(code);
    }
    println!("weights      {} -> {} bytes", weights[0], weights[1]);
    for c in changes.iter().filter(|c| !c.is_none()) {
        println!("{:12} {} -> {} launches", c.program, c.dispatches[0], c.dispatches[1]);
        if c.bytes[0] != c.bytes[1] {
            println!("  activation bytes  {}\n                 -> {}", c.bytes[0], c.bytes[1]);
        }
        c.regions.iter().for_each(|(r, n)| println!("  {n:+} region   {r}"));
        c.refused.iter().for_each(|(r, n)| println!("  {n:+} refusal  {r}"));
    }
    for (what, list) in [("gone", &gone), ("added", &added), ("altered", &altered)] {
        list.iter().for_each(|k| println!("kernel {what:8} {k}"));
    }
    Ok(code)
}
