//! The `frit` command: what it prints and writes, and how it says that something is wrong. A fault is exit code 1, one
//! message that names the place, no panic, and no file half written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use frit::{Tensor, npz};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path)
}

fn frit(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_frit")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a run that succeeds.
fn succeeds(args: &[&str]) -> String {
    let done = frit(args);
    assert_eq!(done.status.code(), Some(0), "{args:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

/// The message of a run that is refused.
fn refused(args: &[&str]) -> String {
    let done = frit(args);
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{args:?}: {said}{}", text(&done.stdout));
    assert!(said.starts_with("error: ") && said.matches("error: ").count() == 1, "{args:?}: {said}");
    assert!(!said.contains("panicked") && done.stdout.is_empty(), "{args:?}: {said}{}", text(&done.stdout));
    said
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeeds(args)).unwrap()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

#[test]
fn generate_continues_a_prompt() {
    let lexicon = fixture("lexicon");
    let args = ["generate", path(&lexicon), "--prompt", "kiln (noun):", "--backend", "cpu"];
    let out = succeeds(&args);
    assert!(out.starts_with("kiln (noun): a unit of length equal to one thousandth of a meter\n"), "{out}");
    assert!(out.contains("backend  cpu") && out.contains("kernels  33 a token"), "{out}");
    let report = json(&[&args[..], &["--json", "--max-new-tokens", "3"]].concat());
    assert_eq!(report["rows"][0]["tokens"].as_array().unwrap().len(), 3);
    assert_eq!(report["backend"], "cpu");
    assert_eq!(report["stats"]["kernels_per_token"], 33);
}

/// A plan for one kind of device holds no other texts, and computes the same on the CPU.
#[test]
fn plans_for_one_kind_of_device() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("devset/gguf/llama_F16.gguf");
    let file = |name: &str| folder.path().join(name);
    let size = |name: &str, more: &[&str]| {
        let report = json(&[&["compile", path(&model), "-o", path(&file(name)), "--json"], more].concat());
        report["file_bytes"].as_u64().unwrap()
    };
    let (all, own) = (size("all.frit", &[]), size("own.frit", &["--for", "cuda"]));
    assert!(own < all, "{own} of {all}");
    let given = ids(folder.path());
    let run = |name: &str, more: &[&str]| {
        let out = file(name);
        let args = ["run", path(&model), "--inputs", path(&given), "--output", path(&out), "--backend", "cpu"];
        succeeds(&[&args[..], more].concat());
        npz::read(&out).unwrap()
    };
    let (want, got) = (run("all.npz", &[]), run("own.npz", &["--for", "cuda"]));
    assert!(!want.is_empty() && want.len() == got.len());
    for ((name, want), (_, got)) in want.iter().zip(&got) {
        for (w, g) in want.as_f32().unwrap().iter().zip(got.as_f32().unwrap()) {
            assert!((w - g).abs() <= 1e-4 * (1.0 + w.abs()), "{name}: {g} for {w}");
        }
    }
    let said =
        refused(&["run", path(&model), "--inputs", path(&given), "--json", "--for", "cuda", "--backend", "wgpu"]);
    assert!(said.contains("the plan holds no WGSL"), "{said}");
    let said = refused(&["generate", path(&file("own.frit")), "--prompt", "a", "--for", "gpu"]);
    assert!(said.contains("is compiled already"), "{said}");
    assert_eq!(frit(&["explain", path(&model), "--for", "tpu"]).status.code(), Some(2));
}

/// Drawing with one seed twice gives one text.
#[test]
fn a_seed_fixes_what_is_drawn() {
    let lexicon = fixture("lexicon");
    let draw = |seed: &str| {
        let args = ["generate", path(&lexicon), "--prompt", "kiln (noun):", "--backend", "cpu", "--json"];
        let how = ["--temperature", "1.5", "--seed", seed, "--max-new-tokens", "12", "--ignore-eos"];
        json(&[&args[..], &how[..]].concat())["rows"][0]["tokens"].clone()
    };
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn generate_takes_and_gives_token_ids() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, out) = (fixture("devset/gpt2"), folder.path().join("out.npz"));
    let golden = npz::read(&fixture("devset/gpt2/gen.npz")).unwrap();
    let find = |n: &str| golden.iter().find(|(name, _)| name == n).unwrap().1.clone();
    let ids = folder.path().join("ids.npz");
    npz::write(&ids, &[("input_ids", npz::Array::Tensor(&find("prompt_input_ids")))]).unwrap();
    let args = ["generate", path(&gpt2), "--inputs", path(&ids), "--output", path(&out)];
    succeeds(&[&args[..], &["--max-new-tokens", "16", "--backend", "cpu"]].concat());
    let made = npz::read(&out).unwrap();
    assert_eq!(made[0].0, "tokens");
    assert_eq!(made[0].1.as_i32(), find("tokens").as_i32());
}

#[test]
fn an_artifact_serves_in_place_of_its_model() {
    let folder = tempfile::tempdir().unwrap();
    let (bert, file) = (fixture("devset/bert"), folder.path().join("bert.frit"));
    let said = json(&["compile", path(&bert), "-o", path(&file), "--json"]);
    assert_eq!(said["file_bytes"].as_u64().unwrap(), std::fs::metadata(&file).unwrap().len());
    let outputs = [&bert, &file].map(|model| {
        let out = folder.path().join("out.npz");
        let inputs = fixture("devset/bert/case0_in.npz");
        let args = ["run", path(model), "--inputs", path(&inputs), "--output", path(&out), "--backend", "cpu"];
        assert_eq!(succeeds(&args), "");
        npz::read(&out).unwrap()
    });
    assert_eq!(outputs[0], outputs[1]);
    let want = npz::read(&fixture("devset/bert/case0_out.npz")).unwrap();
    let names = |v: &[(String, Tensor)]| v.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect::<Vec<_>>();
    assert_eq!(names(&outputs[0]), names(&want));
    for verb in ["explain", "inspect"] {
        assert_eq!(succeeds(&[verb, path(&file), "--json"]), succeeds(&[verb, path(&bert), "--json"]), "{verb}");
    }
}

#[test]
fn explain_says_what_was_fused_and_what_was_not() {
    let gpt2 = fixture("devset/gpt2");
    let out = succeeds(&["explain", path(&gpt2)]);
    for part in ["\nfused\n", "\nnot fused\n", "\nledger ", "attention blocks fused: 2 of 2", "to allow it: "] {
        assert!(out.contains(part), "{part:?} is missing from\n{out}");
    }
    let report = json(&["explain", path(&gpt2), "--json"]);
    let decode = report["phases"].as_array().unwrap().iter().find(|p| p["program"] == "decode").unwrap();
    assert_eq!(report["dispatches"]["decode"], decode["dispatches"]);
    assert_eq!(decode["dispatches"].as_u64().unwrap() as usize, decode["regions"].as_array().unwrap().len());
    let said = refused(&["explain", path(&gpt2), "--phase", "training"]);
    assert!(said.contains("training") && said.contains("prefill"), "{said}");
}

#[test]
fn inspect_lists_kernels_and_prints_one() {
    let gpt2 = fixture("devset/gpt2");
    let report = json(&["inspect", path(&gpt2), "--json"]);
    let kernels = report["kernels"].as_array().unwrap();
    let name = kernels[0]["name"].as_str().unwrap();
    for tier in ["cpu", "gpu"] {
        let wgsl = succeeds(&["inspect", path(&gpt2), "--kernel", name, "--tier", tier]);
        assert!(wgsl.contains("@compute") && wgsl.contains("fn main"), "{wgsl}");
    }
    let ptx = succeeds(&["inspect", path(&gpt2), "--kernel", name, "--emit", "ptx"]);
    assert!(ptx.contains(".visible .entry main") && ptx.contains(".target sm_80"), "{ptx}");
    let spec: Value = json(&["inspect", path(&gpt2), "--kernel", name, "--emit", "spec"]);
    assert_eq!(
        spec["name"],
        kernels[0]["name"].as_str().unwrap().trim_end_matches(|c: char| c.is_ascii_digit() || c == '_')
    );
    let said = refused(&["inspect", path(&gpt2), "--kernel", "no_such_kernel"]);
    assert!(said.contains("no_such_kernel") && said.contains(name), "{said}");
}

/// Every workload on a small model or a layer of a published shape; the random weights are written once.
#[test]
fn bench_times_every_workload() {
    let folder = tempfile::tempdir().unwrap();
    let gpt2 = fixture("devset/gpt2");
    let once = ["--rounds", "2", "--warmup", "0", "--backend", "cpu", "--json"];
    let bench = |args: &[&str]| json(&[&["bench"], args, &once].concat());
    for (args, parts) in [
        (&["decode", "--model", path(&gpt2), "--tokens", "5", "--new-tokens", "4"][..], "1 x 5 + 4 tokens"),
        (&["prefill", "--model", path(&gpt2), "--tokens", "9"], "1 x 9 tokens"),
        (&["gemm", "--tokens", "33"], "33 rows"),
        (&["stream", "--tokens", "64"], "1 rows"),
        (
            &["encoder", "--layers", "1", "--batch", "2", "--tokens", "5", "--weights", path(folder.path())],
            "2 x 5 tokens",
        ),
    ] {
        let report = bench(args);
        assert_eq!((&report["shape"], &report["backend"]), (&parts.into(), &"cpu".into()), "{args:?}");
        let of = |key: &str| report[key].as_f64().unwrap();
        assert!(0.0 < of("p10_ms") && of("p10_ms") <= of("median_ms") && of("median_ms") <= of("p90_ms"), "{report}");
    }
    let weights = folder.path().join("bert-base-1-1/model.safetensors");
    assert!(std::fs::metadata(weights).unwrap().len() > 50_000_000);
    let said = refused(&["bench", "decode", "--shape", "bert-base"]);
    assert!(said.contains("no decoder"), "{said}");
    assert!(refused(&["bench", "decode", "--shape", "gpt9"]).contains("smollm2-135m"));
}

/// Every hostile model of the fixtures: refused with a word its entry asks for.
#[test]
fn every_hostile_model_is_refused_in_one_message() {
    let manifest = std::fs::read_to_string(fixture("hostile/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.frit");
    let list = manifest["refused"].as_array().unwrap();
    assert!(list.len() > 100);
    for entry in list {
        let model = fixture("hostile").join(entry["path"].as_str().unwrap());
        let said = refused(&["compile", path(&model), "-o", path(&out)]);
        let mut words = entry["contains"].as_array().unwrap().iter().map(|w| w.as_str().unwrap());
        assert!(words.any(|w| said.contains(w)), "{}: none of {} in {said}", entry["path"], entry["contains"]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a refused model left a file");
    for entry in manifest["accepted"].as_array().unwrap() {
        let model = fixture("hostile").join(entry["path"].as_str().unwrap());
        succeeds(&["compile", path(&model), "-o", path(&out)]);
    }
}

#[test]
fn what_is_not_there_is_named_by_every_verb() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for missing in ["no/such/model", "no_such.gguf", "no_such.frit", "no_such.onnx"] {
        for args in [
            vec!["compile", missing, "-o", path(&out)],
            vec!["run", missing, "--output", path(&out)],
            vec!["generate", missing, "--prompt", "x"],
            vec!["explain", missing],
            vec!["inspect", missing],
        ] {
            let said = refused(&args);
            assert!(said.contains(missing), "{args:?}: {said}");
        }
    }
    assert!(!out.exists());
}

#[test]
fn damaged_artifacts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.frit");
    succeeds(&["compile", path(&fixture("devset/gpt2")), "-o", path(&file)]);
    let whole = std::fs::read(&file).unwrap();
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..len]).unwrap();
        assert!(refused(&["inspect", path(&file)]).contains("model.frit"));
    }
    let mut other = whole.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    std::fs::write(&file, &other).unwrap();
    let said = refused(&[
        "generate",
        path(&file),
        "--inputs",
        path(&ids(folder.path())),
        "--output",
        "unused.npz",
        "--backend",
        "cpu",
    ]);
    assert!(said.contains("hash"), "{said}");
}

