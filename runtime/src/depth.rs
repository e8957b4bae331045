//! How deep a plan is, before anything runs. What a run executed is in [`crate::RunStats`].

use frit_plan::{Plan, RAN, WeightSource};
use serde::Serialize;
use std::collections::HashSet;

/// Layers of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Depth {
    /// Layers whose matrices are stored; tied ones are stored once.
    pub stored: u32,
    /// Layers that run.
    pub executed: u32,
    /// Layers that run for a token that leaves, stops or is sent past layers as early as it can.
    pub least: u32,
}

impl Depth {
    /// The layers of a plan. Stored ones are told by the numbers in the names of their matrices; what a run of a tied layer
    /// has besides (updates of low rank, gates) makes no layer.
    pub fn of(plan: &Plan) -> Depth {
        let matrices = plan.weights.iter().filter(|w| w.shape.len() > 1);
        let parts = matrices.filter_map(|w| match &w.source {
            WeightSource::Parts(parts) => Some(parts),
            _ => None,
        });
        let number = |name: &str| name.split('.').find_map(|part| part.parse::<u32>().ok());
        let besides = |name: &str| name.split('.').any(|part| ["lora_a", "lora_b", "gate", "halt"].contains(&part));
        let own = parts.flatten().filter(|p| !besides(&p.tensor));
        let stored: HashSet<u32> = own.filter_map(|p| number(&p.tensor)).collect();
        let program = plan.program("forward").or(plan.programs.first());
        let spared = program.map_or(0, |p| p.outputs.iter().filter_map(|o| spared(&o.name)).sum::<u32>());
        let executed = plan.model.layers;
        Depth { stored: stored.len() as u32, executed, least: executed.saturating_sub(spared) }
    }
}

/// Layers that a decision may leave out, by the name of the output that tells it.
fn spared(name: &str) -> Option<u32> {
    let (what, number) = name.strip_prefix(RAN)?.split_once('.')?;
    match what {
        "exit" | "trip" => number.split_once('+')?.1.parse().ok(),
        "layer" => Some(1),
        _ => None,
    }
}
