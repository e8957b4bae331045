//! Caches that keep less than every token's keys and values: merged over layers, or anchors and near tokens alone.

use crate::harness::{BACKENDS, agrees, cache_bytes, compiled, logits, refused, same_bits, tokens, verified};
use crate::tiny::{Form, Tiny};
use frit_compiler::ingest::policy::{KvKeep, KvMerge, RunPolicy};

fn merged(start: Option<u32>, t: f32) -> RunPolicy {
    RunPolicy { kv_merge: Some(KvMerge { start, t, gamma: 0.0, retain: 0 }), ..RunPolicy::default() }
}

/// The upper half keeps one direction for two layers and the length of each: what later runs read is as the definition
/// says, and the slots of a pair hold `(d + 2) / 2d` of what two would.
#[test]
fn row_27_minicache_merges_pairs_of_layers() {
    let t = Tiny::llama(27);
    for (start, at) in [(None, 0.6f32), (Some(2), 0.25), (Some(0), 1.0)] {
        let from = start.map_or(3, |l: u32| l as usize);
        let form = Form { merge: Some((from, f64::from(at))), ..Form::default() };
        agrees(&t, &form, merged(start, at));
    }
    let bytes = |policy| cache_bytes(&compiled(&t, policy).plan, 2, 7);
    let (whole, less) = (bytes(RunPolicy::default()), bytes(merged(Some(2), 0.6)));
    // Two of six layers stay; four are two pairs of 16 elements a head.
    assert_eq!(6 * 16 * less, whole * (2 * 16 + 4 * (16 + 2) / 2));
}

/// Keys and values of one direction come back exactly, whatever their lengths: layers of a pair that differ by a factor.
#[test]
fn row_27_minicache_restores_what_is_parallel() {
    let mut t = Tiny::llama(271);
    // Layers 2 and 3 see the same states: layer 2 adds nothing, and its projections are layer 3's, longer and shorter.
    for part in ["self_attn.o_proj.weight", "mlp.down_proj.weight"] {
        t.tensors.get_mut(&Tiny::name(2, part)).unwrap().1.iter_mut().for_each(|w| *w = 0.0);
    }
    let gain = t.tensors[&Tiny::name(3, "input_layernorm.weight")].clone();
    t.tensors.insert(Tiny::name(2, "input_layernorm.weight"), gain);
    for (part, factor) in [("self_attn.k_proj.weight", 2.5f32), ("self_attn.v_proj.weight", 0.3)] {
        let mut w = t.tensors[&Tiny::name(3, part)].clone();
        w.1.iter_mut().for_each(|w| *w *= factor);
        t.tensors.insert(Tiny::name(2, part), w);
    }
    let two = t.reordered(&[0, 1, 2, 3]);
    agrees(&two, &Form::default(), merged(Some(2), 0.6));
}

fn retaining(gamma: f32, retain: u32) -> RunPolicy {
    RunPolicy { kv_merge: Some(KvMerge { start: Some(0), t: 0.6, gamma, retain }), ..RunPolicy::default() }
}

/// Tokens whose directions are too far apart stay as they are, the first ones that need it, as many as there is room for.
#[test]
fn row_27_minicache_retains_what_is_far_apart() {
    let t = Tiny::sized(274, 4, 64, [4, 2, 16], 96, 43);
    let merged = |gamma, retain| Form { merge: Some((0, 0.6)), retain: Some((gamma, retain)), ..Form::default() };
    // Directions of random layers are at right angles, more or less: about half of them are farther apart.
    for (gamma, room) in [(0.5, 64), (0.48, 3)] {
        agrees(&t, &merged(f64::from(gamma), room), retaining(gamma, room as u32));
    }
    // T4: all of them retained is the model as it is.
    agrees(&t, &Form::default(), retaining(f32::INFINITY, 64));
    let wrong = |gamma, retain| refused(&t, retaining(gamma, retain));
    assert!(wrong(-0.5, 4).contains("kv_merge.gamma") && wrong(0.5, 0).contains("kv_merge.retain"));
}

