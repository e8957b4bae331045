//! One case of each family of PTX instructions, operands and results written out by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, lanes};

/// The word that `body` makes of three words, the same in every lane.
fn word(body: &str, [a, b, c]: [u32; 3]) -> u32 {
    let got = lanes(body, [[a; 32], [b; 32], [c; 32]]);
    assert!(got.iter().all(|g| *g == got[0]), "{body}: {got:x?}");
    got[0]
}

fn words(cases: &[(&str, [u32; 3], u32)]) {
    for (body, operands, want) in cases {
        let got = word(body, *operands);
        assert_eq!(got, *want, "{body} of {operands:x?}: {got:#x} for {want:#x}");
    }
}

fn floats(cases: &[(&str, [f32; 3], f32)]) {
    for (body, operands, want) in cases {
        let got = f32::from_bits(word(&format!("{body} mov.b32 %d, %w;"), operands.map(f32::to_bits)));
        assert_eq!(got.to_bits(), want.to_bits(), "{body} of {operands:?}: {got} for {want}");
    }
}

const NONE: [u32; 3] = [0; 3];

#[test]
fn integers() {
    let minus = |v: u32| v.wrapping_neg();
    words(&[
        ("add.s32 %d, %a, %b;", [minus(5), 3, 0], minus(2)),
        ("sub.u32 %d, %a, %b;", [5, 7, 0], minus(2)),
        ("mul.lo.u32 %d, %a, %b;", [0x10001, 0x10001, 0], 0x20001),
        ("mad.lo.s32 %d, %a, %b, %c;", [minus(3), 4, 5], minus(7)),
        ("mad.hi.u32 %d, %a, %b, %c;", [0x8000_0000, 4, 5], 7),
        ("mad.hi.s32 %d, %a, %b, %c;", [0x8000_0000, 4, 5], 3),
        // Factors of 24 bits: 3 and -1.
        ("mul24.lo.u32 %d, %a, %b;", [0x0100_0003, 5, 0], 15),
        ("mul24.lo.s32 %d, %a, %b;", [0x00ff_ffff, 7, 0], minus(7)),
        ("sad.u32 %d, %a, %b, %c;", [3, 10, 100], 107),
        ("div.s32 %d, %a, %b;", [minus(7), 2, 0], minus(3)),
        ("rem.s32 %d, %a, %b;", [minus(7), 2, 0], minus(1)),
        ("div.u32 %d, %a, %b;", [minus(7), 2, 0], 0x7fff_fffc),
        ("rem.u32 %d, %a, %b;", [17, 5, 0], 2),
        ("min.u32 %d, %a, %b;", [minus(1), 1, 0], 1),
        ("max.s32 %d, %a, %b;", [minus(1), 1, 0], 1),
        ("neg.s32 %d, %a;", [9, 0, 0], minus(9)),
        ("abs.s32 %d, %a;", [0x8000_0000, 0, 0], 0x8000_0000),
        ("shl.b32 %d, %a, %b;", [3, 32, 0], 0),
        ("shr.s32 %d, %a, %b;", [0x8000_0000, 40, 0], minus(1)),
        ("shf.r.wrap.b32 %d, %a, %b, 40;", [0x1122_3344, 0x5566_7788, 0], 0x8811_2233),
        ("shf.l.clamp.b32 %d, %a, %b, 40;", [0x1122_3344, 0x5566_7788, 0], 0x1122_3344),
        // Bytes 3 and 0 of a, byte 0 of b, the sign of byte 3 of b.
        ("prmt.b32 %d, %a, %b, 0xf403;", [0x1122_3344, 0x8566_7788, 0], 0xff88_4411),
        // (1, -2, 3, -4) and (5, 6, 7, 8); 255 and 254 where they count as unsigned.
        ("dp4a.s32.s32 %d, %a, %b, %c;", [0xfc03_fe01, 0x0807_0605, 100], 100 + 5 - 12 + 21 - 32),
        ("dp4a.u32.u32 %d, %a, %b, %c;", [0xfc03_fe01, 0x0807_0605, 100], 100 + 5 + 254 * 6 + 21 + 252 * 8),
        ("dp4a.s32.u32 %d, %a, %b, %c;", [0xff00_0000, 0xff00_0000, 1], minus(254)),
        ("dp4a.u32.s32 %d, %a, %b, %c;", [0xfe00_0000, 0xff00_0000, 1], minus(253)),
    ]);
}

