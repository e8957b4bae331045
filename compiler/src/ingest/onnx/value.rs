//! Values while a model is imported: a tensor with symbolic extents that is a node of the graph, a stored constant, or
//! known element by element.

#![allow(clippy::indexing_slicing, reason = "positions run over the extents they index")]

use super::elem::Elem;
use super::stock::TensorId;
use crate::graph::{KvSlotId, ValueId};
use frit_kernels::dim::Dim;
use frit_plan::KvPart;
use std::rc::Rc;

/// Elements that the importer knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Integers and truth values (0 and 1), possibly symbolic.
    Ints(Vec<Dim>),
    /// Floats.
    Floats(Vec<f32>),
}

impl Known {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Known::Ints(v) => v.len(),
            Known::Floats(v) => v.len(),
        }
    }
    /// The elements at the given positions; `None` when one lies outside.
    pub fn pick(&self, at: &[usize]) -> Option<Known> {
        match self {
            Known::Ints(v) => at.iter().map(|i| v.get(*i).cloned()).collect::<Option<_>>().map(Known::Ints),
            Known::Floats(v) => at.iter().map(|i| v.get(*i).copied()).collect::<Option<_>>().map(Known::Floats),
        }
    }
}

/// Where a value's elements are.
#[derive(Clone, Debug)]
pub enum Data {
    /// Computed by the graph.
    Node(ValueId),
    /// A constant of the model.
    Stored(TensorId),
    /// Only in [`Val::known`]; nodes are made when somebody needs them.
    Known,
    /// What a cache slot holds of earlier tokens; new ones can be put behind it, and nothing else.
    Past(KvSlotId, KvPart),
}

/// A tensor.
#[derive(Clone, Debug)]
pub struct Val {
    /// The type that the model gives it.
    pub elem: Elem,
    /// Extents, outermost first.
    pub shape: Vec<Dim>,
    /// Where it is.
    pub data: Data,
    /// Its elements in row-major order, where they are few and known.
    pub known: Option<Rc<Known>>,
}

impl Val {
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// A value of known elements.
    pub fn of(elem: Elem, shape: Vec<Dim>, known: Known) -> Val {
        Val { elem, shape, data: Data::Known, known: Some(Rc::new(known)) }
    }
    /// A vector of integers.
    pub fn ints(v: Vec<Dim>) -> Val {
        Val::of(Elem::Int64, vec![Dim::from(v.len())], Known::Ints(v))
    }
    /// An integer scalar.
    pub fn int(v: Dim) -> Val {
        Val::of(Elem::Int64, Vec::new(), Known::Ints(vec![v]))
    }
    /// A float scalar.
    pub fn float(elem: Elem, v: f32) -> Val {
        Val::of(elem, Vec::new(), Known::Floats(vec![v]))
    }
    /// Known integer elements.
    pub fn known_ints(&self) -> Option<&[Dim]> {
        match self.known.as_deref() {
            Some(Known::Ints(v)) => Some(v),
            _ => None,
        }
    }
    /// Known float elements.
    pub fn known_floats(&self) -> Option<&[f32]> {
        match self.known.as_deref() {
            Some(Known::Floats(v)) => Some(v),
            _ => None,
        }
    }
    /// The extents, if all are numbers.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        fixed(&self.shape)
    }
}

/// Extents as numbers, if all are.
pub fn fixed(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(|d| d.as_const().and_then(|v| usize::try_from(v).ok())).collect()
}

/// Row-major strides.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        out[i] = out[i + 1].wrapping_mul(shape[i + 1]);
    }
    out
}

/// Positions, in an array with these strides from `start`, of the elements of a box of `shape` in row-major order.
pub fn walk(shape: &[usize], start: isize, strides: &[isize]) -> Vec<usize> {
    let mut out = vec![start];
    for (d, s) in shape.iter().zip(strides) {
        out = out.iter().flat_map(|p| (0..*d as isize).map(move |k| p + k * s)).collect();
    }
    out.into_iter().map(|p| usize::try_from(p).unwrap_or(usize::MAX)).collect()
}

/// Positions of the elements of an array of shape `own` when it is broadcast to `to`.
pub fn broadcast_walk(own: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    let lead = to.len().checked_sub(own.len())?;
    let mut steps = vec![0isize; lead];
    for ((d, s), t) in own.iter().zip(strides(own)).zip(&to[lead..]) {
        match *d {
            d if d == *t => steps.push(s as isize),
            1 => steps.push(0),
            _ => return None,
        }
    }
    Some(walk(to, 0, &steps))
}
