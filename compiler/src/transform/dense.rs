//! Matrices in f64, and their way from and to stored elements.

use super::error::{Error, Result};

/// Element types that are edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// 32 bits.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Elements {
    /// By the name that safetensors files use.
    pub fn of(kind: &str) -> Option<Elements> {
        match kind {
            "F32" => Some(Elements::F32),
            "F16" => Some(Elements::F16),
            "BF16" => Some(Elements::Bf16),
            _ => None,
        }
    }
    /// The name that safetensors files use.
    pub fn name(self) -> &'static str {
        match self {
            Elements::F32 => "F32",
            Elements::F16 => "F16",
            Elements::Bf16 => "BF16",
        }
    }
    /// Elements of little-endian bytes.
    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            Elements::F32 => {
                bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            Elements::F16 => halves().map(|h| half::f16::from_bits(h).to_f64()).collect(),
            Elements::Bf16 => halves().map(|h| half::bf16::from_bits(h).to_f64()).collect(),
        }
    }
    /// Little-endian bytes, each element rounded once.
    pub fn encode(self, values: &[f64]) -> Vec<u8> {
        match self {
            Elements::F32 => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Elements::F16 => values.iter().flat_map(|v| half::f16::from_f32(sticky(*v)).to_le_bytes()).collect(),
            Elements::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(sticky(*v)).to_le_bytes()).collect(),
        }
    }
}

/// The f32 next to `v` whose last bit is set where `v` lies between two: rounded to 16 bits it gives what `v` itself
/// rounds to, also beside a tie.
fn sticky(v: f64) -> f32 {
    let near = v as f32;
    let found = f64::from(near);
    if found == v || !near.is_finite() || near.to_bits() & 1 == 1 {
        near
    } else if found.abs() < v.abs() {
        f32::from_bits(near.to_bits() + 1)
    } else {
        f32::from_bits(near.to_bits() - 1)
    }
}

/// A tensor in f64, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Vec<f64>,
}

impl Dense {
    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Dense {
        Dense { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] }
    }
    /// A matrix by its rows.
    pub fn matrix(rows: usize, cols: usize, data: Vec<f64>) -> Dense {
        debug_assert_eq!(data.len(), rows * cols);
        Dense { shape: vec![rows, cols], data }
    }
    /// A vector.
    pub fn vector(data: Vec<f64>) -> Dense {
        Dense { shape: vec![data.len()], data }
    }
    /// The unit matrix.
    pub fn identity(n: usize) -> Dense {
        let mut m = Dense::zeros(&[n, n]);
        (0..n).for_each(|i| m.data[i * n + i] = 1.0);
        m
    }
    /// The first dimension.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }
    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.shape.get(1..).map_or(1, |rest| rest.iter().product())
    }
    /// A row.
    pub fn row(&self, i: usize) -> &[f64] {
        let n = self.cols();
        &self.data[i * n..(i + 1) * n]
    }
    /// A row, to be changed.
    pub fn row_mut(&mut self, i: usize) -> &mut [f64] {
        let n = self.cols();
        &mut self.data[i * n..(i + 1) * n]
    }
    /// The element at a row and a column.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.data[i * self.cols() + j]
    }
    /// The transpose of a matrix.
    pub fn transposed(&self) -> Dense {
        let (r, c) = (self.rows(), self.cols());
        let data = (0..r * c).map(|i| self.data[i % r * c + i / r]).collect();
        Dense { shape: vec![c, r], data }
    }
    /// `self · other`.
    pub fn times(&self, other: &Dense) -> Dense {
        let (m, k, n) = (self.rows(), self.cols(), other.cols());
        debug_assert_eq!(k, other.rows());
        let mut out = Dense::zeros(&[m, n]);
        for i in 0..m {
            let to = &mut out.data[i * n..(i + 1) * n];
            for (l, a) in self.row(i).iter().enumerate().filter(|(_, a)| **a != 0.0) {
                to.iter_mut().zip(other.row(l)).for_each(|(t, b)| *t += a * b);
            }
        }
        out
    }
    /// `self · otherᵀ`.
    pub fn times_transposed(&self, other: &Dense) -> Dense {
        let data = (0..self.rows()).flat_map(|i| (0..other.rows()).map(move |j| (i, j)));
        let data = data.map(|(i, j)| self.row(i).iter().zip(other.row(j)).map(|(a, b)| a * b).sum()).collect();
        Dense { shape: vec![self.rows(), other.rows()], data }
    }
    /// Some rows, in this order.
    pub fn take_rows(&self, rows: &[usize]) -> Dense {
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        Dense { shape, data: rows.iter().flat_map(|i| self.row(*i)).copied().collect() }
    }
    /// Some columns of a matrix, in this order.
    pub fn take_cols(&self, cols: &[usize]) -> Dense {
        let data =
            (0..self.rows()).flat_map(|i| cols.iter().map(move |j| (i, *j))).map(|(i, j)| self.at(i, j)).collect();
        Dense { shape: vec![self.rows(), cols.len()], data }
    }
    /// `Σ wᵢ · mᵢ` over tensors of one shape.
    ///
    /// # Errors
    /// Shapes that differ, or nothing to add.
    pub fn combine(what: &str, terms: &[(f64, &Dense)]) -> Result<Dense> {
        let shape = terms.first().map(|(_, m)| m.shape.clone()).unwrap_or_default();
        if let Some((_, other)) = terms.iter().find(|(_, m)| m.shape != shape) {
            let problem = format!("tensors of shape {shape:?} and {:?} cannot be combined", other.shape);
            return Err(Error::Refused { step: what.into(), problems: vec![problem] });
        }
        let mut out = Dense::zeros(&shape);
        for (w, m) in terms {
            out.data.iter_mut().zip(&m.data).for_each(|(o, v)| *o += w * v);
        }
        Ok(out)
    }
    /// The sum of squares, rooted.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|v| v * v).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside a tie the last bits of an f64 decide.
    #[test]
    fn sixteen_bits_are_rounded_once() {
        let rounded = |e: Elements, v: f64| e.decode(&e.encode(&[v])).first().copied().unwrap_or(f64::NAN);
        for (e, ulp) in [(Elements::Bf16, 2f64.powi(-7)), (Elements::F16, 2f64.powi(-10))] {
            let tie = 1.0 + ulp / 2.0;
            let little = 2f64.powi(-45);
            assert_eq!(rounded(e, tie), 1.0, "{e:?}: to even");
            assert_eq!(rounded(e, tie + little), 1.0 + ulp, "{e:?}");
            assert_eq!(rounded(e, tie - little), 1.0, "{e:?}");
            assert_eq!(rounded(e, -tie - little), -1.0 - ulp, "{e:?}");
            assert_eq!(rounded(e, 0.0), 0.0);
            assert_eq!(rounded(e, 1e300), f64::INFINITY);
            assert!(rounded(e, f64::NAN).is_nan());
        }
        assert_eq!(rounded(Elements::F16, 2f64.powi(-25)), 0.0, "half of the smallest, to even");
        assert_eq!(rounded(Elements::F16, 2f64.powi(-25) + 2f64.powi(-60)), 2f64.powi(-24));
    }
}
