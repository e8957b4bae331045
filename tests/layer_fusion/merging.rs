//! Weights computed from weights.

use crate::checkpoints::*;
use crate::edits::slerp;
use crate::support::Random;
use crate::tiny::{Form, Tiny};
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::merge::convs::{Conv, Segment, choose, merge_convs};
use frit_compiler::transform::{Activations, Aid, Checkpoint, Metric, Tap, Tied};
use serde_json::json;

#[test]
fn row_38_mka_merges_pairs() {
    let t = Tiny::llama(38);
    let c = checkpoint(&t);
    let merge = |more: serde_json::Value| {
        let mut step = json!({ "transform": "merge-layers", "pairs": "3:4" });
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([step])
    };
    let merged = edited(&c, merge(json!({ "alpha": 0.7 })));
    for part in MAPS {
        let (a, b) = (values(&c, &at(3, part)), values(&c, &at(4, part)));
        is(&merged, &at(3, part), &Dense::combine("", &[(0.7, &a), (0.3, &b)]).unwrap());
        assert_eq!(values(&merged, &at(4, part)), values(&c, &at(5, part)));
    }
    // Norms are those of the layer that stays.
    assert_eq!(values(&merged, &at(3, NORMS[0])), values(&c, &at(3, NORMS[0])));
    agrees(&merged, &t, &Form::default());
    let merged = edited(&c, merge(json!({ "method": "slerp", "t": 0.3 })));
    is(&merged, &at(3, MAPS[6]), &slerp(&values(&c, &at(3, MAPS[6])), &values(&c, &at(4, MAPS[6])), 0.3));
    // T4: all of the one that stays is pruning the other; so is merging two equal layers.
    let pruned = edited(&c, json!([{ "transform": "prune-layers", "layers": 4 }]));
    same(&edited(&c, merge(json!({ "alpha": 1.0 }))), &pruned);
    let twice = edited(&c, json!([{ "transform": "expand-layers", "positions": 3, "init": "copy" }]));
    let back = edited(&twice, json!([{ "transform": "merge-layers", "pairs": "3:4", "alpha": 0.5 }]));
    same(&back, &c);
    // Chains, and what contradicts itself.
    let chain = edited(&c, json!([{ "transform": "merge-layers", "pairs": "4:5,3:4" }]));
    let sum = [(0.5, 3), (0.25, 4), (0.25, 5)].map(|(w, l)| (w, values(&c, &at(l, MAPS[0]))));
    let sum = Dense::combine("", &sum.iter().map(|(w, m)| (*w, m)).collect::<Vec<_>>()).unwrap();
    assert!(distance(&values(&chain, &at(3, MAPS[0])), &sum) < 3e-7);
    let wrong = refused(&c, json!([{ "transform": "merge-layers", "pairs": "3:4,4:5,9:1,2:2" }]));
    for part in ["layer 4 is merged away before", "layer 9 does not exist", "layer 2 cannot be merged with itself"] {
        assert!(wrong.contains(part), "{wrong}");
    }
    let wrong = refused(&c, merge(json!({ "method": "slerp", "alpha": 0.5 })));
    assert!(wrong.contains("`alpha` is an option of the method Linear"), "{wrong}");
}

#[test]
fn row_38_merges_are_chosen_by_measure() {
    let t = Tiny::llama(138);
    let c = checkpoint(&t);
    let calib = tokens(t.vocab);
    let merged =
        calibrated(&c, json!([{ "transform": "merge-layers", "auto": 2, "metric": "cka", "alpha": 1.0 }]), &calib);
    assert_eq!(merged.number("num_hidden_layers"), Some(4));
    for metric in ["npib", "cosine", "cka"] {
        let scores = Aid { activations: Some(&calib as &dyn Activations) }
            .importance(&c, serde_json::from_value(json!(metric)).unwrap())
            .unwrap();
        assert!(scores.len() == 6 && scores.iter().all(|s| (-1e-9..=2.0).contains(s)), "{metric}: {scores:?}");
    }
}

