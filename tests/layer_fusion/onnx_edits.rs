//! Edits of convolution models in ONNX files: what comes out computes what the formulas say, by loops in float64.

use crate::convolutions::{BatchNorm, Conv, close, compiled_file, declare, input, launches};
use crate::onnx_file::{Attribute, OnnxFile};
use crate::support::Random;
use frit_compiler::transform::onnx::OnnxModel;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The file that edits make of a file.
fn edited(f: &OnnxFile, steps: &[&str]) -> (TempDir, PathBuf, Vec<String>) {
    let (dir, path) = f.save();
    let mut model = OnnxModel::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let mut said = Vec::new();
    for step in steps {
        said.extend(model.apply(step, &Map::new()).unwrap_or_else(|e| panic!("{e}")));
    }
    let to = dir.path().join("edited.onnx");
    model.save(&to).unwrap();
    (dir, to, said)
}

fn options(v: Value) -> Map<String, Value> {
    v.as_object().unwrap().clone()
}

fn relu(v: &mut [f64]) {
    v.iter_mut().for_each(|v| *v = v.max(0.0));
}

fn bytes(path: &Path) -> u64 {
    OnnxModel::open(path).unwrap().weight_bytes()
}

/// Two convolutions with a norm behind the second, merged and folded: one convolution of 5 × 5 in one launch, whose
/// output is that of the three, borders included.
#[test]
fn row_42_layermerge_edits_a_model() {
    let mut r = Random::new(420);
    for (k1, k2, stride) in [(3, 3, 1), (3, 1, 2), (1, 3, 1)] {
        let mut first = Conv::new(&mut r, [5, 7], 1, [k1, k1]);
        first.pads = [k1 / 2 + k2 / 2; 4];
        let mut second = Conv::new(&mut r, [7, 6], 1, [k2, k2]);
        second.stride = [stride; 2];
        let (norm, extent, batch) = (BatchNorm::new(&mut r, 6), [10, 13], 2);
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [5, extent[0], extent[1]], false);
        first.node(&mut f, "c1", "x", "a");
        second.node(&mut f, "c2", "a", "b");
        norm.node(&mut f, "bn", "b", "c");
        f.node("Relu", &["c"], "y", &[]);
        let between = first.places(extent);
        let places = second.places(between);
        declare(&mut f, "y", [6, places[0], places[1]], true);
        let (t, x) = input(&mut r, batch, 5, extent);
        let mut want = second.apply(&first.apply(&x, batch, extent), batch, between);
        norm.apply(&mut want, batch);
        relu(&mut want);
        let (_dir, path, said) = edited(&f, &["merge-convs", "fold-batch-norms"]);
        let k = k1 + k2 - 1;
        assert_eq!(said, [format!("node_a and node_b are one of {k}×{k}"), "node_c is in node_b".to_owned()]);
        assert_eq!(bytes(&path), 4 * (6 * 5 * k * k + 6) as u64, "what nothing reads is gone");
        let m = compiled_file(&path);
        assert_eq!(launches(&m).len(), 1, "{:?}", launches(&m));
        close(&m, &t, &want, &format!("{k1} and {k2}, stride {stride}"));
        // The other order of the two edits.
        let (_dir, path, _) = edited(&f, &["fold-batch-norms", "merge-convs"]);
        close(&compiled_file(&path), &t, &want, "folded first");
    }
}

