//! The kinds of devices that a verb compiles for.

use crate::model::Progress;
use anyhow::{Result, bail};
use frit::{LoadedModel, model_source};
use frit_compiler::CompileOptions;
use frit_kernels::target::Tier;
use std::path::Path;

#[derive(clap::Args, Clone)]
pub struct Devices {
    /// Kinds of devices that decisions are priced for and kernels written for: cpu (drivers that run shaders on cores), gpu
    /// (graphics cards through wgpu) or cuda; all of them unless said. The CPU backend runs any plan.
    #[arg(long = "for", value_name = "DEVICES", value_delimiter = ',')]
    devices: Vec<Device>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Device {
    Cpu,
    Gpu,
    Cuda,
}

impl Device {
    fn tier(self) -> Tier {
        match self {
            Device::Cpu => Tier::Cpu,
            Device::Gpu => Tier::Gpu,
            Device::Cuda => Tier::Cuda,
        }
    }
}

impl Devices {
    /// Whether plans are for all kinds.
    pub fn is_default(&self) -> bool {
        self.devices.is_empty()
    }
    /// The usual options, for these kinds.
    pub fn options(&self) -> CompileOptions {
        let mut options = CompileOptions::default();
        if !self.is_default() {
            let chosen: Vec<Tier> = self.devices.iter().map(|d| d.tier()).collect();
            options.only_for(&chosen);
        }
        options
    }
    /// Compiles a model for these kinds; `None` where they are all, so that there is nothing to ask for.
    ///
    /// # Errors
    /// An artifact, which is compiled already; what stands in the way of opening a model.
    pub fn open(&self, path: &Path, progress: &Progress) -> Result<Option<LoadedModel>> {
        if self.is_default() {
            return Ok(None);
        }
        if model_source::is_artifact(path) {
            bail!("{} is compiled already\nhint: frit compile MODEL -o x.frit --for …", path.display());
        }
        let loaded = model_source::compile_with(path, self.options(), &mut |s| progress.stage(s))?;
        Ok(Some(crate::model::heard(loaded)))
    }
}
