//! The less common parts of a recipe: mixtures of experts and low-rank projections.

use super::assemble::{Site, inside, shown};
use super::{ExpertTensors, LatentForm, MixtureForm};
use crate::ingest::bind::Extent;
use crate::ingest::blocks::{
    ExpertAct, ExpertLinear, ExpertUp, Experts, Latent, LatentQuery, Linear, Mixture, Norm, Router,
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
            ExpertTensors::Interleaved => {
                let mut all = |name: &str, out: Extent<'_>, from: Extent<'_>| {
                    let weight = self.t.take(&format!("{stem}.experts.{name}"), &[experts, from, out]);
                    let bias = self.t.take(&format!("{stem}.experts.{name}_bias"), &[experts, out]);
                    ExpertLinear { weight, transposed: true, bias: Some(bias) }
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
        let query = match form.q_rank {
            None => LatentQuery::Direct(self.linear("q_proj", &format!("{stem}.q_proj"), queries, hidden, false)),
            Some(q_rank) => {
                let rank = (q_rank, "q_lora_rank");
                LatentQuery::Low {
                    down: self.linear("q_a_proj", &format!("{stem}.q_a_proj"), rank, hidden, form.bias),
                    norm: norm(self, "q_a_layernorm", rank),
                    up: self.linear("q_b_proj", &format!("{stem}.q_b_proj"), queries, rank, false),
                }
            }
        };
        let low = (form.kv_rank + form.rotated, "kv_lora_rank + qk_rope_head_dim");
        let high = (heads * (form.plain + form.value), "num_attention_heads × (qk_nope_head_dim + v_head_dim)");
        Latent {
            query,
            kv_down: self.linear("kv_a_proj_with_mqa", &format!("{stem}.kv_a_proj_with_mqa"), low, hidden, form.bias),
            kv_norm: norm(self, "kv_a_layernorm", rank),
            kv_up: self.linear("kv_b_proj", &format!("{stem}.kv_b_proj"), high, rank, false),
            kv_rank: form.kv_rank,
            plain: form.plain,
            rotated: form.rotated,
        }
    }
}
