//! `frit explain --measure`: each kernel's time on a backend beside the time and the bytes that are predicted.
//!
//! A kernel is timed inside a program of its own that launches it many times over, against one that launches it once, so
//! that what a run costs besides its launches cancels out.

use crate::model::bytes;
use anyhow::{Context, Result};
use frit::backend::{Executor, Extent};
use frit::{BackendChoice, LoadedModel, Tensor};
use frit_kernels::dtype::Scalar;
use frit_kernels::target::Tier;
use frit_plan::{PhaseReport, Plan, Port, Program, Rates};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Launches of a kernel in the longer of its two programs, beyond the one of the shorter.
const LAUNCHES: usize = 20;
/// Runs of each program; the fastest counts.
const RUNS: usize = 7;

/// The plan with two programs more for each step of program `number`.
fn stretched(plan: &Plan, number: usize) -> Plan {
    let mut out = plan.clone();
    let Some(program) = plan.programs.get(number) else { return out };
    for step in &program.steps {
        let step = frit_plan::Step { when: None, ..step.clone() };
        for count in [1, 1 + LAUNCHES] {
            out.programs.push(Program { steps: vec![step.clone(); count], ..program.clone() });
        }
    }
    out
}

fn zeros(plan: &Plan, p: &Port, at: &[u64]) -> Result<Tensor> {
    let shape = p.shape.iter().map(|d| plan.eval(d, at)).collect::<Result<Vec<_>, _>>()?;
    let n = shape.iter().product::<u64>() as usize;
    Ok(match p.storage.scalar() {
        Scalar::F32 => Tensor::f32(&shape, vec![0.0; n])?,
        _ => Tensor::i32(&shape, vec![0; n])?,
    })
}

/// Seconds of one launch of step `step`.
fn launch(e: &mut dyn Executor, first: usize, step: usize, at: &[u64], inputs: &[&Tensor]) -> Result<f64> {
    let mut best = [Duration::MAX; 2];
    for _ in 0..RUNS {
        for (k, best) in best.iter_mut().enumerate() {
            let start = Instant::now();
            e.run(first + 2 * step + k, at, inputs, &[0])?;
            *best = start.elapsed().min(*best);
        }
    }
    Ok(best[1].saturating_sub(best[0]).as_secs_f64() / LAUNCHES as f64)
}

/// What one kernel takes.
struct Kernel {
    predicted_us: Option<f64>,
    measured_us: f64,
    moved: u64,
    flops: u64,
}

/// The kernels of a phase on a backend, in launch order.
pub struct Measured {
    program: String,
    backend: String,
    device: String,
    kernels: Vec<Kernel>,
}

/// Runs each step of a phase at the sizes `at` on zeros.
pub fn run(model: &LoadedModel, phase: &PhaseReport, backend: BackendChoice, at: &[u64]) -> Result<Measured> {
    let number = model.plan.programs.iter().position(|p| p.name == phase.program);
    let number = number.context("a phase without a program")?;
    let first = model.plan.programs.len();
    let plan = Arc::new(stretched(&model.plan, number));
    let backend = backend.open()?;
    let rates = match (backend.name(), backend.is_hardware()) {
        ("wgpu", false) => Some(Rates::of(Tier::Cpu)),
        ("wgpu", true) => Some(Rates::of(Tier::Gpu)),
        ("cuda", _) => Some(Rates::of(Tier::Cuda)),
        _ => None,
    };
    let mut e = backend.bind(plan.clone(), &*model.weights, &Extent(at.to_vec()), &mut |_, _| {})?;
    let inputs = inputs(&mut *e, &plan, number, at)?;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    e.run(number, at, &inputs, &[0])?;
    let mut kernels = Vec::with_capacity(phase.regions.len());
    for (i, r) in phase.regions.iter().enumerate() {
        let measured_us = launch(&mut *e, first, i, at, &inputs)? * 1e6;
        let moved = plan.eval(&r.weight_bytes, at)? + plan.eval(&r.activation_bytes, at)?;
        let flops = plan.eval(&r.flops, at)?;
        let predicted_us = rates.map(|rates| rates.launch_time_us(moved as f64, flops as f64));
        kernels.push(Kernel { predicted_us, measured_us, moved, flops });
    }
    Ok(Measured {
        program: phase.program.clone(),
        backend: backend.name().into(),
        device: backend.device().to_string(),
        kernels,
    })
}

