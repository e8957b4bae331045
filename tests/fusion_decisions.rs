//! What is fused where: asserted launches, regions and refusals of whole models, and of small graphs that isolate one
//! decision each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::{BackendChoice, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::graph::NormKind;
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::model::MemoryTensors;
use frit_compiler::{Model, NumericMode};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_kernels::target::Tier;
use frit_plan::{PhaseReport, Plan, TensorData};
use std::sync::Arc;
use support::Random;

fn plan(model: &Model) -> Arc<Plan> {
    support::compile_with(model, FusionOptions::default(), Vec::new()).plan
}

fn phase<'p>(plan: &'p Plan, name: &str) -> &'p PhaseReport {
    plan.report.phases.iter().find(|p| p.program == name).unwrap_or_else(|| panic!("no phase {name}"))
}

/// A layer is at most five launches in decode, and a token at most 5L + 3. With any number of rows, norms are launches
/// of their own.
#[test]
fn decode_takes_five_launches_a_layer() {
    for model in ["lexicon", "lexicon/lexicon-q8_0.gguf", "devset/llama_gqa", "devset/qwen2", "devset/gpt2"] {
        let plan = plan(&support::load(model));
        let layers = plan.model.layers;
        for (name, limit, rest) in [("decode", 5, 3), ("decode_wide", 7, 4)] {
            let p = phase(&plan, name);
            let each = p.dispatches_per_layer;
            assert!((1..=limit).contains(&each), "{model} {name}: {each} a layer");
            assert!(p.dispatches <= limit * layers + rest, "{model} {name}: {} launches", p.dispatches);
            assert_eq!(p.dispatches as usize, plan.program(name).unwrap().steps.len(), "{model} {name}");
            assert_eq!((p.attention.fused, p.attention.blocks), (layers, layers), "{model} {name}");
        }
    }
}

/// The launches that the report counts are those of the plan, for every program.
#[test]
fn the_report_counts_the_launches_of_the_plan() {
    for model in ["lexicon", "devset/bert", "devset/gpt2", "devset/qwen2"] {
        let plan = plan(&support::load(model));
        assert_eq!(plan.report.phases.len(), plan.programs.len());
        for (phase, program) in plan.report.phases.iter().zip(&plan.programs) {
            assert_eq!(phase.program, program.name);
            assert_eq!(phase.dispatches as usize, program.steps.len(), "{model} {}", program.name);
            assert_eq!(phase.regions.len(), program.steps.len(), "{model} {}", program.name);
            assert!(phase.unfused_dispatches > 2 * phase.dispatches, "{model} {}", program.name);
        }
    }
}

#[test]
fn an_encoder_layer_is_at_most_six_launches() {
    let plan = plan(&support::load("devset/bert"));
    let p = phase(&plan, "forward");
    assert!((1..=6).contains(&p.dispatches_per_layer), "{} a layer", p.dispatches_per_layer);
    assert_eq!((p.attention.fused, p.attention.blocks), (plan.model.layers, plan.model.layers));
}

/// Without fusion every operation but views and index arithmetic is a launch of its own; an output that is a view of
/// another value is copied.
#[test]
fn switching_fusion_off_gives_the_unfused_count() {
    for model in ["devset/gpt2", "devset/bert"] {
        let model = support::load(model);
        let fused = plan(&model);
        let unfused = support::compile_with(&model, FusionOptions::unfused(), Vec::new()).plan;
        for u in &unfused.report.phases {
            let f = phase(&fused, &u.program);
            let copies = u.regions.iter().filter(|r| r.kind == "copy").count() as u32;
            assert!(copies <= 1, "{}: {copies} copies", u.program);
            assert_eq!(u.dispatches, u.unfused_dispatches + copies, "{}", u.program);
            assert_eq!(u.unfused_dispatches, f.unfused_dispatches, "{}", u.program);
            assert!(u.dispatches > 2 * f.dispatches, "{}: {} and {}", u.program, u.dispatches, f.dispatches);
        }
    }
}

