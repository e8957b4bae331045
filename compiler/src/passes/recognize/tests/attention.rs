use super::kit::{Kit, raises};
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, UnaryOp};

const LOWEST: f32 = -3.402_823_5e38;

/// q `[B, 4, S, 6]`, k and v `[B, heads, T, 6]` from projections `[B, S, H·6]`.
fn project(k: &mut Kit, name: &str, heads: u64, tokens: &str) -> ValueId {
    let x = k.x(name, &format!("B, {tokens}, {}", heads * 6));
    let x = k.reshape(x, &format!("B, {tokens}, {heads}, 6"));
    k.transpose(x, &[0, 2, 1, 3])
}

fn qkv(k: &mut Kit) -> [ValueId; 3] {
    [project(k, "q", 4, "S"), project(k, "k", 4, "S"), project(k, "v", 4, "S")]
}

fn scores(k: &mut Kit, q: ValueId, key: ValueId) -> ValueId {
    let t = k.transpose(key, &[0, 1, 3, 2]);
    k.matmul(q, t)
}

fn attends(k: &mut Kit, scores: ValueId, v: ValueId) -> ValueId {
    let p = k.softmax(scores);
    k.matmul(p, v)
}

/// The line of the attention, where there is exactly one.
fn raised(build: impl FnOnce(&mut Kit) -> ValueId) -> String {
    let text = raises(&[("attention", 1)], build);
    text.lines().find(|l| l.contains(" = attention")).unwrap().trim().to_owned()
}

fn kept(build: impl FnOnce(&mut Kit) -> ValueId) {
    raises(&[("attention", 0)], build);
}

/// `t ≤ s`, `[S, S]`.
fn causal(k: &mut Kit) -> ValueId {
    let (s, t) = (k.iota("S, 1", 0, "0"), k.iota("S", 0, "0"));
    k.bin(BinaryOp::Le, t, s)
}

fn added(k: &mut Kit, mask: ValueId, hidden: f32) -> ValueId {
    let (zero, low) = (k.f(0.0), k.f(hidden));
    k.select(mask, zero, low)
}

#[test]
fn scale_in_every_place() {
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let c = k.f(3.464_101_6);
        let s = k.div(s, c);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.28867513}"), "{line}");
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let q = k.scale(q, 0.5);
        let s = scores(k, q, key);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.5}"), "{line}");
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let q = k.scale(q, 0.5);
        let t = k.transpose(key, &[0, 1, 3, 2]);
        let t = k.scale(t, 0.5);
        let s = k.matmul(q, t);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.25}"), "{line}");
    let line = raised(|k| {
        let x = k.x("x", "B, S, 24");
        let x = k.scale(x, 0.25);
        let x = k.reshape(x, "B, S, 4, 6");
        let q = k.transpose(x, &[0, 2, 1, 3]);
        let (key, v) = (project(k, "k", 4, "S"), project(k, "v", 4, "S"));
        let s = scores(k, q, key);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.25}"), "{line}");
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0}"), "{line}");
}

#[test]
fn the_mask_of_the_dynamo_exporter() {
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let ones = k.f(1.0);
        let ones = k.expand(ones, "S");
        let ones = k.cast(ones, Scalar::Bool);
        let ones = k.reshape(ones, "S, 1");
        let c = causal(k);
        let c = k.bin(BinaryOp::And, ones, c);
        let m = k.ids("attention_mask", "B, S", &[1, 1, 1, 1, 1, 1, 1, 0, 0, 1]);
        let m = k.cast(m, Scalar::Bool);
        let flat = k.reshape(m, "B*S");
        let (b, t) = (k.iota("B, 1", 0, "0"), k.iota("S", 0, "0"));
        let n = k.iota("1, 1", 0, "S");
        let row = k.mul(b, n);
        let at = k.add(row, t);
        let m = k.op(Op::Gather, &[flat, at]);
        let m = k.reshape(m, "B, 1, S");
        let c = k.bin(BinaryOp::And, c, m);
        let c = k.reshape(c, "B, 1, S, S");
        let bias = added(k, c, LOWEST);
        let s = scores(k, q, key);
        let s = k.scale(s, 0.5);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.5, causal=0, mask}"), "{line}");
}

