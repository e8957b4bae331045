//! `frit explain --measure`: each kernel's time on the CPU backend beside the bytes that it is predicted to move.

use crate::model::bytes;
use anyhow::{Context, Result};
use frit::backend::cpu::CpuExecutor;
use frit::backend::{Executor, Extent};
use frit::{LoadedModel, Tensor};
use frit_kernels::dtype::Scalar;
use frit_plan::PhaseReport;

/// Runs that are timed, after one that is not.
const RUNS: u32 = 5;

/// Runs a phase at the sizes `at` on zeros and prints the mean time of each launch.
pub fn print(model: &LoadedModel, phase: &PhaseReport, at: &[u64]) -> Result<()> {
    let plan = &model.plan;
    let number = plan.programs.iter().position(|p| p.name == phase.program).context("a phase without a program")?;
    let mut e = CpuExecutor::bind(plan.clone(), &*model.weights, &Extent(at.to_vec()), &mut |_, _| {})?;
    for (i, s) in plan.states.iter().enumerate() {
        let len = s.shape.iter().map(|d| plan.eval(d, at)).product::<Result<u64, _>>()?;
        e.write_state(i, at, &vec![1; len as usize])?;
    }
    let zeros = |p: &frit_plan::Port| -> Result<Tensor> {
        let shape = p.shape.iter().map(|d| plan.eval(d, at)).collect::<Result<Vec<_>, _>>()?;
        let n = shape.iter().product::<u64>() as usize;
        Ok(match p.storage.scalar() {
            Scalar::F32 => Tensor::f32(&shape, vec![0.0; n])?,
            _ => Tensor::i32(&shape, vec![0; n])?,
        })
    };
    let inputs = plan.programs[number].inputs.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    e.run(number, at, &inputs, &[])?;
    e.time_launches();
    for _ in 0..RUNS {
        e.run(number, at, &inputs, &[])?;
    }
    let times = e.take_times();
    let steps = phase.regions.len().max(1);
    println!("{}  {}: mean of {RUNS} runs on the CPU backend", plan.model.name, phase.program);
    let mut total = 0.0;
    for (i, r) in phase.regions.iter().enumerate() {
        let sum: f64 = times.iter().skip(i).step_by(steps).map(|t| t.as_secs_f64()).sum();
        let mean = sum / f64::from(RUNS);
        total += mean;
        let moved = plan.eval(&r.weight_bytes, at)? + plan.eval(&r.activation_bytes, at)?;
        println!(
            " K{:<3} {:9} {:52} {:>9} predicted   {:9.1} us measured   {:6.2} GB/s",
            r.id,
            r.kind,
            r.ops.join(" · "),
            bytes(moved),
            mean * 1e6,
            moved as f64 / mean.max(1e-9) / 1e9
        );
    }
    println!("together {:.3} ms", total * 1e3);
    Ok(())
}
