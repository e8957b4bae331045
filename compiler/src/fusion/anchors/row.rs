//! Row regions: reductions, softmax and norms, with what follows them on the same rows.

use super::epilogue::{self, Lane, Tracked};
use super::{Site, kernel_name};
use crate::fusion::coords;
use crate::fusion::row_stats::RowStats;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::{NormKind, Op, ValueId};
use frit_kernels::dim::{Dim, Sym, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{
    Anchor, BinaryOp, Expr, ExprId, Exprs, KernelSpec, PartialKind, ReduceOp, Stat, Store, UnaryOp,
};
use std::collections::HashMap;

/// The number of summed elements as a float.
fn count(e: &mut Exprs, n: &Dim) -> ExprId {
    match n.as_const() {
        Some(n) => e.f32(n as f32),
        None => {
            let c = e.coord(n.clone());
            e.cast(Scalar::F32, c)
        }
    }
}

/// `1 / √(sum/n + eps)`.
fn root_of_mean(e: &mut Exprs, sum: ExprId, n: &Dim, eps: f32) -> ExprId {
    let len = count(e, n);
    let mean = e.binary(BinaryOp::Div, sum, len);
    let eps = e.f32(eps);
    let shifted = e.binary(BinaryOp::Add, mean, eps);
    e.unary(UnaryOp::Rsqrt, shifted)
}

/// The statistic that scales the sums behind a commuted RMS norm over rows of `n` elements, from the sums of squares that
/// `joined` adds up.
pub(super) fn scale_of_joined(e: &mut Exprs, eps: f32, n: &Dim, joined: Vec<Stat>) -> Vec<Stat> {
    let raw = e.add(Expr::Stat(0), Scalar::F32);
    let rstd = root_of_mean(e, raw, n, eps);
    joined.into_iter().map(|s| Stat { finish: Some(rstd), ..s }).collect()
}

/// Gain and bias of norm `v` at the column `j`, where it has them.
pub(super) fn gain_and_bias(b: &mut SpecBuilder<'_>, v: ValueId, j: &Dim) -> Result<[Option<ExprId>; 2], Fault> {
    let graph = b.graph;
    let Op::Norm { has_gain, has_bias, .. } = graph.op(v) else { return Err("no norm".into()) };
    let ops = graph.operands(v);
    let gain = ops.get(1).filter(|_| *has_gain).map(|g| b.expr_at(*g, std::slice::from_ref(j))).transpose()?;
    let bias = ops.last().filter(|_| *has_bias).map(|c| b.expr_at(*c, std::slice::from_ref(j))).transpose()?;
    Ok([gain, bias])
}

/// `x` times a gain, plus a bias.
pub(super) fn with_gain_and_bias(e: &mut Exprs, x: ExprId, [gain, bias]: [Option<ExprId>; 2]) -> ExprId {
    let x = gain.map_or(x, |g| e.binary(BinaryOp::Mul, x, g));
    bias.map_or(x, |c| e.binary(BinaryOp::Add, x, c))
}

/// Adds the statistics of a norm over rows of `n` elements to `stats` and gives the normalised element. `x` is the element,
/// gain and bias are applied where given.
pub(super) fn norm(
    e: &mut Exprs,
    kind: NormKind,
    eps: f32,
    n: &Dim,
    (x, affine): (ExprId, [Option<ExprId>; 2]),
    stats: &mut Vec<Stat>,
) -> ExprId {
    let (more, centred, scale) = norm_of_lanes(e, kind, eps, n, &[x], stats.len());
    stats.extend(more);
    let y = e.binary(BinaryOp::Mul, centred.first().copied().unwrap_or(x), scale);
    with_gain_and_bias(e, y, affine)
}

/// The statistics, from number `first` on, of a norm over `n` elements of which a column has as many as there are `lanes`;
/// the lanes without their mean, and the factor on them.
pub(super) fn norm_of_lanes(
    e: &mut Exprs,
    kind: NormKind,
    eps: f32,
    n: &Dim,
    lanes: &[ExprId],
    first: usize,
) -> (Vec<Stat>, Vec<ExprId>, ExprId) {
    let stat = |e: &mut Exprs, i: usize| e.add(Expr::Stat((first + i) as u8), Scalar::F32);
    let sum = |e: &mut Exprs, values: Vec<ExprId>| {
        let all = values.into_iter().reduce(|a, b| e.binary(BinaryOp::Add, a, b));
        all.unwrap_or_else(|| e.f32(0.0))
    };
    let (mut stats, mut centred) = (Vec::new(), lanes.to_vec());
    if kind == NormKind::Layer {
        let raw = stat(e, 0);
        let len = count(e, n);
        let mean = e.binary(BinaryOp::Div, raw, len);
        let value = sum(e, lanes.to_vec());
        stats.push(Stat { op: ReduceOp::Sum, value, finish: Some(mean) });
        centred = lanes.iter().map(|x| e.binary(BinaryOp::Sub, *x, raw)).collect();
    }
    let squares: Vec<ExprId> = centred.iter().map(|x| e.binary(BinaryOp::Mul, *x, *x)).collect();
    let raw = stat(e, stats.len());
    let (value, root) = (sum(e, squares), root_of_mean(e, raw, n, eps));
    stats.push(Stat { op: ReduceOp::Sum, value, finish: Some(root) });
    (stats, centred, raw)
}

/// As [`norm`], with the sums that `joined` holds in place of those over the elements of the row.
pub(super) fn norm_of_joined(
    e: &mut Exprs,
    kind: NormKind,
    eps: f32,
    n: &Dim,
    parts: (ExprId, [Option<ExprId>; 2]),
    joined: Vec<Stat>,
) -> (Vec<Stat>, ExprId) {
    let mut stats = Vec::new();
    let y = norm(e, kind, eps, n, parts, &mut stats);
    stats.iter_mut().zip(joined).for_each(|(s, from)| s.value = from.value);
    (stats, y)
}

/// Statistics of the rows of `x`, from number `first` on, that a row kernel finds for the kernel behind it, and what it
/// writes of each row.
pub(super) fn forwarded(
    e: &mut Exprs,
    kind: PartialKind,
    n: &Dim,
    x: ExprId,
    first: usize,
) -> Result<(Vec<Stat>, Vec<ExprId>), Fault> {
    let stat = |e: &mut Exprs, i: usize| e.add(Expr::Stat((first + i) as u8), Scalar::F32);
    let squares = |e: &mut Exprs, v: ExprId| {
        let value = e.binary(BinaryOp::Mul, v, v);
        Stat { op: ReduceOp::Sum, value, finish: None }
    };
    let raw = stat(e, 0);
    Ok(match kind {
        PartialKind::Squares => (vec![squares(e, x)], vec![raw]),
        PartialKind::Moments => {
            let len = count(e, n);
            let mean = e.binary(BinaryOp::Div, raw, len);
            let apart = e.binary(BinaryOp::Sub, x, raw);
            let stats = vec![Stat { op: ReduceOp::Sum, value: x, finish: Some(mean) }, squares(e, apart)];
            (stats, vec![raw, stat(e, 1)])
        }
        PartialKind::Largest => return Err("the largest of rows that a row kernel makes".into()),
    })
}

/// Adds what a row kernel over `n` elements a row writes of the rows of a forwarded value.
pub(super) fn forward(
    b: &mut SpecBuilder<'_>,
    (row_stats, lane): (RowStats, Lane),
    n: &Dim,
    stats: &mut Vec<Stat>,
    stores: &mut Vec<Store>,
) -> Result<(), Fault> {
    let (more, values) = forwarded(&mut b.exprs, row_stats.kind, n, lane.expr, stats.len())?;
    stats.extend(more);
    let row = lane.at.get(..lane.at.len().saturating_sub(1)).unwrap_or_default();
    let index = row_stats.index(b.graph, row, &Dim::zero(), &b.bounds);
    let arg = b.written(Operand::RowStats(row_stats));
    for (i, value) in values.into_iter().enumerate() {
        stores.push(Store { arg, index: index.clone() + Dim::from(i as u64), value, when: None, per_row: true });
    }
    Ok(())
}

/// The place of the largest element of each row, from those of its tiles.
fn place_of_largest(
    site: &Site<'_>,
    v: ValueId,
    tiles: RowStats,
    rows: &[Dim],
) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let Op::Reduce { keep, .. } = site.graph.op(v) else { return Err("tiles of no reduction".into()) };
    let domain = vec![product(rows), Dim::from(tiles.tiles(site.graph))];
    let mut b = SpecBuilder::new(site.graph, site.tables, site.stored, &domain);
    let bounds = b.bounds.clone();
    let row = coords::delinear(&Dim::axis(0), tiles.lead(site.graph), &bounds);
    let arg = b.arg(Operand::RowStats(tiles));
    let value = b.load_arg(arg, tiles.index(site.graph, &row, &Dim::axis(1), &bounds));
    let best = b.exprs.add(Expr::Stat(0), Scalar::I32);
    let place = tiles.index(site.graph, &row, &Dim::sym(Sym::Value(best.0)), &bounds) + Dim::one();
    let place = b.load_arg(arg, place);
    let place = b.exprs.cast(Scalar::I32, place);
    let at = coords::delinear(&Dim::axis(0), rows, &bounds).into_iter().chain(keep.then(Dim::zero)).collect();
    let lane = Lane { at, expr: place };
    let tracked = HashMap::from([(v, Tracked { lanes: vec![lane], when: None, per_row: true })]);
    let epilogue::Stored { stores, .. } = epilogue::run(&mut b, site, tracked, 1)?;
    let stats = vec![Stat { op: ReduceOp::ArgMax, value, finish: None }];
    Ok(b.finish(kernel_name(site), domain, Anchor::Row { stats }, stores))
}

