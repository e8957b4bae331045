//! Matrix instructions: products of whole tiles, loaded by `ldmatrix` from shared memory that asynchronous copies fill.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Run;
use frit_simt::ViolationKind as V;
use half::{bf16, f16};

/// One warp: `out[16, 8] = a[16, k] b[8, k]ᵀ + c`, with rows of `row` bytes (16 or 32) in `a` and `b`.
fn product(types: &str, shape: &str, row: u32) -> String {
    let wide = row == 32;
    let (na, nb) = if wide { (4, 2) } else { (2, 1) };
    let regs = |p: &str, n: u32| (0..n).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(", ");
    let (half, int) = (types.starts_with("f16"), types.starts_with("s32"));
    let nc = if half { 2 } else { 4 };
    let d = regs(if half || int { "d" } else { "e" }, nc);
    let zero = if half || int { "mov.b32 %dI, 0;" } else { "mov.f32 %eI, 0f3F800000;" };
    let start: String = (0..nc).map(|i| zero.replace('I', &i.to_string())).collect();
    let store = match (half, int) {
        (true, _) => "st.global.u32 [%o], %d0; st.global.u32 [%o+128], %d1;",
        (_, true) => "st.global.v2.u32 [%o], {%d0, %d1}; st.global.v2.u32 [%o+256], {%d2, %d3};",
        _ => "st.global.v2.f32 [%o], {%e0, %e1}; st.global.v2.f32 [%o+256], {%e2, %e3};",
    };
    let element = if half { 4 } else { 8 };
    let copies = if wide { 16 } else { 8 };
    format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 pa, .param .u64 pb, .param .u64 po)
{{
    .shared .align 128 .b8 a[512];
    .shared .align 128 .b8 b[256];
    .reg .pred %p<4>; .reg .b32 %r<32>, %a<4>, %b<2>, %d<4>, %i; .reg .f32 %e<4>; .reg .b64 %rd<16>, %o;
    ld.param.u64 %rd1, [pa];
    ld.param.u64 %rd2, [pb];
    ld.param.u64 %rd3, [po];
    mov.u32 %i, %tid.x;
    // Every lane copies one chunk of a, and the first of them one of b.
    mov.u32 %r1, a;
    mov.u32 %r2, b;
    mad.lo.u32 %r3, %i, 16, %r1;
    mad.lo.u32 %r4, %i, 16, %r2;
    mad.wide.u32 %rd4, %i, 16, %rd1;
    mad.wide.u32 %rd5, %i, 16, %rd2;
    setp.lt.u32 %p1, %i, {chunks};
    setp.lt.u32 %p2, %i, {copies};
    @%p1 cp.async.cg.shared.global [%r3], [%rd4], 16;
    @%p2 cp.async.cg.shared.global [%r4], [%rd5], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.warp.sync 0xffffffff;
    and.b32 %r5, %i, 15;
    shr.u32 %r6, %i, 4;
    mad.lo.u32 %r7, %r5, {row}, %r1;
    mad.lo.u32 %r7, %r6, {step}, %r7;
    and.b32 %r8, %i, 7;
    bfe.u32 %r9, %i, 3, 1;
    mad.lo.u32 %r10, %r8, {row}, %r2;
    mad.lo.u32 %r10, %r9, {step}, %r10;
    ldmatrix.sync.aligned.m8n8.x{na}.shared.b16 {{{fa}}}, [%r7];
    ldmatrix.sync.aligned.m8n8.x{nb}.shared.b16 {{{fb}}}, [%r10];
    {start}
    mma.sync.aligned.{shape}.row.col.{types} {{{d}}}, {{{fa}}}, {{{fb}}}, {{{d}}};
    shr.u32 %r11, %i, 2;
    and.b32 %r12, %i, 3;
    mad.lo.u32 %r13, %r11, 4, %r12;
    mad.wide.u32 %o, %r13, {element}, %rd3;
    {store}
    ret;
}}",
        chunks = if wide { 32 } else { 16 },
        step = if wide { 16 } else { 0 },
        fa = regs("a", na),
        fb = regs("b", nb),
    )
}

