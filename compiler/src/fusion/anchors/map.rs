//! Pointwise regions: every element of the result by itself.

use super::epilogue::Lane;
use super::row::forward;
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::Op;
use frit_kernels::dim::{Dim, product};
use frit_kernels::spec::{Anchor, KernelSpec, Store};

pub(super) fn build(site: &Site<'_>) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let v = *site.region.epilogue.last().ok_or("an empty region")?;
    let op = site.graph.op(v);
    let source = match op {
        Op::KvAppend { .. } => site.graph.operands(v).first().copied().unwrap_or(v),
        _ => v,
    };
    let shape = site.graph.ty(source).shape.clone();
    let lead = shape.len().saturating_sub(1);
    let domain = vec![product(shape.iter().take(lead)), shape.last().cloned().unwrap_or_else(Dim::one)];
    let mut b = SpecBuilder::new(site.graph, site.tables, site.stored, &domain);
    let bounds = b.bounds.clone();
    let mut at = coords::delinear(&Dim::axis(0), shape.get(..lead).unwrap_or(&[]), &bounds);
    if !shape.is_empty() {
        at.push(Dim::axis(1));
    }
    let (value, operand, index) = match op {
        Op::KvAppend { slot, part, past } => {
            let index = b.kv_index(*slot, *part, &at, past);
            (b.expr_at(source, &at)?, Operand::Kv(*slot, *part), index)
        }
        _ => (b.compute(v, &at)?, Operand::Value(v), coords::linear(&at, &shape, &bounds)),
    };
    let arg = b.written(operand);
    let mut stores = vec![Store { arg, index, value, when: None, per_row: false }];
    let mut anchor = Anchor::Map;
    if let Some(f) = site.region.forwards {
        let (mut stats, n) = (Vec::new(), domain.get(1).cloned().unwrap_or_else(Dim::one));
        forward(&mut b, (f, Lane { at, expr: value }), &n, &mut stats, &mut stores)?;
        anchor = Anchor::Row { stats };
    }
    Ok(b.finish(kernel_name(site), domain, anchor, stores))
}
