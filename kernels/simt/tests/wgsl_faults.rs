//! Faults planted in WGSL, each found and named; beside each the sound form, in which nothing is found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, floats};
use frit_simt::{Argument, Texture, ViolationKind as V};

const HEAD: &str = "
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
var<workgroup> tile: array<f32, 64>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) i: u32, @builtin(workgroup_id) group: vec3<u32>) {
";

fn kernel(body: &str) -> Run {
    Run::wgsl(&format!("{HEAD}{body}\n}}\n"), [64, 1, 1]).input(&floats(64, |i| i as f32)).output(64)
}

const REVERSE: &str = "
    tile[i] = x[i];
    workgroupBarrier();
    y[i] = tile[63u - i];";

#[test]
fn a_sound_kernel_is_clean_under_every_schedule() {
    for seed in [None, Some(1), Some(2), Some(3)] {
        let out = kernel(REVERSE).with(|o| o.shuffle = seed).clean();
        assert_eq!(out.floats(1), floats(64, |i| (63 - i) as f32));
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let out = kernel(&REVERSE.replace("workgroupBarrier();", "")).run();
    // The first warp reads what the second has not written yet, so the second writes behind a read and reads behind a
    // write.
    let found: Vec<_> = out.violations.iter().map(|v| (v.line, matches!(v.kind, V::Race { .. }), v.count)).collect();
    assert_eq!(found, [(10, false, 32), (8, true, 32), (10, true, 32)]);
    assert_eq!(out.only(|k| *k == V::UninitialisedMemory).address.unwrap().buffer, "tile");
}

#[test]
fn lockstep_does_not_hide_a_race_within_a_warp() {
    let body = "tile[i] = x[i]; if (i < 32u) { y[i] = tile[31u - i]; }";
    let out = kernel(body).run();
    let race = out.only(|k| matches!(k, V::Race { write_write: false, .. }));
    assert_eq!(race.kind, V::Race { other: Some(31), write_write: false });
    assert_eq!(race.count, 32);
}

#[test]
fn a_write_behind_anothers_read_is_a_race() {
    let body =
        "tile[i] = x[i]; workgroupBarrier(); let v = tile[63u - i]; tile[i] = v; workgroupBarrier(); y[i] = tile[i];";
    let out = kernel(body).run();
    let races = out.violations.iter().filter(|v| matches!(v.kind, V::Race { write_write: false, .. }));
    assert_eq!(races.map(|v| (v.thread.local[0], v.count)).collect::<Vec<_>>(), [(32, 32), (32, 32)]);
    let one = kernel(&body.replace("63u - i", "i ^ 1u")).run();
    assert_eq!(one.only(|k| matches!(k, V::Race { .. })).count, 64);
}

#[test]
fn two_writes_of_one_word_are_a_race() {
    let race = kernel("if (i < 2u) { y[0] = f32(i); }").run().only(|k| matches!(k, V::Race { .. }));
    assert_eq!(race.kind, V::Race { other: Some(0), write_write: true });
    assert_eq!(race.thread.local, [1, 0, 0]);
}

#[test]
fn workgroups_race_whatever_their_barriers() {
    let body = "y[i] = x[i]; storageBarrier();";
    kernel(body).clean();
    let race = kernel(body).grid([2, 1, 1]).run().only(|k| matches!(k, V::Race { .. }));
    assert_eq!(race.kind, V::Race { other: None, write_write: true });
    assert_eq!(race.thread.group, [1, 0, 0]);
}

#[test]
fn a_barrier_orders_only_its_address_space() {
    let body = "y[i] = x[i]; BARRIER(); let v = y[63u - i]; storageBarrier(); y[i] = v;";
    kernel(&body.replace("BARRIER", "storageBarrier")).clean();
    let out = kernel(&body.replace("BARRIER", "workgroupBarrier")).run();
    assert_eq!(out.only(|k| matches!(k, V::Race { .. })).address.unwrap().buffer, "y");
}

#[test]
fn a_bound_off_by_one() {
    let body = "for (var k = 0u; k <= 64u; k += 64u) { if (i + k <= 64u) { y[i] = x[i + k]; } }";
    let read = kernel(body).run().only(|k| *k == V::ReadOutOfBounds);
    assert_eq!((read.address.unwrap().offset, read.thread.local), (256, [0, 0, 0]));
    let write = kernel("y[i + 1u] = x[i];").run().only(|k| *k == V::WriteOutOfBounds);
    assert_eq!((write.address.unwrap().offset, write.count), (256, 1));
    // The product of index and stride does not wrap.
    let far = kernel("y[i] = x[i | 0x40000000u];").run().only(|k| *k == V::ReadOutOfBounds);
    assert_eq!(far.count, 64);
}

#[test]
fn an_index_beyond_a_private_array() {
    let body = "var a: array<f32, 4>; for (var k = 0u; k < 4u; k++) { a[k] = x[k]; } y[i] = a[i / 13u];";
    let out = kernel(body).run().only(|k| matches!(k, V::IndexOutOfBounds { .. }));
    assert_eq!((out.kind, out.count), (V::IndexOutOfBounds { index: 4, len: 4 }, 12));
}

#[test]
fn regions_of_one_buffer_are_kept_apart() {
    let region = |start, end, writable: bool| frit_simt::Region { start, end, initialised: !writable, writable };
    let run = |body: &str| kernel(body).regions(1, vec![region(0, 64, false), region(128, 256, true)]).run();
    assert!(run("if (i < 16u) { y[i + 32u] = y[i]; }").violations.is_empty());
    assert_eq!(run("if (i < 20u) { y[i + 32u] = y[i]; }").only(|k| *k == V::ReadOutOfBounds).count, 4);
    assert_eq!(run("if (i < 20u) { y[i] = 1.0; }").only(|k| *k == V::WriteOutOfBounds).count, 20);
    assert_eq!(run("if (i < 20u) { let v = y[i + 32u]; }").only(|k| *k == V::UninitialisedMemory).count, 20);
}

#[test]
fn workgroup_memory_read_before_it_is_written() {
    let body = "if (i < 63u) { tile[i] = x[i]; } workgroupBarrier(); y[i] = tile[i];";
    let read = kernel(body).run().only(|k| *k == V::UninitialisedMemory);
    assert_eq!((read.address.unwrap().offset, read.thread.local), (252, [63, 0, 0]));
    // Not even what an earlier workgroup left there counts.
    let body = "if (group.x == 0u) { tile[i] = x[i]; } workgroupBarrier(); y[i + 64u * group.x] = tile[i];";
    let read = kernel(body).grid([2, 1, 1]).output_bytes(1, 512).run().only(|k| *k == V::UninitialisedMemory);
    assert_eq!((read.thread.group, read.count), ([1, 0, 0], 64));
    let zeroed = kernel("y[i] = tile[i];").with(|o| o.zeroed_workgroup_memory = true).clean();
    assert_eq!(zeroed.floats(1), vec![0.0; 64]);
}

#[test]
fn an_output_read_before_it_is_written() {
    assert_eq!(kernel("y[i] += x[i];").run().only(|k| *k == V::UninitialisedMemory).count, 64);
}

#[test]
fn a_barrier_in_divergent_control_flow() {
    for body in ["if (i < 32u) { workgroupBarrier(); }", "if (i < 7u) { workgroupBarrier(); }"] {
        let out = kernel(body).run();
        assert_eq!(out.only(|k| *k == V::BarrierDivergence).line, 7);
        assert!(!out.completed);
    }
    let early = kernel("if (i == 3u) { return; } workgroupBarrier();").run();
    assert_eq!(early.only(|k| *k == V::BarrierDivergence).thread.local, [3, 0, 0]);
    let loops = kernel("for (var k = 0u; k < u32(x[i]) / 40u; k++) { workgroupBarrier(); }").run();
    loops.only(|k| *k == V::BarrierDivergence);
    let two = kernel("if (i < 32u) { workgroupBarrier(); } else { workgroupBarrier(); }").run();
    two.only(|k| *k == V::BarrierDivergence);
}

#[test]
fn an_endless_loop_spends_the_budget() {
    let body = "var k = i; loop { k = k * 3u + 1u; if (k == 0u) { break; } } y[i] = f32(k);";
    let out = kernel(body).with(|o| o.budget = 100_000).run();
    assert_eq!(out.only(|k| *k == V::Budget).line, 7);
    assert!(!out.completed);
}

#[test]
fn infinities_born_of_finite_numbers() {
    assert_eq!(kernel("y[i] = exp(x[i] * 2.0);").run().only(|k| *k == V::NotFinite).count, 19);
    assert_eq!(kernel("y[i] = 1.0 / x[i];").run().only(|k| *k == V::NotFinite).count, 1);
    assert_eq!(kernel("y[i] = sqrt(x[i] - 10.0);").run().only(|k| *k == V::NotFinite).count, 10);
    // What is infinite already is not reported again.
    let out = kernel("let a = exp(x[i] * 2.0); y[i] = a * a + a;").run();
    assert_eq!(out.violations.iter().filter(|v| v.kind == V::NotFinite).count(), 2);
    kernel("y[i] = exp(x[i] * 2.0);").with(|o| o.finite = false).clean();
}

#[test]
fn integer_division_without_a_result() {
    let out = kernel("y[i] = f32(100u / u32(x[i]));").run().only(|k| *k == V::IntegerDivision);
    assert_eq!((out.count, out.thread.local), (1, [0, 0, 0]));
}

#[test]
fn atomics_do_not_race_with_one_another() {
    let text = "
@group(0) @binding(0) var<storage, read_write> sum: array<atomic<u32>, 2>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) i: u32) { atomicAdd(&sum[0], i); atomicMax(&sum[1], i); }";
    let out = Run::wgsl(text, [64, 1, 1]).inout(&[0.0; 2]).grid([3, 1, 1]).clean();
    assert_eq!(out.words(0), [3 * 2016, 63]);
}

