//! One case of each family of WGSL's functions, operators and atomics, operands and results written out by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, put_words};

/// The words that one invocation puts.
fn eval(body: &str) -> Vec<u32> {
    put_words("let one = x[1]; let four = x[4]; let six = u32(x[6]); let minus = -i32(x[7]);", body)
}

/// Functions whose value at these places is exact, or known to the last digit.
#[test]
fn functions_of_floats() {
    let cases: &[(&str, f32)] = &[
        ("exp(one)", std::f32::consts::E),
        ("exp2(-four)", 0.0625),
        ("log(one)", 0.0),
        ("log2(four / 32.0)", -3.0),
        ("pow(four, 1.5)", 8.0),
        ("sqrt(four)", 2.0),
        ("inverseSqrt(four * four)", 0.25),
        ("sin(one - 1.0)", 0.0),
        ("cos(one - 1.0)", 1.0),
        ("tan(one - 1.0)", 0.0),
        ("asin(one)", std::f32::consts::FRAC_PI_2),
        ("acos(-one)", std::f32::consts::PI),
        ("atan(one)", std::f32::consts::FRAC_PI_4),
        ("atan2(-one, -one)", -3.0 * std::f32::consts::FRAC_PI_4),
        ("sinh(one - 1.0)", 0.0),
        ("cosh(one - 1.0)", 1.0),
        ("tanh(four * 5.0)", 1.0),
        ("asinh(one - 1.0)", 0.0),
        ("acosh(one)", 0.0),
        ("atanh(one - 1.0)", 0.0),
        ("ceil(-four / 3.0)", -1.0),
        ("floor(-four / 3.0)", -2.0),
        ("trunc(-four / 3.0)", -1.0),
        ("round(four + 0.5)", 4.0),
        ("fract(-four / 16.0)", 0.75),
        ("sign(-four)", -1.0),
        ("saturate(four)", 1.0),
        ("abs(-four)", 4.0),
        ("min(one, four)", 1.0),
        ("max(one, four)", 4.0),
        ("ldexp(one * 1.5, minus)", 0.011_718_75),
        ("quantizeToF16(one + 1.0 / 2048.0)", 1.0),
        ("length(vec2<f32>(3.0 * one, four))", 5.0),
        ("-four % 3.0", -1.0),
        ("mix(one, four, 0.25)", 1.75),
    ];
    let body: String = cases.iter().map(|(value, _)| format!("putf({value}); ")).collect();
    for ((value, want), got) in cases.iter().zip(eval(&body)) {
        assert_eq!(got, want.to_bits(), "{value}: {} for {want}", f32::from_bits(got));
    }
}

#[test]
fn functions_and_operators_of_integers() {
    let cases: &[(&str, u32)] = &[
        ("six + 7u", 13),
        ("six - 7u", u32::MAX),
        ("six * 0x40000000u", 0x8000_0000),
        ("bitcast<u32>(minus / 2)", -3i32 as u32),
        ("bitcast<u32>(minus % 4)", -3i32 as u32),
        ("six / 4u", 1),
        ("six % 4u", 2),
        ("bitcast<u32>(minus * 3)", -21i32 as u32),
        ("bitcast<u32>(-minus)", 7),
        ("six & 12u", 4),
        ("six | 9u", 15),
        ("six ^ 3u", 5),
        ("~six", 0xffff_fff9),
        ("six << 30u", 0x8000_0000),
        ("six >> 1u", 3),
        ("bitcast<u32>(minus >> 1u)", -4i32 as u32),
        ("bitcast<u32>(min(minus, 3))", -7i32 as u32),
        ("bitcast<u32>(max(minus, 3))", 3),
        ("max(six, 9u)", 9),
        ("clamp(six, 7u, 9u)", 7),
        ("bitcast<u32>(sign(minus))", u32::MAX),
        ("bitcast<u32>(abs(minus))", 7),
        ("countTrailingZeros(six)", 1),
        ("countLeadingZeros(six)", 29),
        ("countOneBits(six)", 2),
        ("reverseBits(six)", 0x6000_0000),
        ("firstLeadingBit(six)", 2),
        // -7 is 0b…1001: the highest bit that differs from the sign.
        ("bitcast<u32>(firstLeadingBit(minus))", 2),
        ("firstTrailingBit(six)", 1),
        ("firstTrailingBit(six - 6u)", u32::MAX),
        ("firstLeadingBit(six - 6u)", u32::MAX),
        ("u32(dot(vec2<i32>(minus, 2), vec2<i32>(-1, 1)))", 9),
    ];
    let body: String = cases.iter().map(|(value, _)| format!("put({value}); ")).collect();
    for ((value, want), got) in cases.iter().zip(eval(&body)) {
        assert_eq!(got, *want, "{value}: {got:#x} for {want:#x}");
    }
}

