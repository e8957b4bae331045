//! What the operators of a model are imported with: the graph under construction, the constants, what is known of sizes.
//!
//! The arithmetic here works on nodes of the graph and makes extents agree first, see [`Sizes::equate`].

#![allow(clippy::indexing_slicing, reason = "windows of two, axes that run over the shape")]

use super::dims::Sizes;
use super::elem::{Elem, Values};
use super::error::{Res, Stop, malformed, unsupported};
use super::external_data::ExternalFiles;
use super::proto::TensorProto;
use super::stock::{Content, Recipe, Stock, TensorId, bounded, narrowed};
use super::value::{Data, Known, Val};
use crate::graph::{Op, ValueId};
use crate::ingest::Limits;
use crate::ingest::builder::GraphBuilder;
use frit_kernels::dim::{Bounds, Dim};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, Literal, ReduceOp, UnaryOp};
use std::collections::HashMap;
use std::rc::Rc;

/// Integers that are followed element by element, at most.
pub const KNOWN_INTS: u64 = 2048;
/// Floats that are followed element by element, at most.
pub const KNOWN_FLOATS: u64 = 64;
/// Integers of a constant that are read to see whether they follow a rule, at most.
const INSPECTED: u64 = 1 << 20;

/// The constants of a model.
pub struct Constants<'a> {
    /// The tensors.
    pub stock: &'a mut Stock,
    /// Files beside the model.
    pub files: &'a mut ExternalFiles,
    /// Bounds on tensors.
    pub limits: &'a Limits,
    seen: HashMap<usize, Result<TensorId, String>>,
    /// The first tensor of each content, where tensors of equal content are one.
    contents: Option<HashMap<Content, TensorId>>,
}

impl<'a> Constants<'a> {
    /// An empty set.
    pub fn new(stock: &'a mut Stock, files: &'a mut ExternalFiles, limits: &'a Limits) -> Self {
        Constants { stock, files, limits, seen: HashMap::new(), contents: None }
    }
    /// Lets tensors of equal type, extents and bytes be one.
    pub fn dedupe(&mut self) {
        self.contents = Some(HashMap::new());
    }
    /// The tensor of a message, taken in on first sight.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn id(&mut self, proto: &TensorProto, name: &str) -> Result<TensorId, String> {
        let key = std::ptr::from_ref(proto) as usize;
        if let Some(known) = self.seen.get(&key) {
            return known.clone();
        }
        let id = self.stock.add(proto, name, self.files, self.limits);
        let id = match (id, &mut self.contents) {
            (Ok(id), Some(contents)) => match self.stock.content(id) {
                Some(content) => Ok(*contents.entry(content).or_insert(id)),
                None => Ok(id),
            },
            (id, _) => id,
        };
        self.seen.insert(key, id.clone());
        id
    }
    /// The value of a stored tensor, with its elements where they are few.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn val(&self, id: TensorId) -> Result<Val, String> {
        let t = self.stock.get(id).ok_or("a constant that does not exist")?;
        let shape: Vec<Dim> = t.dims.iter().map(|d| Dim::from(*d)).collect();
        let few = if t.elem.is_float() { KNOWN_FLOATS } else { KNOWN_INTS };
        let known = match t.elems() <= few {
            true => Some(Rc::new(match &*self.stock.values(id)? {
                Values::Floats(v) => Known::Floats(v.clone()),
                Values::Ints(v) => Known::Ints(v.iter().map(|x| Dim::constant(*x)).collect()),
            })),
            false => None,
        };
        Ok(Val { elem: t.elem, shape, data: Data::Stored(id), known })
    }
}

/// The state of an import.
pub struct Cx<'a, 'g, 'm> {
    /// The graph under construction.
    pub b: &'g mut GraphBuilder<'m>,
    /// Constants.
    pub constants: &'g mut Constants<'a>,
    /// Sizes and what is assumed of them.
    pub sizes: &'g mut Sizes,
    /// What is known of sizes.
    pub bounds: Bounds,
}

