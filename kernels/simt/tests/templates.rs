//! Every template, storage and tail: the emitted text, executed here, against naive loops in f64, with no violation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use frit_kernels::templates::render;
use frit_simt::Options;
use support::{Case, compare};

for_each_case!(crate::check);

/// Runs a case as every target has it.
fn check(case: &Case) {
    case.spec.verify().unwrap();
    for caps in launch::targets() {
        let r = render(&case.spec, &caps).unwrap();
        let (want, tolerance) = launch::expected(case, &r);
        let (outcome, args) = launch::run(case, &r, &Options::default());
        launch::clean(&outcome, &r);
        assert!(outcome.completed);
        for (i, a) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
            let what = format!("{} {:?} `{}`", case.spec.name, caps.tier, a.name);
            compare(&what, &want[i], &args[i], tolerance[i], &r);
        }
    }
}
