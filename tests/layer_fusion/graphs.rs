//! Family H, and what no checkpoint format carries: encoders, neighbours gathered, heads that share one matrix. Graphs
//! are built by hand, and so is what they should give.

use crate::checkpoints::{bert, compiled};
use crate::harness::{BACKENDS, session, tokens, verified};
use crate::stacks::{Written, defined};
use crate::support::{self, Random};
use frit::{BackendChoice, LoadedModel, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::graph::{AttentionAttrs, Float, NormKind, ValueId};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::transform::Tied;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{ReduceOp, UnaryOp};

fn build(name: &str, graph: impl FnOnce(&mut GraphBuilder<'_>)) -> LoadedModel {
    let mut m = ModelBuilder::new(name);
    m.graph("forward", graph);
    support::compile(&m.finish().unwrap_or_else(|e| panic!("{e}")))
}

fn run(m: &LoadedModel, backend: BackendChoice, inputs: &[(&str, Tensor)]) -> Vec<f32> {
    let out = session(m, backend).run(inputs).unwrap_or_else(|e| panic!("{e}"));
    out[0].1.as_f32().unwrap().to_vec()
}

fn launches(m: &LoadedModel) -> usize {
    m.plan.program("forward").unwrap().steps.len()
}

/// T1: within 1e-5 of the largest element.
fn close(got: &[f32], want: &[f64], what: &str) {
    let most = want.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= 1e-5 * most, "{what}: element {i} is {g}, {w} expected");
    }
}

/// A layer of BERT is five launches, and rows that are filled up give what they give alone.
#[test]
fn row_25_fastertransformer_fuses_a_layer_into_five_launches() {
    let m = compiled(&bert(), Tied::Once);
    // Twelve layers, the embedding with its norm, and what the pooler takes.
    assert!(launches(&m) <= 7 * 12, "{}", launches(&m));
    assert_eq!((launches(&m) - 5 * 12).min(3), launches(&m) - 5 * 12, "{} launches", launches(&m));
    let rows = [tokens(1, 9, 61), tokens(2, 5, 61), tokens(3, 7, 61)];
    let batch = |rows: &[Vec<i32>], len: usize| {
        let filled = rows.iter().flat_map(|r| r.iter().copied().chain(std::iter::repeat_n(0, len - r.len())));
        let mask = rows.iter().flat_map(|r| (0..len).map(|i| i32::from(i < r.len())));
        let shape = [rows.len() as u64, len as u64];
        [("input_ids", filled.collect::<Vec<_>>()), ("attention_mask", mask.collect())]
            .map(|(n, v)| (n, Tensor::i32(&shape, v).unwrap()))
    };
    for backend in BACKENDS {
        let padded = run(&m, backend, &batch(&rows, 9));
        for (i, row) in rows.iter().enumerate() {
            let alone = run(&m, backend, &batch(std::slice::from_ref(row), row.len()));
            let wide: Vec<f64> = alone.iter().map(|v| f64::from(*v)).collect();
            close(&padded[i * 9 * 32..][..row.len() * 32], &wide, "a row among others");
        }
        // Rows of full length: the mask says nothing.
        let full = [tokens(4, 9, 61), tokens(5, 9, 61)];
        let [ids, mask] = batch(&full, 9);
        assert_eq!(run(&m, backend, &[ids.clone(), mask]), run(&m, backend, &[ids]), "{backend:?}");
    }
}

/// BERT as it is defined, two rows at once.
#[test]
fn row_25_fastertransformer_is_the_encoder() {
    let c = bert();
    let rows = [tokens(251, 10, 61), tokens(252, 10, 61)];
    let written = Written::of(&c, 4);
    let want: Vec<_> = rows.iter().map(|r| written.bert(r, 12)).collect();
    defined(&compiled(&c, Tied::Once), &[("input_ids", &rows)], &want);
}

