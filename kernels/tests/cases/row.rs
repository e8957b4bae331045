//! Kernels with statistics of rows.

use crate::support;
use crate::support::blocks::{Data, Random};
use crate::support::{Case, SpecBuilder};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{AliasKind, Anchor, BinaryOp, Expr, KernelSpec, ReduceOp, Space, Stat, UnaryOp};

/// Lengths around every change of schedule.
const ROWS: [usize; 17] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 65, 255, 256, 257, 576, 1024, 1025, 20001];

/// `y = (x − mean) / deviation · gain + bias` over rows of `d`, a number or `N`; the reciprocal deviation is kept.
pub fn layer_norm(d: &str) -> KernelSpec {
    let mut s = SpecBuilder::new("layer_norm", &["S", d], &["S", "N"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{d}*S"));
    let (g, h) = (s.arg("gain", Space::Side, Storage::F32, d), s.arg("bias", Space::Side, Storage::F32, d));
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{d}*S"));
    let deviation = s.out("deviation", Space::Arena, Storage::F32, "S");
    let at = format!("{d}*i0 + i1");
    let v = s.load(x, &at);
    let count = s.spec.exprs.coord(support::build::dim(d));
    let count = s.spec.exprs.cast(Scalar::F32, count);
    let sum = s.stat(0, Scalar::F32);
    let mean = s.bin(BinaryOp::Div, sum, count);
    let centred = s.bin(BinaryOp::Sub, v, sum);
    let square = s.bin(BinaryOp::Mul, centred, centred);
    let sum1 = s.stat(1, Scalar::F32);
    let var = s.bin(BinaryOp::Div, sum1, count);
    let eps = s.f(1e-5);
    let var = s.bin(BinaryOp::Add, var, eps);
    let scale = s.un(UnaryOp::Rsqrt, var);
    s.spec.anchor = Anchor::Row {
        stats: vec![
            Stat { op: ReduceOp::Sum, value: v, finish: Some(mean) },
            Stat { op: ReduceOp::Sum, value: square, finish: Some(scale) },
        ],
    };
    let (g, h) = (s.load(g, "i1"), s.load(h, "i1"));
    let normed = s.bin(BinaryOp::Mul, centred, sum1);
    let normed = s.bin(BinaryOp::Mul, normed, g);
    let normed = s.bin(BinaryOp::Add, normed, h);
    s.store(y, &at, normed);
    s.store(deviation, "i0", sum1).per_row = true;
    s.done()
}

pub fn layer_norm_in_two_passes(check: &dyn Fn(&Case)) {
    let mut r = Random::new(10);
    for n in ROWS {
        for dynamic in [false, true] {
            let d = if dynamic { "N".to_owned() } else { n.to_string() };
            let rows = if n > 2000 { 2 } else { 5 };
            let data = vec![r.floats(rows * n), r.floats(n), r.floats(n), r.floats(rows * n), r.floats(rows)];
            let mut case = Case::new(layer_norm(&d), &[("S", rows as i64), ("N", n as i64)], data);
            case.tolerance = if n < 3 { 1.0 } else { 1e-4 };
            check(&case);
        }
    }
}

pub fn softmax_in_place(check: &dyn Fn(&Case)) {
    let mut r = Random::new(11);
    for n in ROWS {
        let d = n.to_string();
        let mut s = SpecBuilder::new("softmax", &["S", &d], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{d}*S"));
        let y = s.out("y", Space::Arena, Storage::F32, &format!("{d}*S"));
        s.alias(y, x, AliasKind::SameRow);
        let at = format!("{d}*i0 + i1");
        let v = s.load(x, &at);
        let max = s.stat(0, Scalar::F32);
        let shifted = s.bin(BinaryOp::Sub, v, max);
        let e = s.un(UnaryOp::Exp, shifted);
        s.spec.anchor = Anchor::Row {
            stats: vec![
                Stat { op: ReduceOp::Max, value: v, finish: None },
                Stat { op: ReduceOp::Sum, value: e, finish: None },
            ],
        };
        let sum = s.stat(1, Scalar::F32);
        let p = s.bin(BinaryOp::Div, e, sum);
        s.store(y, &at, p);
        let x = r.floats(3 * n);
        let mut case = Case::new(s.done(), &[("S", 3)], vec![x.clone(), x]);
        case.shared = vec![(1, 0)];
        check(&case);
    }
}

pub fn argmax_takes_the_first_of_equals(check: &dyn Fn(&Case)) {
    let mut r = Random::new(12);
    for n in ROWS.into_iter().chain([100_003]) {
        let mut s = SpecBuilder::new("argmax", &["2", "S", "N"], &["S", "N"]);
        let x = s.arg("x", Space::Arena, Storage::F32, "2*N*S");
        let id = s.out("id", Space::Ints, Storage::I32, "2*S");
        let low = s.out("low", Space::Arena, Storage::F32, "2*S");
        let v = s.load(x, "N*S*i0 + N*i1 + i2");
        s.spec.anchor = Anchor::Row {
            stats: vec![
                Stat { op: ReduceOp::ArgMax, value: v, finish: None },
                Stat { op: ReduceOp::Min, value: v, finish: None },
                Stat { op: ReduceOp::Prod, value: v, finish: None },
            ],
        };
        let place = s.stat(0, Scalar::I32);
        s.store(id, "S*i0 + i1", place).per_row = true;
        let (min, prod) = (s.stat(1, Scalar::F32), s.stat(2, Scalar::F32));
        let sum = s.bin(BinaryOp::Add, min, prod);
        s.store(low, "S*i0 + i1", sum).per_row = true;
        let coarse: Vec<f32> =
            (0..6 * n).map(|_| (r.unit() * 4.0).round() / 4.0 - if n % 2 == 0 { 3.0 } else { 0.0 }).collect();
        let coarse: Vec<f32> = if n > 30 { coarse.iter().map(|x| x.clamp(-1.0, 1.0)).collect() } else { coarse };
        let data = vec![Data::F32(coarse), r.ints(6, 3), r.floats(6)];
        check(&Case::new(s.done(), &[("S", 3), ("N", n as i64)], data));
    }
}

/// Rows that have no element above the least float: their place is the first, as it is of equal ones.
pub fn argmax_of_rows_of_minus_infinity(check: &dyn Fn(&Case)) {
    for n in [1u64, 40, 1000] {
        let mut s = SpecBuilder::new("argmax", &["S", &n.to_string()], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{n}*S"));
        let id = s.out("id", Space::Ints, Storage::I32, "S");
        let value = s.load(x, &format!("{n}*i0 + i1"));
        s.spec.anchor = Anchor::Row { stats: vec![Stat { op: ReduceOp::ArgMax, value, finish: None }] };
        let place = s.stat(0, Scalar::I32);
        s.store(id, "i0", place).per_row = true;
        let mut x = vec![f32::NEG_INFINITY; 2 * n as usize];
        *x.last_mut().unwrap() = 1.0;
        let mut r = Random::new(n);
        check(&Case::new(s.done(), &[("S", 2)], vec![Data::F32(x), r.ints(2, 3)]));
    }
}

pub fn row_with_gather_and_statistic_of_a_product(check: &dyn Fn(&Case)) {
    let mut r = Random::new(13);
    let mut s = SpecBuilder::new("gather_norm", &["S", "96"], &["S"]);
    let ids = s.arg("ids", Space::Ints, Storage::I32, "S");
    let w = s.arg("table", Space::Weight, Storage::Q8_0, "960");
    let y = s.out("y", Space::Arena, Storage::F32, "96*S");
    let id = s.load(ids, "i0");
    let v = s.load_at(w, Dim::constant(96) * Dim::value(id.0) + Dim::axis(1));
    let sq = s.bin(BinaryOp::Mul, v, v);
    s.spec.anchor = Anchor::Row { stats: vec![Stat { op: ReduceOp::Sum, value: sq, finish: None }] };
    let sum = s.spec.exprs.add(Expr::Stat(0), Scalar::F32);
    let out = s.bin(BinaryOp::Add, v, sum);
    s.store(y, "96*i0 + i1", out);
    let data = vec![r.ints(11, 10), r.stored(Storage::Q8_0, 960), r.floats(96 * 11)];
    check(&Case::new(s.done(), &[("S", 11)], data));
}
