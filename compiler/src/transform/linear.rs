//! Linear maps of layers by their role, in f64 and in the orientation `[out, in]`, whatever tensor packs them.

use super::checkpoint::Checkpoint;
use super::dense::Dense;
use super::error::{Error, Result};
use super::family::{Packing, Role, Stack};

/// A linear map `y = W x + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Dense,
    /// `[out]`.
    pub bias: Option<Vec<f64>>,
}

impl Checkpoint {
    /// The tensor (without the layer's prefix, without `.weight`) that holds a role, with its packing.
    pub fn stem(&self, stack: &Stack, layer: usize, role: Role) -> Option<(Packing, &'static str)> {
        let at = self.layer(stack, layer);
        let known = stack.linears.iter().filter(|(packing, _)| packing.roles().contains(&role));
        known.copied().find(|(_, stem)| self.has(&format!("{at}{stem}.weight")))
    }

    /// Rows of each role in a packed tensor with so many rows.
    fn rows(&self, packing: Packing, role: Role, rows: usize) -> Result<Vec<usize>> {
        let s = self.sizes()?;
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        Ok(match packing {
            Packing::Single(_) => (0..rows).collect(),
            Packing::Qkv => match role {
                Role::Q => (0..q.min(rows)).collect(),
                Role::K => (q.min(rows)..(q + kv).min(rows)).collect(),
                _ => ((q + kv).min(rows)..rows).collect(),
            },
            Packing::QkvByHead => {
                let part = match role {
                    Role::Q => 0,
                    Role::K => 1,
                    _ => 2,
                };
                (0..rows).filter(|r| r / s.head_dim % 3 == part).collect()
            }
            Packing::GateUp if role == Role::Gate => (0..rows / 2).collect(),
            Packing::GateUp => (rows / 2..rows).collect(),
        })
    }

