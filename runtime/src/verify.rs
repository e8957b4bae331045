//! Checks a plan without a device: every kernel's text is executed by the checking interpreter at the sizes of a real
//! run, and what comes out is compared with the CPU backend, which computes the same kernels from their meaning.

use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::backend::simt::{KernelCheck, SimtBackend};
use crate::binding::KEY_MASK;
use crate::generate::NEXT_TOKEN;
use crate::session::state_len;
use crate::{Error, GenerateOptions, LoadedModel, Result, Session, Tensor};
use frit_kernels::dtype::Scalar;
use frit_kernels::spec::MatmulPrecision;
use frit_kernels::target::Tier;
use frit_plan::{InputFill, Plan, Port, Program, SizeDecl, Task, sizes};
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Sequences.
    pub batch: u64,
    /// Tokens, or extent of every other size.
    pub tokens: u64,
    /// Tokens that a decoder goes on with.
    pub new_tokens: usize,
    /// Largest difference allowed, relative to the largest magnitude of the output; [`bound`] of the plan unless said.
    pub tolerance: Option<f64>,
    /// Order of warps and workgroups is drawn from this seed.
    pub shuffle: Option<u64>,
    /// What the languages leave open to a device is drawn from this seed: the last bits of approximate functions, denormal
    /// numbers, fused products and sums, the order in which matrix units add.
    pub adversarial: Option<u64>,
    /// Of PTX, what a GPU of this compute capability runs.
    pub capability: (u32, u32),
}

impl Default for VerifyOptions {
    fn default() -> Self {
        let (tolerance, shuffle, adversarial) = (None, None, None);
        VerifyOptions { batch: 1, tokens: 7, new_tokens: 3, tolerance, shuffle, adversarial, capability: (8, 0) }
    }
}

/// An output of both.
#[derive(Clone, Debug, Serialize)]
pub struct OutputCheck {
    /// Its name.
    pub name: String,
    /// Largest difference.
    pub max_difference: f64,
    /// Largest magnitude on the CPU.
    pub magnitude: f64,
    /// Largest difference allowed.
    pub bound: f64,
    /// Whether the difference is no larger.
    pub agrees: bool,
}

/// What was proved for one tier of schedules.
#[derive(Clone, Debug, Serialize)]
pub struct TierCheck {
    /// `cpu`, `gpu` or `cuda`.
    pub tier: &'static str,
    /// Of `cuda`, the compute capability whose kernels ran.
    pub capability: Option<(u32, u32)>,
    /// Kernels of the plan.
    pub kernels: Vec<KernelCheck>,
    /// What every launch was checked for.
    pub proved: &'static [&'static str],
    /// Kernels that no program launched at these sizes, by name; there must be none.
    pub not_launched: Vec<String>,
    /// Outputs of one run.
    pub outputs: Vec<OutputCheck>,
    /// Whether a decoder chose the same tokens; absent for other models.
    pub same_tokens: Option<bool>,
}

/// What is checked of WGSL, and besides of PTX.
const PROVED: [&str; 10] = [
    "accesses within the kernel's tensors",
    "alignment",
    "no read of memory or registers that nothing wrote",
    "no race",
    "barriers and collectives reached by all",
    "finite values of finite operands",
    "an end",
    "asynchronous copies waited for",
    "launches in front waited for",
    "constant memory not written",
];
const PROVED_OF_WGSL: usize = 7;

impl TierCheck {
    /// Whether everything was executed and nothing found.
    pub fn passed(&self) -> bool {
        self.not_launched.is_empty()
            && self.kernels.iter().all(|k| k.violations.is_empty())
            && self.outputs.iter().all(|o| o.agrees)
            && self.same_tokens != Some(false)
    }
    /// Violations of all kernels.
    pub fn violations(&self) -> usize {
        self.kernels.iter().map(|k| k.violations.len()).sum()
    }
}

/// Executes every kernel of `model`, as scheduled for `tier`, and compares with the CPU.
///
/// # Errors
/// A model that cannot be bound, or a kernel that cannot be executed at all.
pub fn verify(model: &LoadedModel, tier: Tier, options: &VerifyOptions) -> Result<TierCheck> {
    let mut simt = SimtBackend::new(tier, options.shuffle).with_capability(options.capability);
    if let Some(seed) = options.adversarial {
        simt = simt.with_adversary(seed);
    }
    let checks = simt.checks();
    let (outputs, same_tokens) = compare_with_cpu(model, &simt, options, &|program| checks.has_run(program))?;
    let kernels = checks.kernels();
    let not_launched = kernels.iter().filter(|k| k.launches == 0).map(|k| k.name.clone()).collect();
    let capability = (tier == Tier::Cuda).then_some(options.capability);
    let proved = if tier == Tier::Cuda { &PROVED[..] } else { &PROVED[..PROVED_OF_WGSL] };
    Ok(TierCheck { tier: tier.name(), capability, kernels, proved, not_launched, outputs, same_tokens })
}

