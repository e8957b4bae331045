//! Blocked matrix products.

use crate::support::Case;
use crate::support::blocks::{Data, Random};
use crate::support::build::{SpecBuilder, dim};
use frit_kernels::dtype::{HalfFormat, Scalar, Storage};
use frit_kernels::spec::{
    AliasKind, Anchor, ArgId, BinaryOp, ExprId, KernelSpec, LeftStore, PARTIAL_COLUMNS, PartialKind, Partials,
    ReduceOp, Space, Stat, UnaryOp,
};

/// `x[S, k] · w[n, k]ᵀ` for every weight, and what is stored.
fn product(
    (n, k): (u64, u64),
    storages: &[Storage],
    store: impl FnOnce(&mut SpecBuilder, ArgId),
) -> (KernelSpec, Vec<ArgId>) {
    let mut s = SpecBuilder::new("product", &["S", &n.to_string()], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
    let lhs = s.load(x, &format!("{k}*i0 + i2"));
    let mut rhs = Vec::new();
    let mut weights = Vec::new();
    for (i, storage) in storages.iter().enumerate() {
        let w = s.arg(&format!("w{i}"), Space::Weight, *storage, &(n * k).to_string());
        rhs.push(s.load(w, &format!("{k}*i1 + i2")));
        weights.push(w);
    }
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*S"));
    store(&mut s, y);
    (s.done(), weights)
}

pub fn plain((n, k): (u64, u64), storage: Storage) -> KernelSpec {
    product((n, k), &[storage], |s, y| {
        let acc = s.acc(0);
        s.store(y, &format!("{n}*i0 + i1"), acc);
    })
    .0
}

/// Random contents for every argument; what is written starts at zero.
pub fn filled(spec: KernelSpec, sizes: &[(&str, i64)], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let env = |s: &frit_kernels::dim::Sym| match s {
        frit_kernels::dim::Sym::Size(n) => sizes.iter().find(|z| z.0 == &**n).map(|z| z.1),
        _ => None,
    };
    let data = spec.args.iter().map(|a| {
        let len = usize::try_from(a.len.eval(&env).unwrap()).unwrap();
        if a.written { Data::F32(vec![0.0; len]) } else { random.stored(a.storage, len) }
    });
    let data = data.collect();
    Case::new(spec, sizes, data)
}

pub fn every_tail_of_rows_columns_and_sum(check: &dyn Fn(&Case)) {
    for m in [1, 7, 8, 9, 63, 65] {
        check(&filled(plain((9, 5), Storage::F32), &[("S", m)], m as u64));
    }
    for n in [1, 3, 4, 63, 64, 65, 130] {
        check(&filled(plain((n, 8), Storage::F32), &[("S", 3)], n));
    }
    for k in [1, 2, 3, 4, 7, 15, 16, 17, 33, 100] {
        check(&filled(plain((5, k), Storage::F32), &[("S", 10)], k));
    }
    check(&filled(plain((64, 64), Storage::F32), &[("S", 64)], 1));
    check(&filled(plain((129, 48), Storage::F32), &[("S", 130)], 2));
}

pub fn weights_of_every_storage(check: &dyn Fn(&Case)) {
    for storage in Storage::ALL {
        if matches!(storage, Storage::I32 | Storage::Bool) {
            continue;
        }
        let depths: &[u64] = match storage.block_elems() {
            1 => &[1, 3, 6, 8, 12, 33],
            32 => &[32, 96],
            _ => &[256, 512],
        };
        for k in depths {
            let mut case = filled(plain((37, *k), storage), &[("S", 11)], *k);
            case.tolerance = 1e-4;
            check(&case);
        }
    }
}

pub fn several_accumulators_meet_in_the_epilogue(check: &dyn Fn(&Case)) {
    for (count, storage) in
        [(2, Storage::F32), (2, Storage::Q8_0), (3, Storage::Bf16), (4, Storage::Q4_0), (4, Storage::F32)]
    {
        let (n, k) = (35, 64);
        let (spec, _) = product((n, k), &vec![storage; count], |s, y| {
            let gain = s.arg("gain", Space::Side, Storage::F32, "35");
            let gate = s.acc(0);
            let gate = s.un(UnaryOp::Silu, gate);
            let mut value = s.load(gain, "i1");
            value = s.bin(BinaryOp::Mul, value, gate);
            for j in 1..count {
                let a = s.acc(j as u8);
                value = s.bin(BinaryOp::Add, value, a);
            }
            s.store(y, &format!("{n}*i0 + i1"), value);
        });
        let mut case = filled(spec, &[("S", 70)], count as u64);
        case.tolerance = 1e-4;
        check(&case);
    }
}

pub fn mixed_storages_and_interleaved_rows(check: &dyn Fn(&Case)) {
    // Accumulators read the even and odd rows of one weight, and a second weight of another storage.
    let mut s = SpecBuilder::new("interleaved", &["S", "20"], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "32*S");
    let w = s.arg("w", Space::Weight, Storage::Q8_0, "40*32");
    let v = s.arg("v", Space::Weight, Storage::F32, "20*32");
    let y = s.out("y", Space::Arena, Storage::F32, "20*S");
    let lhs = s.load(x, "32*i0 + i2");
    let rhs = vec![s.load(w, "64*i1 + i2"), s.load(w, "64*i1 + 32 + i2"), s.load(v, "32*i1 + i2")];
    s.spec.anchor = Anchor::MatMul { k: dim("32"), lhs, lhs_stats: Vec::new(), rhs };
    let (a, b, c) = (s.acc(0), s.acc(1), s.acc(2));
    let ab = s.bin(BinaryOp::Mul, a, b);
    let value = s.bin(BinaryOp::Add, ab, c);
    s.store(y, "20*i0 + i1", value);
    check(&filled(s.done(), &[("S", 19)], 5));
}

pub fn batched_products_of_activations(check: &dyn Fn(&Case)) {
    // Right side contiguous along k, then along n; batch axes B and H, M symbolic.
    for (name, index) in [("along_k", "12*T*i0 + 12*i3 + i4"), ("along_n", "12*T*i0 + T*i4 + i3")] {
        let mut s = SpecBuilder::new(name, &["B", "3", "S", "T"], &["B", "S", "T"]);
        let x = s.arg("x", Space::Arena, Storage::F32, "36*B*S");
        let z = s.arg("z", Space::Arena, Storage::F32, "12*B*T");
        let y = s.out("y", Space::Arena, Storage::F32, "3*B*S*T");
        let lhs = s.load(x, "36*S*i0 + 36*i2 + 12*i1 + i4");
        let rhs = vec![s.load(z, index)];
        s.spec.anchor = Anchor::MatMul { k: dim("12"), lhs, lhs_stats: Vec::new(), rhs };
        let acc = s.acc(0);
        s.store(y, "3*S*T*i0 + S*T*i1 + T*i2 + i3", acc);
        let spec = s.done();
        for (b, m, t) in [(1, 1, 1), (2, 7, 9), (2, 66, 5), (1, 3, 70)] {
            check(&filled(spec.clone(), &[("B", b), ("S", m), ("T", t)], 3));
        }
    }
}

pub fn a_sum_of_symbolic_extent(check: &dyn Fn(&Case)) {
    let mut s = SpecBuilder::new("values", &["2", "S", "10"], &["S", "T"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "2*S*T");
    let z = s.arg("z", Space::Kv(0), Storage::F32, "20*T");
    let y = s.out("y", Space::Arena, Storage::F32, "20*S");
    let lhs = s.load(x, "S*T*i0 + T*i1 + i3");
    let rhs = vec![s.load(z, "10*T*i0 + 10*i3 + i2")];
    s.spec.anchor = Anchor::MatMul { k: dim("T"), lhs, lhs_stats: Vec::new(), rhs };
    let acc = s.acc(0);
    s.store(y, "10*S*i0 + 10*i1 + i2", acc);
    let spec = s.done();
    for (m, t) in [(1, 1), (5, 15), (9, 16), (65, 17), (4, 35)] {
        check(&filled(spec.clone(), &[("S", m), ("T", t)], 7));
    }
}

pub fn batches_flatten_into_rows(check: &dyn Fn(&Case)) {
    let mut s = SpecBuilder::new("flat", &["B", "S", "21"], &["B", "S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "16*B*S");
    let w = s.arg("w", Space::Weight, Storage::F32, "21*16");
    let bias = s.arg("bias", Space::Side, Storage::F32, "21");
    let y = s.out("y", Space::Arena, Storage::F32, "21*B*S");
    let lhs = s.load(x, "16*B*i1 + 16*i0 + i3");
    let rhs = vec![s.load(w, "16*i2 + i3")];
    s.spec.anchor = Anchor::MatMul { k: dim("16"), lhs, lhs_stats: Vec::new(), rhs };
    let (acc, add) = (s.acc(0), s.load(bias, "i2"));
    let value = s.bin(BinaryOp::Add, acc, add);
    s.store(y, "21*S*i0 + 21*i1 + i2", value);
    let spec = s.done();
    for (b, m) in [(1, 1), (3, 5), (13, 11)] {
        check(&filled(spec.clone(), &[("B", b), ("S", m)], 7));
    }
}

pub fn prologue_epilogue_and_a_residual_in_place(check: &dyn Fn(&Case)) {
    let mut s = SpecBuilder::new("residual", &["S", "24"], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "20*S");
    let gain = s.arg("gain", Space::Side, Storage::F32, "20");
    let w = s.arg("w", Space::Weight, Storage::F16, "24*20");
    let bias = s.arg("bias", Space::Side, Storage::F32, "24");
    let r = s.arg("r", Space::Arena, Storage::F32, "24*S");
    let y = s.out("y", Space::Arena, Storage::F32, "24*S");
    let (v, g) = (s.load(x, "20*i0 + i2"), s.load(gain, "i2"));
    let v = s.un(UnaryOp::GeluTanh, v);
    let lhs = s.bin(BinaryOp::Mul, v, g);
    let rhs = vec![s.load(w, "20*i1 + i2")];
    s.spec.anchor = Anchor::MatMul { k: dim("20"), lhs, lhs_stats: Vec::new(), rhs };
    let (acc, b, before) = (s.acc(0), s.load(bias, "i1"), s.load(r, "24*i0 + i1"));
    let v = s.bin(BinaryOp::Add, acc, b);
    let v = s.bin(BinaryOp::Add, v, before);
    s.store(y, "24*i0 + i1", v);
    s.alias(y, r, AliasKind::SameElement);
    let mut case = filled(s.done(), &[("S", 37)], 11);
    case.shared = vec![(5, 4)];
    case.data[5] = case.data[4].clone();
    check(&case);
}

pub fn stores_in_ranges_of_columns(check: &dyn Fn(&Case)) {
    // Columns 0..12 are queries, 12..18 keys and 18..24 values of a slot.
    let mut s = SpecBuilder::new("ranges", &["S", "24"], &["S", "P"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "8*S");
    let w = s.arg("w", Space::Weight, Storage::F32, "24*8");
    let q = s.out("q", Space::Arena, Storage::F32, "12*S");
    let keys = s.out("keys", Space::Kv(0), Storage::F32, "6*40");
    let values = s.out("values", Space::Kv(0), Storage::F32, "6*40");
    let lhs = s.load(x, "8*i0 + i2");
    let rhs = vec![s.load(w, "8*i1 + i2")];
    s.spec.anchor = Anchor::MatMul { k: dim("8"), lhs, lhs_stats: Vec::new(), rhs };
    let acc = s.acc(0);
    s.store_when(q, "12*i0 + i1", acc, 1, "0", "12");
    s.store_when(keys, "6*i0 + 6*P + i1 - 12", acc, 1, "12", "18");
    s.store_when(values, "6*i0 + 6*P + i1 - 18", acc, 1, "18", "24");
    check(&filled(s.done(), &[("S", 10), ("P", 4)], 13));
}

pub fn rows_named_by_data(check: &dyn Fn(&Case)) {
    // The left side is a table's rows, chosen by ids.
    let mut s = SpecBuilder::new("gathered", &["S", "9"], &["S"]);
    let ids = s.arg("ids", Space::Ints, Storage::I32, "S");
    let table = s.arg("table", Space::Side, Storage::F32, "7*6");
    let w = s.arg("w", Space::Weight, Storage::F32, "9*6");
    let y = s.out("y", Space::Arena, Storage::F32, "9*S");
    let id = s.load(ids, "i0");
    let lhs = s.load_at(table, dim(&format!("6*v{} + i2", id.0)));
    let rhs = vec![s.load(w, "6*i1 + i2")];
    s.spec.anchor = Anchor::MatMul { k: dim("6"), lhs, lhs_stats: Vec::new(), rhs };
    let acc = s.acc(0);
    s.store(y, "9*i0 + i1", acc);
    let mut case = filled(s.done(), &[("S", 12)], 17);
    case.data[0] = Random::new(4).ints(12, 7);
    check(&case);
}

/// A norm in front of blocked products: its statistics are computed in every workgroup, its result goes to two places.
pub fn rows_are_normalised_in_front_of_their_products(check: &dyn Fn(&Case)) {
    for (rows, columns, k, storage) in
        [(1, 5, 40, Storage::F32), (63, 64, 40, Storage::F16), (64, 65, 33, Storage::F32), (130, 70, 64, Storage::Q8_0)]
    {
        let mut s = SpecBuilder::new("normed", &["S", &columns.to_string()], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
        let z = s.arg("z", Space::Weight, storage, &(columns * k).to_string());
        let gain = s.arg("gain", Space::Side, Storage::F32, &k.to_string());
        let y = s.out("y", Space::Arena, Storage::F32, &format!("S*{columns}"));
        let kept = s.out("kept", Space::Arena, Storage::F32, &format!("{k}*S"));
        let (x, gain) = (s.load(x, &format!("{k}*i0 + i2")), s.load(gain, "i2"));
        let scale = s.f(1.0 / k as f32);
        let part = s.bin(BinaryOp::Mul, x, scale);
        let mean = s.stat(0, Scalar::F32);
        let apart = s.bin(BinaryOp::Sub, x, mean);
        let square = s.bin(BinaryOp::Mul, apart, apart);
        let square = s.bin(BinaryOp::Mul, square, scale);
        let raw = s.stat(1, Scalar::F32);
        let eps = s.f(1e-5);
        let root = s.bin(BinaryOp::Add, raw, eps);
        let root = s.un(UnaryOp::Rsqrt, root);
        let stats = vec![
            Stat { op: ReduceOp::Sum, value: part, finish: None },
            Stat { op: ReduceOp::Sum, value: square, finish: Some(root) },
        ];
        let lhs = s.bin(BinaryOp::Mul, apart, raw);
        let lhs = s.bin(BinaryOp::Mul, lhs, gain);
        let rhs = vec![s.load(z, &format!("{k}*i1 + i2"))];
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: stats, rhs };
        s.spec.left = vec![LeftStore { arg: kept, index: dim(&format!("{k}*i0 + i2")), value: lhs }];
        let acc = s.acc(0);
        s.store(y, &format!("{columns}*i0 + i1"), acc);
        check(&filled(s.done(), &[("S", rows)], 31));
    }
}

/// A residual in place, with the statistics of its rows beside it: every tail of a tile of statistics, and a mean far off 0.
pub fn statistics_of_a_result_by_tiles(check: &dyn Fn(&Case)) {
    for (rows, columns, k, storage) in [
        (9, 31, 8, Storage::F32),
        (5, 96, 40, Storage::F16),
        (64, 33, 64, Storage::Q8_0),
        (70, 100, 32, Storage::Bf16),
        (33, 1, 48, Storage::F32),
    ] {
        for kind in [PartialKind::Squares, PartialKind::Moments] {
            check(&forwarding((rows, columns, k), storage, kind));
        }
    }
}

/// `r + x Wᵀ` in place of `r`, with the statistics of its rows, which lie about 30.
pub fn forwarding((rows, columns, k): (i64, u64, u64), storage: Storage, kind: PartialKind) -> Case {
    let numbers = if kind == PartialKind::Moments { 2 } else { 1 };
    let tiles = (columns as usize).div_ceil(PARTIAL_COLUMNS as usize);
    let mut s = SpecBuilder::new("forwarding", &["S", &columns.to_string()], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
    let z = s.arg("z", Space::Weight, storage, &(columns * k).to_string());
    let r = s.arg("r", Space::Arena, Storage::F32, &format!("{columns}*S"));
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{columns}*S"));
    let t = s.out("t", Space::Arena, Storage::F32, &format!("{}*S", tiles * numbers));
    let lhs = s.load(x, &format!("{k}*i0 + i2"));
    let rhs = vec![s.load(z, &format!("{k}*i1 + i2"))];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let at = format!("{columns}*i0 + i1");
    let (acc, before, far) = (s.acc(0), s.load(r, &at), s.f(30.0));
    let sum = s.bin(BinaryOp::Add, acc, before);
    let value = s.bin(BinaryOp::Add, sum, far);
    s.store(y, &at, value);
    s.alias(y, r, AliasKind::SameElement);
    let index = dim(&format!("{}*i0 + {numbers}*i1", tiles * numbers));
    s.spec.partials = Some(Partials { value, kind, columns: PARTIAL_COLUMNS, arg: t, index });
    filled(s.done(), &[("S", rows)], 41)
}

/// A statistic of rows joined from those of `tiles` tiles in `t`, and its value.
fn joined(s: &mut SpecBuilder, t: ArgId, tiles: usize) -> (Vec<Stat>, ExprId) {
    let part = s.load(t, &format!("{tiles}*i0 + i2"));
    let square = s.bin(BinaryOp::Mul, part, part);
    let (raw, one) = (s.stat(0, Scalar::F32), s.f(1.0));
    let root = s.bin(BinaryOp::Add, raw, one);
    let root = s.un(UnaryOp::Rsqrt, root);
    (vec![Stat { op: ReduceOp::Sum, value: square, finish: Some(root) }], raw)
}

/// The other end: a norm whose statistics are joined from those of tiles.
pub fn statistics_joined_from_tiles(check: &dyn Fn(&Case)) {
    for (rows, columns, k, storage) in
        [(9, 40, 72, Storage::F32), (65, 70, 64, Storage::Q8_0), (70, 33, 96, Storage::F16)]
    {
        let tiles = (k as usize).div_ceil(PARTIAL_COLUMNS as usize);
        let mut s = SpecBuilder::new("forwarded", &["S", &columns.to_string()], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
        let t = s.arg("t", Space::Arena, Storage::F32, &format!("{tiles}*S"));
        let z = s.arg("z", Space::Weight, storage, &(columns * k).to_string());
        let y = s.out("y", Space::Arena, Storage::F32, &format!("S*{columns}"));
        let (lhs_stats, raw) = joined(&mut s, t, tiles);
        let lhs = s.load(x, &format!("{k}*i0 + i2"));
        let lhs = s.bin(BinaryOp::Mul, lhs, raw);
        let rhs = vec![s.load(z, &format!("{k}*i1 + i2"))];
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
        s.spec.stats_over = Some(dim(&tiles.to_string()));
        let acc = s.acc(0);
        s.store(y, &format!("{columns}*i0 + i1"), acc);
        check(&filled(s.done(), &[("S", rows)], 43));
    }
}

/// A norm that was commuted: rows as they are, and sums scaled by what is joined from tiles, with one and two right sides, on
/// weights of every kind of schedule, with rows that are counted by two axes, and with statistics of the result beside it.
pub fn statistics_scale_the_sums(check: &dyn Fn(&Case)) {
    for (rows, columns, k, storage, sides) in [
        (9, 40, 72, Storage::F32, 1),
        (65, 70, 64, Storage::Q8_0, 2),
        (70, 33, 96, Storage::Bf16, 1),
        (131, 96, 64, Storage::Bf16, 2),
        (6, 12, 20, Storage::F32, 2),
    ] {
        let tiles = (k as usize).div_ceil(PARTIAL_COLUMNS as usize);
        let mut s = SpecBuilder::new("commuted", &["S", &columns.to_string()], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
        let t = s.arg("t", Space::Arena, Storage::F32, &format!("{tiles}*S"));
        let z = s.arg("z", Space::Weight, storage, &(sides * columns * k).to_string());
        let y = s.out("y", Space::Arena, Storage::F32, &format!("S*{columns}"));
        let (lhs_stats, raw) = joined(&mut s, t, tiles);
        let lhs = s.load(x, &format!("{k}*i0 + i2"));
        let rhs: Vec<_> = (0..sides).map(|j| s.load(z, &format!("{k}*i1 + i2 + {}", j * columns * k))).collect();
        s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
        s.spec.stats_over = Some(dim(&tiles.to_string()));
        let mut value = s.acc(0);
        value = s.bin(BinaryOp::Mul, value, raw);
        if sides == 2 {
            let (acc, gate) = (s.acc(1), s.un(UnaryOp::Tanh, value));
            let acc = s.bin(BinaryOp::Mul, acc, raw);
            value = s.bin(BinaryOp::Mul, gate, acc);
        }
        s.store(y, &format!("{columns}*i0 + i1"), value);
        if sides == 1 && k % 8 == 0 {
            let tiles = (columns as usize).div_ceil(PARTIAL_COLUMNS as usize);
            let t = s.out("squares", Space::Arena, Storage::F32, &format!("{tiles}*S"));
            let index = dim(&format!("{tiles}*i0 + i1"));
            s.spec.partials =
                Some(Partials { value, kind: PartialKind::Squares, columns: PARTIAL_COLUMNS, arg: t, index });
        }
        check(&filled(s.done(), &[("S", rows)], 47));
    }
}

/// Says that these arguments of a kernel are rounded to `format` by all who read them.
pub fn kept(mut spec: KernelSpec, names: &[&str], format: HalfFormat) -> KernelSpec {
    for a in spec.args.iter_mut().filter(|a| names.contains(&a.name.as_str())) {
        a.rounded = Some(format);
    }
    spec.verify().unwrap();
    spec
}

/// Rows that a device may keep in 16 bits, read in copies and, where they do not start on 16 bytes or the product has no
/// matrix units, one by one; and results that are kept so.
pub fn rows_kept_in_16_bits(check: &dyn Fn(&Case)) {
    for (rows, n, k, storage, format) in [
        (9, 40, 72, Storage::Bf16, HalfFormat::Bf16),
        (65, 70, 64, Storage::Q8_0, HalfFormat::Bf16),
        (70, 33, 104, Storage::F16, HalfFormat::F16),
        (5, 2050, 40, Storage::Bf16, HalfFormat::Bf16),
        (11, 12, 36, Storage::Bf16, HalfFormat::Bf16),
        (11, 12, 33, Storage::F32, HalfFormat::F16),
        (1, 12, 40, Storage::F32, HalfFormat::Bf16),
    ] {
        for names in [["x"].as_slice(), &["x", "y"]] {
            let mut case = filled(kept(plain((n, k), storage), names, format), &[("S", rows)], k);
            if let Data::F32(x) = &mut case.data[0] {
                // Both formats hold these numbers, so that kernels without matrix units compute the same.
                x.iter_mut().for_each(|v| *v = (*v * 64.0).round() / 64.0);
            }
            check(&case);
        }
    }
    // Rows behind four others of a width that is no multiple of 16 bytes, and two right sides.
    for skipped in [4, 8] {
        let (n, k) = (35u64, 64u64);
        let mut s = SpecBuilder::new("behind", &["S", "35"], &["S"]);
        let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S + {skipped}"));
        let w = s.arg("w", Space::Weight, Storage::Bf16, &(2 * n * k).to_string());
        let y = s.out("y", Space::Arena, Storage::F32, "35*S");
        let lhs = s.load(x, &format!("{k}*i0 + i2 + {skipped}"));
        let rhs = [0, n * k].map(|from| s.load(w, &format!("{k}*i1 + i2 + {from}"))).to_vec();
        s.spec.anchor = Anchor::MatMul { k: dim("64"), lhs, lhs_stats: Vec::new(), rhs };
        let (gate, up) = (s.acc(0), s.acc(1));
        let gate = s.un(UnaryOp::Silu, gate);
        let value = s.bin(BinaryOp::Mul, gate, up);
        s.store(y, "35*i0 + i1", value);
        check(&filled(kept(s.done(), &["x", "y"], HalfFormat::Bf16), &[("S", 70)], 5));
    }
}