#[test]
fn the_mask_of_the_torchscript_exporter() {
    let text = raises(&[("attention", 1)], |k| {
        let [q, key, v] = qkv(k);
        let (s, t) = (k.iota("S, 1", 0, "0"), k.iota("1, S", 1, "0"));
        let c = k.bin(BinaryOp::Le, t, s);
        let c = k.reshape(c, "1, S, S");
        let m = k.flags("mask", "B, S");
        let m = k.reshape(m, "B, 1, S");
        let c = k.bin(BinaryOp::And, c, m);
        let c = k.reshape(c, "B, 1, S, S");
        let bias = added(k, c, LOWEST);
        let bias = k.slice(bias, 3, "0", "S");
        let s = scores(k, q, key);
        let s = k.scale(s, 0.5);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(text.contains("attention{scale=0.5, causal=0, mask}"), "{text}");
    assert!(text.contains("reshape %1 : bool[B, 1, 1, S]") || text.contains(": bool[B, 1, 1, S]"), "{text}");
    assert!(!text.contains("bool[B, 1, S, S]"), "{text}");
}

#[test]
fn causal_masks_in_every_form() {
    // selected scores, with a stored triangle, as GPT-2 has it
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let data = (0..64).map(|i| f32::from(u8::from(i % 8 <= i / 8))).collect();
        let w = k.weight(Storage::Bool, "1, 1, 8, 8", data);
        let w = k.slice(w, 2, "0", "S");
        let w = k.slice(w, 3, "0", "S");
        let s = scores(k, q, key);
        let s = k.scale(s, 0.5);
        let low = k.f(LOWEST);
        let s = k.select(w, s, low);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.5, causal=0}"), "{line}");
    // selected where it is hidden
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let (s, t) = (k.iota("S, 1", 0, "0"), k.iota("S", 0, "0"));
        let later = k.bin(BinaryOp::Lt, s, t);
        let s = scores(k, q, key);
        let low = k.f(f32::NEG_INFINITY);
        let s = k.select(later, low, s);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0, causal=0}"), "{line}");
    // T5: an upper triangle of numbers times a comparison, cut out of a larger one
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let (s, t) = (k.iota("S, 1", 0, "1"), k.iota("1, S + 1", 1, "0"));
        let upper = k.bin(BinaryOp::Le, s, t);
        let (zero, low) = (k.f(0.0), k.f(LOWEST));
        let low = k.expand(low, "S, S + 1");
        let triangle = k.select(upper, low, zero);
        let s = k.iota("S, 1", 0, "0");
        let greater = k.bin(BinaryOp::Lt, s, t);
        let greater = k.cast(greater, Scalar::F32);
        let m = k.mul(triangle, greater);
        let m = k.reshape(m, "1, 1, S, S + 1");
        let m = k.expand(m, "B, 1, S, S + 1");
        let m = k.slice(m, 3, "0", "S");
        let bias = k.x("relative", "1, 4, S, S");
        let m = k.add(bias, m);
        let s = scores(k, q, key);
        let s = k.add(s, m);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0, causal=0, bias}"), "{line}");
    // (1 − m)·low of a comparison
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let c = causal(k);
        let c = k.cast(c, Scalar::F32);
        let one = k.f(1.0);
        let m = k.sub(one, c);
        let m = k.scale(m, -1e9);
        let s = scores(k, q, key);
        let s = k.add(s, m);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0, causal=0}"), "{line}");
}