/// Small integers, exact in every type.
fn numbers(n: usize, salt: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * 7 + salt * 13 + i / 5) % 15) as i32 - 7).collect()
}

fn expected(a: &[i32], b: &[i32], k: usize, start: i32) -> Vec<f32> {
    let dot = |m: usize, n: usize| (0..k).map(|i| a[m * k + i] * b[n * k + i]).sum::<i32>() + start;
    (0..128).map(|i| dot(i / 8, i % 8) as f32).collect()
}

fn check(types: &str, shape: &str, k: usize, bytes_of: impl Fn(i32) -> Vec<u8>) {
    let (a, b) = (numbers(16 * k, 1), numbers(8 * k, 2));
    let content = |v: &[i32]| -> Vec<u8> { v.iter().flat_map(|x| bytes_of(*x)).collect() };
    let row = content(&a).len() as u32 / 16;
    let text = product(types, shape, row);
    for permute in [None, Some(3)] {
        let run = Run::ptx(&text, [32, 1, 1]).input_bytes(content(&a)).input_bytes(content(&b));
        let run = if types.starts_with("f16") { run.output_half(128) } else { run.output(128) };
        let out = run.with(|o| o.permute_mma = permute).clean();
        let got: Vec<f32> = match &types[..3] {
            "f32" => out.floats(2),
            "s32" => out.words(2).into_iter().map(|w| w as i32 as f32).collect(),
            _ => out.buffers[2].chunks_exact(2).map(|c| f16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
        };
        assert_eq!(got, expected(&a, &b, k, i32::from(types.starts_with("f32"))), "{types}");
        assert_eq!(out.counters.warp_of(frit_simt::Class::Matrix), 3);
    }
}

#[test]
fn products_of_every_type() {
    let f = |x: i32| f16::from_f32(x as f32).to_le_bytes().to_vec();
    let b = |x: i32| bf16::from_f32(x as f32).to_le_bytes().to_vec();
    let t = |x: i32| (x as f32).to_le_bytes().to_vec();
    let s = |x: i32| vec![x as i8 as u8];
    check("f32.f16.f16.f32", "m16n8k16", 16, f);
    check("f16.f16.f16.f16", "m16n8k16", 16, f);
    check("f32.bf16.bf16.f32", "m16n8k16", 16, b);
    check("f32.f16.f16.f32", "m16n8k8", 8, f);
    check("f32.bf16.bf16.f32", "m16n8k8", 8, b);
    check("f32.tf32.tf32.f32", "m16n8k8", 8, t);
    check("f32.tf32.tf32.f32", "m16n8k4", 4, t);
    check("s32.s8.s8.s32", "m16n8k32", 32, s);
    check("s32.s8.s8.s32", "m16n8k16", 16, s);
}

#[test]
fn unsigned_bytes_and_ignored_bits() {
    let text = product("s32.u8.u8.s32", "m16n8k32", 32);
    let out = Run::ptx(&text, [32, 1, 1]).input_bytes(vec![200; 512]).input_bytes(vec![3; 256]).output(128).clean();
    assert_eq!(out.words(2), [200 * 3 * 32; 128]);
    let text = product("f32.tf32.tf32.f32", "m16n8k8", 32);
    let odd = f32::from_bits(1f32.to_bits() | 0x1fff).to_le_bytes();
    let ones = 1f32.to_le_bytes();
    let run = Run::ptx(&text, [32, 1, 1]).input_bytes(odd.repeat(128)).input_bytes(ones.repeat(64)).output(128);
    assert_eq!(run.clean().floats(2), [9.0; 128]);
}

#[test]
fn a_transposed_load_gives_columns() {
    let text = ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 p, .param .u64 q)
{
    .shared .align 16 .b8 tile[128];
    .reg .b32 %r<8>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [p];
    ld.param.u64 %rd2, [q];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    ld.global.u32 %r2, [%rd3];
    mov.u32 %r3, tile;
    mad.lo.u32 %r4, %r1, 4, %r3;
    st.shared.u32 [%r4], %r2;
    BARRIER
    and.b32 %r5, %r1, 7;
    mad.lo.u32 %r5, %r5, 16, %r3;
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r6}, [%r5+OFFSET];
    mad.wide.u32 %rd4, %r1, 4, %rd2;
    st.global.u32 [%rd4], %r6;
}";
    let bytes: Vec<u8> = (0..64u16).flat_map(u16::to_le_bytes).collect();
    let run = |barrier: &str, offset: &str| {
        let text = text.replace("BARRIER", barrier).replace("OFFSET", offset);
        Run::ptx(&text, [32, 1, 1]).input_bytes(bytes.clone()).output(32)
    };
    let out = run("bar.sync 0;", "0").clean();
    let got: Vec<u16> = out.buffers[1].chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
    assert_eq!(got, (0..64u16).map(|i| i % 8 * 8 + i / 8).collect::<Vec<_>>());
    // That lane i may be the one to read what lane i wrote does not help.
    assert_eq!(run("", "0").run().only(|k| matches!(k, V::Race { .. })).count, 32);
    assert_eq!(run("bar.sync 0;", "8").run().only(|k| matches!(k, V::Misaligned { .. })).count, 8);
    let past = run("bar.sync 0;", "16").run();
    assert_eq!(past.only(|k| *k == V::ReadOutOfBounds).address.unwrap().offset, 128);
}

