//! The bytes that the fusion report predicts are the bytes that kernels move: the CPU backend's access counters mark
//! every element that a launch reads or writes, and the counts are compared argument by argument.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/random_graph.rs"]
mod random_graph;
mod support;

use frit::Tensor;
use frit::backend::cpu::CpuExecutor;
use frit::backend::{Executor, Extent};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::fusion::traffic::touched;
use frit_compiler::graph::NormKind;
use frit_compiler::ingest::builder::ModelBuilder;
use frit_compiler::{CompileOptions, Compiler, Model};
use frit_kernels::dim::{Bounds, Dim, Sym};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Anchor, Space};
use frit_plan::{Plan, Port, sizes};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use support::Random;

/// Launches compared, by kind of region; the second number counts those none of whose accesses data decide.
type Seen = BTreeMap<&'static str, (u64, u64)>;

fn kind(anchor: &Anchor) -> &'static str {
    match anchor {
        Anchor::Map => "map",
        Anchor::Row { .. } => "row",
        Anchor::MatMul { .. } => "matmul",
        Anchor::Attention(_) => "attention",
        Anchor::Chain(_) => "chain",
        Anchor::ConvChain(_) => "conv_chain",
    }
}

fn size_bounds(plan: &Plan) -> Bounds {
    let mut b = Bounds::new();
    for s in &plan.sizes {
        b.set(Sym::Size(s.name.as_str().into()), s.min as i64, s.max.map(Dim::from));
    }
    b
}

/// Compares what the counters saw with what [`touched`] and the report say, at the sizes `at`.
fn compare(plan: &Plan, executor: &mut CpuExecutor, at: &[u64], seen: &mut Seen) {
    let bounds = size_bounds(plan);
    for launch in executor.take_accesses() {
        let program = &plan.programs[launch.program];
        let spec = &plan.kernels[program.steps[launch.step].kernel as usize].spec;
        let region = &plan.report.phases[launch.program].regions[launch.step];
        let (mut counted, mut free) = ([0u64; 2], true);
        for (k, (arg, want)) in spec.args.iter().zip(touched(spec, &bounds)).enumerate() {
            let eval = |d: &Dim| plan.eval(d, at).unwrap();
            let what =
                format!("{} `{}` of {} at {at:?}: {} {}", program.name, arg.name, spec.name, want.read, want.written);
            assert_eq!(launch.written[k], eval(&want.written), "written: {what}");
            if want.at_most {
                free = false;
                assert!(launch.read[k] <= eval(&want.read), "read: {what}");
            } else {
                assert_eq!(launch.read[k], eval(&want.read), "read: {what}");
            }
            let elems = launch.read[k] + launch.written[k];
            let weight = matches!(arg.space, Space::Weight | Space::Side);
            counted[usize::from(!weight)] += elems * arg.storage.block_bytes() / arg.storage.block_elems();
        }
        if free {
            let predicted = [&region.weight_bytes, &region.activation_bytes].map(|d| plan.eval(d, at).unwrap());
            assert_eq!(counted, predicted, "{} {}", program.name, region.kernel);
        }
        let entry = seen.entry(kind(&spec.anchor)).or_default();
        *entry = (entry.0 + 1, entry.1 + u64::from(free));
    }
}

fn input(plan: &Plan, port: &Port, at: &[u64], r: &mut Random) -> Tensor {
    let shape: Vec<u64> = port.shape.iter().map(|d| plan.eval(d, at).unwrap()).collect();
    if port.storage.scalar() == Scalar::F32 { r.tensor(&shape) } else { r.ints(&shape, 7) }
}

