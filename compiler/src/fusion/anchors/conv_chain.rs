//! Two convolutions in a row and what lies between them.

use super::epilogue::{self, Lane, Tracked};
use super::{Site, kernel_name};
use crate::fusion::region::ConvGroup;
use crate::fusion::spec_builder::{Fault, Operand, PackedWeight, SpecBuilder};
use crate::graph::{Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, ConvChain, Expr, KernelSpec};
use std::collections::HashMap;

pub(super) fn build(site: &Site<'_>, c: &ConvGroup) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let operands = |v: ValueId| -> Result<(ValueId, PackedWeight), Fault> {
        let ops = graph.operands(v);
        match (ops.first(), ops.get(1).map(|w| graph.op(*w))) {
            (Some(x), Some(Op::Weight(w))) => Ok((*x, PackedWeight { parts: vec![*w], rows: None, side: false })),
            _ => Err("convolutions in a row without weights".into()),
        }
    };
    let ((lhs, up), (_, down)) = (operands(c.up)?, operands(c.down)?);
    let batch = graph.ty(c.down).shape.first().cloned().unwrap_or_else(Dim::one);
    let (k, columns) = (graph.ty(lhs).last(), graph.ty(c.down).last());
    let [rows, cols] = c.windows;
    let depth = Dim::from(c.channels * rows.taps * cols.taps);
    let domain = vec![batch, Dim::from(rows.places), Dim::from(cols.places), columns];
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    let between = [Dim::from(rows.extent), Dim::from(cols.extent), Dim::from(c.channels), k.clone(), depth.clone()];
    between.iter().enumerate().for_each(|(i, extent)| b.bounds.axis(4 + i, extent));
    let axis = Dim::axis;
    // Matmuls number the places of an image; the last coordinate is a column of either side.
    let first_at = |last: Dim| vec![axis(0), axis(4) * Dim::from(cols.extent) + axis(5), last];
    let left = b.expr_at(lhs, &first_at(axis(7)))?;
    let up = b.arg(Operand::Weight(up));
    let up = b.load_arg(up, axis(6) * k.clone() + axis(7));
    let acc = |b: &mut SpecBuilder<'_>, at: Vec<Dim>| {
        let lane = Lane { at, expr: b.exprs.add(Expr::Acc(0), Scalar::F32) };
        Tracked { lanes: vec![lane], when: None, per_row: false }
    };
    let tracked = HashMap::from([(c.up, acc(&mut b, first_at(axis(6))))]);
    let tracked = epilogue::follow(&mut b, site, tracked, &c.middle, 6)?;
    let middle = match tracked.get(&c.source).map(|t| t.lanes.as_slice()) {
        Some([lane]) => lane.expr,
        _ => return Err("windows over no function of the first convolution".into()),
    };
    let down = b.arg(Operand::Weight(down));
    let down = b.load_arg(down, axis(3) * depth + axis(8));
    let at = vec![axis(0), axis(1) * Dim::from(cols.places) + axis(2), axis(3)];
    let tracked = HashMap::from([(c.down, acc(&mut b, at))]);
    let stores = epilogue::run(&mut b, site, tracked, 3)?.stores;
    let chain = ConvChain { windows: c.windows, channels: c.channels, k, lhs: left, up, middle, down };
    Ok(b.finish(kernel_name(site), domain, Anchor::ConvChain(Box::new(chain)), stores))
}
