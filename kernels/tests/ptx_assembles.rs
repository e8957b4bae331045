//! NVIDIA's assembler takes every kernel of the corpus for every GPU, without spills and without local memory.
//!
//! The tools are found through `FRIT_PTXAS` or in `tools/` of the repository, where `tests/tools.sh` puts them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit_kernels::emit::Language;
use frit_kernels::target::Capabilities;
use frit_kernels::templates::{Rendered, render};
use std::fmt::Write;
use support::corpus::{self, DECODER, ODD};
use support::ptxas::{ARCHITECTURES, Ptxas};

fn rendered(shapes: &corpus::Shapes) -> Vec<(String, Rendered)> {
    rendered_for(shapes, &Capabilities::cuda())
}

fn rendered_for(shapes: &corpus::Shapes, caps: &Capabilities) -> Vec<(String, Rendered)> {
    let render = |spec: frit_kernels::spec::KernelSpec| {
        let r = render(&spec, caps).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(r.language, Language::Ptx);
        (spec.name, r)
    };
    corpus::all(shapes).into_iter().map(render).collect()
}

#[test]
fn every_kernel_fits_in_registers() {
    let ptxas = Ptxas::find();
    let mut table =
        format!("{:<28} {:>7} {:>8}  registers: {}\n", "kernel", "shared", "barriers", ARCHITECTURES.join(" "));
    for (name, r) in rendered(&DECODER) {
        let found: Vec<_> = ARCHITECTURES.iter().map(|arch| ptxas.assemble(&r.text, arch)).collect();
        let registers: Vec<String> = found.iter().map(|f| f.registers.to_string()).collect();
        let first = &found[0];
        let _ = writeln!(
            table,
            "{name:<28} {:>7} {:>8}  {}",
            r.module.workgroup_bytes(),
            first.barriers,
            registers.join(" ")
        );
        assert!(u64::from(first.shared_bytes) <= r.module.workgroup_bytes(), "{name}");
    }
    if ptxas.is_of_goldens() {
        insta::assert_snapshot!("registers", table);
    }
}

/// The kernels that warpgroups work on, of those sizes.
fn of_warpgroups(shapes: &corpus::Shapes) -> Vec<(String, Rendered)> {
    let all = rendered_for(shapes, &Capabilities::cuda_warpgroups());
    all.into_iter().filter(|(_, r)| r.template == "gemm_warpgroup").collect()
}

/// Every form of product with 16-bit weights has a kernel for warpgroups, which both assemblers take for `sm_90a` without
/// spills, and without making its products wait for each other.
#[test]
fn warpgroups_work_apart() {
    let (ptxas, older) = (Ptxas::find(), Ptxas::find_older());
    let mut table = format!("{:<28} {:>7}  registers\n", "kernel", "shared");
    for (name, r) in of_warpgroups(&DECODER) {
        let found = ptxas.assemble(&r.text, "sm_90a");
        let _ = writeln!(table, "{name:<28} {:>7}  {}", r.module.workgroup_bytes(), found.registers);
        older.assemble(&r.text, "sm_90a");
        assert!(found.registers <= 168, "{name}");
        let columns = r.tile.iter().find(|t| t.0 == "columns").map_or(0, |t| t.1);
        let sides = if name.contains("gated") || name.contains("rotary") { 2 } else { 1 };
        assert_eq!(columns * sides, if name.ends_with("_wider") { 256 } else { 128 }, "{name}");
        if name == "gemm_bf16_plain" {
            insta::assert_snapshot!("gemm_bf16_plain_of_warpgroups", r.text);
            let code = ptxas.disassemble(&r.text, "sm_90a");
            let count = |what: &str| code.iter().filter(|l| l.contains(what)).count();
            assert_eq!(count("HGMMA.64x128x16.F32.BF16"), 4, "{}", code.join("\n"));
            assert!(count("UTMALDG.2D") == 1 && count("SYNCS") > 0, "{}", code.join("\n"));
        }
    }
    for (_, r) in of_warpgroups(&ODD) {
        ptxas.assemble(&r.text, "sm_90a");
        older.assemble(&r.text, "sm_90a");
    }
    if ptxas.is_of_goldens() {
        insta::assert_snapshot!("registers_of_warpgroups", table);
    }
}

/// The assembler of the major version before takes the same texts, for the GPUs it knows.
#[test]
fn the_assembler_before_takes_every_kernel_too() {
    let older = Ptxas::find_older();
    for (name, r) in rendered(&DECODER) {
        for arch in ARCHITECTURES {
            let used = older.assemble(&r.text, arch);
            assert!(used.registers <= 255, "{name} {arch}");
        }
    }
}

/// The lowest version of PTX that has what a text uses, so that the oldest possible driver takes it.
#[test]
fn texts_ask_for_the_lowest_version() {
    const NEEDS: [(&str, &str); 7] = [
        (".L2::", "7.4"),
        ("L1::no_allocate", "7.4"),
        ("griddepcontrol", "7.8"),
        ("stmatrix", "7.8"),
        ("mbarrier", "8.0"),
        ("cp.async.bulk", "8.0"),
        ("wgmma", "8.0"),
    ];
    for (name, r) in rendered(&DECODER).into_iter().chain(rendered(&ODD)) {
        let need = NEEDS.iter().filter(|(word, _)| r.text.contains(word)).map(|(_, v)| *v).max().unwrap_or("7.0");
        assert!(r.text.contains(&format!("\n.version {need}\n")), "{name} needs {need}:\n{}", r.text);
    }
}

