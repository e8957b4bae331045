//! What a verb that compiles may switch off.

use crate::model::Progress;
use anyhow::{Result, bail};
use frit::{LoadedModel, model_source};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::FusionOptions;
use frit_compiler::passes::PassManager;
use std::path::Path;

#[derive(clap::Args, Clone, Default)]
pub struct Switches {
    /// Leave one kind of fusion out: epilogue, rope, prologue, norm or siblings. May be given several times.
    #[arg(long, value_name = "ID")]
    no_fuse: Vec<String>,
    /// Leave one pass out. May be given several times.
    #[arg(long, value_name = "PASS")]
    skip_pass: Vec<String>,
    /// Apply no more than this many rewrites.
    #[arg(long, value_name = "N")]
    rewrite_fuel: Option<u64>,
}

impl Switches {
    fn is_default(&self) -> bool {
        self.no_fuse.is_empty() && self.skip_pass.is_empty() && self.rewrite_fuel.is_none()
    }
    /// The options they stand for.
    pub fn options(&self) -> Result<CompileOptions> {
        let mut o = CompileOptions { rewrite_fuel: self.rewrite_fuel, ..CompileOptions::default() };
        for id in &self.no_fuse {
            if !o.fusion.switch_off(id) {
                bail!("there is no fusion `{id}`\nhint: --no-fuse {}", FusionOptions::IDS.join(" | "));
            }
        }
        let known: Vec<&str> = PassManager::standard(&[]).passes.iter().map(|p| p.name()).collect();
        for pass in &self.skip_pass {
            if !known.contains(&pass.as_str()) {
                let mut names = known;
                names.sort_unstable();
                names.dedup();
                bail!("there is no pass `{pass}`\nhint: --skip-pass {}", names.join(" | "));
            }
            o.skip_passes.push(pass.clone());
        }
        Ok(o)
    }
    /// Opens or compiles a model; an artifact is compiled already and takes no switch.
    pub fn open(&self, path: &Path, progress: &Progress) -> Result<LoadedModel> {
        if self.is_default() {
            return crate::model::open(path, progress);
        }
        if model_source::is_artifact(path) {
            bail!("{} is compiled already: switches apply to its model", path.display());
        }
        Ok(model_source::compile_with(path, self.options()?, &mut |s| progress.stage(s))?)
    }
}
