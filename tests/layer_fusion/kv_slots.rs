//! Family C: keys and values of one layer in the attention of others.

use crate::harness::{
    BACKENDS, agrees, cache_bytes, compiled, logits, prefilled, reads, refused, same_bits, tokens, verified,
};
use crate::tiny::{Form, Tiny};
use frit::kv_table;
use frit_compiler::ingest::policy::{KvKeep, KvMerge, PrefillPasses, RunPolicy};
use serde_json::json;
use std::collections::BTreeMap;

fn map(sources: &[usize]) -> BTreeMap<usize, usize> {
    sources.iter().copied().enumerate().filter(|(i, s)| i != s).collect()
}

fn shared(seed: u64, k: &[usize], v: &[usize]) -> (Tiny, Form) {
    let mut t = Tiny::llama(seed);
    t.share_kv(k, v);
    (t, Form { keys: map(k), values: map(v), ..Form::default() })
}

/// Layers in pairs: three slots, the keys and values of odd layers are gone, and logits are those of the definition.
#[test]
fn row_23_cla_halves_the_cache() {
    let sources = [0, 0, 2, 2, 4, 4];
    let (t, form) = shared(23, &sources, &sources);
    agrees(&t, &form, RunPolicy::default());
    let m = compiled(&t, RunPolicy::default());
    assert_eq!(m.plan.kv_slots.len(), 3);
    let whole = compiled(&Tiny::llama(23), RunPolicy::default());
    assert_eq!(2 * cache_bytes(&m.plan, 2, 64), cache_bytes(&whole.plan, 2, 64));
    assert_eq!(reads(&m.plan, "k_proj").len(), 3);
    assert_eq!(reads(&m.plan, "v_proj").len(), 3);
}

#[test]
fn row_23_cla_of_one_layer_each_is_the_model() {
    let mut t = Tiny::llama(23);
    t.share_kv(&[0, 1, 2, 3, 4, 5], &[0, 1, 2, 3, 4, 5]);
    same_bits(&compiled(&t, RunPolicy::default()), &compiled(&Tiny::llama(23), RunPolicy::default()), t.vocab);
}

/// Behind the last layer that appends, a prompt runs its last token alone.
#[test]
fn row_23_prefill_behind_the_last_producer_runs_one_token() {
    let sources = [0, 1, 2, 2, 2, 2];
    let (t, _) = shared(231, &sources, &sources);
    let fast = compiled(&t, RunPolicy::default());
    let whole = compiled(&t, RunPolicy { whole_prefill: true, ..RunPolicy::default() });
    let ids = tokens(1, 37, t.vocab);
    let (a, b) = (prefilled(&fast, &ids), prefilled(&whole, &ids));
    let most = b.as_f32().unwrap().iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (a, b) in a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()) {
        assert!((a - b).abs() <= 1e-5 * most, "{a} and {b}");
    }
    let rows = |m: &frit::LoadedModel| {
        let p = m.plan.program("prefill").unwrap();
        p.values.iter().filter(|v| v.shape.iter().any(|d| d.as_size() == Some("S"))).count()
    };
    assert!(rows(&fast) < rows(&whole), "{} values of all tokens, {} without the cut", rows(&fast), rows(&whole));
}

/// One sliding layer type keeps its last producer, as Gemma-3n does: attention types may differ in their source.
#[test]
fn row_23_gemma_3n_maps_each_type_to_its_last_producer() {
    let sources = [0, 1, 2, 3, 3, 2];
    let (mut t, form) = shared(232, &sources, &sources);
    agrees(&t, &form, RunPolicy::default());
    t.frit["windows"] = json!([8, null, 8, null, 8, null]);
    compiled(&t, RunPolicy::default());
}