#[test]
fn kernels_of_odd_sizes_assemble() {
    let (ptxas, older) = (Ptxas::find(), Ptxas::find_older());
    for (_, r) in rendered(&ODD) {
        for arch in ["sm_80", "sm_90", "sm_120"] {
            ptxas.assemble(&r.text, arch);
            older.assemble(&r.text, arch);
        }
    }
    for (_, r) in rendered_for(&ODD, &Capabilities::cuda_overlapping()) {
        for arch in ["sm_90", "sm_120"] {
            ptxas.assemble(&r.text, arch);
            older.assemble(&r.text, arch);
        }
    }
}

#[test]
fn the_machine_code_uses_what_was_asked_for() {
    let ptxas = Ptxas::find();
    let all = rendered(&DECODER);
    for (name, arch, wanted) in [
        ("gemm_bf16_plain", "sm_80", ["HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDGSTS.E.BYPASS"].as_slice()),
        ("gemm_f16_wide", "sm_90", &["HMMA.16816.F32 ", "LDSM.16.M88.4", "LDGSTS.E.BYPASS"]),
        ("gemm_q6_k_wide", "sm_120", &["HMMA.16816.F32.BF16", "LDSM.16.M88.4"]),
        ("rms_norm", "sm_80", &["SHFL.BFLY"]),
        ("attention_decode", "sm_90", &["SHFL.BFLY", "LDG.E.128.CONSTANT", "MUFU.EX2"]),
        ("gather_q8_0", "sm_80", &["PRMT"]),
    ] {
        let (_, r) = all.iter().find(|(n, _)| n == name).expect(name);
        let code = ptxas.disassemble(&r.text, arch);
        for instruction in wanted {
            assert!(code.iter().any(|l| l.contains(instruction)), "{name}: no {instruction}\n{}", code.join("\n"));
        }
    }
}

/// Weights of all chunks of a loop body are on their way before the first of them is used.
#[test]
fn weights_are_asked_for_before_any_is_used() {
    let ptxas = Ptxas::find();
    let all = rendered(&DECODER);
    for (name, loads) in [("gemv_bf16_plain", 6), ("gemv_f32_plain", 6), ("gemv_bf16_gated", 6)] {
        let (_, r) = all.iter().find(|(n, _)| n == name).expect(name);
        for arch in ["sm_80", "sm_90", "sm_120"] {
            let code = ptxas.disassemble(&r.text, arch);
            let before = code.iter().take_while(|l| !l.contains("FFMA")).filter(|l| l.contains("LDG.E.128.CONSTANT"));
            assert!(before.count() >= loads, "{name} {arch}\n{}", code.join("\n"));
        }
    }
}

/// Kernels that may start while the launch before them runs: each waits once, and in machine code the weights that it
/// loads ahead are asked for in front of the wait (`ACQBULK`).
#[test]
fn weights_are_asked_for_before_the_launch_in_front_has_ended() {
    let (ptxas, older) = (Ptxas::find(), Ptxas::find_older());
    let mut table =
        format!("{:<24} {:>9} {:>25} {:>8}\n", "kernel", "registers", "16-byte loads before wait", "behind");
    for (name, r) in rendered_for(&DECODER, &Capabilities::cuda_overlapping()) {
        assert_eq!(r.text.matches("griddepcontrol.wait;").count(), 1, "{name}");
        assert_eq!(r.text.matches("griddepcontrol.launch_dependents;").count(), 1, "{name}");
        assert!(r.text.contains("\n.version 7.8\n.target sm_90\n"), "{name}");
        let used = ptxas.assemble(&r.text, "sm_90");
        for later in ["sm_90a", "sm_100", "sm_120"] {
            ptxas.assemble(&r.text, later);
        }
        older.assemble(&r.text, "sm_90");
        if !r.text.contains("ld.relaxed") {
            continue;
        }
        let code = ptxas.disassemble(&r.text, "sm_90");
        let wait = code.iter().position(|l| l.contains("ACQBULK")).unwrap_or_else(|| panic!("{name}: no wait"));
        let wide = |l: &&String| l.contains("LDG.E") && l.contains(".128");
        let (before, all) = (code[..wait].iter().filter(wide).count(), code.iter().filter(wide).count());
        assert_eq!(before, r.text.matches("ld.relaxed.gpu.global.L1::no_allocate.v4").count(), "{name}");
        assert!(before >= 2 && code[..wait].iter().any(|l| l.contains("PREEXIT")), "{name}\n{}", code.join("\n"));
        let _ = writeln!(table, "{name:<24} {:>9} {before:>25} {:>8}", used.registers, all - before);
    }
    assert!(table.lines().count() > 5, "{table}");
    if ptxas.is_of_goldens() {
        insta::assert_snapshot!("loads_before_the_wait", table);
    }
}

#[test]
fn texts_are_as_before() {
    let shown = [
        "add_scaled",
        "rms_norm",
        "argmax",
        "gemv_bf16_plain",
        "gemv_q8_0_plain",
        "gemv_bf16_normed",
        "gemm_bf16_plain",
        "gemm_bf16_kept",
        "gemm_bf16_commuted",
        "gemm_q4_0_gated",
        "gemm_bf16_rotarykv",
        "gather_q8_0",
        "softmax",
        "attention_decode",
        "attention_prefill",
        "attention_parts",
        "chain_bf16",
    ];
    let all = rendered(&DECODER);
    for name in shown {
        let (_, r) = all.iter().find(|(n, _)| n == name).expect(name);
        insta::assert_snapshot!(name, r.text);
    }
    let overlapping = rendered_for(&DECODER, &Capabilities::cuda_overlapping());
    let (_, r) = overlapping.iter().find(|(n, _)| n == "gemv_bf16_plain").expect("gemv_bf16_plain");
    insta::assert_snapshot!("gemv_bf16_plain_overlapping", r.text);
}
