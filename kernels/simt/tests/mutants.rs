//! Bugs planted in the IR of every template are found: by a check of the interpreter, or by a wrong result.
//!
//! A mutant runs at every size that its subject has, on a grid that folds after three workgroups and has a row of them
//! too many. One that nobody notices must stand in [`EQUIVALENT`] with the reason why it does what the original does;
//! any other fails the test. Of the sites of a kind in a kernel two are taken. `FRIT_MUTANTS=all` takes up to twelve, of one
//! subject alone as `all/SUBJECT`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;
mod mutation;

use frit_kernels::dim::Dim;
use frit_kernels::emit::{Language, ptx, wgsl};
use frit_kernels::target::Capabilities;
use frit_kernels::templates::{Rendered, ptx_options, render};
use frit_simt::Options;
use mutation::equivalent::{EQUIVALENT, Equivalent};
use mutation::{OPERATORS, Operator, subjects};
use std::collections::BTreeSet;
use support::Case;

/// Kinds of bugs, an operator in a template each, that must be found at least.
const KINDS: usize = 60;

/// The kernel on a grid of three columns with a row too many; one of constant size gets three workgroups more.
fn folded(mut r: Rendered) -> Rendered {
    let (groups, three) = (r.grid[0].clone(), Dim::from(3u64));
    r.grid = match groups.as_const() {
        Some(_) => [groups + three, Dim::one(), Dim::one()],
        None => [groups.smaller(&three), groups.ceil_div(&three) + Dim::one(), Dim::one()],
    };
    r
}

/// The first line of instructions in which two texts differ.
fn difference(before: &str, after: &str) -> String {
    let lines = |text: &str| -> Vec<String> {
        text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.starts_with(".reg")).collect()
    };
    let (before, after) = (lines(before), lines(after));
    let mut pairs = before.iter().zip(&after).filter(|(a, b)| a != b);
    pairs.next().map_or_else(String::new, |(a, b)| format!("{a} -> {b}"))
}

/// A case and what it should leave.
struct Expected<'c> {
    case: &'c Case,
    want: Vec<Vec<f64>>,
    tolerance: Vec<f64>,
}

/// How a mutant was found.
#[derive(Debug, PartialEq)]
enum Found {
    ByCheck(String),
    ByResult,
    /// Nothing shows at any size.
    Nowhere,
}

fn run(cases: &[Expected<'_>], r: &Rendered) -> Result<Found, String> {
    for c in cases {
        let found = run_at(c, r)?;
        if found != Found::Nowhere {
            return Ok(found);
        }
    }
    Ok(Found::Nowhere)
}

fn run_at(Expected { case, want, tolerance }: &Expected<'_>, r: &Rendered) -> Result<Found, String> {
    let options = Options { shuffle: Some(3), budget: 1 << 22, ..Options::default() };
    let (outcome, args) = launch::try_run(case, r, &options).map_err(|e| e.to_string())?;
    if let Some(v) = outcome.violations.first() {
        return Ok(Found::ByCheck(v.to_string()));
    }
    if !outcome.completed {
        return Ok(Found::ByCheck("it does not end".into()));
    }
    for (i, _) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
        let differs = |(w, g): (&f64, &f64)| (w - g).abs() > tolerance[i] * (1.0 + w.abs()) || g.is_nan();
        if want[i].iter().zip(&args[i]).any(differs) {
            return Ok(Found::ByResult);
        }
    }
    Ok(Found::Nowhere)
}

fn with_text(mut r: Rendered) -> Result<Rendered, String> {
    r.module = r.module.compact();
    r.text = match r.language {
        Language::Wgsl => wgsl::emit(&r.module, &wgsl::Options::default()).map_err(|e| e.to_string())?,
        Language::Ptx => ptx::emit(&r.module, &ptx_options()).map_err(|e| e.to_string())?,
    };
    Ok(r)
}

#[derive(Default)]
struct Tally {
    by_check: usize,
    by_result: usize,
    equivalent: usize,
    /// Texts that do not pass as WGSL or PTX.
    refused: Vec<String>,
    kinds: BTreeSet<String>,
    /// Reasons of the table that were needed.
    used: BTreeSet<usize>,
    unnoticed: Vec<String>,
}

