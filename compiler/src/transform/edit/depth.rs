//! Which layers there are, and in which order.

use super::resolved;
use crate::transform::Transform;
use crate::transform::calibration::{Aid, Metric};
use crate::transform::checkpoint::Checkpoint;
use crate::transform::error::{Error, Result, refuse};
use crate::transform::family::Side;
use crate::transform::layer_list::LayerList;
use serde::{Deserialize, Serialize};

/// Takes layers out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneLayers {
    /// Which.
    pub layers: Option<LayerList>,
    /// Instead: this many, the least important.
    pub auto: Option<usize>,
    /// By which measure.
    pub metric: Option<Metric>,
    /// What a layer makes for others goes to the first of them.
    pub reassign: bool,
}

/// Keeps these layers and no others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepLayers {
    /// Which.
    pub layers: LayerList,
    /// What a layer makes for others goes to the first of them.
    #[serde(default)]
    pub reassign: bool,
}

/// Keeps the first layers of a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Truncate {
    /// Layers of a model with one stack.
    pub layers: Option<usize>,
    /// Layers of the encoder.
    pub encoder_layers: Option<usize>,
    /// Layers of the decoder.
    pub decoder_layers: Option<usize>,
}

/// Puts layers in another order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermuteLayers {
    /// Every layer once, in the new order.
    pub order: LayerList,
}

impl Transform for PruneLayers {
    fn name(&self) -> &'static str {
        "prune-layers"
    }
    fn apply(&self, c: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let (side, gone) = match (&self.layers, self.auto) {
            (Some(list), None) => resolved(self.name(), c, list)?,
            (None, Some(n)) => {
                let (chosen, why) = aid.least(c, n, self.metric.unwrap_or(Metric::Cosine))?;
                lines.push(why);
                (Side::Only, chosen)
            }
            _ => return refuse(self.name(), "give either layers or auto"),
        };
        let (_, count) = c.stack(side)?;
        let kept: Vec<usize> = (0..count).filter(|i| !gone.contains(i)).collect();
        c.rearrange(self.name(), side, &kept, self.reassign)?;
        lines.push(format!("{} of {count} layers are left", kept.len()));
        Ok(lines)
    }
}

impl Transform for KeepLayers {
    fn name(&self) -> &'static str {
        "keep-layers"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (side, kept) = resolved(self.name(), c, &self.layers)?;
        let (_, count) = c.stack(side)?;
        c.rearrange(self.name(), side, &kept, self.reassign)?;
        Ok(vec![format!("{} of {count} layers are left", kept.len())])
    }
}

impl Transform for Truncate {
    fn name(&self) -> &'static str {
        "truncate"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let wanted = [
            (Side::Only, "layers", self.layers),
            (Side::Encoder, "encoder layers", self.encoder_layers),
            (Side::Decoder, "decoder layers", self.decoder_layers),
        ];
        let mut lines = Vec::new();
        for (side, what, n) in wanted.into_iter().filter_map(|(side, what, n)| Some((side, what, n?))) {
            let (_, count) = c.stack(side)?;
            if n > count || n == 0 {
                return refuse(self.name(), format!("{n} {what} are asked for; there are {count}"));
            }
            c.rearrange(self.name(), side, &(0..n).collect::<Vec<_>>(), false)?;
            lines.push(format!("{n} of {count} {what} are left"));
        }
        if lines.is_empty() {
            return refuse(self.name(), "say how many layers, encoder-layers or decoder-layers are to be left");
        }
        Ok(lines)
    }
}

impl Transform for PermuteLayers {
    fn name(&self) -> &'static str {
        "permute-layers"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let wrong = |e: String| Error::Refused { step: self.name().into(), problems: vec![e] };
        let side = self.order.side().map_err(wrong)?.unwrap_or(Side::Only);
        let (_, count) = c.stack(side)?;
        let order = self.order.ordered(count).map_err(wrong)?;
        let lacking: Vec<String> = (0..count).filter(|i| !order.contains(i)).map(|i| i.to_string()).collect();
        if !lacking.is_empty() {
            return refuse(self.name(), format!("the order leaves out layers {}", lacking.join(", ")));
        }
        let extension = c.extension()?;
        if !extension.kv_map.is_empty() || !extension.probs_from.is_empty() {
            let moved = order.iter().enumerate().any(|(n, i)| n != *i);
            if moved {
                return refuse(self.name(), "layers attend by other layers, so that their order is part of the model");
            }
        }
        c.rearrange(self.name(), side, &order, false)?;
        Ok(vec![format!("layers are in the order {}", self.order)])
    }
}
