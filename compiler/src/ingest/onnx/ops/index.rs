//! Elements by position.

use super::shape::{ints, picked};
use crate::graph::ValueId;
use crate::ingest::onnx::context::Cx;
use crate::ingest::onnx::coordinate::{self, Coordinate};
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::value::{Data, Known, Val, strides, walk};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::BinaryOp;

/// Indices counted from the end when negative, as node of the graph.
pub fn counted(cx: &mut Cx<'_, '_, '_>, ids: &Val, extent: &Dim) -> Res<ValueId> {
    if !ids.elem.is_int() {
        return malformed(format!("has indices of type {}", ids.elem));
    }
    if let Some(known) = ids.known_ints() {
        let at = known.iter().map(|i| if cx.bounds.nonneg(i) { i.clone() } else { i.clone() + extent.clone() });
        let at = Known::Ints(at.map(|d| cx.simplify(&d)).collect());
        return cx.node(&Val::of(ids.elem, ids.shape.clone(), at));
    }
    let id = cx.node(ids)?;
    if coordinate::nonneg(cx, id) {
        return Ok(id);
    }
    let whole = cx.size_value(extent)?;
    let negative = cx.bin_c(BinaryOp::Lt, id, 0.0)?;
    let up = cx.bin(BinaryOp::Add, id, whole)?;
    cx.select(negative, up, id)
}

/// Gather along an axis.
pub fn gather(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, ids) = (n.input(0)?.clone(), n.input(1)?.clone());
    let axis = n.axis("axis", 0, x.rank())?;
    let extent = x.shape[axis].clone();
    let to: Vec<Dim> = x.shape[..axis].iter().chain(&ids.shape).chain(&x.shape[axis + 1..]).cloned().collect();
    if let (Some(own), Some(known)) = (x.fixed_shape(), ids.known_ints())
        && let Some(known) = known.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>()
    {
        let e = own[axis] as i64;
        if let Some(i) = known.iter().find(|i| !(-e..e).contains(*i)) {
            return malformed(format!("has the index {i} along an axis of {e}"));
        }
        let known: Vec<usize> = known.iter().map(|i| (if *i < 0 { i + e } else { *i }) as usize).collect();
        let fixed: Option<Vec<usize>> = to.iter().map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect();
        if let (Some(shape), true) = (fixed, x.known.is_some()) {
            let steps = strides(&own);
            let signed: Vec<isize> = steps.iter().map(|s| *s as isize).collect();
            let starts = walk(&own[..axis], 0, &signed[..axis]);
            let rest = walk(&own[axis + 1..], 0, &signed[axis + 1..]);
            let mut at: Vec<usize> = Vec::new();
            for s in &starts {
                for k in &known {
                    at.extend(rest.iter().map(|r| s + k * steps[axis] + r));
                }
            }
            if let Some(v) = picked(&x, &shape, &at) {
                return Ok(vec![v]);
            }
        }
    }
    let id = cx.node(&x)?;
    // Positions that follow one another are a slice.
    if let Some(known) = ids.known_ints().filter(|k| !k.is_empty()) {
        let at: Vec<Dim> = known
            .iter()
            .map(|i| cx.simplify(&if cx.bounds.nonneg(i) { i.clone() } else { i.clone() + extent.clone() }))
            .collect();
        let first = at[0].clone();
        let follow = at.iter().enumerate().all(|(k, d)| (d.clone() - first.clone()).is(k as i64));
        let end = first.clone() + Dim::from(at.len());
        if follow && cx.bounds.nonneg(&first) && cx.bounds.le(&end, &extent) {
            let cut = cx.slice(id, axis, &first, &Dim::from(at.len()))?;
            let out = cx.reshape(cut, &to)?;
            return Ok(vec![cx.val(out, x.elem)]);
        }
    }
    let at = counted(cx, &ids, &extent)?;
    if let (Some(Coordinate { axis: Some(0), offset }), [len]) =
        (coordinate::of(cx.b.built(), at), ids.shape.as_slice())
        && cx.bounds.nonneg(&offset)
        && cx.bounds.le(&(offset.clone() + len.clone()), &extent)
    {
        let out = cx.slice(id, axis, &offset, len)?;
        return Ok(vec![cx.val(out, x.elem)]);
    }
    let front = cx.move_axis(id, axis, 0)?;
    let taken = cx.gather(front, at)?;
    // [ids…, outer…, inner…] to [outer…, ids…, inner…].
    let (q, r) = (ids.rank(), to.len());
    let perm: Vec<usize> = (q..q + axis).chain(0..q).chain(q + axis..r).collect();
    let out = cx.transpose(taken, &perm)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// The sum of positions times strides over the axes of `shape`, as I32.
