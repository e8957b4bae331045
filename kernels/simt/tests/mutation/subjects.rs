//! What is mutated: a kernel of every template, with sizes at which each part of its schedule matters.
//!
//! Sizes are no multiples of a tile and cross its edge; there are several batches and more rows than a tile has; scores of
//! attention lie far apart in one case, since a softmax forgives a wrong maximum as long as nothing overflows, and rows
//! that see no key stand among others that do. Statistics beside a result are taken of tiles that the last column cuts short
//! and of rows that end inside each part of a block; those of runs of columns, of more columns than a row of subgroups has.

use crate::cases::chain::chain;
use crate::cases::gemm::{filled, forwarding, kept, plain};
use crate::cases::gemv::heads;
use crate::support::Case;
use crate::support::blocks::{Data, Random};
use crate::support::build::{SpecBuilder, dim};
use frit_kernels::dtype::{HalfFormat, Scalar, Storage};
use frit_kernels::spec::{
    Anchor, Attention, BinaryOp, Expr, FEW_PARTIAL_COLUMNS, KernelSpec, KeyParts, LeftStore, PartialKind, Partials,
    ReduceOp, Space, Stat, UnaryOp,
};

/// Cases of one kernel.
pub struct Subject {
    /// Its name in reports.
    pub name: &'static str,
    /// Sizes and contents.
    pub cases: Vec<Case>,
}

/// Every kernel.
pub fn all() -> Vec<Subject> {
    let subject = |name, cases| Subject { name, cases };
    vec![
        subject("map", map()),
        subject("layer_norm", layer_norm()),
        subject("argmax", argmax()),
        subject("gemm", product(67, 37, Storage::F32, &[3, 70, 134])),
        subject("gemm_bf16", product(70, 136, Storage::Bf16, &[9, 150])),
        subject("gemm_q4_0", product(70, 160, Storage::Q4_0, &[9, 150])),
        subject("gemm_kept", vec![kept_rows(70, 136, 9), kept_rows(70, 136, 150)]),
        subject("gemm_gated", vec![gated(70, 72, Storage::Bf16, &["S"], 70)]),
        subject("gemm_normed", normed()),
        subject("gemv", vec![few_rows()]),
        subject("gemv_q4_0", vec![gated(75, 544, Storage::Q4_0, &["B", "1"], 3)]),
        subject("chain", chains([20, 70, 75], 2, Storage::F32, true)),
        subject("chain_bf16", chains([72, 136, 72], 1, Storage::Bf16, false)),
        subject("attention_parts", attention_parts()),
        subject("gemm_moments", moments()),
        subject("gemv_largest", largest()),
        subject("gemv_heads", [1, 3].map(|rows| heads((rows, 264, 240, 1))).to_vec()),
        subject("gemm_q6_k", product(70, 512, Storage::Q6K, &[25, 70])),
        subject("gemv_q6_k", vec![gated(43, 768, Storage::Q6K, &["B", "1"], 3)]),
        subject("gather", gather()),
        subject("attention", attention_plain()),
        subject("attention_token", attention_token()),
        subject("attention_window", attention_window()),
        subject("attention_mask", attention_mask()),
    ]
}

/// Products whose sum goes around a ring of tiles more than once, in two blocks and in four: of rows that pass through
/// registers, and of rows that are copied into the ring.
pub fn rings() -> Vec<Subject> {
    let subject = |name, cases| Subject { name, cases };
    vec![
        subject("ring", product(200, 328, Storage::Bf16, &[20, 150])),
        subject("ring_of_copies", vec![kept_rows(200, 328, 20), kept_rows(200, 328, 150)]),
    ]
}

/// A product of rows that are kept in 16 bits, like its result.
fn kept_rows(n: u64, k: u64, rows: i64) -> Case {
    let spec = kept(plain((n, k), Storage::Bf16), &["x", "y"], HalfFormat::Bf16);
    let mut case = filled(spec, &[("S", rows)], 7);
    case.tolerance = 1e-4;
    case
}