fn ids(folder: &Path) -> PathBuf {
    let ids = folder.join("ids.npz");
    npz::write(&ids, &[("input_ids", npz::Array::I64(&[1, 3], &[1, 2, 3]))]).unwrap();
    ids
}

/// Everything wrong with the inputs is said at once, and an output that was there stays as it was.
#[test]
fn wrong_inputs_are_listed_together_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, out) = (folder.path().join("in.npz"), folder.path().join("out.npz"));
    std::fs::write(&out, b"as before").unwrap();
    let bert = fixture("devset/bert");
    let run = |extra: &[&str]| {
        let args = ["run", path(&bert), "--inputs", path(&inputs), "--output", path(&out), "--backend", "cpu"];
        let said = refused(&[&args[..], extra].concat());
        assert_eq!(std::fs::read(&out).unwrap(), b"as before");
        said
    };
    let (three, four) = (npz::Array::I64(&[1, 3], &[1, 2, 3]), npz::Array::I64(&[1, 4], &[1, 1, 1, 1]));
    npz::write(&inputs, &[("token_ids", three), ("attention_mask", four)]).unwrap();
    let said = run(&[]);
    assert!(said.contains("`token_ids` is no input") && said.contains("`input_ids` is missing"), "{said}");
    npz::write(&inputs, &[("input_ids", three), ("attention_mask", four)]).unwrap();
    let said = run(&[]);
    assert!(said.contains('3') && said.contains('4') && said.contains("attention_mask"), "{said}");
    npz::write(&inputs, &[("input_ids", npz::Array::I64(&[1, 3], &[1, 2, 100_000]))]).unwrap();
    let said = run(&[]);
    assert!(said.contains("100000") && said.contains("input_ids"), "{said}");
    npz::write(&inputs, &[("input_ids", npz::Array::I64(&[1, 3], &[1, 2, i64::MAX]))]).unwrap();
    assert!(run(&[]).contains("input_ids"));
    std::fs::write(&inputs, b"no npz").unwrap();
    assert!(run(&[]).contains("in.npz"));
    std::fs::remove_file(&inputs).unwrap();
    assert!(run(&[]).contains("in.npz"));
    assert!(run(&["--json"]).contains("in.npz"));
}

