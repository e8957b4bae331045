//! A model as the passes see it: graphs over shared tables, and a source of stored tensors. Nothing in it knows the
//! file format it came from.

use crate::graph::{Graph, Tables};
use frit_kernels::dim::Dim;
use frit_plan::{ModelInfo, TensorData, TensorSource};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One way to run a model.
#[derive(Clone, Debug)]
pub struct ModelGraph {
    /// `forward`, `prefill`, `decode`, `decode_wide`; see [`frit_plan::Program`].
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// Sizes fixed in this graph; they are replaced by their value before fusion.
    pub fixed: Vec<(String, u64)>,
    /// Sizes bounded from above in this graph.
    pub at_most: Vec<(String, u64)>,
    /// Sums of sizes bounded from above in this graph, such as past and new tokens by the positions of a table.
    pub limits: Vec<(Dim, u64)>,
}

/// A model.
#[derive(Clone)]
pub struct Model {
    /// Facts that no kernel holds.
    pub info: ModelInfo,
    /// Weights, cache slots, states, sizes.
    pub tables: Tables,
    /// Ways to run it.
    pub graphs: Vec<ModelGraph>,
    /// Stored tensors, read lazily.
    pub source: Arc<dyn TensorSource>,
}

impl Model {
    /// Where stored tensors are read from.
    pub fn weights(&self) -> Arc<dyn TensorSource> {
        Arc::clone(&self.source)
    }
    /// The graph of that name.
    pub fn graph(&self, name: &str) -> Option<&ModelGraph> {
        self.graphs.iter().find(|g| g.name == name)
    }
}

/// Tensors held in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryTensors(pub BTreeMap<String, TensorData>);

impl TensorSource for MemoryTensors {
    fn read(&self, tensor: &str) -> Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        self.0.get(tensor).cloned().ok_or_else(|| format!("there is no tensor `{tensor}`").into())
    }
}
