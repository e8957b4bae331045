//! Fewer key heads and fewer value heads, each number for itself.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Result, refuse};
use crate::transform::extension::Heads;
use crate::transform::family::{Role, Side};
use crate::transform::linalg::cluster;
use crate::transform::linear::Linear;
use serde::{Deserialize, Serialize};

/// Which heads are fused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// Neighbours.
    #[default]
    Contiguous,
    /// Those whose weights are most alike.
    Similar,
}

/// `W_K^g = Σ_{h∈g} W_K^h / |g|`, and likewise for values with groups of their own. Rotations of heads against each other
/// are not undone: heads should be aligned, or the result trained further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FuseHeads {
    /// Key heads that are left in each layer.
    pub k: Option<usize>,
    /// Value heads that are left.
    pub v: Option<usize>,
    /// Which are fused.
    pub by: Grouping,
}

impl Transform for FuseHeads {
    fn name(&self) -> &'static str {
        "fuse-heads"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let (stack, count) = c.stack(Side::Only)?;
        let extension = c.extension()?;
        if !extension.kv_map.is_empty() || !extension.probs_from.is_empty() {
            return refuse(self.name(), "layers attend by other layers; fuse heads first");
        }
        let d = c.sizes()?.head_dim;
        let mut heads = c.heads(Side::Only)?;
        let whole = |n: Option<usize>, of: u64| n.is_none_or(|n| n as u64 == of);
        if !heads.iter().all(|h| whole(self.k, h.k) && whole(self.v, h.v)) {
            c.unpack_qkv(self.name(), stack, count)?;
        }
        for (i, h) in heads.iter_mut().enumerate() {
            let queries = h.q;
            let map = |of: &[u64], n: u64| -> Vec<u64> {
                if of.is_empty() { (0..queries).map(|q| q * n / queries).collect() } else { of.to_vec() }
            };
            let (k_of, v_of) = (map(&h.k_of, h.k), map(&h.v_of, h.v));
            let (k, k_of) = self.fuse(c, i, Role::K, self.k.unwrap_or(h.k as usize), h.k as usize, d, &k_of)?;
            let (v, v_of) = self.fuse(c, i, Role::V, self.v.unwrap_or(h.v as usize), h.v as usize, d, &v_of)?;
            c.set_linears(self.name(), stack, i, &[(Role::K, &k), (Role::V, &v)])?;
            let (k, v) = ((k.weight.rows() / d) as u64, (v.weight.rows() / d) as u64);
            let ordinary = |of: &[u64], n: u64| {
                queries % n == 0 && of.iter().enumerate().all(|(q, g)| q as u64 * n / queries == *g)
            };
            let plain = ordinary(&k_of, k) && ordinary(&v_of, v);
            *h = Heads {
                q: queries,
                k,
                v,
                k_of: if plain { Vec::new() } else { k_of },
                v_of: if plain { Vec::new() } else { v_of },
            };
        }
        let first = heads[0].clone();
        c.set_heads(heads)?;
        Ok(vec![format!("{count} layers have {} key heads and {} value heads", first.k, first.v)])
    }
}

impl FuseHeads {
    fn fuse(
        &self,
        c: &Checkpoint,
        layer: usize,
        role: Role,
        to: usize,
        from: usize,
        d: usize,
        of: &[u64],
    ) -> Result<(Linear, Vec<u64>)> {
        let (stack, _) = c.stack(Side::Only)?;
        let l = c.need(self.name(), stack, layer, role)?;
        if to == 0 || to > from || l.weight.rows() != from * d {
            return refuse(self.name(), format!("layer {layer} has {from} {role:?} heads; {to} are asked for"));
        }
        let groups = match self.by {
            Grouping::Contiguous => (0..from).map(|h| h * to / from).collect(),
            Grouping::Similar => {
                cluster::agglomerate(&Dense::matrix(from, l.weight.data.len() / from, l.weight.data.clone()), to)
            }
        };
        let mut weight = Dense::zeros(&[to * d, l.weight.cols()]);
        let mut bias = l.bias.as_ref().map(|_| vec![0.0; to * d]);
        for (h, g) in groups.iter().enumerate() {
            let share = 1.0 / groups.iter().filter(|o| *o == g).count() as f64;
            for r in 0..d {
                let row = l.weight.row(h * d + r);
                weight.row_mut(g * d + r).iter_mut().zip(row).for_each(|(t, v)| *t += share * v);
                if let (Some(to), Some(from)) = (&mut bias, &l.bias) {
                    to[g * d + r] += share * from[h * d + r];
                }
            }
        }
        Ok((Linear { weight, bias }, of.iter().map(|h| groups[*h as usize] as u64).collect()))
    }
}
