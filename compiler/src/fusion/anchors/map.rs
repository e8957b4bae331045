//! Pointwise regions: every element of each result by itself. Of results with rows of several widths the widest rows are
//! walked, and the narrower ones end earlier.

use super::epilogue::Lane;
use super::row::forward;
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::{Op, ValueId};
use frit_kernels::dim::{Dim, product};
use frit_kernels::spec::{Anchor, AxisRange, KernelSpec, Store};

pub(super) fn build(site: &Site<'_>) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let mut made = site.region.epilogue.clone();
    if made.len() > 1 {
        made.retain(|v| site.region.outputs.contains(v));
    }
    let first = *made.first().ok_or("an empty region")?;
    let lead = |v| {
        let shape = shape_of(site, v);
        product(shape.iter().take(shape.len().saturating_sub(1)))
    };
    let width = |v| shape_of(site, v).last().cloned().unwrap_or_else(Dim::one);
    let widest = made.iter().map(|v| width(*v)).max_by_key(Dim::as_const).unwrap_or_else(Dim::one);
    let domain = vec![lead(first), widest.clone()];
    let mut b = SpecBuilder::new(site.graph, site.tables, site.stored, &domain);
    let bounds = b.bounds.clone();
    let mut stores = Vec::new();
    let mut last = None;
    for v in made {
        let (op, shape) = (site.graph.op(v), shape_of(site, v));
        let mut at =
            coords::delinear(&Dim::axis(0), shape.get(..shape.len().saturating_sub(1)).unwrap_or(&[]), &bounds);
        if !shape.is_empty() {
            at.push(Dim::axis(1));
        }
        let (value, operand, index) = match op {
            Op::KvAppend { slot, part, past } => {
                let index = b.kv_index(*slot, *part, &at, past);
                (b.expr_at(source_of(site, v), &at)?, Operand::Kv(*slot, *part), index)
            }
            _ => (b.compute(v, &at)?, Operand::Value(v), coords::linear(&at, &shape, &bounds)),
        };
        let arg = b.written(operand);
        let hi = width(v);
        let when = (hi != widest).then(|| AxisRange { axis: 1, lo: Dim::zero(), hi });
        stores.push(Store { arg, index, value, when, per_row: false });
        last = Some(Lane { at, expr: value });
    }
    let mut anchor = Anchor::Map;
    if let (Some(f), Some(lane)) = (site.region.forwards, last) {
        let mut stats = Vec::new();
        forward(&mut b, (f, lane), &widest, &mut stats, &mut stores)?;
        anchor = Anchor::Row { stats };
    }
    Ok(b.finish(kernel_name(site), domain, anchor, stores))
}

/// What an append writes, or the value itself.
fn source_of(site: &Site<'_>, v: ValueId) -> ValueId {
    match site.graph.op(v) {
        Op::KvAppend { .. } => site.graph.operands(v).first().copied().unwrap_or(v),
        _ => v,
    }
}

fn shape_of(site: &Site<'_>, v: ValueId) -> Vec<Dim> {
    site.graph.ty(source_of(site, v)).shape.clone()
}