#[test]
fn an_output_in_no_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("no/folder/out");
    let gpt2 = fixture("devset/gpt2");
    assert!(refused(&["compile", path(&gpt2), "-o", path(&nowhere)]).contains("out"));
    let ids = ids(folder.path());
    let said = refused(&["run", path(&gpt2), "--inputs", path(&ids), "--output", path(&nowhere), "--backend", "cpu"]);
    assert!(said.contains("out"), "{said}");
    assert!(!folder.path().join("no").exists());
}

#[test]
fn what_a_model_cannot_do_is_said() {
    let (bert, gpt2) = (fixture("devset/bert"), fixture("devset/gpt2"));
    let said = refused(&["generate", path(&gpt2), "--prompt", "x"]);
    assert!(said.contains("tokenizer") && said.contains("--inputs"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let (ids, out) = (ids(folder.path()), folder.path().join("out.npz"));
    let said = refused(&["generate", path(&bert), "--inputs", path(&ids), "--output", path(&out)]);
    assert!(said.contains("does not generate"), "{said}");
    let said = refused(&["generate", path(&fixture("lexicon"))]);
    assert!(said.contains("--prompt"), "{said}");
    assert!(!out.exists());
}

#[test]
fn explain_draws_a_page_and_answers_for_an_edge() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, page) = (fixture("devset/gpt2"), folder.path().join("report.html"));
    succeeds(&["explain", path(&gpt2), "--html", path(&page)]);
    let text = std::fs::read_to_string(&page).unwrap();
    for part in ["<title>", "decode_wide", "class=\"attention\"", "layer_norm", "@compute", "L7-ROWTILE"] {
        assert!(text.contains(part), "{part}");
    }
    let inside = succeeds(&["explain", path(&gpt2), "--edge", "layer_norm:gelu_tanh", "--phase", "forward"]);
    assert!(inside.starts_with("fused") && inside.contains("h.0.ln_2"), "{inside}");
    let apart = succeeds(&["explain", path(&gpt2), "--edge", "kv_append:attention", "--phase", "forward"]);
    assert!(apart.contains("L14-GRID") && apart.contains("to allow it"), "{apart}");
    let said = refused(&["explain", path(&gpt2), "--edge", "gelu:unheard_of"]);
    assert!(said.contains("has no edge"), "{said}");
    let memory = &json(&["explain", path(&gpt2), "--json"])["memory"];
    let bytes = |k: &str| memory[k].as_u64().unwrap();
    assert!(bytes("arena_bytes") > 0 && bytes("arena_bytes") < bytes("value_bytes"), "{memory}");
    assert!(succeeds(&["explain", path(&gpt2), "--lint"]).contains("every recogniser"));
}

