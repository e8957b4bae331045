//! Small graphs, their values on random inputs, and what recognition does with them.

use crate::graph::{Graph, GraphInput, GraphOutput, Op, Tables, TensorType, ValueId, WeightData, WeightInfo, text};
use crate::passes::recognize::lint;
use crate::passes::{PassLog, PassManager};
use crate::reference::{Array, Env, evaluate};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, Literal, ReduceOp, UnaryOp};
use frit_plan::InputFill;
use std::collections::BTreeMap;

/// Values of the sizes that graphs here use.
const SIZES: [(&str, i64); 4] = [("B", 2), ("S", 5), ("P", 3), ("N", 7)];

#[derive(Default)]
pub(super) struct Kit {
    pub g: Graph,
    pub tables: Tables,
    pub values: BTreeMap<String, Vec<f64>>,
}

pub(super) fn dims(shape: &str) -> Vec<Dim> {
    shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| s.parse().unwrap()).collect()
}

impl Kit {
    pub fn new() -> Kit {
        let mut k = Kit::default();
        for (name, _) in SIZES {
            k.tables.size(name, 1, None);
        }
        k
    }
    pub fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.g.add(op, inputs, "").unwrap()
    }
    fn typed_input(&mut self, name: &str, scalar: Scalar, shape: &str) -> ValueId {
        let v = self.g.push(Op::Input(name.into()), &[], TensorType::new(scalar, dims(shape)), "");
        self.g.inputs.push(GraphInput { name: name.into(), value: v, fill: InputFill::Required });
        v
    }
    pub fn x(&mut self, name: &str, shape: &str) -> ValueId {
        self.typed_input(name, Scalar::F32, shape)
    }
    pub fn ids(&mut self, name: &str, shape: &str, values: &[i32]) -> ValueId {
        self.values.insert(name.into(), values.iter().map(|v| f64::from(*v)).collect());
        self.typed_input(name, Scalar::I32, shape)
    }
    pub fn flags(&mut self, name: &str, shape: &str) -> ValueId {
        self.typed_input(name, Scalar::Bool, shape)
    }
    pub fn weight(&mut self, storage: Storage, shape: &str, data: Vec<f32>) -> ValueId {
        let info = WeightInfo { names: Vec::new(), storage, shape: dims(shape), data: WeightData::Inline(data) };
        let ty = TensorType::new(storage.scalar(), info.shape.clone());
        let id = self.tables.weight(info);
        self.g.push(Op::Weight(id), &[], ty, "")
    }
    pub fn f(&mut self, c: f32) -> ValueId {
        self.op(Op::Const(Literal::f32(c)), &[])
    }
    pub fn i(&mut self, c: i32) -> ValueId {
        self.op(Op::Const(Literal::I32(c)), &[])
    }
    pub fn iota(&mut self, shape: &str, axis: usize, offset: &str) -> ValueId {
        let ty = TensorType::new(Scalar::I32, dims(shape));
        self.g.push(Op::Iota { axis, offset: offset.parse().unwrap() }, &[], ty, "")
    }
    pub fn un(&mut self, op: UnaryOp, a: ValueId) -> ValueId {
        self.op(Op::Unary(op), &[a])
    }
    pub fn bin(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Binary(op), &[a, b])
    }
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.bin(BinaryOp::Add, a, b)
    }
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.bin(BinaryOp::Sub, a, b)
    }
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.bin(BinaryOp::Mul, a, b)
    }
    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.bin(BinaryOp::Div, a, b)
    }
    pub fn scale(&mut self, a: ValueId, c: f32) -> ValueId {
        let c = self.f(c);
        self.mul(a, c)
    }
    pub fn shift(&mut self, a: ValueId, c: f32) -> ValueId {
        let c = self.f(c);
        self.add(a, c)
    }
    pub fn pow(&mut self, a: ValueId, c: f32) -> ValueId {
        let c = self.f(c);
        self.bin(BinaryOp::Pow, a, c)
    }
    pub fn reshape(&mut self, a: ValueId, shape: &str) -> ValueId {
        self.op(Op::Reshape(dims(shape)), &[a])
    }
    pub fn expand(&mut self, a: ValueId, shape: &str) -> ValueId {
        self.op(Op::Broadcast(dims(shape)), &[a])
    }
    pub fn transpose(&mut self, a: ValueId, perm: &[usize]) -> ValueId {
        self.op(Op::Transpose(perm.to_vec()), &[a])
    }
    pub fn slice(&mut self, a: ValueId, axis: usize, start: &str, len: &str) -> ValueId {
        self.op(Op::Slice { axis, start: start.parse().unwrap(), len: len.parse().unwrap() }, &[a])
    }
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> ValueId {
        self.op(Op::Concat { axis }, parts)
    }
    pub fn reduce(&mut self, op: ReduceOp, a: ValueId, axis: usize, keep: bool) -> ValueId {
        self.op(Op::Reduce { op, axes: vec![axis], keep }, &[a])
    }
    /// Σ/n over the last axis of constant extent, which is kept.
    pub fn mean(&mut self, a: ValueId) -> ValueId {
        let rank = self.g.ty(a).rank();
        let n = self.g.ty(a).last().as_const().unwrap() as f32;
        let s = self.reduce(ReduceOp::Sum, a, rank - 1, true);
        self.scale(s, 1.0 / n)
    }
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::MatMul { b_transposed: false }, &[a, b])
    }
    pub fn softmax(&mut self, a: ValueId) -> ValueId {
        self.op(Op::Softmax, &[a])
    }
    pub fn cast(&mut self, a: ValueId, to: Scalar) -> ValueId {
        self.op(Op::Cast(to), &[a])
    }
    pub fn select(&mut self, c: ValueId, t: ValueId, f: ValueId) -> ValueId {
        self.op(Op::Select, &[c, t, f])
    }
    pub fn out(&mut self, name: &str, v: ValueId) {
        self.g.outputs.push(GraphOutput { name: name.into(), value: v, state: None });
    }
    /// The outputs on inputs that follow from names and places alone.
    pub fn eval(&self) -> Vec<(String, Array)> {
        let weights = |id: crate::graph::WeightId| {
            let info = self.tables.weight_info(id).ok_or("no such weight")?;
            let WeightData::Inline(data) = &info.data else { return Err("not inline".to_owned()) };
            let shape: Vec<usize> = info.shape.iter().map(|d| d.as_const().unwrap() as usize).collect();
            Array::new(shape, data.iter().map(|v| f64::from(*v)).collect()).map_err(|e| e.to_string())
        };
        let mut env = Env::new(&weights);
        env.sizes = SIZES.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        for i in &self.g.inputs {
            let ty = self.g.ty(i.value);
            let size = |s: &frit_kernels::dim::Sym| SIZES.iter().find(|(n, _)| *n == s.to_string()).map(|(_, v)| *v);
            let shape: Vec<usize> = ty.shape.iter().map(|d| d.eval(&size).unwrap() as usize).collect();
            let seed = i.name.bytes().fold(7u64, |h, b| h.wrapping_mul(131).wrapping_add(u64::from(b)));
            let n: usize = shape.iter().product();
            let data: Vec<f64> = match self.values.get(&i.name) {
                Some(v) => v.clone(),
                None if ty.scalar == Scalar::Bool => {
                    (0..n).map(|i| f64::from(u8::from((i * 7 + 3) % 5 != 0))).collect()
                }
                None => uniform(seed, n),
            };
            env.inputs.insert(i.name.clone(), Array::new(shape, data).unwrap());
        }
        evaluate(&self.g, &env).unwrap()
    }
    /// Runs the standard passes, checks that the outputs stay and that a second run changes nothing.
    pub fn run(&mut self) -> PassLog {
        let before = self.eval();
        let log = PassManager::standard(&[]).run(&mut self.g, &self.tables).unwrap();
        let after = self.eval();
        let dump = text::print(&self.g);
        assert_eq!(before.len(), after.len());
        for ((name, a), (_, b)) in before.iter().zip(&after) {
            assert_eq!(a.shape, b.shape, "{name}\n{dump}");
            for (i, (x, y)) in a.data.iter().zip(&b.data).enumerate() {
                assert!((x - y).abs() <= 2e-6 * (1.0 + x.abs()), "{name}[{i}]: {x} before, {y} after\n{dump}");
            }
        }
        assert!(log.unfinished.is_empty(), "{:?}", log.unfinished);
        let again = PassManager::standard(&[]).run(&mut self.g, &self.tables).unwrap();
        assert_eq!(text::print(&self.g), dump, "the passes are not idempotent: {:?}", again.passes);
        log
    }
    pub fn text(&self) -> String {
        text::print(&self.g)
    }
}

fn uniform(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from((((state >> 40) as f64 / f64::from(1u32 << 24)) * 2.0 - 1.0) as f32)
    };
    (0..n).map(|_| next()).collect()
}

/// A graph with one output `y`.
pub(super) fn graph(build: impl FnOnce(&mut Kit) -> ValueId) -> Kit {
    let mut k = Kit::new();
    let y = build(&mut k);
    k.out("y", y);
    k
}

/// The text after recognition, where each rule of `rules` was applied exactly that often.
pub(super) fn raises(rules: &[(&str, u64)], build: impl FnOnce(&mut Kit) -> ValueId) -> String {
    let mut k = graph(build);
    let log = k.run();
    for (rule, n) in rules {
        assert_eq!(log.count(rule), *n, "{rule}\n{}{:#?}", k.text(), lint(&k.g, &k.tables));
    }
    k.text()
}

/// The text after passes in which `rule` was not applied.
pub(super) fn keeps(rule: &str, build: impl FnOnce(&mut Kit) -> ValueId) -> String {
    raises(&[(rule, 0)], build)
}
