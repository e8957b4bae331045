//! Execution tests of rendered kernels: a naive evaluator of kernel specifications in f64, and a runner for whatever
//! adapter is there. Without an adapter, kernels are rendered and validated but not run.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

pub mod blocks;
pub mod build;
pub mod corpus;
pub mod eval;
pub mod gpu;
pub mod layout;
pub mod ptxas;

use blocks::Data;
use frit_kernels::spec::{KernelSpec, Space};
use frit_kernels::target::{Capabilities, Tier};
use frit_kernels::templates::{Rendered, render};

#[allow(unused_imports)]
pub use build::SpecBuilder;

/// A kernel, the sizes of one launch, and what every argument holds before it.
#[derive(Clone)]
pub struct Case {
    /// The kernel.
    pub spec: KernelSpec,
    /// Dynamic sizes.
    pub sizes: Vec<(String, i64)>,
    /// Content of each argument.
    pub data: Vec<Data>,
    /// Arguments that lie where another one lies: (output, input).
    pub shared: Vec<(usize, usize)>,
    /// Allowed difference, relative to `1 + |expected|`.
    pub tolerance: f64,
}

impl Case {
    /// A case with tolerance 2e-5.
    pub fn new(spec: KernelSpec, sizes: &[(&str, i64)], data: Vec<Data>) -> Case {
        let sizes = sizes.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        Case { spec, sizes, data, shared: Vec::new(), tolerance: 2e-5 }
    }
    /// Renders for both tiers, validates, runs, and compares every element of every written argument, and that nothing
    /// between the arguments was touched.
    pub fn check(&self) {
        self.spec.verify().unwrap();
        let want = eval::evaluate(self);
        for tier in [Tier::Cpu, Tier::Gpu] {
            let caps = Capabilities::webgpu(tier);
            let r = render(&self.spec, &caps).unwrap_or_else(|e| panic!("{tier:?}: {e}"));
            validate(&r, &caps);
            let Some(got) = gpu::run(self, &r, 1).map(|o| o.args) else { continue };
            for (i, a) in self.spec.args.iter().enumerate().filter(|(_, a)| a.written) {
                compare(&format!("{} {tier:?} `{}`", self.spec.name, a.name), &want[i], &got[i], self.tolerance, &r);
            }
        }
    }
    /// Best time of `runs` runs on the adapter, in milliseconds.
    pub fn time(&self, tier: Tier, runs: usize) -> Option<f64> {
        let r = render(&self.spec, &Capabilities::webgpu(tier)).unwrap();
        gpu::run(self, &r, runs).map(|o| o.best_ms)
    }
}

/// Fails on a text that naga refuses or that exceeds the base limits.
pub fn validate(r: &Rendered, caps: &Capabilities) {
    let module =
        naga::front::wgsl::parse_str(&r.text).unwrap_or_else(|e| panic!("{}\n{}", e.emit_to_string(&r.text), r.text));
    let mut base = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    base.set(naga::valid::Capabilities::SUBGROUP, caps.subgroup_size.is_some());
    let mut v = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), base);
    if caps.subgroup_size.is_some() {
        v.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        v.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    }
    v.validate(&module).unwrap_or_else(|e| panic!("{}\n{}", e.emit_to_string(&r.text), r.text));
    assert!(r.workgroup.iter().product::<u32>() <= caps.limit_invocations, "{:?}", r.workgroup);
    assert!(r.module.workgroup_bytes() <= u64::from(caps.limit_workgroup_bytes));
    assert!(!r.text.contains("return;"), "early return:\n{}", r.text);
}

/// Fails unless every element is within the tolerance.
pub fn compare(what: &str, want: &[f64], got: &[f64], tolerance: f64, r: &Rendered) {
    assert_eq!(want.len(), got.len(), "{what}");
    let mut wrong = Vec::new();
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let close = (w - g).abs() <= tolerance * (1.0 + w.abs());
        if !close {
            wrong.push((i, *w, *g));
        }
    }
    if let Some(first) = wrong.first() {
        let show: Vec<_> = wrong.iter().take(8).collect();
        panic!("{what}: {} of {} differ, first {first:?}, {show:?}\n{:?}\n{}", wrong.len(), want.len(), r.tile, r.text);
    }
}

/// Whether an argument lies in a buffer of its own.
pub fn is_weight(spec: &KernelSpec, i: usize) -> bool {
    spec.args[i].space == Space::Weight
}