/// Every kernel of the models of each family, in every program, at batch 2, an odd number of tokens and a cache that
/// holds 5 of 13 tokens.
#[test]
fn predicted_bytes_are_counted_bytes_in_models() {
    let mut seen = Seen::new();
    let chains = FusionOptions { force_chains: true, ..FusionOptions::default() };
    let models = ["lexicon/lexicon-q8_0.gguf", "devset/llama_gqa", "devset/qwen2", "devset/gpt2", "devset/bert"];
    let usual = models.map(|m| (m, FusionOptions::default()));
    for (model, fusion) in usual.into_iter().chain([("devset/llama_gqa", chains.clone()), ("devset/gpt2", chains)]) {
        let loaded = support::compile_with(&support::load(model), fusion, Vec::new());
        let plan = &*loaded.plan;
        for (n, program) in plan.programs.iter().enumerate() {
            let size = |name: &str| {
                let usual = match name {
                    sizes::BATCH => 2,
                    sizes::TOKENS => 3,
                    sizes::PAST if program.name != "prefill" => 5,
                    sizes::PAST => 0,
                    _ => 13,
                };
                program.fixed.iter().find(|f| f.0 == name).map_or(usual, |f| f.1)
            };
            let at: Vec<u64> = plan.sizes.iter().map(|s| size(&s.name)).collect();
            let mut r = Random::new(3);
            let extent = Extent(at.clone());
            let mut e = CpuExecutor::bind(loaded.plan.clone(), &*loaded.weights, &extent, &mut |_, _| {}).unwrap();
            for (i, s) in plan.states.iter().enumerate() {
                let len: u64 = s.shape.iter().map(|d| plan.eval(d, &at).unwrap()).product();
                e.write_state(i, &at, &vec![1; len as usize]).unwrap();
            }
            let inputs: Vec<Tensor> = program.inputs.iter().map(|p| input(plan, p, &at, &mut r)).collect();
            e.count_accesses();
            e.run(n, &at, &inputs.iter().collect::<Vec<_>>(), &[]).unwrap();
            compare(plan, &mut e, &at, &mut seen);
        }
    }
    assert!(["attention", "chain", "map", "matmul", "row"].iter().all(|k| seen.contains_key(k)), "{seen:?}");
    assert!(seen["attention"].1 > 20 && seen["matmul"].1 > 20 && seen["row"].1 > 0, "{seen:?}");
}

/// Two products with a norm between them, whose statistics the first one writes: the second normalises with them where it is
/// narrow, and scales its sums where it is wide.
fn products_around_a_norm(width: u64, columns: u64) -> Model {
    let mut m = ModelBuilder::new("two products");
    let mut r = Random::new(3);
    let gain = m.constant("gain", &[width], &r.floats(width, 1.0));
    let w = m.constant("w", &[width, 48], &r.floats(width * 48, 0.3));
    let v = m.constant("v", &[columns, width], &r.floats(columns * width, 0.3));
    m.graph("forward", |g| {
        let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
        let y = g.linear(x, w, None);
        let gain = g.weight(gain);
        let n = g.norm(NormKind::Rms, y, 1e-5, Some(gain), None);
        let z = g.linear(n, v, None);
        g.output("y", y);
        g.output("z", z);
    });
    m.finish().unwrap()
}

/// Statistics of rows and rows times a gain are counted where they are written and where they are read.
#[test]
fn predicted_bytes_are_counted_bytes_where_statistics_are_forwarded() {
    for (width, columns, form) in [(72, 1200, "forwarded"), (584, 3001, "commuted")] {
        let model = products_around_a_norm(width, columns);
        let loaded = support::compile_with(&model, FusionOptions::default(), Vec::new());
        let plan = &*loaded.plan;
        let forms: Vec<&str> = plan.report.phases[0].regions.iter().map(|r| r.norm.as_str()).collect();
        assert_eq!(forms, ["", form]);
        for rows in [9u64, 70] {
            let at = vec![rows; plan.sizes.len()];
            let mut e =
                CpuExecutor::bind(loaded.plan.clone(), &*loaded.weights, &Extent(at.clone()), &mut |_, _| {}).unwrap();
            let x = Random::new(rows).tensor(&[rows, 48]);
            e.count_accesses();
            e.run(0, &at, &[&x], &[]).unwrap();
            let mut seen = Seen::new();
            compare(plan, &mut e, &at, &mut seen);
            assert_eq!(seen["matmul"], (2, 2), "{form}: {seen:?}");
        }
    }
}

