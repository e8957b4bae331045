//! `frit check`: what stands in the way of running a model, all of it at once and before any weight is read.

use anyhow::Result;
use frit_compiler::ingest::{self, Gap};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a .gguf, an .onnx or a .frit file.
    model: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Something that is wrong, and how many times.
#[derive(serde::Serialize)]
struct Finding {
    place: String,
    problem: String,
    next_step: String,
    count: usize,
    /// Other places of the same problem, the first few.
    also: Vec<String>,
}

/// Groups gaps that differ in their place only.
fn grouped(gaps: &[Gap]) -> Vec<Finding> {
    const SHOWN: usize = 5;
    let mut out: Vec<Finding> = Vec::new();
    for gap in gaps {
        match out.iter_mut().find(|f| f.problem == gap.problem && f.next_step == gap.next_step) {
            Some(known) => {
                known.count += 1;
                if known.also.len() < SHOWN {
                    known.also.push(gap.place.to_string());
                }
            }
            None => out.push(Finding {
                place: gap.place.to_string(),
                problem: gap.problem.clone(),
                next_step: gap.next_step.clone(),
                count: 1,
                also: Vec::new(),
            }),
        }
    }
    out
}

fn single(problem: String) -> Vec<Finding> {
    let (place, next_step) = (String::new(), String::new());
    vec![Finding { place, problem, next_step, count: 1, also: Vec::new() }]
}

/// Architecture and kernels of a model that can be run, or what stands in the way.
fn examine(path: &std::path::Path) -> Result<(String, usize), Vec<Finding>> {
    if path.is_file() && frit::model_source::is_artifact(path) {
        let file = frit_plan::format::FritFile::open(path).map_err(|e| single(e.to_string()))?;
        return Ok((file.plan().model.architecture.clone(), file.plan().kernels.len()));
    }
    let model = ingest::load(path).map_err(|e| match e {
        ingest::Error::Unsupported { gaps, .. } => grouped(&gaps),
        other => single(other.to_string()),
    })?;
    let plan = frit_compiler::Compiler::default().compile(&model).map_err(|e| single(e.to_string()))?;
    Ok((plan.model.architecture.clone(), plan.kernels.len()))
}

pub fn main(a: &Args) -> Result<ExitCode> {
    let found = examine(&a.model);
    let findings = found.as_ref().err().map(Vec::as_slice).unwrap_or_default();
    if a.json {
        let report = serde_json::json!({
            "model": a.model, "ok": found.is_ok(),
            "architecture": found.as_ref().ok().map(|f| &f.0),
            "kernels": found.as_ref().ok().map(|f| f.1),
            "findings": findings,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if let Ok((architecture, kernels)) = &found {
        println!("{}: {architecture}, {kernels} kernels: nothing stands in the way", a.model.display());
    } else {
        let all: usize = findings.iter().map(|f| f.count).sum();
        println!("{}: {all} things stand in the way", a.model.display());
        for f in findings {
            let times = if f.count > 1 { format!(" ({} times)", f.count) } else { String::new() };
            let place = if f.place.is_empty() { String::new() } else { format!("{}: ", f.place) };
            let next = if f.next_step.is_empty() { String::new() } else { format!("; {}", f.next_step) };
            println!("  - {place}{}{next}{times}", f.problem);
            if !f.also.is_empty() {
                println!("    also {}{}", f.also.join(", "), if f.count > f.also.len() + 1 { ", …" } else { "" });
            }
        }
    }
    Ok(if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
