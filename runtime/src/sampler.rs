//! The choice of the next token from logits.
//!
//! Order: divide by the temperature, keep the `top_k` largest, soften to probabilities, keep the smallest set of most
//! likely tokens whose probabilities reach `top_p`, draw. Ties are broken by the smaller token id, so that a seed gives
//! the same text on every machine whose logits are equal.

use crate::{Error, Result};

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// Divides the logits; 0 means greedy.
    pub temperature: f32,
    /// Keep this many of the largest logits.
    pub top_k: Option<usize>,
    /// Keep the most likely tokens up to this probability.
    pub top_p: Option<f32>,
    /// Seed; each row of a batch draws from a stream of its own.
    pub seed: u64,
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Option`] that names the field.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str, found: String, want: &str| {
            Err(Error::Option { option: what.into(), reason: format!("{found} is not {want}") })
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", self.temperature.to_string(), "a number from 0");
        }
        if self.top_k == Some(0) {
            return bad("top-k", "0".into(), "at least 1");
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => bad("top-p", p.to_string(), "above 0 and at most 1"),
            _ => Ok(()),
        }
    }
}

/// SplitMix64: a counter with steps of 0x9E3779B97F4A7C15, hashed by two multiplications.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of that number under `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut r = Rng(seed);
        let base = r.next_u64();
        Rng(base ^ Rng(stream).next_u64())
    }
    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number of [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The position of the first largest logit; NaN counts as the smallest.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0usize, f32::NEG_INFINITY);
    for (i, v) in logits.iter().enumerate() {
        if *v > best.1 {
            best = (i, *v);
        }
    }
    best.0 as u32
}

/// Draws tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    how: Sampling,
    rng: Rng,
}

impl Sampler {
    /// A sampler for a row of a batch.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(how: Sampling, row: usize) -> Result<Self> {
        how.check()?;
        Ok(Sampler { how, rng: Rng::new(how.seed, row as u64) })
    }

    /// The next token.
    ///
    /// # Errors
    /// [`Error::Device`] when no logit is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if self.how.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let kept = self.candidates(logits);
        let total: f64 = kept.iter().map(|c| c.1).sum();
        let Some(last) = kept.last() else {
            return Err(Error::Device("the model gave no finite logit".into()));
        };
        let mut left = self.rng.unit() * total;
        for (token, p) in &kept {
            left -= p;
            if left < 0.0 {
                return Ok(*token);
            }
        }
        Ok(last.0)
    }

    /// Tokens that may be drawn, most likely first, with their probabilities before the last cut.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let t = f64::from(self.how.temperature);
        let finite = logits.iter().enumerate().filter(|(_, v)| v.is_finite());
        let mut all: Vec<(u32, f64)> = finite.map(|(i, v)| (i as u32, f64::from(*v) / t)).collect();
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.how.top_k
            && k < all.len()
        {
            all.select_nth_unstable_by(k - 1, order);
            all.truncate(k);
        }
        all.sort_unstable_by(order);
        let top = all.first().map_or(0.0, |c| c.1);
        for c in &mut all {
            c.1 = (c.1 - top).exp();
        }
        let sum: f64 = all.iter().map(|c| c.1).sum();
        for c in &mut all {
            c.1 /= sum;
        }
        if let Some(p) = self.how.top_p {
            let mut reached = 0.0;
            let keep = all.iter().position(|c| {
                reached += c.1;
                reached >= f64::from(p)
            });
            all.truncate(keep.map_or(all.len(), |i| i + 1));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: Option<usize>, top_p: Option<f32>) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed: 7 }, 0).unwrap()
    }
    fn ids(s: &Sampler, logits: &[f32]) -> Vec<u32> {
        s.candidates(logits).iter().map(|c| c.0).collect()
    }

    #[test]
    fn drawn_shares_follow_the_probabilities() {
        let p = [0.5f32, 0.3, 0.15, 0.05];
        let logits: Vec<f32> = p.iter().map(|p| p.ln() + 3.0).collect();
        let mut s = sampler(1.0, None, None);
        let mut count = [0u32; 4];
        for _ in 0..40_000 {
            count[s.sample(&logits).unwrap() as usize] += 1;
        }
        for (c, p) in count.iter().zip(p) {
            assert!((*c as f32 / 40_000.0 - p).abs() < 0.01, "{count:?}");
        }
    }
    #[test]
    fn temperature_sharpens_and_zero_is_greedy() {
        let logits = [1.0f32, 2.0, 1.5];
        let warm = sampler(0.5, None, None).candidates(&logits);
        assert!((warm[0].1 / warm[1].1 - 1f64.exp()).abs() < 1e-9);
        assert_eq!(sampler(0.0, None, None).sample(&logits).unwrap(), 1);
    }
    #[test]
    fn top_k_keeps_exactly_k_and_breaks_ties_by_id() {
        let logits = [1.0f32, 3.0, 3.0, 2.0, 3.0];
        assert_eq!(ids(&sampler(1.0, Some(2), None), &logits), [1, 2]);
        assert_eq!(ids(&sampler(1.0, Some(4), None), &logits), [1, 2, 4, 3]);
        assert_eq!(ids(&sampler(1.0, Some(9), None), &logits).len(), 5);
    }
    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        assert_eq!(ids(&sampler(1.0, None, Some(0.4)), &logits), [0]);
        assert_eq!(ids(&sampler(1.0, None, Some(0.6)), &logits), [0, 1]);
        assert_eq!(ids(&sampler(1.0, None, Some(0.76)), &logits), [0, 1, 2]);
        assert_eq!(ids(&sampler(1.0, None, Some(1.0)), &logits), [0, 1, 2, 3]);
    }
    #[test]
    fn a_seed_repeats_and_rows_differ() {
        let logits = vec![0.0f32; 1000];
        let draw = |seed, row| {
            let mut s = Sampler::new(Sampling { temperature: 1.0, top_k: None, top_p: None, seed }, row).unwrap();
            (0..8).map(|_| s.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
    }
    #[test]
    fn the_generator_is_the_published_one() {
        let mut r = Rng(1_234_567);
        assert_eq!([r.next_u64(), r.next_u64()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
    #[test]
    fn values_that_are_no_numbers_are_never_drawn() {
        let mut s = sampler(1.0, None, None);
        assert_eq!(s.sample(&[f32::NAN, 1.0, f32::NEG_INFINITY]).unwrap(), 1);
        assert!(s.sample(&[f32::NAN]).is_err());
        assert_eq!(argmax(&[f32::NAN, 1.0, 1.0]), 1);
    }
    #[test]
    fn options_out_of_range_are_refused() {
        for (t, k, p) in [
            (-1.0, None, None),
            (f32::NAN, None, None),
            (1.0, Some(0), None),
            (1.0, None, Some(0.0)),
            (1.0, None, Some(1.1)),
        ] {
            assert!(Sampler::new(Sampling { temperature: t, top_k: k, top_p: p, seed: 0 }, 0).is_err());
        }
    }
}
