//! What the fusion report says beyond regions and codes: the graph before fusion, rewrites that change numbers, every
//! condition of an edge, switches by place, and decisions that differ between numbers of rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conditions;
mod crossovers;
mod drawing;
mod predicted;
mod rewrites;
#[path = "../support/mod.rs"]
mod support;
mod switches;

use frit_compiler::{CompileOptions, Compiler};
use frit_plan::{PhaseReport, Plan, RegionReport};

/// The plan of a fixture without kernel texts.
fn plan(model: &str, options: CompileOptions) -> Plan {
    let options = CompileOptions { targets: Vec::new(), ..options };
    Compiler::new(options).compile(&support::load(model)).unwrap()
}

fn phase<'p>(plan: &'p Plan, name: &str) -> &'p PhaseReport {
    plan.report.phases.iter().find(|p| p.program == name).unwrap_or_else(|| panic!("no phase {name}"))
}

/// Whether a region is a launch that the unfused graph lacks.
fn is_extra(r: &RegionReport) -> bool {
    matches!(r.kind.as_str(), "copy" | "index")
}
