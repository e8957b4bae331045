//! Pointwise kernels.

use super::gemm::filled;
use crate::support;
use crate::support::blocks::{Data, Random};
use crate::support::{Case, SpecBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{AliasKind, BinaryOp, Space, UnaryOp};
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::render;

pub fn map_of_any_rank(check: &dyn Fn(&Case)) {
    let mut r = Random::new(1);
    let extents = ["B", "3", "2", "S", "2", "3", "1", "5"];
    for rank in 0..=8 {
        let domain = &extents[8 - rank..];
        let sizes = [("B", 2i64), ("S", 3)];
        let len: i64 = domain
            .iter()
            .map(|d| support::build::dim(d))
            .map(|d| d.eval(&|s| sizes.iter().find(|z| z.0 == s.to_string()).map(|z| z.1)).unwrap())
            .product();
        let mut s = SpecBuilder::new("map_rank", domain, &["B", "S"]);
        let mut index = Dim::zero();
        for (k, d) in domain.iter().enumerate() {
            index = index * support::build::dim(d) + Dim::axis(k);
        }
        let x = s.arg("x", Space::Arena, Storage::F32, &len.to_string());
        let y = s.out("y", Space::Arena, Storage::F32, &len.to_string());
        let v = s.load_at(x, index.clone());
        let v = s.un(UnaryOp::Silu, v);
        s.store(y, "0", v).index = index;
        let data = vec![r.floats(len as usize), r.floats(len as usize)];
        check(&Case::new(s.done(), &sizes, data));
    }
}

pub fn map_at_the_edges_of_its_tiles(check: &dyn Fn(&Case)) {
    let mut r = Random::new(2);
    for n in [1usize, 63, 64, 65, 127, 128, 129, 255, 256, 257, 576, 1000, 1025] {
        for dynamic in [false, true] {
            let last = if dynamic { "N".to_owned() } else { n.to_string() };
            let mut s = SpecBuilder::new("map_edge", &["B", &last], &["N", "B"]);
            let len = format!("B*{last}");
            let x = s.arg("x", Space::Arena, Storage::F32, &len);
            let g = s.arg("gain", Space::Side, Storage::F32, &last);
            let y = s.out("y", Space::Arena, Storage::F32, &len);
            let (a, g) = (s.load(x, &format!("{last}*i0 + i1")), s.load(g, "i1"));
            let v = s.bin(BinaryOp::Mul, a, g);
            s.store(y, &format!("{last}*i0 + i1"), v);
            let data = vec![r.floats(3 * n), r.floats(n), r.floats(3 * n)];
            check(&Case::new(s.done(), &[("B", 3), ("N", n as i64)], data));
        }
    }
}

/// As many weights as base WebGPU has storage textures for, and more.
pub fn maps_of_few_and_many_weights(check: &dyn Fn(&Case)) {
    for weights in [4u64, 5, 7] {
        let n = 70;
        let mut s = SpecBuilder::new("map_weights", &[&n.to_string()], &[]);
        let storages = [Storage::F32, Storage::F16, Storage::Bf16];
        let args: Vec<_> = (0..weights)
            .map(|j| s.arg(&format!("w{j}"), Space::Weight, storages[j as usize % 3], &n.to_string()))
            .collect();
        let y = s.out("y", Space::Arena, Storage::F32, &n.to_string());
        let each: Vec<_> = args.into_iter().map(|w| s.load(w, "i0")).collect();
        let sum = each.into_iter().reduce(|a, b| s.bin(BinaryOp::Add, a, b)).unwrap();
        s.store(y, "i0", sum);
        let case = filled(s.done(), &[], weights);
        let text = render(&case.spec, &Capabilities::webgpu(Tier::Cpu)).unwrap().text;
        let [stored, sampled] = [": texture_storage_2d", ": texture_2d"].map(|ty| text.matches(ty).count() as u64);
        assert_eq!((stored, sampled), if weights <= 4 { (weights, 0) } else { (0, weights) }, "{text}");
        check(&case);
    }
}

pub fn map_folds_a_large_grid(check: &dyn Fn(&Case)) {
    let mut r = Random::new(3);
    let n = 65535 * 64 + 70;
    let mut s = SpecBuilder::new("map_large", &["N"], &["N"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "4");
    let y = s.out("y", Space::Ints, Storage::I32, "N");
    let v = s.spec.exprs.coord(support::build::dim("N - 1 - i0"));
    s.store(y, "i0", v);
    let _ = x;
    let case = Case::new(s.done(), &[("N", n)], vec![r.floats(4), Data::I32(vec![0; n as usize])]);
    check(&case);
}

pub fn map_reads_every_storage(check: &dyn Fn(&Case)) {
    let mut r = Random::new(4);
    for st in Storage::ALL {
        let mut s = SpecBuilder::new("dequantise", &["S", "512"], &["S"]);
        let ids = s.arg("ids", Space::Ints, Storage::I32, "S");
        let w = s.arg("table", Space::Weight, st, "3584");
        let id = s.load(ids, "i0");
        let v = s.load_at(w, Dim::constant(512) * Dim::value(id.0) + Dim::axis(1));
        let (y, v) = match st.scalar() {
            Scalar::F32 => (s.out("y", Space::Arena, Storage::F32, "512*S"), v),
            _ => (s.out("y", Space::Ints, st, "512*S"), v),
        };
        s.store(y, "512*i0 + i1", v);
        let out = if st.scalar() == Scalar::F32 { r.floats(1536) } else { r.ints(1536, 2) };
        let data = vec![r.ints(3, 7), r.stored(st, 3584), out];
        check(&Case::new(s.done(), &[("S", 3)], data));
    }
}

pub fn every_function_of_one_operand(check: &dyn Fn(&Case)) {
    use UnaryOp::*;
    let mut r = Random::new(5);
    let all = [
        Neg, Abs, Exp, Log, Sqrt, Rsqrt, Recip, Tanh, Erf, Sin, Cos, Sigmoid, Silu, GeluErf, GeluTanh, Relu, Floor,
        Ceil, Round, Sign,
    ];
    for op in all {
        let mut s = SpecBuilder::new("one_operand", &["200"], &[]);
        let x = s.arg("x", Space::Arena, Storage::F32, "200");
        let y = s.out("y", Space::Arena, Storage::F32, "200");
        let v = s.load(x, "i0");
        let v = s.un(op, v);
        s.store(y, "i0", v);
        let positive = matches!(op, Log | Sqrt | Rsqrt | Recip);
        let x = (0..200).map(|_| if positive { 1.01 + r.unit() } else { 3.0 * r.unit() }).collect();
        let mut case = Case::new(s.done(), &[], vec![Data::F32(x), r.floats(200)]);
        case.tolerance = 1e-4;
        check(&case);
    }
}

pub fn functions_of_two_operands_in_every_type(check: &dyn Fn(&Case)) {
    use BinaryOp::*;
    let mut r = Random::new(6);
    for op in [Add, Sub, Mul, Div, Max, Min, Pow, Eq, Lt, Le, And, Or] {
        for ty in [Storage::F32, Storage::I32, Storage::Bool] {
            let logical = matches!(op, And | Or);
            if (logical || op == Eq) != (ty == Storage::Bool) && op != Eq || (op == Pow && ty != Storage::F32) {
                continue;
            }
            let space = if ty == Storage::F32 { Space::Arena } else { Space::Ints };
            let mut s = SpecBuilder::new("two_operands", &["150"], &[]);
            let (a, b) = (s.arg("a", space, ty, "150"), s.arg("b", space, ty, "150"));
            let (p, q) = (s.load(a, "i0"), s.load(b, "i0"));
            let q = if op == Pow { s.un(UnaryOp::Abs, q) } else { q };
            let v = s.bin(op, p, q);
            let result = if op.is_comparison() { Storage::Bool } else { ty };
            let y = s.out("y", if result == Storage::F32 { Space::Arena } else { Space::Ints }, result, "150");
            s.store(y, "i0", v);
            let content = |r: &mut Random, s: Storage| match (s, op) {
                (Storage::F32, Pow) => Data::F32((0..150).map(|_| r.unit().abs() * 3.0 + 0.01).collect()),
                (Storage::F32, _) => r.floats(150),
                (Storage::I32, _) => Data::I32((0..150).map(|_| r.below(9) as i32 - 10).collect()),
                _ => r.ints(150, 2),
            };
            let data = vec![content(&mut r, ty), content(&mut r, ty), content(&mut r, result)];
            check(&Case::new(s.done(), &[], data));
        }
    }
}

pub fn pow_of_negative_numbers(check: &dyn Fn(&Case)) {
    for y in [0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, -3.0] {
        let mut s = SpecBuilder::new("power", &["8"], &[]);
        let x = s.arg("x", Space::Arena, Storage::F32, "8");
        let out = s.out("y", Space::Arena, Storage::F32, "8");
        let (v, y) = (s.load(x, "i0"), s.f(y));
        let v = s.bin(BinaryOp::Pow, v, y);
        s.store(out, "i0", v);
        let x = vec![-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0];
        check(&Case::new(s.done(), &[], vec![Data::F32(x), Data::F32(vec![0.0; 8])]));
    }
}

pub fn map_with_ranges_select_and_several_outputs(check: &dyn Fn(&Case)) {
    let mut r = Random::new(7);
    let mut s = SpecBuilder::new("split_heads", &["S", "96"], &["S", "T"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "96*S");
    let q = s.out("q", Space::Arena, Storage::F32, "48*S");
    let kv = s.out("keys", Space::Kv(0), Storage::F32, "24*T");
    let vv = s.out("values", Space::Kv(0), Storage::F32, "24*T");
    let v = s.load(x, "96*i0 + i1");
    let past = s.spec.exprs.coord(support::build::dim("mod(i1, 2)"));
    let zero = s.spec.exprs.i32(0);
    let even = s.bin(BinaryOp::Eq, past, zero);
    let other = s.load(x, "96*i0 + 95 - i1");
    let v2 = s.spec.exprs.select(even, v, other);
    s.store_when(q, "48*i0 + i1", v2, 1, "0", "48");
    s.store_when(kv, "24*i0 + 24*T - 24*S + i1 - 48", v, 1, "48", "72");
    s.store_when(vv, "T*i1 - 72*T + T - S + i0", v, 1, "72", "96");
    let data = vec![r.floats(96 * 5), r.floats(48 * 5), r.floats(24 * 9), r.floats(24 * 9)];
    check(&Case::new(s.done(), &[("S", 5), ("T", 9)], data));
}

pub fn map_in_place_with_two_outputs(check: &dyn Fn(&Case)) {
    let mut r = Random::new(8);
    let mut s = SpecBuilder::new("in_place", &["S", "40"], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "40*S");
    let y = s.out("y", Space::Arena, Storage::F32, "40*S");
    let z = s.out("z", Space::Arena, Storage::F32, "40*S");
    s.alias(y, x, AliasKind::SameElement);
    let v = s.load(x, "40*i0 + i1");
    let (two, e) = (s.f(2.0), s.un(UnaryOp::Exp, v));
    let doubled = s.bin(BinaryOp::Mul, v, two);
    s.store(y, "40*i0 + i1", doubled);
    s.store_when(z, "40*i0 + i1", e, 1, "8", "24");
    let x = r.floats(280);
    let mut case = Case::new(s.done(), &[("S", 7)], vec![x.clone(), x, r.floats(280)]);
    case.shared = vec![(1, 0)];
    check(&case);
}

pub fn index_arithmetic_with_floors_and_bounds(check: &dyn Fn(&Case)) {
    let mut r = Random::new(9);
    let mut s = SpecBuilder::new("indices", &["S", "60"], &["S"]);
    let y = s.out("y", Space::Ints, Storage::I32, "60*S");
    let z = s.out("z", Space::Ints, Storage::I32, "60*S");
    let u = s.out("u", Space::Arena, Storage::F32, "60*S");
    let v = s.spec.exprs.coord(support::build::dim("7*div(i1, 12) - 3*mod(i1, 8) + div(i1 + 5*i0, S)"));
    s.store(y, "60*i0 + i1", v);
    let v = s.spec.exprs.coord(support::build::dim("max(0, i1 - 30) + min(i0, 4) - min(i1 - 20, 3 - i0)"));
    s.store(z, "60*i0 + i1", v);
    let half = s.f(0.5);
    let f = s.spec.exprs.cast(Scalar::F32, v);
    let f = s.bin(BinaryOp::Mul, f, half);
    let t = s.spec.exprs.cast(Scalar::I32, f);
    let t = s.spec.exprs.cast(Scalar::F32, t);
    s.store(u, "60*i0 + i1", t);
    let data = vec![r.ints(420, 9), r.ints(420, 9), r.floats(420)];
    check(&Case::new(s.done(), &[("S", 7)], data));
}