#[test]
fn subgroups_of_every_size() {
    let text = "
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) i: u32, @builtin(subgroup_size) n: u32,
    @builtin(subgroup_invocation_id) lane: u32) {
    y[i] = subgroupAdd(i) + 1000u * subgroupShuffleXor(lane, 1u) + 100000u * n + subgroupMax(0u) + subgroupExclusiveAdd(0u);
}";
    for n in [4u32, 8, 16, 32] {
        let out = Run::wgsl(text, [64, 1, 1]).output(64).with(|o| o.subgroup_size = n).clean();
        let want = |i: u32| {
            let first = i / n * n;
            (first..first + n).sum::<u32>() + 1000 * ((i % n) ^ 1) + 100_000 * n
        };
        assert_eq!(out.words(0), (0..64).map(want).collect::<Vec<_>>());
    }
    let odd = text.replace("subgroupAdd(i)", "select(0u, subgroupShuffle(i, 40u), lane == 0u)");
    let out = Run::wgsl(&odd, [64, 1, 1]).output(64).run();
    out.only(|k| *k == V::CollectiveDivergence);
}

const COLLECTIVES: [&str; 9] = [
    "subgroupAdd(x[i])",
    "subgroupMax(x[i])",
    "subgroupExclusiveMul(x[i])",
    "subgroupInclusiveAdd(x[i])",
    "f32(subgroupAll(x[i] > 1.0))",
    "f32(subgroupBallot(true).x)",
    "subgroupBroadcastFirst(x[i])",
    "subgroupShuffle(x[i], lane)",
    "subgroupShuffleXor(x[i], 0u)",
];

