use super::*;
use frit_kernels::spec::{ReduceOp, Stat};

#[test]
fn every_function_of_floats_is_computed() {
    use UnaryOp::*;
    for n in [1u64, 3, 7, 33, 257, 1500] {
        let mut c = Case::new(&["N"], &[("N", n)]);
        let x = c.arg(Given::Floats(Random(n).floats(n as usize)));
        let y = c.arg(Given::Floats(Random(n + 9).floats(n as usize)));
        let (x, y) = (c.load(x, "i0"), c.load(y, "i0"));
        let positive = c.un(Abs, x);
        let tenth = c.f(0.1);
        let positive = c.bin(BinaryOp::Add, positive, tenth);
        let ops = [
            Neg, Abs, Exp, Log, Sqrt, Rsqrt, Recip, Tanh, Erf, Sin, Cos, Sigmoid, Silu, GeluErf, GeluTanh, Relu, Floor,
            Ceil, Round, Sign,
        ];
        for op in ops {
            let from = if matches!(op, Log | Sqrt | Rsqrt | Recip) { positive } else { x };
            let v = c.un(op, from);
            let out = c.arg(Given::Out(n as usize));
            c.store(out, "i0", v);
        }
        use BinaryOp::*;
        for op in [Add, Sub, Mul, Div, Max, Min, Pow] {
            let v = c.bin(op, positive, y);
            let out = c.arg(Given::Out(n as usize));
            let half = c.f(0.5);
            let v = if op == Div { c.bin(Div, y, half) } else { v };
            c.store(out, "i0", v);
        }
        for op in [Eq, Lt, Le] {
            let (a, b) = (c.bin(op, x, y), c.bin(Lt, x, tenth));
            let (and, or) = (c.bin(And, a, b), c.bin(Or, a, b));
            let not = c.un(Not, and);
            let v = c.spec.exprs.select(or, x, y);
            let w = c.spec.exprs.cast(Scalar::F32, not);
            let v = c.bin(Add, v, w);
            let out = c.arg(Given::Out(n as usize));
            c.store(out, "i0", v);
        }
        c.check(3e-6);
    }
}

#[test]
fn integers_truth_values_and_casts_are_computed() {
    let n = 700usize;
    let mut c = Case::new(&["N"], &[("N", n as u64)]);
    let mut r = Random(5);
    let a = c.arg(Given::Ints((0..n).map(|_| (r.next() % 41) as i32 - 20).collect()));
    let (a, three) = (c.load(a, "i0"), c.spec.exprs.i32(3));
    let at = c.spec.exprs.coord(d("2*i0 - 5"));
    use BinaryOp::*;
    for op in [Add, Sub, Mul, Div, Max, Min] {
        let (v, w) = (c.bin(op, a, three), c.bin(op, at, a));
        let v = if op == Div { v } else { c.bin(Add, v, w) };
        let out = c.arg(Given::IntOut(n));
        c.store(out, "i0", v);
    }
    let out = c.arg(Given::IntOut(n));
    c.store(out, "i0", at);
    let (half, f) = (c.f(0.5), c.spec.exprs.cast(Scalar::F32, a));
    let f = c.bin(Mul, f, half);
    let (i, b) = (c.spec.exprs.cast(Scalar::I32, f), c.spec.exprs.cast(Scalar::Bool, f));
    let abs = c.un(UnaryOp::Abs, i);
    let v = c.spec.exprs.select(b, abs, three);
    let out = c.arg(Given::IntOut(n));
    c.store(out, "i0", v);
    c.check(0.0);
}