/// A register of 16 bits holds zeros above; results wrap at 16 bits.
#[test]
fn halfwords() {
    let of = |body: &str| format!("cvt.u16.u32 %h1, %a; cvt.u16.u32 %h2, %b; {body} cvt.u32.u16 %d, %h3;");
    for (body, a, b, want) in [
        ("add.u16 %h3, %h1, %h2;", 0xffff, 2, 1),
        ("sub.s16 %h3, %h1, %h2;", 1, 2, 0xffff),
        // 90000 - 65536
        ("mul.lo.u16 %h3, %h1, %h2;", 300, 300, 24464),
        ("min.s16 %h3, %h1, %h2;", 0x8000, 3, 0x8000),
        ("max.u16 %h3, %h1, %h2;", 0x8000, 3, 0x8000),
        ("shr.s16 %h3, %h1, 3;", 0x8000, 0, 0xf000),
        ("and.b16 %h3, %h1, %h2;", 0xff0f, 0x0ff0, 0x0f00),
        ("not.b16 %h3, %h1;", 0xff0f, 0, 0x00f0),
        ("setp.lt.s16 %p1, %h1, %h2; selp.b16 %h3, %h1, %h2, %p1;", 0xffff, 1, 0xffff),
        ("setp.lt.u16 %p1, %h1, %h2; selp.b16 %h3, %h1, %h2, %p1;", 0xffff, 1, 1),
    ] {
        assert_eq!(word(&of(body), [a, b, 0]), want, "{body}");
    }
    words(&[
        ("cvt.u16.u32 %h1, %a; cvt.u16.u32 %h2, %b; mul.wide.u16 %d, %h1, %h2;", [300, 300, 0], 90000),
        ("cvt.u16.u32 %h1, %a; cvt.u16.u32 %h2, %b; mul.wide.s16 %d, %h1, %h2;", [0xffff, 300, 0], -300i32 as u32),
    ]);
}

#[test]
fn words_of_64_bits() {
    // a below b, c below a; the result is the low word plus a thousand times the high one.
    let of = |body: &str| {
        format!(
            "mov.b64 %rd1, {{%a, %b}}; mov.b64 %rd2, {{%c, %a}}; {body}
            mov.b64 {{%r1, %r2}}, %rd3; mad.lo.u32 %d, %r2, 1000, %r1;"
        )
    };
    for (body, operands, want) in [
        // 0x7_00000005 - 0x5_00000009
        ("sub.u64 %rd3, %rd1, %rd2;", [5, 7, 9], 1000u32.wrapping_sub(4)),
        // 2^32 · 7 + 5 over 2^32 · 5 + 9
        ("div.u64 %rd3, %rd1, %rd2;", [5, 7, 9], 1),
        ("rem.u64 %rd3, %rd1, %rd2;", [5, 7, 9], 1000u32.wrapping_sub(4)),
        // -2^32 over 3
        ("div.s64 %rd3, %rd1, 3;", [0, u32::MAX, 3], 0xaaaa_aaab_u32.wrapping_sub(1000)),
        ("rem.s64 %rd3, %rd1, 3;", [0, u32::MAX, 3], u32::MAX.wrapping_sub(1000)),
        ("min.s64 %rd3, %rd1, %rd2;", [1, u32::MAX, 2], 1u32.wrapping_sub(1000)),
        ("max.u64 %rd3, %rd1, %rd2;", [1, u32::MAX, 2], 1u32.wrapping_sub(1000)),
        ("min.u64 %rd3, %rd1, %rd2;", [1, u32::MAX, 2], 1002),
        ("max.s64 %rd3, %rd1, %rd2;", [1, u32::MAX, 2], 1002),
        ("and.b64 %rd3, %rd1, %rd2;", [6, 3, 12], 2004),
        ("or.b64 %rd3, %rd1, %rd2;", [6, 3, 12], 7014),
        ("not.b64 %rd3, %rd1;", [!6, !3, 0], 3006),
        ("neg.s64 %rd3, %rd1;", [u32::MAX, u32::MAX, 0], 1),
        ("mad.lo.u64 %rd3, %rd1, 10, %rd2;", [2, 3, 4], 32_024),
        ("mad.wide.u32 %rd3, %a, %b, %rd2;", [0x8000_0000, 4, 5], 5 + 1000u32.wrapping_mul(0x8000_0002)),
        ("mad.wide.s32 %rd3, %a, %b, %rd2;", [u32::MAX, 4, 5], 1 + 1000u32.wrapping_mul(u32::MAX)),
        ("setp.ge.u64 %p1, %rd1, %rd2; selp.b64 %rd3, %rd1, %rd2, %p1;", [5, 7, 9], 7005),
        ("setp.ge.s64 %p1, %rd1, %rd2; selp.b64 %rd3, %rd1, %rd2, %p1;", [5, u32::MAX, 9], 5009),
        ("shr.u64 %rd3, %rd1, %c;", [6, 3, 1], 1003 | 0x8000_0000),
        ("shr.s64 %rd3, %rd1, %c;", [0, u32::MAX, 64], u32::MAX.wrapping_add(1000u32.wrapping_mul(u32::MAX))),
        ("cvt.s64.s32 %rd3, %a;", [u32::MAX, 0, 0], u32::MAX.wrapping_add(1000u32.wrapping_mul(u32::MAX))),
        ("cvt.u64.u32 %rd3, %a;", [u32::MAX, 0, 0], u32::MAX),
    ] {
        assert_eq!(word(&of(body), operands), want, "{body} of {operands:x?}");
    }
}

