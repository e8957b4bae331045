//! The CUDA backend's own code on a driver that executes every launch with the checking interpreter: what it reserves,
//! binds, records, replays and caches, and what it makes of a driver that fails. No GPU is involved.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use frit::backend::cuda::{CudaBackend, Fault, Interpreted};
use frit::verify::{VerifyOptions, verify_on};
use frit::{BackendChoice, Error, GenerateOptions, LoadedModel, Result, Session, Tensor};
use frit_kernels::target::{Architecture, Capabilities};
use frit_plan::InputFill;
use std::ops::ControlFlow;
use std::sync::Arc;
use support::Random;

const ILLEGAL_ADDRESS: u32 = 700;
const OUT_OF_MEMORY: u32 = 2;

fn model(path: &str) -> LoadedModel {
    support::compile(&support::load(path))
}

fn bind(device: &Interpreted, model: &LoadedModel) -> Result<Session> {
    Session::builder().bind_on(&CudaBackend::interpreted(device)?, Arc::clone(&model.plan), &*model.weights)
}

fn on_cpu(model: &LoadedModel) -> Session {
    support::open(model, BackendChoice::Cpu)
}

fn generate(s: &mut Session, prompts: &[Vec<u32>], new: usize) -> Result<Vec<Vec<u32>>> {
    let how = GenerateOptions { max_new_tokens: new, ignore_eos: true, ..Default::default() };
    let done = s.generate(prompts, &how, &mut |_| ControlFlow::Continue(()))?;
    Ok(done.rows.into_iter().map(|r| r.tokens).collect())
}

fn prompts(lengths: &[u32]) -> Vec<Vec<u32>> {
    lengths.iter().map(|n| (0..*n).map(|i| (5 + i * 7 + n) % 97).collect()).collect()
}

