//! One graph for each code of a refusal: the list is closed, and every code in it is met.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit_compiler::fusion::{FusionOptions, Overruled, Refusal};
use frit_compiler::graph::{AttentionAttrs, Float, NormKind};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::model::MemoryTensors;
use frit_compiler::{CompileOptions, Compiler, Error, Model, NumericMode, PeakBudget};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{Expr, Literal, ReduceOp, UnaryOp};
use frit_plan::{KvPart, Plan, RefusedEdge, TensorData, sizes};
use std::sync::Arc;
use support::Random;

type Build = Box<dyn FnOnce(&mut GraphBuilder<'_>)>;

fn model(rows: u64, weights: impl FnOnce(&mut ModelBuilder) -> Build) -> Model {
    let mut m = ModelBuilder::new("codes");
    let build = weights(&mut m);
    m.graph_with("forward", &[], &[("N", rows)], |g| build(g));
    m.finish().unwrap()
}

fn compile(model: &Model, options: CompileOptions) -> Plan {
    let plan = Compiler::new(CompileOptions { targets: Vec::new(), ..options }).compile(model).unwrap();
    plan.validate().unwrap();
    plan
}

fn matrix(m: &mut ModelBuilder, name: &str, rows: u64, columns: u64) -> frit_compiler::graph::WeightId {
    m.constant(name, &[rows, columns], &Random::new(rows + columns).floats(rows * columns, 0.5))
}

fn x(g: &mut GraphBuilder<'_>, width: u64) -> frit_compiler::graph::ValueId {
    g.input("x", Scalar::F32, &["N".into(), width.into()])
}

/// A product whose rows are scaled by their own sums: the scale waits for the product.
fn cycle() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 40, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.linear(x, w, None);
            let s = g.reduce(ReduceOp::Sum, y, &[1], true);
            let out = g.mul(y, s);
            g.output("y", out);
        })
    })
}

/// Two projections of one input, stored differently.
fn mixed_storage() -> Model {
    model(64, |m| {
        let mut tensors = MemoryTensors::default();
        let bytes = vec![0x3cu8; 2 * 40 * 48];
        tensors.0.insert("half".into(), TensorData { storage: Storage::F16, shape: vec![40, 48], bytes });
        m.source(Arc::new(tensors));
        let (a, b) = (matrix(m, "a", 40, 48), m.stored("half", Storage::F16, &[40, 48]));
        Box::new(move |g| {
            let x = x(g, 48);
            let (a, b) = (g.linear(x, a, None), g.linear(x, b, None));
            g.output("a", a);
            g.output("b", b);
        })
    })
}

/// A product and its left half beside its right half.
fn halves() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 40, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.linear(x, w, None);
            let (a, b) = (g.slice(y, 1, 0.into(), 20.into()), g.slice(y, 1, 20.into(), 20.into()));
            let out = g.mul(a, b);
            g.output("y", out);
        })
    })
}

/// One function of the input, read by a product and by a softmax.
fn two_readers() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 40, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let t = g.unary(UnaryOp::Tanh, x);
            let (a, b) = (g.linear(t, w, None), g.softmax(t));
            g.output("a", a);
            g.output("b", b);
        })
    })
}

fn softmax_of_product() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 300, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.linear(x, w, None);
            let p = g.softmax(y);
            g.output("p", p);
        })
    })
}

fn norm_and_product(rows: u64, columns: u64) -> Model {
    model(rows, |m| {
        let w = matrix(m, "w", columns, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let n = g.norm(NormKind::Rms, x, 1e-5, None, None);
            let y = g.linear(n, w, None);
            g.output("y", y);
        })
    })
}

/// The sum of more matrices than a kernel may bind.
fn many_matrices() -> Model {
    let mut m = ModelBuilder::new("codes");
    let all: Vec<_> = (0..11).map(|i| matrix(&mut m, &format!("w{i}"), 12, 12)).collect();
    m.graph("forward", |g| {
        let mut sum = g.input("x", Scalar::F32, &[12.into(), 12.into()]);
        for w in all {
            let w = g.weight(w);
            sum = g.mul(sum, w);
            sum = g.unary(UnaryOp::Tanh, sum);
        }
        g.output("y", sum);
    });
    m.finish().unwrap()
}

fn siblings() -> Model {
    model(64, |m| {
        let (a, b) = (matrix(m, "a", 64, 48), matrix(m, "b", 70, 48));
        Box::new(move |g| {
            let x = x(g, 48);
            let (a, b) = (g.linear(x, a, None), g.linear(x, b, None));
            g.output("a", a);
            g.output("b", b);
        })
    })
}

