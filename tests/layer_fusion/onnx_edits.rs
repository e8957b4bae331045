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

/// Tokens, and elements of each.
const TEXT: [usize; 2] = [5, 8];

/// A stack of two layers of attention and two products, residuals around each, under the names of one side. `tied`: the
/// names of the first stack, whichever it is.
fn attending_stack(
    f: &mut OnnxFile,
    side: &str,
    x: &str,
    memory: Option<&str>,
    weights: &[(String, Vec<f32>)],
    tied: bool,
) -> String {
    let [_, width] = TEXT;
    let mut at = x.to_owned();
    for layer in 0..2 {
        let name = |n: &str| format!("{side}.{layer}.{n}");
        let weight = |n: &str| if tied { format!("enc.{layer}.{n}") } else { name(n) };
        for (n, values) in weights.iter().filter(|(n, _)| n.starts_with(&format!("{layer}."))) {
            if !tied || side == "enc" {
                f.weight(&format!("{side}.{n}"), &[width, width], values);
            }
        }
        let read = memory.unwrap_or(&at).to_owned();
        for (part, of) in [("q", at.as_str()), ("k", &read), ("v", &read)] {
            f.node("MatMul", &[of, &weight(part)], &name(&format!("{part}y")), &[]);
        }
        f.node("Transpose", &[&name("ky")], &name("kt"), &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
        f.node("MatMul", &[&name("qy"), &name("kt")], &name("s"), &[]);
        f.node("Softmax", &[&name("s")], &name("p"), &[("axis", Attribute::Int(-1))]);
        f.node("MatMul", &[&name("p"), &name("vy")], &name("a"), &[]);
        f.node("Add", &[&at, &name("a")], &name("x"), &[]);
        f.node("MatMul", &[&name("x"), &weight("up")], &name("u"), &[]);
        f.node("Relu", &[&name("u")], &name("r"), &[]);
        f.node("MatMul", &[&name("r"), &weight("down")], &name("d"), &[]);
        f.node("Add", &[&name("x"), &name("d")], &name("y"), &[]);
        at = name("y");
    }
    at
}

/// What a stack gives for one sequence, in float64.
fn attended(mut x: Vec<Vec<f64>>, memory: Option<&Vec<Vec<f64>>>, weights: &[(String, Vec<f32>)]) -> Vec<Vec<f64>> {
    let width = TEXT[1];
    for layer in 0..2 {
        let product = |x: &Vec<Vec<f64>>, n: &str| -> Vec<Vec<f64>> {
            let w = &weights.iter().find(|(name, _)| *name == format!("{layer}.{n}")).unwrap().1;
            let one = |x: &Vec<f64>, j: usize| (0..width).map(|i| x[i] * f64::from(w[i * width + j])).sum();
            x.iter().map(|x| (0..width).map(|j| one(x, j)).collect()).collect()
        };
        let read = memory.unwrap_or(&x).clone();
        let (q, k, v) = (product(&x, "q"), product(&read, "k"), product(&read, "v"));
        for (i, row) in x.iter_mut().enumerate() {
            let scores: Vec<f64> = k.iter().map(|k| (0..width).map(|e| q[i][e] * k[e]).sum()).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let all: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for (s, v) in scores.iter().zip(&v) {
                (0..width).for_each(|e| row[e] += (s - most).exp() / all * v[e]);
            }
        }
        let mut inner = product(&x, "up");
        inner.iter_mut().for_each(|r| relu(r));
        let down = product(&inner, "down");
        x.iter_mut().zip(down).for_each(|(x, d)| x.iter_mut().zip(d).for_each(|(x, d)| *x += d));
    }
    x
}

/// An encoder and a decoder whose initializers are stored twice: one buffer each by their content, when the file is loaded
/// and when it is edited; the bits are those of the file that has each once, and the numbers those of the definition.
#[test]
fn row_30_tied_transformers_in_an_onnx_file() {
    let [tokens, width] = TEXT;
    let mut r = Random::new(300);
    let names = (0..2).flat_map(|l| ["q", "k", "v", "up", "down"].map(|n| format!("{l}.{n}")));
    let weights: Vec<(String, Vec<f32>)> = names.map(|n| (n, r.floats((width * width) as u64, 0.5))).collect();
    let file = |tied: bool| {
        let mut f = OnnxFile::default();
        f.input("x", &["B", "5", "8"]);
        let memory = attending_stack(&mut f, "enc", "x", None, &weights, tied);
        let y = attending_stack(&mut f, "dec", "x", Some(&memory), &weights, tied);
        f.output(&y, &["B", "5", "8"]);
        f
    };
    let t = r.tensor(&[2, tokens as u64, width as u64]);
    let rows: Vec<Vec<f64>> =
        t.as_f32().unwrap().chunks(width).map(|c| c.iter().map(|v| f64::from(*v)).collect()).collect();
    let want: Vec<f64> = rows
        .chunks(tokens)
        .flat_map(|x| attended(x.to_vec(), Some(&attended(x.to_vec(), None, &weights)), &weights).concat())
        .collect();
    let ((_a, twice), (_b, once)) = (file(false).save(), file(true).save());
    let load = frit_compiler::ingest::LoadOptions { dedupe: true, ..Default::default() };
    let deduped = crate::support::compile(&frit_compiler::ingest::load_with(&twice, &load).unwrap());
    let (_dir, path, said) = edited(&file(false), &["dedupe-weights"]);
    assert_eq!(said, ["10 tensors have the content of another"]);
    assert_eq!((bytes(&twice), bytes(&path), bytes(&once)), (20 * 256, 10 * 256, 10 * 256));
    let (tied, edited) = (compiled_file(&once), compiled_file(&path));
    assert_eq!(compiled_file(&twice).plan.tensor_names().len(), 20);
    for m in [&deduped, &edited, &tied] {
        assert_eq!(m.plan.tensor_names().len(), 10);
        close(m, &t, &want, "tied stacks");
        for backend in crate::harness::BACKENDS {
            let run = |m: &frit::LoadedModel| crate::support::open(m, backend).run(&[("x", t.clone())]).unwrap();
            assert_eq!(run(m), run(&tied), "{backend:?}");
        }
    }
}
