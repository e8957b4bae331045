//! How alike layers are: each measure against its formula, and what it must not see.

use crate::checkpoints::*;
use crate::support::Random;
use crate::tiny::Tiny;
use frit_compiler::transform::analyze::information::{Npib, diffusion_map, entropy, npib};
use frit_compiler::transform::analyze::{attention, metrics};
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::{Activations, Aid, Checkpoint, Metric, Tap, linalg};
use serde_json::json;

fn normal(rows: usize, cols: usize, seed: u64) -> Dense {
    let mut r = linalg::random::Random::new(seed);
    Dense::matrix(rows, cols, (0..rows * cols).map(|_| r.normal()).collect())
}

fn scores(c: &Checkpoint, metric: Metric, vocab: usize) -> Vec<f64> {
    let calib = tokens(vocab);
    Aid { activations: Some(&calib as &dyn Activations) }.importance(c, metric).unwrap_or_else(|e| panic!("{e}"))
}

fn scaled(x: &Dense, by: f64) -> Dense {
    Dense { data: x.data.iter().map(|v| v * by).collect(), ..x.clone() }
}

fn rotation(n: usize, seed: u64) -> Dense {
    linalg::svd(&normal(n, n, seed)).u
}

#[test]
fn row_37_cosine_does_not_see_scale_and_cka_no_rotation() {
    let (x, y) = (normal(40, 8, 1), normal(40, 8, 2));
    assert!((metrics::cosine(&scaled(&x, 3.0), &y) - metrics::cosine(&x, &y)).abs() < 1e-14);
    assert!((metrics::cosine(&x, &scaled(&x, 0.1)) - 1.0).abs() < 1e-14);
    let turned = y.times(&rotation(8, 3));
    assert!((metrics::cka(&x, &turned) - metrics::cka(&x, &y)).abs() < 1e-13);
    assert!((metrics::cka(&x, &scaled(&x.times(&rotation(8, 4)), 2.0)) - 1.0).abs() < 1e-13);
    assert!(metrics::cka(&x, &y) < 0.6);
    // The kernel form of the same: HSIC of the centred Gram matrices of tokens.
    let gram = |m: &Dense| {
        let n = m.rows();
        let g = m.times_transposed(m);
        let row = |i: usize| g.row(i).iter().sum::<f64>() / n as f64;
        let all = (0..n).map(row).sum::<f64>() / n as f64;
        Dense::matrix(n, n, (0..n * n).map(|k| g.data[k] - row(k / n) - row(k % n) + all).collect())
    };
    let (a, b) = (gram(&x), gram(&y));
    let hsic = |a: &Dense, b: &Dense| a.data.iter().zip(&b.data).map(|(a, b)| a * b).sum::<f64>();
    let want = hsic(&a, &b) / (hsic(&a, &a) * hsic(&b, &b)).sqrt();
    assert!((metrics::cka(&x, &y) - want).abs() < 1e-12);
}

#[test]
fn linearity_is_one_for_a_linear_map_and_only_for_it() {
    let x = normal(60, 7, 5);
    let mut y = x.times(&normal(7, 7, 6));
    (0..60).for_each(|i| y.row_mut(i).iter_mut().for_each(|v| *v += 4.0));
    assert!((metrics::linearity(&x, &y) - 1.0).abs() < 1e-12);
    let bent = Dense { data: y.data.iter().map(|v| v.abs()).collect(), ..y };
    let score = metrics::linearity(&x, &bent);
    assert!(score < 0.95, "{score}");
    // 1 − ‖X A − Y‖² with A of least squares.
    let unit = |m: &Dense| {
        let c = linalg::centred(m);
        scaled(&c, 1.0 / c.norm())
    };
    let (x, y) = (unit(&x), unit(&bent));
    let a = linalg::solve_spd(&linalg::gram(&x, 0.0), &x.transposed().times(&y)).unwrap();
    let rest = Dense::combine("", &[(1.0, &x.times(&a)), (-1.0, &y)]).unwrap().norm();
    assert!((score - (1.0 - rest * rest)).abs() < 1e-10);
}

