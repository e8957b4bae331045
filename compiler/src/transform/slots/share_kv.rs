//! Layers that attend to the keys and values of others.

use super::maps::{self, KvMap};
use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse};
use crate::transform::extension::KvSource;
use crate::transform::family::{Role, Side, Stack};
use crate::transform::linear::Linear;
use serde::{Deserialize, Serialize};

/// What the projections of a shared slot are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvInit {
    /// The mean over the layers that use it.
    #[default]
    Mean,
    /// The layer's own.
    Own,
    /// The mean of what is there and the next, one after the other, as one published converter has it: the later weigh
    /// more.
    RunningMean,
}

/// Lets layers attend to the keys and values of others; projections that nobody uses any more are gone. One of `pattern`,
/// `map`, `kv_layers` and `v_from` says which.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ShareKv {
    /// `cla:S`: every S-th layer has them; `tail:N`: the last N layers use those of the last in front.
    pub pattern: Option<String>,
    /// The source of each layer: `0_20_…_20_21`, `s` behind a number for a sliding window.
    #[serde(deserialize_with = "crate::transform::step::text")]
    pub map: Option<String>,
    /// So many layers have them.
    pub kv_layers: Option<usize>,
    /// Heads of keys and values that are left.
    pub kv_heads: Option<usize>,
    /// All layers use the values of this one, and keys of their own.
    pub v_from: Option<usize>,
    /// Width of the sliding windows in `map`; the configuration's if none is given.
    pub window: Option<u64>,
    /// What the shared projections are.
    pub init: KvInit,
}

impl Transform for ShareKv {
    fn name(&self) -> &'static str {
        "share-kv"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let wrong = |e: String| Error::Refused { step: self.name().into(), problems: vec![e] };
        let (stack, count) = c.stack(Side::Only)?;
        let mut extension = c.extension()?;
        if !extension.kv_map.is_empty() || !extension.probs_from.is_empty() {
            return refuse(self.name(), "layers attend by other layers already");
        }
        if let Some(i) = extension.drop_attention.iter().chain(&extension.linear_layers).next() {
            return refuse(self.name(), format!("layer {i} has no attention"));
        }
        let given = [self.pattern.is_some(), self.map.is_some(), self.kv_layers.is_some(), self.v_from.is_some()];
        let own: KvMap = (0..count).map(|l| (l, false)).collect();
        let map = match (&self.pattern, &self.map, self.kv_layers, self.v_from) {
            _ if given.iter().filter(|g| **g).count() > 1 => {
                return refuse(self.name(), "give one of pattern, map, kv-layers and v-from");
            }
            (Some(p), ..) => pattern(p, c, count).map_err(wrong)?,
            (_, Some(text), ..) => maps::parse(text, count).map_err(wrong)?,
            (_, _, Some(m), _) => maps::kv_layers(count, m).map_err(wrong)?,
            (.., Some(from)) if from >= count => {
                return refuse(self.name(), format!("layer {from} does not exist; there are {count}"));
            }
            (.., Some(_)) => own,
            _ if self.kv_heads.is_some() => own,
            _ => return refuse(self.name(), "give one of pattern, map, kv-layers, kv-heads and v-from"),
        };
        let sources: Vec<KvSource> =
            map.iter().map(|(s, _)| KvSource { k: *s as u32, v: self.v_from.unwrap_or(*s) as u32 }).collect();
        let identity = sources.iter().enumerate().all(|(i, s)| s.k as usize == i && s.v as usize == i);
        if !identity || self.kv_heads.is_some() {
            c.unpack_qkv(self.name(), stack, count)?;
            extension.split_qkv = c.extension()?.split_qkv;
        }
        let before = c.clone();
        for role in [Role::K, Role::V] {
            self.project(c, &before, stack, role, &sources)?;
        }
        if !identity {
            for (i, _) in sources.iter().enumerate().filter(|(i, _)| !sources.iter().any(|s| s.k as usize == *i)) {
                c.remove(&format!("{}self_attn.k_norm.weight", c.layer(stack, i)));
            }
            extension.kv_map = sources.clone();
        }
        if map.iter().any(|(_, window)| *window) {
            let width = self.window.or_else(|| c.number("sliding_window"));
            let width = width.ok_or_else(|| wrong("the map has sliding windows; give --window".into()))?;
            extension.windows = map.iter().map(|(_, window)| window.then_some(width)).collect();
        }
        c.set_extension(&extension);
        if let Some(g) = self.kv_heads {
            let mut heads = c.heads(Side::Only)?;
            heads.iter_mut().for_each(|h| (h.k, h.v) = (g as u64, g as u64));
            c.set_heads(heads)?;
        }
        let [k, v] = maps::slots(&sources);
        Ok(vec![format!("{k} slots of keys and {v} of values serve {count} layers")])
    }
}

