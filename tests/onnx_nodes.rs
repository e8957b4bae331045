//! The operator tests of the onnx package, each a model of a node or a few, on the CPU and on wgpu.
//!
//! `fixtures/fetch_onnx_nodes.sh` brings them and `tests/run.sh` names their folder in the variable `FRIT_ONNX_NODES`.
//! Relevant are those whose operators are all listed in `onnx_nodes/operators.txt` and whose inputs and outputs are
//! 32-bit floats, integers or truth values. Each of them passes or is listed in `onnx_nodes/ignored.txt` with the reason;
//! a listed one that passes is an error too, so that the list only shrinks. All other tests are right, refused or listed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit::backend::Backend;
use frit::{BackendChoice, LoadedModel, Session, Tensor, model_source, npz};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

const OPERATORS: &str = include_str!("onnx_nodes/operators.txt");
const IGNORED: &str = include_str!("onnx_nodes/ignored.txt");
const RELEVANT: usize = 913;

/// What became of a test on a backend.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Right,
    Refused(String),
    Wrong(String),
}

struct Case {
    name: String,
    relevant: bool,
    atol: f64,
    rtol: f64,
}

struct Ran {
    case: Case,
    cpu: Outcome,
    wgpu: Outcome,
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'))
}

fn cases(folder: &Path) -> Vec<Case> {
    let operators: BTreeSet<&str> = lines(OPERATORS).flat_map(str::split_whitespace).collect();
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let texts =
        |v: &Value| -> Vec<String> { v.as_array().unwrap().iter().map(|x| x.as_str().unwrap().to_owned()).collect() };
    let plain = |d: &String| matches!(d.as_str(), "float32" | "int64" | "int32" | "bool");
    let case = |v: &Value| Case {
        name: v["name"].as_str().unwrap().to_owned(),
        relevant: texts(&v["ops"]).iter().all(|o| operators.contains(o.as_str()))
            && texts(&v["dtypes"]).iter().all(plain),
        atol: v["atol"].as_f64().unwrap(),
        rtol: v["rtol"].as_f64().unwrap(),
    };
    index.iter().map(case).collect()
}

/// All tests, each compiled once and run on both backends.
fn outcomes() -> &'static [Ran] {
    static RAN: OnceLock<Vec<Ran>> = OnceLock::new();
    RAN.get_or_init(|| {
        let folder = std::env::var_os("FRIT_ONNX_NODES").expect(
            "FRIT_ONNX_NODES names no folder; `bash fixtures/fetch_onnx_nodes.sh` brings it and prints its path",
        );
        let folder = PathBuf::from(folder);
        let mut cases: Vec<Option<Case>> = cases(&folder).into_iter().map(Some).collect();
        let next = AtomicUsize::new(0);
        let names: Vec<(String, f64, f64)> = cases.iter().flatten().map(|c| (c.name.clone(), c.atol, c.rtol)).collect();
        let worker = || {
            let cpu = BackendChoice::Cpu.open().unwrap();
            let wgpu = BackendChoice::Wgpu.open().unwrap();
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some((name, atol, rtol)) = names.get(i) else { return done };
                done.push((i, run(&folder.join(name), *atol, *rtol, [&*cpu, &*wgpu])));
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let done: Vec<_> = std::thread::scope(|s| {
            let all: Vec<_> = (0..threads).map(|_| s.spawn(worker)).collect();
            all.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        let mut ran: Vec<(usize, Ran)> =
            (done.into_iter()).map(|(i, [cpu, wgpu])| (i, Ran { case: cases[i].take().unwrap(), cpu, wgpu })).collect();
        ran.sort_by_key(|r| r.0);
        ran.into_iter().map(|r| r.1).collect()
    })
}

fn run(folder: &Path, atol: f64, rtol: f64, backends: [&dyn Backend; 2]) -> [Outcome; 2] {
    let same = |o: Outcome| [o.clone(), o];
    let read = |f: &str| npz::read(&folder.join(f)).map_err(|e| e.to_string());
    let (inputs, want) = match (read("in.npz"), read("out.npz")) {
        (Ok(i), Ok(o)) => (i, o),
        (Err(e), _) | (_, Err(e)) => return same(Outcome::Refused(e)),
    };
    let path = folder.join("model.onnx");
    let model = catch_unwind(AssertUnwindSafe(|| model_source::open_for(&path, &inputs, &mut |_| {})));
    match model {
        Err(_) => same(Outcome::Wrong("the compiler panicked".into())),
        Ok(Err(e)) => same(Outcome::Refused(e.to_string())),
        Ok(Ok(model)) => backends.map(|b| {
            catch_unwind(AssertUnwindSafe(|| answers(&model, b, &inputs, &want, atol, rtol)))
                .unwrap_or_else(|_| Outcome::Wrong("panicked".into()))
        }),
    }
}

fn answers(
    model: &LoadedModel,
    backend: &dyn Backend,
    inputs: &[(String, Tensor)],
    want: &[(String, Tensor)],
    atol: f64,
    rtol: f64,
) -> Outcome {
    let session = Session::builder().bind_on(backend, model.plan.clone(), &*model.weights);
    let given: BTreeSet<&str> = (model.plan.programs.iter()).flat_map(|p| &p.inputs).map(|p| p.name.as_str()).collect();
    let inputs: Vec<_> = inputs.iter().filter(|i| given.contains(i.0.as_str())).cloned().collect();
    let got = match session.and_then(|mut s| s.run(&inputs)) {
        Ok(got) => got.into_iter().collect::<BTreeMap<_, _>>(),
        Err(e) => return Outcome::Refused(e.to_string()),
    };
    for (name, want) in want {
        let Some(got) = got.get(name) else { return Outcome::Wrong(format!("gives no `{name}`")) };
        if got.shape() != want.shape() {
            return Outcome::Wrong(format!("`{name}` is {:?}, {:?} expected", got.shape(), want.shape()));
        }
        if let Some(e) = difference(got, want, atol, rtol) {
            return Outcome::Wrong(format!("`{name}`{e}"));
        }
    }
    Outcome::Right
}

/// The first element that breaks `|got − want| ≤ atol + rtol·|want| + 1e-5·max|want|`; the last term is for sums, whose
/// rounding goes with their terms and not with themselves.
fn difference(got: &Tensor, want: &Tensor, atol: f64, rtol: f64) -> Option<String> {
    if let (Some(g), Some(w)) = (got.as_i32(), want.as_i32()) {
        let at = g.iter().zip(w).position(|(g, w)| g != w)?;
        return Some(format!("[{at}] is {}, {} expected", g[at], w[at]));
    }
    let (Some(g), Some(w)) = (got.as_f32(), want.as_f32()) else { return Some(" has the other element type".into()) };
    let largest = w.iter().filter(|v| v.is_finite()).fold(0.0f64, |a, v| a.max(f64::from(v.abs())));
    let differs = |(g, w): (&f32, &f32)| {
        let off = (f64::from(*g) - f64::from(*w)).abs() <= atol + rtol * f64::from(w.abs()) + 1e-5 * largest;
        !(off || g == w || (g.is_nan() && w.is_nan()))
    };
    let at = g.iter().zip(w).position(differs)?;
    Some(format!("[{at}] is {}, {} expected", g[at], w[at]))
}

/// Names on the ignore list for a backend.
fn ignored(backend: &str) -> BTreeSet<&'static str> {
    lines(IGNORED)
        .filter_map(|l| {
            let mut words = l.splitn(3, char::is_whitespace);
            let (on, name, reason) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or(""));
            assert!(matches!(on, "cpu" | "wgpu" | "both") && !reason.trim().is_empty(), "`{l}` has no reason");
            (on == backend || on == "both").then_some(name)
        })
        .collect()
}

