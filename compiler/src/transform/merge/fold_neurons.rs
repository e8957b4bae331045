//! Model folding: similar neurons and heads become one.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::family::{Role, Side, Stack};
use crate::transform::linalg::cluster;
use crate::transform::linear::Linear;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How similar neurons are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// k-means from this seed.
    Kmeans(u64),
    /// Agglomeration by Ward's criterion.
    Agglomerative,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster::Kmeans(0)
    }
}

/// Clusters neurons and heads by all their weights; those of a cluster become one. With M the k×n membership matrix and
/// `D = diag(MMᵀ)`: rows of the maps in front are averaged, `D⁻¹ M W`, columns of the map behind are added, `W Mᵀ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fold {
    /// Neurons that are left: a share of them up to 1, else their number.
    pub ff: Option<f64>,
    /// Key heads that are left, with the query heads that use them.
    pub heads: Option<f64>,
    /// How clusters are found.
    pub cluster: Cluster,
}

impl Transform for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (stack, _) = c.stack(Side::Only)?;
        let mut lines = Vec::new();
        if let Some(share) = self.ff {
            let mut widths = c.ff_widths(Side::Only)?;
            for (i, width) in widths.iter_mut().enumerate() {
                *width = wanted(self.name(), "neurons", share, *width)?;
                self.neurons(c, stack, i, *width)?;
            }
            c.set_ff_widths(&widths)?;
            lines.push(format!("{} neurons are left in layer 0", widths[0]));
        }
        if let Some(share) = self.heads {
            let mut heads = c.heads(Side::Only)?;
            let extension = c.extension()?;
            if !extension.kv_map.is_empty() || !extension.probs_from.is_empty() {
                return refuse(self.name(), "layers attend by other layers, whose heads must stay as many");
            }
            for (i, to) in heads.iter_mut().enumerate() {
                let h = to.clone();
                if h.k != h.v || !h.k_of.is_empty() || !h.v_of.is_empty() {
                    return refuse(self.name(), format!("layer {i} has unlike key and value heads"));
                }
                let k = wanted(self.name(), "key heads", share, h.k as usize)?;
                self.heads_of(c, stack, i, h.k as usize, (h.q / h.k) as usize, k)?;
                (to.q, to.k, to.v) = (k as u64 * (h.q / h.k), k as u64, k as u64);
            }
            lines.push(format!("{} key heads are left in layer 0", heads[0].k));
            c.set_heads(heads)?;
        }
        if lines.is_empty() {
            return refuse(self.name(), "say how many ff or heads are to be left");
        }
        Ok(lines)
    }
}

fn wanted(step: &str, what: &str, share: f64, of: usize) -> Result<usize> {
    let n = if share <= 1.0 { (share * of as f64).round() } else { share };
    if n.is_nan() || n < 1.0 || n > of as f64 || n.fract() != 0.0 {
        return refuse(step, format!("{share} of {of} {what} cannot be left"));
    }
    Ok(n as usize)
}

impl Fold {
    fn clusters(&self, features: &Dense, k: usize) -> Vec<usize> {
        match self.cluster {
            Cluster::Kmeans(seed) => cluster::kmeans(features, k, seed),
            Cluster::Agglomerative => cluster::agglomerate(features, k),
        }
    }

    fn neurons(&self, c: &mut Checkpoint, stack: &Stack, layer: usize, k: usize) -> Result<()> {
        let mut parts: Vec<(Role, Linear)> = Vec::new();
        for role in Role::FFN {
            if let Some(l) = c.linear(stack, layer, role)? {
                parts.push((role, l));
            }
        }
        let units: Vec<Dense> = parts
            .iter()
            .map(|(r, l)| if *r == Role::Down { l.weight.transposed() } else { l.weight.clone() })
            .collect();
        let of = self.clusters(&side_by_side(&units), k);
        let folded: Vec<(Role, Linear)> = parts
            .iter()
            .map(|(r, l)| (*r, if *r == Role::Down { added(l, &of, k, 1) } else { averaged(l, &of, k, 1) }))
            .collect();
        let refs: Vec<(Role, &Linear)> = folded.iter().map(|(r, l)| (*r, l)).collect();
        c.set_linears(self.name(), stack, layer, &refs)
    }

