//! Heads and neurons: fewer of them, or in another order.

use super::resolved;
use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::family::{Role, Side, Stack};
use crate::transform::layer_list::LayerList;
use crate::transform::linear::Linear;
use serde::{Deserialize, Serialize};

/// What neurons and heads are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// `‖row of up‖ · ‖column of down‖` (and of gate, where there is one), largest first.
    #[default]
    Importance,
    /// Reversed: for tests of the order's independence.
    Reverse,
}

/// Takes groups of heads that share a key head out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PruneHeads {
    /// Key heads to be removed, with the query heads that use them; by number, in each of `layers`.
    pub kv_heads: LayerList,
    /// In which layers; all if none are named.
    #[serde(default)]
    pub layers: Option<LayerList>,
}

/// Keeps the first neurons and heads of each layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Slice {
    /// Neurons of the feed-forward part.
    pub ff: Option<usize>,
    /// Key heads, with the query heads that use them.
    pub kv_heads: Option<usize>,
    /// In which layers; all if none are named.
    pub layers: Option<LayerList>,
}

/// Puts the neurons of the feed-forward parts in another order, which changes nothing but the order of sums.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PermuteNeurons {
    /// The order.
    pub by: By,
    /// In which layers; all if none are named.
    pub layers: Option<LayerList>,
}

impl Transform for PruneHeads {
    fn name(&self) -> &'static str {
        "prune-heads"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let layers = self.layers.clone().unwrap_or(LayerList::all());
        let (side, layers) = resolved(self.name(), c, &layers)?;
        let heads = c.heads(side)?;
        for i in &layers {
            let count = heads[*i].k as usize;
            let gone = self.kv_heads.resolve(count).map_err(|e| crate::transform::Error::Refused {
                step: self.name().into(),
                problems: vec![format!("of key heads in layer {i}: {}", e.replace("layer ", "head "))],
            })?;
            let kept: Vec<usize> = (0..count).filter(|h| !gone.contains(h)).collect();
            keep_heads(self.name(), c, side, *i, &kept)?;
        }
        Ok(vec![format!("key heads {} are gone, with their queries", self.kv_heads)])
    }
}

impl Transform for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let layers = self.layers.clone().unwrap_or(LayerList::all());
        let (side, layers) = resolved(self.name(), c, &layers)?;
        let (stack, _) = c.stack(side)?;
        let mut lines = Vec::new();
        if let Some(n) = self.kv_heads {
            for i in &layers {
                keep_heads(self.name(), c, side, *i, &(0..n).collect::<Vec<_>>())?;
            }
            lines.push(format!("{n} key heads are left"));
        }
        if let Some(ff) = self.ff {
            let mut widths = c.ff_widths(side)?;
            for i in &layers {
                if ff == 0 || ff > widths[*i] {
                    return refuse(self.name(), format!("layer {i} has {} neurons; {ff} are asked for", widths[*i]));
                }
                keep_neurons(self.name(), c, stack, *i, &(0..ff).collect::<Vec<_>>())?;
                widths[*i] = ff;
            }
            c.set_ff_widths(&widths)?;
            lines.push(format!("{ff} neurons are left"));
        }
        if lines.is_empty() {
            return refuse(self.name(), "say how many ff or kv-heads are to be left");
        }
        Ok(lines)
    }
}

impl Transform for PermuteNeurons {
    fn name(&self) -> &'static str {
        "permute-neurons"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let layers = self.layers.clone().unwrap_or(LayerList::all());
        let (side, layers) = resolved(self.name(), c, &layers)?;
        let (stack, _) = c.stack(side)?;
        for i in &layers {
            let down = c.need(self.name(), stack, *i, Role::Down)?.weight;
            let mut order: Vec<usize> = (0..down.cols()).collect();
            match self.by {
                By::Reverse => order.reverse(),
                By::Importance => {
                    let mut score: Vec<f64> = (0..down.cols())
                        .map(|j| (0..down.rows()).map(|r| down.at(r, j).powi(2)).sum::<f64>().sqrt())
                        .collect();
                    for role in [Role::Gate, Role::Up] {
                        if let Some(l) = c.linear(stack, *i, role)? {
                            for (j, s) in score.iter_mut().enumerate() {
                                *s *= l.weight.row(j).iter().map(|v| v * v).sum::<f64>().sqrt();
                            }
                        }
                    }
                    order.sort_by(|a, b| score[*b].total_cmp(&score[*a]).then(a.cmp(b)));
                }
            }
            keep_neurons(self.name(), c, stack, *i, &order)?;
        }
        Ok(vec![format!("neurons of {} layers are in another order", layers.len())])
    }
}

