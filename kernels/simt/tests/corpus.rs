//! The corpus of PTX kernels, executed here in sizes that no tile divides, against naive loops in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/cases/mod.rs"]
mod cases;
#[path = "../../tests/support/mod.rs"]
mod support;

mod launch;

use cases::gemm::filled;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{KernelSpec, PartialKind};
use frit_kernels::target::Capabilities;
use frit_kernels::templates::{Rendered, render, warpgroup_refusal};
use support::blocks::Random;
use support::corpus::{self, Form, ODD, Shapes};
use support::{Case, compare};

const SIZES: [(&str, i64); 4] = [("B", 2), ("S", 21), ("T", 37), ("P", 3)];

fn case(spec: KernelSpec, sizes: &[(&str, i64)]) -> Case {
    let gathers = spec.name.starts_with("gather");
    let mut case = filled(spec, sizes, 5);
    if gathers {
        case.data[0] = Random::new(3).ints(sizes[1].1 as usize, 9);
    }
    case.tolerance = 1e-4;
    case
}

fn check(case: &Case, options: &frit_simt::Options) -> frit_simt::Counters {
    check_for(case, &Capabilities::cuda(), options)
}

fn check_for(case: &Case, caps: &Capabilities, options: &frit_simt::Options) -> frit_simt::Counters {
    agrees(case, &render(&case.spec, caps).unwrap(), options)
}

fn agrees(case: &Case, r: &Rendered, options: &frit_simt::Options) -> frit_simt::Counters {
    let (outcome, args) = launch::run(case, r, options);
    launch::clean(&outcome, r);
    assert!(outcome.completed);
    let (want, tolerance) = launch::expected(case, r);
    for (i, a) in case.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
        compare(&format!("{} `{}`", case.spec.name, a.name), &want[i], &args[i], tolerance[i], r);
    }
    outcome.counters
}

/// Kernels of small sizes that no tile divides.
fn odd() -> impl Iterator<Item = KernelSpec> {
    corpus::all(&ODD).into_iter().filter(|s| !s.name.ends_with("_wider"))
}

#[test]
fn every_kernel_computes_what_its_specification_says() {
    for spec in odd() {
        check(&case(spec, &SIZES), &frit_simt::Options::default());
    }
}

/// Nothing but weights is read before the launch in front has ended, and the sums are the same.
#[test]
fn kernels_that_overlap_wait_for_what_they_read() {
    // Rows long enough for weights to be loaded ahead, and then for more.
    let long = |width| corpus::all(&Shapes { width, columns: 37, ..ODD });
    let ahead = [768, 2048].into_iter().flat_map(long).filter(|s| s.name.starts_with("gemv"));
    for spec in odd().chain(ahead) {
        let case = case(spec, &SIZES);
        check_for(&case, &Capabilities::cuda_overlapping(), &frit_simt::Options::default());
    }
}

#[test]
fn matrix_units_at_every_edge() {
    let sizes = |s| [("B", 1), ("S", s), ("T", 1), ("P", 0)];
    for (width, columns) in [(32, 64), (40, 65), (104, 31), (96, 128), (72, 2050)] {
        let z = Shapes { width, columns, ..ODD };
        for (storage, form) in [
            (Storage::F16, Form::Plain),
            (Storage::Bf16, Form::Gated),
            (Storage::Bf16, Form::Residual),
            (Storage::Bf16, Form::RotaryKv),
            (Storage::Bf16, Form::Kept),
            (Storage::F16, Form::Kept),
            (Storage::Bf16, Form::Commuted),
        ] {
            for rows in [1, 40, 65] {
                let spec = corpus::matmul(&z, "S", storage, form);
                check(&case(spec, &sizes(rows.min(z.capacity as i64))), &frit_simt::Options::default());
            }
        }
    }
}

