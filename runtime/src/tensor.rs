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
}
