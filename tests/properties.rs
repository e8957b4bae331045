//! Random transformer-like graphs: fused, unfused and the float64 evaluator agree, on the CPU and on wgpu.
//!
//! A failing recipe shrinks; its `Debug` form is all that is needed to build it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/random_graph.rs"]
mod random_graph;
mod support;

use frit::{BackendChoice, Tensor};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::FusionOptions;
use frit_compiler::graph::{Op, ValueId};
use frit_compiler::reference::{Elements, weight_array};
use frit_kernels::dim::{Dim, Sym};
use frit_kernels::target::Capabilities;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use random_graph::{Recipe, recipes};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Largest error of any output, relative to its largest magnitude.
const TOLERANCE: f64 = 1e-4;

/// Runs a recipe fused and unfused and compares both with the oracle.
fn agrees(recipe: &Recipe, backend: BackendChoice, targets: &[Capabilities]) -> Result<(), TestCaseError> {
    let model = recipe.model();
    let inputs = recipe.inputs();
    let want = support::oracle(&model, "forward", &recipe.sizes(), &inputs);
    for (name, fusion) in [("fused", FusionOptions::default()), ("unfused", FusionOptions::unfused())] {
        let loaded = support::compile_with(&model, fusion, targets.to_vec());
        let mut session = support::open(&loaded, backend);
        let got: Vec<(String, Tensor)> =
            session.run(&inputs).map_err(|e| TestCaseError::fail(format!("{name} on {backend:?}: {e}")))?;
        prop_assert_eq!(got.len(), want.len());
        for ((output, got), (_, want)) in got.iter().zip(&want) {
            let d = support::distance(&format!("{name} `{output}` on {backend:?}"), got, want);
            prop_assert!(d <= TOLERANCE, "{} `{}` on {:?} is off by {:e}", name, output, backend, d);
        }
    }
    Ok(())
}

/// `cases` recipes of a fixed seed; `FRIT_PROPERTY_CASES` asks for another number.
fn all(seed: u64, cases: u32, shrink: u32, test: impl Fn(&Recipe) -> Result<(), TestCaseError>) {
    let cases = std::env::var("FRIT_PROPERTY_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let rng_seed = RngSeed::Fixed(seed);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrink, rng_seed, ..Config::default() };
    let done = TestRunner::new(config).run(&recipes(), |r| test(&r));
    if let Err(TestError::Fail(why, recipe)) = &done {
        panic!("{why}\n{recipe:#?}");
    }
    done.unwrap();
}

#[test]
fn fused_and_unfused_agree_with_float64_on_the_processor() {
    all(1, 500, 500, |r| agrees(r, BackendChoice::Cpu, &[]));
}

#[test]
fn fused_and_unfused_agree_with_float64_on_wgpu() {
    all(2, 4, 20, |r| agrees(r, BackendChoice::Wgpu, &CompileOptions::default().targets));
}

/// Elements computed on demand, which translation validation compares, are those of whole tensors.
#[test]
fn elements_on_demand_are_those_of_whole_tensors() {
    all(4, 60, 100, |recipe| {
        if recipe.masking == random_graph::Masking::Cache {
            return Ok(());
        }
        let model = recipe.model();
        let (inputs, known) = (recipe.inputs(), recipe.sizes());
        let want = support::oracle(&model, "forward", &known, &inputs);
        let graph = &model.graph("forward").unwrap().graph;
        let sizes: BTreeMap<String, i64> = known.iter().map(|(n, v)| ((*n).to_owned(), *v as i64)).collect();
        let weights = RefCell::new(BTreeMap::new());
        let given = |v: ValueId, i: usize| match graph.op(v) {
            Op::Input(name) => inputs.iter().find(|(n, _)| n == name).map(|(_, t)| support::array(t).data[i]),
            Op::Weight(w) => {
                let mut all = weights.borrow_mut();
                let data =
                    all.entry(*w).or_insert_with(|| weight_array(&model, *w, &|n| sizes.get(n).copied()).unwrap());
                Some(data.data[i])
            }
            _ => None,
        };
        let mut elements = Elements::new(graph, &sizes, &given, u64::MAX);
        for (o, (_, want)) in graph.outputs.iter().zip(&want) {
            for i in [0, want.data.len() / 3, want.data.len() - 1] {
                let got = elements.at(o.value, i).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert!(
                    (got - want.data[i]).abs() <= 1e-9 * want.data[i].abs().max(1.0),
                    "{} {}",
                    got,
                    want.data[i]
                );
            }
        }
        Ok(())
    });
}

/// Size expressions over `S`, `B` and an axis.
fn dims() -> impl Strategy<Value = Dim> {
    let leaf = prop_oneof![
        (-9i64..200).prop_map(Dim::constant),
        Just(Dim::size("S")),
        Just(Dim::size("B")),
        Just(Dim::axis(0)),
    ];
    leaf.prop_recursive(5, 24, 2, |inner| {
        let divisor = prop_oneof![
            prop::sample::select(vec![1i64, 2, 3, 16, 63, 64, 65535]).prop_map(Dim::constant),
            Just(Dim::size("S"))
        ];
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a + b),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a - b),
            (inner.clone(), -3i64..70).prop_map(|(a, b)| a * Dim::constant(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.larger(&b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.smaller(&b)),
            (inner.clone(), divisor.clone()).prop_map(|(a, b)| a.div(&b)),
            (inner.clone(), divisor.clone()).prop_map(|(a, b)| a.ceil_div(&b)),
            (inner, divisor).prop_map(|(a, b)| a.rem(&b)),
        ]
    })
}

proptest! {
    #![proptest_config(Config { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(3), ..Config::default() })]

    /// An artifact holds sizes as text: what is read is what was written.
    #[test]
    fn size_expressions_survive_their_text(d in dims()) {
        let text = d.to_string();
        prop_assert_eq!(text.parse::<Dim>().map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?, d);
    }

    /// The normal form has the value of what it was made from.
    #[test]
    fn sums_and_quotients_keep_their_value(a in dims(), b in dims(), n in 1i64..70, s in 1i64..9, t in 0i64..9) {
        let env = |x: &Sym| Some(if x.to_string() == "S" { s } else { t });
        let of = |d: &Dim| d.eval(&env).ok();
        let n_dim = Dim::constant(n);
        if let (Some(x), Some(y)) = (of(&a), of(&b)) {
            prop_assert_eq!(of(&(a.clone() + b.clone())), Some(x + y));
            prop_assert_eq!(of(&(a.clone() - b.clone())), Some(x - y));
            prop_assert_eq!(of(&a.larger(&b)), Some(x.max(y)));
            prop_assert_eq!(of(&a.div(&n_dim)), Some(x.div_euclid(n)));
            prop_assert_eq!(of(&a.rem(&n_dim)), Some(x.rem_euclid(n)));
        }
    }
}
