//! Single kernels on the adapter wgpu finds, in the schedule for drivers that run on processor cores.
//!
//! `cargo bench --workspace --bench kernels` prints first how much faster the register-blocked gemm is than the plain one,
//! measured in turns within one run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../kernels/tests/support/mod.rs"]
mod kernel;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use frit_kernels::dim::Dim;
use frit_kernels::dtype::{Scalar, Storage};
use frit_kernels::spec::{Anchor, ReduceOp, Space, Stat, UnaryOp};
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::{Rendered, render};
use kernel::blocks::Random;
use kernel::build::{SpecBuilder, dim};
use kernel::{Case, gpu};
use std::time::Duration;

const SIDE: u64 = 512;

/// `x[S, k] · w[n, k]ᵀ`.
fn product(rows: u64, n: u64, k: u64, storage: Storage) -> Case {
    // A matrix-vector product is what has a constant number of rows up to four.
    let m = if rows <= 4 { rows.to_string() } else { "S".into() };
    let mut s = SpecBuilder::new("product", &[&m, &n.to_string()], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &format!("{k}*{m}"));
    let lhs = s.load(x, &format!("{k}*i0 + i2"));
    let w = s.arg("w", Space::Weight, storage, &(n * k).to_string());
    let rhs = vec![s.load(w, &format!("{k}*i1 + i2"))];
    s.spec.anchor = Anchor::MatMul { k: dim(&k.to_string()), lhs, lhs_stats: Vec::new(), rhs };
    let y = s.out("y", Space::Arena, Storage::F32, &format!("{n}*{m}"));
    let acc = s.acc(0);
    s.store(y, &format!("{n}*i0 + i1"), acc);
    let mut r = Random::new(1);
    let data = vec![r.floats((rows * k) as usize), r.stored(storage, (n * k) as usize), r.floats((rows * n) as usize)];
    Case::new(s.done(), &[("S", rows as i64)], data)
}

/// One row of statistics and one pass of stores: a norm.
fn norm(rows: u64, width: u64) -> Case {
    let len = format!("{width}*S");
    let mut s = SpecBuilder::new("rms_norm", &["S", &width.to_string()], &["S"]);
    let x = s.arg("x", Space::Arena, Storage::F32, &len);
    let y = s.out("y", Space::Arena, Storage::F32, &len);
    let at = format!("{width}*i0 + i1");
    let v = s.load(x, &at);
    let square = s.bin(frit_kernels::spec::BinaryOp::Mul, v, v);
    let raw = s.stat(0, Scalar::F32);
    let scale = s.f(1.0 / width as f32);
    let mean = s.bin(frit_kernels::spec::BinaryOp::Mul, raw, scale);
    let finish = Some(s.un(UnaryOp::Rsqrt, mean));
    s.spec.anchor = Anchor::Row { stats: vec![Stat { op: ReduceOp::Sum, value: square, finish }] };
    let out = s.bin(frit_kernels::spec::BinaryOp::Mul, v, raw);
    s.store(y, &at, out);
    let mut r = Random::new(2);
    let data = vec![r.floats((rows * width) as usize), r.floats((rows * width) as usize)];
    Case::new(s.done(), &[("S", rows as i64)], data)
}

fn blocked(case: &Case) -> Rendered {
    render(&case.spec, &Capabilities::webgpu(Tier::Cpu)).unwrap()
}

/// The product as everybody writes it first: an invocation an output, one multiplication at a time.
fn naive(case: &Case) -> Rendered {
    let wgsl = format!(
        "struct Record {{ x_at: u32, w_at: u32, y_at: u32, pad: u32 }}
@group(0) @binding(0) var<storage, read_write> arena: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<uniform> record: Record;
@group(0) @binding(3) var<uniform> sizes: array<vec4<u32>, 4>;
@compute @workgroup_size(16, 16, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    if (id.x < {SIDE}u && id.y < sizes[0].x) {{
        var sum = 0.0;
        for (var k = 0u; k < {SIDE}u; k += 1u) {{
            sum += arena[record.x_at + id.y * {SIDE}u + k] * w[id.x * {SIDE}u + k];
        }}
        arena[record.y_at + id.y * {SIDE}u + id.x] = sum;
    }}
}}
"
    );
    let groups = Dim::from(SIDE / 16);
    let grid = [groups.clone(), groups, Dim::one()];
    Rendered {
        template: "naive",
        workgroup: [16, 16, 1],
        grid,
        text: wgsl,
        ..render(&case.spec, &Capabilities::webgpu(Tier::Gpu)).unwrap()
    }
}

fn run(case: &Case, r: &Rendered, times: usize) -> gpu::Outcome {
    gpu::run(case, r, times).expect("this bench needs a Vulkan, Metal or DirectX 12 adapter")
}

/// Prints the ratio of the two, in turns A B B A.
fn ratio() {
    let case = product(SIDE, SIDE, SIDE, Storage::F32);
    let (ours, plain) = (blocked(&case), naive(&case));
    let (a, b) = (run(&case, &ours, 1), run(&case, &plain, 1));
    let off = a.args[2].iter().zip(&b.args[2]).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
    assert!(off < 1e-3, "the two products differ by {off}");
    let mut rounds: Vec<(f64, f64, f64)> = (0..5)
        .map(|_| {
            let [a0, b0, b1, a1] = [&ours, &plain, &plain, &ours].map(|r| run(&case, r, 1).total_ms);
            let (a, b) = ((a0 + a1) / 2.0, (b0 + b1) / 2.0);
            (b / a, a, b)
        })
        .collect();
    rounds.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (ratio, a, b) = rounds[2];
    println!(
        "gemm {SIDE}x{SIDE}x{SIDE} f32: {} {a:.1} ms, plain {b:.1} ms, ratio {ratio:.1} (median of 5)",
        ours.template
    );
}

fn bench(c: &mut Criterion) {
    ratio();
    let square = product(SIDE, SIDE, SIDE, Storage::F32);
    let flops = 2 * SIDE.pow(3);
    let cases = [
        ("gemm 512 plain", naive(&square), square.clone(), Throughput::Elements(flops)),
        ("gemm 512", blocked(&square), square, Throughput::Elements(flops)),
    ];
    let more = [
        ("gemv 1536x576 f32", product(1, 1536, 576, Storage::F32), Throughput::Bytes(1536 * 576 * 4)),
        ("gemv 1536x576 f16", product(1, 1536, 576, Storage::F16), Throughput::Bytes(1536 * 576 * 2)),
        ("gemv 1536x576 q8_0", product(1, 1536, 576, Storage::Q8_0), Throughput::Bytes(1536 * 576 / 32 * 34)),
        ("gemv 1536x576 q4_0", product(1, 1536, 576, Storage::Q4_0), Throughput::Bytes(1536 * 576 / 32 * 18)),
        ("gemm 128x1536x576 q4_0", product(128, 1536, 576, Storage::Q4_0), Throughput::Elements(2 * 128 * 1536 * 576)),
        ("rms_norm 128x576", norm(128, 576), Throughput::Bytes(128 * 576 * 8)),
    ];
    let more = more.map(|(n, case, t)| (n, blocked(&case), case, t));
    let mut group = c.benchmark_group("kernel");
    group.sample_size(10);
    for (name, rendered, case, throughput) in cases.into_iter().chain(more) {
        group.throughput(throughput);
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_custom(|n| Duration::from_secs_f64(run(&case, &rendered, n as usize).total_ms / 1e3));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
