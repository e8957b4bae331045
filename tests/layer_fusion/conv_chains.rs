//! Two convolutions in a row as one kernel that computes the border between its tiles again.

use crate::convolutions::{BatchNorm, Conv, close, compiled, declare, input, launches};
use crate::harness::verified;
use crate::onnx_file::OnnxFile;
use crate::ptxas::Ptxas;
use crate::support::Random;
use frit::LoadedModel;
use frit::backend::cpu::CpuExecutor;
use frit::backend::simt::SimtBackend;
use frit::backend::{Backend, Executor, Extent};
use frit_compiler::NumericMode;
use frit_compiler::chain::{Axis, Group, Overlap, Stage, cost};
use frit_compiler::fusion::FusionOptions;
use frit_compiler::fusion::traffic::touched;
use frit_kernels::dim::Bounds;
use frit_kernels::spec::Anchor;
use frit_kernels::target::Tier;

/// What lies between two convolutions.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    Relu,
    /// A batch norm and a function that is not 0 at 0, so that padding behind it differs from padding in front.
    NormSigmoid,
}

/// Two convolutions over images of an extent.
#[derive(Debug)]
struct Pair {
    convs: [Conv; 2],
    extent: [usize; 2],
    between: Between,
}

impl Pair {
    fn new(
        r: &mut Random,
        channels: [usize; 3],
        kernels: [[usize; 2]; 2],
        extent: [usize; 2],
        between: Between,
    ) -> Pair {
        let mut conv = |i: usize| {
            let mut c = Conv::new(r, [channels[i], channels[i + 1]], 1, kernels[i]);
            let fan = (channels[i] * kernels[i][0] * kernels[i][1]) as f32;
            c.weight.iter_mut().for_each(|w| *w *= 2.0 / fan.sqrt());
            c
        };
        Pair { convs: [conv(0), conv(1)], extent, between }
    }
    fn with(mut self, i: usize, stride: [usize; 2], dilation: [usize; 2], pads: [usize; 4]) -> Pair {
        (self.convs[i].stride, self.convs[i].dilation, self.convs[i].pads) = (stride, dilation, pads);
        self
    }
    fn places(&self) -> [[usize; 2]; 2] {
        let middle = self.convs[0].places(self.extent);
        [middle, self.convs[1].places(middle)]
    }
    /// The file, and what it gives for an input, in float64.
    fn build(&self, r: &mut Random, batch: usize, x: &[f64]) -> (OnnxFile, Vec<f64>) {
        let [first, second] = &self.convs;
        let [middle, places] = self.places();
        let norm = BatchNorm::new(r, first.channels[1]);
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [first.channels[0], self.extent[0], self.extent[1]], false);
        first.node(&mut f, "first", "x", "a");
        let mut values = first.apply(x, batch, self.extent);
        let between = match self.between {
            Between::Nothing => "a",
            Between::Relu => {
                f.node("Relu", &["a"], "b", &[]);
                values.iter_mut().for_each(|v| *v = v.max(0.0));
                "b"
            }
            Between::NormSigmoid => {
                norm.node(&mut f, "norm", "a", "n");
                f.node("Sigmoid", &["n"], "b", &[]);
                norm.apply(&mut values, batch);
                values.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp()));
                "b"
            }
        };
        second.node(&mut f, "second", between, "c");
        f.node("Relu", &["c"], "y", &[]);
        declare(&mut f, "y", [second.channels[1], places[0], places[1]], true);
        let mut want = second.apply(&values, batch, middle);
        want.iter_mut().for_each(|v| *v = v.max(0.0));
        (f, want)
    }
}

impl Pair {
    /// The first convolution by itself.
    fn alone(&self) -> OnnxFile {
        let (first, middle) = (&self.convs[0], self.places()[0]);
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [first.channels[0], self.extent[0], self.extent[1]], false);
        first.node(&mut f, "first", "x", "y");
        declare(&mut f, "y", [first.channels[1], middle[0], middle[1]], true);
        f
    }
    /// Both as stages of the cost model.
    fn stages(&self) -> Vec<Stage> {
        let extents = [self.extent, self.places()[0]];
        let stage = |(c, extent): (&Conv, [usize; 2])| Stage {
            name: "conv".into(),
            channels: c.channels.map(|n| n as u64),
            groups: 1,
            axes: [0, 1].map(|a| Axis {
                extent: extent[a] as u64,
                taps: c.kernel[a] as u64,
                stride: c.stride[a] as u64,
                dilation: c.dilation[a] as u64,
                padding: [c.pads[a] as u64, c.pads[a + 2] as u64],
            }),
            weights: c.weight.len() as u64,
        };
        self.convs.iter().zip(extents).map(stage).collect()
    }
}