/// The rate of retained tokens is told, and so is what the slots take: a number a token, head and part, and the rows.
#[test]
fn row_27_minicache_tells_what_it_retains() {
    let t = Tiny::sized(275, 2, 32, [2, 2, 16], 48, 43);
    let rows = vec![tokens(3, 17, t.vocab), tokens(4, 17, t.vocab)];
    let (layers, heads, parts, d) = (2, 2, 2, 16);
    let possible = 2 * 17 * layers / 2 * heads * parts;
    let none = compiled(&t, retaining(0.0, 0));
    for (gamma, room) in [(0.5, 5u32), (f32::INFINITY, 4)] {
        let m = compiled(&t, retaining(gamma, room));
        for backend in BACKENDS {
            let (_, stats) = logits(&m, backend, &rows);
            assert_eq!(stats.kv_merged, possible);
            let most = u64::from(room.min(17)) * 2 * layers / 2 * heads * parts;
            match gamma.is_finite() {
                true => assert!(0 < stats.kv_retained && stats.kv_retained <= most, "{}", stats.kv_retained),
                false => assert_eq!(stats.kv_retained, most),
            }
        }
        let more = |batch, tokens| cache_bytes(&m.plan, batch, tokens) - cache_bytes(&none.plan, batch, tokens);
        let row = heads * parts * d * 2;
        assert_eq!(more(3, 11), 4 * 3 * layers / 2 * (heads * parts * 11 + u64::from(room) * row));
    }
    verified(&compiled(&Tiny::sized(276, 2, 32, [2, 1, 16], 48, 19), retaining(0.5, 2)));
}

/// What cannot be merged is said: a pair of which one layer has no cache, too few layers.
#[test]
fn row_27_minicache_refuses_what_is_shared_already() {
    let mut t = Tiny::llama(272);
    t.share_kv(&[0, 1, 2, 3, 3, 5], &[0, 1, 2, 3, 3, 5]);
    let e = refused(&t, merged(Some(2), 0.5));
    assert!(e.contains("kv_merge") && e.contains("layers 4 and 5") && e.contains("other layers read"), "{e}");
    assert!(refused(&Tiny::llama(272), merged(Some(5), 0.5)).contains("no two of 6 layers"));
    assert!(refused(&Tiny::llama(272), merged(None, 1.5)).contains("between 0 and 1"));
}

/// Merging, restoring and appending: the kernels' texts hold under all checks.
#[test]
fn row_27_minicache_kernels_are_checked() {
    let t = Tiny::sized(273, 2, 32, [2, 1, 16], 48, 19);
    verified(&compiled(&t, merged(Some(0), 0.6)));
}

fn kept(anchors: &[u32], window: u64, layer: Option<u32>) -> RunPolicy {
    RunPolicy { kv_keep: Some(KvKeep { anchors: anchors.to_vec(), window, layer }), ..RunPolicy::default() }
}

/// Tokens see anchors and near tokens; deeper layers see the anchors of one layer besides.
#[test]
fn row_51_anchor_attention_sees_anchors_and_near_tokens() {
    let t = Tiny::sized(51, 4, 64, [4, 2, 16], 128, 13);
    let anchors = [1u32, 4, 7, 11];
    for (window, layer) in [(3, None), (2, Some(1))] {
        let ids = anchors.iter().map(|a| *a as i32).collect();
        let form = Form { keep: Some((ids, window as usize, layer.map(|l| l as usize))), ..Form::default() };
        agrees(&t, &form, kept(&anchors, window, layer));
    }
}

/// Every token an anchor, or a window that nothing leaves: the model. And what contradicts it is said.
#[test]
fn row_51_anchor_attention_of_all_tokens_is_the_model() {
    let t = Tiny::sized(511, 4, 64, [4, 2, 16], 128, 13);
    let whole = compiled(&t, RunPolicy::default());
    same_bits(&compiled(&t, kept(&(0..13).collect::<Vec<_>>(), 1, None)), &whole, t.vocab);
    same_bits(&compiled(&t, kept(&[], 4096, None)), &whole, t.vocab);
    assert!(refused(&t, kept(&[1], 0, None)).contains("a token sees itself"));
    assert!(refused(&t, kept(&[1], 2, Some(4))).contains("which does not run"));
    verified(&compiled(&Tiny::sized(512, 2, 32, [2, 1, 16], 48, 19), kept(&[3, 4, 5], 2, Some(0))));
}
