//! Attention regions.

use super::epilogue::{self, Lane, Tracked};
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::ValueId;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, Attention, Expr, KernelSpec, KeyParts, Store};
use std::collections::HashMap;

pub(super) fn build(site: &Site<'_>, v: ValueId) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let Some((attrs, parts)) = graph.op(v).attention() else { return Err("no attention".into()) };
    let ops = graph.operands(v);
    let [q, k, value, rest @ ..] = ops.as_slice() else { return Err("attention of nothing".into()) };
    let mut domain = graph.ty(v).shape.clone();
    let size = |v: ValueId, axis: usize| {
        let d = graph.ty(v).shape.get(axis).and_then(Dim::as_const);
        d.and_then(|d| u64::try_from(d).ok()).ok_or_else(|| format!("axis {axis} of {} is not constant", graph.ty(v)))
    };
    let (heads, kv_heads, head_dim, value_dim) = (size(*q, 1)?, size(*k, 1)?, size(*q, 3)?, size(*value, 3)?);
    let kv_len = graph.ty(*k).shape.get(2).cloned().unwrap_or_default();
    let group = heads / kv_heads.max(1);
    if let Some(d) = domain.get_mut(3) {
        *d = Dim::from(value_dim);
    }
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    b.bounds.axis(4, &Dim::from(head_dim));
    b.bounds.axis(5, &kv_len);
    let axis = Dim::axis;
    let batch = parts.map_or_else(|| axis(0), |n| axis(0).div(&Dim::from(n)).simplify(&b.bounds));
    let kv_head = axis(1).div(&Dim::from(group));
    let q_expr = b.expr_at(*q, &[batch.clone(), axis(1), axis(2), axis(4)])?;
    let k_expr = b.expr_at(*k, &[batch.clone(), kv_head.clone(), axis(5), axis(4)])?;
    let v_expr = b.expr_at(*value, &[batch.clone(), kv_head, axis(5), axis(3)])?;
    let scores = [batch, axis(1), axis(2), axis(5)];
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
    let epilogue::Stored { mut stores, .. } = epilogue::run(&mut b, site, tracked, 3)?;
    if parts.is_some() {
        let [elements] = stores.as_slice() else { return Err("an epilogue behind parts of keys".into()) };
        let arg = elements.arg;
        for k in 0..2u8 {
            let at: Vec<Dim> = (0..3).map(axis).chain([Dim::from(value_dim + u64::from(k))]).collect();
            let index = coords::linear(&at, &graph.ty(v).shape, &b.bounds);
            let value = b.exprs.add(Expr::Stat(k), Scalar::F32);
            stores.push(Store { arg, index, value, when: None, per_row: true });
        }
    }
    let queries = domain.get(2).cloned().unwrap_or_default();
    let anchor = Anchor::Attention(Box::new(Attention {
        q: q_expr,
        k: k_expr,
        v: v_expr,
        group,
        head_dim,
        value_dim,
        parts: parts.map(|n| KeyParts::of(n, &queries, &kv_len, attrs.causal.as_ref(), attrs.window)),
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
