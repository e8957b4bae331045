//! Every kernel of the plans of the dev models, by itself: each of its texts executed under all checks on random numbers,
//! against naive loops in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../kernels/simt/tests/launch/mod.rs"]
mod launch;
#[path = "support/mod.rs"]
mod models;
#[path = "../kernels/tests/support/mod.rs"]
mod support;

use frit_compiler::CompileOptions;
use frit_kernels::dim::Sym;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{Arg, Expr, ExprId, KernelSpec};
use frit_kernels::target::Tier;
use frit_kernels::templates::render;
use frit_plan::{Plan, sizes};
use frit_simt::Options;
use std::collections::{BTreeMap, BTreeSet};
use support::blocks::{Data, Random};
use support::{Case, compare};

/// Sizes of one run: no multiples of a tile, and the past and the tokens together fit.
const RUNS: [(u64, u64, u64); 2] = [(2, 9, 4), (3, 35, 0)];

/// Contents: whole numbers below `rows`, which are rows of every table that they name, and floats about 1.
fn content(random: &mut Random, a: &Arg, len: usize, rows: u32) -> Data {
    match a.storage {
        _ if a.written => Data::F32(vec![0.0; len]),
        Storage::I32 => random.ints(len, rows),
        s => random.stored(s, len),
    }
}

/// How many different whole numbers of an argument name rows: of the shortest table in whose index they are, or 2 where they
/// are used otherwise, as lengths are.
fn rows_named(spec: &KernelSpec, of: usize, len: &dyn Fn(&Arg) -> i64) -> u32 {
    let loads = |e: ExprId| matches!(spec.exprs.get(e), Expr::Load { arg, .. } if usize::from(arg.0) == of);
    let named: Vec<ExprId> = (0..spec.exprs.len() as u32).map(ExprId).filter(|e| loads(*e)).collect();
    let mut rows: Option<i64> = None;
    for (id, e) in spec.exprs.iter() {
        for v in spec.exprs.operands(id).iter().filter(|o| named.contains(o)) {
            let Expr::Load { arg, index } = e else { return 2 };
            let step = index.linear_in(&Sym::Value(v.0)).and_then(|(step, _)| step.as_const());
            let Some(step) = step.filter(|s| *s > 0) else { return 2 };
            let own = len(spec.arg(*arg).unwrap()) / step;
            rows = Some(rows.map_or(own, |r| r.min(own)));
        }
    }
    rows.map_or(2, |r| u32::try_from(r).unwrap().max(1))
}

fn case(spec: &KernelSpec, values: &BTreeMap<String, i64>, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let env = |s: &Sym| match s {
        Sym::Size(n) => values.get(&**n).copied(),
        _ => None,
    };
    let len = |a: &Arg| a.len.eval(&env).unwrap();
    let data = spec.args.iter().enumerate().map(|(i, a)| {
        let rows = rows_named(spec, i, &len);
        content(&mut random, a, usize::try_from(len(a)).unwrap(), rows)
    });
    let data = data.collect();
    let values: Vec<(&str, i64)> = values.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    let mut case = Case::new(spec.clone(), &values, data);
    case.tolerance = 1e-4;
    case
}

/// The sizes of each program's kernels in a run.
fn kernels(plan: &Plan, (batch, tokens, past): (u64, u64, u64)) -> BTreeSet<(u32, BTreeMap<String, i64>)> {
    let mut found = BTreeSet::new();
    for program in &plan.programs {
        let fixed = |name: &str| program.fixed.iter().find(|f| f.0 == name).map(|f| f.1);
        let most = |name: &str| program.at_most.iter().find(|f| f.0 == name).map_or(u64::MAX, |f| f.1);
        let value = |name: &str| {
            let wanted = match name {
                sizes::BATCH => batch,
                sizes::PAST => past,
                sizes::CAPACITY => past + tokens + 3,
                _ => tokens,
            };
            fixed(name).unwrap_or(wanted.min(most(name)))
        };
        let values: BTreeMap<String, i64> =
            plan.sizes.iter().map(|s| (s.name.clone(), value(&s.name) as i64)).collect();
        for step in &program.steps {
            found.insert((step.kernel, values.clone()));
        }
    }
    found
}

