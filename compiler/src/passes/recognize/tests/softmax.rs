use super::kit::{Kit, keeps, raises};
use crate::graph::ValueId;
use frit_kernels::spec::{ReduceOp, UnaryOp};

fn exponentials(k: &mut Kit, axis: usize, shifted: bool) -> ValueId {
    let x = k.x("x", "B, S, 6");
    let e = if shifted {
        let m = k.reduce(ReduceOp::Max, x, axis, true);
        k.sub(x, m)
    } else {
        x
    };
    k.un(UnaryOp::Exp, e)
}

#[test]
fn spellings() {
    let one = [("softmax", 1)];
    for shifted in [true, false] {
        let text = raises(&one, |k| {
            let e = exponentials(k, 2, shifted);
            let s = k.reduce(ReduceOp::Sum, e, 2, true);
            k.div(e, s)
        });
        assert!(text.contains("softmax %0 : f32[B, S, 6]"), "{text}");
        raises(&one, |k| {
            let e = exponentials(k, 2, shifted);
            let s = k.reduce(ReduceOp::Sum, e, 2, false);
            let s = k.reshape(s, "B, S, 1");
            let r = k.un(UnaryOp::Recip, s);
            k.mul(r, e)
        });
    }
}

#[test]
fn near_misses() {
    keeps("softmax", |k| {
        let e = exponentials(k, 1, true);
        let s = k.reduce(ReduceOp::Sum, e, 1, true);
        k.div(e, s)
    });
    keeps("softmax", |k| {
        let e = exponentials(k, 2, true);
        let other = k.x("other", "B, S, 6");
        let f = k.un(UnaryOp::Exp, other);
        let s = k.reduce(ReduceOp::Sum, f, 2, true);
        k.div(e, s)
    });
    keeps("softmax", |k| {
        let e = exponentials(k, 2, true);
        let s = k.reduce(ReduceOp::Max, e, 2, true);
        k.div(e, s)
    });
    keeps("softmax", |k| {
        let e = exponentials(k, 2, true);
        let s = k.reduce(ReduceOp::Sum, e, 2, true);
        let s = k.shift(s, 1.0);
        k.div(e, s)
    });
    keeps("softmax", |k| {
        let x = k.x("x", "B, 6, 6");
        let e = k.un(UnaryOp::Exp, x);
        let s = k.reduce(ReduceOp::Sum, e, 2, false);
        let s = k.reshape(s, "B, 1, 6");
        k.div(e, s)
    });
}

#[test]
fn an_exponential_used_elsewhere_stays() {
    keeps("softmax", |k| {
        let e = exponentials(k, 2, true);
        let s = k.reduce(ReduceOp::Sum, e, 2, true);
        k.out("e", e);
        k.div(e, s)
    });
    keeps("softmax", |k| {
        let e = exponentials(k, 2, true);
        let s = k.reduce(ReduceOp::Sum, e, 2, true);
        let p = k.div(e, s);
        k.mul(p, s)
    });
}
