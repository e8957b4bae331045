//! What `sm_90` adds, against its definition: barriers with phases, tensor copies in swizzled order, products of a
//! warpgroup; and the mistakes that can be made with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Left, Run, floats};
use frit_simt::{Argument, Swizzle, TensorMap, ViolationKind as V};
use half::{bf16, f16};

/// One thread asks for both parities before, between and behind the two arrivals that end a phase.
#[test]
fn a_phase_ends_with_its_last_arrival() {
    let test = |parity: u32, at: u32| {
        format!(
            "mbarrier.test_wait.parity.shared::cta.b64 %p1, [bar], {parity};
    selp.u32 %r1, 1, 0, %p1;
    st.global.u32 [%rd1+{}], %r1;\n",
            4 * at
        )
    };
    let arrive = "mbarrier.arrive.shared::cta.b64 _, [bar];\n";
    let body = [
        &test(1, 0),
        &test(0, 1),
        arrive,
        &test(0, 2),
        arrive,
        &test(0, 3),
        &test(1, 4),
        "mbarrier.arrive.shared::cta.b64 _, [bar], 2;\n",
        &test(0, 5),
        &test(1, 6),
    ]
    .concat();
    let text = format!(
        ".version 8.0
.target sm_90
.address_size 64
.visible .entry main(.param .u64 out)
{{
    .shared .align 8 .b8 bar[8];
    .reg .pred %p1; .reg .b32 %r1; .reg .b64 %rd1;
    ld.param.u64 %rd1, [out];
    mbarrier.init.shared::cta.b64 [bar], 2;
    {body}
    mbarrier.inval.shared::cta.b64 [bar];
}}"
    );
    assert_eq!(Run::ptx(&text, [1, 1, 1]).output(7).clean().words(0), [1, 0, 0, 1, 0, 0, 1]);
}

/// 64 threads meet at a barrier of 64 arrivals and read what another one wrote.
fn meeting(init: &str, wait: &str) -> Run {
    let text = format!(
        ".version 8.0
.target sm_90
.address_size 64
.visible .entry main(.param .u64 out)
{{
    .shared .align 8 .b8 bar[8];
    .shared .align 4 .b8 tile[256];
    .reg .pred %p<3>; .reg .b32 %r<8>, %i; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %i, %tid.x;
    mov.u32 %r1, tile;
    setp.eq.u32 %p1, %i, 0;
    @%p1 mbarrier.init.shared::cta.b64 [bar], 64;
    {init}
    mad.lo.u32 %r2, %i, 4, %r1;
    st.shared.u32 [%r2], %i;
    mbarrier.arrive.shared::cta.b64 %rd3, [bar];
    {wait}
    xor.b32 %r3, %i, 63;
    mad.lo.u32 %r3, %r3, 4, %r1;
    ld.shared.u32 %r4, [%r3];
    mad.wide.u32 %rd2, %i, 4, %rd1;
    st.global.u32 [%rd2], %r4;
}}"
    );
    Run::ptx(&text, [64, 1, 1]).output(64)
}

const WAIT: &str = "$wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], PARITY;
    @!%p2 bra $wait;";

#[test]
fn what_lies_before_an_arrival_is_seen_behind_the_phase() {
    let wait = WAIT.replace("PARITY", "0");
    let by_state = WAIT.replace(".parity", "").replace("PARITY", "%rd3");
    for wait in [&wait, &by_state] {
        for shuffle in [None, Some(1), Some(2)] {
            let out = meeting("bar.sync 0;", wait).with(|o| o.shuffle = shuffle).clean();
            assert_eq!(out.words(0), (0..64).rev().collect::<Vec<_>>());
        }
    }
    let race = |r: Run| r.run().violations.iter().any(|v| matches!(v.kind, V::Race { .. }));
    assert!(race(meeting("bar.sync 0;", "")), "nobody waits");
    assert!(race(meeting("bar.sync 0;", &WAIT.replace("PARITY", "1"))), "the phase before has ended already");
    assert!(race(meeting("", &wait)), "arrivals before the barrier is made");
    let stuck = meeting("bar.sync 0;", &format!("{wait} {}", WAIT.replace("PARITY", "1").replace("$wait", "$more")));
    assert_eq!(stuck.run().only(|k| *k == V::Deadlock).count, 32);
}