type Build = Box<dyn FnOnce(&mut GraphBuilder<'_>)>;

/// A graph with the size `N` at most `rows`.
fn small_model(rows: u64, build: impl FnOnce(&mut ModelBuilder) -> Build) -> Model {
    let mut m = ModelBuilder::new("small");
    let inner = build(&mut m);
    m.graph_with("forward", &[], &[("N", rows)], |g| inner(g));
    m.finish().unwrap()
}

fn small(rows: u64, build: impl FnOnce(&mut ModelBuilder) -> Build) -> Plan {
    Arc::unwrap_or_clone(plan(&small_model(rows, build)))
}

fn kinds(plan: &Plan) -> Vec<(&str, Vec<&str>)> {
    let regions = &plan.report.phases[0].regions;
    regions.iter().map(|r| (r.kind.as_str(), r.ops.iter().map(String::as_str).collect())).collect()
}

fn codes(plan: &Plan) -> Vec<&str> {
    plan.report.phases[0].refused.iter().map(|r| r.code.as_str()).collect()
}

fn norm_and_product(rows: u64, columns: u64) -> Plan {
    Arc::unwrap_or_clone(plan(&norm_and_product_model(rows, columns)))
}

fn norm_and_product_model(rows: u64, columns: u64) -> Model {
    small_model(rows, |m| {
        let mut r = Random::new(1);
        let gain = m.constant("gain", &[48], &r.floats(48, 1.0));
        let w = m.constant("w", &[columns, 48], &r.floats(columns * 48, 1.0));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
            let gain = g.weight(gain);
            let n = g.norm(NormKind::Rms, x, 1e-5, Some(gain), None);
            let y = g.linear(n, w, None);
            g.output("y", y);
        })
    })
}

/// A norm is computed inside the product of few rows, where a launch costs more than the statistics, and of any number
/// where few column tiles repeat it.
#[test]
fn a_norm_joins_the_product_of_few_rows_or_few_columns() {
    for (rows, columns) in [(4, 9000), (5, 6600), (100_000, 100)] {
        assert_eq!(kinds(&norm_and_product(rows, columns)), [("matmul", vec!["rms_norm", "matmul"])]);
    }
}

#[test]
fn a_norm_in_front_of_many_rows_and_columns_is_refused_with_its_numbers() {
    let plan = norm_and_product(100_000, 6600);
    assert_eq!(kinds(&plan), [("row", vec!["rms_norm"]), ("matmul", vec!["matmul"])]);
    let refused = &plan.report.phases[0].refused;
    assert_eq!(codes(&plan), ["L8-RECOMPUTE"]);
    assert!(refused[0].detail.contains("104 column tiles") && !refused[0].remedy.is_empty(), "{:?}", refused[0]);
}

/// What makes the rows that a norm reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Maker {
    /// A product, added to its input.
    Product,
    /// A table of rows, by number.
    Table,
    /// Another norm, added to its input.
    Row,
}

/// Rows of `width` elements far from 0, their norm, and a product of `columns` columns behind it.
fn made_rows(maker: Maker, kind: NormKind, width: u64, columns: u64) -> Model {
    made_rows_before(maker, kind, width, columns, Storage::F32)
}

/// The same with a weight in f16 behind the norm, wide enough for commuting to pay.
fn halves(maker: Maker) -> Model {
    made_rows_before(maker, NormKind::Rms, 584, 3001, Storage::F16)
}

