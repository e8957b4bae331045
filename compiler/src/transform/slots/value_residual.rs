//! Values blended with those of the first layer.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::error::{Error, Result, refuse};
use crate::transform::family::Side;
use serde::{Deserialize, Serialize};

/// `Uₙ = Aₙ (λ₁ Vₙ + λ₂ V₀)` in every layer behind the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueResidual {
    /// `λ₁,λ₂`.
    pub lambda: String,
}

impl Transform for ValueResidual {
    fn name(&self) -> &'static str {
        "value-residual"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (_, count) = c.stack(Side::Only)?;
        let pair =
            self.lambda.split_once(',').and_then(|(a, b)| Some([a.trim().parse().ok()?, b.trim().parse().ok()?]));
        let pair: [f32; 2] =
            pair.filter(|p: &[f32; 2]| p.iter().all(|v| v.is_finite())).ok_or_else(|| Error::Refused {
                step: self.name().into(),
                problems: vec![format!("`{}` is no pair of numbers; write .5,.5", self.lambda)],
            })?;
        let mut extension = c.extension()?;
        if extension.kv_map.iter().enumerate().any(|(i, s)| s.v as usize != i) {
            return refuse(self.name(), "layers use the values of other layers already");
        }
        extension.value_residual = (0..count).map(|l| if l == 0 { [1.0, 0.0] } else { pair }).collect();
        if pair == [1.0, 0.0] {
            extension.value_residual.clear();
        }
        c.set_extension(&extension);
        Ok(vec![format!("values are {} of the layer's own and {} of layer 0's", pair[0], pair[1])])
    }
}
