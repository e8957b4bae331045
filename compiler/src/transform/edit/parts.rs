//! Layers without one of their parts.

use super::resolved;
use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::error::{Result, refuse, refuse_all};
use crate::transform::family::{NormRole, Role, Side};
use crate::transform::layer_list::LayerList;
use serde::{Deserialize, Serialize};

/// Takes the feed-forward part out of layers, with its norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropFfn {
    /// Which.
    pub layers: LayerList,
}

/// Takes attention out of layers, with its norm and its slot in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropAttention {
    /// Which.
    pub layers: LayerList,
}

impl Transform for DropFfn {
    fn name(&self) -> &'static str {
        "drop-ffn"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let mut extension = c.extension()?;
        let (side, layers) = drop(self.name(), c, &self.layers, &Role::FFN, NormRole::Ffn, &extension.linear_layers)?;
        let gone = if side == Side::Encoder { &mut extension.drop_encoder_ffn } else { &mut extension.drop_ffn };
        *gone = joined(gone, &layers);
        c.set_extension(&extension);
        Ok(vec![format!("layers {} have no feed-forward part", self.layers)])
    }
}

impl Transform for DropAttention {
    fn name(&self) -> &'static str {
        "drop-attention"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let mut extension = c.extension()?;
        if c.family().stacks.len() > 1 {
            return refuse(self.name(), "models with two stacks attend in every layer");
        }
        let (_, layers) = resolved(self.name(), c, &self.layers)?;
        let mut problems = Vec::new();
        for i in &layers {
            let users = |of: &dyn Fn(usize) -> bool, n: usize| {
                (0..n).filter(|j| j != i && !layers.contains(j) && of(*j)).collect()
            };
            let kv: Vec<usize> = users(
                &|j| extension.kv_map[j].k as usize == *i || extension.kv_map[j].v as usize == *i,
                extension.kv_map.len(),
            );
            let probs: Vec<usize> = users(&|j| extension.probs_from[j] as usize == *i, extension.probs_from.len());
            if !kv.is_empty() || !probs.is_empty() {
                problems.push(format!("layer {i} makes what layers {:?} attend by", [kv, probs].concat()));
            }
        }
        refuse_all(self.name(), problems)?;
        let (_, layers) =
            drop(self.name(), c, &self.layers, &Role::ATTENTION, NormRole::Attention, &extension.linear_layers)?;
        extension.drop_attention = joined(&extension.drop_attention, &layers);
        c.set_extension(&extension);
        Ok(vec![format!("layers {} have no attention", self.layers)])
    }
}

fn joined(a: &[u32], b: &[usize]) -> Vec<u32> {
    let mut all: Vec<u32> = a.iter().copied().chain(b.iter().map(|i| *i as u32)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn drop(
    step: &str,
    c: &mut Checkpoint,
    list: &LayerList,
    roles: &[Role],
    norm: NormRole,
    linear: &[u32],
) -> Result<(Side, Vec<usize>)> {
    let (side, layers) = resolved(step, c, list)?;
    let (stack, _) = c.stack(side)?;
    if !c.family().pre_norm || stack.norms.iter().any(|(r, _)| *r == NormRole::Output) && has_output_norms(c, stack) {
        return refuse(step, "a norm follows the part here, so that leaving both out is another model");
    }
    let lacking: Vec<String> = layers
        .iter()
        .filter(|i| linear.contains(&(**i as u32)) || roles.iter().all(|r| c.stem(stack, **i, *r).is_none()))
        .map(|i| format!("layer {i} has no such part"))
        .collect();
    refuse_all(step, lacking)?;
    for i in &layers {
        let at = c.layer(stack, *i);
        let stems: Vec<&str> = stack
            .linears
            .iter()
            .filter(|(p, _)| p.roles().iter().all(|r| roles.contains(r)))
            .map(|(_, stem)| *stem)
            .chain(Checkpoint::norm_stem(stack, norm))
            .collect();
        let heads = if norm == NormRole::Attention { "self_attn." } else { "\0" };
        for part in c.layer_parts(stack, *i) {
            let of = |s: &&str| part.strip_prefix(*s).is_some_and(|rest| rest.starts_with('.'));
            if stems.iter().any(of) || part.starts_with(heads) {
                c.remove(&format!("{at}{part}"));
            }
        }
    }
    Ok((side, layers))
}

fn has_output_norms(c: &Checkpoint, stack: &crate::transform::family::Stack) -> bool {
    let at = c.layer(stack, 0);
    stack.norms.iter().any(|(r, stem)| *r == NormRole::Output && c.has(&format!("{at}{stem}.weight")))
}