/// The kernel uses a barrier with phases, but only behind the accesses that race.
#[test]
fn a_race_in_front_of_the_first_barrier_with_phases() {
    let run = |between: &str| {
        let text = format!(
            ".version 8.0
.target sm_90
.address_size 64
.visible .entry main(.param .u64 out)
{{
    .shared .align 8 .b8 bar[8];
    .shared .align 4 .b8 tile[4];
    .reg .pred %p1; .reg .b32 %r<4>, %i; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %i, %tid.x;
    setp.eq.u32 %p1, %i, 0;
    @%p1 st.shared.u32 [tile], 7;
    bar.sync 0;
    ld.shared.u32 %r1, [tile];
    {between}
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    @%p1 st.shared.u32 [tile], 8;
    mad.wide.u32 %rd2, %i, 4, %rd1;
    st.global.u32 [%rd2], %r1;
}}"
        );
        Run::ptx(&text, [32, 1, 1]).output(32)
    };
    assert_eq!(run("bar.sync 0;").clean().words(0), [7; 32]);
    let race = run("").run().only(|k| matches!(k, V::Race { .. }));
    assert_eq!(race.kind, V::Race { other: Some(1), write_write: false });
}

#[test]
fn arrivals_at_no_barrier_or_too_many() {
    let text = |init: &str| {
        format!(
            ".version 8.0
.target sm_90
.address_size 64
.visible .entry main(.param .u64 out)
{{
    .shared .align 8 .b8 bar[16];
    {init}
    mbarrier.arrive.shared::cta.b64 _, [bar];
    mbarrier.arrive.shared::cta.b64 _, [bar];
}}"
        )
    };
    let found = |init: &str| Run::ptx(&text(init), [1, 1, 1]).output(1).run();
    found("mbarrier.init.shared::cta.b64 [bar], 2;");
    let none = found("st.shared.u64 [bar], 0;").violations;
    assert_eq!(none.iter().filter(|v| v.kind == V::Mbarrier("was not initialised")).count(), 2);
    let over = Run::ptx(&text("mbarrier.init.shared::cta.b64 [bar], 2;").replace("_, [bar]", "_, [bar], 3"), [1, 1, 1]);
    assert_eq!(over.output(1).run().violations[0].kind, V::Mbarrier("has more arrivals than it counts"));
    let askew = text("mbarrier.init.shared::cta.b64 [bar+4], 2;");
    let askew = Run::ptx(&askew, [1, 1, 1]).output(1).run();
    assert!(askew.violations.iter().any(|v| v.kind == V::Misaligned { align: 8 }));
}

/// A thread brings a tile of 64 columns and 8 rows from column `c` and row `r`; all threads then copy shared memory out.
/// Changes replace pieces of the text.
fn tile(changes: &[(&str, &str)], (c, r): (i32, i32), swizzle: Swizzle) -> Run {
    let mut text = format!(
        ".version 8.0
.target sm_90
.address_size 64
.visible .entry main(.param .align 64 .b8 map[128], .param .u64 out)
{{
    .shared .align 1024 .b8 tile[1024];
    .shared .align 8 .b8 full[8];
    .reg .pred %p<3>; .reg .b32 %r<8>, %i; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.b64 %rd2, map;
    cvta.param.u64 %rd2, %rd2;
    mov.u32 %i, %tid.x;
    mov.u32 %r1, tile;
    mov.u32 %r2, full;
    setp.ne.u32 %p1, %i, 0;
    @%p1 bra $ready;
    mbarrier.init.shared::cta.b64 [%r2], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 1024;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd2, {{{c}, {r}}}], [%r2];
$ready:
    bar.sync 0;
$wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
    @!%p2 bra $wait;
    mad.lo.u32 %r3, %i, 4, %r1;
    ld.shared.u32 %r4, [%r3];
    mad.wide.u32 %rd3, %i, 4, %rd1;
    st.global.u32 [%rd3], %r4;
}}"
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    // Ten rows of 72 columns, 80 apart; an element is its row and column.
    let matrix: Vec<u8> = (0..800u16).flat_map(|i| (i / 80 * 256 + i % 80).to_le_bytes()).collect();
    let map = TensorMap {
        argument: 2,
        start: 0,
        element_bytes: 2,
        extents: [72, 10],
        row_bytes: 160,
        tile: [64, 8],
        swizzle,
    };
    let run = Run::ptx(&text, [256, 1, 1]).argument(Argument::TensorMap(map)).output(256);
    run.input_bytes(matrix)
}