#[test]
fn index_maps_with_divisions_strides_and_values_are_followed() {
    for (s, h, e) in [(5u64, 3u64, 7u64), (33, 4, 64), (1, 1, 1), (2, 9, 257)] {
        let n = (s * h * e) as usize;
        let mut c = Case::new(&["S", "H*E"], &[("S", s), ("H", h), ("E", e)]);
        let mut r = Random(s);
        let x = c.arg(Given::Floats(r.floats(n)));
        let rows = c.arg(Given::Ints((0..s).map(|_| (r.next() % s) as i32).collect()));
        let heads = c.load(x, "div(i1, E)*S*E + i0*E + mod(i1, E)");
        let transposed = c.load(x, "i1*S + i0");
        let id = c.load(rows, "i0");
        let gathered =
            c.spec.exprs.add(Expr::Load { arg: x, index: &Dim::value(id.0) * &d("H*E") + d("i1") }, Scalar::F32);
        let wrap = c.spec.exprs.coord(d("mod(i1*3 + i0, H*E)"));
        let far = c.spec.exprs.add(Expr::Load { arg: x, index: d("i0*H*E") + Dim::value(wrap.0) }, Scalar::F32);
        let capped = c.load(x, "min(i1, 2)*min(S, 1) + max(i0, 1)*0");
        let mut v = c.bin(BinaryOp::Sub, heads, transposed);
        for (k, w) in [gathered, far, capped].into_iter().enumerate() {
            let f = c.f(k as f32 + 0.5);
            let w = c.bin(BinaryOp::Mul, w, f);
            v = c.bin(BinaryOp::Add, v, w);
        }
        let out = c.arg(Given::Out(n));
        c.store(out, "div(i1, E)*S*E + i0*E + mod(i1, E)", v);
        if n >= 3 {
            c.check(1e-6);
        }
    }
}

#[test]
fn stores_keep_to_their_ranges() {
    let mut c = Case::new(&["S", "N"], &[("S", 5), ("N", 1100)]);
    let x = c.arg(Given::Floats(Random(1).floats(5 * 1100)));
    let v = c.load(x, "i0*N + i1");
    let twice = c.bin(BinaryOp::Add, v, v);
    let (a, b, e) = (c.arg(Given::Out(5500)), c.arg(Given::Out(5500)), c.arg(Given::Out(5500)));
    c.store_when(a, "i0*N + i1", v, 1, "0", "513");
    c.store_when(b, "i0*(N - 513) + i1 - 513", twice, 1, "513", "N");
    c.store_when(e, "i1*S + i0", twice, 0, "S - 2", "S");
    c.check(0.0);
}

#[test]
fn an_output_may_take_an_inputs_storage() {
    let mut c = Case::new(&["S", "N"], &[("S", 40), ("N", 700)]);
    let x = c.arg(Given::Floats(Random(2).floats(28000)));
    let out = c.arg(Given::Over(0));
    let (a, b) = (c.load(x, "i0*N + i1"), c.load(x, "i0*N + N - 1 - i1"));
    let v = c.bin(BinaryOp::Sub, a, b);
    c.store(out, "i0*N + i1", v);
    c.check(1e-6);
}

fn norm(rows: u64, n: u64) -> Case {
    let mut c = Case::new(&["R", "N"], &[("R", rows), ("N", n)]);
    let data: Vec<f32> = Random(n).floats((rows * n) as usize).iter().map(|v| v + 100.0).collect();
    let x = c.arg(Given::Floats(data));
    let gain = half_gain(n);
    let g = c.arg(Given::Side(Storage::F16, gain));
    let (out, mean_out) = (c.arg(Given::Out((rows * n) as usize)), c.arg(Given::Out(rows as usize)));
    let (x, g) = (c.load(x, "i0*N + i1"), c.load(g, "i1"));
    let count = c.spec.exprs.coord(d("N"));
    let count = c.spec.exprs.cast(Scalar::F32, count);
    let (m, s) = (c.stat(0), c.stat(1));
    let mean = c.bin(BinaryOp::Div, m, count);
    let centred = c.bin(BinaryOp::Sub, x, m);
    let square = c.bin(BinaryOp::Mul, centred, centred);
    let eps = c.f(1e-5);
    let var = c.bin(BinaryOp::Div, s, count);
    let var = c.bin(BinaryOp::Add, var, eps);
    let inv = c.un(UnaryOp::Rsqrt, var);
    let y = c.bin(BinaryOp::Mul, centred, s);
    let y = c.bin(BinaryOp::Mul, y, g);
    c.spec.anchor = Anchor::Row {
        stats: vec![
            Stat { op: ReduceOp::Sum, value: x, finish: Some(mean) },
            Stat { op: ReduceOp::Sum, value: square, finish: Some(inv) },
        ],
    };
    c.store(out, "i0*N + i1", y);
    c.spec.stores.push(Store { arg: mean_out, index: d("i0"), value: m, when: None, per_row: true });
    c
}

