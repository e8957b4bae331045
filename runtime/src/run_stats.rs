//! What a run really executed, from the outputs that tell decisions, see [`frit_plan::RAN`].

use crate::Tensor;
use frit_plan::{Plan, Program, RAN};
use serde::Serialize;
use std::collections::BTreeMap;

/// Layers and parts that ran, summed over tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunStats {
    /// Tokens that decisions were made for; where a plan makes none, tokens that ran, of a generation those that another
    /// one was chosen behind.
    pub tokens: u64,
    /// Layers of the compiled model.
    pub layers: u32,
    /// Layers run, over all tokens.
    pub layers_run: u64,
    /// Feed-forward parts run where a policy may skip them, over all tokens.
    pub ffn_run: u64,
    /// The same if none were skipped.
    pub ffn_possible: u64,
    /// How many tokens left after how many layers; the last entry are those that ran all.
    pub exit_histogram: BTreeMap<u32, u64>,
    /// How often a prompt ran, at most.
    pub passes: u64,
    /// Keys and values of heads that were retained where a pair of layers merges theirs.
    pub kv_retained: u64,
    /// The same if all were.
    pub kv_merged: u64,
    /// How many tokens took how many trips, where tokens stop by themselves.
    pub trips: BTreeMap<u32, u64>,
}

/// A decision as its output is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// After `layers` layers; it governs so many of those behind.
    Exit {
        layers: u32,
        governs: u32,
    },
    Layer,
    Ffn,
    /// Keys and values of heads retained, of so many.
    Retained {
        of: u32,
    },
    /// A trip behind the first, of so many layers.
    Trip {
        layers: u32,
    },
}

fn decision(name: &str) -> Option<Decision> {
    let (part, number) = name.strip_prefix(RAN)?.split_once('.')?;
    match part {
        "exit" => {
            let (layers, governs) = number.split_once('+')?;
            Some(Decision::Exit { layers: layers.parse().ok()?, governs: governs.parse().ok()? })
        }
        "trip" => Some(Decision::Trip { layers: number.split_once('+')?.1.parse().ok()? }),
        "retained" => Some(Decision::Retained { of: number.split_once('+')?.1.parse().ok()? }),
        "layer" => Some(Decision::Layer),
        "ffn" => Some(Decision::Ffn),
        _ => None,
    }
}

/// The outputs of a program that tell decisions.
pub(crate) fn telling(program: &Program) -> Vec<usize> {
    let outputs = program.outputs.iter().enumerate();
    outputs.filter(|(_, p)| p.name.starts_with(RAN)).map(|(i, _)| i).collect()
}

impl RunStats {
    /// Nothing run yet.
    pub(crate) fn new(plan: &Plan) -> RunStats {
        RunStats { layers: plan.model.layers, ..RunStats::default() }
    }
    /// Adds tokens of a plan whose programs decide nothing: they ran all its layers.
    pub(crate) fn add_whole(&mut self, plan: &Plan, tokens: u64) {
        if plan.programs.iter().any(|p| !telling(p).is_empty()) {
            return;
        }
        self.tokens += tokens;
        self.layers_run += tokens * u64::from(self.layers);
    }
    /// Adds the decisions of a run: the names of outputs and their values `[B, S]`. `counts` tells which tokens count,
    /// in the order of rows; without it all do.
    pub(crate) fn add<'t>(&mut self, told: impl Iterator<Item = (&'t str, &'t Tensor)>, counts: Option<&[bool]>) {
        let told: Vec<(Decision, &[i32])> = told.filter_map(|(name, t)| Some((decision(name)?, t.as_i32()?))).collect();
        let Some(tokens) = told.first().map(|(_, v)| v.len()) else { return };
        for t in (0..tokens).filter(|t| counts.is_none_or(|c| c.get(*t) == Some(&true))) {
            let ran = |v: &[i32]| v.get(t).is_some_and(|v| *v != 0);
            self.tokens += 1;
            let mut run = self.layers;
            let mut left = None;
            let mut trips = 1;
            for (d, v) in &told {
                match d {
                    Decision::Exit { layers, governs } if !ran(v) => {
                        run = run.saturating_sub(*governs);
                        left = Some(left.map_or(*layers, |l: u32| l.min(*layers)));
                    }
                    Decision::Trip { layers } if !ran(v) => run = run.saturating_sub(*layers),
                    Decision::Trip { .. } => trips += 1,
                    Decision::Layer if !ran(v) => run = run.saturating_sub(1),
                    Decision::Retained { of } => {
                        self.kv_merged += u64::from(*of);
                        self.kv_retained += v.get(t).and_then(|v| u64::try_from(*v).ok()).unwrap_or(0);
                    }
                    Decision::Ffn => {
                        self.ffn_possible += 1;
                        self.ffn_run += u64::from(ran(v));
                    }
                    _ => {}
                }
            }
            self.layers_run += u64::from(run);
            if told.iter().any(|(d, _)| matches!(d, Decision::Trip { .. })) {
                *self.trips.entry(trips).or_default() += 1;
            }
            if told.iter().any(|(d, _)| matches!(d, Decision::Exit { .. })) {
                *self.exit_histogram.entry(left.unwrap_or(self.layers)).or_default() += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_become_layers_and_exits() {
        let mut s = RunStats { layers: 6, ..RunStats::default() };
        let t = |v: &[i32]| Tensor::i32(&[1, v.len() as u64], v.to_vec()).unwrap();
        let (early, late, ffn) = (t(&[0, 1, 1]), t(&[0, 0, 1]), t(&[1, 0, 1]));
        let told = [("ran:exit.2+2", &early), ("ran:exit.4+2", &late), ("ran:ffn.3", &ffn)];
        s.add(told.into_iter(), Some(&[true, true, true]));
        assert_eq!((s.tokens, s.layers_run, s.ffn_run, s.ffn_possible), (3, 2 + 4 + 6, 2, 3));
        assert_eq!(s.exit_histogram, BTreeMap::from([(2, 1), (4, 1), (6, 1)]));
        let mut s = RunStats { layers: 6, ..RunStats::default() };
        let told = [("ran:trip.2+2", &t(&[0, 1, 1])), ("ran:trip.4+2", &t(&[0, 0, 1]))];
        s.add(told.into_iter(), None);
        assert_eq!((s.layers_run, s.trips), (2 + 4 + 6, BTreeMap::from([(1, 1), (2, 1), (3, 1)])));
    }
}
