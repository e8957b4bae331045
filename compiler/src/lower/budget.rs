//! Plans within a budget of memory: kinds of fusion are left out while that saves bytes and too many are taken.

use super::Compiler;
use crate::error::{Error, Result};
use crate::fusion::{FusionOptions, Overruled};
use crate::model::Model;
use crate::options::{CompileOptions, PeakBudget};
use frit_plan::Plan;

/// The values of a plan's sizes that a budget is counted at.
fn sizes(plan: &Plan, peak: &PeakBudget) -> Result<Vec<u64>> {
    let known = |n: &&String| !plan.sizes.iter().any(|s| s.name == **n);
    let unknown: Vec<String> = peak.at.keys().filter(known).cloned().collect();
    if !unknown.is_empty() {
        let known = plan.sizes.iter().map(|s| s.name.clone()).collect();
        return Err(Error::UnknownSizes { model: plan.model.name.clone(), unknown, known });
    }
    Ok(plan.sizes.iter().map(|s| peak.at.get(&s.name).copied().or(s.max).unwrap_or(s.min.max(1))).collect())
}

/// Bytes of the program that takes most.
fn taken(plan: &Plan, at: &[u64]) -> Result<u64> {
    let each = plan.programs.iter().map(|p| plan.arena_bytes(p, at));
    let all = each.collect::<std::result::Result<Vec<u64>, _>>();
    let all = all.map_err(|e| Error::Internal { pass: "memory", fault: e.to_string() })?;
    Ok(all.into_iter().max().unwrap_or(0))
}

/// The plan within a budget: as long as it takes more, the kind of fusion is left out without which it takes least.
///
/// # Errors
/// Those of compiling; sizes that the model does not have; a budget that no choice keeps.
pub fn within(model: &Model, options: &CompileOptions, peak: &PeakBudget) -> Result<Plan> {
    let mut options = CompileOptions { peak: None, ..options.clone() };
    let mut plan = Compiler::new(options.clone()).plan(model)?;
    let at = sizes(&plan, peak)?;
    let mut with = taken(&plan, &at)?;
    while with > peak.bytes {
        let mut best: Option<(u64, Plan, CompileOptions)> = None;
        for id in FusionOptions::IDS {
            let mut other = options.clone();
            other.fusion.switch_off(id);
            if other == options {
                continue;
            }
            let without = taken(&Compiler::new(other.clone()).plan(model)?, &at)?;
            if without < best.as_ref().map_or(with, |b| b.0) {
                other.fusion.overrule(id, Overruled::Peak { with, without, budget: peak.bytes });
                best = Some((without, Compiler::new(other.clone()).plan(model)?, other));
            }
        }
        let Some((without, found, other)) = best else {
            let named: Vec<String> = plan.sizes.iter().zip(&at).map(|(s, v)| format!("{} = {v}", s.name)).collect();
            return Err(Error::PeakBudget {
                model: plan.model.name,
                least: with,
                budget: peak.bytes,
                at: named.join(", "),
            });
        };
        (with, plan, options) = (without, found, other);
    }
    Ok(plan)
}