fn half_gain(n: u64) -> Vec<u8> {
    Random(n + 1).stored(Storage::F16, n as usize)
}

#[test]
fn a_norm_far_from_zero_keeps_its_digits() {
    for (rows, n) in [(1, 1), (3, 7), (2, 33), (65, 257), (1, 2049)] {
        norm(rows, n).check(2e-4);
    }
}

#[test]
fn extremes_products_and_positions_are_reduced() {
    for n in [1u64, 3, 7, 33, 257, 1025] {
        let mut c = Case::new(&["3", "N"], &[("N", n)]);
        let data = Random(n).floats(3 * n as usize).iter().map(|v| (v * 8.0).round() / 8.0 + 1.25).collect();
        let x = c.arg(Given::Floats(data));
        let x = c.load(x, "i0*N + i1");
        let ops = [ReduceOp::Max, ReduceOp::Min, ReduceOp::Prod, ReduceOp::Sum];
        let mut stats: Vec<Stat> = ops.iter().map(|op| Stat { op: *op, value: x, finish: None }).collect();
        if n > 100 {
            let one = c.f(1.0);
            stats[2].value = one;
        }
        for k in 0..4 {
            let (v, out) = (c.stat(k), c.arg(Given::Out(3)));
            c.spec.stores.push(Store { arg: out, index: d("i0"), value: v, when: None, per_row: true });
        }
        stats.push(Stat { op: ReduceOp::ArgMax, value: x, finish: None });
        let v = c.spec.exprs.add(Expr::Stat(4), Scalar::I32);
        let out = c.arg(Given::IntOut(3));
        c.spec.stores.push(Store { arg: out, index: d("i0"), value: v, when: None, per_row: true });
        c.spec.anchor = Anchor::Row { stats };
        c.check(2e-6);
    }
}

#[test]
fn stored_rows_are_gathered_in_every_format() {
    let mut r = Random(77);
    for s in Storage::ALL.into_iter().filter(|s| s.scalar() == Scalar::F32) {
        let (vocab, n, ids) = (11usize, 512usize, [3, 10, 0, 3]);
        let mut c = Case::new(&["4", "N"], &[("N", n as u64)]);
        let w = c.arg(Given::Weight(s, r.stored(s, vocab * n)));
        let rows = c.arg(Given::Ints(ids.to_vec()));
        let out = c.arg(Given::Out(4 * n));
        let id = c.load(rows, "i0");
        let row = Dim::value(id.0) * d("N");
        let v = c.spec.exprs.add(Expr::Load { arg: w, index: row.clone() + d("i1") }, Scalar::F32);
        let back = c.spec.exprs.add(Expr::Load { arg: w, index: row + d("N - 1 - i1") }, Scalar::F32);
        let v = c.bin(BinaryOp::Sub, v, back);
        c.store(out, "i0*N + i1", v);
        c.check(1e-6);
    }
}

#[test]
fn an_index_outside_its_argument_is_an_error() {
    for index in ["i0 + 1", "i0 - 1", "mod(i0*7, N)*2", "i0*1000000000000000000*N", "3 - i0"] {
        let mut c = Case::new(&["N"], &[("N", 33)]);
        let x = c.arg(Given::Floats(vec![0.0; 33]));
        let out = c.arg(Given::Out(33));
        let v = c.load(x, index);
        c.store(out, "i0", v);
        assert!(matches!(c.try_run(), Err(crate::Error::Kernel { .. })), "load {index}");
        let mut c = Case::new(&["N"], &[("N", 33)]);
        let x = c.arg(Given::Floats(vec![0.0; 33]));
        let out = c.arg(Given::Out(33));
        let v = c.load(x, "i0");
        c.store(out, index, v);
        assert!(matches!(c.try_run(), Err(crate::Error::Kernel { .. })), "store {index}");
    }
}
