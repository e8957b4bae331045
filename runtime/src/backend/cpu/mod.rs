//! The CPU backend: executes a plan's kernel specs natively.
//!
//! At binding every kernel's expression trees become vector programs ([`program`]), weights are read in the form they
//! are multiplied in, and arenas, cache and scratch memory are laid out for the extent. A run then computes sizes,
//! launches the kernels in order, each spread over the threads, and allocates nothing but its results.

mod attention;
mod bind;
mod chain;
mod conv_chain;
mod count;
mod dequant;
mod executor;
mod gemv;
mod kernel;
mod launch;
mod lower;
mod math;
mod matmul;
mod memory;
mod ops;
mod partials;
mod program;
mod row;
#[cfg(test)]
mod tests;

pub use count::LaunchAccess;
pub use executor::CpuExecutor;

use super::{Backend, Executor, Extent, Progress};
use crate::Result;
use frit_plan::{Plan, TensorSource};
use std::sync::Arc;

/// Runs plans on the machine's processor cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBackend;

impl CpuBackend {
    /// The backend.
    pub fn new() -> Self {
        CpuBackend
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn device(&self) -> String {
        format!("{} ({}, {} threads)", std::env::consts::ARCH, vectors(), rayon::current_num_threads())
    }
    fn is_hardware(&self) -> bool {
        false
    }
    fn bind(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        extent: &Extent,
        progress: Progress<'_>,
    ) -> Result<Box<dyn Executor>> {
        Ok(Box::new(CpuExecutor::bind(plan, source, extent, progress)?))
    }
}

fn vectors() -> String {
    format!("{:?}", pulp::Arch::new()).split('(').next().unwrap_or_default().to_lowercase()
}