#[test]
fn a_barrier_missing_in_front_of_a_matrix_load() {
    let text = product("f32.f16.f16.f32", "m16n8k16", 32).replace("bar.warp.sync 0xffffffff;", "");
    let out = Run::ptx(&text, [32, 1, 1]).input_bytes(vec![0; 512]).input_bytes(vec![0; 256]).output(128).run();
    assert_eq!(out.violations.iter().filter(|v| matches!(v.kind, V::Race { .. })).count(), 2);
}

#[test]
fn a_matrix_instruction_in_part_of_a_warp() {
    let text = product("f32.f16.f16.f32", "m16n8k16", 32).replace("mma.sync", "@%p2 mma.sync");
    let out = Run::ptx(&text, [32, 1, 1]).input_bytes(vec![0; 512]).input_bytes(vec![0; 256]).output(128).run();
    assert_eq!(out.only(|k| *k == V::CollectiveDivergence).count, 16);
}

#[test]
fn an_overflow_in_an_accumulator() {
    let text = product("f16.f16.f16.f16", "m16n8k16", 32);
    let big = f16::from_f32(300.0).to_le_bytes();
    let run = Run::ptx(&text, [32, 1, 1]).input_bytes(big.repeat(256)).input_bytes(big.repeat(128)).output_half(128);
    assert_eq!(run.run().only(|k| *k == V::NotFinite).count, 32);
}

#[test]
fn a_copy_fills_up_with_zeros() {
    let text = ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 p, .param .u64 q, .param .u32 n)
{
    .shared .align 16 .b8 tile[16];
    .reg .b32 %r<8>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [p];
    ld.param.u64 %rd2, [q];
    ld.param.u32 %r5, [n];
    cp.async.cg.shared.global.L2::128B [tile], [%rd1], 16, %r5;
    cp.async.wait_all;
    ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [tile];
    st.global.v4.u32 [%rd2], {%r1, %r2, %r3, %r4};
}";
    for n in [0u32, 4, 6, 12, 16] {
        // The source ends where the copy is told to end.
        let source: Vec<u8> = (1..=n as u8).collect();
        let out = Run::ptx(text, [1, 1, 1]).input_bytes(source.clone()).output(4).value(n).clean();
        let mut want = source;
        want.resize(16, 0);
        assert_eq!(out.buffers[1], want);
    }
}
