//! The examples run: just in time, and ahead of time with an artifact that `frit compile` made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The example's executable, which `cargo test` builds beside this test.
fn example(name: &str) -> Command {
    let here = std::env::current_exe().unwrap();
    let built: PathBuf = here.parent().unwrap().parent().unwrap().join("examples").join(name);
    let built = built.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(built.is_file(), "{} is not built; run `cargo build -p frit --examples`", built.display());
    Command::new(built)
}

fn output(mut c: Command) -> String {
    let done = c.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{c:?}: {said}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_host_builds_compiles_and_runs_a_graph() {
    let out = output(example("jit"));
    let lines: Vec<&str> = out.lines().collect();
    // For any number of rows, and for one.
    let kernels = ["rms_norm_matmul_silu", "matmul_add", "rms_norm_matmul_silu_2", "matmul_add_2"];
    assert_eq!(lines[..4], kernels, "{out}");
    assert!(lines.len() == 5 && lines[4].starts_with("y [3, 48] on "), "{out}");
}

#[test]
fn an_artifact_continues_a_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lexicon.frit");
    let mut compile = Command::new(env!("CARGO_BIN_EXE_frit"));
    compile.arg("compile").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/lexicon")).arg("-o").arg(&file);
    output(compile);
    let mut aot = example("aot");
    aot.arg(&file).arg("kiln (noun):");
    let out = output(aot);
    assert!(out.starts_with("kiln (noun): a unit of length equal to one thousandth of a meter"), "{out}");
}