fn halves(left: &Left, argument: usize) -> Vec<u16> {
    left.buffers[argument].chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect()
}

#[test]
fn a_barrier_is_fenced_before_a_copy_arrives_at_it() {
    let fence = "fence.mbarrier_init.release.cluster;";
    tile(&[(fence, "fence.proxy.async.shared::cta;")], (0, 0), Swizzle::None).clean();
    let found = tile(&[(fence, "")], (0, 0), Swizzle::None).run();
    found.only(|k| matches!(k, V::Mbarrier(what) if what.contains("fence")));
}

#[test]
fn a_tile_arrives_in_swizzled_order_with_zeros_beyond_the_edges() {
    let got = halves(&tile(&[], (0, 0), Swizzle::Bytes128).clean(), 1);
    // Row 3: its piece 0 of eight columns lies third, its piece 5 sixth of 0-based eight: 5 xor 3.
    assert_eq!(got[3 * 64 + 3 * 8], 3 * 256);
    assert_eq!(got[3 * 64 + 6 * 8 + 2], 3 * 256 + 5 * 8 + 2);
    // Row 0 lies as it comes, row 7 backwards.
    assert_eq!(got[..64], (0..64).collect::<Vec<u16>>());
    assert_eq!(got[7 * 64..7 * 64 + 8], (7 * 256 + 56..7 * 256 + 64).collect::<Vec<u16>>());
    let plain = halves(&tile(&[], (0, 0), Swizzle::None).clean(), 1);
    assert_eq!(plain, (0..512).map(|i| i / 64 * 256 + i % 64).collect::<Vec<u16>>());
    let edge = halves(&tile(&[], (16, 4), Swizzle::None).clean(), 1);
    let want = |i: u16| {
        let (r, c) = (i / 64 + 4, i % 64 + 16);
        if r < 10 && c < 72 { r * 256 + c } else { 0 }
    };
    assert_eq!(edge, (0..512).map(want).collect::<Vec<u16>>());
    let before = halves(&tile(&[], (-8, -1), Swizzle::None).clean(), 1);
    assert_eq!((before[64 + 7], before[64 + 8], before[8], before[2 * 64 + 9]), (0, 0, 0, 256 + 1));
}

#[test]
fn a_tile_is_pending_until_its_phase_was_seen_to_end() {
    let wait = "$wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
    @!%p2 bra $wait;";
    let swizzle = Swizzle::Bytes128;
    let count = |left: Left, kind: V| left.only(|k| *k == kind).count;
    assert!(tile(&[(wait, "")], (0, 0), swizzle).run().violations.iter().any(|v| v.kind == V::PendingCopy));
    // One warp waits, another one reads: a barrier in between passes it on, its absence does not.
    let first = "setp.ge.u32 %p1, %i, 32;
    @%p1 bra $over;
$wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
    @!%p2 bra $wait;
$over:";
    tile(&[(wait, &format!("{first}\n    bar.sync 0;"))], (0, 0), swizzle).clean();
    assert_eq!(count(tile(&[(wait, first)], (0, 0), swizzle).run(), V::PendingCopy), 224);
    // Half the bytes announced: the phase cannot end with the copy.
    assert_eq!(count(tile(&[("[%r2], 1024", "[%r2], 2048")], (0, 0), swizzle).run(), V::Deadlock), 32);
    let copy =
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd2, {0, 0}], [%r2];";
    let misplaced = copy.replace("[%r1]", "[%r1+64]");
    let left = tile(&[(copy, &misplaced)], (0, 0), swizzle).run();
    assert_eq!(left.only(|k| matches!(k, V::Misaligned { .. })).kind, V::Misaligned { align: 128 });
    // A second copy into the tile while others may read it.
    let again = "st.global.u32 [%rd3], %r4;\n    @!%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd2, {0, 0}], [%r2];";
    let left = tile(&[("st.global.u32 [%rd3], %r4;", again)], (0, 0), swizzle).run();
    assert!(left.violations.iter().any(|v| matches!(v.kind, V::Race { .. })));
    let under_way = left.violations.iter().filter(|v| v.kind == V::PendingCopy && v.address.is_none());
    assert_eq!(under_way.count(), 1, "and it is under way at the end");
}