/// The same for random graphs, fused and unfused.
#[test]
fn predicted_bytes_are_counted_bytes_in_random_graphs() {
    let seen = RefCell::new(Seen::new());
    let config = Config { cases: 60, failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..Config::default() };
    let run = |recipe: random_graph::Recipe| {
        for fusion in [FusionOptions::default(), FusionOptions::unfused()] {
            let loaded = support::compile_with(&recipe.model(), fusion, Vec::new());
            let plan = &*loaded.plan;
            let known = recipe.sizes();
            let at: Vec<u64> =
                plan.sizes.iter().map(|s| known.iter().find(|k| k.0 == s.name).map_or(1, |k| k.1)).collect();
            let extent = Extent(at.clone());
            let mut e = CpuExecutor::bind(loaded.plan.clone(), &*loaded.weights, &extent, &mut |_, _| {}).unwrap();
            let mut r = Random::new(recipe.seed);
            let inputs: Vec<Tensor> = plan.programs[0].inputs.iter().map(|p| input(plan, p, &at, &mut r)).collect();
            e.count_accesses();
            e.run(0, &at, &inputs.iter().collect::<Vec<_>>(), &[]).unwrap();
            compare(plan, &mut e, &at, &mut seen.borrow_mut());
        }
        Ok(())
    };
    TestRunner::new(config)
        .run(&random_graph::recipes(), |r| {
            let done: Result<(), TestCaseError> = run(r);
            done
        })
        .unwrap();
    let seen = seen.into_inner();
    assert!(seen["attention"].1 > 50 && seen["map"].1 > 100 && seen["row"].1 > 100, "{seen:?}");
}

/// The models of every fixture folder, as [`support::load`] takes them.
fn all_models() -> Vec<String> {
    let mut all: Vec<String> =
        ["lexicon", "devset/llama_gqa", "devset/qwen2", "devset/gpt2", "devset/bert"].map(Into::into).to_vec();
    for (folder, ending) in [("families", ""), ("onnx", ".onnx")] {
        let found = std::fs::read_dir(support::fixture(folder)).unwrap();
        let names = found.map(|f| f.unwrap().file_name().into_string().unwrap());
        all.extend(names.filter(|n| n.ends_with(ending)).map(|n| format!("{folder}/{n}")));
    }
    all.sort();
    all
}

/// A kernel that only reads what another wrote saves nothing; no region claims to cost more than its parts but for stored views,
/// integers and truth values, which it names. Bytes, launches and launches of layers add up.
#[test]
fn what_regions_save_adds_up_in_every_model() {
    let mut wrong: Vec<String> = Vec::new();
    for model in all_models() {
        let options = CompileOptions { targets: Vec::new(), ..CompileOptions::default() };
        let plan = Compiler::new(options).compile(&support::load(&model)).unwrap();
        for phase in &plan.report.phases {
            let what = format!("{model} {}", phase.program);
            let at: Vec<u64> = plan
                .sizes
                .iter()
                .map(|s| match s.name.as_str() {
                    sizes::BATCH => 2,
                    sizes::TOKENS if phase.program.starts_with("decode") => 1,
                    sizes::TOKENS => 7,
                    sizes::PAST if phase.program == "prefill" => 0,
                    sizes::PAST => 9,
                    _ => 64,
                })
                .collect();
            let eval = |d: &Dim| {
                let find = |s: &Sym| plan.sizes.iter().position(|z| z.name == s.to_string()).map(|i| at[i] as i64);
                d.eval(&find).unwrap()
            };
            let mut saved = 0;
            for r in &phase.regions {
                let bytes = eval(&r.saved_bytes);
                // What the unfused graph has no launch for: regions that hold nothing else, and those that read or write it.
                let added = r.kind == "copy" || r.kind == "index";
                if bytes < 0 && r.copies.is_empty() {
                    wrong.push(format!("{what} {} {} {:?} saves {bytes}", r.kind, r.kernel, r.ops));
                }
                if r.saved_launches < 0 && !added {
                    wrong.push(format!("{what} {} {:?}: {} launches", r.kernel, r.ops, r.saved_launches));
                }
                saved += bytes;
            }
            let l = &phase.ledger;
            assert_eq!(saved, eval(&l.activations_unfused) - eval(&l.activations_fused), "{what}");
            assert_eq!(eval(&l.total), eval(&l.weights) + eval(&l.activations_fused));
            let launches: i32 = phase.regions.iter().map(|r| r.saved_launches).sum();
            assert_eq!(launches, phase.unfused_dispatches as i32 - phase.dispatches as i32, "{what}");
            let each = phase.layers.iter().map(|l| l.dispatches);
            assert_eq!(each.clone().sum::<u32>() + phase.outside_layers, phase.dispatches, "{what}");
            assert_eq!(each.max().unwrap_or(0), phase.dispatches_per_layer, "{what}");
            assert!(phase.attention.fused < 2 || phase.dispatches_per_layer > 0, "{what}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
