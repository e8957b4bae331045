//! PTX instructions against their definition.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, lanes as eval};

/// Words of every size and sign.
fn words(salt: u32) -> [u32; 32] {
    let mut x = 0x9e37_79b9u32.wrapping_mul(salt + 1);
    std::array::from_fn(|i| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        [x, x >> 16, x >> 27, u32::MAX - (x >> 20), 0, 1, 0x8000_0000, x & 0xff00_00ff][i % 8]
    })
}

/// Floats of moderate size.
fn floats(salt: u32) -> [u32; 32] {
    let w = words(salt);
    std::array::from_fn(|i| ((w[i] as f32 / 4e9 - 0.3) * [1.0, 20.0, 0.01, 3.0][i % 4]).to_bits())
}

fn check_int(body: &str, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (words(1), words(2), words(3));
    let got = eval(body, [a, b, c]);
    for i in 0..32 {
        assert_eq!(got[i], f(a[i], b[i], c[i]), "{body} of {:#x} {:#x} {:#x}", a[i], b[i], c[i]);
    }
}

fn check_float(body: &str, f: impl Fn(f32, f32, f32) -> f32) {
    let (a, b, c) = (floats(1), floats(2), floats(3));
    let got = eval(&format!("{body} mov.b32 %d, %w;"), [a, b, c]);
    let v = f32::from_bits;
    for i in 0..32 {
        let want = f(v(a[i]), v(b[i]), v(c[i]));
        let same = v(got[i]).to_bits() == want.to_bits() || v(got[i]).is_nan() && want.is_nan();
        assert!(same, "{body} of {} {} {}: {} for {want}", v(a[i]), v(b[i]), v(c[i]), v(got[i]));
    }
}