fn forced() -> FusionOptions {
    FusionOptions { force_chains: true, ..FusionOptions::default() }
}

fn apart() -> FusionOptions {
    let mut o = FusionOptions::default();
    assert!(o.switch_off("conv-chain"));
    o
}

fn bytes(m: &LoadedModel, batch: u64) -> u64 {
    let at: Vec<u64> = m.plan.sizes.iter().map(|_| batch).collect();
    m.plan.report.phases[0].regions.iter().map(|r| m.plan.eval(&r.activation_bytes, &at).unwrap()).sum()
}

/// What the access counters of the CPU backend see of a plan's only launch is what its index maps predict: elements read and
/// written of each argument, each once.
fn touched_by(m: &LoadedModel, t: &frit::Tensor, batch: u64) -> Vec<(String, [u64; 2])> {
    let plan = &m.plan;
    let at: Vec<u64> = plan.sizes.iter().map(|_| batch).collect();
    let mut e = CpuExecutor::bind(plan.clone(), &*m.weights, &Extent(at.clone()), &mut |_, _| {}).unwrap();
    e.count_accesses();
    e.run(0, &at, &[t], &[]).unwrap();
    let seen = e.take_accesses();
    assert_eq!(seen.len(), 1);
    let spec = &plan.kernels[plan.programs[0].steps[0].kernel as usize].spec;
    let each = spec.args.iter().zip(touched(spec, &Bounds::new())).enumerate().map(|(k, (arg, want))| {
        let [read, written] = [&want.read, &want.written].map(|d| plan.eval(d, &at).unwrap());
        let found = [seen[0].read[k], seen[0].written[k]];
        assert_eq!(found[1], written, "{}", arg.name);
        assert!(found[0] == read || (want.at_most && found[0] < read), "{}: {read}", arg.name);
        (arg.name.clone(), found)
    });
    each.collect()
}

/// Bytes of all of them.
fn counted(m: &LoadedModel, t: &frit::Tensor, batch: u64) -> u64 {
    4 * touched_by(m, t, batch).iter().flat_map(|(_, both)| both).sum::<u64>()
}

/// One launch in place of two on all targets, the values between in no buffer: strides, dilation, padding on one side, odd
/// extents, several tiles, channels that are no multiple of anything, two images; against loops in float64.
#[test]
fn row_12_two_convolutions_are_one_kernel() {
    let mut r = Random::new(12);
    let (one, same) = ([1; 2], [1; 4]);
    let square = [[3, 3], [3, 3]];
    let cases = [
        Pair::new(&mut r, [3, 8, 6], square, [13, 9], Between::Relu).with(0, one, one, same).with(1, one, one, same),
        Pair::new(&mut r, [2, 5, 70], square, [19, 21], Between::NormSigmoid)
            .with(0, one, one, same)
            .with(1, one, one, same),
        Pair::new(&mut r, [4, 9, 7], square, [18, 15], Between::NormSigmoid).with(0, [2, 1], one, [1, 0, 0, 2]).with(
            1,
            [2, 2],
            one,
            [0, 2, 1, 0],
        ),
        Pair::new(&mut r, [3, 4, 5], [[1, 5], [5, 2]], [14, 16], Between::Relu).with(1, [1, 3], [2, 1], [3, 0, 1, 1]),
        Pair::new(&mut r, [6, 37, 17], [[1, 1], [3, 3]], [9, 10], Between::Nothing).with(1, one, one, same),
        Pair::new(&mut r, [5, 6, 9], [[1, 3], [2, 4]], [2, 150], Between::NormSigmoid)
            .with(0, one, one, [0, 1, 0, 1])
            .with(1, [1, 2], one, [0, 1, 0, 2]),
    ];
    for (n, pair) in cases.iter().enumerate() {
        let [first, second] = &pair.convs;
        let [middle, places] = pair.places();
        let what = format!("{n}: {:?} and {:?} over {:?}", first.kernel, second.kernel, pair.extent);
        let batch = 2;
        let (t, x) = input(&mut r, batch, first.channels[0], pair.extent);
        let (f, want) = pair.build(&mut r, batch, &x);
        let chained = compiled(&f, forced());
        assert_eq!(launches(&chained).len(), 1, "{what}: {:?}", launches(&chained));
        assert!(matches!(chained.plan.kernels[0].spec.anchor, Anchor::ConvChain(_)), "{what}");
        close(&chained, &t, &want, &what);
        verified(&chained);
        assembled(&chained, &what);
        let two = compiled(&f, apart());
        assert_eq!(launches(&two).len(), 2, "{what}: {:?}", launches(&two));
        close(&two, &t, &want, &what);
        // The ledger loses what lies between, written and read, and the launch moves no more than it says.
        let between = 8 * batch * first.channels[1] * middle[0] * middle[1];
        let saved = bytes(&two, batch as u64) - bytes(&chained, batch as u64);
        assert!(saved as usize <= between, "{what}: {saved} B of {between} B");
        let moved = counted(&chained, &t, batch as u64);
        let whole = |c: &Conv| c.weight.len() + c.channels[1];
        let outside = batch * (x.len() / batch + second.channels[1] * places[0] * places[1]);
        assert!(moved as usize <= 4 * (outside + whole(first) + whole(second) + 4 * first.channels[1]), "{what}");
    }
}

