//! Attention regions.

use super::epilogue::{self, Lane, Tracked};
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::{Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, Attention, Expr, KernelSpec};
use std::collections::HashMap;

pub(super) fn build(site: &Site<'_>, v: ValueId) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let Op::Attention(attrs) = graph.op(v) else { return Err("no attention".into()) };
    let ops = graph.operands(v);
    let [q, k, value, rest @ ..] = ops.as_slice() else { return Err("attention of nothing".into()) };
    let domain = graph.ty(v).shape.clone();
    let size = |v: ValueId, axis: usize| {
        let d = graph.ty(v).shape.get(axis).and_then(Dim::as_const);
        d.and_then(|d| u64::try_from(d).ok()).ok_or_else(|| format!("axis {axis} of {} is not constant", graph.ty(v)))
    };
    let (heads, kv_heads, head_dim, value_dim) = (size(*q, 1)?, size(*k, 1)?, size(*q, 3)?, size(*value, 3)?);
    let kv_len = graph.ty(*k).shape.get(2).cloned().unwrap_or_default();
    let group = heads / kv_heads.max(1);
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    b.bounds.axis(4, &Dim::from(head_dim));
    b.bounds.axis(5, &kv_len);
    let axis = Dim::axis;
    let kv_head = axis(1).div(&Dim::from(group));
    let q_expr = b.expr_at(*q, &[axis(0), axis(1), axis(2), axis(4)])?;
    let k_expr = b.expr_at(*k, &[axis(0), kv_head.clone(), axis(5), axis(4)])?;
    let v_expr = b.expr_at(*value, &[axis(0), kv_head, axis(5), axis(3)])?;
    let scores = [axis(0), axis(1), axis(2), axis(5)];
    let mut rest = rest.iter();
    let mut side = |b: &mut SpecBuilder<'_>, has: bool| match has.then(|| rest.next()).flatten() {
        Some(o) => b.expr_at(*o, &coords::broadcast(&scores, &graph.ty(*o).shape)).map(Some),
        None => Ok(None),
    };
    let mask = side(&mut b, attrs.has_mask)?;
    let bias = side(&mut b, attrs.has_bias)?;
    let result = b.exprs.add(Expr::Acc(0), Scalar::F32);
    let lane = Lane { at: (0..4).map(axis).collect(), expr: result };
    let tracked = HashMap::from([(v, Tracked { lanes: vec![lane], when: None, per_row: false })]);
    let stores = epilogue::run(&mut b, site, tracked, 3)?;
    let anchor = Anchor::Attention(Box::new(Attention {
        q: q_expr,
        k: k_expr,
        v: v_expr,
        group,
        head_dim,
        value_dim,
        kv_len,
        causal_offset: attrs.causal.clone(),
        window: attrs.window,
        mask,
        bias,
        scale: attrs.scale.0,
        softcap: attrs.softcap.map(|c| c.0),
    }));
    Ok(b.finish(kernel_name(site), domain, anchor, stores))
}
