//! The type of a value.

use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Scalar;
use std::fmt;

/// Element type and symbolic extents, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// What kernels compute with.
    pub scalar: Scalar,
    /// Extents; empty for a scalar.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type.
    pub fn new(scalar: Scalar, shape: impl Into<Vec<Dim>>) -> Self {
        TensorType { scalar, shape: shape.into() }
    }
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Number of elements.
    pub fn elems(&self) -> Dim {
        product(&self.shape)
    }
    /// The innermost extent; 1 for a scalar.
    pub fn last(&self) -> Dim {
        self.shape.last().cloned().unwrap_or_else(Dim::one)
    }
    /// Bytes of the value: every scalar takes 4.
    pub fn bytes(&self) -> Dim {
        self.elems() * Dim::constant(4)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.scalar)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "]")
    }
}
