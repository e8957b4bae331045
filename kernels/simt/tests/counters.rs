//! Costs of kernels: what they mean on small ones, and as goldens on emitted ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
mod common;
mod launch;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::{Run, floats};
use frit_kernels::dtype::{HalfFormat, Storage};
use frit_kernels::target::Capabilities;
use frit_kernels::templates::{render, warpgroup_refusal};
use frit_simt::{Class, Counters, Options};
use std::cell::RefCell;
use support::Case;
use support::corpus::{self, Form, ODD, Shapes};

/// 32 lanes load at `%i * step` bytes of global memory, store `4 width` bytes at `%i * stride` bytes of shared memory.
fn access(step: u32, stride: u32, width: u32) -> Counters {
    let regs = (0..width).map(|_| "%f1".to_owned()).collect::<Vec<_>>().join(", ");
    let (vector, regs) = if width == 1 { (String::new(), regs) } else { (format!(".v{width}"), format!("{{{regs}}}")) };
    let text = format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry main(.param .u64 p)
{{
    .shared .align 16 .b8 tile[8192];
    .reg .b32 %r<4>; .reg .f32 %f1; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd2, %r1, {step}, %rd1;
    ld.global.f32 %f1, [%rd2];
    mov.u32 %r2, tile;
    mad.lo.u32 %r2, %r1, {stride}, %r2;
    st.shared{vector}.f32 [%r2], {regs};
    ret;
}}"
    );
    Run::ptx(&text, [32, 1, 1]).input(&floats(4096, |_| 1.0)).clean().counters
}

#[test]
fn sectors_of_global_accesses() {
    assert_eq!(access(4, 4, 1).global_read_sectors, 4);
    assert_eq!(access(0, 4, 1).global_read_sectors, 1);
    assert_eq!(access(8, 4, 1).global_read_sectors, 8);
    assert_eq!(access(128, 4, 1).global_read_sectors, 32);
    assert_eq!(access(4, 4, 1).global_read_bytes, 128);
}

#[test]
fn conflicts_of_shared_accesses() {
    assert_eq!(access(4, 4, 1).bank_conflicts, 0);
    assert_eq!(access(4, 8, 1).bank_conflicts, 1);
    assert_eq!(access(4, 12, 1).bank_conflicts, 0);
    assert_eq!(access(4, 64, 1).bank_conflicts, 15);
    assert_eq!(access(4, 128, 1).bank_conflicts, 31);
    assert_eq!(access(4, 16, 4).bank_conflicts, 0);
    assert_eq!(access(4, 128, 4).bank_conflicts, 4 * 7);
    assert_eq!(access(4, 8, 2).bank_conflicts, 0);
    assert_eq!(access(4, 4, 1).shared_accesses, 1);
}

#[test]
fn instructions_by_class_and_lane() {
    let text = ".version 7.0
.target sm_80
.address_size 64
.visible .entry main()
{
    .reg .pred %p1; .reg .b32 %r<4>; .reg .f32 %f<4>;
    mov.u32 %r1, %tid.x;
    setp.lt.u32 %p1, %r1, 5;
    @%p1 bra $few;
    mov.f32 %f1, 0f3F800000;
    fma.rn.f32 %f2, %f1, %f1, %f1;
    bra $end;
$few:
    add.u32 %r2, %r1, 1;
$end:
    bar.sync 0;
    ret;
}";
    let c = Run::ptx(text, [64, 1, 1]).grid([3, 1, 1]).clean().counters;
    assert_eq!((c.warp_of(Class::Float), c.thread[Class::Float as usize]), (6, 3 * 59));
    assert_eq!((c.warp_of(Class::Barrier), c.barriers, c.divergences), (6, 3, 3));
    assert_eq!(c.thread[Class::Integer as usize], 3 * (64 + 5));
    assert_eq!(c.live_registers, 2);
}

fn case_of(cases: impl FnOnce(&dyn Fn(&Case)), which: usize) -> Case {
    let all = RefCell::new(Vec::new());
    cases(&|c: &Case| all.borrow_mut().push(c.clone()));
    all.into_inner().remove(which)
}

#[test]
fn costs_of_emitted_kernels() {
    let mut cases = vec![
        case_of(|f| cases::map::map_at_the_edges_of_its_tiles(f), 22),
        case_of(|f| cases::row::softmax_in_place(f), 12),
        case_of(|f| cases::gemv::a_norm_of_the_rows_in_front(f), 1),
        case_of(|f| cases::attention::every_length_of_keys(f), 13),
    ];
    for (storage, s) in [(Storage::F32, 128), (Storage::Bf16, 128), (Storage::Q4_0, 64)] {
        cases.push(cases::gemm::filled(cases::gemm::plain((128, 64), storage), &[("S", s)], 1));
    }
    let kept = cases::gemm::kept(cases::gemm::plain((128, 64), Storage::Bf16), &["x", "y"], HalfFormat::Bf16);
    let mut kept = cases::gemm::filled(kept, &[("S", 128)], 1);
    kept.spec.name = "product_kept".into();
    cases.push(kept);
    for case in cases {
        let warpgroups = warpgroup_refusal(&case.spec).is_none().then(Capabilities::cuda_warpgroups);
        for caps in launch::targets().into_iter().chain(warpgroups) {
            let r = render(&case.spec, &caps).unwrap();
            let (outcome, _) = launch::run(&case, &r, &Options::default());
            launch::clean(&outcome, &r);
            let shapes: Vec<String> = case.data.iter().map(|d| format!("{}", support::blocks::len(d))).collect();
            let own = if caps.has_warpgroups() { "_sm_90a" } else { "" };
            let name = format!("{}_{}_{:?}{own}", case.spec.name, shapes.join("_"), caps.tier);
            insta::assert_snapshot!(name, outcome.counters);
        }
    }
}

/// What the compiler prices a left side at that is normalised in every tile of columns rather than copied
/// (`FLOPS_OF_REGISTERS` of `compiler/src/fusion/cost.rs`): instructions an element and tile of 64 columns.
#[test]
fn normalising_in_a_tile_takes_thirteen_instructions_more_than_copying() {
    let of = |form, columns| {
        let z = Shapes { width: 256, columns, capacity: 300, ..ODD };
        let case = cases::gemm::filled(corpus::matmul(&z, "S", Storage::Bf16, form), &[("S", 128)], 1);
        let r = render(&case.spec, &Capabilities::cuda()).unwrap();
        assert_eq!(r.template, "gemm_matrix");
        let (outcome, _) = launch::run(&case, &r, &Options::default());
        launch::clean(&outcome, &r);
        outcome.counters.thread.iter().sum::<u64>()
    };
    let tile = |form| (of(form, 128) - of(form, 64)) as f64 / (128.0 * 256.0);
    let (normed, kept) = (tile(Form::Normed), tile(Form::Kept));
    assert!((28.0..30.5).contains(&normed) && (15.5..17.0).contains(&kept), "{normed} {kept}");
    assert!((12.5..13.5).contains(&(normed - kept)), "{normed} {kept}");
}