#[test]
fn maps_that_a_driver_would_refuse_are_errors() {
    let with = |change: &dyn Fn(&mut TensorMap)| {
        let mut map = TensorMap {
            argument: 0,
            start: 0,
            element_bytes: 2,
            extents: [64, 8],
            row_bytes: 128,
            tile: [64, 8],
            swizzle: Swizzle::Bytes128,
        };
        change(&mut map);
        let text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry main(.param .u64 x, .param .align 64 .b8 map[128])\n{ ret; }";
        Run::ptx(text, [1, 1, 1]).output(256).argument(Argument::TensorMap(map)).outcome().err().map(|e| e.to_string())
    };
    assert_eq!(with(&|_| {}), None);
    let refused = |change: &dyn Fn(&mut TensorMap), why: &str| assert!(with(change).unwrap().contains(why), "{why}");
    refused(&|m| m.row_bytes = 72, "multiple of 16 bytes apart");
    refused(&|m| m.tile[0] = 72, "wider than the swizzle");
    refused(&|m| m.tile[1] = 257, "beyond 256");
    refused(&|m| m.start = 8, "start that is no multiple");
    refused(&|m| m.argument = 7, "of no buffer");
}

/// A warpgroup multiplies 64 × 64 by 64 × 64 (transposed) in bf16, in four steps, on tiles that tensor copies bring.
fn product(changes: &[(&str, &str)], a: &[u8], b: &[u8]) -> Run {
    let accumulators = (0..32).map(|i| format!("%d{i}")).collect::<Vec<_>>().join(", ");
    let steps: String = (0..4)
        .map(|k| {
            format!(
                "    setp.ne.u32 %p3, {k}, 0;
    add.u64 %rd5, %rd3, {o}; add.u64 %rd6, %rd4, {o};
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{accumulators}}}, %rd5, %rd6, %p3, 1, 1, 0, 0;\n",
                o = 2 * k
            )
        })
        .collect();
    let stores: String = (0..32)
        .map(|i| format!("    st.global.f32 [%rd7+{}], %d{i};\n", 4 * (i / 2 % 2 * 8 * 64 + i / 4 * 8 + i % 2)))
        .collect();
    let mut text = format!(
        ".version 8.0
.target sm_90a
.address_size 64
.visible .entry main(.param .align 64 .b8 ma[128], .param .align 64 .b8 mb[128], .param .u64 out)
.reqntid 128
{{
    .shared .align 1024 .b8 a[8192];
    .shared .align 1024 .b8 b[8192];
    .shared .align 8 .b8 full[8];
    .reg .pred %p<4>; .reg .b32 %r<12>, %i; .reg .b64 %rd<8>; .reg .f32 %d<32>;
    mov.b64 %rd1, ma;
    cvta.param.u64 %rd1, %rd1;
    mov.b64 %rd2, mb;
    cvta.param.u64 %rd2, %rd2;
    mov.u32 %i, %tid.x;
    mov.u32 %r1, a;
    mov.u32 %r2, b;
    mov.u32 %r3, full;
    setp.ne.u32 %p1, %i, 0;
    @%p1 bra $ready;
    mbarrier.init.shared::cta.b64 [%r3], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 16384;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {{0, 0}}], [%r3];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd2, {{0, 0}}], [%r3];
$ready:
    bar.sync 0;
$wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
    @!%p2 bra $wait;
    // Start in units of 16 bytes, 1024 bytes from eight rows to the next, rows of 128 bytes swizzled.
    bfe.u32 %r4, %r1, 4, 14;
    bfe.u32 %r5, %r2, 4, 14;
    or.b32 %r4, %r4, 0x10000;
    or.b32 %r5, %r5, 0x10000;
    mov.u32 %r6, 0x40000040;
    mov.b64 %rd3, {{%r4, %r6}};
    mov.b64 %rd4, {{%r5, %r6}};
    wgmma.fence.sync.aligned;
{steps}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    // Row 16 warp + lane / 4, columns from 2 (lane mod 4) on.
    shr.u32 %r7, %i, 5;
    bfe.u32 %r8, %i, 2, 3;
    and.b32 %r9, %i, 3;
    mad.lo.u32 %r8, %r7, 16, %r8;
    mul.lo.u32 %r8, %r8, 64;
    mad.lo.u32 %r8, %r9, 2, %r8;
    ld.param.u64 %rd7, [out];
    mad.wide.u32 %rd7, %r8, 4, %rd7;
{stores}
}}"
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let map = |argument| {
        Argument::TensorMap(TensorMap {
            argument,
            start: 0,
            element_bytes: 2,
            extents: [64, 64],
            row_bytes: 128,
            tile: [64, 64],
            swizzle: Swizzle::Bytes128,
        })
    };
    let run = Run::ptx(&text, [128, 1, 1]).argument(map(3)).argument(map(4)).output(4096);
    run.input_bytes(a.to_vec()).input_bytes(b.to_vec())
}

