//! Region to [`KernelSpec`]: one file an anchor, and the epilogue they share.

mod attention;
mod chain;
mod conv_chain;
mod epilogue;
mod map;
mod matmul;
mod row;

use super::region::{Region, RegionAnchor};
use super::spec_builder::{Fault, Operand};
use crate::graph::{Graph, Tables, ValueId};
use frit_kernels::spec::KernelSpec;
use std::collections::HashSet;

/// What a kernel is built from.
pub struct Site<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its tables.
    pub tables: &'a Tables,
    /// Values that lie in memory.
    pub stored: &'a HashSet<ValueId>,
    /// The region.
    pub region: &'a Region,
}

/// The kernel of a region and what its arguments stand for.
///
/// # Errors
/// An operation that a kernel cannot express: a fault of the partition.
pub fn build(site: &Site<'_>) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    match &site.region.anchor {
        RegionAnchor::Map => map::build(site),
        RegionAnchor::Row(v) => row::build(site, *v),
        RegionAnchor::MatMul(g) => matmul::build(site, g),
        RegionAnchor::Attention(v) => attention::build(site, *v),
        RegionAnchor::Chain(c) => chain::build(site, c),
        RegionAnchor::ConvChain(c) => conv_chain::build(site, c),
    }
}

/// The kernel's name: its operations in order, each once, views left out.
pub(super) fn kernel_name(site: &Site<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let order =
        site.region.prologue.iter().copied().chain(site.region.anchors()).chain(site.region.epilogue.iter().copied());
    let mut all: Vec<ValueId> = order.collect();
    if let RegionAnchor::MatMul(g) = &site.region.anchor {
        let left: Vec<ValueId> = g.left().collect();
        all.retain(|v| !left.contains(v));
        all.splice(0..0, left);
    }
    let cheap = |v: &ValueId| site.graph.ty(*v).scalar != frit_kernels::dtype::Scalar::F32;
    for v in all {
        let op = site.graph.op(v);
        let name = op.name();
        if !op.is_view() && !parts.contains(&name) && (!cheap(&v) || super::is_anchor(op)) {
            parts.push(name);
        }
    }
    if parts.is_empty() {
        parts.push("copy".into());
    }
    let mut name = String::new();
    for p in parts {
        if name.len() + p.len() > 56 {
            break;
        }
        if !name.is_empty() {
            name.push('_');
        }
        name.push_str(&p);
    }
    name
}

/// The region in one line: its main operation and where it comes from.
pub fn describe(site: &Site<'_>) -> String {
    let main = site.region.anchors().first().or(site.region.epilogue.last()).copied();
    let origin = main.map(|v| site.graph.node(v).origin.clone()).unwrap_or_default();
    format!("{} {origin}", kernel_name(site)).trim_end().to_owned()
}
