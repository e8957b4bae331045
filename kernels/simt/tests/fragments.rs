//! Fragment maps of matrix instructions, computed by hand from the instruction set's description: which lane, register and
//! part of a register holds which element.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Run;

/// A place in a fragment: lane, register, part of the register.
type Place = (usize, usize, usize);

/// A type of product: its suffixes, registers of a, b and c, and an element's bits for 2 and 3.
struct Kind {
    shape: &'static str,
    types: &'static str,
    registers: [usize; 3],
    parts: usize,
    bits: [u32; 2],
}

/// Every lane loads its registers as they stand in memory, register by register.
fn product(k: &Kind) -> String {
    let [na, nb, nc] = k.registers;
    let names = |p: &str, n: usize| (0..n).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(", ");
    let load = |p: &str, n: usize, from: usize| -> String {
        (0..n).map(|i| format!("    ld.global.u32 %{p}{i}, [%rd3+{}];\n", 128 * (from + i))).collect()
    };
    let float = k.types.starts_with("f32");
    let c = if float { "f" } else { "c" };
    let zero = if float { "0f00000000" } else { "0" };
    let start: String = (0..nc).map(|i| format!("    mov.b32 %{c}{i}, {zero};\n")).collect();
    let store: String = (0..nc).map(|i| format!("    st.global.b32 [%rd3+{}], %{c}{i};\n", 128 * i)).collect();
    format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 pin, .param .u64 pout)
{{
    .reg .b32 %a<4>, %b<2>, %c<4>, %i; .reg .f32 %f<4>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [pin];
    ld.param.u64 %rd2, [pout];
    mov.u32 %i, %tid.x;
    mad.wide.u32 %rd3, %i, 4, %rd1;
{}{}{start}    mma.sync.aligned.{}.row.col.{} {{{}}}, {{{}}}, {{{}}}, {{{}}};
    mad.wide.u32 %rd3, %i, 4, %rd2;
{store}}}",
        load("a", na, 0),
        load("b", nb, na),
        k.shape,
        k.types,
        names(c, nc),
        names("a", na),
        names("b", nb),
        names(c, nc),
    )
}

/// One element of a (3) and one of b (2) meet in one element of the product, or not at all.
fn meet(k: &Kind, a: Place, b: Place) -> Vec<u32> {
    let [na, nb, nc] = k.registers;
    let width = 32 / k.parts as u32;
    let mut words = vec![0u32; 32 * (na + nb)];
    words[32 * a.1 + a.0] = k.bits[1] << (a.2 as u32 * width);
    words[32 * (na + b.1) + b.0] = k.bits[0] << (b.2 as u32 * width);
    let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Run::ptx(&product(k), [32, 1, 1]).input_bytes(bytes).output(32 * nc).clean().words(1)
}

/// Where 6 stands in the product, and nothing else.
fn check(k: &Kind, a: Place, b: Place, d: (usize, usize), six: u32) {
    let mut want = vec![0; 32 * k.registers[2]];
    want[32 * d.1 + d.0] = six;
    assert_eq!(meet(k, a, b), want, "{} {}: a {a:?}, b {b:?}", k.shape, k.types);
}

const F16: Kind =
    Kind { shape: "m16n8k16", types: "f32.f16.f16.f32", registers: [4, 2, 4], parts: 2, bits: [0x4000, 0x4200] };

#[test]
fn halves_of_depth_16() {
    let six = 6f32.to_bits();
    let bf16 = Kind { types: "f32.bf16.bf16.f32", bits: [0x4000, 0x4040], ..F16 };
    for k in [&F16, &bf16] {
        // Lane 13 is group 3, thread 1: a0 is row 3, column 2; b0 of lane 21, group 5, thread 1, is row 2, column 5.
        check(k, (13, 0, 0), (21, 0, 0), (14, 1), six);
        // a3 is row 11, column 3; b1 of lane 1 is row 3, column 0; row 11, column 0 is c2 of lane 12.
        check(k, (13, 1, 1), (1, 0, 1), (12, 2), six);
        // Lane 30, group 7, thread 2: a5 is row 7, column 13; b3 of lane 30 is row 13, column 7.
        check(k, (30, 2, 1), (30, 1, 1), (31, 1), six);
        // a6 of lane 0 is row 8, column 8; b2 of lane 16 is row 8, column 4; row 8, column 4 is c2 of lane 2.
        check(k, (0, 3, 0), (16, 1, 0), (2, 2), six);
        // Columns 2 of a and 3 of b do not meet.
        assert_eq!(meet(k, (13, 0, 0), (21, 0, 1)), vec![0; 128]);
    }
    // Accumulators in halves: c0 and c1 share a register. Row 11, column 0 is the low half of the second of lane 12.
    let half = Kind { types: "f16.f16.f16.f16", registers: [4, 2, 2], ..F16 };
    check(&half, (13, 1, 1), (1, 0, 1), (12, 1), 0x4600);
    // Row 3, column 5 is the high half of the first of lane 14.
    check(&half, (13, 0, 0), (21, 0, 0), (14, 0), 0x4600_0000);
}

#[test]
fn halves_of_depth_8() {
    let k = Kind { shape: "m16n8k8", registers: [2, 1, 4], ..F16 };
    // a2 of lane 13 is row 11, column 2; row 11, column 5 is c3 of lane 14.
    check(&k, (13, 1, 0), (21, 0, 0), (14, 3), 6f32.to_bits());
}

