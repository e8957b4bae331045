//! Products of factors multiplied out: updates into their weights, maps that follow each other into one.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::extension::{LINEAR, LORA_A, LORA_B};
use crate::transform::family::Side;
use serde::{Deserialize, Serialize};

/// `W + B A → W` for every update. A weight that several layers share with unlike updates is refused, unless it may be
/// given to each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FoldAdapters {
    /// Shared weights become private where their updates differ.
    pub untie: bool,
}

/// Linear maps with nothing in between become one: factors `B A` where the product is smaller than both, and layers that
/// are linear maps in a row (`W₂W₁`, `W₂b₁ + b₂`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeLinears {}

/// Stems of all maps with factors.
fn factored(c: &Checkpoint) -> Vec<String> {
    let end = format!(".{LORA_A}");
    c.names().filter_map(|n| n.strip_suffix(&end)).map(str::to_owned).collect()
}

fn product(c: &Checkpoint, stem: &str) -> Result<Dense> {
    let (b, a) = (c.values(&format!("{stem}.{LORA_B}"))?, c.values(&format!("{stem}.{LORA_A}"))?);
    if b.cols() != a.rows() {
        return refuse("fold-adapters", format!("`{stem}`: factors of rank {} and {}", b.cols(), a.rows()));
    }
    Ok(b.times(&a))
}

impl Transform for FoldAdapters {
    fn name(&self) -> &'static str {
        "fold-adapters"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let stems: Vec<String> = factored(c).into_iter().filter(|s| c.has(&format!("{s}.weight"))).collect();
        let mut problems = Vec::new();
        let mut folded: Vec<(String, Dense)> = Vec::new();
        for stem in &stems {
            let update = product(c, stem)?;
            let update = if c.family().transposed { update.transposed() } else { update };
            let weight = format!("{stem}.weight");
            folded.push((weight.clone(), Dense::combine(self.name(), &[(1.0, &c.values(&weight)?), (1.0, &update)])?));
            let others: Vec<String> =
                c.aliases(&weight).iter().filter(|n| **n != weight).map(|n| (*n).to_owned()).collect();
            for other in others {
                let other_stem = other.trim_end_matches(".weight").to_owned();
                let same = c.has(&format!("{other_stem}.{LORA_A}")) && {
                    let theirs = product(c, &other_stem)?;
                    let theirs = if c.family().transposed { theirs.transposed() } else { theirs };
                    theirs == update
                };
                if !same && !self.untie {
                    problems.push(format!("`{weight}` is also `{other}`, whose update differs"));
                    break;
                }
            }
        }
        if !problems.is_empty() {
            problems.truncate(4);
            problems.push("give --untie to store the folded weights apart".into());
            return Err(crate::transform::Error::Refused { step: self.name().into(), problems });
        }
        for (name, values) in &folded {
            c.put(name, values);
        }
        for stem in &stems {
            c.remove(&format!("{stem}.{LORA_A}"));
            c.remove(&format!("{stem}.{LORA_B}"));
        }
        let mut extension = c.extension()?;
        extension.lora = None;
        c.set_extension(&extension);
        Ok(vec![format!("{} updates are in their weights", stems.len())])
    }
}

impl Transform for MergeLinears {
    fn name(&self) -> &'static str {
        "merge-linears"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let mut extension = c.extension()?;
        let mut lines = Vec::new();
        let alone: Vec<String> = factored(c).into_iter().filter(|s| !c.has(&format!("{s}.weight"))).collect();
        let mut merged = 0;
        for stem in &alone {
            let w = product(c, stem)?;
            let rank = c.values(&format!("{stem}.{LORA_A}"))?.rows();
            if w.rows() * w.cols() < (w.rows() + w.cols()) * rank {
                let w = if c.family().transposed { w.transposed() } else { w };
                c.put(&format!("{stem}.weight"), &w);
                c.remove(&format!("{stem}.{LORA_A}"));
                c.remove(&format!("{stem}.{LORA_B}"));
                merged += 1;
            }
        }
        if merged > 0 {
            lines.push(format!("{merged} products are smaller than their factors"));
        }
        if merged == alone.len() {
            extension.low_rank = None;
        }
        c.set_extension(&extension);

        let (stack, count) = c.stack(Side::Only)?;
        let linear = |i: usize| extension.linear_layers.contains(&(i as u32));
        let mut kept: Vec<usize> = Vec::new();
        for i in 0..count {
            let Some(before) = kept.last().copied().filter(|l| linear(*l) && linear(i)) else {
                kept.push(i);
                continue;
            };
            let [first, second] = [before, i].map(|i| format!("{}{LINEAR}", c.layer(stack, i)));
            let (w1, w2) = (c.values(&format!("{first}.weight"))?, c.values(&format!("{second}.weight"))?);
            let [b1, b2] = [&first, &second].map(|s| format!("{s}.bias"));
            let read = |n: &str| if c.has(n) { c.values(n) } else { Ok(Dense::zeros(&[w1.rows()])) };
            let (b1, b2) = (read(&b1)?, read(&b2)?);
            let moved = w2.times(&Dense::matrix(b1.data.len(), 1, b1.data));
            let bias = moved.data.iter().zip(&b2.data).map(|(a, b)| a + b).collect();
            c.put(&format!("{first}.weight"), &w2.times(&w1));
            c.put(&format!("{first}.bias"), &Dense::vector(bias));
            lines.push(format!("linear layer {i} is part of layer {before}"));
        }
        c.rearrange(self.name(), Side::Only, &kept, false)?;
        if lines.is_empty() {
            lines.push("no two linear maps follow each other".into());
        }
        Ok(lines)
    }
}