/// How far results of this tier may be from the CPU's, relative to the largest magnitude of an output: 1e-4, and 5e-2 where
/// matrix units round both sides of a product to 16 bits. That is twice the most that was seen on a device, 2.5e-2 for
/// `families/gemma2` among 117 models; with `--matmul-precision bf16x3` nothing is rounded so, and 1e-4 holds.
pub fn bound(plan: &Plan, tier: Tier) -> f64 {
    let rounds = |k: &frit_plan::Kernel| {
        let on_units = |v: &frit_plan::Variant| {
            v.tier == tier && matches!(v.schedule.template.as_str(), "gemm_matrix" | "gemm_warpgroup")
        };
        k.spec.precision == MatmulPrecision::Auto && k.variants.iter().any(on_units)
    };
    if plan.kernels.iter().any(rounds) { 5e-2 } else { 1e-4 }
}

/// What a device computed.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceCheck {
    /// Name of the backend.
    pub backend: &'static str,
    /// The device, in words.
    pub device: String,
    /// Outputs of one run, and of other runs those that disagree.
    pub outputs: Vec<OutputCheck>,
    /// Whether a decoder chose the same tokens; absent for other models.
    pub same_tokens: Option<bool>,
}

impl DeviceCheck {
    /// Whether everything agrees.
    pub fn passed(&self) -> bool {
        self.outputs.iter().all(|o| o.agrees) && self.same_tokens != Some(false)
    }
}

/// Runs every program of `model` on a device, at the sizes of [`verify`], and compares with the CPU.
///
/// # Errors
/// A model that cannot be bound, or a device that fails.
pub fn verify_on(model: &LoadedModel, backend: &dyn Backend, options: &VerifyOptions) -> Result<DeviceCheck> {
    let (outputs, same_tokens) = compare_with_cpu(model, backend, options, &|_| false)?;
    Ok(DeviceCheck { backend: backend.name(), device: backend.device(), outputs, same_tokens })
}

/// Runs of every kind: without buckets, in each bucket, with the keys of decode steps in parts, then by itself each
/// program that has not run.
fn compare_with_cpu(
    model: &LoadedModel,
    backend: &dyn Backend,
    options: &VerifyOptions,
    has_run: &dyn Fn(usize) -> bool,
) -> Result<(Vec<OutputCheck>, Option<bool>)> {
    let (plan, weights) = (&model.plan, &*model.weights);
    let mut checked = Session::builder().bind_on(backend, Arc::clone(plan), weights)?;
    let exact = Session::builder().bind_on(&CpuBackend, Arc::clone(plan), weights)?;
    checked.takes_buckets = false;
    let mut pair = (checked, exact);
    let (mut outputs, mut same_tokens) = compare_runs(&mut pair, plan, options)?;
    pair.0.takes_buckets = true;
    for (batch, tokens) in bucket_runs(plan) {
        let small = VerifyOptions { batch, tokens, ..*options };
        let (more, same) = compare_runs(&mut pair, plan, &small)?;
        outputs.extend(more.into_iter().filter(|o| !o.agrees));
        same_tokens = same_tokens.map(|s| s && same != Some(false));
    }
    if plan.programs.iter().any(|p| p.instead.is_some()) {
        pair.0.always_in_parts = true;
        let (more, same) = compare_runs(&mut pair, plan, options)?;
        outputs.extend(more.into_iter().filter(|o| !o.agrees));
        same_tokens = same_tokens.map(|s| s && same != Some(false));
    }
    for program in (0..plan.programs.len()).filter(|p| !has_run(*p)) {
        outputs.extend(compare_program(&mut pair, plan, program, options)?.into_iter().filter(|o| !o.agrees));
    }
    Ok((outputs, same_tokens))
}

