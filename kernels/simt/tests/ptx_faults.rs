//! Faults planted in PTX, each found and named; beside each the sound form, in which nothing is found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, floats};
use frit_simt::ViolationKind as V;

/// A kernel of 64 threads with `x` (64 floats), `y` (64 floats), 256 bytes of shared memory `tile`, and thread number
/// `%i`, byte offset `%o`, addresses `%x` and `%y` of the thread's own elements. The body begins on line 19.
fn kernel(body: &str) -> Run {
    let text = format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 px, .param .u64 py)
.reqntid 64, 1, 1
{{
    .shared .align 16 .b8 tile[256];
    .shared .align 16 .b8 other[256];
    .reg .pred %p<8>; .reg .b32 %r<16>, %i, %o, %s; .reg .f32 %f<16>; .reg .b64 %rd<16>, %x, %y;
    ld.param.u64 %rd1, [px];
    ld.param.u64 %rd2, [py];
    mov.u32 %i, %tid.x;
    shl.b32 %o, %i, 2;
    mov.u32 %s, tile;
    add.u32 %s, %s, %o;
    mad.wide.u32 %x, %i, 4, %rd1;
    mad.wide.u32 %y, %i, 4, %rd2;
{body}
    ret;
}}
"
    );
    Run::ptx(&text, [64, 1, 1]).input(&floats(64, |i| i as f32)).output(64)
}

const REVERSE: &str = "
    ld.global.f32 %f1, [%x];
    st.shared.f32 [%s], %f1;
    bar.sync 0;
    xor.b32 %r1, %o, 252;
    ld.shared.f32 %f2, [%r1];
    st.global.f32 [%y], %f2;";