/// The nine cache sizes of the paper's table, to its digits: batch 8, 2047 tokens, f32.
#[test]
fn row_28_mlkv_table() {
    const MIB: f64 = 1048576.0;
    // name, layers with keys, heads in each, MiB
    let table = [
        ("MHA-144", 12, 12, 1151.44),
        ("GQA-48", 12, 4, 383.81),
        ("MLKV-48", 4, 12, 383.81),
        ("MQA-12", 12, 1, 95.95),
        ("MLKV-12", 4, 3, 95.95),
        ("MLKV-6", 6, 1, 47.98),
        ("MLKV-4", 4, 1, 31.98),
        ("MLKV-2", 2, 1, 15.99),
        ("MLKV-1", 1, 1, 7.996),
    ];
    for (name, layers, heads, mib) in table {
        let mut t = Tiny::sized(28, 12, 24, [12, heads, 64], 8, 11);
        let first: Vec<usize> = (0..layers).map(|i| i * 12 / layers).collect();
        let sources: Vec<usize> = (0..12).map(|i| *first.iter().rev().find(|f| **f <= i).unwrap()).collect();
        t.share_kv(&sources, &sources);
        let m = compiled(&t, RunPolicy::default());
        assert_eq!(m.plan.kv_slots.len(), layers, "{name}");
        let bytes = cache_bytes(&m.plan, 8, 2047);
        assert_eq!(bytes, 2 * (layers * heads) as u64 * 64 * 4 * 8 * 2047, "{name}");
        let digits = if mib < 10.0 { 1e3 } else { 1e2 };
        assert_eq!((bytes as f64 / MIB * digits).round() / digits, mib, "{name}");
    }
}

#[test]
fn row_28_mlkv_reads_the_nearest_earlier_keys() {
    let sources = [0, 0, 0, 3, 3, 3];
    let (t, form) = shared(28, &sources, &sources);
    agrees(&t, &form, RunPolicy::default());
}

/// Middle layers attend to the keys of the topmost of them: token by token is the truth, and the only way it runs.
#[test]
fn row_16_lckv_reads_keys_from_above() {
    let sources = [0, 4, 4, 4, 4, 5];
    let (t, form) = shared(16, &sources, &sources);
    agrees(&t, &form, RunPolicy::default());
    let m = compiled(&t, RunPolicy::default());
    assert_eq!(m.plan.kv_slots.len(), 3);
    assert_eq!(m.plan.sizes.iter().find(|s| s.name == "S").unwrap().max, Some(1));
}

/// A prompt as a whole, again and again: as many passes as it has tokens are what token by token gives, the tokens in front
/// are exact after as many passes, and passes until nothing changes are fewer. Chunks, two rows, and new tokens behind.
#[test]
fn row_16_lckv_prompts_in_passes() {
    let sources = [0, 4, 4, 4, 4, 5];
    let (mut t, form) = shared(162, &sources, &sources);
    // Attention that adds little, as training makes it: passes then forget their start.
    for l in 0..6 {
        t.tensors.get_mut(&Tiny::name(l, "self_attn.o_proj.weight")).unwrap().1.iter_mut().for_each(|w| *w *= 0.1);
    }
    let passes =
        |most, until| RunPolicy { prefill_passes: Some(PrefillPasses { most, until }), ..RunPolicy::default() };
    agrees(&t, &form, passes(0, 0.0));
    agrees(&t, &form, passes(0, 1e-5));
    let rows = vec![tokens(3, 33, t.vocab), tokens(4, 33, t.vocab)];
    let one_by_one = compiled(&t, RunPolicy::default());
    let few = compiled(&t, passes(4, 0.0));
    assert_eq!(few.plan.sizes.iter().find(|s| s.name == "S").unwrap().max, None);
    let until = compiled(&t, passes(0, 1e-5));
    for backend in BACKENDS {
        let (want, _) = logits(&one_by_one, backend, &rows);
        let want = want.as_f32().unwrap();
        let most = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let far = |m: &frit::LoadedModel, upto: usize| {
            let (got, stats) = logits(m, backend, &rows);
            let off = got.as_f32().unwrap().iter().zip(want).enumerate();
            let within = off.filter(|(i, _)| i / t.vocab % 33 < upto);
            (within.fold(0.0f32, |m, (_, (a, b))| m.max((a - b).abs())) / most, stats.passes)
        };
        let (front, count) = far(&few, 4);
        assert!(front <= 1e-5 && count == 4, "{front}");
        let (all, count) = far(&until, 33);
        assert!(all <= 1e-4 && (3..20).contains(&count), "{all} after {count} passes");
        let (all, _) = far(&compiled(&t, passes(1, 0.0)), 33);
        assert!(all > 1e-3, "one pass sees nothing from above, yet {all}");
    }
    assert!(refused(&Tiny::llama(16), passes(3, 0.0)).contains("no layer reads keys or values from above"));
    verified(&compiled(&t, passes(0, 0.0)));
}