#[test]
fn comparisons() {
    let (nan, one, two) = (f32::NAN.to_bits(), 1f32.to_bits(), 2f32.to_bits());
    let holds = |rel: &str, a: u32, b: u32| {
        word(&format!("setp.{rel}.f32 %p1, %x, %y; selp.u32 %d, 1, 0, %p1;"), [a, b, 0]) == 1
    };
    // Whether 1 to 2, 1 to 1, 2 to 1, and NaN to 1.
    for (rel, want) in [
        ("eq", [false, true, false, false]),
        ("ne", [true, false, true, false]),
        ("lt", [true, false, false, false]),
        ("le", [true, true, false, false]),
        ("gt", [false, false, true, false]),
        ("ge", [false, true, true, false]),
        ("equ", [false, true, false, true]),
        ("neu", [true, false, true, true]),
        ("ltu", [true, false, false, true]),
        ("leu", [true, true, false, true]),
        ("gtu", [false, false, true, true]),
        ("geu", [false, true, true, true]),
        ("num", [true, true, true, false]),
        ("nan", [false, false, false, true]),
    ] {
        let pairs = [(one, two), (one, one), (two, one), (nan, one)];
        assert_eq!(pairs.map(|(a, b)| holds(rel, a, b)), want, "{rel}");
    }
    let of = |body: &str| format!("{body} selp.u32 %d, 1, 0, %p1;");
    for (body, operands, want) in [
        ("setp.lo.u32 %p1, %a, %b;", [1, u32::MAX, 0], 1),
        ("setp.ls.u32 %p1, %a, %b;", [2, 1, 0], 0),
        ("setp.hi.u32 %p1, %a, %b;", [u32::MAX, 1, 0], 1),
        ("setp.hs.u32 %p1, %a, %b;", [1, 1, 0], 1),
        ("setp.eq.f32 %p1, %x, %y;", [0x8000_0000, 0, 0], 1),
        ("setp.le.f32 %p1, %x, %y;", [0, 0x8000_0000, 0], 1),
        ("setp.le.u32 %p1, %a, %b;", [u32::MAX, 1, 0], 0),
        ("setp.ne.s32 %p1, %a, %b;", [u32::MAX, 1, 0], 1),
        ("setp.le.s32 %p1, %a, %b;", [u32::MAX, 1, 0], 1),
        ("setp.ne.b32 %p2, %c, 0; setp.eq.or.u32 %p1, %a, %b, %p2;", [1, 2, 1], 1),
        ("setp.ne.b32 %p2, %c, 0; setp.eq.xor.u32 %p1, %a, %b, %p2;", [1, 1, 1], 0),
        ("setp.ne.b32 %p2, %c, 0; setp.eq.u32 %p3, %a, %b; or.pred %p1, %p2, %p3;", [1, 2, 0], 0),
        ("mov.b32 {%h1, %h2}, %a; setp.lt.f16 %p1, %h1, %h2;", [0x4000_3c00, 0, 0], 1),
        ("mov.b32 {%h1, %h2}, %a; setp.lt.bf16 %p1, %h1, %h2;", [0x3f80_4000, 0, 0], 0),
    ] {
        assert_eq!(word(&of(body), operands), want, "{body}");
    }
}

#[test]
fn floats_of_32_bits() {
    let none = [0.0; 3];
    floats(&[
        ("add.rn.f32 %w, %x, %y;", [1.5, 2.25, 0.0], 3.75),
        ("sub.rn.f32 %w, %x, %y;", [1.5, 2.25, 0.0], -0.75),
        ("mul.rn.f32 %w, %x, %y;", [1.5, -4.0, 0.0], -6.0),
        // The product 1 + 2^-11 + 2^-24 has lost its last bit where it is rounded on its own.
        (
            "fma.rn.f32 %w, %x, %y, %z;",
            [1.0 + 1.0 / 4096.0, 1.0 + 1.0 / 4096.0, -1.0],
            1.0 / 2048.0 + 1.0 / 16_777_216.0,
        ),
        ("neg.f32 %w, %x;", [2.0, 0.0, 0.0], -2.0),
        ("abs.f32 %w, %x;", [-0.0, 0.0, 0.0], 0.0),
        ("min.f32 %w, %x, %y;", [f32::NAN, 2.0, 0.0], 2.0),
        ("max.f32 %w, %x, %y;", [-0.0, 0.0, 0.0], 0.0),
        ("copysign.f32 %w, %x, %y;", [-1.0, 3.0, 0.0], -3.0),
        ("mul.sat.f32 %w, %x, %y;", [3.0, 2.0, 0.0], 1.0),
        ("fma.rn.sat.f32 %w, %x, %y, %z;", [3.0, 2.0, -9.0], 0.0),
        ("div.full.f32 %w, %x, %y;", [3.0, 8.0, 0.0], 0.375),
        ("div.approx.f32 %w, %x, %y;", [3.0, 8.0, 0.0], 0.375),
        ("div.rn.f32 %w, %x, %y;", [1.0, 3.0, 0.0], 0.333_333_34),
        ("sqrt.rn.f32 %w, %x;", [2.0, 0.0, 0.0], std::f32::consts::SQRT_2),
        ("sqrt.approx.f32 %w, %x;", [2.25, 0.0, 0.0], 1.5),
        ("rsqrt.approx.f32 %w, %x;", [16.0, 0.0, 0.0], 0.25),
        ("rcp.approx.f32 %w, %x;", [8.0, 0.0, 0.0], 0.125),
        ("rcp.rn.f32 %w, %x;", [3.0, 0.0, 0.0], 0.333_333_34),
        ("ex2.approx.f32 %w, %x;", [-3.0, 0.0, 0.0], 0.125),
        ("lg2.approx.f32 %w, %x;", [0.125, 0.0, 0.0], -3.0),
        ("sin.approx.f32 %w, %x;", none, 0.0),
        ("cos.approx.f32 %w, %x;", none, 1.0),
        ("tanh.approx.f32 %w, %x;", [-20.0, 0.0, 0.0], -1.0),
        ("mov.f32 %w, %x;", [-7.5, 0.0, 0.0], -7.5),
        ("setp.gt.f32 %p1, %x, %y; selp.f32 %w, %x, %y, %p1;", [1.0, 2.0, 0.0], 2.0),
    ]);
}

