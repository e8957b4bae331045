//! `frit run --expect`: outputs against a golden.

use anyhow::{Result, bail};
use frit::Tensor;

/// How far an output is from what is expected of it.
#[derive(serde::Serialize)]
pub struct Compared {
    /// The output.
    pub name: String,
    /// Largest magnitude expected.
    pub magnitude: f64,
    /// Largest difference; infinite where a number is none.
    pub max_difference: f64,
}

impl Compared {
    /// Whether the difference is no larger than that part of the largest magnitude, or of 1.
    pub fn is_within(&self, tolerance: f64) -> bool {
        self.max_difference <= tolerance * self.magnitude.max(1.0)
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    match (t.as_f32(), t.as_i32()) {
        (Some(v), _) => v.iter().map(|v| f64::from(*v)).collect(),
        (_, Some(v)) => v.iter().map(|v| f64::from(*v)).collect(),
        _ => Vec::new(),
    }
}

/// Each expected array beside the output of its name; rows whose `attention_mask` among the inputs is 0 are passed over.
///
/// # Errors
/// Everything that is expected and not there, or of another shape.
pub fn compare(
    want: &[(String, Tensor)],
    got: &[(String, Tensor)],
    inputs: &[(String, Tensor)],
) -> Result<Vec<Compared>> {
    let mask = inputs.iter().find(|(n, _)| n == "attention_mask").map(|(_, t)| t);
    let (mut found, mut gaps) = (Vec::new(), Vec::new());
    for (name, want) in want {
        let Some((_, got)) = got.iter().find(|(n, _)| n == name) else {
            gaps.push(format!("there is no output `{name}`"));
            continue;
        };
        if got.shape() != want.shape() {
            gaps.push(format!("`{name}` is {:?}, {:?} expected", got.shape(), want.shape()));
            continue;
        }
        let of_rows = mask.filter(|m| want.shape().starts_with(m.shape()) && !m.shape().is_empty());
        let (seen, w, g) = (of_rows.map(numbers), numbers(want), numbers(got));
        let row = seen.as_ref().map_or(1, |m| (w.len() / m.len().max(1)).max(1));
        let counts = |i: &usize| seen.as_ref().is_none_or(|m| m.get(i / row).is_some_and(|m| *m != 0.0));
        let (mut magnitude, mut max_difference) = (0.0f64, 0.0f64);
        for i in (0..w.len()).filter(counts) {
            let apart = (g[i] - w[i]).abs();
            magnitude = magnitude.max(w[i].abs());
            max_difference = max_difference.max(if apart.is_finite() { apart } else { f64::INFINITY });
        }
        found.push(Compared { name: name.clone(), magnitude, max_difference });
    }
    if gaps.is_empty() { Ok(found) } else { bail!("the outputs are not those that are expected: {}", gaps.join("; ")) }
}
