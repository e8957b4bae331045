//! Rotary positions: the angular frequency of each pair and the factor on the table, for each kind of scaling, as
//! transformers 4.57 computes them. All arithmetic is in f64 and rounded once.

use std::f64::consts::PI;

/// The most elements of a head that may be rotated. More is a gap wherever a configuration is read, and its table is not
/// computed: a damaged file may state billions.
pub const MOST_ROTATED: u64 = 1 << 16;

/// Rotary positions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies, above 1.
    pub theta: f64,
    /// Elements of a head that are rotated; even.
    pub dim: u64,
    /// Positions of the model: `max_position_embeddings`.
    pub context: u64,
    /// How the frequencies are changed.
    pub scaling: RopeScaling,
}

/// How frequencies are changed to reach longer contexts. `factor` is how much longer.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of rope_scaling")]
pub enum RopeScaling {
    /// `f = θ^(−2i/d)`.
    Default,
    /// `f / factor`.
    Linear { factor: f64 },
    /// NTK: the base grows with the sequence once it is longer than the context; up to there, the default.
    Dynamic { factor: f64 },
    /// High frequencies stay, low ones are divided, with a ramp between; the table has a factor.
    Yarn {
        factor: f64,
        attention_factor: Option<f64>,
        beta_fast: f64,
        beta_slow: f64,
        mscale: Option<f64>,
        mscale_all_dim: Option<f64>,
        original_context: u64,
        truncate: bool,
    },
    /// As YaRN, with a ramp over wavelengths and no factor on the table.
    Llama3 { factor: f64, low: f64, high: f64, original_context: u64 },
    /// A divisor for each pair: `short` for sequences up to the original context, `long` for longer ones.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        factor: Option<f64>,
        attention_factor: Option<f64>,
        original_context: Option<u64>,
    },
    /// A divisor for each pair, at any length.
    Divisors(Vec<f32>),
}

/// What a rotary table is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// Radians per position of each pair.
    pub inv_freq: Vec<f32>,
    /// Factor on cosines and sines.
    pub scale: f32,
    /// What holds instead for longer sequences; `None`: the frequencies hold at any length.
    pub beyond: Option<Beyond>,
}

/// Frequencies of sequences that are longer than `after` tokens, those in the cache included.
#[derive(Clone, Debug, PartialEq)]
pub enum Beyond {
    /// Other frequencies.
    Other {
        /// The longest sequence that is not concerned.
        after: u64,
        /// Radians per position of each pair.
        inv_freq: Vec<f32>,
    },
    /// For a sequence of `L` tokens, each frequency times `(factor·L/after − factor + 1)^exponent`.
    Growing {
        /// The longest sequence that is not concerned.
        after: u64,
        /// How fast the base grows.
        factor: f32,
        /// The exponent of each pair.
        exponents: Vec<f32>,
    },
}

impl RopeConfig {
    /// The frequencies of this configuration.
    pub fn frequencies(&self) -> Frequencies {
        let pairs = self.dim.min(MOST_ROTATED) / 2;
        let plain: Vec<f64> = (0..pairs).map(|i| self.theta.powf(-((2 * i) as f64) / self.dim as f64)).collect();
        let rounded = |values: Vec<f64>| values.into_iter().map(|f| f as f32).collect();
        let done =
            |inv_freq, scale: f64, beyond| Frequencies { inv_freq: rounded(inv_freq), scale: scale as f32, beyond };
        match &self.scaling {
            RopeScaling::Default => done(plain, 1.0, None),
            RopeScaling::Linear { factor } => done(plain.iter().map(|f| f / factor).collect(), 1.0, None),
            RopeScaling::Dynamic { factor } => {
                // (θ·g^(d/(d−2)))^(−2i/d) == θ^(−2i/d) · g^(−2i/(d−2)).
                let exponent = |i: u64| -((2 * i) as f64) / (self.dim as f64 - 2.0);
                let exponents = rounded((0..pairs).map(exponent).collect());
                done(plain, 1.0, Some(Beyond::Growing { after: self.context, factor: *factor as f32, exponents }))
            }
            RopeScaling::Yarn { .. } => {
                let (inv_freq, scale) = self.yarn(&plain);
                done(inv_freq, scale, None)
            }
            RopeScaling::Llama3 { factor, low, high, original_context } => {
                let old = *original_context as f64;
                let scaled = plain.iter().map(|f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength > old / low {
                        f / factor
                    } else if wavelength < old / high {
                        *f
                    } else {
                        let smooth = (old / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                });
                done(scaled.collect(), 1.0, None)
            }
            RopeScaling::LongRope { short, long, factor, attention_factor, original_context } => {
                let original = original_context.unwrap_or(self.context);
                let factor = match original_context {
                    Some(original) => self.context as f64 / *original as f64,
                    None => factor.unwrap_or(1.0),
                };
                let scale = attention_factor.unwrap_or_else(|| match factor > 1.0 && original > 1 {
                    true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                    false => 1.0,
                });
                let inv_freq = rounded(divided(&plain, long));
                done(divided(&plain, short), scale, Some(Beyond::Other { after: original, inv_freq }))
            }
            RopeScaling::Divisors(divisors) => done(divided(&plain, divisors), 1.0, None),
        }
    }

    /// The longest sequence that the model is meant for.
    pub fn longest(&self) -> u64 {
        let factor = match &self.scaling {
            RopeScaling::Dynamic { factor } => *factor,
            RopeScaling::LongRope { factor, original_context: None, .. } => factor.unwrap_or(1.0),
            _ => 1.0,
        };
        // A float this large is a whole number of positions that no memory holds; the cast saturates.
        self.context.max((self.context as f64 * factor) as u64).min(i32::MAX as u64)
    }

    /// YaRN: the ramp goes from the pair that turns `beta_fast` times within the original context to the one that turns
    /// `beta_slow` times.
    fn yarn(&self, plain: &[f64]) -> (Vec<f64>, f64) {
        let RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            original_context,
            truncate,
        } = &self.scaling
        else {
            return (plain.to_vec(), 1.0);
        };
        let magnitude = |m: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let scale = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
            (Some(m), Some(all)) => magnitude(*m) / magnitude(*all),
            _ => magnitude(1.0),
        });
        let dim = self.dim as f64;
        let pair = |turns: f64| dim * (*original_context as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (low, high) = (pair(*beta_fast), pair(*beta_slow));
        let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let inv_freq = plain.iter().enumerate().map(|(i, f)| {
            let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * interpolated + f * (1.0 - interpolated)
        });
        (inv_freq.collect(), scale)
    }
}

fn divided(plain: &[f64], divisors: &[f32]) -> Vec<f64> {
    plain.iter().zip(divisors).map(|(f, d)| f / f64::from(*d)).collect()
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
