//! Weights that several layers share.

use crate::checkpoints::*;
use crate::tiny::{Form, Tiny};
use frit::{BackendChoice, Session};
use frit_compiler::transform::{Aid, Checkpoint, Pattern, Step, Tied};
use serde_json::{Value, json};

fn sets(pattern: &str, layers: usize) -> Vec<usize> {
    pattern.parse::<Pattern>().unwrap().sets(layers).unwrap()
}

/// Distinct buffers of one tensor over all layers.
fn distinct(c: &Checkpoint, part: &str) -> usize {
    let mut ids: Vec<_> = c.names().filter(|n| n.ends_with(part)).filter_map(|n| c.buffer(n)).collect();
    ids.sort();
    ids.dedup();
    ids.len()
}

#[test]
fn row_01_one_wide_ffn() {
    let t = Tiny::llama(1);
    let c = checkpoint(&t);
    let shared = edited(&c, json!([{ "transform": "share-ffn", "layers": "all", "init": "mean" }]));
    assert_eq!(distinct(&shared, "mlp.up_proj.weight"), 1);
    assert_eq!(distinct(&shared, "post_attention_layernorm.weight"), 6);
    assert_eq!(distinct(&shared, "self_attn.q_proj.weight"), 6);
    let ffn = 3 * 64 * 128 * 4;
    assert_eq!(c.bytes().unique - shared.bytes().unique, 5 * ffn);
    assert_eq!(shared.bytes().logical, c.bytes().logical);
    for part in ["mlp.gate_proj.weight", "mlp.down_proj.weight"] {
        let mut mean = values(&c, &at(0, part));
        mean.data
            .iter_mut()
            .enumerate()
            .for_each(|(i, m)| *m = (0..6).map(|l| values(&c, &at(l, part)).data[i]).sum::<f64>() / 6.0);
        is(&shared, &at(3, part), &mean);
    }
    same_as_copies(&shared, t.vocab);
    agrees(&shared, &t, &Form::default());

    // Widening: the shared part is the exact sum of all; here of two, on the same input.
    let wide = edited(&c, json!([{ "transform": "widen-ffn" }]));
    assert_eq!(wide.sizes().unwrap().ff, 6 * 128);
    assert_eq!(distinct(&wide, "mlp.down_proj.weight"), 1);
    let (up, one) = (values(&wide, &at(0, "mlp.up_proj.weight")), values(&c, &at(4, "mlp.up_proj.weight")));
    assert_eq!(&up.data[4 * 128 * 64..5 * 128 * 64], &one.data[..]);
    same_as_copies(&wide, t.vocab);
    agrees(&wide, &t, &Form::default());

    // T4: groups of one, and a second half of zeros.
    same(&edited(&c, json!([{ "transform": "share-ffn", "layers": "2" }])), &c);
    let padded = edited(&c, json!([{ "transform": "widen-ffn", "pad-to": 256 }]));
    assert_eq!(padded.sizes().unwrap().ff, 256);
    assert!(logit_distance(&compiled(&padded, Tied::Once), &compiled(&c, Tied::Once), t.vocab) < 1e-6);

    // The decoder without feed-forward parts, at the level of a decoder alone.
    let dropped = edited(&c, json!([{ "transform": "drop-ffn", "layers": "dec:all" }]));
    agrees(&dropped, &t, &Form::default());
}

#[test]
fn row_02_edgeformer_adapters_start_at_nothing() {
    let t = Tiny::llama(2);
    let c = checkpoint(&t);
    let tied = edited(&c, json!([{ "transform": "share-ffn", "pattern": "sequence:3" }]));
    for private in ["bias", "lora:4"] {
        let adapted = edited(&c, json!([{ "transform": "share-ffn", "pattern": "sequence:3", "private": private }]));
        assert!(adapted.bytes().unique > tied.bytes().unique);
        let (a, b) = (compiled(&adapted, Tied::Once), compiled(&tied, Tied::Once));
        // A zero that is added changes no bit on the CPU. The shaders are other ones, which add in another order.
        let rows = vec![crate::harness::tokens(7, 13, t.vocab), crate::harness::tokens(8, 13, t.vocab)];
        let logits = |m, backend| crate::harness::logits(m, backend, &rows).0;
        assert_eq!(logits(&a, BackendChoice::Cpu), logits(&b, BackendChoice::Cpu), "{private}");
        let [x, y] = [&a, &b].map(|m| logits(m, BackendChoice::Wgpu).as_f32().unwrap().to_vec());
        let most = y.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= 1e-6 * most), "{private}");
    }
    // y = (W + B A) x with the shared W: an update that is not zero, against the oracle and against the folded weight.
    let mut adapted = edited(&c, json!([{ "transform": "share-ffn", "pattern": "sequence:3", "private": "lora:4" }]));
    for i in 0..6 {
        for part in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
            let name = at(i, &format!("{part}.lora_b.weight"));
            let mut b = values(&adapted, &name);
            b.data.iter_mut().enumerate().for_each(|(k, v)| *v = 0.05 * ((k * 7 + i) as f64).sin());
            adapted.put(&name, &b);
        }
    }
    agrees(&adapted, &t, &Form { lora: true, ..Form::default() });
    let refusal = refused(&adapted, json!([{ "transform": "fold-adapters" }]));
    assert!(refusal.contains("whose update differs") && refusal.contains("--untie"), "{refusal}");
    let folded = edited(&adapted, json!([{ "transform": "fold-adapters", "untie": true }]));
    assert!(!folded.config.contains_key("frit") && distinct(&folded, "mlp.up_proj.weight") == 6);
    assert!(logit_distance(&compiled(&folded, Tied::Once), &compiled(&adapted, Tied::Once), t.vocab) < 1e-4);
}