/// A kernel of 64 invocations in subgroups of `size` with `lane`, and a name for a sum in a function.
fn subgroups(directive: &str, size: u32, body: &str) -> Run {
    let head =
        HEAD.replace("@builtin(workgroup_id)", "@builtin(subgroup_invocation_id) lane: u32, @builtin(workgroup_id)");
    let text = format!(
        "{directive} {head}{body}\n}}
@diagnostic(off, subgroup_uniformity) fn sum_of_some(v: f32) -> f32 {{ return subgroupAdd(v); }}
fn sum_of_all(v: f32) -> f32 {{ return subgroupAdd(v); }}"
    );
    Run::wgsl(&text, [64, 1, 1]).input(&floats(64, |i| i as f32)).output(64).with(|o| o.subgroup_size = size)
}

#[test]
fn a_subgroup_operation_that_not_all_of_the_subgroup_reach() {
    let off = "diagnostic(off, subgroup_uniformity);";
    let warning = "diagnostic(warning, subgroup_uniformity);";
    let error = "diagnostic(error, subgroup_uniformity);";
    for op in COLLECTIVES {
        let part = |condition: &str| format!("if ({condition}) {{ y[i] = {op}; }}");
        let found = |size: u32, body: &str| {
            let found = subgroups("", size, body).run().only(|k| *k == V::CollectiveDivergence);
            assert_eq!(found.line, 7, "{op}");
            found.thread.local[0]
        };
        assert_eq!(found(32, &part("i % 2u == 1u")), 1);
        assert_eq!(found(4, &part("i > 57u")), 58);
        assert_eq!(found(16, &part("i / 8u % 2u == 1u")), 8);
        subgroups("", 8, &part("i / 8u % 2u == 1u")).clean();
        subgroups("", 32, &part("i < 32u")).clean();
        assert_eq!(found(8, &format!("if (i == 13u) {{ return; }} y[i] = {op};")), 8);
        assert_eq!(found(8, &format!("for (var k = 0u; k < i / 20u; k++) {{ y[i] = {op}; }}")), 20);
        subgroups("", 8, &format!("for (var k = 0u; k < i / 8u; k++) {{ y[i] = {op}; }}")).clean();
        for allowed in [off, warning] {
            subgroups(allowed, 32, &part("i % 2u == 1u")).clean();
        }
        subgroups(error, 32, &part("i % 2u == 1u")).run().only(|k| *k == V::CollectiveDivergence);
    }
    // The filter of the function that calls the operation decides.
    let call = |name: &str| format!("if (i % 2u == 1u) {{ y[i] = {name}(x[i]); }}");
    subgroups(error, 32, &call("sum_of_some")).clean();
    subgroups("", 32, &call("sum_of_all")).run().only(|k| *k == V::CollectiveDivergence);
    subgroups(off, 32, &call("sum_of_all")).clean();
}

