//! Extents: asking for them, changing them, and making tensors of given extents.

use crate::ingest::onnx::context::{Cx, KNOWN_FLOATS, KNOWN_INTS};
use crate::ingest::onnx::elem::Elem;
use crate::ingest::onnx::error::{Res, malformed, unsupported};
use crate::ingest::onnx::fold::{self, Fold};
use crate::ingest::onnx::node::{self, Node};
use crate::ingest::onnx::value::{Data, Known, Val, broadcast_walk, fixed, strides, walk};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::BinaryOp;
use std::rc::Rc;

/// Known integers of operand `i`.
pub fn ints(n: &Node<'_>, i: usize, what: &str) -> Res<Vec<Dim>> {
    let v = n.input(i)?;
    match v.known_ints() {
        Some(k) => Ok(k.to_vec()),
        None if v.elem.is_int() => unsupported(format!("{what} depends on data")),
        None => malformed(format!("{what} is of type {}", v.elem)),
    }
}
/// Integers of an attribute, or of operand `i` where later versions have them; `None` when neither is given.
pub fn numbers(n: &Node<'_>, attribute: &str, i: usize) -> Res<Option<Vec<i64>>> {
    if let Some(a) = n.ints(attribute)? {
        return Ok(Some(a.to_vec()));
    }
    if n.optional(i).is_none() {
        return Ok(None);
    }
    let all = ints(n, i, attribute)?;
    match all.iter().map(Dim::as_const).collect::<Option<Vec<_>>>() {
        Some(v) => Ok(Some(v)),
        None => unsupported(format!("{attribute} depends on sizes that are not fixed")),
    }
}

/// `x` with other extents for the same elements in the same order.
pub fn view(cx: &mut Cx<'_, '_, '_>, x: &Val, shape: Vec<Dim>) -> Res<Val> {
    if let Data::Node(id) = x.data {
        let id = cx.reshape(id, &shape)?;
        return Ok(cx.val(id, x.elem));
    }
    if product(&x.shape) != product(&shape) {
        return malformed(format!("{} elements become {}", product(&x.shape), product(&shape)));
    }
    Ok(Val { shape, ..x.clone() })
}

/// Makes two shapes hold equally many elements.
fn same_elems(cx: &Cx<'_, '_, '_>, from: &[Dim], to: &[Dim]) -> Res<()> {
    let (mut a, mut b) = (from.to_vec(), to.to_vec());
    a.retain(|d| match b.iter().position(|x| x == d) {
        Some(i) => {
            b.remove(i);
            false
        }
        None => true,
    });
    cx.equate(&product(&a), &product(&b)).map(|_| ())
}

/// The extents that a `Reshape` asks for: 0 copies (unless `zero` is a size), −1 is what is left.
fn target(cx: &Cx<'_, '_, '_>, from: &[Dim], wanted: &[Dim], zero: bool) -> Res<Vec<Dim>> {
    let mut out = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, w) in wanted.iter().enumerate() {
        match w.as_const() {
            Some(0) if !zero => match from.get(i) {
                Some(d) => out.push(d.clone()),
                None => return malformed(format!("copies extent {i} of {}", from.len())),
            },
            Some(-1) if open.is_some() => return malformed("leaves two extents open"),
            Some(-1) => {
                open = Some(i);
                out.push(Dim::one());
            }
            Some(c) if c < 0 => return malformed(format!("asks for the extent {c}")),
            _ => out.push(cx.simplify(w)),
        }
    }
    let Some(i) = open else {
        same_elems(cx, from, &out)?;
        return Ok(out);
    };
    let (total, rest) = (product(from), product(&out));
    let mut parts: Vec<Dim> = from.to_vec();
    let mut divisors: Vec<Dim> =
        out.iter().enumerate().filter(|(k, d)| *k != i && !d.is(1)).map(|(_, d)| d.clone()).collect();
    parts.retain(|d| match divisors.iter().position(|x| x == d) {
        Some(k) => {
            divisors.remove(k);
            false
        }
        None => true,
    });
    let (left, by) = (product(&parts), product(&divisors));
    let (q, r) = left.split(&by);
    if by.is(0) || total.is(0) && rest.is(0) {
        return malformed("leaves an extent open beside an extent of 0");
    }
    if r.is(0) {
        out[i] = q;
        return Ok(out);
    }
    // Two names for one size keep the division from going out even: match extents at the same place.
    for (d, w) in from.iter().zip(&out) {
        if d != w && d.as_const().is_none() && w.as_const().is_none() {
            cx.equate(d, w)?;
        }
    }
    let whole = cx.simplify(&left.div(&by));
    if (&whole * &by).simplify(&cx.bounds) == left {
        out[i] = whole;
        return Ok(out);
    }
    unsupported(format!("splits {total} elements by {rest}, which does not always go out even"))
}