    /// A layer's linear map of that role; `None` where the layer has none.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn linear(&self, stack: &Stack, layer: usize, role: Role) -> Result<Option<Linear>> {
        let Some((packing, stem)) = self.stem(stack, layer, role) else { return Ok(None) };
        let name = format!("{}{stem}", self.layer(stack, layer));
        let all = self.oriented(&format!("{name}.weight"))?;
        let rows = self.rows(packing, role, all.rows())?;
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.values(&bias)?.take_rows(&rows).data) } else { None };
        Ok(Some(Linear { weight: all.take_rows(&rows), bias }))
    }

    /// A weight as `[out, in]`.
    fn oriented(&self, name: &str) -> Result<Dense> {
        let stored = self.values(name)?;
        Ok(if self.family.transposed { stored.transposed() } else { stored })
    }

    /// A linear map that the layer must have.
    ///
    /// # Errors
    /// As [`Checkpoint::linear`], and a layer without it.
    pub fn need(&self, step: &str, stack: &Stack, layer: usize, role: Role) -> Result<Linear> {
        self.linear(stack, layer, role)?.ok_or_else(|| Error::Refused {
            step: step.into(),
            problems: vec![format!("layer {layer} has no {role:?} projection")],
        })
    }

    /// Writes a layer's linear map in a buffer of its own. One that shares its tensor with other roles keeps its number
    /// of rows; see [`Checkpoint::set_linears`].
    ///
    /// # Errors
    /// A layer that has no tensor for the role, or a size that a packed tensor cannot take.
    pub fn set_linear(&mut self, step: &str, stack: &Stack, layer: usize, role: Role, to: &Linear) -> Result<()> {
        self.set_linears(step, stack, layer, &[(role, to)])
    }

    /// Writes several linear maps of a layer. Roles that share a tensor may change their sizes if all are given.
    ///
    /// # Errors
    /// As [`Checkpoint::set_linear`].
    pub fn set_linears(&mut self, step: &str, stack: &Stack, layer: usize, to: &[(Role, &Linear)]) -> Result<()> {
        let mut done: Vec<Role> = Vec::new();
        for (role, _) in to {
            if done.contains(role) {
                continue;
            }
            let Some((packing, stem)) = self.stem(stack, layer, *role) else {
                return super::error::refuse(step, format!("layer {layer} has no {role:?} projection"));
            };
            let given = |r: &Role| to.iter().find(|(other, _)| other == r).map(|(_, l)| (*l).clone());
            let mut parts = Vec::new();
            for r in packing.roles() {
                parts.push(match given(r) {
                    Some(l) => l,
                    None => self.need(step, stack, layer, *r)?,
                });
                done.push(*r);
            }
            let joined = match packing {
                Packing::QkvByHead => by_head(&parts, self.sizes()?.head_dim),
                _ => joined(&parts),
            };
            let name = format!("{}{stem}", self.layer(stack, layer));
            let weight = if self.family.transposed { joined.weight.transposed() } else { joined.weight };
            self.put(&format!("{name}.weight"), &weight);
            match joined.bias {
                Some(bias) => self.put(&format!("{name}.bias"), &Dense::vector(bias)),
                None => {
                    self.remove(&format!("{name}.bias"));
                }
            }
        }
        Ok(())
    }

    /// Takes a layer's linear map away; one that shares its tensor cannot be.
    ///
    /// # Errors
    /// A packed tensor.
    pub fn remove_linear(&mut self, step: &str, stack: &Stack, layer: usize, role: Role) -> Result<()> {
        match self.stem(stack, layer, role) {
            None => Ok(()),
            Some((Packing::Single(_), stem)) => {
                let name = format!("{}{stem}", self.layer(stack, layer));
                for end in ["weight", "bias", super::extension::LORA_A, super::extension::LORA_B] {
                    self.remove(&format!("{name}.{end}"));
                }
                Ok(())
            }
            Some((_, stem)) => super::error::refuse(
                step,
                format!("layer {layer}: `{stem}` packs {role:?} with others, so that it cannot be taken out"),
            ),
        }
    }

    /// Gives queries, keys and values of every layer tensors of their own, where one tensor packs them; the extension says
    /// so. Nothing is computed anew.
    ///
    /// # Errors
    /// A tensor that cannot be read; updates of low rank, which belong to the packed map.
    pub fn unpack_qkv(&mut self, step: &str, stack: &Stack, layers: usize) -> Result<()> {
        const QKV: [Role; 3] = [Role::Q, Role::K, Role::V];
        let own = |role: Role| stack.linears.iter().find(|(p, _)| *p == Packing::Single(role)).map(|(_, stem)| *stem);
        for layer in 0..layers {
            let Some((packing, packed)) = self.stem(stack, layer, Role::Q) else { continue };
            if matches!(packing, Packing::Single(_)) {
                continue;
            }
            let at = self.layer(stack, layer);
            if self.has(&format!("{at}{packed}.{}", super::extension::LORA_A)) {
                return super::error::refuse(step, format!("layer {layer}: `{packed}` has an update; fold it first"));
            }
            for role in QKV {
                let (map, stem) = (self.need(step, stack, layer, role)?, own(role));
                let name = format!("{at}{}", stem.unwrap_or(packed));
                let weight = if self.family.transposed { map.weight.transposed() } else { map.weight };
                self.put(&format!("{name}.weight"), &weight);
                if let Some(bias) = map.bias {
                    self.put(&format!("{name}.bias"), &Dense::vector(bias));
                }
            }
            for end in ["weight", "bias"] {
                self.remove(&format!("{at}{packed}.{end}"));
            }
            let mut extension = self.extension()?;
            extension.split_qkv = true;
            self.set_extension(&extension);
        }
        Ok(())
    }

    /// Whether one tensor of a layer holds this role and others.
    pub fn is_packed(&self, stack: &Stack, role: Role) -> bool {
        self.stem(stack, 0, role).is_some_and(|(packing, _)| !matches!(packing, Packing::Single(_)))
    }
}

/// Rows one after the other.
fn joined(parts: &[Linear]) -> Linear {
    let cols = parts.first().map_or(0, |p| p.weight.cols());
    let data: Vec<f64> = parts.iter().flat_map(|p| &p.weight.data).copied().collect();
    let rows = parts.iter().map(|p| p.weight.rows()).sum();
    let any = parts.iter().any(|p| p.bias.is_some());
    let bias = parts.iter().flat_map(|p| p.bias.clone().unwrap_or_else(|| vec![0.0; p.weight.rows()])).collect();
    Linear { weight: Dense { shape: vec![rows, cols], data }, bias: any.then_some(bias) }
}

/// Rows of each head side by side.
fn by_head(parts: &[Linear], head_dim: usize) -> Linear {
    let all = joined(parts);
    let each = parts.first().map_or(0, |p| p.weight.rows());
    let order: Vec<usize> = (0..each / head_dim.max(1))
        .flat_map(|h| (0..parts.len()).flat_map(move |p| (0..head_dim).map(move |i| p * each + h * head_dim + i)))
        .collect();
    let bias = all.bias.map(|b| order.iter().map(|i| b[*i]).collect());
    Linear { weight: all.weight.take_rows(&order), bias }
}
