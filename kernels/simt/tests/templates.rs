//! Every template, storage and tail: the emitted text, executed here, against naive loops in f64, with no violation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::render;
use support::{Case, compare, eval};

for_each_case!(crate::check);

/// Runs a case as both tiers have it.
fn check(case: &Case) {
    case.spec.verify().unwrap();
    let want = eval::evaluate(case);
    for tier in [Tier::Cpu, Tier::Gpu] {
        let r = render(&case.spec, &Capabilities::webgpu(tier)).unwrap();
        let (outcome, args) = launch::run(case, &r, &frit_simt::Options::default());
        let name = &case.spec.name;
        launch::clean(&outcome, &r);
        assert!(outcome.completed);
        for (i, a) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
            compare(&format!("{name} {tier:?} `{}`", a.name), &want[i], &args[i], case.tolerance, &r);
        }
    }
}
