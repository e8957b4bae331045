//! Matmul regions: one or several right sides of one left side, a norm in front, an epilogue behind.

use super::epilogue::{self, Lane, Tracked};
use super::row::{gain_and_bias, norm, norm_of_joined, scale_of_joined};
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::region::{MatMulForm, MatMulGroup};
use crate::fusion::row_stats::RowStats;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::{Op, RopeStyle, ValueId};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, AxisRange, BinaryOp, Expr, ExprId, KernelSpec, LeftStore, Partials, Stat};
use std::collections::HashMap;

pub(super) fn build(site: &Site<'_>, g: &MatMulGroup) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    match site.region.packed(site.graph) {
        Some(_) if g.members.iter().all(|m| matches!(site.graph.op(*m), Op::MatMul { b_transposed: true })) => {
            weighted(site, g)
        }
        _ => general(site, g),
    }
}

pub(super) fn left(
    b: &mut SpecBuilder<'_>,
    site: &Site<'_>,
    g: &MatMulGroup,
    lhs: ValueId,
    at: &[Dim],
) -> Result<(ExprId, Vec<Stat>), Fault> {
    let Some(n) = g.norm.filter(|n| *n == lhs) else { return Ok((b.expr_at(lhs, at)?, Vec::new())) };
    let ops = site.graph.operands(n);
    let Op::Norm { kind, eps, has_gain, .. } = site.graph.op(n) else {
        return Err("a prologue that is no norm".into());
    };
    let x = *ops.first().ok_or("a norm of nothing")?;
    let k = site.graph.ty(x).last();
    let mut stats = before(b, site, g, x, at)?;
    if let Some(s) = g.stats.filter(|_| g.commuted) {
        let joined = joined(b, site, s, at);
        let stats = scale_of_joined(&mut b.exprs, eps.0, &k, joined);
        let rows = match has_gain {
            true => {
                let index = coords::linear(at, &site.graph.ty(n).shape, &b.bounds);
                let arg = b.arg(Operand::Gained(n));
                b.load_arg(arg, index)
            }
            false => b.expr_at(x, at)?,
        };
        return Ok((rows, stats));
    }
    let e = b.expr_at(x, at)?;
    let parts = (e, gain_and_bias(b, n, &at.last().cloned().unwrap_or_default())?);
    if let Some(s) = g.stats {
        let joined = joined(b, site, s, at);
        let (stats, y) = norm_of_joined(&mut b.exprs, *kind, eps.0, &k, parts, joined);
        return Ok((y, stats));
    }
    let y = norm(&mut b.exprs, *kind, eps.0, &k, parts, &mut stats);
    Ok((y, stats))
}

/// The operations in front of the norm of `x`, each computed where `at` leads to behind views, and the statistics that they
/// need.
fn before(
    b: &mut SpecBuilder<'_>,
    site: &Site<'_>,
    g: &MatMulGroup,
    mut x: ValueId,
    at: &[Dim],
) -> Result<Vec<Stat>, Fault> {
    let (mut stats, mut at) = (Vec::new(), at.to_vec());
    let made = || g.before.iter().filter(|v| !site.graph.op(**v).is_view());
    let Some(sum) = made().next_back() else { return Ok(stats) };
    while x != *sum {
        (x, at) = b.behind_view(x, &at)?;
    }
    for v in made() {
        let Op::Norm { kind, eps, .. } = site.graph.op(*v) else {
            let e = b.compute(*v, &at)?;
            b.computed.insert(*v, e);
            continue;
        };
        let x = *site.graph.operands(*v).first().ok_or("a norm of nothing")?;
        let affine = gain_and_bias(b, *v, &at.last().cloned().unwrap_or_default())?;
        let parts = (b.expr_at(x, &at)?, affine);
        let y = norm(&mut b.exprs, *kind, eps.0, &site.graph.ty(x).last(), parts, &mut stats);
        b.computed.insert(*v, y);
    }
    Ok(stats)
}

/// The statistics of the row at `at`, from those of its tiles, over which the kernel's statistics run from here on.
fn joined(b: &mut SpecBuilder<'_>, site: &Site<'_>, s: RowStats, at: &[Dim]) -> Vec<Stat> {
    let (row, tile) = at.split_at(at.len().saturating_sub(1));
    let arg = b.arg(Operand::RowStats(s));
    b.stats_over = Some(Dim::from(s.tiles(site.graph)));
    s.joined(b, arg, row, tile.first().unwrap_or(&Dim::zero()))
}

