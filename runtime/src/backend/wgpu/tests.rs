//! Tiny hand-made plans with hand-written WGSL, run on whatever adapter there is.

use super::super::layout::{Home, Place};
use super::*;
use frit_kernels::dim::Dim;
use frit_kernels::dtype::Storage;
use frit_kernels::spec::{Anchor, Arg, Exprs, KernelSpec, MatmulPrecision, Space};
use frit_plan::{
    BufferRef, InputFill, Kernel, KvPart, KvSlotDecl, ModelInfo, Part, Port, Program, RopePart, Schedule, SizeDecl,
    SlotLayout, StateDecl, Step, Task, TensorData, ValueDecl, Variant, WeightDecl, WeightSource,
};
use half::f16;
use std::collections::HashMap;

fn d(text: &str) -> Dim {
    text.parse::<i64>().map_or_else(|_| Dim::size(text), Dim::constant)
}
fn dims(list: &[&str]) -> Vec<Dim> {
    list.iter().map(|t| d(t)).collect()
}

fn arg(name: &str, space: Space, storage: Storage, written: bool) -> Arg {
    Arg { name: name.into(), space, storage, len: d("B"), written, rounded: None }
}

/// A kernel with one invocation a workgroup and `B` workgroups.
fn kernel(name: &str, args: Vec<Arg>, wgsl: &str) -> Kernel {
    let spec = KernelSpec {
        name: name.into(),
        domain: vec![d("B")],
        anchor: Anchor::Map,
        few_rows: false,
        args,
        exprs: Exprs::default(),
        stores: Vec::new(),
        left: Vec::new(),
        columns: None,
        stats_over: None,
        partials: None,
        precision: MatmulPrecision::Auto,
        aliases: Vec::new(),
        sizes: Vec::new(),
    };
    let variant = |tier| Variant {
        tier,
        schedule: Schedule { template: "map".into(), workgroup: [1, 1, 1], tile: Vec::new() },
        grid: [d("B"), Dim::one(), Dim::one()],
        architecture: None,
        dynamic_shared_bytes: 0,
        text: wgsl.into(),
        matrices: Vec::new(),
    };
    Kernel { name: name.into(), spec, variants: vec![variant(Tier::Gpu)] }
}

fn value(name: &str, storage: Storage, shape: &[&str], slot: u32) -> ValueDecl {
    ValueDecl { name: name.into(), storage, shape: dims(shape), slot, live: (0, 9) }
}
fn port(name: &str, storage: Storage, shape: &[&str], buffer: BufferRef) -> Port {
    Port { name: name.into(), storage, shape: dims(shape), buffer, fill: InputFill::Required }
}
fn step(kernel: u32, args: &[BufferRef]) -> Step {
    Step { kernel, args: args.to_vec(), label: format!("step of kernel {kernel}"), when: None }
}
fn slots(sizes: &[&str]) -> SlotLayout {
    SlotLayout { sizes: dims(sizes) }
}

fn plan(kernels: Vec<Kernel>, programs: Vec<Program>) -> Plan {
    let size = |name: &str| SizeDecl { name: name.into(), min: 0, max: None };
    Plan {
        version: frit_plan::PLAN_VERSION,
        compiler: "test".into(),
        model: ModelInfo {
            name: "m".into(),
            architecture: "m".into(),
            task: Task::Graph,
            layers: 0,
            context: 0,
            vocab: 0,
            eos: Vec::new(),
            bos: None,
            source_vocab: 0,
            start: Vec::new(),
            tokenizer: None,
            cache_obstacle: None,
            retention: None,
            passes: None,
            rules: Default::default(),
            chat: None,
        },
        sizes: vec![size("B"), size("T")],
        weights: Vec::new(),
        kv_slots: Vec::new(),
        states: Vec::new(),
        kernels,
        programs,
        report: Default::default(),
    }
}
fn program(name: &str) -> Program {
    Program {
        name: name.into(),
        fixed: Vec::new(),
        at_most: Vec::new(),
        limits: Vec::new(),
        instead: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        values: Vec::new(),
        arena: SlotLayout::default(),
        ints: SlotLayout::default(),
        steps: Vec::new(),
    }
}

