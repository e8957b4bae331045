//! `fusion.lock`: what fusion achieves for a model, as text that is compared with what was achieved before.

use crate::{BufferRef, PhaseReport, Plan, Program};
use frit_kernels::dim::{Dim, product};
use frit_kernels::dtype::Storage;
use std::collections::BTreeMap;
use std::fmt::Write;

impl Plan {
    /// Launches, regions, bytes, refusals and memory of every program, one to a line. The text depends on the structure of
    /// the model alone: equal layers are told apart by nothing but their number.
    pub fn lock(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "fusion.lock 1  {} kernels", self.kernels.len());
        for (program, phase) in self.programs.iter().zip(&self.report.phases) {
            lines(&mut out, program, phase);
        }
        out
    }
    /// Identity of what the plan does: a hash of its programs and kernels without any name but those of inputs, outputs and
    /// stored tensors.
    pub fn structure(&self) -> blake3::Hash {
        let mut h = blake3::Hasher::new();
        for k in &self.kernels {
            let mut spec = k.spec.clone();
            spec.name.clear();
            spec.args.iter_mut().for_each(|a| a.name.clear());
            put(&mut h, &spec);
        }
        for w in &self.weights {
            put(&mut h, &(&w.storage, &w.shape, &w.placement, &w.source));
        }
        for p in &self.programs {
            put(&mut h, &(&p.name, &p.fixed, &p.at_most, &p.inputs, &p.outputs));
            put(&mut h, &(&p.arena, &p.ints));
            for v in &p.values {
                put(&mut h, &(&v.storage, &v.shape, &v.slot, &v.live));
            }
            for s in &p.steps {
                put(&mut h, &(&s.kernel, &s.args));
            }
        }
        h.finalize()
    }
}

fn put(h: &mut blake3::Hasher, v: &impl serde::Serialize) {
    h.update(&serde_json::to_vec(v).unwrap_or_default());
}

/// What a change of a lock means, line by line: `-` lines are lost, `+` lines are new. Empty when nothing changed.
pub fn lock_changes(old: &str, new: &str) -> Vec<String> {
    let mut count: BTreeMap<&str, i64> = BTreeMap::new();
    new.lines().for_each(|l| *count.entry(l).or_default() += 1);
    let mut out = Vec::new();
    for l in old.lines() {
        let n = count.entry(l).or_default();
        if *n > 0 {
            *n -= 1;
        } else {
            out.push(format!("- {l}"));
        }
    }
    let mut left: BTreeMap<&str, i64> = count.into_iter().filter(|(_, n)| *n > 0).collect();
    for l in new.lines() {
        if let Some(n) = left.get_mut(l)
            && *n > 0
        {
            *n -= 1;
            out.push(format!("+ {l}"));
        }
    }
    out
}

fn lines(out: &mut String, program: &Program, phase: &PhaseReport) {
    let name = &program.name;
    let _ = writeln!(
        out,
        "{name}: {} launches, {} a layer, {} unfused, attention {} of {}",
        phase.dispatches,
        phase.dispatches_per_layer,
        phase.unfused_dispatches,
        phase.attention.fused,
        phase.attention.blocks
    );
    let mut regions: Vec<(String, u32)> = Vec::new();
    for r in &phase.regions {
        let line = format!(
            "{name} region {} {} = {}: weights {} B, rest {} B, saves {} B and {} launches, {} bindings, {}",
            r.kind,
            r.kernel,
            r.ops.join(" · "),
            r.weight_bytes,
            r.activation_bytes,
            r.saved_bytes,
            r.saved_launches,
            r.bindings,
            r.class
        );
        match regions.iter_mut().find(|x| x.0 == line) {
            Some(x) => x.1 += 1,
            None => regions.push((line, 1)),
        }
    }
    for (line, n) in regions {
        let _ = writeln!(out, "{line}  x {n}");
    }
    let mut codes: BTreeMap<&str, u32> = BTreeMap::new();
    phase.refused.iter().for_each(|r| *codes.entry(&r.code).or_default() += 1);
    for (code, n) in codes {
        let _ = writeln!(out, "{name} refused {code}  x {n}");
    }
    let l = &phase.ledger;
    let _ = writeln!(
        out,
        "{name} ledger weights {} B, rest {} B, unfused {} B",
        l.weights, l.activations_fused, l.activations_unfused
    );
    let sum = |dims: &[Dim]| dims.iter().fold(Dim::zero(), |s, d| s + d.clone() * Dim::constant(4));
    let outputs = |v: u32| program.outputs.iter().any(|o| o.buffer == BufferRef::Value(v));
    let floats = program.values.iter().enumerate().filter(|(i, v)| v.storage == Storage::F32 && !outputs(*i as u32));
    let values: Vec<Dim> = floats.map(|(_, v)| product(&v.shape)).collect();
    let _ = writeln!(
        out,
        "{name} memory {} slots of {} B for values of {} B, {} in place",
        program.arena.sizes.len(),
        sum(&program.arena.sizes),
        sum(&values),
        phase.in_place.len()
    );
}