/// Norms in front of a product, fused with it and not, of rows whose mean is far from 0: within what rounding of the rows
/// themselves allows, which a variance by E[x²] − μ² is not.
#[test]
fn lt_01_norms_of_rows_far_from_zero() {
    let (rows, k, n) = (5usize, 1024usize, 24usize);
    let mut r = Random::new(101);
    let [w, gain, bias] = [(n * k, 0.05f32), (k, 1.0), (k, 1.0)].map(|(len, s)| r.floats(len as u64, s));
    for (kind, means) in [
        (NormKind::Layer, &[(0.0f32, 2e-6), (30.0, 5e-5), (1000.0, 1.5e-3)][..]),
        (NormKind::Rms, &[(0.0, 2e-6), (30.0, 2e-6)]),
    ] {
        let built = |fusion: FusionOptions| {
            let mut m = ModelBuilder::new("norm");
            let [w, gain, bias] =
                [("w", vec![n as u64, k as u64], &w), ("gain", vec![k as u64], &gain), ("bias", vec![k as u64], &bias)]
                    .map(|(name, shape, v)| m.constant(name, &shape, v));
            m.graph("forward", |b| {
                let x = b.input("x", Scalar::F32, &["N".into(), Dim::from(k)]);
                let gain = b.weight(gain);
                let bias = (kind == NormKind::Layer).then(|| b.weight(bias));
                let y = b.norm(kind, x, 1e-5, Some(gain), bias);
                let y = b.linear(y, w, None);
                b.output("y", y);
            });
            support::compile_with(&m.finish().unwrap(), fusion, frit_compiler::CompileOptions::default().targets)
        };
        let models = [FusionOptions::default(), FusionOptions::unfused()].map(built);
        for (mean, bound) in means {
            let x: Vec<f32> = r.floats((rows * k) as u64, 1.7).into_iter().map(|v| v + mean).collect();
            let mut want = Vec::new();
            for row in x.chunks(k) {
                let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
                let centre = if kind == NormKind::Layer { row.iter().sum::<f64>() / k as f64 } else { 0.0 };
                let spread = (row.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / k as f64 + 1e-5).sqrt();
                let shift = |i: usize| if kind == NormKind::Layer { f64::from(bias[i]) } else { 0.0 };
                let normed: Vec<f64> =
                    (0..k).map(|i| (row[i] - centre) / spread * f64::from(gain[i]) + shift(i)).collect();
                want.extend((0..n).map(|o| (0..k).map(|i| f64::from(w[o * k + i]) * normed[i]).sum::<f64>()));
            }
            let most = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            for (m, what) in models.iter().zip(["fused", "unfused"]) {
                for backend in BACKENDS {
                    let got = run(m, backend, &[("x", Tensor::f32(&[rows as u64, k as u64], x.clone()).unwrap())]);
                    let off = got.iter().zip(&want).fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
                    assert!(off <= bound * most, "{kind:?}, mean {mean}, {what} on {backend:?}: {:e}", off / most);
                }
            }
        }
    }
}

/// Nodes, features, outputs, and the most neighbours of a node.
const GRAPH: [u64; 4] = [37, 24, 20, 5];

/// `relu((Â X) W)` with each row of Â as neighbours and weights, filled up with weights of 0.
fn aggregation(b: &mut GraphBuilder<'_>) {
    let [nodes, features, outputs, degree] = GRAPH.map(Dim::from);
    let x = b.input("x", Scalar::F32, &[nodes.clone(), features.clone()]);
    let near = b.input("neighbours", Scalar::I32, &[nodes.clone(), degree.clone()]);
    let weights = b.input("weights", Scalar::F32, &[nodes.clone(), degree.clone()]);
    let w = b.input("w", Scalar::F32, &[features, outputs]);
    let rows = b.gather(x, near);
    let weights = b.reshape(weights, &[nodes, degree, Dim::one()]);
    let rows = b.mul(rows, weights);
    let sum = b.reduce(ReduceOp::Sum, rows, &[1], false);
    let y = b.matmul(sum, w);
    let y = b.unary(UnaryOp::Relu, y);
    b.output("y", y);
}