#[test]
fn entropies_are_those_of_known_distributions() {
    // A uniform square of side 4 has entropy ln 16; two normal variables have 1 + ln 2π.
    let mut r = Random::new(3);
    let square = Dense::matrix(600, 2, r.floats(1200, 2.0).into_iter().map(f64::from).collect());
    assert!((entropy(&square, 3) - 16f64.ln()).abs() < 0.15, "{}", entropy(&square, 3));
    let gauss = entropy(&normal(600, 2, 8), 3);
    assert!((gauss - (1.0 + std::f64::consts::TAU.ln())).abs() < 0.15, "{gauss}");
    // Coordinates of the map: centred, of unit variance.
    let map = diffusion_map(&normal(50, 6, 9), 2);
    for j in 0..2 {
        let column: Vec<f64> = (0..50).map(|i| map.at(i, j)).collect();
        assert!(column.iter().sum::<f64>().abs() < 1e-9);
        assert!((column.iter().map(|v| v * v).sum::<f64>() / 50.0 - 1.0).abs() < 1e-9);
    }
    let (x, y) = (normal(80, 6, 10), normal(80, 6, 11));
    let by = Npib::default();
    let (own, other) = (npib(&x, &x, &by), npib(&x, &y, &by));
    assert!(own > other + 0.2, "{own} and {other}");
    assert_eq!(npib(&x, &y, &by), npib(&x, &y, &by));
    // Distances do not see a rotation.
    assert!((npib(&x.times(&rotation(6, 1)), &y, &by) - other).abs() < 1e-6);
}

#[test]
fn divergence_of_attention() {
    let uniform = Dense::matrix(1, 4, vec![0.25; 4]);
    let point = Dense::matrix(1, 4, vec![1.0, 0.0, 0.0, 0.0]);
    assert_eq!(metrics::jensen_shannon(&uniform, &uniform), 0.0);
    let want = 0.5 * (1.0f64 / 0.625).ln() + 0.5 * (0.25 * (0.25f64 / 0.625).ln() + 0.75 * 2f64.ln());
    assert!((metrics::jensen_shannon(&uniform, &point) - want).abs() < 1e-15);
    assert!((metrics::jensen_shannon(&uniform, &point) - metrics::jensen_shannon(&point, &uniform)).abs() < 1e-15);
    let t = Tiny::llama(60);
    let c = checkpoint(&t);
    let js = scores(&c, Metric::JsAttn, t.vocab);
    assert!(js[0].is_nan() && js[1..].iter().all(|s| *s > 0.0 && *s < 2f64.ln()), "{js:?}");
    // Equal layers on equal inputs attend alike: a layer that adds nothing, twice.
    let idle = idle_at(&c, 2);
    let twice = edited(&idle, json!([{ "transform": "expand-layers", "positions": 2, "init": "copy" }]));
    let js = scores(&twice, Metric::JsAttn, t.vocab);
    assert!(js[3].abs() < 1e-9 && js[4] > 1e-4, "{js:?}");
    let kv = scores(&twice, Metric::AngularKv, t.vocab);
    assert!(kv[3].abs() < 1e-7 && kv[4] > 1e-2, "{kv:?}");
    // Captured queries and keys give the attention of the model: what its output projection reads.
    let calib = tokens(t.vocab);
    let taps = [Tap::Queries(1), Tap::Keys(1), Tap::Values(1), Tap::AttentionInner(1)];
    let all = calib.capture(&c, &taps).unwrap();
    let probs = attention(&all[0], &all[1], 4, 2);
    let first = all[0].sequences[0];
    let part = |of: usize, head: usize| {
        let data = (0..first).flat_map(|s| all[of].values.row(s)[head * 16..][..16].to_vec()).collect();
        Dense::matrix(first, 16, data)
    };
    for (h, p) in probs.iter().enumerate().take(4) {
        assert!(distance(&part(3, h), &p.times(&part(2, h / 2))) < 1e-5);
    }
}

/// The model whose layer adds nothing.
fn idle_at(c: &Checkpoint, layer: usize) -> Checkpoint {
    let mut idle = c.clone();
    for part in [MAPS[3], MAPS[6]] {
        let shape = values(c, &at(layer, part)).shape;
        idle.put(&at(layer, part), &Dense::zeros(&shape));
    }
    idle
}

