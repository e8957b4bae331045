use super::kit::{Kit, keeps, raises};
use crate::graph::ValueId;
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};

fn x(k: &mut Kit) -> ValueId {
    k.x("x", "B, S, 8")
}

/// `√(mean(z²) + ε)`.
fn deviation(k: &mut Kit, z: ValueId, eps: f32) -> ValueId {
    let q = k.pow(z, 2.0);
    let m = k.mean(q);
    let m = k.shift(m, eps);
    k.un(UnaryOp::Sqrt, m)
}

fn centred(k: &mut Kit, x: ValueId) -> ValueId {
    let m = k.mean(x);
    k.sub(x, m)
}

#[test]
fn rms_spellings() {
    let text = raises(&[("rms-norm", 1), ("norm-gain", 1), ("layer-norm", 0)], |k| {
        let (x, g) = (x(k), k.x("g", "8"));
        let d = deviation(k, x, 1e-6);
        let r = k.un(UnaryOp::Recip, d);
        let y = k.mul(x, r);
        k.mul(g, y)
    });
    assert!(text.contains("rms_norm{eps=1e-6, gain}"), "{text}");
    raises(&[("rms-norm", 1), ("norm-gain", 1)], |k| {
        let (x, g) = (x(k), k.x("g", "8"));
        let d = deviation(k, x, 1e-5);
        let y = k.div(x, d);
        let one_plus = k.shift(g, 1.0);
        k.mul(y, one_plus)
    });
    raises(&[("rms-norm", 1)], |k| {
        let (x, g) = (x(k), k.x("g", "1, 1, 8"));
        let q = k.mul(x, x);
        let s = k.reduce(ReduceOp::Sum, q, 2, false);
        let eight = k.f(8.0);
        let m = k.div(s, eight);
        let m = k.reshape(m, "B, S, 1");
        let m = k.shift(m, 1e-6);
        let r = k.pow(m, -0.5);
        let r = k.mul(r, g);
        k.mul(r, x)
    });
    let text = raises(&[("rms-norm", 1)], |k| {
        let x = x(k);
        let q = k.pow(x, 2.0);
        let m = k.mean(q);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(x, r)
    });
    assert!(text.contains("rms_norm{eps=0.0}"), "{text}");
}

#[test]
fn the_residual_stream_is_not_taken_apart() {
    raises(&[("rms-norm", 1)], |k| {
        let (a, b) = (x(k), k.x("b", "B, S, 8"));
        let x = k.add(a, b);
        let d = deviation(k, x, 1e-6);
        k.out("stream", x);
        k.div(x, d)
    });
}

#[test]
fn layer_spellings() {
    let text = raises(&[("layer-norm", 1), ("norm-gain", 1), ("norm-bias", 1), ("rms-norm", 0)], |k| {
        let (x, g, b) = (x(k), k.x("g", "8"), k.x("b", "8"));
        let z = centred(k, x);
        let d = deviation(k, z, 1e-12);
        let y = k.div(z, d);
        let y = k.mul(y, g);
        k.add(y, b)
    });
    assert!(text.contains("layer_norm{eps=1e-12, gain, bias}"), "{text}");
    let text = raises(&[("layer-norm", 1)], |k| {
        let (x, g, b) = (x(k), k.x("g", "8"), k.x("b", "1, 8"));
        let m = k.mean(x);
        let z = k.sub(x, m);
        let q = k.mul(z, z);
        let v = k.mean(q);
        let v = k.shift(v, 1e-5);
        let r = k.un(UnaryOp::Rsqrt, v);
        let r = k.mul(r, g);
        let p = k.mul(m, r);
        let c = k.sub(b, p);
        let y = k.mul(x, r);
        k.add(y, c)
    });
    assert!(text.contains("layer_norm{eps=1e-5, gain, bias}"), "{text}");
    raises(&[("layer-norm", 1), ("norm-bias", 1)], |k| {
        let (x, b) = (x(k), k.x("b", "8"));
        let m = k.mean(x);
        let q = k.mul(x, x);
        let second = k.mean(q);
        let square = k.mul(m, m);
        let v = k.sub(second, square);
        let v = k.shift(v, 1e-5);
        let r = k.un(UnaryOp::Rsqrt, v);
        let z = k.sub(x, m);
        let y = k.mul(z, r);
        k.add(b, y)
    });
}