#[test]
fn merges_weighted_by_fisher_information_and_by_inputs() {
    let t = Tiny::llama(238);
    let c = checkpoint(&t);
    let mut f = c.clone();
    for l in 0..6 {
        for part in MAPS {
            let mut m = values(&c, &at(l, part));
            m.data.iter_mut().enumerate().for_each(|(i, v)| *v = (*v * (i % 5) as f64).powi(2));
            f.put(&at(l, part), &m);
        }
    }
    let dir = saved(&f, Tied::Once);
    let merged = edited(
        &c,
        json!([{ "transform": "merge-layers", "pairs": "1:2", "method": "fisher", "fisher": dir.path().join("m") }]),
    );
    let get = |c: &Checkpoint, l: usize| values(c, &at(l, MAPS[4]));
    let (a, b, fa, fb) = (get(&c, 1), get(&c, 2), get(&f, 1), get(&f, 2));
    let mut want = a.clone();
    for i in 0..want.data.len() {
        let (p, q) = (fa.data[i], fb.data[i]);
        want.data[i] =
            if p + q == 0.0 { (a.data[i] + b.data[i]) / 2.0 } else { (p * a.data[i] + q * b.data[i]) / (p + q) };
    }
    is(&merged, &at(1, MAPS[4]), &want);

    // With equal inputs the regression mean is the mean; and the normal equations hold.
    let calib = tokens(t.vocab);
    let merged = calibrated(&c, json!([{ "transform": "merge-layers", "pairs": "1:2", "method": "regmean" }]), &calib);
    let x = calib.capture(&c, &[Tap::FfnIn(1), Tap::FfnIn(2)]).unwrap();
    let w = values(&merged, &at(1, MAPS[4]));
    let residual = |k: usize, own: &Dense| {
        let out =
            Dense::combine("", &[(1.0, &x[k].values.times_transposed(&w)), (-1.0, &x[k].values.times_transposed(own))])
                .unwrap();
        x[k].values.transposed().times(&out)
    };
    let sum = Dense::combine("", &[(1.0, &residual(0, &a)), (1.0, &residual(1, &b))]).unwrap();
    assert!(sum.norm() < 1e-3 * residual(0, &a).norm(), "{:e} of {:e}", sum.norm(), residual(0, &a).norm());
}

#[test]
fn row_52_fusegpt() {
    let t = Tiny::llama(52);
    let c = checkpoint(&t);
    let pruned = edited(&c, json!([{ "transform": "prune-layers", "layers": 2 }]));
    let step = |coef: serde_json::Value| json!([{ "transform": "merge-layers", "pairs": "1:2", "method": "hadamard", "coef": coef }]);
    // C = 0 prunes; C = c is a sum with one weight; C from a file is elementwise.
    same(&edited(&c, step(json!(0.0))), &pruned);
    let sum = |name: &str, l: f64| {
        Dense::combine("", &[(1.0, &values(&c, &at(1, name))), (l, &values(&c, &at(2, name)))]).unwrap()
    };
    is(&edited(&c, step(json!("0.4"))), &at(1, MAPS[2]), &sum(MAPS[2], 0.4));
    let mut coef = c.clone();
    for part in MAPS {
        let mut m = values(&c, &at(1, part));
        m.data.iter_mut().enumerate().for_each(|(i, v)| *v = (i as f64).cos());
        coef.put(&at(1, part), &m);
    }
    let dir = saved(&coef, Tied::Once);
    let fused = edited(&c, step(json!(dir.path().join("m"))));
    let (a, b, k) = (values(&c, &at(1, MAPS[3])), values(&c, &at(2, MAPS[3])), values(&coef, &at(1, MAPS[3])));
    let mut want = a.clone();
    (0..want.data.len()).for_each(|i| want.data[i] += k.data[i] * b.data[i]);
    is(&fused, &at(1, MAPS[3]), &want);
    agrees(&fused, &t, &Form::default());

    // Macro influence ranks as removing each layer and comparing the last states does, in float64.
    let calib = tokens(t.vocab);
    let scores = Aid { activations: Some(&calib as &dyn Activations) }.importance(&c, Metric::MacroInfluence).unwrap();
    let last = |c: &Checkpoint, n: usize| calib.capture(c, &[Tap::Hidden(n)]).unwrap().remove(0).values;
    let whole = last(&c, 6);
    for (l, score) in scores.iter().enumerate() {
        let less = last(&edited(&c, json!([{ "transform": "prune-layers", "layers": l }])), 5);
        let cos = |i: usize| {
            let (a, b) = (whole.row(i), less.row(i));
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
        };
        let want = 1.0 - (0..whole.rows()).map(cos).sum::<f64>() / whole.rows() as f64;
        assert!((score - want).abs() < 1e-9, "layer {l}: {score} and {want}");
    }
}

