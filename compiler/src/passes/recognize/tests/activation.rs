use super::kit::{Kit, keeps, raises};
use crate::graph::ValueId;
use frit_kernels::spec::{BinaryOp, UnaryOp};

fn x(k: &mut Kit) -> ValueId {
    k.x("x", "B, S, 6")
}

fn erf_plus_one(k: &mut Kit, x: ValueId, divisor: f32) -> ValueId {
    let c = k.f(divisor);
    let u = k.div(x, c);
    let e = k.un(UnaryOp::Erf, u);
    k.shift(e, 1.0)
}

/// `1 + tanh(c·(x + a·x³))`.
fn tanh_plus_one(k: &mut Kit, x: ValueId, c: f32, a: f32) -> ValueId {
    let cube = k.pow(x, 3.0);
    let cube = k.scale(cube, a);
    let p = k.add(x, cube);
    let p = k.scale(p, c);
    let t = k.un(UnaryOp::Tanh, p);
    k.shift(t, 1.0)
}

const ROOT_TWO: f32 = std::f32::consts::SQRT_2;
const ROOT_2_PI: f32 = 0.797_884_6;

#[test]
fn gelu_erf_spellings() {
    let one = [("gelu-erf", 1)];
    let text = raises(&one, |k| {
        let x = x(k);
        let e = erf_plus_one(k, x, ROOT_TWO);
        let h = k.scale(e, 0.5);
        k.mul(x, h)
    });
    assert!(text.contains("gelu_erf %0"), "{text}");
    raises(&one, |k| {
        let x = x(k);
        let e = erf_plus_one(k, x, ROOT_TWO);
        let y = k.mul(x, e);
        k.scale(y, 0.5)
    });
    raises(&one, |k| {
        let x = x(k);
        let e = erf_plus_one(k, x, ROOT_TWO);
        let h = k.scale(x, 0.5);
        k.mul(h, e)
    });
    raises(&one, |k| {
        let x = x(k);
        let u = k.scale(x, std::f32::consts::FRAC_1_SQRT_2);
        let e = k.un(UnaryOp::Erf, u);
        let h = k.scale(x, 0.5);
        let he = k.mul(h, e);
        k.add(h, he)
    });
}

#[test]
fn gelu_tanh_spellings() {
    let one = [("gelu-tanh", 1)];
    let text = raises(&one, |k| {
        let x = x(k);
        let h = k.scale(x, 0.5);
        let t = tanh_plus_one(k, x, ROOT_2_PI, 0.044715);
        k.mul(h, t)
    });
    assert!(text.contains("gelu_tanh %0"), "{text}");
    raises(&one, |k| {
        let x = x(k);
        let sq = k.mul(x, x);
        let a = k.scale(sq, 0.044715);
        let a = k.shift(a, 1.0);
        let inner = k.mul(x, a);
        let inner = k.scale(inner, ROOT_2_PI);
        let t = k.un(UnaryOp::Tanh, inner);
        let t = k.shift(t, 1.0);
        let y = k.mul(x, t);
        k.scale(y, 0.5)
    });
    raises(&one, |k| {
        let x = x(k);
        let sq = k.mul(x, x);
        let cube = k.mul(sq, x);
        let a = k.scale(cube, 0.044715 * 2.0 * ROOT_2_PI);
        let b = k.scale(x, 2.0 * ROOT_2_PI);
        let p = k.add(a, b);
        let s = k.un(UnaryOp::Sigmoid, p);
        k.mul(x, s)
    });
}

#[test]
fn silu_spellings() {
    let one = [("silu", 1)];
    raises(&one, |k| {
        let x = x(k);
        let s = k.un(UnaryOp::Sigmoid, x);
        k.mul(s, x)
    });
    raises(&[("silu", 1), ("sigmoid", 1)], |k| {
        let x = x(k);
        let n = k.un(UnaryOp::Neg, x);
        let e = k.un(UnaryOp::Exp, n);
        let d = k.shift(e, 1.0);
        k.div(x, d)
    });
    raises(&[("silu", 1), ("sigmoid", 1)], |k| {
        let x = x(k);
        let n = k.un(UnaryOp::Neg, x);
        let e = k.un(UnaryOp::Exp, n);
        let one = k.f(1.0);
        let d = k.add(one, e);
        let s = k.div(one, d);
        k.mul(x, s)
    });
}

