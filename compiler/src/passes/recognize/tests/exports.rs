//! Whole models as torch's two exporters spell them (`fixtures/graphs`).

use crate::graph::{Graph, Op, Tables, WeightData, WeightId, WeightInfo, text};
use crate::ingest::builder::ModelBuilder;
use crate::passes::recognize::lint;
use crate::passes::{PassLog, PassManager};
use crate::reference::{Array, Env, evaluate};
use crate::{CompileOptions, Compiler};
use frit_kernels::dim::Sym;
use frit_kernels::dtype::{Scalar, Storage};
use frit_plan::Plan;
use std::collections::BTreeMap;
use std::path::PathBuf;

const SIZES: [(&str, i64); 3] = [("B", 2), ("S", 11), ("D", 7)];

fn load(name: &str) -> (Graph, Tables) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/graphs").join(name).with_extension("fir");
    let g = text::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut tables = Tables::default();
    for (size, _) in SIZES {
        tables.size(size, 1, None);
    }
    let weights: BTreeMap<WeightId, _> = g
        .values()
        .filter_map(|v| if let Op::Weight(id) = g.op(v) { Some((*id, g.ty(v).clone())) } else { None })
        .collect();
    for (id, ty) in weights {
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.as_const().unwrap() as usize).collect();
        let (n, row) = (shape.iter().product(), shape.last().copied().unwrap_or(1));
        let (storage, data) = match ty.scalar {
            Scalar::F32 => (Storage::F32, noise(u64::from(id.0), n)),
            Scalar::I32 => (Storage::I32, (0..n).map(|i| (i % row) as f32).collect()),
            Scalar::Bool => (Storage::Bool, (0..n).map(|i| f32::from(u8::from(i % row <= i / row))).collect()),
        };
        let data = WeightData::Inline(data);
        assert_eq!(tables.weight(WeightInfo { names: Vec::new(), storage, shape: ty.shape, data }), id);
    }
    (g, tables)
}

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u32 << 24) as f32 - 0.5) * 0.8
    };
    (0..n).map(|_| next()).collect()
}

/// Outputs on token ids, with the last keys of the second sequence hidden where there is a mask.
fn outputs(g: &Graph, tables: &Tables) -> Vec<(String, Array)> {
    let size = |s: &Sym| SIZES.iter().find(|(n, _)| *n == s.to_string()).map(|(_, v)| *v);
    let weights = |id: WeightId| {
        let info = tables.weight_info(id).ok_or("no such weight")?;
        let WeightData::Inline(data) = &info.data else { return Err("not inline".to_owned()) };
        let shape: Vec<usize> = info.shape.iter().map(|d| d.as_const().unwrap() as usize).collect();
        Array::new(shape, data.iter().map(|v| f64::from(*v)).collect()).map_err(|e| e.to_string())
    };
    let mut env = Env::new(&weights);
    env.sizes = SIZES.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    for (k, i) in g.inputs.iter().enumerate() {
        let ty = g.ty(i.value);
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.eval(&size).unwrap() as usize).collect();
        let n = shape.iter().product();
        let data = match (i.name.as_str(), ty.scalar) {
            ("attention_mask", _) => (0..n).map(|i| f64::from(u8::from(i < n - 4))).collect(),
            ("token_type_ids", _) => (0..n).map(|i| (i % 2) as f64).collect(),
            (_, Scalar::I32) => (0..n).map(|i| (i * 37 % 150) as f64).collect(),
            _ => noise(k as u64 + 99, n).into_iter().map(f64::from).collect(),
        };
        env.inputs.insert(i.name.clone(), Array::new(shape, data).unwrap());
    }
    evaluate(g, &env).unwrap()
}

fn raise(name: &str) -> (Graph, Tables, PassLog) {
    let (mut g, tables) = load(name);
    let before = outputs(&g, &tables);
    let log = PassManager::standard(&[]).run(&mut g, &tables).unwrap();
    let after = outputs(&g, &tables);
    for ((output, a), (_, b)) in before.iter().zip(&after) {
        let worst = a.data.iter().zip(&b.data).map(|(x, y)| (x - y).abs() / (1.0 + x.abs())).fold(0.0, f64::max);
        assert!(worst < 2e-6, "{name}, {output}: {worst}");
    }
    let once = text::print(&g);
    PassManager::standard(&[]).run(&mut g, &tables).unwrap();
    assert_eq!(text::print(&g), once, "{name}");
    assert_eq!(lint(&g, &tables), [], "{name}");
    assert!(log.unfinished.is_empty());
    (g, tables, log)
}

fn compile(g: Graph, tables: Tables) -> Plan {
    let mut b = ModelBuilder::new("export");
    b.graph("forward", |b| {
        let x = b.f32(0.0);
        b.output("x", x);
    });
    let mut model = b.finish().unwrap();
    model.tables = tables;
    model.graphs[0].graph = g;
    Compiler::new(CompileOptions { targets: Vec::new(), ..CompileOptions::default() }).compile(&model).unwrap()
}