fn made_rows_before(maker: Maker, kind: NormKind, width: u64, columns: u64, storage: Storage) -> Model {
    small_model(100_000, |m| {
        let mut r = Random::new(9);
        let gain = m.constant("gain", &[width], &r.floats(width, 1.0));
        let bias = m.constant("bias", &[width], &r.floats(width, 1.0));
        let far = m.constant("far", &[width], &vec![3.0; width as usize]);
        let w = m.constant("w", &[width, 48], &r.floats(width * 48, 0.3));
        let table = m.constant("table", &[31, width], &r.floats(31 * width, 1.0));
        let v = match storage {
            Storage::F16 => {
                let mut tensors = MemoryTensors::default();
                let bytes = vec![0x3cu8; (2 * columns * width) as usize];
                tensors.0.insert("v".into(), TensorData { storage, shape: vec![columns, width], bytes });
                m.source(Arc::new(tensors));
                m.stored("v", storage, &[columns, width])
            }
            _ => m.constant("v", &[columns, width], &r.floats(columns * width, 0.3)),
        };
        Box::new(move |g| {
            let wide = |g: &mut GraphBuilder<'_>| g.input("x", Scalar::F32, &["N".into(), width.into()]);
            let far = g.weight(far);
            let rows = match maker {
                Maker::Product => {
                    let x = wide(g);
                    let left = g.input("left", Scalar::F32, &["N".into(), 48.into()]);
                    let y = g.linear(left, w, None);
                    g.add(x, y)
                }
                Maker::Table => {
                    let ids = g.input("ids", Scalar::I32, &["N".into()]);
                    let table = g.weight(table);
                    g.gather(table, ids)
                }
                Maker::Row => {
                    let x = wide(g);
                    let n = g.norm(NormKind::Rms, x, 1e-5, None, None);
                    g.add(x, n)
                }
            };
            let rows = g.add(rows, far);
            let bias = (kind == NormKind::Layer).then(|| g.weight(bias));
            let gain = g.weight(gain);
            let n = g.norm(kind, rows, 1e-5, Some(gain), bias);
            let y = g.linear(n, v, None);
            g.output("rows", rows);
            g.output("y", y);
        })
    })
}

/// Where a norm has too many rows and column tiles to be computed in each of them, the kernel that makes the rows writes
/// their statistics; the outputs are those of the unfused build, whatever the tails of the tiles.
#[test]
fn statistics_of_rows_come_from_the_kernel_that_makes_them() {
    let regions = |p: &Plan| {
        let r = &p.report.phases[0].regions;
        r.iter().map(|r| (r.kind.clone(), r.norm.clone(), r.class.clone())).collect::<Vec<_>>()
    };
    for (maker, kind, width) in [
        (Maker::Product, NormKind::Rms, 72),
        (Maker::Product, NormKind::Layer, 100),
        (Maker::Table, NormKind::Layer, 72),
        (Maker::Row, NormKind::Rms, 72),
    ] {
        let what = format!("{maker:?} {kind:?}");
        let model = made_rows(maker, kind, width, 1200);
        let loaded = support::compile(&model);
        let made = match maker {
            Maker::Product => "matmul",
            Maker::Table => "map",
            Maker::Row => "row",
        };
        let want =
            [(made, "", "BIT"), ("matmul", "forwarded", "REASSOC")].map(|(a, b, c)| (a.into(), b.into(), c.into()));
        assert_eq!(regions(&loaded.plan), want, "{what}");
        let off = |id: &str| {
            let mut options = FusionOptions::default();
            assert!(options.switch_off(id));
            support::compile_with(&model, options, Vec::new()).plan
        };
        assert!(codes(&off("stat-forward")).contains(&"L8-RECOMPUTE"), "{what}");
        let strict = FusionOptions { numeric: NumericMode::Strict, ..FusionOptions::default() };
        let strict = support::compile_with(&model, strict, Vec::new()).plan;
        assert!(codes(&strict).contains(&"L18-MODE"), "{what}: {:?}", codes(&strict));
        assert!(regions(&strict).iter().all(|r| r.1.is_empty()), "{what}");

        let unfused = support::compile_with(&model, FusionOptions::unfused(), Vec::new());
        for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
            for rows in [9u64, 70] {
                let mut r = Random::new(rows);
                let inputs: Vec<(&str, Tensor)> = match maker {
                    Maker::Product => vec![("x", r.tensor(&[rows, width])), ("left", r.tensor(&[rows, 48]))],
                    Maker::Table => vec![("ids", r.ints(&[rows], 31))],
                    Maker::Row => vec![("x", r.tensor(&[rows, width]))],
                };
                let got = support::open(&loaded, backend).run(&inputs).unwrap();
                let want = support::open(&unfused, BackendChoice::Cpu).run(&inputs).unwrap();
                for ((name, a), (_, b)) in got.iter().zip(&want) {
                    let off = support::distance(name, a, &support::array(b));
                    assert!(off < 2e-5, "{what} on {backend:?}, {rows} rows, {name}: {off:e}");
                }
            }
        }
    }
}