#[test]
fn causal_offset_of_a_cache() {
    let line = raised(|k| {
        let q = project(k, "q", 4, "S");
        let (key, v) = (project(k, "k", 4, "P + S"), project(k, "v", 4, "P + S"));
        let (s, t) = (k.iota("S, 1", 0, "P"), k.iota("P + S", 0, "0"));
        let c = k.bin(BinaryOp::Le, t, s);
        let bias = added(k, c, LOWEST);
        let s = scores(k, q, key);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(line.contains("causal=P}"), "{line}");
    // one query at the end sees all keys
    let line = raised(|k| {
        let q = project(k, "q", 4, "1");
        let (key, v) = (project(k, "k", 4, "P + 1"), project(k, "v", 4, "P + 1"));
        let (s, t) = (k.iota("1, 1", 0, "P"), k.iota("P + 1", 0, "0"));
        let c = k.bin(BinaryOp::Le, t, s);
        let bias = added(k, c, LOWEST);
        let s = scores(k, q, key);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0}"), "{line}");
}

#[test]
fn sliding_windows_and_soft_caps() {
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let c = causal(k);
        let s = k.iota("S", 0, "0");
        let eight = k.i(3);
        let low = k.bin(BinaryOp::Sub, s, eight);
        let low = k.reshape(low, "S, 1");
        let t = k.iota("S", 0, "0");
        let near = k.bin(BinaryOp::Lt, low, t);
        let m = k.bin(BinaryOp::And, near, c);
        let m = k.reshape(m, "1, 1, S, S");
        let bias = added(k, m, LOWEST);
        let s = scores(k, q, key);
        let s = k.scale(s, 0.223_606_8);
        let c = k.f(20.0);
        let s = k.div(s, c);
        let s = k.un(UnaryOp::Tanh, s);
        let s = k.mul(s, c);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.2236068, causal=0, window=3, softcap=20.0}"), "{line}");
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let c = causal(k);
        let (s, t) = (k.iota("S, 1", 0, "0"), k.iota("1, S", 1, "0"));
        let d = k.bin(BinaryOp::Sub, s, t);
        let w = k.i(2);
        let near = k.bin(BinaryOp::Lt, d, w);
        let m = k.bin(BinaryOp::And, c, near);
        let s = scores(k, q, key);
        let low = k.f(LOWEST);
        let s = k.select(m, s, low);
        attends(k, s, v)
    });
    assert!(line.contains("causal=0, window=2}"), "{line}");
    // a window to both sides stays a mask
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let (s, t) = (k.iota("S, 1", 0, "0"), k.iota("1, S", 1, "0"));
        let d = k.bin(BinaryOp::Sub, s, t);
        let d = k.un(UnaryOp::Abs, d);
        let w = k.i(2);
        let near = k.bin(BinaryOp::Lt, d, w);
        let s = scores(k, q, key);
        let low = k.f(LOWEST);
        let s = k.select(near, s, low);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0, mask}"), "{line}");
}

#[test]
fn biases_stay_biases() {
    // BERT: an integer mask may hold other numbers than 0 and 1
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let m = k.ids("attention_mask", "B, S", &[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
        let m = k.reshape(m, "B, 1, 1, S");
        let m = k.cast(m, Scalar::F32);
        let one = k.f(1.0);
        let m = k.sub(one, m);
        let m = k.scale(m, LOWEST);
        let s = scores(k, q, key);
        let s = k.scale(s, 0.5);
        let s = k.add(s, m);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.5, bias}"), "{line}");
    // ALiBi inside the scale
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let slopes = k.weight(Storage::F32, "1, 4, 1, 1", vec![0.5, 0.25, 0.125, 0.0625]);
        let t = k.iota("1, 1, 1, S", 3, "0");
        let t = k.cast(t, Scalar::F32);
        let a = k.mul(slopes, t);
        let s = scores(k, q, key);
        let s = k.add(a, s);
        let s = k.scale(s, 0.5);
        let c = causal(k);
        let bias = added(k, c, -1e4);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=0.5, causal=0, bias}"), "{line}");
    // one number everywhere is seen by no softmax
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let c = k.f(1.5);
        let c = k.expand(c, "1, 4, S, S");
        let s = k.add(s, c);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0}"), "{line}");
}

fn repeated(k: &mut Kit, x: ValueId) -> ValueId {
    let x = k.reshape(x, "B, 2, 1, S, 6");
    let x = k.expand(x, "B, 2, 2, S, 6");
    k.reshape(x, "B, 4, S, 6")
}