#[test]
fn tf32() {
    let k = Kind {
        shape: "m16n8k8",
        types: "f32.tf32.tf32.f32",
        registers: [4, 2, 4],
        parts: 1,
        bits: [2f32.to_bits(), 3f32.to_bits()],
    };
    let six = 6f32.to_bits();
    // a2 of lane 13 is row 3, column 5; b1 of lane 21 is row 5, column 5.
    check(&k, (13, 2, 0), (21, 1, 0), (14, 1), six);
    // a1 of lane 13 is row 11, column 1; b0 of lane 1 is row 1, column 0.
    check(&k, (13, 1, 0), (1, 0, 0), (12, 2), six);
    let k = Kind { shape: "m16n8k4", registers: [2, 1, 4], ..k };
    // a1 of lane 30 is row 15, column 2; b0 of lane 2 is row 2, column 0; row 15, column 0 is c2 of lane 28.
    check(&k, (30, 1, 0), (2, 0, 0), (28, 2), six);
}

#[test]
fn bytes() {
    let k = Kind { shape: "m16n8k32", types: "s32.s8.s8.s32", registers: [4, 2, 4], parts: 4, bits: [2, 3] };
    // a11 of lane 13 is row 3, column 4 + 3 + 16 = 23; b7 of lane 21 is row 23, column 5.
    check(&k, (13, 2, 3), (21, 1, 3), (14, 1), 6);
    let unsigned = Kind { types: "s32.u8.u8.s32", ..k };
    check(&unsigned, (13, 2, 3), (21, 1, 3), (14, 1), 6);
    // A byte of 253 is -3 where it is signed.
    let minus = Kind { types: "s32.s8.s8.s32", bits: [2, 253], ..unsigned };
    check(&minus, (13, 2, 3), (21, 1, 3), (14, 1), -6i32 as u32);
    let k = Kind { shape: "m16n8k16", registers: [2, 1, 4], bits: [2, 3], ..minus };
    // a4 of lane 30 is row 15, column 8; b0 of lane 6 is row 8, column 1; row 15, column 1 is c3 of lane 28.
    check(&k, (30, 1, 0), (6, 0, 0), (28, 3), 6);
}

/// Element (row, column) of tile i holds `64 i + 8 row + column`; the tiles stand in memory in reverse.
#[test]
fn matrix_loads() {
    for (tiles, count) in [("x1", 1usize), ("x2", 2), ("x4", 4)] {
        let regs: Vec<String> = (0..count).map(|i| format!("%r{}", 8 + i)).collect();
        let store: String =
            regs.iter().enumerate().map(|(i, r)| format!("    st.global.u32 [%rd3+{}], {r};\n", 128 * i)).collect();
        let text = format!(
            ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 pin, .param .u64 pout)
{{
    .shared .align 16 .b8 tile[512];
    .reg .b32 %r<12>, %i; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [pin];
    ld.param.u64 %rd2, [pout];
    mov.u32 %i, %tid.x;
    mov.u32 %r1, tile;
    mad.wide.u32 %rd3, %i, 16, %rd1;
    ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd3];
    mad.lo.u32 %r6, %i, 16, %r1;
    st.shared.v4.u32 [%r6], {{%r2, %r3, %r4, %r5}};
    bar.sync 0;
    // Lane 8 i + r names row r of tile i, which is the row before the end by as many.
    xor.b32 %r7, %i, 24;
    mad.lo.u32 %r7, %r7, 16, %r1;
    ldmatrix.sync.aligned.m8n8.{tiles}.shared.b16 {{{}}}, [%r7];
    mad.wide.u32 %rd3, %i, 4, %rd2;
{store}}}",
            regs.join(", ")
        );
        let content: Vec<u8> =
            (0..4u16).rev().flat_map(|i| (0..64).map(move |e| 64 * i + e)).flat_map(u16::to_le_bytes).collect();
        let got = Run::ptx(&text, [32, 1, 1]).input_bytes(content).output(32 * count).clean().words(1);
        // Lane 13 has row 3 from column 2 on: elements 26 and 27 of each tile.
        for i in 0..count {
            let first = 64 * i as u32 + 26;
            assert_eq!(got[32 * i + 13], first | ((first + 1) << 16));
            assert_eq!(got[32 * i], (64 * i as u32) | ((64 * i as u32 + 1) << 16));
        }
        let all = (0..32 * count as u32).map(|n| (2 * n) | ((2 * n + 1) << 16));
        assert_eq!(got, all.collect::<Vec<_>>());
    }
}

/// Three groups of copies, of which two may be pending: the first has landed, the second not.
#[test]
fn groups_of_copies_land_in_order() {
    let text = |wait: u32, read: u32| {
        format!(
            ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 pin, .param .u64 pout)
{{
    .shared .align 16 .b8 tile[48];
    .reg .b32 %r<8>; .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [pin];
    ld.param.u64 %rd2, [pout];
    mov.u32 %r1, tile;
    cp.async.cg.shared.global [%r1], [%rd1], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r1+16], [%rd1+16], 8;
    cp.async.ca.shared.global [%r1+24], [%rd1+24], 8;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r1+32], [%rd1+32], 4;
    cp.async.commit_group;
    cp.async.wait_group {wait};
    ld.shared.u32 %r2, [%r1+{read}];
    st.global.u32 [%rd2], %r2;
}}"
        )
    };
    let content: Vec<u8> = (0..12u32).flat_map(u32::to_le_bytes).collect();
    let run = |wait, read| Run::ptx(&text(wait, read), [1, 1, 1]).input_bytes(content.clone()).output(1);
    assert_eq!(run(2, 12).clean().words(1), [3]);
    assert_eq!(run(1, 28).clean().words(1), [7]);
    assert_eq!(run(0, 32).clean().words(1), [8]);
    for (wait, read) in [(3, 0), (2, 16), (2, 28), (1, 32)] {
        assert_eq!(run(wait, read).run().only(|k| *k == frit_simt::ViolationKind::PendingCopy).count, 1);
    }
}