/// Reshape.
pub fn reshape(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let wanted = match n.ints("shape")? {
        Some(s) => s.iter().map(|v| Dim::constant(*v)).collect(),
        None => ints(n, 1, "its shape")?,
    };
    let to = target(cx, &x.shape, &wanted, n.flag("allowzero", false)?)?;
    Ok(vec![view(cx, &x, to)?])
}

/// Flatten to two axes.
pub fn flatten(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let at = match n.int("axis", 1)? {
        a if a == x.rank() as i64 => x.rank(),
        a => node::axis(a, x.rank())?,
    };
    let (rows, columns) = x.shape.split_at(at);
    let to = vec![product(rows), product(columns)];
    Ok(vec![view(cx, &x, to)?])
}

/// Removes axes of extent 1.
pub fn squeeze(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let axes = match numbers(n, "axes", 1)? {
        Some(a) => node::axes(&a, x.rank())?,
        None => (0..x.rank()).filter(|a| x.shape[*a].is(1)).collect(),
    };
    for a in &axes {
        cx.equate(&x.shape[*a], &Dim::one())?;
    }
    let to = x.shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect();
    Ok(vec![view(cx, &x, to)?])
}

/// Adds axes of extent 1.
pub fn unsqueeze(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let Some(list) = numbers(n, "axes", 1)? else { return malformed("has no axes") };
    let axes = node::axes(&list, x.rank() + list.len())?;
    let mut old = x.shape.iter().cloned();
    let to = (0..x.rank() + list.len())
        .map(|i| if axes.contains(&i) { Dim::one() } else { old.next().unwrap_or_else(Dim::one) })
        .collect();
    Ok(vec![view(cx, &x, to)?])
}

/// Transpose.
pub fn transpose(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let perm: Vec<usize> = match n.ints("perm")? {
        Some(p) => {
            node::axes(p, x.rank())?;
            p.iter().map(|a| node::axis(*a, x.rank())).collect::<Res<_>>()?
        }
        None => (0..x.rank()).rev().collect(),
    };
    if perm.len() != x.rank() {
        return malformed(format!("permutes {} of {} axes", perm.len(), x.rank()));
    }
    if let (Some(known), Some(own)) = (&x.known, x.fixed_shape()) {
        let steps = strides(&own);
        let to: Vec<usize> = perm.iter().map(|p| own[*p]).collect();
        let at = walk(&to, 0, &perm.iter().map(|p| steps[*p] as isize).collect::<Vec<_>>());
        if let Some(k) = known.pick(&at) {
            return Ok(vec![Val::of(x.elem, to.into_iter().map(Dim::from).collect(), k)]);
        }
    }
    let id = cx.node(x)?;
    let out = cx.transpose(id, &perm)?;
    Ok(vec![cx.val(out, x.elem)])
}

/// Concat; operands without elements that fit nowhere else are passed over.
pub fn concat(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let parts: Vec<Val> = n.inputs.iter().flatten().cloned().collect();
    let Some(first) = parts.first() else { return malformed("has no operands") };
    let axis = n.axis("axis", 1, first.rank())?;
    Ok(vec![join(cx, &parts, axis)?])
}