#[test]
fn grouped_heads() {
    let line = raised(|k| {
        let (q, key, v) = (project(k, "q", 4, "S"), project(k, "k", 2, "S"), project(k, "v", 2, "S"));
        let (key, v) = (repeated(k, key), repeated(k, v));
        let s = scores(k, q, key);
        let s = k.scale(s, 0.5);
        attends(k, s, v)
    });
    assert!(!line.contains("reshape"), "{line}");
    let text = raises(&[("attention", 1)], |k| {
        let (q, key, v) = (project(k, "q", 4, "S"), project(k, "k", 2, "S"), project(k, "v", 2, "S"));
        let (key, v) = (repeated(k, key), repeated(k, v));
        let s = scores(k, q, key);
        attends(k, s, v)
    });
    assert!(!text.contains("f32[B, 2, 2, S, 6]"), "{text}");
    // one key head for all, by broadcasting
    let text = raises(&[("attention", 1)], |k| {
        let q = project(k, "q", 4, "S");
        let (key, v) = (k.x("k", "B, 1, S, 6"), k.x("v", "B, 1, S, 6"));
        let s = scores(k, q, key);
        attends(k, s, v)
    });
    assert!(!text.contains("broadcast"), "{text}");
    // groups as an axis of their own
    let text = raises(&[("attention", 1)], |k| {
        let q = project(k, "q", 4, "S");
        let q = k.reshape(q, "B, 2, 2, S, 6");
        let (key, v) = (project(k, "k", 2, "S"), project(k, "v", 2, "S"));
        let (key, v) = (k.reshape(key, "B, 2, 1, S, 6"), k.reshape(v, "B, 2, 1, S, 6"));
        let t = k.transpose(key, &[0, 1, 2, 4, 3]);
        let s = k.matmul(q, t);
        let c = causal(k);
        let bias = added(k, c, LOWEST);
        let s = k.add(s, bias);
        let y = attends(k, s, v);
        k.reshape(y, "B, 4, S, 6")
    });
    assert!(text.contains("causal=0"), "{text}");
    // only the keys are repeated
    raises(&[("attention", 1)], |k| {
        let (q, key, v) = (project(k, "q", 4, "S"), project(k, "k", 2, "S"), project(k, "v", 4, "S"));
        let key = repeated(k, key);
        let s = scores(k, q, key);
        attends(k, s, v)
    });
}

#[test]
fn heads_merged_with_the_batch() {
    let text = raises(&[("attention", 1)], |k| {
        let [q, key, v] = qkv(k);
        let [q, key, v] = [q, key, v].map(|x| k.reshape(x, "4*B, S, 6"));
        let t = k.transpose(key, &[0, 2, 1]);
        let s = k.matmul(q, t);
        let s = k.reshape(s, "B, 4, S, S");
        let c = causal(k);
        let bias = added(k, c, LOWEST);
        let m = k.flags("mask", "B, 1, 1, S");
        let pad = added(k, m, LOWEST);
        let s = k.add(s, bias);
        let s = k.add(s, pad);
        let s = k.reshape(s, "4*B, S, S");
        let y = attends(k, s, v);
        k.reshape(y, "B, 4, S, 6")
    });
    assert!(text.contains("attention{scale=1.0, causal=0, mask}"), "{text}");
    assert!(!text.contains("4*B"), "{text}");
    let line = raised(|k| {
        let [q, key, v] = ["q", "k", "v"].map(|n| k.x(n, "B, S, 6"));
        let t = k.transpose(key, &[0, 2, 1]);
        let s = k.matmul(q, t);
        attends(k, s, v)
    });
    assert!(line.contains("f32[B, 1, S, 6]"), "{line}");
}

#[test]
fn a_guard_against_rows_without_keys() {
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let c = causal(k);
        let bias = added(k, c, f32::NEG_INFINITY);
        let s = scores(k, q, key);
        let s = k.add(s, bias);
        let p = k.softmax(s);
        let ok = k.bin(BinaryOp::Eq, p, p);
        let nan = k.un(UnaryOp::Not, ok);
        let zero = k.f(0.0);
        let p = k.select(nan, zero, p);
        k.matmul(p, v)
    });
    assert!(line.contains("attention{scale=1.0, causal=0}"), "{line}");
}

