//! Runs checkpoints on both backends and compares them with the oracle.

use crate::support::Random;
use crate::tiny::{Form, Outcome, Tiny};
use frit::backend::{Backend, Extent, cpu::CpuBackend};
use frit::verify::{VerifyOptions, verify};
use frit::{BackendChoice, GenerateOptions, LoadedModel, RunStats, Session, Tensor, model_source};
use frit_compiler::CompileOptions;
use frit_compiler::ingest::policy::RunPolicy;
use frit_compiler::ingest::{self, LoadOptions};
use frit_kernels::target::Tier;
use frit_plan::{Plan, sizes};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock, Mutex};

/// Both backends that run everywhere.
pub const BACKENDS: [BackendChoice; 2] = [BackendChoice::Cpu, BackendChoice::Wgpu];

/// Compiles a checkpoint under a policy; what was compiled before is the same model.
pub fn compiled(t: &Tiny, policy: RunPolicy) -> LoadedModel {
    let of = (t, format!("{policy:?}"));
    once(of, || compiled_with(t, policy, CompileOptions::default()))
}

/// The model that is made `of` something, made at the first call.
pub fn once(of: impl Hash, make: impl FnOnce() -> LoadedModel) -> LoadedModel {
    static KNOWN: LazyLock<Mutex<HashMap<u64, LoadedModel>>> = LazyLock::new(Mutex::default);
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    let key = hasher.finish();
    if let Some(model) = KNOWN.lock().unwrap().get(&key) {
        return model.clone();
    }
    let model = make();
    KNOWN.lock().unwrap().insert(key, model.clone());
    model
}

/// The same with these options.
pub fn compiled_with(t: &Tiny, policy: RunPolicy, options: CompileOptions) -> LoadedModel {
    let dir = t.save();
    let load = LoadOptions { policy, ..LoadOptions::default() };
    let model = model_source::compile_as(dir.path(), &load, options, &mut |_| {});
    let model = model.unwrap_or_else(|e| panic!("{e}"));
    model.plan.validate().unwrap_or_else(|e| panic!("{e}"));
    // Weights are read when a session is opened: the files must stay.
    std::mem::forget(dir);
    model
}

/// What loading refuses.
pub fn refused(t: &Tiny, policy: RunPolicy) -> String {
    let dir = t.save();
    let load = LoadOptions { policy, ..LoadOptions::default() };
    match ingest::load_with(dir.path(), &load) {
        Ok(_) => panic!("the model was not refused"),
        Err(e) => e.to_string(),
    }
}

pub fn session(m: &LoadedModel, backend: BackendChoice) -> Session {
    Session::builder().backend(backend).open(m).unwrap_or_else(|e| panic!("{e}"))
}

/// Tokens of a reproducible text.
pub fn tokens(seed: u64, n: usize, vocab: usize) -> Vec<i32> {
    let mut r = Random::new(seed);
    (0..n).map(|_| r.below(vocab as u64) as i32).collect()
}

