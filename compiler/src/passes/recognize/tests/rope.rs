use super::kit::{Kit, keeps, raises};
use crate::graph::{Op, ValueId};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::UnaryOp;

const FREQ: [f32; 3] = [1.0, 0.215_443_47, 0.046_415_89];

/// Angles `[1, S, 3]` of counted positions, as exporters compute them.
fn counted(k: &mut Kit) -> ValueId {
    let f = k.weight(Storage::F32, "1, 3, 1", FREQ.to_vec());
    let p = k.iota("S", 0, "0");
    let p = k.reshape(p, "1, 1, S");
    let p = k.cast(p, Scalar::F32);
    let a = k.matmul(f, p);
    k.transpose(a, &[0, 2, 1])
}

/// Angles `[B, S, 3]` of given positions.
fn given(k: &mut Kit) -> ValueId {
    let f = k.weight(Storage::F32, "1, 3, 1", FREQ.to_vec());
    let f = k.expand(f, "B, 3, 1");
    let p = k.ids("position_ids", "B, S", &[0, 1, 2, 3, 4, 9, 2, 7, 1, 0]);
    let p = k.reshape(p, "B, 1, S");
    let p = k.cast(p, Scalar::F32);
    let a = k.matmul(f, p);
    k.transpose(a, &[0, 2, 1])
}

/// Cosines and sines `[…, 6]` of doubled angles, each an argument of `f`.
fn waves(k: &mut Kit, angles: ValueId) -> [ValueId; 2] {
    let a = k.concat(&[angles, angles], 2);
    [k.un(UnaryOp::Cos, a), k.un(UnaryOp::Sin, a)]
}

fn rotate_half(k: &mut Kit, x: ValueId, axis: usize) -> ValueId {
    let a = k.slice(x, axis, "0", "3");
    let b = k.slice(x, axis, "3", "3");
    let n = k.un(UnaryOp::Neg, b);
    k.concat(&[n, a], axis)
}

fn heads(k: &mut Kit, name: &str) -> ValueId {
    let x = k.x(name, "B, S, 24");
    let x = k.reshape(x, "B, S, 4, 6");
    k.transpose(x, &[0, 2, 1, 3])
}

fn half_split(k: &mut Kit, x: ValueId, cos: ValueId, sin: ValueId) -> ValueId {
    let a = k.mul(x, cos);
    let r = rotate_half(k, x, 3);
    let b = k.mul(r, sin);
    k.add(a, b)
}

#[test]
fn half_split_with_counted_positions() {
    let text = raises(&[("rope", 2)], |k| {
        let (q, x) = (heads(k, "q"), heads(k, "k"));
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, 1, S, 6"));
        let y = half_split(k, q, cos, sin);
        k.out("q", y);
        half_split(k, x, cos, sin)
    });
    assert!(text.contains("rope{style=half, rotary_dim=6}"), "{text}");
    assert_eq!(text.matches(" = cos ").count(), 1, "{text}");
    assert!(text.contains(": f32[S, 3]"), "{text}");
}

#[test]
fn half_split_with_given_positions_and_a_factor() {
    let text = raises(&[("rope", 1)], |k| {
        let q = heads(k, "q");
        let angles = given(k);
        let [cos, sin] = waves(k, angles).map(|w| {
            let w = k.scale(w, 1.25);
            k.reshape(w, "B, 1, S, 6")
        });
        half_split(k, q, cos, sin)
    });
    assert!(text.contains("f32[B*S, 3]"), "{text}");
}

#[test]
fn the_projection_bias_is_not_taken_apart() {
    raises(&[("rope", 1)], |k| {
        let (m, b) = (k.x("m", "B, S, 24"), k.x("b", "24"));
        let x = k.add(m, b);
        let x = k.reshape(x, "B, S, 4, 6");
        let x = k.transpose(x, &[0, 2, 1, 3]);
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, 1, S, 6"));
        half_split(k, x, cos, sin)
    });
}