#[test]
fn row_03_subformer_sandwich() {
    assert_eq!(sets("sandwich", 6), [0, 1, 1, 1, 1, 2]);
    assert_eq!(sets("sandwich:first=2,last=1", 6), [0, 1, 2, 2, 2, 3]);
    let t = Tiny::llama(3);
    let c = checkpoint(&t);
    for init in ["mean", "first", "middle"] {
        let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "sandwich", "init": init }]));
        assert_eq!(distinct(&shared, "self_attn.o_proj.weight"), 3);
        same_as_copies(&shared, t.vocab);
    }
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "sandwich", "init": "middle" }]));
    assert_eq!(values(&shared, &at(4, NORMS[0])), values(&c, &at(2, NORMS[0])));
    agrees(&shared, &t, &Form::default());
    // T4: three layers have three sets.
    let three = edited(&c, json!([{ "transform": "truncate", "layers": 3 }]));
    same(&edited(&three, json!([{ "transform": "share-layers", "pattern": "sandwich" }])), &three);
}

#[test]
fn row_05_patterns_of_takase_and_kiyono() {
    let from_one = |p: &str, n| sets(p, n).iter().map(|s| s + 1).collect::<Vec<_>>();
    assert_eq!(from_one("sequence:3", 6), [1, 1, 2, 2, 3, 3]);
    assert_eq!(from_one("sequence:2", 6), [1, 1, 1, 2, 2, 2]);
    assert_eq!(from_one("cycle:3", 6), [1, 2, 3, 1, 2, 3]);
    assert_eq!(from_one("cycle:2", 6), [1, 2, 1, 2, 1, 2]);
    assert_eq!(from_one("cycle-rev:3", 6), [1, 2, 3, 3, 2, 1]);
    assert_eq!(from_one("cycle-rev:2", 6), [1, 2, 1, 2, 2, 1]);
    assert_eq!(from_one("sequence:3", 9), [1, 1, 1, 2, 2, 2, 3, 3, 3]);
    assert_eq!(from_one("cycle:3", 9), [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    assert_eq!(from_one("cycle-rev:3", 9), [1, 2, 3, 1, 2, 3, 3, 2, 1]);
    for p in ["sequence", "cycle"] {
        assert_eq!(sets(&format!("{p}:1"), 6), [0; 6]);
        assert_eq!(sets(&format!("{p}:6"), 6), [0, 1, 2, 3, 4, 5]);
    }
    // One set has no direction, and as many sets as layers are no cycle that could turn back.
    assert_eq!(sets("cycle-rev:1", 6), [0; 6]);
    assert_eq!(sets("cycle-rev:6", 6), [0, 1, 2, 3, 4, 5]);
    let t = Tiny::llama(5);
    let c = checkpoint(&t);
    for pattern in ["sequence:3", "cycle:2", "cycle-rev:3"] {
        let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": pattern }]));
        same_as_copies(&shared, t.vocab);
        agrees(&shared, &t, &Form::default());
    }
    same(&edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:6" }])), &c);
}

/// Parameters of an ALBERT from its sizes: layer sets, and everything around them.
fn albert(v: u64, e: u64, h: u64, ff: u64, sets: u64) -> u64 {
    let linear = |i: u64, o: u64| i * o + o;
    let layer = 4 * linear(h, h) + linear(h, ff) + linear(ff, h) + 2 * 2 * h;
    let around = (v + 512 + 2) * e + 2 * e + linear(e, h) + linear(h, h);
    around + sets * layer
}

#[test]
fn row_06_albert_one_group() {
    // albert-base-v2: 30000 pieces, E 128, H 768, inner 3072, 12 layers in one group.
    let millions = |n: u64| (n as f64 / 1e5).round() / 10.0;
    assert_eq!(millions(albert(30000, 128, 768, 3072, 1)), 11.7);
    assert_eq!(millions(albert(30000, 128, 768, 3072, 12)), 89.7);
    assert_eq!(millions(albert(30000, 128, 1024, 4096, 1)), 17.7);
    assert_eq!(millions(albert(30000, 128, 2048, 8192, 1)), 58.7);
    assert_eq!(millions(albert(30000, 128, 4096, 16384, 1)), 222.6);
    // The form on a BERT stack, counted from the checkpoint: twelve layers of which one is stored.
    let c = bert();
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "all" }]));
    let layer: u64 = 4 * (4 * (32 * 32 + 32) + (64 * 32 + 64) + (32 * 64 + 32) + 4 * 32);
    assert_eq!(c.bytes().unique - shared.bytes().unique, 11 * layer);
    let run = |m: &frit::LoadedModel, backend| {
        let mut s = Session::builder().backend(backend).open(m).unwrap();
        let ids = frit::Tensor::i32(&[2, 9], crate::harness::tokens(6, 18, 61)).unwrap();
        s.run(&[("input_ids", ids)]).unwrap()
    };
    let untied = edited(&shared, json!([{ "transform": "untie" }]));
    assert_eq!(untied.bytes().unique, c.bytes().unique);
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        assert_eq!(run(&compiled(&shared, Tied::Once), backend), run(&compiled(&untied, Tied::Once), backend));
    }
    // As many groups as layers: the plain stack.
    same(&edited(&c, json!([{ "transform": "share-layers", "pattern": "sequence:12" }])), &c);
}

