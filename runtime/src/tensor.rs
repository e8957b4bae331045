//! Host tensors.

use crate::{Error, Result};

/// The elements of a host tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Floats.
    F32(Vec<f32>),
    /// Integers; truth values as 0 and 1.
    I32(Vec<i32>),
}

/// A dense row-major host tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<u64>,
    data: Data,
}

impl Tensor {
    /// A tensor of `shape` holding `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements does not match.
    pub fn new(shape: Vec<u64>, data: Data) -> Result<Self> {
        let len = match &data {
            Data::F32(v) => v.len(),
            Data::I32(v) => v.len(),
        };
        let want = shape.iter().try_fold(1u64, |p, d| p.checked_mul(*d));
        if want != Some(len as u64) {
            return Err(Error::Shape {
                what: "tensor".into(),
                expected: format!("{shape:?}"),
                found: format!("{len} elements"),
            });
        }
        Ok(Tensor { shape, data })
    }
    /// A float tensor.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn f32(shape: &[u64], data: Vec<f32>) -> Result<Self> {
        Tensor::new(shape.to_vec(), Data::F32(data))
    }
    /// An integer tensor.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn i32(shape: &[u64], data: Vec<i32>) -> Result<Self> {
        Tensor::new(shape.to_vec(), Data::I32(data))
    }
    /// Extents, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }
    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }
    /// The elements, if they are floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            Data::I32(_) => None,
        }
    }
    /// The elements, if they are integers.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.data {
            Data::I32(v) => Some(v),
            Data::F32(_) => None,
        }
    }
    /// `len` entries of an axis from `start`.
    pub(crate) fn slice(&self, axis: usize, start: u64, len: u64) -> Result<Tensor> {
        let out_of_range = || Error::Shape {
            what: "slice".into(),
            expected: format!("an axis {axis} of at least {} entries", start.saturating_add(len)),
            found: format!("{:?}", self.shape),
        };
        let extent =
            self.shape.get(axis).copied().filter(|e| start.saturating_add(len) <= *e).ok_or_else(out_of_range)?;
        let inner: u64 = self.shape.iter().skip(axis + 1).product();
        let [from, count, row] = [start * inner, len * inner, extent * inner].map(|n| n as usize);
        fn cut<T: Copy>(v: &[T], from: usize, count: usize, row: usize) -> Vec<T> {
            v.chunks_exact(row.max(1)).flat_map(|r| r.iter().skip(from).take(count).copied()).collect()
        }
        let mut shape = self.shape.clone();
        if let Some(e) = shape.get_mut(axis) {
            *e = len;
        }
        let data = match &self.data {
            Data::F32(v) => Data::F32(cut(v, from, count, row)),
            Data::I32(v) => Data::I32(cut(v, from, count, row)),
        };
        Tensor::new(shape, data)
    }
    /// Tensors of one type one behind the other along an axis.
    pub(crate) fn concat(parts: &[Tensor], axis: usize) -> Result<Tensor> {
        let none = || Error::Shape { what: "concat".into(), expected: "tensors".into(), found: "nothing".into() };
        let mut shape = parts.first().ok_or_else(none)?.shape.clone();
        let inner: u64 = shape.iter().skip(axis + 1).product();
        let rows: u64 = shape.iter().take(axis).product();
        let widths: Vec<usize> =
            parts.iter().map(|p| (p.shape.get(axis).copied().unwrap_or(0) * inner) as usize).collect();
        if let Some(e) = shape.get_mut(axis) {
            *e = parts.iter().filter_map(|p| p.shape.get(axis)).sum();
        }
        fn join<'t, T: Copy + 't>(parts: &[&'t [T]], widths: &[usize], rows: usize) -> Vec<T> {
            let row = |r: usize| {
                let own = move |(p, w): (&&'t [T], &usize)| p.iter().skip(r * w).take(*w).copied().collect::<Vec<T>>();
                parts.iter().zip(widths).flat_map(own).collect::<Vec<T>>()
            };
            (0..rows).flat_map(row).collect()
        }
        let floats: Vec<&[f32]> = parts.iter().filter_map(Tensor::as_f32).collect();
        let ints: Vec<&[i32]> = parts.iter().filter_map(Tensor::as_i32).collect();
        let data = match floats.len() == parts.len() {
            true => Data::F32(join(&floats, &widths, rows as usize)),
            false => Data::I32(join(&ints, &widths, rows as usize)),
        };
        Tensor::new(shape, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_put_together_are_the_tensor() {
        let t = Tensor::i32(&[2, 3, 2], (0..12).collect()).unwrap();
        let parts: Vec<Tensor> = (0..3).map(|i| t.slice(1, i, 1).unwrap()).collect();
        assert_eq!(parts[1].as_i32().unwrap(), [2, 3, 8, 9]);
        assert_eq!(Tensor::concat(&parts, 1).unwrap(), t);
        assert!(t.slice(1, 2, 2).is_err());
    }
}
