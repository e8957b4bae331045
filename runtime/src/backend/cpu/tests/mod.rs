//! Kernels built by hand, run by the backend and by an evaluator of their specs.

mod attention;
mod executor;
mod matmul;
mod oracle;
mod pointwise;

use super::dequant::to_f32;
use super::{CpuBackend, CpuExecutor};
use crate::backend::{Executor, Extent};
use crate::{Result, Tensor};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{
    Anchor, Arg, ArgId, AxisRange, BinaryOp, Expr, ExprId, Exprs, KernelSpec, MatmulPrecision, SizeSlot, Space, Store,
    UnaryOp,
};
use frit_plan::{
    BufferRef, InputFill, Kernel, ModelInfo, Part, Placement, Plan, Port, Program, SizeDecl, SlotLayout, Step, Task,
    TensorData, TensorSource, ValueDecl, WeightDecl, WeightSource,
};
use oracle::{Buffer, Oracle};
use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::Arc;

/// A small generator of reproducible numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51afd7ed558ccd) >> 16
    }
    pub fn float(&mut self) -> f32 {
        (self.next() % 20001) as f32 / 10000.0 - 1.0
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
    /// Blocks of `s` with random bytes and scales of moderate size.
    pub fn stored(&mut self, s: Storage, elems: usize) -> Vec<u8> {
        let half = |r: &mut Random| half::f16::from_f32(r.float() * 0.1 + 0.15).to_le_bytes();
        match s {
            Storage::F32 => self.floats(elems).iter().flat_map(|v| v.to_le_bytes()).collect(),
            Storage::F16 => self.floats(elems).iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Storage::Bf16 => self.floats(elems).iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            Storage::I32 | Storage::Bool => vec![0; elems * 4],
            _ => {
                let size = s.block_bytes() as usize;
                let mut b: Vec<u8> = (0..s.size_bytes(elems as u64).unwrap()).map(|_| self.next() as u8).collect();
                for block in b.chunks_exact_mut(size) {
                    match s {
                        Storage::Q6K => block[208..210].copy_from_slice(&half(self)),
                        Storage::Q3K => block[108..110].copy_from_slice(&half(self)),
                        Storage::Q2K => {
                            block[80..82].copy_from_slice(&half(self));
                            block[82..84].copy_from_slice(&half(self));
                        }
                        Storage::Fp4 => block[..2].copy_from_slice(&half::bf16::from_f32(self.float()).to_le_bytes()),
                        Storage::Q4F | Storage::Q8F => {
                            block[0..4].copy_from_slice(&(self.float() * 0.1).to_le_bytes());
                            block[4..8].copy_from_slice(&self.float().to_le_bytes());
                        }
                        Storage::Q4_1 | Storage::Q5_1 | Storage::Q4K | Storage::Q5K => {
                            block[0..2].copy_from_slice(&half(self));
                            block[2..4].copy_from_slice(&half(self));
                        }
                        _ => block[0..2].copy_from_slice(&half(self)),
                    }
                }
                b
            }
        }
    }
}

pub fn d(s: &str) -> Dim {
    s.parse().unwrap()
}

/// What an argument holds before the run.
#[derive(Clone)]
pub enum Given {
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    Weight(Storage, Vec<u8>),
    Side(Storage, Vec<u8>),
    /// Output of that many elements.
    Out(usize),
    IntOut(usize),
    /// Output in the storage of an earlier argument.
    Over(usize),
}

