//! `frit explain --edge FROM:TO`: what became of an edge, and every condition of it.

use anyhow::{Result, bail};
use frit_plan::{Crossover, PhaseReport, RefusedEdge, RegionReport};

pub fn print(edge: &str, phase: &PhaseReport, json: bool) -> Result<()> {
    let Some((from, to)) = edge.split_once(':') else {
        bail!("`{edge}` is no edge\nhint: --edge FROM:TO, such as --edge attn:matmul");
    };
    let holds = |r: &RegionReport, part: &str| r.ops.iter().chain(&r.origins).any(|o| o.contains(part));
    let fused: Vec<_> = phase.regions.iter().filter(|r| holds(r, from) && holds(r, to)).collect();
    let refused: Vec<_> = phase.refused.iter().filter(|e| e.from.contains(from) && e.to.contains(to)).collect();
    let crossovers: Vec<_> = phase.crossovers.iter().filter(|c| c.from.contains(from) && c.to.contains(to)).collect();
    if fused.is_empty() && refused.is_empty() {
        bail!("`{}` has no edge from `{from}` to `{to}`\nhint: frit explain --all", phase.program);
    }
    if json {
        let report = serde_json::json!({
            "program": phase.program, "fused": fused, "refused": refused, "crossovers": crossovers,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    for r in fused {
        println!("fused  K{} {}: {}\n       from {}", r.id, r.kind, r.ops.join(" · "), r.origins.join(", "));
    }
    let unanswered = refused.iter().any(|e| e.conditions.is_empty());
    refused.into_iter().for_each(print_refused);
    crossovers.into_iter().for_each(|c| println!("{}", crossover(c)));
    if unanswered {
        println!("(the other conditions are answered for a model, not for an artifact)");
    }
    Ok(())
}

fn print_refused(e: &RefusedEdge) {
    println!("{}  {} -> {}\n       {}\n       to allow it: {}", e.code, e.from, e.to, e.detail, e.remedy);
    for c in &e.conditions {
        println!("       {:14} {:9}  {}", c.code, c.verdict.name(), c.detail);
    }
}

/// A line on an edge that is decided differently for few rows.
pub fn crossover(c: &Crossover) -> String {
    let each = c.decisions.iter().map(|d| {
        let rows = d.most_rows.map_or_else(|| "more".to_owned(), |n| format!("M <= {n}"));
        match (d.fused, d.code.as_str()) {
            (true, _) => format!("{rows} fused"),
            (false, "") => format!("{rows} apart"),
            (false, code) => format!("{rows} not, {code}: {}", d.detail),
        }
    });
    let times = if c.times > 1 { format!(" (and {} like it)", c.times - 1) } else { String::new() };
    format!("crossover {} -> {}{times}\n          {}", c.from, c.to, each.collect::<Vec<_>>().join("; "))
}
