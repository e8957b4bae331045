//! Every template, storage and tail: the emitted text, executed here, against naive loops in f64, with no violation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::render;
use launch::rounding;
use support::{Case, compare, eval};

for_each_case!(crate::check);

/// Difference allowed where both sides of a product were rounded to 16 bits: a value on the edge may go either way.
const ROUNDED: f64 = 2e-3;

/// Runs a case as every tier has it.
fn check(case: &Case) {
    case.spec.verify().unwrap();
    let exact = eval::evaluate(case);
    for caps in [Capabilities::webgpu(Tier::Cpu), Capabilities::webgpu(Tier::Gpu), Capabilities::cuda()] {
        let tier = caps.tier;
        let r = render(&case.spec, &caps).unwrap();
        let rounded = rounding(case, &r);
        let (want, tolerance) = match rounded {
            Some(round) => (eval::evaluate_rounded(case, round), case.tolerance.max(ROUNDED)),
            None => (exact.clone(), case.tolerance),
        };
        let (outcome, args) = launch::run(case, &r, &frit_simt::Options::default());
        let name = &case.spec.name;
        launch::clean(&outcome, &r);
        assert!(outcome.completed);
        for (i, a) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
            compare(&format!("{name} {tier:?} `{}`", a.name), &want[i], &args[i], tolerance, &r);
        }
    }
}
