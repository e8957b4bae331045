//! A narrower residual stream.

use super::fold_norms::FoldNorms;
use crate::transform::Transform;
use crate::transform::calibration::{Aid, Tap};
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::family::{NormRole, Role, Side};
use crate::transform::linalg;
use crate::transform::linalg::random::Random;
use serde::{Deserialize, Serialize};

/// Projects the residual stream on a subspace of `hidden` dimensions: with orthonormal columns P `[d, d′]`, maps that read
/// it become `W P`, maps that write to it `Pᵀ W`, the embedding `E P`. P holds the directions in which the states of all
/// layers are largest on calibration tokens. Gains are folded first, so that at d′ = d any rotation is exact; below,
/// what remains of a norm is the factor `√(d/d′)`, and its ε grows by `d/d′`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Project {
    /// d′.
    pub hidden: usize,
    /// Instead of calibration: a random rotation from this seed, which is exact at d′ = d.
    pub rotation: Option<u64>,
}

impl Transform for Project {
    fn name(&self) -> &'static str {
        "project"
    }
    fn apply(&self, c: &mut Checkpoint, aid: &Aid<'_>) -> Result<Vec<String>> {
        let family = c.family();
        if !family.rms || family.stacks.len() > 1 || family.final_norm.is_none() {
            return refuse(
                self.name(),
                format!(
                    "`{}` models have layer norms or two stacks; RMS norms alone commute with rotations",
                    family.name
                ),
            );
        }
        let s = c.sizes()?;
        let extension = c.extension()?;
        if extension.lora.is_some()
            || extension.low_rank.is_some()
            || extension.embedding_rank.is_some()
            || !extension.linear_layers.is_empty()
        {
            return refuse(self.name(), "the model has factors or linear layers; fold them first");
        }
        if self.hidden == 0 || self.hidden > s.hidden {
            return refuse(self.name(), format!("the stream is {} wide; {} are asked for", s.hidden, self.hidden));
        }
        let (stack, count) = c.stack(Side::Only)?;
        let p = match self.rotation {
            Some(seed) => {
                let mut random = Random::new(seed);
                let noise = (0..s.hidden * s.hidden).map(|_| random.normal()).collect();
                linalg::svd(&Dense::matrix(s.hidden, s.hidden, noise)).u
            }
            None => {
                let taps: Vec<Tap> = (0..=count).map(Tap::Hidden).collect();
                let mut sum = Dense::zeros(&[s.hidden, s.hidden]);
                for states in aid.capture(c, &taps)? {
                    let g = linalg::gram(&states.values, 0.0);
                    let scale = 1.0 / g.norm().max(f64::MIN_POSITIVE);
                    sum.data.iter_mut().zip(&g.data).for_each(|(a, b)| *a += scale * b);
                }
                linalg::svd(&sum).v
            }
        };
        let p = p.take_cols(&(0..self.hidden).collect::<Vec<_>>());

        let Some(table) = c.embedding() else { return refuse(self.name(), "the model has no embedding table") };
        if let Some(head) = family.head.filter(|h| !c.has(h)) {
            let copy = c.values(&table)?;
            c.put(head, &copy);
            c.set("tie_word_embeddings", false);
        }
        FoldNorms {}.apply(c, aid)?;
        for name in [Some(table.as_str()), family.head].into_iter().flatten() {
            let projected = c.values(name)?.times(&p);
            c.put(name, &projected);
        }
        let gain = Dense::vector(vec![(s.hidden as f64 / self.hidden as f64).sqrt(); self.hidden]);
        let pt = p.transposed();
        for i in 0..count {
            for role in [Role::Q, Role::K, Role::V, Role::Gate, Role::Up] {
                if let Some(mut l) = c.linear(stack, i, role)? {
                    l.weight = l.weight.times(&p);
                    c.set_narrow(self.name(), i, role, &l)?;
                }
            }
            for role in [Role::O, Role::Down] {
                if let Some(mut l) = c.linear(stack, i, role)? {
                    l.weight = pt.times(&l.weight);
                    l.bias = l.bias.map(|b| pt.times(&Dense::matrix(b.len(), 1, b)).data);
                    c.set_linear(self.name(), stack, i, role, &l)?;
                }
            }
            for role in [NormRole::Attention, NormRole::Ffn] {
                if let Some(stem) = Checkpoint::norm_stem(stack, role) {
                    let name = format!("{}{stem}.weight", c.layer(stack, i));
                    if c.has(&name) {
                        c.put(&name, &gain);
                    }
                }
            }
        }
        let last = format!("{}{}.weight", c.prefix, family.final_norm.unwrap_or_default());
        c.put(&last, &gain);
        c.set(family.sizes.hidden, self.hidden as u64);
        if let Some(field) = family.sizes.head_dim {
            c.set(field, s.head_dim as u64);
        }
        if let Some(eps) = c.config.get("rms_norm_eps").and_then(serde_json::Value::as_f64) {
            c.set("rms_norm_eps", eps * s.hidden as f64 / self.hidden as f64);
        }
        Ok(vec![format!("the residual stream is {} wide, was {}", self.hidden, s.hidden)])
    }
}

impl Checkpoint {
    /// Writes a map whose input has another width. Maps in one tensor must all be given, so packed ones are refused.
    fn set_narrow(&mut self, step: &str, layer: usize, role: Role, to: &crate::transform::Linear) -> Result<()> {
        let (stack, _) = self.stack(Side::Only)?;
        if self.is_packed(stack, role) {
            return refuse(step, "maps that are one tensor are not projected yet");
        }
        self.set_linear(step, stack, layer, role, to)
    }
}