fn pattern(text: &str, c: &Checkpoint, count: usize) -> Result<KvMap, String> {
    let number = |n: &str| n.parse::<usize>().map_err(|e| format!("`{text}`: {e}"));
    match text.split_once(':') {
        Some(("cla", s)) => maps::cla(count, number(s)?),
        Some(("tail", n)) => {
            let types: Vec<serde_json::Value> =
                c.config.get("layer_types").and_then(|t| t.as_array()).cloned().unwrap_or_default();
            let types = if types.len() == count { types } else { vec![serde_json::Value::Null; count] };
            maps::tail(&types, number(n)?)
        }
        _ => Err(format!("`{text}` is neither cla:S nor tail:N")),
    }
}

impl ShareKv {
    /// Writes the projections of one part: merged where they serve several layers, gone where they serve none.
    fn project(
        &self,
        c: &mut Checkpoint,
        before: &Checkpoint,
        stack: &Stack,
        role: Role,
        sources: &[KvSource],
    ) -> Result<()> {
        let source = |s: &KvSource| if role == Role::K { s.k } else { s.v } as usize;
        let s = before.sizes()?;
        for i in 0..sources.len() {
            let users: Vec<usize> = (0..sources.len()).filter(|j| source(&sources[*j]) == i).collect();
            if users.is_empty() {
                c.remove_linear(self.name(), stack, i, role)?;
                continue;
            }
            if users == [i] && self.kv_heads.is_none() {
                continue;
            }
            let of: Vec<usize> = if self.init == KvInit::Own { vec![i] } else { users };
            let maps: Vec<Linear> =
                of.iter().map(|j| before.need(self.name(), stack, *j, role)).collect::<Result<_>>()?;
            let merged = self.merged(&maps, s.kv_heads, s.head_dim)?;
            c.set_linear(self.name(), stack, i, role, &merged)?;
        }
        Ok(())
    }

    /// Several layers' projections in one, with fewer heads where asked for: each new head is the mean over the old heads
    /// of its group in all layers.
    fn merged(&self, maps: &[Linear], heads: usize, dim: usize) -> Result<Linear> {
        let to = self.kv_heads.unwrap_or(heads);
        if to == 0 || heads % to != 0 {
            return refuse(self.name(), format!("{heads} heads do not fall into {to} equal groups"));
        }
        let group = heads / to;
        let cols = maps[0].weight.cols();
        let mut weight = Dense::zeros(&[to * dim, cols]);
        let mut bias = maps[0].bias.as_ref().map(|_| vec![0.0; to * dim]);
        for g in 0..to {
            let members: Vec<(usize, usize)> =
                (0..maps.len()).flat_map(|m| (g * group..(g + 1) * group).map(move |h| (m, h))).collect();
            let shares = shares(self.init, members.len());
            for ((m, h), share) in members.iter().zip(&shares) {
                for r in 0..dim {
                    let row = maps[*m].weight.row(h * dim + r);
                    weight.row_mut(g * dim + r).iter_mut().zip(row).for_each(|(t, v)| *t += share * v);
                    if let (Some(to), Some(from)) = (&mut bias, &maps[*m].bias) {
                        to[g * dim + r] += share * from[h * dim + r];
                    }
                }
            }
        }
        Ok(Linear { weight, bias })
    }
}

/// The weight of each of `n` terms.
fn shares(init: KvInit, n: usize) -> Vec<f64> {
    match init {
        KvInit::RunningMean => (0..n).map(|i| 0.5f64.powi((n - i.max(1)) as i32)).collect(),
        _ => vec![1.0 / n as f64; n],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_mean_weighs_the_later_more() {
        assert_eq!(shares(KvInit::RunningMean, 4), [0.125, 0.125, 0.25, 0.5]);
        assert_eq!(shares(KvInit::RunningMean, 1), [1.0]);
        assert_eq!(shares(KvInit::Mean, 4), [0.25; 4]);
    }
}
