//! Depth and width: layers taken out, put in and reordered; parts of layers dropped or replaced; heads and neurons cut.

mod depth;
mod expand;
mod parts;
mod replace;
mod traverse;
mod width;

pub use depth::{KeepLayers, PermuteLayers, PruneLayers, Truncate};
pub use expand::{ExpandInit, ExpandLayers, LoopLayers};
pub use parts::{DropAttention, DropFfn};
pub use replace::ReplaceLinear;
pub use traverse::Traverse;
pub use width::{By, PermuteNeurons, PruneHeads, Slice};

use super::checkpoint::Checkpoint;
use super::error::{Error, Result};
use super::family::Side;
use super::layer_list::LayerList;

/// The side of a list and its layers in ascending order.
fn resolved(step: &str, c: &Checkpoint, list: &LayerList) -> Result<(Side, Vec<usize>)> {
    let wrong = |e: String| Error::Refused { step: step.into(), problems: vec![e] };
    let side = list.side().map_err(wrong)?.unwrap_or(Side::Only);
    let (_, count) = c.stack(side)?;
    Ok((side, list.resolve(count).map_err(wrong)?))
}