/// Two products of one input, each of whose rows is summed up on its own.
fn summed_siblings() -> Model {
    model(64, |m| {
        let (a, b) = (matrix(m, "a", 66, 48), matrix(m, "b", 70, 48));
        Box::new(move |g| {
            let x = x(g, 48);
            for (name, w) in [("a", a), ("b", b)] {
                let y = g.linear(x, w, None);
                let y = g.softmax(y);
                let s = g.reduce(ReduceOp::Max, y, &[1], true);
                g.output(name, s);
            }
        })
    })
}

fn chain() -> Model {
    chain_of(48)
}

fn chain_of(width: u64) -> Model {
    model(64, |m| {
        let (a, b) = (matrix(m, "a", 40, width), matrix(m, "b", 9, 40));
        Box::new(move |g| {
            let x = x(g, width);
            let y = g.linear(x, a, None);
            let y = g.unary(UnaryOp::GeluErf, y);
            let y = g.linear(y, b, None);
            g.output("y", y);
        })
    })
}

/// A product, and windows of three of its rows in front of another one.
fn convolutions() -> Model {
    model(64, |m| {
        let (a, b) = (matrix(m, "a", 256, 24), matrix(m, "b", 200, 3 * 256));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 40.into(), 24.into()]);
            let y = g.linear(x, a, None);
            let y = g.unary(UnaryOp::Tanh, y);
            let places = g.transpose(y, &[1, 0, 2]);
            let grid: [Dim; 2] = [38.into(), 3.into()];
            let (place, tap) = (g.iota(&grid, 0, Dim::zero()), g.iota(&grid, 1, Dim::zero()));
            let at = g.add(place, tap);
            let taken = g.gather(places, at);
            let rows = g.transpose(taken, &[2, 0, 3, 1]);
            let rows = g.reshape(rows, &["N".into(), 38.into(), 768.into()]);
            let y = g.linear(rows, b, None);
            g.output("y", y);
        })
    })
}

fn plain_attention() -> AttentionAttrs {
    AttentionAttrs { scale: Float(0.25), causal: None, window: None, softcap: None, has_mask: false, has_bias: false }
}

fn attended(g: &mut GraphBuilder<'_>, w: frit_compiler::graph::WeightId) -> frit_compiler::graph::ValueId {
    let shape: [Dim; 3] = [1.into(), "N".into(), 48.into()];
    let x = g.input("x", Scalar::F32, &shape);
    let y = g.linear(x, w, None);
    let heads = g.reshape(y, &[1.into(), "N".into(), 3.into(), 16.into()]);
    let heads = g.transpose(heads, &[0, 2, 1, 3]);
    g.attention(heads, heads, heads, None, None, plain_attention())
}

fn attention_of_product() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 48, 48);
        Box::new(move |g| {
            let a = attended(g, w);
            g.output("y", a);
        })
    })
}

/// Attention in parts, whose probabilities are a result as well.
fn kept_probabilities() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 48, 48);
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &[1.into(), "N".into(), 48.into()]);
            let y = g.linear(x, w, None);
            let heads = g.reshape(y, &[1.into(), "N".into(), 3.into(), 16.into()]);
            let heads = g.transpose(heads, &[0, 2, 1, 3]);
            let keys = g.transpose(heads, &[0, 1, 3, 2]);
            let scores = g.matmul(heads, keys);
            let scale = g.f32(0.25);
            let scores = g.mul(scores, scale);
            let p = g.softmax(scores);
            let y = g.matmul(p, heads);
            g.output("p", p);
            g.output("y", y);
        })
    })
}

/// The result of an attention goes into a cache.
fn cached_attention() -> Model {
    let mut m = ModelBuilder::new("codes");
    m.size(sizes::BATCH, 1, None);
    m.size(sizes::TOKENS, 1, None);
    m.size(sizes::PAST, 0, None);
    m.size(sizes::CAPACITY, 1, Some(64));
    let slot = m.kv_slot("cache", 3, 16, 16);
    m.graph("forward", |g| {
        let shape: [Dim; 4] = [sizes::BATCH.into(), 3.into(), sizes::TOKENS.into(), 16.into()];
        let x = g.input("x", Scalar::F32, &shape);
        let a = g.attention(x, x, x, None, None, plain_attention());
        let all = g.kv_append(slot, KvPart::K, a);
        let b = g.attention(x, all, all, None, None, plain_attention());
        g.output("y", b);
    });
    m.finish().unwrap()
}

