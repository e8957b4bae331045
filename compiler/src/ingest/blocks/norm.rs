//! A normalisation of rows.

use crate::graph::{NormKind, ValueId, WeightId};
use crate::ingest::builder::GraphBuilder;

/// A normalisation over the last axis.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub name: &'static str,
    pub kind: NormKind,
    pub eps: f32,
    /// `[H]`; a gain of more axes, `[heads, D]`, is for rows that are heads.
    pub gain: Option<WeightId>,
    /// Whether rows are multiplied by `1 + gain`.
    pub one_plus: bool,
    /// `[H]`.
    pub bias: Option<WeightId>,
}

impl Norm {
    /// The root-mean-square norm.
    pub fn rms(name: &'static str, eps: f32, gain: WeightId) -> Norm {
        Norm { name, kind: NormKind::Rms, eps, gain: Some(gain), one_plus: false, bias: None }
    }
    /// The layer norm.
    pub fn layer(name: &'static str, eps: f32, gain: WeightId, bias: Option<WeightId>) -> Norm {
        Norm { name, kind: NormKind::Layer, eps, gain: Some(gain), one_plus: false, bias }
    }

    /// `x` is `[…, H]`.
    pub fn apply(&self, b: &mut GraphBuilder<'_>, x: ValueId) -> ValueId {
        b.scope(self.name, |b| {
            let gain = self.gain.map(|gain| b.weight(gain));
            let gain = gain.map(|gain| match self.one_plus {
                true => {
                    let one = b.f32(1.0);
                    b.add(gain, one)
                }
                false => gain,
            });
            let bias = self.bias.map(|bias| b.weight(bias));
            match gain.filter(|gain| b.ty(*gain).rank() > 1) {
                None => b.norm(self.kind, x, self.eps, gain, bias),
                Some(per_head) => {
                    let x = b.norm(self.kind, x, self.eps, None, None);
                    let x = b.mul(x, per_head);
                    match bias {
                        Some(bias) => b.add(x, bias),
                        None => x,
                    }
                }
            }
        })
    }
}