/// Outputs against goldens, rows of padding left out.
#[test]
fn run_compares_with_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let (bert, [given, want]) =
        (fixture("devset/bert"), ["in", "out"].map(|k| fixture(&format!("devset/bert/case1_{k}.npz"))));
    let args = ["run", path(&bert), "--inputs", path(&given), "--backend", "cpu", "--expect"];
    let report = json(&[&args[..], &[path(&want), "--json"]].concat());
    let compared = report["compared"].as_array().unwrap();
    assert!(!compared.is_empty());
    for c in compared {
        let (off, largest) = (c["max_difference"].as_f64().unwrap(), c["magnitude"].as_f64().unwrap());
        assert!(off > 0.0 && off <= 1e-5 * largest, "{c}");
    }
    assert!(succeeds(&[&args[..], &[path(&want)]].concat()).contains("off, the largest is"));
    let done = frit(&[&args[..], &[path(&want), "--tolerance", "1e-9"]].concat());
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("not what is expected within 1e-9"), "{}", text(&done.stderr));
    let wrong = folder.path().join("wrong.npz");
    let t = Tensor::f32(&[1, 2], vec![0.0; 2]).unwrap();
    let (name, other) = (compared[0]["name"].as_str().unwrap(), npz::Array::Tensor(&t));
    npz::write(&wrong, &[(name, other), ("unheard_of", npz::Array::Tensor(&t))]).unwrap();
    let said = refused(&[&args[..], &[path(&wrong)]].concat());
    assert!(said.contains("[1, 2] expected") && said.contains("there is no output `unheard_of`"), "{said}");
}

