//! Dense linear algebra in f64: what transforms and metrics need, deterministic on every machine.

pub mod cluster;
pub mod random;
mod svd;

pub use svd::{Svd, svd};

use super::dense::Dense;

/// Solves `A X = B` for symmetric positive definite A by Cholesky; `None` where A is not.
pub fn solve_spd(a: &Dense, b: &Dense) -> Option<Dense> {
    let n = a.rows();
    let mut l = Dense::zeros(&[n, n]);
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = l.row(i)[..j].iter().zip(&l.row(j)[..j]).map(|(x, y)| x * y).sum();
            let rest = a.at(i, j) - dot;
            if i == j {
                if rest.is_nan() || rest <= a.at(i, i).abs() * 1e-14 {
                    return None;
                }
                l.data[i * n + i] = rest.sqrt();
            } else {
                l.data[i * n + j] = rest / l.at(j, j);
            }
        }
    }
    let m = b.cols();
    let mut x = b.clone();
    for i in 0..n {
        for k in 0..i {
            let factor = l.at(i, k);
            for c in 0..m {
                x.data[i * m + c] -= factor * x.data[k * m + c];
            }
        }
        x.row_mut(i).iter_mut().for_each(|v| *v /= l.at(i, i));
    }
    for i in (0..n).rev() {
        for k in i + 1..n {
            let factor = l.at(k, i);
            for c in 0..m {
                x.data[i * m + c] -= factor * x.data[k * m + c];
            }
        }
        x.row_mut(i).iter_mut().for_each(|v| *v /= l.at(i, i));
    }
    Some(x)
}

/// `XᵀX + λ·mean(diag)·I` of rows X.
pub fn gram(x: &Dense, ridge: f64) -> Dense {
    let t = x.transposed();
    let mut g = t.times_transposed(&t);
    let n = g.rows();
    let mean = (0..n).map(|i| g.at(i, i)).sum::<f64>() / n.max(1) as f64;
    (0..n).for_each(|i| g.data[i * n + i] += ridge * mean);
    g
}

/// The mean of each column.
pub fn column_means(x: &Dense) -> Vec<f64> {
    let mut mean = vec![0.0; x.cols()];
    for i in 0..x.rows() {
        mean.iter_mut().zip(x.row(i)).for_each(|(m, v)| *m += v);
    }
    mean.iter_mut().for_each(|m| *m /= x.rows().max(1) as f64);
    mean
}

/// Rows less the mean of each column.
pub fn centred(x: &Dense) -> Dense {
    let mean = column_means(x);
    let mut out = x.clone();
    (0..out.rows()).for_each(|i| out.row_mut(i).iter_mut().zip(&mean).for_each(|(v, m)| *v -= m));
    out
}

/// The affine map of least squares from rows of `x` to rows of `y`: `W` `[out, in]` and `b`, with `Wᵀ = (XᵀX + λI)⁻¹XᵀY`
/// of the centred rows. `None` where they do not determine it.
pub fn affine_fit(x: &Dense, y: &Dense, ridge: f64) -> Option<(Dense, Vec<f64>)> {
    let (mx, my) = (column_means(x), column_means(y));
    let (cx, cy) = (centred(x), centred(y));
    let w = solve_spd(&gram(&cx, ridge), &cx.transposed().times(&cy))?.transposed();
    let moved = w.times(&Dense::matrix(mx.len(), 1, mx));
    let bias = my.iter().zip(&moved.data).map(|(y, m)| y - m).collect();
    Some((w, bias))
}

#[cfg(test)]
mod tests;