/// Pairs in a word: 1.5 below 2.0, and 3.0 below -0.5.
#[test]
fn floats_of_16_bits() {
    let (half, brain) = ([0x4000_3e00, 0xb800_4200, 0], [0x4000_3fc0, 0xbf00_4040, 0]);
    words(&[
        ("add.f16x2 %d, %a, %b;", half, 0x3e00_4480),
        ("sub.f16x2 %d, %a, %b;", half, 0x4100_be00),
        ("mul.f16x2 %d, %a, %b;", half, 0xbc00_4480),
        ("min.f16x2 %d, %a, %b;", half, 0xb800_3e00),
        ("max.f16x2 %d, %a, %b;", half, 0x4000_4200),
        ("fma.rn.f16x2 %d, %a, %b, %a;", half, 0x3c00_4600),
        ("neg.f16x2 %d, %b;", half, 0x3800_c200),
        ("abs.f16x2 %d, %b;", half, 0x3800_4200),
        ("add.bf16x2 %d, %a, %b;", brain, 0x3fc0_4090),
        ("sub.bf16x2 %d, %a, %b;", brain, 0x4020_bfc0),
        ("mul.bf16x2 %d, %a, %b;", brain, 0xbf80_4090),
        ("min.bf16x2 %d, %a, %b;", brain, 0xbf00_3fc0),
        ("max.bf16x2 %d, %a, %b;", brain, 0x4000_4040),
        ("fma.rn.bf16x2 %d, %a, %b, %a;", brain, 0x3f80_40c0),
        ("neg.bf16x2 %d, %b;", brain, 0x3f00_c040),
        ("abs.bf16x2 %d, %b;", brain, 0x3f00_4040),
        // 2^0 and 2^1; the tangent of 0 and of what is large.
        ("ex2.approx.f16x2 %d, %a;", [0x3c00_0000, 0, 0], 0x4000_3c00),
        ("ex2.approx.ftz.bf16x2 %d, %a;", [0x3f80_0000, 0, 0], 0x4000_3f80),
        ("tanh.approx.f16x2 %d, %a;", [0xcc00_0000, 0, 0], 0xbc00_0000),
        ("tanh.approx.bf16x2 %d, %a;", [0xc180_0000, 0, 0], 0xbf80_0000),
        ("mov.b32 {%h1, %h2}, %a; add.f16 %h3, %h1, %h2; cvt.u32.u16 %d, %h3;", half, 0x4300),
        ("mov.b32 {%h1, %h2}, %a; fma.rn.f16 %h3, %h1, %h2, %h1; cvt.u32.u16 %d, %h3;", half, 0x4480),
        ("mov.b32 {%h1, %h2}, %a; mul.bf16 %h3, %h1, %h2; cvt.u32.u16 %d, %h3;", brain, 0x4040),
    ]);
}