/// Each kind of fusion that changes the plan is measured; what a file calls slower is left out, and says so.
#[test]
fn tuning_measures_fusions_and_leaves_out_what_is_slower() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, file) = (fixture("devset/gpt2"), folder.path().join("tuning.json"));
    let args = ["tune", path(&gpt2), "-o", path(&file), "--backend", "cpu", "--rounds", "1", "--json"];
    let mut tuning = json(&args);
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(tuning, written);
    assert_eq!(tuning["program"], "decode");
    let tried = tuning["tried"].as_array_mut().unwrap();
    let ids: Vec<&str> = tried.iter().map(|t| t["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&"epilogue") && ids.contains(&"norm") && !ids.contains(&"conv-chain"), "{ids:?}");
    for t in tried {
        assert!(t["with_us"].as_f64().unwrap() > 0.0 && t["without_us"].as_f64().unwrap() > 0.0, "{t}");
        t["slower_permille"] = 123.into();
        t["overruled"] = (t["id"] == "epilogue").into();
    }
    std::fs::write(&file, tuning.to_string()).unwrap();
    let report = json(&["explain", path(&gpt2), "--json", "--tuning", path(&file)]);
    let all = report["refused"].as_array().unwrap();
    let refused: Vec<&Value> = all.iter().filter(|r| r["code"] == "N-MEASURED").collect();
    assert!(!refused.is_empty() && refused.iter().all(|r| r["detail"].as_str().unwrap().contains("12.3 % longer")));
    assert!(!all.iter().any(|r| r["code"] == "L20-USER"), "{all:?}");
    let done = frit(&["explain", path(&gpt2), "--json", "--tuning", path(&file)]);
    let said = text(&done.stderr);
    assert!(said.contains("leaves out epilogue, slower on cpu") && !said.contains("warning"), "{said}");
    let lexicon = fixture("lexicon");
    let said = self::refused(&["explain", path(&lexicon), "--tuning", path(&file)]);
    assert!(said.contains("the model `gpt2`, not on `lexicon`"), "{said}");
    tuning["device"] = "cpu (another)".into();
    std::fs::write(&file, tuning.to_string()).unwrap();
    let done = frit(&["explain", path(&gpt2), "--json", "--tuning", path(&file)]);
    assert!(text(&done.stderr).contains("was measured on cpu (another); here is cpu ("), "{}", text(&done.stderr));
    std::fs::write(&file, "{}").unwrap();
    let said = self::refused(&["compile", path(&gpt2), "-o", "x.frit", "--tuning", path(&file)]);
    assert!(said.contains("is no tuning file") && said.contains("frit tune"), "{said}");
}

#[test]
fn explain_measures_for_people_and_for_scripts() {
    let gpt2 = fixture("devset/gpt2");
    let args = ["explain", path(&gpt2), "--measure", "--backend", "cpu"];
    let shown = succeeds(&args);
    assert!(shown.contains("us measured") && shown.contains("no prediction for cpu"), "{shown}");
    let report = json(&[&args[..], &["--json"]].concat());
    let (measured, regions) = (&report["measured"], report["regions"].as_array().unwrap());
    let kernels = measured["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), regions.len());
    let sum: f64 = kernels.iter().map(|k| k["measured_us"].as_f64().unwrap()).sum();
    assert!((sum - measured["measured_us"].as_f64().unwrap()).abs() <= 1e-6 * sum && sum > 0.0, "{measured}");
}

#[test]
fn memory_is_held_to_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (lexicon, file) = (fixture("lexicon"), folder.path().join("x.frit"));
    let args = ["compile", path(&lexicon), "-o", path(&file), "--peak-at", "B=1,S=32,T=64", "--peak-budget"];
    let said = refused(&[&args[..], &["9KiB"]].concat());
    assert!(said.contains("the budget is 9216") && said.contains("S = 32") && !file.exists(), "{said}");
    succeeds(&[&args[..], &["64MiB"]].concat());
    assert!(file.exists());
    let done = frit(&[&args[..], &["64MiB"]].concat());
    assert!(text(&done.stderr).contains("the budget is kept with every fusion"), "{}", text(&done.stderr));
    let gpt2 = fixture("devset/gpt2");
    let done = frit(&["compile", path(&gpt2), "-o", path(&file), "--peak-budget", "1952"]);
    let said = text(&done.stderr);
    assert!(said.starts_with("N-PEAK  ") && said.contains("the budget is 1952"), "{said}");
    for (at, part) in [("Q=1", "there is no size Q"), ("B", "gives no size a number")] {
        let said = refused(&["compile", path(&lexicon), "-o", path(&file), "--peak-budget", "1MiB", "--peak-at", at]);
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_switch_shows_in_the_difference_of_two_plans() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, with, without) =
        (fixture("devset/gpt2"), folder.path().join("with.frit"), folder.path().join("without.frit"));
    succeeds(&["compile", path(&gpt2), "-o", path(&with)]);
    succeeds(&["compile", path(&gpt2), "-o", path(&without), "--no-fuse", "norm"]);
    let difference = json(&["diff", path(&with), path(&without), "--json"]);
    let decode = difference["programs"].as_array().unwrap().iter().find(|p| p["program"] == "decode").unwrap();
    let launches: Vec<u64> = decode["dispatches"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
    assert_eq!(launches[1] - launches[0], 5, "two norms a layer and the last one: {decode}");
    assert_eq!(decode["regions"]["row layer_norm"], 5, "{decode}");
    assert_eq!(decode["refused"]["L20-USER"], 5, "{decode}");
    let same = json(&["diff", path(&with), path(&with), "--json"]);
    assert!(same["programs"].as_array().unwrap().iter().all(|p| p["regions"].as_object().unwrap().is_empty()));
    assert!(refused(&["compile", path(&gpt2), "-o", path(&with), "--no-fuse", "nope"]).contains("siblings"));
    assert!(refused(&["compile", path(&gpt2), "-o", path(&with), "--skip-pass", "nope"]).contains("canonicalize"));
    assert!(refused(&["explain", path(&with), "--no-fuse", "norm"]).contains("compiled already"));
}

#[cfg(unix)]
#[test]
fn bisection_names_the_fusion_or_rewrite_that_a_command_objects_to() {
    let gpt2 = fixture("devset/gpt2");
    let frit = env!("CARGO_BIN_EXE_frit");
    let command = format!("! {frit} explain {{}} --phase forward --all | grep -q 'layer_norm · matmul'");
    let said = succeeds(&["compile", path(&gpt2), "--bisect", &command]);
    assert!(said.contains("the fusion `norm`"), "{said}");
    let command = format!("! {frit} explain {{}} --json | grep -q '\"fused\": [1-9]'");
    let said = succeeds(&["compile", path(&fixture("onnx/bert.onnx")), "--bisect", &command]);
    assert!(said.contains("an application of `attention`"), "{said}");
    assert!(succeeds(&["compile", path(&gpt2), "--bisect", "true"]).contains("nothing to search for"));
    assert!(refused(&["compile", path(&gpt2), "--bisect", "false"]).contains("without any rewrite"));
}

#[test]
fn verify_proves_every_kernel_of_every_target() {
    let report = json(&["verify", path(&fixture("devset/qwen2")), "--tokens", "5", "--json"]);
    assert_eq!(report["passed"], true, "{report}");
    let tiers = report["tiers"].as_array().unwrap();
    assert_eq!(
        tiers.iter().map(|t| t["tier"].as_str().unwrap()).collect::<Vec<_>>(),
        ["cpu", "gpu", "cuda", "cuda"],
        "PTX for every card, then for sm_90"
    );
    for t in tiers {
        assert_eq!((&t["not_launched"], &t["same_tokens"]), (&Value::Array(vec![]), &Value::Bool(true)), "{t}");
        assert!(t["proved"].as_array().unwrap().iter().any(|p| p.as_str().unwrap().contains("nothing wrote")), "{t}");
        let kernels = t["kernels"].as_array().unwrap();
        assert!(kernels.iter().all(|k| k["launches"].as_u64() > Some(0) && k["instructions"].as_u64() > Some(0)));
    }
}

/// A program counts with the cache that it reads, whatever runs it is for, and no size goes beyond its bounds.
#[test]
fn explain_counts_at_sizes_that_the_program_takes() {
    let lexicon = fixture("lexicon");
    let head = |args: &[&str]| {
        let out = succeeds(&[&["explain", path(&lexicon)], args].concat());
        out.lines().next().unwrap().to_owned()
    };
    assert!(head(&[]).ends_with("at B = 1, S = 1, P = 64, T = 65"), "{}", head(&[]));
    let parts = head(&["--phase", "decode+parts", "--past", "200"]);
    assert!(parts.ends_with("S = 1, P = 200, T = 201"), "{parts}");
    let prefill = head(&["--phase", "prefill", "--tokens", "9"]);
    assert!(prefill.ends_with("S = 9, P = 0, T = 9"), "{prefill}");
    for (args, parts) in [
        (["--batch", "0"], ["size B of decode", "at least 1"]),
        (["--batch", "9"], ["size B of decode", "more than 4"]),
        (["--past", "9999"], ["size T of decode", "more than 256"]),
    ] {
        let said = refused(&[&["explain", path(&lexicon)], &args[..]].concat());
        assert!(parts.iter().all(|p| said.contains(p)), "{said}");
    }
}

/// What draws tokens is checked before anything is printed, and what would change nothing is refused.
#[test]
fn sampling_options_are_checked_whether_they_are_used_or_not() {
    let lexicon = fixture("lexicon");
    let args = ["generate", path(&lexicon), "--prompt", "kiln", "--backend", "cpu"];
    for (how, part) in [
        (&["--temperature", "nan"][..], "temperature"),
        (&["--temperature", "-1"], "temperature: -1"),
        (&["--top-p", "nan"], "top-p"),
        (&["--top-p", "-0.5"], "top-p: -0.5"),
        (&["--temperature", "1", "--top-k", "0"], "top-k"),
        (&["--top-k", "5"], "--temperature 0.8"),
        (&["--top-p", "0.5"], "--temperature 0.8"),
        (&["--seed", "5"], "--temperature 0.8"),
    ] {
        let said = refused(&[&args[..], how].concat());
        assert!(said.contains(part), "{how:?}: {said}");
    }
}

/// A file that is no lock is neither compared nor written over.
#[test]
fn only_a_lock_is_taken_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, lock) = (fixture("devset/gpt2"), folder.path().join("gpt2.lock"));
    let args = ["explain", path(&gpt2), "--lock", path(&lock)];
    succeeds(&args);
    assert!(succeeds(&args).ends_with("holds\n"));
    succeeds(&[&args[..], &["--update"]].concat());
    std::fs::write(&lock, "a letter\n").unwrap();
    for extra in [&[][..], &["--update"]] {
        let said = refused(&[&args[..], extra].concat());
        assert!(said.contains("is no lock of fusions"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), "a letter\n");
    std::fs::write(&lock, "").unwrap();
    succeeds(&[&args[..], &["--update"]].concat());
    assert!(std::fs::read_to_string(&lock).unwrap().starts_with("fusion.lock 1 "));
}

/// What is asked for as JSON is one JSON value.
#[test]
fn json_is_one_value_whatever_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, lexicon, lock) = (fixture("devset/gpt2"), fixture("lexicon"), folder.path().join("gpt2.lock"));
    let out = folder.path().join("out.npz");
    let ran = json(&[
        "run",
        path(&lexicon),
        "--text",
        "a kiln",
        "--output",
        path(&out),
        "--backend",
        "cpu",
        "--stats",
        "json",
        "--json",
    ]);
    assert!(ran["stats"]["layers"].as_u64() == Some(6) && ran["outputs"].is_object(), "{ran}");
    let ids = json(&["explain", "--ids", "--json"]);
    assert!(ids["ids"].as_array().unwrap().iter().any(|i| i["id"] == "epilogue" && i["kind"] == "fusion"), "{ids}");
    let codes = json(&["explain", "--all-codes", "--json"]);
    assert!(codes["codes"].as_array().unwrap().iter().all(|c| c["remedy"].is_string()), "{codes}");
    let locked = |written: bool| {
        let said = json(&["explain", path(&gpt2), "--lock", path(&lock), "--json"]);
        assert_eq!(said["written"], written, "{said}");
    };
    locked(true);
    locked(false);
    let edge = json(&["explain", path(&gpt2), "--edge", "kv_append:attention", "--phase", "forward", "--json"]);
    assert!(edge["fused"].as_array().unwrap().is_empty(), "{edge}");
    assert!(edge["refused"].as_array().unwrap().iter().all(|e| e["to"].as_str().unwrap().contains("attention")));
    let name = json(&["inspect", path(&gpt2), "--json"])["kernels"][0]["name"].as_str().unwrap().to_owned();
    let kernel = json(&["inspect", path(&gpt2), "--kernel", &name, "--json"]);
    assert!(kernel["text"].as_str().unwrap().contains("@compute") && kernel["emit"] == "wgsl", "{kernel}");
    for args in [
        &["explain", path(&gpt2), "--html", "page.html", "--json"][..],
        &["compile", path(&gpt2), "--bisect", "true", "--json"],
    ] {
        let done = frit(args);
        assert_eq!(done.status.code(), Some(2), "{args:?}");
        assert!(text(&done.stderr).contains("cannot be used with"), "{}", text(&done.stderr));
    }
}

