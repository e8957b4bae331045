//! Kernels of every template against naive loops in f64, on whatever adapter is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod support;

use cases::gemm::{filled, plain};
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{Anchor, ReduceOp, Space, Stat};
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::render;
use support::SpecBuilder;
use support::blocks::Data;
use support::build::dim;

for_each_case!(|case: &crate::support::Case| case.check());

#[test]
fn sums_do_not_depend_on_the_number_of_rows() {
    let spec = plain((40, 100), Storage::F32);
    let all = filled(spec.clone(), &[("S", 70)], 23);
    let mut one = filled(spec.clone(), &[("S", 1)], 23);
    let Data::F32(x) = &all.data[0] else { panic!() };
    one.data[0] = Data::F32(x[..100].to_vec());
    one.data[1] = all.data[1].clone();
    for tier in [Tier::Cpu, Tier::Gpu] {
        let r = render(&spec, &Capabilities::webgpu(tier)).unwrap();
        let (Some(a), Some(b)) = (support::gpu::run(&all, &r, 1), support::gpu::run(&one, &r, 1)) else { return };
        assert_eq!(a.args[2][..40], b.args[2], "{tier:?}");
    }
}

#[test]
fn statistics_of_rows_are_refused() {
    let mut s = SpecBuilder::new("normed", &["S", "T"], &["S", "T"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "8*S");
    let z = s.arg("z", Space::Arena, Storage::F32, "8*T");
    let y = s.out("y", Space::Arena, Storage::F32, "S*T");
    let lhs = s.load(x, "8*i0 + i2");
    let rhs = vec![s.load(z, "T*i2 + i1")];
    let stats = vec![Stat { op: ReduceOp::Sum, value: lhs, finish: None }];
    s.spec.anchor = Anchor::MatMul { k: dim("8"), lhs, lhs_stats: stats, rhs };
    let acc = s.acc(0);
    s.store(y, "T*i0 + i1", acc);
    let spec = s.done();
    assert!(render(&spec, &Capabilities::webgpu(Tier::Cpu)).is_err());
}