/// Values one behind the other along an axis.
pub fn join(cx: &mut Cx<'_, '_, '_>, parts: &[Val], axis: usize) -> Res<Val> {
    let Some(first) = parts.first() else { return malformed("joins nothing") };
    for p in parts {
        if p.rank() != first.rank() || p.elem.scalar() != first.elem.scalar() {
            return malformed(format!("joins operands of {} and {} axes", first.rank(), p.rank()));
        }
        for (k, (a, b)) in first.shape.iter().zip(&p.shape).enumerate() {
            if k != axis {
                cx.equate(a, b)?;
            }
        }
    }
    if let ([Val { data: Data::Past(slot, part), .. }, new], 2) = (parts, axis) {
        let id = cx.node(new)?;
        let all = cx.b.kv_append(*slot, *part, id);
        return Ok(cx.val(all, new.elem));
    }
    let known_vectors = parts.iter().all(|p| p.rank() == 1 && p.known_ints().is_some());
    let total: usize = parts.iter().filter_map(Val::known_ints).map(<[Dim]>::len).sum();
    if known_vectors && total as u64 <= KNOWN_INTS {
        let all: Vec<Dim> = parts.iter().filter_map(Val::known_ints).flatten().cloned().collect();
        return Ok(Val::of(first.elem, vec![Dim::from(all.len())], Known::Ints(all)));
    }
    let mut ids = Vec::with_capacity(parts.len());
    for p in parts.iter().filter(|p| !p.shape.get(axis).is_some_and(|d| d.is(0))) {
        ids.push(cx.node(p)?);
    }
    if ids.is_empty() {
        return Ok(first.clone());
    }
    let out = cx.concat(&ids, axis)?;
    Ok(cx.val(out, first.elem))
}

/// Values behind one another along a new first axis.
pub fn stack(cx: &mut Cx<'_, '_, '_>, parts: &[Val]) -> Res<Val> {
    let mut raised = Vec::with_capacity(parts.len());
    for p in parts {
        let shape = std::iter::once(Dim::one()).chain(p.shape.iter().cloned()).collect();
        raised.push(view(cx, p, shape)?);
    }
    if raised.is_empty() {
        return unsupported("stacks the results of no trips");
    }
    join(cx, &raised, 0)
}

/// `x` repeated along axes of extent 1.
pub fn repeated(cx: &mut Cx<'_, '_, '_>, x: &Val, to: &[Dim]) -> Res<Val> {
    if x.shape == to {
        return Ok(x.clone());
    }
    if let (Some(known), Some(own), Some(fixed)) = (&x.known, x.fixed_shape(), fixed(to)) {
        let few = if x.elem.is_float() { KNOWN_FLOATS } else { KNOWN_INTS };
        let elems = fixed.iter().try_fold(1u64, |p, d| p.checked_mul(*d as u64));
        if elems.is_some_and(|n| n <= few)
            && let Some(k) = broadcast_walk(&own, &fixed).and_then(|at| known.pick(&at))
        {
            return Ok(Val::of(x.elem, to.to_vec(), k));
        }
    }
    let id = cx.node(x)?;
    let out = cx.broadcast(id, to)?;
    Ok(cx.val(out, x.elem))
}

/// Expand.
pub fn expand(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let wanted = ints(n, 1, "its shape")?;
    let to = cx.broadcast_shape(&[&x.shape, &wanted])?;
    let to: Vec<Dim> = to.iter().map(|d| cx.simplify(d)).collect();
    Ok(vec![repeated(cx, &x, &to)?])
}

/// Tile.
pub fn tile(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?.clone();
    let counts = ints(n, 1, "its repeats")?;
    if counts.len() != x.rank() {
        return malformed(format!("repeats {} of {} axes", counts.len(), x.rank()));
    }
    let mut out = x.clone();
    for (axis, c) in counts.iter().enumerate().filter(|(_, c)| !c.is(1)) {
        let d = out.shape[axis].clone();
        let mut split = out.shape.clone();
        split.insert(axis, Dim::one());
        let raised = view(cx, &out, split.clone())?;
        split[axis] = c.clone();
        let wide = repeated(cx, &raised, &split)?;
        let mut joined = out.shape.clone();
        joined[axis] = c * &d;
        out = view(cx, &wide, joined)?;
    }
    Ok(vec![out])
}

