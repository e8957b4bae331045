//! Matrix-vector products.

use super::gemm::filled;
use crate::support::Case;
use crate::support::build::{SpecBuilder, dim};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{Anchor, ArgId, BinaryOp, ExprId, KernelSpec, ReduceOp, Space, Stat, UnaryOp};

fn plain(m: u64, n: u64, k: u64, storage: Storage) -> KernelSpec {
    let mut s = SpecBuilder::new("vector", &[&m.to_string(), &n.to_string()], &[]);
    let x = s.arg("x", Space::Arena, Storage::F32, &(m * k).to_string());
    let w = s.arg("w", Space::Weight, storage, &(n * k).to_string());
    let y = s.out("y", Space::Arena, Storage::F32, &(m * n).to_string());
    let lhs = s.load(x, &format!("{k}*i0 + i2"));
    let rhs = vec![s.load(w, &format!("{k}*i1 + i2"))];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let acc = s.acc(0);
    s.store(y, &format!("{n}*i0 + i1"), acc);
    s.done()
}

pub fn few_rows_with_every_tail(check: &dyn Fn(&Case)) {
    for (m, n, k) in [(1, 1, 1), (1, 7, 3), (2, 8, 4), (3, 9, 16), (4, 33, 100), (1, 65, 257), (1, 130, 64)] {
        check(&filled(plain(m, n, k, Storage::F32), &[], m + n + k));
    }
}

pub fn rows_of_every_storage(check: &dyn Fn(&Case)) {
    for storage in Storage::ALL {
        if matches!(storage, Storage::I32 | Storage::Bool) {
            continue;
        }
        let depths: &[u64] = match storage.block_elems() {
            1 => &[1, 6, 33, 64, 128],
            32 => &[32, 96, 256],
            _ => &[256, 512],
        };
        for k in depths {
            let mut case = filled(plain(1, 37, *k, storage), &[], *k);
            case.tolerance = 1e-4;
            check(&case);
        }
    }
}

/// Row i0 of `x`, of `k` elements along an axis, behind an RMS norm with a gain, and the statistic that takes.
fn normed(s: &mut SpecBuilder, (x, gain): (ArgId, ArgId), k: u64, axis: &str) -> (ExprId, Vec<Stat>) {
    let v = s.load(x, &format!("{k}*i0 + {axis}"));
    let value = s.bin(BinaryOp::Mul, v, v);
    let (raw, share, eps) = (s.stat(0, Scalar::F32), s.f(1.0 / k as f32), s.f(1e-5));
    let mean = s.bin(BinaryOp::Mul, raw, share);
    let mean = s.bin(BinaryOp::Add, mean, eps);
    let finish = Some(s.un(UnaryOp::Rsqrt, mean));
    let (scale, gain) = (s.stat(0, Scalar::F32), s.load(gain, axis));
    let lhs = s.bin(BinaryOp::Mul, v, scale);
    let lhs = s.bin(BinaryOp::Mul, lhs, gain);
    (lhs, vec![Stat { op: ReduceOp::Sum, value, finish }])
}

pub fn a_norm_of_the_rows_in_front(check: &dyn Fn(&Case)) {
    for (rows, k, n) in [(1i64, 32u64, 20u64), (3, 100, 9), (2, 257, 17)] {
        let mut s = SpecBuilder::new("normed", &["S", &n.to_string()], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
        let w = s.arg("w", Space::Weight, Storage::Bf16, &(n * k).to_string());
        let gain = s.arg("gain", Space::Side, Storage::F32, &k.to_string());
        let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*S"));
        let (lhs, lhs_stats) = normed(&mut s, (x, gain), k, "i2");
        let rhs = vec![s.load(w, &format!("{k}*i1 + i2"))];
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
        let acc = s.acc(0);
        s.store(y, &format!("{n}*i0 + i1"), acc);
        let mut case = filled(s.done(), &[("S", rows)], k);
        case.tolerance = 1e-4;
        check(&case);
    }
}

/// Rows normalised in front of two products that meet in one element: of a tile's worth of columns, and of so many that a
/// workgroup takes them in several passes; rows that end inside a chunk of lanes, and rows of one chunk each.
pub fn norms_in_front_of_few_and_many_columns(check: &dyn Fn(&Case)) {
    for (rows, k, n, sides) in [(2i64, 72u64, 21u64, 2u64), (1, 256, 9, 1), (1, 2048, 2501, 2), (2, 2048, 6400, 1)] {
        let mut s = SpecBuilder::new("normed", &["B", "1", &n.to_string()], &["B"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*B"));
        let w = s.arg("w", Space::Weight, Storage::Bf16, &(sides * n * k).to_string());
        let gain = s.arg("gain", Space::Side, Storage::F32, &k.to_string());
        let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*B"));
        let (lhs, lhs_stats) = normed(&mut s, (x, gain), k, "i3");
        let rhs = (0..sides).map(|j| s.load(w, &format!("{}*i2 + {} + i3", sides * k, j * k))).collect();
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
        let mut v = s.acc(0);
        if sides > 1 {
            let up = s.acc(1);
            v = s.bin(BinaryOp::Add, v, up);
        }
        s.store(y, &format!("{n}*i0 + i2"), v);
        let mut case = filled(s.done(), &[("B", rows)], k + n);
        case.tolerance = 1e-4;
        check(&case);
    }
}

pub fn gate_and_up_meet_in_one_lane(check: &dyn Fn(&Case)) {
    let (n, k) = (35u64, 64u64);
    let mut s = SpecBuilder::new("gated", &["B", "1", &n.to_string()], &["B"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*B"));
    let w = s.arg("w", Space::Weight, Storage::Q4_0, &(2 * n * k).to_string());
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*B"));
    let lhs = s.load(x, &format!("{k}*i0 + i3"));
    let rhs = vec![s.load(w, "128*i2 + i3"), s.load(w, "128*i2 + 64 + i3")];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let (gate, up) = (s.acc(0), s.acc(1));
    let gate = s.un(UnaryOp::Silu, gate);
    let v = s.bin(BinaryOp::Mul, gate, up);
    s.store(y, &format!("{n}*i0 + i2"), v);
    let mut case = filled(s.done(), &[("B", 3)], 5);
    case.tolerance = 1e-4;
    check(&case);
}
