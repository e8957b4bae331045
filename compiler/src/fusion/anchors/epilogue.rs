//! What happens to an anchor's result before it is stored. Values are followed forward from the anchor: each holds, for
//! one or two elements of an invocation (lanes), the expression and the coordinates it has by now.

use super::{Site, row};
use crate::fusion::coords::{self, Coords};
use crate::fusion::region::RegionAnchor;
use crate::fusion::row_stats::RowStats;
use crate::fusion::spec_builder::{Fault, Operand, SpecBuilder};
use crate::graph::{Op, ValueId};
use frit_kernels::dim::Dim;
use frit_kernels::spec::{AxisRange, BinaryOp, ColumnStats, ExprId, Store};
use std::collections::HashMap;

/// One element of a value.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub at: Coords,
    pub expr: ExprId,
}

/// A value inside the epilogue.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub lanes: Vec<Lane>,
    /// The columns for which it exists.
    pub when: Option<AxisRange>,
    /// It has one element a row.
    pub per_row: bool,
}

/// Follows the operations of `list` from `tracked`.
pub(super) fn follow(
    b: &mut SpecBuilder<'_>,
    site: &Site<'_>,
    mut tracked: HashMap<ValueId, Tracked>,
    list: &[ValueId],
    axis: usize,
) -> Result<HashMap<ValueId, Tracked>, Fault> {
    for v in list {
        if let Some(t) = step(b, site, &tracked, *v, axis)? {
            tracked.insert(*v, t);
        }
    }
    Ok(tracked)
}

/// What a kernel writes.
pub(super) struct Stored {
    /// The region's outputs.
    pub stores: Vec<Store>,
    /// The value whose rows' statistics it forwards.
    pub forwarded: Option<(RowStats, Lane)>,
}

/// Follows the region's epilogue from `tracked` and gives the stores of its outputs. `axis` is the column axis that
/// ranges speak of.
pub(super) fn run(
    b: &mut SpecBuilder<'_>,
    site: &Site<'_>,
    tracked: HashMap<ValueId, Tracked>,
    axis: usize,
) -> Result<Stored, Fault> {
    let tracked = follow(b, site, tracked, &site.region.epilogue, axis)?;
    let mut stores = Vec::new();
    let left: Vec<ValueId> = match &site.region.anchor {
        RegionAnchor::MatMul(g) => g.left().collect(),
        _ => Vec::new(),
    };
    for v in site.region.outputs.iter().filter(|v| !left.contains(v)) {
        let op = site.graph.op(*v);
        let from = match op {
            Op::KvAppend { .. } => site.graph.operands(*v).first().copied().unwrap_or(*v),
            _ => *v,
        };
        let t = tracked.get(&from).ok_or_else(|| format!("output {} is not computed here", op.name()))?.clone();
        for lane in t.lanes {
            let (operand, index) = match op {
                Op::KvAppend { slot, part, past } => {
                    (Operand::Kv(*slot, *part), b.kv_index(*slot, *part, &lane.at, past))
                }
                _ => (Operand::Value(*v), coords::linear(&lane.at, &site.graph.ty(*v).shape, &b.bounds)),
            };
            let arg = b.written(operand);
            stores.push(Store { arg, index, value: lane.expr, when: t.when.clone(), per_row: t.per_row });
        }
    }
    for n in &site.region.gained {
        let ops = site.graph.operands(*n);
        let (Some(x), Some(gain)) = (ops.first(), ops.get(1)) else { return Err("a norm without a gain".into()) };
        let t = tracked.get(x).ok_or("rows with a gain that are not computed here")?.clone();
        for lane in t.lanes {
            let column = lane.at.last().cloned().unwrap_or_default();
            let gain = b.expr_at(*gain, &[column])?;
            let value = b.exprs.binary(BinaryOp::Mul, lane.expr, gain);
            let index = coords::linear(&lane.at, &site.graph.ty(*n).shape, &b.bounds);
            let arg = b.written(Operand::Gained(*n));
            stores.push(Store { arg, index, value, when: t.when.clone(), per_row: t.per_row });
        }
    }
    let forwarded = match site.region.forwards {
        Some(f) => match tracked.get(&f.of).map(|t| t.lanes.as_slice()) {
            Some([lane]) => Some((f, lane.clone())),
            _ => return Err("statistics of a value that is not computed here".into()),
        },
        None => None,
    };
    Ok(Stored { stores, forwarded })
}