/// With a window, a layer that reads from above sees one token less than others do: not the one it is at.
#[test]
fn row_16_lckv_identity_map_is_the_model() {
    let mut t = Tiny::llama(16);
    t.share_kv(&[0, 1, 2, 3, 4, 5], &[0, 1, 2, 3, 4, 5]);
    same_bits(&compiled(&t, RunPolicy::default()), &compiled(&Tiny::llama(16), RunPolicy::default()), t.vocab);
}

/// The map as published configurations write it.
#[test]
fn row_16_lckv_configurations_load() {
    let sources = [0, 4, 4, 4, 4, 5];
    let (mut t, form) = shared(161, &sources, &sources);
    t.frit = json!({});
    t.config = vec![
        ("architectures", json!(["LCKVLlamaForCausalLM"])),
        ("model_type", json!("lckv-llama")),
        ("layer_types", json!("0_4_…_4_5")),
    ];
    agrees(&t, &form, RunPolicy::default());
    t.config[2].1 = json!("0_4_4");
    assert!(refused(&t, RunPolicy::default()).contains("layer_types"));
}

/// `use_cla` and `cla_share_factor` say the same as a map.
#[test]
fn row_23_cla_fields_are_read() {
    let sources = [0, 0, 0, 3, 3, 3];
    let (by_map, _) = shared(233, &sources, &sources);
    let mut by_field = by_map.clone();
    by_field.frit = json!({});
    by_field.config = vec![("use_cla", json!(true)), ("cla_share_factor", json!(3))];
    same_bits(&compiled(&by_field, RunPolicy::default()), &compiled(&by_map, RunPolicy::default()), by_map.vocab);
}

/// Slots of keys alone, of values alone, of another layer: the kernels' texts hold under all checks.
#[test]
fn lt_08_kernels_of_shared_slots_are_checked() {
    let mut t = Tiny::sized(80, 3, 32, [2, 1, 16], 48, 19);
    t.share_kv(&[0, 1, 1], &[0, 0, 0]);
    verified(&compiled(&t, RunPolicy::default()));
    let mut t = Tiny::sized(81, 3, 32, [2, 1, 16], 48, 19);
    t.share_kv(&[1, 1, 2], &[1, 1, 2]);
    verified(&compiled(&t, RunPolicy::default()));
}

/// SVFormer: all layers read the values of layer 0; the cache keeps L key parts and one value part.
#[test]
fn row_47_svformer_keeps_one_value_part() {
    let (t, form) = shared(47, &[0, 1, 2, 3, 4, 5], &[0; 6]);
    agrees(&t, &form, RunPolicy::default());
    let m = compiled(&t, RunPolicy::default());
    let whole = compiled(&Tiny::llama(47), RunPolicy::default());
    assert_eq!(12 * cache_bytes(&m.plan, 1, 10), 7 * cache_bytes(&whole.plan, 1, 10));
    assert_eq!(reads(&m.plan, "v_proj").len(), 1);
}

#[test]
fn row_47_resformer_blends_with_the_first_values() {
    let mut t = Tiny::llama(471);
    t.frit["value_residual"] = json!(vec![[0.5, 0.25]; 6]);
    agrees(&t, &Form { blend: Some([0.5, 0.25]), ..Form::default() }, RunPolicy::default());
    t.frit["value_residual"] = json!(vec![[1.0, 0.0]; 6]);
    same_bits(&compiled(&t, RunPolicy::default()), &compiled(&Tiny::llama(471), RunPolicy::default()), t.vocab);
}

/// Key heads and value heads of unlike number, each query head with its own choice.
#[test]
fn row_24_dha_maps_heads_apart() {
    let mut t = Tiny::sized(24, 2, 64, [4, 4, 16], 128, 97);
    let maps = (vec![1, 0, 0, 1], vec![2, 0, 1, 2]);
    let mut r = crate::support::Random::new(240);
    for l in 0..2 {
        t.random(&mut r, &Tiny::name(l, "self_attn.k_proj.weight"), &[2 * 16, 64], 0.4);
        t.random(&mut r, &Tiny::name(l, "self_attn.v_proj.weight"), &[3 * 16, 64], 0.2);
    }
    let heads = json!({ "q": 4, "k": 2, "v": 3, "k_of": maps.0, "v_of": maps.1 });
    t.frit["heads"] = json!([heads, heads]);
    let form = Form { head_maps: [(0, maps.clone()), (1, maps)].into(), ..Form::default() };
    agrees(&t, &form, RunPolicy::default());
    let m = compiled(&t, RunPolicy::default());
    assert_eq!(cache_bytes(&m.plan, 1, 1), 2 * (2 + 3) * 16 * 4);
}

