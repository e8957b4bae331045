//! How a verb that writes text draws its tokens.

use anyhow::{Result, bail};
use frit::Sampling;

#[derive(clap::Args, Clone)]
pub struct Draw {
    /// Randomness; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from this many most likely tokens; needs a temperature.
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw from the most likely tokens up to this probability; needs a temperature.
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Seed of the draws [default: 0]; needs a temperature.
    #[arg(long)]
    seed: Option<u64>,
}

impl Draw {
    /// How tokens are drawn; `None`: the most likely one.
    ///
    /// # Errors
    /// A value out of its range, or one that would change nothing.
    pub fn sampling(&self) -> Result<Option<Sampling>> {
        let &Draw { temperature, top_k, top_p, seed } = self;
        let sampling = Sampling { temperature, top_k, top_p, seed: seed.unwrap_or(0) };
        sampling.check()?;
        if temperature > 0.0 {
            return Ok(Some(sampling));
        }
        let given = [("--top-k", top_k.is_some()), ("--top-p", top_p.is_some()), ("--seed", seed.is_some())];
        match given.iter().find(|g| g.1) {
            Some((name, _)) => bail!("{name} changes nothing at temperature 0\nhint: --temperature 0.8"),
            None => Ok(None),
        }
    }
}
