//! A host program builds a graph, compiles it and runs it, all in one process.

#![allow(clippy::print_stdout)]

use frit::{LoadedModel, Session, Tensor};
use frit_compiler::Compiler;
use frit_compiler::graph::NormKind;
use frit_compiler::ingest::builder::ModelBuilder;
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::UnaryOp;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let values = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect::<Vec<f32>>();
    let mut m = ModelBuilder::new("mlp");
    let gain = m.constant("norm.weight", &[48], &values(48));
    let up = m.constant("up.weight", &[96, 48], &values(96 * 48));
    let down = m.constant("down.weight", &[48, 96], &values(48 * 96));
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
        let gain = g.weight(gain);
        let normed = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
        let hidden = g.linear(normed, up, None);
        let hidden = g.unary(UnaryOp::Silu, hidden);
        let y = g.linear(hidden, down, None);
        let y = g.add(x, y);
        g.output("y", y);
    });
    let model = m.finish()?;
    let plan = Compiler::default().compile(&model)?;
    for k in plan.kernels() {
        println!("{}", k.name);
    }
    let loaded = LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None };
    let mut session = Session::builder().open(&loaded)?;
    let out = session.run(&[("x", Tensor::f32(&[3, 48], values(3 * 48))?)])?;
    println!("y {:?} on {}", out[0].1.shape(), session.backend());
    Ok(())
}