/// Contents are random where a model's are not: sums of softmaxes have either sign, so that last bits are magnified.
const UNLIKE: f64 = 1e-3;

/// A device unlike the plain one, in some or in all that is left to it.
fn adversarial(seed: u64) -> Options {
    let (perturb, permute_mma, shuffle) = (Some(seed), Some(seed), Some(seed));
    let plain = Options { shuffle, ..Options::default() };
    match seed % 4 {
        0 => Options { flush_denormals: true, contract: true, perturb, permute_mma, ..plain },
        1 => Options { perturb, permute_mma, ..plain },
        2 => Options { contract: true, permute_mma, ..plain },
        _ => Options { flush_denormals: true, perturb, ..plain },
    }
}

fn check(model: &str) {
    check_at(model, &RUNS);
}

/// Checks all kernels of a model's plan at the sizes of some runs.
fn check_at(model: &str, runs: &[(u64, u64, u64)]) {
    let targets = CompileOptions::default().targets;
    let loaded = models::compile_with(&models::load(model), Default::default(), targets.clone());
    let plan = &loaded.plan;
    let mut checked = vec![0; plan.kernels.len()];
    for run in runs.iter().copied() {
        for (at, values) in kernels(plan, run) {
            let kernel = &plan.kernels[at as usize];
            let case = case(&kernel.spec, &values, u64::from(at) + 1);
            for caps in &targets {
                let r = render(&case.spec, caps).unwrap_or_else(|e| panic!("{model} {}: {e}", kernel.name));
                let is_held = |v: &frit_plan::Variant| v.text == r.text;
                assert!(kernel.variants.iter().any(is_held), "{model} {}", kernel.name);
                let what = format!("{model} {} {:?} {run:?}", kernel.name, caps.tier);
                let (outcome, args) = launch::run(&case, &r, &Options::default());
                let broken: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
                assert!(broken.is_empty() && outcome.completed, "{what}: {broken:#?}\n{}", r.text);
                let (want, tolerance) = launch::expected(&case, &r);
                for (i, a) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
                    compare(&format!("{what} `{}`", a.name), &want[i], &args[i], tolerance[i], &r);
                }
                checked[at as usize] += usize::from(caps.tier == Tier::Cuda);
                // what the languages leave open, one way of each a kernel
                if run == RUNS[0] {
                    let options = adversarial(u64::from(at));
                    let (outcome, args) = launch::run(&case, &r, &options);
                    let broken: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
                    assert!(broken.is_empty() && outcome.completed, "{what} {options:?}: {broken:#?}\n{}", r.text);
                    for (i, a) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
                        let what = format!("{what} `{}` {options:?}", a.name);
                        compare(&what, &want[i], &args[i], tolerance[i].max(UNLIKE), &r);
                    }
                }
            }
        }
    }
    assert!(checked.iter().all(|n| *n >= 3), "{model}: {checked:?}");
}

#[test]
fn llama() {
    check("devset/llama_gqa");
}

#[test]
fn gpt2() {
    check("devset/gpt2");
}

#[test]
fn qwen2() {
    check("devset/qwen2");
}

#[test]
fn bert() {
    check("devset/bert");
}

#[test]
fn gguf() {
    for quantised in ["F16", "Q4_0", "Q8_0"] {
        check(&format!("devset/gguf/llama_{quantised}.gguf"));
    }
}

#[test]
fn other_families() {
    for model in ["albert", "gemma2", "t5", "vit", "whisper", "qwen3"] {
        check_at(&format!("families/{model}"), &RUNS[..1]);
    }
}

#[test]
fn exports() {
    for model in ["bert", "bert_ts", "gemma2_ts", "gpt2", "gpt2_past", "llama_gqa", "llama_gqa_past"] {
        check_at(&format!("onnx/{model}.onnx"), &RUNS[..1]);
    }
}
