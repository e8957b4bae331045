//! `frit explain`: the page with the graph before and after, times, every condition of an edge, and switches by place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path).to_str().unwrap().into()
}

fn frit(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_frit")).args(args).output().unwrap()
}

fn succeeds(args: &[&str]) -> String {
    let done = frit(args);
    assert_eq!(done.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn said(args: &[&str]) -> (Option<i32>, String) {
    let done = frit(args);
    (done.status.code(), String::from_utf8(done.stderr).unwrap())
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeeds(args)).unwrap()
}

#[test]
fn the_page_shows_the_graph_before_and_after_and_each_kernel_once() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let lexicon = fixture("lexicon");
    succeeds(&["explain", &lexicon, "--html", page.to_str().unwrap()]);
    let text = std::fs::read_to_string(&page).unwrap();
    let count = |part: &str| text.matches(part).count();
    for part in ["class=\"before\"", "class=\"after\"", "class=\"edge no\"", "layers.1 … ", " × ", "predicted cpu "]
    {
        assert!(text.contains(part), "{part}");
    }
    let kernels = count("<details class=\"kernel\"");
    assert!(kernels > 10);
    assert_eq!(count("@compute"), kernels);
    for i in 0..kernels {
        assert_eq!(count(&format!("id=\"k{i}\"")), 1);
        assert!(count(&format!("href=\"#k{i}\"")) > 0, "{i}");
    }
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!text.contains(outside), "{outside}");
    }
}

#[test]
fn predicted_times_stand_beside_measured_ones() {
    let gpt2 = fixture("devset/gpt2");
    let report = json(&["explain", &gpt2, "--json"]);
    let phases = report["phases"].as_array().unwrap();
    for p in phases {
        for tier in ["cpu", "gpu", "cuda"] {
            let of = |v: &Value| v["predicted_us"][tier].as_f64().unwrap();
            let sum: f64 = p["regions"].as_array().unwrap().iter().map(of).sum();
            assert!(sum > 0.0 && (sum - of(p)).abs() < 1e-6 * sum, "{} {tier}", p["program"]);
        }
    }
    assert!(report["regions"][0]["predicted_us"]["gpu"].as_f64().unwrap() > 0.0);
    assert!(report["regions"][0].get("measured_us").is_none());
    let text = succeeds(&["explain", &gpt2]);
    assert!(text.contains("      predicted cpu ") && text.contains("time     predicted cpu "), "{text}");

    let measured = json(&["explain", &gpt2, "--measure", "--backend", "cpu", "--json"]);
    let sum: f64 = measured["regions"].as_array().unwrap().iter().map(|r| r["measured_us"].as_f64().unwrap()).sum();
    let decode = measured["phases"].as_array().unwrap().iter().find(|p| p["program"] == "decode").unwrap();
    let whole = decode["measured_us"].as_f64().unwrap();
    assert!(sum > 0.0 && (sum - whole).abs() < 1e-6 * sum);
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    succeeds(&["explain", &gpt2, "--measure", "--html", page.to_str().unwrap()]);
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("; measured ") && page.contains(" us on cpu ("));
}

#[test]
fn an_edge_answers_every_condition_of_a_model() {
    let gpt2 = fixture("devset/gpt2");
    let args = ["explain", &gpt2, "--edge", "kv_append:attention", "--phase", "forward"];
    for args in [&args[..], &[&args[..], &["--all-codes"]].concat()] {
        let out = succeeds(args);
        for part in ["L1-CYCLE       holds", "L14-GRID       fails", "L17-EFFECT     fails", "V-MISMATCH     not asked"]
        {
            assert!(out.contains(part), "{part}\n{out}");
        }
    }
    let report = json(&[&args[..], &["--json"]].concat());
    let conditions = report["refused"][0]["conditions"].as_array().unwrap();
    assert!(conditions.len() > 20 && conditions.iter().all(|c| c["detail"].as_str().is_some_and(|d| !d.is_empty())));

    let folder = tempfile::tempdir().unwrap();
    let artifact = folder.path().join("gpt2.frit");
    let artifact = artifact.to_str().unwrap();
    succeeds(&["compile", &gpt2, "-o", artifact]);
    let out = succeeds(&["explain", artifact, "--edge", "kv_append:attention", "--phase", "forward"]);
    assert!(out.contains("L14-GRID") && out.contains("answered for a model, not for an artifact"), "{out}");
}

#[test]
fn switches_by_place_are_checked() {
    let lexicon = fixture("lexicon");
    let kernels = |switch: &[&str]| {
        let report = json(&[&["explain", &lexicon, "--json"], switch].concat());
        report["dispatches"]["decode"].as_u64().unwrap()
    };
    let all = kernels(&[]);
    let one = kernels(&["--disable", "epilogue@layers.3.mlp"]);
    let more = kernels(&["--disable", "epilogue@layers."]);
    assert!(all < one && one < more, "{all} {one} {more}");
    let report = json(&["explain", &lexicon, "--json", "--no-fuse", "layers.3.mlp.gate_proj:silu"]);
    let off =
        |e: &&Value| e["code"] == "L20-USER" && e["from"].as_str().is_some_and(|f| f.contains("layers.3.mlp.gate"));
    assert!(report["refused"].as_array().unwrap().iter().any(|e| off(&e)), "{}", report["refused"]);
    let (code, text) = said(&["explain", &lexicon, "--disable", "epilog@layers.3"]);
    assert!(code == Some(1) && text.contains("did you mean `epilogue`?"), "{text}");
    let (code, text) = said(&["explain", &lexicon, "--disable", "matmul:"]);
    assert!(code == Some(1) && text.contains("`matmul:` names no place") && text.contains("FROM:TO"), "{text}");
    for switch in ["epilogue@layers.33", "matmul:nowhere"] {
        let (code, text) = said(&["explain", &lexicon, "--disable", switch]);
        assert!(code == Some(0) && text.contains("warning: --disable"), "{switch}: {text}");
    }
}
