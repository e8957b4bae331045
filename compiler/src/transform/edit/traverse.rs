//! Layers that run again on what they gave, blended with it by a gate (TroL).

use super::resolved;
use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse, refuse_all};
use crate::transform::extension::{Gate, GateForm};
use crate::transform::family::Side;
use crate::transform::layer_list::LayerList;
use crate::transform::step::text;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Runs each of some layers several times in a row, with one set of weights: `h ← (1 − s) h + s layer(h)` from the second
/// time on, with `s = ½ tanh(w · h + b) + ½`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traverse {
    /// Which.
    pub layers: LayerList,
    /// How often each runs.
    pub times: usize,
    /// `b` of every gate, with w = 0; or a checkpoint with the tensors `gate.weight` `[1, hidden]` and `gate.bias` `[1]` of
    /// each of the layers. 0 unless said: the mean of both.
    #[serde(default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
}

impl Transform for Traverse {
    fn name(&self) -> &'static str {
        "traverse"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (_, layers) = resolved(self.name(), c, &self.layers)?;
        let (stack, count) = c.stack(Side::Only)?;
        if self.times == 0 || c.family().stacks.len() > 1 {
            return refuse(self.name(), "layers of one stack run once at least");
        }
        let gated = c.extension()?.gates.into_iter().map(|g| g.layer as usize).filter(|l| layers.contains(l));
        refuse_all(self.name(), gated.map(|l| format!("layer {l} has a gate already")).collect())?;
        let gates = self.gates(c, &layers)?;
        let again = |i: &usize| if layers.contains(i) { self.times } else { 1 };
        let order: Vec<usize> = (0..count).flat_map(|i| std::iter::repeat_n(i, again(&i))).collect();
        c.rearrange(self.name(), Side::Only, &order, false)?;
        let mut extension = c.extension()?;
        let repeated = (1..order.len()).filter(|n| order[*n] == order[*n - 1]);
        let mut first: Option<(usize, usize)> = None;
        for n in repeated {
            let Some((_, parts)) = layers.iter().zip(&gates).find(|(l, _)| **l == order[n]) else { continue };
            let layer = u32::try_from(n).unwrap_or(u32::MAX);
            extension.gates.push(Gate { layer, kind: GateForm::Mix });
            for (part, values) in ["gate.weight", "gate.bias"].iter().zip(parts) {
                let name = format!("{}{part}", c.layer(stack, n));
                match first {
                    // Every run of a layer but its first has the layer's gate.
                    Some((of, at)) if of == order[n] => c.alias(&name, &format!("{}{part}", c.layer(stack, at)))?,
                    _ => c.put(&name, values),
                }
            }
            first = first.filter(|(of, _)| *of == order[n]).or(Some((order[n], n)));
        }
        extension.gates.sort_by_key(|g| g.layer);
        c.set_extension(&extension);
        Ok(vec![format!("{} layers run, {count} are stored", order.len())])
    }
}

impl Traverse {
    /// Weight and bias of each layer's gate.
    fn gates(&self, c: &Checkpoint, layers: &[usize]) -> Result<Vec<[Dense; 2]>> {
        let hidden = c.sizes()?.hidden;
        let text = self.gate.as_deref().unwrap_or("0");
        if let Ok(bias) = text.parse::<f64>() {
            let one = || [Dense::zeros(&[1, hidden]), Dense::vector(vec![bias])];
            return Ok(layers.iter().map(|_| one()).collect());
        }
        let from = Checkpoint::open(Path::new(text))
            .map_err(|e| Error::Refused { step: self.name().into(), problems: vec![format!("--gate {text}: {e}")] })?;
        let (stack, _) = c.stack(Side::Only)?;
        let (mut gates, mut problems) = (Vec::new(), Vec::new());
        for l in layers {
            let names = ["gate.weight", "gate.bias"].map(|p| format!("{}{p}", from.layer(stack, *l)));
            let lacking = names.iter().filter(|n| !from.has(n)).map(|n| format!("{text} has no `{n}`"));
            problems.extend(lacking);
            if let [Ok(w), Ok(b)] = names.each_ref().map(|n| from.values(n)) {
                if w.shape != [1, hidden] || b.shape != [1] {
                    problems.push(format!("the gate of layer {l} has the shapes {:?} and {:?}", w.shape, b.shape));
                }
                gates.push([w, b]);
            }
        }
        refuse_all(self.name(), problems)?;
        Ok(gates)
    }
}