/// Statistics that are forwarded still have each element normalised in every tile, and those that scale sums each sum
/// scaled: beyond some number of columns a kernel of its own is faster.
#[test]
fn forwarded_statistics_have_a_price() {
    for (kind, code) in [(NormKind::Layer, "L8-STAT"), (NormKind::Rms, "L8-COMMUTE")] {
        let plan = plan(&made_rows(Maker::Product, kind, 72, 6600));
        assert!(codes(&plan).contains(&code), "{:?}", codes(&plan));
        assert_eq!(plan.programs[0].steps.len(), 3);
    }
}

/// Why norms stay where they are that commuting would not be too dear for, or could not be said to be right for.
#[test]
fn norms_are_commuted_where_nothing_speaks_against_it() {
    let why = |model: &Model, options: FusionOptions| {
        let plan = support::compile_with(model, options, Vec::new()).plan;
        let refused = plan.report.phases[0].refused.iter().find(|r| r.code.starts_with("L8-") || r.code == "L18-MODE");
        refused.map(|r| (r.code.clone(), r.detail.clone()))
    };
    let wide = |kind| made_rows(Maker::Product, kind, 584, 3001);
    let told = |model: &Model, options: FusionOptions, code: &str, part: &str| {
        let found = why(model, options).unwrap_or_else(|| panic!("nothing is refused, {code} was expected"));
        assert!(found.0 == code && found.1.contains(part), "{found:?}");
    };
    assert_eq!(why(&wide(NormKind::Rms), FusionOptions::default()), None);
    told(
        &wide(NormKind::Layer),
        FusionOptions::default(),
        "L8-STAT",
        "no bound of the mean over the deviation is known",
    );
    let off = |id: &str| {
        let mut options = FusionOptions::default();
        assert!(options.switch_off(id));
        options
    };
    told(&wide(NormKind::Rms), off("commute"), "L8-STAT", "commuting is switched off");
    told(&wide(NormKind::Rms), off("stat-forward"), "L8-RECOMPUTE", "forwarding of statistics is switched off");
    let strict = FusionOptions { numeric: NumericMode::Strict, ..FusionOptions::default() };
    told(&wide(NormKind::Rms), strict, "L18-MODE", "REASSOC");
    let table = made_rows(Maker::Table, NormKind::Rms, 584, 6600);
    told(&table, FusionOptions::default(), "L8-STAT", "no product makes its rows");
    told(&halves(Maker::Product), FusionOptions::default(), "L8-STAT", "whose range need not hold them");
}

/// A commuted norm gives what its operations give, on rows far off 0 and of very different lengths, whatever the tails; the
/// program is one launch shorter, and its bytes are those of the ledger.
#[test]
fn a_norm_that_is_commuted_costs_no_launch_and_changes_nothing() {
    let model = made_rows(Maker::Product, NormKind::Rms, 584, 3001);
    let loaded = support::compile(&model);
    let report = &loaded.plan.report.phases[0];
    let forms: Vec<&str> = report.regions.iter().map(|r| r.norm.as_str()).collect();
    assert_eq!(forms, ["", "commuted"]);
    assert_eq!(report.regions[1].class, "REASSOC");
    assert!(report.regions.iter().all(|r| !r.saved_bytes.to_string().starts_with('-')));
    let unfused = support::compile_with(&model, FusionOptions::unfused(), Vec::new());
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        for rows in [9u64, 70] {
            let mut r = Random::new(rows);
            let mut x = r.floats(rows * 584, 1.0);
            for (i, row) in x.chunks_mut(584).enumerate() {
                row.iter_mut().for_each(|v| *v *= [1.0, 300.0, 1e-3][i % 3]);
            }
            let x = Tensor::f32(&[rows, 584], x).unwrap();
            let inputs = [("x", x), ("left", r.tensor(&[rows, 48]))];
            let got = support::open(&loaded, backend).run(&inputs).unwrap();
            let want = support::open(&unfused, BackendChoice::Cpu).run(&inputs).unwrap();
            for ((name, a), (_, b)) in got.iter().zip(&want) {
                let off = support::distance(name, a, &support::array(b));
                assert!(off < 2e-5, "{backend:?}, {rows} rows, {name}: {off:e}");
            }
        }
    }
}