fn mutate(name: &str, cases: &[Case], original: &Rendered, sites: usize, tally: &mut Tally) {
    let expected = |case| {
        let (want, tolerance) = launch::expected(case, original);
        Expected { case, want, tolerance }
    };
    let cases: Vec<Expected<'_>> = cases.iter().map(expected).collect();
    assert_eq!(run(&cases, original), Ok(Found::Nowhere), "{name} {}: the original is clean", original.template);
    let plain = with_text(original.clone()).unwrap();
    for operator in OPERATORS {
        let all = (0..).take_while(|s| (operator.plant)(&mut original.module.clone(), *s)).count();
        let chosen = (0..sites.min(all)).map(|i| i * all / sites.min(all));
        for site in chosen {
            let mut r = original.clone();
            (operator.plant)(&mut r.module, site);
            let planted = with_text(r).unwrap_or_else(|e| panic!("{name} {}: {e}", operator.name));
            if planted.text == plain.text {
                // Arrays begin at multiples of so much that the next ones lie where they did.
                continue;
            }
            let kind = format!("{} in {}", operator.name, original.template);
            match run(&cases, &planted) {
                Ok(Found::ByCheck(_)) => {
                    tally.by_check += 1;
                    tally.kinds.insert(kind);
                }
                Ok(Found::ByResult) => {
                    tally.by_result += 1;
                    tally.kinds.insert(kind);
                }
                Ok(Found::Nowhere) => {
                    let change = difference(&plain.text, &planted.text);
                    let same = |e: &Equivalent| {
                        e.template == original.template && e.operator == operator.name && change.contains(e.line)
                    };
                    match EQUIVALENT.iter().position(same) {
                        Some(i) => {
                            tally.equivalent += 1;
                            tally.used.insert(i);
                        }
                        None => tally.unnoticed.push(format!("{name}: {kind} at {site} of {all}: {change}")),
                    }
                }
                Err(why) => tally.refused.push(format!("{name}: {kind} at {site} of {all}: {why}")),
            }
        }
    }
}

/// Every step of the ring between warpgroups is needed, at every site but those in front of the first staging of sums,
/// where the barrier behind the last stage let go of stands already.
#[test]
fn planted_bugs_in_rings_are_found() {
    let unnoticed = unnoticed_in(&subjects::rings()[0].cases[0], mutation::rings::OPERATORS);
    assert_eq!(unnoticed, [("barrier of a subgroup dropped", 2, 10)]);
}

/// The same of a ring that is filled by copies.
#[test]
fn planted_bugs_in_rings_of_copies_are_found() {
    let unnoticed = unnoticed_in(&subjects::rings()[1].cases[0], mutation::rings::OPERATORS);
    assert_eq!(unnoticed, [("barrier of a subgroup dropped", 2, 10)]);
}

/// A product of warpgroups, on one workgroup.
fn ring(case: &Case) -> Rendered {
    let mut r = render(&case.spec, &Capabilities::cuda_warpgroups()).unwrap();
    assert_eq!(r.template, "gemm_warpgroup");
    r.grid = [Dim::one(), Dim::one(), Dim::one()];
    r
}

/// The operators and sites, of all, whose bugs in a product of warpgroups go unnoticed.
fn unnoticed_in(case: &Case, operators: &[Operator]) -> Vec<(&'static str, usize, usize)> {
    let original = ring(case);
    let (want, tolerance) = launch::expected(case, &original);
    let case = Expected { case, want, tolerance };
    assert_eq!(run_at(&case, &original), Ok(Found::Nowhere), "the original is clean");
    let mut unnoticed = Vec::new();
    for operator in operators {
        let all = (0..).take_while(|s| (operator.plant)(&mut original.module.clone(), *s)).count();
        assert!(all > 0, "{}", operator.name);
        for site in 0..all {
            let mut r = original.clone();
            (operator.plant)(&mut r.module, site);
            let planted = with_text(r).unwrap_or_else(|e| panic!("{}: {e}", operator.name));
            if run_at(&case, &planted) == Ok(Found::Nowhere) {
                unnoticed.push((operator.name, site, all));
            }
        }
    }
    unnoticed
}

