//! Which stages of a chain run together, and on which tiles.

use super::cost::{Cost, Group, Overlap, cost};
use super::{Stage, check};
use serde::Serialize;

/// What is to be small.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Bytes of feature maps; of equal plans the one with less work.
    Traffic,
    /// The sum over groups of the larger of the time for bytes and the time for work, on a machine that makes so many
    /// multiplications while it moves a byte.
    Latency {
        /// Multiplications a byte.
        work_per_byte: f64,
    },
}

impl Objective {
    /// What a group counts for; compared first by the first number.
    fn of(self, c: &Cost) -> (f64, f64) {
        let (bytes, work) = (c.traffic_bytes() as f64, c.work as f64);
        match self {
            Objective::Traffic => (bytes, work),
            Objective::Latency { work_per_byte } => ((bytes + c.weight_bytes as f64).max(work / work_per_byte), bytes),
        }
    }
}

/// A chain in groups.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// In order.
    pub groups: Vec<Group>,
    /// What each costs.
    pub costs: Vec<Cost>,
    /// All together; the footprint is the largest of a group.
    pub total: Cost,
}

/// Powers of two below the extent, and the extent.
fn tiles(extent: u64) -> Vec<u64> {
    let mut all: Vec<u64> = (0..63).map(|i| 1 << i).take_while(|t| *t < extent).collect();
    all.push(extent);
    all
}

/// The best way to run the stages `from..to` together within `cap_bytes` of fast memory.
fn best_group(
    chain: &[Stage],
    stages: std::ops::Range<usize>,
    objective: Objective,
    cap_bytes: u64,
    overlaps: &[Overlap],
) -> Option<(Group, Cost)> {
    let [rows, columns] = chain.get(stages.end.checked_sub(1)?)?.places();
    let mut best: Option<(Group, Cost)> = None;
    for overlap in overlaps {
        // With reuse the tile does not matter: lines stay, and everything is computed once.
        let sizes = match overlap {
            Overlap::Recompute => {
                tiles(rows).into_iter().flat_map(|r| tiles(columns).into_iter().map(move |c| [r, c])).collect()
            }
            Overlap::Reuse => vec![[1, columns]],
        };
        for tile in sizes {
            let group = Group { stages: stages.clone(), tile, overlap: *overlap };
            let c = cost(chain, &group);
            let alone = stages.len() == 1 && *overlap == Overlap::Recompute;
            if c.footprint_bytes > cap_bytes && !alone {
                continue;
            }
            if best.as_ref().is_none_or(|(_, b)| objective.of(&c) < objective.of(b)) {
                best = Some((group, c));
            }
        }
    }
    best
}

/// The groups of a chain that make the objective least, by dynamic programming over where one ends. A stage by itself needs
/// no fast memory.
///
/// # Errors
/// A chain whose stages do not fit to each other.
pub fn search(chain: &[Stage], objective: Objective, cap_bytes: u64, overlaps: &[Overlap]) -> Result<Plan, String> {
    check(chain)?;
    let zero = (0.0, 0.0);
    let mut best: Vec<Option<((f64, f64), Vec<(Group, Cost)>)>> = vec![Some((zero, Vec::new()))];
    for to in 1..=chain.len() {
        let mut found: Option<((f64, f64), Vec<(Group, Cost)>)> = None;
        for from in (0..to).rev() {
            let Some(Some((before, groups))) = best.get(from) else { continue };
            let Some((group, c)) = best_group(chain, from..to, objective, cap_bytes, overlaps) else { continue };
            let own = objective.of(&c);
            let sum = (before.0 + own.0, before.1 + own.1);
            if found.as_ref().is_none_or(|(known, _)| sum < *known) {
                let mut groups = groups.clone();
                groups.push((group, c));
                found = Some((sum, groups));
            }
        }
        best.push(found);
    }
    let groups = best.pop().flatten().map(|(_, g)| g).ok_or("a stage that no plan runs")?;
    let (groups, costs): (Vec<Group>, Vec<Cost>) = groups.into_iter().unzip();
    let total = costs.iter().fold(Cost::default(), |s, c| s.plus(*c));
    Ok(Plan { groups, costs, total })
}