fn damage(spec: &mut frit_kernels::spec::KernelSpec) {
    if spec.name.contains("tanh") && spec.name.contains("matmul") {
        let two = spec.exprs.add(Expr::Const(Literal::f32(2.0)), Scalar::F32);
        spec.stores[0].value = two;
    }
}

fn fusion(f: impl FnOnce(&mut FusionOptions)) -> CompileOptions {
    let mut o = CompileOptions::default();
    f(&mut o.fusion);
    o
}

fn case(code: Refusal) -> (Model, CompileOptions) {
    let usual = CompileOptions::default();
    match code {
        Refusal::Cycle => (cycle(), usual),
        Refusal::Dtype => (mixed_storage(), usual),
        Refusal::Map => (halves(), usual),
        Refusal::Probs => (kept_probabilities(), usual),
        Refusal::Dup => (two_readers(), usual),
        Refusal::RowTile => (softmax_of_product(), usual),
        Refusal::Recompute => (norm_and_product(100_000, 6600), usual),
        Refusal::Commute => (residual_and_norm(NormKind::Rms, 6600), usual),
        Refusal::Stat => (residual_and_norm(NormKind::Layer, 6600), usual),
        Refusal::Bind => (many_matrices(), usual),
        Refusal::Smem => (chain_of(3000), usual),
        Refusal::Dispatch => (siblings(), fusion(|f| f.limit_binding_bytes = 20_000)),
        Refusal::Grid => (attention_of_product(), usual),
        Refusal::Effect => (cached_attention(), usual),
        Refusal::Mode => (norm_and_product(4, 48), fusion(|f| f.numeric = NumericMode::Strict)),
        Refusal::User => (siblings(), fusion(|f| f.merge_siblings = false)),
        Refusal::Profit => (product_of_softmax(), usual),
        Refusal::Chain => (chain(), usual),
        Refusal::Halo => (convolutions(), usual),
        Refusal::Peak => {
            // Side by side both results are there at once; one by one the first is summed up before the second is made.
            let peak = PeakBudget { bytes: 4 * 64 * (48 + 70 + 2), at: [("N".into(), 64)].into() };
            (summed_siblings(), CompileOptions { peak: Some(peak), ..usual })
        }
        Refusal::Measured => {
            let why = Overruled::Measured { slower_permille: 85, device: "a device".into() };
            (siblings(), fusion(|f| assert!(f.overrule("siblings", why))))
        }
        Refusal::Mismatch => {
            let mut o = CompileOptions { validate: Some(1 << 30), ..usual };
            o.plant.0 = Some(damage);
            (activated(), o)
        }
    }
}

fn product_of_softmax() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 40, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let s = g.softmax(x);
            let y = g.linear(s, w, None);
            g.output("y", y);
        })
    })
}

/// A norm of what a product adds to, in front of a product of many columns.
fn residual_and_norm(kind: NormKind, columns: u64) -> Model {
    model(100_000, |m| {
        let (w, v) = (matrix(m, "w", 48, 48), matrix(m, "v", columns, 48));
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.linear(x, w, None);
            let y = g.add(x, y);
            let n = g.norm(kind, y, 1e-5, None, None);
            let y = g.linear(n, v, None);
            g.output("y", y);
        })
    })
}

fn activated() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 40, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.linear(x, w, None);
            let y = g.unary(UnaryOp::Tanh, y);
            g.output("y", y);
        })
    })
}

fn found(plan: &Plan) -> Vec<&RefusedEdge> {
    plan.report.phases.iter().flat_map(|p| &p.refused).collect()
}

/// What the refusal of a case says: part of its operands, and of what would allow the fusion.
fn told(code: Refusal) -> [&'static str; 2] {
    match code {
        Refusal::Cycle => ["operand", "remove the path"],
        Refusal::Dtype => ["f32 and f16", "a type"],
        Refusal::Map => ["other elements of the tile than", "same tile"],
        Refusal::Probs => ["f32[1, 3, N, N]", "out of the outputs"],
        Refusal::Dup => ["2 regions", "one region"],
        Refusal::RowTile => ["300", "nothing"],
        Refusal::Commute | Refusal::Recompute | Refusal::Stat => ["column tiles", "fewer rows"],
        Refusal::Bind => ["> 8 storage buffers", "fewer matrices"],
        Refusal::Smem => ["rows of 3000 > ", "narrower"],
        Refusal::Dispatch => ["20000", "along its rows"],
        Refusal::Grid => ["N positions", "nothing"],
        Refusal::Effect => ["cache write", "order"],
        Refusal::Mode => ["strict", "numeric mode"],
        Refusal::User => ["switched off", "on again"],
        Refusal::Profit => ["rows of 48 and read weights of 40 columns", "nothing"],
        Refusal::Chain => ["64 rows", "narrower"],
        Refusal::Halo => ["us on the", "fewer channels"],
        Refusal::Peak => ["the budget is 30720", "budget"],
        Refusal::Measured => ["8.5", "another device"],
        Refusal::Mismatch => ["operations", "fault"],
    }
}