#[test]
fn invocations_that_do_not_exist_are_missed_by_no_subgroup() {
    let text = "
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(5, 2)
fn main(@builtin(local_invocation_index) i: u32) { y[i] = subgroupAdd(1u); subgroupBarrier(); }";
    for (size, want) in [(32, [10; 10]), (8, [8, 8, 8, 8, 8, 8, 8, 8, 2, 2])] {
        let out = Run::wgsl(text, [5, 2, 1]).output(10).with(|o| o.subgroup_size = size).clean();
        assert_eq!(out.words(0), want);
    }
}

#[test]
fn a_distance_between_invocations_is_one_for_the_subgroup() {
    for op in ["subgroupShuffleXor", "subgroupShuffleUp", "subgroupShuffleDown"] {
        let run = |by: &str| subgroups("", 8, &format!("let v = {op}(x[i], {by}); y[i] = f32(lane);")).run().violations;
        let divergent = |by: &str| run(by).iter().filter(|v| v.kind == V::CollectiveDivergence).count();
        assert_eq!(run("i / 8u & 0u"), []);
        assert_eq!(divergent("select(0u, 1u, i == 12u)"), 1, "{op}");
    }
    let by_subgroup = subgroups("", 8, "y[i] = subgroupShuffleXor(x[i], i / 8u);").clean();
    assert_eq!(by_subgroup.floats(1), floats(64, |i| (i ^ (i / 8)) as f32));
    let none = |v: &&frit_simt::Violation| v.kind == V::CollectiveDivergence;
    let mixed = subgroups("", 8, "y[i] = subgroupShuffleXor(x[i], i % 2u);").run();
    assert_eq!(mixed.violations.iter().filter(none).count(), 1);
}

