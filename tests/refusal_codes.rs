//! One graph for each code of a refusal: the list is closed, and every code in it is met.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/codes.rs"]
mod codes;
mod support;

use codes::*;
use frit_compiler::fusion::legality::NEVER;
use frit_compiler::fusion::{FusionOptions, Overruled, Refusal};
use frit_compiler::graph::NormKind;
use frit_compiler::{CompileOptions, Compiler, Error, Model, NumericMode, PeakBudget};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::{Expr, Literal, ReduceOp, UnaryOp};
use frit_kernels::target::{Capabilities, Tier};
use frit_plan::{ALIAS, AliasPoint, Plan, RefusedEdge};

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
        Refusal::Threads => (chain(), fusion(|f| f.limit_invocations = 32)),
        Refusal::Dispatch => (siblings(), fusion(|f| f.limit_binding_bytes = 20_000)),
        Refusal::Registers => (waiting_values(120), usual),
        Refusal::Grid => (attention_of_product(), usual),
        Refusal::Alias => unreachable!("refused in the report of memory, not of an edge"),
        Refusal::Effect => (cached_attention(), usual),
        Refusal::Mode => (norm_and_product(4, 48), fusion(|f| f.numeric = NumericMode::Strict)),
        Refusal::Shape => (norm_but_for_epsilon(), usual),
        Refusal::User => (siblings(), fusion(|f| f.merge_siblings = false)),
        Refusal::Profit => (product_of_softmax(), usual),
        Refusal::Workgroups => (deep_chain(), fusion(|f| f.tiers = vec![Tier::Gpu])),
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
        Refusal::Threads => ["64 > 32 invocations", "more invocations"],
        Refusal::Dispatch => ["20000", "along its rows"],
        Refusal::Registers => ["> 102 registers", "fewer values"],
        Refusal::Grid => ["N positions", "nothing"],
        Refusal::Alias => unreachable!("refused in the report of memory, not of an edge"),
        Refusal::Effect => ["cache write", "order"],
        Refusal::Mode => ["strict", "numeric mode"],
        Refusal::Shape => ["recognize-norm: ε is added outside of the root", "shapes and attributes"],
        Refusal::User => ["switched off", "on again"],
        Refusal::Profit => ["rows of 48 and read weights of 40 columns", "nothing"],
        Refusal::Workgroups => ["1 workgroups of 8 rows < 128", "more rows"],
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
    for code in Refusal::ALL.into_iter().filter(|c| *c != Refusal::Alias) {
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

/// Each condition for writing a result over an input that can fail, by a graph in which it does: the memory report names it.
#[test]
fn every_condition_of_writing_over_an_input_is_met() {
    let points = |model: &Model| -> Vec<(AliasPoint, String)> {
        let plan = compile(model, CompileOptions::default());
        let reuses = plan.programs.iter().flat_map(|p| plan.reuses(p));
        reuses.flat_map(|r| r.failed.into_iter().map(|p| (p, p.failed("x")))).collect()
    };
    let wide = || {
        model(64, |m| {
            let w = matrix(m, "w", 48, 48);
            Box::new(move |g| {
                let x = x(g, 48);
                let (p, q) = (g.softmax(x), g.linear(x, w, None));
                let sum = g.reduce(ReduceOp::Max, p, &[1], true);
                g.output("p", p);
                g.output("q", q);
                g.output("sum", sum);
            })
        })
    };
    let cases = [
        (AliasPoint::LastUse, two_readers(), "needed by a later step"),
        (AliasPoint::Kept, wide(), "leaves the program"),
        (AliasPoint::Contract, activated(), "after it writes"),
        (AliasPoint::Others, added_to_a_row(), "another result"),
        (AliasPoint::Extent, activated(), "another number of elements"),
    ];
    for (point, model, said) in cases {
        let found = points(&model);
        let hit = found.iter().find(|(p, _)| *p == point);
        assert!(hit.is_some_and(|(_, text)| text.contains(said)), "{point:?} is not in {found:?}");
    }
    assert_eq!(Refusal::Alias.code(), ALIAS);
}

/// What is taken breaks no condition, and is what the report counts.
#[test]
fn what_is_written_over_an_input_breaks_no_condition() {
    let mut taken = 0;
    for model in ["devset/bert", "devset/gpt2", "families/vit"] {
        let plan = compile(&support::load(model), CompileOptions::default());
        for (program, phase) in plan.programs.iter().zip(&plan.report.phases) {
            let own: Vec<_> = plan.reuses(program).into_iter().filter(|r| r.taken).collect();
            assert!(own.iter().all(|r| r.failed.is_empty()), "{model} {}: {own:?}", program.name);
            assert_eq!(own.len(), phase.in_place.len(), "{model} {}", program.name);
            taken += own.len();
        }
    }
    assert!(taken > 0);
}

/// A target whose workgroups are smaller than those of the templates is refused by name.
#[test]
fn a_target_of_fewer_invocations_is_an_error_with_its_code() {
    let target = Capabilities { limit_invocations: 32, ..Capabilities::webgpu(Tier::Gpu) };
    let options = CompileOptions { targets: vec![target], ..CompileOptions::default() };
    match Compiler::new(options).compile(&activated()) {
        Err(e @ Error::Invocations { code: Refusal::Threads, limit: 32, .. }) => {
            assert!(e.to_string().starts_with("L11-THREADS"), "{e}")
        }
        other => panic!("{other:?}"),
    }
}

/// A chain of convolutions whose workgroups are larger than the limit stays two kernels, and says so.
#[test]
fn a_chain_of_convolutions_needs_its_invocations() {
    let chained = |invocations: u32| {
        let plan =
            compile(&convolutions(), fusion(|f| (f.force_conv_chains, f.limit_invocations) = (true, invocations)));
        (plan.programs[0].steps.len(), plan)
    };
    let (one, _) = chained(256);
    let (two, plan) = chained(32);
    assert_eq!(two, one + 1);
    let refused = found(&plan);
    let hit = refused.iter().find(|r| r.code == "L11-THREADS");
    assert!(hit.is_some_and(|r| r.detail.contains("> 32 invocations")), "{refused:?}");
}

/// What cannot fail has no code among those that can.
#[test]
fn conditions_that_cannot_fail_are_told_apart() {
    for (code, why) in NEVER {
        assert!(!why.is_empty() && Refusal::ALL.iter().all(|c| c.code() != code), "{code}");
    }
}

/// Pointwise values beside each other are one launch, unless they are switched off, bind too much, or are large.
#[test]
fn values_beside_each_other_are_one_launch() {
    let launches = |model: &Model, options: CompileOptions| {
        let plan = compile(model, options);
        (plan.programs[0].steps.len(), plan)
    };
    let (together, plan) = launches(&beside_each_other(), CompileOptions::default());
    assert_eq!(together, 1, "{:?}", plan.report.phases[0].regions);
    assert!(found(&plan).is_empty(), "{:?}", found(&plan));
    let (apart, plan) = launches(&beside_each_other(), fusion(|f| f.merge_maps = false));
    assert_eq!(apart, 3, "what both are made of is a launch as well");
    let refused = found(&plan);
    let said = refused.iter().find(|r| r.code == "L20-USER").unwrap();
    assert_eq!(said.detail, "merging of pointwise values beside each other is switched off");
    // Of equal rows with one input however many: the input is read once. Of other widths only while a launch takes longer.
    // The sums of rows are a launch in front.
    assert_eq!(launches(&functions_of_rows(100_000, 480, 480), CompileOptions::default()).0, 2);
    assert_eq!(launches(&functions_of_rows(100, 48, 20), CompileOptions::default()).0, 2);
    let (large, plan) = launches(&functions_of_rows(100_000, 480, 400), CompileOptions::default());
    assert_eq!(large, 3);
    let refused = found(&plan);
    assert!(refused.iter().any(|r| r.code == "N-PROFIT" && r.detail.contains("longer than a launch")), "{refused:?}");
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