fn matrix(f: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    (0..4096).flat_map(|i| bf16::from_f32(f(i / 64, i % 64)).to_le_bytes()).collect()
}

#[test]
fn a_product_of_a_warpgroup_is_the_product_of_its_matrices() {
    let a = |r: usize, k: usize| ((r * 5 + k * 3) % 17) as f32 - 8.0;
    let b = |c: usize, k: usize| ((c * 7 + k * 2) % 13) as f32 - 6.0;
    let want = floats(4096, |i| (0..64).map(|k| a(i / 64, k) * b(i % 64, k)).sum());
    for (shuffle, permute) in [(None, None), (Some(5), Some(9))] {
        let run = product(&[], &matrix(a), &matrix(b));
        let out = run.with(|o| (o.shuffle, o.permute_mma) = (shuffle, permute)).clean();
        assert_eq!(out.floats(2), want);
        assert_eq!(out.counters.warp_of(frit_simt::Class::Matrix), 16);
    }
}

#[test]
fn products_of_a_warpgroup_are_fenced_and_waited_for() {
    let (a, b) = (matrix(|_, _| 1.0), matrix(|_, _| 1.0));
    let kinds = |changes: &[(&str, &str)]| -> Vec<V> {
        product(changes, &a, &b).run().violations.into_iter().map(|v| v.kind).collect()
    };
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let busy = V::Wgmma("accumulators touched before the product was waited for");
    assert!(kinds(&[(wait, "")]).contains(&busy));
    assert!(kinds(&[(wait, "wgmma.wait_group.sync.aligned 1;")]).contains(&busy));
    assert!(kinds(&[("wgmma.commit_group.sync.aligned;", "")]).contains(&busy));
    let unfenced = kinds(&[("wgmma.fence.sync.aligned;", "")]);
    assert_eq!(unfenced, [V::Wgmma("accumulators changed without a fence")]);
    // Without the predicate the first step adds what nothing wrote.
    assert!(kinds(&[("setp.ne.u32 %p3, 0, 0;", "setp.eq.u32 %p3, 0, 0;")]).contains(&V::UninitialisedRegister));
    // A descriptor that starts half a pattern on, and one that lanes do not agree on.
    let shifted = kinds(&[("bfe.u32 %r4, %r1, 4, 14;", "bfe.u32 %r4, %r1, 4, 14; add.u32 %r4, %r4, 16;")]);
    assert!(shifted.contains(&V::Wgmma("does not start where its pattern does")));
    let apart = kinds(&[("bfe.u32 %r4, %r1, 4, 14;", "bfe.u32 %r4, %r1, 4, 14; add.u32 %r4, %r4, %i;")]);
    assert!(apart.contains(&V::Wgmma("differs between lanes")));
    // The tile is written between the products and their wait.
    let early = kinds(&[(wait, "bar.sync 0; st.shared.u32 [%r1], 0; wgmma.wait_group.sync.aligned 0;")]);
    assert!(early.iter().any(|k| matches!(k, V::Race { .. })), "{early:?}");
    // Three of four warps.
    let fewer =
        kinds(&[("wgmma.fence.sync.aligned;", "setp.ge.u32 %p3, %i, 96;\n@%p3 ret;\nwgmma.fence.sync.aligned;")]);
    assert!(fewer.contains(&V::CollectiveDivergence), "{fewer:?}");
}

