//! A layer replaced by the linear map that explains it best.

use super::resolved;
use crate::transform::Transform;
use crate::transform::calibration::{Aid, Metric, Tap};
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::extension::LINEAR;
use crate::transform::family::Side;
use crate::transform::layer_list::LayerList;
use crate::transform::linalg;
use serde::{Deserialize, Serialize};

/// Replaces layers by `h ← W h + b`, fitted to what they do on calibration tokens: with X and Y the centred states in
/// front of and behind a layer, `Wᵀ = (XᵀX + λI)⁻¹ XᵀY` and `b = ȳ − W x̄`. The ridge λ is relative to the mean of the
/// diagonal of XᵀX.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplaceLinear {
    /// Which.
    pub layers: Option<LayerList>,
    /// Instead: this many, the most linear ones.
    pub auto: Option<usize>,
    /// By which measure; linearity if none is given.
    pub metric: Option<Metric>,
    /// λ.
    pub ridge: Option<f64>,
}

impl Transform for ReplaceLinear {
    fn name(&self) -> &'static str {
        "replace-linear"
    }
    fn apply(&self, c: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let layers = match (&self.layers, self.auto) {
            (Some(list), None) => resolved(self.name(), c, list)?.1,
            (None, Some(n)) => {
                let (chosen, why) = aid.least(c, n, self.metric.unwrap_or(Metric::Linearity))?;
                lines.push(why);
                chosen
            }
            _ => return refuse(self.name(), "give either layers or auto"),
        };
        let (stack, _) = c.stack(Side::Only)?;
        let mut extension = c.extension()?;
        for i in &layers {
            let used =
                extension.kv_map.iter().enumerate().any(|(j, s)| j != *i && (s.k as usize == *i || s.v as usize == *i))
                    || extension.probs_from.iter().enumerate().any(|(j, s)| j != *i && *s as usize == *i);
            if used {
                return refuse(self.name(), format!("other layers attend by what layer {i} makes"));
            }
        }
        let taps: Vec<Tap> = layers.iter().flat_map(|i| [Tap::Hidden(*i), Tap::Hidden(i + 1)]).collect();
        let captured = aid.capture(c, &taps)?;
        for (n, i) in layers.iter().enumerate() {
            let (x, y) = (&captured[2 * n].values, &captured[2 * n + 1].values);
            let fit = linalg::affine_fit(x, y, self.ridge.unwrap_or(1e-6));
            let (weight, bias) = fit.ok_or_else(|| {
                crate::transform::Error::Calibration(format!(
                    "the states in front of layer {i} do not determine a linear map; give more tokens or a larger ridge"
                ))
            })?;
            let at = c.layer(stack, *i);
            for part in c.layer_parts(stack, *i) {
                c.remove(&format!("{at}{part}"));
            }
            c.put(&format!("{at}{LINEAR}.weight"), &weight);
            c.put(&format!("{at}{LINEAR}.bias"), &Dense::vector(bias));
            if !extension.linear_layers.contains(&(*i as u32)) {
                extension.linear_layers.push(*i as u32);
            }
            extension.drop_ffn.retain(|j| *j as usize != *i);
            extension.drop_attention.retain(|j| *j as usize != *i);
        }
        extension.linear_layers.sort_unstable();
        c.set_extension(&extension);
        lines.push(format!("layers {} are linear", LayerList::of(layers)));
        Ok(lines)
    }
}