fn map() -> Vec<Case> {
    let mut s = SpecBuilder::new("map", &["B", "S", "70"], &["B", "S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "70*B*S");
    let y = s.out("y", Space::Arena, Storage::F32, "70*B*S");
    let z = s.out("z", Space::Arena, Storage::F32, "70*B*S");
    let v = s.load(x, "70*S*i0 + 70*i1 + i2");
    let w = s.un(UnaryOp::Silu, v);
    let sign = s.bin(BinaryOp::Max, v, w);
    s.store(y, "70*B*i1 + 70*i0 + i2", w);
    s.store(z, "70*S*i0 + 70*i1 + i2", sign);
    let spec = s.done();
    [(1, 1), (2, 3), (3, 5)].map(|(b, n)| filled(spec.clone(), &[("B", b), ("S", n)], 3)).to_vec()
}

fn layer_norm() -> Vec<Case> {
    let spec = crate::cases::row::layer_norm("N");
    let case = |(rows, n)| {
        let mut case = filled(spec.clone(), &[("S", rows), ("N", n)], 10);
        case.tolerance = 1e-4;
        case
    };
    [(5, 9), (4, 300), (2, 1061)].map(case).to_vec()
}

fn argmax() -> Vec<Case> {
    let mut s = SpecBuilder::new("argmax", &["2", "S", "N"], &["S", "N"]);
    let x = s.arg("x", Space::Arena, Storage::F32, "2*N*S");
    let y = s.out("y", Space::Ints, Storage::I32, "2*S");
    let value = s.load(x, "N*S*i0 + N*i1 + i2");
    s.spec.anchor = Anchor::Row { stats: vec![Stat { op: ReduceOp::ArgMax, value, finish: None }] };
    let found = s.stat(0, Scalar::I32);
    s.store(y, "S*i0 + i1", found).per_row = true;
    let spec = s.done();
    let case = |(rows, n): (i64, i64)| {
        let mut case = filled(spec.clone(), &[("S", rows), ("N", n)], 12);
        // In every other row few different values, so that the largest stands at many places; at one place in the rest.
        let mut random = Random::new(n as u64);
        let mut value = |i: i64| if i / n % 2 == 0 { random.below(40) as f32 - 50.0 } else { 50.0 * random.unit() };
        case.data[0] = Data::F32((0..2 * rows * n).map(&mut value).collect());
        case
    };
    // The largest value in each of the 32 parts that a workgroup has at most, and the second in the part behind it.
    let parts = || {
        let (rows, n) = (32usize, 1050usize);
        let mut case = case((rows as i64, n as i64));
        if let Data::F32(x) = &mut case.data[0] {
            for (row, values) in x.chunks_mut(n).enumerate() {
                let at = 32 * (row % rows) + row % 5;
                (values[at], values[(at + 32) % 1024]) = (60.0, 59.0);
            }
        }
        case
    };
    [(7, 5), (13, 70), (40, 700)].map(case).into_iter().chain([parts()]).collect()
}

fn product(n: u64, k: u64, storage: Storage, rows: &[i64]) -> Vec<Case> {
    let case = |s: &i64| {
        let mut case = filled(plain((n, k), storage), &[("S", *s)], 7);
        case.tolerance = 1e-4;
        case
    };
    rows.iter().map(case).collect()
}

/// `silu(x w0ᵀ) · x w1ᵀ · gain` over the rows that the leading axes name.
fn gated(n: u64, k: u64, storage: Storage, lead: &[&str], size: i64) -> Case {
    let columns = n.to_string();
    let domain: Vec<&str> = lead.iter().copied().chain([columns.as_str()]).collect();
    let (name, axis) = (lead[0], domain.len() - 1);
    let mut s = SpecBuilder::new("gated", &domain, &[name]);
    s.spec.few_rows = name == "B";
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*{name}"));
    let w = s.arg("w", Space::Weight, storage, &(2 * n * k).to_string());
    let gain = s.arg("gain", Space::Side, Storage::F32, &columns);
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*{name}"));
    let lhs = s.load(x, &format!("{k}*i0 + i{}", axis + 1));
    let right = |s: &mut SpecBuilder, from: u64| s.load(w, &format!("{}*i{axis} + {from} + i{}", 2 * k, axis + 1));
    let rhs = vec![right(&mut s, 0), right(&mut s, k)];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let (gate, up, gain) = (s.acc(0), s.acc(1), s.load(gain, &format!("i{axis}")));
    let gate = s.un(UnaryOp::Silu, gate);
    let value = s.bin(BinaryOp::Mul, gate, up);
    let value = s.bin(BinaryOp::Mul, value, gain);
    s.store(y, &format!("{n}*i0 + i{axis}"), value);
    let mut case = filled(s.done(), &[(name, size)], 5);
    case.tolerance = 1e-4;
    case
}

/// Rows normalised in front of their product, and stored as well; the sum goes around the ring of tiles.
fn normed() -> Vec<Case> {
    let (columns, k) = (70u64, 136u64);
    let mut s = SpecBuilder::new("normed", &["S", "70"], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*S"));
    let z = s.arg("z", Space::Weight, Storage::Bf16, &(columns * k).to_string());
    let gain = s.arg("gain", Space::Side, Storage::F32, &k.to_string());
    let y = s.out("y", Space::Arena, Storage::F32, "70*S");
    let kept = s.out("kept", Space::Arena, Storage::F32, &format!("{k}*S"));
    let (x, gain) = (s.load(x, &format!("{k}*i0 + i2")), s.load(gain, "i2"));
    let square = s.bin(BinaryOp::Mul, x, x);
    let (raw, share, eps) = (s.stat(0, Scalar::F32), s.f(1.0 / k as f32), s.f(1e-5));
    let mean = s.bin(BinaryOp::Mul, raw, share);
    let mean = s.bin(BinaryOp::Add, mean, eps);
    let finish = Some(s.un(UnaryOp::Rsqrt, mean));
    let lhs = s.bin(BinaryOp::Mul, x, raw);
    let lhs = s.bin(BinaryOp::Mul, lhs, gain);
    let rhs = vec![s.load(z, &format!("{k}*i1 + i2"))];
    let lhs_stats = vec![Stat { op: ReduceOp::Sum, value: square, finish }];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats, rhs };
    s.spec.left = vec![LeftStore { arg: kept, index: dim(&format!("{k}*i0 + i2")), value: lhs }];
    let acc = s.acc(0);
    s.store(y, "70*i0 + i1", acc);
    let spec = s.done();
    let case = |n: i64| {
        let mut case = filled(spec.clone(), &[("S", n)], 31);
        case.tolerance = 1e-4;
        case
    };
    [3, 70, 134].map(case).to_vec()
}

/// Four rows, one after the other.
fn few_rows() -> Case {
    let (m, n, k) = (4, 33, 300);
    let mut s = SpecBuilder::new("vector", &["4", "33"], &[]);
    let x = s.arg("x", Space::Arena, Storage::F32, &(m * k).to_string());
    let w = s.arg("w", Space::Weight, Storage::F32, &(n * k).to_string());
    let y = s.out("y", Space::Arena, Storage::F32, &(m * n).to_string());
    let lhs = s.load(x, "300*i0 + i2");
    let rhs = vec![s.load(w, "300*i1 + i2")];
    s.spec.anchor = Anchor::MatMul { k: dim("300"), lhs, lhs_stats: Vec::new(), rhs };
    let acc = s.acc(0);
    s.store(y, "33*i0 + i1", acc);
    let mut case = filled(s.done(), &[], 5);
    case.tolerance = 1e-4;
    case
}

/// Two products in a row: fewer rows than a workgroup has, and some of a third workgroup.
fn chains(widths: [u64; 3], sides: u64, storage: Storage, is_normed: bool) -> Vec<Case> {
    let spec = chain(widths, sides, storage, is_normed);
    let case = |rows| {
        let mut case = filled(spec.clone(), &[("S", rows)], 19);
        case.tolerance = 1e-4;
        case
    };
    [3, 19].map(case).to_vec()
}

/// Statistics of tiles of columns, the last one short, beside a result of many rows.
fn moments() -> Vec<Case> {
    [3, 27, 70].map(|rows| forwarding((rows, 70, 72), Storage::Bf16, PartialKind::Moments)).to_vec()
}

/// The largest of each tile of columns, and its place, beside a result of few rows that is cut off at a value which of some
/// tiles no column reaches, of some one and of some several. The last column of every tile has its largest in some case.
fn largest() -> Vec<Case> {
    let (k, n) = (72u64, 75u64);
    let tiles = n.div_ceil(u64::from(FEW_PARTIAL_COLUMNS));
    let mut s = SpecBuilder::new("largest", &["B", "1", "75"], &["B"]).few_rows();
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*B"));
    let w = s.arg("w", Space::Weight, Storage::Bf16, &(n * k).to_string());
    let bias = s.arg("bias", Space::Arena, Storage::F32, &n.to_string());
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*B"));
    let t = s.out("t", Space::Arena, Storage::F32, &format!("{}*B", 2 * tiles));
    let lhs = s.load(x, &format!("{k}*i0 + i3"));
    let rhs = vec![s.load(w, &format!("{k}*i2 + i3"))];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let (acc, most, bias) = (s.acc(0), s.f(2.5), s.load(bias, "i2"));
    let value = s.bin(BinaryOp::Min, acc, most);
    let value = s.bin(BinaryOp::Add, value, bias);
    s.store(y, &format!("{n}*i0 + i2"), value);
    let index = dim(&format!("{}*i0 + 2*i2", 2 * tiles));
    let kind = PartialKind::Largest;
    s.spec.partials = Some(Partials { value, kind, columns: FEW_PARTIAL_COLUMNS, arg: t, index });
    let spec = s.done();
    let case = |rows, (base, place): (f32, Option<usize>)| {
        let mut case = filled(spec.clone(), &[("B", rows)], 23);
        let of = |i| if Some(i % FEW_PARTIAL_COLUMNS as usize) == place { base + 10.0 } else { base };
        case.data[2] = Data::F32((0..n as usize).map(of).collect());
        case.tolerance = 1e-4;
        case
    };
    // Below zero, so that what no column sets does not pass for a small value.
    vec![case(1, (0.0, None)), case(5, (0.0, None)), case(2, (-20.0, Some(2))), case(2, (-20.0, Some(7)))]
}

/// Rows of a table that data name.
fn gather() -> Vec<Case> {
    let mut s = SpecBuilder::new("gather", &["B", "S", "96"], &["B", "S"]);
    let ids = s.arg("ids", Space::Ints, Storage::I32, "B*S");
    let table = s.arg("table", Space::Weight, Storage::Q8_0, "11*96");
    let y = s.out("y", Space::Arena, Storage::F32, "96*B*S");
    let id = s.load(ids, "S*i0 + i1");
    let value = s.load_at(table, dim(&format!("96*v{} + i2", id.0)));
    s.store(y, "96*B*i1 + 96*i0 + i2", value);
    let spec = s.done();
    let case = |(b, n): (i64, i64)| {
        let mut case = filled(spec.clone(), &[("B", b), ("S", n)], 3);
        case.data[0] = Random::new(4).ints((b * n) as usize, 11);
        case
    };
    [(1, 1), (2, 3), (3, 5)].map(case).to_vec()
}

const EIGHTH: (usize, usize) = (8, 1);
const HEADS: u64 = 4;
const GROUP: u64 = 2;

/// Heads of 20 elements over two key heads; arguments q, k, v, y, then what `change` adds.
fn attention(change: impl FnOnce(&mut SpecBuilder, &mut Attention)) -> KernelSpec {
    attention_of("S", change)
}

fn attention_of(rows: &str, change: impl FnOnce(&mut SpecBuilder, &mut Attention)) -> KernelSpec {
    let mut s = SpecBuilder::new("attention", &["B", "4", rows, "20"], &["B", "S", "T", "P"]);
    let q = s.arg("q", Space::Arena, Storage::F32, "80*B*S");
    let k = s.arg("k", Space::Kv(0), Storage::F32, "40*B*T");
    let v = s.arg("v", Space::Kv(0), Storage::F32, "40*B*T");
    let y = s.out("y", Space::Arena, Storage::F32, "80*B*S");
    let mut anchor = Attention {
        q: s.load(q, "80*S*i0 + 80*i2 + 20*i1 + i4"),
        k: s.load(k, &format!("40*T*i0 + 20*T*div(i1, {GROUP}) + 20*i5 + i4")),
        v: s.load(v, &format!("40*T*i0 + 20*T*div(i1, {GROUP}) + 20*i5 + i3")),
        group: GROUP,
        head_dim: 20,
        value_dim: 20,
        kv_len: dim("T"),
        causal_offset: None,
        window: None,
        mask: None,
        bias: None,
        scale: 0.25,
        softcap: None,
        parts: None,
    };
    change(&mut s, &mut anchor);
    s.spec.anchor = Anchor::Attention(Box::new(anchor));
    let acc = s.acc(0);
    s.store(y, &format!("80*S*i0 + 80*i2 + {}*i1 + i3", 80 / HEADS), acc);
    s.done()
}

/// Queries so large that scores lie thousands apart, the largest among the key of every `period` that `phase` names, which
/// is another one from head to head, so that a maximum over all but those keys overflows.
fn far_apart(mut case: Case, (period, phase): (usize, usize)) -> Case {
    let [Data::F32(q), Data::F32(k), ..] = &mut case.data[..] else { return case };
    q.iter_mut().for_each(|v| *v *= 3000.0);
    k.iter_mut().enumerate().filter(|(i, _)| i / 20 % period == phase).for_each(|(_, v)| *v *= 10.0);
    case.tolerance = 5e-3;
    case
}

/// The same, and all of those keys are one, so that what overflows is their sum as well.
fn alike(case: Case, (period, phase): (usize, usize)) -> Case {
    let mut case = far_apart(case, (period, phase));
    let Data::F32(k) = &mut case.data[1] else { return case };
    let one = k[20 * phase..][..20].to_vec();
    k.chunks_mut(20).skip(phase).step_by(period).for_each(|key| key.copy_from_slice(&one));
    case
}

/// Values about 1000 behind scores that lie some way apart, and a tolerance so small that the last of three parts of an
/// operand counts.
fn magnified(mut case: Case) -> Case {
    let [Data::F32(q), _, Data::F32(v), ..] = &mut case.data[..] else { return case };
    q.iter_mut().for_each(|x| *x *= 30.0);
    v.iter_mut().for_each(|x| *x = 1000.0 + 500.0 * *x);
    case.tolerance = 3e-6;
    case
}

/// One query row, which has a schedule of its own on some targets.
fn attention_token() -> Vec<Case> {
    let spec = attention_of("1", |_, a| a.causal_offset = Some(dim("P")));
    let case = |b, past, room| filled(spec.clone(), &[("B", b), ("S", 1), ("T", 1 + past + room), ("P", past)], 5);
    let plain = [case(2, 0, 0), case(1, 16, 3), case(1, 329, 0), case(2, 49, 9), case(1, 100, 5)];
    let apart = [(32, 5), EIGHTH, (64, 1)].map(|which| far_apart(case(4, 149, 0), which));
    // Keys that one subgroup of a workgroup has alone, each of them in turn.
    let alone = (0..8).map(|subgroup| alike(case(1, 149, 0), (32, 4 * subgroup + 1)));
    plain.into_iter().chain(apart).chain(alone).collect()
}

fn attention_plain() -> Vec<Case> {
    let spec = attention(|_, _| {});
    let case = |b, s, t| filled(spec.clone(), &[("B", b), ("S", s), ("T", t), ("P", 0)], 5);
    let apart = [(case(1, 9, 150), EIGHTH), (case(4, 1, 150), (32, 5))].map(|(c, which)| far_apart(c, which));
    // The last key at every place of a fragment: past the next multiple of eight, and odd or even.
    let plain = [case(2, 1, 1), case(2, 9, 17), case(1, 2, 330), case(2, 4, 50), case(1, 7, 110)];
    let ends = [13, 27, 28, 36].map(|t| case(1, 3, t));
    let plain = plain.into_iter().chain(ends);
    plain.chain(apart).chain([magnified(case(1, 40, 50))]).collect()
}

fn attention_window() -> Vec<Case> {
    let spec = attention(|_, a| {
        (a.causal_offset, a.window, a.softcap) = (Some(dim("P")), Some(203), Some(4000.0));
    });
    let case = |s, past| filled(spec.clone(), &[("B", 2), ("S", s), ("T", s + past), ("P", past)], 4);
    vec![case(9, 0), case(1, 40), case(2, 100), case(2, 300), far_apart(case(9, 220), EIGHTH), magnified(case(40, 10))]
}

/// Some rows see no key at all, and get zeros.
fn attention_mask() -> Vec<Case> {
    let spec = attention(|s, a| {
        let mask = s.arg("mask", Space::Ints, Storage::Bool, "S*T");
        let bias = s.arg("bias", Space::Arena, Storage::F32, "S*T");
        (a.mask, a.bias) = (Some(s.load(mask, "T*i2 + i5")), Some(s.load(bias, "T*i2 + i5")));
    });
    let case = |s: i64, t: i64, blind: i64| {
        let mut case = filled(spec.clone(), &[("B", 2), ("S", s), ("T", t), ("P", 0)], 6);
        let seen = |i: i64| i32::from(i / t % 3 != blind && Random::new(i as u64 + 1).below(3) > 0);
        case.data[4] = Data::I32((0..s * t).map(seen).collect());
        case
    };
    vec![
        case(1, 3, 1),
        case(9, 33, 0),
        case(9, 33, 1),
        case(10, 70, 2),
        case(9, 45, 1),
        case(9, 59, 0),
        far_apart(case(9, 280, 1), EIGHTH),
        magnified(case(40, 50, 3)),
    ]
}

/// One query row whose keys lie in three parts: its sums as they are, the largest score and the sum of weights of each part.
fn attention_parts() -> Vec<Case> {
    let mut s = SpecBuilder::new("attention_parts", &["3*B", "4", "1", "20"], &["B", "T", "P"]);
    let q = s.arg("q", Space::Arena, Storage::F32, "80*B");
    let k = s.arg("k", Space::Kv(0), Storage::F32, "40*B*T");
    let v = s.arg("v", Space::Kv(0), Storage::F32, "40*B*T");
    let y = s.out("y", Space::Arena, Storage::F32, "264*B");
    let offset = dim("P");
    let anchor = Attention {
        q: s.load(q, "80*div(i0, 3) + 80*i2 + 20*i1 + i4"),
        k: s.load(k, &format!("40*T*div(i0, 3) + 20*T*div(i1, {GROUP}) + 20*i5 + i4")),
        v: s.load(v, &format!("40*T*div(i0, 3) + 20*T*div(i1, {GROUP}) + 20*i5 + i3")),
        group: GROUP,
        head_dim: 20,
        value_dim: 20,
        kv_len: dim("T"),
        parts: Some(KeyParts::of(3, &dim("1"), &dim("T"), Some(&offset), None)),
        causal_offset: Some(offset),
        window: None,
        mask: None,
        bias: None,
        scale: 0.25,
        softcap: None,
    };
    s.spec.anchor = Anchor::Attention(Box::new(anchor));
    let at = "88*i0 + 22*i1 + 22*i2";
    let acc = s.acc(0);
    s.store(y, &format!("{at} + i3"), acc);
    for number in 0..2u8 {
        let stat = s.spec.exprs.add(Expr::Stat(number), Scalar::F32);
        s.store(y, &format!("{at} + {}", 20 + number), stat).per_row = true;
    }
    let spec = s.done();
    let case = |b, past, room| filled(spec.clone(), &[("B", b), ("T", 1 + past + room), ("P", past)], 5);
    // The room behind the last key would make parts longer; parts end at every key of a team, and have several blocks.
    let plain = [(2, 0, 0), (1, 16, 3), (2, 70, 9), (1, 190, 9), (1, 329, 0), (1, 355, 0), (1, 420, 0)];
    let plain = plain.map(|(b, past, room)| case(b, past, room));
    let apart = [(32, 5), EIGHTH, (64, 1)].map(|which| far_apart(case(2, 170, 0), which));
    plain.into_iter().chain(apart).collect()
}
