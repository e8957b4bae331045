//! Perturbed results: as far from the exact ones as the language lets them be, and no further.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, lanes_with};
use half::{bf16, f16};

const SEEDS: u64 = 24;

/// Thirty-two numbers from `low` to `high`, each as many times larger than the one before.
fn spread(low: f64, high: f64) -> [f32; 32] {
    std::array::from_fn(|i| (low * (high / low).powf(i as f64 / 31.0)) as f32)
}

fn steps(low: f64, high: f64) -> [f32; 32] {
    std::array::from_fn(|i| (low + (high - low) * i as f64 / 31.0) as f32)
}

/// The distance between neighbours around a number.
fn ulp(x: f64) -> f64 {
    let exponent = i32::from(((x as f32).to_bits() >> 23) as u8);
    2f64.powi(exponent.max(1) - 150)
}

/// Largest error of what `run` makes of `x`, as a share of the bound.
fn share(
    what: &str,
    x: [f32; 32],
    run: impl Fn(u64) -> Vec<f64>,
    exact: impl Fn(f64) -> f64,
    bound: impl Fn(f64) -> f64,
) -> f64 {
    let mut most = 0f64;
    for seed in 0..SEEDS {
        for (got, x) in run(seed).into_iter().zip(x.map(f64::from)) {
            let share = (got - exact(x)).abs() / bound(x);
            assert!(share <= 1.0, "{what} of {x}, seed {seed}: {got} for {}", exact(x));
            most = most.max(share);
        }
    }
    most
}

/// Checks an instruction on `%x` for `%w`.
fn ptx(instruction: &str, x: [f32; 32], exact: impl Fn(f64) -> f64, bound: impl Fn(f64) -> f64) {
    let run = |seed| {
        let words = [x.map(f32::to_bits), [0; 32], [0; 32]];
        let got = lanes_with(&format!("{instruction} mov.b32 %d, %w;"), words, |o| o.perturb = Some(seed));
        got.into_iter().map(|w| f64::from(f32::from_bits(w))).collect()
    };
    let most = share(instruction, x, run, exact, bound);
    assert!(most > 0.85, "{instruction}: {most} of the bound at most");
}

/// The tables of the instruction set, version 9.1.
#[test]
fn ptx_functions_fill_their_bounds() {
    let bits = |n: f64| (-n).exp2();
    let relative = |f: fn(f64) -> f64, n: f64| move |x: f64| (-n).exp2() * f(x).abs();
    let units = |f: fn(f64) -> f64, n: f64| move |x: f64| n * ulp(f(x));
    ptx("lg2.approx.f32 %w, %x;", spread(0.500_001, 1.999_999), f64::log2, |_| bits(22.0));
    ptx("lg2.approx.f32 %w, %x;", spread(2.0, 1e38), f64::log2, relative(f64::log2, 22.0));
    ptx("lg2.approx.f32 %w, %x;", spread(1e-38, 0.5), f64::log2, relative(f64::log2, 22.0));
    ptx("ex2.approx.f32 %w, %x;", steps(-120.0, 120.0), f64::exp2, units(f64::exp2, 2.0));
    for (name, f) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
        ptx(&format!("{name}.approx.f32 %w, %x;"), steps(-6.25, 6.25), f, |_| bits(20.5));
        ptx(&format!("{name}.approx.f32 %w, %x;"), steps(6.5, 314.0), f, |_| bits(14.7));
    }
    let root = |x: f64| 1.0 / x.sqrt();
    ptx("rsqrt.approx.f32 %w, %x;", spread(1e-30, 1e30), root, relative(root, 22.9));
    ptx("sqrt.approx.f32 %w, %x;", spread(1e-30, 1e30), f64::sqrt, relative(f64::sqrt, 23.0));
    ptx("rcp.approx.f32 %w, %x;", spread(1e-30, 1e30), |x| 1.0 / x, units(|x| 1.0 / x, 1.0));
    for div in ["div.approx.f32", "div.full.f32"] {
        let three = format!("mov.f32 %y, 0f40400000; {div} %w, %y, %x;");
        ptx(&three, spread(1e-30, 1e30), |x| 3.0 / x, units(|x| 3.0 / x, 2.0));
    }
    ptx("tanh.approx.f32 %w, %x;", steps(-6.0, 6.0), f64::tanh, relative(f64::tanh, 11.0));
}

/// Results that the tables give for zeros.
#[test]
fn ptx_functions_of_zero_are_exact() {
    for (name, want) in [("sin", 0f32), ("cos", 1.0), ("ex2", 1.0), ("tanh", 0.0), ("sqrt", 0.0)] {
        for seed in 0..SEEDS {
            let body = format!("{name}.approx.f32 %w, %x; mov.b32 %d, %w;");
            assert_eq!(lanes_with(&body, [[0; 32]; 3], |o| o.perturb = Some(seed)), [want.to_bits(); 32], "{name}");
        }
    }
}

