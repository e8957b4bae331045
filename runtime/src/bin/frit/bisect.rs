//! `frit compile --bisect`: which rewrite or fusion makes a command fail.

use crate::model::Progress;
use anyhow::{Context, Result, bail};
use frit::{LoadedModel, model_source};
use frit_compiler::CompileOptions;
use frit_compiler::fusion::FusionOptions;
use std::path::Path;
use std::process::Command;

struct Search<'a> {
    model: &'a Path,
    command: &'a str,
    progress: &'a Progress,
}

impl Search<'_> {
    fn compile(&self, options: CompileOptions) -> Result<LoadedModel> {
        Ok(model_source::compile_with(self.model, options, &mut |s| self.progress.stage(s))?)
    }
    /// Whether the command accepts the model compiled with these options.
    fn accepts(&self, options: CompileOptions) -> Result<bool> {
        let loaded = self.compile(options)?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("model.frit");
        frit_plan::format::write(&file, &loaded.plan, &*loaded.weights, &mut |_, _| {})?;
        let line = self.command.replace("{}", &file.to_string_lossy());
        let done = Command::new("sh").arg("-c").arg(&line).env("FRIT_MODEL", &file).status();
        Ok(done.with_context(|| format!("`{line}` could not be started"))?.success())
    }
    fn fuel(&self, n: u64) -> CompileOptions {
        CompileOptions { rewrite_fuel: Some(n), ..CompileOptions::default() }
    }
}

/// Searches for what makes `command` fail. In it `{}`, and the variable FRIT_MODEL, stand for the artifact.
pub fn run(model: &Path, command: &str, progress: &Progress) -> Result<()> {
    let s = Search { model, command, progress };
    if s.accepts(CompileOptions::default())? {
        progress.clear();
        println!("the command succeeds: nothing to search for");
        return Ok(());
    }
    let mut plain = s.fuel(0);
    plain.fusion = FusionOptions::unfused();
    if !s.accepts(plain)? {
        bail!("the command fails without any rewrite or fusion as well");
    }
    for id in FusionOptions::IDS {
        let mut o = CompileOptions::default();
        o.fusion.switch_off(id);
        if s.accepts(o)? {
            progress.clear();
            println!("the fusion `{id}` makes the command fail; `--disable {id}` leaves it out");
            return Ok(());
        }
    }
    let rewrites = |n: u64| -> Result<_> { Ok(s.compile(s.fuel(n))?.plan.report.rewrites.clone()) };
    let total: u64 = rewrites(u64::MAX)?.values().sum();
    if !s.accepts(s.fuel(0))? {
        progress.clear();
        println!("no single fusion and no rewrite alone: the command fails as soon as anything is fused");
        return Ok(());
    }
    let (mut good, mut bad) = (0, total);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if s.accepts(s.fuel(middle))? { good = middle } else { bad = middle }
    }
    let (before, after) = (rewrites(good)?, rewrites(bad)?);
    let rule = after.iter().find(|(r, n)| before.get(*r).copied().unwrap_or(0) < **n).map_or("?", |(r, _)| r.as_str());
    progress.clear();
    println!(
        "rewrite {bad} of {total}, an application of `{rule}`, makes the command fail; --rewrite-fuel {good} stops before it"
    );
    Ok(())
}
