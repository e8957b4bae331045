//! Family J: attention probabilities of one layer in others.

use crate::harness::{BACKENDS, agrees, cache_bytes, compiled, logits, reads, same_bits, tokens, verified};
use crate::tiny::{Form, Tiny};
use frit_compiler::ingest::policy::{Probs, RunPolicy};
use frit_kernels::spec::Anchor;
use serde_json::json;
use std::collections::BTreeMap;

fn spans(seed: u64, from: &[usize]) -> (Tiny, Form) {
    let mut t = Tiny::llama(seed);
    t.frit["probs_from"] = json!(from);
    let probs: BTreeMap<usize, usize> = from.iter().copied().enumerate().filter(|(i, s)| i != s).collect();
    for l in probs.keys() {
        t.without(*l, &["self_attn.q_proj.weight", "self_attn.k_proj.weight"]);
    }
    (t, Form { probs, ..Form::default() })
}

fn with(probs: Probs) -> RunPolicy {
    RunPolicy { probs, ..RunPolicy::default() }
}

/// Probabilities stored or computed again: both are the definition's, and agree.
#[test]
fn row_43_shared_attention_stored_and_recomputed() {
    let (t, form) = spans(43, &[0, 1, 2, 2, 2, 5]);
    for probs in [Probs::Store, Probs::Recompute, Probs::Auto] {
        agrees(&t, &form, with(probs));
    }
    let (stored, again) = (compiled(&t, with(Probs::Store)), compiled(&t, with(Probs::Recompute)));
    let rows = vec![tokens(1, 9, t.vocab), tokens(2, 9, t.vocab)];
    for backend in BACKENDS {
        let (a, b) = (logits(&stored, backend, &rows).0, logits(&again, backend, &rows).0);
        let most = a.as_f32().unwrap().iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let far = a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(far <= 1e-5 * most, "{backend:?}: {far} of {most}");
    }
}

/// Sharers have neither queries nor keys: no weights, no part of the cache. Stored probabilities are computed once.
#[test]
fn row_43_sharers_keep_values_alone() {
    let (t, _) = spans(43, &[0, 1, 2, 2, 2, 5]);
    let m = compiled(&t, with(Probs::Store));
    assert_eq!(reads(&m.plan, "q_proj").len(), 4);
    assert_eq!(reads(&m.plan, "k_proj").len(), 4);
    assert_eq!(m.plan.kv_slots.iter().filter(|s| s.k_shape.is_empty()).count(), 2);
    let whole = compiled(&Tiny::llama(43), RunPolicy::default());
    assert_eq!(12 * cache_bytes(&m.plan, 1, 5), 10 * cache_bytes(&whole.plan, 1, 5));
    let attentions = |m: &frit::LoadedModel| {
        let decode = m.plan.program("decode").unwrap();
        let kernels = decode.steps.iter().filter_map(|s| m.plan.kernels.get(s.kernel as usize));
        kernels.filter(|k| matches!(k.spec.anchor, Anchor::Attention(_))).count()
    };
    assert_eq!(attentions(&compiled(&t, with(Probs::Recompute))), 6);
    assert_eq!(attentions(&m), 3, "layers 2 to 4 multiply stored probabilities");
}

/// Stored probabilities and their products: the kernels' texts hold under all checks.
#[test]
fn row_43_kernels_of_stored_probabilities_are_checked() {
    let mut t = Tiny::sized(430, 3, 32, [2, 1, 16], 48, 19);
    t.frit["probs_from"] = json!([0, 0, 0]);
    for l in [1, 2] {
        t.without(l, &["self_attn.q_proj.weight", "self_attn.k_proj.weight"]);
    }
    verified(&compiled(&t, with(Probs::Store)));
}

#[test]
fn row_08_san_blocks_of_adjacent_layers() {
    let (t, form) = spans(8, &[0, 0, 2, 2, 2, 2]);
    agrees(&t, &form, with(Probs::Auto));
    let (alone, _) = spans(8, &[0, 1, 2, 3, 4, 5]);
    same_bits(&compiled(&alone, with(Probs::Auto)), &compiled(&Tiny::llama(8), with(Probs::Auto)), t.vocab);
}

/// The output of the attention reused, not only its probabilities: no values of one's own either.
#[test]
fn row_08_san_reuses_outputs() {
    let mut t = Tiny::llama(81);
    t.frit["probs_from"] = json!([0, 1, 2, 2, 4, 4]);
    t.frit["shared"] = json!("output");
    for l in [3, 5] {
        t.without(l, &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]);
    }
    agrees(&t, &Form { outputs: [(3, 2), (5, 4)].into(), ..Form::default() }, with(Probs::Auto));
    assert_eq!(compiled(&t, with(Probs::Auto)).plan.kv_slots.len(), 4);
}

/// First and last layer keep their attention, the middle shares in blocks.
#[test]
fn row_44_echoatt_keeps_first_and_last() {
    let (t, form) = spans(44, &[0, 1, 1, 3, 3, 5]);
    agrees(&t, &form, with(Probs::Auto));
    let saved = |m: &Tiny| m.tensors.values().map(|t| t.1.len()).sum::<usize>();
    assert_eq!(saved(&Tiny::llama(44)) - saved(&t), 2 * (64 * 64 + 32 * 64));
}