/// A kernel under construction with what its arguments hold.
pub struct Case {
    pub spec: KernelSpec,
    pub given: Vec<Given>,
    pub sizes: Vec<(&'static str, u64)>,
}

impl Case {
    pub fn new(domain: &[&str], sizes: &[(&'static str, u64)]) -> Self {
        let slots = sizes.iter().enumerate();
        let spec = KernelSpec {
            name: "test".into(),
            domain: domain.iter().map(|s| d(s)).collect(),
            anchor: Anchor::Map,
            few_rows: false,
            args: Vec::new(),
            exprs: Exprs::default(),
            stores: Vec::new(),
            left: Vec::new(),
            columns: None,
            stats_over: None,
            partials: None,
            precision: MatmulPrecision::Auto,
            aliases: Vec::new(),
            sizes: slots.map(|(i, (n, _))| SizeSlot { name: n.to_string(), index: i as u8 }).collect(),
        };
        Case { spec, given: Vec::new(), sizes: sizes.to_vec() }
    }
    pub fn arg(&mut self, g: Given) -> ArgId {
        let id = ArgId(self.spec.args.len() as u16);
        let (space, storage, len, written) = match &g {
            Given::Floats(v) => (Space::Arena, Storage::F32, v.len(), false),
            Given::Ints(v) => (Space::Ints, Storage::I32, v.len(), false),
            Given::Weight(s, b) => (Space::Weight, *s, elems(*s, b), false),
            Given::Side(s, b) => (Space::Side, Storage::F32, elems(*s, b), false),
            Given::Out(n) => (Space::Arena, Storage::F32, *n, true),
            Given::IntOut(n) => (Space::Ints, Storage::I32, *n, true),
            Given::Over(i) => (Space::Arena, Storage::F32, self.len(*i), true),
        };
        self.spec.args.push(Arg {
            name: format!("a{}", id.0),
            space,
            storage,
            len: len.into(),
            written,
            rounded: None,
        });
        self.given.push(g);
        id
    }
    fn len(&self, i: usize) -> usize {
        self.spec.args[i].len.as_const().unwrap() as usize
    }
    pub fn load(&mut self, arg: ArgId, index: &str) -> ExprId {
        let ty = self.spec.args[arg.0 as usize].storage.scalar();
        self.spec.exprs.add(Expr::Load { arg, index: d(index) }, ty)
    }
    pub fn un(&mut self, op: UnaryOp, a: ExprId) -> ExprId {
        self.spec.exprs.unary(op, a)
    }
    pub fn bin(&mut self, op: BinaryOp, a: ExprId, b: ExprId) -> ExprId {
        self.spec.exprs.binary(op, a, b)
    }
    pub fn f(&mut self, v: f32) -> ExprId {
        self.spec.exprs.f32(v)
    }
    pub fn acc(&mut self, k: u8) -> ExprId {
        self.spec.exprs.add(Expr::Acc(k), Scalar::F32)
    }
    pub fn stat(&mut self, k: u8) -> ExprId {
        self.spec.exprs.add(Expr::Stat(k), Scalar::F32)
    }
    pub fn store(&mut self, arg: ArgId, index: &str, value: ExprId) {
        self.spec.stores.push(Store { arg, index: d(index), value, when: None, per_row: false });
    }
    pub fn store_when(&mut self, arg: ArgId, index: &str, value: ExprId, axis: u8, lo: &str, hi: &str) {
        let when = Some(AxisRange { axis, lo: d(lo), hi: d(hi) });
        self.spec.stores.push(Store { arg, index: d(index), value, when, per_row: false });
    }
    fn inputs(&self) -> Vec<Buffer> {
        let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect();
        let of = |g: &Given| match g {
            Given::Floats(v) => wide(v.clone()),
            Given::Ints(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Given::Weight(s, b) | Given::Side(s, b) => wide(to_f32(*s, b)),
            Given::Out(n) | Given::IntOut(n) => vec![0.0; *n],
            Given::Over(_) => Vec::new(),
        };
        let mut out: Vec<Buffer> = Vec::new();
        for g in &self.given {
            let b = if let Given::Over(i) = g { out[*i].clone() } else { of(g) };
            out.push(b);
        }
        out
    }
    /// The plan that runs the kernel once.
    pub fn plan(&self) -> (Plan, Source, Vec<Tensor>) {
        let mut plan = empty_plan(&self.sizes);
        let mut source = Source::default();
        let mut tensors = Vec::new();
        let mut p = empty_program();
        let mut args = Vec::new();
        for (i, g) in self.given.iter().enumerate() {
            let len = self.len(i);
            let name = format!("a{i}");
            let value = |p: &mut Program, storage: Storage, slot: Option<u32>| {
                let layout = if storage == Storage::F32 { &mut p.arena } else { &mut p.ints };
                let slot = slot.unwrap_or_else(|| {
                    layout.sizes.push(len.into());
                    layout.sizes.len() as u32 - 1
                });
                let shape = vec![Dim::from(len)];
                p.values.push(ValueDecl { name: name.clone(), storage, shape, slot, live: (0, 0) });
                BufferRef::Value(p.values.len() as u32 - 1)
            };
            let port = |storage, buffer| Port {
                name: name.clone(),
                storage,
                shape: vec![len.into()],
                buffer,
                fill: InputFill::Required,
            };
            let buffer = match g {
                Given::Floats(v) => {
                    let b = value(&mut p, Storage::F32, None);
                    tensors.push(Tensor::f32(&[len as u64], v.clone()).unwrap());
                    p.inputs.push(port(Storage::F32, b));
                    b
                }
                Given::Ints(v) => {
                    let b = value(&mut p, Storage::I32, None);
                    tensors.push(Tensor::i32(&[len as u64], v.clone()).unwrap());
                    p.inputs.push(port(Storage::I32, b));
                    b
                }
                Given::Weight(s, bytes) | Given::Side(s, bytes) => {
                    let placement = if matches!(g, Given::Side(..)) { Placement::Side } else { Placement::Own };
                    let data = TensorData { storage: *s, shape: vec![len as u64], bytes: bytes.clone() };
                    source.0.insert(name.clone(), data);
                    plan.weights.push(WeightDecl {
                        name: name.clone(),
                        storage: if placement == Placement::Side { Storage::F32 } else { *s },
                        shape: vec![len.into()],
                        placement,
                        source: WeightSource::Parts(vec![Part { tensor: name.clone(), transpose: false, rows: None }]),
                    });
                    BufferRef::Weight(plan.weights.len() as u32 - 1)
                }
                Given::Out(_) => value(&mut p, Storage::F32, None),
                Given::IntOut(_) => value(&mut p, Storage::I32, None),
                Given::Over(j) => {
                    let BufferRef::Value(v) = args[*j] else { panic!("only values share") };
                    let slot = p.values[v as usize].slot;
                    value(&mut p, Storage::F32, Some(slot))
                }
            };
            if self.spec.args[i].written {
                p.outputs.push(port(self.spec.args[i].storage, buffer));
            }
            args.push(buffer);
        }
        plan.kernels.push(Kernel { name: "test".into(), spec: self.spec.clone(), variants: Vec::new() });
        p.steps.push(Step { kernel: 0, args, label: "test".into(), when: None });
        plan.programs.push(p);
        (plan, source, tensors)
    }
    pub fn sizes(&self) -> Vec<u64> {
        self.sizes.iter().map(|s| s.1).collect()
    }
    pub fn try_run(&self) -> Result<Vec<Tensor>> {
        let (plan, source, tensors) = self.plan();
        let wanted: Vec<usize> = (0..plan.programs[0].outputs.len()).collect();
        let mut e = bind(plan, &source, &self.sizes())?;
        e.run(0, &self.sizes(), &tensors.iter().collect::<Vec<_>>(), &wanted)
    }
    /// Runs the kernel both ways and compares every output.
    pub fn check(&self, tolerance: f64) {
        self.spec.verify().unwrap();
        let got = self.try_run().unwrap();
        let want = Oracle::new(&self.spec, &self.sizes, self.inputs()).run();
        let written = want.iter().zip(&self.spec.args).filter(|(_, a)| a.written);
        for ((w, a), g) in written.zip(&got) {
            let g: Vec<f64> = match g.as_f32() {
                Some(v) => v.iter().map(|v| f64::from(*v)).collect(),
                None => g.as_i32().unwrap().iter().map(|v| f64::from(*v)).collect(),
            };
            assert_eq!(g.len(), w.len());
            let scale = w.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
            for (i, (g, w)) in g.iter().zip(w).enumerate() {
                assert!((g - w).abs() <= tolerance * (w.abs() + 0.1 * scale), "{}[{i}]: {g} for {w}", a.name);
            }
        }
    }
}

fn elems(s: Storage, bytes: &[u8]) -> usize {
    bytes.len() / s.block_bytes() as usize * s.block_elems() as usize
}

#[derive(Default)]
pub struct Source(pub HashMap<String, TensorData>);
impl TensorSource for Source {
    fn read(&self, tensor: &str) -> std::result::Result<TensorData, Box<dyn StdError + Send + Sync>> {
        self.0.get(tensor).cloned().ok_or_else(|| format!("no tensor `{tensor}`").into())
    }
}

pub fn bind(plan: Plan, source: &Source, extent: &[u64]) -> Result<CpuExecutor> {
    CpuExecutor::bind(Arc::new(plan), source, &Extent(extent.to_vec()), &mut |_, _| {})
}

pub fn empty_program() -> Program {
    Program {
        name: "forward".into(),
        fixed: Vec::new(),
        at_most: Vec::new(),
        limits: Vec::new(),
        instead: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        values: Vec::new(),
        arena: SlotLayout::default(),
        ints: SlotLayout::default(),
        steps: Vec::new(),
    }
}

pub fn empty_plan(sizes: &[(&str, u64)]) -> Plan {
    let decl = |(n, _): &(&str, u64)| SizeDecl { name: n.to_string(), min: 0, max: None };
    Plan {
        version: frit_plan::PLAN_VERSION,
        compiler: String::new(),
        model: ModelInfo {
            name: String::new(),
            architecture: String::new(),
            task: Task::Graph,
            layers: 0,
            context: 0,
            vocab: 0,
            eos: Vec::new(),
            bos: None,
            source_vocab: 0,
            start: Vec::new(),
            tokenizer: None,
            cache_obstacle: None,
            retention: None,
            passes: None,
            rules: Default::default(),
            chat: None,
        },
        sizes: sizes.iter().map(decl).collect(),
        weights: Vec::new(),
        kv_slots: Vec::new(),
        states: Vec::new(),
        kernels: Vec::new(),
        programs: Vec::new(),
        report: Default::default(),
    }
}