/// One element in each matrix; the product's place by hand: warp `row / 16`, lane `4 (row mod 8) + column mod 8 / 2`,
/// register `4 (column / 8) + 2 (row mod 16 / 8) + column mod 2`.
#[test]
fn fragments_of_a_warpgroup_by_hand() {
    let text = ".version 8.0
.target sm_90a
.address_size 64
.visible .entry main(.param .u64 in, .param .u64 out)
.reqntid 128
{
    .shared .align 128 .b8 a[2048];
    .shared .align 128 .b8 b[512];
    .reg .pred %p<3>; .reg .b32 %r<12>, %i; .reg .b64 %rd<8>; .reg .f32 %d<8>;
    ld.param.u64 %rd1, [in];
    ld.param.u64 %rd2, [out];
    mov.u32 %i, %tid.x;
    mov.u32 %r1, a;
    mov.u32 %r2, b;
    // 16 bytes of a and 4 of b a thread, as they are.
    mad.wide.u32 %rd3, %i, 16, %rd1;
    ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd3];
    mad.lo.u32 %r7, %i, 16, %r1;
    st.shared.v4.u32 [%r7], {%r3, %r4, %r5, %r6};
    mad.wide.u32 %rd3, %i, 4, %rd1;
    ld.global.u32 %r3, [%rd3+2048];
    mad.lo.u32 %r7, %i, 4, %r2;
    st.shared.u32 [%r7], %r3;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    bfe.u32 %r4, %r1, 4, 14;
    bfe.u32 %r5, %r2, 4, 14;
    or.b32 %r4, %r4, 0x80000;
    or.b32 %r5, %r5, 0x80000;
    mov.b64 %rd4, {%r4, 16};
    mov.b64 %rd5, {%r5, 16};
    setp.ne.u32 %p1, 0, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, %rd4, %rd5, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mad.wide.u32 %rd6, %i, 32, %rd2;
    st.global.v4.f32 [%rd6], {%d0, %d1, %d2, %d3};
    st.global.v4.f32 [%rd6+16], {%d4, %d5, %d6, %d7};
}";
    // Without swizzle: eight rows of 16 bytes are a core matrix of 128 bytes; the two along k lie 128 bytes apart, eights
    // of rows 256 bytes.
    for ((row, column, k), (thread, register)) in [
        ((0, 0, 0), (0, 0)),
        ((3, 5, 2), (14, 1)),
        ((11, 5, 9), (14, 3)),
        ((16, 8, 15), (32, 4)),
        ((47, 15, 8), (95, 7)),
        ((63, 6, 7), (127, 2)),
    ] {
        let place = |row: usize, k: usize| row / 8 * 256 + k / 8 * 128 + row % 8 * 16 + k % 8 * 2;
        let mut bytes = vec![0; 2560];
        bytes[place(row, k)..][..2].copy_from_slice(&f16::from_f32(3.0).to_le_bytes());
        bytes[2048 + place(column, k)..][..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        let got = Run::ptx(text, [128, 1, 1]).input_bytes(bytes).output(1024).clean().floats(1);
        let mut want = vec![0.0; 1024];
        want[thread * 8 + register] = 6.0;
        assert_eq!(got, want, "row {row}, column {column}, k {k}");
    }
}