/// Model, attentions with the attributes of each, then norms, rotary embeddings, activations.
const MODELS: [(&str, &[&str], [u64; 3]); 9] = [
    ("albert", &["scale=0.28867513, bias"; 2], [5, 0, 2]),
    ("bert", &["scale=0.28867513, bias"; 2], [5, 0, 2]),
    (
        "gemma2",
        &["scale=0.2236068, causal=0, window=8, softcap=20.0, mask", "scale=0.2236068, causal=0, softcap=20.0, mask"],
        [9, 4, 2],
    ),
    ("gpt2", &["scale=0.28867513, causal=0, mask"; 2], [5, 0, 2]),
    ("llama_gqa", &["scale=0.28867513, causal=0, mask"; 2], [5, 4, 2]),
    ("qwen2", &["scale=0.28867513, causal=0, mask"; 2], [5, 4, 2]),
    (
        "t5",
        &[
            "scale=1.0, causal=0, bias",
            "scale=1.0, bias",
            "scale=1.0, bias",
            "scale=1.0, bias",
            "scale=1.0, causal=0, bias",
            "scale=1.0, bias",
        ],
        [12, 0, 0],
    ),
    ("vit", &["scale=0.28867513"; 2], [5, 0, 2]),
    ("whisper_encoder", &["scale=0.28867513"; 2], [5, 0, 3]),
];

/// What T5's decoder becomes where the export builds its mask by scattering, which the fixture leaves an input.
fn without_scattered_mask(attrs: &str, name: &str) -> String {
    if name == "t5_torchscript" { attrs.replace("causal=0, ", "") } else { attrs.to_owned() }
}

#[test]
fn every_block_of_both_exporters_is_raised() {
    for (model, attentions, [norms, ropes, activations]) in MODELS {
        for exporter in ["dynamo", "torchscript"] {
            let name = format!("{model}_{exporter}");
            let (g, _, log) = raise(&name);
            let text = text::print(&g);
            let found: Vec<&str> = text
                .lines()
                .filter_map(|l| l.split_once(" = attention{").and_then(|(_, l)| l.split_once('}')).map(|(a, _)| a))
                .collect();
            let wanted: Vec<String> = attentions.iter().map(|a| without_scattered_mask(a, &name)).collect();
            assert_eq!(found, wanted, "{name}\n{text}");
            assert_eq!(log.count("layer-norm") + log.count("rms-norm"), norms, "{name}");
            assert_eq!(log.count("norm-gain"), norms, "{name}");
            assert_eq!(log.count("rope"), ropes, "{name}");
            let acts = ["gelu-erf", "gelu-tanh", "silu"].iter().map(|r| log.count(r)).sum::<u64>();
            assert_eq!(acts, activations, "{name}");
            for left in ["softmax", "sqrt", "erf", "matmul "] {
                assert!(!text.contains(&format!(" = {left}")), "{name}: {left}\n{text}");
            }
        }
    }
}

/// Both exporters' spellings become the same number of kernel launches; the embeddings aside, so do the kernels.
#[test]
fn both_exporters_reach_plans_of_one_length() {
    for (model, _, _) in MODELS {
        let [a, b] = ["dynamo", "torchscript"].map(|e| {
            let (g, tables) = load(&format!("{model}_{e}"));
            compile(g, tables).programs[0].steps.len()
        });
        assert_eq!(a, b, "{model}");
    }
}

#[test]
fn fuel_stops_recognition() {
    use crate::graph::patch::Fuel;
    let (g, tables) = load("llama_gqa_dynamo");
    let total = {
        let mut g = g.clone();
        PassManager::standard(&[]).run(&mut g, &tables).unwrap().total()
    };
    for fuel in [0, 1, total / 2, total - 1] {
        let mut g = g.clone();
        let mut passes = PassManager::standard(&[]);
        passes.options.fuel = Fuel::limited(fuel);
        assert_eq!(passes.run(&mut g, &tables).unwrap().total(), fuel);
        outputs(&g, &tables);
    }
}

#[test]
fn renamed_and_reordered_nodes_give_the_same_graph() {
    let (g, tables) = load("gemma2_torchscript");
    let mut shuffled = Graph::new();
    let order = g.order();
    let mut new = std::collections::HashMap::new();
    let mut waiting: Vec<_> = order.iter().rev().copied().collect();
    while !waiting.is_empty() {
        waiting.retain(|v| {
            let operands: Option<Vec<_>> = g.operands(*v).iter().map(|o| new.get(o).copied()).collect();
            let Some(operands) = operands else { return true };
            let n = g.node(*v);
            new.insert(*v, shuffled.push(n.op.clone(), &operands, n.ty.clone(), "other"));
            false
        });
    }
    for o in &g.outputs {
        shuffled.outputs.push(crate::graph::GraphOutput { value: new[&o.value], ..o.clone() });
    }
    for i in &g.inputs {
        shuffled.inputs.push(crate::graph::GraphInput { value: new[&i.value], ..i.clone() });
    }
    let [a, b] = [g, shuffled].map(|mut g| {
        PassManager::standard(&[]).run(&mut g, &tables).unwrap();
        for v in g.values().collect::<Vec<_>>() {
            if let Some(n) = g.node_mut(v) {
                n.origin.clear();
            }
        }
        text::print(&g)
    });
    assert_eq!(a, b);
}

#[test]
fn named_operations_are_left_alone() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    for dir in ["devset/bert", "devset/gpt2", "devset/llama_gqa", "devset/qwen2", "lexicon"] {
        let model = crate::ingest::load(fixtures.join(dir)).unwrap();
        for program in &model.graphs {
            let mut g = program.graph.clone();
            let log = PassManager::standard(&program.fixed).run(&mut g, &model.tables).unwrap();
            let raised: Vec<_> = log.passes.iter().filter(|p| p.name.starts_with("recognize")).collect();
            assert_eq!(raised.len(), 5);
            assert!(raised.iter().all(|p| p.rules.is_empty()), "{dir} {}: {raised:?}", program.name);
            assert_eq!(lint(&g, &model.tables), [], "{dir} {}", program.name);
        }
    }
}
