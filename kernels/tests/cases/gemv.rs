//! Matrix-vector products.

use super::gemm::filled;
use crate::support::Case;
use crate::support::blocks::Data;
use crate::support::build::{SpecBuilder, dim};
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{
    Anchor, ArgId, BinaryOp, ColumnStats, ExprId, FEW_PARTIAL_COLUMNS, KernelSpec, LeftStore, PartialKind, Partials,
    ReduceOp, Space, Stat, UnaryOp,
};
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::render;

pub fn plain(m: u64, n: u64, k: u64, storage: Storage) -> KernelSpec {
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

/// Statistic number `j`: the root of the mean of squares, `value` being their sum over `k` elements for each place.
fn root_of_mean(s: &mut SpecBuilder, value: ExprId, k: u64, j: u8) -> Stat {
    let (raw, share, eps) = (s.stat(j, Scalar::F32), s.f(1.0 / k as f32), s.f(1e-5));
    let mean = s.bin(BinaryOp::Mul, raw, share);
    let mean = s.bin(BinaryOp::Add, mean, eps);
    let finish = Some(s.un(UnaryOp::Rsqrt, mean));
    Stat { op: ReduceOp::Sum, value, finish }
}

/// `v`, of `k` elements along an axis, behind an RMS norm with a gain whose statistic has number `j`.
fn normed_value(s: &mut SpecBuilder, v: ExprId, gain: ArgId, (k, axis): (u64, &str), j: u8) -> (ExprId, Stat) {
    let value = s.bin(BinaryOp::Mul, v, v);
    let stat = root_of_mean(s, value, k, j);
    let (scale, gain) = (s.stat(j, Scalar::F32), s.load(gain, axis));
    let v = s.bin(BinaryOp::Mul, v, scale);
    (s.bin(BinaryOp::Mul, v, gain), stat)
}

/// Row i0 of `x`, of `k` elements along an axis, behind an RMS norm with a gain, and the statistic that takes.
fn normed(s: &mut SpecBuilder, (x, gain): (ArgId, ArgId), k: u64, axis: &str) -> (ExprId, Vec<Stat>) {
    let v = s.load(x, &format!("{k}*i0 + {axis}"));
    let (lhs, stat) = normed_value(s, v, gain, (k, axis), 0);
    (lhs, vec![stat])
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

/// A row a sequence, bare or normalised, times a weight of `n` rows: everything but what is stored.
fn rows_by_weight(k: u64, n: u64, storage: Storage, is_normed: bool) -> SpecBuilder {
    let mut s = SpecBuilder::new("rows", &["B", "1", &n.to_string()], &["B"]).few_rows();
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*B"));
    let w = s.arg("w", Space::Weight, storage, &(n * k).to_string());
    let gain = s.arg("gain", Space::Side, Storage::F32, &k.to_string());
    let (lhs, lhs_stats) = match is_normed {
        true => normed(&mut s, (x, gain), k, "i3"),
        false => (s.load(x, &format!("{k}*i0 + i3")), Vec::new()),
    };
    let rhs = vec![s.load(w, &format!("{k}*i2 + i3"))];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
    s
}

/// Rows, bare and normalised, of which a workgroup of a software driver takes several widths of columns, the last of them cut
/// short and with passes behind the end.
pub fn rows_kept_for_several_passes(check: &dyn Fn(&Case)) {
    for (rows, k, n, storage, is_normed) in [
        (1i64, 64u64, 3000u64, Storage::F32, true),
        (2, 96, 2600, Storage::Q4_1, true),
        (1, 96, 5001, Storage::Q8_0, false),
        (2, 40, 3333, Storage::F16, false),
    ] {
        let mut s = rows_by_weight(k, n, storage, is_normed);
        let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*B"));
        let acc = s.acc(0);
        s.store(y, &format!("{n}*i0 + i2"), acc);
        let mut case = filled(s.done(), &[("B", rows)], k + n);
        case.tolerance = 1e-4;
        let lanes = render(&case.spec, &Capabilities::webgpu(Tier::Cpu)).unwrap();
        assert!(lanes.tile.iter().any(|(name, n)| name == "passes" && *n > 1), "{:?}", lanes.tile);
        check(&case);
    }
}

/// Two products of the same rows whose weights are stored in different ways: quants that software drivers convert where they
/// lie, and others; rows that are whole pairs of blocks, and such that are not.
pub fn sides_of_different_storage(check: &dyn Fn(&Case)) {
    for (rows, k, first, second) in [
        ("1", 128u64, Storage::Q4_1, Storage::Q8_0),
        ("B", 256, Storage::Q6K, Storage::F32),
        ("1", 96, Storage::Bf16, Storage::Q5_0),
        ("9", 512, Storage::Q4K, Storage::Iq4Nl),
        ("9", 64, Storage::Q8_0, Storage::Q4_0),
    ] {
        let n = 43u64;
        let mut s = SpecBuilder::new("sides", &[rows, &n.to_string()], &["B"]);
        s.spec.few_rows = rows == "B";
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*{rows}"));
        let rhs = [("u", first), ("v", second)].map(|(name, storage)| {
            let w = s.arg(name, Space::Weight, storage, &(n * k).to_string());
            s.load(w, &format!("{k}*i1 + i2"))
        });
        let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*{rows}"));
        let lhs = s.load(x, &format!("{k}*i0 + i2"));
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs: rhs.to_vec() };
        let (u, v) = (s.acc(0), s.acc(1));
        let value = s.bin(BinaryOp::Sub, u, v);
        s.store(y, &format!("{n}*i0 + i1"), value);
        let mut case = filled(s.done(), &[("B", 3)], k + n);
        case.tolerance = 1e-4;
        check(&case);
    }
}

/// Statistics of the results of few rows beside them, with tiles that end inside, equal largest elements, and rows in several
/// passes.
pub fn statistics_of_few_rows_by_tiles(check: &dyn Fn(&Case)) {
    for (rows, k, n, storage, is_normed) in [
        (1i64, 8u64, 5u64, Storage::F32, false),
        (2, 64, 40, Storage::Q8_0, true),
        (3, 96, 1003, Storage::Q4_1, true),
        (1, 37, 19, Storage::F32, false),
        (2, 2048, 5001, Storage::Bf16, true),
        (1, 1100, 33, Storage::F16, false),
    ] {
        for kind in [PartialKind::Largest, PartialKind::Squares, PartialKind::Moments] {
            let (numbers, tiles) = (u64::from(kind.numbers()), n.div_ceil(u64::from(FEW_PARTIAL_COLUMNS)));
            let mut s = rows_by_weight(k, n, storage, is_normed);
            let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*B"));
            let t = s.out("t", Space::Arena, Storage::F32, &format!("{}*B", tiles * numbers));
            let (acc, most) = (s.acc(0), s.f(0.25));
            let value = s.bin(BinaryOp::Min, acc, most);
            s.store(y, &format!("{n}*i0 + i2"), value);
            let index = dim(&format!("{}*i0 + {numbers}*i2", tiles * numbers));
            s.spec.partials = Some(Partials { value, kind, columns: FEW_PARTIAL_COLUMNS, arg: t, index });
            let mut case = filled(s.done(), &[("B", rows)], k + n);
            case.tolerance = 1e-4;
            check(&case);
        }
    }
}

/// The other end: the place of the largest element of a row, from those of its tiles.
pub fn a_place_of_tiles(check: &dyn Fn(&Case)) {
    for (rows, tiles) in [(1i64, 1u64), (3, 40), (2, 700)] {
        let mut s = SpecBuilder::new("place", &["B", &tiles.to_string()], &["B"]);
        let t = s.arg("t", Space::Arena, Storage::F32, &format!("{}*B", 2 * tiles));
        let y = s.out("y", Space::Ints, Storage::I32, "B");
        let value = s.load(t, &format!("{}*i0 + 2*i1", 2 * tiles));
        s.spec.anchor = Anchor::Row { stats: vec![Stat { op: ReduceOp::ArgMax, value, finish: None }] };
        let best = s.stat(0, Scalar::I32);
        let place = s.load_at(t, dim(&format!("{}*i0 + 2*v{} + 1", 2 * tiles, best.0)));
        let place = s.spec.exprs.cast(Scalar::I32, place);
        s.store(y, "i0", place).per_row = true;
        let mut case = filled(s.done(), &[("B", rows)], tiles);
        let Data::F32(v) = &mut case.data[0] else { panic!() };
        for (i, pair) in v.chunks_mut(2).enumerate() {
            pair[0] = ((i * 7) % 23) as f32;
            pair[1] = (8 * i + i % 5) as f32;
        }
        // Of a row without numbers above the least float, the first tile has the first place.
        for (i, pair) in v.chunks_mut(2).take(tiles as usize).enumerate() {
            (pair[0], pair[1]) = (f32::MIN, 8.0 * i as f32);
        }
        check(&case);
    }
}

/// Rows normalised in front of two products that meet in one element: of a tile's worth of columns, and of so many that a
/// workgroup takes them in several passes; rows that end inside a chunk of lanes, and rows of one chunk each.
pub fn norms_in_front_of_few_and_many_columns(check: &dyn Fn(&Case)) {
    for (rows, k, n, sides) in [(2i64, 72u64, 21u64, 2u64), (1, 256, 9, 1), (1, 2048, 2501, 2), (2, 2048, 6400, 1)] {
        let mut s = SpecBuilder::new("normed", &["B", "1", &n.to_string()], &["B"]).few_rows();
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

/// `norm(x + norm(y))` in front of a product, of which the sum and the normalised rows are wanted as well: rows of one chunk
/// of lanes, of more than a workgroup keeps, and such that end inside a chunk.
pub fn a_norm_in_front_of_a_norm(check: &dyn Fn(&Case)) {
    for (rows, k, n) in [(1i64, 256u64, 20u64), (3, 72, 9), (2, 1100, 33), (1, 5000, 17)] {
        let mut s = SpecBuilder::new("pair", &["B", "1", &n.to_string()], &["B"]).few_rows();
        let [x, y] = ["x", "y"].map(|name| s.arg(name, Space::Arena, Storage::F32, &format!("{k}*B")));
        let w = s.arg("w", Space::Weight, Storage::Bf16, &(n * k).to_string());
        let [inner, outer] = ["inner", "outer"].map(|name| s.arg(name, Space::Side, Storage::F32, &k.to_string()));
        let z = s.out("z", Space::Arena, Storage::F32, &format!("{n}*B"));
        let [sum, rest] = ["sum", "rest"].map(|name| s.out(name, Space::Arena, Storage::F32, &format!("{k}*B")));
        let at = format!("{k}*i0 + i3");
        let (own, before) = (s.load(x, &at), s.load(y, &at));
        let (v, first) = normed_value(&mut s, before, inner, (k, "i3"), 0);
        let total = s.bin(BinaryOp::Add, own, v);
        let (lhs, second) = normed_value(&mut s, total, outer, (k, "i3"), 1);
        let rhs = vec![s.load(w, &format!("{k}*i2 + i3"))];
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: vec![first, second], rhs };
        s.spec.left =
            [(sum, total), (rest, lhs)].map(|(arg, value)| LeftStore { arg, index: dim(&at), value }).to_vec();
        let acc = s.acc(0);
        s.store(z, &format!("{n}*i0 + i2"), acc);
        let mut case = filled(s.done(), &[("B", rows)], k + n);
        case.tolerance = 1e-4;
        check(&case);
    }
}

/// Two norms of heads behind products, one around a mean, with columns that none takes: heads of fewer columns than a workgroup
/// takes at once, of more, and of none of its multiples; one element of a head a column, and two.
pub fn norms_of_heads_behind_a_product(check: &dyn Fn(&Case)) {
    for sizes in [(1, 64, 5, 2), (2, 33, 24, 1), (3, 136, 40, 2), (1, 96, 256, 1)] {
        check(&heads(sizes));
    }
}

/// Five heads of `width` columns, of `sides` elements each, for `rows` rows of `k`: two as they are behind a norm, two around
/// their mean, and one that no norm takes. Rows are normalised in front but for heads of 24.
pub fn heads((rows, k, width, sides): (i64, u64, u64, u64)) -> Case {
    let (runs, normed_in_front) = (5, width != 24);
    let n = runs * width;
    let mut s = SpecBuilder::new("heads", &["B", "1", &n.to_string()], &["B"]).few_rows();
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*B"));
    let w = s.arg("w", Space::Weight, Storage::F16, &(sides * n * k).to_string());
    let gain = s.arg("gain", Space::Side, Storage::F32, &k.to_string());
    let scale = s.arg("scale", Space::Side, Storage::F32, &(sides * width).to_string());
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{}*B", sides * n));
    let at = format!("{k}*i0 + i3");
    let (lhs, lhs_stats) = match normed_in_front {
        true => normed(&mut s, (x, gain), k, "i3"),
        false => (s.load(x, &at), Vec::new()),
    };
    let rhs = (0..sides).map(|j| s.load(w, &format!("{}*i2 + {} + i3", sides * k, j * k))).collect();
    let first = lhs_stats.len() as u8;
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
    let accs: Vec<ExprId> = (0..sides as u8).map(|j| s.acc(j)).collect();
    let total =
        |s: &mut SpecBuilder, v: &[ExprId]| v.iter().copied().reduce(|a, b| s.bin(BinaryOp::Add, a, b)).unwrap();
    let squares = |s: &mut SpecBuilder, v: &[ExprId]| {
        let each: Vec<ExprId> = v.iter().map(|x| s.bin(BinaryOp::Mul, *x, *x)).collect();
        total(s, &each)
    };
    let value = squares(&mut s, &accs);
    let plain = root_of_mean(&mut s, value, sides * width, first);
    let (raw, share) = (s.stat(first + 1, Scalar::F32), s.f(1.0 / (sides * width) as f32));
    let finish = Some(s.bin(BinaryOp::Mul, raw, share));
    let mean = Stat { op: ReduceOp::Sum, value: total(&mut s, &accs), finish };
    let apart: Vec<ExprId> = accs.iter().map(|a| s.bin(BinaryOp::Sub, *a, raw)).collect();
    let value = squares(&mut s, &apart);
    let around = root_of_mean(&mut s, value, sides * width, first + 2);
    s.spec.columns = Some(ColumnStats { width, stats: vec![plain, mean, around] });
    for j in 0..sides as usize {
        let place = format!("{}*i0 + {sides}*i2 + {j}", sides * n);
        let (one, two) = (s.stat(first, Scalar::F32), s.stat(first + 2, Scalar::F32));
        let gain = s.load(scale, &format!("{sides}*mod(i2, {width}) + {j}"));
        let head = s.bin(BinaryOp::Mul, accs[j], one);
        let head = s.bin(BinaryOp::Mul, head, gain);
        s.store_when(y, &place, head, 2, "0", &(2 * width).to_string());
        let other = s.bin(BinaryOp::Mul, apart[j], two);
        s.store_when(y, &place, other, 2, &(2 * width).to_string(), &(4 * width).to_string());
        s.store_when(y, &place, accs[j], 2, &(4 * width).to_string(), &n.to_string());
    }
    let mut case = filled(s.done(), &[("B", rows)], k + n);
    case.tolerance = 2e-4;
    case
}

pub fn gate_and_up_meet_in_one_lane(check: &dyn Fn(&Case)) {
    let (n, k) = (35u64, 64u64);
    let mut s = SpecBuilder::new("gated", &["B", "1", &n.to_string()], &["B"]).few_rows();
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