/// In no window of the models are there cheaper regions than the greedy ones; searching is repeatable. The windows that are
/// not searched by default are those with views between their operations.
#[test]
fn no_regions_are_cheaper_than_the_greedy_ones() {
    for model in ["lexicon", "devset/llama_gqa", "devset/qwen2", "devset/gpt2", "devset/bert"] {
        let options = || FusionOptions { exact_through_views: true, ..FusionOptions::default() };
        let plan = support::compile_with(&support::load(model), options(), Vec::new()).plan;
        for p in &plan.report.phases {
            let e = &p.exact;
            assert!(e.unsearched == 0 && e.windows > 0 && e.greedy_ns > 0, "{model} {}: {e:?}", p.program);
            assert_eq!((e.improved, e.taken), (0, false), "{model} {}: {e:?}", p.program);
            assert!(e.exact_ns <= e.greedy_ns, "{model} {}: {e:?}", p.program);
        }
        let usual = self::plan(&support::load(model));
        assert_eq!(usual.structure(), plan.structure(), "{model}");
        assert!(usual.report.phases.iter().all(|p| p.exact.unsearched < p.exact.windows), "{model}");
        let again = support::compile_with(&support::load(model), options(), Vec::new()).plan;
        assert!(plan.report.phases.iter().zip(&again.report.phases).all(|(a, b)| a.exact == b.exact), "{model}");
    }
}

/// What a search found for one window keeps nothing apart that lies in another: squares join the sum behind them.
#[test]
fn windows_that_were_searched_still_join_others() {
    let strict = FusionOptions { numeric: NumericMode::Strict, ..FusionOptions::default() };
    let plan = support::compile_with(&support::load("onnx/llama_gqa_past.onnx"), strict, Vec::new()).plan;
    let p = phase(&plan, "decode");
    assert!(p.exact.taken && p.exact.improved > 0, "{:?}", p.exact);
    assert!(p.regions.iter().all(|r| r.ops != ["pow"]), "{:?}", p.regions);
}

/// With any number of rows a layer takes five launches where its norms are computed with forwarded statistics.
#[test]
fn prefill_takes_five_launches_a_layer() {
    let plan = plan(&support::load("lexicon"));
    let p = phase(&plan, "prefill");
    assert_eq!(p.dispatches_per_layer, 5);
    assert!(p.dispatches <= 5 * plan.model.layers + 4, "{}", p.dispatches);
    assert!(p.regions.iter().any(|r| r.norm == "forwarded"));
}

/// A program for any number of rows has one beside it for few rows, where these are worth another division; a run takes
/// the one that its rows fit, and the numbers are the same.
#[test]
fn few_rows_have_a_program_of_their_own_where_it_differs() {
    let names = |plan: &Plan| plan.programs.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let plan = norm_and_product(100_000, 6600);
    assert_eq!(names(&plan), ["forward", "forward@8", "forward@1"]);
    let few: Vec<&str> = plan.report.phases[1].regions.iter().map(|r| r.kind.as_str()).collect();
    assert_eq!(few, ["matmul"]);
    assert_eq!([1, 2, 8, 9, 600].map(|rows| plan.fitting(0, &[rows], Tier::Gpu)), [2, 1, 1, 0, 0]);
    // One row is a product of a matrix and a vector, however it is divided.
    assert_eq!(names(&norm_and_product(100_000, 100)), ["forward", "forward@1"]);
    assert_eq!(names(&norm_and_product(8, 6600)), ["forward", "forward@1"]);
    let by_rows = |program: usize| {
        let last = plan.programs[program].steps.last().unwrap();
        frit_kernels::templates::uses_gemv(&plan.kernels[last.kernel as usize].spec)
    };
    assert_eq!([0, 1, 2].map(by_rows), [false, false, true]);

    let model = norm_and_product_model(100_000, 6600);
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        let mut session = support::open(&support::compile(&model), backend);
        let x = Random::new(8).floats(9 * 48, 1.0);
        let mut run = |rows: usize| {
            let before = session.counters().dispatches;
            let input = Tensor::f32(&[rows as u64, 48], x[..rows * 48].to_vec()).unwrap();
            let y = session.run(&[("x", input)]).unwrap().remove(0).1;
            (session.counters().dispatches - before, y.as_f32().unwrap().to_vec())
        };
        let ((two, nine), (one, eight)) = (run(9), run(8));
        assert_eq!((two, one), (2, 1));
        let off = nine.iter().zip(&eight).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(eight.len() == 8 * 6600 && off < 1e-5, "{off}");
        let (launches, single) = run(1);
        let off = single.iter().zip(&eight).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(launches == 1 && single.len() == 6600 && off < 1e-5, "{launches}, {off}");
    }
}