#[test]
fn row_07_recurrent_stacking() {
    let t = Tiny::llama(7);
    let c = checkpoint(&t);
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "all" }]));
    let model = compiled(&shared, Tied::Once);
    // One set of weights, a slot of the cache for every trip.
    assert_eq!(model.plan.kv_slots.len(), 6);
    assert_eq!(crate::harness::reads(&model.plan, "q_proj").len(), 1);
    same_as_copies(&shared, t.vocab);
    agrees(&shared, &t, &Form::default());
    // One layer looped six times is the same model; one trip is the layer.
    let looped =
        edited(&c, json!([{ "transform": "truncate", "layers": 1 }, { "transform": "loop", "body": "0", "trips": 6 }]));
    same(&looped, &shared);
    let one = edited(&c, json!([{ "transform": "truncate", "layers": 1 }]));
    same(&edited(&one, json!([{ "transform": "loop", "body": "all", "trips": 1 }])), &one);
    // Encoder and decoder of a model with two stacks, each with one set; the position bias stays in front.
    let both = edited(
        &t5(6, 6),
        json!([
            { "transform": "share-layers", "pattern": "all", "stack": "enc" },
            { "transform": "share-layers", "pattern": "all", "stack": "dec" },
        ]),
    );
    assert_eq!(distinct(&both, "EncDecAttention.k.weight"), 1);
    assert!(both.has("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"));
    assert!(!both.has("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"));
    same_pairs(&both, &both, [Tied::Once, Tied::Copies]);
}

#[test]
fn row_09_tied_transformers() {
    let c = t5(4, 4);
    let tied = edited(&c, json!([{ "transform": "tie-encoder-decoder" }]));
    let crossed = edited(&c, json!([{ "transform": "tie-encoder-decoder", "cross": true }]));
    let own = |c: &Checkpoint, n: &str| c.aliases(n).len();
    assert_eq!(own(&tied, "encoder.block.2.layer.0.SelfAttention.q.weight"), 2);
    assert_eq!(own(&crossed, "encoder.block.2.layer.0.SelfAttention.q.weight"), 3);
    assert_eq!(
        tied.buffer("decoder.block.3.layer.2.DenseReluDense.wo.weight"),
        tied.buffer("encoder.block.3.layer.1.DenseReluDense.wo.weight")
    );
    assert_eq!(
        tied.buffer("decoder.block.3.layer.2.layer_norm.weight"),
        tied.buffer("encoder.block.3.layer.1.layer_norm.weight")
    );
    let attention = 4 * 32 * 32 * 4;
    assert_eq!(c.bytes().unique - tied.bytes().unique, 4 * (attention + 2 * 64 * 32 * 4 + 2 * 32 * 4));
    assert_eq!(tied.bytes().unique - crossed.bytes().unique, 4 * attention);
    // T0: the tied models run, and give the bits of their copies.
    for c in [&tied, &crossed] {
        same_pairs(c, c, [Tied::Once, Tied::Copies]);
    }
    // Copies and back: contents find each other.
    let untied = edited(&crossed, json!([{ "transform": "untie" }]));
    let again = edited(&untied, json!([{ "transform": "dedupe-weights" }]));
    assert_eq!(again.bytes().unique, crossed.bytes().unique);
    let refusal = refused(&t5(4, 2), json!([{ "transform": "tie-encoder-decoder" }]));
    assert!(refusal.contains("4 layers and the decoder 2"), "{refusal}");
}