#[test]
fn a_sound_kernel_is_clean_under_every_schedule() {
    for seed in [None, Some(1), Some(2)] {
        let out = kernel(REVERSE).with(|o| o.shuffle = seed).clean();
        assert_eq!(out.floats(1), floats(64, |i| (63 - i) as f32));
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let out = kernel(&REVERSE.replace("bar.sync 0;", "")).run();
    let found: Vec<_> = out.violations.iter().map(|v| (v.line, matches!(v.kind, V::Race { .. }), v.count)).collect();
    assert_eq!(found, [(23, false, 32), (20, true, 32), (23, true, 32)]);
    assert_eq!(out.only(|k| *k == V::UninitialisedMemory).address.unwrap().buffer, "shared");
}

#[test]
fn a_shuffle_orders_no_memory_and_a_warp_barrier_does() {
    let body = "
    mov.f32 %f1, 0f3F800000;
    st.shared.f32 [%s], %f1;
    BETWEEN
    xor.b32 %r1, %o, 4;
    ld.shared.f32 %f2, [%r1];
    st.global.f32 [%y], %f2;";
    kernel(&body.replace("BETWEEN", "bar.warp.sync 0xffffffff;")).clean();
    let shuffle = "shfl.sync.bfly.b32 %r2, %i, 1, 31, 0xffffffff;";
    let race = kernel(&body.replace("BETWEEN", shuffle)).run().only(|k| matches!(k, V::Race { .. }));
    assert_eq!((race.count, race.line), (64, 23));
    // A warp barrier does not order other warps.
    let far = body.replace("BETWEEN", "bar.warp.sync 0xffffffff;").replace("%o, 4", "%o, 128");
    assert!(kernel(&far).run().violations.iter().any(|v| matches!(v.kind, V::Race { .. })));
}

#[test]
fn a_bound_off_by_one() {
    let read = kernel("ld.global.f32 %f1, [%x+4]; st.global.f32 [%y], %f1;").run();
    let read = read.only(|k| *k == V::ReadOutOfBounds);
    assert_eq!((read.address.unwrap().offset, read.thread.local), (256, [63, 0, 0]));
    let write = kernel("ld.global.f32 %f1, [%x]; st.global.f32 [%y+-4], %f1;").run();
    assert_eq!(write.only(|k| matches!(k, V::WriteOutOfBounds | V::WildAddress)).count, 1);
    let shared = kernel("mov.f32 %f1, 0f00000000; st.shared.f32 [%s+4], %f1;").run();
    assert_eq!(shared.only(|k| *k == V::WriteOutOfBounds).address.unwrap().offset, 256);
    let input = kernel("mov.f32 %f1, 0f00000000; st.global.f32 [%x], %f1;").run();
    assert_eq!(input.only(|k| *k == V::WriteOutOfBounds).count, 64);
}

#[test]
fn an_address_of_no_buffer() {
    let body = "mov.u64 %rd5, 1099511627776; add.u64 %rd6, %x, %rd5; ld.global.f32 %f1, [%rd6];";
    assert_eq!(kernel(body).run().only(|k| *k == V::WildAddress).count, 64);
    kernel("mov.u64 %rd5, 4096; ld.global.f32 %f1, [%rd5];").run().only(|k| *k == V::WildAddress);
}

#[test]
fn memory_and_registers_read_before_they_are_written() {
    let tile = kernel("ld.shared.f32 %f1, [%s]; st.global.f32 [%y], %f1;").run();
    assert_eq!(tile.only(|k| *k == V::UninitialisedMemory).count, 64);
    let register = kernel("add.f32 %f2, %f1, %f1; st.global.f32 [%y], %f2;").run();
    assert_eq!(register.only(|k| *k == V::UninitialisedRegister).count, 64);
    let some = "setp.lt.u32 %p1, %i, 40; @%p1 ld.global.f32 %f1, [%x]; st.global.f32 [%y], %f1;";
    let some = kernel(some).run().only(|k| *k == V::UninitialisedRegister);
    assert_eq!((some.count, some.thread.local), (24, [40, 0, 0]));
    kernel("@%p1 ret;").run().only(|k| *k == V::UninitialisedRegister);
}

/// Whatever orders the two, and in either order; words that the kernel does not write may be read so.
#[test]
fn a_word_read_as_constant_and_written() {
    let run = |body: &str| kernel(body).inout_at(1, &floats(64, |i| i as f32));
    let before = "ld.global.nc.f32 %f1, [%y]; bar.sync 0; st.global.f32 [%y], %f1;";
    let found = run(before).run().only(|k| *k == V::NotConstant);
    assert_eq!((found.count, found.line, found.address.unwrap().buffer.as_str()), (64, 18, "data"));
    let after = "ld.global.f32 %f1, [%x]; st.global.f32 [%y], %f1; bar.sync 0; ld.global.nc.f32 %f2, [%y];";
    assert_eq!(run(after).run().only(|k| *k == V::NotConstant).count, 64);
    run(&before.replace(".nc", "")).clean();
    run(&after.replace(".nc", "")).clean();
    let half =
        "setp.lt.u32 %p1, %i, 32; @%p1 ld.global.nc.f32 %f1, [%y+128]; bar.sync 0; @%p1 st.global.f32 [%y], %f1;";
    run(half).clean();
    run(&half.replace("128", "64")).run().only(|k| *k == V::NotConstant);
}

#[test]
fn a_misaligned_vector() {
    let out = kernel("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%x];").run();
    let bad = out.only(|k| matches!(k, V::Misaligned { .. }));
    assert_eq!((bad.kind, bad.count), (V::Misaligned { align: 16 }, 48));
    let body = "shl.b32 %r1, %i, 4; and.b32 %r1, %r1, 240; cvt.u64.u32 %rd5, %r1; add.u64 %rd5, %rd5, %rd1;
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd5];";
    kernel(body).clean();
}

#[test]
fn a_barrier_in_divergent_control_flow() {
    let body = "setp.lt.u32 %p1, %i, 7; @!%p1 bra $on; bar.sync 0; $on:";
    let out = kernel(body).run();
    assert_eq!(out.only(|k| *k == V::BarrierDivergence).thread.local, [7, 0, 0]);
    let out = kernel("setp.lt.u32 %p1, %i, 32; @!%p1 bra $on; bar.sync 0; $on:").run();
    out.only(|k| *k == V::BarrierDivergence);
    // Warps may meet at different places.
    kernel("setp.lt.u32 %p1, %i, 32; @%p1 bra $a; bar.sync 0; bra $on; $a: bar.sync 0; $on:").clean();
}