#[test]
fn lint_and_switches_say_what_they_stopped_and_what_they_did_not_find() {
    let gpt2 = fixture("devset/gpt2");
    let onnx = fixture("onnx/gpt2.onnx");
    let said = succeeds(&["explain", path(&onnx), "--lint", "--disable", "attention"]);
    assert!(said.contains("attention is stopped by --disable"), "{said}");
    let report = json(&["explain", path(&onnx), "--lint", "--disable", "attention", "--json"]);
    assert!(report["stopped"].as_array().unwrap().iter().any(|s| s["rule"] == "attention"), "{report}");
    let warned = |args: &[&str]| {
        let done = frit(&[&["explain", path(&gpt2)], args].concat());
        assert_eq!(done.status.code(), Some(0));
        text(&done.stderr)
    };
    assert!(warned(&["--disable", "@nosuch"]).starts_with("warning: --disable @nosuch: no operation"));
    assert!(warned(&["--fuse-conv-chain", "2"]).starts_with("warning: --fuse-conv-chain 2: no two convolutions"));
    assert_eq!(warned(&["--disable", "@h.0.mlp"]), "");
}

#[test]
fn bench_refuses_what_no_memory_holds() {
    let said = refused(&["bench", "gemm", "--tokens", "999999999", "--backend", "cpu"]);
    assert!(said.contains("exceeds the limit of 4294967296"), "{said}");
    assert_eq!(frit(&["bench", "gemm", "--rounds", "0"]).status.code(), Some(2));
    assert!(succeeds(&["bench", "--help"]).contains("[default: smollm2-135m"));
}