/// What is not exact is refused, with every reason, and the file stays as it was.
#[test]
fn row_42_layermerge_refuses_what_is_not_exact() {
    let mut r = Random::new(421);
    let mut f = OnnxFile::default();
    declare(&mut f, "x", [4, 9, 9], false);
    let mut padded = Conv::new(&mut r, [4, 4], 1, [3, 3]);
    padded.pads = [1; 4];
    padded.node(&mut f, "c1", "x", "a");
    padded.node(&mut f, "c2", "a", "b");
    let mut grouped = Conv::new(&mut r, [4, 4], 2, [1, 1]);
    grouped.pads = [0; 4];
    grouped.node(&mut f, "c3", "b", "c");
    Conv::new(&mut r, [4, 3], 1, [1, 1]).node(&mut f, "c4", "b", "d");
    declare(&mut f, "c", [4, 9, 9], true);
    declare(&mut f, "d", [3, 9, 9], true);
    let (dir, path) = f.save();
    let before = OnnxModel::open(&path).unwrap();
    let mut model = before.clone();
    let said = model.apply("merge-convs", &Map::new()).unwrap_err().to_string();
    for part in
        ["node_a and node_b", "move all padding to the first", "node_b and node_c", "node_b and node_d", "others read"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(model, before);
    // T4: a convolution that is the identity merges into the one behind it without a change of any number.
    let mut f = OnnxFile::default();
    declare(&mut f, "x", [3, 8, 8], false);
    let mut identity = Conv::new(&mut r, [3, 3], 1, [1, 1]);
    identity.weight = (0..9).map(|i| if i / 3 == i % 3 { 1.0 } else { 0.0 }).collect();
    identity.bias = None;
    let conv = Conv::new(&mut r, [3, 5], 1, [3, 3]);
    identity.node(&mut f, "i", "x", "a");
    conv.node(&mut f, "c", "a", "y");
    declare(&mut f, "y", [5, 6, 6], true);
    let (_dir, merged, _) = edited(&f, &["merge-convs"]);
    let (t, x) = input(&mut r, 2, 3, [8, 8]);
    close(&compiled_file(&merged), &t, &conv.apply(&x, 2, [8, 8]), "an identity in front");
    // Transforms by layers or heads, places that are taken, files that are none.
    let said = model.apply("prune-layers", &options(json!({"layers": "0"}))).unwrap_err().to_string();
    assert!(said.contains("no roles") && said.contains("before it is exported"), "{said}");
    assert!(model.save(&path).unwrap_err().to_string().contains("exists already"));
    let damaged = dir.path().join("damaged.onnx");
    std::fs::write(&damaged, [0x08, 0x08, 0x3a, 0xff, 0x01]).unwrap();
    assert!(OnnxModel::open(&damaged).unwrap_err().to_string().contains("is no ONNX model"));
}

/// Filters tied by `share-weights`: one tensor is left, the norms of each use stay with it when the others fold, and the
/// numbers are those of a file that was written so.
#[test]
fn row_11_lrunet_is_made_from_a_model() {
    let mut r = Random::new(111);
    let (channels, extent, batch) = (9, [7, 10], 2);
    let convs: Vec<Conv> = (0..3)
        .map(|_| {
            let mut c = Conv::new(&mut r, [channels, channels], 1, [3, 3]);
            c.weight.iter_mut().for_each(|w| *w *= 0.2);
            (c.pads, c.bias) = ([1; 4], None);
            c
        })
        .collect();
    let norms: Vec<BatchNorm> = (0..3).map(|_| BatchNorm::new(&mut r, channels)).collect();
    let mut f = OnnxFile::default();
    declare(&mut f, "x", [channels, extent[0], extent[1]], false);
    for (i, (c, n)) in convs.iter().zip(&norms).enumerate() {
        let name = |s: &str, i: usize| format!("{s}{i}");
        let x = if i == 0 { "x".to_owned() } else { name("r", i - 1) };
        c.node(&mut f, &name("c", i), &x, &name("a", i));
        n.node(&mut f, &name("n", i), &name("a", i), &name("b", i));
        f.node("Relu", &[&name("b", i)], &name("r", i), &[]);
    }
    declare(&mut f, "r2", [channels, extent[0], extent[1]], true);
    let (dir, path) = f.save();
    let mut model = OnnxModel::open(&path).unwrap();
    let before = model.weight_bytes();
    let tensors = json!({"tensors": "c0.weight,c1.weight", "init": "mean"});
    model.apply("share-weights", &options(tensors)).unwrap();
    assert_eq!(before - model.weight_bytes(), (4 * channels * channels * 9) as u64);
    // The third convolution's norm folds; those of the shared filters stay.
    let said = model.apply("fold-batch-norms", &Map::new()).unwrap();
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!(said[0], "node_b2 is in node_a2");
    assert!(said[1..].iter().all(|s| s.contains("`c0.weight` has 2 uses")), "{said:?}");
    let to = dir.path().join("tied.onnx");
    model.save(&to).unwrap();
    let (t, x) = input(&mut r, batch, channels, extent);
    let mut shared = convs[0].clone();
    for (w, other) in shared.weight.iter_mut().zip(&convs[1].weight) {
        *w = ((f64::from(*w) + f64::from(*other)) / 2.0) as f32;
    }
    let mut want = x;
    for (c, n) in [&shared, &shared, &convs[2]].into_iter().zip(&norms) {
        want = c.apply(&want, batch, extent);
        n.apply(&mut want, batch);
        relu(&mut want);
    }
    let m = compiled_file(&to);
    close(&m, &t, &want, "tied filters");
    assert_eq!(launches(&m).len(), 3);
    // Contradictions, all at once.
    let wrong = json!({"tensors": "c0.weight,c0.weight,nope,n0.gain"});
    let said = model.apply("share-weights", &options(wrong)).unwrap_err().to_string();
    for part in ["`nope` is no stored tensor", "`c0.weight` is named twice", "`n0.gain` has the shape"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// What a file states of windows is not trusted: no chain is made of extents and taps that nothing has.
#[test]
fn row_12_windows_that_nothing_has_are_in_no_chain() {
    let huge = i64::MAX;
    let window = |kernel: [i64; 2], pads: [i64; 4]| {
        let mut f = OnnxFile::default();
        f.input("x", &["N", "4", "9", "9"]);
        let attributes = [("kernel_shape", Attribute::Ints(kernel.into())), ("pads", Attribute::Ints(pads.into()))];
        f.node("MaxPool", &["x"], "y", &attributes);
        f.output("y", &["N", "4", "h", "w"]);
        let (_dir, path) = f.save();
        OnnxModel::open(&path).unwrap().chains().len()
    };
    assert_eq!(window([3, 3], [0; 4]), 1);
    assert_eq!(window([huge, 3], [huge, 0, huge, 0]), 0);
    assert_eq!(window([3, 3], [huge, 0, 0, 0]), 0);
    assert_eq!(window([-1, 3], [0; 4]), 0);
}
