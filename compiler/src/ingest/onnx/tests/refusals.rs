//! Files that have to be refused, with a message that names the place.

use super::kit::*;
use crate::ingest::load_with;
use crate::ingest::onnx::proto::{StringStringEntryProto, TensorProto};
use prost::Message;

fn plain(nodes: Vec<crate::ingest::onnx::proto::NodeProto>) -> crate::ingest::onnx::proto::ModelProto {
    model(graph(vec![value("x", FLOAT, "n 4")], vec![], nodes, "y"))
}

#[track_caller]
fn mentions(text: &str, parts: &[&str]) {
    for p in parts {
        assert!(text.contains(p), "`{p}` is not in: {text}");
    }
}

/// Everything unsupported is told at once, with counts, whatever depends on what.
#[test]
fn all_gaps_are_listed_together() {
    let m = plain(vec![
        node("a = Frobnicate x", vec![]),
        node("b = Frobnicate a", vec![]),
        node("c = acme:Widget b", vec![]),
        node("d = Softmax c", vec![int("flavour", 3)]),
        node("y = LSTM d", vec![]),
    ]);
    mentions(&refusal(&m), &["Frobnicate (2 nodes, `a`, `b`)", "acme.Widget", "`flavour`", "LSTM", "4 things"]);
}

/// What optimisers write and this compiler has no form for: each by its name, all at once, loops with the reason.
#[test]
fn fused_operators_without_a_form_are_named() {
    let names = [
        "MoE",
        "QMoE",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "SkipGroupNorm",
        "NhwcConv",
        "LongformerAttention",
    ];
    let mut nodes = Vec::new();
    let mut from = "x".to_owned();
    for name in names {
        nodes.push(node(&format!("{name}_y = com.microsoft:{name} {from}"), vec![]));
        from = format!("{name}_y");
    }
    let body = graph(vec![], vec![], vec![node("q = Neg p", vec![])], "q");
    nodes.push(node(&format!("s = Scan {from}"), vec![graph_attribute("body", body), int("num_scan_inputs", 1)]));
    nodes.push(node("y = GRU s", vec![]));
    let text = refusal(&plain(nodes));
    for name in names {
        mentions(&text, &[&format!("com.microsoft.{name}")]);
    }
    mentions(&text, &["Scan", "GRU"]);
}

#[test]
fn cycles_and_dangling_names_are_told_apart() {
    let m = plain(vec![node("a = Add x b", vec![]), node("b = Neg a", vec![]), node("y = Neg b", vec![])]);
    mentions(&refusal(&m), &["cycle", "`a`", "`b`"]);
    let m = plain(vec![node("y = Add x ghost", vec![])]);
    mentions(&refusal(&m), &["`ghost`", "Add"]);
    mentions(&refusal(&plain(vec![node("z = Neg x", vec![])])), &["output `y`"]);
}

#[test]
fn conflicts_of_shape_and_type_name_the_node() {
    let m = plain(vec![node("c = Constant", vec![ints("value_ints", &[3, 5])]), node("y = Reshape x c", vec![])]);
    // n·4 = 15 has no solution.
    mentions(&refusal(&m), &["Reshape"]);
    let g = graph(
        vec![value("x", FLOAT, "2 4")],
        vec![floats("w", &[5, 3], &[0.; 15])],
        vec![node("y = MatMul x w", vec![])],
        "y",
    );
    mentions(&refusal(&model(g)), &["MatMul", "4", "5"]);
    let g =
        graph(vec![value("x", FLOAT, "2")], vec![longs("i", &[2], &[1, 2])], vec![node("y = Add x i", vec![])], "y");
    mentions(&refusal(&model(g)), &["Add", "float", "int64"]);
}

#[test]
fn bombs_are_refused_before_memory_is_taken() {
    let m = plain(vec![
        node("c = Constant", vec![ints("value_ints", &[1 << 31, 1 << 31, 1 << 31])]),
        node("y = ConstantOfShape c", vec![]),
    ]);
    mentions(&refusal(&m), &["ConstantOfShape"]);
    let m = plain(vec![
        node("c = Constant", vec![ints("value_ints", &[1 << 20, 1 << 20])]),
        node("y = ConstantOfShape c", vec![]),
    ]);
    mentions(&refusal(&m), &["elements"]);
    let body = graph(vec![], vec![], vec![], "");
    let m = plain(vec![
        node("n = Constant", vec![int("value_int", i64::MAX)]),
        node("y = Loop n _ x", vec![graph_attribute("body", body)]),
    ]);
    mentions(&refusal(&m), &["Loop", "trips"]);
}

/// A function that calls itself, and one that doubles at every level.
#[test]
fn functions_do_not_grow_without_bound() {
    let f = |name: &str, nodes| crate::ingest::onnx::proto::FunctionProto {
        name: name.into(),
        domain: "local".into(),
        input: vec!["p".into()],
        output: vec!["r".into()],
        node: nodes,
        ..Default::default()
    };
    let mut m = plain(vec![node("y = local:F x", vec![])]);
    m.functions.push(f("F", vec![node("r = local:F p", vec![])]));
    mentions(&refusal(&m), &["deeper"]);
    let mut m = plain(vec![node("y = local:F0 x", vec![])]);
    for k in 0..30 {
        let call = |out: &str, from: &str| node(&format!("{out} = local:F{} {from}", k + 1), vec![]);
        m.functions.push(f(&format!("F{k}"), vec![call("q", "p"), call("r", "q")]));
    }
    m.functions.push(f("F30", vec![node("r = Neg p", vec![])]));
    mentions(&refusal(&m), &["nodes"]);
}

