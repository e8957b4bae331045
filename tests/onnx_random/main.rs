//! Random ONNX files: operators, attributes and shape arithmetic drawn one call after the other, each value computed in
//! float64 by an evaluator of the format's operators that shares nothing with the loader. A file is compiled once and run
//! for two bindings of its free extents, on the CPU and some on wgpu.
//!
//! ```text
//! cargo test --workspace --test onnx_random
//! FRIT_ONNX_GRAPHS=20000 FRIT_ONNX_FROM=0 cargo test --workspace --test onnx_random -- --nocapture processor
//! FRIT_ONNX_SAVE=FOLDER cargo test …      # also writes each file with its inputs and what is expected
//! ```
//! `fixtures/tools/check_random_onnx.py FOLDER` runs what was saved through onnxruntime.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod array;
mod attributes;
mod choose;
mod elementwise;
mod graph;
mod movement;
#[path = "../support/onnx_file.rs"]
mod onnx_file;
mod sums;
#[path = "../support/mod.rs"]
mod support;

use array::Nd;
use frit::backend::Backend;
use frit::{BackendChoice, Session, Tensor, model_source, npz};
use graph::{Graph, Origin};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest error of any output, relative to its largest magnitude or 1: values that rounding carries further than a
/// fifth of it are not drawn.
const TOLERANCE: f64 = 1e-4;
/// Calls a graph.
const CALLS: usize = 14;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{name}={v}: {e}")))
}

fn tensor(v: &Nd) -> Tensor {
    let shape: Vec<u64> = v.shape.iter().map(|n| *n as u64).collect();
    if v.is_float() {
        Tensor::f32(&shape, v.data.iter().map(|v| *v as f32).collect()).unwrap()
    } else {
        Tensor::i32(&shape, v.data.iter().map(|v| *v as i32).collect()).unwrap()
    }
}

/// What a graph's inputs, or the values numbered so, are for a binding.
fn given(g: &Graph, binding: usize, which: &[usize]) -> Vec<(String, Tensor)> {
    which.iter().map(|i| (g.values[*i].name.clone(), tensor(&g.values[*i].at[binding].exact))).collect()
}
fn inputs(g: &Graph) -> Vec<usize> {
    (0..g.values.len()).filter(|i| matches!(g.values[*i].origin, Origin::Input(_))).collect()
}

/// Why an output is not what is expected.
fn difference(got: Option<&Tensor>, want: &Nd) -> Option<String> {
    let Some(got) = got else { return Some("is missing".into()) };
    let got = support::array(got);
    if got.shape != want.shape {
        return Some(format!("is {:?}, {:?} expected", got.shape, want.shape));
    }
    let largest = want.data.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let bound = if want.is_float() { TOLERANCE * largest } else { 0.0 };
    let at = got.data.iter().zip(&want.data).position(|(g, w)| (g - w).abs() > bound || !g.is_finite())?;
    Some(format!("[{at}] is {}, {} expected", got.data[at], want.data[at]))
}

/// Compiles the graph with given outputs and says which of them are wrong, the first in order of calls first.
fn wrong(g: &Graph, path: &Path, outputs: &[usize], backend: &dyn Backend) -> Result<Vec<(usize, String)>, String> {
    g.file(outputs).write(path);
    let model = model_source::open(path, &mut |_| {}).map_err(|e| e.to_string())?;
    if let Some(d) = model.plan.report.validation.dropped.first() {
        return Err(format!("validation finds wrong what is not: {d}"));
    }
    let mut session =
        Session::builder().bind_on(backend, model.plan.clone(), &*model.weights).map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    for binding in 0..2 {
        let got = session.run(&given(g, binding, &inputs(g))).map_err(|e| format!("binding {binding}: {e}"))?;
        let got: BTreeMap<String, Tensor> = got.into_iter().collect();
        for o in outputs {
            let v = &g.values[*o];
            if let Some(why) = difference(got.get(&v.name), &v.at[binding].exact) {
                found.push((*o, format!("binding {binding}: `{}`{why}", v.name)));
            }
        }
    }
    found.sort_by_key(|f| f.0);
    Ok(found)
}

/// The first call whose result is wrong when every value is an output, with what it comes from.
fn blame(g: &Graph, path: &Path, backend: &dyn Backend, outputs: &[usize], first: &(usize, String)) -> String {
    let all = g.outputs(|_| true);
    let inner = wrong(g, path, &all, backend).ok().and_then(|w| w.into_iter().next());
    let (of, why) = inner.as_ref().unwrap_or(first);
    g.file(outputs).write(path);
    format!("{why}\n{}", g.history(&[*of]))
}

fn save(g: &Graph, outputs: &[usize], folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    g.file(outputs).write(&folder.join(format!("{seed}.onnx")));
    for binding in 0..2 {
        for (kind, which) in [("in", inputs(g).as_slice()), ("out", outputs)] {
            let tensors = given(g, binding, which);
            let arrays: Vec<(&str, npz::Array<'_>)> =
                tensors.iter().map(|(n, t)| (n.as_str(), npz::Array::Tensor(t))).collect();
            npz::write(&folder.join(format!("{seed}.{kind}{binding}.npz")), &arrays).unwrap();
        }
    }
}

/// Runs graphs of the seeds and says how often each operator was met.
fn run(choice: BackendChoice, seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, usize> {
    let backend = choice.open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let saved = std::env::var_os("FRIT_ONNX_SAVE").map(PathBuf::from);
    let (mut met, mut failures) = (BTreeMap::new(), Vec::new());
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let g = choose::graph(seed, CALLS);
        let outputs = g.outputs(|i| (i as u64 + seed).is_multiple_of(5));
        if outputs.is_empty() {
            continue;
        }
        g.nodes.iter().for_each(|n| *met.entry(n.op).or_insert(0) += 1);
        if let Some(to) = &saved {
            save(&g, &outputs, to, seed);
        }
        let path = folder.path().join("random.onnx");
        match wrong(&g, &path, &outputs, &*backend) {
            Err(e) => {
                failures.push(format!("graph {seed}: {e}\n{}", g.history(&outputs)));
            }
            Ok(w) if !w.is_empty() => {
                failures.push(format!("graph {seed}: {}", blame(&g, &path, &*backend, &outputs, &w[0])))
            }
            Ok(_) => {}
        }
    }
    println!("{} of {count} random ONNX files right on {choice:?}", count as usize - failures.len());
    assert!(failures.is_empty(), "{} of {count} fail\n{}", failures.len(), failures.join("\n\n"));
    met
}

/// Operators that the graphs of the test run meet, all of them.
const OPERATORS: &str = "
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Celu Clip Concat ConstantOfShape Conv Cos Cosh
    CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements Gelu Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
    InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min
    Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Selu Shape
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor";

#[test]
fn random_files_on_the_processor() {
    let from = number("FRIT_ONNX_FROM", 0);
    let met = run(BackendChoice::Cpu, from..from + number("FRIT_ONNX_GRAPHS", 400));
    let missing: Vec<_> = OPERATORS.split_whitespace().filter(|o| !met.contains_key(o)).collect();
    assert!(missing.is_empty() || from > 0, "not drawn: {missing:?}");
}

#[test]
fn random_files_on_wgpu() {
    run(BackendChoice::Wgpu, 0..number("FRIT_ONNX_GRAPHS_WGPU", 25));
}
