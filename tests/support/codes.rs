//! Small graphs, each of which meets one code of a refusal.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::support::Random;
use frit_compiler::graph::{AttentionAttrs, Float, NormKind};
use frit_compiler::ingest::builder::{GraphBuilder, ModelBuilder};
use frit_compiler::model::MemoryTensors;
use frit_compiler::{CompileOptions, Compiler, Model};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{BinaryOp, ReduceOp, UnaryOp};
use frit_plan::{KvPart, Plan, TensorData, sizes};
use std::sync::Arc;

pub type Build = Box<dyn FnOnce(&mut GraphBuilder<'_>)>;

pub fn model(rows: u64, weights: impl FnOnce(&mut ModelBuilder) -> Build) -> Model {
    let mut m = ModelBuilder::new("codes");
    let build = weights(&mut m);
    m.graph_with("forward", &[], &[("N", rows)], |g| build(g));
    m.finish().unwrap()
}

pub fn compile(model: &Model, options: CompileOptions) -> Plan {
    let plan = Compiler::new(CompileOptions { targets: Vec::new(), ..options }).compile(model).unwrap();
    plan.validate().unwrap();
    plan
}

pub fn matrix(m: &mut ModelBuilder, name: &str, rows: u64, columns: u64) -> frit_compiler::graph::WeightId {
    m.constant(name, &[rows, columns], &Random::new(rows + columns).floats(rows * columns, 0.5))
}

pub fn x(g: &mut GraphBuilder<'_>, width: u64) -> frit_compiler::graph::ValueId {
    g.input("x", Scalar::F32, &["N".into(), width.into()])
}

/// A product whose rows are scaled by their own sums: the scale waits for the product.
pub fn cycle() -> Model {
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
pub fn mixed_storage() -> Model {
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
pub fn halves() -> Model {
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
pub fn two_readers() -> Model {
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

pub fn softmax_of_product() -> Model {
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

pub fn norm_and_product(rows: u64, columns: u64) -> Model {
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
pub fn many_matrices() -> Model {
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

pub fn siblings() -> Model {
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
pub fn summed_siblings() -> Model {
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

pub fn chain() -> Model {
    chain_of(48)
}

pub fn chain_of(width: u64) -> Model {
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
pub fn convolutions() -> Model {
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

pub fn plain_attention() -> AttentionAttrs {
    AttentionAttrs { scale: Float(0.25), causal: None, window: None, softcap: None, has_mask: false, has_bias: false }
}

pub fn attended(g: &mut GraphBuilder<'_>, w: frit_compiler::graph::WeightId) -> frit_compiler::graph::ValueId {
    let shape: [Dim; 3] = [1.into(), "N".into(), 48.into()];
    let x = g.input("x", Scalar::F32, &shape);
    let y = g.linear(x, w, None);
    let heads = g.reshape(y, &[1.into(), "N".into(), 3.into(), 16.into()]);
    let heads = g.transpose(heads, &[0, 2, 1, 3]);
    g.attention(heads, heads, heads, None, None, plain_attention())
}

pub fn attention_of_product() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 48, 48);
        Box::new(move |g| {
            let a = attended(g, w);
            g.output("y", a);
        })
    })
}

/// Attention in parts, whose probabilities are a result as well.
pub fn kept_probabilities() -> Model {
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
pub fn cached_attention() -> Model {
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

/// A product, and its sum with a softmax that nothing else reads.
pub fn added_to_a_row() -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 48, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let (p, y) = (g.softmax(x), g.linear(x, w, None));
            let sum = g.add(y, p);
            g.output("y", y);
            g.output("sum", sum);
        })
    })
}

/// Two functions of a function of an input.
pub fn beside_each_other() -> Model {
    model(64, |_| {
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.unary(UnaryOp::Exp, x);
            let (a, b) = (g.unary(UnaryOp::Tanh, y), g.unary(UnaryOp::Sin, y));
            g.output("a", a);
            g.output("b", b);
        })
    })
}

/// Functions of rows of `a` elements and of their first `b`, both scaled by the sums of the rows.
pub fn functions_of_rows(rows: u64, a: u64, b: u64) -> Model {
    model(rows, |_| {
        Box::new(move |g| {
            let x = x(g, a);
            let s = g.reduce(ReduceOp::Sum, x, &[1], true);
            for (name, op, width) in [("a", UnaryOp::Tanh, a), ("b", UnaryOp::Sin, b)] {
                let part = g.slice(x, 1, Dim::zero(), width.into());
                let y = g.mul(part, s);
                let y = g.unary(op, y);
                g.output(name, y);
            }
        })
    })
}

/// Functions of a product that are added up in two orders: each waits for the second sum.
pub fn waiting_values(count: u32) -> Model {
    model(64, |m| {
        let w = matrix(m, "w", 40, 48);
        Box::new(move |g| {
            let x = x(g, 48);
            let y = g.linear(x, w, None);
            let each: Vec<_> = (0..count)
                .map(|i| {
                    let c = g.f32(1.0 + i as f32);
                    let t = g.mul(y, c);
                    g.unary(UnaryOp::Tanh, t)
                })
                .collect();
            let sum = each.iter().copied().reduce(|a, b| g.add(a, b)).unwrap();
            let product = each.iter().rev().copied().reduce(|a, b| g.mul(a, b)).unwrap();
            let out = g.mul(sum, product);
            g.output("y", out);
        })
    })
}

/// What would be a norm if ε were added inside of the root.
pub fn norm_but_for_epsilon() -> Model {
    model(64, |_| {
        Box::new(move |g| {
            let x = x(g, 48);
            let squares = g.mul(x, x);
            let sum = g.reduce(ReduceOp::Sum, squares, &[1], true);
            let (share, eps) = (g.f32(1.0 / 48.0), g.f32(1e-6));
            let mean = g.mul(sum, share);
            let root = g.unary(UnaryOp::Sqrt, mean);
            let root = g.add(root, eps);
            let y = g.binary(BinaryOp::Div, x, root);
            g.output("y", y);
        })
    })
}

/// Two narrow products around a wide one, of one row.
pub fn deep_chain() -> Model {
    model(1, |m| {
        let (a, b) = (matrix(m, "a", 1024, 64), matrix(m, "b", 64, 1024));
        Box::new(move |g| {
            let x = x(g, 64);
            let y = g.linear(x, a, None);
            let y = g.unary(UnaryOp::GeluErf, y);
            let y = g.linear(y, b, None);
            g.output("y", y);
        })
    })
}

pub fn product_of_softmax() -> Model {
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
pub fn residual_and_norm(kind: NormKind, columns: u64) -> Model {
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

pub fn activated() -> Model {
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
