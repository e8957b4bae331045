//! Emitted kernels under changes: a barrier left out is missed; schedule and permitted arithmetic change nothing that
//! counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use frit_kernels::dtype::Storage;
use frit_kernels::target::Capabilities;
use frit_kernels::templates::{Rendered, render};
use frit_simt::{Options, ViolationKind};
use std::cell::RefCell;
use support::{Case, compare};

/// Case number `which` of a group.
fn case_of(cases: impl FnOnce(&dyn Fn(&Case)), which: usize) -> Case {
    let all = RefCell::new(Vec::new());
    cases(&|c: &Case| all.borrow_mut().push(c.clone()));
    all.into_inner().remove(which)
}

/// Kernels of every template that has barriers, large enough for all threads to work. Those of a group differ in a depth
/// that decides which slot of a ring is read last.
fn kernels() -> Vec<Vec<Case>> {
    let deep = |k: u64| cases::gemm::filled(cases::gemm::plain((65, k), Storage::Bf16), &[("S", 70)], 4);
    vec![
        vec![case_of(|f| cases::row::softmax_in_place(f), 12)],
        vec![case_of(|f| cases::row::layer_norm_in_two_passes(f), 24)],
        vec![case_of(|f| cases::row::argmax_takes_the_first_of_equals(f), 13)],
        vec![case_of(|f| cases::gemm::every_tail_of_rows_columns_and_sum(f), 24)],
        vec![case_of(|f| cases::gemv::a_norm_of_the_rows_in_front(f), 1)],
        vec![case_of(|f| cases::attention::every_length_of_keys(f), 13)],
        [72, 104, 136].map(deep).to_vec(),
    ]
}

/// The text without an occurrence of `line`.
fn without(text: &str, line: &str, occurrence: usize) -> Option<String> {
    let (at, _) = text.match_indices(line).nth(occurrence)?;
    Some(format!("{}{}", &text[..at], &text[at + line.len()..]))
}

/// Barriers of a template that can be left out one at a time, counted from the last: behind its tree of sums, each first
/// lane of a product reads only its own sum; the sums of matrix units lie apart from the tiles in front of them.
fn spare(template: &str) -> &'static [usize] {
    match template {
        "gemv" => &[0],
        "gemm_matrix" => &[3],
        _ => &[],
    }
}

/// The texts of a group for one target, each with its case and rendering.
fn rendered<'c>(group: &'c [Case], caps: &Capabilities) -> Vec<(&'c Case, Rendered)> {
    group.iter().map(|c| (c, render(&c.spec, caps).unwrap())).collect()
}

/// Whether a change of the text is found in any kernel of a group.
fn found(
    group: &[(&Case, Rendered)],
    change: impl Fn(&str) -> Option<String>,
    is: impl Fn(&ViolationKind) -> bool,
) -> bool {
    group.iter().any(|(case, r)| {
        let mutant = Rendered { text: change(&r.text).unwrap(), ..r.clone() };
        launch::run(case, &mutant, &Options::default()).0.violations.iter().any(|v| is(&v.kind))
    })
}

#[test]
fn every_barrier_is_needed() {
    let mut tried = 0;
    for group in kernels() {
        for caps in launch::targets() {
            let group = rendered(&group, &caps);
            let (case, r) = &group[0];
            let barrier = if r.text.contains("bar.sync 0;") { "bar.sync 0;" } else { "workgroupBarrier();" };
            let count = r.text.matches(barrier).count();
            tried += count;
            for n in 0..count {
                let missed =
                    |k: &ViolationKind| matches!(k, ViolationKind::Race { .. } | ViolationKind::UninitialisedMemory);
                let found = found(&group, |text| without(text, barrier, n), missed);
                let expected = !spare(r.template).contains(&(count - 1 - n));
                let name = &case.spec.name;
                assert_eq!(found, expected, "{name} {:?}: barrier {n} of {count}\n{}", caps.tier, r.text);
            }
        }
    }
    assert!(tried > 70, "{tried}");
}

/// The text with its `n`-th wait satisfied by one group fewer.
fn impatient(text: &str, n: usize) -> Option<String> {
    let (at, word) = text.match_indices("cp.async.wait_group ").nth(n)?;
    let (head, tail) = text.split_at(at + word.len());
    let (number, rest) = tail.split_once(';')?;
    Some(format!("{head}{};{rest}", number.parse::<u32>().ok()? + 1))
}

/// The last wait is for copies that nothing reads, so that none outlives its workgroup.
#[test]
fn every_wait_for_a_copy_that_is_read_is_needed() {
    let mut tried = 0;
    for group in kernels() {
        for caps in launch::targets() {
            let group = rendered(&group, &caps);
            let (case, r) = &group[0];
            for n in 0..r.text.matches("cp.async.wait_group ").count().saturating_sub(1) {
                let found = found(&group, |text| impatient(text, n), |k| *k == ViolationKind::PendingCopy);
                assert!(found, "{} {:?}: wait {n}\n{}", case.spec.name, caps.tier, r.text);
                tried += 1;
            }
        }
    }
    assert!(tried > 0);
}

/// A load of what the kernel stores, in place or to come back to it, made one of constant memory.
#[test]
fn a_store_target_read_non_coherently_is_found() {
    let mut tried = 0;
    for group in kernels() {
        let group = rendered(&group, &Capabilities::cuda());
        for (case, r) in &group {
            let clean = launch::run(case, r, &Options::default()).0;
            for at in
                r.text.match_indices("ld.global.").map(|m| m.0).filter(|at| !r.text[*at..].starts_with("ld.global.nc"))
            {
                let text = format!("{}ld.global.nc.{}", &r.text[..at], &r.text[at + "ld.global.".len()..]);
                let found = launch::run(case, &Rendered { text, ..r.clone() }, &Options::default()).0;
                let is_new = found.violations.iter().any(|v| v.kind == ViolationKind::NotConstant);
                tried += usize::from(is_new);
                assert_eq!(found.violations.len(), clean.violations.len() + usize::from(is_new), "{}", case.spec.name);
            }
        }
    }
    assert!(tried > 0);
}

#[test]
fn results_do_not_depend_on_the_schedule() {
    for case in kernels().into_iter().flatten() {
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
    for case in kernels().into_iter().flatten() {
        for caps in launch::targets() {
            let r = render(&case.spec, &caps).unwrap();
            let (want, tolerance) = launch::expected(&case, &r);
            let modes = [(true, None, false), (false, None, true), (false, Some(1), false), (true, Some(2), true)];
            for (flush_denormals, perturb, contract) in modes {
                let options = Options { flush_denormals, perturb, contract, ..Options::default() };
                let (outcome, args) = launch::run(&case, &r, &options);
                launch::clean(&outcome, &r);
                for (i, _) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
                    let what = format!("{} {:?} {options:?}", case.spec.name, caps.tier);
                    compare(&what, &want[i], &args[i], tolerance[i], &r);
                }
            }
        }
    }
}