impl Cx<'_, '_, '_> {
    /// The expression with what is known put in.
    pub fn simplify(&self, d: &Dim) -> Dim {
        self.sizes.resolve(d).simplify(&self.bounds)
    }
    /// Makes two extents one.
    ///
    /// # Errors
    /// See [`Sizes::equate`].
    pub fn equate(&self, a: &Dim, b: &Dim) -> Res<Dim> {
        if a == b { Ok(a.clone()) } else { self.sizes.equate(a, b, &self.bounds) }
    }
    /// The shape that all broadcast to, aligned from the right. Of two symbolic extents neither of which is 1 it is
    /// assumed that they are equal.
    pub fn broadcast_shape(&self, shapes: &[&[Dim]]) -> Res<Vec<Dim>> {
        let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
        let mut out = vec![Dim::one(); rank];
        for s in shapes {
            for (o, d) in out.iter_mut().skip(rank - s.len()).zip(*s) {
                if o.is(1) {
                    *o = d.clone();
                } else if !d.is(1) {
                    *o = self.equate(o, d)?;
                }
            }
        }
        Ok(out)
    }
    /// The shape of a node.
    pub fn shape(&self, v: ValueId) -> Vec<Dim> {
        self.b.ty(v).shape.clone()
    }
    /// The scalar type of a node.
    pub fn scalar(&self, v: ValueId) -> Scalar {
        self.b.ty(v).scalar
    }
    /// A node as a value of type `elem`.
    pub fn val(&self, v: ValueId, elem: Elem) -> Val {
        Val { elem, shape: self.shape(v), data: Data::Node(v), known: None }
    }

    /// Adds an operation.
    ///
    /// # Errors
    /// Operands that it does not take.
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> Res<ValueId> {
        let v = self.b.try_op(op, inputs).or_else(|e| malformed(e.fault))?;
        match self.b.ty(v).elems().as_const() {
            Some(n) if n > i64::from(i32::MAX) => {
                unsupported(format!("makes a tensor of {n} elements, at most {} are possible", i32::MAX))
            }
            _ => Ok(v),
        }
    }
    /// A float scalar.
    pub fn f32(&mut self, v: f32) -> Res<ValueId> {
        if v.is_nan() {
            return unsupported("a constant that is not a number");
        }
        self.op(Op::Const(Literal::f32(bounded(v))), &[])
    }
    /// An integer scalar.
    pub fn i32(&mut self, v: i32) -> Res<ValueId> {
        self.op(Op::Const(Literal::I32(v)), &[])
    }
    /// A truth value.
    pub fn truth(&mut self, v: bool) -> Res<ValueId> {
        self.op(Op::Const(Literal::Bool(v)), &[])
    }
    /// A number in the type of `like`.
    pub fn number(&mut self, like: Scalar, v: f64) -> Res<ValueId> {
        match like {
            Scalar::F32 => self.f32(v as f32),
            Scalar::I32 => self.i32(v as i32),
            Scalar::Bool => self.truth(v != 0.0),
        }
    }
    /// f(a).
    pub fn un(&mut self, f: UnaryOp, a: ValueId) -> Res<ValueId> {
        self.op(Op::Unary(f), &[a])
    }
    /// f(a, b), extents made to agree.
    pub fn bin(&mut self, f: BinaryOp, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.broadcast_shape(&[&self.shape(a), &self.shape(b)])?;
        self.op(Op::Binary(f), &[a, b])
    }
    /// f(a, c) with a number.
    pub fn bin_c(&mut self, f: BinaryOp, a: ValueId, c: f64) -> Res<ValueId> {
        let c = self.number(self.scalar(a), c)?;
        self.bin(f, a, c)
    }
    /// `t` where `c`, else `f`.
    pub fn select(&mut self, c: ValueId, t: ValueId, f: ValueId) -> Res<ValueId> {
        self.broadcast_shape(&[&self.shape(c), &self.shape(t), &self.shape(f)])?;
        self.op(Op::Select, &[c, t, f])
    }
    /// ¬a.
    pub fn not(&mut self, a: ValueId) -> Res<ValueId> {
        self.un(UnaryOp::Not, a)
    }
    /// Value conversion.
    pub fn cast(&mut self, a: ValueId, to: Scalar) -> Res<ValueId> {
        if self.scalar(a) == to { Ok(a) } else { self.op(Op::Cast(to), &[a]) }
    }
    /// Other extents for the same elements.
    pub fn reshape(&mut self, a: ValueId, to: &[Dim]) -> Res<ValueId> {
        let own = self.shape(a);
        if own == to {
            return Ok(a);
        }
        let count = |s: &[Dim]| s.iter().fold(Dim::one(), |n, d| &n * d);
        let more = self.simplify(&(count(to) - count(&own)));
        if let Some(least) = self.sizes.raised(&more, &self.bounds, |b| more.simplify(b).is(0)) {
            return Err(Stop::Assume(least));
        }
        self.op(Op::Reshape(to.to_vec()), &[a])
    }
    /// Axis k of the result is axis `perm[k]`.
    pub fn transpose(&mut self, a: ValueId, perm: &[usize]) -> Res<ValueId> {
        if perm.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(a);
        }
        self.op(Op::Transpose(perm.to_vec()), &[a])
    }
    /// Swaps the last two axes.
    pub fn swap_last(&mut self, a: ValueId) -> Res<ValueId> {
        let mut perm: Vec<usize> = (0..self.shape(a).len()).collect();
        if let [.., x, y] = perm.as_mut_slice() {
            std::mem::swap(x, y);
        }
        self.transpose(a, &perm)
    }
    /// Moves an axis; the others keep their order.
    pub fn move_axis(&mut self, a: ValueId, from: usize, to: usize) -> Res<ValueId> {
        let mut perm: Vec<usize> = (0..self.shape(a).len()).collect();
        let axis = perm.remove(from);
        perm.insert(to, axis);
        self.transpose(a, &perm)
    }
    /// Repeats axes of extent 1.
    pub fn broadcast(&mut self, a: ValueId, to: &[Dim]) -> Res<ValueId> {
        if self.shape(a) == to { Ok(a) } else { self.op(Op::Broadcast(to.to_vec()), &[a]) }
    }
    /// `len` elements of `axis` from `start`.
    pub fn slice(&mut self, a: ValueId, axis: usize, start: &Dim, len: &Dim) -> Res<ValueId> {
        if start.is(0) && self.shape(a).get(axis) == Some(len) {
            return Ok(a);
        }
        self.op(Op::Slice { axis, start: start.clone(), len: len.clone() }, &[a])
    }
    /// Operands one behind the other.
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> Res<ValueId> {
        match parts {
            [one] => Ok(*one),
            _ => self.op(Op::Concat { axis }, parts),
        }
    }
    /// Rows of `table` by index; indices are clamped.
    pub fn gather(&mut self, table: ValueId, ids: ValueId) -> Res<ValueId> {
        self.op(Op::Gather, &[table, ids])
    }
    /// Reduction over ascending axes.
    pub fn reduce(&mut self, op: ReduceOp, a: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
        self.op(Op::Reduce { op, axes: axes.to_vec(), keep }, &[a])
    }
    /// I32 of `shape`: the coordinate along `axis` plus `offset`.
    pub fn iota(&mut self, shape: &[Dim], axis: usize, offset: Dim) -> ValueId {
        self.b.iota(shape, axis, offset)
    }
    /// `a · b`, batch extents made to agree.
    pub fn matmul(&mut self, a: ValueId, b: ValueId, b_transposed: bool) -> Res<ValueId> {
        let (sa, sb) = (self.shape(a), self.shape(b));
        if let ([ab @ .., _, ka], [bb @ .., p, q]) = (sa.as_slice(), sb.as_slice()) {
            self.equate(ka, if b_transposed { q } else { p })?;
            self.broadcast_shape(&[ab, bb])?;
        }
        self.op(Op::MatMul { b_transposed }, &[a, b])
    }
    /// The value of a size expression as an I32 scalar.
    pub fn size_value(&mut self, d: &Dim) -> Res<ValueId> {
        match d.as_const() {
            Some(v) => match narrowed(v) {
                Some(v) => self.i32(v),
                None => unsupported(format!("the integer {v}, which does not fit 32 bits")),
            },
            None => {
                let v = self.iota(&[Dim::one()], 0, d.clone());
                self.reshape(v, &[])
            }
        }
    }

    /// The node of a value; made now when the value is a constant.
    pub fn node(&mut self, v: &Val) -> Res<ValueId> {
        let id = match (&v.data, &v.known) {
            (Data::Node(id), _) => return Ok(*id),
            (_, Some(known)) if known.len() == 1 => self.one_element(v, known),
            (_, Some(known)) => self.few_elements(v, known),
            (Data::Stored(id), None) => self.stored(*id, v),
            (Data::Known, None) => return unsupported("a value without elements"),
            (Data::Past(..), None) => {
                return unsupported(
                    "reads the keys or values of earlier tokens other than to put new ones behind them",
                );
            }
        }?;
        Ok(id)
    }
    fn one_element(&mut self, v: &Val, known: &Known) -> Res<ValueId> {
        let scalar = match known {
            Known::Floats(x) => self.f32(x.first().copied().unwrap_or(0.0))?,
            Known::Ints(x) => {
                let d = x.first().cloned().unwrap_or_default();
                match (v.elem, d.as_const()) {
                    (Elem::Bool, Some(c)) => self.truth(c != 0)?,
                    _ => self.size_value(&d)?,
                }
            }
        };
        self.reshape(scalar, &v.shape)
    }
    fn few_elements(&mut self, v: &Val, known: &Known) -> Res<ValueId> {
        match known {
            Known::Floats(x) => {
                if let Some(first) = x.first()
                    && x.iter().all(|y| y.to_bits() == first.to_bits())
                {
                    let c = self.f32(*first)?;
                    return self.broadcast(c, &v.shape);
                }
                if x.iter().any(|x| x.is_nan()) {
                    return unsupported("a constant that is not a number");
                }
                match &v.data {
                    Data::Stored(id) => self.weight_of(*id, v.elem.storage(), &v.shape, false),
                    _ => self.inline("constant", Recipe::Floats(x.clone()), Storage::F32, &v.shape),
                }
            }
            Known::Ints(x) => {
                let fixed: Option<Vec<i64>> = x.iter().map(Dim::as_const).collect();
                match fixed {
                    Some(fixed) => self.fixed_ints(v, &fixed),
                    None => {
                        let mut parts = Vec::with_capacity(x.len());
                        for d in x {
                            parts.push(self.iota(&[Dim::one()], 0, d.clone()));
                        }
                        let all = self.concat(&parts, 0)?;
                        self.reshape(all, &v.shape)
                    }
                }
            }
        }
    }
    /// Integers that follow a rule become a constant or a coordinate; others become a weight.
    fn fixed_ints(&mut self, v: &Val, x: &[i64]) -> Res<ValueId> {
        if let Some(first) = x.first()
            && x.iter().all(|y| y == first)
        {
            let c =
                if v.elem == Elem::Bool { self.truth(*first != 0)? } else { self.size_value(&Dim::constant(*first))? };
            return self.broadcast(c, &v.shape);
        }
        if let (Some(shape), true) = (v.fixed_shape(), v.elem != Elem::Bool)
            && let Some((axis, offset)) = counting(x, &shape)
        {
            return Ok(self.iota(&v.shape, axis, Dim::constant(offset)));
        }
        if let (Some(shape), true) = (v.fixed_shape(), v.elem == Elem::Bool)
            && let Some(offset) = triangle(x, &shape)
        {
            let rank = shape.len();
            let row = self.iota(&v.shape, rank - 2, Dim::constant(offset));
            let column = self.iota(&v.shape, rank - 1, Dim::zero());
            return self.bin(BinaryOp::Le, column, row);
        }
        let narrow = |x: &i64| narrowed(*x).ok_or(*x);
        let narrow: Vec<i32> = match x.iter().map(narrow).collect() {
            Ok(v) => v,
            Err(x) => return unsupported(format!("the integer {x}, which does not fit 32 bits")),
        };
        self.inline("constant", Recipe::Ints(narrow), v.elem.storage(), &v.shape)
    }
    fn stored(&mut self, id: TensorId, v: &Val) -> Res<ValueId> {
        let gone = || Stop::Gap { problem: "a constant that does not exist".into(), next: super::error::REPAIR };
        let t = self.constants.stock.get(id).ok_or_else(gone)?;
        if !t.elem.is_float() && t.elems() <= INSPECTED && t.in_memory() {
            let read = self.constants.stock.values(id).or_else(malformed)?;
            if let Values::Ints(x) = &*read {
                return match (counted(x), v.elem) {
                    (true, _) | (_, Elem::Bool) => self.fixed_ints(v, x),
                    _ => self.weight_of(id, v.elem.storage(), &v.shape, false),
                };
            }
        }
        self.weight_of(id, v.elem.storage(), &v.shape, false)
    }
    /// A constant made here.
    pub fn inline(&mut self, name: &str, recipe: Recipe, storage: Storage, shape: &[Dim]) -> Res<ValueId> {
        let Some(fixed) = fixed_u64(shape) else {
            return unsupported("a constant whose extents are not numbers");
        };
        let name = self.constants.stock.weight(name, recipe, storage, &fixed);
        let w = self.b.model().stored(&name, storage, &fixed);
        Ok(self.b.weight(w))
    }
    /// A stored tensor as a weight of `shape` (of as many elements); `transposed` swaps its two extents, given as
    /// stored.
    pub fn weight_of(&mut self, id: TensorId, storage: Storage, shape: &[Dim], transposed: bool) -> Res<ValueId> {
        let name = self.constants.stock.get(id).map(|t| t.name.clone()).unwrap_or_default();
        let Some(fixed) = fixed_u64(shape) else {
            return unsupported("a constant whose extents are not numbers");
        };
        if let Some(blocks) = self.constants.stock.block_storage(id, &fixed, transposed) {
            let (recipe, rows) = match (transposed, fixed.as_slice()) {
                (true, [k, n]) => (Recipe::TransposedBlocks(id, [*k, *n]), vec![*n, *k]),
                _ => (Recipe::Blocks(id), fixed),
            };
            let name = self.constants.stock.weight(&name, recipe, blocks, &rows);
            let w = self.b.model().stored(&name, blocks, &rows);
            return Ok(self.b.weight(w));
        }
        let name = self.constants.stock.weight(&name, Recipe::Plain(id), storage, &fixed);
        let w = match (transposed, fixed.as_slice()) {
            (true, [k, n]) => self.b.model().stored_transposed(&name, storage, [*k, *n]),
            _ => self.b.model().stored(&name, storage, &fixed),
        };
        Ok(self.b.weight(w))
    }
}

