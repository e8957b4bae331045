//! Pointwise values beside each other as one kernel: rows of one width and of two, short ones and long ones, on both backends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/codes.rs"]
mod codes;
mod support;

use frit::{BackendChoice, Tensor};
use support::Random;

#[test]
fn values_of_one_kernel_are_those_of_their_operations() {
    for (a, b) in [(48, 48), (48, 20), (300, 300), (300, 130), (20, 7)] {
        let model = codes::functions_of_rows(100, a, b);
        let loaded = support::compile(&model);
        assert_eq!(loaded.plan.programs[0].steps.len(), 2, "the sums of rows, and both functions: {a} and {b}");
        let x = Tensor::f32(&[7, a], Random::new(a).floats(7 * a, 1.0)).unwrap();
        let inputs = [("x".to_owned(), x)];
        let want = support::oracle(&model, "forward", &[("N", 7)], &inputs);
        for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
            let got = support::open(&loaded, backend).run(&inputs).unwrap();
            assert_eq!(got.len(), 2);
            for ((name, g), (_, w)) in got.iter().zip(&want) {
                let g = support::array(g);
                let off = g.data.iter().zip(&w.data).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
                assert!(g.data.len() == w.data.len() && off < 1e-4, "{backend:?} {a} and {b}: {name} is off by {off}");
            }
        }
    }
}
