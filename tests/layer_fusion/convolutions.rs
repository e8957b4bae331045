//! Convolutions: what is computed behind and in front of them in one kernel.

use crate::harness::{BACKENDS, verified};
use crate::onnx_file::{Attribute, OnnxFile};
use crate::support::{self, Random};
use frit::backend::cpu::CpuExecutor;
use frit::backend::{Executor, Extent};
use frit::{LoadedModel, Tensor};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::fusion::traffic::touched;
use frit_compiler::{CompileOptions, ingest};
use frit_kernels::dim::Bounds;

/// A two-dimensional convolution; one-dimensional with an extent and a kernel of 1.
#[derive(Clone, Debug)]
pub struct Conv {
    pub channels: [usize; 2],
    pub groups: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// In front of rows and columns, then behind them.
    pub pads: [usize; 4],
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

impl Conv {
    pub fn new(r: &mut Random, channels: [usize; 2], groups: usize, kernel: [usize; 2]) -> Conv {
        let n = channels[1] * channels[0] / groups * kernel[0] * kernel[1];
        let weight = r.floats(n as u64, 1.0);
        let bias = Some(r.floats(channels[1] as u64, 1.0));
        Conv { channels, groups, kernel, stride: [1; 2], dilation: [1; 2], pads: [0; 4], weight, bias }
    }
    pub fn places(&self, extent: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|a| {
            (extent[a] + self.pads[a] + self.pads[a + 2] - (self.kernel[a] - 1) * self.dilation[a] - 1) / self.stride[a]
                + 1
        })
    }
    /// One loop for each axis, in float64. `x` is `[batch, C, h, w]`.
    pub fn apply(&self, x: &[f64], batch: usize, extent: [usize; 2]) -> Vec<f64> {
        let ([ci, co], [h, w]) = (self.channels, extent);
        let ([oh, ow], [kh, kw]) = (self.places(extent), self.kernel);
        let (per_in, per_out) = (ci / self.groups, co / self.groups);
        let mut y = Vec::new();
        for b in 0..batch {
            for o in 0..co {
                for i in 0..oh {
                    for j in 0..ow {
                        let mut sum = self.bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
                        for c in 0..per_in {
                            for u in 0..kh {
                                for v in 0..kw {
                                    let r = (i * self.stride[0] + u * self.dilation[0]).wrapping_sub(self.pads[0]);
                                    let s = (j * self.stride[1] + v * self.dilation[1]).wrapping_sub(self.pads[1]);
                                    if r < h && s < w {
                                        let from = o / per_out * per_in + c;
                                        let weight = self.weight[((o * per_in + c) * kh + u) * kw + v];
                                        sum += f64::from(weight) * x[((b * ci + from) * h + r) * w + s];
                                    }
                                }
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
        y
    }
    /// Adds the node and its weights.
    pub fn node(&self, f: &mut OnnxFile, name: &str, x: &str, y: &str) {
        let [ci, co] = self.channels;
        let w = format!("{name}.weight");
        f.weight(&w, &[co, ci / self.groups, self.kernel[0], self.kernel[1]], &self.weight);
        self.node_with(f, name, x, &w, y);
    }
    /// The node with a weight that is there already.
    pub fn node_with(&self, f: &mut OnnxFile, name: &str, x: &str, w: &str, y: &str) {
        let ints = |v: &[usize]| Attribute::Ints(v.iter().map(|x| *x as i64).collect());
        let attributes = [
            ("strides", ints(&self.stride)),
            ("dilations", ints(&self.dilation)),
            ("pads", ints(&self.pads)),
            ("group", Attribute::Int(self.groups as i64)),
            ("kernel_shape", ints(&self.kernel)),
        ];
        match &self.bias {
            Some(b) => {
                let bias = format!("{name}.bias");
                f.weight(&bias, &[b.len()], b);
                f.node("Conv", &[x, w, &bias], y, &attributes);
            }
            None => f.node("Conv", &[x, w], y, &attributes),
        }
    }
}

/// A batch norm: gain, shift, mean and variance of each channel.
pub struct BatchNorm(pub [Vec<f32>; 4]);

impl BatchNorm {
    pub fn new(r: &mut Random, channels: usize) -> BatchNorm {
        let n = channels as u64;
        let near_one = |r: &mut Random| r.floats(n, 0.4).into_iter().map(|v| 1.0 + v).collect();
        let (gain, shift, mean) = (near_one(r), r.floats(n, 1.0), r.floats(n, 1.0));
        BatchNorm([gain, shift, mean, near_one(r)])
    }
    pub fn apply(&self, y: &mut [f64], batch: usize) {
        let channels = self.0[0].len();
        let each = y.len() / (batch * channels);
        for (i, v) in y.iter_mut().enumerate() {
            let [gain, shift, mean, variance] = [0, 1, 2, 3].map(|k| f64::from(self.0[k][i / each % channels]));
            *v = gain * (*v - mean) / (variance + 1e-5).sqrt() + shift;
        }
    }
    pub fn node(&self, f: &mut OnnxFile, name: &str, x: &str, y: &str) {
        let names: Vec<String> = ["gain", "shift", "mean", "variance"].iter().map(|n| format!("{name}.{n}")).collect();
        for (n, v) in names.iter().zip(&self.0) {
            f.weight(n, &[v.len()], v);
        }
        let mut all = vec![x];
        all.extend(names.iter().map(String::as_str));
        f.node("BatchNormalization", &all, y, &[("epsilon", Attribute::Float(1e-5))]);
    }
}

pub fn compiled(f: &OnnxFile, fusion: FusionOptions) -> LoadedModel {
    let (dir, path) = f.save();
    let model = ingest::load(&path).unwrap_or_else(|e| panic!("{e}"));
    let loaded = support::compile_with(&model, fusion, CompileOptions::default().targets);
    std::mem::forget(dir);
    loaded
}

/// The default plan of a file.
pub fn compiled_file(path: &std::path::Path) -> LoadedModel {
    support::compile(&ingest::load(path).unwrap_or_else(|e| panic!("{e}")))
}

pub fn launches(m: &LoadedModel) -> Vec<String> {
    let p = &m.plan.programs[0];
    p.steps.iter().map(|s| m.plan.kernels[s.kernel as usize].name.clone()).collect()
}

/// T1 on both backends: every output within 2e-5 of the largest.
pub fn close(m: &LoadedModel, x: &Tensor, want: &[f64], what: &str) {
    let most = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for backend in BACKENDS {
        let out = support::open(m, backend).run(&[("x", x.clone())]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let got = out[0].1.as_f32().unwrap();
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() <= 2e-5 * most, "{what} on {backend:?}: {i} is {g}, {w} expected");
        }
    }
}

pub fn input(r: &mut Random, batch: usize, channels: usize, extent: [usize; 2]) -> (Tensor, Vec<f64>) {
    let shape = [batch as u64, channels as u64, extent[0] as u64, extent[1] as u64];
    let t = r.tensor(&shape);
    let values = t.as_f32().unwrap().iter().map(|v| f64::from(*v)).collect();
    (t, values)
}

pub fn declare(f: &mut OnnxFile, name: &str, dims: [usize; 3], is_output: bool) {
    let dims = dims.map(|d| d.to_string());
    let all: Vec<&str> = std::iter::once("B").chain(dims.iter().map(String::as_str)).collect();
    if is_output { f.output(name, &all) } else { f.input(name, &all) }
}

/// What stands behind a convolution.
#[derive(Clone, Copy, Debug)]
enum Behind {
    Nothing,
    Relu,
    Norm,
    NormRelu,
    ResidualRelu,
    Sigmoid,
}

/// Convolutions of every form and what stands behind them: one launch, no window in memory, on all targets; against loops
/// in float64.
#[test]
fn row_13_convolutions_compute_what_stands_behind_them() {
    let mut r = Random::new(13);
    let with = |mut c: Conv, stride: [usize; 2], dilation: [usize; 2], pads: [usize; 4]| {
        (c.stride, c.dilation, c.pads) = (stride, dilation, pads);
        c
    };
    let same = [1, 1, 1, 1];
    let cases = [
        (with(Conv::new(&mut r, [3, 16], 1, [3, 3]), [1; 2], [1; 2], same), [13, 17], Behind::Relu),
        (with(Conv::new(&mut r, [5, 9], 1, [3, 3]), [2; 2], [1; 2], same), [15, 12], Behind::NormRelu),
        (with(Conv::new(&mut r, [8, 8], 1, [3, 3]), [1; 2], [1; 2], same), [9, 9], Behind::ResidualRelu),
        (with(Conv::new(&mut r, [4, 70], 1, [5, 2]), [1, 3], [2, 1], [3, 0, 1, 2]), [11, 14], Behind::Sigmoid),
        (with(Conv::new(&mut r, [7, 6], 1, [1, 1]), [1; 2], [1; 2], [0; 4]), [5, 7], Behind::Norm),
        (with(Conv::new(&mut r, [6, 8], 2, [3, 3]), [2, 1], [1; 2], same), [10, 9], Behind::NormRelu),
        (with(Conv::new(&mut r, [12, 12], 4, [1, 3]), [1; 2], [1, 2], [0, 2, 0, 2]), [1, 31], Behind::ResidualRelu),
        (with(Conv::new(&mut r, [10, 10], 10, [3, 3]), [2; 2], [1; 2], same), [11, 8], Behind::Relu),
        (with(Conv::new(&mut r, [10, 10], 10, [1, 9]), [1; 2], [1; 2], [0, 4, 0, 4]), [1, 40], Behind::ResidualRelu),
        (with(Conv::new(&mut r, [6, 6], 6, [5, 5]), [1; 2], [2; 2], [0; 4]), [12, 13], Behind::Nothing),
    ];
    let mut kernels = String::new();
    for (n, (conv, extent, behind)) in cases.into_iter().enumerate() {
        let what = format!("{n}: {:?} in {}, {:?}, {behind:?}", conv.channels, conv.groups, conv.kernel);
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [conv.channels[0], extent[0], extent[1]], false);
        let (norm, batch) = (BatchNorm::new(&mut r, conv.channels[1]), 2);
        let (t, x) = input(&mut r, batch, conv.channels[0], extent);
        let mut want = conv.apply(&x, batch, extent);
        conv.node(&mut f, "c", "x", "c");
        let relu = |v: &mut Vec<f64>| v.iter_mut().for_each(|v| *v = v.max(0.0));
        match behind {
            Behind::Nothing => f.node("Identity", &["c"], "y", &[]),
            Behind::Relu => {
                f.node("Relu", &["c"], "y", &[]);
                relu(&mut want);
            }
            Behind::Norm | Behind::NormRelu => {
                norm.node(&mut f, "bn", "c", "n");
                norm.apply(&mut want, batch);
                if matches!(behind, Behind::NormRelu) {
                    f.node("Relu", &["n"], "y", &[]);
                    relu(&mut want);
                } else {
                    f.node("Identity", &["n"], "y", &[]);
                }
            }
            Behind::ResidualRelu => {
                f.node("Add", &["c", "x"], "s", &[]);
                f.node("Relu", &["s"], "y", &[]);
                want.iter_mut().zip(&x).for_each(|(w, x)| *w += x);
                relu(&mut want);
            }
            Behind::Sigmoid => {
                f.node("Sigmoid", &["c"], "y", &[]);
                want.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp()));
            }
        }
        let [oh, ow] = conv.places(extent);
        declare(&mut f, "y", [conv.channels[1], oh, ow], true);
        let (_dir, path) = f.save();
        let graph =
            support::oracle(&ingest::load(&path).unwrap(), "forward", &[("n_B", 2)], &[("x".into(), t.clone())]);
        let off = graph[0].1.data.iter().zip(&want).fold(0.0f64, |m, (g, w)| m.max((g - w).abs()));
        assert!(off <= 1e-5, "{what}: the graph is off by {off:e}");
        let m = compiled(&f, FusionOptions::default());
        assert_eq!(launches(&m).len(), 1, "{what}: {:?}", launches(&m));
        let kernel = m.plan.kernels().next().unwrap();
        let args: Vec<&str> = kernel.spec.args.iter().map(|a| a.name.as_str()).collect();
        let templates: Vec<&str> = kernel.variants.iter().map(|v| v.schedule.template.as_str()).collect();
        kernels += &format!("{what}\n  {} of {}: {}\n", kernel.name, args.join(", "), templates.join(", "));
        close(&m, &t, &want, &what);
        verified(&m);
        // T4: without fusion the numbers are the same.
        close(&compiled(&f, FusionOptions::unfused()), &t, &want, &what);
    }
    insta::assert_snapshot!("row_13_epilogues", kernels);
}

/// A convolution, and one along a signal, moves its input, its weights and its output once: what is predicted from the
/// index maps is what the access counters of the CPU see.
#[test]
fn row_14_convolutions_move_what_is_predicted() {
    let mut r = Random::new(140);
    for (groups, pads, stride) in [(1, [0; 4], 1), (1, [1; 4], 1), (1, [1; 4], 2), (8, [0; 4], 1), (8, [1; 4], 1)] {
        let mut conv = Conv::new(&mut r, [8, 8], groups, [3, 3]);
        (conv.pads, conv.stride) = (pads, [stride; 2]);
        let extent = [14, 10];
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [8, 14, 10], false);
        conv.node(&mut f, "c", "x", "c");
        f.node("Relu", &["c"], "y", &[]);
        let [oh, ow] = conv.places(extent);
        declare(&mut f, "y", [8, oh, ow], true);
        let m = compiled(&f, FusionOptions::default());
        let plan = &m.plan;
        let at: Vec<u64> = plan.sizes.iter().map(|_| 2).collect();
        let bind = CpuExecutor::bind(plan.clone(), &*m.weights, &Extent(at.clone()), &mut |_, _| {});
        let mut e = bind.unwrap();
        let (t, _) = input(&mut r, 2, 8, extent);
        e.count_accesses();
        e.run(0, &at, &[&t], &[]).unwrap();
        let seen = e.take_accesses();
        assert_eq!(seen.len(), 1);
        let spec = &plan.kernels[plan.programs[0].steps[0].kernel as usize].spec;
        let mut bytes = 0;
        for (k, (arg, want)) in spec.args.iter().zip(touched(spec, &Bounds::new())).enumerate() {
            let eval = |d| plan.eval(d, &at).unwrap();
            assert_eq!(seen[0].written[k], eval(&want.written), "{}", arg.name);
            if want.at_most {
                assert!(seen[0].read[k] <= eval(&want.read), "{}", arg.name);
            } else {
                assert_eq!(seen[0].read[k], eval(&want.read), "{}", arg.name);
            }
            bytes += 4 * (seen[0].read[k] + seen[0].written[k]);
        }
        let weights = conv.weight.len() + 8;
        assert_eq!(bytes as usize, 4 * (2 * 8 * (14 * 10 + oh * ow) + weights), "groups {groups}, pads {pads:?}");
    }
}

/// Depthwise and pointwise convolutions, norms and activations between and behind them: one launch where the pointwise one
/// has few columns, two without that fusion; rows, columns and channels that are no multiple of any tile, stride 2.
#[test]
fn row_36_depthwise_separable_blocks_are_one_kernel() {
    let mut r = Random::new(36);
    for (channels, out, extent, stride) in [(10, 24, [9, 13], 1), (33, 65, [11, 7], 2), (8, 128, [5, 5], 1)] {
        let mut dw = Conv::new(&mut r, [channels, channels], channels, [3, 3]);
        (dw.stride, dw.pads) = ([stride; 2], [1; 4]);
        let pw = Conv::new(&mut r, [channels, out], 1, [1, 1]);
        let (first, second, batch) = (BatchNorm::new(&mut r, channels), BatchNorm::new(&mut r, out), 2);
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [channels, extent[0], extent[1]], false);
        dw.node(&mut f, "dw", "x", "a");
        first.node(&mut f, "bn1", "a", "b");
        f.node("Relu", &["b"], "c", &[]);
        pw.node(&mut f, "pw", "c", "d");
        second.node(&mut f, "bn2", "d", "e");
        f.node("Relu", &["e"], "y", &[]);
        let places = dw.places(extent);
        declare(&mut f, "y", [out, places[0], places[1]], true);
        let (t, x) = input(&mut r, batch, channels, extent);
        let relu = |v: &mut Vec<f64>| v.iter_mut().for_each(|v| *v = v.max(0.0));
        let mut mid = dw.apply(&x, batch, extent);
        first.apply(&mut mid, batch);
        relu(&mut mid);
        let mut want = pw.apply(&mid, batch, places);
        second.apply(&mut want, batch);
        relu(&mut want);
        let what = format!("{channels} channels to {out}");
        let m = compiled(&f, FusionOptions::default());
        assert_eq!(launches(&m).len(), 1, "{what}: {:?}", launches(&m));
        close(&m, &t, &want, &what);
        verified(&m);
        let mut apart = FusionOptions::default();
        assert!(apart.switch_off("windows"));
        let two = compiled(&f, apart);
        assert_eq!(launches(&two).len(), 2, "{what}: {:?}", launches(&two));
        close(&two, &t, &want, &what);
        // The block's traffic loses the intermediate, written and read.
        let bytes = |m: &LoadedModel| -> u64 {
            let at: Vec<u64> = m.plan.sizes.iter().map(|_| batch as u64).collect();
            let regions = &m.plan.report.phases[0].regions;
            regions.iter().map(|r| m.plan.eval(&r.activation_bytes, &at).unwrap()).sum()
        };
        let between = (2 * 4 * batch * channels * places[0] * places[1]) as u64;
        assert_eq!(bytes(&two) - bytes(&m), between, "{what}");
    }
    // More column tiles than may repeat the sums: two launches.
    let dw = Conv::new(&mut r, [8, 8], 8, [3, 3]);
    let pw = Conv::new(&mut r, [8, 200], 1, [1, 1]);
    let mut f = OnnxFile::default();
    declare(&mut f, "x", [8, 9, 9], false);
    dw.node(&mut f, "dw", "x", "a");
    pw.node(&mut f, "pw", "a", "y");
    declare(&mut f, "y", [200, 7, 7], true);
    assert_eq!(launches(&compiled(&f, FusionOptions::default())).len(), 2);
}