#[test]
fn what_may_be_written_is_not_touched_before_the_launch_in_front_has_ended() {
    let text = |early: &str, late: &str| {
        format!(
            ".version 7.8
.target sm_90
.address_size 64
.visible .entry main(.param .u64 weights, .param .u64 data)
{{
    .reg .b32 %r<4>; .reg .b64 %rd<4>;
    griddepcontrol.launch_dependents;
    ld.param.u64 %rd1, [weights];
    ld.param.u64 %rd2, [data];
    ld.relaxed.gpu.global.L1::no_allocate.b32 %r1, [%rd1];
    {early}
    griddepcontrol.wait;
    {late}
    add.u32 %r2, %r2, %r1;
    st.global.u32 [%rd2], %r2;
}}"
        )
    };
    let read = "ld.global.u32 %r2, [%rd2];";
    let run = |early, late| Run::ptx(&text(early, late), [1, 1, 1]).input_bytes(vec![5, 0, 0, 0]).inout(&[0.0]);
    assert_eq!(run("", read).clean().words(1), [5]);
    assert_eq!(run(read, "").run().only(|k| *k == V::EarlyAccess).line, 11);
    assert_eq!(run("st.global.u32 [%rd2], 1;", read).run().only(|k| *k == V::EarlyAccess).count, 1);
}

/// A wait that some lanes reach serves those alone, whatever their warp or workgroup does.
#[test]
fn a_lane_that_did_not_wait_itself_touches_nothing_of_the_launch_in_front() {
    let run = |wait: &str| {
        let text = format!(
            ".version 7.8
.target sm_90
.address_size 64
.visible .entry main(.param .u64 data)
.reqntid 64
{{
    .reg .pred %p1; .reg .b32 %r<4>, %i; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [data];
    mov.u32 %i, %tid.x;
    mad.wide.u32 %rd2, %i, 4, %rd1;
    setp.lt.u32 %p1, %i, 16;
    {wait}
    bar.sync 0;
    ld.global.u32 %r1, [%rd2];
    st.global.u32 [%rd2], %r1;
}}"
        );
        Run::ptx(&text, [64, 1, 1]).inout(&floats(64, |i| i as f32)).run()
    };
    assert!(run("griddepcontrol.wait;").violations.is_empty());
    assert!(run("@%p1 griddepcontrol.wait; @!%p1 griddepcontrol.wait;").violations.is_empty());
    let apart = "@%p1 bra $first; griddepcontrol.wait; bra $on; $first: griddepcontrol.wait; $on:";
    assert!(run(apart).violations.is_empty());
    for some in ["@%p1 griddepcontrol.wait;", "@!%p1 bra $on; griddepcontrol.wait; $on:"] {
        let found = run(some).violations;
        let counts: Vec<_> = found.iter().map(|v| (v.kind.clone(), v.thread.local[0], v.count)).collect();
        assert_eq!(counts, [(V::EarlyAccess, 16, 48), (V::EarlyAccess, 16, 48)], "{some}");
        assert_eq!(found[0].address.as_ref().map(|a| a.offset), Some(64));
    }
}

#[test]
fn a_tensor_copy_waits_for_the_launch_in_front_as_other_reads_do() {
    let [copy, store, first] = ["cp.async.bulk.tensor.2d", "mad.lo.u32 %r3, %i, 4, %r1;", "setp.ne.u32 %p1, %i, 0;"];
    let behind = |place: &str| format!("griddepcontrol.wait; {place}");
    let late = behind(store);
    let run = |also: (&str, &str)| tile(&[(store, &late), also], (0, 0), Swizzle::Bytes128);
    // Weights, which no launch writes, may come early; so may all that has no launch in front.
    run((copy, copy)).clean();
    tile(&[], (0, 0), Swizzle::Bytes128).writable(2).clean();
    run((copy, &behind(copy))).writable(2).clean();
    // The thread does not wait, or another one of its warp does.
    let other = format!("setp.eq.u32 %p2, %i, 1; @%p2 griddepcontrol.wait; {first}");
    for also in [(copy, copy), (first, other.as_str())] {
        let found = run(also).writable(2).run().only(|k| *k == V::EarlyAccess);
        assert_eq!((found.count, found.thread.local), (1, [0; 3]), "{also:?}");
        assert_eq!(found.address.map(|a| (a.buffer, a.offset)), Some(("in2".into(), 0)), "{also:?}");
    }
}