#[test]
fn truth() {
    let cases: &[(&str, bool)] = &[
        ("one == four", false),
        ("one != four", true),
        ("one < four", true),
        ("one <= four", true),
        ("one > four", false),
        ("one >= four", false),
        ("minus < 0", true),
        ("bitcast<u32>(minus) < 7u", false),
        ("one < 2.0 && four < 2.0", false),
        ("one < 2.0 || four < 2.0", true),
        ("(one < 2.0) & (four > 2.0)", true),
        ("(one > 2.0) | (four < 2.0)", false),
        ("!(one < 2.0)", false),
        ("all(vec2<f32>(one, four) < vec2<f32>(2.0, 4.0))", false),
        ("any(vec2<f32>(one, four) < vec2<f32>(2.0, 4.0))", true),
    ];
    let body: String = cases.iter().map(|(value, _)| format!("putb({value}); ")).collect();
    for ((value, want), got) in cases.iter().zip(eval(&body)) {
        assert_eq!(got, u32::from(*want), "{value}");
    }
}

#[test]
fn vectors_and_choices() {
    assert_eq!(
        eval(
            "let v = vec4<f32>(one, 2.0, 3.0, four);
            let w = v.zx * 2.0; putf(w.x); putf(w.y);
            let c = select(v, -v, vec4<bool>(true, false, one < 2.0, false)); putf(c.x); putf(c.y); putf(c.z); putf(c.w);
            putf(dot(v, vec4<f32>(1.0, -1.0, 1.0, -1.0))); put(u32(vec3<f32>(one).z)); puti(i32(bitcast<f32>(0xc0000000u + u32(x[0]))));
            put(arrayLength(&x));"
        ),
        [6f32, 2.0, -1.0, 2.0, -3.0, 4.0, -2.0]
            .map(f32::to_bits)
            .into_iter()
            .chain([1, -2i32 as u32, 8])
            .collect::<Vec<_>>()
    );
}

/// What an operation gives back and what it leaves, on a word of 10 and a number of -10.
#[test]
fn atomics() {
    let text = "
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@group(0) @binding(1) var<storage, read_write> w: array<atomic<u32>>;
@group(0) @binding(2) var<storage, read_write> n: array<atomic<i32>>;
@compute @workgroup_size(1)
fn main() {
    y[0] = atomicAdd(&w[0], 5u);
    y[1] = atomicSub(&w[1], 3u);
    y[2] = atomicMax(&w[2], 12u);
    y[3] = atomicMin(&w[3], 12u);
    y[4] = atomicAnd(&w[4], 6u);
    y[5] = atomicOr(&w[5], 6u);
    y[6] = atomicXor(&w[6], 6u);
    y[7] = atomicExchange(&w[7], 6u);
    let hit = atomicCompareExchangeWeak(&w[8], 10u, 4u);
    y[8] = hit.old_value + select(0u, 100u, hit.exchanged);
    let miss = atomicCompareExchangeWeak(&w[9], 11u, 4u);
    y[9] = miss.old_value + select(0u, 100u, miss.exchanged);
    atomicStore(&w[10], 77u);
    y[10] = atomicLoad(&w[10]);
    y[11] = bitcast<u32>(atomicMax(&n[0], 3));
    y[12] = bitcast<u32>(atomicMin(&n[1], 3));
}";
    let (tens, minus) = ([f32::from_bits(10); 11], [f32::from_bits(-10i32 as u32); 2]);
    let left = Run::wgsl(text, [1, 1, 1]).output(13).inout(&tens).inout(&minus).clean();
    let m = -10i32 as u32;
    assert_eq!(left.words(0), [10, 10, 10, 10, 10, 10, 10, 10, 110, 10, 77, m, m]);
    assert_eq!(left.words(1), [15, 7, 12, 10, 2, 14, 12, 6, 4, 10, 77]);
    assert_eq!(left.words(2), [3, m]);
}