/// Runs one program by itself in both sessions, without a history, on as many rows as it takes.
fn compare_program(
    (checked, exact): &mut (Session, Session),
    plan: &Plan,
    index: usize,
    options: &VerifyOptions,
) -> Result<Vec<OutputCheck>> {
    let Some(program) = plan.programs.get(index) else { return Ok(Vec::new()) };
    let mut values = values(plan, program, options);
    checked.narrow(&mut values);
    for s in [&mut *checked, &mut *exact] {
        s.grow(&values)?;
    }
    for name in [sizes::CAPACITY, sizes::POSITIONS] {
        if let Some(i) = plan.size_index(name)
            && let (Some(slot), Some(held)) = (values.get_mut(i), checked.extent.get(i).min(exact.extent.get(i)))
        {
            *slot = *held;
        }
    }
    let tensors: Vec<Tensor> = inputs_of(plan, program, &values, &|_| true)?.into_iter().map(|(_, t)| t).collect();
    let given: Vec<&Tensor> = tensors.iter().collect();
    let wanted: Vec<usize> = (0..program.outputs.len()).collect();
    let run = |s: &mut Session| -> Result<Vec<Tensor>> {
        for (i, state) in plan.states.iter().enumerate() {
            let len = state_len(plan, i, &values)?;
            let of = |at: usize| match state.name.as_str() {
                KEY_MASK => 1,
                NEXT_TOKEN => token(plan, 0, at as u64),
                _ => 0,
            };
            s.executor.write_state(i, &values, &(0..len).map(of).collect::<Vec<i32>>())?;
        }
        s.executor.run(index, &values, &given, &wanted)
    };
    let (found, want) = (run(checked)?, run(exact)?);
    let tolerance = options.tolerance.unwrap_or_else(|| bound(plan, checked.tier()));
    let name = |output: &str| format!("{} of {}", output, program.name);
    // a token follows from numbers that are compared themselves, and is another one where two are almost the same
    let both = program.outputs.iter().zip(want.iter().zip(&found)).filter(|(_, (w, _))| w.as_f32().is_some());
    Ok(both.map(|(p, (w, f))| compare(&name(&p.name), w, f, tolerance)).collect())
}

/// Sizes under which a program may run, no larger than what is asked for.
fn values(plan: &Plan, program: &Program, options: &VerifyOptions) -> Vec<u64> {
    let most = |name: &str| program.at_most.iter().find(|a| a.0 == name).map_or(u64::MAX, |a| a.1);
    let fixed = |name: &str| program.fixed.iter().find(|f| f.0 == name).map(|f| f.1);
    let of = |batch: u64, tokens: u64| -> Vec<u64> {
        let value = |s: &SizeDecl| {
            let wanted = match s.name.as_str() {
                sizes::BATCH => batch,
                sizes::PAST => 0,
                _ => tokens,
            };
            fixed(&s.name).unwrap_or(wanted.max(s.min).min(s.max.unwrap_or(u64::MAX)).min(most(&s.name)))
        };
        plan.sizes.iter().map(value).collect()
    };
    let (mut batch, mut tokens) = (options.batch, options.tokens);
    loop {
        let values = of(batch, tokens);
        let holds = program.limits.iter().all(|(sum, most)| plan.eval(sum, &values).is_ok_and(|v| v <= *most));
        match (batch, tokens) {
            _ if holds => return values,
            (0 | 1, 0 | 1) => return values,
            (_, 2..) => tokens -= 1,
            _ => batch -= 1,
        }
    }
}

/// Sequences and tokens of runs that take each program for few rows: of two programs for at most 8 and 64 rows, say, one
/// run of a row and one of 9, each as one sequence and as that many of one token.
fn bucket_runs(plan: &Plan) -> Vec<(u64, u64)> {
    let most = |p: &frit_plan::Program| p.limits.last().map_or(0, |l| l.1);
    let mut caps: Vec<u64> = plan.programs.iter().filter(|p| plan.is_bucket(p)).map(most).collect();
    caps.sort_unstable();
    caps.dedup();
    let least = std::iter::once(1).chain(caps.iter().map(|c| c + 1));
    least.zip(&caps).flat_map(|(rows, _)| [(1, rows), (rows, 1)]).collect()
}

