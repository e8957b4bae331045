//! Layers taken out, put in and reordered; parts dropped; heads and neurons cut.

use crate::checkpoints::*;
use crate::harness;
use crate::tiny::{Form, Tiny};
use frit_compiler::ingest::{self, LoadOptions};
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::{Activations, Aid, Captured, Checkpoint, Metric, Tap, Tied};
use serde_json::json;

/// T0 against the model written down by hand.
fn is_by_hand(c: &Checkpoint, hand: &Tiny) {
    let by_hand = harness::compiled(hand, Default::default());
    harness::same_bits(&compiled(c, Tied::Once), &by_hand, hand.vocab);
}

#[test]
fn lt_02_layer_pruning() {
    let t = Tiny::llama(102);
    let c = checkpoint(&t);
    let pruned = edited(&c, json!([{ "transform": "prune-layers", "layers": "1,3-4" }]));
    is_by_hand(&pruned, &t.reordered(&[0, 2, 5]));
    let model = compiled(&pruned, Tied::Once);
    let slots: Vec<&str> = model.plan.kv_slots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(slots.len(), 3, "{slots:?}");
    agrees(&pruned, &t, &Form::default());
    let refusal = refused(&c, json!([{ "transform": "prune-layers", "layers": "4,9" }]));
    assert!(refusal.contains("layer 9 does not exist; there are 6"), "{refusal}");
    assert!(refused(&c, json!([{ "transform": "prune-layers", "layers": "all" }])).contains("no layer would be left"));
}

#[test]
fn row_29_layers_in_another_order() {
    let t = Tiny::llama(29);
    let c = checkpoint(&t);
    let moved = edited(&c, json!([{ "transform": "permute-layers", "order": "0,2,1,4,3,5" }]));
    is_by_hand(&moved, &t.reordered(&[0, 2, 1, 4, 3, 5]));
    same(&edited(&c, json!([{ "transform": "permute-layers", "order": "all" }])), &c);
    assert!(
        refused(&c, json!([{ "transform": "permute-layers", "order": "0,1" }]))
            .contains("leaves out layers 2, 3, 4, 5")
    );
}

#[test]
fn lt_10_layer_reordering() {
    let t = Tiny::llama(110);
    let c = checkpoint(&t);
    let there = json!([{ "transform": "permute-layers", "order": "5,4,3,2,1,0" }]);
    same(&edited(&edited(&c, there.clone()), there), &c);
}

#[test]
fn lt_05_ffn_pruning() {
    let t = Tiny::llama(105);
    let c = checkpoint(&t);
    let dropped = edited(&c, json!([{ "transform": "drop-ffn", "layers": "2,4" }]));
    let mut hand = t.clone();
    for l in [2, 4] {
        hand.without(
            l,
            &["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight"],
        );
    }
    hand.frit = json!({ "drop_ffn": [2, 4] });
    is_by_hand(&dropped, &hand);
    agrees(&dropped, &t, &Form::default());
    let launches = |c: &Checkpoint| compiled(c, Tied::Once).plan.program("decode").unwrap().steps.len();
    let whole = launches(&c);
    let all = launches(&edited(&c, json!([{ "transform": "drop-ffn", "layers": "all" }])));
    assert!(launches(&dropped) < whole && all < launches(&dropped));
    assert!(
        refused(&dropped, json!([{ "transform": "drop-ffn", "layers": "4" }])).contains("layer 4 has no such part")
    );
}

#[test]
fn lt_06_shallow_decoder() {
    for (encoder, decoder, left) in [(6, 6, 1), (12, 12, 1)] {
        let c = t5(encoder, decoder);
        let cut = edited(&c, json!([{ "transform": "truncate", "decoder-layers": left }]));
        assert_eq!(cut.config["num_decoder_layers"], left);
        assert_eq!(cut.config["num_layers"], encoder);
        assert!(cut.has("decoder.block.0.layer.1.EncDecAttention.k.weight"));
        assert!(!cut.names().any(|n| n.starts_with("decoder.block.1.")));
        for name in cut.names() {
            assert_eq!(values(&cut, name), values(&c, name), "{name}");
        }
        // Run against the model made by hand; keys and values of the encoder are kept for the layer that is left.
        same_pairs(&cut, &by_hand(&c, [encoder, left]), [Tied::Once; 2]);
        let slots = |c: &Checkpoint| {
            let dir = saved(c, Tied::Once);
            let model = ingest::load_with(&dir.path().join("m"), &LoadOptions::default()).unwrap();
            model.tables.kv_slots.len()
        };
        assert_eq!((slots(&cut), slots(&c)), (2 * left, 2 * decoder));
    }
}