#[test]
fn cross_attention_and_wide_values() {
    let line = raised(|k| {
        let q = project(k, "q", 4, "S");
        let (key, v) = (project(k, "k", 4, "N"), k.x("v", "B, 4, N, 10"));
        let s = scores(k, q, key);
        attends(k, s, v)
    });
    assert!(line.ends_with(": f32[B, 4, S, 10]"), "{line}");
    // keys that are stored transposed
    raised(|k| {
        let q = project(k, "q", 4, "S");
        let (key, v) = (k.x("k", "B, 4, 6, N"), project(k, "v", 4, "N"));
        let s = k.matmul(q, key);
        attends(k, s, v)
    });
}

#[test]
fn a_decomposed_softmax_inside() {
    raises(&[("attention", 1), ("softmax", 1)], |k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let m = k.reduce(frit_kernels::spec::ReduceOp::Max, s, 3, true);
        let e = k.sub(s, m);
        let e = k.un(UnaryOp::Exp, e);
        let n = k.reduce(frit_kernels::spec::ReduceOp::Sum, e, 3, true);
        let p = k.div(e, n);
        k.matmul(p, v)
    });
}

#[test]
fn probabilities_or_scores_used_elsewhere_stay() {
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let p = k.softmax(s);
        k.out("probabilities", p);
        k.matmul(p, v)
    });
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        k.out("scores", s);
        attends(k, s, v)
    });
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let p = k.softmax(s);
        let a = k.matmul(p, v);
        let w = project(k, "w", 4, "S");
        let b = k.matmul(p, w);
        k.add(a, b)
    });
}

#[test]
fn near_misses() {
    // a softmax over the queries
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let s = k.transpose(s, &[0, 1, 3, 2]);
        let p = k.softmax(s);
        let p = k.transpose(p, &[0, 1, 3, 2]);
        k.matmul(p, v)
    });
    // the scores are multiplied by a value
    kept(|k| {
        let [q, key, v] = qkv(k);
        let c = k.x("temperature", "B, 4, 1, 1");
        let s = scores(k, q, key);
        let s = k.mul(s, c);
        attends(k, s, v)
    });
    // the mask is a number that hides nothing
    kept(|k| {
        let [q, key, v] = qkv(k);
        let c = causal(k);
        let low = k.f(-5.0);
        let s = scores(k, q, key);
        let s = k.select(c, s, low);
        attends(k, s, v)
    });
    // a bias inside the soft cap
    kept(|k| {
        let [q, key, v] = qkv(k);
        let b = k.x("b", "1, 4, S, S");
        let s = scores(k, q, key);
        let s = k.add(s, b);
        let s = k.un(UnaryOp::Tanh, s);
        let s = k.scale(s, 20.0);
        attends(k, s, v)
    });
    // the scores pass through another function
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let s = k.un(UnaryOp::Relu, s);
        attends(k, s, v)
    });
    // no product below
    kept(|k| {
        let (s, v) = (k.x("s", "B, 4, S, S"), project(k, "v", 4, "S"));
        attends(k, s, v)
    });
    // the probabilities are masked
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let p = k.softmax(s);
        let m = k.x("m", "1, 4, 1, 1");
        let p = k.mul(p, m);
        k.matmul(p, v)
    });
}

#[test]
fn a_small_added_number_is_a_bias() {
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let c = causal(k);
        let bias = added(k, c, -5.0);
        let s = scores(k, q, key);
        let s = k.add(s, bias);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0, bias}"), "{line}");
}

#[test]
fn a_mask_that_hides_the_past_is_not_causal() {
    let line = raised(|k| {
        let [q, key, v] = qkv(k);
        let (s, t) = (k.iota("S, 1", 0, "0"), k.iota("S", 0, "0"));
        let c = k.bin(BinaryOp::Le, s, t);
        let low = k.f(LOWEST);
        let s = scores(k, q, key);
        let s = k.select(c, s, low);
        attends(k, s, v)
    });
    assert!(line.contains("attention{scale=1.0, mask}"), "{line}");
}