/// Ignored names, both backends together, at most.
const MOST_IGNORED: usize = 13;

#[test]
fn the_list_of_ignored_cases_does_not_grow() {
    let names: BTreeSet<&str> = ignored("cpu").union(&ignored("wgpu")).copied().collect();
    assert!(names.len() <= MOST_IGNORED && lines(IGNORED).count() == names.len(), "{}", names.len());
}

fn relevant_cases_pass(backend: &str, of: fn(&Ran) -> &Outcome, at_least: usize) {
    let relevant: Vec<&Ran> = outcomes().iter().filter(|r| r.case.relevant).collect();
    assert_eq!(relevant.len(), RELEVANT, "the tests are those of another version of onnx");
    let mut ignored = ignored(backend);
    ignored.retain(|name| outcomes().iter().all(|r| r.case.relevant || r.case.name != *name));
    let failed: BTreeMap<&str, &Outcome> =
        (relevant.iter()).filter(|r| *of(r) != Outcome::Right).map(|r| (r.case.name.as_str(), of(r))).collect();
    println!("{backend}: {} of {RELEVANT} operator tests pass", RELEVANT - failed.len());
    let mut said = String::new();
    for (name, outcome) in failed.iter().filter(|f| !ignored.contains(f.0)) {
        said += &format!("\n{name}: {outcome:?}");
    }
    for name in ignored.iter().filter(|n| !failed.contains_key(*n)) {
        said += &format!("\n{name} passes (or is no relevant test): take it from the list");
    }
    assert!(said.is_empty(), "on {backend}:{said}");
    assert!(RELEVANT - failed.len() >= at_least, "{} pass on {backend}", RELEVANT - failed.len());
}

#[test]
fn relevant_cases_pass_on_the_cpu() {
    relevant_cases_pass("cpu", |r| &r.cpu, 900);
}

#[test]
fn relevant_cases_pass_on_wgpu() {
    relevant_cases_pass("wgpu", |r| &r.wgpu, 900);
}

/// Operators that nobody asked for are either right or refused: there is no third way.
#[test]
fn other_cases_are_right_or_refused() {
    let (mut right, mut refused, mut wrong) = (0, 0, String::new());
    for r in outcomes().iter().filter(|r| !r.case.relevant) {
        for (backend, outcome) in [("cpu", &r.cpu), ("wgpu", &r.wgpu)] {
            match outcome {
                Outcome::Wrong(_) if ignored(backend).contains(r.case.name.as_str()) => {}
                Outcome::Right if ignored(backend).contains(r.case.name.as_str()) => {
                    wrong += &format!("\n{} passes on {backend}: take it from the list", r.case.name);
                }
                Outcome::Right => right += 1,
                Outcome::Refused(_) => refused += 1,
                Outcome::Wrong(why) => wrong += &format!("\n{} on {backend}: {why}", r.case.name),
            }
        }
    }
    println!("others, on both backends: {right} pass, {refused} are refused");
    assert!(wrong.is_empty(), "{wrong}");
    assert!(right >= 500, "{right}");
}
