//! Arrays of float64 with the element type of the format, walked element by element.

use crate::onnx_file::Element;

/// A dense array in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Nd {
    pub kind: Element,
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// What an operator gives; nothing where it is not defined or stands too near a jump of its value.
pub type Answer = Option<Nd>;

impl Nd {
    pub fn new(kind: Element, shape: &[usize], data: Vec<f64>) -> Nd {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?}");
        Nd { kind, shape: shape.to_vec(), data }
    }
    /// An array whose element at each index is computed.
    pub fn build(kind: Element, shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Nd {
        Nd::try_build(kind, shape, |i| Some(f(i))).unwrap()
    }
    /// [`Nd::build`], unless there is an index without an element.
    pub fn try_build(kind: Element, shape: &[usize], mut f: impl FnMut(&[usize]) -> Option<f64>) -> Answer {
        let data: Option<Vec<f64>> = indices(shape).map(|i| f(&i)).collect();
        Some(Nd::new(kind, shape, data?))
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    pub fn is_float(&self) -> bool {
        self.kind == Element::Float
    }
    /// The element at an index.
    pub fn at(&self, index: &[usize]) -> f64 {
        assert_eq!(index.len(), self.rank());
        self.data[index.iter().zip(&self.shape).fold(0, |at, (i, n)| at * n + i)]
    }
    /// The element that stands at an index of a shape to which this array is stretched.
    pub fn stretched(&self, index: &[usize]) -> f64 {
        let own: Vec<usize> = index[index.len() - self.rank()..]
            .iter()
            .zip(&self.shape)
            .map(|(i, n)| if *n == 1 { 0 } else { *i })
            .collect();
        self.at(&own)
    }
    /// The integers of a list.
    pub fn ints(&self) -> Vec<i64> {
        self.data.iter().map(|v| *v as i64).collect()
    }
    /// Floats to the nearest F32.
    pub fn rounded(mut self) -> Nd {
        if self.is_float() {
            self.data.iter_mut().for_each(|v| *v = f64::from(*v as f32));
        }
        self
    }
}

/// All indices of a shape, the last axis fastest.
pub fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
    let shape = shape.to_vec();
    (0..shape.iter().product::<usize>()).map(move |mut flat| {
        let mut index = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            index[axis] = flat % shape[axis];
            flat /= shape[axis];
        }
        index
    })
}

/// The shape to which shapes are stretched together.
pub fn broadcast(shapes: &[&[usize]]) -> Option<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max()?;
    let mut out = vec![1; rank];
    for s in shapes {
        for (o, n) in out[rank - s.len()..].iter_mut().zip(*s) {
            match (*o, *n) {
                (1, n) => *o = n,
                (o, n) if o == n || n == 1 => {}
                _ => return None,
            }
        }
    }
    Some(out)
}

/// An axis that may count from the end.
pub fn axis(a: i64, rank: usize) -> usize {
    if a < 0 { (a + rank as i64) as usize } else { a as usize }
}

/// An index with one entry replaced.
pub fn with(index: &[usize], axis: usize, i: usize) -> Vec<usize> {
    let mut out = index.to_vec();
    out[axis] = i;
    out
}