/// Inputs of a program at the sizes `at`: zeros; every state is filled with ones.
pub fn inputs(e: &mut dyn Executor, plan: &Plan, program: usize, at: &[u64]) -> Result<Vec<Tensor>> {
    for (i, s) in plan.states.iter().enumerate() {
        let len = s.shape.iter().map(|d| plan.eval(d, at)).product::<Result<u64, _>>()?;
        e.write_state(i, at, &vec![1; len as usize])?;
    }
    let ports = plan.programs.get(program).map(|p| p.inputs.as_slice()).unwrap_or_default();
    ports.iter().map(|p| zeros(plan, p, at)).collect()
}

impl Measured {
    /// Time of a region in µs, of the program that was measured.
    pub fn of(&self, program: &str, region: usize) -> Option<f64> {
        self.kernels.get(region).filter(|_| self.program == program).map(|k| k.measured_us)
    }
    /// Time of all its regions.
    pub fn sum(&self, program: &str) -> Option<f64> {
        (self.program == program).then(|| self.totals().0)
    }
    /// Backend and device.
    pub fn on(&self) -> String {
        format!("{} ({})", self.backend, self.device)
    }
    fn totals(&self) -> (f64, Option<f64>) {
        let predicted = self.kernels.iter().map(|k| k.predicted_us).sum::<Option<f64>>();
        (self.kernels.iter().map(|k| k.measured_us).sum(), predicted)
    }
    /// Prints a line a kernel.
    pub fn print(&self, plan: &Plan, phase: &PhaseReport) {
        println!(
            "{}  {}: fastest of {RUNS} runs of {LAUNCHES} launches on {} ({})",
            plan.model.name, phase.program, self.backend, self.device
        );
        for (r, k) in phase.regions.iter().zip(&self.kernels) {
            println!(
                " K{:<3} {:9} {:52} {:>9}   {:>10} {:9.1} us measured   {:6.2} GB/s {:7.2} GFLOP/s",
                r.id,
                r.kind,
                r.ops.join(" · "),
                bytes(k.moved),
                k.predicted_us.map_or_else(String::new, |p| format!("{p:.1} us predicted,")),
                k.measured_us,
                k.moved as f64 / k.measured_us.max(1e-3) / 1e3,
                k.flops as f64 / k.measured_us.max(1e-3) / 1e3
            );
        }
        match self.totals() {
            (total, Some(sum)) => println!("together {:.3} ms measured, {:.3} ms predicted", total / 1e3, sum / 1e3),
            (total, None) => println!("together {:.3} ms measured; no prediction for {}", total / 1e3, self.backend),
        }
    }
    /// The same for scripts, kernels by the numbers of their regions.
    pub fn json(&self, phase: &PhaseReport) -> serde_json::Value {
        let kernel = |(r, k): (&frit_plan::RegionReport, &Kernel)| {
            serde_json::json!({
                "id": r.id, "kernel": r.kernel, "ops": r.ops, "bytes": k.moved, "flops": k.flops,
                "predicted_us": k.predicted_us, "measured_us": k.measured_us,
            })
        };
        let (measured, predicted) = self.totals();
        serde_json::json!({
            "program": phase.program, "backend": self.backend, "device": self.device,
            "measured_us": measured, "predicted_us": predicted,
            "no_prediction": predicted.is_none().then(|| format!("no prediction for {}", self.backend)),
            "kernels": phase.regions.iter().zip(&self.kernels).map(kernel).collect::<Vec<_>>(),
        })
    }
}