/// Programs without decisions run all the layers that were compiled.
#[test]
fn statistics_count_what_runs_without_decisions() {
    let folder = tempfile::tempdir().unwrap();
    let (lexicon, ids) = (fixture("lexicon"), ids(folder.path()));
    for (how, layers) in [(&[][..], 6), (&["--exit-layer", "4"], 4), (&["--skip-layers", "1"], 5)] {
        let args = ["run", path(&lexicon), "--inputs", path(&ids), "--stats", "json", "--backend", "cpu"];
        let stats = json(&[&args[..], how].concat());
        assert_eq!((stats["tokens"].as_u64(), stats["layers_run"].as_u64()), (Some(3), Some(3 * layers)), "{stats}");
    }
    let args = ["generate", path(&lexicon), "--prompt", "kiln", "--max-new-tokens", "4", "--ignore-eos", "--json"];
    let depth = &json(&[&args[..], &["--backend", "cpu"]].concat())["stats"]["depth"];
    assert_eq!((depth["tokens"].as_u64(), depth["layers_run"].as_u64()), (Some(4), Some(24)), "{depth}");
}

/// An export of at most 64 tokens writes as many as there is room for.
#[test]
fn generation_without_a_cache_ends_where_the_export_does() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, out) = (fixture("onnx/gpt2.onnx"), folder.path().join("out.npz"));
    let args = ["generate", path(&gpt2), "--backend", "cpu", "--json", "--output", path(&out), "--inputs"];
    let report = json(&[&args[..], &[path(&ids(folder.path()))]].concat());
    assert_eq!(report["rows"][0]["finish"], "context_full", "{report}");
    assert_eq!(report["rows"][0]["tokens"].as_array().unwrap().len(), 62);
    assert!(out.exists());
    let long = folder.path().join("long.npz");
    npz::write(&long, &[("input_ids", npz::Array::I64(&[1, 65], &[1; 65]))]).unwrap();
    assert!(refused(&[&args[..], &[path(&long)]].concat()).contains("65 exceeds the limit of 64"));
}