    fn heads_of(
        &self,
        c: &mut Checkpoint,
        stack: &Stack,
        layer: usize,
        kv: usize,
        group: usize,
        k: usize,
    ) -> Result<()> {
        let d = c.sizes()?.head_dim;
        let mut parts = Vec::new();
        for role in Role::ATTENTION {
            parts.push((role, c.need(self.name(), stack, layer, role)?));
        }
        let units: Vec<Dense> = parts
            .iter()
            .map(|(r, l)| {
                let w = if *r == Role::O { l.weight.transposed() } else { l.weight.clone() };
                Dense::matrix(kv, w.data.len() / kv, w.data)
            })
            .collect();
        let of = self.clusters(&side_by_side(&units), k);
        let folded: Vec<(Role, Linear)> = parts
            .iter()
            .map(|(r, l)| {
                let unit = if matches!(r, Role::K | Role::V) { d } else { group * d };
                (*r, if *r == Role::O { added(l, &of, k, unit) } else { averaged(l, &of, k, unit) })
            })
            .collect();
        let refs: Vec<(Role, &Linear)> = folded.iter().map(|(r, l)| (*r, l)).collect();
        c.set_linears(self.name(), stack, layer, &refs)
    }
}

fn side_by_side(units: &[Dense]) -> Dense {
    let n = units.first().map_or(0, Dense::rows);
    let data: Vec<f64> = (0..n).flat_map(|i| units.iter().flat_map(move |u| u.row(i))).copied().collect();
    Dense::matrix(n, data.len() / n.max(1), data)
}

/// `D⁻¹ M W`: units of `unit` rows, averaged by cluster.
fn averaged(l: &Linear, of: &[usize], k: usize, unit: usize) -> Linear {
    let mut weight = Dense::zeros(&[k * unit, l.weight.cols()]);
    let mut bias = l.bias.as_ref().map(|_| vec![0.0; k * unit]);
    for (n, cluster) in of.iter().enumerate() {
        let share = 1.0 / of.iter().filter(|o| *o == cluster).count() as f64;
        for r in 0..unit {
            let from = l.weight.row(n * unit + r);
            weight.row_mut(cluster * unit + r).iter_mut().zip(from).for_each(|(t, v)| *t += share * v);
            if let (Some(to), Some(from)) = (&mut bias, &l.bias) {
                to[cluster * unit + r] += share * from[n * unit + r];
            }
        }
    }
    Linear { weight, bias }
}

/// `W Mᵀ`: units of `unit` columns, added by cluster.
fn added(l: &Linear, of: &[usize], k: usize, unit: usize) -> Linear {
    let mut weight = Dense::zeros(&[l.weight.rows(), k * unit]);
    for i in 0..weight.rows() {
        let from = l.weight.row(i);
        let to = weight.row_mut(i);
        for (n, cluster) in of.iter().enumerate() {
            (0..unit).for_each(|r| to[cluster * unit + r] += from[n * unit + r]);
        }
    }
    Linear { weight, bias: l.bias.clone() }
}

impl FromStr for Cluster {
    type Err = String;

    fn from_str(text: &str) -> Result<Cluster, String> {
        match text.split_once(':') {
            None if text == "agglomerative" => Ok(Cluster::Agglomerative),
            None if text == "kmeans" => Ok(Cluster::Kmeans(0)),
            Some(("kmeans", seed)) => seed.parse().map(Cluster::Kmeans).map_err(|e| format!("`{text}`: {e}")),
            _ => Err(format!("`{text}` is neither kmeans:SEED nor agglomerative")),
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cluster::Kmeans(seed) => write!(f, "kmeans:{seed}"),
            Cluster::Agglomerative => f.write_str("agglomerative"),
        }
    }
}

impl Serialize for Cluster {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cluster {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cluster, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
