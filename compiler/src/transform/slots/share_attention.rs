//! Layers that reuse the attention probabilities of others.

use crate::transform::Transform;
use crate::transform::calibration::{Aid, Metric};
use crate::transform::checkpoint::Checkpoint;
use crate::transform::error::{Error, Result, refuse};
use crate::transform::extension::Shared;
use crate::transform::family::{Role, Side};
use crate::transform::layer_list::LayerList;
use serde::{Deserialize, Serialize};

/// In each span of layers the first computes attention; the others use its probabilities on their own values, or its
/// output. Projections that nobody uses any more are gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ShareAttention {
    /// `23-26,28-29`.
    #[serde(alias = "groups", deserialize_with = "crate::transform::step::text")]
    pub spans: Option<String>,
    /// Instead: blocks of so many layers.
    pub block: Option<usize>,
    /// Layers at the beginning that are in no block.
    pub skip_first: usize,
    /// Layers at the end that are in no block.
    pub skip_last: usize,
    /// Instead: this many layers, those whose attention is most like that of the layer before.
    pub auto: Option<usize>,
    /// By which measure; js-attn if none is given.
    pub metric: Option<Metric>,
    /// What is reused.
    pub what: Shared,
}

impl Transform for ShareAttention {
    fn name(&self) -> &'static str {
        "share-attention"
    }
    fn apply(&self, c: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        let (stack, count) = c.stack(Side::Only)?;
        let mut extension = c.extension()?;
        if !extension.kv_map.is_empty() || !extension.probs_from.is_empty() {
            return refuse(self.name(), "layers attend by other layers already");
        }
        let mut lines = Vec::new();
        let sources = match (&self.spans, self.block, self.auto) {
            (Some(text), None, None) => self.spans(text, count)?,
            (None, Some(0), None) => return refuse(self.name(), "blocks of 0 layers"),
            (None, Some(block), None) => {
                if self.skip_first + self.skip_last > count {
                    return refuse(
                        self.name(),
                        format!("{} and {} layers are skipped of {count}", self.skip_first, self.skip_last),
                    );
                }
                let within = |l: usize| l >= self.skip_first && l < count - self.skip_last;
                (0..count).map(|l| if within(l) { l - (l - self.skip_first) % block } else { l }).collect()
            }
            (None, None, Some(n)) => {
                let (chosen, why) = aid.least(c, n, self.metric.unwrap_or(Metric::JsAttn))?;
                lines.push(why);
                let mut sources: Vec<usize> = (0..count).collect();
                for l in chosen.into_iter().filter(|l| *l > 0) {
                    sources[l] = sources[l - 1];
                }
                sources
            }
            _ => return refuse(self.name(), "give one of spans, block and auto"),
        };
        if let Some(l) = (0..count).find(|l| {
            let none = extension.drop_attention.iter().chain(&extension.linear_layers);
            none.into_iter().any(|n| *n as usize == *l)
                && sources.iter().enumerate().any(|(j, s)| *s == *l && j != *l || j == *l && *s != *l)
        }) {
            return refuse(self.name(), format!("layer {l} has no attention"));
        }
        if sources.iter().enumerate().all(|(l, s)| l == *s) {
            return Ok(vec!["no layer uses the attention of another".into()]);
        }
        c.unpack_qkv(self.name(), stack, count)?;
        extension.split_qkv = c.extension()?.split_qkv;
        for (l, _) in sources.iter().enumerate().filter(|(l, s)| l != *s) {
            let gone: &[Role] =
                if self.what == Shared::Output { &[Role::Q, Role::K, Role::V] } else { &[Role::Q, Role::K] };
            for role in gone {
                c.remove_linear(self.name(), stack, l, *role)?;
            }
            for norm in ["q_norm", "k_norm"] {
                c.remove(&format!("{}self_attn.{norm}.weight", c.layer(stack, l)));
            }
        }
        let reusers = sources.iter().enumerate().filter(|(l, s)| l != *s).count();
        extension.probs_from = sources.iter().map(|s| *s as u32).collect();
        extension.shared = self.what;
        c.set_extension(&extension);
        lines.push(format!("{reusers} of {count} layers use the attention of another"));
        Ok(lines)
    }
}

impl ShareAttention {
    fn spans(&self, text: &str, count: usize) -> Result<Vec<usize>> {
        let wrong = |e: String| Error::Refused { step: self.name().into(), problems: vec![e] };
        let mut sources: Vec<usize> = (0..count).collect();
        let mut taken = vec![false; count];
        for span in text.split(',') {
            let layers = span.parse::<LayerList>().and_then(|l| l.resolve(count)).map_err(wrong)?;
            let Some(first) = layers.first().copied() else { continue };
            if layers.windows(2).any(|w| w[1] != w[0] + 1) {
                return refuse(self.name(), format!("`{span}` is no span of neighbours"));
            }
            for l in layers {
                if std::mem::replace(&mut taken[l], true) {
                    return refuse(self.name(), format!("layer {l} is in two spans"));
                }
                sources[l] = first;
            }
        }
        Ok(sources)
    }
}