#[test]
fn gate_and_up_meet_in_one_kernel() {
    let plan = small(4, |m| {
        let mut r = Random::new(2);
        let gate = m.constant("gate", &[20, 48], &r.floats(960, 1.0));
        let up = m.constant("up", &[20, 48], &r.floats(960, 1.0));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
            let (a, b) = (g.linear(x, gate, None), g.linear(x, up, None));
            let a = g.unary(UnaryOp::Silu, a);
            let y = g.mul(a, b);
            g.output("y", y);
        })
    });
    assert_eq!(kinds(&plan), [("matmul", vec!["matmul", "matmul", "silu", "mul"])]);
}

#[test]
fn a_value_that_the_host_reads_is_still_stored() {
    let plan = small(64, |m| {
        let mut r = Random::new(3);
        let w = m.constant("w", &[48, 48], &r.floats(48 * 48, 1.0));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
            let inner = g.linear(x, w, None);
            let y = g.add(x, inner);
            g.output("inner", inner);
            g.output("y", y);
        })
    });
    assert_eq!(plan.programs[0].outputs.len(), 2);
    assert_eq!(kinds(&plan), [("matmul", vec!["matmul", "add"])]);
    let stores = &plan.kernels[0].spec.stores;
    assert_eq!(stores.len(), 2, "{stores:?}");
}

#[test]
fn two_reductions_in_a_row_are_two_launches() {
    let plan = small(64, |m| {
        let mut r = Random::new(4);
        let (a, b) =
            (m.constant("a", &[40, 48], &r.floats(40 * 48, 1.0)), m.constant("b", &[9, 40], &r.floats(360, 1.0)));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
            let y = g.linear(x, a, None);
            let y = g.unary(UnaryOp::GeluErf, y);
            let y = g.linear(y, b, None);
            g.output("y", y);
        })
    });
    assert_eq!(kinds(&plan), [("matmul", vec!["matmul", "gelu_erf"]), ("matmul", vec!["matmul"])]);
}

/// Compiling twice, and compiling with the graph's unused nodes in it, gives the same bytes.
/// Gate and up read one left side with a third matmul (a parallel block): the two that meet share a kernel, the third
/// has its own.
#[test]
fn gate_and_up_do_not_merge_with_a_third_projection() {
    let plan = small(4, |m| {
        let mut r = Random::new(6);
        let [gate, up, q] = ["gate", "up", "q"].map(|n| m.constant(n, &[20, 48], &r.floats(960, 1.0)));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
            let (q, a, b) = (g.linear(x, q, None), g.linear(x, gate, None), g.linear(x, up, None));
            let a = g.unary(UnaryOp::Silu, a);
            let y = g.mul(a, b);
            g.output("q", q);
            g.output("y", y);
        })
    });
    assert_eq!(kinds(&plan), [("matmul", vec!["matmul"]), ("matmul", vec!["matmul", "matmul", "silu", "mul"])]);
}