/// Rows of a sparse matrix without neighbours, with one twice, with all; the identity is the plain product.
#[test]
fn row_26_graphite_aggregates_neighbours_before_the_product() {
    let m = build("graphite", aggregation);
    assert_eq!(launches(&m), 2, "the aggregation, and the product with what follows it");
    let [nodes, features, outputs, degree] = GRAPH.map(|n| n as usize);
    let mut r = Random::new(26);
    let (x, w) = (r.tensor(&[GRAPH[0], GRAPH[1]]), r.tensor(&[GRAPH[1], GRAPH[2]]));
    let (xs, ws) = (x.as_f32().unwrap(), w.as_f32().unwrap());
    // Compressed rows.
    let rows: Vec<Vec<(usize, f32)>> = (0..nodes)
        .map(|n| match n % 4 {
            0 => Vec::new(),
            1 => vec![(n / 2, 0.5), (n / 2, 0.25)],
            k => (0..=(n + k) % degree).map(|_| (r.below(nodes as u64) as usize, r.unit())).collect(),
        })
        .collect();
    let check = |rows: &[Vec<(usize, f32)>]| {
        let (mut near, mut weights) = (vec![0i32; nodes * degree], vec![0f32; nodes * degree]);
        for (n, row) in rows.iter().enumerate() {
            for (k, (to, weight)) in row.iter().enumerate() {
                (near[n * degree + k], weights[n * degree + k]) = (*to as i32, *weight);
            }
        }
        let mut want = vec![0f64; nodes * outputs];
        for (n, row) in rows.iter().enumerate() {
            for o in 0..outputs {
                let all = row.iter().flat_map(|(to, weight)| (0..features).map(move |f| (*to, *weight, f)));
                let sum: f64 = all
                    .map(|(to, weight, f)| {
                        f64::from(weight) * f64::from(xs[to * features + f]) * f64::from(ws[f * outputs + o])
                    })
                    .sum();
                want[n * outputs + o] = sum.max(0.0);
            }
        }
        let shape = [GRAPH[0], GRAPH[3]];
        let inputs = [
            ("x", x.clone()),
            ("neighbours", Tensor::i32(&shape, near).unwrap()),
            ("weights", Tensor::f32(&shape, weights).unwrap()),
            ("w", w.clone()),
        ];
        for backend in BACKENDS {
            close(&run(&m, backend, &inputs), &want, &format!("{backend:?}"));
        }
    };
    check(&rows);
    check(&(0..nodes).map(|n| vec![(n, 1.0)]).collect::<Vec<_>>());
    verified(&m);
}

/// Heads, elements of a head, a grid of patches, and each head's kernel.
const VIT: (u64, u64, [u64; 2]) = (3, 8, [5, 7]);
const KERNELS: [usize; 3] = [1, 3, 5];

/// A depthwise convolution of `v` `[B, N, D]` on the grid of patches, zeros around it; `w` is `[k, k, D]`.
fn depthwise(b: &mut GraphBuilder<'_>, v: ValueId, w: ValueId, k: usize) -> ValueId {
    let (_, dim, [down, across]) = VIT;
    let batch = Dim::size("B");
    let reach = (k / 2) as u64;
    let shape = |rows: u64, columns: u64| [batch.clone(), Dim::from(rows), Dim::from(columns), Dim::from(dim)];
    let mut v = b.reshape(v, &shape(down, across));
    if reach > 0 {
        let zero = b.f32(0.0);
        let side = b.broadcast(zero, &shape(down, reach));
        v = b.concat(&[side, v, side], 2);
        let edge = b.broadcast(zero, &shape(reach, across + 2 * reach));
        v = b.concat(&[edge, v, edge], 1);
    }
    let mut sum: Option<ValueId> = None;
    for (dy, dx) in (0..k).flat_map(|y| (0..k).map(move |x| (y, x))) {
        let tap = b.slice(v, 1, Dim::from(dy), Dim::from(down));
        let tap = b.slice(tap, 2, Dim::from(dx), Dim::from(across));
        let own = b.slice(w, 0, Dim::from(dy), Dim::one());
        let own = b.slice(own, 1, Dim::from(dx), Dim::one());
        let tap = b.mul(tap, own);
        sum = Some(sum.map_or(tap, |s| b.add(s, tap)));
    }
    b.reshape(sum.unwrap(), &[batch, Dim::from(down * across), Dim::from(dim)])
}

