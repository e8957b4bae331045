use super::kit::{Kit, graph};
use crate::graph::ValueId;
use crate::passes::PassManager;
use crate::passes::recognize::{LintFinding, lint};
use frit_kernels::spec::{ReduceOp, UnaryOp};

/// Recogniser, raised, missed and the condition of each finding.
fn findings(build: impl FnOnce(&mut Kit) -> ValueId) -> Vec<(&'static str, usize, usize, String)> {
    let mut k = graph(build);
    PassManager::standard(&[]).run(&mut k.g, &k.tables).unwrap();
    let of = |f: LintFinding| (f.recognizer, f.raised, f.missed, f.condition);
    lint(&k.g, &k.tables).into_iter().map(of).collect()
}

fn check(recognizer: &str, condition: &str, build: impl FnOnce(&mut Kit) -> ValueId) {
    let found = findings(build);
    assert_eq!(found, [(found[0].0, 0, 1, condition.to_owned())], "{found:?}");
    assert_eq!(found[0].0, recognizer);
}

#[test]
fn probabilities_that_leave_the_graph() {
    let found = findings(|k| {
        let [q, key, v] = ["q", "k", "v"].map(|n| k.x(n, "B, 4, S, 6"));
        let t = k.transpose(key, &[0, 1, 3, 2]);
        let s = k.matmul(q, t);
        let p = k.softmax(s);
        k.out("p", p);
        k.matmul(p, v)
    });
    assert_eq!(found, [("recognize-attention", 0, 1, "the probabilities are used elsewhere".to_owned())]);
}

#[test]
fn scores_times_a_value() {
    check("recognize-attention", "the scores are multiplied by a value", |k| {
        let [q, key, v] = ["q", "k", "v"].map(|n| k.x(n, "B, 4, S, 6"));
        let t = k.transpose(key, &[0, 1, 3, 2]);
        let s = k.matmul(q, t);
        let c = k.x("c", "4, 1, 1");
        let s = k.mul(s, c);
        let p = k.softmax(s);
        k.matmul(p, v)
    });
}

#[test]
fn epsilon_outside_of_the_root() {
    check("recognize-norm", "ε is added outside of the root", |k| {
        let x = k.x("x", "B, S, 8");
        let q = k.mul(x, x);
        let m = k.mean(q);
        let d = k.un(UnaryOp::Sqrt, m);
        let d = k.shift(d, 1e-6);
        k.div(x, d)
    });
}

#[test]
fn a_deviation_that_leaves_the_graph() {
    check("recognize-norm", "an intermediate is used elsewhere", |k| {
        let x = k.x("x", "B, S, 8");
        let q = k.mul(x, x);
        let m = k.mean(q);
        let m = k.shift(m, 1e-6);
        let r = k.un(UnaryOp::Rsqrt, m);
        k.out("r", r);
        k.mul(x, r)
    });
}

#[test]
fn another_constant_in_a_gelu() {
    check("recognize-activation", "the constants inside are not those of the function", |k| {
        let x = k.x("x", "B, S, 8");
        let u = k.scale(x, 0.7);
        let e = k.un(UnaryOp::Erf, u);
        let e = k.shift(e, 1.0);
        let h = k.scale(e, 0.5);
        k.mul(x, h)
    });
}

#[test]
fn a_softmax_over_another_axis() {
    check("recognize-softmax", "the divisor is not the sum of the exponentials over the last axis", |k| {
        let x = k.x("x", "B, 6, 6");
        let e = k.un(UnaryOp::Exp, x);
        let s = k.reduce(ReduceOp::Sum, e, 1, true);
        k.div(e, s)
    });
}

#[test]
fn halves_that_are_not_exchanged() {
    check("recognize-rope", "the pairs are not those of a rotation", |k| {
        let x = k.x("x", "B, 4, S, 6");
        let (c, s) = (k.x("c", "1, 1, S, 6"), k.x("s", "1, 1, S, 6"));
        let (a, b) = (k.slice(x, 3, "0", "3"), k.slice(x, 3, "3", "3"));
        let n = k.un(UnaryOp::Neg, a);
        let r = k.concat(&[n, b], 3);
        let (y, z) = (k.mul(x, c), k.mul(r, s));
        k.add(y, z)
    });
}

#[test]
fn a_graph_without_any_of_it() {
    let found = findings(|k| {
        let x = k.x("x", "B, S, 8");
        let y = k.un(UnaryOp::Tanh, x);
        let z = k.mul(x, y);
        k.softmax(z)
    });
    assert_eq!(found, []);
}