#[test]
fn row_30_tied_transformers_second_encoding() {
    // A tensor stored twice is one buffer again by its content, and the file holds it once.
    let untied = edited(&t5(3, 3), json!([{ "transform": "tie-encoder-decoder" }, { "transform": "untie" }]));
    let once = edited(&untied, json!([{ "transform": "dedupe-weights" }]));
    let (a, b) = (saved(&untied, Tied::Once), saved(&once, Tied::Once));
    let size = |d: &tempfile::TempDir| std::fs::metadata(d.path().join("m/model.safetensors")).unwrap().len();
    let tensors = untied.bytes().unique - once.bytes().unique;
    assert!(size(&a) - size(&b) > tensors * 9 / 10);
    let read = Checkpoint::open(&b.path().join("m")).unwrap();
    same(&read, &once);
    assert_eq!(read.bytes(), once.bytes());
    same_pairs(&once, &untied, [Tied::Once; 2]);
}

#[test]
fn row_21_mobillama_three_encodings() {
    let t = Tiny::llama(21);
    let c = edited(&checkpoint(&t), json!([{ "transform": "share-ffn", "groups": "all" }]));
    let once = saved(&c, Tied::Once);
    let repeated = saved(&c, Tied::Copies);
    // The third: names of the other tensors one by one in the metadata, as other writers have them.
    let third = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(once.path().join("m/model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let listed: Value = serde_json::from_str(header["__metadata__"]["frit.aliases"].as_str().unwrap()).unwrap();
    assert_eq!(listed.as_object().unwrap().len(), 15);
    header["__metadata__"] = listed;
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..]].concat();
    std::fs::write(third.path().join("model.safetensors"), file).unwrap();
    std::fs::copy(once.path().join("m/config.json"), third.path().join("config.json")).unwrap();

    let dedupe = frit_compiler::ingest::LoadOptions { dedupe: true, ..Default::default() };
    let loads = [
        frit_compiler::ingest::load(once.path().join("m")).unwrap(),
        frit_compiler::ingest::load(third.path()).unwrap(),
        frit_compiler::ingest::load_with(&repeated.path().join("m"), &dedupe).unwrap(),
    ];
    let models: Vec<_> = loads.iter().map(|m| frit::model_source::compiled(m).unwrap()).collect();
    for m in &models {
        assert_eq!(crate::harness::reads(&m.plan, "mlp.up_proj").len(), 1);
        assert_eq!(crate::harness::reads(&m.plan, "q_proj").len(), 6);
        crate::harness::same_bits(m, &compiled(&c, Tied::Copies), t.vocab);
    }
    same(&edited(&checkpoint(&t), json!([{ "transform": "share-ffn", "groups": "sequence:6" }])), &checkpoint(&t));
}

#[test]
fn row_39_foldgpt_prune_then_share() {
    let t = Tiny::llama(39);
    let c = checkpoint(&t);
    let shared = edited(
        &c,
        json!([
            { "transform": "prune-layers", "layers": "2,5" },
            { "transform": "share-layers", "pattern": "groups:0-1,2-3", "private": "norms" },
        ]),
    );
    // The other order, with the groups' numbers before pruning.
    let other = edited(
        &c,
        json!([
            { "transform": "share-layers", "pattern": "groups:0-1,3-4", "private": "norms" },
            { "transform": "prune-layers", "layers": "2,5" },
        ]),
    );
    same(&shared, &other);
    assert_eq!(shared.bytes(), other.bytes());
    assert_eq!(distinct(&shared, NORMS[1]), 4);
    assert_eq!(distinct(&shared, "self_attn.q_proj.weight"), 2);
    same_as_copies(&shared, t.vocab);
    agrees(&shared, &t, &Form::default());
    same(&edited(&c, json!([{ "transform": "share-layers", "pattern": "groups:3", "private": "norms" }])), &c);
}