/// The table of `inspect --kv`, slot by slot, in bytes a token, against what each form has to keep: `H` heads of `d` elements
/// of 4 bytes for keys, and as many for values, wherever they are its own.
#[test]
fn lt_08_byte_tables() {
    const F32: u64 = 4;
    let (layers, h, d) = (6u64, 2u64, 16u64);
    let part = h * d * F32;
    let table = |m: &frit::LoadedModel| -> Vec<(u64, u64)> { kv_table(&m.plan).iter().map(|s| (s.k, s.v)).collect() };
    let names = |m: &frit::LoadedModel| -> Vec<String> { kv_table(&m.plan).into_iter().map(|s| s.name).collect() };
    let shared_table = |k: &[usize], v: &[usize]| table(&compiled(&shared(808, k, v).0, RunPolicy::default()));
    let whole = compiled(&Tiny::llama(808), RunPolicy::default());
    assert_eq!(table(&whole), vec![(part, part); layers as usize]);
    assert_eq!(names(&whole)[..2], ["layer0", "layer1"]);

    // CLA by pairs: one slot for two layers. MLKV in two layers. LCKV: the first, the topmost middle and the last layer.
    let cla = [0, 0, 2, 2, 4, 4];
    assert_eq!(shared_table(&cla, &cla), vec![(part, part); (layers / 2) as usize]);
    let mlkv = [0, 0, 0, 3, 3, 3];
    assert_eq!(shared_table(&mlkv, &mlkv), vec![(part, part); 2]);
    let lckv = [0, 4, 4, 4, 4, 5];
    assert_eq!(shared_table(&lckv, &lckv), vec![(part, part); 3]);

    // SVFormer: keys of every layer, values of the first.
    let keys: Vec<usize> = (0..6).collect();
    let svformer = shared_table(&keys, &[0; 6]);
    assert_eq!(svformer, [vec![(part, part)], vec![(part, 0); 5]].concat());
    let bytes: u64 = svformer.iter().map(|(k, v)| k + v).sum();
    assert_eq!(bytes, (layers + 1) * part);
    // Shared probabilities: who uses those of layer 2 keeps values alone.
    let mut t = Tiny::llama(808);
    t.frit["probs_from"] = json!([0, 1, 2, 2, 2, 5]);
    (3..5).for_each(|l| t.without(l, &["self_attn.q_proj.weight", "self_attn.k_proj.weight"]));
    let one = |i: usize| if (3..5).contains(&i) { (0, part) } else { (part, part) };
    assert_eq!(table(&compiled(&t, RunPolicy::default())), (0..6).map(one).collect::<Vec<_>>());

    // MiniCache from layer 2: a direction of keys and one of values for a pair, two lengths of each a head.
    let merge =
        RunPolicy { kv_merge: Some(KvMerge { start: Some(2), t: 0.6, gamma: 0.0, retain: 0 }), ..RunPolicy::default() };
    let pair = [(part, part), (h * F32, h * F32), (h * F32, h * F32)];
    let merged = table(&compiled(&Tiny::llama(808), merge));
    assert_eq!(merged, [vec![(part, part); 2], pair.to_vec(), pair.to_vec()].concat());
    let of_two: u64 = pair.iter().map(|(k, v)| k + v).sum();
    assert_eq!(of_two * 2 * d, 4 * part * (d + 2));

    // Anchors: a flag a token beside the slots as they were.
    let keep =
        RunPolicy { kv_keep: Some(KvKeep { anchors: vec![1, 4], window: 3, layer: None }), ..RunPolicy::default() };
    let kept = table(&compiled(&Tiny::llama(808), keep));
    assert_eq!(kept, [vec![(part, part); layers as usize], vec![(F32, 0)]].concat());
}

/// Contradictions are named together.
#[test]
fn lt_08_contradicting_maps_are_refused() {
    let mut t = Tiny::llama(8);
    t.frit["kv_map"] = json!([{ "k": 0, "v": 0 }, { "k": 9, "v": 0 }]);
    let e = refused(&t, RunPolicy::default());
    assert!(e.contains("kv_map"), "{e}");
    let (t, _) = shared(8, &[0, 0, 2, 2, 4, 4], &[0, 0, 2, 2, 4, 4]);
    let e = refused(&t, RunPolicy { skip_layers: vec![2], ..RunPolicy::default() });
    assert!(e.contains("layer 2") && e.contains("layer 3"), "{e}");
}
