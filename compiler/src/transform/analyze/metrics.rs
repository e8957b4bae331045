//! Measures of two sets of rows, one row a token.

use crate::transform::dense::Dense;
use crate::transform::linalg;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn mean_over_rows(x: &Dense, f: impl Fn(usize) -> f64) -> f64 {
    (0..x.rows()).map(f).sum::<f64>() / x.rows().max(1) as f64
}

/// The cosine of rows, averaged; 1 for two rows of zeros.
pub fn cosine(x: &Dense, y: &Dense) -> f64 {
    mean_over_rows(x, |i| {
        let (a, b) = (x.row(i), y.row(i));
        let lengths = (dot(a, a) * dot(b, b)).sqrt();
        if lengths > 0.0 { dot(a, b) / lengths } else { f64::from(u8::from(a == b)) }
    })
}

/// Linear centred kernel alignment: `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` of centred columns. 1 for a rotation or a scaling.
pub fn cka(x: &Dense, y: &Dense) -> f64 {
    let (x, y) = (linalg::centred(x).transposed(), linalg::centred(y).transposed());
    let cross = x.times_transposed(&y).norm();
    let own = x.times_transposed(&x).norm() * y.times_transposed(&y).norm();
    if own > 0.0 { cross * cross / own } else { 1.0 }
}

/// `1 − min_A ‖X A − Y‖²` of centred rows scaled to norm 1: 1 for a linear map.
pub fn linearity(x: &Dense, y: &Dense) -> f64 {
    let unit = |m: &Dense| {
        let mut m = linalg::centred(m);
        let n = m.norm();
        if n > 0.0 {
            m.data.iter_mut().for_each(|v| *v /= n);
        }
        m
    };
    let (x, y) = (unit(x), unit(y));
    // The residual is what of Y lies outside the span of X's columns; directions below this share of the largest are noise.
    const CUT: f64 = 1e-10;
    let d = linalg::svd(&x);
    let rank = d.s.iter().filter(|s| **s > CUT * d.s.first().copied().unwrap_or(0.0)).count();
    let basis = d.u.take_cols(&(0..rank).collect::<Vec<_>>());
    let inside = basis.transposed().times(&y).norm();
    if y.norm() > 0.0 { inside * inside } else { 1.0 }
}

/// `‖y − x‖ / ‖x‖`, averaged.
pub fn norm_ratio(x: &Dense, y: &Dense) -> f64 {
    mean_over_rows(x, |i| {
        let change: f64 = x.row(i).iter().zip(y.row(i)).map(|(a, b)| (b - a) * (b - a)).sum();
        let length = dot(x.row(i), x.row(i));
        if length > 0.0 { (change / length).sqrt() } else { f64::INFINITY }
    })
}

/// `‖x/‖x‖ − y/‖y‖‖²`, averaged: the loss between hidden states of patient distillation.
pub fn pkd(x: &Dense, y: &Dense) -> f64 {
    mean_over_rows(x, |i| {
        let (a, b) = (x.row(i), y.row(i));
        let (la, lb) = (dot(a, a).sqrt(), dot(b, b).sqrt());
        let part = |v: f64, l: f64| if l > 0.0 { v / l } else { 0.0 };
        a.iter().zip(b).map(|(a, b)| (part(*a, la) - part(*b, lb)).powi(2)).sum()
    })
}

/// The angle between rows over π, averaged.
pub fn angular(x: &Dense, y: &Dense) -> f64 {
    mean_over_rows(x, |i| {
        let lengths = (dot(x.row(i), x.row(i)) * dot(y.row(i), y.row(i))).sqrt();
        let cos = if lengths > 0.0 { dot(x.row(i), y.row(i)) / lengths } else { 1.0 };
        cos.clamp(-1.0, 1.0).acos() / std::f64::consts::PI
    })
}

/// The Jensen-Shannon divergence of rows that are distributions, in nats, averaged.
pub fn jensen_shannon(p: &Dense, q: &Dense) -> f64 {
    let term = |a: f64, m: f64| if a > 0.0 { a * (a / m).ln() } else { 0.0 };
    mean_over_rows(p, |i| {
        p.row(i).iter().zip(q.row(i)).map(|(a, b)| (term(*a, (a + b) / 2.0) + term(*b, (a + b) / 2.0)) / 2.0).sum()
    })
}

/// The Kullback-Leibler divergence `Σ p ln(p/q)` of the softmax of rows of logits, in nats, averaged.
pub fn logit_divergence(p: &Dense, q: &Dense) -> f64 {
    mean_over_rows(p, |i| {
        let (a, b) = (log_softmax(p.row(i)), log_softmax(q.row(i)));
        a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum()
    })
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = row.iter().map(|v| (v - most).exp()).sum::<f64>().ln();
    row.iter().map(|v| v - most - sum).collect()
}

/// The share of rows whose largest element is at the same place.
pub fn top_agreement(p: &Dense, q: &Dense) -> f64 {
    let top = |row: &[f64]| {
        row.iter().enumerate().fold((0, f64::NEG_INFINITY), |m, (i, v)| if *v > m.1 { (i, *v) } else { m }).0
    };
    mean_over_rows(p, |i| f64::from(u8::from(top(p.row(i)) == top(q.row(i)))))
}

/// `‖y − x‖ / ‖x‖` of all elements.
pub fn relative_error(x: &Dense, y: &Dense) -> f64 {
    let change: f64 = x.data.iter().zip(&y.data).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm = x.norm();
    if norm > 0.0 { change.sqrt() / norm } else { change.sqrt() }
}