/// The first layers of either stack, taken by their names.
pub fn by_hand(c: &Checkpoint, left: [usize; 2]) -> Checkpoint {
    let mut out = c.clone();
    let names: Vec<String> = c.names().map(str::to_owned).collect();
    for (side, left) in ["encoder.block.", "decoder.block."].into_iter().zip(left) {
        let number = |n: &String| n.strip_prefix(side).and_then(|n| n.split('.').next()?.parse::<usize>().ok());
        for n in names.iter().filter(|n| number(n).is_some_and(|i| i >= left)) {
            out.remove(n);
        }
    }
    out.set("num_layers", left[0]);
    out.set("num_decoder_layers", left[1]);
    out
}

#[test]
fn row_20_every_depth_of_a_model_with_two_stacks() {
    let c = t5(6, 6);
    for n in 1..=6 {
        for m in 1..=6 {
            let cut = edited(&c, json!([{ "transform": "truncate", "encoder-layers": n, "decoder-layers": m }]));
            let blocks = |side: &str| {
                cut.names().filter(|x| x.starts_with(side) && x.ends_with(".SelfAttention.q.weight")).count()
            };
            assert_eq!((blocks("encoder.block."), blocks("decoder.block.")), (n, m));
            assert!(cut.has("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"));
            // Tensor by tensor the one made by hand; how they run is asked of depths chosen at run time.
            same(&cut, &by_hand(&c, [n, m]));
        }
    }
    same(&edited(&c, json!([{ "transform": "truncate", "encoder-layers": 6, "decoder-layers": 6 }])), &c);
    assert!(refused(&c, json!([{ "transform": "truncate", "layers": 2 }])).contains("say which with enc: or dec:"));
}

#[test]
fn lt_07_depth_pruning_composes() {
    let t = Tiny::llama(107);
    let c = checkpoint(&t);
    let cut = edited(
        &c,
        json!([
            { "transform": "prune-layers", "layers": "-1" },
            { "transform": "permute-layers", "order": "0,1,3,2,4" },
            { "transform": "loop", "body": "1-2", "trips": 2 },
            { "transform": "drop-ffn", "layers": "0" },
        ]),
    );
    let model = compiled(&cut, Tied::Once);
    assert_eq!((model.plan.model.layers, model.plan.kv_slots.len()), (7, 7));
    assert_eq!(crate::harness::reads(&model.plan, "q_proj").len(), 5);
    agrees(&cut, &t, &Form::default());
}

#[test]
fn row_31_students_begin_as_selections() {
    let c = bert();
    let keep = |list: &str| edited(&c, json!([{ "transform": "keep-layers", "layers": list }]));
    for (list, want) in
        [("0-5", vec![0, 1, 2, 3, 4, 5]), ("every:2", vec![0, 2, 4, 6, 8, 10]), ("last:6", vec![6, 7, 8, 9, 10, 11])]
    {
        let student = keep(list);
        assert_eq!(student.config["num_hidden_layers"], 6);
        for (to, from) in want.iter().enumerate() {
            for part in ["attention.self.query.weight", "output.LayerNorm.bias"] {
                let name = |i: usize| format!("encoder.layer.{i}.{part}");
                assert_eq!(values(&student, &name(to)), values(&c, &name(*from)), "{list}");
            }
        }
    }
    same(&keep("all"), &c);
    let launches = |c: &Checkpoint| compiled(c, Tied::Once).plan.programs[0].steps.len();
    assert!(launches(&keep("0-5")) < launches(&c) * 2 / 3);
    // The loss between normalised states.
    let (x, y) = (Dense::matrix(2, 2, vec![3.0, 4.0, 1.0, 0.0]), Dense::matrix(2, 2, vec![6.0, 8.0, 0.0, 5.0]));
    assert!((frit_compiler::transform::analyze::metrics::pkd(&x, &y) - 1.0).abs() < 1e-15);
}