/// Products of warpgroups where rows, columns or the sum end within a tile, at its edge and behind it; on fewer
/// workgroups than blocks, so that one goes on to the next, with the ring at another stage than at the start.
#[test]
fn warpgroups_at_every_edge() {
    let sizes = |s| [("B", 1), ("S", s), ("T", 1), ("P", 0)];
    for (storage, form, width, columns, rows, workgroups) in [
        (Storage::F16, Form::Plain, 64, 64, 1, 132),
        (Storage::F16, Form::Plain, 328, 200, 130, 1),
        (Storage::Bf16, Form::Gated, 72, 77, 130, 1),
        (Storage::Bf16, Form::Gated, 320, 64, 20, 2),
        (Storage::Bf16, Form::BiasGelu, 136, 129, 129, 3),
        (Storage::Bf16, Form::Residual, 72, 200, 20, 1),
        (Storage::F16, Form::NormedKept, 136, 130, 131, 2),
        (Storage::Bf16, Form::RotaryKv, 72, 64, 130, 1),
        (Storage::Bf16, Form::Kept, 64, 64, 1, 132),
        (Storage::F16, Form::Kept, 328, 200, 130, 1),
        (Storage::Bf16, Form::Kept, 136, 129, 129, 3),
        (Storage::Bf16, Form::Commuted, 72, 200, 131, 1),
        (Storage::Bf16, Form::Commuted, 328, 130, 20, 2),
    ] {
        let z = Shapes { width, columns, kv_heads: 8, capacity: 300, ..ODD };
        warpgroups(&case(corpus::matmul(&z, "S", storage, form), &sizes(rows)), workgroups);
    }
    // Blocks of 256 columns.
    for (form, rows, workgroups) in
        [(Form::Kept, 20, 3), (Form::Commuted, 9, 7), (Form::NormedKept, 9, 5), (Form::Gated, 9, 9)]
    {
        let z = Shapes {
            width: if form == Form::Kept { 136 } else { 72 },
            columns: 8520,
            kv_heads: 8,
            capacity: 300,
            ..ODD
        };
        let case = case(corpus::matmul(&z, "S", Storage::Bf16, form), &sizes(rows));
        let r = render(&case.spec, &Capabilities::cuda_warpgroups()).unwrap();
        let columns = if form == Form::Gated { 128 } else { 256 };
        assert!(r.tile.contains(&("columns".into(), columns)), "{:?}", r.tile);
        warpgroups(&case, workgroups);
    }
    // Statistics of tiles: full ones, one of a single column, and one that only the second block of columns has.
    for (rows, columns, k, storage, workgroups) in
        [(20, 64, 64, Storage::F16, 132), (130, 193, 72, Storage::Bf16, 1), (70, 136, 328, Storage::Bf16, 2)]
    {
        for kind in [PartialKind::Squares, PartialKind::Moments] {
            warpgroups(&cases::gemm::forwarding((rows, columns, k), storage, kind), workgroups);
        }
    }
}

/// Runs a case as warpgroups work on it, on so many workgroups at most.
fn warpgroups(case: &Case, workgroups: i64) {
    let mut r = render(&case.spec, &Capabilities::cuda_warpgroups()).unwrap();
    assert_eq!(r.template, "gemm_warpgroup", "{:?}", warpgroup_refusal(&case.spec));
    r.grid[0] = r.grid[0].smaller(&Dim::constant(workgroups));
    for shuffle in [None, Some(5)] {
        agrees(case, &r, &frit_simt::Options { shuffle, ..Default::default() });
    }
}

#[test]
fn results_do_not_depend_on_the_order_of_warps() {
    for spec in odd() {
        let case = case(spec, &SIZES);
        let r = render(&case.spec, &Capabilities::cuda()).unwrap();
        let run = |shuffle| launch::run(&case, &r, &frit_simt::Options { shuffle, ..Default::default() }).1;
        assert_eq!(run(None), run(Some(17)), "{}", case.spec.name);
    }
}