/// Sum `j` of the group's products.
fn acc(b: &mut SpecBuilder<'_>, g: &MatMulGroup, j: u8) -> ExprId {
    let sum = b.exprs.add(Expr::Acc(j), Scalar::F32);
    if !g.commuted {
        return sum;
    }
    let scale = b.exprs.add(Expr::Stat(0), Scalar::F32);
    b.exprs.binary(BinaryOp::Mul, sum, scale)
}

/// Members whose right sides are weights `[N, K]`, packed one behind the other.
fn weighted(site: &Site<'_>, g: &MatMulGroup) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let first = *g.members.first().ok_or("an empty matmul group")?;
    let lhs = *graph.operands(first).first().ok_or("a matmul of nothing")?;
    let packed = site.region.packed(graph).ok_or("a right side that is no weight")?;
    let shape = graph.ty(first).shape.clone();
    let lead: Vec<Dim> = shape.iter().take(shape.len().saturating_sub(1)).cloned().collect();
    let k = graph.ty(lhs).last();
    let widths: Vec<Dim> = g.members.iter().map(|m| graph.ty(*m).last()).collect();
    let total = widths.iter().fold(Dim::zero(), |s, w| s + w.clone());
    let width = widths.first().cloned().unwrap_or_default();
    let two = Dim::constant(2);
    let columns = match (&g.form, site.region.rows) {
        (_, Some((lo, hi))) => Dim::from(hi - lo),
        (MatMulForm::Concat, _) => total.clone(),
        (MatMulForm::Paired, _) => width.clone(),
        (MatMulForm::RotaryPairs { .. }, _) => total.div(&two),
    };
    let domain = vec![product(&lead), columns.clone()];
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    b.bounds.axis(2, &k);
    let bounds = b.bounds.clone();
    let (n, kk) = (Dim::axis(1), Dim::axis(2));
    let rows_at = coords::delinear(&Dim::axis(0), &lead, &bounds);
    let lhs_at: Vec<Dim> = rows_at.iter().cloned().chain([kk.clone()]).collect();
    let (left, lhs_stats) = left(&mut b, site, g, lhs, &lhs_at)?;
    b.row_stats = lhs_stats.len();
    let pair_rows = |style: &RopeStyle, hd: u64, p: &Dim| -> [Dim; 2] {
        let (half, hd) = (Dim::from(hd / 2), Dim::from(hd));
        let (head, j) = (p.div(&half).simplify(&bounds), p.rem(&half).simplify(&bounds));
        let base = &head * &hd;
        match style {
            RopeStyle::Half => [base.clone() + j.clone(), base + j + half],
            RopeStyle::Interleaved => {
                let even = base + &two * &j;
                [even.clone(), even + Dim::one()]
            }
        }
    };
    for v in g.left().filter(|v| site.region.outputs.contains(v)) {
        let index = coords::linear(&lhs_at, &graph.ty(v).shape, &bounds);
        let value = if Some(v) == g.norm { left } else { b.expr_at(v, &lhs_at)? };
        let store = LeftStore { arg: b.written(Operand::Value(v)), index, value };
        b.left.push(store);
    }
    let weight_rows: Vec<Dim> = match &g.form {
        MatMulForm::Concat => vec![n.clone()],
        MatMulForm::Paired => vec![n.clone(), n.clone() + width.clone()],
        MatMulForm::RotaryPairs { style, head_dim } => pair_rows(style, *head_dim, &n).to_vec(),
    };
    let w = b.arg(Operand::Weight(packed));
    let rhs: Vec<ExprId> = weight_rows.iter().map(|r| b.load_arg(w, r * &k + kk.clone())).collect();
    let mut tracked = HashMap::new();
    let mut start = Dim::zero();
    for (j, (m, width)) in g.members.iter().zip(&widths).enumerate() {
        let range = |lo: Dim, len: Dim| {
            let whole = lo.is(0) && len == columns;
            (!whole).then(|| AxisRange { axis: 1, hi: lo.clone() + len, lo })
        };
        let lane = |col: Dim, expr: ExprId| Lane { at: rows_at.iter().cloned().chain([col]).collect(), expr };
        let t = match &g.form {
            MatMulForm::Paired => {
                Tracked { lanes: vec![lane(n.clone(), acc(&mut b, g, j as u8))], when: None, per_row: false }
            }
            MatMulForm::Concat => {
                let col = match site.region.rows {
                    Some((lo, _)) => n.clone() + Dim::from(lo),
                    None => n.clone() - start.clone(),
                };
                let when = if site.region.rows.is_some() { None } else { range(start.clone(), width.clone()) };
                Tracked { lanes: vec![lane(col, acc(&mut b, g, 0))], when, per_row: false }
            }
            MatMulForm::RotaryPairs { style, head_dim } => {
                let local = pair_rows(style, *head_dim, &n).map(|r| r - start.clone());
                let accs = [acc(&mut b, g, 0), acc(&mut b, g, 1)];
                let lanes = local.into_iter().zip(accs).map(|(c, a)| lane(c, a)).collect();
                Tracked { lanes, when: range(start.div(&two), width.div(&two)), per_row: false }
            }
        };
        tracked.insert(*m, t);
        start = start + width.clone();
    }
    let epilogue::Stored { stores, forwarded } = epilogue::run(&mut b, site, tracked, 1)?;
    if let Some((f, lane)) = forwarded {
        let row = lane.at.get(..lane.at.len().saturating_sub(1)).unwrap_or_default();
        let index = f.index(graph, row, &Dim::axis(1), &b.bounds);
        let arg = b.written(Operand::RowStats(f));
        b.partials = Some(Partials { value: lane.expr, kind: f.kind, columns: f.tile as u32, arg, index });
    }
    Ok(b.finish(kernel_name(site), domain, Anchor::MatMul { k, lhs: left, lhs_stats, rhs }, stores))
}

