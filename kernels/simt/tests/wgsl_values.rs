//! WGSL against its definition, with values computed by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, put_words};
use frit_simt::ViolationKind;

/// Runs statements in one invocation; each `put(v)` leaves a word.
fn eval(body: &str) -> Vec<u32> {
    put_words("let five = u32(x[5]); let minus = -i32(x[7]); let half = x[1] / 2.0;", body)
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn integers() {
    // five = 5 = 0b101, minus = -7.
    assert_eq!(
        eval(
            "put(five / 2u); put(five % 3u); puti(minus / 2); puti(minus % 3); put(five << 3u); puti(minus >> 1u);
            put(countOneBits(five)); put(countLeadingZeros(five)); put(reverseBits(five)); put(firstTrailingBit(20u));
            put(extractBits(0xabcdu, 4u, 8u)); puti(extractBits(0x80, 4u, 4u));
            put(select(1u, 2u, five > 4u)); puti(abs(minus)); put(~five); put(min(five, 3u)); puti(clamp(minus, -3, 3));"
        ),
        [
            2,
            2,
            -3i32 as u32,
            -1i32 as u32,
            40,
            -4i32 as u32,
            2,
            29,
            0xa000_0000,
            2,
            0xbc,
            -8i32 as u32,
            2,
            7,
            0xffff_fffa,
            3,
            -3i32 as u32,
        ]
    );
}

#[test]
fn floats_and_conversions() {
    assert_eq!(
        eval(
            "putf(half + 1.0); putf(fma(half, 4.0, -1.0)); putf(floor(-half)); putf(round(2.0 + half)); putf(fract(2.25 + 0.0 * half));
            putf(sqrt(16.0 * half * 2.0)); putf(inverseSqrt(half / 2.0)); putf(exp2(half * 6.0)); putf(clamp(half, 0.75, 1.0));
            putf(mix(1.0, 3.0, half)); putf(f32(minus)); putf(dot(vec3<f32>(1.0, 2.0, 3.0), vec3<f32>(half)));
            putf(sign(-half)); putf(step(0.25, half));"
        ),
        // Halves round to even.
        bits(&[1.5, 1.0, -1.0, 2.0, 0.25, 4.0, 2.0, 8.0, 0.75, 2.0, -7.0, 3.0, -1.0, 1.0])
    );
    assert_eq!(
        eval("puti(i32(-half * 5.0)); put(u32(half * 7.0)); put(u32(-half)); put(bitcast<u32>(half));"),
        [-2i32 as u32, 3, 0, 0x3f00_0000]
    );
}

#[test]
fn packed_words() {
    assert_eq!(
        eval(
            "put(pack2x16float(vec2<f32>(1.0, -2.0))); putf(unpack2x16float(0xc0003c00u).y);
            put(pack4xU8(vec4<u32>(1u, 2u, 3u, 260u))); put(unpack4xU8(0x04030201u).z); puti(unpack4xI8(0xff030201u).w);"
        ),
        [0xc000_3c00, (-2f32).to_bits(), 0x0403_0201, 3, -1i32 as u32]
    );
    // 1·5 + 2·6 + 3·7 + 255·8 unsigned; the last byte is -1 where it is signed.
    assert_eq!(
        eval("put(dot4U8Packed(0xff030201u, 0x08070605u)); puti(dot4I8Packed(0xff030201u, 0x08070605u));"),
        [38 + 2040, 30]
    );
}

/// Shares of the largest number; packing rounds to the nearest and bounds first.
#[test]
fn normalised_parts_and_inserted_bits() {
    assert_eq!(
        eval(
            "putf(unpack4x8unorm(0x00ff3300u).y); putf(unpack4x8snorm(0x81807f00u).y); putf(unpack4x8snorm(0x00800000u).z);
            putf(unpack2x16unorm(0xffff0000u).y); putf(unpack2x16snorm(0x80007fffu).x);
            put(pack4x8unorm(vec4<f32>(0.0, 0.2, 1.0, 7.0))); put(pack4x8snorm(vec4<f32>(-1.0, -9.0, 1.0, 0.0)));
            put(pack2x16unorm(vec2<f32>(1.0, 0.0))); put(pack2x16snorm(vec2<f32>(-1.0, 1.0)));
            put(insertBits(0xffff0000u, 0xabu, 4u, 8u)); put(insertBits(0x1234u, 0xffffffffu, 7u, 0u));
            put(insertBits(0u, 0xdeadbeefu, 0u, 32u)); puti(insertBits(0, -1, 31u, 1u));"
        ),
        [
            0.2f32.to_bits(),
            1f32.to_bits(),
            (-1f32).to_bits(),
            1f32.to_bits(),
            1f32.to_bits(),
            0xffff_3300,
            0x007f_8181,
            0x0000_ffff,
            0x7fff_8001,
            0xffff_0ab0,
            0x1234,
            0xdead_beef,
            0x8000_0000
        ]
    );
}

#[test]
fn control_flow() {
    let body = "var sum = 0u;
    for (var i = 0u; i < 10u; i += 1u) { if (i == 3u) { continue; } if (i == 7u) { break; } sum += i; }
    put(sum);
    var n = 0u;
    loop { n += five; if (n > 12u) { break; } continuing { n += 1u; } }
    put(n);
    switch five { case 1u, 2u: { put(10u); } case 5u: { put(20u); } default: { put(30u); } }
    var turns = 0u;
    while (turns < five) { turns += 2u; }
    put(turns);";
    // 0+1+2+4+5+6; 5, 11, 16; the second case; 2, 4, 6.
    assert_eq!(eval(body)[..4], [18, 17, 20, 6]);
}

#[test]
fn arrays_and_vectors() {
    let body = "var a: array<u32, 4>;
    a[five - 2u] = 9u;
    a[five - 5u] = a[3] + 1u;
    put(a[0]); put(a[1]); put(a[3]);
    var v = vec4<f32>(1.0, 2.0, 3.0, 4.0);
    v[five - 4u] = 20.0;
    putf(v.y); putf(v.wzyx.x);";
    assert_eq!(eval(body), [10, 0, 9, 20f32.to_bits(), 4f32.to_bits()]);
}

#[test]
fn workgroup_memory_barriers_and_atomics() {
    let text = "
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
var<workgroup> tile: array<vec2<u32>, 64>;
var<workgroup> count: atomic<u32>;
var<workgroup> shared_value: u32;
@compute @workgroup_size(8, 4, 2)
fn main(@builtin(local_invocation_index) i: u32, @builtin(local_invocation_id) id: vec3<u32>, @builtin(workgroup_id) g: vec3<u32>) {
    if (i == 0u) { atomicStore(&count, 0u); }
    tile[i] = vec2<u32>(i, id.x + 10u * id.y + 100u * id.z);
    workgroupBarrier();
    atomicAdd(&count, 1u);
    let other = tile[63u - i];
    if (i == 5u) { shared_value = 77u; }
    let all = workgroupUniformLoad(&shared_value);
    workgroupBarrier();
    y[g.x * 64u + i] = other.x + 1000u * other.y + 1000000u * atomicLoad(&count) + all;
}";
    let got = Run::wgsl(text, [8, 4, 2]).output(128).grid([2, 1, 1]).clean().words(0);
    // Invocation 63 is (7, 3, 1), invocation 46 is (6, 1, 1).
    assert_eq!(got[0], 63 + 1000 * 137 + 64_000_000 + 77);
    assert_eq!(got[64 + 17], 46 + 1000 * 116 + 64_000_000 + 77);
}

#[test]
fn subgroup_operations() {
    let text = |value: &str| {
        format!(
            "
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(16)
fn main(@builtin(local_invocation_index) i: u32) {{ y[i] = {value}; }}"
        )
    };
    let run =
        |value: &str| Run::wgsl(&text(value), [16, 1, 1]).output(16).with(|o| o.subgroup_size = 8).clean().words(0);
    // Two subgroups of eight: 0 to 7 and 8 to 15.
    assert_eq!(run("subgroupAdd(i)"), [[28; 8], [92; 8]].concat());
    assert_eq!(run("subgroupInclusiveAdd(1u)"), [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(run("subgroupExclusiveAdd(i)"), [0, 0, 1, 3, 6, 10, 15, 21, 0, 8, 17, 27, 38, 50, 63, 77]);
    assert_eq!(run("subgroupExclusiveMul(2u)")[..4], [1, 2, 4, 8]);
    assert_eq!(run("subgroupMin(i) + 100u * subgroupMax(i)"), [[700; 8], [1508; 8]].concat());
    assert_eq!(run("subgroupBroadcast(i, 3u)"), [[3; 8], [11; 8]].concat());
    assert_eq!(run("subgroupBroadcastFirst(i)"), [[0; 8], [8; 8]].concat());
    assert_eq!(run("subgroupShuffle(i, 7u - i % 8u)")[..9], [7, 6, 5, 4, 3, 2, 1, 0, 15]);
    assert_eq!(run("subgroupShuffleXor(i, 3u)")[8..12], [11, 10, 9, 8]);
    assert_eq!(run("subgroupBallot(i % 3u == 0u).x"), [[0b0100_1001; 8], [0b1001_0010; 8]].concat());
    assert_eq!(run("u32(subgroupAny(i == 9u)) + 2u * u32(subgroupAll(i < 8u))"), [[2; 8], [1; 8]].concat());
    assert_eq!(run("subgroupAnd(i | 8u) + 16u * subgroupOr(i) + 256u * subgroupXor(i)")[..8], [8 + 16 * 7; 8]);
    assert_eq!(run("subgroupOr(i)")[8..], [15; 8]);
    // Reductions take the invocations that take part, where that may not be all of them.
    let some = text("0u").replace("y[i] = 0u;", "y[i] = 0u; if (i % 2u == 1u) { y[i] = subgroupAdd(i); }");
    let run = |text: &str| Run::wgsl(text, [16, 1, 1]).output(16).with(|o| o.subgroup_size = 8);
    let got = run(&format!("diagnostic(off, subgroup_uniformity);\n{some}")).clean().words(0);
    assert_eq!(got, [0, 16, 0, 16, 0, 16, 0, 16, 0, 48, 0, 48, 0, 48, 0, 48]);
    run(&some).run().only(|k| *k == ViolationKind::CollectiveDivergence);
}
