//! How a user keeps watch over the kernels of a model: build or load it, compile it, and compare every kernel's text
//! with a snapshot. A change of the model, of an option or of the compiler shows as a diff of the kernels it touched.
//!
//! `INSTA_UPDATE=always cargo test --test kernel_snapshots` accepts new ones.
#![allow(clippy::unwrap_used)]

use frit_compiler::graph::NormKind;
use frit_compiler::ingest::builder::{BuildError, ModelBuilder};
use frit_compiler::{Compiler, Model};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::UnaryOp;
use frit_kernels::target::Tier;

/// A norm, an up projection with its activation, a down projection with the residual.
fn mlp() -> Result<Model, BuildError> {
    let mut m = ModelBuilder::new("mlp");
    let gain = m.constant("norm", &[48], &[1.0; 48]);
    let up = m.constant("up", &[96, 48], &[0.01; 96 * 48]);
    let down = m.constant("down", &[48, 96], &[0.01; 48 * 96]);
    m.graph_with("forward", &[], &[("N", 4)], |g| {
        let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
        let gain = g.weight(gain);
        let y = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
        let y = g.linear(y, up, None);
        let y = g.unary(UnaryOp::Silu, y);
        let y = g.linear(y, down, None);
        let y = g.add(x, y);
        g.output("y", y);
    });
    m.finish()
}

#[test]
fn the_kernels_of_my_model_have_not_changed() {
    let plan = Compiler::default().compile(&mlp().unwrap()).unwrap();
    let names: Vec<&str> = plan.texts(Tier::Gpu).map(|(name, _)| name).collect();
    assert_eq!(names, ["rms_norm_matmul_silu", "matmul_add"]);
    for (name, wgsl) in plan.texts(Tier::Gpu) {
        insta::assert_snapshot!(format!("mlp_{name}"), wgsl);
    }
}
