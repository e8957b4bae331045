//! Clusters of rows: k-means from a seed, and agglomeration by Ward's criterion. Both are deterministic.

use super::random::Random;
use crate::transform::dense::Dense;

/// The cluster of each row, numbered in the order of their first rows; exactly `k` of them, none empty.
pub fn kmeans(rows: &Dense, k: usize, seed: u64) -> Vec<usize> {
    let n = rows.rows();
    if k >= n {
        return (0..n).collect();
    }
    let mut random = Random::new(seed);
    let mut centres: Vec<Vec<f64>> = vec![rows.row(random.below(n)).to_vec()];
    let mut nearest: Vec<f64> = (0..n).map(|i| distance(rows.row(i), &centres[0])).collect();
    while centres.len() < k {
        let total: f64 = nearest.iter().sum();
        let mut left = random.unit() * total;
        let next = nearest
            .iter()
            .position(|d| {
                left -= d;
                *d > 0.0 && left <= 0.0
            })
            .unwrap_or_else(|| farthest(&nearest));
        centres.push(rows.row(next).to_vec());
        let newest = centres[centres.len() - 1].clone();
        for (i, d) in nearest.iter_mut().enumerate() {
            *d = d.min(distance(rows.row(i), &newest));
        }
    }
    let mut of: Vec<usize> = vec![0; n];
    const ROUNDS: usize = 100;
    for round in 0..ROUNDS {
        let best = |i: usize| {
            let d = centres.iter().map(|c| distance(rows.row(i), c));
            d.enumerate().fold((0, f64::INFINITY), |m, (j, d)| if d < m.1 { (j, d) } else { m })
        };
        let mut found: Vec<(usize, f64)> = (0..n).map(best).collect();
        for j in 0..k {
            if !found.iter().any(|(c, _)| *c == j) {
                let alone: Vec<f64> = found
                    .iter()
                    .map(|(c, d)| if found.iter().filter(|(o, _)| o == c).count() > 1 { *d } else { -1.0 })
                    .collect();
                found[farthest(&alone)] = (j, 0.0);
            }
        }
        let next: Vec<usize> = found.into_iter().map(|(c, _)| c).collect();
        if next == of && round > 0 {
            break;
        }
        of = next;
        for (j, centre) in centres.iter_mut().enumerate() {
            *centre = mean_of(rows, &of, j);
        }
    }
    numbered(&of)
}

/// As [`kmeans`], by joining the two clusters whose union adds least to the squared distances from the means.
pub fn agglomerate(rows: &Dense, k: usize) -> Vec<usize> {
    let n = rows.rows();
    let mut of: Vec<usize> = (0..n).collect();
    let mut live: Vec<(usize, f64, Vec<f64>)> = (0..n).map(|i| (i, 1.0, rows.row(i).to_vec())).collect();
    while live.len() > k.max(1) {
        let mut best = (0, 1, f64::INFINITY);
        for a in 0..live.len() {
            for b in a + 1..live.len() {
                let (na, nb) = (live[a].1, live[b].1);
                let cost = na * nb / (na + nb) * distance(&live[a].2, &live[b].2);
                if cost < best.2 {
                    best = (a, b, cost);
                }
            }
        }
        let (gone, size, mean) = live.remove(best.1);
        let (kept, n, centre) = &mut live[best.0];
        centre.iter_mut().zip(&mean).for_each(|(c, m)| *c = (*n * *c + size * m) / (*n + size));
        *n += size;
        let kept = *kept;
        of.iter_mut().filter(|c| **c == gone).for_each(|c| *c = kept);
    }
    numbered(&of)
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

fn farthest(d: &[f64]) -> usize {
    (0..d.len()).fold(0, |m, i| if d[i] > d[m] { i } else { m })
}

fn mean_of(rows: &Dense, of: &[usize], cluster: usize) -> Vec<f64> {
    let mut mean = vec![0.0; rows.cols()];
    let members: Vec<usize> = (0..of.len()).filter(|i| of[*i] == cluster).collect();
    for i in &members {
        mean.iter_mut().zip(rows.row(*i)).for_each(|(m, v)| *m += v);
    }
    mean.iter_mut().for_each(|m| *m /= members.len().max(1) as f64);
    mean
}

fn numbered(of: &[usize]) -> Vec<usize> {
    let mut names: Vec<usize> = Vec::new();
    of.iter()
        .map(|c| {
            names.iter().position(|n| n == c).unwrap_or_else(|| {
                names.push(*c);
                names.len() - 1
            })
        })
        .collect()
}
