//! The similarity of layers by the information that their states have in common.
//!
//! States are brought to few dimensions by a diffusion map, and entropies are estimated from distances of nearest
//! neighbours (Kozachenko and Leonenko). The published measure leaves dimensions, neighbours and scales open; what is
//! used here is written down in [`Npib`].

use crate::transform::dense::Dense;
use crate::transform::linalg;

/// Settings of [`npib`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Npib {
    /// Coordinates of the diffusion map.
    pub dims: usize,
    /// Which neighbour's distance counts.
    pub neighbour: usize,
    /// Rows used at most, evenly spread: the cost grows with their cube.
    pub rows: usize,
}

impl Default for Npib {
    fn default() -> Npib {
        Npib { dims: 2, neighbour: 3, rows: 192 }
    }
}

/// `I(X;Y) / √(H(X) H(Y))`, between 0 and 1, with entropies in nats of the coordinates scaled to unit variance and shifted
/// so that a set of equal rows has entropy 0. Two sets without any entropy are equal.
pub fn npib(x: &Dense, y: &Dense, by: &Npib) -> f64 {
    let n = x.rows().min(by.rows);
    let some: Vec<usize> = (0..n).map(|i| i * x.rows() / n.max(1)).collect();
    let (x, y) = (diffusion_map(&x.take_rows(&some), by.dims), diffusion_map(&y.take_rows(&some), by.dims));
    let joint = beside(&x, &y);
    let (hx, hy, hxy) = (entropy(&x, by.neighbour), entropy(&y, by.neighbour), entropy(&joint, by.neighbour));
    // Differential entropies of d coordinates may be negative; counted from this floor they are like discrete ones.
    let floor = |d: usize| d as f64 * FLOOR.ln();
    let (hx, hy, hxy) = (hx - floor(x.cols()), hy - floor(y.cols()), hxy - floor(joint.cols()));
    let shared = (hx + hy - hxy).max(0.0);
    let own = (hx.max(0.0) * hy.max(0.0)).sqrt();
    if own > 0.0 { (shared / own).clamp(0.0, 1.0) } else { 1.0 }
}

/// The resolution below which rows count as equal, in standard deviations.
const FLOOR: f64 = 1e-3;

fn beside(x: &Dense, y: &Dense) -> Dense {
    let data: Vec<f64> = (0..x.rows()).flat_map(|i| x.row(i).iter().chain(y.row(i))).copied().collect();
    Dense::matrix(x.rows(), x.cols() + y.cols(), data)
}

/// Coordinates of a diffusion map: kernel `exp(−√(D/σ))` with D squared distances and σ their median, normalised by the
/// densities on both sides; the leading singular vectors without the first, scaled to unit variance.
pub fn diffusion_map(x: &Dense, dims: usize) -> Dense {
    let n = x.rows();
    let square = |i: usize, j: usize| x.row(i).iter().zip(x.row(j)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let distances: Vec<f64> = (0..n * n).map(|k| square(k / n.max(1), k % n.max(1))).collect();
    let mut sorted: Vec<f64> = distances.iter().copied().filter(|d| *d > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    let sigma = sorted.get(sorted.len() / 2).copied().unwrap_or(1.0);
    let mut kernel = Dense::matrix(n, n, distances.iter().map(|d| (-(d / sigma).sqrt()).exp()).collect());
    for _ in 0..2 {
        let density: Vec<f64> = (0..n).map(|i| kernel.row(i).iter().sum::<f64>().sqrt()).collect();
        for i in 0..n {
            kernel.row_mut(i).iter_mut().enumerate().for_each(|(j, k)| *k /= density[i] * density[j]);
        }
    }
    let d = linalg::svd(&kernel);
    let kept: Vec<usize> = (1..=dims).filter(|k| *k < d.s.len()).collect();
    let mut out = linalg::centred(&d.u.take_cols(&kept));
    for j in 0..kept.len() {
        let deviation = ((0..n).map(|i| out.at(i, j).powi(2)).sum::<f64>() / n.max(1) as f64).sqrt();
        if deviation > 0.0 {
            let cols = out.cols();
            (0..n).for_each(|i| out.data[i * cols + j] /= deviation);
        }
    }
    out
}

/// The differential entropy in nats of the distribution that rows are drawn from, by distances to the k-th neighbour in
/// the maximum norm: `ψ(n) − ψ(k) + d · mean ln(2 ε)`.
pub fn entropy(x: &Dense, k: usize) -> f64 {
    let (n, d) = (x.rows(), x.cols());
    if n <= k || d == 0 {
        return 0.0;
    }
    let mut sum = 0.0;
    for i in 0..n {
        let far = |j: usize| x.row(i).iter().zip(x.row(j)).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        let mut distances: Vec<f64> = (0..n).filter(|j| *j != i).map(far).collect();
        distances.sort_by(f64::total_cmp);
        sum += (2.0 * distances[k - 1].max(FLOOR / 2.0)).ln();
    }
    digamma(n) - digamma(k) + d as f64 * sum / n as f64
}

/// ψ of a positive whole number: `−γ + Σ 1/i`.
fn digamma(n: usize) -> f64 {
    const EULER: f64 = 0.577_215_664_901_532_9;
    (1..n).map(|i| 1.0 / i as f64).sum::<f64>() - EULER
}
