//! A product of 256 × 256 × 256 in f32 under all checks, the size whose time says whether checking is cheap enough to do
//! always. The times are printed (`cargo test --release --workspace --test speed -- --nocapture`), the work is asserted, and
//! in release less than a second on the processor, where the system tells it.
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
        let (start, before) = (Instant::now(), on_processor());
        let (outcome, args) = launch::run(&case, &r, &Options::default());
        let seconds = start.elapsed().as_secs_f64();
        let busy = on_processor() - before;
        launch::clean(&outcome, &r);
        compare(r.template, &want[2], &args[2], tolerance[2], &r);
        assert!(cfg!(debug_assertions) || busy.is_nan() || busy < 1.0, "{}: {busy} s", r.template);
        let instructions = outcome.counters.thread.iter().sum::<u64>();
        assert!(instructions > 1 << 24, "{}: a product and a sum for each of 2^24 terms", r.template);
        println!(
            "{:?} {}: {instructions} thread instructions in {:.0} ms, {:.0} ms of them on the processor",
            r.language,
            r.template,
            seconds * 1e3,
            busy * 1e3
        );
    }
}

/// Seconds that this thread was on a processor, where the system says so (Linux).
fn on_processor() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).map_or(f64::NAN, |n| n / 1e9)
}