/// Of every template as it overlaps the launch in front: no step over the wait that touches what others write goes
/// unnoticed, and neither does a wait left out.
#[test]
fn planted_bugs_in_overlapping_kernels_are_found() {
    let early = |found: &Result<Found, String>| matches!(found, Ok(Found::ByCheck(v)) if v.contains("launch in front"));
    let (mut templates, mut planted) = (BTreeSet::new(), 0);
    for subject in subjects::all() {
        let case = &subject.cases[0];
        let original = render(&case.spec, &Capabilities::cuda_overlapping()).unwrap();
        let (want, tolerance) = launch::expected(case, &original);
        let case = Expected { case, want, tolerance };
        let name = format!("{} ({})", subject.name, original.template);
        assert_eq!(run_at(&case, &original), Ok(Found::Nowhere), "{name}: the original is clean");
        let found = |text: String| run_at(&case, &Rendered { text, ..original.clone() });
        let dropped = found(mutation::overlaps::without_wait(&original.text).unwrap());
        assert!(early(&dropped), "{name}: the wait dropped, {dropped:?}");
        let texts: Vec<String> = (0..).map_while(|site| mutation::overlaps::hastened(&original.text, site)).collect();
        // Weights alone may come first; what is in front of the wait stays there.
        let some = texts.iter().take(6).chain(texts.last());
        let seen: Vec<bool> = some.map(|text| early(&found(text.clone()))).collect();
        assert!(seen.is_sorted() && seen.last() == Some(&true), "{name}: accesses in front of the wait, {seen:?}");
        for operator in mutation::overlaps::OPERATORS {
            let all = (0..).take_while(|s| (operator.plant)(&mut original.module.clone(), *s)).count();
            let mut r = original.clone();
            assert!((operator.plant)(&mut r.module, all - 1), "{name}");
            // the verifier refuses what the interpreter would find
            let last = with_text(r).and_then(|r| run_at(&case, &r));
            let refused = matches!(&last, Err(why) if why.contains("not well typed"));
            assert!(refused || early(&last), "{name}: {}, {last:?}", operator.name);
            planted += all.min(1);
        }
        planted += 1 + seen.len();
        templates.insert(original.template);
    }
    assert!(templates.len() > 5 && planted > 50, "{planted} in {templates:?}");
}

#[test]
fn planted_bugs_are_found() {
    let asked = std::env::var("FRIT_MUTANTS").unwrap_or_default();
    let wanted = asked.strip_prefix("all");
    let full = wanted.is_some();
    let only = wanted.and_then(|w| w.strip_prefix('/'));
    let mut tally = Tally::default();
    for subject in subjects::all().into_iter().filter(|s| only.is_none_or(|o| s.name == o)) {
        for caps in launch::targets() {
            let r = folded(render(&subject.cases[0].spec, &caps).unwrap());
            mutate(subject.name, &subject.cases, &r, if full { 12 } else { 2 }, &mut tally);
        }
    }
    for subject in subjects::rings().into_iter().filter(|s| only.is_none_or(|o| s.name == o)) {
        mutate(subject.name, &subject.cases, &ring(&subject.cases[0]), if full { 12 } else { 2 }, &mut tally);
    }
    println!(
        "{} bugs found by a check and {} by a wrong result, of {} kinds; {} refused as text; {} equivalent:",
        tally.by_check,
        tally.by_result,
        tally.kinds.len(),
        tally.refused.len(),
        tally.equivalent
    );
    for e in tally.used.iter().map(|i| &EQUIVALENT[*i]) {
        println!("  {} in {}, `{}`: {}", e.operator, e.template, e.line, e.why);
    }
    let all: Vec<&str> = tally.refused.iter().map(String::as_str).collect();
    assert!(full || all.is_empty(), "every planted bug is executed: {all:#?}");
    all.iter().for_each(|r| println!("  refused: {}", r.lines().next().unwrap_or_default()));
    assert!(tally.unnoticed.is_empty(), "{} unnoticed:\n{}", tally.unnoticed.len(), tally.unnoticed.join("\n"));
    if only.is_some() {
        return;
    }
    let is_idle = |(i, e): &(usize, &Equivalent)| !tally.used.contains(i) && (full || !e.is_deep);
    let idle: Vec<_> = EQUIVALENT.iter().enumerate().filter(is_idle).map(|e| e.1).collect();
    assert!(idle.is_empty(), "listed as equivalent, but found or not there: {idle:?}");
    assert!(tally.kinds.len() >= KINDS, "{} kinds:\n{:#?}", tally.kinds.len(), tally.kinds);
    let of = |name: &str| tally.kinds.iter().any(|k| k.starts_with(name));
    let missing: Vec<_> = OPERATORS.iter().map(|o| o.name).filter(|o| !of(o)).collect();
    assert!(missing.is_empty(), "never found: {missing:?}");
}
