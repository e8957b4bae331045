//! A product of 256 × 256 × 256 in f32 under all checks, the size whose time says whether checking is cheap enough to do
//! always. The time is printed, the work is asserted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use frit_kernels::dtype::Storage;
use frit_kernels::templates::render;
use frit_simt::Options;
use std::time::Instant;
use support::compare;

#[test]
fn a_product_of_256_cubed_is_right_under_all_checks() {
    let mut case = cases::gemm::filled(cases::gemm::plain((256, 256), Storage::F32), &[("S", 256)], 7);
    case.tolerance = 1e-4;
    for caps in launch::targets() {
        let r = render(&case.spec, &caps).unwrap();
        let (want, tolerance) = launch::expected(&case, &r);
        let start = Instant::now();
        let (outcome, args) = launch::run(&case, &r, &Options::default());
        let seconds = start.elapsed().as_secs_f64();
        launch::clean(&outcome, &r);
        compare(r.template, &want[2], &args[2], tolerance, &r);
        let instructions = outcome.counters.thread.iter().sum::<u64>();
        assert!(instructions > 1 << 24, "{}: a product and a sum for each of 2^24 terms", r.template);
        println!("{:?} {}: {instructions} thread instructions in {:.0} ms", r.language, r.template, seconds * 1e3);
    }
}