/// Both assemblers take every CUDA text, for the oldest and the newest GPU of theirs, without spills.
fn assembled(m: &LoadedModel, what: &str) {
    let texts = m.plan.kernels.iter().flat_map(|k| &k.variants).filter(|v| v.tier == Tier::Cuda);
    let texts: Vec<_> = texts.collect();
    assert!(!texts.is_empty(), "{what}");
    for v in texts {
        let own = v.architecture.unwrap().name();
        for (tool, gpu) in [(Ptxas::find(), own), (Ptxas::find(), "sm_120"), (Ptxas::find_older(), own)] {
            tool.try_assemble(&v.text, gpu).unwrap_or_else(|e| panic!("{what}, for {gpu}: {e}"));
        }
    }
}

/// Where every value is reached, exactly what lies between is saved, and counted bytes are input, weights and output.
#[test]
fn row_12_what_lies_between_is_not_moved() {
    let mut r = Random::new(121);
    let pair = Pair::new(&mut r, [4, 8, 8], [[3, 3], [3, 3]], [14, 10], Between::Relu);
    let pair = pair.with(0, [1; 2], [1; 2], [1; 4]).with(1, [1; 2], [1; 2], [1; 4]);
    let (t, x) = input(&mut r, 2, 4, [14, 10]);
    let (f, _) = pair.build(&mut r, 2, &x);
    let (chained, two) = (compiled(&f, forced()), compiled(&f, apart()));
    assert_eq!(bytes(&two, 2) - bytes(&chained, 2), 2 * 4 * 2 * 8 * 14 * 10);
    let weights = 9 * 8 * (4 + 8) + 2 * 8;
    assert_eq!(counted(&chained, &t, 2), 4 * (2 * (4 + 8) * 14 * 10 + weights));
    let report = &chained.plan.report.phases[0];
    assert_eq!((report.regions[0].kind.as_str(), report.regions[0].class.as_str()), ("conv_chain", "REASSOC"));
}

