//! Gains of norms folded into the maps that read them.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse, refuse_all};
use crate::transform::family::{NormRole, Role, Stack};
use crate::transform::linear::Linear;
use serde::{Deserialize, Serialize};

/// `W diag(γ) → W`, `b + Wβ → b`, `γ → 1`, `β → 0`, for the norms at the input of attention and feed-forward parts, and
/// for the last one where the head has a table of its own. A weight that is used behind unlike norms is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldNorms {}

impl Transform for FoldNorms {
    fn name(&self) -> &'static str {
        "fold-norms"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        if !c.family().pre_norm {
            return refuse(self.name(), "norms come behind the parts here, and the residual stream reads them too");
        }
        if c.config.get("model_type").and_then(|v| v.as_str()).is_some_and(|t| t.starts_with("gemma")) {
            return refuse(self.name(), "this family stores gains less 1; they are not folded yet");
        }
        let before = c.clone();
        let mut folded = 0;
        for stack in c.family().stacks {
            let (_, count) = c.stack(stack.side)?;
            for i in 0..count {
                for (norm, roles) in [
                    (NormRole::Attention, &[Role::Q, Role::K, Role::V][..]),
                    (NormRole::Cross, &[Role::CrossQ]),
                    (NormRole::Ffn, &[Role::Gate, Role::Up]),
                ] {
                    folded += u32::from(fold(self.name(), c, &before, stack, i, norm, roles)?);
                }
            }
        }
        let mut lines = vec![format!("{folded} norms have a gain of 1")];
        if let (Some(head), Some(last)) = (c.family().head, c.family().final_norm) {
            let norm = format!("{}{last}", c.prefix);
            if !c.has(head) {
                lines.push("the last norm keeps its gain, since the head uses the embedding's table".into());
            } else if c.has(&format!("{norm}.weight")) && !c.has(&format!("{norm}.bias")) {
                let gain = c.values(&format!("{norm}.weight"))?;
                let mut w = c.values(head)?;
                (0..w.rows()).for_each(|r| scale(w.row_mut(r), &gain.data));
                c.put(head, &w);
                c.put(&format!("{norm}.weight"), &Dense::vector(vec![1.0; gain.data.len()]));
            }
        }
        Ok(lines)
    }
}

fn scale(row: &mut [f64], by: &[f64]) {
    row.iter_mut().zip(by).for_each(|(v, g)| *v *= g);
}

/// Folds one norm of one layer. Reads weights from `before`, since a shared one may have been folded by an earlier layer.
fn fold(
    step: &str,
    c: &mut Checkpoint,
    before: &Checkpoint,
    stack: &Stack,
    layer: usize,
    norm: NormRole,
    roles: &[Role],
) -> Result<bool> {
    let Some(stem) = Checkpoint::norm_stem(stack, norm) else { return Ok(false) };
    let name = format!("{}{stem}", c.layer(stack, layer));
    if !before.has(&format!("{name}.weight")) {
        return Ok(false);
    }
    let gain = before.values(&format!("{name}.weight"))?;
    let beta = format!("{name}.bias");
    let beta = if before.has(&beta) { Some(before.values(&beta)?) } else { None };
    if gain.data.iter().all(|g| *g == 1.0) && beta.as_ref().is_none_or(|b| b.data.iter().all(|v| *v == 0.0)) {
        return Ok(false);
    }
    let mut problems = Vec::new();
    let mut maps: Vec<(Role, Linear)> = Vec::new();
    for role in roles {
        let Some((_, part)) = before.stem(stack, layer, *role) else { continue };
        let weight = format!("{}{part}.weight", before.layer(stack, layer));
        for other in before.aliases(&weight).into_iter().filter(|n| **n != weight) {
            let theirs = other.strip_suffix(&format!("{part}.weight")).map(|at| format!("{at}{stem}.weight"));
            let same = theirs.as_ref().is_some_and(|n| before.values(n).is_ok_and(|g| g == gain));
            if !same {
                problems
                    .push(format!("`{weight}` is also `{other}`, behind a norm with another gain; give untie first"));
                break;
            }
        }
        let Some(mut l) = before.linear(stack, layer, *role)? else { continue };
        if let Some(beta) = &beta {
            let moved = l.weight.times(&Dense::matrix(beta.data.len(), 1, beta.data.clone()));
            let mut bias = l.bias.take().ok_or_else(|| Error::Refused {
                step: step.into(),
                problems: vec![format!("layer {layer}: {role:?} has no bias that could take the norm's")],
            })?;
            bias.iter_mut().zip(&moved.data).for_each(|(b, m)| *b += m);
            l.bias = Some(bias);
        }
        (0..l.weight.rows()).for_each(|r| scale(l.weight.row_mut(r), &gain.data));
        maps.push((*role, l));
    }
    refuse_all(step, problems)?;
    // Names that shared a buffer share the folded one too.
    let parts: Vec<&str> = roles.iter().filter_map(|r| before.stem(stack, layer, *r)).map(|(_, s)| s).collect();
    let refs: Vec<(Role, &Linear)> = maps.iter().map(|(r, l)| (*r, l)).collect();
    c.set_linears(step, stack, layer, &refs)?;
    for part in parts {
        for end in ["weight", "bias"] {
            let name = format!("{}{part}.{end}", before.layer(stack, layer));
            for other in before.aliases(&name).into_iter().filter(|n| **n != name) {
                c.alias(other, &name)?;
            }
        }
    }
    c.put(&format!("{name}.weight"), &Dense::vector(vec![1.0; gain.data.len()]));
    if let Some(beta) = beta {
        c.put(&format!("{name}.bias"), &Dense::zeros(&beta.shape));
    }
    Ok(true)
}
