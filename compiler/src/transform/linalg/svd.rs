//! The singular value decomposition, by one-sided Jacobi rotations: accurate to the last bits also for small singular
//! values, O(m n² · sweeps) with n the smaller dimension.

use crate::transform::dense::Dense;

/// `A = U diag(s) Vᵀ`, singular values descending. In each column of V the element of largest magnitude is positive.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// `[m, r]`, r the smaller dimension.
    pub u: Dense,
    /// r values.
    pub s: Vec<f64>,
    /// `[n, r]`.
    pub v: Dense,
}

/// Decomposes a matrix.
pub fn svd(a: &Dense) -> Svd {
    if a.rows() < a.cols() {
        let Svd { u, s, v } = svd(&a.transposed());
        return signed(Svd { u: v, s, v: u });
    }
    let (m, n) = (a.rows(), a.cols());
    // Columns lie one after the other, so that a rotation walks over contiguous memory.
    let mut columns: Vec<Vec<f64>> = (0..n).map(|j| (0..m).map(|i| a.at(i, j)).collect()).collect();
    let mut right: Vec<Vec<f64>> = (0..n).map(|j| (0..n).map(|i| f64::from(u8::from(i == j))).collect()).collect();
    const SWEEPS: usize = 60;
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
                let (alpha, beta) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                let gamma = dot(&columns[p], &columns[q]);
                if gamma.abs() <= 1e-15 * (alpha * beta).sqrt() || gamma == 0.0 {
                    continue;
                }
                rotated = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                rotate(&mut columns, p, q, c, c * t);
                rotate(&mut right, p, q, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut order: Vec<(f64, usize)> = columns.iter().enumerate().map(|(j, c)| (length(c), j)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut out = Svd { u: Dense::zeros(&[m, n]), s: Vec::with_capacity(n), v: Dense::zeros(&[n, n]) };
    for (k, (s, j)) in order.into_iter().enumerate() {
        out.s.push(s);
        for (i, x) in columns[j].iter().enumerate() {
            out.u.data[i * n + k] = if s > 0.0 { x / s } else { 0.0 };
        }
        for (i, x) in right[j].iter().enumerate() {
            out.v.data[i * n + k] = *x;
        }
    }
    signed(out)
}

fn rotate(columns: &mut [Vec<f64>], p: usize, q: usize, c: f64, s: f64) {
    let (low, high) = columns.split_at_mut(q);
    for (x, y) in low[p].iter_mut().zip(&mut high[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn signed(mut d: Svd) -> Svd {
    for k in 0..d.s.len() {
        let n = d.v.cols();
        let largest =
            (0..d.v.rows()).map(|i| d.v.data[i * n + k]).fold(0.0f64, |m, v| if v.abs() > m.abs() { v } else { m });
        if largest < 0.0 {
            (0..d.v.rows()).for_each(|i| d.v.data[i * n + k] *= -1.0);
            let m = d.u.cols();
            (0..d.u.rows()).for_each(|i| d.u.data[i * m + k] *= -1.0);
        }
    }
    d
}

impl Svd {
    /// The product of the first `rank` terms as two factors: `B = U_r diag(s_r)` `[m, r]` and `A = V_rᵀ` `[r, n]`.
    pub fn factors(&self, rank: usize) -> (Dense, Dense) {
        let kept: Vec<usize> = (0..rank.min(self.s.len())).collect();
        let mut b = self.u.take_cols(&kept);
        for i in 0..b.rows() {
            b.row_mut(i).iter_mut().zip(&self.s).for_each(|(v, s)| *v *= s);
        }
        (b, self.v.take_cols(&kept).transposed())
    }
}