/// The cost model takes chains of few channels and refuses others with its numbers; modes, switches and other readers of
/// what lies between keep the convolutions apart. T4: one convolution is no chain, and of three two are one.
#[test]
fn row_12_chains_are_taken_where_they_pay() {
    let mut r = Random::new(122);
    let same = |p: Pair| p.with(0, [1; 2], [1; 2], [1; 4]).with(1, [1; 2], [1; 2], [1; 4]);
    let mut file = |channels: usize, extent: usize| {
        let pair = same(Pair::new(&mut r, [channels; 3], [[3, 3]; 2], [extent; 2], Between::Relu));
        let (_, x) = input(&mut r, 1, channels, [extent; 2]);
        pair.build(&mut r, 1, &x).0
    };
    let (small, large) = (file(4, 64), file(96, 16));
    let cards = FusionOptions { tiers: vec![Tier::Gpu, Tier::Cuda], ..FusionOptions::default() };
    assert_eq!(launches(&compiled(&small, cards.clone())).len(), 1);
    let refused = |m: &LoadedModel| {
        let phase = &m.plan.report.phases[0];
        phase.refused.iter().find(|e| e.code == "N-HALO").map(|e| e.detail.clone())
    };
    // Cores multiply slowly through workgroup memory, and the usual plan is for them too.
    for (f, options, tier) in [(&small, FusionOptions::default(), "cpu"), (&large, cards.clone(), "us")] {
        let m = compiled(f, options);
        assert_eq!(launches(&m).len(), 2);
        let detail = refused(&m).unwrap();
        assert!(detail.contains("values between again") && detail.contains(tier), "{detail}");
    }
    let strict = FusionOptions { numeric: NumericMode::Strict, ..forced() };
    assert_eq!(launches(&compiled(&small, strict)).len(), 2);
    // What lies between is an output too.
    let pair = same(Pair::new(&mut r, [3, 4, 5], [[3, 3]; 2], [7, 6], Between::Relu));
    let (_, x) = input(&mut r, 1, 3, [7, 6]);
    let (mut f, _) = pair.build(&mut r, 1, &x);
    declare(&mut f, "b", [4, 7, 6], true);
    assert_eq!(launches(&compiled(&f, forced())).len(), 2);
    // One and three.
    for (n, want) in [(1, 1), (3, 2)] {
        let mut f = OnnxFile::default();
        declare(&mut f, "x", [4, 9, 9], false);
        let mut conv = Conv::new(&mut r, [4, 4], 1, [3, 3]);
        conv.pads = [1; 4];
        conv.weight.iter_mut().for_each(|w| *w *= 0.2);
        let (t, x) = input(&mut r, 2, 4, [9, 9]);
        let (mut at, mut want_values) = ("x".to_owned(), x);
        for i in 0..n {
            let next = if i + 1 == n { "y".to_owned() } else { format!("v{i}") };
            conv.node(&mut f, &format!("c{i}"), &at, &next);
            want_values = conv.apply(&want_values, 2, [9, 9]);
            at = next;
        }
        declare(&mut f, "y", [4, 9, 9], true);
        let m = compiled(&f, forced());
        assert_eq!(launches(&m).len(), want, "{n} convolutions: {:?}", launches(&m));
        close(&m, &t, &want_values, &format!("{n} convolutions"));
    }
}

/// Bytes that all loads and stores of a plan's only launch move under the checking interpreter, repetitions included.
fn executed(m: &LoadedModel, t: &frit::Tensor, batch: u64, tier: Tier) -> u64 {
    let plan = &m.plan;
    let at: Vec<u64> = plan.sizes.iter().map(|_| batch).collect();
    let backend = SimtBackend::new(tier, None);
    let mut e = backend.bind(plan.clone(), &*m.weights, &Extent(at.clone()), &mut |_, _| {}).unwrap();
    e.run(0, &at, &[t], &[]).unwrap();
    let [kernel] = &backend.checks().kernels()[..] else { panic!("one kernel") };
    assert_eq!((kernel.launches, kernel.violations.len()), (1, 0), "{:?}", kernel.violations);
    kernel.bytes
}

/// The same by the kernel's loops: what its schedule says of tiles and channels, in words. Weights that lie in textures come
/// four words at a time; shaders read where a value begins from a record with each access, and every invocation the batch.
fn predicted(pair: &Pair, m: &LoadedModel, batch: u64, tier: Tier) -> u64 {
    let schedule = &m.plan.kernels[0].variant(tier).unwrap().schedule;
    assert_eq!(schedule.template, "conv_chain");
    let tile = |name: &str| schedule.tile.iter().find(|(n, _)| n == name).map(|(_, v)| u64::from(*v)).unwrap();
    let [first, second] = &pair.convs;
    let channels = first.channels[1] as u64;
    let (n, [rows, columns]) = (second.channels[1] as u64, pair.places()[1].map(|p| p as u64));
    let tiles = rows.div_ceil(tile("rows")) * columns.div_ceil(tile("columns"));
    let (blocks, slices) = (n.div_ceil(tile("channels")), channels.div_ceil(tile("between")));
    let groups = batch * blocks * tiles;
    let invocations = u64::from(schedule.workgroup[0]);
    let teams = invocations / (tile("rows") * tile("columns"));
    let (taps, depth) = (second.kernel[0] * second.kernel[1], first.channels[0] * first.kernel[0] * first.kernel[1]);
    // Values between: each team reads all of a window for its channels, and their bias.
    let between = groups * slices * tile("halo");
    let read = between * teams * depth as u64;
    let up = between * tile("between") * depth as u64;
    let bias = between * tile("between");
    // Sums: an invocation reads the weights of its channels for each value between.
    let down = groups * channels * taps as u64 * tile("rows") * tile("columns") * tile("channels");
    let stored = batch * n * rows * columns;
    let (texel, record) = match tier {
        Tier::Cpu => (4, between * teams + bias + 2 * stored),
        Tier::Gpu => (1, between * teams + bias + 2 * stored),
        Tier::Cuda => (1, 0),
    };
    4 * (read + texel * (up + down) + bias + 2 * stored + record + groups * invocations)
}