#[test]
fn conversions() {
    floats(&[
        ("cvt.rni.f32.f32 %w, %x;", [2.5, 0.0, 0.0], 2.0),
        ("cvt.rzi.f32.f32 %w, %x;", [-2.5, 0.0, 0.0], -2.0),
        ("cvt.rmi.f32.f32 %w, %x;", [-2.5, 0.0, 0.0], -3.0),
        ("cvt.rpi.f32.f32 %w, %x;", [-2.5, 0.0, 0.0], -2.0),
        ("cvt.sat.f32.f32 %w, %x;", [f32::NAN, 0.0, 0.0], 0.0),
        ("mov.b32 %r1, %x; cvt.rn.f32.u32 %w, %r1;", [f32::from_bits(u32::MAX >> 1), 0.0, 0.0], 2_147_483_648.0),
        ("mov.u32 %r1, 7; neg.s32 %r1, %r1; cvt.rn.f32.s32 %w, %r1;", [0.0; 3], -7.0),
        ("cvt.rna.tf32.f32 %r1, %x; mov.b32 %w, %r1;", [1.0 + 1.0 / 2048.0, 0.0, 0.0], 1.0 + 1.0 / 1024.0),
        ("mov.u32 %r1, 0x40003e00; mov.b32 {%h1, %h2}, %r1; cvt.f32.f16 %w, %h1;", [0.0; 3], 1.5),
        ("mov.u32 %r1, 0x40003e00; mov.b32 {%h1, %h2}, %r1; cvt.f32.bf16 %w, %h2;", [0.0; 3], 2.0),
    ]);
    let f = f32::to_bits;
    words(&[
        ("cvt.rzi.s32.f32 %d, %x;", [f(-2.75), 0, 0], -2i32 as u32),
        ("cvt.rmi.s32.f32 %d, %x;", [f(-2.25), 0, 0], -3i32 as u32),
        ("cvt.rpi.s32.f32 %d, %x;", [f(2.25), 0, 0], 3),
        ("cvt.rni.u32.f32 %d, %x;", [f(3.5), 0, 0], 4),
        ("cvt.rmi.u32.f32 %d, %x;", [f(3.5), 0, 0], 3),
        ("cvt.rpi.u32.f32 %d, %x;", [f(3.5), 0, 0], 4),
        ("cvt.rzi.u32.f32 %d, %x;", [f(-3.0), 0, 0], 0),
        ("cvt.rzi.u32.f32 %d, %x;", [f(5e9), 0, 0], u32::MAX),
        ("cvt.rzi.s32.f32 %d, %x;", [f(-5e9), 0, 0], 0x8000_0000),
        ("cvt.rzi.s32.f32 %d, %x;", [f(f32::NAN), 0, 0], 0),
        // 1 + 2^-11 lies half way: to the even one below; 2^-11 more is cut off.
        ("cvt.rn.f16.f32 %h1, %x; cvt.u32.u16 %d, %h1;", [f(1.0 + 1.0 / 2048.0), 0, 0], 0x3c00),
        ("cvt.rz.f16.f32 %h1, %x; cvt.u32.u16 %d, %h1;", [f(1.0 + 1.9 / 1024.0), 0, 0], 0x3c01),
        ("cvt.rn.bf16.f32 %h1, %x; cvt.u32.u16 %d, %h1;", [f(1.0 + 3.0 / 256.0), 0, 0], 0x3f82),
        ("cvt.rz.bf16.f32 %h1, %x; cvt.u32.u16 %d, %h1;", [f(1.0 + 1.9 / 128.0), 0, 0], 0x3f81),
        ("cvt.rn.f16x2.f32 %d, %x, %y;", [f(2.0), f(1.5), 0], 0x4000_3e00),
        ("cvt.rn.bf16x2.f32 %d, %x, %y;", [f(2.0), f(1.5), 0], 0x4000_3fc0),
        ("cvt.u16.u32 %h1, %a; cvt.rn.f16.u16 %h2, %h1; cvt.u32.u16 %d, %h2;", [3, 0, 0], 0x4200),
        ("cvt.u16.u32 %h1, %a; cvt.rn.bf16.s16 %h2, %h1; cvt.u32.u16 %d, %h2;", [0xffff, 0, 0], 0xbf80),
        ("mov.b32 {%h1, %h2}, %a; cvt.rzi.s32.f16 %d, %h1;", [0xc100, 0, 0], -2i32 as u32),
        ("cvt.sat.s8.s32 %d, %a;", [300, 0, 0], 127),
        ("cvt.sat.u8.s32 %d, %a;", [-5i32 as u32, 0, 0], 0),
        ("cvt.sat.s16.s32 %d, %a;", [-40000i32 as u32, 0, 0], -32768i32 as u32),
        ("cvt.sat.u16.s32 %d, %a;", [70000, 0, 0], 65535),
        ("cvt.u32.u8 %d, %a;", [0x1ff, 0, 0], 0xff),
        ("cvt.s32.s8 %d, %a;", [0x1ff, 0, 0], u32::MAX),
        ("mov.b64 %rd1, {%a, %b}; cvt.u32.u64 %d, %rd1;", [5, 6, 0], 5),
    ]);
}