#[test]
fn row_46_model_folding() {
    let t = Tiny::llama(46);
    let c = checkpoint(&t);
    // Exactly doubled neurons fold into the model they were doubled from.
    let mut doubled = c.clone();
    for l in 0..6 {
        for part in [MAPS[4], MAPS[5]] {
            let m = values(&c, &at(l, part));
            doubled.put(&at(l, part), &m.take_rows(&(0..256).map(|i| i / 2).collect::<Vec<_>>()));
        }
        let mut down = values(&c, &at(l, MAPS[6])).take_cols(&(0..256).map(|i| i / 2).collect::<Vec<_>>());
        down.data.iter_mut().for_each(|v| *v /= 2.0);
        doubled.put(&at(l, MAPS[6]), &down);
    }
    doubled.set("intermediate_size", 256);
    for cluster in ["kmeans:1", "agglomerative"] {
        let folded = edited(&doubled, json!([{ "transform": "fold", "ff": 0.5, "cluster": cluster }]));
        assert_eq!(folded.sizes().unwrap().ff, 128);
        for part in [MAPS[4], MAPS[5], MAPS[6]] {
            is(&folded, &at(3, part), &values(&c, &at(3, part)));
        }
    }
    // T3: D⁻¹MW in front and W Mᵀ behind, for the clusters that are found; and the same ones each time.
    let step = json!([{ "transform": "fold", "ff": 96, "cluster": "kmeans:7" }]);
    let folded = edited(&c, step.clone());
    same(&folded, &edited(&c, step));
    let (gate, up, down) = (values(&c, &at(2, MAPS[4])), values(&c, &at(2, MAPS[5])), values(&c, &at(2, MAPS[6])));
    let features: Vec<f64> = (0..128)
        .flat_map(|j| [gate.row(j).to_vec(), up.row(j).to_vec(), (0..64).map(|r| down.at(r, j)).collect()].concat())
        .collect();
    let of = cluster_of(&folded, &features, &down);
    let mut m = Dense::zeros(&[96, 128]);
    of.iter().enumerate().for_each(|(n, k)| m.row_mut(*k)[n] = 1.0);
    let mut mean = m.clone();
    (0..96).for_each(|k| {
        let size = m.row(k).iter().sum::<f64>();
        mean.row_mut(k).iter_mut().for_each(|v| *v /= size);
    });
    is(&folded, &at(2, MAPS[4]), &mean.times(&gate));
    is(&folded, &at(2, MAPS[6]), &down.times_transposed(&m));
    agrees(&folded, &t, &Form::default());
    same(&edited(&c, json!([{ "transform": "fold", "ff": 1.0, "heads": 1.0 }])), &c);
    let one = edited(&c, json!([{ "transform": "fold", "heads": 0.5 }]));
    assert_eq!((one.sizes().unwrap().heads, one.sizes().unwrap().kv_heads), (2, 1));
    agrees(&one, &t, &Form::default());
}

/// Clusters of a folded layer, found again by its columns: each is the sum of those of its members.
fn cluster_of(folded: &Checkpoint, features: &[f64], down: &Dense) -> Vec<usize> {
    let rows = Dense::matrix(128, features.len() / 128, features.to_vec());
    let of = frit_compiler::transform::linalg::cluster::kmeans(&rows, 96, 7);
    assert_eq!(values(folded, &at(2, MAPS[6])).cols(), 96);
    assert_eq!(down.cols(), of.len());
    of
}

