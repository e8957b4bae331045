use super::*;
use frit_kernels::spec::{LeftStore, ReduceOp, Stat};

/// `[M, K] · [N, K]ᵀ` with a bias, the right side stored as `s`.
fn linear(s: Storage, m: u64, n: u64, k: u64) -> Case {
    let mut r = Random(m * 1000 + n * 10 + k);
    let mut c = Case::new(&["M", "N"], &[("M", m), ("N", n), ("K", k)]);
    let x = c.arg(Given::Floats(r.floats((m * k) as usize)));
    let w = c.arg(Given::Weight(s, r.stored(s, (n * k) as usize)));
    let b = c.arg(Given::Side(Storage::F32, r.stored(Storage::F32, n as usize)));
    let out = c.arg(Given::Out((m * n) as usize));
    let (lhs, rhs) = (c.load(x, "i0*K + i2"), c.load(w, "i1*K + i2"));
    let (acc, b) = (c.acc(0), c.load(b, "i1"));
    let y = c.bin(BinaryOp::Add, acc, b);
    c.spec.anchor = Anchor::MatMul { k: d("K"), lhs, lhs_stats: Vec::new(), rhs: vec![rhs] };
    c.store(out, "i0*N + i1", y);
    c
}

#[test]
fn every_storage_is_multiplied() {
    for s in Storage::ALL.into_iter().filter(|s| s.scalar() == Scalar::F32) {
        linear(s, 3, 129, 512).check(3e-5);
        for (m, n) in [(1, 33), (2, 1), (7, 33), (8, 7), (33, 17)] {
            linear(s, m, n, 256).check(3e-5);
            if s.block_elems() == 32 {
                linear(s, m, n, 96).check(3e-5);
            }
            if s.block_elems() == 1 {
                for k in [1, 3, 7, 33, 257] {
                    linear(s, m, n, k).check(3e-5);
                }
            }
        }
    }
}

#[test]
fn rows_that_begin_inside_a_block_are_multiplied() {
    for m in [1, 9] {
        let mut c = linear(Storage::Q8_0, m, 8, 24);
        c.check(3e-5);
        c.spec.anchor = match c.spec.anchor.clone() {
            Anchor::MatMul { lhs, lhs_stats, .. } => {
                let rhs = c.load(ArgId(1), "i1*16 + i2 + 8");
                Anchor::MatMul { k: d("K"), lhs, lhs_stats, rhs: vec![rhs] }
            }
            other => other,
        };
        c.check(3e-5);
    }
}

#[test]
fn a_norm_is_applied_to_the_left_side_and_gates_share_it() {
    for (s, m) in [(Storage::F32, 1), (Storage::Q4_1, 3), (Storage::Q8_0, 7), (Storage::F16, 20), (Storage::Q4_0, 65)] {
        let (n, k) = (70u64, 96u64);
        let mut r = Random(m);
        let mut c = Case::new(&["M", "N"], &[("M", m), ("N", n), ("K", k)]);
        let x = c.arg(Given::Floats(r.floats((m * k) as usize)));
        let res = c.arg(Given::Floats(r.floats((m * k) as usize)));
        let gain = c.arg(Given::Side(Storage::Bf16, r.stored(Storage::Bf16, k as usize)));
        let gate = c.arg(Given::Weight(s, r.stored(s, (n * k) as usize)));
        let up = c.arg(Given::Weight(s, r.stored(s, (n * k) as usize)));
        let out = c.arg(Given::Out((m * n) as usize));
        let normed = c.arg(Given::Out((m * k) as usize));
        let (x, res, gain) = (c.load(x, "i0*K + i2"), c.load(res, "i0*K + i2"), c.load(gain, "i2"));
        let x = c.bin(BinaryOp::Add, x, res);
        let square = c.bin(BinaryOp::Mul, x, x);
        let (stat, count, eps) = (c.stat(0), c.f(k as f32), c.f(1e-6));
        let mean = c.bin(BinaryOp::Div, stat, count);
        let mean = c.bin(BinaryOp::Add, mean, eps);
        let inv = c.un(UnaryOp::Rsqrt, mean);
        let lhs = c.bin(BinaryOp::Mul, x, stat);
        let lhs = c.bin(BinaryOp::Mul, lhs, gain);
        let (gate, up) = (c.load(gate, "i1*K + i2"), c.load(up, "i1*K + i2"));
        c.spec.anchor = Anchor::MatMul {
            k: d("K"),
            lhs,
            lhs_stats: vec![Stat { op: ReduceOp::Sum, value: square, finish: Some(inv) }],
            rhs: vec![gate, up],
        };
        let (a, b) = (c.acc(0), c.acc(1));
        let a = c.un(UnaryOp::Silu, a);
        let y = c.bin(BinaryOp::Mul, a, b);
        c.store(out, "i0*N + i1", y);
        c.spec.left = vec![LeftStore { arg: normed, index: d("i0*K + i2"), value: lhs }];
        c.check(1e-4);
    }
}