#[test]
fn lanes_together() {
    let number: [u32; 32] = std::array::from_fn(|i| i as u32);
    let run = |body: &str| lanes(body, [number, [0; 32], [0; 32]]);
    let each = |f: fn(u32) -> u32| (0..32).map(f).collect::<Vec<u32>>();
    assert_eq!(run("redux.sync.min.u32 %d, %a, 0xffffffff;"), [0; 32]);
    assert_eq!(run("sub.s32 %r1, %a, 9; redux.sync.min.s32 %d, %r1, 0xffffffff;"), [-9i32 as u32; 32]);
    assert_eq!(run("or.b32 %r1, %a, 96; redux.sync.and.b32 %d, %r1, 0xffffffff;"), [96; 32]);
    assert_eq!(run("redux.sync.or.b32 %d, %a, 0xffffffff;"), [31; 32]);
    // 0 to 4 once and 5 an odd number of times: 1, 3, 0, 4, 1.
    assert_eq!(run("min.u32 %r1, %a, 5; redux.sync.xor.b32 %d, %r1, 0xffffffff;"), [1; 32]);
    assert_eq!(run("redux.sync.add.s32 %d, 2, 0xffffffff;"), [64; 32]);
    assert_eq!(run("redux.sync.max.u32 %d, %a, 0xffffffff;"), [31; 32]);
    let uniform = "setp.lt.u32 %p1, %a, LIMIT; vote.sync.uni.pred %p2, %p1, 0xffffffff; selp.u32 %d, 1, 0, %p2;";
    assert_eq!(run(&uniform.replace("LIMIT", "32")), [1; 32]);
    assert_eq!(run(&uniform.replace("LIMIT", "31")), [0; 32]);
    let half = "mov.u32 %d, 0; setp.lt.u32 %p1, %a, 16; @!%p1 bra $skip; activemask.b32 %d; $skip: add.u32 %d, %d, 0;";
    assert_eq!(run(half), each(|i| if i < 16 { 0xffff } else { 0 }));
    for (name, want) in [
        ("laneid", each(|i| i)),
        ("lanemask_le", each(|i| u32::MAX >> (31 - i))),
        ("lanemask_gt", each(|i| !(u32::MAX >> (31 - i)))),
        ("lanemask_ge", each(|i| u32::MAX << i)),
        ("lanemask_eq", each(|i| 1 << i)),
    ] {
        assert_eq!(run(&format!("mov.u32 %d, %{name};")), want, "{name}");
    }
}

/// Thread (5, 1, 5) of block (1, 2, 0): number 5 + 8 + 16 · 5 = 93 of 96 threads, lane 29 of the third warp.
#[test]
fn places_in_a_launch() {
    let names = "tid.x tid.y tid.z ntid.x ntid.y ntid.z ctaid.x ctaid.y ctaid.z nctaid.x nctaid.y nctaid.z warpid nwarpid laneid";
    let names: Vec<&str> = names.split(' ').collect();
    let mut stores = String::new();
    for (i, name) in names.iter().enumerate() {
        stores += &format!("mov.u32 %r2, %{name}; @%p1 st.global.u32 [%rd1+{}], %r2;\n", 4 * i);
    }
    let text = format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 p)
.reqntid 8, 2, 6
{{
    .reg .pred %p<6>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, %tid.x;
    mov.u32 %r3, %tid.y;
    mov.u32 %r4, %tid.z;
    mov.u32 %r5, %ctaid.x;
    mov.u32 %r6, %ctaid.y;
    setp.eq.u32 %p1, %r1, 5;
    setp.eq.and.u32 %p1, %r3, 1, %p1;
    setp.eq.and.u32 %p1, %r4, 5, %p1;
    setp.eq.and.u32 %p1, %r5, 1, %p1;
    setp.eq.and.u32 %p1, %r6, 2, %p1;
    {stores}
}}"
    );
    let got = Run::ptx(&text, [8, 2, 6]).grid([2, 3, 1]).output(names.len()).clean().words(0);
    assert_eq!(got, [5, 1, 5, 8, 2, 6, 1, 2, 0, 2, 3, 1, 2, 3, 29]);
}

/// A kernel of one thread on eight words: its statements with `%g` their address, `%s` that of as many bytes of shared memory.
fn alone(body: &str, start: [u32; 8]) -> Vec<u32> {
    let text = format!(
        ".version 7.8
.target sm_90
.address_size 64
.visible .entry main(.param .u64 p)
{{
    .shared .align 16 .b8 own[32];
    .local .align 16 .b8 kept[32];
    .reg .pred %p<4>; .reg .b16 %h<8>; .reg .b32 %r<16>, %s, %k; .reg .b64 %rd<8>, %g; .reg .f32 %f<8>;
    ld.param.u64 %g, [p];
    mov.u32 %s, own;
    mov.u32 %k, kept;
    {body}
}}"
    );
    let words = start.map(f32::from_bits);
    Run::ptx(&text, [1, 1, 1]).inout(&words).with(|o| o.finite = false).clean().words(0)
}