/// Keeps these neurons of a layer, in this order.
fn keep_neurons(step: &str, c: &mut Checkpoint, stack: &Stack, layer: usize, kept: &[usize]) -> Result<()> {
    let mut parts: Vec<(Role, Linear)> = Vec::new();
    for role in Role::FFN {
        let Some(l) = c.linear(stack, layer, role)? else { continue };
        parts.push((role, if role == Role::Down { of_cols(&l, kept) } else { of_rows(&l, kept) }));
    }
    let refs: Vec<(Role, &Linear)> = parts.iter().map(|(r, l)| (*r, l)).collect();
    c.set_linears(step, stack, layer, &refs)
}

/// Keeps these key heads of a layer with the query heads that use them.
fn keep_heads(step: &str, c: &mut Checkpoint, side: Side, layer: usize, kept: &[usize]) -> Result<()> {
    let (stack, _) = c.stack(side)?;
    let mut all = c.heads(side)?;
    let h = all[layer].clone();
    let extension = c.extension()?;
    if !extension.kv_map.is_empty() || !extension.probs_from.is_empty() {
        return refuse(step, "layers attend by other layers, whose heads must stay as many");
    }
    if h.k != h.v || !h.k_of.is_empty() || !h.v_of.is_empty() {
        return refuse(step, format!("layer {layer} has unlike key and value heads"));
    }
    if kept.is_empty() || kept.iter().any(|k| *k as u64 >= h.k) {
        return refuse(step, format!("layer {layer} has {} key heads; {} cannot be kept", h.k, kept.len()));
    }
    if (kept.len() as u64) < h.k {
        if c.family().alibi {
            return refuse(step, "the slopes of heads follow from their number; heads cannot go");
        }
        c.unpack_qkv(step, stack, all.len())?;
    }
    let d = c.sizes()?.head_dim;
    let group = (h.q / h.k) as usize;
    let rows_of = |heads: &[usize]| heads.iter().flat_map(|h| h * d..(h + 1) * d).collect::<Vec<usize>>();
    let kv_rows = rows_of(kept);
    let q_rows = rows_of(&kept.iter().flat_map(|k| k * group..(k + 1) * group).collect::<Vec<_>>());
    let mut parts = Vec::new();
    for (role, rows) in [(Role::Q, &q_rows), (Role::K, &kv_rows), (Role::V, &kv_rows)] {
        parts.push((role, of_rows(&c.need(step, stack, layer, role)?, rows)));
    }
    parts.push((Role::O, of_cols(&c.need(step, stack, layer, Role::O)?, &q_rows)));
    let refs: Vec<(Role, &Linear)> = parts.iter().map(|(r, l)| (*r, l)).collect();
    c.set_linears(step, stack, layer, &refs)?;
    all[layer].q = (kept.len() * group) as u64;
    all[layer].k = kept.len() as u64;
    all[layer].v = kept.len() as u64;
    // Lists stand in the extension until every layer has been cut, then the family's fields take them if they can.
    c.set_heads(all)
}

fn of_rows(l: &Linear, rows: &[usize]) -> Linear {
    let bias = l.bias.as_ref().map(|b| rows.iter().map(|r| b[*r]).collect());
    Linear { weight: l.weight.take_rows(rows), bias }
}

fn of_cols(l: &Linear, cols: &[usize]) -> Linear {
    let weight: Dense = l.weight.take_cols(cols);
    Linear { weight, bias: l.bias.clone() }
}
