//! What the tests of this folder share: fixtures, compiled models, and the float64 oracle.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit::{BackendChoice, LoadedModel, Session, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::graph::{StateId, WeightId};
use frit_compiler::reference::{Array, Env, evaluate, weight_array};
use frit_compiler::{CompileOptions, Compiler, Model, ingest};
use frit_kernels::target::Capabilities;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path below `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A model of `fixtures/`.
pub fn load(path: &str) -> Model {
    ingest::load(fixture(path)).unwrap_or_else(|e| panic!("{e}"))
}

/// The default plan of a model, with texts for every tier.
pub fn compile(model: &Model) -> LoadedModel {
    compile_as(model, CompileOptions::default())
}

/// A plan with given fusion options, and every text that its kernels can have for given targets.
pub fn compile_with(model: &Model, fusion: FusionOptions, targets: Vec<Capabilities>) -> LoadedModel {
    compile_as(model, CompileOptions { fusion, targets, every_text: true, ..CompileOptions::default() })
}

/// Translation validation, which is on unless switched off, must find nothing to drop in any model of a test.
fn compile_as(model: &Model, options: CompileOptions) -> LoadedModel {
    let plan = Compiler::new(options).compile(model).unwrap_or_else(|e| panic!("{e}"));
    plan.validate().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(plan.report.validation.dropped, Vec::<String>::new());
    LoadedModel { plan: Arc::new(plan), weights: model.weights(), artifact: None }
}

/// A session on an open model.
pub fn open(model: &LoadedModel, backend: BackendChoice) -> Session {
    Session::builder().backend(backend).open(model).unwrap_or_else(|e| panic!("{e}"))
}

/// A tensor as an array of the oracle.
pub fn array(t: &Tensor) -> Array {
    let data = match (t.as_f32(), t.as_i32()) {
        (Some(v), _) => v.iter().map(|v| f64::from(*v)).collect(),
        (_, Some(v)) => v.iter().map(|v| f64::from(*v)).collect(),
        _ => Vec::new(),
    };
    Array::new(t.shape().iter().map(|d| *d as usize).collect::<Vec<_>>(), data).unwrap()
}

/// What the graph `name` of a model gives in float64, for sizes and inputs by name. Without a history: the mask of
/// visible keys is all ones and no position is shifted.
pub fn oracle(model: &Model, name: &str, sizes: &[(&str, u64)], inputs: &[(String, Tensor)]) -> Vec<(String, Array)> {
    oracle_in(model, name, sizes, inputs, false)
}

/// As [`oracle`], where `rounded` with every value rounded to F32 once it is computed.
pub fn oracle_in(
    model: &Model,
    name: &str,
    sizes: &[(&str, u64)],
    inputs: &[(String, Tensor)],
    rounded: bool,
) -> Vec<(String, Array)> {
    let values: BTreeMap<String, i64> = sizes.iter().map(|(n, v)| ((*n).to_owned(), *v as i64)).collect();
    let weights = |id: WeightId| weight_array(model, id, &|n| values.get(n).copied());
    let mut env = Env::new(&weights);
    env.sizes = values.clone();
    env.rounded = rounded;
    env.inputs = inputs.iter().map(|(n, t)| (n.clone(), array(t))).collect();
    for (i, s) in model.tables.states.iter().enumerate() {
        let size = |s: &frit_kernels::dim::Sym| values.get(&s.to_string()).copied();
        let shape: Vec<usize> = s.shape.iter().map(|d| d.eval(&size).unwrap() as usize).collect();
        let fill = if s.name == "key_mask" { 1.0 } else { 0.0 };
        env.states.insert(StateId(i as u32), Array::full(&shape, fill).unwrap());
    }
    let graph = &model.graph(name).unwrap_or_else(|| panic!("no graph `{name}`")).graph;
    evaluate(graph, &env).unwrap_or_else(|e| panic!("{e}"))
}

/// The largest difference, relative to the largest magnitude expected or 1. Fails on shapes that differ and on numbers
/// that are not finite.
pub fn distance(what: &str, got: &Tensor, want: &Array) -> f64 {
    apart(what, &array(got), want)
}

/// [`distance`], of arrays.
pub fn apart(what: &str, got: &Array, want: &Array) -> f64 {
    assert_eq!(got.shape, want.shape, "{what}");
    let magnitude = want.data.iter().fold(1.0f64, |m, w| m.max(w.abs()));
    let mut most = 0.0f64;
    for (g, w) in got.data.iter().zip(&want.data) {
        assert!(g.is_finite(), "{what}: {g} where {w} is expected");
        most = most.max((g - w).abs());
    }
    most / magnitude
}

/// A reproducible stream of numbers.
pub struct Random(u64);

impl Random {
    /// A stream.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// Uniform in 0 … n − 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % n
    }
    /// Uniform in −1 … 1.
    pub fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
    /// Uniform in −`scale` … `scale`.
    pub fn floats(&mut self, n: u64, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.unit()).collect()
    }
    /// A float tensor.
    pub fn tensor(&mut self, shape: &[u64]) -> Tensor {
        let values = self.floats(shape.iter().product(), 1.0);
        Tensor::f32(shape, values).unwrap()
    }
    /// An integer tensor with elements below `n`.
    pub fn ints(&mut self, shape: &[u64], n: u64) -> Tensor {
        let values = (0..shape.iter().product::<u64>()).map(|_| self.below(n) as i32).collect();
        Tensor::i32(shape, values).unwrap()
    }
}