#[test]
fn other_versions_and_types_are_named() {
    let mut m = plain(vec![node("y = Neg x", vec![])]);
    m.opset_import[0].version = 99;
    mentions(&refusal(&m), &["99"]);
    let g = graph(vec![value("x", 8, "n")], vec![], vec![node("y = Identity x", vec![])], "y");
    mentions(&refusal(&model(g)), &["input `x`", "string"]);
    let short = TensorProto { float_data: vec![1.0], ..floats("w", &[3], &[]) };
    let g = graph(vec![value("x", FLOAT, "3")], vec![short], vec![node("y = Add x w", vec![])], "y");
    mentions(&refusal(&model(g)), &["tensor `w`", "1 elements", "3"]);
}

fn external(location: &str, offset: &str, dims: &[i64]) -> Vec<u8> {
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
    let w = TensorProto {
        name: "w".into(),
        dims: dims.to_vec(),
        data_type: FLOAT,
        data_location: 1,
        external_data: vec![entry("location", location), entry("offset", offset)],
        ..Default::default()
    };
    let nodes = vec![node("y = MatMul x w", vec![])];
    model(graph(vec![value("x", FLOAT, "n 4")], vec![w], nodes, "y")).encode_to_vec()
}

#[test]
fn external_data_stays_in_the_directory() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(outer.path().join("secret.bin"), [0u8; 64]).unwrap();
    std::fs::write(dir.join("w.bin"), (0..8).flat_map(|v| (v as f32).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let path = dir.join("m.onnx");
    let attempt = |content: Vec<u8>| {
        std::fs::write(&path, content).unwrap();
        load_with(&path, &crate::ingest::LoadOptions::default()).map_err(|e| e.to_string())
    };
    let m = attempt(external("w.bin", "0", &[4, 2])).unwrap();
    let y = run_model(&m, &[("x", array(&[1, 4], &[1.; 4]))]).remove(0).1;
    close(&y, &[1, 2], &[12., 16.]);
    let absolute = outer.path().join("secret.bin").to_string_lossy().into_owned();
    for place in ["../secret.bin", absolute.as_str(), "a/../../secret.bin", "", ".."] {
        mentions(&attempt(external(place, "0", &[4, 2])).err().unwrap(), &["tensor `w`"]);
    }
    mentions(&attempt(external("w.bin", "4", &[4, 2])).err().unwrap(), &["beyond the end"]);
    mentions(&attempt(external("w.bin", "18446744073709551615", &[4, 2])).err().unwrap(), &["beyond the end"]);
    mentions(&attempt(external("w.bin", "0", &[4, 1 << 30])).err().unwrap(), &["beyond the end"]);
    mentions(&attempt(external("w.bin", "-4", &[4, 2])).err().unwrap(), &["offset"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outer.path().join("secret.bin"), dir.join("link.bin")).unwrap();
        mentions(&attempt(external("link.bin", "0", &[4, 2])).err().unwrap(), &["link"]);
        std::fs::hard_link(outer.path().join("secret.bin"), dir.join("hard.bin")).unwrap();
        mentions(&attempt(external("hard.bin", "0", &[4, 2])).err().unwrap(), &["hard link"]);
    }
}

/// Cut off, overwritten and random files give errors, never a panic.
#[test]
fn damaged_files_are_errors() {
    let g = graph(
        vec![value("x", FLOAT, "b s 4")],
        vec![floats("w", &[4, 4], &[0.5; 16]), longs("shape", &[3], &[0, -1, 2])],
        vec![
            node("h = MatMul x w", vec![]),
            node("r = Reshape h shape", vec![]),
            node("t = Transpose r", vec![ints("perm", &[0, 2, 1])]),
            node("a = Gather shape shape", vec![]),
            node("c = Concat t t", vec![int("axis", 1)]),
            node("z = Softmax c", vec![int("axis", -1)]),
            node("m = ReduceMean z", vec![int("keepdims", 0)]),
            node("y = Add z m", vec![]),
        ],
        "y",
    );
    let whole = model(g).encode_to_vec();
    load_bytes(&whole).err().into_iter().for_each(|e| mentions(&e, &["Gather"]));
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize
    };
    for cut in 0..whole.len() {
        let _ = load_bytes(&whole[..cut]);
    }
    for _ in 0..3000 {
        let mut changed = whole.clone();
        for _ in 0..1 + next() % 3 {
            let at = next() % changed.len();
            changed[at] = next() as u8;
        }
        let _ = load_bytes(&changed);
    }
    for len in [0, 1, 7, 64, 4096] {
        let noise: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        assert!(load_bytes(&noise).is_err());
    }
}