fn step(
    b: &mut SpecBuilder<'_>,
    site: &Site<'_>,
    tracked: &HashMap<ValueId, Tracked>,
    v: ValueId,
    axis: usize,
) -> Result<Option<Tracked>, Fault> {
    let graph = site.graph;
    let ops = graph.operands(v);
    let op = graph.op(v);
    let base = ops.iter().find_map(|o| tracked.get(o).map(|t| (*o, t.clone())));
    let Some((source, base)) = base else {
        return Err(format!("{} ({}) has no operand in its region", op.name(), graph.node(v).origin));
    };
    let from = graph.ty(source).shape.clone();
    let bounds = b.bounds.clone();
    let mut out = base.clone();
    match op {
        Op::KvAppend { .. } => return Ok(None),
        Op::Reshape(to) => out.lanes.iter_mut().for_each(|l| l.at = coords::reshape(&l.at, &from, to, &bounds)),
        Op::Transpose(perm) => out.lanes.iter_mut().for_each(|l| l.at = coords::transpose_forward(&l.at, perm)),
        Op::Slice { axis: cut, start, len } => {
            let last = Dim::axis(axis);
            for l in &mut out.lanes {
                let x = l.at.get_mut(*cut).ok_or("a slice of a missing axis")?;
                let shift = (last.clone() - x.clone()).simplify(&bounds);
                if shift.as_const().is_none() {
                    return Err("a slice of an axis that is no column".into());
                }
                let lo = start.clone() + shift;
                out.when = Some(AxisRange { axis: axis as u8, hi: lo.clone() + len.clone(), lo });
                *x = (x.clone() - start.clone()).simplify(&bounds);
            }
        }
        Op::Rope { .. } => {
            let [x, y] = base.lanes.as_slice() else { return Err("rope of single elements".into()) };
            let [bb, _, s, _] = x.at.as_slice() else { return Err("rope of a value without 4 axes".into()) };
            let Op::Rope { style, rotary_dim } = op else { return Ok(None) };
            let d = x.at.get(3).cloned().unwrap_or_default();
            let j = match style {
                crate::graph::RopeStyle::Half => d.clone(),
                crate::graph::RopeStyle::Interleaved => d.div(&Dim::constant(2)),
            };
            let half = Dim::from(rotary_dim / 2);
            let j = j.smaller(&(half - Dim::one())).simplify(&bounds);
            let (cos, sin) = b.rope_angle(&ops, bb, s, &j)?;
            let e = &mut b.exprs;
            let (xc, ys) = (e.binary(BinaryOp::Mul, x.expr, cos), e.binary(BinaryOp::Mul, y.expr, sin));
            let (yc, xs) = (e.binary(BinaryOp::Mul, y.expr, cos), e.binary(BinaryOp::Mul, x.expr, sin));
            let mut turned = [e.binary(BinaryOp::Sub, xc, ys), e.binary(BinaryOp::Add, yc, xs)];
            if !from.last().is_some_and(|h| h.is(*rotary_dim as i64)) {
                let (d, r) = (e.coord(d), e.coord(Dim::from(*rotary_dim)));
                let inside = e.binary(BinaryOp::Lt, d, r);
                turned = [e.select(inside, turned[0], x.expr), e.select(inside, turned[1], y.expr)];
            }
            out.lanes.iter_mut().zip(turned).for_each(|(l, t)| l.expr = t);
        }
        Op::Norm { .. } => head_norm(b, &mut out.lanes, v)?,
        Op::Unary(_) | Op::Cast(_) | Op::Binary(_) | Op::Select => {
            for (k, lane) in out.lanes.iter_mut().enumerate() {
                let mut args = Vec::with_capacity(ops.len());
                for o in &ops {
                    let inside = tracked.get(o).and_then(|t| t.lanes.get(k));
                    args.push(match inside {
                        Some(l) if l.at != lane.at => {
                            return Err(format!("{} of different elements of a tile", op.name()));
                        }
                        Some(l) => l.expr,
                        None => b.expr_at(*o, &coords::broadcast(&lane.at, &graph.ty(*o).shape))?,
                    });
                }
                lane.expr = match (op, args.as_slice()) {
                    (Op::Unary(u), [x]) => b.exprs.unary(*u, *x),
                    (Op::Cast(to), [x]) => b.exprs.cast(*to, *x),
                    (Op::Binary(f), [x, y]) => b.exprs.binary(*f, *x, *y),
                    (Op::Select, [c, t, f]) => b.exprs.select(*c, *t, *f),
                    _ => return Err(format!("{} with {} operands", op.name(), args.len())),
                };
            }
        }
        _ => return Err(format!("{} in an epilogue", op.name())),
    }
    Ok(Some(out))
}

/// Norm `v` of the head that `lanes` belong to, all of which one workgroup has.
fn head_norm(b: &mut SpecBuilder<'_>, lanes: &mut [Lane], v: ValueId) -> Result<(), Fault> {
    let graph = b.graph;
    let Op::Norm { kind, eps, .. } = graph.op(v) else { return Err("no norm".into()) };
    let n = graph.ty(v).last();
    let head = n.as_const().and_then(|n| u64::try_from(n).ok()).ok_or("heads of a size that is not known")?;
    let of: Vec<ExprId> = lanes.iter().map(|l| l.expr).collect();
    let width = head / lanes.len().max(1) as u64;
    let columns = b.columns.get_or_insert(ColumnStats { width, stats: Vec::new() });
    if columns.width != width {
        return Err("norms of heads of two sizes".into());
    }
    // Queries and keys are often normalised alike.
    let mut place = 0;
    let (centred, scale) = loop {
        let (stats, centred, scale) = row::norm_of_lanes(&mut b.exprs, *kind, eps.0, &n, &of, b.row_stats + place);
        if place == columns.stats.len() {
            columns.stats.extend(stats);
            break (centred, scale);
        }
        if columns.stats.get(place..place + stats.len()) == Some(stats.as_slice()) {
            break (centred, scale);
        }
        place += 1;
    };
    for (lane, x) in lanes.iter_mut().zip(centred) {
        let affine = row::gain_and_bias(b, v, &lane.at.last().cloned().unwrap_or_default())?;
        let y = b.exprs.binary(BinaryOp::Mul, x, scale);
        lane.expr = row::with_gain_and_bias(&mut b.exprs, y, affine);
    }
    Ok(())
}