/// T4: a pointwise convolution that is the identity gives the depthwise one, to 1e-6: the two kernels may sum taps in
/// different orders. Pointwise in front of depthwise
/// stays two launches, since every tap would compute the product again.
#[test]
fn row_36_identity_and_the_other_order() {
    let mut r = Random::new(361);
    let mut dw = Conv::new(&mut r, [12, 12], 12, [3, 3]);
    dw.pads = [1; 4];
    let mut identity = Conv::new(&mut r, [12, 12], 1, [1, 1]);
    identity.bias = None;
    identity.weight = (0..144).map(|i| if i / 12 == i % 12 { 1.0 } else { 0.0 }).collect();
    let build = |with: bool| {
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [12, 7, 9], false);
        dw.node(&mut f, "dw", "x", if with { "a" } else { "y" });
        if with {
            identity.node(&mut f, "pw", "a", "y");
        }
        declare(&mut f, "y", [12, 7, 9], true);
        compiled(&f, FusionOptions::default())
    };
    let (block, alone) = (build(true), build(false));
    assert_eq!(launches(&block).len(), 1);
    let (t, x) = input(&mut r, 2, 12, [7, 9]);
    for backend in BACKENDS {
        let run = |m: &LoadedModel| support::open(m, backend).run(&[("x", t.clone())]).unwrap().remove(0).1;
        let (a, b) = (run(&block), run(&alone));
        let off = support::distance("identity", &a, &support::array(&b));
        assert!(off <= 1e-6, "{backend:?}: {off:e}");
    }
    let pw = Conv::new(&mut r, [12, 12], 1, [1, 1]);
    let mut f = OnnxFile::default();
    declare(&mut f, "x", [12, 7, 9], false);
    pw.node(&mut f, "pw", "x", "a");
    dw.node(&mut f, "dw", "a", "y");
    declare(&mut f, "y", [12, 7, 9], true);
    let m = compiled(&f, FusionOptions::default());
    assert_eq!(launches(&m).len(), 2);
    close(&m, &t, &dw.apply(&pw.apply(&x, 2, [7, 9]), 2, [7, 9]), "pointwise, then depthwise");
}

