//! The text reads well, and naga accepts it.
#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::{Consumer, Error, Options, emit};
use crate::ir::tests::{checked_wgsl, random_module};
use crate::ir::*;

fn tiled_matmul() -> Module {
    let b = Builder::new("matmul_tiled", [16, 16, 1]);
    b.doc("out[M, N] = a[M, K] w[K, N]");
    let (a, w) = (b.input("a", Type::F32), b.input("w", Type::F32));
    let out = b.output("out", Type::F32);
    let p = b.uniforms("params", &[("m", Scalar::U32), ("n", Scalar::U32), ("k", Scalar::U32)]);
    let (m, n, k) = (b.field(p, "m"), b.field(p, "n"), b.field(p, "k"));
    let (tile_a, tile_w) = (b.workgroup("tile_a", Type::F32, 256), b.workgroup("tile_w", Type::F32, 256));
    let (row, col) = (b.let_("row", b.global_y()), b.let_("col", b.global_x()));
    let (ly, lx) = (b.local_y(), b.local_x());
    let slot = b.let_("slot", b.add(b.mul(ly, 16), lx));
    let acc = b.var("acc", Type::F32, 0.0);
    b.for_("k0", 0, k, 16, |b, k0| {
        let (ka, kw) = (b.add(k0, lx), b.add(k0, ly));
        let (xa, xw) = (b.var("xa", Type::F32, 0.0), b.var("xw", Type::F32, 0.0));
        b.if_(b.and(b.lt(row, m), b.lt(ka, k)), |b| b.set(xa, b.load(a, b.add(b.mul(row, k), ka))));
        b.if_(b.and(b.lt(kw, k), b.lt(col, n)), |b| b.set(xw, b.load(w, b.add(b.mul(kw, n), col))));
        b.store(tile_a, slot, xa);
        b.store(tile_w, slot, xw);
        b.barrier();
        b.for_unrolled("i", 0, 2, 1, |b, i| {
            b.fma_to(acc, b.load(tile_a, b.add(b.mul(ly, 16), i)), b.load(tile_w, b.add(b.mul(i, 16), lx)));
        });
        b.barrier();
    });
    b.if_(b.and(b.lt(row, m), b.lt(col, n)), |b| b.store(out, b.add(b.mul(row, n), col), acc));
    b.finish().unwrap()
}

#[test]
fn tiled_matmul_reads_as_written_by_hand() {
    let text = checked_wgsl(&tiled_matmul());
    if std::env::var_os("FRIT_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/matmul_tiled.wgsl"), &text).unwrap();
    }
    assert_eq!(text, include_str!("../../../tests/golden/matmul_tiled.wgsl"));
}

fn one(make: impl FnOnce(&Builder, ArrayRef)) -> String {
    let b = Builder::new("k", [64, 1, 1]);
    let out = b.output("out", Type::F32);
    make(&b, out);
    let text = checked_wgsl(&b.finish().unwrap());
    let (_, body) = text.split_once(") {\n").or_else(|| text.split_once("main() {\n")).unwrap();
    body.trim_end_matches("}\n").trim().to_owned()
}

#[test]
fn parentheses_stand_only_where_needed() {
    let text = one(|b, out| {
        let (x, y, i) = (b.load(out, 1), b.load(out, 2), b.global_x());
        b.store(out, b.add(b.mul(b.add(i, 1), 4), i), b.sub(x, b.sub(y, b.mul(b.neg(x), y))));
    });
    let expected = "let out_at = out[1u];\n    let out_at_1 = out[2u];\n    \
        out[(global_id.x + 1u) * 4u + global_id.x] = out_at - (out_at_1 - -out_at * out_at_1);";
    assert_eq!(text, expected);
    let text = one(|b, out| {
        let i = b.global_x();
        let bits = b.bit_or(b.shl(b.add(i, 1), 4), b.bit_and(i, 0x0f0f_0f0f));
        b.store(out, bits, b.select(b.lt(i, 4), 1.0, -0.5));
    });
    assert_eq!(
        text,
        "out[((global_id.x + 1u) << 4u) | (global_id.x & 0xf0f0f0fu)] = select(-0.5, 1.0, global_id.x < 4u);"
    );
}

#[test]
fn transcendentals_are_bounded() {
    let text = one(|b, out| b.store(out, 0, b.tanh(b.load(out, 0))));
    assert_eq!(text, "out[0u] = tanh(clamp(out[0u], -15.0, 15.0));");
    let text = one(|b, out| b.store(out, 0, b.exp(b.load(out, 0))));
    assert_eq!(text, "out[0u] = exp(min(out[0u], 88.0));");
    let text = one(|b, out| b.store(out, 0, b.silu(b.load(out, 0))));
    assert_eq!(text, "let out_at = out[0u];\n    out[0u] = out_at / (1.0 + exp(min(-out_at, 80.0)));");
}