pub(super) fn build(site: &Site<'_>, v: ValueId) -> Result<(KernelSpec, Vec<Operand>), Fault> {
    let graph = site.graph;
    let op = graph.op(v);
    let ops = graph.operands(v);
    let x = *ops.first().ok_or("a reduction of nothing")?;
    let shape = graph.ty(x).shape.clone();
    let axes: Vec<usize> = match op {
        Op::Reduce { axes, .. } => axes.clone(),
        _ => vec![shape.len().saturating_sub(1)],
    };
    let pick = |inside: bool| -> Vec<Dim> {
        shape.iter().enumerate().filter(|(i, _)| axes.contains(i) == inside).map(|(_, d)| d.clone()).collect()
    };
    let (kept, reduced) = (pick(false), pick(true));
    if let Some(tiles) = site.region.tiles {
        return place_of_largest(site, v, tiles, &kept);
    }
    let domain = vec![product(&kept), product(&reduced)];
    let mut b = SpecBuilder::new(graph, site.tables, site.stored, &domain);
    let bounds = b.bounds.clone();
    let mut kept_at = coords::delinear(&Dim::axis(0), &kept, &bounds).into_iter();
    let mut reduced_at = coords::delinear(&Dim::axis(1), &reduced, &bounds).into_iter();
    let at: Vec<Dim> = (0..shape.len())
        .map(|i| if axes.contains(&i) { reduced_at.next() } else { kept_at.next() }.unwrap_or_default())
        .collect();
    let e = b.expr_at(x, &at)?;
    let (mut stats, lane, per_row) = match op {
        Op::Reduce { op: r, keep, .. } => {
            let scalar = if *r == ReduceOp::ArgMax { Scalar::I32 } else { Scalar::F32 };
            let result = b.exprs.add(Expr::Stat(0), scalar);
            let own = at.iter().enumerate().filter_map(|(i, c)| match axes.contains(&i) {
                true => keep.then(Dim::zero),
                false => Some(c.clone()),
            });
            (vec![Stat { op: *r, value: e, finish: None }], Lane { at: own.collect(), expr: result }, true)
        }
        Op::Softmax => {
            let x = &mut b.exprs;
            let largest = x.add(Expr::Stat(0), Scalar::F32);
            let shifted = x.binary(BinaryOp::Sub, e, largest);
            let power = x.unary(UnaryOp::Exp, shifted);
            let sum = x.add(Expr::Stat(1), Scalar::F32);
            let share = x.binary(BinaryOp::Div, power, sum);
            let stats = vec![
                Stat { op: ReduceOp::Max, value: e, finish: None },
                Stat { op: ReduceOp::Sum, value: power, finish: None },
            ];
            (stats, Lane { at, expr: share }, false)
        }
        Op::Norm { kind, eps, .. } => {
            let affine = gain_and_bias(&mut b, v, &Dim::axis(1))?;
            let n = domain.get(1).cloned().unwrap_or_else(Dim::one);
            let mut stats = Vec::new();
            let y = norm(&mut b.exprs, *kind, eps.0, &n, (e, affine), &mut stats);
            (stats, Lane { at, expr: y }, false)
        }
        _ => return Err(format!("{} as a row anchor", op.name())),
    };
    let tracked = HashMap::from([(v, Tracked { lanes: vec![lane], when: None, per_row })]);
    let epilogue::Stored { mut stores, forwarded } = epilogue::run(&mut b, site, tracked, 1)?;
    if let Some(f) = forwarded {
        let n = domain.get(1).cloned().unwrap_or_else(Dim::one);
        forward(&mut b, f, &n, &mut stats, &mut stores)?;
    }
    Ok(b.finish(kernel_name(site), domain, Anchor::Row { stats }, stores))
}