fn fixed_u64(shape: &[Dim]) -> Option<Vec<u64>> {
    shape.iter().map(|d| d.as_const().and_then(|v| u64::try_from(v).ok())).collect()
}

/// Whether the integers may follow a rule: all equal, or each the same or one more than the one before it, or a
/// restart.
fn counted(x: &[i64]) -> bool {
    let step = |w: &[i64]| w[1].wrapping_sub(w[0]);
    x.windows(2).all(|w| step(w) == 0) || x.windows(2).filter(|w| step(w) == 1).count() * 2 >= x.len().saturating_sub(1)
}

/// The axis and offset of integers that count along one axis and are equal along all others.
fn counting(x: &[i64], shape: &[usize]) -> Option<(usize, i64)> {
    let offset = *x.first()?;
    let strides = super::value::strides(shape);
    (0..shape.len()).filter(|a| shape[*a] > 1).find_map(|axis| {
        let own = |i: usize| i64::try_from(i / strides[axis] % shape[axis]).ok();
        let all = x.iter().enumerate().all(|(i, v)| own(i).and_then(|c| c.checked_add(offset)) == Some(*v));
        all.then_some((axis, offset))
    })
}

/// The offset `k` of truth values that are true where column ≤ row + k, alike in every leading coordinate.
fn triangle(x: &[i64], shape: &[usize]) -> Option<i64> {
    let [.., rows, columns] = *shape else { return None };
    let k = x.iter().take(columns).take_while(|v| **v != 0).count() as i64 - 1;
    let at = |i: usize| ((i / columns % rows) as i64, (i % columns) as i64);
    x.iter().enumerate().all(|(i, v)| (*v != 0) == (at(i).1 <= at(i).0 + k)).then_some(k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_integers_are_seen() {
        assert_eq!(counting(&[3, 4, 5], &[3]), Some((0, 3)));
        assert_eq!(counting(&[0, 0, 1, 1], &[1, 2, 2]), Some((1, 0)));
        assert_eq!(counting(&[0, 2, 4], &[3]), None);
        assert_eq!(triangle(&[1, 0, 0, 1, 1, 0], &[1, 2, 3]), Some(0));
        assert_eq!(triangle(&[1, 1, 0, 0], &[2, 2]), None);
        assert_eq!(triangle(&[0, 0, 1, 0], &[2, 2]), Some(-1));
    }
}