#[test]
fn ptx_functions_of_halves_fill_their_bounds() {
    let check = |name: &str, exact: fn(f64) -> f64, bound: &dyn Fn(f64) -> f64| {
        let of = |x: f32| if name.contains("bf16") { bf16::from_f32(x).to_f32() } else { f16::from_f32(x).to_f32() };
        let word = |x: f32| {
            let half = if name.contains("bf16") { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };
            u32::from(half) << 16 | u32::from(half)
        };
        let x = steps(-4.0, 4.0).map(of);
        let run = |seed| {
            let got =
                lanes_with(&format!("{name} %d, %a;"), [x.map(word), [0; 32], [0; 32]], |o| o.perturb = Some(seed));
            assert!(got.iter().all(|w| w >> 16 == w & 0xffff), "equal halves");
            let value = |w: u32| match name.contains("bf16") {
                true => bf16::from_bits(w as u16).to_f64(),
                false => f16::from_bits(w as u16).to_f64(),
            };
            got.into_iter().map(value).collect()
        };
        let most = share(name, x, run, exact, bound);
        assert!(most > 0.85, "{name}: {most} of the bound at most");
    };
    check("ex2.approx.f16x2", f64::exp2, &|x| (-9.9f64).exp2() * x.exp2());
    check("ex2.approx.ftz.bf16x2", f64::exp2, &|x| (-7f64).exp2() * x.exp2());
    check("tanh.approx.f16x2", f64::tanh, &|_| (-10.987f64).exp2());
    check("tanh.approx.bf16x2", f64::tanh, &|_| (-8f64).exp2());
}

/// Results of a WGSL expression of `v`, perturbed or not.
fn wgsl(expression: &str, x: [f32; 32], seed: Option<u64>) -> Vec<f64> {
    let text = format!(
        "@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) i: u32) {{ let v = x[i]; y[i] = {expression}; }}"
    );
    let run = Run::wgsl(&text, [32, 1, 1]).input(&x).output(32).with(|o| o.perturb = seed);
    run.clean().floats(1).into_iter().map(f64::from).collect()
}

/// Checks an expression of `v`, which is exact where nothing is perturbed; the share of the bound that must be reached.
fn fills(expression: &str, x: [f32; 32], exact: fn(f64) -> f64, bound: impl Fn(f64) -> f64, least: f64) {
    for (got, x) in wgsl(expression, x, None).into_iter().zip(x) {
        assert_eq!(got as f32, exact(x.into()) as f32, "{expression} of {x}");
    }
    let most = share(expression, x, |seed| wgsl(expression, x, Some(seed)), exact, bound);
    assert!(most > least, "{expression}: {most} of the bound at most");
}

/// "Accuracy of concrete floating point expressions" of the specification; what is said for a range alone is tested there.
#[test]
fn wgsl_functions_fill_their_bounds() {
    let bits = |n: f64| (-n).exp2();
    let pi = 0.9999 * std::f64::consts::PI;
    fills("log2(v)", spread(0.5, 2.0), f64::log2, |_| bits(21.0), 0.85);
    fills("log2(v)", spread(2.01, 1e38), f64::log2, |x| 3.0 * ulp(x.log2()), 0.85);
    fills("log(v)", spread(0.5, 2.0), f64::ln, |_| bits(21.0), 0.85);
    fills("log(v)", spread(1e-38, 0.49), f64::ln, |x| 3.0 * ulp(x.ln()), 0.85);
    fills("exp(v)", steps(-80.0, 80.0), f64::exp, |x| (3.0 + 2.0 * x.abs()) * ulp(x.exp()), 0.85);
    fills("exp2(v)", steps(-120.0, 120.0), f64::exp2, |x| (3.0 + 2.0 * x.abs()) * ulp(x.exp2()), 0.85);
    fills("sin(v)", steps(-pi, pi), f64::sin, |_| bits(11.0), 0.85);
    fills("cos(v)", steps(-pi, pi), f64::cos, |_| bits(11.0), 0.85);
    fills("inverseSqrt(v)", spread(1e-30, 1e30), |x| 1.0 / x.sqrt(), |x| 2.0 * ulp(1.0 / x.sqrt()), 0.85);
    fills("1.0 / v", spread(1e-30, 1e30), |x| 1.0 / x, |x| 2.5 * ulp(1.0 / x), 0.85);
    fills("atan(v)", steps(-9.0, 9.0), f64::atan, |x| 4096.0 * ulp(x.atan()), 0.85);
    fills("atan2(v, -2.0)", steps(-9.0, 9.0), |x| x.atan2(-2.0), |x| 4096.0 * ulp(x.atan2(-2.0)), 0.85);
    // Beyond 15 the worse of the two bounds is not the fixed one.
    fills("tanh(v)", steps(-9.0, 9.0), f64::tanh, |_| 1e-5, 0.85);
    let tanh = |x: f64| (2.0 * (3.0 + 2.0 * x.abs()) + 2.5) * bits(23.0);
    fills("tanh(v)", steps(30.0, 80.0), f64::tanh, tanh, 0.3);
}