#[test]
fn memory_of_every_width_and_space() {
    let start = [0x8182_f3f4, 0xffff_8001, 3, 4, 5, 6, 7, 8];
    for (body, want) in [
        ("ld.global.u8 %r1, [%g+1]; st.global.u32 [%g], %r1;", vec![0xf3]),
        ("ld.global.s8 %r1, [%g+1]; st.global.u32 [%g], %r1;", vec![0xffff_fff3]),
        ("ld.global.u16 %h1, [%g+4]; cvt.u32.u16 %r1, %h1; st.global.u32 [%g], %r1;", vec![0x8001]),
        ("ld.global.s16 %r1, [%g+4]; st.global.u32 [%g], %r1;", vec![0xffff_8001]),
        ("mov.u32 %r1, 0x1ab; st.global.u8 [%g+2], %r1;", vec![0x81ab_f3f4]),
        ("cvt.u16.u32 %h1, 77; st.global.b16 [%g+2], %h1;", vec![0x004d_f3f4]),
        ("ld.global.u64 %rd1, [%g+8]; st.global.u64 [%g], %rd1;", vec![3, 4]),
        ("ld.global.v2.u64 {%rd1, %rd2}, [%g+16]; st.global.v2.u64 [%g], {%rd2, %rd1};", vec![7, 8, 5, 6]),
        ("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%g+16]; st.global.v4.f32 [%g], {%f4, %f3, %f2, %f1};", vec![8, 7, 6, 5]),
        ("ld.global.nc.v2.u32 {%r1, %r2}, [%g+8]; st.global.v2.u32 [%g], {%r2, %r1};", vec![4, 3]),
        ("ld.global.v2.u32 {%r1, %r2}, [%g+8]; st.global.v2.u32 [%g], {%r2, %r1};", vec![4, 3]),
        (
            "ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%g+16]; st.global.v4.u32 [%g], {%r4, %r3, %r2, %r1};",
            vec![8, 7, 6, 5],
        ),
        ("ld.global.nc.u32 %r1, [%g+12]; st.global.cs.u32 [%g], %r1;", vec![4]),
        ("ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%r1, %r2, %r3, %r4}, [%g+16]; st.global.u32 [%g], %r3;", vec![7]),
        ("ld.volatile.global.u32 %r1, [%g+8]; st.volatile.global.u32 [%g], %r1;", vec![3]),
        ("ld.acquire.gpu.global.u32 %r1, [%g+8]; st.release.gpu.global.u32 [%g], %r1;", vec![3]),
        ("st.shared.v2.u32 [%s+8], {5, 9}; ld.shared.u32 %r1, [%s+12]; st.global.u32 [%g], %r1;", vec![9]),
        ("st.shared.b16 [own+6], 258; ld.shared.u8 %r1, [own+7]; st.global.u32 [%g], %r1;", vec![1]),
        ("st.local.v2.f32 [%k+8], {0f3F800000, 0f40000000}; ld.local.u32 %r1, [kept+12]; st.global.u32 [%g], %r1;", vec![0x4000_0000]),
        ("cvta.to.global.u64 %rd1, %g; ld.u32 %r1, [%rd1+28]; st.u32 [%rd1], %r1;", vec![8]),
        ("cvt.u64.u32 %rd1, %s; cvta.shared.u64 %rd2, %rd1; st.u32 [%rd2+4], 6; ld.shared.u32 %r1, [%s+4]; st.global.u32 [%g], %r1;", vec![6]),
        ("cvt.u64.u32 %rd1, %s; cvta.shared.u64 %rd2, %rd1; cvta.to.shared.u64 %rd3, %rd2; st.shared.u32 [%rd3+4], 6; ld.u32 %r1, [%rd2+4]; st.global.u32 [%g], %r1;", vec![6]),
        ("cp.async.ca.shared.global [%s+4], [%g+20], 4; cp.async.ca.shared.global [%s+8], [%g+24], 8; cp.async.commit_group; cp.async.wait_group 0;
          ld.shared.u32 %r1, [%s+4]; ld.shared.v2.u32 {%r2, %r3}, [%s+8]; st.global.u32 [%g], %r1; st.global.v2.u32 [%g+8], {%r2, %r3};", vec![6, 0xffff_8001, 7, 8]),
    ] {
        let mut all = start.to_vec();
        all.splice(..want.len(), want);
        assert_eq!(alone(body, start), all, "{body}");
    }
}

/// What an atomic operation leaves in the first word (or pair), and what it gives back, here kept in the third.
#[test]
fn atomics() {
    let minus = |v: u32| v.wrapping_neg();
    for (operation, before, left, given) in [
        ("add.u32 %r1, [%g], 5;", 7, 12, 7),
        ("add.s32 %r1, [%g], 5;", minus(7), minus(2), minus(7)),
        ("min.u32 %r1, [%g], 5;", minus(1), 5, minus(1)),
        ("min.s32 %r1, [%g], 5;", minus(1), minus(1), minus(1)),
        ("max.u32 %r1, [%g], 5;", minus(1), minus(1), minus(1)),
        ("max.s32 %r1, [%g], 5;", minus(1), 5, minus(1)),
        ("and.b32 %r1, [%g], 12;", 10, 8, 10),
        ("or.b32 %r1, [%g], 12;", 10, 14, 10),
        ("xor.b32 %r1, [%g], 12;", 10, 6, 10),
        ("exch.b32 %r1, [%g], 12;", 10, 12, 10),
        ("cas.b32 %r1, [%g], 10, 3;", 10, 3, 10),
        ("cas.b32 %r1, [%g], 11, 3;", 10, 10, 10),
        ("inc.u32 %r1, [%g], 10;", 10, 0, 10),
        ("inc.u32 %r1, [%g], 10;", 9, 10, 9),
        ("dec.u32 %r1, [%g], 10;", 0, 10, 0),
        ("dec.u32 %r1, [%g], 10;", 11, 10, 11),
        ("dec.u32 %r1, [%g], 10;", 3, 2, 3),
        ("add.f32 %r1, [%g], 0f3F800000;", 1.5f32.to_bits(), 2.5f32.to_bits(), 1.5f32.to_bits()),
    ] {
        let got = alone(&format!("atom.global.{operation} st.global.u32 [%g+8], %r1;"), [before, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((got[0], got[2]), (left, given), "{operation} on {before:#x}");
    }
    for (operation, left, given) in [
        ("add.u64 %rd1, [%g], 1;", [0, 4], [u32::MAX, 3]),
        ("min.s64 %rd1, [%g], 1;", [1, 0], [u32::MAX, 3]),
        ("max.u64 %rd1, [%g], 1;", [u32::MAX, 3], [u32::MAX, 3]),
        ("and.b64 %rd1, [%g], 0x200000005;", [5, 2], [u32::MAX, 3]),
        ("exch.b64 %rd1, [%g], 6;", [6, 0], [u32::MAX, 3]),
        ("cas.b64 %rd1, [%g], 0x3ffffffff, 6;", [6, 0], [u32::MAX, 3]),
    ] {
        let got =
            alone(&format!("atom.global.{operation} st.global.u64 [%g+8], %rd1;"), [u32::MAX, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!((&got[..2], &got[2..4]), (&left[..], &given[..]), "{operation}");
    }
    assert_eq!(
        alone("red.global.min.u32 [%g], 5; red.relaxed.gpu.global.add.u32 [%g+4], 2;", [9, 9, 0, 0, 0, 0, 0, 0])[..2],
        [5, 11]
    );
}

/// Instructions that change no value, and barriers of any number: two warps hand a word over.
#[test]
fn order_and_barriers() {
    for meet in ["bar.sync 0;", "bar.sync 3;", "bar.sync 1, 64;", "barrier.cta.sync 2;", "barrier.sync.aligned 0;"] {
        let text = format!(
            ".version 7.8
.target sm_90
.address_size 64
.visible .entry main(.param .u64 p)
.reqntid 64
{{
    .shared .align 4 .b8 own[256];
    .reg .b32 %r<8>; .reg .b64 %rd<4>;
    griddepcontrol.launch_dependents;
    griddepcontrol.wait;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, %tid.x;
    prefetch.global.L2 [%rd1];
    nanosleep.u32 20;
    mov.u32 %r2, own;
    mad.lo.u32 %r3, %r1, 4, %r2;
    st.shared.u32 [%r3], %r1;
    membar.cta;
    fence.acq_rel.gpu;
    {meet}
    sub.u32 %r4, 63, %r1;
    mad.lo.u32 %r4, %r4, 4, %r2;
    ld.shared.u32 %r5, [%r4];
    mad.wide.u32 %rd2, %r1, 4, %rd1;
    st.global.u32 [%rd2], %r5;
    ret;
}}"
        );
        let got = Run::ptx(&text, [64, 1, 1]).output(64).clean().words(0);
        assert_eq!(got, (0..64).rev().collect::<Vec<u32>>(), "{meet}");
    }
}

/// A guard on every kind of instruction keeps lanes out; `exit` ends some of them early.
#[test]
fn guards_and_exits() {
    let number: [u32; 32] = std::array::from_fn(|i| i as u32);
    let body = "setp.lt.u32 %p1, %a, 4; mov.u32 %d, 1; @%p1 add.u32 %d, %d, 8; @!%p1 mul.lo.u32 %d, %d, 5;
        st.global.u32 [%out], %d; setp.ge.u32 %p2, %a, 8; @%p2 exit; add.u32 %d, %d, 100;";
    let want: Vec<u32> = (0..32)
        .map(|i| {
            if i < 4 {
                109
            } else if i < 8 {
                105
            } else {
                5
            }
        })
        .collect();
    assert_eq!(lanes(body, [number, [0; 32], [0; 32]]), want);
    assert_eq!(word("mov.u32 %d, WARP_SZ;", NONE), 32);
    assert_eq!(word("bra.uni $past; mov.u32 %d, 1; $past: mov.u32 %d, 2;", NONE), 2);
}