pub fn linear(cx: &mut Cx<'_, '_, '_>, at: &[ValueId], shape: &[Dim]) -> Res<ValueId> {
    let mut out: Option<ValueId> = None;
    for (i, v) in at.iter().enumerate() {
        let stride = cx.simplify(&product(shape.get(i + 1..).unwrap_or_default()));
        let stride = cx.size_value(&stride)?;
        let part = cx.bin(BinaryOp::Mul, *v, stride)?;
        out = Some(match out {
            Some(sum) => cx.bin(BinaryOp::Add, sum, part)?,
            None => part,
        });
    }
    match out {
        Some(v) => Ok(v),
        None => cx.i32(0),
    }
}

/// One element for each index, the other coordinates staying.
pub fn gather_elements(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, ids) = (n.input(0)?.clone(), n.input(1)?.clone());
    let axis = n.axis("axis", 0, x.rank())?;
    if ids.rank() != x.rank() {
        return malformed(format!("has indices of {} axes for {}", ids.rank(), x.rank()));
    }
    let own = counted(cx, &ids, &x.shape[axis].clone())?;
    let mut at = Vec::with_capacity(x.rank());
    for k in 0..x.rank() {
        at.push(if k == axis { own } else { cx.iota(&ids.shape, k, Dim::zero()) });
    }
    let index = linear(cx, &at, &x.shape)?;
    let id = cx.node(&x)?;
    let flat = cx.reshape(id, &[cx.simplify(&product(&x.shape))])?;
    let out = cx.gather(flat, index)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// The columns of indices `[…, q]`, each without its last axis.
pub fn columns(cx: &mut Cx<'_, '_, '_>, ids: &Val) -> Res<Vec<Val>> {
    let Some((last, lead)) = ids.shape.split_last() else { return malformed("has a scalar for indices") };
    let Some(q) = last.as_const().and_then(|q| usize::try_from(q).ok()) else {
        return unsupported("has indices of an unknown number of coordinates");
    };
    let mut out = Vec::with_capacity(q);
    if let Data::Node(id) = ids.data
        && let (crate::graph::Op::Concat { axis }, parts) = (cx.b.built().op(id).clone(), cx.b.built().operands(id))
        && axis + 1 == ids.rank()
        && parts.len() == q
        && parts.iter().all(|p| cx.shape(*p).last().is_some_and(|d| d.is(1)))
    {
        for p in parts {
            let part = cx.reshape(p, lead)?;
            out.push(cx.val(part, ids.elem));
        }
        return Ok(out);
    }
    for k in 0..q {
        if let Some(own) = ids.fixed_shape()
            && ids.known.is_some()
        {
            let lead = &own[..own.len() - 1];
            let steps: Vec<isize> = strides(&own)[..own.len() - 1].iter().map(|s| *s as isize).collect();
            if let Some(v) = picked(ids, lead, &walk(lead, k as isize, &steps)) {
                out.push(v);
                continue;
            }
        }
        let id = cx.node(ids)?;
        let one = cx.slice(id, ids.rank() - 1, &Dim::from(k), &Dim::one())?;
        let part = cx.reshape(one, lead)?;
        out.push(cx.val(part, ids.elem));
    }
    Ok(out)
}