#[test]
fn row_15_secretly_linear() {
    let t = Tiny::llama(15);
    let c = checkpoint(&t);
    let calib = tokens(t.vocab);
    let linear = calibrated(&c, json!([{ "transform": "replace-linear", "layers": "2,3", "ridge": 0.0 }]), &calib);
    // The normal equations of the states, solved by elimination here.
    let states = calib.capture(&c, &[Tap::Hidden(2), Tap::Hidden(3)]).unwrap();
    let (w, b) = least_squares(&states[0].values, &states[1].values);
    let d = distance(&values(&linear, &at(2, "linear.weight")), &w);
    assert!(d < 1e-5, "{d:e}");
    assert!(distance(&values(&linear, &at(2, "linear.bias")), &Dense::vector(b)) < 1e-5);
    let model = compiled(&linear, Tied::Once);
    assert_eq!(model.plan.kv_slots.iter().filter(|s| !s.k_shape.is_empty()).count(), 4);
    agrees_linear(&linear, &t);
    // Two linear layers in a row are one.
    let merged = edited(&linear, json!([{ "transform": "merge-linears" }]));
    assert_eq!(merged.number("num_hidden_layers"), Some(5));
    let (w2, w3) = (values(&linear, &at(2, "linear.weight")), values(&linear, &at(3, "linear.weight")));
    is(&merged, &at(2, "linear.weight"), &w3.times(&w2));
    assert!(logit_distance(&compiled(&merged, Tied::Once), &model, t.vocab) < 1e-4);

    // T4: a layer that adds nothing is linear: score 1, and the same logits.
    let mut idle = c.clone();
    for part in [MAPS[3], MAPS[6]] {
        let shape = values(&c, &at(4, part)).shape;
        idle.put(&at(4, part), &Dense::zeros(&shape));
    }
    let aid = Aid { activations: Some(&calib as &dyn Activations) };
    let scores = aid.importance(&idle, Metric::Linearity).unwrap();
    assert!(scores[4].abs() < 1e-9 && scores.iter().enumerate().all(|(i, s)| i == 4 || *s > 1e-6), "{scores:?}");
    let auto = calibrated(&idle, json!([{ "transform": "replace-linear", "auto": 1 }]), &calib);
    assert_eq!(auto.config["frit"]["linear_layers"], json!([4]));
    assert!(logit_distance(&compiled(&auto, Tied::Once), &compiled(&idle, Tied::Once), t.vocab) < 1e-4);
}

/// The oracle runs a linear layer as its map: attention and feed-forward parts of zero and the map on top.
fn agrees_linear(c: &Checkpoint, like: &Tiny) {
    let t = tiny(c, like);
    let hidden: Vec<Captured> = tokens(like.vocab).capture(c, &[Tap::Hidden(2), Tap::Hidden(3)]).unwrap();
    let (w, b) = (values(c, &at(2, "linear.weight")), values(c, &at(2, "linear.bias")));
    let mut want = hidden[0].values.times_transposed(&w);
    (0..want.rows()).for_each(|i| want.row_mut(i).iter_mut().zip(&b.data).for_each(|(v, b)| *v += b));
    assert!(distance(&hidden[1].values, &want) < 1e-5);
    assert_eq!(t.layers, 6);
}

/// Least squares with an intercept, by elimination with pivots.
fn least_squares(x: &Dense, y: &Dense) -> (Dense, Vec<f64>) {
    let (n, d, m) = (x.rows(), x.cols() + 1, y.cols());
    let one = |i: usize, j: usize| if j + 1 == d { 1.0 } else { x.at(i, j) };
    let mut a: Vec<Vec<f64>> = (0..d)
        .map(|r| {
            let left = (0..d).map(|s| (0..n).map(|i| one(i, r) * one(i, s)).sum::<f64>());
            let right = (0..m).map(|s| (0..n).map(|i| one(i, r) * y.at(i, s)).sum::<f64>());
            left.chain(right).collect()
        })
        .collect();
    for p in 0..d {
        let best = (p..d).max_by(|r, s| a[*r][p].abs().total_cmp(&a[*s][p].abs())).unwrap();
        a.swap(p, best);
        for r in (0..d).filter(|r| *r != p) {
            let f = a[r][p] / a[p][p];
            let pivot = a[p].clone();
            a[r].iter_mut().zip(&pivot).for_each(|(v, q)| *v -= f * q);
        }
    }
    let at = |j: usize, o: usize| a[j][d + o] / a[j][j];
    let w = (0..m).flat_map(|o| (0..d - 1).map(move |j| (j, o))).map(|(j, o)| at(j, o)).collect();
    (Dense::matrix(m, d - 1, w), (0..m).map(|o| at(d - 1, o)).collect())
}