#[test]
fn integers() {
    let s = |x: u32| x as i32;
    let l = |x: u32| i64::from(x as i32);
    check_int("add.u32 %d, %a, %b;", |a, b, _| a.wrapping_add(b));
    check_int("sub.s32 %d, %a, 77;", |a, _, _| a.wrapping_sub(77));
    check_int("mul.lo.s32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b));
    check_int("mul.hi.s32 %d, %a, %b;", |a, b, _| ((l(a) * l(b)) >> 32) as u32);
    check_int("mul.hi.u32 %d, %a, %b;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check_int("mad.lo.u32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check_int("div.u32 %d, %a, 7;", |a, _, _| a / 7);
    check_int("rem.s32 %d, %a, 10;", |a, _, _| (s(a) % 10) as u32);
    check_int("min.s32 %d, %a, %b;", |a, b, _| s(a).min(s(b)) as u32);
    check_int("max.u32 %d, %a, %b;", |a, b, _| a.max(b));
    check_int("abs.s32 %d, %a; neg.s32 %d, %d;", |a, _, _| s(a).wrapping_abs().wrapping_neg() as u32);
    check_int("and.b32 %d, %a, %b; or.b32 %d, %d, 5; xor.b32 %d, %d, %c;", |a, b, c| (a & b | 5) ^ c);
    check_int("not.b32 %d, %a;", |a, _, _| !a);
    check_int("shl.b32 %d, %a, %b;", |a, b, _| if b > 31 { 0 } else { a << b });
    check_int("shr.s32 %d, %a, %b;", |a, b, _| (s(a) >> b.min(31)) as u32);
    check_int("shr.u32 %d, %a, 9;", |a, _, _| a >> 9);
    check_int(
        "popc.b32 %r1, %a; clz.b32 %r2, %a; brev.b32 %r3, %b; add.u32 %d, %r1, %r2; xor.b32 %d, %d, %r3;",
        |a, b, _| (a.count_ones() + a.leading_zeros()) ^ b.reverse_bits(),
    );
    check_int("bfe.u32 %d, %a, 5, 11;", |a, _, _| a >> 5 & 0x7ff);
    check_int("bfe.s32 %d, %a, 20, 8;", |a, _, _| (s(a << 4) >> 24) as u32);
    check_int("bfi.b32 %d, %a, %b, 4, 12;", |a, b, _| a << 4 & 0xfff0 | b & !0xfff0);
    check_int("lop3.b32 %d, %a, %b, %c, 0x96;", |a, b, c| a ^ b ^ c);
    check_int("lop3.b32 %d, %a, %b, %c, 0xca;", |a, b, c| a & b | !a & c);
    check_int("shf.l.wrap.b32 %d, %a, %b, 12;", |a, b, _| b << 12 | a >> 20);
    check_int("shf.r.clamp.b32 %d, %a, %b, 40;", |_, b, _| b);
    check_int("prmt.b32 %d, %a, %b, 0x5410;", |a, b, _| a & 0xffff | b << 16);
    check_int("dp4a.s32.s32 %d, %a, %b, %c;", |a, b, c| {
        let dot: i32 = (0..4).map(|i| i32::from((a >> (8 * i)) as i8) * i32::from((b >> (8 * i)) as i8)).sum();
        c.wrapping_add(dot as u32)
    });
    check_int("setp.lt.s32 %p1, %a, %b; selp.b32 %d, %a, %c, %p1;", |a, b, c| if s(a) < s(b) { a } else { c });
    check_int(
        "and.b32 %r1, %a, 1; setp.eq.s32 %p1, %r1, 1; selp.b32 %d, %b, %c, %p1;",
        |a, b, c| {
            if a % 2 == 1 { b } else { c }
        },
    );
    let both = "setp.eq.u32 %p4, %c, 0; setp.lt.and.u32 %p1|%p2, %a, %b, !%p4;
        selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2; add.u32 %d, %r1, %r2;";
    check_int(both, |a, b, c| u32::from(a < b && c != 0) + 2 * u32::from(a >= b && c != 0));
    let logic = "setp.gt.u32 %p1, %a, %b; setp.ne.u32 %p2, %b, %c; and.pred %p3, %p1, %p2; not.pred %p4, %p1;
        xor.pred %p5, %p3, %p4; mov.u32 %d, 7; @%p5 mov.u32 %d, 9; @!%p2 add.u32 %d, %d, 100;";
    check_int(logic, |a, b, c| {
        let (p, q) = (a > b, b != c);
        (if (p && q) ^ !p { 9 } else { 7 }) + if q { 0 } else { 100 }
    });
}

#[test]
fn wide_integers() {
    let l = |x: u32| i64::from(x as i32);
    let whole = "cvt.u32.u64 %r1, %rd3; shr.u64 %rd4, %rd3, 32; cvt.u32.u64 %r2, %rd4; mul.lo.u32 %r2, %r2, 3; add.u32 %d, %r1, %r2;";
    let digest = |v: u64| (v as u32).wrapping_add(((v >> 32) as u32).wrapping_mul(3));
    let check = |body: &str, f: &dyn Fn(u32, u32) -> u64| {
        check_int(&format!("{body} {whole}"), |a, b, _| digest(f(a, b)));
    };
    check("mul.wide.s32 %rd3, %a, %b;", &|a, b| (l(a) * l(b)) as u64);
    check("mul.wide.u32 %rd3, %a, %b;", &|a, b| u64::from(a) * u64::from(b));
    check("cvt.s64.s32 %rd1, %a; cvt.u64.u32 %rd2, %b; add.s64 %rd3, %rd1, %rd2;", &|a, b| {
        (l(a) + i64::from(b)) as u64
    });
    check("mov.b64 %rd1, {%a, %b}; mul.lo.u64 %rd3, %rd1, 12345678901;", &|a, b| {
        (u64::from(b) << 32 | u64::from(a)).wrapping_mul(12_345_678_901)
    });
    check("mov.b64 %rd1, {%a, %b}; shl.b64 %rd3, %rd1, 13; xor.b64 %rd3, %rd3, %rd1;", &|a, b| {
        let v = u64::from(b) << 32 | u64::from(a);
        v << 13 ^ v
    });
    check("mov.b64 %rd1, {%a, %b}; mov.b64 {%r3, %r4}, %rd1; mov.b64 %rd3, {%r4, %r3};", &|a, b| {
        u64::from(a) << 32 | u64::from(b)
    });
    check("mov.b64 %rd1, {%a, %b}; shr.s64 %rd3, %rd1, 40;", &|a, b| {
        ((u64::from(b) << 32 | u64::from(a)) as i64 >> 40) as u64
    });
    check_int(
        "mov.b64 %rd1, {%a, %b}; mov.b64 %rd2, {%b, %a}; setp.lt.s64 %p1, %rd1, %rd2; selp.u32 %d, 1, 0, %p1;",
        |a, b, _| {
            let join = |a: u32, b: u32| (u64::from(b) << 32 | u64::from(a)) as i64;
            u32::from(join(a, b) < join(b, a))
        },
    );
}

#[test]
fn floats_and_conversions() {
    check_float("add.rn.f32 %w, %x, %y;", |x, y, _| x + y);
    check_float("sub.f32 %w, %x, 0f3F800000;", |x, _, _| x - 1.0);
    check_float("mul.f32 %w, %x, %y; neg.f32 %w, %w;", |x, y, _| -(x * y));
    check_float("fma.rn.f32 %w, %x, %y, %z;", f32::mul_add);
    check_float("min.f32 %w, %x, %y; max.f32 %w, %w, %z;", |x, y, z| x.min(y).max(z));
    check_float("abs.f32 %w, %x; sqrt.rn.f32 %w, %w;", |x, _, _| x.abs().sqrt());
    check_float("div.rn.f32 %w, %x, %y;", |x, y, _| x / y);
    check_float("rcp.rn.f32 %w, %x;", |x, _, _| 1.0 / x);
    check_float("ex2.approx.f32 %w, %x;", |x, _, _| f64::from(x).exp2() as f32);
    check_float("tanh.approx.f32 %w, %x;", |x, _, _| f64::from(x).tanh() as f32);
    check_float("add.sat.f32 %w, %x, %y;", |x, y, _| (x + y).clamp(0.0, 1.0));
    check_float("copysign.f32 %w, %x, %y;", |x, y, _| y.copysign(x));
    check_float("cvt.rni.f32.f32 %w, %x;", |x, _, _| x.round_ties_even());
    check_float("cvt.rmi.f32.f32 %w, %x;", |x, _, _| x.floor());
    check_float("cvt.rzi.s32.f32 %r1, %x; cvt.rn.f32.s32 %w, %r1;", |x, _, _| x.trunc() + 0.0);
    check_float("cvt.rni.s32.f32 %r1, %x; cvt.rn.f32.s32 %w, %r1;", |x, _, _| x.round_ties_even() + 0.0);
    check_float("cvt.rn.f16.f32 %h1, %x; cvt.f32.f16 %w, %h1;", |x, _, _| half::f16::from_f32(x).to_f32());
    check_float("cvt.rn.bf16.f32 %h1, %x; cvt.f32.bf16 %w, %h1;", |x, _, _| half::bf16::from_f32(x).to_f32());
    let pair = "cvt.rn.f16x2.f32 %r1, %x, %y; mov.b32 {%h1, %h2}, %r1; cvt.f32.f16 %f1, %h1; cvt.f32.f16 %f2, %h2;
        sub.f32 %w, %f2, %f1;";
    let h = |v: f32| half::f16::from_f32(v).to_f32();
    check_float(pair, |x, y, _| h(x) - h(y));
    let halves = "cvt.rn.f16x2.f32 %r1, %x, %y; cvt.rn.f16x2.f32 %r2, %z, %x; fma.rn.f16x2 %r3, %r1, %r2, %r1;
        mov.b32 {%h1, %h2}, %r3; cvt.f32.f16 %w, %h1;";
    check_float(halves, |x, y, _| half::f16::from_f64(f64::from(h(y)) * f64::from(h(x)) + f64::from(h(y))).to_f32());
    check_int("cvt.s32.s8 %r1, %a; cvt.u16.u32 %h1, %b; cvt.u32.u16 %r2, %h1; add.u32 %d, %r1, %r2;", |a, b, _| {
        (a as i8 as i32 as u32).wrapping_add(b & 0xffff)
    });
    check_int("cvt.u16.u32 %h1, %a; cvt.s32.s16 %d, %h1;", |a, _, _| a as i16 as i32 as u32);
    check_int("cvt.sat.s8.s32 %d, %a;", |a, _, _| (a as i32).clamp(-128, 127) as u32);
    check_int(
        "setp.lt.f32 %p1, %x, %y; setp.ltu.f32 %p2, %x, %y; selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2; or.b32 %d, %r1, %r2;",
        |a, b, _| {
            let (x, y) = (f32::from_bits(a), f32::from_bits(b));
            u32::from(x < y) | (2 * u32::from(x < y || x.is_nan() || y.is_nan()))
        },
    );
}

#[test]
fn denormals_are_flushed_where_the_text_says_so() {
    let tiny = [f32::MIN_POSITIVE / 4.0; 32].map(f32::to_bits);
    let big = [2f32; 32].map(f32::to_bits);
    assert_eq!(eval("mul.ftz.f32 %w, %x, %y; mov.b32 %d, %w;", [tiny, big, big])[0], 0);
    assert_eq!(eval("mul.f32 %w, %x, %y; mov.b32 %d, %w;", [tiny, big, big])[0], (f32::MIN_POSITIVE / 2.0).to_bits());
    assert_eq!(eval("setp.gt.ftz.f32 %p1, %x, 0f00000000; selp.u32 %d, 1, 0, %p1;", [tiny, big, big])[0], 0);
}

#[test]
fn exchanges_between_lanes() {
    let lanes: [u32; 32] = std::array::from_fn(|i| i as u32);
    let run = |body: &str| eval(body, [lanes, words(2), words(3)]);
    let want = |f: &dyn Fn(u32) -> u32| (0..32).map(f).collect::<Vec<_>>();
    assert_eq!(run("shfl.sync.bfly.b32 %d, %a, 5, 31, 0xffffffff;"), want(&|i| i ^ 5));
    assert_eq!(run("shfl.sync.down.b32 %d, %a, 4, 31, 0xffffffff;"), want(&|i| if i < 28 { i + 4 } else { i }));
    assert_eq!(run("shfl.sync.up.b32 %d, %a, 3, 0, 0xffffffff;"), want(&|i| if i >= 3 { i - 3 } else { i }));
    assert_eq!(run("shfl.sync.idx.b32 %d, %a, 9, 31, 0xffffffff;"), want(&|_| 9));
    // Groups of eight: the mask of the segment stands in bits 8 to 12.
    assert_eq!(run("shfl.sync.idx.b32 %d, %a, 2, 0x181f, 0xffffffff;"), want(&|i| i / 8 * 8 + 2));
    assert_eq!(run("shfl.sync.up.b32 %d, %a, 1, 0x1800, 0xffffffff;"), want(&|i| if i % 8 > 0 { i - 1 } else { i }));
    let valid = "shfl.sync.down.b32 %d|%p1, %a, 1, 31, 0xffffffff; selp.u32 %d, 1, 0, %p1;";
    assert_eq!(run(valid), want(&|i| u32::from(i < 31)));
    assert_eq!(run("redux.sync.add.u32 %d, %a, 0xffffffff;"), want(&|_| 496));
    assert_eq!(run("redux.sync.max.s32 %d, %a, 0xffffffff;"), want(&|_| 31));
    assert_eq!(run("setp.lt.u32 %p1, %a, 5; vote.sync.ballot.b32 %d, %p1, 0xffffffff;"), want(&|_| 31));
    let votes =
        "setp.lt.u32 %p1, %a, 5; vote.sync.any.pred %p2, %p1, 0xffffffff; vote.sync.all.pred %p3, %p1, 0xffffffff;
        selp.u32 %r1, 1, 0, %p2; selp.u32 %r2, 2, 0, %p3; add.u32 %d, %r1, %r2;";
    assert_eq!(run(votes), want(&|_| 1));
    assert_eq!(run("mov.u32 %r1, %lanemask_lt; popc.b32 %d, %r1;"), want(&|i| i));
}

#[test]
fn divergent_lanes_meet_again() {
    let body = "
    mov.u32 %d, 0;
    mov.u32 %r1, 0;
    $loop:
        setp.ge.u32 %p1, %r1, %i;
        @%p1 bra $out;
        and.b32 %r2, %r1, 1;
        setp.eq.u32 %p2, %r2, 0;
        @%p2 bra $even;
        add.u32 %d, %d, 10;
        bra $next;
        $even:
        add.u32 %d, %d, 1;
        $next:
        add.u32 %r1, %r1, 1;
        bra $loop;
    $out:
    redux.sync.max.u32 %r3, %i, 0xffffffff;
    mad.lo.u32 %d, %r3, 1000, %d;";
    assert_eq!(
        eval(body, [words(1); 3]),
        (0..32u32).map(|i| 31_000 + i.div_ceil(2) + 10 * (i / 2)).collect::<Vec<_>>()
    );
}

#[test]
fn atomics_and_local_memory() {
    let text = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 p, .param .u32 n)
.reqntid 64
{
    .local .align 4 .b8 own[64];
    .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .pred %p1;
    ld.param.u64 %rd1, [p];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %tid.x;
    and.b32 %r3, %r2, 15;
    shl.b32 %r3, %r3, 2;
    mov.u32 %r4, own;
    add.u32 %r4, %r4, %r3;
    st.local.u32 [%r4], %r2;
    ld.local.u32 %r5, [%r4];
    red.global.add.u32 [%rd1], %r5;
    atom.global.max.u32 %r6, [%rd1+4], %r5;
    atom.global.cas.b32 %r6, [%rd1+8], 0, %r1;
    atom.global.add.f32 %r6, [%rd1+12], 0f3F000000;
}";
    let run = Run::ptx(text, [64, 1, 1]).inout(&[0.0; 4]).value(41).grid([2, 1, 1]);
    assert_eq!(run.clean().words(0), [2 * 2016, 63, 41, 64f32.to_bits()]);
}

#[test]
fn parameters_by_value_and_vectors() {
    let text = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .align 16 .b8 record[16], .param .u64 p)
{
    .reg .b32 %r<8>; .reg .b64 %rd1; .reg .b16 %h1;
    ld.param.u64 %rd1, [p];
    ld.param.v2.u32 {%r1, %r2}, [record];
    ld.param.u16 %h1, [record+10];
    cvt.u32.u16 %r3, %h1;
    ld.param.u32 %r4, [record+12];
    st.global.v4.u32 [%rd1], {%r4, %r3, %r2, %r1};
}";
    let bytes = (0u8..16).collect();
    let run = Run::ptx(text, [1, 1, 1]).argument(frit_simt::Argument::Bytes(bytes)).output(4);
    assert_eq!(run.clean().words(1), [0x0f0e_0d0c, 0x0b0a, 0x0706_0504, 0x0302_0100]);
}