/// Slices of the trailing axes, each by a tuple of positions.
pub fn gather_nd(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (x, ids) = (n.input(0)?.clone(), n.input(1)?.clone());
    let batch = usize::try_from(n.int("batch_dims", 0)?).unwrap_or(usize::MAX);
    if batch >= ids.rank() || batch >= x.rank() {
        return malformed(format!("has {batch} batch axes"));
    }
    for (a, b) in x.shape.iter().zip(&ids.shape).take(batch) {
        cx.equate(a, b)?;
    }
    let parts = columns(cx, &ids)?;
    let used = batch + parts.len();
    if used > x.rank() {
        return malformed(format!("has {} coordinates for {} axes", used, x.rank()));
    }
    let lead: Vec<Dim> = ids.shape[..ids.rank() - 1].to_vec();
    let mut at = Vec::with_capacity(used);
    for k in 0..batch {
        at.push(cx.iota(&lead, k, Dim::zero()));
    }
    for (p, extent) in parts.iter().zip(&x.shape[batch..]) {
        at.push(counted(cx, p, extent)?);
    }
    if let Some(v) = as_view(cx, &x, &at, &lead)? {
        return Ok(vec![v]);
    }
    let index = linear(cx, &at, &x.shape[..used])?;
    let id = cx.node(&x)?;
    let mut table = vec![cx.simplify(&product(&x.shape[..used]))];
    table.extend(x.shape[used..].iter().cloned());
    let flat = cx.reshape(id, &table)?;
    let out = cx.gather(flat, index)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// The gather as slices and a transpose, where each position is the coordinate along an axis of its own. Two names for
/// one extent are taken to be equal.
fn as_view(cx: &mut Cx<'_, '_, '_>, x: &Val, at: &[ValueId], lead: &[Dim]) -> Res<Option<Val>> {
    let all: Option<Vec<Coordinate>> = at.iter().map(|v| coordinate::of(cx.b.built(), *v)).collect();
    let Some(all) = all else { return Ok(None) };
    let axes: Vec<usize> = all.iter().filter_map(|c| c.axis).collect();
    let distinct = axes.iter().enumerate().all(|(i, a)| !axes[..i].contains(a));
    if axes.len() != at.len() || !distinct {
        return Ok(None);
    }
    let mut id = cx.node(x)?;
    for (k, (c, axis)) in all.iter().zip(&axes).enumerate() {
        let (extent, len) = (x.shape[k].clone(), lead[*axis].clone());
        if c.offset.is(0) && len.as_const().is_none() && extent.as_const().is_none() {
            cx.equate(&extent, &len)?;
        }
        if !cx.bounds.nonneg(&c.offset) || !cx.bounds.le(&(c.offset.clone() + len.clone()), &extent) {
            return Ok(None);
        }
        id = cx.slice(id, k, &c.offset, &len)?;
    }
    // Axis k of the slices goes to `axes[k]`; axes of `lead` that no position names repeat.
    let rest = x.rank() - axes.len();
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_by_key(|k| axes[*k]);
    let perm: Vec<usize> = order.iter().copied().chain(axes.len()..x.rank()).collect();
    let moved = cx.transpose(id, &perm)?;
    let tail = x.shape[x.rank() - rest..].to_vec();
    let spread: Vec<Dim> = (0..lead.len())
        .map(|a| if axes.contains(&a) { lead[a].clone() } else { Dim::one() })
        .chain(tail.iter().cloned())
        .collect();
    let wide = cx.reshape(moved, &spread)?;
    let to: Vec<Dim> = lead.iter().cloned().chain(tail).collect();
    let out = cx.broadcast(wide, &to)?;
    Ok(Some(cx.val(out, x.elem)))
}

/// The triangle of the last two axes, zero elsewhere.
pub fn trilu(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let k = match n.optional(1) {
        Some(_) => ints(n, 1, "its diagonal")?.first().cloned().unwrap_or_default(),
        None => Dim::zero(),
    };
    let [.., rows, columns] = x.shape.as_slice() else { return malformed("has fewer than two axes") };
    let plane = [rows.clone(), columns.clone()];
    let (row, column) = (cx.iota(&plane, 0, k), cx.iota(&plane, 1, Dim::zero()));
    let kept =
        if n.flag("upper", true)? { cx.bin(BinaryOp::Le, row, column)? } else { cx.bin(BinaryOp::Le, column, row)? };
    let id = cx.node(&x)?;
    let out = if x.elem == Elem::Bool {
        cx.bin(BinaryOp::And, id, kept)?
    } else {
        let zero = cx.number(cx.scalar(id), 0.0)?;
        cx.select(kept, id, zero)?
    };
    Ok(vec![cx.val(out, x.elem)])
}

/// Ones on a diagonal.
pub fn eye_like(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let elem = n.elem("dtype", x.elem)?;
    if x.rank() != 2 {
        return malformed(format!("takes two axes, not {}", x.rank()));
    }
    let (row, column) = (cx.iota(&x.shape, 0, Dim::constant(n.int("k", 0)?)), cx.iota(&x.shape, 1, Dim::zero()));
    let on = cx.bin(BinaryOp::Eq, row, column)?;
    let out = cx.cast(on, elem.scalar())?;
    Ok(vec![cx.val(out, elem)])
}

/// `on` at the index along a new axis, `off` elsewhere. Indices outside give `off` alone.
pub fn one_hot(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (ids, values) = (n.input(0)?.clone(), n.input(2)?.clone());
    let depth = match n.input(1)?.known.as_deref() {
        Some(Known::Ints(d)) => d.first().cloned().unwrap_or_default(),
        Some(Known::Floats(d)) => Dim::constant(d.first().copied().unwrap_or(0.0) as i64),
        None => return unsupported("its depth depends on data"),
    };
    let axis = node::axis(n.int("axis", -1)?, ids.rank() + 1)?;
    let id = cx.node(&ids)?;
    let id = cx.cast(id, Scalar::I32)?;
    let at = counted(cx, &Val { elem: Elem::Int64, ..cx.val(id, Elem::Int64) }, &depth)?;
    let mut raised = ids.shape.clone();
    raised.insert(axis, Dim::one());
    let at = cx.reshape(at, &raised)?;
    let mut to = raised;
    to[axis] = depth;
    let count = cx.iota(&to, axis, Dim::zero());
    let hit = cx.bin(BinaryOp::Eq, at, count)?;
    let values_id = cx.node(&values)?;
    let mut pick = |k: usize| -> Res<ValueId> {
        let one = cx.slice(values_id, 0, &Dim::from(k), &Dim::one())?;
        cx.reshape(one, &[])
    };
    let (off, on) = (pick(0)?, pick(1)?);
    let out = cx.select(hit, on, off)?;
    Ok(vec![cx.val(out, values.elem)])
}
