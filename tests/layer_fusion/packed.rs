//! Families that pack queries, keys and values in one tensor: transforms that need them apart take them apart, once, and
//! nothing else changes.

use crate::checkpoints::*;
use crate::harness::cache_bytes;
use frit_compiler::transform::dense::Dense;
use frit_compiler::transform::{Checkpoint, Tied};
use serde_json::json;

/// A family: its checkpoint, the beginning of a layer's names, and where its attention and its norm in front of it are.
struct Packed {
    c: Checkpoint,
    layer: fn(usize) -> String,
    attention: &'static str,
    output: &'static str,
    norm: &'static str,
    down: &'static str,
    /// Whether maps are stored `[in, out]`.
    transposed: bool,
}

fn families() -> [Packed; 3] {
    [
        Packed {
            c: gpt2(),
            layer: |i| format!("transformer.h.{i}."),
            attention: "attn",
            output: "attn.c_proj",
            norm: "ln_1",
            down: "mlp.c_proj",
            transposed: true,
        },
        Packed {
            c: neox(),
            layer: |i| format!("gpt_neox.layers.{i}."),
            attention: "attention",
            output: "attention.dense",
            norm: "input_layernorm",
            down: "mlp.dense_4h_to_h",
            transposed: false,
        },
        Packed {
            c: bloom(),
            layer: |i| format!("transformer.h.{i}."),
            attention: "self_attention",
            output: "self_attention.dense",
            norm: "input_layernorm",
            down: "mlp.dense_4h_to_h",
            transposed: false,
        },
    ]
}

impl Packed {
    fn name(&self, layer: usize, part: &str) -> String {
        format!("{}{part}", (self.layer)(layer))
    }
    /// Layer 0 adds nothing to its state, and layer 1 is layer 0: both have the same keys, values and probabilities.
    fn doubled(&self) -> Checkpoint {
        let mut c = self.c.clone();
        for part in [self.output, self.down] {
            for end in ["weight", "bias"] {
                let name = self.name(0, &format!("{part}.{end}"));
                let zeros = Dense::zeros(&values(&c, &name).shape);
                c.put(&name, &zeros);
            }
        }
        let same = c.names().filter_map(|n| n.strip_prefix(&(self.layer)(0))).map(str::to_owned).collect::<Vec<_>>();
        for part in same.iter().filter(|p| p.starts_with(self.norm) || p.starts_with(self.attention)) {
            if !part.starts_with(self.output) {
                let own = values(&c, &self.name(0, part));
                c.put(&self.name(1, part), &own);
            }
        }
        c
    }
}

/// Keys and values of layer 0 in layer 1, exact where both have the same; the slot and the projections of layer 1 are gone.
#[test]
fn row_28_mlkv_of_packed_families_takes_their_tensor_apart() {
    for f in families() {
        let c = f.doubled();
        let shared = edited(&c, json!([{ "transform": "share-kv", "map": "0_0_2", "init": "own" }]));
        let stem = f.name(1, f.attention);
        assert!(shared.has(&format!("{stem}.q_proj.weight")) && !shared.has(&format!("{stem}.k_proj.weight")));
        assert_eq!(shared.config["frit"]["split_qkv"], true);
        let (a, b) = (compiled(&shared, Tied::Once), compiled(&c, Tied::Once));
        assert!(logit_distance(&a, &b, 61) < 1e-5, "{}", c.family().name);
        assert_eq!(3 * cache_bytes(&a.plan, 1, 5), 2 * cache_bytes(&b.plan, 1, 5));
        // A map of every layer to itself leaves the tensor as it is.
        same(&edited(&c, json!([{ "transform": "share-kv", "map": "0_1_2" }])), &c);
        // Fewer heads: each is the mean of its group, by the rows that the packed tensor has for them.
        let fewer = edited(&f.c, json!([{ "transform": "share-kv", "kv-heads": 2 }]));
        let packed = match f.transposed {
            true => values(&f.c, &f.name(2, "attn.c_attn.weight")).transposed(),
            false => values(&f.c, &f.name(2, &format!("{}.query_key_value.weight", f.attention))),
        };
        let row =
            |head: usize, r: usize| packed.row(if f.transposed { 48 + head * 12 + r } else { head * 36 + 12 + r });
        let k = values(&fewer, &f.name(2, &format!("{}.k_proj.weight", f.attention)));
        let k = if f.transposed { k.transposed() } else { k };
        assert_eq!(k.rows(), 24);
        for (r, col) in [(0, 3), (11, 40)] {
            let want = 0.5 * (row(2, r)[col] + row(3, r)[col]);
            assert!((k.at(12 + r, col) - want).abs() < 1e-7, "{}", c.family().name);
        }
        compiled(&fewer, Tied::Once);
    }
}

/// Probabilities of layer 0 in layer 1, where both have the same.
#[test]
fn row_43_shared_attention_of_packed_families() {
    for f in families() {
        let c = f.doubled();
        let shared = edited(&c, json!([{ "transform": "share-attention", "spans": "0-1" }]));
        assert!(!shared.has(&f.name(1, &format!("{}.q_proj.weight", f.attention))));
        let (a, b) = (compiled(&shared, Tied::Once), compiled(&c, Tied::Once));
        assert!(logit_distance(&a, &b, 61) < 1e-5, "{}", c.family().name);
    }
}

/// A head whose values are zero and whose output map reads nothing can go; all heads fused to as many as there are change
/// nothing.
#[test]
fn lt_11_heads_of_packed_families() {
    for f in families() {
        let mut c = f.c.clone();
        for l in 0..3 {
            let name = f.name(l, &format!("{}.weight", f.output));
            let mut o = values(&c, &name);
            for r in 0..48 {
                for e in 12..24 {
                    o.data[if f.transposed { e * 48 + r } else { r * 48 + e }] = 0.0;
                }
            }
            c.put(&name, &o);
        }
        let prune = json!([{ "transform": "prune-heads", "kv-heads": "1" }]);
        let b = compiled(&c, Tied::Once);
        if c.family().alibi {
            assert!(refused(&c, prune).contains("slopes of heads"));
        } else {
            let a = compiled(&edited(&c, prune), Tied::Once);
            assert!(logit_distance(&a, &b, 61) < 1e-5, "{}", c.family().name);
            assert_eq!(4 * cache_bytes(&a.plan, 1, 5), 3 * cache_bytes(&b.plan, 1, 5));
        }
        same(&edited(&c, json!([{ "transform": "fuse-heads", "k": 4, "v": 4 }])), &c);
        let fused = edited(&c, json!([{ "transform": "fuse-heads", "k": 2, "v": 4 }]));
        assert_eq!(8 * cache_bytes(&compiled(&fused, Tied::Once).plan, 1, 5), 6 * cache_bytes(&b.plan, 1, 5));
    }
}