#[test]
fn paired_rows_are_rotated_and_written_behind_the_cache() {
    for (s, m) in [(Storage::F32, 1u64), (Storage::Q8_0, 2), (Storage::Q4_0, 5), (Storage::Q6K, 3), (Storage::F32, 19)]
    {
        let (heads, hd, k) = (3u64, 10u64, 256u64);
        let half = hd / 2;
        let mut r = Random(m + 31);
        let sizes = [("S", m), ("P", 4), ("K", k), ("half", half), ("hd", hd), ("T", 40)];
        let mut c = Case::new(&["S", "3*half"], &sizes);
        let x = c.arg(Given::Floats(r.floats((m * k) as usize)));
        let w = c.arg(Given::Weight(s, r.stored(s, (heads * hd * k) as usize)));
        let cos = c.arg(Given::Side(Storage::F32, r.stored(Storage::F32, (40 * half) as usize)));
        let sin = c.arg(Given::Side(Storage::F32, r.stored(Storage::F32, (40 * half) as usize)));
        let out = c.arg(Given::Out((heads * 40 * hd) as usize));
        let lhs = c.load(x, "i0*K + i2");
        let row = "div(i1, half)*hd*K + mod(i1, half)*K + i2";
        let (r0, r1) = (c.load(w, row), c.load(w, &format!("{row} + half*K")));
        c.spec.anchor = Anchor::MatMul { k: d("K"), lhs, lhs_stats: Vec::new(), rhs: vec![r0, r1] };
        let at = "(P + i0)*half + mod(i1, half)";
        let (cos, sin) = (c.load(cos, at), c.load(sin, at));
        let (a, b) = (c.acc(0), c.acc(1));
        let (ac, bs) = (c.bin(BinaryOp::Mul, a, cos), c.bin(BinaryOp::Mul, b, sin));
        let (as_, bc) = (c.bin(BinaryOp::Mul, a, sin), c.bin(BinaryOp::Mul, b, cos));
        let (lo, hi) = (c.bin(BinaryOp::Sub, ac, bs), c.bin(BinaryOp::Add, as_, bc));
        let to = "div(i1, half)*T*hd + (P + i0)*hd + mod(i1, half)";
        c.store(out, to, lo);
        c.store(out, &format!("{to} + half"), hi);
        c.check(1e-4);
    }
}

#[test]
fn ranges_of_columns_go_to_outputs_of_their_own() {
    for m in [1u64, 12] {
        let mut c = linear(Storage::F16, m, 130, 64);
        c.spec.stores.clear();
        let (q, k) = (c.arg(Given::Out((m * 70) as usize)), c.arg(Given::Out((m * 60) as usize)));
        let (acc, two) = (c.acc(0), c.f(2.0));
        let twice = c.bin(BinaryOp::Mul, acc, two);
        c.store_when(q, "i0*70 + i1", acc, 1, "0", "70");
        c.store_when(k, "i0*60 + i1 - 70", twice, 1, "70", "N");
        c.check(3e-5);
    }
}

