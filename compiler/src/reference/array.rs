//! Dense arrays of f64 and the index arithmetic of broadcasting.

use super::RefError;

/// A dense row-major array. Integers and truth values are held as the f64 of the same value.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Array {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of given elements.
    ///
    /// # Errors
    /// When there are not as many elements as the shape has places.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Result<Self, RefError> {
        let shape = shape.into();
        if elems(&shape)? != data.len() {
            return Err(RefError::new(format!("{} elements for the shape {shape:?}", data.len())));
        }
        Ok(Array { shape, data })
    }
    /// A scalar.
    pub fn scalar(v: f64) -> Self {
        Array { shape: Vec::new(), data: vec![v] }
    }
    /// An array filled with one value.
    ///
    /// # Errors
    /// When the shape is too large.
    pub fn full(shape: &[usize], v: f64) -> Result<Self, RefError> {
        Ok(Array { shape: shape.to_vec(), data: vec![v; elems(shape)?] })
    }
    /// The element at a linear index; 0 beyond the end.
    pub fn at(&self, i: usize) -> f64 {
        self.data.get(i).copied().unwrap_or(0.0)
    }
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Extent of an axis; 1 for an axis that does not exist.
    pub fn extent(&self, axis: usize) -> usize {
        self.shape.get(axis).copied().unwrap_or(1)
    }
    /// The extents of a rank-4 array.
    pub(super) fn four(&self) -> Result<[usize; 4], RefError> {
        <[usize; 4]>::try_from(self.shape.as_slice())
            .map_err(|_| RefError::new(format!("four axes expected, the shape is {:?}", self.shape)))
    }
    /// The array with elements picked by strides: element `c` of the result is element `start + Σ c·stride` of `self`.
    pub(super) fn strided(&self, shape: &[usize], start: usize, strides: &[usize]) -> Result<Array, RefError> {
        let mut data = Vec::with_capacity(elems(shape)?);
        for_each(shape, &[strides], |at| data.push(self.at(start + at[0])));
        Ok(Array { shape: shape.to_vec(), data })
    }
}

/// Number of elements of a shape.
pub(super) fn elems(shape: &[usize]) -> Result<usize, RefError> {
    let n = shape.iter().try_fold(1usize, |p, d| p.checked_mul(*d));
    n.filter(|n| *n <= 1 << 33).ok_or_else(|| RefError::new(format!("the shape {shape:?} is too large")))
}

/// Row-major strides of a shape.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut s = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        s[i - 1] = s[i] * shape[i];
    }
    s
}

/// Strides by which an array of shape `own` is read when it broadcasts to `to`, aligned from the right.
pub(super) fn broadcast_strides(own: &[usize], to: &[usize]) -> Result<Vec<usize>, RefError> {
    let fail = || RefError::new(format!("{own:?} does not broadcast to {to:?}"));
    let lead = to.len().checked_sub(own.len()).ok_or_else(fail)?;
    let mut out = vec![0; lead];
    for ((d, s), t) in own.iter().zip(strides(own)).zip(&to[lead..]) {
        match d {
            d if d == t => out.push(s),
            1 => out.push(0),
            _ => return Err(fail()),
        }
    }
    Ok(out)
}

/// The shape both broadcast to, aligned from the right.
pub(super) fn common(a: &[usize], b: &[usize]) -> Result<Vec<usize>, RefError> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |k| s[k]);
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        out.push(match (at(a, i), at(b, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return Err(RefError::new(format!("{a:?} and {b:?} do not broadcast"))),
        });
    }
    Ok(out)
}

/// Calls `f` for every coordinate of `shape` in row-major order with one linear index for each set of strides.
pub(super) fn for_each(shape: &[usize], strides: &[&[usize]], mut f: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut coord = vec![0usize; shape.len()];
    let mut at = vec![0usize; strides.len()];
    loop {
        f(&at);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            coord[axis] += 1;
            for (a, s) in at.iter_mut().zip(strides) {
                *a += s[axis];
            }
            if coord[axis] < shape[axis] {
                break;
            }
            for (a, s) in at.iter_mut().zip(strides) {
                *a -= s[axis] * shape[axis];
            }
            coord[axis] = 0;
        }
    }
}