/// The extents.
pub fn shape(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let rank = x.rank() as i64;
    let at = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let (start, end) = (at(n.int("start", 0)?), at(n.int("end", rank)?));
    let all = x.shape.get(start..end.max(start)).unwrap_or_default();
    Ok(vec![Val::ints(all.iter().map(|d| cx.simplify(d)).collect())])
}

/// The number of elements.
pub fn size(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let elems = product(&n.input(0)?.shape);
    Ok(vec![Val::int(cx.simplify(&elems))])
}

/// A constant of the model.
pub fn constant(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    if let Some(t) = n.tensor("value")? {
        let name = n.outputs.first().copied().unwrap_or("constant");
        let val = cx.constants.id(t, name).and_then(|id| cx.constants.val(id));
        return val.map(|v| vec![v]).or_else(|e| malformed(format!("its value {e}")));
    }
    if let Some(v) = n.float_if("value_float")? {
        return Ok(vec![Val::float(Elem::Float, v)]);
    }
    if let Some(v) = n.int_if("value_int")? {
        return Ok(vec![Val::int(Dim::constant(v))]);
    }
    if let Some(v) = n.ints("value_ints")? {
        return Ok(vec![Val::ints(v.iter().map(|v| Dim::constant(*v)).collect())]);
    }
    if let Some((_, a)) = n.attributes.iter().find(|(name, _)| *name == "value_floats") {
        let floats = Known::Floats(a.floats.clone());
        return Ok(vec![Val::of(Elem::Float, vec![Dim::from(a.floats.len())], floats)]);
    }
    unsupported("holds a text or a sparse tensor")
}

/// A tensor of given extents filled with one value.
pub fn constant_of_shape(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let to: Vec<Dim> = ints(n, 0, "its shape")?.iter().map(|d| cx.simplify(d)).collect();
    if let Some(d) = to.iter().find(|d| d.as_const().is_some_and(|c| c < 0 || c > i64::from(i32::MAX))) {
        return malformed(format!("asks for the extent {d}"));
    }
    let value = match n.tensor("value")? {
        Some(t) => {
            let val = cx.constants.id(t, "value").and_then(|id| cx.constants.val(id));
            val.or_else(|e| malformed(format!("its value {e}")))?
        }
        None => Val::float(Elem::Float, 0.0),
    };
    match value.known.as_deref().and_then(|k| k.pick(&[0])) {
        Some(k) => Ok(vec![repeated(cx, &Val::of(value.elem, Vec::new(), k), &to)?]),
        None => malformed("its value has no element"),
    }
}

/// start, start + delta, … below limit.
pub fn range(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let (start, limit, delta) = (n.input(0)?, n.input(1)?, n.input(2)?);
    let scalar = |v: &Val| v.known_ints().and_then(|k| k.first().cloned());
    if let (Some(a), Some(b), Some(d)) = (scalar(start), scalar(limit), scalar(delta)) {
        let Some(step) = d.as_const().filter(|d| *d != 0) else {
            return unsupported("its step is 0 or depends on sizes");
        };
        let span = if step > 0 { b - a.clone() } else { a.clone() - b };
        let len = span.ceil_div(&Dim::from(step.unsigned_abs()));
        let len = if cx.bounds.nonneg(&span) { len } else { len.larger(&Dim::zero()) };
        let len = cx.simplify(&len);
        if let Some(count) = len.as_const().filter(|c| (0..=KNOWN_INTS as i64).contains(c)) {
            let all = (0..count).map(|k| fold::ints(Fold::Add, &a, &Dim::constant(k.saturating_mul(step)), &cx.bounds));
            if let Some(all) = all.collect::<Option<Vec<_>>>() {
                return Ok(vec![Val::of(start.elem, vec![len], Known::Ints(all))]);
            }
        }
        let out = if step == 1 {
            cx.iota(&[len], 0, a)
        } else {
            let count = cx.iota(&[len], 0, Dim::zero());
            let scaled = cx.bin_c(BinaryOp::Mul, count, step as f64)?;
            let first = cx.size_value(&a)?;
            cx.bin(BinaryOp::Add, scaled, first)?
        };
        return Ok(vec![cx.val(out, start.elem)]);
    }
    let float = |v: &Val| v.known_floats().and_then(|k| k.first().copied());
    if let (Some(a), Some(b), Some(d)) = (float(start), float(limit), float(delta)) {
        let count = ((f64::from(b) - f64::from(a)) / f64::from(d)).ceil().max(0.0);
        if !count.is_finite() || count > f64::from(i32::MAX) {
            return malformed(format!("counts from {a} to {b} by {d}"));
        }
        let count = cx.iota(&[Dim::constant(count as i64)], 0, Dim::zero());
        let count = cx.cast(count, Scalar::F32)?;
        let scaled = cx.bin_c(BinaryOp::Mul, count, f64::from(d))?;
        let out = cx.bin_c(BinaryOp::Add, scaled, f64::from(a))?;
        return Ok(vec![cx.val(out, start.elem)]);
    }
    unsupported("its length depends on data")
}