#[test]
fn activations_are_multiplied_in_batches() {
    for (h, m, n, k) in [(3u64, 1u64, 7u64, 33u64), (2, 9, 33, 7), (4, 40, 65, 16), (1, 3, 1, 257)] {
        for along_n in [false, true] {
            for shared in [false, true] {
                let mut r = Random(h * m);
                let mut c = Case::new(&["2", "H", "M", "N"], &[("H", h), ("M", m), ("N", n), ("K", k)]);
                let x = c.arg(Given::Floats(r.floats((2 * h * m * k) as usize)));
                let y = c.arg(Given::Floats(r.floats((2 * h * n * k) as usize)));
                let z = c.arg(Given::Floats(r.floats((2 * h * n * k) as usize)));
                let out = c.arg(Given::Out((2 * h * m * n) as usize));
                let lhs = c.load(x, "i0*H*M*K + i1*M*K + i2*K + i4");
                let batch = if shared { "0" } else { "i0*H*N*K + i1*N*K" };
                let inner = if along_n { "i4*N + i3" } else { "i3*K + i4" };
                let plain = c.load(y, &format!("{batch} + {inner}"));
                let other = c.load(z, &format!("{batch} + {inner}"));
                let product = c.bin(BinaryOp::Mul, plain, other);
                c.spec.anchor = Anchor::MatMul { k: d("K"), lhs, lhs_stats: Vec::new(), rhs: vec![plain, product] };
                let (a, b) = (c.acc(0), c.acc(1));
                let v = c.bin(BinaryOp::Sub, a, b);
                c.store(out, "i2*2*H*N + i0*H*N + i1*N + i3", v);
                c.check(3e-5);
            }
        }
    }
}

#[test]
fn four_products_share_a_left_side_and_a_residual_is_replaced() {
    for m in [1u64, 30] {
        let (n, k) = (48u64, 64u64);
        let mut r = Random(m);
        let mut c = Case::new(&["M", "N"], &[("M", m), ("N", n), ("K", k)]);
        let x = c.arg(Given::Floats(r.floats((m * k) as usize)));
        let res = c.arg(Given::Floats(r.floats((m * n) as usize)));
        let w = c.arg(Given::Weight(Storage::Q5_1, r.stored(Storage::Q5_1, (4 * n * k) as usize)));
        let out = c.arg(Given::Over(1));
        let lhs = c.load(x, "i0*K + i2");
        let rhs = (0..4).map(|j| c.load(w, &format!("(i1 + {j}*N)*K + i2"))).collect();
        c.spec.anchor = Anchor::MatMul { k: d("K"), lhs, lhs_stats: Vec::new(), rhs };
        let mut v = c.load(res, "i0*N + i1");
        for j in 0..4 {
            let (a, f) = (c.acc(j), c.f(j as f32 - 1.5));
            let a = c.bin(BinaryOp::Mul, a, f);
            v = c.bin(BinaryOp::Add, v, a);
        }
        c.store(out, "i0*N + i1", v);
        c.check(1e-4);
    }
}

#[test]
fn a_row_outside_the_matrix_is_an_error() {
    for m in [1, 9] {
        let mut c = linear(Storage::Q4_0, m, 8, 64);
        let lhs = c.load(ArgId(0), "i0*K + i2");
        let rhs = c.load(ArgId(1), "(i1 + 1)*K + i2");
        c.spec.anchor = Anchor::MatMul { k: d("K"), lhs, lhs_stats: Vec::new(), rhs: vec![rhs] };
        assert!(matches!(c.try_run(), Err(crate::Error::Kernel { .. })));
    }
}

#[test]
fn a_row_of_the_result_does_not_depend_on_the_others() {
    for s in [Storage::F32, Storage::Q8_0, Storage::Q4K] {
        let full = linear(s, 7, 40, 256);
        let want = full.try_run().unwrap();
        let Given::Floats(x) = &full.given[0] else { panic!("floats") };
        for row in 0..7usize {
            let mut one = linear(s, 1, 40, 256);
            one.given[1] = full.given[1].clone();
            one.given[2] = full.given[2].clone();
            one.given[0] = Given::Floats(x[row * 256..(row + 1) * 256].to_vec());
            let got = one.try_run().unwrap();
            assert_eq!(got[0].as_f32().unwrap(), &want[0].as_f32().unwrap()[row * 40..(row + 1) * 40]);
        }
    }
}