/// Each code names its edge, its operands and what would allow the fusion.
#[test]
fn every_code_is_met_by_a_graph() {
    for code in Refusal::ALL {
        let (model, options) = case(code);
        let plan = compile(&model, options);
        let all = found(&plan);
        let codes: Vec<&str> = all.iter().map(|r| r.code.as_str()).collect();
        let hit = all.iter().find(|r| r.code == code.code()).unwrap_or_else(|| panic!("{code} is not in {codes:?}"));
        assert!(!hit.from.is_empty() && !hit.to.is_empty() && !hit.detail.is_empty(), "{hit:?}");
        let [operands, remedy] = told(code);
        assert!(hit.detail.contains(operands) && hit.remedy.contains(remedy), "{hit:?}");
    }
}

/// The edge from an operation to another whose names start so.
fn edge<'p>(plan: &'p Plan, from: &str, to: &str) -> &'p RefusedEdge {
    let all = found(plan);
    let hit = all.iter().find(|r| r.from.starts_with(from) && r.to.starts_with(to));
    hit.unwrap_or_else(|| panic!("{from} -> {to} is not in {all:?}"))
}

/// What a reduction is refused for are the rows that it reads, whatever it makes of them.
#[test]
fn rows_that_are_reduced_are_told_by_their_own_width() {
    let plan = compile(
        &model(64, |m| {
            let w = matrix(m, "w", 300, 48);
            Box::new(move |g| {
                let x = x(g, 48);
                let y = g.linear(x, w, None);
                let place = g.reduce(ReduceOp::ArgMax, y, &[1], false);
                g.output("place", place);
            })
        }),
        CompileOptions::default(),
    );
    assert!(edge(&plan, "matmul", "reduce_arg_max").detail.ends_with("rows of 300"));
    let normed = compile(&norm_and_product(100_000, 6600), CompileOptions::default());
    assert!(found(&normed).iter().all(|r| r.code != "L7-ROWTILE"));
}

/// A chain tells which of its conditions failed.
#[test]
fn chains_tell_what_reads_the_first_product() {
    let plan = compile(
        &model(64, |m| {
            let (a, b) = (matrix(m, "a", 40, 48), matrix(m, "b", 9, 40));
            Box::new(move |g| {
                let x = x(g, 48);
                let y = g.linear(x, a, None);
                let y = g.unary(UnaryOp::GeluErf, y);
                g.output("inner", y);
                let y = g.linear(y, b, None);
                g.output("y", y);
            })
        }),
        CompileOptions::default(),
    );
    let e = edge(&plan, "gelu_erf", "matmul");
    assert_eq!((e.code.as_str(), e.detail.as_str()), ("N-CHAIN", "the result of gelu_erf leaves the graph"));
    assert_eq!(e.remedy, "leave it out of the outputs");
    let bert = compile(&support::load("devset/bert"), CompileOptions::default());
    let e = edge(&bert, "gelu_erf", "matmul");
    assert_eq!(e.detail, "add reads what layer_norm in front makes as well");
}

/// Attention counts what looks like it: where its probabilities are kept, and where the mode forbids it.
#[test]
fn attention_that_was_not_raised_is_counted() {
    let kept = compile(&kept_probabilities(), CompileOptions::default());
    let a = kept.report.phases[0].attention;
    assert_eq!((a.blocks, a.fused), (1, 0));
    for (numeric, fused) in [(NumericMode::Strict, 0), (NumericMode::Default, 2)] {
        let plan = compile(&support::load("onnx/bert.onnx"), fusion(|f| f.numeric = numeric));
        let a = plan.report.phases[0].attention;
        assert_eq!((a.blocks, a.fused), (2, fused), "{numeric:?}");
        let classes = plan.report.phases[0].regions.iter().filter(|r| r.kind == "attention").map(|r| r.class.as_str());
        assert!(classes.eq(std::iter::repeat_n("BIT", fused as usize)));
    }
}