#[test]
fn a_centred_value_used_elsewhere_leaves_the_root_mean_square() {
    raises(&[("layer-norm", 0), ("rms-norm", 1)], |k| {
        let x = x(k);
        let z = centred(k, x);
        let d = deviation(k, z, 1e-5);
        k.out("z", z);
        k.div(z, d)
    });
}

fn none(build: impl FnOnce(&mut Kit) -> ValueId) {
    raises(&[("rms-norm", 0), ("layer-norm", 0)], build);
}

#[test]
fn near_misses() {
    // ε outside of the root
    none(|k| {
        let x = x(k);
        let q = k.mul(x, x);
        let m = k.mean(q);
        let r = k.un(UnaryOp::Sqrt, m);
        let r = k.shift(r, 1e-6);
        k.div(x, r)
    });
    // another axis
    none(|k| {
        let x = k.x("x", "B, 8, 8");
        let q = k.mul(x, x);
        let s = k.reduce(ReduceOp::Sum, q, 1, true);
        let m = k.scale(s, 0.125);
        let m = k.shift(m, 1e-6);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(x, r)
    });
    // the reduced axis is not kept
    none(|k| {
        let x = k.x("x", "B, 8, 8");
        let q = k.mul(x, x);
        let s = k.reduce(ReduceOp::Sum, q, 2, false);
        let m = k.scale(s, 0.125);
        let m = k.shift(m, 1e-6);
        let r = k.un(UnaryOp::Rsqrt, m);
        let r = k.reshape(r, "B, 1, 8");
        k.mul(x, r)
    });
    // unbiased variance
    none(|k| {
        let x = x(k);
        let z = centred(k, x);
        let q = k.mul(z, z);
        let s = k.reduce(ReduceOp::Sum, q, 2, true);
        let m = k.scale(s, 1.0 / 7.0);
        let m = k.shift(m, 1e-6);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(z, r)
    });
    // the statistic of another value
    none(|k| {
        let (x, y) = (x(k), k.x("y", "B, S, 8"));
        let d = deviation(k, y, 1e-6);
        k.div(x, d)
    });
    // ε is a value
    none(|k| {
        let (x, e) = (x(k), k.x("e", "B, S, 1"));
        let q = k.mul(x, x);
        let m = k.mean(q);
        let e = k.un(UnaryOp::Abs, e);
        let e = k.shift(e, 1.0);
        let m = k.add(m, e);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(x, r)
    });
    // the largest, not the mean
    none(|k| {
        let x = x(k);
        let q = k.mul(x, x);
        let m = k.reduce(ReduceOp::Max, q, 2, true);
        let m = k.shift(m, 1e-6);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(x, r)
    });
    // a fourth power
    none(|k| {
        let x = x(k);
        let q = k.mul(x, x);
        let q = k.mul(q, q);
        let m = k.mean(q);
        let m = k.shift(m, 1e-6);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(x, r)
    });
    // a clamp beside ε
    none(|k| {
        let x = x(k);
        let q = k.mul(x, x);
        let m = k.mean(q);
        let c = k.f(1e-6);
        let m = k.bin(BinaryOp::Max, m, c);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.mul(x, r)
    });
}

#[test]
fn an_intermediate_used_elsewhere_stays() {
    none(|k| {
        let x = x(k);
        let d = deviation(k, x, 1e-6);
        k.out("d", d);
        k.div(x, d)
    });
}

#[test]
fn what_is_no_vector_of_the_rows_is_no_gain() {
    for shape in ["S, 8", "B, S, 8", "S, 1", "1"] {
        keeps("norm-gain", |k| {
            let (x, g) = (x(k), k.x("g", shape));
            let d = deviation(k, x, 1e-6);
            let y = k.div(x, d);
            k.mul(y, g)
        });
        keeps("norm-bias", |k| {
            let (x, g) = (x(k), k.x("g", shape));
            let d = deviation(k, x, 1e-6);
            let y = k.div(x, d);
            k.add(y, g)
        });
    }
}

#[test]
fn two_gains_share_one_norm() {
    raises(&[("rms-norm", 1), ("norm-gain", 0)], |k| {
        let (x, g, h) = (x(k), k.x("g", "8"), k.x("h", "8"));
        let d = deviation(k, x, 1e-6);
        let y = k.div(x, d);
        let a = k.mul(y, g);
        k.out("a", a);
        k.mul(y, h)
    });
}