#[test]
fn wide_and_shared_atomics() {
    let text = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 p)
.reqntid 64
{
    .shared .align 8 .b8 own[16];
    .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .pred %p1;
    ld.param.u64 %rd1, [p];
    mov.u32 %r2, %tid.x;
    setp.eq.u32 %p1, %r2, 0;
    @%p1 st.shared.u32 [own], 7;
    @%p1 st.shared.u32 [own+4], 0xffff;
    bar.sync 0;
    red.shared.add.u32 [own], 1;
    atom.shared.and.b32 %r3, [own+4], 0xff0f;
    bar.sync 0;
    ld.shared.u32 %r4, [own];
    ld.shared.u32 %r5, [own+4];
    // The place of the largest key: key above, place below.
    xor.b32 %r6, %r2, 21;
    mov.b64 %rd2, {%r2, %r6};
    atom.global.max.u64 %rd3, [%rd1], %rd2;
    @%p1 st.global.v2.u32 [%rd1+8], {%r4, %r5};
    atom.global.inc.u32 %r7, [%rd1+16], 9;
    atom.global.exch.b32 %r7, [%rd1+20], 5;
    red.release.gpu.global.or.b32 [%rd1+24], %r2;
}";
    let out = Run::ptx(text, [64, 1, 1]).inout(&[0.0; 7]).clean().words(0);
    // 42 xor 21 is 63; 64 counts modulo 10 are 4; 7 + 64.
    assert_eq!(out, [42, 63, 71, 0xff0f, 4, 5, 63]);
}
