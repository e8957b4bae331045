#![allow(clippy::unwrap_used)]
use super::cluster::{agglomerate, kmeans};
use super::random::Random;
use super::*;

fn matrix(rows: usize, cols: usize, seed: u64) -> Dense {
    let mut r = Random::new(seed);
    Dense::matrix(rows, cols, (0..rows * cols).map(|_| r.normal()).collect())
}

fn far(a: &Dense, b: &Dense) -> f64 {
    a.data.iter().zip(&b.data).fold(0.0, |m: f64, (x, y)| m.max((x - y).abs()))
}

#[test]
fn the_factors_of_full_rank_are_the_matrix() {
    for (rows, cols) in [(7, 5), (5, 7), (6, 6), (1, 4), (33, 17)] {
        let a = matrix(rows, cols, 3);
        let d = svd(&a);
        let (b, c) = d.factors(rows.min(cols));
        assert!(far(&b.times(&c), &a) < 1e-13, "{rows}×{cols}");
        assert!(d.s.windows(2).all(|w| w[0] >= w[1]));
        let unit = d.v.transposed().times(&d.v);
        assert!(far(&unit, &Dense::identity(unit.rows())) < 1e-13);
    }
}

#[test]
fn a_matrix_of_low_rank_has_zero_singular_values() {
    let a = matrix(9, 2, 1).times(&matrix(2, 8, 2));
    let d = svd(&a);
    assert!(d.s[2..].iter().all(|s| *s < 1e-13), "{:?}", d.s);
    let (b, c) = d.factors(2);
    assert!(far(&b.times(&c), &a) < 1e-13);
}

#[test]
fn a_system_is_solved_and_a_singular_one_refused() {
    let x = matrix(20, 6, 5);
    let g = gram(&x, 0.0);
    let b = matrix(6, 3, 6);
    assert!(far(&g.times(&solve_spd(&g, &b).unwrap()), &b) < 1e-11);
    assert_eq!(solve_spd(&gram(&matrix(3, 6, 7), 0.0), &b), None);
}

#[test]
fn an_affine_map_is_found_again() {
    let (w, x) = (matrix(4, 6, 1), matrix(40, 6, 2));
    let mut y = x.times_transposed(&w);
    (0..40).for_each(|i| y.row_mut(i).iter_mut().enumerate().for_each(|(j, v)| *v += j as f64));
    let (found, bias) = affine_fit(&x, &y, 0.0).unwrap();
    assert!(far(&found, &w) < 1e-12);
    assert!(bias.iter().enumerate().all(|(j, b)| (b - j as f64).abs() < 1e-12));
}

#[test]
fn equal_rows_fall_into_one_cluster() {
    let base = matrix(4, 5, 9);
    let rows = base.take_rows(&[0, 1, 0, 2, 3, 3, 1]);
    let want = [0, 1, 0, 2, 3, 3, 1];
    assert_eq!(kmeans(&rows, 4, 0), want);
    assert_eq!(kmeans(&rows, 4, 77), want);
    assert_eq!(agglomerate(&rows, 4), want);
    assert_eq!(kmeans(&rows, 7, 0), [0, 1, 2, 3, 4, 5, 6]);
    let clusters = kmeans(&matrix(30, 3, 4), 8, 1);
    assert_eq!(clusters, kmeans(&matrix(30, 3, 4), 8, 1));
    assert!((0..8).all(|k| clusters.contains(&k)));
}