#[test]
fn halves_computed_apart() {
    raises(&[("rope", 1)], |k| {
        let x = heads(k, "x");
        let angles = counted(k);
        let angles = k.reshape(angles, "1, 1, S, 3");
        let (cos, sin) = (k.un(UnaryOp::Cos, angles), k.un(UnaryOp::Sin, angles));
        let (a, b) = (k.slice(x, 3, "0", "3"), k.slice(x, 3, "3", "3"));
        let (ac, bs) = (k.mul(a, cos), k.mul(b, sin));
        let (bc, as_) = (k.mul(b, cos), k.mul(a, sin));
        let (y0, y1) = (k.sub(ac, bs), k.add(bc, as_));
        k.concat(&[y0, y1], 3)
    });
}

#[test]
fn interleaved_by_pairs() {
    let text = raises(&[("rope", 1)], |k| {
        let x = heads(k, "x");
        let angles = counted(k);
        let angles = k.reshape(angles, "1, 1, S, 3, 1");
        let (cos, sin) = (k.un(UnaryOp::Cos, angles), k.un(UnaryOp::Sin, angles));
        let p = k.reshape(x, "B, 4, S, 3, 2");
        let (a, b) = (k.slice(p, 4, "0", "1"), k.slice(p, 4, "1", "1"));
        let (ac, bs) = (k.mul(a, cos), k.mul(b, sin));
        let (bc, as_) = (k.mul(b, cos), k.mul(a, sin));
        let (y0, y1) = (k.sub(ac, bs), k.add(bc, as_));
        let y = k.concat(&[y0, y1], 4);
        k.reshape(y, "B, 4, S, 6")
    });
    assert!(text.contains("rope{style=interleaved, rotary_dim=6}"), "{text}");
}

#[test]
fn interleaved_by_rotation_of_every_two() {
    raises(&[("rope", 1)], |k| {
        let x = heads(k, "x");
        let angles = counted(k);
        let angles = k.reshape(angles, "1, S, 3, 1");
        let angles = k.expand(angles, "1, S, 3, 2");
        let angles = k.reshape(angles, "1, 1, S, 6");
        let (cos, sin) = (k.un(UnaryOp::Cos, angles), k.un(UnaryOp::Sin, angles));
        let p = k.reshape(x, "B, 4, S, 3, 2");
        let (a, b) = (k.slice(p, 4, "0", "1"), k.slice(p, 4, "1", "1"));
        let n = k.un(UnaryOp::Neg, b);
        let r = k.concat(&[n, a], 4);
        let r = k.reshape(r, "B, 4, S, 6");
        let (c, s) = (k.mul(x, cos), k.mul(r, sin));
        k.add(c, s)
    });
}

#[test]
fn tokens_before_heads() {
    let text = raises(&[("rope", 1)], |k| {
        let x = k.x("x", "B, S, 4, 6");
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, S, 1, 6"));
        let y = half_split(k, x, cos, sin);
        k.transpose(y, &[0, 2, 1, 3])
    });
    assert_eq!(text.matches("transpose{perm=[0, 2, 1, 3]}").count(), 1, "{text}");
}

#[test]
fn partial_rotation() {
    let text = raises(&[("rope", 1), ("rope-partial", 1)], |k| {
        let x = k.x("x", "B, 4, S, 10");
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, 1, S, 6"));
        let (a, b) = (k.slice(x, 3, "0", "6"), k.slice(x, 3, "6", "4"));
        let y = half_split(k, a, cos, sin);
        k.concat(&[y, b], 3)
    });
    assert!(text.contains("rope{style=half, rotary_dim=6} %0"), "{text}");
    raises(&[("rope", 1), ("rope-partial", 1)], |k| {
        let x = k.x("x", "B, S, 4, 10");
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, S, 1, 6"));
        let (a, b) = (k.slice(x, 3, "0", "6"), k.slice(x, 3, "6", "4"));
        let y = half_split(k, a, cos, sin);
        k.concat(&[y, b], 3)
    });
    keeps("rope-partial", |k| {
        let x = k.x("x", "B, 4, S, 12");
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, 1, S, 6"));
        let (a, b) = (k.slice(x, 3, "6", "6"), k.slice(x, 3, "0", "6"));
        let y = half_split(k, a, cos, sin);
        k.concat(&[y, b], 3)
    });
}