/// One matrix of probabilities for all heads, each of which convolves its values first: `P · [DW₁ V₁ ‖ … ‖ DW_h V_h]`.
/// Without `reuse` the same query and key serve each head as its own: ordinary attention.
fn uniform(b: &mut GraphBuilder<'_>, reuse: bool) {
    let (heads, dim, [down, across]) = VIT;
    let (batch, patches) = (Dim::size("B"), Dim::from(down * across));
    let one = [batch.clone(), patches.clone(), Dim::from(dim)];
    let q = b.input("q", Scalar::F32, &one);
    let k = b.input("k", Scalar::F32, &one);
    let v = b.input("v", Scalar::F32, &[batch.clone(), patches.clone(), Dim::from(heads * dim)]);
    let parts: Vec<ValueId> = (0u64..)
        .zip(KERNELS)
        .map(|(h, size)| {
            let own = b.slice(v, 2, Dim::from(h * dim), Dim::from(dim));
            let w = b.input(&format!("w{h}"), Scalar::F32, &[Dim::from(size), Dim::from(size), Dim::from(dim)]);
            depthwise(b, own, w, size)
        })
        .collect();
    let v = b.concat(&parts, 2);
    let attrs = AttentionAttrs {
        scale: Float((dim as f32).powf(-0.5)),
        causal: None,
        window: None,
        softcap: None,
        has_mask: false,
        has_bias: false,
    };
    let [q, k] = [q, k].map(|x| b.reshape(x, &[batch.clone(), Dim::one(), patches.clone(), Dim::from(dim)]));
    let y = if reuse {
        let v = b.reshape(v, &[batch.clone(), Dim::one(), patches.clone(), Dim::from(heads * dim)]);
        let y = b.attention(q, k, v, None, None, attrs);
        b.reshape(y, &[batch, patches, Dim::from(heads * dim)])
    } else {
        let all = [batch.clone(), Dim::from(heads), patches.clone(), Dim::from(dim)];
        let [q, k] = [q, k].map(|x| b.broadcast(x, &all));
        let v = b.reshape(v, &[batch.clone(), patches.clone(), Dim::from(heads), Dim::from(dim)]);
        let v = b.transpose(v, &[0, 2, 1, 3]);
        let y = b.attention(q, k, v, None, None, attrs);
        let y = b.transpose(y, &[0, 2, 1, 3]);
        b.reshape(y, &[batch, patches, Dim::from(heads * dim)])
    };
    b.output("y", y);
}

/// The definition in float64.
fn uniform_by_definition(q: &[f32], k: &[f32], v: &[f32], w: &[Tensor], batch: usize) -> Vec<f64> {
    let (heads, dim, [down, across]) = (VIT.0 as usize, VIT.1 as usize, VIT.2.map(|n| n as usize));
    let n = down * across;
    let mut y = vec![0f64; batch * n * heads * dim];
    for b in 0..batch {
        let dot = |i: usize, j: usize| -> f64 {
            (0..dim).map(|d| f64::from(q[(b * n + i) * dim + d]) * f64::from(k[(b * n + j) * dim + d])).sum()
        };
        for i in 0..n {
            let scores: Vec<f64> = (0..n).map(|j| dot(i, j) / (dim as f64).sqrt()).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let all: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for (h, size) in KERNELS.into_iter().enumerate() {
                let reach = (size / 2) as i64;
                for (j, score) in scores.iter().enumerate() {
                    let p = (score - most).exp() / all;
                    let (row, column) = ((j / across) as i64, (j % across) as i64);
                    for (dy, dx) in (-reach..=reach).flat_map(|y| (-reach..=reach).map(move |x| (y, x))) {
                        let (r, c) = (row + dy, column + dx);
                        if !(0..down as i64).contains(&r) || !(0..across as i64).contains(&c) {
                            continue;
                        }
                        let from = (b * n + r as usize * across + c as usize) * heads * dim + h * dim;
                        let tap = ((dy + reach) as usize * size + (dx + reach) as usize) * dim;
                        for d in 0..dim {
                            let w = f64::from(w[h].as_f32().unwrap()[tap + d]);
                            y[(b * n + i) * heads * dim + h * dim + d] += p * w * f64::from(v[from + d]);
                        }
                    }
                }
            }
        }
    }
    y
}

#[test]
fn row_53_uniform_shares_one_matrix_among_heads() {
    let (heads, dim, [down, across]) = VIT;
    let mut r = Random::new(53);
    let one = [2, down * across, dim];
    let (q, k, v) = (r.tensor(&one), r.tensor(&one), r.tensor(&[2, down * across, heads * dim]));
    let w: Vec<Tensor> = KERNELS.iter().map(|k| r.tensor(&[*k as u64, *k as u64, dim])).collect();
    let [fq, fk, fv] = [&q, &k, &v].map(|t| t.as_f32().unwrap());
    let want = uniform_by_definition(fq, fk, fv, &w, 2);
    let inputs = [("q", q), ("k", k), ("v", v), ("w0", w[0].clone()), ("w1", w[1].clone()), ("w2", w[2].clone())];
    let [shared, each] = [true, false].map(|reuse| build("uniform", |b| uniform(b, reuse)));
    for backend in BACKENDS {
        close(&run(&shared, backend, &inputs), &want, &format!("{backend:?}, one matrix"));
        close(&run(&each, backend, &inputs), &want, &format!("{backend:?}, the same matrix for each head"));
    }
    assert!(launches(&shared) <= launches(&each));
    verified(&shared);
}