/// A single matmul of any two values.
fn general(site: &Site<'_>, g: &MatMulGroup) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let m = *g.members.first().ok_or("an empty matmul group")?;
    let Op::MatMul { b_transposed } = graph.op(m) else { return Err("no matmul".into()) };
    let ops = graph.operands(m);
    let (Some(x), Some(y)) = (ops.first().copied(), ops.get(1).copied()) else {
        return Err("a matmul of nothing".into());
    };
    let shape = graph.ty(m).shape.clone();
    let rank = shape.len();
    let batch: Vec<Dim> = shape.iter().take(rank - 2).cloned().collect();
    let k = graph.ty(x).last();
    let mut domain: Vec<Dim> = shape.iter().skip(rank - 2).cloned().collect();
    if !batch.is_empty() {
        domain.insert(0, product(&batch));
    }
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    let axes = domain.len();
    b.bounds.axis(axes, &k);
    let bounds = b.bounds.clone();
    let batch_at = if batch.is_empty() { Vec::new() } else { coords::delinear(&Dim::axis(0), &batch, &bounds) };
    let (mm, n, kk) = (Dim::axis(axes - 2), Dim::axis(axes - 1), Dim::axis(axes));
    let operand = |v: ValueId, tail: [Dim; 2]| -> Vec<Dim> {
        let s = &graph.ty(v).shape;
        let lead = coords::broadcast(&batch_at, s.get(..s.len() - 2).unwrap_or(&[]));
        lead.into_iter().chain(tail).collect()
    };
    let lhs_at = operand(x, [mm.clone(), kk.clone()]);
    let (left, lhs_stats) = left(&mut b, site, g, x, &lhs_at)?;
    let right_at = operand(y, if *b_transposed { [n.clone(), kk] } else { [kk, n.clone()] });
    let right = b.expr_at(y, &right_at)?;
    let at: Vec<Dim> = batch_at.into_iter().chain([mm, n]).collect();
    let lane = Lane { at, expr: acc(&mut b, g, 0) };
    let tracked = HashMap::from([(m, Tracked { lanes: vec![lane], when: None, per_row: false })]);
    let epilogue::Stored { stores, .. } = epilogue::run(&mut b, site, tracked, axes - 1)?;
    Ok(b.finish(kernel_name(site), domain, Anchor::MatMul { k, lhs: left, lhs_stats, rhs: vec![right] }, stores))
}
