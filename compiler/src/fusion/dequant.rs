//! Quantised weights decoded by kernels of their own.
//!
//! No operation of the graph decodes a weight: whatever reads one does. Where that is switched off for a product, its weight
//! is written to memory in F32 in front of it, in every run, and the product reads that.

use super::FusionOptions;
use crate::graph::{Graph, Op, Tables, ValueId};
use frit_kernels::dtype::Scalar;

/// Puts a cast between each quantised weight and the products that may not decode it, one a product. Rows of a table that are
/// gathered stay as they are: a kernel of their own decodes them as it is.
pub fn decode_apart(graph: &mut Graph, tables: &Tables, options: &FusionOptions) {
    for v in graph.values().collect::<Vec<ValueId>>() {
        let is_off = || !options.fuse_dequant || options.place_off("dequant", &graph.node(v).origin).is_some();
        if !matches!(graph.op(v), Op::MatMul { .. }) || !is_off() {
            continue;
        }
        for (port, w) in graph.operands(v).into_iter().enumerate() {
            let quantised = |w| tables.weight_info(w).is_some_and(|i| i.storage.is_quantised());
            if matches!(graph.op(w), Op::Weight(w) if quantised(*w)) {
                let (ty, origin) = (graph.ty(w).clone(), graph.node(v).origin.clone());
                let decoded = graph.push(Op::Cast(Scalar::F32), &[w], ty, &origin);
                graph.set_operand(v, port, decoded);
            }
        }
    }
}

/// Whether the value is such a cast, where decoding in products is off.
pub(super) fn is_decoded(graph: &Graph, v: ValueId) -> bool {
    let is_weight = |o: ValueId| matches!(graph.op(o), Op::Weight(_)) && graph.ty(o).scalar == Scalar::F32;
    matches!(graph.op(v), Op::Cast(Scalar::F32)) && graph.operands(v).first().is_some_and(|o| is_weight(*o))
}