#[test]
fn an_idle_layer_is_the_least_important_by_every_measure() {
    let t = Tiny::sized(61, 4, 64, [4, 2, 16], 96, 97);
    let c = idle_at(&checkpoint(&t), 2);
    let pruned = edited(&c, json!([{ "transform": "prune-layers", "layers": 2 }]));
    for metric in
        [Metric::Cosine, Metric::Cka, Metric::Linearity, Metric::MacroInfluence, Metric::NormRatio, Metric::Pkd]
    {
        let s = scores(&c, metric, t.vocab);
        assert!(s[2].abs() < 1e-6, "{}: {s:?}", metric.name());
        assert!(s.iter().enumerate().all(|(i, v)| i == 2 || *v > s[2]), "{}: {s:?}", metric.name());
        let step = json!([{ "transform": "prune-layers", "auto": 1, "metric": metric.name() }]);
        same(&calibrated(&c, step, &tokens(t.vocab)), &pruned);
    }
    let said = refused(&c, json!([{ "transform": "prune-layers", "auto": 1 }]));
    assert!(said.contains("--calib"), "{said}");
}

#[test]
fn captured_states_are_what_the_model_computes() {
    let t = Tiny::llama(62);
    let c = checkpoint(&t);
    let calib = tokens(t.vocab);
    let taps = [Tap::Hidden(0), Tap::Hidden(2), Tap::FfnOut(1), Tap::AttentionOut(1), Tap::Hidden(1)];
    let states = calib.capture(&c, &taps).unwrap();
    let table = values(&c, "model.embed_tokens.weight");
    let ids: Vec<usize> = calib.sequences.concat().into_iter().map(|i| i as usize).collect();
    assert_eq!(states[0].values, table.take_rows(&ids));
    let parts = [(1.0, &states[4].values), (1.0, &states[3].values), (1.0, &states[2].values)];
    assert!(distance(&states[1].values, &Dense::combine("", &parts).unwrap()) < 1e-6);
    let cut = edited(&c, json!([{ "transform": "truncate", "layers": 2 }]));
    let end = calib.capture(&cut, &[Tap::Hidden(2)]).unwrap();
    assert!(distance(&end[0].values, &states[1].values) < 1e-6);
}

/// The entropy of rows by their definition: neighbours found by counting who lies within a distance, ψ by its asymptotic
/// series; and the similarity of two sets of rows from three of them.
#[test]
fn row_38_mka_measures_are_their_formulas() {
    let digamma = |n: f64| {
        // Far from zero the series is exact to the last bits; nearer values follow by ψ(n) = ψ(n + 1) − 1/n.
        let (mut n, mut less) = (n, 0.0);
        while n < 12.0 {
            less += 1.0 / n;
            n += 1.0;
        }
        let s = 1.0 / (n * n);
        n.ln() - 0.5 / n - s * (1.0 / 12.0 - s * (1.0 / 120.0 - s * (1.0 / 252.0 - s / 240.0))) - less
    };
    let by_counting = |columns: &[Vec<f64>], k: usize| {
        let n = columns[0].len();
        let apart = |i: usize, j: usize| columns.iter().map(|c| (c[i] - c[j]).abs()).fold(0.0, f64::max);
        let reach = |i: usize| {
            let within = |e: f64| (0..n).filter(|j| *j != i && apart(i, *j) <= e).count();
            (0..n).filter(|j| *j != i).map(|j| apart(i, j)).filter(|e| within(*e) >= k).fold(f64::INFINITY, f64::min)
        };
        let mean = (0..n).map(|i| (2.0 * reach(i)).max(1e-3).ln()).sum::<f64>() / n as f64;
        digamma(n as f64) - digamma(k as f64) + columns.len() as f64 * mean
    };
    let columns =
        |m: &Dense| (0..m.cols()).map(|j| (0..m.rows()).map(|i| m.at(i, j)).collect()).collect::<Vec<Vec<f64>>>();
    let (x, y) = (normal(90, 6, 21), normal(90, 6, 22));
    let y = Dense::combine("", &[(1.0, &x), (0.02, &y)]).unwrap();
    for k in [1, 3, 7] {
        let (got, want) = (entropy(&x, k), by_counting(&columns(&x), k));
        assert!((got - want).abs() < 1e-10, "{k}: {got} and {want}");
    }
    let by = Npib::default();
    let maps = [&x, &y].map(|m| columns(&diffusion_map(m, by.dims)));
    let floor = 1e-3f64.ln();
    let above = |c: &[Vec<f64>]| by_counting(c, by.neighbour) - c.len() as f64 * floor;
    let (hx, hy, hxy) = (above(&maps[0]), above(&maps[1]), above(&maps.concat()));
    let want = (hx + hy - hxy) / (hx * hy).sqrt();
    let got = npib(&x, &y, &by);
    assert!((got - want).abs() < 1e-10 && want > 0.05, "{got} and {want}");
}