#[test]
fn what_is_missing_or_of_another_type_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, floats, out) = (fixture("devset/gpt2"), folder.path().join("floats.npz"), folder.path().join("out.npz"));
    let t = Tensor::f32(&[1, 2], vec![1.0, 2.0]).unwrap();
    npz::write(&floats, &[("input_ids", npz::Array::Tensor(&t))]).unwrap();
    let said = refused(&["generate", path(&gpt2), "--inputs", path(&floats), "--output", path(&out)]);
    assert!(said.contains("floats.npz") && said.contains("f32 of shape [1, 2]"), "{said}");
    let said = refused(&["run", path(&gpt2), "--output", path(&out)]);
    assert!(said.contains("--inputs FILE or --text TEXT"), "{said}");
    let said = refused(&["generate", path(&fixture("devset/bert")), "--prompt", "x"]);
    assert!(said.contains("does not generate"), "{said}");
    let nowhere = folder.path().join("no/out.frit");
    let said = refused(&["compile", path(&gpt2), "-o", path(&nowhere)]);
    assert!(said.contains("no/out.frit") && said.contains("there is no folder") && !said.contains(".frit-"), "{said}");
}

#[test]
fn inputs_and_outputs_are_listed_and_written_ones_told() {
    let folder = tempfile::tempdir().unwrap();
    let (bert, out) = (fixture("devset/bert"), folder.path().join("out.npz"));
    let report = json(&["inspect", path(&bert), "--json"]);
    let program = &report["programs"][0];
    let input = program["inputs"].as_array().unwrap().iter().find(|p| p["name"] == "input_ids").unwrap();
    assert_eq!((&input["dtype"], &input["shape"]), (&"i32".into(), &serde_json::json!(["B", "S"])));
    let shown = succeeds(&["inspect", path(&bert)]);
    assert!(shown.contains("in  input_ids") && shown.contains("out last_hidden_state"), "{shown}");
    let given = fixture("devset/bert/case0_in.npz");
    let done = frit(&["run", path(&bert), "--inputs", path(&given), "--output", path(&out), "--backend", "cpu"]);
    let said = text(&done.stderr);
    assert!(said.starts_with("last_hidden_state [") && said.contains("out.npz"), "{said}");
}

#[test]
fn equal_plans_are_said_to_be_equal() {
    let folder = tempfile::tempdir().unwrap();
    let (gpt2, without) = (fixture("devset/gpt2"), folder.path().join("without.frit"));
    succeeds(&["compile", path(&gpt2), "-o", path(&without), "--disable", "norm"]);
    let same = succeeds(&["diff", path(&gpt2), path(&gpt2), "--exit-code"]);
    assert!(same.starts_with("the plans are the same") && same.lines().count() == 1, "{same}");
    let args = ["diff", path(&gpt2), path(&without)];
    assert!(succeeds(&args).starts_with("weights "));
    let done = frit(&[&args[..], &["--exit-code"]].concat());
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(1), String::new()));
}

#[cfg(unix)]
#[test]
fn bisection_keeps_the_switches_and_names_an_absorption() {
    let gpt2 = fixture("devset/gpt2");
    let frit = env!("CARGO_BIN_EXE_frit");
    let command = format!("! {frit} explain {{}} --phase forward --all | grep -q 'layer_norm · matmul'");
    let args = ["compile", path(&gpt2), "--bisect"];
    let said = succeeds(&[&args[..], &[&command, "--disable", "norm"]].concat());
    assert!(said.contains("nothing to search for"), "{said}");
    let command = format!(
        "n=$({frit} inspect {{}} | sed -n 's/^program  forward  *\\([0-9]*\\) launches/\\1/p'); test \"$n\" -ge LAUNCHES"
    );
    let at = |what: &[&str]| {
        let out = json(&[&["explain", path(&gpt2), "--phase", "forward", "--json"], what].concat());
        let phases = out["phases"].as_array().unwrap().clone();
        phases.iter().find(|p| p["program"] == "forward").unwrap()["dispatches"].as_u64().unwrap()
    };
    let least = at(&["--loop", "unroll", "--fusion-fuel", "4"]);
    let said = succeeds(&[&args[..], &[&command.replace("LAUNCHES", &least.to_string())]].concat());
    assert!(said.contains("absorption 5 makes the command fail; --fusion-fuel 4"), "{said}");
    assert!(said.contains("  forward: ") && said.contains(" -> "), "{said}");
}
