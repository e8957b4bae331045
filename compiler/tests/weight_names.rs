//! Weights that a model calls alike are told apart in its plan.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit_compiler::Compiler;
use frit_compiler::ingest::builder::ModelBuilder;
use frit_kernels::dtype::Scalar;

#[test]
fn two_weights_of_one_name_stay_two() {
    let mut m = ModelBuilder::new("twins");
    let a = m.constant("table", &[3], &[1.0, 2.0, 3.0]);
    let b = m.constant("other", &[3], &[4.0, 5.0, 6.0]);
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &["N".into(), 3.into()]);
        let (a, b) = (g.weight(a), g.weight(b));
        let y = g.add(x, a);
        let z = g.mul(y, b);
        g.output("z", z);
    });
    let mut model = m.finish().unwrap();
    for w in &mut model.tables.weights {
        w.names = vec!["rope.cos".into()];
    }
    let plan = Compiler::default().compile(&model).unwrap();
    plan.validate().unwrap();
    let names: Vec<&str> = plan.weights.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names, ["rope.cos", "rope.cos (2)"]);
}
