//! The operations of a program before fusion, for pictures. Layers that are alike are kept once.

use frit_kernels::dim::Dim;
use serde::{Deserialize, Serialize};

/// Operations and what flows between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drawing {
    /// Stretches of the program, in launch order.
    pub blocks: Vec<DrawnBlock>,
    /// Operations, block by block, each behind those of its block that it reads.
    pub ops: Vec<DrawnOp>,
    /// Edges by the indices of their operations. One that leads to no later operation leads into the next of the layers
    /// that a block stands for.
    pub edges: Vec<DrawnEdge>,
}

/// A layer, all layers that are like it, or what lies outside of layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawnBlock {
    /// Paths of the layers that it stands for; empty outside of layers.
    pub layers: Vec<String>,
    /// Regions of the first of them.
    pub regions: Vec<u32>,
}

/// An operation as fusion received it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawnOp {
    /// What it computes.
    pub op: String,
    /// Where it comes from in the source model.
    pub origin: String,
    /// Its block.
    pub block: u32,
    /// The regions that compute it; several where each computes it again.
    pub regions: Vec<u32>,
    /// Bytes of its result.
    pub bytes: Dim,
}

/// What flows from one operation to another, views left out; or two operations that were refused one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawnEdge {
    /// Producer.
    pub from: u32,
    /// Consumer.
    pub to: u32,
    /// Whether the consumer reads the producer's result.
    pub flows: bool,
    /// The refusal among those of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<u32>,
}