#[test]
fn sinks() {
    for (windowed, masked, shifted) in [(false, false, false), (true, true, true), (false, true, true)] {
        let text = raises(&[("attention", 1)], |k| {
            let [q, key, v] = qkv(k);
            let s = scores(k, q, key);
            let s = k.scale(s, 0.5);
            let c = causal(k);
            let mut c = k.reshape(c, "1, 1, S, S");
            if windowed {
                let (s, t) = (k.iota("S, 1", 0, "-3"), k.iota("S", 0, "0"));
                let near = k.bin(BinaryOp::Lt, s, t);
                c = k.bin(BinaryOp::And, c, near);
            }
            if masked {
                let m = k.flags("mask", "B, 1, 1, S");
                c = k.bin(BinaryOp::And, c, m);
            }
            let bias = added(k, c, LOWEST);
            let s = k.add(s, bias);
            let sink = k.x("sink", "4");
            let sink = k.reshape(sink, "1, 4, 1, 1");
            let sink = k.expand(sink, "B, 4, S, 1");
            let mut all = k.concat(&[s, sink], 3);
            if shifted {
                let top = k.reduce(frit_kernels::spec::ReduceOp::Max, all, 3, true);
                all = k.sub(all, top);
            }
            let p = k.softmax(all);
            let p = k.slice(p, 3, "0", "S");
            k.matmul(p, v)
        });
        assert!(text.contains("attention{scale=0.5, causal=1, "), "{text}");
        assert!(!text.contains("f32[B, 4, S, S"), "{text}");
    }
}

#[test]
fn near_misses_of_sinks() {
    // the sink stands in front, and a key is left out
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let sink = k.x("sink", "B, 4, S, 1");
        let all = k.concat(&[sink, s], 3);
        let p = k.softmax(all);
        let p = k.slice(p, 3, "0", "S");
        k.matmul(p, v)
    });
    // two of them
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let sink = k.x("sink", "B, 4, S, 2");
        let all = k.concat(&[s, sink], 3);
        let p = k.softmax(all);
        let p = k.slice(p, 3, "0", "S");
        k.matmul(p, v)
    });
    // its probability is used
    kept(|k| {
        let [q, key, v] = qkv(k);
        let s = scores(k, q, key);
        let sink = k.x("sink", "B, 4, S, 1");
        let all = k.concat(&[s, sink], 3);
        let p = k.softmax(all);
        let left = k.slice(p, 3, "S", "1");
        k.out("left", left);
        let p = k.slice(p, 3, "0", "S");
        k.matmul(p, v)
    });
}

#[test]
fn a_bias_by_window_of_an_image() {
    let text = raises(&[("attention", 1)], |k| {
        let [q, key, v] = ["q", "k", "v"].map(|n| k.x(n, "3*B, 4, 5, 6"));
        let s = scores(k, q, key);
        let s = k.scale(s, 0.5);
        let relative = k.x("relative", "1, 4, 5, 5");
        let s = k.add(s, relative);
        let m = k.x("shifted", "1, 3, 1, 5, 5");
        let s = k.reshape(s, "B, 3, 4, 5, 5");
        let s = k.add(s, m);
        let s = k.reshape(s, "3*B, 4, 5, 5");
        attends(k, s, v)
    });
    assert!(text.contains("attention{scale=0.5, bias}"), "{text}");
}

#[test]
fn scores_bounded_at_a_hidden_number() {
    let bounded = |low: f32| {
        move |k: &mut Kit| {
            let [q, key, v] = qkv(k);
            let s = scores(k, q, key);
            let c = causal(k);
            let bias = added(k, c, LOWEST);
            let s = k.add(s, bias);
            let low = k.f(low);
            let s = k.bin(BinaryOp::Max, s, low);
            attends(k, s, v)
        }
    };
    assert!(raised(bounded(LOWEST)).contains("attention{scale=1.0, causal=0}"));
    kept(bounded(0.0));
}
