//! A model as loops over few layers, relaxed by low-rank updates.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::extension::{LORA_A, LORA_B};
use crate::transform::family::{Packing, Role, Side};
use crate::transform::linalg;
use crate::transform::tie::pattern::Pattern;
use crate::transform::tie::{Init, Private, ShareLayers};
use serde::{Deserialize, Serialize};

/// What the layers of the block are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecurseInit {
    /// Layers at equal steps, the first and the last included.
    Stepwise,
    /// The mean of the layers that each stands for.
    #[default]
    Average,
    /// The first ones.
    Lower,
}

/// Lets layer l use the weights `W′` of layer `l mod K` of a block. With a rank, each layer keeps its norms and biases and
/// adds `B_l A_l`, the truncated singular value decomposition of `W_l − W′`; full rank gives the model back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Recurse {
    /// K.
    pub block: usize,
    /// What the block's layers are.
    pub init: RecurseInit,
    /// Rank of the updates; none if 0.
    pub lora_rank: usize,
}

impl Transform for Recurse {
    fn name(&self) -> &'static str {
        "recurse"
    }
    fn apply(&self, c: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        let (stack, count) = c.stack(Side::Only)?;
        if self.block == 0 || self.block > count {
            return refuse(self.name(), format!("a block of {} layers for {count} layers", self.block));
        }
        let mut extension = c.extension()?;
        if extension.lora.is_some() || extension.low_rank.is_some() {
            return refuse(self.name(), "the model has factors already; fold them first");
        }
        let before = c.clone();
        let relaxed = self.lora_rank > 0;
        if self.init == RecurseInit::Stepwise {
            // The layers that the block begins with come from elsewhere in the model, norms and all where they are shared.
            for k in 0..self.block {
                let from =
                    if self.block == 1 { 0 } else { (k * (count - 1) + (self.block - 1) / 2) / (self.block - 1) };
                for part in before.layer_parts(stack, from) {
                    let of_norm = Checkpoint::is_norm(stack, &part) || part.ends_with(".bias");
                    if !(relaxed && of_norm) {
                        let name = |i: usize| format!("{}{part}", before.layer(stack, i));
                        let values = before.values(&name(from))?;
                        c.put(&name(k), &values);
                    }
                }
            }
        }
        let init = if self.init == RecurseInit::Average { Init::Mean } else { Init::First };
        let private = Private { norms: relaxed, bias: false, ..Private::default() };
        let share = ShareLayers { pattern: Pattern::Cycle(self.block), init, private, stack: None };
        let mut lines = share.apply(c, aid)?;
        if !relaxed {
            return Ok(lines);
        }
        for i in 0..count {
            for (packing, stem) in stack.linears {
                let at = format!("{}{stem}", before.layer(stack, i));
                let weight = format!("{at}.weight");
                if !before.has(&weight) {
                    continue;
                }
                if before.has(&format!("{at}.bias")) {
                    let own = before.values(&format!("{at}.bias"))?;
                    c.put(&format!("{at}.bias"), &own);
                }
                let rest =
                    Dense::combine(self.name(), &[(1.0, &before.values(&weight)?), (-1.0, &c.values(&weight)?)])?;
                if before.family().transposed || !matches!(packing, Packing::Single(_)) {
                    return refuse(
                        self.name(),
                        format!("`{stem}` is packed or stored transposed; updates of such maps are not made yet"),
                    );
                }
                let (b, a) = linalg::svd(&rest).factors(self.lora_rank);
                c.put(&format!("{at}.{LORA_A}"), &a);
                c.put(&format!("{at}.{LORA_B}"), &b);
            }
        }
        extension.lora = Some(self.lora_rank as u64);
        c.set_extension(&extension);
        let maps =
            [&Role::ATTENTION[..], &Role::FFN].concat().iter().filter(|r| c.stem(stack, 0, **r).is_some()).count();
        lines.push(format!("{maps} maps of each layer have an update of rank {}", self.lora_rank));
        Ok(lines)
    }
}