/// Runs both sessions on the same inputs: how far the outputs are apart, and whether the same tokens follow.
fn compare_runs(
    (checked, exact): &mut (Session, Session),
    plan: &Plan,
    options: &VerifyOptions,
) -> Result<(Vec<OutputCheck>, Option<bool>)> {
    let inputs = inputs(plan, options)?;
    let (found, want) = (checked.run(&inputs)?, exact.run(&inputs)?);
    let tolerance = options.tolerance.unwrap_or_else(|| bound(plan, checked.tier()));
    let outputs = want.iter().zip(&found).map(|((n, w), (_, f))| compare(n, w, f, tolerance)).collect();
    let same_tokens = if plan.model.task == Task::Decoder && options.new_tokens > 0 {
        let prompts: Vec<Vec<u32>> =
            (0..options.batch).map(|b| (0..options.tokens).map(|i| token(plan, b, i) as u32).collect()).collect();
        let how = GenerateOptions { max_new_tokens: options.new_tokens, ignore_eos: true, ..Default::default() };
        let rows = |s: &mut Session| s.generate(&prompts, &how, &mut |_| ControlFlow::Continue(()));
        Some(rows(checked)?.rows == rows(exact)?.rows)
    } else if plan.model.task == Task::EncoderDecoder && options.new_tokens > 0 {
        let encode = plan.program("encode").map(|p| p.inputs.as_slice()).unwrap_or_default();
        let source: Vec<(String, Tensor)> =
            inputs.into_iter().filter(|(n, _)| encode.iter().any(|p| p.name == *n)).collect();
        let start = vec![vec![token(plan, 0, 0) as u32]; options.batch as usize];
        let how = GenerateOptions { max_new_tokens: options.new_tokens, ignore_eos: true, ..Default::default() };
        let rows = |s: &mut Session| s.generate_from(&source, &start, &how, &mut |_| ControlFlow::Continue(()));
        Some(rows(checked)?.rows == rows(exact)?.rows)
    } else {
        None
    };
    Ok((outputs, same_tokens))
}

fn token(plan: &Plan, row: u64, at: u64) -> i32 {
    ((row * 31 + at * 17 + 5) % plan.model.vocab.clamp(1, i32::MAX as u64)) as i32
}

/// An element of an input of whole numbers: nothing is masked, and where the vocabulary is not known, every table has the
/// first two rows.
fn whole_number(plan: &Plan, input: &str, at: u64) -> i32 {
    match plan.model.vocab {
        _ if input.contains("mask") => 1,
        0 => (at % 2) as i32,
        _ => token(plan, 0, at),
    }
}

/// Inputs of the program that [`Session::run`] runs, all required ones, from a fixed sequence.
fn inputs(plan: &Plan, options: &VerifyOptions) -> Result<Vec<(String, Tensor)>> {
    let program = plan.program("forward").or(plan.programs.first());
    let program = program.ok_or_else(|| Error::Plan("a plan without programs".into()))?;
    let values: Vec<u64> = plan
        .sizes
        .iter()
        .map(|s| {
            let wanted = match s.name.as_str() {
                sizes::BATCH => options.batch,
                sizes::PAST => 0,
                _ => options.tokens,
            };
            wanted.max(s.min).min(s.max.unwrap_or(u64::MAX))
        })
        .collect();
    inputs_of(plan, program, &values, &|p| p.fill == InputFill::Required)
}

/// Those inputs of a program, under these sizes, from a fixed sequence.
fn inputs_of(
    plan: &Plan,
    program: &Program,
    values: &[u64],
    is_given: &dyn Fn(&Port) -> bool,
) -> Result<Vec<(String, Tensor)>> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut out = Vec::new();
    for port in program.inputs.iter().filter(|p| is_given(p)) {
        let shape = port.shape.iter().map(|d| Ok(plan.eval(d, values)?)).collect::<Result<Vec<u64>>>()?;
        let n: u64 = shape.iter().product();
        let tensor = match port.storage.scalar() {
            Scalar::F32 => Tensor::f32(&shape, (0..n).map(|_| next()).collect())?,
            _ => Tensor::i32(&shape, (0..n).map(|i| whole_number(plan, &port.name, i)).collect())?,
        };
        out.push((port.name.clone(), tensor));
    }
    Ok(out)
}

fn compare(name: &str, want: &Tensor, found: &Tensor, tolerance: f64) -> OutputCheck {
    let (mut difference, mut magnitude) = (0f64, 0f64);
    match (want.as_f32(), found.as_f32()) {
        (Some(w), Some(f)) if w.len() == f.len() => {
            for (w, f) in w.iter().zip(f) {
                let d = f64::from((w - f).abs());
                difference = if d.is_nan() { f64::INFINITY } else { difference.max(d) };
                magnitude = magnitude.max(f64::from(w.abs()));
            }
        }
        _ if want == found => {}
        _ => difference = f64::INFINITY,
    }
    let bound = tolerance * magnitude.max(1.0);
    OutputCheck { name: name.into(), max_difference: difference, magnitude, bound, agrees: difference <= bound }
}