#[test]
fn tables_gathered_by_position() {
    raises(&[("rope", 1)], |k| {
        let x = heads(k, "x");
        let (c, s) = (k.x("cos", "N, 3"), k.x("sin", "N, 3"));
        let p = k.ids("position_ids", "B, S", &[0, 1, 2, 3, 4, 6, 2, 5, 1, 0]);
        let [cos, sin] = [c, s].map(|t| {
            let t = k.op(Op::Gather, &[t, p]);
            let t = k.concat(&[t, t], 2);
            k.reshape(t, "B, 1, S, 6")
        });
        half_split(k, x, cos, sin)
    });
}

fn near(build: impl FnOnce(&mut Kit, ValueId, ValueId, ValueId) -> ValueId) {
    keeps("rope", |k| {
        let x = heads(k, "x");
        let angles = counted(k);
        let [cos, sin] = waves(k, angles).map(|w| k.reshape(w, "1, 1, S, 6"));
        build(k, x, cos, sin)
    });
}

#[test]
fn near_misses() {
    // the sign of the other half
    near(|k, x, cos, sin| {
        let (a, b) = (k.slice(x, 3, "0", "3"), k.slice(x, 3, "3", "3"));
        let r = k.concat(&[b, a], 3);
        let (c, s) = (k.mul(x, cos), k.mul(r, sin));
        k.add(c, s)
    });
    // both negated
    near(|k, x, cos, sin| {
        let n = k.un(UnaryOp::Neg, x);
        let (a, b) = (k.slice(n, 3, "0", "3"), k.slice(n, 3, "3", "3"));
        let r = k.concat(&[b, a], 3);
        let (c, s) = (k.mul(x, cos), k.mul(r, sin));
        k.add(c, s)
    });
    // halves not exchanged
    near(|k, x, cos, sin| {
        let (a, b) = (k.slice(x, 3, "0", "3"), k.slice(x, 3, "3", "3"));
        let n = k.un(UnaryOp::Neg, a);
        let r = k.concat(&[n, b], 3);
        let (c, s) = (k.mul(x, cos), k.mul(r, sin));
        k.add(c, s)
    });
    // uneven parts
    near(|k, x, cos, sin| {
        let (a, b) = (k.slice(x, 3, "0", "2"), k.slice(x, 3, "2", "4"));
        let n = k.un(UnaryOp::Neg, b);
        let r = k.concat(&[n, a], 3);
        let (c, s) = (k.mul(x, cos), k.mul(r, sin));
        k.add(c, s)
    });
    // the rotated part is of another value
    near(|k, x, cos, sin| {
        let y = heads(k, "other");
        let r = rotate_half(k, y, 3);
        let (c, s) = (k.mul(x, cos), k.mul(r, sin));
        k.add(c, s)
    });
    // the sine is added twice
    near(|k, x, cos, sin| {
        let y = half_split(k, x, cos, sin);
        let r = rotate_half(k, x, 3);
        let s = k.mul(r, sin);
        k.add(y, s)
    });
}

#[test]
fn halves_with_different_angles() {
    keeps("rope", |k| {
        let x = heads(k, "x");
        let a = k.x("angles", "1, S, 6");
        let [cos, sin] = [UnaryOp::Cos, UnaryOp::Sin].map(|f| {
            let w = k.un(f, a);
            k.reshape(w, "1, 1, S, 6")
        });
        half_split(k, x, cos, sin)
    });
}

#[test]
fn angles_that_differ_between_heads() {
    keeps("rope", |k| {
        let x = heads(k, "x");
        let a = k.x("angles", "1, 4, S, 3");
        let a = k.concat(&[a, a], 3);
        let (cos, sin) = (k.un(UnaryOp::Cos, a), k.un(UnaryOp::Sin, a));
        half_split(k, x, cos, sin)
    });
}

#[test]
fn a_product_used_elsewhere_stays() {
    near(|k, x, cos, sin| {
        let a = k.mul(x, cos);
        k.out("a", a);
        let r = rotate_half(k, x, 3);
        let b = k.mul(r, sin);
        k.add(a, b)
    });
}