#[test]
fn gated_products_in_any_order() {
    let text = raises(&[("silu", 1)], |k| {
        let (g, u) = (x(k), k.x("u", "B, S, 6"));
        let s = k.un(UnaryOp::Sigmoid, g);
        let su = k.mul(s, u);
        k.mul(g, su)
    });
    assert!(text.contains("silu %0"), "{text}");
    raises(&[("gelu-erf", 1)], |k| {
        let (g, u) = (x(k), k.x("u", "B, S, 6"));
        let e = erf_plus_one(k, g, ROOT_TWO);
        let eu = k.mul(e, u);
        let h = k.scale(g, 0.5);
        k.mul(eu, h)
    });
    raises(&[("gelu-tanh", 1)], |k| {
        let (g, u) = (x(k), k.x("u", "B, S, 6"));
        let t = tanh_plus_one(k, g, ROOT_2_PI, 0.044715);
        let gu = k.mul(g, u);
        let gu = k.scale(gu, 0.5);
        k.mul(gu, t)
    });
    raises(&[("relu", 1)], |k| {
        let x = x(k);
        let z = k.f(0.0);
        k.bin(BinaryOp::Max, z, x)
    });
}

#[test]
fn wrong_constants() {
    for divisor in [1.4, 1.5, 2.0] {
        keeps("gelu-erf", |k| {
            let x = x(k);
            let e = erf_plus_one(k, x, divisor);
            let h = k.scale(e, 0.5);
            k.mul(x, h)
        });
    }
    for (c, a) in [(0.8, 0.044715), (ROOT_2_PI, 0.0447), (ROOT_2_PI, 0.04), (1.702, 0.044715)] {
        keeps("gelu-tanh", |k| {
            let x = x(k);
            let h = k.scale(x, 0.5);
            let t = tanh_plus_one(k, x, c, a);
            k.mul(h, t)
        });
    }
    // quick GELU is another function than SiLU
    keeps("silu", |k| {
        let x = x(k);
        let u = k.scale(x, 1.702);
        let s = k.un(UnaryOp::Sigmoid, u);
        k.mul(x, s)
    });
    // 1 − e⁻ˣ and 2 + e⁻ˣ
    for (sign, c) in [(-1.0, 1.0), (1.0, 2.0)] {
        keeps("sigmoid", |k| {
            let x = k.x("x", "B, S, 6");
            let n = k.un(UnaryOp::Neg, x);
            let e = k.un(UnaryOp::Exp, n);
            let e = k.scale(e, sign);
            let d = k.shift(e, c);
            k.div(x, d)
        });
    }
    keeps("relu", |k| {
        let x = x(k);
        let z = k.f(0.1);
        k.bin(BinaryOp::Max, x, z)
    });
}

#[test]
fn other_structures() {
    // erf − 1
    keeps("gelu-erf", |k| {
        let x = x(k);
        let e = erf_plus_one(k, x, ROOT_TWO);
        let e = k.shift(e, -2.0);
        let h = k.scale(e, 0.5);
        k.mul(x, h)
    });
    // the factor is another value
    keeps("gelu-erf", |k| {
        let (x, y) = (x(k), k.x("y", "B, S, 6"));
        let e = erf_plus_one(k, x, ROOT_TWO);
        let h = k.scale(e, 0.5);
        k.mul(y, h)
    });
    keeps("silu", |k| {
        let (x, y) = (x(k), k.x("y", "B, S, 6"));
        let s = k.un(UnaryOp::Sigmoid, x);
        k.mul(y, s)
    });
}

#[test]
fn an_intermediate_used_elsewhere_stays() {
    keeps("gelu-erf", |k| {
        let x = x(k);
        let e = erf_plus_one(k, x, ROOT_TWO);
        k.out("e", e);
        let h = k.scale(e, 0.5);
        k.mul(x, h)
    });
    keeps("silu", |k| {
        let x = x(k);
        let s = k.un(UnaryOp::Sigmoid, x);
        k.out("gate", s);
        k.mul(x, s)
    });
}