/// Counted = predicted, exactly, for fused kernels under the interpreter, on every target: all that their texts load and
/// store. And what the model of chains says of feature maps, each element once, is what the access counters see of the one
/// kernel, as long as the second windows leave no gaps (a kernel computes those too); of two kernels it is never less. T4:
/// of one convolution, the same.
#[test]
fn row_14_convfusion_predicts_what_kernels_access() {
    let mut r = Random::new(14);
    let (one, same) = ([1; 2], [1; 4]);
    let square = [[3, 3], [3, 3]];
    let cases = [
        Pair::new(&mut r, [4, 8, 8], square, [14, 10], Between::Relu).with(0, one, one, same).with(1, one, one, same),
        Pair::new(&mut r, [3, 5, 70], square, [9, 21], Between::Relu).with(0, one, one, same).with(1, one, one, same),
        Pair::new(&mut r, [2, 37, 17], [[1, 1], [3, 3]], [9, 10], Between::Nothing),
        Pair::new(&mut r, [4, 9, 7], square, [18, 15], Between::Relu).with(0, [2, 1], one, [1, 0, 0, 2]).with(
            1,
            [2, 2],
            one,
            [0, 2, 1, 0],
        ),
        Pair::new(&mut r, [3, 4, 5], [[1, 5], [5, 2]], [14, 16], Between::Relu).with(1, [1, 3], [2, 1], [3, 0, 1, 1]),
        Pair::new(&mut r, [2, 3, 4], [[1, 2], [2, 1]], [11, 13], Between::Relu).with(0, [3, 1], one, [0; 4]),
    ];
    for (n, pair) in cases.iter().enumerate() {
        let (what, batch) = (format!("{n}: {:?}", pair.extent), 2);
        let (t, x) = input(&mut r, batch, pair.convs[0].channels[0], pair.extent);
        let (f, _) = pair.build(&mut r, batch, &x);
        let (chained, two) = (compiled(&f, forced()), compiled(&f, apart()));
        let batch = batch as u64;
        for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
            let (got, want) = (executed(&chained, &t, batch, tier), predicted(pair, &chained, batch, tier));
            assert_eq!(got, want, "{what} {}", tier.name());
        }
        let chain = pair.stages();
        let whole = |stages: std::ops::Range<usize>| {
            let tile = chain[stages.end - 1].places();
            cost(&chain, &Group { stages, tile, overlap: Overlap::Recompute })
        };
        let together = whole(0..2);
        let seen = touched_by(&chained, &t, batch);
        let maps = |outputs: usize| 4 * seen.iter().map(|(_, both)| both[outputs]).sum::<u64>();
        let [x_read] = seen.iter().filter(|(name, _)| name == "x").map(|(_, both)| 4 * both[0]).collect::<Vec<_>>()[..]
        else {
            panic!("{what}: {seen:?}")
        };
        assert_eq!((x_read, maps(1)), (batch * together.read_bytes, batch * together.written_bytes), "{what}");
        let apart = [whole(0..1), whole(1..2)].iter().map(|c| batch * c.traffic_bytes()).sum::<u64>();
        assert!(batch * together.traffic_bytes() <= apart, "{what}");
        assert!(bytes(&chained, batch) <= bytes(&two, batch), "{what}");
        // One convolution by itself: the model and the counters.
        let alone = pair.alone();
        let m = compiled(&alone, forced());
        let seen = touched_by(&m, &t, batch);
        let read = seen.iter().filter(|(name, _)| name == "x").map(|(_, both)| 4 * both[0]).sum::<u64>();
        let written = seen.iter().map(|(_, both)| 4 * both[1]).sum::<u64>();
        let model = whole(0..1);
        assert_eq!((read, written), (batch * model.read_bytes, batch * model.written_bytes), "{what}");
    }
}