#[test]
fn codes_are_distinct_and_in_the_order_of_their_conditions() {
    let mut sorted = Refusal::ALL;
    sorted.sort();
    assert_eq!(sorted, Refusal::ALL);
    let mut names: Vec<&str> = Refusal::ALL.iter().map(|c| c.code()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Refusal::ALL.len());
}

/// A kernel that computes something else is taken apart, and the report says which.
#[test]
fn a_wrong_kernel_is_dropped_for_the_unfused_form() {
    let (model, options) = case(Refusal::Mismatch);
    let plan = compile(&model, options);
    assert_eq!(plan.programs[0].steps.len(), 2, "{:?}", plan.report.phases[0].regions);
    let v = &plan.report.validation;
    // For any number of rows, and for one.
    assert_eq!((v.on, v.kernels[1]), (true, 2));
    assert!(v.dropped[0].contains("matmul_tanh") && v.dropped[0].contains("its operations give"), "{:?}", v.dropped);
    let sound = compile(&model, CompileOptions { validate: Some(1 << 30), ..CompileOptions::default() });
    assert_eq!((sound.programs[0].steps.len(), sound.report.validation.kernels), (1, [2, 0, 0]));
}

/// No kernel binds more storage buffers than the limit says, whatever it would be fused from.
#[test]
fn kernels_keep_to_the_bindings_of_the_target() {
    let plan = Compiler::new(CompileOptions::default()).compile(&many_matrices()).unwrap();
    assert!(plan.kernels.len() > 1);
    assert!(plan.kernels.iter().all(|k| k.spec.bindings() <= 8), "{:?}", plan.kernels.len());
}

/// Fuel counts absorbed operations: each step more absorbs one more, and enough of it absorbs what no limit does.
#[test]
fn fusion_fuel_absorbs_one_operation_after_another() {
    let model = support::load("devset/bert");
    let launches =
        |fuel| compile(&model, CompileOptions { outline: false, ..fusion(|f| f.fuel = fuel) }).programs[0].steps.len();
    let (none, all) = (launches(Some(0)), launches(None));
    let mut last = none;
    for fuel in 1..=8 {
        let now = launches(Some(fuel));
        assert!(now == last || now == last - 1, "{fuel}: {last} to {now}");
        last = now;
    }
    assert!(last < none && launches(Some(10_000)) == all, "{none} to {last}, {all}");
}

/// What is switched off by origin stays apart, and nothing else changes.
#[test]
fn fusions_are_switched_off_by_origin() {
    let model = support::load("devset/bert");
    let plan = compile(&model, fusion(|f| f.no_fuse = vec!["layer.1.".into()]));
    let usual = compile(&model, CompileOptions::default());
    let of = |p: &Plan, layer: &str| {
        let regions = &p.report.phases[0].regions;
        regions.iter().filter(|r| r.origins.iter().any(|o| o.contains(layer))).count()
    };
    assert!(of(&plan, "layer.1.") > of(&usual, "layer.1."));
    assert_eq!(of(&plan, "layer.0."), of(&usual, "layer.0."));
}

fn arena(plan: &Plan, at: &[u64]) -> u64 {
    plan.programs.iter().map(|p| plan.arena_bytes(p, at).unwrap()).max().unwrap()
}

/// A budget is kept, and what could not be kept says how little would do.
#[test]
fn memory_keeps_within_a_budget_or_says_what_it_takes() {
    let model = summed_siblings();
    let within = |bytes: u64, size: &str| {
        let peak = PeakBudget { bytes, at: [(size.into(), 64)].into() };
        Compiler::new(CompileOptions { targets: Vec::new(), peak: Some(peak), ..CompileOptions::default() })
            .compile(&model)
    };
    let free = compile(&model, CompileOptions::default());
    let usual = arena(&free, &[64]);
    assert_eq!(within(usual, "N").unwrap(), free);
    let less = within(usual - 1, "N").unwrap();
    let taken = arena(&less, &[64]);
    assert!(taken < usual, "{taken} of {usual}");
    let refused = found(&less);
    let told = refused.iter().find(|r| r.code == "N-PEAK").unwrap();
    assert!(told.detail.contains(&usual.to_string()) && told.detail.contains(&taken.to_string()), "{}", told.detail);
    match within(100, "N") {
        Err(Error::PeakBudget { least, budget: 100, at, .. }) => {
            assert!(least <= taken && at == "N = 64", "{least} {at}")
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(within(usual, "M"), Err(Error::UnknownSizes { unknown, .. }) if unknown == ["M"]));
}
