//! Chains: two products in a row and what lies between them.

use super::epilogue::{self, Lane, Tracked};
use super::matmul::left;
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::region::{ChainGroup, MatMulForm};
use crate::fusion::spec_builder::{Fault, Operand, PackedWeight, SpecBuilder};
use crate::graph::{Op, ValueId};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, Chain, Expr, ExprId, KernelSpec};
use std::collections::HashMap;

pub(super) fn build(site: &Site<'_>, c: &ChainGroup) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let operands = |v: ValueId| -> Result<(ValueId, PackedWeight), Fault> {
        let ops = graph.operands(v);
        match (ops.first(), ops.get(1).map(|w| graph.op(*w))) {
            (Some(x), Some(Op::Weight(w))) => Ok((*x, PackedWeight { parts: vec![*w], rows: None, side: false })),
            _ => Err("a chain of products without weights".into()),
        }
    };
    let first = *c.up.members.first().ok_or("an empty chain")?;
    let (lhs, mut packed) = operands(first)?;
    for m in c.up.members.iter().skip(1) {
        packed.parts.extend(operands(*m)?.1.parts);
    }
    let (middle, down) = operands(c.down)?;
    let shape = graph.ty(first).shape.clone();
    let lead: Vec<Dim> = shape.iter().take(shape.len().saturating_sub(1)).cloned().collect();
    let (k, inner, columns) = (graph.ty(lhs).last(), graph.ty(first).last(), graph.ty(c.down).last());
    let domain = vec![product(&lead), columns];
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    b.bounds.axis(2, &inner);
    b.bounds.axis(3, &k);
    let (n, i, kk) = (Dim::axis(1), Dim::axis(2), Dim::axis(3));
    let rows_at = coords::delinear(&Dim::axis(0), &lead, &b.bounds);
    let at = |last: Dim| -> Vec<Dim> { rows_at.iter().cloned().chain([last]).collect() };
    let (left, lhs_stats) = left(&mut b, site, &c.up, lhs, &at(kk.clone()))?;
    let weight = b.arg(Operand::Weight(packed));
    let up_rows = match c.up.form {
        MatMulForm::Paired => vec![i.clone(), i.clone() + inner.clone()],
        _ => vec![i.clone()],
    };
    let up: Vec<ExprId> = up_rows.iter().map(|r| b.load_arg(weight, r * &k + kk.clone())).collect();
    let lane = |b: &mut SpecBuilder<'_>, j: usize, last: &Dim| {
        let lane = Lane { at: at(last.clone()), expr: b.exprs.add(Expr::Acc(j as u8), Scalar::F32) };
        Tracked { lanes: vec![lane], when: None, per_row: false }
    };
    let tracked: HashMap<ValueId, Tracked> =
        c.up.members.iter().enumerate().map(|(j, m)| (*m, lane(&mut b, j, &i))).collect();
    let tracked = epilogue::follow(&mut b, site, tracked, &c.middle, 2)?;
    let value = match tracked.get(&middle).map(|t| t.lanes.as_slice()) {
        Some([l]) if l.at == at(i.clone()) => l.expr,
        _ => return Err("a chain whose middle is no function of its first products".into()),
    };
    let weight = b.arg(Operand::Weight(down));
    let right = b.load_arg(weight, &n * &inner + i);
    let tracked = HashMap::from([(c.down, lane(&mut b, 0, &n))]);
    let stores = epilogue::run(&mut b, site, tracked, 1)?.stores;
    let anchor = Anchor::Chain(Box::new(Chain { k, inner, lhs: left, lhs_stats, up, middle: value, down: right }));
    Ok(b.finish(kernel_name(site), domain, anchor, stores))
}