#[test]
fn lt_11_heads_and_embeddings() {
    let t = Tiny::sized(111, 3, 64, [8, 4, 16], 128, 97);
    let c = checkpoint(&t);
    let cut = edited(&c, json!([{ "transform": "prune-heads", "kv-heads": "1,3" }]));
    let s = cut.sizes().unwrap();
    assert_eq!((s.heads, s.kv_heads, s.head_dim), (4, 2, 16));
    // Heads 0, 1, 4, 5 of the queries are left; a slice of the tensor, bit for bit.
    let (q, old) = (values(&cut, &at(1, MAPS[0])), values(&c, &at(1, MAPS[0])));
    assert_eq!(q.row(2 * 16), old.row(4 * 16));
    let (o, old) = (values(&cut, &at(1, MAPS[3])), values(&c, &at(1, MAPS[3])));
    assert_eq!(o.at(5, 3 * 16 + 2), old.at(5, 5 * 16 + 2));
    agrees(&cut, &t, &Form::default());
    let some = edited(&c, json!([{ "transform": "prune-heads", "kv-heads": "0", "layers": "1" }]));
    assert_eq!(some.config["frit"]["heads"][1], json!({ "q": 6, "k": 3, "v": 3 }));

    // V×d ≈ V×e · e×d: at full rank the same product, and below it the best one.
    let full = edited(&c, json!([{ "transform": "low-rank", "embedding": 64 }]));
    let rebuilt = |c: &Checkpoint| {
        values(c, "model.embed_tokens.weight").times_transposed(&values(c, "frit.embedding_projection.weight"))
    };
    let table = values(&c, "model.embed_tokens.weight");
    assert!(distance(&rebuilt(&full), &table) < 1e-6);
    assert!(logit_distance(&compiled(&full, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-4);
    let thin = edited(&c, json!([{ "transform": "low-rank", "embedding": 16 }]));
    let error = |c: &Checkpoint| Dense::combine("", &[(1.0, &rebuilt(c)), (-1.0, &table)]).unwrap().norm();
    let best = frit_compiler::transform::linalg::svd(&table).s[16..].iter().map(|s| s * s).sum::<f64>().sqrt();
    assert!((error(&thin) / best - 1.0).abs() < 1e-5);
    let maps = edited(&c, json!([{ "transform": "low-rank", "rank": 64 }]));
    assert!(logit_distance(&compiled(&maps, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-4);
}

#[test]
fn row_34_flextron_nested_widths() {
    let t = Tiny::llama(34);
    let c = checkpoint(&t);
    let sorted = edited(&c, json!([{ "transform": "permute-neurons", "by": "importance" }]));
    assert!(logit_distance(&compiled(&sorted, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-5);
    let importance = |j: usize| {
        let norm = |v: Vec<f64>| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let row = |p: usize| norm(values(&sorted, &at(2, MAPS[p])).row(j).to_vec());
        let down = values(&sorted, &at(2, MAPS[6]));
        row(4) * row(5) * norm((0..64).map(|r| down.at(r, j)).collect())
    };
    assert!((1..128).all(|j| importance(j - 1) >= importance(j) * (1.0 - 1e-6)));
    let cut = edited(&sorted, json!([{ "transform": "slice", "ff": 80 }]));
    assert_eq!(values(&cut, &at(3, MAPS[4])).data[..], values(&sorted, &at(3, MAPS[4])).data[..80 * 64]);
    agrees(&cut, &t, &Form::default());
    let uneven = edited(
        &sorted,
        json!([{ "transform": "slice", "ff": 96, "layers": "1,2" }, { "transform": "slice", "kv-heads": 1 }]),
    );
    assert_eq!(uneven.config["frit"]["ff"], json!([128, 96, 96, 128, 128, 128]));
    agrees(&uneven, &t, &Form::default());
    same(&edited(&c, json!([{ "transform": "slice", "ff": 128, "kv-heads": 2 }])), &c);
}

#[test]
fn row_41_dlo_expansion() {
    let t = Tiny::llama(41);
    let c = checkpoint(&t);
    // T4: new layers whose last maps are zero add nothing at all.
    let zeros = edited(&c, json!([{ "transform": "expand-layers", "positions": "1,4", "init": "zeros" }]));
    assert_eq!(zeros.number("num_hidden_layers"), Some(8));
    harness::same_bits(&compiled(&zeros, Tied::Once), &compiled(&c, Tied::Once), t.vocab);
    let copy = edited(&c, json!([{ "transform": "expand-layers", "positions": "1", "init": "copy" }]));
    is_by_hand(&copy, &t.reordered(&[0, 1, 1, 2, 3, 4, 5]));
    assert_eq!(copy.bytes().unique, copy.bytes().logical);
    let mixed = edited(&c, json!([{ "transform": "expand-layers", "positions": "2", "init": "slerp:0.25" }]));
    let (a, b) = (values(&c, &at(2, MAPS[5])), values(&c, &at(3, MAPS[5])));
    is(&mixed, &at(3, MAPS[5]), &slerp(&a, &b, 0.25));
    let mixed = edited(&c, json!([{ "transform": "expand-layers", "positions": "2", "init": "linear:0.25" }]));
    is(&mixed, &at(3, MAPS[5]), &Dense::combine("", &[(0.75, &a), (0.25, &b)]).unwrap());
    assert!(
        refused(&c, json!([{ "transform": "expand-layers", "positions": "5", "init": "slerp:0.5" }]))
            .contains("behind the last layer")
    );
}

/// Interpolation on the sphere, by the angle.
pub fn slerp(a: &Dense, b: &Dense, t: f64) -> Dense {
    let dot: f64 = a.data.iter().zip(&b.data).map(|(a, b)| a * b).sum();
    let angle = (dot / (a.norm() * b.norm())).acos();
    let (p, q) = (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin());
    Dense::combine("", &[(p, a), (q, b)]).unwrap()
}