#[test]
fn a_collective_with_absent_lanes() {
    let body = "setp.lt.u32 %p1, %i, 40; @%p1 shfl.sync.idx.b32 %r1, %i, 0, 31, MASK;";
    let out = kernel(&body.replace("MASK", "0xffffffff")).run();
    assert_eq!(out.only(|k| *k == V::CollectiveDivergence).thread.local, [32, 0, 0]);
    // Lane 20 is there, but the lower half does not name it.
    let half = |lane: u32| format!("{HALF} shfl.sync.idx.b32 %r1, %i, {lane}, 31, %r9;");
    let out = kernel(&half(20)).run().only(|k| *k == V::CollectiveDivergence);
    assert_eq!((out.thread.local, out.count), ([0; 3], 32));
    kernel(&half(0).replace("0, 31, %r9", "%r8, 31, %r9")).clean();
}

#[test]
fn an_endless_loop_spends_the_budget() {
    let out = kernel("$again: add.u32 %r1, %i, 1; bra $again;").with(|o| o.budget = 10_000).run();
    assert_eq!(out.only(|k| *k == V::Budget).line, 18);
    assert!(!out.completed);
}

#[test]
fn an_overflow_to_infinity() {
    let out = kernel(
        "ld.global.f32 %f1, [%x]; mul.f32 %f2, %f1, 0f40000000; mul.f32 %f2, %f2, 0f42000000;
    ex2.approx.f32 %f3, %f2;",
    )
    .run();
    assert_eq!(out.only(|k| *k == V::NotFinite).count, 62);
    let half = kernel(
        "ld.global.f32 %f1, [%x]; mul.f32 %f1, %f1, 0f44800000; mul.f32 %f1, %f1, 0f42000000;
    cvt.rn.f16x2.f32 %r1, %f1, %f1;",
    )
    .run();
    assert_eq!(half.only(|k| *k == V::NotFinite).count, 62);
}

const COPY: &str = "
    cp.async.ca.shared.global [%s], [%x], 4;
    cp.async.commit_group;
    WAIT
    SYNC
    xor.b32 %r1, %o, OTHER;
    ld.shared.f32 %f2, [%r1];
    st.global.f32 [%y], %f2;";

#[test]
fn an_asynchronous_copy_not_waited_for() {
    let body = |wait: &str, sync: &str, other: &str| {
        kernel(&COPY.replace("WAIT", wait).replace("SYNC", sync).replace("OTHER", other))
    };
    let (wait, sync) = ("cp.async.wait_group 0;", "bar.sync 0;");
    assert_eq!(body(wait, sync, "252").clean().floats(1), floats(64, |i| (63 - i) as f32));
    body(wait, "", "0").clean();
    assert_eq!(body("", sync, "252").run().only(|k| *k == V::PendingCopy).count, 64);
    assert_eq!(body("cp.async.wait_group 1;", sync, "252").run().only(|k| *k == V::PendingCopy).count, 64);
    // Waiting for one's own copy says nothing of another thread's.
    assert_eq!(body(wait, "", "4").run().only(|k| matches!(k, V::Race { .. })).count, 64);
}

#[test]
fn a_copy_into_a_slot_that_is_still_read() {
    let body = format!(
        "{}\n    cp.async.ca.shared.global [%s], [%x], 4;",
        COPY.replace("WAIT", "cp.async.wait_group 0;").replace("SYNC", "bar.sync 0;").replace("OTHER", "4")
    );
    let race = kernel(&body).run().only(|k| matches!(k, V::Race { .. }));
    assert_eq!((race.count, race.kind), (64, V::Race { other: Some(1), write_write: false }));
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    let error = |body: &str| kernel(body).error().to_string();
    assert_eq!(error("nop.u32 %r1;"), "kernel `test`, line 18: `nop.u32` is not supported");
    assert!(error("add.f64 %f1, %f1, %f1;").contains("`add.f64` is not supported"));
    assert!(error("add.u32 %r1, %r77, 1;").contains("`%r77` is not declared"));
    assert!(error("bra $nowhere;").contains("line 18: no label `$nowhere`"));
    assert!(error("add.u32 %r1, %rd1, 1;").contains("another size"));
    assert!(error("add.u32 %r1 %r2;").contains("line 18: `,` expected"));
    assert!(error("ld.global.v4.f32 {%f1, %f2}, [%x];").contains("takes 4 registers"));
    assert!(error("mul.rz.f32 %f1, %f2, %f3;").contains("`mul.rz.f32` is not supported"));
}

