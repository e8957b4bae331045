//! The less common parts of a recipe: mixtures of experts and low-rank projections.

use super::assemble::{Site, inside, shown};
use super::{ExpertTensors, LatentForm, MixtureForm};
use crate::ingest::bind::Extent;
use crate::ingest::blocks::{
    ExpertAct, ExpertLinear, ExpertUp, Experts, Latent, LatentQuery, LatentUp, Linear, Mixture, Norm, Router,
};

/// The slope and the bound of the activation between interleaved projections.
const CLAMPED: ExpertAct = ExpertAct::Clamped { slope: 1.702, limit: 7.0 };

impl Site<'_, '_, '_> {
    pub(super) fn mixture(&mut self, form: &MixtureForm, stem: &str) -> Mixture {
        let hidden = self.hidden;
        let experts = (form.experts, form.fields[0]);
        let router = Router {
            linear: self.linear("logits", &format!("{stem}.{}", form.router), experts, hidden, form.router_bias),
            experts: form.experts,
            chosen: form.chosen,
            scores: form.scores,
            correction: form.correction.map(|name| self.t.take(&format!("{stem}.{name}"), &[experts])),
            groups: form.groups,
            normalise: form.normalise,
            scale: form.scale,
        };
        let inner = (form.inner, form.fields[1]);
        let both = (2 * form.inner, "2 × the inner size of an expert");
        let experts = match form.tensors {
            ExpertTensors::Each([gate, up, down]) => {
                let mut each = |name: &str, out: Extent<'_>, from: Extent<'_>| {
                    let all = format!("{stem}.experts.*.{name}.weight");
                    let one = |i: u64| format!("{stem}.experts.{i}.{name}.weight");
                    let weight = self.t.take_stacked(&all, form.experts, one, &[out, from]);
                    ExpertLinear { weight, transposed: false, bias: None }
                };
                let (gate, up) = (each(gate, inner, hidden), each(up, inner, hidden));
                let act = ExpertAct::Plain(self.recipe.act);
                Experts { up: ExpertUp::Gated { gate, up }, act, down: each(down, hidden, inner) }
            }
            ExpertTensors::Packed([up, down]) => {
                let mut all = |name: &str, out: Extent<'_>, from: Extent<'_>| {
                    let weight = self.t.take(&format!("{stem}.{name}"), &[experts, out, from]);
                    ExpertLinear { weight, transposed: false, bias: None }
                };
                let gate_up = all(up, both, hidden);
                let act = ExpertAct::Plain(self.recipe.act);
                Experts { up: ExpertUp::Packed { gate_up, inner: form.inner }, act, down: all(down, hidden, inner) }
            }
            ExpertTensors::Stacked([gate, up, down]) => {
                let mut all = |name: &str, out: Extent<'_>, from: Extent<'_>| {
                    let weight = self.t.take(&format!("{stem}.{name}.weight"), &[experts, out, from]);
                    ExpertLinear { weight, transposed: false, bias: None }
                };
                let (gate, up) = (all(gate, inner, hidden), all(up, inner, hidden));
                let act = ExpertAct::Plain(self.recipe.act);
                Experts { up: ExpertUp::Gated { gate, up }, act, down: all(down, hidden, inner) }
            }
            ExpertTensors::StackedClamped([gate, up, down]) => {
                let mut all = |name: &str, out: Extent<'_>, from: Extent<'_>| {
                    let weight = self.t.take(&inside(stem, &format!("{name}.weight")), &[experts, out, from]);
                    let bias = self.t.take(&inside(stem, &format!("{name}.bias")), &[experts, out]);
                    ExpertLinear { weight, transposed: false, bias: Some(bias) }
                };
                let (gate, up) = (all(gate, inner, hidden), all(up, inner, hidden));
                Experts { up: ExpertUp::Gated { gate, up }, act: CLAMPED, down: all(down, hidden, inner) }
            }
            ExpertTensors::Interleaved { turned } => {
                let mut all = |name: &str, out: Extent<'_>, from: Extent<'_>| {
                    let shape = if turned { [experts, from, out] } else { [experts, out, from] };
                    let weight = self.t.take(&format!("{stem}.experts.{name}"), &shape);
                    let bias = self.t.take(&format!("{stem}.experts.{name}_bias"), &[experts, out]);
                    ExpertLinear { weight, transposed: turned, bias: Some(bias) }
                };
                let gate_up = all("gate_up_proj", both, hidden);
                let down = all("down_proj", hidden, inner);
                Experts { up: ExpertUp::Interleaved { gate_up, inner: form.inner }, act: CLAMPED, down }
            }
        };
        let shared = form.shared.map(|shared| {
            let inner = (shared.inner, "inner size of the shared expert");
            let names = &self.recipe.names;
            let parts = shared.parts.unwrap_or([names.gate, names.up, names.down]);
            let ffn = self.ffn(shown(shared.name, "shared_expert"), &inside(stem, shared.name), parts, inner);
            let one = (1, "1");
            let gate = shared.gate.map(|name| match shared.flat_gate {
                false => self.linear(name, &format!("{stem}.{name}"), one, hidden, false),
                true => {
                    let weight = self.t.take_row(&format!("{stem}.{name}.weight"), hidden);
                    Linear::new(name, weight, None)
                }
            });
            (ffn, gate)
        });
        Mixture { name: shown(form.name, "mlp"), router, experts, shared }
    }

    pub(super) fn latent(&mut self, form: &LatentForm, stem: &str) -> Latent {
        let hidden = self.hidden;
        let heads = self.recipe.sizes.heads;
        let queries =
            (heads * (form.plain + form.rotated), "num_attention_heads × (qk_nope_head_dim + qk_rope_head_dim)");
        let rank = (form.kv_rank, "kv_lora_rank");
        let norm = |site: &mut Self, name: &'static str, size: Extent<'_>| {
            Norm::rms(name, form.eps, site.t.take(&format!("{stem}.{name}.weight"), &[size]))
        };
        let n = form.names;
        let at = |name: &str| format!("{stem}.{name}");
        let query = match form.q_rank {
            None => LatentQuery::Direct(self.linear(n.q, &at(n.q), queries, hidden, false)),
            Some(q_rank) => {
                let rank = (q_rank, "q_lora_rank");
                LatentQuery::Low {
                    down: self.linear(n.q_down, &at(n.q_down), rank, hidden, form.bias),
                    norm: norm(self, n.q_norm, rank),
                    up: self.linear(n.q_up, &at(n.q_up), queries, rank, false),
                }
            }
        };
        let low = (form.kv_rank + form.rotated, "kv_lora_rank + qk_rope_head_dim");
        let high = (heads * (form.plain + form.value), "num_attention_heads × (qk_nope_head_dim + v_head_dim)");
        let kv_down = self.linear(n.kv_down, &at(n.kv_down), low, hidden, form.bias);
        let kv_norm = norm(self, n.kv_norm, rank);
        let mut up = |name: &str, shape: &[Extent<'_>]| self.t.take(&format!("{stem}.{name}.weight"), shape);
        let kv_up = match form.apart {
            false => LatentUp::Joint(up(n.kv_up, &[high, rank])),
            true => {
                let [keys, values] = n.ups;
                let heads = (heads, "number of heads");
                let keys = up(keys, &[heads, rank, (form.plain, "elements that are not rotated")]);
                LatentUp::Apart { keys, values: up(values, &[heads, (form.value, "elements of a value"), rank]) }
            }
        };
        let LatentForm { kv_rank, plain, rotated, value, .. } = *form;
        Latent { query, kv_down, kv_norm, kv_up, kv_rank, plain, rotated, value }
    }
}