/// Logits of whole rows, `[B, S, V]`.
pub fn logits(m: &LoadedModel, backend: BackendChoice, rows: &[Vec<i32>]) -> (Tensor, RunStats) {
    let flat: Vec<i32> = rows.concat();
    let input = Tensor::i32(&[rows.len() as u64, rows[0].len() as u64], flat).unwrap();
    let mut s = session(m, backend);
    let out = s.run(&[("input_ids", input)]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(out.len(), 1, "decisions are no results");
    (out.into_iter().next().unwrap().1, s.stats().clone())
}

/// Compares logits with the oracle's on both backends, two rows in one batch, and the tokens that follow.
/// `|got − want| ≤ 1e-4 · max`, and equal tokens.
pub fn agrees(t: &Tiny, form: &Form, policy: RunPolicy) -> Vec<Outcome> {
    let m = compiled(t, policy);
    let rows = vec![tokens(3, 11, t.vocab), tokens(4, 11, t.vocab)];
    let want: Vec<Outcome> = rows.iter().map(|r| t.run(form, r)).collect();
    assert!(want.iter().all(|w| w.margin > 1e-3), "a decision is too close: {}", want[0].margin.min(want[1].margin));
    let flat: Vec<f64> = want.iter().flat_map(|w| w.logits.iter().flatten().copied()).collect();
    let most = flat.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for backend in BACKENDS {
        let (got, _) = logits(&m, backend, &rows);
        let got = got.as_f32().unwrap();
        assert_eq!(got.len(), flat.len());
        for (i, (g, w)) in got.iter().zip(&flat).enumerate() {
            assert!((f64::from(*g) - w).abs() <= 1e-4 * most, "{backend:?}: logit {i} is {g}, {w} expected");
        }
        follows(t, form, &m, backend);
    }
    want
}

/// Greedy tokens of a prompt on its own, decode by decode, are the oracle's.
pub fn follows(t: &Tiny, form: &Form, m: &LoadedModel, backend: BackendChoice) {
    let mut ids = tokens(5, 7, t.vocab);
    const CHUNK: usize = 4;
    let form = &Form { prompt: ids.len(), chunk: CHUNK, ..form.clone() };
    let prompt: Vec<u32> = ids.iter().map(|i| *i as u32).collect();
    let options = GenerateOptions { max_new_tokens: 5, ignore_eos: true, chunk: CHUNK as u64, ..Default::default() };
    let made = session(m, backend).generate(&[prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    for token in &made.rows[0].tokens {
        let logits = t.run(form, &ids).logits.pop().unwrap();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        assert_eq!(*token as usize, best, "{backend:?} after {} tokens", ids.len());
        ids.push(*token as i32);
    }
}

/// Two models give the same bits on both backends.
pub fn same_bits(a: &LoadedModel, b: &LoadedModel, vocab: usize) {
    let rows = vec![tokens(7, 13, vocab), tokens(8, 13, vocab), tokens(9, 13, vocab)];
    for backend in BACKENDS {
        assert_eq!(logits(a, backend, &rows).0, logits(b, backend, &rows).0, "{backend:?}");
    }
}

/// Every kernel's text is executed under all checks, as WGSL of both tiers and as PTX, and gives what the CPU gives.
pub fn verified(m: &LoadedModel) {
    for tier in [Tier::Cpu, Tier::Gpu, Tier::Cuda] {
        let options = VerifyOptions { tokens: 3, new_tokens: 2, ..VerifyOptions::default() };
        let found = verify(m, tier, &options).unwrap_or_else(|e| panic!("{}: {e}", tier.name()));
        let broken: Vec<_> = found.kernels.iter().flat_map(|k| &k.violations).collect();
        assert!(found.passed(), "{}: {broken:#?} {:?} {:?}", found.tier, found.outputs, found.same_tokens);
    }
}

/// Logits of the last token of a prompt, by the program `prefill` on the CPU.
pub fn prefilled(m: &LoadedModel, ids: &[i32]) -> Tensor {
    let plan = &m.plan;
    let at = plan.programs.iter().position(|p| p.name == "prefill").unwrap();
    let sizes = table(plan, 1, ids.len() as u64, 0, ids.len() as u64);
    let mut e = CpuBackend::new().bind(Arc::clone(plan), &*m.weights, &Extent(sizes.clone()), &mut |_, _| {}).unwrap();
    for (i, s) in plan.states.iter().enumerate() {
        let fill = i32::from(s.name == "key_mask");
        let len = if s.name == "key_mask" { ids.len() } else { 1 };
        e.write_state(i, &sizes, &vec![fill; len]).unwrap();
    }
    let input = Tensor::i32(&[1, ids.len() as u64], ids.to_vec()).unwrap();
    let wanted = plan.programs[at].outputs.iter().position(|o| o.name == "logits").unwrap();
    e.run(at, &sizes, &[&input], &[wanted]).unwrap().remove(0)
}

fn table(plan: &Plan, batch: u64, tokens: u64, past: u64, capacity: u64) -> Vec<u64> {
    let value = |n: &str| match n {
        sizes::BATCH => batch,
        sizes::TOKENS => tokens,
        sizes::PAST => past,
        _ => capacity,
    };
    plan.sizes.iter().map(|s| value(&s.name)).collect()
}

/// Bytes of the cache for a batch and a length.
pub fn cache_bytes(plan: &Plan, batch: u64, tokens: u64) -> u64 {
    let at = table(plan, batch, 1, 0, tokens);
    let bytes = |shape: &[frit_kernels::dim::Dim]| match shape {
        [] => 0,
        s => 4 * plan.eval(&frit_kernels::dim::product(s), &at).unwrap(),
    };
    plan.kv_slots.iter().map(|s| bytes(&s.k_shape) + bytes(&s.v_shape)).sum()
}

/// Names of the tensors that a plan reads.
pub fn reads(plan: &Plan, part: &str) -> Vec<String> {
    plan.tensor_names().into_iter().filter(|n| n.contains(part)).map(str::to_owned).collect()
}