/// One block applied several times with the same filters and norms of its own: the filters are stored and uploaded once,
/// norms stay with their use, and the numbers are those of copies, bit by bit.
#[test]
fn row_11_lrunet_reuses_a_block() {
    let mut r = Random::new(110);
    let (channels, extent, batch, trips) = (20, [8, 11], 2, 4);
    let mut dw = Conv::new(&mut r, [channels, channels], channels, [3, 3]);
    (dw.pads, dw.bias) = ([1; 4], None);
    dw.weight.iter_mut().for_each(|w| *w *= 0.4);
    let mut pw = Conv::new(&mut r, [channels, channels], 1, [1, 1]);
    pw.bias = None;
    pw.weight.iter_mut().for_each(|w| *w *= 0.3);
    let norms: Vec<BatchNorm> = (0..trips).map(|_| BatchNorm::new(&mut r, channels)).collect();
    let build = |shared: bool, trips: usize| {
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [channels, extent[0], extent[1]], false);
        f.weight("dw", &[channels, 1, 3, 3], &dw.weight);
        f.weight("pw", &[channels, channels, 1, 1], &pw.weight);
        let mut at = "x".to_owned();
        for (i, norm) in norms.iter().take(trips).enumerate() {
            let name = |n: &str| format!("{n}{i}");
            if shared {
                dw.node_with(&mut f, &name("d"), &at, "dw", &name("a"));
                pw.node_with(&mut f, &name("p"), &name("a"), "pw", &name("b"));
            } else {
                dw.node(&mut f, &name("d"), &at, &name("a"));
                pw.node(&mut f, &name("p"), &name("a"), &name("b"));
            }
            norm.node(&mut f, &name("n"), &name("b"), &name("c"));
            let y = if i + 1 == trips { "y".to_owned() } else { name("y") };
            f.node("Relu", &[&name("c")], &y, &[]);
            at = y;
        }
        declare(&mut f, "y", [channels, extent[0], extent[1]], true);
        compiled(&f, FusionOptions::default())
    };
    let (tied, copies) = (build(true, trips), build(false, trips));
    let (t, x) = input(&mut r, batch, channels, extent);
    let mut want = x;
    for norm in &norms {
        want = pw.apply(&dw.apply(&want, batch, extent), batch, extent);
        norm.apply(&mut want, batch);
        want.iter_mut().for_each(|v| *v = v.max(0.0));
    }
    close(&tied, &t, &want, "four uses of a block");
    for backend in BACKENDS {
        let run = |m: &LoadedModel| support::open(m, backend).run(&[("x", t.clone())]).unwrap();
        assert_eq!(run(&tied), run(&copies), "{backend:?}");
    }
    let bytes = |m: &LoadedModel| -> u64 {
        let elems = |w: &frit_plan::WeightDecl| w.shape.iter().map(|d| d.as_const().unwrap() as u64).product::<u64>();
        m.plan.weights.iter().map(|w| 4 * elems(w)).sum()
    };
    let filters = 4 * (channels * 9 + channels * channels) as u64;
    assert_eq!(bytes(&copies) - bytes(&tied), filters * (trips as u64 - 1), "filters are stored once");
    // Uses are the same code, apart from the first, which reads an input, and the last, which writes an output.
    assert_eq!((tied.plan.kernels.len(), launches(&tied).len()), (3, trips));
    // T4: one use.
    let (one, copy) = (build(true, 1), build(false, 1));
    for backend in BACKENDS {
        let run = |m: &LoadedModel| support::open(m, backend).run(&[("x", t.clone())]).unwrap();
        assert_eq!(run(&one), run(&copy), "{backend:?}");
    }
}

