//! Two products in a row.

use super::gemm::filled;
use crate::support::Case;
use crate::support::build::{SpecBuilder, dim};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{Anchor, BinaryOp, Chain, KernelSpec, ReduceOp, Space, Stat, UnaryOp};

/// `S` rows of `k` elements, `inner` values between the products, `n` columns; gate and up with two `sides`; a norm in front,
/// a bias and the input itself behind where it is as wide.
pub fn chain([k, inner, n]: [u64; 3], sides: u64, storage: Storage, normed: bool) -> KernelSpec {
    let mut s = SpecBuilder::new("chain", &["S", &n.to_string()], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
    let up = s.arg("up", Space::Weight, storage, &(sides * inner * k).to_string());
    let down = s.arg("down", Space::Weight, storage, &(n * inner).to_string());
    let bias = s.arg("bias", Space::Side, Storage::F32, &n.to_string());
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*S"));
    let mut lhs = s.load(x, &format!("{k}*i0 + i3"));
    let mut lhs_stats = Vec::new();
    if normed {
        let value = s.bin(BinaryOp::Mul, lhs, lhs);
        let (raw, share, eps) = (s.stat(0, Scalar::F32), s.f(1.0 / k as f32), s.f(1e-5));
        let mean = s.bin(BinaryOp::Mul, raw, share);
        let mean = s.bin(BinaryOp::Add, mean, eps);
        lhs_stats.push(Stat { op: ReduceOp::Sum, value, finish: Some(s.un(UnaryOp::Rsqrt, mean)) });
        let scale = s.stat(0, Scalar::F32);
        lhs = s.bin(BinaryOp::Mul, lhs, scale);
    }
    let row = |j: u64| if j == 0 { format!("{k}*i2 + i3") } else { format!("{k}*i2 + {} + i3", j * inner * k) };
    let rights = (0..sides).map(|j| s.load(up, &row(j))).collect();
    let (first, share) = (s.acc(0), s.f(1.0 / (k as f32).sqrt()));
    let narrow = s.bin(BinaryOp::Mul, first, share);
    let middle = if sides == 2 {
        let second = s.acc(1);
        let (gate, other) = (s.un(UnaryOp::Silu, narrow), s.bin(BinaryOp::Mul, second, share));
        s.bin(BinaryOp::Mul, gate, other)
    } else {
        s.un(UnaryOp::GeluTanh, narrow)
    };
    let right = s.load(down, &format!("{inner}*i1 + i2"));
    let bias = s.load(bias, "i1");
    let mut out = s.bin(BinaryOp::Add, first, bias);
    if n == k {
        let residual = s.load(x, &format!("{k}*i0 + i1"));
        out = s.bin(BinaryOp::Add, out, residual);
    }
    s.store(y, &format!("{n}*i0 + i1"), out);
    s.spec.anchor = Anchor::Chain(Box::new(Chain {
        k: dim(&k.to_string()),
        inner: dim(&inner.to_string()),
        lhs,
        lhs_stats,
        up: rights,
        middle,
        down: right,
    }));
    s.done()
}

pub fn chains_at_every_tail(check: &dyn Fn(&Case)) {
    for (widths, rows) in [
        ([1, 1, 1], &[1][..]),
        ([5, 3, 7], &[1, 9]),
        ([20, 63, 20], &[7]),
        ([64, 16, 64], &[8, 17]),
        ([16, 65, 66], &[3]),
        ([100, 130, 200], &[8]),
    ] {
        for sides in [1, 2] {
            let spec = chain(widths, sides, Storage::F32, widths[0] % 2 == 0);
            rows.iter().for_each(|s| check(&filled(spec.clone(), &[("S", *s)], widths[1] + sides)));
        }
    }
}

pub fn chains_of_every_storage(check: &dyn Fn(&Case)) {
    for storage in [Storage::F16, Storage::Bf16, Storage::Q8_0, Storage::Q4_1, Storage::Q5_0] {
        let mut case = filled(chain([32, 96, 32], 2, storage, true), &[("S", 5)], 11);
        case.tolerance = 1e-4;
        check(&case);
    }
}