#[test]
fn row_40_mobilellm_runs_each_layer_twice() {
    let t = Tiny::sized(40, 3, 64, [4, 2, 16], 128, 97);
    let c = checkpoint(&t);
    let twice = edited(&c, json!([{ "transform": "expand-layers", "repeat": 2 }]));
    assert_eq!(twice.bytes().unique, c.bytes().unique);
    let model = compiled(&twice, Tied::Once);
    assert_eq!((model.plan.model.layers, model.plan.kv_slots.len()), (6, 6));
    assert_eq!(crate::harness::reads(&model.plan, "down_proj").len(), 3);
    same_as_copies(&twice, t.vocab);
    agrees(&twice, &t, &Form::default());
    same(&edited(&c, json!([{ "transform": "expand-layers", "repeat": 1 }])), &c);
    let six = checkpoint(&Tiny::llama(40));
    let shared = edited(&six, json!([{ "transform": "share-layers", "pattern": "repeat:2" }]));
    assert_eq!(sets("repeat:2", 6), [0, 0, 1, 1, 2, 2]);
    assert_eq!(distinct(&shared, "self_attn.v_proj.weight"), 3);
    // 125M: 30 layers of 576, 9 heads over 3, inner 1536, tied: 124.6 M.
    let (d, ff, layers, vocab) = (576u64, 1536u64, 30u64, 32000u64);
    let layer = 2 * d * d + 2 * d * 192 + 3 * d * ff + 2 * d;
    assert_eq!(((layers * layer + vocab * d + d) as f64 / 1e5).round() / 10.0, 124.6);
}

#[test]
fn lt_12_sharing_cuts_bytes_and_no_operations() {
    let t = Tiny::llama(12);
    let c = checkpoint(&t);
    let shared = edited(&c, json!([{ "transform": "share-layers", "pattern": "cycle:2" }]));
    let (a, b) = (compiled(&shared, Tied::Once), compiled(&c, Tied::Once));
    let dispatches = |m: &frit::LoadedModel| m.plan.programs.iter().map(|p| p.steps.len()).collect::<Vec<_>>();
    assert_eq!(dispatches(&a), dispatches(&b));
    assert!(a.plan.tensor_names().len() < b.plan.tensor_names().len());
    assert_eq!(shared.bytes().logical, c.bytes().logical);
}

#[test]
fn lt_12_shared_tensors_are_uploaded_once() {
    let t = Tiny::llama(13);
    let c = edited(&checkpoint(&t), json!([{ "transform": "share-layers", "pattern": "all" }]));
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        let weights = |tied| {
            let m = compiled(&c, tied);
            Session::builder().backend(backend).open(&m).unwrap().memory_bytes()[0]
        };
        let layer = c.bytes().logical - c.bytes().unique;
        assert_eq!(weights(Tied::Copies) - weights(Tied::Once), layer, "{backend:?}");
    }
}

#[test]
fn heads_are_tied_to_the_embedding_and_untied() {
    let t = Tiny::llama(14);
    let c = checkpoint(&t);
    let tied = edited(&c, json!([{ "transform": "tie-embeddings" }]));
    assert!(!tied.has("lm_head.weight") && tied.config["tie_word_embeddings"] == true);
    agrees(&tied, &t, &Form::default());
    let untied = edited(&tied, json!([{ "transform": "untie" }]));
    assert_eq!(values(&untied, "lm_head.weight"), values(&c, "model.embed_tokens.weight"));
    crate::harness::same_bits(&compiled(&tied, Tied::Once), &compiled(&untied, Tied::Once), t.vocab);
}

#[test]
fn a_damaged_list_of_aliases_is_refused() {
    let mut t = Tiny::llama(15);
    t.aliases.insert("model.layers.9.x.weight".into(), "nowhere.weight".into());
    let dir = t.save();
    let said = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(said.contains("frit.aliases") && said.contains("`nowhere.weight`, which is not stored"), "{said}");
}

#[test]
fn steps_are_also_built_in_rust() {
    let mut c = checkpoint(&Tiny::llama(16));
    let step = frit_compiler::transform::tie::ShareLayers {
        pattern: Pattern::Cycle(3),
        init: Default::default(),
        private: Default::default(),
        stack: None,
    };
    let lines = Step::from(step).apply(&mut c, &Aid::default()).unwrap();
    assert_eq!(lines.len(), 3);
}
