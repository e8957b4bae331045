//! Kernels of every template against naive loops in f64, on whatever adapter is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod support;

use cases::gemm::{filled, plain};
use frit_kernels::dtype::Storage;
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::{Rendered, render};
use support::blocks::Data;

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

/// A software driver's sums are bit for bit the same in kernels for one row, which read pairs of blocks, and for eight.
#[test]
fn sums_of_one_row_are_those_of_many() {
    for storage in [Storage::Q4_1, Storage::Q8_0, Storage::Q4K, Storage::F16] {
        let (n, k) = (24u64, 256u64);
        let all = filled(plain((n, k), storage), &[("S", 11)], 29);
        let mut one = filled(cases::gemv::plain(1, n, k, storage), &[], 29);
        let Data::F32(x) = &all.data[0] else { panic!() };
        one.data[0] = Data::F32(x[..k as usize].to_vec());
        one.data[1] = all.data[1].clone();
        let [many, single] = [&all, &one].map(|c| render(&c.spec, &Capabilities::webgpu(Tier::Cpu)).unwrap());
        let rows = |r: &Rendered| r.tile.iter().find(|t| t.0 == "rows").map(|t| t.1);
        assert_eq!((rows(&many), rows(&single)), (Some(8), Some(1)), "{storage:?}");
        let run = |case: &support::Case, r: &Rendered| support::gpu::run(case, r, 1);
        let (Some(a), Some(b)) = (run(&all, &many), run(&one, &single)) else { return };
        assert_eq!(a.args[2][..n as usize], b.args[2], "{storage:?}");
    }
}