/// Channels to blocks of the plane.
pub fn depth_to_space(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let (b, [batch, c, h, w]) = (block(n)?, planes(x)?);
    let depth = c.div(&(&b * &b));
    let id = cx.node(x)?;
    let column_first = n.text("mode", "DCR")? == "CRD";
    let (split, perm) = if column_first {
        ([&batch, &depth, &b, &b, &h, &w], [0, 1, 4, 2, 5, 3])
    } else {
        ([&batch, &b, &b, &depth, &h, &w], [0, 3, 4, 1, 5, 2])
    };
    let split = cx.reshape(id, &split.map(Clone::clone))?;
    let moved = cx.transpose(split, &perm)?;
    let out = cx.reshape(moved, &[batch, depth, &h * &b, &w * &b])?;
    Ok(vec![cx.val(out, x.elem)])
}

/// Blocks of the plane to channels. Lines at the end that do not fill a block are left over: no valid model has any.
pub fn space_to_depth(cx: &mut Cx<'_, '_, '_>, n: &Node<'_>) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let (b, [batch, c, h, w]) = (block(n)?, planes(x)?);
    let (rows, columns) = (cx.simplify(&h.div(&b)), cx.simplify(&w.div(&b)));
    let mut id = cx.node(x)?;
    id = cx.slice(id, 2, &Dim::zero(), &cx.simplify(&(&rows * &b)))?;
    id = cx.slice(id, 3, &Dim::zero(), &cx.simplify(&(&columns * &b)))?;
    let split = cx.reshape(id, &[batch.clone(), c.clone(), rows.clone(), b.clone(), columns.clone(), b.clone()])?;
    let moved = cx.transpose(split, &[0, 3, 5, 1, 2, 4])?;
    let out = cx.reshape(moved, &[batch, &(&b * &b) * &c, rows, columns])?;
    Ok(vec![cx.val(out, x.elem)])
}

fn block(n: &Node<'_>) -> Res<Dim> {
    match n.int("blocksize", 0)? {
        b if (1..=1 << 15).contains(&b) => Ok(Dim::constant(b)),
        b => malformed(format!("has blocks of {b}")),
    }
}

fn planes(x: &Val) -> Res<[Dim; 4]> {
    match <[Dim; 4]>::try_from(x.shape.clone()) {
        Ok(s) => Ok(s),
        Err(s) => malformed(format!("takes four axes, not {}", s.len())),
    }
}

/// The elements of a value in a new place, where both are known.
pub fn picked(x: &Val, shape: &[usize], at: &[usize]) -> Option<Val> {
    let known = x.known.as_deref()?.pick(at)?;
    let shape = shape.iter().map(|d| Dim::from(*d)).collect();
    Some(Val { elem: x.elem, shape, data: Data::Known, known: Some(Rc::new(known)) })
}