struct Tensors(HashMap<&'static str, TensorData>);
impl TensorSource for Tensors {
    fn read(&self, tensor: &str) -> std::result::Result<TensorData, Box<dyn std::error::Error + Send + Sync>> {
        self.0.get(tensor).cloned().ok_or_else(|| format!("no tensor `{tensor}`").into())
    }
}
fn nothing() -> Tensors {
    Tensors(HashMap::new())
}

fn backend() -> WgpuBackend {
    WgpuBackend::new(&Selection::Best).unwrap()
}
fn bind(b: &WgpuBackend, plan: Plan, source: &Tensors, extent: &[u64]) -> Result<Box<dyn Executor>> {
    let programs = plan.programs.len();
    let mut e = b.bind(Arc::new(plan), source, &Extent(extent.to_vec()), &mut |_, _| {})?;
    (0..programs).try_for_each(|p| e.prepare(p))?;
    Ok(e)
}

const V: fn(u32) -> BufferRef = BufferRef::Value;

/// Offset of spec argument `i` as WGSL.
const OFFSET: &str = "fn at(i: u32) -> u32 { return record[i / 4u][i % 4u]; }\n";

/// y = x + c with x, y in the arena; c counts from 1 by step.
fn add_kernel(name: &str, c: f32) -> Kernel {
    let wgsl = format!(
        "@group(0) @binding(0) var<storage, read_write> arena: array<f32>;
@group(0) @binding(1) var<uniform> record: array<vec4<u32>, 1>;
@group(0) @binding(2) var<uniform> sizes: array<vec4<u32>, 4>;
{OFFSET}
@compute @workgroup_size(1) fn main(@builtin(workgroup_id) g: vec3<u32>) {{
  if (g.x < sizes[0].x) {{ arena[at(1u) + g.x] = arena[at(0u) + g.x] + {c:?}f; }}
}}"
    );
    let args = vec![arg("x", Space::Arena, Storage::F32, false), arg("y", Space::Arena, Storage::F32, true)];
    kernel(name, args, &wgsl)
}

/// Two steps: z = (x + 1) + 2.
fn add_plan() -> Plan {
    let mut p = program("forward");
    p.values = ["x", "y", "z"].iter().zip(0..).map(|(n, i)| value(n, Storage::F32, &["B"], i)).collect();
    p.arena = slots(&["B", "B", "B"]);
    p.inputs = vec![port("x", Storage::F32, &["B"], V(0))];
    p.outputs = vec![port("y", Storage::F32, &["B"], V(1)), port("z", Storage::F32, &["B"], V(2))];
    p.steps = vec![step(0, &[V(0), V(1)]), step(1, &[V(1), V(2)])];
    let mut warm = p.clone();
    warm.name = "again".into();
    warm.inputs.clear();
    plan(vec![add_kernel("add_one", 1.0), add_kernel("add_two", 2.0)], vec![p, warm])
}

#[test]
fn two_steps_see_each_other_and_only_wanted_outputs_come_back() {
    let mut e = bind(&backend(), add_plan(), &nothing(), &[100, 1]).unwrap();
    let x = Tensor::f32(&[3], vec![1., 2., 3.]).unwrap();
    let out = e.run(0, &[3, 1], &[&x], &[1]).unwrap();
    assert_eq!(out, [Tensor::f32(&[3], vec![4., 5., 6.]).unwrap()]);
    assert_eq!(e.counters().read_bytes, 12);
    let out = e.run(0, &[3, 1], &[&x], &[1, 0]).unwrap();
    assert_eq!(out[1].as_f32().unwrap(), [2., 3., 4.]);
    assert!(e.run(0, &[3, 1], &[&x], &[]).unwrap().is_empty());
    assert!(e.run(0, &[3, 1], &[&x], &[]).unwrap().is_empty());
    assert_eq!(e.run(0, &[3, 1], &[&x], &[0]).unwrap()[0].as_f32().unwrap(), [2., 3., 4.]);
}

#[test]
fn a_second_run_creates_nothing_and_submits_once() {
    let mut e = bind(&backend(), add_plan(), &nothing(), &[100, 9]).unwrap();
    let x = Tensor::f32(&[1], vec![1.]).unwrap();
    e.run(0, &[1, 1], &[&x], &[0]).unwrap();
    e.run(1, &[1, 1], &[], &[0]).unwrap();
    for t in 2..5 {
        let before = e.counters();
        let out = e.run(1, &[1, t], &[], &[1]).unwrap();
        assert_eq!(out[0].as_f32().unwrap(), [4.]);
        let after = e.counters();
        let want = Counters {
            dispatches: before.dispatches + 2,
            submits: before.submits + 1,
            passes: before.passes + 1,
            writes: before.writes + 1,
            read_bytes: before.read_bytes + 4,
            ..before
        };
        assert_eq!(after, want);
    }
    let before = e.counters();
    e.run(1, &[1, 4], &[], &[1]).unwrap();
    assert_eq!(e.counters().writes, before.writes, "unchanged sizes are not written again");
    let wide = Tensor::f32(&[100], vec![1.; 100]).unwrap();
    e.run(0, &[100, 4], &[&wide], &[0, 1]).unwrap();
    let after = e.counters();
    assert_eq!(
        (after.buffers, after.bind_groups, after.pipelines),
        (before.buffers, before.bind_groups, before.pipelines),
        "larger sizes within the extent need nothing new"
    );
}

#[test]
fn an_empty_grid_is_skipped() {
    let mut e = bind(&backend(), add_plan(), &nothing(), &[4, 4]).unwrap();
    let x = Tensor::f32(&[0], vec![]).unwrap();
    let out = e.run(0, &[0, 1], &[&x], &[1]).unwrap();
    assert_eq!(out[0].shape(), [0]);
    assert_eq!(e.counters().dispatches, 0);
}

/// Integers, a state and a cache slot: k[i] = ids[i], v[i] = mask[i]; then out[i] = 10·k[i] + v[i].
fn cache_plan() -> Plan {
    let ints = "@group(0) @binding(0) var<storage, read_write> ints: array<i32>;\n";
    let tail = format!(
        "@group(0) @binding(2) var<uniform> record: array<vec4<u32>, 1>;
@group(0) @binding(3) var<uniform> sizes: array<vec4<u32>, 4>;
{OFFSET}"
    );
    let append = format!(
        "{ints}@group(0) @binding(1) var<storage, read_write> kv: array<f32>;
{tail}
@compute @workgroup_size(1) fn main(@builtin(workgroup_id) g: vec3<u32>) {{
  kv[at(2u) + g.x] = f32(ints[at(0u) + g.x]);
  kv[at(3u) + g.x] = f32(ints[at(1u) + g.x]);
  ints[at(0u) + g.x] += 1;
}}"
    );
    let read = format!(
        "@group(0) @binding(0) var<storage, read> kv: array<f32>;
@group(0) @binding(1) var<storage, read_write> arena: array<f32>;
{tail}
@compute @workgroup_size(1) fn main(@builtin(workgroup_id) g: vec3<u32>) {{
  arena[at(2u) + g.x] = 10.0 * kv[at(0u) + g.x] + kv[at(1u) + g.x];
}}"
    );
    let (k, v) = (BufferRef::Kv { slot: 1, part: KvPart::K }, BufferRef::Kv { slot: 1, part: KvPart::V });
    let mut p = program("forward");
    p.values = vec![
        value("ids", Storage::I32, &["B"], 0),
        value("more", Storage::I32, &["B"], 1),
        value("out", Storage::F32, &["B"], 0),
    ];
    p.arena = slots(&["B"]);
    p.ints = slots(&["B", "B"]);
    p.inputs = vec![port("ids", Storage::I32, &["B"], V(0)), port("more", Storage::I32, &["B"], V(1))];
    p.outputs = vec![
        port("out", Storage::F32, &["B"], V(2)),
        port("ids", Storage::I32, &["B"], V(0)),
        port("mask", Storage::Bool, &["B"], BufferRef::State(1)),
        port("v", Storage::F32, &["B"], v),
    ];
    p.steps = vec![step(0, &[V(0), BufferRef::State(1), k, v]), step(1, &[k, v, V(2)])];
    let kv = |name, written| arg(name, Space::Kv(0), Storage::F32, written);
    let mut plan = plan(
        vec![
            kernel(
                "append",
                vec![
                    arg("ids", Space::Ints, Storage::I32, true),
                    arg("mask", Space::Ints, Storage::Bool, false),
                    kv("k", false),
                    kv("v", true),
                ],
                &append,
            ),
            kernel(
                "read_cache",
                vec![kv("k", false), kv("v", false), arg("out", Space::Arena, Storage::F32, true)],
                &read,
            ),
        ],
        vec![p],
    );
    plan.kv_slots = ["layer0", "layer1"]
        .map(|n| KvSlotDecl { name: n.into(), k_shape: dims(&["B", "T"]), v_shape: dims(&["B", "T"]) })
        .into();
    plan.states =
        ["next", "mask"].map(|n| StateDecl { name: n.into(), storage: Storage::Bool, shape: dims(&["B"]) }).into();
    plan
}

#[test]
fn integers_states_and_cache_slots_lie_where_kernels_look() {
    let mut e = bind(&backend(), cache_plan(), &nothing(), &[5, 7]).unwrap();
    e.write_state(1, &[2, 7], &[1, 0]).unwrap();
    let ids = Tensor::i32(&[2], vec![3, 4]).unwrap();
    let before = e.counters();
    let out = e.run(0, &[2, 7], &[&ids, &ids], &[0, 1, 2, 3]).unwrap();
    assert_eq!(e.counters().writes, before.writes + 2, "sizes, and both inputs at once");
    assert_eq!(out[0].as_f32().unwrap(), [31., 40.]);
    assert_eq!(out[1].as_i32().unwrap(), [4, 5]);
    assert_eq!(out[2].as_i32().unwrap(), [1, 0]);
    assert_eq!(out[3].as_f32().unwrap(), [1., 0.]);
    assert_eq!(e.memory_bytes()[1], 2 * 2 * 64 * 4);
    let err = e.write_state(1, &[2, 7], &[1]).unwrap_err().to_string();
    assert!(err.contains("`mask`"), "{err}");
}

/// out[i] = half[i]·1000 + q[i] + side[i] + rope[i].
fn weight_plan() -> Plan {
    let wgsl = format!(
        "@group(0) @binding(0) var<storage, read> half: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> side: array<f32>;
@group(0) @binding(3) var<storage, read_write> arena: array<f32>;
@group(0) @binding(4) var<uniform> record: array<vec4<u32>, 2>;
@group(0) @binding(5) var<uniform> sizes: array<vec4<u32>, 4>;
{OFFSET}
@compute @workgroup_size(1) fn main(@builtin(workgroup_id) g: vec3<u32>) {{
  let i = g.x;
  let h = unpack2x16float(half[i / 2u])[i % 2u];
  let word = q[0][(i % 16u) / 4u];
  let quant = (word >> (8u * (i % 4u) + 4u * (i / 16u))) & 15u;
  let scale = unpack2x16float(q[1].x).x;
  let w = (f32(quant) - 8.0) * scale;
  arena[at(4u) + i] = h * 1000.0 + w + side[at(2u) + i] + side[at(3u) + i];
}}"
    );
    let args = vec![
        arg("half", Space::Weight, Storage::F16, false),
        arg("q", Space::Weight, Storage::Q4_0, false),
        arg("side", Space::Side, Storage::F32, false),
        arg("rope", Space::Side, Storage::F32, false),
        arg("out", Space::Arena, Storage::F32, true),
    ];
    let mut p = program("forward");
    p.values = vec![value("out", Storage::F32, &["B"], 0)];
    p.arena = slots(&["B"]);
    p.outputs = vec![port("out", Storage::F32, &["B"], V(0))];
    let w = BufferRef::Weight;
    p.steps = vec![step(0, &[w(1), w(2), w(3), w(0), V(0)])];
    let mut plan = plan(vec![kernel("weights", args, &wgsl)], vec![p]);
    let weight = |name: &str, storage, shape: &[&str], placement, source| WeightDecl {
        name: name.into(),
        storage,
        shape: dims(shape),
        placement,
        source,
    };
    let part = |t: &str| WeightSource::Parts(vec![Part { tensor: t.into(), transpose: false, rows: None }]);
    let rope = WeightSource::Rope { inv_freq: vec![0.25], scale: 1.0, part: RopePart::Cos };
    plan.weights = vec![
        weight("rope", Storage::F32, &["T", "1"], Placement::Side, rope),
        weight("half", Storage::F16, &["5"], Placement::Own, part("half")),
        weight("q", Storage::Q4_0, &["1", "32"], Placement::Own, part("q")),
        weight("gain", Storage::F16, &["32"], Placement::Side, part("gain")),
    ];
    plan
}

fn weight_tensors() -> Tensors {
    let halves = |v: &[f32]| v.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect::<Vec<u8>>();
    let mut block = halves(&[0.5]);
    block.extend((0..16u8).map(|i| i | ((15 - i) << 4)));
    let gain: Vec<f32> = (0..32).map(|i| i as f32 * 0.125).collect();
    let plain = |shape: u64, bytes| TensorData { storage: Storage::F16, shape: vec![shape], bytes };
    Tensors(HashMap::from([
        ("half", plain(5, halves(&[1., 2., 3., 4., 5.]))),
        ("q", TensorData { storage: Storage::Q4_0, shape: vec![1, 32], bytes: block }),
        ("gain", plain(32, halves(&gain))),
    ]))
}

fn weight_result(n: usize) -> Vec<f32> {
    let one = |i: usize| {
        let w = (i as f32 - 8.0) * 0.5;
        (i + 1) as f32 * 1000.0 + w + i as f32 * 0.125 + (i as f64 * 0.25).cos() as f32
    };
    (0..n).map(one).collect()
}

#[test]
fn weights_reach_kernels_in_their_device_layout() {
    let (mut last, mut calls) = ((0, 0), 0);
    let mut e = backend()
        .bind(Arc::new(weight_plan()), &weight_tensors(), &Extent(vec![5, 5]), &mut |done, all| {
            assert!(done <= all && done >= last.0);
            (last, calls) = ((done, all), calls + 1);
        })
        .unwrap();
    assert!(calls > 0 && last.0 <= last.1);
    assert_eq!(e.memory_bytes()[0], 16 + 32 + 2 * 64 * 4);
    let out = e.run(0, &[5, 5], &[], &[0]).unwrap();
    for (a, b) in out[0].as_f32().unwrap().iter().zip(weight_result(5)) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

#[test]
fn a_resize_keeps_weights_and_makes_rotary_tables_longer() {
    let mut e = bind(&backend(), weight_plan(), &weight_tensors(), &[2, 2]).unwrap();
    e.run(0, &[2, 2], &[], &[0]).unwrap();
    assert!(matches!(e.run(0, &[5, 2], &[], &[0]), Err(Error::Limit { wanted: 5, limit: 2, .. })));
    let pipelines = e.counters().pipelines;
    e.resize(&Extent(vec![5, 100])).unwrap();
    assert_eq!(e.counters().pipelines, pipelines);
    let out = e.run(0, &[5, 100], &[], &[0]).unwrap();
    for (a, b) in out[0].as_f32().unwrap().iter().zip(weight_result(5)) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let e = bind(&backend(), weight_plan(), &nothing(), &[2, 2]).err().unwrap();
    assert!(matches!(&e, Error::Weight { weight, .. } if weight == "half"), "{e}");
}

#[test]
fn invalid_text_is_a_kernel_error() {
    for (wgsl, tells) in [
        ("fn main( {", "expected"),
        ("@compute @workgroup_size(1) fn other() {}", "main"),
        (
            "@group(0) @binding(0) var<storage, read> a: array<f32>; @compute @workgroup_size(1) fn main() { _ = a[0]; }",
            "",
        ),
    ] {
        let mut plan = add_plan();
        for v in plan.kernels.get_mut(1).unwrap().variants.iter_mut() {
            v.text = wgsl.into();
        }
        let b = backend();
        match bind(&b, plan, &nothing(), &[4, 4]).err() {
            Some(Error::Kernel { kernel, reason, .. }) => {
                assert_eq!(kernel, "add_two");
                assert!(reason.contains(tells), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        bind(&b, add_plan(), &nothing(), &[4, 4]).unwrap();
    }
}

#[test]
fn wrong_bindings_are_plan_errors() {
    let mut plan = cache_plan();
    plan.programs[0].steps[1].args[2] = V(0);
    let e = bind(&backend(), plan, &nothing(), &[4, 4]).err().unwrap();
    assert!(matches!(&e, Error::Plan(text) if text.contains("`out`")), "{e}");
    let mut plan = cache_plan();
    plan.programs[0].steps[1].args[1] = BufferRef::Kv { slot: 0, part: KvPart::V };
    let e = bind(&backend(), plan, &nothing(), &[4, 4]).err().unwrap();
    assert!(matches!(e, Error::Plan(_)), "{e}");
}

#[test]
fn inputs_and_sizes_are_checked_before_anything_is_sent() {
    let mut p = add_plan();
    p.programs[0].at_most = vec![("B".into(), 3)];
    p.programs[0].fixed = vec![("T".into(), 1)];
    let mut e = bind(&backend(), p, &nothing(), &[100, 9]).unwrap();
    let x = Tensor::f32(&[2], vec![0.; 2]).unwrap();
    let before = e.counters();
    assert!(matches!(e.run(0, &[4, 1], &[&x], &[]), Err(Error::Limit { wanted: 4, limit: 3, .. })));
    assert!(matches!(e.run(0, &[2, 2], &[&x], &[]), Err(Error::Shape { .. })));
    assert!(matches!(e.run(0, &[3, 1], &[&x], &[]), Err(Error::Shape { .. })));
    assert!(matches!(e.run(0, &[2, 1], &[], &[]), Err(Error::Inputs(_))));
    let ints = Tensor::i32(&[2], vec![0; 2]).unwrap();
    assert!(matches!(e.run(0, &[2, 1], &[&ints], &[]), Err(Error::Shape { .. })));
    assert_eq!(e.counters(), before);
    e.run(0, &[2, 1], &[&x], &[0]).unwrap();
}

#[test]
fn memory_is_counted_before_it_is_taken() {
    let b = backend().with_memory_limit(10_000);
    let e = bind(&b, cache_plan(), &nothing(), &[1000, 1000]).err().unwrap();
    assert!(matches!(e, Error::Limit { limit: 10_000, .. }), "{e}");
    bind(&b, cache_plan(), &nothing(), &[2, 2]).unwrap();
    let mut plan = weight_plan();
    plan.weights[2].shape = dims(&["4294967296", "32"]);
    let e = bind(&backend(), plan, &nothing(), &[2, 2]).err().unwrap().to_string();
    assert!(e.contains("`q`") && e.contains("exceeds"), "{e}");
}

/// Drivers that work inside the submission never let a wait run into its timeout, so that the answer is put in place of
/// the driver's.
#[test]
fn a_submission_that_takes_too_long_is_a_device_error() {
    let b = backend().with_timeout(Duration::from_millis(20));
    let mut e = bind(&b, add_plan(), &nothing(), &[4, 4]).unwrap();
    b.gpu.stalled.store(true, std::sync::atomic::Ordering::Relaxed);
    let x = Tensor::f32(&[2], vec![0.; 2]).unwrap();
    let err = e.run(0, &[2, 1], &[&x], &[1]).unwrap_err();
    assert!(matches!(&err, Error::Device(text) if text.contains("no answer within 0.02 s")), "{err}");
    assert!(matches!(e.run(0, &[2, 1], &[&x], &[1]), Err(Error::Device(_))), "a failed executor stays failed");
}

#[test]
fn a_lost_device_is_a_device_error() {
    let b = backend();
    let mut e = bind(&b, add_plan(), &nothing(), &[4, 4]).unwrap();
    let x = Tensor::f32(&[2], vec![0.; 2]).unwrap();
    b.gpu.lose();
    let err = e.run(0, &[2, 1], &[&x], &[1]).unwrap_err();
    assert!(matches!(err, Error::Device(_)), "{err}");
    assert!(matches!(e.resize(&Extent(vec![9, 9])), Err(Error::Device(_))));
    assert!(matches!(bind(&b, add_plan(), &nothing(), &[4, 4]), Err(Error::Device(_))));
}

#[test]
fn joined_inputs_keep_their_offsets() {
    let at = |home, offset| Place { home, offset, room: 64 };
    let t = Tensor::i32(&[2], vec![7, 8]).unwrap();
    let empty = Tensor::i32(&[0], vec![]).unwrap();
    let far = ports::writes(&[
        (at(Home::Ints, 5000), true, &t),
        (at(Home::Ints, 64), true, &t),
        (at(Home::Ints, 68), true, &t),
        (at(Home::Ints, 0), false, &t),
        (at(Home::Ints, 2), false, &t),
        (at(Home::Arena, 128), true, &empty),
    ]);
    let told: Vec<(u64, usize)> = far.iter().map(|w| (w.offset_bytes, w.bytes.len())).collect();
    assert_eq!(told, [(0, 16), (256, 24), (20000, 8)]);
    let ints: &[i32] = bytemuck::cast_slice(&far[1].bytes);
    assert_eq!(ints, [7, 8, 0, 0, 7, 8]);
}