/// Functions that are as accurate as an expression: the errors of its parts, to first order and a little more, all of
/// which are rarely as large as they may be.
#[test]
fn wgsl_functions_inherit_the_errors_of_their_expressions() {
    let bits = |n: f64| (-n).exp2();
    let unit = bits(23.0);
    let exp = |x: f64| (3.0 + 2.0 * x.abs()) * unit * x.exp();
    // Of the argument of a logarithm, relative.
    let log =
        move |v: f64, off: f64| off * 1.01 + if (0.49..2.01).contains(&v) { bits(21.0) } else { 3.0 * ulp(v.ln()) };
    let root = 5.0 * unit;
    fills("sqrt(v)", spread(1e-30, 1e30), f64::sqrt, |x| 6.6 * ulp(x.sqrt()), 0.5);
    let tan = |x: f64| 1.01 * bits(11.0) * (1.0 + x.tan().abs()) / x.cos().abs() + 3.0 * unit * x.tan().abs();
    fills("tan(v)", steps(-1.3, 1.3), f64::tan, tan, 0.4);
    let halves = |x: f64| 0.5 * (exp(x) + exp(-x)) + unit * x.cosh();
    fills("sinh(v)", steps(-20.0, 20.0), f64::sinh, halves, 0.4);
    fills("cosh(v)", steps(-20.0, 20.0), f64::cosh, halves, 0.4);
    let asinh = |x: f64| log(x + (x * x + 1.0).sqrt(), root + unit);
    fills("asinh(v)", steps(0.0, 40.0), f64::asinh, asinh, 0.3);
    let acosh = |x: f64| {
        let (square, low) = (x * x - 1.0, (x * x - 1.0).sqrt());
        log(x + low, (unit * x * x / square * low + root * low) / (x + low) + unit)
    };
    fills("acosh(v)", steps(1.2, 40.0), f64::acosh, acosh, 0.3);
    let atanh = |x: f64| 0.5 * log((1.0 + x) / (1.0 - x), 4.0 * unit + unit / (1.0 - x.abs())) + unit;
    fills("atanh(v)", steps(-0.9, 0.9), f64::atanh, atanh, 0.3);
    // A fixed bound, or that of `atan2` with an error in its second argument.
    let arc = |least: f64| {
        move |x: f64| {
            let (angle, other) = (x.asin().abs().max(x.acos().abs()), (1.0 - x * x).sqrt());
            least + 4096.0 * ulp(angle) + (unit / (other * other) + root) * other
        }
    };
    fills("asin(v)", steps(-0.999, 0.999), f64::asin, arc(6.81e-5), 0.3);
    fills("acos(v)", steps(-0.999, 0.999), f64::acos, arc(6.77e-5), 0.3);
    let pow =
        |x: f64| (1.7 * x.log2().abs() * bits(21.0) * 2.0 + 6.5 * unit) * x.powf(1.7) * 2.0 + bits(20.0) * x.powf(1.7);
    fills("pow(v, 1.7)", steps(0.6, 1.9), |x| x.powf(f64::from(1.7f32)), pow, 0.1);
}

/// `x - y trunc(x / y)` may take one multiple too few of a number, and `fma` may round twice.
#[test]
fn what_is_exact_on_some_implementations_need_not_be() {
    let x = std::array::from_fn(|i| 3.0 * (i + 1) as f32);
    let mut found = [0; 2];
    for seed in 0..SEEDS {
        for got in wgsl("v % 3.0", x, Some(seed)) {
            assert!(got == 0.0 || got == 3.0, "{got}");
            found[usize::from(got == 3.0)] += 1;
        }
    }
    assert!(found.iter().all(|n| *n > 50), "{found:?}");
    assert!(wgsl("v % 3.0", x, None).iter().all(|v| *v == 0.0));
    // (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24, which the rounded product has lost.
    let (mut found, x) = ([0; 2], [1.0 + 1.0 / 4096.0; 32]);
    let fma = "fma(v, v, -1.0 - 1.0 / 2048.0)";
    for got in (0..SEEDS).flat_map(|seed| wgsl(fma, x, Some(seed))) {
        assert!(got == 0.0 || got == 2f64.powi(-24), "{got}");
        found[usize::from(got == 0.0)] += 1;
    }
    assert!(found.iter().all(|n| *n > 0), "{found:?}");
    assert!(wgsl(fma, x, None).iter().all(|v| *v == 2f64.powi(-24)));
}

/// A logarithm of one and a sine of zero are within an absolute bound, not exact.
#[test]
fn absolute_bounds_hold_where_the_exact_result_is_zero() {
    for (expression, x) in [("log(v)", 1.0), ("log2(v)", 1.0), ("sin(v)", 0.0), ("tanh(v)", 0.0), ("acos(v)", 1.0)] {
        assert!((0..SEEDS).any(|seed| wgsl(expression, [x; 32], Some(seed))[0] != 0.0), "{expression}");
    }
    let one = [[1f32.to_bits(); 32], [0; 32], [0; 32]];
    let log = |seed| lanes_with("lg2.approx.f32 %w, %x; mov.b32 %d, %w;", one, |o| o.perturb = Some(seed))[0];
    assert!((0..SEEDS).any(|seed| log(seed) != 0));
}
