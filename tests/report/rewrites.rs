use frit_compiler::ingest::builder::ModelBuilder;
use frit_compiler::{CompileOptions, Compiler, Model, NumericMode};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::UnaryOp;
use frit_plan::{AppliedRewrite, RegionReport};

/// A product and `y·σ(y)` of it, or the error-function form of GELU.
fn model(act: UnaryOp) -> Model {
    let mut m = ModelBuilder::new("rewrites");
    let w = m.constant("w", &[40, 48], &vec![0.25; 40 * 48]);
    m.graph_with("forward", &[], &[("N", 64)], |g| {
        let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
        let y = g.linear(x, w, None);
        let a = g.unary(act, y);
        let out = if act == UnaryOp::Sigmoid { g.mul(y, a) } else { a };
        g.output("y", out);
        let plain = g.unary(UnaryOp::Exp, x);
        g.output("plain", plain);
    });
    m.finish().unwrap()
}

fn regions(act: UnaryOp, numeric: NumericMode) -> Vec<RegionReport> {
    let mut options = CompileOptions { targets: Vec::new(), ..CompileOptions::default() };
    options.fusion.numeric = numeric;
    Compiler::new(options).compile(&model(act)).unwrap().report.phases.remove(0).regions
}

fn applied(rule: &str, class: &str) -> Vec<AppliedRewrite> {
    vec![AppliedRewrite { rule: rule.into(), class: class.into() }]
}

/// The fusion of an activation changes no bit; that it was raised from its definition does, and the region says so.
#[test]
fn a_region_names_the_rewrites_that_made_its_operations() {
    let found = regions(UnaryOp::Sigmoid, NumericMode::Default);
    let of = |op: &str| found.iter().find(|r| r.ops.iter().any(|o| o == op)).unwrap();
    assert_eq!((of("silu").class.as_str(), &of("silu").rewrites), ("BIT", &applied("silu", "ROUND")));
    assert_eq!(of("exp").rewrites, []);
}

#[test]
fn close_functions_are_named_with_their_class() {
    let named = |mode| regions(UnaryOp::GeluErf, mode).into_iter().flat_map(|r| r.rewrites).collect::<Vec<_>>();
    assert_eq!(named(NumericMode::Fast), applied("gelu-erf-as-tanh", "APPROX"));
    assert_eq!(named(NumericMode::Default), []);
}

#[test]
fn a_mode_without_rewrites_notes_none() {
    assert!(regions(UnaryOp::Sigmoid, NumericMode::Strict).iter().all(|r| r.rewrites.is_empty()));
}