fn assert_clean(device: &Interpreted) {
    let broken: Vec<_> = device.checks().into_iter().filter(|k| !k.violations.is_empty()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Decoders of the three families on one session each: one sequence, then three of unlike length, for which the session
/// lays its buffers out again, then as many tokens as the context holds.
#[test]
fn tokens_are_the_cpus() {
    for path in ["devset/llama_gqa", "devset/gpt2", "devset/qwen2"] {
        let model = model(path);
        let device = Interpreted::default();
        let (mut cuda, mut cpu) = (bind(&device, &model).unwrap(), on_cpu(&model));
        for (lengths, new) in [(&[6][..], 11), (&[9, 3, 5], 4), (&[1], 2)] {
            let given = prompts(lengths);
            let want = generate(&mut cpu, &given, new).unwrap();
            assert_eq!(generate(&mut cuda, &given, new).unwrap(), want, "{path} {lengths:?}");
        }
        let given = prompts(&[40, 40]);
        let (want, found) = (generate(&mut cpu, &given, 24), generate(&mut cuda, &given, 24));
        assert_eq!(found.unwrap(), want.unwrap(), "{path}, to the end of the context");
        assert_clean(&device);
        drop(cuda);
        assert_eq!(device.live_bytes(), 0, "{path}: everything is given back");
    }
}

/// Tensors in, tensors out, for encoders and for weights that matrix units round (see `verify.rs` for the bound).
#[test]
fn outputs_are_the_cpus() {
    for (path, tolerance) in [
        ("devset/bert", 1e-4),
        ("devset/llama_gqa", 1e-4),
        ("devset/gguf/llama_F16.gguf", 1e-2),
        ("devset/gguf/llama_Q4_0.gguf", 1e-2),
        ("devset/gguf/llama_Q8_0.gguf", 1e-2),
        ("onnx/bert.onnx", 1e-4),
    ] {
        let model = model(path);
        let program = model.plan.program("forward").or(model.plan.programs.first()).unwrap();
        let mut random = Random::new(3);
        let inputs: Vec<(String, Tensor)> = program
            .inputs
            .iter()
            .filter(|p| p.fill == InputFill::Required)
            .map(|p| (p.name.clone(), random.ints(&[2, 9], if p.name.contains("ids") { 60 } else { 2 })))
            .collect();
        let device = Interpreted::default();
        let (mut cuda, mut cpu) = (bind(&device, &model).unwrap(), on_cpu(&model));
        let want = cpu.run(&inputs).unwrap();
        for _ in 0..3 {
            for ((name, found), (_, want)) in cuda.run(&inputs).unwrap().iter().zip(&want) {
                let distance = support::distance(name, found, &support::array(want));
                assert!(distance <= tolerance, "{path} {name}: {distance}");
            }
        }
        assert_eq!(device.replays_and_launches().0, 2, "{path}: the same launches are recorded when they come again");
        assert_clean(&device);
    }
}

/// A GPU of compute capability 9.0 runs the kernels of warpgroups, whose matrices it reaches through tensor maps made once;
/// every other one runs the portable text, which is always there.
#[test]
fn warpgroups_compute_what_the_cpu_does() {
    let targets = vec![Capabilities::cuda(), Capabilities::cuda_warpgroups()];
    let model = support::compile_with(&support::load("devset/gguf/llama_F16.gguf"), Default::default(), targets);
    let has_own = |k: &&frit_plan::Kernel| k.ptx((9, 0)).is_some_and(|v| !v.matrices.is_empty());
    let own: Vec<&str> = model.plan.kernels.iter().filter(has_own).map(|k| k.name.as_str()).collect();
    assert!(own.len() >= 3, "{own:?}");
    assert!(model.plan.kernels.iter().all(|k| k.ptx((8, 0)).is_some() && k.ptx((9, 0)).is_some()));
    assert!(model.plan.kernels.iter().all(|k| k.ptx((10, 0)).is_some_and(|v| v.matrices.is_empty())));
    let inputs = vec![("input_ids".to_owned(), Random::new(3).ints(&[2, 70], 60))];
    let device = Interpreted::default().with_capability((9, 0), 13000);
    let (mut cuda, mut cpu) = (bind(&device, &model).unwrap(), on_cpu(&model));
    let want = cpu.run(&inputs).unwrap();
    for _ in 0..2 {
        for ((name, found), (_, want)) in cuda.run(&inputs).unwrap().iter().zip(&want) {
            let distance = support::distance(name, found, &support::array(want));
            assert!(distance <= 1e-2, "{name}: {distance}");
        }
    }
    assert_clean(&device);
    let ran = device.checks().into_iter().filter(|c| own.contains(&c.name.as_str()) && c.launches > 0).count();
    assert!(ran >= 2, "{ran} of {own:?} ran");
}

/// Kernels that may start while the one before them runs, throughout a plan: they read weights early, and nothing else.
#[test]
fn kernels_that_overlap_read_only_weights_early() {
    let source = support::load("devset/llama_gqa");
    let targets = vec![Capabilities::cuda(), Capabilities::cuda_overlapping()];
    let model = support::compile_with(&source, Default::default(), targets);
    assert!(model.plan.kernels.iter().all(|k| k.ptx((9, 0)).is_some_and(|v| v.text.contains("griddepcontrol.wait"))));
    let device = Interpreted::default().with_capability((9, 0), 13000);
    let (mut cuda, mut cpu) = (bind(&device, &model).unwrap(), on_cpu(&model));
    let given = prompts(&[5, 2]);
    assert_eq!(generate(&mut cuda, &given, 4).unwrap(), generate(&mut cpu, &given, 4).unwrap());
    assert_clean(&device);
}

/// What a plan holds unless told otherwise: texts for overlapping launches of the kernels of one token, and of no others.
#[test]
fn launches_of_one_token_overlap_and_those_of_prompts_do_not() {
    let source = support::load("devset/qwen2");
    let plan = frit_compiler::Compiler::default().compile(&source).unwrap();
    let overlapping = |name: &str| {
        let steps = &plan.program(name).unwrap().steps;
        let kernels = steps.iter().filter_map(|s| plan.kernels.get(s.kernel as usize));
        let texts =
            kernels.map(|k| k.ptx((9, 1)).unwrap().architecture == Some(Architecture::Sm90)).collect::<Vec<_>>();
        (texts.iter().filter(|t| **t).count(), texts.len())
    };
    let (some, all) = overlapping("decode");
    assert_eq!(some, all, "decode");
    let (some, all) = overlapping("forward");
    assert_eq!((some, all > 5), (0, true), "forward");
}

#[test]
fn a_device_is_compared_with_the_cpu_in_every_program() {
    let model = model("devset/qwen2");
    let backend = CudaBackend::interpreted(&Interpreted::default().with_capability((9, 0), 13000)).unwrap();
    let options = VerifyOptions { tokens: 6, ..Default::default() };
    let done = verify_on(&model, &backend, &options).unwrap();
    assert!(done.passed() && done.backend == "cuda" && done.same_tokens == Some(true), "{done:?}");
    let exact = verify_on(&model, &backend, &VerifyOptions { tolerance: Some(0.0), ..options }).unwrap();
    assert!(!exact.passed(), "sums in another order have other bits: {exact:?}");
}

#[test]
fn decoding_replays_one_graph_and_waits_once_for_several_tokens() {
    let model = model("devset/llama_gqa");
    let device = Interpreted::default();
    let mut s = bind(&device, &model).unwrap();
    let given = prompts(&[5]);
    // the prompt's launches are recorded when they come again
    generate(&mut s, &given, 20).unwrap();
    generate(&mut s, &given, 1).unwrap();
    let (made, replays, waits) = (s.counters(), device.replays_and_launches().0, device.waits());
    assert_eq!(replays, 19 + 1);
    generate(&mut s, &given, 20).unwrap();
    let then = s.counters();
    let same = |c: &frit::backend::Counters| (c.pipelines, c.bind_groups, c.buffers);
    assert_eq!(same(&made), same(&then), "kernels, graphs and buffers are made once");
    assert_eq!(device.replays_and_launches().0 - replays, 1 + 19);
    assert!(device.waits() - waits <= 1 + 19u64.div_ceil(8), "{} waits", device.waits() - waits);
    let writes = then.writes - made.writes;
    assert!(writes <= 2 + 2 + 19u64.div_ceil(8), "{writes} writes: states, prompt, sizes");
}

#[test]
fn machine_code_is_kept_for_the_same_text_architecture_and_driver() {
    let model = model("devset/bert");
    let folder = tempfile::tempdir().unwrap();
    let run = |device: Interpreted| {
        let mut s = bind(&device.clone().with_cache(folder.path().into()), &model).unwrap();
        let ids = Random::new(1).ints(&[1, 4], 50);
        let program = model.plan.programs.first().unwrap();
        let required = program.inputs.iter().filter(|p| p.fill == InputFill::Required);
        let inputs: Vec<_> = required.map(|p| (p.name.clone(), ids.clone())).collect();
        s.run(&inputs).unwrap();
        device.assembled()
    };
    let all = run(Interpreted::default());
    assert_eq!(all, model.plan.kernels.len() as u64);
    assert_eq!(run(Interpreted::default()), 0);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(files.len() as u64, all);
    let mut bytes = std::fs::read(&files[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&files[0], bytes).unwrap();
    std::fs::write(&files[1], b"short").unwrap();
    assert_eq!(run(Interpreted::default()), 2, "damaged files are made again");
    assert_eq!(run(Interpreted::default()), 0);
    assert_eq!(run(Interpreted::default().with_capability((9, 0), 13000)), all);
    assert_eq!(run(Interpreted::default().with_capability((8, 0), 12080)), all);
}

#[test]
fn memory_is_counted_before_any_is_reserved() {
    let model = model("devset/llama_gqa");
    let device = Interpreted::default();
    let backend = CudaBackend::interpreted(&device).unwrap().with_memory_limit(1000);
    let refused = Session::builder().bind_on(&backend, Arc::clone(&model.plan), &*model.weights);
    assert!(matches!(refused, Err(Error::Limit { limit: 1000, .. })));
    assert_eq!(device.calls(), 1, "only the free memory was asked for");
    let small = Interpreted::default().with_memory(64 << 20);
    assert!(matches!(bind(&small, &model), Err(Error::Limit { .. })));
    assert_eq!((small.calls(), small.live_bytes()), (1, 0));
}

/// A run too large for the memory is refused before anything is given back: the session goes on with what it has.
#[test]
fn a_refused_resize_leaves_the_session_as_it_was() {
    let model = model("devset/llama_gqa");
    let (small, large) = (prompts(&[6]), prompts(&[40; 64]));
    let mut free = bind(&Interpreted::default(), &model).unwrap();
    let want = generate(&mut free, &small, 5).unwrap();
    let held: u64 = free.memory_bytes().iter().sum();
    let device = Interpreted::default();
    let backend = CudaBackend::interpreted(&device).unwrap().with_memory_limit(held + (4 << 20));
    let mut s = Session::builder().bind_on(&backend, Arc::clone(&model.plan), &*model.weights).unwrap();
    assert_eq!(generate(&mut s, &small, 5).unwrap(), want);
    let (live, replays) = (device.live_bytes(), device.replays_and_launches().0);
    let refused = generate(&mut s, &large, 5);
    assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    assert_eq!(device.live_bytes(), live);
    let graphs = s.counters().bind_groups;
    assert_eq!(generate(&mut s, &small, 5).unwrap(), want);
    assert!(s.counters().bind_groups <= graphs + 1 && device.replays_and_launches().0 > replays, "graphs are kept");
    assert_clean(&device);
}

/// Every call of the driver fails once, with an error that passes and with one that does not.
#[test]
fn every_failing_call_is_a_typed_error() {
    let model = model("devset/llama_gqa");
    let given = prompts(&[2]);
    let device = Interpreted::default();
    let attempt = |fault: Option<Fault>| -> (Result<Vec<Vec<u32>>>, Option<Session>) {
        device.fail(fault);
        match bind(&device, &model) {
            Ok(mut s) => (generate(&mut s, &given, 3), Some(s)),
            Err(e) => (Err(e), None),
        }
    };
    let want = attempt(None).0.unwrap();
    let calls = device.calls();
    assert!(calls > 50, "{calls}");
    let mut poisoned = 0;
    for at in 0..calls {
        for code in [OUT_OF_MEMORY, ILLEGAL_ADDRESS] {
            let (found, session) = attempt(Some(Fault { at, code }));
            match found {
                Err(Error::Poisoned { cause }) => {
                    assert_eq!(code, ILLEGAL_ADDRESS, "{at}: {cause}");
                    if let Some(mut s) = session {
                        device.fail(None);
                        let again = generate(&mut s, &given, 3);
                        assert!(matches!(again, Err(Error::Poisoned { .. })), "{at}: {again:?}");
                        poisoned += 1;
                    }
                }
                Err(Error::Limit { .. } | Error::Device(_) | Error::Kernel { .. }) => {
                    assert_eq!(code, OUT_OF_MEMORY, "{at}");
                    if let Some(mut s) = session.filter(|_| at % 5 == 0) {
                        device.fail(None);
                        assert_eq!(generate(&mut s, &given, 3).unwrap(), want, "{at}: the next run is right");
                    }
                }
                other => panic!("call {at} failed with {code}: {other:?}"),
            }
            assert_eq!(device.live_bytes(), 0, "call {at}, {code}");
        }
    }
    assert!(poisoned > 20, "{poisoned}");
}

/// A kernel that writes outside its buffer poisons the session; nothing is returned from it.
#[test]
fn a_kernel_that_breaks_a_rule_poisons_the_session() {
    let mut model = model("devset/bert");
    let plan = Arc::make_mut(&mut model.plan);
    let run = |v: &&mut frit_plan::Variant| v.architecture == Some(Architecture::Sm80);
    let mut variants = plan.kernels.iter_mut().flat_map(|k| &mut k.variants).filter(run);
    let last = variants.rfind(|v| v.text.contains("    st.global.f32 ["));
    let v = last.unwrap();
    let beyond = "    st.global.f32 [%arena+268435456], 0f00000000;\n    st.global.f32 [";
    v.text = v.text.replacen("    st.global.f32 [", beyond, 1);
    let device = Interpreted::default();
    let mut s = bind(&device, &model).unwrap();
    let program = model.plan.programs.first().unwrap();
    let required = program.inputs.iter().filter(|p| p.fill == InputFill::Required);
    let inputs: Vec<_> = required.map(|p| (p.name.clone(), Random::new(1).ints(&[1, 4], 2))).collect();
    for _ in 0..2 {
        let e = s.run(&inputs).unwrap_err();
        assert!(matches!(&e, Error::Poisoned { cause } if cause.contains("ILLEGAL_ADDRESS")), "{e}");
    }
}

#[test]
fn a_plan_without_ptx_is_refused_by_kernel() {
    let source = support::load("devset/bert");
    let webgpu = vec![Capabilities::webgpu(frit_kernels::target::Tier::Gpu)];
    let model = support::compile_with(&source, Default::default(), webgpu);
    let mut s = bind(&Interpreted::default(), &model).unwrap();
    let program = model.plan.programs.first().unwrap();
    let required = program.inputs.iter().filter(|p| p.fill == InputFill::Required);
    let inputs: Vec<_> = required.map(|p| (p.name.clone(), Random::new(1).ints(&[1, 4], 2))).collect();
    let e = s.run(&inputs).unwrap_err().to_string();
    assert!(e.contains("holds no PTX"), "{e}");
}

/// Holds wherever there is no NVIDIA driver; where there is one, the backend opens.
#[test]
fn a_machine_without_a_driver_says_so_in_one_line() {
    if let Err(e) = BackendChoice::Cuda.open() {
        let text = e.to_string();
        assert!(text.starts_with("backend cuda: ") && !text.contains('\n'), "{text}");
    }
}