/// Two ranges of columns of one product are different elements of its tile: what combines them is another launch.
#[test]
fn ranges_of_one_product_do_not_meet_in_its_epilogue() {
    let plan = small(64, |m| {
        let w = m.constant("gate_up", &[40, 48], &Random::new(7).floats(40 * 48, 1.0));
        Box::new(move |g| {
            let x = g.input("x", Scalar::F32, &["N".into(), 48.into()]);
            let all = g.linear(x, w, None);
            let (a, b) = (g.slice(all, 1, 0.into(), 20.into()), g.slice(all, 1, 20.into(), 20.into()));
            let a = g.unary(UnaryOp::Silu, a);
            let y = g.mul(a, b);
            g.output("y", y);
        })
    });
    assert!(codes(&plan).contains(&"L3-MAP"), "{:?}", codes(&plan));
    assert_eq!(plan.programs[0].steps.len(), 2, "{:?}", kinds(&plan));
}

/// One row a sequence times a weight of `columns` rows, cut off so that many elements are the largest, and the place of the first
/// of them.
fn places(columns: u64) -> Model {
    let mut m = ModelBuilder::new("places");
    let w = m.constant("w", &[columns, 48], &Random::new(3).floats(columns * 48, 0.3));
    m.graph_with("forward", &[], &[], |g| {
        let x = g.input("x", Scalar::F32, &["B".into(), 1.into(), 48.into()]);
        let y = g.linear(x, w, None);
        let most = g.f32(0.9);
        let y = g.binary(BinaryOp::Min, y, most);
        let flat = g.reshape(y, &["B".into(), columns.into()]);
        let place = g.reduce(ReduceOp::ArgMax, flat, &[1], false);
        g.output("y", y);
        g.output("place", place);
    });
    m.finish().unwrap()
}

/// A product of few rows writes the largest of each tile of eight columns, and the search for the largest reads those: an eighth,
/// with their places a quarter, of the row. What it finds is the first of equal ones on every backend.
#[test]
fn the_largest_of_a_row_is_found_among_tiles() {
    let reads = |plan: &Plan| {
        let kernel = plan.kernels.iter().find(|k| k.name.starts_with("reduce_arg_max")).unwrap();
        kernel.spec.domain[1].as_const().unwrap()
    };
    let model = places(5003);
    let loaded = support::compile(&model);
    assert_eq!(reads(&loaded.plan), 626);
    let region = loaded.plan.report.phases[0].regions.last().unwrap();
    // The row and the place, less a value of each tile, a place of one, the result, and what the product writes for it.
    let saved = 4 * 5003 + 4 - (4 * 626 + 4 + 4) - 8 * 626;
    assert_eq!(region.saved_bytes.eval(&|_| Some(1)).unwrap(), saved, "{}", region.saved_bytes);
    assert_eq!(reads(&plan(&places(1000))), 1000, "short rows are read as they are");

    let mut off = FusionOptions::default();
    assert!(off.switch_off("argmax-tiles"));
    let off = support::compile_with(&model, off, Vec::new());
    assert_eq!(reads(&off.plan), 5003);
    let refused = &off.plan.report.phases[0].refused;
    let told = refused.iter().find(|r| r.to.contains("reduce_arg_max") && r.code == "L20-USER").unwrap();
    assert!(told.detail.contains("tiles is switched off"), "{told:?}");

    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        for rows in [1u64, 3] {
            let input = [("x", Random::new(rows).tensor(&[rows, 1, 48]))];
            let found = support::open(&loaded, backend).run(&input).unwrap();
            let get = |name: &str| found.iter().find(|(n, _)| n == name).map(|(_, t)| t).unwrap();
            let (y, place) = (get("y").as_f32().unwrap().to_vec(), get("place").as_i32().unwrap().to_vec());
            for (row, place) in y.chunks(5003).zip(place) {
                let largest = row.iter().copied().fold(f32::MIN, f32::max);
                let first = row.iter().position(|v| *v == largest).unwrap();
                assert!(row.iter().filter(|v| **v == largest).count() > 1, "no equal ones");
                assert_eq!(place as usize, first, "{backend:?}, {rows} rows");
            }
        }
    }
}