#[test]
fn row_19_tcsp_projection() {
    let t = Tiny::llama(19);
    let c = checkpoint(&t);
    // T4: at full width every rotation is exact.
    let turned = edited(&c, json!([{ "transform": "project", "hidden": 64, "rotation": 5 }]));
    assert!(distance(&values(&turned, &at(0, MAPS[0])), &values(&c, &at(0, MAPS[0]))) > 0.1);
    assert!(logit_distance(&compiled(&turned, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-4);
    let calib = tokens(t.vocab);
    let full = calibrated(&c, json!([{ "transform": "project", "hidden": 64 }]), &calib);
    assert!(logit_distance(&compiled(&full, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-4);
    // Below: W P and Pᵀ W with the same orthonormal P everywhere. P is found again from the embedding.
    let thin = calibrated(&c, json!([{ "transform": "project", "hidden": 48 }]), &calib);
    assert_eq!(
        thin.sizes().unwrap(),
        frit_compiler::transform::Sizes { hidden: 48, ff: 128, heads: 4, kv_heads: 2, head_dim: 16 }
    );
    let (e, small) = (values(&c, "model.embed_tokens.weight"), values(&thin, "model.embed_tokens.weight"));
    let gram = frit_compiler::transform::linalg::gram(&e, 0.0);
    let p = frit_compiler::transform::linalg::solve_spd(&gram, &e.transposed().times(&small)).unwrap();
    assert!(distance(&p.transposed().times(&p), &Dense::identity(48)) < 1e-4);
    let gain = values(&c, &at(3, NORMS[1]));
    let mut up = values(&c, &at(3, MAPS[5]));
    (0..128).for_each(|r| up.row_mut(r).iter_mut().zip(&gain.data).for_each(|(v, g)| *v *= g));
    assert!(distance(&values(&thin, &at(3, MAPS[5])), &up.times(&p)) < 1e-4);
    assert!(distance(&values(&thin, &at(3, MAPS[6])), &p.transposed().times(&values(&c, &at(3, MAPS[6])))) < 1e-4);
    let mut t = tiny(&thin, &t);
    t.frit = json!({});
    // The ε of the norms grows by d/d′, which the oracle does not know; states are far larger.
    assert!((thin.config["rms_norm_eps"].as_f64().unwrap() - 1e-6 * 64.0 / 48.0).abs() < 1e-12);
    let got = compiled(&thin, Tied::Once);
    let want = t.run(&Form::default(), &crate::harness::tokens(3, 17, t.vocab));
    let (logits, _) = crate::harness::logits(&got, frit::BackendChoice::Cpu, &[crate::harness::tokens(3, 17, t.vocab)]);
    let flat: Vec<f64> = want.logits.concat();
    let most = flat.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let far = logits.as_f32().unwrap().iter().zip(&flat).fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
    assert!(far <= 1e-4 * most, "{far:e} of {most:e}");
    let refusal = refused(&gpt2(), json!([{ "transform": "project", "hidden": 24, "rotation": 1 }]));
    assert!(refusal.contains("RMS norms alone commute"), "{refusal}");
}

#[test]
fn row_48_recursion_relaxed() {
    let t = Tiny::llama(48);
    let c = checkpoint(&t);
    let recurse = |block: usize, init: &str, rank: usize| {
        edited(&c, json!([{ "transform": "recurse", "block": block, "init": init, "lora-rank": rank }]))
    };
    // r = 0 is sharing in a cycle.
    same(&recurse(3, "lower", 0), &edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:3" }])));
    same(
        &recurse(3, "average", 0),
        &edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:3", "init": "mean" }])),
    );
    // Stepwise: the first and the last layer are in the block.
    let step = recurse(3, "stepwise", 0);
    assert_eq!(values(&step, &at(0, MAPS[0])), values(&c, &at(0, MAPS[0])));
    assert_eq!(values(&step, &at(2, MAPS[0])), values(&c, &at(5, MAPS[0])));
    for init in ["stepwise", "average", "lower"] {
        // Full rank gives the model back.
        let full = recurse(2, init, 64);
        assert!(logit_distance(&compiled(&full, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-4, "{init}");
        // B A is the best approximation of its rank to what is left of W: compared as products.
        let relaxed = recurse(2, init, 4);
        for (l, part) in [(1, "self_attn.q_proj"), (4, "mlp.down_proj")] {
            let name = at(l, part);
            let shared = values(&relaxed, &format!("{name}.weight"));
            let own = values(&c, &format!("{name}.weight"));
            let rest = Dense::combine("", &[(1.0, &own), (-1.0, &shared)]).unwrap();
            let (b, a) = (
                values(&relaxed, &format!("{name}.lora_b.weight")),
                values(&relaxed, &format!("{name}.lora_a.weight")),
            );
            assert_eq!((b.cols(), a.rows()), (4, 4));
            let left = Dense::combine("", &[(1.0, &rest), (-1.0, &b.times(&a))]).unwrap().norm();
            let spectrum = eigenvalues(&rest);
            let best = spectrum[4..].iter().sum::<f64>().max(0.0).sqrt();
            assert!((left - best).abs() <= 1e-5 * rest.norm(), "{init} {name}: {left} and {best}");
        }
        agrees(&relaxed, &t, &Form { lora: true, ..Form::default() });
        same_as_copies(&relaxed, t.vocab);
        // Updates folded into their weights are the same model.
        let folded = edited(&relaxed, json!([{ "transform": "fold-adapters", "untie": true }]));
        assert!(logit_distance(&compiled(&folded, Tied::Once), &compiled(&relaxed, Tied::Once), t.vocab) < 1e-4);
    }
    let relaxed = recurse(2, "average", 4);
    let layer: u64 = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128);
    let update: u64 = 4 * 4 * (2 * 128 + 2 * 96 + 3 * 192);
    assert_eq!(c.bytes().unique - relaxed.bytes().unique, 4 * layer - 6 * update);
}

/// Eigenvalues of MᵀM, largest first, by rotations of Jacobi.
fn eigenvalues(m: &Dense) -> Vec<f64> {
    let mut a = m.transposed().times(m);
    let n = a.rows();
    for _ in 0..30 {
        for p in 0..n {
            for q in p + 1..n {
                if a.at(p, q).abs() < 1e-300 {
                    continue;
                }
                let theta = 0.5 * (2.0 * a.at(p, q)).atan2(a.at(q, q) - a.at(p, p));
                let (s, c) = theta.sin_cos();
                for k in 0..n {
                    let (x, y) = (a.at(k, p), a.at(k, q));
                    (a.data[k * n + p], a.data[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a.at(p, k), a.at(q, k));
                    (a.data[p * n + k], a.data[q * n + k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    let mut values: Vec<f64> = (0..n).map(|i| a.at(i, i)).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

#[test]
fn row_24_dha_fuses_heads() {
    let t = Tiny::sized(24, 3, 64, [8, 8, 8], 128, 97);
    let c = checkpoint(&t);
    let fused = edited(&c, json!([{ "transform": "fuse-heads", "k": 2, "v": 4 }]));
    assert_eq!(fused.config["frit"]["heads"][0], json!({ "q": 8, "k": 2, "v": 4 }));
    let k = values(&c, &at(1, MAPS[1]));
    let mean: Vec<f64> =
        (0..2 * 8 * 64).map(|i| (0..4).map(|h| k.data[(i / 512 * 4 + h) * 512 + i % 512]).sum::<f64>() / 4.0).collect();
    is(&fused, &at(1, MAPS[1]), &Dense::matrix(16, 64, mean));
    let maps = || ((0..8).map(|h| h / 4).collect(), (0..8).map(|h| h / 2).collect());
    agrees(&fused, &t, &Form { head_maps: (0..3).map(|l| (l, maps())).collect(), ..Form::default() });
    // Heads that are not neighbours: doubled ones find each other, and fuse exactly.
    let mut doubled = c.clone();
    for l in 0..3 {
        for part in [MAPS[1], MAPS[2]] {
            let m = values(&c, &at(l, part));
            let rows: Vec<usize> = (0..8).flat_map(|h| (0..8).map(move |r| h % 4 * 8 + r)).collect();
            doubled.put(&at(l, part), &m.take_rows(&rows));
        }
    }
    let fused = edited(&doubled, json!([{ "transform": "fuse-heads", "k": 4, "v": 4, "by": "similar" }]));
    assert_eq!(fused.config["frit"]["heads"][2]["k_of"], json!([0, 1, 2, 3, 0, 1, 2, 3]));
    assert!(logit_distance(&compiled(&fused, Tied::Once), &compiled(&doubled, Tied::Once), t.vocab) < 1e-5);
    same(&edited(&c, json!([{ "transform": "fuse-heads", "k": 8, "v": 8 }])), &c);
}

#[test]
fn lt_01_gains_of_norms_fold_into_maps() {
    let t = Tiny::llama(148);
    let c = checkpoint(&t);
    let folded = edited(&c, json!([{ "transform": "fold-norms" }]));
    assert!(values(&folded, &at(2, NORMS[0])).data.iter().all(|g| *g == 1.0));
    assert!(values(&folded, "model.norm.weight").data.iter().all(|g| *g == 1.0));
    assert!(logit_distance(&compiled(&folded, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-5);
    // A layer norm's bias goes along; the stream of a GPT-2 is the same.
    let g = gpt2();
    let folded = edited(&g, json!([{ "transform": "fold-norms" }]));
    assert!(values(&folded, "transformer.h.1.ln_1.bias").data.iter().all(|b| *b == 0.0));
    assert!(logit_distance(&compiled(&folded, Tied::Once), &compiled(&g, Tied::Once), 61) < 1e-5);
    // Into a shared weight only where all its norms agree.
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:2", "private": "norms" }]));
    let refusal = refused(&shared, json!([{ "transform": "fold-norms" }]));
    assert!(refusal.contains("behind a norm with another gain"), "{refusal}");
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:2" }]));
    let folded = edited(&shared, json!([{ "transform": "fold-norms" }]));
    assert_eq!(folded.buffer(&at(0, MAPS[0])), folded.buffer(&at(4, MAPS[0])));
    assert!(logit_distance(&compiled(&folded, Tied::Once), &compiled(&shared, Tied::Once), t.vocab) < 1e-5);
}

fn conv(r: &mut Random, out: usize, input: usize, k: usize, padding: usize) -> Conv {
    let mut floats = |n: usize| r.floats(n as u64, 1.0).into_iter().map(f64::from).collect::<Vec<f64>>();
    let weight = floats(out * input * k * k);
    Conv { out, input, kernel: [k; 2], weight, bias: floats(out), padding, stride: 1 }
}

#[test]
fn row_42_layermerge_convolutions() {
    let mut r = Random::new(42);
    let x: Vec<f64> = r.floats(3 * 9 * 11, 1.0).into_iter().map(f64::from).collect();
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    for (k1, k2, stride) in [(3, 3, 1), (1, 3, 2), (5, 1, 1), (3, 5, 2)] {
        // All padding in front.
        let first = conv(&mut r, 4, 3, k1, k1 / 2 + k2 / 2);
        let second = Conv { stride, ..conv(&mut r, 5, 4, k2, 0) };
        let merged = merge_convs(&first, &second).unwrap();
        assert_eq!(merged.kernel, [k1 + k2 - 1; 2]);
        let (mid, h, w) = first.apply(&x, 9, 11);
        let (want, ..) = second.apply(&mid, h, w);
        let (got, ..) = merged.apply(&x, 9, 11);
        assert_eq!(got.len(), want.len());
        assert!(far(&got, &want) < 1e-12, "{k1} {k2}");
    }
    // Padding of the second stands for what the first computes beyond the border: refused.
    let said = merge_convs(&conv(&mut r, 3, 3, 3, 1), &conv(&mut r, 3, 3, 3, 1)).unwrap_err().to_string();
    assert!(said.contains("move all padding to the first"), "{said}");
    // An identity in front changes nothing; a batch norm and a skip are in the weights.
    let one = conv(&mut r, 4, 3, 3, 0);
    let merged = merge_convs(&Conv { padding: 0, ..Conv::identity(3, 1) }, &one).unwrap();
    assert_eq!(merged, one);
    let skip = conv(&mut r, 3, 3, 3, 1);
    let (mut want, ..) = skip.apply(&x, 9, 11);
    want.iter_mut().zip(&x).for_each(|(y, x)| *y += x);
    assert!(far(&skip.clone().with_skip().unwrap().apply(&x, 9, 11).0, &want) < 1e-12);
    let (g, b, m, v) = ([1.5, 0.5, 2.0], [0.1, 0.2, 0.3], [0.3, -0.2, 0.1], [0.9, 1.1, 0.4]);
    let (mut want, h, w) = skip.apply(&x, 9, 11);
    want.iter_mut().enumerate().for_each(|(i, y)| {
        let c = i / (h * w);
        *y = g[c] * (*y - m[c]) / (v[c] + 1e-5f64).sqrt() + b[c];
    });
    assert!(far(&skip.with_norm(&g, &b, &m, &v, 1e-5).apply(&x, 9, 11).0, &want) < 1e-12);
}

#[test]
fn row_42_layermerge_planner_is_brute_force() {
    let mut r = Random::new(421);
    for layers in 1..=10usize {
        let mut segments = Vec::new();
        for from in 0..layers {
            for to in from + 1..=layers.min(from + 4) {
                let importance = f64::from(r.unit()) + (to - from) as f64 * 0.1;
                segments.push(Segment { from, to, ticks: 1 + r.below(6) as usize, importance });
            }
        }
        for budget in [layers / 2, layers, 3 * layers] {
            let best = brute(&segments, 0, layers, budget);
            let found = choose(layers, &segments, budget);
            let sum = found.as_ref().map(|s| s.iter().map(|s| s.importance).sum::<f64>());
            match (best, sum) {
                (None, None) => {}
                (Some(a), Some(b)) => assert!((a - b).abs() < 1e-12, "{layers} layers in {budget}"),
                other => panic!("{layers} layers in {budget}: {other:?}"),
            }
            if let Some(found) = found {
                assert!(found.iter().map(|s| s.ticks).sum::<usize>() <= budget);
                assert!(found.windows(2).all(|w| w[0].to == w[1].from) && found[0].from == 0);
            }
        }
    }
}

fn brute(segments: &[Segment], at: usize, layers: usize, budget: usize) -> Option<f64> {
    if at == layers {
        return Some(0.0);
    }
    let next = segments.iter().filter(|s| s.from == at && s.ticks <= budget);
    next.filter_map(|s| Some(s.importance + brute(segments, s.to, layers, budget - s.ticks)?))
        .fold(None, |m, v| Some(m.map_or(v, |m: f64| m.max(v))))
}

#[test]
fn row_11_a_norm_folds_into_its_own_use() {
    // One convolution applied twice with unlike batch norms: each fold is a convolution of its own, the shared one stays.
    let mut r = Random::new(11);
    let x: Vec<f64> = r.floats(3 * 7 * 7, 1.0).into_iter().map(f64::from).collect();
    let shared = conv(&mut r, 3, 3, 3, 1);
    let norms = [([1.0, 2.0, 0.5], [0.0; 3]), ([0.7, 1.1, 1.3], [0.1, 0.2, 0.3])];
    let relu = |y: Vec<f64>| y.into_iter().map(|v| v.max(0.0)).collect::<Vec<f64>>();
    let (mut folded, mut apart) = (x.clone(), x);
    for (gamma, beta) in norms {
        let own = shared.clone().with_norm(&gamma, &beta, &[0.0; 3], &[1.0; 3], 0.0);
        folded = relu(own.apply(&folded, 7, 7).0);
        let y = shared.apply(&apart, 7, 7).0;
        apart = relu(y.iter().enumerate().map(|(i, v)| gamma[i / 49] * v + beta[i / 49]).collect());
    }
    assert!(folded.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-12));
    // T4: a norm that changes nothing.
    assert_eq!(shared.clone().with_norm(&[1.0; 3], &[0.0; 3], &[0.0; 3], &[1.0; 3], 0.0), shared);
}
