//! Emitted kernels under changes: a barrier left out is missed; schedule and permitted arithmetic change nothing that
//! counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use frit_kernels::templates::render;
use frit_simt::{Options, ViolationKind};
use std::cell::RefCell;
use support::{Case, compare, eval};

/// Case number `which` of a group.
fn case_of(cases: impl FnOnce(&dyn Fn(&Case)), which: usize) -> Case {
    let all = RefCell::new(Vec::new());
    cases(&|c: &Case| all.borrow_mut().push(c.clone()));
    all.into_inner().remove(which)
}

/// Kernels of every template that has barriers, large enough for all threads to work.
fn kernels() -> Vec<Case> {
    vec![
        case_of(|f| cases::row::softmax_in_place(f), 12),
        case_of(|f| cases::row::layer_norm_in_two_passes(f), 24),
        case_of(|f| cases::row::argmax_takes_the_first_of_equals(f), 13),
        case_of(|f| cases::gemm::every_tail_of_rows_columns_and_sum(f), 24),
        case_of(|f| cases::gemv::a_norm_of_the_rows_in_front(f), 1),
        case_of(|f| cases::attention::every_length_of_keys(f), 13),
    ]
}

/// The text without an occurrence of `line`.
fn without(text: &str, line: &str, occurrence: usize) -> Option<String> {
    let (at, _) = text.match_indices(line).nth(occurrence)?;
    Some(format!("{}{}", &text[..at], &text[at + line.len()..]))
}

/// Barriers that can be left out one at a time, counted from the last: behind its tree of sums, each first lane of a
/// product reads only its own sum; at the end of a block of keys, each of two barriers does what the other does.
fn spare(kernel: &str) -> &'static [usize] {
    match kernel {
        "normed" => &[0],
        "attention" => &[0, 1],
        _ => &[],
    }
}

#[test]
fn every_barrier_is_needed() {
    let mut tried = 0;
    for case in kernels() {
        for caps in launch::targets() {
            let r = render(&case.spec, &caps).unwrap();
            let text = launch::text(&r);
            let barrier = if text.contains("bar.sync 0;") { "bar.sync 0;" } else { "workgroupBarrier();" };
            let count = text.matches(barrier).count();
            tried += count;
            for n in 0..count {
                let mutant = launch::with_text(&r, without(text, barrier, n).unwrap());
                let (outcome, _) = launch::run(&case, &mutant, &Options::default());
                let missed =
                    |k: &ViolationKind| matches!(k, ViolationKind::Race { .. } | ViolationKind::UninitialisedMemory);
                let found = outcome.violations.iter().any(|v| missed(&v.kind));
                let expected = !spare(&case.spec.name).contains(&(count - 1 - n));
                let name = &case.spec.name;
                assert_eq!(found, expected, "{name} {:?}: barrier {n} of {count}\n{text}", caps.tier);
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn results_do_not_depend_on_the_schedule() {
    for case in kernels() {
        for caps in launch::targets() {
            let r = render(&case.spec, &caps).unwrap();
            let (_, plain) = launch::run(&case, &r, &Options::default());
            for seed in 0..4 {
                let options = Options { shuffle: Some(seed), ..Options::default() };
                let (outcome, shuffled) = launch::run(&case, &r, &options);
                launch::clean(&outcome, &r);
                assert_eq!(plain, shuffled, "{} {:?}", case.spec.name, caps.tier);
            }
        }
    }
}

#[test]
fn results_stay_within_the_tolerance_under_every_permitted_arithmetic() {
    for case in kernels() {
        let want = eval::evaluate(&case);
        for caps in launch::targets() {
            let r = render(&case.spec, &caps).unwrap();
            let modes = [(true, None, false), (false, None, true), (false, Some(1), false), (true, Some(2), true)];
            for (flush_denormals, perturb, contract) in modes {
                let options = Options { flush_denormals, perturb, contract, ..Options::default() };
                let (outcome, args) = launch::run(&case, &r, &options);
                launch::clean(&outcome, &r);
                for (i, _) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
                    let what = format!("{} {:?} {options:?}", case.spec.name, caps.tier);
                    compare(&what, &want[i], &args[i], case.tolerance, &r);
                }
            }
        }
    }
}