#[test]
fn a_subgroup_barrier_orders_the_invocations_of_a_subgroup() {
    let races = |size: u32, body: &str| {
        let left = kernel(body).with(|o| o.subgroup_size = size).run();
        left.violations.iter().map(|v| (matches!(v.kind, V::Race { .. }), v.count)).collect::<Vec<_>>()
    };
    let exchange = |by: u32| format!("tile[i] = x[i]; subgroupBarrier(); y[i] = tile[i ^ {by}u];");
    let back = |by: u32| {
        format!("tile[i] = x[i]; subgroupBarrier(); let v = tile[i ^ {by}u]; subgroupBarrier(); tile[i] = v;")
    };
    for size in [4, 8, 16, 32] {
        assert_eq!(races(size, &exchange(size - 1)), []);
        if size < 32 {
            assert_eq!(races(size, &exchange(size)), [(true, 64)], "{size}");
        }
        assert_eq!(races(size, &back(1)), []);
        // Every invocation of a subgroup reads what its first one then writes.
        let first = format!(
            "let first = i / {size}u * {size}u; if (i == first) {{ tile[i] = x[i]; }} subgroupBarrier();
            let v = tile[first]; BETWEEN if (i == first) {{ tile[i] = 1.0; }} y[i] = v;"
        );
        assert_eq!(races(size, &first.replace("BETWEEN", "subgroupBarrier();")), []);
        assert_eq!(races(size, &first.replace("BETWEEN", "")), [(true, u64::from(64 / size))]);
    }
    // Two barriers in a row do not make up for a larger one.
    assert_eq!(
        races(8, &exchange(8).replace("subgroupBarrier();", "subgroupBarrier(); subgroupBarrier();")),
        [(true, 64)]
    );
}

#[test]
fn a_subgroup_barrier_is_reached_by_whole_subgroups() {
    let run = |size: u32, condition: &str| {
        kernel(&format!("if ({condition}) {{ subgroupBarrier(); }}")).with(|o| o.subgroup_size = size).run()
    };
    assert!(run(8, "i / 8u % 2u == 0u").violations.is_empty());
    let found = run(16, "i / 8u % 2u == 0u").only(|k| *k == V::BarrierDivergence);
    assert_eq!((found.thread.local, found.count), ([8, 0, 0], 32));
    let found = run(8, "i < 13u").only(|k| *k == V::BarrierDivergence);
    assert_eq!((found.thread.local, found.count), ([13, 0, 0], 3));
}

#[test]
fn texts_and_launches_that_do_not_fit_are_errors() {
    let error = |r: Run| r.error().to_string();
    assert!(error(kernel("y[i] = z;")).contains("line 7"));
    assert!(error(kernel("").workgroup([32, 1, 1])).contains("workgroup"));
    assert!(error(Run::wgsl(&format!("{HEAD}y[i] = x[i]; }}"), [64, 1, 1]).output(64)).contains("no argument 1"));
    let half = "enable f16; @group(0) @binding(0) var<storage, read_write> y: array<f16>;
@compute @workgroup_size(1) fn main() { y[0] = 1h; }";
    assert!(error(Run::wgsl(half, [1, 1, 1]).output(1)).contains("not supported"));
}

/// Texel `column + row * 4` of a texture of 4 columns and 10 texels.
fn texel(column: &str, row: &str) -> Run {
    let text = format!(
        "@group(0) @binding(0) var w: texture_2d<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(8)
fn main(@builtin(local_invocation_index) i: u32) {{
    y[i] = f32(textureLoad(w, vec2<u32>({column}, {row}), 0).y);
}}"
    );
    let bytes = (0..40u32).flat_map(u32::to_le_bytes).collect();
    let texture = Texture { name: "w".into(), width: 4, bytes };
    Run::wgsl(&text, [8, 1, 1]).argument(Argument::Texture(texture)).output(8)
}

#[test]
fn a_texel_is_read_inside_its_row_and_its_texture() {
    let left = texel("i & 3u", "i >> 2u").clean();
    assert_eq!(left.floats(1), floats(8, |i| (4 * i + 1) as f32));
    let wide = texel("i & 7u", "0u").run().only(|k| matches!(k, V::IndexOutOfBounds { .. }));
    assert_eq!((wide.kind, wide.count), (V::IndexOutOfBounds { index: 4, len: 4 }, 4));
    assert_eq!(texel("i & 3u", "1u + (i >> 2u)").run().only(|k| *k == V::ReadOutOfBounds).count, 2);
}