#[test]
fn a_write_behind_reads_of_the_same_warp() {
    // All lanes of a warp read what one of them overwrites, with the warp's barrier between.
    let body = "
    mov.u32 %r1, tile;
    shr.u32 %r2, %i, 5;
    mad.lo.u32 %r1, %r2, 4, %r1;
    and.b32 %r3, %i, 31;
    setp.eq.u32 %p1, %r3, 0;
    @%p1 st.shared.u32 [%r1], %i;
    bar.warp.sync 0xffffffff;
    ld.shared.u32 %r4, [%r1];
    BETWEEN
    @%p1 st.shared.u32 [%r1], %r3;
    st.global.u32 [%y], %r4;";
    kernel(&body.replace("BETWEEN", "bar.warp.sync 0xffffffff;")).clean();
    assert_eq!(kernel(&body.replace("BETWEEN", "")).run().only(|k| matches!(k, V::Race { .. })).count, 2);
}

/// The mask of the lane's half of its warp in `%r9`; whether that is the lower one in `%p7`.
const HALF: &str = "and.b32 %r8, %i, 16; setp.eq.u32 %p7, %r8, 0; selp.b32 %r9, 0xffff, 0xffff0000, %p7;";

#[test]
fn a_warp_barrier_orders_the_lanes_that_it_names() {
    let races = |barrier: &str, other: u32| {
        let body = format!(
            "{HALF} st.shared.u32 [%s], %i; st.global.u32 [%y], %i;
    {barrier}
    xor.b32 %r1, %o, {other}; ld.shared.u32 %r2, [%r1];
    cvt.u64.u32 %rd5, %r1; add.u64 %rd5, %rd5, %rd2; ld.global.u32 %r3, [%rd5];"
        );
        let found = kernel(&body).run().violations;
        assert!(found.iter().all(|v| matches!(v.kind, V::Race { write_write: false, .. })), "{found:?}");
        found.iter().map(|v| (v.address.as_ref().unwrap().buffer.clone(), v.count)).collect::<Vec<_>>()
    };
    let both = |count| vec![("shared".to_owned(), count), ("y".to_owned(), count)];
    for own_half in ["bar.warp.sync %r9;", "@%p7 bar.warp.sync 0xffff; @!%p7 bar.warp.sync 0xffff0000;"] {
        assert_eq!(races(own_half, 4), []);
        assert_eq!(races(own_half, 64), both(64));
    }
    let lower = "@%p7 bar.warp.sync 0xffff;";
    assert_eq!(races(lower, 4), both(32));
    assert_eq!(races(lower, 64), both(64));
    assert_eq!(races("bar.warp.sync 0xffffffff;", 64), []);
    assert_eq!(races(&format!("{lower} bar.warp.sync 0xffffffff;"), 64), []);
    assert_eq!(races(&format!("{lower} bar.sync 0;"), 128), []);
}

/// Lane 2 reads what lane 0 wrote, and lane 1 meets both.
#[test]
fn warp_barriers_of_few_lanes_make_a_chain() {
    let body = |first: u32, second: u32| {
        format!(
            "setp.lt.u32 %p1, %i, 3; @!%p1 bra $on;
    setp.eq.u32 %p2, %i, 0; @%p2 st.shared.u32 [tile], %i;
    shl.b32 %r1, 1, %i; and.b32 %r2, %r1, {first}; setp.ne.u32 %p3, %r2, 0; @%p3 bar.warp.sync {first};
    and.b32 %r2, %r1, {second}; setp.ne.u32 %p3, %r2, 0; @%p3 bar.warp.sync {second};
    setp.eq.u32 %p2, %i, 2; @%p2 ld.shared.u32 %r3, [tile];
    $on:"
        )
    };
    kernel(&body(3, 6)).clean();
    assert_eq!(kernel(&body(6, 3)).run().only(|k| matches!(k, V::Race { .. })).thread.local, [2, 0, 0]);
}

