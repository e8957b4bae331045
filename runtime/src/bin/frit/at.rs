//! The run that a verb counts or times: so many sequences of so many tokens behind so many others.

use frit_plan::{Plan, sizes};

#[derive(clap::Args, Clone)]
pub struct At {
    /// Sequences of the run.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Tokens of each sequence.
    #[arg(long, default_value_t = 64)]
    tokens: u64,
    /// Tokens already in the cache.
    #[arg(long, default_value_t = 64)]
    past: u64,
}

impl At {
    /// Values of a plan's sizes for such a run of a program.
    pub fn values(&self, plan: &Plan, program: &str) -> Vec<u64> {
        let fixed = plan.program(program).map(|p| p.fixed.clone()).unwrap_or_default();
        let bucket = program.rsplit_once('@').and_then(|(_, rows)| rows.parse::<u64>().ok());
        let tokens = bucket.map_or(self.tokens, |rows| self.tokens.min((rows / self.batch.max(1)).max(1)));
        let value = |name: &str| match name {
            _ if fixed.iter().any(|(n, _)| n == name) => fixed.iter().find(|(n, _)| n == name).map_or(1, |f| f.1),
            sizes::BATCH => self.batch,
            sizes::TOKENS => tokens,
            sizes::PAST if program == "decode" || program == "decode_wide" => self.past,
            sizes::PAST => 0,
            sizes::CAPACITY | sizes::POSITIONS => self.past + self.tokens,
            _ => 1,
        };
        plan.sizes.iter().map(|s| value(&s.name).max(s.min)).collect()
    }
}