/// The helper function of the text, step by step.
fn erf_as_emitted(x: f32) -> f32 {
    let near: Vec<f32> = crate::emit::polynomials::ERF_NEAR.iter().map(|k| k.parse().unwrap()).collect();
    let far: Vec<f32> = crate::emit::polynomials::ERF_FAR.iter().map(|k| k.parse().unwrap()).collect();
    let t = x.abs().min(4.0);
    let s = t * t;
    let p = near.iter().copied().reduce(|p, k| p.mul_add(s, k)).unwrap();
    let q = far[0].mul_add(t, far[1]);
    let q = q.mul_add(s, far[2].mul_add(t, far[3]));
    let q = far[4..].iter().fold(q, |q, k| q.mul_add(t, *k)).mul_add(t, -t);
    if t > 0.927_734_4 { x.signum() * (1.0 - q.exp()) } else { p.mul_add(x, x) }
}

/// `2 / sqrt(pi) * sum((-1)^n x^(2n + 1) / (n! (2n + 1)))`
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..150 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn erf_is_within_two_in_ten_million() {
    for i in -4000..=4000 {
        let x = i as f32 * 0.001;
        let error = (f64::from(erf_as_emitted(x)) - erf_series(f64::from(x))).abs();
        assert!(error <= 2e-7, "erf({x}) is off by {error:e}");
    }
    for x in [5.0, 30.0, 1e4, f32::MAX] {
        assert_eq!((erf_as_emitted(x), erf_as_emitted(-x)), (1.0, -1.0));
    }
}

#[test]
fn erf_helper_is_plain_text() {
    let b = Builder::new("k", [64, 1, 1]);
    let out = b.output("out", Type::F32);
    b.store(out, 0, b.erf(b.load(out, 0)));
    let text = checked_wgsl(&b.finish().unwrap());
    let (_, helper) = text.split_once("\n\n").unwrap().1.split_once("\n\n").unwrap();
    let (helper, _) = helper.split_once("\n@compute").unwrap();
    assert_eq!(helper, include_str!("../../../tests/golden/erf_1.wgsl"));
}

#[test]
fn reserved_words_move_aside() {
    let b = Builder::new("k", [1, 1, 1]);
    let out = b.output("override", Type::F32);
    let p = b.uniforms("for", &[("loop", Scalar::F32)]);
    let exp = b.let_("exp", b.mul(b.field(p, "loop"), 2.0));
    b.store(out, 0, b.exp(b.add(exp, exp)));
    let text = checked_wgsl(&b.finish().unwrap());
    assert!(text.contains("let exp_ = for_.loop_ * 2.0;\n    override_[0u] = exp(min(exp_ + exp_, 88.0));"), "{text}");
}

#[test]
fn constants_without_a_value_are_refused() {
    for text in ["log(0.0f)", "mul(3e38f, 10.0f)", "bits_f32(2139095040u)", "rcp(0.0f)", "exp(100.0f)"] {
        let module = "kernel k\nworkgroup_size 1 1 1\nbuffer @y binding 0 read_write f32\nbody {\nstore @y[0u] = ";
        let module = parse(&format!("{module}{text}\n}}")).unwrap();
        assert!(matches!(emit(&module, &Options::default()), Err(Error::Constant { .. })), "{text}");
    }
}

#[test]
fn only_browsers_get_the_subgroup_line() {
    let b = Builder::new("k", [64, 1, 1]);
    let out = b.output("out", Type::F32);
    let sum = b.collective("sum", Collective::Add, b.load(out, b.global_x()));
    b.store(out, b.global_x(), sum);
    let module = b.finish().unwrap();
    assert!(!checked_wgsl(&module).contains("enable"));
    let browser = Options { consumer: Consumer::Browser, ..Options::default() };
    assert!(emit(&module, &browser).unwrap().contains("\nenable subgroups;\n"));
}

#[test]
fn elements_of_a_texture_lie_in_rows() {
    let at = "vec2<u32>((local_id.x + 7u) & 1023u, (local_id.x + 7u) >> 10u)";
    let bound = [
        (Texture::Storage, "texture_storage_2d<rgba32uint, read>", format!("textureLoad(w, {at}).z")),
        (Texture::Sampled, "texture_2d<u32>", format!("textureLoad(w, {at}, 0).z")),
    ];
    for (texture, ty, load) in bound {
        let b = Builder::new("k", [8, 1, 1]);
        let w = b.buffer("w", Access::Texels(texture), Type::VEC4_U32);
        let out = b.output("out", Type::U32);
        b.store(out, 0, b.lane(b.load(w, b.add(b.local_x(), 7)), 2));
        let text = checked_wgsl(&b.finish().unwrap());
        assert!(text.contains(&format!("@group(0) @binding(0) var w: {ty};")), "{text}");
        assert!(text.contains(&load), "{text}");
    }
}

#[test]
fn f16_memory_is_enabled_by_use() {
    let b = Builder::new("k", [64, 1, 1]);
    let (x, out) = (b.input("x", Type::F16), b.output("out", Type::F32));
    b.store(out, 0, b.cast(Scalar::F32, b.add(b.load(x, 0), b.zero(Type::F16))));
    assert!(checked_wgsl(&b.finish().unwrap()).contains("\nenable f16;\n"));
}

proptest! {
    #[test]
    fn every_kernel_is_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..250)) {
        match emit(&random_module(&bytes, true), &Options::default()) {
            Ok(_) => { checked_wgsl(&random_module(&bytes, true)); }
            Err(e) => prop_assert!(matches!(e, Error::Constant { .. }), "{}", e),
        }
    }
}