/// Every lane of a half reads, or adds to, a word that its first lane then writes, or reads.
#[test]
fn accesses_of_several_lanes_before_a_warp_barrier() {
    let half = "mov.u32 %r5, tile; shr.u32 %r6, %i, 4; mad.lo.u32 %r5, %r6, 4, %r5; and.b32 %r6, %i, 15;
    setp.eq.u32 %p1, %r6, 0; @%p1 st.shared.u32 [%r5], %i; bar.sync 0;";
    let run = |first: &str, barrier: &str, last: &str| {
        let left = kernel(&format!("{HALF} {half} {first} {barrier} @%p1 {last}")).run();
        left.violations.iter().map(|v| (v.kind.clone(), v.count)).collect::<Vec<_>>()
    };
    let pairs = [
        ("ld.shared.u32 %r1, [%r5];", "st.shared.u32 [%r5], %r6;"),
        ("ld.shared.u32 %r1, [%r5];", "atom.shared.add.u32 %r2, [%r5], 1;"),
        ("red.shared.add.u32 [%r5], 1;", "ld.shared.u32 %r2, [%r5];"),
        ("red.shared.add.u32 [%r5], 1;", "st.shared.u32 [%r5], %r6;"),
    ];
    for (first, last) in pairs {
        assert_eq!(run(first, "bar.warp.sync %r9;", last), [], "{first} {last}");
        // The last lane of each half stays away, and the first one waits for the others alone.
        let fewer = "and.b32 %r9, %r9, 0x7fff7fff; setp.ne.u32 %p2, %r6, 15; @%p2 bar.warp.sync %r9;";
        let found = run(first, fewer, last);
        assert!(matches!(found[..], [(V::Race { other: Some(15), .. }, 4)]), "{first} {last} {found:?}");
    }
}

#[test]
fn a_warp_barrier_that_not_all_reach_or_that_names_others() {
    let found = |body: &str| kernel(&format!("{HALF} {body}")).run().only(|k| *k == V::BarrierDivergence);
    assert_eq!(found("@%p7 bar.warp.sync 0xffffffff;").thread.local, [16, 0, 0]);
    assert_eq!(found("@%p7 bar.warp.sync 0x1ffff;").thread.local, [16, 0, 0]);
    // The lanes of the upper half are not among those that they name.
    assert_eq!(found("bar.warp.sync 0xffff;").thread.local, [16, 0, 0]);
    // Lanes that do not exist are not waited for.
    kernel("bar.warp.sync 0xffffffff;").clean();
}

/// Texts with pieces left out, doubled or exchanged end in an error or an outcome, never in a panic.
#[test]
fn broken_texts_do_no_harm() {
    let sound = format!(
        "{COPY} {REVERSE} mul.wide.u32 %rd3, %i, 4; ld.global.v2.f32 {{%f3, %f4}}, [%rd1];
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r3, %r4}}, [%s]; shfl.sync.bfly.b32 %r2|%p1, %i, 1, 31, -1;
        mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {{%f1,%f2,%f3,%f4}}, {{%r1,%r2}}, {{%r3}}, {{%f1,%f2,%f3,%f4}};
        atom.shared.add.u32 %r1, [%s], 1; cvt.rn.f16x2.f32 %r1, %f1, %f2; mov.b64 {{%r1, %r2}}, %rd1;"
    )
    .replace("WAIT", "cp.async.wait_all;")
    .replace("SYNC", "bar.sync 0;")
    .replace("OTHER", "4");
    let pieces: Vec<&str> = sound.split_inclusive([' ', ',', '.', ';']).collect();
    let mut x = 12345usize;
    let mut next = |n: usize| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % n
    };
    let mut ran = 0;
    for _ in 0..4000 {
        let mut mutant = pieces.clone();
        for _ in 0..=next(3) {
            let (i, j) = (next(mutant.len()), next(mutant.len()));
            match next(3) {
                0 => drop(mutant.remove(i)),
                1 => mutant.swap(i, j),
                _ => mutant[i] = mutant[j],
            }
        }
        ran += u32::from(kernel(&mutant.concat()).with(|o| o.budget = 1000).outcome().is_ok());
    }
    assert!(ran > 100, "{ran}");
}
