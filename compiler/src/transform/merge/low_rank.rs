//! Linear maps and embeddings as products of two thin factors.

use crate::transform::Transform;
use crate::transform::calibration::Aid;
use crate::transform::checkpoint::Checkpoint;
use crate::transform::dense::Dense;
use crate::transform::error::{Error, Result, refuse};
use crate::transform::extension::{EMBEDDING_PROJECTION, LORA_A, LORA_B};
use crate::transform::family::{Packing, Role};
use crate::transform::layer_list::LayerList;
use crate::transform::linalg;
use serde::{Deserialize, Serialize};

/// `W ≈ B A`, the best of that rank by the singular value decomposition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowRank {
    /// Rank of linear maps in layers.
    pub rank: Option<usize>,
    /// Columns of the embedding table: `V×d ≈ V×e · e×d`.
    pub embedding: Option<usize>,
    /// In which layers; all if none are named.
    pub layers: Option<LayerList>,
}

impl Transform for LowRank {
    fn name(&self) -> &'static str {
        "low-rank"
    }
    fn apply(&self, c: &mut Checkpoint, _: &Aid<'_>) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut extension = c.extension()?;
        if let Some(rank) = self.rank {
            if rank == 0 || extension.lora.is_some() {
                return refuse(self.name(), "the rank is 0, or maps have updates already; fold them first");
            }
            let list = self.layers.clone().unwrap_or(LayerList::all());
            let wrong = |e: String| Error::Refused { step: self.name().into(), problems: vec![e] };
            let side = list.side().map_err(wrong)?.unwrap_or(crate::transform::family::Side::Only);
            let (stack, count) = c.stack(side)?;
            let mut maps = 0;
            for i in list.resolve(count).map_err(wrong)? {
                for role in [&Role::ATTENTION[..], &Role::FFN].concat() {
                    let Some((packing, stem)) = c.stem(stack, i, role) else { continue };
                    if !matches!(packing, Packing::Single(_)) || c.family().transposed {
                        return refuse(
                            self.name(),
                            format!("`{stem}` is packed or stored transposed, which has no form of low rank yet"),
                        );
                    }
                    let at = format!("{}{stem}", c.layer(stack, i));
                    let (b, a) = linalg::svd(&c.values(&format!("{at}.weight"))?).factors(rank);
                    c.remove(&format!("{at}.weight"));
                    c.put(&format!("{at}.{LORA_A}"), &a);
                    c.put(&format!("{at}.{LORA_B}"), &b);
                    maps += 1;
                }
            }
            extension.low_rank = Some(rank as u64);
            lines.push(format!("{maps} maps are products of rank {rank}"));
        }
        if let Some(e) = self.embedding {
            let Some(table) = c.embedding() else { return refuse(self.name(), "the model has no embedding table") };
            let values = c.values(&table)?;
            if e == 0 || e > values.cols() || extension.embedding_rank.is_some() {
                return refuse(self.name(), format!("an embedding of {} columns cannot get {e}", values.cols()));
            }
            // The Gram matrix of the columns has the right singular vectors, and needs no factor of V rows.
            let v = linalg::svd(&linalg::gram(&values, 0.0)).v;
            let kept = v.take_cols(&(0..e).collect::<Vec<_>>());
            c.put(&table, &values.times(&kept));
            c.put(EMBEDDING_PROJECTION, &Dense::matrix(kept.rows(), kept.cols(), kept.data.clone()));
            extension.embedding_rank = Some(e as u64);
            lines.push(format!("the embedding has {e} columns"));
        }
        if lines.is_empty() {
            return refuse(self.name(), "say which rank maps, or how many columns the embedding is to have");
        }
        c.set_extension(&extension);
        Ok(lines)
    }
}