/// A depthwise and a pointwise convolution of bytes, requantised behind each: the integers are those of whole numbers, every
/// one of them, where scales are powers of two.
#[test]
fn row_36_bytes_are_exact() {
    let (batch, channels, out, [h, w]) = (2usize, 10usize, 7usize, [9usize, 6usize]);
    let mut r = Random::new(367);
    let mut some = |n: usize| (0..n).map(|_| r.below(256) as u8).collect::<Vec<u8>>();
    let (x, dw, pw) = (some(batch * channels * h * w), some(channels * 9), some(out * channels));
    // Scale and zero of the input, of what lies between, and of the result; filters have 2⁻⁴ and 2⁻⁵ and no zero.
    let steps = [(0.125f32, 128u8), (4.0, 120), (32.0, 131)];
    let mut f = OnnxFile::default();
    declare(&mut f, "x", [channels, h, w], false);
    for (i, (scale, zero)) in steps.iter().enumerate() {
        f.weight(&format!("s{i}"), &[], &[*scale]);
        f.bytes(&format!("z{i}"), &[], false, &[*zero]);
    }
    f.bytes("none", &[], true, &[0]);
    f.weight("sd", &[], &[0.0625]);
    f.weight("sp", &[], &[0.03125]);
    f.bytes("dw", &[channels, 1, 3, 3], true, &dw);
    f.bytes("pw", &[out, channels, 1, 1], true, &pw);
    f.node("QuantizeLinear", &["x", "s0", "z0"], "q", &[]);
    let grouped = [("group", Attribute::Int(channels as i64)), ("pads", Attribute::Ints(vec![1; 4]))];
    f.node("QLinearConv", &["q", "s0", "z0", "dw", "sd", "none", "s1", "z1"], "d", &grouped);
    f.node("QLinearConv", &["d", "s1", "z1", "pw", "sp", "none", "s2", "z2"], "p", &[]);
    f.node("DequantizeLinear", &["p", "s2", "z2"], "y", &[]);
    declare(&mut f, "y", [out, h, w], true);

    // Whole numbers: half a unit goes to the even one.
    let requantised = |sum: i64, by: i64, zero: u8| {
        let (low, rest) = (sum.div_euclid(by), sum.rem_euclid(by));
        let up = 2 * rest > by || 2 * rest == by && low % 2 != 0;
        (low + i64::from(up) + i64::from(zero)).clamp(0, 255)
    };
    let signed = |b: u8| i64::from(b as i8);
    let mut want = Vec::new();
    for b in 0..batch {
        let mut between = vec![0i64; channels * h * w];
        for (c, i, j) in (0..channels).flat_map(|c| (0..h).flat_map(move |i| (0..w).map(move |j| (c, i, j)))) {
            let taps = (0..3).flat_map(|u| (0..3).map(move |v| (u, v)));
            let sum: i64 = taps
                .filter(|(u, v)| (1..=h).contains(&(i + u)) && (1..=w).contains(&(j + v)))
                .map(|(u, v)| {
                    let at = ((b * channels + c) * h + i + u - 1) * w + j + v - 1;
                    (i64::from(x[at]) - 128) * signed(dw[c * 9 + u * 3 + v])
                })
                .sum();
            // 2⁻³ · 2⁻⁴ over 2².
            between[(c * h + i) * w + j] = requantised(sum, 512, 120);
        }
        for (o, at) in (0..out).flat_map(|o| (0..h * w).map(move |at| (o, at))) {
            let sum: i64 = (0..channels).map(|c| (between[c * h * w + at] - 120) * signed(pw[o * channels + c])).sum();
            // 2² · 2⁻⁵ over 2⁵.
            want.push((requantised(sum, 256, 131) - 131) as f32 * 32.0);
        }
    }
    let floats: Vec<f32> = x.iter().map(|q| (f32::from(*q) - 128.0) * 0.125).collect();
    let t = Tensor::f32(&[batch as u64, channels as u64, h as u64, w as u64], floats).unwrap();
    let m = compiled(&f, FusionOptions::default());
    for backend in BACKENDS {
        let got = support::open(&m, backend).run(&[("x", t.clone())]).unwrap().remove(0).1;
        assert_eq!(got.as_f32().unwrap(), want, "{backend:?}");
    }
    assert!(want.iter().any(|v| *v != want[0]), "everything is clamped");
    verified(&m);
}
